//! A table of cells in memory that is taken piece by piece, as [`crate::map::lazy`] has it for
//! words.

use crate::errno::Errno;
use crate::error::{Error, Result};
use std::sync::OnceLock;

/// Cells of a segment at least, unless the table is smaller.
const SEGMENT_CELLS: usize = 1 << 10;
/// Segments that a table has at most.
const MAX_SEGMENTS: usize = 1 << 13;

/// `len` cells that start as their default.
pub(super) struct LazyCells<T> {
    segments: Box<[OnceLock<Box<[T]>>]>,
    len: usize,
    /// Log2 of the cells per segment.
    shift: u32,
}

impl<T: Default> LazyCells<T> {
    pub(super) fn new(len: usize) -> Self {
        let per_segment = SEGMENT_CELLS
            .max(len.div_ceil(MAX_SEGMENTS))
            .clamp(1, len.max(1))
            .next_power_of_two();
        Self {
            segments: (0..len.div_ceil(per_segment))
                .map(|_| OnceLock::new())
                .collect(),
            len,
            shift: per_segment.trailing_zeros(),
        }
    }

    /// The cell, or `None` while it and its neighbours are as they started.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        let segment = self.segments.get(index >> self.shift)?.get()?;
        segment.get(index & ((1 << self.shift) - 1))
    }

    /// The cell at `index`, which is below the length, its memory taken if need be: ENOMEM.
    pub(super) fn get_or_alloc(&self, index: usize) -> Result<&T> {
        const NO_MEMORY: Error = Error::new(
            Errno::ENOMEM,
            "the allocator has no memory for another part of the map",
        );
        if let Some(cell) = self.get(index) {
            return Ok(cell);
        }
        let number = index >> self.shift;
        let slot = self.segments.get(number).ok_or(NO_MEMORY)?;
        let here = (self.len - (number << self.shift)).min(1 << self.shift);
        let mut segment = Vec::new();
        segment.try_reserve_exact(here).map_err(|_| NO_MEMORY)?;
        segment.extend((0..here).map(|_| T::default()));
        // Another thread may have been first; then its segment counts, and ours goes.
        let _ = slot.set(segment.into_boxed_slice());
        self.get(index).ok_or(NO_MEMORY)
    }

    /// The first index at or after `index` whose segment has memory, or the length.
    pub(super) fn skip_absent(&self, index: usize) -> usize {
        let first = index >> self.shift;
        let rest = self.segments.get(first..).unwrap_or_default();
        match rest.iter().position(|segment| segment.get().is_some()) {
            Some(0) => index,
            Some(n) => (first + n) << self.shift,
            None => self.len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn cells_are_there_once_they_are_used() {
        for len in [1, 2, 1023, 1024, 1025, 5000, 1 << 24] {
            let cells = LazyCells::<AtomicUsize>::new(len);
            assert_eq!(cells.skip_absent(0), len);
            let last = cells.get_or_alloc(len - 1).unwrap();
            last.store(7, Relaxed);
            assert!(cells.get(len).is_none(), "{len}");
            assert_eq!(cells.get(len - 1).unwrap().load(Relaxed), 7);
            let present = cells.skip_absent(0);
            assert!(cells.get(present).is_some(), "{len}");
            assert!(present == 0 || cells.get(present - 1).is_none(), "{len}");
            assert_eq!(cells.skip_absent(len), len);
        }
    }
}
