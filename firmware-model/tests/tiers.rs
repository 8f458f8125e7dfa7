//! Memory tiers: placement, exhaustion to the last line, fragmentation, heat, and what is refused. Held
//! against a plain picture of intervals.

mod common;
#[path = "common/memory.rs"]
mod memory;

use common::{ARRAY, HASH, Host, Shape, admin, create, firmware, free};
use memory::*;
use offmap_abi::admin::{
    MAP_TIER_FIXED, MapAttr, MapLayoutBody, MapMigrated, MemoryDetail, MemoryInfoBody,
    TIER_PLACEABLE, TierInfo,
};
use offmap_abi::{AdminOpcode, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{
    AUTO_SHARE, Config, ConfigError, Firmware, Progress, TierConfig, tier_ranges,
};
use std::collections::BTreeMap;

const LINE: u64 = 64;

#[test]
fn tiers_that_cannot_be_are_refused() {
    let refused = |tiers: Vec<TierConfig>, memory: u64| {
        let config = Config {
            memory_bytes: memory,
            ..Config::with_memory(memory).with_tiers(tiers)
        };
        match Firmware::new(config, vec![0; 1 << 20]) {
            Err(ConfigError::Tier { number, what }) => Some((number, what)),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    };
    let two = |first: TierConfig| {
        let sum = first.size_bytes + 4096;
        refused(vec![first, TierConfig::new("b", 4096)], sum)
    };
    assert_eq!(two(TierConfig::new("a", 4096)), None);
    for name in ["", "seventeen_letters", "a b", "\u{e9}", "a\0"] {
        assert_eq!(
            two(TierConfig::new(name, 4096)).map(|e| e.0),
            Some(1),
            "{name:?}"
        );
    }
    assert_eq!(two(TierConfig::new("b", 4096)).map(|e| e.0), Some(2));
    assert_eq!(two(TierConfig::new("a", 0)).map(|e| e.0), Some(1));
    assert_eq!(two(TierConfig::new("a", 100)).map(|e| e.0), Some(1));
    let own = TierConfig {
        placeable: false,
        ..TierConfig::new("a", 4096)
    };
    assert!(refused(vec![own], 4096).is_some_and(|e| e.1.contains("no tier")));
    let many = |count: u32| {
        (0..count)
            .map(|n| TierConfig::new(&format!("t{n}"), 64))
            .collect()
    };
    assert_eq!(refused(many(16), 1024), None);
    assert!(refused(many(17), 17 * 64).is_some_and(|e| e.1.contains("16")));
    // A sum of sizes that is another one than memory_bytes.
    let config = Config {
        memory_bytes: 8192,
        ..Config::with_memory(0).with_tiers(vec![TierConfig::new("a", 4096)])
    };
    let error = Firmware::new(config, vec![0; 8192]).unwrap_err();
    assert!(error.to_string().contains("do not make up"), "{error}");
}

#[test]
fn a_device_without_tiers_has_one() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let map = create(&mut firmware, &Shape::new(HASH, 8, 8, 100));
    let [tier] = memory_info(&mut firmware)[..] else {
        panic!("one tier");
    };
    assert_eq!(tier.name, *b"memory\0\0\0\0\0\0\0\0\0\0");
    assert_eq!((tier.base.get(), tier.bytes.get()), (0, 1 << 20));
    let layout = layout(&mut firmware, map);
    assert_eq!(tier.used.get(), layout.bytes.get().next_multiple_of(LINE));
    assert_eq!((tier.check.get(), tier.flags.get()), (0, TIER_PLACEABLE));
    assert_eq!(firmware.identify().tiers.get(), 1);
}

#[test]
fn the_firmware_places_by_size_and_leaves_room() {
    let mut firmware = firmware(config());
    let array = |entries: u32| Shape::new(ARRAY, 4, 64, entries);
    let mut put = |entries, tier| {
        let map = handle_of(&create_in(&mut firmware, &array(entries), tier));
        let layout = layout(&mut firmware, map);
        (layout.tier.get(), layout.flags.get())
    };
    // 16 KiB / 8: 31 entries and the description are the most of scratch.
    assert_eq!(AUTO_SHARE, 8);
    assert_eq!(put(31, 0), (0, 0));
    assert_eq!(put(32, 0), (2, 0));
    // Too large a part of the second; the last one takes all.
    assert_eq!(put(1000, 0), (3, 0));
    // Asked for.
    assert_eq!(put(100, 1), (0, MAP_TIER_FIXED));
    assert_eq!(put(1, 4), (3, MAP_TIER_FIXED));
    // No such tier, and one that maps are not placed in.
    for tier in [2, 5, u32::MAX] {
        let done = create_in(&mut firmware, &array(1), tier);
        assert_eq!(done.status(), Status::InvalidField, "{tier}");
    }
    let info = memory_info(&mut firmware);
    let flags: Vec<u32> = info.iter().map(|tier| tier.flags.get()).collect();
    assert_eq!(flags, [1, 0, 1, 1]);
    let checks: Vec<u32> = info.iter().map(|tier| tier.check.get()).collect();
    assert_eq!(checks, [0, 0, 1, 2]);
    assert_eq!(
        firmware.identify().memory_bytes.get(),
        (16 << 10) + 100 * 1024 + 64 + 300 * 1024
    );
}

/// What lies where, as plain intervals.
#[derive(Default)]
struct Picture {
    maps: BTreeMap<u32, (u64, u64)>,
}

impl Picture {
    /// The gaps of a tier.
    fn gaps(&self, tier: &TierInfo) -> Vec<u64> {
        let (start, end) = (tier.base.get(), tier.base.get() + tier.bytes.get());
        let mut taken: Vec<(u64, u64)> = self.maps.values().copied().collect();
        taken.retain(|(at, _)| (start..end).contains(at));
        taken.sort_unstable();
        let mut gaps = Vec::new();
        let mut at = start;
        for (from, bytes) in taken {
            assert!(from >= at, "two maps overlap at {from:#x}");
            assert_eq!(from % LINE, 0);
            if from > at {
                gaps.push(from - at);
            }
            at = from + bytes.next_multiple_of(LINE);
        }
        assert!(at <= end, "a map passes the end of its tier");
        if at < end {
            gaps.push(end - at);
        }
        gaps
    }
}

fn check(firmware: &mut Firmware<Vec<u8>>, picture: &Picture) -> Vec<Vec<u64>> {
    let tiers = memory_info(firmware);
    let mut gaps = Vec::new();
    for tier in &tiers {
        let found = picture.gaps(tier);
        let free: u64 = found.iter().sum();
        assert_eq!(tier.used.get(), tier.bytes.get() - free);
        assert_eq!(tier.free_pieces.get() as usize, found.len());
        assert_eq!(
            tier.free_largest.get(),
            found.iter().max().copied().unwrap_or(0)
        );
        gaps.push(if tier.flags.get() == 0 {
            Vec::new()
        } else {
            found
        });
    }
    gaps
}

/// Maps of all sizes come, go and move in memory that is nearly full all the time.
#[test]
fn memory_that_is_nearly_full_is_used_to_the_last_line() {
    let mut refusals = [0; 2];
    for seed in 1..6 {
        let mut random = Random::new(seed);
        let mut firmware = firmware(config());
        let mut picture = Picture::default();
        let mut contents: BTreeMap<u32, (u32, u8)> = BTreeMap::new();
        for step in 0..1500 {
            let gaps = check(&mut firmware, &picture);
            let free: u64 = gaps.iter().flatten().sum();
            // Below a tenth it goes down again; otherwise up.
            let choice = random.below(10);
            let grows = free > 40_000 || choice < 3;
            let placed = [0, 1, 3, 4][random.below(4) as usize];
            let fits = |bytes: u64| {
                let bytes = bytes.next_multiple_of(LINE);
                let tier = |tier: &Vec<u64>| tier.iter().any(|gap| *gap >= bytes);
                match placed {
                    0 => gaps.iter().any(tier),
                    n => tier(&gaps[n as usize - 1]),
                }
            };
            let picked = contents
                .keys()
                .nth(random.below(contents.len().max(1) as u64) as usize);
            let picked = picked.copied();
            if grows && choice < 8 || picked.is_none() {
                let most = [60, 300, 1200][random.below(3) as usize];
                let entries = 1 + random.below(most) as u32;
                let shape = Shape::new(ARRAY, 4, 40, entries);
                let bytes = LINE + 40 * u64::from(entries);
                let done = create_in(&mut firmware, &shape, placed);
                if !fits(bytes) {
                    refusals[0] += 1;
                    assert_eq!(done.status(), Status::NoMemory, "seed {seed}, step {step}");
                    let detail: MemoryDetail = done.payload_as();
                    let tiers: Vec<&u64> = match placed {
                        0 => gaps.iter().flatten().collect(),
                        n => gaps[n as usize - 1].iter().collect(),
                    };
                    assert_eq!((detail.limit.get(), detail.tier.get()), (8, placed));
                    assert_eq!(detail.asked.get(), bytes);
                    assert_eq!(
                        detail.allowed.get(),
                        tiers.iter().copied().max().copied().unwrap_or(0)
                    );
                    assert_eq!(detail.free.get(), tiers.iter().copied().sum());
                    continue;
                }
                let map = handle_of(&done);
                let layout = layout(&mut firmware, map);
                assert_eq!(layout.bytes.get(), bytes);
                picture.maps.insert(map.0, (layout.base.get(), bytes));
                let byte = random.below(256) as u8;
                let last = (entries - 1).to_le_bytes();
                assert_eq!(firmware.update(map, &last, &[byte; 40], 0), Status::Success);
                contents.insert(map.0, (entries, byte));
                continue;
            }
            let map = picked.expect("there is one");
            let (entries, byte) = contents[&map];
            let (handle, (base, bytes)) = (MapHandle(map), picture.maps[&map]);
            if choice < 8 {
                assert_eq!(free_map(&mut firmware, handle), Status::Success);
                contents.remove(&map);
                picture.maps.remove(&map);
                continue;
            }
            let here = memory_info(&mut firmware);
            let here = here
                .iter()
                .position(|t| (t.base.get()..t.base.get() + t.bytes.get()).contains(&base));
            let here = here.expect("in a tier") as u32;
            let done = migrate(&mut firmware, handle, placed);
            let there = layout(&mut firmware, handle);
            if placed == 0 || here + 1 == placed || fits(bytes) {
                assert_eq!(done.status(), Status::Success, "seed {seed}, step {step}");
                let moved: MapMigrated = done.payload_as();
                assert_eq!((moved.map.get(), moved.from.get()), (map, here));
                assert_eq!((moved.base, moved.tier), (there.base, there.tier));
                if placed != 0 {
                    assert_eq!(there.tier.get() + 1, placed);
                }
            } else {
                refusals[1] += 1;
                assert_eq!(done.status(), Status::NoMemory);
                assert_eq!(there.base.get(), base);
            }
            picture.maps.insert(map, (there.base.get(), bytes));
            let mut value = [0; 40];
            let last = (entries - 1).to_le_bytes();
            assert_eq!(firmware.lookup(handle, &last, &mut value), Status::Success);
            assert_eq!(value, [byte; 40], "seed {seed}, step {step}");
        }
        for map in contents.keys() {
            assert_eq!(free_map(&mut firmware, MapHandle(*map)), Status::Success);
        }
        let gaps = check(&mut firmware, &Picture::default());
        assert!(
            gaps.iter().all(|tier| tier.len() <= 1),
            "the pieces have joined"
        );
    }
    assert!(
        refusals.iter().all(|n| *n > 50),
        "memory was never full: {refusals:?}"
    );
}

fn free_map(firmware: &mut Firmware<Vec<u8>>, map: MapHandle) -> Status {
    free(firmware, map)
}

/// What cannot be is refused, and changes nothing.
#[test]
fn hostile_bodies_about_memory() {
    let mut firmware = firmware(config());
    let map = create(&mut firmware, &Shape::new(HASH, 8, 8, 500));
    let before = firmware.memory_stats();
    for (handle, tier, expected) in [
        (map, 2, Status::InvalidField),
        (map, 5, Status::InvalidField),
        (map, u32::MAX, Status::InvalidField),
        (MapHandle(map.0 ^ 2 << 16), 1, Status::InvalidMap),
        (MapHandle(u32::MAX), 0, Status::InvalidMap),
        (MapHandle(0), 1, Status::InvalidField),
    ] {
        assert_eq!(
            migrate(&mut firmware, handle, tier).status(),
            expected,
            "{tier}"
        );
    }
    // Too large for where it is to go.
    let large = create(&mut firmware, &Shape::new(ARRAY, 4, 64, 3000));
    let done = migrate(&mut firmware, large, 1);
    assert_eq!(done.status(), Status::NoMemory);
    let detail: MemoryDetail = done.payload_as();
    assert_eq!((detail.tier.get(), detail.asked.get()), (1, 64 + 3000 * 64));
    assert_eq!(free(&mut firmware, large), Status::Success);
    // Memory of the host that cannot be reached, before and in the midst.
    let body = MapLayoutBody {
        iova: 0.into(),
        len: 128.into(),
        reserved: [0; 36],
    };
    let command = Submission::new(AdminOpcode::MapLayout.0, RequestId(1), &body).with_map(map);
    let (done, steps) = admin(&mut firmware, &command, &mut Host::new(0));
    assert_eq!(done.status(), Status::DmaFault);
    assert!(steps > 2, "a large table takes several");
    let body = MemoryInfoBody {
        iova: u64::MAX.into(),
        len: u32::MAX.into(),
        first: 0.into(),
        reserved: [0; 32],
    };
    let command = Submission::new(AdminOpcode::MemoryInfo.0, RequestId(1), &body);
    let (done, _) = admin(&mut firmware, &command, &mut Host::new(0));
    assert_eq!(done.status(), Status::DmaFault);
    let body = MemoryInfoBody {
        first: u32::MAX.into(),
        ..body
    };
    let command = Submission::new(AdminOpcode::MemoryInfo.0, RequestId(1), &body);
    let (done, _) = admin(&mut firmware, &command, &mut Host::new(0));
    assert_eq!((done.status(), done.count.get()), (Status::Success, 0));
    // Another command while one is under way, and a page that is shorter than what there is.
    assert_eq!(
        firmware.admin(&migrate_command(map, 3), &mut Host::new(0)),
        Progress::More
    );
    for opcode in [
        AdminOpcode::MapFree,
        AdminOpcode::MapMigrate,
        AdminOpcode::MapLayout,
    ] {
        let command = Submission::new(opcode.0, RequestId(2), &[0u8; 48]).with_map(map);
        let Progress::Done(done) = firmware.admin(&command, &mut Host::new(0)) else {
            panic!("a second one is taken");
        };
        assert_eq!(done.status(), Status::Internal);
    }
    firmware.leave();
    assert_eq!(firmware.memory_stats(), before);
    // An attribute that is reserved.
    let mut host = Host::new(4096);
    let mut body = Shape::new(HASH, 8, 8, 5).body();
    let attr = MapAttr {
        reserved: 1.into(),
        ..MapAttr::default()
    };
    at_iova(&mut body, &attr, &mut host);
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body);
    let done = admin(&mut firmware, &command, &mut host).0;
    assert_eq!(done.status(), Status::InvalidField);
}

