//! Maps on a device (`kernel/bpf/offload.c`): `bpf_map_offload_ops`.

use super::Map;
use super::ops::MapOps;
use crate::caller::NetNs;
use crate::device::{BatchOutcome, OffloadCommands, OffloadRules, OffloadedMap};
use crate::errno::Errno;
use crate::error::{Error, Result};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

const GONE: Error = Error::new(Errno::ENODEV, "the map's device was removed");

/// The network device through which a map reaches its offload device.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) ifindex: u32,
    pub(crate) netns: NetNs,
    pub(crate) on_device: Arc<dyn OffloadedMap>,
}

/// `struct bpf_offloaded_map`.
///
/// The kernel's `bpf_devs_lock` is one lock for all maps; here each map has its own, so that
/// operations on different maps share no line. Data operations hold it for reading and run
/// concurrently; removal and free hold it for writing, and so come after the last operation.
pub(crate) struct OffloadMap {
    device: RwLock<Option<Attached>>,
    rules: OffloadRules,
    map: OnceLock<Weak<Map>>,
}

impl OffloadMap {
    pub(crate) fn new(attached: Attached, rules: OffloadRules) -> Self {
        Self {
            device: RwLock::new(Some(attached)),
            rules,
            map: OnceLock::new(),
        }
    }

    /// The commands of an offloaded map of a type that has `native` on the host: none in the
    /// kernel, whose offload ops have no such entries; otherwise what the device's profile
    /// lifts.
    pub(crate) fn commands(&self, native: OffloadCommands) -> OffloadCommands {
        self.rules.commands & native
    }

    /// Ties the storage to its map, so that removal of the device can free the map's id.
    pub(crate) fn set_map(&self, map: Weak<Map>) {
        // Set once, when the map is made.
        let _ = self.map.set(map);
    }

    #[inline]
    fn device(&self) -> RwLockReadGuard<'_, Option<Attached>> {
        self.device.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn attached(&self) -> Result<Attached> {
        self.device().clone().ok_or(GONE)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.device().is_none()
    }

    /// The netdev goes and a sibling of the same offload device takes the map over.
    pub(crate) fn move_to(&self, ifindex: u32, netns: NetNs) {
        let mut device = self.device.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = device.as_mut() {
            attached.ifindex = ifindex;
            attached.netns = netns;
        }
    }

    /// The netdev goes and there is no other: the id is free and later operations fail.
    /// `None` when the map has left its device already.
    pub(crate) fn orphan(&self) -> Option<Arc<dyn OffloadedMap>> {
        let attached = self
            .device
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(map) = self.map.get().and_then(Weak::upgrade) {
            map.free_id();
        }
        attached.map(|attached| attached.on_device)
    }
}

impl MapOps for OffloadMap {
    #[inline]
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        match &*self.device() {
            Some(attached) => attached.on_device.lookup(key, value, flags),
            None => Err(GONE),
        }
    }

    #[inline]
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        match &*self.device() {
            Some(attached) => attached.on_device.update(key, value, flags),
            None => Err(GONE),
        }
    }

    #[inline]
    fn delete(&self, key: &[u8]) -> Result<()> {
        match &*self.device() {
            Some(attached) => attached.on_device.delete(key),
            None => Err(GONE),
        }
    }

    #[inline]
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        match &*self.device() {
            Some(attached) => attached.on_device.get_next_key(key, next),
            None => Err(GONE),
        }
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        match &*self.device() {
            Some(attached) => attached.on_device.lookup_and_delete(key, value, flags),
            None => Err(GONE),
        }
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
        match &*self.device() {
            Some(attached) => attached
                .on_device
                .walk_batch(in_batch, out_batch, keys, values, count, delete),
            None => BatchOutcome::failed(GONE),
        }
    }

    fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: u64,
        _sizes: (usize, usize),
    ) -> BatchOutcome {
        match &*self.device() {
            Some(attached) => attached.on_device.update_batch(keys, values, count, flags),
            None => BatchOutcome::failed(GONE),
        }
    }

    fn delete_batch(&self, keys: &[u8], count: u32, _key_size: usize) -> BatchOutcome {
        match &*self.device() {
            Some(attached) => attached.on_device.delete_batch(keys, count),
            None => BatchOutcome::failed(GONE),
        }
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
        sizes: (usize, usize),
    ) -> Result<()> {
        let device = self.device();
        let Some(attached) = &*device else {
            return Err(GONE);
        };
        if self.rules.commands.contains(OffloadCommands::LOOKUP_BATCH) {
            return attached.on_device.lookup_many(keys, values, results);
        }
        let pairs = keys
            .chunks_exact(sizes.0)
            .zip(values.chunks_exact_mut(sizes.1));
        for ((key, value), result) in pairs.zip(results) {
            let looked_up = attached.on_device.lookup(key, value, 0);
            *result = looked_up.map_err(|error| error.errno());
        }
        Ok(())
    }

    fn release(&self) {
        let attached = self
            .device
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(attached) = attached {
            attached.on_device.free();
        }
    }
}
