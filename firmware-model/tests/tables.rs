//! Worst cases of the tables, recycled memory, handles, and the data path's engines.

mod common;

use common::*;
use offmap_abi::hash::KeyHash;
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status};
use offmap_firmware_model::{Config, Firmware, Progress};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Keys that all have the same home bucket in a table of `max_entries`.
fn colliding_keys(seed: u64, max_entries: u32, count: usize) -> Vec<[u8; 8]> {
    let homes = u64::from(max_entries.div_ceil(6).next_power_of_two());
    let hash = KeyHash::new(seed);
    (0u64..)
        .map(u64::to_le_bytes)
        .filter(|key| hash.hash(key) & (homes - 1) == homes / 3)
        .take(count)
        .collect()
}

#[test]
fn keys_that_all_collide_fill_the_map_and_churn() {
    for (seed, max_entries) in [(1, 1u32), (2, 8), (3, 9), (4, 100), (5, 256), (6, 257)] {
        let mut shape = Shape::new(HASH, 8, 16, max_entries);
        shape.seed = seed;
        let mut firmware = firmware(Config::with_memory(1 << 20));
        let map = create(&mut firmware, &shape);
        let mut model = Model::new(shape);
        let keys = colliding_keys(seed, max_entries, max_entries as usize + 5);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        for round in 0..20 {
            for key in &keys {
                let mut value = [0; 16];
                random.fill_bytes(&mut value);
                let flags = (random.next_u64() % 2) as u32;
                let status = firmware.update(map, key, &value, flags);
                assert_eq!(status, model.update(key, &value, flags), "seed {seed}");
            }
            assert_eq!(model.entries.len(), max_entries as usize);
            let info = firmware.map_info(map).unwrap();
            assert_eq!(info.entries.get(), max_entries);
            assert_eq!(info.longest_chain.get(), max_entries.div_ceil(8));
            for key in &keys {
                let mut value = [0; 16];
                let status = firmware.lookup(map, key, &mut value);
                match model.lookup(key) {
                    Ok(expected) => {
                        assert_eq!(status, Status::Success, "seed {seed} round {round}");
                        assert_eq!(value, *expected);
                    }
                    Err(expected) => assert_eq!(status, expected, "seed {seed}"),
                }
            }
            // In some rounds all of them go, so that every overflow bucket comes back.
            let odds = [1, 2, 10][round % 3];
            for key in &keys {
                if random.next_u64() % odds == 0 {
                    assert_eq!(firmware.delete(map, key), model.delete(key), "seed {seed}");
                }
            }
            let chain = firmware.map_info(map).unwrap().longest_chain.get();
            assert_eq!(
                chain as usize,
                model.entries.len().div_ceil(8),
                "seed {seed}: compaction left a bucket behind"
            );
        }
    }
}

#[test]
fn a_dump_tells_how_much_room_a_long_chain_needs() {
    let shape = Shape::new(HASH, 8, 16, 100);
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let map = create(&mut firmware, &shape);
    for key in colliding_keys(shape.seed, 100, 100) {
        assert_eq!(firmware.update(map, &key, &[1; 16], 0), Status::Success);
    }
    let mut host = Host::new(HOST_BYTES);
    let command = batch(IoOpcode::BatchDumpDelete, map, &shape, 99, 0, 0);
    let (status, count, result) = batch_result(&io(&mut firmware, &command, &mut host));
    assert_eq!((status, count), (Status::NoSpace, 0));
    assert_eq!((result.needed.get(), result.cursor.get()), (100, 32 / 3));
    assert_eq!(firmware.map_info(map).unwrap().entries.get(), 100);
    let command = batch(IoOpcode::BatchDumpDelete, map, &shape, 100, 0, 32 / 3);
    let (status, count, result) = batch_result(&io(&mut firmware, &command, &mut host));
    assert_eq!((status, count), (Status::NotFound, 100));
    assert_eq!(result.cursor.get(), 32);
    let info = firmware.map_info(map).unwrap();
    assert_eq!((info.entries.get(), info.longest_chain.get()), (0, 0));
    for cursor in [32, u64::from(u32::MAX) + 1, u64::MAX] {
        let command = batch(IoOpcode::BatchDump, map, &shape, 8, 0, cursor);
        let (status, count, _) = batch_result(&io(&mut firmware, &command, &mut host));
        assert_eq!((status, count), (Status::NotFound, 0));
    }
}

