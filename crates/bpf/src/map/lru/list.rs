//! Which element goes when a new one needs room (`kernel/bpf/bpf_lru_list.c`).
//!
//! An element is on an active or an inactive list and has a reference bit. New ones come to the
//! head of the inactive list; elements leave from its tail, and those that were referenced
//! meanwhile go to the active list instead. The common form has one pair of lists for the map,
//! and in front of it for each CPU a list of free elements, filled several at a time, and one
//! of pending elements, which are those that the CPU filled since. With `BPF_F_NO_COMMON_LRU`
//! each CPU has a pair of lists of its own.
//!
//! The free elements that were never used are a range of numbers and on no list: which free
//! element is taken cannot be seen from outside.
//!
//! Locks: a CPU's local lists, then the pair of lists, then (in `evict`) a bucket. Nobody who
//! holds a bucket comes here.

use super::links::Links;
use super::node::{ListType, Nodes};
use crossbeam_utils::CachePadded;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `LOCAL_FREE_TARGET`, and `LOCAL_NR_SCANS`.
const LOCAL_FREE_TARGET: u32 = 128;
/// `PERCPU_FREE_TARGET`, and `PERCPU_NR_SCANS`.
const PERCPU_FREE_TARGET: u32 = 4;

/// `struct bpf_lru`.
pub(super) struct Lru {
    links: Links,
    /// One for the map, or one for each CPU.
    lists: Box<[CachePadded<Mutex<List>>]>,
    /// One for each CPU of a common LRU; otherwise none.
    locals: Box<[CachePadded<Mutex<Local>>]>,
    nr_scans: u32,
    /// Elements that a CPU takes at a time.
    target_free: u32,
}

/// `struct bpf_lru_list`.
struct List {
    /// The head of the active list; the inactive and the free one's follow.
    heads: u32,
    active: u32,
    inactive: u32,
    /// Where the next rotation of the inactive list starts: a node or the head.
    next_inactive_rotation: u32,
    fresh: Range<u32>,
}

/// `struct bpf_lru_locallist`.
struct Local {
    free: u32,
    pending: u32,
    next_steal: usize,
}

impl List {
    const fn head(&self, list: ListType) -> u32 {
        self.heads + list as u32
    }

