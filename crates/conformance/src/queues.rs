//! Queues: limits, wrap-around, interrupts, abort, deletion, several at once.

use super::Bench;
use super::elements::Table;
use super::host::{Host, Queue, QueueOptions, next_request, wait_for};
use super::lifecycle::nop;
use offmap_abi::regs::{self, DeviceStatus, FatalCause};
use offmap_abi::{IoOpcode, QueueId, RequestId, Status};
use offmap_device_io::Function;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use zerocopy::little_endian::{U16, U32, U64};

const HASH: u32 = 1;
const ARRAY: u32 = 2;

/// What QUEUE_CREATE and QUEUE_DELETE refuse, and that every queue there is can be had.
pub fn limits_are_kept<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let pairs = host.register(regs::QUEUE_PAIRS) as u16;
    let depth_max = host.register(regs::QUEUE_DEPTH_MAX);
    let (_memory, good) = host.queue_memory(1, 16, bench.polled());
    let refuse = |expected: Status, change: &dyn Fn(&mut offmap_abi::admin::QueueCreateBody)| {
        let mut body = good;
        change(&mut body);
        assert_eq!(host.queue_create(&body), expected, "{body:?}");
    };
    refuse(Status::InvalidQueue, &|b| b.queue = U16::new(0));
    refuse(Status::InvalidQueue, &|b| b.queue = U16::new(pairs + 1));
    refuse(Status::InvalidQueue, &|b| b.queue = U16::new(u16::MAX));
    for depth in [0, 1, 3, 15, 1 << 31, u32::MAX, depth_max * 2] {
        refuse(Status::InvalidField, &|b| b.depth = U32::new(depth));
    }
    refuse(Status::InvalidField, &|b| b.sq = U64::new(b.sq.get() + 64));
    refuse(Status::InvalidField, &|b| b.cq = U64::new(b.cq.get() + 64));
    refuse(Status::InvalidField, &|b| {
        b.vector = U32::new(host.function().vectors())
    });
    refuse(Status::InvalidField, &|b| b.notify = U64::new(4096 + 8));
    refuse(Status::DmaFault, &|b| b.sq = U64::new(1 << 60));
    refuse(Status::DmaFault, &|b| b.cq = U64::new(1 << 60));
    refuse(Status::DmaFault, &|b| b.notify = U64::new(1 << 60));
    assert_eq!(host.queue_create(&good), Status::Success);
    assert_eq!(host.queue_create(&good), Status::InvalidQueue, "it exists");
    let _rest: Vec<_> = (2..=pairs).map(|id| bench.queue(&host, id, 2)).collect();
    for id in [0, pairs + 1, u16::MAX] {
        assert_eq!(host.queue_delete(QueueId(id)), Status::InvalidQueue);
    }
    for id in 1..=pairs {
        assert_eq!(host.queue_delete(QueueId(id)), Status::Success);
        assert_eq!(host.queue_delete(QueueId(id)), Status::InvalidQueue);
    }
}

/// An id can be used again, with another depth, and its counts start from zero.
pub fn delete_and_create_again<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let id = host.register(regs::QUEUE_PAIRS).min(3) as u16;
    let most = host.register(regs::QUEUE_DEPTH_MAX);
    for depth in [2, 64, 4, 128, 2] {
        let depth = most.min(depth);
        let mut queue = bench.queue(&host, id, depth);
        for _ in 0..depth + 1 {
            assert_eq!(queue.run(nop()).status(), Status::Success);
        }
        assert_eq!(host.queue_delete(queue.id()), Status::Success);
    }
}

/// More operations than a 16-bit count holds, over two entries.
pub fn depth_two_wraps_many_times<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 2);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, 100));
    let mut table = Table::new(&host, &mut queue, map, (8, 8), 1);
    for i in 0u64..35_000 {
        let (key, value) = ((i % 64).to_le_bytes(), i.to_le_bytes());
        assert_eq!(table.update(&key, &value, 0), Status::Success);
        assert_eq!(
            table.lookup(&key).as_deref(),
            Ok(&value[..]),
            "operation {i}"
        );
    }
    assert_eq!(queue.tail(), 70_000);
}

/// Every entry of the deepest queue in flight at once, several times over, and each request
/// answered exactly once.
pub fn the_deepest_queue_is_used_whole<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let depth = host.register(regs::QUEUE_DEPTH_MAX);
    let mut queue = bench.queue(&host, 1, depth);
    for _ in 0..3 {
        let mut waiting = HashSet::new();
        for _ in 0..depth {
            let entry = nop();
            waiting.insert(entry.request());
            queue.push(entry);
        }
        queue.publish();
        for _ in 0..depth {
            let done = queue.wait();
            assert!(waiting.remove(&done.request()), "{:?}", done.request());
        }
        assert_eq!(queue.poll(), None);
    }
}

