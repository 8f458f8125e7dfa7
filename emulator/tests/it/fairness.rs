//! No queue starves another, and a step ends.

use crate::host::*;
use offmap_device_io::Function;

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
