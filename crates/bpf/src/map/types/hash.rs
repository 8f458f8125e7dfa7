//! HASH and PERCPU_HASH: what may be created (`kernel/bpf/hashtab.c`).

use super::{ACCESS_FLAGS, check_flags, check_percpu_node, check_percpu_value, invalid, too_big};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::host_hash::{HashOrder, HostHash};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags, MapType};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// HASH and PERCPU_HASH.
pub(super) static HASH: MapTypeOps = MapTypeOps {
    alloc_check: hash_alloc_check,
    alloc: hash_alloc,
    needs_cap_bpf: false,
    commands: OffloadCommands::all(),
    token: Token::Bucket,
};

/// `KMALLOC_MAX_SIZE` with 4 KiB pages: 4 MiB.
const KMALLOC_MAX_SIZE: u64 = 4 << 20;
/// `sizeof(struct htab_elem)` on 64-bit.
const HTAB_ELEM_BYTES: u64 = 48;
/// `sizeof(struct bucket)` on 64-bit.
const BUCKET_BYTES: u64 = 16;

/// `htab_map_alloc_check`.
pub(super) fn hash_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    if attr.flags().contains(MapFlags::ZERO_SEED) && !caller.sys_admin() {
        return Err(Error::new(
            Errno::EPERM,
            "map_flags: ZERO_SEED makes collisions predictable and needs CAP_SYS_ADMIN",
        ));
    }
    check_flags(
        attr,
        MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE | MapFlags::ZERO_SEED | ACCESS_FLAGS,
    )?;
    check_percpu_node(attr)?;
    for (name, size) in [
        ("max_entries", attr.max_entries),
        ("key_size", attr.key_size),
        ("value_size", attr.value_size),
    ] {
        if size == 0 {
            return Err(invalid(format!(
                "{name} 0: a {} map needs at least 1",
                MapType(attr.map_type)
            )));
        }
    }
    let element = u64::from(attr.key_size) + u64::from(attr.value_size);
    let limit = KMALLOC_MAX_SIZE - HTAB_ELEM_BYTES;
    if element >= limit {
        return Err(too_big(format!(
            "key_size {} and value_size {}: together {element} bytes, and an element has fewer \
             than {limit}",
            attr.key_size, attr.value_size
        )));
    }
    check_percpu_value(attr)
}

/// What `htab_map_alloc` itself refuses.
pub(super) fn check_buckets(attr: &MapCreateAttr) -> Result<()> {
    let n_buckets = u64::from(attr.max_entries).next_power_of_two();
    if n_buckets > u64::from(u32::MAX) / BUCKET_BYTES {
        return Err(too_big(format!(
            "max_entries {}: a hash map has at most {} buckets",
            attr.max_entries,
            1 << 27
        )));
    }
    Ok(())
}

/// The seed of the key hash.
pub(super) fn hash_seed(attr: &MapCreateAttr) -> u64 {
    if attr.flags().contains(MapFlags::ZERO_SEED) {
        0
    } else {
        std::hash::RandomState::new().build_hasher().finish()
    }
}

/// `htab_map_alloc`.
fn hash_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    check_buckets(attr)?;
    let order = if attr.flags().contains(MapFlags::ZERO_SEED) {
        HashOrder::Kernel {
            replaces: !MapType(attr.map_type).is_percpu(),
        }
    } else {
        HashOrder::Seeded(hash_seed(attr))
    };
    Ok(Arc::new(HostHash::new(
        attr.key_size,
        attr.user_value_bytes(context.possible_cpus),
        attr.max_entries,
        order,
    )?))
}
