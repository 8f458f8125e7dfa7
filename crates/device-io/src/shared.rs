//! Words that host and device share, as the code that keeps the ordering rules sees them.

use crate::DmaBuffer;
use crate::word::LINE_WORDS;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

/// Memory whose 64-byte lines can be had as words of their own, checked once for all eight: what a
/// ring's entry is.
pub trait SharedLines: SharedWords {
    /// A line. Offsets in it count from its start.
    type Line<'w>: SharedWords<Fault = Self::Fault>
    where
        Self: 'w;

    /// The 64 bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// When they are not all there.
    fn line(&self, offset: usize) -> Result<Self::Line<'_>, Self::Fault>;
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
}

impl SharedLines for DmaBuffer {
    type Line<'w> = BufferLine<'w>;

    #[inline(always)]
    fn line(&self, offset: usize) -> Result<BufferLine<'_>, Infallible> {
        Ok(BufferLine(self.words_of_line(offset)))
    }
}

/// Eight words of a [`DmaBuffer`].
#[derive(Clone, Copy, Debug)]
pub struct BufferLine<'w>(&'w [AtomicU64; LINE_WORDS]);

impl BufferLine<'_> {
    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "a word at {offset:#x}");
        &self.0[offset / 8]
    }
}

/// Panics for a word outside the line, or for one that is not aligned.
impl SharedWords for BufferLine<'_> {
    type Fault = Infallible;

    #[inline(always)]
    fn load(&self, offset: usize, order: Ordering) -> Result<u64, Infallible> {
        Ok(self.word(offset).load(order))
    }

    #[inline(always)]
    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), Infallible> {
        self.word(offset).store(value, order);
        Ok(())
    }
}
