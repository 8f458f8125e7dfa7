//! Messages that cannot be: each gets its errno, and the connection goes on or is closed.

use crate::raw::{EXIST, INVAL, NOTSUP, Raw, server};
use offmap_device_io::{DmaBuffer, DmaPlacement, Interrupt};
use offmap_tests::served::{ServerProcess, attach};
use offmap_vfio_user::message::MESSAGE_MAX;
use offmap_vfio_user::wire::{
    self, Command, DeviceInfoBody, DmaMapBody, DmaUnmapBody, Header, IrqInfoBody, RegionAccessBody,
    RegionInfoBody, SetIrqsBody, WriteMultiEntry,
};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use zerocopy::IntoBytes;

const MSIX: u32 = wire::MSIX_IRQ;
const EVENTFD: u32 = wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_TRIGGER;
const NONE: u32 = wire::IRQ_DATA_NONE | wire::IRQ_ACTION_TRIGGER;
const BOOL: u32 = wire::IRQ_DATA_BOOL | wire::IRQ_ACTION_TRIGGER;

fn buffer(len: usize) -> DmaBuffer {
    DmaBuffer::new(len, DmaPlacement::default()).expect("memory")
}

pub(crate) fn map(address: u64, size: u64, offset: u64) -> DmaMapBody {
    DmaMapBody {
        argsz: 32.into(),
        flags: 3.into(),
        offset: offset.into(),
        address: address.into(),
        size: size.into(),
    }
}

pub(crate) fn unmap(address: u64, size: u64) -> DmaUnmapBody {
    DmaUnmapBody {
        argsz: 24.into(),
        flags: 0.into(),
        address: address.into(),
        size: size.into(),
    }
}

pub(crate) fn access(region: u32, offset: u64, count: u32) -> RegionAccessBody {
    RegionAccessBody {
        offset: offset.into(),
        region: region.into(),
        count: count.into(),
    }
}

pub(crate) fn irqs(flags: u32, index: u32, start: u32, count: u32) -> SetIrqsBody {
    SetIrqsBody {
        argsz: 20.into(),
        flags: flags.into(),
        index: index.into(),
        start: start.into(),
        count: count.into(),
    }
}

#[test]
fn sizes_that_cannot_be() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for size in [0u32, 1, 15] {
        let mut header = Header::command(1, Command::DEVICE_SET_IRQS, 0);
        header.size = size.into();
        raw.bytes_are_invalid(header.as_bytes());
        raw.alive();
    }
    // What follows cannot be told from the message: the connection ends, the server goes on.
    for size in [MESSAGE_MAX + 1, u32::MAX] {
        let mut header = Header::command(1, Command::REGION_WRITE, 0);
        header.size = size.into();
        raw.bytes_are_invalid(header.as_bytes());
        raw.closed();
        raw = Raw::greeted(&server.path());
    }
    raw.alive();
}

#[test]
fn commands_that_are_none() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for command in [0, 14, 19, 999, u16::MAX] {
        raw.bad(Command(command), &[0], &[], INVAL);
        raw.bad(Command(command), &[], &[], INVAL);
    }
    for command in [
        Command::DEVICE_FEATURE,
        Command::MIG_DATA_READ,
        Command::MIG_DATA_WRITE,
    ] {
        raw.bad(command, &[0; 16], &[], NOTSUP);
    }
    for command in [Command::DMA_READ, Command::DMA_WRITE] {
        raw.bad(command, &[0; 16], &[], INVAL);
    }
    // A reply to nothing, and a message of no known type.
    for flags in [wire::TYPE_REPLY, 2, 0xf] {
        let mut header = Header::command(3, Command::DEVICE_RESET, 0);
        header.flags = flags.into();
        raw.bytes_are_invalid(header.as_bytes());
        raw.alive();
    }
}

