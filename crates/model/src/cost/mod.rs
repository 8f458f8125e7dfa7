//! What an operation on a table costs in accesses to device memory.
//!
//! The firmware's own tables say it: a table of the shape in question is filled, operations run on it, and
//! each access is counted ([`count`]). A table too large for that is counted at a power of two of a
//! smaller one, since it has the same shape there: arrays have no other, and the home buckets of hash tables
//! are a power of two that halves with the entries, so that as many entries come to a bucket. Only tries grow deeper: by the
//! same number of nodes with every doubling, which is taken from two smaller ones. `tests/cost.rs` holds what
//! follows for larger tables to what is counted there.

mod count;
mod keys;

use crate::des::random::ONE;
use offmap_firmware_model::table::layout::MapKind;
use thiserror::Error;

/// Most entries of a table that is filled and counted.
pub const COUNTED_ENTRIES: u32 = 1 << 17;
/// Most bytes of device memory that it may take.
pub const COUNTED_BYTES: u64 = 96 << 20;

/// Bytes of a line: what most memories move at a time.
pub const LINE_BYTES: u32 = 64;

/// A table, its contents and its keys.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    /// UAPI `enum bpf_map_type` value.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU.
    pub value_size: u32,
    /// Entries that it has room for.
    pub max_entries: u32,
    /// Parts of a million of them that are there.
    pub fill_ppm: u32,
    /// Slots of a value of a per-CPU type; 0 for others.
    pub cpu_slots: u32,
    /// Of a trie: lengths of prefixes, and how often each comes.
    pub prefixes: Vec<(u32, u32)>,
}

impl Shape {
    /// Its type, where the firmware has it.
    pub fn kind(&self) -> Option<MapKind> {
        MapKind::from_uapi(self.map_type)
    }

    /// Entries that are there.
    pub fn filled(&self) -> u32 {
        let filled = u64::from(self.max_entries) * u64::from(self.fill_ppm) / 1_000_000;
        filled as u32
    }

    /// Bytes of a value as it travels.
    pub fn wire_bytes(&self) -> u64 {
        match self.cpu_slots {
            0 => self.value_size.into(),
            slots => u64::from(self.value_size).next_multiple_of(8) * u64::from(slots),
        }
    }

    /// At most what its table takes in device memory, for small ones.
    fn most_bytes(&self) -> u64 {
        let value = u64::from(self.value_size).next_multiple_of(8);
        let stored = value * u64::from(self.cpu_slots.max(1));
        let key = u64::from(self.key_size).next_multiple_of(8);
        // A trie has two nodes for each entry; a hash table up to 44 bytes of buckets.
        (stored + 3 * key + 128) * u64::from(self.max_entries) + (1 << 20)
    }

    /// How often it is halved to be counted.
    fn halvings(&self) -> u32 {
        let mut halvings = 0;
        while self.halved(halvings).most_bytes() > COUNTED_BYTES
            || self.halved(halvings).max_entries > COUNTED_ENTRIES
        {
            halvings += 1;
        }
        halvings
    }

    fn halved(&self, times: u32) -> Self {
        let max_entries = u64::from(self.max_entries).div_ceil(1 << times.min(32));
        Self {
            max_entries: max_entries as u32,
            ..self.clone()
        }
    }
}

/// Which part of a table an access is to: they may lie in different tiers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// State, buckets, nodes, recency.
    Index,
    /// Entries: of hash tables keys and values, of others values.
    Entries,
}

/// An operation and how it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A lookup of a key that is there.
    Hit,
    /// A lookup of a key that is not.
    Miss,
    /// An update of a key that is there.
    Update,
    /// An update of a key that is not: into the room that there is, or for a key that it evicts.
    Insert,
    /// The deletion of a key that is there.
    Delete,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Hit,
        Self::Miss,
        Self::Update,
        Self::Insert,
        Self::Delete,
    ];
}

