//! §F: both host columns and both offloaded ones, by bytes; beside the running kernel where it
//! has the column. The offloaded ones are those of profile netdevsim, and of nfp where its
//! driver answers alike.

use super::*;
use offmap_bpf::command as c;
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, MapFlags};
use offmap_bpf::{Fd, MmapRequest, Protection};
use offmap_tests::contract::{create_bytes, u32_of};

const BOTH: [MapType; 2] = [HASH, ARRAY];
const BATCHES: [u32; 4] = [
    c::MAP_LOOKUP_BATCH,
    c::MAP_LOOKUP_AND_DELETE_BATCH,
    c::MAP_UPDATE_BATCH,
    c::MAP_DELETE_BATCH,
];

/// Runs a row on the host columns and on netdevsim's; the flag tells which.
fn columns(row: impl Fn(&mut dyn Machine, bool)) {
    on_hosts(|m| row(m, false));
    let (_stack, mut ours) = strict("netdevsim");
    row(&mut ours, true);
}

/// A map of two entries, key 4, value 8, with keys 0 and 1.
fn full(m: &mut dyn Machine, map_type: MapType) -> i32 {
    let fd = m.map(&attr(map_type, 2));
    for n in 0..2 {
        m.update(fd, &key(n), &value(100), BPF_ANY).unwrap();
    }
    fd
}

fn next(m: &mut dyn Machine, fd: i32, after: Option<u32>) -> Result<u32, i32> {
    let after = after.map(key);
    let found = m.next(fd, after.as_ref().map(|k| &k[..]), 4)?;
    Ok(u32_of(&found))
}

fn got(m: &mut dyn Machine, fd: i32, n: u32) -> Result<Vec<u8>, i32> {
    m.lookup(fd, &key(n), 8, 0)
}

fn put(m: &mut dyn Machine, fd: i32, n: u32, flags: u64) -> Result<(), i32> {
    m.update(fd, &key(n), &value(7), flags)
}

#[test]
fn f01_get_next_of_null_or_missing_on_a_new_map() {
    columns(|m, _| {
        for (map_type, answer) in [(HASH, Err(ENOENT)), (ARRAY, Ok(0))] {
            let fd = m.map(&attr(map_type, 2));
            for after in [None, Some(7)] {
                assert_eq!(next(m, fd, after), answer, "{} {map_type}", m.name());
            }
        }
    });
}

#[test]
fn f02_lookup_of_key_0_on_a_new_map() {
    columns(|m, _| {
        for (map_type, answer) in [(HASH, Err(ENOENT)), (ARRAY, Ok(vec![0; 8]))] {
            let fd = m.map(&attr(map_type, 2));
            assert_eq!(got(m, fd, 0), answer, "{} {map_type}", m.name());
        }
    });
}

#[test]
fn f03_delete_of_missing_or_out_of_range() {
    columns(|m, _| {
        for (map_type, errno) in [(HASH, ENOENT), (ARRAY, EINVAL)] {
            let fd = m.map(&attr(map_type, 2));
            for n in [0, 5] {
                assert_eq!(m.delete(fd, &key(n)), Err(errno), "{} {map_type}", m.name());
            }
        }
    });
}

#[test]
fn f04_update_exist_on_a_new_map() {
    columns(|m, _| {
        for (map_type, answer) in [(HASH, Err(ENOENT)), (ARRAY, Ok(()))] {
            let fd = m.map(&attr(map_type, 2));
            assert_eq!(put(m, fd, 0, BPF_EXIST), answer, "{} {map_type}", m.name());
        }
    });
}

#[test]
fn f05_update_noexist() {
    columns(|m, _| {
        let fd = m.map(&attr(HASH, 2));
        assert_eq!(put(m, fd, 0, BPF_NOEXIST), Ok(()), "{}", m.name());
        assert_eq!(put(m, fd, 0, BPF_NOEXIST), Err(EEXIST), "{}", m.name());
        let fd = m.map(&attr(ARRAY, 2));
        assert_eq!(put(m, fd, 0, BPF_NOEXIST), Err(EEXIST), "{}", m.name());
    });
}

#[test]
fn f06_unknown_and_lock_flags() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            for flags in [BPF_F_LOCK, 3, 8, 1 << 32, u64::MAX] {
                assert_eq!(put(m, fd, 0, flags), Err(EINVAL), "{} {flags}", m.name());
                let looked = m.lookup(fd, &key(0), 8, flags);
                assert_eq!(looked, Err(EINVAL), "{} {flags}", m.name());
            }
        }
    });
}

