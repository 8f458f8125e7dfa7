//! HASH and PERCPU_HASH in host memory, without an order that a program can know.
//!
//! Open addressing in groups of eight places. A group is two words: the tags of its places (a
//! byte of the hash each, 0 for a free place), and its state; the elements, key and value, lie
//! in a table of their own, eight to a group. So what a lookup has to search first is two bytes
//! a place, and stays in a near cache where the elements do not. An element goes to the first
//! free place from its home group on, and stays there until it is deleted. A group counts the
//! elements that passed it by, so that a search ends at the first group that none has passed.
//!
//! The state is a version, that count, and two lock bits. `LOCKED` is held for the few stores
//! that change the group, and by nobody who waits for anything. `HOME` is held for a whole
//! change by whoever changes an element whose home group it is, so that a key is never put in
//! twice. Readers take neither: they read the group, copy, and look whether the version is still
//! the one they started from; a value is seen whole or not at all. One who fails
//! [`Backoff::READER_TRIES`] times takes `LOCKED`.
//!
//! A reader that goes on from one group to the next may see the two at different moments. It can
//! miss only a key that was not there at one of the moments in between: elements do not move, a
//! key that was passed on is counted before it is stored, and for it to come to a group that the
//! reader has left it must have been deleted first.
//!
//! Versions have 32 bits: a reader would have to sleep for exactly a multiple of 2^32 changes of
//! one group to be misled.
//!
//! A batch token is a bucket, as the kernel's: there are as many buckets as the kernel's map has,
//! and each stands for its share of the hashes, as a home does. A batch walk goes from home to
//! home and returns the elements of each under its `HOME` bit, wherever they lie, so that a walk
//! returns no key twice and misses none that stays.

use super::htab_footprint::HtabFootprint;
use super::lazy::LazyTable;
use super::near::Near;
use super::ops::MapOps;
use super::refusals::{BATCH_END, BUCKET_TOO_BIG, END, FULL, MISSING, PRESENT, token_bucket};
use super::words::{Backoff, copy_in, copy_out, equal, words_for};
use crate::device::BatchOutcome;
use crate::error::Result;
use crate::uapi::{BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST};
use crossbeam_utils::CachePadded;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

/// Places of a group.
const PLACES: usize = 8;
/// The low and the high bit of each byte of a word.
const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = LOW_BITS << 7;

/// The group is being changed.
const LOCKED: u64 = 1;
/// Somebody changes an element whose home the group is.
const HOME: u64 = 1 << 1;
/// One element that passed the group by.
const PASSED: u64 = 1 << 2;
const PASSED_MASK: u64 = (1 << 32) - PASSED;
/// One change of the group.
const VERSION: u64 = 1 << 32;

/// A hash table of fixed capacity.
pub(crate) struct GroupHash {
    secrets: RapidSecrets,
    groups: u32,
    key_size: usize,
    key_words: usize,
    value_bytes: usize,
    max_entries: u32,
    footprint: HtabFootprint,
    /// Two words a group: [`Group`].
    states: LazyTable,
    /// Key and value.
    slots: LazyTable,
    used: CachePadded<AtomicU32>,
}

/// A group's two words.
#[derive(Clone, Copy)]
struct Group<'a> {
    tags: &'a AtomicU64,
    state: &'a AtomicU64,
}

/// An element of a batch walk.
#[derive(Clone, Copy)]
struct Element {
    bucket: u32,
    index: u32,
    place: usize,
}

