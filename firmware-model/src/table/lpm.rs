//! LPM_TRIE: a binary trie of nodes at device addresses, and a pool of values.
//!
//! A node is two links to children (4 bytes each), a reference to its value (4), the length of
//! its prefix in bits (4) and the bits, padded to 8 bytes; length and bits are the key as it
//! travels. Links and references are indices plus one; 0 is none. A node without a value parts
//! its two children, and goes when it has only one left, so that `n` prefixes have at most
//! `2 n - 1` nodes. The trie has the shape of the kernel's at every moment, and keys are listed in
//! post-order as the kernel lists them.
//!
//! The state line, after the map's description: count of entries (4 bytes), nodes ever taken
//! (4), first free node plus one (4), values ever taken (4), first free value plus one (4), link
//! to the root (4). Free nodes and values are linked through their first words.
//!
//! The host can write device memory through its window, so nothing read from memory is trusted:
//! links and references are checked against the pools, and every step of a walk leads to a
//! longer prefix, so that it ends after as many nodes as a key has bits, and one. A contradiction
//! ends the command with [`Status::Internal`].

use super::layout::{DESCRIPTION_BYTES, Geometry, MapSpec, ValueShape};
use super::{ValueWrite, exists, fill_padded, write_value};
use crate::access::{Access, Part};
use offmap_abi::submission::UPDATE_EXIST;
use offmap_abi::{DevAddr, Status};

/// Bytes of the length with which a key starts.
pub(crate) const PREFIX_BYTES: u32 = 4;
/// Most bytes of bits in a key (`LPM_DATA_SIZE_MAX` of the kernel).
pub(crate) const DATA_BYTES_MAX: u32 = 256;

/// Bytes of the state line.
pub(crate) const STATE_BYTES: u64 = 64;
/// From a node's start to its key.
const KEY_OFFSET: u64 = 12;
/// From a node's start to its bits.
const BITS_OFFSET: usize = 16;
/// From the state line's start to the link to the root.
const ROOT_OFFSET: u64 = 20;
const VALUE_OFFSET: u64 = 8;

/// Bytes of a node with `key_size` bytes of key.
pub(crate) const fn node_bytes(key_size: u32) -> u64 {
    (KEY_OFFSET + key_size as u64).next_multiple_of(8)
}

/// Nodes that `max_entries` prefixes can need.
pub(crate) const fn node_count(max_entries: u32) -> u64 {
    max_entries as u64 * 2 - 1
}

/// A trie at its place in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LpmTable {
    state: DevAddr,
    nodes: DevAddr,
    node_bytes: u64,
    node_count: u32,
    values: DevAddr,
    max_entries: u32,
    key_size: u32,
    pub(crate) value: ValueShape,
}

#[derive(Clone, Copy)]
struct State {
    count: u32,
    nodes: Pool,
    values: Pool,
    root: u32,
}

/// Which items of a pool are free: those from `taken` on, and a list.
#[derive(Clone, Copy)]
struct Pool {
    taken: u32,
    free: u32,
}

/// A node as it was read, for a key.
#[derive(Clone, Copy)]
struct Node {
    at: DevAddr,
    children: [u32; 2],
    /// Reference to its value; 0: it has none.
    value: u32,
    prefix: u32,
    /// How many of the first bits of its prefix, and of the key's, are the same.
    matching: u32,
}

/// Where the key that comes next is, in terms of the trie.
enum Next {
    /// The first in post-order at or under this link, and the prefix above it.
    Under(u32, Option<u32>),
    /// This node.
    At(Node),
}

/// A key that is listed.
#[derive(Clone, Copy)]
pub(crate) struct Listed {
    /// Address of the key.
    pub(crate) key: DevAddr,
    /// Address of its value.
    pub(crate) value: DevAddr,
    /// Nodes that were read to find it.
    pub(crate) visited: usize,
}

