//! Maps that move between tiers while they are used: by commands, by engines, up to a reset or a fault.
//! Held against plain maps and queues.

mod common;
#[path = "common/memory.rs"]
mod memory;

use common::{
    ARRAY, HASH, HOST_BYTES, Host, LPM, Model, PERCPU_ARRAY, PERCPU_HASH, QUEUE, STACK, Shape,
    element, firmware, io, returned,
};
use memory::*;
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status};
use offmap_firmware_model::engine::{DataOp, Engines, Turn};
use offmap_firmware_model::{Firmware, Progress};
use std::collections::VecDeque;

/// A map under test and what it should hold.
enum Should {
    Map(Model),
    Queue(Shape, VecDeque<Vec<u8>>),
}

impl Should {
    fn new(shape: Shape) -> Self {
        match shape.map_type {
            QUEUE | STACK => Self::Queue(shape, VecDeque::new()),
            _ => Self::Map(Model::new(shape)),
        }
    }

    /// A random operation, by a command or as an engine makes it.
    fn act(
        &mut self,
        firmware: &mut Firmware<Vec<u8>>,
        map: MapHandle,
        random: &mut Random,
        host: &mut Host,
    ) {
        match self {
            Self::Map(model) => act_on_map(model, firmware, map, random, host),
            Self::Queue(shape, values) => {
                let push = random.below(3) != 0;
                let value = vec![random.below(256) as u8; shape.value_size];
                let opcode = match push {
                    true => IoOpcode::Update,
                    false => IoOpcode::LookupAndDelete,
                };
                let given = push.then_some(&value[..]);
                let room = if push { 0 } else { shape.value_size };
                let command = element(opcode, map, Some(&[]), given, room, 0, true, host);
                let done = io(firmware, &command, host);
                if push {
                    let full = values.len() == shape.max_entries as usize;
                    assert_eq!(done.status() == Status::Full, full);
                    if !full {
                        values.push_back(value);
                    }
                    return;
                }
                let next = match shape.map_type {
                    QUEUE => values.pop_front(),
                    _ => values.pop_back(),
                };
                match next {
                    Some(next) => assert_eq!(returned(&command, &done, next.len(), host), next),
                    None => assert_eq!(done.status(), Status::NotFound),
                }
            }
        }
    }
}

fn key_of(shape: &Shape, n: u32) -> Vec<u8> {
    let mut key = vec![0; shape.key_size];
    if shape.map_type == LPM {
        // Prefixes of all the bits, so that the longest one that covers a key is itself.
        key[..4].copy_from_slice(&32_u32.to_le_bytes());
        key[4..8].copy_from_slice(&n.to_be_bytes());
    } else {
        key[..4].copy_from_slice(&n.to_le_bytes());
    }
    key
}

fn act_on_map(
    model: &mut Model,
    firmware: &mut Firmware<Vec<u8>>,
    map: MapHandle,
    random: &mut Random,
    host: &mut Host,
) {
    let shape = model.shape;
    let key = key_of(
        &shape,
        random.below(u64::from(shape.max_entries) * 5 / 4) as u32,
    );
    let value = vec![random.below(256) as u8; shape.value_bytes()];
    // What pads a slot is zero.
    let value = match shape.cpu_slots {
        0 => value,
        _ => {
            let slot = shape.value_size.next_multiple_of(8);
            value
                .chunks(slot)
                .flat_map(|c| [&c[..shape.value_size], &vec![0; slot - shape.value_size]].concat())
                .collect()
        }
    };
    match random.below(10) {
        0..4 => {
            let flags = random.below(3) as u32;
            let command = element(
                IoOpcode::Update,
                map,
                Some(&key),
                Some(&value),
                0,
                flags,
                true,
                host,
            );
            let done = io(firmware, &command, host);
            assert_eq!(done.status(), model.update(&key, &value, flags), "update");
        }
        4 => assert_eq!(
            firmware.update(map, &key, &value, 0),
            model.update(&key, &value, 0)
        ),
        5..8 => {
            let command = element(IoOpcode::Delete, map, Some(&key), None, 0, 0, true, host);
            if !shape.is_array() {
                let done = io(firmware, &command, host);
                assert_eq!(done.status(), model.delete(&key), "delete");
            }
        }
        _ => {
            let room = shape.value_bytes();
            let command = element(IoOpcode::Lookup, map, Some(&key), None, room, 0, true, host);
            let done = io(firmware, &command, host);
            match model.lookup(&key) {
                Ok(value) => assert_eq!(returned(&command, &done, room, host), value),
                Err(status) => assert_eq!(done.status(), status),
            }
        }
    }
}