#[test]
fn bodies_too_short_or_too_long() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for (command, least) in [
        (Command::DMA_MAP, 32),
        (Command::DMA_UNMAP, 24),
        (Command::DEVICE_GET_INFO, 16),
        (Command::DEVICE_GET_REGION_INFO, 32),
        (Command::DEVICE_GET_REGION_IO_FDS, 16),
        (Command::DEVICE_GET_IRQ_INFO, 16),
        (Command::DEVICE_SET_IRQS, 20),
        (Command::REGION_READ, 16),
        (Command::REGION_WRITE, 16),
        (Command::REGION_WRITE_MULTI, 8),
    ] {
        for len in [0, 1, least / 2, least - 1] {
            raw.bad(command, &vec![0xff; len], &[], INVAL);
        }
    }
    raw.bad(Command::DEVICE_RESET, &[0], &[], INVAL);
    raw.bad(
        Command::DMA_MAP,
        &[map(0x1000, 4096, 0).as_bytes(), &[0]].concat(),
        &[],
        INVAL,
    );
    raw.bad(
        Command::DMA_UNMAP,
        &[unmap(0x1000, 4096).as_bytes(), &[0]].concat(),
        &[],
        INVAL,
    );
    raw.bad(
        Command::REGION_READ,
        &[access(7, 0, 4).as_bytes(), &[0]].concat(),
        &[],
        INVAL,
    );
    // More or fewer bytes than the write says.
    for data in [&[][..], &[0; 3], &[0; 5]] {
        let body = [access(7, 4, 4).as_bytes(), data].concat();
        raw.bad(Command::REGION_WRITE, &body, &[], INVAL);
    }
    for (count, bytes) in [(0u64, 24), (1, 23), (1, 25), (2, 24), (u64::MAX, 24)] {
        let body = [&count.to_ne_bytes()[..], &vec![0; bytes]].concat();
        raw.bad(Command::REGION_WRITE_MULTI, &body, &[], INVAL);
    }
}

#[test]
fn argsz_is_checked() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for argsz in [0u32, 8, 15] {
        let info = DeviceInfoBody {
            argsz: argsz.into(),
            ..Default::default()
        };
        raw.bad(Command::DEVICE_GET_INFO, info.as_bytes(), &[], INVAL);
        let irq = IrqInfoBody {
            argsz: argsz.into(),
            ..Default::default()
        };
        raw.bad(Command::DEVICE_GET_IRQ_INFO, irq.as_bytes(), &[], INVAL);
        let region = RegionInfoBody {
            argsz: (argsz * 2).into(),
            ..Default::default()
        };
        raw.bad(
            Command::DEVICE_GET_REGION_INFO,
            region.as_bytes(),
            &[],
            INVAL,
        );
        let mut body = map(0x1000, 4096, 0);
        body.argsz = (argsz * 2).into();
        raw.bad(Command::DMA_MAP, body.as_bytes(), &[], INVAL);
        let mut body = unmap(0x1000, 4096);
        body.argsz = argsz.into();
        raw.bad(Command::DMA_UNMAP, body.as_bytes(), &[], INVAL);
        let mut body = irqs(NONE, MSIX, 0, 0);
        body.argsz = argsz.into();
        raw.bad(Command::DEVICE_SET_IRQS, body.as_bytes(), &[], INVAL);
    }
    let mut region = RegionInfoBody::default();
    // No room for the areas: then there is nothing to map, and no descriptor to lose.
    for argsz in [32u32, 63] {
        region.argsz = argsz.into();
        let reply = raw.good(Command::DEVICE_GET_REGION_INFO, region.as_bytes(), &[]);
        let (info, rest) = wire::take::<RegionInfoBody>(&reply.body).unwrap();
        assert_eq!((info.argsz.get(), info.cap_offset.get()), (64, 0));
        assert_eq!(info.flags.get(), 3);
        assert!(rest.is_empty() && reply.fds.is_empty());
    }
    for argsz in [64u32, 65, u32::MAX] {
        region.argsz = argsz.into();
        let reply = raw.good(Command::DEVICE_GET_REGION_INFO, region.as_bytes(), &[]);
        let (info, rest) = wire::take::<RegionInfoBody>(&reply.body).unwrap();
        assert_eq!((info.argsz.get(), info.cap_offset.get()), (64, 32));
        assert_eq!(info.flags.get(), 0xf);
        assert_eq!(reply.fds.len(), 1);
        let words: Vec<u64> = rest[16..]
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0x1_0000, 0x1_0000]);
    }
    for index in [9u32, 100, u32::MAX] {
        region.index = index.into();
        raw.bad(
            Command::DEVICE_GET_REGION_INFO,
            region.as_bytes(),
            &[],
            INVAL,
        );
        let irq = IrqInfoBody {
            argsz: 16.into(),
            index: index.into(),
            ..Default::default()
        };
        raw.bad(Command::DEVICE_GET_IRQ_INFO, irq.as_bytes(), &[], INVAL);
    }
}

