//! Memory tiers: placement, exhaustion to the last line, fragmentation, migration beside commands, and
//! what a reset or a fault leaves of it. Held against plain pictures: intervals, maps and queues.

mod common;

use common::{
    ARRAY, HASH, HOST_BYTES, Host, LPM, Model, PERCPU_ARRAY, PERCPU_HASH, QUEUE, STACK, Shape,
    admin, create, element, firmware, free, io, returned,
};
use offmap_abi::admin::{
    MAP_TIER_FIXED, MapAttr, MapCreateBody, MapCreated, MapLayout, MapLayoutBody, MapMigrateBody,
    MapMigrated, MemoryDetail, MemoryInfoBody, MemoryListed, TIER_PLACEABLE, TierInfo,
};
use offmap_abi::{
    AdminOpcode, Completion, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission,
};
use offmap_firmware_model::engine::{DataOp, Engines, Turn};
use offmap_firmware_model::{
    AUTO_SHARE, Config, ConfigError, Ecc, Firmware, Progress, StepLimits, TierConfig,
};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use zerocopy::{FromBytes, IntoBytes};

const LINE: u64 = 64;

struct Random(Xoshiro256PlusPlus);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }
}

/// Scratch, then memory that is not for maps, then two more.
fn tiers() -> Vec<TierConfig> {
    let own = TierConfig {
        placeable: false,
        ..TierConfig::new("own", 4096)
    };
    vec![
        TierConfig::new("scratch", 16 << 10),
        own,
        TierConfig::new("sram", 100 * 1024 + 64).with_ecc(Ecc::Parity),
        TierConfig::new("dram", 300 * 1024).with_ecc(Ecc::Secded),
    ]
}

fn config() -> Config {
    Config {
        maps: 200,
        // So that a move takes many steps.
        step: StepLimits {
            bytes: 1024,
            buckets: 16,
        },
        ..Config::with_memory(0).with_tiers(tiers())
    }
}

fn at_iova(body: &mut MapCreateBody, attr: &MapAttr, host: &mut Host) {
    host.put(common::BASE, attr.as_bytes());
    body.attr = common::BASE.into();
    body.attr_len = (size_of::<MapAttr>() as u32).into();
}

/// MAP_CREATE with a tier: its number plus one, or 0.
fn create_in(firmware: &mut Firmware<Vec<u8>>, shape: &Shape, tier: u32) -> Completion {
    let mut host = Host::new(4096);
    let mut body = shape.body();
    let attr = MapAttr {
        tier: tier.into(),
        ..MapAttr::default()
    };
    at_iova(&mut body, &attr, &mut host);
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body);
    admin(firmware, &command, &mut host).0
}

fn handle_of(done: &Completion) -> MapHandle {
    assert_eq!(done.status(), Status::Success);
    MapHandle(done.payload_as::<MapCreated>().map.get())
}

fn migrate_command(map: MapHandle, tier: u32) -> Submission {
    let body = MapMigrateBody {
        tier: tier.into(),
        reserved: [0; 44],
    };
    Submission::new(AdminOpcode::MapMigrate.0, RequestId(5), &body).with_map(map)
}

fn migrate(firmware: &mut Firmware<Vec<u8>>, map: MapHandle, tier: u32) -> Completion {
    admin(firmware, &migrate_command(map, tier), &mut Host::new(0)).0
}

/// MAP_LAYOUT.
fn layout(firmware: &mut Firmware<Vec<u8>>, map: MapHandle) -> MapLayout {
    let mut host = Host::new(256);
    let body = MapLayoutBody {
        iova: common::BASE.into(),
        len: 256.into(),
        reserved: [0; 36],
    };
    let command = Submission::new(AdminOpcode::MapLayout.0, RequestId(6), &body).with_map(map);
    let (done, _) = admin(firmware, &command, &mut host);
    assert_eq!(done.status(), Status::Success);
    assert_eq!(done.count.get() as usize, size_of::<MapLayout>());
    MapLayout::read_from_bytes(host.at(common::BASE, size_of::<MapLayout>())).expect("its size")
}

/// MEMORY_INFO, a tier at a time.
fn memory_info(firmware: &mut Firmware<Vec<u8>>) -> Vec<TierInfo> {
    let mut tiers = Vec::new();
    loop {
        let mut host = Host::new(128);
        let body = MemoryInfoBody {
            iova: common::BASE.into(),
            len: 128.into(),
            first: (tiers.len() as u32).into(),
            reserved: [0; 32],
        };
        let command = Submission::new(AdminOpcode::MemoryInfo.0, RequestId(6), &body);
        let (done, steps) = admin(firmware, &command, &mut host);
        assert_eq!((done.status(), steps), (Status::Success, 1));
        let listed: MemoryListed = done.payload_as();
        assert_eq!(listed.line_bytes.get(), 64);
        if tiers.len() == listed.tiers.get() as usize {
            assert_eq!(done.count.get(), 0);
            return tiers;
        }
        assert_eq!(done.count.get() as usize, size_of::<TierInfo>());
        let bytes = host.at(common::BASE, size_of::<TierInfo>());
        tiers.push(TierInfo::read_from_bytes(bytes).expect("its size"));
    }
}

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

