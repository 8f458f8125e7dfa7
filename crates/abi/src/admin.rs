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

/// Most tiers of a device's memory ([`IdentifyData::tiers`]).
pub const TIERS_MAX: u32 = 16;

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
    /// Tiers of device memory, at most [`TIERS_MAX`]; 0 stands for one.
    pub tiers: U32,
    /// Zero.
    pub reserved: [u8; 36],
}

assert_layout!(IdentifyData, 128, {
    firmware: 0, map_types: 32, memory_bytes: 40, entries_total: 48, entries_per_map: 56,
    maps: 60, key_bytes: 64, value_bytes: 68, cpu_slots: 72, batch: 76, engines: 80,
    ports: 84, tiers: 88, reserved: 92,
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
    /// The memory tier that it is placed in: the tier's number plus one; 0: the device chooses.
    /// Other values need [`crate::regs::Features::MEMORY_TIERS`].
    pub tier: U32,
    /// Zero.
    pub reserved: U32,
}

assert_layout!(MapAttr, 48, {
    name: 0, map_extra: 16, host_memory: 24, inner_map: 32, vector: 36, tier: 40, reserved: 44,
});

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
    /// Device address at which it begins; 0 without [`crate::regs::Features::MEMORY_TIERS`].
    pub base: U64,
}

assert_layout!(MapDescription, 64, {
    map: 0, map_type: 4, key_size: 8, value_size: 12, max_entries: 16, cpu_slots: 20,
    map_extra: 24, bytes: 32, name: 40, base: 56,
});

/// Operands of MEMORY_INFO (abi §6.7). The completion's payload is a [`MemoryListed`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MemoryInfoBody {
    /// IOVA of the room for [`TierInfo`]s.
    pub iova: U64,
    /// The room in bytes.
    pub len: U32,
    /// The tier to begin with.
    pub first: U32,
    /// Zero.
    pub reserved: [u8; 32],
}

assert_layout!(MemoryInfoBody, 48, { iova: 0, len: 8, first: 12, reserved: 16 });

/// Result of MEMORY_INFO.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MemoryListed {
    /// Tiers that there are.
    pub tiers: U32,
    /// Bytes of a line, by which memory is handed out and checked.
    pub line_bytes: U32,
}

assert_layout!(MemoryListed, 8, { tiers: 0, line_bytes: 4 });

/// A tier of device memory, as MEMORY_INFO describes it. Tiers stand in the order of their speed, the
/// fastest first, and their addresses follow each other.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TierInfo {
    /// Name, UTF-8, NUL-padded.
    pub name: [u8; 16],
    /// Device address of its first byte.
    pub base: U64,
    /// Bytes that can be handed out.
    pub bytes: U64,
    /// Bytes that maps occupy.
    pub used: U64,
    /// Bytes of the largest free piece.
    pub free_largest: U64,
    /// Free pieces.
    pub free_pieces: U32,
    /// Its check code, a [`CheckCode`].
    pub check: U32,
    /// [`TIER_PLACEABLE`]; the rest zero.
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
    /// Errors of one bit that the check code has corrected since the device was built.
    pub corrected: U64,
    /// Errors that it has detected and could not correct, likewise.
    pub detected: U64,
    /// Lines of which bits are wrong, as far as the check code has shown.
    pub bad_lines: U64,
    /// Zero.
    pub reserved2: U64,
}

assert_layout!(TierInfo, 96, {
    name: 0, base: 16, bytes: 24, used: 32, free_largest: 40, free_pieces: 48, check: 52,
    flags: 56, reserved: 60, corrected: 64, detected: 72, bad_lines: 80, reserved2: 88,
});

/// In [`TierInfo::flags`]: maps can be placed in it.
pub const TIER_PLACEABLE: u32 = 1;

crate::open_enum! {
    /// What finds wrong bits in a tier.
    pub struct CheckCode(u32) {
        /// Nothing: what is wrong is read as it is.
        None = 0,
        /// A parity bit for each line: an odd number of wrong bits is detected.
        Parity = 1,
        /// Eight check bits for each word of eight bytes: one wrong bit is corrected, two are
        /// detected.
        Secded = 2,
    }
}

