//! A host that writes nonsense, and device memory that goes bad: bounded time, no panic, no
//! hang, and after a reset the device works. `OFFMAP_SEED` replays a run.

use offmap_abi::admin::EmptyBody;
use offmap_abi::regs;
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef, SUBMISSION_BYTES};
use offmap_abi::{IoOpcode, QueueId, Status, Submission, SubmissionFlags};
use offmap_bpf::{Errno, MapType};
use offmap_device_io::{BarOffset, Function};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_tests::conformance::elements::Table;
use offmap_tests::conformance::host::{Host, Notify, QueueOptions, next_request};
use offmap_tests::model::Shape;
use offmap_tests::report::{aloud, seed};
use offmap_tests::stack::{Stack, attr};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;

/// How long each test goes on; its first rounds are what a seed replays.
const BUDGET: Duration = Duration::from_secs(6);

fn small() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 4 << 20;
    config
}

/// A descriptor that may be anything, often close to a right one.
fn nonsense(rng: &mut Xoshiro256PlusPlus, good: &Submission) -> Submission {
    let mut words = match rng.random_range(0..4) {
        0 => std::array::from_fn(|_| rng.next_u64()),
        _ => good.to_words(false),
    };
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..8);
        words[at] ^= 1 << rng.random_range(0..64);
    }
    if rng.random_ratio(1, 3) {
        let at = rng.random_range(0..8);
        let odd = [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX), 4096];
        words[at] = odd[rng.random_range(0..odd.len())];
    }
    Submission::from_words(words)
}

/// Descriptors, ring bytes, tails and registers at random.
fn scribble<F: Function>(name: &str, make: impl Fn(DeviceConfig) -> Arc<F>) {
    let base = seed();
    let (started, mut rounds, mut fatal) = (Instant::now(), 0u64, 0);
    let mut host = Host::bring_up(make(small()));
    while started.elapsed() < BUDGET {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(rounds));
        let notify = [Notify::Doorbells, Notify::Shadow][rng.random_range(0..2)];
        let options = QueueOptions {
            notify,
            vector: regs::NO_VECTOR,
        };
        let mut queue = host.queue(1, 16, options);
        let map = host.map(&Host::<F>::map_body(1, 8, 64, 64));
        let goods: Vec<Submission> = {
            let mut table = Table::new(&host, &mut queue, map, (8, 64), 16);
            assert_eq!(
                table.update(&[1; 8], &[2; 64], 0),
                Status::Success,
                "seed {base}"
            );
            vec![
                table.element(IoOpcode::Lookup, Some(&[1; 8]), None, 64, 0),
                table.element(IoOpcode::Update, Some(&[1; 8]), Some(&[3; 64]), 0, 0),
                table.element(IoOpcode::GetNext, Some(&[1; 8]), None, 8, 0),
                table.batch(IoOpcode::BatchLookup, 16, 0, 0),
                table.batch(IoOpcode::BatchDump, 16, 0, 0),
                table.batch(IoOpcode::BatchUpdate, 16, 0, 0),
            ]
        };
        for _ in 0..40 {
            let good = &goods[rng.random_range(0..goods.len())];
            match rng.random_range(0..20) {
                0 => queue.publish_tail(rng.next_u64()),
                1 => {
                    let word = rng.random_range(0..16 * SUBMISSION_BYTES / 8);
                    queue
                        .ring()
                        .store_u64(word * 8, rng.next_u64(), Ordering::Release);
                }
                2 => {
                    let at = rng.random_range(0..regs::BAR0_BYTES / 4) * 4;
                    // CONTROL is the next arm's: a disabled device does no wrong.
                    if at != regs::CONTROL {
                        let _ = host.function().write32(0, BarOffset(at), rng.random());
                    }
                }
                3 if rng.random_ratio(1, 20) => {
                    let _ = host
                        .function()
                        .write32(0, BarOffset(regs::CONTROL), rng.random());
                }
                _ if queue.in_flight() < 16 => queue.submit(nonsense(rng, good)),
                _ => {}
            }
            for _ in 0..4 {
                host.function().progress();
            }
            while queue.in_flight() > 0 && queue.poll().is_some() {}
        }
        fatal += u64::from(host.status().contains(regs::DeviceStatus::FATAL));
        drop(queue);
        host = host.reset();
        host.identify();
        rounds += 1;
    }
    aloud(&format!(
        "hostile: {name}: {rounds} rounds of nonsense from seed {base}, {fatal} stopped the device"
    ));
    assert!(rounds > 5, "{rounds} rounds");
}

