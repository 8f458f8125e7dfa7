//! Maps with BPF_F_ZERO_SEED against the running kernel's: the same changes leave the same
//! order of keys, the same batches and the same tokens, as long as a map lives.
//!
//! `OFFMAP_SEED` replays a run; `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel
//! takes no part.

use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Caller, MapCreateAttr, MapType, System, SystemConfig};
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::report::{aloud, required, seed};
use offmap_tests::stack::StackMap;
use offmap_tests::subject::{Subject, Walked};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const ENOENT: i32 = 2;

/// Every key in the order of GET_NEXT_KEY.
fn walked(map: &mut dyn Subject, key_bytes: usize, most: usize) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0; key_bytes];
        match map.get_next_key(keys.last().map(Vec::as_slice), &mut next) {
            Ok(()) => keys.push(next),
            Err(errno) => {
                assert_eq!(errno, ENOENT, "{}", map.name());
                return keys;
            }
        }
        assert!(keys.len() <= most, "{}: a walk does not end", map.name());
    }
}

/// The whole map in batches of `count`: each call's answer, and the bytes it returned.
fn batches(
    map: &mut dyn Subject,
    sizes: (usize, usize),
    count: u32,
    delete: bool,
) -> Vec<(Walked, Vec<u8>, Vec<u8>)> {
    let mut calls = Vec::new();
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        let mut keys = vec![0; sizes.0 * count as usize];
        let mut values = vec![0; sizes.1 * count as usize];
        let done = map.walk_batch(cursor.as_deref(), &mut keys, &mut values, count, 0, delete);
        keys.truncate(sizes.0 * done.count as usize);
        values.truncate(sizes.1 * done.count as usize);
        cursor = Some(done.cursor.clone());
        let ended = done.result.is_err();
        calls.push((done, keys, values));
        if ended {
            return calls;
        }
    }
}

fn on_both<T: PartialEq + std::fmt::Debug>(
    maps: &mut [Box<dyn Subject>],
    what: &str,
    mut operation: impl FnMut(&mut dyn Subject) -> T,
) -> T {
    let mut answers = maps.iter_mut().map(|map| operation(map.as_mut()));
    let first = answers.next().expect("a map");
    for other in answers {
        assert_eq!(other, first, "{what}: ours (left) and the kernel's (right)");
    }
    first
}

/// One map shape through changes, walks and batches; elements walked in all.
fn compare(system: &System, attr: &MapCreateAttr, random: &mut impl Rng) -> usize {
    let what = format!(
        "{:?} key_size {} max_entries {} flags {:#x}",
        MapType(attr.map_type),
        attr.key_size,
        attr.max_entries,
        attr.map_flags
    );
    let kernels = KernelMap::create(attr)
        .unwrap_or_else(|errno| panic!("the kernel refuses {what}: errno {errno}"));
    let value_bytes = kernels.value_bytes();
    let fd = system.map_create(&Caller::root(), attr).expect("a map");
    let file = system.map_file(fd).expect("its file");
    assert_eq!(file.value_bytes(), value_bytes);
    let mut maps: Vec<Box<dyn Subject>> = vec![
        Box::new(kernels),
        Box::new(StackMap {
            name: "host map",
            file,
        }),
    ];
    let key_bytes = attr.key_size as usize;
    let max = attr.max_entries as usize;
    // More keys than there is room for, where so many exist: 256 of one byte.
    let distinct = (max + max / 4 + 2).min(if key_bytes == 1 { 256 } else { usize::MAX });
    let key_of = |n: usize| -> Vec<u8> {
        // Different bytes throughout, the last included.
        let word = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        (0..key_bytes)
            .map(|i| match i {
                0 => n as u8,
                1 => (n >> 8) as u8,
                _ => word[i % 8].wrapping_add(i as u8),
            })
            .collect()
    };
    let mut value = vec![0; value_bytes];
    let mut elements = 0;
    for round in 0..3 {
        for step in 0..max * 3 {
            let key = key_of(random.random_range(0..distinct));
            random.fill_bytes(&mut value);
            let (flags, choice) = (random.random_range(0..3), random.random_range(0..10));
            let step = format!("{what}, round {round}, step {step}");
            let _ = on_both(&mut maps, &step, |map| match choice {
                0..=1 => map.delete(&key),
                2 => map.lookup_and_delete(&key, &mut vec![0; value_bytes], 0),
                3..=4 => map.update(&key, &value, flags),
                _ => map.update(&key, &value, 0),
            });
        }
        let keys = on_both(&mut maps, &what, |map| walked(map, key_bytes, max));
        assert!(max < 33 || !keys.is_empty(), "{what}: nothing is compared");
        elements += keys.len();
        // Largest buckets, some, and all of them in one call.
        for count in [1, 3, 7, max as u32] {
            let _ = on_both(&mut maps, &what, |map| {
                batches(map, (key_bytes, value_bytes), count, false)
            });
        }
    }
    let count = (max as u32).div_ceil(2);
    let _ = on_both(&mut maps, &what, |map| {
        batches(map, (key_bytes, value_bytes), count, true)
    });
    let _ = on_both(&mut maps, &what, |map| walked(map, key_bytes, max));
    elements
}

#[test]
fn zero_seed_maps_have_the_kernel_s_order() {
    if let Availability::No(why) = kernel::availability() {
        assert!(
            !required("OFFMAP_REQUIRE_KERNEL"),
            "the kernel takes no part: {why}"
        );
        aloud(&format!(
            "zero_seed: SKIPPED, maps may not be created here ({why})"
        ));
        return;
    }
    let seed = seed();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let system = System::new(SystemConfig {
        possible_cpus: kernel::possible_cpus(),
        ..SystemConfig::default()
    });
    let mut elements = 0;
    for map_type in [MapType::HASH, MapType::PERCPU_HASH] {
        for more in [MapFlags::empty(), MapFlags::NO_PREALLOC] {
            for key_size in 1..=40 {
                for max_entries in [1, 5, 33, 200] {
                    let attr = MapCreateAttr {
                        map_type: map_type.0,
                        key_size,
                        value_size: 5,
                        max_entries,
                        map_flags: (MapFlags::ZERO_SEED | more).bits(),
                        ..MapCreateAttr::default()
                    };
                    elements += compare(&system, &attr, &mut random);
                }
            }
        }
    }
    println!("zero_seed: seed {seed}, {elements} elements walked in the kernel's order");
}
