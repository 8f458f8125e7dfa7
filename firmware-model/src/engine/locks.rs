//! The lock unit: which engine has which part of a table, who waits for it, and versions.
//!
//! It is a unit of the device beside its memory, out of the reach of the host's window: whatever the
//! host writes, no engine waits for ever. Locks are handed on in the order in which they were asked
//! for, so that an engine waits for each other engine at most once.

use crate::access::Part;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

/// Versions. Parts that share one make readers look again more often than they must, and do no harm.
const VERSIONS: usize = 1024;

/// A lock that is held or waited for.
#[derive(Debug, Default)]
struct Lock {
    holder: Option<u32>,
    /// How often the holder has taken it.
    depth: u32,
    waiting: VecDeque<u32>,
}

/// All locks and versions of the device.
#[derive(Debug)]
pub(super) struct Locks {
    held: BTreeMap<(bool, u64), Lock>,
    versions: Vec<u64>,
    #[cfg(test)]
    pub(super) planted: super::tests::Planted,
}

fn name(part: Part) -> (bool, u64) {
    match part {
        Part::Table(at) => (false, at.0),
        Part::Entry(at) => (true, at.0),
    }
}

fn slot(part: Part) -> usize {
    let (entry, at) = name(part);
    let mixed = (at ^ u64::from(entry)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize % VERSIONS
}

impl Locks {
    pub(super) fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            versions: vec![0; VERSIONS],
            #[cfg(test)]
            planted: super::tests::Planted::default(),
        }
    }

    /// Whether nobody has or wants any lock.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    fn advance(&mut self, part: Part) {
        self.versions[slot(part)] += 1;
    }

    /// The version of a part that nobody has locked.
    pub(super) fn version(&self, part: Part) -> Option<u64> {
        #[cfg(test)]
        if self.planted.trusts_copies {
            return Some(0);
        }
        let held = self.held.get(&name(part));
        match held.is_some_and(|lock| lock.holder.is_some()) {
            true => None,
            false => self.versions.get(slot(part)).copied(),
        }
    }

    /// Whether the engine has the lock now; otherwise it waits in its place.
    pub(super) fn lock(&mut self, engine: u32, part: Part) -> bool {
        #[cfg(test)]
        if self.planted.ignores(part) {
            return true;
        }
        let lock = self.held.entry(name(part)).or_default();
        match lock.holder {
            Some(holder) if holder == engine => lock.depth += 1,
            None if lock.waiting.front().is_none_or(|first| *first == engine) => {
                lock.waiting.pop_front();
                (lock.holder, lock.depth) = (Some(engine), 1);
                self.advance(part);
            }
            _ => {
                if !lock.waiting.contains(&engine) {
                    lock.waiting.push_back(engine);
                }
                return false;
            }
        }
        true
    }

    /// The engine gives the lock back.
    pub(super) fn unlock(&mut self, engine: u32, part: Part) {
        let Some(lock) = self.held.get_mut(&name(part)) else {
            return;
        };
        if lock.holder != Some(engine) {
            return;
        }
        lock.depth -= 1;
        if lock.depth == 0 {
            lock.holder = None;
            if lock.waiting.is_empty() {
                self.held.remove(&name(part));
            }
            self.advance(part);
        }
    }

    /// The engine's operation is over: it has and wants nothing. What it still held may be half changed,
    /// so that nobody's copy from before counts.
    pub(super) fn release(&mut self, engine: u32) {
        if self.held.values().any(|lock| lock.holder == Some(engine)) {
            for version in &mut self.versions {
                *version += 1;
            }
        }
        self.held.retain(|_, lock| {
            lock.waiting.retain(|waiting| *waiting != engine);
            if lock.holder == Some(engine) {
                (lock.holder, lock.depth) = (None, 0);
            }
            lock.holder.is_some() || !lock.waiting.is_empty()
        });
    }

    /// Whether an engine has a lock that this one waits for.
    pub(super) fn blocked(&self, engine: u32) -> bool {
        self.held.values().any(|lock| {
            lock.waiting.contains(&engine)
                && (lock.holder.is_some() || lock.waiting.front() != Some(&engine))
        })
    }
}
