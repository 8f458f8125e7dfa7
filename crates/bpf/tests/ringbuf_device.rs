//! RINGBUF on a device: what a lying device's ring does to its consumer, and removal.

mod common;

use common::{attr, errno, logged, system};
use offmap_bpf::device::{
    MapSpec, OffloadDevice, OffloadRules, OffloadedMap, RingBuffer, RingHeader,
};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT};
use offmap_bpf::{Caller, Errno, IfIndex, MapCreateAttr, MapFile, MapType, System};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SIZE: u64 = 4096;
/// After this a wait is taken for endless.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ring memory that a test writes what it likes to.
#[derive(Default)]
struct State {
    producer: u64,
    consumer: u64,
    header: Option<RingHeader>,
    wakes: u64,
    waiting: bool,
}

#[derive(Default)]
struct Memory {
    state: Mutex<State>,
    changed: Condvar,
}

impl RingBuffer for Memory {
    fn data_bytes(&self) -> u64 {
        SIZE
    }

    fn producer_position(&self) -> u64 {
        self.state.lock().unwrap().producer
    }

    fn set_consumer_position(&self, position: u64) {
        self.state.lock().unwrap().consumer = position;
    }

    fn header(&self, offset: u64) -> RingHeader {
        assert!(offset < SIZE && offset.is_multiple_of(8), "{offset:#x}");
        let set = self.state.lock().unwrap().header;
        set.unwrap_or(RingHeader::at(offset, SIZE, 8))
    }

    fn copy(&self, offset: u64, out: &mut [u8]) {
        assert!(offset < SIZE && offset.is_multiple_of(8) && out.len() as u64 <= SIZE);
        out.fill(offset as u8);
    }

    fn wake(&self) {
        self.state.lock().unwrap().wakes += 1;
        self.changed.notify_all();
    }

    fn wait(&self, timeout: Duration, ready: &mut dyn FnMut(bool) -> Result<bool>) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let wakes = self.state.lock().unwrap().wakes;
            if ready(false)? {
                return Ok(true);
            }
            let mut state = self.state.lock().unwrap();
            state.waiting = true;
            let left = deadline.saturating_duration_since(Instant::now());
            let (mut state, wait) = self
                .changed
                .wait_timeout_while(state, left, |state| state.wakes == wakes)
                .unwrap();
            state.waiting = false;
            if wait.timed_out() {
                return Ok(false);
            }
        }
    }
}

struct Nic {
    memory: Arc<Memory>,
    log: common::Log,
    has_ring: bool,
}

impl OffloadDevice for Nic {
    fn describe(&self) -> String {
        "a ring".into()
    }

    fn rules(&self) -> OffloadRules {
        OffloadRules {
            more_map_types: 1 << MapType::RINGBUF.0,
            ..OffloadRules::default()
        }
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        assert_eq!(spec.map_type, MapType::RINGBUF);
        Ok(Arc::new(Ring {
            memory: self.has_ring.then(|| Arc::clone(&self.memory)),
            log: Arc::clone(&self.log),
        }))
    }
}

struct Ring {
    memory: Option<Arc<Memory>>,
    log: common::Log,
}

impl OffloadedMap for Ring {
    fn lookup(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        unreachable!()
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        unreachable!()
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        unreachable!()
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        unreachable!()
    }

    fn ring_buffer(&self) -> Option<Arc<dyn RingBuffer>> {
        self.memory
            .clone()
            .map(|memory| memory as Arc<dyn RingBuffer>)
    }

    fn device_bytes(&self) -> u64 {
        64
    }

    fn free(&self) {
        self.log.lock().unwrap().push("FREE".into());
    }
}

struct Bench {
    system: Arc<System>,
    nic: IfIndex,
    file: MapFile,
    memory: Arc<Memory>,
    log: common::Log,
}

fn bench(has_ring: bool) -> Bench {
    let system = system();
    let memory = Arc::new(Memory::default());
    let log = common::Log::default();
    let device = Arc::new(Nic {
        memory: Arc::clone(&memory),
        log: Arc::clone(&log),
        has_ring,
    });
    let nic = system.register_netdev("nic0", device).unwrap();
    let on = MapCreateAttr {
        map_ifindex: nic.0,
        key_size: 0,
        value_size: 0,
        ..attr(MapType::RINGBUF, SIZE as u32)
    };
    let fd = system.map_create(&Caller::root(), &on).unwrap();
    Bench {
        file: system.map_file(fd).unwrap(),
        system,
        nic,
        memory,
        log,
    }
}

#[test]
fn an_honest_device_is_consumed_from() {
    let bench = bench(true);
    let reader = bench.file.ringbuf().unwrap();
    for lap in 1..10u64 {
        bench.memory.state.lock().unwrap().producer = lap * 4080;
        let mut count = 0;
        let mut at = (lap - 1) * 4080;
        let done = reader.consume(|record| {
            assert_eq!(record, [((at + 8) % SIZE) as u8; 8]);
            at += 16;
            count += 1;
        });
        assert_eq!((done.unwrap(), count), (255, 255));
        assert_eq!(bench.memory.state.lock().unwrap().consumer, lap * 4080);
    }
    assert_eq!(errno(bench.file.ringbuf_producer()), Errno::EINVAL);
    assert_eq!(reader.consumer_position(), 9 * 4080);
    // What the device makes of the position that it was told changes nothing.
    bench.memory.state.lock().unwrap().consumer = 0;
    assert_eq!(reader.consume(|_| panic!("there is none")).unwrap(), 0);
    assert_eq!(bench.file.ringbuf().unwrap().available().unwrap(), 0);
}

