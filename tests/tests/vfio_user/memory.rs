//! Client memory as the device reaches it, through the wire.

use crate::malformed::{map, unmap};
use crate::raw::{Raw, server};
use offmap_abi::Status;
use offmap_device_io::{DmaBuffer, DmaPlacement, Function};
use offmap_tests::conformance::host::Host;
use offmap_tests::served::OverSocket;
use offmap_vfio_user::wire::Command;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// As many ranges as a guest behind an IOMMU makes of its memory, of one file.
#[test]
fn a_guests_pages_are_a_table_and_one_mapping() {
    const RANGES: u64 = 100_000;
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    let memory = DmaBuffer::new(1 << 20, DmaPlacement::default()).unwrap();
    let maps = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let before = maps();
    for i in 0..RANGES {
        // Without replies but for the last: what the wire can take.
        let body = map((1 << 32) + i * 4096, 4096, i % 256 * 4096);
        let mut header = raw.command(Command::DMA_MAP, 32);
        header.flags = offmap_vfio_user::wire::NO_REPLY.into();
        raw.say(&header, body.as_bytes(), &[memory.fd()]).unwrap();
    }
    raw.alive();
    assert_eq!(mapped(&server), (RANGES as usize, 1));
    // What other tests map meanwhile is some hundreds.
    assert!(
        maps() < before + 5000,
        "{before} mappings became {}",
        maps()
    );
    raw.good(
        Command::DMA_UNMAP,
        unmap(1 << 32, 4096 * (RANGES / 2)).as_bytes(),
        &[],
    );
    assert_eq!(mapped(&server), (RANGES as usize / 2, 1));
    drop(raw);
    Raw::greeted(&server.path()).alive();
    assert_eq!(mapped(&server), (0, 0), "it left with its memory");
}

fn mapped(server: &offmap_tests::served::ServerThread) -> (usize, usize) {
    server.device().dma_mapped().expect("it lives")
}

/// A range that came without a file is taken, and the device meets a fault there.
#[test]
fn memory_without_a_file_is_a_dma_fault() {
    let config = offmap_tests::served::device(&offmap_tests::conformance::Wanted::default());
    let function = OverSocket::thread(config);
    let host = Host::bring_up(Arc::clone(&function));
    let iova = 1 << 40;
    function
        .inner()
        .client()
        .call(Command::DMA_MAP, &[map(iova, 4096, 0).as_bytes()], &[], 0)
        .unwrap();
    assert_eq!(host.identify_at(iova, 128), Status::DmaFault);
    // And memory that the device may read only.
    let memory = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
    let mut body = map(iova + 4096, 4096, 0);
    body.flags = 1.into();
    function
        .inner()
        .client()
        .call(Command::DMA_MAP, &[body.as_bytes()], &[memory.fd()], 0)
        .unwrap();
    assert_eq!(host.identify_at(iova + 4096, 128), Status::DmaFault);
    host.identify();
    assert_eq!(function.vectors(), 17);
}

/// One range more than there may be is `ENOSPC`; what is there stays, and room that is made is room.
#[test]
fn there_may_be_a_million_ranges_and_no_more() {
    const MOST: u64 = 1 << 20;
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    for i in 0..MOST {
        let mut header = raw.command(Command::DMA_MAP, 32);
        header.flags = offmap_vfio_user::wire::NO_REPLY.into();
        let body = map((1 << 32) + i * 4096, 4096, 0);
        raw.say(&header, body.as_bytes(), &[]).unwrap();
    }
    raw.alive();
    assert_eq!(mapped(&server), (MOST as usize, 0));
    let more = map(0x1000, 4096, 0);
    let nospc = rustix::io::Errno::NOSPC.raw_os_error().unsigned_abs();
    raw.bad(Command::DMA_MAP, more.as_bytes(), &[], nospc);
    assert_eq!(mapped(&server), (MOST as usize, 0));
    raw.good(Command::DMA_UNMAP, unmap(1 << 32, 4096).as_bytes(), &[]);
    raw.good(Command::DMA_MAP, more.as_bytes(), &[]);
}
