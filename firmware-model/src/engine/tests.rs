//! Engines beside each other, under thousands of seeded schedules; and the mistakes that these find.

extern crate std;

mod others;

use super::schedule::Seeded;
use super::{DataOp, Engines, Turn};
use crate::access::Part;
use crate::{Config, Firmware, HostFault, HostMemory, Progress};
use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use offmap_abi::admin::{MapAttr, MapCreateBody, MapCreated};
use offmap_abi::hash::KeyHash;
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{
    AdminOpcode, IoOpcode, MapHandle, RequestId, Status, Submission, SubmissionFlags,
};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// What is wrong on purpose, so that it is seen that a wrong device would be found out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planted {
    /// Readers do not look at the version again after they have copied.
    pub(super) trusts_copies: bool,
    /// Changes of entries and chains take no lock.
    pub(super) entries_unlocked: bool,
    /// Changes of what a table has once take no lock.
    pub(super) tables_unlocked: bool,
}

impl Planted {
    pub(super) fn ignores(self, part: Part) -> bool {
        match part {
            Part::Table(_) => self.tables_unlocked,
            Part::Entry(_) => self.entries_unlocked,
        }
    }
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const HASH_OF_MAPS: u32 = 13;
const QUEUE: u32 = 22;
const STACK: u32 = 23;
const BLOOM: u32 = 30;

/// Words of a value; each says whose it is and which one.
const WORDS: usize = 5;
const VALUE: usize = 8 * WORDS;
const ENGINES: u32 = 5;
const MEMORY: u64 = 1 << 18;
const SEED: u64 = 7;
/// Request of a dump.
const DUMP: u64 = 99;

/// Host memory; each engine has a part of it.
struct Host(Vec<u8>);
const PART: u64 = 0x1000;

impl HostMemory for Host {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let from = self.0.get(iova as usize..).ok_or(HostFault)?;
        into.copy_from_slice(from.get(..into.len()).ok_or(HostFault)?);
        Ok(())
    }
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        let into = self.0.get_mut(iova as usize..).ok_or(HostFault)?;
        into.get_mut(..from.len())
            .ok_or(HostFault)?
            .copy_from_slice(from);
        Ok(())
    }
}

fn host() -> Host {
    Host(vec![0; (PART * u64::from(ENGINES + 1)) as usize])
}

fn admin(firmware: &mut Firmware<Vec<u8>>, command: &Submission, host: &mut Host) -> (Status, u32) {
    let mut progress = firmware.admin(command, host);
    loop {
        match progress {
            Progress::Done(done) => {
                return (done.status(), done.payload_as::<MapCreated>().map.get());
            }
            Progress::More => progress = firmware.resume(host),
        }
    }
}

fn create(
    firmware: &mut Firmware<Vec<u8>>,
    map_type: u32,
    (key, value, max_entries): (u32, u32, u32),
    template: Option<MapHandle>,
) -> MapHandle {
    let mut host = host();
    let percpu = matches!(map_type, PERCPU_HASH | PERCPU_ARRAY);
    let mut body = MapCreateBody {
        map_type: map_type.into(),
        key_size: key.into(),
        value_size: value.into(),
        max_entries: max_entries.into(),
        cpu_slots: (if percpu { 2 } else { 0 }).into(),
        flags: 0.into(),
        seed: SEED.into(),
        attr: 0.into(),
        attr_len: 0.into(),
        reserved: 0.into(),
    };
    if let Some(template) = template {
        let attr = MapAttr {
            inner_map: template.0.into(),
            ..zerocopy::FromZeros::new_zeroed()
        };
        let bytes = zerocopy::IntoBytes::as_bytes(&attr);
        host.write(0, bytes).unwrap();
        body.attr_len = (bytes.len() as u32).into();
    }
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), &body);
    let (status, map) = admin(firmware, &command, &mut host);
    assert_eq!(status, Status::Success, "type {map_type}");
    MapHandle(map)
}

fn firmware() -> Firmware<Vec<u8>> {
    let config = Config {
        engines: ENGINES,
        ..Config::with_memory(MEMORY)
    };
    Firmware::new(config, vec![0; MEMORY as usize]).unwrap()
}

