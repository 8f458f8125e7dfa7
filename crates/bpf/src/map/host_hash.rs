//! HASH and PERCPU_HASH in host memory (`kernel/bpf/hashtab.c`).
//!
//! A power of two of buckets, at least `max_entries`; each is one word: the head of its chain,
//! a lock bit and a version. Writers hold the lock bit of one bucket, as kernel writers hold
//! `bucket.raw_lock`. Readers take no lock: they walk the chain, copy, and look whether the
//! word is still the one they started from, so a value is seen whole or not at all. A reader
//! that fails [`Backoff::READER_TRIES`] times takes the lock.
//!
//! Elements live in one table of `max_entries` slots, so that the capacity is exact. A slot is
//! one word of link and hash, the key, the value. Free slots form a stack, and a slot goes from
//! one bucket to another only through it. A reader that strayed into the new bucket with its
//! slot has to see its own bucket's word changed. Three steps make sure of that: the old
//! owner's lock bit comes before its push (Release), the push before the pop (Acquire), and
//! the pop before every store of the new owner (a release fence in `take_slot`, which the
//! reader's acquire fence pairs with). The pop's own Release would not do for the last: it
//! orders what precedes it. `tests/tests/litmus.rs` tries both forms under loom.
//!
//! Versions have 31 bits and the stack's tag 32: a reader would have to sleep for exactly a
//! multiple of 2^31 changes of one bucket, or a pop for 2^32 stack operations, to be misled.

use super::lazy::LazyTable;
use super::ops::MapOps;
use super::words::{Backoff, copy_in, copy_out, equal, words_for};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_EXIST, BPF_NOEXIST};
use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

/// End of a chain, in the form that a zeroed bucket has: slots are linked as index + 1.
const NIL: u32 = 0;
const LOCKED: u64 = 1 << 32;
const VERSION: u64 = 1 << 33;
/// Hops after which a reader makes sure that it is still on its chain.
const HOPS_PER_CHECK: u32 = 32;

pub(crate) const MISSING: Error = Error::new(Errno::ENOENT, "the map has no such key");
const PRESENT: Error = Error::new(
    Errno::EEXIST,
    "the key is in the map already, and BPF_NOEXIST was asked for",
);
const FULL: Error = Error::new(
    Errno::E2BIG,
    "the map holds max_entries entries and the key is new",
);
const END: Error = Error::new(Errno::ENOENT, "there is no further key in the map");
pub(crate) const BATCH_END: Error =
    Error::new(Errno::ENOENT, "the batch has reached the end of the map");
const BUCKET_TOO_BIG: Error = Error::new(
    Errno::ENOSPC,
    "the next bucket holds more elements than the batch has room for",
);
const BAD_TOKEN: Error = Error::new(
    Errno::ENOENT,
    "the batch token is at or past the number of buckets",
);

pub(crate) struct HostHash {
    secrets: RapidSecrets,
    mask: usize,
    key_size: usize,
    key_words: usize,
    value_bytes: usize,
    max_entries: u32,
    buckets: LazyTable,
    slots: LazyTable,
    free: FreeSlots,
}

/// The stack of slots that were used before, and the count of those used at least once. Apart
/// from what readers use.
#[repr(align(64))]
struct FreeSlots {
    /// Tag in the high half, link in the low.
    head: AtomicU64,
    used: AtomicU64,
}

/// Where a chain walk ended.
enum Walk<'a> {
    Found(&'a [AtomicU64], u32),
    Missing,
    /// The chain changed under the walk.
    Changed,
}

impl HostHash {
    /// An empty table. `value_bytes` is the size of a value as user space passes it.
    pub(crate) fn new(
        key_size: u32,
        value_bytes: usize,
        max_entries: u32,
        seed: u64,
    ) -> Result<Self> {
        let n_buckets = (max_entries as usize).next_power_of_two();
        let key_words = words_for(key_size as usize);
        Ok(Self {
            secrets: RapidSecrets::seed(seed),
            mask: n_buckets - 1,
            key_size: key_size as usize,
            key_words,
            value_bytes,
            max_entries,
            buckets: LazyTable::new(n_buckets, 1, "buckets")?,
            slots: LazyTable::new(
                max_entries as usize,
                1 + key_words + words_for(value_bytes),
                "elements",
            )?,
            free: FreeSlots {
                head: AtomicU64::new(0),
                used: AtomicU64::new(0),
            },
        })
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        rapidhash_v3_inline::<true, false, false>(key, &self.secrets)
    }

