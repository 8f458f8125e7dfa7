//! LPM_TRIE and BLOOM_FILTER: against a plain list, at their limits, and with a trie in memory
//! that is none.

mod common;

use common::*;
use offmap_abi::admin::{LimitDetail, MapAttr, MapCreateBody, MapCreated};
use offmap_abi::{AdminOpcode, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Firmware};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;
use zerocopy::IntoBytes;

const ELEMENT_OPS: u32 = 40_000;

fn length(key: &[u8]) -> u32 {
    u32::from_le_bytes(key[..4].try_into().unwrap())
}

fn bits(key: &[u8]) -> impl Iterator<Item = u8> {
    let bit = |i: usize| key[4 + i / 8] >> (7 - i % 8) & 1;
    (0..(key.len() - 4) * 8).take(length(key) as usize).map(bit)
}

fn key(prefix: u32, data: &[u8]) -> Vec<u8> {
    [&prefix.to_le_bytes(), data].concat()
}

/// A key and its value.
type Entry = (Vec<u8>, Vec<u8>);

/// Prefixes in the order in which they are listed: within another before it, 0 before 1.
struct List {
    shape: Shape,
    entries: Vec<Entry>,
}

impl List {
    fn too_long(&self, key: &[u8]) -> bool {
        length(key) as usize > (self.shape.key_size - 4) * 8
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|(entry, _)| {
            let parted = bits(entry).zip(bits(key)).map(|(a, b)| a.cmp(&b));
            let mut parted = parted.filter(|order| *order != Ordering::Equal);
            parted.next().unwrap_or(length(key).cmp(&length(entry)))
        })
    }

    fn lookup(&self, key: &[u8]) -> Result<Vec<u8>, Status> {
        let covers = |entry: &[u8]| {
            length(entry) <= length(key) && bits(entry).zip(bits(key)).all(|(a, b)| a == b)
        };
        let covering = self.entries.iter().filter(|(entry, _)| covers(entry));
        let longest = covering.max_by_key(|(entry, _)| length(entry));
        match longest {
            Some((_, value)) if !self.too_long(key) => Ok(value.clone()),
            _ => Err(Status::NotFound),
        }
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u32) -> Status {
        if self.too_long(key) {
            return Status::OutOfRange;
        }
        let entry = (key.to_vec(), value.to_vec());
        match self.find(key) {
            Ok(_) if flags == 1 => return Status::Exists,
            Ok(at) => self.entries[at] = entry,
            Err(_) if flags == 2 => return Status::NotFound,
            Err(_) if self.entries.len() == self.shape.max_entries as usize => return Status::Full,
            Err(at) => self.entries.insert(at, entry),
        }
        Status::Success
    }

    fn delete(&mut self, key: &[u8]) -> Status {
        if self.too_long(key) {
            return Status::OutOfRange;
        }
        match self.find(key) {
            Ok(at) => {
                self.entries.remove(at);
                Status::Success
            }
            Err(_) => Status::NotFound,
        }
    }

    /// The entries after `key`.
    fn after(&self, key: Option<&[u8]>) -> &[Entry] {
        match key
            .filter(|key| !self.too_long(key))
            .map(|key| self.find(key))
        {
            Some(Ok(at)) => &self.entries[at + 1..],
            _ => &self.entries,
        }
    }
}

struct Trie {
    random: Xoshiro256PlusPlus,
    firmware: Firmware<Vec<u8>>,
    host: Host,
    map: MapHandle,
    shape: Shape,
    list: List,
}

