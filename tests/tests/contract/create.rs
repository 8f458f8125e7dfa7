//! §A: the order of MAP_CREATE's checks, and what a device sees of it.

use super::*;
use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{
    Caller, Capabilities, Error, IfIndex, NetNs, SecurityHook, SecurityMap, System, SystemConfig,
    command as c,
};
use offmap_tests::contract::{Recorder, Seen, create_bytes, seen};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const BOTH_MODES: u32 = MapFlags::RDONLY.bits() | MapFlags::WRONLY.bits();
const NUMA: u32 = MapFlags::NUMA_NODE.bits();

/// A system with a device, whose maps are created on it.
fn recorded(config: SystemConfig, refuse: Option<Errno>) -> (Ours, Seen) {
    let system = System::new(config);
    let (device, log) = Recorder::new(refuse, None);
    let nic = system.register_netdev("nic0", device).unwrap();
    (Ours::over("recorder", system, nic.0), log)
}

fn willing() -> (Ours, Seen) {
    recorded(SystemConfig::default(), None)
}

/// Two checks would refuse `bytes`; the earlier one does, by its error number and by what its
/// sentence names. The device is not asked.
#[track_caller]
fn wins_bytes(bytes: &[u8], errno: i32, word: &str) {
    let (mut ours, log) = willing();
    assert_eq!(
        ours.raw(c::MAP_CREATE, bytes),
        Err(errno),
        "{}",
        ours.reason
    );
    assert!(ours.reason.contains(word), "{word:?}: {}", ours.reason);
    assert!(seen(&log).is_empty());
    if let Ok(mut kernel) = Theirs::new() {
        assert_eq!(kernel.raw(c::MAP_CREATE, bytes), Err(errno), "kernel");
    }
}

#[track_caller]
fn wins(attr: &MapCreateAttr, errno: i32, word: &str) {
    wins_bytes(&create_bytes(attr), errno, word);
}

#[track_caller]
fn refused_for(caller: Caller, attr: &MapCreateAttr, errno: i32, word: &str) {
    let (mut ours, log) = willing();
    ours.caller = caller;
    assert_eq!(ours.create_as_is(attr), Err(errno), "{}", ours.reason);
    assert!(ours.reason.contains(word), "{word:?}: {}", ours.reason);
    assert!(seen(&log).is_empty());
}

/// A create on the device that fails after the device was asked.
#[track_caller]
fn after_alloc(ours: &mut Ours, log: &Seen, attr: &MapCreateAttr, errno: i32, word: &str) {
    let before = seen(log).len();
    assert_eq!(ours.create(attr), Err(errno), "{}", ours.reason);
    assert!(ours.reason.contains(word), "{word:?}: {}", ours.reason);
    ours.system.flush_frees();
    assert_eq!(seen(log)[before..], ["ALLOC", "FREE"]);
}

#[test]
fn a01_bytes_past_the_last_field_before_the_btf_ids() {
    let mut bytes = create_bytes(&MapCreateAttr {
        btf_vmlinux_value_type_id: 1,
        ..attr(HASH, 4)
    })
    .to_vec();
    bytes.resize(112, 0);
    bytes[108] = 1;
    wins_bytes(&bytes, EINVAL, "byte 108");
    bytes.truncate(92);
    wins_bytes(&bytes, EINVAL, "btf_vmlinux_value_type_id");
}

#[test]
fn a02_btf_ids_that_do_not_go_together_before_map_extra() {
    for a in [
        MapCreateAttr {
            btf_vmlinux_value_type_id: 1,
            ..attr(HASH, 4)
        },
        MapCreateAttr {
            btf_key_type_id: 1,
            ..attr(HASH, 4)
        },
        MapCreateAttr {
            btf_vmlinux_value_type_id: 1,
            btf_key_type_id: 1,
            btf_value_type_id: 1,
            ..attr(MapType::STRUCT_OPS, 4)
        },
    ] {
        let a = MapCreateAttr { map_extra: 1, ..a };
        wins(&a, EINVAL, "type_id");
    }
}

#[test]
fn a03_map_extra_before_the_modes() {
    let a = MapCreateAttr {
        map_extra: 1,
        map_flags: BOTH_MODES,
        ..attr(HASH, 4)
    };
    wins(&a, EINVAL, "map_extra");
}

