//! LRU tables and rings against plain models, through commands and as data-path engines.

mod common;

use common::*;
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status};
use offmap_firmware_model::table::hash::EVICT_SCANS;
use offmap_firmware_model::{Config, Firmware};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn made(shape: &Shape) -> (Firmware<Vec<u8>>, MapHandle) {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let map = create(&mut firmware, shape);
    (firmware, map)
}

fn has(firmware: &mut Firmware<Vec<u8>>, map: MapHandle, key: u32) -> bool {
    let mut value = [0; 64];
    match firmware.lookup(map, &key.to_le_bytes(), &mut value) {
        Status::Success => true,
        Status::NotFound => false,
        other => panic!("lookup: {other}"),
    }
}

fn insert(firmware: &mut Firmware<Vec<u8>>, map: MapHandle, key: u32) {
    let value = [key as u8; 8];
    let status = firmware.update(map, &key.to_le_bytes(), &value, 0);
    assert_eq!(status, Status::Success, "key {key}");
}

/// An LRU map in the plainest form: what is in it, and nothing of the order. An insert into a
/// full map takes the device's word for which key went, but only one may, and not the new one.
struct LruModel {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    max_entries: usize,
}

impl LruModel {
    fn update(&mut self, key: &[u8], value: &[u8], flags: u32) -> Status {
        match (self.entries.contains_key(key), flags) {
            (true, 1) => return Status::Exists,
            (false, 2) => return Status::NotFound,
            _ => {}
        }
        self.entries.insert(key.to_vec(), value.to_vec());
        Status::Success
    }

    /// Drops the key that the device evicted, if there are too many.
    fn settle(&mut self, newest: &[u8], on_device: impl Fn(&[u8]) -> bool) {
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|k| !on_device(k))
            .cloned()
            .collect();
        let surplus = self.entries.len().saturating_sub(self.max_entries);
        assert_eq!(
            gone.len(),
            surplus,
            "one goes when the map is full, otherwise none"
        );
        assert!(!gone.iter().any(|key| key == newest), "the newest key went");
        for key in gone {
            self.entries.remove(&key);
        }
    }
}

fn lru_against_the_model(map_type: u32, max_entries: u32, seed: u64) {
    let shape = Shape::new(map_type, 5, 13, max_entries);
    let (mut firmware, map) = made(&shape);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut host = Host::new(HOST_BYTES);
    let mut model = LruModel {
        entries: BTreeMap::new(),
        max_entries: max_entries as usize,
    };
    let context = format!("seed {seed}, {shape:?}");
    for round in 0..8_000 {
        let mut key = vec![0; 5];
        let n = random.next_u64() % (u64::from(max_entries) * 3 / 2 + 2);
        key[..4].copy_from_slice(&(n as u32).to_le_bytes());
        let mut value = vec![0; shape.value_bytes()];
        random.fill_bytes(&mut value);
        let inline = random.next_u64().is_multiple_of(2);
        match random.next_u64() % 16 {
            0..9 => {
                let flags = (random.next_u64() % 3) as u32;
                let (k, v) = (Some(&key[..]), Some(&value[..]));
                let command = element(IoOpcode::Update, map, k, v, 0, flags, inline, &mut host);
                let status = io(&mut firmware, &command, &mut host).status();
                assert_eq!(status, model.update(&key, &value, flags), "{context}");
                let mut there = BTreeSet::new();
                let mut scratch = vec![0; shape.value_bytes()];
                for k in model.entries.keys() {
                    if firmware.lookup(map, k, &mut scratch) == Status::Success {
                        there.insert(k.clone());
                    }
                }
                model.settle(&key, |k| there.contains(k));
            }
            9..11 => {
                let expected = match model.entries.remove(&key) {
                    Some(_) => Status::Success,
                    None => Status::NotFound,
                };
                assert_eq!(firmware.delete(map, &key), expected, "{context}");
            }
            11..13 => {
                let mut got = vec![0; shape.value_bytes()];
                let engine = (random.next_u64() % 8) as u32;
                let status = firmware.engine_lookup(engine, map, &key, &mut got);
                let expected = model.entries.get(&key);
                assert_eq!(status == Status::Success, expected.is_some(), "{context}");
                if let Some(expected) = expected {
                    let slot = engine.checked_rem(shape.cpu_slots).unwrap_or(0) as usize;
                    assert_eq!(got[..13], expected[slot * 16..][..13], "{context}");
                }
            }
            13 if round % 7 == 0 => {
                // A dump sees what is there, each once; with deletion the map is empty after it.
                let delete = round % 2 == 0;
                let opcode = match delete {
                    true => IoOpcode::BatchDumpDelete,
                    false => IoOpcode::BatchDump,
                };
                let command = batch(opcode, map, &shape, 1000, 0, 0);
                let (status, count, _) = batch_result(&io(&mut firmware, &command, &mut host));
                assert_eq!(status, Status::NotFound, "{context}");
                assert_eq!(count, model.entries.len(), "{context}");
                for i in 0..count {
                    let key = host.at(KEYS + 5 * i as u64, 5);
                    let at = VALUES + (i * shape.value_bytes()) as u64;
                    let value = host.at(at, shape.value_bytes());
                    assert_eq!(
                        model.entries.get(key).map(|v| &v[..]),
                        Some(value),
                        "{context}"
                    );
                }
                if delete {
                    model.entries.clear();
                }
            }
            _ => {
                let mut got = vec![0; shape.value_bytes()];
                let status = firmware.lookup(map, &key, &mut got);
                match model.entries.get(&key) {
                    Some(value) => assert_eq!((status, &got), (Status::Success, value)),
                    None => assert_eq!(status, Status::NotFound, "{context}"),
                }
            }
        }
        let info = firmware.map_info(map).unwrap();
        assert_eq!(
            info.entries.get() as usize,
            model.entries.len(),
            "{context}"
        );
    }
}

