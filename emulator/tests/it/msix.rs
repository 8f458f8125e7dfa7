//! MSI-X: table, masks, pending bits, delivery.

use crate::host::*;
use offmap_abi::regs::{MSIX_PBA, MSIX_TABLE};
use offmap_device_io::{Function, Interrupt, IoError};
use offmap_emulator::msix::Msix;
use offmap_emulator::{Device, Inline};

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
