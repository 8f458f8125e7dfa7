//! Queue commands and the rules of the rings, with everything that may be wrong about them.

use crate::host::*;
use offmap_abi::admin::{AbortBody, QueueDeleteBody};
use offmap_abi::notify::{NOTIFY_CQ_HEAD, NOTIFY_SQ_TAIL, cq_doorbell, sq_doorbell};
use offmap_abi::regs::{self, DeviceStatus, FatalCause};
use offmap_abi::{AdminOpcode, Completion, QueueId, RequestId, Status, Submission};
use offmap_device_io::{Function, Iova};
use offmap_emulator::{DeviceConfig, Inline};
use std::sync::atomic::Ordering;

fn delete(host: &Host<Inline>, admin: &mut Queue, id: u16) -> Completion {
    let body = QueueDeleteBody {
        queue: id.into(),
        reserved: [0; 46],
    };
    let s = Submission::new(AdminOpcode::QueueDelete.0, RequestId(8), &body);
    host.run(admin, s)
}

fn abort_command(queue: u16, request: u64) -> Submission {
    let body = AbortBody {
        request: request.into(),
        queue: queue.into(),
        reserved: [0; 38],
    };
    Submission::new(AdminOpcode::Abort.0, RequestId(1000), &body)
}

#[test]
fn every_field_of_queue_create_is_checked() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut create = |change: &dyn Fn(&mut offmap_abi::admin::QueueCreateBody)| {
        let q = host.queue(QueueId(1), 16, true);
        let mut body = Host::<Inline>::create_body(&q, NONE);
        change(&mut body);
        let s = Submission::new(AdminOpcode::QueueCreate.0, RequestId(2), &body);
        host.run(&mut admin, s).status()
    };
    for id in [0u16, 5, 63, 64, u16::MAX] {
        assert_eq!(create(&|b| b.queue = id.into()), Status::InvalidQueue);
    }
    for depth in [0u32, 1, 3, 24, 512, 1 << 31, u32::MAX] {
        assert_eq!(create(&|b| b.depth = depth.into()), Status::InvalidField);
    }
    for vector in [5u32, 1 << 31, NONE - 1] {
        assert_eq!(create(&|b| b.vector = vector.into()), Status::InvalidField);
    }
    for low in [1u64, 8, 64, 2048] {
        assert_eq!(
            create(&|b| b.sq = (b.sq.get() + low).into()),
            Status::InvalidField
        );
        assert_eq!(
            create(&|b| b.cq = (b.cq.get() + low).into()),
            Status::InvalidField
        );
    }
    for low in [1u64, 8, 32] {
        assert_eq!(
            create(&|b| b.notify = (b.notify.get() + low).into()),
            Status::InvalidField
        );
    }
    for iova in [0x9_0000_0000, u64::MAX - 4095, 1 << 48] {
        assert_eq!(create(&|b| b.sq = iova.into()), Status::DmaFault);
        assert_eq!(create(&|b| b.cq = iova.into()), Status::DmaFault);
        assert_eq!(create(&|b| b.notify = iova.into()), Status::DmaFault);
    }
    // The ring is one page; 128 entries would need two.
    assert_eq!(create(&|b| b.depth = 128.into()), Status::DmaFault);
    let at_the_end = |b: &mut offmap_abi::admin::QueueCreateBody| {
        b.notify = (b.notify.get() + 4096 - 64).into();
    };
    assert_eq!(create(&at_the_end), Status::DmaFault, "the block's end");
    assert_eq!(create(&|_| {}), Status::Success);
    assert_eq!(create(&|_| {}), Status::InvalidQueue, "it exists");
    for id in [0u16, 2, 5, u16::MAX] {
        assert_eq!(delete(&host, &mut admin, id).status(), Status::InvalidQueue);
        let c = host.run(&mut admin, abort_command(id, 1));
        assert_eq!(c.status(), Status::InvalidQueue);
    }
    assert_eq!(delete(&host, &mut admin, 1).status(), Status::Success);
    assert_eq!(delete(&host, &mut admin, 1).status(), Status::InvalidQueue);
}