#[test]
fn regions_are_not_left() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for (region, offset, count) in [
        (9, 0, 4),
        (u32::MAX, 0, 4),
        (1, 0, 4),
        (6, 0, 4),
        (7, 4096, 1),
        (7, 4095, 2),
        (7, 0, 4097),
        (7, u64::MAX, 1),
        (7, u64::MAX - 3, 8),
        (7, 0, 0),
        (0, 0x4_0000, 4),
        (0, 0x3_fffc, 8),
        (0, u64::MAX - 3, 4),
        (0, 2, 4),
        (0, 0, 2),
        (0, 0, 1),
        (2, 0x10_0000, 4),
        (2, 0, 0x10_0004),
        (0, 0, u32::MAX),
    ] {
        let body = access(region, offset, count);
        raw.bad(Command::REGION_READ, body.as_bytes(), &[], INVAL);
        if count <= 0x10_0004 {
            let body = [body.as_bytes(), &vec![0; count as usize]].concat();
            if body.len() + 16 <= MESSAGE_MAX as usize {
                raw.bad(Command::REGION_WRITE, &body, &[], INVAL);
            }
        }
    }
    // As much as there is, and as much as a message takes.
    let all = raw.good(Command::REGION_READ, access(7, 0, 4096).as_bytes(), &[]);
    assert_eq!(all.body.len(), 16 + 4096);
    let all = raw.good(Command::REGION_READ, access(2, 0, 1 << 20).as_bytes(), &[]);
    assert_eq!(all.body.len(), 16 + (1 << 20));
    // One of several writes is wrong: none is carried out.
    let entry = |region, offset, count, data| WriteMultiEntry {
        access: access(region, offset, count),
        data,
    };
    let command = [6, 0, 0, 0, 0, 0, 0, 0];
    for wrong in [
        entry(7, 4095, 2, command),
        entry(7, 4, 9, command),
        entry(9, 0, 4, command),
    ] {
        let two = [entry(7, 4, 2, command), wrong];
        let body = [&2u64.to_ne_bytes()[..], two.as_bytes()].concat();
        raw.bad(Command::REGION_WRITE_MULTI, &body, &[], INVAL);
        let word = raw.good(Command::REGION_READ, access(7, 4, 2).as_bytes(), &[]);
        assert_eq!(word.body[16..], [0, 0]);
    }
    let two = [entry(7, 4, 2, command), entry(7, 0x3c, 1, [9; 8])];
    let body = [&2u64.to_ne_bytes()[..], two.as_bytes()].concat();
    let done = raw.good(Command::REGION_WRITE_MULTI, &body, &[]);
    assert_eq!(done.body, 2u64.to_ne_bytes());
    let word = raw.good(Command::REGION_READ, access(7, 4, 2).as_bytes(), &[]);
    assert_eq!(word.body[16..], [6, 0]);
}

