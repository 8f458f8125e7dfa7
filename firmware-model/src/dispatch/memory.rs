//! Admin commands about memory: MEMORY_INFO, MAP_LAYOUT, MAP_MIGRATE (abi §6.7 to §6.9).

use super::admin::{Pending, Refusal, check_reserved};
use crate::ecc::Ecc;
use crate::maps::Map;
use crate::memory::LINE_BYTES;
use crate::table::Table;
use crate::table::hash::ChainScan;
use crate::table::layout::Geometry;
use crate::tier::{NoRoom, Place, TIER_NAME_BYTES};
use crate::{Firmware, HostMemory, Progress, Storage};
use alloc::vec::Vec;
use offmap_abi::admin::{
    CheckCode, Limit, MAP_TIER_FIXED, MapLayout, MapLayoutBody, MapMigrateBody, MapMigrated,
    MemoryDetail, MemoryInfoBody, MemoryListed, TIER_PLACEABLE, TierInfo,
};
use offmap_abi::{Completion, MapHandle, RequestId, Status, Submission};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// The hottest maps of slow tiers that are looked at for a better place, at most.
const CANDIDATES: usize = 16;

/// How far a migration got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moving {
    /// The new place is zero up to that address.
    Zeroed(u64),
    /// What is there is copied.
    Copying,
}

impl Refusal {
    /// There is no memory for what was asked for.
    pub(super) fn no_room(place: Place, asked: u64, room: NoRoom) -> Self {
        Self::memory(MemoryDetail {
            limit: U32::new(Limit::Memory.0),
            tier: U32::new(place.field()),
            asked: U64::new(asked),
            allowed: U64::new(room.largest),
            used: U64::new(room.used),
            free: U64::new(room.free),
        })
    }
}

impl<S: Storage> Firmware<S> {
    /// The tiers of device memory, as MEMORY_INFO reports them.
    pub fn tier_info(&self) -> Vec<TierInfo> {
        let tiers = self.tiers.iter().enumerate();
        tiers
            .map(|(number, tier)| {
                let mut name = [0; TIER_NAME_BYTES];
                // The configuration was checked: it is no longer.
                for (to, from) in name.iter_mut().zip(tier.config.name.bytes()) {
                    *to = from;
                }
                let free = tier.allocator.free_bytes();
                let (corrected, detected) = self.memory.found(number);
                let flags = if tier.config.placeable {
                    TIER_PLACEABLE
                } else {
                    0
                };
                let check = match tier.config.ecc {
                    Ecc::None => CheckCode::None,
                    Ecc::Parity => CheckCode::Parity,
                    Ecc::Secded => CheckCode::Secded,
                };
                TierInfo {
                    name,
                    base: U64::new(tier.base),
                    bytes: U64::new(tier.allocator.size_bytes()),
                    used: U64::new(tier.allocator.size_bytes() - free),
                    free_largest: U64::new(tier.allocator.largest_free()),
                    free_pieces: U32::new(tier.allocator.pieces() as u32),
                    check: U32::new(check.0),
                    flags: U32::new(flags),
                    reserved: U32::ZERO,
                    corrected: U64::new(corrected),
                    detected: U64::new(detected),
                    bad_lines: U64::new(self.memory.bad_lines(number)),
                    reserved2: U64::ZERO,
                }
            })
            .collect()
    }

