//! The state line, and what is free: entries and overflow buckets.

use super::{HashTable, Header, State};
use crate::access::Access;
use crate::table::bucket::{read_link, write_link};
use offmap_abi::Status;

impl HashTable {
    pub(super) fn load_state(&self, access: &mut impl Access) -> Result<State, Status> {
        let line: [u8; 24] = access.read(self.state)?;
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(line.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [count, entries_taken, _, buckets_taken, bucket_free, hand] = words;
        if count > self.max_entries {
            return Err(Status::Internal);
        }
        Ok(State {
            count,
            entries_taken,
            buckets_taken,
            bucket_free,
            hand,
        })
    }

    pub(super) fn store_state(
        &self,
        access: &mut impl Access,
        state: &State,
    ) -> Result<(), Status> {
        let words = [
            state.count,
            state.entries_taken,
            0,
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

    /// A free entry, the first from the home's first place on, or of all for LRU types; and whether it
    /// was one before.
    pub(super) fn take_entry(
        &self,
        access: &mut impl Access,
        state: &mut State,
        home: u64,
    ) -> Result<(u32, bool), Status> {
        let from = match self.recency {
            Some(_) => 0,
            None => self.first_place(home),
        };
        let mut place = self.free.next(access, from)?;
        if place.is_none() {
            place = self.free.next(access, 0)?;
        }
        // The count says that there is one.
        let place = place.ok_or(Status::Internal)?;
        self.free.clear(access, place)?;
        let place = u32::try_from(place).map_err(|_| Status::Internal)?;
        let reused = place < state.entries_taken;
        state.entries_taken = state.entries_taken.max(place.saturating_add(1));
        Ok((place, reused))
    }

    pub(super) fn release_entry(
        &self,
        access: &mut impl Access,
        reference: u32,
    ) -> Result<(), Status> {
        self.entry_at(reference)?;
        self.free.set(access, reference.into())
    }

    /// Index of a free overflow bucket: one that was used before, else the next that never was.
    pub(super) fn take_bucket(
        &self,
        access: &mut impl Access,
        state: &mut State,
    ) -> Result<u32, Status> {
        if state.bucket_free != 0 {
            let (id, index) = self.overflow_of(state.bucket_free)?;
            state.bucket_free = read_link(access, self.back_at(id))?;
            return Ok(index);
        }
        let index = state.buckets_taken;
        if index >= self.overflow_count {
            return Err(Status::Internal);
        }
        state.buckets_taken += 1;
        Ok(index)
    }

    pub(super) fn release_bucket(
        &self,
        access: &mut impl Access,
        state: &mut State,
        index: u32,
    ) -> Result<(), Status> {
        let (id, _) = self.overflow_of(index + 1)?;
        Header::EMPTY.write(access, self.header_at(id))?;
        write_link(access, self.back_at(id), state.bucket_free)?;
        state.bucket_free = index + 1;
        Ok(())
    }
}
