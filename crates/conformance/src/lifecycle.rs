//! Registers, config space, bring-up, reset.

use super::Bench;
use super::elements::Table;
use super::host::{Host, command, enable_pci, next_request, wait_for};
use offmap_abi::admin::{EmptyBody, IdentifyData, PORTS_MAX, TIERS_MAX};
use offmap_abi::regs::{self, Control, DeviceStatus, FatalCause};
use offmap_abi::{ABI_MAJOR, AdminOpcode, IoOpcode, Status, Submission};
use offmap_device_io::{BarOffset, Function, IoError};
use std::sync::Arc;

const HASH: u32 = 1;

/// What identifies the device, and what its registers answer where there is none.
pub fn registers_are_as_the_abi_says<F: Function>(bench: &Bench<F>) {
    let function = bench.function();
    // Until memory decoding is on, nothing answers.
    if bench.owns_config {
        let dark = function.read64(0, BarOffset(regs::MAGIC)).unwrap();
        assert_eq!(dark, u64::MAX);
    }
    enable_pci(&*function);
    let read32 = |at| function.read32(0, BarOffset(at)).unwrap();
    let read64 = |at| function.read64(0, BarOffset(at)).unwrap();
    assert_eq!(read64(regs::MAGIC), regs::MAGIC_VALUE);
    // An 8-byte register may be read as two halves.
    let halves = u64::from(read32(regs::MAGIC)) | u64::from(read32(regs::MAGIC + 4)) << 32;
    assert_eq!(halves, regs::MAGIC_VALUE);
    assert_eq!(read32(regs::VERSION) >> 16, u32::from(ABI_MAJOR));
    assert_eq!(read32(regs::VECTORS), function.vectors());
    assert!(read32(regs::QUEUE_PAIRS) >= 1);
    assert!(read32(regs::QUEUE_PAIRS) < u32::from(regs::MAX_QUEUE_PAIRS));
    let depth = read32(regs::QUEUE_DEPTH_MAX);
    assert!(depth >= 2 && depth.is_power_of_two());
    assert!(read32(regs::READY_TIMEOUT_MS) > 0);
    assert_eq!(read32(regs::STATUS), 0);
    assert_eq!(read32(regs::FATAL_CAUSE), FatalCause::None.0);
    // No register: all ones. Written, nothing comes of it.
    for hole in [0x200, 0xff8, 0x3ff8] {
        function.write32(0, BarOffset(hole), 0x1234).unwrap();
        assert_eq!(read32(hole), u32::MAX, "{hole:#x}");
        assert_eq!(read64(hole), u64::MAX, "{hole:#x}");
    }
    // Read-only registers stay as they are.
    function.write64(0, BarOffset(regs::MAGIC), 7).unwrap();
    assert_eq!(read64(regs::MAGIC), regs::MAGIC_VALUE);
    // Outside the BAR, or not aligned: an error that says so.
    for (bar, at) in [(0, regs::BAR0_BYTES), (0, 2), (0, u64::MAX - 3), (9, 0)] {
        match function.read32(bar, BarOffset(at)) {
            Err(IoError::BarAccess { .. } | IoError::NoBar { .. }) => {}
            other => panic!("BAR {bar} at {at:#x}: {other:?}"),
        }
    }
}

/// Ids, BAR sizes and a capability list with PCI Express, MSI-X and power management.
pub fn config_space_is_a_pci_function<F: Function>(bench: &Bench<F>) {
    let function = bench.function();
    let byte = |at: u16| {
        let mut b = [0];
        function.config_read(at, &mut b).unwrap();
        b[0]
    };
    let word = |at: u16| u16::from_le_bytes([byte(at), byte(at + 1)]);
    assert_eq!(word(0), regs::PCI_VENDOR_ID);
    assert_eq!(word(2), regs::PCI_DEVICE_ID);
    assert_eq!([byte(0xb), byte(0xa), byte(0x9)], regs::PCI_CLASS);
    assert_eq!(byte(0xe) & 0x7f, 0, "header type 0");
    assert_ne!(word(6) & 1 << 4, 0, "there is a capability list");
    let (mut at, mut ids) = (u16::from(byte(0x34)), Vec::new());
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0, "capability at {at:#x}");
        assert!(ids.len() < 48, "the capability list is a circle");
        ids.push(byte(at));
        at = u16::from(byte(at + 1));
    }
    for (id, name) in [
        (0x01, "power management"),
        (0x10, "PCI Express"),
        (0x11, "MSI-X"),
    ] {
        assert!(ids.contains(&id), "no {name} among {ids:x?}");
    }
    assert_eq!(function.bar(0).unwrap().size_bytes, regs::BAR0_BYTES);
    assert_eq!(function.bar(2).unwrap().size_bytes, regs::WINDOW_BYTES);
    // Sizing BAR0 as firmware does: ones written, the address bits read back.
    function.config_write(0x10, &[0xff; 4]).unwrap();
    let low = u32::from_le_bytes([byte(0x10), byte(0x11), byte(0x12), byte(0x13)]);
    assert_eq!(u64::from(!(low & !0xf)) + 1, regs::BAR0_BYTES);
    assert!(function.config_read(4095, &mut [0; 2]).is_err());
}

