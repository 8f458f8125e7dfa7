//! Threads on one map: values are seen whole, the capacity is exact, removal excludes
//! operations.

mod common;

use common::{FakeDevice, Rng, attr, logged, system};
use offmap_bpf::{Caller, Errno, MapCreateAttr, MapType};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;

#[test]
fn values_are_whole() {
    for map_type in [
        MapType::HASH,
        MapType::ARRAY,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
    ] {
        let system = system();
        let wide = MapCreateAttr {
            value_size: 256,
            ..attr(map_type, 4)
        };
        let fd = system.map_create(&Caller::root(), &wide).unwrap();
        let file = system.map_file(fd).unwrap();
        let size = file.value_bytes();
        let stop = AtomicBool::new(false);
        let hits = AtomicU32::new(0);
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for writer in 0..2_u64 {
                let (file, stop, start) = (&file, &stop, &start);
                scope.spawn(move || {
                    let mut rng = Rng(0x1234 + writer);
                    start.wait();
                    for round in 0..30_000_u32 {
                        let key = (rng.below(6) as u32).to_ne_bytes();
                        if rng.below(8) == 0 {
                            let _ = file.delete(&key);
                        }
                        let _ = file.update(&key, &vec![round as u8; size], 0);
                    }
                    stop.store(true, Relaxed);
                });
            }
            for reader in 0..2_u64 {
                let (file, stop, hits, start) = (&file, &stop, &hits, &start);
                scope.spawn(move || {
                    let mut rng = Rng(0x9876 + reader);
                    start.wait();
                    let mut value = vec![0; size];
                    while !stop.load(Relaxed) || hits.load(Relaxed) == 0 {
                        let key = (rng.below(6) as u32).to_ne_bytes();
                        if file.lookup(&key, &mut value, 0).is_ok() {
                            hits.fetch_add(1, Relaxed);
                            let torn = value.iter().any(|&byte| byte != value[0]);
                            assert!(!torn, "{map_type}: half of an update was seen");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn the_brim_is_exact() {
    const MAX: u32 = 64;
    let system = system();
    let fd = system
        .map_create(&Caller::root(), &attr(MapType::HASH, MAX))
        .unwrap();
    let file = system.map_file(fd).unwrap();
    for _ in 0..50 {
        // Four threads insert distinct keys, more than fit; exactly MAX succeed.
        let stored = AtomicU32::new(0);
        thread::scope(|scope| {
            for part in 0..4_u32 {
                let (file, stored) = (&file, &stored);
                scope.spawn(move || {
                    for n in 0..MAX {
                        let key = (part << 16 | n).to_ne_bytes();
                        match file.update(&key, &[1; 8], 1) {
                            Ok(()) => drop(stored.fetch_add(1, Relaxed)),
                            Err(error) => assert_eq!(error.errno(), Errno::E2BIG),
                        }
                    }
                });
            }
        });
        assert_eq!(stored.load(Relaxed), MAX);
        let (mut keys, mut values) = ([0; 4 * MAX as usize], [0; 8 * MAX as usize]);
        let all =
            file.lookup_and_delete_batch(None, &mut [0; 4], &mut keys, &mut values, MAX, 0, 0);
        assert_eq!(all.count, MAX);
    }
}

#[test]
fn churn_loses_no_slot_and_shows_no_foreign_value() {
    const MAX: u32 = 16;
    let system = system();
    let fd = system
        .map_create(&Caller::root(), &attr(MapType::HASH, MAX))
        .unwrap();
    let file = system.map_file(fd).unwrap();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let file = &file;
            scope.spawn(move || {
                let mut rng = Rng(0xc0ffee + thread);
                let mut value = [0; 8];
                for _ in 0..40_000 {
                    let n = rng.below(40) as u32;
                    let key = n.to_ne_bytes();
                    match rng.below(4) {
                        0 => drop(file.update(&key, &u64::from(n).to_ne_bytes(), 0)),
                        1 => drop(file.delete(&key)),
                        _ => {
                            if file.lookup(&key, &mut value, 0).is_ok() {
                                assert_eq!(u64::from_ne_bytes(value), u64::from(n));
                            }
                        }
                    }
                }
            });
        }
    });
    let mut held = 0;
    for n in 0..40_u32 {
        held += u32::from(file.delete(&n.to_ne_bytes()).is_ok());
    }
    assert!(held <= MAX);
    for n in 0..MAX {
        file.update(&n.to_ne_bytes(), &[0; 8], 1).unwrap();
    }
    assert_eq!(
        file.update(&MAX.to_ne_bytes(), &[0; 8], 0)
            .unwrap_err()
            .errno(),
        Errno::E2BIG
    );
}

#[test]
fn freeze_leaves_no_writer_behind() {
    for _ in 0..200 {
        let system = system();
        let fd = system
            .map_create(&Caller::root(), &attr(MapType::ARRAY, 1))
            .unwrap();
        let file = system.map_file(fd).unwrap();
        thread::scope(|scope| {
            let writer = file.clone();
            scope.spawn(move || {
                let mut round = 0_u64;
                while writer.update(&[0; 4], &round.to_ne_bytes(), 0).is_ok() {
                    round += 1;
                }
            });
            while let Err(error) = file.freeze() {
                assert_eq!(error.errno(), Errno::EBUSY);
            }
            let (mut first, mut later) = ([0; 8], [0; 8]);
            file.lookup(&[0; 4], &mut first, 0).unwrap();
            thread::yield_now();
            file.lookup(&[0; 4], &mut later, 0).unwrap();
            assert_eq!(first, later, "a write came after the freeze");
        });
    }
}

#[test]
fn removal_waits_for_operations_and_frees_once() {
    for _ in 0..50 {
        let system = system();
        let (device, log) = FakeDevice::new();
        let nic = system.register_netdev("nic0", device).unwrap();
        let offloaded = MapCreateAttr {
            map_ifindex: nic.0,
            ..attr(MapType::HASH, 8)
        };
        let fd = system.map_create(&Caller::root(), &offloaded).unwrap();
        let file = system.map_file(fd).unwrap();
        system.close(fd).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| system.unregister_netdev(nic).unwrap());
            scope.spawn(move || {
                for _ in 0..20 {
                    match file.update(&[0; 4], &[0; 8], 0) {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.errno(), Errno::ENODEV),
                    }
                }
            });
        });
        system.flush_frees();
        assert_eq!(logged(&log), ["ALLOC", "FREE"]);
    }
}
