//! A device that lies, forgets, repeats itself or goes away. Whatever it does, the driver
//! returns a typed error in bounded time.

mod scripted;

use offmap_abi::completion::BatchResult;
use offmap_abi::regs::{self, FatalCause};
use offmap_abi::submission::{BatchBody, ElementBody};
use offmap_abi::{AdminOpcode, Completion, RequestId, Submission};
use offmap_driver::{
    CompletionFault, DeviceMap, Driver, DriverConfig, DriverError, MapParams, Notify, Op,
    QueuePair, Status, SubmitError,
};
use scripted::{Abort, Rng, Scripted, honest, honest_answer};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

fn config() -> DriverConfig {
    DriverConfig {
        queue_depth: 8,
        admin_timeout: Duration::from_millis(200),
        op_timeout: Duration::from_millis(50),
        ..DriverConfig::default()
    }
}

fn up(device: &Arc<Scripted>) -> Arc<Driver<Scripted>> {
    Driver::bring_up(Arc::clone(device), config()).expect("an honest device comes up")
}

fn map_of(driver: &Driver<Scripted>, key_size: u32, value_size: u32) -> DeviceMap {
    let params = MapParams {
        map_type: 1,
        key_size,
        value_size,
        max_entries: 16,
        cpu_slots: 0,
        seed: 0,
        name: [0; 16],
        ..MapParams::default()
    };
    driver
        .create_map(&params)
        .expect("an honest device makes maps")
}

fn ready() -> (
    Arc<Scripted>,
    Arc<Driver<Scripted>>,
    QueuePair<Scripted>,
    DeviceMap,
) {
    let device = Scripted::new();
    let driver = up(&device);
    let queue = driver.create_queue().unwrap();
    let map = map_of(&driver, 8, 8);
    (device, driver, queue, map)
}

fn assert_broken(queue: &mut QueuePair<Scripted>) {
    assert!(matches!(queue.nop(), Err(DriverError::QueueBroken { .. })));
    assert!(matches!(queue.poll(), Err(DriverError::QueueBroken { .. })));
    assert!(queue.is_dead());
}

#[test]
fn lies_in_registers_are_refused_by_name() {
    let cases: &[(u64, u64, &str)] = &[
        (regs::MAGIC, 0x1234, "MAGIC"),
        (regs::VERSION, 0x0002_0000, "version 2.0"),
        (regs::QUEUE_PAIRS, 0, "QUEUE_PAIRS"),
        (regs::QUEUE_PAIRS, 1024, "QUEUE_PAIRS"),
        (regs::QUEUE_DEPTH_MAX, 0, "QUEUE_DEPTH_MAX"),
        (regs::QUEUE_DEPTH_MAX, 1, "QUEUE_DEPTH_MAX"),
        (regs::QUEUE_DEPTH_MAX, 48, "QUEUE_DEPTH_MAX"),
        (regs::QUEUE_DEPTH_MAX, 1 << 16, "QUEUE_DEPTH_MAX"),
        (regs::READY_TIMEOUT_MS, 0xffff_fffe, "READY_TIMEOUT_MS"),
    ];
    for (register, value, named) in cases {
        let device = Scripted::new();
        device.state().registers.insert(*register, *value);
        let error = Driver::bring_up(Arc::clone(&device), config()).unwrap_err();
        assert!(error.to_string().contains(named), "{register:#x}: {error}");
        assert_eq!(device.state().memory.mapped(), 0);
    }
    let all_ones = [
        regs::MAGIC,
        regs::VERSION,
        regs::QUEUE_PAIRS,
        regs::FEATURES,
    ];
    for register in all_ones {
        let device = Scripted::new();
        device.state().registers.remove(&register);
        let error = Driver::bring_up(device, config()).unwrap_err();
        assert!(matches!(error, DriverError::DeviceGone { .. }), "{error}");
    }
}

#[test]
fn config_space_is_checked() {
    let device = Scripted::new();
    device.state().vendor = 0x8086;
    let error = Driver::bring_up(device, config()).unwrap_err();
    assert!(matches!(
        error,
        DriverError::WrongDevice { vendor: 0x8086, .. }
    ));
    let device = Scripted::new();
    device.state().vendor = 0xffff;
    let error = Driver::bring_up(device, config()).unwrap_err();
    assert!(matches!(error, DriverError::DeviceGone { .. }));
    let device = Scripted::new();
    device.state().command_sticks = false;
    let error = Driver::bring_up(device, config()).unwrap_err();
    assert!(matches!(error, DriverError::BadRegister { .. }));
}

