//! The map table: slots with generations.
//!
//! A handle is a slot and the slot's generation, which goes on with every map in the slot and
//! comes round after 65,535 of them. A handle that is kept for so long would name another map,
//! so slots are used in turn: there are [`SPARE_SLOTS`] more than maps may live at a time (as
//! far as 16 bits number them), and a new map gets the one that was freed longest ago. Between
//! two uses of a slot lies one of every other free slot, so that even while all other maps live
//! on, a handle comes round only after 65,535 * 4,096 creations (with more than 61,441 maps:
//! 65,535 times the number of free slots).

use crate::access::Access;
use crate::config::Config;
use crate::table::Table;
use crate::table::layout::{Geometry, MapSpec};
use crate::table::ring::RingTable;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offmap_abi::{DevAddr, MapHandle, Status};

/// A live map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) table: Table,
    pub(crate) spec: MapSpec,
    pub(crate) base: DevAddr,
    /// Bytes from `base`.
    pub(crate) bytes: u64,
    /// Its tier was asked for; otherwise the firmware may choose another one.
    pub(crate) fixed: bool,
}

impl Map {
    /// The same map with its memory at another place. `None`: there can be no such map, and is none.
    pub(crate) fn at(&self, base: DevAddr) -> Option<Self> {
        let table = match &self.table {
            // It has none of its own in device memory.
            Table::Ring(ring) => Table::Ring(*ring),
            _ => Table::new(base, &self.spec, &Geometry::new(&self.spec)?),
        };
        Some(Self {
            table,
            base,
            ..*self
        })
    }

    /// Key size in bytes.
    #[inline(always)]
    pub(crate) fn key_size(&self) -> usize {
        self.spec.key_size as usize
    }

    /// Bytes of a value as it travels.
    #[inline(always)]
    pub(crate) fn value_bytes(&self) -> usize {
        self.table.value().wire as usize
    }
}

/// Slots beyond the number of maps, as far as 16 bits number them.
const SPARE_SLOTS: u32 = 4095;

/// A slot. Its generation is that of the map in it, or of the next one; never 0.
#[derive(Debug)]
struct Slot {
    generation: u16,
    map: Option<Map>,
    /// Accesses to the map in this period, and half of what this was at the end of the one before. Plain
    /// loads and stores: it is a hint.
    heat: AtomicU64,
}

impl Slot {
    fn new(generation: u16, map: Option<Map>) -> Self {
        Self {
            generation,
            map,
            heat: AtomicU64::new(0),
        }
    }
}

/// All maps.
#[derive(Debug)]
pub(crate) struct Maps {
    slots: Vec<Slot>,
    /// Slots that were used before, the one freed longest ago first, so that a generation
    /// comes round as late as possible.
    free: VecDeque<u16>,
    live: u32,
    /// Entries that the live maps declare together.
    entries_total: u64,
    limit: u32,
    /// Number of slots, at least `limit`.
    slots_max: usize,
}

impl Maps {
    pub(crate) fn new(config: &Config) -> Self {
        Self::with_spare(config.maps, SPARE_SLOTS)
    }

