//! Operations on maps that end later than they begin: what tickets and futures give, and what
//! becomes of them when nobody takes them, when they are cancelled and when the device fails.

#[path = "asynchronous/futures.rs"]
mod as_futures;
#[path = "asynchronous/failures.rs"]
mod failures;

use offmap_bpf::uapi::{BPF_EXIST, BPF_NOEXIST, MapFlags};
use offmap_bpf::{Caller, ElementOp, Errno, MapCreateAttr, MapFile, MapType};
use offmap_driver::{DriverConfig, Function};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::asynchronous::{
    AsyncLoad, AsyncMap, AsyncQueue, Failure, Outcome, SubmitError,
};
use offmap_offload::{NicSettings, OffloadNic, Profile, RecoverMaps, Recovery};
use offmap_tests::report::seed;
use offmap_tests::stack::Stack;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;

const DEPTH: u32 = 64;

fn device() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    config
}

fn driver() -> DriverConfig {
    DriverConfig {
        queue_depth: DEPTH,
        ..DriverConfig::default()
    }
}

fn attr(map_type: MapType, key_size: u32, value_size: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size,
        value_size,
        max_entries: 1024,
        ..MapCreateAttr::default()
    }
}

/// A stack with a hash map and an asynchronous queue on which it is open.
struct Bench<F: Function> {
    stack: Stack<F>,
    queue: AsyncQueue<F>,
    file: MapFile,
    map: AsyncMap<F>,
}

impl<F: Function> Bench<F> {
    fn over(function: Arc<F>, config: DriverConfig) -> Self {
        let stack = Stack::with_driver(function, config);
        let queue = stack.nic.async_queue().unwrap();
        Self::on(stack, queue)
    }

    fn on(stack: Stack<F>, queue: AsyncQueue<F>) -> Self {
        let file = stack.map(&attr(MapType::HASH, 4, 40), true);
        let map = queue.open(&file).unwrap();
        Self {
            stack,
            queue,
            file,
            map,
        }
    }

    /// Nothing is in flight, untaken or in line.
    #[track_caller]
    fn idle(&self) {
        self.queue.process();
        assert_eq!(self.queue.load(), AsyncLoad::default());
    }
}

fn bench() -> Bench<Inline> {
    Bench::over(Inline::new(device()).unwrap(), driver())
}

fn value_of(key: u32) -> [u8; 40] {
    std::array::from_fn(|i| (key as usize * 7 + i) as u8)
}

#[track_caller]
fn failed(outcome: Outcome) -> Errno {
    match outcome {
        Err(Failure::Failed(error)) => error.errno(),
        other => panic!("{other:?} is no failure without an effect"),
    }
}

#[track_caller]
fn refused<T>(submitted: Result<T, SubmitError>) -> Errno {
    match submitted {
        Err(SubmitError::Failed(error)) => error.errno(),
        Err(SubmitError::Full) => panic!("the queue is full"),
        Ok(_) => panic!("it was not refused"),
    }
}

