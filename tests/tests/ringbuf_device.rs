//! RINGBUF end to end: a map with `map_ifindex`, whose records the device's engines write and
//! the same consumer reads; inline, on a thread of its own with interrupts, and without.

use offmap_abi::ringbuf as layout;
use offmap_bpf::uapi::MapCreateAttr;
use offmap_bpf::{Caller, Errno, MapFile, MapType, RingBufferReader};
use offmap_device_io::{Function, Iova};
use offmap_driver::{CompletionMode, DriverConfig, MapHandle, Status};
use offmap_emulator::{DeviceConfig, Emulated, FrontEnd, Inline, Threaded};
use offmap_tests::stack::Stack;
use offmap_tests::tap::Tap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// After this a wait is taken for endless.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait that took so long was ended by a look at the device's health, which comes after 5 s, and
/// not by an interrupt.
const LOOK: Duration = Duration::from_secs(4);
/// Longer than a thread needs that does not wait.
const GRACE: Duration = Duration::from_millis(50);
/// The first map of a device.
const FIRST: MapHandle = MapHandle::new(0, 1);

fn ring_attr(bytes: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: MapType::RINGBUF.0,
        max_entries: bytes,
        ..MapCreateAttr::default()
    }
}

fn config(vectors: u16) -> DeviceConfig {
    let mut config = DeviceConfig {
        vectors,
        ..DeviceConfig::default()
    };
    config.firmware.memory_bytes = 16 << 20;
    config
}

/// A stack and a ring on its device.
struct Bench<F: Function> {
    stack: Stack<F>,
    file: MapFile,
    reader: RingBufferReader,
}

impl<E: FrontEnd> Bench<Emulated<E>> {
    fn new(stack: Stack<Emulated<E>>, bytes: u32) -> Self {
        let file = stack.map(&ring_attr(bytes), true);
        let reader = file.ringbuf().unwrap();
        Self {
            stack,
            file,
            reader,
        }
    }

    fn output(&self, data: &[u8]) -> Status {
        self.output_flags(data, 0)
    }

    fn output_flags(&self, data: &[u8], flags: u64) -> Status {
        let function = &self.stack.function;
        function
            .engine_ringbuf_output(0, FIRST, data, flags)
            .unwrap()
    }

    fn consumed(&self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        self.reader
            .consume(|record| records.push(record.to_vec()))
            .unwrap();
        records
    }
}

fn inline(bytes: u32) -> Bench<Inline> {
    Bench::new(Stack::inline(config(4)), bytes)
}

fn threaded(bytes: u32) -> Bench<Threaded> {
    Bench::new(polling(config(4)), bytes)
}

/// Queues that are polled, so that the device's vectors are all for rings.
fn polling(config: DeviceConfig) -> Stack<Threaded> {
    let settings = DriverConfig {
        completion: CompletionMode::Poll,
        ..DriverConfig::default()
    };
    Stack::with_driver(Threaded::spawn(config).expect("a device"), settings)
}

/// One vector, which another ring has: this one is polled.
fn polled(bytes: u32) -> (Bench<Threaded>, MapFile) {
    let stack = polling(config(1));
    let other = stack.map(&ring_attr(4096), true);
    let file = stack.map(&ring_attr(bytes), true);
    let reader = file.ringbuf().unwrap();
    (
        Bench {
            stack,
            file,
            reader,
        },
        other,
    )
}

fn records_arrive<E: FrontEnd>(bench: &Bench<Emulated<E>>) {
    assert!(bench.file.is_offloaded());
    for lap in 0..40u8 {
        for len in [0, 1, 7, 8, 9, 100, 1000] {
            assert_eq!(bench.output(&vec![lap ^ len as u8; len]), Status::Success);
        }
        let expected: Vec<Vec<u8>> = [0, 1, 7, 8, 9, 100, 1000usize]
            .map(|len| vec![lap ^ len as u8; len])
            .to_vec();
        assert!(bench.reader.poll().unwrap());
        assert_eq!(bench.consumed(), expected, "lap {lap}");
    }
    // The longest, across the end of the area; one byte more never fits, one record more not now.
    let longest: Vec<u8> = (0..4096 - 16).map(|i| i as u8).collect();
    assert_eq!(
        bench.output(&[longest.clone(), vec![0]].concat()),
        Status::InvalidLength
    );
    assert_eq!(bench.output(&longest), Status::Success);
    assert_eq!(bench.output(&[]), Status::NoSpace);
    assert_eq!(bench.consumed(), [longest]);
    assert_eq!(bench.output(&[1]), Status::Success);
    assert_eq!(bench.output_flags(&[2], 4), Status::InvalidField);
    assert_eq!(bench.consumed(), [[1]]);
}

