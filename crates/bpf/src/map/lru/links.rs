//! Doubly linked lists of nodes by number (`struct list_head`).
//!
//! A node's links are one word of it; the heads' have a table of their own, numbered after the
//! last node. Whoever changes a list holds its lock, so the words are plain memory in all but
//! type.

use super::node::{LINKS, Nodes};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The lists of a map: `heads` of them, over its nodes.
pub(super) struct Links {
    heads: Box<[AtomicU64]>,
    first_head: u32,
}

impl Links {
    /// Empty lists. Heads have the numbers from `first_head` on.
    pub(super) fn new(first_head: u32, heads: u32) -> Self {
        Self {
            heads: (first_head..first_head + heads)
                .map(|head| AtomicU64::new(pack(head, head)))
                .collect(),
            first_head,
        }
    }

    fn word<'a>(&'a self, nodes: &'a Nodes, at: u32) -> &'a AtomicU64 {
        match at.checked_sub(self.first_head) {
            Some(head) => &self.heads[head as usize],
            None => &nodes.node(at)[LINKS],
        }
    }

    /// Towards the head's first entry and on to its last.
    pub(super) fn next(&self, nodes: &Nodes, at: u32) -> u32 {
        self.word(nodes, at).load(Relaxed) as u32
    }

    /// Towards the tail's first entry, the oldest.
    pub(super) fn prev(&self, nodes: &Nodes, at: u32) -> u32 {
        (self.word(nodes, at).load(Relaxed) >> 32) as u32
    }

    /// The entry at the head of a list.
    pub(super) fn first(&self, nodes: &Nodes, head: u32) -> Option<u32> {
        let first = self.next(nodes, head);
        (first != head).then_some(first)
    }

    fn set_next(&self, nodes: &Nodes, at: u32, next: u32) {
        let word = self.word(nodes, at);
        word.store(pack((word.load(Relaxed) >> 32) as u32, next), Relaxed);
    }

    fn set_prev(&self, nodes: &Nodes, at: u32, prev: u32) {
        let word = self.word(nodes, at);
        word.store(pack(prev, word.load(Relaxed) as u32), Relaxed);
    }

    /// `list_add`: puts a node that is on no list at the head of one.
    pub(super) fn add(&self, nodes: &Nodes, node: u32, head: u32) {
        let first = self.next(nodes, head);
        self.word(nodes, node).store(pack(head, first), Relaxed);
        self.set_prev(nodes, first, node);
        self.set_next(nodes, head, node);
    }

    /// `list_del`.
    pub(super) fn del(&self, nodes: &Nodes, node: u32) {
        let (prev, next) = (self.prev(nodes, node), self.next(nodes, node));
        self.set_next(nodes, prev, next);
        self.set_prev(nodes, next, prev);
    }

    /// `list_move`: to the head of another list, or of the same.
    pub(super) fn shift(&self, nodes: &Nodes, node: u32, head: u32) {
        self.del(nodes, node);
        self.add(nodes, node, head);
    }
}

const fn pack(prev: u32, next: u32) -> u64 {
    (prev as u64) << 32 | next as u64
}