/// Accesses alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// To which part.
    pub part: Part,
    /// Whether they write.
    pub write: bool,
    /// Bytes of one of them.
    pub bytes: u32,
    /// Lines of [`LINE_BYTES`] that one of them touches on average, in 65,536ths.
    pub lines: u32,
    /// How many for each operation, on average, in 65,536ths.
    pub times: u32,
}

/// What a table takes, and what operations on it do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Bytes of device memory of the part that leads to entries.
    pub index_bytes: u64,
    /// Bytes of the entries.
    pub entries_bytes: u64,
    /// How often it was halved before it was counted.
    pub halvings: u32,
    /// Accesses, by operation in the order of [`Op::ALL`]; `None` where the type has no such
    /// operation.
    pub steps: [Option<Vec<Step>>; 5],
}

impl Cost {
    /// Accesses of an operation, where the type has it.
    pub fn of(&self, op: Op) -> Option<&[Step]> {
        let at = Op::ALL.iter().position(|other| *other == op)?;
        self.steps[at].as_deref()
    }

    /// Accesses in all of an operation.
    pub fn accesses(&self, op: Op) -> Option<f64> {
        let sum: u64 = self.of(op)?.iter().map(|step| u64::from(step.times)).sum();
        Some(sum as f64 / f64::from(ONE))
    }

    /// Device memory in all.
    pub fn bytes(&self) -> u64 {
        self.index_bytes + self.entries_bytes
    }
}

/// Why a table has no cost.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CostError {
    /// It is of a type that is not modelled.
    #[error(
        "map type {0} is not modelled; hash, array, percpu_hash, percpu_array, lru_hash, lru_percpu_hash and lpm_trie are"
    )]
    Type(u32),
    /// The firmware refuses it.
    #[error(
        "the firmware takes no map with key_size {key_size}, value_size {value_size} and max_entries {max_entries} ({status:?})"
    )]
    Refused {
        /// Bytes of a key.
        key_size: u32,
        /// Bytes of a value.
        value_size: u32,
        /// Entries.
        max_entries: u32,
        /// The firmware's answer.
        status: offmap_abi::Status,
    },
    /// There are not that many keys.
    #[error(
        "there are no {wanted} different keys of key_size {key_size}{}; make key_size larger, or fewer entries", if *.prefixes { " with these prefixes" } else { "" }
    )]
    Keys {
        /// How many are wanted: those that are there, and others.
        wanted: u64,
        /// Bytes of a key.
        key_size: u32,
        /// Whether it is a trie's.
        prefixes: bool,
    },
}

/// What operations on a table of that shape cost.
///
/// # Errors
///
/// [`CostError`].
pub fn cost(shape: &Shape) -> Result<Cost, CostError> {
    keys::check(shape)?;
    let halvings = shape.halvings();
    let mut cost = count::count(&shape.halved(halvings))?;
    cost.halvings = halvings;
    if halvings == 0 {
        return Ok(cost);
    }
    if shape.kind() == Some(MapKind::LpmTrie) {
        let smaller = count::count(&shape.halved(halvings + 2))?;
        for (steps, fewer) in cost.steps.iter_mut().zip(&smaller.steps) {
            if let (Some(steps), Some(fewer)) = (steps, fewer) {
                deeper(steps, fewer, halvings);
            }
        }
    }
    let scale = 1u64 << halvings;
    cost.index_bytes *= scale;
    cost.entries_bytes *= scale;
    Ok(cost)
}

/// Adds to `steps` half of what they have more than those of a quarter of the entries, for each
/// doubling.
fn deeper(steps: &mut [Step], fewer: &[Step], doublings: u32) {
    for step in steps {
        let alike = |other: &&Step| {
            (other.part, other.write, other.bytes) == (step.part, step.write, step.bytes)
        };
        let less = fewer.iter().find(alike).map_or(0, |other| other.times);
        let more = step.times.saturating_sub(less);
        let added = u64::from(more) * u64::from(doublings) / 2;
        step.times = u32::try_from(u64::from(step.times) + added).unwrap_or(u32::MAX);
    }
}
