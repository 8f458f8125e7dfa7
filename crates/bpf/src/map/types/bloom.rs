//! BLOOM_FILTER: what may be created (`kernel/bpf/bloom_filter.c`).

use super::{ACCESS_FLAGS, KMALLOC_MAX_SIZE, check_flags, invalid, too_big};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::error::Result;
use crate::map::bloom::HostBloom;
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// BLOOM_FILTER.
pub(super) static BLOOM: MapTypeOps = MapTypeOps {
    alloc_check: bloom_alloc_check,
    alloc: bloom_alloc,
    needs_cap_bpf: true,
    commands: OffloadCommands::empty(),
    token: Token::LastKey,
};

/// Bits of `map_extra` that say how many hash functions there are.
const HASHES: u64 = 0xf;

/// `bloom_map_alloc_check`.
fn bloom_alloc_check(attr: &MapCreateAttr, _caller: &Caller) -> Result<()> {
    if u64::from(attr.value_size) > KMALLOC_MAX_SIZE {
        return Err(too_big(format!(
            "value_size {}: a bloom filter's value has at most {KMALLOC_MAX_SIZE} bytes",
            attr.value_size
        )));
    }
    Ok(())
}

/// What `bloom_map_alloc` checks, after the capabilities.
pub(super) fn check(attr: &MapCreateAttr) -> Result<()> {
    if attr.key_size != 0 {
        return Err(invalid(format!(
            "key_size {}: a bloom filter has no keys and wants 0",
            attr.key_size
        )));
    }
    for (name, size) in [
        ("value_size", attr.value_size),
        ("max_entries", attr.max_entries),
    ] {
        if size == 0 {
            return Err(invalid(format!(
                "{name} 0: a BLOOM_FILTER map needs at least 1"
            )));
        }
    }
    check_flags(
        attr,
        MapFlags::NUMA_NODE | MapFlags::ZERO_SEED | ACCESS_FLAGS,
    )?;
    if attr.map_extra & !HASHES != 0 {
        return Err(invalid(format!(
            "map_extra {:#x}: a bloom filter's number of hash functions is at most {HASHES}, \
             and the other bits are 0",
            attr.map_extra
        )));
    }
    Ok(())
}

/// `bloom_map_alloc`.
fn bloom_alloc(attr: &MapCreateAttr, _context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    check(attr)?;
    let seed = if attr.flags().contains(MapFlags::ZERO_SEED) {
        0
    } else {
        std::hash::RandomState::new().build_hasher().finish() as u32
    };
    Ok(Arc::new(HostBloom::new(
        attr.value_size,
        attr.max_entries,
        attr.map_extra as u32,
        seed,
    )?))
}
