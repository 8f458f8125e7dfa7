//! §B: the commands on an offloaded map, on a device that writes down what it is asked, and on
//! the strict profiles.

use super::*;
use offmap_bpf::command as c;
use offmap_bpf::uapi::{BPF_F_LOCK, MapFlags};
use offmap_bpf::{
    Caller, Fd, IfIndex, MmapRequest, NetNs, PollEvents, Protection, System, SystemConfig,
};
use offmap_tests::contract::{Recorder, Seen, seen, u32_of};
use std::sync::Arc;
use std::sync::mpsc;

const BATCHES: [u32; 4] = [
    c::MAP_LOOKUP_BATCH,
    c::MAP_LOOKUP_AND_DELETE_BATCH,
    c::MAP_UPDATE_BATCH,
    c::MAP_DELETE_BATCH,
];

fn recorded(answer: Option<Errno>) -> (Ours, Seen) {
    let system = System::new(SystemConfig::default());
    let (device, log) = Recorder::new(None, answer);
    let nic = system.register_netdev("nic0", device).unwrap();
    (Ours::over("recorder", system, nic.0), log)
}

fn with_flags(map_type: MapType, flags: MapFlags) -> MapCreateAttr {
    MapCreateAttr {
        map_flags: flags.bits(),
        ..attr(map_type, 2)
    }
}

/// What the map of `number`'s failures in order begins with: the attribute's tail, the
/// descriptor, the mode.
fn first_failures(m: &mut Ours, number: u32, end: usize, wrong_mode: MapFlags) {
    let mut long = [0; 64];
    long[..4].copy_from_slice(&(-1i32).to_ne_bytes());
    long[end] = 1;
    assert_eq!(m.raw(number, &long), Err(EINVAL), "{number}");
    assert!(m.reason.contains(&format!("byte {end} ")), "{}", m.reason);
    assert_eq!(m.element(number, -1, 1, 0, 0), Err(EBADF), "{number}");
    let btf = m.btf(&fields::plain().0).unwrap();
    assert_eq!(m.element(number, btf, 1, 0, 0), Err(EINVAL), "{number}");
    assert!(m.reason.contains("not a map"), "{}", m.reason);
    let other = m.map(&with_flags(HASH, wrong_mode));
    assert_eq!(m.element(number, other, 1, 0, 0), Err(EPERM), "{number}");
}

fn gone(m: &mut Ours) {
    m.system.unregister_netdev(IfIndex(m.ifindex)).unwrap();
}

/// Everything but the listed calls, seen since `before`.
fn since(log: &Seen, before: usize) -> Vec<String> {
    seen(log)[before..].to_vec()
}

#[test]
fn b_lookup_failures_in_order() {
    let (mut m, log) = recorded(Some(Errno::EIO));
    first_failures(&mut m, c::MAP_LOOKUP_ELEM, 32, MapFlags::WRONLY);
    let fd = m.map(&attr(HASH, 2));
    let before = seen(&log).len();
    let k = m.key_at(&key(0));
    let look = |m: &mut Ours, k, v, flags| m.element(c::MAP_LOOKUP_ELEM, fd, k, v, flags);
    for flags in [1, 8, BPF_F_LOCK, u64::MAX] {
        assert_eq!(look(&mut m, 1, 1, flags), Err(EINVAL), "{flags}");
    }
    assert_eq!(look(&mut m, 1, 1, 0), Err(EFAULT));
    assert!(since(&log, before).is_empty(), "the device was not asked");
    assert_eq!(
        look(&mut m, k, 1, 0),
        Err(EIO),
        "the device's before the value's"
    );
    assert_eq!(since(&log, before), ["LOOKUP"]);
    gone(&mut m);
    assert_eq!(look(&mut m, 1, 1, 1), Err(EINVAL));
    assert_eq!(look(&mut m, 1, 1, 0), Err(EFAULT));
    assert_eq!(look(&mut m, k, 1, 0), Err(ENODEV));
    let (mut m, _log) = recorded(None);
    let fd = m.map(&attr(HASH, 2));
    m.update(fd, &key(0), &value(1), 0).unwrap();
    let k = m.key_at(&key(0));
    assert_eq!(m.element(c::MAP_LOOKUP_ELEM, fd, k, 1, 0), Err(EFAULT));
    assert_eq!(m.lookup(fd, &key(0), 8, 0), Ok(value(1).to_vec()));
}

