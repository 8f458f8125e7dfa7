//! LRU_HASH, LRU_PERCPU_HASH, QUEUE and STACK against the running kernel.
//!
//! On one CPU, or on several in an order that the seed decides, eviction is deterministic, so
//! that our host maps must hold exactly the keys that the kernel's hold. Offloaded maps have a
//! policy of their own (`docs/abi.md`), and are held to that.
//!
//! `OFFMAP_OPS` sets the operations per map type, `OFFMAP_SEED` replays a run.
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_bpf::uapi::{MapCreateAttr, MapFlags};
use offmap_bpf::{Caller, MapType};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_tests::cpu::Pinned;
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::report::{aloud, env_number, required, seed};
use offmap_tests::stack::{Stack, StackMap};
use offmap_tests::subject::Subject;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

/// Operations per map type when the environment does not say.
const OPS: u64 = 300_000;
const SEQUENCE_OPS: u64 = 3_000;
const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;
type Random = Xoshiro256PlusPlus;

fn kernel_takes_part() -> bool {
    match kernel::availability() {
        Availability::Yes => true,
        Availability::No(why) => {
            aloud(&format!("lru_queue: THE KERNEL TAKES NO PART ({why})"));
            assert!(!required("OFFMAP_REQUIRE_KERNEL"), "{why}");
            false
        }
    }
}

fn budget() -> u64 {
    env_number("OFFMAP_OPS").unwrap_or(OPS)
}

fn stack() -> Stack<Inline> {
    Stack::inline(DeviceConfig::default())
}

