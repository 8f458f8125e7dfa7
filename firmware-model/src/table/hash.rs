//! HASH, LRU_HASH and their per-CPU forms: home buckets with chains of overflow buckets over a pool of entries.
//!
//! A hash picks a home bucket by its low bits and a tag by its top byte. A bucket holds tags and says
//! where entries stand ([`super::bucket`]); an entry is the key padded to 8 bytes and
//! the value padded to 8 bytes (per CPU, for PERCPU_HASH). Entries never move, so iteration
//! can be ordered by reference and is not disturbed when chains are compacted.
//!
//! **Where entries stand.** Each home bucket has a first place among the entries, home `h` of `H` that
//! of number `h * max_entries / H`. A new entry takes the first free place from there on, round and
//! round, which a tree of bits finds ([`super::occupancy`]). Most often it is less than 255 places on, in
//! a full table for 29 of 30, and then the bucket's header says all: a lookup reads the header, the
//! key and the value, and a table's headers are a tenth of what its entries take. Otherwise the
//! reference is in the bucket's back, one access more. LRU types fill their entries in order instead.
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
//! **Accesses.** In a chain of `n` entries and `b = max(1, ceil(n / 8))` buckets a lookup takes at most
//! `2 n + 2 b + 3` (each bucket's header and link, of each entry with the key's tag the reference and the
//! key; the home's header again; the value): three of a key that is first of its tag in its home bucket,
//! one of a key that is not there and whose tag is not either. An insertion takes at most twice that and
//! a constant, a deletion `2 b` more than that and a constant; an eviction adds `2 EVICT_SCANS` and the deletion.
//! `tests/bounds.rs` counts them, with keys chosen so that `n` is `max_entries`.
//!
//! The host can write device memory through its window, so nothing read from memory is
//! trusted: references and links are checked against the pools, every walk ends after as many
//! buckets as there are, and a contradiction ends the command with [`Status::Internal`].
//!
//! Walks over the whole table (get-next, dumps) find the next home bucket that holds anything in
//! a tree of bits ([`super::occupancy`]), which is written only when a home bucket becomes empty
//! or ceases to be.
//!
//! The state line, after the map's description: count of entries (4 bytes), the end of those ever
//! taken (4), zero (4), overflow buckets ever taken (4), first free overflow bucket plus one (4), the
//! hand of LRU types (4). Free overflow buckets are linked through their link.
//!
//! **LRU types** evict when a key is new and the table is full. The policy is CLOCK with a bound:
//! each entry has a byte of recency, not 0 once it was used, and the hand goes round the entries,
//! all of which are in use then. It clears the bytes of up to [`EVICT_SCANS`] used entries and
//! evicts the first that was not, or else the next. An update that finds its key, and a lookup by a
//! data-path engine, count as use; a lookup by the host does not, so that a dump changes
//! nothing. Entries are filled in order, so that without uses the oldest goes first; one that
//! takes the place of a deleted key starts as used, since the hand may be just before it.

mod ahead;
mod pool;
mod walk;

use super::bucket::{
    BACK_BYTES, BUCKET_SLOTS, FAR, HEADER_BYTES, Header, Tags, read_link, read_reference, tag_of,
    write_link, write_reference,
};
use super::layout::{DESCRIPTION_BYTES, Geometry, MapSpec, ValueShape};
use super::occupancy::Occupancy;
use super::{LANES, ValueWrite, exists, fill_padded, write_value};
use crate::access::{Access, MemoryFault, Part};
use core::ops::ControlFlow;
use offmap_abi::hash::KeyHash;
use offmap_abi::submission::{UPDATE_EXIST, UPDATE_NOEXIST};
use offmap_abi::{DevAddr, Status};

/// A hash table at its place in device memory. What is here is read-only for the life of the
/// map and lives with the firmware; what changes lives in device memory.
#[derive(Clone, Copy, Debug)]
pub struct HashTable {
    hash: KeyHash,
    headers: DevAddr,
    home_mask: u64,
    /// Bits of a home's number.
    home_bits: u32,
    entries: DevAddr,
    entry_bytes: u64,
    max_entries: u32,
    overflow_count: u32,
    backs: DevAddr,
    state: DevAddr,
    value_offset: u32,
    key_size: u32,
    pub(crate) value: ValueShape,
    occupancy: Occupancy,
    /// Which entries are free.
    free: Occupancy,
    /// The bytes of recency; `None`: a full table takes no new key.
    recency: Option<DevAddr>,
}

