//! Maps of maps: the same seeded operations on the running kernel's, on ours and on our
//! device's. Same results and error numbers, the same inner map behind every id, and each inner
//! map gone at the same moment.
//!
//! `OFFMAP_OPS` sets the operations per type, `OFFMAP_SEED` replays a run.
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_bpf::device::BatchOutcome;
use offmap_bpf::{Caller, Error, Fd, MapCreateAttr, MapFlags, MapType, System};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::report::{aloud, env_number, required, seed};
use offmap_tests::stack::Stack;
use offmap_tests::subject::{Answered, Subject, Walked};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::BTreeMap;
use std::sync::Arc;

const AM: MapType = MapType::ARRAY_OF_MAPS;
const HM: MapType = MapType::HASH_OF_MAPS;
const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;
/// Descriptors of inner maps that a sequence has open at a time.
const INNER: usize = 5;
/// No descriptor is as high, and none is negative.
const NO_FD: i32 = 9999;

/// One implementation of maps of maps.
trait Side {
    fn name(&self) -> &'static str;
    /// BPF_MAP_CREATE of an inner map; its descriptor.
    fn open(&mut self, attr: &MapCreateAttr) -> Result<i32, i32>;
    fn close(&mut self, fd: i32);
    fn id(&self, fd: i32) -> u32;
    fn is_listed(&self, id: u32) -> bool;
    /// The map of maps, as the attributes say but for its template; replaces the last one.
    fn outer(&mut self, attr: &MapCreateAttr, template: i32) -> Result<&mut dyn Subject, i32>;
    /// The map of maps that was made last.
    fn subject(&mut self) -> &mut dyn Subject;
    /// What it accounts for, in bytes.
    fn memory(&self) -> Option<u64>;
    fn close_outer(&mut self);
}

#[derive(Default)]
struct Kernel {
    inner: BTreeMap<i32, KernelMap>,
    outer: Option<KernelMap>,
}

impl Side for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn open(&mut self, attr: &MapCreateAttr) -> Result<i32, i32> {
        let map = KernelMap::create(attr)?;
        let fd = map.raw_fd();
        self.inner.insert(fd, map);
        Ok(fd)
    }

    fn close(&mut self, fd: i32) {
        self.inner.remove(&fd).expect("an open map");
    }

    fn id(&self, fd: i32) -> u32 {
        self.inner[&fd].id_and_memlock().0
    }

    fn is_listed(&self, id: u32) -> bool {
        KernelMap::is_listed(id)
    }

    fn outer(&mut self, attr: &MapCreateAttr, template: i32) -> Result<&mut dyn Subject, i32> {
        let attr = MapCreateAttr {
            inner_map_fd: template as u32,
            ..*attr
        };
        Ok(self.outer.insert(KernelMap::create(&attr)?))
    }

    fn subject(&mut self) -> &mut dyn Subject {
        self.outer.as_mut().expect("a map of maps")
    }

    fn memory(&self) -> Option<u64> {
        self.outer.as_ref().map(|outer| outer.id_and_memlock().1)
    }

    fn close_outer(&mut self) {
        let outer = self.outer.take().expect("a map of maps");
        let (id, _) = outer.id_and_memlock();
        drop(outer);
        assert!(!KernelMap::is_listed(id));
    }
}

/// A map of a [`System`], by descriptor.
struct SystemMap {
    system: Arc<System>,
    fd: Fd,
}

fn answered(result: Result<(), Error>) -> Answered {
    result.map_err(|e| e.errno().0)
}

fn batch(outcome: BatchOutcome) -> (u32, Answered) {
    (outcome.count, answered(outcome.result))
}

impl Subject for SystemMap {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        answered(self.system.lookup(self.fd, key, value, flags))
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered {
        answered(self.system.update(self.fd, key, value, flags))
    }

    fn delete(&mut self, key: &[u8]) -> Answered {
        answered(self.system.delete(self.fd, key))
    }

    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered {
        answered(self.system.get_next_key(self.fd, key, next))
    }

    fn lookup_and_delete(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        answered(self.system.lookup_and_delete(self.fd, key, value, flags))
    }

    fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: u64,
    ) -> (u32, Answered) {
        batch(
            self.system
                .update_batch(self.fd, keys, values, count, flags, 0),
        )
    }

    fn delete_batch(&mut self, keys: &[u8], count: u32, flags: u64) -> (u32, Answered) {
        batch(self.system.delete_batch(self.fd, keys, count, flags, 0))
    }

    fn walk_batch(
        &mut self,
        cursor: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        flags: u64,
        delete: bool,
    ) -> Walked {
        let (fd, system) = (self.fd, &self.system);
        let from = cursor;
        let mut to = cursor.map_or_else(|| vec![0; 4], <[u8]>::to_vec);
        let outcome = if delete {
            system.lookup_and_delete_batch(fd, from, &mut to, keys, values, count, flags, 0)
        } else {
            system.lookup_batch(fd, from, &mut to, keys, values, count, flags, 0)
        };
        Walked {
            count: outcome.count,
            cursor: to,
            result: answered(outcome.result),
        }
    }

    fn freeze(&mut self) -> Answered {
        answered(self.system.freeze(self.fd))
    }
}

/// Our stack, with the maps on the host or on the device.
struct Ours {
    stack: Stack<Inline>,
    offloaded: bool,
    outer: Option<SystemMap>,
}

impl Ours {
    fn new(offloaded: bool) -> Self {
        Self {
            stack: Stack::inline(DeviceConfig::default()),
            offloaded,
            outer: None,
        }
    }

    fn create(&self, attr: &MapCreateAttr) -> Result<Fd, i32> {
        let attr = MapCreateAttr {
            map_ifindex: if self.offloaded {
                self.stack.ifindex.0
            } else {
                0
            },
            ..*attr
        };
        let created = self.stack.system.map_create(&Caller::root(), &attr);
        created.map_err(|e| e.errno().0)
    }
}

impl Side for Ours {
    fn name(&self) -> &'static str {
        if self.offloaded { "device" } else { "host" }
    }

    fn open(&mut self, attr: &MapCreateAttr) -> Result<i32, i32> {
        self.create(attr).map(|fd| fd.0)
    }

    fn close(&mut self, fd: i32) {
        self.stack.system.close(Fd(fd)).expect("an open map");
    }

    fn id(&self, fd: i32) -> u32 {
        self.stack.system.info(Fd(fd)).expect("an open map").id
    }

    fn is_listed(&self, id: u32) -> bool {
        let system = &self.stack.system;
        let opened = system.get_fd_by_id(&Caller::root(), id, MapFlags::empty());
        opened.is_ok_and(|fd| system.close(fd).is_ok())
    }

    fn outer(&mut self, attr: &MapCreateAttr, template: i32) -> Result<&mut dyn Subject, i32> {
        let fd = self.create(&MapCreateAttr {
            inner_map_fd: template as u32,
            ..*attr
        })?;
        let system = Arc::clone(&self.stack.system);
        Ok(self.outer.insert(SystemMap { system, fd }))
    }

    fn subject(&mut self) -> &mut dyn Subject {
        self.outer.as_mut().expect("a map of maps")
    }

    fn memory(&self) -> Option<u64> {
        let outer = self.outer.as_ref().filter(|_| !self.offloaded)?;
        Some(self.stack.system.info(outer.fd).expect("open").mem_usage)
    }

    fn close_outer(&mut self) {
        let outer = self.outer.take().expect("a map of maps");
        self.stack.system.close(outer.fd).expect("open");
        self.stack.system.flush_frees();
        assert_eq!(self.stack.nic.failed_frees(), 0);
    }
}

/// What an operation came to, with inner maps named by the order of their creation.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    Plain(Answered),
    Found(Result<u32, i32>),
    Batch(u32, Answered),
    /// The elements of a whole walk, the error that ended it, and for arrays each call of it.
    Elements(BTreeMap<u32, u32>, i32, Vec<Walked>),
}

/// One side, and the names of its inner maps.
struct Player {
    side: Box<dyn Side>,
    /// Descriptors by slot.
    open: Vec<(u32, i32)>,
    names: BTreeMap<u32, u32>,
    ids: Vec<u32>,
    living: Vec<u32>,
}

impl Player {
    fn new(side: Box<dyn Side>) -> Self {
        Self {
            side,
            open: Vec::new(),
            names: BTreeMap::new(),
            ids: Vec::new(),
            living: Vec::new(),
        }
    }

    fn make(&mut self, attr: &MapCreateAttr) -> (u32, i32) {
        let fd = self.side.open(attr).unwrap_or_else(|errno| {
            panic!("{} refuses {attr:?}: {errno}", self.side.name());
        });
        let (name, id) = (self.ids.len() as u32, self.side.id(fd));
        self.ids.push(id);
        self.names.insert(id, name);
        self.living.push(name);
        (name, fd)
    }

    fn name(&self, id: u32) -> u32 {
        *self.names.get(&id).unwrap_or(&u32::MAX)
    }

