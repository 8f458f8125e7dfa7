//! Maps of maps (abi §7.5).

use super::elements::Table;
use super::host::{Host, Queue};
use super::maps::SEARCHED_MAX;
use super::{Bench, skip};
use offmap_abi::admin::{MapAttr, MapCreateBody};
use offmap_abi::regs::{self, Features};
use offmap_abi::{IoOpcode, MapHandle, Status};
use offmap_device_io::{BarOffset, Function};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const ARRAY_OF_MAPS: u32 = 12;
const HASH_OF_MAPS: u32 = 13;
const OUTER: [u32; 2] = [ARRAY_OF_MAPS, HASH_OF_MAPS];

fn try_outer<F: Function>(
    host: &Host<F>,
    mut body: MapCreateBody,
    template: MapHandle,
) -> Result<MapHandle, Status> {
    host.need_type(body.map_type.get());
    let mut attr = MapAttr::new_zeroed();
    attr.inner_map = U32::new(template.0);
    let region = host.dma(size_of::<MapAttr>());
    region.buffer().write(0, attr.as_bytes());
    body.attr = U64::new(region.iova(0).0);
    body.attr_len = U32::new(size_of::<MapAttr>() as u32);
    match host.try_map(&body) {
        Ok(created) => Ok(MapHandle(created.map.get())),
        Err(done) => Err(done.status()),
    }
}

fn key(n: u32) -> [u8; 4] {
    n.to_le_bytes()
}

fn put<F: Function>(
    host: &Host<F>,
    queue: &mut Queue<F>,
    outer: MapHandle,
    n: u32,
    inner: MapHandle,
) -> Status {
    Table::new(host, queue, outer, (4, 4), 1).update(&key(n), &inner.0.to_le_bytes(), 0)
}

/// What a map of maps may be created with, and what may be stored in it.
pub fn maps_of_maps_take_maps_like_the_template<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let body = Host::<F>::map_body;
    let template = host.map(&body(HASH, 4, 8, 4));
    for map_type in OUTER {
        let make = |value, template| try_outer(&host, body(map_type, 4, value, 3), template);
        assert_eq!(make(4, MapHandle(0)), Err(Status::InvalidMap));
        assert_eq!(make(8, template), Err(Status::InvalidField));
        let outer = make(4, template).unwrap();
        assert_eq!(make(4, outer), Err(Status::InvalidField), "nested");
        let refused = try_outer(&host, body(ARRAY, 4, 8, 4), template);
        assert_eq!(refused, Err(Status::InvalidField), "a template of no use");
        for (key_size, value_size, other) in [(4, 9, HASH), (8, 8, HASH), (4, 8, ARRAY)] {
            let unlike = host.map(&body(other, key_size, value_size, 4));
            let stored = put(&host, &mut queue, outer, 0, unlike);
            assert_eq!(
                stored,
                Status::InvalidField,
                "{other} {key_size} {value_size}"
            );
            assert_eq!(host.free(unlike), Status::Success);
            assert_eq!(put(&host, &mut queue, outer, 0, unlike), Status::InvalidMap);
        }
        assert_eq!(
            put(&host, &mut queue, outer, 0, MapHandle(0)),
            Status::InvalidMap
        );
        assert_eq!(
            put(&host, &mut queue, outer, 0, outer),
            Status::InvalidField
        );
        let longer = host.map(&body(HASH, 4, 8, 4000));
        assert_eq!(put(&host, &mut queue, outer, 2, longer), Status::Success);
        let mut table = Table::new(&host, &mut queue, outer, (4, 4), 3);
        assert_eq!(table.lookup(&key(2)), Ok(longer.0.to_le_bytes().to_vec()));
        assert_eq!(table.lookup(&key(1)), Err(Status::NotFound));
        assert_eq!(table.take(&key(2)), Err(Status::Unsupported));
        let dump = table.dump(IoOpcode::BatchDump, 3, 0);
        assert_eq!((dump.status, dump.elements.len()), (Status::NotFound, 1));
        for opcode in [
            IoOpcode::BatchUpdate,
            IoOpcode::BatchDelete,
            IoOpcode::BatchDumpDelete,
        ] {
            let entry = table.batch(opcode, 1, 0, 0);
            assert_eq!(
                table.queue.run(entry).status(),
                Status::Unsupported,
                "{opcode:?}"
            );
        }
        assert_eq!(host.query(outer).unwrap().entries.get(), 1);
    }
}

