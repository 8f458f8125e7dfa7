//! The kernel contract for the strict profiles, row by row (its §B, §C and §F, offloaded
//! columns), through the whole stack: map core, NIC, driver, emulated device.
//!
//! Where the running kernel has netdevsim, the rows of §F are judged there, too;
//! `OFFMAP_REQUIRE_NETDEVSIM=1` makes it a failure when it has not.

#[path = "contract_profiles/nfp.rs"]
mod nfp;
#[path = "../../crates/driver/tests/scripted/mod.rs"]
mod scripted;

use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST};
use offmap_bpf::{Caller, Errno, MapCreateAttr, MapFile, MapFlags, MapType};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::Profile;
use offmap_tests::profiles::{Bed, KernelNetdevsim, attr, stack};
use offmap_tests::report::{aloud, required};
use offmap_tests::stack::Stack;
use offmap_tests::subject::Subject;
use std::sync::Arc;

const HASH: MapType = MapType::HASH;
const ARRAY: MapType = MapType::ARRAY;
const BOTH: [MapType; 2] = [HASH, ARRAY];

const EPERM: i32 = Errno::EPERM.0;
const ENOENT: i32 = Errno::ENOENT.0;
const E2BIG: i32 = Errno::E2BIG.0;
const ENOMEM: i32 = Errno::ENOMEM.0;
const EEXIST: i32 = Errno::EEXIST.0;
const ENODEV: i32 = Errno::ENODEV.0;
const EINVAL: i32 = Errno::EINVAL.0;
const EOPNOTSUPP: i32 = Errno::EOPNOTSUPP.0;
const ENOTSUPP: i32 = Errno::ENOTSUPP.0;

fn key(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

fn value(n: u64) -> [u8; 8] {
    n.to_ne_bytes()
}

fn got(map: &mut dyn Subject, n: u32) -> Result<u64, i32> {
    let mut out = [0xee; 8];
    map.lookup(&key(n), &mut out, 0)?;
    Ok(u64::from_ne_bytes(out))
}

fn put(map: &mut dyn Subject, n: u32, to: u64, flags: u64) -> Result<(), i32> {
    map.update(&key(n), &value(to), flags)
}

fn next(map: &mut dyn Subject, after: Option<u32>) -> Result<u32, i32> {
    let mut out = [0xee; 4];
    let after = after.map(key);
    map.get_next_key(after.as_ref().map(<[u8; 4]>::as_slice), &mut out)?;
    Ok(u32::from_ne_bytes(out))
}

/// A map of two entries with both of them: keys 0 and 1.
fn full(bed: &dyn Bed, map_type: MapType) -> Box<dyn Subject> {
    let mut map = bed.map(map_type, 2);
    for n in 0..2 {
        put(&mut *map, n, 100 + u64::from(n), BPF_ANY).unwrap();
    }
    map
}

/// Runs a row of §F on our stack with profile netdevsim, and on the kernel's own.
fn on_netdevsim(row: fn(&dyn Bed)) {
    row(&stack("netdevsim"));
    if let Ok(kernel) = KernelNetdevsim::new() {
        row(&kernel);
    }
}

#[test]
fn whether_the_running_kernel_judges() {
    if let Err(why) = KernelNetdevsim::new() {
        aloud(&format!(
            "contract: NO netdevsim IN THE RUNNING KERNEL ({why}): §F was judged on our stack only"
        ));
        assert!(!required("OFFMAP_REQUIRE_NETDEVSIM"), "{why}");
    }
}

// §F, operations.

#[test]
fn f_get_next_null_or_missing_new_map() {
    on_netdevsim(|bed| {
        let map = &mut *bed.map(HASH, 2);
        assert_eq!(next(map, None), Err(ENOENT));
        assert_eq!(next(map, Some(7)), Err(ENOENT));
        let map = &mut *bed.map(ARRAY, 2);
        assert_eq!(next(map, None), Ok(0));
        assert_eq!(next(map, Some(7)), Ok(0));
    });
}

#[test]
fn f_lookup_key_0_new_map() {
    on_netdevsim(|bed| {
        assert_eq!(got(&mut *bed.map(HASH, 2), 0), Err(ENOENT));
        assert_eq!(got(&mut *bed.map(ARRAY, 2), 0), Ok(0));
    });
}

#[test]
fn f_delete_missing_or_out_of_range() {
    on_netdevsim(|bed| {
        for n in [0, 5] {
            assert_eq!(bed.map(HASH, 2).delete(&key(n)), Err(ENOENT));
            assert_eq!(bed.map(ARRAY, 2).delete(&key(n)), Err(EINVAL));
            assert_eq!(full(bed, HASH).delete(&key(n + 2)), Err(ENOENT));
        }
    });
}

#[test]
fn f_update_exist_new_map() {
    on_netdevsim(|bed| {
        assert_eq!(put(&mut *bed.map(HASH, 2), 0, 1, BPF_EXIST), Err(ENOENT));
        assert_eq!(put(&mut *bed.map(ARRAY, 2), 0, 1, BPF_EXIST), Ok(()));
    });
}

#[test]
fn f_update_noexist_new_map_and_present() {
    on_netdevsim(|bed| {
        let map = &mut *bed.map(HASH, 2);
        assert_eq!(put(map, 0, 1, BPF_NOEXIST), Ok(()));
        assert_eq!(put(map, 0, 2, BPF_NOEXIST), Err(EEXIST));
        assert_eq!(got(map, 0), Ok(1));
        let map = &mut *bed.map(ARRAY, 2);
        assert_eq!(put(map, 0, 1, BPF_NOEXIST), Err(EEXIST));
        assert_eq!(got(map, 0), Ok(0));
    });
}

#[test]
fn f_update_or_lookup_with_unknown_or_lock_flags() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            for flags in [BPF_F_LOCK, 3, 8, 1 << 32, u64::MAX] {
                assert_eq!(put(map, 0, 9, flags), Err(EINVAL), "{map_type} {flags}");
                let looked = map.lookup(&key(0), &mut [0; 8], flags);
                assert_eq!(looked, Err(EINVAL), "{map_type} {flags}");
            }
            assert_eq!(got(map, 0), Ok(100));
        }
    });
}

