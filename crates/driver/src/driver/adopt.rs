//! Maps that outlive their host (abi §6.6): finding those of before, and leaving one's own.

use super::Driver;
use crate::admin::bad;
use crate::{CompletionFault, DeviceMap, DriverError, MapHandle, MapParams};
use offmap_abi::admin::MapDescription;
use offmap_abi::regs::Features;
use offmap_device_io::Function;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// A map that the device has, whoever created it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdoptedMap {
    /// The map, for commands of this driver: until it is freed, or the device is reset.
    pub map: DeviceMap,
    /// What it was created with, as far as the device tells: its seed, host memory, template and vector
    /// are zero.
    pub params: MapParams,
}

impl AdoptedMap {
    /// What the device described; `None`: no map can be so.
    fn new(told: &MapDescription, epoch: u64) -> Option<Self> {
        let params = MapParams {
            map_type: told.map_type.get(),
            key_size: told.key_size.get(),
            value_size: told.value_size.get(),
            max_entries: told.max_entries.get(),
            cpu_slots: told.cpu_slots.get(),
            name: told.name,
            map_extra: told.map_extra.get(),
            ..MapParams::default()
        };
        let handle = MapHandle(told.map.get());
        if handle.0 == 0 {
            return None;
        }
        let map = DeviceMap {
            handle,
            key_size: params.key_size,
            value_stride: u32::try_from(params.value_stride()).ok()?,
            bytes: told.bytes.get(),
            epoch,
        };
        Some(Self { map, params })
    }
}

impl<F: Function> Driver<F> {
    /// All maps that the device has, ready for commands: those that a host before this one left on a device
    /// with `KEEPS_MAPS`, and this driver's own. A host that wants the former only asks right after
    /// [`Driver::bring_up`], which leaves them alone. To which host or program a map belonged the device does
    /// not know; names and sizes are all there is to tell by.
    ///
    /// A device without `MAP_LIST` can tell of none, and an empty list is returned.
    ///
    /// # Errors
    ///
    /// [`DriverError::BadCompletion`] for a list that cannot be: a map twice, more maps than there may be, a
    /// cursor that does not grow. Otherwise those of any admin command.
    pub fn adopt_maps(&self) -> Result<Vec<AdoptedMap>, DriverError> {
        if !self.identity.features.contains(Features::MAP_LIST) {
            return Ok(Vec::new());
        }
        let mut admin = self.turn()?;
        let epoch = self.epoch();
        let (mut maps, mut seen, mut cursor) = (Vec::new(), BTreeSet::new(), 0);
        loop {
            let queue = admin.queue.as_mut().ok_or(DriverError::Down)?;
            let timeout = self.config.admin_timeout;
            let (done, told, next) = queue.list(&*self.function, cursor, timeout)?;
            for map in &told {
                let adopted = AdoptedMap::new(map, epoch);
                let adopted = adopted.filter(|adopted| seen.insert(adopted.map.handle.0));
                match adopted {
                    Some(adopted) if maps.len() < self.identity.maps as usize => maps.push(adopted),
                    _ => return Err(bad(&done, CompletionFault::Listed)),
                }
            }
            match next {
                0 => return Ok(maps),
                next if next > cursor => cursor = next,
                _ => return Err(bad(&done, CompletionFault::Cursor)),
            }
        }
    }

    /// Has the maps stay when this driver is dropped, for a host that comes after it: the device is not
    /// disabled then, which would free them, and is left to its transport. That is for transports that notice a
    /// client's end and devices that keep maps over it: `offmap nic --state` behind vfio-user. Returns whether
    /// the device does; where it does not, nothing changes. Kernel VFIO resets a device that is closed, and with
    /// it go the maps.
    pub fn leave_maps(&self) -> bool {
        let keeps = self.identity.features.contains(Features::KEEPS_MAPS);
        self.leaves_maps.fetch_or(keeps, Ordering::Relaxed);
        keeps
    }
}
