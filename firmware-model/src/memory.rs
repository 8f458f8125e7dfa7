//! Byte-addressed device memory.
//!
//! Storage is zero when handed over and may be backed lazily, so memory remembers which
//! 64 KiB chunks were ever written. Zeroing a region for a new map then costs only its
//! written chunks, and a map of ten million entries on fresh memory costs nothing.
//!
//! A reset must not take longer because memory is full, and must hide what was in it from the
//! next owner. It only marks the written chunks as *stale*: the window shows a stale chunk as
//! zero, and whoever writes to it, a new map or the window, zeroes it first. No map lies in a
//! stale chunk, so tables need not look.
//!
//! Wrong bits, and maps that move, are looked after in [`watch`], and cost nothing where there are none.

mod watch;

pub(crate) use watch::LINE_BYTES;
pub use watch::Scrubbed;

use crate::access::{Access, MemoryFault};
use crate::ecc::Ecc;
use crate::{HostMemory, Storage};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use offmap_abi::{DevAddr, Status};
use watch::{Found, Watch};

/// Bytes of a chunk, the unit in which writes are remembered: a power of two.
const CHUNK_BYTES: u64 = 64 << 10;
/// Bytes of a cache line of the machine that runs the model.
const CACHE_LINE: usize = 64;
/// Clean chunks that one zeroing step may pass over.
const CLEAN_CHUNKS_PER_STEP: u64 = 1 << 16;
/// What makes any address one that storage does not have: no storage has half of all addresses.
const WATCHED: usize = 1 << (usize::BITS - 1);

/// Device memory over host storage. It is the direct access policy: an access is a slice of
/// the storage, checked once.
#[derive(Debug)]
pub struct DeviceMemory<S> {
    storage: S,
    size_bytes: u64,
    /// Bit `n`: chunk `n` was written since it was last known to be zero.
    written: Vec<u64>,
    /// Bit `n`: chunk `n` holds what was written before a reset. Such a chunk is written too.
    stale: Vec<u64>,
    /// [`WATCHED`] where there is a watch, and 0 elsewhere: bits of every address, so that accesses need
    /// not ask.
    bias: usize,
    watch: Option<Box<Watch>>,
    /// Check codes by address, with the ends up to which they apply.
    codes: Vec<(u64, Ecc)>,
    /// What they have found.
    found: Vec<Found>,
}

impl<S: Storage> DeviceMemory<S> {
    /// Memory of `size_bytes` over zeroed `storage` that is at least as long, with the check codes of
    /// its tiers.
    pub(crate) fn new(storage: S, size_bytes: u64, codes: Vec<(u64, Ecc)>) -> Self {
        let words = size_bytes.div_ceil(CHUNK_BYTES).div_ceil(64) as usize;
        Self {
            storage,
            size_bytes,
            written: vec![0; words],
            stale: vec![0; words],
            bias: 0,
            watch: None,
            found: codes.iter().map(|_| Found::default()).collect(),
            codes,
        }
    }

    /// Whether accesses are looked after one by one.
    #[inline(always)]
    pub(crate) fn is_watched(&self) -> bool {
        self.bias != 0
    }

    fn set_watched(&mut self, watched: bool) {
        self.bias = if watched { WATCHED } else { 0 };
    }

    /// Makes all memory read as zero. No map may be left in it. The cost is a bit for each
    /// chunk.
    pub(crate) fn reset(&mut self) {
        self.stale.copy_from_slice(&self.written);
        self.forget_watch();
    }

    /// Whether a chunk was written since it was last known to be zero.
    fn is_written(&self, chunk: u64) -> bool {
        let word = self.written.get((chunk / 64) as usize);
        word.is_some_and(|word| word >> (chunk % 64) & 1 != 0)
    }

    /// Notes that bytes are written.
    #[inline(always)]
    fn mark_written(&mut self, at: u64, len: u64) {
        let first = at / CHUNK_BYTES;
        let last = (at + len.saturating_sub(1)) / CHUNK_BYTES;
        for chunk in first..=last {
            // Storage may be longer than the memory, so the bit may be missing.
            if let Some(word) = self.written.get_mut((chunk / 64) as usize) {
                *word |= 1 << (chunk % 64);
            }
        }
    }

    /// Whether a chunk holds what was written before a reset.
    fn is_stale(&self, chunk: u64) -> bool {
        let word = self.stale.get((chunk / 64) as usize);
        word.is_some_and(|word| word >> (chunk % 64) & 1 != 0)
    }

