//! Config space as a PCI core walks it, and what its bits do to the function.

use crate::host::*;
use offmap_abi::regs::{self, DeviceStatus, FatalCause};
use offmap_device_io::{BarOffset, Function, IoError};

fn read<const N: usize>(f: &impl Function, offset: u16) -> [u8; N] {
    let mut b = [0; N];
    f.config_read(offset, &mut b).unwrap();
    b
}

fn dword(f: &impl Function, offset: u16) -> u32 {
    u32::from_le_bytes(read(f, offset))
}

/// Offset of a capability, by walking the chain as a PCI core does.
fn capability(f: &impl Function, id: u8) -> u16 {
    chain(f)
        .into_iter()
        .find(|(found, _)| *found == id)
        .map(|(_, at)| at)
        .unwrap()
}

fn chain(f: &impl Function) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut at = u16::from(read::<1>(f, 0x34)[0]);
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0, "capability at {at:#x}");
        assert!(found.len() < 48, "the chain has a loop");
        let [id, next] = read(f, at);
        found.push((id, at));
        at = next.into();
    }
    found
}

#[test]
fn the_header_and_the_capabilities_are_there() {
    let f = inline();
    assert_eq!(read::<2>(&f, 0), regs::PCI_VENDOR_ID.to_le_bytes());
    assert_eq!(read::<2>(&f, 2), regs::PCI_DEVICE_ID.to_le_bytes());
    assert_eq!(read::<3>(&f, 9), [0x00, 0x80, 0x02]);
    assert_eq!(read::<1>(&f, 0x0e), [0], "header type 0, one function");
    assert_ne!(read::<1>(&f, 6)[0] & 0x10, 0, "there are capabilities");
    let ids: Vec<u8> = chain(&f).iter().map(|c| c.0).collect();
    assert_eq!(ids, [0x01, 0x11, 0x10]);
    assert_eq!(dword(&f, 0x100), 0, "no extended capabilities");

    let msix = capability(&f, 0x11);
    let control = u16::from_le_bytes(read(&f, msix + 2));
    assert_eq!(u32::from(control & 0x7ff) + 1, f.vectors());
    assert_eq!(dword(&f, msix + 4), regs::MSIX_TABLE as u32);
    assert_eq!(dword(&f, msix + 8), regs::MSIX_PBA as u32);

    let express = capability(&f, 0x10);
    let flags = u16::from_le_bytes(read(&f, express + 2));
    assert_eq!((flags & 0xf, flags >> 4 & 0xf), (2, 0), "v2 endpoint");
    assert_ne!(dword(&f, express + 4) & 1 << 28, 0, "FLR capable");
}

#[test]
fn bars_are_sized_by_writing_ones() {
    let f = inline();
    for (bar, prefetchable) in [(0u8, false), (2, true)] {
        let at = 0x10 + u16::from(bar) * 4;
        let kind = dword(&f, at) & 0xf;
        assert_eq!(kind, 0b0100 | u32::from(prefetchable) << 3);
        f.config_write(at, &[0xff; 8]).unwrap();
        let low = dword(&f, at);
        assert_eq!(low & 0xf, kind, "the type bits are read-only");
        let sized = u64::from(dword(&f, at + 4)) << 32 | u64::from(low & !0xf);
        let info = f.bar(bar).unwrap();
        assert_eq!(!sized + 1, info.size_bytes);
        assert_eq!((info.is_64bit, info.prefetchable), (true, prefetchable));
        let base = 0x12_3456_0010_0000u64;
        f.config_write(at, &(base | u64::from(kind)).to_le_bytes())
            .unwrap();
        assert_eq!(read::<8>(&f, at), (base | u64::from(kind)).to_le_bytes());
    }
    for at in [0x20u16, 0x24, 0x30] {
        f.config_write(at, &[0xff; 4]).unwrap();
        assert_eq!(dword(&f, at), 0, "no BAR at {at:#x}");
    }
}

#[test]
fn only_declared_bits_are_writable() {
    let f = inline();
    let before: Vec<u8> = (0..4096).map(|i| read::<1>(&f, i)[0]).collect();
    let express = capability(&f, 0x10);
    let power = capability(&f, 0x01);
    for i in 0..4096u16 {
        // Everything but the bytes that put the function to sleep or reset it.
        if i != express + 9 && i != power + 4 {
            f.config_write(i, &[0xff]).unwrap();
        }
    }
    let msix = capability(&f, 0x11);
    let expected = |i: u16| -> u8 {
        let old = before[usize::from(i)];
        let mask: u8 = match i {
            0x04 => 0x46,
            0x05 => 0x05,
            0x0c | 0x3c => 0xff,
            0x12 => 0xfc, // 256 KiB
            0x1a => 0xf0, // 1 MiB
            0x13..=0x17 | 0x1b..=0x1f => 0xff,
            _ if i == msix + 3 => 0xc0,
            _ if i == express + 8 => 0xff,
            _ if i == express + 0x10 => 0xc3,
            _ if i == express + 0x28 => 0x1f,
            _ => 0,
        };
        old | mask
    };
    for i in 0..4096u16 {
        if i != express + 9 && i != power + 4 {
            assert_eq!(read::<1>(&f, i)[0], expected(i), "config byte {i:#x}");
        }
    }
}

