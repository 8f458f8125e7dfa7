//! LRU_HASH and LRU_PERCPU_HASH in host memory (`kernel/bpf/hashtab.c`).
//!
//! A power of two of buckets, at least `max_entries`, under locks that several buckets share;
//! lookups take theirs for reading. Elements are taken from [`list::Lru`], which evicts one
//! when none is free, before the bucket is locked: the eviction locks the bucket of its victim.
//! So, as in the kernel, an update that is then refused (EEXIST, ENOENT) may have evicted an
//! element, and a replacement of a key needs a free element for a moment.
//!
//! Lookups through bpf(2) set no reference bit (`htab_lru_map_lookup_elem_sys`); an update that
//! finds its key sets it.

mod links;
mod list;
mod node;

use super::jhash::htab_hash;
use super::lazy::LazyTable;
use super::ops::MapOps;
use super::refusals::{BATCH_END, BUCKET_TOO_BIG, END, MISSING, PRESENT, token_bucket};
use super::words::{copy_in, copy_out, equal};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_EXIST, BPF_NOEXIST};
use crossbeam_utils::CachePadded;
use list::Lru;
use node::Nodes;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// End of a chain; otherwise links are a node's number + 1.
const NIL: u64 = 0;
/// Bucket locks that a map has at most.
const MAX_LOCKS: usize = 1024;
/// Times that an update looks for an element again when other threads are just moving all of
/// them, before it says ENOMEM. The kernel looks once; its threads are not preempted there.
const POP_TRIES: u32 = 64;

const NONE_FREE: Error = Error::new(
    Errno::ENOMEM,
    "no element is free, and none could be evicted",
);

/// What an [`LruHash`] is made from.
pub(crate) struct LruShape {
    pub(crate) key_size: u32,
    /// Of one value as user space passes it.
    pub(crate) value_bytes: usize,
    /// Whether a value has a part for each CPU.
    pub(crate) percpu_values: bool,
    /// A multiple of `cpus` when `per_cpu_lists` is set.
    pub(crate) max_entries: u32,
    /// Possible CPUs.
    pub(crate) cpus: u32,
    /// `BPF_F_NO_COMMON_LRU`.
    pub(crate) per_cpu_lists: bool,
    /// The seed of the key hash; `None`: `BPF_F_ZERO_SEED`, which is the kernel's own hash with
    /// seed 0, so that keys come in the kernel's order.
    pub(crate) seed: Option<u64>,
}

pub(crate) struct LruHash {
    secrets: Option<RapidSecrets>,
    mask: usize,
    key_size: usize,
    value_bytes: usize,
    percpu_values: bool,
    max_entries: u32,
    cpus: u32,
    /// A power of two; a bucket's is the one of its low bits.
    locks: Box<[CachePadded<RwLock<()>>]>,
    buckets: LazyTable,
    nodes: Nodes,
    lru: Lru,
}

impl LruHash {
    /// An empty table.
    pub(crate) fn new(shape: &LruShape) -> Result<Self> {
        let n_buckets = (shape.max_entries as usize).next_power_of_two();
        let key_size = shape.key_size as usize;
        Ok(Self {
            secrets: shape.seed.map(RapidSecrets::seed),
            mask: n_buckets - 1,
            key_size,
            value_bytes: shape.value_bytes,
            percpu_values: shape.percpu_values,
            max_entries: shape.max_entries,
            cpus: shape.cpus,
            locks: (0..n_buckets.min(MAX_LOCKS))
                .map(|_| CachePadded::default())
                .collect(),
            buckets: LazyTable::new(n_buckets, 1, "buckets")?,
            nodes: Nodes::new(shape.max_entries, key_size, shape.value_bytes)?,
            lru: Lru::new(shape.max_entries, shape.cpus, shape.per_cpu_lists),
        })
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u32 {
        match &self.secrets {
            Some(secrets) => rapidhash_v3_inline::<true, false, false>(key, secrets) as u32,
            None => htab_hash(key),
        }
    }

    fn bucket_of(&self, hash: u32) -> usize {
        hash as usize & self.mask
    }

    fn lock_of(&self, bucket: usize) -> &RwLock<()> {
        &self.locks[bucket & (self.locks.len() - 1)]
    }

    fn read(&self, bucket: usize) -> RwLockReadGuard<'_, ()> {
        let lock = self.lock_of(bucket).read();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bucket: usize) -> RwLockWriteGuard<'_, ()> {
        let lock = self.lock_of(bucket).write();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// The link to the bucket's first node.
    fn head(&self, bucket: usize) -> u64 {
        let word = self.buckets.get(bucket).and_then(|words| words.first());
        word.map_or(NIL, |word| word.load(Relaxed))
    }

