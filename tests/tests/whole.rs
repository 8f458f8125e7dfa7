//! A value is seen whole or not at all: readers beside a writer who changes every byte with each
//! update, on each kind of table of the host and on a device with a thread of its own.

use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Errno, MapCreateAttr, MapFile, MapType};
use offmap_emulator::DeviceConfig;
use offmap_tests::report::aloud;
use offmap_tests::stack::Stack;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long each map is read and written, and until enough was read.
const EACH: Duration = Duration::from_millis(250);
const ENOUGH: u64 = 100;
const AT_MOST: Duration = Duration::from_secs(30);
/// One test at a time: each has more threads than small machines have processors.
static TURN: Mutex<()> = Mutex::new(());
const KEYS: u32 = 4;

/// Fails unless all words of what a reader saw are the same; how much was read and written.
fn beside_a_writer(what: &str, map: &MapFile, remove: bool) -> (u64, u64) {
    let (done, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    let bytes = map.value_bytes();
    let key = |n: u64| (n as u32 % KEYS).to_ne_bytes();
    let (read, written) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut value = vec![0; bytes];
            let mut n = 0;
            while !done.load(Relaxed) {
                n += 1;
                if map.lookup(&key(n), &mut value, 0).is_err() {
                    continue;
                }
                hits.fetch_add(1, Relaxed);
                let (words, _) = value.as_chunks::<8>();
                if words.iter().any(|word| *word != words[0]) {
                    done.store(true, Relaxed);
                    panic!("{what}: half of an update was seen: {words:?}");
                }
            }
        });
        let started = Instant::now();
        let mut n = 0u64;
        let going = || {
            let enough = hits.load(Relaxed) > ENOUGH;
            started.elapsed() < if enough { EACH } else { AT_MOST }
        };
        while !done.load(Relaxed) && going() {
            for _ in 0..16 {
                n += 1;
                let value = [n as u8; 8].repeat(bytes / 8);
                map.update(&key(n / 3), &value, 0).expect("room");
                if remove && n.is_multiple_of(5) {
                    let _ = map.delete(&key(n));
                }
            }
        }
        done.store(true, Relaxed);
        reader.join().expect("whole values");
        (hits.load(Relaxed), n)
    });
    assert!(read > ENOUGH, "{what}: read {read} values");
    (read, written)
}

#[test]
fn values_are_seen_whole() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::threaded(DeviceConfig::default());
    let zero_seed = MapFlags::ZERO_SEED.bits();
    let (mut reads, mut writes) = (0, 0);
    for (map_type, flags, remove) in [
        (MapType::HASH, 0, true),
        (MapType::HASH, zero_seed, true),
        (MapType::ARRAY, 0, false),
        (MapType::LRU_HASH, 0, true),
        (MapType::PERCPU_HASH, 0, true),
        (MapType::PERCPU_ARRAY, 0, false),
    ] {
        for value_size in [64, 256, 4096] {
            for offloaded in [false, true] {
                if offloaded && flags != 0 {
                    continue;
                }
                let attr = MapCreateAttr {
                    map_type: map_type.0,
                    key_size: 4,
                    value_size,
                    max_entries: 64,
                    map_flags: flags,
                    ..MapCreateAttr::default()
                };
                let map = stack.map(&attr, offloaded);
                let what = format!("{map_type}, flags {flags}, {value_size} B, {offloaded}");
                let (read, written) = beside_a_writer(&what, &map, remove);
                reads += read;
                writes += written;
            }
        }
    }
    aloud(&format!(
        "whole: {reads} values read beside {writes} updates, none in halves"
    ));
}

/// Batch walks beside two threads that take keys out and put them in again: no key comes twice
/// in one walk, and none that stays is missing. In the kernel a walk reads each bucket under its
/// lock, and a key has one bucket.
#[test]
fn walks_return_each_key_that_stays_once() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const STAY: u32 = 300;
    const MAX: u32 = 1_000;
    let stack = Stack::threaded(DeviceConfig::default());
    for (what, flags) in [("hash", 0), ("hash, seed 0", MapFlags::ZERO_SEED.bits())] {
        let map = stack.map(
            &MapCreateAttr {
                map_type: MapType::HASH.0,
                key_size: 4,
                value_size: 16,
                max_entries: MAX,
                map_flags: flags,
                ..MapCreateAttr::default()
            },
            false,
        );
        for n in 0..STAY {
            map.update(&n.to_ne_bytes(), &[1; 16], 0).expect("room");
        }
        let done = AtomicBool::new(false);
        let (walks, elements) = std::thread::scope(|scope| {
            for first in [STAY, STAY + 500] {
                let (map, done) = (&map, &done);
                scope.spawn(move || {
                    let mut n = 0_u32;
                    while !done.load(Relaxed) {
                        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let key = (first + (n >> 16) % 340).to_ne_bytes();
                        if map.delete(&key).is_err() {
                            map.update(&key, &[2; 16], 0).expect("room");
                        }
                    }
                });
            }
            let started = Instant::now();
            let (mut walks, mut elements) = (0, 0);
            while started.elapsed() < 4 * EACH {
                let count = if walks % 2 == 0 { 2 * MAX } else { 64 };
                let keys = walk(&map, count);
                let mut once = keys.clone();
                once.sort_unstable();
                once.dedup();
                let stayed = once.iter().filter(|&&key| key < STAY).count();
                if once.len() != keys.len() || stayed != STAY as usize {
                    done.store(true, Relaxed);
                    panic!(
                        "{what}: {} keys, {} of them different, {stayed} of the {STAY} that stay",
                        keys.len(),
                        once.len()
                    );
                }
                walks += 1;
                elements += keys.len();
            }
            done.store(true, Relaxed);
            (walks, elements)
        });
        assert!(walks > 20, "{what}: {walks} walks");
        aloud(&format!("walks: {what}: {walks}, of {elements} elements"));
    }
}

/// All keys of a map, by batches of `count`.
fn walk(map: &MapFile, count: u32) -> Vec<u32> {
    let (mut keys, mut values) = (vec![0; 4 * count as usize], vec![0; 16 * count as usize]);
    let (mut all, mut token) = (Vec::new(), None::<[u8; 4]>);
    loop {
        let mut next = [0; 4];
        let from = token.as_ref().map(|token| &token[..]);
        let got = map.lookup_batch(from, &mut next, &mut keys, &mut values, count, 0, 0);
        let returned = keys.as_chunks::<4>().0.iter().take(got.count as usize);
        all.extend(returned.map(|key| u32::from_ne_bytes(*key)));
        match got.result {
            Ok(()) => token = Some(next),
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOENT, "{error}");
                return all;
            }
        }
    }
}