#[test]
fn records_arrive_inline() {
    let bench = inline(4096);
    records_arrive(&bench);
    let function = &bench.stack.function;
    let stats = function.with_firmware(|firmware| firmware.ring_stats(FIRST).unwrap());
    let stats = stats.unwrap();
    assert_eq!(stats.dropped, 3, "too long, no room, a flag");
    assert_eq!(stats.producer, bench.reader.consumer_position());
}

#[test]
fn records_arrive_threaded() {
    records_arrive(&threaded(4096));
}

fn waiting_works<E: FrontEnd>(bench: &Bench<Emulated<E>>) {
    assert!(!bench.reader.wait(Duration::from_millis(5)).unwrap());
    for n in 0..20u8 {
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let since = Instant::now();
                assert!(bench.reader.wait(PATIENCE).unwrap());
                since.elapsed()
            });
            if n < 3 {
                thread::sleep(GRACE);
                assert!(!waiter.is_finished());
            }
            assert_eq!(bench.output(&[n]), Status::Success);
            assert!(waiter.join().unwrap() < LOOK, "a wake-up was lost");
        });
        assert_eq!(bench.consumed(), [[n]]);
    }
}

#[test]
fn waiting_works_inline() {
    waiting_works(&inline(4096));
}

#[test]
fn waiting_works_by_interrupt() {
    waiting_works(&threaded(4096));
}

#[test]
fn waiting_works_without_a_vector() {
    let (bench, _other) = polled(4096);
    assert!(!bench.reader.wait(Duration::from_millis(5)).unwrap());
    let second = MapHandle::new(1, 1);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| bench.reader.wait(PATIENCE));
        thread::sleep(GRACE);
        let function = &bench.stack.function;
        let done = function.engine_ringbuf_output(0, second, &[1], 0).unwrap();
        assert_eq!(done, Status::Success);
        assert!(waiter.join().unwrap().unwrap());
    });
    assert_eq!(bench.consumed(), [[1]]);
}