#[test]
fn a04_both_modes_before_the_numa_node() {
    let a = MapCreateAttr {
        map_flags: BOTH_MODES | NUMA,
        numa_node: 4096,
        ..attr(HASH, 4)
    };
    wins(&a, EINVAL, "RDONLY and WRONLY");
}

#[test]
fn a05_the_numa_node_before_the_type() {
    let a = MapCreateAttr {
        map_flags: NUMA,
        numa_node: 4096,
        ..attr(MapType(999), 4)
    };
    wins(&a, EINVAL, "numa_node 4096");
    // Without the flag it is not looked at.
    everywhere(|m| {
        m.map(&MapCreateAttr {
            numa_node: 4096,
            ..attr(HASH, 2)
        });
    });
}

#[test]
fn a06_the_type_before_its_own_check() {
    let a = MapCreateAttr {
        key_size: 0,
        max_entries: 0,
        ..attr(MapType(999), 4)
    };
    wins(&a, EINVAL, "map_type 999");
    wins(&attr(MapType::UNSPEC, 4), EINVAL, "map_type 0");
}

#[test]
fn a07_the_native_alloc_check_runs_for_offloaded_maps_too() {
    // `lo` would say EOPNOTSUPP.
    for (a, errno, word) in [
        (attr(HASH, 0), EINVAL, "max_entries"),
        (
            MapCreateAttr {
                value_size: 16 << 20,
                ..attr(HASH, 4)
            },
            E2BIG,
            "value_size",
        ),
        (
            MapCreateAttr {
                key_size: 8,
                ..attr(ARRAY, 4)
            },
            EINVAL,
            "key_size 8",
        ),
        (
            MapCreateAttr {
                map_flags: MapFlags::NO_PREALLOC.bits(),
                ..attr(MapType::LRU_HASH, 4)
            },
            ENOTSUPP,
            "NO_PREALLOC",
        ),
    ] {
        let a = MapCreateAttr {
            map_ifindex: 1,
            ..a
        };
        wins(&a, errno, word);
    }
    let zero_seed = MapCreateAttr {
        map_flags: MapFlags::ZERO_SEED.bits(),
        map_ifindex: 1,
        ..attr(HASH, 4)
    };
    let bpf = Caller::unprivileged().with_capabilities(Capabilities::BPF);
    refused_for(bpf, &zero_seed, EPERM, "ZERO_SEED");
}

#[test]
fn a08_map_ifindex_swaps_the_ops() {
    // The host's `map_alloc` refuses so many buckets; the device decides for itself.
    let many = attr(HASH, 1 << 31);
    on_hosts(|m| assert_eq!(m.create(&many), Err(E2BIG), "{}", m.name()));
    let (mut ours, log) = willing();
    ours.map(&many);
    assert_eq!(seen(&log), ["ALLOC"]);
    on_strict(|_, ours| assert_eq!(ours.create(&many), Err(ENOMEM)));
}

#[test]
fn a09_capabilities_after_the_native_check_and_before_the_allocation() {
    let nobody = Caller::unprivileged();
    let bpf = nobody.with_capabilities(Capabilities::BPF);
    let host = attr(HASH, 1 << 31);
    refused_for(nobody, &host, EPERM, "CAP_BPF");
    refused_for(bpf, &host, E2BIG, "max_entries");
    let zero = attr(HASH, 0);
    refused_for(nobody, &zero, EINVAL, "max_entries 0");
    // By type, where everybody may have maps.
    let open = SystemConfig {
        unprivileged_bpf_disabled: false,
        ..SystemConfig::default()
    };
    let mut ours = Ours::over("open", System::new(open), 0);
    ours.caller = nobody;
    let trie = MapCreateAttr {
        key_size: 8,
        map_flags: MapFlags::NO_PREALLOC.bits(),
        ..attr(MapType::LPM_TRIE, 4)
    };
    let queue = MapCreateAttr {
        key_size: 0,
        ..attr(MapType::QUEUE, 4)
    };
    for a in [attr(MapType::LRU_HASH, 4), trie, queue] {
        assert_eq!(ours.create(&a), Err(EPERM), "{a:?}");
        assert!(ours.reason.contains("CAP_BPF"), "{}", ours.reason);
    }
    for map_type in [HASH, ARRAY] {
        ours.map(&attr(map_type, 4));
    }
}

