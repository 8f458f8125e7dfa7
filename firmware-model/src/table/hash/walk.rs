//! Walks over chains: get-next, dumps, and the measure of the longest one.

use super::{ChainScan, HashTable};
use crate::access::Access;
use crate::table::bucket::{Header, Tags};
use alloc::vec::Vec;
use offmap_abi::{DevAddr, Status};

impl ChainScan {
    /// The longest chain, in buckets.
    pub(crate) fn longest(&self) -> u32 {
        self.longest
    }

    /// Home buckets that hold anything.
    pub(crate) fn homes_used(&self) -> u32 {
        self.homes_used
    }

    /// Overflow buckets that were seen in chains.
    pub(crate) fn overflow_used(&self) -> u32 {
        u32::try_from(self.overflow_seen).unwrap_or(u32::MAX)
    }

    /// Entries by the buckets that a lookup of them reads: 1, 2, 3, 4, up to 8, up to 16, more.
    pub(crate) fn probes(&self) -> [u32; 7] {
        self.probes
    }

    /// A bucket was read that is the `depth`-th of its chain, from 1, and has so many entries.
    fn count(&mut self, depth: u32, entries: u32) {
        let class = match depth {
            0..=4 => depth.saturating_sub(1),
            5..=8 => 4,
            9..=16 => 5,
            _ => 6,
        };
        self.homes_used += u32::from(depth == 1 && entries != 0);
        let class = &mut self.probes[class as usize];
        *class = class.saturating_add(entries);
    }
}

impl HashTable {
    /// Calls `f` with the address of the key that follows `key`: home buckets in order, and
    /// within a chain by ascending reference. A deletion moves references within a chain but
    /// changes none, so a walk that deletes as it goes skips no entry that stays.
    pub(crate) fn with_next<A: Access, R>(
        &self,
        access: &mut A,
        key: Option<&[u8]>,
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        access.consistent(self.part(), |access| {
            let at = self.next(access, key)?;
            Ok(f(access, at))
        })
    }

    fn next(&self, access: &mut impl Access, key: Option<&[u8]>) -> Result<DevAddr, Status> {
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
        let home = self.next_home(access, home)?.ok_or(Status::NotFound)?;
        // The tree promised one.
        let next = self.next_in_chain(access, home, None)?;
        self.entry_at(next.ok_or(Status::Internal)?)
    }

    /// The first home bucket from `from` on that is not empty.
    pub(crate) fn next_home(
        &self,
        access: &mut impl Access,
        from: u64,
    ) -> Result<Option<u64>, Status> {
        access.consistent(self.part(), |access| self.occupancy.next(access, from))
    }

    /// The least reference in the chain of `home` that is greater than `after`.
    fn next_in_chain(
        &self,
        access: &mut impl Access,
        home: u64,
        after: Option<u32>,
    ) -> Result<Option<u32>, Status> {
        let mut least = None;
        self.walk(access, home, |reference| {
            if after.is_none_or(|after| reference > after)
                && least.is_none_or(|least| reference < least)
            {
                least = Some(reference);
            }
        })?;
        Ok(least)
    }

    /// Visits the references of a chain.
    fn walk(
        &self,
        access: &mut impl Access,
        home: u64,
        mut visit: impl FnMut(u32),
    ) -> Result<(), Status> {
        let mut id = home;
        for _ in 0..=self.overflow_count {
            let header = Header::read(access, self.header_at(id))?;
            for slot in header.tags.used() {
                visit(self.reference_of(access, home, (id, header), slot)?);
            }
            match self.link_of(access, id, header)? {
                0 => return Ok(()),
                link => id = self.overflow_of(link)?.0,
            }
        }
        Err(Status::Internal)
    }

