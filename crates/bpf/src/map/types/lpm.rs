//! LPM_TRIE: what may be created (`kernel/bpf/lpm_trie.c`).

use super::{ACCESS_FLAGS, KMALLOC_MAX_SIZE, check_flags, invalid};
use crate::device::OffloadCommands;
use crate::error::Result;
use crate::map::lpm::{DATA_BYTES_MAX, HostLpm, NODE_BYTES, PREFIX_BYTES};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags};
use std::sync::Arc;

/// LPM_TRIE.
pub(super) static LPM: MapTypeOps = MapTypeOps {
    alloc_check: |_, _| Ok(()),
    alloc: trie_alloc,
    needs_cap_bpf: true,
    commands: OffloadCommands::LOOKUP_BATCH
        .union(OffloadCommands::UPDATE_BATCH)
        .union(OffloadCommands::DELETE_BATCH),
    token: Token::LastKey,
};

/// What `trie_alloc` checks: after the capabilities, and not before as `map_alloc_check` does.
pub(super) fn check(attr: &MapCreateAttr) -> Result<()> {
    if attr.max_entries == 0 {
        return Err(invalid(
            "max_entries 0: an LPM_TRIE map needs at least 1".into(),
        ));
    }
    if !attr.flags().contains(MapFlags::NO_PREALLOC) {
        return Err(invalid(format!(
            "map_flags {:#x}: an LPM_TRIE map needs NO_PREALLOC",
            attr.map_flags
        )));
    }
    check_flags(
        attr,
        MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE | ACCESS_FLAGS,
    )?;
    let within = |name, size: u32, min: u64, max: u64| {
        if (min..=max).contains(&u64::from(size)) {
            return Ok(());
        }
        Err(invalid(format!(
            "{name} {size}: an LPM_TRIE map takes {min} to {max} bytes"
        )))
    };
    let (prefix, data) = (PREFIX_BYTES as u64, DATA_BYTES_MAX as u64);
    within("key_size", attr.key_size, prefix + 1, prefix + data)?;
    let value_max = KMALLOC_MAX_SIZE - data - NODE_BYTES;
    within("value_size", attr.value_size, 1, value_max)
}

/// `trie_alloc`.
fn trie_alloc(attr: &MapCreateAttr, _context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    check(attr)?;
    Ok(Arc::new(HostLpm::new(
        attr.key_size,
        attr.value_size,
        attr.max_entries,
    )))
}
