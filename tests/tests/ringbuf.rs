//! RINGBUF on the host beside the running kernel's: what may be created, what commands answer,
//! and, program for program, the same bytes in the ring's memory.
//!
//! `OFFMAP_RING_OPS` sets the operations, `OFFMAP_SEED` replays a run;
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_bpf::uapi::{BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_PROD_POS, MapCreateAttr};
use offmap_bpf::{Caller, MapFile, MapType, RingBufferProducer, System, SystemConfig};
use offmap_tests::kernel::{self, Availability, KernelMap, KernelRing, RingOp};
use offmap_tests::report::{aloud, env_number, required, seed};
use offmap_tests::stack::StackMap;
use offmap_tests::subject::Subject;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;

/// Operations when the environment does not say: each loads a program.
const OPS: u64 = 20_000;
/// Operations on one pair of rings.
const SEQUENCE_OPS: u64 = 500;

fn kernel_takes_part() -> bool {
    let Availability::No(why) = kernel::availability() else {
        return true;
    };
    aloud(&format!(
        "ringbuf: THE KERNEL TAKES NO PART, maps may not be created here ({why})"
    ));
    assert!(
        !required("OFFMAP_REQUIRE_KERNEL"),
        "OFFMAP_REQUIRE_KERNEL=1, and the kernel takes no part"
    );
    false
}

fn ring_attr(bytes: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: MapType::RINGBUF.0,
        max_entries: bytes,
        ..MapCreateAttr::default()
    }
}

fn open(system: &Arc<System>, attr: &MapCreateAttr) -> Result<MapFile, i32> {
    let fd = system
        .map_create(&Caller::root(), attr)
        .map_err(|e| e.errno().0)?;
    let file = system.map_file(fd).map_err(|e| e.errno().0)?;
    system.close(fd).map_err(|e| e.errno().0)?;
    Ok(file)
}

#[test]
fn creation() {
    if !kernel_takes_part() {
        return;
    }
    let system = System::new(SystemConfig::default());
    let mut attrs = Vec::new();
    for max_entries in [
        0,
        1,
        8,
        4095,
        4096,
        4097,
        8192,
        12288,
        1 << 20,
        1 << 24,
        u32::MAX,
    ] {
        for key_size in [0, 4] {
            for value_size in [0, 8] {
                attrs.push(MapCreateAttr {
                    key_size,
                    value_size,
                    ..ring_attr(max_entries)
                });
            }
        }
    }
    // TOKEN_FD asks for a token, which neither side has; a node has its own check.
    for bit in (0..32).filter(|bit| *bit != 16) {
        attrs.push(MapCreateAttr {
            map_flags: 1 << bit,
            ..ring_attr(4096)
        });
    }
    let mut created = 0;
    for attr in &attrs {
        let (ours, theirs) = (open(&system, attr), KernelMap::create(attr));
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => {
                created += 1;
                let mem_usage = ours.info().unwrap().mem_usage;
                assert_eq!(Some(mem_usage), theirs.memlock(), "{attr:?}");
            }
            (Err(ours), Err(theirs)) => assert_eq!(ours, theirs, "{attr:?}"),
            _ => panic!("ours {ours:?}, the kernel's {theirs:?}: {attr:?}"),
        }
    }
    assert!(created >= 5, "{created}");
}

/// Walks apart: ours take a token of the map's size, which is 0.
#[test]
fn walks() {
    if !kernel_takes_part() {
        return;
    }
    let system = System::new(SystemConfig::default());
    let ours = open(&system, &ring_attr(4096)).unwrap();
    let mut theirs = KernelMap::create(&ring_attr(4096)).unwrap();
    for flags in [0, 1, 4] {
        for delete in [false, true] {
            let walked = theirs.walk_batch(None, &mut [], &mut [], 1, flags, delete);
            let (none, values) = (&mut [], &mut []);
            let outcome = if delete {
                ours.lookup_and_delete_batch(None, &mut [], none, values, 1, flags, 0)
            } else {
                ours.lookup_batch(None, &mut [], none, values, 1, flags, 0)
            };
            let said = outcome.result.map_err(|e| e.errno().0);
            assert_eq!((walked.result, walked.count), (said, outcome.count));
        }
    }
}