/// A completion with a vector signals it, on every queue's own vector.
pub fn interrupts_arrive<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let pairs = host.register(regs::QUEUE_PAIRS);
    for vector in 0..host.function().vectors().min(pairs).min(3) {
        let irq = host.vector(vector);
        let options = QueueOptions {
            notify: bench.notify,
            vector,
        };
        let mut queue = host.queue(1 + vector as u16, 8, options);
        for _ in 0..20 {
            assert!(queue.arm(), "nothing is under way");
            queue.submit(nop());
            // An inline device works only when it is called; others do it on their own.
            wait_for(&**host.function(), "an interrupt", || {
                irq.wait(Duration::ZERO).unwrap().then_some(())
            });
            assert_eq!(queue.poll().map(|c| c.status()), Some(Status::Success));
        }
        host.function().disable_vector(vector).unwrap();
        queue.arm();
        queue.submit(nop());
        queue.wait();
        assert!(!irq.take().unwrap(), "a silenced vector");
        // The device may look at the ring until its queue is gone.
        assert_eq!(host.queue_delete(queue.id()), Status::Success);
    }
    assert!(
        host.function()
            .enable_vector(host.function().vectors())
            .is_err()
    );
}

/// With a notify block there is no interrupt unless the event index asks for one.
pub fn interrupts_only_when_armed<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let irq = host.vector(1);
    let options = QueueOptions {
        notify: super::host::Notify::Shadow,
        vector: 1,
    };
    let mut queue = host.queue(1, 8, options);
    queue.disarm();
    for _ in 0..100 {
        queue.run(nop());
    }
    assert!(!irq.take().unwrap(), "nobody asked");
    queue.arm();
    queue.submit(nop());
    wait_for(&**host.function(), "an interrupt", || {
        irq.take().unwrap().then_some(())
    });
}

/// ABORT of what is not there, and of entries under way: each is answered once, done or
/// aborted.
pub fn abort_answers<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 256);
    assert_eq!(host.abort(QueueId(1), RequestId(12345)), Status::NotFound);
    assert_eq!(host.abort(QueueId(2), RequestId(1)), Status::InvalidQueue);
    assert_eq!(
        host.abort(QueueId::ADMIN, RequestId(1)),
        Status::InvalidQueue
    );
    for _ in 0..20 {
        let ids: Vec<_> = (0..200)
            .map(|_| {
                let entry = nop();
                queue.push(entry);
                entry.request()
            })
            .collect();
        queue.publish();
        let victim = ids[150];
        let answer = host.abort(QueueId(1), victim);
        assert!(
            [Status::Success, Status::NotFound].contains(&answer),
            "{answer:?}"
        );
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let done = queue.wait();
            assert!(seen.insert(done.request()));
            match done.status() {
                Status::Success => {}
                Status::Aborted => {
                    assert_eq!((done.request(), answer), (victim, Status::Success));
                }
                status => panic!("{status:?}"),
            }
        }
        assert_eq!(queue.poll(), None);
    }
}

/// ABORT of a long command, at one moment of it after the other: it completes as the answer to ABORT says it
/// will, and the queue goes on. A device that is done with the command each time is as good.
pub fn a_command_under_way_can_be_interrupted<F: Function>(bench: &Bench<F>) {
    /// The most that a command moves, and of device memory a half.
    const BYTES_MAX: u64 = 4 << 20;
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 8);
    let has = host.identify();
    let count = has
        .batch
        .get()
        .min(has.entries_per_map.get())
        .clamp(1, 4096);
    let bytes = (has.memory_bytes.get() / 2).min(BYTES_MAX);
    let value = (bytes / u64::from(count) / 8 * 8).clamp(8, has.value_bytes.get().into()) as u32;
    let map = host.map(&Host::<F>::map_body(ARRAY, 4, value, count));
    let sizes = (4, value as usize);
    let mut table = Table::new(&host, &mut queue, map, sizes, count as usize);
    for attempt in 0..200 {
        let dump = table.batch(IoOpcode::BatchDump, count, 0, 0);
        let id = dump.request();
        table.queue.submit(dump);
        // A device on this thread works while it is waited for.
        for _ in 0..attempt % 16 {
            host.function().progress();
        }
        let answer = host.abort(QueueId(1), id);
        let done = table.queue.wait();
        assert_eq!(done.request(), id);
        let said = match done.status() {
            Status::Success | Status::NotFound => Status::NotFound,
            Status::Aborted | Status::Interrupted => Status::Success,
            status => panic!("{status:?}"),
        };
        assert_eq!(answer, said, "ABORT of what ended as {:?}", done.status());
        if done.status() == Status::Interrupted {
            break;
        }
    }
    let whole = table.dump(IoOpcode::BatchDump, count, 0);
    assert!([Status::Success, Status::NotFound].contains(&whole.status));
    assert_eq!(whole.elements.len(), count as usize);
}

/// A deleted queue's entries complete, done or aborted, before the deletion does.
pub fn deleting_a_queue_completes_what_it_held<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    for _ in 0..20 {
        let mut queue = bench.queue(&host, 1, 128);
        for _ in 0..128 {
            queue.push(nop());
        }
        queue.publish();
        assert_eq!(host.queue_delete(QueueId(1)), Status::Success);
        for left in (0..128).rev() {
            let done = queue
                .poll()
                .unwrap_or_else(|| panic!("{left} more are missing"));
            assert!([Status::Success, Status::Aborted].contains(&done.status()));
        }
    }
}

