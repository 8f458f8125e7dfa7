//! Maps: every element and batch command, every status that a host can bring about.

use super::Bench;
use super::elements::{Carry, Table};
use super::host::{Host, next_request};
use super::skip;
use offmap_abi::admin::{EmptyBody, Limit, LimitDetail};
use offmap_abi::regs::{self, Features};
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{Completion, IoOpcode, MapHandle, Status, Submission, SubmissionFlags};
use offmap_device_io::{BarOffset, Function};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::little_endian::{U32, U64};

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
/// The most device memory that a case fills, and that one searches.
const FILLED_MAX: u64 = 64 << 20;
pub(crate) const SEARCHED_MAX: u64 = 2 << 20;

fn key(size: usize, i: u32) -> Vec<u8> {
    let mut key = vec![0xa5; size];
    let n = size.min(4);
    key[size - n..].copy_from_slice(&i.to_le_bytes()[..n]);
    key
}

fn value(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32)
        .map(|i| (i * 7 + seed * 31) as u8 ^ (seed >> 8) as u8)
        .collect()
}

/// Stored, found, overwritten, taken: around every size at which operands travel differently.
pub fn elements_round_trip_at_every_size<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let limits = host.identify();
    let (longest_key, longest_value) = (limits.key_bytes.get(), limits.value_bytes.get());
    for key_bytes in [1, 2, 4, 7, 8, 15, 16, 17, 24, 48, 49, 64, 512] {
        for value_bytes in [1, 3, 8, 15, 16, 17, 47, 48, 49, 64, 1000, 4096, 65536] {
            if key_bytes as u32 > longest_key || value_bytes as u32 > longest_value {
                continue;
            }
            let body = Host::<F>::map_body(HASH, key_bytes as u32, value_bytes as u32, 6);
            let map = host.map(&body);
            let mut table = Table::new(&host, &mut queue, map, (key_bytes, value_bytes), 1);
            for carry in [Carry::Inline, Carry::Iova] {
                table.carry = carry;
                for i in 0..6 {
                    let (key, value) = (key(key_bytes, i), value(value_bytes, i));
                    assert_eq!(table.update(&key, &value, 1), Status::Success);
                    assert_eq!(table.lookup(&key), Ok(value));
                }
                assert_eq!(table.keys(6).len(), 6);
                for i in 0..6 {
                    let (key, new) = (key(key_bytes, i), value(value_bytes, i + 99));
                    assert_eq!(table.update(&key, &new, 2), Status::Success);
                    assert_eq!(table.take(&key), Ok(new));
                    assert_eq!(table.lookup(&key), Err(Status::NotFound));
                }
                assert_eq!(table.next(None), Err(Status::NotFound));
            }
            drop(table);
            assert_eq!(host.free(map), Status::Success);
        }
    }
}

