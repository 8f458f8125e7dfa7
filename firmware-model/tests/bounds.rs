//! Stated bounds, asserted by counting accesses: tables filled to `max_entries` whatever the keys, with
//! keys that somebody has chosen who knows the seed; evictions; tries.
//!
//! `n` is the number of entries in the key's chain, and `b` that of its buckets.

mod common;

use common::*;
use offmap_abi::hash::KeyHash;
use offmap_abi::{IoOpcode, MapHandle, Status};
use offmap_firmware_model::table::hash::EVICT_SCANS;
use offmap_firmware_model::{Config, Firmware, Progress};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Sizes, powers of two and not.
const SIZES: [u32; 10] = [1, 7, 8, 9, 63, 64, 65, 100, 257, 1000];
/// Most levels of the two trees of bits that a change may touch, each read and written, and searched up
/// and down, for up to 2^32.
const TREES: u64 = 4 * 2 + 4 * 2 + 2 * 7;

/// Buckets of a chain of that many entries.
fn buckets(entries: u64) -> u64 {
    entries.div_ceil(8).max(1)
}

/// Accesses that looking for a key takes: each bucket's header and link, for each entry of its tag a
/// reference and a key; the home's header once more where the first of them is not the key's.
fn search(n: u64) -> u64 {
    2 * buckets(n) + 2 * n + 2
}

/// With the value.
fn lookup_bound(n: u64) -> u64 {
    search(n) + 1
}

/// Looked for as a lookup does and then again to find the end; the state line read and written; trees;
/// a free overflow bucket's link; recency, key, value, reference, header, two links.
fn insert_bound(n: u64) -> u64 {
    2 * search(n) + TREES + 10
}

/// The chain walked to the hole and on to its end, whose last entry fills it.
fn delete_bound(n: u64) -> u64 {
    search(n) + 2 * buckets(n) + TREES + 10
}

/// What an insertion into a full LRU map takes besides: the hand over so many bytes of recency, read and
/// cleared; the state line; the victim's key; its removal from a chain of `n`; the search for the end.
fn evict_bound(n: u64) -> u64 {
    2 * u64::from(EVICT_SCANS) + 6 + delete_bound(n) + search(n)
}

struct Bench {
    firmware: Firmware<Vec<u8>>,
    host: Host,
    map: MapHandle,
    shape: Shape,
}

impl Bench {
    fn new(shape: Shape) -> Self {
        let mut firmware = firmware(Config::with_memory(4 << 20));
        let map = create(&mut firmware, &shape);
        Self {
            firmware,
            host: Host::new(HOST_BYTES),
            map,
            shape,
        }
    }

    /// Status and accesses of a command.
    fn run(&mut self, opcode: IoOpcode, key: &[u8], bound: u64) -> Status {
        let value = vec![3; self.shape.value_bytes()];
        let (value, room) = match opcode {
            IoOpcode::Update => (Some(&value[..]), 0),
            IoOpcode::Lookup => (None, value.len()),
            _ => (None, 0),
        };
        let host = &mut self.host;
        let command = element(opcode, self.map, Some(key), value, room, 0, true, host);
        let (progress, counts) = self.firmware.io_counted(1, &command, host);
        let Progress::Done(done) = progress else {
            panic!("a command on one element takes one step");
        };
        let accesses = counts.reads + counts.writes;
        assert!(
            accesses <= bound,
            "{opcode:?} of {:?}: {accesses} accesses, not {bound}",
            self.shape
        );
        done.status()
    }

    fn longest_chain(&mut self) -> u64 {
        let info = self.firmware.map_info(self.map).expect("a live map");
        info.longest_chain.get().into()
    }
}

/// Keys of one home bucket, and with `tags` of one tag too.
fn chosen(shape: &Shape, count: u32, tags: bool) -> Vec<Vec<u8>> {
    let homes = u64::from(shape.max_entries.div_ceil(6).next_power_of_two());
    let hash = KeyHash::new(shape.seed);
    let mask = (homes - 1) | if tags { 0xff << 56 } else { 0 };
    let like = hash.hash(&0u64.to_le_bytes()) & mask;
    (0u64..)
        .map(|n| n.to_le_bytes())
        .filter(|key| hash.hash(key) & mask == like)
        .take(count as usize)
        .map(|key| key.to_vec())
        .collect()
}

/// All entries in one chain, of one tag: every fill succeeds, the chain is as long as it must be, and
/// no operation takes more than its bound.
#[test]
fn keys_chosen_with_the_seed_known_fill_a_table_within_the_bounds() {
    for map_type in [HASH, PERCPU_HASH, LRU_HASH] {
        for (size, tags) in SIZES
            .into_iter()
            .flat_map(|size| [(size, false), (size, true)])
        {
            let shape = Shape::new(map_type, 8, 16, size);
            let mut bench = Bench::new(shape);
            let keys = chosen(&shape, size + 1, tags);
            let (more, keys) = keys.split_last().expect("one at least");
            for (n, key) in keys.iter().enumerate() {
                let status = bench.run(IoOpcode::Update, key, insert_bound(n as u64));
                assert_eq!(status, Status::Success, "{n} of {shape:?}");
            }
            let n = u64::from(size);
            assert_eq!(bench.longest_chain(), buckets(n));
            for key in keys {
                let status = bench.run(IoOpcode::Lookup, key, lookup_bound(n));
                assert_eq!(status, Status::Success);
            }
            // One that is there takes no more than a lookup and the value's write and recency.
            let status = bench.run(IoOpcode::Update, &keys[0], lookup_bound(n) + 3);
            assert_eq!(status, Status::Success);
            match map_type {
                LRU_HASH => {
                    let bound = insert_bound(n) + evict_bound(n);
                    assert_eq!(bench.run(IoOpcode::Update, more, bound), Status::Success);
                }
                _ => assert_eq!(
                    bench.run(IoOpcode::Update, more, insert_bound(n)),
                    Status::Full
                ),
            }
            // Out in another order than in, so that holes are filled from the end.
            for (gone, key) in keys
                .iter()
                .step_by(2)
                .chain(keys.iter().skip(1).step_by(2))
                .enumerate()
            {
                let status = bench.run(IoOpcode::Delete, key, delete_bound(n - gone as u64));
                assert!(
                    status == Status::Success || map_type == LRU_HASH && status == Status::NotFound,
                    "{status:?}"
                );
            }
            assert_eq!(bench.longest_chain(), u64::from(map_type == LRU_HASH));
        }
    }
}

