//! Maps of maps: which entries hold which maps.
//!
//! An entry of an outer map is the handle of an inner one. What holds what is counted here, out
//! of the window's reach: handles in device memory are looked at, and believed only where the
//! outer map is known to hold that map. So whatever the host writes to device memory, no map
//! is freed while an entry that was stored through a command holds it, and no count is wrong.
//!
//! MAP_FREE of a map that is held takes its handle away from the host at once; its memory and its
//! slot of the map table go when the last entry does. Until then the data path reaches it.

use crate::access::{Access, Part};
use crate::maps::{Map, Maps};
use crate::table::ValueWrite;
use crate::table::layout::MapSpec;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use offmap_abi::submission::UPDATE_ANY;
use offmap_abi::{MapHandle, Status};

/// Bytes of an entry's value: a handle. No handle is 0, which stands for none.
pub(crate) const INNER_VALUE_BYTES: u32 = 4;

/// An outer map.
#[derive(Debug)]
struct Outer {
    template: MapSpec,
    /// Entries by the inner map that they hold.
    inner: BTreeMap<u32, u32>,
}

/// All that maps of maps hold. Its size is that of the outer maps' entries at most.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    outers: BTreeMap<u32, Outer>,
    /// Entries of all outer maps by the inner map that they hold.
    holders: BTreeMap<u32, u64>,
    /// Maps that were freed while they were held.
    freed: BTreeMap<u32, Map>,
    /// Those of them that nothing holds any more; their memory is to be given back.
    released: Vec<(MapHandle, Map)>,
    /// Template of the map that MAP_CREATE is making.
    pub(crate) creating: Option<MapSpec>,
}

impl Holdings {
    /// A new outer map.
    pub(crate) fn insert(&mut self, outer: MapHandle, template: MapSpec) {
        let inner = BTreeMap::new();
        self.outers.insert(outer.0, Outer { template, inner });
    }

    /// An outer map goes, and with it what its entries held. Does nothing for other maps.
    pub(crate) fn remove(&mut self, outer: MapHandle) {
        let Some(gone) = self.outers.remove(&outer.0) else {
            return;
        };
        for (inner, entries) in gone.inner {
            self.drop_holders(inner, entries);
        }
    }

    /// Whether the map is one that holds others.
    pub(crate) fn is_outer(&self, outer: MapHandle) -> bool {
        self.outers.contains_key(&outer.0)
    }

    /// Whether any entry holds the map.
    pub(crate) fn is_held(&self, inner: MapHandle) -> bool {
        self.holders.contains_key(&inner.0)
    }

    /// Keeps a map that was freed while it was held.
    pub(crate) fn keep(&mut self, handle: MapHandle, map: Map) {
        self.freed.insert(handle.0, map);
    }

    /// A map that was freed while it was held, and still is.
    pub(crate) fn freed(&self, handle: MapHandle) -> Option<&Map> {
        self.freed.get(&handle.0)
    }

    /// Whether `outer` has an entry that holds `inner`.
    pub(crate) fn holds(&self, outer: MapHandle, inner: MapHandle) -> bool {
        let outer = self.outers.get(&outer.0);
        outer.is_some_and(|outer| outer.inner.contains_key(&inner.0))
    }

    /// Entries of `outer` that hold a map.
    pub(crate) fn entries(&self, outer: MapHandle) -> u32 {
        let outer = self.outers.get(&outer.0);
        outer.map_or(0, |outer| outer.inner.values().sum())
    }

    /// Whether there are maps whose memory is to be given back.
    #[inline(always)]
    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// One of them.
    pub(crate) fn pop_released(&mut self) -> Option<(MapHandle, Map)> {
        self.released.pop()
    }

    /// Forgets everything; the slots of kept maps go back to the table.
    pub(crate) fn clear(&mut self, maps: &mut Maps) {
        let kept = core::mem::take(self).freed;
        for (handle, map) in kept {
            maps.reuse(MapHandle(handle), &map);
        }
    }

    /// The outer maps: their handles, templates, and how many entries hold which inner map.
    pub(crate) fn outers(
        &self,
    ) -> impl ExactSizeIterator<Item = (MapHandle, &MapSpec, &BTreeMap<u32, u32>)> {
        let outers = self.outers.iter();
        outers.map(|(handle, outer)| (MapHandle(*handle), &outer.template, &outer.inner))
    }

    /// The maps that were freed while they were held, and still are.
    pub(crate) fn all_freed(&self) -> impl ExactSizeIterator<Item = (MapHandle, &Map)> {
        self.freed
            .iter()
            .map(|(handle, map)| (MapHandle(*handle), map))
    }

