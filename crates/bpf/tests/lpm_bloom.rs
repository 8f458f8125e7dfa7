//! LPM_TRIE and BLOOM_FILTER: who may create them, threads on one map, and devices.
//!
//! What the operations answer is compared with the running kernel in the tests crate.

mod common;

use common::{FakeDevice, Rng, attr, errno, logged, system};
use offmap_bpf::device::OffloadRules;
use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Caller, Capabilities, Errno, MapCreateAttr, MapFile, MapType};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;

fn trie(value_size: u32, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        key_size: 8,
        value_size,
        map_flags: MapFlags::NO_PREALLOC.bits(),
        ..attr(MapType::LPM_TRIE, max_entries)
    }
}

fn filter(value_size: u32, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        key_size: 0,
        value_size,
        ..attr(MapType::BLOOM_FILTER, max_entries)
    }
}

fn open(attr: &MapCreateAttr) -> MapFile {
    let system = system();
    let fd = system.map_create(&Caller::root(), attr).unwrap();
    system.map_file(fd).unwrap()
}

fn prefix(bits: u32, data: [u8; 4]) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    key[4..].copy_from_slice(&data);
    key
}

/// Most checks of both types are in `map_alloc`, which comes after the capabilities.
#[test]
fn capabilities_come_before_most_checks() {
    let system = system();
    let nobody = Caller::unprivileged();
    let bpf = nobody.with_capabilities(Capabilities::BPF);
    for good in [trie(8, 4), filter(8, 4)] {
        system.map_create(&bpf, &good).unwrap();
        for bad in [
            good,
            MapCreateAttr {
                max_entries: 0,
                ..good
            },
            MapCreateAttr {
                key_size: 3,
                ..good
            },
        ] {
            assert_eq!(errno(system.map_create(&nobody, &bad)), Errno::EPERM);
            if bad != good {
                assert_eq!(errno(system.map_create(&bpf, &bad)), Errno::EINVAL);
            }
        }
    }
    // The exception.
    let huge = filter((4 << 20) + 1, 4);
    assert_eq!(errno(system.map_create(&nobody, &huge)), Errno::E2BIG);
    let extra = MapCreateAttr {
        map_extra: 1,
        ..trie(8, 4)
    };
    assert_eq!(errno(system.map_create(&nobody, &extra)), Errno::EINVAL);
}

/// A device is not asked for a map that the host would not have; one that it is asked for comes
/// with `map_extra`.
#[test]
fn devices_are_asked_for_sound_maps_alone() {
    let system = system();
    let types = [MapType::LPM_TRIE, MapType::BLOOM_FILTER];
    let rules = OffloadRules {
        more_map_types: types.iter().fold(0, |bits, t| bits | 1 << t.0),
        ..OffloadRules::default()
    };
    let (device, log) = FakeDevice::with(rules, None);
    let ifindex = system.register_netdev("nic0", device).unwrap();
    for (good, bad) in [
        (
            trie(8, 4),
            MapCreateAttr {
                map_flags: 0,
                ..trie(8, 4)
            },
        ),
        (
            filter(8, 4),
            MapCreateAttr {
                map_extra: 16,
                ..filter(8, 4)
            },
        ),
    ] {
        let on = |attr| MapCreateAttr {
            map_ifindex: ifindex.0,
            ..attr
        };
        let before = logged(&log).len();
        assert_eq!(
            errno(system.map_create(&Caller::root(), &on(bad))),
            Errno::EINVAL
        );
        assert_eq!(logged(&log).len(), before);
        system.map_create(&Caller::root(), &on(good)).unwrap();
        assert!(logged(&log)[before].starts_with("ALLOC"));
    }
}

