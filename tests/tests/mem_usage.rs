//! What every type of map accounts for, against `memlock` of the kernel's own in
//! `/proc/self/fdinfo`: sizes, flags and, where it counts, what is in the map.

use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_bpf::{Caller, MapCreateAttr, System, SystemConfig};
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::report::{aloud, required};
use offmap_tests::subject::Subject;

/// Types with keys and values of any size, with the flags that their memory may depend on.
const TYPES: &[(MapType, &[MapFlags])] = &[
    (
        MapType::HASH,
        &[
            MapFlags::empty(),
            MapFlags::NO_PREALLOC,
            MapFlags::ZERO_SEED,
        ],
    ),
    (
        MapType::PERCPU_HASH,
        &[MapFlags::empty(), MapFlags::NO_PREALLOC],
    ),
    (
        MapType::LRU_HASH,
        &[MapFlags::empty(), MapFlags::NO_COMMON_LRU],
    ),
    (
        MapType::LRU_PERCPU_HASH,
        &[MapFlags::empty(), MapFlags::NO_COMMON_LRU],
    ),
    (
        MapType::ARRAY,
        &[MapFlags::empty(), MapFlags::MMAPABLE, MapFlags::INNER_MAP],
    ),
    (MapType::PERCPU_ARRAY, &[MapFlags::empty()]),
    (MapType::LPM_TRIE, &[MapFlags::NO_PREALLOC]),
    (MapType::QUEUE, &[MapFlags::empty()]),
    (MapType::STACK, &[MapFlags::empty()]),
    (MapType::BLOOM_FILTER, &[MapFlags::empty()]),
];

fn key_sizes(map_type: MapType) -> &'static [u32] {
    match map_type {
        MapType::ARRAY | MapType::PERCPU_ARRAY => &[4],
        MapType::LPM_TRIE => &[5, 8, 20],
        MapType::QUEUE | MapType::STACK | MapType::BLOOM_FILTER => &[0],
        _ => &[1, 4, 8, 13, 64],
    }
}

/// Elements are put in, replaced and taken out again; after each step both say the same.
#[test]
fn every_type_accounts_as_the_kernel_does() {
    if let Availability::No(why) = kernel::availability() {
        assert!(!required("OFFMAP_REQUIRE_KERNEL"), "no kernel: {why}");
        aloud(&format!("SKIPPED, no kernel to judge memory: {why}"));
        return;
    }
    let system = System::new(SystemConfig::default());
    let cpus = system.config().possible_cpus as usize;
    let mut compared = 0;
    for &(map_type, flags) in TYPES {
        for &map_flags in flags {
            for &key_size in key_sizes(map_type) {
                for value_size in [1, 4, 8, 12, 100, 5000] {
                    for max_entries in [1, 2, 7, 64, 1000] {
                        let attr = MapCreateAttr {
                            map_type: map_type.0,
                            key_size,
                            value_size,
                            max_entries,
                            map_flags: map_flags.bits(),
                            ..MapCreateAttr::default()
                        };
                        let fd = system.map_create(&Caller::root(), &attr).expect("ours");
                        let ours = system.map_file(fd).expect("open");
                        let mut theirs = KernelMap::create(&attr).expect("the kernel's");
                        let usage = || ours.info().expect("info").mem_usage;
                        assert_eq!(Some(usage()), theirs.memlock(), "{attr:?}");
                        let value_bytes = match map_type.is_percpu() {
                            true => (value_size as usize).next_multiple_of(8) * cpus,
                            false => value_size as usize,
                        };
                        let value = vec![3; value_bytes];
                        for step in 0..6_u8 {
                            let mut key = vec![0; key_size as usize];
                            if let Some(first) = key.first_mut() {
                                *first = step % 4;
                            }
                            let (one, other) = match step {
                                5 => (ours.delete(&key), theirs.delete(&key)),
                                _ => (ours.update(&key, &value, 0), theirs.update(&key, &value, 0)),
                            };
                            assert_eq!(one.is_ok(), other.is_ok(), "{attr:?}, step {step}");
                            assert_eq!(Some(usage()), theirs.memlock(), "{attr:?}, step {step}");
                            compared += 1;
                        }
                        system.close(fd).expect("open");
                    }
                }
            }
        }
    }
    aloud(&format!(
        "memory of maps: {compared} figures agree with the kernel's"
    ));
    assert!(compared > 5000);
}
