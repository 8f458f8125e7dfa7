//! What the two in-process front ends share: the device behind a lock, and the
//! [`Function`] made of it.

use crate::config::DeviceMemory;
use crate::device::{Device, bar_info};
use crate::diagnostics::{Diagnostics, Held};
use crate::dma::IOVA_RANGES;
use crate::faults::{FaultPlan, FaultReport};
use crate::regs::Width;
use crate::state::StateError;
use offmap_abi::{MapHandle, Status};
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_firmware_model::Firmware;
use std::path::Path;

/// How a front end lends out its device and gets it to run.
pub trait FrontEnd: Send + Sync + 'static {
    /// The front end's name, for messages.
    const NAME: &'static str;
    /// Whether the device advances only in [`FrontEnd::progress`].
    const RUNS_ON_CALLER: bool;

    /// Runs `f` on the device, between two steps.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    fn with_device<R>(&self, f: impl FnOnce(&mut Device) -> R) -> Result<R, IoError>;

    /// Sees to it that the device looks for work soon.
    fn wake(&self);

    /// What the host does while it waits.
    fn progress(&self);
}

/// An emulated device with a front end: a [`Function`] for a driver in the same process.
pub struct Emulated<E> {
    pub(crate) front_end: E,
}

impl<E: FrontEnd> Emulated<E> {
    /// Runs `f` on the firmware, past the bus: the floor that benches compare with.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn with_firmware<R>(
        &self,
        f: impl FnOnce(&mut Firmware<DeviceMemory>) -> R,
    ) -> Result<R, IoError> {
        self.front_end.with_device(|d| f(d.firmware_mut()))
    }

    /// What a data-path engine does on its own, past the bus: a record that it writes to a
    /// RINGBUF map, as [`Device::engine_ringbuf_output`].
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn engine_ringbuf_output(
        &self,
        engine: u32,
        map: MapHandle,
        data: &[u8],
        flags: u64,
    ) -> Result<Status, IoError> {
        self.front_end
            .with_device(|d| d.engine_ringbuf_output(engine, map, data, flags))
    }

    /// Writes the device's maps to a file, as [`Device::save`], between two steps.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died; [`StateError`] inside.
    pub fn save(&self, path: &Path) -> Result<Result<(), StateError>, IoError> {
        self.front_end.with_device(|d| d.save(path))
    }

    /// What the device knows of its own past.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn diagnostics(&self) -> Result<Diagnostics, IoError> {
        self.front_end.with_device(|d| d.diagnostics())
    }

    /// Gives the device a plan of what to do wrong, as [`Device::set_faults`].
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn set_faults(&self, plan: &FaultPlan, seed: u64) -> Result<(), IoError> {
        self.poke(|d| {
            d.set_faults(plan, seed);
            Ok(())
        })
    }

    /// Commands that the device holds now ([`Device::held`]).
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device's thread has died.
    pub fn held(&self) -> Result<Held, IoError> {
        self.front_end.with_device(|d| d.held())
    }

    /// What the plan has done so far.
    ///
    /// # Errors
    ///
    /// As [`Emulated::set_faults`].
    pub fn fault_report(&self) -> Result<FaultReport, IoError> {
        self.front_end.with_device(|d| d.fault_report())
    }

    /// How many faults the plan has injected so far: what [`FaultReport::injected`] says.
    ///
    /// # Errors
    ///
    /// As [`Emulated::set_faults`].
    pub fn faults_injected(&self) -> Result<u64, IoError> {
        self.front_end.with_device(|d| d.faults_injected())
    }

    /// DMA mappings at the moment, and files that are mapped for them.
    ///
    /// # Errors
    ///
    /// As [`Emulated::set_faults`].
    pub fn dma_mapped(&self) -> Result<(usize, usize), IoError> {
        self.front_end.with_device(|d| d.dma_mapped())
    }

    /// The clock that the device goes by, as [`Device::set_clock`].
    ///
    /// # Errors
    ///
    /// As [`Emulated::set_faults`].
    pub fn set_clock(
        &self,
        clock: impl Fn() -> std::time::Duration + Send + Sync + 'static,
    ) -> Result<(), IoError> {
        self.front_end.with_device(|d| d.set_clock(clock))
    }

    /// An access that may bring work for the device.
    pub(crate) fn poke<R>(
        &self,
        f: impl FnOnce(&mut Device) -> Result<R, IoError>,
    ) -> Result<R, IoError> {
        let result = self.front_end.with_device(|device| {
            let result = f(device);
            if !E::RUNS_ON_CALLER {
                device.answer_kick();
            }
            result
        })?;
        self.front_end.wake();
        result
    }
}

impl<E: FrontEnd> Function for Emulated<E> {
    fn describe(&self) -> String {
        format!("emulated ({})", E::NAME)
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        self.front_end.with_device(|d| d.config_read(offset, buf))?
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.poke(|d| d.config_write(offset, data))
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        bar_info(bar)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        self.front_end
            .with_device(|d| d.bar_read(bar, offset, Width::Four))?
            .map(|v| v as u32)
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        self.front_end
            .with_device(|d| d.bar_read(bar, offset, Width::Eight))?
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.poke(|d| d.bar_write(bar, offset, Width::Four, value.into()))
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.poke(|d| d.bar_write(bar, offset, Width::Eight, value))
    }

    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        self.front_end
            .with_device(|d| d.map_bar(bar, offset, len))?
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        IOVA_RANGES.to_vec()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.front_end
            .with_device(|d| d.dma_map(buffer.fd(), buffer.fd_offset(), iova, buffer.len()))?
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.front_end.with_device(|d| d.dma_unmap(iova, len))?
    }

    fn vectors(&self) -> u32 {
        self.front_end.with_device(|d| d.vectors()).unwrap_or(0)
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        self.front_end.with_device(|d| d.enable_vector(vector))?
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.front_end.with_device(|d| d.disable_vector(vector))?
    }

    fn reset(&self) -> Result<(), IoError> {
        self.front_end.with_device(Device::reset)
    }

    #[inline]
    fn progress(&self) {
        self.front_end.progress();
    }

    fn runs_on_caller(&self) -> bool {
        E::RUNS_ON_CALLER
    }
}