/// The statuses of element commands.
pub fn every_element_status<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 16, 2));
    let mut table = Table::new(&host, &mut queue, map, (8, 16), 1);
    let (a, b, c) = (key(8, 1), key(8, 2), key(8, 3));
    let v = value(16, 1);
    assert_eq!(table.lookup(&a), Err(Status::NotFound));
    assert_eq!(table.delete(&a), Status::NotFound);
    assert_eq!(table.take(&a), Err(Status::NotFound));
    assert_eq!(table.next(Some(&a)), Err(Status::NotFound));
    assert_eq!(table.update(&a, &v, 2), Status::NotFound);
    assert_eq!(table.update(&a, &v, 1), Status::Success);
    assert_eq!(table.update(&a, &v, 1), Status::Exists);
    assert_eq!(table.update(&b, &v, 0), Status::Success);
    assert_eq!(table.update(&c, &v, 0), Status::Full);
    assert_eq!(table.update(&c, &v, 1), Status::Full);
    assert_eq!(table.update(&c, &v, 2), Status::NotFound);
    assert_eq!(
        table.update(&b, &v, 0),
        Status::Success,
        "replacing in a full map"
    );
    for flags in [3, 4, 1 << 31] {
        assert_eq!(table.update(&a, &v, flags), Status::InvalidField, "{flags}");
    }
    let wrong = [
        table.element(IoOpcode::Update, Some(&a[..7]), Some(&v), 0, 0),
        table.element(IoOpcode::Update, Some(&a), Some(&v[..15]), 0, 0),
        table.element(IoOpcode::Lookup, Some(&a[..4]), None, 16, 0),
        table.element(IoOpcode::Lookup, Some(&a), None, 15, 0),
        table.element(IoOpcode::Delete, Some(&[0; 9]), None, 0, 0),
        table.element(IoOpcode::GetFirst, None, None, 7, 0),
        table.element(IoOpcode::GetNext, Some(&a[..1]), None, 8, 0),
    ];
    for entry in wrong {
        let done = table.queue.run(entry);
        assert_eq!(done.status(), Status::InvalidLength, "{entry:?}");
    }
    let flagged = table.element(IoOpcode::Lookup, Some(&a), None, 16, 1);
    assert_eq!(table.queue.run(flagged).status(), Status::InvalidField);
    assert_eq!(
        table.lookup(&a),
        Ok(v.clone()),
        "none of it changed anything"
    );

    // An operand said to be inside the descriptor though it cannot be.
    drop(table);
    let long = host.map(&Host::<F>::map_body(HASH, 17, 49, 2));
    let mut table = Table::new(&host, &mut queue, long, (17, 49), 1);
    assert_eq!(table.update(&key(17, 1), &value(49, 1), 0), Status::Success);
    for flags in [SubmissionFlags::KEY_INLINE, SubmissionFlags::VALUE_INLINE] {
        let (k, v) = (key(17, 1), value(49, 1));
        for entry in [
            table.element(IoOpcode::Lookup, Some(&k), None, 49, 0),
            table.element(IoOpcode::Update, Some(&k), Some(&v), 0, 0),
        ] {
            let done = table.queue.run(entry.with_flags(flags));
            assert_eq!(done.status(), Status::InvalidField, "{flags:?} {entry:?}");
        }
    }
}

/// Batches of none, one, some, the most, and one more.
pub fn every_batch_count<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    host.need_features(Features::BATCH);
    let most = host.identify().batch.get() as usize;
    let mut queue = bench.queue(&host, 1, 4);
    for (key_bytes, value_bytes) in [(8, 64), (4, 3), (20, 200)] {
        let entries = most as u32 + 10;
        let body = Host::<F>::map_body(HASH, key_bytes as u32, value_bytes as u32, entries);
        let map = host.map(&body);
        let mut table = Table::new(&host, &mut queue, map, (key_bytes, value_bytes), most + 1);
        for count in [0, 1, 64, 1024, most] {
            let keys: Vec<_> = (0..count as u32).map(|i| key(key_bytes, i)).collect();
            let values: Vec<_> = (0..count as u32).map(|i| value(value_bytes, i)).collect();
            let all = (Status::Success, count as u32, vec![Status::Success; count]);
            assert_eq!(table.run_batch(IoOpcode::BatchUpdate, &keys, &values), all);
            assert_eq!(host.query(map).unwrap().entries.get(), count as u32);
            assert_eq!(table.run_batch(IoOpcode::BatchLookup, &keys, &[]), all);
            assert_eq!(table.values(count), values);
            assert_eq!(table.run_batch(IoOpcode::BatchDelete, &keys, &[]), all);
            let missing = vec![Status::NotFound; count];
            let (status, done, each) = table.run_batch(IoOpcode::BatchLookup, &keys, &[]);
            assert_eq!(
                (status, done as usize, each),
                (Status::Success, count, missing)
            );
        }
        for opcode in [
            IoOpcode::BatchUpdate,
            IoOpcode::BatchLookup,
            IoOpcode::BatchDelete,
            IoOpcode::BatchDump,
            IoOpcode::BatchDumpDelete,
        ] {
            for count in [most as u32 + 1, u32::MAX] {
                let done = table.queue.run(table.batch(opcode, count, 0, 0));
                assert_eq!(done.status(), Status::InvalidField, "{opcode:?} of {count}");
            }
        }
        drop(table);
        assert_eq!(host.free(map), Status::Success);
    }
}

