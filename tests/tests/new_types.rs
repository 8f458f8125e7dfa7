//! BLOOM_FILTER against the running kernel, and MAP_CREATE of LPM_TRIE and BLOOM_FILTER: what may
//! be created, what is refused with which number, and what a map accounts for.
//!
//! `OFFMAP_SEED` replays a run. Without a kernel that lets this process make maps, the host map
//! judges the offloaded one.

use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_bpf::{Error, MapCreateAttr, MapFile};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::report::{aloud, required, seed};
use offmap_tests::stack::{Stack, StackMap};
use offmap_tests::subject::{Answered, Subject};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const ENOENT: i32 = 2;

fn kernel_takes_part() -> bool {
    let available = kernel::availability();
    if let Availability::No(why) = &available {
        assert!(!required("OFFMAP_REQUIRE_KERNEL"), "no kernel: {why}");
        aloud(&format!("new types: THE KERNEL TAKES NO PART ({why})"));
    }
    available == Availability::Yes
}

fn bloom(value_size: u32, max_entries: u32, map_extra: u64, flags: MapFlags) -> MapCreateAttr {
    MapCreateAttr {
        map_type: MapType::BLOOM_FILTER.0,
        value_size,
        max_entries,
        map_extra,
        map_flags: flags.bits(),
        ..MapCreateAttr::default()
    }
}

fn subjects(stack: &Stack<Inline>, attr: &MapCreateAttr, kernel: bool) -> Vec<Box<dyn Subject>> {
    let ours = |name, offloaded| -> Box<dyn Subject> {
        let file = stack.map(attr, offloaded);
        Box::new(StackMap { name, file })
    };
    let mut subjects = vec![ours("host map", false), ours("offloaded", true)];
    if kernel {
        let map = KernelMap::create(attr).expect("a map of the kernel");
        subjects.insert(0, Box::new(map));
    }
    subjects
}

/// With `BPF_F_ZERO_SEED` every filter has the same bits: each value, added or not, gets the
/// same answer, false positives included.
#[test]
fn bloom_filters_agree_bit_for_bit() {
    const SIZES: [u32; 18] = [
        1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 15, 16, 17, 23, 24, 25, 64, 1001,
    ];
    let kernel = kernel_takes_part();
    let stack = Stack::inline(DeviceConfig::default());
    let base = seed();
    let (mut asked, mut wrong) = (0u64, 0u64);
    for round in 0..120u64 {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(round));
        let size = SIZES[rng.random_range(0..SIZES.len())];
        let max_entries = rng.random_range(1..=300);
        let attr = bloom(
            size,
            max_entries,
            rng.random_range(0..=15),
            MapFlags::ZERO_SEED,
        );
        let mut maps = subjects(&stack, &attr, kernel);
        let mut value = vec![0; size as usize];
        let mut added = Vec::new();
        for step in 0..max_entries * 6 {
            // Twice as many as it is made for, so that there are enough false positives.
            let adds = step % 3 == 0;
            rng.fill_bytes(&mut value);
            if rng.random_ratio(1, 8) && !added.is_empty() {
                let known: &Vec<u8> = &added[rng.random_range(0..added.len())];
                value.copy_from_slice(known);
            }
            let mut answers: Vec<Answered> = Vec::new();
            for map in &mut maps {
                answers.push(match adds {
                    true => map.update(&[], &value, 0),
                    false => map.lookup(&[], &mut value.clone(), 0),
                });
            }
            assert!(
                answers.iter().all(|answer| *answer == answers[0]),
                "seed {}, round {round}, step {step}: {attr:?}: {answers:?}",
                base.wrapping_add(round)
            );
            if adds {
                added.push(value.clone());
            } else if added.contains(&value) {
                assert_eq!(answers[0], Ok(()), "a value that was added is not there");
            } else {
                asked += 1;
                wrong += u64::from(answers[0].is_ok());
            }
        }
    }
    aloud(&format!(
        "bloom filters: seed {base}, {asked} values that were not added, {wrong} of them taken for \
         added, by all alike"
    ));
    assert!(wrong > 100, "too few false positives to tell filters apart");
}