fn pick<T: Copy>(rng: &mut Random, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// The shape of a random LRU map, and how its operations are dealt.
struct Lru {
    attr: MapCreateAttr,
    value_bytes: usize,
    universe: u32,
    /// CPUs that the thread goes to.
    cpus: usize,
}

impl Lru {
    fn random(rng: &mut Random, map_type: MapType) -> Self {
        let max_entries = match rng.random_range(0..10) {
            0 => rng.random_range(1..=4),
            1..5 => rng.random_range(5..=64),
            5..8 => rng.random_range(65..=600),
            _ => rng.random_range(601..=3000),
        };
        let value_size: u32 = pick(rng, &[1, 4, 8, 13, 64]);
        let attr = MapCreateAttr {
            map_type: map_type.0,
            key_size: pick(rng, &[4, 4, 5, 8, 33]),
            value_size,
            max_entries,
            map_flags: pick(
                rng,
                &[
                    MapFlags::empty(),
                    MapFlags::NO_COMMON_LRU,
                    MapFlags::ZERO_SEED,
                    MapFlags::ZERO_SEED | MapFlags::NO_COMMON_LRU,
                ],
            )
            .bits(),
            ..MapCreateAttr::default()
        };
        Self {
            value_bytes: attr.user_value_bytes(kernel::possible_cpus()),
            universe: max_entries + pick(rng, &[1, max_entries / 4 + 1, max_entries * 2]),
            cpus: pick(rng, &[1, 1, 2, 4]),
            attr,
        }
    }

    fn key(&self, n: u32) -> Vec<u8> {
        let mut key = vec![0x5a; self.attr.key_size as usize];
        key[..4].copy_from_slice(&n.to_le_bytes());
        key
    }

    fn value(&self, seed: u64) -> Vec<u8> {
        let mut value = vec![0; self.value_bytes];
        Random::seed_from_u64(seed).fill_bytes(&mut value);
        value
    }

    /// What the map holds, by next key and lookup.
    fn contents(&self, map: &mut dyn Subject) -> Contents {
        self.listed(map).into_iter().collect()
    }

    /// The same in the map's order.
    fn listed(&self, map: &mut dyn Subject) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        let mut at: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.attr.key_size as usize];
            match map.get_next_key(at.as_deref(), &mut next) {
                Err(ENOENT) => return all,
                got => assert_eq!(got, Ok(()), "{}", map.name()),
            }
            let mut value = vec![0; self.value_bytes];
            assert_eq!(map.lookup(&next, &mut value, 0), Ok(()), "{}", map.name());
            assert!(seen.insert(next.clone()), "a key came twice");
            all.push((next.clone(), value));
            at = Some(next);
        }
    }

    /// What a walk in batches returns, which it removes if told to.
    fn walk(&self, map: &mut dyn Subject, mut count: u32, delete: bool) -> Contents {
        let mut all = Contents::new();
        let mut cursor: Option<Vec<u8>> = None;
        loop {
            let mut keys = vec![0; (self.attr.key_size * count) as usize];
            let mut values = vec![0; self.value_bytes * count as usize];
            let w = map.walk_batch(cursor.as_deref(), &mut keys, &mut values, count, 0, delete);
            let keys = keys.chunks_exact(self.attr.key_size as usize);
            for (key, value) in keys
                .zip(values.chunks_exact(self.value_bytes))
                .take(w.count as usize)
            {
                let before = all.insert(key.to_vec(), value.to_vec());
                assert!(before.is_none(), "a key came twice");
            }
            match w.result {
                Ok(()) => {}
                Err(ENOSPC) => count *= 2,
                Err(ENOENT) => return all,
                Err(other) => panic!("{}: walk: errno {other}", map.name()),
            }
            cursor = Some(w.cursor);
        }
    }

    /// One random operation, put to every map; what each answered.
    fn operate(&self, rng: &mut Random, maps: &mut [&mut dyn Subject]) -> (String, Vec<String>) {
        let n = rng.random_range(0..self.universe);
        let key = self.key(n);
        let seed = rng.next_u64();
        let value = self.value(seed);
        let flags = pick(rng, &[0, 0, 0, 1, 2]);
        let count = rng.random_range(1..=64.min(self.universe));
        let many: Vec<u8> = (0..count)
            .flat_map(|_| self.key(rng.random_range(0..self.universe)))
            .collect();
        let values: Vec<u8> = (0..u64::from(count))
            .flat_map(|i| self.value(seed ^ i))
            .collect();
        let choice = rng.random_range(0..1000);
        let answers = maps.iter_mut().map(|map| {
            let mut got = vec![0; self.value_bytes];
            match choice {
                0..600 => format!("{:?}", map.update(&key, &value, flags)),
                600..800 => {
                    let r = map.lookup(&key, &mut got, 0);
                    format!("{:?}", r.map(|()| got))
                }
                800..900 => format!("{:?}", map.delete(&key)),
                900..960 => {
                    let r = map.lookup_and_delete(&key, &mut got, 0);
                    format!("{:?}", r.map(|()| got))
                }
                960..980 => format!("{:?}", map.update_batch(&many, &values, count, 0)),
                980..995 => format!("{:?}", map.delete_batch(&many, count, 0)),
                995..999 => format!("{:?}", self.walk(*map, count, false)),
                _ => format!("{:?}", self.walk(*map, count, true)),
            }
        });
        let answers = answers.collect();
        (format!("choice {choice}, key {n}, flags {flags}"), answers)
    }
}

