//! A function whose DMA memory a test can reach: what a lying device wrote there, or a lying
//! host.

use crate::forward::forward;
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
    forward!();

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
    fn now(&self) -> Duration {
        self.inner.now()
    }
    fn relax(&self) {
        self.inner.relax();
    }
}
