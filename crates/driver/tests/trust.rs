//! What a device could get by lying about its results, its deadlines and its ids.

mod scripted;

use offmap_abi::completion::BatchResult;
use offmap_abi::regs;
use offmap_abi::submission::BatchBody;
use offmap_abi::{AdminOpcode, Completion, RequestId};
use offmap_driver::{
    CompletionFault, DeviceMap, Driver, DriverConfig, DriverError, MapParams, Notify, Op,
    QueuePair, Status,
};
use scripted::{Abort, Scripted, honest, returned};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const OP: Duration = Duration::from_millis(50);
const ADMIN: Duration = Duration::from_millis(200);

fn up(device: &Arc<Scripted>, admin_timeout: Duration) -> Arc<Driver<Scripted>> {
    let config = DriverConfig {
        queue_depth: 8,
        admin_timeout,
        op_timeout: OP,
        ..DriverConfig::default()
    };
    Driver::bring_up(Arc::clone(device), config).expect("an honest device comes up")
}

fn params(value_size: u32) -> MapParams {
    MapParams {
        map_type: 1,
        key_size: 8,
        value_size,
        max_entries: 16,
        cpu_slots: 0,
        seed: 0,
        name: *b"a map\0\0\0\0\0\0\0\0\0\0\0",
        ..MapParams::default()
    }
}

fn ready(value_size: u32) -> (Arc<Scripted>, QueuePair<Scripted>, DeviceMap) {
    let device = Scripted::new();
    let driver = up(&device, ADMIN);
    let map = driver.create_map(&params(value_size)).unwrap();
    (device, driver.create_queue().unwrap(), map)
}

/// Fills the memory that the next commands use with the bytes of some map: values and keys of a
/// batch, and the value of a lookup.
fn leave_secrets(queue: &mut QueuePair<Scripted>, map: &DeviceMap, count: usize) {
    let (key, value) = (map.key_size(), map.value_stride());
    let done = |queue: &mut scripted::Queue, memory: &scripted::Memory, command| {
        let command: offmap_abi::Submission = command;
        let body: BatchBody = command.body();
        let done = Completion::new(command.request(), Status::Success);
        queue.complete(memory, returned(done, body.count.get() as usize));
        // The statuses are left alone.
        let _ = memory;
    };
    queue.driver().function().script(done);
    let (keys, values) = (vec![0x5e; count * key], vec![0x5e; count * value]);
    queue.update_batch(map, &keys, &values, 0).unwrap();
    queue.driver().function().script(honest);
    queue
        .update(map, &vec![0x5e; key], &vec![0x5e; value], 0)
        .unwrap();
}

#[test]
fn a_result_that_was_not_written_is_zero() {
    // In the slot's area, and in a large buffer.
    for value_size in [64, 4000] {
        let (device, mut queue, map) = ready(value_size);
        leave_secrets(&mut queue, &map, 1);
        device.script(move |queue, memory, command| {
            let done = Completion::new(command.request(), Status::Success);
            queue.complete(memory, returned(done, value_size as usize));
        });
        let mut value = vec![0xaa; value_size as usize];
        assert!(
            queue
                .lookup(&map, &[1; 8], &mut value)
                .unwrap()
                .is_success()
        );
        assert!(value.iter().all(|b| *b == 0), "{value:x?}");
    }
}