fn lru_as_the_kernel(map_type: MapType) {
    if !kernel_takes_part() {
        return;
    }
    let (base, budget, stack) = (seed(), budget(), stack());
    let (mut done, mut evicted) = (0, 0u64);
    let pinned = Pinned::new();
    while done < budget {
        let seed = base.wrapping_add(done / SEQUENCE_OPS);
        let rng = &mut Random::seed_from_u64(seed);
        let shape = Lru::random(rng, map_type);
        let mut theirs = KernelMap::create(&shape.attr).expect("the kernel's map");
        let file = stack.map(&shape.attr, false);
        let info = file.info().expect("info");
        assert_eq!(
            theirs.fdinfo("max_entries"),
            Some(u64::from(info.max_entries))
        );
        assert_eq!(
            theirs.fdinfo("memlock"),
            Some(info.mem_usage),
            "{:?}",
            shape.attr
        );
        let mut ours = StackMap { name: "host", file };
        let mut ever = BTreeSet::new();
        for at in 0..SEQUENCE_OPS {
            if shape.cpus > 1 && rng.random_ratio(1, 40) {
                pinned.go(rng.random_range(0..shape.cpus));
            }
            let (op, answers) = shape.operate(rng, &mut [&mut theirs, &mut ours]);
            assert_eq!(
                answers[0], answers[1],
                "{map_type}, seed {seed}, operation {at} ({op}) on {:?}",
                shape.attr
            );
            if at % 64 == 0 {
                let (kernel, host) = (shape.listed(&mut theirs), shape.listed(&mut ours));
                let zero_seed = shape.attr.flags().contains(MapFlags::ZERO_SEED);
                assert!(
                    !zero_seed || kernel == host,
                    "{map_type}, seed {seed}, after operation {at}: the order differs"
                );
                let [kernel, host]: [Contents; 2] =
                    [kernel, host].map(|listed| listed.into_iter().collect());
                assert!(
                    kernel == host,
                    "{map_type}, seed {seed}, after operation {at} ({op}) on {:?}: only the \
                     kernel has {:?}, only the host has {:?}",
                    shape.attr,
                    kernel
                        .keys()
                        .filter(|k| !host.contains_key(*k))
                        .collect::<Vec<_>>(),
                    host.keys()
                        .filter(|k| !kernel.contains_key(*k))
                        .collect::<Vec<_>>(),
                );
                ever.extend(host.into_keys());
            }
        }
        evicted += (ever.len() as u64).saturating_sub(u64::from(shape.attr.max_entries));
        done += SEQUENCE_OPS;
    }
    assert!(evicted > 0, "no sequence evicted anything");
    aloud(&format!(
        "lru_queue: {map_type}: {done} operations from seed {base}, the kernel's keys exactly"
    ));
}

#[test]
fn lru_hash_as_the_kernel() {
    lru_as_the_kernel(MapType::LRU_HASH);
}

#[test]
fn lru_percpu_hash_as_the_kernel() {
    lru_as_the_kernel(MapType::LRU_PERCPU_HASH);
}

