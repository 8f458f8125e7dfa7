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
