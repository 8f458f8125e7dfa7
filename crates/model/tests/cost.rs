//! What operations cost in accesses: counted where tables fit, and held to that where it is inferred.

use offmap_model::cost::{COUNTED_ENTRIES, Op, Part, Shape, cost};

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const LRU_HASH: u32 = 9;
const LPM: u32 = 11;

fn shape(map_type: u32, max_entries: u32) -> Shape {
    Shape {
        map_type,
        key_size: match map_type {
            ARRAY => 4,
            LPM => 20,
            _ => 16,
        },
        value_size: 32,
        max_entries,
        fill_ppm: 920_000,
        cpu_slots: if map_type == PERCPU_HASH { 4 } else { 0 },
        prefixes: match map_type {
            LPM => vec![(48, 50), (64, 40), (128, 10)],
            _ => Vec::new(),
        },
    }
}

/// A table of 2^17 entries is counted as a whole; one of which every entry is larger is counted at
/// a part of it, and scaled. Both must say the same, but for the bytes of a value.
#[test]
fn what_is_inferred_is_what_is_counted() {
    for map_type in [HASH, ARRAY, PERCPU_HASH, LRU_HASH, LPM] {
        for (max_entries, fill_ppm) in [
            (COUNTED_ENTRIES, 920_000),
            (100_000, 1_000_000),
            (100_000, 400_000),
        ] {
            let small = Shape {
                fill_ppm,
                ..shape(map_type, max_entries)
            };
            let large = Shape {
                // 8 KiB a value: counted at an eighth or a sixteenth.
                value_size: 8192,
                ..small.clone()
            };
            let counted = cost(&small).unwrap();
            let inferred = cost(&large).unwrap();
            assert_eq!(counted.halvings, 0, "{map_type}");
            assert!(inferred.halvings >= 3, "{map_type}");
            for op in Op::ALL {
                let (Some(counted), Some(inferred)) = (counted.accesses(op), inferred.accesses(op))
                else {
                    let both = (counted.of(op).is_some(), inferred.of(op).is_some());
                    assert_eq!(both, (false, false), "type {map_type}, {op:?}");
                    continue;
                };
                let difference = (inferred - counted).abs();
                assert!(
                    difference <= counted * 0.03 + 0.02,
                    "type {map_type}, {max_entries} entries, {op:?}: {inferred} inferred, {counted} counted"
                );
            }
            // The index has the same bytes, whatever a value has, except for what is there once.
            let off = inferred.index_bytes.abs_diff(counted.index_bytes);
            assert!(
                off * 50 < counted.index_bytes + 1_000_000,
                "{map_type}: {off}"
            );
        }
    }
}

/// Poisson's law for as many entries as come to a bucket, and tags of a byte, give what is
/// counted for hash tables: nobody's code but arithmetic.
#[test]
fn hash_tables_have_the_accesses_that_arithmetic_gives_them() {
    for (max_entries, fill_ppm) in [(65_536, 1_000_000), (100_000, 920_000), (4096, 500_000)] {
        let shape = Shape {
            fill_ppm,
            ..shape(HASH, max_entries)
        };
        let homes = f64::from(max_entries.div_ceil(6).next_power_of_two());
        let load = f64::from(shape.filled()) / homes;
        let mut law = vec![(-load).exp()];
        for k in 1..60 {
            law.push(law[k - 1] * load / k as f64);
        }
        // A miss reads the header of every bucket of its chain, the link of every full one, the home's header
        // again where it has left the home, and an entry for each of 255 tags that is the same.
        let sum = |of: &dyn Fn(usize) -> f64| -> f64 {
            law.iter().enumerate().map(|(k, p)| p * of(k)).sum()
        };
        let miss = sum(&|k| {
            let beyond = if k >= 8 { 1.0 } else { 0.0 };
            k.div_ceil(8).max(1) as f64 + (k / 8) as f64 + beyond
        }) + load / 255.0;
        let found = cost(&shape).unwrap();
        let counted = found.accesses(Op::Miss).unwrap();
        assert!(
            (counted / miss - 1.0).abs() < 0.03,
            "{max_entries}: {counted} counted, {miss} by Poisson"
        );
        // A hit: the same up to its place among the k + 1 of its chain, its own key, its value. That its place
        // among the entries is far, one in thirty of a full table, is within the tolerance.
        let place = |n: usize| match n / 8 {
            0 => 1.0,
            full => 2.0 + 2.0 * full as f64,
        };
        let hit = sum(&|k| (0..=k).map(place).sum::<f64>() / (k + 1) as f64);
        let hit = hit + 2.0 + load / 2.0 / 255.0;
        let counted = found.accesses(Op::Hit).unwrap();
        assert!(
            (counted / hit - 1.0).abs() < 0.03,
            "{max_entries}: {counted} counted, {hit} by Poisson"
        );
    }
}

#[test]
fn an_array_takes_one_access() {
    let found = cost(&shape(ARRAY, 1000)).unwrap();
    assert_eq!(found.accesses(Op::Hit), Some(1.0));
    assert_eq!(found.accesses(Op::Miss), Some(0.0));
    assert_eq!(found.of(Op::Insert), None);
    assert_eq!(found.entries_bytes, 32_000);
}

#[test]
fn a_billion_entries_are_planned_for() {
    let billion = 1_000_000_000;
    let found = cost(&shape(HASH, billion)).unwrap();
    let small = cost(&shape(HASH, billion >> 13)).unwrap();
    let (large, small) = (found.accesses(Op::Hit), small.accesses(Op::Hit));
    assert!((large.unwrap() / small.unwrap() - 1.0).abs() < 0.03);
    // 48 bytes an entry, and 11 to 22 for buckets.
    assert_eq!(found.entries_bytes / u64::from(billion), 48);
    let index = found.index_bytes as f64 / f64::from(billion);
    assert!((11.0..32.0).contains(&index), "{index}");
    let tries = [1 << 17, 1 << 20, 1 << 23].map(|n| cost(&shape(LPM, n)).unwrap());
    let hits = tries.map(|cost| cost.accesses(Op::Hit).unwrap());
    assert!(hits[0] < hits[1] && hits[1] < hits[2], "{hits:?}");
    let lru = cost(&shape(LRU_HASH, billion)).unwrap();
    assert!(lru.of(Op::Insert).is_some());
    let value = |step: &&offmap_model::cost::Step| step.bytes == 32 && step.part == Part::Entries;
    let read = found.of(Op::Hit).unwrap().iter().find(value).unwrap();
    assert_eq!(read.times, 1 << 16);
}

#[test]
fn what_there_cannot_be_is_said() {
    let said = |shape: &Shape| cost(shape).unwrap_err().to_string();
    let short = Shape {
        key_size: 2,
        ..shape(HASH, 1 << 17)
    };
    assert!(said(&short).contains("key_size 2"));
    let narrow = Shape {
        prefixes: vec![(8, 1)],
        ..shape(LPM, 10_000)
    };
    assert!(said(&narrow).contains("prefixes"));
    assert!(said(&shape(22, 64)).contains("map type 22"));
    let wide = Shape {
        key_size: 5,
        ..shape(ARRAY, 64)
    };
    assert!(said(&wide).contains("key_size 5"));
}
