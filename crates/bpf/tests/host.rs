//! Host maps: errors in order (contract §E, §F), batches, and a random differential against a
//! model.

mod common;

use common::{Rng, attr, errno, system};
use offmap_bpf::{Caller, Errno, Fd, MapCreateAttr, MapFlags, MapType, System};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn make(system: &Arc<System>, map_type: MapType, max_entries: u32, flags: MapFlags) -> Fd {
    let attr = MapCreateAttr {
        map_flags: flags.bits(),
        ..attr(map_type, max_entries)
    };
    system.map_create(&Caller::root(), &attr).unwrap()
}

fn key(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

#[test]
fn descriptors_and_modes_come_first() {
    let system = system();
    let mut v = [0; 8];
    let (k, mut next) = (key(1), key(0));
    // [run] on 6.18: a lookup's flags are looked at before its descriptor; an update's after.
    assert_eq!(errno(system.lookup(Fd(-1), &k, &mut v, 8)), Errno::EINVAL);
    assert_eq!(errno(system.lookup(Fd(-1), &k, &mut v, 4)), Errno::EBADF);
    assert_eq!(errno(system.update(Fd(-1), &k, &v, 8)), Errno::EBADF);
    assert_eq!(errno(system.info(Fd(-1))), Errno::EBADFD);
    let wo = make(&system, MapType::HASH, 4, MapFlags::WRONLY);
    let ro = make(&system, MapType::HASH, 4, MapFlags::RDONLY);
    assert_eq!(errno(system.lookup(wo, &k, &mut v, 0)), Errno::EPERM);
    assert_eq!(errno(system.lookup(wo, &k, &mut v, 4)), Errno::EPERM);
    assert_eq!(errno(system.lookup(wo, &k, &mut v, 8)), Errno::EINVAL);
    assert_eq!(
        errno(system.get_next_key(wo, None, &mut next)),
        Errno::EPERM
    );
    assert_eq!(
        errno(system.lookup_and_delete(wo, &k, &mut v, 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(system.lookup_and_delete(ro, &k, &mut v, 0)),
        Errno::EPERM
    );
    system.update(wo, &k, &v, 0).unwrap();
    assert_eq!(errno(system.update(ro, &k, &v, 8)), Errno::EPERM);
    assert_eq!(errno(system.delete(ro, &k)), Errno::EPERM);
    assert_eq!(errno(system.freeze(ro)), Errno::EPERM);
    assert_eq!(errno(system.lookup(ro, &k, &mut v, 0)), Errno::ENOENT);
    system.freeze(wo).unwrap();
    assert_eq!(errno(system.freeze(wo)), Errno::EPERM);
    assert!(system.info(wo).unwrap().frozen);
    // Lengths before everything, with both of them in the reason.
    let error = system.update(ro, &k[..3], &v, 8).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    assert!(error.reason().contains('3') && error.reason().contains('4'));
    assert_eq!(errno(system.lookup(wo, &k, &mut v[..7], 0)), Errno::EFAULT);
    let short = system.lookup_batch(wo, None, &mut [0; 4], &mut [0; 8], &mut [0; 8], 2, 9, 9);
    assert_eq!(errno(short.result), Errno::EFAULT);
}

#[test]
fn ids_by_caller() {
    let system = system();
    let (root, nobody) = (Caller::root(), Caller::unprivileged());
    assert_eq!(
        errno(system.get_next_id(&nobody, 0x7fff_ffff)),
        Errno::EINVAL
    );
    assert_eq!(errno(system.get_next_id(&nobody, 0)), Errno::EPERM);
    assert_eq!(errno(system.get_next_id(&root, 0x7fff_fffe)), Errno::ENOENT);
    assert_eq!(
        errno(system.get_fd_by_id(&nobody, 1, MapFlags::NO_PREALLOC)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(system.get_fd_by_id(&nobody, 1, MapFlags::empty())),
        Errno::EPERM
    );
    let both = MapFlags::RDONLY | MapFlags::WRONLY;
    assert_eq!(errno(system.get_fd_by_id(&root, 1, both)), Errno::EINVAL);
    assert_eq!(
        errno(system.get_fd_by_id(&root, 0, MapFlags::empty())),
        Errno::ENOENT
    );
}

#[test]
fn hash_table_of_the_contract() {
    let system = system();
    let fd = make(&system, MapType::HASH, 2, MapFlags::empty());
    let (mut v, mut next) = ([7; 8], key(9));
    assert_eq!(
        errno(system.get_next_key(fd, None, &mut next)),
        Errno::ENOENT
    );
    assert_eq!(errno(system.lookup(fd, &key(0), &mut v, 0)), Errno::ENOENT);
    assert_eq!(errno(system.delete(fd, &key(0))), Errno::ENOENT);
    assert_eq!(errno(system.update(fd, &key(0), &v, 2)), Errno::ENOENT);
    system.update(fd, &key(0), &v, 1).unwrap();
    assert_eq!(errno(system.update(fd, &key(0), &v, 1)), Errno::EEXIST);
    system.update(fd, &key(1), &v, 0).unwrap();
    assert_eq!(errno(system.update(fd, &key(2), &v, 0)), Errno::E2BIG);
    assert_eq!(errno(system.update(fd, &key(2), &v, 1)), Errno::E2BIG);
    assert_eq!(errno(system.update(fd, &key(2), &v, 2)), Errno::ENOENT);
    system.update(fd, &key(1), &[8; 8], 0).unwrap();
    for flags in [3, 4, 5, 8, 1 << 32] {
        assert_eq!(errno(system.update(fd, &key(1), &v, flags)), Errno::EINVAL);
    }
    system.lookup_and_delete(fd, &key(1), &mut v, 0).unwrap();
    assert_eq!(v, [8; 8]);
    assert_eq!(
        errno(system.lookup_and_delete(fd, &key(1), &mut v, 0)),
        Errno::ENOENT
    );
    assert_eq!(
        errno(system.lookup_and_delete(fd, &key(1), &mut v, 4)),
        Errno::EINVAL
    );
    system.update(fd, &key(2), &v, 0).unwrap();
}

#[test]
fn array_table_of_the_contract() {
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        let system = system();
        let fd = make(&system, map_type, 2, MapFlags::empty());
        let size = system.map_file(fd).unwrap().value_bytes();
        let (mut v, mut next) = (vec![7; size], key(9));
        system.lookup(fd, &key(0), &mut v, 0).unwrap();
        assert!(v.iter().all(|&byte| byte == 0), "elements start as zeroes");
        for (from, to) in [
            (None, 0),
            (Some(key(0)), 1),
            (Some(key(2)), 0),
            (Some(key(!0)), 0),
        ] {
            let from = from.as_ref().map(|key| &key[..]);
            system.get_next_key(fd, from, &mut next).unwrap();
            assert_eq!(next, key(to));
        }
        assert_eq!(
            errno(system.get_next_key(fd, Some(&key(1)), &mut next)),
            Errno::ENOENT
        );
        assert_eq!(errno(system.lookup(fd, &key(2), &mut v, 0)), Errno::ENOENT);
        assert_eq!(errno(system.lookup(fd, &key(2), &mut v, 4)), Errno::EINVAL);
        assert_eq!(errno(system.update(fd, &key(2), &v, 3)), Errno::EINVAL);
        for flags in 0..3 {
            assert_eq!(errno(system.update(fd, &key(2), &v, flags)), Errno::E2BIG);
        }
        assert_eq!(errno(system.update(fd, &key(1), &v, 1)), Errno::EEXIST);
        system.update(fd, &key(1), &v, 2).unwrap();
        assert_eq!(errno(system.delete(fd, &key(0))), Errno::EINVAL);
        assert_eq!(errno(system.delete(fd, &key(9))), Errno::EINVAL);
        assert_eq!(
            errno(system.lookup_and_delete(fd, &key(0), &mut v, 0)),
            Errno::ENOTSUPP
        );
        let deleted = system.delete_batch(fd, &key(0), 1, 8, 0);
        assert_eq!(errno(deleted.result), Errno::ENOTSUPP);
    }
}

/// What a call finds in `out_batch`.
const UNTOUCHED: &[u8; 4] = b"\xa5\x5a\xa5\x5a";

#[test]
fn array_batches() {
    let system = system();
    let fd = make(&system, MapType::ARRAY, 4, MapFlags::empty());
    let keys: Vec<u8> = [1, 9, 2].into_iter().flat_map(key).collect();
    let outcome = system.update_batch(fd, &keys, &[5; 24], 3, 0, 1);
    assert_eq!((outcome.count, errno(outcome.result)), (1, Errno::E2BIG));
    let walk = |token: Option<u32>, count: u32| {
        let token = token.map(u32::to_ne_bytes);
        let token = token.as_ref().map(<[u8; 4]>::as_slice);
        let mut next = *UNTOUCHED;
        let (mut keys, mut values) = (vec![0; 4 * count as usize], vec![0; 8 * count as usize]);
        let outcome =
            system.lookup_batch(fd, token, &mut next, &mut keys, &mut values, count, 0, 1);
        (
            outcome.count,
            u32::from_ne_bytes(next),
            outcome.result.err().map(|e| e.errno()),
            keys,
        )
    };
    // [run] on 6.18.
    assert_eq!(walk(None, 4).0, 4);
    assert_eq!(walk(None, 4).2, None);
    assert_eq!(walk(Some(99), 1), (1, 0, None, key(0).to_vec()));
    let (count, token, error, _) = walk(Some(2), 4);
    assert_eq!((count, token, error), (1, 3, Some(Errno::ENOENT)));
    // A call that returns nothing leaves the caller's token.
    let untouched = u32::from_ne_bytes(*UNTOUCHED);
    let (count, token, error, _) = walk(Some(3), 4);
    assert_eq!((count, token, error), (0, untouched, Some(Errno::ENOENT)));
    assert_eq!(walk(None, 0), (0, untouched, None, vec![]));
}

#[test]
fn hash_batches_return_whole_buckets() {
    let seed = 0x5eed_0001;
    let mut rng = Rng(seed);
    for map_type in [MapType::HASH, MapType::PERCPU_HASH] {
        let system = system();
        let fd = make(&system, map_type, 256, MapFlags::empty());
        let size = system.map_file(fd).unwrap().value_bytes();
        let mut expected = BTreeSet::new();
        for n in 0..256_u32 {
            system.update(fd, &key(n), &vec![n as u8; size], 0).unwrap();
            expected.insert(key(n));
        }
        let flags = system.lookup_batch(fd, None, &mut [0; 4], &mut [], &mut [], 0, 0, 1);
        assert_eq!(errno(flags.result), Errno::EINVAL);
        let (mut keys, mut values) = ([0; 4], vec![0; size]);
        let (past, mut next) = (256_u32.to_ne_bytes(), *UNTOUCHED);
        let past = system.lookup_batch(fd, Some(&past), &mut next, &mut keys, &mut values, 1, 0, 0);
        assert_eq!((past.count, errno(past.result)), (0, Errno::ENOENT));
        assert_eq!(next, *UNTOUCHED);
        for length in [0, 3, 5] {
            let token = vec![0; length];
            let (k, v) = (&mut keys, &mut values);
            let taken = system.lookup_batch(fd, Some(&token), &mut next, k, v, 1, 0, 0);
            assert_eq!(errno(taken.result), Errno::EFAULT);
            let given = system.lookup_batch(fd, None, &mut token.clone(), k, v, 1, 0, 0);
            assert_eq!(errno(given.result), Errno::EFAULT);
        }
        for delete in [false, true] {
            let (mut token, mut seen, mut too_small) = (None::<[u8; 4]>, BTreeSet::new(), 0);
            let mut room = 1;
            loop {
                let (mut keys, mut values) = (vec![0; 4 * room], vec![0; size * room]);
                let (k, v, count) = (&mut keys, &mut values, room as u32);
                let from = token.as_ref().map(<[u8; 4]>::as_slice);
                let mut next = *UNTOUCHED;
                let outcome = if delete {
                    system.lookup_and_delete_batch(fd, from, &mut next, k, v, count, 0, 0)
                } else {
                    system.lookup_batch(fd, from, &mut next, k, v, count, 0, 0)
                };
                let bucket = u32::from_ne_bytes(next);
                assert!(bucket <= 256, "written whatever the result");
                let done = outcome.count as usize;
                for (k, v) in keys.chunks(4).zip(values.chunks(size)).take(done) {
                    assert!(v.iter().all(|&byte| byte == k[0]));
                    let k = <[u8; 4]>::try_from(k).unwrap();
                    assert!(seen.insert(k), "twice, seed {seed:#x}");
                }
                match outcome.result.map_err(|error| error.errno()) {
                    Ok(()) => room = 1 + rng.below(3) as usize,
                    Err(Errno::ENOSPC) => {
                        assert_eq!(done, 0);
                        assert!(bucket >= token.map_or(0, u32::from_ne_bytes));
                        too_small += 1;
                        room *= 2;
                    }
                    Err(error) => {
                        assert_eq!((error, bucket), (Errno::ENOENT, 256));
                        break;
                    }
                }
                token = Some(next);
            }
            assert_eq!(seen, expected);
            assert!(too_small > 0, "no bucket of two in 256 keys");
        }
        assert_eq!(
            errno(system.get_next_key(fd, None, &mut keys)),
            Errno::ENOENT
        );
    }
}

#[test]
fn zero_seed_iterates_alike_and_others_do_not() {
    let system = system();
    let order = |flags| {
        let fd = make(&system, MapType::HASH, 64, flags);
        for n in 0..64 {
            system.update(fd, &key(n), &[0; 8], 0).unwrap();
        }
        let mut order = vec![];
        let mut next = key(0);
        let mut result = system.get_next_key(fd, None, &mut next);
        while result.is_ok() {
            order.push(next);
            let current = next;
            result = system.get_next_key(fd, Some(&current), &mut next);
        }
        order
    };
    assert_eq!(order(MapFlags::ZERO_SEED), order(MapFlags::ZERO_SEED));
    assert_ne!(order(MapFlags::empty()), order(MapFlags::empty()));
}

#[test]
fn percpu_padding_comes_back_as_it_went() {
    // [run] on 6.18: all of round_up(value_size, 8) is kept.
    let system = system();
    for map_type in [MapType::PERCPU_HASH, MapType::PERCPU_ARRAY] {
        let attr = MapCreateAttr {
            value_size: 5,
            ..attr(map_type, 4)
        };
        let fd = system.map_create(&Caller::root(), &attr).unwrap();
        let given: Vec<u8> = (1..=16).collect();
        system.update(fd, &key(1), &given, 0).unwrap();
        let mut got = [0; 16];
        system.lookup(fd, &key(1), &mut got, 0).unwrap();
        assert_eq!(got[..], given);
    }
}

#[test]
fn random_operations_agree_with_a_model() {
    let shapes = [
        (1, 1, 1),
        (3, 5, 7),
        (4, 8, 16),
        (8, 64, 33),
        (13, 100, 64),
        (64, 3, 20),
    ];
    for (round, (key_size, value_size, max)) in shapes.into_iter().enumerate() {
        for (map_type, flags) in [
            (MapType::HASH, 0),
            (MapType::HASH, 1),
            (MapType::PERCPU_HASH, 0),
        ] {
            let seed = 0x0ff_a000 + round as u64;
            let mut rng = Rng(seed);
            let system = system();
            let attr = MapCreateAttr {
                key_size,
                value_size,
                map_flags: flags,
                ..attr(map_type, max)
            };
            let fd = system.map_create(&Caller::root(), &attr).unwrap();
            let file = system.map_file(fd).unwrap();
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let mut value = vec![0; file.value_bytes()];
            for step in 0..20_000 {
                let mut k = vec![0xa5; key_size as usize];
                k[key_size as usize - 1] = rng.below(u64::from(max) * 2) as u8;
                let present = model.contains_key(&k);
                let new: Vec<u8> = (0..value.len()).map(|_| rng.next() as u8).collect();
                let at = format!("seed {seed:#x}, {map_type}, step {step}");
                match rng.below(10) {
                    0..4 => {
                        let f = rng.below(3);
                        let expected = match f {
                            1 if present => Err(Errno::EEXIST),
                            2 if !present => Err(Errno::ENOENT),
                            _ if !present && model.len() == max as usize => Err(Errno::E2BIG),
                            _ => Ok(()),
                        };
                        let got = file.update(&k, &new, f).map_err(|e| e.errno());
                        assert_eq!(got, expected, "{at}");
                        if got.is_ok() {
                            model.insert(k, new);
                        }
                    }
                    4..6 => {
                        let got = file.delete(&k).map_err(|e| e.errno());
                        assert_eq!(got, model.remove(&k).map(drop).ok_or(Errno::ENOENT), "{at}");
                    }
                    6 => {
                        let got = file.lookup_and_delete(&k, &mut value, 0);
                        let expected = model.remove(&k);
                        assert_eq!(got.is_ok().then(|| value.clone()), expected, "{at}");
                    }
                    7 if step % 50 == 0 => {
                        let mut seen = BTreeSet::new();
                        let mut next = vec![0; key_size as usize];
                        let mut result = file.get_next_key(None, &mut next);
                        while result.is_ok() {
                            assert!(seen.insert(next.clone()), "{at}");
                            let current = next.clone();
                            result = file.get_next_key(Some(&current), &mut next);
                        }
                        assert!(seen.iter().eq(model.keys()), "{at}");
                    }
                    _ => {
                        let got = file.lookup(&k, &mut value, 0);
                        let got = got.is_ok().then_some(&value);
                        assert_eq!(got, model.get(&k), "{at}");
                    }
                }
            }
        }
    }
}

#[test]
fn ten_million_entries_cost_what_they_hold() {
    let system = system();
    let fd = make(&system, MapType::HASH, 10_000_000, MapFlags::empty());
    let mut v = [0; 8];
    for n in 0..1000 {
        system.update(fd, &key(n), &[n as u8; 8], 1).unwrap();
    }
    for n in 0..1000 {
        system.lookup(fd, &key(n), &mut v, 0).unwrap();
        assert_eq!(v, [n as u8; 8]);
    }
}