#[test]
fn lru_tables_agree_with_the_model() {
    for (seed, max_entries) in [(1, 1), (2, 2), (3, 7), (4, 40), (5, 150)] {
        lru_against_the_model(LRU_HASH, max_entries, seed);
        lru_against_the_model(LRU_PERCPU_HASH, max_entries, seed);
    }
}

/// Without uses the oldest key goes; what an engine looked up, or an update found, stays; what
/// the host looked up does not stay for that.
#[test]
fn use_by_engines_and_updates_counts_and_lookup_by_the_host_does_not() {
    let shape = Shape::new(LRU_HASH, 4, 8, 8);
    let (mut firmware, map) = made(&shape);
    for key in 0..8 {
        insert(&mut firmware, map, key);
    }
    insert(&mut firmware, map, 8);
    assert!(!has(&mut firmware, map, 0), "the oldest goes first");
    let mut value = [0; 8];
    let looked_up = firmware.engine_lookup(2, map, &1u32.to_le_bytes(), &mut value);
    assert_eq!(looked_up, Status::Success);
    insert(&mut firmware, map, 2);
    // The host looks at key 3, by every way that it has.
    let mut host = Host::new(HOST_BYTES);
    for opcode in [IoOpcode::Lookup, IoOpcode::GetNext] {
        let key = 3u32.to_le_bytes();
        let command = element(opcode, map, Some(&key), None, 8, 0, true, &mut host);
        io(&mut firmware, &command, &mut host);
    }
    host.put(KEYS, &3u32.to_le_bytes());
    for opcode in [IoOpcode::BatchLookup, IoOpcode::BatchDump] {
        let count = if opcode == IoOpcode::BatchDump { 64 } else { 1 };
        io(
            &mut firmware,
            &batch(opcode, map, &shape, count, 0, 0),
            &mut host,
        );
    }
    insert(&mut firmware, map, 9);
    assert!(has(&mut firmware, map, 1), "an engine used it");
    assert!(has(&mut firmware, map, 2), "an update used it");
    assert!(!has(&mut firmware, map, 3), "the host only looked at it");
    // A chance is one: without further use they go in their turn.
    for key in 10..20 {
        insert(&mut firmware, map, key);
    }
    assert!(!has(&mut firmware, map, 1) && !has(&mut firmware, map, 2));
}

/// The key that takes a deleted one's place is not the next to go.
#[test]
fn a_new_key_in_an_old_place_is_not_the_oldest() {
    let shape = Shape::new(LRU_HASH, 4, 8, 8);
    let (mut firmware, map) = made(&shape);
    for key in 0..8 {
        insert(&mut firmware, map, key);
    }
    assert_eq!(firmware.delete(map, &0u32.to_le_bytes()), Status::Success);
    insert(&mut firmware, map, 100);
    insert(&mut firmware, map, 101);
    assert!(has(&mut firmware, map, 100), "it was the newest but one");
    assert!(!has(&mut firmware, map, 1));
}

