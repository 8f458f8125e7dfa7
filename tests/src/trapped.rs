//! A function that maps none of its BARs, so that a device on a thread of its own hears of every
//! doorbell at once.

use crate::forward::forward;
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use std::sync::Arc;
use std::time::Duration;

/// `F`, whose doorbells are all registers.
pub struct Trapped<F> {
    /// The function under it.
    pub inner: Arc<F>,
}

impl<F: Function> Trapped<F> {
    /// Over a function.
    pub fn new(inner: Arc<F>) -> Arc<Self> {
        Arc::new(Self { inner })
    }
}

impl<F: Function> Function for Trapped<F> {
    forward!(but map_bar);

    fn map_bar(&self, _: u8, _: BarOffset, _: usize) -> Result<Option<BarMapping>, IoError> {
        Ok(None)
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.inner.dma_map(buffer, iova)
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.inner.dma_unmap(iova, len)
    }

    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn relax(&self) {
        self.inner.relax();
    }
}
