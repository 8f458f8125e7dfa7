//! A value is seen whole or not at all: readers beside a writer who changes every byte with each
//! update, on each kind of table of the host and on a device with a thread of its own.

use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{MapCreateAttr, MapFile, MapType};
use offmap_emulator::DeviceConfig;
use offmap_tests::report::aloud;
use offmap_tests::stack::Stack;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long each map is read and written.
const EACH: Duration = Duration::from_millis(250);
const KEYS: u32 = 4;

/// Fails unless all words of what a reader saw are the same; how much was read and written.
fn beside_a_writer(what: &str, map: &MapFile, remove: bool) -> (u64, u64) {
    let done = AtomicBool::new(false);
    let bytes = map.value_bytes();
    let key = |n: u64| (n as u32 % KEYS).to_ne_bytes();
    let (read, written) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut value = vec![0; bytes];
            let mut hits = 0;
            let mut n = 0;
            while !done.load(Relaxed) {
                n += 1;
                if map.lookup(&key(n), &mut value, 0).is_err() {
                    continue;
                }
                hits += 1;
                let (words, _) = value.as_chunks::<8>();
                if words.iter().any(|word| *word != words[0]) {
                    done.store(true, Relaxed);
                    panic!("{what}: half of an update was seen: {words:?}");
                }
            }
            hits
        });
        let started = Instant::now();
        let mut n = 0u64;
        while !done.load(Relaxed) && started.elapsed() < EACH {
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
        (reader.join().expect("whole values"), n)
    });
    assert!(read > 100, "{what}: read {read} values");
    (read, written)
}

#[test]
fn values_are_seen_whole() {
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
