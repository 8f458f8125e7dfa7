//! What a map's storage answers, and what the table of map types says of a type.

use crate::caller::Caller;
use crate::device::{BatchOutcome, OffloadCommands};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::Near;
use crate::map::inner::{InnerMaps, MapMeta};
use crate::map::ringbuf::{Consumers, HostRing};
use crate::uapi::MapCreateAttr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What the token of a batch walk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    /// A bucket, `u32` in native byte order (`__htab_map_lookup_and_delete_batch`).
    Bucket,
    /// The last key returned (`generic_map_lookup_batch`).
    LastKey,
}

impl Token {
    /// Its size in bytes, in a map whose keys have `key_size`.
    pub(crate) const fn bytes(self, key_size: u32) -> u32 {
        match self {
            Self::Bucket => 4,
            Self::LastKey => key_size,
        }
    }
}

pub(crate) const NO_SUCH_OPERATION: Error =
    Error::new(Errno::ENOTSUPP, "maps of this type have no such operation");

pub(crate) const NO_RING: Error = Error::new(Errno::EINVAL, "the map is no ring buffer");

/// What stores a map's elements: the part of `struct bpf_map_ops` that commands reach.
///
/// The callers have checked buffer lengths, the file's mode, frozen, and that update flags are
/// at most `BPF_EXIST` and lookup flags 0.
pub(crate) trait MapOps: Send + Sync {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()>;
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()>;
    fn delete(&self, key: &[u8]) -> Result<()>;
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()>;

    fn lookup_and_delete(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    /// The table itself, where lookups may go without coming through here.
    fn near(self: Arc<Self>) -> Option<Near> {
        None
    }

    /// The side that knows of inner maps, for maps of maps. Values of these are ids when they
    /// are read; `update` cannot resolve the descriptors that are written.
    fn inner_maps(&self) -> Option<&dyn InnerMaps> {
        None
    }

    /// Whether an update with flags above `BPF_EXIST` is refused before it comes here.
    fn checks_update_flags(&self) -> bool {
        true
    }

    /// The consumers of a ring buffer's records. EINVAL for maps of other types.
    fn ring_consumers(&self) -> Result<Arc<Consumers>> {
        Err(NO_RING)
    }

    /// The ring that programs of this host fill. EINVAL for maps of other types.
    fn ring_producer(&self) -> Result<Arc<HostRing>> {
        Err(NO_RING)
    }

    /// As [`crate::device::OffloadedMap::walk_batch`].
    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome;

    /// `generic_map_update_batch`; `sizes` are those of a key and of a value.
    fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: u64,
        sizes: (usize, usize),
    ) -> BatchOutcome {
        each(count, |i| {
            let (key, value) = (nth(keys, sizes.0, i), nth(values, sizes.1, i));
            self.update(key, value, flags)
        })
    }

    /// `generic_map_delete_batch`.
    fn delete_batch(&self, keys: &[u8], count: u32, key_size: usize) -> BatchOutcome {
        each(count, |i| self.delete(nth(keys, key_size, i)))
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
        sizes: (usize, usize),
    ) -> Result<()> {
        for (i, result) in results.iter_mut().enumerate() {
            let (key, value) = (nth(keys, sizes.0, i), nth_mut(values, sizes.1, i));
            *result = self.lookup(key, value, 0).map_err(|error| error.errno());
        }
        Ok(())
    }

    /// `map_mem_usage`: bytes of memory that the map accounts for, by the kernel's figures for
    /// a map of these sizes.
    fn mem_usage(&self) -> u64;

    /// `max_entries` of the map: what was asked, unless the type's allocation rounds it.
    fn max_entries(&self, asked: u32) -> u32 {
        asked
    }

    /// Bytes of the map's memory that `mmap(2)` can map, in whole pages. 524 for maps that have
    /// no `map_mmap`; what that refuses otherwise.
    fn mmap_bytes(&self) -> Result<u64> {
        Err(NO_SUCH_OPERATION)
    }

