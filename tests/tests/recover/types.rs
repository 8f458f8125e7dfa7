//! Each type of map, restored; types that are not; and maps that did not ask for it.

use super::{KILLS, attr, kill, named, recovering};
use offmap_bpf::{Errno, MapCreateAttr, MapFile, MapType};
use offmap_device_io::Function;
use offmap_driver::DriverConfig;
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::{NicSettings, OffloadNic, Profile, Recovery};
use offmap_tests::stack::Stack;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Contents = Vec<(Vec<u8>, Vec<u8>)>;

fn stack<F: Function>(function: Arc<F>) -> Stack<F> {
    recovering(function, DriverConfig::default(), None, Recovery::default())
}

/// Every entry, in the order of GET_NEXT.
fn walked(map: &MapFile) -> Contents {
    let mut out = Contents::new();
    let mut last: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; map.key_size()];
        match map.get_next_key(last.as_deref(), &mut next) {
            Ok(()) => {}
            Err(e) if e.errno() == Errno::ENOENT => return out,
            Err(e) => panic!("get_next_key: {e}"),
        }
        let mut value = vec![0; map.value_bytes()];
        map.lookup(&next, &mut value, 0).expect("a key of the walk");
        out.push((next.clone(), value));
        last = Some(next);
    }
}

fn sorted(map: &MapFile) -> Contents {
    let mut all = walked(map);
    all.sort();
    all
}

fn key_of(map: &MapFile, n: u32) -> Vec<u8> {
    let mut key = n.to_ne_bytes().to_vec();
    if map.map_type() == MapType::LPM_TRIE {
        // Prefixes of 20 to 32 bits.
        key = (20 + n % 13).to_ne_bytes().to_vec();
        key.extend_from_slice(&(n << 20).to_be_bytes());
    }
    key
}

fn value(map: &MapFile, n: u32) -> Vec<u8> {
    let word = u64::from(n) << 8 | 0x5a;
    let bytes = word.to_ne_bytes().into_iter().cycle();
    bytes.take(map.value_bytes()).collect()
}

/// Writes of every kind that the type has.
fn write(map: &MapFile, round: u32) {
    let stamp = round * 1000;
    for n in 0..20 {
        map.update(&key_of(map, n), &value(map, stamp + n), 0)
            .unwrap();
    }
    if matches!(map.map_type(), MapType::ARRAY | MapType::PERCPU_ARRAY) {
        return;
    }
    map.delete(&key_of(map, 3)).unwrap();
    let exists = map.update(&key_of(map, 4), &value(map, 1), 1).unwrap_err();
    assert_eq!(exists.errno(), Errno::EEXIST);
    let missing = map.update(&key_of(map, 3), &value(map, 1), 2).unwrap_err();
    assert_eq!(missing.errno(), Errno::ENOENT);
    if map.map_type() == MapType::LPM_TRIE {
        return;
    }
    let mut taken = vec![0; map.value_bytes()];
    map.lookup_and_delete(&key_of(map, 5), &mut taken, 0)
        .unwrap();
    assert_eq!(taken, value(map, stamp + 5));
    let keys: Vec<u8> = (20..40).flat_map(|n| key_of(map, n)).collect();
    let values: Vec<u8> = (20..40).flat_map(|n| value(map, stamp + n)).collect();
    let done = map.update_batch(&keys, &values, 20, 0, 0);
    assert_eq!((done.count, done.result.is_ok()), (20, true));
    let done = map.delete_batch(&keys[..40], 10, 0, 0);
    assert_eq!((done.count, done.result.is_ok()), (10, true));
}

fn each_keyed_type<F: Function>(stack: &Stack<F>) {
    for map_type in [
        MapType::HASH,
        MapType::ARRAY,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
        MapType::LRU_HASH,
        MapType::LRU_PERCPU_HASH,
        MapType::LPM_TRIE,
    ] {
        let map = stack.map(&attr(map_type, 24, 64), true);
        let id = map.info().unwrap().id;
        for (round, how) in KILLS.iter().enumerate() {
            write(&map, round as u32 + 1);
            let before = sorted(&map);
            assert!(before.len() >= 19, "{map_type}: {before:?}");
            let recoveries = || stack.nic.recovery_stats().recoveries;
            let recovered = recoveries();
            kill(&stack.driver, round);
            // The firmware finds its error when it looks.
            soon(|| {
                let key = key_of(&map, 0);
                map.lookup(&key, &mut vec![0; map.value_bytes()], 0)
                    .unwrap_or_else(|e| panic!("{map_type} after: {how}: {e}"));
                recoveries() > recovered
            });
            assert_eq!(sorted(&map), before, "{map_type} after: {how}");
            assert_eq!(map.info().unwrap().id, id);
        }
        write(&map, 9);
    }
    let stats = stack.nic.recovery_stats();
    // Reads begin each of them, and nothing was under way.
    assert_eq!(stats.unknown, 0, "{stats:?}");
    assert_eq!(stats.recoveries, 28, "{stats:?}");
    // One of the four ways was the driver's own reset.
    assert_eq!(stats.function_resets, 21, "{stats:?}");
}

