//! §E: hash maps, arrays, the order of checks, and batches, on the host.

use super::*;
use offmap_bpf::command as c;
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, MapFlags};
use offmap_tests::contract::u32_of;
use std::collections::BTreeSet;

fn put(m: &mut dyn Machine, fd: i32, n: u32, to: u64, flags: u64) -> Result<(), i32> {
    m.update(fd, &key(n), &value(to), flags)
}

fn got(m: &mut dyn Machine, fd: i32, n: u32) -> Result<Vec<u8>, i32> {
    m.lookup(fd, &key(n), 8, 0)
}

fn next(m: &mut dyn Machine, fd: i32, after: Option<u32>) -> Result<u32, i32> {
    let after = after.map(key);
    let found = m.next(fd, after.as_ref().map(|k| &k[..]), 4)?;
    Ok(u32_of(&found))
}

fn filled(m: &mut dyn Machine, map_type: MapType, n: u32) -> i32 {
    let fd = m.map(&attr(map_type, n));
    for i in 0..n {
        put(m, fd, i, 100 + u64::from(i), BPF_ANY).unwrap();
    }
    fd
}

fn walk(m: &mut dyn Machine, fd: i32) -> Vec<u32> {
    let (mut keys, mut at) = (Vec::new(), None);
    while let Ok(n) = next(m, fd, at) {
        keys.push(n);
        at = Some(n);
    }
    keys
}

fn refused(m: &mut dyn Machine, attr: &MapCreateAttr) -> Option<i32> {
    m.create(attr).err()
}

#[test]
fn e_hash_01_get_next_of_null_or_a_missing_key_is_the_first() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 8);
        let first = next(m, fd, None).unwrap();
        assert_eq!(next(m, fd, Some(77)), Ok(first), "{}", m.name());
        let keys = walk(m, fd);
        assert_eq!(keys[0], first);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 8);
        assert_eq!(next(m, fd, keys.last().copied()), Err(ENOENT));
    });
}

#[test]
fn e_hash_02_a_walk_whose_key_went_restarts() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 8);
        let keys = walk(m, fd);
        m.delete(fd, &key(keys[4])).unwrap();
        assert_eq!(next(m, fd, Some(keys[4])), Ok(keys[0]), "{}", m.name());
    });
}

#[test]
fn e_hash_03_no_size_is_0() {
    on_hosts(|m| {
        for zero in 0..3 {
            let mut a = attr(HASH, 4);
            *[&mut a.key_size, &mut a.value_size, &mut a.max_entries][zero] = 0;
            assert_eq!(refused(m, &a), Some(EINVAL), "{} {zero}", m.name());
        }
    });
}

#[test]
fn e_hash_04_keys_longer_than_the_bpf_stack() {
    on_hosts(|m| {
        let fd = m.map(&MapCreateAttr {
            key_size: 4000,
            ..attr(HASH, 4)
        });
        let (a, mut b) = ([7; 4000], [7; 4000]);
        b[3999] = 8;
        m.update(fd, &a, &value(1), 0).unwrap();
        m.update(fd, &b, &value(2), 0).unwrap();
        assert_eq!(m.lookup(fd, &a, 8, 0), Ok(value(1).to_vec()));
        assert_eq!(m.lookup(fd, &b, 8, 0), Ok(value(2).to_vec()));
    });
}

#[test]
fn e_hash_05_sizes_too_big() {
    on_hosts(|m| {
        for (key_size, value_size, max_entries) in [
            (4, 16 << 20, 4),
            (4, 1 << 31, 4),
            (u32::MAX, 8, 4),
            (u32::MAX, u32::MAX, 4),
            (4, 8, 1 << 31),
            (4, 8, u32::MAX),
        ] {
            let a = MapCreateAttr {
                key_size,
                value_size,
                max_entries,
                ..attr(HASH, 4)
            };
            assert_eq!(refused(m, &a), Some(E2BIG), "{} {a:?}", m.name());
        }
    });
}

