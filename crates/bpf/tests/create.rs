//! BPF_MAP_CREATE: which refusal comes first (contract §A), and the limits that a 6.18 kernel
//! was seen to have.

mod common;

use common::{FakeDevice, attr, errno, logged, system};
use offmap_bpf::{
    Caller, Capabilities, Errno, MapCreateAttr, MapFlags, MapType, NetNs, System, SystemConfig,
};

const HASH: MapType = MapType::HASH;
const ARRAY: MapType = MapType::ARRAY;
const PERCPU_HASH: MapType = MapType::PERCPU_HASH;
const PERCPU_ARRAY: MapType = MapType::PERCPU_ARRAY;
const ALL: [MapType; 4] = [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY];

/// `None` when the map is created (and closed again).
fn create(attr: MapCreateAttr) -> Option<Errno> {
    let system = system();
    let created = system.map_create(&Caller::root(), &attr);
    created.err().map(|error| error.errno())
}

fn name(text: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..text.len()].copy_from_slice(text);
    out
}

#[test]
fn each_row_comes_before_the_next() {
    // Everything is wrong; then, one by one, each thing is put right, and the next decides.
    let (device, log) = FakeDevice::with(Default::default(), Some(Errno::EBADFD));
    let (willing, willing_log) = FakeDevice::new();
    let system = system();
    let nic = system.register_netdev("nic0", device).unwrap();
    let good = system.register_netdev("nic1", willing).unwrap();
    let nobody = Caller::unprivileged();
    let bpf = nobody.with_capabilities(Capabilities::BPF);
    let root = Caller::root();

    let mut a = MapCreateAttr {
        map_type: 999,
        map_extra: 1,
        map_flags: 0x18 | 1 << 2,
        numa_node: 5,
        map_name: name(b"a-b"),
        btf_key_type_id: 1,
        map_ifindex: 9999,
        ..MapCreateAttr::default()
    };
    let refused = |caller: &Caller, a: &MapCreateAttr, word: &str| {
        let error = system.map_create(caller, a).expect_err(word);
        assert!(error.reason().contains(word), "{word}: {}", error.reason());
        error.errno()
    };
    assert_eq!(refused(&nobody, &a, "btf_key_type_id"), Errno::EINVAL);
    a.btf_value_type_id = 2;
    a.btf_fd = 77;
    assert_eq!(refused(&nobody, &a, "map_extra"), Errno::EINVAL);
    a.map_extra = 0;
    assert_eq!(refused(&nobody, &a, "RDONLY"), Errno::EINVAL);
    a.map_flags = 1 << 2 | 1 << 10;
    assert_eq!(refused(&nobody, &a, "numa_node 5"), Errno::EINVAL);
    a.numa_node = 0;
    assert_eq!(refused(&nobody, &a, "map_type 999"), Errno::EINVAL);
    a.map_type = HASH.0;
    assert_eq!(refused(&nobody, &a, "map_flags"), Errno::EINVAL);
    a.map_flags = 0;
    assert_eq!(refused(&nobody, &a, "max_entries 0"), Errno::EINVAL);
    a = MapCreateAttr {
        key_size: 4,
        value_size: 8,
        max_entries: u32::MAX,
        ..a
    };
    assert_eq!(refused(&nobody, &a, "CAP_BPF"), Errno::EPERM);
    assert_eq!(refused(&bpf, &a, "CAP_SYS_ADMIN"), Errno::EPERM);
    assert_eq!(refused(&root, &a, "map_ifindex 9999"), Errno::EINVAL);
    a.map_ifindex = 1;
    assert_eq!(refused(&root, &a, "map_ifindex 1"), Errno::EOPNOTSUPP);
    assert!(logged(&log).is_empty());
    a.map_ifindex = nic.0;
    assert_eq!(refused(&root, &a, "told to fail"), Errno::EBADFD);
    assert_eq!(logged(&log), ["ALLOC"]);
    a.map_ifindex = good.0;
    assert_eq!(refused(&root, &a, "map_name"), Errno::EINVAL);
    system.flush_frees();
    assert_eq!(logged(&willing_log), ["ALLOC", "FREE"]);
    a.map_name = name(b"a.b_C9");
    assert_eq!(refused(&root, &a, "btf_fd 77"), Errno::EBADF);
    system.flush_frees();
    assert_eq!(logged(&willing_log), ["ALLOC", "FREE", "ALLOC", "FREE"]);
    a.btf_value_type_id = 0;
    a.btf_key_type_id = 0;
    assert!(
        system.map_create(&root, &a).is_ok(),
        "btf_fd alone is not looked at"
    );
}

