//! Tries and bloom filters.

use super::Bench;
use super::elements::{Carry, Table};
use super::host::Host;
use offmap_abi::{IoOpcode, Status};
use offmap_device_io::Function;
use zerocopy::little_endian::U32;

const LPM_TRIE: u32 = 11;
const BLOOM_FILTER: u32 = 30;

fn prefix(bits: u32, data: &[u8]) -> Vec<u8> {
    [&bits.to_le_bytes(), data].concat()
}

/// The longest prefix that covers a key answers; what is given beyond a prefix comes back.
pub fn tries_match_the_longest_prefix<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for (data, value_bytes) in [(4, 8), (16, 60), (256, 3)] {
        let body = Host::<F>::map_body(LPM_TRIE, 4 + data as u32, value_bytes as u32, 4);
        let map = host.map(&body);
        let mut table = Table::new(&host, &mut queue, map, (4 + data, value_bytes), 1);
        let bits = 8 * data as u32;
        let value = |n: u8| vec![n; value_bytes];
        let key = |len, first: [u8; 3], rest: u8| {
            let mut bytes = vec![rest; data];
            bytes[..3].copy_from_slice(&first);
            prefix(len, &bytes)
        };
        for carry in [Carry::Inline, Carry::Iova] {
            table.carry = carry;
            let any = key(bits, [10, 1, 9], 0);
            assert_eq!(table.lookup(&any), Err(Status::NotFound));
            let nested = [
                key(0, [0; 3], 0),
                key(8, [10, 0, 0], 0x55),
                key(16, [10, 1, 0], 0),
                key(24, [10, 2, 3], 0),
            ];
            for (n, key) in nested.iter().enumerate() {
                assert_eq!(table.update(key, &value(n as u8), 2), Status::NotFound);
                assert_eq!(table.update(key, &value(n as u8), 1), Status::Success);
                assert_eq!(table.update(key, &value(n as u8), 1), Status::Exists);
            }
            for (len, first, found) in [
                (bits, [11, 1, 1], 0),
                (bits, [10, 9, 9], 1),
                (bits, [10, 1, 9], 2),
                (16, [10, 1, 9], 2),
                (15, [10, 1, 9], 1),
                (bits, [10, 2, 3], 3),
                (23, [10, 2, 3], 1),
                (7, [10, 2, 3], 0),
                (0, [255; 3], 0),
            ] {
                let key = key(len, first, 0xff);
                assert_eq!(table.lookup(&key), Ok(value(found)), "{key:?}");
            }
            // Full, but for what is there, whatever its bits beyond the prefix.
            assert_eq!(table.update(&any, &value(9), 0), Status::Full);
            assert_eq!(table.update(&any, &value(9), 2), Status::NotFound);
            let same = key(8, [10, 77, 77], 0x77);
            assert_eq!(table.update(&same, &value(9), 0), Status::Success);
            assert_eq!(table.lookup(&key(9, [10, 99, 0], 0)), Ok(value(9)));
            assert!(table.keys(4).contains(&same), "its own bits are the last");
            // Longer than the key.
            for len in [bits + 1, u32::MAX] {
                let long = key(len, [10, 1, 1], 0);
                assert_eq!(table.lookup(&long), Err(Status::NotFound));
                assert_eq!(table.update(&long, &value(9), 0), Status::OutOfRange);
                assert_eq!(table.delete(&long), Status::OutOfRange);
                assert_eq!(table.next(Some(&long)), table.next(None));
            }
            assert_eq!(table.take(&same), Err(Status::Unsupported));
            // What covered it before covers it again.
            assert_eq!(table.delete(&nested[2]), Status::Success);
            assert_eq!(table.delete(&nested[2]), Status::NotFound);
            assert_eq!(table.lookup(&any), Ok(value(9)));
            for key in [&nested[0], &nested[1], &nested[3]] {
                assert_eq!(table.delete(key), Status::Success);
            }
            assert_eq!(table.next(None), Err(Status::NotFound));
            assert_eq!(host.query(map).map(|info| info.entries.get()), Ok(0));
        }
        drop(table);
        assert_eq!(host.free(map), Status::Success);
    }
    for key_bytes in [4, 261] {
        let body = Host::<F>::map_body(LPM_TRIE, key_bytes, 8, 4);
        let refused = host.try_map(&body).expect_err("no such keys");
        assert_eq!(refused.status(), Status::InvalidField);
    }
}