#[test]
fn an_id_is_usable_again_after_delete_whatever_its_doorbells_held() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    for round in 0..3 {
        let mut q = host.create_queue(&mut admin, 1, 4, NONE, false);
        for i in 0..7 + round {
            host.run(&mut q, nop(i));
        }
        assert_eq!(delete(&host, &mut admin, 1).status(), Status::Success);
    }
}

#[test]
fn delete_completes_what_was_published_as_aborted() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 8, 2, true);
    let irq = enable(&*host.f, 2);
    q.arm_interrupt(0);
    // The admin queue is looked at first, so that the delete overtakes these.
    for i in 0..5 {
        q.push(&nop(i));
    }
    q.publish(&*host.f);
    assert_eq!(delete(&host, &mut admin, 1).status(), Status::Success);
    for i in 0..5 {
        let c = q.poll().unwrap();
        assert_eq!((c.request().0, c.status()), (i, Status::Aborted));
    }
    assert!(irq.take().unwrap());
    q.push(&nop(9));
    q.publish(&*host.f);
    for _ in 0..10 {
        host.f.progress();
    }
    assert!(q.poll().is_none(), "nobody serves it");
}

#[test]
fn delete_posts_no_more_than_the_ring_has_room_for() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 4, NONE, true);
    for i in 0..4 {
        q.push(&nop(i));
    }
    q.publish(&*host.f);
    host.until("four completions", || {
        q.cq.memory.load_u64(3 * 64, Ordering::Acquire) & offmap_abi::submission::PHASE_BIT != 0
    });
    let before: Vec<u64> = (0..32)
        .map(|w| q.cq.memory.load_u64(w * 8, Ordering::Relaxed))
        .collect();
    // None of the four is acknowledged; this overruns the protocol's bound on purpose.
    q.taken = 4;
    q.push(&nop(4));
    q.publish(&*host.f);
    for _ in 0..100 {
        host.f.progress();
    }
    assert_eq!(delete(&host, &mut admin, 1).status(), Status::Success);
    let after: Vec<u64> = (0..32)
        .map(|w| q.cq.memory.load_u64(w * 8, Ordering::Relaxed))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn abort_reaches_what_is_published_and_not_fetched() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 8, NONE, true);
    host.run(&mut q, nop(1));
    // The queue that last had work is served first: let that be the admin queue.
    host.run(&mut admin, abort_command(1, 1));
    for i in 10..16 {
        q.push(&nop(i));
    }
    q.publish(&*host.f);
    for request in [12, 14, 12, 99, 1] {
        admin.push(&abort_command(1, request));
    }
    admin.publish(&*host.f);
    let (ok, aborted) = (Status::Success, Status::Aborted);
    for expected in [ok, ok, ok, Status::NotFound, Status::NotFound] {
        assert_eq!(host.take(&mut admin).status(), expected);
    }
    for request in 10..16 {
        let c = host.take(&mut q);
        let expected = if request % 2 == 0 && request > 10 {
            aborted
        } else {
            ok
        };
        assert_eq!((c.request().0, c.status()), (request, expected));
    }
    // The same ids are not aborted a second time.
    assert_eq!(host.run(&mut q, nop(12)).status(), ok);
}

#[test]
fn completions_wait_for_room() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    for notify in [false, true] {
        let id = 1 + u16::from(notify);
        let mut q = host.create_queue(&mut admin, id, 4, NONE, notify);
        for i in 0..4 {
            q.push(&nop(i));
        }
        q.publish(&*host.f);
        for _ in 0..10 {
            host.f.progress();
        }
        for i in 0..4 {
            assert_eq!(q.poll().unwrap().request().0, i);
        }
        q.push(&nop(4));
        q.publish(&*host.f);
        for _ in 0..10 {
            host.f.progress();
        }
        assert!(
            q.poll().is_none(),
            "the device does not know of the room yet"
        );
        q.publish_head(&*host.f);
        assert_eq!(host.take(&mut q).request().0, 4);
    }
}

