//! LPM_TRIE in host memory (`kernel/bpf/lpm_trie.c`).
//!
//! A binary trie whose nodes carry a prefix. A node without a value is there only to part two
//! children (`LPM_TREE_NODE_FLAG_IM`), and always has both. The shape is the kernel's at every
//! moment, because the order of iteration follows from it.
//!
//! Writers take one lock, as the kernel's take `trie->lock`. Readers take none: they walk, copy,
//! and look whether the version is still the one that they started from, so that key and value
//! are seen whole or not at all; one that fails [`Backoff::READER_TRIES`] times takes the lock.
//! A reader that strays through nodes that change meets links and prefix lengths that fit no
//! trie. Every step leads to memory that stays the map's, and to a longer prefix, so that it
//! ends.
//!
//! Nodes and values lie in arenas of their own: a node without a value costs no room for one.

mod arena;

use super::ops::{MapOps, NO_SUCH_OPERATION};
use super::refusals::{BATCH_END, END};
use super::words::{Backoff, copy_in, copy_out, words_for};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_EXIST, BPF_NOEXIST};
use arena::Arena;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of `prefixlen`, with which a key starts (`struct bpf_lpm_trie_key_hdr`).
pub(crate) const PREFIX_BYTES: usize = 4;
/// `LPM_DATA_SIZE_MAX`.
pub(crate) const DATA_BYTES_MAX: usize = 256;
/// `sizeof(struct lpm_trie_node)` on 64-bit.
pub(crate) const NODE_BYTES: u64 = 24;

/// No node, or no value: links are indices + 1.
const NIL: u64 = 0;

// The words of a node. Its bits follow, eight bytes to a word, the first the most significant.
const CHILD: usize = 0;
const PREFIX: usize = 2;
const VALUE: usize = 3;
const BITS: usize = 4;

const MISSING: Error = Error::new(Errno::ENOENT, "the map has no such prefix");
const NO_MATCH: Error = Error::new(Errno::ENOENT, "no prefix of the map covers the key");
const PRESENT: Error = Error::new(
    Errno::EEXIST,
    "the prefix is in the map already, and BPF_NOEXIST was asked for",
);
const FULL: Error = Error::new(
    Errno::ENOSPC,
    "the map holds max_entries prefixes and the prefix is new",
);
const PREFIX_TOO_LONG: Error = Error::new(
    Errno::EINVAL,
    "prefixlen: exceeds the bits that the map's keys have",
);

type Node = [AtomicU64];

pub(crate) struct HostLpm {
    data_bytes: usize,
    value_bytes: usize,
    max_entries: u32,
    /// Odd while a writer changes the trie.
    version: AtomicU64,
    root: AtomicU64,
    n_entries: AtomicU64,
    nodes: Arena,
    values: Arena,
    writer: Mutex<Writer>,
}

/// What only writers use.
#[derive(Default)]
struct Writer {
    nodes: Pool,
    values: Pool,
}

/// Which items of an arena are free: those from `used` on, and a list linked through their
/// first words.
#[derive(Default)]
struct Pool {
    used: u64,
    free: u64,
}

impl Pool {
    /// The link of a free item, which has memory.
    fn take(&mut self, arena: &Arena) -> Result<u64> {
        if let Some(item) = self.free.checked_sub(1).and_then(|index| arena.get(index)) {
            let link = self.free;
            self.free = item[0].load(Relaxed);
            return Ok(link);
        }
        arena.get_or_alloc(self.used)?;
        self.used += 1;
        Ok(self.used)
    }

    fn give(&mut self, arena: &Arena, link: u64) {
        if let Some(item) = link.checked_sub(1).and_then(|index| arena.get(index)) {
            item[0].store(self.free, Relaxed);
            self.free = link;
        }
    }
}

/// A key in the form in which nodes hold one.
struct Key {
    prefix: u32,
    bits: [u64; DATA_BYTES_MAX / 8],
}

