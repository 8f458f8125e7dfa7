//! Zeroed words of which an untouched page takes no memory, in huge pages where there are many.
//!
//! In a table of a million elements on small pages a lookup that waits for the one before takes
//! a quarter longer (`docs/performance.md`). Huge pages are asked for, and had where the machine
//! allows it (`/sys/kernel/mm/transparent_hugepage/enabled`: `always` or `madvise`).
//!
//! Unsafe: an anonymous mapping seen as words.
#![allow(unsafe_code, reason = "see above")]

use memmap2::{Advice, MmapMut};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use zerocopy::FromZeros;

/// Bytes of a huge page, of which a mapping has a whole number.
const HUGE_PAGE: usize = 2 << 20;

/// What the heap gives them in, so that the first word begins a cache line.
#[derive(FromZeros)]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

/// Words that begin as zeroes, the first of them at the beginning of a cache line.
pub(crate) struct ZeroedWords {
    words: NonNull<AtomicU64>,
    len: usize,
    _owner: Owner,
}

/// What the words go with.
enum Owner {
    Heap(#[allow(dead_code, reason = "owned, not looked at")] Box<[Line]>),
    Mapping(#[allow(dead_code, reason = "owned, not looked at")] MmapMut),
}

// SAFETY: the words are atomics, which threads may share, and their memory belongs to the owner,
// which is Send and Sync.
unsafe impl Send for ZeroedWords {}
// SAFETY: as above.
unsafe impl Sync for ZeroedWords {}

impl ZeroedWords {
    /// `len` zeroes; `None` when there is no memory for them.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<AtomicU64>())?;
        if bytes < HUGE_PAGE {
            let mut heap = <[Line]>::new_box_zeroed_with_elems(len.div_ceil(8)).ok()?;
            return Some(Self {
                words: NonNull::new(heap.as_mut_ptr())?.cast(),
                len,
                _owner: Owner::Heap(heap),
            });
        }
        let mut map = MmapMut::map_anon(bytes.checked_next_multiple_of(HUGE_PAGE)?).ok()?;
        // A kernel without huge pages refuses, and small ones do.
        let _ = map.advise(Advice::HugePage);
        Some(Self {
            words: NonNull::new(map.as_mut_ptr())?.cast(),
            len,
            _owner: Owner::Mapping(map),
        })
    }
}

impl Deref for ZeroedWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `len` words lie at `words` for as long as the owner lives, which is as long as
        // `self`; they were zeroed, which is a valid AtomicU64, are aligned as a cache line or a
        // page are, and nobody reaches them but through here.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn zeroes_that_can_be_stored_to() {
        for len in [0, 1, 1000, HUGE_PAGE / 8 - 1, HUGE_PAGE / 8, HUGE_PAGE] {
            let words = ZeroedWords::new(len).expect("memory");
            assert_eq!(words.len(), len);
            assert_eq!(words.as_ptr().addr() % 64, 0);
            assert!(words.iter().all(|word| word.load(Relaxed) == 0));
            for at in [0, len / 2, len.saturating_sub(1)] {
                if let Some(word) = words.get(at) {
                    word.store(at as u64 + 1, Relaxed);
                    assert_eq!(word.load(Relaxed), at as u64 + 1);
                }
            }
        }
        assert!(ZeroedWords::new(usize::MAX / 8).is_none());
        assert!(ZeroedWords::new(usize::MAX).is_none());
    }
}
