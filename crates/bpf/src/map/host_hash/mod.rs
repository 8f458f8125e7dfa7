//! HASH and PERCPU_HASH with BPF_F_ZERO_SEED in host memory (`kernel/bpf/hashtab.c`).
//!
//! A power of two of buckets, at least `max_entries`. Four neighbouring ones share a cache line
//! ([`line::Line`]) that holds a lock bit and version, eight tags (bytes of the hashes) and
//! eight entries (the elements' slots). A lookup so reads one line to know its slot, without a
//! branch that depends on which of the elements it is, and then the slot; more elements go to
//! spare lines. Writers hold a line's lock bit, as kernel writers hold `bucket.raw_lock`.
//! Readers take no lock: they read the line, copy, and look whether the version is still the
//! one they started from, so a value is seen whole or not at all. A reader that fails
//! [`Backoff::READER_TRIES`] times takes the lock.
//!
//! Elements live in one table of `max_entries` slots, so that the capacity is exact. A slot is
//! the key and the value. Free slots form a stack ([`free::FreeItems`]), and a slot goes from
//! one line to another only through it; so do the spare lines. A reader that strayed into the
//! new line with its slot has to see its own line's version changed. Three steps make sure of
//! that: the old owner's lock bit comes before its push (Release), the push before the pop
//! (Acquire), and the pop before every store of the new owner (a release fence in `take`,
//! which the reader's acquire fence pairs with). The pop's own Release would not do for the
//! last: it orders what precedes it. `tests/tests/litmus.rs` tries both forms under loom.
//!
//! The kernel puts a new element at the head of its bucket's chain, and an update too, unless
//! the value is per-CPU: it replaces the element by a new one. Keys are walked in that order.
//! With BPF_F_ZERO_SEED a program can rely on it, so that these maps have the kernel's hash, its
//! buckets and its order. Maps with a seed that nobody knows are [`super::group_hash`]'s.

mod free;
mod line;

use self::free::{FreeItems, NIL};
use self::line::{BUCKET_BITS, Entry, Guard, Line, PLACES};
use super::htab_footprint::HtabFootprint;
use super::jhash::htab_hash;
use super::lazy::LazyTable;
use super::ops::MapOps;
use super::refusals::{BATCH_END, BUCKET_TOO_BIG, END, FULL, MISSING, PRESENT, token_bucket};
use super::words::{Backoff, copy_in, copy_out, equal, words_for};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST};
use std::sync::atomic::AtomicU64;

const NO_SPARE_LINE: Error = Error::new(
    Errno::ENOMEM,
    "the map has no line left for more elements of a bucket",
);

pub(crate) struct HostHash {
    /// An update goes to the head of its chain.
    replaces: bool,
    mask: usize,
    key_size: usize,
    key_words: usize,
    value_bytes: usize,
    max_entries: u32,
    footprint: HtabFootprint,
    /// The buckets, four to a line.
    lines: LazyTable,
    /// Where buckets go on that have more elements than their line has places.
    spare_lines: LazyTable,
    slots: LazyTable,
    free_slots: FreeItems,
    free_lines: FreeItems,
}

/// A place of a line.
#[derive(Clone, Copy)]
struct At<'a> {
    line: Line<'a>,
    place: usize,
}

/// Where a search ended.
enum Walk<'a> {
    Found(At<'a>, &'a [AtomicU64]),
    Missing,
    /// The line changed meanwhile.
    Changed,
}

/// The byte of a hash that its place holds.
#[inline]
const fn tag_of(hash: u64) -> u8 {
    let tag = (hash >> 56) as u8;
    // 0 is a free place.
    tag | (tag == 0) as u8
}

