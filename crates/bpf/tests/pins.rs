//! Pins and what they keep, memory owners, security hooks, and which programs may use a map.

mod common;

use common::{FakeDevice, attr, errno, logged, system};
use offmap_bpf::device::OffloadDevice;
use offmap_bpf::error::Result;
use offmap_bpf::fs::{NodeKind, RenameFlags};
use offmap_bpf::{
    Caller, Capabilities, Errno, Error, Fd, MapAccess, MapCreateAttr, MapFlags, MapType,
    MemoryOwner, ProgramTraits, SecurityHook, SecurityMap, System, SystemConfig,
};
use std::sync::{Arc, Mutex};

const ROOT: Caller = Caller::root();

fn map(system: &System) -> Fd {
    let attr = attr(MapType::HASH, 4);
    system.map_create(&ROOT, &attr).unwrap()
}

#[test]
fn a_pin_keeps_a_map_and_its_device_table() {
    let (device, log) = FakeDevice::new();
    let system = system();
    let nic = system.register_netdev("nic0", device).unwrap();
    let attr = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 4)
    };
    let fd = system.map_create(&ROOT, &attr).unwrap();
    let fs = system.fs();
    system.obj_pin(&ROOT, fd, b"/sys/fs/bpf/m", None).unwrap();
    fs.link(&ROOT, b"/sys/fs/bpf/m", b"/sys/fs/bpf/n").unwrap();
    system.close(fd).unwrap();
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC"]);
    let again = system
        .obj_get(&ROOT, b"/sys/fs/bpf/m", MapFlags::RDONLY)
        .unwrap();
    assert_eq!(
        errno(system.update(again, &[0; 4], &[0; 8], 0)),
        Errno::EPERM
    );
    system.close(again).unwrap();
    fs.unlink(&ROOT, b"/sys/fs/bpf/m").unwrap();
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC"], "the second name keeps it");
    // The last name goes when another takes its place.
    let other = map(&system);
    system
        .obj_pin(&ROOT, other, b"/sys/fs/bpf/o", None)
        .unwrap();
    fs.rename(
        &ROOT,
        b"/sys/fs/bpf/o",
        b"/sys/fs/bpf/n",
        RenameFlags::empty(),
    )
    .unwrap();
    system.flush_frees();
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
}

#[test]
fn the_system_unmounts_before_its_worker_ends() {
    let (device, log) = FakeDevice::new();
    let system = system();
    let nic = system.register_netdev("nic0", device).unwrap();
    let attr = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 4)
    };
    let fd = system.map_create(&ROOT, &attr).unwrap();
    system.fs().mkdir(&ROOT, b"/sys/fs/bpf/d", 0o755).unwrap();
    system.open_dir(&ROOT, b"/sys/fs/bpf/d").unwrap();
    system.obj_pin(&ROOT, fd, b"/sys/fs/bpf/d/m", None).unwrap();
    drop(system);
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
}

#[test]
fn where_and_what_can_be_pinned() {
    let system = system();
    let fd = map(&system);
    let dir = system.open_dir(&ROOT, b"/sys/fs/bpf").unwrap();
    let pin = |fd, path: &[u8]| system.obj_pin(&ROOT, fd, path, None).map(drop);
    // As recorded on 6.18: the descriptor first, whatever the path is.
    assert_eq!(errno(pin(Fd(-1), b"")), Errno::EINVAL);
    assert_eq!(errno(pin(Fd(77), b"/sys/fs/bpf/m")), Errno::EINVAL);
    assert_eq!(errno(pin(dir, b"/sys/fs/bpf/m")), Errno::EINVAL);
    for outside in [&b"/m"[..], b"/sys/m", b"/sys/fs/m", b"m"] {
        assert_eq!(errno(pin(fd, outside)), Errno::EPERM);
    }
    assert_eq!(errno(pin(fd, b"/dev/m")), Errno::ENOENT);
    assert_eq!(errno(pin(fd, b"/sys/fs/bpf")), Errno::EEXIST);
    assert_eq!(errno(pin(fd, b"/")), Errno::EEXIST);
    assert_eq!(errno(pin(fd, b"/sys/fs/bpf/a.b")), Errno::EPERM);
    // A path ends at its NUL.
    pin(fd, b"/sys/fs/bpf/m\0junk/").unwrap();
    let stat = system.fs().stat(&ROOT, b"/sys/fs/bpf/m").unwrap();
    assert_eq!((stat.kind, stat.mode), (NodeKind::Map, 0o600));
    let get = |flags| system.obj_get(&ROOT, b"/sys/fs/bpf/m", flags);
    assert_eq!(errno(get(MapFlags::NO_PREALLOC)), Errno::EINVAL);
    let both = MapFlags::RDONLY | MapFlags::WRONLY;
    assert_eq!(errno(get(both)), Errno::EINVAL);
    // The descriptor, here 0, does not matter to an absolute path.
    get(MapFlags::PATH_FD).unwrap();
    // Relative to a descriptor.
    system.obj_pin(&ROOT, fd, b"n", Some(dir)).unwrap();
    let at = |path, dir| system.obj_get_at(&ROOT, path, dir, MapFlags::empty());
    at(b"n", Some(dir)).unwrap();
    at(b"/sys/fs/bpf/n", Some(Fd(99))).unwrap();
    assert_eq!(errno(at(b"n", Some(Fd(99)))), Errno::EBADF);
    assert_eq!(errno(at(b"n", Some(fd))), Errno::ENOTDIR);
    assert_eq!(errno(at(b"n", None)), Errno::ENOENT);
}