#[test]
fn f_third_key() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            assert_eq!(put(map, 2, 9, BPF_ANY), Err(E2BIG), "{map_type}");
            assert_eq!(put(map, 2, 9, BPF_NOEXIST), Err(E2BIG), "{map_type}");
            // Of an array, too, where a host array says E2BIG.
            assert_eq!(put(map, 2, 9, BPF_EXIST), Err(ENOENT), "{map_type}");
            assert_eq!(got(map, 2), Err(ENOENT), "{map_type}");
        }
    });
}

#[test]
fn f_overwrite_when_full() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            for (flags, to) in [(BPF_ANY, 7), (BPF_EXIST, 8)] {
                assert_eq!(put(map, 1, to, flags), Ok(()));
                assert_eq!(got(map, 1), Ok(to));
            }
        }
    });
}

#[test]
fn f_lookup_and_delete() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            for n in [0, 5] {
                let taken = map.lookup_and_delete(&key(n), &mut [0; 8], 0);
                assert_eq!(taken, Err(ENOTSUPP), "{map_type}");
                for flags in [1, 2, u64::MAX] {
                    let taken = map.lookup_and_delete(&key(n), &mut [0; 8], flags);
                    assert_eq!(taken, Err(EINVAL), "{map_type}");
                }
            }
            assert_eq!(got(map, 0), Ok(100));
        }
    });
}