#[test]
fn a10_the_device_is_asked_before_the_name_is_looked_at() {
    let bad = |a| MapCreateAttr {
        map_name: name(b"a-b"),
        ..a
    };
    let lo = MapCreateAttr {
        map_ifindex: 1,
        ..attr(HASH, 4)
    };
    wins(&bad(lo), EOPNOTSUPP, "map_ifindex 1");
    wins(&bad(attr(HASH, 1 << 31)), E2BIG, "max_entries");
    let (mut ours, log) = recorded(SystemConfig::default(), Some(Errno::EBADFD));
    assert_eq!(ours.create(&bad(attr(HASH, 4))), Err(EBADFD));
    // What the device refused it is not asked to free.
    ours.system.flush_frees();
    assert_eq!(seen(&log), ["ALLOC"]);
}

#[test]
fn a11_the_name_before_the_btf() {
    let bad = |text: &[u8]| MapCreateAttr {
        map_name: name(text),
        btf_fd: 999,
        btf_value_type_id: 1,
        ..attr(HASH, 4)
    };
    for text in [&b"a-b"[..], b" ", b"a\x01", b"0123456789abcdef"] {
        wins(&bad(text), EINVAL, "map_name");
        let (mut ours, log) = willing();
        after_alloc(&mut ours, &log, &bad(text), EINVAL, "map_name");
    }
    // 15 bytes are a name, and what follows the first NUL is none of it.
    wins(&bad(b"0123456789abcde"), EBADF, "btf_fd 999");
    wins(&bad(b"a.b_C9\0-- -"), EBADF, "btf_fd 999");
    everywhere(|m| {
        let a = MapCreateAttr {
            map_name: name(b"x\0-"),
            ..attr(HASH, 2)
        };
        let fd = m.map(&a);
        let (info, _) = m.info(fd, &[0; 80]).unwrap();
        assert_eq!(info[24..40], name(b"x"), "{}", m.name());
    });
}

#[test]
fn a12_one_reference_and_one_user() {
    let (mut ours, log) = willing();
    let fd = ours.map(&attr(HASH, 4));
    let second = ours.system.dup(offmap_bpf::Fd(fd)).unwrap();
    ours.close(fd);
    ours.system.flush_frees();
    assert_eq!(seen(&log), ["ALLOC"]);
    ours.close(second.0);
    ours.system.flush_frees();
    assert_eq!(seen(&log), ["ALLOC", "FREE"]);
}

/// A security module that refuses new maps, and counts them.
struct Refuses(AtomicU32);

impl SecurityHook for Refuses {
    fn map_create(&self, _caller: &Caller, map: &SecurityMap) -> Result<(), Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        assert_eq!(map.id, 0, "the id comes later");
        Err(Error::new(
            Errno::EACCES,
            "the security module refuses maps",
        ))
    }
}

fn guarded(config: SystemConfig) -> (Ours, Seen, Arc<Refuses>) {
    let hook = Arc::new(Refuses(AtomicU32::new(0)));
    let system = System::with_security(config, Arc::clone(&hook) as _);
    let (device, log) = Recorder::new(None, None);
    let nic = system.register_netdev("nic0", device).unwrap();
    (Ours::over("guarded", system, nic.0), log, hook)
}

#[test]
fn a13_the_btf_before_the_security_hook() {
    let (mut ours, log, hook) = guarded(SystemConfig::default());
    let a = MapCreateAttr {
        btf_fd: 999,
        btf_value_type_id: 1,
        ..attr(HASH, 4)
    };
    after_alloc(&mut ours, &log, &a, EBADF, "btf_fd 999");
    assert_eq!(hook.0.load(Ordering::Relaxed), 0);
    // A descriptor alone is not looked at.
    on_hosts(|m| {
        m.map(&MapCreateAttr {
            btf_fd: 999,
            ..attr(HASH, 4)
        });
    });
}