thread_local! {
    /// What a batch walk needs beside its arguments: a key and the elements of a home. Kept, so
    /// that walks allocate nothing.
    static SCRATCH: Cell<(Vec<u8>, Vec<Element>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Where an element is.
#[derive(Clone, Copy)]
struct At<'a> {
    index: u32,
    place: usize,
    slot: &'a [AtomicU64],
}

/// The places whose tag is `tag`, not 0: the high bit of each one's byte. The first is one; what
/// comes after may be none, and its key then tells.
#[inline]
const fn matching(tags: u64, tag: u8) -> u64 {
    let differing = tags ^ (LOW_BITS * tag as u64);
    differing.wrapping_sub(LOW_BITS) & !differing & HIGH_BITS
}

/// The places that hold an element, as [`matching`].
#[inline]
const fn taken(tags: u64) -> u64 {
    tags & HIGH_BITS
}

/// The places that hold none, as [`matching`].
#[inline]
const fn free(tags: u64) -> u64 {
    !tags & HIGH_BITS
}

#[inline]
const fn first_place(matches: u64) -> usize {
    matches.trailing_zeros() as usize / 8
}

/// The first of the places of a group, counted through the table.
#[inline]
const fn place_of(group: u32, matches: u64) -> usize {
    group as usize * PLACES + first_place(matches)
}

/// The byte of a hash that its place holds.
#[inline]
const fn tag_of(hash: u64) -> u8 {
    // 0 is a free place.
    (hash >> 56) as u8 | 0x80
}

impl<'a> Group<'a> {
    /// Whether nothing in the group has changed since its state was `seen`.
    #[inline]
    fn unchanged(self, seen: u64) -> bool {
        // Orders the reads of the group and its elements before this one.
        fence(Acquire);
        (self.state.load(Relaxed) ^ seen) & !(HOME | PASSED_MASK) == 0
    }

    /// Runs `read` on a consistent state of the group: with no lock, or, when writers keep
    /// changing it, under theirs. `read` may run several times.
    #[inline]
    fn read<R>(self, mut read: impl FnMut(u64) -> R) -> R {
        let mut backoff = Backoff::new();
        loop {
            let state = self.state.load(Acquire);
            if state & LOCKED == 0 {
                let result = read(state);
                if self.unchanged(state) {
                    return result;
                }
            }
            if backoff.exhausted() {
                let _locked = Locked::lock(self);
                return read(self.state.load(Relaxed));
            }
            backoff.wait();
        }
    }

    fn set_tag(self, place: usize, tag: u8) {
        let tags = self.tags.load(Relaxed) & !(0xff << (place * 8));
        self.tags
            .store(tags | u64::from(tag) << (place * 8), Relaxed);
    }
}

/// A group under `LOCKED`. Held for a few stores, never while waiting.
struct Locked<'a> {
    group: Group<'a>,
    changed: bool,
}

impl<'a> Locked<'a> {
    fn lock(group: Group<'a>) -> Self {
        set_bit(group.state, LOCKED);
        // Orders the bit before the stores that follow: a reader that sees one of them sees
        // the state changed.
        fence(Release);
        Self {
            group,
            changed: false,
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let version = if self.changed { VERSION } else { 0 };
        // Others may have changed `HOME` and the count meanwhile.
        let change = version.wrapping_sub(LOCKED);
        self.group.state.fetch_add(change, Release);
    }
}

/// The `HOME` bit of a group.
struct Home<'a>(&'a AtomicU64);

impl<'a> Home<'a> {
    fn lock(group: Group<'a>) -> Self {
        set_bit(group.state, HOME);
        Self(group.state)
    }
}

impl Drop for Home<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!HOME, Release);
    }
}

/// Takes a lock bit.
fn set_bit(state: &AtomicU64, bit: u64) {
    let mut backoff = Backoff::new();
    loop {
        let now = state.load(Relaxed);
        if now & bit == 0
            && state
                .compare_exchange_weak(now, now | bit, Acquire, Relaxed)
                .is_ok()
        {
            return;
        }
        backoff.wait();
    }
}

impl GroupHash {
    /// An empty table. `value_bytes` is the size of a value as user space passes it.
    pub(crate) fn new(
        key_size: u32,
        value_bytes: usize,
        max_entries: u32,
        seed: u64,
        footprint: HtabFootprint,
    ) -> Result<Self> {
        // Two places in three are used when the map is full: one group in eight has then
        // been passed by, and one element in 26 is away from home. More places were no faster.
        let places = u64::from(max_entries) * 3 / 2;
        let groups = places.div_ceil(PLACES as u64) as u32 + 1;
        let key_words = words_for(key_size as usize);
        Ok(Self {
            secrets: RapidSecrets::seed(seed),
            groups,
            key_size: key_size as usize,
            key_words,
            value_bytes,
            max_entries,
            footprint,
            states: LazyTable::new(groups as usize, 2, "groups")?,
            slots: LazyTable::new(
                groups as usize * PLACES,
                key_words + words_for(value_bytes),
                "elements",
            )?,
            used: CachePadded::new(AtomicU32::new(0)),
        })
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        rapidhash_v3_inline::<true, false, false>(key, &self.secrets)
    }

