//! The whole stack, put together: a system's map side with a network device on a driver on an
//! emulated function.

use crate::kernel::possible_cpus;
use crate::model::Shape;
use crate::subject::{Answered, Subject, Walked};
use offmap_bpf::device::BatchOutcome;
use offmap_bpf::{Caller, Error, IfIndex, MapCreateAttr, MapFile, System, SystemConfig};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::{OffloadNic, Profile};
use std::sync::Arc;

/// A system with one offload device.
pub struct Stack<F: Function> {
    /// The map side of bpf(2).
    pub system: Arc<System>,
    /// The device's network device.
    pub ifindex: IfIndex,
    /// The function under the driver.
    pub function: Arc<F>,
    /// The driver.
    pub driver: Arc<Driver<F>>,
    /// The device as the system has it.
    pub nic: Arc<OffloadNic<F>>,
}

impl Stack<Inline> {
    /// With a device that runs on the caller's thread.
    pub fn inline(config: DeviceConfig) -> Self {
        Self::over(Inline::new(config).expect("an inline device"))
    }
}

impl Stack<Threaded> {
    /// With a device on a thread of its own.
    pub fn threaded(config: DeviceConfig) -> Self {
        Self::over(Threaded::spawn(config).expect("a threaded device"))
    }
}

impl<F: Function> Stack<F> {
    /// Over a function that is already there.
    pub fn over(function: Arc<F>) -> Self {
        Self::with_driver(function, DriverConfig::default())
    }

    /// Over a function, with other settings of the driver.
    pub fn with_driver(function: Arc<F>, config: DriverConfig) -> Self {
        let driver = Driver::bring_up(function, config).expect("bring-up");
        let nic = OffloadNic::new(driver, Profile::offmap()).expect("an offload NIC");
        Self::over_nic(nic)
    }

    /// Over a function, with a profile and its deadline.
    pub fn with_profile(function: Arc<F>, profile: Profile) -> Self {
        let config = profile.driver_config(DriverConfig::default());
        let driver = Driver::bring_up(function, config).expect("bring-up");
        let nic = OffloadNic::new(driver, profile).expect("an offload NIC");
        Self::over_nic(nic)
    }

    /// Over a NIC that is already there.
    pub fn over_nic(nic: Arc<OffloadNic<F>>) -> Self {
        let driver = Arc::clone(nic.driver());
        let function = Arc::clone(driver.function());
        let system = System::new(SystemConfig {
            possible_cpus: possible_cpus(),
            ..SystemConfig::default()
        });
        let ifindex = system
            .register_netdev("nic0", Arc::clone(&nic) as _)
            .expect("a network device");
        Self {
            system,
            ifindex,
            function,
            driver,
            nic,
        }
    }

    /// Creates a map on the device or on the host, and opens it.
    pub fn try_map(&self, attr: &MapCreateAttr, offloaded: bool) -> Result<MapFile, Error> {
        let attr = MapCreateAttr {
            map_ifindex: if offloaded { self.ifindex.0 } else { 0 },
            ..*attr
        };
        let fd = self.system.map_create(&Caller::root(), &attr)?;
        let file = self.system.map_file(fd)?;
        // The open file keeps the map; the descriptor would run into RLIMIT_NOFILE.
        self.system.close(fd)?;
        Ok(file)
    }

    /// Creates a map that must be accepted.
    #[track_caller]
    pub fn map(&self, attr: &MapCreateAttr, offloaded: bool) -> MapFile {
        self.try_map(attr, offloaded)
            .unwrap_or_else(|e| panic!("map_create {attr:?}, offloaded {offloaded}: {e}"))
    }
}

/// The attributes that create a map of a shape.
pub fn attr(shape: &Shape) -> MapCreateAttr {
    MapCreateAttr {
        map_type: shape.map_type.0,
        key_size: shape.key_size,
        value_size: shape.value_size,
        max_entries: shape.max_entries,
        map_flags: shape.map_flags,
        ..MapCreateAttr::default()
    }
}

/// One of our maps as a subject of comparison.
pub struct StackMap {
    /// Its name in messages.
    pub name: &'static str,
    /// The open map.
    pub file: MapFile,
}

fn answered(result: Result<(), Error>) -> Answered {
    result.map_err(|e| e.errno().0)
}

fn batch(outcome: BatchOutcome) -> (u32, Answered) {
    (outcome.count, answered(outcome.result))
}

impl Subject for StackMap {
    fn name(&self) -> &'static str {
        self.name
    }

    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        answered(self.file.lookup(key, value, flags))
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered {
        answered(self.file.update(key, value, flags))
    }

    fn delete(&mut self, key: &[u8]) -> Answered {
        answered(self.file.delete(key))
    }

    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered {
        answered(self.file.get_next_key(key, next))
    }

    fn lookup_and_delete(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        answered(self.file.lookup_and_delete(key, value, flags))
    }

    fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
    ) -> (u32, Answered) {
        batch(self.file.update_batch(keys, values, count, elem_flags, 0))
    }

    fn delete_batch(&mut self, keys: &[u8], count: u32, elem_flags: u64) -> (u32, Answered) {
        batch(self.file.delete_batch(keys, count, elem_flags, 0))
    }

    fn walk_batch(
        &mut self,
        cursor: Option<u32>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked {
        // Every type under test has tokens of 4 bytes; like the kernel's, one that the call does
        // not write stays as it was.
        let from = cursor.map(u32::to_ne_bytes);
        let from = from.as_ref().map(<[u8; 4]>::as_slice);
        let mut to = cursor.unwrap_or(0).to_ne_bytes();
        let outcome = if delete {
            self.file
                .lookup_and_delete_batch(from, &mut to, keys, values, count, elem_flags, 0)
        } else {
            self.file
                .lookup_batch(from, &mut to, keys, values, count, elem_flags, 0)
        };
        Walked {
            count: outcome.count,
            cursor: u32::from_ne_bytes(to),
            result: answered(outcome.result),
        }
    }

    fn freeze(&mut self) -> Answered {
        answered(self.file.freeze())
    }
}