/// The state line.
#[derive(Clone, Copy, Debug)]
struct State {
    count: u32,
    entries_taken: u32,
    buckets_taken: u32,
    bucket_free: u32,
    /// The entry at which the next eviction starts to look.
    hand: u32,
}

/// Number of a bucket: home buckets first, then overflow buckets.
type BucketId = u64;

/// Where a key's reference stands.
#[derive(Clone, Copy, Debug)]
struct Spot {
    id: BucketId,
    slot: u32,
    reference: u32,
    /// The bucket before this one in the chain, and the index of this one: `None` for a home.
    overflow: Option<(BucketId, u32)>,
}

/// Where a key is, or where it would go.
enum Located {
    Present(Spot),
    Absent { last: BucketId, header: Header },
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
    homes_used: u32,
    /// Entries by the buckets that a lookup of them reads: 1, 2, 3, 4, up to 8, up to 16, more.
    probes: [u32; 7],
}

/// Used entries that an eviction passes over at most.
pub const EVICT_SCANS: u32 = 32;

impl HashTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            hash: KeyHash::new(spec.seed),
            headers: base.offset(geometry.homes),
            home_mask: u64::from(geometry.home_count) - 1,
            home_bits: geometry.home_count.trailing_zeros(),
            entries: base.offset(geometry.entries),
            entry_bytes: geometry.entry_bytes,
            max_entries: spec.max_entries,
            overflow_count: geometry.overflow_count,
            backs: base.offset(geometry.backs),
            state: base.offset(DESCRIPTION_BYTES),
            value_offset: geometry.value_offset as u32,
            key_size: spec.key_size,
            value: geometry.value,
            occupancy: Occupancy::new(base.offset(geometry.occupancy), geometry.home_count.into()),
            free: Occupancy::free(base.offset(geometry.free), spec.max_entries.into()),
            recency: spec.kind.is_lru().then(|| base.offset(geometry.recency)),
        }
    }

    /// Number of overflow buckets.
    pub(crate) fn overflow_count(&self) -> u32 {
        self.overflow_count
    }

    /// Number of home buckets: the exclusive bound of dump cursors.
    pub(crate) fn home_count(&self) -> u64 {
        self.home_mask + 1
    }

    #[inline(always)]
    fn home_of(&self, hash: u64) -> BucketId {
        hash & self.home_mask
    }

    #[inline(always)]
    fn header_at(&self, id: BucketId) -> DevAddr {
        self.headers.offset(id * HEADER_BYTES)
    }

    #[inline(always)]
    fn back_at(&self, id: BucketId) -> DevAddr {
        self.backs.offset(id * BACK_BYTES)
    }

    /// The overflow bucket at a link, with its index.
    #[inline(always)]
    fn overflow_of(&self, link: u32) -> Result<(BucketId, u32), Status> {
        match link.checked_sub(1) {
            Some(index) if index < self.overflow_count => {
                Ok((self.home_count() + u64::from(index), index))
            }
            _ => Err(Status::Internal),
        }
    }

    /// The link of a bucket; 0: its chain ends here.
    #[inline(always)]
    fn link_of(
        &self,
        access: &mut impl Access,
        id: BucketId,
        header: Header,
    ) -> Result<u32, Status> {
        if header.tags.is_full() {
            return Ok(read_link(access, self.back_at(id))?);
        }
        Ok(0)
    }

    /// The first place of a home bucket among the entries.
    #[inline(always)]
    fn first_place(&self, home: u64) -> u64 {
        (home * u64::from(self.max_entries)) >> self.home_bits
    }

    /// The reference in a slot of a bucket in the chain of `home`.
    #[inline(always)]
    fn reference_of(
        &self,
        access: &mut impl Access,
        home: u64,
        (id, header): (BucketId, Header),
        slot: u32,
    ) -> Result<u32, Status> {
        match header.distance(slot) {
            FAR => Ok(read_reference(access, self.back_at(id), slot)?),
            distance => Ok((self.first_place(home) + u64::from(distance)) as u32),
        }
    }

    /// Puts a reference into a slot of a bucket in the chain of `home`; what its header is then.
    fn refer(
        &self,
        access: &mut impl Access,
        home: u64,
        (id, header): (BucketId, Header),
        slot: u32,
        (tag, reference): (u8, u32),
    ) -> Result<Header, Status> {
        let distance = u64::from(reference).checked_sub(self.first_place(home));
        let near = distance.and_then(|distance| u8::try_from(distance).ok());
        let distance = near.unwrap_or(FAR);
        if distance == FAR {
            write_reference(access, self.back_at(id), slot, reference)?;
        }
        let header = header.with(slot, tag, distance);
        header.write(access, self.header_at(id))?;
        Ok(header)
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
        match self.locate(access, hash, key)? {
            Located::Present(spot) => Ok((spot.reference, self.entry_at(spot.reference)?)),
            Located::Absent { .. } => Err(Status::NotFound),
        }
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
        Part::Entry(self.header_at(self.home_of(home)))
    }

    /// Address of the key's value.
    #[inline(always)]
    fn find(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        // With the length known, the hash and the comparison are a few instructions each.
        match key.len() {
            8 => self.find_sized::<8>(access, key),
            _ => self.find_other(access, key),
        }
    }

    #[inline(never)]
    fn find_other(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        match key.len() {
            4 => self.find_sized::<4>(access, key),
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

    /// Nearly always the first candidate in the home bucket is the key, or there is none and
    /// no chain; only otherwise does the whole walk run.
    #[inline(always)]
    fn find_any(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        let hash = self.hash.hash(key);
        let header = self.probe(access, hash)?;
        self.resolve(access, hash, key, header)
    }

    /// Reads the header of a hash's home bucket.
    #[inline(always)]
    fn probe(&self, access: &mut impl Access, hash: u64) -> Result<Header, MemoryFault> {
        let home = self.home_of(hash);
        if self.recency.is_some() {
            // Where entries are filled in order the back is needed too: not one after the other.
            access.prefetch(self.back_at(home), BACK_BYTES);
        }
        Header::read(access, self.header_at(home))
    }

    /// The end of a lookup whose home bucket was probed.
    #[inline(always)]
    fn resolve(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
        header: Header,
    ) -> Result<DevAddr, Status> {
        let tag = tag_of(hash);
        if let Some(distance) = header.first_distance(tag)
            && distance != FAR
        {
            let reference = self.first_place(self.home_of(hash)) + u64::from(distance);
            let entry = self.entry_at(reference as u32)?;
            if self.holds(access, entry, key)? {
                return Ok(self.value_at(entry));
            }
        }
        self.resolve_slowly(access, hash, key, header)
    }

    #[cold]
    #[inline(never)]
    fn resolve_slowly(
        &self,
        access: &mut impl Access,
        hash: u64,
        key: &[u8],
        header: Header,
    ) -> Result<DevAddr, Status> {
        let slots = header.tags.matches(tag_of(hash));
        // Nothing that was not looked at: the key is not there.
        let looked = slots
            .first()
            .is_none_or(|slot| header.distance(slot) != FAR);
        if looked && slots.len() <= 1 && !header.tags.is_full() {
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
        let mut headers = [Ok(Header::EMPTY); LANES];
        for (header, &hash) in headers.iter_mut().zip(&hashes[..count]) {
            *header = self.probe(access, hash);
        }
        let mut found = [Err(Status::NotFound); LANES];
        for (((key, &hash), header), found) in keys.zip(&hashes).zip(&headers).zip(&mut found) {
            *found = match header {
                Ok(header) => self.resolve(access, hash, key.as_ref(), *header),
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
    #[inline(always)]
    fn locate(&self, access: &mut impl Access, hash: u64, key: &[u8]) -> Result<Located, Status> {
        self.search(access, hash, |access, reference| {
            self.holds(access, self.entry_at(reference)?, key)
        })
    }

    /// Where the first entry of a hash's tag is that `is_it` accepts, or where one would go.
    #[inline(always)]
    fn search<A: Access>(
        &self,
        access: &mut A,
        hash: u64,
        mut is_it: impl FnMut(&mut A, u32) -> Result<bool, Status>,
    ) -> Result<Located, Status> {
        let tag = tag_of(hash);
        let home = self.home_of(hash);
        let mut id = home;
        let mut overflow = None;
        for _ in 0..=self.overflow_count {
            let header = Header::read(access, self.header_at(id))?;
            for slot in header.tags.matches(tag) {
                let reference = self.reference_of(access, home, (id, header), slot)?;
                if is_it(access, reference)? {
                    return Ok(Located::Present(Spot {
                        id,
                        slot,
                        reference,
                        overflow,
                    }));
                }
            }
            match self.link_of(access, id, header)? {
                0 => return Ok(Located::Absent { last: id, header }),
                link => {
                    let (next, index) = self.overflow_of(link)?;
                    overflow = Some((id, index));
                    id = next;
                }
            }
        }
        Err(Status::Internal)
    }

    /// Stores a value under a key.
    #[inline]
    pub(crate) fn update<A: Access>(
        &self,
        access: &mut A,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        if A::SHARED {
            let hash = self.hash_of(key);
            if self.overwrite(access, hash, key, value, flags)? {
                return Ok(());
            }
        } else if flags != UPDATE_NOEXIST {
            // Alone, as a lookup, and the value goes where it was found.
            match self.find(access, key) {
                Ok(at) => {
                    write_value(access, at, &self.value, value, false)?;
                    return self.mark(access, at);
                }
                Err(Status::NotFound) => {}
                Err(status) => return Err(status),
            }
        }
        self.update_slowly(access, key, value, flags)
    }

    #[cold]
    #[inline(never)]
    fn update_slowly(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        let hash = self.hash_of(key);
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
            Located::Absent {
                mut last,
                mut header,
            } => {
                let mut state = self.load_state(access)?;
                let full = state.count >= self.max_entries;
                if full {
                    self.evict(access)?;
                    state = self.load_state(access)?;
                    // The chain may be the one that the evicted entry was in.
                    let Located::Absent { last: l, header: h } = self.locate(access, hash, key)?
                    else {
                        return Err(Status::Internal);
                    };
                    (last, header) = (l, h);
                }
                access.locked(self.chain(hash), |access| {
                    let end = (last, header);
                    self.insert(access, hash, key, value, end, &mut state, full)
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
        (last, header): (BucketId, Header),
        state: &mut State,
        evicted: bool,
    ) -> Result<(), Status> {
        let home = self.home_of(hash);
        let (reference, reused) = self.take_entry(access, state, home)?;
        if let Some(recency) = self.recency {
            let at = recency.offset(reference.into());
            access.write(at, [u8::from(reused && !evicted)])?;
        }
        let entry = self.entry_at(reference)?;
        access.with_bytes_mut(entry, self.value_offset as usize, |bytes| {
            fill_padded(bytes, key);
        })?;
        write_value(access, self.value_at(entry), &self.value, value, true)?;
        // The entry is whole before a bucket refers to it.
        let refers = (tag_of(hash), reference);
        match header.tags.matches(0).first() {
            Some(slot) => {
                if header.tags.used().len() == BUCKET_SLOTS - 1 {
                    // The bucket becomes full, and its link means something.
                    write_link(access, self.back_at(last), 0)?;
                }
                self.refer(access, home, (last, header), slot, refers)?;
                // Only a home bucket is ever empty.
                if header.tags == Tags(0) {
                    self.occupancy.set(access, home)?;
                }
            }
            None => {
                let index = self.take_bucket(access, state)?;
                let (id, _) = self.overflow_of(index + 1)?;
                self.refer(access, home, (id, Header::EMPTY), 0, refers)?;
                write_link(access, self.back_at(last), index + 1)?;
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
        match self.search(access, hash, |_, found| Ok(found == reference))? {
            Located::Present(spot) => Ok(spot),
            Located::Absent { .. } => Err(Status::Internal),
        }
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
        let mut tail_id = spot.id;
        let mut tail_overflow = spot.overflow;
        let mut tail = Header::read(access, self.header_at(tail_id))?;
        let mut walked = 0;
        loop {
            let link = self.link_of(access, tail_id, tail)?;
            if link == 0 {
                break;
            }
            if walked == self.overflow_count {
                return Err(Status::Internal);
            }
            walked += 1;
            let (next, index) = self.overflow_of(link)?;
            tail_overflow = Some((tail_id, index));
            tail_id = next;
            tail = Header::read(access, self.header_at(tail_id))?;
        }
        let Some(last) = tail.tags.used().last() else {
            return Err(Status::Internal);
        };
        if tail_id != spot.id {
            let moved = self.reference_of(access, home, (tail_id, tail), last)?;
            let header = Header::read(access, self.header_at(spot.id))?;
            let refers = (tail.tags.get(last), moved);
            self.refer(access, home, (spot.id, header), spot.slot, refers)?;
            tail = tail.with(last, 0, 0);
        } else {
            // The last bucket may have its holes anywhere.
            tail = tail.with(spot.slot, 0, 0);
        }
        match tail_overflow {
            Some((previous, index)) if tail.tags == Tags(0) => {
                write_link(access, self.back_at(previous), 0)?;
                self.release_bucket(access, &mut state, index)?;
            }
            _ => {
                tail.write(access, self.header_at(tail_id))?;
                if tail.tags == Tags(0) {
                    self.occupancy.clear(access, home)?;
                }
            }
        }
        self.release_entry(access, spot.reference)?;
        state.count -= 1;
        self.store_state(access, &state)
    }

    /// Entries in the table.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        Ok(self.load_state(access)?.count)
    }
}