#[test]
fn e_hash_06_full() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 2);
        assert_eq!(put(m, fd, 2, 1, BPF_ANY), Err(E2BIG), "{}", m.name());
        assert_eq!(put(m, fd, 2, 1, BPF_NOEXIST), Err(E2BIG));
        assert_eq!(put(m, fd, 2, 1, BPF_EXIST), Err(ENOENT));
        for flags in [BPF_ANY, BPF_EXIST] {
            assert_eq!(put(m, fd, 1, 50 + flags, flags), Ok(()));
            assert_eq!(got(m, fd, 1), Ok(value(50 + flags).to_vec()));
        }
    });
}

#[test]
fn e_hash_07_update_flags() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 2);
        for flags in [3, 8, 16, 1 << 32, !BPF_F_LOCK] {
            assert_eq!(put(m, fd, 0, 1, flags), Err(EINVAL), "{} {flags}", m.name());
        }
        assert_eq!(put(m, fd, 0, 1, BPF_F_LOCK), Err(EINVAL));
        assert_eq!(put(m, fd, 0, 1, BPF_NOEXIST), Err(EEXIST));
        assert_eq!(put(m, fd, 9, 1, BPF_EXIST), Err(ENOENT));
        assert_eq!(got(m, fd, 0), Ok(value(100).to_vec()));
    });
}

#[test]
fn e_hash_08_zero_seed_makes_two_maps_iterate_alike() {
    on_hosts(|m| {
        let a = MapCreateAttr {
            map_flags: MapFlags::ZERO_SEED.bits(),
            ..attr(HASH, 512)
        };
        let (x, y) = (m.map(&a), m.map(&a));
        for fd in [x, y] {
            for n in 0..400 {
                put(m, fd, n * 7, 1, 0).unwrap();
            }
        }
        let order = walk(m, x);
        assert_eq!(order.len(), 400);
        assert_eq!(walk(m, y), order, "{}", m.name());
    });
    let mut ours = Ours::host();
    ours.caller =
        offmap_bpf::Caller::unprivileged().with_capabilities(offmap_bpf::Capabilities::BPF);
    let a = MapCreateAttr {
        map_flags: MapFlags::ZERO_SEED.bits(),
        ..attr(HASH, 4)
    };
    assert_eq!(ours.create(&a), Err(EPERM));
    assert!(ours.reason.contains("CAP_SYS_ADMIN"), "{}", ours.reason);
}

#[test]
fn e_hash_09_flags_at_creation() {
    on_hosts(|m| {
        for flags in [
            MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG,
            MapFlags::MMAPABLE,
            MapFlags::NO_COMMON_LRU,
        ] {
            let a = MapCreateAttr {
                map_flags: flags.bits(),
                ..attr(HASH, 4)
            };
            assert_eq!(refused(m, &a), Some(EINVAL), "{} {flags:?}", m.name());
        }
    });
}

#[test]
fn e_array_01_sizes() {
    on_hosts(|m| {
        for key_size in [0, 1, 3, 5, 8, u32::MAX] {
            let a = MapCreateAttr {
                key_size,
                ..attr(ARRAY, 4)
            };
            assert_eq!(refused(m, &a), Some(EINVAL), "{} {key_size}", m.name());
        }
        for value_size in [1 << 31, u32::MAX] {
            let a = MapCreateAttr {
                value_size,
                ..attr(ARRAY, 4)
            };
            assert_eq!(refused(m, &a), Some(E2BIG), "{} {value_size}", m.name());
        }
        let a = MapCreateAttr {
            map_flags: MapFlags::NO_PREALLOC.bits(),
            ..attr(ARRAY, 4)
        };
        assert_eq!(refused(m, &a), Some(EINVAL));
    });
}

#[test]
fn e_array_02_out_of_range() {
    on_hosts(|m| {
        let fd = filled(m, ARRAY, 4);
        for n in [4, 5, 1 << 31, u32::MAX] {
            assert_eq!(got(m, fd, n), Err(ENOENT), "{} {n}", m.name());
            for flags in [BPF_ANY, BPF_NOEXIST, BPF_EXIST] {
                assert_eq!(put(m, fd, n, 1, flags), Err(E2BIG), "{} {n}", m.name());
            }
        }
        for n in [0, 3, 4] {
            assert_eq!(m.delete(fd, &key(n)), Err(EINVAL), "{} {n}", m.name());
        }
        assert_eq!(got(m, fd, 0), Ok(value(100).to_vec()));
    });
}

