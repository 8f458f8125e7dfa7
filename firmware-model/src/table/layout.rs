//! Where the parts of a map lie in device memory.
//!
//! Every map starts with a 64-byte description, written once for whoever inspects memory and
//! never read back. After it:
//!
//! * arrays: the values, `round_up(value_size, 8)` bytes each (times the per-CPU slots);
//! * tries: a state line, the nodes, the values (see [`super::lpm`]);
//! * bloom filters: the bits (see [`super::bloom`]);
//! * queues and stacks: a state line, the values;
//! * hash tables: a state line, the headers of the home buckets and of the overflow buckets, the backs
//!   of both, the occupancy tree of the home buckets, the tree of free entries, for LRU types a byte of
//!   recency for each entry, the entries (see [`super::hash`]).
//!
//! The geometry itself stays with the firmware, out of the window's reach.

use super::bucket::{BACK_BYTES, HEADER_BYTES};
use super::{bloom, lpm, occupancy};
use offmap_abi::MapType;
use offmap_abi::admin::{MapAttr, MapCreateBody};

/// Bytes of the description at the start of a map.
pub const DESCRIPTION_BYTES: u64 = 64;
/// First word of the description: the bytes `OMAP`.
pub const DESCRIPTION_MAGIC: u32 = u32::from_le_bytes(*b"OMAP");

/// What parts of a map begin at multiples of.
const LINE_BYTES: u64 = 64;

/// Bytes of the state line of a map that has one.
const STATE_BYTES: u64 = 64;

/// The map types that the firmware has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// BPF_MAP_TYPE_HASH.
    Hash,
    /// BPF_MAP_TYPE_ARRAY.
    Array,
    /// BPF_MAP_TYPE_PERCPU_HASH.
    PercpuHash,
    /// BPF_MAP_TYPE_PERCPU_ARRAY.
    PercpuArray,
    /// BPF_MAP_TYPE_LPM_TRIE.
    LpmTrie,
    /// BPF_MAP_TYPE_BLOOM_FILTER.
    BloomFilter,
    /// BPF_MAP_TYPE_LRU_HASH.
    LruHash,
    /// BPF_MAP_TYPE_LRU_PERCPU_HASH.
    LruPercpuHash,
    /// BPF_MAP_TYPE_QUEUE.
    Queue,
    /// BPF_MAP_TYPE_STACK.
    Stack,
    /// BPF_MAP_TYPE_ARRAY_OF_MAPS.
    ArrayOfMaps,
    /// BPF_MAP_TYPE_HASH_OF_MAPS.
    HashOfMaps,
    /// BPF_MAP_TYPE_RINGBUF.
    Ringbuf,
}

impl MapKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Hash,
        Self::Array,
        Self::PercpuHash,
        Self::PercpuArray,
        Self::LpmTrie,
        Self::BloomFilter,
        Self::LruHash,
        Self::LruPercpuHash,
        Self::Queue,
        Self::Stack,
        Self::ArrayOfMaps,
        Self::HashOfMaps,
        Self::Ringbuf,
    ];

    /// The UAPI `enum bpf_map_type` value.
    pub const fn uapi(self) -> u32 {
        match self {
            Self::Hash => MapType::Hash.0,
            Self::Array => MapType::Array.0,
            Self::PercpuHash => MapType::PercpuHash.0,
            Self::PercpuArray => MapType::PercpuArray.0,
            Self::LpmTrie => MapType::LpmTrie.0,
            Self::BloomFilter => MapType::BloomFilter.0,
            Self::LruHash => MapType::LruHash.0,
            Self::LruPercpuHash => MapType::LruPercpuHash.0,
            Self::Queue => MapType::Queue.0,
            Self::Stack => MapType::Stack.0,
            Self::ArrayOfMaps => MapType::ArrayOfMaps.0,
            Self::HashOfMaps => MapType::HashOfMaps.0,
            Self::Ringbuf => MapType::Ringbuf.0,
        }
    }

    /// The kind with that UAPI value.
    pub fn from_uapi(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.uapi() == value)
    }

    /// The bit set of [`offmap_abi::admin::IdentifyData::map_types`].
    pub fn bits() -> u64 {
        Self::ALL
            .iter()
            .fold(0, |bits, kind| bits | MapType(kind.uapi()).bit())
    }

    /// Whether an entry has a value for each CPU.
    pub const fn is_percpu(self) -> bool {
        matches!(
            self,
            Self::PercpuHash | Self::PercpuArray | Self::LruPercpuHash
        )
    }

    /// Whether a full map evicts an entry for a new key.
    pub const fn is_lru(self) -> bool {
        matches!(self, Self::LruHash | Self::LruPercpuHash)
    }

    /// Whether the map is a ring of values without keys.
    pub const fn is_queue(self) -> bool {
        matches!(self, Self::Queue | Self::Stack)
    }

    /// Whether the map is a ring buffer: it has host memory and no elements.
    pub const fn is_ring(self) -> bool {
        matches!(self, Self::Ringbuf)
    }

    /// Whether the map is an array.
    pub const fn is_array(self) -> bool {
        matches!(self, Self::Array | Self::PercpuArray | Self::ArrayOfMaps)
    }

    /// Whether the values are handles of other maps.
    pub const fn is_map_of_maps(self) -> bool {
        matches!(self, Self::ArrayOfMaps | Self::HashOfMaps)
    }

    /// Whether entries have values.
    pub const fn has_values(self) -> bool {
        !matches!(self, Self::BloomFilter)
    }

    /// Whether the map lets an entry be taken out together with its value.
    pub(crate) const fn takes(self) -> bool {
        matches!(
            self,
            Self::Hash
                | Self::PercpuHash
                | Self::LruHash
                | Self::LruPercpuHash
                | Self::Queue
                | Self::Stack
        )
    }
}

