//! HASH and PERCPU_HASH: what may be created (`kernel/bpf/hashtab.c`).

use super::{
    ACCESS_FLAGS, KMALLOC_MAX_SIZE, check_flags, check_percpu_node, check_percpu_value, invalid,
    too_big,
};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::group_hash::GroupHash;
use crate::map::host_hash::HostHash;
use crate::map::htab_footprint::HtabFootprint;
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

/// `sizeof(struct htab_elem)` on 64-bit.
const HTAB_ELEM_BYTES: u64 = 48;
/// `sizeof(struct bucket)` on 64-bit.
const BUCKET_BYTES: u64 = 16;

/// `htab_map_alloc_check`.
pub(super) fn hash_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    check_zero_seed(attr, caller)?;
    check_flags(
        attr,
        MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE | MapFlags::ZERO_SEED | ACCESS_FLAGS,
    )?;
    check_percpu_node(attr)?;
    check_sizes(attr)
}

/// Who may have a hash of a known seed.
pub(super) fn check_zero_seed(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    if attr.flags().contains(MapFlags::ZERO_SEED) && !caller.sys_admin() {
        return Err(Error::new(
            Errno::EPERM,
            "map_flags: ZERO_SEED makes collisions predictable and needs CAP_SYS_ADMIN",
        ));
    }
    Ok(())
}

/// What all hash types ask of the three sizes.
pub(super) fn check_sizes(attr: &MapCreateAttr) -> Result<()> {
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

/// `htab_map_alloc`.
fn hash_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    check_buckets(attr.max_entries)?;
    let value_bytes = attr.user_value_bytes(context.possible_cpus);
    let (key_size, max_entries) = (attr.key_size, attr.max_entries);
    let footprint = HtabFootprint {
        preallocated: !attr.flags().contains(MapFlags::NO_PREALLOC),
        percpu: MapType(attr.map_type).is_percpu(),
        possible_cpus: context.possible_cpus,
    };
    Ok(match seed(attr) {
        Some(seed) => Arc::new(GroupHash::new(
            key_size,
            value_bytes,
            max_entries,
            seed,
            footprint,
        )?),
        None => Arc::new(HostHash::new(
            key_size,
            value_bytes,
            max_entries,
            !MapType(attr.map_type).is_percpu(),
            footprint,
        )?),
    })
}

/// Refuses more buckets than `htab_map_alloc` can count the bytes of.
pub(super) fn check_buckets(max_entries: u32) -> Result<()> {
    let n_buckets = u64::from(max_entries).next_power_of_two();
    if n_buckets > u64::from(u32::MAX) / BUCKET_BYTES {
        return Err(too_big(format!(
            "max_entries {max_entries}: a hash map has at most {} buckets",
            1 << 27
        )));
    }
    Ok(())
}

/// `hashrnd`; `None`: BPF_F_ZERO_SEED, the kernel's own hash with seed 0.
pub(super) fn seed(attr: &MapCreateAttr) -> Option<u64> {
    let zero = attr.flags().contains(MapFlags::ZERO_SEED);
    (!zero).then(|| std::hash::RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// A program cannot know the seed of a map, other than where it asks for none.
    #[test]
    fn each_map_has_a_seed_of_its_own() {
        let with = |flags: MapFlags| MapCreateAttr {
            map_flags: flags.bits(),
            ..MapCreateAttr::default()
        };
        let seeds: HashSet<_> = (0..256).map(|_| seed(&with(MapFlags::empty()))).collect();
        assert_eq!(seeds.len(), 256);
        assert!(!seeds.contains(&None));
        assert_eq!(seed(&with(MapFlags::ZERO_SEED)), None);
    }
}