/// A tail further ahead than the ring is deep stops that queue and no other; its deletion
/// helps.
pub fn a_tail_too_far_stops_the_queue<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut other = bench.queue(&host, 2, 8);
    let mut queue = bench.queue(&host, 1, 8);
    queue.run(nop());
    queue.publish_tail(u64::from(queue.tail() + 9));
    wait_for(&**host.function(), "the queue to stop", || {
        (host.abort(QueueId(1), RequestId(1)) == Status::QueueStopped).then_some(())
    });
    assert!(!host.status().contains(DeviceStatus::FATAL));
    assert_eq!(host.fatal(), FatalCause::None);
    assert_eq!(other.run(nop()).status(), Status::Success);
    assert_eq!(host.queue_delete(QueueId(1)), Status::Success);
    let mut queue = bench.queue(&host, 1, 8);
    assert_eq!(queue.run(nop()).status(), Status::Success);
}

/// One queue per thread, one map for all.
pub fn several_queues_from_several_threads<F: Function>(bench: &Bench<F>) {
    const THREADS: u16 = 4;
    const KEYS: u32 = 500;
    let host = bench.host();
    host.need_pairs(THREADS.into());
    let body = Host::<F>::map_body(HASH, 8, 24, u32::from(THREADS) * KEYS);
    let map = host.map(&body);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (host, mut queue) = (&host, bench.queue(&host, 1 + thread, 16));
            scope.spawn(move || {
                let mut table = Table::new(host, &mut queue, map, (8, 24), 1);
                let key = |i: u32| (u64::from(i) << 8 | u64::from(thread)).to_le_bytes();
                for round in 0..3u8 {
                    for i in 0..KEYS {
                        let value = [round ^ i as u8 ^ thread as u8; 24];
                        assert_eq!(table.update(&key(i), &value, 0), Status::Success);
                    }
                    for i in 0..KEYS {
                        let value = [round ^ i as u8 ^ thread as u8; 24];
                        assert_eq!(table.lookup(&key(i)).as_deref(), Ok(&value[..]));
                    }
                }
                drop(table);
                assert_eq!(host.queue_delete(queue.id()), Status::Success);
            });
        }
    });
    assert_eq!(
        host.query(map).unwrap().entries.get(),
        u32::from(THREADS) * KEYS
    );
}

/// Rules N1 and N2: entries are seen after a pause long enough for the device to park, and at
/// any moment around its parking; and so is room for completions that it has parked without. Where
/// that can be chosen the device looks by itself so seldom that a wake-up that is lost shows.
pub fn a_parked_device_wakes<F: Function>(bench: &Bench<F>) {
    const DEPTH: u32 = 4;
    const LOOK_AGAIN: Duration = Duration::from_secs(10);
    let host = bench.host_with(|wanted| {
        wanted.polls_before_park = Some(16);
        wanted.look_again_us = Some(LOOK_AGAIN.as_micros() as u32);
    });
    let mut queue: Queue<F> = bench.queue(&host, 1, DEPTH);
    let answer = |queue: &mut Queue<F>| {
        let started = Instant::now();
        let done = wait_for(&**host.function(), "a completion", || queue.take());
        let lost = bench.is_made() && started.elapsed() > LOOK_AGAIN / 2;
        assert!(!lost, "the device slept for {:?}", started.elapsed());
        done.status()
    };
    for i in 0..60 {
        std::thread::sleep(Duration::from_micros(100 * (i % 30)));
        queue.submit(nop());
        assert_eq!(answer(&mut queue), Status::Success);
        queue.publish_head(queue.tail().into());
    }
    // A device that cannot be told to look seldom shows less, and may be slow.
    let rounds = if bench.is_made() { 20_000 } else { 2000 };
    let started = Instant::now();
    for i in 0..rounds {
        if started.elapsed() > Duration::from_secs(3) {
            break;
        }
        // Short ones as often as long ones: the moment that counts comes soon after the last answer.
        for _ in 0..i * 37 % (1 << (i % 12)) {
            std::hint::spin_loop();
        }
        queue.submit(nop());
        assert_eq!(answer(&mut queue), Status::Success);
        queue.publish_head(queue.tail().into());
    }
    for i in 0..200 {
        for _ in 0..DEPTH {
            queue.submit(nop());
        }
        for _ in 0..DEPTH {
            assert_eq!(answer(&mut queue), Status::Success);
        }
        // There is no room for the answer of this one until the head is published.
        let taken = queue.tail();
        queue.submit(nop());
        for _ in 0..i * 371 % 20_003 {
            std::hint::spin_loop();
        }
        queue.publish_head(taken.into());
        assert_eq!(answer(&mut queue), Status::Success);
        queue.publish_head(queue.tail().into());
    }
    // An unknown opcode wakes it as well.
    std::thread::sleep(Duration::from_millis(3));
    let mut entry = nop();
    entry.opcode = IoOpcode::BatchDumpDelete.0 + 1;
    entry.request = U64::new(next_request().0);
    queue.submit(entry);
    assert_eq!(answer(&mut queue), Status::InvalidOpcode);
}
