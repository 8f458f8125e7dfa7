//! Commands on an offloaded map (contract §B and §F), removal of its device, and free.

mod common;

use common::{FakeDevice, attr, errno, logged, system};
use offmap_bpf::device::{OffloadCommands, OffloadRules};
use offmap_bpf::{Caller, Errno, Fd, IfIndex, MapCreateAttr, MapFlags, MapType, NetNs, System};

const K: [u8; 4] = [1, 0, 0, 0];
const V: [u8; 8] = *b"value..8";

fn offloaded(system: &System, nic: IfIndex, map_type: MapType) -> Fd {
    let attr = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(map_type, 2)
    };
    system.map_create(&Caller::root(), &attr).unwrap()
}

#[test]
fn what_does_not_reach_a_strict_device() {
    let system = system();
    let (device, _) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let fd = offloaded(&system, nic, MapType::HASH);
    let mut v = [0; 8];
    system.update(fd, &K, &V, 0).unwrap();
    system.lookup(fd, &K, &mut v, 0).unwrap();
    assert_eq!(v, V);
    assert_eq!(
        errno(system.lookup_and_delete(fd, &K, &mut v, 0)),
        Errno::ENOTSUPP
    );
    assert_eq!(
        errno(system.lookup_and_delete(fd, &K, &mut v, 8)),
        Errno::EINVAL
    );
    for bad in [3, 4, 5, 8, 1 << 32] {
        assert_eq!(errno(system.update(fd, &K, &V, bad)), Errno::EINVAL);
        assert_eq!(
            errno(system.lookup(fd, &K, &mut v, bad & !3 | 4)),
            Errno::EINVAL
        );
    }
    let mut k = K;
    // Any batch call, any arguments: 524, also with bad flags or nothing to do.
    for (count, flags) in [(0, 0), (0, 8), (1, 0), (1, 8)] {
        let keys = &mut k[..4 * count as usize];
        let values = &mut v[..8 * count as usize];
        let outcomes = [
            system.update_batch(fd, keys, values, count, flags, 0),
            system.delete_batch(fd, keys, count, flags, 0),
            system.lookup_batch(fd, None, &mut [0; 4], keys, values, count, flags, 0),
            system.lookup_and_delete_batch(fd, None, &mut [0; 4], keys, values, count, flags, 0),
        ];
        for outcome in outcomes {
            assert_eq!(errno(outcome.result), Errno::ENOTSUPP);
        }
    }
    // The Rust API's many lookups work all the same.
    let mut results = [Ok(()); 2];
    let mut values = [0; 16];
    system
        .lookup_many(fd, &[1, 0, 0, 0, 9, 0, 0, 0], &mut values, &mut results)
        .unwrap();
    assert_eq!(results, [Ok(()), Err(Errno::ENOENT)]);
    assert_eq!(values[..8], V);
    // Frozen comes before all that, for what writes.
    system.freeze(fd).unwrap();
    assert_eq!(errno(system.freeze(fd)), Errno::EPERM);
    assert_eq!(errno(system.update(fd, &K, &V, 8)), Errno::EPERM);
    assert_eq!(errno(system.delete(fd, &K)), Errno::EPERM);
    assert_eq!(
        errno(system.lookup_and_delete(fd, &K, &mut v, 0)),
        Errno::EPERM
    );
    assert_eq!(
        errno(system.update_batch(fd, &K, &V, 1, 8, 0).result),
        Errno::EPERM
    );
    let walked = system.lookup_batch(fd, None, &mut [0; 4], &mut k, &mut v, 1, 0, 0);
    assert_eq!(errno(walked.result), Errno::ENOTSUPP);
    system.lookup(fd, &K, &mut v, 0).unwrap();
}

#[test]
fn rules_open_types_and_batches() {
    let system = system();
    let rules = OffloadRules {
        more_map_types: 1 << MapType::PERCPU_HASH.0,
        commands: OffloadCommands::all(),
        ..OffloadRules::default()
    };
    let (device, _) = FakeDevice::with(rules, None);
    let nic = system.register_netdev("nic0", device).unwrap();
    let fd = offloaded(&system, nic, MapType::PERCPU_HASH);
    // This device has no batch operations of its own: its answer passes through; what is
    // wrong with the call itself comes first.
    let outcome = system.update_batch(fd, &K, &[0; 16], 1, 8, 0);
    assert_eq!(errno(outcome.result), Errno::EINVAL);
    let outcome = system.update_batch(fd, &K, &[0; 16], 1, 0, 0);
    assert!(outcome.result.unwrap_err().reason().contains("this device"));
    let mut v = [0; 16];
    let refused = system.lookup_and_delete(fd, &K, &mut v, 0).unwrap_err();
    assert!(refused.reason().contains("this device"));
}

