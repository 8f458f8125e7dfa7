//! Random operation sequences against a plain model, through commands, for every map type.

mod common;

use common::*;
use offmap_abi::{IoOpcode, MapHandle, Status};
use offmap_firmware_model::{Config, Firmware};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

const OPERATIONS: u32 = 60_000;

struct Run {
    random: Xoshiro256PlusPlus,
    firmware: Firmware<Vec<u8>>,
    host: Host,
    map: MapHandle,
    model: Model,
    context: String,
}

impl Run {
    fn new(shape: Shape, seed: u64) -> Self {
        let mut config = Config::with_memory(1 << 20);
        config.batch = 96;
        let mut firmware = firmware(config);
        let map = create(&mut firmware, &shape);
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            firmware,
            host: Host::new(HOST_BYTES),
            map,
            model: Model::new(shape),
            context: format!("seed {seed}, {shape:?}"),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn shape(&self) -> Shape {
        self.model.shape
    }

    /// A key out of a space somewhat larger than the map.
    fn key(&mut self) -> Vec<u8> {
        let space = u64::from(self.shape().max_entries) * 5 / 4 + 2;
        let n = self.below(space);
        let mut key = vec![0x5a; self.shape().key_size];
        let digits = n.to_le_bytes();
        let len = key.len().min(8);
        key[..len].copy_from_slice(&digits[..len]);
        if self.shape().is_array() {
            key.copy_from_slice(&digits[..4]);
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let mut value = vec![0; self.shape().value_bytes()];
        self.random.fill_bytes(&mut value);
        value
    }

    fn lookup(&mut self) {
        let (key, inline) = (self.key(), self.below(2) == 0);
        let len = self.shape().value_bytes();
        let delete = self.below(8) == 0;
        let opcode = if delete {
            IoOpcode::LookupAndDelete
        } else {
            IoOpcode::Lookup
        };
        let room = len + self.below(3) as usize;
        let host = &mut self.host;
        let command = element(opcode, self.map, Some(&key), None, room, 0, inline, host);
        let done = io(&mut self.firmware, &command, host);
        let expected = match delete {
            true if self.shape().is_array() => Err(Status::Unsupported),
            _ => self.model.lookup(&key),
        };
        match expected {
            Ok(value) => {
                assert_eq!(done.status(), Status::Success, "{}", self.context);
                let got = returned(&command, &done, len, &self.host);
                assert_eq!(got, value, "{}", self.context);
                if delete {
                    self.model.delete(&key);
                }
            }
            Err(status) => assert_eq!(done.status(), status, "{}", self.context),
        }
    }

    fn update(&mut self) {
        let (key, value, flags) = (self.key(), self.value(), self.below(3) as u32);
        let inline = self.below(2) == 0;
        let host = &mut self.host;
        let opcode = IoOpcode::Update;
        let map = self.map;
        let command = element(
            opcode,
            map,
            Some(&key),
            Some(&value),
            0,
            flags,
            inline,
            host,
        );
        let done = io(&mut self.firmware, &command, host);
        let expected = self.model.update(&key, &value, flags);
        assert_eq!(done.status(), expected, "flags {flags} {}", self.context);
    }

    fn delete(&mut self) {
        let (key, inline) = (self.key(), self.below(2) == 0);
        let host = &mut self.host;
        let command = element(
            IoOpcode::Delete,
            self.map,
            Some(&key),
            None,
            0,
            0,
            inline,
            host,
        );
        let done = io(&mut self.firmware, &command, host);
        assert_eq!(done.status(), self.model.delete(&key), "{}", self.context);
    }

    fn next_key(&mut self, key: Option<&[u8]>, inline: bool) -> Result<Vec<u8>, Status> {
        let len = self.shape().key_size;
        let opcode = match key {
            Some(_) => IoOpcode::GetNext,
            None => IoOpcode::GetFirst,
        };
        let host = &mut self.host;
        let command = element(opcode, self.map, key, None, len, 0, inline, host);
        let done = io(&mut self.firmware, &command, host);
        match done.status() {
            Status::Success => Ok(returned(&command, &done, len, host)),
            status => Err(status),
        }
    }

    /// The keys that iteration visits, in its order.
    fn walk(&mut self) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let inline = self.below(2) == 0;
            match self.next_key(keys.last().cloned().as_deref(), inline) {
                Ok(key) => keys.push(key),
                Err(status) => {
                    assert_eq!(status, Status::NotFound, "{}", self.context);
                    return keys;
                }
            }
            assert!(keys.len() <= self.model.entries.len(), "{}", self.context);
        }
    }

    /// Iteration visits each key once; arrays in order; a missing key means the first.
    fn check_iteration(&mut self) {
        let keys = self.walk();
        assert_eq!(keys.len(), self.model.entries.len(), "{}", self.context);
        if self.shape().is_array() {
            for (index, key) in keys.iter().enumerate() {
                assert_eq!(*key, (index as u32).to_le_bytes(), "{}", self.context);
            }
        }
        let mut sorted = keys.clone();
        sorted.sort();
        let expected: Vec<_> = self.model.entries.keys().cloned().collect();
        assert_eq!(sorted, expected, "{}", self.context);
        let key = self.key();
        if !self.model.entries.contains_key(&key) {
            let first = self.next_key(None, true);
            assert_eq!(self.next_key(Some(&key), true), first, "{}", self.context);
        }
    }