    fn with_spare(limit: u32, spare: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: VecDeque::new(),
            live: 0,
            entries_total: 0,
            limit,
            slots_max: limit.saturating_add(spare).min(1 << 16) as usize,
        }
    }

    /// Live maps.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// Entries that the live maps declare together.
    pub(crate) fn entries_total(&self) -> u64 {
        self.entries_total
    }

    /// The map that a handle names.
    #[inline(always)]
    pub(crate) fn get(&self, handle: MapHandle) -> Result<&Map, Status> {
        match self.slots.get(usize::from(handle.slot())) {
            Some(Slot {
                generation,
                map: Some(map),
                ..
            }) if *generation == handle.generation() => Ok(map),
            _ => Err(Status::InvalidMap),
        }
    }

    /// As [`Self::get`], for an access to the map's elements, which counts. Where engines run beside each
    /// other it runs again and again, and is counted when it is done.
    #[inline(always)]
    pub(crate) fn used<A: Access>(&self, handle: MapHandle) -> Result<&Map, Status> {
        if A::SHARED {
            return self.get(handle);
        }
        match self.slots.get(usize::from(handle.slot())) {
            Some(Slot {
                generation,
                map: Some(map),
                heat,
            }) if *generation == handle.generation() => {
                heat.store(heat.load(Relaxed).wrapping_add(1), Relaxed);
                Ok(map)
            }
            _ => Err(Status::InvalidMap),
        }
    }

    /// Counts so many accesses more, of a live map.
    pub(crate) fn heat(&self, handle: MapHandle, accesses: u64) {
        if let Some(slot) = self.slots.get(usize::from(handle.slot()))
            && slot.generation == handle.generation()
        {
            let heat = slot.heat.load(Relaxed);
            slot.heat.store(heat.wrapping_add(accesses), Relaxed);
        }
    }

    /// The heat of a live map.
    pub(crate) fn heat_of(&self, handle: MapHandle) -> u64 {
        let slot = self.slots.get(usize::from(handle.slot()));
        slot.map_or(0, |slot| slot.heat.load(Relaxed))
    }

    /// Ends a period of heat.
    pub(crate) fn cool(&self) {
        for slot in &self.slots {
            slot.heat.store(slot.heat.load(Relaxed) / 2, Relaxed);
        }
    }

    /// A live map, to be changed.
    pub(crate) fn get_mut(&mut self, handle: MapHandle) -> Result<&mut Map, Status> {
        self.get(handle)?;
        let slot = self.slots.get_mut(usize::from(handle.slot()));
        let map = slot.and_then(|slot| slot.map.as_mut());
        map.ok_or(Status::InvalidMap)
    }

    /// The live maps from a slot on, in the order of their slots.
    pub(crate) fn live_from(&self, slot: u32) -> impl Iterator<Item = (MapHandle, &Map)> {
        let slots = self.slots.iter().enumerate().skip(slot as usize);
        slots.filter_map(|(index, slot)| {
            let handle = MapHandle::new(index as u16, slot.generation);
            slot.map.as_ref().map(|map| (handle, map))
        })
    }

    /// The ring of a RINGBUF map.
    pub(crate) fn ring_mut(&mut self, handle: MapHandle) -> Result<&mut RingTable, Status> {
        self.get(handle)?;
        let slot = self.slots.get_mut(usize::from(handle.slot()));
        match slot.and_then(|slot| slot.map.as_mut()) {
            Some(Map {
                table: Table::Ring(ring),
                ..
            }) => Ok(ring),
            _ => Err(Status::Unsupported),
        }
    }

    /// Puts a map into a free slot; `None` when there are as many maps as there may be.
    pub(crate) fn insert(&mut self, map: Map) -> Option<MapHandle> {
        if self.live >= self.limit {
            return None;
        }
        // Slots that were never used come first, for the same reason as the queue's order.
        let index = if self.slots.len() < self.slots_max {
            self.slots.push(Slot::new(1, None));
            (self.slots.len() - 1) as u16
        } else {
            self.free.pop_front()?
        };
        let slot = self.slots.get_mut(usize::from(index))?;
        self.entries_total += u64::from(map.spec.entries());
        self.live += 1;
        slot.map = Some(map);
        slot.heat = AtomicU64::new(0);
        Some(MapHandle::new(index, slot.generation))
    }

    /// Takes a map out; its handle is stale from then on.
    pub(crate) fn remove(&mut self, handle: MapHandle) -> Result<Map, Status> {
        let map = self.retire(handle)?;
        self.reuse(handle, &map);
        Ok(map)
    }

    /// As [`Self::remove`], and the map goes on counting, and its slot is not used again, until
    /// [`Self::reuse`].
    pub(crate) fn retire(&mut self, handle: MapHandle) -> Result<Map, Status> {
        self.get(handle)?;
        let slot = self
            .slots
            .get_mut(usize::from(handle.slot()))
            .ok_or(Status::InvalidMap)?;
        let map = slot.map.take().ok_or(Status::InvalidMap)?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        Ok(map)
    }

    /// The end of a map that was retired under `handle`.
    pub(crate) fn reuse(&mut self, handle: MapHandle, map: &Map) {
        self.free.push_back(handle.slot());
        self.live -= 1;
        self.entries_total -= u64::from(map.spec.entries());
    }

    /// Each slot that was ever used: its generation, and the map in it.
    pub(crate) fn slots(&self) -> impl ExactSizeIterator<Item = (u16, Option<&Map>)> {
        self.slots
            .iter()
            .map(|slot| (slot.generation, slot.map.as_ref()))
    }

    /// Slots that can be used again, the next one first.
    pub(crate) fn free_slots(&self) -> impl ExactSizeIterator<Item = u16> {
        self.free.iter().copied()
    }

    /// Puts a slot behind those that there are, as it was in a table that was saved. `false`:
    /// that cannot be.
    #[must_use]
    pub(crate) fn restore_slot(&mut self, generation: u16, map: Option<Map>) -> bool {
        if generation == 0 || self.slots.len() >= self.slots_max {
            return false;
        }
        if let Some(map) = &map {
            self.count(map);
        }
        self.slots.push(Slot::new(generation, map));
        self.live <= self.limit
    }

    /// Counts a map that lives, or that was retired and not yet reused.
    pub(crate) fn count(&mut self, map: &Map) {
        self.live += 1;
        self.entries_total += u64::from(map.spec.entries());
    }

    /// Whether that many maps may live.
    pub(crate) fn fits(&self) -> bool {
        self.live <= self.limit
    }

    /// The order in which free slots are used again. `false`: that cannot be, because each slot without
    /// a map, but for those `taken`, is in it once.
    #[must_use]
    pub(crate) fn restore_free(&mut self, free: VecDeque<u16>, taken: &[MapHandle]) -> bool {
        let mut seen: Vec<bool> = self.slots.iter().map(|slot| slot.map.is_some()).collect();
        let used = free
            .iter()
            .copied()
            .chain(taken.iter().map(|handle| handle.slot()));
        for slot in used {
            match seen.get_mut(usize::from(slot)) {
                Some(seen) if !*seen => *seen = true,
                _ => return false,
            }
        }
        self.free = free;
        seen.into_iter().all(|seen| seen)
    }

    /// Takes all maps out. Generations go on, so that no handle from before names a map.
    pub(crate) fn clear(&mut self) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.map.take().is_some() {
                slot.generation = slot.generation.checked_add(1).unwrap_or(1);
                self.free.push_back(index as u16);
            }
        }
        self.live = 0;
        self.entries_total = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::layout::MapKind;

    fn map() -> Map {
        let spec = MapSpec {
            kind: MapKind::Array,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            cpu_slots: 0,
            seed: 0,
            name: [0; 16],
            map_extra: 0,
            host_memory: 0,
            vector: 0,
        };
        let geometry = Geometry::new(&spec).unwrap();
        let base = DevAddr(0);
        Map {
            table: Table::new(base, &spec, &geometry),
            spec,
            base,
            bytes: geometry.total_bytes,
            fixed: false,
        }
    }

    #[test]
    fn a_retired_map_keeps_its_slot_and_its_place() {
        let mut maps = Maps::with_spare(1, 0);
        let handle = maps.insert(map()).unwrap();
        let retired = maps.retire(handle).unwrap();
        assert!(maps.get(handle).is_err() && maps.retire(handle).is_err());
        assert!(maps.insert(map()).is_none());
        assert_eq!((maps.live(), maps.entries_total()), (1, 1));
        maps.reuse(handle, &retired);
        assert_eq!((maps.live(), maps.entries_total()), (0, 0));
        let next = maps.insert(map()).unwrap();
        assert_eq!(next.slot(), handle.slot());
        assert_ne!(next, handle);
    }

    #[test]
    fn a_handle_comes_round_as_late_as_can_be() {
        const SPARE: u32 = 3;
        let mut maps = Maps::with_spare(2, SPARE);
        let stays = maps.insert(map()).unwrap();
        let first = maps.insert(map()).unwrap();
        maps.remove(first).unwrap();
        let mut creations = 0u32;
        loop {
            let handle = maps.insert(map()).unwrap();
            assert!(maps.insert(map()).is_none(), "more maps than may be");
            creations += 1;
            if handle == first {
                break;
            }
            assert!(maps.get(first).is_err());
            maps.remove(handle).unwrap();
        }
        // All slots but that of the map that stayed took part.
        assert_eq!(creations, 65_535 * (SPARE + 1));
        assert!(maps.get(stays).is_ok());
    }
}
