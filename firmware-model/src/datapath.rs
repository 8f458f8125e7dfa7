//! What a program on a data-path engine does with maps, over any access policy.
//!
//! An engine is a CPU of the per-CPU types: it sees and writes slot `engine % cpu_slots` of a value
//! and no other one.

use crate::access::{Access, Part};
use crate::direct::check_key;
use crate::inner::{self, Holdings};
use crate::maps::{Map, Maps};
use crate::table::ValueWrite;
use offmap_abi::submission::UPDATE_EXIST;
use offmap_abi::{MapHandle, Status};

/// Bytes of a counter.
const COUNTER_BYTES: u32 = 8;

/// An engine at the maps.
pub(crate) struct DataPath<'a, A> {
    pub(crate) engine: u32,
    /// How many engines there are.
    pub(crate) engines: u32,
    pub(crate) maps: &'a Maps,
    pub(crate) holdings: &'a Holdings,
    pub(crate) access: &'a mut A,
}

impl<'a, A: Access> DataPath<'a, A> {
    fn check_engine(&self) -> Result<(), Status> {
        match self.engine < self.engines {
            true => Ok(()),
            false => Err(Status::InvalidField),
        }
    }

    /// The map that a handle names for the data path: a live one, or one that was freed while a map
    /// of maps held it.
    #[inline(always)]
    fn reachable(&self, handle: MapHandle) -> Result<&'a Map, Status> {
        let holdings = self.holdings;
        self.maps
            .used::<A>(handle)
            .or_else(|status| holdings.freed(handle).ok_or(status))
    }

    /// Where this engine's part of a value starts.
    fn slot_offset(&self, map: &Map) -> u64 {
        let shape = map.table.value();
        let slot = u64::from(self.engine % shape.slots.max(1));
        slot * u64::from(shape.slot_bytes)
    }

    /// Copies the value of one CPU to the start of `value`.
    pub(crate) fn lookup(
        &mut self,
        map: MapHandle,
        key: &[u8],
        value: &mut [u8],
    ) -> Result<(), Status> {
        self.check_engine()?;
        let map = self.reachable(map)?;
        check_key(map, key)?;
        let size = map.table.value().size as usize;
        let value = value.get_mut(..size).ok_or(Status::InvalidLength)?;
        let offset = self.slot_offset(map);
        map.table.with_value(self.access, key, |access, at| {
            let part = at.offset(offset);
            access.with_bytes(part, value.len(), |bytes| value.copy_from_slice(bytes))?;
            map.table.mark(access, at)
        })?
    }

    /// Takes the next value of a queue or stack.
    pub(crate) fn pop(&mut self, map: MapHandle, value: &mut [u8]) -> Result<(), Status> {
        self.check_engine()?;
        let map = self.maps.used::<A>(map)?;
        if !map.spec.kind.is_queue() {
            return Err(Status::Unsupported);
        }
        let value = value
            .get_mut(..map.value_bytes())
            .ok_or(Status::InvalidLength)?;
        map.table.take(self.access, &[], |access, at| {
            Ok(access.with_bytes(at, value.len(), |bytes| value.copy_from_slice(bytes))?)
        })
    }

    /// The map that `outer_key` stands for in `outer`.
    pub(crate) fn inner(
        &mut self,
        outer: MapHandle,
        outer_key: &[u8],
    ) -> Result<MapHandle, Status> {
        self.check_engine()?;
        let map = self.maps.get(outer)?;
        check_key(map, outer_key)?;
        if !map.spec.kind.is_map_of_maps() {
            return Err(Status::Unsupported);
        }
        let holdings = self.holdings;
        let found = self.access.consistent(Part::Table(map.base), |access| {
            inner::find(holdings, access, outer, map, outer_key)
        })?;
        found.ok_or(Status::NotFound)
    }

    /// Looks `key` up in that map.
    pub(crate) fn lookup_inner(
        &mut self,
        outer: MapHandle,
        outer_key: &[u8],
        key: &[u8],
        value: &mut [u8],
    ) -> Result<(), Status> {
        let inner = self.inner(outer, outer_key)?;
        self.lookup(inner, key, value)
    }

    /// Stores the value of one CPU.
    pub(crate) fn update(
        &mut self,
        map: MapHandle,
        key: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Status> {
        self.check_engine()?;
        let map = self.maps.used::<A>(map)?;
        if map.spec.kind.is_map_of_maps() {
            return Err(Status::Unsupported);
        }
        if flags > UPDATE_EXIST {
            return Err(Status::InvalidField);
        }
        check_key(map, key)?;
        let shape = map.table.value();
        if value.len() != shape.size as usize {
            return Err(Status::InvalidLength);
        }
        let write = match shape.slots {
            0 => ValueWrite::All(value),
            slots => ValueWrite::Slot {
                slot: self.engine % slots,
                value,
            },
        };
        map.table.update(self.access, key, write, flags)
    }

    /// Removes a key; maps of maps are the host's to change.
    pub(crate) fn delete(&mut self, map: MapHandle, key: &[u8]) -> Result<(), Status> {
        self.check_engine()?;
        let map = self.maps.get(map)?;
        check_key(map, key)?;
        if map.spec.kind.is_map_of_maps() {
            return Err(Status::Unsupported);
        }
        map.table.delete(self.access, key)
    }

    /// Adds to a counter in the value of one CPU.
    pub(crate) fn add(
        &mut self,
        map: MapHandle,
        key: &[u8],
        offset: u32,
        delta: u64,
    ) -> Result<(), Status> {
        self.check_engine()?;
        let map = self.reachable(map)?;
        check_key(map, key)?;
        let end = offset.checked_add(COUNTER_BYTES);
        let fits = end.is_some_and(|end| end <= map.table.value().size);
        if !fits || !offset.is_multiple_of(COUNTER_BYTES) {
            return Err(Status::InvalidField);
        }
        let offset = self.slot_offset(map) + u64::from(offset);
        map.table.modify(self.access, key, |access, at| {
            let at = at.offset(offset);
            Ok(access.with_bytes_mut(at, COUNTER_BYTES as usize, |bytes| {
                if let Some(word) = bytes.first_chunk_mut() {
                    *word = u64::from_le_bytes(*word).wrapping_add(delta).to_le_bytes();
                }
            })?)
        })
    }
}
