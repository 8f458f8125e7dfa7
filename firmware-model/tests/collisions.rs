//! Keys that collide on purpose: how far a command looks when somebody has chosen them who knows
//! the map's seed, and when it was another seed.

mod common;

use common::*;
use offmap_abi::hash::KeyHash;
use offmap_abi::{IoOpcode, MapHandle, Status};
use offmap_firmware_model::{Config, Firmware, Progress};

const ENTRIES: u32 = 4096;
/// Keys that are chosen to collide.
const CHOSEN: usize = 1024;
/// Home buckets of a map of [`ENTRIES`] entries: a sixth of them, rounded up to a power of two.
const HOMES: u64 = 1024;

/// Keys of one home bucket under `seed`.
fn colliding(seed: u64) -> Vec<[u8; 8]> {
    let hash = KeyHash::new(seed);
    let keys = (0u64..).map(u64::to_le_bytes);
    let of_one_home = keys.filter(|key| hash.hash(key) % HOMES == 5);
    of_one_home.take(CHOSEN).collect()
}

/// Reads of device memory that `command` makes.
fn reads(
    firmware: &mut Firmware<Vec<u8>>,
    (opcode, map, key, value): (IoOpcode, MapHandle, &[u8], Option<&[u8]>),
    host: &mut Host,
) -> u64 {
    let room = if opcode == IoOpcode::Lookup { 8 } else { 0 };
    let command = element(opcode, map, Some(key), value, room, 0, true, host);
    let (progress, counts) = firmware.io_counted(1, &command, host);
    let Progress::Done(done) = progress else {
        panic!("a command on one element takes one step");
    };
    assert_eq!(done.status(), Status::Success);
    counts.reads
}

/// The most reads of any update, lookup and deletion of these keys in a map of that seed.
fn worst(map_type: u32, seed: u64, keys: &[[u8; 8]]) -> u64 {
    let mut firmware = firmware(Config::with_memory(8 << 20));
    let mut host = Host::new(HOST_BYTES);
    let shape = Shape {
        seed,
        ..Shape::new(map_type, 8, 8, ENTRIES)
    };
    let map = create(&mut firmware, &shape);
    let value = vec![7; shape.value_bytes()];
    let mut worst = 0;
    for (opcode, value) in [
        (IoOpcode::Update, Some(&value[..])),
        (IoOpcode::Lookup, None),
        (IoOpcode::Delete, None),
    ] {
        for key in keys {
            let command = (opcode, map, &key[..], value);
            worst = worst.max(reads(&mut firmware, command, &mut host));
        }
    }
    worst
}

#[test]
fn keys_chosen_for_one_seed_do_not_collide_under_another() {
    // As many keys that nobody has chosen, so that the bound is that of any keys.
    let any: Vec<_> = (0..CHOSEN as u64)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    for map_type in [HASH, LRU_HASH] {
        let chosen = colliding(0);
        let known = worst(map_type, 0, &chosen);
        let usual = (1..=8)
            .map(|seed| worst(map_type, seed, &any))
            .max()
            .unwrap_or(0);
        // The choice is a good one: whoever knows the seed makes a command walk the whole chain.
        assert!(known > 100, "type {map_type}: {known} reads");
        for seed in [1, 2, 3, 1 << 63, u64::MAX, 0x5eed, 0xfeed_beef_0000_0001] {
            let found = worst(map_type, seed, &chosen);
            assert!(
                found <= usual + 8 && found * 4 < known,
                "type {map_type}, seed {seed:#x}: {found} reads; {usual} with any keys, {known} with the seed"
            );
        }
        println!("type {map_type}: {known} reads with the seed, {usual} without");
    }
}
