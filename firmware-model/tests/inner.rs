//! Maps of maps: what may be stored, what a handle is worth after MAP_FREE, and that neither
//! commands nor device memory can make the firmware free what is held or keep what is not.

mod common;

use common::*;
use offmap_abi::admin::{MapAttr, MapCreateBody, MapCreated};
use offmap_abi::{AdminOpcode, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Firmware};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use zerocopy::{FromZeros, IntoBytes};

const AM: u32 = 12;
const HM: u32 = 13;
const OUTER: [u32; 2] = [AM, HM];
const ATTR_AT: u64 = BASE + 64;

type Model = Firmware<Vec<u8>>;

fn model() -> Model {
    firmware(Config::with_memory(1 << 20))
}

fn body(map_type: u32, value: u32, entries: u32) -> MapCreateBody {
    let mut body = MapCreateBody::new_zeroed();
    body.map_type = map_type.into();
    body.key_size = 4.into();
    body.value_size = value.into();
    body.max_entries = entries.into();
    if map_type == PERCPU_ARRAY {
        body.cpu_slots = 2.into();
    }
    body
}

fn try_create(
    model: &mut Model,
    mut body: MapCreateBody,
    template: u32,
) -> Result<MapHandle, Status> {
    let mut host = Host::new(HOST_BYTES);
    let mut attr = MapAttr::new_zeroed();
    attr.inner_map = template.into();
    host.put(ATTR_AT, attr.as_bytes());
    body.attr = ATTR_AT.into();
    body.attr_len = (size_of::<MapAttr>() as u32).into();
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), &body);
    let (done, _) = admin(model, &command, &mut host);
    match done.status() {
        Status::Success => Ok(MapHandle(done.payload_as::<MapCreated>().map.get())),
        status => Err(status),
    }
}

fn plain(model: &mut Model, map_type: u32, value: u32, entries: u32) -> MapHandle {
    try_create(model, body(map_type, value, entries), 0).unwrap()
}

fn outer(model: &mut Model, map_type: u32, entries: u32, template: MapHandle) -> MapHandle {
    try_create(model, body(map_type, 4, entries), template.0).unwrap()
}

fn key(n: u32) -> [u8; 4] {
    n.to_le_bytes()
}

fn put(model: &mut Model, outer: MapHandle, n: u32, inner: MapHandle) -> Status {
    model.update(outer, &key(n), &inner.0.to_le_bytes(), 0)
}

fn get(model: &mut Model, outer: MapHandle, n: u32) -> Result<u32, Status> {
    let mut value = [0; 4];
    match model.lookup(outer, &key(n), &mut value) {
        Status::Success => Ok(u32::from_le_bytes(value)),
        status => Err(status),
    }
}

#[test]
fn what_a_map_of_maps_is_created_with() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, ARRAY, 8, 4);
        let make = |model: &mut Model, value, template| {
            try_create(model, body(map_type, value, 3), template)
        };
        assert_eq!(make(&mut model, 4, 0), Err(Status::InvalidMap));
        assert_eq!(make(&mut model, 4, 0x7777_0001), Err(Status::InvalidMap));
        assert_eq!(make(&mut model, 8, template.0), Err(Status::InvalidField));
        let nested = make(&mut model, 4, template.0).unwrap();
        assert_eq!(make(&mut model, 4, nested.0), Err(Status::InvalidField));
        assert_eq!(free(&mut model, template), Status::Success);
        assert_eq!(make(&mut model, 4, template.0), Err(Status::InvalidMap));
        // Other types take no template.
        let other = plain(&mut model, ARRAY, 8, 4);
        let refused = try_create(&mut model, body(HASH, 8, 4), other.0);
        assert_eq!(refused, Err(Status::InvalidField));
        // One that was refused late leaves no template for the next map.
        assert_eq!(
            try_create(&mut model, body(map_type, 4, 1 << 30), other.0),
            Err(Status::NoMemory)
        );
        let next = plain(&mut model, ARRAY, 4, 4);
        assert_eq!(
            put(&mut model, next, 0, MapHandle(0x1234_5678)),
            Status::Success
        );
    }
}