/// A map under test and what it should hold.
enum Should {
    Map(Model),
    Queue(Shape, VecDeque<Vec<u8>>),
}

impl Should {
    fn new(shape: Shape) -> Self {
        match shape.map_type {
            QUEUE | STACK => Self::Queue(shape, VecDeque::new()),
            _ => Self::Map(Model::new(shape)),
        }
    }

    /// A random operation, by a command or as an engine makes it.
    fn act(
        &mut self,
        firmware: &mut Firmware<Vec<u8>>,
        map: MapHandle,
        random: &mut Random,
        host: &mut Host,
    ) {
        match self {
            Self::Map(model) => act_on_map(model, firmware, map, random, host),
            Self::Queue(shape, values) => {
                let push = random.below(3) != 0;
                let value = vec![random.below(256) as u8; shape.value_size];
                let opcode = match push {
                    true => IoOpcode::Update,
                    false => IoOpcode::LookupAndDelete,
                };
                let given = push.then_some(&value[..]);
                let room = if push { 0 } else { shape.value_size };
                let command = element(opcode, map, Some(&[]), given, room, 0, true, host);
                let done = io(firmware, &command, host);
                if push {
                    let full = values.len() == shape.max_entries as usize;
                    assert_eq!(done.status() == Status::Full, full);
                    if !full {
                        values.push_back(value);
                    }
                    return;
                }
                let next = match shape.map_type {
                    QUEUE => values.pop_front(),
                    _ => values.pop_back(),
                };
                match next {
                    Some(next) => assert_eq!(returned(&command, &done, next.len(), host), next),
                    None => assert_eq!(done.status(), Status::NotFound),
                }
            }
        }
    }
}

fn key_of(shape: &Shape, n: u32) -> Vec<u8> {
    let mut key = vec![0; shape.key_size];
    if shape.map_type == LPM {
        // Prefixes of all the bits, so that the longest one that covers a key is itself.
        key[..4].copy_from_slice(&32_u32.to_le_bytes());
        key[4..8].copy_from_slice(&n.to_be_bytes());
    } else {
        key[..4].copy_from_slice(&n.to_le_bytes());
    }
    key
}

fn act_on_map(
    model: &mut Model,
    firmware: &mut Firmware<Vec<u8>>,
    map: MapHandle,
    random: &mut Random,
    host: &mut Host,
) {
    let shape = model.shape;
    let key = key_of(
        &shape,
        random.below(u64::from(shape.max_entries) * 5 / 4) as u32,
    );
    let value = vec![random.below(256) as u8; shape.value_bytes()];
    // What pads a slot is zero.
    let value = match shape.cpu_slots {
        0 => value,
        _ => {
            let slot = shape.value_size.next_multiple_of(8);
            value
                .chunks(slot)
                .flat_map(|c| [&c[..shape.value_size], &vec![0; slot - shape.value_size]].concat())
                .collect()
        }
    };
    match random.below(10) {
        0..4 => {
            let flags = random.below(3) as u32;
            let command = element(
                IoOpcode::Update,
                map,
                Some(&key),
                Some(&value),
                0,
                flags,
                true,
                host,
            );
            let done = io(firmware, &command, host);
            assert_eq!(done.status(), model.update(&key, &value, flags), "update");
        }
        4 => assert_eq!(
            firmware.update(map, &key, &value, 0),
            model.update(&key, &value, 0)
        ),
        5..8 => {
            let command = element(IoOpcode::Delete, map, Some(&key), None, 0, 0, true, host);
            if !shape.is_array() {
                let done = io(firmware, &command, host);
                assert_eq!(done.status(), model.delete(&key), "delete");
            }
        }
        _ => {
            let room = shape.value_bytes();
            let command = element(IoOpcode::Lookup, map, Some(&key), None, room, 0, true, host);
            let done = io(firmware, &command, host);
            match model.lookup(&key) {
                Ok(value) => assert_eq!(returned(&command, &done, room, host), value),
                Err(status) => assert_eq!(done.status(), status),
            }
        }
    }
}

