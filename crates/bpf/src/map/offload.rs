//! Maps on a device (`kernel/bpf/offload.c`): `bpf_map_offload_ops`.

use super::Map;
use super::ops::{MapOps, NO_RING, nth, nth_mut};
use super::refusals::GONE;
use super::ringbuf::{Consumers, HostRing};
use crate::caller::NetNs;
use crate::device::{BatchOutcome, OffloadCommands, OffloadDevice, OffloadRules, OffloadedMap};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::BPF_F_LOCK;
use crossbeam_utils::CachePadded;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

const FILLED_THERE: Error = Error::new(
    Errno::EINVAL,
    "the map is on a device: programs of this host put nothing into it",
);

/// The network device through which a map reaches its offload device.
#[derive(Clone, Copy)]
pub(crate) struct Attached {
    pub(crate) ifindex: u32,
    pub(crate) netns: NetNs,
}

/// Parts of a map's device lock. Threads are dealt to them in turn as they first use one.
const SHARDS: usize = 8;

thread_local! {
    static SHARD: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Relaxed) % SHARDS)
    };
}

/// `sizeof(struct bpf_offloaded_map)` on 64-bit: four cache lines of `struct bpf_map`, and the links.
pub(crate) const OFFLOADED_MAP_BYTES: u64 = 320;

type OnDevice = Arc<dyn OffloadedMap>;

/// `struct bpf_offloaded_map`.
///
/// Data operations of the kernel hold `bpf_devs_lock` for reading. Here each map has such a
/// lock, in [`SHARDS`] parts on cache lines of their own: an operation takes its thread's part,
/// so that threads with different parts write no line in common. Removal and free take every
/// part for writing, one after the other, and so come after the last operation.
pub(crate) struct OffloadMap {
    device: [CachePadded<RwLock<Option<OnDevice>>>; SHARDS],
    attached: Mutex<Attached>,
    rules: OffloadRules,
    /// The offload device, whose ports share their maps.
    offload_device: Weak<dyn OffloadDevice>,
    map: OnceLock<Weak<Map>>,
    /// Of a ring buffer, once somebody consumed from it.
    consumers: OnceLock<Arc<Consumers>>,
}

impl OffloadMap {
    pub(crate) fn new(
        on_device: OnDevice,
        attached: Attached,
        rules: OffloadRules,
        offload_device: Weak<dyn OffloadDevice>,
    ) -> Self {
        Self {
            device: std::array::from_fn(|_| {
                CachePadded::new(RwLock::new(Some(Arc::clone(&on_device))))
            }),
            attached: Mutex::new(attached),
            rules,
            offload_device,
            map: OnceLock::new(),
            consumers: OnceLock::new(),
        }
    }

    /// The commands of an offloaded map of a type that has `native` on the host: none in the
    /// kernel, whose offload ops have no such entries; otherwise what the device's profile
    /// lifts.
    pub(crate) fn commands(&self, native: OffloadCommands) -> OffloadCommands {
        self.rules.commands & native
    }

    /// Whether the device's profile lifts `map_check_no_btf`.
    pub(crate) const fn takes_btf(&self) -> bool {
        self.rules.btf
    }

    /// Ties the storage to its map, so that removal of the device can free the map's id.
    pub(crate) fn set_map(&self, map: Weak<Map>) {
        // Set once, when the map is made.
        let _ = self.map.set(map);
    }

    #[inline]
    fn device(&self) -> RwLockReadGuard<'_, Option<OnDevice>> {
        // A thread that is being torn down has no number any more.
        let shard = SHARD.try_with(Cell::get).unwrap_or(0);
        let lock = self.device[shard % SHARDS].read();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the map off its device; returns after the last operation that reached it there.
    /// `None` when it had left before.
    fn detach(&self) -> Option<OnDevice> {
        let mut on_device = None;
        for shard in &self.device {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            on_device = shard.take();
        }
        // Those who wait for a record hold no part of the lock.
        if let Some(consumers) = self.consumers.get() {
            consumers.close();
        }
        on_device
    }

    fn location(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the map is, and the device memory that it occupies.
    pub(crate) fn info(&self) -> Result<(Attached, u64)> {
        let device = self.device();
        let on_device = device.as_ref().ok_or(GONE)?;
        Ok((*self.location(), on_device.device_bytes()))
    }

    /// Whether both are on one offload device, through whichever of its netdevs.
    pub(crate) fn is_on_device_of(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.offload_device, &other.offload_device)
    }

    /// As [`OffloadedMap::inner_value`].
    pub(crate) fn inner_value(&self) -> Result<[u8; 4]> {
        self.device().as_ref().ok_or(GONE)?.inner_value()
    }

