//! HASH, LRU_HASH and their per-CPU forms: home buckets with chains of overflow buckets over a pool of entries.
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
//! Walks over the whole table (get-next, dumps) find the next home bucket that holds anything in
//! a tree of bits ([`super::occupancy`]), which is written only when a home bucket becomes empty
//! or ceases to be.
//!
//! The state line, after the map's description: count of entries (4 bytes), entries ever
//! taken (4), first free entry plus one (4), overflow buckets ever taken (4), first free
//! overflow bucket plus one (4), the hand of LRU types (4). Free entries are linked through
//! their first word, free overflow buckets through their link.
//!
//! **LRU types** evict when a key is new and the table is full. The policy is CLOCK with a bound:
//! each entry has a byte of recency, not 0 once it was used, and the hand goes round the entries,
//! all of which are in use then. It clears the bytes of up to [`EVICT_SCANS`] used entries and
//! evicts the first that was not, or else the next. An update that finds its key, and a lookup by a
//! data-path engine, count as use; a lookup by the host does not, so that a dump changes
//! nothing. Entries are filled in order, so that without uses the oldest goes first; one that
//! takes the place of a deleted key starts as used, since the hand may be just before it.

mod walk;

use super::bucket::{BUCKET_BYTES, Bucket, Probe, Tags, tag_of};
use super::layout::{DESCRIPTION_BYTES, Geometry, MapSpec, ValueShape};
use super::occupancy::Occupancy;
use super::{LANES, ValueWrite, exists, fill_padded, write_value};
use crate::access::{Access, Part};
use core::ops::ControlFlow;
use offmap_abi::hash::KeyHash;
use offmap_abi::submission::UPDATE_EXIST;
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
    key_size: u32,
    pub(crate) value: ValueShape,
    occupancy: Occupancy,
    /// The bytes of recency; `None`: a full table takes no new key.
    recency: Option<DevAddr>,
}

/// The state line.
#[derive(Clone, Copy, Debug)]
struct State {
    count: u32,
    entries_taken: u32,
    entry_free: u32,
    buckets_taken: u32,
    bucket_free: u32,
    /// The entry at which the next eviction starts to look.
    hand: u32,
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

/// Used entries that an eviction passes over at most.
pub const EVICT_SCANS: u32 = 32;

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
            key_size: spec.key_size,
            value: geometry.value,
            occupancy: Occupancy::new(base.offset(geometry.occupancy), geometry.home_count.into()),
            recency: spec.kind.is_lru().then(|| base.offset(geometry.recency)),
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

    /// Reference and address of the entry that holds `key`.
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

