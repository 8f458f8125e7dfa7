//! Every register of BAR0 and every hole between them.

use crate::host::*;
use offmap_abi::notify::sq_doorbell;
use offmap_abi::{QueueId, regs};
use offmap_device_io::{BarOffset, Function, IoError};
use offmap_emulator::regs::{Access, REGISTERS, Register, RegisterFile, Width};

/// The table of abi §3, written out a second time: offset, width, and who may write.
const EXPECTED: [(u64, u64, &str); 17] = [
    (0x00, 8, "ro"),
    (0x08, 4, "ro"),
    (0x0c, 4, "ro"),
    (0x10, 8, "ro"),
    (0x18, 4, "ro"),
    (0x1c, 4, "ro"),
    (0x20, 4, "ro"),
    (0x24, 4, "ro"),
    (0x40, 4, "rw"),
    (0x44, 4, "ro"),
    (0x48, 4, "wo"),
    (0x4c, 4, "ro"),
    (0x50, 8, "wd"),
    (0x58, 8, "wd"),
    (0x60, 4, "wd"),
    (0x64, 4, "wd"),
    (0x70, 8, "rw"),
];

#[test]
fn the_table_is_the_abi() {
    let found = REGISTERS.map(|r| {
        let access = match r.access {
            Access::ReadOnly => "ro",
            Access::ReadWrite(_) => "rw",
            Access::WhileDisabled(_) => "wd",
            Access::WriteOnly => "wo",
        };
        (r.offset, r.width.bytes(), access)
    });
    assert_eq!(found, EXPECTED);
}

#[test]
fn identification() {
    let host = Host::new(inline());
    host.command(0x6);
    assert_eq!(host.read64(regs::MAGIC), u64::from_le_bytes(*b"OFFMAP\0\0"));
    assert_eq!(host.read32(regs::VERSION), 0x0001_0000);
    assert_eq!(host.read32(regs::VECTORS), 5);
    assert_eq!(host.read32(regs::QUEUE_PAIRS), 4);
    assert_eq!(host.read32(regs::QUEUE_DEPTH_MAX), 256);
    assert_eq!(host.read64(regs::FEATURES), 0b1011_1101);
    assert_eq!(host.read32(regs::RESET_COUNT), 0);
    assert_eq!(host.read32(regs::ADMIN_VECTOR), u32::MAX);
}

/// What the rules say, byte by byte, against what the file does for every access of BAR0's
/// first page.
#[test]
fn reads_and_writes_of_every_offset() {
    for enabled in [false, true] {
        for width in [Width::Four, Width::Eight] {
            for offset in (0..0x1000).step_by(width.bytes() as usize) {
                let mut file = RegisterFile::new();
                let ones = if width == Width::Four {
                    0xffff_ffff
                } else {
                    u64::MAX
                };
                let hit = REGISTERS.iter().find(|r| {
                    let covers = r.offset <= offset && offset < r.offset + r.width.bytes();
                    covers && offset + width.bytes() <= r.offset + r.width.bytes()
                });
                let before = file.read(offset, width);
                let pattern = 0xa5a5_5a5a_1234_f00f & ones;
                let effect = file.write(offset, width, pattern, enabled);
                let after = file.read(offset, width);
                let Some(r) = hit else {
                    assert_eq!((before, after, effect), (ones, ones, None), "{offset:#x}");
                    continue;
                };
                let shift = (offset - r.offset) * 8;
                let part = |v: u64| v >> shift & ones;
                match r.access {
                    Access::WriteOnly => {
                        assert_eq!((before, after), (ones, ones));
                        assert_eq!(effect, Some((r.offset, pattern)));
                    }
                    Access::ReadOnly => {
                        assert_eq!(
                            (before, after, effect),
                            (part(r.reset), part(r.reset), None)
                        );
                    }
                    Access::WhileDisabled(_) if enabled => {
                        assert_eq!(
                            (before, after, effect),
                            (part(r.reset), part(r.reset), None)
                        );
                    }
                    Access::ReadWrite(mask) | Access::WhileDisabled(mask) => {
                        assert_eq!(before, part(r.reset));
                        let m = part(mask);
                        assert_eq!(after, before & !m | pattern & m, "{offset:#x}");
                        assert_eq!(effect.map(|e| e.0), Some(r.offset));
                        assert_other_half(&file, r, offset, width);
                    }
                }
            }
        }
    }
}