/// The same random operations, one by one, through tickets and through the calls of another map
/// with the same contents.
fn alike<F: Function>(stack: &Stack<F>, queue: &AsyncQueue<F>, attr: &MapCreateAttr, seed: u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let flags = MapFlags::ZERO_SEED.bits();
    let seeded = matches!(
        MapType(attr.map_type),
        MapType::HASH | MapType::LRU_HASH | MapType::PERCPU_HASH
    );
    let attr = MapCreateAttr {
        // Both walk in the same order.
        map_flags: attr.map_flags | if seeded { flags } else { 0 },
        max_entries: 12,
        ..*attr
    };
    let (now, later) = (stack.map(&attr, true), stack.map(&attr, true));
    let map = queue.open(&later).unwrap();
    let mut ends = std::collections::BTreeMap::<String, u64>::new();
    for n in 0..3000u32 {
        let mut key = vec![0; now.key_size()];
        if let Some(first) = key.first_mut() {
            *first = rng.random_range(0..16);
        }
        if MapType(attr.map_type) == MapType::LPM_TRIE {
            let bits = key[0] % 33;
            key[0] = bits;
            key[4..].fill(bits);
        }
        let mut value: Vec<u8> = n.to_ne_bytes().repeat(now.value_bytes().div_ceil(4));
        value.truncate(now.value_bytes());
        let flags = [0, 0, 0, BPF_NOEXIST, BPF_EXIST, 3][rng.random_range(0..6)];
        let mut out = vec![0; now.value_bytes()];
        let (op, expected) = match rng.random_range(0..6) {
            0 => (
                ElementOp::Lookup { key: &key },
                now.lookup(&key, &mut out, 0),
            ),
            1 => (ElementOp::Delete { key: &key }, now.delete(&key)),
            2 => {
                out.resize(now.key_size(), 0);
                let op = ElementOp::NextKey { key: Some(&key) };
                (op, now.get_next_key(Some(&key), &mut out))
            }
            3 => {
                out.resize(now.key_size(), 0);
                let op = ElementOp::NextKey { key: None };
                (op, now.get_next_key(None, &mut out))
            }
            4 => {
                let op = ElementOp::LookupAndDelete { key: &key };
                (op, now.lookup_and_delete(&key, &mut out, 0))
            }
            _ => {
                let (key, value) = (&key, &value);
                let op = ElementOp::Update { key, value, flags };
                (op, now.update(key, value, flags))
            }
        };
        let got = match map.submit(&op) {
            Ok(ticket) => ticket.wait(),
            Err(SubmitError::Failed(error)) => Err(Failure::Failed(error)),
            Err(SubmitError::Full) => panic!("full with nothing in flight"),
        };
        let returns = matches!(
            op,
            ElementOp::Lookup { .. }
                | ElementOp::NextKey { .. }
                | ElementOp::LookupAndDelete { .. }
        );
        let expected = match expected {
            Ok(()) if returns => Ok(out),
            Ok(()) => Ok(Vec::new()),
            Err(error) => Err(Failure::Failed(error)),
        };
        assert_eq!(got, expected, "{:?}, {n}: {op:?}", attr.map_type);
        let end = got.map_or_else(|failure| failure.to_string(), |_| "ok".to_owned());
        *ends.entry(end).or_default() += 1;
    }
    assert!(ends["ok"] > 300, "{ends:?}");
    assert!(ends.len() > 2, "{ends:?}");
}

#[test]
fn a_ticket_gives_what_the_call_gives() {
    let seed = seed();
    let stack = Stack::with_driver(Inline::new(device()).unwrap(), driver());
    let queue = stack.nic.async_queue().unwrap();
    for attr in [
        attr(MapType::HASH, 4, 40),
        attr(MapType::HASH, 40, 8),
        attr(MapType::ARRAY, 4, 8),
        attr(MapType::LRU_HASH, 4, 8),
        attr(MapType::PERCPU_HASH, 4, 8),
        attr(MapType::QUEUE, 0, 8),
        attr(MapType::STACK, 0, 100),
        MapCreateAttr {
            map_flags: 1,
            ..attr(MapType::LPM_TRIE, 8, 8)
        },
    ] {
        alike(&stack, &queue, &attr, seed);
    }
    assert_eq!(queue.load(), AsyncLoad::default());
}