impl Key {
    fn new(key: &[u8]) -> Self {
        let (prefix, data) = key.split_at(PREFIX_BYTES);
        let mut raw = [0; PREFIX_BYTES];
        raw.copy_from_slice(prefix);
        let mut bits = [0; DATA_BYTES_MAX / 8];
        for (word, bytes) in bits.iter_mut().zip(data.chunks(8)) {
            let mut raw = [0; 8];
            raw[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_be_bytes(raw);
        }
        Self {
            prefix: u32::from_ne_bytes(raw),
            bits,
        }
    }

    /// `extract_bit`.
    #[inline]
    fn bit(&self, index: u32) -> usize {
        let word = self.bits.get(index as usize / 64).copied().unwrap_or(0);
        (word >> (63 - index % 64) & 1) as usize
    }

    /// `longest_prefix_match`: how many of the first `limit` bits of the node are the key's.
    #[inline]
    fn matching(&self, node: &Node, limit: u32) -> u32 {
        let mut matching = 0;
        for (node, key) in node[BITS..].iter().zip(&self.bits) {
            let differs = node.load(Relaxed) ^ key;
            matching += differs.leading_zeros();
            if differs != 0 || matching >= limit {
                break;
            }
        }
        matching.min(limit)
    }
}

#[inline]
fn prefix_of(node: &Node) -> u32 {
    node[PREFIX].load(Relaxed) as u32
}

#[inline]
fn child(node: &Node, bit: usize) -> u64 {
    node[CHILD + bit].load(Relaxed)
}

/// Where the key that comes next is, in terms of the trie.
#[derive(Clone, Copy)]
enum Next {
    /// The leftmost below this node, more specific ones first.
    Under(u64),
    /// This node.
    At(u64),
}

/// The end of a writer's walk: the slot that the key belongs to, and what is there.
struct Place<'a> {
    /// The word that holds `link`.
    slot: &'a AtomicU64,
    link: u64,
    /// Bits of the node at `link` that are the key's, as far as both are concerned.
    matching: u32,
    /// The slot of the node whose child this is, and that node.
    parent: Option<(&'a AtomicU64, &'a Node)>,
}

/// The trie changes; ends when dropped.
struct Changing<'a> {
    version: &'a AtomicU64,
    was: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.version.store(self.was.wrapping_add(2), Release);
    }
}

impl HostLpm {
    /// An empty trie.
    pub(crate) fn new(key_size: u32, value_size: u32, max_entries: u32) -> Self {
        let data_bytes = (key_size as usize).saturating_sub(PREFIX_BYTES);
        let value_bytes = value_size as usize;
        let entries = u64::from(max_entries);
        Self {
            data_bytes,
            value_bytes,
            max_entries,
            version: AtomicU64::new(0),
            root: AtomicU64::new(NIL),
            n_entries: AtomicU64::new(0),
            nodes: Arena::new(entries * 2, BITS + words_for(data_bytes)),
            values: Arena::new(entries, words_for(value_bytes)),
            writer: Mutex::default(),
        }
    }

    /// Bits of a key: `trie->max_prefixlen`.
    #[inline]
    fn max_prefix(&self) -> u32 {
        self.data_bytes as u32 * 8
    }

    #[inline]
    fn node(&self, link: u64) -> Option<&Node> {
        self.nodes.get(link.checked_sub(1)?)
    }

    #[inline]
    fn value(&self, link: u64) -> Option<&[AtomicU64]> {
        self.values.get(link.checked_sub(1)?)
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller holds the lock, and changes the trie until the result is dropped.
    fn change(&self) -> Changing<'_> {
        let was = self.version.load(Relaxed);
        self.version.store(was.wrapping_add(1), Relaxed);
        // Orders the odd version before the stores that follow: a reader that sees one of them
        // sees the version changed.
        fence(Release);
        Changing {
            version: &self.version,
            was,
        }
    }

    /// Runs `read` on a consistent state of the trie. It may run several times; `None` from it
    /// means that the trie changed.
    #[inline]
    fn read<R>(&self, mut read: impl FnMut() -> Option<R>) -> R {
        let mut backoff = Backoff::new();
        loop {
            let version = self.version.load(Acquire);
            if version & 1 == 0 {
                let result = read();
                fence(Acquire);
                if let (Some(result), true) = (result, self.version.load(Relaxed) == version) {
                    return result;
                }
            }
            if backoff.exhausted() {
                let _writer = self.lock();
                if let Some(result) = read() {
                    return result;
                }
            }
            backoff.wait();
        }
    }

