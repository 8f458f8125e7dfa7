//! What the simulation has found with faults, each without it: `docs/simulation.md` tells of them.

use offmap_abi::IoOpcode;
use offmap_driver::{BatchDone, Function, Op, Status};
use offmap_emulator::faults::{Behaviour, Command, Delay, FaultPlan, Rule, Site};
use offmap_tests::faults::{Rig, value_of};

const SEED: u64 = 3;

fn plan(rule: Rule) -> FaultPlan {
    FaultPlan::new().with(rule).unwrap()
}

/// Abi §7.2: a DMA fault ends a batch, and its count of elements has had its effect. That may be all
/// of them, where only their statuses could not be written.
#[test]
fn a_batch_may_fail_with_all_of_its_elements_done() {
    let mut rig = Rig::new(8);
    let batch = Command::Io(IoOpcode::BatchUpdate);
    let rule = Rule::new(Site::DmaWrite, Behaviour::Fail).of(batch).nth(1);
    rig.faults(&plan(rule), SEED);
    let keys: Vec<u64> = (500..504).collect();
    let packed: Vec<u8> = keys.iter().flat_map(|k| k.to_le_bytes()).collect();
    let values: Vec<u8> = keys.iter().flat_map(|k| value_of(*k, 8)).collect();
    let done = rig.queue.update_batch(&rig.map, &packed, &values, 0);
    let expected = BatchDone {
        count: 4,
        status: Status::DmaFault,
    };
    assert_eq!(done.unwrap(), expected);
    assert!(!rig.queue.is_dead());
    for key in keys {
        let mut value = [0; 8];
        let found = rig.queue.lookup(&rig.map, &key.to_le_bytes(), &mut value);
        assert_eq!(found.unwrap(), Status::Success);
        assert_eq!(value[..], value_of(key, 8)[..]);
    }
}

/// A fault that befalls the device in the turn of the queue that last had work is carried out in
/// that step, and a reset ends it.
#[test]
fn a_reset_ends_what_befell_the_device_before() {
    for behaviour in [Behaviour::StopFirmware, Behaviour::Fatal, Behaviour::Reset] {
        let mut rig = Rig::new(8);
        // The queue is the favoured one from here on.
        assert_eq!(rig.queue.nop().unwrap(), Status::Success);
        rig.faults(&plan(Rule::new(Site::Fetch, behaviour).nth(1)), SEED);
        rig.queue.submit(&Op::Nop).unwrap();
        rig.driver.function().progress();
        assert_eq!(rig.report().rules[0].injected, 1);
        let reset = rig.driver.reset();
        assert!(reset.is_ok(), "{behaviour}: {reset:?}");
        assert!(rig.driver.check_health().is_ok(), "{behaviour}");
    }
}

/// Steps are counted anew with each plan; what the one before held back is no later for that.
#[test]
fn a_new_plan_puts_nothing_off() {
    let mut rig = Rig::new(8);
    let late = Behaviour::Delay(Delay::Steps(50));
    rig.faults(&plan(Rule::new(Site::Complete, late).nth(1)), SEED);
    for _ in 0..5000 {
        rig.driver.function().progress();
    }
    rig.queue.submit(&Op::Nop).unwrap();
    while rig.report().injections.is_empty() {
        rig.driver.function().progress();
    }
    rig.faults(&FaultPlan::new(), SEED);
    let polls = (0..1000).position(|_| rig.queue.poll().unwrap().is_some());
    assert!(polls.is_some_and(|polls| polls < 200), "{polls:?}");
}

/// Commands that are never answered keep their places in the completion ring, and the places of those
/// that are answered may be the last ones: a host that only polls gives them back, too.
#[test]
fn commands_that_are_lost_do_not_keep_the_others_from_running() {
    let mut rig = Rig::new(8);
    let depth = rig.queue.depth();
    let lost = depth as u64 - 1;
    let rule = Rule::new(Site::Complete, Behaviour::Drop).times(lost);
    rig.faults(&plan(rule), SEED);
    for _ in 0..lost {
        rig.queue.submit(&Op::Nop).unwrap();
    }
    assert!((0..1000).all(|_| rig.queue.poll().unwrap().is_none()));
    assert_eq!(rig.report().rules[0].injected, lost);
    for round in 0..2 * depth {
        let token = rig.queue.submit(&Op::Nop).unwrap();
        let mut answered = None;
        for _ in 0..1000 {
            if let Some(finished) = rig.queue.poll().unwrap() {
                answered = Some(finished.token());
                break;
            }
        }
        assert_eq!(answered, Some(token), "round {round}");
    }
}
