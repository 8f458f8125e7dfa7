//! Batches that take several steps: each is bounded, other contexts run in between, and what
//! they change is met safely.

mod common;

use common::*;
use offmap_abi::admin::{EmptyBody, MapCreated};
use offmap_abi::completion::BatchResult;
use offmap_abi::submission::BatchBody;
use offmap_abi::{
    AdminOpcode, Completion, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission,
};
use offmap_firmware_model::{
    Config, ConfigError, Firmware, Progress, STEP_BUCKETS, STEP_BYTES, StepLimits,
};
use std::collections::{BTreeMap, BTreeSet};

const VALUE: usize = 4096;
const COUNT: u32 = 300;

/// Keys from [`BASE`] on, then statuses, then values.
fn large_batch(opcode: IoOpcode, map: MapHandle, count: u32, value: usize) -> Submission {
    let dump = matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete);
    let delete = opcode == IoOpcode::BatchDelete;
    let body = BatchBody {
        map_flags: 0.into(),
        count: count.into(),
        key_len: 4.into(),
        value_len: if delete { 0 } else { value as u32 }.into(),
        keys: BASE.into(),
        values: if delete { 0 } else { BASE + 0x1_0000 }.into(),
        statuses: if dump { 0 } else { BASE + 0x8000 }.into(),
        cursor: 0.into(),
    };
    Submission::new(opcode.0, RequestId(78), &body).with_map(map)
}

fn host() -> Host {
    let mut host = Host::new(0x1_0000 + COUNT as usize * VALUE);
    for n in 0..COUNT {
        host.put(BASE + 4 * u64::from(n), &n.to_le_bytes());
        let at = BASE + 0x1_0000 + u64::from(n) * VALUE as u64;
        host.put(at, &[n as u8; VALUE]);
    }
    host
}

fn large_map(map_type: u32) -> (Firmware<Vec<u8>>, MapHandle, Shape) {
    let mut firmware = firmware(Config::with_memory(8 << 20));
    let shape = Shape::new(map_type, 4, VALUE, 2 * COUNT);
    let map = create(&mut firmware, &shape);
    (firmware, map, shape)
}

fn done(progress: Progress) -> Option<Completion> {
    match progress {
        Progress::Done(done) => Some(done),
        Progress::More => None,
    }
}

/// Every step of every batch stays within its bounds, and the results are those of one step.
#[test]
fn a_step_moves_a_bounded_number_of_bytes() {
    for map_type in [HASH, ARRAY] {
        for opcode in [
            IoOpcode::BatchUpdate,
            IoOpcode::BatchLookup,
            IoOpcode::BatchDump,
            IoOpcode::BatchDumpDelete,
        ] {
            if map_type == ARRAY && opcode == IoOpcode::BatchDumpDelete {
                continue;
            }
            let (mut firmware, map, _) = large_map(map_type);
            let mut host = host();
            let fill = large_batch(IoOpcode::BatchUpdate, map, COUNT, VALUE);
            if opcode != IoOpcode::BatchUpdate {
                let filled = io(&mut firmware, &fill, &mut host);
                assert_eq!(filled.status(), Status::Success);
                host.bytes[0x1_0000..].fill(0xee);
            }
            let command = large_batch(opcode, map, COUNT, VALUE);
            let (mut progress, mut counts) = firmware.io_counted(9, &command, &mut host);
            let mut steps = 1;
            let completion = loop {
                let moved = counts.read_bytes + counts.written_bytes;
                // Beyond the values: buckets and keys; and one chain that ends a step.
                let most = STEP_BYTES + STEP_BYTES / 8 + 8 * VALUE;
                assert!(moved <= most as u64, "{opcode}: {moved} bytes in a step");
                match progress {
                    Progress::Done(done) => break done,
                    Progress::More => {
                        (progress, counts) = firmware.resume_io_counted(9, &mut host);
                        steps += 1;
                    }
                }
            };
            assert_eq!(steps, (COUNT as usize * (VALUE + 4)).div_ceil(STEP_BYTES));
            let (status, count, _) = batch_result(&completion);
            let expected = match (opcode, map_type) {
                (IoOpcode::BatchDump | IoOpcode::BatchDumpDelete, HASH) => Status::NotFound,
                _ => Status::Success,
            };
            assert_eq!((status, count), (expected, COUNT as usize), "{opcode}");
            let mut seen = BTreeSet::new();
            let mut value = [0; VALUE];
            for n in 0..u64::from(COUNT) {
                let mut key = [0; 4];
                key.copy_from_slice(host.at(BASE + 4 * n, 4));
                assert!(seen.insert(key), "{opcode}: a key came twice");
                let at = BASE + 0x1_0000 + n * VALUE as u64;
                assert_eq!(host.at(at, VALUE), [key[0]; VALUE], "{opcode}");
                let status = firmware.lookup(map, &key, &mut value);
                if opcode == IoOpcode::BatchDumpDelete {
                    assert_eq!(status, Status::NotFound);
                } else {
                    assert_eq!((status, value[9]), (Status::Success, key[0]));
                }
            }
            assert!(!firmware.abandon_io(9), "nothing is left behind");
        }
    }
}

