//! Device memory: its tiers, the maps in it, how a map lies there, and moving one (abi §6.6 to §6.9).
//!
//! What a device says here is for people and for placement; nothing else depends on it. It is checked as
//! far as it has to make sense.

use crate::admin::{self, AdminQueue};
use crate::{CompletionFault, DeviceMap, Driver, DriverError};
use offmap_abi::admin::{
    MapDescription, MapLayout, MapLayoutBody, MapListBody, MapListed, MapMigrateBody, MapMigrated,
    MemoryInfoBody, MemoryListed, TIERS_MAX, TierInfo,
};
use offmap_abi::regs::Features;
use offmap_abi::{AdminOpcode, Completion, MapHandle};
use offmap_device_io::{Function, PAGE_BYTES};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Maps that one list can have: as many as handles have slots.
const MAPS_MAX: usize = 1 << 16;

impl<F: Function> Driver<F> {
    /// The tiers of device memory, the fastest first.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoFeature`] where the device does not tell; otherwise as [`Driver::free_map`].
    pub fn memory_info(&self) -> Result<Vec<TierInfo>, DriverError> {
        self.need(Features::MEMORY_TIERS, "MEMORY_TIERS")?;
        let mut tiers: Vec<TierInfo> = Vec::new();
        loop {
            let first = tiers.len() as u32;
            let (done, more) = self.ask(AdminOpcode::MemoryInfo, None, |iova| MemoryInfoBody {
                iova: iova.into(),
                len: (PAGE_BYTES as u32).into(),
                first: first.into(),
                reserved: [0; 32],
            })?;
            let listed: MemoryListed = done.payload_as();
            let all = listed.tiers.get();
            if all == 0 || all > TIERS_MAX {
                return Err(admin::bad(&done, CompletionFault::List));
            }
            tiers.extend::<Vec<TierInfo>>(more);
            let len = tiers.len();
            if len == all as usize {
                return Ok(tiers);
            }
            if len > all as usize || len == first as usize {
                return Err(admin::bad(&done, CompletionFault::List));
            }
        }
    }

    /// The maps of the device, whoever made them.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoFeature`] where the device does not tell; otherwise as [`Driver::free_map`].
    pub fn list_maps(&self) -> Result<Vec<MapDescription>, DriverError> {
        self.need(Features::MAP_LIST, "MAP_LIST")?;
        let mut maps: Vec<MapDescription> = Vec::new();
        let mut cursor = 0;
        loop {
            let (done, more) = self.ask(AdminOpcode::MapList, None, |iova| MapListBody {
                iova: iova.into(),
                len: (PAGE_BYTES as u32).into(),
                cursor: cursor.into(),
                reserved: [0; 32],
            })?;
            maps.extend::<Vec<MapDescription>>(more);
            let next = done.payload_as::<MapListed>().cursor.get();
            if next == 0 {
                return Ok(maps);
            }
            // It goes up, so that the list ends.
            if next <= cursor || maps.len() > MAPS_MAX {
                return Err(admin::bad(&done, CompletionFault::List));
            }
            cursor = next;
        }
    }

    /// How a map lies in device memory. On a hash map the device visits every bucket.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoFeature`] where the device does not tell; otherwise as [`Driver::free_map`].
    pub fn map_layout(&self, map: MapHandle) -> Result<MapLayout, DriverError> {
        self.need(Features::MEMORY_TIERS, "MEMORY_TIERS")?;
        let (done, layouts) =
            self.ask(AdminOpcode::MapLayout, Some(map), |iova| MapLayoutBody {
                iova: iova.into(),
                len: (PAGE_BYTES as u32).into(),
                reserved: [0; 36],
            })?;
        match layouts[..] {
            [layout] => Ok(layout),
            _ => Err(admin::bad(&done, CompletionFault::List)),
        }
    }

    /// Moves a map to a tier, or, with `None`, to the one that the device thinks best. Commands on the map
    /// go on meanwhile. Where the map was in that tier, nothing moves.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] where the tier has no room; [`DriverError::NoFeature`] where the device has no
    /// tiers; [`DriverError::Command`] with `InvalidField` for one that there is not; otherwise as
    /// [`Driver::free_map`].
    pub fn migrate_map(
        &self,
        map: &DeviceMap,
        tier: Option<u32>,
    ) -> Result<MapMigrated, DriverError> {
        self.check_map(map)?;
        self.migrate(map.handle(), tier)
    }

    /// As [`Driver::migrate_map`], for a map that another host has left (abi §6.6).
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn migrate(&self, map: MapHandle, tier: Option<u32>) -> Result<MapMigrated, DriverError> {
        self.need(Features::MEMORY_TIERS, "MEMORY_TIERS")?;
        let body = MapMigrateBody {
            // The last number that there could be stands for no tier, and is refused.
            tier: tier.map_or(0, |tier| tier.saturating_add(1)).into(),
            reserved: [0; 44],
        };
        let done = self.admin_command(AdminOpcode::MapMigrate, Some(map), &body)?;
        let moved: MapMigrated = AdminQueue::<F>::result(&done)?;
        if moved.map.get() != map.0 && map.0 != 0 {
            return Err(admin::bad(&done, CompletionFault::Handle));
        }
        Ok(moved)
    }

    /// Has the device move one map, so that what is hot comes to lie in fast memory; `None`: all is well,
    /// and a new period of heat begins.
    ///
    /// # Errors
    ///
    /// As [`Driver::migrate_map`].
    pub fn balance(&self) -> Result<Option<MapMigrated>, DriverError> {
        let moved = self.migrate(MapHandle(0), None)?;
        Ok((moved.map.get() != 0).then_some(moved))
    }

    fn need(&self, feature: Features, name: &'static str) -> Result<(), DriverError> {
        match self.identity().features.contains(feature) {
            true => Ok(()),
            false => Err(DriverError::NoFeature { feature: name }),
        }
    }

    /// A command that writes structures to a page of the admin queue's.
    fn ask<B, T>(
        &self,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: impl FnOnce(u64) -> B,
    ) -> Result<(Completion, Vec<T>), DriverError>
    where
        B: zerocopy::IntoBytes + Immutable,
        T: FromBytes + KnownLayout + Immutable + Copy,
    {
        let mut page = [0; PAGE_BYTES];
        let done = self.admin_page(command, map, body, &mut page)?;
        let bytes = page.get(..done.count.get() as usize);
        let items = bytes.and_then(|bytes| {
            let whole = bytes.len().is_multiple_of(size_of::<T>());
            whole.then(|| {
                let items = bytes.chunks_exact(size_of::<T>());
                items.filter_map(|item| T::read_from_bytes(item).ok())
            })
        });
        match items {
            Some(items) => Ok((done, items.collect())),
            None => Err(admin::bad(&done, CompletionFault::List)),
        }
    }
}