#[test]
fn dma_ranges_that_cannot_be() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    let memory = buffer(0x4000);
    let fd = [memory.fd()];
    raw.good(Command::DMA_MAP, map(0x1_0000, 0x4000, 0).as_bytes(), &fd);
    // Over it, in every way.
    for (address, size) in [
        (0x1_0000, 0x4000),
        (0x1_1000, 0x1000),
        (0xf000, 0x2000),
        (0x1_3000, 0x2000),
        (0xf000, 0x6000),
    ] {
        raw.bad(
            Command::DMA_MAP,
            map(address, size, 0).as_bytes(),
            &fd,
            EXIST,
        );
        raw.bad(
            Command::DMA_MAP,
            map(address, size, 0).as_bytes(),
            &[],
            EXIST,
        );
    }
    for (address, size, offset) in [
        (0x2_0000, 0, 0),
        (0x2_0000, 1, 0),
        (0x2_0001, 0x1000, 0),
        (0x2_0000, 0x1000, 1),
        (u64::MAX - 0xfff, 0x2000, 0),
        (0x2_0000, u64::MAX, 0),
        (1 << 48, 0x1000, 0),
        (0xfee0_0000, 0x1000, 0),
        (0x2_0000, 0x5000, 0),
        (0x2_0000, 0x1000, 0x4000),
        (0x2_0000, 0x1000, u64::MAX - 0xfff),
    ] {
        raw.bad(
            Command::DMA_MAP,
            map(address, size, offset).as_bytes(),
            &fd,
            INVAL,
        );
    }
    let mut flags = map(0x2_0000, 0x1000, 0);
    flags.flags = 0x13.into();
    raw.bad(Command::DMA_MAP, flags.as_bytes(), &fd, INVAL);
    flags.flags = 7.into();
    raw.bad(Command::DMA_MAP, flags.as_bytes(), &[], INVAL);
    let twice = [memory.fd(), memory.fd()];
    raw.bad(
        Command::DMA_MAP,
        map(0x2_0000, 0x1000, 0).as_bytes(),
        &twice,
        INVAL,
    );
    // What is no file has no memory. (Files that could be shortened are reached by messages.)
    raw.bad(
        Command::DMA_MAP,
        map(0x2_0000, 0x1000, 0).as_bytes(),
        &[raw.stream.try_clone().unwrap().as_fd()],
        INVAL,
    );
    // Where nothing was mapped there is nothing to do; a part of a mapping is none.
    raw.good(
        Command::DMA_UNMAP,
        unmap(0x4_0000, 0x1_0000).as_bytes(),
        &[],
    );
    raw.good(Command::DMA_UNMAP, unmap(1 << 63, 1 << 63).as_bytes(), &[]);
    for (address, size) in [
        (0x1_0000, 0x1000),
        (0x1_1000, 0x1000),
        (0x1_1000, 0x10_0000),
        (0x1_0000, 0),
        (u64::MAX, 2),
    ] {
        raw.bad(
            Command::DMA_UNMAP,
            unmap(address, size).as_bytes(),
            &[],
            INVAL,
        );
    }
    let mut all = unmap(0, 0);
    all.flags = 1.into();
    raw.bad(Command::DMA_UNMAP, all.as_bytes(), &[], INVAL);
    all.flags = wire::UNMAP_ALL.into();
    all.size = 4096.into();
    raw.bad(Command::DMA_UNMAP, all.as_bytes(), &[], INVAL);
    let unmapped = raw.good(Command::DMA_UNMAP, unmap(0x1_0000, 0x4000).as_bytes(), &[]);
    assert_eq!(unmapped.body, unmap(0x1_0000, 0x4000).as_bytes());
    raw.good(Command::DMA_MAP, map(0x1_0000, 0x4000, 0).as_bytes(), &fd);
    all.size = 0.into();
    raw.good(Command::DMA_UNMAP, all.as_bytes(), &[]);
    raw.good(Command::DMA_MAP, map(0x1_0000, 0x4000, 0).as_bytes(), &fd);
}

