//! QUEUE and STACK: what may be created (`kernel/bpf/queue_stack_maps.c`).

use super::{ACCESS_FLAGS, KMALLOC_MAX_SIZE, check_flags, invalid, too_big};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::error::Result;
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::map::queue::{End, HostQueue};
use crate::uapi::{MapCreateAttr, MapFlags, MapType};
use std::sync::Arc;

/// QUEUE and STACK.
pub(super) static QUEUE: MapTypeOps = MapTypeOps {
    alloc_check: queue_alloc_check,
    alloc: queue_alloc,
    needs_cap_bpf: true,
    commands: OffloadCommands::LOOKUP_AND_DELETE,
    token: Token::LastKey,
};

/// `queue_stack_map_alloc_check`.
fn queue_alloc_check(attr: &MapCreateAttr, _caller: &Caller) -> Result<()> {
    let map_type = MapType(attr.map_type);
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
    if attr.key_size != 0 {
        return Err(invalid(format!(
            "key_size {}: a {map_type} map has no keys and wants 0",
            attr.key_size
        )));
    }
    check_flags(attr, MapFlags::NUMA_NODE | ACCESS_FLAGS)?;
    if u64::from(attr.value_size) > KMALLOC_MAX_SIZE {
        return Err(too_big(format!(
            "value_size {}: a value has at most {KMALLOC_MAX_SIZE} bytes",
            attr.value_size
        )));
    }
    Ok(())
}

/// `queue_stack_map_alloc`.
fn queue_alloc(attr: &MapCreateAttr, _context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let end = match MapType(attr.map_type) {
        MapType::STACK => End::Newest,
        _ => End::Oldest,
    };
    Ok(Arc::new(HostQueue::new(
        end,
        attr.value_size,
        attr.max_entries,
    )?))
}
