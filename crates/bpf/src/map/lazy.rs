//! A table of fixed-size items in zeroed memory that is taken piece by piece.
//!
//! A map of ten million entries is created at once and costs memory as it fills. The size of
//! the whole is asked of the allocator when the table is made, so that a map that could never
//! be held is refused then, as in the kernel; a segment that cannot be had later is ENOMEM.

use crate::errno::Errno;
use crate::error::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// Bytes that a segment has at least, unless the table is smaller.
const SEGMENT_BYTES: usize = 64 << 10;
/// Segments that a table has at most: its directory stays within 256 KiB.
const MAX_SEGMENTS: usize = 1 << 13;

/// `items` items of `item_words` words each.
pub(crate) struct LazyTable {
    segments: Box<[OnceLock<Box<[AtomicU64]>>]>,
    items: usize,
    item_words: usize,
    /// Log2 of the items per segment.
    shift: u32,
}

impl LazyTable {
    /// A table of zeroes. `what` names it in the reason of an ENOMEM.
    pub(crate) fn new(items: usize, item_words: usize, what: &str) -> Result<Self> {
        let too_big = || {
            Error::because(
                Errno::ENOMEM,
                format!("{items} {what} of {item_words} words exceed the memory that can be had"),
            )
        };
        let words = items.checked_mul(item_words).ok_or_else(too_big)?;
        Vec::<u64>::new()
            .try_reserve_exact(words)
            .map_err(|_| too_big())?;
        let per_segment = (SEGMENT_BYTES / 8 / item_words)
            .max(items.div_ceil(MAX_SEGMENTS))
            .clamp(1, items.max(1))
            .next_power_of_two();
        let count = items.div_ceil(per_segment);
        Ok(Self {
            segments: (0..count).map(|_| OnceLock::new()).collect(),
            items,
            item_words,
            shift: per_segment.trailing_zeros(),
        })
    }

    /// The item, or `None` while nothing was stored in its segment: it reads as zeroes.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&[AtomicU64]> {
        let segment = self.segments.get(index >> self.shift)?.get()?;
        self.within(segment, index)
    }

    /// The item, its memory taken if need be.
    #[inline]
    pub(crate) fn get_or_alloc(&self, index: usize) -> Result<&[AtomicU64]> {
        match self.get(index) {
            Some(item) => Ok(item),
            None => self.alloc(index),
        }
    }

    /// The first index at or after `index` whose segment has memory, or the number of items.
    #[inline]
    pub(crate) fn skip_absent(&self, index: usize) -> usize {
        let first = index >> self.shift;
        let Some(rest) = self.segments.get(first..) else {
            return self.items;
        };
        match rest.iter().position(|segment| segment.get().is_some()) {
            Some(0) => index,
            Some(n) => (first + n) << self.shift,
            None => self.items,
        }
    }

    #[inline]
    fn within<'a>(&self, segment: &'a [AtomicU64], index: usize) -> Option<&'a [AtomicU64]> {
        let start = (index & ((1 << self.shift) - 1)) * self.item_words;
        segment.get(start..start + self.item_words)
    }

    #[cold]
    fn alloc(&self, index: usize) -> Result<&[AtomicU64]> {
        const NO_MEMORY: Error = Error::new(
            Errno::ENOMEM,
            "the allocator has no memory for another part of the map",
        );
        let number = index >> self.shift;
        let slot = self.segments.get(number).ok_or(NO_MEMORY)?;
        let here = (self.items - (number << self.shift)).min(1 << self.shift);
        let words = here * self.item_words;
        let mut segment = Vec::new();
        segment.try_reserve_exact(words).map_err(|_| NO_MEMORY)?;
        segment.extend((0..words).map(|_| AtomicU64::new(0)));
        // Another thread may have been first; then its segment counts, and ours goes.
        let _ = slot.set(segment.into_boxed_slice());
        self.get(index).ok_or(NO_MEMORY)
    }
}
