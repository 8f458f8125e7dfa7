//! A function whose DMA memory a test can reach: what a lying device wrote there, or a lying
//! host.

use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A buffer that the driver has mapped.
struct Mapped {
    iova: Iova,
    len: usize,
    memory: File,
}

/// `F`, which remembers what is mapped for DMA.
pub struct Tap<F> {
    /// The function under it.
    pub inner: F,
    mapped: Mutex<Vec<Mapped>>,
}

impl<F: Function> Tap<F> {
    /// Over a function for which nothing is mapped yet.
    pub fn new(inner: F) -> Self {
        Self {
            inner,
            mapped: Mutex::default(),
        }
    }

    fn mapped(&self) -> MutexGuard<'_, Vec<Mapped>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IOVA of the buffer of `len` bytes that was mapped last.
    pub fn find(&self, len: usize) -> Option<Iova> {
        let mapped = self.mapped();
        let found = mapped.iter().rev().find(|buffer| buffer.len == len);
        found.map(|buffer| buffer.iova)
    }

    /// Stores the little-endian word at `offset` of the buffer at `iova`.
    ///
    /// # Panics
    ///
    /// Unless it is mapped.
    pub fn poke(&self, iova: Iova, offset: u64, word: u64) {
        let mapped = self.mapped();
        let buffer = mapped.iter().find(|buffer| buffer.iova == iova);
        let memory = &buffer.expect("a buffer that is mapped").memory;
        memory
            .write_all_at(&word.to_le_bytes(), offset)
            .expect("a memfd can be written");
    }
}

impl<F: Function> Function for Tap<F> {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        self.inner.config_read(offset, buf)
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.inner.config_write(offset, data)
    }
    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        self.inner.bar(bar)
    }
    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        self.inner.read32(bar, offset)
    }
    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        self.inner.read64(bar, offset)
    }
    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.inner.write32(bar, offset, value)
    }
    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.inner.write64(bar, offset, value)
    }
    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        self.inner.map_bar(bar, offset, len)
    }
    fn iova_ranges(&self) -> Vec<IovaRange> {
        self.inner.iova_ranges()
    }
    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.inner.dma_map(buffer, iova)?;
        let memory = buffer.fd().try_clone_to_owned().expect("a descriptor");
        self.mapped().push(Mapped {
            iova,
            len: buffer.len(),
            memory: File::from(memory),
        });
        Ok(())
    }
    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.mapped().retain(|buffer| buffer.iova != iova);
        self.inner.dma_unmap(iova, len)
    }
    fn vectors(&self) -> u32 {
        self.inner.vectors()
    }
    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        self.inner.enable_vector(vector)
    }
    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.inner.disable_vector(vector)
    }
    fn reset(&self) -> Result<(), IoError> {
        self.inner.reset()
    }
    fn progress(&self) {
        self.inner.progress();
    }
    fn runs_on_caller(&self) -> bool {
        self.inner.runs_on_caller()
    }
    fn now(&self) -> Duration {
        self.inner.now()
    }
    fn relax(&self) {
        self.inner.relax();
    }
}