/// A write of one half leaves the other alone.
fn assert_other_half(file: &RegisterFile, r: &Register, offset: u64, width: Width) {
    if r.width == Width::Eight && width == Width::Four {
        let other = r.offset + (4 - (offset - r.offset));
        let reset = r.reset >> ((other - r.offset) * 8) & 0xffff_ffff;
        assert_eq!(file.read(other, Width::Four), reset);
    }
}

#[test]
fn bar_accesses_are_checked() {
    let host = Host::new(inline());
    host.command(0x6);
    let f = &host.f;
    for (bar, size) in [(0u8, regs::BAR0_BYTES), (2, regs::WINDOW_BYTES)] {
        for offset in [1, 2, 3, 6, size - 2, size, size + 4, u64::MAX, u64::MAX - 3] {
            let e = f.read32(bar, BarOffset(offset)).unwrap_err();
            assert!(matches!(e, IoError::BarAccess { len: 4, .. }));
            assert!(f.write32(bar, BarOffset(offset), 0).is_err());
        }
        for offset in [4, 12, size - 4, size, u64::MAX - 7] {
            let e = f.read64(bar, BarOffset(offset)).unwrap_err();
            assert!(matches!(e, IoError::BarAccess { len: 8, .. }));
            assert!(f.write64(bar, BarOffset(offset), 0).is_err());
        }
        f.read32(bar, BarOffset(size - 4)).unwrap();
    }
    for bar in [1u8, 3, 4, 5, 6, 255] {
        let e = f.read32(bar, BarOffset(0)).unwrap_err();
        assert!(matches!(e, IoError::NoBar { bar: b } if b == bar));
        assert!(f.bar(bar).is_err());
    }
}

#[test]
fn admin_registers_are_locked_while_enabled() {
    let host = Host::new(inline());
    host.write64(regs::ADMIN_SQ, 0x1000);
    let admin = host.bring_up(16, NONE);
    for r in [regs::ADMIN_SQ, regs::ADMIN_CQ] {
        let before = host.read64(r);
        host.write64(r, 0xdead_f000);
        assert_eq!(host.read64(r), before);
    }
    host.write32(regs::ADMIN_DEPTH, 2);
    assert_eq!(host.read32(regs::ADMIN_DEPTH), 16);
    host.write32(regs::CONTROL, 0);
    host.write32(regs::ADMIN_DEPTH, 2);
    assert_eq!(host.read32(regs::ADMIN_DEPTH), 2);
    drop(admin);
}

#[test]
fn unusable_admin_registers_are_fatal_by_cause() {
    let good = |host: &Host<offmap_emulator::Inline>| {
        host.command(0x6);
        let q = host.queue(QueueId::ADMIN, 16, false);
        host.write64(regs::ADMIN_SQ, q.sq.iova);
        host.write64(regs::ADMIN_CQ, q.cq.iova);
        host.write32(regs::ADMIN_DEPTH, 16);
        q
    };
    let config = regs::FatalCause::AdminQueueConfig.0;
    let dma = regs::FatalCause::RingDma.0;
    type Spoil = fn(&Host<offmap_emulator::Inline>);
    let cases: [(Spoil, u32); 9] = [
        (|h| h.write32(regs::ADMIN_DEPTH, 0), config),
        (|h| h.write32(regs::ADMIN_DEPTH, 1), config),
        (|h| h.write32(regs::ADMIN_DEPTH, 24), config),
        (|h| h.write32(regs::ADMIN_DEPTH, 512), config),
        (|h| h.write32(regs::ADMIN_VECTOR, 5), config),
        (|h| h.write64(regs::ADMIN_SQ, 0x10_0040), config),
        (|h| h.write64(regs::ADMIN_SQ, 0xffff_ffff_ffff_f000), dma),
        (|h| h.write64(regs::ADMIN_CQ, 0x7000_0000), dma),
        (|h| h.write32(regs::ADMIN_DEPTH, 256), dma),
    ];
    for (i, (spoil, cause)) in cases.into_iter().enumerate() {
        let host = Host::new(inline());
        let _q = good(&host);
        spoil(&host);
        host.write32(regs::CONTROL, 1);
        assert_eq!(host.status(), regs::DeviceStatus::FATAL, "case {i}");
        assert_eq!(host.read32(regs::FATAL_CAUSE), cause, "case {i}");
    }
}