    /// The device's side of a template; the map stays on the device while it is used.
    pub(crate) fn with_device<R>(
        &self,
        f: impl FnOnce(&dyn OffloadedMap) -> Result<R>,
    ) -> Result<R> {
        f(&**self.device().as_ref().ok_or(GONE)?)
    }

    /// The device's side of the map.
    pub(crate) fn on_device(&self) -> Result<OnDevice> {
        self.device().as_ref().map(Arc::clone).ok_or(GONE)
    }

    /// Calls `f` while the map is on its device and stays there.
    pub(crate) fn while_there<R>(&self, f: impl FnOnce() -> R) -> Result<R> {
        let device = self.device();
        match device.as_ref() {
            Some(_) => Ok(f()),
            None => Err(GONE),
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.device().is_none()
    }

    /// `__bpf_offload_dev_match`: whether a program for this device can use the map. None can
    /// once the map has left its device.
    pub(crate) fn matches(&self, device: &Arc<dyn OffloadDevice>) -> bool {
        std::ptr::addr_eq(Weak::as_ptr(&self.offload_device), Arc::as_ptr(device))
            && !self.is_gone()
    }

    /// The netdev goes and a sibling of the same offload device takes the map over. Waits for
    /// no operation.
    pub(crate) fn move_to(&self, attached: Attached) {
        *self.location() = attached;
    }

    /// The netdev goes and there is no other: the id is free and later operations fail.
    /// `None` when the map has left its device already.
    pub(crate) fn orphan(&self) -> Option<OnDevice> {
        let on_device = self.detach();
        if let Some(map) = self.map.get().and_then(Weak::upgrade) {
            map.free_id();
        }
        on_device
    }
}

impl MapOps for OffloadMap {
    #[inline]
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        match self.device().as_ref() {
            Some(on_device) => on_device.lookup(key, value, flags & !BPF_F_LOCK),
            None => Err(GONE),
        }
    }

    #[inline]
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        match self.device().as_ref() {
            // The device's update of a value is whole, which is what the lock is for.
            Some(on_device) => on_device.update(key, value, flags & !BPF_F_LOCK),
            None => Err(GONE),
        }
    }

    #[inline]
    fn delete(&self, key: &[u8]) -> Result<()> {
        match self.device().as_ref() {
            Some(on_device) => on_device.delete(key),
            None => Err(GONE),
        }
    }

    #[inline]
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        match self.device().as_ref() {
            Some(on_device) => on_device.get_next_key(key, next),
            None => Err(GONE),
        }
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        match self.device().as_ref() {
            Some(on_device) => on_device.lookup_and_delete(key, value, flags & !BPF_F_LOCK),
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
        match self.device().as_ref() {
            Some(on_device) => {
                on_device.walk_batch(in_batch, out_batch, keys, values, count, delete)
            }
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
        match self.device().as_ref() {
            Some(on_device) => on_device.update_batch(keys, values, count, flags & !BPF_F_LOCK),
            None => BatchOutcome::failed(GONE),
        }
    }

    fn delete_batch(&self, keys: &[u8], count: u32, _key_size: usize) -> BatchOutcome {
        match self.device().as_ref() {
            Some(on_device) => on_device.delete_batch(keys, count),
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
        let Some(on_device) = device.as_ref() else {
            return Err(GONE);
        };
        if self.rules.commands.contains(OffloadCommands::LOOKUP_BATCH) {
            return on_device.lookup_many(keys, values, results);
        }
        for (i, result) in results.iter_mut().enumerate() {
            let (key, value) = (nth(keys, sizes.0, i), nth_mut(values, sizes.1, i));
            let looked_up = on_device.lookup(key, value, 0);
            *result = looked_up.map_err(|error| error.errno());
        }
        Ok(())
    }

    fn ring_consumers(&self) -> Result<Arc<Consumers>> {
        let device = self.device();
        let on_device = device.as_ref().ok_or(GONE)?;
        let ring = on_device.ring_buffer().ok_or(NO_RING)?;
        let consumers = self
            .consumers
            .get_or_init(|| Arc::new(Consumers::new(ring)));
        Ok(Arc::clone(consumers))
    }

    fn ring_producer(&self) -> Result<Arc<HostRing>> {
        Err(FILLED_THERE)
    }

    /// The kernel's offload ops account for the map structure alone: its elements are on the
    /// device (`bpf_map_offload_map_mem_usage`).
    fn mem_usage(&self) -> u64 {
        OFFLOADED_MAP_BYTES
    }

    fn release(&self) {
        if let Some(on_device) = self.detach() {
            on_device.free();
        }
    }
}