#[test]
fn an_array_dump_ends_as_the_kernels_does() {
    let shape = Shape::new(ARRAY, 4, 8, 6);
    let mut firmware = firmware(Config::with_memory(1 << 16));
    let map = create(&mut firmware, &shape);
    let mut host = Host::new(HOST_BYTES);
    let mut dump = |cursor, count| {
        let command = batch(IoOpcode::BatchDump, map, &shape, count, 0, cursor);
        let (status, count, result) = batch_result(&io(&mut firmware, &command, &mut host));
        (status, count, result.cursor.get())
    };
    assert_eq!(dump(0, 4), (Status::Success, 4, 4));
    assert_eq!(dump(4, 2), (Status::Success, 2, 6));
    assert_eq!(dump(4, 3), (Status::NotFound, 2, 6));
    assert_eq!(dump(6, 1), (Status::NotFound, 0, 6));
    assert_eq!(dump(u64::MAX, 2), (Status::NotFound, 0, 6));
    assert_eq!(dump(3, 0), (Status::Success, 0, 3));
}

fn window(firmware: &Firmware<Vec<u8>>, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    firmware.read_memory(DevAddr(at), &mut bytes);
    bytes
}

#[test]
fn recycled_memory_is_zero() {
    let memory = 1 << 20;
    let mut firmware = firmware(Config::with_memory(memory));
    for round in 0..8 {
        // Everything is dirty, by way of the window; then each type is created over it.
        firmware.write_memory(DevAddr(0), &vec![0xa5; memory as usize]);
        let shape = Shape::new(TYPES[round % 4], 4, 13, 2000);
        let map = create(&mut firmware, &shape);
        let bytes = query(&mut firmware, map).1.bytes.get();
        let body = window(&firmware, 64, bytes as usize - 64);
        assert!(body.iter().all(|&b| b == 0), "{shape:?}");
        assert_eq!(window(&firmware, 0, 4), b"OMAP");
        let rest = window(&firmware, bytes, (memory - bytes) as usize);
        assert!(rest.iter().all(|&b| b == 0xa5), "{shape:?} went too far");
        for n in 0u32..2000 {
            let value = vec![0xff; shape.value_bytes()];
            let status = firmware.update(map, &n.to_le_bytes(), &value, 0);
            assert_eq!(status, Status::Success);
        }
        assert_eq!(free(&mut firmware, map), Status::Success);
    }
}

#[test]
fn ten_million_entries_on_fresh_memory_cost_no_zeroing() {
    let config = Config::with_memory(2 << 30);
    let mut firmware = firmware(config);
    let shape = Shape::new(HASH, 8, 64, 10_000_000);
    let command = offmap_abi::Submission::new(
        offmap_abi::AdminOpcode::MapCreate.0,
        offmap_abi::RequestId(5),
        &shape.body(),
    );
    let (done, steps) = admin(&mut firmware, &command, &mut Host::new(0));
    assert_eq!(done.status(), Status::Success);
    assert!(steps <= 3, "{steps} steps");
    let created: offmap_abi::admin::MapCreated = done.payload_as();
    let map = MapHandle(created.map.get());
    let key = 77u64.to_le_bytes();
    assert_eq!(firmware.update(map, &key, &[3; 64], 1), Status::Success);
    let mut value = [0; 64];
    assert_eq!(firmware.lookup(map, &key, &mut value), Status::Success);
    assert_eq!(value, [3; 64]);
}