/// Batches of small elements are bounded by their number.
#[test]
fn a_step_visits_a_bounded_number_of_elements() {
    let mut config = Config::with_memory(8 << 20);
    config.batch = 3 * STEP_BUCKETS as u32;
    let mut firmware = firmware(config);
    let count = 3 * STEP_BUCKETS as u32;
    let map = create(&mut firmware, &Shape::new(HASH, 4, 4, count));
    let mut host = Host::new(0x10_0000);
    let command = |opcode| {
        let dump = matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete);
        let delete = opcode == IoOpcode::BatchDelete;
        let body = BatchBody {
            map_flags: 0.into(),
            count: count.into(),
            key_len: 4.into(),
            value_len: if delete { 0 } else { 4 }.into(),
            keys: BASE.into(),
            values: if delete { 0 } else { BASE + 0x4_0000 }.into(),
            statuses: if dump { 0 } else { BASE + 0x8_0000 }.into(),
            cursor: 0.into(),
        };
        Submission::new(opcode.0, RequestId(78), &body).with_map(map)
    };
    for n in 0..count {
        host.put(BASE + 4 * u64::from(n), &n.to_le_bytes());
    }
    for (opcode, steps) in [
        (IoOpcode::BatchUpdate, 3),
        (IoOpcode::BatchLookup, 3),
        (IoOpcode::BatchDump, 1),
        (IoOpcode::BatchDelete, 3),
        // Empty now.
        (IoOpcode::BatchDump, 1),
    ] {
        let (_, took) = io_steps(&mut firmware, 0, &command(opcode), &mut host);
        assert_eq!(took, steps, "{opcode}");
    }
}

/// A map that another context frees ends the batch with the count so far; the memory may by
/// then be another map's.
#[test]
fn a_map_freed_between_steps_ends_the_batch() {
    for opcode in [
        IoOpcode::BatchUpdate,
        IoOpcode::BatchLookup,
        IoOpcode::BatchDump,
        IoOpcode::BatchDumpDelete,
    ] {
        let (mut firmware, map, shape) = large_map(HASH);
        let mut host = host();
        let fill = large_batch(IoOpcode::BatchUpdate, map, COUNT, VALUE);
        assert!(io(&mut firmware, &fill, &mut host).status().is_success());
        let command = large_batch(opcode, map, COUNT, VALUE);
        assert_eq!(firmware.io(2, &command, &mut host), Progress::More);
        assert_eq!(free(&mut firmware, map), Status::Success);
        let other = create(&mut firmware, &shape);
        let ended = done(firmware.resume_io(2, &mut host)).expect("it cannot go on");
        let (status, count, result) = batch_result(&ended);
        assert_eq!(status, Status::InvalidMap, "{opcode}");
        assert!(count > 0 && count < COUNT as usize, "{opcode}: {count}");
        let cursor: BatchResult = result;
        let dump = matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete);
        assert_eq!(cursor.cursor.get() != 0, dump, "{opcode}");
        assert_eq!(
            firmware.get_next(other, None, &mut [0; 4]),
            Status::NotFound
        );
        let gone = done(firmware.resume_io(2, &mut host)).expect("nothing is under way");
        assert_eq!(gone.status(), Status::Internal);
    }
}

