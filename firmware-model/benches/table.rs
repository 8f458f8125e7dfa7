//! The hash table, called, over a plain hash table with the same hash and the same copy out: lookups
//! that hit, and overwrites, of full tables with 8 B keys and 64 B values.
//!
//! Blocks of equal work, below a millisecond each, take turns (in blocks of equal time the faster side runs
//! through all of its table and keeps it in the caches); what is printed is the median of the
//! ratios of neighbouring blocks, and of the times. `-- ENTRIES…` measures other sizes; `--seconds N`
//! for so long each.

use hashbrown::HashTable;
use memmap2::{Advice, MmapMut};
use offmap_abi::admin::{MapCreateBody, MapCreated};
use offmap_abi::hash::KeyHash;
use offmap_abi::{AdminOpcode, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Firmware, HostFault, HostMemory, Progress, Storage};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::hint::black_box;
use std::time::{Duration, Instant};

const VALUE: usize = 64;
const SEED: u64 = 0x5eed;
/// Operations of a block.
const BLOCK: u32 = 2048;

struct Memory(MmapMut);
impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
impl Storage for Memory {}

struct NoHost;
impl HostMemory for NoHost {
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
}

fn device(entries: u32) -> (Firmware<Memory>, MapHandle) {
    let bytes = u64::from(entries) * 256 + (1 << 20);
    let memory = MmapMut::map_anon(bytes as usize).expect("address space");
    // As the emulator's memory is.
    let _ = memory.advise(Advice::HugePage);
    let mut firmware = Firmware::new(Config::with_memory(bytes), Memory(memory)).expect("sound");
    let body = MapCreateBody {
        map_type: 1.into(),
        key_size: 8.into(),
        value_size: (VALUE as u32).into(),
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
    let map = loop {
        match progress {
            Progress::Done(done) => break done.payload_as::<MapCreated>().map.get(),
            Progress::More => progress = firmware.resume(&mut NoHost),
        }
    };
    (firmware, MapHandle(map))
}

/// Times a block of `work`, which does one operation, and gives nanoseconds for each.
fn block(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    for _ in 0..BLOCK {
        work();
    }
    begin.elapsed().as_nanos() as f64 / f64::from(BLOCK)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(what: &str, entries: u32, bar: f64, time: Duration, sides: [&mut dyn FnMut(); 2]) {
    let end = Instant::now() + time;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    while Instant::now() < end {
        let pair = [block(&mut *sides[0]), block(&mut *sides[1])];
        ours.push(pair[0]);
        theirs.push(pair[1]);
        ratios.push(pair[0] / pair[1]);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = median(ratios);
    println!(
        "{what:7} {entries:>9} entries: {ours:6.1} ns / {theirs:6.1} ns = {ratio:.2} (bar {bar})"
    );
}

fn measure(entries: u32, time: Duration) {
    let (mut firmware, map) = device(entries);
    let hash = KeyHash::new(SEED);
    let mut plain: HashTable<([u8; 8], [u8; VALUE])> = HashTable::with_capacity(entries as usize);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let key_of = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    for n in 0..u64::from(entries) {
        let (key, value) = (key_of(n), [n as u8; VALUE]);
        assert_eq!(firmware.update(map, &key, &value, 0), Status::Success);
        plain.insert_unique(hash.hash(&key), (key, value), |(key, _)| hash.hash(key));
    }
    // Keys in a random order that both sides go through, long enough to be no help to the caches.
    let keys: Vec<[u8; 8]> = (0..1 << 20)
        .map(|_| key_of(random.next_u64() % u64::from(entries)))
        .collect();
    let (mut a, mut b) = (0, 0);
    let next = |at: &mut usize| {
        *at = (*at + 1) % keys.len();
        keys[*at]
    };
    {
        let mut value = [0; VALUE];
        let mut other = [0; VALUE];
        report(
            "lookup",
            entries,
            1.5,
            time,
            [
                &mut || {
                    let key = next(&mut a);
                    assert_eq!(
                        firmware.lookup(map, &key, black_box(&mut value)),
                        Status::Success
                    );
                },
                &mut || {
                    let key = next(&mut b);
                    let found = plain.find(hash.hash(&key), |(stored, _)| *stored == key);
                    *black_box(&mut other) = found.expect("there").1;
                },
            ],
        );
    }
    {
        let value = [7; VALUE];
        report(
            "update",
            entries,
            2.0,
            time,
            [
                &mut || {
                    let key = next(&mut a);
                    let status = firmware.update(map, &key, black_box(&value), 0);
                    assert_eq!(status, Status::Success);
                },
                &mut || {
                    let key = next(&mut b);
                    let found = plain.find_mut(hash.hash(&key), |(stored, _)| *stored == key);
                    found.expect("there").1 = *black_box(&value);
                },
            ],
        );
    }
}

fn main() {
    let mut seconds = 2.0;
    let mut sizes = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), arg.parse()) {
            ("--seconds", _) => {
                let given = args.next().and_then(|seconds| seconds.parse().ok());
                seconds = given.expect("--seconds takes a number");
            }
            ("--bench", _) => {}
            (_, Ok(entries)) => sizes.push(entries),
            _ => panic!("{arg}: a number of entries, or --seconds N"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![1000, 65_536, 10_000_000];
    }
    for entries in sizes {
        measure(entries, Duration::from_secs_f64(seconds));
    }
}