impl Trie {
    fn new(shape: Shape, seed: u64) -> Self {
        let mut firmware = firmware(Config::with_memory(4 << 20));
        let map = create(&mut firmware, &shape);
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            firmware,
            host: Host::new(HOST_BYTES),
            map,
            shape,
            list: List {
                shape,
                entries: Vec::new(),
            },
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    /// Few patterns of bits, so that prefixes meet; seldom a prefix that is too long.
    fn key(&mut self) -> Vec<u8> {
        let max = (self.shape.key_size as u64 - 4) * 8;
        let prefix = match self.below(40) {
            0 => max + 1 + self.below(9),
            1 => u64::from(u32::MAX),
            2..12 => max,
            _ => self.below(max + 1),
        };
        let mut data = vec![[0, 0xff, 0xa0][self.below(3) as usize]; self.shape.key_size - 4];
        for _ in 0..self.below(4) {
            let bit = self.below(max) as usize;
            data[bit / 8] ^= 0x80 >> (bit % 8);
        }
        key(prefix as u32, &data)
    }

    fn element(
        &mut self,
        opcode: IoOpcode,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        room: usize,
        flags: u32,
    ) -> Result<Vec<u8>, Status> {
        let inline = self.below(2) == 0;
        let host = &mut self.host;
        let command = element(opcode, self.map, key, value, room, flags, inline, host);
        let done = io(&mut self.firmware, &command, &mut self.host);
        match done.status() {
            Status::Success if room == 0 => Ok(Vec::new()),
            Status::Success => Ok(returned(&command, &done, room, &self.host)),
            status => Err(status),
        }
    }

    /// A dump from a key on: what it returned, and how it ended.
    fn dump(&mut self, after: Option<&[u8]>, count: u32) -> (Vec<Entry>, Status) {
        self.host.put(KEYS, after.unwrap_or(&[0xee; 8]));
        let from = u64::from(after.is_some());
        let command = batch(IoOpcode::BatchDump, self.map, &self.shape, count, 0, from);
        let done = io(&mut self.firmware, &command, &mut self.host);
        let (status, done, result) = batch_result(&done);
        assert_eq!(result.cursor.get(), from + done as u64);
        (self.dumped(done), status)
    }

    fn dumped(&self, done: usize) -> Vec<Entry> {
        let (keys, values) = (self.shape.key_size, self.shape.value_size);
        let at = |base, size, i| self.host.at(base + (i * size) as u64, size).to_vec();
        (0..done)
            .map(|i| (at(KEYS, keys, i), at(VALUES, values, i)))
            .collect()
    }

    fn step(&mut self) {
        let key = self.key();
        let key_size = self.shape.key_size;
        let value = vec![self.below(256) as u8; self.shape.value_size];
        match self.below(100) {
            0..40 => {
                let flags = self.below(4).saturating_sub(1) as u32;
                let got = self.element(IoOpcode::Update, Some(&key), Some(&value), 0, flags);
                let expected = self.list.update(&key, &value, flags);
                assert_eq!(got.err().unwrap_or(Status::Success), expected, "{key:?}");
            }
            40..55 => {
                let got = self.element(IoOpcode::Delete, Some(&key), None, 0, 0);
                let expected = self.list.delete(&key);
                assert_eq!(got.err().unwrap_or(Status::Success), expected, "{key:?}");
            }
            55..75 => {
                let got = self.element(IoOpcode::Lookup, Some(&key), None, value.len(), 0);
                assert_eq!(got, self.list.lookup(&key), "{key:?}");
                let mut value = value;
                let status = self.firmware.engine_lookup(1, self.map, &key, &mut value);
                let engine = match status {
                    Status::Success => Ok(value),
                    status => Err(status),
                };
                assert_eq!(engine, self.list.lookup(&key), "an engine: {key:?}");
            }
            75..90 => {
                let got = self.element(IoOpcode::GetNext, Some(&key), None, key_size, 0);
                let next = self.list.after(Some(&key)).first();
                assert_eq!(got.ok(), next.map(|(key, _)| key.clone()), "{key:?}");
            }
            90..93 => {
                let got = self.element(IoOpcode::GetFirst, None, None, key_size, 0);
                let first = self.list.after(None).first();
                assert_eq!(got.ok(), first.map(|(key, _)| key.clone()));
            }
            93 => {
                let got = self.element(IoOpcode::LookupAndDelete, Some(&key), None, value.len(), 0);
                assert_eq!(got, Err(Status::Unsupported));
            }
            94..97 => {
                let count = self.below(20) as u32;
                let after = (self.below(3) != 0).then_some(&key[..]);
                let expected = self.list.after(after);
                let got = expected.len().min(count as usize);
                let expected = expected[..got].to_vec();
                let status = match got < count as usize {
                    true => Status::NotFound,
                    false => Status::Success,
                };
                assert_eq!(
                    self.dump(after, count),
                    (expected, status),
                    "after {after:?}"
                );
            }
            pick => {
                let updates = pick == 97;
                let keys: Vec<_> = (0..10).map(|_| self.key()).collect();
                self.host.put(KEYS, &keys.concat());
                self.host.put(VALUES, &value.repeat(10));
                let opcode = match updates {
                    true => IoOpcode::BatchUpdate,
                    false => IoOpcode::BatchDelete,
                };
                let command = batch(opcode, self.map, &self.shape, 10, 0, 0);
                let done = io(&mut self.firmware, &command, &mut self.host);
                let (status, done, _) = batch_result(&done);
                let mut applied = 0;
                let mut expected = Status::Success;
                for key in &keys {
                    expected = match updates {
                        true => self.list.update(key, &value, 0),
                        false => self.list.delete(key),
                    };
                    if expected != Status::Success {
                        break;
                    }
                    applied += 1;
                }
                assert_eq!((status, done), (expected, applied), "{opcode}: {keys:?}");
            }
        }
    }
}

const SHAPES: [(usize, usize, u32); 6] = [
    (5, 1, 3),
    (6, 8, 40),
    (8, 8, 50),
    (13, 3, 300),
    (20, 64, 200),
    (260, 70, 60),
];

#[test]
fn tries_do_what_a_list_does() {
    for (seed, (key_size, value_size, max_entries)) in SHAPES.into_iter().enumerate() {
        let shape = Shape::new(LPM, key_size, value_size, max_entries);
        let mut trie = Trie::new(shape, seed as u64);
        for _ in 0..ELEMENT_OPS {
            trie.step();
        }
        let (status, info) = query(&mut trie.firmware, trie.map);
        let entries = trie.list.entries.len();
        assert_eq!(
            (status, info.entries.get() as usize),
            (Status::Success, entries)
        );
        assert_eq!(info.longest_chain.get(), 0);
        let (all, _) = trie.dump(None, max_entries + 1);
        assert_eq!(all, trie.list.entries);
        // Nothing was lost: all of it goes, and as much fits as before.
        for (key, _) in all {
            assert_eq!(trie.firmware.delete(trie.map, &key), Status::Success);
        }
        assert_eq!(
            trie.firmware
                .get_next(trie.map, None, &mut vec![0; key_size]),
            Status::NotFound
        );
        let value = vec![1; value_size];
        for i in 0..max_entries {
            let mut data = vec![0; key_size - 4];
            data[0] = (i * 5) as u8;
            if let Some(byte) = data.get_mut(1) {
                *byte = (i >> 3) as u8;
            }
            let key = key(key_size as u32 * 8 - 32, &data);
            assert_eq!(
                trie.firmware.update(trie.map, &key, &value, 1),
                Status::Success,
                "{i}"
            );
        }
    }
}

/// As many nodes without a value as there can be, and no more prefixes than there may be.
#[test]
fn a_full_trie_of_leaves_has_room_for_its_inner_nodes() {
    let shape = Shape::new(LPM, 5, 4, 256);
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let map = create(&mut firmware, &shape);
    for round in 0..3 {
        for byte in 0..=255u8 {
            let key = key(8, &[byte.wrapping_mul(37)]);
            assert_eq!(firmware.update(map, &key, &[byte; 4], 1), Status::Success);
        }
        assert_eq!(
            firmware.update(map, &key(7, &[9]), &[0; 4], 0),
            Status::Full
        );
        assert_eq!(
            firmware.update(map, &key(8, &[9]), &[round; 4], 2),
            Status::Success
        );
        assert_eq!(
            firmware.update(map, &key(7, &[9]), &[0; 4], 2),
            Status::NotFound
        );
        for byte in 0..=255u8 {
            assert_eq!(firmware.delete(map, &key(8, &[byte])), Status::Success);
        }
    }
}

/// A dump whose values take many steps; while it runs, and where host memory fails, its count
/// says what it returned.
#[test]
fn a_dump_goes_on_after_its_last_key() {
    let shape = Shape::new(LPM, 8, 4000, 100);
    let mut trie = Trie::new(shape, 1);
    trie.host = Host::new(0x10_0000);
    for i in 0..100u8 {
        let key = key(24 + u32::from(i % 9), &[10, i / 3, i, i << 3]);
        let value = vec![i; 4000];
        assert_eq!(
            trie.firmware.update(trie.map, &key, &value, 0),
            Status::Success
        );
        trie.list.update(&key, &value, 0);
    }
    let entries = trie.list.entries.clone();
    let command = batch(IoOpcode::BatchDump, trie.map, &shape, 101, 0, 0);
    let (done, steps) = io_steps(&mut trie.firmware, 1, &command, &mut trie.host);
    let (status, count, _) = batch_result(&done);
    assert_eq!((status, count), (Status::NotFound, entries.len()));
    assert!(steps > 1, "the values are {} bytes", entries.len() * 4000);
    assert_eq!(trie.dumped(count), entries);
    for fail_at in 0.. {
        (trie.host.accesses, trie.host.fail_at) = (0, Some(fail_at));
        let (got, status) = trie.dump(None, 101);
        assert_eq!(got, entries[..got.len()]);
        if status == Status::NotFound {
            break;
        }
        assert_eq!(status, Status::DmaFault);
        trie.host.fail_at = None;
        let last = got.last().map(|(key, _)| key.clone());
        let (rest, _) = trie.dump(last.as_deref(), 101);
        assert_eq!(rest, entries[got.len()..]);
    }
}

/// Links that lead back, away, or nowhere; references out of the pool; prefixes too long.
#[test]
fn a_trie_in_memory_that_is_none_is_noticed() {
    let shape = Shape::new(LPM, 8, 8, 8);
    // Nodes of 24 bytes after the description and the state line.
    let node = |index: u64| 128 + index * 24;
    let keys = [
        key(8, &[10, 0, 0, 0]),
        key(16, &[10, 1, 0, 0]),
        key(16, &[10, 2, 0, 0]),
    ];
    let word = |word: u32| word.to_le_bytes();
    // Where the second prefix's node lies, in the order of creation.
    let damage: [(&str, u64, [u8; 4]); 8] = [
        ("a link to itself", node(0), word(1)),
        ("a link out of the pool", node(0), word(16)),
        ("a link far out", node(0), word(u32::MAX)),
        ("a root out of the pool", 64 + 20, word(99)),
        ("a child that leads back", node(1), word(1)),
        ("a prefix too long", node(0) + 12, word(33)),
        ("a value out of the pool", node(1) + 8, word(9)),
        ("more entries than there may be", 64, word(9)),
    ];
    for (what, at, bytes) in damage {
        let mut firmware = firmware(Config::with_memory(1 << 16));
        let map = create(&mut firmware, &shape);
        for key in &keys {
            assert_eq!(firmware.update(map, key, &[7; 8], 0), Status::Success);
        }
        firmware.write_memory(DevAddr(at), &bytes);
        let mut noticed = 0;
        let mut see = |status: Status| {
            let known = [Status::Success, Status::NotFound, Status::Internal];
            assert!(known.contains(&status), "{what}: {status}");
            noticed += u32::from(status == Status::Internal);
        };
        for (i, key) in keys.iter().chain([&key(32, &[10, 1, 2, 3])]).enumerate() {
            let mut next = [0; 8];
            see(firmware.lookup(map, key, &mut next));
            see(firmware.get_next(map, Some(key), &mut next));
            see(firmware.get_next(map, None, &mut next));
            see(firmware.update(map, key, &[i as u8; 8], 0));
        }
        let mut host = Host::new(HOST_BYTES);
        let command = batch(IoOpcode::BatchDump, map, &shape, 60, 0, 0);
        see(io(&mut firmware, &command, &mut host).status());
        for key in &keys {
            see(firmware.delete(map, key));
        }
        assert!(noticed > 0, "{what}: not noticed");
    }
}

fn filter(firmware: &mut Firmware<Vec<u8>>, extra: u64, seed: u64) -> (Status, MapHandle) {
    const ATTR: u64 = BASE + 0x100;
    let attr = MapAttr {
        map_extra: extra.into(),
        ..MapAttr::default()
    };
    let mut host = Host::new(HOST_BYTES);
    host.put(ATTR, attr.as_bytes());
    let mut shape = Shape::new(BLOOM, 6, 0, 64);
    shape.seed = seed;
    let body = MapCreateBody {
        attr: ATTR.into(),
        attr_len: (attr.as_bytes().len() as u32).into(),
        ..shape.body()
    };
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body);
    let done = admin(firmware, &command, &mut host).0;
    let created: MapCreated = done.payload_as();
    (done.status(), MapHandle(created.map.get()))
}