/// Any keys: tables of any size fill to the last entry, again and again, and no chain is longer than its
/// entries need.
#[test]
fn any_keys_fill_a_table_of_any_size() {
    for map_type in [HASH, PERCPU_HASH] {
        for size in SIZES.into_iter().chain([3000, 4096]) {
            let shape = Shape::new(map_type, 8, 8, size);
            let mut bench = Bench::new(shape);
            let mut random = Xoshiro256PlusPlus::seed_from_u64(size.into());
            let mut there: Vec<[u8; 8]> = Vec::new();
            let mut worst = 1;
            for round in 0..4 {
                while there.len() < size as usize {
                    let key = random.next_u64().to_le_bytes();
                    // A chain has eight entries for each of its buckets at most.
                    let status = bench.run(IoOpcode::Update, &key, insert_bound(8 * worst + 8));
                    assert_eq!(status, Status::Success, "{} of {shape:?}", there.len());
                    there.push(key);
                }
                worst = worst.max(bench.longest_chain());
                // Of 4,096 entries that share 1,024 home buckets, no 33 come together by chance.
                assert!(worst <= 4, "{worst} buckets in a chain, {shape:?}");
                let key = random.next_u64().to_le_bytes();
                let status = bench.run(IoOpcode::Update, &key, insert_bound(8 * worst));
                assert_eq!(status, Status::Full);
                for key in &there {
                    let status = bench.run(IoOpcode::Lookup, key, lookup_bound(8 * worst));
                    assert_eq!(status, Status::Success);
                }
                for _ in 0..there.len() * (round + 1) / 4 {
                    let at = (random.next_u64() % there.len() as u64) as usize;
                    let key = there.swap_remove(at);
                    let status = bench.run(IoOpcode::Delete, &key, delete_bound(8 * worst));
                    assert_eq!(status, Status::Success);
                }
            }
        }
    }
}

/// An eviction looks at [`EVICT_SCANS`] entries at most, however many were used.
#[test]
fn an_eviction_is_bounded_however_many_entries_were_used() {
    let shape = Shape::new(LRU_HASH, 8, 8, 1000);
    let mut bench = Bench::new(shape);
    let longest = 4;
    for n in 0u64..5000 {
        // All are used again and again, so that the hand finds nothing that was not.
        if n % 10 == 0 {
            for old in n.saturating_sub(1000)..n {
                let key = old.to_le_bytes();
                bench
                    .firmware
                    .engine_lookup(0, bench.map, &key, &mut [0; 8]);
            }
        }
        let bound = insert_bound(8 * longest) + evict_bound(8 * longest);
        let status = bench.run(IoOpcode::Update, &n.to_le_bytes(), bound);
        assert_eq!(status, Status::Success);
    }
    assert!(bench.longest_chain() <= longest);
    let info = bench.firmware.map_info(bench.map).expect("a live map");
    assert_eq!(info.entries.get(), 1000);
}

/// A trie: a node for each bit of the key at most, and the one at the root.
#[test]
fn a_trie_looks_at_one_node_a_bit_at_most() {
    for data in [1usize, 4, 16, 256] {
        let bits = 8 * data as u64;
        let shape = Shape::new(LPM, 4 + data, 8, bits as u32 + 1);
        let mut bench = Bench::new(shape);
        let key = |prefix: u64| {
            let mut key = (prefix as u32).to_le_bytes().to_vec();
            key.resize(4 + data, 0);
            key
        };
        // Root, nodes, value.
        let lookup = 1 + (bits + 1) + 1;
        // State twice, the walk, two free nodes and a free value, three nodes written, a link, a bit.
        let change = 2 + (bits + 1) + 3 + 6 + 2;
        // Prefixes within one another, the worst there can be.
        for prefix in (0..=bits).rev() {
            let status = bench.run(IoOpcode::Update, &key(prefix), change);
            assert_eq!(status, Status::Success, "prefix {prefix} of {bits}");
        }
        assert_eq!(
            bench.run(IoOpcode::Lookup, &key(bits), lookup),
            Status::Success
        );
        assert_eq!(
            bench.run(IoOpcode::Update, &key(bits), change),
            Status::Success
        );
        for prefix in 0..=bits {
            let status = bench.run(IoOpcode::Delete, &key(prefix), change);
            assert_eq!(status, Status::Success);
        }
        assert_eq!(
            bench.run(IoOpcode::Lookup, &key(bits), lookup),
            Status::NotFound
        );
    }
}