/// MAP_FREE of a map that is held: stale for the host at once, gone with its last holder.
pub fn a_held_map_goes_with_its_last_holder<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.maps = Some(4));
    let mut queue = bench.queue(&host, 1, 4);
    let body = Host::<F>::map_body;
    for map_type in OUTER {
        let template = host.map(&body(HASH, 4, 8, 4));
        let make = || try_outer(&host, body(map_type, 4, 4, 3), template).unwrap();
        let (a, b) = (make(), make());
        let free_bytes = || host.query(template).unwrap().free_bytes.get();
        let before = free_bytes();
        for how in 0..3 {
            let inner = host.map(&body(HASH, 4, 8, 4));
            let held = free_bytes();
            assert!(held < before);
            assert_eq!(put(&host, &mut queue, a, 0, inner), Status::Success);
            assert_eq!(put(&host, &mut queue, a, 1, inner), Status::Success);
            assert_eq!(put(&host, &mut queue, b, 2, inner), Status::Success);
            assert_eq!(host.free(inner), Status::Success);
            assert_eq!(host.free(inner), Status::InvalidMap);
            assert_eq!(host.query(inner), Err(Status::InvalidMap));
            assert_eq!(put(&host, &mut queue, b, 0, inner), Status::InvalidMap);
            assert!(
                host.try_map(&body(HASH, 4, 8, 4)).is_err(),
                "its place is taken"
            );
            let mut table = Table::new(&host, &mut queue, a, (4, 4), 1);
            assert_eq!(table.lookup(&key(0)), Ok(inner.0.to_le_bytes().to_vec()));
            assert_eq!(table.delete(&key(0)), Status::Success);
            assert_eq!(table.delete(&key(0)), Status::NotFound);
            assert_eq!(put(&host, &mut queue, a, 1, template), Status::Success);
            assert_eq!(free_bytes(), held, "one entry is left");
            match how {
                0 => {
                    let mut table = Table::new(&host, &mut queue, b, (4, 4), 1);
                    assert_eq!(table.delete(&key(2)), Status::Success);
                }
                1 => assert_eq!(put(&host, &mut queue, b, 2, template), Status::Success),
                _ => assert_eq!(host.free(b), Status::Success),
            }
            assert!(free_bytes() >= before, "{how}");
            assert!(host.free(inner) == Status::InvalidMap);
        }
        assert_eq!(host.free(a), Status::Success);
        assert_eq!(host.free(template), Status::Success);
    }
}

/// What an entry of a map of maps holds is known apart from device memory: an entry that was changed through
/// the window is found out, until it is as it was.
pub fn an_entry_that_the_window_changed_is_internal<F: Function>(bench: &Bench<F>) {
    /// No map of the case has it.
    const NOBODY: u32 = 0x7fff_fff1;
    let host = bench.host_with(|wanted| wanted.memory_bytes = SEARCHED_MAX);
    host.need_features(Features::MEMORY_WINDOW);
    let mut queue = bench.queue(&host, 1, 4);
    let body = Host::<F>::map_body;
    let template = host.map(&body(HASH, 4, 8, 4));
    let other = host.map(&body(HASH, 4, 8, 4));
    let outer = try_outer(&host, body(ARRAY_OF_MAPS, 4, 4, 3), template).unwrap();
    assert_eq!(put(&host, &mut queue, outer, 1, template), Status::Success);
    let function = host.function();
    let memory = host.identify().memory_bytes.get().min(SEARCHED_MAX);
    let look = |at: u64| function.read32(2, BarOffset(at)).unwrap();
    let mut entry = None;
    'search: for base in (0..memory).step_by(regs::WINDOW_BYTES as usize) {
        let window = BarOffset(regs::WINDOW_BASE);
        function.write64(0, window, base).unwrap();
        for pair in (0..regs::WINDOW_BYTES).step_by(8) {
            let both = function.read64(2, BarOffset(pair)).unwrap();
            for at in [pair, pair + 4] {
                if (both >> (8 * (at - pair))) as u32 != template.0 {
                    continue;
                }
                // The handle may stand elsewhere, too: the entry is where another one comes to be.
                assert_eq!(put(&host, &mut queue, outer, 1, other), Status::Success);
                let moved = look(at) == other.0;
                assert_eq!(put(&host, &mut queue, outer, 1, template), Status::Success);
                if moved && look(at) == template.0 {
                    entry = Some(at);
                    break 'search;
                }
            }
        }
    }
    let Some(at) = entry else {
        skip(format!(
            "the entry is not in the first {} MiB of device memory, and no more is searched",
            SEARCHED_MAX >> 20
        ));
    };
    for wrong in [NOBODY, other.0] {
        function.write32(2, BarOffset(at), wrong).unwrap();
        let mut table = Table::new(&host, &mut queue, outer, (4, 4), 1);
        assert_eq!(table.lookup(&key(1)), Ok(wrong.to_le_bytes().to_vec()));
        assert_eq!(table.delete(&key(1)), Status::Internal);
        let again = table.update(&key(1), &template.0.to_le_bytes(), 0);
        assert_eq!(again, Status::Internal);
        function.write32(2, BarOffset(at), template.0).unwrap();
        assert_eq!(
            table.update(&key(1), &other.0.to_le_bytes(), 0),
            Status::Success
        );
        assert_eq!(
            table.update(&key(1), &template.0.to_le_bytes(), 0),
            Status::Success
        );
    }
    let mut table = Table::new(&host, &mut queue, outer, (4, 4), 1);
    assert_eq!(table.delete(&key(1)), Status::Success);
}
