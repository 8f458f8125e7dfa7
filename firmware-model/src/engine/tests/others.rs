//! Rings, counters, maps of maps, filters, maps that go, and packets.

use super::*;
use crate::engine::EngineError;
use crate::engine::schedule::RoundRobin;
use crate::engine::workload::{Popularity, Shape, Workload, WorkloadError, ZIPF_KEYS_MAX};

/// Values leave a queue as its producers put them in, and a stack none twice.
fn ring(map_type: u32, seed: u64, planted: Planted) -> Result<(), String> {
    let mut firmware = firmware();
    let map = create(&mut firmware, map_type, (0, VALUE as u32, 4), None);
    let mut storm = Storm::new(firmware, 8, planted);
    for n in 0..12 {
        for producer in [0, 1] {
            storm.put(
                producer,
                DataOp::Update {
                    map,
                    key: Vec::new(),
                    value: value(producer.into(), n),
                    flags: 0,
                },
            );
        }
        for consumer in [2, 3] {
            storm.put(consumer, DataOp::Pop { map });
        }
        storm.put(
            4,
            DataOp::Lookup {
                map,
                key: Vec::new(),
            },
        );
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (mut pushed, mut popped) = (BTreeSet::new(), BTreeSet::new());
    let mut newest = [[0; 2]; 2];
    storm.run(seed, |engine, turn, _| {
        let Turn::Data {
            op,
            status,
            value: bytes,
        } = turn
        else {
            return Err(format!("{turn:?}"));
        };
        match (op, *status) {
            (DataOp::Update { value, .. }, Status::Success) => {
                pushed.insert(word(value));
            }
            (DataOp::Update { .. }, Status::Full) | (_, Status::NotFound) => {}
            (_, Status::Success) => {
                let id = word(bytes) >> 32;
                check_value(id, bytes)?;
                if engine == 4 {
                    return Ok(());
                }
                if !popped.insert(word(bytes)) {
                    return Err(format!("popped twice: {:x}", word(bytes)));
                }
                let last = &mut newest[engine as usize - 2][id as usize];
                let n = (word(bytes) as u32) + 1;
                if map_type == QUEUE && n <= *last {
                    return Err(format!("value {n} of producer {id} after {last}"));
                }
                *last = n;
            }
            (op, status) => return Err(format!("{op:?}: {status:?}")),
        }
        Ok(())
    })?;
    let firmware = storm.engines.firmware_mut().unwrap();
    let mut bytes = vec![0; VALUE];
    while firmware.engine_pop(0, map, &mut bytes) == Status::Success {
        popped.insert(word(&bytes));
    }
    match pushed == popped {
        true => Ok(()),
        false => Err(format!("pushed {pushed:x?}, popped {popped:x?}")),
    }
}

#[test]
fn queues_and_stacks_lose_nothing_and_give_nothing_twice() {
    for map_type in [QUEUE, STACK] {
        let name = format!("type {map_type}");
        holds(&name, SEEDS, |seed| {
            ring(map_type, seed, Planted::default())
        });
        let planted = Planted {
            tables_unlocked: true,
            ..Planted::default()
        };
        let found = first_failure(SEEDS, |seed| ring(map_type, seed, planted));
        assert!(found.is_some(), "{name}: two that push and pop at a time");
        let planted = Planted {
            trusts_copies: true,
            ..Planted::default()
        };
        let found = first_failure(SEEDS, |seed| ring(map_type, seed, planted));
        assert!(found.is_some(), "{name}: copies that are not checked");
    }
}

/// Counters that all engines add to, while the host updates other keys and one engine deletes and
/// inserts in the same chain.
fn counters(map_type: u32, seed: u64, planted: Planted) -> Result<(), String> {
    let mut firmware = firmware();
    let is_array = matches!(map_type, ARRAY | PERCPU_ARRAY);
    let keys: Vec<Vec<u8>> = match is_array {
        true => (0..12u32).map(|n| n.to_le_bytes().to_vec()).collect(),
        false => colliding(12),
    };
    let shape = (keys[0].len() as u32, 16, keys.len() as u32);
    let map = create(&mut firmware, map_type, shape, None);
    let slots = if matches!(map_type, PERCPU_HASH | PERCPU_ARRAY) {
        2
    } else {
        1
    };
    for key in &keys[..3] {
        firmware.update(map, key, &vec![0; 16 * slots], 0);
    }
    let mut storm = Storm::new(firmware, 16, planted);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    for _ in 0..10 {
        for engine in 0..4 {
            let key = keys[(random.next_u64() % 3) as usize].clone();
            storm.put(
                engine,
                DataOp::Add {
                    map,
                    key,
                    offset: 8,
                    delta: 1,
                },
            );
        }
        let key = keys[3 + (random.next_u64() % 9) as usize].clone();
        storm.put(
            4,
            match random.next_u64() % 2 {
                0 if !is_array => DataOp::Delete { map, key },
                _ => DataOp::Update {
                    map,
                    key,
                    value: vec![9; 16],
                    flags: 0,
                },
            },
        );
    }
    storm.run(seed, |engine, turn, _| match turn {
        Turn::Data {
            status: Status::Success,
            ..
        } => Ok(()),
        _ if engine == 4 => Ok(()),
        turn => Err(format!("{turn:?}")),
    })?;
    let firmware = storm.engines.firmware_mut().unwrap();
    let mut sum = 0;
    for key in &keys[..3] {
        let mut bytes = vec![0; 16 * slots];
        firmware.lookup(map, key, &mut bytes);
        for slot in bytes.chunks(16) {
            sum += u64::from_le_bytes(slot[8..].try_into().unwrap());
        }
    }
    match sum {
        40 => Ok(()),
        sum => Err(format!("40 were added, {sum} counted")),
    }
}

#[test]
fn counters_are_exact() {
    for map_type in [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY] {
        let name = format!("type {map_type}");
        holds(&name, SEEDS, |seed| {
            counters(map_type, seed, Planted::default())
        });
    }
}

/// A program looks through maps of maps while the host exchanges the inner ones.
fn maps_of_maps(map_type: u32, seed: u64, planted: Planted) -> Result<(), String> {
    let mut firmware = firmware();
    let inner: Vec<MapHandle> = (0..3)
        .map(|_| create(&mut firmware, ARRAY, (4, 8, 1), None))
        .collect();
    for (n, map) in inner.iter().enumerate() {
        firmware.update(*map, &[0; 4], &(n as u64 + 1).to_le_bytes(), 0);
    }
    let outer = create(&mut firmware, map_type, (4, 4, 4), Some(inner[0]));
    let mut storm = Storm::new(firmware, 8, planted);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    for _ in 0..8 {
        for engine in [0u32, 1] {
            let key = (random.next_u64() as u32 % 2).to_le_bytes();
            let op = match random.next_u64() % 3 {
                0 => element(IoOpcode::Delete, outer, engine, &key, 0),
                _ => {
                    let handle = inner[(random.next_u64() % 3) as usize].0.to_le_bytes();
                    let mut command = element(IoOpcode::Update, outer, engine, &key, 4);
                    let mut body: ElementBody = command.body();
                    body.value = [0; 16];
                    body.value[..4].copy_from_slice(&handle);
                    command = Submission::new(command.opcode, command.request(), &body)
                        .with_map(outer)
                        .with_flags(SubmissionFlags::KEY_INLINE | SubmissionFlags::VALUE_INLINE);
                    command
                }
            };
            storm.scripts[engine as usize].push_back(Op::Command(op));
        }
        for engine in [2, 3, 4] {
            storm.put(
                engine,
                DataOp::LookupInner {
                    outer,
                    outer_key: (random.next_u64() as u32 % 2).to_le_bytes().to_vec(),
                    key: vec![0; 4],
                    value_bytes: 8,
                },
            );
        }
    }
    storm.run(seed, |_, turn, _| match turn {
        Turn::Data {
            status: Status::Success,
            value,
            ..
        } => {
            let word = u64::from_le_bytes(value[..].try_into().unwrap());
            match (1..=3).contains(&word) {
                true => Ok(()),
                false => Err(format!("no inner map has {word}")),
            }
        }
        Turn::Data {
            status: Status::NotFound,
            ..
        } => Ok(()),
        Turn::Command(done) if matches!(done.status(), Status::Success | Status::NotFound) => {
            Ok(())
        }
        turn => Err(format!("{turn:?}")),
    })?;
    // What is held is what the entries say: once they are gone every inner map can be freed.
    let firmware = storm.engines.firmware_mut().unwrap();
    for key in 0..4u32 {
        firmware.delete(outer, &key.to_le_bytes());
    }
    match inner.iter().any(|map| firmware.holdings.is_held(*map)) {
        false => Ok(()),
        true => Err("an inner map is held by no entry".into()),
    }
}

#[test]
fn maps_of_maps_hold_what_their_entries_say() {
    for map_type in [ARRAY_OF_MAPS, HASH_OF_MAPS] {
        let name = format!("type {map_type}");
        holds(&name, SEEDS, |seed| {
            maps_of_maps(map_type, seed, Planted::default())
        });
        let planted = Planted {
            tables_unlocked: true,
            ..Planted::default()
        };
        let found = first_failure(SEEDS, |seed| maps_of_maps(map_type, seed, planted));
        assert!(
            found.is_some(),
            "{name}: two that change an entry at a time"
        );
    }
}

#[test]
fn a_bloom_filter_has_what_was_added() {
    holds("bloom", SEEDS, |seed| {
        let mut firmware = firmware();
        let map = create(&mut firmware, BLOOM, (8, 0, 64), None);
        let mut storm = Storm::new(firmware, 8, Planted::default());
        let key = |n: u64| n.to_le_bytes().to_vec();
        for n in 0..40 {
            storm.put(
                n as u32 % 5,
                DataOp::Update {
                    map,
                    key: key(n),
                    value: Vec::new(),
                    flags: 0,
                },
            );
            storm.put(n as u32 % 5, DataOp::Lookup { map, key: key(n) });
        }
        // Bits that two set at a time in one byte are both set.
        storm.run(seed, |_, turn, _| match turn {
            Turn::Data {
                status: Status::Success,
                ..
            } => Ok(()),
            turn => Err(format!("{turn:?}")),
        })
    });
}

#[test]
fn a_map_that_is_freed_ends_what_engines_do_with_it() {
    for stop in 0..60 {
        let mut firmware = firmware();
        let map = create(&mut firmware, HASH, (8, VALUE as u32, 8), None);
        let mut storm = Storm::new(firmware, 8, Planted::default());
        let key = vec![1; 8];
        let op = DataOp::Update {
            map,
            key,
            value: value(1, 1),
            flags: 0,
        };
        storm.engines.start(0, op).unwrap();
        let mut ended = None;
        for turn in 0..1000 {
            if turn == stop {
                let body = zerocopy::FromZeros::new_zeroed();
                let body: offmap_abi::admin::EmptyBody = body;
                let free =
                    Submission::new(AdminOpcode::MapFree.0, RequestId(2), &body).with_map(map);
                let progress = storm.engines.admin(&free, &mut storm.host);
                assert!(matches!(progress, Progress::Done(_)));
            }
            if let Turn::Data { status, .. } = storm.engines.turn(0, &mut storm.host) {
                ended = Some((turn, status));
                break;
            }
        }
        let (turn, status) = ended.unwrap();
        match turn < stop {
            true => assert_eq!(status, Status::Success),
            false => assert_eq!((turn, status), (stop, Status::InvalidMap)),
        }
        assert!(storm.engines.locks.is_idle() && storm.engines.is_idle());
    }
}

#[test]
fn packets_replay_and_are_as_popular_as_they_should_be() {
    let mut firmware = firmware();
    let map = create(&mut firmware, ARRAY, (4, 8, 64), None);
    let shape = Shape {
        map,
        key_size: 4,
        keys: 64,
        popularity: Popularity::Zipf,
        adds: 500,
    };
    let packets = |shape, seed| Workload::new(shape, seed).unwrap();
    let first: Vec<DataOp> = packets(shape, 3).take(500).collect();
    assert_eq!(first, packets(shape, 3).take(500).collect::<Vec<_>>());
    assert_ne!(first, packets(shape, 4).take(500).collect::<Vec<_>>());
    let count = |popularity, n: u32| {
        let ops = packets(
            Shape {
                popularity,
                ..shape
            },
            9,
        )
        .take(64_000);
        let is = |op: &DataOp| match op {
            DataOp::Add { key, .. } | DataOp::Lookup { key, .. } => *key == n.to_le_bytes(),
            _ => false,
        };
        ops.filter(is).count()
    };
    // 64,000 / H(64) = 13,489 for the first key, half for the second; 1,000 of each where all are alike.
    assert!(count(Popularity::Zipf, 0).abs_diff(13_489) < 500);
    assert!(count(Popularity::Zipf, 1).abs_diff(6_745) < 400);
    assert!(count(Popularity::Uniform, 63).abs_diff(1000) < 150);
    let refused = |keys, adds| {
        let asked = Shape {
            keys,
            adds,
            ..shape
        };
        Workload::new(asked, 1).err()
    };
    let max = ZIPF_KEYS_MAX;
    assert_eq!(refused(0, 0), Some(WorkloadError::Keys { keys: 0, max }));
    let keys = max + 1;
    assert_eq!(refused(keys, 0), Some(WorkloadError::Keys { keys, max }));
    assert_eq!(refused(1, 1001), Some(WorkloadError::Adds(1001)));

    // All engines, fed with packets, round and round: what they count is there.
    let mut engines = Engines::new(firmware, 32).unwrap();
    assert_eq!(
        Engines::new(super::firmware(), 12).err(),
        Some(EngineError::Width { width: 12 })
    );
    let mut packets = packets(shape, 1);
    let mut host = host();
    for engine in 0..ENGINES {
        engines.start(engine, packets.next().unwrap()).unwrap();
        let busy = engines.start(engine, packets.next().unwrap());
        assert_eq!(busy, Err(EngineError::Busy { engine }));
    }
    assert!(engines.start(ENGINES, packets.next().unwrap()).is_err());
    let (mut adds, mut ops) = (0u64, 0);
    let turns = engines.run(
        &mut RoundRobin::default(),
        &mut host,
        u64::MAX,
        |engines, engine, turn| {
            let Turn::Data { op, status, .. } = turn else {
                panic!("{turn:?}");
            };
            assert_eq!(status, Status::Success);
            adds += u64::from(matches!(op, DataOp::Add { .. }));
            ops += 1;
            if ops <= 2000 {
                engines.start(engine, packets.next().unwrap()).unwrap();
            }
            true
        },
    );
    assert!(turns > 2 * 2000);
    let firmware = engines.firmware_mut().unwrap();
    let sum: u64 = (0..64u32)
        .map(|n| {
            let mut value = [0; 8];
            firmware.lookup(map, &n.to_le_bytes(), &mut value);
            u64::from_le_bytes(value)
        })
        .sum();
    assert_eq!(sum, adds);
}