#[test]
fn stale_handles_are_refused() {
    let mut config = Config::with_memory(1 << 16);
    config.maps = 2;
    let mut firmware = firmware(config);
    let shape = Shape::new(HASH, 4, 4, 10);
    let mut stale = Vec::new();
    for _ in 0..200_000 {
        let map = create(&mut firmware, &shape);
        assert_ne!(map.generation(), 0);
        // Generations come round after 65,535 uses of each of the two slots.
        if stale.len() < 1000 {
            assert!(!stale.contains(&map));
            stale.push(map);
        }
        assert_eq!(free(&mut firmware, map), Status::Success);
        assert_eq!(free(&mut firmware, map), Status::InvalidMap);
    }
    let live = create(&mut firmware, &shape);
    for map in stale.into_iter().chain([MapHandle(0), MapHandle(u32::MAX)]) {
        if map == live {
            continue;
        }
        let mut bytes = [0; 4];
        assert_eq!(
            firmware.lookup(map, &[0; 4], &mut bytes),
            Status::InvalidMap
        );
        assert_eq!(
            firmware.update(map, &[0; 4], &[0; 4], 0),
            Status::InvalidMap
        );
        assert_eq!(firmware.delete(map, &[0; 4]), Status::InvalidMap);
        assert_eq!(firmware.get_next(map, None, &mut bytes), Status::InvalidMap);
        assert_eq!(query(&mut firmware, map).0, Status::InvalidMap);
    }
    assert_eq!(firmware.update(live, &[0; 4], &[0; 4], 0), Status::Success);
    firmware.reset();
    assert_eq!(firmware.delete(live, &[0; 4]), Status::InvalidMap);
    assert_ne!(create(&mut firmware, &shape), live);
}

#[test]
fn an_engine_touches_its_slot_only() {
    let mut config = Config::with_memory(1 << 16);
    config.engines = 5;
    let mut firmware = firmware(config);
    for map_type in [PERCPU_HASH, PERCPU_ARRAY] {
        let shape = Shape::new(map_type, 4, 5, 4);
        let map = create(&mut firmware, &shape);
        let key = [1, 0, 0, 0];
        // Leaves other bytes where the entry of the hash map will be.
        if map_type == PERCPU_HASH {
            assert_eq!(firmware.update(map, &key, &[0xcc; 24], 0), Status::Success);
            assert_eq!(firmware.delete(map, &key), Status::Success);
        }
        let status = firmware.engine_update(4, map, &key, &[4; 5], 0);
        assert_eq!(status, Status::Success);
        let mut all = [0xee; 24];
        assert_eq!(firmware.lookup(map, &key, &mut all), Status::Success);
        let mut expected = [0; 24];
        expected[8..13].fill(4);
        assert_eq!(all, expected, "engine 4 of three slots writes slot 1");
        assert_eq!(
            firmware.engine_update(2, map, &key, &[2; 5], 2),
            Status::Success
        );
        expected[16..21].fill(2);
        assert_eq!(firmware.lookup(map, &key, &mut all), Status::Success);
        assert_eq!(all, expected);
        for (engine, slot) in [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)] {
            let mut one = [0xee; 5];
            let status = firmware.engine_lookup(engine, map, &key, &mut one);
            assert_eq!(status, Status::Success);
            assert_eq!(one, expected[slot * 8..][..5]);
        }
        assert_eq!(
            firmware.engine_update(0, map, &key, &[0; 5], 1),
            Status::Exists
        );
        assert_eq!(
            firmware.engine_update(5, map, &key, &[0; 5], 0),
            Status::InvalidField
        );
        assert_eq!(
            firmware.engine_update(0, map, &key, &[0; 24], 0),
            Status::InvalidLength
        );
        assert_eq!(free(&mut firmware, map), Status::Success);
    }
    let map = create(&mut firmware, &Shape::new(HASH, 4, 5, 4));
    assert_eq!(
        firmware.engine_update(3, map, &[0; 4], &[9; 5], 0),
        Status::Success
    );
    let mut value = [0; 5];
    assert_eq!(
        firmware.engine_lookup(1, map, &[0; 4], &mut value),
        Status::Success
    );
    assert_eq!(value, [9; 5]);
}