/// The layout of a full table counts every entry once, in the bucket where it is.
#[test]
fn a_layout_says_what_a_table_is_like() {
    let mut firmware = firmware(Config::with_memory(1 << 22));
    let shape = Shape::new(HASH, 8, 16, 5000);
    let map = create(&mut firmware, &shape);
    let empty = layout(&mut firmware, map);
    assert_eq!(
        (
            empty.entries.get(),
            empty.homes_used.get(),
            empty.longest_chain.get()
        ),
        (0, 0, 0)
    );
    for n in 0..5000u64 {
        assert_eq!(
            firmware.update(map, &n.to_le_bytes(), &[1; 16], 0),
            Status::Success
        );
    }
    let full = layout(&mut firmware, map);
    let probes = [
        full.probes_1,
        full.probes_2,
        full.probes_3,
        full.probes_4,
        full.probes_8,
        full.probes_16,
        full.probes_more,
    ];
    let probes = probes.map(|n| n.get());
    assert_eq!(probes.iter().sum::<u32>(), 5000);
    assert_eq!((full.entries.get(), full.max_entries.get()), (5000, 5000));
    assert!(
        full.homes_used.get() <= full.homes.get()
            && full.homes_used.get() > full.homes.get() * 9 / 10
    );
    assert_eq!(full.overflow_used.get() == 0, full.longest_chain.get() == 1);
    assert!(probes[0] > 4500 && probes[1] > 0, "{probes:?}");
    assert_eq!(full.entry_bytes.get(), 24);
    assert!(full.heat.get() >= 5000);
    let array = create(&mut firmware, &Shape::new(ARRAY, 4, 8, 10));
    let array = layout(&mut firmware, array);
    assert_eq!(
        (array.entries.get(), array.homes.get(), array.probes_1.get()),
        (10, 0, 0)
    );
}

