//! A map of a profile with behaviours of its own: what a driver does between the core and the
//! device, beside checking.

use crate::errno::{self, During};
use crate::map::NicMap;
use crate::nic::{Reservation, Shared};
use crate::reply_cache::{Blocking, ReplyCache};
use crate::slot_order::SlotOrder;
use offmap_bpf::device::{BatchOutcome, MapSpec, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{BPF_EXIST, MapType};
use offmap_bpf::{Errno, Error};
use offmap_driver::{Function, Status};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A HASH or ARRAY map with the behaviours of its profile.
pub(crate) struct BehavedMap<F: Function> {
    shared: Arc<Shared<F>>,
    /// As the device is asked for it.
    spec: MapSpec,
    /// On the device; not there yet for a hash map that is allocated lazily.
    on_device: OnceLock<NicMap<F>>,
    /// Held while it is made.
    making: Mutex<()>,
    reservation: Mutex<Option<Reservation<F>>>,
    /// `nsim_bpf_bound_map.mutex`.
    one_lock: Option<Mutex<()>>,
    cache: Option<ReplyCache>,
    order: Option<SlotOrder>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Function> BehavedMap<F> {
    /// The map, on the device unless that waits for the first update.
    pub(crate) fn new(
        shared: Arc<Shared<F>>,
        spec: &MapSpec,
        reservation: Option<Reservation<F>>,
    ) -> Result<Self> {
        let behaviours = shared.profile.behaviours;
        let is_hash = spec.map_type == MapType::HASH;
        let spec = MapSpec {
            max_entries: spec.max_entries.max(behaviours.slots),
            ..*spec
        };
        let order = behaviours.slot_order && is_hash;
        let map = Self {
            spec,
            on_device: OnceLock::new(),
            making: Mutex::new(()),
            reservation: Mutex::new(reservation),
            one_lock: behaviours.one_lock.then(Mutex::default),
            cache: behaviours.reply_cache.map(|rule| {
                ReplyCache::new(rule, spec.key_size as usize, spec.value_size as usize)
            }),
            order: order.then(|| SlotOrder::new(spec.max_entries)),
            shared,
        };
        if !(behaviours.lazy_hash && is_hash) {
            map.made()?;
        } else if let Some(error) = errno::beyond(
            &map.shared.profile.name,
            map.shared.driver.identity(),
            &spec,
        ) {
            // No later update could help.
            return Err(error);
        }
        Ok(map)
    }

    /// The device's map, which is made if it is not there.
    fn made(&self) -> Result<&NicMap<F>> {
        if let Some(map) = self.on_device.get() {
            return Ok(map);
        }
        let _making = locked(&self.making);
        if let Some(map) = self.on_device.get() {
            return Ok(map);
        }
        let map = self.shared.create(&self.spec, 0)?;
        Ok(self.on_device.get_or_init(|| map))
    }

    /// What a map says that is not on the device, and so is empty.
    fn empty(&self, during: During) -> Error {
        let (profile, map_type) = (&self.shared.profile, self.spec.map_type);
        errno::of_status(profile, map_type, Status::NotFound, during)
    }

    fn one_at_a_time(&self) -> Option<MutexGuard<'_, ()>> {
        self.one_lock.as_ref().map(locked)
    }

    /// A change begins.
    fn changing(&self) -> Option<Blocking<'_>> {
        self.cache.as_ref().map(ReplyCache::block)
    }

    /// GETNEXT that brings the elements after the key along.
    fn get_next_and_keep(
        &self,
        map: &NicMap<F>,
        cache: &ReplyCache,
        key: Option<&[u8]>,
        next: &mut [u8],
    ) -> Result<()> {
        if let Some(key) = key
            && cache.next(key, next, self.shared.now())
        {
            return Ok(());
        }
        let generation = cache.generation();
        map.get_next_key(key, next)?;
        let (key_size, value_size) = (next.len(), self.spec.value_size as usize);
        let mut keys = Vec::with_capacity(cache.entries() * key_size);
        keys.extend_from_slice(next);
        let mut after = vec![0; key_size];
        while keys.len() < cache.entries() * key_size {
            let last = &keys[keys.len() - key_size..];
            // The end of the map, or a failure that the next command will show.
            if map.get_next_key(Some(last), &mut after).is_err() {
                break;
            }
            // A key that went meanwhile makes the walk start again.
            if keys.chunks_exact(key_size).any(|known| known == after) {
                break;
            }
            keys.extend_from_slice(&after);
        }
        let mut values = vec![0; keys.len() / key_size * value_size];
        let mut whole = 0;
        let fetched = map.fetch(&keys, &mut values, |i| whole += usize::from(whole == i));
        if fetched.is_ok() {
            // Up to the first that is gone again.
            keys.truncate(whole * key_size);
            values.truncate(whole * value_size);
            cache.keep(generation, keys, values, self.shared.now());
        }
        Ok(())
    }
}

impl<F: Function> OffloadedMap for BehavedMap<F> {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        let _one = self.one_at_a_time();
        let Some(map) = self.on_device.get() else {
            return Err(self.empty(During::Lookup));
        };
        if let Some(cache) = &self.cache
            && cache.lookup(key, value, self.shared.now())
        {
            return Ok(());
        }
        map.lookup(key, value, flags)
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let _one = self.one_at_a_time();
        if flags == BPF_EXIST && self.on_device.get().is_none() {
            return Err(self.empty(During::Update(flags)));
        }
        let map = self.made()?;
        let _change = self.changing();
        map.update(key, value, flags)?;
        if let Some(order) = &self.order {
            order.stored(key);
        }
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let _one = self.one_at_a_time();
        let Some(map) = self.on_device.get() else {
            return Err(self.empty(During::Delete));
        };
        let _change = self.changing();
        map.delete(key)?;
        if let Some(order) = &self.order {
            order.removed(key);
        }
        Ok(())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let _one = self.one_at_a_time();
        let Some(map) = self.on_device.get() else {
            return Err(self.empty(During::NextKey));
        };
        if let Some(order) = &self.order {
            return if order.next(key, next) {
                Ok(())
            } else {
                Err(self.empty(During::NextKey))
            };
        }
        match &self.cache {
            Some(cache) => self.get_next_and_keep(map, cache, key, next),
            None => map.get_next_key(key, next),
        }
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        let _one = self.one_at_a_time();
        let _change = self.changing();
        self.made()?.lookup_and_delete(key, value, flags)
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        let _one = self.one_at_a_time();
        self.made()?.lookup_many(keys, values, results)
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, flags: u64) -> BatchOutcome {
        let _one = self.one_at_a_time();
        let _change = self.changing();
        match self.made() {
            Ok(map) => map.update_batch(keys, values, count, flags),
            Err(e) => BatchOutcome::failed(e),
        }
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> BatchOutcome {
        let _one = self.one_at_a_time();
        let _change = self.changing();
        match self.made() {
            Ok(map) => map.delete_batch(keys, count),
            Err(e) => BatchOutcome::failed(e),
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
        let _one = self.one_at_a_time();
        let _change = if delete { self.changing() } else { None };
        match self.made() {
            Ok(map) => map.walk_batch(in_batch, out_batch, keys, values, count, delete),
            Err(e) => BatchOutcome::failed(e),
        }
    }

    fn device_bytes(&self) -> u64 {
        self.on_device.get().map_or(0, OffloadedMap::device_bytes)
    }

    fn free(&self) {
        if let Some(map) = self.on_device.get() {
            map.free();
        }
        drop(locked(&self.reservation).take());
    }
}
