//! The memory of a map's nodes (`struct htab_elem` with its `struct bpf_lru_node`).

use crate::error::Result;
use crate::map::lazy::LazyTable;
use crate::map::words::words_for;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Word of a node's list links: previous in the high half, next in the low.
pub(super) const LINKS: usize = 0;
/// Word of its hash (high half), the CPU it belongs to (16 bits), and the list it is on (8).
/// Written under the lock of that list.
const STATE: usize = 1;
/// Word of its link in the bucket's chain: the next node's number + 1, or 0. Written under the
/// bucket's lock.
const CHAIN: usize = 2;
/// Word of its reference bit, which needs no lock.
const REF: usize = 3;
const HEADER_WORDS: usize = 4;

/// `enum bpf_lru_list_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListType {
    Active,
    Inactive,
    Free,
    LocalFree,
    LocalPending,
}

impl ListType {
    const ALL: [Self; 5] = [
        Self::Active,
        Self::Inactive,
        Self::Free,
        Self::LocalFree,
        Self::LocalPending,
    ];
}

pub(super) struct Nodes {
    table: LazyTable,
    key_words: usize,
}

impl Nodes {
    pub(super) fn new(max_entries: u32, key_size: usize, value_bytes: usize) -> Result<Self> {
        let key_words = words_for(key_size);
        let words = HEADER_WORDS + key_words + words_for(value_bytes);
        Ok(Self {
            table: LazyTable::new(max_entries as usize, words, "elements")?,
            key_words,
        })
    }

    pub(super) fn node(&self, node: u32) -> &[AtomicU64] {
        let words = self.table.get(node as usize);
        words.expect("lists and chains hold nodes of the map alone")
    }

    pub(super) fn list(&self, node: u32) -> ListType {
        let state = self.node(node)[STATE].load(Relaxed);
        ListType::ALL[(state & 0xff) as usize]
    }

    pub(super) fn set_list(&self, node: u32, list: ListType) {
        let state = &self.node(node)[STATE];
        state.store(state.load(Relaxed) & !0xff | list as u64, Relaxed);
    }

    pub(super) fn cpu(&self, node: u32) -> u32 {
        (self.node(node)[STATE].load(Relaxed) >> 8) as u32 & 0xffff
    }

    pub(super) fn hash(&self, node: u32) -> u32 {
        (self.node(node)[STATE].load(Relaxed) >> 32) as u32
    }

    pub(super) fn set_owner(&self, node: u32, hash: u32, cpu: u32, list: ListType) {
        let state = u64::from(hash) << 32 | u64::from(cpu & 0xffff) << 8 | list as u64;
        self.node(node)[STATE].store(state, Relaxed);
    }

    pub(super) fn is_ref(&self, node: u32) -> bool {
        self.node(node)[REF].load(Relaxed) != 0
    }

    pub(super) fn set_ref(&self, node: u32, referenced: bool) {
        let word = &self.node(node)[REF];
        if (word.load(Relaxed) != 0) != referenced {
            word.store(u64::from(referenced), Relaxed);
        }
    }

    /// The link to the node after this one in its bucket.
    pub(super) fn chain(&self, node: u32) -> u64 {
        self.node(node)[CHAIN].load(Relaxed)
    }

    pub(super) fn set_chain(&self, node: u32, link: u64) {
        self.node(node)[CHAIN].store(link, Relaxed);
    }

    pub(super) fn key(&self, node: u32) -> &[AtomicU64] {
        &self.node(node)[HEADER_WORDS..][..self.key_words]
    }

    pub(super) fn value(&self, node: u32) -> &[AtomicU64] {
        &self.node(node)[HEADER_WORDS + self.key_words..]
    }
}
