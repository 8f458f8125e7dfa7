//! A device under a fault plan, and a clock that a test owns: with the inline device everything
//! that happens, deadlines included, is then a function of the test alone, and no test waits.

pub mod campaign;

use crate::forward::forward;
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_driver::{DeviceMap, Driver, DriverConfig, DriverError, MapParams, QueuePair};
use offmap_emulator::faults::{FaultPlan, FaultReport};
use offmap_emulator::{DeviceConfig, Emulated, FrontEnd, Inline};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the clock goes on by each time that somebody looks at it.
const TICK_US: u64 = 1;
/// What it goes on by when a waiter gives its processor away: a device that is reset over and over
/// may take its second to become ready.
const RELAX_US: u64 = 10;

/// An emulated device with a clock of its own.
pub struct Clocked<E: FrontEnd> {
    /// The device.
    pub inner: Arc<Emulated<E>>,
    time_us: Arc<AtomicU64>,
}

impl<E: FrontEnd> Clocked<E> {
    /// Over `inner`, whose delays in time go by the same clock.
    ///
    /// # Panics
    ///
    /// When the device has died.
    pub fn new(inner: Arc<Emulated<E>>) -> Arc<Self> {
        let time_us = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&time_us);
        inner
            .set_clock(move || Duration::from_micros(shared.load(Ordering::Relaxed)))
            .expect("the device lives");
        Arc::new(Self { inner, time_us })
    }

    /// The time, which does not go on by this.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.time_us.load(Ordering::Relaxed))
    }
}

impl<E: FrontEnd> Function for Clocked<E> {
    forward!();

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.inner.dma_map(buffer, iova)
    }
    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.inner.dma_unmap(iova, len)
    }
    fn now(&self) -> Duration {
        Duration::from_micros(self.time_us.fetch_add(TICK_US, Ordering::Relaxed))
    }
    fn relax(&self) {
        self.time_us.fetch_add(RELAX_US, Ordering::Relaxed);
    }
}

/// Deadlines in the clock's time.
pub const OP_TIMEOUT: Duration = Duration::from_millis(2);
/// See [`OP_TIMEOUT`].
pub const ADMIN_TIMEOUT: Duration = Duration::from_millis(4);
/// What a call may take beyond its deadlines, of the clock's time: a few looks at it.
pub const SLACK: Duration = Duration::from_millis(1);

/// A small device.
pub fn device_config() -> DeviceConfig {
    let mut config = DeviceConfig {
        queue_pairs: 8,
        queue_depth_max: 64,
        vectors: 8,
        ..DeviceConfig::default()
    };
    config.firmware.memory_bytes = 4 << 20;
    config
}

/// A driver's settings with those deadlines.
pub fn driver_config() -> DriverConfig {
    DriverConfig {
        queue_depth: 8,
        op_timeout: OP_TIMEOUT,
        admin_timeout: ADMIN_TIMEOUT,
        ..DriverConfig::default()
    }
}

/// The inline device with a clock of its own.
pub type Sim = Clocked<offmap_emulator::InlineFrontEnd>;

/// A driver, a hash map of `value_size` bytes and a queue, on an inline device.
pub struct Rig {
    /// The device.
    pub device: Arc<Sim>,
    /// Its driver.
    pub driver: Arc<Driver<Sim>>,
    /// A map that holds keys 0 to 15.
    pub map: DeviceMap,
    /// A queue.
    pub queue: QueuePair<Sim>,
}

/// What the maps of [`Rig`] are made with.
pub fn hash(value_size: u32) -> MapParams {
    MapParams {
        map_type: 1,
        key_size: 8,
        value_size,
        max_entries: 64,
        ..MapParams::default()
    }
}

/// The value of a key: the key, over and over, so that another key's shows.
pub fn value_of(key: u64, len: usize) -> Vec<u8> {
    key.to_le_bytes().into_iter().cycle().take(len).collect()
}

impl Rig {
    /// A device without a plan.
    ///
    /// # Panics
    ///
    /// When an honest device does not come up.
    pub fn new(value_size: u32) -> Self {
        let device = Clocked::new(Inline::new(device_config()).expect("a device"));
        let driver = Driver::bring_up(Arc::clone(&device), driver_config()).expect("it comes up");
        let (map, queue) = furnish(&driver, value_size).expect("an honest device");
        Self {
            device,
            driver,
            map,
            queue,
        }
    }

    /// Gives the device a plan.
    ///
    /// # Panics
    ///
    /// When the device has died.
    pub fn faults(&self, plan: &FaultPlan, seed: u64) {
        self.device.inner.set_faults(plan, seed).expect("it lives");
    }

    /// What the plan did.
    ///
    /// # Panics
    ///
    /// When the device has died.
    pub fn report(&self) -> FaultReport {
        self.device.inner.fault_report().expect("it lives")
    }

    /// Runs `f` and checks that it ended within the deadlines.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[track_caller]
    pub fn bounded<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.device.time();
        let result = f(self);
        let took = self.device.time().saturating_sub(before);
        let bound = OP_TIMEOUT + ADMIN_TIMEOUT + SLACK;
        assert!(took <= bound, "a call took {took:?}, of at most {bound:?}");
        result
    }

    /// Without a plan, after a reset: everything works again.
    ///
    /// # Errors
    ///
    /// What does not.
    ///
    /// # Panics
    ///
    /// When a key has another one's value.
    pub fn works_after_reset(&mut self) -> Result<(), DriverError> {
        self.faults(&FaultPlan::new(), 0);
        let value_size = self.map.value_stride() as u32;
        self.driver.reset()?;
        (self.map, self.queue) = furnish(&self.driver, value_size)?;
        Ok(())
    }
}

/// A map with keys 0 to 15 in it, read back, and the queue that did it.
fn furnish(
    driver: &Arc<Driver<Sim>>,
    value_size: u32,
) -> Result<(DeviceMap, QueuePair<Sim>), DriverError> {
    let map = driver.create_map(&hash(value_size))?;
    let mut queue = driver.create_queue()?;
    let len = value_size as usize;
    let mut out = vec![0; len];
    for key in 0..16u64 {
        queue.update(&map, &key.to_le_bytes(), &value_of(key, len), 0)?;
    }
    for key in 0..16u64 {
        queue.lookup(&map, &key.to_le_bytes(), &mut out)?;
        assert_eq!(out, value_of(key, len), "key {key}");
    }
    Ok((map, queue))
}