    /// Which of the inner maps ever made are there. One that has gone does not come back.
    fn alive(&mut self) -> Vec<u32> {
        let (side, ids) = (&self.side, &self.ids);
        self.living
            .retain(|name| side.is_listed(ids[*name as usize]));
        self.living.clone()
    }

    fn fd(&self, slot: usize) -> i32 {
        self.open.get(slot).map_or(NO_FD, |(_, fd)| *fd)
    }

    fn walk(&mut self, array: bool, mut count: u32, delete: bool) -> Answer {
        let (mut found, mut calls, mut cursor) = (BTreeMap::new(), Vec::new(), None);
        for _ in 0..1000 {
            let mut keys = vec![0; 4 * count as usize];
            let mut values = vec![0; 4 * count as usize];
            let outer = self.side.subject();
            let w = outer.walk_batch(cursor.as_deref(), &mut keys, &mut values, count, 0, delete);
            for i in 0..w.count as usize {
                let word =
                    |bytes: &[u8]| u32::from_ne_bytes(bytes[4 * i..][..4].try_into().unwrap());
                let before = found.insert(word(&keys), self.name(word(&values)));
                assert!(before.is_none(), "a key came twice");
            }
            let (next, result) = (w.cursor.clone(), w.result);
            if array {
                calls.push(w);
            }
            match result {
                Ok(()) => cursor = Some(next),
                Err(ENOSPC) => {
                    cursor = Some(next);
                    count *= 2;
                }
                Err(errno) => return Answer::Elements(found, errno, calls),
            }
        }
        panic!("the walk does not end");
    }

    fn iterate(&mut self) -> Answer {
        let (mut found, mut key): (BTreeMap<u32, u32>, Option<[u8; 4]>) = Default::default();
        for _ in 0..1000 {
            let outer = self.side.subject();
            let (mut next, mut id) = ([0; 4], [0; 4]);
            let from = key.as_ref().map(<[u8; 4]>::as_slice);
            if let Err(errno) = outer.get_next_key(from, &mut next) {
                return Answer::Elements(found, errno, Vec::new());
            }
            let looked = outer.lookup(&next, &mut id, 0);
            let name = match looked {
                Ok(()) => self.name(u32::from_ne_bytes(id)),
                Err(errno) => {
                    assert_eq!(errno, ENOENT);
                    u32::MAX - 1
                }
            };
            let before = found.insert(u32::from_ne_bytes(next), name);
            assert!(before.is_none(), "a key came twice");
            key = Some(next);
        }
        panic!("the iteration does not end");
    }

