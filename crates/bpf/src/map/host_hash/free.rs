//! The numbered items of a table, handed out and taken back without a lock.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

/// No item: items are linked as index + 1, so that zeroed memory links nothing.
pub(super) const NIL: u32 = 0;

/// The stack of items that were used before, and the count of those used at least once. A
/// free item keeps the link to the next one in a word of its own.
///
/// On a cache line apart from what readers use.
#[repr(align(64))]
pub(super) struct FreeItems {
    /// Tag in the high half, link in the low. A pop would have to sleep for exactly a multiple
    /// of 2^32 stack operations to take a tag for its own.
    head: AtomicU64,
    used: AtomicU64,
    /// Items that are out now.
    taken: AtomicU64,
    items: u32,
}

impl FreeItems {
    pub(super) const fn new(items: u32) -> Self {
        Self {
            head: AtomicU64::new(NIL as u64),
            used: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            items,
        }
    }

    /// How many items are in use; beside threads that take and give, how many were about now.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// An item's link, or `None` when all are in use. `word` gives an item's word for the
    /// stack.
    pub(super) fn take<'a>(&self, word: impl Fn(u32) -> Option<&'a AtomicU64>) -> Option<u32> {
        loop {
            // In this order: if every item had been used before the stack was seen empty, then
            // at that moment all were in use.
            let used = self.used.load(Acquire);
            let mut head = self.head.load(Acquire);
            while head as u32 != NIL {
                let word = word(head as u32)?;
                let next = u64::from(word.load(Relaxed) as u32);
                let new = (head >> 32).wrapping_add(1) << 32 | next;
                match self.head.compare_exchange_weak(head, new, AcqRel, Acquire) {
                    Ok(_) => {
                        // Orders what the last owner did before our stores to the item: a
                        // reader that sees one of them sees that owner's line changed.
                        fence(Release);
                        self.taken.fetch_add(1, Relaxed);
                        return Some(head as u32);
                    }
                    Err(now) => head = now,
                }
            }
            if used >= u64::from(self.items) {
                return None;
            }
            if self
                .used
                .compare_exchange(used, used + 1, AcqRel, Relaxed)
                .is_ok()
            {
                self.taken.fetch_add(1, Relaxed);
                return Some(used as u32 + 1);
            }
        }
    }

    /// Takes back the item of `link`, whose word for the stack is `word`.
    pub(super) fn give(&self, link: u32, word: &AtomicU64) {
        self.taken.fetch_sub(1, Relaxed);
        let mut head = self.head.load(Relaxed);
        loop {
            word.store(head & 0xffff_ffff, Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(link);
            match self.head.compare_exchange_weak(head, new, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}