#[test]
fn entries_are_taken_by_phase_before_the_tail_covers_them() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 4, NONE, true);
    for i in 0..11 {
        q.push(&nop(i));
        assert_eq!(host.take(&mut q).request().0, i);
    }
    q.publish(&*host.f);
    q.push(&nop(11));
    assert_eq!(host.take(&mut q).request().0, 11);
    assert!(host.status().contains(DeviceStatus::READY));
}

type Break = fn(&Host<Inline>, &mut Queue);

/// What a host can do to a queue with a notify block, and to one with doorbells, and whether
/// that is a matter of DMA.
const BREAKS: [(Break, bool, bool); 10] = [
    // A tail that covers an entry which was never published.
    (|_, q| tail(q, q.sent + 1), true, false),
    (|_, q| tail(q, q.sent + q.depth), true, false),
    (|_, q| tail(q, q.sent + q.depth + 1), true, false),
    (|_, q| tail(q, q.sent + (1 << 31) - 1), true, false),
    // A head beyond what was posted; it is looked at when the ring seems full.
    (
        |_, q| {
            let n = q.notify.as_ref().unwrap();
            n.memory.store_u64(NOTIFY_CQ_HEAD, 1000, Ordering::Release);
            for i in 0..4 {
                q.push(&nop(i));
            }
        },
        true,
        false,
    ),
    (
        |h, q| {
            h.f.dma_unmap(Iova(q.notify.as_ref().unwrap().iova), 4096)
                .unwrap()
        },
        true,
        true,
    ),
    (
        |h, q| h.write64(sq_doorbell(q.id), (q.sent + 1).into()),
        false,
        false,
    ),
    (
        |h, q| h.write64(sq_doorbell(q.id), 0x7fff_ffff),
        false,
        false,
    ),
    (
        |h, q| h.f.dma_unmap(Iova(q.sq.iova), 4096).unwrap(),
        false,
        true,
    ),
    (
        |h, q| {
            h.f.dma_unmap(Iova(q.cq.iova), 4096).unwrap();
            q.push(&nop(1));
        },
        false,
        true,
    ),
];

/// Long enough for a look at the tail, which is not part of every poll.
fn run_a_while(host: &Host<Inline>) {
    for _ in 0..200 {
        host.f.progress();
    }
}

#[test]
fn a_broken_io_queue_stops_alone() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut other = host.create_queue(&mut admin, 1, 4, NONE, true);
    for (i, (spoil, with_block, _)) in BREAKS.into_iter().enumerate() {
        let mut q = host.create_queue(&mut admin, 3, 4, NONE, with_block);
        for n in 0..5 {
            host.run(&mut q, nop(n));
        }
        spoil(&host, &mut q);
        run_a_while(&host);
        assert_eq!(host.status(), DeviceStatus::READY, "case {i}");
        assert_eq!(host.read32(regs::FATAL_CAUSE), 0, "case {i}");
        for n in 0..9 {
            assert_eq!(host.run(&mut other, nop(n)).status(), Status::Success);
        }
        for request in [1, 77] {
            let c = host.run(&mut admin, abort_command(3, request));
            assert_eq!(c.status(), Status::QueueStopped, "case {i}");
        }
        // With everything in order again it stays stopped, and untouched.
        for m in [Some(&q.sq), Some(&q.cq), q.notify.as_ref()]
            .into_iter()
            .flatten()
        {
            let _ = host.f.dma_map(&m.memory, Iova(m.iova));
        }
        let before = contents(&q);
        for n in q.sent - q.taken..q.depth {
            q.push(&nop(n.into()));
        }
        let after_push = contents(&q);
        run_a_while(&host);
        assert_eq!(delete(&host, &mut admin, 3).status(), Status::Success);
        run_a_while(&host);
        assert_eq!(contents(&q), after_push, "case {i}");
        assert_eq!(contents(&q)[1..], before[1..], "case {i}");
        let mut again = host.create_queue(&mut admin, 3, 4, NONE, with_block);
        host.run(&mut again, nop(1));
        assert_eq!(delete(&host, &mut admin, 3).status(), Status::Success);
    }
}