#[test]
fn interrupts_that_cannot_be() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    let eventfd = Interrupt::new().unwrap();
    let one = [eventfd.fd()];
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    for (flags, index, start, count, data, fds) in [
        // No such kind, no such interrupt, more than there are.
        (NONE, 5, 0, 1, &[][..], &[][..]),
        (NONE, u32::MAX, 0, 1, &[], &[]),
        (NONE, 0, 0, 1, &[], &[]),
        (NONE, MSIX, 17, 1, &[], &[]),
        (NONE, MSIX, 16, 2, &[], &[]),
        (NONE, MSIX, u32::MAX, 2, &[], &[]),
        (NONE, MSIX, 1, u32::MAX, &[], &[]),
        // None at all means all, and only in one way.
        (NONE, MSIX, 1, 0, &[], &[]),
        (EVENTFD, MSIX, 0, 0, &[], &[]),
        (BOOL, MSIX, 0, 0, &[], &[]),
        (
            wire::IRQ_DATA_NONE | wire::IRQ_ACTION_MASK,
            MSIX,
            0,
            0,
            &[],
            &[],
        ),
        // Not one action, not one form of data.
        (wire::IRQ_DATA_NONE, MSIX, 0, 1, &[], &[]),
        (NONE | wire::IRQ_ACTION_MASK, MSIX, 0, 1, &[], &[]),
        (wire::IRQ_ACTION_TRIGGER, MSIX, 0, 1, &[], &[]),
        (NONE | wire::IRQ_DATA_BOOL, MSIX, 0, 1, &[0], &[]),
        (NONE | 1 << 6, MSIX, 0, 1, &[], &[]),
        // Bytes and descriptors that do not fit the number of interrupts.
        (BOOL, MSIX, 0, 2, &[1], &[]),
        (BOOL, MSIX, 0, 2, &[1, 1, 1], &[]),
        (NONE, MSIX, 0, 1, &[1], &[]),
        (NONE, MSIX, 0, 1, &[], &one),
        (BOOL, MSIX, 0, 1, &[1], &one),
        (EVENTFD, MSIX, 0, 2, &[], &one),
        // No eventfd.
        (EVENTFD, MSIX, 0, 1, &[], &[a.as_fd()]),
    ] {
        let body = [irqs(flags, index, start, count).as_bytes(), data].concat();
        raw.bad(Command::DEVICE_SET_IRQS, &body, fds, INVAL);
    }
    let mask_event = irqs(wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_MASK, MSIX, 0, 1);
    raw.bad(
        Command::DEVICE_SET_IRQS,
        mask_event.as_bytes(),
        &one,
        NOTSUP,
    );
    assert!(!eventfd.take().unwrap(), "nothing of this has raised it");
}

#[test]
fn interrupts_are_routed_masked_and_triggered() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    let set = |raw: &mut Raw, flags, start, count, data: &[u8], fds: &[BorrowedFd<'_>]| {
        let body = [irqs(flags, MSIX, start, count).as_bytes(), data].concat();
        raw.good(Command::DEVICE_SET_IRQS, &body, fds);
    };
    // Interrupts are messages on the bus: the function must be allowed to send them.
    let master = [access(7, 4, 2).as_bytes(), &[6, 0]].concat();
    raw.good(Command::REGION_WRITE, &master, &[]);
    let irq: Vec<Interrupt> = (0..3).map(|_| Interrupt::new().unwrap()).collect();
    set(&mut raw, EVENTFD, 0, 2, &[], &[irq[0].fd(), irq[1].fd()]);
    // One at a time, and one without a descriptor, as QEMU does.
    set(&mut raw, EVENTFD, 5, 1, &[], &[irq[2].fd()]);
    set(&mut raw, EVENTFD, 6, 1, &[], &[]);
    let raised = || irq.iter().map(|i| i.take().unwrap()).collect::<Vec<_>>();
    set(&mut raw, NONE, 0, 7, &[], &[]);
    assert_eq!(raised(), [true, true, true]);
    set(&mut raw, BOOL, 0, 2, &[0, 1], &[]);
    assert_eq!(raised(), [false, true, false]);
    set(
        &mut raw,
        wire::IRQ_DATA_NONE | wire::IRQ_ACTION_MASK,
        1,
        1,
        &[],
        &[],
    );
    set(&mut raw, NONE, 0, 2, &[], &[]);
    assert_eq!(raised(), [true, false, false]);
    set(
        &mut raw,
        wire::IRQ_DATA_BOOL | wire::IRQ_ACTION_UNMASK,
        0,
        2,
        &[0, 1],
        &[],
    );
    assert_eq!(raised(), [false, true, false], "it was pending");
    set(&mut raw, EVENTFD, 0, 1, &[], &[]);
    set(&mut raw, NONE, 0, 2, &[], &[]);
    assert_eq!(raised(), [false, true, false]);
    set(&mut raw, NONE, 0, 0, &[], &[]);
    set(&mut raw, NONE, 0, 7, &[], &[]);
    assert_eq!(raised(), [false, false, false]);
}

