//! What an offload device gives the map core: the counterpart of `ndo_bpf` with
//! `BPF_OFFLOAD_MAP_ALLOC` / `_FREE`, and of `struct bpf_map_dev_ops`.
//!
//! The core has done its own checks before it calls here (fd modes, frozen maps, flag bits,
//! buffer lengths); what comes back passes through to the caller, errno and reason alike.

use crate::errno::Errno;
use crate::error::{Error, Result};
pub use crate::map::ringbuf::RingHeader;
use crate::uapi::{BPF_OBJ_NAME_LEN, MapFlags, MapType};
use bitflags::bitflags;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// A map that a device is asked to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// Type.
    pub map_type: MapType,
    /// Key size in bytes.
    pub key_size: u32,
    /// Value size in bytes, of one CPU for per-CPU types.
    pub value_size: u32,
    /// Entries that the map must be able to hold.
    pub max_entries: u32,
    /// Flags as the program gave them, without RDONLY and WRONLY: those concern only the file
    /// that it gets, and drivers never see them.
    pub map_flags: MapFlags,
    /// `map_extra`: for bloom filters the number of hash functions.
    pub map_extra: u64,
    /// NUMA node, when the program set `BPF_F_NUMA_NODE`.
    pub numa_node: Option<u32>,
    /// The host's possible CPUs: the number of values per entry of a per-CPU type.
    pub possible_cpus: u32,
    /// Name, NUL-padded. The core has not validated it yet: the device is asked first.
    pub name: [u8; BPF_OBJ_NAME_LEN],
}

impl MapSpec {
    /// Bytes of one value as user space passes it: `value_size`, and for per-CPU types
    /// `round_up(value_size, 8)` for each possible CPU.
    pub const fn user_value_bytes(&self) -> u64 {
        if self.map_type.is_percpu() {
            (self.value_size as u64).next_multiple_of(8) * self.possible_cpus as u64
        } else {
            self.value_size as u64
        }
    }
}

bitflags! {
    /// Commands that the kernel's `bpf_map_offload_ops` lack, so that they fail with 524 on
    /// every offloaded map, unless the device's profile lifts that.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct OffloadCommands: u8 {
        /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
        const LOOKUP_AND_DELETE = 1 << 0;
        /// BPF_MAP_LOOKUP_BATCH, and [`OffloadedMap::lookup_many`] in one request.
        const LOOKUP_BATCH = 1 << 1;
        /// BPF_MAP_LOOKUP_AND_DELETE_BATCH.
        const LOOKUP_AND_DELETE_BATCH = 1 << 2;
        /// BPF_MAP_UPDATE_BATCH.
        const UPDATE_BATCH = 1 << 3;
        /// BPF_MAP_DELETE_BATCH.
        const DELETE_BATCH = 1 << 4;
    }
}

/// What of the core's own offload rules a device's profile lifts. A strict profile lifts
/// nothing and behaves as the kernel with that driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OffloadRules {
    /// Map types beyond HASH and ARRAY that may be offloaded: bit `n` for type `n`.
    pub more_map_types: u64,
    /// Commands that reach the device, instead of failing with 524; of these, each map has
    /// those that its type has on the host.
    pub commands: OffloadCommands,
    /// Maps may have BTF: special fields and `BPF_F_LOCK` then work as on the host. The
    /// kernel's offload ops refuse every type with 524.
    pub btf: bool,
}

impl OffloadRules {
    /// Whether the core lets a map of this type through to the device.
    pub const fn admits(&self, map_type: MapType) -> bool {
        matches!(map_type, MapType::HASH | MapType::ARRAY)
            || map_type.0 < 64 && self.more_map_types >> map_type.0 & 1 != 0
    }
}

/// A device that maps can be offloaded to (`struct bpf_offload_dev` with its `ndo_bpf`).
pub trait OffloadDevice: Send + Sync {
    /// What it is, for messages.
    fn describe(&self) -> String;

    /// How many network interfaces it has, at least 1. All reach the same maps.
    fn ports(&self) -> u32 {
        1
    }

    /// Which of the core's rules it lifts.
    fn rules(&self) -> OffloadRules;

    /// Why it takes no maps of this type, for the message of a map that the core refuses because
    /// [`OffloadDevice::rules`] does not admit it: a clause without a full stop.
    fn type_refusal(&self, _map_type: MapType) -> Option<String> {
        None
    }

    /// `BPF_OFFLOAD_MAP_ALLOC`: creates the map on the device.
    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>>;

    /// The same for a map of maps, whose inner maps are like `template`, a map of this device
    /// ([`OffloadedMap::inner_value`]). Asked only of devices whose rules admit such types.
    fn map_of_maps_alloc(
        &self,
        spec: &MapSpec,
        _template: &dyn OffloadedMap,
    ) -> Result<Arc<dyn OffloadedMap>> {
        Err(Error::because(
            Errno::EINVAL,
            format!("the device has no maps of type {}", spec.map_type),
        ))
    }
}

/// What a batch operation did. As in the kernel, a failure and a valid count go together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchOutcome {
    /// Elements done.
    pub count: u32,
    /// The kernel's result: for a walk, ENOENT with a valid count at the end of the map, and
    /// ENOSPC with count 0 when the next bucket that holds anything does not fit.
    pub result: Result<()>,
}

impl BatchOutcome {
    /// A batch that failed before its first element.
    pub fn failed(error: Error) -> Self {
        Self {
            count: 0,
            result: Err(error),
        }
    }
}