#[test]
fn maps_with_keys_are_whole_after_each_kind_of_reset() {
    each_keyed_type(&stack(Inline::new(DeviceConfig::default()).unwrap()));
    each_keyed_type(&stack(Threaded::spawn(DeviceConfig::default()).unwrap()));
}

#[test]
fn queues_and_stacks_keep_their_order_over_resets() {
    let stack = stack(Inline::new(DeviceConfig::default()).unwrap());
    for (map_type, order) in [
        (MapType::QUEUE, [2u32, 3, 5, 6]),
        (MapType::STACK, [6, 5, 3, 2]),
    ] {
        for (how, what) in KILLS.iter().enumerate() {
            let map = stack.map(&attr(map_type, 8, 4), true);
            let mut out = vec![0; 8];
            for n in 1..=3 {
                map.update(&[], &value(&map, n), 0).unwrap();
            }
            if map_type == MapType::QUEUE {
                map.lookup_and_delete(&[], &mut out, 0).unwrap();
                assert_eq!(out, value(&map, 1));
            }
            map.update(&[], &value(&map, 5), 0).unwrap();
            // The stack was full with 1, 2, 3, 5: 1 gives way.
            let exist = if map_type == MapType::STACK { 2 } else { 0 };
            map.update(&[], &value(&map, 6), exist).unwrap();
            kill(&stack.driver, how);
            for n in order {
                map.lookup(&[], &mut [0; 8], 0).unwrap();
                map.lookup_and_delete(&[], &mut out, 0).unwrap();
                assert_eq!(out, value(&map, n), "{map_type} after {}", what);
            }
            let empty = map.lookup_and_delete(&[], &mut out, 0).unwrap_err();
            assert_eq!(empty.errno(), Errno::ENOENT);
        }
    }
}

#[test]
fn removals_by_a_walk_are_not_undone() {
    let stack = stack(Inline::new(DeviceConfig::default()).unwrap());
    let map = stack.map(&attr(MapType::HASH, 24, 64), true);
    write(&map, 1);
    let mut token = vec![0; map.token_bytes()];
    let (mut keys, mut values) = (vec![0; 4 * 16], vec![0; 24 * 16]);
    let done = map.lookup_and_delete_batch(None, &mut token, &mut keys, &mut values, 16, 0, 0);
    assert!(done.count > 0 && done.result.is_ok(), "{done:?}");
    let before = sorted(&map);
    kill(&stack.driver, 0);
    assert_eq!(sorted(&map), before);
    // A walk that was under way goes on with its token.
    let rest = map.lookup_batch(
        Some(&token.clone()),
        &mut token,
        &mut keys,
        &mut values,
        16,
        0,
        0,
    );
    assert!(rest.count > 0, "{rest:?}");
}

#[test]
fn what_cannot_be_restored_is_refused_with_the_reason() {
    let stack = stack(Inline::new(DeviceConfig::default()).unwrap());
    let bloom = MapCreateAttr {
        key_size: 0,
        ..attr(MapType::BLOOM_FILTER, 8, 16)
    };
    let ring = MapCreateAttr {
        key_size: 0,
        ..attr(MapType::RINGBUF, 0, 4096)
    };
    for (attr, says) in [(bloom, "no bound"), (ring, "the device writes")] {
        let error = stack.try_map(&attr, true).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        assert!(error.reason().contains(says), "{error}");
        assert!(error.reason().contains("by its name"), "{error}");
        // By its name the map is exempt.
        stack.map(&named("plain_map", attr), true);
    }
}

#[test]
fn a_recoverable_map_is_no_inner_map() {
    let stack = stack(Inline::new(DeviceConfig::default()).unwrap());
    let inner = stack.map(&attr(MapType::HASH, 8, 16), true);
    let fd = stack
        .system
        .map_create(
            &offmap_bpf::Caller::root(),
            &MapCreateAttr {
                map_ifindex: stack.ifindex.0,
                ..attr(MapType::HASH, 8, 16)
            },
        )
        .unwrap();
    let outer = MapCreateAttr {
        inner_map_fd: fd.0 as u32,
        ..named("plain_outer", attr(MapType::HASH_OF_MAPS, 4, 4))
    };
    let error = stack.try_map(&outer, true).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(error.reason().contains("new handle"), "{error}");
    drop(inner);
}