#[test]
fn f_any_batch_call() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            for (count, flags) in [(0, 0), (2, 0), (2, 1), (2, u64::MAX)] {
                let (keys, values) = ([0; 8], [0; 16]);
                let (k, v) = (&keys[..count * 4], &values[..count * 8]);
                let n = count as u32;
                assert_eq!(map.update_batch(k, v, n, flags), (0, Err(ENOTSUPP)));
                assert_eq!(map.delete_batch(k, n, flags), (0, Err(ENOTSUPP)));
                for delete in [false, true] {
                    let (k, v) = (&mut [0; 8][..count * 4], &mut [0; 16][..count * 8]);
                    let walked = map.walk_batch(None, k, v, n, flags, delete);
                    assert_eq!((walked.count, walked.result), (0, Err(ENOTSUPP)));
                }
            }
            assert_eq!(got(map, 0), Ok(100));
        }
    });
}

#[test]
fn f_update_delete_through_a_read_only_fd() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let read_only = MapCreateAttr {
                map_flags: MapFlags::RDONLY.bits(),
                ..attr(map_type, 2)
            };
            let map = &mut *bed.create(&read_only).unwrap();
            assert_eq!(put(map, 0, 1, BPF_ANY), Err(EPERM));
            assert_eq!(put(map, 0, 1, 99), Err(EPERM), "before the flags");
            assert_eq!(map.delete(&key(0)), Err(EPERM));
            assert_eq!(map.freeze(), Err(EPERM));
        }
    });
}

#[test]
fn f_freeze_and_again() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            assert_eq!(map.freeze(), Ok(()));
            // 6.12 and later; before, EBUSY.
            assert_eq!(map.freeze(), Err(EPERM));
        }
    });
}

#[test]
fn f_frozen_changes() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            map.freeze().unwrap();
            assert_eq!(put(map, 0, 1, BPF_ANY), Err(EPERM));
            assert_eq!(put(map, 0, 1, 99), Err(EPERM), "before the flags");
            assert_eq!(map.delete(&key(0)), Err(EPERM));
            let taken = map.lookup_and_delete(&key(0), &mut [0; 8], 0);
            assert_eq!(taken, Err(EPERM));
            assert_eq!(map.update_batch(&key(0), &[0; 8], 1, 0).1, Err(EPERM));
            assert_eq!(map.delete_batch(&key(0), 1, 0).1, Err(EPERM));
        }
    });
}

#[test]
fn f_frozen_lookups() {
    on_netdevsim(|bed| {
        for map_type in BOTH {
            let map = &mut *full(bed, map_type);
            map.freeze().unwrap();
            assert_eq!(got(map, 1), Ok(101));
            let walked = map.walk_batch(None, &mut [0; 8], &mut [0; 16], 2, 0, false);
            assert_eq!(walked.result, Err(ENOTSUPP));
        }
    });
}

// §F, MAP_CREATE.

#[test]
fn f_create_more_entries_than_slots() {
    on_netdevsim(|bed| {
        for (map_type, max_entries) in [(HASH, 3), (ARRAY, 3), (HASH, 1 << 31), (HASH, u32::MAX)] {
            let made = bed.create(&attr(map_type, max_entries)).err();
            assert_eq!(made, Some(ENOMEM), "{map_type} {max_entries}");
        }
        for map_type in BOTH {
            assert_eq!(bed.create(&attr(map_type, 0)).err(), Some(EINVAL));
            bed.map(map_type, 1);
            bed.map(map_type, 2);
        }
    });
}

#[test]
fn f_create_with_flags() {
    on_netdevsim(|bed| {
        for (map_type, flags) in [
            (HASH, MapFlags::NO_PREALLOC),
            (HASH, MapFlags::ZERO_SEED),
            (HASH, MapFlags::RDONLY_PROG),
            (HASH, MapFlags::WRONLY_PROG),
            (HASH, MapFlags::NUMA_NODE),
            (ARRAY, MapFlags::NUMA_NODE),
            (ARRAY, MapFlags::MMAPABLE),
            (ARRAY, MapFlags::INNER_MAP),
        ] {
            let with = |max_entries| MapCreateAttr {
                map_flags: flags.bits(),
                ..attr(map_type, max_entries)
            };
            assert_eq!(bed.create(&with(2)).err(), Some(EINVAL), "{flags:?}");
            // The size is looked at before.
            assert_eq!(bed.create(&with(3)).err(), Some(ENOMEM), "{flags:?}");
        }
    });
}