/// A map as MAP_CREATE described it, checked against the limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// Type.
    pub kind: MapKind,
    /// Key size in bytes.
    pub key_size: u32,
    /// Value size in bytes, of one CPU.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// Per-CPU slots; 0 for types that have none.
    pub cpu_slots: u32,
    /// Seed of the key hash.
    pub seed: u64,
    /// Name, NUL-padded.
    pub name: [u8; 16],
    /// `map_extra`.
    pub map_extra: u64,
    /// IOVA of host memory that belongs to the map; 0 for types that have none.
    pub host_memory: u64,
    /// MSI-X vector; 0 for types that have none.
    pub vector: u32,
}

impl MapSpec {
    /// The map that the command asks for; `kind` is its type.
    pub(crate) fn new(kind: MapKind, body: &MapCreateBody, attr: &MapAttr) -> Self {
        Self {
            kind,
            key_size: body.key_size.get(),
            value_size: body.value_size.get(),
            max_entries: body.max_entries.get(),
            cpu_slots: body.cpu_slots.get(),
            seed: body.seed.get(),
            name: attr.name,
            map_extra: attr.map_extra.get(),
            host_memory: attr.host_memory.get(),
            vector: attr.vector.get(),
        }
    }

    /// Entries that count against the limits: a ring buffer's `max_entries` are bytes of host
    /// memory.
    pub(crate) fn entries(&self) -> u32 {
        if self.kind.is_ring() {
            0
        } else {
            self.max_entries
        }
    }

    /// The description line.
    pub(crate) fn description(&self) -> [u8; DESCRIPTION_BYTES as usize] {
        let mut line = [0; DESCRIPTION_BYTES as usize];
        let words = [
            DESCRIPTION_MAGIC,
            self.kind.uapi(),
            self.key_size,
            self.value_size,
            self.max_entries,
            self.cpu_slots,
        ];
        for (to, word) in line.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        line[24..32].copy_from_slice(&self.seed.to_le_bytes());
        line[32..48].copy_from_slice(&self.name);
        line
    }
}

/// How the value of an entry lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValueShape {
    /// Bytes of the value of one CPU.
    pub size: u32,
    /// The same rounded up to 8: the stride of per-CPU slots.
    pub slot_bytes: u32,
    /// Per-CPU slots; 0 for types that have none.
    pub slots: u32,
    /// Bytes of the whole value as it travels.
    pub wire: u32,
    /// Bytes of the whole value in memory.
    pub stored: u32,
}

impl ValueShape {
    pub(crate) fn new(spec: &MapSpec) -> Option<Self> {
        let slot_bytes = spec.value_size.checked_next_multiple_of(8)?;
        let stored = slot_bytes.checked_mul(spec.cpu_slots.max(1))?;
        let percpu = spec.kind.is_percpu();
        Some(Self {
            size: spec.value_size,
            slot_bytes,
            slots: if percpu { spec.cpu_slots } else { 0 },
            wire: if percpu { stored } else { spec.value_size },
            stored,
        })
    }
}