/// Everything that the map holds, and that it is all.
fn compare(should: &Should, firmware: &mut Firmware<Vec<u8>>, map: MapHandle) {
    let Should::Map(model) = should else {
        return;
    };
    let mut value = vec![0; model.shape.value_bytes()];
    for (key, expected) in &model.entries {
        assert_eq!(
            firmware.lookup(map, key, &mut value),
            Status::Success,
            "{key:x?}"
        );
        assert_eq!(&value, expected);
    }
    let mut seen = 0;
    let (mut key, mut next) = (None, vec![0; model.shape.key_size]);
    while firmware.get_next(map, key.as_deref(), &mut next) == Status::Success {
        assert!(model.entries.contains_key(&next));
        key = Some(next.clone());
        seen += 1;
    }
    assert_eq!(seen, model.entries.len());
}

/// Tables of all kinds in all tiers move on and on while they are used: between any two steps of a move
/// there are commands on the map that moves, and on the others.
#[test]
fn tables_are_what_they_should_be_while_they_move() {
    let kinds = [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LPM, QUEUE, STACK];
    let mut moves = 0;
    for seed in 1..4 {
        let mut random = Random::new(seed);
        let mut firmware = firmware(config());
        let mut host = Host::new(HOST_BYTES);
        let mut maps: Vec<(MapHandle, Should)> = Vec::new();
        for (n, kind) in kinds.into_iter().cycle().take(14).enumerate() {
            let (key, value) = match kind {
                ARRAY | PERCPU_ARRAY => (4, 20),
                QUEUE | STACK => (0, 12),
                LPM => (8, 16),
                _ => (12, 20),
            };
            let shape = Shape::new(kind, key, value, 20 + 10 * n as u32);
            let placed = [0, 3, 4][random.below(3) as usize];
            let map = handle_of(&create_in(&mut firmware, &shape, placed));
            maps.push((map, Should::new(shape)));
        }
        for _ in 0..120 {
            let moving = random.below(maps.len() as u64) as usize;
            let tier = [0, 1, 3, 4][random.below(4) as usize];
            let command = migrate_command(maps[moving].0, tier);
            let mut progress = firmware.admin(&command, &mut host);
            let mut steps = 0;
            while progress == Progress::More {
                for _ in 0..random.below(12) {
                    // Mostly the one that moves.
                    let any = random.below(maps.len() as u64) as usize;
                    let which = [moving, any][usize::from(random.below(4) == 0)];
                    let (map, should) = &mut maps[which];
                    should.act(&mut firmware, *map, &mut random, &mut host);
                }
                progress = firmware.resume(&mut host);
                steps += 1;
            }
            let Progress::Done(done) = progress else {
                unreachable!("it is done");
            };
            let ok = [Status::Success, Status::NoMemory].contains(&done.status());
            assert!(ok, "{}", done.status());
            moves += u32::from(done.status().is_success() && steps > 2);
            let (map, should) = &maps[moving];
            compare(should, &mut firmware, *map);
        }
        for (map, should) in &maps {
            compare(should, &mut firmware, *map);
        }
    }
    assert!(moves > 100, "{moves} moves");
}

/// More writes than are noted between two steps, to the part that is copied.
#[test]
fn a_move_keeps_up_with_any_number_of_writes() {
    let mut firmware = firmware(config());
    let shape = Shape::new(ARRAY, 4, 8, 8000);
    let map = handle_of(&create_in(&mut firmware, &shape, 3));
    for n in 0..8000u32 {
        firmware.update(map, &n.to_le_bytes(), &u64::from(n).to_le_bytes(), 0);
    }
    let mut host = Host::new(0);
    assert_eq!(
        firmware.admin(&migrate_command(map, 4), &mut host),
        Progress::More
    );
    let mut round = 1;
    let done = loop {
        for n in 0..8000u32 {
            let value = (u64::from(n) << 8 | round).to_le_bytes();
            assert_eq!(
                firmware.update(map, &n.to_le_bytes(), &value, 0),
                Status::Success
            );
        }
        match firmware.resume(&mut host) {
            Progress::More => round += 1,
            Progress::Done(done) => break done,
        }
    };
    assert_eq!(done.status(), Status::Success);
    assert!(round > 20);
    assert_eq!(layout(&mut firmware, map).tier.get(), 3);
    for n in 0..8000u32 {
        let mut value = [0; 8];
        firmware.lookup(map, &n.to_le_bytes(), &mut value);
        assert_eq!(u64::from_le_bytes(value), u64::from(n) << 8 | round, "{n}");
    }
}

