//! The offload layer end to end: many threads over one NIC, resets under their feet, per-CPU
//! values, a device that is full, and a device that wastes its host's time.

#[path = "../../crates/driver/tests/scripted/mod.rs"]
mod scripted;

use offmap_abi::completion::BatchResult;
use offmap_abi::submission::BatchBody;
use offmap_abi::{Completion, Status};
use offmap_bpf::device::{MapSpec, OffloadDevice};
use offmap_bpf::{Errno, MapCreateAttr, MapFile, MapFlags, MapType};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_offload::{OffloadNic, Profile, SeedSource};
use offmap_tests::stack::Stack;
use scripted::{Scripted, returned};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// More than there are lanes in the pool.
const THREADS: u32 = 6;

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size: 4,
        value_size,
        max_entries,
        ..MapCreateAttr::default()
    }
}

/// The value of thread `t` under its key `i`, in round `round`.
fn value_of(t: u32, i: u32, round: u32, len: usize) -> Vec<u8> {
    let word = u64::from(t) << 48 | u64::from(i) << 24 | u64::from(round);
    word.to_ne_bytes().into_iter().cycle().take(len).collect()
}

fn many_threads<F: Function>(stack: &Stack<F>) {
    // Values in the completion, in the slot's area, and in large buffers.
    for value_size in [8u32, 200, 3000] {
        let map = stack.map(&attr(MapType::HASH, value_size, 600), true);
        std::thread::scope(|scope| {
            for t in 0..THREADS {
                let map = &map;
                scope.spawn(move || {
                    let len = value_size as usize;
                    let mut out = vec![0; len];
                    for round in 0..4 {
                        for i in 0..100 {
                            let key = (t * 100 + i).to_ne_bytes();
                            let value = value_of(t, i, round, len);
                            map.update(&key, &value, 0).unwrap();
                            map.lookup(&key, &mut out, 0).unwrap();
                            assert_eq!(out, value, "thread {t} key {i} round {round}");
                        }
                    }
                });
            }
        });
        let mut out = vec![0; value_size as usize];
        for t in 0..THREADS {
            for i in 0..100 {
                map.lookup(&(t * 100 + i).to_ne_bytes(), &mut out, 0)
                    .unwrap();
                assert_eq!(out, value_of(t, i, 3, out.len()));
            }
        }
    }
}

#[test]
fn many_threads_over_one_nic() {
    many_threads(&Stack::inline(DeviceConfig::default()));
    many_threads(&Stack::threaded(DeviceConfig::default()));
    // Fewer queue pairs than threads, and than processors.
    many_threads(&Stack::inline(DeviceConfig {
        queue_pairs: 1,
        ..DeviceConfig::default()
    }));
}

