//! Queue commands and the rules of the rings, with everything that may be wrong about them.

use crate::host::*;
use offmap_abi::admin::{AbortBody, QueueDeleteBody};
use offmap_abi::notify::{NOTIFY_CQ_HEAD, NOTIFY_SQ_TAIL, cq_doorbell, sq_doorbell};
use offmap_abi::regs::{self, DeviceStatus, FatalCause};
use offmap_abi::{AdminOpcode, Completion, QueueId, RequestId, Status, Submission};
use offmap_device_io::{Function, Iova};
use offmap_emulator::Inline;
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
    for _ in 0..10 {
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

#[test]
fn broken_rings_are_fatal_by_cause_and_reset_ends_it() {
    type Break = fn(&Host<Inline>, &mut Queue);
    let protocol = FatalCause::RingProtocol;
    let notify: [(Break, FatalCause); 6] = [
        // A tail that covers an entry which was never published.
        (|_, q| tail(q, q.sent + 1), protocol),
        (|_, q| tail(q, q.sent + q.depth), protocol),
        (|_, q| tail(q, q.sent + q.depth + 1), protocol),
        (|_, q| tail(q, q.sent + (1 << 31) - 1), protocol),
        // A head beyond what was posted; it is looked at when the ring seems full.
        (
            |_, q| {
                let n = q.notify.as_ref().unwrap();
                n.memory.store_u64(NOTIFY_CQ_HEAD, 1000, Ordering::Release);
                for i in 0..4 {
                    q.push(&nop(i));
                }
            },
            protocol,
        ),
        (
            |h, q| {
                h.f.dma_unmap(Iova(q.notify.as_ref().unwrap().iova), 4096)
                    .unwrap()
            },
            FatalCause::RingDma,
        ),
    ];
    let doorbells: [(Break, FatalCause); 4] = [
        (
            |h, q| h.write64(sq_doorbell(q.id), (q.sent + 1).into()),
            protocol,
        ),
        (|h, q| h.write64(sq_doorbell(q.id), 0x7fff_ffff), protocol),
        (
            |h, q| h.f.dma_unmap(Iova(q.sq.iova), 4096).unwrap(),
            FatalCause::RingDma,
        ),
        (
            |h, q| {
                h.f.dma_unmap(Iova(q.cq.iova), 4096).unwrap();
                q.push(&nop(1));
            },
            FatalCause::RingDma,
        ),
    ];
    let host = Host::new(inline());
    let all = notify
        .iter()
        .map(|c| (c, true))
        .chain(doorbells.iter().map(|c| (c, false)));
    for (i, ((spoil, cause), with_block)) in all.enumerate() {
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 3, 4, NONE, with_block);
        for n in 0..5 {
            host.run(&mut q, nop(n));
        }
        spoil(&host, &mut q);
        for _ in 0..10 {
            host.f.progress();
        }
        assert_eq!(host.status(), DeviceStatus::FATAL, "case {i}");
        assert_eq!(host.read32(regs::FATAL_CAUSE), cause.0, "case {i}");
        admin.push(&nop(5));
        admin.publish(&*host.f);
        for _ in 0..10 {
            host.f.progress();
        }
        assert!(admin.poll().is_none(), "all queues are stopped");
        host.f.reset().unwrap();
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
