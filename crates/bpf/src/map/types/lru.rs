//! LRU_HASH and LRU_PERCPU_HASH: what may be created (`kernel/bpf/hashtab.c`).

use super::hash::{check_buckets, check_sizes, check_zero_seed, seed};
use super::{ACCESS_FLAGS, check_flags, check_percpu_node, invalid};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::lru::{LruHash, LruShape};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags, MapType, NUMA_NO_NODE};
use std::sync::Arc;

/// LRU_HASH and LRU_PERCPU_HASH.
pub(super) static LRU: MapTypeOps = MapTypeOps {
    alloc_check: lru_alloc_check,
    alloc: lru_alloc,
    needs_cap_bpf: true,
    commands: OffloadCommands::all(),
    token: Token::Bucket,
};

/// `htab_map_alloc_check`.
fn lru_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    check_zero_seed(attr, caller)?;
    let own = MapFlags::NO_PREALLOC | MapFlags::NO_COMMON_LRU;
    check_flags(
        attr,
        own | MapFlags::NUMA_NODE | MapFlags::ZERO_SEED | ACCESS_FLAGS,
    )?;
    if attr.flags().contains(MapFlags::NO_PREALLOC) {
        return Err(Error::because(
            Errno::ENOTSUPP,
            format!(
                "map_flags {:#x}: a {} map allocates its elements in advance and has no \
                 NO_PREALLOC",
                attr.map_flags,
                MapType(attr.map_type)
            ),
        ));
    }
    check_percpu_node(attr)?;
    if attr.flags().contains(MapFlags::NO_COMMON_LRU) && attr.numa_node() != NUMA_NO_NODE {
        return Err(invalid(format!(
            "numa_node {}: the lists of NO_COMMON_LRU lie on every CPU's node and take none",
            attr.numa_node
        )));
    }
    check_sizes(attr)
}

/// `htab_map_alloc`.
fn lru_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let cpus = context.possible_cpus.max(1);
    let per_cpu_lists = attr.flags().contains(MapFlags::NO_COMMON_LRU);
    // Every CPU's list has the same number of elements, and at least one.
    let max_entries = if per_cpu_lists {
        attr.max_entries
            .checked_next_multiple_of(cpus)
            .unwrap_or(attr.max_entries / cpus * cpus)
    } else {
        attr.max_entries
    };
    check_buckets(max_entries)?;
    Ok(Arc::new(LruHash::new(&LruShape {
        key_size: attr.key_size,
        value_bytes: attr.user_value_bytes(context.possible_cpus),
        percpu_values: MapType(attr.map_type).is_percpu(),
        max_entries,
        cpus,
        per_cpu_lists,
        seed: seed(attr),
    })?))
}