/// Offsets from the start of a map, in bytes, and counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// The value of an entry.
    pub(crate) value: ValueShape,
    /// Stride of the entries.
    pub(crate) entry_bytes: u64,
    /// From an entry's start to its value; 0 for arrays.
    pub(crate) value_offset: u64,
    /// First header of a home bucket, or node of a trie.
    pub(crate) homes: u64,
    /// Number of home buckets, a power of two; 0 for arrays.
    pub(crate) home_count: u32,
    /// First back of a home bucket.
    pub(crate) backs: u64,
    /// Number of overflow buckets; 0 for arrays.
    pub(crate) overflow_count: u32,
    /// Occupancy tree of the home buckets.
    pub(crate) occupancy: u64,
    /// Tree of free entries.
    pub(crate) free: u64,
    /// A byte of recency for each entry, for LRU types.
    pub(crate) recency: u64,
    /// First entry.
    pub(crate) entries: u64,
    /// All of the map.
    pub(crate) total_bytes: u64,
}

impl Geometry {
    /// The geometry of a map; `None` when it cannot be expressed in 64 bits.
    pub(crate) fn new(spec: &MapSpec) -> Option<Self> {
        let value = ValueShape::new(spec)?;
        let max = u64::from(spec.max_entries);
        let flat = |homes, entry_bytes, entries, total_bytes| Self {
            value,
            entry_bytes,
            value_offset: 0,
            homes,
            home_count: 0,
            backs: 0,
            overflow_count: 0,
            occupancy: 0,
            free: 0,
            recency: 0,
            entries,
            total_bytes,
        };
        if spec.kind == MapKind::LpmTrie {
            let nodes = DESCRIPTION_BYTES + lpm::STATE_BYTES;
            let node_bytes = lpm::node_bytes(spec.key_size);
            let node_total = node_bytes.checked_mul(lpm::node_count(spec.max_entries))?;
            let values = nodes.checked_add(node_total)?;
            let stored = u64::from(value.stored);
            let total = values.checked_add(stored.checked_mul(max)?)?;
            return Some(flat(nodes, stored, values, total));
        }
        if spec.kind == MapKind::BloomFilter {
            let total = DESCRIPTION_BYTES + bloom::bitset_bytes(spec);
            return Some(flat(0, 0, DESCRIPTION_BYTES, total));
        }
        if spec.kind.is_ring() {
            return Some(flat(0, 0, DESCRIPTION_BYTES, DESCRIPTION_BYTES));
        }
        if spec.kind.is_array() || spec.kind.is_queue() {
            let entry_bytes = u64::from(value.stored);
            let entries = match spec.kind.is_array() {
                true => DESCRIPTION_BYTES,
                false => DESCRIPTION_BYTES + STATE_BYTES,
            };
            let total_bytes = entries.checked_add(entry_bytes.checked_mul(max)?)?;
            return Some(flat(0, entry_bytes, entries, total_bytes));
        }
        // Three to six entries a home bucket of a full table on average, of the eight that it
        // has room for: between 0.4 and 15 home buckets in a hundred have an overflow bucket,
        // and headers take 3 to 6 bytes an entry, so that few of a large table's miss.
        let home_count = spec.max_entries.div_ceil(6).checked_next_power_of_two()?;
        let overflow_count = spec.max_entries / 8 + 1;
        let value_offset = u64::from(spec.key_size).checked_next_multiple_of(8)?;
        let entry_bytes = value_offset.checked_add(value.stored.into())?;
        let homes = DESCRIPTION_BYTES + STATE_BYTES;
        let buckets = u64::from(home_count) + u64::from(overflow_count);
        let backs = homes + (buckets * HEADER_BYTES).next_multiple_of(LINE_BYTES);
        let occupancy = backs + (buckets * BACK_BYTES).next_multiple_of(LINE_BYTES);
        let free = occupancy + occupancy::tree_bytes(home_count.into());
        let recency = free + occupancy::tree_bytes(max);
        let entries = match spec.kind.is_lru() {
            true => recency + max.next_multiple_of(LINE_BYTES),
            false => recency,
        };
        let total_bytes = entries.checked_add(entry_bytes.checked_mul(max)?)?;
        Some(Self {
            value,
            entry_bytes,
            value_offset,
            homes,
            home_count,
            backs,
            overflow_count,
            occupancy,
            free,
            recency,
            entries,
            total_bytes,
        })
    }
}
