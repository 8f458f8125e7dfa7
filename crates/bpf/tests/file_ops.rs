//! What other system calls do with a map's descriptor (contract §F, and a 6.18 kernel asked
//! row by row), and memory that is shared with a map.

mod common;

use common::{FakeDevice, attr, errno, system};
use offmap_bpf::{
    Caller, Errno, Fd, MapCreateAttr, MapFlags, MapType, Mapping, MmapRequest, PollEvents,
    Protection, System,
};
use std::sync::Arc;

const ROOT: Caller = Caller::root();
const R: Protection = Protection::READ;
const RW: Protection = Protection::READ.union(Protection::WRITE);

fn create(system: &System, map_type: MapType, flags: MapFlags) -> Fd {
    let attr = MapCreateAttr {
        map_flags: flags.bits(),
        ..attr(map_type, 4)
    };
    system.map_create(&ROOT, &attr).unwrap()
}

fn page(protection: Protection) -> MmapRequest {
    MmapRequest {
        offset: 0,
        length: 4096,
        protection,
        shared: true,
    }
}

/// A system and an array that can be mapped, of `entries` values of `value_size` bytes.
fn mappable(value_size: u32, entries: u32) -> (Arc<System>, Fd) {
    let system = system();
    let attr = MapCreateAttr {
        value_size,
        map_flags: MapFlags::MMAPABLE.bits(),
        ..attr(MapType::ARRAY, entries)
    };
    let fd = system.map_create(&ROOT, &attr).unwrap();
    (system, fd)
}

fn map(system: &System, fd: Fd, length: u64, protection: Protection) -> Mapping {
    let request = MmapRequest {
        length,
        ..page(protection)
    };
    system.mmap(fd, &request).unwrap()
}

#[test]
fn read_write_seek_poll() {
    let system = system();
    let (device, _log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let offloaded = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 4)
    };
    let offloaded = system.map_create(&ROOT, &offloaded).unwrap();
    let none = MapFlags::empty();
    for fd in [
        create(&system, MapType::HASH, none),
        create(&system, MapType::ARRAY, MapFlags::MMAPABLE),
        offloaded,
    ] {
        assert_eq!(errno(system.read(fd, &mut [0; 8])), Errno::EINVAL);
        assert_eq!(errno(system.read(fd, &mut [])), Errno::EINVAL);
        assert_eq!(errno(system.write(fd, b"x")), Errno::EINVAL);
        assert_eq!(errno(system.lseek(fd, 0, 0)), Errno::ESPIPE);
        assert_eq!(errno(system.lseek(fd, 0, 5)), Errno::EINVAL);
        assert_eq!(system.poll(fd).unwrap(), PollEvents::ERR);
    }
    let read_only = create(&system, MapType::HASH, MapFlags::RDONLY);
    assert_eq!(errno(system.write(read_only, b"x")), Errno::EBADF);
    assert_eq!(errno(system.read(read_only, &mut [])), Errno::EINVAL);
    let write_only = create(&system, MapType::HASH, MapFlags::WRONLY);
    assert_eq!(errno(system.write(write_only, b"x")), Errno::EINVAL);
    assert_eq!(errno(system.read(write_only, &mut [])), Errno::EBADF);
    assert_eq!(errno(system.poll(Fd(99))), Errno::EBADF);
    let dir = system.open_dir(&ROOT, b"/sys/fs/bpf").unwrap();
    assert_eq!(errno(system.read(dir, &mut [])), Errno::EISDIR);
    assert_eq!(errno(system.write(dir, b"")), Errno::EBADF);
    assert_eq!(errno(system.lookup(dir, &[], &mut [], 0)), Errno::EINVAL);
    assert!(system.poll(dir).unwrap().contains(PollEvents::IN));
}

#[test]
fn what_can_be_mapped() {
    let system = system();
    let (device, _log) = FakeDevice::new();
    let nic = system.register_netdev("nic0", device).unwrap();
    let offloaded = MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::ARRAY, 4)
    };
    let offloaded = system.map_create(&ROOT, &offloaded).unwrap();
    let none = MapFlags::empty();
    let shared = MapFlags::MMAPABLE;
    let hash = create(&system, MapType::HASH, none);
    let percpu = create(&system, MapType::PERCPU_ARRAY, none);
    let array = create(&system, MapType::ARRAY, none);
    let good = create(&system, MapType::ARRAY, shared);
    let read_only = create(&system, MapType::ARRAY, shared | MapFlags::RDONLY);
    let write_only = create(&system, MapType::ARRAY, shared | MapFlags::WRONLY);
    let constant = create(&system, MapType::ARRAY, shared | MapFlags::RDONLY_PROG);
    let frozen = create(&system, MapType::ARRAY, shared);
    system.freeze(frozen).unwrap();
    let private = |protection| MmapRequest {
        shared: false,
        ..page(protection)
    };
    let try_map = |fd, request: MmapRequest| {
        let mapped = system.mmap(fd, &request);
        mapped.map_or_else(|error| error.errno(), |_| Errno(0))
    };
    const NONE: Protection = Protection::empty();
    let exec = R.union(Protection::EXEC);
    for (fd, shared_rw, shared_r, private_r, shared_none, executable) in [
        (hash, 524, 524, 524, 524, 1),
        (percpu, 524, 524, 524, 524, 1),
        (offloaded, 524, 524, 524, 524, 1),
        (array, 22, 22, 22, 22, 1),
        (good, 0, 0, 22, 0, 1),
        (read_only, 13, 22, 22, 22, 1),
        (write_only, 13, 13, 13, 13, 13),
        (constant, 13, 0, 22, 0, 1),
        (frozen, 1, 0, 22, 0, 1),
    ] {
        let got = [
            try_map(fd, page(RW)),
            try_map(fd, page(R)),
            try_map(fd, private(R)),
            try_map(fd, page(NONE)),
            try_map(fd, page(exec)),
        ];
        let expected = [shared_rw, shared_r, private_r, shared_none, executable];
        assert_eq!(got, expected.map(Errno), "{fd:?}");
    }
    let odd = |offset, length| MmapRequest {
        offset,
        length,
        ..page(R)
    };
    assert_eq!(try_map(Fd(99), odd(1, 4096)), Errno::EINVAL);
    assert_eq!(try_map(Fd(99), odd(0, 0)), Errno::EBADF);
    assert_eq!(try_map(good, odd(0, 0)), Errno::EINVAL);
    assert_eq!(try_map(good, odd(0, 1)), Errno(0));
    assert_eq!(try_map(good, odd(0, 4097)), Errno::EINVAL);
    assert_eq!(try_map(good, odd(4096, 1)), Errno::EINVAL);
    assert_eq!(try_map(hash, odd(0, 1 << 62)), Errno::ENOMEM);
    assert_eq!(try_map(hash, odd(0, u64::MAX)), Errno::ENOMEM);
    assert_eq!(try_map(hash, odd(!4095, 8192)), Errno::EOVERFLOW);
    let dir = system.open_dir(&ROOT, b"/sys/fs/bpf").unwrap();
    assert_eq!(try_map(dir, page(R)), Errno::ENODEV);
}