const NOT_OFFLOADED: Error = Error::new(
    Errno::ENOTSUPP,
    "this device has no such operation on an offloaded map",
);

/// A map on a device (`struct bpf_offloaded_map` with its `dev_ops`).
///
/// Operations come from many threads at once. Slices have the lengths of the [`MapSpec`]:
/// keys `key_size`, values [`MapSpec::user_value_bytes`], batch arrays that many times the
/// count.
pub trait OffloadedMap: Send + Sync {
    /// Copies the key's value to `value`.
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()>;

    /// Stores `value` under `key`; `flags` is BPF_ANY, BPF_NOEXIST or BPF_EXIST.
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()>;

    /// Removes `key`.
    fn delete(&self, key: &[u8]) -> Result<()>;

    /// Copies the key after `key` to `next`; the first key when `key` is `None` or not there.
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()>;

    /// Copies the key's value to `value` and removes the key.
    fn lookup_and_delete(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        Err(NOT_OFFLOADED)
    }

    /// Looks up each of `keys`. `results[i]` tells how key `i` fared, and its value is only
    /// written when it was found. No command of bpf(2); the Rust API has it.
    fn lookup_many(
        &self,
        _keys: &[u8],
        _values: &mut [u8],
        _results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        Err(NOT_OFFLOADED)
    }

    /// BPF_MAP_UPDATE_BATCH: stops at the first failure.
    fn update_batch(&self, _keys: &[u8], _values: &[u8], _count: u32, _flags: u64) -> BatchOutcome {
        BatchOutcome::failed(NOT_OFFLOADED)
    }

    /// BPF_MAP_DELETE_BATCH: stops at the first failure.
    fn delete_batch(&self, _keys: &[u8], _count: u32) -> BatchOutcome {
        BatchOutcome::failed(NOT_OFFLOADED)
    }

    /// BPF_MAP_LOOKUP_BATCH, and BPF_MAP_LOOKUP_AND_DELETE_BATCH when `delete` is set: walks
    /// the map from the token `in_batch` on (`None`: its start) and leaves the next call's
    /// token in `out_batch`. Both have the length of [`crate::MapFile::token_bytes`].
    ///
    /// For hash types the token is a bucket, a `u32` in native byte order; only whole buckets
    /// are returned, and the token is written in every case but a token past the last bucket.
    /// For other types it is the last key returned, written when the count is not 0.
    fn walk_batch(
        &self,
        _in_batch: Option<&[u8]>,
        _out_batch: &mut [u8],
        _keys: &mut [u8],
        _values: &mut [u8],
        _count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        BatchOutcome::failed(NOT_OFFLOADED)
    }

    /// The map as its own crate knows it, for operations that this trait does not have. `None`:
    /// there are none.
    fn own(self: Arc<Self>) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// What stands for this map in the values of a map of maps on the same device, whose
    /// `update` and `lookup` carry it. It names this map and no other as long as this map or a
    /// map of maps holds it on the device.
    fn inner_value(&self) -> Result<[u8; 4]> {
        Err(Error::new(
            Errno::EINVAL,
            "on this device maps of this type cannot be inner maps",
        ))
    }

    /// The ring of a RINGBUF map that the device fills; `None` for maps of other types. The
    /// same one with every call.
    fn ring_buffer(&self) -> Option<Arc<dyn RingBuffer>> {
        None
    }

    /// Device memory that the map occupies, in bytes.
    fn device_bytes(&self) -> u64;

    /// `BPF_OFFLOAD_MAP_FREE`: called once, from the core's worker, after the last operation.
    fn free(&self);
}

/// The memory of a ring buffer as its consumer reaches it, in the kernel's format: each record
/// is a [`RingHeader`] and the bytes after it, padded to 8; positions count bytes since the map
/// was made.
///
/// Nothing of what these functions return is believed: the core checks positions and headers
/// before it goes by them. It calls from many threads at once, with one of them at a time
/// moving the consumer position.
pub trait RingBuffer: Send + Sync {
    /// Bytes of the data area: the map's `max_entries`.
    fn data_bytes(&self) -> u64;

    /// The producer position, loaded with acquire.
    fn producer_position(&self) -> u64;

    /// Stores the consumer position, with release: the producer may use what lies before it. It
    /// begins at 0, and the core keeps count itself.
    fn set_consumer_position(&self, position: u64);

    /// The header at `offset` of the data area, a multiple of 8 below
    /// [`RingBuffer::data_bytes`], as one load with acquire.
    fn header(&self, offset: u64) -> RingHeader;

    /// Copies bytes of the data area from `offset`, a multiple of 8 below
    /// [`RingBuffer::data_bytes`]; past the end of the area it goes on at its start. `out` is
    /// no longer than the area.
    fn copy(&self, offset: u64, out: &mut [u8]);

    /// Sees to it that those who wait call their `ready` again.
    fn wake(&self);

    /// Waits until `ready` says so or fails, and returns what it said; `false` when `timeout`
    /// passed first.
    ///
    /// `ready` is called at once, and after whatever may have changed its answer, in each case
    /// after a full fence that follows the request for a wake-up: no record that comes after
    /// such a call is missed. Its argument tells whether a wake-up was forced since the wait began
    /// (`BPF_RB_FORCE_WAKEUP`).
    fn wait(&self, timeout: Duration, ready: &mut dyn FnMut(bool) -> Result<bool>) -> Result<bool>;
}