    fn run(&mut self, op: &Op, array: bool) -> Answer {
        let fds = |pairs: &[(u32, usize)]| -> Vec<u8> {
            let fds = pairs.iter().map(|(_, slot)| self.fd(*slot));
            fds.flat_map(i32::to_ne_bytes).collect()
        };
        match op {
            Op::Open(slot, attr) => {
                if let Some((_, fd)) = self.open.get(*slot) {
                    self.side.close(*fd);
                }
                let made = self.make(attr);
                match self.open.get_mut(*slot) {
                    Some(open) => *open = made,
                    None => self.open.push(made),
                }
                Answer::Plain(Ok(()))
            }
            Op::Update(key, slot, flags) => {
                let value = self.fd(*slot).to_ne_bytes();
                let outer = self.side.subject();
                Answer::Plain(outer.update(&key.to_ne_bytes(), &value, *flags))
            }
            Op::Delete(key) => Answer::Plain(self.side.subject().delete(&key.to_ne_bytes())),
            Op::Lookup(key, flags) => {
                let mut id = [0; 4];
                let outer = self.side.subject();
                let found = outer.lookup(&key.to_ne_bytes(), &mut id, *flags);
                Answer::Found(found.map(|()| self.name(u32::from_ne_bytes(id))))
            }
            Op::LookupAndDelete(key, flags) => {
                let outer = self.side.subject();
                Answer::Plain(outer.lookup_and_delete(&key.to_ne_bytes(), &mut [0; 4], *flags))
            }
            Op::UpdateBatch(pairs, flags) => {
                let keys: Vec<u8> = pairs
                    .iter()
                    .flat_map(|(key, _)| key.to_ne_bytes())
                    .collect();
                let values = fds(pairs);
                let outer = self.side.subject();
                let (n, result) = outer.update_batch(&keys, &values, pairs.len() as u32, *flags);
                Answer::Batch(n, result)
            }
            Op::DeleteBatch(keys) => {
                let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_ne_bytes()).collect();
                let outer = self.side.subject();
                let (n, result) = outer.delete_batch(&bytes, keys.len() as u32, 0);
                Answer::Batch(n, result)
            }
            Op::Walk(count, delete) => self.walk(array, *count, *delete),
            Op::Iterate => self.iterate(),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Closes the map in a slot and makes another.
    Open(usize, MapCreateAttr),
    /// Key, slot, flags.
    Update(u32, usize, u64),
    Delete(u32),
    Lookup(u32, u64),
    LookupAndDelete(u32, u64),
    UpdateBatch(Vec<(u32, usize)>, u64),
    DeleteBatch(Vec<u32>),
    Walk(u32, bool),
    Iterate,
}

fn template(rng: &mut impl Rng, offloadable: bool) -> MapCreateAttr {
    let types = [
        MapType::ARRAY,
        MapType::HASH,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
    ];
    let map_type = types[rng.random_range(0..4)];
    let flags = match map_type {
        MapType::ARRAY if rng.random() => MapFlags::INNER_MAP,
        MapType::HASH if !offloadable && rng.random() => MapFlags::NO_PREALLOC,
        _ => MapFlags::empty(),
    };
    MapCreateAttr {
        map_type: map_type.0,
        key_size: 4,
        value_size: 8,
        max_entries: 4,
        map_flags: flags.bits(),
        ..MapCreateAttr::default()
    }
}

/// A map like the template, or in one respect not.
fn like(rng: &mut impl Rng, template: &MapCreateAttr) -> MapCreateAttr {
    let mut attr = *template;
    let hash = attr.map_type == MapType::HASH.0 || attr.map_type == MapType::PERCPU_HASH.0;
    match rng.random_range(0..12) {
        0 => attr.max_entries += 1,
        1 => attr.value_size += 1,
        2 if hash => attr.key_size += 1,
        3 if attr.map_type == MapType::ARRAY.0 => attr.map_flags ^= MapFlags::INNER_MAP.bits(),
        3 if attr.map_type == MapType::HASH.0 => attr.map_flags ^= MapFlags::NO_PREALLOC.bits(),
        4 => {
            attr.map_type = if hash {
                MapType::ARRAY.0
            } else {
                MapType::HASH.0
            };
            attr.map_flags = 0;
        }
        // For the file alone, and so of no account.
        5 => attr.map_flags |= MapFlags::RDONLY.bits(),
        _ => {}
    }
    attr
}

fn op(rng: &mut impl Rng, keys: u32, template: &MapCreateAttr) -> Op {
    let key = |rng: &mut dyn FnMut() -> u32| rng() % keys;
    let mut word = || rng.next_u32();
    let (k, slot) = (key(&mut word), word() as usize % (INNER + 1));
    match word() % 20 {
        0..2 => {
            let slot = word() as usize % INNER;
            Op::Open(slot, like(rng, template))
        }
        2..8 => {
            let flags = match word() % 8 {
                0 => [3, 4, 8, 1 << 40][word() as usize % 4],
                1..3 => u64::from(word() % 3),
                _ => 0,
            };
            Op::Update(k, slot, flags)
        }
        8..11 => Op::Delete(k),
        11..14 => Op::Lookup(k, if word() % 9 == 0 { 4 } else { 0 }),
        14 => Op::LookupAndDelete(k, if word() % 2 == 0 { 0 } else { 8 }),
        15 => {
            let pairs = (0..word() % 5).map(|_| {
                // Mostly open descriptors, or a batch would never get far.
                let slots = if word() % 4 == 0 { INNER + 1 } else { INNER };
                (word() % keys, word() as usize % slots)
            });
            let pairs = pairs.collect();
            Op::UpdateBatch(pairs, [0, 0, 0, 1, 4][word() as usize % 5])
        }
        16 => Op::DeleteBatch((0..word() % 4).map(|_| word() % keys).collect()),
        17 => Op::Walk(1 + word() % 6, word() % 4 == 0),
        18 => Op::Walk(1 + word() % 6, false),
        _ => Op::Iterate,
    }
}

fn kernel_takes_part() -> bool {
    match kernel::availability() {
        Availability::Yes => true,
        Availability::No(why) => {
            aloud(&format!("inner: THE KERNEL TAKES NO PART ({why})"));
            assert!(!required("OFFMAP_REQUIRE_KERNEL"), "{why}");
            false
        }
    }
}

fn differential(map_type: MapType, sides: &mut [fn() -> Box<dyn Side>]) {
    const SEQUENCE_OPS: u64 = 400;
    let (base, budget) = (seed(), env_number("OFFMAP_OPS").unwrap_or(4_000));
    let mut by_answer: BTreeMap<String, u64> = BTreeMap::new();
    let array = map_type == AM;
    let mut players: Vec<Player> = sides.iter().map(|side| Player::new(side())).collect();
    let names: Vec<_> = players.iter().map(|p| p.side.name()).collect();
    let offloads = names.contains(&"device");
    for sequence in 0..budget.div_ceil(SEQUENCE_OPS) {
        let seed = base.wrapping_add(sequence);
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let max_entries = rng.random_range(1..=12);
        let mut attr = MapCreateAttr {
            map_type: map_type.0,
            key_size: 4,
            value_size: 4,
            max_entries,
            ..MapCreateAttr::default()
        };
        if !array && rng.random() {
            attr.map_flags = MapFlags::NO_PREALLOC.bits();
        }
        let template = template(rng, offloads);
        for player in &mut players {
            player.names.clear();
            player.ids.clear();
            player.living.clear();
            let (_, fd) = player.make(&template);
            if let Err(errno) = player.side.outer(&attr, fd) {
                panic!(
                    "seed {seed}: {} refuses {attr:?}: {errno}",
                    player.side.name()
                );
            }
            // The template is not held.
            player.side.close(fd);
            assert!(player.alive().is_empty(), "{}", player.side.name());
        }
        let fill: Vec<Op> = (0..INNER).map(|slot| Op::Open(slot, template)).collect();
        let ops = (0..SEQUENCE_OPS).map(|_| op(rng, max_entries + 2, &template));
        for (index, op) in fill.into_iter().chain(ops).enumerate() {
            let answers: Vec<_> = players.iter_mut().map(|p| p.run(&op, array)).collect();
            let alive: Vec<_> = players.iter_mut().map(Player::alive).collect();
            let memory: Vec<_> = players.iter().filter_map(|p| p.side.memory()).collect();
            for i in 1..players.len() {
                let context = || {
                    format!(
                        "seed {seed}, operation {index}: {op:?} on {} and {}",
                        names[0], names[i]
                    )
                };
                assert_eq!(answers[i], answers[0], "{}", context());
                assert_eq!(alive[i], alive[0], "maps that live, {}", context());
            }
            assert!(
                memory.windows(2).all(|m| m[0] == m[1]),
                "seed {seed}: {memory:?}"
            );
            let answer = match &answers[0] {
                Answer::Plain(r) => format!("{r:?}"),
                Answer::Found(r) => format!("found {:?}", r.map(drop)),
                Answer::Batch(_, r) => format!("batch {r:?}"),
                Answer::Elements(_, errno, _) => format!("walk to {errno}"),
            };
            *by_answer.entry(answer).or_default() += 1;
        }
        for player in &mut players {
            for (_, fd) in std::mem::take(&mut player.open) {
                player.side.close(fd);
            }
            player.side.close_outer();
        }
        // The kernel frees a map of maps from a worker.
        for player in &mut players {
            let gone = (0..1000).any(|_| {
                let gone = player.alive().is_empty();
                if !gone {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                gone
            });
            assert!(gone, "seed {seed}: {} keeps inner maps", player.side.name());
        }
    }
    aloud(&format!(
        "inner: {map_type} on {names:?} from seed {base}: {by_answer:?}"
    ));
    for wanted in ["Ok(())", "Err(9)", "Err(22)", "Err(7)", "found Ok(())"] {
        assert!(
            by_answer.contains_key(wanted),
            "no {wanted} in {by_answer:?}"
        );
    }
}

fn sides(offloaded: bool) -> Vec<fn() -> Box<dyn Side>> {
    let mut sides: Vec<fn() -> Box<dyn Side>> = Vec::new();
    if kernel_takes_part() {
        sides.push(|| Box::<Kernel>::default());
    }
    sides.push(|| Box::new(Ours::new(false)));
    if offloaded {
        sides.push(|| Box::new(Ours::new(true)));
    }
    sides
}

#[test]
fn arrays_of_maps_as_the_kernel() {
    differential(AM, &mut sides(false));
}

#[test]
fn hashes_of_maps_as_the_kernel() {
    differential(HM, &mut sides(false));
}

#[test]
fn arrays_of_maps_on_the_device_too() {
    differential(AM, &mut sides(true));
}

#[test]
fn hashes_of_maps_on_the_device_too() {
    differential(HM, &mut sides(true));
}
