//! Rule N4 on the driver's wait as it is (abi §10): who is about to sleep looks once more after he
//! asked for an interrupt. The device here raises none, as one may that posted before it was asked.

mod scripted;

use offmap_abi::{Completion, Status, Submission};
use offmap_device_io::Function;
use offmap_driver::{CompletionMode, Driver, DriverConfig, Notify, QueuePair, Token};
use scripted::{Memory, Queue, Scripted};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Commands that the device holds back.
type Held = Arc<Mutex<Vec<Submission>>>;

fn sleeper(
    notify: Notify,
    completion: CompletionMode,
) -> (Arc<Scripted>, QueuePair<Scripted>, Held) {
    let device = Scripted::new();
    device.state().vectors = 1;
    let config = DriverConfig {
        queue_depth: 8,
        notify,
        completion,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Arc::clone(&device), config).unwrap();
    let queue = driver.create_queue().unwrap();
    assert!(queue.has_interrupt());
    let held = Held::default();
    let holds = Arc::clone(&held);
    device.script(move |_, _, command| holds.lock().unwrap().push(command));
    (device, queue, held)
}

/// Posts what the device holds back, one command at each look at STATUS: that is the one thing that
/// a waiter does between his look at the ring and his going to sleep.
fn post_before_sleep(device: &Scripted, held: &Held) {
    let held = Arc::clone(held);
    let post = move |queues: &mut BTreeMap<u16, Queue>, memory: &Memory| {
        let mut held = held.lock().unwrap();
        if !held.is_empty() {
            let command = held.remove(0);
            let done = Completion::new(command.request(), Status::Success);
            queues.get_mut(&1).unwrap().complete(memory, done);
        }
    };
    device.state().at_status = Some(Box::new(post));
}

fn modes() -> Vec<(Notify, CompletionMode)> {
    let hybrid = CompletionMode::Hybrid {
        spin: Duration::from_micros(50),
    };
    let mut modes = Vec::new();
    for notify in [Notify::Block, Notify::Doorbell] {
        modes.push((notify, CompletionMode::Interrupt));
        modes.push((notify, hybrid));
    }
    modes
}

#[test]
fn nobody_sleeps_over_a_completion_that_came_before_he_asked() {
    for (notify, completion) in modes() {
        let (device, mut queue, held) = sleeper(notify, completion);
        post_before_sleep(&device, &held);
        assert!(queue.nop().unwrap().is_success());
        // Counted from the look at STATUS, with which the completion came.
        assert_eq!(device.state().sleeps, 0, "{notify:?} {completion:?}");
        assert!(queue.counters().sleeps > 0, "it slept before that");
    }
}

/// The completion that came is another's: it is set aside, and the wait goes on.
#[test]
fn another_commands_completion_is_taken_and_ends_no_wait() {
    for (notify, completion) in modes() {
        let (device, mut queue, held) = sleeper(notify, completion);
        post_before_sleep(&device, &held);
        let submit = |queue: &mut QueuePair<Scripted>| -> Token {
            let token = queue.write(&offmap_driver::Op::Nop).unwrap();
            queue.commit().unwrap();
            token
        };
        let first = submit(&mut queue);
        let second = submit(&mut queue);
        let done = queue.wait_for(second).unwrap();
        assert_eq!(done.status(), Status::Success);
        drop(done);
        assert_eq!(device.state().sleeps, 0, "{notify:?} {completion:?}");
        let done = queue.wait_for(first).unwrap();
        assert_eq!(done.status(), Status::Success);
    }
}

/// The same for those who sleep by their own means.
#[test]
fn no_interrupt_is_promised_for_a_completion_that_is_there() {
    for (notify, completion) in modes() {
        let (device, mut queue, held) = sleeper(notify, completion);
        assert!(!queue.request_interrupt().unwrap(), "nothing is in flight");
        queue.write(&offmap_driver::Op::Nop).unwrap();
        assert!(queue.request_interrupt().unwrap());
        device.progress();
        post_before_sleep(&device, &held);
        queue.driver().check_health().unwrap();
        assert!(!queue.request_interrupt().unwrap(), "{notify:?}");
        assert!(queue.poll().unwrap().is_some());
    }
}
