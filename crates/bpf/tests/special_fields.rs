//! Values with special fields through the commands: user space neither sees nor sets what is
//! in them, whatever the map's type, and such a map is neither frozen nor mapped.

mod common;

use common::{attr, errno, system};
use offmap_bpf::btf::{BtfBuilder, Kind};
use offmap_bpf::{
    Caller, Errno, Fd, MapCreateAttr, MapFile, MapFlags, MapType, MmapRequest, Protection, System,
};
use std::sync::Arc;

const ROOT: Caller = Caller::root();
/// Possible CPUs of [`system`].
const CPUS: usize = 2;

/// Types of maps: an integer, `struct { u64 a; struct bpf_timer t; u64 b; }` and
/// `struct { u64 a; struct owned __kptr *p; }`.
struct Types {
    fd: Fd,
    int: u32,
    timed: u32,
    pointing: u32,
}

const TIMED_BYTES: u32 = 32;
const POINTING_BYTES: u32 = 16;

impl Types {
    fn load(system: &System) -> Self {
        let mut b = BtfBuilder::new();
        let int = b.int("int", 4);
        let long = b.int("long", 8);
        let opaque = b.array(long, int, 2);
        let timer = b.structure("bpf_timer", 16, &[("opaque", opaque, 0)]);
        let timed = b.structure(
            "timed",
            TIMED_BYTES,
            &[("a", long, 0), ("t", timer, 8), ("b", long, 24)],
        );
        let owned = b.structure("owned", 8, &[("x", long, 0)]);
        let tagged = b.named(Kind::TypeTag, "kptr", owned);
        let pointer = b.reference(Kind::Ptr, tagged);
        let pointing = b.structure(
            "pointing",
            POINTING_BYTES,
            &[("a", long, 0), ("p", pointer, 8)],
        );
        let fd = system.btf_load(&ROOT, &b.finish()).unwrap();
        Self {
            fd,
            int,
            timed,
            pointing,
        }
    }

    fn create(&self, system: &Arc<System>, map_type: MapType, value: (u32, u32)) -> MapFile {
        let (value_size, value_type) = value;
        let fd = self.create_fd(system, map_type, MapFlags::empty(), value_size, value_type);
        system.map_file(fd).unwrap()
    }

    fn create_fd(
        &self,
        system: &System,
        map_type: MapType,
        flags: MapFlags,
        value_size: u32,
        value_type: u32,
    ) -> Fd {
        let attr = MapCreateAttr {
            value_size,
            map_flags: flags.bits(),
            btf_fd: self.fd.0 as u32,
            btf_key_type_id: self.int,
            btf_value_type_id: value_type,
            ..attr(map_type, 4)
        };
        system.map_create(&ROOT, &attr).unwrap()
    }
}

/// `value`, for each CPU, with zeros from `from` to `to`.
fn blanked(values: &[u8], size: usize, from: usize, to: usize) -> Vec<u8> {
    let mut out = values.to_vec();
    for value in out.chunks_mut(size) {
        value[from..to].fill(0);
    }
    out
}

/// Everything that stores or shows a value of `map`, whose special field lies from `from` to `to`
/// of each `size` bytes.
fn check(map: &MapFile, size: usize, from: usize, to: usize) {
    let what = map.map_type();
    let bytes = map.value_bytes();
    let ones = vec![0xff; bytes];
    let expected = blanked(&ones, size, from, to);
    let mut out = vec![0xaa; bytes];
    let key = |n: u32| n.to_ne_bytes();
    for round in 0..2 {
        map.update(&key(1), &ones, 0).unwrap();
        map.lookup(&key(1), &mut out, 0).unwrap();
        assert_eq!(out, expected, "{what}, round {round}");
    }
    let two = [key(1), key(2)].concat();
    let done = map.update_batch(&two, &[&ones[..], &ones].concat(), 2, 0, 0);
    assert_eq!((done.count, done.result), (2, Ok(())), "{what}");
    let (mut keys, mut values) = ([0; 16], vec![0xaa; 4 * bytes]);
    let mut token = [0; 4];
    let walk = map.lookup_batch(None, &mut token, &mut keys, &mut values, 4, 0, 0);
    for (i, value) in values.chunks(bytes).take(walk.count as usize).enumerate() {
        let number = u32::from_ne_bytes(keys[4 * i..4 * i + 4].try_into().unwrap());
        if (1..=2).contains(&number) {
            assert_eq!(value, expected, "{what}, batch, key {number}");
        }
    }
    assert!(walk.count >= 2, "{what}: {walk:?}");
    if what != MapType::ARRAY && what != MapType::PERCPU_ARRAY {
        out.fill(0xaa);
        map.lookup_and_delete(&key(2), &mut out, 0).unwrap();
        assert_eq!(out, expected, "{what}, lookup and delete");
    }
    assert_eq!(errno(map.freeze()), Errno::ENOTSUPP, "{what}");
}

