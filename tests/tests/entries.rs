//! Walks page by page: each entry once, nothing older than the caller's own writes, and few
//! descriptors.

use offmap_bpf::{Errno, MapCreateAttr, MapFile, MapType};
use offmap_device_io::Function;
use offmap_emulator::{DeviceConfig, Emulated, FrontEnd};
use offmap_offload::{OffloadNic, Profile};
use offmap_tests::stack::Stack;
use std::collections::{BTreeMap, BTreeSet};

const ENTRIES: u32 = 3000;

fn attr(map_type: MapType) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size: 4,
        value_size: 8,
        max_entries: ENTRIES,
        ..MapCreateAttr::default()
    }
}

fn value_of(map: &MapFile, n: u32, round: u8) -> Vec<u8> {
    let mut value = vec![round; map.value_bytes()];
    value[..4].copy_from_slice(&n.to_ne_bytes());
    value
}

fn filled(map: MapFile) -> MapFile {
    for n in 0..ENTRIES {
        let value = value_of(&map, n, 1);
        map.update(&n.to_ne_bytes(), &value, 0).unwrap();
    }
    map
}

fn walk(map: &MapFile, page: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut entries = map.entries(page).unwrap();
    while let Some(entry) = entries.next_entry().unwrap() {
        let before = all.insert(entry.key.to_vec(), entry.value.to_vec());
        assert!(before.is_none(), "{:?} twice", entry.key);
    }
    assert!(
        entries.next_entry().unwrap().is_none(),
        "it stays at the end"
    );
    all
}

/// Maps of every type that has keys, on the device and on the host.
fn maps<F: Function>(stack: &Stack<F>) -> Vec<(String, MapFile)> {
    let mut maps = Vec::new();
    for map_type in [
        MapType::HASH,
        MapType::ARRAY,
        MapType::LRU_HASH,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
    ] {
        for offloaded in [true, false] {
            let attr = MapCreateAttr {
                // LRU maps of the host keep free elements by CPU.
                max_entries: if map_type == MapType::LRU_HASH {
                    4 * ENTRIES
                } else {
                    ENTRIES
                },
                ..attr(map_type)
            };
            let map = stack.map(&attr, offloaded);
            maps.push((format!("{map_type:?}, offloaded {offloaded}"), filled(map)));
        }
    }
    maps
}

#[test]
fn every_entry_comes_once_with_pages_of_every_size() {
    let stack = Stack::inline(DeviceConfig::default());
    for (name, map) in maps(&stack) {
        for page in [1, 2, 7, 1024, u32::MAX] {
            let all = walk(&map, page);
            assert_eq!(all.len(), ENTRIES as usize, "{name}, page {page}");
            for n in 0..ENTRIES {
                let value = all.get(&n.to_ne_bytes()[..]).unwrap();
                assert_eq!(*value, value_of(&map, n, 1), "{name}, page {page}");
            }
        }
    }
}

#[test]
fn a_trie_is_walked_key_by_key() {
    let stack = Stack::inline(DeviceConfig::default());
    for offloaded in [true, false] {
        let attr = MapCreateAttr {
            map_type: MapType::LPM_TRIE.0,
            key_size: 8,
            map_flags: 1,
            ..attr(MapType::LPM_TRIE)
        };
        let map = stack.map(&attr, offloaded);
        let mut keys = BTreeSet::new();
        for n in 0..200u32 {
            let mut key = (n % 33).to_ne_bytes().to_vec();
            key.extend(n.wrapping_mul(0x9e37_79b9).to_be_bytes());
            map.update(&key, &[1; 8], 0).unwrap();
        }
        let (mut next, mut key) = (vec![0; 8], None::<Vec<u8>>);
        while map.get_next_key(key.as_deref(), &mut next).is_ok() {
            keys.insert(next.clone());
            key = Some(next.clone());
        }
        let walked: BTreeSet<_> = walk(&map, 64).into_keys().collect();
        assert_eq!(walked, keys);
    }
}

