//! What the benches measure: the same lookups on each layer, over the same keys in the same
//! order.

use crate::kernel::KernelMap;
use crate::stack::Stack;
use crate::subject::Subject;
use hashbrown::HashTable;
use offmap_abi::MapHandle;
use offmap_abi::hash::KeyHash;
use offmap_bpf::{MapCreateAttr, MapFile};
use offmap_driver::{DeviceMap, MapParams};
use offmap_emulator::{DeviceConfig, Inline};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Key size in bytes.
pub const KEY_BYTES: usize = 8;
/// Value size in bytes.
pub const VALUE_BYTES: usize = 64;
/// UAPI number of HASH.
pub const HASH: u32 = 1;

/// A key.
pub type Key = [u8; KEY_BYTES];
/// A value.
pub type Value = [u8; VALUE_BYTES];

/// `entries` keys in no order that a table could profit from.
pub fn keys(entries: usize) -> Vec<Key> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0x6b65_7973);
    let start = rng.next_u64();
    // A bijection of the 64-bit numbers, so that keys are distinct and look random.
    (0..entries as u64)
        .map(|i| {
            let x = start.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (x ^ x >> 32)
                .wrapping_mul(0xd6e8_feb8_6659_fd93)
                .to_le_bytes()
        })
        .collect()
}

/// `count` of them, picked at random beforehand.
pub fn order(keys: &[Key], count: usize) -> Vec<Key> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0x6f72_6465);
    (0..count)
        .map(|_| keys[rng.random_range(0..keys.len())])
        .collect()
}

/// The value stored under a key.
pub fn value_of(key: &Key) -> Value {
    let mut value = [0; VALUE_BYTES];
    for piece in value.chunks_exact_mut(KEY_BYTES) {
        piece.copy_from_slice(key);
    }
    value
}

/// The yardstick: a plain hashbrown table with the device's own hash, values in the table.
pub struct Plain {
    table: HashTable<(Key, Value)>,
    hash: KeyHash,
}

impl Plain {
    /// Filled with `keys`.
    pub fn new(keys: &[Key]) -> Self {
        let hash = KeyHash::new(0x5eed);
        let mut table = HashTable::with_capacity(keys.len());
        for key in keys {
            table.insert_unique(hash.hash(key), (*key, value_of(key)), |(k, _)| hash.hash(k));
        }
        Self { table, hash }
    }

    /// Copies the value out; whether there is one.
    #[inline]
    pub fn lookup(&self, key: &Key, out: &mut Value) -> bool {
        match self.table.find(self.hash.hash(key), |(k, _)| k == key) {
            Some((_, value)) => {
                *out = *value;
                true
            }
            None => false,
        }
    }

    /// Overwrites the value; whether the key is there.
    #[inline]
    pub fn update(&mut self, key: &Key, value: &Value) -> bool {
        match self.table.find_mut(self.hash.hash(key), |(k, _)| k == key) {
            Some(entry) => {
                entry.1 = *value;
                true
            }
            None => false,
        }
    }
}

/// Device memory that a hash map of `entries` needs, generously.
pub fn device_config(entries: usize) -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = ((entries as u64 * 256).max(64 << 20)).next_multiple_of(1 << 20);
    config
}

/// Attributes of the map that is measured.
pub fn map_attr(entries: usize) -> MapCreateAttr {
    MapCreateAttr {
        map_type: HASH,
        key_size: KEY_BYTES as u32,
        value_size: VALUE_BYTES as u32,
        max_entries: entries as u32,
        ..MapCreateAttr::default()
    }
}

/// Stores every key, in batches.
pub fn fill(map: &MapFile, keys: &[Key]) {
    for chunk in keys.chunks(1024) {
        let values: Vec<u8> = chunk.iter().flat_map(value_of).collect();
        let done = map.update_batch(chunk.as_flattened(), &values, chunk.len() as u32, 0, 0);
        done.result.expect("the map has room");
    }
}

/// A filled map on an inline device, reached through the stack and, past the bus, directly:
/// one map each, of equal contents.
pub struct InlineMaps {
    /// The stack.
    pub stack: Stack<Inline>,
    /// The map as a program has it.
    pub file: MapFile,
    /// The map for direct calls of the firmware.
    pub direct: MapHandle,
    /// The same one for the driver's queues.
    pub device_map: DeviceMap,
}

impl InlineMaps {
    /// Both maps filled with `keys`.
    pub fn new(keys: &[Key]) -> Self {
        let stack = Stack::inline(device_config(keys.len() * 2));
        let file = stack.map(&map_attr(keys.len()), true);
        fill(&file, keys);
        let device_map = stack.driver.create_map(&params(keys.len())).expect("a map");
        let direct = device_map.handle();
        let filled = stack.function.with_firmware(|firmware| {
            for key in keys {
                let status = firmware.update(direct, key, &value_of(key), 0);
                assert!(status.is_success(), "{status:?}");
            }
        });
        filled.expect("the device lives");
        Self {
            stack,
            file,
            direct,
            device_map,
        }
    }
}

/// The same map for the driver.
pub fn params(entries: usize) -> MapParams {
    MapParams {
        map_type: HASH,
        key_size: KEY_BYTES as u32,
        value_size: VALUE_BYTES as u32,
        max_entries: entries as u32,
        cpu_slots: 0,
        seed: 0x5eed,
        name: *b"bench\0\0\0\0\0\0\0\0\0\0\0",
        ..MapParams::default()
    }
}

/// The running kernel's map, filled, or why there is none.
pub fn kernel_map(keys: &[Key]) -> Result<KernelMap, i32> {
    let mut map = KernelMap::create(&map_attr(keys.len()))?;
    for key in keys {
        map.update(key, &value_of(key), 0)?;
    }
    Ok(map)
}
