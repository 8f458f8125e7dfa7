//! RINGBUF in the firmware alone: the bytes that it writes, in which order, what it refuses, and
//! what it makes of a host that lies.

mod common;

use offmap_abi::admin::{MapAttr, MapCreateBody, MapCreated};
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ringbuf::{
    CONSUMER_POSITION, DATA, DROPPED, FORCE_WAKEUP, NO_WAKEUP, PRODUCER_POSITION, header_word,
    memory_bytes,
};
use offmap_abi::submission::ElementBody;
use offmap_abi::{AdminOpcode, IoOpcode, MapHandle, MapType, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Firmware, HostFault, HostMemory, Progress};
use zerocopy::IntoBytes;

/// Where the ring's memory is.
const RING: u64 = 0x10_000;
/// Where the attributes are.
const ATTR: u64 = 0x1000;
const SIZE: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrote {
    Bytes(u64, usize),
    Word(u64, u64),
}

/// Host memory, with a journal of what was written.
struct Host {
    bytes: Vec<u8>,
    wrote: Vec<Wrote>,
    /// Accesses of the ring that succeed before they fail.
    left: usize,
}

impl Host {
    fn new() -> Self {
        Self {
            bytes: vec![0; (RING + memory_bytes(SIZE)) as usize],
            wrote: Vec::new(),
            left: usize::MAX,
        }
    }

    fn reach(&mut self, iova: u64, len: usize) -> Result<&mut [u8], HostFault> {
        if iova >= RING {
            self.left = self.left.checked_sub(1).ok_or(HostFault)?;
        }
        let at = usize::try_from(iova).map_err(|_| HostFault)?;
        let end = at.checked_add(len).ok_or(HostFault)?;
        self.bytes.get_mut(at..end).ok_or(HostFault)
    }

    fn word(&self, offset: u64) -> u64 {
        let at = (RING + offset) as usize;
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn set_word(&mut self, offset: u64, word: u64) {
        let at = (RING + offset) as usize;
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

impl HostMemory for Host {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        into.copy_from_slice(self.reach(iova, into.len())?);
        Ok(())
    }

    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        self.reach(iova, from.len())?.copy_from_slice(from);
        if from.len() != 8 || !iova.is_multiple_of(8) {
            self.wrote.push(Wrote::Bytes(iova - RING, from.len()));
        }
        Ok(())
    }

    fn store_word(&mut self, iova: u64, word: u64) -> Result<(), HostFault> {
        self.write(iova, &word.to_le_bytes())?;
        self.wrote.push(Wrote::Word(iova - RING, word));
        Ok(())
    }
}

struct Bench {
    firmware: Firmware<Vec<u8>>,
    host: Host,
}

fn attr(host_memory: u64, vector: u32) -> MapAttr {
    MapAttr {
        host_memory: host_memory.into(),
        vector: vector.into(),
        ..MapAttr::default()
    }
}

fn body(size: u64) -> MapCreateBody {
    MapCreateBody {
        map_type: MapType::Ringbuf.0.into(),
        key_size: 0.into(),
        value_size: 0.into(),
        max_entries: (size as u32).into(),
        cpu_slots: 0.into(),
        flags: 0.into(),
        seed: 0.into(),
        attr: ATTR.into(),
        attr_len: (size_of::<MapAttr>() as u32).into(),
        reserved: 0.into(),
    }
}

impl Bench {
    fn new() -> Self {
        let mut config = Config::with_memory(1 << 16);
        config.maps = 4;
        let mut firmware = Firmware::new(config, vec![0; 1 << 16]).unwrap();
        firmware.set_vectors(4);
        Self {
            firmware,
            host: Host::new(),
        }
    }

    fn create(&mut self, body: &MapCreateBody, attr: &MapAttr) -> Result<MapHandle, Status> {
        let at = ATTR as usize;
        self.host.bytes[at..at + size_of::<MapAttr>()].copy_from_slice(attr.as_bytes());
        let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), body);
        let mut progress = self.firmware.admin(&command, &mut self.host);
        loop {
            match progress {
                Progress::More => progress = self.firmware.resume(&mut self.host),
                Progress::Done(done) if done.status().is_success() => {
                    let created: MapCreated = done.payload_as();
                    return Ok(MapHandle(created.map.get()));
                }
                Progress::Done(done) => return Err(done.status()),
            }
        }
    }

    fn ring(vector: u32) -> (Self, MapHandle) {
        let mut bench = Self::new();
        let map = bench.create(&body(SIZE), &attr(RING, vector)).unwrap();
        bench.host.wrote.clear();
        (bench, map)
    }

    fn output(&mut self, map: MapHandle, data: &[u8], flags: u64) -> (Status, Option<u32>) {
        let done = self
            .firmware
            .engine_ringbuf_output(0, map, data, flags, &mut self.host);
        (done.status, done.interrupt)
    }
}