    #[inline]
    fn bucket(&self, index: usize) -> Option<&AtomicU64> {
        self.buckets.get(index)?.first()
    }

    #[inline]
    fn slot(&self, link: u32) -> Option<&[AtomicU64]> {
        self.slots.get(link.wrapping_sub(1) as usize)
    }

    #[inline]
    fn key_of<'a>(&self, slot: &'a [AtomicU64]) -> &'a [AtomicU64] {
        &slot[1..1 + self.key_words]
    }

    #[inline]
    fn value_of<'a>(&self, slot: &'a [AtomicU64]) -> &'a [AtomicU64] {
        &slot[1 + self.key_words..]
    }

    /// Looks for the key in the chain of `word`, which `cell` held.
    #[inline]
    fn find(&self, cell: &AtomicU64, word: u64, hash: u64, key: &[u8]) -> Walk<'_> {
        let tag = (hash >> 32) as u32;
        let mut link = word as u32;
        let mut hops = 0;
        while link != NIL {
            let Some(slot) = self.slot(link) else {
                return Walk::Changed;
            };
            let meta = slot[0].load(Relaxed);
            if (meta >> 32) as u32 == tag && equal(self.key_of(slot), key) {
                return Walk::Found(slot, link);
            }
            link = meta as u32;
            hops += 1;
            if hops % HOPS_PER_CHECK == 0 {
                fence(Acquire);
                if (cell.load(Relaxed) ^ word) & !LOCKED != 0 {
                    return Walk::Changed;
                }
            }
        }
        Walk::Missing
    }

    /// Runs `read` on a consistent state of the bucket: with no lock, or, when writers keep
    /// changing it, under the lock. `read` may run several times; `None` from it means that
    /// the chain changed.
    #[inline]
    fn read<R>(&self, cell: &AtomicU64, mut read: impl FnMut(u64) -> Option<R>) -> R {
        let mut backoff = Backoff::new();
        loop {
            let word = cell.load(Acquire);
            if word & LOCKED == 0 {
                let result = read(word);
                fence(Acquire);
                if let (Some(result), true) = (result, cell.load(Relaxed) == word) {
                    return result;
                }
            }
            if backoff.exhausted() {
                let guard = Bucket::lock(cell);
                if let Some(result) = read(guard.word) {
                    return result;
                }
            }
            backoff.wait();
        }
    }

    /// A slot for a new element, or E2BIG when all are in use.
    fn take_slot(&self) -> Result<u32> {
        loop {
            // In this order: if every slot had been used before the stack was seen empty, then
            // at that moment the map was full.
            let used = self.free.used.load(Acquire);
            let mut head = self.free.head.load(Acquire);
            while head as u32 != NIL {
                let Some(slot) = self.slot(head as u32) else {
                    return Err(FULL);
                };
                let next = u64::from(slot[0].load(Relaxed) as u32);
                let new = (head >> 32).wrapping_add(1) << 32 | next;
                match self
                    .free
                    .head
                    .compare_exchange_weak(head, new, AcqRel, Acquire)
                {
                    Ok(_) => {
                        // Orders what the last owner did before our stores to the slot: a
                        // reader that sees one of them sees that owner's bucket changed.
                        fence(Release);
                        return Ok(head as u32);
                    }
                    Err(now) => head = now,
                }
            }
            if used >= u64::from(self.max_entries) {
                return Err(FULL);
            }
            // The memory first, so that a slot is not lost when there is none.
            self.slots.get_or_alloc(used as usize)?;
            if self
                .free
                .used
                .compare_exchange(used, used + 1, AcqRel, Relaxed)
                .is_ok()
            {
                return Ok(used as u32 + 1);
            }
        }
    }

    fn give_slot(&self, slot: &[AtomicU64], link: u32) {
        let mut head = self.free.head.load(Relaxed);
        loop {
            let meta = slot[0].load(Relaxed);
            slot[0].store(meta & !0xffff_ffff | head & 0xffff_ffff, Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(link);
            match self
                .free
                .head
                .compare_exchange_weak(head, new, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the element out of its chain. The caller holds the bucket.
    fn unlink(&self, guard: &mut Bucket<'_>, slot: &[AtomicU64], link: u32) {
        let next = slot[0].load(Relaxed) as u32;
        let mut at = guard.head();
        if at == link {
            guard.set_head(next);
        } else {
            while let Some(previous) = self.slot(at) {
                let meta = previous[0].load(Relaxed);
                if meta as u32 == link {
                    previous[0].store(meta & !0xffff_ffff | u64::from(next), Relaxed);
                    break;
                }
                at = meta as u32;
            }
            guard.changed = true;
        }
        self.give_slot(slot, link);
    }

    fn remove(&self, key: &[u8], value: Option<&mut [u8]>) -> Result<()> {
        let hash = self.hash(key);
        let cell = self.bucket(hash as usize & self.mask).ok_or(MISSING)?;
        let mut guard = Bucket::lock(cell);
        let Walk::Found(slot, link) = self.find(cell, guard.word, hash, key) else {
            return Err(MISSING);
        };
        if let Some(value) = value {
            copy_out(self.value_of(slot), value);
        }
        self.unlink(&mut guard, slot, link);
        Ok(())
    }

    /// The first key in bucket `from` or after it.
    fn first_key_from(&self, from: usize, next: &mut [u8]) -> Result<()> {
        let mut index = from;
        while index <= self.mask {
            let Some(cell) = self.bucket(index) else {
                index = self.buckets.skip_absent(index);
                continue;
            };
            if cell.load(Relaxed) as u32 != NIL {
                let found = self.read(cell, |word| match word as u32 {
                    NIL => Some(false),
                    link => {
                        copy_out(self.key_of(self.slot(link)?), next);
                        Some(true)
                    }
                });
                if found {
                    return Ok(());
                }
            }
            index += 1;
        }
        Err(END)
    }

    /// Calls `each` for the elements of the chain that starts at `link`.
    fn chain<'a>(&'a self, mut link: u32, mut each: impl FnMut(&'a [AtomicU64], u32)) {
        while let Some(slot) = self.slot(link) {
            let here = link;
            link = slot[0].load(Relaxed) as u32;
            each(slot, here);
        }
    }
}

/// A bucket under its lock.
struct Bucket<'a> {
    cell: &'a AtomicU64,
    word: u64,
    changed: bool,
}

impl<'a> Bucket<'a> {
    fn lock(cell: &'a AtomicU64) -> Self {
        let mut backoff = Backoff::new();
        loop {
            let word = cell.load(Relaxed);
            if word & LOCKED == 0
                && cell
                    .compare_exchange_weak(word, word | LOCKED, Acquire, Relaxed)
                    .is_ok()
            {
                // Orders the lock bit before the stores that follow: a reader that sees one of
                // them sees the word changed.
                fence(Release);
                return Self {
                    cell,
                    word,
                    changed: false,
                };
            }
            backoff.wait();
        }
    }

    const fn head(&self) -> u32 {
        self.word as u32
    }

    fn set_head(&mut self, link: u32) {
        self.word = self.word & !0xffff_ffff | u64::from(link);
        self.changed = true;
    }
}

impl Drop for Bucket<'_> {
    fn drop(&mut self) {
        let word = if self.changed {
            self.word.wrapping_add(VERSION)
        } else {
            self.word
        };
        self.cell.store(word, Release);
    }
}

impl MapOps for HostHash {
    #[inline]
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let hash = self.hash(key);
        let cell = self.bucket(hash as usize & self.mask).ok_or(MISSING)?;
        let found = self.read(cell, |word| match self.find(cell, word, hash, key) {
            Walk::Found(slot, _) => {
                copy_out(self.value_of(slot), value);
                Some(true)
            }
            Walk::Missing => Some(false),
            Walk::Changed => None,
        });
        if found { Ok(()) } else { Err(MISSING) }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let hash = self.hash(key);
        let index = hash as usize & self.mask;
        let cell = match self.bucket(index) {
            Some(cell) => cell,
            None if flags == BPF_EXIST => return Err(MISSING),
            None => &self.buckets.get_or_alloc(index)?[0],
        };
        let mut guard = Bucket::lock(cell);
        match self.find(cell, guard.word, hash, key) {
            Walk::Found(..) if flags == BPF_NOEXIST => Err(PRESENT),
            Walk::Found(slot, _) => {
                guard.changed = true;
                copy_in(self.value_of(slot), value);
                Ok(())
            }
            _ if flags == BPF_EXIST => Err(MISSING),
            _ => {
                let link = self.take_slot()?;
                let slot = self.slot(link).ok_or(FULL)?;
                copy_in(self.key_of(slot), key);
                copy_in(self.value_of(slot), value);
                slot[0].store(hash >> 32 << 32 | u64::from(guard.head()), Relaxed);
                guard.set_head(link);
                Ok(())
            }
        }
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, None)
    }

    /// `htab_map_mem_usage` of a map whose elements are allocated in advance.
    fn mem_usage(&self) -> u64 {
        const BUCKET_BYTES: u64 = 16;
        const ELEMENT_BYTES: u64 = 48;
        let buckets = (self.mask as u64 + 1) * BUCKET_BYTES;
        let key = (self.key_size as u64).next_multiple_of(8);
        let value = (self.value_bytes as u64).next_multiple_of(8);
        let elements = u64::from(self.max_entries) * (ELEMENT_BYTES + key + value);
        buckets + elements
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let Some(key) = key else {
            return self.first_key_from(0, next);
        };
        let hash = self.hash(key);
        let index = hash as usize & self.mask;
        let Some(cell) = self.bucket(index) else {
            return self.first_key_from(0, next);
        };
        enum Step {
            Copied,
            From(usize),
        }
        let step = self.read(cell, |word| match self.find(cell, word, hash, key) {
            Walk::Found(slot, _) => match slot[0].load(Relaxed) as u32 {
                NIL => Some(Step::From(index + 1)),
                link => {
                    copy_out(self.key_of(self.slot(link)?), next);
                    Some(Step::Copied)
                }
            },
            Walk::Missing => Some(Step::From(0)),
            Walk::Changed => None,
        });
        match step {
            Step::Copied => Ok(()),
            Step::From(index) => self.first_key_from(index, next),
        }
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        self.remove(key, Some(value))
    }

    fn checks_batch_flags(&self) -> bool {
        true
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        let mut index = in_batch.map_or(0, |token| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&token[..4]);
            u32::from_ne_bytes(raw) as usize
        });
        if index > self.mask {
            return BatchOutcome::failed(BAD_TOKEN);
        }
        let mut keys = keys.chunks_exact_mut(self.key_size);
        let mut values = values.chunks_exact_mut(self.value_bytes);
        let mut total = 0;
        while index <= self.mask {
            let Some(cell) = self.bucket(index) else {
                index = self.buckets.skip_absent(index);
                continue;
            };
            if cell.load(Relaxed) as u32 != NIL {
                let mut guard = Bucket::lock(cell);
                let mut here = 0;
                self.chain(guard.head(), |_, _| here += 1);
                if here > count - total {
                    out_batch.copy_from_slice(&(index as u32).to_ne_bytes());
                    return BatchOutcome {
                        count: total,
                        result: if total == 0 {
                            Err(BUCKET_TOO_BIG)
                        } else {
                            Ok(())
                        },
                    };
                }
                self.chain(guard.head(), |slot, link| {
                    if let (Some(key), Some(value)) = (keys.next(), values.next()) {
                        copy_out(self.key_of(slot), key);
                        copy_out(self.value_of(slot), value);
                    }
                    if delete {
                        self.give_slot(slot, link);
                    }
                });
                if delete && here != 0 {
                    guard.set_head(NIL);
                }
                total += here;
            }
            index += 1;
        }
        out_batch.copy_from_slice(&(self.mask as u32 + 1).to_ne_bytes());
        BatchOutcome {
            count: total,
            result: Err(BATCH_END),
        }
    }
}