#[test]
fn an_update_wants_a_live_map_like_the_template() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let fd = outer(&mut model, map_type, 3, template);
        for (n, other) in [(HASH, 9), (ARRAY, 8), (PERCPU_ARRAY, 8)]
            .into_iter()
            .enumerate()
        {
            let unlike = plain(&mut model, other.0, other.1, 4);
            assert_eq!(put(&mut model, fd, 0, unlike), Status::InvalidField, "{n}");
        }
        for handle in [0, 1, u32::MAX, template.0 + 0x1_0000, template.0 ^ 1] {
            assert_ne!(put(&mut model, fd, 0, MapHandle(handle)), Status::Success);
        }
        assert_eq!(put(&mut model, fd, 0, fd), Status::InvalidField);
        assert_eq!(get(&mut model, fd, 0), Err(Status::NotFound));
        let more = plain(&mut model, HASH, 8, 400);
        assert_eq!(put(&mut model, fd, 0, more), Status::Success);
        assert_eq!(get(&mut model, fd, 0), Ok(more.0));
        let flags =
            |model: &mut Model, flags| model.update(fd, &key(0), &template.0.to_le_bytes(), flags);
        let (noexist, exist) = if map_type == AM {
            (Status::InvalidField, Status::InvalidField)
        } else {
            (Status::Exists, Status::Success)
        };
        assert_eq!(flags(&mut model, 1), noexist);
        assert_eq!(flags(&mut model, 2), exist);
        assert_eq!(flags(&mut model, 3), Status::InvalidField);
        assert_eq!(
            model.engine_update(0, fd, &key(0), &key(1), 0),
            Status::Unsupported
        );
        // Past the end, or full.
        for n in 1..3 {
            assert_eq!(put(&mut model, fd, n, template), Status::Success);
        }
        let beyond = if map_type == AM {
            Status::OutOfRange
        } else {
            Status::Full
        };
        assert_eq!(put(&mut model, fd, 3, template), beyond);
        assert_eq!(model.map_info(fd).unwrap().entries.get(), 3);
        assert_eq!(model.delete(fd, &key(1)), Status::Success);
        assert_eq!(model.delete(fd, &key(1)), Status::NotFound);
        assert_eq!(model.map_info(fd).unwrap().entries.get(), 2);
    }
}

#[test]
fn a_held_map_lives_on_for_the_data_path_alone() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let (a, b) = (
            outer(&mut model, map_type, 4, template),
            outer(&mut model, map_type, 4, template),
        );
        let before = model.memory_stats();
        let inner = plain(&mut model, HASH, 8, 4);
        assert_eq!(model.update(inner, &key(5), &[7; 8], 0), Status::Success);
        for (fd, n) in [(a, 0), (a, 1), (b, 2)] {
            assert_eq!(put(&mut model, fd, n, inner), Status::Success);
        }
        let full = model.memory_stats();
        assert_eq!(free(&mut model, inner), Status::Success);
        assert_eq!(free(&mut model, inner), Status::InvalidMap);
        assert_eq!(
            model.memory_stats(),
            full,
            "it counts as long as it is held"
        );
        assert_eq!(put(&mut model, a, 3, inner), Status::InvalidMap);
        let mut value = [0; 8];
        assert_eq!(model.lookup(inner, &key(5), &mut value), Status::InvalidMap);
        let mut through = |model: &mut Model, n| {
            value = [0; 8];
            let found = model.engine_lookup_inner(0, a, &key(n), &key(5), &mut value);
            (found, value)
        };
        assert_eq!(through(&mut model, 0), (Status::Success, [7; 8]));
        assert_eq!(through(&mut model, 2).0, Status::NotFound);
        assert_eq!(model.delete(a, &key(0)), Status::Success);
        assert_eq!(put(&mut model, a, 1, template), Status::Success);
        assert_eq!(model.memory_stats(), full);
        let mut value = [0; 8];
        assert_eq!(
            model.engine_lookup(0, inner, &key(5), &mut value),
            Status::Success
        );
        assert_eq!(free(&mut model, b), Status::Success, "the last holder");
        assert_eq!(
            model.engine_lookup(0, inner, &key(5), &mut value),
            Status::InvalidMap
        );
        assert_eq!(free(&mut model, a), Status::Success);
        assert_eq!(free(&mut model, template), Status::Success);
        let after = model.memory_stats();
        assert!(after.free_bytes > before.free_bytes);
        assert_eq!((after.maps, after.free_bytes), (0, after.total_bytes));
    }
}