/// Without it nobody can tell beforehand which values collide; what was added is there.
#[test]
fn bloom_filters_differ_by_their_seeds() {
    let stack = Stack::inline(DeviceConfig::default());
    for offloaded in [false, true] {
        let positives = || {
            let map = stack.map(&bloom(4, 200, 3, MapFlags::empty()), offloaded);
            for i in 0..400u32 {
                map.update(&[], &i.to_ne_bytes(), 0).unwrap();
            }
            let there = |i: &u32| map.lookup(&[], &mut i.to_ne_bytes(), 0).is_ok();
            assert!((0..400).all(|i| there(&i)));
            (1000..5000u32).filter(there).collect::<Vec<_>>()
        };
        let (one, other) = (positives(), positives());
        assert!(!one.is_empty() && one.len() < 4000);
        assert_ne!(one, other, "offloaded {offloaded}");
    }
}

/// Every command but lookup and update; the value buffer of a lookup stays as it is.
#[test]
fn bloom_filters_refuse_alike() {
    let kernel = kernel_takes_part();
    let stack = Stack::inline(DeviceConfig::default());
    let attr = bloom(4, 10, 0, MapFlags::ZERO_SEED);
    let mut all = Vec::new();
    for map in &mut subjects(&stack, &attr, kernel) {
        let mut value = *b"some";
        let mut answers = Vec::new();
        for flags in [0, 1, 2, 3, 4, 8, 1 << 40] {
            answers.push(map.update(&[], &value, flags));
            answers.push(map.lookup(&[], &mut value, flags));
            answers.push(map.lookup_and_delete(&[], &mut value, flags));
            assert_eq!(&value, b"some");
        }
        answers.push(map.lookup(&[], &mut b"else".to_owned(), 0));
        answers.push(map.delete(&[]));
        answers.push(map.get_next_key(None, &mut []));
        for count in [0, 1] {
            let value = &mut value[..4 * count as usize];
            answers.push(map.update_batch(&[], value, count, 0).1);
            answers.push(map.delete_batch(&[], count, 0).1);
            for delete in [false, true] {
                let walked = map.walk_batch(None, &mut [], value, count, 0, delete);
                answers.push(walked.result);
            }
        }
        answers.push(map.freeze());
        answers.push(map.update(&[], &value, 9));
        answers.push(map.delete(&[]));
        answers.push(map.lookup_and_delete(&[], &mut value, 0));
        answers.push(map.lookup(&[], &mut value, 0));
        all.push((map.name(), answers));
    }
    for (name, answers) in &all {
        assert_eq!(answers, &all[0].1, "{name} and {}", all[0].0);
    }
    assert_eq!(all[0].1[..3], [Ok(()), Ok(()), Err(524)]);
    assert!(all[0].1.contains(&Err(ENOENT)) && all[0].1.contains(&Err(95)));
}

