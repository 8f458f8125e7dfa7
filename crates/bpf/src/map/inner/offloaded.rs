//! Maps of maps on a device.
//!
//! The device holds a handle of each inner map for its data path; here is what the handles
//! stand for. User space alone writes such a map, and every write passes here, under one lock
//! for each map: the two sides change together.

use super::array::{check_update, index, walk};
use super::hash::check_flags;
use super::{InnerMaps, MapMeta, NEEDS_DESCRIPTORS, VALUE_BYTES, put_id};
use crate::device::{BatchOutcome, OffloadDevice};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::ops::{MapOps, nth};
use crate::map::refusals::PAST_END;
use crate::map::{Map, OffloadMap};
use crate::uapi::MapType;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const NOT_ON_DEVICE: Error = Error::new(
    Errno::EINVAL,
    "the inner map is not offloaded, and a map of maps on a device holds maps of that device",
);
const OTHER_DEVICE: Error = Error::new(
    Errno::EINVAL,
    "the inner map is on another device than the map of maps",
);
const UNKNOWN_MAP: Error = Error::new(
    Errno::EIO,
    "the device names an inner map that was not stored under this key",
);

/// An inner map, and what stands for it in the device's table.
struct Held {
    value: [u8; VALUE_BYTES],
    inner: Arc<Map>,
}

/// What the device may hold by key: one map, and after a write whose outcome is unknown the
/// maps before and after it. Keys of arrays are big-endian here, so that they are in order.
type ByKey = BTreeMap<Box<[u8]>, Vec<Held>>;

/// A map of maps on a device.
pub(crate) struct OffloadedMapOfMaps {
    map: Arc<OffloadMap>,
    template: MapMeta,
    is_array: bool,
    max_entries: u32,
    key_size: usize,
    held: Mutex<ByKey>,
}

/// Whether the device has certainly changed nothing.
fn is_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EINVAL | Errno::ENOENT | Errno::EEXIST | Errno::E2BIG | Errno::ENOMEM
    )
}

impl OffloadedMapOfMaps {
    pub(crate) fn new(
        map: Arc<OffloadMap>,
        template: MapMeta,
        map_type: MapType,
        max_entries: u32,
        key_size: u32,
    ) -> Self {
        Self {
            map,
            template,
            is_array: map_type == MapType::ARRAY_OF_MAPS,
            max_entries,
            key_size: key_size as usize,
            held: Mutex::default(),
        }
    }

