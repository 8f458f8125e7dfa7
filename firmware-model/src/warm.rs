//! Bringing into the processor's caches what is needed soon.
//!
//! A command on an element of a large hash table waits for memory twice, for the bucket and then for
//! the entry, and the next command cannot begin meanwhile; a dump waits for every entry. Here the
//! lines of several commands, or of the buckets that a dump comes to next, are asked for ahead of
//! time, so that the waits overlap. Nothing is changed and nothing is decided: each command is judged
//! when it runs, and this is the machine's business, not accesses of the modelled device
//! ([`Access::peek`], [`Access::prefetch`]).

use crate::access::Access;
use crate::maps::Maps;
use crate::table::Table;
use crate::table::bucket::HEADER_BYTES;
use crate::table::hash::HashTable;
use crate::{Firmware, Storage};
use offmap_abi::submission::ElementBody;
use offmap_abi::{IoOpcode, Submission, SubmissionFlags};

/// Commands that are looked at, at most.
const LANES: usize = 32;
/// Maps of less device memory than this stay in the caches by themselves.
const LARGE_BYTES: u64 = 512 << 10;
/// Bytes of an entry that are asked for, at most: the rest of a long value streams.
const ENTRY_BYTES: u64 = 256;
/// Home buckets whose entries a dump asks for at a time. Half of the places of a full table are used.
pub(crate) const HOMES: u64 = 4;

/// Asks for the entries of the next [`HOMES`] home buckets but [`HOMES`], counted from `home` on, and
/// for the buckets after those.
#[inline]
pub(crate) fn warm_homes(table: &HashTable, access: &mut impl Access, home: u64) {
    if table.home_count() * HEADER_BYTES < LARGE_BYTES / 16 {
        return;
    }
    for next in home + HOMES..home + 2 * HOMES {
        table.warm_bucket(access, next + 2 * HOMES);
        table.candidates(access, next, |access, entry, bytes| {
            access.prefetch(entry, bytes.min(ENTRY_BYTES));
        });
    }
}

impl<S: Storage> Firmware<S> {
    /// Asks for what these commands of an I/O queue will look at, as far as that can be told.
    #[inline]
    pub fn warm<'c>(&mut self, commands: impl Iterator<Item = &'c Submission>) {
        let (maps, memory) = (&self.maps, &mut self.memory);
        let mut hashes: [Option<(&HashTable, u64)>; LANES] = [None; LANES];
        let mut count = 0;
        for command in commands.take(LANES) {
            let hashed = hash_of(maps, command);
            if let Some((table, hash)) = hashed {
                table.warm_bucket(memory, hash);
                hashes[count] = hashed;
                count += 1;
            }
        }
        for (table, hash) in hashes[..count].iter().flatten() {
            if let Some((entry, bytes)) = table.candidate(memory, *hash) {
                memory.prefetch(entry, bytes.min(ENTRY_BYTES));
            }
        }
    }
}

/// The table that a command on one element of a large hash table is for, and its key's hash.
#[inline(always)]
fn hash_of<'m>(maps: &'m Maps, command: &Submission) -> Option<(&'m HashTable, u64)> {
    match IoOpcode(command.opcode) {
        IoOpcode::Lookup
        | IoOpcode::Update
        | IoOpcode::Delete
        | IoOpcode::GetNext
        | IoOpcode::LookupAndDelete => {}
        _ => return None,
    }
    let map = maps.get(command.map()).ok()?;
    let Table::Hash(table) = &map.table else {
        return None;
    };
    if map.bytes < LARGE_BYTES || !command.flags().contains(SubmissionFlags::KEY_INLINE) {
        return None;
    }
    let body: &ElementBody = command.body_ref();
    let key = body.key.get(..map.key_size())?;
    Some((table, table.hash_of(key)))
}