#[test]
fn removal_without_a_sibling() {
    let system = system();
    let root = Caller::root();
    let (device, log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let fd = offloaded(&system, nic, MapType::HASH);
    let host = system.map_create(&root, &attr(MapType::HASH, 1)).unwrap();
    let info = system.info(fd).unwrap();
    let offload = info.offload.unwrap();
    assert_eq!((offload.ifindex, offload.device_bytes), (nic.0, 4096));
    system.unregister_netdev(nic).unwrap();
    assert_eq!(logged(&log), ["ALLOC", "FREE"], "freed before it returned");

    let mut v = V;
    let mut k = K;
    assert_eq!(errno(system.lookup(fd, &K, &mut v, 0)), Errno::ENODEV);
    assert_eq!(errno(system.update(fd, &K, &V, 3)), Errno::EINVAL);
    assert_eq!(errno(system.update(fd, &K, &V, 0)), Errno::ENODEV);
    assert_eq!(errno(system.delete(fd, &K)), Errno::ENODEV);
    assert_eq!(errno(system.get_next_key(fd, None, &mut k)), Errno::ENODEV);
    assert_eq!(errno(system.info(fd)), Errno::ENODEV);
    assert_eq!(
        errno(system.lookup_and_delete(fd, &K, &mut v, 0)),
        Errno::ENOTSUPP
    );
    assert_eq!(
        errno(system.get_fd_by_id(&root, info.id, MapFlags::empty())),
        Errno::ENOENT
    );
    assert_eq!(
        system.get_next_id(&root, 0).unwrap(),
        system.info(host).unwrap().id
    );
    let again = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 2)
    };
    assert_eq!(errno(system.map_create(&root, &again)), Errno::EINVAL);
    // The device comes back under another index; the old map stays dead.
    let (device, _) = FakeDevice::new();
    assert!(system.register_netdev("nic0", device).unwrap() > nic);
    assert_eq!(errno(system.lookup(fd, &K, &mut v, 0)), Errno::ENODEV);
    let copy = system.dup(fd).unwrap();
    system.freeze(fd).unwrap();
    assert_eq!(errno(system.update(copy, &K, &V, 0)), Errno::EPERM);
    system.close(fd).unwrap();
    system.close(copy).unwrap();
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC", "FREE"], "not freed twice");
}

#[test]
fn maps_move_between_ports_of_one_device() {
    let system = system();
    let root = Caller::root();
    let (device, log) = FakeDevice::new();
    let (stranger, _) = FakeDevice::new();
    let port0 = system.register_netdev("p0", device.clone()).unwrap();
    let other = NetNs { dev: 4, ino: 77 };
    let port1 = system.register_netdev_in(other, "p1", device).unwrap();
    system.register_netdev("x0", stranger).unwrap();
    let fd = offloaded(&system, port0, MapType::HASH);
    let id = system.info(fd).unwrap().id;
    system.update(fd, &K, &V, 0).unwrap();
    system.unregister_netdev(port0).unwrap();
    let info = system.info(fd).unwrap();
    let offload = info.offload.unwrap();
    assert_eq!(
        (info.id, offload.ifindex, offload.netns),
        (id, port1.0, other)
    );
    let mut v = [0; 8];
    system.lookup(fd, &K, &mut v, 0).unwrap();
    assert_eq!(system.get_next_id(&root, 0).unwrap(), id);
    system.unregister_netdev(port1).unwrap();
    assert_eq!(errno(system.lookup(fd, &K, &mut v, 0)), Errno::ENODEV);
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
    assert_eq!(errno(system.unregister_netdev(port1)), Errno::ENODEV);
}

#[test]
fn the_id_goes_at_once_and_the_storage_from_the_worker() {
    let system = system();
    let root = Caller::root();
    let (device, log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let fd = offloaded(&system, nic, MapType::ARRAY);
    let id = system.info(fd).unwrap().id;
    let again = system.get_fd_by_id(&root, id, MapFlags::RDONLY).unwrap();
    let file = system.map_file(again).unwrap();
    system.close(fd).unwrap();
    system.close(again).unwrap();
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC"], "a file still refers to the map");
    assert_eq!(
        errno(file.update(&K, &V, 0)),
        Errno::EPERM,
        "opened read-only"
    );
    drop(file);
    assert_eq!(errno(system.get_next_id(&root, 0)), Errno::ENOENT);
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);

    // Dropping the system frees what is open, and waits for it; a file that is still held
    // outlives it and its map is freed by the holder.
    let open = offloaded(&system, nic, MapType::HASH);
    let held = offloaded(&system, nic, MapType::HASH);
    let file = system.map_file(held).unwrap();
    let _ = open;
    drop(system);
    assert_eq!(logged(&log), ["ALLOC", "FREE", "ALLOC", "ALLOC", "FREE"]);
    file.update(&K, &V, 0).unwrap();
    drop(file);
    assert_eq!(logged(&log).last().unwrap(), "FREE off the worker");
}

#[test]
fn a_device_sees_the_permanent_flags_only() {
    let system = system();
    let (device, log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    for (map_flags, seen) in [
        (0x10, "ALLOC"),
        (0x8, "ALLOC"),
        (0x81 | 8, "ALLOC flags 0x81"),
    ] {
        let attr = MapCreateAttr {
            map_ifindex: nic.0,
            map_flags,
            ..attr(MapType::HASH, 2)
        };
        let fd = system.map_create(&Caller::root(), &attr).unwrap();
        assert_eq!(logged(&log).last().unwrap(), seen);
        assert_eq!(system.info(fd).unwrap().map_flags.bits(), map_flags & !0x18);
    }
}

#[test]
fn duplicates_share_one_open_file() {
    let system = system();
    let fd = system
        .map_create(&Caller::root(), &attr(MapType::HASH, 2))
        .unwrap();
    let copies = [system.dup(fd).unwrap(), system.dup(fd).unwrap()];
    // The file in the table, and this handle.
    let file = system.map_file(fd).unwrap();
    assert!(format!("{file:?}").contains("users: 2,"), "{file:?}");
    system.close(fd).unwrap();
    system.close(copies[0]).unwrap();
    assert!(format!("{file:?}").contains("users: 2,"), "{file:?}");
    system.update(copies[1], &K, &V, 0).unwrap();
    system.close(copies[1]).unwrap();
    assert!(format!("{file:?}").contains("users: 1,"), "{file:?}");
    assert_eq!(errno(system.delete(copies[1], &K)), Errno::EBADF);
}