#[test]
fn f07_a_third_key() {
    columns(|m, offloaded| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            assert_eq!(
                put(m, fd, 2, BPF_ANY),
                Err(E2BIG),
                "{} {map_type}",
                m.name()
            );
            assert_eq!(
                put(m, fd, 2, BPF_NOEXIST),
                Err(E2BIG),
                "{} {map_type}",
                m.name()
            );
            let exist = match (map_type, offloaded) {
                (ARRAY, false) => E2BIG,
                _ => ENOENT,
            };
            assert_eq!(
                put(m, fd, 2, BPF_EXIST),
                Err(exist),
                "{} {map_type}",
                m.name()
            );
        }
    });
}

#[test]
fn f08_overwrite_when_full() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            for flags in [BPF_ANY, BPF_EXIST] {
                assert_eq!(put(m, fd, 1, flags), Ok(()), "{} {map_type}", m.name());
            }
            assert_eq!(
                got(m, fd, 1),
                Ok(value(7).to_vec()),
                "{} {map_type}",
                m.name()
            );
        }
    });
}

#[test]
fn f09_bad_or_null_pointers() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let (k, v) = (m.key_at(&key(0)), m.value_at());
            for bad in [
                0,
                1,
                m.base() + offmap_tests::contract::ARENA_BYTES as u64,
                u64::MAX,
            ] {
                let who = format!("{} {map_type} {bad:#x}", m.name());
                for number in [c::MAP_LOOKUP_ELEM, c::MAP_UPDATE_ELEM] {
                    assert_eq!(
                        m.element(number, fd, bad, v, 0),
                        Err(EFAULT),
                        "{who} {number}"
                    );
                    assert_eq!(
                        m.element(number, fd, k, bad, 0),
                        Err(EFAULT),
                        "{who} {number}"
                    );
                }
                assert_eq!(
                    m.element(c::MAP_DELETE_ELEM, fd, bad, 0, 0),
                    Err(EFAULT),
                    "{who}"
                );
                let next = m.element(c::MAP_GET_NEXT_KEY, fd, bad, v, 0);
                // A null key is the first one's.
                assert_eq!(next, if bad == 0 { Ok(()) } else { Err(EFAULT) }, "{who}");
                let next = m.element(c::MAP_GET_NEXT_KEY, fd, k, bad, 0);
                let last = m.next(fd, Some(&key(0)), 4) == Err(ENOENT);
                assert_eq!(next, Err(if last { ENOENT } else { EFAULT }), "{who}");
            }
        }
    });
}

#[test]
fn f10_delete_with_flags() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let k = m.key_at(&key(0));
            for (v, flags) in [(0, 1), (1, 0)] {
                let deleted = m.element(c::MAP_DELETE_ELEM, fd, k, v, flags);
                assert_eq!(deleted, Err(EINVAL), "{} {map_type}", m.name());
            }
            assert!(got(m, fd, 0).is_ok());
        }
    });
}

#[test]
fn f11_lookup_and_delete() {
    columns(|m, offloaded| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let none = offloaded || map_type == ARRAY;
            let (present, missing) = if none {
                (Err(ENOTSUPP), ENOTSUPP)
            } else {
                (Ok(value(100).to_vec()), ENOENT)
            };
            for n in [0, 9] {
                assert_eq!(
                    m.take(fd, &key(n), 8, 1),
                    Err(EINVAL),
                    "{} {map_type}",
                    m.name()
                );
            }
            assert_eq!(
                m.take(fd, &key(9), 8, 0),
                Err(missing),
                "{} {map_type}",
                m.name()
            );
            assert_eq!(
                m.take(fd, &key(0), 8, 0),
                present,
                "{} {map_type}",
                m.name()
            );
        }
    });
}

#[test]
fn f12_any_batch_call_is_524_on_a_device_and_keeps_the_count() {
    on_strict(|_, m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let good = m.value_at();
            for (number, at) in BATCHES
                .into_iter()
                .flat_map(|n| [(n, 0), (n, 1), (n, good)])
            {
                for (count, flags) in [(0, [0; 2]), (3, [0; 2]), (u32::MAX, [u64::MAX; 2])] {
                    let got = m.batch_at(number, fd, [at; 4], count, flags);
                    assert_eq!(
                        (got.result, got.count),
                        (Err(ENOTSUPP), count),
                        "{} {number}",
                        m.name()
                    );
                }
            }
        }
    });
}

