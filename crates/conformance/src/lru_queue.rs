//! Types that drop or hand out what was put in: LRU_HASH, LRU_PERCPU_HASH, QUEUE, STACK.

use super::Bench;
use super::elements::{Carry, Table};
use super::host::Host;
use offmap_abi::{IoOpcode, Status};
use offmap_device_io::Function;
use std::collections::BTreeMap;
use zerocopy::little_endian::U32;

const LRU_HASH: u32 = 9;
const LRU_PERCPU_HASH: u32 = 10;
const QUEUE: u32 = 22;
const STACK: u32 = 23;
const RINGS: [u32; 2] = [QUEUE, STACK];

fn value(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32)
        .map(|i| (i * 7 + seed * 31) as u8)
        .collect()
}

fn lru_map<F: Function>(host: &Host<F>, map_type: u32, max: u32) -> (offmap_abi::MapHandle, usize) {
    let mut body = Host::<F>::map_body(map_type, 4, 12, max);
    let percpu = map_type == LRU_PERCPU_HASH;
    body.cpu_slots = U32::new(if percpu { 3 } else { 0 });
    (host.map(&body), if percpu { 48 } else { 12 })
}

/// A new key is never refused for want of room: one other key goes, and the rest stays whole.
pub fn a_full_lru_map_evicts_one<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for map_type in [LRU_HASH, LRU_PERCPU_HASH] {
        for max in [1u32, 2, 9, 100] {
            let (map, value_bytes) = lru_map(&host, map_type, max);
            let mut table = Table::new(&host, &mut queue, map, (4, value_bytes), 1);
            for n in 0..3 * max {
                table.carry = if n % 2 == 0 {
                    Carry::Inline
                } else {
                    Carry::Iova
                };
                let (key, stored) = (n.to_le_bytes(), value(value_bytes, n));
                assert_eq!(table.update(&key, &stored, 2), Status::NotFound);
                assert_eq!(table.update(&key, &stored, 1), Status::Success);
                assert_eq!(table.update(&key, &stored, 1), Status::Exists);
                assert_eq!(table.lookup(&key), Ok(stored), "the newest is there");
                let keys = table.keys(max as usize);
                assert_eq!(keys.len() as u32, max.min(n + 1), "of {max} after {n}");
            }
            for key in table.keys(max as usize) {
                let n = u32::from_le_bytes([key[0], key[1], key[2], key[3]]);
                assert_eq!(table.take(&key), Ok(value(value_bytes, n)));
                assert_eq!(table.delete(&key), Status::NotFound);
            }
            assert_eq!(table.next(None), Err(Status::NotFound));
            drop(table);
            assert_eq!(host.query(map).map(|info| info.entries.get()), Ok(0));
            assert_eq!(host.free(map), Status::Success);
        }
    }
}

