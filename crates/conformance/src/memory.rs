//! Memory tiers: MEMORY_INFO, MAP_LAYOUT, MAP_MIGRATE, and placement (abi §6.3, §6.7 to §6.9).

use super::Bench;
use super::elements::Table;
use super::host::{Host, command};
use offmap_abi::admin::{
    MAP_TIER_FIXED, MapAttr, MapLayout, MapLayoutBody, MapMigrateBody, MapMigrated, MemoryInfoBody,
    MemoryListed, TIER_PLACEABLE, TIERS_MAX, TierInfo,
};
use offmap_abi::regs::Features;
use offmap_abi::{AdminOpcode, Completion, MapHandle, Status};
use offmap_device_io::Function;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const HASH: u32 = 1;
const ENTRIES: u32 = 300;

fn tiers<F: Function>(host: &Host<F>) -> Vec<TierInfo> {
    let each = size_of::<TierInfo>();
    let room = host.dma(each * TIERS_MAX as usize);
    let mut body = MemoryInfoBody::new_zeroed();
    body.iova = U64::new(room.iova(0).0);
    body.len = U32::new((each * TIERS_MAX as usize) as u32);
    let done = host.admin(command(AdminOpcode::MemoryInfo, &body));
    assert_eq!(done.status(), Status::Success);
    let listed: MemoryListed = done.payload_as();
    let count = listed.tiers.get();
    assert!((1..=TIERS_MAX).contains(&count), "{count} tiers");
    assert_eq!(done.count.get() as usize, each * count as usize);
    let mut bytes = vec![0; each * count as usize];
    room.buffer().read(0, &mut bytes);
    let tiers = bytes.chunks(each);
    tiers
        .map(|tier| TierInfo::read_from_bytes(tier).expect("its size"))
        .collect()
}

fn layout<F: Function>(host: &Host<F>, map: MapHandle) -> MapLayout {
    let room = host.dma(size_of::<MapLayout>());
    let mut body = MapLayoutBody::new_zeroed();
    body.iova = U64::new(room.iova(0).0);
    body.len = U32::new(size_of::<MapLayout>() as u32);
    let done = host.admin(command(AdminOpcode::MapLayout, &body).with_map(map));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(done.count.get() as usize, size_of::<MapLayout>());
    let mut layout = MapLayout::new_zeroed();
    room.buffer().read(0, layout.as_mut_bytes());
    layout
}

fn migrate<F: Function>(host: &Host<F>, map: MapHandle, tier: u32) -> Completion {
    let mut body = MapMigrateBody::new_zeroed();
    body.tier = U32::new(tier);
    host.admin(command(AdminOpcode::MapMigrate, &body).with_map(map))
}

fn used(tiers: &[TierInfo]) -> u64 {
    tiers.iter().map(|tier| tier.used.get()).sum()
}

/// Tiers follow each other, make up the memory that IDENTIFY names, and count what maps take.
pub fn tiers_are_what_they_say<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_features(Features::MEMORY_TIERS);
    let empty = tiers(&host);
    let identity = host.identify();
    assert_eq!(identity.tiers.get() as usize, empty.len());
    let mut at = 0;
    for tier in &empty {
        assert!(tier.base.get() >= at, "tiers overlap");
        at = tier.base.get() + tier.bytes.get();
        assert_eq!((tier.used.get(), tier.free_pieces.get()), (0, 1));
        assert_eq!(tier.free_largest, tier.bytes);
        assert_eq!((tier.reserved.get(), tier.reserved2.get()), (0, 0));
        let end = tier.name.iter().position(|byte| *byte == 0).unwrap_or(16);
        assert!(end > 0 && tier.name[end..].iter().all(|byte| *byte == 0));
    }
    let placeable = empty
        .iter()
        .filter(|tier| tier.flags.get() & TIER_PLACEABLE != 0);
    let bytes: u64 = placeable.map(|tier| tier.bytes.get()).sum();
    assert_eq!(bytes, identity.memory_bytes.get());
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, ENTRIES));
    let made = layout(&host, map);
    let info = host.query(map).expect("it is there");
    assert_eq!(made.bytes, info.bytes);
    let full = tiers(&host);
    let tier = &full[made.tier.get() as usize];
    let place = tier.base.get()..tier.base.get() + tier.bytes.get();
    assert!(place.contains(&made.base.get()), "{made:?}");
    assert!(used(&full) >= made.bytes.get());
    assert_eq!(used(&full), tier.used.get());
    assert_eq!(host.free(map), Status::Success);
    assert_eq!(used(&tiers(&host)), 0);
    // From a tier on, with room for so much, and what cannot be.
    let ask = |change: &dyn Fn(&mut MemoryInfoBody)| {
        let mut body = MemoryInfoBody::new_zeroed();
        change(&mut body);
        let done = host.admin(command(AdminOpcode::MemoryInfo, &body));
        (done.status(), done.count.get())
    };
    assert_eq!(ask(&|body| body.len = U32::new(95)), (Status::Success, 0));
    let past = ask(&|body| {
        body.first = U32::new(u32::MAX);
        body.len = U32::new(4096);
    });
    assert_eq!(past, (Status::Success, 0));
    let far = ask(&|body| {
        body.iova = U64::new(1 << 60);
        body.len = U32::new(4096);
    });
    assert_eq!(far.0, Status::DmaFault);
    assert_eq!(ask(&|body| body.reserved[31] = 1).0, Status::InvalidField);
}

