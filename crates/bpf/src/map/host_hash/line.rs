//! A cache line of the table: where the elements of four neighbouring buckets are.

use super::super::words::Backoff;
use super::free::NIL;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

/// Log2 of the buckets that share a line.
pub(super) const BUCKET_BITS: u32 = 2;
/// Buckets that share a line.
pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;
/// Elements that a line has places for.
pub(super) const PLACES: usize = 8;

/// Words of a line.
pub(super) const WORDS: usize = 8;

/// Lock bit of word 0; the version counts above it.
const LOCKED: u64 = 1;
const VERSION: u64 = 2;

const TAGS: usize = 1;
const ENTRIES: usize = 2;
const NEXT: usize = 6;

const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = LOW_BITS << 7;

/// Where an element of the table is: its slot's link in the low 28 bits, and above them which
/// of its line's buckets it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u32);

impl Entry {
    const LINK_BITS: u32 = 28;

    /// The entry of a slot; a hash map has at most 2^27 of them.
    pub(super) const fn new(link: u32, bucket: usize) -> Self {
        Self(link | ((bucket % BUCKETS) as u32) << Self::LINK_BITS)
    }

    pub(super) const fn link(self) -> u32 {
        self.0 & ((1 << Self::LINK_BITS) - 1)
    }

    /// Whether it belongs to `bucket`, which shares its line.
    pub(super) const fn is_of(self, bucket: usize) -> bool {
        self.0 >> Self::LINK_BITS == (bucket % BUCKETS) as u32
    }
}

/// Eight tags, eight entries in the same order, and where further places are. A tag is a byte
/// of the element's hash and never 0, which marks a free place. Used places come first, those
/// of one bucket in the order of its chain, the newest element before the older ones. Only the
/// last line of several has free places.
///
/// Word 0 is a lock bit and a version in the line that buckets lead to, and the free stack's
/// link in a spare line. 63 bits of version do not come round.
#[derive(Clone, Copy)]
pub(super) struct Line<'a>(&'a [AtomicU64; WORDS]);

/// The used part of a line, for changes; the caller holds the lock.
struct Places {
    tags: [u8; PLACES],
    entries: [Entry; PLACES],
}

impl<'a> Line<'a> {
    #[inline]
    pub(super) const fn new(words: &'a [AtomicU64; WORDS]) -> Self {
        Self(words)
    }

    /// Whether both are the same line.
    pub(super) fn is(self, other: Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }

    /// The word that the free stack may use while the line is spare.
    pub(super) const fn free_word(self) -> &'a AtomicU64 {
        &self.0[0]
    }

    /// A bit at the top of the byte of each place that has this tag. Places above one that has
    /// it may come up too without having it, free ones included.
    #[inline]
    pub(super) fn matches(self, tag: u8) -> u64 {
        let differing = self.0[TAGS].load(Relaxed) ^ (LOW_BITS * u64::from(tag));
        differing.wrapping_sub(LOW_BITS) & !differing & HIGH_BITS
    }

    /// How many of the places are used.
    #[inline]
    pub(super) fn used(self) -> usize {
        PLACES - self.0[TAGS].load(Relaxed).leading_zeros() as usize / 8
    }

    #[inline]
    pub(super) fn entry(self, place: usize) -> Entry {
        let word = self.0[ENTRIES + place % PLACES / 2].load(Relaxed);
        Entry((word >> (place % 2 * 32)) as u32)
    }

    /// Link of the line where the places go on, or [`NIL`].
    #[inline]
    pub(super) fn next(self) -> u32 {
        self.0[NEXT].load(Relaxed) as u32
    }

    pub(super) fn set_next(self, link: u32) {
        self.0[NEXT].store(u64::from(link), Relaxed);
    }

    pub(super) fn is_full(self) -> bool {
        self.used() == PLACES
    }

    /// Makes a line that was spare one without elements.
    pub(super) fn clear(self) {
        self.0[TAGS].store(0, Relaxed);
        self.set_next(NIL);
    }

    fn places(self) -> Places {
        Places {
            tags: self.0[TAGS].load(Relaxed).to_le_bytes(),
            entries: std::array::from_fn(|place| self.entry(place)),
        }
    }

    fn store(self, places: &Places) {
        self.0[TAGS].store(u64::from_le_bytes(places.tags), Relaxed);
        let (pairs, _) = places.entries.as_chunks::<2>();
        for (word, [low, high]) in self.0[ENTRIES..NEXT].iter().zip(pairs) {
            word.store(u64::from(high.0) << 32 | u64::from(low.0), Relaxed);
        }
    }

    /// Tag and entry of a place.
    pub(super) fn at(self, place: usize) -> (u8, Entry) {
        let places = self.places();
        (places.tags[place], places.entries[place])
    }

    /// Puts an element first and moves those before place `last` up by one; returns what was
    /// there, tag 0 for nothing.
    pub(super) fn push_front(self, (tag, entry): (u8, Entry), last: usize) -> (u8, Entry) {
        let mut places = self.places();
        let out = (places.tags[last], places.entries[last]);
        places.tags[..=last].rotate_right(1);
        places.entries[..=last].rotate_right(1);
        (places.tags[0], places.entries[0]) = (tag, entry);
        self.store(&places);
        out
    }

    /// Takes the element at `place` out, moves the later ones down by one and puts `after`, the
    /// first of the next line, behind them.
    pub(super) fn remove(self, place: usize, after: (u8, Entry)) {
        let mut places = self.places();
        places.tags[place..].rotate_left(1);
        places.entries[place..].rotate_left(1);
        (places.tags[PLACES - 1], places.entries[PLACES - 1]) = after;
        self.store(&places);
    }

    /// What no place holds.
    pub(super) const NOTHING: (u8, Entry) = (0, Entry(0));

    /// The version, and whether somebody holds the lock, to begin an optimistic read.
    #[inline]
    pub(super) fn begin_read(self) -> Result<u64, Locked> {
        match self.0[0].load(Acquire) {
            word if word & LOCKED == 0 => Ok(word),
            _ => Err(Locked),
        }
    }

    /// Whether nothing changed since `word` was read: then what was read belongs together. The
    /// holder of the lock may ask it too.
    #[inline]
    pub(super) fn is_still(self, word: u64) -> bool {
        fence(Acquire);
        (self.0[0].load(Relaxed) ^ word) & !LOCKED == 0
    }

    /// As [`Line::is_still`], and nobody has locked it.
    #[inline]
    pub(super) fn end_read(self, word: u64) -> bool {
        fence(Acquire);
        self.0[0].load(Relaxed) == word
    }
}