    fn nodes_from(&self, link: u64) -> impl Iterator<Item = u32> {
        let node = |link: u64| link.checked_sub(1).map(|node| node as u32);
        std::iter::successors(node(link), move |&at| node(self.nodes.chain(at)))
    }

    /// The node of a key. The caller holds the bucket.
    fn find(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.nodes_from(self.head(self.bucket_of(hash)))
            .find(|&node| self.nodes.hash(node) == hash && equal(self.nodes.key(node), key))
    }

    /// Puts a node at the head of its bucket. The caller holds the bucket for writing.
    fn link(&self, bucket: usize, node: u32) -> Result<()> {
        let head = self.buckets.get(bucket).and_then(|words| words.first());
        let head = head.ok_or(NONE_FREE)?;
        self.buckets.will_store(bucket);
        self.nodes.set_chain(node, head.load(Relaxed));
        head.store(u64::from(node) + 1, Relaxed);
        Ok(())
    }

    /// Takes a node out of its bucket; false when it is not there. The caller holds the bucket
    /// for writing.
    fn unlink(&self, bucket: usize, node: u32) -> bool {
        let link = u64::from(node) + 1;
        let next = self.nodes.chain(node);
        if self.head(bucket) == link {
            if let Some(head) = self.buckets.get(bucket).and_then(|words| words.first()) {
                head.store(next, Relaxed);
            }
            return true;
        }
        let mut before = self.nodes_from(self.head(bucket));
        match before.find(|&at| self.nodes.chain(at) == link) {
            Some(at) => {
                self.nodes.set_chain(at, next);
                true
            }
            None => false,
        }
    }

    /// `htab_lru_map_delete_node`.
    fn evict(&self, node: u32) -> bool {
        let bucket = self.bucket_of(self.nodes.hash(node));
        let _held = self.write(bucket);
        self.unlink(bucket, node)
    }

    /// `prealloc_lru_pop`.
    fn pop(&self, hash: u32) -> Result<u32> {
        for _ in 0..POP_TRIES {
            let cpu = rustix::thread::sched_getcpu() % self.cpus as usize;
            let evict = |node| self.evict(node);
            if let Some(node) = self.lru.pop_free(&self.nodes, cpu, hash, &evict) {
                return Ok(node);
            }
            std::thread::yield_now();
        }
        Err(NONE_FREE)
    }

    fn push_free(&self, node: u32) {
        self.lru.push_free(&self.nodes, node);
    }

    /// `htab_lru_map_update_elem`: the new element takes the old one's place.
    fn replace(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let hash = self.hash(key);
        let new = self.pop(hash)?;
        copy_in(self.nodes.key(new), key);
        copy_in(self.nodes.value(new), value);
        let bucket = self.bucket_of(hash);
        let linked = {
            let _held = self.write(bucket);
            let old = self.find(hash, key);
            check_flags(old, flags)
                .and_then(|()| self.link(bucket, new))
                .map(|()| {
                    if let Some(old) = old {
                        self.nodes.set_ref(new, true);
                        self.unlink(bucket, old);
                    }
                    old
                })
        };
        match linked {
            Ok(None) => Ok(()),
            Ok(Some(old)) => {
                self.push_free(old);
                Ok(())
            }
            Err(error) => {
                self.push_free(new);
                Err(error)
            }
        }
    }

    /// `__htab_lru_percpu_map_update_elem`: values are updated in place.
    fn overwrite(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let hash = self.hash(key);
        let new = match flags {
            BPF_EXIST => None,
            _ => Some(self.pop(hash)?),
        };
        if let Some(new) = new {
            copy_in(self.nodes.key(new), key);
            copy_in(self.nodes.value(new), value);
        }
        let bucket = self.bucket_of(hash);
        let (unused, result) = {
            let _held = self.write(bucket);
            let old = self.find(hash, key);
            match (check_flags(old, flags), old, new) {
                (Err(error), _, _) => (new, Err(error)),
                (Ok(()), Some(old), _) => {
                    self.nodes.set_ref(old, true);
                    copy_in(self.nodes.value(old), value);
                    (new, Ok(()))
                }
                (Ok(()), None, Some(added)) => match self.link(bucket, added) {
                    Ok(()) => (None, Ok(())),
                    Err(error) => (new, Err(error)),
                },
                (Ok(()), None, None) => (None, Err(MISSING)),
            }
        };
        if let Some(unused) = unused {
            self.push_free(unused);
        }
        result
    }