#[test]
fn a_result_by_dma_that_is_too_short_is_found() {
    for short in [0, 63] {
        let (device, mut queue, map) = ready(64);
        device.script(move |queue, memory, command| {
            let done = Completion::new(command.request(), Status::Success);
            queue.complete(memory, returned(done, short));
        });
        let mut value = [0xaa; 64];
        match queue.lookup(&map, &[1; 8], &mut value) {
            Err(DriverError::BadCompletion { fault, .. }) => {
                assert_eq!(fault, CompletionFault::ShortResult);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(value, [0xaa; 64], "nothing was copied");
        assert!(queue.is_dead());
    }
}

#[test]
fn batch_values_that_were_not_written_are_zero() {
    for count in [3, 64] {
        let (device, mut queue, map) = ready(24);
        leave_secrets(&mut queue, &map, count);
        device.script(|queue, memory, command| {
            let body: BatchBody = command.body();
            let count = body.count.get() as usize;
            // Every status says that the value is there.
            memory.write(body.statuses.get(), &vec![0; 2 * count]);
            let done = Completion::new(command.request(), Status::Success);
            queue.complete(memory, returned(done, count));
        });
        let mut values = vec![0xaa; count * 24];
        let keys = vec![1; count * 8];
        let status = queue.lookup_batch(&map, &keys, &mut values, |_, s| assert!(s.is_success()));
        assert!(status.unwrap().is_success());
        assert!(values.iter().all(|b| *b == 0), "{values:x?}");
    }
}

#[test]
fn dumped_elements_that_were_not_written_are_zero() {
    for (count, delete) in [(3, false), (64, true)] {
        let (device, mut queue, map) = ready(24);
        leave_secrets(&mut queue, &map, count);
        device.script(|queue, memory, command| {
            let body: BatchBody = command.body();
            let result = BatchResult {
                cursor: 9.into(),
                needed: 0.into(),
                reserved: 0.into(),
            };
            let done = Completion::new(command.request(), Status::Success);
            let done = done.with_payload(result.as_bytes());
            queue.complete(memory, returned(done, body.count.get() as usize));
        });
        let (mut keys, mut values) = (vec![0xaa; count * 8], vec![0xaa; count * 24]);
        let dumped = queue.dump(&map, 0, &mut keys, &mut values, delete).unwrap();
        assert_eq!(dumped.count, count);
        assert!(
            keys.iter().chain(&values).all(|b| *b == 0),
            "{keys:x?} {values:x?}"
        );
    }
}

#[test]
fn maps_without_a_key_do_not_divide_by_it() {
    let (_device, mut queue, _) = ready(8);
    let keyless = MapParams {
        key_size: 0,
        ..params(8)
    };
    let map = queue.driver().create_map(&keyless).unwrap();
    let done = queue.update_batch(&map, &[], &[], 0).unwrap();
    assert_eq!((done.count, done.status), (0, Status::Success));
    assert_eq!(queue.delete_batch(&map, &[]).unwrap().count, 0);
    queue
        .lookup_batch(&map, &[], &mut [], |_, _| panic!("of none"))
        .unwrap();
    assert!(queue.delete_batch(&map, &[1]).is_err());
}

#[test]
fn admin_results_are_checked() {
    let device = Scripted::new();
    let driver = up(&device, ADMIN);
    let map = driver.create_map(&params(8)).unwrap();
    assert_eq!(
        device.state().names,
        [params(8).name],
        "MapAttr carries the name"
    );
    device.state().short_admin = true;
    for error in [
        driver.create_map(&params(8)).unwrap_err(),
        driver.query_map(&map).unwrap_err(),
    ] {
        assert!(
            matches!(
                error,
                DriverError::BadCompletion {
                    fault: CompletionFault::ShortResult,
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// Fills a queue with commands that the device loses, and waits.
fn wait_in_vain(abort: Abort, admin: Duration) -> (Arc<Scripted>, QueuePair<Scripted>, Duration) {
    let device = Scripted::new();
    let mut queue = up(&device, admin).create_queue().unwrap();
    device.script(|_, _, _| {});
    device.state().abort = abort;
    for _ in 0..8 {
        queue.submit(&Op::Nop).unwrap();
    }
    let started = Instant::now();
    match queue.wait() {
        Err(DriverError::TimedOut { quarantined, .. }) => assert!(quarantined),
        Err(DriverError::QueueStopped { queue }) => {
            assert_eq!((abort, queue.0), (Abort::Stopped, 1));
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("a completion that was never sent"),
    }
    assert!(queue.is_dead());
    (device, queue, started.elapsed())
}

#[test]
fn all_aborts_together_have_one_deadline() {
    // Each ABORT is answered in time: one after the other they would take 8 × 150 ms.
    let (_, queue, took) = wait_in_vain(Abort::Slow(Duration::from_millis(150)), ADMIN);
    assert!(took >= OP + ADMIN, "{took:?}");
    assert!(took < OP + ADMIN + Duration::from_millis(400), "{took:?}");
    // Impatience with ABORT is not the end of the admin queue: its late answer is dropped.
    let driver = Arc::clone(queue.driver());
    drop(queue);
    driver.create_map(&params(8)).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    for _ in 0..20 {
        let map = driver.create_map(&params(8)).unwrap();
        driver.free_map(&map).unwrap();
    }
}

#[test]
fn aborts_without_answers_use_the_admin_queue_up_and_no_more() {
    let device = Scripted::new();
    let driver = up(&device, Duration::from_millis(20));
    device.script(|_, _, _| {});
    device.state().abort = Abort::Ignore;
    let queue = driver.create_queue().unwrap();
    let forged = |n| RequestId::new(0, n);
    // The admin queue has eight entries, and each abandoned command keeps one.
    for n in 0..8 {
        let error = driver.abort(queue.id(), forged(n)).unwrap_err();
        assert!(
            matches!(error, DriverError::AdminTimeout { .. }),
            "{n}: {error}"
        );
    }
    let error = driver.abort(queue.id(), forged(8)).unwrap_err();
    assert!(matches!(error, DriverError::Down), "{error}");
    driver.reset().unwrap();
    driver.create_map(&params(8)).unwrap();
}

#[test]
fn the_wait_for_the_admin_queue_counts() {
    let admin = Duration::from_secs(1);
    let device = Scripted::new();
    let driver = up(&device, admin);
    let map = driver.create_map(&params(8)).unwrap();
    let mut queue = driver.create_queue().unwrap();
    device.script(|_, _, _| {});
    device.state().answers_admin = false;
    let holder = {
        let driver = Arc::clone(&driver);
        std::thread::spawn(move || driver.query_map(&map))
    };
    while !device.state().commands.contains(&AdminOpcode::MapQuery) {
        std::thread::yield_now();
    }
    let started = Instant::now();
    assert!(matches!(
        queue.nop(),
        Err(DriverError::TimedOut {
            quarantined: true,
            ..
        })
    ));
    let took = started.elapsed();
    assert!(took < OP + admin + Duration::from_millis(600), "{took:?}");
    assert!(holder.join().unwrap().is_err());
}

#[test]
fn a_busy_admin_queue_is_an_error_too() {
    let device = Scripted::new();
    let driver = up(&device, ADMIN);
    let map = driver.create_map(&params(8)).unwrap();
    device.state().answers_admin = false;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let driver = Arc::clone(&driver);
            std::thread::spawn(move || {
                let started = Instant::now();
                (driver.query_map(&map).unwrap_err(), started.elapsed())
            })
        })
        .collect();
    for thread in threads {
        let (error, took) = thread.join().unwrap();
        assert!(
            matches!(
                error,
                DriverError::AdminTimeout { .. }
                    | DriverError::AdminBusy { .. }
                    | DriverError::Down
            ),
            "{error}"
        );
        assert!(took < 2 * ADMIN + Duration::from_millis(600), "{took:?}");
    }
}

#[test]
fn a_stopped_queue_is_not_waited_for() {
    let admin = Duration::from_secs(30);
    let (device, queue, took) = wait_in_vain(Abort::Stopped, admin);
    assert!(took < Duration::from_secs(10), "{took:?}");
    // QUEUE_DELETE succeeds and frees it all.
    let driver = Arc::clone(queue.driver());
    drop(queue);
    assert_eq!(device.state().memory.mapped(), 1, "the admin queue");
    device.script(honest);
    driver.create_queue().unwrap().nop().unwrap();

    // What completed before the queue stopped is still taken.
    let mut queue = driver.create_queue().unwrap();
    device.script(|_, _, _| {});
    let token = queue.submit(&Op::Nop).unwrap();
    device.state().abort = Abort::Stopped;
    assert!(matches!(
        queue.abort(token),
        Err(DriverError::QueueStopped { .. })
    ));
    assert!(queue.is_dead());
}

#[test]
fn an_interrupted_command_says_so() {
    let (device, mut queue, map) = ready(8);
    device.script(|queue, memory, command| {
        let done = Completion::new(command.request(), Status::Interrupted);
        queue.complete(memory, done);
    });
    let status = queue.update(&map, &[1; 8], &[1; 8], 0).unwrap();
    assert_eq!(status, Status::Interrupted);
    assert!(!queue.is_dead());
}

#[test]
fn ids_never_repeat_across_queues() {
    let device = Scripted::new();
    let driver = up(&device, ADMIN);
    let seen: Arc<Mutex<Vec<RequestId>>> = Arc::default();
    let log = Arc::clone(&seen);
    device.script(move |queue, memory, command| {
        log.lock().unwrap().push(command.request());
        honest(queue, memory, command);
    });
    for _ in 0..5 {
        let mut queue = driver.create_queue().unwrap();
        assert_eq!(queue.id().0, 1, "the same queue, to the device");
        for _ in 0..20 {
            queue.nop().unwrap();
        }
        drop(queue);
        driver.reset().unwrap();
    }
    let seen = seen.lock().unwrap();
    let distinct: HashSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (100, 100));
}

#[test]
fn a_late_completion_does_not_end_a_command_of_the_next_queue() {
    let (device, mut queue, map) = ready(64);
    let lost: Arc<Mutex<Vec<RequestId>>> = Arc::default();
    let log = Arc::clone(&lost);
    device.script(move |_, _, command| log.lock().unwrap().push(command.request()));
    device.state().abort = Abort::Stopped;
    assert!(queue.lookup(&map, &[1; 8], &mut [0; 64]).is_err());
    let driver = Arc::clone(queue.driver());
    let id = queue.id();
    drop(queue);
    let mut next = driver.create_queue().unwrap();
    assert_eq!(next.id(), id);
    // The device completes the first queue's command on its successor.
    device.script(move |queue, memory, _| {
        let late = lost.lock().unwrap()[0];
        let done = Completion::new(late, Status::Success);
        queue.complete(memory, returned(done, 64));
    });
    match next.lookup(&map, &[2; 8], &mut [0; 64]) {
        Err(DriverError::BadCompletion { fault, .. }) => assert_eq!(fault, CompletionFault::Stale),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_are_of_one_queue() {
    let (device, mut queue, _) = ready(8);
    let mut sibling = queue.driver().create_queue().unwrap();
    // The first queue of another driver gives out the same ids.
    let (_, mut stranger, _) = ready(8);
    let token = queue.submit(&Op::Nop).unwrap();
    let theirs = stranger.submit(&Op::Nop).unwrap();
    assert_eq!(token.request(), theirs.request());
    assert_ne!(token, theirs);
    sibling.submit(&Op::Nop).unwrap();
    for other in [&mut sibling, &mut stranger] {
        assert!(matches!(
            other.wait_for(token).map(|_| ()),
            Err(DriverError::NoSuchRequest { .. })
        ));
        assert!(matches!(
            other.abort(token),
            Err(DriverError::NoSuchRequest { .. })
        ));
        assert!(!other.is_dead());
    }
    assert_eq!(queue.wait_for(token).unwrap().token(), token);
    drop(device);
}

#[test]
fn doorbells_that_cannot_be_mapped_leave_the_device_disabled() {
    for obeys_disable in [true, false] {
        let device = Scripted::new();
        device.state().map_bar_fails = true;
        device.state().obeys_disable = obeys_disable;
        let config = DriverConfig::default();
        let error = Driver::bring_up(Arc::clone(&device), config).unwrap_err();
        assert!(error.to_string().contains("doorbells"), "{error}");
        assert!(!device.state().ready);
        assert_eq!(device.state().memory.mapped(), 0);
    }
}

#[test]
fn a_device_that_became_another_is_left_disabled() {
    for obeys_disable in [true, false] {
        let device = Scripted::new();
        let driver = up(&device, ADMIN);
        device.state().identify.maps = 17.into();
        device.state().obeys_disable = obeys_disable;
        let error = driver.reset().unwrap_err();
        assert!(matches!(error, DriverError::IdentityChanged), "{error}");
        assert!(!device.state().ready);
        assert_eq!(device.state().memory.mapped(), 0);
        device.state().identify.maps = 16.into();
        driver.reset().unwrap();
        driver.create_map(&params(8)).unwrap();
    }
}

#[test]
fn more_queues_than_a_word_has_bits() {
    let device = Scripted::new();
    device.state().registers.insert(regs::QUEUE_PAIRS, 1023);
    let config = DriverConfig {
        queue_depth: 2,
        notify: Notify::Doorbell,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Arc::clone(&device), config).unwrap();
    assert_eq!(driver.identity().queue_pairs, 1023);
    let mut queues: Vec<_> = (1..=80u16)
        .map(|id| {
            let queue = driver.create_queue().unwrap();
            assert_eq!(queue.id().0, id);
            queue
        })
        .collect();
    for queue in &mut queues {
        for _ in 0..5 {
            queue.nop().unwrap();
        }
    }
    // The lowest id that is free is given out again, and only that one.
    drop(queues.remove(69));
    assert_eq!(driver.create_queue().unwrap().id().0, 70);
}