/// An offloaded LRU map has its own policy. It never holds more than it may, each value is the
/// last one written under its key, the key written last is there, and an insert evicts one
/// key, and only when the map is full.
fn offloaded_lru(map_type: MapType) {
    let (base, budget, stack) = (seed(), budget() / 4, stack());
    let (mut done, mut evicted) = (0, 0);
    while done < budget {
        let seed = base.wrapping_add(done / SEQUENCE_OPS);
        let rng = &mut Random::seed_from_u64(seed);
        let mut shape = Lru::random(rng, map_type);
        shape.attr.map_flags = 0;
        shape.attr.max_entries = shape.attr.max_entries.min(100);
        shape.universe = shape.attr.max_entries * 2 + 1;
        let max = shape.attr.max_entries as usize;
        let file = stack.map(&shape.attr, true);
        let mut map = StackMap {
            name: "offloaded",
            file,
        };
        let mut model = Contents::new();
        for at in 0..SEQUENCE_OPS {
            let context = format!("{map_type}, seed {seed}, operation {at}, {:?}", shape.attr);
            let key = shape.key(rng.random_range(0..shape.universe));
            let value = shape.value(rng.next_u64());
            let mut got = vec![0; shape.value_bytes];
            let expected = model.get(&key).cloned().ok_or(ENOENT);
            match rng.random_range(0..100) {
                0..60 => {
                    let flags = pick(rng, &[0, 0, 0, 1, 2]);
                    let expected = match (model.contains_key(&key), flags) {
                        (true, 1) => Err(17),
                        (false, 2) => Err(ENOENT),
                        _ => Ok(()),
                    };
                    assert_eq!(map.update(&key, &value, flags), expected, "{context}");
                    if expected.is_ok() {
                        model.insert(key.clone(), value);
                    }
                    let surplus = model.len().saturating_sub(max);
                    let before = std::mem::take(&mut model);
                    model = shape.walk(&mut map, 16, false);
                    assert_eq!(model.len(), before.len() - surplus, "{context}");
                    for (key, value) in &model {
                        assert_eq!(before.get(key), Some(value), "{context}");
                    }
                    assert!(expected.is_err() || model.contains_key(&key), "{context}");
                    evicted += surplus;
                }
                60..75 => {
                    let r = map.lookup(&key, &mut got, 0).map(|()| got);
                    assert_eq!(r, expected, "{context}");
                }
                75..84 => {
                    let r = map.delete(&key);
                    assert_eq!(r, expected.map(drop), "{context}");
                    model.remove(&key);
                }
                84..92 => {
                    let r = map.lookup_and_delete(&key, &mut got, 0).map(|()| got);
                    assert_eq!(r, expected, "{context}");
                    model.remove(&key);
                }
                92..95 => {
                    let keys: Vec<_> = (0..max + 5)
                        .map(|_| shape.key(rng.random_range(0..shape.universe)))
                        .collect();
                    let values: Vec<_> = keys.iter().map(|_| shape.value(rng.next_u64())).collect();
                    let n = keys.len() as u32;
                    let r = map.update_batch(&keys.concat(), &values.concat(), n, 0);
                    assert_eq!(r, (n, Ok(())), "{context}");
                    let last = keys[keys.len() - 1].clone();
                    model.extend(keys.into_iter().zip(values));
                    let now = shape.contents(&mut map);
                    assert!(now.len() <= max && now.contains_key(&last), "{context}");
                    assert!(
                        now.iter().all(|(k, v)| model.get(k) == Some(v)),
                        "{context}"
                    );
                    model = now;
                }
                95..97 => {
                    let keys: Vec<_> = (0..4)
                        .map(|_| shape.key(rng.random_range(0..shape.universe)))
                        .collect();
                    let gone = keys.iter().take_while(|key| model.remove(*key).is_some());
                    let gone = gone.count() as u32;
                    let expected = if gone == 4 { Ok(()) } else { Err(ENOENT) };
                    let r = map.delete_batch(&keys.concat(), 4, 0);
                    assert_eq!(r, (gone, expected), "{context}");
                }
                97..99 => assert_eq!(shape.contents(&mut map), model, "{context}"),
                _ => {
                    let walked = shape.walk(&mut map, 7, true);
                    assert_eq!(walked, model, "{context}");
                    model.clear();
                }
            }
        }
        done += SEQUENCE_OPS;
    }
    assert!(evicted > 100, "hardly anything was evicted");
    aloud(&format!(
        "lru_queue: offloaded {map_type}: {done} operations from seed {base}, {evicted} evictions"
    ));
}

#[test]
fn offloaded_lru_hash() {
    offloaded_lru(MapType::LRU_HASH);
}

#[test]
fn offloaded_lru_percpu_hash() {
    offloaded_lru(MapType::LRU_PERCPU_HASH);
}

/// Refused alike, on the device and on the host, whatever the device would have said.
#[test]
fn offloaded_creation() {
    let stack = stack();
    let refused = |attr: &MapCreateAttr| {
        let error = stack.try_map(attr, true).expect_err("should be refused");
        error.errno().0
    };
    for map_type in [MapType::QUEUE, MapType::STACK] {
        let attr = MapCreateAttr {
            map_type: map_type.0,
            value_size: 8,
            max_entries: 4,
            ..MapCreateAttr::default()
        };
        assert_eq!(
            refused(&MapCreateAttr {
                key_size: 4,
                ..attr
            }),
            22
        );
        assert_eq!(
            refused(&MapCreateAttr {
                value_size: 0,
                ..attr
            }),
            22
        );
        // The ways of the Rust API that have no command: each key of none is a peek.
        let map = stack.map(&attr, true);
        map.update(&[], &[5; 8], 0).expect("a push");
        let mut values = [0; 24];
        let mut results = [Ok(()); 3];
        map.lookup_many(&[], &mut values, &mut results)
            .expect("peeks");
        assert_eq!((values, results), ([5; 24], [Ok(()); 3]));
    }
    let lru = MapCreateAttr {
        map_type: MapType::LRU_HASH.0,
        key_size: 4,
        value_size: 8,
        max_entries: 4,
        ..MapCreateAttr::default()
    };
    let mut flagged = lru;
    flagged.map_flags = MapFlags::NO_PREALLOC.bits();
    assert_eq!(refused(&flagged), 524);
    // The device has no lists for each CPU.
    flagged.map_flags = MapFlags::NO_COMMON_LRU.bits();
    assert_eq!(refused(&flagged), 22);
}