/// Submission ring, completion ring and notify block as they are.
fn contents(q: &Queue) -> [Vec<u64>; 3] {
    let all = |m: &Mapped| {
        (0..m.memory.len())
            .step_by(8)
            .map(|at| m.memory.load_u64(at, Ordering::Acquire))
            .collect()
    };
    [
        all(&q.sq),
        all(&q.cq),
        q.notify.as_ref().map(all).unwrap_or_default(),
    ]
}

#[test]
fn a_broken_admin_queue_is_fatal_by_cause_until_enable_is_cleared() {
    let host = Host::new(inline());
    for (i, (spoil, with_block, by_dma)) in BREAKS.into_iter().enumerate() {
        if with_block {
            continue;
        }
        for reset in [false, true] {
            let mut admin = host.bring_up(4, NONE);
            let mut q = host.create_queue(&mut admin, 3, 4, NONE, true);
            host.run(&mut q, nop(1));
            spoil(&host, &mut admin);
            run_a_while(&host);
            let cause = if by_dma {
                FatalCause::RingDma
            } else {
                FatalCause::RingProtocol
            };
            assert_eq!(host.status(), DeviceStatus::FATAL, "case {i}");
            assert_eq!(host.read32(regs::FATAL_CAUSE), cause.0, "case {i}");
            q.push(&nop(5));
            q.publish(&*host.f);
            run_a_while(&host);
            assert!(q.poll().is_none(), "all queues are stopped");
            let forgotten = host.read32(regs::RESET_COUNT);
            if reset {
                host.f.reset().unwrap();
                host.command(0x6);
            } else {
                host.write32(regs::CONTROL, 0);
            }
            assert_eq!(host.status(), DeviceStatus::empty(), "case {i}");
            assert_eq!(host.read32(regs::FATAL_CAUSE), 0, "case {i}");
            assert_eq!(host.read32(regs::RESET_COUNT), forgotten + 1);
            let mut admin = host.bring_up(4, NONE);
            host.identify(&mut admin);
            host.write32(regs::CONTROL, 0);
            host.write32(regs::CONTROL, 0);
            assert_eq!(
                host.read32(regs::RESET_COUNT),
                forgotten + 2,
                "clearing what is clear forgets nothing"
            );
        }
    }
}

#[test]
fn completions_posted_before_a_queue_stops_are_announced() {
    for (vector, with_block) in [(2, true), (3, false)] {
        let host = Host::new(inline());
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 1, 8, vector, with_block);
        let irq = enable(&*host.f, vector);
        if with_block {
            q.arm_interrupt(0);
        }
        for i in 0..3 {
            q.push(&nop(i));
        }
        // The ring's depth is exceeded; the burst finds it out after the third command.
        match with_block {
            true => tail(&q, 100),
            false => host.write64(sq_doorbell(q.id), 100),
        }
        run_a_while(&host);
        for i in 0..3 {
            assert_eq!(q.poll().unwrap().request().0, i);
        }
        assert!(irq.take().unwrap());
        let c = host.run(&mut admin, abort_command(1, 9));
        assert_eq!(c.status(), Status::QueueStopped);
    }
}