/// Engines on two threads, consumers that sleep at the interrupt: each record once, and those
/// of an engine in order.
fn stress(bench: &Bench<Threaded>, consumers: usize, records: u64) {
    let seen = [AtomicU64::new(0), AtomicU64::new(0)];
    let sums = [AtomicU64::new(0), AtomicU64::new(0)];
    let total = || seen[0].load(SeqCst) + seen[1].load(SeqCst);
    thread::scope(|scope| {
        for engine in 0..2u64 {
            scope.spawn(move || {
                for n in 1..=records {
                    let mut data = [engine.to_le_bytes(), n.to_le_bytes()].concat();
                    data.resize(16 + (n % 50) as usize, n as u8);
                    let function = &bench.stack.function;
                    loop {
                        let engine = engine as u32;
                        match function.engine_ringbuf_output(engine, FIRST, &data, 0) {
                            Ok(Status::Success) => break,
                            Ok(Status::NoSpace) => thread::yield_now(),
                            other => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
        for _ in 0..consumers {
            let (seen, sums, total) = (&seen, &sums, &total);
            scope.spawn(move || {
                let mut next = [1, 1];
                let mut ended = false;
                while !ended {
                    let since = Instant::now();
                    assert!(bench.reader.wait(PATIENCE).unwrap());
                    assert!(since.elapsed() < LOOK, "a wake-up was lost");
                    let each = |record: &[u8]| {
                        if record.is_empty() {
                            ended = true;
                            return;
                        }
                        let word =
                            |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
                        let (engine, n) = (word(0) as usize, word(8));
                        assert!(n >= next[engine], "out of order");
                        assert!(record[16..].iter().all(|b| *b == n as u8));
                        assert_eq!(record.len() as u64, 16 + n % 50);
                        next[engine] = n + 1;
                        sums[engine].fetch_add(n, SeqCst);
                        seen[engine].fetch_add(1, SeqCst);
                    };
                    bench.reader.consume_up_to(4, each).unwrap();
                    if total() == 2 * records && !ended {
                        // The end, for this one or another.
                        bench.output(&[]);
                    }
                }
                bench.output(&[]);
            });
        }
    });
    for engine in 0..2 {
        assert_eq!(seen[engine].load(SeqCst), records);
        assert_eq!(sums[engine].load(SeqCst), records * (records + 1) / 2);
    }
}

#[test]
fn engines_and_a_consumer() {
    stress(&threaded(4096), 1, 10_000);
}

#[test]
fn engines_and_several_consumers() {
    stress(&threaded(4096), 3, 5_000);
}

/// With a consumer that never sleeps there is an interrupt only when it had caught up.
#[test]
fn interrupts_come_only_for_a_consumer_that_had_caught_up() {
    let bench = threaded(4096);
    let function = &bench.stack.function;
    // Ours takes the place of the ring's, whose vector is the device's first.
    let interrupt = function.enable_vector(0).unwrap();
    assert_eq!(bench.output(&[1]), Status::Success);
    assert!(
        interrupt.take().unwrap(),
        "the consumer stood at the record"
    );
    for _ in 0..10 {
        assert_eq!(bench.output(&[2]), Status::Success);
    }
    assert!(!interrupt.take().unwrap(), "it has work already");
    assert_eq!(bench.reader.consume_up_to(3, |_| {}).unwrap(), 3);
    assert_eq!(bench.output(&[3]), Status::Success);
    assert!(!interrupt.take().unwrap(), "it still has");
    assert_eq!(
        bench.output_flags(&[4], layout::FORCE_WAKEUP),
        Status::Success
    );
    assert!(interrupt.take().unwrap());
    bench.consumed();
    assert_eq!(bench.output_flags(&[5], layout::NO_WAKEUP), Status::Success);
    assert!(!interrupt.take().unwrap());
    bench.consumed();
    assert_eq!(bench.output(&[6]), Status::Success);
    assert!(interrupt.take().unwrap());
}

fn removal_wakes<E: FrontEnd>(bench: Bench<Emulated<E>>) {
    let Bench {
        stack,
        file,
        reader,
    } = bench;
    let waited = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    waited.store(true, SeqCst);
                    reader.wait(PATIENCE * 10).unwrap_err().errno()
                })
            })
            .collect();
        while !waited.load(SeqCst) {
            thread::yield_now();
        }
        thread::sleep(GRACE);
        let since = Instant::now();
        stack.system.unregister_netdev(stack.ifindex).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Errno::ENODEV);
        }
        assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
    });
    assert_eq!(reader.consume(|_| {}).unwrap_err().errno(), Errno::ENODEV);
    assert_eq!(file.ringbuf().unwrap_err().errno(), Errno::ENODEV);
    assert_eq!(stack.nic.failed_frees(), 0);
    // The device knows the map no more, and writes nothing.
    let done = stack.function.engine_ringbuf_output(0, FIRST, &[1], 0);
    assert_eq!(done.unwrap(), Status::InvalidMap);
}

#[test]
fn removal_wakes_waiters_inline() {
    removal_wakes(inline(4096));
}

#[test]
fn removal_wakes_waiters_threaded() {
    removal_wakes(threaded(4096));
}

#[test]
fn a_reset_of_the_device_ends_a_wait() {
    for vectors in [1, 4] {
        let bench = Bench::new(Stack::threaded(config(vectors)), 4096);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| bench.reader.wait(PATIENCE * 10));
            thread::sleep(GRACE);
            bench.stack.driver.reset().unwrap();
            let since = Instant::now();
            assert_eq!(waiter.join().unwrap().unwrap_err().errno(), Errno::ENODEV);
            assert!(since.elapsed() < PATIENCE);
        });
        assert_eq!(bench.output(&[1]), Status::InvalidMap);
    }
}