#[test]
fn the_doorbells_are_the_one_part_that_can_be_mapped() {
    let host = Host::new(inline());
    host.command(0x6);
    let page = |offset, len| host.f.map_bar(BAR, BarOffset(offset), len);
    let mapped = page(regs::DOORBELLS, 65536).unwrap().unwrap();
    assert_eq!(mapped.len(), 65536);
    assert!(page(0, 4096).unwrap().is_none());
    assert!(page(regs::DOORBELLS, 131072).unwrap().is_none());
    assert!(page(regs::DOORBELLS, 64).unwrap().is_none());
    assert!(page(regs::DOORBELLS, 4096).unwrap().is_none());
    assert!(page(0x3f000, 0x1001).is_err());
    assert!(page(u64::MAX, 2).is_err());
    assert!(page(regs::DOORBELLS, 0).is_err());
    assert!(host.f.map_bar(2, BarOffset(0), 4096).unwrap().is_none());
    assert!(host.f.map_bar(4, BarOffset(0), 4096).is_err());

    // The mapped page and the trapped registers are the same words.
    let at = sq_doorbell(QueueId(3));
    let within = (at - regs::DOORBELLS) as usize;
    mapped.store_u64(within, 0x1_0000_0005);
    assert_eq!(host.read64(at), 0x1_0000_0005);
    host.write32(at + 4, 7);
    assert_eq!(mapped.load_u64(within), 0x7_0000_0005);
    host.write32(at, 9);
    assert_eq!(host.read32(at + 4), 7);
    assert_eq!(mapped.load_u64(within), 0x7_0000_0009);
}

#[test]
fn the_window_shows_device_memory() {
    let host = Host::new(inline());
    host.command(0x6);
    let f = &host.f;
    let size = small().firmware.memory_bytes;
    host.write64(regs::WINDOW_BASE, size - 4096);
    f.write64(2, BarOffset(4088), 0x1122_3344_5566_7788)
        .unwrap();
    f.write32(2, BarOffset(0), 0xcafe_f00d).unwrap();
    assert_eq!(f.read32(2, BarOffset(4092)).unwrap(), 0x1122_3344);
    assert_eq!(f.read64(2, BarOffset(4096)).unwrap(), u64::MAX);
    host.write64(regs::WINDOW_BASE, size - 8192 + 5);
    assert_eq!(host.read64(regs::WINDOW_BASE), size - 8192, "whole pages");
    assert_eq!(f.read32(2, BarOffset(4096)).unwrap(), 0xcafe_f00d);
    host.write64(regs::WINDOW_BASE, u64::MAX);
    assert_eq!(f.read64(2, BarOffset(0xff000)).unwrap(), u64::MAX);
    f.write64(2, BarOffset(0xff000), 1).unwrap();
}

/// What a map held is not to be seen by whoever comes after a reset.
#[test]
fn the_window_hides_what_was_before_a_reset() {
    const MARK: u64 = 0x6b61_6d20_7465_7263;
    let host = Host::new(inline());
    let size = small().firmware.memory_bytes;
    let f = &host.f;
    let marks = || {
        let mut found = 0;
        for base in (0..size).step_by(regs::WINDOW_BYTES as usize) {
            host.write64(regs::WINDOW_BASE, base);
            for at in (0..regs::WINDOW_BYTES).step_by(8) {
                found += usize::from(f.read64(2, BarOffset(at)).unwrap() == MARK);
            }
        }
        found
    };
    for reset in [false, true] {
        let mut admin = host.bring_up(16, NONE);
        let map = host.create_map(&mut admin, 1, 8, 8, 100).unwrap();
        let mut q = host.create_queue(&mut admin, 1, 8, NONE, true);
        for i in 0..100u64 {
            let s = update(map, i, &i.to_le_bytes(), &MARK.to_le_bytes());
            assert!(host.run(&mut q, s).status().is_success());
        }
        assert!(marks() >= 100, "the values are in device memory");
        match reset {
            true => {
                f.reset().unwrap();
                host.command(0x6);
            }
            false => host.write32(regs::CONTROL, 0),
        }
        assert_eq!(marks(), 0);
    }
}
