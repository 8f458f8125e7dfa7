//! Words that host and device share, as the code that keeps the ordering rules sees them.

use crate::DmaBuffer;
use std::convert::Infallible;
use std::sync::atomic::{Ordering, fence};

/// Aligned 8-byte words in memory that host and device share, with the ordering rules of
/// `docs/abi.md` §10 in the hands of whoever uses them.
///
/// The rings of driver and device are written over this trait, so that the same code runs in
/// DMA memory and, in the litmus tests, over the words of a model checker.
pub trait SharedWords {
    /// Why a word cannot be accessed.
    type Fault;

    /// Loads the word at `offset` bytes.
    ///
    /// # Errors
    ///
    /// When there is no such word.
    fn load(&self, offset: usize, order: Ordering) -> Result<u64, Self::Fault>;

    /// Stores the word at `offset` bytes.
    ///
    /// # Errors
    ///
    /// When there is no such word.
    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), Self::Fault>;

    /// No later load passes an earlier store.
    fn full_fence(&self);
}

/// Offsets are the caller's own, as in [`DmaBuffer::load_u64`], which says when it panics.
impl SharedWords for DmaBuffer {
    type Fault = Infallible;

    #[inline(always)]
    fn load(&self, offset: usize, order: Ordering) -> Result<u64, Infallible> {
        Ok(self.load_u64(offset, order))
    }

    #[inline(always)]
    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), Infallible> {
        self.store_u64(offset, value, order);
        Ok(())
    }

    #[inline(always)]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}