#[test]
fn a_mapping_is_the_maps_memory() {
    let (system, fd) = mappable(12, 1000);
    assert_eq!(
        errno(system.mmap(
            fd,
            &MmapRequest {
                length: 16385,
                ..page(R)
            }
        )),
        Errno::EINVAL
    );
    let all = map(&system, fd, 16000, RW);
    assert_eq!(all.len(), 16384);
    let second = MmapRequest {
        offset: 4096,
        ..page(R)
    };
    let second = system.mmap(fd, &second).unwrap();
    let mut value = [0; 12];
    // Elements are 16 bytes apart, their padding included.
    system
        .update(fd, &300_u32.to_ne_bytes(), b"hello, world", 0)
        .unwrap();
    second.load(300 * 16 - 4096, &mut value).unwrap();
    assert_eq!(&value, b"hello, world");
    all.store(300 * 16 + 7, b"World!?").unwrap();
    system
        .lookup(fd, &300_u32.to_ne_bytes(), &mut value, 0)
        .unwrap();
    assert_eq!(&value, b"hello, World");
    // What lies in the padding and behind the last element stays.
    let mut padding = [0; 4];
    system
        .update(fd, &300_u32.to_ne_bytes(), &[1; 12], 0)
        .unwrap();
    all.load(300 * 16 + 12, &mut padding).unwrap();
    assert_eq!(&padding, b"!?\0\0");
    all.load(16380, &mut padding).unwrap();
    assert_eq!(padding, [0; 4]);
    all.store(16383, &[0xbb]).unwrap();
    drop(all);
    let all = map(&system, fd, 16384, RW);
    all.load(16380, &mut padding).unwrap();
    assert_eq!(padding, [0, 0, 0, 0xbb]);
    // Whole words.
    all.store_u64(999 * 16, 41).unwrap();
    assert_eq!(all.fetch_add_u64(999 * 16, 1).unwrap(), 41);
    assert_eq!(all.load_u64(999 * 16).unwrap(), 42);
    assert_eq!(all.load_u64(0).unwrap(), 0);
    assert_eq!(errno(all.load_u64(4)), Errno::EINVAL);
    assert_eq!(errno(all.load_u64(16384)), Errno::EFAULT);
    assert_eq!(errno(all.load(16380, &mut value)), Errno::EFAULT);
    assert_eq!(errno(all.load(u64::MAX, &mut value)), Errno::EFAULT);
    assert_eq!(errno(second.store(0, &[1])), Errno::EFAULT);
    assert_eq!(errno(second.fetch_add_u64(0, 1)), Errno::EFAULT);
}

#[test]
fn a_writable_mapping_holds_off_freeze_and_keeps_the_map() {
    let (system, fd) = mappable(8, 4);
    let writable = map(&system, fd, 4096, RW);
    let readable = map(&system, fd, 4096, R);
    assert_eq!(errno(system.freeze(fd)), Errno::EBUSY);
    // A mapping that was refused does not count.
    let too_long = MmapRequest {
        length: 8192,
        ..page(RW)
    };
    assert_eq!(errno(system.mmap(fd, &too_long)), Errno::EINVAL);
    writable.store_u64(0, 5).unwrap();
    drop(writable);
    system.freeze(fd).unwrap();
    system.close(fd).unwrap();
    system.flush_frees();
    assert_eq!(readable.load_u64(0).unwrap(), 5);
    assert!(system.get_next_id(&ROOT, 0).is_ok());
    drop(readable);
    assert_eq!(errno(system.get_next_id(&ROOT, 0)), Errno::ENOENT);
}

#[test]
fn stores_from_many_threads_lose_nothing() {
    let (system, fd) = mappable(8, 8);
    let mapping = map(&system, fd, 4096, RW);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mapping = &mapping;
            scope.spawn(move || {
                for i in 0..2000_u64 {
                    mapping.fetch_add_u64(0, 1).unwrap();
                    // Neighbours in one word.
                    mapping.store(8 + thread, &[i as u8]).unwrap();
                    let mut back = [0];
                    mapping.load(8 + thread, &mut back).unwrap();
                    assert_eq!(back, [i as u8]);
                }
            });
        }
    });
    let mut value = [0; 8];
    system.lookup(fd, &[0; 4], &mut value, 0).unwrap();
    assert_eq!(u64::from_ne_bytes(value), 8000);
}