/// The old table is whole, and its new place free, whenever a reset, the host's leaving or a fault comes.
#[test]
fn what_ends_a_move_leaves_the_old_table() {
    for ends_at in 0..60 {
        for faulty in [false, true] {
            let mut firmware = firmware(config());
            let shape = Shape::new(HASH, 8, 40, 300);
            let map = handle_of(&create_in(&mut firmware, &shape, 4));
            for n in 0..300u64 {
                assert_eq!(
                    firmware.update(map, &n.to_le_bytes(), &[n as u8; 40], 0),
                    Status::Success
                );
            }
            let before = (firmware.memory_stats(), layout(&mut firmware, map).base);
            let mut host = Host::new(0);
            let mut progress = firmware.admin(&migrate_command(map, 3), &mut host);
            for _ in 0..ends_at {
                if progress == Progress::More {
                    progress = firmware.resume(&mut host);
                }
            }
            if progress != Progress::More {
                continue;
            }
            if faulty {
                // The last value goes wrong, twice in a word. The move meets that.
                let at = DevAddr(before.1.get() + layout_bytes(&before.0) - 16);
                assert!(firmware.flip_bits(at, 3));
                let done = loop {
                    if let Progress::Done(done) = firmware.resume(&mut host) {
                        break done;
                    }
                };
                assert_eq!(done.status(), Status::MediaError);
                assert!(firmware.flip_bits(at, 3), "and is right again");
            } else {
                firmware.leave();
            }
            let after = (firmware.memory_stats(), layout(&mut firmware, map).base);
            assert_eq!(after, before, "at step {ends_at}");
            for n in 0..300u64 {
                let mut value = [0; 40];
                assert_eq!(
                    firmware.lookup(map, &n.to_le_bytes(), &mut value),
                    Status::Success
                );
                assert_eq!(value, [n as u8; 40]);
            }
            assert_eq!(migrate(&mut firmware, map, 3).status(), Status::Success);
            let Progress::More = firmware.admin(&migrate_command(map, 4), &mut host) else {
                panic!("a second move takes steps");
            };
            firmware.reset();
            assert_eq!(
                firmware.memory_stats().free_bytes,
                firmware.identify().memory_bytes.get()
            );
            assert_eq!(firmware.memory_stats().free_pieces, 3);
        }
    }
}

/// Bytes that one map occupies.
fn layout_bytes(stats: &offmap_firmware_model::MemoryStats) -> u64 {
    stats.total_bytes - stats.free_bytes
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

/// Engines add to counters access by access, in any order, while the map under them moves on and on: nothing
/// is lost, nothing counted twice, and they come to an end.
#[test]
fn engines_in_the_midst_of_operations_and_a_map_that_moves() {
    let mut landed = 0;
    for seed in 1..6 {
        let mut random = Random::new(seed);
        let mut firmware = firmware(config());
        let shape = Shape::new(HASH, 8, 16, 40);
        let map = handle_of(&create_in(&mut firmware, &shape, 4));
        let mut sums = [0u64; 40];
        for n in 0..40u64 {
            assert_eq!(
                firmware.update(map, &n.to_le_bytes(), &[0; 16], 0),
                Status::Success
            );
        }
        let mut engines = Engines::new(firmware, 8).expect("a width");
        let mut host = Host::new(0);
        let mut moving = false;
        for _ in 0..20_000 {
            let engine = random.below(u64::from(engines.count())) as u32;
            if !engines.is_busy(engine) {
                let (n, delta) = (random.below(40), random.below(1000));
                sums[n as usize] += delta;
                let op = DataOp::Add {
                    map,
                    key: n.to_le_bytes().to_vec(),
                    offset: 8,
                    delta,
                };
                engines.start(engine, op).expect("it is idle");
            }
            if let Turn::Data { status, .. } = engines.turn(engine, &mut host) {
                assert_eq!(status, Status::Success);
            }
            if random.below(6) != 0 {
                continue;
            }
            let progress = match moving {
                true => engines.resume(&mut host),
                false => {
                    let tier = [1, 3, 4][random.below(3) as usize];
                    engines.admin(&migrate_command(map, tier), &mut host)
                }
            };
            moving = progress == Progress::More;
            if let Progress::Done(done) = progress {
                assert_eq!(done.status(), Status::Success);
                landed += 1;
            }
        }
        for turn in 0..100_000 {
            if moving {
                moving = engines.resume(&mut host) == Progress::More;
            }
            engines.turn(turn % engines.count(), &mut host);
            if engines.is_idle() && !moving {
                break;
            }
        }
        let firmware = engines.firmware_mut().expect("all have ended");
        for (n, sum) in (0u64..).zip(sums) {
            let mut value = [0; 16];
            assert_eq!(
                firmware.lookup(map, &n.to_le_bytes(), &mut value),
                Status::Success
            );
            assert_eq!(value[8..], sum.to_le_bytes(), "seed {seed}, key {n}");
        }
    }
    assert!(landed > 100, "{landed} moves");
}
