//! What is done to a map: shapes, operations, and the keys in the order in which they are asked
//! for.

use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Operations that an order of keys has, at most; then it begins again.
const ORDER: usize = 1 << 18;
/// Bytes of an order of keys, at most.
const ORDER_BYTES: usize = 16 << 20;
/// Keys that are not in the map.
const ABSENT: usize = 1 << 13;
/// Entries beyond its keys that an LRU map has: 128 for each of 128 CPUs.
const SET_ASIDE: usize = 1 << 14;
/// Exponent of Zipf's law, as in the YCSB workloads.
const ZIPF: f64 = 0.99;

/// A map type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// BPF_MAP_TYPE_HASH.
    Hash,
    /// BPF_MAP_TYPE_ARRAY.
    Array,
    /// BPF_MAP_TYPE_PERCPU_HASH.
    PercpuHash,
    /// BPF_MAP_TYPE_LRU_HASH.
    LruHash,
    /// BPF_MAP_TYPE_LPM_TRIE, of IPv4 prefixes.
    LpmTrie,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Hash,
        Self::Array,
        Self::PercpuHash,
        Self::LruHash,
        Self::LpmTrie,
    ];

    /// Its number in the UAPI.
    pub const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array => 2,
            Self::PercpuHash => 5,
            Self::LruHash => 9,
            Self::LpmTrie => 11,
        }
    }

    /// As the JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Array => "array",
            Self::PercpuHash => "percpu_hash",
            Self::LruHash => "lru_hash",
            Self::LpmTrie => "lpm_trie",
        }
    }

    /// The flags that a map of that type is created with.
    pub(crate) const fn map_flags(self) -> u32 {
        match self {
            // A trie has to have BPF_F_NO_PREALLOC.
            Self::LpmTrie => 1,
            _ => 0,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A lookup of a key that is there.
    Lookup,
    /// A lookup of a key that is not.
    Miss,
    /// An update of a key that is there.
    Overwrite,
    /// An update of a key that is not.
    Insert,
    /// The deletion of a key that is there.
    Delete,
    /// A step of a walk by BPF_MAP_GET_NEXT_KEY.
    Next,
    /// An entry of a whole dump, by BPF_MAP_LOOKUP_BATCH.
    Dump,
    /// An element of a batch of lookups by key (no command of bpf(2)).
    LookupBatch,
    /// An element of BPF_MAP_UPDATE_BATCH.
    UpdateBatch,
    /// Nine lookups, and one update of a key that is there.
    Mix,
    /// The calls of a sequence ([`crate::mix`]).
    Recorded,
}

impl Op {
    /// As the JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Miss => "miss",
            Self::Overwrite => "overwrite",
            Self::Insert => "insert",
            Self::Delete => "delete",
            Self::Next => "next",
            Self::Dump => "dump",
            Self::LookupBatch => "lookup_batch",
            Self::UpdateBatch => "update_batch",
            Self::Mix => "mix_90_10",
            Self::Recorded => "sequence",
        }
    }
}

/// How the keys are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// All alike.
    Uniform,
    /// By Zipf's law with the exponent 0.99: few keys are asked for most.
    Zipf,
}

/// What each side of a comparison does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// The map's type.
    pub map_type: Kind,
    /// The operation.
    pub op: Op,
    /// Bytes of a key: 4, 8, 16, 32 or 64; 4 for arrays, 8 for tries.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Entries in the map.
    pub entries: usize,
    /// Elements of a call.
    pub batch: usize,
    /// Commands in flight on one queue pair.
    pub depth: usize,
    /// Threads that do it at the same time.
    pub threads: usize,
    /// How the keys are drawn.
    pub keys: Draw,
    /// `max_entries` of the map, where it is not to follow from the keys.
    pub max_entries: Option<usize>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            map_type: Kind::Hash,
            op: Op::Lookup,
            key_size: 8,
            value_size: 64,
            entries: 65_536,
            batch: 1,
            depth: 1,
            threads: 1,
            keys: Draw::Uniform,
            max_entries: None,
        }
    }
}

impl Workload {
    /// `max_entries` of its map: room for the keys that are inserted, where some are, and for those that
    /// an LRU map sets aside for each CPU, lest it evicts what is looked for.
    pub fn max_entries(&self) -> usize {
        if let Some(asked) = self.max_entries {
            return asked;
        }
        match self.op {
            _ if self.map_type == Kind::LruHash => self.entries + SET_ASIDE,
            Op::Insert | Op::Delete => self.entries + ABSENT,
            _ => self.entries,
        }
    }

    /// Elements in which a run of it is counted.
    pub fn unit(&self) -> usize {
        match self.op {
            Op::LookupBatch | Op::UpdateBatch => self.batch,
            _ => 1,
        }
    }
}