#[test]
fn reserved_fields_and_flags_of_queue_commands_are_refused() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let q = host.queue(QueueId(1), 16, true);
    let create = Host::<Inline>::create_body(&q, NONE);
    let create = Submission::new(AdminOpcode::QueueCreate.0, RequestId(2), &create);
    let body = QueueDeleteBody {
        queue: 1.into(),
        reserved: [0; 46],
    };
    let delete = Submission::new(AdminOpcode::QueueDelete.0, RequestId(3), &body);
    let abort = abort_command(1, 5);
    // Reserved bytes of the operands, by command; flags and map of the header for all.
    type Case = (Submission, &'static [usize], Status);
    let cases: [Case; 3] = [
        (create, &[2, 3, 12, 15, 40, 47], Status::Success),
        (abort, &[10, 30, 47], Status::NotFound),
        (delete, &[2, 30, 47], Status::Success),
    ];
    for (good, reserved, expected) in cases {
        let mut refused = |change: &dyn Fn(&mut Submission)| {
            let mut s = good;
            change(&mut s);
            assert_eq!(host.run(&mut admin, s).status(), Status::InvalidField);
        };
        for &at in reserved {
            refused(&|s| s.body[at] = 1);
        }
        for bit in 0..8 {
            refused(&|s| s.flags = 1 << bit);
        }
        refused(&|s| s.map = 1.into());
        assert_eq!(host.run(&mut admin, good).status(), expected);
    }
}

#[test]
fn the_latest_abort_of_an_entry_counts() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 8, NONE, true);
    host.run(&mut q, nop(1));
    // The admin queue is served first and alone for a while: it has work.
    host.run(&mut admin, abort_command(1, 1));
    q.push(&nop(10));
    q.push(&nop(11));
    admin.push(&abort_command(1, 11));
    admin.publish(&*host.f);
    host.f.progress();
    assert_eq!(host.take_now(&mut admin).status(), Status::Success);
    // The host puts another request where it was, as it may not.
    let at = 2 * 64;
    q.sq.memory.store_u64(at + 8, 12, Ordering::Release);
    admin.push(&abort_command(1, 12));
    admin.publish(&*host.f);
    host.f.progress();
    assert_eq!(host.take_now(&mut admin).status(), Status::Success);
    q.publish(&*host.f);
    assert_eq!(host.take(&mut q).status(), Status::Success);
    let c = host.take(&mut q);
    assert_eq!((c.request().0, c.status()), (12, Status::Aborted));
}

#[test]
fn thousands_of_aborts_take_effect_and_no_step_is_long() {
    let depth = 32768;
    let config = DeviceConfig {
        queue_depth_max: depth,
        ..small()
    };
    let host = Host::new(Inline::new(config).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, depth, NONE, true);
    for i in 0..depth {
        q.push(&nop(i.into()));
    }
    // From the far end, so that the search is long: while it lasts the queue goes on.
    let victim = u64::from(depth) - 1;
    admin.push(&abort_command(1, victim));
    admin.publish(&*host.f);
    let mut steps = 0;
    while admin.poll().is_none() {
        host.f.progress();
        steps += 1;
    }
    assert!(steps > 16, "all of the ring in {steps} steps");
    let mut done = 0;
    while done < depth {
        host.f.progress();
        while let Some(c) = q.poll() {
            let expected = if c.request().0 == victim {
                Status::Aborted
            } else {
                Status::Success
            };
            assert_eq!(c.status(), expected, "{:?}", c.request());
            done += 1;
        }
    }
    // Deleted with all of it waiting: in pieces, too.
    q.publish_head(&*host.f);
    for i in 0..depth {
        q.push(&nop(i.into()));
    }
    let body = QueueDeleteBody {
        queue: 1.into(),
        reserved: [0; 46],
    };
    admin.publish_head(&*host.f);
    admin.push(&Submission::new(
        AdminOpcode::QueueDelete.0,
        RequestId(8),
        &body,
    ));
    admin.publish(&*host.f);
    let mut steps = 0;
    while admin.poll().is_none() {
        host.f.progress();
        steps += 1;
    }
    assert!(steps > 16, "all of the ring in {steps} steps");
    for i in 0..depth {
        let c = q.poll().expect("a completion for each");
        assert_eq!(c.request().0, u64::from(i));
        // The queue had the first turns.
        assert!([Status::Success, Status::Aborted].contains(&c.status()));
        assert!(i < depth / 2 || c.status() == Status::Aborted);
    }
}