#[test]
fn filters_forget_nothing_and_claim_little() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let mut shares = Vec::new();
    for (extra, seed) in [(0, 1), (1, 1), (5, 1), (15, 1), (5, 2)] {
        let (status, map) = filter(&mut firmware, extra, seed);
        assert_eq!(status, Status::Success);
        let mut keys = vec![[0u8; 6]; 64];
        for key in &mut keys {
            random.fill_bytes(key);
            assert_eq!(firmware.update(map, key, &[], 0), Status::Success);
        }
        for key in &keys {
            assert_eq!(firmware.lookup(map, key, &mut []), Status::Success);
            assert_eq!(
                firmware.engine_lookup(0, map, key, &mut []),
                Status::Success
            );
        }
        let mut wrong = 0;
        for _ in 0..4000 {
            let mut key = [0; 6];
            random.fill_bytes(&mut key);
            let status = firmware.lookup(map, &key, &mut []);
            assert!([Status::Success, Status::NotFound].contains(&status));
            wrong += u32::from(status == Status::Success);
        }
        shares.push(wrong);
    }
    // 0 stands for 5 functions. One alone is wrong for two keys in five: 64 of 128 bits' worth.
    assert!(
        shares[0] < 400 && shares[2] < 400 && shares[3] < 40,
        "{shares:?}"
    );
    assert!(shares[1] > 400, "{shares:?}");
}