#[test]
fn offload_asks_in_the_kernels_order() {
    let system = system();
    let (device, log) = FakeDevice::new();
    let other = NetNs { dev: 4, ino: 9 };
    let elsewhere = system.register_netdev_in(other, "nic0", device).unwrap();
    let idle = system
        .add_netdev_unregistered("idle0", NetNs::INIT)
        .unwrap();
    let on = |ifindex: u32, map_type| MapCreateAttr {
        map_ifindex: ifindex,
        ..attr(map_type, 1 << 31)
    };
    let root = Caller::root();
    // Not permitted comes before a type that cannot be offloaded.
    let unprivileged = Caller::unprivileged().with_capabilities(Capabilities::BPF);
    assert_eq!(
        errno(system.map_create(&unprivileged, &on(1, PERCPU_HASH))),
        Errno::EPERM
    );
    // The type comes before the interface.
    assert_eq!(
        errno(system.map_create(&root, &on(1, PERCPU_ARRAY))),
        Errno::EINVAL
    );
    assert_eq!(
        errno(system.map_create(&root, &on(1, HASH))),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        errno(system.map_create(&root, &on(1 << 31, HASH))),
        Errno::EINVAL
    );
    assert_eq!(
        errno(system.map_create(&root, &on(idle.0, HASH))),
        Errno::EINVAL
    );
    assert_eq!(
        errno(system.map_create(&root, &on(elsewhere.0, HASH))),
        Errno::EINVAL
    );
    assert!(logged(&log).is_empty());
    // A host map of 2^31 entries is E2BIG; the device decides for itself.
    assert!(
        system
            .map_create(&root.in_netns(other), &on(elsewhere.0, HASH))
            .is_ok()
    );
    assert_eq!(
        errno(system.map_create(&root, &attr(HASH, 1 << 31))),
        Errno::E2BIG
    );
}

#[test]
fn flags_by_type() {
    // [run] on 6.18: the flag bits that each type takes.
    let accepted = [
        (HASH, 0x1dd_u32),
        (PERCPU_HASH, 0x1d9),
        (ARRAY, 0x159c),
        (PERCPU_ARRAY, 0x198),
    ];
    for (map_type, mask) in accepted {
        for bit in 0..32 {
            let with = MapCreateAttr {
                map_flags: 1 << bit,
                ..attr(map_type, 4)
            };
            let expected = match bit {
                // Descriptor 0 is open, and no token.
                16 => Some(Errno::EINVAL),
                _ if mask >> bit & 1 == 1 => None,
                _ => Some(Errno::EINVAL),
            };
            assert_eq!(create(with), expected, "{map_type}, bit {bit}");
        }
        for both in [0x18, 0x180] {
            let with = MapCreateAttr {
                map_flags: both,
                ..attr(map_type, 4)
            };
            assert_eq!(create(with), Some(Errno::EINVAL));
        }
        let token = MapCreateAttr {
            map_flags: MapFlags::TOKEN_FD.bits(),
            map_token_fd: 77,
            ..attr(map_type, 4)
        };
        assert_eq!(create(token), Some(Errno::EBADF), "descriptor 77 is closed");
        // A node without the flag is ignored; NUMA_NO_NODE with it is no node.
        let flag = MapFlags::NUMA_NODE.bits();
        for (map_flags, numa_node, ok) in [(0, 77, true), (flag, u32::MAX, true), (flag, 1, false)]
        {
            let with = MapCreateAttr {
                map_flags,
                numa_node,
                ..attr(map_type, 4)
            };
            assert_eq!(create(with).is_none(), ok, "{map_type} node {numa_node}");
        }
    }
}