#[test]
fn journals_have_a_bound_together() {
    let driver = offmap_driver::Driver::bring_up(
        Inline::new(DeviceConfig::default()).unwrap(),
        DriverConfig::default(),
    )
    .unwrap();
    let settings = NicSettings {
        recovery: Recovery {
            maps: offmap_offload::RecoverMaps::all(),
            // A hash entry of 4 and 8 bytes counts 140.
            journal_bytes: 250 * 140,
            ..Recovery::default()
        },
        ..NicSettings::default()
    };
    let nic = OffloadNic::with_settings(driver, Profile::offmap(), settings).unwrap();
    let stack = Stack::over_nic(nic);
    let first = stack.map(&attr(MapType::HASH, 8, 200), true);
    assert_eq!(stack.nic.recovery_stats().journal_bytes, 200 * 140);
    let error = stack
        .try_map(&attr(MapType::HASH, 8, 51), true)
        .unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM);
    for figure in ["7140", "35000", "28000", "journal_bytes"] {
        assert!(error.reason().contains(figure), "{error}");
    }
    let second = stack.map(&attr(MapType::HASH, 8, 50), true);
    drop((first, second));
    soon(|| stack.nic.recovery_stats().journal_bytes == 0);
}

/// Waits for what happens on another thread.
fn soon(mut until: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !until() {
        assert!(started.elapsed().as_secs() < 20, "still not");
        std::thread::yield_now();
    }
}

#[test]
fn a_map_that_did_not_ask_is_enodev_and_its_device_works_again() {
    for (how, what) in KILLS.iter().enumerate() {
        let stack = stack(Threaded::spawn(DeviceConfig::default()).unwrap());
        let plain = stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
        plain.update(&[1; 4], &[1; 8], 0).unwrap();
        kill(&stack.driver, how);
        let mut out = [0; 8];
        // The firmware finds its error when it looks.
        soon(|| plain.lookup(&[1; 4], &mut out, 0).is_err());
        for _ in 0..3 {
            let error = plain.lookup(&[1; 4], &mut out, 0).unwrap_err();
            assert_eq!(error.errno(), Errno::ENODEV, "{}: {error}", what);
        }
        let error = plain.update(&[1; 4], &[2; 8], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{}: {error}", what);
        drop(plain);
        // The failing operation had the device reset.
        let next = stack.map(&named("plain", attr(MapType::HASH, 8, 16)), true);
        next.update(&[1; 4], &[2; 8], 0).unwrap();
        drop(next);
        assert_eq!(stack.nic.failed_frees(), 0);
    }
}

#[test]
fn writers_of_the_same_keys_leave_journal_and_device_in_agreement() {
    let stack = recovering(
        Threaded::spawn(DeviceConfig::default()).unwrap(),
        DriverConfig::default(),
        Some(6),
        Recovery::default(),
    );
    let map = stack.map(&attr(MapType::HASH, 16, 6), true);
    for round in 0..12usize {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..5u32 {
                let (map, stop) = (&map, &stop);
                scope.spawn(move || {
                    let mut n = thread;
                    while !stop.load(Ordering::Relaxed) {
                        n += 5;
                        let key = (n % 8).to_ne_bytes();
                        let done = match n % 3 {
                            0 => map.delete(&key),
                            _ => map.update(&key, &value(map, n), u64::from(n % 4 == 1)),
                        };
                        if let Err(e) = done {
                            // Eight keys and room for six.
                            let known = [Errno::ENOENT, Errno::EEXIST, Errno::E2BIG];
                            assert!(known.contains(&e.errno()), "{e}");
                        }
                    }
                });
            }
            // Once under the writers, so that some outcomes are unknown.
            std::thread::sleep(std::time::Duration::from_millis(5));
            kill(&stack.driver, round);
            std::thread::sleep(std::time::Duration::from_millis(20));
            stop.store(true, Ordering::Relaxed);
        });
        // Not by a walk, whose order a restored map does not keep within a bucket.
        let contents = || {
            (0..8u32).map(|n| {
                let mut out = vec![0; 16];
                match map.lookup(&n.to_ne_bytes(), &mut out, 0) {
                    Ok(()) => Some(out),
                    Err(e) if e.errno() == Errno::ENOENT => None,
                    Err(e) => panic!("lookup: {e}"),
                }
            })
        };
        let device: Vec<_> = contents().collect();
        let before = stack.nic.recovery_stats().recoveries;
        kill(&stack.driver, round);
        soon(|| {
            let again: Vec<_> = contents().collect();
            assert_eq!(again, device, "round {round}: device and journal");
            stack.nic.recovery_stats().recoveries > before
        });
    }
}