const OK: (Status, Option<u32>) = (Status::Success, None);

#[test]
fn data_then_header_then_position() {
    let (mut bench, map) = Bench::ring(NO_VECTOR);
    assert_eq!(bench.output(map, &[7; 13], 0), OK);
    assert_eq!(
        bench.host.wrote,
        [
            Wrote::Bytes(DATA + 8, 13),
            Wrote::Word(DATA, header_word(0, SIZE, 13)),
            Wrote::Word(PRODUCER_POSITION, 24),
        ]
    );
    let ring = (RING + DATA) as usize;
    assert_eq!(bench.host.bytes[ring..ring + 8], [13, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(
        bench.host.bytes[ring + 8..ring + 24],
        [[7; 13].as_slice(), &[0; 3]].concat()
    );
    // Across the end of the area.
    bench.host.set_word(CONSUMER_POSITION, 24);
    assert_eq!(bench.output(map, &[1; 4000], 0), OK);
    bench.host.set_word(CONSUMER_POSITION, 4032);
    bench.host.wrote.clear();
    assert_eq!(bench.output(map, &[2; 100], 0), OK);
    assert_eq!(
        bench.host.wrote,
        [
            Wrote::Bytes(DATA + 4040, 56),
            Wrote::Bytes(DATA, 44),
            Wrote::Word(DATA + 4032, header_word(4032, SIZE, 100)),
            Wrote::Word(PRODUCER_POSITION, 4032 + 112),
        ]
    );
}

#[test]
fn the_producer_stays_short_of_a_whole_ring() {
    let (mut bench, map) = Bench::ring(NO_VECTOR);
    let too_long = bench.output(map, &[1; 4081], 0);
    assert_eq!(too_long, (Status::InvalidLength, None));
    assert_eq!(bench.output(map, &[1; 4080], 0), OK);
    assert_eq!(bench.output(map, &[], 0), (Status::NoSpace, None));
    assert_eq!(bench.host.word(PRODUCER_POSITION), 4088);
    assert_eq!(bench.host.word(DROPPED), 2);
    bench.host.set_word(CONSUMER_POSITION, 4088);
    assert_eq!(bench.output(map, &[], 0), OK);
}

#[test]
fn interrupts_by_b3() {
    let (mut bench, map) = Bench::ring(3);
    let raised = (Status::Success, Some(3));
    assert_eq!(bench.output(map, &[1; 8], 0), raised, "it stands there");
    assert_eq!(bench.output(map, &[1; 8], 0), OK, "it has work");
    assert_eq!(bench.output(map, &[1; 8], FORCE_WAKEUP), raised);
    bench.host.set_word(CONSUMER_POSITION, 48);
    assert_eq!(bench.output(map, &[1; 8], NO_WAKEUP), OK);
    bench.host.set_word(CONSUMER_POSITION, 64);
    assert_eq!(bench.output(map, &[1; 8], 0), raised);
    assert_eq!(bench.output(map, &[1; 8], 4), (Status::InvalidField, None));
    assert_eq!(bench.host.word(DROPPED), 1);
    let (mut bench, map) = Bench::ring(NO_VECTOR);
    assert_eq!(bench.output(map, &[], FORCE_WAKEUP), OK);
}

#[test]
fn a_record_that_faults_leaves_the_ring_as_it_was() {
    for left in 0.. {
        let (mut bench, map) = Bench::ring(2);
        bench.host.left = left;
        let done = bench.output(map, &[5; 100], 0);
        bench.host.left = usize::MAX;
        if done.0 == Status::Success {
            // Only the last look, for the interrupt, was out of reach: one is sent.
            assert_eq!((left, done.1), (4, Some(2)));
            break;
        }
        assert_eq!(done, (Status::DmaFault, None), "{left}");
        assert_eq!(bench.host.word(PRODUCER_POSITION), 0);
        let stats = bench.firmware.ring_stats(map).unwrap();
        assert_eq!((stats.producer, stats.dropped), (0, 1));
        assert_eq!(bench.output(map, &[6; 4], 0), (Status::Success, Some(2)));
        assert_eq!(bench.host.word(DATA), header_word(0, SIZE, 4));
    }
}

#[test]
fn what_a_ring_is_created_with() {
    let mut bench = Bench::new();
    let mut create = |body: MapCreateBody, attr: MapAttr| bench.create(&body, &attr);
    let good = body(SIZE);
    for size in [0, 1, 2048, 4095, 12288, u64::from(u32::MAX)] {
        let refused = create(body(size), attr(RING, 0));
        assert_eq!(refused, Err(Status::InvalidField), "{size}");
    }
    for (memory, vector) in [
        (0, 0),
        (RING + 8, 0),
        (!4095, 0),
        (RING, 4),
        (RING, NO_VECTOR - 1),
    ] {
        let refused = create(good, attr(memory, vector));
        assert_eq!(refused, Err(Status::InvalidField), "{memory:#x} {vector}");
    }
    for bad in [
        MapCreateBody {
            key_size: 4.into(),
            ..good
        },
        MapCreateBody {
            value_size: 8.into(),
            ..good
        },
        MapCreateBody {
            cpu_slots: 1.into(),
            ..good
        },
        MapCreateBody {
            flags: 1.into(),
            ..good
        },
    ] {
        assert_eq!(create(bad, attr(RING, 0)), Err(Status::InvalidField));
    }
    for bad in [
        MapAttr {
            map_extra: 1.into(),
            ..attr(RING, 0)
        },
        MapAttr {
            inner_map: 1.into(),
            ..attr(RING, 0)
        },
    ] {
        assert_eq!(create(good, bad), Err(Status::InvalidField));
    }
    // Memory of which the start, or the end, is not there.
    assert_eq!(create(good, attr(1 << 40, 0)), Err(Status::DmaFault));
    assert_eq!(create(good, attr(RING + 4096, 0)), Err(Status::DmaFault));
    // The other types want neither memory nor a vector.
    let array = MapCreateBody {
        map_type: MapType::Array.0.into(),
        key_size: 4.into(),
        value_size: 8.into(),
        ..body(1)
    };
    assert_eq!(create(array, attr(RING, 0)), Err(Status::InvalidField));
    assert_eq!(create(array, attr(0, 1)), Err(Status::InvalidField));
    for _ in 0..4 {
        create(good, attr(RING, 3)).unwrap();
    }
    assert_eq!(create(good, attr(RING, 3)), Err(Status::LimitExceeded));
}

#[test]
fn a_ring_that_was_freed_is_touched_no_more() {
    let (mut bench, map) = Bench::ring(0);
    let free = Submission::new(
        AdminOpcode::MapFree.0,
        RequestId(2),
        &offmap_abi::admin::EmptyBody::ZERO,
    );
    let done = bench.firmware.admin(&free.with_map(map), &mut bench.host);
    let Progress::Done(done) = done else {
        panic!("one step");
    };
    assert_eq!(done.status(), Status::Success);
    bench.host.left = 0;
    assert_eq!(bench.output(map, &[1], 0), (Status::InvalidMap, None));
    let (mut bench, map) = Bench::ring(0);
    bench.firmware.reset();
    bench.host.left = 0;
    assert_eq!(bench.output(map, &[1], 0), (Status::InvalidMap, None));
    assert!(bench.host.wrote.is_empty());
}

#[test]
fn other_operations_are_unsupported() {
    let (mut bench, map) = Bench::ring(0);
    let body = ElementBody {
        map_flags: 0.into(),
        key_len: 0.into(),
        value_len: 0.into(),
        reserved: 0.into(),
        key: [0; 16],
        value: [0; 16],
    };
    let batch = offmap_abi::submission::BatchBody {
        map_flags: 0.into(),
        count: 1.into(),
        key_len: 0.into(),
        value_len: 0.into(),
        keys: 0.into(),
        values: 0.into(),
        statuses: 0.into(),
        cursor: 0.into(),
    };
    for opcode in 1..=0x15 {
        let Some(_) = IoOpcode(opcode).name() else {
            continue;
        };
        let command = if IoOpcode(opcode).is_batch() {
            Submission::new(opcode, RequestId(3), &batch)
        } else {
            Submission::new(opcode, RequestId(3), &body)
        };
        let done = bench
            .firmware
            .io(1, &command.with_map(map), &mut bench.host);
        let Progress::Done(done) = done else {
            panic!("one step");
        };
        assert_eq!(done.status(), Status::Unsupported, "opcode {opcode:#x}");
    }
    let mut value = [0; 8];
    let status = bench.firmware.engine_lookup(0, map, &[], &mut value);
    assert_eq!(status, Status::Unsupported);
    assert_eq!(
        bench.firmware.engine_update(0, map, &[], &[], 0),
        Status::Unsupported
    );
    assert_eq!(bench.output(MapHandle(0), &[], 0).0, Status::InvalidMap);
    let done = bench
        .firmware
        .engine_ringbuf_output(8, map, &[], 0, &mut bench.host);
    assert_eq!(done.status, Status::InvalidField, "there are 8 engines");
}