/// The same errno, or success, for the same attribute; and the same `memlock`.
#[test]
fn creation_is_judged_alike() {
    let kernel = kernel_takes_part();
    let stack = Stack::inline(DeviceConfig::default());
    let number = |made: Result<MapFile, Error>| made.map(|file| file.info().unwrap().mem_usage);
    let (mut made, mut refused) = (0, 0);
    let mut judge = |attr: &MapCreateAttr| {
        let host = number(stack.try_map(attr, false)).map_err(|e| e.errno().0);
        if kernel {
            let theirs = KernelMap::create(attr).map(|map| map.memlock().expect("fdinfo"));
            assert_eq!(host, theirs, "{attr:?}");
        }
        // Its figure is that of any offloaded map, and a device can be too small.
        let there = number(stack.try_map(attr, true)).map_err(|e| e.errno().0);
        let small = there == Err(12) && host.is_ok();
        assert!(
            small || there.is_ok() == host.is_ok(),
            "{attr:?}: {there:?}"
        );
        if let (Err(there), Err(host)) = (there, host) {
            assert_eq!(there, host, "{attr:?}");
        }
        *(if host.is_ok() {
            &mut made
        } else {
            &mut refused
        }) += 1;
    };
    for (map_type, keys, values) in [
        (
            MapType::LPM_TRIE,
            &[0, 4, 5, 8, 260, 261, u32::MAX][..],
            &[0, 1, 8, 4_194_024, 4_194_025, u32::MAX][..],
        ),
        (
            MapType::BLOOM_FILTER,
            &[0, 1, 4],
            &[0, 1, 4, 4 << 20, (4 << 20) + 1, u32::MAX],
        ),
    ] {
        let attr = |key_size, value_size, max_entries, map_flags: u32, map_extra| MapCreateAttr {
            map_type: map_type.0,
            key_size,
            value_size,
            max_entries,
            map_flags,
            map_extra,
            ..MapCreateAttr::default()
        };
        let usual = match map_type {
            MapType::LPM_TRIE => MapFlags::NO_PREALLOC.bits(),
            _ => 0,
        };
        for &key_size in keys {
            for &value_size in values {
                for max_entries in [0, 1, 1000] {
                    judge(&attr(key_size, value_size, max_entries, usual, 0));
                    judge(&attr(key_size, value_size, max_entries, 1 - usual, 0));
                }
            }
        }
        let key = keys[keys.len().min(4) - 1];
        let key = if map_type == MapType::BLOOM_FILTER {
            0
        } else {
            key
        };
        for bit in 0..32 {
            // The flags that concern descriptors of other kinds are the core's.
            if bit != 16 {
                judge(&attr(key, 8, 10, usual ^ 1 << bit, 0));
            }
        }
        judge(&attr(key, 8, 10, usual | 0x180, 0));
        for map_extra in [0, 1, 5, 15, 16, 1 << 32, u64::MAX] {
            for max_entries in [1, 3, 9, 10, 11, 100, 1000, 1 << 20] {
                judge(&attr(key, 8, max_entries, usual, map_extra));
            }
        }
        for max_entries in [1 << 28, 1 << 31, u32::MAX] {
            judge(&attr(key, 8, max_entries, usual, 0));
        }
    }
    aloud(&format!("creation: {made} made, {refused} refused"));
    assert!(made > 50 && refused > 100);
}

/// What a trie accounts for follows what is in it.
#[test]
fn a_trie_accounts_for_its_prefixes() {
    let kernel = kernel_takes_part();
    let stack = Stack::inline(DeviceConfig::default());
    let attr = MapCreateAttr {
        map_type: MapType::LPM_TRIE.0,
        key_size: 9,
        value_size: 13,
        max_entries: 8,
        map_flags: MapFlags::NO_PREALLOC.bits(),
        ..MapCreateAttr::default()
    };
    let ours = stack.map(&attr, false);
    let mut theirs = kernel.then(|| KernelMap::create(&attr).unwrap());
    for i in 0..24u8 {
        // Eight prefixes that part in the last bits; then some are deleted and some replaced.
        let mut key = [0; 9];
        key[0] = 40;
        key[8] = i % 8;
        let (ok, named) = match i % 5 {
            4 => (
                ours.delete(&key).is_ok(),
                theirs.as_mut().map(|m| m.delete(&key)),
            ),
            _ => (
                ours.update(&key, &[i; 13], 0).is_ok(),
                theirs.as_mut().map(|m| m.update(&key, &[i; 13], 0)),
            ),
        };
        if let Some((map, named)) = theirs.as_ref().zip(named) {
            assert_eq!(ok, named.is_ok());
            assert_eq!(
                ours.info().unwrap().mem_usage,
                map.memlock().unwrap(),
                "{i}"
            );
        }
    }
    assert_ne!(ours.info().unwrap().mem_usage, 0);
}
