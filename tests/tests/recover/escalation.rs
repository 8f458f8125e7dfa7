//! The order of the steps, counted at the device, and the time of those who wait.

use super::scripted::{Abort, Memory, Queue, Scripted, honest_answer};
use super::{attr, named, recovering};
use offmap_abi::submission::BatchBody;
use offmap_abi::{AdminOpcode, Completion, IoOpcode, RequestId, Status, Submission};
use offmap_bpf::{Errno, MapType};
use offmap_driver::DriverConfig;
use offmap_offload::{Recovery, UnknownOutcome};
use offmap_tests::stack::Stack;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const OP: Duration = Duration::from_millis(5);
const ADMIN: Duration = Duration::from_millis(40);

fn config() -> DriverConfig {
    DriverConfig {
        op_timeout: OP,
        admin_timeout: ADMIN,
        ..DriverConfig::default()
    }
}

/// One queue pair, so that every command is on the same lane.
fn over(device: &Arc<Scripted>, recovery: Recovery) -> Stack<Scripted> {
    recovering(Arc::clone(device), config(), Some(1), recovery)
}

/// An honest device that carries batches out, too.
fn honest(queue: &mut Queue, memory: &Memory, command: Submission) {
    let mut done = honest_answer(memory, &command);
    if IoOpcode(command.opcode).is_batch() {
        done.count = command.body::<BatchBody>().count;
    }
    queue.complete(memory, done);
}

fn swallow(_: &mut Queue, _: &Memory, _: Submission) {}

fn commands(device: &Scripted) -> Vec<AdminOpcode> {
    std::mem::take(&mut device.state().commands)
}

fn clear(device: &Scripted) {
    drop(commands(device));
}

const NEW_QUEUE: [AdminOpcode; 2] = [AdminOpcode::QueueDelete, AdminOpcode::QueueCreate];

#[test]
fn abort_then_queue_then_function() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let plain = stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
    clear(&device);
    device.script(swallow);
    for failures in 1..=3 {
        let error = plain.update(&[1; 4], &[1; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::ETIMEDOUT, "{failures}: {error}");
        let expected = match failures {
            1 => vec![AdminOpcode::Abort],
            2 => [&NEW_QUEUE[..], &[AdminOpcode::Abort]].concat(),
            // The third failure of a queue in a row: the function, which begins with IDENTIFY.
            _ => [&NEW_QUEUE[..], &[AdminOpcode::Abort, AdminOpcode::Identify]].concat(),
        };
        assert_eq!(commands(&device), expected, "failure {failures}");
    }
    let stats = stack.nic.recovery_stats();
    assert_eq!((stats.queue_failures, stats.function_resets), (3, 1));
    let gone = plain.update(&[1; 4], &[1; 8], 0).unwrap_err();
    assert_eq!(gone.errno(), Errno::ENODEV);
    device.script(honest);
    stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
}

#[test]
fn completions_that_cannot_be_lead_to_a_reset_too() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let plain = stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
    clear(&device);
    device.script(|queue, memory, _| {
        queue.complete(
            memory,
            Completion::new(RequestId(u64::MAX), Status::Success),
        );
    });
    for _ in 0..3 {
        let error = plain.update(&[1; 4], &[1; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::EIO, "{error}");
    }
    let expected = [&NEW_QUEUE[..], &NEW_QUEUE, &[AdminOpcode::Identify]].concat();
    assert_eq!(commands(&device), expected);
}