/// A map moves to every tier in which it fits, and keeps its handle and its contents; it can be placed there
/// at once, too.
pub fn a_map_moves_with_its_contents<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_features(Features::MEMORY_TIERS);
    let count = tiers(&host).len() as u32;
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, ENTRIES));
    let mut table = Table::new(&host, &mut queue, map, (8, 8), 1);
    for n in 0..u64::from(ENTRIES) {
        let value = (n * 3).to_le_bytes();
        assert_eq!(table.update(&n.to_le_bytes(), &value, 0), Status::Success);
    }
    let bytes = layout(&host, map).bytes.get();
    for tier in (1..=count).chain(1..=count) {
        let before = layout(&host, map);
        let there = tiers(&host)[tier as usize - 1];
        let done = migrate(&host, map, tier);
        let after = layout(&host, map);
        if there.flags.get() & TIER_PLACEABLE == 0 {
            assert_eq!(done.status(), Status::InvalidField);
            continue;
        }
        if done.status() == Status::NoMemory {
            assert!(there.free_largest.get() < bytes, "there is room");
            assert_eq!(after.base, before.base);
            continue;
        }
        assert_eq!(done.status(), Status::Success);
        let moved: MapMigrated = done.payload_as();
        assert_eq!((moved.map.get(), moved.tier.get()), (map.0, tier - 1));
        assert_eq!((moved.from, moved.base), (before.tier, after.base));
        assert_eq!(
            (after.tier.get(), after.flags.get()),
            (tier - 1, MAP_TIER_FIXED)
        );
        for n in 0..u64::from(ENTRIES) {
            let found = table.lookup(&n.to_le_bytes());
            assert_eq!(found, Ok((n * 3).to_le_bytes().to_vec()), "key {n}");
        }
    }
    assert!(
        (bytes..bytes + 4096).contains(&used(&tiers(&host))),
        "old places are free"
    );
    // The device's choice.
    let done = migrate(&host, map, 0);
    assert_eq!(done.status(), Status::Success);
    assert_eq!(layout(&host, map).flags.get(), 0);
    for _ in 0..1000 {
        let done = migrate(&host, MapHandle(0), 0);
        assert_eq!(done.status(), Status::Success);
        if done.payload_as::<MapMigrated>().map.get() == 0 {
            break;
        }
    }
    let done = migrate(&host, MapHandle(0), 0);
    assert_eq!(
        done.payload_as::<MapMigrated>().map.get(),
        0,
        "it does not end"
    );
    // What cannot be.
    assert_eq!(
        migrate(&host, map, count + 1).status(),
        Status::InvalidField
    );
    assert_eq!(migrate(&host, map, u32::MAX).status(), Status::InvalidField);
    assert_eq!(
        migrate(&host, MapHandle(0), 1).status(),
        Status::InvalidField
    );
    assert_eq!(host.free(map), Status::Success);
    assert_eq!(migrate(&host, map, 0).status(), Status::InvalidMap);
}

/// MAP_CREATE takes a tier, and refuses one that there is not.
pub fn maps_are_placed_where_they_are_asked_for<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_features(Features::MEMORY_TIERS);
    let room = host.dma(4096);
    let create = |tier: u32, reserved: u32| {
        let attr = MapAttr {
            tier: U32::new(tier),
            reserved: U32::new(reserved),
            ..MapAttr::default()
        };
        room.buffer().write(0, attr.as_bytes());
        let mut body = Host::<F>::map_body(HASH, 8, 8, 10);
        body.attr = U64::new(room.iova(0).0);
        body.attr_len = U32::new(size_of::<MapAttr>() as u32);
        host.try_map(&body)
    };
    let all = tiers(&host);
    for (number, tier) in (0..).zip(&all) {
        let made = create(number + 1, 0);
        if tier.flags.get() & TIER_PLACEABLE == 0 {
            assert_eq!(
                made.map_err(|done| done.status()),
                Err(Status::InvalidField)
            );
            continue;
        }
        let map = match made {
            Ok(created) => MapHandle(created.map.get()),
            Err(done) => {
                assert_eq!(done.status(), Status::NoMemory);
                continue;
            }
        };
        let layout = layout(&host, map);
        assert_eq!(
            (layout.tier.get(), layout.flags.get()),
            (number, MAP_TIER_FIXED)
        );
        assert_eq!((layout.entries.get(), layout.max_entries.get()), (0, 10));
        assert_eq!(host.free(map), Status::Success);
    }
    for (tier, reserved) in [(all.len() as u32 + 1, 0), (u32::MAX, 0), (0, 1)] {
        let refused = create(tier, reserved).map_err(|done| done.status());
        assert_eq!(refused, Err(Status::InvalidField), "tier {tier}");
    }
}