impl HostHash {
    /// An empty table. `value_bytes` is the size of a value as user space passes it; `replaces`:
    /// an update puts a new element at the head of the chain.
    pub(crate) fn new(
        key_size: u32,
        value_bytes: usize,
        max_entries: u32,
        replaces: bool,
        footprint: HtabFootprint,
    ) -> Result<Self> {
        let n_buckets = (max_entries as usize).next_power_of_two();
        let key_words = words_for(key_size as usize);
        // A line is full before it goes on in a spare one, and no spare one is empty: n spare
        // lines mean more than 8 n elements. Slots are taken before spare lines and given back
        // after them, so that this many are enough at every moment.
        let spare_lines = max_entries.saturating_sub(1) / PLACES as u32;
        Ok(Self {
            replaces,
            mask: n_buckets - 1,
            key_size: key_size as usize,
            key_words,
            value_bytes,
            max_entries,
            footprint,
            lines: LazyTable::new(
                n_buckets.div_ceil(line::BUCKETS),
                line::WORDS,
                "lines of buckets",
            )?,
            spare_lines: LazyTable::new(spare_lines as usize, line::WORDS, "spare lines")?,
            slots: LazyTable::new(
                max_entries as usize,
                key_words + words_for(value_bytes),
                "elements",
            )?,
            free_slots: FreeItems::new(max_entries),
            free_lines: FreeItems::new(spare_lines),
        })
    }

    /// The kernel's hash, from whose low bits the bucket comes and from whose high ones the tag.
    #[inline]
    fn hash(key: &[u8]) -> u64 {
        let hash = u64::from(htab_hash(key));
        hash << 32 | hash
    }

