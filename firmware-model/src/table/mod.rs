//! Map tables laid out in device memory.
//!
//! No operation hands out an address that is read later. What is done with the entry that an
//! operation found is done in a call that the table makes, so that the table brackets it: a
//! policy under which engines run beside each other has one place for a lock, or for the check
//! of a sequence word.

pub(crate) mod array;
pub(crate) mod bloom;
pub mod bucket;
pub mod hash;
pub mod layout;
pub(crate) mod lpm;
pub(crate) mod occupancy;
pub(crate) mod queue;
pub(crate) mod ring;

use crate::access::Access;
use array::ArrayTable;
use bloom::BloomTable;
use core::ops::ControlFlow;
use hash::HashTable;
use layout::{Geometry, MapKind, MapSpec, ValueShape};
use lpm::LpmTable;
use offmap_abi::submission::UPDATE_NOEXIST;
use offmap_abi::{DevAddr, Status};
use queue::QueueTable;
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
#[inline(always)]
pub(crate) fn write_value(
    access: &mut impl Access,
    at: DevAddr,
    shape: &ValueShape,
    value: ValueWrite<'_>,
    fresh: bool,
) -> Result<(), Status> {
    if let ValueWrite::All(value) = value {
        access.with_bytes_mut(at, shape.stored as usize, |bytes| {
            // Without padding, as it mostly is.
            match bytes.len() == value.len() {
                true => copy_out(bytes, value),
                false => fill_padded(bytes, value),
            }
        })?;
        return Ok(());
    }
    write_slot(access, at, shape, value, fresh)
}

/// The rest of [`write_value`].
#[inline(never)]
fn write_slot(
    access: &mut impl Access,
    at: DevAddr,
    shape: &ValueShape,
    value: ValueWrite<'_>,
    fresh: bool,
) -> Result<(), Status> {
    let ValueWrite::Slot { slot, value } = value else {
        return Err(Status::Internal);
    };
    let slot_bytes = shape.slot_bytes as usize;
    let start = (slot % shape.slots.max(1)) as usize * slot_bytes;
    if fresh {
        access.with_bytes_mut(at, shape.stored as usize, |bytes| {
            bytes.fill(0);
            fill_padded(&mut bytes[start..start + slot_bytes], value);
        })?;
    } else {
        let at = at.offset(start as u64);
        access.with_bytes_mut(at, slot_bytes, |bytes| fill_padded(bytes, value))?;
    }
    Ok(())
}

/// Copies a value out of memory, or into it. The common lengths are moves instead of a call.
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
    // Out of the way of what is inlined.
    #[inline(never)]
    fn any(into: &mut [u8], from: &[u8]) {
        into.copy_from_slice(from);
    }
    if !(fixed::<64>(into, from) || fixed::<8>(into, from)) {
        any(into, from);
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
    /// HASH, LRU_HASH and their per-CPU forms.
    Hash(HashTable),
    /// ARRAY and PERCPU_ARRAY.
    Array(ArrayTable),
    /// LPM_TRIE.
    Lpm(LpmTable),
    /// BLOOM_FILTER.
    Bloom(BloomTable),
    /// QUEUE and STACK.
    Queue(QueueTable),
    /// ARRAY_OF_MAPS: an entry exists when its handle is not 0.
    ArrayOfMaps(ArrayTable),
    /// RINGBUF, which has no elements.
    Ring(RingTable),
}

