//! MSI-X: table, masks, pending bits, delivery.

use crate::host::*;
use offmap_abi::regs::{MSIX_PBA, MSIX_TABLE};
use offmap_abi::{AdminOpcode, QueueId, RequestId, Status, Submission};
use offmap_device_io::{Function, Interrupt, IoError};
use offmap_emulator::msix::Msix;
use offmap_emulator::{Device, Inline};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CONTROL: u64 = 12;

fn entry(vector: u64) -> u64 {
    MSIX_TABLE + vector * 16
}

fn control(host: &Host<Inline>, bits: u16) {
    // The MSI-X capability follows power management's eight bytes.
    host.f.config_write(0x4a, &bits.to_le_bytes()).unwrap();
}

/// A device with queue 1 on vector 1, which interrupts at every burst.
fn rig() -> (Host<Inline>, Queue, Queue) {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let q = host.create_queue(&mut admin, 1, 16, 1, false);
    (host, admin, q)
}

#[test]
fn the_table_keeps_what_the_host_writes() {
    let host = Host::new(inline());
    host.command(0x6);
    for v in 0..5 {
        assert_eq!(host.read32(entry(v) + CONTROL), 1, "masked after reset");
        host.write64(entry(v), 0x0000_0001_fee0_0003);
        host.write64(entry(v) + 8, 0xffff_fffe_0000_0040 + v);
        assert_eq!(host.read64(entry(v)), 0x0000_0001_fee0_0000);
        assert_eq!(host.read64(entry(v) + 8), 0x40 + v);
        host.write32(entry(v) + 4, 9);
        assert_eq!(host.read32(entry(v) + 4), 9);
    }
    assert_eq!(host.read64(entry(5)), u64::MAX, "past the last vector");
    host.write64(entry(5), 1);
    assert_eq!(host.read64(MSIX_PBA), 0);
    host.write64(MSIX_PBA, u64::MAX);
    assert_eq!(host.read64(MSIX_PBA), 0, "pending bits are read-only");
    assert_eq!(host.read64(MSIX_PBA + 8), u64::MAX);
}

#[test]
fn enabling_a_vector_programs_what_a_host_would() {
    let (host, _admin, mut q) = rig();
    assert_eq!(host.config16(0x4a) & 0xc000, 0);
    let irq = enable(&*host.f, 1);
    assert_eq!(host.config16(0x4a) & 0xc000, 0x8000);
    assert_eq!(host.read32(entry(1) + CONTROL), 0);
    assert_eq!(host.read32(entry(0) + CONTROL), 1);
    host.run(&mut q, nop(1));
    assert!(irq.take().unwrap());
    assert!(!irq.take().unwrap());

    let second = enable(&*host.f, 1);
    host.run(&mut q, nop(2));
    assert!(second.take().unwrap());
    assert!(!irq.take().unwrap(), "the earlier route is silent");

    host.f.disable_vector(1).unwrap();
    assert_eq!(
        host.config16(0x4a) & 0xc000,
        0,
        "the last one disables MSI-X"
    );
    assert_eq!(host.read32(entry(1) + CONTROL), 1);
    host.run(&mut q, nop(3));
    assert!(!second.take().unwrap());
    for v in [5, u32::MAX] {
        let e = host.f.enable_vector(v).unwrap_err();
        assert!(matches!(e, IoError::NoVector { vector, vectors: 5 } if vector == v));
        assert!(host.f.disable_vector(v).is_err());
    }
}

#[test]
fn a_masked_vector_is_pending_and_comes_with_the_unmask() {
    let (host, _admin, mut q) = rig();
    let irq = enable(&*host.f, 1);
    type Set = fn(&Host<Inline>, bool);
    let masks: [Set; 2] = [
        |h, on| h.write32(entry(1) + CONTROL, on.into()),
        |h, on| control(h, if on { 0xc000 } else { 0x8000 }),
    ];
    for (i, mask) in masks.into_iter().enumerate() {
        mask(&host, true);
        for n in 0..3 {
            host.run(&mut q, nop(n));
        }
        assert!(!irq.take().unwrap(), "masked, way {i}");
        assert_eq!(host.read32(MSIX_PBA), 1 << 1);
        mask(&host, false);
        assert_eq!(host.read32(MSIX_PBA), 0);
        assert!(irq.take().unwrap(), "delivered on unmask, way {i}");
        assert!(!irq.take().unwrap(), "once");
    }
    // Both masks on: clearing one of them is not enough.
    masks[0](&host, true);
    masks[1](&host, true);
    host.run(&mut q, nop(9));
    masks[1](&host, false);
    assert!(!irq.take().unwrap());
    masks[0](&host, false);
    assert!(irq.take().unwrap());
}

#[test]
fn with_msix_disabled_nothing_is_sent_and_nothing_pends() {
    let (host, _admin, mut q) = rig();
    let irq = enable(&*host.f, 1);
    control(&host, 0);
    host.run(&mut q, nop(1));
    control(&host, 0x8000);
    assert!(!irq.take().unwrap());
    assert_eq!(host.read32(MSIX_PBA), 0);
    host.run(&mut q, nop(2));
    assert!(irq.take().unwrap());
}

#[test]
fn a_notify_block_says_when_an_interrupt_is_wanted() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 2, 16, 3, true);
    let irq = enable(&*host.f, 3);
    host.run(&mut q, nop(1));
    assert!(!irq.take().unwrap(), "not armed");
    q.arm_interrupt(3);
    host.run(&mut q, nop(2));
    host.run(&mut q, nop(3));
    assert!(!irq.take().unwrap(), "armed for more than three");
    host.run(&mut q, nop(4));
    assert!(irq.take().unwrap());
}