#[test]
fn b_update_failures_in_order() {
    let (mut m, log) = recorded(Some(Errno::EIO));
    first_failures(&mut m, c::MAP_UPDATE_ELEM, 32, MapFlags::RDONLY);
    let (fd, frozen) = (m.map(&attr(HASH, 2)), m.map(&attr(HASH, 2)));
    m.freeze(frozen).unwrap();
    let before = seen(&log).len();
    assert_eq!(m.element(c::MAP_UPDATE_ELEM, frozen, 1, 1, 99), Err(EPERM));
    let (k, v) = (m.key_at(&key(0)), m.value_at());
    let put = |m: &mut Ours, k, v, flags| m.element(c::MAP_UPDATE_ELEM, fd, k, v, flags);
    assert_eq!(put(&mut m, 1, 1, BPF_F_LOCK), Err(EINVAL));
    // Pointers are followed before the flags are compared with BPF_EXIST.
    assert_eq!(put(&mut m, 1, v, 3), Err(EFAULT));
    assert_eq!(put(&mut m, k, 1, 3), Err(EFAULT));
    assert_eq!(put(&mut m, k, v, 3), Err(EINVAL));
    assert!(since(&log, before).is_empty(), "the device was not asked");
    assert_eq!(put(&mut m, k, v, 2), Err(EIO));
    assert_eq!(since(&log, before), ["UPDATE"]);
    gone(&mut m);
    assert_eq!(put(&mut m, k, v, 3), Err(EINVAL), "before ENODEV");
    assert_eq!(put(&mut m, k, v, 2), Err(ENODEV));
}

#[test]
fn b_delete_failures_in_order() {
    let (mut m, log) = recorded(Some(Errno::EIO));
    first_failures(&mut m, c::MAP_DELETE_ELEM, 16, MapFlags::RDONLY);
    let fd = m.map(&attr(HASH, 2));
    let before = seen(&log).len();
    let k = m.key_at(&key(0));
    assert_eq!(m.element(c::MAP_DELETE_ELEM, fd, 1, 0, 0), Err(EFAULT));
    assert!(since(&log, before).is_empty());
    assert_eq!(m.element(c::MAP_DELETE_ELEM, fd, k, 0, 0), Err(EIO));
    gone(&mut m);
    assert_eq!(m.element(c::MAP_DELETE_ELEM, fd, 1, 0, 0), Err(EFAULT));
    assert_eq!(m.element(c::MAP_DELETE_ELEM, fd, k, 0, 0), Err(ENODEV));
}

#[test]
fn b_get_next_key_failures_in_order() {
    let (mut m, log) = recorded(None);
    first_failures(&mut m, c::MAP_GET_NEXT_KEY, 24, MapFlags::WRONLY);
    let fd = m.map(&attr(HASH, 2));
    assert_eq!(m.next(fd, None, 4), Err(ENOENT));
    m.update(fd, &key(5), &value(1), 0).unwrap();
    assert_eq!(
        m.next(fd, None, 4),
        Ok(key(5).to_vec()),
        "NULL is the first"
    );
    assert_eq!(m.next(fd, Some(&key(5)), 4), Err(ENOENT), "the end");
    let before = seen(&log).len();
    assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, 1, 1, 0), Err(EFAULT));
    assert!(since(&log, before).is_empty());
    assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, 0, 1, 0), Err(EFAULT));
    gone(&mut m);
    assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, 1, 1, 0), Err(EFAULT));
    assert_eq!(m.element(c::MAP_GET_NEXT_KEY, fd, 0, 1, 0), Err(ENODEV));
}

#[test]
fn b_lookup_and_delete_is_524_after_the_checks() {
    let judge = |m: &mut Ours| {
        let number = c::MAP_LOOKUP_AND_DELETE_ELEM;
        let read_only = m.map(&with_flags(HASH, MapFlags::RDONLY));
        let write_only = m.map(&with_flags(HASH, MapFlags::WRONLY));
        let (fd, frozen) = (m.map(&attr(HASH, 2)), m.map(&attr(HASH, 2)));
        m.freeze(frozen).unwrap();
        for left in [false, true] {
            if left {
                gone(m);
            }
            assert_eq!(m.element(number, fd, 1, 1, 1), Err(EINVAL));
            assert_eq!(m.element(number, fd, 1, 1, BPF_F_LOCK), Err(EINVAL));
            for denied in [read_only, write_only, frozen] {
                assert_eq!(m.element(number, denied, 1, 1, 0), Err(EPERM));
            }
            assert_eq!(m.element(number, fd, 1, 1, 0), Err(EFAULT));
            let k = m.key_at(&key(0));
            assert_eq!(m.element(number, fd, k, 1, 0), Err(ENOTSUPP));
        }
    };
    judge(&mut recorded(None).0);
    on_strict(|_, m| judge(m));
}