    /// Word `word` of the memory that can be mapped; `None` where nothing was stored so far,
    /// which only happens when `store` is not set. ENOMEM.
    fn mapped_word(&self, _word: usize, _store: bool) -> Result<Option<&AtomicU64>> {
        Err(NO_SUCH_OPERATION)
    }

    /// The last reference to the map is gone; called once, from the worker. Host storage goes
    /// with its memory.
    fn release(&self) {}
}

/// Item `index` of an array of items of `size` bytes. The size may be 0: queues and bloom
/// filters have no keys.
#[inline]
pub(crate) fn nth(bytes: &[u8], size: usize, index: usize) -> &[u8] {
    &bytes[index * size..][..size]
}

/// As [`nth`].
#[inline]
pub(crate) fn nth_mut(bytes: &mut [u8], size: usize, index: usize) -> &mut [u8] {
    &mut bytes[index * size..][..size]
}

pub(crate) fn each(count: u32, mut operation: impl FnMut(usize) -> Result<()>) -> BatchOutcome {
    for done in 0..count {
        if let Err(error) = operation(done as usize) {
            return BatchOutcome {
                count: done,
                result: Err(error),
            };
        }
    }
    BatchOutcome {
        count,
        result: Ok(()),
    }
}

/// What a map type's allocation knows besides the attribute.
pub(crate) struct AllocContext {
    pub(crate) possible_cpus: u32,
    /// Of the inner maps, for maps of maps.
    pub(crate) template: Option<MapMeta>,
}

/// One row of the table of map types.
pub(crate) struct MapTypeOps {
    /// `map_alloc_check`: runs for offloaded maps too.
    pub(crate) alloc_check: fn(&MapCreateAttr, &Caller) -> Result<()>,
    /// `map_alloc` of a host map.
    pub(crate) alloc: fn(&MapCreateAttr, &AllocContext) -> Result<Arc<dyn MapOps>>,
    /// Whether creating one needs `bpf_capable()` whatever the sysctl says.
    pub(crate) needs_cap_bpf: bool,
    /// Which of these commands the type has; on a device none are added to them.
    pub(crate) commands: OffloadCommands,
    pub(crate) token: Token,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A map without keys, as bloom filters are: each update adds a value.
    #[derive(Default)]
    struct Keyless(Mutex<Vec<u8>>);

    impl MapOps for Keyless {
        fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
            assert!(key.is_empty());
            value.fill(7);
            Ok(())
        }

        fn update(&self, key: &[u8], value: &[u8], _flags: u64) -> Result<()> {
            assert!(key.is_empty());
            let mut all = self.0.lock().unwrap();
            if all.len() == 4 {
                return Err(Error::new(Errno::E2BIG, "full"));
            }
            all.extend_from_slice(value);
            Ok(())
        }

        fn delete(&self, key: &[u8]) -> Result<()> {
            assert!(key.is_empty());
            let popped = self.0.lock().unwrap().pop();
            popped.map(drop).ok_or(Error::new(Errno::ENOENT, "empty"))
        }

        fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
            Err(NO_SUCH_OPERATION)
        }

        fn mem_usage(&self) -> u64 {
            0
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

    #[test]
    fn batches_of_a_map_without_keys() {
        let map = Keyless::default();
        let added = map.update_batch(&[], &[1, 2, 3, 4, 5, 6], 3, 0, (0, 2));
        assert_eq!(added.count, 2);
        assert_eq!(added.result.unwrap_err().errno(), Errno::E2BIG);
        assert_eq!(*map.0.lock().unwrap(), [1, 2, 3, 4]);
        let mut values = [0; 4];
        let mut results = [Err(Errno::EIO); 2];
        map.lookup_many(&[], &mut values, &mut results, (0, 2))
            .unwrap();
        assert_eq!((values, results), ([7; 4], [Ok(()); 2]));
        let removed = map.delete_batch(&[], 5, 0);
        assert_eq!(removed.count, 4);
        assert_eq!(removed.result.unwrap_err().errno(), Errno::ENOENT);
    }
}