#[test]
fn f13_mmap() {
    let request = |shared| MmapRequest {
        offset: 0,
        length: 4096,
        protection: Protection::READ,
        shared,
    };
    let refused = |m: &Ours, fd, errno| {
        for shared in [false, true] {
            let mapped = m.system.mmap(Fd(fd), &request(shared)).map(drop);
            assert_eq!(mapped.unwrap_err().errno().0, errno, "{}", m.name());
        }
    };
    let mut host = Ours::host();
    for (map_type, errno) in [(HASH, ENOTSUPP), (ARRAY, EINVAL)] {
        let fd = full(&mut host, map_type);
        refused(&host, fd, errno);
    }
    on_strict(|_, m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            refused(m, fd, ENOTSUPP);
        }
    });
}

#[test]
fn f14_read_write_and_lseek() {
    let judge = |m: &mut Ours| {
        for map_type in BOTH {
            let fd = Fd(full(m, map_type));
            let errno = |e: offmap_bpf::Error| e.errno().0;
            assert_eq!(m.system.read(fd, &mut [0; 8]).map_err(errno), Err(EINVAL));
            assert_eq!(m.system.write(fd, &[0; 8]).map_err(errno), Err(EINVAL));
            let sought = m.system.lseek(fd, 0, 0).map_err(errno);
            assert_eq!(sought, Err(Errno::ESPIPE.0));
        }
    };
    judge(&mut Ours::host());
    on_strict(|_, m| judge(m));
    if let Ok(mut kernel) = Theirs::new() {
        for map_type in BOTH {
            let number = full(&mut kernel, map_type);
            let fd = kernel.calls.fd(number).unwrap();
            let errno = rustix::io::Errno::raw_os_error;
            assert_eq!(
                rustix::io::read(fd, &mut [0; 8]).map_err(errno),
                Err(EINVAL)
            );
            assert_eq!(rustix::io::write(fd, &[0; 8]).map_err(errno), Err(EINVAL));
            let sought = rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0)).map_err(errno);
            assert_eq!(sought, Err(Errno::ESPIPE.0));
        }
    }
}

#[test]
fn f15_through_a_read_only_fd() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = m.map(&MapCreateAttr {
                map_flags: MapFlags::RDONLY.bits(),
                ..attr(map_type, 2)
            });
            assert_eq!(put(m, fd, 0, 0), Err(EPERM), "{} {map_type}", m.name());
            assert_eq!(m.delete(fd, &key(0)), Err(EPERM), "{} {map_type}", m.name());
        }
    });
}

#[test]
fn f16_freeze_with_extra_bytes_and_again() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let mut long = [0; 16];
            long[..4].copy_from_slice(&fd.to_ne_bytes());
            long[5] = 1;
            assert_eq!(
                m.raw(c::MAP_FREEZE, &long),
                Err(EINVAL),
                "{} {map_type}",
                m.name()
            );
            assert_eq!(put(m, fd, 0, 0), Ok(()), "it is not frozen");
            assert_eq!(m.freeze(fd), Ok(()), "{} {map_type}", m.name());
            assert_eq!(m.freeze(fd), Err(EPERM), "{} {map_type}", m.name());
        }
    });
}

#[test]
fn f17_frozen_changes() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            m.freeze(fd).unwrap();
            assert_eq!(put(m, fd, 0, 0), Err(EPERM), "{} {map_type}", m.name());
            assert_eq!(m.delete(fd, &key(0)), Err(EPERM), "{} {map_type}", m.name());
            assert_eq!(
                m.take(fd, &key(0), 8, 0),
                Err(EPERM),
                "{} {map_type}",
                m.name()
            );
            for number in [c::MAP_UPDATE_BATCH, c::MAP_DELETE_BATCH] {
                let got = m.batch_at(number, fd, [1; 4], 2, [0; 2]);
                assert_eq!(
                    (got.result, got.count),
                    (Err(EPERM), 2),
                    "{} {map_type}",
                    m.name()
                );
            }
        }
    });
}

#[test]
fn f18_frozen_lookups() {
    columns(|m, offloaded| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            m.freeze(fd).unwrap();
            assert_eq!(
                got(m, fd, 0),
                Ok(value(100).to_vec()),
                "{} {map_type}",
                m.name()
            );
            let walked = m.walk(c::MAP_LOOKUP_BATCH, fd, None, 8);
            let expected = if offloaded {
                (Err(ENOTSUPP), 8)
            } else {
                (Err(ENOENT), 2)
            };
            assert_eq!(
                (walked.result, walked.count),
                expected,
                "{} {map_type}",
                m.name()
            );
        }
    });
}