#[test]
fn filters_have_two_commands() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    for extra in [16, 1 << 32, u64::MAX] {
        assert_eq!(filter(&mut firmware, extra, 0).0, Status::InvalidField);
    }
    let (_, map) = filter(&mut firmware, 0, 0);
    let mut host = Host::new(HOST_BYTES);
    let mut shape = Shape::new(BLOOM, 6, 0, 64);
    let value = shape.value_bytes();
    let mut run = |opcode, flags, room| {
        let key = Some(&[1; 6][..]);
        let given = (opcode == IoOpcode::Update).then_some(&[][..]);
        for inline in [false, true] {
            let command = element(opcode, map, key, given, room, flags, inline, &mut host);
            let status = io(&mut firmware, &command, &mut host).status();
            if inline {
                return status;
            }
        }
        unreachable!("the second is inline")
    };
    assert_eq!(run(IoOpcode::Lookup, 0, value), Status::NotFound);
    for flags in 1..3 {
        assert_eq!(run(IoOpcode::Update, flags, 0), Status::InvalidField);
    }
    assert_eq!(run(IoOpcode::Lookup, 0, value), Status::NotFound);
    assert_eq!(run(IoOpcode::Update, 0, 0), Status::Success);
    assert_eq!(run(IoOpcode::Lookup, 0, value), Status::Success);
    for opcode in [
        IoOpcode::Delete,
        IoOpcode::LookupAndDelete,
        IoOpcode::GetFirst,
    ] {
        assert_eq!(run(opcode, 0, 6), Status::Unsupported, "{opcode}");
    }
    assert_eq!(run(IoOpcode::GetNext, 0, 6), Status::Unsupported);
    for &opcode in IoOpcode::ALL.iter().filter(|opcode| opcode.is_batch()) {
        let command = batch(opcode, map, &shape, 3, 0, 0);
        let status = io(&mut firmware, &command, &mut host).status();
        assert_eq!(status, Status::Unsupported, "{opcode}");
    }
    // Sizes that the types do not have.
    for (map_type, key_size, value_size) in [
        (BLOOM, 0, 0),
        (BLOOM, 4, 1),
        (LPM, 4, 8),
        (LPM, 261, 8),
        (LPM, 8, 0),
    ] {
        shape = Shape::new(map_type, key_size, value_size, 4);
        let done = create_with(&mut firmware, &shape.body());
        assert_eq!(done.status(), Status::InvalidField, "{shape:?}");
    }
    // 2^32 bits, and 2^31 nodes with values as long as this memory, are too much.
    let longest = firmware.identify().value_bytes.get() as usize;
    for shape in [
        Shape::new(BLOOM, 4, 0, 1 << 31),
        Shape::new(LPM, 260, longest, 1 << 31),
    ] {
        let done = create_with(&mut firmware, &shape.body());
        assert_eq!(done.status(), Status::NoMemory, "{shape:?}");
        let detail: LimitDetail = done.payload_as();
        assert!(detail.asked.get() > 1 << 29);
    }
}
