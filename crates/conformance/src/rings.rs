//! Ring buffers: what a host sees of them through commands. What engines write to them is no
//! command; `tests/tests/ringbuf_device.rs` has it.

use super::Bench;
use super::host::{Host, command};
use offmap_abi::admin::MapAttr;
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ringbuf::{DROPPED, PAGE_BYTES, PRODUCER_POSITION, memory_bytes};
use offmap_abi::submission::{BatchBody, ElementBody};
use offmap_abi::{IoOpcode, MapHandle, MapType, Status};
use offmap_device_io::{DmaRegion, Function};
use std::sync::atomic::Ordering;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

const SIZE: u32 = 4096;

/// A page for the attributes, and the ring's memory behind it, which is not zero.
fn memory<F: Function>(host: &Host<F>) -> DmaRegion<F> {
    let region = host.dma((PAGE_BYTES + memory_bytes(SIZE.into())) as usize);
    for word in [PRODUCER_POSITION, DROPPED] {
        let at = (PAGE_BYTES + word) as usize;
        region.buffer().store_u64(at, 77, Ordering::Relaxed);
    }
    region
}

fn attr<F: Function>(memory: &DmaRegion<F>, vector: u32) -> MapAttr {
    MapAttr {
        host_memory: U64::new(memory.iova(PAGE_BYTES as usize).0),
        vector: U32::new(vector),
        ..MapAttr::default()
    }
}

/// MAP_CREATE of a ring of `size`, with these attributes.
#[track_caller]
fn create<F: Function>(
    host: &Host<F>,
    memory: &DmaRegion<F>,
    size: u32,
    attr: &MapAttr,
) -> Result<MapHandle, Status> {
    memory.buffer().write(0, attr.as_bytes());
    let mut body = Host::<F>::map_body(MapType::Ringbuf.0, 0, 0, size);
    body.attr = U64::new(memory.iova(0).0);
    body.attr_len = U32::new(size_of::<MapAttr>() as u32);
    match host.try_map(&body) {
        Ok(created) => Ok(MapHandle(created.map.get())),
        Err(done) => Err(done.status()),
    }
}

/// A new ring is empty in host memory, and no command finds an element in it.
pub fn a_ring_has_memory_and_no_elements<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_type(MapType::Ringbuf.0);
    let mut queue = bench.queue(&host, 1, 4);
    let memory = memory(&host);
    let vector = host.function().vectors() - 1;
    let map = create(&host, &memory, SIZE, &attr(&memory, vector)).unwrap();
    for word in [PRODUCER_POSITION, DROPPED] {
        let at = (PAGE_BYTES + word) as usize;
        assert_eq!(memory.buffer().load_u64(at, Ordering::Acquire), 0);
    }
    assert_eq!(host.query(map).unwrap().entries.get(), 0);
    for opcode in 1..=0x15 {
        let opcode = IoOpcode(opcode);
        if opcode.name().is_none() {
            continue;
        }
        let mut entry = if opcode.is_batch() {
            let mut body = BatchBody::new_zeroed();
            body.count = U32::new(1);
            offmap_abi::Submission::new(opcode.0, super::host::next_request(), &body)
        } else {
            let body = ElementBody::new_zeroed();
            offmap_abi::Submission::new(opcode.0, super::host::next_request(), &body)
        };
        entry = entry.with_map(map);
        assert_eq!(queue.run(entry).status(), Status::Unsupported, "{opcode:?}");
    }
    assert_eq!(host.free(map), Status::Success);
}

/// Sizes, memory and vectors that cannot be.
pub fn unusable_rings_are_refused<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_type(MapType::Ringbuf.0);
    let memory = memory(&host);
    let good = attr(&memory, NO_VECTOR);
    for size in [0, 1, 2048, 12288, u32::MAX] {
        let refused = create(&host, &memory, size, &good);
        assert_eq!(refused, Err(Status::InvalidField), "{size}");
    }
    let iova = good.host_memory.get();
    for (host_memory, vector, status) in [
        (0, NO_VECTOR, Status::InvalidField),
        (iova + 64, NO_VECTOR, Status::InvalidField),
        (!(PAGE_BYTES - 1), NO_VECTOR, Status::InvalidField),
        (iova, host.function().vectors(), Status::InvalidField),
        // The data area's end is not there.
        (iova + PAGE_BYTES, NO_VECTOR, Status::DmaFault),
        (1 << 47, NO_VECTOR, Status::DmaFault),
    ] {
        let bad = MapAttr {
            host_memory: U64::new(host_memory),
            vector: U32::new(vector),
            ..good
        };
        let refused = create(&host, &memory, SIZE, &bad);
        assert_eq!(refused, Err(status), "{host_memory:#x}, vector {vector}");
    }
    create(&host, &memory, SIZE, &good).unwrap();
    // Without attributes there is no memory.
    let bare = Host::<F>::map_body(MapType::Ringbuf.0, 0, 0, SIZE);
    let refused = host.admin(command(offmap_abi::AdminOpcode::MapCreate, &bare));
    assert_eq!(refused.status(), Status::InvalidField);
}

/// A ring whose memory is taken away before it is freed, and many after it.
pub fn freeing_a_ring_lets_go_of_its_memory<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.maps = Some(1));
    host.need_type(MapType::Ringbuf.0);
    for _ in 0..100 {
        let memory = memory(&host);
        let map = create(&host, &memory, SIZE, &attr(&memory, 0)).unwrap();
        let again = create(&host, &memory, SIZE, &attr(&memory, 0));
        assert_eq!(again, Err(Status::LimitExceeded));
        drop(memory);
        assert_eq!(host.free(map), Status::Success);
        assert_eq!(host.free(map), Status::InvalidMap);
    }
}
