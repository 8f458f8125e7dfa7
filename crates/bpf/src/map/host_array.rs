//! ARRAY and PERCPU_ARRAY in host memory (`kernel/bpf/arraymap.c`).
//!
//! Each element is a version word and the value. A writer makes the version odd while it
//! stores; a reader that saw it odd or changed reads again. The kernel's array lets a reader
//! see half of an update; here it is whole.

use super::lazy::LazyTable;
use super::mapping::{PAGE_BYTES, store_part};
use super::near::Near;
use super::ops::{MapOps, NO_SUCH_OPERATION};
use super::refusals::{BATCH_END, LAST_INDEX, PAST_END};
use super::words::{Backoff, copy_in, copy_out, words_for};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_F_LOCK, BPF_NOEXIST};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use std::sync::{Arc, OnceLock};

const NO_INDEX: Error = Error::new(Errno::ENOENT, "the array index is at or past max_entries");
const PRESENT: Error = Error::new(
    Errno::EEXIST,
    "every element of an array exists, and BPF_NOEXIST was asked for",
);
const NO_DELETE: Error = Error::new(Errno::EINVAL, "an array's elements cannot be deleted");

pub(crate) struct HostArray {
    max_entries: u32,
    value_bytes: usize,
    elements: LazyTable,
    mmap: ArrayMmap,
    /// What is mapped of the last page past the elements; programs may keep data there.
    slack: OnceLock<Box<[AtomicU64]>>,
}

/// Whether an array can be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ArrayMmap {
    /// Its type has no `map_mmap`: 524.
    Never,
    /// It was created without `BPF_F_MMAPABLE`: EINVAL.
    NotAsked,
    /// It can.
    Shared,
}

const NOT_MMAPABLE: Error = Error::new(
    Errno::EINVAL,
    "the array was created without BPF_F_MMAPABLE",
);

impl HostArray {
    /// An array of zeroes. `value_bytes` is the size of a value as user space passes it.
    pub(crate) fn new(value_bytes: usize, max_entries: u32, mmap: ArrayMmap) -> Result<Self> {
        Ok(Self {
            max_entries,
            value_bytes,
            elements: LazyTable::new(
                max_entries as usize,
                1 + words_for(value_bytes),
                "array elements",
            )?,
            mmap,
            slack: OnceLock::new(),
        })
    }

    /// Words of all elements, without their versions.
    fn element_words(&self) -> usize {
        self.max_entries as usize * words_for(self.value_bytes)
    }

    /// An element's version and value.
    #[inline]
    fn element(&self, index: u32) -> Option<(&AtomicU64, &[AtomicU64])> {
        self.elements.get(index as usize)?.split_first()
    }

    /// A lookup beside writers.
    #[cold]
    #[inline(never)]
    fn lookup_carefully(cell: &AtomicU64, stored: &[AtomicU64], value: &mut [u8]) -> Result<()> {
        let mut backoff = Backoff::new();
        loop {
            let version = cell.load(Acquire);
            if version & 1 == 0 {
                copy_out(stored, value);
                fence(Acquire);
                if cell.load(Relaxed) == version {
                    return Ok(());
                }
            }
            if backoff.exhausted() {
                let _element = Element::lock(cell);
                copy_out(stored, value);
                return Ok(());
            }
            backoff.wait();
        }
    }

    #[inline]
    fn index(key: &[u8]) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&key[..4]);
        u32::from_ne_bytes(raw)
    }
}

/// An element whose version this thread has made odd.
struct Element<'a> {
    cell: &'a AtomicU64,
    version: u64,
    changed: bool,
}

impl<'a> Element<'a> {
    fn lock(cell: &'a AtomicU64) -> Self {
        let mut backoff = Backoff::new();
        loop {
            let version = cell.load(Relaxed);
            if version & 1 == 0
                && cell
                    .compare_exchange_weak(version, version | 1, Acquire, Relaxed)
                    .is_ok()
            {
                // Orders the odd version before the stores of the value.
                fence(Release);
                return Self {
                    cell,
                    version,
                    changed: false,
                };
            }
            backoff.wait();
        }
    }
}

impl Drop for Element<'_> {
    fn drop(&mut self) {
        let version = self.version.wrapping_add(if self.changed { 2 } else { 0 });
        self.cell.store(version, Release);
    }
}

impl MapOps for HostArray {
    fn near(self: Arc<Self>) -> Option<Near> {
        Some(Near::Array(self))
    }