#[test]
fn f_create_with_what_the_device_does_not_see() {
    on_netdevsim(|bed| {
        for attr in [
            MapCreateAttr {
                numa_node: 7,
                ..attr(HASH, 2)
            },
            MapCreateAttr {
                map_flags: MapFlags::RDONLY.bits(),
                ..attr(HASH, 2)
            },
            MapCreateAttr {
                map_flags: MapFlags::WRONLY.bits(),
                ..attr(HASH, 2)
            },
            MapCreateAttr {
                inner_map_fd: 99,
                ..attr(HASH, 2)
            },
        ] {
            bed.create(&attr).unwrap();
        }
    });
}

#[test]
fn f_create_too_big() {
    on_netdevsim(|bed| {
        for (map_type, key_size, value_size) in [
            (HASH, 4, 16 << 20),
            (HASH, 4, 1 << 31),
            (HASH, u32::MAX, 8),
            (ARRAY, 4, 1 << 31),
        ] {
            let big = MapCreateAttr {
                key_size,
                value_size,
                ..attr(map_type, 2)
            };
            let made = bed.create(&big).err();
            assert_eq!(made, Some(E2BIG), "{map_type} {key_size} {value_size}");
        }
    });
}

#[test]
fn f_create_every_other_type() {
    on_netdevsim(|bed| {
        for map_type in (0..33).map(MapType).filter(|t| !BOTH.contains(t)) {
            let made = bed.create(&attr(map_type, 2)).err();
            assert_eq!(made, Some(EINVAL), "{map_type}");
        }
    });
}

#[test]
fn f_create_on_other_ifindexes() {
    on_netdevsim(|bed| {
        for (map_ifindex, errno) in [(1, EOPNOTSUPP), (9999, EINVAL), (1 << 31, EINVAL)] {
            let elsewhere = MapCreateAttr {
                map_ifindex,
                ..attr(HASH, 2)
            };
            assert_eq!(bed.create_as_is(&elsewhere).err(), Some(errno));
        }
    });
}

// §F, after the device is removed; §B.

const PROFILES: [&str; 2] = ["netdevsim", "nfp"];

/// A map whose device is gone.
fn orphan(stack: &Stack<Inline>, map_type: MapType) -> MapFile {
    let map = stack.map(&attr(map_type, 2), true);
    map.update(&key(0), &value(1), 0).unwrap();
    stack.system.unregister_netdev(stack.ifindex).unwrap();
    map
}

#[test]
fn b_f_data_operations_after_removal() {
    for (profile, map_type) in PROFILES.into_iter().flat_map(|p| BOTH.map(|t| (p, t))) {
        let map = orphan(&stack(profile), map_type);
        let (k, mut v) = (key(0), value(0));
        let errno = |result: Result<(), offmap_bpf::Error>| result.unwrap_err().errno().0;
        assert_eq!(errno(map.lookup(&k, &mut v, 0)), ENODEV);
        assert_eq!(errno(map.update(&k, &v, 0)), ENODEV);
        assert_eq!(errno(map.delete(&k)), ENODEV);
        assert_eq!(errno(map.get_next_key(None, &mut [0; 4])), ENODEV);
        assert_eq!(map.info().unwrap_err().errno().0, ENODEV);
        // Flags come first.
        assert_eq!(errno(map.update(&k, &v, 3)), EINVAL);
        assert_eq!(errno(map.lookup(&k, &mut v, 1)), EINVAL);
        // 524 even now.
        assert_eq!(errno(map.lookup_and_delete(&k, &mut v, 0)), ENOTSUPP);
        assert_eq!(errno(map.update_batch(&k, &v, 1, 0, 0).result), ENOTSUPP);
        assert_eq!(errno(map.delete_batch(&k, 1, 0, 0).result), ENOTSUPP);
        let walked = map.lookup_batch(None, &mut [0; 4], &mut [0; 4], &mut v, 1, 0, 0);
        assert_eq!(errno(walked.result), ENOTSUPP);
        // FREEZE is the core's.
        map.freeze().unwrap();
        assert_eq!(errno(map.update(&k, &v, 0)), EPERM);
    }
}