/// The keys of a workload, made from a seed: those in the map, those that are not, and the order
/// in which the map is asked for them.
#[derive(Debug)]
pub struct Trace {
    /// Bytes of a key.
    pub key_size: usize,
    present: Vec<u8>,
    absent: Vec<u8>,
    order: Vec<u8>,
    /// The value that is stored: the same for all keys, as long as a call wants it.
    pub value: Vec<u8>,
}

/// The bytes of key number `n`: distinct for distinct numbers, and in no order.
fn key(workload: &Workload, start: u64, n: u64, key: &mut [u8]) {
    match workload.map_type {
        Kind::Array => key.copy_from_slice(&(n as u32).to_ne_bytes()),
        Kind::LpmTrie => {
            let address = (start as u32 | 1).wrapping_mul(n as u32) ^ start as u32;
            key[..4].copy_from_slice(&32u32.to_ne_bytes());
            key[4..8].copy_from_slice(&address.to_be_bytes());
        }
        _ if key.len() < 8 => {
            // An odd factor: a bijection of the 32-bit numbers.
            let x = (n as u32).wrapping_mul(0x9e37_79b1) ^ start as u32;
            key.copy_from_slice(&x.to_le_bytes());
        }
        _ => {
            // A bijection of the 64-bit numbers.
            let x = start.wrapping_add(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
            for piece in key.chunks_mut(8) {
                piece.copy_from_slice(&x.to_le_bytes()[..piece.len()]);
            }
        }
    }
}

/// Ranks of Zipf's law, drawn by inverting its cumulated weights.
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(entries: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=entries)
                .map(|rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                })
                .collect(),
        )
    }

    /// A rank from 0 on; the first is the likeliest.
    pub(crate) fn rank(&self, rng: &mut impl Rng) -> usize {
        let total = self.0.last().copied().unwrap_or(0.0);
        let x = rng.random::<f64>() * total;
        self.0.partition_point(|&sum| sum < x).min(self.0.len() - 1)
    }
}

impl Trace {
    /// From a seed, for a workload of at least one entry.
    pub fn new(workload: &Workload, seed: u64) -> Arc<Self> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let start = rng.next_u64();
        let size = workload.key_size;
        let many = |from: usize, count: usize| {
            let mut keys = vec![0; count * size];
            for (at, bytes) in (from..).zip(keys.chunks_exact_mut(size)) {
                key(workload, start, at as u64, bytes);
            }
            keys
        };
        let present = many(0, workload.entries);
        // For an array those are indexes beyond its end, which are misses as well.
        let absent = many(workload.entries, ABSENT);
        let count = ORDER.min(ORDER_BYTES / size);
        let zipf = (workload.keys == Draw::Zipf).then(|| Zipf::new(workload.entries, ZIPF));
        let mut order = Vec::with_capacity(count * size);
        for _ in 0..count {
            let at = match &zipf {
                Some(zipf) => zipf.rank(&mut rng),
                None => rng.random_range(0..workload.entries),
            };
            order.extend_from_slice(&present[at * size..][..size]);
        }
        Arc::new(Self {
            key_size: size,
            present,
            absent,
            order,
            value: vec![0x5a; workload.value_size],
        })
    }

    /// The keys that are in the map, one after the other.
    pub fn present(&self) -> &[u8] {
        &self.present
    }

    /// How many keys the order has.
    pub fn order_len(&self) -> usize {
        self.order.len() / self.key_size
    }

    /// Calls `each` with `n` keys of the order, from the `from`-th on, round and round.
    #[inline(always)]
    pub fn ordered(&self, from: usize, n: usize, each: impl FnMut(&[u8])) {
        Self::round(&self.order, self.key_size, from, n, each);
    }

    /// The same of the keys that are not in the map.
    #[inline(always)]
    pub fn missing(&self, from: usize, n: usize, each: impl FnMut(&[u8])) {
        Self::round(&self.absent, self.key_size, from, n, each);
    }

    /// A run of `batch` keys of the order, the one that holds the `at`-th key.
    #[inline]
    pub fn run(&self, at: usize, batch: usize) -> &[u8] {
        let runs = (self.order_len() / batch).max(1);
        let bytes = batch * self.key_size;
        let from = at / batch % runs * bytes;
        &self.order[from..self.order.len().min(from + bytes)]
    }

    /// How many keys are not in the map, of which no more may be inserted at a time.
    pub fn absent_len(&self) -> usize {
        self.absent.len() / self.key_size
    }

    #[inline(always)]
    fn round(keys: &[u8], size: usize, from: usize, n: usize, mut each: impl FnMut(&[u8])) {
        let mut at = from % (keys.len() / size) * size;
        for _ in 0..n {
            each(&keys[at..at + size]);
            at += size;
            if at == keys.len() {
                at = 0;
            }
        }
    }
}