/// A writer holds the line.
pub(super) struct Locked;

/// A line, and with it its buckets, under the lock.
pub(super) struct Guard<'a> {
    pub(super) home: Line<'a>,
    /// Word 0 without the lock bit.
    pub(super) word: u64,
    /// Readers that overlap with this have to read again.
    pub(super) changed: bool,
}

impl<'a> Guard<'a> {
    pub(super) fn lock(home: Line<'a>) -> Self {
        let mut backoff = Backoff::new();
        loop {
            let word = home.0[0].load(Relaxed);
            if word & LOCKED == 0
                && home.0[0]
                    .compare_exchange_weak(word, word | LOCKED, Acquire, Relaxed)
                    .is_ok()
            {
                // Orders the lock bit before the stores that follow: a reader that sees one of
                // them sees the word changed.
                fence(Release);
                return Self {
                    home,
                    word,
                    changed: false,
                };
            }
            backoff.wait();
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let word = if self.changed {
            self.word.wrapping_add(VERSION)
        } else {
            self.word
        };
        self.home.0[0].store(word, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(line: Line<'_>) -> Vec<(u8, u32)> {
        (0..line.used())
            .map(|place| (line.at(place).0, line.entry(place).link()))
            .collect()
    }

    #[test]
    fn places_keep_their_order() {
        let words = Default::default();
        let line = Line::new(&words);
        for n in 1..=PLACES as u32 {
            assert!(!line.is_full());
            let out = line.push_front((n as u8, Entry::new(n, n as usize)), PLACES - 1);
            assert!(out == Line::NOTHING);
        }
        assert!(line.is_full());
        let newest_first: Vec<_> = (1..=8u32).rev().map(|n| (n as u8, n)).collect();
        assert_eq!(listed(line), newest_first);
        let (tag, entry) = line.push_front((9, Entry::new(9, 1)), PLACES - 1);
        assert_eq!((tag, entry.link()), (1, 1));
        line.remove(2, Line::NOTHING);
        assert_eq!(listed(line)[..3], [(9, 9), (8, 8), (6, 6)]);
        assert_eq!(line.used(), 7);
        line.push_front(line.at(2), 2);
        assert_eq!(listed(line)[..4], [(6, 6), (9, 9), (8, 8), (5, 5)]);
        assert_eq!(line.used(), 7);
    }

    #[test]
    fn tags_are_found() {
        let words = Default::default();
        let line = Line::new(&words);
        for tag in [0x80, 1, 0xff, 0x7f, 0x80] {
            line.push_front((tag, Entry::new(1 << 27, 3)), PLACES - 1);
        }
        for (tag, places) in [(0x80, 0x80_u64 | 0x80 << 32), (1, 0x80 << 24), (2, 0)] {
            let found = line.matches(tag);
            assert_eq!(found & places, places, "tag {tag:#x}: {found:#x}");
            assert_eq!(found & (places.wrapping_sub(1) & !places) & 0xff, 0);
        }
        assert_eq!(line.entry(4).link(), 1 << 27);
        assert!(line.entry(4).is_of(7) && !line.entry(4).is_of(2));
    }
}
