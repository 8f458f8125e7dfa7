//! Threads on one map: values are seen whole, the capacity is exact, removal excludes
//! operations.

mod common;

use common::{FakeDevice, Rng, attr, logged, system};
use offmap_bpf::{Caller, Errno, MapCreateAttr, MapFlags, MapType};
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

/// Some elements stay while others come and go around them, in the same lines and in spare
/// ones: those that stay are found by every lookup and returned by every batch walk, once, and
/// walks end.
#[test]
fn elements_that_stay_are_always_found() {
    const STAY: u32 = 64;
    const ROOM: u32 = 64;
    /// Ends the writers, also when the reader's assertions fail.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    const MAX: u32 = 512;
    for (map_type, flags) in [
        (MapType::HASH, MapFlags::empty()),
        (MapType::HASH, MapFlags::ZERO_SEED),
        (MapType::PERCPU_HASH, MapFlags::ZERO_SEED),
    ] {
        let system = system();
        let attr = MapCreateAttr {
            map_flags: flags.bits(),
            ..attr(map_type, MAX)
        };
        let fd = system.map_create(&Caller::root(), &attr).unwrap();
        let file = system.map_file(fd).unwrap();
        let size = file.value_bytes();
        let value_of = |n: u32| u64::from(n).to_ne_bytes().repeat(size / 8);
        for n in 0..STAY {
            file.update(&n.to_ne_bytes(), &value_of(n), 0).unwrap();
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for part in 1..=2_u32 {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || {
                    let mut rng = Rng(u64::from(part) * 0x5151);
                    while !stop.load(Relaxed) {
                        let n = part << 16 | rng.below(400) as u32;
                        if rng.below(3) == 0 {
                            let _ = file.delete(&n.to_ne_bytes());
                        } else if let Err(error) = file.update(&n.to_ne_bytes(), &value_of(n), 0) {
                            assert_eq!(error.errno(), Errno::E2BIG);
                        }
                        // An update of one that stays, which may move it.
                        let n = rng.below(u64::from(STAY)) as u32;
                        file.update(&n.to_ne_bytes(), &value_of(n), 2).unwrap();
                    }
                });
            }
            let _stop = Stop(&stop);
            let mut value = vec![0; size];
            let (mut keys, mut values) =
                (vec![0; 4 * ROOM as usize], vec![0; size * ROOM as usize]);
            for _ in 0..100 {
                for n in 0..STAY {
                    file.lookup(&n.to_ne_bytes(), &mut value, 0).unwrap();
                    assert_eq!(value, value_of(n), "{map_type}: a foreign or torn value");
                }
                let mut seen = [0; STAY as usize];
                let mut token = [0; 4];
                let mut from = None;
                let mut calls = 0;
                loop {
                    let walked = file.lookup_batch(
                        from.as_ref().map(<[u8; 4]>::as_slice),
                        &mut token,
                        &mut keys,
                        &mut values,
                        ROOM,
                        0,
                        0,
                    );
                    for (key, value) in keys
                        .chunks_exact(4)
                        .zip(values.chunks_exact(size))
                        .take(walked.count as usize)
                    {
                        let n = u32::from_ne_bytes(key.try_into().unwrap());
                        assert_eq!(value, value_of(n), "{map_type}: a foreign or torn value");
                        if let Some(seen) = seen.get_mut(n as usize) {
                            *seen += 1;
                        }
                    }
                    calls += 1;
                    assert!(calls <= MAX, "{map_type}: a batch walk does not end");
                    from = Some(token);
                    match walked.result {
                        Ok(()) => {}
                        Err(error) => {
                            assert_eq!(error.errno(), Errno::ENOENT);
                            break;
                        }
                    }
                }
                assert_eq!(
                    seen, [1; STAY as usize],
                    "{map_type}: a walk's count of each"
                );
                // GET_NEXT_KEY may start over when its key goes away; from a key that stays it
                // gives a key or the end.
                let mut next = [0; 4];
                match file.get_next_key(Some(&0_u32.to_ne_bytes()), &mut next) {
                    Ok(()) => assert_ne!(next, [0; 4], "{map_type}: a key follows itself"),
                    Err(error) => assert_eq!(error.errno(), Errno::ENOENT),
                }
            }
        });
    }
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