    /// A dump in pieces yields the map, each entry once, in iteration order.
    fn check_dump(&mut self) {
        let order = self.walk();
        let (key_size, stride) = (self.shape().key_size, self.shape().value_bytes());
        let mut cursor = 0;
        let mut keys = Vec::new();
        let mut count = 1 + self.below(40) as u32;
        loop {
            let command = batch(
                IoOpcode::BatchDump,
                self.map,
                &self.shape(),
                count,
                0,
                cursor,
            );
            let done = io(&mut self.firmware, &command, &mut self.host);
            let (status, got, result) = batch_result(&done);
            assert!(got <= count as usize, "{}", self.context);
            for index in 0..got {
                let key = self.host.at(KEYS + (index * key_size) as u64, key_size);
                let value = self.host.at(VALUES + (index * stride) as u64, stride);
                assert_eq!(
                    self.model.entries.get(key).map(Vec::as_slice),
                    Some(value),
                    "{}",
                    self.context
                );
                keys.push(key.to_vec());
            }
            match status {
                Status::Success => cursor = result.cursor.get(),
                Status::NotFound => break,
                Status::NoSpace => {
                    assert_eq!(got, 0);
                    assert!(result.needed.get() > count, "{}", self.context);
                    // The cursor names the bucket that does not fit, past the empty ones.
                    assert!(result.cursor.get() >= cursor, "{}", self.context);
                    cursor = result.cursor.get();
                    count = result.needed.get();
                }
                status => panic!("{status} {}", self.context),
            }
        }
        assert_eq!(keys, order, "{}", self.context);
    }

    fn put_keys(&mut self, keys: &[Vec<u8>]) {
        self.host.put(KEYS, &keys.concat());
    }

    fn batch_lookup(&mut self) {
        let count = self.below(97) as usize;
        let keys: Vec<_> = (0..count).map(|_| self.key()).collect();
        self.put_keys(&keys);
        let stride = self.shape().value_bytes();
        self.host.put(VALUES, &vec![0xee; count * stride]);
        let shape = self.shape();
        let command = batch(IoOpcode::BatchLookup, self.map, &shape, count as u32, 0, 0);
        let done = io(&mut self.firmware, &command, &mut self.host);
        let (status, got, _) = batch_result(&done);
        assert_eq!((status, got), (Status::Success, count), "{}", self.context);
        for (index, key) in keys.iter().enumerate() {
            let value = self.host.at(VALUES + (index * stride) as u64, stride);
            match self.model.lookup(key) {
                Ok(expected) => {
                    assert_eq!(status_at(&self.host, index), Status::Success);
                    assert_eq!(value, expected, "{}", self.context);
                }
                Err(expected) => {
                    assert_eq!(status_at(&self.host, index), expected, "{}", self.context);
                    assert!(value.iter().all(|&b| b == 0xee), "a miss wrote a value");
                }
            }
        }
    }

    fn batch_change(&mut self, update: bool) {
        let count = self.below(60) as usize;
        let keys: Vec<_> = (0..count).map(|_| self.key()).collect();
        let values: Vec<_> = (0..count).map(|_| self.value()).collect();
        self.put_keys(&keys);
        self.host.put(VALUES, &values.concat());
        let flags = if update { self.below(3) as u32 } else { 0 };
        let opcode = match update {
            true => IoOpcode::BatchUpdate,
            false => IoOpcode::BatchDelete,
        };
        let command = batch(opcode, self.map, &self.shape(), count as u32, flags, 0);
        let done = io(&mut self.firmware, &command, &mut self.host);
        let (status, got, _) = batch_result(&done);
        if !update && self.shape().is_array() {
            assert_eq!(done.status(), Status::Unsupported, "{}", self.context);
            return;
        }
        let mut expected = (Status::Success, 0);
        for (key, value) in keys.iter().zip(&values) {
            let result = match update {
                true => self.model.update(key, value, flags),
                false => self.model.delete(key),
            };
            assert_eq!(
                status_at(&self.host, expected.1),
                result,
                "{}",
                self.context
            );
            if result != Status::Success {
                expected.0 = result;
                break;
            }
            expected.1 += 1;
        }
        assert_eq!((status, got), expected, "{}", self.context);
    }