/// The end of a writer's walk: the slot that the key belongs to, and what is there.
struct Place {
    /// Address of the link.
    slot: DevAddr,
    link: u32,
    /// The node at that link.
    node: Option<Node>,
    /// The address of the link to the node whose child this is, that link, and that node.
    parent: Option<(DevAddr, u32, Node)>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

/// How many of the first `limit` bits are the same.
fn matching(a: &[u8], b: &[u8], limit: u32) -> u32 {
    let mut matching = 0;
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        let wide = |bytes: &[u8]| {
            let mut raw = [0; 8];
            raw[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(raw)
        };
        let differs = wide(a) ^ wide(b);
        matching += differs.leading_zeros();
        if differs != 0 || matching >= limit {
            break;
        }
    }
    matching.min(limit)
}

/// Bit `index` of the bits of a key.
fn bit(key: &[u8], index: u32) -> usize {
    let byte = key.get(PREFIX_BYTES as usize + index as usize / 8);
    byte.map_or(0, |byte| usize::from(byte >> (7 - index % 8) & 1))
}

fn child_slot(node: DevAddr, bit: usize) -> DevAddr {
    node.offset(4 * bit as u64)
}

impl LpmTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            state: base.offset(DESCRIPTION_BYTES),
            nodes: base.offset(geometry.homes),
            node_bytes: node_bytes(spec.key_size),
            node_count: node_count(spec.max_entries) as u32,
            values: base.offset(geometry.entries),
            max_entries: spec.max_entries,
            key_size: spec.key_size,
            value: geometry.value,
        }
    }

    fn max_prefix(&self) -> u32 {
        self.key_size.saturating_sub(PREFIX_BYTES) * 8
    }

    fn node_at(&self, link: u32) -> Result<DevAddr, Status> {
        match link.checked_sub(1) {
            Some(index) if index < self.node_count => {
                Ok(self.nodes.offset(u64::from(index) * self.node_bytes))
            }
            _ => Err(Status::Internal),
        }
    }

    fn value_at(&self, reference: u32) -> Result<DevAddr, Status> {
        match reference.checked_sub(1) {
            Some(index) if index < self.max_entries => {
                let offset = u64::from(index) * u64::from(self.value.stored);
                Ok(self.values.offset(offset))
            }
            _ => Err(Status::Internal),
        }
    }

    /// The prefix of a key; `None` where it is longer than the key has bits.
    fn prefix_of(&self, key: &[u8]) -> Option<u32> {
        Some(word(key, 0)).filter(|&prefix| prefix <= self.max_prefix())
    }

    /// Reads the node at `link`, whose prefix must be longer than that of the node `above`.
    #[inline]
    fn read(
        &self,
        access: &mut impl Access,
        link: u32,
        key: &[u8],
        above: Option<u32>,
    ) -> Result<Node, Status> {
        let at = self.node_at(link)?;
        let len = KEY_OFFSET as usize + self.key_size as usize;
        let node = access.with_bytes(at, len, |bytes| {
            let prefix = word(bytes, KEY_OFFSET as usize);
            let limit = prefix.min(word(key, 0));
            let bits = key.get(PREFIX_BYTES as usize..).unwrap_or(&[]);
            Node {
                at,
                children: [word(bytes, 0), word(bytes, 4)],
                value: word(bytes, VALUE_OFFSET as usize),
                prefix,
                matching: matching(bytes.get(BITS_OFFSET..).unwrap_or(&[]), bits, limit),
            }
        })?;
        let longer = above.is_none_or(|above| node.prefix > above);
        if !longer || node.prefix > self.max_prefix() {
            return Err(Status::Internal);
        }
        Ok(node)
    }

    /// Calls `f` with the address of the value of the longest prefix that covers the key.
    pub(crate) fn with_value<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        access.consistent(self.part(), |access| {
            let at = self.longest(access, key)?;
            Ok(f(access, at))
        })
    }

    /// As [`Self::with_value`], and nothing else happens to the trie meanwhile.
    pub(crate) fn modify<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        access.locked(self.part(), |access| {
            let at = self.longest(access, key)?;
            f(access, at)
        })
    }

    /// All of the trie: nodes of many keys lie on one path.
    #[inline(always)]
    pub(crate) fn part(&self) -> Part {
        Part::Table(self.state)
    }

    /// The address of that value.
    pub(crate) fn longest(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        self.prefix_of(key).ok_or(Status::NotFound)?;
        let (mut found, mut above) = (0, None);
        let mut link = access.read_u32(self.state.offset(ROOT_OFFSET))?;
        while link != 0 {
            let node = self.read(access, link, key, above)?;
            if node.matching < node.prefix {
                break;
            }
            if node.value != 0 {
                found = node.value;
            }
            link = node.children[bit(key, node.prefix)];
            above = Some(node.prefix);
        }
        match found {
            0 => Err(Status::NotFound),
            reference => self.value_at(reference),
        }
    }

    /// The walk of an update or a delete.
    fn place(&self, access: &mut impl Access, root: u32, key: &[u8]) -> Result<Place, Status> {
        let prefix = word(key, 0);
        let mut place = Place {
            slot: self.state.offset(ROOT_OFFSET),
            link: root,
            node: None,
            parent: None,
        };
        while place.link != 0 {
            let above = place.parent.map(|(_, _, parent)| parent.prefix);
            let node = self.read(access, place.link, key, above)?;
            if node.matching != node.prefix || node.prefix == prefix {
                place.node = Some(node);
                break;
            }
            let bit = bit(key, node.prefix);
            place.parent = Some((place.slot, place.link, node));
            place.slot = child_slot(node.at, bit);
            place.link = node.children[bit];
        }
        Ok(place)
    }

    /// Whether a prefix that is not there may be added.
    fn may_add(&self, state: &State, flags: u32) -> Result<(), Status> {
        if flags == UPDATE_EXIST {
            return Err(Status::NotFound);
        }
        if state.count >= self.max_entries {
            return Err(Status::Full);
        }
        Ok(())
    }

    /// Stores a value; a prefix that is longer than the key has bits is `OutOfRange`.
    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        access.locked(self.part(), |access| self.store(access, key, value, flags))
    }

    fn store(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        let prefix = self.prefix_of(key).ok_or(Status::OutOfRange)?;
        let mut state = self.load_state(access)?;
        let place = self.place(access, state.root, key)?;
        // The prefix has a node already, with a value or without.
        if let Some(node) = place.node.filter(|node| node.prefix == node.matching) {
            let mut reference = node.value;
            if reference == 0 {
                self.may_add(&state, flags)?;
                reference = self.take_value(access, &mut state)?;
                state.count += 1;
            } else {
                exists(flags)?;
            }
            let fresh = node.value == 0;
            write_value(access, self.value_at(reference)?, &self.value, value, fresh)?;
            self.write_key(access, node.at, key)?;
            access.write_u32(node.at.offset(VALUE_OFFSET), reference)?;
            return self.store_state(access, &state);
        }
        self.may_add(&state, flags)?;
        let reference = self.take_value(access, &mut state)?;
        let new = self.take_node(access, &mut state)?;
        state.count += 1;
        write_value(access, self.value_at(reference)?, &self.value, value, true)?;
        let (children, top) = match place.node {
            None => ([0; 2], new),
            // The new prefix is one of the node's that is there: it goes between.
            Some(node) if node.matching == prefix => {
                let mut children = [0; 2];
                children[self.bit_of(access, node.at, prefix)?] = place.link;
                (children, new)
            }
            // They part before either ends, and a node without a value parts them.
            Some(node) => {
                let between = self.take_node(access, &mut state)?;
                let mut children = [place.link; 2];
                children[bit(key, node.matching)] = new;
                let at = self.node_at(between)?;
                self.write_node(access, at, children, 0, key)?;
                access.write_u32(at.offset(KEY_OFFSET), node.matching)?;
                ([0; 2], between)
            }
        };
        // The node is whole before another refers to it.
        self.write_node(access, self.node_at(new)?, children, reference, key)?;
        access.write_u32(place.slot, top)?;
        self.store_state(access, &state)
    }

    /// Removes a prefix; one that is longer than the key has bits is `OutOfRange`.
    pub(crate) fn delete(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        access.locked(self.part(), |access| self.remove(access, key))
    }

    fn remove(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        let prefix = self.prefix_of(key).ok_or(Status::OutOfRange)?;
        let mut state = self.load_state(access)?;
        let place = self.place(access, state.root, key)?;
        let there =
            |node: &Node| node.prefix == prefix && node.matching == prefix && node.value != 0;
        let node = place.node.filter(there).ok_or(Status::NotFound)?;
        state.count = state.count.checked_sub(1).ok_or(Status::Internal)?;
        self.release_value(access, &mut state, node.value)?;
        let [left, right] = node.children;
        if left != 0 && right != 0 {
            access.write_u32(node.at.offset(VALUE_OFFSET), 0)?;
            return self.store_state(access, &state);
        }
        match place.parent.filter(|(_, _, parent)| parent.value == 0) {
            // The parent only parted this node from its other child, which takes its place.
            Some((slot, link, parent)) if left == 0 && right == 0 => {
                let [first, second] = parent.children;
                let other = if first == place.link { second } else { first };
                access.write_u32(slot, other)?;
                self.release_node(access, &mut state, link)?;
            }
            _ => access.write_u32(place.slot, if left != 0 { left } else { right })?,
        }
        self.release_node(access, &mut state, place.link)?;
        self.store_state(access, &state)
    }

    /// Calls `f` with the address of the key after `key` in post-order; the first one when `key`
    /// is `None` or no prefix of the map.
    pub(crate) fn with_next<A: Access, R>(
        &self,
        access: &mut A,
        key: Option<&[u8]>,
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        access.consistent(self.part(), |access| {
            let next = self.next(access, key)?;
            Ok(f(access, next.key))
        })
    }

    /// Calls `f`, once, with the key that is in `key` and where the one after it stands; with the first
    /// one of all without `after`.
    pub(crate) fn with_listed<A: Access, R>(
        &self,
        access: &mut A,
        key: &mut [u8],
        after: bool,
        f: impl FnOnce(&mut A, &mut [u8], Listed) -> Result<R, Status>,
    ) -> Result<R, Status> {
        access.locked(self.part(), |access| {
            let next = self.next(access, after.then_some(&*key))?;
            f(access, key, next)
        })
    }

    /// The key after `key`, likewise.
    fn next(&self, access: &mut impl Access, key: Option<&[u8]>) -> Result<Listed, Status> {
        let mut visited = 0;
        let (mut link, mut above) = match self.after(access, key, &mut visited)? {
            Next::At(node) => return self.listed(&node, visited),
            Next::Under(link, above) => (link, above),
        };
        loop {
            let node = self.read(access, link, &[], above)?;
            visited += 1;
            let [left, right] = node.children;
            link = if left != 0 { left } else { right };
            if link == 0 {
                return self.listed(&node, visited);
            }
            above = Some(node.prefix);
        }
    }

    fn listed(&self, node: &Node, visited: usize) -> Result<Listed, Status> {
        Ok(Listed {
            key: node.at.offset(KEY_OFFSET),
            value: self.value_at(node.value)?,
            visited,
        })
    }

    /// Where the key after `key` is; `NotFound` when `key` is the last one, or there is none.
    fn after(
        &self,
        access: &mut impl Access,
        key: Option<&[u8]>,
        visited: &mut usize,
    ) -> Result<Next, Status> {
        let root = access.read_u32(self.state.offset(ROOT_OFFSET))?;
        if root == 0 {
            return Err(Status::NotFound);
        }
        let first = Next::Under(root, None);
        let key = key.and_then(|key| Some((key, self.prefix_of(key)?)));
        let Some((key, prefix)) = key else {
            return Ok(first);
        };
        // The nearest subtree to the right of the path to the key, or the nearest node on it that
        // has a value, whichever is lower.
        let mut next = None;
        let (mut link, mut above) = (root, None);
        while link != 0 {
            let node = self.read(access, link, key, above)?;
            *visited += 1;
            if node.matching < node.prefix {
                break;
            }
            if node.prefix == prefix {
                return match node.value {
                    0 => Ok(first),
                    _ => next.ok_or(Status::NotFound),
                };
            }
            above = Some(node.prefix);
            let bit = bit(key, node.prefix);
            if bit == 0 && node.children[1] != 0 {
                next = Some(Next::Under(node.children[1], above));
            } else if node.value != 0 {
                next = Some(Next::At(node));
            }
            link = node.children[bit];
        }
        Ok(first)
    }

    /// Prefixes in the trie.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        Ok(self.load_state(access)?.count)
    }

    /// Bit `index` of the node at `at`.
    fn bit_of(&self, access: &mut impl Access, at: DevAddr, index: u32) -> Result<usize, Status> {
        let byte = at.offset(BITS_OFFSET as u64 + u64::from(index / 8));
        let [byte] = access.read(byte)?;
        Ok(usize::from(byte >> (7 - index % 8) & 1))
    }

    fn write_key(&self, access: &mut impl Access, at: DevAddr, key: &[u8]) -> Result<(), Status> {
        let len = (self.node_bytes - KEY_OFFSET) as usize;
        let key_at = at.offset(KEY_OFFSET);
        Ok(access.with_bytes_mut(key_at, len, |bytes| fill_padded(bytes, key))?)
    }

    fn write_node(
        &self,
        access: &mut impl Access,
        at: DevAddr,
        children: [u32; 2],
        value: u32,
        key: &[u8],
    ) -> Result<(), Status> {
        Ok(
            access.with_bytes_mut(at, self.node_bytes as usize, |bytes| {
                let (head, rest) = bytes.split_at_mut(KEY_OFFSET as usize);
                let words = [children[0], children[1], value];
                for (to, word) in head.chunks_exact_mut(4).zip(words) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                fill_padded(rest, key);
            })?,
        )
    }

    fn load_state(&self, access: &mut impl Access) -> Result<State, Status> {
        let line: [u8; 24] = access.read(self.state)?;
        let pool = |at| Pool {
            taken: word(&line, at),
            free: word(&line, at + 4),
        };
        let state = State {
            count: word(&line, 0),
            nodes: pool(4),
            values: pool(12),
            root: word(&line, ROOT_OFFSET as usize),
        };
        if state.count > self.max_entries {
            return Err(Status::Internal);
        }
        Ok(state)
    }

    /// Stores all but the root, which is a slot as others.
    fn store_state(&self, access: &mut impl Access, state: &State) -> Result<(), Status> {
        let words = [
            state.count,
            state.nodes.taken,
            state.nodes.free,
            state.values.taken,
            state.values.free,
        ];
        let mut line = [0; ROOT_OFFSET as usize];
        for (bytes, word) in line.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Ok(access.write(self.state, line)?)
    }

    /// Link to a free node: one that was used before, else the next that never was.
    fn take_node(&self, access: &mut impl Access, state: &mut State) -> Result<u32, Status> {
        take(access, &mut state.nodes, |link| self.node_at(link))
    }

    /// Reference to a free value, likewise.
    fn take_value(&self, access: &mut impl Access, state: &mut State) -> Result<u32, Status> {
        take(access, &mut state.values, |link| self.value_at(link))
    }

    fn release_node(
        &self,
        access: &mut impl Access,
        state: &mut State,
        link: u32,
    ) -> Result<(), Status> {
        access.write_u32(self.node_at(link)?, state.nodes.free)?;
        state.nodes.free = link;
        Ok(())
    }

    fn release_value(
        &self,
        access: &mut impl Access,
        state: &mut State,
        reference: u32,
    ) -> Result<(), Status> {
        access.write_u32(self.value_at(reference)?, state.values.free)?;
        state.values.free = reference;
        Ok(())
    }
}

fn take(
    access: &mut impl Access,
    pool: &mut Pool,
    at: impl Fn(u32) -> Result<DevAddr, Status>,
) -> Result<u32, Status> {
    if pool.free != 0 {
        let link = pool.free;
        pool.free = access.read_u32(at(link)?)?;
        return Ok(link);
    }
    let link = pool.taken.checked_add(1).ok_or(Status::Internal)?;
    at(link)?;
    pool.taken = link;
    Ok(link)
}
