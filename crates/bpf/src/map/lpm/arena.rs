//! Fixed-size items in memory that is taken as it is needed, without a bound given beforehand.
//!
//! A trie may be created for 2^32 − 1 prefixes of 4 MiB; the kernel takes memory for those that
//! are stored. Items lie in segments; level `n` of the directory names 2^n of them, so that the
//! directory grows with the items and nothing ever moves under a reader.

use crate::errno::Errno;
use crate::error::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// Bytes that a segment has about, unless one item or all of them have fewer or more.
const SEGMENT_BYTES: usize = 64 << 10;
/// Levels of the directory: for 2^33 segments, the nodes of 2^32 − 1 prefixes at one each.
const LEVELS: usize = 34;

const NO_MEMORY: Error = Error::new(
    Errno::ENOMEM,
    "the allocator has no memory for another part of the map",
);

type Segment = OnceLock<Box<[AtomicU64]>>;

/// Items of `item_words` words each.
pub(super) struct Arena {
    levels: [OnceLock<Box<[Segment]>>; LEVELS],
    item_words: usize,
    /// Log2 of the items per segment.
    shift: u32,
}

impl Arena {
    /// An arena that will hold at most `items` items.
    pub(super) fn new(items: u64, item_words: usize) -> Self {
        let per_segment = (SEGMENT_BYTES / 8 / item_words)
            .min(usize::try_from(items).unwrap_or(usize::MAX))
            .max(1)
            .next_power_of_two();
        Self {
            levels: [const { OnceLock::new() }; LEVELS],
            item_words,
            shift: per_segment.trailing_zeros(),
        }
    }

    /// Level of the directory, place in it, and first word in the segment.
    #[inline]
    fn place(&self, index: u64) -> (usize, usize, usize) {
        let segment = (index >> self.shift) + 1;
        let level = segment.ilog2();
        let within = index & ((1 << self.shift) - 1);
        (
            level as usize,
            (segment - (1 << level)) as usize,
            within as usize * self.item_words,
        )
    }

    /// The item, or `None` where there is no memory of it.
    #[inline]
    pub(super) fn get(&self, index: u64) -> Option<&[AtomicU64]> {
        let (level, segment, first) = self.place(index);
        let segments = self.levels.get(level)?.get()?;
        let words = segments.get(segment)?.get()?;
        words.get(first..first + self.item_words)
    }

    /// The item, its memory taken if need be. One thread at a time.
    pub(super) fn get_or_alloc(&self, index: u64) -> Result<&[AtomicU64]> {
        if let Some(item) = self.get(index) {
            return Ok(item);
        }
        let (level, segment, _) = self.place(index);
        let directory = self.levels.get(level).ok_or(NO_MEMORY)?;
        let segments = filled(directory, 1 << level, OnceLock::new)?;
        let place = segments.get(segment).ok_or(NO_MEMORY)?;
        filled(place, self.item_words << self.shift, || AtomicU64::new(0))?;
        self.get(index).ok_or(NO_MEMORY)
    }
}

/// What `cell` holds: `len` new items, if it held nothing.
fn filled<T>(cell: &OnceLock<Box<[T]>>, len: usize, make: impl FnMut() -> T) -> Result<&[T]> {
    if cell.get().is_none() {
        let mut items = Vec::new();
        items.try_reserve_exact(len).map_err(|_| NO_MEMORY)?;
        items.resize_with(len, make);
        // Nobody else fills it: the callers hold the map's lock.
        let _ = cell.set(items.into_boxed_slice());
    }
    cell.get().map(|items| &**items).ok_or(NO_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn items_are_apart_and_stay_where_they_are() {
        // Segments of a few items, and one of a single item that is larger than a segment.
        for (items, words) in [(1, 3), (5, 3), (40_000, 3), (20, 10_000)] {
            let arena = Arena::new(items, words);
            for index in 0..items {
                assert!(arena.get(index).is_none() || arena.shift > 0);
                let item = arena.get_or_alloc(index).unwrap();
                assert_eq!(item.len(), words);
                item[0].store(index + 1, Relaxed);
                item[words - 1].store(!index, Relaxed);
            }
            for index in 0..items {
                let item = arena.get(index).unwrap();
                assert_eq!(item[0].load(Relaxed), index + 1);
                assert_eq!(item[words - 1].load(Relaxed), !index);
            }
        }
    }

    #[test]
    fn the_last_item_that_a_map_can_have_has_a_place() {
        let arena = Arena::new(1 << 33, 1 << 20);
        assert_eq!(arena.shift, 0);
        assert!(arena.place((1 << 33) - 1).0 < LEVELS);
        assert!(arena.get((1 << 33) - 1).is_none());
        assert!(arena.get(u64::MAX >> 1).is_none());
    }
}
