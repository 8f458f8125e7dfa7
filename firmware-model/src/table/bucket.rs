//! A bucket of a hash table: one 64-byte line.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | sequence word, for the mirrors' readers; zero until there are mirrors |
//! | 8..12 | link: index of the next overflow bucket plus one; 0 ends the chain |
//! | 12..16 | zero |
//! | 16..24 | eight tags of one byte; 0: the slot is empty |
//! | 24..32 | zero |
//! | 32..64 | eight references of four bytes: indexes of entries |

use crate::access::{Access, MemoryFault};
use offmap_abi::DevAddr;

/// Bytes of a bucket.
pub const BUCKET_BYTES: u64 = 64;
/// Entries that a bucket refers to.
pub const BUCKET_SLOTS: u32 = 8;

const LINK: u64 = 8;
const TAGS: u64 = 16;
const REFERENCES: u64 = 32;

const LOW_SEVEN: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const ONES: u64 = 0x0101_0101_0101_0101;

/// The tag of a hash: its top byte, which the choice of home buckets does not use; never 0.
#[inline(always)]
pub(crate) fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// A copy of a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    line: [u8; BUCKET_BYTES as usize],
}

impl Bucket {
    /// Reads the bucket at `at`: one access.
    #[inline(always)]
    pub(crate) fn read(access: &mut impl Access, at: DevAddr) -> Result<Self, MemoryFault> {
        Ok(Self {
            line: access.read(at)?,
        })
    }

    /// What a lookup of `tag` needs of the bucket at `at`, without a copy of the line: one
    /// access.
    #[inline(always)]
    pub(crate) fn probe(
        access: &mut impl Access,
        at: DevAddr,
        tag: u8,
    ) -> Result<Probe, MemoryFault> {
        access.with_bytes(at, BUCKET_BYTES as usize, |line| {
            let Ok(line) = <&[u8; BUCKET_BYTES as usize]>::try_from(line) else {
                return Err(MemoryFault::OutOfRange);
            };
            let mut rest = tags_of(line).matches(tag);
            let candidate = rest.next().map(|slot| reference_of(line, slot));
            Ok(Probe {
                candidate,
                rest,
                link: link_of(line),
            })
        })?
    }

    /// The bucket at `at` as [`Access::peek`] sees it.
    #[inline(always)]
    pub(crate) fn peek(access: &mut impl Access, at: DevAddr) -> Option<Self> {
        let line = access.peek(at, BUCKET_BYTES as usize, |line| line.try_into().ok())??;
        Some(Self { line })
    }

    /// The candidate of [`Bucket::probe`], likewise.
    #[inline(always)]
    pub(crate) fn peek_candidate(access: &mut impl Access, at: DevAddr, tag: u8) -> Option<u32> {
        access.peek(at, BUCKET_BYTES as usize, |line| {
            let line = line.try_into().ok()?;
            let slot = tags_of(line).matches(tag).first()?;
            Some(reference_of(line, slot))
        })?
    }

    /// Writes a whole bucket with one reference in it.
    pub(crate) fn write_new(
        access: &mut impl Access,
        at: DevAddr,
        tag: u8,
        reference: u32,
    ) -> Result<(), MemoryFault> {
        let mut line = [0; BUCKET_BYTES as usize];
        line[TAGS as usize] = tag;
        line[REFERENCES as usize..][..4].copy_from_slice(&reference.to_le_bytes());
        access.write(at, line)
    }

    /// Writes a bucket without references that links to `link`.
    pub(crate) fn write_empty(
        access: &mut impl Access,
        at: DevAddr,
        link: u32,
    ) -> Result<(), MemoryFault> {
        let mut line = [0; BUCKET_BYTES as usize];
        line[LINK as usize..][..4].copy_from_slice(&link.to_le_bytes());
        access.write(at, line)
    }

    /// Stores the link of the bucket at `at`.
    pub(crate) fn write_link(
        access: &mut impl Access,
        at: DevAddr,
        link: u32,
    ) -> Result<(), MemoryFault> {
        access.write_u32(at.offset(LINK), link)
    }

    /// Stores the eight tags of the bucket at `at`.
    pub(crate) fn write_tags(
        access: &mut impl Access,
        at: DevAddr,
        tags: Tags,
    ) -> Result<(), MemoryFault> {
        access.write_u64(at.offset(TAGS), tags.0)
    }

    /// Stores the reference in `slot` of the bucket at `at`.
    pub(crate) fn write_reference(
        access: &mut impl Access,
        at: DevAddr,
        slot: u32,
        reference: u32,
    ) -> Result<(), MemoryFault> {
        access.write_u32(at.offset(REFERENCES + 4 * u64::from(slot & 7)), reference)
    }

    /// Link to the next bucket: its index plus one; 0: none.
    #[inline(always)]
    pub(crate) fn link(&self) -> u32 {
        link_of(&self.line)
    }

    /// The tags.
    #[inline(always)]
    pub(crate) fn tags(&self) -> Tags {
        tags_of(&self.line)
    }

    /// The reference in `slot`.
    #[inline(always)]
    pub(crate) fn reference(&self, slot: u32) -> u32 {
        reference_of(&self.line, slot)
    }
}

/// What [`Bucket::probe`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// The reference in the first slot with the tag.
    pub(crate) candidate: Option<u32>,
    /// The other slots with the tag.
    pub(crate) rest: Slots,
    /// The bucket's link.
    pub(crate) link: u32,
}

impl Probe {
    /// What an empty bucket yields.
    pub(crate) const EMPTY: Self = Self {
        candidate: None,
        rest: Slots(0),
        link: 0,
    };

    /// Whether there is nothing to look at beyond the candidate.
    #[inline(always)]
    pub(crate) fn is_last(&self) -> bool {
        self.rest.first().is_none() && self.link == 0
    }
}

type Line = [u8; BUCKET_BYTES as usize];

#[inline(always)]
fn link_of(line: &Line) -> u32 {
    u32::from_le_bytes([line[8], line[9], line[10], line[11]])
}

#[inline(always)]
fn tags_of(line: &Line) -> Tags {
    let mut word = [0; 8];
    word.copy_from_slice(&line[16..24]);
    Tags(u64::from_le_bytes(word))
}

#[inline(always)]
fn reference_of(line: &Line, slot: u32) -> u32 {
    let at = 32 + 4 * (slot & 7) as usize;
    let mut word = [0; 4];
    word.copy_from_slice(&line[at..at + 4]);
    u32::from_le_bytes(word)
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
pub(crate) struct Slots(u64);

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
