//! A bucket of a hash table: a header, which is what a lookup reads, and a back, which it rarely does.
//!
//! | bytes of the header | |
//! |---|---|
//! | 0..8 | eight tags of one byte; 0: the slot is empty |
//! | 8..16 | eight distances of one byte: how far after the home's first place ([`super::hash`]) the entry stands; 255: where the reference says |
//!
//! | bytes of the back | |
//! |---|---|
//! | 0..4 | link: index of the next overflow bucket plus one; 0 ends the chain. It means something only in a full bucket, and in a free one |
//! | 4..16 | zero |
//! | 16..48 | eight references of four bytes: indexes of entries. Each means something only where the distance is 255 |
//!
//! Headers lie side by side, so that those of a large table stay in a cache that the whole buckets would
//! not fit, and so do backs.

use crate::access::{Access, MemoryFault};
use offmap_abi::DevAddr;

/// Bytes of a header.
pub const HEADER_BYTES: u64 = 16;
/// Bytes of a back.
pub const BACK_BYTES: u64 = 48;
/// Entries that a bucket refers to.
pub const BUCKET_SLOTS: u32 = 8;
/// The distance of an entry that stands elsewhere.
pub(crate) const FAR: u8 = 255;

const LINK: u64 = 0;
const REFERENCES: u64 = 16;

const LOW_SEVEN: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const ONES: u64 = 0x0101_0101_0101_0101;

/// The tag of a hash: its top byte, which the choice of home buckets does not use; never 0.
#[inline(always)]
pub(crate) fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// A copy of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) tags: Tags,
    /// Slot 0 is the lowest byte.
    distances: u64,
}

impl Header {
    /// That of an empty bucket.
    pub(crate) const EMPTY: Self = Self {
        tags: Tags(0),
        distances: 0,
    };

    /// Reads the header at `at`: one access.
    #[inline(always)]
    pub(crate) fn read(access: &mut impl Access, at: DevAddr) -> Result<Self, MemoryFault> {
        access.with_bytes(at, HEADER_BYTES as usize, Self::of)
    }

    /// The header at `at` as [`Access::peek`] sees it.
    #[inline(always)]
    pub(crate) fn peek(access: &mut impl Access, at: DevAddr) -> Option<Self> {
        access.peek(at, HEADER_BYTES as usize, Self::of)
    }

    /// Two words: put together as one of 16 bytes, they would be loaded byte by byte.
    #[inline(always)]
    fn of(bytes: &[u8]) -> Self {
        let word = |bytes: &[[u8; 8]], index| {
            let word: Option<&[u8; 8]> = bytes.get(index);
            word.map_or(0, |word| u64::from_le_bytes(*word))
        };
        let words = bytes.as_chunks::<8>().0;
        Self {
            tags: Tags(word(words, 0)),
            distances: word(words, 1),
        }
    }

    /// Writes it: one access.
    pub(crate) fn write(self, access: &mut impl Access, at: DevAddr) -> Result<(), MemoryFault> {
        let both = u128::from(self.distances) << 64 | u128::from(self.tags.0);
        access.write(at, both.to_le_bytes())
    }

    /// The distance in `slot`.
    #[inline(always)]
    pub(crate) fn distance(self, slot: u32) -> u8 {
        (self.distances >> (8 * (slot & 7))) as u8
    }

    /// The distance in the first slot with `tag`, which is not 0.
    #[inline(always)]
    pub(crate) fn first_distance(self, tag: u8) -> Option<u8> {
        let x = self.tags.0 ^ (ONES * u64::from(tag));
        // The lowest bit is exact: a borrow goes up from a slot that matches.
        let found = x.wrapping_sub(ONES) & !x & !LOW_SEVEN;
        let shift = found.trailing_zeros() & 0x38;
        (found != 0).then(|| (self.distances >> shift) as u8)
    }

    /// With a tag and a distance in `slot`.
    #[must_use]
    pub(crate) fn with(self, slot: u32, tag: u8, distance: u8) -> Self {
        Self {
            tags: self.tags.with(slot, tag),
            distances: Tags(self.distances).with(slot, distance).0,
        }
    }
}