/// Elements before the failure are done, it and those after it are not.
pub fn batch_update_stops_at_the_first_failure<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, 100));
    let mut table = Table::new(&host, &mut queue, map, (8, 8), 150);
    let keys: Vec<_> = (0..150).map(|i| key(8, i)).collect();
    let values: Vec<_> = (0..150).map(|i| value(8, i)).collect();
    let (status, done, each) = table.run_batch(IoOpcode::BatchUpdate, &keys, &values);
    assert_eq!((status, done), (Status::Full, 100));
    assert_eq!(each[99], Status::Success);
    assert_eq!(each[100], Status::Full);
    assert_eq!(table.lookup(&keys[99]), Ok(values[99].clone()));
    assert_eq!(table.lookup(&keys[100]), Err(Status::NotFound));
    let from_90: Vec<_> = keys[90..].to_vec();
    let (status, done, each) = table.run_batch(IoOpcode::BatchDelete, &from_90, &[]);
    assert_eq!((status, done), (Status::NotFound, 10));
    assert_eq!(each[10], Status::NotFound);
    assert_eq!(host.query(map).unwrap().entries.get(), 90);
}

/// A walk by dumps, of every count, returns each element once; with deletion nothing is left.
pub fn dumps_return_everything_once<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for (map_type, key_bytes) in [(HASH, 8), (ARRAY, 4)] {
        let map = host.map(&Host::<F>::map_body(map_type, key_bytes, 24, 500));
        let key_bytes = key_bytes as usize;
        let mut table = Table::new(&host, &mut queue, map, (key_bytes, 24), 500);
        let bytes = |i: u32| match map_type {
            ARRAY => i.to_le_bytes().to_vec(),
            _ => key(key_bytes, i),
        };
        let all: BTreeMap<_, _> = (0..500).map(|i| (bytes(i), value(24, i))).collect();
        for (key, value) in &all {
            assert_eq!(table.update(key, value, 0), Status::Success);
        }
        let deletes = if map_type == HASH {
            &[false, true][..]
        } else {
            &[false]
        };
        for delete in deletes {
            for start in [1u32, 7, 64, 499, 500] {
                let mut opcode = IoOpcode::BatchDump;
                if *delete {
                    opcode = IoOpcode::BatchDumpDelete;
                    for (key, value) in &all {
                        assert_eq!(table.update(key, value, 0), Status::Success);
                    }
                }
                let (mut seen, mut cursor, mut count) = (BTreeMap::new(), 0, start);
                for _ in 0..3000 {
                    let dump = table.dump(opcode, count, cursor);
                    assert!(dump.cursor <= u64::from(u32::MAX), "cursors fit 32 bits");
                    for (key, value) in dump.elements {
                        assert_eq!(seen.insert(key, value), None, "a key came twice");
                    }
                    match dump.status {
                        Status::Success => cursor = dump.cursor,
                        Status::NoSpace => count = dump.needed,
                        Status::NotFound => break,
                        status => panic!("{status:?}"),
                    }
                }
                assert_eq!(seen, all, "dumps of {start}");
                if *delete {
                    assert_eq!(host.query(map).unwrap().entries.get(), 0);
                }
            }
        }
    }
}