    /// Calls `f` with the address of the key's value.
    #[inline(always)]
    pub(crate) fn with_value<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        if A::SHARED {
            let part = self.chain(self.hash_of(key));
            return access.consistent(part, |access| {
                let at = self.find(access, key)?;
                Ok(f(access, at))
            });
        }
        let at = self.find(access, key)?;
        Ok(f(access, at))
    }

    /// As [`Self::with_value`], and nothing else happens to the value meanwhile.
    pub(crate) fn modify<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        access.locked(self.chain(self.hash_of(key)), |access| {
            let at = self.find(access, key)?;
            let done = f(access, at)?;
            self.mark(access, at)?;
            Ok(done)
        })
    }

    /// What a table has once.
    #[inline(always)]
    fn part(&self) -> Part {
        Part::Table(self.state)
    }

    /// The chain of a hash's home bucket, or of that number, with its entries.
    #[inline(always)]
    fn chain(&self, home: u64) -> Part {
        Part::Entry(self.home_at(home))
    }

    /// Address of the key's value.
    #[inline]
    fn find(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        // With the length known, the hash and the comparison are a few instructions each.
        match key.len() {
            4 => self.find_sized::<4>(access, key),
            8 => self.find_sized::<8>(access, key),
            16 => self.find_sized::<16>(access, key),
            _ => self.find_any(access, key),
        }
    }

    #[inline(always)]
    fn find_sized<const N: usize>(
        &self,
        access: &mut impl Access,
        key: &[u8],
    ) -> Result<DevAddr, Status> {
        match <&[u8; N]>::try_from(key) {
            Ok(key) => self.find_any(access, key),
            Err(_) => Err(Status::InvalidLength),
        }
    }

    /// The key's hash.
    #[inline(always)]
    pub(crate) fn hash_of(&self, key: &[u8]) -> u64 {
        match key.len() {
            4 => self.hash_sized::<4>(key),
            8 => self.hash_sized::<8>(key),
            16 => self.hash_sized::<16>(key),
            _ => self.hash.hash(key),
        }
    }

    /// With the length known, a hash is a few instructions.
    #[inline(always)]
    fn hash_sized<const N: usize>(&self, key: &[u8]) -> u64 {
        match <&[u8; N]>::try_from(key) {
            Ok(key) => self.hash.hash(key),
            Err(_) => self.hash.hash(key),
        }
    }

    /// Asks for the home bucket of a hash, or of that number.
    #[inline(always)]
    pub(crate) fn warm_bucket(&self, access: &mut impl Access, home: u64) {
        access.prefetch(self.home_at(home), BUCKET_BYTES);
    }

    /// The entry that a lookup of a key of that hash would look at first, and its size in bytes: most
    /// likely the key's, if there is one.
    #[inline(always)]
    pub(crate) fn candidate(&self, access: &mut impl Access, hash: u64) -> Option<(DevAddr, u64)> {
        let reference = Bucket::peek_candidate(access, self.home_at(hash), tag_of(hash))?;
        let entry = self.entry_at(reference).ok()?;
        Some((entry, self.entry_bytes))
    }

    /// Calls `f` with the entries of a home bucket, and their size in bytes, looked at as
    /// [`Access::peek`] does.
    #[inline(always)]
    pub(crate) fn candidates<A: Access>(
        &self,
        access: &mut A,
        home: u64,
        mut f: impl FnMut(&mut A, DevAddr, u64),
    ) {
        if home > self.home_mask {
            return;
        }
        let Some(bucket) = Bucket::peek(access, self.home_at(home)) else {
            return;
        };
        for slot in bucket.tags().used() {
            if let Ok(entry) = self.entry_at(bucket.reference(slot)) {
                f(access, entry, self.entry_bytes);
            }
        }
    }

    /// Nearly always the first candidate in the home bucket is the key, or there is none and
    /// no chain; only otherwise does the whole walk run.
    #[inline(always)]
    fn find_any(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        let hash = self.hash.hash(key);
        let probe = Bucket::probe(access, self.home_at(hash), tag_of(hash))?;
        self.resolve(access, hash, key, &probe)
    }

    /// The end of a lookup whose home bucket was probed.
    #[inline(always)]
    fn resolve(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
        probe: &Probe,
    ) -> Result<DevAddr, Status> {
        if let Some(reference) = probe.candidate {
            let entry = self.entry_at(reference)?;
            if self.holds(access, entry, key)? {
                return Ok(self.value_at(entry));
            }
        }
        if probe.is_last() {
            return Err(Status::NotFound);
        }
        self.find_in_chain(access, hash, key)
    }

    #[cold]
    #[inline(never)]
    fn find_in_chain(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
    ) -> Result<DevAddr, Status> {
        let (_, entry) = self.entry_of(access, hash, key)?;
        Ok(self.value_at(entry))
    }

    /// Looks up the keys packed in `keys`, at most [`LANES`] of them, and visits the results in
    /// order until `visit` breaks.
    #[inline]
    pub(crate) fn visit_many<A: Access>(
        &self,
        access: &mut A,
        keys: &[u8],
        key_size: usize,
        visit: impl FnMut(&mut A, usize, Result<DevAddr, Status>) -> ControlFlow<()>,
    ) {
        match key_size {
            4 => self.visit_lanes(access, keys.as_chunks::<4>().0.iter(), visit),
            8 => self.visit_lanes(access, keys.as_chunks::<8>().0.iter(), visit),
            16 => self.visit_lanes(access, keys.as_chunks::<16>().0.iter(), visit),
            _ => self.visit_lanes(access, keys.chunks_exact(key_size), visit),
        }
    }

    /// Passes (hash, buckets, entries) in each of which the loads of different keys do not
    /// depend on each other and overlap.
    #[inline(always)]
    fn visit_lanes<A: Access, K: AsRef<[u8]>>(
        &self,
        access: &mut A,
        keys: impl ExactSizeIterator<Item = K> + Clone,
        mut visit: impl FnMut(&mut A, usize, Result<DevAddr, Status>) -> ControlFlow<()>,
    ) {
        if A::SHARED {
            // One after the other: each is looked at and visited at one moment.
            for (lane, key) in keys.enumerate() {
                let key = key.as_ref();
                let chain = self.chain(self.hash.hash(key));
                let visited = access.locked(chain, |access| {
                    let found = self.find(access, key);
                    Ok(visit(access, lane, found))
                });
                if !matches!(visited, Ok(ControlFlow::Continue(()))) {
                    return;
                }
            }
            return;
        }
        let count = keys.len().min(LANES);
        let mut hashes = [0; LANES];
        for (key, hash) in keys.clone().zip(&mut hashes) {
            *hash = self.hash.hash(key.as_ref());
        }
        let mut probes = [Ok(Probe::EMPTY); LANES];
        for (probe, &hash) in probes.iter_mut().zip(&hashes[..count]) {
            *probe = Bucket::probe(access, self.home_at(hash), tag_of(hash));
        }
        let mut found = [Err(Status::NotFound); LANES];
        for (((key, &hash), probe), found) in keys.zip(&hashes).zip(&probes).zip(&mut found) {
            *found = match probe {
                Ok(probe) => self.resolve(access, hash, key.as_ref(), probe),
                Err(fault) => Err((*fault).into()),
            };
        }
        for (lane, &found) in found[..count].iter().enumerate() {
            if visit(access, lane, found).is_break() {
                return;
            }
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
    pub(crate) fn update<A: Access>(
        &self,
        access: &mut A,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        let hash = self.hash.hash(key);
        if A::SHARED && self.overwrite(access, hash, key, value, flags)? {
            return Ok(());
        }
        access.locked(self.part(), |access| {
            self.store(access, hash, key, value, flags)
        })
    }

    /// Stores a value under a key that is there, without the table's lock; `false`: it is not there.
    fn overwrite(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<bool, Status> {
        access.locked(self.chain(hash), |access| {
            let Located::Present(spot) = self.locate(access, hash, key)? else {
                return Ok(false);
            };
            exists(flags)?;
            let at = self.value_at(self.entry_at(spot.reference)?);
            write_value(access, at, &self.value, value, false)?;
            self.mark(access, at)?;
            Ok(true)
        })
    }

    /// Stores a value under a key, with the table's lock.
    #[inline(always)]
    fn store<A: Access>(
        &self,
        access: &mut A,
        hash: u64,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        match self.locate(access, hash, key)? {
            Located::Present(spot) => {
                exists(flags)?;
                let at = self.value_at(self.entry_at(spot.reference)?);
                access.locked(self.chain(hash), |access| {
                    write_value(access, at, &self.value, value, false)?;
                    self.mark(access, at)
                })
            }
            Located::Absent { .. } if flags == UPDATE_EXIST => Err(Status::NotFound),
            Located::Absent { mut last, mut tags } => {
                let mut state = self.load_state(access)?;
                let full = state.count >= self.max_entries;
                if full {
                    self.evict(access)?;
                    state = self.load_state(access)?;
                    // The chain may be the one that the evicted entry was in.
                    let Located::Absent { last: l, tags: t } = self.locate(access, hash, key)?
                    else {
                        return Err(Status::Internal);
                    };
                    (last, tags) = (l, t);
                }
                let reused = state.entry_free != 0 && !full;
                access.locked(self.chain(hash), |access| {
                    let end = (last, tags);
                    self.insert(access, hash, key, value, end, &mut state, reused)
                })
            }
        }
    }

    /// Adds a key that is not there, at the end of its chain.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "what the search for the key has found goes with the key"
    )]
    fn insert(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
        value: ValueWrite<'_>,
        (last, tags): (DevAddr, Tags),
        state: &mut State,
        reused: bool,
    ) -> Result<(), Status> {
        let reference = self.take_entry(access, state)?;
        if let Some(recency) = self.recency {
            let at = recency.offset(reference.into());
            access.write(at, [u8::from(reused)])?;
        }
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
                // Only a home bucket is ever empty.
                if tags == Tags(0) {
                    self.occupancy.set(access, hash & self.home_mask)?;
                }
            }
            None => {
                let index = self.take_bucket(access, state)?;
                let (at, _) = self.overflow_at(index + 1)?;
                Bucket::write_new(access, at, tag, reference)?;
                Bucket::write_link(access, last, index + 1)?;
            }
        }
        state.count += 1;
        self.store_state(access, state)
    }

    /// The value at `at`, one of this table's, was used.
    #[inline(always)]
    pub(crate) fn mark(&self, access: &mut impl Access, at: DevAddr) -> Result<(), Status> {
        let Some(recency) = self.recency else {
            return Ok(());
        };
        let offset = at.0.wrapping_sub(self.value_at(self.entries).0);
        let at = recency.offset(offset / self.entry_bytes);
        // Mostly it is set, and then nobody's cache line is taken away.
        if access.read::<1>(at)? == [0] {
            access.write(at, [1])?;
        }
        Ok(())
    }

    /// Removes an entry of a full table that has recency; otherwise `Full`.
    #[cold]
    fn evict(&self, access: &mut impl Access) -> Result<(), Status> {
        let recency = self.recency.ok_or(Status::Full)?;
        let mut state = self.load_state(access)?;
        // The host may have written any word there; every one stands for an entry.
        let mut victim = state.hand % self.max_entries;
        for _ in 0..EVICT_SCANS {
            let at = recency.offset(victim.into());
            if access.read::<1>(at)? == [0] {
                break;
            }
            access.write(at, [0])?;
            victim = (victim + 1) % self.max_entries;
        }
        // The hand goes on even if this entry turns out to be in no chain.
        state.hand = (victim + 1) % self.max_entries;
        self.store_state(access, &state)?;
        let entry = self.entry_at(victim)?;
        let key_size = self.key_size as usize;
        let hash = access.with_bytes(entry, key_size, |key| self.hash.hash(key))?;
        let spot = self.spot_of(access, hash, victim)?;
        access.locked(self.chain(hash), |access| {
            self.remove(access, hash & self.home_mask, &spot)
        })
    }

    /// Where the reference to an entry stands, whose key has this hash.
    fn spot_of(&self, access: &mut impl Access, hash: u64, reference: u32) -> Result<Spot, Status> {
        let tag = tag_of(hash);
        let mut at = self.home_at(hash);
        let mut overflow = None;
        for _ in 0..=self.overflow_count {
            let bucket = Bucket::read(access, at)?;
            let mut slots = bucket.tags().matches(tag);
            if let Some(slot) = slots.find(|&slot| bucket.reference(slot) == reference) {
                return Ok(Spot {
                    at,
                    slot,
                    reference,
                    overflow,
                });
            }
            let (next, index) = self.overflow_at(bucket.link())?;
            overflow = Some((at, index));
            at = next;
        }
        Err(Status::Internal)
    }

    /// Removes a key.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        self.take(access, key, |_, _| Ok(()))
    }

    /// Calls `f` with the address of the key's value, and removes the key if that succeeds.
    pub(crate) fn take<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let hash = self.hash.hash(key);
        access.locked(self.part(), |access| {
            let Located::Present(spot) = self.locate(access, hash, key)? else {
                return Err(Status::NotFound);
            };
            access.locked(self.chain(hash), |access| {
                let taken = f(access, self.value_at(self.entry_at(spot.reference)?))?;
                self.remove(access, hash & self.home_mask, &spot)?;
                Ok(taken)
            })
        })
    }

    /// Removes the entry at a spot in the chain of `home`.
    fn remove(&self, access: &mut impl Access, home: u64, spot: &Spot) -> Result<(), Status> {
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
            _ => {
                Bucket::write_tags(access, tail_at, tail_tags)?;
                if tail_tags == Tags(0) {
                    self.occupancy.clear(access, home)?;
                }
            }
        }
        self.release_entry(access, &mut state, spot.reference)?;
        state.count -= 1;
        self.store_state(access, &state)
    }

    /// Entries in the table.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        Ok(self.load_state(access)?.count)
    }

    fn load_state(&self, access: &mut impl Access) -> Result<State, Status> {
        let line: [u8; 24] = access.read(self.state)?;
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(line.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [
            count,
            entries_taken,
            entry_free,
            buckets_taken,
            bucket_free,
            hand,
        ] = words;
        if count > self.max_entries {
            return Err(Status::Internal);
        }
        Ok(State {
            count,
            entries_taken,
            entry_free,
            buckets_taken,
            bucket_free,
            hand,
        })
    }

    fn store_state(&self, access: &mut impl Access, state: &State) -> Result<(), Status> {
        let words = [
            state.count,
            state.entries_taken,
            state.entry_free,
            state.buckets_taken,
            state.bucket_free,
            state.hand,
        ];
        let mut line = [0; 24];
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
