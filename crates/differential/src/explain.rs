//! Differences that are known, each with the reason and where the kernel has it.

use crate::sides::{Answer, Call};
use offmap_bpf::{Errno, MapType, command};

/// A difference that is accounted for.
pub struct Explained {
    /// Its name in reports.
    pub name: &'static str,
    /// Kernel file and version.
    pub source: &'static str,
    /// Why it is so, and not a fault.
    pub reason: &'static str,
    /// Whether the maps of the two sides hold different elements from here on, so that the rest
    /// of the sequence compares nothing.
    pub(crate) parts_ways: bool,
    pub(crate) applies: fn(&Seen<'_>) -> bool,
}

/// What a rule looks at.
pub(crate) struct Seen<'a> {
    pub(crate) call: &'a Call,
    pub(crate) answer: &'a Answer,
    /// The type that a create asked for, or of the map that the call names.
    pub(crate) map_type: MapType,
}

/// Types that a kernel may have and this system, as a kernel built without them, has not.
const NOT_HERE: &[MapType] = &[
    MapType::PROG_ARRAY,
    MapType::PERF_EVENT_ARRAY,
    MapType::STACK_TRACE,
    MapType::CGROUP_ARRAY,
    MapType::DEVMAP,
    MapType::SOCKMAP,
    MapType::CPUMAP,
    MapType::XSKMAP,
    MapType::SOCKHASH,
    MapType::CGROUP_STORAGE,
    MapType::REUSEPORT_SOCKARRAY,
    MapType::PERCPU_CGROUP_STORAGE,
    MapType::SK_STORAGE,
    MapType::DEVMAP_HASH,
    MapType::STRUCT_OPS,
    MapType::INODE_STORAGE,
    MapType::TASK_STORAGE,
    MapType::USER_RINGBUF,
    MapType::CGRP_STORAGE,
    MapType::ARENA,
];

/// The table.
pub const TABLE: &[Explained] = &[
    Explained {
        name: "map-type-not-here",
        source: "kernel/bpf/syscall.c find_and_alloc_map, include/linux/bpf_types.h, 6.18",
        reason: "the type belongs to the program or socket side; this system answers as a kernel \
             that is built without it",
        parts_ways: false,
        applies: |seen| {
            seen.call.command == command::MAP_CREATE
                && NOT_HERE.contains(&seen.map_type)
                && matches!(&seen.answer.ours, Err(error) if error.errno() == Errno::EINVAL)
        },
    },
    Explained {
        name: "kernel-out-of-elements",
        source: "kernel/bpf/memalloc.c unit_alloc and bpf_mem_refill, mm/percpu.c \
                 pcpu_balance_workfn, 6.18",
        reason: "elements of a map that is not preallocated come from a per-CPU reserve, which \
                 the kernel refills later, from interrupt work, without waiting for memory: \
                 insertions in quick succession can find it empty and get ENOMEM, on one run and \
                 not on the next",
        parts_ways: true,
        applies: |seen| {
            matches!(
                seen.call.command,
                command::MAP_UPDATE_ELEM | command::MAP_UPDATE_BATCH
            ) && matches!(
                seen.map_type,
                MapType::HASH | MapType::PERCPU_HASH | MapType::LPM_TRIE
            ) && seen.answer.kernel == Err(libc::ENOMEM)
                && !matches!(&seen.answer.ours, Err(error) if error.errno() == Errno::ENOMEM)
        },
    },
];

/// The entry that accounts for the difference.
pub(crate) fn explained(seen: &Seen<'_>) -> Option<&'static Explained> {
    TABLE.iter().find(|entry| (entry.applies)(seen))
}