/// A bucket larger than the room: nothing is returned, and how much room it takes.
pub fn dump_says_what_it_needs<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 4, 4, 4000));
    let mut table = Table::new(&host, &mut queue, map, (4, 4), 4000);
    for i in 0..4000u32 {
        assert_eq!(table.update(&i.to_le_bytes(), &[1; 4], 0), Status::Success);
    }
    let (mut cursor, mut refused, mut seen) = (0, 0, 0);
    loop {
        let dump = table.dump(IoOpcode::BatchDump, 1, cursor);
        match dump.status {
            Status::Success => {
                seen += dump.elements.len();
                cursor = dump.cursor;
            }
            Status::NoSpace => {
                refused += 1;
                assert!(dump.elements.is_empty() && dump.needed > 1);
                let again = table.dump(IoOpcode::BatchDump, dump.needed, cursor);
                assert_eq!(again.elements.len(), dump.needed as usize);
                seen += again.elements.len();
                if again.status == Status::NotFound {
                    break;
                }
                cursor = again.cursor;
            }
            Status::NotFound => {
                seen += dump.elements.len();
                break;
            }
            status => panic!("{status:?}"),
        }
    }
    assert_eq!(seen, 4000);
    assert!(refused > 0, "4,000 random keys without two in a bucket");
    // A cursor that no dump returned is the end, or a status; never elements.
    for cursor in [u64::from(u32::MAX), u64::MAX] {
        let dump = table.dump(IoOpcode::BatchDump, 10, cursor);
        assert!(dump.elements.is_empty());
        assert_ne!(dump.status, Status::Success);
    }
}

/// GET_FIRST and GET_NEXT: all keys once; a missing key starts over; no key that stays is
/// skipped when others go.
pub fn walks_by_next_key<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 20, 8, 300));
    let mut table = Table::new(&host, &mut queue, map, (20, 8), 1);
    for i in 0..300 {
        assert_eq!(table.update(&key(20, i), &[0; 8], 0), Status::Success);
    }
    let keys = table.keys(300);
    let set: BTreeSet<_> = keys.iter().cloned().collect();
    assert_eq!(set.len(), 300);
    assert_eq!(table.next(Some(&key(20, 999))), Ok(keys[0].clone()));
    // Every key but the current one is deleted behind the walker's back, two of three.
    let mut at = table.next(None).ok();
    let (mut visited, mut gone) = (BTreeSet::new(), BTreeSet::new());
    let mut i = 0;
    while let Some(current) = at {
        visited.insert(current.clone());
        for _ in 0..2 {
            i += 1;
            let victim = key(20, i % 300);
            if i < 200 && victim != current && table.delete(&victim) == Status::Success {
                gone.insert(victim);
            }
        }
        at = table.next(Some(&current)).ok();
        assert!(visited.len() <= 300);
    }
    for stayed in set.difference(&gone) {
        assert!(visited.contains(stayed), "skipped {stayed:x?}");
    }
}

/// What arrays answer.
pub fn arrays<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for max in [1u32, 2, 3, 100] {
        let map = host.map(&Host::<F>::map_body(ARRAY, 4, 12, max));
        let mut table = Table::new(&host, &mut queue, map, (4, 12), 1);
        let at = |i: u32| i.to_le_bytes();
        assert_eq!(table.lookup(&at(max - 1)), Ok(vec![0; 12]), "prefilled");
        assert_eq!(
            table.update(&at(max - 1), &value(12, 1), 0),
            Status::Success
        );
        assert_eq!(
            table.update(&at(max - 1), &value(12, 2), 2),
            Status::Success
        );
        assert_eq!(table.update(&at(max - 1), &value(12, 3), 1), Status::Exists);
        assert_eq!(table.lookup(&at(max - 1)), Ok(value(12, 2)));
        for outside in [max, max + 1, u32::MAX] {
            assert_eq!(table.lookup(&at(outside)), Err(Status::OutOfRange));
            assert_eq!(table.update(&at(outside), &[0; 12], 0), Status::OutOfRange);
            assert_eq!(table.next(Some(&at(outside))), Ok(at(0).to_vec()));
        }
        assert_eq!(table.delete(&at(0)), Status::Unsupported);
        assert_eq!(table.take(&at(0)), Err(Status::Unsupported));
        assert_eq!(table.next(None), Ok(at(0).to_vec()));
        assert_eq!(table.next(Some(&at(max - 1))), Err(Status::NotFound));
        assert_eq!(table.keys(max as usize).len(), max as usize);
        for opcode in [IoOpcode::BatchDelete, IoOpcode::BatchDumpDelete] {
            let done = table.queue.run(table.batch(opcode, 1, 0, 0));
            assert_eq!(done.status(), Status::Unsupported);
        }
    }
}