    /// The line of a bucket; there is one for every bucket.
    #[inline]
    fn line(&self, bucket: usize) -> Option<Line<'_>> {
        self.lines.get_words(bucket >> BUCKET_BITS).map(Line::new)
    }

    #[inline]
    fn slot(&self, link: u32) -> Option<&[AtomicU64]> {
        self.slots.get(link.wrapping_sub(1) as usize)
    }

    /// The line after `line`; `None` also for a link that makes no sense, which only a reader
    /// sees that will read again.
    #[inline]
    fn next_line<'a>(&'a self, line: Line<'_>) -> Option<Line<'a>> {
        match line.next() {
            NIL => None,
            link => self.spare_line(link),
        }
    }

    fn spare_line(&self, link: u32) -> Option<Line<'_>> {
        let words = self.spare_lines.get_words(link.wrapping_sub(1) as usize);
        words.map(Line::new)
    }

    #[inline]
    fn key_of<'a>(&self, slot: &'a [AtomicU64]) -> &'a [AtomicU64] {
        &slot[..self.key_words]
    }

    #[inline]
    fn value_of<'a>(&self, slot: &'a [AtomicU64]) -> &'a [AtomicU64] {
        &slot[self.key_words..]
    }

    /// Looks for the key from its bucket's line on, whose word 0 was `word`.
    #[inline]
    fn find<'a>(&'a self, home: Line<'a>, word: u64, hash: u64, key: &[u8]) -> Walk<'a> {
        let tag = tag_of(hash);
        let mut line = home;
        loop {
            let mut matches = line.matches(tag);
            while matches != 0 {
                let place = matches.trailing_zeros() as usize / 8;
                matches &= matches - 1;
                // No slot: a free place that seems to have the tag.
                let Some(slot) = self.slot(line.entry(place).link()) else {
                    continue;
                };
                if equal(self.key_of(slot), key) {
                    return Walk::Found(At { line, place }, slot);
                }
            }
            let Some(next) = self.next_line(line) else {
                return Walk::Missing;
            };
            // A reader may have strayed, even into a circle.
            if !home.is_still(word) {
                return Walk::Changed;
            }
            line = next;
        }
    }

    /// The first element of `bucket` from `at` on, `Some(None)` if there is none, `None` if the
    /// line changed.
    fn first_from<'a>(
        &'a self,
        (home, word): (Line<'a>, u64),
        bucket: usize,
        mut at: At<'a>,
    ) -> Option<Option<(At<'a>, &'a [AtomicU64])>> {
        loop {
            for place in at.place..at.line.used() {
                let entry = at.line.entry(place);
                if entry.is_of(bucket) {
                    return Some(Some((At { place, ..at }, self.slot(entry.link())?)));
                }
            }
            let Some(line) = self.next_line(at.line) else {
                return Some(None);
            };
            if !home.is_still(word) {
                return None;
            }
            at = At { line, place: 0 };
        }
    }

    /// The elements of a bucket in the order of its chain, under the lock.
    fn chain<'a>(
        &'a self,
        guard: &Guard<'a>,
        bucket: usize,
    ) -> impl Iterator<Item = (At<'a>, &'a [AtomicU64])> + use<'a> {
        let (home, word) = (guard.home, guard.word);
        let mut at = At {
            line: home,
            place: 0,
        };
        std::iter::from_fn(move || {
            let found = self.first_from((home, word), bucket, at)??;
            at = At {
                place: found.0.place + 1,
                ..found.0
            };
            Some(found)
        })
    }

    /// Runs `read` on a consistent state of the line: with no lock, or, when writers keep
    /// changing it, under the lock. `read` gets word 0 and may run several times; `None` from
    /// it means that the line changed.
    #[inline]
    fn read<R>(&self, home: Line<'_>, mut read: impl FnMut(u64) -> Option<R>) -> R {
        let mut backoff = Backoff::new();
        loop {
            if let Ok(word) = home.begin_read() {
                let result = read(word);
                if let (Some(result), true) = (result, home.end_read(word)) {
                    return result;
                }
            }
            if backoff.exhausted() {
                let guard = Guard::lock(home);
                if let Some(result) = read(guard.word) {
                    return result;
                }
            }
            backoff.wait();
        }
    }

    /// A slot for a new element, or E2BIG when all are in use.
    fn take_slot(&self) -> Result<u32> {
        let taken = self.free_slots.take(|link| self.slot(link)?.first());
        taken.ok_or(FULL)
    }

    fn give_slot(&self, link: u32) {
        if let Some(word) = self.slot(link).and_then(<[_]>::first) {
            self.free_slots.give(link, word);
        }
    }

    fn take_line(&self) -> Result<u32> {
        let taken = self
            .free_lines
            .take(|link| Some(self.spare_line(link)?.free_word()));
        taken.ok_or(NO_SPARE_LINE)
    }

    /// The last line of those that start at `home`.
    fn last_line<'a>(&'a self, home: Line<'a>) -> Line<'a> {
        let mut line = home;
        while let Some(next) = self.next_line(line) {
            line = next;
        }
        line
    }

    /// Makes sure that there is a free place.
    fn make_room(&self, guard: &mut Guard<'_>) -> Result<()> {
        let last = self.last_line(guard.home);
        if !last.is_full() {
            return Ok(());
        }
        let link = self.take_line()?;
        let line = self.spare_line(link).ok_or(NO_SPARE_LINE)?;
        line.clear();
        guard.changed = true;
        last.set_next(link);
        Ok(())
    }

    /// Puts an element first. Moves those before `until` up by one, over what is there; `None`:
    /// before the free place.
    fn push_front(&self, guard: &mut Guard<'_>, new: (u8, Entry), until: Option<At<'_>>) {
        guard.changed = true;
        let mut carried = new;
        let mut line = guard.home;
        loop {
            if let Some(until) = until.filter(|until| until.line.is(line)) {
                line.push_front(carried, until.place);
                return;
            }
            carried = line.push_front(carried, PLACES - 1);
            match self.next_line(line) {
                Some(next) if carried.0 != 0 => line = next,
                _ => return,
            }
        }
    }

    /// Takes the element at `at` out and frees its slot.
    fn unlink(&self, guard: &mut Guard<'_>, at: At<'_>) {
        guard.changed = true;
        let slot = at.line.entry(at.place).link();
        let (mut line, mut place) = (at.line, at.place);
        while let Some(next) = self.next_line(line) {
            line.remove(place, next.at(0));
            (line, place) = (next, 0);
        }
        line.remove(place, Line::NOTHING);
        if line.used() == 0 && !line.is(guard.home) {
            self.drop_last_line(guard);
        }
        // After the line: who takes the slot for a new element may need the line too.
        self.give_slot(slot);
    }

    /// Gives the last line back, which is empty and not the first.
    fn drop_last_line(&self, guard: &Guard<'_>) {
        let mut line = guard.home;
        while let Some(next) = self.next_line(line) {
            if next.next() == NIL {
                let link = line.next();
                line.set_next(NIL);
                self.free_lines.give(link, next.free_word());
                return;
            }
            line = next;
        }
    }

    fn remove(&self, key: &[u8], value: Option<&mut [u8]>) -> Result<()> {
        let hash = Self::hash(key);
        let home = self.line(hash as usize & self.mask).ok_or(MISSING)?;
        let mut guard = Guard::lock(home);
        let Walk::Found(at, slot) = self.find(home, guard.word, hash, key) else {
            return Err(MISSING);
        };
        if let Some(value) = value {
            copy_out(self.value_of(slot), value);
        }
        self.unlink(&mut guard, at);
        Ok(())
    }

    /// The first key in bucket `from` or after it.
    fn first_key_from(&self, from: usize, next: &mut [u8]) -> Result<()> {
        let mut bucket = from;
        while bucket <= self.mask {
            bucket = self.skip_untouched(bucket);
            let Some(home) = self.line(bucket) else {
                break;
            };
            // Nothing in any of its buckets.
            if home.used() == 0 {
                bucket = (bucket | (line::BUCKETS - 1)) + 1;
                continue;
            }
            let start = At {
                line: home,
                place: 0,
            };
            let found = self.read(home, |word| {
                let found = self.first_from((home, word), bucket, start)?;
                if let Some((_, slot)) = found {
                    copy_out(self.key_of(slot), next);
                }
                Some(found.is_some())
            });
            if found {
                return Ok(());
            }
            bucket += 1;
        }
        Err(END)
    }

    /// The first bucket at or after `bucket` whose part of the table was ever used, or one past
    /// the last.
    fn skip_untouched(&self, bucket: usize) -> usize {
        let line = self.lines.skip_untouched(bucket >> BUCKET_BITS);
        // Not back to the line's first.
        (line << BUCKET_BITS).max(bucket)
    }
}