#[test]
fn closing_gives_the_memory_and_the_vector_back() {
    // One vector, and room for few maps: each creation needs what the one before gave back.
    let mut config = config(1);
    config.firmware.maps = 1;
    let stack = Stack::threaded(config);
    for n in 0..50u16 {
        let file = stack.map(&ring_attr(4096), true);
        let reader = file.ringbuf().unwrap();
        let handle = MapHandle::new(n, 1);
        let done = stack
            .function
            .engine_ringbuf_output(0, handle, &[n as u8], 0);
        assert_eq!(done.unwrap(), Status::Success);
        assert!(reader.wait(PATIENCE).unwrap());
        let mut seen = 0;
        reader.consume(|record| seen = record[0]).unwrap();
        assert_eq!(seen, n as u8);
        drop((file, reader));
        stack.system.flush_frees();
        let done = stack.function.engine_ringbuf_output(0, handle, &[1], 0);
        assert_eq!(done.unwrap(), Status::InvalidMap);
    }
    assert_eq!(stack.nic.failed_frees(), 0);
}

#[test]
fn element_commands_find_none() {
    let bench = inline(4096);
    let file = &bench.file;
    assert_eq!(
        file.lookup(&[], &mut [], 0).unwrap_err().errno(),
        Errno::ENOTSUPP
    );
    assert_eq!(
        file.update(&[], &[], 0).unwrap_err().errno(),
        Errno::ENOTSUPP
    );
    assert_eq!(file.delete(&[]).unwrap_err().errno(), Errno::ENOTSUPP);
    assert_eq!(
        file.get_next_key(None, &mut []).unwrap_err().errno(),
        Errno::ENOTSUPP
    );
    let refused = file.lookup_and_delete(&[], &mut [], 0).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOTSUPP);
    assert_eq!(file.ringbuf_producer().unwrap_err().errno(), Errno::EINVAL);
    let info = file.info().unwrap();
    assert_eq!(
        (info.max_entries, info.key_size, info.value_size),
        (4096, 0, 0)
    );
    assert_eq!(info.offload.unwrap().device_bytes, 64);
}

#[test]
fn what_may_be_created() {
    let stack = Stack::inline(config(1));
    let good = ring_attr(4096);
    let bad = [
        (
            MapCreateAttr {
                key_size: 4,
                ..good
            },
            "key_size 4",
        ),
        (
            MapCreateAttr {
                value_size: 8,
                ..good
            },
            "value_size 8",
        ),
        (ring_attr(0), "max_entries 0"),
        (ring_attr(2048), "max_entries 2048"),
        (ring_attr(12288), "max_entries 12288"),
        (ring_attr(u32::MAX), "max_entries 4294967295"),
        (
            MapCreateAttr {
                map_flags: 1,
                ..good
            },
            "map_flags 0x1",
        ),
        (
            MapCreateAttr {
                map_flags: 1 << 10,
                ..good
            },
            "MMAPABLE",
        ),
    ];
    for (attr, word) in bad {
        let refused = stack.try_map(&attr, true).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{refused}");
        assert!(refused.reason().contains(word), "{refused}");
    }
    let one_map = {
        let mut config = config(1);
        config.firmware.maps = 1;
        Stack::inline(config)
    };
    let _first = one_map.map(&good, true);
    let refused = one_map.try_map(&good, true).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOMEM, "{refused}");
    // Bytes of a ring are no entries.
    let mut config = config(1);
    config.firmware.entries_per_map = 16;
    config.firmware.entries_total = 16;
    Stack::inline(config).map(&good, true);
    let fd = stack.system.map_create(&Caller::unprivileged(), &good);
    assert_eq!(fd.unwrap_err().errno(), Errno::EPERM);
}

/// A ring of 4,096 bytes whose memory the test writes to.
struct Tapped {
    stack: Stack<Tap<Arc<Inline>>>,
    reader: RingBufferReader,
    iova: Iova,
}

impl Tapped {
    fn new() -> Self {
        let inline = Inline::new(config(4)).unwrap();
        let stack = Stack::over(Arc::new(Tap::new(inline)));
        let reader = stack.map(&ring_attr(4096), true).ringbuf().unwrap();
        let len = layout::memory_bytes(4096) as usize;
        let iova = stack.function.find(len).unwrap();
        Self {
            stack,
            reader,
            iova,
        }
    }