/// The same random pushes, pops and refused commands on every map; all answers the same.
fn queues_alike(map_type: MapType) {
    let with_kernel = kernel_takes_part();
    let (base, budget, stack) = (seed(), budget(), stack());
    let mut done = 0;
    while done < budget {
        let seed = base.wrapping_add(done / SEQUENCE_OPS);
        let rng = &mut Random::seed_from_u64(seed);
        let attr = MapCreateAttr {
            map_type: map_type.0,
            value_size: pick(rng, &[1, 3, 4, 8, 21, 64, 300]),
            max_entries: rng.random_range(1..=40),
            ..MapCreateAttr::default()
        };
        let file = stack.map(&attr, false);
        let usage = file.info().expect("info").mem_usage;
        let mut maps: Vec<Box<dyn Subject>> = vec![
            Box::new(StackMap { name: "host", file }),
            Box::new(StackMap {
                name: "offloaded",
                file: stack.map(&attr, true),
            }),
        ];
        if with_kernel {
            let map = KernelMap::create(&attr).expect("the kernel's map");
            assert_eq!(map.fdinfo("memlock"), Some(usage), "{attr:?}");
            maps.push(Box::new(map));
        }
        // Some runs stay nearly full, some nearly empty.
        let pushes = rng.random_range(30..70);
        for at in 0..SEQUENCE_OPS {
            let mut value = vec![0; attr.value_size as usize];
            rng.fill_bytes(&mut value);
            let flags = pick(rng, &[0, 0, 0, 2, 2, 1, 3, 4, 1 << 40]);
            let (choice, push) = (rng.random_range(0..100), rng.random_range(0..100) < pushes);
            let answers: Vec<String> = maps
                .iter_mut()
                .map(|map| {
                    let mut got = vec![0; value.len()];
                    match choice {
                        0..20 => {
                            let r = map.lookup(&[], &mut got, 0);
                            format!("peek {:?}", r.map(|()| got))
                        }
                        20..22 => {
                            let r = map.lookup(&[], &mut got, flags);
                            format!("peek with {flags:#x} {:?}", r.map(|()| got))
                        }
                        22..24 => {
                            let r = map.lookup_and_delete(&[], &mut got, flags);
                            format!("pop with {flags:#x} {:?}", r.map(|()| got))
                        }
                        24 => format!("delete {:?}", map.delete(&[])),
                        25 => {
                            let key: &[u8] = &[];
                            let next = map.get_next_key(Some(key).filter(|_| push), &mut []);
                            format!("next {next:?}")
                        }
                        26 => format!("batch {:?}", map.update_batch(&[], &value, 1, 0)),
                        27 => format!("batch {:?}", map.delete_batch(&[], 1, 0)),
                        28 => {
                            // No walk begins: the buffer for its token says nothing.
                            let walk = map.walk_batch(None, &mut [], &mut got, 1, 0, push);
                            format!("walk {} {:?}", walk.count, walk.result)
                        }
                        _ if push => {
                            format!("push {flags:#x} {:?}", map.update(&[], &value, flags))
                        }
                        _ => {
                            let r = map.lookup_and_delete(&[], &mut got, 0);
                            format!("pop {:?}", r.map(|()| got))
                        }
                    }
                })
                .collect();
            for (map, answer) in maps.iter().zip(&answers) {
                assert_eq!(
                    &answers[0],
                    answer,
                    "{map_type}, seed {seed}, operation {at} on {attr:?}: {} and {}",
                    maps[0].name(),
                    map.name()
                );
            }
        }
        done += SEQUENCE_OPS;
    }
    aloud(&format!(
        "lru_queue: {map_type}: {done} operations from seed {base}, no difference"
    ));
}

#[test]
fn queue_alike() {
    queues_alike(MapType::QUEUE);
}

#[test]
fn stack_alike() {
    queues_alike(MapType::STACK);
}