/// Prefixes come and go around one that stays: it, or one within it, always answers; values and
/// listed keys are whole.
#[test]
fn readers_of_a_trie_see_whole_states() {
    const VALUE: usize = 4096;
    let file = open(&trie(VALUE as u32, 500));
    file.update(&prefix(8, [10, 0, 0, 0]), &[0; VALUE], 0)
        .unwrap();
    let stop = AtomicBool::new(false);
    let (hits, walks) = (AtomicU32::new(0), AtomicU32::new(0));
    let start = Barrier::new(4);
    let (file, stop, start) = (&file, &stop, &start);
    let (hits, walks) = (&hits, &walks);
    // A key's length and first byte determine the rest, so that a torn key shows.
    let key = |rng: &mut Rng| {
        let third = rng.below(4) as u8;
        prefix(9 + rng.below(24) as u32, [10, third << 6, third, !third])
    };
    let check = |value: &[u8]| {
        let torn = value.iter().any(|&byte| byte != value[0]);
        assert!(!torn, "half of an update was seen");
    };
    thread::scope(|scope| {
        for writer in 0..2 {
            scope.spawn(move || {
                let mut rng = Rng(0x77 + writer);
                start.wait();
                for round in 0..60_000u32 {
                    let key = key(&mut rng);
                    match rng.below(8) {
                        0 => drop(file.delete(&key)),
                        _ => drop(file.update(&key, &[round as u8; VALUE], 0)),
                    }
                }
                stop.store(true, Relaxed);
            });
        }
        scope.spawn(move || {
            let mut rng = Rng(5);
            start.wait();
            let mut value = [0; VALUE];
            while !stop.load(Relaxed) || hits.load(Relaxed) == 0 {
                let mut wanted = key(&mut rng);
                wanted[..4].copy_from_slice(&32u32.to_ne_bytes());
                file.lookup(&wanted, &mut value, 0)
                    .expect("10.0.0.0/8 covers it");
                check(&value);
                hits.fetch_add(1, Relaxed);
            }
        });
        scope.spawn(move || {
            start.wait();
            let (mut keys, mut values) = (vec![0; 8 * 600], vec![0; VALUE * 600]);
            while !stop.load(Relaxed) || walks.load(Relaxed) == 0 {
                let walked =
                    file.lookup_batch(None, &mut [0; 8], &mut keys, &mut values, 600, 0, 0);
                for (key, value) in keys
                    .chunks(8)
                    .zip(values.chunks(VALUE))
                    .take(walked.count as usize)
                {
                    check(value);
                    let whole = key[5] == key[6] << 6 && key[7] == !key[6];
                    assert!(whole || key == prefix(8, [10, 0, 0, 0]), "{key:?}");
                }
                walks.fetch_add(1, Relaxed);
            }
        });
    });
    // What is left is consistent, and nothing was lost on the way.
    let mut seen = BTreeSet::new();
    let (mut last, mut next) = (None, [0; 8]);
    while file
        .get_next_key(last.as_ref().map(|key: &[u8; 8]| &key[..]), &mut next)
        .is_ok()
    {
        assert!(seen.insert(next), "{next:?} came twice");
        last = Some(next);
    }
    assert_eq!(
        file.info().unwrap().mem_usage,
        seen.len() as u64 * (24 + 4 + VALUE as u64)
    );
    for key in &seen {
        file.delete(key).unwrap();
    }
    assert_eq!(errno(file.get_next_key(None, &mut next)), Errno::ENOENT);
    for i in 0..500u32 {
        let [_, _, a, b] = i.to_be_bytes();
        file.update(&prefix(32, [1, 2, a, b]), &[0; VALUE], 1)
            .unwrap();
    }
    let full = file.update(&prefix(31, [1; 4]), &[0; VALUE], 0);
    assert_eq!(errno(full), Errno::ENOSPC);
}

/// What one thread has added, all find, whoever adds beside it.
#[test]
fn adding_to_a_filter_from_many_threads_loses_nothing() {
    let file = &open(&filter(4, 40_000));
    thread::scope(|scope| {
        for part in 0..4u32 {
            scope.spawn(move || {
                for i in 0..10_000 {
                    let value = (i * 4 + part).to_ne_bytes();
                    file.update(&[], &value, 0).unwrap();
                    file.lookup(&[], &mut value.clone(), 0).unwrap();
                }
            });
        }
    });
    for i in 0..40_000u32 {
        file.lookup(&[], &mut i.to_ne_bytes(), 0).unwrap();
    }
    let wrong = (40_000..80_000u32).filter(|i| file.lookup(&[], &mut i.to_ne_bytes(), 0).is_ok());
    assert!(wrong.count() < 4_000);
    let mut values: Vec<u8> = [7u32, 90_000, 8]
        .iter()
        .flat_map(|i| i.to_ne_bytes())
        .collect();
    let mut results = [Ok(()); 3];
    file.lookup_many(&[], &mut values, &mut results).unwrap();
    assert_eq!([results[0], results[2]], [Ok(()); 2]);
}