/// A value of key number `id`.
fn value(id: u64, n: u64) -> Vec<u8> {
    (id << 32 | n).to_le_bytes().repeat(WORDS)
}

/// Whether it is one of that key, whole.
fn check_value(id: u64, bytes: &[u8]) -> Result<(), String> {
    let words: BTreeSet<&[u8]> = bytes.chunks(8).collect();
    let word = bytes.first_chunk().copied().map(u64::from_le_bytes);
    match word {
        Some(_) if words.len() != 1 => Err(format!("torn value of key {id}: {bytes:x?}")),
        Some(word) if word >> 32 == id => Ok(()),
        _ => Err(format!("foreign value of key {id}: {bytes:x?}")),
    }
}

/// A command on one element, whose operands are in the engine's part of host memory.
fn element(opcode: IoOpcode, map: MapHandle, engine: u32, key: &[u8], value: usize) -> Submission {
    let base = u64::from(engine) * PART;
    let mut body = ElementBody {
        map_flags: 0.into(),
        key_len: (key.len() as u32).into(),
        value_len: (value as u32).into(),
        reserved: 0.into(),
        key: [0; 16],
        value: match value {
            0 => [0; 16],
            _ => IovaRef::field(base),
        },
    };
    body.key[..key.len()].copy_from_slice(key);
    Submission::new(opcode.0, RequestId(engine.into()), &body)
        .with_map(map)
        .with_flags(SubmissionFlags::KEY_INLINE)
}

/// Keys of one home bucket of 4, so that their chain has several buckets, some with the same tag.
fn colliding(count: usize) -> Vec<Vec<u8>> {
    let hash = KeyHash::new(SEED);
    let mut keys: Vec<Vec<u8>> = (0u64..)
        .map(|n| n.to_le_bytes().to_vec())
        .filter(|key| hash.hash(key) % 4 == 1)
        .take(count * 64)
        .collect();
    keys.sort_by_key(|key| hash.hash(key) >> 56);
    keys.truncate(count);
    keys
}

/// Prefixes that lie within one another and beside each other.
fn prefixes(count: usize) -> Vec<Vec<u8>> {
    let all = (0..32u32).flat_map(|n| {
        [8u32, 12, 13, 16].map(|bits| {
            let data = (0x0a00_0000 | n << 19) & !(u32::MAX >> bits);
            [bits.to_le_bytes(), data.to_be_bytes()].concat()
        })
    });
    let distinct: BTreeSet<Vec<u8>> = all.collect();
    distinct.into_iter().rev().take(count).collect()
}

enum Op {
    Data(DataOp),
    Command(Submission),
}

struct Storm {
    engines: Engines<Vec<u8>>,
    host: Host,
    scripts: Vec<VecDeque<Op>>,
}

impl Storm {
    fn new(firmware: Firmware<Vec<u8>>, width: u32, planted: Planted) -> Self {
        let mut engines = Engines::new(firmware, width).unwrap();
        engines.locks.planted = planted;
        Self {
            engines,
            host: host(),
            scripts: (0..ENGINES).map(|_| VecDeque::new()).collect(),
        }
    }

    fn put(&mut self, engine: u32, op: DataOp) {
        self.scripts[engine as usize].push_back(Op::Data(op));
    }

