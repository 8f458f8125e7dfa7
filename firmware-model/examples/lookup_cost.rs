//! Cost of a lookup hit in the firmware's table next to hashbrown with the same hash: 8-byte
//! keys, 64-byte values, copied out. Prints the median of per-block ratios.
//!
//! `cargo run --release -p offmap-firmware-model --example lookup_cost [entries]…`

use hashbrown::HashTable;
use offmap_abi::admin::{MapCreateBody, MapCreated};
use offmap_abi::hash::KeyHash;
use offmap_abi::{AdminOpcode, Completion, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Firmware, HostFault, HostMemory, Progress};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::hint::black_box;
use std::time::Instant;

const SEED: u64 = 0x6f66_666d_6170_0001;
const LOOKUPS_PER_BLOCK: usize = 5_000;
const BLOCKS: usize = 400;

struct NoHost;

impl HostMemory for NoHost {
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
}

fn create(firmware: &mut Firmware<Vec<u8>>, entries: u32) -> MapHandle {
    let body = MapCreateBody {
        map_type: 1.into(),
        key_size: 8.into(),
        value_size: 64.into(),
        max_entries: entries.into(),
        cpu_slots: 0.into(),
        flags: 0.into(),
        seed: SEED.into(),
        attr: 0.into(),
        attr_len: 0.into(),
        reserved: 0.into(),
    };
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), &body);
    let mut progress = firmware.admin(&command, &mut NoHost);
    let done: Completion = loop {
        match progress {
            Progress::Done(done) => break done,
            Progress::More => progress = firmware.resume(&mut NoHost),
        }
    };
    assert_eq!(done.status(), Status::Success);
    MapHandle(done.payload_as::<MapCreated>().map.get())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A bijection, so that keys are distinct without being remembered.
fn key(i: u64) -> [u8; 8] {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn measure(entries: u32) {
    let memory = u64::from(entries) * 72 + (u64::from(entries) + 4) * 64 + (1 << 20);
    let mut firmware =
        Firmware::new(Config::with_memory(memory), vec![0; memory as usize]).expect("it fits");
    let map = create(&mut firmware, entries);
    let hash = KeyHash::new(SEED);
    let mut plain: HashTable<([u8; 8], [u8; 64])> = HashTable::with_capacity(entries as usize);
    for i in 0..u64::from(entries) {
        let mut value = [0; 64];
        value[..8].copy_from_slice(&i.to_le_bytes());
        assert_eq!(firmware.update(map, &key(i), &value, 0), Status::Success);
        plain.insert_unique(hash.hash(&key(i)), (key(i), value), |e| hash.hash(&e.0));
    }
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut keys = vec![[0; 8]; LOOKUPS_PER_BLOCK];
    let mut out = [0; 64];
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        keys.fill_with(|| key(random.next_u64() % u64::from(entries)));
        let start = Instant::now();
        for key in &keys {
            let status = firmware.lookup(map, black_box(key), &mut out);
            assert_eq!(status, Status::Success);
            black_box(&out);
        }
        let a = start.elapsed().as_nanos() as f64 / keys.len() as f64;
        keys.fill_with(|| key(random.next_u64() % u64::from(entries)));
        let start = Instant::now();
        for key in &keys {
            let found = plain.find(hash.hash(black_box(key)), |e| e.0 == *key);
            out.copy_from_slice(&found.expect("it is there").1);
            black_box(&out);
        }
        let b = start.elapsed().as_nanos() as f64 / keys.len() as f64;
        ours.push(a);
        theirs.push(b);
        ratios.push(a / b);
    }
    println!(
        "{entries:>10} entries: firmware {:6.1} ns, hashbrown {:6.1} ns, ratio {:.2}",
        median(ours),
        median(theirs),
        median(ratios)
    );
}

fn main() {
    let asked: Vec<u32> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let sizes = if asked.is_empty() {
        vec![1_000, 65_536, 1_000_000]
    } else {
        asked
    };
    for entries in sizes {
        measure(entries);
    }
}
