//! Cancel, deadlines, queues that fail, resets and removal.

use super::{Bench, attr, device, driver, failed, n_key, refused, value_of};
use offmap_bpf::{ElementOp, Errno, MapType};
use offmap_driver::DriverConfig;
use offmap_emulator::Inline;
use offmap_emulator::faults::{Behaviour, FaultPlan, Rule, Site};
use offmap_offload::asynchronous::{Failure, Outcome};
use offmap_tests::faults::{ADMIN_TIMEOUT, Clocked, OP_TIMEOUT, Sim};

/// With a clock of its own, which goes on by looks at it.
fn clocked() -> Bench<Sim> {
    let config = DriverConfig {
        op_timeout: OP_TIMEOUT,
        admin_timeout: ADMIN_TIMEOUT,
        ..driver()
    };
    let b = Bench::over(Clocked::new(Inline::new(device()).unwrap()), config);
    for n in 0..40 {
        b.file.update(&n_key(n), &value_of(n), 0).unwrap();
    }
    b
}

fn plan(b: &Bench<Sim>, rules: impl IntoIterator<Item = Rule>) {
    let plan = rules
        .into_iter()
        .fold(FaultPlan::new(), |plan, rule| plan.with(rule).unwrap());
    b.stack.function.inner.set_faults(&plan, 1).unwrap();
}

fn update(key: u32, value: u32) -> (/* key */ [u8; 4], /* value */ [u8; 40]) {
    (n_key(key), value_of(value))
}

#[track_caller]
fn unknown(outcome: Outcome) -> Errno {
    match outcome {
        Err(Failure::Unknown(error)) => error.errno(),
        other => panic!("{other:?} is not unknown"),
    }
}

#[track_caller]
fn not_begun(outcome: Outcome) -> Errno {
    match outcome {
        Err(Failure::NotBegun(error)) => error.errno(),
        other => panic!("{other:?} is something that was begun"),
    }
}

fn stored(b: &Bench<Sim>, key: u32) -> Vec<u8> {
    let mut value = vec![0; 40];
    b.file.lookup(&n_key(key), &mut value, 0).unwrap();
    value
}

/// Has the device do nothing for so many steps.
fn asleep(b: &Bench<Sim>, steps: u32) {
    plan(
        b,
        [Rule::new(Site::Fetch, Behaviour::Slow { steps }).times(1)],
    );
    // Its fetch is the one that is slow, and what comes after it waits.
    assert_eq!(stored(b, 0), value_of(0));
}

#[test]
fn what_is_cancelled_before_it_began_has_no_effect() {
    let b = clocked();
    asleep(&b, 50);
    let (key, value) = update(1, 100);
    let op = ElementOp::Update {
        key: &key,
        value: &value,
        flags: 0,
    };
    let other = n_key(2);
    let before: Vec<_> = (0..20)
        .map(|_| b.map.submit(&ElementOp::Lookup { key: &other }).unwrap())
        .collect();
    let mut held = b.map.submit(&op).unwrap();
    assert_eq!(held.poll(), None);
    assert_eq!(held.cancel(), Ok(true));
    assert_eq!(not_begun(held.wait()), Errno::ECANCELED);
    for ticket in before {
        assert_eq!(ticket.wait(), Ok(value_of(2).to_vec()));
    }
    assert_eq!(stored(&b, 1), value_of(1));
    // What has ended cannot be cancelled, and says how it ended.
    let mut done = b.map.submit(&op).unwrap();
    while b.queue.load().in_flight > 0 {
        b.queue.process();
    }
    assert_eq!(done.cancel(), Ok(false));
    assert_eq!(done.wait(), Ok(Vec::new()));
    assert_eq!(stored(&b, 1), value_of(100));
    b.idle();
}

#[test]
fn operations_that_the_device_has_not_begun_end_at_their_deadline() {
    let b = clocked();
    asleep(&b, 2500);
    let writes: Vec<_> = (0..40).map(|n| update(n, 100 + n)).collect();
    let begun = b.stack.function.time();
    let tickets: Vec<_> = writes
        .iter()
        .map(|(key, value)| {
            let flags = 0;
            b.map
                .submit(&ElementOp::Update { key, value, flags })
                .unwrap()
        })
        .collect();
    let outcomes: Vec<Outcome> = tickets.into_iter().map(|ticket| ticket.wait()).collect();
    let took = b.stack.function.time() - begun;
    assert!(
        (OP_TIMEOUT..OP_TIMEOUT + ADMIN_TIMEOUT).contains(&took),
        "{took:?}"
    );
    let mut ended = 0;
    for (n, outcome) in (0..40).zip(outcomes) {
        match outcome {
            Ok(_) => assert_eq!(stored(&b, n), value_of(100 + n)),
            outcome => {
                assert_eq!(not_begun(outcome), Errno::ETIMEDOUT);
                assert_eq!(stored(&b, n), value_of(n));
                ended += 1;
            }
        }
    }
    assert!((1..40).contains(&ended), "{ended} of 40 were ended");
    let stats = b.stack.nic.stats().driver.total().unwrap();
    assert!(stats.events.aborts >= ended, "{stats:?}");
    b.idle();
}