/// A per-CPU map has a value per slot; an update from the host sets them all.
pub fn percpu_slots<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for map_type in [PERCPU_HASH, PERCPU_ARRAY] {
        for slots in [1u32, 2, 7, 64] {
            for value_size in [1u32, 8, 13] {
                let stride = value_size.next_multiple_of(8) as usize * slots as usize;
                let mut body = Host::<F>::map_body(map_type, 4, value_size, 3);
                body.cpu_slots = U32::new(slots);
                let map = host.map(&body);
                let mut table = Table::new(&host, &mut queue, map, (4, stride), 3);
                let keys: Vec<_> = (0..3u32).map(|i| i.to_le_bytes().to_vec()).collect();
                let values: Vec<_> = (0..3).map(|i| value(stride, i)).collect();
                for (key, value) in keys.iter().zip(&values) {
                    assert_eq!(table.update(key, value, 0), Status::Success);
                    assert_eq!(table.lookup(key).as_ref(), Ok(value));
                }
                let (status, ..) = table.run_batch(IoOpcode::BatchLookup, &keys, &[]);
                assert_eq!(status, Status::Success);
                assert_eq!(table.values(3), values);
                drop(table);
                assert_eq!(host.free(map), Status::Success);
            }
        }
    }
    let mut body = Host::<F>::map_body(PERCPU_HASH, 4, 8, 3);
    let status = |body: &_| host.try_map(body).map_err(|c| c.status()).err();
    assert_eq!(status(&body), Some(Status::InvalidField), "no slots");
    body.map_type = U32::new(HASH);
    body.cpu_slots = U32::new(2);
    assert_eq!(
        status(&body),
        Some(Status::InvalidField),
        "slots without a per-CPU type"
    );
}

/// Each limit's refusal names the limit, what was asked and what is allowed.
pub fn limits_say_what_was_exceeded<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| {
        wanted.maps = Some(3);
        wanted.entries_total = Some(5000);
        wanted.entries_per_map = Some(4000);
    });
    let limits = host.identify();
    let (maps, per_map) = (limits.maps.get(), limits.entries_per_map.get());
    let total = limits.entries_total.get();
    if bench.is_made() {
        assert_eq!((maps, per_map, total), (3, 4000, 5000));
    }
    let detail = |done: Completion| (done.status(), done.payload_as::<LimitDetail>());
    let refused = |limit: Limit, asked: u64, allowed: u64, used: u64, body| {
        let (status, detail) = detail(host.try_map(&body).expect_err("a refusal"));
        assert_eq!(status, Status::LimitExceeded, "{limit:?}: {detail:?}");
        assert_eq!(Limit(detail.limit.get()), limit);
        let got = (detail.asked.get(), detail.allowed.get(), detail.used.get());
        assert_eq!(got, (asked, allowed, used), "{limit:?}");
    };
    let body = Host::<F>::map_body;
    let types = limits.map_types.get();
    refused(Limit::MapType, 31, types, 0, body(31, 4, 4, 4));
    let most = u64::from(limits.key_bytes.get());
    refused(
        Limit::KeyBytes,
        most + 1,
        most,
        0,
        body(HASH, most as u32 + 1, 4, 4),
    );
    let most = u64::from(limits.value_bytes.get());
    refused(
        Limit::ValueBytes,
        most + 1,
        most,
        0,
        body(HASH, 4, most as u32 + 1, 4),
    );
    if let Some(asked) = per_map.checked_add(1) {
        let body = body(HASH, 4, 4, asked);
        refused(Limit::EntriesPerMap, asked.into(), per_map.into(), 0, body);
    }
    // Three maps are left; those that were taken up have an entry each. Where all entries together have a limit, it can be reached with two.
    let (mut three, per_map) = (Vec::new(), u64::from(per_map));
    let taken = if bench.is_made() {
        0
    } else {
        u64::from(maps.saturating_sub(3))
    };
    let first = per_map.min(total.saturating_sub(taken + 2)).min(1 << 20);
    // Memory may come to its end before.
    let fits = (first > 0 && total - taken - first < per_map.min(1 << 20))
        .then(|| host.try_map(&body(HASH, 4, 4, first as u32)));
    if let Some(Ok(created)) = fits {
        three.push(MapHandle(created.map.get()));
        let asked = total - taken - first + 1;
        let over = body(HASH, 4, 4, asked as u32);
        let used = taken + first;
        refused(Limit::EntriesTotal, asked, total, used, over);
        three.push(host.map(&body(HASH, 4, 4, ((asked - 1) / 2) as u32)));
        three.push(host.map(&body(HASH, 4, 4, ((asked - 1) / 2) as u32)));
        assert_eq!(host.free(three.remove(0)), Status::Success);
    }
    assert!(!bench.is_made() || three.len() == 2, "no limit of entries");
    while three.len() < 3 {
        three.push(host.map(&body(ARRAY, 4, 4, 10)));
    }
    refused(
        Limit::Maps,
        1,
        maps.into(),
        maps.into(),
        body(HASH, 4, 4, 1),
    );
    assert_eq!(host.free(three[2]), Status::Success);
    for bad in [
        body(HASH, 0, 4, 4),
        body(HASH, 4, 0, 4),
        body(HASH, 4, 4, 0),
        body(ARRAY, 8, 4, 4),
    ] {
        let (status, _) = detail(host.try_map(&bad).expect_err("a refusal"));
        assert_eq!(status, Status::InvalidField, "{bad:?}");
    }
}