/// Everything that the map holds, and that it is all.
fn compare(should: &Should, firmware: &mut Firmware<Vec<u8>>, map: MapHandle) {
    let Should::Map(model) = should else {
        return;
    };
    let mut value = vec![0; model.shape.value_bytes()];
    for (key, expected) in &model.entries {
        assert_eq!(
            firmware.lookup(map, key, &mut value),
            Status::Success,
            "{key:x?}"
        );
        assert_eq!(&value, expected);
    }
    let mut seen = 0;
    let (mut key, mut next) = (None, vec![0; model.shape.key_size]);
    while firmware.get_next(map, key.as_deref(), &mut next) == Status::Success {
        assert!(model.entries.contains_key(&next));
        key = Some(next.clone());
        seen += 1;
    }
    assert_eq!(seen, model.entries.len());
}

/// Tables of all kinds in all tiers move on and on while they are used: between any two steps of a move
/// there are commands on the map that moves, and on the others.
#[test]
fn tables_are_what_they_should_be_while_they_move() {
    let kinds = [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LPM, QUEUE, STACK];
    let mut moves = 0;
    for seed in 1..4 {
        let mut random = Random::new(seed);
        let mut firmware = firmware(config());
        let mut host = Host::new(HOST_BYTES);
        let mut maps: Vec<(MapHandle, Should)> = Vec::new();
        for (n, kind) in kinds.into_iter().cycle().take(14).enumerate() {
            let (key, value) = match kind {
                ARRAY | PERCPU_ARRAY => (4, 20),
                QUEUE | STACK => (0, 12),
                LPM => (8, 16),
                _ => (12, 20),
            };
            let shape = Shape::new(kind, key, value, 20 + 10 * n as u32);
            let placed = [0, 3, 4][random.below(3) as usize];
            let map = handle_of(&create_in(&mut firmware, &shape, placed));
            maps.push((map, Should::new(shape)));
        }
        for _ in 0..120 {
            let moving = random.below(maps.len() as u64) as usize;
            let tier = [0, 1, 3, 4][random.below(4) as usize];
            let command = migrate_command(maps[moving].0, tier);
            let mut progress = firmware.admin(&command, &mut host);
            let mut steps = 0;
            while progress == Progress::More {
                for _ in 0..random.below(12) {
                    // Mostly the one that moves.
                    let any = random.below(maps.len() as u64) as usize;
                    let which = [moving, any][usize::from(random.below(4) == 0)];
                    let (map, should) = &mut maps[which];
                    should.act(&mut firmware, *map, &mut random, &mut host);
                }
                progress = firmware.resume(&mut host);
                steps += 1;
            }
            let Progress::Done(done) = progress else {
                unreachable!("it is done");
            };
            let ok = [Status::Success, Status::NoMemory].contains(&done.status());
            assert!(ok, "{}", done.status());
            moves += u32::from(done.status().is_success() && steps > 2);
            let (map, should) = &maps[moving];
            compare(should, &mut firmware, *map);
        }
        for (map, should) in &maps {
            compare(should, &mut firmware, *map);
        }
    }
    assert!(moves > 100, "{moves} moves");
}

/// More writes than are noted between two steps, to the part that is copied.
#[test]
fn a_move_keeps_up_with_any_number_of_writes() {
    let mut firmware = firmware(config());
    let shape = Shape::new(ARRAY, 4, 8, 8000);
    let map = handle_of(&create_in(&mut firmware, &shape, 3));
    for n in 0..8000u32 {
        firmware.update(map, &n.to_le_bytes(), &u64::from(n).to_le_bytes(), 0);
    }
    let mut host = Host::new(0);
    assert_eq!(
        firmware.admin(&migrate_command(map, 4), &mut host),
        Progress::More
    );
    let mut round = 1;
    let done = loop {
        for n in 0..8000u32 {
            let value = (u64::from(n) << 8 | round).to_le_bytes();
            assert_eq!(
                firmware.update(map, &n.to_le_bytes(), &value, 0),
                Status::Success
            );
        }
        match firmware.resume(&mut host) {
            Progress::More => round += 1,
            Progress::Done(done) => break done,
        }
    };
    assert_eq!(done.status(), Status::Success);
    assert!(round > 20);
    assert_eq!(layout(&mut firmware, map).tier.get(), 3);
    for n in 0..8000u32 {
        let mut value = [0; 8];
        firmware.lookup(map, &n.to_le_bytes(), &mut value);
        assert_eq!(u64::from_le_bytes(value), u64::from(n) << 8 | round, "{n}");
    }
}