impl MapOps for HostHash {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let hash = Self::hash(key);
        let home = self.line(hash as usize & self.mask).ok_or(MISSING)?;
        let found = self.read(home, |word| match self.find(home, word, hash, key) {
            Walk::Found(_, slot) => {
                copy_out(self.value_of(slot), value);
                Some(true)
            }
            Walk::Missing => Some(false),
            Walk::Changed => None,
        });
        if found { Ok(()) } else { Err(MISSING) }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        // Under the value's lock the kernel changes the element where it is.
        let in_place = flags & BPF_F_LOCK != 0;
        let flags = flags & !BPF_F_LOCK;
        let hash = Self::hash(key);
        let bucket = hash as usize & self.mask;
        let home = self.line(bucket).ok_or(MISSING)?;
        let mut guard = Guard::lock(home);
        match self.find(home, guard.word, hash, key) {
            Walk::Found(..) if flags == BPF_NOEXIST => Err(PRESENT),
            Walk::Found(at, slot) => {
                guard.changed = true;
                copy_in(self.value_of(slot), value);
                if self.replaces && !in_place {
                    self.push_front(&mut guard, at.line.at(at.place), Some(at));
                }
                Ok(())
            }
            _ if flags == BPF_EXIST => Err(MISSING),
            _ => {
                let link = self.take_slot()?;
                let slot = self.slot(link).ok_or(FULL)?;
                if let Err(error) = self.make_room(&mut guard) {
                    self.give_slot(link);
                    return Err(error);
                }
                self.lines.will_store(bucket >> BUCKET_BITS);
                copy_in(self.key_of(slot), key);
                copy_in(self.value_of(slot), value);
                let new = (tag_of(hash), Entry::new(link, bucket));
                self.push_front(&mut guard, new, None);
                Ok(())
            }
        }
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, None)
    }

    /// `htab_map_mem_usage`.
    fn mem_usage(&self) -> u64 {
        let sizes = (self.key_size, self.value_bytes, self.max_entries);
        self.footprint.bytes(sizes, self.free_slots.taken())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let Some(key) = key else {
            return self.first_key_from(0, next);
        };
        let hash = Self::hash(key);
        let bucket = hash as usize & self.mask;
        let Some(home) = self.line(bucket) else {
            return self.first_key_from(0, next);
        };
        enum Step {
            Copied,
            From(usize),
        }
        let step = self.read(home, |word| match self.find(home, word, hash, key) {
            Walk::Found(at, _) => {
                let after = At {
                    place: at.place + 1,
                    ..at
                };
                match self.first_from((home, word), bucket, after)? {
                    None => Some(Step::From(bucket + 1)),
                    Some((_, slot)) => {
                        copy_out(self.key_of(slot), next);
                        Some(Step::Copied)
                    }
                }
            }
            Walk::Missing => Some(Step::From(0)),
            Walk::Changed => None,
        });
        match step {
            Step::Copied => Ok(()),
            Step::From(bucket) => self.first_key_from(bucket, next),
        }
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        self.remove(key, Some(value))
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
        let mut bucket = match token_bucket(in_batch, self.mask) {
            Ok(bucket) => bucket,
            Err(error) => return BatchOutcome::failed(error),
        };
        let mut keys = keys.chunks_exact_mut(self.key_size);
        let mut values = values.chunks_exact_mut(self.value_bytes);
        let mut total = 0;
        while bucket <= self.mask {
            bucket = self.skip_untouched(bucket);
            let Some(home) = self.line(bucket) else {
                break;
            };
            if home.used() != 0 {
                let mut guard = Guard::lock(home);
                let here = self.chain(&guard, bucket).count();
                if here > (count - total) as usize {
                    out_batch.copy_from_slice(&(bucket as u32).to_ne_bytes());
                    return BatchOutcome {
                        count: total,
                        result: if total == 0 {
                            Err(BUCKET_TOO_BIG)
                        } else {
                            Ok(())
                        },
                    };
                }
                for (_, slot) in self.chain(&guard, bucket) {
                    if let (Some(key), Some(value)) = (keys.next(), values.next()) {
                        copy_out(self.key_of(slot), key);
                        copy_out(self.value_of(slot), value);
                    }
                }
                while delete && let Some((at, _)) = self.chain(&guard, bucket).next() {
                    self.unlink(&mut guard, at);
                }
                total += here as u32;
            }
            bucket += 1;
        }
        out_batch.copy_from_slice(&(self.mask as u32 + 1).to_ne_bytes());
        BatchOutcome {
            count: total,
            result: Err(BATCH_END),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All elements in one line's buckets: every spare line is needed, and comes back.
    #[test]
    fn colliding_keys_fill_the_map_to_the_brim_again_and_again() {
        const MAX: u32 = 41;
        let map = HostHash::new(4, 8, MAX, true, HtabFootprint::default()).unwrap();
        let keys: Vec<[u8; 4]> = (0u32..)
            .map(u32::to_ne_bytes)
            .filter(|key| (htab_hash(key) as usize & map.mask) >> BUCKET_BITS == 3)
            .take(MAX as usize + 1)
            .collect();
        let (extra, keys) = keys.split_last().unwrap();
        for round in 0..4_u64 {
            for key in keys {
                map.update(key, &round.to_ne_bytes(), BPF_NOEXIST).unwrap();
            }
            let full = map.update(extra, &[0; 8], 0).unwrap_err();
            assert_eq!(full.errno(), Errno::E2BIG);
            for key in keys {
                let mut value = [0; 8];
                map.lookup(key, &mut value, 0).unwrap();
                assert_eq!(u64::from_ne_bytes(value), round);
            }
            // From the front, from the back, from the middle.
            let mut left = keys.to_vec();
            while !left.is_empty() {
                let at = [0, left.len() - 1, left.len() / 2][left.len() % 3];
                map.delete(&left.remove(at)).unwrap();
                for key in &left {
                    map.lookup(key, &mut [0; 8], 0).unwrap();
                }
            }
            assert!(map.get_next_key(None, &mut [0; 4]).is_err());
        }
    }
}