#[test]
fn an_entry_is_never_older_than_the_callers_own_writes() {
    let stack = Stack::inline(DeviceConfig::default());
    for (name, map) in maps(&stack) {
        let array = matches!(map.map_type(), MapType::ARRAY | MapType::PERCPU_ARRAY);
        // A second file of the same map writes as well as the first.
        for _ in 0..2 {
            let (mut updated, mut deleted) = (BTreeSet::new(), BTreeSet::new());
            let mut seen = BTreeSet::new();
            let mut entries = map.entries(512).unwrap();
            while let Some(entry) = entries.next_entry().unwrap() {
                let n = u32::from_ne_bytes(entry.key.try_into().unwrap());
                assert!(!deleted.contains(&n), "{name}: {n} was deleted before");
                let round = entry.value[4];
                assert_eq!(round == 2, updated.contains(&n), "{name}: {n}, {round}");
                seen.insert(n);
                // Keys near it in no order of the map's, behind it or before it.
                let (other, gone) = ((n + 1) % ENTRIES, (n + 7) % ENTRIES);
                if n % 5 == 0 && !deleted.contains(&other) {
                    let value = value_of(&map, other, 2);
                    map.update(&other.to_ne_bytes(), &value, 2).unwrap();
                    updated.insert(other);
                }
                if n % 11 == 0 && !array && map.delete(&gone.to_ne_bytes()).is_ok() {
                    deleted.insert(gone);
                }
            }
            for n in 0..ENTRIES {
                assert!(
                    seen.contains(&n) || deleted.contains(&n),
                    "{name}: {n} is missing"
                );
            }
            assert!(
                updated.len() > 100 && (array || deleted.len() > 100),
                "{name}"
            );
            for n in deleted {
                map.update(&n.to_ne_bytes(), &value_of(&map, n, 1), 0)
                    .unwrap();
            }
            for n in updated {
                map.update(&n.to_ne_bytes(), &value_of(&map, n, 1), 0)
                    .unwrap();
            }
        }
    }
}

/// What the page saves: a dump costs a few descriptors for a thousand entries, and after a write of
/// the caller's own one for each entry that is left of the page.
#[test]
fn a_walk_costs_few_descriptors() {
    let stack = Stack::inline(DeviceConfig::default());
    let map = filled(stack.map(&attr(MapType::HASH), true));
    let submitted = || {
        let total = stack.driver.stats().total().expect("a queue");
        total.operations.iter().map(|op| op.submitted).sum::<u64>()
    };
    let commands = |work: &mut dyn FnMut()| {
        let before = submitted();
        work();
        submitted() - before
    };
    let whole = commands(&mut || assert_eq!(walk(&map, 1024).len(), ENTRIES as usize));
    assert!(whole <= 8, "{whole} descriptors for {ENTRIES} entries");
    let mut left = 0;
    let one = commands(&mut || {
        let mut entries = map.entries(100).unwrap();
        entries.next_entry().unwrap().unwrap();
        map.update(&0u32.to_ne_bytes(), &[9; 8], 0).unwrap();
        for _ in 0..50 {
            entries.next_entry().unwrap().unwrap();
            left += 1;
        }
    });
    assert_eq!(one, 1 + 1 + left);
}

#[test]
fn a_profile_without_batches_is_walked_entry_by_entry() {
    let stack = Stack::inline(DeviceConfig::default());
    let driver = std::sync::Arc::clone(&stack.driver);
    let nic = OffloadNic::new(driver, Profile::named("netdevsim").unwrap()).unwrap();
    let stack = Stack::over_nic(nic);
    let attr = MapCreateAttr {
        max_entries: 2,
        ..attr(MapType::HASH)
    };
    let map = stack.map(&attr, true);
    map.update(&1u32.to_ne_bytes(), &[1; 8], 0).unwrap();
    map.update(&2u32.to_ne_bytes(), &[2; 8], 0).unwrap();
    assert_eq!(walk(&map, 1024).len(), 2);
}

#[test]
fn what_cannot_be_walked_says_so() {
    let stack = Stack::inline(DeviceConfig::default());
    let map = stack.map(&attr(MapType::HASH), true);
    assert_eq!(map.entries(0).unwrap_err().errno(), Errno::EINVAL);
    assert!(walk(&map, 16).is_empty());
    for offloaded in [true, false] {
        let queue = MapCreateAttr {
            map_type: MapType::QUEUE.0,
            key_size: 0,
            ..attr(MapType::QUEUE)
        };
        let queue = stack.map(&queue, offloaded);
        let error = queue.entries(16).unwrap().next_entry().unwrap_err();
        assert_ne!(error.errno(), Errno::ENOENT, "{error}");
    }
}

/// Writers on other threads: what stays comes.
#[test]
fn walks_beside_writers() {
    let stack = Stack::threaded(DeviceConfig::default());
    beside(&stack);
}

fn beside<E: FrontEnd>(stack: &Stack<Emulated<E>>) {
    let map = filled(stack.map(&attr(MapType::HASH), true));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n = (n + 13) % ENTRIES;
                map.update(&n.to_ne_bytes(), &value_of(&map, n, 3), 0)
                    .unwrap();
            }
        });
        for _ in 0..3 {
            let all = walk(&map, 256);
            assert_eq!(all.len(), ENTRIES as usize);
            for (key, value) in all {
                assert_eq!(key, value[..4], "a value of another key");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
