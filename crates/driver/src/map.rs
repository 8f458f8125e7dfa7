//! Maps on the device.

use offmap_abi::MapHandle;

/// What a map is created with (abi §6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MapParams {
    /// UAPI `enum bpf_map_type` value.
    pub map_type: u32,
    /// Key size in bytes.
    pub key_size: u32,
    /// Value size in bytes, of one CPU for per-CPU types.
    pub value_size: u32,
    /// Entries that the map must be able to hold.
    pub max_entries: u32,
    /// Per-CPU slots: the host's possible CPUs for per-CPU types, otherwise 0.
    pub cpu_slots: u32,
    /// Seed of the key hash.
    pub seed: u64,
    /// Name for people, NUL-padded.
    pub name: [u8; 16],
    /// `map_extra`; 0 for types that have no use for it, as with the fields after it.
    pub map_extra: u64,
    /// IOVA of host memory that belongs to the map.
    pub host_memory: u64,
    /// Handle of the template of the inner maps.
    pub inner_map: u32,
    /// MSI-X vector by which the map tells of data.
    pub vector: u32,
    /// The memory tier to place it in: its number plus one; 0: the device chooses.
    pub tier: u32,
}

impl MapParams {
    /// Bytes of one value on the wire: `value_size`, and with per-CPU slots
    /// `round_up(value_size, 8)` for each. Sizes that overflow saturate; no device takes them.
    pub const fn value_stride(&self) -> u64 {
        if self.cpu_slots == 0 {
            self.value_size as u64
        } else {
            (self.value_size as u64)
                .next_multiple_of(8)
                .saturating_mul(self.cpu_slots as u64)
        }
    }
}

/// A map that exists on the device, until it is freed or the device is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceMap {
    pub(crate) handle: MapHandle,
    pub(crate) key_size: u32,
    pub(crate) value_stride: u32,
    pub(crate) bytes: u64,
    pub(crate) epoch: u64,
}

impl DeviceMap {
    /// The device's handle.
    pub const fn handle(&self) -> MapHandle {
        self.handle
    }

    /// Bytes of a key.
    pub const fn key_size(&self) -> usize {
        self.key_size as usize
    }

    /// Bytes of a value as it travels: of all CPUs, for per-CPU types.
    pub const fn value_stride(&self) -> usize {
        self.value_stride as usize
    }

    /// [`crate::Driver::epoch`] when the map was made; it is gone when that has changed.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Device memory that the map occupies, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}
