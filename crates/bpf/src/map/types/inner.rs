//! ARRAY_OF_MAPS and HASH_OF_MAPS: what may be created (`kernel/bpf/arraymap.c`,
//! `kernel/bpf/hashtab.c`).

use super::array::array_alloc_check;
use super::hash::{check_buckets, hash_alloc_check, seed};
use super::invalid;
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::inner::{ArrayOfMaps, HashOfMaps, HashShape, MapMeta, VALUE_BYTES};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::uapi::{MapCreateAttr, MapFlags, MapType};
use std::sync::Arc;

/// ARRAY_OF_MAPS.
pub(super) static ARRAY_OF_MAPS: MapTypeOps = MapTypeOps {
    alloc_check: array_of_maps_alloc_check,
    alloc: array_of_maps_alloc,
    needs_cap_bpf: false,
    commands: OffloadCommands::LOOKUP_BATCH.union(OffloadCommands::UPDATE_BATCH),
    token: Token::LastKey,
};

/// HASH_OF_MAPS: as a hash map, but for LOOKUP_AND_DELETE_ELEM.
pub(super) static HASH_OF_MAPS: MapTypeOps = MapTypeOps {
    alloc_check: hash_of_maps_alloc_check,
    alloc: hash_of_maps_alloc,
    needs_cap_bpf: false,
    commands: OffloadCommands::all().difference(OffloadCommands::LOOKUP_AND_DELETE),
    token: Token::Bucket,
};

fn check_value_size(attr: &MapCreateAttr) -> Result<()> {
    if attr.value_size as usize != VALUE_BYTES {
        return Err(invalid(format!(
            "value_size {}: the value of a {} map is a descriptor of {VALUE_BYTES} bytes",
            attr.value_size,
            MapType(attr.map_type)
        )));
    }
    Ok(())
}

/// `fd_array_map_alloc_check`.
fn array_of_maps_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    check_value_size(attr)?;
    let refused = attr.flags() & (MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG);
    if !refused.is_empty() {
        return Err(invalid(format!(
            "map_flags {:#x}: an array of maps takes neither RDONLY_PROG nor WRONLY_PROG",
            attr.map_flags
        )));
    }
    array_alloc_check(attr, caller)
}

/// `fd_htab_map_alloc_check`.
fn hash_of_maps_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    check_value_size(attr)?;
    hash_alloc_check(attr, caller)
}

/// MAP_CREATE resolves `inner_map_fd` for both types before it gets here.
fn template(context: &AllocContext) -> Result<MapMeta> {
    context.template.clone().ok_or(Error::new(
        Errno::EBADF,
        "inner_map_fd: a map of maps needs a template of its inner maps",
    ))
}

/// `array_of_map_alloc`.
fn array_of_maps_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let template = template(context)?;
    Ok(Arc::new(ArrayOfMaps::new(template, attr.max_entries)))
}

/// `htab_of_map_alloc`.
fn hash_of_maps_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let template = template(context)?;
    check_buckets(attr.max_entries)?;
    let shape = HashShape {
        key_size: attr.key_size,
        max_entries: attr.max_entries,
        seed: seed(attr),
        preallocated: !attr.flags().contains(MapFlags::NO_PREALLOC),
        possible_cpus: context.possible_cpus,
    };
    Ok(Arc::new(HashOfMaps::new(template, &shape)))
}
