//! Operations allocate nothing once warm: on host maps, and through the whole stack on maps of
//! an inline and of a threaded device. Counted on the calling thread, which for the inline
//! device is the device's own.

use offmap_bpf::{MapCreateAttr, MapFile, MapType};
use offmap_emulator::{DeviceConfig, Emulated, FrontEnd};
use offmap_tests::counting::{Counting, allocations};
use offmap_tests::stack::{Stack, attr};
use offmap_tests::{kernel, model::Shape};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ENTRIES: u32 = 512;
const BATCH: u32 = 64;

/// Buffers of every operation, made before any is measured.
struct Buffers {
    keys: Vec<u8>,
    values: Vec<u8>,
    next: Vec<u8>,
    value: Vec<u8>,
}

fn key(shape: &Shape, i: u32) -> Vec<u8> {
    let mut key = vec![0x33; shape.key_size as usize];
    key[..4].copy_from_slice(&i.to_ne_bytes());
    key
}

/// One round of everything; `count` is told how many allocations each kind of operation did.
fn round(
    map: &MapFile,
    shape: &Shape,
    (all, missing): (&[Vec<u8>], &[u8]),
    buffers: &mut Buffers,
    count: &mut dyn FnMut(&'static str, u64),
) {
    let mut measured = |what: &'static str, f: &mut dyn FnMut(&mut Buffers)| {
        let before = allocations();
        f(buffers);
        count(what, allocations() - before);
    };
    let array = shape.is_array();
    measured("update", &mut |b| {
        for key in all {
            map.update(key, &b.value, 0).unwrap();
        }
    });
    measured("lookup hit", &mut |b| {
        for key in all {
            map.lookup(key, &mut b.value, 0).unwrap();
        }
    });
    measured("lookup miss", &mut |b| {
        for _ in 0..32 {
            assert!(map.lookup(missing, &mut b.value, 0).is_err());
        }
    });
    measured("get_next", &mut |b| {
        map.get_next_key(None, &mut b.next).unwrap();
        for key in all.iter().take(100) {
            let _ = map.get_next_key(Some(key), &mut b.next);
        }
    });
    measured("batch update", &mut |b| {
        let done = map.update_batch(&b.keys, &b.values, BATCH, 0, 0);
        assert_eq!(done.count, BATCH);
    });
    measured("batch walk", &mut |b| {
        let (mut token, mut next) = (None, [0; 4]);
        for _ in 0..ENTRIES {
            let from = token.as_ref().map(<[u8; 4]>::as_slice);
            let w = map.lookup_batch(from, &mut next, &mut b.keys, &mut b.values, BATCH, 0, 0);
            token = Some(next);
            if w.result.is_err() {
                break;
            }
        }
    });
    if !array {
        measured("refused update", &mut |b| {
            assert!(map.update(&all[0], &b.value, 1).is_err());
        });
        measured("delete", &mut |_| {
            for key in &all[..100] {
                map.delete(key).unwrap();
            }
        });
        measured("delete miss", &mut |_| {
            assert!(map.delete(missing).is_err())
        });
        measured("lookup_and_delete", &mut |b| {
            for key in &all[100..200] {
                map.lookup_and_delete(key, &mut b.value, 0).unwrap();
            }
        });
        for (i, key) in all[200..264].iter().enumerate() {
            buffers.keys[i * key.len()..][..key.len()].copy_from_slice(key);
        }
        let before = allocations();
        assert_eq!(map.delete_batch(&buffers.keys, BATCH, 0, 0).count, BATCH);
        count("batch delete", allocations() - before);
    }
    let mut results = vec![Ok(()); BATCH as usize];
    let before = allocations();
    let done = map.lookup_many(&buffers.keys, &mut buffers.values, &mut results);
    if done.is_ok() {
        count("lookup_many", allocations() - before);
    }
}

fn check(name: &str, map: &MapFile, shape: &Shape) {
    let all: Vec<Vec<u8>> = (0..ENTRIES).map(|i| key(shape, i)).collect();
    let missing = key(shape, ENTRIES + 5);
    let mut buffers = Buffers {
        keys: all[..BATCH as usize].concat(),
        values: vec![1; shape.value_bytes() * BATCH as usize],
        next: vec![0; shape.key_size as usize],
        value: vec![2; shape.value_bytes()],
    };
    for _ in 0..3 {
        round(map, shape, (&all, &missing), &mut buffers, &mut |_, _| {});
    }
    let mut kinds = 0;
    for _ in 0..3 {
        round(
            map,
            shape,
            (&all, &missing),
            &mut buffers,
            &mut |what, n| {
                assert_eq!(n, 0, "{name}, {shape:?}: {what} allocated {n} times");
                kinds += 1;
            },
        );
    }
    assert!(kinds >= 18, "only {kinds} measurements");
}

/// Maps on the device.
fn maps<E: FrontEnd>(stack: &Stack<Emulated<E>>) -> u32 {
    let stats = stack
        .function
        .with_firmware(|firmware| firmware.memory_stats());
    stats.expect("the device lives").maps
}

fn on<E: FrontEnd>(name: &str, stack: &Stack<Emulated<E>>) {
    for map_type in [
        MapType::HASH,
        MapType::ARRAY,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
    ] {
        for (key_size, value_size) in [(8, 64), (8, 16), (40, 200)] {
            let array = matches!(map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
            let shape = Shape {
                map_type,
                key_size: if array { 4 } else { key_size },
                value_size,
                max_entries: ENTRIES,
                map_flags: 0,
                map_extra: 0,
                cpus: kernel::possible_cpus(),
            };
            let attr: MapCreateAttr = attr(&shape);
            check(name, &stack.map(&attr, true), &shape);
            // A thread of the system frees the map, and the inline device would do that, and
            // allocate for it, on whatever thread waits for it next: the one that is measured.
            while maps(stack) != 0 {
                std::thread::yield_now();
            }
            check("host map", &stack.map(&attr, false), &shape);
        }
    }
}

/// The counter counts: otherwise nothing below means anything.
#[test]
fn the_counter_counts() {
    let before = allocations();
    let v = std::hint::black_box(vec![1u8; 100]);
    assert_eq!(allocations() - before, 1);
    drop(v);
}

#[test]
fn inline() {
    on("offloaded inline", &Stack::inline(DeviceConfig::default()));
}

#[test]
fn threaded() {
    on(
        "offloaded threaded",
        &Stack::threaded(DeviceConfig::default()),
    );
}