    /// A step of a reader's walk: the node, if its prefix is longer than the one before, and
    /// that prefix.
    #[inline]
    fn step(&self, link: u64, above: Option<u32>) -> Option<(&Node, u32)> {
        let node = self.node(link)?;
        let prefix = prefix_of(node);
        let longer = above.is_none_or(|above| prefix > above);
        (longer && prefix <= self.max_prefix()).then_some((node, prefix))
    }

    /// The value of the longest prefix that covers the key, or [`NIL`].
    #[inline]
    fn longest(&self, key: &Key) -> Option<u64> {
        let (mut found, mut above) = (NIL, None);
        let mut link = self.root.load(Relaxed);
        while link != NIL {
            let (node, prefix) = self.step(link, above)?;
            if prefix > key.prefix || key.matching(node, prefix) < prefix {
                break;
            }
            let value = node[VALUE].load(Relaxed);
            if value != NIL {
                found = value;
            }
            if prefix == self.max_prefix() {
                break;
            }
            link = child(node, key.bit(prefix));
            above = Some(prefix);
        }
        Some(found)
    }

    /// Where the key after `key` in post-order is; `Some(None)`: `key` is the last one.
    ///
    /// A key that is not in the trie, or whose prefix is too long for any, is followed by the
    /// first one, as none is.
    fn after(&self, key: Option<&Key>) -> Option<Option<Next>> {
        let root = self.root.load(Relaxed);
        let first = (root != NIL).then_some(Next::Under(root));
        let Some(key) = key.filter(|key| key.prefix <= self.max_prefix()) else {
            return Some(first);
        };
        // What follows the node that the walk has reached: the nearest subtree to the right of
        // the path, or the nearest node on the path, whichever is lower.
        let mut next = None;
        let (mut link, mut above) = (root, None);
        while link != NIL {
            let (node, prefix) = self.step(link, above)?;
            if prefix > key.prefix || key.matching(node, prefix) < prefix {
                break;
            }
            let valued = node[VALUE].load(Relaxed) != NIL;
            if prefix == key.prefix {
                return Some(if valued { next } else { first });
            }
            let bit = key.bit(prefix);
            let right = child(node, 1);
            if bit == 0 && right != NIL {
                next = Some(Next::Under(right));
            } else if valued {
                next = Some(Next::At(link));
            }
            link = child(node, bit);
            above = Some(prefix);
        }
        Some(first)
    }

    /// The node that is first in post-order at or under `link`.
    fn leftmost(&self, mut link: u64) -> Option<&Node> {
        let mut above = None;
        loop {
            let (node, prefix) = self.step(link, above)?;
            let (left, right) = (child(node, 0), child(node, 1));
            link = if left != NIL { left } else { right };
            if link == NIL {
                return Some(node);
            }
            above = Some(prefix);
        }
    }

    /// Copies the key after `after`, and its value where `value` is given; `false` at the end.
    fn copy_next(
        &self,
        after: Option<&[u8]>,
        next: &mut [u8],
        mut value: Option<&mut [u8]>,
    ) -> bool {
        let after = after.map(Key::new);
        self.read(|| {
            let node = match self.after(after.as_ref())? {
                None => return Some(false),
                Some(Next::Under(link)) => self.leftmost(link)?,
                Some(Next::At(link)) => self.node(link)?,
            };
            let (prefix, data) = next.split_at_mut(PREFIX_BYTES);
            prefix.copy_from_slice(&prefix_of(node).to_ne_bytes());
            for (bytes, word) in data.chunks_mut(8).zip(&node[BITS..]) {
                bytes.copy_from_slice(&word.load(Relaxed).to_be_bytes()[..bytes.len()]);
            }
            if let Some(value) = &mut value {
                copy_out(self.value(node[VALUE].load(Relaxed))?, value);
            }
            Some(true)
        })
    }

