//! ARRAY and PERCPU_ARRAY: what may be created (`kernel/bpf/arraymap.c`).

use super::{ACCESS_FLAGS, check_flags, check_percpu_node, check_percpu_value, invalid, too_big};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::error::Result;
use crate::map::host_array::{ArrayMmap, HostArray};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags, MapType};
use std::sync::Arc;

/// ARRAY and PERCPU_ARRAY.
pub(super) static ARRAY: MapTypeOps = MapTypeOps {
    alloc_check: array_alloc_check,
    alloc: array_alloc,
    needs_cap_bpf: false,
    commands: OffloadCommands::LOOKUP_BATCH.union(OffloadCommands::UPDATE_BATCH),
    token: Token::LastKey,
};

/// `array_map_alloc_check`.
pub(super) fn array_alloc_check(attr: &MapCreateAttr, _caller: &Caller) -> Result<()> {
    let map_type = MapType(attr.map_type);
    if attr.key_size != 4 {
        return Err(invalid(format!(
            "key_size {}: an array's key is an index of 4 bytes",
            attr.key_size
        )));
    }
    for (name, size) in [
        ("max_entries", attr.max_entries),
        ("value_size", attr.value_size),
    ] {
        if size == 0 {
            return Err(invalid(format!(
                "{name} 0: a {map_type} map needs at least 1"
            )));
        }
    }
    let mut allowed = MapFlags::NUMA_NODE | ACCESS_FLAGS;
    if map_type == MapType::ARRAY {
        allowed |= MapFlags::MMAPABLE | MapFlags::INNER_MAP;
    }
    check_flags(attr, allowed)?;
    check_percpu_node(attr)?;
    if attr.value_size > i32::MAX as u32 {
        return Err(too_big(format!(
            "value_size {}: a value has at most {} bytes",
            attr.value_size,
            i32::MAX
        )));
    }
    check_percpu_value(attr)
}

/// `array_map_alloc`.
fn array_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let mmap = match MapType(attr.map_type) {
        MapType::ARRAY if attr.flags().contains(MapFlags::MMAPABLE) => ArrayMmap::Shared,
        MapType::ARRAY => ArrayMmap::NotAsked,
        _ => ArrayMmap::Never,
    };
    Ok(Arc::new(HostArray::new(
        attr.user_value_bytes(context.possible_cpus),
        attr.max_entries,
        mmap,
    )?))
}