#[test]
fn e_array_03_bad_flags_beat_out_of_range() {
    on_hosts(|m| {
        let fd = filled(m, ARRAY, 4);
        for flags in [3, 8, BPF_F_LOCK] {
            assert_eq!(put(m, fd, 9, 1, flags), Err(EINVAL), "{} {flags}", m.name());
        }
        assert_eq!(put(m, fd, 0, 1, BPF_NOEXIST), Err(EEXIST));
    });
}

#[test]
fn e_array_04_get_next() {
    on_hosts(|m| {
        let fd = m.map(&attr(ARRAY, 4));
        assert_eq!(next(m, fd, None), Ok(0));
        assert_eq!(next(m, fd, Some(4)), Ok(0), "{}", m.name());
        assert_eq!(next(m, fd, Some(u32::MAX)), Ok(0));
        assert_eq!(next(m, fd, Some(2)), Ok(3));
        assert_eq!(next(m, fd, Some(3)), Err(ENOENT));
    });
}

#[test]
fn e_array_05_lookup_and_delete() {
    on_hosts(|m| {
        let fd = filled(m, ARRAY, 4);
        for n in [0, 9] {
            assert_eq!(m.take(fd, &key(n), 8, 0), Err(ENOTSUPP), "{}", m.name());
            assert_eq!(m.take(fd, &key(n), 8, 3), Err(EINVAL));
        }
    });
}

#[test]
fn e_order_01_the_descriptor_then_the_mode_then_flags_then_the_key() {
    on_hosts(|m| {
        let not_a_map = m.btf(&fields::plain().0).unwrap();
        let read_only = m.map(&MapCreateAttr {
            map_flags: MapFlags::RDONLY.bits(),
            ..attr(HASH, 4)
        });
        let fd = m.map(&attr(HASH, 4));
        let update = |m: &mut dyn Machine, fd, key, value, flags| {
            m.element(c::MAP_UPDATE_ELEM, fd, key, value, flags)
        };
        let (k, v) = (m.key_at(&key(0)), m.value_at());
        // Everything is wrong; one after the other is mended.
        assert_eq!(update(m, -1, 1, 1, BPF_F_LOCK), Err(EBADF), "{}", m.name());
        assert_eq!(update(m, not_a_map, 1, 1, BPF_F_LOCK), Err(EINVAL));
        assert_eq!(update(m, read_only, 1, 1, BPF_F_LOCK), Err(EPERM));
        assert_eq!(update(m, fd, 1, 1, BPF_F_LOCK), Err(EINVAL));
        assert_eq!(update(m, fd, 1, 1, BPF_EXIST), Err(EFAULT));
        assert_eq!(update(m, fd, k, 1, BPF_EXIST), Err(EFAULT));
        assert_eq!(update(m, fd, k, v, BPF_EXIST), Err(ENOENT));
        assert_eq!(update(m, fd, k, v, BPF_ANY), Ok(()));
    });
}

#[test]
fn e_order_02_output_pointers_come_last() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 2);
        let (there, missing) = (key(0), key(9));
        for (k, errno) in [(there, EFAULT), (missing, ENOENT)] {
            let k = m.key_at(&k);
            for number in [c::MAP_LOOKUP_ELEM, c::MAP_LOOKUP_AND_DELETE_ELEM] {
                assert_eq!(m.element(number, fd, k, 1, 0), Err(errno), "{}", m.name());
            }
        }
        // What was to be returned is gone.
        assert_eq!(got(m, fd, 0), Err(ENOENT), "{}", m.name());
        let last = *walk(m, fd).last().unwrap();
        assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, 0, 1, 0), Err(EFAULT));
        let k = m.key_at(&key(last));
        assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, k, 1, 0), Err(ENOENT));
    });
}