    /// The walk of a writer, who holds the lock.
    fn place(&self, key: &Key) -> Place<'_> {
        let mut place = Place {
            slot: &self.root,
            link: self.root.load(Relaxed),
            matching: 0,
            parent: None,
        };
        while let Some(node) = self.node(place.link) {
            let prefix = prefix_of(node);
            place.matching = key.matching(node, prefix.min(key.prefix));
            if place.matching != prefix || prefix == key.prefix {
                break;
            }
            let slot = &node[CHILD + key.bit(prefix)];
            place.parent = Some((place.slot, node));
            place.link = slot.load(Relaxed);
            place.slot = slot;
        }
        place
    }

    /// `trie_check_add_elem`, short of counting.
    fn may_add(&self, flags: u64) -> Result<()> {
        if flags == BPF_EXIST {
            return Err(MISSING);
        }
        if self.n_entries.load(Relaxed) >= u64::from(self.max_entries) {
            return Err(FULL);
        }
        Ok(())
    }

    fn count(&self, by: i64) {
        // Writers take turns, so that this loses nothing.
        let count = self.n_entries.load(Relaxed);
        self.n_entries.store(count.wrapping_add_signed(by), Relaxed);
    }

    /// Makes `node` the key's: its bits, as they were given beyond the prefix too.
    fn set_bits(&self, node: &Node, key: &Key) {
        node[PREFIX].store(key.prefix.into(), Relaxed);
        for (word, &bits) in node[BITS..].iter().zip(&key.bits) {
            word.store(bits, Relaxed);
        }
    }
}