#[test]
fn the_files_rights_and_the_freeze_hold() {
    let b = bench();
    let key = &7u32.to_ne_bytes();
    let value = &value_of(7);
    let update = ElementOp::Update {
        key,
        value,
        flags: 0,
    };
    let short = ElementOp::Lookup { key: &key[..3] };
    assert_eq!(refused(b.map.submit(&short)), Errno::EFAULT);
    let wrong = ElementOp::Update {
        key,
        value: &value[..39],
        flags: 0,
    };
    assert_eq!(refused(b.map.submit(&wrong)), Errno::EFAULT);
    let flags = ElementOp::Update {
        key,
        value,
        flags: 8,
    };
    assert_eq!(refused(b.map.submit(&flags)), Errno::EINVAL);

    let id = b.file.info().unwrap().id;
    let open = |flags| {
        let fd = b.stack.system.get_fd_by_id(&Caller::root(), id, flags);
        let file = b.stack.system.map_file(fd.unwrap()).unwrap();
        b.queue.open(&file).unwrap()
    };
    let (reader, writer) = (open(MapFlags::RDONLY), open(MapFlags::WRONLY));
    assert_eq!(refused(reader.submit(&update)), Errno::EPERM);
    assert_eq!(
        refused(writer.submit(&ElementOp::Lookup { key })),
        Errno::EPERM
    );
    let take = ElementOp::LookupAndDelete { key };
    assert_eq!(refused(reader.submit(&take)), Errno::EPERM);
    assert_eq!(writer.submit(&update).unwrap().wait(), Ok(Vec::new()));
    assert_eq!(
        reader.submit(&ElementOp::Lookup { key }).unwrap().wait(),
        Ok(value.to_vec())
    );

    // In flight from here on: nothing runs the device.
    let mut ticket = b.map.submit(&update).unwrap();
    assert_eq!(b.file.freeze().unwrap_err().errno(), Errno::EBUSY);
    let reading = b.map.submit(&ElementOp::Lookup { key }).unwrap();
    while ticket.poll().is_none() {}
    b.file.freeze().unwrap();
    assert_eq!(reading.wait(), Ok(value.to_vec()));
    assert_eq!(refused(b.map.submit(&update)), Errno::EPERM);
    b.idle();
}

#[test]
fn maps_without_such_operations_say_so() {
    let nic = |stack: &Stack<Inline>, recover| {
        let settings = NicSettings {
            recovery: Recovery {
                maps: recover,
                ..Recovery::default()
            },
            ..NicSettings::default()
        };
        OffloadNic::with_settings(Arc::clone(&stack.driver), Profile::offmap(), settings).unwrap()
    };
    let first = Stack::with_driver(Inline::new(device()).unwrap(), driver());
    let queue = first.nic.async_queue().unwrap();
    let host = first.map(&attr(MapType::HASH, 4, 8), false);
    assert_eq!(queue.open(&host).unwrap_err().errno(), Errno::EINVAL);
    let ring = first.map(
        &MapCreateAttr {
            max_entries: 4096,
            ..attr(MapType::RINGBUF, 0, 0)
        },
        true,
    );
    assert_eq!(queue.open(&ring).unwrap_err().errno(), Errno::EOPNOTSUPP);
    let bloom = first.map(&attr(MapType::BLOOM_FILTER, 0, 8), true);
    let bloom = queue.open(&bloom).unwrap();
    let asked = bloom.submit(&ElementOp::Lookup { key: &[] });
    assert_eq!(refused(asked), Errno::EOPNOTSUPP);

    let second = Stack::over_nic(nic(&first, RecoverMaps::all()));
    let recoverable = second.map(&attr(MapType::HASH, 4, 8), true);
    let own = second.nic.async_queue().unwrap();
    let error = own.open(&recoverable).unwrap_err();
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    assert!(error.reason().contains("exempt"), "{error}");

    let other = Stack::with_driver(Inline::new(device()).unwrap(), driver());
    let foreign = other.map(&attr(MapType::HASH, 4, 8), true);
    assert_eq!(queue.open(&foreign).unwrap_err().errno(), Errno::EXDEV);
    let threaded = Stack::threaded(device());
    let foreign = threaded.map(&attr(MapType::HASH, 4, 8), true);
    assert_eq!(queue.open(&foreign).unwrap_err().errno(), Errno::EXDEV);
}