#[test]
fn special_fields_are_blank_in_every_type_that_has_them() {
    let system = system();
    let types = Types::load(&system);
    let timed = (TIMED_BYTES, types.timed);
    for map_type in [MapType::HASH, MapType::LRU_HASH, MapType::ARRAY] {
        let map = types.create(&system, map_type, timed);
        check(&map, TIMED_BYTES as usize, 8, 24);
    }
    let pointing = (POINTING_BYTES, types.pointing);
    for map_type in [
        MapType::HASH,
        MapType::LRU_HASH,
        MapType::ARRAY,
        MapType::PERCPU_HASH,
        MapType::LRU_PERCPU_HASH,
        MapType::PERCPU_ARRAY,
    ] {
        let map = types.create(&system, map_type, pointing);
        let slots = map.value_bytes() / POINTING_BYTES as usize;
        let percpu = map_type.is_percpu();
        assert_eq!(slots, if percpu { CPUS } else { 1 }, "{map_type}");
        check(&map, POINTING_BYTES as usize, 8, 16);
    }
}

/// [run] on 6.18: `bpf_map_mmap` asks for the record before the map's own operation, and after
/// what `do_mmap` asks of the file.
#[test]
fn maps_with_special_fields_cannot_be_mapped() {
    let system = system();
    let types = Types::load(&system);
    let fd = types.create_fd(
        &system,
        MapType::ARRAY,
        MapFlags::MMAPABLE,
        TIMED_BYTES,
        types.timed,
    );
    let request = |protection, shared| MmapRequest {
        offset: 0,
        length: 4096,
        protection,
        shared,
    };
    for shared in [true, false] {
        let read = request(Protection::READ, shared);
        assert_eq!(errno(system.mmap(fd, &read)), Errno::ENOTSUPP);
        let exec = request(Protection::READ | Protection::EXEC, shared);
        assert_eq!(errno(system.mmap(fd, &exec)), Errno::EPERM);
    }
    let write = request(Protection::READ | Protection::WRITE, true);
    assert_eq!(errno(system.mmap(fd, &write)), Errno::ENOTSUPP);
    // The same map without the type has none of that.
    let plain = MapCreateAttr {
        value_size: TIMED_BYTES,
        map_flags: MapFlags::MMAPABLE.bits(),
        ..attr(MapType::ARRAY, 4)
    };
    let plain = system.map_create(&ROOT, &plain).unwrap();
    system.mmap(plain, &write).unwrap();
}

/// A field that is not zeroes when it is fresh, of elements that nobody wrote: every way of
/// reading has to put it there.
#[test]
fn fresh_fields_are_shown_by_every_way_of_reading() {
    let system = system();
    let mut b = BtfBuilder::new();
    let int = b.int("int", 4);
    let long = b.int("long", 8);
    let refcount = b.structure("bpf_refcount", 4, &[("refs", int, 0)]);
    let value = b.structure("value", 16, &[("r", refcount, 0), ("a", long, 8)]);
    let btf = system.btf_load(&ROOT, &b.finish()).unwrap();
    let fd = system
        .map_create(
            &ROOT,
            &MapCreateAttr {
                value_size: 16,
                btf_fd: btf.0 as u32,
                btf_key_type_id: int,
                btf_value_type_id: value,
                ..attr(MapType::ARRAY, 2)
            },
        )
        .unwrap();
    let map = system.map_file(fd).unwrap();
    let mut fresh = [0; 16];
    fresh[..4].copy_from_slice(&1_u32.to_ne_bytes());
    let keys: Vec<u8> = [0_u32, 1].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let mut seen = [0xee; 16];
    map.lookup(&keys[..4], &mut seen, 0).unwrap();
    assert_eq!(seen, fresh, "lookup");
    let mut values = [0xee; 32];
    let mut results = [Ok(()), Ok(())];
    map.lookup_many(&keys, &mut values, &mut results).unwrap();
    assert_eq!(values, [fresh, fresh].concat()[..], "lookup_many");
    let (mut walked, mut token) = ([0; 8], [0; 4]);
    values = [0xee; 32];
    let walk = map.lookup_batch(None, &mut token, &mut walked, &mut values, 2, 0, 0);
    assert_eq!(walk.count, 2);
    assert_eq!(values, [fresh, fresh].concat()[..], "lookup_batch");
}