    #[inline]
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let index = Self::index(key);
        if index >= self.max_entries {
            return Err(NO_INDEX);
        }
        let Some((cell, stored)) = self.element(index) else {
            return Err(NO_INDEX);
        };
        let version = cell.load(Acquire);
        if version & 1 == 0 {
            copy_out(stored, value);
            fence(Acquire);
            if cell.load(Relaxed) == version {
                return Ok(());
            }
        }
        Self::lookup_carefully(cell, stored, value)
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let index = Self::index(key);
        if index >= self.max_entries {
            return Err(PAST_END);
        }
        if flags & !BPF_F_LOCK == BPF_NOEXIST {
            return Err(PRESENT);
        }
        let Some((cell, stored)) = self.element(index) else {
            return Err(PAST_END);
        };
        let mut guard = Element::lock(cell);
        guard.changed = true;
        if self.mmap == ArrayMmap::Shared {
            // Those who map the array see its padding, and it is theirs.
            let (whole, part) = value.split_at(value.len() & !7);
            copy_in(stored, whole);
            if let (false, Some(last)) = (part.is_empty(), stored.last()) {
                store_part(last, 0, part);
            }
        } else {
            copy_in(stored, value);
        }
        Ok(())
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        Err(NO_DELETE)
    }

    /// `array_map_mem_usage` of 6.18 on x86-64.
    fn mem_usage(&self) -> u64 {
        /// `sizeof(struct bpf_array)`.
        const ARRAY_BYTES: u64 = 312;
        const POINTER_BYTES: u64 = 8;
        let entries = u64::from(self.max_entries);
        let elements = entries * (self.value_bytes as u64).next_multiple_of(8);
        match self.mmap {
            // A per-CPU array: a pointer to the values of each entry.
            ArrayMmap::Never => ARRAY_BYTES + entries * POINTER_BYTES + elements,
            ArrayMmap::NotAsked => ARRAY_BYTES + elements,
            // What is mapped begins on a page of its own.
            ArrayMmap::Shared => {
                ARRAY_BYTES.next_multiple_of(PAGE_BYTES) + elements.next_multiple_of(PAGE_BYTES)
            }
        }
    }

    fn mmap_bytes(&self) -> Result<u64> {
        match self.mmap {
            ArrayMmap::Never => Err(NO_SUCH_OPERATION),
            ArrayMmap::NotAsked => Err(NOT_MMAPABLE),
            ArrayMmap::Shared => Ok((self.element_words() as u64 * 8).next_multiple_of(PAGE_BYTES)),
        }
    }

    fn mapped_word(&self, word: usize, store: bool) -> Result<Option<&AtomicU64>> {
        let per_element = words_for(self.value_bytes);
        let Some(past_end) = word.checked_sub(self.element_words()) else {
            let (index, within) = (word / per_element, 1 + word % per_element);
            let element = self.elements.get(index);
            return Ok(element.and_then(|words| words.get(within)));
        };
        let slack = match store {
            true => Some(self.slack.get_or_init(|| {
                let words = self.element_words() as u64 * 8;
                let bytes = words.next_multiple_of(PAGE_BYTES) - words;
                (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
            })),
            false => self.slack.get(),
        };
        Ok(slack.and_then(|words| words.get(past_end)))
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let index = key.map_or(u32::MAX, Self::index);
        let following = if index >= self.max_entries {
            0
        } else if index == self.max_entries - 1 {
            return Err(LAST_INDEX);
        } else {
            index + 1
        };
        next.copy_from_slice(&following.to_ne_bytes());
        Ok(())
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        // `generic_map_lookup_batch`: a token past the end is a missing key, so the walk
        // starts over.
        let first = match in_batch.map(Self::index) {
            Some(last) if last < self.max_entries => last + 1,
            _ => 0,
        };
        let mut outcome = BatchOutcome {
            count: 0,
            result: Ok(()),
        };
        let slots = keys
            .chunks_exact_mut(4)
            .zip(values.chunks_exact_mut(self.value_bytes))
            .take(count as usize);
        for (index, (key, value)) in (first..=u32::MAX).zip(slots) {
            if index >= self.max_entries {
                outcome.result = Err(BATCH_END);
                break;
            }
            key.copy_from_slice(&index.to_ne_bytes());
            if let Err(error) = self.lookup(key, value, 0) {
                outcome.result = Err(error);
                break;
            }
            outcome.count += 1;
            out_batch.copy_from_slice(key);
        }
        outcome
    }
}