fn resets_under_threads<F: Function>(stack: &Stack<F>) {
    let stop = AtomicBool::new(false);
    let (done, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (stop, done, refused) = (&stop, &done, &refused);
            scope.spawn(move || {
                let mut map: Option<MapFile> = None;
                let (mut out, mut i) = (vec![0; 100], 0);
                while !stop.load(Ordering::Relaxed) {
                    i += 1;
                    let key = (i % 16u32).to_ne_bytes();
                    let ended = match &map {
                        None => stack
                            .try_map(&attr(MapType::HASH, 100, 16), true)
                            .map(|made| map = Some(made)),
                        Some(map) => {
                            let value = value_of(t, i, 0, 100);
                            map.update(&key, &value, 0).and_then(|()| {
                                map.lookup(&key, &mut out, 0)?;
                                assert_eq!(out, value, "thread {t} step {i}");
                                Ok(())
                            })
                        }
                    };
                    match ended {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => {
                            // Gone with the reset, or cut off by it.
                            let known = [Errno::ENODEV, Errno::ETIMEDOUT, Errno::EIO, Errno::EBUSY];
                            assert!(known.contains(&e.errno()), "{e}");
                            refused.fetch_add(1, Ordering::Relaxed);
                            map = None;
                        }
                    }
                }
            });
        }
        for _ in 0..25 {
            std::thread::sleep(Duration::from_millis(8));
            stack.driver.reset().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (done, refused) = (done.into_inner(), refused.into_inner());
    assert!(done > 100 && refused > 0, "{done} done, {refused} refused");
    // The NIC is usable: all lanes, and all of its memory.
    many_threads(stack);
}

#[test]
fn resets_race_operations_and_the_nic_stays_usable() {
    resets_under_threads(&Stack::inline(DeviceConfig::default()));
    resets_under_threads(&Stack::threaded(DeviceConfig::default()));
}

#[test]
fn per_cpu_values_travel_whole() {
    let stack = Stack::inline(DeviceConfig::default());
    for map_type in [MapType::PERCPU_ARRAY, MapType::PERCPU_HASH] {
        // A stride that is not the size.
        let map = stack.map(&attr(map_type, 12, 8), true);
        let bytes = map.value_bytes();
        assert!(bytes >= 16 && bytes.is_multiple_of(16), "{bytes}");
        for i in 0..8u32 {
            let mut value: Vec<u8> = (0..bytes).map(|b| b as u8 ^ i as u8).collect();
            map.update(&i.to_ne_bytes(), &value, 0).unwrap();
            let mut out = vec![0xee; bytes];
            map.lookup(&i.to_ne_bytes(), &mut out, 0).unwrap();
            for (slot, expected) in out.chunks(16).zip(value.chunks_mut(16)) {
                assert_eq!(slot[..12], expected[..12], "{map_type} {i}");
            }
        }
        let beyond = map.lookup(&8u32.to_ne_bytes(), &mut vec![0; bytes], 0);
        assert_eq!(beyond.unwrap_err().errno(), Errno::ENOENT);
    }
}

#[test]
fn a_full_device_says_how_full_and_keeps_what_it_has() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 1 << 20;
    let stack = Stack::inline(config);
    let map = stack.map(&attr(MapType::HASH, 64, 1000), true);
    for i in 0..1000u32 {
        map.update(&i.to_ne_bytes(), &value_of(1, i, 0, 64), 0)
            .unwrap();
    }
    let error = stack
        .try_map(&attr(MapType::ARRAY, 64, 100_000), true)
        .unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
    let figures: Vec<u64> = error
        .reason()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    match figures[..] {
        [asked, largest, used] => {
            assert!(asked >= 6_400_000 && largest < asked, "{error}");
            assert!(used >= 64_000 && used + largest <= 1 << 20, "{error}");
        }
        _ => panic!("asked, free and used are not in: {error}"),
    }
    let mut out = vec![0; 64];
    for i in 0..1000u32 {
        map.lookup(&i.to_ne_bytes(), &mut out, 0).unwrap();
        assert_eq!(out, value_of(1, i, 0, 64));
    }
    // What is free can still be had.
    stack.map(&attr(MapType::ARRAY, 64, 100), true);
}

#[test]
fn buffers_of_the_wrong_length_are_refused_by_the_device_layer_too() {
    let stack = Stack::inline(DeviceConfig::default());
    let spec = MapSpec {
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 100,
        max_entries: 8,
        map_flags: MapFlags::empty(),
        map_extra: 0,
        numa_node: None,
        possible_cpus: 2,
        name: [0; 16],
    };
    let map = stack.nic.map_alloc(&spec).unwrap();
    let (key, value) = ([0; 4], [0; 100]);
    let mut out = vec![0; 300];
    let refusals = [
        map.lookup(&[0; 5], &mut out[..100], 0),
        map.lookup(&key, &mut out[..99], 0),
        map.update(&key, &value[..99], 0),
        map.update(&[], &value, 0),
        map.delete(&[0; 3]),
        map.get_next_key(Some(&[0; 8]), &mut out[..4]),
        map.get_next_key(None, &mut out[..5]),
        map.lookup_and_delete(&key, &mut out[..1], 0),
        map.update_batch(&[0; 9], &[0; 200], 2, 0).result,
        map.update_batch(&[0; 8], &[0; 199], 2, 0).result,
        map.delete_batch(&[0; 7], 1).result,
        map.lookup_many(&[0; 8], &mut out[..300], &mut [Ok(()); 2]),
    ];
    for (i, refusal) in refusals.into_iter().enumerate() {
        let error = refusal.unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{i}: {error}");
        assert!(error.reason().contains("bytes long"), "{i}: {error}");
    }
    map.update(&key, &value, 0).unwrap();
    map.free();
}

