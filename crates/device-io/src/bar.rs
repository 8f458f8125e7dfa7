//! BARs: offsets, sizes, and mapped parts.
//!
//! Unsafe: atomics in mapped device memory.
#![allow(unsafe_code, reason = "see above")]

use crate::IoError;
use memmap2::{MmapOptions, MmapRaw};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// A byte offset from the start of a BAR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BarOffset(pub u64);

/// Size and kind of a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarInfo {
    /// Size in bytes; a power of two.
    pub size_bytes: u64,
    /// Whether the BAR holds a 64-bit address (and so takes up the next BAR's register too).
    pub is_64bit: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// Whether `len` bytes at `offset` lie in the `size` bytes from `first` on.
pub fn lies_in(first: u64, size: u64, offset: BarOffset, len: usize) -> bool {
    let bytes = len as u64;
    first <= offset.0 && bytes <= size && offset.0 - first <= size - bytes
}

/// A part of a BAR mapped into this process: the doorbell page, in practice.
///
/// Accesses are 8-byte atomics at checked, aligned offsets from the start of the mapped part.
#[derive(Debug)]
pub struct BarMapping {
    map: MmapRaw,
}

impl BarMapping {
    /// Maps `len` bytes at `offset` of `fd` (a memfd of the emulator, or a VFIO device),
    /// shared.
    pub fn new(fd: impl AsFd, offset: u64, len: usize) -> Result<Self, IoError> {
        let map = MmapOptions::new()
            .offset(offset)
            .len(len)
            .map_raw(fd.as_fd().as_raw_fd())
            .map_err(|e| IoError::os("cannot map the BAR", e))?;
        Ok(Self { map })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the mapping is empty; a mapping never is.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Stores 8 bytes with release ordering.
    ///
    /// # Panics
    ///
    /// If `offset` is not 8-byte aligned or the access ends outside the mapping.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Loads 8 bytes with acquire ordering.
    ///
    /// # Panics
    ///
    /// As [`BarMapping::store_u64`].
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the mapping lives as long as `self`, is page-aligned and `map.len()` bytes
        // long, and is only ever accessed through atomics on this side.
        unsafe { crate::word::at(self.map.as_mut_ptr(), self.map.len(), offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_range() {
        let lies = |first, size, offset, len| lies_in(first, size, BarOffset(offset), len);
        assert!(lies(0, 16, 0, 16) && lies(0, 16, 8, 8) && lies(8, 8, 8, 8));
        assert!(!lies(0, 16, 9, 8) && !lies(0, 16, 0, 17) && !lies(8, 8, 7, 1));
        // Nothing wraps.
        assert!(!lies(0, 16, u64::MAX, 2) && !lies(0, 16, 1, usize::MAX));
        assert!(lies(u64::MAX - 7, 7, u64::MAX - 7, 7));
    }
}