#[test]
fn e_order_03_frozen_and_bad_flags() {
    on_hosts(|m| {
        for map_type in [HASH, ARRAY] {
            let fd = filled(m, map_type, 2);
            m.freeze(fd).unwrap();
            for flags in [0, 3, BPF_F_LOCK, u64::MAX] {
                assert_eq!(put(m, fd, 0, 1, flags), Err(EPERM), "{} {flags}", m.name());
            }
        }
    });
}

const WALKS: [u32; 2] = [c::MAP_LOOKUP_BATCH, c::MAP_LOOKUP_AND_DELETE_BATCH];

#[test]
fn e_batch_01_count_0_touches_nothing() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 8);
        for number in WALKS
            .into_iter()
            .chain([c::MAP_UPDATE_BATCH, c::MAP_DELETE_BATCH])
        {
            let got = m.batch_at(number, fd, [1, 1, 1, 1], 0, [0; 2]);
            assert_eq!(
                (got.result, got.count),
                (Ok(()), 0),
                "{} {number}",
                m.name()
            );
        }
        assert_eq!(walk(m, fd).len(), 8);
    });
}

#[test]
fn e_batch_02_elem_flags() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 8);
        for number in WALKS
            .into_iter()
            .chain([c::MAP_UPDATE_BATCH, c::MAP_DELETE_BATCH])
        {
            for elem_flags in [1, 2, 8, u64::MAX, BPF_F_LOCK] {
                // Without a lock in the value F_LOCK is refused, too.
                let got = m.batch_at(number, fd, [1; 4], 4, [elem_flags, 0]);
                assert_eq!(
                    (got.result, got.count),
                    (Err(EINVAL), 4),
                    "{} {number} {elem_flags:#x}",
                    m.name()
                );
            }
        }
    });
}

#[test]
fn e_batch_03_a_first_bucket_larger_than_count() {
    on_hosts(|m| {
        // Two buckets of 16 entries hold one that is larger than 1.
        let fd = filled(m, HASH, 16);
        let mut token = None;
        let mut large = None;
        for _ in 0..64 {
            let got = m.walk(
                c::MAP_LOOKUP_BATCH,
                fd,
                token.as_ref().map(|t: &[u8; 4]| &t[..]),
                1,
            );
            let at: [u8; 4] = got.token[..4].try_into().unwrap();
            match got.result {
                Err(ENOSPC) => {
                    large = Some((got.count, at));
                    break;
                }
                Ok(()) => token = Some(at),
                other => panic!("{}: {other:?}", m.name()),
            }
        }
        let (count, at) = large.expect("16 keys in 16 buckets, each alone");
        assert_eq!(count, 0, "{}", m.name());
        // The token is that bucket: with more room the walk goes on there.
        let again = m.walk(c::MAP_LOOKUP_BATCH, fd, Some(&at), 1);
        assert_eq!((again.result, again.count), (Err(ENOSPC), 0));
        assert_eq!(again.token[..4], at, "{}", m.name());
        let roomy = m.walk(c::MAP_LOOKUP_BATCH, fd, Some(&at), 16);
        assert!(roomy.count >= 2, "{} {roomy:?}", m.name());
        assert_eq!(roomy.token[4..], [0xee; 4], "a token has four bytes");
    });
}

#[test]
fn e_batch_04_whole_buckets_and_the_end() {
    on_hosts(|m| {
        for number in WALKS {
            let fd = filled(m, HASH, 64);
            let mut keys = BTreeSet::new();
            let mut token: Option<[u8; 4]> = None;
            for round in 0.. {
                assert!(round < 64, "{}: the walk does not end", m.name());
                let got = m.walk(number, fd, token.as_ref().map(|t| &t[..]), 20);
                for pair in m.walked_keys(got.count as usize * 4).chunks(4) {
                    assert!(keys.insert(u32_of(pair)), "twice");
                }
                token = Some(got.token[..4].try_into().unwrap());
                match got.result {
                    Ok(()) => assert!(got.count > 0),
                    Err(ENOENT) => break,
                    other => panic!("{}: {other:?}", m.name()),
                }
            }
            assert_eq!(keys, (0..64).collect(), "{}", m.name());
            // All of it in one call: the end, with a valid count.
            let left = if number == c::MAP_LOOKUP_BATCH { 64 } else { 0 };
            let all = m.walk(number, fd, None, 100);
            assert_eq!((all.result, all.count), (Err(ENOENT), left), "{}", m.name());
        }
    });
}