    /// Zeroes a whole chunk, which is neither written nor stale from then on.
    fn clear_chunk(&mut self, chunk: u64) -> Result<(), MemoryFault> {
        let start = chunk * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(self.size_bytes);
        let piece = range(DevAddr(start), end.saturating_sub(start) as usize)?;
        let bytes = self.storage.as_mut().get_mut(piece);
        bytes.ok_or(MemoryFault::OutOfRange)?.fill(0);
        let (word, keep) = ((chunk / 64) as usize, !(1 << (chunk % 64)));
        for bits in [&mut self.written, &mut self.stale] {
            *bits.get_mut(word).ok_or(MemoryFault::OutOfRange)? &= keep;
        }
        if self.is_watched() {
            self.overwritten(start, end - start);
        }
        Ok(())
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where an access lies in storage: nowhere in it, if memory is watched.
    #[inline(always)]
    fn place(&self, at: DevAddr, len: usize) -> Range<usize> {
        let start = usize::try_from(at.0).unwrap_or(usize::MAX) | self.bias;
        // Past the end of all addresses it ends before it starts, which is no range of storage's.
        start..start.wrapping_add(len)
    }

    /// The `len` bytes at `at`.
    #[inline(always)]
    pub(crate) fn bytes(&self, at: DevAddr, len: usize) -> Result<&[u8], MemoryFault> {
        match self.storage.as_ref().get(self.place(at, len)) {
            Some(bytes) => Ok(bytes),
            None => self.watched_read(at, len),
        }
    }

    /// The `len` bytes at `at`, which count as written from now on.
    #[inline(always)]
    fn bytes_mut(&mut self, at: DevAddr, len: usize) -> Result<&mut [u8], MemoryFault> {
        if self.storage.as_ref().get(self.place(at, len)).is_none() {
            self.watched_write(at, len)?;
        }
        self.mark_written(at.0, len as u64);
        let place = range(at, len)?;
        let bytes = self.storage.as_mut().get_mut(place);
        bytes.ok_or(MemoryFault::OutOfRange)
    }

    /// The bytes as storage has them.
    fn shown(&self, at: DevAddr, len: usize) -> Result<&[u8], MemoryFault> {
        let bytes = self.storage.as_ref().get(range(at, len)?);
        bytes.ok_or(MemoryFault::OutOfRange)
    }

    /// The chunks that are not known to be zero, with their numbers.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        (0..self.size_bytes.div_ceil(CHUNK_BYTES)).filter_map(|chunk| {
            let (word, bit) = ((chunk / 64) as usize, chunk % 64);
            let written = self.written.get(word)? & !self.stale.get(word)?;
            if written >> bit & 1 == 0 {
                return None;
            }
            let start = chunk * CHUNK_BYTES;
            let len = CHUNK_BYTES.min(self.size_bytes - start) as usize;
            let bytes = self.shown(DevAddr(start), len).ok()?;
            bytes
                .iter()
                .any(|byte| *byte != 0)
                .then_some((chunk, bytes))
        })
    }

    /// A chunk's place, all of it, to be filled. `None`: there is no such chunk.
    pub(crate) fn chunk_mut(&mut self, chunk: u64) -> Option<&mut [u8]> {
        let start = chunk.checked_mul(CHUNK_BYTES)?;
        let left = self
            .size_bytes
            .checked_sub(start)
            .filter(|left| *left > 0)?;
        self.bytes_mut(DevAddr(start), CHUNK_BYTES.min(left) as usize)
            .ok()
    }

    /// Reads through the host's window: bytes past the end read as all ones. It looks past the check
    /// codes.
    pub(crate) fn window_read(&self, at: DevAddr, into: &mut [u8]) {
        let inside = self.inside(at, into.len());
        let (head, tail) = into.split_at_mut(inside);
        tail.fill(0xff);
        let mut at = at.0;
        let mut left = head;
        while !left.is_empty() {
            let chunk = at / CHUNK_BYTES;
            let in_chunk = ((chunk + 1) * CHUNK_BYTES - at).min(left.len() as u64) as usize;
            let (piece, rest) = left.split_at_mut(in_chunk);
            match self.shown(DevAddr(at), in_chunk) {
                Ok(bytes) if !self.is_stale(chunk) => piece.copy_from_slice(bytes),
                _ => piece.fill(0),
            }
            at += in_chunk as u64;
            left = rest;
        }
    }

    /// Writes through the host's window: bytes past the end are dropped.
    pub(crate) fn window_write(&mut self, at: DevAddr, from: &[u8]) {
        let inside = self.inside(at, from.len());
        if inside == 0 {
            return;
        }
        for chunk in at.0 / CHUNK_BYTES..=(at.0 + inside as u64 - 1) / CHUNK_BYTES {
            if self.is_stale(chunk) && self.clear_chunk(chunk).is_err() {
                return;
            }
        }
        if self.is_watched() {
            // Whatever was there: the window is for whoever looks at memory from outside, and stores
            // what it is given.
            self.overwritten(at.0, inside as u64);
        }
        if let Ok(bytes) = self.bytes_mut(at, inside) {
            bytes.copy_from_slice(&from[..inside]);
        }
    }

    /// How many of `len` bytes from `at` on lie in memory.
    fn inside(&self, at: DevAddr, len: usize) -> usize {
        self.size_bytes.saturating_sub(at.0).min(len as u64) as usize
    }

    /// A bounded step towards zeroing `from..end`: zeroes at most one chunk, of one that is not
    /// stale at most `most` bytes, and returns the address up to which the region is zero.
    pub(crate) fn zero_step(&mut self, from: u64, end: u64, most: u32) -> Result<u64, MemoryFault> {
        let mut at = from;
        for _ in 0..CLEAN_CHUNKS_PER_STEP {
            if at >= end {
                return Ok(end);
            }
            let chunk = at / CHUNK_BYTES;
            let chunk_start = chunk * CHUNK_BYTES;
            let stop = (chunk_start + CHUNK_BYTES).min(end);
            let word = self.written.get((chunk / 64) as usize);
            let word = word.ok_or(MemoryFault::OutOfRange)?;
            if word >> (chunk % 64) & 1 == 0 {
                at = stop;
                continue;
            }
            // Only a chunk that is zeroed whole is known to be zero afterwards. A stale one is,
            // beyond the region too: nothing lives in it, and its next owner must not see it.
            let whole =
                at == chunk_start && stop == (chunk_start + CHUNK_BYTES).min(self.size_bytes);
            if whole && stop - at <= u64::from(most) || self.is_stale(chunk) {
                self.clear_chunk(chunk)?;
                return Ok(stop);
            }
            let stop = stop.min(at + u64::from(most));
            let piece = range(DevAddr(at), (stop - at) as usize)?;
            let bytes = self.storage.as_mut().get_mut(piece);
            bytes.ok_or(MemoryFault::OutOfRange)?.fill(0);
            if self.is_watched() {
                self.overwritten(at, stop - at);
            }
            return Ok(stop);
        }
        Ok(at)
    }
}