impl Table {
    /// The table of a map at `base`, whose memory is zero.
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        match spec.kind {
            MapKind::Array | MapKind::PercpuArray => {
                Self::Array(ArrayTable::new(base, spec, geometry))
            }
            MapKind::ArrayOfMaps => Self::ArrayOfMaps(ArrayTable::new(base, spec, geometry)),
            MapKind::Hash
            | MapKind::PercpuHash
            | MapKind::LruHash
            | MapKind::LruPercpuHash
            | MapKind::HashOfMaps => Self::Hash(HashTable::new(base, spec, geometry)),
            MapKind::LpmTrie => Self::Lpm(LpmTable::new(base, spec, geometry)),
            MapKind::BloomFilter => Self::Bloom(BloomTable::new(base, spec, geometry)),
            MapKind::Queue | MapKind::Stack => Self::Queue(QueueTable::new(base, spec, geometry)),
            MapKind::Ringbuf => Self::Ring(RingTable::new(spec, geometry.value)),
        }
    }

    /// How values lie in memory.
    #[inline(always)]
    pub(crate) fn value(&self) -> &ValueShape {
        match self {
            Self::Hash(table) => &table.value,
            Self::Array(table) | Self::ArrayOfMaps(table) => &table.value,
            Self::Lpm(table) => &table.value,
            Self::Bloom(table) => &table.value,
            Self::Queue(table) => &table.value,
            Self::Ring(table) => &table.value,
        }
    }

    /// Calls `f` with the address of the key's value: of a trie, that of the longest prefix that
    /// covers it; of a queue, that of its next one.
    #[inline(always)]
    pub(crate) fn with_value<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.with_value(access, key, f),
            Self::Array(table) => table.with_value(access, key, false, f),
            Self::ArrayOfMaps(table) => table.with_value(access, key, true, f),
            Self::Ring(_) => Err(Status::Unsupported),
            Self::Lpm(table) => table.with_value(access, key, f),
            Self::Bloom(table) => {
                let at = table.find(access, key)?;
                Ok(f(access, at))
            }
            Self::Queue(table) => table.peek(access, f),
        }
    }

    /// As [`Self::with_value`] for a change of the value: no other engine changes it or the entry
    /// meanwhile, and the entry counts as used. `Unsupported` where values are not changed in place.
    pub(crate) fn modify<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.modify(access, key, f),
            Self::Array(table) => table.modify(access, key, f),
            Self::Lpm(table) => table.modify(access, key, f),
            Self::ArrayOfMaps(_) | Self::Bloom(_) | Self::Queue(_) | Self::Ring(_) => {
                Err(Status::Unsupported)
            }
        }
    }

    /// A data-path engine has used the value at `at`, which [`Self::with_value`] had found.
    #[inline(always)]
    pub(crate) fn mark(&self, access: &mut impl Access, at: DevAddr) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.mark(access, at),
            Self::Array(_)
            | Self::ArrayOfMaps(_)
            | Self::Queue(_)
            | Self::Lpm(_)
            | Self::Bloom(_)
            | Self::Ring(_) => Ok(()),
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
            Self::Array(table) if !A::SHARED => {
                for (lane, key) in keys.chunks_exact(key_size).enumerate() {
                    if visit(access, lane, table.find(key)).is_break() {
                        return;
                    }
                }
            }
            Self::Array(_) | Self::Lpm(_) | Self::Bloom(_) | Self::ArrayOfMaps(_) => {
                for (lane, key) in keys.chunks_exact(key_size).enumerate() {
                    if self.visit_one(access, key, lane, &mut visit).is_break() {
                        return;
                    }
                }
            }
            // Without keys there is no lane, and batches of rings are refused before.
            Self::Queue(_) | Self::Ring(_) => {}
        }
    }

    /// Looks up one key and visits the result.
    fn visit_one<A: Access>(
        &self,
        access: &mut A,
        key: &[u8],
        lane: usize,
        visit: &mut impl FnMut(&mut A, usize, Result<DevAddr, Status>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        // Called once, so that what it counts is counted once; hence with the lock.
        let visited = match self {
            Self::Array(table) | Self::ArrayOfMaps(table) => {
                let held = matches!(self, Self::ArrayOfMaps(_));
                table.visit(access, key, held, |access, found| {
                    visit(access, lane, found)
                })
            }
            Self::Lpm(table) => access.locked(table.part(), |access| {
                let found = table.longest(access, key);
                Ok(visit(access, lane, found))
            }),
            Self::Bloom(table) => {
                let found = table.find(access, key);
                Ok(visit(access, lane, found))
            }
            Self::Hash(_) | Self::Queue(_) | Self::Ring(_) => Err(Status::Internal),
        };
        visited.unwrap_or(ControlFlow::Break(()))
    }

    /// Stores a value; `flags` is one of the `UPDATE_*` of [`offmap_abi::submission`].
    #[inline]
    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.update(access, key, value, flags),
            _ => self.update_other(access, key, value, flags),
        }
    }

    #[inline(never)]
    fn update_other(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.update(access, key, value, flags),
            Self::Array(table) | Self::ArrayOfMaps(table) => {
                table.update(access, key, value, flags)
            }
            Self::Lpm(table) => table.update(access, key, value, flags),
            Self::Bloom(table) => table.update(access, key, flags),
            Self::Queue(table) => table.push(access, value, flags),
            Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Removes a key.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        match self {
            Self::Hash(table) => table.delete(access, key),
            Self::Lpm(table) => table.delete(access, key),
            Self::Array(_) | Self::Queue(_) | Self::Bloom(_) | Self::Ring(_) => {
                Err(Status::Unsupported)
            }
            Self::ArrayOfMaps(table) => table.clear(access, key),
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
            Self::Queue(table) => table.pop(access, f),
            Self::Array(_)
            | Self::ArrayOfMaps(_)
            | Self::Lpm(_)
            | Self::Bloom(_)
            | Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Calls `f` with the key after `key`; the first one when `key` is `None` or not there.
    pub(crate) fn with_next<A: Access, R>(
        &self,
        access: &mut A,
        key: Option<&[u8]>,
        mut f: impl FnMut(&mut A, NextKey) -> R,
    ) -> Result<R, Status> {
        match self {
            Self::Hash(table) => table.with_next(access, key, |a, at| f(a, NextKey::At(at))),
            Self::Array(table) | Self::ArrayOfMaps(table) => {
                let index = table.next(key)?;
                Ok(f(access, NextKey::Index(index)))
            }
            Self::Lpm(table) => table.with_next(access, key, |a, at| f(a, NextKey::At(at))),
            Self::Queue(_) | Self::Bloom(_) | Self::Ring(_) => Err(Status::Unsupported),
        }
    }

    /// Entries that exist; 0 for bloom filters, which do not count them.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        match self {
            Self::Hash(table) => table.entries(access),
            Self::Array(table) | Self::ArrayOfMaps(table) => Ok(table.max_entries()),
            Self::Lpm(table) => table.entries(access),
            Self::Bloom(_) | Self::Ring(_) => Ok(0),
            Self::Queue(table) => table.entries(access),
        }
    }
}
