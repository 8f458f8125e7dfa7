//! Generation of sequences.

use crate::model::Shape;
use offmap_bpf::uapi::{MapFlags, MapType};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// One operation. Keys are numbers that [`Sequence::key`] turns into bytes, values are seeds
/// for [`Sequence::value`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Lookup with flags.
    Lookup(u32, u64),
    /// Update: key, value, flags.
    Update(u32, u64, u64),
    /// Delete.
    Delete(u32),
    /// Next key, of a key or of none.
    Next(Option<u32>),
    /// Lookup and delete with flags.
    LookupAndDelete(u32, u64),
    /// Batch update: keys with values, element flags.
    UpdateBatch(Vec<(u32, u64)>, u64),
    /// Batch delete: keys, element flags.
    DeleteBatch(Vec<u32>, u64),
    /// A whole walk in batches of the given count.
    Walk {
        /// Elements a call asks for at first.
        count: u32,
        /// Element flags.
        elem_flags: u64,
        /// Whether what is returned is removed.
        delete: bool,
    },
    /// A single walk call from a cursor that no walk returned.
    WalkFrom {
        /// The cursor.
        cursor: u32,
        /// Elements asked for.
        count: u32,
    },
    /// A whole walk by next key, each key looked up.
    Iterate,
    /// Freeze.
    Freeze,
}

/// A map's shape and what is done to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// What all of it follows from.
    pub seed: u64,
    /// The map.
    pub shape: Shape,
    /// The operations, in order.
    pub ops: Vec<Op>,
}

const KEY_SIZES: [u32; 14] = [1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 24, 40, 64, 333];
/// Of `prefixlen` and 1 to 256 bytes of prefix.
const TRIE_KEY_SIZES: [u32; 12] = [5, 6, 7, 8, 8, 9, 12, 13, 15, 20, 68, 260];
const VALUE_SIZES: [u32; 16] = [
    1, 2, 4, 5, 8, 15, 16, 17, 24, 47, 48, 49, 64, 100, 256, 1500,
];
/// Flags that no operation here knows, besides those of updates.
const BAD_FLAGS: [u64; 6] = [3, 4, 5, 6, 32, 1 << 63];

impl Sequence {
    /// The sequence of `ops` operations on a map of `map_type` that `seed` stands for.
    pub fn generate(seed: u64, map_type: MapType, ops: usize, cpus: u32) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let array = matches!(map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
        let trie = map_type == MapType::LPM_TRIE;
        let max_entries = match rng.random_range(0..10) {
            0 => 1,
            1 => 2,
            2..6 => rng.random_range(3..=40),
            6..9 => rng.random_range(41..=400),
            _ => rng.random_range(401..=2000),
        };
        let shape = Shape {
            map_type,
            key_size: match (array, trie) {
                (true, _) => 4,
                (_, true) => *pick(rng, &TRIE_KEY_SIZES),
                _ => *pick(rng, &KEY_SIZES),
            },
            value_size: *pick(rng, &VALUE_SIZES),
            max_entries,
            map_flags: if trie || !array && rng.random_ratio(1, 3) {
                MapFlags::NO_PREALLOC.bits()
            } else {
                0
            },
            map_extra: 0,
            cpus,
        };
        let mut this = Self {
            seed,
            shape,
            ops: Vec::with_capacity(ops),
        };
        // Some sequences stay nearly full, some nearly empty; the rest wander.
        let bias = rng.random_range(20..=60);
        while this.ops.len() < ops {
            let op = this.op(rng, bias);
            this.ops.push(op);
        }
        if rng.random_ratio(1, 4) {
            let at = ops - ops / 10;
            this.ops.insert(at.min(this.ops.len()), Op::Freeze);
            this.ops.push(Op::Freeze);
        }
        this
    }