/// More specific prefixes first, 0 before 1; a dump goes on after the key that it is given.
pub fn tries_list_in_post_order<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    let map = host.map(&Host::<F>::map_body(LPM_TRIE, 8, 4, 1000));
    let mut table = Table::new(&host, &mut queue, map, (8, 4), 200);
    // Every prefix of up to six bits: 127 of them; and their order, by the rule itself.
    let mut order = Vec::new();
    fn under(bits: u32, path: u8, order: &mut Vec<Vec<u8>>) {
        if bits < 6 {
            under(bits + 1, path, order);
            under(bits + 1, path | 0x80 >> bits, order);
        }
        order.push(prefix(bits, &[path, 0, 0, 0]));
    }
    under(0, 0, &mut order);
    assert_eq!(order.len(), 127);
    let values: Vec<_> = (0..127u32).map(|n| n.to_le_bytes().to_vec()).collect();
    // 50 is prime to 127, so that this is all of them, in another order.
    let mixed: Vec<usize> = (0..127).map(|n| n * 50 % 127).collect();
    let pick = |from: &[Vec<u8>]| mixed.iter().map(|&n| from[n].clone()).collect::<Vec<_>>();
    let (keys, given) = (pick(&order), pick(&values));
    let (status, count, statuses) = table.run_batch(IoOpcode::BatchUpdate, &keys, &given);
    assert_eq!((status, count), (Status::Success, 127));
    assert!(statuses.iter().all(|status| status.is_success()));
    assert_eq!(table.keys(127), order);
    let (status, ..) = table.run_batch(IoOpcode::BatchLookup, &keys, &[]);
    assert_eq!((status, table.values(127)), (Status::Success, given));

    for count in [1, 2, 13, 126, 127, 128] {
        let mut all = Vec::new();
        loop {
            let cursor = all.last().map_or(0, |(key, _): &(Vec<u8>, Vec<u8>)| {
                table.put_key(key);
                1
            });
            let dump = table.dump(IoOpcode::BatchDump, count, cursor);
            let got = dump.elements.len();
            assert_eq!(dump.cursor, cursor + got as u64);
            all.extend(dump.elements);
            assert!(all.len() <= 127);
            match dump.status {
                Status::Success => assert_eq!(got, count as usize),
                status => {
                    assert_eq!(status, Status::NotFound);
                    break;
                }
            }
        }
        let (keys, found): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        assert_eq!((keys, found), (order.clone(), values.clone()), "by {count}");
    }
    // After a key that is not there, and one that cannot be, the first.
    for strange in [prefix(7, &[0; 4]), prefix(33, &[0; 4])] {
        assert_eq!(table.next(Some(&strange)), Ok(order[0].clone()));
        table.put_key(&strange);
        let dump = table.dump(IoOpcode::BatchDump, 1, 1);
        assert_eq!(dump.elements[0].0, order[0]);
    }
    let refused = table
        .queue
        .run(table.batch(IoOpcode::BatchDumpDelete, 1, 0, 0));
    assert_eq!(refused.status(), Status::Unsupported);
    let (status, count, _) = table.run_batch(IoOpcode::BatchDelete, &keys[..100], &[]);
    assert_eq!((status, count), (Status::Success, 100));
    let left = table.keys(27);
    assert_eq!(left.len(), 27);
    assert!(left.is_sorted_by_key(|key| order.iter().position(|other| other == key)));
}

/// A value is a key of no value; what was added is there for good.
pub fn filters_hold_what_was_added<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, 4);
    for size in [1, 4, 15, 16, 17, 64, 1000] {
        let mut body = Host::<F>::map_body(BLOOM_FILTER, size as u32, 0, 100);
        let map = host.map(&body);
        let mut table = Table::new(&host, &mut queue, map, (size, 0), 1);
        for carry in [Carry::Inline, Carry::Iova] {
            table.carry = carry;
            let key = |n: u8| vec![n ^ u8::from(carry == Carry::Iova) << 7; size];
            assert_eq!(table.lookup(&key(0)), Err(Status::NotFound));
            for n in 0..20 {
                assert_eq!(table.update(&key(n), &[], 1), Status::InvalidField);
                assert_eq!(table.update(&key(n), &[], 0), Status::Success);
                assert_eq!(table.lookup(&key(n)), Ok(Vec::new()));
            }
            let wrong = (20..120).filter(|&n| table.lookup(&key(n)).is_ok()).count();
            assert!(wrong < 50, "{wrong} of 100 that were not added");
            assert_eq!(table.delete(&key(0)), Status::Unsupported);
            assert_eq!(table.take(&key(0)), Err(Status::Unsupported));
            assert_eq!(table.next(None), Err(Status::Unsupported));
            assert_eq!(table.next(Some(&key(0))), Err(Status::Unsupported));
            for n in 0..20 {
                assert_eq!(table.lookup(&key(n)), Ok(Vec::new()));
            }
        }
        for &opcode in IoOpcode::ALL.iter().filter(|opcode| opcode.is_batch()) {
            let done = table.queue.run(table.batch(opcode, 1, 0, 0));
            assert_eq!(done.status(), Status::Unsupported, "{opcode}");
        }
        drop(table);
        assert_eq!(host.free(map), Status::Success);
        body.value_size = U32::new(1);
        let refused = host.try_map(&body).expect_err("it has no values");
        assert_eq!(refused.status(), Status::InvalidField);
    }
}