#[test]
fn accesses_outside_are_typed_errors() {
    let f = inline();
    for (offset, len) in [(4095u16, 2usize), (4096, 1), (65535, 1), (0, 4097)] {
        let mut b = vec![0; len];
        let e = f.config_read(offset, &mut b).unwrap_err();
        assert!(matches!(e, IoError::ConfigRange { offset: o, len: l } if (o, l) == (offset, len)));
        assert!(f.config_write(offset, &b).is_err());
    }
    f.config_read(4095, &mut [0]).unwrap();
    f.config_read(4096, &mut []).unwrap();
}

#[test]
fn memory_space_off_and_d3hot_read_all_ones() {
    let host = Host::new(inline());
    assert_eq!(host.read64(regs::MAGIC), u64::MAX, "disabled after reset");
    host.command(0x2);
    assert_eq!(host.read64(regs::MAGIC), regs::MAGIC_VALUE);
    let power = capability(&host.f, 0x01);
    host.write64(regs::WINDOW_BASE, 0x5000);
    for unsupported in [1u8, 2] {
        host.f.config_write(power + 4, &[unsupported]).unwrap();
        assert_eq!(read::<1>(&host.f, power + 4)[0] & 3, 0, "stays in D0");
    }
    host.f.config_write(power + 4, &[3]).unwrap();
    assert_eq!(host.read64(regs::MAGIC), u64::MAX);
    assert_eq!(host.read32(regs::MSIX_PBA), u32::MAX);
    assert_eq!(
        host.f.read32(regs::BAR_WINDOW, BarOffset(0)).unwrap(),
        u32::MAX
    );
    host.write64(regs::WINDOW_BASE, 0x9000);
    host.f.config_write(power + 4, &[0]).unwrap();
    assert_eq!(host.read64(regs::WINDOW_BASE), 0x5000, "state survived");
}

#[test]
fn d3hot_freezes_the_queues_and_d0_resumes_them() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
    let power = capability(&host.f, 0x01);
    host.f.config_write(power + 4, &[3]).unwrap();
    q.push(&nop(3));
    q.publish(&*host.f);
    for _ in 0..100 {
        host.f.progress();
    }
    assert!(q.poll().is_none(), "no DMA in D3hot");
    host.f.config_write(power + 4, &[0]).unwrap();
    assert_eq!(host.take(&mut q).request().0, 3);
}

#[test]
fn without_bus_master_the_device_stops_and_reset_brings_it_back() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    host.identify(&mut admin);
    host.command(0x2);
    host.until("FATAL", || host.status().contains(DeviceStatus::FATAL));
    assert!(!host.status().contains(DeviceStatus::READY));
    assert_eq!(host.read32(regs::FATAL_CAUSE), FatalCause::RingDma.0);
    // The permission alone does not end it; ENABLE cleared does, and so does a reset.
    host.command(0x6);
    assert_eq!(host.status(), DeviceStatus::FATAL);
    host.write32(regs::CONTROL, 0);
    assert_eq!(host.status(), DeviceStatus::empty());
    let mut admin = host.bring_up(16, NONE);
    host.identify(&mut admin);
    host.command(0x2);
    host.until("FATAL", || host.status().contains(DeviceStatus::FATAL));
    host.f.reset().unwrap();
    let mut admin = host.bring_up(16, NONE);
    host.identify(&mut admin);
}

#[test]
fn enabling_without_bus_master_is_fatal_by_cause() {
    let host = Host::new(inline());
    host.command(0x2);
    let q = host.queue(offmap_abi::QueueId::ADMIN, 16, false);
    host.write64(regs::ADMIN_SQ, q.sq.iova);
    host.write64(regs::ADMIN_CQ, q.cq.iova);
    host.write32(regs::ADMIN_DEPTH, 16);
    host.write32(regs::CONTROL, 1);
    assert_eq!(host.read32(regs::FATAL_CAUSE), FatalCause::RingDma.0);
}

#[test]
fn flr_by_config_space_and_by_the_transport_are_the_same() {
    let host = Host::new(inline());
    for round in 1..=4u32 {
        let mut admin = host.bring_up(16, 0);
        let irq = enable(&*host.f, 0);
        let map = host.create_map(&mut admin, 1, 4, 8, 16).unwrap();
        host.write64(regs::WINDOW_BASE, 0x4000);
        let express = capability(&host.f, 0x10);
        if round % 2 == 0 {
            host.f.reset().unwrap();
        } else {
            let control: [u8; 2] = read(&host.f, express + 8);
            host.f
                .config_write(express + 8, &[control[0], control[1] | 0x80])
                .unwrap();
        }
        assert_eq!(read::<2>(&host.f, express + 8), [0x10, 0x28]);
        assert_eq!(host.config16(4), 0, "command register is clear");
        host.command(0x2);
        // Each round ends with ENABLE cleared, which counts as well.
        assert_eq!(host.read32(regs::RESET_COUNT), 2 * round - 1);
        assert_eq!(host.read32(regs::CONTROL), 0);
        assert_eq!(host.read64(regs::ADMIN_SQ), 0);
        assert_eq!(host.read64(regs::WINDOW_BASE), 0);
        assert_eq!(host.status(), DeviceStatus::empty());
        irq.take().unwrap();

        // The mappings survive, the map does not, and the old vector is silent.
        let mut admin = host.bring_up(16, 0);
        let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
        let c = host.run(&mut q, lookup(map, 5, &[0; 4], 8));
        assert_eq!(c.status(), offmap_abi::Status::InvalidMap);
        assert!(!irq.take().unwrap());
        host.write32(regs::CONTROL, 0);
        assert_eq!(host.status(), DeviceStatus::empty());
    }
}
