//! I/O virtual addresses, and who may use which.

use crate::IoError;
use crate::dma::PAGE_BYTES;
use std::collections::BTreeMap;
use std::fmt;

/// An address as the device sees host memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iova:{:#x}", self.0)
    }
}

/// A range of IOVAs, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaRange {
    /// First address.
    pub first: Iova,
    /// Last address.
    pub last: Iova,
}

/// Hands out page-aligned IOVA ranges, lowest first, and takes them back.
#[derive(Debug)]
pub struct IovaAllocator {
    /// Free pieces: first address → number of bytes. No two are adjacent.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// An allocator over the pages that lie wholly inside `ranges`, which are disjoint and in
    /// any order. The page at IOVA 0 is left out, so that 0 can stand for "none".
    pub fn new(ranges: &[IovaRange]) -> Self {
        let page = PAGE_BYTES as u64;
        let mut this = Self {
            free: BTreeMap::new(),
        };
        for range in ranges {
            let first = range.first.0.max(page).checked_next_multiple_of(page);
            // One past the last whole page; a range may end at the top of the address space.
            let end = range.last.0.saturating_add(1) / page * page;
            if let Some(first) = first.filter(|first| *first < end) {
                this.insert(first, end - first);
            }
        }
        this
    }

    /// Takes `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`IoError::IovaExhausted`] when no free piece is large enough.
    pub fn allocate(&mut self, len: usize) -> Result<Iova, IoError> {
        let bytes = Self::rounded(len);
        let found = self.free.iter().find(|(_, size)| **size >= bytes);
        let Some((&first, &size)) = found else {
            return Err(IoError::IovaExhausted {
                len,
                free: self.free_bytes(),
            });
        };
        self.free.remove(&first);
        if size > bytes {
            self.free.insert(first + bytes, size - bytes);
        }
        Ok(Iova(first))
    }

    /// Gives back what [`IovaAllocator::allocate`] returned for `len`.
    ///
    /// # Panics
    ///
    /// If any of the range is free already: a double free is a fault of the caller.
    pub fn free(&mut self, iova: Iova, len: usize) {
        self.insert(iova.0, Self::rounded(len));
    }

    /// Bytes not in use.
    pub fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }

    fn rounded(len: usize) -> u64 {
        len.max(1).next_multiple_of(PAGE_BYTES) as u64
    }

    fn insert(&mut self, mut first: u64, mut size: u64) {
        if let Some((&before, &before_size)) = self.free.range(..=first).next_back() {
            assert!(before + before_size <= first, "IOVA {first:#x} freed twice");
            if before + before_size == first {
                self.free.remove(&before);
                first = before;
                size += before_size;
            }
        }
        if let Some((&after, &after_size)) = self.free.range(first..).next() {
            assert!(first + size <= after, "IOVA {after:#x} freed twice");
            if first + size == after {
                self.free.remove(&after);
                size += after_size;
            }
        }
        self.free.insert(first, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange {
            first: Iova(first),
            last: Iova(last),
        }
    }

    #[test]
    fn whole_pages_only_and_never_page_zero() {
        let a = IovaAllocator::new(&[range(0, 0x3fff), range(0x1_0001, 0x1_2ffe)]);
        assert_eq!(a.free_bytes(), 3 * 4096 + 4096);
        assert_eq!(IovaAllocator::new(&[range(0, 0xffe)]).free_bytes(), 0);
    }

    #[test]
    fn the_top_of_the_address_space_does_not_wrap() {
        let mut a = IovaAllocator::new(&[range(u64::MAX - 0x1fff, u64::MAX)]);
        assert!(a.free_bytes() >= 4096);
        assert!(a.allocate(4096).is_ok());
    }

    #[test]
    fn allocations_are_disjoint_and_come_back_whole() {
        let mut a = IovaAllocator::new(&[range(0x1000, 0xffff)]);
        let total = a.free_bytes();
        let x = a.allocate(1).unwrap();
        let y = a.allocate(0x2000).unwrap();
        let z = a.allocate(0x1000).unwrap();
        assert_eq!((x.0, y.0, z.0), (0x1000, 0x2000, 0x4000));
        a.free(y, 0x2000);
        assert_eq!(a.allocate(0x1800).unwrap(), y, "the lowest piece that fits");
        a.free(x, 1);
        a.free(z, 0x1000);
        a.free(y, 0x1800);
        assert_eq!(a.free_bytes(), total);
        assert_eq!(
            a.allocate(0xf000).unwrap().0,
            0x1000,
            "the pieces joined up"
        );
    }

    #[test]
    fn exhaustion_says_how_much_is_free() {
        let mut a = IovaAllocator::new(&[range(0x1000, 0x2fff)]);
        match a.allocate(0x3000) {
            Err(IoError::IovaExhausted { len, free }) => assert_eq!((len, free), (0x3000, 0x2000)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_is_caught() {
        let mut a = IovaAllocator::new(&[range(0x1000, 0xffff)]);
        let x = a.allocate(0x2000).unwrap();
        a.free(x, 0x2000);
        a.free(Iova(x.0 + 0x1000), 0x1000);
    }
}