    const fn count(&mut self, list: ListType) -> Option<&mut u32> {
        match list {
            ListType::Active => Some(&mut self.active),
            ListType::Inactive => Some(&mut self.inactive),
            _ => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the lists need of the table: whether the node was in its bucket and is out of it now.
/// A node that another thread is about to put in, or has just taken out, is not.
pub(super) trait Evict: Fn(u32) -> bool {}
impl<F: Fn(u32) -> bool> Evict for F {}

impl Lru {
    /// `bpf_lru_init` and `bpf_lru_populate`.
    pub(super) fn new(max_entries: u32, cpus: u32, per_cpu: bool) -> Self {
        let cpus = cpus.max(1);
        let n_lists = if per_cpu { cpus } else { 1 };
        let share = max_entries / n_lists;
        let lists = (0..n_lists).map(|i| {
            let heads = max_entries + 3 * i;
            CachePadded::new(Mutex::new(List {
                heads,
                active: 0,
                inactive: 0,
                next_inactive_rotation: heads + ListType::Inactive as u32,
                fresh: i * share..(i + 1) * share,
            }))
        });
        let lists: Box<[_]> = lists.collect();
        let n_locals = if per_cpu { 0 } else { cpus };
        let locals = (0..n_locals).map(|i| {
            let free = max_entries + 3 * n_lists + 2 * i;
            CachePadded::new(Mutex::new(Local {
                free,
                pending: free + 1,
                next_steal: i as usize,
            }))
        });
        Self {
            links: Links::new(max_entries, 3 * n_lists + 2 * n_locals),
            lists,
            locals: locals.collect(),
            nr_scans: if per_cpu {
                PERCPU_FREE_TARGET
            } else {
                LOCAL_FREE_TARGET
            },
            target_free: if per_cpu {
                PERCPU_FREE_TARGET
            } else {
                (max_entries / cpus / 2).clamp(1, LOCAL_FREE_TARGET)
            },
        }
    }

    /// Whether every CPU has lists of its own.
    pub(super) const fn per_cpu(&self) -> bool {
        self.locals.is_empty()
    }

    /// `bpf_lru_pop_free`: an element for the caller, one evicted for it if need be. `None`
    /// while other threads hold every element between a list and a bucket.
    pub(super) fn pop_free(
        &self,
        nodes: &Nodes,
        cpu: usize,
        hash: u32,
        evict: &impl Evict,
    ) -> Option<u32> {
        if self.per_cpu() {
            self.pop_own(nodes, cpu, hash, evict)
        } else {
            self.pop_common(nodes, cpu, hash, evict)
        }
    }

    /// `bpf_lru_push_free`: gives an element back that is in no bucket.
    pub(super) fn push_free(&self, nodes: &Nodes, node: u32) {
        let cpu = nodes.cpu(node) as usize;
        if self.per_cpu() {
            self.shift(nodes, &mut lock(&self.lists[cpu]), node, ListType::Free);
            return;
        }
        if nodes.list(node) == ListType::LocalPending {
            let local = lock(&self.locals[cpu]);
            // The CPU may have flushed its pending elements before we had the lock.
            if nodes.list(node) == ListType::LocalPending {
                nodes.set_list(node, ListType::LocalFree);
                nodes.set_ref(node, false);
                self.links.shift(nodes, node, local.free);
                return;
            }
        }
        self.shift(nodes, &mut lock(&self.lists[0]), node, ListType::Free);
    }

    /// `bpf_percpu_lru_pop_free`.
    fn pop_own(&self, nodes: &Nodes, cpu: usize, hash: u32, evict: &impl Evict) -> Option<u32> {
        let list = &mut *lock(&self.lists[cpu]);
        self.rotate(nodes, list);
        let free = list.head(ListType::Free);
        if self.links.first(nodes, free).is_none() && !self.unfold_fresh(nodes, list) {
            self.shrink(nodes, list, self.target_free, (free, ListType::Free), evict);
        }
        let node = self.links.first(nodes, free)?;
        self.shift(nodes, list, node, ListType::Inactive);
        nodes.set_owner(node, hash, cpu as u32, ListType::Inactive);
        Some(node)
    }

    /// `bpf_common_lru_pop_free`.
    fn pop_common(&self, nodes: &Nodes, cpu: usize, hash: u32, evict: &impl Evict) -> Option<u32> {
        let mut local = lock(&self.locals[cpu]);
        let mut node = self.pop_local_free(nodes, &local);
        if node.is_none() {
            self.refill(nodes, &local, evict);
            node = self.pop_local_free(nodes, &local);
        }
        if let Some(node) = node {
            self.add_pending(nodes, &local, cpu, node, hash);
            return Some(node);
        }
        let first = local.next_steal;
        drop(local);

        // All are on CPUs' local lists: steal, from this CPU's or another's.
        let (mut from, mut stolen) = (first, None);
        loop {
            let victim = lock(&self.locals[from]);
            stolen = stolen
                .or_else(|| self.pop_local_free(nodes, &victim))
                .or_else(|| self.pop_pending(nodes, &victim, evict));
            drop(victim);
            from = (from + 1) % self.locals.len();
            if stolen.is_some() || from == first {
                break;
            }
        }
        local = lock(&self.locals[cpu]);
        local.next_steal = from;
        let node = stolen?;
        self.add_pending(nodes, &local, cpu, node, hash);
        Some(node)
    }

    fn pop_local_free(&self, nodes: &Nodes, local: &Local) -> Option<u32> {
        let node = self.links.first(nodes, local.free)?;
        self.links.del(nodes, node);
        Some(node)
    }

    /// `__local_list_pop_pending`: the oldest that was not referenced, or else the oldest.
    fn pop_pending(&self, nodes: &Nodes, local: &Local, evict: &impl Evict) -> Option<u32> {
        for ignore_ref in [false, true] {
            let mut at = self.links.prev(nodes, local.pending);
            while at != local.pending {
                if (ignore_ref || !nodes.is_ref(at)) && evict(at) {
                    self.links.del(nodes, at);
                    return Some(at);
                }
                at = self.links.prev(nodes, at);
            }
        }
        None
    }

    fn add_pending(&self, nodes: &Nodes, local: &Local, cpu: usize, node: u32, hash: u32) {
        nodes.set_owner(node, hash, cpu as u32, ListType::LocalPending);
        nodes.set_ref(node, false);
        self.links.add(nodes, node, local.pending);
    }

    /// `bpf_lru_list_pop_free_to_local`: free elements for a CPU, taken from the common list.
    fn refill(&self, nodes: &Nodes, local: &Local, evict: &impl Evict) {
        let list = &mut *lock(&self.lists[0]);
        self.flush(nodes, list, local);
        self.rotate(nodes, list);
        let mut taken = 0;
        while taken < self.target_free {
            let free = self.links.first(nodes, list.head(ListType::Free));
            let Some(node) = free else {
                if self.unfold_fresh(nodes, list) {
                    continue;
                }
                break;
            };
            self.shift_to(nodes, list, node, local.free, ListType::LocalFree);
            taken += 1;
        }
        if taken < self.target_free {
            let rest = self.target_free - taken;
            self.shrink(nodes, list, rest, (local.free, ListType::LocalFree), evict);
        }
    }

    /// Puts an element that was never used on the free list; false when there is none.
    fn unfold_fresh(&self, nodes: &Nodes, list: &mut List) -> bool {
        let node = list.fresh.start;
        if list.fresh.is_empty() {
            return false;
        }
        list.fresh.start += 1;
        nodes.set_owner(node, 0, 0, ListType::Free);
        self.links.add(nodes, node, list.head(ListType::Free));
        true
    }

    /// `__local_list_flush`: the pending elements of a CPU, oldest first, to the common lists.
    fn flush(&self, nodes: &Nodes, list: &mut List, local: &Local) {
        let mut node = self.links.prev(nodes, local.pending);
        while node != local.pending {
            let before = self.links.prev(nodes, node);
            let to = if nodes.is_ref(node) {
                ListType::Active
            } else {
                ListType::Inactive
            };
            if let Some(count) = list.count(to) {
                *count += 1;
            }
            nodes.set_list(node, to);
            nodes.set_ref(node, false);
            self.links.shift(nodes, node, list.head(to));
            node = before;
        }
    }

    /// `__bpf_lru_node_move`: to the head of one of the pair's lists, no longer referenced.
    fn shift(&self, nodes: &Nodes, list: &mut List, node: u32, to: ListType) {
        nodes.set_ref(node, false);
        if let Some(count) = list.count(to) {
            *count += 1;
        }
        self.shift_to(nodes, list, node, list.head(to), to);
    }

    /// `__bpf_lru_node_move_to_free`, and what every move has in common.
    fn shift_to(&self, nodes: &Nodes, list: &mut List, node: u32, head: u32, to: ListType) {
        if let Some(count) = list.count(nodes.list(node)) {
            *count -= 1;
        }
        if node == list.next_inactive_rotation {
            list.next_inactive_rotation = self.links.prev(nodes, node);
        }
        nodes.set_list(node, to);
        self.links.shift(nodes, node, head);
    }

    /// `__bpf_lru_list_rotate`.
    fn rotate(&self, nodes: &Nodes, list: &mut List) {
        if list.inactive < list.active {
            self.rotate_active(nodes, list);
        }
        self.rotate_inactive(nodes, list);
    }

    /// `__bpf_lru_list_rotate_active`: from the tail, the referenced ones back to the head, the
    /// others to the inactive list.
    fn rotate_active(&self, nodes: &Nodes, list: &mut List) {
        let head = list.head(ListType::Active);
        let first = self.links.next(nodes, head);
        let mut node = self.links.prev(nodes, head);
        for _ in 0..self.nr_scans {
            if node == head {
                break;
            }
            let before = self.links.prev(nodes, node);
            let to = if nodes.is_ref(node) {
                ListType::Active
            } else {
                ListType::Inactive
            };
            self.shift(nodes, list, node, to);
            if node == first {
                break;
            }
            node = before;
        }
    }

    /// `__bpf_lru_list_rotate_inactive`: from where the last rotation ended, the referenced
    /// ones to the active list.
    fn rotate_inactive(&self, nodes: &Nodes, list: &mut List) {
        let head = list.head(ListType::Inactive);
        if self.links.first(nodes, head).is_none() {
            return;
        }
        let mut last = self.links.next(nodes, list.next_inactive_rotation);
        if last == head {
            last = self.links.next(nodes, last);
        }
        let mut at = list.next_inactive_rotation;
        let mut scanned = 0;
        while scanned < self.nr_scans {
            if at == head {
                at = self.links.prev(nodes, at);
                // The last one was moved away: nothing is left to look at.
                if at == head {
                    break;
                }
                continue;
            }
            let before = self.links.prev(nodes, at);
            if nodes.is_ref(at) {
                self.shift(nodes, list, at, ListType::Active);
            }
            let end = at == last;
            at = before;
            if end {
                break;
            }
            scanned += 1;
        }
        list.next_inactive_rotation = at;
    }

    /// `__bpf_lru_list_shrink`: up to `want` elements that were not referenced go to the free
    /// list `to`; if there are none, one that was.
    fn shrink(
        &self,
        nodes: &Nodes,
        list: &mut List,
        want: u32,
        to: (u32, ListType),
        evict: &impl Evict,
    ) {
        if self.shrink_inactive(nodes, list, want, to, evict) != 0 {
            return;
        }
        let inactive = list.head(ListType::Inactive);
        let head = match self.links.first(nodes, inactive) {
            Some(_) => inactive,
            None => list.head(ListType::Active),
        };
        let mut node = self.links.prev(nodes, head);
        while node != head {
            if evict(node) {
                self.shift_to(nodes, list, node, to.0, to.1);
                return;
            }
            node = self.links.prev(nodes, node);
        }
    }

    /// `__bpf_lru_list_shrink_inactive`.
    fn shrink_inactive(
        &self,
        nodes: &Nodes,
        list: &mut List,
        want: u32,
        to: (u32, ListType),
        evict: &impl Evict,
    ) -> u32 {
        let head = list.head(ListType::Inactive);
        let mut node = self.links.prev(nodes, head);
        let mut freed = 0;
        for _ in 0..self.nr_scans {
            if node == head {
                break;
            }
            let before = self.links.prev(nodes, node);
            if nodes.is_ref(node) {
                self.shift(nodes, list, node, ListType::Active);
            } else if evict(node) {
                self.shift_to(nodes, list, node, to.0, to.1);
                freed += 1;
                if freed == want {
                    break;
                }
            }
            node = before;
        }
        freed
    }
}