#[test]
fn a_scribbling_host_inline() {
    scribble("inline", |c| Inline::new(c).expect("a device"));
}

#[test]
fn a_scribbling_host_threaded() {
    scribble("threaded", |c| Threaded::spawn(c).expect("a device"));
}

/// Device memory is overwritten through the window between operations. Every answer is a
/// result or an error number; afterwards a reset gives a device that works.
fn corrupt<F: Function>(name: &str, make: impl Fn(DeviceConfig) -> Arc<F>) {
    let base = seed();
    let (started, mut rounds, mut failed) = (Instant::now(), 0u64, 0u64);
    while started.elapsed() < BUDGET {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(rounds));
        let mut config = DeviceConfig::default();
        config.firmware.memory_bytes = 256 << 10;
        let function = make(config);
        let stack = Stack::over(Arc::clone(&function));
        let map_type = [
            MapType::HASH,
            MapType::ARRAY,
            MapType::PERCPU_HASH,
            MapType::PERCPU_ARRAY,
        ][rng.random_range(0..4)];
        let shape = Shape {
            map_type,
            key_size: 4,
            value_size: 16,
            max_entries: 200,
            map_flags: 0,
            map_extra: 0,
            cpus: offmap_tests::kernel::possible_cpus(),
        };
        let map = stack.map(&attr(&shape), true);
        let mut value = vec![7; shape.value_bytes()];
        for i in 0u32..200 {
            map.update(&i.to_ne_bytes(), &value, 0).unwrap();
        }
        let mut keys = vec![0; 4 * 64];
        let mut values = vec![0; shape.value_bytes() * 64];
        for _ in 0..300 {
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..(64u64 << 10) / 8) * 8;
                let _ = function.write64(2, BarOffset(at), rng.next_u64());
            }
            let key = rng.random_range(0..220u32).to_ne_bytes();
            let outcome = match rng.random_range(0..7) {
                0 => map.lookup(&key, &mut value, 0),
                1 => map.update(&key, &value, 0),
                2 => map.delete(&key),
                3 => map.get_next_key(Some(&key), &mut [0; 4]),
                4 => map.lookup_and_delete(&key, &mut value, 0),
                5 => {
                    map.lookup_batch(None, &mut [0; 4], &mut keys, &mut values, 64, 0, 0)
                        .result
                }
                _ => map.update_batch(&keys, &values, 64, 0, 0).result,
            };
            if let Err(e) = outcome {
                assert_ne!(e.errno(), Errno(0));
                assert_ne!(
                    e.errno(),
                    Errno::ETIMEDOUT,
                    "seed {base} round {rounds}: {e}"
                );
                failed += u64::from(e.errno() == Errno::EIO);
            }
        }
        drop(map);
        drop(stack);
        let host = Host::bring_up(function).reset();
        let mut queue = host.queue(
            1,
            4,
            QueueOptions {
                notify: Notify::Shadow,
                vector: regs::NO_VECTOR,
            },
        );
        let fresh = host.map(&Host::<F>::map_body(1, 8, 8, 8));
        let mut table = Table::new(&host, &mut queue, fresh, (8, 8), 1);
        assert_eq!(table.update(&[1; 8], &[2; 8], 0), Status::Success);
        assert_eq!(table.lookup(&[1; 8]), Ok(vec![2; 8]));
        assert_eq!(queue.id(), QueueId(1));
        rounds += 1;
    }
    aloud(&format!(
        "hostile: {name}: {rounds} devices with bad memory from seed {base}, {failed} times EIO"
    ));
    assert!(rounds > 2, "{rounds} rounds");
}

#[test]
fn bad_device_memory_inline() {
    corrupt("inline", |c| Inline::new(c).expect("a device"));
}

#[test]
fn bad_device_memory_threaded() {
    corrupt("threaded", |c| Threaded::spawn(c).expect("a device"));
}

/// Words that a second thread may write while the device reads them.
struct Scribbler {
    stop: AtomicBool,
}

impl Scribbler {
    /// Runs `host` while another thread calls `scribble` over and over.
    fn beside<R>(mut scribble: impl FnMut() + Send, host: impl FnOnce() -> R) -> R {
        let this = Self {
            stop: AtomicBool::new(false),
        };
        /// Ends the thread when `host` panics, too.
        struct Ends<'s>(&'s Scribbler);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !this.stop.load(Ordering::Relaxed) {
                    scribble();
                }
            });
            let _ends = Ends(&this);
            host()
        })
    }
}