    fn remove(&self, key: &[u8], value: Option<&mut [u8]>) -> Result<()> {
        let hash = self.hash(key);
        let bucket = self.bucket_of(hash);
        let node = {
            let _held = self.write(bucket);
            let node = self.find(hash, key).ok_or(MISSING)?;
            if let Some(value) = value {
                copy_out(self.nodes.value(node), value);
            }
            self.unlink(bucket, node);
            node
        };
        self.push_free(node);
        Ok(())
    }

    /// The first key in bucket `from` or after it.
    fn first_key_from(&self, from: usize, next: &mut [u8]) -> Result<()> {
        let mut bucket = from;
        while bucket <= self.mask {
            let stored = self.buckets.skip_untouched(bucket);
            if stored != bucket {
                bucket = stored;
                continue;
            }
            if self.head(bucket) != NIL {
                let _held = self.read(bucket);
                if let Some(node) = self.nodes_from(self.head(bucket)).next() {
                    copy_out(self.nodes.key(node), next);
                    return Ok(());
                }
            }
            bucket += 1;
        }
        Err(END)
    }
}

/// `check_flags` of `hashtab.c`.
fn check_flags(old: Option<u32>, flags: u64) -> Result<()> {
    match (old, flags) {
        (Some(_), BPF_NOEXIST) => Err(PRESENT),
        (None, BPF_EXIST) => Err(MISSING),
        _ => Ok(()),
    }
}

impl MapOps for LruHash {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let hash = self.hash(key);
        let _held = self.read(self.bucket_of(hash));
        let node = self.find(hash, key).ok_or(MISSING)?;
        copy_out(self.nodes.value(node), value);
        Ok(())
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        if self.percpu_values {
            self.overwrite(key, value, flags)
        } else {
            self.replace(key, value, flags)
        }
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, None)
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let Some(key) = key else {
            return self.first_key_from(0, next);
        };
        let hash = self.hash(key);
        let bucket = self.bucket_of(hash);
        let from = {
            let _held = self.read(bucket);
            match self.find(hash, key) {
                None => 0,
                Some(node) => match self.nodes_from(self.nodes.chain(node)).next() {
                    None => bucket + 1,
                    Some(after) => {
                        copy_out(self.nodes.key(after), next);
                        return Ok(());
                    }
                },
            }
        };
        self.first_key_from(from, next)
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        self.remove(key, Some(value))
    }

    /// `htab_map_mem_usage`.
    fn mem_usage(&self) -> u64 {
        /// `sizeof(struct bpf_htab)` of 6.18 on x86-64.
        const HTAB_BYTES: u64 = 896;
        const BUCKET_BYTES: u64 = 16;
        /// `sizeof(struct htab_elem)`.
        const ELEMENT_BYTES: u64 = 48;
        const POINTER_BYTES: u64 = 8;
        let key = (self.key_size as u64).next_multiple_of(8);
        let value = (self.value_bytes as u64).next_multiple_of(8);
        let pointer = if self.percpu_values { POINTER_BYTES } else { 0 };
        let element = ELEMENT_BYTES + key + pointer + value;
        HTAB_BYTES + (self.mask as u64 + 1) * BUCKET_BYTES + u64::from(self.max_entries) * element
    }

    fn max_entries(&self, _asked: u32) -> u32 {
        self.max_entries
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
        let mut bucket = match token_bucket(in_batch, self.mask) {
            Ok(bucket) => bucket,
            Err(error) => return BatchOutcome::failed(error),
        };
        let mut keys = keys.chunks_exact_mut(self.key_size);
        let mut values = values.chunks_exact_mut(self.value_bytes);
        let mut total = 0;
        while bucket <= self.mask {
            let stored = self.buckets.skip_untouched(bucket);
            if stored != bucket {
                bucket = stored;
                continue;
            }
            if self.head(bucket) == NIL {
                bucket += 1;
                continue;
            }
            let held = self.write(bucket);
            let here: Vec<u32> = self.nodes_from(self.head(bucket)).collect();
            if here.len() as u32 > count - total {
                out_batch.copy_from_slice(&(bucket as u32).to_ne_bytes());
                return BatchOutcome {
                    count: total,
                    result: match total {
                        0 => Err(BUCKET_TOO_BIG),
                        _ => Ok(()),
                    },
                };
            }
            for &node in &here {
                if let (Some(key), Some(value)) = (keys.next(), values.next()) {
                    copy_out(self.nodes.key(node), key);
                    copy_out(self.nodes.value(node), value);
                }
                if delete {
                    self.unlink(bucket, node);
                }
            }
            drop(held);
            if delete {
                here.iter().for_each(|&node| self.push_free(node));
            }
            total += here.len() as u32;
            bucket += 1;
        }
        out_batch.copy_from_slice(&(self.mask as u32 + 1).to_ne_bytes());
        BatchOutcome {
            count: total,
            result: Err(BATCH_END),
        }
    }
}