#[test]
fn a_write_that_was_not_answered_is_done_once_more_on_a_new_map() {
    for unknown in [UnknownOutcome::Resolve, UnknownOutcome::Report] {
        let device = Scripted::new();
        device.script(honest);
        let stack = over(
            &device,
            Recovery {
                unknown,
                ..Recovery::default()
            },
        );
        let map = stack.map(&attr(MapType::HASH, 8, 16), true);
        clear(&device);
        let (mut lost, mut refilled) = (0, 0);
        let counts = Arc::new(std::sync::Mutex::new((0, 0)));
        let seen = Arc::clone(&counts);
        device.script(move |queue, memory, command| {
            if lost == 0 {
                lost += 1;
            } else {
                refilled += usize::from(IoOpcode(command.opcode) == IoOpcode::BatchUpdate);
                honest(queue, memory, command);
            }
            *seen.lock().unwrap() = (lost, refilled);
        });
        let done = map.update(&[1; 4], &[1; 8], 0);
        match unknown {
            UnknownOutcome::Resolve => done.unwrap(),
            UnknownOutcome::Report => {
                let error = done.unwrap_err();
                assert_eq!(error.errno(), Errno::EIO);
                assert!(error.reason().contains("unknown"), "{error}");
            }
        }
        // No reset of the function, and no late effect on the map that is used from now on.
        let mut expected = vec![
            AdminOpcode::Abort,
            AdminOpcode::MapFree,
            AdminOpcode::MapCreate,
        ];
        expected.extend(NEW_QUEUE);
        assert_eq!(commands(&device), expected);
        assert_eq!(*counts.lock().unwrap(), (1, 1));
        let stats = stack.nic.recovery_stats();
        let told = (stats.unknown, stats.resolved, stats.reported);
        match unknown {
            UnknownOutcome::Resolve => assert_eq!(told, (1, 1, 0)),
            UnknownOutcome::Report => assert_eq!(told, (1, 0, 1)),
        }
        assert_eq!((stats.function_resets, stats.elements_restored), (0, 1));
        // Reported once: the next write has nothing of it.
        map.update(&[2; 4], &[1; 8], 0).unwrap();
    }
}

#[test]
fn a_command_that_was_aborted_in_time_needs_no_recovery() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let map = stack.map(&attr(MapType::HASH, 8, 16), true);
    clear(&device);
    device.state().abort = Abort::Complete;
    device.script(swallow);
    let error = map.update(&[1; 4], &[1; 8], 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ETIMEDOUT, "{error}");
    assert_eq!(commands(&device), [AdminOpcode::Abort]);
    assert_eq!(stack.nic.recovery_stats().unknown, 0);
    // It is not in the journal: a restored map is empty.
    device.script(honest);
    stack.driver.reset().unwrap();
    map.update(&[2; 4], &[1; 8], 0).unwrap();
    assert_eq!(stack.nic.recovery_stats().elements_restored, 0);
}

#[test]
fn a_stalled_admin_queue_ends_in_a_reset_of_the_function() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let map = stack.map(&attr(MapType::HASH, 8, 16), true);
    map.update(&[1; 4], &[1; 8], 0).unwrap();
    clear(&device);
    device.script(swallow);
    device.state().answers_admin = false;
    let error = map.update(&[1; 4], &[2; 8], 0).unwrap_err();
    assert_eq!(error.errno(), Errno::EIO, "{error}");
    assert!(error.reason().contains("unknown"), "{error}");
    // The abort, the map of which the outcome is unknown, and then the function, which does not
    // come up either.
    let expected = [
        AdminOpcode::Abort,
        AdminOpcode::MapFree,
        AdminOpcode::Identify,
    ];
    assert_eq!(commands(&device), expected);
    assert_eq!(stack.nic.recovery_stats().failed_resets, 1);
    // Still down: the typed error, with one more try each.
    let error = map.lookup(&[1; 4], &mut [0; 8], 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ENODEV, "{error}");
    device.state().answers_admin = true;
    device.script(honest);
    map.update(&[3; 4], &[2; 8], 0).unwrap();
    let stats = stack.nic.recovery_stats();
    assert_eq!((stats.function_resets, stats.failed_resets), (1, 2));
    // The first write, and the one of unknown outcome in its place.
    assert_eq!(stats.elements_restored, 1);
}

#[test]
fn firmware_errors_and_resets_of_its_own_are_recovered() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let map = stack.map(&attr(MapType::HASH, 8, 16), true);
    map.update(&[1; 4], &[1; 8], 0).unwrap();
    for (round, what) in ["FATAL", "RESET_COUNT"].into_iter().enumerate() {
        clear(&device);
        {
            let mut state = device.state();
            match round {
                0 => state.fatal = 4,
                _ => {
                    let count = state.registers.get_mut(&offmap_abi::regs::RESET_COUNT);
                    *count.unwrap() += 1;
                }
            }
            let mut first = true;
            state.io = Box::new(move |queue, memory, command| {
                if !std::mem::take(&mut first) {
                    honest(queue, memory, command);
                }
            });
        }
        map.update(&[2; 4], &[1; 8], 0)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let seen = commands(&device);
        // Nothing is asked of a device that is known to need a reset.
        let expected = [
            AdminOpcode::Identify,
            AdminOpcode::MapCreate,
            AdminOpcode::QueueCreate,
        ];
        assert_eq!(seen, expected, "{what}");
        let resets = stack.nic.recovery_stats().function_resets;
        assert_eq!(resets, round as u64 + 1, "{what}");
    }
}