#[test]
fn commands_that_maps_of_maps_lack() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let fd = outer(&mut model, map_type, 4, template);
        let shape = Shape::new(map_type, 4, 4, 4);
        for opcode in [
            IoOpcode::BatchUpdate,
            IoOpcode::BatchDelete,
            IoOpcode::BatchDumpDelete,
            IoOpcode::LookupAndDelete,
        ] {
            let mut host = Host::new(HOST_BYTES);
            let command = match opcode {
                IoOpcode::LookupAndDelete => {
                    element(opcode, fd, Some(&key(0)), None, 4, 0, true, &mut host)
                }
                _ => batch(opcode, fd, &shape, 2, 0, 0),
            };
            let done = io(&mut model, &command, &mut host);
            assert_eq!(done.status(), Status::Unsupported, "{opcode:?}");
        }
    }
}

/// The commands that read many elements: a batch lookup, and dumps that pass over what is empty.
#[test]
fn reading_many_elements() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let fd = outer(&mut model, map_type, 6, template);
        let inner = plain(&mut model, HASH, 8, 4);
        for (n, handle) in [(1, template), (4, inner)] {
            assert_eq!(put(&mut model, fd, n, handle), Status::Success);
        }
        let shape = Shape::new(map_type, 4, 4, 6);
        let mut host = Host::new(HOST_BYTES);
        let keys: Vec<u8> = (0..6).flat_map(key).collect();
        host.put(KEYS, &keys);
        let command = batch(IoOpcode::BatchLookup, fd, &shape, 6, 0, 0);
        let done = io(&mut model, &command, &mut host);
        assert_eq!((done.status(), done.count.get()), (Status::Success, 6));
        for n in 0..6 {
            let expected = match n {
                1 | 4 => Status::Success,
                _ => Status::NotFound,
            };
            assert_eq!(status_at(&host, n), expected, "{n}");
        }
        let mut host = Host::new(HOST_BYTES);
        let command = batch(IoOpcode::BatchDump, fd, &shape, 6, 0, 0);
        let done = io(&mut model, &command, &mut host);
        assert_eq!((done.status(), done.count.get()), (Status::NotFound, 2));
        let word = |at| u32::from_le_bytes(host.at(at, 4).try_into().unwrap());
        let found: BTreeMap<u32, u32> = (0..2)
            .map(|i| (word(KEYS + 4 * i), word(VALUES + 4 * i)))
            .collect();
        assert_eq!(found, BTreeMap::from([(1, template.0), (4, inner.0)]));
    }
}

/// An entry that the window makes name a map that is not held there: nothing follows it.
#[test]
fn a_handle_that_the_window_wrote_is_not_believed() {
    for map_type in OUTER {
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let fd = outer(&mut model, map_type, 4, template);
        let inner = plain(&mut model, HASH, 8, 4);
        let other = plain(&mut model, HASH, 8, 4);
        assert_eq!(model.update(other, &key(0), &[1; 8], 0), Status::Success);
        assert_eq!(put(&mut model, fd, 3, inner), Status::Success);
        let mut all = vec![0; 1 << 20];
        model.read_memory(DevAddr(0), &mut all);
        let mut found = 0;
        for (i, word) in all.chunks_exact(8).enumerate() {
            if word == u64::from(inner.0).to_le_bytes() {
                model.write_memory(DevAddr(8 * i as u64), &other.0.to_le_bytes());
                found += 1;
            }
        }
        assert_eq!(found, 1, "the entry");
        assert_eq!(get(&mut model, fd, 3), Ok(other.0));
        let mut value = [0; 8];
        let reached = model.engine_lookup_inner(0, fd, &key(3), &key(0), &mut value);
        assert_eq!((reached, value), (Status::Internal, [0; 8]));
        assert_eq!(model.delete(fd, &key(3)), Status::Internal);
        assert_eq!(put(&mut model, fd, 3, template), Status::Internal);
        // The map that was never stored is not held, and the one that was still is.
        let before = model.memory_stats();
        assert_eq!(free(&mut model, other), Status::Success);
        let without = model.memory_stats();
        assert_eq!(without.maps + 1, before.maps);
        assert_eq!(free(&mut model, inner), Status::Success);
        assert_eq!(model.memory_stats(), without);
        assert_eq!(free(&mut model, fd), Status::Success);
        assert_eq!(model.memory_stats().maps, 1);
    }
}

