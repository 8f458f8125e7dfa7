//! What a lookup or a dump will look at, for whoever asks for it ahead of time (`warm`).

use super::HashTable;
use crate::access::Access;
use crate::table::bucket::{FAR, HEADER_BYTES, Header, tag_of};
use offmap_abi::DevAddr;

impl HashTable {
    /// Asks for the home bucket of a hash, or of that number.
    #[inline(always)]
    pub(crate) fn warm_bucket(&self, access: &mut impl Access, home: u64) {
        access.prefetch(self.header_at(self.home_of(home)), HEADER_BYTES);
    }

    /// The entry that a lookup of a key of that hash would look at first, and its size in bytes: most
    /// likely the key's, if there is one.
    #[inline(always)]
    pub(crate) fn candidate(&self, access: &mut impl Access, hash: u64) -> Option<(DevAddr, u64)> {
        let home = self.home_of(hash);
        let header = Header::peek(access, self.header_at(home))?;
        let slot = header.tags.matches(tag_of(hash)).first()?;
        self.peek_entry(home, header, slot)
    }

    /// The entry in a slot of a home bucket, where the header says where it is.
    #[inline(always)]
    fn peek_entry(&self, home: u64, header: Header, slot: u32) -> Option<(DevAddr, u64)> {
        let distance = Some(header.distance(slot)).filter(|distance| *distance != FAR)?;
        let reference = self.first_place(home) + u64::from(distance);
        let entry = self.entry_at(reference as u32).ok()?;
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
        let Some(header) = Header::peek(access, self.header_at(home)) else {
            return;
        };
        for slot in header.tags.used() {
            if let Some((entry, bytes)) = self.peek_entry(home, header, slot) {
                f(access, entry, bytes);
            }
        }
    }
}