#[test]
fn size_limits() {
    let sized = |map_type, key_size, value_size, max_entries| {
        create(MapCreateAttr {
            key_size,
            value_size,
            ..attr(map_type, max_entries)
        })
    };
    // [run] on 6.18.
    let element = (4 << 20) - 48;
    assert_eq!(sized(HASH, 4, element - 5, 1), None);
    assert_eq!(sized(HASH, 4, element - 4, 1), Some(Errno::E2BIG));
    assert_eq!(sized(HASH, u32::MAX, 8, 1), Some(Errno::E2BIG));
    assert_eq!(sized(HASH, 4, 8, 1 << 26), None);
    assert_eq!(sized(HASH, 4, 8, (1 << 27) + 1), Some(Errno::E2BIG));
    assert_eq!(sized(HASH, 4, 8, u32::MAX), Some(Errno::E2BIG));
    for map_type in [PERCPU_HASH, PERCPU_ARRAY] {
        assert_eq!(sized(map_type, 4, 32768, 1), None);
        assert_eq!(sized(map_type, 4, 32769, 1), Some(Errno::E2BIG));
    }
    assert_eq!(sized(ARRAY, 4, 1 << 24, 1), None);
    assert_eq!(sized(ARRAY, 4, 1 << 31, 1), Some(Errno::E2BIG));
    assert_eq!(sized(ARRAY, 8, 8, 1), Some(Errno::EINVAL));
    // More than an address space: refused with a reason, not an abort.
    assert_eq!(
        sized(ARRAY, 4, i32::MAX as u32, u32::MAX),
        Some(Errno::ENOMEM)
    );
    for map_type in ALL {
        assert_eq!(sized(map_type, 0, 8, 4), Some(Errno::EINVAL));
        assert_eq!(sized(map_type, 4, 0, 4), Some(Errno::EINVAL));
        assert_eq!(sized(map_type, 4, 8, 0), Some(Errno::EINVAL));
    }
}

#[test]
fn names() {
    for (text, ok) in [
        (&b"a-b"[..], false),
        (&[b'a'; 16], false),
        (&[b'a'; 15], true),
        (b"a\0-", true),
        (b"a b", false),
        (b"", true),
    ] {
        let named = MapCreateAttr {
            map_name: name(text),
            ..attr(HASH, 4)
        };
        assert_eq!(create(named).is_none(), ok, "{text:?}");
    }
    let system = system();
    let fd = system.map_create(
        &Caller::root(),
        &MapCreateAttr {
            map_name: name(b"ab\0-"),
            ..attr(HASH, 4)
        },
    );
    let info = system.info(fd.unwrap()).unwrap();
    assert_eq!(info.name(), "ab");
    assert_eq!(info.name, name(b"ab"));
}

#[test]
fn zero_seed_and_the_sysctl() {
    let seeded = MapCreateAttr {
        map_flags: MapFlags::ZERO_SEED.bits(),
        ..attr(HASH, 4)
    };
    let system = System::new(SystemConfig {
        unprivileged_bpf_disabled: false,
        ..SystemConfig::default()
    });
    let nobody = Caller::unprivileged();
    assert_eq!(errno(system.map_create(&nobody, &seeded)), Errno::EPERM);
    assert!(system.map_create(&nobody, &attr(HASH, 4)).is_ok());
}

#[test]
fn ids_are_cyclic_and_descriptors_lowest_first() {
    let system = System::new(SystemConfig {
        max_fds: 6,
        max_map_id: 4,
        ..SystemConfig::default()
    });
    let root = Caller::root();
    let make = || system.map_create(&root, &attr(HASH, 1));
    let (a, b, c) = (make().unwrap(), make().unwrap(), make().unwrap());
    assert_eq!([a.0, b.0, c.0], [3, 4, 5]);
    assert_eq!(errno(make()), Errno::EMFILE);
    // The map that got no descriptor is gone with its id, which is 4.
    assert_eq!(errno(system.get_next_id(&root, 3)), Errno::ENOENT);
    let file = system.map_file(b).unwrap();
    system.close(b).unwrap();
    assert_eq!(errno(system.close(b)), Errno::EBADF);
    assert_eq!(
        system.get_next_id(&root, 1).unwrap(),
        2,
        "a file still refers to it"
    );
    let d = make().map_err(|e| e.to_string());
    assert_eq!(d, Ok(b), "the lowest free descriptor");
    // Ids 1, 2, 3 were given; 4 went to the map that failed; 1 to 3 are in use; 4 comes next.
    assert_eq!(system.info(b).unwrap().id, 4);
    system.close(b).unwrap();
    drop(file);
    let e = make().unwrap();
    assert_eq!(system.info(e).unwrap().id, 2);
    system.close(c).unwrap();
    let f = make().unwrap();
    assert_eq!(
        system.info(f).unwrap().id,
        3,
        "4 is not taken by chance: 3 comes first"
    );
}

#[test]
fn no_id_left() {
    let system = System::new(SystemConfig {
        max_map_id: 2,
        ..SystemConfig::default()
    });
    let root = Caller::root();
    let (device, log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    for _ in 0..2 {
        system.map_create(&root, &attr(ARRAY, 1)).unwrap();
    }
    let offloaded = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(ARRAY, 1)
    };
    assert_eq!(errno(system.map_create(&root, &offloaded)), Errno::ENOSPC);
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
}