/// Keys, values and operands of entries change while the device fetches them. What it stores is
/// consistent all the same: it reads each once, and goes by its copy. A key that was read twice
/// would be in another key's bucket: listed, and not found.
#[test]
fn operands_that_change_while_they_are_read() {
    const POOL: u64 = 4096;
    const COUNT: usize = 64;
    const SLOTS: usize = 2;
    const VALUE: usize = 64;
    const VALUES_AT: usize = COUNT * 8;
    const STATUSES_AT: usize = VALUES_AT + COUNT * VALUE;
    let base = seed();
    let host = Host::bring_up(Threaded::spawn(small()).expect("a device"));
    let options = QueueOptions {
        notify: Notify::Shadow,
        vector: regs::NO_VECTOR,
    };
    let map = host.map(&Host::<Threaded>::map_body(1, 8, VALUE as u32, POOL as u32));
    // With room behind: what the other thread makes of a count or a place stays in it.
    let memory = host.dma(64 << 10);
    let mut queue = host.queue(1, 16, options);
    let key = |n: u64| (n % POOL).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for i in 0..COUNT {
        memory
            .buffer()
            .store_u64(i * 8, key(i as u64), Ordering::Relaxed);
    }
    // The ring's own memory a second time, for the other thread.
    let ring = offmap_device_io::BarMapping::new(queue.ring().fd(), 0, 4096).expect("a view");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(base);
    let scribble = || {
        // Mostly the few keys that element commands use: what is read twice differs then.
        for _ in 0..256 {
            let n = rng.next_u64();
            let (slot, value) = ((n >> 60) as usize % SLOTS, key(n));
            memory
                .buffer()
                .store_u64(slot * 8, value, Ordering::Relaxed);
        }
        for _ in 0..16 {
            let word = rng.random_range(0..COUNT * (8 + VALUE) / 8);
            let value = key(rng.next_u64());
            memory
                .buffer()
                .store_u64(word * 8, value, Ordering::Relaxed);
        }
        // Operands of an entry, not its ownership word: flags, lengths, places.
        let entry = rng.random_range(0..16) * SUBMISSION_BYTES;
        let at = entry + rng.random_range(2..8) * 8;
        ring.store_u64(at, ring.load_u64(at) ^ 1 << rng.random_range(0..4));
    };
    let (mut done, mut answers) = (0_u64, [0_u64; 2]);
    Scribbler::beside(scribble, || {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(!base);
        let started = Instant::now();
        while started.elapsed() < BUDGET / 2 {
            for _ in 0..16 {
                let (opcode, body) = match rng.random_range(0..8) {
                    0 => (IoOpcode::BatchUpdate, COUNT),
                    1 => (IoOpcode::BatchDelete, 8),
                    2 => (IoOpcode::BatchLookup, COUNT),
                    3 => (IoOpcode::Lookup, 0),
                    4 => (IoOpcode::Delete, 0),
                    _ => (IoOpcode::Update, 0),
                };
                let at = rng.random_range(0..SLOTS);
                let entry = if opcode.is_batch() {
                    let mut batch = BatchBody::new_zeroed();
                    batch.count = (body as u32).into();
                    batch.key_len = 8.into();
                    batch.value_len = (VALUE as u32).into();
                    batch.keys = memory.iova(0).0.into();
                    batch.values = memory.iova(VALUES_AT).0.into();
                    batch.statuses = memory.iova(STATUSES_AT).0.into();
                    Submission::new(opcode.0, next_request(), &batch)
                } else {
                    let mut element = ElementBody::new_zeroed();
                    element.key_len = 8.into();
                    element.value_len = (VALUE as u32).into();
                    element.key = IovaRef::field(memory.iova(at * 8).0);
                    element.value = IovaRef::field(memory.iova(VALUES_AT + at * VALUE).0);
                    Submission::new(opcode.0, next_request(), &element)
                };
                queue.push(entry.with_map(map));
            }
            queue.publish();
            for _ in 0..16 {
                let status = queue.wait().status();
                assert_ne!(status, Status::Internal, "seed {base}: an inconsistent map");
                answers[usize::from(status == Status::Success)] += 1;
                done += 1;
            }
        }
    });
    // Nothing of the queue is touched any more.
    drop(ring);
    let mut table = Table::new(&host, &mut queue, map, (8, VALUE), 1);
    let keys = table.keys(POOL as usize);
    let entries = host.query(map).expect("the map").entries.get() as usize;
    assert_eq!(keys.len(), entries, "seed {base}: listed and counted");
    for key in &keys {
        assert!(
            table.lookup(key).is_ok(),
            "seed {base}: {key:x?} is listed and not found"
        );
    }
    for key in &keys {
        assert_eq!(table.delete(key), Status::Success, "seed {base}");
    }
    assert_eq!(host.query(map).expect("the map").entries.get(), 0);
    aloud(&format!(
        "hostile: {done} commands on operands that change, seed {base}: {} succeeded, {} did not; \
         {entries} entries at the end",
        answers[1], answers[0]
    ));
    assert!(answers[1] > done / 20, "{answers:?}");
}