/// Device memory used up: the refusal says so, and everything stored is still there.
pub fn out_of_memory_keeps_what_is_stored<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.memory_bytes = 4 << 20);
    let mut queue = bench.queue(&host, 1, 4);
    let body = Host::<F>::map_body(HASH, 8, 64, 1000);
    let probe = host.map(&body);
    let free = host.query(probe).unwrap().free_bytes.get();
    assert_eq!(host.free(probe), Status::Success);
    let mut maps: Vec<MapHandle> = Vec::new();
    if free > FILLED_MAX {
        skip(format!(
            "{} MiB of device memory are free, and a case fills no more than {} MiB",
            free >> 20,
            FILLED_MAX >> 20
        ));
    }
    let refusal = loop {
        match host.try_map(&body) {
            Ok(created) => maps.push(MapHandle(created.map.get())),
            Err(done) => break done,
        }
        let map = *maps.last().unwrap();
        let n = maps.len() as u32;
        let mut table = Table::new(&host, &mut queue, map, (8, 64), 1);
        for i in 0..1000 {
            assert_eq!(
                table.update(&key(8, i), &value(64, i ^ n), 0),
                Status::Success
            );
        }
    };
    let detail: LimitDetail = refusal.payload_as();
    if refusal.status() == Status::LimitExceeded && !bench.is_made() {
        skip("the device has too few maps or entries to fill its memory with");
    }
    assert_eq!(refusal.status(), Status::NoMemory);
    assert_eq!(Limit(detail.limit.get()), Limit::Memory);
    assert!(detail.asked.get() > detail.allowed.get());
    assert!(detail.used.get() > free / 2);
    assert!(maps.len() > 5, "only {} maps fit", maps.len());
    for (n, map) in maps.iter().enumerate() {
        let mut table = Table::new(&host, &mut queue, *map, (8, 64), 1);
        for i in 0..1000 {
            assert_eq!(table.lookup(&key(8, i)), Ok(value(64, i ^ (n as u32 + 1))));
        }
        assert_eq!(table.keys(1000).len(), 1000);
    }
    // What is given back can be had again.
    assert_eq!(host.free(maps[2]), Status::Success);
    host.map(&body);
}