#[test]
fn f19_info_len() {
    everywhere(|m| {
        for map_type in BOTH {
            let fd = full(m, map_type);
            let (info, len) = m.info(fd, &[0; 8]).unwrap();
            assert_eq!((u32_of(&info), len), (map_type.0, 8), "{}", m.name());
            let (_, len) = m.info(fd, &[0; 256]).unwrap();
            assert!((80..=256).contains(&len), "{} {len}", m.name());
            let mut tail = [0; 256];
            tail[255] = 1;
            assert_eq!(m.info(fd, &tail), Err(E2BIG), "{} {map_type}", m.name());
            m.close(fd);
        }
    });
}

// MAP_CREATE: the host column; the offloaded one is in `contract_profiles.rs`.

#[test]
fn f_host_create() {
    on_hosts(|m| {
        m.map(&attr(HASH, 3));
        for max_entries in [1 << 31, u32::MAX] {
            assert_eq!(
                m.create(&attr(HASH, max_entries)),
                Err(E2BIG),
                "{}",
                m.name()
            );
        }
        let flags = |map_type, flags: MapFlags| MapCreateAttr {
            map_flags: flags.bits(),
            ..attr(map_type, 2)
        };
        for a in [
            flags(HASH, MapFlags::NO_PREALLOC),
            flags(HASH, MapFlags::ZERO_SEED),
            flags(HASH, MapFlags::RDONLY_PROG),
            flags(HASH, MapFlags::WRONLY_PROG),
            flags(ARRAY, MapFlags::MMAPABLE),
            flags(ARRAY, MapFlags::INNER_MAP),
            flags(HASH, MapFlags::NUMA_NODE),
            flags(HASH, MapFlags::RDONLY),
            flags(HASH, MapFlags::WRONLY),
            MapCreateAttr {
                numa_node: 99,
                ..attr(HASH, 2)
            },
            MapCreateAttr {
                inner_map_fd: 99,
                ..attr(HASH, 2)
            },
        ] {
            let made = m.create(&a);
            assert!(made.is_ok(), "{} {a:?} {made:?}", m.name());
        }
        for (key_size, value_size) in [(4, 16 << 20), (4, 1 << 31), (u32::MAX, 8)] {
            let a = MapCreateAttr {
                key_size,
                value_size,
                ..attr(HASH, 2)
            };
            assert_eq!(m.create(&a), Err(E2BIG), "{}", m.name());
        }
        for (map_ifindex, errno) in [(1, EOPNOTSUPP), (9999, EINVAL), (1 << 31, EINVAL)] {
            let a = MapCreateAttr {
                map_ifindex,
                ..attr(HASH, 2)
            };
            assert_eq!(m.create_as_is(&a), Err(errno), "{} {map_ifindex}", m.name());
        }
    });
}

#[test]
fn f_gone_flags_and_pointers_come_first() {
    on_strict(|stack, m| {
        for map_type in BOTH {
            let (fd, again) = (full(m, map_type), m.map(&attr(map_type, 2)));
            let pin = format!("/sys/fs/bpf/{map_type}");
            m.object(c::OBJ_PIN, &format!("{pin}_before"), fd).unwrap();
            // The other type's turn comes on a port of its own.
            let port = std::sync::Arc::clone(&stack.nic) as _;
            stack
                .system
                .unregister_netdev(offmap_bpf::IfIndex(m.ifindex))
                .unwrap();
            let (k, v) = (m.key_at(&key(0)), m.value_at());
            for bad in [0, 1] {
                assert_eq!(m.element(c::MAP_LOOKUP_ELEM, fd, bad, v, 0), Err(EFAULT));
                assert_eq!(m.element(c::MAP_UPDATE_ELEM, fd, bad, v, 0), Err(EFAULT));
                assert_eq!(m.element(c::MAP_UPDATE_ELEM, fd, k, bad, 0), Err(EFAULT));
                assert_eq!(m.element(c::MAP_DELETE_ELEM, fd, bad, 0, 0), Err(EFAULT));
                // Nothing is there to be written.
                assert_eq!(m.element(c::MAP_LOOKUP_ELEM, fd, k, bad, 0), Err(ENODEV));
                assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, k, bad, 0), Err(ENODEV));
            }
            assert_eq!(put(m, fd, 0, 3), Err(EINVAL));
            assert_eq!(put(m, fd, 0, 0), Err(ENODEV));
            assert_eq!(m.info(fd, &[0; 80]), Err(ENODEV));
            assert_eq!(m.take(fd, &key(0), 8, 0), Err(ENOTSUPP));
            for number in BATCHES {
                let got = m.batch_at(number, fd, [1; 4], 2, [0; 2]);
                assert_eq!((got.result, got.count), (Err(ENOTSUPP), 2));
            }
            m.object(c::OBJ_PIN, &format!("{pin}_after"), fd).unwrap();
            for old in ["before", "after"] {
                let opened = m.object(c::OBJ_GET, &format!("{pin}_{old}"), 0).unwrap();
                assert_eq!(got(m, opened, 0), Err(ENODEV), "{old}");
            }
            assert_eq!(
                m.create(&attr(map_type, 2)),
                Err(EINVAL),
                "the ifindex is gone"
            );
            assert_eq!(m.freeze(again), Ok(()));
            assert_eq!(put(m, again, 0, 0), Err(EPERM));
            let back = stack.system.register_netdev("nic0", port).unwrap();
            assert_ne!(back.0, m.ifindex);
            assert_eq!(got(m, fd, 0), Err(ENODEV), "the old one stays so");
            m.ifindex = back.0;
        }
    });
}