#[test]
fn b_f_ids_and_creation_after_removal() {
    for profile in PROFILES {
        let stack = stack(profile);
        let map = stack.map(&attr(HASH, 2), true);
        let id = map.info().unwrap().id;
        stack.system.unregister_netdev(stack.ifindex).unwrap();
        let root = Caller::root();
        let opened = stack.system.get_fd_by_id(&root, id, MapFlags::empty());
        assert_eq!(opened.unwrap_err().errno().0, ENOENT);
        let listed = stack.system.get_next_id(&root, 0);
        assert_eq!(listed.unwrap_err().errno().0, ENOENT);
        let again = stack.try_map(&attr(HASH, 2), true).unwrap_err();
        assert_eq!(again.errno().0, EINVAL, "{again}");
        // A device that comes back has a new ifindex, and the old fd no part in it.
        let back = Arc::clone(&stack.nic) as _;
        let ifindex = stack.system.register_netdev("nic0", back).unwrap();
        assert_ne!(ifindex, stack.ifindex);
        let looked = map.lookup(&key(0), &mut [0; 8], 0);
        assert_eq!(looked.unwrap_err().errno().0, ENODEV);
    }
}

#[test]
fn b_removal_moves_maps_to_a_sibling_port() {
    for profile in PROFILES {
        let stack = stack(profile);
        let map = stack.map(&attr(HASH, 2), true);
        map.update(&key(3), &value(33), 0).unwrap();
        let port = Arc::clone(&stack.nic) as _;
        let sibling = stack.system.register_netdev("nic1", port).unwrap();
        stack.system.unregister_netdev(stack.ifindex).unwrap();
        let mut out = [0; 8];
        map.lookup(&key(3), &mut out, 0).unwrap();
        assert_eq!(out, value(33));
        let offload = map.info().unwrap().offload.unwrap();
        assert_eq!(offload.ifindex, sibling.0);
    }
}

#[test]
fn b_free_is_asynchronous_and_gives_everything_back() {
    let stack = stack("nfp");
    let map = stack.map(&attr(HASH, 1000), true);
    assert_eq!(
        (stack.nic.used().maps, stack.nic.used().elements),
        (1, 1000)
    );
    let id = map.info().unwrap().id;
    drop(map);
    // The id goes at once.
    let opened = stack
        .system
        .get_fd_by_id(&Caller::root(), id, MapFlags::empty());
    assert_eq!(opened.unwrap_err().errno().0, ENOENT);
    stack.system.flush_frees();
    assert_eq!((stack.nic.used().maps, stack.nic.used().elements), (0, 0));
}

#[test]
fn b_a_map_that_fails_on_its_name_was_on_the_device_and_left_it() {
    for profile in PROFILES {
        let stack = stack(profile);
        let mut bad = attr(ARRAY, 2);
        bad.map_name[..3].copy_from_slice(b"a-b");
        let error = stack.try_map(&bad, true).unwrap_err();
        assert!(error.reason().contains("map_name"), "{error}");
        stack.system.flush_frees();
        assert_eq!(stack.nic.used().maps, 0);
        // What the device refuses comes first.
        let both = MapCreateAttr {
            value_size: 3000,
            max_entries: 3,
            ..bad
        };
        assert_eq!(stack.try_map(&both, true).unwrap_err().errno().0, ENOMEM);
    }
}

#[test]
fn b_offloading_needs_sys_admin_before_the_type_is_looked_at() {
    for profile in PROFILES {
        let stack = stack(profile);
        for map_type in [HASH, MapType::PERCPU_HASH] {
            let offloaded = MapCreateAttr {
                map_ifindex: stack.ifindex.0,
                ..attr(map_type, 2)
            };
            let made = stack.system.map_create(&Caller::unprivileged(), &offloaded);
            assert_eq!(made.unwrap_err().errno().0, EPERM, "{profile} {map_type}");
        }
    }
}

