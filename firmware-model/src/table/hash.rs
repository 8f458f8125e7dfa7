//! HASH and PERCPU_HASH: home buckets with chains of overflow buckets over a pool of entries.
//!
//! A hash picks a home bucket by its low bits and a tag by its top byte. A bucket holds tags
//! and references to entries ([`super::bucket`]); an entry is the key padded to 8 bytes and
//! the value padded to 8 bytes (per CPU, for PERCPU_HASH). Entries never move, so iteration
//! can be ordered by reference and is not disturbed when chains are compacted.
//!
//! Chains are compact: every bucket but the last is full, and an overflow bucket is never
//! empty. A deletion moves the chain's last reference into the hole and frees the last bucket
//! when that empties it.
//!
//! **The overflow pool cannot run out.** A chain of `n` entries has `max(1, ceil(n / 8))`
//! buckets, one of which is the home bucket, so at most `floor((n - 1) / 8) <= n / 8`
//! overflow buckets for `n >= 1` and none for `n = 0`. Summed over all chains that is at most
//! `max_entries / 8`, whatever the keys; the pool has `max_entries / 8 + 1`.
//!
//! The host can write device memory through its window, so nothing read from memory is
//! trusted: references and links are checked against the pools, every walk ends after as many
//! buckets as there are, and a contradiction ends the command with [`Status::Internal`].
//!
//! The state line, after the map's description: count of entries (4 bytes), entries ever
//! taken (4), first free entry plus one (4), overflow buckets ever taken (4), first free
//! overflow bucket plus one (4). Free entries are linked through their first word, free
//! overflow buckets through their link.

use super::bucket::{BUCKET_BYTES, BUCKET_SLOTS, Bucket, Slots, Tags, tag_of};
use super::layout::{DESCRIPTION_BYTES, Geometry, MapSpec, ValueShape};
use super::{BPF_EXIST, LANES, ValueWrite, exists, fill_padded, write_value};
use crate::access::Access;
use alloc::vec::Vec;
use offmap_abi::hash::KeyHash;
use offmap_abi::{DevAddr, Status};

/// A hash table at its place in device memory. What is here is read-only for the life of the
/// map and lives with the firmware; what changes lives in device memory.
#[derive(Clone, Copy, Debug)]
pub struct HashTable {
    hash: KeyHash,
    homes: DevAddr,
    home_mask: u64,
    entries: DevAddr,
    entry_bytes: u64,
    max_entries: u32,
    overflow_count: u32,
    overflow: DevAddr,
    state: DevAddr,
    value_offset: u32,
    pub(crate) value: ValueShape,
}

/// The state line.
#[derive(Clone, Copy, Debug)]
struct State {
    count: u32,
    entries_taken: u32,
    entry_free: u32,
    buckets_taken: u32,
    bucket_free: u32,
}

/// Where a key's reference stands.
#[derive(Clone, Copy, Debug)]
struct Spot {
    at: DevAddr,
    slot: u32,
    reference: u32,
    /// The bucket before this one in the chain, and the index of this one: `None` for a home.
    overflow: Option<(DevAddr, u32)>,
}

/// Where a key is, or where it would go.
enum Located {
    Present(Spot),
    Absent { last: DevAddr, tags: Tags },
}

/// One lane of a batch lookup, between its two passes over memory.
#[derive(Clone, Copy)]
struct Lane {
    hash: u64,
    candidate: u32,
    /// Whether the home bucket has more to look at than the candidate.
    more: bool,
    any: bool,
}

/// A bounded walk over all chains that measures the longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ChainScan {
    home: u64,
    /// Link to follow next within the chain of `home`; 0: start at the home bucket.
    link: u32,
    length: u32,
    overflow_seen: u64,
    longest: u32,
}

/// Buckets that one step of a [`ChainScan`] visits.
const SCAN_BUCKETS_PER_STEP: u32 = 4096;

