//! The simulated function: what the driver gets for a device.

use crate::world::World;
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_emulator::bar_info;
use offmap_emulator::dma::IOVA_RANGES;
use offmap_emulator::regs::Width;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a call of [`Function::relax`] lets pass, in nanoseconds.
const RELAX_NS: u64 = 20_000;

/// A [`Function`] over the simulated world. It owns the clock.
pub(crate) struct SimFunction {
    world: Mutex<World>,
    /// Hosts do not sleep at interrupts.
    polled: bool,
}

impl SimFunction {
    pub(crate) fn new(world: World, polled: bool) -> Self {
        Self {
            world: Mutex::new(world),
            polled,
        }
    }

    /// The world. One thread runs it all, so nobody waits here.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for SimFunction {
    fn describe(&self) -> String {
        "simulated".into()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        let world = self.world();
        if world.removed {
            buf.fill(0xff);
            return Ok(());
        }
        world.device.config_read(offset, buf)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.world().config_write(offset, data)
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        bar_info(bar)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        self.world()
            .read(bar, offset, Width::Four)
            .map(|value| value as u32)
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        self.world().read(bar, offset, Width::Eight)
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.world().write(bar, offset, Width::Four, value.into());
        Ok(())
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.world().write(bar, offset, Width::Eight, value);
        Ok(())
    }

    fn map_bar(&self, _: u8, _: BarOffset, _: usize) -> Result<Option<BarMapping>, IoError> {
        // All is trapped, so that each write has its place in the order of stores.
        Ok(None)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        IOVA_RANGES.to_vec()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.world().map(buffer, iova)
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.world().unmap(iova, len)
    }

    fn vectors(&self) -> u32 {
        self.world().device.vectors()
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        self.world().device.enable_vector(vector)
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.world().device.disable_vector(vector)
    }

    fn reset(&self) -> Result<(), IoError> {
        let mut world = self.world();
        if world.removed {
            return Err(IoError::Gone("it was removed"));
        }
        world.reset();
        Ok(())
    }

    fn progress(&self) {
        self.world().tick();
    }

    fn runs_on_caller(&self) -> bool {
        self.polled
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.world().now_ns)
    }

    fn relax(&self) {
        self.world().pass(RELAX_NS);
    }

    fn sleep(&self, interrupt: &Interrupt, timeout: Duration) -> Result<bool, IoError> {
        self.world().sleep(interrupt, timeout)
    }
}
