//! Bodies and results of the admin commands (abi §6).

use crate::assert_layout;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operands of IDENTIFY (abi §6.1).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IdentifyBody {
    /// IOVA of the buffer.
    pub iova: U64,
    /// Room in the buffer in bytes. The device writes at most this much of [`IdentifyData`].
    pub len: U32,
    /// Zero.
    pub reserved: [u8; 36],
}

assert_layout!(IdentifyBody, 48, { iova: 0, len: 8, reserved: 12 });

/// Most network ports of a device ([`IdentifyData::ports`]).
pub const PORTS_MAX: u32 = 256;

/// What IDENTIFY writes: what the device's firmware is and can hold.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IdentifyData {
    /// Name of the firmware, UTF-8, zero-padded.
    pub firmware: [u8; 32],
    /// Map types: bit `n` stands for UAPI `enum bpf_map_type` value `n`.
    pub map_types: U64,
    /// Device memory for maps, in bytes.
    pub memory_bytes: U64,
    /// Most entries that all maps together may declare; 0: bounded by memory alone.
    pub entries_total: U64,
    /// Most entries of one map.
    pub entries_per_map: U32,
    /// Most maps at a time.
    pub maps: U32,
    /// Longest key in bytes.
    pub key_bytes: U32,
    /// Longest value in bytes (of one CPU, for per-CPU maps).
    pub value_bytes: U32,
    /// Most per-CPU slots of a map.
    pub cpu_slots: U32,
    /// Most elements of a batch command; 0 without the BATCH feature.
    pub batch: U32,
    /// Number of engines that run the data path. Engine `e` writes per-CPU slot
    /// `e % cpu_slots`.
    pub engines: U32,
    /// Network ports, at most [`PORTS_MAX`], which share the maps; 0 stands for one.
    pub ports: U32,
    /// Zero.
    pub reserved: [u8; 40],
}

assert_layout!(IdentifyData, 128, {
    firmware: 0, map_types: 32, memory_bytes: 40, entries_total: 48, entries_per_map: 56,
    maps: 60, key_bytes: 64, value_bytes: 68, cpu_slots: 72, batch: 76, engines: 80,
    ports: 84, reserved: 88,
});

/// Operands of QUEUE_CREATE (abi §6.2).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct QueueCreateBody {
    /// Id of the new queue pair, from 1.
    pub queue: U16,
    /// Zero.
    pub reserved: U16,
    /// Depth of both rings in entries: a power of two.
    pub depth: U32,
    /// MSI-X vector, or [`crate::regs::NO_VECTOR`].
    pub vector: U32,
    /// Interrupt coalescing: completions for which an interrupt is held back, from 2; 0: none
    /// is. Zero without [`crate::regs::Features::COALESCING`].
    pub coalesce_count: U16,
    /// The longest that it is held back, in microseconds: from 1, and 0 where the count is.
    pub coalesce_us: U16,
    /// IOVA of the submission ring, aligned to [`crate::regs::RING_ALIGN`], zeroed.
    pub sq: U64,
    /// IOVA of the completion ring, likewise.
    pub cq: U64,
    /// IOVA of the notify block, 64-byte aligned and zeroed; 0: the queue uses doorbells.
    pub notify: U64,
    /// Zero.
    pub reserved3: U64,
}

assert_layout!(QueueCreateBody, 48, {
    queue: 0, reserved: 2, depth: 4, vector: 8, coalesce_count: 12, coalesce_us: 14, sq: 16, cq: 24, notify: 32,
    reserved3: 40,
});

/// Operands of QUEUE_DELETE (abi §6.2).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct QueueDeleteBody {
    /// Id of the queue pair.
    pub queue: U16,
    /// Zero.
    pub reserved: [u8; 46],
}

assert_layout!(QueueDeleteBody, 48, { queue: 0, reserved: 2 });

/// Operands of MAP_CREATE (abi §6.3). The completion's payload is a [`MapCreated`].
///
/// What every map has is here; what some maps have, or will have, is in a [`MapAttr`] that the
/// body refers to, which can grow.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapCreateBody {
    /// UAPI `enum bpf_map_type` value.
    pub map_type: U32,
    /// Key size in bytes.
    pub key_size: U32,
    /// Value size in bytes (of one CPU, for per-CPU types).
    pub value_size: U32,
    /// Number of entries that the map must be able to hold.
    pub max_entries: U32,
    /// Per-CPU slots: the host's possible CPUs for per-CPU types, otherwise 0.
    pub cpu_slots: U32,
    /// Zero; later flags.
    pub flags: U32,
    /// Seed of the key hash.
    pub seed: U64,
    /// IOVA of a [`MapAttr`].
    pub attr: U64,
    /// Its length in bytes; 0: there is none, and all of it counts as zero.
    pub attr_len: U32,
    /// Zero.
    pub reserved: U32,
}

assert_layout!(MapCreateBody, 48, {
    map_type: 0, key_size: 4, value_size: 8, max_entries: 12, cpu_slots: 16, flags: 20,
    seed: 24, attr: 32, attr_len: 40, reserved: 44,
});

/// The longest [`MapAttr`] that a device has to accept, in bytes.
pub const MAP_ATTR_BYTES_MAX: usize = 4096;

