//! What a hostile host can do: random commands, corrupted device memory, and host memory
//! that fails at any access.

mod common;

use common::*;
use offmap_abi::submission::BatchBody;
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status, Submission};
use offmap_firmware_model::{Config, Firmware, Progress};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

const COMMANDS: u32 = 400_000;

struct Attack {
    random: Xoshiro256PlusPlus,
    firmware: Firmware<Vec<u8>>,
    memory: u64,
    host: Host,
    maps: Vec<(MapHandle, Shape)>,
}

impl Attack {
    fn new(seed: u64) -> Self {
        let memory = 256 << 10;
        let mut config = Config::with_memory(memory);
        config.maps = 12;
        config.batch = 64;
        config.key_bytes = 64;
        config.value_bytes = 256;
        config.cpu_slots = 4;
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            firmware: firmware(config),
            memory,
            host: Host::new(HOST_BYTES),
            maps: Vec::new(),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn pick_map(&mut self) -> Option<(MapHandle, Shape)> {
        if self.maps.is_empty() {
            return None;
        }
        let index = self.below(self.maps.len() as u64) as usize;
        Some(self.maps[index])
    }

    /// A submission that is random, or sound but for some random bytes.
    fn submission(&mut self) -> Submission {
        let mut words = [0; 8];
        for word in &mut words {
            *word = self.random.next_u64();
        }
        let random = Submission::from_words(words);
        let Some((map, shape)) = self.pick_map() else {
            return random;
        };
        if self.below(8) == 0 {
            return random;
        }
        let opcode = IoOpcode::ALL[self.below(IoOpcode::ALL.len() as u64) as usize];
        let mut command = if opcode.is_batch() {
            let (count, flags, cursor) = (self.below(66), self.below(4), self.below(80));
            batch(opcode, map, &shape, count as u32, flags as u32, cursor)
        } else {
            let key = self.below(80).to_le_bytes();
            let mut long = [0; 64];
            long[..8].copy_from_slice(&key);
            if shape.map_type == LPM {
                // Of a few bits, so that prefixes part.
                long[4] = self.below(4) as u8 * 0x41;
                long[5] = self.below(256) as u8;
            }
            let key = &long[..shape.key_size];
            let value = vec![self.below(256) as u8; shape.value_bytes()];
            let value = (opcode == IoOpcode::Update).then_some(&value[..]);
            let (flags, inline) = (self.below(3) as u32, self.below(2) == 0);
            let room = shape.value_bytes().max(shape.key_size);
            let flags = if value.is_some() { flags } else { 0 };
            let host = &mut self.host;
            element(opcode, map, Some(key), value, room, flags, inline, host)
        };
        if self.below(4) == 0 {
            let mut words = command.to_words(false);
            let word = self.below(8) as usize;
            words[word] ^= 1 << self.below(64);
            command = Submission::from_words(words);
        }
        command
    }

    fn corrupt(&mut self) {
        let mut bytes = [0; 16];
        self.random.fill_bytes(&mut bytes);
        let len = 1 + self.below(16) as usize;
        // Often near the start of a map, where state lines and buckets are; small numbers
        // make links and references that are in range but wrong.
        let at = self.below(self.memory + 32) >> self.below(12);
        if self.below(2) == 0 {
            bytes = [0; 16];
            bytes[self.below(16) as usize] = self.below(24) as u8;
        }
        self.firmware.write_memory(DevAddr(at), &bytes[..len]);
        self.firmware.read_memory(DevAddr(at ^ 7), &mut bytes);
    }

    fn create_or_free(&mut self) {
        if self.below(3) == 0
            && let Some((map, _)) = self.pick_map()
        {
            free(&mut self.firmware, map);
            self.maps.retain(|m| m.0 != map);
            return;
        }
        let others = [LRU_HASH, LRU_PERCPU_HASH, QUEUE, STACK, LPM, BLOOM];
        let map_type = match self.below(10) as usize {
            n @ ..4 => TYPES[n],
            n => others[n - 4],
        };
        let key_size = match map_type {
            ARRAY | PERCPU_ARRAY => 4,
            QUEUE | STACK => 0,
            LPM => 5 + self.below(36) as usize,
            _ => 1 + self.below(40) as usize,
        };
        let value_size = match map_type {
            BLOOM => 0,
            _ => 1 + self.below(100) as usize,
        };
        let mut shape = Shape::new(map_type, key_size, value_size, 0);
        shape.max_entries = 1 + self.below(100) as u32;
        let done = create_with(&mut self.firmware, &shape.body());
        if done.status() == Status::Success {
            let created: offmap_abi::admin::MapCreated = done.payload_as();
            self.maps.push((MapHandle(created.map.get()), shape));
        }
    }

    fn random_admin(&mut self) {
        let mut command = self.submission();
        // Not MAP_FREE of a live map at random: too little would live long enough.
        command.opcode = [0x01, 0x10, 0x12][self.below(3) as usize];
        let mut progress = self.firmware.admin(&command, &mut self.host);
        for _ in 0..1000 {
            match progress {
                Progress::Done(done) => {
                    if done.status() == Status::Success && command.opcode == 0x10 {
                        let created: offmap_abi::admin::MapCreated = done.payload_as();
                        free(&mut self.firmware, MapHandle(created.map.get()));
                    }
                    return;
                }
                Progress::More => progress = self.firmware.resume(&mut self.host),
            }
        }
        panic!("an admin command does not end");
    }
}

/// Nothing panics or runs on for ever (a walk that does would hang the test), every completion
/// carries its request's id, and statuses are those that the ABI names.
fn attack(seed: u64, corrupting: bool) -> (u32, u32) {
    let mut attack = Attack::new(seed);
    let (mut successes, mut internal) = (0, 0);
    for _ in 0..COMMANDS {
        match attack.below(100) {
            0 => attack.create_or_free(),
            1 => attack.random_admin(),
            2..12 if corrupting => attack.corrupt(),
            _ => {
                let command = attack.submission();
                let done = io(&mut attack.firmware, &command, &mut attack.host);
                assert_eq!(done.request, command.request, "seed {seed}");
                assert!(done.status().name().is_some(), "seed {seed}");
                successes += u32::from(done.status() == Status::Success);
                internal += u32::from(done.status() == Status::Internal);
            }
        }
    }
    let live = attack.maps.len() as u32;
    assert_eq!(attack.firmware.memory_stats().maps, live, "seed {seed}");
    (successes, internal)
}

#[test]
fn random_commands_never_find_an_inconsistency() {
    for seed in 1..4 {
        let (successes, internal) = attack(seed, false);
        assert!(successes > COMMANDS / 10, "seed {seed}: {successes}");
        assert_eq!(internal, 0, "seed {seed}");
    }
}

#[test]
fn corrupted_device_memory_ends_as_a_status() {
    for seed in 10..14 {
        let (successes, internal) = attack(seed, true);
        assert!(successes > COMMANDS / 20, "seed {seed}: {successes}");
        assert!(internal > 100, "seed {seed}: corruption was hardly noticed");
    }
}

/// A chain that loops back on itself, and one that links into another.
#[test]
fn a_looping_chain_is_noticed() {
    let shape = Shape::new(HASH, 4, 4, 64);
    let mut firmware = firmware(Config::with_memory(1 << 16));
    let map = create(&mut firmware, &shape);
    for n in 0u32..40 {
        assert_eq!(
            firmware.update(map, &n.to_le_bytes(), &[0; 4], 0),
            Status::Success
        );
    }
    // Headers of 16 bytes from byte 128 on, of sixteen home buckets and nine overflow buckets; then
    // backs of 48 bytes. All home buckets are full and lead to the first overflow bucket, which is full
    // and linked to itself.
    let backs = 128 + 25u64 * 16;
    let backs = backs.next_multiple_of(64);
    for bucket in 0..17 {
        firmware.write_memory(DevAddr(128 + bucket * 16), &[0xff; 8]);
        firmware.write_memory(DevAddr(backs + bucket * 48), &1u32.to_le_bytes());
    }
    for n in 0u32..80 {
        let mut value = [0; 4];
        let status = firmware.lookup(map, &n.to_le_bytes(), &mut value);
        assert!([Status::Success, Status::Internal].contains(&status));
        let status = firmware.delete(map, &n.to_le_bytes());
        assert_eq!(status, Status::Internal);
        let status = firmware.get_next(map, Some(&n.to_le_bytes()), &mut value);
        assert_eq!(status, Status::Internal);
    }
    assert_eq!(firmware.get_next(map, None, &mut [0; 4]), Status::Internal);
    assert!(
        firmware
            .map_info(map)
            .is_ok_and(|info| info.longest_chain.get() <= 10)
    );
    let mut host = Host::new(HOST_BYTES);
    let command = batch(IoOpcode::BatchDump, map, &shape, 64, 0, 0);
    assert_eq!(
        io(&mut firmware, &command, &mut host).status(),
        Status::Internal
    );
}

/// A batch whose host memory fails from access `n` on, for every `n`: the count says exactly
/// how far it got, and the table agrees.
#[test]
fn a_dma_fault_at_any_access_leaves_what_the_count_says() {
    const COUNT: u32 = 70;
    for map_type in [HASH, PERCPU_HASH, ARRAY] {
        let shape = Shape::new(map_type, 4, 12, 128);
        for opcode in [
            IoOpcode::BatchLookup,
            IoOpcode::BatchUpdate,
            IoOpcode::BatchDelete,
            IoOpcode::BatchDump,
            IoOpcode::BatchDumpDelete,
        ] {
            let deletes = [IoOpcode::BatchDelete, IoOpcode::BatchDumpDelete].contains(&opcode);
            if shape.is_array() && deletes {
                continue;
            }
            let mut fail_at = 0;
            loop {
                let finished = fault_at(&shape, opcode, COUNT, fail_at);
                fail_at += 1;
                if finished {
                    break;
                }
            }
            // A dump that fits the firmware's buffers writes twice: its keys, and its values.
            assert!(fail_at > 2, "{opcode}: no fault was met");
        }
    }
}

/// Returns whether the batch finished before the fault.
fn fault_at(shape: &Shape, opcode: IoOpcode, count: u32, fail_at: u64) -> bool {
    let context = format!("{opcode} on type {}, fault {fail_at}", shape.map_type);
    let mut firmware = firmware(Config::with_memory(1 << 16));
    let map = create(&mut firmware, shape);
    let old = vec![1; shape.value_bytes()];
    let new = vec![2; shape.value_bytes()];
    let mut host = Host::new(HOST_BYTES);
    for n in 0..count {
        assert_eq!(
            firmware.update(map, &n.to_le_bytes(), &old, 0),
            Status::Success
        );
        host.put(KEYS + 4 * u64::from(n), &n.to_le_bytes());
        host.put(VALUES + (n as usize * new.len()) as u64, &new);
        host.put(STATUSES + 2 * u64::from(n), &[0xee; 2]);
    }
    let before = if shape.is_array() { 128 } else { count };
    host.fail_at = Some(fail_at);
    let command = batch(opcode, map, shape, count, 0, 0);
    let (status, done, result) = batch_result(&io(&mut firmware, &command, &mut host));
    assert!(done <= count as usize);
    let mut value = vec![0; shape.value_bytes()];
    match opcode {
        IoOpcode::BatchLookup => {
            for n in 0..done {
                assert_eq!(status_at(&host, n), Status::Success, "{context}");
                let at = VALUES + (n * old.len()) as u64;
                assert_eq!(host.at(at, old.len()), old, "{context}");
            }
        }
        IoOpcode::BatchUpdate | IoOpcode::BatchDelete => {
            for n in 0..count {
                let found = firmware.lookup(map, &n.to_le_bytes(), &mut value);
                let applied = (n as usize) < done;
                if opcode == IoOpcode::BatchUpdate {
                    assert_eq!(
                        value,
                        if applied { &new[..] } else { &old[..] },
                        "{context}"
                    );
                } else {
                    assert_eq!(found == Status::NotFound, applied, "{context}");
                }
            }
        }
        _ => {
            for n in 0..done {
                let mut key = [0; 4];
                key.copy_from_slice(host.at(KEYS + 4 * n as u64, 4));
                let found = firmware.lookup(map, &key, &mut value);
                let deleted = opcode == IoOpcode::BatchDumpDelete;
                assert_eq!(found == Status::NotFound, deleted, "{context}");
            }
            // The dump goes on from its cursor and finds the rest, each key once.
            host.fail_at = None;
            let cursor = result.cursor.get();
            let command = batch(opcode, map, shape, 128, 0, cursor);
            let (_, rest, _) = batch_result(&io(&mut firmware, &command, &mut host));
            if status == Status::DmaFault {
                assert_eq!(done + rest, before as usize, "{context}");
            }
        }
    }
    if status == Status::DmaFault {
        return false;
    }
    let expected = match opcode {
        IoOpcode::BatchDump | IoOpcode::BatchDumpDelete if !shape.is_array() => Status::NotFound,
        _ => Status::Success,
    };
    assert_eq!((status, done), (expected, count as usize), "{context}");
    true
}

/// A batch over keys in unreadable memory, placed so that one key of a lane group is readable
/// and the next is not: those before it are done.
#[test]
fn a_batch_gets_as_far_as_its_arrays_can_be_read() {
    let shape = Shape::new(HASH, 4, 4, 64);
    let mut firmware = firmware(Config::with_memory(1 << 16));
    let map = create(&mut firmware, &shape);
    let mut host = Host::new(HOST_BYTES);
    for readable in [0u64, 1, 31, 32, 33, 50] {
        let command = batch(IoOpcode::BatchUpdate, map, &shape, 60, 0, 0);
        let mut body: BatchBody = command.body();
        let keys = BASE + HOST_BYTES as u64 - 4 * readable;
        for n in 0..readable {
            host.put(keys + 4 * n, &(n as u32).to_le_bytes());
        }
        body.keys = keys.into();
        let command = Submission::new(command.opcode, command.request(), &body).with_map(map);
        let (status, done, _) = batch_result(&io(&mut firmware, &command, &mut host));
        assert_eq!((status, done as u64), (Status::DmaFault, readable));
    }
}

/// Values of a dump that end in unwritable memory: whole chains arrive as far as they fit, and the
/// dump goes on behind them.
#[test]
fn a_dump_gets_as_far_as_its_arrays_can_be_written() {
    const COUNT: u32 = 60;
    for map_type in [HASH, LRU_HASH] {
        let shape = Shape::new(map_type, 4, 12, 64);
        for deletes in [false, true] {
            for writable in [0u64, 1, 7, 31, 59, 60] {
                let mut firmware = firmware(Config::with_memory(1 << 16));
                let map = create(&mut firmware, &shape);
                let stride = shape.value_bytes() as u64;
                for n in 0..COUNT {
                    let value = vec![n as u8; stride as usize];
                    let stored = firmware.update(map, &n.to_le_bytes(), &value, 0);
                    assert_eq!(stored, Status::Success);
                }
                let opcode = match deletes {
                    true => IoOpcode::BatchDumpDelete,
                    false => IoOpcode::BatchDump,
                };
                let mut host = Host::new(HOST_BYTES);
                let values = BASE + HOST_BYTES as u64 - stride * writable;
                let (mut keys, mut cursor) = (Vec::new(), 0);
                // The first dump meets the end of the memory, the second one has room.
                for at in [values, VALUES] {
                    let command = batch(opcode, map, &shape, COUNT, 0, cursor);
                    let mut body: BatchBody = command.body();
                    body.values = at.into();
                    let command =
                        Submission::new(command.opcode, command.request(), &body).with_map(map);
                    let (status, done, result) =
                        batch_result(&io(&mut firmware, &command, &mut host));
                    if at == values && writable < COUNT.into() {
                        assert_eq!(status, Status::DmaFault);
                        assert!(done as u64 <= writable, "{done} of {writable}");
                        // No more than one chain stands between.
                        assert!(done as u64 + 16 > writable, "{done} of {writable}");
                    } else {
                        assert_eq!(status, Status::NotFound);
                    }
                    for i in 0..done as u64 {
                        let key = host.at(KEYS + 4 * i, 4).to_vec();
                        let value = host.at(at + stride * i, 12);
                        assert_eq!(value, [key[0]; 12], "the value is the key's");
                        keys.push(key);
                    }
                    cursor = result.cursor.get();
                }
                keys.sort();
                keys.dedup();
                assert_eq!(keys.len(), COUNT as usize, "each key once");
                let left = firmware.map_info(map).unwrap().entries.get();
                assert_eq!(left, if deletes { 0 } else { COUNT });
            }
        }
    }
}
