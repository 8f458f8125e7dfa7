//! HASH_OF_MAPS in host memory (`kernel/bpf/hashtab.c`).
//!
//! A power of two of buckets, at least `max_entries`, each a short list under a lock of its
//! own. References are taken out of a bucket under its lock and dropped after it.

use super::cells::LazyCells;
use super::{InnerMaps, MapMeta, NEEDS_DESCRIPTORS, put_id};
use crate::device::BatchOutcome;
use crate::error::Result;
use crate::map::Map;
use crate::map::jhash::htab_hash;
use crate::map::ops::MapOps;
use crate::map::refusals::{
    BAD_UPDATE_FLAGS, BATCH_END, BUCKET_TOO_BIG, END, FULL, MISSING, PRESENT, token_bucket,
};
use crate::uapi::{BPF_EXIST, BPF_NOEXIST};
use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What 6.18 accounts for a table besides its buckets and elements: `struct bpf_htab`.
const HTAB_BYTES: u64 = 896;
/// `sizeof(struct bucket)`.
const BUCKET_BYTES: u64 = 16;
/// `sizeof(struct htab_elem)`, and the pointer that is the value.
const ELEMENT_BYTES: u64 = 48 + 8;
/// `LLIST_NODE_SZ`, of an element that is allocated when it is needed.
const LLIST_NODE_BYTES: u64 = 8;
/// `sizeof(struct htab_elem *)`, one for each CPU with elements allocated in advance.
const EXTRA_POINTER_BYTES: u64 = 8;

/// What `htab_map_update_elem_in_place` says of flags, after the descriptor was looked at.
pub(super) fn check_flags(flags: u64) -> Result<()> {
    if flags > BPF_EXIST {
        return Err(BAD_UPDATE_FLAGS);
    }
    Ok(())
}

struct Element {
    key: Box<[u8]>,
    inner: Arc<Map>,
}

type Bucket = RwLock<Vec<Element>>;

/// A hash table whose values are maps.
pub(crate) struct HashOfMaps {
    template: MapMeta,
    /// Of the key hash; `None`: the kernel's own hash (BPF_F_ZERO_SEED).
    secrets: Option<RapidSecrets>,
    mask: usize,
    key_size: usize,
    max_entries: u32,
    preallocated: bool,
    possible_cpus: u32,
    used: AtomicU32,
    buckets: LazyCells<Bucket>,
}

/// What a table is made with.
pub(crate) struct HashShape {
    /// Bytes of a key.
    pub(crate) key_size: u32,
    /// Entries, not 0.
    pub(crate) max_entries: u32,
    /// Seed of the key hash; `None`: the kernel's own, with which keys have its order.
    pub(crate) seed: Option<u64>,
    /// Whether the kernel would allocate all elements at once.
    pub(crate) preallocated: bool,
    pub(crate) possible_cpus: u32,
}

fn read(bucket: &Bucket) -> RwLockReadGuard<'_, Vec<Element>> {
    bucket.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(bucket: &Bucket) -> RwLockWriteGuard<'_, Vec<Element>> {
    bucket.write().unwrap_or_else(PoisonError::into_inner)
}

fn position(elements: &[Element], key: &[u8]) -> Option<usize> {
    elements.iter().position(|element| &*element.key == key)
}

impl HashOfMaps {
    pub(crate) fn new(template: MapMeta, shape: &HashShape) -> Self {
        let n_buckets = (shape.max_entries as usize).next_power_of_two();
        Self {
            template,
            secrets: shape.seed.map(RapidSecrets::seed),
            mask: n_buckets - 1,
            key_size: shape.key_size as usize,
            max_entries: shape.max_entries,
            preallocated: shape.preallocated,
            possible_cpus: shape.possible_cpus,
            used: AtomicU32::new(0),
            buckets: LazyCells::new(n_buckets),
        }
    }

    fn index(&self, key: &[u8]) -> usize {
        let hash = match &self.secrets {
            Some(secrets) => rapidhash_v3_inline::<true, false, false>(key, secrets) as usize,
            None => htab_hash(key) as usize,
        };
        hash & self.mask
    }

    /// The first bucket at or after `from` that holds anything, read-locked.
    fn next_bucket(&self, from: usize) -> Option<(usize, RwLockReadGuard<'_, Vec<Element>>)> {
        let mut index = self.buckets.skip_absent(from);
        while index <= self.mask {
            if let Some(bucket) = self.buckets.get(index) {
                let elements = read(bucket);
                if !elements.is_empty() {
                    return Some((index, elements));
                }
            }
            index = self.buckets.skip_absent(index + 1);
        }
        None
    }