/// Further attributes of a new map (abi §6.3).
///
/// The structure grows at its end. A shorter one counts as zero-extended; what a device does
/// not know at the end of a longer one must be zero, or the command is refused.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct MapAttr {
    /// Name for people, NUL-padded.
    pub name: [u8; 16],
    /// The UAPI's `map_extra`; 0 for types that have no use for it.
    pub map_extra: U64,
    /// IOVA of host memory that belongs to the map, for types that have some; otherwise 0.
    pub host_memory: U64,
    /// Handle of the template of the inner maps, for types that hold maps; otherwise 0.
    pub inner_map: U32,
    /// MSI-X vector by which the map tells of data, or [`crate::regs::NO_VECTOR`]; 0 for types
    /// that do not.
    pub vector: U32,
}

assert_layout!(MapAttr, 40, { name: 0, map_extra: 16, host_memory: 24, inner_map: 32, vector: 36 });

/// Result of MAP_CREATE.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapCreated {
    /// Handle of the new map.
    pub map: U32,
    /// Zero.
    pub reserved: U32,
    /// Device memory that the map occupies, in bytes.
    pub bytes: U64,
}

assert_layout!(MapCreated, 16, { map: 0, reserved: 4, bytes: 8 });

/// Operands of MAP_FREE and MAP_QUERY: none; the map stands in the submission's header.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EmptyBody {
    /// Zero.
    pub reserved: [u8; 48],
}

impl EmptyBody {
    /// The body.
    pub const ZERO: Self = Self { reserved: [0; 48] };
}

assert_layout!(EmptyBody, 48, { reserved: 0 });

/// Result of MAP_QUERY (abi §6.4).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapInfo {
    /// Device memory that the map occupies, in bytes.
    pub bytes: U64,
    /// Entries in the map now.
    pub entries: U32,
    /// Longest chain of buckets of a hash map now, in buckets; 0 for arrays.
    pub longest_chain: U32,
    /// Device memory that no map occupies, in bytes.
    pub free_bytes: U64,
    /// Largest piece of it, in bytes.
    pub free_largest: U64,
}

assert_layout!(MapInfo, 32, {
    bytes: 0, entries: 8, longest_chain: 12, free_bytes: 16, free_largest: 24,
});

/// Operands of MAP_LIST (abi §6.6). The completion's payload is a [`MapListed`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapListBody {
    /// IOVA of the room for [`MapDescription`]s.
    pub iova: U64,
    /// The room in bytes: one description or more.
    pub len: U32,
    /// 0 at first, and then the cursor of the completion before.
    pub cursor: U32,
    /// Zero.
    pub reserved: [u8; 32],
}

assert_layout!(MapListBody, 48, { iova: 0, len: 8, cursor: 12, reserved: 16 });

/// Result of MAP_LIST.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapListed {
    /// Where the list goes on; 0: it has ended.
    pub cursor: U32,
    /// Zero.
    pub reserved: U32,
}

assert_layout!(MapListed, 8, { cursor: 0, reserved: 4 });

/// A map, as MAP_LIST describes it: what MAP_CREATE was given.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapDescription {
    /// Its handle.
    pub map: U32,
    /// UAPI `enum bpf_map_type` value.
    pub map_type: U32,
    /// Key size in bytes.
    pub key_size: U32,
    /// Value size in bytes (of one CPU, for per-CPU types).
    pub value_size: U32,
    /// Number of entries that it can hold.
    pub max_entries: U32,
    /// Per-CPU slots, or 0.
    pub cpu_slots: U32,
    /// The UAPI's `map_extra`.
    pub map_extra: U64,
    /// Device memory that it occupies, in bytes.
    pub bytes: U64,
    /// Name for people, NUL-padded.
    pub name: [u8; 16],
    /// Zero.
    pub reserved: U64,
}

assert_layout!(MapDescription, 64, {
    map: 0, map_type: 4, key_size: 8, value_size: 12, max_entries: 16, cpu_slots: 20,
    map_extra: 24, bytes: 32, name: 40, reserved: 56,
});

/// Operands of ABORT (abi §6.5).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AbortBody {
    /// The command to end.
    pub request: U64,
    /// Its queue.
    pub queue: U16,
    /// Zero.
    pub reserved: [u8; 38],
}

assert_layout!(AbortBody, 48, { request: 0, queue: 8, reserved: 10 });

crate::open_enum! {
    /// Which limit a [`LimitDetail`] is about.
    pub struct Limit(u32) {
        /// Map type; `allowed` is the bit set of types.
        MapType = 1,
        /// Key size, in bytes.
        KeyBytes = 2,
        /// Value size, in bytes.
        ValueBytes = 3,
        /// Entries of one map.
        EntriesPerMap = 4,
        /// Entries of all maps together; `used` by those that exist.
        EntriesTotal = 5,
        /// Number of maps; `used` exist.
        Maps = 6,
        /// Per-CPU slots.
        CpuSlots = 7,
        /// Device memory in bytes; `used` by the maps that exist, `allowed` the largest free
        /// piece.
        Memory = 8,
    }
}

/// Payload of a completion with [`crate::Status::LimitExceeded`] or
/// [`crate::Status::NoMemory`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LimitDetail {
    /// Which [`Limit`].
    pub limit: U32,
    /// Zero.
    pub reserved: U32,
    /// What the command asked for.
    pub asked: U64,
    /// What the device allows.
    pub allowed: U64,
    /// What is in use already, where the limit is shared.
    pub used: U64,
}

assert_layout!(LimitDetail, 32, { limit: 0, reserved: 4, asked: 8, allowed: 16, used: 24 });