#[test]
fn f_generic_sizes_of_map_create() {
    everywhere(|m| {
        assert_eq!(m.raw(c::MAP_CREATE, &[]), Err(EINVAL), "{}", m.name());
        let map_ifindex = m.ifindex();
        let mut bytes = create_bytes(&MapCreateAttr {
            map_ifindex,
            ..attr(HASH, 2)
        })
        .to_vec();
        bytes.resize(256, 0);
        let sizes: &[usize] = if map_ifindex == 0 {
            &[16, 20, 92, 256]
        } else {
            &[48, 92, 256]
        };
        for &size in sizes {
            let made = m.raw(c::MAP_CREATE, &bytes[..size]);
            assert!(made.is_ok(), "{} {size}: {made:?}", m.name());
        }
        bytes[250] = 1;
        assert_eq!(m.raw(c::MAP_CREATE, &bytes), Err(E2BIG), "{}", m.name());
        bytes.resize(8192, 0);
        assert_eq!(m.raw(c::MAP_CREATE, &bytes), Err(E2BIG), "{}", m.name());
    });
}

#[test]
fn f_generic_descriptors_ids_and_commands() {
    everywhere(|m| {
        for number in [
            c::MAP_LOOKUP_ELEM,
            c::MAP_UPDATE_ELEM,
            c::MAP_DELETE_ELEM,
            c::MAP_GET_NEXT_KEY,
            c::MAP_LOOKUP_AND_DELETE_ELEM,
        ] {
            assert_eq!(
                m.element(number, -1, 0, 0, 0),
                Err(EBADF),
                "{} {number}",
                m.name()
            );
        }
        for number in BATCHES {
            assert_eq!(m.batch_at(number, -1, [0; 4], 1, [0; 2]).result, Err(EBADF));
        }
        assert_eq!(m.freeze(-1), Err(EBADF), "{}", m.name());
        // [run] 6.18: OBJ_PIN alone asks what the descriptor is, and knows none.
        assert_eq!(
            m.object(c::OBJ_PIN, "/sys/fs/bpf/x", -1),
            Err(EINVAL),
            "{}",
            m.name()
        );
        assert_eq!(m.info(-1, &[0; 80]), Err(EBADFD), "{}", m.name());
        assert_eq!(
            m.by_id(c::MAP_GET_NEXT_ID, 0x7fff_ffff).0,
            Err(EINVAL),
            "{}",
            m.name()
        );
        assert_eq!(m.raw(1 << 20, &[]), Err(EINVAL), "{}", m.name());
    });
}

/// `__htab_map_lookup_and_delete_batch` refuses flags before it looks at anything, and the
/// element that a refused walk would have deleted is still there.
#[test]
fn walks_of_hash_maps_refuse_flags() {
    let row = |m: &mut dyn Machine| {
        let fd = m.map(&attr(HASH, 4));
        m.update(fd, &key(1), &value(1), 0).unwrap();
        let base = m.base();
        let at = [0, base + 0x900, base + 0xa00, m.value_at()];
        for number in [c::MAP_LOOKUP_BATCH, c::MAP_LOOKUP_AND_DELETE_BATCH] {
            for flags in [1, 4, 1 << 63] {
                let walked = m.batch_at(number, fd, at, 4, [0, flags]);
                assert_eq!(walked.result, Err(EINVAL), "{}: flags {flags:#x}", m.name());
            }
        }
        assert!(m.lookup(fd, &key(1), 8, 0).is_ok());
    };
    on_hosts(row);
    let (_stack, mut ours) = strict("offmap");
    row(&mut ours);
}