#[test]
fn a_lost_completion_makes_a_write_unknown_and_a_read_fail_and_costs_the_queue() {
    let b = clocked();
    plan(&b, [Rule::new(Site::Complete, Behaviour::Drop).times(2)]);
    let (key, value) = update(3, 100);
    let write = b.map.submit(&ElementOp::Update {
        key: &key,
        value: &value,
        flags: 0,
    });
    let read = b.map.submit(&ElementOp::Lookup { key: &key }).unwrap();
    let begun = b.stack.function.time();
    let mut write = write.unwrap();
    let outcome = loop {
        if let Some(outcome) = write.poll() {
            break outcome;
        }
    };
    unknown(outcome);
    let took = b.stack.function.time() - begun;
    let bound = OP_TIMEOUT + ADMIN_TIMEOUT * 2;
    assert!((OP_TIMEOUT..bound).contains(&took), "{took:?}");
    // Once.
    assert_eq!(write.poll(), Some(Err(Failure::Taken)));
    failed(read.wait());
    // Old or new, and the next operation is on another queue pair.
    let now = b
        .map
        .submit(&ElementOp::Lookup { key: &key })
        .unwrap()
        .wait();
    let now = now.unwrap();
    assert!(now == value_of(3) || now == value, "{now:?}");
    let stats = b.stack.nic.stats();
    let queues: Vec<_> = stats
        .driver
        .queues
        .iter()
        .filter(|q| q.pairs == 2)
        .collect();
    let [queue] = queues[..] else {
        panic!("{stats:?}");
    };
    let sum = |of: fn(&offmap_driver::OpStats) -> u64| queue.operations.iter().map(of).sum::<u64>();
    assert_eq!(sum(|op| op.submitted), 3);
    assert_eq!(sum(|op| op.completed()), 1);
    assert_eq!(sum(|op| op.unanswered), 2);
    assert_eq!(stats.recovery.queue_failures, 1);
    b.idle();
}

#[test]
fn a_reset_ends_everything_once_and_the_queue_goes_on_with_new_maps() {
    let b = clocked();
    let keys: Vec<[u8; 4]> = (0..8).map(n_key).collect();
    let tickets: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| {
            let op = match i % 2 {
                0 => ElementOp::Delete { key },
                _ => ElementOp::Lookup { key },
            };
            (i, b.map.submit(&op).unwrap())
        })
        .collect();
    b.stack.driver.reset().unwrap();
    for (i, mut ticket) in tickets {
        let outcome = ticket.poll().unwrap();
        match i % 2 {
            0 => assert_eq!(unknown(outcome), Errno::ENODEV),
            _ => assert_eq!(failed(outcome), Errno::ENODEV),
        }
        assert_eq!(ticket.poll(), Some(Err(Failure::Taken)));
    }
    let gone = b.map.submit(&ElementOp::Lookup { key: &keys[1] });
    assert_eq!(refused(gone), Errno::ENODEV);
    let file = b.stack.map(&attr(MapType::HASH, 4, 40), true);
    let map = b.queue.open(&file).unwrap();
    let (key, value) = update(1, 2);
    let write = ElementOp::Update {
        key: &key,
        value: &value,
        flags: 0,
    };
    assert_eq!(map.submit(&write).unwrap().wait(), Ok(Vec::new()));
    assert_eq!(
        map.submit(&ElementOp::Lookup { key: &key }).unwrap().wait(),
        Ok(value.to_vec())
    );
    b.idle();
}

#[test]
fn a_device_that_goes_takes_its_operations_with_it() {
    // Pulled out: the operation in flight ends, and what comes later does at once.
    let b = clocked();
    plan(&b, [Rule::new(Site::Fetch, Behaviour::Unplug).times(1)]);
    let key = n_key(1);
    let outcome = b
        .map
        .submit(&ElementOp::Delete { key: &key })
        .unwrap()
        .wait();
    assert_eq!(unknown(outcome), Errno::ENODEV);
    let later = b.map.submit(&ElementOp::Lookup { key: &key });
    assert_eq!(refused(later), Errno::ENODEV);

    // Taken off its network device: its maps are freed under what is in flight.
    let b = clocked();
    let reading = b.map.submit(&ElementOp::Lookup { key: &key }).unwrap();
    b.stack.system.unregister_netdev(b.stack.ifindex).unwrap();
    b.stack.system.flush_frees();
    match reading.wait() {
        Ok(value) => assert_eq!(value, value_of(1)),
        outcome => assert_eq!(failed(outcome), Errno::ENODEV),
    }
    let later = b.map.submit(&ElementOp::Lookup { key: &key });
    assert_eq!(refused(later), Errno::ENODEV);
    let again = b.queue.open(&b.file).unwrap_err();
    assert_eq!(again.errno(), Errno::ENODEV);
    b.idle();
}

#[test]
fn a_stopped_firmware_is_reset_and_the_queue_lives() {
    let b = clocked();
    plan(
        &b,
        [Rule::new(Site::Fetch, Behaviour::StopFirmware).times(1)],
    );
    let key = n_key(1);
    let outcome = b
        .map
        .submit(&ElementOp::Delete { key: &key })
        .unwrap()
        .wait();
    unknown(outcome);
    plan(&b, []);
    // Its admin queue did not answer, which asks for a reset of the function: whoever submits next
    // does it. Maps without a journal are gone then.
    let later = b.map.submit(&ElementOp::Lookup { key: &key });
    assert_eq!(refused(later), Errno::ENODEV);
    let file = b.stack.map(&attr(MapType::HASH, 4, 40), true);
    let map = b.queue.open(&file).unwrap();
    let missing = map.submit(&ElementOp::Lookup { key: &key }).unwrap().wait();
    assert_eq!(failed(missing), Errno::ENOENT);
    let stats = b.stack.nic.stats();
    assert_eq!(
        (stats.driver.resets, stats.recovery.function_resets),
        (1, 1)
    );
    b.idle();
}