/// What may be created, and which errno refuses the rest.
#[test]
fn creation_as_the_kernel() {
    if !kernel_takes_part() {
        return;
    }
    let (seed, stack) = (seed(), stack());
    let rng = &mut Random::seed_from_u64(seed);
    let mut refused = BTreeMap::new();
    for _ in 0..20_000 {
        let map_type = pick(
            rng,
            &[
                MapType::LRU_HASH,
                MapType::LRU_PERCPU_HASH,
                MapType::QUEUE,
                MapType::STACK,
            ],
        );
        let queue = matches!(map_type, MapType::QUEUE | MapType::STACK);
        let mut flags = 0;
        for _ in 0..pick(rng, &[0, 0, 0, 1, 1, 2, 3]) {
            // Up to BPF_F_INNER_MAP; those after it say how descriptors are passed.
            flags |= 1u32 << rng.random_range(0..13);
        }
        let attr = MapCreateAttr {
            map_type: map_type.0,
            key_size: match queue {
                true => pick(rng, &[0, 0, 0, 0, 4]),
                false => pick(rng, &[4, 4, 1, 0, 300, 4 << 20]),
            },
            value_size: pick(
                rng,
                &[
                    8,
                    8,
                    1,
                    0,
                    32768,
                    32769,
                    (4 << 20) - 53,
                    4 << 20,
                    (4 << 20) + 1,
                ],
            ),
            // No map here takes more than a few megabytes of the kernel's memory.
            max_entries: match rng.random_range(0..12) {
                0 => 0,
                1 if !queue => (1 << 31) + 1,
                2 if !queue => u32::MAX,
                _ => rng.random_range(1..=2),
            },
            map_flags: flags,
            numa_node: pick(rng, &[0, 0, 0, 1000]),
            ..MapCreateAttr::default()
        };
        let kernel = KernelMap::create(&attr).map(drop);
        let ours = stack.try_map(&attr, false).map(drop);
        let ours = ours.map_err(|error| error.errno().0);
        assert_eq!(kernel, ours, "seed {seed}: {attr:?}");
        *refused.entry(ours).or_insert(0) += 1;
    }
    aloud(&format!("lru_queue: creation by errno: {refused:?}"));
    assert!(refused.len() >= 4, "{refused:?}");
    // CAP_BPF, whatever the sysctl says.
    for map_type in [MapType::LRU_HASH, MapType::QUEUE] {
        let attr = MapCreateAttr {
            map_type: map_type.0,
            key_size: if map_type == MapType::QUEUE { 0 } else { 4 },
            value_size: 4,
            max_entries: 4,
            ..MapCreateAttr::default()
        };
        let refused = stack.system.map_create(&Caller::unprivileged(), &attr);
        assert_eq!(refused.unwrap_err().errno().0, 1);
    }
}

