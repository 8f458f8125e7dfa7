//! MAP_LIST (abi §6.6).

use super::Bench;
use super::host::{Host, command};
use offmap_abi::admin::{MapAttr, MapListBody};
use offmap_abi::regs::Features;
use offmap_abi::{AdminOpcode, MapHandle, Status};
use offmap_device_io::Function;
use std::collections::BTreeSet;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

const HASH: u32 = 1;
const ARRAY: u32 = 2;

/// Every map is in the list once, as it was created, whatever the room; no other one is.
pub fn the_list_names_every_map<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_features(Features::MAP_LIST);
    assert_eq!(host.list(3), Vec::new());
    let room = host.dma(4096);
    let attr = MapAttr {
        name: *b"a name of its ow",
        ..MapAttr::default()
    };
    room.buffer().write(0, attr.as_bytes());
    let mut maps: Vec<(MapHandle, _)> = Vec::new();
    for n in 0..20_u32 {
        let map_type = [HASH, ARRAY][n as usize % 2];
        let mut body = Host::<F>::map_body(map_type, 4, 1 + n, 3 + n);
        if n % 3 == 0 {
            body.attr = U64::new(room.iova(0).0);
            body.attr_len = U32::new(size_of::<MapAttr>() as u32);
        }
        maps.push((host.map(&body), body));
    }
    for gone in [17, 8, 0] {
        assert_eq!(host.free(maps.remove(gone).0), Status::Success);
    }
    for at_a_time in [1, 2, 7, 17, 64] {
        let listed = host.list(at_a_time);
        let handles: BTreeSet<_> = listed.iter().map(|map| map.map.get()).collect();
        assert_eq!(
            (listed.len(), handles.len()),
            (17, 17),
            "{at_a_time} at a time"
        );
        for (map, body) in &maps {
            let found = listed.iter().find(|found| found.map.get() == map.0);
            let found = found.unwrap_or_else(|| panic!("{map} is not in the list"));
            let sizes = (
                found.map_type,
                found.key_size,
                found.value_size,
                found.max_entries,
            );
            let made = (
                body.map_type,
                body.key_size,
                body.value_size,
                body.max_entries,
            );
            assert_eq!(sizes, made);
            assert_eq!((found.cpu_slots.get(), found.map_extra.get()), (0, 0));
            let name = if body.attr_len.get() == 0 {
                [0; 16]
            } else {
                attr.name
            };
            assert_eq!(found.name, name);
            let tiers = host.features().contains(Features::MEMORY_TIERS);
            assert!(tiers || found.base.get() == 0, "a reserved field");
            let bytes = host.query(*map).map(|info| info.bytes.get());
            assert_eq!(Ok(found.bytes.get()), bytes);
        }
    }
    // What cannot be.
    let ask = |change: &dyn Fn(&mut MapListBody)| {
        let mut body = MapListBody::new_zeroed();
        body.iova = U64::new(room.iova(0).0);
        body.len = U32::new(4096);
        change(&mut body);
        host.admin(command(AdminOpcode::MapList, &body))
    };
    let past = ask(&|body| body.cursor = U32::new(1 << 16));
    assert_eq!((past.status(), past.count.get()), (Status::Success, 0));
    assert_eq!(
        ask(&|body| body.len = U32::new(63)).status(),
        Status::InvalidLength
    );
    assert_eq!(
        ask(&|body| body.iova = U64::new(1 << 60)).status(),
        Status::DmaFault
    );
    assert_eq!(
        ask(&|body| body.reserved[31] = 1).status(),
        Status::InvalidField
    );
}
