//! Maps of maps on the host: what may be an inner map, which refusal comes first, how long a
//! reference lives. `tests/tests/inner.rs` of the workspace puts the same to the running kernel.

mod common;

use common::{Rng, errno, system};
use offmap_bpf::{Caller, Errno, Fd, MapCreateAttr, MapFile, MapFlags, MapType, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const AM: MapType = MapType::ARRAY_OF_MAPS;
const HM: MapType = MapType::HASH_OF_MAPS;
const BOTH: [MapType; 2] = [AM, HM];

fn outer_attr(map_type: MapType, max_entries: u32, template: Fd) -> MapCreateAttr {
    MapCreateAttr {
        value_size: 4,
        inner_map_fd: template.0 as u32,
        ..common::attr(map_type, max_entries)
    }
}

fn create(system: &Arc<System>, attr: &MapCreateAttr) -> Fd {
    system.map_create(&Caller::root(), attr).unwrap()
}

fn inner(system: &Arc<System>) -> Fd {
    create(system, &common::attr(MapType::ARRAY, 4))
}

fn outer(system: &Arc<System>, map_type: MapType, max_entries: u32) -> Fd {
    let template = inner(system);
    let fd = create(system, &outer_attr(map_type, max_entries, template));
    system.close(template).unwrap();
    fd
}

fn key(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

fn value(fd: Fd) -> [u8; 4] {
    fd.0.to_ne_bytes()
}

fn id_of(system: &System, fd: Fd) -> u32 {
    system.info(fd).unwrap().id
}

fn look(system: &System, fd: Fd, n: u32) -> Result<u32, Errno> {
    let mut v = [0; 4];
    let found = system.lookup(fd, &key(n), &mut v, 0);
    found.map(|()| u32::from_ne_bytes(v)).map_err(|e| e.errno())
}

fn is_listed(system: &System, id: u32) -> bool {
    system.get_next_id(&Caller::root(), id - 1) == Ok(id)
}

#[test]
fn create_asks_in_the_kernels_order() {
    let system = system();
    let (root, nobody) = (Caller::root(), Caller::unprivileged());
    let template = inner(&system);
    for map_type in BOTH {
        let refused = |caller: &Caller, attr: &MapCreateAttr, word: &str| {
            let error = system.map_create(caller, attr).expect_err(word);
            assert!(error.reason().contains(word), "{word}: {}", error.reason());
            error.errno()
        };
        let mut attr = MapCreateAttr {
            value_size: 8,
            map_flags: MapFlags::MMAPABLE.bits(),
            ..outer_attr(map_type, 3, Fd(999))
        };
        assert_eq!(refused(&nobody, &attr, "value_size 8"), Errno::EINVAL);
        attr.value_size = 4;
        assert_eq!(refused(&nobody, &attr, "map_flags"), Errno::EINVAL);
        attr.map_flags = 0;
        assert_eq!(refused(&nobody, &attr, "CAP_BPF"), Errno::EPERM);
        // [run] The template comes before what the allocation itself refuses.
        attr.max_entries = u32::MAX;
        assert_eq!(refused(&root, &attr, "inner_map_fd 999"), Errno::EBADF);
        attr.inner_map_fd = u32::MAX;
        assert_eq!(refused(&root, &attr, "inner_map_fd -1"), Errno::EBADF);
        attr.inner_map_fd = template.0 as u32;
        if map_type == HM {
            assert_eq!(refused(&root, &attr, "max_entries"), Errno::E2BIG);
        }
        attr.max_entries = 3;
        let nested = create(&system, &attr);
        attr.inner_map_fd = nested.0 as u32;
        assert_eq!(refused(&root, &attr, "nest"), Errno::EINVAL);
    }
    let flagged = |map_type, flags: MapFlags| MapCreateAttr {
        map_flags: flags.bits(),
        ..outer_attr(map_type, 3, template)
    };
    for flags in [MapFlags::RDONLY_PROG, MapFlags::WRONLY_PROG] {
        assert_eq!(
            errno(system.map_create(&root, &flagged(AM, flags))),
            Errno::EINVAL
        );
        create(&system, &flagged(HM, flags));
    }
    assert_eq!(
        errno(system.map_create(&root, &flagged(AM, MapFlags::INNER_MAP))),
        Errno::EINVAL
    );
}

#[test]
fn an_update_asks_in_the_kernels_order() {
    let system = system();
    let good = inner(&system);
    let unlike = create(&system, &common::attr(MapType::ARRAY, 5));
    for map_type in BOTH {
        let fd = outer(&system, map_type, 2);
        let update = |n, inner: i32, flags| {
            let done = system.update(fd, &key(n), &inner.to_ne_bytes(), flags);
            done.map_err(|e| e.errno())
        };
        let array = map_type == AM;
        // [run] An array looks at flags and index before the descriptor, a hash table after.
        for flags in [1, 2, 3, 8] {
            let early = if array { Errno::EINVAL } else { Errno::EBADF };
            assert_eq!(update(0, 999, flags), Err(early), "{map_type} {flags}");
        }
        assert_eq!(update(0, 999, 4), Err(Errno::EINVAL), "BPF_F_LOCK");
        assert_eq!(update(0, -1, 0), Err(Errno::EBADF));
        assert_eq!(update(0, fd.0, 0), Err(Errno::EINVAL), "the outer itself");
        assert_eq!(update(0, unlike.0, 0), Err(Errno::EINVAL));
        let error = system
            .update(fd, &key(0), &value(unlike), 0)
            .expect_err("unlike the template");
        assert!(error.reason().contains("max_entries 5"), "{error}");
        assert_eq!(look(&system, fd, 0), Err(Errno::ENOENT));
        if array {
            assert_eq!(update(2, 999, 0), Err(Errno::E2BIG));
        } else {
            assert_eq!(update(0, good.0, 3), Err(Errno::EINVAL));
            assert_eq!(update(0, good.0, 2), Err(Errno::ENOENT));
            assert_eq!(update(0, good.0, 1), Ok(()));
            assert_eq!(update(0, good.0, 1), Err(Errno::EEXIST));
            assert_eq!(update(0, good.0, 2), Ok(()));
        }
        assert_eq!(update(0, good.0, 0), Ok(()));
        assert_eq!(update(1, good.0, 0), Ok(()));
        assert_eq!(look(&system, fd, 1), Ok(id_of(&system, good)));
        assert_eq!(
            update(7, good.0, 0),
            Err(Errno::E2BIG),
            "full, or past the end"
        );
        system.freeze(fd).unwrap();
        assert_eq!(update(0, 999, 8), Err(Errno::EPERM));
    }
}

#[test]
fn a_file_without_descriptors_takes_maps_themselves() {
    let system = system();
    let inner = system.map_file(inner(&system)).unwrap();
    for map_type in BOTH {
        let file = system.map_file(outer(&system, map_type, 2)).unwrap();
        let refused = file.update(&key(0), &[0; 4], 0);
        assert_eq!(errno(refused.clone()), Errno::EBADF);
        assert!(format!("{refused:?}").contains("update_inner"));
        let batch = file.update_batch(&key(0), &[0; 4], 1, 0, 0);
        assert_eq!((batch.count, errno(batch.result)), (0, Errno::EBADF));
        assert_eq!(errno(file.update_inner(&key(9), &file, 8)), Errno::EINVAL);
        file.update_inner(&key(0), &inner, 0).unwrap();
        inner.update(&key(1), &[5; 8], 0).unwrap();
        let found = file.lookup_inner(&key(0)).unwrap();
        let mut v = [0; 8];
        found.lookup(&key(1), &mut v, 0).unwrap();
        assert_eq!(v, [5; 8]);
        assert_eq!(errno(file.lookup_inner(&key(1))), Errno::ENOENT);
        assert_eq!(errno(inner.lookup_inner(&key(0))), Errno::EINVAL);
        assert_eq!(errno(inner.update_inner(&key(0), &file, 0)), Errno::EINVAL);
        let mut v = [0; 4];
        assert_eq!(
            errno(file.lookup_and_delete(&key(0), &mut v, 0)),
            Errno::ENOTSUPP
        );
    }
}

#[test]
fn an_inner_map_lives_as_long_as_something_holds_it() {
    for map_type in BOTH {
        let system = system();
        let root = Caller::root();
        let (a, b) = (outer(&system, map_type, 4), outer(&system, map_type, 4));
        let fresh = |holders: &[(Fd, u32)]| {
            let fd = inner(&system);
            let id = id_of(&system, fd);
            for (outer, n) in holders {
                system.update(*outer, &key(*n), &value(fd), 0).unwrap();
            }
            system.close(fd).unwrap();
            assert_eq!(is_listed(&system, id), !holders.is_empty());
            id
        };
        fresh(&[]);
        // Two holders, and the last of them counts; the descriptor is long gone.
        let id = fresh(&[(a, 0), (b, 3), (a, 1)]);
        let again = system.get_fd_by_id(&root, id, MapFlags::empty()).unwrap();
        system.close(again).unwrap();
        system.delete(a, &key(0)).unwrap();
        let other = fresh(&[(b, 3)]);
        assert!(is_listed(&system, id));
        system.delete(a, &key(1)).unwrap();
        assert!(!is_listed(&system, id), "deleted");
        assert!(is_listed(&system, other));
        fresh(&[(b, 3)]);
        assert!(!is_listed(&system, other), "replaced");
        // A program's reference counts as well.
        let id = fresh(&[(a, 2)]);
        let file = system.map_file(a).unwrap().lookup_inner(&key(2)).unwrap();
        system.delete(a, &key(2)).unwrap();
        assert!(is_listed(&system, id));
        drop(file);
        assert!(!is_listed(&system, id));
        // A batch that deletes drops what it returns.
        if map_type == HM {
            let ids = [fresh(&[(a, 0)]), fresh(&[(a, 1)])];
            let (mut keys, mut values, mut token) = ([0; 16], [0; 16], [0; 4]);
            let done = system.lookup_and_delete_batch(
                a,
                None,
                &mut token,
                &mut keys,
                &mut values,
                4,
                0,
                0,
            );
            assert_eq!((done.count, errno(done.result)), (2, Errno::ENOENT));
            assert!(ids.iter().all(|id| !is_listed(&system, *id)));
        }
        // The outer map's end is its inner maps', from the worker.
        let id = fresh(&[(a, 3), (a, 2)]);
        system.close(a).unwrap();
        system.flush_frees();
        assert!(!is_listed(&system, id));
        let left = fresh(&[(b, 1)]);
        assert!(is_listed(&system, left));
        drop(system);
    }
}

/// Seeded operations on both types and a model: a map from keys to ids.
#[test]
fn random_operations_as_the_model_says() {
    for (map_type, seed) in [(AM, 11), (HM, 12), (AM, 13), (HM, 14)] {
        let system = system();
        let mut rng = Rng(seed);
        let n_max = 24;
        let fd = outer(&system, map_type, n_max);
        let inners: Vec<Fd> = (0..6).map(|_| inner(&system)).collect();
        let mut model = BTreeMap::new();
        for step in 0..20_000 {
            let n = rng.below(u64::from(n_max) * 3 / 2) as u32;
            let with = inners[rng.below(6) as usize];
            let id = id_of(&system, with);
            let past = map_type == AM && n >= n_max;
            match rng.below(6) {
                0..3 => {
                    let done = system.update(fd, &key(n), &value(with), 0);
                    let full = !model.contains_key(&n) && model.len() == n_max as usize;
                    if past || full {
                        assert_eq!(errno(done), Errno::E2BIG);
                    } else {
                        done.unwrap();
                        model.insert(n, id);
                    }
                }
                3 => {
                    let done = system.delete(fd, &key(n));
                    match model.remove(&n) {
                        Some(_) => done.unwrap(),
                        None if past => assert_eq!(errno(done), Errno::E2BIG),
                        None => assert_eq!(errno(done), Errno::ENOENT),
                    }
                }
                4 => {
                    let expected = model.get(&n).copied().ok_or(Errno::ENOENT);
                    assert_eq!(look(&system, fd, n), expected, "step {step}");
                }
                _ => assert_eq!(walk(&system, fd, 1 + rng.below(9) as u32), model),
            }
        }
        for n in 0..n_max {
            if model.remove(&n).is_some() {
                system.delete(fd, &key(n)).unwrap();
            }
        }
    }
}

fn walk(system: &System, fd: Fd, mut count: u32) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    let mut token: Option<[u8; 4]> = None;
    loop {
        let (mut keys, mut values) = (vec![0; 4 * count as usize], vec![0; 4 * count as usize]);
        let mut out = token.unwrap_or_default();
        let from = token.as_ref().map(<[u8; 4]>::as_slice);
        let done = system.lookup_batch(fd, from, &mut out, &mut keys, &mut values, count, 0, 0);
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        for i in 0..done.count as usize {
            let at = 4 * i..4 * i + 4;
            let before = found.insert(word(&keys[at.clone()]), word(&values[at]));
            assert!(before.is_none());
        }
        token = Some(out);
        match done.result.map_err(|e| e.errno()) {
            Ok(()) => {}
            Err(Errno::ENOSPC) => count *= 2,
            Err(Errno::ENOENT) => return found,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Readers go through the outer map while inner maps are swapped, dropped and made anew: what
/// they find is always a whole map that belongs under its key, and nothing is left at the end.
#[test]
fn lookups_while_inner_maps_come_and_go() {
    for map_type in BOTH {
        let system = system();
        let fd = outer(&system, map_type, 8);
        let outer = system.map_file(fd).unwrap();
        let (stop, found) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (outer, stop, found) = (outer.clone(), &stop, &found);
                scope.spawn(move || read_until(&outer, stop, found, seed + 1));
            }
            let writers: Vec<_> = (0..2)
                .map(|seed| {
                    let (system, outer, found) = (&system, outer.clone(), &found);
                    scope.spawn(move || write_inner_maps(system, &outer, found, seed + 5))
                })
                .collect();
            let wrote: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            stop.store(true, Relaxed);
            assert!(wrote.iter().all(Result::is_ok), "a writer failed");
        });
        drop(outer);
        system.close(fd).unwrap();
        system.flush_frees();
        let left = system.get_next_id(&Caller::root(), 0);
        assert_eq!(errno(left), Errno::ENOENT, "a map leaked");
    }
}

fn read_until(outer: &MapFile, stop: &AtomicBool, found: &AtomicU64, seed: u64) {
    let mut rng = Rng(seed);
    while !stop.load(Relaxed) {
        let n = rng.below(8) as u32;
        let mut v = [0; 4];
        if let Ok(inner) = outer.lookup_inner(&key(n)) {
            let mut stored = [0; 8];
            inner.lookup(&key(0), &mut stored, 0).unwrap();
            assert_eq!(stored, u64::from(n).to_ne_bytes(), "the map of another key");
            found.fetch_add(1, Relaxed);
        }
        match outer.lookup(&key(n), &mut v, 0) {
            Ok(()) => assert_ne!(v, [0; 4], "an id"),
            Err(error) => assert_eq!(error.errno(), Errno::ENOENT),
        }
    }
}

/// Goes on until readers, who may get no processor for a while, have seen enough of it.
fn write_inner_maps(system: &Arc<System>, outer: &MapFile, found: &AtomicU64, seed: u64) {
    let (mut rng, started) = (Rng(seed), Instant::now());
    for round in 0.. {
        if round >= 5_000 && found.load(Relaxed) >= 10_000 {
            return;
        }
        assert!(started.elapsed().as_secs() < 60, "readers find nothing");
        let n = rng.below(8) as u32;
        if rng.below(4) == 0 {
            let done = outer.delete(&key(n)).map_err(|e| e.errno());
            assert!(matches!(done, Ok(()) | Err(Errno::ENOENT)), "{done:?}");
        } else {
            let fd = inner(system);
            system
                .update(fd, &key(0), &u64::from(n).to_ne_bytes(), 0)
                .unwrap();
            let inner = system.map_file(fd).unwrap();
            system.close(fd).unwrap();
            outer.update_inner(&key(n), &inner, 0).unwrap();
        }
    }
}
