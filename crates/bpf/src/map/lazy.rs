//! A table of fixed-size items in zeroed memory that the operating system gives page by page.
//!
//! A map of ten million entries is created at once and costs memory as it fills: the table is
//! one allocation of zeroes, of which an untouched page takes none. A map that could never be
//! held is refused when it is made, as in the kernel. In one piece an item is found with a
//! multiplication, and huge pages can hold it.

use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::zeroed::ZeroedWords;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Log2 of the words that one bit of [`LazyTable::stored`] stands for: 64 KiB.
const SPAN_BITS: u32 = 13;

/// `items` items of `item_words` words each.
pub(crate) struct LazyTable {
    /// The first item begins a cache line.
    words: ZeroedWords,
    items: usize,
    item_words: usize,
    /// A bit for each 64 KiB in which an item may be other than zeroes.
    stored: ZeroedWords,
}

impl LazyTable {
    /// A table of zeroes. `what` names it in the reason of an ENOMEM.
    pub(crate) fn new(items: usize, item_words: usize, what: &str) -> Result<Self> {
        let too_big = || {
            Error::because(
                Errno::ENOMEM,
                format!("{items} {what} of {item_words} words exceed the memory that can be had"),
            )
        };
        let zeroes = |words| ZeroedWords::new(words).ok_or_else(too_big);
        let words = items.checked_mul(item_words).ok_or_else(too_big)?;
        let stored = zeroes((words >> SPAN_BITS) / 64 + 1)?;
        let words = zeroes(words)?;
        Ok(Self {
            words,
            items,
            item_words,
            stored,
        })
    }

    /// The item. The index is below the number of items; one that is not gives `None`, or words
    /// that no item has.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&[AtomicU64]> {
        self.from(index)?.get(..self.item_words)
    }

    /// The first `N` words of the item, as [`LazyTable::get`].
    #[inline]
    pub(crate) fn get_words<const N: usize>(&self, index: usize) -> Option<&[AtomicU64; N]> {
        self.from(index)?.first_chunk()
    }

    /// The item and all that follow it, as [`LazyTable::get`]: for those who look at a few of
    /// its words, and need no other check than that these are there.
    #[inline]
    pub(crate) fn from(&self, index: usize) -> Option<&[AtomicU64]> {
        self.words.get(index * self.item_words..)
    }

    /// Tables of items of `N` words: the item. One check, and no multiplication.
    #[inline]
    pub(crate) fn chunk<const N: usize>(&self, index: usize) -> Option<&[AtomicU64; N]> {
        debug_assert_eq!(self.item_words, N);
        self.words.as_chunks().0.get(index)
    }

    /// Says that the item is going to be stored to. Before the first store to it.
    #[inline]
    pub(crate) fn will_store(&self, index: usize) {
        let span = (index * self.item_words) >> SPAN_BITS;
        let Some(word) = self.stored.get(span / 64) else {
            return;
        };
        let bit = 1 << (span % 64);
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// The first index at or after `index` that may have been stored to, or the number of
    /// items.
    pub(crate) fn skip_untouched(&self, index: usize) -> usize {
        let span = (index * self.item_words) >> SPAN_BITS;
        let mut at = span / 64;
        let mut bits = self.stored.get(at).map_or(0, |word| word.load(Relaxed)) >> (span % 64);
        if bits & 1 != 0 {
            return index;
        }
        let mut first = span;
        while bits == 0 {
            at += 1;
            let Some(word) = self.stored.get(at) else {
                return self.items;
            };
            (first, bits) = (at * 64, word.load(Relaxed));
        }
        // An item that begins in an earlier span was marked with that one.
        let from = (first + bits.trailing_zeros() as usize) << SPAN_BITS;
        from.div_ceil(self.item_words).clamp(index, self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_begin_a_line_and_untouched_ones_are_skipped() {
        for item_words in [1, 8, 9, 20_000] {
            let table = LazyTable::new(3_000, item_words, "items").unwrap();
            assert_eq!(table.get(0).unwrap().as_ptr().addr() % 64, 0);
            assert_eq!(table.get(2_999).unwrap().len(), item_words);
            assert_eq!(table.skip_untouched(0), 3_000);
            for stored in [2_999, 1_500, 7] {
                table.will_store(stored);
                let found = table.skip_untouched(0);
                assert!(
                    found <= stored,
                    "{item_words} words: {found} is past {stored}"
                );
                assert!((stored - found) * item_words < 1 << SPAN_BITS);
                assert_eq!(table.skip_untouched(stored), stored);
            }
        }
        assert!(LazyTable::new(usize::MAX / 8, 9, "items").is_err());
    }
}