/// The storage range of an access, if it can be expressed.
#[inline(always)]
fn range(at: DevAddr, len: usize) -> Result<Range<usize>, MemoryFault> {
    let start = usize::try_from(at.0).map_err(|_| MemoryFault::OutOfRange)?;
    let end = start.checked_add(len).ok_or(MemoryFault::OutOfRange)?;
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

    #[inline(always)]
    fn peek<R>(&mut self, at: DevAddr, len: usize, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.storage.as_ref().get(self.place(at, len)).map(f)
    }

    #[inline(always)]
    fn prefetch(&mut self, at: DevAddr, len: u64) {
        let Some(bytes) = self.storage.as_ref().get(self.place(at, len as usize)) else {
            return;
        };
        // The bytes need not begin with a line, so that the last one may be in one more.
        for line in bytes.chunks(CACHE_LINE) {
            S::prefetch(line);
        }
        if let Some(last) = bytes.len().checked_sub(1) {
            S::prefetch(&bytes[last..]);
        }
    }

    #[inline(always)]
    fn begin(&mut self) {
        if self.is_watched() {
            self.watched_begin();
        }
    }

    #[inline(always)]
    fn undo(&mut self) {
        if self.is_watched() {
            self.watched_undo();
        }
    }

    fn disturb(
        &mut self,
        at: DevAddr,
        len: usize,
        flip: impl FnOnce(&mut [u8]),
    ) -> Result<(), MemoryFault> {
        self.disturb_bits(at, len, flip)
    }

    fn put_back(&mut self, at: DevAddr, bytes: &[u8]) {
        self.put_raw(at, bytes);
    }

    /// One copy: nothing else runs meanwhile.
    #[inline(always)]
    fn send(
        &mut self,
        at: DevAddr,
        len: usize,
        host: &mut impl HostMemory,
        iova: u64,
    ) -> Result<(), Status> {
        host.write(iova, self.bytes(at, len)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES;

    fn memory(size: u64, storage: u64) -> DeviceMemory<Vec<u8>> {
        DeviceMemory::new(vec![0; storage as usize], size, Vec::new())
    }

    #[test]
    fn zeroing_clears_exactly_its_region_in_bounded_steps() {
        let size = 5 * CHUNK + 100;
        let mut memory = memory(size, size);
        memory.window_write(DevAddr(0), &vec![0xaa; size as usize]);
        let (from, end) = (CHUNK / 2, 4 * CHUNK + 64);
        let (mut at, mut steps) = (from, 0);
        while at < end {
            let next = memory.zero_step(at, end, 1 << 20).unwrap();
            assert!(next > at && next - at <= CHUNK);
            at = next;
            steps += 1;
        }
        assert_eq!(steps, 5);
        let mut all = vec![0; size as usize];
        memory.window_read(DevAddr(0), &mut all);
        for (i, &byte) in all.iter().enumerate() {
            let inside = (from..end).contains(&(i as u64));
            assert_eq!(byte, if inside { 0 } else { 0xaa }, "byte {i}");
        }
        // The whole chunks are known to be zero now; the two at the rim are not.
        assert_eq!(memory.zero_step(CHUNK, 4 * CHUNK, 1), Ok(4 * CHUNK));
        assert_eq!(memory.written[0], 0b11_0001);
    }

    #[test]
    fn a_window_write_makes_memory_dirty() {
        let mut memory = memory(4 * CHUNK, 4 * CHUNK);
        // Across a chunk's end, so that both chunks count.
        memory.window_write(DevAddr(2 * CHUNK - 1), &[1, 2]);
        assert_eq!(memory.written[0], 0b110);
        let mut at = 0;
        while at < 4 * CHUNK {
            at = memory.zero_step(at, 4 * CHUNK, 1 << 20).unwrap();
        }
        let mut got = [9; 2];
        memory.window_read(DevAddr(2 * CHUNK - 1), &mut got);
        assert_eq!(got, [0; 2]);
        assert_eq!(memory.written[0], 0);
    }

    #[test]
    fn a_reset_hides_what_was_there_from_window_and_maps() {
        let size = 4 * CHUNK + 100;
        let mut memory = memory(size, size + CHUNK);
        memory.window_write(DevAddr(0), &vec![0xaa; size as usize]);
        memory.reset();
        let mut all = vec![1; size as usize];
        memory.window_read(DevAddr(0), &mut all);
        assert!(all.iter().all(|&byte| byte == 0));
        // A few bytes through the window bring up nothing around them.
        memory.window_write(DevAddr(CHUNK - 2), &[7; 4]);
        memory.window_read(DevAddr(0), &mut all);
        for (i, &byte) in all.iter().enumerate() {
            let own = (CHUNK - 2..CHUNK + 2).contains(&(i as u64));
            assert_eq!(byte, if own { 7 } else { 0 }, "byte {i}");
        }
        // Nor does a new map that takes only a part of a chunk, for itself and its neighbours.
        let (from, end) = (2 * CHUNK + 64, 4 * CHUNK + 64);
        let mut at = from;
        while at < end {
            at = memory.zero_step(at, end, 1 << 20).unwrap();
        }
        memory
            .with_bytes_mut(DevAddr(from), 1, |b| b[0] = 9)
            .unwrap();
        memory.window_read(DevAddr(2 * CHUNK), &mut all[..2 * CHUNK as usize + 100]);
        let shown = &all[..2 * CHUNK as usize + 100];
        assert_eq!(shown.iter().map(|&b| u64::from(b)).sum::<u64>(), 9);
        let real = memory.bytes(DevAddr(from), (end - from) as usize).unwrap();
        assert!(real[1..].iter().all(|&byte| byte == 0));
        // What was written since the reset is hidden by the next one.
        memory.reset();
        memory.window_read(DevAddr(0), &mut all);
        assert!(all.iter().all(|&byte| byte == 0));
        assert_eq!(memory.storage[from as usize], 9, "a reset does not zero");
    }

    #[test]
    fn the_window_ends_where_memory_ends() {
        // Storage is longer than the memory, and must not show.
        let mut memory = memory(100, 200);
        memory.window_write(DevAddr(98), &[1, 2, 3, 4]);
        let mut got = [0; 4];
        memory.window_read(DevAddr(98), &mut got);
        assert_eq!(got, [1, 2, 0xff, 0xff]);
        for at in [100, 150, 1 << 40, u64::MAX] {
            memory.window_write(DevAddr(at), &[7; 4]);
            memory.window_read(DevAddr(at), &mut got);
            assert_eq!(got, [0xff; 4]);
        }
        assert_eq!(memory.storage[100..], [0; 100]);
        assert_eq!(
            memory.bytes(DevAddr(u64::MAX), 2),
            Err(MemoryFault::OutOfRange)
        );
        assert_eq!(
            memory.with_bytes_mut(DevAddr(199), 2, |_| ()),
            Err(MemoryFault::OutOfRange)
        );
    }
}