#[test]
fn versions_and_capabilities_that_cannot_be() {
    let server = server();
    let hello = |version: &[u8], json: &[u8]| [version, json].concat();
    let (good, json) = ([0, 0, 1, 0], b"{}\0");
    for body in [
        vec![],
        vec![0, 0, 1],
        hello(&[1, 0, 0, 0], json),
        hello(&[0xe7, 3, 1, 0], json),
        hello(&good, b"{}"),
        hello(&good, b"{\0"),
        hello(&good, b"{ \"capabilities\": \"23\" }\0"),
        hello(&good, b"{ \"capabilities\": { \"max_msg_fds\": -1 } }\0"),
    ] {
        let mut raw = Raw::connect(&server.path());
        let reply = raw.ask(Command::VERSION, &body, &[]);
        assert_eq!(reply.header.error.get(), INVAL, "{}", body.escape_ascii());
        raw.closed();
    }
    // Something else first.
    let mut raw = Raw::connect(&server.path());
    let reply = raw.ask(Command::DEVICE_RESET, &[], &[]);
    assert_eq!(reply.header.error.get(), INVAL);
    raw.closed();
    // The same again.
    let mut raw = Raw::greeted(&server.path());
    raw.bad(Command::VERSION, &good, &[], INVAL);
    let memory = buffer(4096);
    raw.bad(Command::VERSION, &good, &[memory.fd()], INVAL);
}

#[test]
fn no_reply_means_none_and_the_order_stays() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for body in [
        [access(7, 0x3c, 1).as_bytes(), &[0x55][..]].concat(),
        // One that is refused: not a word either.
        [access(9, 0, 1).as_bytes(), &[0x55]].concat(),
    ] {
        let mut header = raw.command(Command::REGION_WRITE, body.len());
        header.flags = wire::NO_REPLY.into();
        raw.say(&header, &body, &[]).unwrap();
        let line = raw.good(Command::REGION_READ, access(7, 0x3c, 1).as_bytes(), &[]);
        assert_eq!(line.body[16..], [0x55]);
    }
}

#[test]
fn descriptors_do_not_stay_behind() {
    let mut config = offmap_emulator::DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    let server = ServerProcess::spawn(&config);
    let count = || {
        std::fs::read_dir(format!("/proc/{}/fd", server.id()))
            .unwrap()
            .count()
    };
    let mut raw = Raw::greeted(&server.path());
    let memory = buffer(0x10_0000);
    let fds = [memory.fd(); 16];
    let before = count();
    for n in 0..50 {
        let wrong = irqs(BOOL, MSIX, 0, 1);
        raw.bad(Command::DEVICE_SET_IRQS, wrong.as_bytes(), &fds[..2], INVAL);
        raw.bad(Command::DMA_MAP, map(1, 1, 1).as_bytes(), &fds[..1], INVAL);
        raw.bad(Command::DMA_MAP, map(0, 4096, 0).as_bytes(), &fds, INVAL);
        raw.bad(Command::DEVICE_RESET, &[], &fds[..n % 16 + 1], INVAL);
        raw.bad(Command(999), &[], &fds[..1], INVAL);
        // One file, however many ranges of it.
        raw.good(
            Command::DMA_MAP,
            map(0x1000 * (n as u64 + 1), 4096, 0).as_bytes(),
            &fds[..1],
        );
    }
    let after = count();
    assert!(after <= before + 1, "{before} descriptors became {after}");
    // With the client goes all it had.
    drop(raw);
    let mut raw = Raw::greeted(&server.path());
    raw.alive();
    assert_eq!(count(), before);
}

#[test]
fn a_client_at_a_time_and_half_messages_end_with_their_sender() {
    let server = server();
    let first = attach(&server.path());
    let second = offmap_vfio_user::VfioUser::attach(&server.path(), Default::default());
    let said = second.expect_err("there is a client").to_string();
    assert!(said.contains("another client holds"), "{said}");
    offmap_device_io::Function::vectors(&first);
    drop(first);
    for bytes in [1, 15, 16, 40] {
        let mut raw = Raw::greeted(&server.path());
        let header = raw.command(Command::REGION_WRITE, 100);
        let message = [header.as_bytes(), &[0; 100]].concat();
        raw.stream.write_all(&message[..bytes]).unwrap();
    }
    Raw::greeted(&server.path()).alive();
}