#[test]
fn a15_the_security_hook_before_the_id() {
    let config = SystemConfig {
        max_map_id: 0,
        ..SystemConfig::default()
    };
    let (mut ours, log, hook) = guarded(config);
    after_alloc(&mut ours, &log, &attr(HASH, 4), EACCES, "security module");
    assert_eq!(hook.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a16_both_modes_never_reach_the_device() {
    // 6.1 to 6.18 check at row 4; 7.3 checks here only, and its device sees ALLOC and FREE.
    let (mut ours, log) = willing();
    let a = MapCreateAttr {
        map_flags: BOTH_MODES,
        ..attr(HASH, 4)
    };
    assert_eq!(ours.create(&a), Err(EINVAL));
    assert!(ours.reason.contains("RDONLY"), "{}", ours.reason);
    ours.system.flush_frees();
    assert!(seen(&log).is_empty());
}

#[test]
fn a17_the_id_before_the_descriptor() {
    let config = SystemConfig {
        max_map_id: 2,
        first_fd: 3,
        max_fds: 5,
        ..SystemConfig::default()
    };
    let (mut ours, log) = recorded(config, None);
    let fds = [ours.map(&attr(HASH, 4)), ours.map(&attr(HASH, 4))];
    // Neither an id nor a descriptor is left.
    after_alloc(&mut ours, &log, &attr(HASH, 4), ENOSPC, "id");
    ours.close(fds[0]);
    ours.map(&attr(HASH, 4));
}

#[test]
fn a17_ids_are_cyclic_from_1_and_not_reused_at_once() {
    let config = SystemConfig {
        max_map_id: 3,
        ..SystemConfig::default()
    };
    let (mut ours, _log) = recorded(config, None);
    let mut ids = Vec::new();
    for _ in 0..5 {
        let fd = ours.map(&attr(HASH, 4));
        let (info, _) = ours.info(fd, &[0; 8]).unwrap();
        ids.push(offmap_tests::contract::u32_of(&info[4..]));
        ours.close(fd);
    }
    assert_eq!(ids, [1, 2, 3, 1, 2]);
}

#[test]
fn a18_a_descriptor_or_emfile() {
    let config = SystemConfig {
        first_fd: 3,
        max_fds: 4,
        ..SystemConfig::default()
    };
    let (mut ours, log) = recorded(config, None);
    let fd = ours.map(&attr(HASH, 4));
    assert_eq!(fd, 3);
    after_alloc(&mut ours, &log, &attr(HASH, 4), EMFILE, "descriptor");
    // The id that the refused map had is free again, and it is not listed.
    let (listed, first) = ours.by_id(c::MAP_GET_NEXT_ID, 0);
    listed.unwrap();
    assert_eq!(ours.by_id(c::MAP_GET_NEXT_ID, first).0, Err(ENOENT));
    // [run]: the kernel's is closed by exec.
    if let Ok(mut kernel) = Theirs::new() {
        let fd = kernel.map(&attr(HASH, 4));
        let flags = rustix::io::fcntl_getfd(kernel.calls.fd(fd).unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

// `bpf_map_offload_map_alloc`.

fn on(ifindex: u32, map_type: MapType) -> MapCreateAttr {
    MapCreateAttr {
        map_ifindex: ifindex,
        ..attr(map_type, 4)
    }
}

#[test]
fn a_offload_1_sys_admin_before_the_type() {
    let bpf = Caller::unprivileged().with_capabilities(Capabilities::BPF | Capabilities::NET_ADMIN);
    for map_type in [HASH, MapType::PERCPU_HASH] {
        refused_for(bpf, &on(9999, map_type), EPERM, "CAP_SYS_ADMIN");
    }
    on_strict(|_, ours| {
        ours.caller = bpf;
        assert_eq!(ours.create(&attr(MapType::PERCPU_ARRAY, 2)), Err(EPERM));
    });
}

#[test]
fn a_offload_2_the_type_before_the_netdev() {
    for map_type in [MapType::PERCPU_HASH, MapType::LRU_HASH] {
        wins(&on(1, map_type), EINVAL, "map_type");
    }
    on_strict(|_, ours| {
        let refused = ours.create(&attr(MapType::PERCPU_ARRAY, 2));
        assert_eq!(refused, Err(EINVAL));
        assert!(ours.reason.contains("map_type"), "{}", ours.reason);
    });
}

#[test]
fn a_offload_3_the_netdev() {
    wins(&on(9999, HASH), EINVAL, "map_ifindex 9999");
    wins(&on(1, HASH), EOPNOTSUPP, "map_ifindex 1");
    let (mut ours, log) = willing();
    let idle = ours.system.add_netdev_unregistered("idle0", NetNs::INIT);
    assert_eq!(ours.create_as_is(&on(idle.unwrap().0, HASH)), Err(EINVAL));
    assert!(ours.reason.contains("registered"), "{}", ours.reason);
    // In the caller's namespace.
    ours.caller = Caller::root().in_netns(NetNs { dev: 4, ino: 77 });
    assert_eq!(ours.create(&attr(HASH, 4)), Err(EINVAL));
    assert!(seen(&log).is_empty());
}

#[test]
fn a_offload_4_the_drivers_errno_passes_through() {
    for errno in [Errno::EBADFD, Errno::ENOMEM, Errno::EOPNOTSUPP, Errno(4095)] {
        let (mut ours, log) = recorded(SystemConfig::default(), Some(errno));
        assert_eq!(ours.create(&attr(HASH, 7)), Err(errno.0));
        assert!(ours.reason.contains("max_entries 7"), "{}", ours.reason);
        assert_eq!(seen(&log), ["ALLOC"]);
    }
}

#[test]
fn a_offload_5_the_map_joins_the_devices_list() {
    let (mut ours, log) = willing();
    let (here, host) = (ours.map(&attr(HASH, 4)), {
        ours.create_as_is(&attr(HASH, 4)).unwrap()
    });
    ours.system
        .unregister_netdev(IfIndex(ours.ifindex))
        .unwrap();
    assert_eq!(seen(&log), ["ALLOC", "FREE"]);
    assert_eq!(ours.lookup(here, &key(0), 8, 0), Err(ENODEV));
    assert_eq!(ours.lookup(host, &key(0), 8, 0), Err(ENOENT));
}

// The entry to all commands.

#[test]
fn a_entry_1_more_than_a_page() {
    everywhere(|m| {
        let at = m.base();
        for size in [4097, 8192, u32::MAX] {
            assert_eq!(
                m.bpf(c::MAP_CREATE, at, size),
                Err(E2BIG),
                "{} {size}",
                m.name()
            );
            // Before the pointer is followed.
            assert_eq!(
                m.bpf(c::MAP_CREATE, 1, size),
                Err(E2BIG),
                "{} {size}",
                m.name()
            );
        }
    });
}

#[test]
fn a_entry_2_a_tail_that_is_not_zero() {
    everywhere(|m| {
        let mut bytes = create_bytes(&attr(HASH, 2)).to_vec();
        bytes.resize(256, 0);
        let fd = m.raw(c::MAP_CREATE, &bytes).unwrap();
        m.close(fd);
        bytes[255] = 1;
        assert_eq!(m.raw(c::MAP_CREATE, &bytes), Err(E2BIG), "{}", m.name());
        // Before CHECK_ATTR, which would say EINVAL, and before the command is known.
        bytes[100] = 1;
        assert_eq!(m.raw(c::MAP_CREATE, &bytes), Err(E2BIG), "{}", m.name());
        assert_eq!(m.raw(1 << 21, &bytes), Err(E2BIG), "{}", m.name());
    });
}

#[test]
fn a_entry_3_a_bad_pointer() {
    everywhere(|m| {
        let end = m.base() + offmap_tests::contract::ARENA_BYTES as u64;
        for at in [0, 1, end, end - 8, u64::MAX] {
            assert_eq!(
                m.bpf(c::MAP_CREATE, at, 92),
                Err(EFAULT),
                "{} {at:#x}",
                m.name()
            );
        }
    });
}

#[test]
fn a_entry_4_a_short_attribute_is_zero_extended() {
    everywhere(|m| {
        let mut bytes = create_bytes(&attr(HASH, 2));
        let map_ifindex = m.ifindex();
        bytes[44..48].copy_from_slice(&map_ifindex.to_ne_bytes());
        // What lies behind it in memory is not read.
        m.put(0, &[0xff; 128]);
        let size = if map_ifindex == 0 { 16 } else { 48 };
        let fd = m.raw(c::MAP_CREATE, &bytes[..size]).unwrap();
        let (info, _) = m.info(fd, &[0; 24]).unwrap();
        assert_eq!(info[8..20], bytes[4..16], "{}", m.name());
        assert_eq!(
            m.raw(c::MAP_CREATE, &bytes[..12]),
            Err(EINVAL),
            "no max_entries"
        );
    });
}

#[test]
fn a_entry_5_an_unknown_command() {
    everywhere(|m| {
        for number in [1 << 20, 1 << 31, u32::MAX] {
            assert_eq!(
                m.raw(number, &[0; 16]),
                Err(EINVAL),
                "{} {number}",
                m.name()
            );
        }
    });
}