// §C, netdevsim.

#[test]
fn c_netdevsim_bpf_map_accept() {
    let stack = stack("netdevsim");
    let before = stack.map(&attr(ARRAY, 2), true);
    stack.nic.set_accepting(false);
    for (map_type, max_entries) in [(HASH, 2), (ARRAY, 3)] {
        let error = stack
            .try_map(&attr(map_type, max_entries), true)
            .unwrap_err();
        assert_eq!(error.errno().0, EOPNOTSUPP, "{error}");
        assert!(error.reason().contains("netdevsim"), "{error}");
    }
    // The core's own refusals come before the device is asked.
    let error = stack
        .try_map(&attr(MapType::PERCPU_HASH, 2), true)
        .unwrap_err();
    assert_eq!(error.errno().0, EINVAL, "{error}");
    before.update(&key(0), &value(1), 0).unwrap();
    stack.nic.set_accepting(true);
    stack.map(&attr(HASH, 2), true);
}

#[test]
fn c_netdevsim_hash_allocates_lazily() {
    let stack = stack("netdevsim");
    let on_device = |map: &MapFile| map.info().unwrap().offload.unwrap().device_bytes;
    let map = stack.map(&attr(HASH, 2), true);
    assert_eq!(on_device(&map), 0);
    let mut out = [0; 8];
    assert_eq!(
        map.lookup(&key(0), &mut out, 0).unwrap_err().errno(),
        Errno::ENOENT
    );
    assert_eq!(map.delete(&key(0)).unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(
        map.update(&key(0), &out, BPF_EXIST).unwrap_err().errno(),
        Errno::ENOENT
    );
    assert_eq!(on_device(&map), 0);
    map.update(&key(0), &value(5), 0).unwrap();
    assert!(on_device(&map) > 0);
    assert!(
        on_device(&stack.map(&attr(ARRAY, 2), true)) > 0,
        "arrays at once"
    );
}

#[test]
fn c_netdevsim_an_update_may_find_no_memory() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 1 << 20;
    let function = Inline::new(config).unwrap();
    let stack = Stack::with_profile(function, Profile::named("netdevsim").unwrap());
    let large = |map_type| MapCreateAttr {
        value_size: 400 << 10,
        ..attr(map_type, 2)
    };
    let array = stack.map(&large(ARRAY), true);
    let hash = stack.map(&large(HASH), true);
    let value = vec![7; 400 << 10];
    let error = hash.update(&key(0), &value, 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
    let missing = hash.get_next_key(None, &mut [0; 4]).unwrap_err();
    assert_eq!(missing.errno(), Errno::ENOENT);
    drop(array);
    stack.system.flush_frees();
    hash.update(&key(0), &value, 0).unwrap();
    hash.get_next_key(None, &mut [0; 4]).unwrap();
}

#[test]
fn c_netdevsim_two_slots_even_when_max_entries_is_1() {
    on_netdevsim(|bed| {
        let map = &mut *bed.map(ARRAY, 1);
        assert_eq!(
            (got(map, 0), got(map, 1), got(map, 2)),
            (Ok(0), Ok(0), Err(ENOENT))
        );
        assert_eq!(put(map, 1, 11, BPF_EXIST), Ok(()));
        assert_eq!(got(map, 1), Ok(11));
        assert_eq!((next(map, None), next(map, Some(0))), (Ok(0), Ok(1)));
        assert_eq!(next(map, Some(1)), Err(ENOENT));
        // Hash maps have them, too.
        let map = &mut *bed.map(HASH, 1);
        assert_eq!((put(map, 5, 1, 0), put(map, 6, 1, 0)), (Ok(()), Ok(())));
        assert_eq!(put(map, 7, 1, 0), Err(E2BIG));
    });
    let stack = stack("netdevsim");
    let map = stack.map(&attr(ARRAY, 1), true);
    assert_eq!(map.info().unwrap().max_entries, 1, "what was asked for");
}

#[test]
fn c_netdevsim_get_next_goes_by_slots() {
    on_netdevsim(|bed| {
        // Each order of keys: a hash of the keys would give both one order.
        for (a, b) in [(5, 6), (6, 5), (1000, 3), (3, 1000)] {
            let map = &mut *bed.map(HASH, 2);
            put(map, a, 1, 0).unwrap();
            put(map, b, 1, 0).unwrap();
            assert_eq!((next(map, None), next(map, Some(a))), (Ok(a), Ok(b)));
            assert_eq!(
                (next(map, Some(b)), next(map, Some(77))),
                (Err(ENOENT), Ok(a))
            );
            // The current key goes, and the walk starts again.
            map.delete(&key(a)).unwrap();
            assert_eq!(next(map, Some(a)), Ok(b));
            // The first free slot is the first.
            put(map, 9, 1, 0).unwrap();
            assert_eq!((next(map, None), next(map, Some(9))), (Ok(9), Ok(b)));
        }
    });
}

/// Two entries share a bucket of this device, which keeps their order by itself: the behaviour
/// shows in a larger map.
#[test]
fn c_netdevsim_slot_order_of_a_larger_map() {
    let text = Profile::built_in_text("netdevsim").unwrap();
    let text = text
        .replace("name = \"netdevsim\"", "name = \"wide\"")
        .replace("limit = 2\n", "limit = 64\n");
    let wide = Profile::from_text("wide.toml", &text).unwrap();
    let function = Inline::new(DeviceConfig::default()).unwrap();
    let stack = Stack::with_profile(function, wide);
    let map = &mut *Bed::map(&stack, HASH, 64);
    let mut order: Vec<u32> = (0..64).map(|i| i * 37 % 64 + 1000).collect();
    for &n in &order {
        put(map, n, 1, 0).unwrap();
    }
    let walk = |map: &mut dyn Subject| {
        let (mut keys, mut at) = (Vec::new(), None);
        while let Ok(n) = next(map, at) {
            keys.push(n);
            at = Some(n);
        }
        keys
    };
    assert_eq!(walk(map), order);
    // Those that go leave their slots to those that come.
    for slot in [50, 3, 20] {
        map.delete(&key(order[slot])).unwrap();
    }
    for (n, slot) in [(7, 3), (8, 20), (9, 50)] {
        put(map, n, 1, 0).unwrap();
        order[slot] = n;
    }
    assert_eq!(put(map, 10, 1, 0), Err(E2BIG));
    assert_eq!(walk(map), order);
}

/// What a walk returns and what lookups find is the same after any change by many threads.
#[test]
fn c_netdevsim_one_operation_at_a_time_keeps_slots_and_elements_together() {
    let function = Threaded::spawn(DeviceConfig::default()).unwrap();
    let stack = Stack::with_profile(function, Profile::named("netdevsim").unwrap());
    for _ in 0..40 {
        let map = stack.map(&attr(HASH, 2), true);
        std::thread::scope(|scope| {
            for t in 0..6u32 {
                let map = &map;
                scope.spawn(move || {
                    for i in 0..40 {
                        let k = key((t + i) % 2);
                        let _ = map.update(&k, &value(1), 0);
                        let _ = map.delete(&k);
                    }
                    if t == 0 {
                        let _ = map.update(&key(t), &value(1), 0);
                    }
                });
            }
        });
        let mut walked = Vec::new();
        let (mut at, mut out) = (None, [0; 4]);
        while map
            .get_next_key(at.as_ref().map(<[u8; 4]>::as_slice), &mut out)
            .is_ok()
        {
            walked.push(u32::from_ne_bytes(out));
            at = Some(out);
        }
        walked.sort_unstable();
        let there: Vec<u32> = (0..2)
            .filter(|&n| map.lookup(&key(n), &mut [0; 8], 0).is_ok())
            .collect();
        assert_eq!(walked, there);
    }
}