#[test]
fn e_batch_05_a_bad_token() {
    on_hosts(|m| {
        let fd = filled(m, HASH, 8);
        for token in [8u32, 9, u32::MAX] {
            let got = m.walk(c::MAP_LOOKUP_BATCH, fd, Some(&token.to_ne_bytes()), 8);
            assert_eq!(
                (got.result, got.count),
                (Err(ENOENT), 0),
                "{} {token}",
                m.name()
            );
        }
    });
}

#[test]
fn e_batch_06_out_batch_null() {
    on_hosts(|m| {
        for map_type in [HASH, ARRAY] {
            let fd = filled(m, map_type, 8);
            let (k, v) = (m.key_at(&key(0)), m.value_at());
            let got = m.batch_at(c::MAP_LOOKUP_BATCH, fd, [0, 0, k, v], 4, [0; 2]);
            assert_eq!(got.result, Err(EFAULT), "{} {map_type}", m.name());
        }
    });
}

#[test]
fn e_batch_07_the_token_of_arrays_and_tries_is_the_last_key() {
    on_hosts(|m| {
        let fd = filled(m, ARRAY, 8);
        let got = m.walk(c::MAP_LOOKUP_BATCH, fd, None, 3);
        assert_eq!((got.result, got.count), (Ok(()), 3), "{}", m.name());
        assert_eq!(got.token[..4], key(2), "{}", m.name());
        let rest = m.walk(c::MAP_LOOKUP_BATCH, fd, Some(&key(2)), 8);
        assert_eq!((rest.result, rest.count), (Err(ENOENT), 5), "{}", m.name());
        assert_eq!(m.walked_values(8), value(103));

        let fd = m.map(&MapCreateAttr {
            key_size: 8,
            map_flags: MapFlags::NO_PREALLOC.bits(),
            ..attr(MapType::LPM_TRIE, 8)
        });
        for n in 0..4u8 {
            let k = [32, 0, 0, 0, 10, 0, 0, n];
            m.update(fd, &k, &value(1), 0).unwrap();
        }
        let got = m.walk(c::MAP_LOOKUP_BATCH, fd, None, 3);
        assert_eq!((got.result, got.count), (Ok(()), 3), "{}", m.name());
        assert_eq!(got.token[..], m.walked_keys(24)[16..], "{}", m.name());
    });
}

#[test]
fn e_batch_08_update_and_delete_stop_at_the_first_error() {
    on_hosts(|m| {
        let fd = m.map(&attr(HASH, 2));
        let keys: Vec<u8> = [5u32, 6, 7, 8].into_iter().flat_map(key).collect();
        let got = m.store(fd, &keys, Some(&[9; 32]), 4, 0);
        assert_eq!((got.result, got.count), (Err(E2BIG), 2), "{}", m.name());
        let keys: Vec<u8> = [5u32, 99, 6].into_iter().flat_map(key).collect();
        let got = m.store(fd, &keys, None, 3, 0);
        assert_eq!((got.result, got.count), (Err(ENOENT), 1), "{}", m.name());
        assert_eq!(walk(m, fd), [6], "{}", m.name());
    });
}

#[test]
fn e_batch_09_arrays_delete_nothing() {
    on_hosts(|m| {
        let fd = filled(m, ARRAY, 4);
        for number in [c::MAP_DELETE_BATCH, c::MAP_LOOKUP_AND_DELETE_BATCH] {
            let got = m.batch_at(number, fd, [1; 4], 2, [0; 2]);
            assert_eq!((got.result, got.count), (Err(ENOTSUPP), 2), "{}", m.name());
        }
    });
}