#[test]
fn a_full_queue_says_so_and_loses_nothing() {
    let b = bench();
    let submit = |n: u32| {
        let key = &n.to_ne_bytes();
        let value = &value_of(n);
        b.map.submit(&ElementOp::Update {
            key,
            value,
            flags: 0,
        })
    };
    let mut tickets: Vec<_> = (0..DEPTH).map(|n| submit(n).unwrap()).collect();
    assert_eq!(b.queue.depth(), DEPTH as usize);
    for _ in 0..3 {
        assert_eq!(submit(DEPTH).unwrap_err(), SubmitError::Full);
    }
    // They end, and still hold their places.
    for _ in 0..10_000 {
        b.queue.process();
    }
    let load = b.queue.load();
    assert_eq!((load.in_flight, load.untaken), (0, DEPTH as usize));
    assert_eq!(submit(DEPTH).unwrap_err(), SubmitError::Full);
    let mut taken = tickets.pop().unwrap();
    assert_eq!(taken.poll(), Some(Ok(Vec::new())));
    let last = submit(DEPTH).unwrap();
    // One outcome, once; and not that of the operation which has the place now.
    assert_eq!(taken.poll(), Some(Err(Failure::Taken)));
    assert_eq!(last.wait(), Ok(Vec::new()));
    for ticket in tickets {
        assert_eq!(ticket.wait(), Ok(Vec::new()));
    }
    let mut value = [0; 40];
    for n in 0..=DEPTH {
        b.file.lookup(&n.to_ne_bytes(), &mut value, 0).unwrap();
        assert_eq!(value, value_of(n));
    }
    b.idle();
}

fn kept_and_dropped<F: Function>(b: &Bench<F>, rounds: u32) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed());
    for n in 0..1000 {
        b.file.update(&n_key(n), &value_of(n), 0).unwrap();
    }
    let mut kept = Vec::new();
    let (mut dropped, mut taken) = (0, 0);
    while taken < rounds || dropped < rounds {
        let n = rng.random_range(0..1000u32);
        match b.map.submit(&ElementOp::Lookup { key: &n_key(n) }) {
            Ok(ticket) => kept.push((n, ticket)),
            Err(SubmitError::Full) => {
                b.queue.process();
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
        match rng.random_range(0..4) {
            // Without having been polled, in flight or ended.
            0 if !kept.is_empty() => {
                kept.swap_remove(rng.random_range(0..kept.len()));
                dropped += 1;
            }
            1 => {
                kept.retain_mut(|(n, ticket)| match ticket.poll() {
                    Some(outcome) => {
                        assert_eq!(outcome, Ok(value_of(*n).to_vec()));
                        taken += 1;
                        false
                    }
                    None => true,
                });
            }
            _ => {}
        }
    }
    for (n, ticket) in kept {
        assert_eq!(ticket.wait(), Ok(value_of(n).to_vec()));
    }
    while b.queue.load().in_flight > 0 {
        b.queue.process();
    }
    b.idle();
}

fn n_key(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

#[test]
fn dropped_tickets_leak_nothing_and_mislead_nobody() {
    kept_and_dropped(&bench(), 3000);
    let threaded = Bench::over(Threaded::spawn(device()).unwrap(), driver());
    kept_and_dropped(&threaded, 3000);
}

#[test]
fn threads_share_a_queue() {
    let b = Bench::over(Threaded::spawn(device()).unwrap(), driver());
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (map, queue) = (b.map.clone(), b.queue.clone());
            scope.spawn(move || {
                for n in 0..2000 {
                    let n = thread * 100 + n % 100;
                    let (key, value) = (&n_key(n), &value_of(n));
                    let flags = 0;
                    for op in [
                        ElementOp::Update { key, value, flags },
                        ElementOp::Lookup { key },
                    ] {
                        let ticket = loop {
                            match map.submit(&op) {
                                Ok(ticket) => break ticket,
                                Err(SubmitError::Full) => queue.process(),
                                Err(error) => panic!("{error}"),
                            };
                        };
                        let expected = match op {
                            ElementOp::Lookup { .. } => value.to_vec(),
                            _ => Vec::new(),
                        };
                        assert_eq!(ticket.wait(), Ok(expected));
                    }
                }
            });
        }
    });
    b.idle();
}
