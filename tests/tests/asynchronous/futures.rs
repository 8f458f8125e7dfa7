//! The same operations as futures: on executors of others and on one of ten lines.

use super::{Bench, bench, device, driver, n_key, value_of};
use futures::executor::{LocalPool, ThreadPool};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::task::{LocalSpawnExt, SpawnExt};
use offmap_bpf::{Errno, MapFile};
use offmap_driver::Function;
use offmap_emulator::faults::{Behaviour, FaultPlan, Rule, Site};
use offmap_emulator::{Inline, Threaded};
use offmap_offload::asynchronous::{AsyncLoad, AsyncMap, Failure, Wake};
use offmap_tests::stack::Stack;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Futures at once, on a queue of 64.
const MANY: u32 = 10_000;

struct Unpark(Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least executor that there is.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => thread::park_timeout(Duration::from_secs(20)),
        }
    }
}

/// Writes key `n` and reads it again.
async fn write_and_read<F: Function>(map: AsyncMap<F>, n: u32) {
    let n = n % 1000;
    let (key, value) = (n_key(n), value_of(n));
    assert_eq!(map.update(&key, &value, 0).await, Ok(Vec::new()));
    assert_eq!(map.lookup(&key).await, Ok(value.to_vec()));
}

#[test]
fn a_future_gives_what_the_call_gives() {
    let b = bench();
    block_on(async {
        let (key, value) = (n_key(5), value_of(5));
        let missing = b.map.lookup(&key).await.unwrap_err();
        assert_eq!(missing.errno(), Errno::ENOENT);
        assert_eq!(b.map.update(&key, &value, 0).await, Ok(Vec::new()));
        assert_eq!(b.map.next_key(None).await, Ok(key.to_vec()));
        assert_eq!(
            b.map.next_key(Some(&key)).await.unwrap_err().errno(),
            Errno::ENOENT
        );
        assert_eq!(b.map.lookup_and_delete(&key).await, Ok(value.to_vec()));
        assert_eq!(b.map.delete(&key).await.unwrap_err().errno(), Errno::ENOENT);
        assert_eq!(
            b.map.lookup(&key[..2]).await.unwrap_err().errno(),
            Errno::EFAULT
        );
        let mut twice = pin!(b.map.lookup(&key));
        assert!(twice.as_mut().await.is_err());
        assert_eq!(twice.await, Err(Failure::Taken));
    });
    b.idle();
}

#[test]
fn ten_thousand_futures_share_a_queue_of_64_on_one_thread() {
    let b = bench();
    let mut pool = LocalPool::new();
    for n in 0..MANY {
        let spawned = pool.spawner().spawn_local(write_and_read(b.map.clone(), n));
        spawned.unwrap();
    }
    pool.run();
    b.idle();
    let total = b.stack.nic.stats().driver.total().unwrap();
    assert_eq!(
        total
            .operations
            .iter()
            .map(|op| op.completed())
            .sum::<u64>(),
        20_000
    );
    assert_eq!(total.events.full, 0, "who waits does not try");

    // All at once in one task, too.
    let all: FuturesUnordered<_> = (0..MANY)
        .map(|n| write_and_read(b.map.clone(), n))
        .collect();
    assert_eq!(block_on(all.count()), MANY as usize);
    b.idle();
}

#[test]
fn ten_thousand_futures_share_a_queue_of_64_on_many_threads() {
    let b = Bench::over(Threaded::spawn(device()).unwrap(), driver());
    let pool = ThreadPool::builder().pool_size(4).create().unwrap();
    let handles: FuturesUnordered<_> = (0..MANY)
        .map(|n| {
            pool.spawn_with_handle(write_and_read(b.map.clone(), n))
                .unwrap()
        })
        .collect();
    assert_eq!(block_on(handles.count()), MANY as usize);
    b.idle();
}

/// Has the device take so long for each command that a look does not end it.
fn slow(b: &Bench<Inline>) {
    let rule = Rule::new(Site::Fetch, Behaviour::Slow { steps: 200 });
    let plan = FaultPlan::new().with(rule).unwrap();
    b.stack.function.set_faults(&plan, 1).unwrap();
}

/// Polls a future once.
fn touch(future: impl Future) -> bool {
    let mut future = pin!(future);
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}

#[test]
fn futures_dropped_in_flight_or_in_line_hold_nobody_up() {
    let b = bench();
    let (key, value) = (n_key(1), value_of(1));
    block_on(b.map.update(&key, &value, 0)).unwrap();
    slow(&b);
    for round in 0..30 {
        // More than there is room for, all looked at once, then dropped in different orders.
        let mut dropped: Vec<_> = (0..100).map(|_| Box::pin(b.map.lookup(&key))).collect();
        for future in &mut dropped {
            touch(future.as_mut());
        }
        assert!(b.queue.load().waiting > 0);
        let kept = FuturesUnordered::new();
        for _ in 0..50 {
            kept.push(b.map.lookup(&key));
        }
        let mut kept = Box::pin(kept.collect::<Vec<_>>());
        touch(kept.as_mut());
        match round % 3 {
            0 => dropped.clear(),
            1 => dropped.drain(..).rev().for_each(drop),
            _ => {
                dropped.retain({
                    let mut n = 0;
                    move |_| {
                        n += 1;
                        n % 2 == 0
                    }
                });
                dropped.clear();
            }
        }
        let outcomes = block_on(kept);
        assert_eq!(outcomes.len(), 50);
        for outcome in outcomes {
            assert_eq!(outcome, Ok(value.to_vec()));
        }
        while b.queue.load().in_flight > 0 {
            b.queue.process();
        }
        b.idle();
    }
}