#[test]
fn every_queue_that_there_are_doorbells_for_can_be_used() {
    let config = DeviceConfig {
        queue_pairs: 1023,
        ..small()
    };
    let host = Host::new(Inline::new(config).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut queues: Vec<_> = (1..=1023)
        .map(|id| host.create_queue(&mut admin, id, 2, NONE, id % 2 == 0))
        .collect();
    for round in 0..3 {
        for q in &mut queues {
            q.push(&nop(round));
            q.publish(&*host.f);
        }
        for q in &mut queues {
            assert_eq!(host.take(q).request().0, round);
        }
    }
    for id in (1..=1023).rev() {
        assert_eq!(delete(&host, &mut admin, id).status(), Status::Success);
    }
}

#[test]
fn a_wrong_phase_is_noticed_within_a_bounded_number_of_polls() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let q = host.create_queue(&mut admin, 1, 8, NONE, true);
    tail(&q, 1);
    let mut polls = 0;
    loop {
        let c = host.run(&mut admin, abort_command(1, 1));
        if c.status() == Status::QueueStopped {
            break;
        }
        host.f.progress();
        polls += 1;
        assert!(polls < 200, "never noticed");
    }
}

fn tail(q: &Queue, value: u32) {
    let n = q.notify.as_ref().unwrap();
    n.memory
        .store_u64(NOTIFY_SQ_TAIL, value.into(), Ordering::Release);
}

#[test]
fn a_tail_behind_says_nothing() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 4, NONE, true);
    for n in 0..5 {
        host.run(&mut q, nop(n));
    }
    for behind in [1u32, 4, 5, 100, 1 << 31] {
        tail(&q, q.sent.wrapping_sub(behind));
        for _ in 0..4 {
            host.f.progress();
        }
        host.run(&mut q, nop(6));
    }
    // The high half of a count word is not looked at.
    let n = q.notify.as_ref().unwrap();
    let word = u64::from(q.sent) | 0xffff_ffff << 32;
    n.memory.store_u64(NOTIFY_SQ_TAIL, word, Ordering::Release);
    host.write64(cq_doorbell(QueueId(1)), u64::MAX);
    host.f.progress();
    host.run(&mut q, nop(7));
}

#[test]
fn a_ring_may_lie_across_adjacent_mappings() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    // 128 entries: two pages, each a mapping of its own.
    let base = 0x4000_0000u64;
    let pages: Vec<_> = (0..4).map(|_| buffer(4096)).collect();
    for (i, p) in pages.iter().enumerate() {
        host.f.dma_map(p, Iova(base + i as u64 * 4096)).unwrap();
    }
    let mut body = Host::<Inline>::create_body(&host.queue(QueueId(1), 128, false), NONE);
    body.sq = base.into();
    body.cq = (base + 8192).into();
    let s = Submission::new(AdminOpcode::QueueCreate.0, RequestId(2), &body);
    assert_eq!(host.run(&mut admin, s).status(), Status::Success);
    for n in 0..300u64 {
        let phase = n / 128 % 2 == 0;
        let at = (n % 128 * 64) as usize;
        let (page, within) = (at / 4096, at % 4096);
        for (i, w) in nop(n).to_words(phase).iter().enumerate().rev() {
            pages[page].store_u64(within + i * 8, *w, Ordering::Release);
        }
        host.write64(sq_doorbell(QueueId(1)), n + 1);
        host.until("a completion", || {
            let w0 = pages[2 + page].load_u64(within, Ordering::Acquire);
            (w0 >> 16 & 1 == 1) == phase
        });
        assert_eq!(pages[2 + page].load_u64(within + 8, Ordering::Relaxed), n);
        host.write64(cq_doorbell(QueueId(1)), n + 1);
    }
}