/// A handle kept past MAP_FREE never reaches the map that took its slot.
pub fn stale_handles_are_refused<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.maps = Some(1));
    let mut queue = bench.queue(&host, 1, 4);
    let body = Host::<F>::map_body(HASH, 8, 8, 4);
    let mut stale = vec![MapHandle(0), MapHandle(u32::MAX), MapHandle(1)];
    for _ in 0..50 {
        let map = host.map(&body);
        assert!(!stale.contains(&map), "a handle came twice at once");
        for old in stale.iter().rev().take(10) {
            let mut table = Table::new(&host, &mut queue, *old, (8, 8), 1);
            assert_eq!(table.lookup(&[0; 8]), Err(Status::InvalidMap));
            assert_eq!(table.update(&[0; 8], &[0; 8], 0), Status::InvalidMap);
            let dump = table.batch(IoOpcode::BatchDump, 1, 0, 0);
            assert_eq!(table.queue.run(dump).status(), Status::InvalidMap);
            assert_eq!(host.free(*old), Status::InvalidMap);
            assert_eq!(host.query(*old), Err(Status::InvalidMap));
        }
        assert_eq!(host.query(map).unwrap().entries.get(), 0);
        assert_eq!(host.free(map), Status::Success);
        stale.push(map);
    }
}

/// Operands where nothing is mapped: a status for that command, and the map is as it was.
pub fn unreachable_memory_is_a_dma_fault<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 32, 64, 4));
    let mut table = Table::new(&host, &mut queue, map, (32, 64), 2);
    let (k, v) = (key(32, 1), value(64, 1));
    assert_eq!(table.update(&k, &v, 0), Status::Success);
    let page = host.dma(4096);
    page.buffer().write(0, &k);
    let end_of_page = page.iova(4096 - 8).0;
    for bad in [0, 1 << 60, u64::MAX - 7, u64::MAX] {
        for opcode in [
            IoOpcode::Lookup,
            IoOpcode::Update,
            IoOpcode::Delete,
            IoOpcode::GetNext,
            IoOpcode::LookupAndDelete,
        ] {
            // A deletion has no value, and a field that is not used is zero.
            let room = if opcode == IoOpcode::Delete { 0 } else { 64 };
            let mut entry = table.element(opcode, Some(&k), None, room, 0);
            let mut body: ElementBody = entry.body();
            body.key = IovaRef::field(bad);
            entry
                .body
                .copy_from_slice(zerocopy::IntoBytes::as_bytes(&body));
            assert_eq!(
                table.queue.run(entry).status(),
                Status::DmaFault,
                "{opcode:?}"
            );
        }
        for opcode in [
            IoOpcode::Lookup,
            IoOpcode::Update,
            IoOpcode::LookupAndDelete,
        ] {
            let mut entry = table.element(opcode, Some(&k), None, 64, 0);
            let mut body: ElementBody = entry.body();
            body.value = IovaRef::field(bad);
            entry
                .body
                .copy_from_slice(zerocopy::IntoBytes::as_bytes(&body));
            assert_eq!(
                table.queue.run(entry).status(),
                Status::DmaFault,
                "{opcode:?}"
            );
        }
        for field in 0..3 {
            let mut entry = table.batch(IoOpcode::BatchLookup, 2, 0, 0);
            let mut body: BatchBody = entry.body();
            let address = if field == 0 {
                &mut body.keys
            } else {
                &mut body.statuses
            };
            *address = U64::new(if field == 2 { end_of_page + 7 } else { bad });
            entry
                .body
                .copy_from_slice(zerocopy::IntoBytes::as_bytes(&body));
            let done = table.queue.run(entry);
            let expected = [Status::DmaFault, Status::DmaFault][usize::from(field == 0)];
            assert_eq!(done.status(), expected, "field {field}");
        }
    }
    assert_eq!(table.lookup(&k), Ok(v));
    assert_eq!(table.keys(4).len(), 1);
}