#[test]
fn a_device_that_was_taken_out_is_enodev_at_once_and_for_good() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(&device, Recovery::default());
    let map = stack.map(&attr(MapType::HASH, 8, 16), true);
    let plain = stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
    map.update(&[1; 4], &[1; 8], 0).unwrap();
    clear(&device);
    device.script(swallow);
    {
        let mut state = device.state();
        state.all_ones = true;
        state.vendor = 0xffff;
    }
    let error = map.update(&[1; 4], &[2; 8], 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ENODEV, "{error}");
    let started = Instant::now();
    for _ in 0..100 {
        let error = map.update(&[1; 4], &[2; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{error}");
        let error = map.lookup(&[1; 4], &mut [0; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{error}");
        let error = plain.lookup(&[1; 4], &mut [0; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{error}");
    }
    assert!(started.elapsed() < OP * 20, "{:?}", started.elapsed());
    assert_eq!(commands(&device), []);
    assert_eq!(stack.nic.recovery_stats().failed_resets, 0);
    // Its return is that of another device.
    {
        let mut state = device.state();
        state.all_ones = false;
        state.vendor = offmap_abi::regs::PCI_VENDOR_ID;
    }
    assert!(map.lookup(&[1; 4], &mut [0; 8], 0).is_err());
}

#[test]
fn those_who_wait_for_a_recovery_wait_no_longer_than_they_want() {
    const PATIENCE: Duration = Duration::from_millis(60);
    const SLOW: Duration = Duration::from_millis(600);
    let device = Scripted::new();
    device.script(honest);
    let driver = DriverConfig {
        op_timeout: OP,
        admin_timeout: SLOW,
        ..DriverConfig::default()
    };
    let recovery = Recovery {
        patience: PATIENCE,
        ..Recovery::default()
    };
    let stack = recovering(Arc::clone(&device), driver, Some(4), recovery);
    let map = stack.map(&attr(MapType::HASH, 8, 64), true);
    // Each thread has its queue pair before the device fails.
    let ready = Barrier::new(5);
    let failed = Barrier::new(5);
    let fail = || {
        // Whoever resets the function waits for IDENTIFY for as long as the settings allow.
        let mut state = device.state();
        state.fatal = 4;
        state.answers_admin = false;
        state.io = Box::new(swallow);
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                let (map, ready, failed) = (&map, &ready, &failed);
                scope.spawn(move || {
                    map.update(&[n; 4], &[1; 8], 0).unwrap();
                    ready.wait();
                    failed.wait();
                    let started = Instant::now();
                    let error = match n % 2 {
                        0 => map.update(&[n; 4], &[1; 8], 0).unwrap_err(),
                        _ => map.lookup(&[n; 4], &mut [0; 8], 0).unwrap_err(),
                    };
                    let known = [Errno::EIO, Errno::ENODEV, Errno::ETIMEDOUT];
                    assert!(known.contains(&error.errno()), "{error}");
                    started.elapsed()
                })
            })
            .collect();
        ready.wait();
        fail();
        failed.wait();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    took.sort_unstable();
    // One recovered; what it had begun it went through with.
    assert!(took[..3].iter().all(|t| *t < SLOW / 2), "{took:?}");
    assert!(took[3] < PATIENCE + 2 * SLOW, "{took:?}");
}

#[test]
fn a_nic_that_may_not_reset_leaves_it_to_others() {
    let device = Scripted::new();
    device.script(honest);
    let stack = over(
        &device,
        Recovery {
            reset_function: false,
            ..Recovery::default()
        },
    );
    let map = stack.map(&attr(MapType::HASH, 8, 16), true);
    map.update(&[1; 4], &[1; 8], 0).unwrap();
    device.state().fatal = 4;
    device.script(swallow);
    let error = map.lookup(&[1; 4], &mut [0; 8], 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ENODEV, "{error}");
    assert!(error.reason().contains("settings"), "{error}");
    device.script(honest);
    stack.driver.reset().unwrap();
    map.lookup(&[1; 4], &mut [0; 8], 0).unwrap();
    let stats = stack.nic.recovery_stats();
    assert_eq!((stats.function_resets, stats.maps_restored), (0, 1));
}