#[test]
fn permission_bits_decide_who_opens_a_pin() {
    let system = system();
    let fd = map(&system);
    let fs = system.fs();
    system.obj_pin(&ROOT, fd, b"/sys/fs/bpf/m", None).unwrap();
    let nobody = Caller::unprivileged();
    let get = |caller: &Caller, flags| {
        let fd = system.obj_get(caller, b"/sys/fs/bpf/m", flags)?;
        system.close(fd)
    };
    let (any, read) = (MapFlags::empty(), MapFlags::RDONLY);
    assert_eq!(errno(get(&nobody, read)), Errno::EACCES);
    fs.chmod(&ROOT, b"/sys/fs/bpf/m", 0o604).unwrap();
    get(&nobody, read).unwrap();
    assert_eq!(errno(get(&nobody, any)), Errno::EACCES);
    get(&nobody.with_capabilities(Capabilities::DAC_OVERRIDE), any).unwrap();
    // Sticky, as the root of a bpffs is: others' pins stay, though all may add their own.
    assert_eq!(errno(fs.unlink(&nobody, b"/sys/fs/bpf/m")), Errno::EPERM);
    system
        .obj_pin(&nobody, fd, b"/sys/fs/bpf/mine", None)
        .unwrap();
    fs.unlink(&nobody, b"/sys/fs/bpf/mine").unwrap();
    let masked = Caller {
        umask: 0o277,
        ..ROOT
    };
    system.obj_pin(&masked, fd, b"/sys/fs/bpf/u", None).unwrap();
    assert_eq!(fs.stat(&ROOT, b"/sys/fs/bpf/u").unwrap().mode, 0o400);
}

#[test]
fn the_tree_has_a_limit() {
    let system = System::new(SystemConfig {
        max_fs_entries: 3,
        ..SystemConfig::default()
    });
    let fd = map(&system);
    let fs = system.fs();
    fs.mkdir(&ROOT, b"/sys/fs/bpf/d", 0o755).unwrap();
    system.obj_pin(&ROOT, fd, b"/sys/fs/bpf/d/m", None).unwrap();
    fs.symlink(&ROOT, b"m", b"/sys/fs/bpf/d/s").unwrap();
    let full = fs.link(&ROOT, b"/sys/fs/bpf/d/m", b"/sys/fs/bpf/d/n");
    let full = full.unwrap_err();
    assert_eq!(full.errno(), Errno::ENOSPC);
    assert!(full.reason().contains("3 directory entries"));
    fs.rename(
        &ROOT,
        b"/sys/fs/bpf/d/m",
        b"/sys/fs/bpf/m",
        RenameFlags::empty(),
    )
    .unwrap();
    assert_eq!(
        errno(fs.mkdir(&ROOT, b"/sys/fs/bpf/e", 0o755)),
        Errno::ENOSPC
    );
    fs.unlink(&ROOT, b"/sys/fs/bpf/d/s").unwrap();
    fs.rmdir(&ROOT, b"/sys/fs/bpf/d").unwrap();
    fs.mkdir(&ROOT, b"/sys/fs/bpf/d", 0o755).unwrap();
    fs.mkdir(&ROOT, b"/sys/fs/bpf/d/e", 0o755).unwrap();
    assert_eq!(
        errno(fs.mkdir(&ROOT, b"/sys/fs/bpf/f", 0o755)),
        Errno::ENOSPC
    );
}