    /// Counts one entry more, unless the map is full.
    fn reserve(&self) -> Result<()> {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| {
                (used < self.max_entries).then_some(used + 1)
            })
            .map(drop)
            .map_err(|_| FULL)
    }

    /// Copies a bucket's elements out, from element `at` of the arrays on.
    fn copy_bucket(&self, elements: &[Element], at: usize, keys: &mut [u8], values: &mut [u8]) {
        let keys = keys.chunks_exact_mut(self.key_size).skip(at);
        let values = values.chunks_exact_mut(super::VALUE_BYTES).skip(at);
        for ((element, key), value) in elements.iter().zip(keys).zip(values) {
            key.copy_from_slice(&element.key);
            put_id(&element.inner, value);
        }
    }
}

impl InnerMaps for HashOfMaps {
    fn template(&self) -> &MapMeta {
        &self.template
    }

    fn check_update(&self, _key: &[u8], _flags: u64) -> Result<()> {
        Ok(())
    }

    fn store(&self, key: &[u8], inner: Arc<Map>, flags: u64) -> Result<()> {
        check_flags(flags)?;
        let bucket = self.buckets.get_or_alloc(self.index(key))?;
        let replaced = {
            let mut elements = write(bucket);
            match position(&elements, key) {
                Some(_) if flags == BPF_NOEXIST => return Err(PRESENT),
                Some(at) => std::mem::replace(&mut elements[at].inner, inner),
                None if flags == BPF_EXIST => return Err(MISSING),
                None => {
                    self.reserve()?;
                    let key = key.into();
                    elements.insert(0, Element { key, inner });
                    return Ok(());
                }
            }
        };
        drop(replaced);
        Ok(())
    }

    fn inner(&self, key: &[u8]) -> Result<Arc<Map>> {
        let bucket = self.buckets.get(self.index(key)).ok_or(MISSING)?;
        let elements = read(bucket);
        let at = position(&elements, key).ok_or(MISSING)?;
        Ok(Arc::clone(&elements[at].inner))
    }
}

impl MapOps for HashOfMaps {
    fn inner_maps(&self) -> Option<&dyn InnerMaps> {
        Some(self)
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let bucket = self.buckets.get(self.index(key)).ok_or(MISSING)?;
        let elements = read(bucket);
        let at = position(&elements, key).ok_or(MISSING)?;
        put_id(&elements[at].inner, value);
        Ok(())
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        Err(NEEDS_DESCRIPTORS)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let bucket = self.buckets.get(self.index(key)).ok_or(MISSING)?;
        let removed = {
            let mut elements = write(bucket);
            let at = position(&elements, key).ok_or(MISSING)?;
            self.used.fetch_sub(1, Relaxed);
            elements.remove(at)
        };
        drop(removed);
        Ok(())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let mut from = 0;
        if let Some(key) = key {
            let index = self.index(key);
            if let Some(bucket) = self.buckets.get(index) {
                let elements = read(bucket);
                if let Some(at) = position(&elements, key) {
                    if let Some(following) = elements.get(at + 1) {
                        next.copy_from_slice(&following.key);
                        return Ok(());
                    }
                    from = index + 1;
                }
            }
        }
        let (_, elements) = self.next_bucket(from).ok_or(END)?;
        next.copy_from_slice(&elements[0].key);
        Ok(())
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        let mut index = match token_bucket(in_batch, self.mask) {
            Ok(index) => index,
            Err(error) => return BatchOutcome::failed(error),
        };
        let (mut total, room) = (0, count as usize);
        let mut removed = Vec::new();
        let result = loop {
            let Some((at, elements)) = self.next_bucket(index) else {
                index = self.mask + 1;
                break Err(BATCH_END);
            };
            index = at;
            // Between the two locks the bucket may change, and only the second look counts.
            drop(elements);
            let Some(bucket) = self.buckets.get(at) else {
                continue;
            };
            let here = if delete {
                let mut elements = write(bucket);
                let here = elements.len();
                if total + here <= room {
                    self.copy_bucket(&elements, total, keys, values);
                    self.used.fetch_sub(here as u32, Relaxed);
                    removed.append(&mut elements);
                }
                here
            } else {
                let elements = read(bucket);
                if total + elements.len() <= room {
                    self.copy_bucket(&elements, total, keys, values);
                }
                elements.len()
            };
            if total + here > room {
                break if total == 0 {
                    Err(BUCKET_TOO_BIG)
                } else {
                    Ok(())
                };
            }
            total += here;
            index += 1;
        };
        drop(removed);
        out_batch.copy_from_slice(&(index as u32).to_ne_bytes());
        BatchOutcome {
            count: total as u32,
            result,
        }
    }

    /// `htab_map_mem_usage`.
    fn mem_usage(&self) -> u64 {
        let element = ELEMENT_BYTES + (self.key_size as u64).next_multiple_of(8);
        let elements = if self.preallocated {
            u64::from(self.max_entries) * element
                + u64::from(self.possible_cpus) * EXTRA_POINTER_BYTES
        } else {
            u64::from(self.used.load(Relaxed)) * (element + LLIST_NODE_BYTES)
        };
        HTAB_BYTES + (self.mask as u64 + 1) * BUCKET_BYTES + elements
    }
}