    /// Empties part of a hash map by a dump that deletes.
    fn dump_delete(&mut self) {
        let count = 8 + self.below(40) as u32;
        let (key_size, stride) = (self.shape().key_size, self.shape().value_bytes());
        let shape = self.shape();
        let command = batch(IoOpcode::BatchDumpDelete, self.map, &shape, count, 0, 0);
        let done = io(&mut self.firmware, &command, &mut self.host);
        if self.shape().is_array() {
            assert_eq!(done.status(), Status::Unsupported, "{}", self.context);
            return;
        }
        let (status, got, _) = batch_result(&done);
        assert!(
            [Status::Success, Status::NotFound, Status::NoSpace].contains(&status),
            "{status} {}",
            self.context
        );
        for index in 0..got {
            let key = self.host.at(KEYS + (index * key_size) as u64, key_size);
            let value = self.host.at(VALUES + (index * stride) as u64, stride);
            let removed = self.model.entries.remove(key);
            assert_eq!(removed.as_deref(), Some(value), "{}", self.context);
        }
        if status == Status::NotFound {
            assert!(self.model.entries.is_empty(), "{}", self.context);
        }
    }

    fn check_info(&mut self) {
        let (status, info) = query(&mut self.firmware, self.map);
        assert_eq!(status, Status::Success);
        let entries = info.entries.get() as usize;
        assert_eq!(entries, self.model.entries.len(), "{}", self.context);
        if self.shape().is_array() || entries == 0 {
            assert_eq!(info.longest_chain.get(), 0, "{}", self.context);
        } else {
            assert_ne!(info.longest_chain.get(), 0, "{}", self.context);
        }
    }

    fn step(&mut self) {
        match self.below(1000) {
            0..300 => self.lookup(),
            300..700 => self.update(),
            700..900 => self.delete(),
            900..930 => self.batch_lookup(),
            930..950 => self.batch_change(true),
            950..965 => self.batch_change(false),
            965..975 => self.check_dump(),
            975..985 => self.check_iteration(),
            985..990 => self.dump_delete(),
            _ => self.check_info(),
        }
    }
}

fn run(shape: Shape, seed: u64) {
    let mut run = Run::new(shape, seed);
    for _ in 0..OPERATIONS {
        run.step();
    }
    run.check_iteration();
    run.check_dump();
}

#[test]
fn hash_agrees_with_the_model() {
    run(Shape::new(HASH, 8, 64, 61), 1);
    run(Shape::new(HASH, 4, 8, 2), 2);
    run(Shape::new(HASH, 1, 1, 1), 3);
    run(Shape::new(HASH, 19, 13, 200), 4);
    run(Shape::new(HASH, 16, 300, 100), 5);
}

#[test]
fn array_agrees_with_the_model() {
    run(Shape::new(ARRAY, 4, 8, 50), 11);
    run(Shape::new(ARRAY, 4, 5, 1), 12);
    run(Shape::new(ARRAY, 4, 100, 77), 13);
}

#[test]
fn percpu_hash_agrees_with_the_model() {
    run(Shape::new(PERCPU_HASH, 8, 8, 40), 21);
    run(Shape::new(PERCPU_HASH, 5, 3, 100), 22);
}

#[test]
fn percpu_array_agrees_with_the_model() {
    run(Shape::new(PERCPU_ARRAY, 4, 8, 40), 31);
    run(Shape::new(PERCPU_ARRAY, 4, 21, 9), 32);
}

/// A walk that deletes what it has seen, and other keys too, never skips a key that stays.
#[test]
fn deletes_during_a_walk_skip_no_survivor() {
    for seed in 100..160 {
        // Few home buckets in use and long chains: every key in one bucket for some seeds.
        let mut run = Run::new(Shape::new(HASH, 4, 4, 64), seed);
        for n in 0u32..64 {
            let key = n.to_le_bytes();
            assert_eq!(run.firmware.update(run.map, &key, &key, 0), Status::Success);
            run.model.update(&key, &key, 0);
        }
        let mut visited: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let mut current: Option<Vec<u8>> = None;
        while let Ok(next) = run.next_key(current.as_deref(), true) {
            *visited.entry(next.clone()).or_default() += 1;
            for _ in 0..run.below(3) {
                let victim = (run.below(64) as u32).to_le_bytes();
                // Deleting the current key restarts a walk; that is tested elsewhere.
                if victim[..] != next[..] {
                    let status = run.firmware.delete(run.map, &victim);
                    assert_eq!(status, run.model.delete(&victim), "{}", run.context);
                }
            }
            if let Some(previous) = current.replace(next) {
                let status = run.firmware.delete(run.map, &previous);
                assert_eq!(status, run.model.delete(&previous), "{}", run.context);
            }
        }
        for key in run.model.entries.keys() {
            assert_eq!(visited.get(key), Some(&1), "{}: {key:?}", run.context);
        }
        assert!(visited.values().all(|&n| n == 1), "{}", run.context);
    }
}

#[test]
fn deleting_the_current_key_restarts_the_walk() {
    let mut run = Run::new(Shape::new(HASH, 4, 4, 32), 200);
    for n in 0u32..32 {
        let key = n.to_le_bytes();
        assert_eq!(run.firmware.update(run.map, &key, &key, 0), Status::Success);
    }
    let mut left = 32;
    let mut current: Option<Vec<u8>> = None;
    while let Ok(next) = run.next_key(current.as_deref(), false) {
        assert_eq!(run.firmware.delete(run.map, &next), Status::Success);
        left -= 1;
        current = Some(next);
    }
    assert_eq!(left, 0);
}