#[test]
fn b_batches_are_524() {
    let (mut m, log) = recorded(None);
    let read_only = m.map(&with_flags(HASH, MapFlags::RDONLY));
    let write_only = m.map(&with_flags(HASH, MapFlags::WRONLY));
    let fd = m.map(&attr(HASH, 2));
    let before = seen(&log).len();
    for left in [false, true] {
        if left {
            gone(&mut m);
        }
        for number in BATCHES {
            let got = m.batch_at(number, fd, [1; 4], 3, [u64::MAX; 2]);
            assert_eq!((got.result, got.count), (Err(ENOTSUPP), 3), "{number}");
            let writes = number != c::MAP_LOOKUP_BATCH;
            let reads = number == c::MAP_LOOKUP_BATCH || number == c::MAP_LOOKUP_AND_DELETE_BATCH;
            for (denied, is) in [(read_only, writes), (write_only, reads)] {
                let got = m.batch_at(number, denied, [1; 4], 3, [0; 2]).result;
                assert_eq!(got, Err(if is { EPERM } else { ENOTSUPP }), "{number}");
            }
        }
    }
    assert!(since(&log, before).iter().all(|line| line == "FREE"));
}

#[test]
fn b_freeze_never_reaches_the_device() {
    let (mut m, log) = recorded(Some(Errno::EIO));
    let fd = m.map(&attr(HASH, 2));
    let read_only = m.map(&with_flags(HASH, MapFlags::RDONLY));
    let before = seen(&log).len();
    assert_eq!(m.freeze(read_only), Err(EPERM));
    assert_eq!(m.freeze(fd), Ok(()));
    assert_eq!(m.freeze(fd), Err(EPERM));
    assert!(since(&log, before).is_empty());
}

#[test]
fn b_freeze_with_an_active_writer() {
    let system = System::new(SystemConfig::default());
    let (device, _log) = Recorder::new(None, None);
    let during = Arc::clone(&device.during_update);
    let nic = system.register_netdev("nic0", device).unwrap();
    let mut m = Ours::over("recorder", Arc::clone(&system), nic.0);
    let fd = m.map(&attr(HASH, 2));
    let (tell, told) = mpsc::channel();
    let freezer = Arc::clone(&system);
    *during.lock().unwrap() = Some(Box::new(move || {
        let frozen = freezer.freeze(Fd(fd)).map_err(|e| e.errno().0);
        tell.send(frozen).unwrap();
    }));
    m.update(fd, &key(0), &value(1), 0).unwrap();
    assert_eq!(told.recv().unwrap(), Err(Errno::EBUSY.0));
    assert_eq!(m.freeze(fd), Ok(()), "the writer is done");
}

#[test]
fn b_pins_are_not_affected() {
    on_strict(|_, m| {
        let fd = m.map(&attr(ARRAY, 2));
        m.update(fd, &key(0), &value(8), 0).unwrap();
        m.object(c::OBJ_PIN, "/sys/fs/bpf/pinned", fd).unwrap();
        m.close(fd);
        m.system.flush_frees();
        let opened = m.object(c::OBJ_GET, "/sys/fs/bpf/pinned", 0).unwrap();
        assert_eq!(m.lookup(opened, &key(0), 8, 0), Ok(value(8).to_vec()));
        gone(m);
        let opened = m.object(c::OBJ_GET, "/sys/fs/bpf/pinned", 0).unwrap();
        assert_eq!(m.lookup(opened, &key(0), 8, 0), Err(ENODEV), "{}", m.name());
        m.object(c::OBJ_PIN, "/sys/fs/bpf/again", opened).unwrap();
    });
}

#[test]
fn b_ids_need_sys_admin_and_go_with_the_device() {
    on_strict(|_, m| {
        let fd = m.map(&attr(HASH, 2));
        let (info, _) = m.info(fd, &[0; 80]).unwrap();
        let id = u32_of(&info[4..]);
        let (listed, first) = m.by_id(c::MAP_GET_NEXT_ID, 0);
        assert_eq!((listed, first), (Ok(0), id));
        let opened = m.by_id(c::MAP_GET_FD_BY_ID, id).0.unwrap();
        m.close(opened);
        m.caller = Caller::unprivileged();
        assert_eq!(m.by_id(c::MAP_GET_NEXT_ID, 0).0, Err(EPERM));
        assert_eq!(m.by_id(c::MAP_GET_FD_BY_ID, id).0, Err(EPERM));
        m.caller = Caller::root();
        gone(m);
        assert_eq!(m.by_id(c::MAP_GET_NEXT_ID, 0).0, Err(ENOENT));
        assert_eq!(m.by_id(c::MAP_GET_FD_BY_ID, id).0, Err(ENOENT));
    });
}