#[test]
fn a_future_dropped_before_it_was_sent_was_never_begun() {
    let b = bench();
    let tickets: Vec<_> = (0..b.queue.depth())
        .map(|_| {
            let op = offmap_bpf::ElementOp::NextKey { key: None };
            b.map.submit(&op).unwrap()
        })
        .collect();
    let (key, value) = (n_key(9), value_of(9));
    let mut waiting = Box::pin(b.map.update(&key, &value, 0));
    assert!(!touch(waiting.as_mut()));
    drop(waiting);
    drop(b.map.update(&key, &value, 0));
    for ticket in tickets {
        assert!(ticket.wait().is_err());
    }
    let mut out = value;
    let missing = b.file.lookup(&key, &mut out, 0).unwrap_err();
    assert_eq!(missing.errno(), Errno::ENOENT);
    b.idle();
}

/// Bench whose futures somebody else wakes.
fn processed<F: Function>(function: Arc<F>) -> Bench<F> {
    let stack = Stack::with_driver(function, driver());
    let queue = stack.nic.async_queue_with(Wake::Process).unwrap();
    Bench::on(stack, queue)
}

#[test]
fn with_somebody_who_processes_futures_sleep_until_their_operations_end() {
    fn run<F: Function>(b: &Bench<F>) {
        let done = AtomicBool::new(false);
        let polls = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    b.queue.process();
                    thread::yield_now();
                }
            });
            let counted = |n| {
                let mut future = Box::pin(write_and_read(b.map.clone(), n));
                let polls = &polls;
                std::future::poll_fn(move |cx| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    future.as_mut().poll(cx)
                })
            };
            let all: FuturesUnordered<_> = (0..MANY).map(counted).collect();
            assert_eq!(block_on(all.count()), MANY as usize);
            done.store(true, Ordering::Release);
        });
        // Each is looked at when it begins, when there is room, when an operation ends; twice.
        let polls = polls.into_inner();
        assert!(
            polls <= 8 * u64::from(MANY),
            "{polls} looks at {MANY} futures"
        );
        b.idle();
    }
    run(&processed(Inline::new(device()).unwrap()));
    run(&processed(Threaded::spawn(device()).unwrap()));
}

#[test]
fn an_interrupt_wakes_who_processes() {
    let b = processed(Threaded::spawn(device()).unwrap());
    assert!(b.queue.interrupt().is_some());
    assert!(!b.queue.request_interrupt(), "nothing is in flight");
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                b.queue.process_or_sleep(Duration::from_secs(20)).unwrap();
            }
        });
        block_on(async {
            for n in 0..300 {
                write_and_read(b.map.clone(), n).await;
                // The device parks, and who processes sleeps.
                if n % 10 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        done.store(true, Ordering::Release);
    });
    // Each of 600 operations would take 128 ms without its interrupt.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    b.idle();

    // A reactor's part, by hand.
    let interrupt = b.queue.interrupt().unwrap();
    let key = n_key(3);
    for _ in 0..50 {
        let mut future = Box::pin(b.map.lookup(&key));
        let mut done = touch(future.as_mut());
        while !done {
            if b.queue.request_interrupt() {
                assert!(
                    interrupt.wait(Duration::from_secs(20)).unwrap(),
                    "it never came"
                );
            }
            b.queue.process();
            done = touch(future.as_mut());
        }
    }
    let inline = processed(Inline::new(device()).unwrap());
    assert!(inline.queue.interrupt().is_none());
    assert_eq!(
        inline
            .queue
            .process_or_sleep(Duration::from_secs(20))
            .unwrap(),
        0
    );
}

#[test]
fn a_reset_wakes_those_in_flight_and_those_in_line() {
    let b = processed(Inline::new(device()).unwrap());
    let key = n_key(1);
    slow(&b);
    let all: FuturesUnordered<_> = (0..200).map(|_| b.map.delete(&key)).collect();
    let mut all = Box::pin(all.collect::<Vec<_>>());
    assert!(!touch(all.as_mut()));
    assert!(b.queue.load().waiting > 0);
    let done = AtomicBool::new(false);
    let outcomes = thread::scope(|scope| {
        scope.spawn(|| {
            b.stack.driver.reset().unwrap();
            while !done.load(Ordering::Acquire) {
                b.queue.process();
                thread::yield_now();
            }
        });
        let outcomes = block_on(all);
        done.store(true, Ordering::Release);
        outcomes
    });
    let unknown = outcomes
        .iter()
        .filter(|o| matches!(o, Err(Failure::Unknown(_))));
    // The others were sent to a device that does not have the map any more, or were never sent.
    assert!(unknown.count() <= b.queue.depth());
    assert!(outcomes.iter().all(|o| o.is_err()), "{outcomes:?}");
    assert_eq!(b.queue.load(), AsyncLoad::default());
}

#[test]
fn futures_and_their_handles_may_go_to_other_threads() {
    fn send<T: Send>(_: &T) {}
    let b = bench();
    let key = n_key(1);
    send(&b.map.lookup(&key));
    send(&b.map);
    send(&b.queue);
    let file: &MapFile = b.map.file();
    assert_eq!(file.key_size(), 4);
}