/// Between the steps of a walk that dumps and deletes, another context inserts, deletes and
/// changes. Keys that stay all the time are dumped exactly once, and the table agrees with a
/// model at the end.
#[test]
fn other_contexts_change_the_map_between_steps() {
    for delete in [false, true] {
        let (mut firmware, map, _) = large_map(HASH);
        let mut host = host();
        let fill = large_batch(IoOpcode::BatchUpdate, map, COUNT, VALUE);
        assert!(io(&mut firmware, &fill, &mut host).status().is_success());
        let opcode = if delete {
            IoOpcode::BatchDumpDelete
        } else {
            IoOpcode::BatchDump
        };
        let command = large_batch(opcode, map, COUNT, VALUE);
        let mut present: BTreeMap<u32, u8> = (0..COUNT).map(|n| (n, n as u8)).collect();
        let mut progress = firmware.io(1, &command, &mut host);
        let mut round = 0;
        let mut other = Host::new(HOST_BYTES);
        while progress == Progress::More {
            // Which keys the dump took is known by looking.
            present.retain(|n, _| {
                let mut value = [0; VALUE];
                firmware.lookup(map, &n.to_le_bytes(), &mut value) == Status::Success
            });
            for n in (round..COUNT).step_by(17).filter(|n| n % 3 == 0) {
                let status = firmware.delete(map, &n.to_le_bytes());
                assert_eq!(status.is_success(), present.remove(&n).is_some());
            }
            for n in COUNT + round * 20..COUNT + round * 20 + 20 {
                let status = firmware.update(map, &n.to_le_bytes(), &[n as u8; VALUE], 1);
                assert_eq!(status, Status::Success);
                present.insert(n, n as u8);
            }
            // A batch of another context runs to its end in between.
            let lookup = batch(
                IoOpcode::BatchLookup,
                map,
                &Shape::new(HASH, 4, VALUE, 1),
                4,
                0,
                0,
            );
            assert!(
                io_steps(&mut firmware, 7, &lookup, &mut other)
                    .0
                    .status()
                    .is_success()
            );
            progress = firmware.resume_io(1, &mut host);
            round += 1;
        }
        assert!(round >= 3);
        let (status, count, _) = batch_result(&done(progress).unwrap());
        assert!([Status::Success, Status::NotFound].contains(&status));
        let mut dumped = BTreeSet::new();
        for n in 0..count as u64 {
            let key = host.at(BASE + 4 * n, 4);
            let key = u32::from_le_bytes([key[0], key[1], key[2], key[3]]);
            assert!(dumped.insert(key), "{key} came twice");
            let at = BASE + 0x1_0000 + n * VALUE as u64;
            assert_eq!(host.at(at, VALUE), [key as u8; VALUE]);
        }
        if status == Status::NotFound {
            for n in (0..COUNT).filter(|n| n % 3 != 0) {
                assert!(dumped.contains(&n), "{n} was skipped");
            }
        }
        let mut walked = BTreeSet::new();
        let mut key = [0; 4];
        let mut at = firmware.get_next(map, None, &mut key);
        while at == Status::Success {
            assert!(walked.insert(u32::from_le_bytes(key)));
            let before = key;
            at = firmware.get_next(map, Some(&before), &mut key);
        }
        assert_eq!(at, Status::NotFound);
        let info = firmware.map_info(map).expect("the table is sound");
        assert_eq!(info.entries.get() as usize, walked.len());
        for n in (0..COUNT).filter(|n| n % 3 != 0) {
            assert_eq!(walked.contains(&n), !(delete && dumped.contains(&n)), "{n}");
        }
    }
}

#[test]
fn contexts_are_apart_and_can_be_abandoned() {
    let (mut firmware, map, _) = large_map(HASH);
    let mut host = host();
    let command = large_batch(IoOpcode::BatchUpdate, map, COUNT, VALUE);
    // From high to low, so that their order is not that of arrival.
    for context in [1023, 5, 0] {
        assert_eq!(firmware.io(context, &command, &mut host), Progress::More);
    }
    let second = done(firmware.io(5, &command, &mut host)).expect("one at a time");
    assert_eq!((second.status(), second.count.get()), (Status::Internal, 0));
    // Commands on one element do not disturb it.
    let nop = Submission::new(IoOpcode::Nop.0, RequestId(6), &[0u8; 48]);
    assert!(done(firmware.io(5, &nop, &mut host)).is_some_and(|d| d.status().is_success()));
    assert!(firmware.abandon_io(5));
    assert!(!firmware.abandon_io(5));
    assert!(!firmware.abandon_io(6));
    let applied = firmware.map_info(map).map(|info| info.entries.get());
    assert!(
        applied.is_ok_and(|n| n > 0 && n < COUNT),
        "what was done stays"
    );
    assert_eq!(firmware.resume_io(1023, &mut host), Progress::More);
    firmware.reset();
    for context in [0, 1023] {
        let gone = done(firmware.resume_io(context, &mut host)).expect("it is forgotten");
        assert_eq!((gone.status(), gone.request().0), (Status::Internal, 0));
    }
}