/// Created and freed over and over, no byte of device memory stays behind.
pub fn ten_thousand_maps_leak_nothing<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let witness = host.map(&Host::<F>::map_body(ARRAY, 4, 8, 1));
    let before = host.query(witness).unwrap();
    for i in 0..10_000u32 {
        let map_type = [HASH, ARRAY][i as usize % 2];
        let map = host.map(&Host::<F>::map_body(map_type, 4, 1 + i % 100, 1 + i % 50));
        assert_eq!(host.free(map), Status::Success);
    }
    let at_once = host.identify().maps.get().min(100);
    let mut several: Vec<_> = (1..at_once)
        .map(|i| host.map(&Host::<F>::map_body(HASH, 1 + i % 64, 8, i * 3)))
        .collect();
    // Freed in another order than created, so that pieces have to be joined again.
    for stride in [3, 2, 1] {
        let mut i = 0;
        while i < several.len() {
            assert_eq!(host.free(several.swap_remove(i)), Status::Success);
            i += stride;
        }
    }
    for map in several {
        assert_eq!(host.free(map), Status::Success);
    }
    let after = host.query(witness).unwrap();
    assert_eq!(after.free_bytes, before.free_bytes);
    assert_eq!(after.free_largest, before.free_largest);
}

/// What a host stores can be found in device memory through BAR2.
pub fn the_window_shows_what_is_stored<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.memory_bytes = SEARCHED_MAX);
    host.need_features(Features::MEMORY_WINDOW);
    let memory = host.identify().memory_bytes.get();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, 4));
    let mut table = Table::new(&host, &mut queue, map, (8, 8), 1);
    let (needle, other) = (0x5eed_cafe_f00d_1234_u64, 0x1122_3344_5566_7788_u64);
    assert_eq!(
        table.update(&key(8, 1), &needle.to_le_bytes(), 0),
        Status::Success
    );
    let function = host.function();
    let mut found = Vec::new();
    for base in (0..memory.min(SEARCHED_MAX)).step_by(regs::WINDOW_BYTES as usize) {
        function
            .write64(0, BarOffset(regs::WINDOW_BASE), base)
            .unwrap();
        for at in (0..regs::WINDOW_BYTES).step_by(8) {
            if function.read64(2, BarOffset(at)).unwrap() == needle {
                found.push((base, at));
            }
        }
    }
    if found.is_empty() && memory > SEARCHED_MAX {
        skip(format!(
            "the value is not in the first {} MiB of device memory, and no more is searched",
            SEARCHED_MAX >> 20
        ));
    }
    let [(base, at)] = found[..] else {
        panic!("the value is at {found:x?}");
    };
    // Written through the window, the next lookup returns it.
    function
        .write64(0, BarOffset(regs::WINDOW_BASE), base)
        .unwrap();
    function.write64(2, BarOffset(at), other).unwrap();
    assert_eq!(table.lookup(&key(8, 1)), Ok(other.to_le_bytes().to_vec()));
    // Past the end of memory: all ones, and writes go nowhere.
    let past = if bench.is_made() { memory } else { 1 << 60 };
    function
        .write64(0, BarOffset(regs::WINDOW_BASE), past)
        .unwrap();
    assert_eq!(function.read64(2, BarOffset(0)).unwrap(), u64::MAX);
    function.write64(2, BarOffset(0), 0).unwrap();
    assert_eq!(table.keys(4).len(), 1);
}

/// An opcode that is none, on a map and on none.
pub fn unknown_io_opcodes_are_answered<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, 4));
    for opcode in 0..=u8::MAX {
        if IoOpcode(opcode).name().is_none() {
            let entry = Submission::new(opcode, next_request(), &EmptyBody::ZERO);
            assert_eq!(
                queue.run(entry).status(),
                Status::InvalidOpcode,
                "{opcode:#x}"
            );
            let done = queue.run(entry.with_map(map));
            assert_eq!(done.status(), Status::InvalidOpcode, "{opcode:#x}");
        }
    }
}