#[test]
fn a_map_is_charged_to_its_owner() {
    let system = system();
    let small = attr(MapType::ARRAY, 1);
    let free = system.add_memory_owner("free", u64::MAX).unwrap();
    let probe = system.map_create(&ROOT.charged_to(free), &small).unwrap();
    let each = system.memory_usage(free).unwrap().used_bytes;
    assert!(each > system.info(probe).unwrap().mem_usage);
    assert_eq!(errno(system.add_memory_owner("free", 1)), Errno::EEXIST);
    assert_eq!(errno(system.memory_usage(MemoryOwner(7))), Errno::EINVAL);

    let owner = system.add_memory_owner("tight", 2 * each + 1).unwrap();
    let caller = ROOT.charged_to(owner);
    let used = || {
        system.flush_frees();
        system.memory_usage(owner).unwrap().used_bytes
    };
    let first = system.map_create(&caller, &small).unwrap();
    let second = system.map_create(&caller, &small).unwrap();
    // Memory comes before the name.
    let bad_name = MapCreateAttr {
        map_name: *b"a-b\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ..small
    };
    let refused = system.map_create(&caller, &bad_name).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOMEM);
    for figure in ["\"tight\"", &each.to_string(), &(2 * each + 1).to_string()] {
        assert!(refused.reason().contains(figure), "{}", refused.reason());
    }
    assert_eq!(used(), 2 * each);
    system.close(second).unwrap();
    assert_eq!(used(), each);
    // What fails after the charge gives it back.
    assert_eq!(errno(system.map_create(&caller, &bad_name)), Errno::EINVAL);
    assert_eq!(used(), each);
    let bad_btf = MapCreateAttr {
        btf_value_type_id: 1,
        btf_fd: 99,
        ..small
    };
    assert_eq!(errno(system.map_create(&caller, &bad_btf)), Errno::EBADF);
    assert_eq!(used(), each);
    // A pin keeps the memory in use.
    system
        .obj_pin(&ROOT, first, b"/sys/fs/bpf/m", None)
        .unwrap();
    system.close(first).unwrap();
    assert_eq!(used(), each);
    system.fs().unlink(&ROOT, b"/sys/fs/bpf/m").unwrap();
    assert_eq!(used(), 0);
}

#[test]
fn a_device_is_not_asked_for_a_map_that_nobody_can_pay() {
    let (device, log) = FakeDevice::with(Default::default(), Some(Errno::EBADFD));
    let system = system();
    let nic = system.register_netdev("nic0", device).unwrap();
    let poor = system.add_memory_owner("poor", 10).unwrap();
    let rich = system.add_memory_owner("rich", 1 << 20).unwrap();
    let attr = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 4)
    };
    let create = |owner| system.map_create(&ROOT.charged_to(owner), &attr);
    assert_eq!(errno(create(poor)), Errno::ENOMEM);
    assert!(logged(&log).is_empty());
    assert_eq!(errno(create(rich)), Errno::EBADFD);
    assert_eq!(system.memory_usage(rich).unwrap().used_bytes, 0);
}

#[test]
fn charges_are_exact_from_many_threads() {
    let system = system();
    let attr = attr(MapType::ARRAY, 1);
    let free = system.add_memory_owner("free", u64::MAX).unwrap();
    system.map_create(&ROOT.charged_to(free), &attr).unwrap();
    let each = system.memory_usage(free).unwrap().used_bytes;
    let owner = system.add_memory_owner("tight", 3 * each).unwrap();
    let caller = ROOT.charged_to(owner);
    let refused: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut refused = 0;
                    for _ in 0..500 {
                        match system.map_create(&caller, &attr) {
                            Ok(fd) => system.close(fd).unwrap(),
                            Err(error) => {
                                assert_eq!(error.errno(), Errno::ENOMEM);
                                refused += 1;
                            }
                        }
                        let used = system.memory_usage(owner).unwrap().used_bytes;
                        assert!(used <= 3 * each && used.is_multiple_of(each));
                    }
                    refused
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert!(refused < 2000);
    system.flush_frees();
    assert_eq!(system.memory_usage(owner).unwrap().used_bytes, 0);
}

/// Refuses maps and opens by name, and keeps a log.
#[derive(Default)]
struct Guard(Mutex<Vec<String>>);

impl Guard {
    fn log(&self, what: &str, map: &SecurityMap) {
        let id = if map.id == 0 { "" } else { " with an id" };
        let line = format!("{what} {}{id}", String::from_utf8_lossy(&map.name[..1]));
        self.0.lock().unwrap().push(line);
    }
}

impl SecurityHook for Guard {
    fn bpf(&self, _caller: &Caller, command: u32) -> Result<()> {
        match command {
            5 => Err(Error::new(Errno::EPERM, "no programs")),
            _ => Ok(()),
        }
    }

    fn map_create(&self, _caller: &Caller, map: &SecurityMap) -> Result<()> {
        self.log("create", map);
        match map.name[0] {
            b'c' => Err(Error::new(Errno::EACCES, "no maps of that name")),
            _ => Ok(()),
        }
    }