impl MapOps for HostLpm {
    #[inline]
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let key = Key::new(key);
        if key.prefix > self.max_prefix() {
            return Err(NO_MATCH);
        }
        let found = self.read(|| match self.longest(&key)? {
            NIL => Some(false),
            link => {
                copy_out(self.value(link)?, value);
                Some(true)
            }
        });
        if found { Ok(()) } else { Err(NO_MATCH) }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let key = Key::new(key);
        if key.prefix > self.max_prefix() {
            return Err(PREFIX_TOO_LONG);
        }
        let mut writer = self.lock();
        let place = self.place(&key);
        let there = self.node(place.link).map(|node| (node, prefix_of(node)));
        // The prefix has a node already, with a value or without.
        if let Some((node, _)) = there.filter(|&(_, prefix)| prefix == place.matching) {
            let mut link = node[VALUE].load(Relaxed);
            if link == NIL {
                self.may_add(flags)?;
                link = writer.values.take(&self.values)?;
                self.count(1);
            } else if flags == BPF_NOEXIST {
                return Err(PRESENT);
            }
            let _changing = self.change();
            if let Some(stored) = self.value(link) {
                copy_in(stored, value);
            }
            self.set_bits(node, &key);
            node[VALUE].store(link, Relaxed);
            return Ok(());
        }
        self.may_add(flags)?;
        // Memory first, so that a failure changes nothing.
        let value_link = writer.values.take(&self.values)?;
        let new = writer.nodes.take(&self.nodes);
        let new = new.inspect_err(|_| writer.values.give(&self.values, value_link))?;
        // Where the prefixes part before either ends, a node between them has to part them.
        let parts = there.is_some() && place.matching != key.prefix;
        let between = match parts.then(|| writer.nodes.take(&self.nodes)).transpose() {
            Ok(between) => between,
            Err(error) => {
                writer.values.give(&self.values, value_link);
                writer.nodes.give(&self.nodes, new);
                return Err(error);
            }
        };
        self.count(1);
        let _changing = self.change();
        if let (Some(node), Some(stored)) = (self.node(new), self.value(value_link)) {
            copy_in(stored, value);
            self.set_bits(node, &key);
            node[VALUE].store(value_link, Relaxed);
            let mut children = [NIL; 2];
            if let (Some((other, _)), None) = (there, between) {
                let bit = other[BITS..].get(place.matching as usize / 64);
                let bit = bit.map_or(0, |word| word.load(Relaxed)) >> (63 - place.matching % 64);
                children[(bit & 1) as usize] = place.link;
            }
            node[CHILD].store(children[0], Relaxed);
            node[CHILD + 1].store(children[1], Relaxed);
        }
        let top = match between.and_then(|link| Some((link, self.node(link)?))) {
            None => new,
            Some((link, node)) => {
                let bit = key.bit(place.matching);
                // Its bits count only as far as its prefix goes, where both agree.
                self.set_bits(node, &key);
                node[PREFIX].store(place.matching.into(), Relaxed);
                node[VALUE].store(NIL, Relaxed);
                node[CHILD + bit].store(new, Relaxed);
                node[CHILD + 1 - bit].store(place.link, Relaxed);
                link
            }
        };
        place.slot.store(top, Relaxed);
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let key = Key::new(key);
        if key.prefix > self.max_prefix() {
            return Err(PREFIX_TOO_LONG);
        }
        let mut writer = self.lock();
        let place = self.place(&key);
        let node = self.node(place.link).ok_or(MISSING)?;
        let value = node[VALUE].load(Relaxed);
        if prefix_of(node) != key.prefix || place.matching != key.prefix || value == NIL {
            return Err(MISSING);
        }
        self.count(-1);
        let _changing = self.change();
        writer.values.give(&self.values, value);
        let (left, right) = (child(node, 0), child(node, 1));
        if left != NIL && right != NIL {
            node[VALUE].store(NIL, Relaxed);
            return Ok(());
        }
        let parent = place
            .parent
            .filter(|(_, parent)| parent[VALUE].load(Relaxed) == NIL);
        match parent {
            // The parent only parted this node from its other child, which takes its place.
            Some((slot, parent)) if left == NIL && right == NIL => {
                let (first, second) = (child(parent, 0), child(parent, 1));
                let other = if first == place.link { second } else { first };
                let gone = slot.load(Relaxed);
                slot.store(other, Relaxed);
                writer.nodes.give(&self.nodes, gone);
            }
            _ => place
                .slot
                .store(if left != NIL { left } else { right }, Relaxed),
        }
        writer.nodes.give(&self.nodes, place.link);
        Ok(())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        if self.copy_next(key, next, None) {
            Ok(())
        } else {
            Err(END)
        }
    }

    /// `generic_map_lookup_batch`. The kernel asks for a key and then for its value, and goes on
    /// to the next key where that is gone; here both come at one moment, so that every step
    /// returns an element and a walk ends whatever writers do.
    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        if delete {
            return BatchOutcome::failed(NO_SUCH_OPERATION);
        }
        let mut outcome = BatchOutcome {
            count: 0,
            result: Ok(()),
        };
        let slots = keys
            .chunks_exact_mut(PREFIX_BYTES + self.data_bytes)
            .zip(values.chunks_exact_mut(self.value_bytes))
            .take(count as usize);
        for (key, value) in slots {
            let after = match outcome.count {
                0 => in_batch,
                _ => Some(&*out_batch),
            };
            if !self.copy_next(after, key, Some(value)) {
                outcome.result = Err(BATCH_END);
                break;
            }
            outcome.count += 1;
            out_batch.copy_from_slice(key);
        }
        outcome
    }

    /// `trie_mem_usage`.
    fn mem_usage(&self) -> u64 {
        let element = NODE_BYTES + self.data_bytes as u64 + self.value_bytes as u64;
        element * self.n_entries.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However much comes and goes, no more nodes and values are taken than prefixes need.
    #[test]
    fn what_is_deleted_is_used_again() {
        const MAX: u32 = 16;
        let map = HostLpm::new(6, 8, MAX);
        let key = |n: u32| {
            let mut key = [0; 6];
            // Prefixes of many lengths: some nest, some part.
            key[..4].copy_from_slice(&(n % 17).to_ne_bytes());
            key[4..].copy_from_slice(&(n.wrapping_mul(0x9e37) as u16).to_be_bytes());
            key
        };
        for round in 0..2000u32 {
            let _ = map.update(&key(round), &[round as u8; 8], 0);
            let _ = map.delete(&key(round.wrapping_mul(7) % (round + 1)));
        }
        let mut next = [0; 6];
        while map.get_next_key(None, &mut next).is_ok() {
            map.delete(&next).unwrap();
        }
        assert_eq!((map.root.load(Relaxed), map.mem_usage()), (NIL, 0));
        let writer = map.lock();
        assert!(writer.values.used <= MAX.into(), "{}", writer.values.used);
        assert!(
            writer.nodes.used < 2 * u64::from(MAX),
            "{}",
            writer.nodes.used
        );
        // All of them are free.
        for (pool, arena) in [(&writer.nodes, &map.nodes), (&writer.values, &map.values)] {
            let (mut link, mut free) = (pool.free, 0);
            while link != NIL {
                link = arena.get(link - 1).unwrap()[0].load(Relaxed);
                free += 1;
            }
            assert_eq!(free, pool.used);
        }
    }
}