/// IDENTIFY writes as much as there is room for.
pub fn identify_fills_the_room_given<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let data = host.identify();
    assert_ne!(data.firmware[0], 0);
    assert_ne!(data.map_types.get(), 0, "no type of map");
    assert_ne!(data.memory_bytes.get(), 0);
    for most in [
        data.entries_per_map,
        data.maps,
        data.key_bytes,
        data.value_bytes,
    ] {
        assert_ne!(most.get(), 0);
    }
    let ports = data.ports.get();
    assert!(ports <= PORTS_MAX, "{ports} ports");
    assert!(data.tiers.get() <= TIERS_MAX, "{} tiers", data.tiers);
    assert_eq!(data.reserved, [0; 36]);
    let room = host.dma(4096);
    for len in [0u32, 1, 33, 127, 128, 129, 4096] {
        room.buffer().write(0, &[0xee; 256]);
        assert_eq!(host.identify_at(room.iova(0).0, len), Status::Success);
        let mut got = [0; 256];
        room.buffer().read(0, &mut got);
        let written = (len as usize).min(size_of::<IdentifyData>());
        assert_eq!(
            got[..written],
            zerocopy::IntoBytes::as_bytes(&data)[..written]
        );
        assert!(
            got[written..].iter().all(|b| *b == 0xee),
            "past {written} bytes"
        );
    }
    // Where nothing is mapped.
    assert_eq!(host.identify_at(u64::MAX - 64, 128), Status::DmaFault);
    assert_eq!(host.identify(), data, "a DMA fault is that command's alone");
}

/// Registers that describe no usable admin queue stop the device, which says so.
pub fn unusable_admin_queue_is_fatal_until_reset<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let (function, ring) = (host.function(), host.dma(4096));
    let good = ring.iova(0).0;
    for (sq, depth, vector) in [
        (good + 8, 16, regs::NO_VECTOR),
        (good, 0, regs::NO_VECTOR),
        (good, 3, regs::NO_VECTOR),
        (good, 1 << 31, regs::NO_VECTOR),
        (good, 16, 0xffff),
        (u64::MAX - 4095, 16, regs::NO_VECTOR),
    ] {
        function.reset().unwrap();
        // Config space is reset as well: the function is enabled again.
        enable_pci(&**function);
        let write64 = |at, value| function.write64(0, BarOffset(at), value).unwrap();
        let write32 = |at, value| function.write32(0, BarOffset(at), value).unwrap();
        write64(regs::ADMIN_SQ, sq);
        write64(regs::ADMIN_CQ, good);
        write32(regs::ADMIN_DEPTH, depth);
        write32(regs::ADMIN_VECTOR, vector);
        write32(regs::CONTROL, Control::ENABLE.bits());
        wait_for(&**function, "FATAL", || {
            host.status().contains(DeviceStatus::FATAL).then_some(())
        });
        assert!(!host.status().contains(DeviceStatus::READY));
        assert_ne!(host.fatal(), FatalCause::None);
    }
    let host = host.reset();
    host.identify();
}

/// Reset without anything to stop.
pub fn reset_while_idle<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let count = host.register(regs::RESET_COUNT);
    let map = host.map(&Host::<F>::map_body(HASH, 4, 8, 10));
    let host = host.reset();
    assert_eq!(host.register(regs::RESET_COUNT), count.wrapping_add(1));
    assert_eq!(host.query(map), Err(Status::InvalidMap), "maps are gone");
    let mut queue = bench.queue(&host, 1, 16);
    assert_eq!(queue.run(nop()).status(), Status::Success);
}

/// A command that does nothing.
pub fn nop() -> Submission {
    Submission::new(IoOpcode::Nop.0, next_request(), &EmptyBody::ZERO)
}

/// Reset with entries published and completions not taken; nothing of it is seen afterwards.
pub fn reset_with_work_under_way<F: Function>(bench: &Bench<F>) {
    let mut host = bench.host();
    for round in 0..20 {
        let mut queue = bench.queue(&host, 1, 64);
        let map = host.map(&Host::<F>::map_body(HASH, 4, 8, 1000));
        let table = Table::new(&host, &mut queue, map, (4, 8), 1);
        let updates: Vec<_> = (0u32..64)
            .map(|i| {
                let (key, value) = (i.to_le_bytes(), [round; 8]);
                table.element(IoOpcode::Update, Some(&key), Some(&value), 0, 0)
            })
            .collect();
        drop(table);
        for update in updates {
            queue.push(update);
        }
        queue.publish();
        for _ in 0..round {
            host.function().progress();
        }
        host = host.reset();
        let silent = queue.in_flight() > 0;
        assert!(silent);
    }
    assert!(host.identify().firmware[0] != 0);
}

/// Clearing ENABLE stops queues and frees maps; setting it again starts from nothing.
pub fn disable_forgets_everything<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let map = host.map(&Host::<F>::map_body(HASH, 4, 8, 10));
    let queue = bench.queue(&host, 1, 16);
    let function = Arc::clone(host.function());
    function.write32(0, BarOffset(regs::CONTROL), 0).unwrap();
    wait_for(&*function, "not READY", || {
        (!host.status().contains(DeviceStatus::READY)).then_some(())
    });
    drop((host, queue));
    let host = Host::bring_up(function);
    assert_eq!(host.query(map), Err(Status::InvalidMap));
    let mut queue = bench.queue(&host, 1, 16);
    assert_eq!(queue.run(nop()).status(), Status::Success);
}

/// An opcode that is none is answered, not ignored.
pub fn unknown_admin_opcodes_are_answered<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    for opcode in 0..=u8::MAX {
        if AdminOpcode(opcode).name().is_none() {
            let done = host.admin(command(AdminOpcode(opcode), &EmptyBody::ZERO));
            assert_eq!(done.status(), Status::InvalidOpcode, "{opcode:#x}");
        }
    }
}
