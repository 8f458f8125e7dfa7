//! The allocator of device memory: best fit over an address-ordered list of free pieces.
//!
//! Its list lives in the firmware's own memory, not in device memory, so that the host's
//! window cannot corrupt it. Lists are short: a piece more than there are maps, at most.

use alloc::vec;
use alloc::vec::Vec;
use offmap_abi::DevAddr;

/// Alignment of every allocation, in bytes: a cache line.
pub(crate) const ALIGN_BYTES: u64 = 64;

/// A free piece, in bytes. Pieces are never empty and never touch each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    start: u64,
    len: u64,
}

/// Hands out aligned regions of device memory.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Ordered by address.
    free: Vec<Piece>,
    size_bytes: u64,
}

impl Allocator {
    /// All of `size_bytes` is free, less what does not make up a whole line at the end.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let len = size_bytes / ALIGN_BYTES * ALIGN_BYTES;
        let free = match len {
            0 => Vec::new(),
            _ => vec![Piece { start: 0, len }],
        };
        Self {
            free,
            size_bytes: len,
        }
    }

    /// Takes `bytes`, rounded up to whole lines, from the smallest piece that holds them (the
    /// lowest of equals). `None`: no piece does.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Option<DevAddr> {
        let len = bytes.checked_next_multiple_of(ALIGN_BYTES)?;
        if len == 0 {
            return None;
        }
        let (index, _) = self
            .free
            .iter()
            .enumerate()
            .filter(|(_, piece)| piece.len >= len)
            .min_by_key(|(_, piece)| piece.len)?;
        let piece = &mut self.free[index];
        let start = piece.start;
        piece.start += len;
        piece.len -= len;
        if piece.len == 0 {
            self.free.remove(index);
        }
        Some(DevAddr(start))
    }

    /// Returns what [`Self::allocate`] gave for `bytes`, and joins it with free neighbours.
    pub(crate) fn release(&mut self, at: DevAddr, bytes: u64) {
        let start = at.0;
        let len = bytes.next_multiple_of(ALIGN_BYTES);
        let index = self.free.partition_point(|piece| piece.start < start);
        let joins_next = self
            .free
            .get(index)
            .is_some_and(|next| start + len == next.start);
        let joins_previous = index > 0 && {
            let previous = self.free[index - 1];
            previous.start + previous.len == start
        };
        match (joins_previous, joins_next) {
            (true, true) => {
                self.free[index - 1].len += len + self.free[index].len;
                self.free.remove(index);
            }
            (true, false) => self.free[index - 1].len += len,
            (false, true) => {
                self.free[index].start = start;
                self.free[index].len += len;
            }
            (false, false) => self.free.insert(index, Piece { start, len }),
        }
    }

    /// Free bytes in all pieces together.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free.iter().map(|piece| piece.len).sum()
    }

    /// Bytes of the largest free piece; 0 when nothing is free.
    pub(crate) fn largest_free(&self) -> u64 {
        self.free.iter().map(|piece| piece.len).max().unwrap_or(0)
    }

    /// Bytes that can be handed out in all.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Number of free pieces.
    pub(crate) fn pieces(&self) -> usize {
        self.free.len()
    }
}