    /// Visits the entries of the chain of `home`, which is not empty, by ascending reference, if
    /// there are at most `room`; `each` gets the place in that order and the addresses of key
    /// and value. Then, with `remove`, empties the chain. Returns how many entries there are.
    ///
    /// `references` is a buffer, with room for `room`.
    pub(crate) fn visit_chain<A: Access>(
        &self,
        access: &mut A,
        home: u64,
        references: &mut Vec<u32>,
        room: usize,
        remove: bool,
        each: impl FnMut(&mut A, usize, DevAddr, DevAddr) -> Result<(), Status>,
    ) -> Result<usize, Status> {
        let chain = self.chain(home);
        if !remove {
            return access.locked(chain, |access| {
                self.visit_locked(access, home, references, room, false, each)
            });
        }
        access.locked(self.part(), |access| {
            access.locked(chain, |access| {
                self.visit_locked(access, home, references, room, true, each)
            })
        })
    }

    #[inline(always)]
    fn visit_locked<A: Access>(
        &self,
        access: &mut A,
        home: u64,
        references: &mut Vec<u32>,
        room: usize,
        remove: bool,
        mut each: impl FnMut(&mut A, usize, DevAddr, DevAddr) -> Result<(), Status>,
    ) -> Result<usize, Status> {
        let needed = self.collect(access, home, references, room)?;
        if needed > room || needed == 0 {
            return Ok(needed);
        }
        for (index, &reference) in references.iter().enumerate() {
            let entry = self.entry_at(reference)?;
            each(access, index, entry, self.value_at(entry))?;
        }
        if remove {
            access.whole(|access| self.clear_chain(access, home, references))?;
        }
        Ok(needed)
    }

    /// Collects the references of a chain in ascending order, if there are at most `room`;
    /// returns how many there are.
    fn collect<A: Access>(
        &self,
        access: &mut A,
        home: u64,
        references: &mut Vec<u32>,
        room: usize,
    ) -> Result<usize, Status> {
        references.clear();
        let mut count = 0;
        self.walk(access, home, |reference| {
            count += 1;
            if count <= room {
                references.push(reference);
            }
        })?;
        let max_entries = self.max_entries;
        let valid = references.iter().all(|&reference| reference < max_entries);
        // The tree of bits promised that there is one; beside other engines, a moment ago.
        if count == 0 && !A::SHARED || !valid {
            return Err(Status::Internal);
        }
        references.sort_unstable();
        Ok(count)
    }

    /// Removes all entries of a chain; `references` are those of the chain.
    fn clear_chain(
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
        let header = Header::read(access, self.header_at(home))?;
        let mut link = self.link_of(access, home, header)?;
        Header::EMPTY.write(access, self.header_at(home))?;
        self.occupancy.clear(access, home)?;
        for _ in 0..self.overflow_count {
            if link == 0 {
                break;
            }
            let (id, index) = self.overflow_of(link)?;
            let header = Header::read(access, self.header_at(id))?;
            link = self.link_of(access, id, header)?;
            self.release_bucket(access, &mut state, index)?;
        }
        for &reference in references {
            self.release_entry(access, reference)?;
        }
        self.store_state(access, &state)
    }

    /// A step of `most` buckets of measuring the longest chain, in buckets; `None`: call again. The
    /// table may change between steps, and the result is then that of no single moment.
    pub(crate) fn scan_step(
        &self,
        access: &mut impl Access,
        scan: &mut ChainScan,
        most: u32,
    ) -> Result<Option<u32>, Status> {
        for _ in 0..most {
            // Chains do not share buckets. If memory says otherwise, or changes so fast that
            // more were seen than there are, the walk ends with what it has.
            let exhausted = scan.overflow_seen > u64::from(self.overflow_count) * 2;
            if scan.home > self.home_mask || exhausted {
                return Ok(Some(scan.longest));
            }
            let id = match scan.link {
                0 => scan.home,
                link => {
                    scan.overflow_seen += 1;
                    self.overflow_of(link)?.0
                }
            };
            let header = Header::read(access, self.header_at(id))?;
            scan.length += 1;
            scan.count(scan.length, header.tags.used().count() as u32);
            if scan.length == 1 && header.tags == Tags(0) {
                scan.length = 0;
            }
            scan.longest = scan.longest.max(scan.length);
            scan.link = self.link_of(access, id, header)?;
            if scan.link == 0 || scan.length > self.overflow_count {
                scan.link = 0;
                scan.length = 0;
                scan.home += 1;
            }
        }
        Ok(None)
    }
}
