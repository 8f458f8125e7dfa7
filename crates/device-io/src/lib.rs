//! How a driver reaches a PCI function, whatever carries it.
//!
//! [`Function`] is the whole of what a driver may ask of a device: config space, BARs, DMA,
//! interrupts, reset. The in-process emulator, a vfio-user client and kernel VFIO implement
//! it; the driver is generic over it and knows none of them. Every access can fail, with an
//! [`IoError`] that says what was tried.
//!
//! Memory shared with the device is a [`DmaBuffer`]: never a slice or a reference, only
//! offset-checked copies and atomics (`docs/abi.md` §10 builds on them).

mod bar;
mod dma;
mod error;
mod interrupt;
mod iova;
mod numa;
mod prefetch;
mod shared;
mod word;

pub use bar::{BarInfo, BarMapping, BarOffset, lies_in};
pub use dma::{DmaBuffer, DmaPlacement, DmaRegion, PAGE_BYTES};
pub use error::IoError;
pub use interrupt::Interrupt;
pub use iova::{Iova, IovaAllocator, IovaRange};
pub use prefetch::prefetch;
pub use shared::{BufferLine, SharedLines, SharedWords};

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A PCI function as its driver sees it.
///
/// Methods take `&self`: one function serves the admin path and every queue's thread. An
/// implementation orders its own accesses; it promises no order between them and DMA memory
/// other than what `docs/abi.md` §10 asks of a transport.
pub trait Function: Send + Sync + 'static {
    /// What and where the function is, for messages: `emulated (inline)`, `0000:01:00.0`.
    fn describe(&self) -> String;

    /// Reads `buf.len()` bytes of config space (0–4,095).
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError>;

    /// Writes config space.
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError>;

    /// Size and kind of a BAR (0–5).
    fn bar(&self, bar: u8) -> Result<BarInfo, IoError>;

    /// Reads 4 bytes of a BAR.
    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError>;

    /// Reads 8 bytes of a BAR.
    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError>;

    /// Writes 4 bytes of a BAR.
    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError>;

    /// Writes 8 bytes of a BAR.
    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError>;

    /// Maps part of a BAR into this process, so that accesses cost no call. `Ok(None)`: this
    /// part is trapped; use the read and write methods.
    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError>;

    /// The IOVAs that the function can reach, in ascending order and disjoint; page-aligned.
    fn iova_ranges(&self) -> Vec<IovaRange>;

    /// Lets the device reach the whole of `buffer` at `iova`, which must be page-aligned and
    /// free.
    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError>;

    /// Takes that away again. When it returns, no access is in flight and none will follow.
    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError>;

    /// Number of MSI-X vectors.
    fn vectors(&self) -> u32;

    /// Routes an MSI-X vector to a new [`Interrupt`]; an earlier one for it goes silent.
    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError>;

    /// Silences a vector.
    fn disable_vector(&self, vector: u32) -> Result<(), IoError>;

    /// Function-level reset. Queues, maps and register contents are gone afterwards, interrupts
    /// are silent and DMA mappings stay. Returns when the device can be brought up again.
    fn reset(&self) -> Result<(), IoError>;

    /// Called by a driver over and over while it waits for the device. An inline device does
    /// a bounded piece of its work here, on the caller's thread; every other transport gives
    /// the processor a spin-loop hint. Never blocks.
    fn progress(&self);

    /// The NUMA node that the device is at, if that is known: where its DMA memory is taken from
    /// unless another node is asked for.
    fn numa_node(&self) -> Option<u32> {
        None
    }

    /// Whether the device only advances inside [`Function::progress`], so that a waiter must
    /// not sleep.
    fn runs_on_caller(&self) -> bool {
        false
    }

    /// Time since a fixed moment, for deadlines. A simulated function has a clock of its own.
    fn now(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    /// Called between two looks of a long wait instead of giving the processor away directly,
    /// so that a simulated function can let its time pass.
    fn relax(&self) {
        std::thread::yield_now();
    }

    /// Waits for an interrupt of this function, at most for `timeout`, and takes it; `false`: the
    /// time was over. A simulated function lets its own time pass instead.
    fn sleep(&self, interrupt: &Interrupt, timeout: Duration) -> Result<bool, IoError> {
        interrupt.wait(timeout)
    }
}

impl<F: Function + ?Sized> Function for Arc<F> {
    fn describe(&self) -> String {
        (**self).describe()
    }
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        (**self).config_read(offset, buf)
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        (**self).config_write(offset, data)
    }
    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        (**self).bar(bar)
    }
    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        (**self).read32(bar, offset)
    }
    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        (**self).read64(bar, offset)
    }
    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        (**self).write32(bar, offset, value)
    }
    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        (**self).write64(bar, offset, value)
    }
    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        (**self).map_bar(bar, offset, len)
    }
    fn iova_ranges(&self) -> Vec<IovaRange> {
        (**self).iova_ranges()
    }
    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        (**self).dma_map(buffer, iova)
    }
    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        (**self).dma_unmap(iova, len)
    }
    fn vectors(&self) -> u32 {
        (**self).vectors()
    }
    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        (**self).enable_vector(vector)
    }
    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        (**self).disable_vector(vector)
    }
    fn reset(&self) -> Result<(), IoError> {
        (**self).reset()
    }
    #[inline]
    fn progress(&self) {
        (**self).progress();
    }
    fn numa_node(&self) -> Option<u32> {
        (**self).numa_node()
    }
    fn runs_on_caller(&self) -> bool {
        (**self).runs_on_caller()
    }
    fn now(&self) -> Duration {
        (**self).now()
    }
    fn relax(&self) {
        (**self).relax();
    }
    fn sleep(&self, interrupt: &Interrupt, timeout: Duration) -> Result<bool, IoError> {
        (**self).sleep(interrupt, timeout)
    }
}