/// A host that stores, frees and scribbles over device memory, and a model of what each step
/// must be: memory is whole again at the end, whatever was written.
#[test]
fn a_hostile_host_frees_nothing_that_is_held() {
    for seed in 1..=6 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = move |bound: u64| random.next_u64() % bound;
        let scribbles = seed > 3;
        let mut model = model();
        let template = plain(&mut model, HASH, 8, 4);
        let outers: Vec<MapHandle> = OUTER
            .iter()
            .map(|map_type| outer(&mut model, *map_type, 8, template))
            .collect();
        let mut inner: Vec<MapHandle> = Vec::new();
        let mut held: BTreeMap<(usize, u32), MapHandle> = BTreeMap::new();
        for step in 0..20_000 {
            let (which, n) = (below(2) as usize, below(8) as u32);
            let fd = outers[which];
            match below(8) {
                0 if inner.len() < 12 => {
                    if let Ok(handle) = try_create(&mut model, body(HASH, 8, 4), 0) {
                        let marked = model.update(handle, &key(0), &mark(handle), 0);
                        assert_eq!(marked, Status::Success);
                        inner.push(handle);
                    }
                }
                1 if !inner.is_empty() => {
                    let at = below(inner.len() as u64) as usize;
                    let handle = inner.swap_remove(at);
                    assert_eq!(free(&mut model, handle), Status::Success);
                }
                2..5 if !inner.is_empty() => {
                    let handle = inner[below(inner.len() as u64) as usize];
                    let done = put(&mut model, fd, n, handle);
                    if done == Status::Success {
                        held.insert((which, n), handle);
                    } else {
                        assert!(scribbles, "step {step}: {done:?}");
                    }
                }
                5 => {
                    let done = model.delete(fd, &key(n));
                    if !scribbles {
                        let was = held.contains_key(&(which, n));
                        assert_eq!(done == Status::Success, was, "step {step}: {done:?}");
                    }
                    if done == Status::Success {
                        held.remove(&(which, n));
                    }
                }
                6 if scribbles => {
                    let at = below(1 << 15) & !3;
                    let word = below(1 << 32) as u32;
                    model.write_memory(DevAddr(at), &word.to_le_bytes());
                }
                _ => {
                    let mut value = [0; 8];
                    let done = model.engine_lookup_inner(1, fd, &key(n), &key(0), &mut value);
                    if !scribbles {
                        match held.get(&(which, n)) {
                            Some(handle) => {
                                assert_eq!((done, value), (Status::Success, mark(*handle)));
                            }
                            None => assert_eq!(done, Status::NotFound),
                        }
                    }
                }
            }
        }
        for handle in inner.into_iter().chain(outers).chain([template]) {
            assert_eq!(free(&mut model, handle), Status::Success);
        }
        let stats = model.memory_stats();
        assert_eq!(
            (stats.maps, stats.free_bytes),
            (0, stats.total_bytes),
            "seed {seed}"
        );
    }
}

fn mark(handle: MapHandle) -> [u8; 8] {
    u64::from(handle.0).to_le_bytes()
}

#[test]
fn a_reset_forgets_what_was_held() {
    let mut config = Config::with_memory(1 << 20);
    config.maps = 3;
    let mut model = firmware(config);
    // More often than the map table has slots to spare.
    for _ in 0..4_200 {
        let template = plain(&mut model, HASH, 8, 4);
        let fd = outer(&mut model, HM, 4, template);
        assert_eq!(put(&mut model, fd, 0, template), Status::Success);
        assert_eq!(free(&mut model, template), Status::Success);
        assert_eq!(get(&mut model, fd, 0), Ok(template.0));
        model.reset();
        assert_eq!(model.memory_stats().maps, 0);
        for _ in 0..3 {
            plain(&mut model, HASH, 8, 4);
        }
        model.reset();
    }
}