/// The old table is whole, and its new place free, whenever a reset, the host's leaving or a fault comes.
#[test]
fn what_ends_a_move_leaves_the_old_table() {
    for ends_at in 0..60 {
        for faulty in [false, true] {
            let mut firmware = firmware(config());
            let shape = Shape::new(HASH, 8, 40, 300);
            let map = handle_of(&create_in(&mut firmware, &shape, 4));
            for n in 0..300u64 {
                assert_eq!(
                    firmware.update(map, &n.to_le_bytes(), &[n as u8; 40], 0),
                    Status::Success
                );
            }
            let before = (firmware.memory_stats(), layout(&mut firmware, map).base);
            let mut host = Host::new(0);
            let mut progress = firmware.admin(&migrate_command(map, 3), &mut host);
            for _ in 0..ends_at {
                if progress == Progress::More {
                    progress = firmware.resume(&mut host);
                }
            }
            if progress != Progress::More {
                continue;
            }
            if faulty {
                // The last value goes wrong, twice in a word. The move meets that.
                let at = DevAddr(before.1.get() + layout_bytes(&before.0) - 16);
                assert!(firmware.flip_bits(at, 3));
                let done = loop {
                    if let Progress::Done(done) = firmware.resume(&mut host) {
                        break done;
                    }
                };
                assert_eq!(done.status(), Status::MediaError);
                assert!(firmware.flip_bits(at, 3), "and is right again");
            } else {
                firmware.leave();
            }
            let after = (firmware.memory_stats(), layout(&mut firmware, map).base);
            assert_eq!(after, before, "at step {ends_at}");
            for n in 0..300u64 {
                let mut value = [0; 40];
                assert_eq!(
                    firmware.lookup(map, &n.to_le_bytes(), &mut value),
                    Status::Success
                );
                assert_eq!(value, [n as u8; 40]);
            }
            assert_eq!(migrate(&mut firmware, map, 3).status(), Status::Success);
            let Progress::More = firmware.admin(&migrate_command(map, 4), &mut host) else {
                panic!("a second move takes steps");
            };
            firmware.reset();
            assert_eq!(
                firmware.memory_stats().free_bytes,
                firmware.identify().memory_bytes.get()
            );
            assert_eq!(firmware.memory_stats().free_pieces, 3);
        }
    }
}

/// Bytes that one map occupies.
fn layout_bytes(stats: &offmap_firmware_model::MemoryStats) -> u64 {
    stats.total_bytes - stats.free_bytes
}

/// Engines add to counters access by access, in any order, while the map under them moves on and on: nothing
/// is lost, nothing counted twice, and they come to an end.
#[test]
fn engines_in_the_midst_of_operations_and_a_map_that_moves() {
    let mut landed = 0;
    for seed in 1..6 {
        let mut random = Random::new(seed);
        let mut firmware = firmware(config());
        let shape = Shape::new(HASH, 8, 16, 40);
        let map = handle_of(&create_in(&mut firmware, &shape, 4));
        let mut sums = [0u64; 40];
        for n in 0..40u64 {
            assert_eq!(
                firmware.update(map, &n.to_le_bytes(), &[0; 16], 0),
                Status::Success
            );
        }
        let mut engines = Engines::new(firmware, 8).expect("a width");
        let mut host = Host::new(0);
        let mut moving = false;
        for _ in 0..20_000 {
            let engine = random.below(u64::from(engines.count())) as u32;
            if !engines.is_busy(engine) {
                let (n, delta) = (random.below(40), random.below(1000));
                sums[n as usize] += delta;
                let op = DataOp::Add {
                    map,
                    key: n.to_le_bytes().to_vec(),
                    offset: 8,
                    delta,
                };
                engines.start(engine, op).expect("it is idle");
            }
            if let Turn::Data { status, .. } = engines.turn(engine, &mut host) {
                assert_eq!(status, Status::Success);
            }
            if random.below(6) != 0 {
                continue;
            }
            let progress = match moving {
                true => engines.resume(&mut host),
                false => {
                    let tier = [1, 3, 4][random.below(3) as usize];
                    engines.admin(&migrate_command(map, tier), &mut host)
                }
            };
            moving = progress == Progress::More;
            if let Progress::Done(done) = progress {
                assert_eq!(done.status(), Status::Success);
                landed += 1;
            }
        }
        for turn in 0..100_000 {
            if moving {
                moving = engines.resume(&mut host) == Progress::More;
            }
            engines.turn(turn % engines.count(), &mut host);
            if engines.is_idle() && !moving {
                break;
            }
        }
        let firmware = engines.firmware_mut().expect("all have ended");
        for (n, sum) in (0u64..).zip(sums) {
            let mut value = [0; 16];
            assert_eq!(
                firmware.lookup(map, &n.to_le_bytes(), &mut value),
                Status::Success
            );
            assert_eq!(value[8..], sum.to_le_bytes(), "seed {seed}, key {n}");
        }
    }
    assert!(landed > 100, "{landed} moves");
}