    fn poke(&self, offset: u64, word: u64) {
        self.stack.function.poke(self.iova, offset, word);
    }

    fn output(&self, data: &[u8]) -> Status {
        let inline = &self.stack.function.inner;
        inline.engine_ringbuf_output(0, FIRST, data, 0).unwrap()
    }

    fn consumed(&self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let each = |record: &[u8]| records.push(record.to_vec());
        self.reader.consume(each).unwrap();
        records
    }
}

/// A device that lies: what it wrote is spoiled in host memory, and the consumer says what was
/// wrong, as often as it is asked.
#[test]
fn a_lying_device_is_eio() {
    let ring = Tapped::new();
    assert_eq!(ring.output(&[7; 20]), Status::Success);
    let good = layout::header_word(0, 4096, 20);
    for (offset, word, says) in [
        (layout::PRODUCER_POSITION, 4096, "producer position 0x1000"),
        (layout::PRODUCER_POSITION, u64::MAX, "producer position"),
        (layout::PRODUCER_POSITION, 12, "producer position 0xc"),
        (layout::DATA, layout::header_word(0, 4096, 25), "25 bytes"),
        (
            layout::DATA,
            layout::header_word(0, 4096, layout::BUSY | 25),
            "25 bytes",
        ),
        (layout::DATA, good | 1 << 40, "page offset"),
    ] {
        ring.poke(offset, word);
        for _ in 0..2 {
            let refused = ring.reader.consume(|_| panic!("believed")).unwrap_err();
            assert_eq!(refused.errno(), Errno::EIO);
            assert!(refused.reason().contains(says), "{refused}");
            assert_eq!(ring.reader.wait(PATIENCE).unwrap_err().errno(), Errno::EIO);
        }
        ring.poke(layout::PRODUCER_POSITION, 32);
        ring.poke(layout::DATA, good);
    }
    // A record that never becomes complete is waited for no longer than asked.
    ring.poke(layout::DATA, good | u64::from(layout::BUSY));
    assert!(ring.consumed().is_empty());
    assert!(!ring.reader.wait(Duration::from_millis(5)).unwrap());
    ring.poke(layout::DATA, good);
    // Where the consumer stands is its own business, whatever a device makes of it.
    ring.poke(layout::CONSUMER_POSITION, 1 << 50);
    assert_eq!(ring.consumed(), [[7; 20]]);
}

/// A host that lies: the device drops and counts records, and goes on when it is told the truth.
#[test]
fn a_lying_host_loses_records() {
    let ring = Tapped::new();
    for _ in 0..3 {
        assert_eq!(ring.output(&[7; 8]), Status::Success);
    }
    assert_eq!(ring.reader.consume_up_to(2, |_| {}).unwrap(), 2);
    assert_eq!(ring.output(&[7; 8]), Status::Success, "it saw position 32");
    // Beyond what was produced, behind what was said before, between two words.
    let lies = [72, 1 << 40, u64::MAX, 1 << 63, 16, 0, 36];
    for (n, lie) in (1..).zip(lies) {
        ring.poke(layout::CONSUMER_POSITION, lie);
        assert_eq!(ring.output(&[9; 8]), Status::InvalidField, "{lie:#x}");
        let inline = &ring.stack.function.inner;
        let stats = inline.with_firmware(|firmware| firmware.ring_stats(FIRST).unwrap());
        let stats = stats.unwrap();
        assert_eq!((stats.producer, stats.consumer, stats.dropped), (64, 32, n));
    }
    ring.poke(layout::CONSUMER_POSITION, 32);
    assert_eq!(ring.output(&[8; 8]), Status::Success);
    assert_eq!(ring.consumed(), [[7; 8], [7; 8], [8; 8]]);
}

#[test]
fn a_ring_out_of_reach_loses_records_and_no_more() {
    let bench = inline(4096);
    let function = &bench.stack.function;
    let command = |value: u16| function.config_write(4, &value.to_le_bytes()).unwrap();
    // Bus mastering off.
    command(2);
    assert_eq!(bench.output(&[1]), Status::DmaFault);
    command(6);
    assert_eq!(bench.output(&[2]), Status::Success);
    assert_eq!(bench.consumed(), [[2]]);
}