    fn map_open(&self, _caller: &Caller, map: &SecurityMap, access: MapAccess) -> Result<()> {
        self.log("open", map);
        match (map.name[0], access.write) {
            (b'o', true) => Err(Error::new(Errno::ETIMEDOUT, "no descriptors that write")),
            _ => Ok(()),
        }
    }

    fn map_free(&self, map: &SecurityMap) {
        self.log("free", map);
    }
}

#[test]
fn a_security_module_is_asked_where_the_kernel_asks() {
    let guard = Arc::new(Guard::default());
    let hook: Arc<dyn SecurityHook> = guard.clone();
    let system = System::with_security(SystemConfig::default(), hook);
    let (device, log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let named = |name: &[u8]| {
        let mut attr = MapCreateAttr {
            map_ifindex: nic.0,
            ..attr(MapType::HASH, 4)
        };
        attr.map_name[..name.len()].copy_from_slice(name);
        attr
    };
    let seen = || {
        system.flush_frees();
        std::mem::take(&mut *guard.0.lock().unwrap())
    };
    // A name that is not allowed comes before the hooks; the map is freed unseen.
    let bad = system.map_create(&ROOT, &named(b"c-d"));
    assert_eq!(errno(bad), Errno::EINVAL);
    assert!(seen().is_empty());
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
    let refused = system.map_create(&ROOT, &named(b"c"));
    assert_eq!(errno(refused), Errno::EACCES);
    assert_eq!(seen(), ["create c", "free c"]);
    assert_eq!(logged(&log), ["ALLOC", "FREE", "ALLOC", "FREE"]);
    let refused = system.map_create(&ROOT, &named(b"o"));
    assert_eq!(errno(refused), Errno::ETIMEDOUT);
    assert_eq!(
        seen(),
        ["create o", "open o with an id", "free o with an id"]
    );
    let readable = MapCreateAttr {
        map_flags: MapFlags::RDONLY.bits(),
        ..named(b"o")
    };
    let fd = system.map_create(&ROOT, &readable).unwrap();
    let id = system.info(fd).unwrap().id;
    system.obj_pin(&ROOT, fd, b"/sys/fs/bpf/o", None).unwrap();
    seen();
    // Each new descriptor is asked for; a duplicate is none.
    let by_id = system.get_fd_by_id(&ROOT, id, MapFlags::empty());
    assert_eq!(errno(by_id), Errno::ETIMEDOUT);
    let by_path = system.obj_get(&ROOT, b"/sys/fs/bpf/o", MapFlags::empty());
    assert_eq!(errno(by_path), Errno::ETIMEDOUT);
    assert_eq!(seen().len(), 2);
    system.dup(fd).unwrap();
    assert!(seen().is_empty());
    assert_eq!(errno(system.check_command(&ROOT, 5)), Errno::EPERM);
    system.check_command(&ROOT, 0).unwrap();
}

#[test]
fn programs_match_maps_by_offload_device() {
    let system = system();
    let (device, _log) = FakeDevice::new();
    let (other, _other_log) = FakeDevice::new();
    let port: Vec<_> = ["p0", "p1"]
        .map(|name| system.register_netdev(name, device.clone()).unwrap())
        .into();
    let elsewhere = system.register_netdev("q0", other).unwrap();
    let on = |ifindex| {
        let attr = MapCreateAttr {
            map_ifindex: ifindex,
            ..attr(MapType::HASH, 4)
        };
        let fd = system.map_create(&ROOT, &attr).unwrap();
        system.map_file(fd).unwrap()
    };
    let program = |offload_device: Option<Arc<dyn OffloadDevice>>| ProgramTraits {
        prog_type: 6,
        jited: true,
        xdp_has_frags: false,
        attach_func_proto: None,
        offload_device,
    };
    let (host_map, map) = (on(0), on(port[0].0));
    let host = program(None);
    let first = program(system.offload_device(port[0]));
    let sibling = program(system.offload_device(port[1]));
    let foreign = program(system.offload_device(elsewhere));
    host_map.bind_program(&host).unwrap();
    assert_eq!(errno(host_map.bind_program(&first)), Errno::EINVAL);
    assert_eq!(errno(map.bind_program(&host)), Errno::EINVAL);
    map.bind_program(&first).unwrap();
    map.bind_program(&sibling).unwrap();
    assert_eq!(errno(map.bind_program(&foreign)), Errno::EINVAL);
    // The map moves to the other port, and then leaves its device.
    system.unregister_netdev(port[0]).unwrap();
    map.bind_program(&first).unwrap();
    system.unregister_netdev(port[1]).unwrap();
    assert_eq!(errno(map.bind_program(&first)), Errno::EINVAL);
}
