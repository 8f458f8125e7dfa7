//! A change of a map that fails in the middle, because memory failed its check, has changed nothing.

mod common;

use common::*;
use offmap_abi::submission::{BatchBody, ElementBody};
use offmap_abi::{
    Completion, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission, SubmissionFlags,
};
use offmap_firmware_model::hook::{MemoryHook, Verdict};
use offmap_firmware_model::{Config, Firmware, Progress};
use std::collections::BTreeMap;

/// The access with this number, from 0 on, fails its check, reads and writes counted together.
struct FailsAt {
    left: Option<u32>,
    fired: bool,
}

impl FailsAt {
    fn new(left: Option<u32>) -> Self {
        Self { left, fired: false }
    }

    fn next(&mut self) -> Verdict {
        match &mut self.left {
            Some(0) => {
                (self.left, self.fired) = (None, true);
                Verdict::Media
            }
            Some(left) => {
                *left -= 1;
                Verdict::Pass
            }
            None => Verdict::Pass,
        }
    }
}

impl MemoryHook for FailsAt {
    fn read(&mut self, _: DevAddr, _: usize) -> Verdict {
        self.next()
    }
    fn write(&mut self, _: DevAddr, _: usize) -> Verdict {
        self.next()
    }
}

const KEYS: u64 = 40;

/// A key of the shape: of a trie prefixes that lie within one another.
fn key(shape: &Shape, n: u64) -> Vec<u8> {
    if shape.map_type != LPM {
        return n.to_le_bytes()[..shape.key_size].to_vec();
    }
    let bits = (n % 4 * 8 + 1) as u32;
    let mut key = bits.to_le_bytes().to_vec();
    key.extend((n as u32).wrapping_mul(0x9e37_79b9).to_be_bytes());
    for bit in bits..32 {
        key[4 + bit as usize / 8] &= !(0x80 >> (bit % 8));
    }
    key
}

fn element(opcode: IoOpcode, map: MapHandle, key: &[u8], value: u64) -> Submission {
    let mut body = ElementBody {
        map_flags: 0.into(),
        key_len: (key.len() as u32).into(),
        value_len: 0.into(),
        reserved: 0.into(),
        key: [0; 16],
        value: [0; 16],
    };
    body.key[..key.len()].copy_from_slice(key);
    let mut flags = SubmissionFlags::KEY_INLINE;
    match opcode {
        IoOpcode::Update => {
            body.value_len = 8.into();
            body.value[..8].copy_from_slice(&value.to_le_bytes());
            flags |= SubmissionFlags::VALUE_INLINE;
        }
        IoOpcode::LookupAndDelete => {
            body.value_len = 8.into();
            flags |= SubmissionFlags::VALUE_INLINE;
        }
        _ => {}
    }
    Submission::new(opcode.0, RequestId(5), &body)
        .with_map(map)
        .with_flags(flags)
}

fn run(firmware: &mut Firmware<Vec<u8>>, command: &Submission, hook: &mut FailsAt) -> Completion {
    let mut host = Host::new(0x2000);
    run_on(firmware, command, &mut host, hook)
}

fn run_on(
    firmware: &mut Firmware<Vec<u8>>,
    command: &Submission,
    host: &mut Host,
    hook: &mut FailsAt,
) -> Completion {
    let mut progress = firmware.io_hooked(1, command, host, hook);
    loop {
        match progress {
            Progress::Done(done) => return done,
            Progress::More => progress = firmware.resume_io_hooked(1, host, hook),
        }
    }
}

/// All of the device's memory that maps of these tests use.
fn image(firmware: &Firmware<Vec<u8>>) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    firmware.read_memory(DevAddr(0), &mut bytes);
    bytes
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape::new(HASH, 8, 8, 30),
        Shape::new(LRU_HASH, 8, 8, 12),
        Shape::new(LRU_HASH, 4, 8, 1),
        Shape::new(LPM, 8, 8, 30),
        Shape::new(QUEUE, 0, 8, 5),
        Shape::new(STACK, 0, 8, 5),
    ]
}