    /// The home group of a hash.
    #[inline]
    const fn home(&self, hash: u64) -> u32 {
        (((hash & 0xffff_ffff) * self.groups as u64) >> 32) as u32
    }

    #[inline]
    const fn after(&self, group: u32) -> u32 {
        let next = group + 1;
        if next == self.groups { 0 } else { next }
    }

    #[inline]
    fn group(&self, index: u32) -> Option<Group<'_>> {
        let [tags, state] = self.states.chunk(index as usize)?;
        Some(Group { tags, state })
    }

    #[inline]
    fn slot(&self, group: u32, place: usize) -> Option<&[AtomicU64]> {
        self.slots.get(group as usize * PLACES + place)
    }

    /// Looks for the key in one group, whose state the caller checks.
    #[inline]
    fn find_in(&self, group: Group<'_>, index: u32, tag: u8, key: &[u8]) -> Option<At<'_>> {
        let mut matches = matching(group.tags.load(Relaxed), tag);
        while matches != 0 {
            let place = first_place(matches);
            let slot = self.slot(index, place)?;
            if equal(slot.get(..self.key_words)?, key) {
                return Some(At { index, place, slot });
            }
            matches &= matches - 1;
        }
        None
    }

    /// Looks for the key, and calls `read` with it on a consistent state of its group.
    fn find<R>(&self, hash: u64, key: &[u8], mut read: impl FnMut(At<'_>) -> R) -> Option<R> {
        let (home, tag) = (self.home(hash), tag_of(hash));
        let mut index = home;
        loop {
            let group = self.group(index)?;
            let (found, passed) = group.read(|state| {
                let found = self.find_in(group, index, tag, key).map(&mut read);
                (found, state & PASSED_MASK != 0)
            });
            if found.is_some() {
                return found;
            }
            index = self.after(index);
            if !passed || index == home {
                return None;
            }
        }
    }

    /// A lookup of a key of `N` bytes, four or eight.
    #[inline(always)]
    fn lookup_word<const N: usize>(&self, key: u64, value: &mut [u8]) -> Result<()> {
        let (words, []) = value.as_chunks_mut() else {
            return self.lookup_bytes(&key.to_le_bytes()[..N], value);
        };
        if let Ok(value) = <&mut [_; 8]>::try_from(&mut *words) {
            self.lookup_sized::<N, 8>(key, value)
        } else if let Ok(value) = <&mut [_; 1]>::try_from(&mut *words) {
            self.lookup_sized::<N, 1>(key, value)
        } else if let Ok(value) = <&mut [_; 2]>::try_from(&mut *words) {
            self.lookup_sized::<N, 2>(key, value)
        } else if let Ok(value) = <&mut [_; 4]>::try_from(&mut *words) {
            self.lookup_sized::<N, 4>(key, value)
        } else {
            self.lookup_bytes(&key.to_le_bytes()[..N], value)
        }
    }

    /// A lookup of a key of `N` bytes whose value is `W` words. With sizes that are known here
    /// it is a third of the instructions, so that a processor overlaps the cache misses of three
    /// times as many (`docs/performance.md`). That also wants it apart, with the key by value
    /// and other calls only at the end, so that it needs few registers.
    #[inline(never)]
    fn lookup_sized<const N: usize, const W: usize>(
        &self,
        key: u64,
        value: &mut [[u8; 8]; W],
    ) -> Result<()> {
        // Nearly always the element is in its home, at the first place with its tag, and nobody
        // changes the group.
        let bytes = key.to_le_bytes();
        let hash = self.hash(bytes.first_chunk::<N>().unwrap_or(&[0; N]));
        let index = self.home(hash);
        if let Some(group) = self.group(index) {
            let state = group.state.load(Acquire);
            let matches = matching(group.tags.load(Relaxed), tag_of(hash));
            if matches != 0
                && let Some(elements) = self.slots.from(place_of(index, matches))
                && let Some((stored_key, stored)) = elements.split_first()
                && stored_key.load(Relaxed) == key
                && let Some(stored) = stored.first_chunk::<W>()
            {
                for (bytes, word) in value.iter_mut().zip(stored) {
                    *bytes = word.load(Relaxed).to_le_bytes();
                }
                // One who held the lock at first must have given it back with nothing changed.
                if group.unchanged(state & !LOCKED) {
                    return Ok(());
                }
            }
        }
        self.lookup_word_further(key, N, value.as_flattened_mut())
    }

    /// A lookup of any key. Apart, so that the others need few registers.
    #[inline(never)]
    fn lookup_bytes(&self, key: &[u8], value: &mut [u8]) -> Result<()> {
        // As in `lookup_sized`.
        let hash = self.hash(key);
        let index = self.home(hash);
        if let Some(group) = self.group(index) {
            let state = group.state.load(Acquire);
            let matches = matching(group.tags.load(Relaxed), tag_of(hash));
            if matches != 0
                && let Some(elements) = self.slots.from(place_of(index, matches))
                && let Some((stored_key, stored)) = elements.split_at_checked(self.key_words)
                && equal(stored_key, key)
            {
                copy_out(stored, value);
                if group.unchanged(state & !LOCKED) {
                    return Ok(());
                }
            }
        }
        self.lookup_further(key, value)
    }

    #[cold]
    #[inline(never)]
    fn lookup_word_further(&self, key: u64, len: usize, value: &mut [u8]) -> Result<()> {
        self.lookup_further(&key.to_le_bytes()[..len], value)
    }

    /// A lookup that did not end in the home group.
    #[cold]
    #[inline(never)]
    fn lookup_further(&self, key: &[u8], value: &mut [u8]) -> Result<()> {
        self.find(self.hash(key), key, |at| {
            copy_out(&at.slot[self.key_words..], value);
        })
        .ok_or(MISSING)
    }

    /// Where the key is. The caller holds its home.
    fn position(&self, hash: u64, key: &[u8]) -> Option<(u32, usize)> {
        self.find(hash, key, |at| (at.index, at.place))
    }

    /// Puts a new element in the first free place from its home on, which the caller holds.
    /// There is one: the element is counted already.
    fn insert(&self, hash: u64, key: &[u8], value: &[u8]) -> Result<()> {
        let home = self.home(hash);
        loop {
            let mut index = home;
            loop {
                let group = self.group(index).ok_or(FULL)?;
                let mut locked = Locked::lock(group);
                let free = free(group.tags.load(Relaxed));
                if free != 0 {
                    let place = first_place(free);
                    let slot = self.slot(index, place).ok_or(FULL)?;
                    let (stored_key, stored) = slot.split_at(self.key_words);
                    self.states.will_store(index as usize);
                    locked.changed = true;
                    copy_in(stored_key, key);
                    copy_in(stored, value);
                    group.set_tag(place, tag_of(hash));
                    return Ok(());
                }
                // Before the element is stored further on, so that no search ends here that
                // could find it there.
                group.state.fetch_add(PASSED, AcqRel);
                drop(locked);
                index = self.after(index);
                if index == home {
                    break;
                }
            }
            // Places became free behind us and were taken before us, all the way round.
            self.unpass(home, home, true);
        }
    }

    /// Takes back what an element on its way from `home` to `group` was counted for.
    fn unpass(&self, home: u32, group: u32, all: bool) {
        let mut index = home;
        let mut first = all;
        while first || index != group {
            first = false;
            if let Some(group) = self.group(index) {
                group.state.fetch_sub(PASSED, AcqRel);
            }
            index = self.after(index);
        }
    }

    fn remove(&self, key: &[u8], value: Option<&mut [u8]>) -> Result<()> {
        let hash = self.hash(key);
        let home = self.home(hash);
        let _home = Home::lock(self.group(home).ok_or(MISSING)?);
        let (index, place) = self.position(hash, key).ok_or(MISSING)?;
        let group = self.group(index).ok_or(MISSING)?;
        {
            let mut locked = Locked::lock(group);
            locked.changed = true;
            if let (Some(value), Some(slot)) = (value, self.slot(index, place)) {
                copy_out(&slot[self.key_words..], value);
            }
            group.set_tag(place, 0);
        }
        self.unpass(home, index, false);
        self.used.fetch_sub(1, AcqRel);
        Ok(())
    }

    /// The key of the first element from `place` of the table on, on a consistent state of its
    /// group.
    fn first_key_from(&self, place: u32, next: &mut [u8]) -> Result<()> {
        let (mut index, mut first) = (place / PLACES as u32, place % PLACES as u32);
        loop {
            let untouched = self.states.skip_untouched(index as usize) as u32;
            if untouched > index {
                (index, first) = (untouched, 0);
            }
            if index >= self.groups {
                return Err(END);
            }
            let group = self.group(index).ok_or(END)?;
            let found = group.read(|_| {
                let taken = taken(group.tags.load(Relaxed)) & (u64::MAX << (first * 8));
                if taken == 0 {
                    return None;
                }
                let slot = self.slot(index, first_place(taken))?;
                copy_out(&slot[..self.key_words], next);
                Some(())
            });
            if found.is_some() {
                return Ok(());
            }
            (index, first) = (index + 1, 0);
        }
    }

    /// The kernel's number of buckets.
    const fn buckets(&self) -> u32 {
        self.max_entries.next_power_of_two()
    }

    /// The bucket of a hash: like its home a share of the lower half.
    const fn bucket(&self, hash: u64) -> u32 {
        (((hash & 0xffff_ffff) * self.buckets() as u64) >> 32) as u32
    }

    /// The first home of a bucket's elements.
    const fn first_home(&self, bucket: u32) -> u32 {
        self.home(((bucket as u64) << 32) / self.buckets() as u64)
    }

    /// Finds the elements whose home is `home`, which the caller holds, by bucket. `key` has
    /// room for one.
    fn elements_of(&self, home: u32, key: &mut [u8], found: &mut Vec<Element>) {
        found.clear();
        let mut index = home;
        while let Some(group) = self.group(index) {
            let before = found.len();
            let passed = group.read(|state| {
                // Another try, after others changed the group.
                found.truncate(before);
                let mut places = taken(group.tags.load(Relaxed));
                while places != 0 {
                    let place = first_place(places);
                    places &= places - 1;
                    let Some(slot) = self.slot(index, place) else {
                        continue;
                    };
                    copy_out(&slot[..self.key_words], key);
                    let hash = self.hash(key);
                    if self.home(hash) == home {
                        let bucket = self.bucket(hash);
                        found.push(Element {
                            bucket,
                            index,
                            place,
                        });
                    }
                }
                state & PASSED_MASK != 0
            });
            index = self.after(index);
            if !passed || index == home {
                break;
            }
        }
        found.sort_by_key(|element| element.bucket);
    }
}

impl MapOps for GroupHash {
    fn near(self: Arc<Self>) -> Option<Near> {
        Some(Near::Hash(self))
    }

    // Always, so that the choice by sizes is made where these are known.
    #[inline(always)]
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        if let Ok(key) = <[u8; 8]>::try_from(key) {
            self.lookup_word::<8>(u64::from_le_bytes(key), value)
        } else if let Ok(key) = <[u8; 4]>::try_from(key) {
            self.lookup_word::<4>(u32::from_le_bytes(key).into(), value)
        } else {
            self.lookup_bytes(key, value)
        }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let flags = flags & !BPF_F_LOCK;
        let hash = self.hash(key);
        let _home = Home::lock(self.group(self.home(hash)).ok_or(FULL)?);
        match self.position(hash, key) {
            Some(_) if flags == BPF_NOEXIST => Err(PRESENT),
            Some((index, place)) => {
                let group = self.group(index).ok_or(FULL)?;
                let slot = self.slot(index, place).ok_or(FULL)?;
                let mut locked = Locked::lock(group);
                locked.changed = true;
                copy_in(&slot[self.key_words..], value);
                Ok(())
            }
            None if flags == BPF_EXIST => Err(MISSING),
            None => {
                let room = |used| (used < self.max_entries).then_some(used + 1);
                self.used
                    .fetch_update(AcqRel, Relaxed, room)
                    .map_err(|_| FULL)?;
                self.insert(hash, key, value)
            }
        }
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, None)
    }

    fn mem_usage(&self) -> u64 {
        let sizes = (self.key_size, self.value_bytes, self.max_entries);
        self.footprint.bytes(sizes, self.used.load(Relaxed).into())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let after = key.and_then(|key| {
            let at = self.find(self.hash(key), key, |at| (at.index, at.place));
            at.map(|(index, place)| index * PLACES as u32 + place as u32 + 1)
        });
        self.first_key_from(after.unwrap_or(0), next)
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
        let mut bucket = match token_bucket(in_batch, self.buckets() as usize - 1) {
            Ok(bucket) => bucket as u32,
            Err(error) => return BatchOutcome::failed(error),
        };
        let (mut total, mut result) = (0, Err(BATCH_END));
        // Elements before the bucket that is being returned.
        let mut whole = 0;
        let (mut one_key, mut found) = SCRATCH.take();
        one_key.resize(self.key_size, 0);
        let mut home = self.first_home(bucket);
        'walk: loop {
            let untouched = self.states.skip_untouched(home as usize) as u32;
            home = home.max(untouched);
            let Some(group) = self.group(home).filter(|_| home < self.groups) else {
                bucket = self.buckets();
                whole = total;
                break;
            };
            let _home = Home::lock(group);
            self.elements_of(home, &mut one_key, &mut found);
            for element in &found {
                if element.bucket < bucket {
                    continue;
                }
                if element.bucket > bucket {
                    bucket = element.bucket;
                    whole = total;
                }
                if total == count as usize {
                    result = match whole {
                        0 => Err(BUCKET_TOO_BIG),
                        _ => Ok(()),
                    };
                    break 'walk;
                }
                let (key_at, value_at) = (total * self.key_size, total * self.value_bytes);
                let key = &mut keys[key_at..key_at + self.key_size];
                let value = &mut values[value_at..value_at + self.value_bytes];
                if let (Some(group), Some(slot)) = (
                    self.group(element.index),
                    self.slot(element.index, element.place),
                ) {
                    // Its home is held, so that it stays where it is.
                    group.read(|_| {
                        copy_out(&slot[..self.key_words], key);
                        copy_out(&slot[self.key_words..], value);
                    });
                    total += 1;
                }
            }
            home += 1;
        }
        SCRATCH.set((one_key, found));
        let mut done = 0;
        for i in 0..whole {
            if delete {
                // As it is when it goes; one that went meanwhile is not returned.
                let (key, value) = (i * self.key_size, i * self.value_bytes);
                let key = key..key + self.key_size;
                let value = &mut values[value..value + self.value_bytes];
                if self.remove(&keys[key.clone()], Some(value)).is_err() {
                    continue;
                }
                keys.copy_within(key, done * self.key_size);
                let from = i * self.value_bytes;
                values.copy_within(from..from + self.value_bytes, done * self.value_bytes);
            }
            done += 1;
        }
        out_batch.copy_from_slice(&bucket.to_ne_bytes());
        BatchOutcome {
            count: done as u32,
            result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;
    use std::collections::BTreeMap;

    #[test]
    fn tags_are_told_apart() {
        for tag in [1_u8, 2, 0x7f, 0x80, 0x81, 0xff] {
            let bytes = [0, tag, tag ^ 1, tag ^ 0x80, 0, tag, !tag, 0x83];
            let tags = u64::from_le_bytes(bytes);
            let places = |which: &dyn Fn(u8) -> bool| {
                let places = bytes.into_iter().enumerate();
                places
                    .filter(|&(_, t)| which(t))
                    .fold(0, |bits, (i, _)| bits | 0x80_u64 << (i * 8))
            };
            for want in [tag, tag ^ 1, 0x83, 0x84] {
                let (found, all) = (matching(tags, want), places(&|t| t == want));
                assert_eq!(found & all, all, "{tags:#x} {want:#x}");
                assert_eq!(found.trailing_zeros(), all.trailing_zeros());
            }
            assert_eq!(taken(tags), places(&|t| t & 0x80 != 0));
            assert_eq!(free(tags), places(&|t| t & 0x80 == 0));
        }
        for hash in [0, 1 << 55, 1 << 56, !0] {
            assert_eq!(taken(tag_of(hash).into()), 0x80);
        }
    }

    /// Groups that a search for each of the keys looks at, at most.
    fn longest_search(seed: u64, keys: &[[u8; 8]]) -> u32 {
        let map = GroupHash::new(8, 8, 8192, seed, HtabFootprint::default()).unwrap();
        for key in keys {
            map.update(key, &[7; 8], 0).unwrap();
        }
        let searched = keys.iter().map(|key| {
            let hash = map.hash(key);
            let found = map.find(hash, key, |at| at.index).unwrap();
            (found + map.groups - map.home(hash)) % map.groups + 1
        });
        searched.max().unwrap()
    }

    /// Keys that all have one home under a seed make a search long for whoever knows that seed, and
    /// for nobody else.
    #[test]
    fn keys_chosen_for_one_seed_do_not_collide_under_another() {
        const KNOWN: u64 = 0;
        let map = GroupHash::new(8, 8, 8192, KNOWN, HtabFootprint::default()).unwrap();
        let keys = (0u64..).map(u64::to_ne_bytes);
        let of_one_home = keys.filter(|key| map.home(map.hash(key)) == 5);
        let chosen: Vec<_> = of_one_home.take(1024).collect();
        assert_eq!(longest_search(KNOWN, &chosen), 1024 / PLACES as u32);
        for seed in [1, 2, 3, 1 << 63, u64::MAX, 0x5eed, 0xfeed_beef_0000_0001] {
            let longest = longest_search(seed, &chosen);
            assert!(longest <= 3, "seed {seed:#x}: {longest} groups");
        }
    }

    /// A full map of few groups: elements pass groups by, wrap around, and leave no trace.
    #[test]
    fn the_brim_and_back() {
        for max_entries in [1, 2, 7, 8, 9, 40, 333] {
            let map = GroupHash::new(8, 8, max_entries, 77, HtabFootprint::default()).unwrap();
            let mut model = BTreeMap::new();
            let mut rng = 1_u64;
            for _ in 0..40_000 {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let key = (rng >> 33) % (u64::from(max_entries) * 3 / 2 + 2);
                let bytes = key.to_ne_bytes();
                if rng >> 62 == 0 {
                    let was = model.remove(&key).is_some();
                    assert_eq!(map.delete(&bytes).is_ok(), was);
                } else {
                    let fits = model.len() < max_entries as usize || model.contains_key(&key);
                    let done = map.update(&bytes, &rng.to_ne_bytes(), 0);
                    assert_eq!(done.is_ok(), fits);
                    if fits {
                        model.insert(key, rng);
                    }
                }
                let mut value = [0; 8];
                let found = map.lookup(&bytes, &mut value, 0).is_ok();
                assert_eq!(
                    found.then(|| u64::from_ne_bytes(value)),
                    model.get(&key).copied()
                );
            }
            // Every element once, by keys and in batches.
            let mut listed = Vec::new();
            let mut at: Option<[u8; 8]> = None;
            let mut next = [0; 8];
            while map
                .get_next_key(at.as_ref().map(|k| &k[..]), &mut next)
                .is_ok()
            {
                listed.push(u64::from_ne_bytes(next));
                at = Some(next);
            }
            listed.sort_unstable();
            assert!(listed.iter().eq(model.keys()));
            let (mut token, mut in_batches, mut count) = (None::<[u8; 4]>, Vec::new(), 1);
            loop {
                let (mut keys, mut values) = (vec![0; 8 * count], vec![0; 8 * count]);
                let mut out = [0; 4];
                let token_in = token.as_ref().map(|t| &t[..]);
                let done = map.walk_batch(
                    token_in,
                    &mut out,
                    &mut keys,
                    &mut values,
                    count as u32,
                    true,
                );
                for (key, value) in keys
                    .chunks(8)
                    .zip(values.chunks(8))
                    .take(done.count as usize)
                {
                    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
                    in_batches.push(word(key));
                    assert_eq!(model.get(&word(key)), Some(&word(value)));
                }
                token = Some(out);
                match done.result.map_err(|e| e.errno()) {
                    Ok(()) => count = 1,
                    Err(Errno::ENOSPC) => count += 1,
                    Err(errno) => {
                        assert_eq!(errno, Errno::ENOENT);
                        break;
                    }
                }
                assert!(count <= 16, "a bucket has an element, more or less");
            }
            in_batches.sort_unstable();
            assert!(in_batches.iter().eq(model.keys()));
            // All gone: no group remembers an element that passed it.
            for index in 0..map.groups {
                let group = map.group(index).unwrap();
                assert_eq!(group.state.load(Relaxed) & (PASSED_MASK | HOME | LOCKED), 0);
                assert_eq!(group.tags.load(Relaxed), 0);
            }
            assert_eq!(map.used.load(Relaxed), 0);
        }
    }
}
