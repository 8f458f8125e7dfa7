//! QUEUE and STACK in host memory (`kernel/bpf/queue_stack_maps.c`).
//!
//! One ring under one lock, as in the kernel: what order means is decided there. A lookup is a
//! peek, an update a push, a lookup-and-delete a pop. Keys have no bytes.

use super::lazy::LazyTable;
use super::ops::{MapOps, NO_SUCH_OPERATION};
use super::words::{copy_in, copy_out, words_for};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_ANY, BPF_EXIST};
use std::sync::{Mutex, MutexGuard, PoisonError};

const EMPTY: Error = Error::new(Errno::ENOENT, "the map holds no value");
const FULL: Error = Error::new(
    Errno::E2BIG,
    "the map holds max_entries values and BPF_EXIST was not given",
);
const BAD_PUSH_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: a push takes BPF_ANY, or BPF_EXIST to overwrite the oldest value",
);
const NO_KEYS: Error = Error::new(
    Errno::EINVAL,
    "a queue or stack has no keys to delete or to walk",
);

/// The end of the ring at which values leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// A queue's.
    Oldest,
    /// A stack's.
    Newest,
}

pub(crate) struct HostQueue {
    end: End,
    value_size: u32,
    max_entries: u32,
    ring: Mutex<Ring>,
}

/// The values are in slots `tail`, `tail + 1`, … of a ring of `max_entries`.
struct Ring {
    slots: LazyTable,
    tail: u32,
    len: u32,
}

impl HostQueue {
    /// An empty ring of `max_entries` values.
    pub(crate) fn new(end: End, value_size: u32, max_entries: u32) -> Result<Self> {
        let words = words_for(value_size as usize);
        Ok(Self {
            end,
            value_size,
            max_entries,
            ring: Mutex::new(Ring {
                slots: LazyTable::new(max_entries as usize, words, "values")?,
                tail: 0,
                len: 0,
            }),
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot `n` places after `slot`.
    fn after(&self, slot: u32, n: u32) -> u32 {
        ((u64::from(slot) + u64::from(n)) % u64::from(self.max_entries)) as u32
    }

    fn get(&self, value: &mut [u8], remove: bool) -> Result<()> {
        let mut ring = self.ring();
        let last = ring.len.checked_sub(1).ok_or(EMPTY)?;
        let slot = match self.end {
            End::Oldest => ring.tail,
            End::Newest => self.after(ring.tail, last),
        };
        copy_out(ring.slots.get(slot as usize).ok_or(EMPTY)?, value);
        if remove {
            ring.len = last;
            if self.end == End::Oldest {
                ring.tail = self.after(ring.tail, 1);
            }
        }
        Ok(())
    }
}

impl MapOps for HostQueue {
    fn lookup(&self, _key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        self.get(value, false)
    }

    fn update(&self, _key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        if !matches!(flags, BPF_ANY | BPF_EXIST) {
            return Err(BAD_PUSH_FLAGS);
        }
        let mut ring = self.ring();
        let full = ring.len == self.max_entries;
        if full && flags != BPF_EXIST {
            return Err(FULL);
        }
        let slot = self.after(ring.tail, ring.len);
        copy_in(ring.slots.get(slot as usize).ok_or(FULL)?, value);
        if full {
            ring.tail = self.after(ring.tail, 1);
        } else {
            ring.len += 1;
        }
        Ok(())
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        Err(NO_KEYS)
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        Err(NO_KEYS)
    }

    fn lookup_and_delete(&self, _key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        self.get(value, true)
    }

    /// `queue_stack_map_mem_usage`: the ring has a slot more than values.
    fn mem_usage(&self) -> u64 {
        /// `sizeof(struct bpf_queue_stack)` of 6.18 on x86-64.
        const QUEUE_STACK_BYTES: u64 = 312;
        QUEUE_STACK_BYTES + (u64::from(self.max_entries) + 1) * u64::from(self.value_size)
    }

    fn walk_batch(
        &self,
        _in_batch: Option<&[u8]>,
        _out_batch: &mut [u8],
        _keys: &mut [u8],
        _values: &mut [u8],
        _count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        BatchOutcome::failed(NO_SUCH_OPERATION)
    }
}