/// What one owner left is not there for the next: through the window, and in maps.
#[test]
fn a_reset_leaves_nothing_behind() {
    let (mut firmware, map, shape) = large_map(ARRAY);
    let secret = [0x5e; VALUE];
    for n in 0..shape.max_entries {
        let status = firmware.update(map, &n.to_le_bytes(), &secret, 0);
        assert_eq!(status, Status::Success);
    }
    firmware.reset();
    let mut all = vec![1; 8 << 20];
    firmware.read_memory(DevAddr(0), &mut all);
    assert!(all.iter().all(|&byte| byte == 0));
    let small = Shape::new(PERCPU_HASH, 4, 100, 50);
    let map = create(&mut firmware, &small);
    let bytes = query(&mut firmware, map).1.bytes.get() as usize;
    firmware.read_memory(DevAddr(0), &mut all);
    assert!(all[64..].iter().all(|&byte| byte == 0));
    assert!(bytes < 64 << 10, "the map shares a chunk with old data");
    let key = [1; 4];
    assert_eq!(
        firmware.engine_update(1, map, &key, &[7; 100], 0),
        Status::Success
    );
    firmware.read_memory(DevAddr(0), &mut all);
    assert!(!all.contains(&0x5e));
}

/// With limits of one element or bucket, every command ends as it does in one step, and takes as many
/// as it has elements: also the making of a map, and the measure of its chains.
#[test]
fn limits_of_one_change_nothing_but_the_number_of_steps() {
    const ELEMENTS: u64 = 40;
    for step in [
        StepLimits {
            bytes: 1,
            ..StepLimits::USUAL
        },
        StepLimits {
            buckets: 1,
            ..StepLimits::USUAL
        },
    ] {
        let shape = Shape::new(HASH, 8, 16, 2 * ELEMENTS as u32);
        let mut usual = firmware(Config::with_memory(1 << 20));
        let mut small = firmware(Config {
            step,
            ..Config::with_memory(1 << 20)
        });
        let both = [&mut usual, &mut small].map(|firmware| {
            let first = create(firmware, &shape);
            assert_eq!(free(firmware, first), Status::Success);
            // In memory that was used, so that there is something to clear.
            let body = shape.body();
            let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body);
            let (created, steps) = admin(firmware, &command, &mut Host::new(0));
            let map = MapHandle(created.payload_as::<MapCreated>().map.get());
            let mut host = Host::new(HOST_BYTES);
            let mut counts = vec![steps];
            let mut ends = Vec::new();
            for n in 0..ELEMENTS {
                host.put(KEYS + 8 * n, &(n * 7).to_le_bytes());
                host.put(VALUES + 16 * n, &[n as u8; 16]);
            }
            for opcode in [
                IoOpcode::BatchUpdate,
                IoOpcode::BatchLookup,
                IoOpcode::BatchDump,
                IoOpcode::BatchDelete,
                IoOpcode::BatchUpdate,
                IoOpcode::BatchDumpDelete,
            ] {
                let command = batch(opcode, map, &shape, ELEMENTS as u32, 0, 0);
                let (done, steps) = io_steps(firmware, 3, &command, &mut host);
                ends.push((done, host.bytes.clone()));
                counts.push(steps);
                let query =
                    Submission::new(AdminOpcode::MapQuery.0, RequestId(4), &EmptyBody::ZERO)
                        .with_map(map);
                let (done, steps) = admin(firmware, &query, &mut Host::new(0));
                ends.push((done, Vec::new()));
                counts.push(steps);
            }
            (counts, ends)
        });
        let [(usual, ends), (small, others)] = both;
        assert!(ends == others, "{step:?}");
        for (index, (one, many)) in usual.iter().zip(&small).enumerate() {
            let query = index % 2 == 0;
            let fits = match (query, step.bytes) {
                // Bytes bound what is cleared and moved, buckets what is visited.
                (true, 1) if index > 0 => many == one,
                (true, _) if index == 0 => step.bytes > 1 || many > one,
                (true, _) => many > one,
                // Chains are not divided, and there are several keys to one.
                (false, _) => *many > ELEMENTS as u32 / 8 && *one == 1,
            };
            assert!(fits, "{step:?}, command {index}: {one} steps and {many}");
        }
    }
}

#[test]
fn limits_that_cannot_be_are_refused() {
    for (bytes, buckets, field) in [
        (0, 1, "step.bytes"),
        (StepLimits::BYTES_MAX + 1, 1, "step.bytes"),
        (1, 0, "step.buckets"),
        (1, StepLimits::BUCKETS_MAX + 1, "step.buckets"),
    ] {
        let config = Config {
            step: StepLimits { bytes, buckets },
            ..Config::with_memory(4096)
        };
        match Firmware::new(config, vec![0; 4096]) {
            Err(ConfigError::Limit { name, .. }) => assert_eq!(name, field),
            other => panic!("{bytes} bytes and {buckets} buckets: {:?}", other.is_ok()),
        }
    }
}