#[test]
fn a_bucket_larger_than_a_usual_command_is_walked() {
    // A command's arrays hold two elements of this size; a bucket may have more.
    let config = DriverConfig {
        batch_bytes: 4096,
        ..DriverConfig::default()
    };
    let function = Inline::new(DeviceConfig::default()).unwrap();
    let stack = Stack::with_driver(function, config);
    let map = stack.map(&attr(MapType::HASH, 1500, 200), true);
    for i in 0..200u32 {
        map.update(&i.to_ne_bytes(), &value_of(2, i, 0, 1500), 0)
            .unwrap();
    }
    let (mut keys, mut values) = (vec![0; 300 * 4], vec![0; 300 * 1500]);
    let walked = map.lookup_batch(None, &mut [0; 4], &mut keys, &mut values, 300, 0, 0);
    assert_eq!(walked.result.unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(walked.count, 200);
    for (key, value) in keys.chunks(4).zip(values.chunks(1500)).take(200) {
        let i = u32::from_ne_bytes(key.try_into().unwrap());
        assert_eq!(value, value_of(2, i, 0, 1500));
    }
}

/// A NIC on a device that answers each dump with `count` elements and a cursor one further.
fn slow_walker(count: u32) -> Arc<OffloadNic<Scripted>> {
    let device = Scripted::new();
    device.script(move |queue, memory, command| {
        let body: BatchBody = command.body();
        let first = body.cursor.get() == 0;
        let result = BatchResult {
            cursor: (body.cursor.get() + 1).into(),
            needed: 0.into(),
            reserved: 0.into(),
        };
        let done = Completion::new(command.request(), Status::Success);
        let done = done.with_payload(result.as_bytes());
        let count = if first {
            count.min(body.count.get())
        } else {
            0
        };
        queue.complete(memory, returned(done, count as usize));
    });
    let config = DriverConfig {
        queue_depth: 8,
        op_timeout: Duration::from_millis(200),
        ..DriverConfig::default()
    };
    device.state().identify.entries_per_map = u32::MAX.into();
    let driver = Driver::bring_up(device, config).unwrap();
    OffloadNic::new(driver, Profile::offmap()).unwrap()
}

#[test]
fn a_walk_that_finds_nothing_ends() {
    for (count, delete) in [(0, false), (0, true), (3, false)] {
        let nic = slow_walker(count);
        let spec = MapSpec {
            map_type: MapType::HASH,
            key_size: 4,
            value_size: 4,
            // As many buckets as there can be: counting commands alone would take an hour.
            max_entries: 1 << 31,
            map_flags: MapFlags::empty(),
            map_extra: 0,
            numa_node: None,
            possible_cpus: 2,
            name: [0; 16],
        };
        let map = nic.map_alloc(&spec).unwrap();
        let mut token = [0; 4];
        let started = Instant::now();
        let walk = |from: Option<&[u8]>, token: &mut [u8]| {
            map.walk_batch(from, token, &mut [0; 32], &mut [0; 32], 8, delete)
        };
        let walked = walk(None, &mut token);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(200), "{took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(walked.count, count);
        // What was found is a result, and either way the next call goes on from there.
        match walked.result {
            Ok(()) => assert_eq!(count, 3),
            Err(e) => assert_eq!((count, e.errno()), (0, Errno::ETIMEDOUT), "{e}"),
        }
        let position = u32::from_ne_bytes(token);
        assert!(position > 1, "{position}");
        let again = walk(Some(&position.to_ne_bytes()), &mut token);
        assert_eq!((again.count, again.result.is_err()), (0, true));
        assert!(u32::from_ne_bytes(token) > position);
    }
}

#[test]
fn a_dump_past_the_end_of_the_map_is_not_followed() {
    let nic = slow_walker(0);
    let spec = MapSpec {
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 4,
        max_entries: 8,
        map_flags: MapFlags::empty(),
        map_extra: 0,
        numa_node: None,
        possible_cpus: 2,
        name: [0; 16],
    };
    let map = nic.map_alloc(&spec).unwrap();
    let walked = map.walk_batch(None, &mut [0; 4], &mut [0; 32], &mut [0; 32], 8, false);
    assert_eq!(walked.result.unwrap_err().errno(), Errno::EIO);
}

struct FixedSeed(u64);

impl SeedSource for FixedSeed {
    fn seed(&self) -> u64 {
        self.0
    }
}

#[test]
fn a_seed_source_decides_the_order_of_a_walk() {
    let order = |seed| {
        let function = Inline::new(DeviceConfig::default()).unwrap();
        let driver = Driver::bring_up(function, DriverConfig::default()).unwrap();
        let nic = OffloadNic::with_seed(driver, Profile::offmap(), FixedSeed(seed)).unwrap();
        let spec = MapSpec {
            map_type: MapType::HASH,
            key_size: 4,
            value_size: 4,
            max_entries: 64,
            map_flags: MapFlags::empty(),
            map_extra: 0,
            numa_node: None,
            possible_cpus: 2,
            name: [0; 16],
        };
        let map = nic.map_alloc(&spec).unwrap();
        let mut keys = Vec::new();
        for i in 0..64u32 {
            map.update(&i.to_ne_bytes(), &[0; 4], 0).unwrap();
        }
        let (mut from, mut next) = (None, [0; 4]);
        while map
            .get_next_key(from.as_ref().map(<[u8; 4]>::as_slice), &mut next)
            .is_ok()
        {
            keys.push(next);
            from = Some(next);
        }
        assert_eq!(keys.len(), 64);
        keys
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}