impl HashTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            hash: KeyHash::new(spec.seed),
            homes: base.offset(geometry.homes),
            home_mask: u64::from(geometry.home_count) - 1,
            entries: base.offset(geometry.entries),
            entry_bytes: geometry.entry_bytes,
            max_entries: spec.max_entries,
            overflow_count: geometry.overflow_count,
            overflow: base.offset(geometry.overflow),
            state: base.offset(DESCRIPTION_BYTES),
            value_offset: geometry.value_offset as u32,
            value: geometry.value,
        }
    }

    /// Number of home buckets: the exclusive bound of dump cursors.
    pub(crate) fn home_count(&self) -> u64 {
        self.home_mask + 1
    }

    #[inline(always)]
    fn home_at(&self, home: u64) -> DevAddr {
        self.homes.offset((home & self.home_mask) * BUCKET_BYTES)
    }

    #[inline(always)]
    fn overflow_at(&self, link: u32) -> Result<(DevAddr, u32), Status> {
        match link.checked_sub(1) {
            Some(index) if index < self.overflow_count => {
                Ok((self.overflow.offset(u64::from(index) * BUCKET_BYTES), index))
            }
            _ => Err(Status::Internal),
        }
    }

    #[inline(always)]
    fn entry_at(&self, reference: u32) -> Result<DevAddr, Status> {
        if reference < self.max_entries {
            Ok(self.entries.offset(u64::from(reference) * self.entry_bytes))
        } else {
            Err(Status::Internal)
        }
    }

    #[inline(always)]
    fn value_at(&self, entry: DevAddr) -> DevAddr {
        entry.offset(self.value_offset.into())
    }

    /// Whether the entry holds `key`, whose length is the map's.
    #[inline(always)]
    fn holds(&self, access: &mut impl Access, entry: DevAddr, key: &[u8]) -> Result<bool, Status> {
        // Short keys are compared as words, without a call to memcmp.
        Ok(match key.len() {
            4 => access.read::<4>(entry)? == key,
            8 => access.read::<8>(entry)? == key,
            16 => access.read::<16>(entry)? == key,
            len => access.with_bytes(entry, len, |stored| stored == key)?,
        })
    }

    /// Address of the entry that holds `key`.
    #[inline(always)]
    fn entry_of(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
    ) -> Result<(u32, DevAddr), Status> {
        let tag = tag_of(hash);
        let mut at = self.home_at(hash);
        for _ in 0..=self.overflow_count {
            let bucket = Bucket::read(access, at)?;
            for slot in bucket.tags().matches(tag) {
                let reference = bucket.reference(slot);
                let entry = self.entry_at(reference)?;
                if self.holds(access, entry, key)? {
                    return Ok((reference, entry));
                }
            }
            match bucket.link() {
                0 => return Err(Status::NotFound),
                link => at = self.overflow_at(link)?.0,
            }
        }
        Err(Status::Internal)
    }

    /// Address of the key's value.
    #[inline(always)]
    pub(crate) fn find(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        let (_, entry) = self.entry_of(access, self.hash.hash(key), key)?;
        Ok(self.value_at(entry))
    }

    /// Looks up several keys in three passes (hash, buckets, entries), in each of which the
    /// loads of different keys do not depend on each other and overlap.
    #[inline(always)]
    pub(crate) fn find_many(
        &self,
        access: &mut impl Access,
        keys: &[u8],
        key_size: usize,
        found: &mut [Result<DevAddr, Status>; LANES],
    ) {
        let mut lanes = [Lane {
            hash: 0,
            candidate: 0,
            more: false,
            any: false,
        }; LANES];
        for (key, lane) in keys.chunks_exact(key_size).zip(&mut lanes) {
            lane.hash = self.hash.hash(key);
        }
        let count = (keys.len() / key_size).min(LANES);
        for lane in &mut lanes[..count] {
            match Bucket::read(access, self.home_at(lane.hash)) {
                Ok(bucket) => {
                    let mut slots = bucket.tags().matches(tag_of(lane.hash));
                    if let Some(slot) = slots.next() {
                        lane.any = true;
                        lane.candidate = bucket.reference(slot);
                    }
                    lane.more = slots.first().is_some() || bucket.link() != 0;
                }
                // The ordinary walk will report it.
                Err(_) => lane.more = true,
            }
        }
        for ((key, lane), found) in keys.chunks_exact(key_size).zip(&lanes).zip(found) {
            *found = if lane.any
                && let Ok(entry) = self.entry_at(lane.candidate)
                && self.holds(access, entry, key) == Ok(true)
            {
                Ok(self.value_at(entry))
            } else if !lane.any && !lane.more {
                Err(Status::NotFound)
            } else {
                self.entry_of(access, lane.hash, key)
                    .map(|(_, entry)| self.value_at(entry))
            };
        }
    }

    /// Where `key` is or would go.
    fn locate(&self, access: &mut impl Access, hash: u64, key: &[u8]) -> Result<Located, Status> {
        let tag = tag_of(hash);
        let mut at = self.home_at(hash);
        let mut overflow = None;
        for _ in 0..=self.overflow_count {
            let bucket = Bucket::read(access, at)?;
            for slot in bucket.tags().matches(tag) {
                let reference = bucket.reference(slot);
                if self.holds(access, self.entry_at(reference)?, key)? {
                    return Ok(Located::Present(Spot {
                        at,
                        slot,
                        reference,
                        overflow,
                    }));
                }
            }
            match bucket.link() {
                0 => {
                    return Ok(Located::Absent {
                        last: at,
                        tags: bucket.tags(),
                    });
                }
                link => {
                    let (next, index) = self.overflow_at(link)?;
                    overflow = Some((at, index));
                    at = next;
                }
            }
        }
        Err(Status::Internal)
    }

    /// Stores a value under a key.
    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        let hash = self.hash.hash(key);
        match self.locate(access, hash, key)? {
            Located::Present(spot) => {
                exists(flags)?;
                let at = self.value_at(self.entry_at(spot.reference)?);
                write_value(access, at, &self.value, value, false)
            }
            Located::Absent { .. } if flags == BPF_EXIST => Err(Status::NotFound),
            Located::Absent { last, tags } => {
                let mut state = self.load_state(access)?;
                if state.count >= self.max_entries {
                    return Err(Status::Full);
                }
                let reference = self.take_entry(access, &mut state)?;
                let entry = self.entry_at(reference)?;
                access.with_bytes_mut(entry, self.value_offset as usize, |bytes| {
                    fill_padded(bytes, key);
                })?;
                write_value(access, self.value_at(entry), &self.value, value, true)?;
                // The entry is whole before a bucket refers to it.
                let tag = tag_of(hash);
                match tags.matches(0).first() {
                    Some(slot) => {
                        Bucket::write_reference(access, last, slot, reference)?;
                        Bucket::write_tags(access, last, tags.with(slot, tag))?;
                    }
                    None => {
                        let index = self.take_bucket(access, &mut state)?;
                        let (at, _) = self.overflow_at(index + 1)?;
                        Bucket::write_new(access, at, tag, reference)?;
                        Bucket::write_link(access, last, index + 1)?;
                    }
                }
                state.count += 1;
                self.store_state(access, &state)
            }
        }
    }

    /// Removes a key.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        let hash = self.hash.hash(key);
        let Located::Present(spot) = self.locate(access, hash, key)? else {
            return Err(Status::NotFound);
        };
        let mut state = self.load_state(access)?;
        if state.count == 0 {
            return Err(Status::Internal);
        }
        // The chain's last bucket gives its last reference to fill the hole.
        let mut tail_at = spot.at;
        let mut tail_overflow = spot.overflow;
        let mut tail = Bucket::read(access, tail_at)?;
        let mut walked = 0;
        while tail.link() != 0 {
            if walked == self.overflow_count {
                return Err(Status::Internal);
            }
            walked += 1;
            let (next, index) = self.overflow_at(tail.link())?;
            tail_overflow = Some((tail_at, index));
            tail_at = next;
            tail = Bucket::read(access, tail_at)?;
        }
        let Some(last) = tail.tags().used().last() else {
            return Err(Status::Internal);
        };
        let moved = tail.reference(last);
        let moved_tag = tail.tags().get(last);
        let mut tail_tags = tail.tags();
        if tail_at != spot.at {
            let tags = Bucket::read(access, spot.at)?.tags();
            Bucket::write_reference(access, spot.at, spot.slot, moved)?;
            Bucket::write_tags(access, spot.at, tags.with(spot.slot, moved_tag))?;
        } else if last != spot.slot {
            Bucket::write_reference(access, spot.at, spot.slot, moved)?;
            tail_tags = tail_tags.with(spot.slot, moved_tag);
        }
        tail_tags = tail_tags.with(last, 0);
        match tail_overflow {
            Some((previous, index)) if tail_tags == Tags(0) => {
                Bucket::write_link(access, previous, 0)?;
                self.release_bucket(access, &mut state, index)?;
            }
            _ => Bucket::write_tags(access, tail_at, tail_tags)?,
        }
        self.release_entry(access, &mut state, spot.reference)?;
        state.count -= 1;
        self.store_state(access, &state)
    }

    /// Address of the key that follows `key`: home buckets in order, and within a chain by
    /// ascending reference. A deletion moves references within a chain but changes none, so a
    /// walk that deletes as it goes skips no entry that stays.
    pub(crate) fn next(
        &self,
        access: &mut impl Access,
        key: Option<&[u8]>,
    ) -> Result<DevAddr, Status> {
        let mut home = 0;
        if let Some(key) = key {
            let hash = self.hash.hash(key);
            match self.entry_of(access, hash, key) {
                Ok((reference, _)) => {
                    home = hash & self.home_mask;
                    if let Some(next) = self.next_in_chain(access, home, Some(reference))? {
                        return self.entry_at(next);
                    }
                    home += 1;
                }
                Err(Status::NotFound) => {}
                Err(status) => return Err(status),
            }
        }
        while home < self.home_count() {
            if let Some(next) = self.next_in_chain(access, home, None)? {
                return self.entry_at(next);
            }
            home += 1;
        }
        Err(Status::NotFound)
    }

    /// The least reference in the chain of `home` that is greater than `after`.
    fn next_in_chain(
        &self,
        access: &mut impl Access,
        home: u64,
        after: Option<u32>,
    ) -> Result<Option<u32>, Status> {
        let mut least = None;
        self.walk(access, home, |bucket, slots| {
            for slot in slots {
                let reference = bucket.reference(slot);
                if after.is_none_or(|after| reference > after)
                    && least.is_none_or(|least| reference < least)
                {
                    least = Some(reference);
                }
            }
        })?;
        Ok(least)
    }

    /// Visits the buckets of a chain with their used slots.
    fn walk(
        &self,
        access: &mut impl Access,
        home: u64,
        mut visit: impl FnMut(&Bucket, Slots),
    ) -> Result<(), Status> {
        let mut at = self.home_at(home);
        for _ in 0..=self.overflow_count {
            let bucket = Bucket::read(access, at)?;
            let used = bucket.tags().used();
            visit(&bucket, used);
            match bucket.link() {
                0 => return Ok(()),
                // Only the last bucket of a chain has room. Were this not checked, a walk over
                // all chains could be made to visit every bucket once per chain.
                _ if used.len() < BUCKET_SLOTS => return Err(Status::Internal),
                link => at = self.overflow_at(link)?.0,
            }
        }
        Err(Status::Internal)
    }

    /// Collects the references of a chain in ascending order, if there are at most `room`;
    /// returns how many there are.
    pub(crate) fn collect(
        &self,
        access: &mut impl Access,
        home: u64,
        references: &mut Vec<u32>,
        room: usize,
    ) -> Result<usize, Status> {
        references.clear();
        let mut count = 0;
        let max_entries = self.max_entries;
        let mut valid = true;
        self.walk(access, home, |bucket, slots| {
            count += slots.len() as usize;
            if count <= room {
                references.extend(slots.map(|slot| bucket.reference(slot)));
            }
        })?;
        valid &= references.iter().all(|&reference| reference < max_entries);
        if !valid {
            return Err(Status::Internal);
        }
        references.sort_unstable();
        Ok(count)
    }

    /// Addresses of the key and the value of an entry.
    pub(crate) fn entry(&self, reference: u32) -> Result<(DevAddr, DevAddr), Status> {
        let entry = self.entry_at(reference)?;
        Ok((entry, self.value_at(entry)))
    }

    /// Removes all entries of a chain; `references` are those of the chain.
    pub(crate) fn clear_chain(
        &self,
        access: &mut impl Access,
        home: u64,
        references: &[u32],
    ) -> Result<(), Status> {
        let mut state = self.load_state(access)?;
        state.count = state
            .count
            .checked_sub(references.len() as u32)
            .ok_or(Status::Internal)?;
        let at = self.home_at(home);
        let mut link = Bucket::read(access, at)?.link();
        Bucket::write_tags(access, at, Tags(0))?;
        Bucket::write_link(access, at, 0)?;
        for _ in 0..self.overflow_count {
            if link == 0 {
                break;
            }
            let (at, index) = self.overflow_at(link)?;
            link = Bucket::read(access, at)?.link();
            self.release_bucket(access, &mut state, index)?;
        }
        for &reference in references {
            self.release_entry(access, &mut state, reference)?;
        }
        self.store_state(access, &state)
    }

    /// Entries in the table.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        Ok(self.load_state(access)?.count)
    }

    /// A bounded step of measuring the longest chain, in buckets; `None`: call again. The
    /// table may change between steps, and the result is then that of no single moment.
    pub(crate) fn scan_step(
        &self,
        access: &mut impl Access,
        scan: &mut ChainScan,
    ) -> Result<Option<u32>, Status> {
        for _ in 0..SCAN_BUCKETS_PER_STEP {
            // Chains do not share buckets. If memory says otherwise, or changes so fast that
            // more were seen than there are, the walk ends with what it has.
            let exhausted = scan.overflow_seen > u64::from(self.overflow_count) * 2;
            if scan.home > self.home_mask || exhausted {
                return Ok(Some(scan.longest));
            }
            let at = match scan.link {
                0 => self.home_at(scan.home),
                link => {
                    scan.overflow_seen += 1;
                    self.overflow_at(link)?.0
                }
            };
            let bucket = Bucket::read(access, at)?;
            scan.length += 1;
            if scan.length == 1 && bucket.tags() == Tags(0) {
                scan.length = 0;
            }
            scan.longest = scan.longest.max(scan.length);
            scan.link = bucket.link();
            if scan.link == 0 || scan.length > self.overflow_count {
                scan.link = 0;
                scan.length = 0;
                scan.home += 1;
            }
        }
        Ok(None)
    }

    fn load_state(&self, access: &mut impl Access) -> Result<State, Status> {
        let line: [u8; 20] = access.read(self.state)?;
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(line.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [count, entries_taken, entry_free, buckets_taken, bucket_free] = words;
        if count > self.max_entries {
            return Err(Status::Internal);
        }
        Ok(State {
            count,
            entries_taken,
            entry_free,
            buckets_taken,
            bucket_free,
        })
    }

    fn store_state(&self, access: &mut impl Access, state: &State) -> Result<(), Status> {
        let words = [
            state.count,
            state.entries_taken,
            state.entry_free,
            state.buckets_taken,
            state.bucket_free,
        ];
        let mut line = [0; 20];
        for (bytes, word) in line.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Ok(access.write(self.state, line)?)
    }

    /// A free entry: one that was used before, else the next that never was.
    fn take_entry(&self, access: &mut impl Access, state: &mut State) -> Result<u32, Status> {
        if let Some(reference) = state.entry_free.checked_sub(1) {
            state.entry_free = access.read_u32(self.entry_at(reference)?)?;
            return Ok(reference);
        }
        let reference = state.entries_taken;
        self.entry_at(reference)?;
        state.entries_taken += 1;
        Ok(reference)
    }

    fn release_entry(
        &self,
        access: &mut impl Access,
        state: &mut State,
        reference: u32,
    ) -> Result<(), Status> {
        access.write_u64(self.entry_at(reference)?, state.entry_free.into())?;
        state.entry_free = reference + 1;
        Ok(())
    }

    /// Index of a free overflow bucket, likewise.
    fn take_bucket(&self, access: &mut impl Access, state: &mut State) -> Result<u32, Status> {
        if state.bucket_free != 0 {
            let (at, index) = self.overflow_at(state.bucket_free)?;
            state.bucket_free = Bucket::read(access, at)?.link();
            return Ok(index);
        }
        let index = state.buckets_taken;
        if index >= self.overflow_count {
            return Err(Status::Internal);
        }
        state.buckets_taken += 1;
        Ok(index)
    }

    fn release_bucket(
        &self,
        access: &mut impl Access,
        state: &mut State,
        index: u32,
    ) -> Result<(), Status> {
        let (at, _) = self.overflow_at(index + 1)?;
        Bucket::write_empty(access, at, state.bucket_free)?;
        state.bucket_free = index + 1;
        Ok(())
    }
}
