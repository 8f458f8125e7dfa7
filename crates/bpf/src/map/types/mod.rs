//! Ops by map type: `bpf_map_types[]`, and the checks that several types share.
//!
//! One module per type or family: its row of the table, its `map_alloc_check` and its
//! `map_alloc`. What stores the elements is beside this folder.

mod array;
mod bloom;
mod hash;
mod inner;
mod lpm;
mod lru;
mod queue;
mod ringbuf;

use super::ops::MapTypeOps;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{MapCreateAttr, MapFlags, MapType, NUMA_NO_NODE};

/// The row of a type, or `None` where this kernel is built without the type.
pub(crate) fn map_type_ops(map_type: MapType) -> Option<&'static MapTypeOps> {
    match map_type {
        MapType::HASH | MapType::PERCPU_HASH => Some(&hash::HASH),
        MapType::ARRAY | MapType::PERCPU_ARRAY => Some(&array::ARRAY),
        MapType::LPM_TRIE => Some(&lpm::LPM),
        MapType::BLOOM_FILTER => Some(&bloom::BLOOM),
        MapType::LRU_HASH | MapType::LRU_PERCPU_HASH => Some(&lru::LRU),
        MapType::QUEUE | MapType::STACK => Some(&queue::QUEUE),
        MapType::ARRAY_OF_MAPS => Some(&inner::ARRAY_OF_MAPS),
        MapType::HASH_OF_MAPS => Some(&inner::HASH_OF_MAPS),
        MapType::RINGBUF => Some(&ringbuf::RINGBUF),
        _ => None,
    }
}

/// What `map_alloc` of the type, and not its `map_alloc_check`, refuses of the attribute. The
/// kernel offloads no map of such a type; where a device does, it refuses what the host does.
pub(crate) fn check_offloaded(attr: &MapCreateAttr) -> Result<()> {
    match MapType(attr.map_type) {
        MapType::LPM_TRIE => lpm::check(attr),
        MapType::BLOOM_FILTER => bloom::check(attr),
        _ => Ok(()),
    }
}

/// `KMALLOC_MAX_SIZE` with 4 KiB pages: 4 MiB.
const KMALLOC_MAX_SIZE: u64 = 4 << 20;
/// `PCPU_MIN_UNIT_SIZE`: 32 KiB.
const PCPU_MIN_UNIT_SIZE: u64 = 32 << 10;

const ACCESS_FLAGS: MapFlags = MapFlags::RDONLY
    .union(MapFlags::WRONLY)
    .union(MapFlags::RDONLY_PROG)
    .union(MapFlags::WRONLY_PROG);

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, reason)
}

fn too_big(reason: String) -> Error {
    Error::because(Errno::E2BIG, reason)
}

fn check_flags(attr: &MapCreateAttr, allowed: MapFlags) -> Result<()> {
    let map_type = MapType(attr.map_type);
    let refused = attr.flags() - allowed;
    if !refused.is_empty() {
        let names: Vec<_> = refused.iter_names().map(|(name, _)| name).collect();
        let names = match names.is_empty() {
            true => "no flag that is known".to_owned(),
            false => names.join(", "),
        };
        return Err(invalid(format!(
            "map_flags {:#x}: a {map_type} map does not take {:#x} ({names})",
            attr.map_flags,
            refused.bits(),
        )));
    }
    let both = MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG;
    if attr.flags().contains(both) {
        return Err(invalid(format!(
            "map_flags {:#x}: RDONLY_PROG and WRONLY_PROG exclude each other",
            attr.map_flags
        )));
    }
    Ok(())
}

fn check_percpu_node(attr: &MapCreateAttr) -> Result<()> {
    if MapType(attr.map_type).is_percpu() && attr.numa_node() != NUMA_NO_NODE {
        return Err(invalid(format!(
            "numa_node {}: a {} map has memory on every CPU's node and takes none",
            attr.numa_node,
            MapType(attr.map_type)
        )));
    }
    Ok(())
}

fn check_percpu_value(attr: &MapCreateAttr) -> Result<()> {
    let slot = u64::from(attr.value_size).next_multiple_of(8);
    if MapType(attr.map_type).is_percpu() && slot > PCPU_MIN_UNIT_SIZE {
        return Err(too_big(format!(
            "value_size {}: a per-CPU value has at most {PCPU_MIN_UNIT_SIZE} bytes",
            attr.value_size
        )));
    }
    Ok(())
}