/// However many are in use, an eviction looks at no more than so many.
#[test]
fn an_eviction_is_bounded() {
    let shape = Shape::new(LRU_HASH, 4, 8, 4096);
    let (mut firmware, map) = made(&shape);
    for round in 0..2 {
        for key in 0..4096 {
            insert(&mut firmware, map, key);
            assert!(round == 0 || has(&mut firmware, map, key));
        }
    }
    let mut host = Host::new(HOST_BYTES);
    let (key, value) = (5000u32.to_le_bytes(), [1; 8]);
    let command = element(
        IoOpcode::Update,
        map,
        Some(&key),
        Some(&value),
        0,
        0,
        true,
        &mut host,
    );
    let (_, counts) = firmware.io_counted(1, &command, &mut host);
    let accesses = counts.reads + counts.writes;
    assert!(
        accesses > u64::from(2 * EVICT_SCANS),
        "{accesses}: all are in use"
    );
    assert!(accesses < u64::from(2 * EVICT_SCANS) + 50, "{accesses}");
    assert!(!has(&mut firmware, map, EVICT_SCANS), "the next one goes");
    assert!(has(&mut firmware, map, 0) && has(&mut firmware, map, 5000));
}

/// Any hand is a place, and wrong entries end as a status; afterwards the table goes on.
#[test]
fn a_corrupted_lru_ends_as_a_status() {
    let shape = Shape::new(LRU_HASH, 4, 8, 16);
    for seed in 0..300u64 {
        let (mut firmware, map) = made(&shape);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        for key in 0..16 {
            insert(&mut firmware, map, key);
        }
        for n in 0..200u32 {
            if n % 5 == 0 {
                let mut bytes = [0; 8];
                random.fill_bytes(&mut bytes);
                let at = match random.next_u64() % 3 {
                    // The hand; anywhere in the state line; anywhere.
                    0 => 64 + 20,
                    1 => 64 + random.next_u64() % 24,
                    _ => random.next_u64() % 2048,
                };
                let len = 1 + (random.next_u64() % 4) as usize;
                firmware.write_memory(DevAddr(at), &bytes[..len]);
            }
            let key = (16 + n).to_le_bytes();
            let status = firmware.update(map, &key, &[0; 8], 0);
            assert!(
                [Status::Success, Status::Internal].contains(&status),
                "{status}"
            );
            let status = firmware.delete(map, &(n / 2).to_le_bytes());
            assert!(
                [Status::Success, Status::NotFound, Status::Internal].contains(&status),
                "{status}"
            );
        }
    }
    // The hand alone harms nothing.
    let (mut firmware, map) = made(&shape);
    for key in 0..100u32 {
        firmware.write_memory(
            DevAddr(64 + 20),
            &(key.wrapping_mul(0x9e37_79b9)).to_le_bytes(),
        );
        insert(&mut firmware, map, key);
    }
    assert_eq!(firmware.map_info(map).unwrap().entries.get(), 16);
}

fn ring_against_the_model(map_type: u32, max_entries: u32, seed: u64) {
    let shape = Shape::new(map_type, 0, 21, max_entries);
    let (mut firmware, map) = made(&shape);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut host = Host::new(HOST_BYTES);
    let mut model: VecDeque<Vec<u8>> = VecDeque::new();
    for _ in 0..10_000 {
        let mut value = vec![0; 21];
        random.fill_bytes(&mut value);
        let inline = random.next_u64().is_multiple_of(2);
        let key: Option<&[u8]> = Some(&[]);
        let next = match map_type {
            STACK => model.back().cloned(),
            _ => model.front().cloned(),
        };
        match random.next_u64() % 12 {
            0..6 => {
                let flags = (random.next_u64() % 3) as u32;
                let command = element(
                    IoOpcode::Update,
                    map,
                    key,
                    Some(&value),
                    0,
                    flags,
                    inline,
                    &mut host,
                );
                let expected = match flags {
                    1 => Status::InvalidField,
                    0 if model.len() == max_entries as usize => Status::Full,
                    _ => Status::Success,
                };
                assert_eq!(io(&mut firmware, &command, &mut host).status(), expected);
                if expected.is_success() {
                    if model.len() == max_entries as usize {
                        model.pop_front();
                    }
                    model.push_back(value);
                }
            }
            choice @ 6..10 => {
                let opcode = match choice < 8 {
                    true => IoOpcode::Lookup,
                    false => IoOpcode::LookupAndDelete,
                };
                let command = element(opcode, map, key, None, 21, 0, inline, &mut host);
                let done = io(&mut firmware, &command, &mut host);
                match next {
                    None => assert_eq!(done.status(), Status::NotFound),
                    Some(next) => {
                        assert_eq!(returned(&command, &done, 21, &host), next);
                        if opcode == IoOpcode::LookupAndDelete {
                            match map_type {
                                STACK => model.pop_back(),
                                _ => model.pop_front(),
                            };
                        }
                    }
                }
            }
            10 => {
                let status = firmware.engine_pop(1, map, &mut value);
                match next {
                    None => assert_eq!(status, Status::NotFound),
                    Some(next) => {
                        assert_eq!((status, value), (Status::Success, next));
                        match map_type {
                            STACK => model.pop_back(),
                            _ => model.pop_front(),
                        };
                    }
                }
            }
            _ => {
                let status = firmware.engine_lookup(0, map, &[], &mut value);
                assert_eq!(status == Status::Success, next.is_some());
                if let Some(next) = next {
                    assert_eq!(value, next);
                }
            }
        }
        let info = firmware.map_info(map).unwrap();
        assert_eq!(info.entries.get() as usize, model.len());
    }
}