/// A lookup hit costs three reads (header, key, value) and no write; a miss costs one.
#[test]
fn a_lookup_touches_the_bucket_and_the_entry_only() {
    let shape = Shape::new(HASH, 8, 64, 1000);
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let map = create(&mut firmware, &shape);
    let key = 5u64.to_le_bytes();
    assert_eq!(firmware.update(map, &key, &[1; 64], 0), Status::Success);
    let mut host = Host::new(HOST_BYTES);
    let command = element(
        IoOpcode::Lookup,
        map,
        Some(&key),
        None,
        64,
        0,
        true,
        &mut host,
    );
    let (done, counts) = firmware.io_counted(1, &command, &mut host);
    let Progress::Done(done) = done else {
        panic!("a lookup takes one step");
    };
    assert_eq!(done.status(), Status::Success);
    assert_eq!((counts.reads, counts.read_bytes), (3, 16 + 8 + 64));
    assert_eq!(counts.writes, 0);
    let absent = 6u64.to_le_bytes();
    let command = element(
        IoOpcode::Lookup,
        map,
        Some(&absent),
        None,
        64,
        0,
        true,
        &mut host,
    );
    let (done, counts) = firmware.io_counted(1, &command, &mut host);
    let Progress::Done(done) = done else {
        panic!("a lookup takes one step");
    };
    assert_eq!(done.status(), Status::NotFound);
    assert_eq!((counts.reads, counts.read_bytes), (1, 16));
}

#[test]
fn the_firmware_can_move_to_another_thread() {
    fn send<T: Send>() {}
    send::<Firmware<Vec<u8>>>();
}

/// A tag is one byte, so that of thousands of absent keys many meet an entry with their own tag
/// in their own bucket. Only the comparison of the whole key tells those apart.
#[test]
fn keys_that_differ_in_one_byte_are_told_apart() {
    for key_size in [1usize, 2, 4, 5, 8, 12, 16, 17, 40] {
        // The byte that differs.
        for place in [0, key_size / 2, key_size - 1] {
            let shape = Shape::new(HASH, key_size, 8, 8);
            let mut firmware = firmware(Config::with_memory(1 << 20));
            let map = create(&mut firmware, &shape);
            let key = |filler: u8, n: u8| {
                let mut key = vec![filler; key_size];
                key[place] = n;
                key
            };
            let mut met = 0;
            // Each filler is a family of 256 keys that are alike but for one byte.
            for filler in 0..if key_size == 1 { 1 } else { 40 } {
                let stored: Vec<_> = (0..8).map(|n| key(filler, n * 32)).collect();
                for key in &stored {
                    assert_eq!(firmware.update(map, key, &[filler; 8], 1), Status::Success);
                }
                let hash = KeyHash::new(shape.seed);
                for n in (0..=255).filter(|n| n % 32 != 0) {
                    let absent = key(filler, n);
                    let tag = |key: &[u8]| hash.hash(key) >> 56;
                    met += u32::from(stored.iter().any(|s| tag(s) == tag(&absent)));
                    let mut value = [0; 8];
                    let what = format!("key size {key_size}, byte {place}, {absent:02x?}");
                    let status = firmware.lookup(map, &absent, &mut value);
                    assert_eq!(status, Status::NotFound, "{what}");
                    let status = firmware.update(map, &absent, &[0; 8], 2);
                    assert_eq!(status, Status::NotFound, "{what}");
                    assert_eq!(firmware.delete(map, &absent), Status::NotFound, "{what}");
                }
                for key in &stored {
                    assert_eq!(firmware.delete(map, key), Status::Success);
                }
            }
            assert!(
                key_size == 1 || met > 100,
                "only {met} absent keys met a tag"
            );
        }
    }
}
