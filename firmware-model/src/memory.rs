//! Byte-addressed device memory.
//!
//! Storage is zero when handed over and may be backed lazily, so memory remembers which
//! 64 KiB chunks were ever written. Zeroing a region for a new map then costs only its
//! written chunks, and a map of ten million entries on fresh memory costs nothing.

use crate::Storage;
use crate::access::{Access, MemoryFault};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use offmap_abi::DevAddr;

/// Bytes of a chunk, the unit in which writes are remembered: a power of two.
const CHUNK_BYTES: u64 = 64 << 10;
/// Clean chunks that one zeroing step may pass over.
const CLEAN_CHUNKS_PER_STEP: u64 = 1 << 16;

/// Device memory over host storage. It is the direct access policy: an access is a slice of
/// the storage, checked once.
#[derive(Debug)]
pub struct DeviceMemory<S> {
    storage: S,
    size_bytes: u64,
    /// Bit `n`: chunk `n` was written since it was last known to be zero.
    written: Vec<u64>,
}

impl<S: Storage> DeviceMemory<S> {
    /// Memory of `size_bytes` over zeroed `storage` that is at least as long.
    pub(crate) fn new(storage: S, size_bytes: u64) -> Self {
        let chunks = size_bytes.div_ceil(CHUNK_BYTES);
        Self {
            storage,
            size_bytes,
            written: vec![0; chunks.div_ceil(64) as usize],
        }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The `len` bytes at `at`.
    #[inline(always)]
    pub(crate) fn bytes(&self, at: DevAddr, len: usize) -> Result<&[u8], MemoryFault> {
        self.storage
            .as_ref()
            .get(range(at, len)?)
            .ok_or(MemoryFault)
    }

    /// The `len` bytes at `at`, which count as written from now on.
    #[inline(always)]
    fn bytes_mut(&mut self, at: DevAddr, len: usize) -> Result<&mut [u8], MemoryFault> {
        let range = range(at, len)?;
        let bytes = self.storage.as_mut().get_mut(range).ok_or(MemoryFault)?;
        let first = at.0 / CHUNK_BYTES;
        let last = (at.0 + (len as u64).saturating_sub(1)) / CHUNK_BYTES;
        for chunk in first..=last {
            // Storage may be longer than the memory, so the bit may be missing.
            if let Some(word) = self.written.get_mut((chunk / 64) as usize) {
                *word |= 1 << (chunk % 64);
            }
        }
        Ok(bytes)
    }

    /// Reads through the host's window: bytes past the end read as all ones.
    pub(crate) fn window_read(&self, at: DevAddr, into: &mut [u8]) {
        let inside = self.inside(at, into.len());
        let (head, tail) = into.split_at_mut(inside);
        tail.fill(0xff);
        if let Ok(bytes) = self.bytes(at, inside) {
            head.copy_from_slice(bytes);
        }
    }

    /// Writes through the host's window: bytes past the end are dropped.
    pub(crate) fn window_write(&mut self, at: DevAddr, from: &[u8]) {
        let inside = self.inside(at, from.len());
        if inside == 0 {
            return;
        }
        if let Ok(bytes) = self.bytes_mut(at, inside) {
            bytes.copy_from_slice(&from[..inside]);
        }
    }

    /// How many of `len` bytes from `at` on lie in memory.
    fn inside(&self, at: DevAddr, len: usize) -> usize {
        self.size_bytes.saturating_sub(at.0).min(len as u64) as usize
    }

    /// A bounded step towards zeroing `from..end`: zeroes at most one chunk, and returns the
    /// address up to which the region is zero.
    pub(crate) fn zero_step(&mut self, from: u64, end: u64) -> Result<u64, MemoryFault> {
        let mut at = from;
        for _ in 0..CLEAN_CHUNKS_PER_STEP {
            if at >= end {
                return Ok(end);
            }
            let chunk = at / CHUNK_BYTES;
            let chunk_start = chunk * CHUNK_BYTES;
            let stop = (chunk_start + CHUNK_BYTES).min(end);
            let word = self
                .written
                .get_mut((chunk / 64) as usize)
                .ok_or(MemoryFault)?;
            let bit = 1 << (chunk % 64);
            if *word & bit == 0 {
                at = stop;
                continue;
            }
            // Only a chunk that is zeroed whole is known to be zero afterwards.
            if at == chunk_start && stop == (chunk_start + CHUNK_BYTES).min(self.size_bytes) {
                *word &= !bit;
            }
            let piece = range(DevAddr(at), (stop - at) as usize)?;
            let bytes = self.storage.as_mut().get_mut(piece).ok_or(MemoryFault)?;
            bytes.fill(0);
            return Ok(stop);
        }
        Ok(at)
    }
}

/// The storage range of an access, if it can be expressed.
#[inline(always)]
fn range(at: DevAddr, len: usize) -> Result<Range<usize>, MemoryFault> {
    let start = usize::try_from(at.0).map_err(|_| MemoryFault)?;
    let end = start.checked_add(len).ok_or(MemoryFault)?;
    Ok(start..end)
}

impl<S: Storage> Access for DeviceMemory<S> {
    #[inline(always)]
    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.bytes(at, len).map(f)
    }

    #[inline(always)]
    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.bytes_mut(at, len).map(f)
    }
}