    /// Runs the scripts to their ends; `check` sees what each engine's operations came to.
    fn run(
        &mut self,
        seed: u64,
        mut check: impl FnMut(u32, &Turn, &mut Host) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut schedule = Seeded::new(seed);
        for turn in 0u32.. {
            if turn > 2_000_000 {
                return Err("the engines do not come to an end".into());
            }
            for engine in 0..ENGINES {
                if !self.engines.is_busy(engine)
                    && let Some(op) = self.scripts[engine as usize].pop_front()
                {
                    match op {
                        Op::Data(op) => self.engines.start(engine, op).unwrap(),
                        Op::Command(command) => self.engines.submit(engine, &command).unwrap(),
                    }
                }
            }
            let mut outcome = None;
            let (engines, host) = (&mut self.engines, &mut self.host);
            engines.run(&mut schedule, host, 1, |_, engine, turn| {
                outcome = Some((engine, turn));
                true
            });
            if let Some((engine, turn)) = outcome {
                check(engine, &turn, &mut self.host)?;
            }
            if self.engines.is_idle() && self.scripts.iter().all(VecDeque::is_empty) {
                if !self.engines.locks.is_idle() {
                    return Err("a lock is left".into());
                }
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Lookups, updates, insertions and deletions of colliding keys, a walk and dumps, by five engines.
fn elements(map_type: u32, seed: u64, planted: Planted) -> Result<(), String> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut firmware = firmware();
    let (stable, volatile) = (6, 12);
    let is_lru = map_type == LRU_HASH;
    let is_array = matches!(map_type, ARRAY | PERCPU_ARRAY);
    let percpu = matches!(map_type, PERCPU_HASH | PERCPU_ARRAY);
    let keys: Vec<Vec<u8>> = match map_type {
        LPM => prefixes(stable + volatile),
        _ if is_array => (0..18u32).map(|n| n.to_le_bytes().to_vec()).collect(),
        _ => colliding(stable + volatile),
    };
    let key_size = keys[0].len() as u32;
    let room = if is_lru { 10 } else { keys.len() as u32 };
    let map = create(
        &mut firmware,
        map_type,
        (key_size, VALUE as u32, room),
        None,
    );
    let slots = if percpu { 2 } else { 1 };
    let whole = |id: u64, n: u64| value(id, n).repeat(slots);
    for (id, key) in keys.iter().enumerate() {
        if id < stable || is_array {
            let status = firmware.update(map, key, &whole(id as u64, 0), 0);
            assert_eq!(status, Status::Success);
        }
    }
    let mut storm = Storm::new(firmware, 8 << (seed % 4), planted);
    let has_stable = !is_lru && map_type != LPM;
    let update = |id: usize, n: u64| DataOp::Update {
        map,
        key: keys[id].clone(),
        value: value(id as u64, n),
        flags: 0,
    };
    // What the writers expect of their own volatile keys, which nobody else writes.
    let mut live = BTreeSet::new();
    let mut expected: Vec<VecDeque<Option<Status>>> = vec![VecDeque::new(); ENGINES as usize];
    for _ in 0..10 {
        for reader in [0, 1] {
            let id = match random.next_u64() % 3 {
                0 => stable + (random.next_u64() % volatile as u64) as usize,
                _ => (random.next_u64() % stable as u64) as usize,
            };
            let key = keys[id].clone();
            if reader == 1 && random.next_u64() % 2 == 0 {
                let command = element(IoOpcode::Lookup, map, reader, &key, VALUE * slots);
                storm.scripts[reader as usize].push_back(Op::Command(command));
            } else {
                storm.put(reader, DataOp::Lookup { map, key });
            }
        }
        for writer in [2u32, 3] {
            let random = random.next_u64();
            let n = random >> 40;
            let id = match random % 3 {
                0 => (random >> 8) as usize % stable,
                _ => stable + (random >> 8) as usize % (volatile / 2) * 2 + (writer as usize - 2),
            };
            let is_live = live.contains(&id);
            if id >= stable && is_live && !is_array && random >> 7 & 1 == 0 {
                live.remove(&id);
                expected[writer as usize].push_back(Some(Status::Success));
                let key = keys[id].clone();
                storm.scripts[writer as usize].push_back(match writer {
                    2 => Op::Data(DataOp::Delete { map, key }),
                    _ => Op::Command(element(IoOpcode::Delete, map, writer, &key, 0)),
                });
                continue;
            }
            if id >= stable {
                live.insert(id);
            }
            expected[writer as usize].push_back(Some(Status::Success));
            storm.put(writer, update(id, n));
        }
    }
    // A walk, and where the type has it a dump.
    let walker = 4u32;
    let base = u64::from(walker) * PART;
    let dump = Submission::new(
        IoOpcode::BatchDump.0,
        RequestId(DUMP),
        &BatchBody {
            map_flags: 0.into(),
            count: (keys.len() as u32 + 8).into(),
            key_len: key_size.into(),
            value_len: ((VALUE * slots) as u32).into(),
            keys: base.into(),
            values: (base + 0x400).into(),
            statuses: 0.into(),
            cursor: 0.into(),
        },
    )
    .with_map(map);
    for key in keys.iter().take(4) {
        let next = element(IoOpcode::GetNext, map, walker, key, key_size as usize);
        storm.scripts[4].push_back(Op::Command(next));
        storm.scripts[4].push_back(Op::Command(dump));
    }
    let id_of = |key: &[u8]| keys.iter().position(|known| known == key);
    storm.run(seed, |engine, turn, host| match turn {
        Turn::Data { op, status, value } => match op {
            DataOp::Lookup { key, .. } => {
                let id = id_of(key).unwrap();
                match *status {
                    // A shorter prefix may answer.
                    Status::Success if map_type == LPM => {
                        let id = u64::from_le_bytes(value[..8].try_into().unwrap()) >> 32;
                        check_value(id, value)
                    }
                    Status::Success if percpu && value.iter().all(|b| *b == 0) => Ok(()),
                    Status::Success => check_value(id as u64, value),
                    Status::NotFound if !(has_stable && id < stable || is_array) => Ok(()),
                    status => Err(format!("lookup of key {id}: {status:?}")),
                }
            }
            _ => {
                let expected = expected[engine as usize].pop_front().unwrap();
                match is_lru || expected == Some(*status) {
                    true => Ok(()),
                    false => Err(format!("{op:?}: {status:?}, not {expected:?}")),
                }
            }
        },
        Turn::Command(done) if engine == 1 => {
            let mut bytes = vec![0; VALUE];
            host.read(PART, &mut bytes).unwrap();
            let id = u64::from_le_bytes(bytes[..8].try_into().unwrap()) >> 32;
            match done.status() {
                Status::Success => check_value(id, &bytes),
                Status::NotFound => Ok(()),
                status => Err(format!("host's lookup: {status:?}")),
            }
        }
        Turn::Command(done) if engine == 3 => {
            let expected = expected[3].pop_front().unwrap();
            match is_lru || expected == Some(done.status()) {
                true => Ok(()),
                false => Err(format!("host's delete: {:?}", done.status())),
            }
        }
        Turn::Command(done) => {
            let count = done.count.get() as usize;
            let key_bytes = key_size as usize;
            let mut found = BTreeSet::new();
            if done.request() != RequestId(DUMP) {
                // GET_NEXT.
                let mut key = vec![0; key_bytes];
                host.read(base, &mut key).unwrap();
                return match (done.status(), id_of(&key)) {
                    (Status::Success, Some(_)) | (Status::NotFound, _) => Ok(()),
                    other => Err(format!("the key after: {other:?} {key:x?}")),
                };
            }
            if !matches!(done.status(), Status::Success | Status::NotFound) {
                return Err(format!("walk: {:?}", done.status()));
            }
            if count == 0 {
                return match is_lru || done.status() == Status::NotFound {
                    true => Ok(()),
                    false => Err(format!("walk: {:?}", done.status())),
                };
            }
            for n in 0..count as u64 {
                let mut key = vec![0; key_bytes];
                let mut bytes = vec![0; VALUE * slots];
                host.read(base + n * u64::from(key_size), &mut key).unwrap();
                let at = base + 0x400 + n * (VALUE * slots) as u64;
                host.read(at, &mut bytes).unwrap();
                let id = id_of(&key).ok_or_else(|| format!("dump of an unknown key {key:x?}"))?;
                for slot in bytes.chunks(VALUE) {
                    if !(percpu && slot.iter().all(|b| *b == 0)) {
                        check_value(id as u64, slot)?;
                    }
                }
                if !found.insert(id) && map_type != LPM {
                    return Err(format!("a dump has key {id} twice"));
                }
            }
            let all = (0..stable).all(|id| found.contains(&id));
            match all || !has_stable {
                true => Ok(()),
                false => Err(format!("a dump misses keys that stay: {found:?}")),
            }
        }
        other => Err(format!("{other:?}")),
    })?;
    // At rest the map is what the writers made of it.
    let firmware = storm.engines.firmware_mut().unwrap();
    let info = firmware
        .map_info(map)
        .map_err(|status| format!("the table at rest: {status:?}"))?;
    let mut walked = BTreeSet::new();
    let mut key = vec![0; key_size as usize];
    let mut last = None;
    while firmware.get_next(map, last.as_deref(), &mut key) == Status::Success {
        if !walked.insert(id_of(&key)) {
            return Err("a walk goes round".into());
        }
        let mut bytes = vec![0; VALUE * slots];
        if firmware.lookup(map, &key, &mut bytes) != Status::Success {
            return Err("a listed key is not found".into());
        }
        last = Some(key.clone());
    }
    let there: BTreeSet<Option<usize>> = (0..stable).chain(live).map(Some).collect();
    if is_lru && walked.len() > room as usize || !is_lru && !is_array && walked != there {
        return Err(format!("at rest there is {walked:?}, not {there:?}"));
    }
    if info.entries.get() as usize != walked.len() {
        return Err("the count is wrong".into());
    }
    Ok(())
}

/// Runs `storm` under the seeds; the first that fails, and how.
fn first_failure(
    seeds: u64,
    mut storm: impl FnMut(u64) -> Result<(), String>,
) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| storm(seed).err().map(|what| (seed, what)))
}

fn holds(name: &str, seeds: u64, storm: impl FnMut(u64) -> Result<(), String>) {
    if let Some((seed, what)) = first_failure(seeds, storm) {
        panic!("{name}, seed {seed}: {what}");
    }
}

const SEEDS: u64 = 1000;

#[test]
fn values_are_whole_and_keys_that_stay_are_found() {
    for map_type in [HASH, LRU_HASH, PERCPU_HASH, LPM, ARRAY, PERCPU_ARRAY] {
        holds(&format!("type {map_type}"), SEEDS, |seed| {
            elements(map_type, seed, Planted::default())
        });
    }
}

#[test]
fn planted_mistakes_are_found() {
    let none = Planted::default();
    let plants = [
        (
            "copies that are not checked",
            HASH,
            Planted {
                trusts_copies: true,
                ..none
            },
        ),
        (
            "copies that are not checked",
            LRU_HASH,
            Planted {
                trusts_copies: true,
                ..none
            },
        ),
        (
            "copies that are not checked",
            LPM,
            Planted {
                trusts_copies: true,
                ..none
            },
        ),
        (
            "copies that are not checked",
            ARRAY,
            Planted {
                trusts_copies: true,
                ..none
            },
        ),
        (
            "entries changed and used again beside readers",
            HASH,
            Planted {
                entries_unlocked: true,
                ..none
            },
        ),
        (
            "entries changed and used again beside readers",
            LRU_HASH,
            Planted {
                entries_unlocked: true,
                ..none
            },
        ),
        (
            "values changed beside readers",
            PERCPU_HASH,
            Planted {
                entries_unlocked: true,
                ..none
            },
        ),
        (
            "values changed beside readers",
            ARRAY,
            Planted {
                entries_unlocked: true,
                ..none
            },
        ),
        (
            "two that insert and delete at a time",
            HASH,
            Planted {
                tables_unlocked: true,
                ..none
            },
        ),
        (
            "two that insert and delete at a time",
            LRU_HASH,
            Planted {
                tables_unlocked: true,
                ..none
            },
        ),
        (
            "two that change a trie at a time",
            LPM,
            Planted {
                tables_unlocked: true,
                ..none
            },
        ),
    ];
    for (what, map_type, planted) in plants {
        let found = first_failure(SEEDS, |seed| elements(map_type, seed, planted));
        let Some((seed, how)) = found else {
            panic!("{what}, type {map_type}: not found");
        };
        std::println!("{what}, type {map_type}, seed {seed}: {how}");
    }
}