#[test]
fn rings_agree_with_the_model() {
    for (seed, max_entries) in [(1, 1), (2, 2), (3, 5), (4, 33)] {
        ring_against_the_model(QUEUE, max_entries, seed);
        ring_against_the_model(STACK, max_entries, seed);
    }
}

#[test]
fn rings_have_no_keys() {
    for map_type in [QUEUE, STACK] {
        let shape = Shape::new(map_type, 0, 8, 4);
        let (mut firmware, map) = made(&shape);
        let mut host = Host::new(HOST_BYTES);
        assert_eq!(firmware.update(map, &[], &[1; 8], 0), Status::Success);
        assert_eq!(
            firmware.update(map, &[1], &[1; 8], 0),
            Status::InvalidLength
        );
        for opcode in [IoOpcode::Delete, IoOpcode::GetFirst, IoOpcode::GetNext] {
            let command = element(opcode, map, Some(&[]), None, 0, 0, true, &mut host);
            let done = io(&mut firmware, &command, &mut host);
            assert_eq!(done.status(), Status::Unsupported, "{opcode}");
        }
        for &opcode in IoOpcode::ALL.iter().filter(|opcode| opcode.is_batch()) {
            let done = io(
                &mut firmware,
                &batch(opcode, map, &shape, 1, 0, 0),
                &mut host,
            );
            assert_eq!(done.status(), Status::Unsupported, "{opcode}");
        }
        // A key that is not there, and one where there is none.
        let command = element(
            IoOpcode::Lookup,
            map,
            Some(&[7]),
            None,
            8,
            0,
            true,
            &mut host,
        );
        let done = io(&mut firmware, &command, &mut host);
        assert_eq!(done.status(), Status::InvalidLength);
        for (bad, key_size) in [(map_type, 4), (HASH, 0), (LRU_HASH, 0), (ARRAY, 0)] {
            let body = Shape::new(bad, key_size, 8, 4).body();
            let done = create_with(&mut firmware, &body);
            assert_eq!(
                done.status(),
                Status::InvalidField,
                "type {bad}, key {key_size}"
            );
        }
        assert_eq!(firmware.map_info(map).unwrap().entries.get(), 1);
    }
}

/// A pop whose value does not reach the host leaves the value where it is.
#[test]
fn a_pop_that_fails_pops_nothing() {
    for map_type in [QUEUE, STACK] {
        let shape = Shape::new(map_type, 0, 64, 4);
        let (mut firmware, map) = made(&shape);
        assert_eq!(firmware.update(map, &[], &[1; 64], 0), Status::Success);
        let mut host = Host::new(HOST_BYTES);
        let pop = IoOpcode::LookupAndDelete;
        let command = element(pop, map, Some(&[]), None, 64, 0, true, &mut host);
        host.fail_at = Some(host.accesses);
        let done = io(&mut firmware, &command, &mut host);
        assert_eq!(done.status(), Status::DmaFault);
        host.fail_at = None;
        let done = io(&mut firmware, &command, &mut host);
        assert_eq!(returned(&command, &done, 64, &host), [1; 64]);
        assert_eq!(firmware.map_info(map).unwrap().entries.get(), 0);
    }
}

/// Every word in the state line that does not fit the ring is noticed.
#[test]
fn a_corrupted_ring_ends_as_a_status() {
    let shape = Shape::new(QUEUE, 0, 8, 5);
    let (mut firmware, map) = made(&shape);
    for oldest in [0, 1, 4, 5, 6, u32::MAX] {
        for count in [0, 1, 5, 6, u32::MAX] {
            firmware.write_memory(DevAddr(64), &oldest.to_le_bytes());
            firmware.write_memory(DevAddr(68), &count.to_le_bytes());
            let fits = oldest < 5 && count <= 5;
            let push = firmware.update(map, &[], &[3; 8], 2);
            let expected = if fits {
                Status::Success
            } else {
                Status::Internal
            };
            assert_eq!(push, expected, "{oldest} {count}");
            let mut value = [0; 8];
            let pop = firmware.engine_pop(0, map, &mut value);
            assert_eq!(pop, expected, "{oldest} {count}");
        }
    }
}
