//! Map tables laid out in device memory.
//!
//! No operation hands out an address that is read later. What is done with the entry that an
//! operation found is done in a call that the table makes, so that the table brackets it: a
//! policy under which engines run beside each other has one place for a lock, or for the check
//! of a sequence word.

pub(crate) mod array;
pub mod bucket;
pub mod hash;
pub mod layout;
pub(crate) mod occupancy;
pub(crate) mod ring;

use crate::access::Access;
use array::ArrayTable;
use core::ops::ControlFlow;
use hash::HashTable;
use layout::{Geometry, MapSpec, ValueShape};
use offmap_abi::submission::UPDATE_NOEXIST;
use offmap_abi::{DevAddr, Status};
use ring::RingTable;

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
        UPDATE_NOEXIST => Err(Status::Exists),
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

/// Copies a value out of memory. The common lengths are moves instead of a call.
#[inline(always)]
pub(crate) fn copy_out(into: &mut [u8], from: &[u8]) {
    #[inline(always)]
    fn fixed<const N: usize>(into: &mut [u8], from: &[u8]) -> bool {
        match (<&mut [u8; N]>::try_from(into), <&[u8; N]>::try_from(from)) {
            (Ok(into), Ok(from)) => {
                *into = *from;
                true
            }
            _ => false,
        }
    }
    if !(fixed::<64>(into, from) || fixed::<8>(into, from)) {
        into.copy_from_slice(from);
    }
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
    /// RINGBUF, which has no elements.
    Ring(RingTable),
}

impl Table {
    /// The table of a map at `base`, whose memory is zero.
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        if spec.kind.is_ring() {
            Self::Ring(RingTable::new(spec, geometry.value))
        } else if spec.kind.is_array() {
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
            Self::Ring(table) => &table.value,
        }
    }

    /// Calls `f` with the address of the key's value.
    #[inline(always)]
    pub(crate) fn with_value<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.with_value(access, key, f),
            Self::Array(table) => Ok(f(access, table.find(key)?)),
            Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Looks up the keys packed in `keys`, at most [`LANES`] of them, and visits the results in
    /// order until `visit` breaks.
    #[inline(always)]
    pub(crate) fn visit_many<A: Access>(
        &self,
        access: &mut A,
        keys: &[u8],
        key_size: usize,
        mut visit: impl FnMut(&mut A, usize, Result<DevAddr, Status>) -> ControlFlow<()>,
    ) {
        match self {
            Self::Hash(table) => table.visit_many(access, keys, key_size, visit),
            Self::Array(table) => {
                for (lane, key) in keys.chunks_exact(key_size).enumerate() {
                    if visit(access, lane, table.find(key)).is_break() {
                        return;
                    }
                }
            }
            // Batches of such a map are refused before they come here.
            Self::Ring(_) => {}
        }
    }

    /// Stores a value; `flags` is one of the `UPDATE_*` of [`offmap_abi::submission`].
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
            Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Removes a key.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.delete(access, key),
            Self::Array(_) | Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Calls `f` with the value of the key, and removes the key if that succeeds.
    pub(crate) fn take<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.take(access, key, f),
            Self::Array(_) | Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Calls `f` with the key after `key`; the first one when `key` is `None` or not there.
    pub(crate) fn with_next<A: Access, R>(
        &self,
        access: &mut A,
        key: Option<&[u8]>,
        f: impl FnOnce(&mut A, NextKey) -> R,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.with_next(access, key, |a, at| f(a, NextKey::At(at))),
            Self::Array(table) => {
                let index = table.next(key)?;
                Ok(f(access, NextKey::Index(index)))
            }
            Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Entries that exist.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        match self {
            Self::Hash(table) => table.entries(access),
            Self::Array(table) => Ok(table.max_entries()),
            Self::Ring(_) => Ok(0),
        }
    }
}