#[test]
fn a_vector_may_go_to_an_interrupt_made_elsewhere() {
    let mut device = Device::new(&small()).unwrap();
    device.config_write(4, &6u16.to_le_bytes()).unwrap();
    let outside = Interrupt::new().unwrap();
    device
        .enable_vector_to(3, outside.try_clone().unwrap())
        .unwrap();
    let refused = device.enable_vector_to(5, outside.try_clone().unwrap());
    assert!(matches!(refused, Err(IoError::NoVector { vector: 5, .. })));
    // Pending while masked, delivered there with the unmask.
    let mut msix = Msix::new(4);
    msix.set_control(true, true);
    msix.route_to(3, outside.try_clone().unwrap()).unwrap();
    msix.raise(3);
    assert!(!outside.take().unwrap());
    msix.set_control(true, false);
    assert!(outside.take().unwrap());
    assert!(!msix.silence(3).unwrap());
    msix.raise(3);
    assert!(!outside.take().unwrap());
}

/// A queue on vector 1 whose interrupts are held back, and a clock that the test moves.
fn gathering(count: u16, us: u16, notify: bool) -> (Host<Inline>, Queue, Queue, Arc<AtomicU64>) {
    let host = Host::new(inline());
    let clock = Arc::new(AtomicU64::new(0));
    let time = Arc::clone(&clock);
    host.f
        .set_clock(move || Duration::from_micros(time.load(Ordering::Relaxed)))
        .unwrap();
    let mut admin = host.bring_up(16, NONE);
    let q = host.queue(QueueId(1), 16, notify);
    assert_eq!(create(&host, &mut admin, &q, (count, us)), Status::Success);
    (host, admin, q, clock)
}

fn create(host: &Host<Inline>, admin: &mut Queue, q: &Queue, (count, us): (u16, u16)) -> Status {
    let mut body = Host::<Inline>::create_body(q, 1);
    (body.coalesce_count, body.coalesce_us) = (count.into(), us.into());
    let command = Submission::new(AdminOpcode::QueueCreate.0, RequestId(7), &body);
    host.run(admin, command).status()
}

#[test]
fn interrupts_are_held_back_for_the_count_or_the_delay() {
    let (host, _admin, mut q, clock) = gathering(3, 100, false);
    let irq = enable(&*host.f, 1);
    for round in 0..2 {
        host.run(&mut q, nop(1));
        host.run(&mut q, nop(2));
        assert!(!irq.take().unwrap(), "two of three, round {round}");
        host.run(&mut q, nop(3));
        assert!(irq.take().unwrap(), "the third, round {round}");
    }
    // The delay counts from the first one.
    host.run(&mut q, nop(4));
    clock.fetch_add(60, Ordering::Relaxed);
    host.run(&mut q, nop(5));
    clock.fetch_add(39, Ordering::Relaxed);
    host.f.progress();
    assert!(!irq.take().unwrap(), "99 us");
    clock.fetch_add(1, Ordering::Relaxed);
    host.f.progress();
    assert!(irq.take().unwrap(), "100 us");
    clock.fetch_add(1000, Ordering::Relaxed);
    host.f.progress();
    assert!(!irq.take().unwrap(), "once");
}

#[test]
fn an_interrupt_held_back_is_dropped_when_the_host_wants_none() {
    let (host, _admin, mut q, clock) = gathering(8, 100, true);
    let irq = enable(&*host.f, 1);
    host.run(&mut q, nop(1));
    clock.fetch_add(500, Ordering::Relaxed);
    host.f.progress();
    assert!(!irq.take().unwrap(), "not armed");
    for disarmed in [false, true] {
        q.arm_interrupt(q.taken);
        host.run(&mut q, nop(2));
        clock.fetch_add(99, Ordering::Relaxed);
        host.f.progress();
        assert!(!irq.take().unwrap());
        if disarmed {
            q.disarm_interrupt();
        }
        clock.fetch_add(1, Ordering::Relaxed);
        host.f.progress();
        assert_eq!(irq.take().unwrap(), !disarmed);
    }
}

#[test]
fn a_queue_that_ends_sends_what_it_holds_back() {
    let (host, mut admin, mut q, _clock) = gathering(8, 60_000, false);
    let irq = enable(&*host.f, 1);
    host.run(&mut q, nop(1));
    assert!(!irq.take().unwrap());
    let body = offmap_abi::admin::QueueDeleteBody {
        queue: 1.into(),
        reserved: [0; 46],
    };
    let command = Submission::new(AdminOpcode::QueueDelete.0, RequestId(8), &body);
    assert!(host.run(&mut admin, command).status().is_success());
    assert!(irq.take().unwrap());
    assert!(!irq.take().unwrap(), "once");
}

#[test]
fn coalescing_without_an_end_is_refused() {
    let (host, mut admin, _q, _) = gathering(0, 0, false);
    let q = host.queue(QueueId(2), 16, false);
    for bad in [(1, 0), (2, 0), (0, 1), (1, 1), (0, u16::MAX), (u16::MAX, 0)] {
        assert_eq!(
            create(&host, &mut admin, &q, bad),
            Status::InvalidField,
            "{bad:?}"
        );
    }
    assert_eq!(create(&host, &mut admin, &q, (2, 1)), Status::Success);
}