/// Operands of MAP_LAYOUT (abi §6.8); the map stands in the submission's header. The device writes a
/// [`MapLayout`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapLayoutBody {
    /// IOVA of the room for a [`MapLayout`].
    pub iova: U64,
    /// The room in bytes. The device writes at most this much.
    pub len: U32,
    /// Zero.
    pub reserved: [u8; 36],
}

assert_layout!(MapLayoutBody, 48, { iova: 0, len: 8, reserved: 12 });

/// How a map lies in device memory.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapLayout {
    /// Device address at which it begins.
    pub base: U64,
    /// Bytes from there.
    pub bytes: U64,
    /// The tier that it lies in, from 0.
    pub tier: U32,
    /// [`MAP_TIER_FIXED`]; the rest zero.
    pub flags: U32,
    /// Commands on its elements and accesses by engines in the period at hand, and half of what it was
    /// at the end of the one before (abi §6.9).
    pub heat: U64,
    /// Entries in it.
    pub entries: U32,
    /// Entries that it can hold.
    pub max_entries: U32,
    /// Bytes of an entry, key and value and padding.
    pub entry_bytes: U64,
    /// Home buckets of a hash table; 0 for other types, as with what follows.
    pub homes: U32,
    /// Home buckets that hold anything.
    pub homes_used: U32,
    /// Overflow buckets.
    pub overflow: U32,
    /// Overflow buckets that are part of a chain.
    pub overflow_used: U32,
    /// Longest chain, in buckets.
    pub longest_chain: U32,
    /// Entries found with one bucket read.
    pub probes_1: U32,
    /// Entries found with two.
    pub probes_2: U32,
    /// Entries found with three.
    pub probes_3: U32,
    /// Entries found with four.
    pub probes_4: U32,
    /// Entries found with five to eight.
    pub probes_8: U32,
    /// Entries found with nine to sixteen.
    pub probes_16: U32,
    /// Entries found with more.
    pub probes_more: U32,
    /// Zero.
    pub reserved: [u8; 32],
}

assert_layout!(MapLayout, 128, {
    base: 0, bytes: 8, tier: 16, flags: 20, heat: 24, entries: 32, max_entries: 36,
    entry_bytes: 40, homes: 48, homes_used: 52, overflow: 56, overflow_used: 60,
    longest_chain: 64, probes_1: 68, probes_2: 72, probes_3: 76, probes_4: 80, probes_8: 84,
    probes_16: 88, probes_more: 92, reserved: 96,
});

/// In [`MapLayout::flags`]: its tier was asked for, and the device does not choose another one.
pub const MAP_TIER_FIXED: u32 = 1;

/// Operands of MAP_MIGRATE (abi §6.9); the map stands in the submission's header, or 0. The
/// completion's payload is a [`MapMigrated`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapMigrateBody {
    /// The tier to move to: its number plus one; 0: the device chooses.
    pub tier: U32,
    /// Zero.
    pub reserved: [u8; 44],
}

assert_layout!(MapMigrateBody, 48, { tier: 0, reserved: 4 });

/// Result of MAP_MIGRATE.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MapMigrated {
    /// The map that has moved; 0: none has.
    pub map: U32,
    /// The tier that it lies in, from 0.
    pub tier: U32,
    /// Device address at which it begins.
    pub base: U64,
    /// The tier that it was in, from 0.
    pub from: U32,
    /// Zero.
    pub reserved: U32,
}

assert_layout!(MapMigrated, 24, { map: 0, tier: 4, base: 8, from: 16, reserved: 20 });

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
        /// piece. The payload is a [`MemoryDetail`] then, which begins as a [`LimitDetail`].
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

/// Payload of a completion with [`crate::Status::NoMemory`], where device memory is what was asked
/// for. A device without [`crate::regs::Features::MEMORY_TIERS`] sends a [`LimitDetail`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MemoryDetail {
    /// [`Limit::Memory`].
    pub limit: U32,
    /// The tier that was asked for: its number plus one; 0: any.
    pub tier: U32,
    /// Bytes that the command asked for.
    pub asked: U64,
    /// Bytes of the largest free piece of the tier, or of all of them.
    pub allowed: U64,
    /// Bytes in use, likewise.
    pub used: U64,
    /// Bytes that are free, likewise.
    pub free: U64,
}

assert_layout!(MemoryDetail, 40, { limit: 0, tier: 4, asked: 8, allowed: 16, used: 24, free: 32 });