    /// As [`Self::insert`], with what its entries hold. `false`: that cannot be.
    #[must_use]
    pub(crate) fn restore(
        &mut self,
        outer: MapHandle,
        template: MapSpec,
        inner: BTreeMap<u32, u32>,
    ) -> bool {
        for (map, entries) in &inner {
            *self.holders.entry(*map).or_insert(0) += u64::from(*entries);
        }
        self.outers
            .insert(outer.0, Outer { template, inner })
            .is_none()
    }

    fn hold(&mut self, outer: MapHandle, inner: MapHandle) {
        let Some(outer) = self.outers.get_mut(&outer.0) else {
            return;
        };
        *outer.inner.entry(inner.0).or_insert(0) += 1;
        *self.holders.entry(inner.0).or_insert(0) += 1;
    }

    fn release(&mut self, outer: MapHandle, inner: MapHandle) {
        let Some(outer) = self.outers.get_mut(&outer.0) else {
            return;
        };
        let Some(entries) = outer.inner.get_mut(&inner.0) else {
            return;
        };
        *entries -= 1;
        if *entries == 0 {
            outer.inner.remove(&inner.0);
        }
        self.drop_holders(inner.0, 1);
    }

    fn drop_holders(&mut self, inner: u32, entries: u32) {
        let Some(holders) = self.holders.get_mut(&inner) else {
            return;
        };
        *holders = holders.saturating_sub(entries.into());
        if *holders != 0 {
            return;
        }
        self.holders.remove(&inner);
        if let Some(map) = self.freed.remove(&inner) {
            self.released.push((MapHandle(inner), map));
        }
    }
}

/// Whether a map may be held by maps with this template: the fields of MAP_CREATE on which a
/// program that was written for the template relies. Entries may differ in number: each map
/// has its own bounds.
pub(crate) fn is_like(template: &MapSpec, spec: &MapSpec) -> bool {
    let fields = |spec: &MapSpec| {
        (
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.cpu_slots,
            spec.map_extra,
        )
    };
    fields(template) == fields(spec)
}

/// The map under `key`, which `outer` is known to hold; `None`: there is none. `Internal` when
/// device memory says something else.
pub(crate) fn find<A: Access>(
    holdings: &Holdings,
    access: &mut A,
    outer: MapHandle,
    map: &Map,
    key: &[u8],
) -> Result<Option<MapHandle>, Status> {
    let stored = map
        .table
        .with_value(access, key, |access, at| access.read::<4>(at));
    let inner = match stored {
        Ok(bytes) => MapHandle(u32::from_le_bytes(bytes?)),
        Err(Status::NotFound) => return Ok(None),
        Err(status) => return Err(status),
    };
    if holdings.holds(outer, inner) {
        Ok(Some(inner))
    } else {
        Err(Status::Internal)
    }
}

/// UPDATE of an outer map: `value` is the handle of a map like the template. Statuses:
/// `InvalidMap`, `InvalidField` for a map of another kind, and those of other maps.
pub(crate) fn update<A: Access>(
    maps: &Maps,
    holdings: &mut Holdings,
    access: &mut A,
    outer: MapHandle,
    key: &[u8],
    value: &[u8],
    flags: u32,
) -> Result<(), Status> {
    let map = maps.get(outer)?;
    if map.spec.kind.is_array() && flags != UPDATE_ANY {
        return Err(Status::InvalidField);
    }
    let handle = value.try_into().map_err(|_| Status::InvalidLength)?;
    let new = MapHandle(u32::from_le_bytes(handle));
    // What is counted here changes with what the entry holds: one change after the other.
    access.locked(Part::Table(map.base), |access| {
        let old = find(holdings, access, outer, map, key)?;
        let spec = &maps.get(new)?.spec;
        let template = holdings.outers.get(&outer.0).ok_or(Status::Internal)?;
        if !is_like(&template.template, spec) {
            return Err(Status::InvalidField);
        }
        map.table
            .update(access, key, ValueWrite::All(value), flags)?;
        // In this order, so that a map that replaces itself is held throughout.
        holdings.hold(outer, new);
        if let Some(old) = old {
            holdings.release(outer, old);
        }
        Ok(())
    })
}

/// DELETE of an outer map.
pub(crate) fn delete<A: Access>(
    holdings: &mut Holdings,
    access: &mut A,
    outer: MapHandle,
    map: &Map,
    key: &[u8],
) -> Result<(), Status> {
    access.locked(Part::Table(map.base), |access| {
        let old = find(holdings, access, outer, map, key)?;
        let old = old.ok_or(Status::NotFound)?;
        map.table.delete(access, key)?;
        holdings.release(outer, old);
        Ok(())
    })
}