#[test]
fn a_change_that_fails_at_any_access_changes_nothing() {
    for shape in shapes() {
        let mut firmware = firmware(Config::with_memory(1 << 20));
        let map = create(&mut firmware, &shape);
        let (mut failed, mut random) = (0, 7u64);
        for round in 0..400u64 {
            random = random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let opcode = match random >> 60 {
                0..9 => IoOpcode::Update,
                9..13 if shape.key_size > 0 => IoOpcode::Delete,
                _ if shape.map_type == LPM => IoOpcode::Delete,
                _ => IoOpcode::LookupAndDelete,
            };
            let key = key(&shape, (random >> 40) % KEYS);
            let command = element(opcode, map, &key, round);
            for access in 0.. {
                let before = image(&firmware);
                let mut hook = FailsAt::new(Some(access));
                let done = run(&mut firmware, &command, &mut hook);
                if !hook.fired {
                    // It has met all accesses that it makes, and now it is done.
                    assert_ne!(done.status(), Status::MediaError);
                    assert_ne!(done.status(), Status::Internal, "{shape:?}");
                    break;
                }
                failed += 1;
                assert_eq!(done.status(), Status::MediaError, "{shape:?} {opcode}");
                assert!(image(&firmware) == before, "{shape:?} {opcode}: {access}");
            }
        }
        assert!(failed > 1000, "{failed}");
    }
}

/// The elements before the one that failed are done, and nothing of that one.
#[test]
fn a_batch_ends_between_two_elements() {
    let shape = Shape::new(LRU_HASH, 8, 8, 6);
    for opcode in [
        IoOpcode::BatchUpdate,
        IoOpcode::BatchDelete,
        IoOpcode::BatchDumpDelete,
    ] {
        let update = opcode == IoOpcode::BatchUpdate;
        let dump = opcode == IoOpcode::BatchDumpDelete;
        for access in 0.. {
            let mut firmware = firmware(Config::with_memory(1 << 20));
            let map = create(&mut firmware, &shape);
            let mut model = BTreeMap::new();
            for n in 0..6u64 {
                let key = key(&shape, n);
                assert!(firmware.update(map, &key, &n.to_le_bytes(), 0).is_success());
                model.insert(key, n);
            }
            let mut host = Host::new(0x2000);
            for n in 0..6u64 {
                // The first three are there, and others go for the rest of an update.
                let n2 = if update { n + 3 } else { n };
                host.put(BASE + 8 * n, &key(&shape, n2));
                host.put(BASE + 0x800 + 8 * n, &(100 + n).to_le_bytes());
            }
            let body = BatchBody {
                map_flags: 0.into(),
                count: 6.into(),
                key_len: 8.into(),
                value_len: if update || dump { 8 } else { 0 }.into(),
                keys: BASE.into(),
                values: if update || dump { BASE + 0x800 } else { 0 }.into(),
                statuses: if dump { 0 } else { BASE + 0x1000 }.into(),
                cursor: 0.into(),
            };
            let command = Submission::new(opcode.0, RequestId(6), &body).with_map(map);
            let mut hook = FailsAt::new(Some(access));
            let done = run_on(&mut firmware, &command, &mut host, &mut hook);
            if !hook.fired {
                assert!(access > 20, "{opcode}: {access}");
                break;
            }
            assert_eq!(done.status(), Status::MediaError, "{opcode}");
            let count = done.count.get() as u64;
            let mut value = [0; 8];
            // What is done is done, and whatever else is there is found and can be changed.
            for n in 0..count {
                let mut k = [0; 8];
                k.copy_from_slice(host.at(BASE + 8 * n, 8));
                let status = firmware.lookup(map, &k, &mut value);
                let expected = if update {
                    Status::Success
                } else {
                    Status::NotFound
                };
                assert_eq!(status, expected, "{opcode} {access}: {n} of {count}");
            }
            let entries = query(&mut firmware, map).1.entries.get();
            let left = if update { 6 } else { 6 - count as u32 };
            assert_eq!(entries, left, "{opcode} {access}");
            for n in 20..32u64 {
                let status = firmware.update(map, &key(&shape, n), &value, 0);
                assert_eq!(status, Status::Success, "{opcode} {access}");
            }
            assert_eq!(query(&mut firmware, map).1.entries.get(), 6);
        }
    }
}