    /// The side of a template that `device` has: EINVAL for a map that is not on it.
    pub(crate) fn on_device<'a>(
        device: &Arc<dyn OffloadDevice>,
        template: &'a Map,
    ) -> Result<&'a OffloadMap> {
        let offload = template.read_mostly.offload.as_ref();
        let offload = offload.ok_or(NOT_ON_DEVICE)?;
        if offload.matches(device) {
            Ok(offload)
        } else {
            Err(OTHER_DEVICE)
        }
    }

    /// What stands for an inner map: EINVAL for a map that is not on this one's device.
    fn value_of(&self, inner: &Map) -> Result<[u8; VALUE_BYTES]> {
        let offload = inner.read_mostly.offload.as_ref().ok_or(NOT_ON_DEVICE)?;
        if !self.map.is_on_device_of(offload) {
            return Err(OTHER_DEVICE);
        }
        offload.inner_value()
    }

    fn held(&self) -> MutexGuard<'_, ByKey> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, key: &[u8]) -> Box<[u8]> {
        if self.is_array {
            index(key).to_be_bytes().into()
        } else {
            key.into()
        }
    }

    /// The map that the device's value under `key` stands for.
    fn named<'a>(&self, held: &'a ByKey, key: &[u8], value: &[u8]) -> Result<&'a Arc<Map>> {
        let candidates = held.get(&self.place(key)).map_or(&[][..], Vec::as_slice);
        let named = candidates.iter().find(|held| held.value == value);
        named.map(|held| &held.inner).ok_or(UNKNOWN_MAP)
    }

    /// Asks the device which map is under `key`.
    fn find<'a>(&self, held: &'a ByKey, key: &[u8]) -> Result<&'a Arc<Map>> {
        let mut value = [0; VALUE_BYTES];
        self.map.lookup(key, &mut value, 0)?;
        self.named(held, key, &value)
    }

    /// Removes `key`; returns what the device held there, to be dropped without the lock.
    fn remove(&self, held: &mut ByKey, key: &[u8]) -> Result<Vec<Held>> {
        if self.is_array && index(key) >= self.max_entries {
            return Err(PAST_END);
        }
        self.map.delete(key)?;
        Ok(held.remove(&self.place(key)).unwrap_or_default())
    }

    /// A walk over what is held, each entry as the device has it.
    fn walk_array(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> BatchOutcome {
        let held = self.held();
        let next = |from: u32| {
            let start = from.to_be_bytes();
            let range = (Bound::Included(&start[..]), Bound::Unbounded);
            for place in held.range::<[u8], _>(range) {
                let mut raw = [0; 4];
                raw.copy_from_slice(place.0);
                let index = u32::from_be_bytes(raw);
                match self.find(&held, &index.to_ne_bytes()) {
                    Ok(inner) => return Ok(Some((index, inner.id()))),
                    // A write of unknown outcome has left nothing there.
                    Err(error) if error.errno() == Errno::ENOENT => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        };
        walk(in_batch, out_batch, keys, values, self.max_entries, next)
    }

    /// The device's walk, its handles turned into ids. What is to be deleted goes afterwards,
    /// key by key: nobody else writes meanwhile.
    fn walk_hash(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        let mut held = self.held();
        let mut removed = Vec::new();
        let mut outcome = self
            .map
            .walk_batch(in_batch, out_batch, keys, values, count, false);
        let values = values.chunks_exact_mut(VALUE_BYTES);
        for (i, value) in (0..outcome.count).zip(values) {
            let key = nth(keys, self.key_size, i as usize);
            let done = self.named(&held, key, value).map(|inner| {
                put_id(inner, value);
            });
            let done = match (done, delete) {
                (Ok(()), true) => self.remove(&mut held, key).map(|gone| removed.extend(gone)),
                (done, _) => done,
            };
            if let Err(error) = done {
                outcome = BatchOutcome {
                    count: i,
                    result: Err(error),
                };
                break;
            }
        }
        drop(held);
        drop(removed);
        outcome
    }
}

impl InnerMaps for OffloadedMapOfMaps {
    fn template(&self) -> &MapMeta {
        &self.template
    }

    fn check_update(&self, key: &[u8], flags: u64) -> Result<()> {
        if self.is_array {
            check_update(key, self.max_entries, flags)
        } else {
            Ok(())
        }
    }

    fn store(&self, key: &[u8], inner: Arc<Map>, flags: u64) -> Result<()> {
        let value = self.value_of(&inner)?;
        check_flags(flags)?;
        let place = self.place(key);
        let mut held = self.held();
        let result = self.map.update(key, &value, flags);
        let new = Held { value, inner };
        let replaced = match &result {
            Ok(()) => held.insert(place, vec![new]),
            Err(error) if is_refusal(error.errno()) => Some(vec![new]),
            Err(_) => {
                let candidates = held.entry(place).or_default();
                candidates.retain(|old| old.value != value);
                candidates.push(new);
                None
            }
        };
        drop(held);
        drop(replaced);
        result
    }

    fn inner(&self, key: &[u8]) -> Result<Arc<Map>> {
        let held = self.held();
        self.find(&held, key).cloned()
    }
}

impl MapOps for OffloadedMapOfMaps {
    fn inner_maps(&self) -> Option<&dyn InnerMaps> {
        Some(self)
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let held = self.held();
        put_id(self.find(&held, key)?, value);
        Ok(())
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        Err(NEEDS_DESCRIPTORS)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let mut held = self.held();
        let removed = self.remove(&mut held, key)?;
        drop(held);
        drop(removed);
        Ok(())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        self.map.get_next_key(key, next)
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
        if self.is_array {
            self.walk_array(in_batch, out_batch, keys, values)
        } else {
            self.walk_hash(in_batch, out_batch, keys, values, count, delete)
        }
    }

    fn mem_usage(&self) -> u64 {
        self.map.mem_usage()
    }

    fn release(&self) {
        self.map.release();
    }
}