#[test]
fn commands() {
    if !kernel_takes_part() {
        return;
    }
    let system = System::new(SystemConfig::default());
    let mut maps: [Box<dyn Subject>; 2] = [
        Box::new(KernelMap::create(&ring_attr(4096)).unwrap()),
        Box::new(StackMap {
            name: "host map",
            file: open(&system, &ring_attr(4096)).unwrap(),
        }),
    ];
    // Before and after FREEZE.
    for round in 0..3 {
        let answers = maps.each_mut().map(|map| {
            let mut said = Vec::new();
            for flags in [0, 1, 2, 3, 4, 5, 7, 8, 12, 1 << 32, 1 << 63] {
                said.push(map.lookup(&[], &mut [], flags));
                said.push(map.update(&[], &[], flags));
                said.push(map.lookup_and_delete(&[], &mut [], flags));
                said.push(map.update_batch(&[], &[], 1, flags).1);
                said.push(map.delete_batch(&[], 1, flags).1);
            }
            said.push(map.delete(&[]));
            said.push(map.get_next_key(None, &mut []));
            said.push(map.freeze());
            said
        });
        assert_eq!(answers[0], answers[1], "round {round}");
    }
}

/// The kernel's answer to `op`, from our own.
fn ours(producer: &RingBufferProducer, op: RingOp) -> i32 {
    match op {
        RingOp::Output { bytes, fill, flags } => {
            let done = producer.output(&vec![fill; bytes as usize], flags);
            done.map_or_else(|e| -e.errno().0, |()| 0)
        }
        RingOp::Reserve {
            bytes,
            fill,
            discard,
            flags,
        } => {
            let Ok(mut record) = producer.reserve(bytes as usize, flags) else {
                return 1;
            };
            if bytes >= 8 {
                record.write(0, &[fill; 8]).unwrap();
            }
            if discard {
                record.discard(0);
            } else {
                record.submit(0);
            }
            0
        }
        RingOp::Query { flag } => producer.query(flag) as i32,
    }
}

#[test]
fn programs_leave_the_same_bytes() {
    if !kernel_takes_part() {
        return;
    }
    let (base, budget) = (seed(), env_number("OFFMAP_RING_OPS").unwrap_or(OPS));
    let system = System::new(SystemConfig::default());
    let (mut done, mut full, mut consumed) = (0, 0u64, 0u64);
    while done < budget {
        let seed = base.wrapping_add(done / SEQUENCE_OPS);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let size = 4096 << rng.random_range(0..3u32);
        let file = open(&system, &ring_attr(size)).unwrap();
        let (producer, reader) = (file.ringbuf_producer().unwrap(), file.ringbuf().unwrap());
        let mut theirs = KernelRing::create(size).unwrap();
        for _ in 0..SEQUENCE_OPS {
            let fill = rng.random();
            let op = match rng.random_range(0..10u32) {
                0 => RingOp::Query {
                    flag: rng.random_range(0..6),
                },
                1..6 => RingOp::Output {
                    bytes: rng.random_range(0..=RingOp::OUTPUT_MAX),
                    fill,
                    flags: rng.random_range(0..5),
                },
                _ => RingOp::Reserve {
                    bytes: match rng.random_range(0..16u32) {
                        0 => size - rng.random_range(0..24),
                        1 => u32::MAX / 4 - rng.random_range(0..2),
                        _ => rng.random_range(0..1000),
                    },
                    fill,
                    discard: rng.random_range(0..4u32) == 0,
                    flags: u64::from(rng.random_range(0..20u32) == 0),
                },
            };
            let context = || format!("{op:?}, seed {seed}");
            let answer = ours(&producer, op);
            assert_eq!(Ok(answer), theirs.run(op), "{}", context());
            full += u64::from(answer == -libc::EAGAIN || answer == 1);
            let position = producer.query(BPF_RB_PROD_POS);
            assert_eq!(position, theirs.producer_position(), "{}", context());
            let mut data = vec![0; size as usize];
            reader.peek_data(0, &mut data).unwrap();
            assert!(data == theirs.data(), "the data differ: {}", context());
            if rng.random_range(0..4u32) == 0 {
                consumed += reader
                    .consume_up_to(rng.random_range(0..12), |_| {})
                    .unwrap();
                theirs.set_consumer_position(producer.query(BPF_RB_CONS_POS));
            }
            done += 1;
        }
        let left = producer.query(BPF_RB_AVAIL_DATA);
        assert_eq!(reader.available().unwrap(), left);
    }
    assert!(
        full > 0 && consumed > 0,
        "{full} refused, {consumed} consumed"
    );
    aloud(&format!(
        "ringbuf: {done} programs from seed {base} on the kernel's ring and ours ({full} refused, \
         {consumed} records consumed): no difference in answers, positions and bytes"
    ));
}