/// Reads the link of the back at `at`.
pub(crate) fn read_link(access: &mut impl Access, at: DevAddr) -> Result<u32, MemoryFault> {
    access.read_u32(at.offset(LINK))
}

/// Stores it.
pub(crate) fn write_link(
    access: &mut impl Access,
    at: DevAddr,
    link: u32,
) -> Result<(), MemoryFault> {
    access.write_u32(at.offset(LINK), link)
}

fn reference_at(at: DevAddr, slot: u32) -> DevAddr {
    at.offset(REFERENCES + 4 * u64::from(slot & 7))
}

/// Reads the reference in `slot` of the back at `at`.
pub(crate) fn read_reference(
    access: &mut impl Access,
    at: DevAddr,
    slot: u32,
) -> Result<u32, MemoryFault> {
    access.read_u32(reference_at(at, slot))
}

/// Stores it.
pub(crate) fn write_reference(
    access: &mut impl Access,
    at: DevAddr,
    slot: u32,
    reference: u32,
) -> Result<(), MemoryFault> {
    access.write_u32(reference_at(at, slot), reference)
}

/// The eight tags of a bucket; slot 0 is the lowest byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tags(pub(crate) u64);

impl Tags {
    /// The slots that hold exactly `tag`.
    #[inline(always)]
    pub(crate) fn matches(self, tag: u8) -> Slots {
        let x = self.0 ^ (ONES * u64::from(tag));
        // The sum sets a byte's top bit when any low bit is set, and never carries out of
        // its byte, so the result is exact: an empty slot is never taken for a match.
        Slots(!(((x & LOW_SEVEN) + LOW_SEVEN) | x | LOW_SEVEN))
    }

    /// Whether all slots are in use.
    #[inline(always)]
    pub(crate) fn is_full(self) -> bool {
        self.matches(0).0 == 0
    }

    /// The slots in use.
    #[inline(always)]
    pub(crate) fn used(self) -> Slots {
        Slots(!self.matches(0).0 & !LOW_SEVEN)
    }

    /// The tag in `slot`.
    pub(crate) fn get(self, slot: u32) -> u8 {
        (self.0 >> (8 * (slot & 7))) as u8
    }

    /// The tags with `tag` in `slot`.
    #[must_use]
    pub(crate) fn with(self, slot: u32, tag: u8) -> Self {
        let shift = 8 * (slot & 7);
        Self(self.0 & !(0xff << shift) | u64::from(tag) << shift)
    }
}

/// A set of slots of one bucket, iterated from slot 0 up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slots(pub(crate) u64);

impl Slots {
    /// The lowest slot.
    #[inline(always)]
    pub(crate) fn first(self) -> Option<u32> {
        (self.0 != 0).then(|| self.0.trailing_zeros() / 8)
    }

    /// The highest slot.
    pub(crate) fn last(self) -> Option<u32> {
        (self.0 != 0).then(|| 7 - self.0.leading_zeros() / 8)
    }

    /// How many there are.
    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }
}

impl Iterator for Slots {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        let slot = self.first()?;
        self.0 &= self.0 - 1;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_matching_agrees_with_a_byte_loop() {
        let mut word = 0x0001_80ff_7f00_01feu64;
        for round in 0..20_000u64 {
            let tags = Tags(word);
            for tag in [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, (round % 256) as u8] {
                let slow: alloc::vec::Vec<u32> = (0..8).filter(|&s| tags.get(s) == tag).collect();
                let fast: alloc::vec::Vec<u32> = tags.matches(tag).collect();
                assert_eq!(fast, slow, "tags {word:#x} tag {tag:#x}");
            }
            let used: alloc::vec::Vec<u32> = (0..8).filter(|&s| tags.get(s) != 0).collect();
            assert_eq!(tags.used().last(), used.last().copied());
            assert_eq!(tags.used().len(), used.len() as u32);
            // Bytes of few values, so that neighbours are often one apart: the case in which
            // the inexact form of the trick reports a false match.
            word = word
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            if round % 2 == 0 {
                word &= 0x8101_8101_0181_0101;
            }
        }
    }

    #[test]
    fn a_tag_is_never_the_empty_mark() {
        assert_eq!(tag_of(0), 1);
        assert_eq!(tag_of(u64::MAX), 0xff);
    }
}