    fn op(&self, rng: &mut Xoshiro256PlusPlus, bias: u32) -> Op {
        let key = self.pick_key(rng);
        match rng.random_range(0..1000) {
            0..4 => Op::Walk {
                count: self.pick_count(rng),
                elem_flags: rare(rng, &BAD_FLAGS),
                delete: rng.random_ratio(1, 4),
            },
            4..8 => Op::WalkFrom {
                // Beyond any table of ours and the kernel's, or where tokens are keys, anywhere.
                cursor: if self.shape.is_ordered() {
                    key
                } else {
                    u32::MAX - rng.random_range(0..9)
                },
                count: self.pick_count(rng),
            },
            8..11 => Op::Iterate,
            11..40 => {
                let n = self.pick_count(rng).min(200);
                let pairs = (0..n)
                    .map(|_| (self.pick_key(rng), rng.next_u64()))
                    .collect();
                Op::UpdateBatch(pairs, rare(rng, &BAD_FLAGS))
            }
            40..60 => {
                let n = self.pick_count(rng).min(40);
                let keys = (0..n).map(|_| self.pick_key(rng)).collect();
                Op::DeleteBatch(keys, rare(rng, &BAD_FLAGS))
            }
            60..140 => Op::Next((!rng.random_ratio(1, 8)).then_some(key)),
            140..200 => Op::LookupAndDelete(key, rare(rng, &BAD_FLAGS)),
            200..520 => Op::Lookup(key, rare(rng, &BAD_FLAGS)),
            _ if rng.random_range(0..80) < bias => {
                let flags = match rng.random_range(0..20) {
                    0..3 => 1,
                    3..6 => 2,
                    6 => *pick(rng, &BAD_FLAGS),
                    _ => 0,
                };
                Op::Update(key, rng.next_u64(), flags)
            }
            _ => Op::Delete(key),
        }
    }

    /// Keys out of a universe somewhat larger than the map, so that hits, misses and fullness
    /// all occur; for arrays now and then an index far outside.
    fn pick_key(&self, rng: &mut Xoshiro256PlusPlus) -> u32 {
        let max = self.shape.max_entries;
        if self.shape.is_array() {
            match rng.random_range(0..100) {
                0 => u32::MAX - rng.random_range(0..2),
                1 => max,
                2 => max - 1,
                _ => rng.random_range(0..max + 2),
            }
        } else {
            rng.random_range(0..max + max / 2 + 2)
        }
    }

    fn pick_count(&self, rng: &mut Xoshiro256PlusPlus) -> u32 {
        let max = self.shape.max_entries;
        match rng.random_range(0..8) {
            0 => 0,
            1 => 1,
            2 => max,
            3 => max + 1,
            _ => rng.random_range(1..=max + 3),
        }
    }

    /// The bytes of key number `key`: an index for arrays; otherwise spread over the whole
    /// key, so that neighbours differ at either end, and distinct where the size allows.
    pub fn key(&self, key: u32) -> Vec<u8> {
        if self.shape.is_array() {
            return key.to_ne_bytes().to_vec();
        }
        if self.shape.map_type == MapType::LPM_TRIE {
            return self.prefix(key);
        }
        let size = self.shape.key_size as usize;
        let mut bytes = vec![0xa5; size];
        let le = key.to_le_bytes();
        let n = size.min(4);
        if key.is_multiple_of(2) {
            bytes[..n].copy_from_slice(&le[..n]);
        } else {
            bytes[size - n..].copy_from_slice(&le[..n]);
        }
        bytes
    }

    /// Prefix number `key`: much the same bits for many, so that prefixes nest and part at every
    /// depth; stray bits beyond the prefix; now and then a prefix that is too long.
    fn prefix(&self, key: u32) -> Vec<u8> {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ u64::from(key) << 32);
        let mut bytes = vec![0; self.shape.key_size as usize];
        let (head, data) = bytes.split_at_mut(4);
        let max = data.len() as u32 * 8;
        let prefix = match rng.random_range(0..60) {
            0 => max + 1 + rng.random_range(0..40),
            1 => u32::MAX - rng.random_range(0..3),
            2..20 => max,
            _ => rng.random_range(0..=max),
        };
        head.copy_from_slice(&prefix.to_ne_bytes());
        data.fill(*pick(rng, &[0, 0, 0xff, 0xa5]));
        for _ in 0..rng.random_range(0..4) {
            let bit = rng.random_range(0..max);
            data[bit as usize / 8] ^= 0x80 >> (bit % 8);
        }
        if rng.random_ratio(1, 4) {
            let from = rng.random_range(0..data.len());
            rng.fill_bytes(&mut data[from..]);
        }
        bytes
    }

    /// The bytes of the value with seed `value`.
    pub fn value(&self, value: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.shape.value_bytes()];
        Xoshiro256PlusPlus::seed_from_u64(value).fill_bytes(&mut bytes);
        bytes
    }
}

fn pick<'a, T>(rng: &mut Xoshiro256PlusPlus, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// No flags, but one of `bad` now and then.
fn rare(rng: &mut Xoshiro256PlusPlus, bad: &[u64]) -> u64 {
    if rng.random_ratio(1, 40) {
        *pick(rng, bad)
    } else {
        0
    }
}
