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
    /// All of the `size_bytes` from `start` on, which is a whole number of lines, is free, less what
    /// does not make up a whole line at the end.
    pub(crate) fn over(start: u64, size_bytes: u64) -> Self {
        let len = size_bytes / ALIGN_BYTES * ALIGN_BYTES;
        let free = match len {
            0 => Vec::new(),
            _ => vec![Piece { start, len }],
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

    /// Takes a region that is known: what [`Self::allocate`] once gave. `false`: not all of it is free,
    /// or it is none that could have been given.
    #[must_use]
    pub(crate) fn claim(&mut self, at: DevAddr, bytes: u64) -> bool {
        let (start, Some(len)) = (at.0, bytes.checked_next_multiple_of(ALIGN_BYTES)) else {
            return false;
        };
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        let index = self
            .free
            .partition_point(|piece| piece.start + piece.len <= start);
        let Some(piece) = self.free.get(index).copied() else {
            return false;
        };
        if len == 0 || !start.is_multiple_of(ALIGN_BYTES) {
            return false;
        }
        if piece.start > start || piece.start + piece.len < end {
            return false;
        }
        let (before, after) = (start - piece.start, piece.start + piece.len - end);
        self.free.remove(index);
        if after != 0 {
            self.free.insert(
                index,
                Piece {
                    start: end,
                    len: after,
                },
            );
        }
        if before != 0 {
            self.free.insert(
                index,
                Piece {
                    len: before,
                    ..piece
                },
            );
        }
        true
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

    /// Bytes of the largest free piece if that were returned as well.
    pub(crate) fn largest_with(&self, at: DevAddr, bytes: u64) -> u64 {
        let (start, len) = (at.0, bytes.next_multiple_of(ALIGN_BYTES));
        let index = self.free.partition_point(|piece| piece.start < start);
        let next = self.free.get(index).filter(|p| p.start == start + len);
        let before = index.checked_sub(1).and_then(|index| self.free.get(index));
        let before = before.filter(|p| p.start + p.len == start);
        let joined = len + next.map_or(0, |p| p.len) + before.map_or(0, |p| p.len);
        joined.max(self.largest_free())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A line-by-line picture of memory, to hold the allocator against.
    struct Model {
        taken: Vec<bool>,
    }

    impl Model {
        fn pieces(&self) -> Vec<(u64, u64)> {
            let mut pieces: Vec<(u64, u64)> = Vec::new();
            for (line, &taken) in self.taken.iter().enumerate() {
                let at = line as u64 * ALIGN_BYTES;
                match pieces.last_mut() {
                    _ if taken => {}
                    Some((start, len)) if *start + *len == at => *len += ALIGN_BYTES,
                    _ => pieces.push((at, ALIGN_BYTES)),
                }
            }
            pieces
        }

        fn set(&mut self, at: DevAddr, bytes: u64, taken: bool) {
            let first = (at.0 / ALIGN_BYTES) as usize;
            for line in &mut self.taken[first..first + bytes.div_ceil(ALIGN_BYTES) as usize] {
                assert_ne!(*line, taken, "a line is handed out, or returned, twice");
                *line = taken;
            }
        }
    }

    #[test]
    fn agrees_with_a_line_by_line_model() {
        for seed in 1..20u64 {
            let mut random = seed;
            let mut below = |bound: u64| {
                random = random
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(0x1405_7b7e_f767_814f);
                (random >> 33) % bound
            };
            let mut allocator = Allocator::over(0, 512 * ALIGN_BYTES);
            let mut model = Model {
                taken: vec![false; 512],
            };
            let mut live: Vec<(DevAddr, u64)> = Vec::new();
            let mut refused = 0;
            for _ in 0..4000 {
                if below(5) < 3 {
                    let bytes = 1 + below(60 * ALIGN_BYTES);
                    let lines = bytes.next_multiple_of(ALIGN_BYTES);
                    let fit = model.pieces().into_iter().filter(|p| p.1 >= lines);
                    let best = fit.min_by_key(|p| (p.1, p.0)).map(|p| DevAddr(p.0));
                    let got = allocator.allocate(bytes);
                    assert_eq!(got, best, "seed {seed}");
                    match got {
                        Some(at) => {
                            model.set(at, bytes, true);
                            live.push((at, bytes));
                        }
                        None => refused += 1,
                    }
                } else if !live.is_empty() {
                    let (at, bytes) = live.swap_remove(below(live.len() as u64) as usize);
                    model.set(at, bytes, false);
                    allocator.release(at, bytes);
                }
                let pieces = model.pieces();
                assert_eq!(allocator.pieces(), pieces.len(), "seed {seed}");
                assert_eq!(
                    allocator.free_bytes(),
                    pieces.iter().map(|p| p.1).sum::<u64>()
                );
                let largest = pieces.iter().map(|p| p.1).max().unwrap_or(0);
                assert_eq!(allocator.largest_free(), largest, "seed {seed}");
            }
            assert!(refused > 0, "seed {seed}: memory never ran out");
            for (at, bytes) in live {
                allocator.release(at, bytes);
            }
            assert_eq!(allocator.pieces(), 1, "seed {seed}");
            assert_eq!(allocator.largest_free(), allocator.size_bytes());
        }
    }

    #[test]
    fn runs_out_exactly() {
        let mut allocator = Allocator::over(0, 10 * ALIGN_BYTES + 63);
        assert_eq!(allocator.size_bytes(), 10 * ALIGN_BYTES);
        for line in 0..10 {
            assert_eq!(allocator.allocate(1), Some(DevAddr(line * ALIGN_BYTES)));
        }
        assert_eq!(allocator.allocate(1), None);
        assert_eq!((allocator.free_bytes(), allocator.largest_free()), (0, 0));
        allocator.release(DevAddr(128), 1);
        assert_eq!(allocator.allocate(65), None);
        assert_eq!(allocator.allocate(64), Some(DevAddr(128)));
        assert_eq!(allocator.allocate(u64::MAX), None);
        assert_eq!(allocator.allocate(0), None);
    }
}
