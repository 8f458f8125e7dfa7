//! One seeded workload over two maps at once, every answer compared.
//!
//! The host map is the reference, the device's map is on trial; both see the same calls in
//! the same order. Compared are the errno, the whole output buffer of a call that succeeded
//! (of a lookup of many keys, also the values of those that were not found, which stay
//! untouched), and, where a hash table may choose its order, the set of what came out.
//!
//! What is driven is bounded by [`Limits`] and depends on nothing but the seed, the shape and
//! the limits, so that a run can be repeated.

mod access;
mod file;
mod keys;
mod pair;
mod phases;
mod timing;

pub use access::{Batch, MapAccess};
pub use keys::{Keys, write_value};
pub use timing::{PerSide, Timings, measure};

use offmap_bpf::Errno;
use offmap_bpf::uapi::MapType;
use pair::Pair;
use std::collections::BTreeMap;

/// What the workload must know of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Keys are indexes, and every entry exists from the start.
    pub indexed: bool,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value as user space passes it: of all possible CPUs together for a per-CPU
    /// map.
    pub value_bytes: usize,
    /// Entries.
    pub max_entries: u32,
}

impl Shape {
    /// The shape of a map of this type and these sizes.
    pub fn new(
        map_type: MapType,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        possible_cpus: u32,
    ) -> Self {
        let value_bytes = if map_type.is_percpu() {
            value_size as usize * possible_cpus as usize
                + (value_size as usize).wrapping_neg() % 8 * possible_cpus as usize
        } else {
            value_size as usize
        };
        Self {
            indexed: matches!(map_type, MapType::ARRAY | MapType::PERCPU_ARRAY),
            key_size: key_size as usize,
            value_bytes,
            max_entries,
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test(indexed: bool, key: usize, value: usize, max_entries: u32) -> Self {
        Self {
            indexed,
            key_size: key,
            value_bytes: value,
            max_entries,
        }
    }

    fn entry_bytes(&self) -> u64 {
        (self.key_size as u64 + self.value_bytes as u64).max(1)
    }
}

/// How much is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Operations of the random phase.
    pub operations: u64,
    /// Bytes of keys and values that the random phase may move; beyond it, it is shortened,
    /// to 16 operations at the least.
    pub operation_bytes: u64,
    /// Most entries that a map is filled with.
    pub fill_entries: u32,
    /// Most bytes of keys and values that it is filled with.
    pub fill_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            operations: 20_000,
            operation_bytes: 4 << 30,
            fill_entries: 1 << 20,
            fill_bytes: 128 << 20,
        }
    }
}

/// One difference between the two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// How many operations had been done before.
    pub at: u64,
    /// The operation.
    pub operation: String,
    /// The key in hexadecimal, its first 32 bytes; empty where there is none.
    pub key: String,
    /// What the host map answered.
    pub host: String,
    /// What the device's map answered.
    pub device: String,
    /// How many more there were of this kind: the same operation and the same two answers, on
    /// other keys and with other bytes.
    pub alike: u64,
}

impl Disagreement {
    /// Whether `other` is of this kind.
    pub(crate) fn is_like(&self, operation: &str, host: &str, device: &str) -> bool {
        // Counts, keys and values are written in lower-case hexadecimal, which error numbers
        // are not.
        fn words(text: &str) -> impl Iterator<Item = char> {
            let data = |c: &char| matches!(c, '0'..='9' | 'a'..='f' | '…');
            text.chars().filter(move |c| !data(c))
        }
        self.operation == operation
            && words(&self.host).eq(words(host))
            && words(&self.device).eq(words(device))
    }
}

/// How many kinds of [`Disagreement`] are kept; further ones are only counted.
pub const KEPT_DISAGREEMENTS: usize = 16;

/// What a run found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Operations compared; an element of a batch counts as one.
    pub operations: u64,
    /// How often the host map gave each answer; 0 stands for success.
    pub answers: BTreeMap<i32, u64>,
    /// Entries in the map when it was filled.
    pub filled_entries: u32,
    /// They are all that it can hold.
    pub filled_to_the_brim: bool,
    /// The first disagreement of each kind.
    pub disagreements: Vec<Disagreement>,
    /// All of them.
    pub disagreements_total: u64,
}

impl Outcome {
    /// Whether nothing differed.
    pub fn agree(&self) -> bool {
        self.disagreements_total == 0
    }

    /// The answers by name, `ok` for success.
    pub fn answers_by_name(&self) -> BTreeMap<String, u64> {
        self.answers
            .iter()
            .map(|(&errno, &count)| match errno {
                0 => ("ok".to_owned(), count),
                errno => (Errno(errno).to_string(), count),
            })
            .collect()
    }
}

/// Entries that a map of this shape is filled with under these limits.
pub fn fill_target(shape: &Shape, limits: &Limits) -> u32 {
    let by_bytes = u32::try_from(limits.fill_bytes / shape.entry_bytes()).unwrap_or(u32::MAX);
    let distinct = Keys::new(shape, 0).distinct();
    let by_keys = u32::try_from(distinct).unwrap_or(u32::MAX);
    shape
        .max_entries
        .min(limits.fill_entries)
        .min(by_bytes.max(1))
        .min(by_keys)
}

/// Operations that [`run`] will do, about; for a progress bar.
pub fn expected_operations(shape: &Shape, limits: &Limits) -> u64 {
    phases::random_operations(shape, limits) + 8 * u64::from(fill_target(shape, limits))
}

/// Drives both maps, which must be new and of this shape, through the whole workload.
/// `progress` hears how many operations were done since it last heard.
///
/// The maps are left filled: keys `0..filled_entries` of [`Keys`] with this seed are present.
pub fn run(
    host: &dyn MapAccess,
    device: &dyn MapAccess,
    shape: &Shape,
    limits: &Limits,
    seed: u64,
    progress: &mut dyn FnMut(u64),
) -> Outcome {
    let mut pair = Pair::new(host, device, *shape, progress);
    phases::all(&mut pair, limits, seed);
    pair.finish()
}
