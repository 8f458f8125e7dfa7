//! Map tables laid out in device memory.

pub(crate) mod array;
pub mod bucket;
pub mod hash;
pub mod layout;

use crate::access::Access;
use array::ArrayTable;
use hash::HashTable;
use layout::{Geometry, MapSpec, ValueShape};
use offmap_abi::{DevAddr, Status};

/// BPF_ANY: create or replace.
pub const BPF_ANY: u32 = 0;
/// BPF_NOEXIST: create only.
pub const BPF_NOEXIST: u32 = 1;
/// BPF_EXIST: replace only.
pub const BPF_EXIST: u32 = 2;

/// Elements that a batch handles side by side, so that their cache misses overlap.
pub(crate) const LANES: usize = 32;

/// What an update stores.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValueWrite<'a> {
    /// The whole value: all slots of a per-CPU value.
    All(&'a [u8]),
    /// One slot of a per-CPU value. The other slots keep what they have; those of a new
    /// entry are zero.
    Slot { slot: u32, value: &'a [u8] },
}

/// Where the key that follows another one stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextKey {
    /// In device memory.
    At(DevAddr),
    /// It is an array index, which stands nowhere.
    Index(u32),
}

/// What an update of a key that is there does under `flags`.
#[inline(always)]
pub(crate) fn exists(flags: u32) -> Result<(), Status> {
    match flags {
        BPF_NOEXIST => Err(Status::Exists),
        _ => Ok(()),
    }
}

/// Stores a value at `at` in one access. Padding becomes zero; in a `fresh` entry so does
/// every slot that the write does not cover.
pub(crate) fn write_value(
    access: &mut impl Access,
    at: DevAddr,
    shape: &ValueShape,
    value: ValueWrite<'_>,
    fresh: bool,
) -> Result<(), Status> {
    let stored = shape.stored as usize;
    match value {
        ValueWrite::All(value) => {
            access.with_bytes_mut(at, stored, |bytes| fill_padded(bytes, value))?;
        }
        ValueWrite::Slot { slot, value } => {
            let slot_bytes = shape.slot_bytes as usize;
            let start = (slot % shape.slots.max(1)) as usize * slot_bytes;
            if fresh {
                access.with_bytes_mut(at, stored, |bytes| {
                    bytes.fill(0);
                    fill_padded(&mut bytes[start..start + slot_bytes], value);
                })?;
            } else {
                let at = at.offset(start as u64);
                access.with_bytes_mut(at, slot_bytes, |bytes| fill_padded(bytes, value))?;
            }
        }
    }
    Ok(())
}

/// Copies `from` to the start of `bytes` and zeroes the rest. Lengths are the callers' own:
/// they have checked the peer's against the map.
#[inline(always)]
pub(crate) fn fill_padded(bytes: &mut [u8], from: &[u8]) {
    let (head, tail) = bytes.split_at_mut(from.len());
    head.copy_from_slice(from);
    tail.fill(0);
}

/// A map's table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    /// HASH and PERCPU_HASH.
    Hash(HashTable),
    /// ARRAY and PERCPU_ARRAY.
    Array(ArrayTable),
}

impl Table {
    /// The table of a map at `base`, whose memory is zero.
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        if spec.kind.is_array() {
            Self::Array(ArrayTable::new(base, spec, geometry))
        } else {
            Self::Hash(HashTable::new(base, spec, geometry))
        }
    }

    /// How values lie in memory.
    #[inline(always)]
    pub(crate) fn value(&self) -> &ValueShape {
        match self {
            Self::Hash(table) => &table.value,
            Self::Array(table) => &table.value,
        }
    }

    /// Address of the key's value.
    #[inline(always)]
    pub(crate) fn find(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        match self {
            Self::Hash(table) => table.find(access, key),
            Self::Array(table) => table.find(key),
        }
    }

    /// Looks up the keys packed in `keys`, at most [`LANES`] of them.
    #[inline(always)]
    pub(crate) fn find_many(
        &self,
        access: &mut impl Access,
        keys: &[u8],
        key_size: usize,
        found: &mut [Result<DevAddr, Status>; LANES],
    ) {
        match self {
            Self::Hash(table) => table.find_many(access, keys, key_size, found),
            Self::Array(table) => {
                for (key, found) in keys.chunks_exact(key_size).zip(found) {
                    *found = table.find(key);
                }
            }
        }
    }

    /// Stores a value; `flags` is one of [`BPF_ANY`], [`BPF_NOEXIST`], [`BPF_EXIST`].
    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.update(access, key, value, flags),
            Self::Array(table) => table.update(access, key, value, flags),
        }
    }

    /// Removes a key.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.delete(access, key),
            Self::Array(_) => Err(Status::Unsupported),
        }
    }

    /// The key after `key`; the first one when `key` is `None` or not there.
    pub(crate) fn next(
        &self,
        access: &mut impl Access,
        key: Option<&[u8]>,
    ) -> Result<NextKey, Status> {
        match self {
            Self::Hash(table) => table.next(access, key).map(NextKey::At),
            Self::Array(table) => table.next(key).map(NextKey::Index),
        }
    }

    /// Entries that exist.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        match self {
            Self::Hash(table) => table.entries(access),
            Self::Array(table) => Ok(table.max_entries()),
        }
    }
}