/// Rings on one another, results sent into rings, a ring buffer over a ring: the device may stop
/// those queues, and serves the others all the same, with a bound on what a step does.
fn entangled<F: Function>(make: impl Fn(DeviceConfig) -> Arc<F>) {
    let mut config = small();
    config.queue_pairs = 4;
    let mut host = Host::bring_up(make(config));
    let options = QueueOptions {
        notify: Notify::Shadow,
        vector: 0,
    };
    for round in 0..24_usize {
        let mut sane = host.queue(3, 8, options);
        let map = host.map(&Host::<F>::map_body(1, 8, 64, 16));
        assert_eq!(
            Table::new(&host, &mut sane, map, (8, 64), 1).update(&[0; 8], &[0xff; 64], 0),
            Status::Success
        );
        let (mut first, mut of_first) = host.queue_memory(1, 8, options);
        let (mut second, mut of_second) = host.queue_memory(2, 8, options);
        let [sq, cq, notify] = [0, 1, 2].map(|i| first.iovas()[i]);
        match round % 8 {
            // Each completion is a submission of the same queue.
            0 => of_first.cq = sq.into(),
            // Two queues that feed each other.
            1 => {
                of_second.sq = cq.into();
                of_second.cq = sq.into();
            }
            // Twice the same queue.
            2 => {
                (of_second.sq, of_second.cq, of_second.notify) =
                    (sq.into(), cq.into(), notify.into())
            }
            // A notify block in a ring.
            3 => of_first.notify = cq.into(),
            4 => of_first.notify = (sq + 64).into(),
            5 => of_second.notify = notify.into(),
            // The sane queue's rings.
            6 => of_second.sq = sane.iovas()[1].into(),
            _ => {}
        }
        for body in [&of_first, &of_second] {
            let made = host.queue_create(body);
            let ends = [Status::Success, Status::InvalidField, Status::DmaFault];
            assert!(ends.contains(&made), "round {round}: {made:?}");
        }
        // Lookups whose results go to rings and notify blocks.
        for i in 0..8_u64 {
            let target = [sq, cq, notify, second.iovas()[0]][i as usize % 4] + i / 4 * 64;
            let mut body = ElementBody::new_zeroed();
            body.key_len = 8.into();
            body.value_len = 64.into();
            body.value = IovaRef::field(target);
            let entry = Submission::new(IoOpcode::Lookup.0, next_request(), &body)
                .with_map(map)
                .with_flags(SubmissionFlags::KEY_INLINE);
            first.push(entry);
            second.push(entry);
        }
        first.publish();
        second.publish();
        let started = Instant::now();
        for n in 0..200 {
            if round % 8 == 6 {
                // Its completions are commands of another queue; only that it ends counts.
                host.function().progress();
                continue;
            }
            let nop = Submission::new(IoOpcode::Nop.0, next_request(), &EmptyBody::ZERO);
            sane.submit(nop);
            let mut turns = 0;
            while sane.poll().is_none() {
                host.function().progress();
                turns += 1;
                if host.function().runs_on_caller() {
                    assert!(turns < 1000, "round {round}, {n}: the sane queue starves");
                }
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "round {round}, {n}"
                );
            }
        }
        assert!(
            !host.status().contains(regs::DeviceStatus::FATAL),
            "round {round}"
        );
        for queue in [1, 2, 3] {
            let gone = host.queue_delete(QueueId(queue));
            let ends = [Status::Success, Status::InvalidQueue];
            assert!(ends.contains(&gone), "round {round}: {gone:?}");
        }
        drop((first, second, sane));
        host = host.reset();
    }
}

#[test]
fn rings_on_one_another_inline() {
    entangled(|c| Inline::new(c).expect("a device"));
}

#[test]
fn rings_on_one_another_threaded() {
    entangled(|c| Threaded::spawn(c).expect("a device"));
}