/// Maps that are used come to lie in fast memory, and others make room for them.
#[test]
fn heat_decides_where_maps_lie() {
    let tiers = vec![
        TierConfig::new("fast", 8 << 10),
        TierConfig::new("slow", 1 << 20),
    ];
    let mut firmware = firmware(Config::with_memory(0).with_tiers(tiers));
    // Four small ones fill the fast tier, and the others had no place there.
    let maps: Vec<MapHandle> = (0..16)
        .map(|_| create(&mut firmware, &Shape::new(ARRAY, 4, 64, 15)))
        .collect();
    let fixed = handle_of(&create_in(&mut firmware, &Shape::new(ARRAY, 4, 64, 15), 2));
    let fast = |firmware: &mut Firmware<Vec<u8>>| -> Vec<usize> {
        let tiers = maps
            .iter()
            .map(|map| layout(firmware, *map).tier.get())
            .collect::<Vec<_>>();
        (0..16).filter(|n| tiers[*n] == 0).collect()
    };
    assert_eq!(fast(&mut firmware), [0, 1, 2, 3, 4, 5, 6, 7]);
    let mut value = [0; 64];
    let key = 0u32.to_le_bytes();
    for (n, map) in maps.iter().enumerate() {
        for _ in 0..[1, 100][usize::from(n >= 8)] {
            firmware.lookup(*map, &key, &mut value);
        }
    }
    for _ in 0..1000 {
        firmware.lookup(fixed, &key, &mut value);
    }
    let balance = |firmware: &mut Firmware<Vec<u8>>| {
        let mut moves = 0;
        loop {
            let done = migrate(firmware, MapHandle(0), 0);
            assert_eq!(done.status(), Status::Success);
            if done.payload_as::<MapMigrated>().map.get() == 0 {
                return moves;
            }
            moves += 1;
            assert!(moves < 100, "it goes round in circles");
        }
    };
    assert_eq!(balance(&mut firmware), 16, "each goes up or down once");
    assert_eq!(fast(&mut firmware), [8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(
        layout(&mut firmware, fixed).tier.get(),
        1,
        "its tier was asked for"
    );
    assert_eq!(balance(&mut firmware), 0);
    // Old heat fades.
    for _ in 0..12 {
        balance(&mut firmware);
    }
    assert_eq!(layout(&mut firmware, maps[9]).heat.get(), 0);
    for _ in 0..10 {
        firmware.lookup(maps[3], &key, &mut value);
    }
    balance(&mut firmware);
    assert!(fast(&mut firmware).contains(&3));
}

/// A timing profile's tiers are those of the device, and its meter knows where they lie.
#[test]
fn a_timing_profile_describes_the_tiers_of_a_device() {
    let tier = |name: &str, size_bytes| offmap_firmware_model::time::profile::Tier {
        name: name.into(),
        size_bytes,
        access_bytes: 64,
        latency: offmap_firmware_model::time::Picos(1000),
        bytes_per_s: 1 << 30,
        outstanding: 4,
        cache: None,
    };
    let profile = [tier("fast", 4096), tier("slow", 1 << 20)];
    let tiers: Vec<TierConfig> = profile.iter().map(TierConfig::from).collect();
    let ranges = tier_ranges(&tiers);
    let mut firmware = firmware(Config::with_memory(0).with_tiers(tiers));
    for (info, range) in memory_info(&mut firmware).iter().zip(&ranges) {
        assert_eq!(
            (info.base.get(), info.bytes.get()),
            (range.from.0, range.bytes)
        );
    }
    assert_eq!(
        ranges.iter().map(|range| range.tier).collect::<Vec<_>>(),
        [0, 1]
    );
}