/// The batch commands of hash types, on an LRU map that evicts in the midst of them.
pub fn lru_maps_in_batches<F: Function>(bench: &Bench<F>) {
    const MAX: u32 = 40;
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for map_type in [LRU_HASH, LRU_PERCPU_HASH] {
        let (map, value_bytes) = lru_map(&host, map_type, MAX);
        let mut table = Table::new(&host, &mut queue, map, (4, value_bytes), 100);
        let keys: Vec<_> = (0..100u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let values: Vec<_> = (0..100).map(|n| value(value_bytes, n)).collect();
        let all: BTreeMap<_, _> = keys.iter().zip(&values).collect();
        let (status, count, _) = table.run_batch(IoOpcode::BatchUpdate, &keys, &values);
        assert_eq!((status, count), (Status::Success, 100));
        let dump = table.dump(IoOpcode::BatchDump, 100, 0);
        assert_eq!(dump.status, Status::NotFound);
        assert_eq!(dump.elements.len() as u32, MAX);
        assert!(dump.elements.iter().all(|(k, v)| all.get(k) == Some(&v)));
        assert!(dump.elements.iter().any(|(key, _)| *key == keys[99]));
        let (status, _, statuses) = table.run_batch(IoOpcode::BatchLookup, &keys, &[]);
        assert_eq!(status, Status::Success);
        let found = statuses.iter().filter(|status| status.is_success());
        assert_eq!(found.count() as u32, MAX);
        let there: Vec<_> = dump.elements.iter().map(|e| e.0.clone()).collect();
        let (status, count, _) = table.run_batch(IoOpcode::BatchDelete, &there[..10], &[]);
        assert_eq!((status, count), (Status::Success, 10));
        let rest = table.dump(IoOpcode::BatchDumpDelete, 100, 0);
        assert_eq!((rest.status, rest.elements.len()), (Status::NotFound, 30));
        assert_eq!(table.next(None), Err(Status::NotFound));
        drop(table);
        assert_eq!(host.free(map), Status::Success);
    }
}

/// First in, first out, or last in, first out; full, empty, overwritten, round and round.
pub fn queues_and_stacks<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for (map_type, value_bytes) in RINGS
        .into_iter()
        .flat_map(|t| [1, 16, 17, 100].map(|v| (t, v)))
    {
        let map = host.map(&Host::<F>::map_body(map_type, 0, value_bytes as u32, 3));
        let mut table = Table::new(&host, &mut queue, map, (0, value_bytes), 1);
        let v = |n| value(value_bytes, n);
        let next = |inside: &[u32]| match map_type {
            QUEUE => v(inside[0]),
            _ => v(inside[inside.len() - 1]),
        };
        for carry in [Carry::Inline, Carry::Iova, Carry::Inline] {
            table.carry = carry;
            assert_eq!(table.lookup(&[]), Err(Status::NotFound), "empty");
            assert_eq!(table.take(&[]), Err(Status::NotFound), "empty");
            for n in 1..=3 {
                assert_eq!(
                    table.update(&[], &v(n), if n == 2 { 2 } else { 0 }),
                    Status::Success
                );
            }
            assert_eq!(table.update(&[], &v(4), 0), Status::Full);
            assert_eq!(table.update(&[], &v(4), 1), Status::InvalidField);
            assert_eq!(table.lookup(&[]), Ok(next(&[1, 2, 3])));
            assert_eq!(
                table.update(&[], &v(4), 2),
                Status::Success,
                "the oldest goes"
            );
            assert_eq!(
                table.lookup(&[]),
                Ok(next(&[2, 3, 4])),
                "a peek takes nothing"
            );
            assert_eq!(table.take(&[]), Ok(next(&[2, 3, 4])));
            assert_eq!(table.update(&[], &v(5), 0), Status::Success);
            let order = match map_type {
                QUEUE => [3, 4, 5],
                _ => [5, 3, 2],
            };
            for n in order {
                assert_eq!(table.take(&[]), Ok(v(n)));
            }
        }
        drop(table);
        assert_eq!(host.free(map), Status::Success);
    }
}

/// What needs keys is refused, and so is a key where there is none.
pub fn queues_and_stacks_have_no_keys<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for map_type in RINGS {
        let map = host.map(&Host::<F>::map_body(map_type, 0, 8, 3));
        let mut table = Table::new(&host, &mut queue, map, (0, 8), 4);
        assert_eq!(table.update(&[], &[1; 8], 0), Status::Success);
        assert_eq!(table.update(&[0], &[1; 8], 0), Status::InvalidLength);
        assert_eq!(table.lookup(&[0; 4]), Err(Status::InvalidLength));
        assert_eq!(table.delete(&[]), Status::Unsupported);
        assert_eq!(table.next(None), Err(Status::Unsupported));
        assert_eq!(table.next(Some(&[])), Err(Status::Unsupported));
        for &opcode in IoOpcode::ALL.iter().filter(|opcode| opcode.is_batch()) {
            for count in [0, 1] {
                let done = table.queue.run(table.batch(opcode, count, 0, 0));
                assert_eq!(done.status(), Status::Unsupported, "{opcode}");
            }
        }
        assert_eq!(table.lookup(&[]), Ok(vec![1; 8]));
        drop(table);
        assert_eq!(host.query(map).map(|info| info.entries.get()), Ok(1));
        for key in [1, 4] {
            let refused = host.try_map(&Host::<F>::map_body(map_type, key, 8, 3));
            assert_eq!(
                refused.map_err(|done| done.status()).err(),
                Some(Status::InvalidField)
            );
        }
    }
}