#[test]
fn b_info_has_the_devices_fields() {
    let netns = NetNs {
        dev: 4,
        ino: 0xabcd,
    };
    let system = System::new(SystemConfig::default());
    let (device, _log) = Recorder::new(None, None);
    let nic = system.register_netdev_in(netns, "nic0", device).unwrap();
    let mut m = Ours::over("recorder", system, nic.0);
    m.caller = Caller::root().in_netns(netns);
    let fd = m.map(&attr(HASH, 2));
    // Whoever asks, and whatever the bytes were.
    m.caller = Caller::root();
    let mut given = [0; 80];
    given[40..64].fill(0xff);
    let (info, len) = m.info(fd, &given).unwrap();
    assert_eq!((u32_of(&info[40..]), len), (nic.0, 80));
    assert_eq!(info[48..56], 4u64.to_ne_bytes());
    assert_eq!(info[56..64], 0xabcd_u64.to_ne_bytes());
    assert_eq!(m.info(-1, &[0; 80]), Err(EBADFD));
    gone(&mut m);
    assert_eq!(m.info(fd, &[0; 80]), Err(ENODEV));
    // A host map's come back as they were given (6.18).
    on_hosts(|m| {
        let fd = m.map(&attr(HASH, 2));
        let (info, _) = m.info(fd, &given).unwrap();
        assert_eq!(info[40..44], [0xff; 4], "{}", m.name());
        assert_eq!(info[48..64], [0xff; 16], "{}", m.name());
    });
}

#[test]
fn b_mmap_and_poll() {
    let judge = |m: &mut Ours| {
        for map_type in [HASH, ARRAY] {
            let fd = Fd(m.map(&attr(map_type, 2)));
            for shared in [false, true] {
                let request = MmapRequest {
                    offset: 0,
                    length: 4096,
                    protection: Protection::READ,
                    shared,
                };
                let refused = m.system.mmap(fd, &request).map(drop).unwrap_err();
                assert_eq!(refused.errno().0, ENOTSUPP);
            }
            assert_eq!(m.system.poll(fd).unwrap(), PollEvents::ERR);
        }
    };
    judge(&mut recorded(None).0);
    on_strict(|_, m| judge(m));
}

#[test]
fn b_free_comes_from_the_work_queue_after_the_id_went() {
    let (mut m, log) = recorded(None);
    let fd = m.map(&attr(HASH, 2));
    let second = m.by_id(c::MAP_GET_NEXT_ID, 0).1;
    m.close(fd);
    assert_eq!(m.by_id(c::MAP_GET_FD_BY_ID, second).0, Err(ENOENT));
    m.system.flush_frees();
    assert_eq!(seen(&log), ["ALLOC", "FREE"]);
}

#[test]
fn b_removal_with_a_sibling_moves_the_maps() {
    let system = System::new(SystemConfig::default());
    let (device, log) = Recorder::new(None, None);
    let first = system
        .register_netdev("nic0", Arc::clone(&device) as _)
        .unwrap();
    let (other, other_log) = Recorder::new(None, None);
    system.register_netdev("other0", other).unwrap();
    let sibling = system.register_netdev("nic1", device).unwrap();
    let mut m = Ours::over("recorder", system, first.0);
    let fd = m.map(&attr(HASH, 2));
    m.update(fd, &key(1), &value(11), 0).unwrap();
    gone(&mut m);
    assert_eq!(m.lookup(fd, &key(1), 8, 0), Ok(value(11).to_vec()));
    let (info, _) = m.info(fd, &[0; 80]).unwrap();
    assert_eq!(u32_of(&info[40..]), sibling.0);
    assert!(m.by_id(c::MAP_GET_FD_BY_ID, u32_of(&info[4..])).0.is_ok());
    assert!(!seen(&log).contains(&"FREE".to_owned()));
    assert!(seen(&other_log).is_empty());
    // And without one.
    m.ifindex = sibling.0;
    gone(&mut m);
    assert_eq!(seen(&log).last().map(String::as_str), Some("FREE"));
    assert_eq!(m.lookup(fd, &key(1), 8, 0), Err(ENODEV));
}

#[test]
fn b_data_operations_run_concurrently() {
    // The update is still at work while another one and a lookup come and go.
    let system = System::new(SystemConfig::default());
    let (device, _log) = Recorder::new(None, None);
    let during = Arc::clone(&device.during_update);
    let nic = system.register_netdev("nic0", device).unwrap();
    let mut m = Ours::over("recorder", Arc::clone(&system), nic.0);
    let fd = m.map(&attr(HASH, 4));
    let meanwhile = Arc::clone(&system);
    *during.lock().unwrap() = Some(Box::new(move || {
        let other = std::thread::spawn(move || {
            let mut m = Ours::over("recorder", meanwhile, nic.0);
            m.update(fd, &key(2), &value(2), 0)?;
            m.lookup(fd, &key(2), 8, 0)
        });
        assert_eq!(other.join().unwrap(), Ok(value(2).to_vec()));
    }));
    m.update(fd, &key(1), &value(1), 0).unwrap();
    assert_eq!(m.lookup(fd, &key(1), 8, 0), Ok(value(1).to_vec()));
}
