//! Bringing into the processor's caches what several commands will need, before the first of them
//! runs.
//!
//! A command on an element of a large hash table waits for memory twice, for the bucket and then for
//! the entry, and the next command cannot begin meanwhile. Here the same lines are loaded for many
//! commands at once, in two passes in which no load depends on another one, so that the processor
//! overlaps them. Nothing is changed and nothing is decided: each command is judged when it runs, and
//! these loads are the machine's business, not accesses of the modelled device.

use crate::access::Access;
use crate::table::Table;
use crate::{Firmware, Storage};
use core::hint::black_box;
use offmap_abi::submission::{ElementBody, SUBMISSION_WORDS};
use offmap_abi::{DevAddr, IoOpcode, Submission, SubmissionFlags};

/// Commands that are looked at, at most.
const LANES: usize = 32;
/// Maps of less device memory than this stay in the caches by themselves.
const LARGE_BYTES: u64 = 512 << 10;
/// Bytes of an entry that are loaded ahead, at most: the rest of a long value streams.
const ENTRY_BYTES: u64 = 256;
/// Bytes of a cache line.
const LINE: u64 = 64;

impl<S: Storage> Firmware<S> {
    /// Loads what these commands of an I/O queue will look at, as far as that can be told.
    #[inline]
    pub fn warm<'c>(&mut self, commands: impl Iterator<Item = &'c [u64; SUBMISSION_WORDS]>) {
        let mut entries = [(DevAddr(0), 0); LANES];
        let mut count = 0;
        for words in commands.take(LANES) {
            let command = Submission::from_words(*words);
            if let Some(entry) = self.warm_home(&command) {
                entries[count] = entry;
                count += 1;
            }
        }
        let mut sum = 0;
        for (at, bytes) in &entries[..count] {
            for offset in (0..*bytes).step_by(LINE as usize) {
                let line = self.memory.read::<1>(at.offset(offset));
                sum ^= line.map_or(0, |[byte]| byte);
            }
        }
        black_box(sum);
    }

    /// Loads the home bucket of the command's key; the entry that is probably the key's.
    #[inline(always)]
    fn warm_home(&mut self, command: &Submission) -> Option<(DevAddr, u64)> {
        match IoOpcode(command.opcode) {
            IoOpcode::Lookup
            | IoOpcode::Update
            | IoOpcode::Delete
            | IoOpcode::GetNext
            | IoOpcode::LookupAndDelete => {}
            _ => return None,
        }
        let map = self.maps.get(command.map()).ok()?;
        let Table::Hash(table) = &map.table else {
            return None;
        };
        if map.bytes < LARGE_BYTES || !command.flags().contains(SubmissionFlags::KEY_INLINE) {
            return None;
        }
        let body: ElementBody = command.body();
        let key = body.key.get(..map.key_size())?;
        let (entry, bytes) = table.candidate(&mut self.memory, key)?;
        Some((entry, bytes.min(ENTRY_BYTES)))
    }
}
