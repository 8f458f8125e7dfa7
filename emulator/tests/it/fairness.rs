//! No queue starves another, and a step ends.

use crate::host::*;
use offmap_abi::admin::AbortBody;
use offmap_abi::{AdminOpcode, RequestId, Status, Submission};
use offmap_device_io::Function;
use offmap_emulator::faults::FaultPlan;
use offmap_emulator::{Inline, Turns};
use std::sync::atomic::Ordering;

#[test]
fn a_busy_queue_leaves_the_others_their_turn() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    // The queue that is looked at last is the one that stays favoured.
    let mut calm = host.create_queue(&mut admin, 1, 16, NONE, true);
    let mut busy = host.create_queue(&mut admin, 2, 256, NONE, true);
    let mut worst = 0;
    for round in 0..200 {
        calm.push(&nop(round));
        let mut steps = 0;
        while calm.poll().is_none() {
            while busy.sent - busy.taken < busy.depth {
                busy.push(&nop(0));
            }
            busy.publish(&*host.f);
            host.f.progress();
            while busy.poll().is_some() {}
            busy.publish_head(&*host.f);
            steps += 1;
            assert!(steps <= 10, "the calm queue starves");
        }
        calm.publish_head(&*host.f);
        worst = worst.max(steps);
    }
    assert!(worst > 1, "the busy queue was never favoured: {worst}");
    assert!(busy.taken > 10_000, "the busy queue was kept busy");
}

#[test]
fn a_step_is_bounded_even_if_the_ring_is_full() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 256, NONE, true);
    for i in 0..256 {
        q.push(&nop(i));
    }
    host.f.progress();
    let mut first = 0;
    while q.poll().is_some() {
        first += 1;
    }
    assert!((1..=64).contains(&first), "{first} commands in one step");
}

/// Entries are loaded ahead of their turn, on a device with a fault plan as on one without: it is one
/// loop. Shown by a host that changes an entry that is the device's already.
#[test]
fn a_fault_plan_leaves_the_look_ahead_as_it_is() {
    for plan in [None, Some(FaultPlan::new())] {
        let host = Host::new(inline());
        if let Some(plan) = &plan {
            host.f.set_faults(plan, 1).unwrap();
        }
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 1, 64, NONE, true);
        for i in 0..40 {
            q.push(&nop(i));
        }
        host.until("the first completion", || q.poll().is_some());
        // A turn is of 32 commands, and in it the one after them was loaded.
        while q.poll().is_some() {}
        assert_eq!(q.taken, 32, "one turn");
        let request_word = |entry: usize| entry * 64 + 8;
        let changed = |entry, id| {
            let at = request_word(entry);
            q.sq.memory.store_u64(at, id, Ordering::Release);
        };
        changed(32, 77);
        for expected in 32..40 {
            assert_eq!(host.take(&mut q).request().0, expected, "{plan:?}");
        }
    }
}

/// Commands of one queue keep their order and each is answered once, however small the turns.
#[test]
fn turns_of_any_size_answer_every_command() {
    for (step, favours) in [(1, 0), (1, 1), (33, 1024), (65_536, 0)] {
        let mut config = small();
        config.turns = Turns {
            step,
            favours,
            entries: 1,
        };
        let host = Host::new(Inline::new(config).unwrap());
        let mut admin = host.bring_up(16, NONE);
        let mut queues = [1, 2, 3].map(|id| host.create_queue(&mut admin, id, 64, NONE, true));
        for i in 0..64 {
            for q in &mut queues {
                q.push(&nop(i));
            }
        }
        for i in 0..64 {
            for q in &mut queues {
                assert_eq!(host.take(q).request().0, i, "step {step}");
            }
        }
        // A search through the ring an entry at a time, for what is not there.
        let body = AbortBody {
            request: 1.into(),
            queue: 1.into(),
            reserved: [0; 38],
        };
        let abort = Submission::new(AdminOpcode::Abort.0, RequestId(3), &body);
        assert_eq!(host.run(&mut admin, abort).status(), Status::NotFound);
    }
}