#[test]
fn a_device_that_is_never_ready_or_stops_itself() {
    let device = Scripted::new();
    device.state().obeys_enable = false;
    let started = Instant::now();
    let error = Driver::bring_up(Arc::clone(&device), config()).unwrap_err();
    assert!(matches!(error, DriverError::NotReady { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(device.state().memory.mapped(), 0);

    // FATAL that is there before is cleared by a reset; the device comes up then.
    let device = Scripted::new();
    device.state().fatal = FatalCause::Firmware.0;
    up(&device);
}

#[test]
fn lies_in_identify_are_refused_by_name() {
    type Lie = fn(&mut offmap_abi::admin::IdentifyData);
    let lies: &[(&str, Lie)] = &[
        ("batch", |i| i.batch = 0.into()),
        ("memory_bytes", |i| i.memory_bytes = 0.into()),
        ("memory_bytes", |i| i.memory_bytes = u64::MAX.into()),
        ("key_bytes", |i| i.key_bytes = 0.into()),
        ("value_bytes", |i| i.value_bytes = 0.into()),
        ("maps", |i| i.maps = 0.into()),
        ("map_types", |i| i.map_types = 0.into()),
        ("entries_per_map", |i| i.entries_per_map = 0.into()),
        ("engines", |i| i.engines = 0.into()),
        ("ports", |i| i.ports = 257.into()),
        ("ports", |i| i.ports = u32::MAX.into()),
    ];
    for (named, lie) in lies {
        let device = Scripted::new();
        lie(&mut device.state().identify);
        match Driver::bring_up(Arc::clone(&device), config()) {
            Err(DriverError::BadIdentify { field, .. }) => assert_eq!(field, *named),
            other => panic!("{named}: {other:?}"),
        }
        assert!(!device.state().ready, "the device is left disabled");
    }
}

#[test]
fn a_device_from_before_ports_has_one() {
    for (said, ports) in [(0, 1), (1, 1), (2, 2), (256, 256)] {
        let device = Scripted::new();
        device.state().identify.ports = said.into();
        let driver = Driver::bring_up(Arc::clone(&device), config()).expect("bring-up");
        assert_eq!(driver.identity().ports, ports);
    }
}

#[test]
fn a_plug_pulled_at_any_access_is_an_error() {
    let mut came_up = false;
    let mut errors = String::new();
    for after in 0..200 {
        let device = Scripted::new();
        device.state().fail_mmio_after = Some(after);
        let result = Driver::bring_up(Arc::clone(&device), config());
        if result.is_ok() {
            came_up = true;
            break;
        }
        errors += &format!("{}\n", result.unwrap_err());
    }
    for named in [
        "read MAGIC",
        "write CONTROL",
        "write ADMIN_SQ",
        "write ADMIN_DEPTH",
        "read STATUS",
        "write the admin submission doorbell",
    ] {
        assert!(errors.contains(named), "{named} is not among\n{errors}");
    }
    assert!(came_up, "bring-up takes fewer than 200 accesses");
}

#[test]
fn registers_of_all_ones_end_a_wait() {
    let (device, driver, mut queue, _) = ready();
    device.script(|_, _, _| {});
    device.state().all_ones = true;
    let started = Instant::now();
    assert!(matches!(queue.nop(), Err(DriverError::DeviceGone { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_broken(&mut queue);
    assert!(matches!(
        driver.check_health(),
        Err(DriverError::DeviceGone { .. })
    ));
}

#[test]
fn a_device_that_stops_itself_ends_a_wait_with_its_cause() {
    let (device, driver, mut queue, map) = ready();
    device.state().ready = false;
    device.state().fatal = FatalCause::RingProtocol.0;
    match queue.nop() {
        Err(DriverError::Fatal { cause }) => assert_eq!(cause, FatalCause::RingProtocol),
        other => panic!("{other:?}"),
    }
    driver.reset().unwrap();
    assert!(matches!(queue.nop(), Err(DriverError::DeviceReset)));
    assert!(matches!(
        driver.free_map(&map),
        Err(DriverError::DeviceReset)
    ));
    drop(queue);
    let map = map_of(&driver, 8, 8);
    let mut queue = driver.create_queue().unwrap();
    let mut value = [0; 8];
    assert!(
        queue
            .lookup(&map, &[5; 8], &mut value)
            .unwrap()
            .is_success()
    );
    assert_eq!(value, [5; 8]);
}

#[test]
fn a_reset_that_nobody_asked_for_is_noticed() {
    let (device, _driver, mut queue, _) = ready();
    device.script(|_, _, _| {});
    *device
        .state()
        .registers
        .get_mut(&regs::RESET_COUNT)
        .unwrap() += 1;
    assert!(matches!(queue.nop(), Err(DriverError::DeviceReset)));
}

#[test]
fn completions_for_nobody_break_the_queue() {
    type Forge = fn(RequestId) -> RequestId;
    let forgeries: &[(CompletionFault, Forge)] = &[
        (CompletionFault::UnknownSlot, |r| {
            RequestId::new(8, r.generation())
        }),
        (CompletionFault::UnknownSlot, |r| {
            RequestId::new(u16::MAX, r.generation())
        }),
        (CompletionFault::Stale, |r| {
            RequestId::new(r.slot(), r.generation() + 1)
        }),
        (CompletionFault::Stale, |r| {
            RequestId::new(r.slot(), r.generation() - 1)
        }),
        (CompletionFault::Stale, |r| {
            RequestId::new(r.slot() ^ 1, r.generation())
        }),
    ];
    for (expected, forge) in forgeries {
        let (device, driver, mut queue, _) = ready();
        queue.nop().unwrap();
        device.script(move |queue, memory, command| {
            let forged = forge(command.request());
            queue.complete(memory, Completion::new(forged, Status::Success));
        });
        match queue.nop() {
            Err(DriverError::BadCompletion { fault, .. }) => assert_eq!(fault, *expected),
            other => panic!("{other:?}"),
        }
        assert_broken(&mut queue);
        // The device itself is usable: another queue works.
        device.script(honest);
        drop(queue);
        driver.create_queue().unwrap().nop().unwrap();
    }
}

#[test]
fn a_completion_sent_twice_is_found() {
    let (device, _driver, mut queue, _) = ready();
    device.script(|queue, memory, command| {
        honest(queue, memory, command);
        honest(queue, memory, command);
    });
    queue.nop().unwrap();
    match queue.nop() {
        Err(DriverError::BadCompletion { fault, .. }) => assert_eq!(fault, CompletionFault::Stale),
        other => panic!("{other:?}"),
    }
    assert_broken(&mut queue);
}

#[test]
fn a_payload_that_is_too_short_is_found() {
    let (device, _driver, mut queue, map) = ready();
    device.script(|queue, memory, command| {
        let done = Completion::new(command.request(), Status::Success).with_payload(&[1; 7]);
        queue.complete(memory, done);
    });
    let mut value = [0xaa; 8];
    match queue.lookup(&map, &[1; 8], &mut value) {
        Err(DriverError::BadCompletion { fault, .. }) => {
            assert_eq!(fault, CompletionFault::ShortResult);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(value, [0xaa; 8], "nothing was copied");
}

#[test]
fn statuses_that_nobody_knows_are_kept() {
    let (device, _driver, mut queue, map) = ready();
    device.script(|queue, memory, command| {
        queue.complete(memory, Completion::new(command.request(), Status(0x7777)));
    });
    let mut value = [0xaa; 8];
    assert_eq!(
        queue.lookup(&map, &[1; 8], &mut value).unwrap(),
        Status(0x7777)
    );
    assert_eq!(value, [0xaa; 8]);
}

#[test]
fn a_lost_command_that_aborts_leaves_the_queue_usable() {
    let (device, _driver, mut queue, _) = ready();
    device.script(|_, _, _| {});
    device.state().abort = Abort::Complete;
    // More often than there are slots: each came back.
    for _ in 0..20 {
        match queue.nop() {
            Err(DriverError::TimedOut { quarantined, .. }) => assert!(!quarantined),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(queue.counters().timeouts, 20);
    assert_eq!(queue.outstanding(), 0);
    device.script(honest);
    queue.nop().unwrap();
}

#[test]
fn a_wrong_phase_is_no_completion() {
    let (device, _driver, mut queue, _) = ready();
    device.script(|queue, memory, command| {
        // The phase of the next pass: not there yet, as far as the host can see.
        let words = Completion::new(command.request(), Status::Success).to_words(false);
        queue.post(memory, words);
    });
    assert!(matches!(
        queue.nop(),
        Err(DriverError::TimedOut {
            quarantined: true,
            ..
        })
    ));
    assert_broken(&mut queue);
}

#[test]
fn a_late_answer_is_still_the_answer() {
    let (device, _driver, mut queue, map) = ready();
    let waiting: Arc<Mutex<Vec<Submission>>> = Arc::default();
    let kept = Arc::clone(&waiting);
    device.script(move |_, _, command| kept.lock().unwrap().push(command));
    let answerer = {
        let (device, waiting) = (Arc::clone(&device), Arc::clone(&waiting));
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(120));
            let mut state = device.state();
            let state = &mut *state;
            for command in waiting.lock().unwrap().drain(..) {
                let answer = honest_answer(&state.memory, &command);
                state
                    .queues
                    .get_mut(&1)
                    .unwrap()
                    .complete(&state.memory, answer);
            }
        })
    };
    let mut value = [0; 8];
    assert!(
        queue
            .lookup(&map, &[9; 8], &mut value)
            .unwrap()
            .is_success()
    );
    assert_eq!(value, [9; 8]);
    assert_eq!(queue.counters().timeouts, 1);
    answerer.join().unwrap();
    device.script(honest);
    queue.nop().unwrap();
}

#[test]
fn a_command_lost_for_good_keeps_its_memory_until_a_reset() {
    for abort in [Abort::NotFound, Abort::Ignore] {
        let (device, driver, mut queue, _) = ready();
        // Large enough for a buffer of its own, next to the queue's memory.
        let map = map_of(&driver, 8, 4000);
        device.script(|_, _, _| {});
        device.state().abort = abort;
        let started = Instant::now();
        match queue.lookup(&map, &[1; 8], &mut [0; 4000]) {
            Err(DriverError::TimedOut { quarantined, .. }) => assert!(quarantined),
            other => panic!("{abort:?}: {other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_broken(&mut queue);
        // Admin queue, queue pair, large buffer.
        assert_eq!(device.state().memory.mapped(), 3);
        device.state().answers_delete = false;
        drop(queue);
        assert_eq!(
            device.state().memory.mapped(),
            3,
            "QUEUE_DELETE was not confirmed"
        );
        assert!(matches!(driver.create_queue(), Err(DriverError::Down)));
        device.state().answers_delete = true;
        device.state().reset_fails = true;
        assert!(driver.reset().is_err());
        assert_eq!(device.state().memory.mapped(), 3, "neither was the reset");
        device.state().reset_fails = false;
        driver.reset().unwrap();
        assert_eq!(
            device.state().memory.mapped(),
            1,
            "only the new admin queue"
        );
        device.script(honest);
        let mut queues: Vec<_> = (0..4).map(|_| driver.create_queue().unwrap()).collect();
        assert!(matches!(
            driver.create_queue(),
            Err(DriverError::NoQueuePair { have: 4 })
        ));
        queues
            .iter_mut()
            .for_each(|q| assert!(q.nop().unwrap().is_success()));
        drop(queues);
        drop(driver);
        assert_eq!(device.state().memory.mapped(), 0);
        assert!(
            !device.state().ready,
            "dropping the driver disables the device"
        );
    }
}

#[test]
fn an_admin_queue_without_answers_is_down_until_reset() {
    let (device, driver, mut queue, map) = ready();
    device.state().answers_admin = false;
    match driver.query_map(&map) {
        Err(DriverError::AdminTimeout { command, .. }) => {
            assert_eq!(command, AdminOpcode::MapQuery)
        }
        other => panic!("{other:?}"),
    }
    device.state().answers_admin = true;
    assert!(matches!(driver.query_map(&map), Err(DriverError::Down)));
    queue.nop().expect("I/O queues go on");
    driver.reset().unwrap();
    map_of(&driver, 8, 8);
}

#[test]
fn batch_counts_that_contradict_break_the_queue() {
    let lies: &[(Status, u32)] = &[
        (Status::Success, 2),
        (Status::Success, 4),
        (Status::Full, 3),
        (Status::Full, u32::MAX),
    ];
    for (status, count) in lies.iter().copied() {
        let (device, _driver, mut queue, map) = ready();
        device.script(move |queue, memory, command| {
            let mut done = Completion::new(command.request(), status);
            done.count = count.into();
            queue.complete(memory, done);
        });
        match queue.update_batch(&map, &[1; 24], &[2; 24], 0) {
            Err(DriverError::BadCompletion { fault, .. }) => {
                assert_eq!(fault, CompletionFault::Count);
            }
            other => panic!("{status} {count}: {other:?}"),
        }
        assert_broken(&mut queue);
    }
}

#[test]
fn a_dump_that_claims_too_much_breaks_the_queue() {
    for (count, cursor, expected) in [
        (4, 1, CompletionFault::Count),
        (1, 1 << 32, CompletionFault::Cursor),
        // A walk that follows these would never end.
        (0, 9, CompletionFault::Cursor),
        (3, 8, CompletionFault::Cursor),
        (3, 0, CompletionFault::Cursor),
    ] {
        let (device, _driver, mut queue, map) = ready();
        device.script(move |queue, memory, command| {
            let result = BatchResult {
                cursor: cursor.into(),
                needed: 0.into(),
                reserved: 0.into(),
            };
            let mut done =
                Completion::new(command.request(), Status::Success).with_payload(result.as_bytes());
            done.count = count.into();
            queue.complete(memory, done);
        });
        match queue.dump(&map, 9, &mut [0; 24], &mut [0; 24], false) {
            Err(DriverError::BadCompletion { fault, .. }) => assert_eq!(fault, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// The second command of a walk is aborted in the middle, or its map is gone: the completion has no
/// cursor (abi §7.2), and that is no reason to break the queue.
#[test]
fn a_dump_that_is_given_up_has_no_cursor() {
    for status in [Status::Interrupted, Status::InvalidMap, Status::MediaError] {
        let (device, _driver, mut queue, map) = ready();
        device.script(move |queue, memory, command| {
            queue.complete(memory, Completion::new(command.request(), status));
        });
        let dumped = queue.dump(&map, 9, &mut [0; 24], &mut [0; 24], false);
        let dumped = dumped.unwrap();
        assert_eq!((dumped.status, dumped.count, dumped.cursor), (status, 0, 9));
        assert!(!queue.is_dead());
    }
}

#[test]
fn elements_that_a_batch_forgot_do_not_look_done() {
    let (device, _driver, mut queue, map) = ready();
    device.script(|queue, memory, command| {
        let body: BatchBody = command.body();
        // The second of three statuses is never written.
        memory.write(body.statuses.get(), &0u16.to_le_bytes());
        memory.write(body.statuses.get() + 4, &1u16.to_le_bytes());
        memory.write(body.values.get(), &[7; 24]);
        let mut done = Completion::new(command.request(), Status::Success);
        done.count = body.count;
        queue.complete(memory, done);
    });
    let mut values = [0xaa; 24];
    let mut seen = Vec::new();
    let status = queue.lookup_batch(&map, &[1; 24], &mut values, |_, s| seen.push(s));
    assert!(status.unwrap().is_success());
    assert_eq!(seen, [Status::Success, Status(0xffff), Status::NotFound]);
    assert_eq!(values[..8], [7; 8]);
    assert_eq!(values[8..], [0xaa; 16]);
}

#[test]
fn random_completions_never_panic_hang_or_mix_up_requests() {
    let quick = DriverConfig {
        op_timeout: Duration::from_millis(2),
        admin_timeout: Duration::from_millis(50),
        ..config()
    };
    for seed in 1..=60u64 {
        let device = Scripted::new();
        let driver = Driver::bring_up(Arc::clone(&device), quick.clone()).unwrap();
        let mut queue = driver.create_queue().unwrap();
        let map = map_of(&driver, 8, 8);
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut chaos = Rng(seed ^ 0x5555);
        device.state().abort = Abort::Complete;
        device.script(move |queue, memory, command| match chaos.next() % 16 {
            0 => {
                let words = std::array::from_fn(|_| chaos.next());
                queue.post(memory, words);
            }
            1 => {
                let mut answer = honest_answer(memory, &command);
                let at = (chaos.next() % 16) as usize;
                answer.as_mut_bytes()[at] ^= 1 << (chaos.next() % 8);
                queue.complete(memory, answer);
            }
            _ => honest(queue, memory, command),
        });
        for step in 0..60 {
            let key = rng.next().to_le_bytes();
            let mut value = [0; 8];
            match queue.lookup(&map, &key, &mut value) {
                Ok(Status::Success) => assert_eq!(value, key, "seed {seed} step {step}"),
                Ok(_)
                | Err(DriverError::TimedOut {
                    quarantined: false, ..
                }) => {}
                Err(_) if queue.is_dead() => {
                    drop(queue);
                    queue = driver.create_queue().expect("the device itself is honest");
                }
                Err(e) => panic!("seed {seed} step {step}: {e}, and the queue lives on"),
            }
        }
    }
}

#[test]
fn submissions_are_refused_with_what_is_wrong() {
    let (device, driver, mut queue, map) = ready();
    assert!(matches!(
        queue.lookup(&map, &[0; 7], &mut [0; 8]),
        Err(DriverError::Length {
            what: "key",
            expected: 8,
            got: 7
        })
    ));
    assert!(matches!(
        queue.update(&map, &[0; 8], &[0; 9], 0),
        Err(DriverError::Length { what: "value", .. })
    ));
    assert!(matches!(
        queue.lookup(&map, &[0; 8], &mut [0; 4]),
        Err(DriverError::Length { .. })
    ));
    assert!(matches!(
        queue.update_batch(&map, &[0; 12], &[0; 8], 0),
        Err(DriverError::Length {
            what: "key array",
            ..
        })
    ));
    device.script(|_, _, _| {});
    for _ in 0..8 {
        queue.submit(&Op::Nop).unwrap();
    }
    assert!(matches!(queue.submit(&Op::Nop), Err(SubmitError::Full)));
    assert!(matches!(queue.nop(), Err(DriverError::Full { .. })));
    drop(queue);
    let mut other = DriverConfig {
        notify: Notify::Doorbell,
        ..config()
    };
    other.queue_depth = 3;
    drop(driver);
    let error = Driver::bring_up(device, other).unwrap_err();
    assert!(matches!(
        error,
        DriverError::Config {
            field: "queue_depth",
            ..
        }
    ));
}

#[test]
fn elements_carry_what_was_asked() {
    // What is on the wire, for each way in which an operand can travel.
    let (device, driver, mut queue, _) = ready();
    let seen: Log = Arc::default();
    device.script(relog(Arc::clone(&seen)));
    let mut rng = Rng(77);
    for key_size in [1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 500, 2000] {
        for value_size in [1, 8, 15, 16, 17, 48, 49, 512, 513, 70_000] {
            let map = map_of(&driver, key_size, value_size);
            let key: Vec<u8> = (0..key_size).map(|_| rng.next() as u8).collect();
            let value: Vec<u8> = (0..value_size).map(|_| rng.next() as u8).collect();
            queue.update(&map, &key, &value, 2).unwrap();
            let sent = seen.lock().unwrap().pop().unwrap();
            assert_eq!(sent, (key.clone(), value, 2), "{key_size} {value_size}");
            device.script(honest);
            let mut out = vec![0; value_size as usize];
            queue.lookup(&map, &key, &mut out).unwrap();
            assert!(out.iter().eq(key.iter().cycle().take(out.len())));
            device.script(relog(Arc::clone(&seen)));
        }
    }
}

/// Key, value (or room) and flags of each element command.
type Log = Arc<Mutex<Vec<(Vec<u8>, Vec<u8>, u32)>>>;

fn relog(log: Log) -> impl FnMut(&mut scripted::Queue, &scripted::Memory, Submission) + Send {
    use offmap_abi::SubmissionFlags as Flags;
    use offmap_abi::submission::IovaRef;
    move |queue, memory, command| {
        let body: ElementBody = command.body();
        let field = |flag, field: &[u8; 16], len: u32| {
            if command.flags().contains(flag) {
                field[..len as usize].to_vec()
            } else {
                memory.read(IovaRef::iova_of(field), len as usize)
            }
        };
        log.lock().unwrap().push((
            field(Flags::KEY_INLINE, &body.key, body.key_len.get()),
            field(Flags::VALUE_INLINE, &body.value, body.value_len.get()),
            body.map_flags.get(),
        ));
        honest(queue, memory, command);
    }
}
