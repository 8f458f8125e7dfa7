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

/// `items` items of `item_cells` cells each; the default of a cell is zeroes.
pub(crate) struct LazyTable<T = AtomicU64> {
    segments: Box<[OnceLock<Box<[T]>>]>,
    items: usize,
    item_cells: usize,
    /// Log2 of the items per segment.
    shift: u32,
}

impl<T: Default> LazyTable<T> {
    /// A table of zeroes. `what` names it in the reason of an ENOMEM.
    pub(crate) fn new(items: usize, item_cells: usize, what: &str) -> Result<Self> {
        let too_big = || {
            Error::because(
                Errno::ENOMEM,
                format!(
                    "{items} {what} of {} bytes exceed the memory that can be had",
                    item_cells.saturating_mul(size_of::<T>())
                ),
            )
        };
        let cells = items.checked_mul(item_cells).ok_or_else(too_big)?;
        Vec::<T>::new()
            .try_reserve_exact(cells)
            .map_err(|_| too_big())?;
        let per_segment = (SEGMENT_BYTES / size_of::<T>() / item_cells)
            .max(items.div_ceil(MAX_SEGMENTS))
            .clamp(1, items.max(1))
            .next_power_of_two();
        let count = items.div_ceil(per_segment);
        Ok(Self {
            segments: (0..count).map(|_| OnceLock::new()).collect(),
            items,
            item_cells,
            shift: per_segment.trailing_zeros(),
        })
    }

    /// The item, or `None` while nothing was stored in its segment: it reads as zeroes.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&[T]> {
        let segment = self.segments.get(index >> self.shift)?.get()?;
        self.within(segment, index)
    }

    /// The item, its memory taken if need be.
    #[inline]
    pub(crate) fn get_or_alloc(&self, index: usize) -> Result<&[T]> {
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
    fn within<'a>(&self, segment: &'a [T], index: usize) -> Option<&'a [T]> {
        let start = (index & ((1 << self.shift) - 1)) * self.item_cells;
        segment.get(start..start + self.item_cells)
    }

    #[cold]
    fn alloc(&self, index: usize) -> Result<&[T]> {
        const NO_MEMORY: Error = Error::new(
            Errno::ENOMEM,
            "the allocator has no memory for another part of the map",
        );
        let number = index >> self.shift;
        let slot = self.segments.get(number).ok_or(NO_MEMORY)?;
        let here = (self.items - (number << self.shift)).min(1 << self.shift);
        let cells = here * self.item_cells;
        let mut segment = Vec::new();
        segment.try_reserve_exact(cells).map_err(|_| NO_MEMORY)?;
        segment.extend((0..cells).map(|_| T::default()));
        // Another thread may have been first; then its segment counts, and ours goes.
        let _ = slot.set(segment.into_boxed_slice());
        self.get(index).ok_or(NO_MEMORY)
    }
}