    pub(super) fn memory_info(
        &mut self,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Result<Completion, Status> {
        let body: MemoryInfoBody = command.body();
        check_reserved(command, &body.reserved, false)?;
        let tiers = self.tier_info();
        let first = (body.first.get() as usize).min(tiers.len());
        let room = body.len.get() as usize / size_of::<TierInfo>();
        let shown = &tiers[first..][..room.min(tiers.len() - first)];
        let bytes = shown.as_bytes();
        if !bytes.is_empty() {
            host.write(body.iova.get(), bytes)?;
        }
        let listed = MemoryListed {
            tiers: U32::new(tiers.len() as u32),
            line_bytes: U32::new(LINE_BYTES as u32),
        };
        let mut done = Completion::new(command.request(), Status::Success);
        done = done.with_payload(listed.as_bytes());
        done.count = U32::new(bytes.len() as u32);
        Ok(done)
    }

    pub(super) fn map_layout(&mut self, command: &Submission) -> Result<(), Status> {
        let body: MapLayoutBody = command.body();
        check_reserved(command, &body.reserved, true)?;
        self.maps.get(command.map())?;
        self.pending = Some(Pending::Layout {
            command: *command,
            scan: ChainScan::default(),
        });
        Ok(())
    }

    pub(super) fn resume_layout(
        &mut self,
        command: Submission,
        mut scan: ChainScan,
        host: &mut impl HostMemory,
    ) -> Progress {
        let request = command.request();
        let written = match self.layout_step(command.map(), &mut scan) {
            Ok(None) => {
                self.pending = Some(Pending::Layout { command, scan });
                return Progress::More;
            }
            Ok(Some(layout)) => {
                let body: MapLayoutBody = command.body();
                let bytes = layout.as_bytes();
                let bytes = &bytes[..bytes.len().min(body.len.get() as usize)];
                match bytes.is_empty() {
                    true => Ok(0),
                    false => host
                        .write(body.iova.get(), bytes)
                        .map(|()| bytes.len() as u32)
                        .map_err(Status::from),
                }
            }
            Err(status) => Err(status),
        };
        Progress::Done(match written {
            Ok(count) => {
                let mut done = Completion::new(request, Status::Success);
                done.count = U32::new(count);
                done
            }
            Err(status) => Completion::new(request, status),
        })
    }

    /// What MAP_LAYOUT reports, in one go: it visits every bucket of a hash map.
    ///
    /// # Errors
    ///
    /// `InvalidMap`; `Internal` when the table in memory contradicts itself; `MediaError`.
    pub fn layout(&mut self, map: MapHandle) -> Result<MapLayout, Status> {
        let mut scan = ChainScan::default();
        loop {
            if let Some(layout) = self.layout_step(map, &mut scan)? {
                return Ok(layout);
            }
        }
    }

    fn layout_step(
        &mut self,
        handle: MapHandle,
        scan: &mut ChainScan,
    ) -> Result<Option<MapLayout>, Status> {
        let map = self.maps.get(handle)?;
        let mut buckets = (0, 0);
        if let Table::Hash(table) = &map.table {
            let most = self.config.step.buckets;
            if table.scan_step(&mut self.memory, scan, most)?.is_none() {
                return Ok(None);
            }
            buckets = (table.home_count() as u32, table.overflow_count());
        }
        let geometry = Geometry::new(&map.spec).ok_or(Status::Internal)?;
        let entries = match &map.table {
            Table::ArrayOfMaps(_) => self.holdings.entries(handle),
            table => table.entries(&mut self.memory)?,
        };
        let probes = scan.probes();
        let map = self.maps.get(handle)?;
        Ok(Some(MapLayout {
            base: U64::new(map.base.0),
            bytes: U64::new(map.bytes),
            tier: U32::new(self.tiers.of(map.base) as u32),
            flags: U32::new(if map.fixed { MAP_TIER_FIXED } else { 0 }),
            heat: U64::new(self.maps.heat_of(handle)),
            entries: U32::new(entries),
            max_entries: U32::new(map.spec.entries()),
            entry_bytes: U64::new(geometry.entry_bytes),
            homes: U32::new(buckets.0),
            homes_used: U32::new(scan.homes_used()),
            overflow: U32::new(buckets.1),
            overflow_used: U32::new(scan.overflow_used()),
            longest_chain: U32::new(scan.longest()),
            probes_1: U32::new(probes[0]),
            probes_2: U32::new(probes[1]),
            probes_3: U32::new(probes[2]),
            probes_4: U32::new(probes[3]),
            probes_8: U32::new(probes[4]),
            probes_16: U32::new(probes[5]),
            probes_more: U32::new(probes[6]),
            reserved: [0; 32],
        }))
    }

    /// MAP_MIGRATE: begins to move a map, if there is one to move. `Ok(Some(_))`: it is done.
    pub(super) fn map_migrate(
        &mut self,
        command: &Submission,
    ) -> Result<Option<Completion>, Refusal> {
        let body: MapMigrateBody = command.body();
        check_reserved(command, &body.reserved, true)?;
        let place = Place::of_field(body.tier.get(), &self.tiers).ok_or(Status::InvalidField)?;
        let request = command.request();
        if command.map().0 == 0 {
            if place != Place::Auto {
                return Err(Status::InvalidField.into());
            }
            return match self.next_move() {
                Some((handle, to)) => self.begin_move(request, handle, to, false),
                None => {
                    self.maps.cool();
                    Ok(Some(moved(request, MapHandle(0), 0, 0, 0)))
                }
            };
        }
        let handle = command.map();
        let (base, bytes) = self.maps.get(handle).map(|map| (map.base, map.bytes))?;
        let here = self.tiers.of(base);
        let to = match place {
            Place::Tier(tier) => tier,
            Place::Auto => self.best_tier(here, bytes),
        };
        if to != here {
            return self.begin_move(request, handle, to, place != Place::Auto);
        }
        self.maps.get_mut(handle)?.fixed = place != Place::Auto;
        let tier = here as u32;
        Ok(Some(moved(request, handle, tier, base.0, tier)))
    }

    /// The map that moves.
    pub(crate) fn moving(&self) -> Option<MapHandle> {
        match &self.pending {
            Some(Pending::Migrate { handle, .. }) => Some(*handle),
            _ => None,
        }
    }

    /// The fastest tier that takes a map of that size without more than its share, or the one where it
    /// is.
    fn best_tier(&self, here: usize, bytes: u64) -> usize {
        let mut tiers = self.tiers.placeable();
        let best = tiers.find(|(number, tier)| {
            let fits = tier.allocator.largest_free() >= bytes || *number == here;
            fits && self.tiers.has_share(*number, bytes)
        });
        best.map_or(here, |(number, _)| number)
    }

    /// The next move by which the hottest bytes come to lie in the fastest tiers: of a map and to a tier.
    /// A hot map moves up where it fits; where it does not, a map that is at most half as hot makes room
    /// for it, if that is enough. Maps whose tier was asked for stay. `None`: all is well.
    fn next_move(&self) -> Option<(MapHandle, usize)> {
        let heat = |handle, map: &Map| {
            let bytes = u128::from(map.bytes.max(1));
            (u128::from(self.maps.heat_of(handle)) << 64) / bytes
        };
        let movable = || {
            let maps = self.maps.live_from(0);
            maps.filter(|(_, map)| !map.fixed)
                .map(|(handle, map)| (heat(handle, map), handle, *map))
        };
        let mut hot: Vec<(u128, MapHandle, Map)> = Vec::with_capacity(CANDIDATES + 1);
        for candidate in movable().filter(|(heat, ..)| *heat != 0) {
            let at = hot.partition_point(|other| other.0 >= candidate.0);
            if at < CANDIDATES {
                hot.insert(at, candidate);
                hot.truncate(CANDIDATES);
            }
        }
        for (heat, handle, map) in &hot {
            let here = self.tiers.of(map.base);
            for (to, tier) in self.tiers.placeable().take_while(|(to, _)| *to < here) {
                if tier.allocator.largest_free() >= map.bytes {
                    return Some((*handle, to));
                }
                let colder = movable().filter(|(other, _, cold)| {
                    self.tiers.of(cold.base) == to
                        && other.saturating_mul(2) <= *heat
                        && tier.allocator.largest_with(cold.base, cold.bytes) >= map.bytes
                });
                let Some((_, cold, gone)) = colder.min_by_key(|(other, ..)| *other) else {
                    continue;
                };
                let mut down = self.tiers.placeable().filter(|(down, _)| *down > to);
                let room = down.find(|(_, tier)| tier.allocator.largest_free() >= gone.bytes);
                if let Some((down, _)) = room {
                    return Some((cold, down));
                }
            }
        }
        None
    }

    fn begin_move(
        &mut self,
        request: RequestId,
        handle: MapHandle,
        to: usize,
        fixed: bool,
    ) -> Result<Option<Completion>, Refusal> {
        let map = *self.maps.get(handle)?;
        let to = Place::Tier(to);
        let base = self
            .tiers
            .allocate(to, map.bytes)
            .map_err(|room| Refusal::no_room(to, map.bytes, room))?;
        let Some(new) = map.at(base) else {
            self.tiers.release(base, map.bytes);
            return Err(Status::Internal.into());
        };
        self.pending = Some(Pending::Migrate {
            request,
            handle,
            map: Map { fixed, ..new },
            moving: Moving::Zeroed(base.0),
        });
        Ok(None)
    }

    pub(super) fn resume_migrate(
        &mut self,
        request: RequestId,
        handle: MapHandle,
        map: Map,
        moving: Moving,
    ) -> Progress {
        match self.migrate_step(handle, map, moving) {
            Ok(Some(moving)) => {
                self.pending = Some(Pending::Migrate {
                    request,
                    handle,
                    map,
                    moving,
                });
                Progress::More
            }
            Ok(None) => match self.finish_move(handle, map) {
                Ok(from) => {
                    let tier = self.tiers.of(map.base) as u32;
                    Progress::Done(moved(request, handle, tier, map.base.0, from as u32))
                }
                Err(status) => self.fail_move(request, map, status),
            },
            Err(status) => self.fail_move(request, map, status),
        }
    }

    fn migrate_step(
        &mut self,
        handle: MapHandle,
        map: Map,
        moving: Moving,
    ) -> Result<Option<Moving>, Status> {
        let most = self.config.step.bytes;
        let end = map.base.0 + map.bytes;
        match moving {
            Moving::Zeroed(at) if at < end => {
                let at = self.memory.zero_step(at, end, most)?;
                Ok(Some(Moving::Zeroed(at)))
            }
            Moving::Zeroed(_) => {
                let from = self.maps.get(handle)?.base;
                self.memory.copy_begin(from, map.base, map.bytes);
                Ok(Some(Moving::Copying))
            }
            Moving::Copying => {
                let copied = self.memory.copy_step(most)?;
                // An operation that an engine is in the midst of has addresses of the old place.
                self.closed = (copied && self.engaged).then_some(handle);
                let moves = copied && !self.engaged;
                Ok((!moves).then_some(Moving::Copying))
            }
        }
    }

    /// From here on the map is at its new place; the tier that it was in.
    fn finish_move(&mut self, handle: MapHandle, map: Map) -> Result<usize, Status> {
        let place = self.maps.get_mut(handle)?;
        let old = *place;
        // What a table keeps with the firmware may have changed meanwhile.
        *place = Map {
            fixed: map.fixed,
            ..old.at(map.base).ok_or(Status::Internal)?
        };
        self.memory.copy_end();
        self.closed = None;
        let from = self.tiers.of(old.base);
        self.tiers.release(old.base, old.bytes);
        Ok(from)
    }

    fn fail_move(&mut self, request: RequestId, map: Map, status: Status) -> Progress {
        self.memory.copy_end();
        self.closed = None;
        self.tiers.release(map.base, map.bytes);
        Progress::Done(Completion::new(request, status))
    }
}

fn moved(request: RequestId, map: MapHandle, tier: u32, base: u64, from: u32) -> Completion {
    let moved = MapMigrated {
        map: U32::new(map.0),
        tier: U32::new(tier),
        base: U64::new(base),
        from: U32::new(from),
        reserved: U32::ZERO,
    };
    Completion::new(request, Status::Success).with_payload(moved.as_bytes())
}