#[test]
fn a_lying_device_is_eio_and_says_what_was_wrong() {
    for (at, producer) in [
        (0, SIZE),
        (0, SIZE + 8),
        (0, u64::MAX),
        (0, 1 << 63),
        (0, 12),
        (16, 8),
        (16, 0),
    ] {
        let bench = bench(true);
        let reader = bench.file.ringbuf().unwrap();
        bench.memory.state.lock().unwrap().producer = at;
        assert_eq!(reader.consume(|_| {}).unwrap(), at / 16);
        bench.memory.state.lock().unwrap().producer = producer;
        for refused in [
            reader
                .consume(|_| panic!("believed {producer:#x}"))
                .unwrap_err(),
            reader.wait(PATIENCE).unwrap_err(),
            reader.poll().unwrap_err(),
            reader.available().unwrap_err(),
        ] {
            assert_eq!(refused.errno(), Errno::EIO);
            let says = refused.reason();
            assert!(says.contains("producer position"), "{says}");
            assert!(says.contains(&format!("{producer:#x}")), "{says}");
        }
        assert_eq!(reader.consumer_position(), at);
        // A device that comes to its senses is believed again.
        bench.memory.state.lock().unwrap().producer = at + 16;
        assert_eq!(reader.consume(|_| {}).unwrap(), 1);
    }
}

#[test]
fn a_lying_header_is_eio_and_says_what_was_wrong() {
    let bench = bench(true);
    let reader = bench.file.ringbuf().unwrap();
    bench.memory.state.lock().unwrap().producer = 32;
    let busy = BPF_RINGBUF_BUSY_BIT;
    let discarded = BPF_RINGBUF_DISCARD_BIT;
    for (len, page_offset, word) in [
        (25, 3, "25 bytes"),
        (25 | busy, 3, "25 bytes"),
        (25 | discarded, 3, "25 bytes"),
        (u32::MAX >> 2, 3, "1073741823 bytes"),
        (u32::MAX, 3, "1073741823 bytes"),
        (8, 4, "page offset 4"),
        (8, 0, "page offset 0"),
        (8, u32::MAX, "page offset"),
    ] {
        bench.memory.state.lock().unwrap().header = Some(RingHeader { len, page_offset });
        for refused in [
            reader.consume(|_| panic!("believed {len:#x}")).unwrap_err(),
            reader.wait(PATIENCE).unwrap_err(),
        ] {
            assert_eq!(refused.errno(), Errno::EIO);
            assert!(refused.reason().contains(word), "{refused}");
        }
        assert_eq!(reader.consumer_position(), 0);
    }
    // All that was produced, as one record, and as one that is passed over.
    let whole = RingHeader::at(0, SIZE, 24);
    bench.memory.state.lock().unwrap().header = Some(whole);
    assert_eq!(
        reader
            .consume(|record| assert_eq!(record, [8; 24]))
            .unwrap(),
        1
    );
    bench.memory.state.lock().unwrap().producer = 64;
    let passed = RingHeader::at(0, SIZE, 24 | discarded);
    bench.memory.state.lock().unwrap().header = Some(passed);
    assert_eq!(reader.consume(|_| panic!("it is discarded")).unwrap(), 0);
    assert_eq!(reader.consumer_position(), 64);
    bench.memory.state.lock().unwrap().producer = 96;
    bench.memory.state.lock().unwrap().header = Some(RingHeader::at(0, SIZE, 8 | busy));
    assert_eq!(reader.consume(|_| panic!("it is busy")).unwrap(), 0);
    assert!(!reader.wait(Duration::from_millis(5)).unwrap());
}

#[test]
fn records_before_a_bad_one_count() {
    let bench = bench(true);
    let reader = bench.file.ringbuf().unwrap();
    bench.memory.state.lock().unwrap().producer = 32;
    let count = reader.consume(|_| {
        bench.memory.state.lock().unwrap().header = Some(RingHeader::at(0, SIZE, 100));
    });
    assert_eq!(count.unwrap(), 1);
    assert_eq!(errno(reader.consume(|_| {})), Errno::EIO);
}

#[test]
fn removal_wakes_waiters() {
    let bench = bench(true);
    let readers: Vec<_> = (0..3).map(|_| bench.file.ringbuf().unwrap()).collect();
    let waiters: Vec<_> = readers
        .into_iter()
        .map(|reader| {
            thread::spawn(move || {
                let refused = reader.wait(PATIENCE * 10).unwrap_err();
                assert_eq!(errno(reader.consume(|_| {})), Errno::ENODEV);
                assert_eq!(errno(reader.poll()), Errno::ENODEV);
                refused.errno()
            })
        })
        .collect();
    let since = Instant::now();
    while !bench.memory.state.lock().unwrap().waiting {
        assert!(since.elapsed() < PATIENCE);
        thread::yield_now();
    }
    bench.system.unregister_netdev(bench.nic).unwrap();
    assert_eq!(logged(&bench.log), ["FREE"]);
    for waiter in waiters {
        let since = Instant::now();
        while !waiter.is_finished() {
            assert!(since.elapsed() < PATIENCE, "removal left a waiter asleep");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(waiter.join().unwrap(), Errno::ENODEV);
    }
    assert_eq!(errno(bench.file.ringbuf()), Errno::ENODEV);
    // What bpf(2) asks of any map whose device is gone.
    assert_eq!(errno(bench.file.update(&[], &[], 3)), Errno::EINVAL);
    assert_eq!(errno(bench.file.lookup(&[], &mut [], 0)), Errno::ENODEV);
    assert_eq!(errno(bench.file.info()), Errno::ENODEV);
}

#[test]
fn a_map_of_another_kind_has_no_ring() {
    let bench = bench(false);
    assert_eq!(errno(bench.file.ringbuf()), Errno::EINVAL);
    // Nothing counts as a writer after that.
    bench.file.freeze().unwrap();
}