/// Threads push and pop numbered values: each comes out once, and those of one thread in
/// order.
#[test]
fn queues_lose_and_duplicate_nothing() {
    const EACH: u64 = 30_000;
    const THREADS: u64 = 3;
    let stack = stack();
    for map_type in [MapType::QUEUE, MapType::STACK] {
        let attr = MapCreateAttr {
            map_type: map_type.0,
            value_size: 16,
            max_entries: 64,
            ..MapCreateAttr::default()
        };
        let map = stack.map(&attr, false);
        let pushing = AtomicU64::new(THREADS);
        let pushing = &pushing;
        let popped: Vec<Vec<(u64, u64)>> = std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let map = map.clone();
                scope.spawn(move || {
                    for n in 0..EACH {
                        let mut value = [0; 16];
                        value[..8].copy_from_slice(&thread.to_ne_bytes());
                        value[8..].copy_from_slice(&n.to_ne_bytes());
                        while let Err(error) = map.update(&[], &value, 0) {
                            assert_eq!(error.errno().0, 7);
                            std::thread::yield_now();
                        }
                    }
                    pushing.fetch_sub(1, Release);
                });
            }
            let poppers: Vec<_> = (0..THREADS)
                .map(|_| {
                    let map = map.clone();
                    scope.spawn(move || {
                        let mut all = Vec::new();
                        loop {
                            let ended = pushing.load(Acquire) == 0;
                            let mut value = [0; 16];
                            match map.lookup_and_delete(&[], &mut value, 0) {
                                Ok(()) => all.push((
                                    u64::from_ne_bytes(value[..8].try_into().unwrap()),
                                    u64::from_ne_bytes(value[8..].try_into().unwrap()),
                                )),
                                Err(error) => {
                                    assert_eq!(error.errno().0, ENOENT);
                                    if ended {
                                        return all;
                                    }
                                    std::thread::yield_now();
                                }
                            }
                        }
                    })
                })
                .collect();
            poppers.into_iter().map(|p| p.join().unwrap()).collect()
        });
        if map_type == MapType::QUEUE {
            for one in &popped {
                for thread in 0..THREADS {
                    let of_thread: Vec<u64> =
                        one.iter().filter(|p| p.0 == thread).map(|p| p.1).collect();
                    assert!(
                        of_thread.is_sorted(),
                        "a queue keeps the order of one pusher"
                    );
                }
            }
        }
        let all: Vec<_> = popped.into_iter().flatten().collect();
        let once: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(all.len() as u64, EACH * THREADS);
        assert_eq!(all.len(), once.len(), "a value came out twice");
    }
}

/// Threads on full LRU maps: no insert is refused, every value read is one that was written
/// under its key, and the map never shows more than it may hold.
#[test]
fn lru_under_threads() {
    let stack = stack();
    for (map_type, flags, max_entries) in [
        (MapType::LRU_HASH, 0, 64),
        (MapType::LRU_HASH, 2, 64),
        (MapType::LRU_HASH, 0, 2000),
        (MapType::LRU_PERCPU_HASH, 0, 500),
        (MapType::LRU_PERCPU_HASH, 2, 500),
    ] {
        let attr = MapCreateAttr {
            map_type: map_type.0,
            key_size: 8,
            value_size: 32,
            max_entries,
            map_flags: flags,
            ..MapCreateAttr::default()
        };
        let map = stack.map(&attr, false);
        let bytes = map.value_bytes();
        let check = |key: u64, value: &[u8]| {
            let first = &value[..8];
            assert_eq!(u64::from_ne_bytes(first.try_into().unwrap()) >> 32, key);
            assert!(value.chunks_exact(8).all(|chunk| chunk == first), "torn");
        };
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let map = map.clone();
                scope.spawn(move || {
                    let mut rng = Random::seed_from_u64(thread);
                    let mut value = vec![0; bytes];
                    for n in 0..40_000u64 {
                        let key = rng.random_range(0..u64::from(max_entries) * 2);
                        match rng.random_range(0..10) {
                            0..6 => {
                                let word = (key << 32 | thread << 28 | n).to_ne_bytes();
                                value
                                    .chunks_exact_mut(8)
                                    .for_each(|c| c.copy_from_slice(&word));
                                map.update(&key.to_ne_bytes(), &value, 0)
                                    .expect("an insert");
                            }
                            6..9 => {
                                if map.lookup(&key.to_ne_bytes(), &mut value, 0).is_ok() {
                                    check(key, &value);
                                }
                            }
                            _ => {
                                if map
                                    .lookup_and_delete(&key.to_ne_bytes(), &mut value, 0)
                                    .is_ok()
                                {
                                    check(key, &value);
                                }
                            }
                        }
                    }
                });
            }
        });
        let mut seen = BTreeSet::new();
        let mut at = None::<[u8; 8]>;
        let mut next = [0; 8];
        while map
            .get_next_key(at.as_ref().map(|k| &k[..]), &mut next)
            .is_ok()
        {
            assert!(seen.insert(next), "a key came twice");
            let mut value = vec![0; bytes];
            map.lookup(&next, &mut value, 0).expect("a listed key");
            check(u64::from_ne_bytes(next), &value);
            at = Some(next);
        }
        assert!(seen.len() <= map.max_entries() as usize);
        assert!(!seen.is_empty());
    }
}
