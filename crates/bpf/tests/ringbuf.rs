//! RINGBUF in host memory: format, order, room, waiting.

mod common;

use common::{Rng, attr, errno, system};
use offmap_bpf::uapi::*;
use offmap_bpf::{
    Caller, Errno, MapCreateAttr, MapFile, MapType, PollEvents, RingBufferProducer,
    RingBufferReader, System,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a thread needs that does not wait.
const GRACE: Duration = Duration::from_millis(100);
/// After this a wait is taken for endless.
const PATIENCE: Duration = Duration::from_secs(20);

fn ring_attr(bytes: u32) -> MapCreateAttr {
    MapCreateAttr {
        key_size: 0,
        value_size: 0,
        ..attr(MapType::RINGBUF, bytes)
    }
}

fn file(system: &Arc<System>, bytes: u32) -> MapFile {
    let fd = system
        .map_create(&Caller::root(), &ring_attr(bytes))
        .unwrap();
    system.map_file(fd).unwrap()
}

fn ring(bytes: u32) -> (RingBufferProducer, RingBufferReader) {
    let file = file(&system(), bytes);
    (file.ringbuf_producer().unwrap(), file.ringbuf().unwrap())
}

fn consumed(reader: &RingBufferReader) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let count = reader
        .consume(|record| records.push(record.to_vec()))
        .unwrap();
    assert_eq!(count, records.len() as u64);
    records
}

#[test]
fn poll_of_the_descriptor_shows_what_is_not_consumed() {
    let system = system();
    let fd = system
        .map_create(&Caller::root(), &ring_attr(4096))
        .unwrap();
    let file = system.map_file(fd).unwrap();
    let poll = || system.poll(fd).unwrap();
    assert_eq!(poll(), PollEvents::empty());
    let producer = file.ringbuf_producer().unwrap();
    let reserved = producer.reserve(8, 0).unwrap();
    assert_eq!(poll(), PollEvents::IN | PollEvents::RDNORM, "reserved");
    reserved.submit(0);
    assert_eq!(poll(), PollEvents::IN | PollEvents::RDNORM, "committed");
    assert_eq!(file.ringbuf().unwrap().consume(|_| {}).unwrap(), 1);
    assert_eq!(poll(), PollEvents::empty());
}

#[test]
fn a_record_is_what_was_put_in() {
    let (producer, reader) = ring(4096);
    assert!(!reader.poll().unwrap());
    assert!(consumed(&reader).is_empty());
    for len in 0..70usize {
        let data: Vec<u8> = (0..len as u8).map(|b| b ^ 0x5a).collect();
        producer.output(&data, 0).unwrap();
        assert!(reader.poll().unwrap());
        assert_eq!(consumed(&reader), [data]);
        assert!(!reader.poll().unwrap());
    }
}

#[test]
fn pieces_of_a_reservation_land_where_they_belong() {
    let (producer, reader) = ring(4096);
    // The ring's memory is not zero any more.
    producer.output(&[0xff; 64], 0).unwrap();
    producer.output(&vec![0xff; 4096 - 72 - 24], 0).unwrap();
    assert_eq!(consumed(&reader).len(), 2);
    let mut record = producer.reserve(29, 0).unwrap();
    assert_eq!((record.len(), record.is_empty()), (29, false));
    let mut expected: Vec<u8> = (0..29).collect();
    for (from, to) in [(27, 29), (0, 3), (3, 4), (4, 21), (21, 27)] {
        record.write(from, &expected[from..to]).unwrap();
    }
    record.write(29, &[]).unwrap();
    for (offset, len) in [(28, 2), (30, 0), (usize::MAX, 1), (0, 30)] {
        let refused = record.write(offset, &vec![1; len]).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL);
        assert!(refused.reason().contains("29"), "{refused}");
    }
    record.write(5, &[77]).unwrap();
    expected[5] = 77;
    record.submit(0);
    assert_eq!(consumed(&reader), [expected]);
}

#[test]
fn order_is_that_of_the_reservations() {
    let (producer, reader) = ring(4096);
    let mut records: Vec<_> = (0..5u8)
        .map(|n| {
            let mut record = producer.reserve(1, 0).unwrap();
            record.write(0, &[n]).unwrap();
            Some(record)
        })
        .collect();
    records[3].take().unwrap().submit(0);
    records[1].take().unwrap().submit(0);
    assert!(consumed(&reader).is_empty(), "the first is not committed");
    assert!(reader.poll().unwrap(), "bytes are reserved");
    assert!(!reader.wait(Duration::ZERO).unwrap(), "none is ready");
    records[0].take().unwrap().submit(0);
    assert_eq!(consumed(&reader), [[0], [1]]);
    drop(records[2].take());
    assert_eq!(
        consumed(&reader),
        [[3]],
        "a dropped reservation is discarded"
    );
    records[4].take().unwrap().discard(0);
    assert!(consumed(&reader).is_empty());
    assert_eq!(reader.available().unwrap(), 0);
}

#[test]
fn a_full_ring_refuses_until_it_is_consumed() {
    let (producer, reader) = ring(4096);
    // 8 of header and 8 of data: 255 of them are all but one of a whole ring.
    for n in 0..255u64 {
        producer.output(&n.to_ne_bytes(), 0).unwrap();
    }
    let refused = producer.output(&[0; 1], 0).unwrap_err();
    assert_eq!(refused.errno(), Errno::EAGAIN);
    assert!(refused.reason().contains("no room"), "{refused}");
    // The producer stays short of a whole ring ahead.
    producer.output(&[], 0).unwrap();
    assert_eq!(errno(producer.output(&[], 0)), Errno::EAGAIN);
    assert_eq!(producer.query(BPF_RB_AVAIL_DATA), 4088);
    assert_eq!(reader.consume_up_to(2, |_| {}).unwrap(), 2);
    producer.output(&[1; 24], 0).unwrap();
    assert_eq!(errno(producer.reserve(1, 0)), Errno::EAGAIN);
    let mut next = 2u64;
    let mut records = consumed(&reader);
    assert_eq!(records.pop().unwrap(), [1; 24]);
    assert_eq!(records.pop().unwrap(), []);
    for record in records {
        assert_eq!(record, next.to_ne_bytes());
        next += 1;
    }
    assert_eq!(next, 255);
}

#[test]
fn the_longest_record() {
    let (producer, reader) = ring(8192);
    for too_long in [8192 - 15, 8192, usize::MAX, u32::MAX as usize / 4 + 1] {
        let refused = producer.reserve(too_long, 0).unwrap_err();
        assert_eq!(refused.errno(), Errno::EAGAIN, "{too_long}");
        assert!(refused.reason().contains("8176"), "{refused}");
    }
    for lap in 0..3u8 {
        // Each lies across the end of the data area at another place.
        let data: Vec<u8> = (0..8192 - 16).map(|i| i as u8 ^ lap).collect();
        producer.output(&data, 0).unwrap();
        assert_eq!(errno(producer.output(&[], 0)), Errno::EAGAIN);
        assert_eq!(consumed(&reader), [data]);
    }
}

#[test]
fn a_reservation_that_is_held_is_not_overwritten_after_laps() {
    let (producer, reader) = ring(4096);
    let mut held = producer.reserve(8, 0).unwrap();
    held.write(0, &[9; 8]).unwrap();
    let mut count = 0;
    while producer.output(&[1; 100], 0).is_ok() {
        count += 1;
    }
    assert_eq!(count, (4096 - 16 - 1) / 112);
    assert!(consumed(&reader).is_empty());
    held.submit(0);
    let records = consumed(&reader);
    assert_eq!(records.len(), count + 1);
    assert_eq!(records[0], [9; 8]);
}

#[test]
fn figures_are_the_kernels() {
    let (producer, reader) = ring(4096);
    let figures = |p: &RingBufferProducer| [0, 1, 2, 3, 4, u64::MAX].map(|flag| p.query(flag));
    assert_eq!(figures(&producer), [0, 4096, 0, 0, 0, 0]);
    producer.output(&[0; 13], 0).unwrap();
    let held = producer.reserve(1, 0).unwrap();
    assert_eq!(figures(&producer), [40, 4096, 0, 40, 0, 0]);
    assert_eq!(
        (reader.available().unwrap(), reader.data_bytes()),
        (40, 4096)
    );
    assert_eq!(consumed(&reader).len(), 1);
    assert_eq!(figures(&producer), [16, 4096, 24, 40, 0, 0]);
    assert_eq!(reader.consumer_position(), 24);
    held.discard(0);
    assert_eq!(reader.consume(|_| panic!("it was discarded")).unwrap(), 0);
    assert_eq!(figures(&producer), [0, 4096, 40, 40, 0, 0]);
}

#[test]
fn memory_is_in_the_kernels_format() {
    let (producer, reader) = ring(8192);
    let bytes = |at: u64, len: usize| {
        let mut out = vec![0; len];
        reader.peek_data(at, &mut out).unwrap();
        out
    };
    let header = |len: u32, page: u32| [len.to_ne_bytes(), page.to_ne_bytes()].concat();
    producer.output(&[0x11; 13], 0).unwrap();
    assert_eq!(bytes(0, 8), header(13, 3));
    assert_eq!(bytes(8, 16), [vec![0x11; 13], vec![0; 3]].concat());
    let held = producer.reserve(4096, 0).unwrap();
    assert_eq!(bytes(24, 8), header(4096 | BPF_RINGBUF_BUSY_BIT, 3));
    held.discard(0);
    assert_eq!(bytes(24, 8), header(4096 | BPF_RINGBUF_DISCARD_BIT, 3));
    producer.output(&[0x22; 3], 0).unwrap();
    assert_eq!(
        bytes(24 + 4104, 16)[..11],
        [header(3, 4), vec![0x22; 3]].concat()
    );
    assert_eq!(errno(reader.peek_data(4, &mut [0; 8])), Errno::EINVAL);
    consumed(&reader);
    // A record that goes on at the start of the area, and whose last word keeps what it had.
    producer.output(&[0x33; 4053], 0).unwrap();
    assert_eq!(bytes(8184, 24)[..21], [0x33; 21]);
    assert_eq!(bytes(0, 16), [vec![0x33; 13], vec![0x11; 3]].concat());
}

#[test]
fn flags() {
    let (producer, reader) = ring(4096);
    assert_eq!(errno(producer.reserve(1, 1)), Errno::EINVAL);
    for bad in [4, 1 << 63, 7] {
        assert_eq!(errno(producer.output(&[], bad)), Errno::EINVAL);
    }
    assert_eq!(producer.query(BPF_RB_PROD_POS), 0);
    for good in 0..4 {
        producer.output(&[good as u8], good).unwrap();
    }
    assert_eq!(consumed(&reader), [[0], [1], [2], [3]]);
}

/// How long a wait of `reader` on another thread took, with what it said, while `act` runs.
fn waiting(reader: &RingBufferReader, timeout: Duration, act: impl FnOnce()) -> (bool, Duration) {
    let started = AtomicU64::new(0);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let since = Instant::now();
            started.store(1, SeqCst);
            (reader.wait(timeout).unwrap(), since.elapsed())
        });
        while started.load(SeqCst) == 0 {
            thread::yield_now();
        }
        thread::sleep(GRACE);
        assert!(!waiter.is_finished(), "nothing is there yet");
        act();
        waiter.join().unwrap()
    })
}

#[test]
fn a_waiter_is_told_of_the_record_that_it_waits_for() {
    let (producer, reader) = ring(4096);
    let (ready, took) = waiting(&reader, PATIENCE, || producer.output(&[1], 0).unwrap());
    assert!(ready && took < PATIENCE / 2, "{took:?}");
    assert!(reader.wait(PATIENCE).unwrap(), "it is there already");
    consumed(&reader);

    let mut held = producer.reserve(1, 0);
    let (ready, took) = waiting(&reader, PATIENCE, || {
        // Behind the first record nothing is ready.
        producer.output(&[2], 0).unwrap();
        thread::sleep(GRACE);
        held.as_mut().unwrap().write(0, &[1]).unwrap();
        held.unwrap().submit(0);
    });
    assert!(
        ready && took >= 2 * GRACE && took < PATIENCE / 2,
        "{took:?}"
    );
    assert_eq!(consumed(&reader), [[1], [2]]);

    // A record that is discarded gives the consumer work, too.
    let held = producer.reserve(1, 0).unwrap();
    let (ready, took) = waiting(&reader, PATIENCE, || held.discard(0));
    assert!(ready && took < PATIENCE / 2, "{took:?}");
}

#[test]
fn wake_up_flags() {
    let (producer, reader) = ring(4096);
    let timeout = 4 * GRACE;
    // Nobody is told of the first, nor of the second, which is not the one waited for.
    let (ready, took) = waiting(&reader, timeout, || {
        producer.output(&[1], BPF_RB_NO_WAKEUP).unwrap();
        producer.output(&[2], 0).unwrap();
    });
    assert!(took >= timeout, "{took:?}");
    assert!(ready, "it is seen when the time is over");
    consumed(&reader);
    let (ready, took) = waiting(&reader, PATIENCE, || {
        producer.output(&[1], BPF_RB_NO_WAKEUP).unwrap();
        producer.output(&[2], BPF_RB_FORCE_WAKEUP).unwrap();
    });
    assert!(ready && took < PATIENCE / 2, "{took:?}");
    consumed(&reader);
    // Forced though the first record is not committed.
    let held = producer.reserve(1, 0).unwrap();
    let (ready, took) = waiting(&reader, PATIENCE, || {
        producer.output(&[2], BPF_RB_FORCE_WAKEUP).unwrap();
    });
    assert!(ready && took < PATIENCE / 2, "{took:?}");
    assert!(consumed(&reader).is_empty());
    let (ready, took) = waiting(&reader, 2 * GRACE, || {});
    assert!(!ready && took >= 2 * GRACE, "{took:?}");
    held.submit(0);
}

#[test]
fn a_consumer_that_leaves_records_wakes_the_others() {
    let (producer, reader) = ring(4096);
    let (ready, took) = waiting(&reader, PATIENCE, || {
        producer.output(&[1], BPF_RB_NO_WAKEUP).unwrap();
        producer.output(&[2], BPF_RB_NO_WAKEUP).unwrap();
        assert_eq!(reader.consume_up_to(1, |_| {}).unwrap(), 1);
    });
    assert!(ready && took < PATIENCE / 2, "{took:?}");
}

#[test]
fn every_waiter_is_woken() {
    let (producer, reader) = ring(4096);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| reader.wait(PATIENCE)))
            .collect();
        thread::sleep(GRACE);
        producer.output(&[1], 0).unwrap();
        for waiter in waiters {
            assert!(waiter.join().unwrap().unwrap());
        }
    });
}

#[test]
fn a_consumer_may_use_the_map_while_it_consumes() {
    let (producer, reader) = ring(4096);
    producer.output(&[1], 0).unwrap();
    producer.output(&[2], 0).unwrap();
    let mut seen = Vec::new();
    let count = reader.consume(|record| {
        seen.push(record[0]);
        if record[0] == 1 {
            // The second goes to the inner call, and what is new to the next one: an outer one
            // ends at what was there when it began.
            assert_eq!(
                reader
                    .consume_up_to(1, |inner| seen.push(inner[0]))
                    .unwrap(),
                1
            );
            producer.output(&[3], 0).unwrap();
        }
    });
    assert_eq!((count.unwrap(), seen), (1, vec![1, 2]));
    assert_eq!(consumed(&reader), [[3]]);
}

#[test]
fn who_may_consume() {
    let system = system();
    let file = file(&system, 4096);
    let array = system
        .map_create(&Caller::root(), &attr(MapType::ARRAY, 1))
        .unwrap();
    let array = system.map_file(array).unwrap();
    assert_eq!(errno(array.ringbuf()), Errno::EINVAL);
    assert_eq!(errno(array.ringbuf_producer()), Errno::EINVAL);
    let (one, two) = (file.ringbuf().unwrap(), file.ringbuf().unwrap());
    assert_eq!(errno(file.freeze()), Errno::EBUSY);
    drop(one);
    assert_eq!(errno(file.freeze()), Errno::EBUSY);
    drop(two);
    file.freeze().unwrap();
    assert_eq!(errno(file.ringbuf()), Errno::EPERM);
    // Programs go on, as in the kernel.
    file.ringbuf_producer().unwrap().output(&[1], 0).unwrap();
}

#[test]
fn a_new_reader_goes_on_where_the_last_one_ended() {
    let system = system();
    let file = file(&system, 4096);
    let producer = file.ringbuf_producer().unwrap();
    producer.output(&[1], 0).unwrap();
    producer.output(&[2], 0).unwrap();
    assert_eq!(file.ringbuf().unwrap().consume_up_to(1, |_| {}).unwrap(), 1);
    assert_eq!(consumed(&file.ringbuf().unwrap()), [[2]]);
    assert_eq!(file.ringbuf().unwrap().consume_up_to(0, |_| {}).unwrap(), 0);
}

#[test]
fn memory_is_taken_as_records_reach_it() {
    // The greatest ring, of which a page is used.
    let (producer, reader) = ring(1 << 31);
    producer.output(&[7; 100], 0).unwrap();
    assert_eq!(consumed(&reader), [[7; 100]]);
    assert_eq!(producer.query(BPF_RB_RING_SIZE), 1 << 31);
}

/// Producers and consumers on a ring that is full again and again, with lengths that leave
/// records across the end of the area, reservations committed late or dropped, and consumers
/// that sleep whenever there is nothing. Each record arrives once, whole, and those of one
/// producer in order as far as one consumer sees them.
///
/// A consumer ends with a record of no bytes, and puts in another one for the next.
fn stress(producers: u64, consumers: usize, records: u64) {
    let (producer, reader) = ring(4096);
    let sums: Vec<AtomicU64> = (0..producers).map(|_| AtomicU64::new(0)).collect();
    let seen = AtomicU64::new(0);
    let produce = |id: u64| {
        let mut rng = Rng(0x5eed + id);
        let mut n = 0;
        let since = Instant::now();
        while n < records {
            let extra = rng.below(200) as usize;
            let Ok(mut record) = producer.reserve(16 + extra, 0) else {
                assert!(since.elapsed() < 2 * PATIENCE, "nobody consumes");
                thread::yield_now();
                continue;
            };
            match rng.below(16) {
                0 => record.discard(0),
                1 => drop(record),
                chance => {
                    record.write(0, &id.to_ne_bytes()).unwrap();
                    record.write(8, &n.to_ne_bytes()).unwrap();
                    record.write(16, &vec![(id ^ n) as u8; extra]).unwrap();
                    if chance == 2 {
                        thread::yield_now();
                    }
                    record.submit(0);
                    n += 1;
                }
            }
        }
    };
    let consume = || {
        let mut next = vec![0; producers as usize];
        let mut ended = false;
        while !ended {
            // Wake-ups alone bring it on.
            assert!(reader.wait(PATIENCE).unwrap(), "a wake-up was lost");
            let each = |record: &[u8]| {
                if record.is_empty() {
                    ended = true;
                    return;
                }
                let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().unwrap());
                let (id, n) = (word(0), word(8));
                assert!(record[16..].iter().all(|&b| b == (id ^ n) as u8));
                assert!(n >= next[id as usize], "out of order");
                next[id as usize] = n + 1;
                sums[id as usize].fetch_add(n + 1, SeqCst);
                seen.fetch_add(1, SeqCst);
            };
            // Of several consumers each takes a few at a time.
            match consumers {
                1 => reader.consume(each).unwrap(),
                _ => reader.consume_up_to(3, each).unwrap(),
            };
        }
        producer.output(&[], 0).unwrap();
    };
    thread::scope(|scope| {
        for _ in 0..consumers {
            scope.spawn(consume);
        }
        let produce = &produce;
        let all: Vec<_> = (0..producers)
            .map(|id| scope.spawn(move || produce(id)))
            .collect();
        for one in all {
            one.join().unwrap();
        }
        while producer.output(&[], 0).is_err() {
            thread::yield_now();
        }
    });
    assert_eq!(seen.load(SeqCst), producers * records);
    for sum in &sums {
        assert_eq!(sum.load(SeqCst), records * (records + 1) / 2);
    }
}

#[test]
fn many_producers_one_consumer() {
    stress(4, 1, 20_000);
}

#[test]
fn many_producers_many_consumers() {
    stress(3, 3, 20_000);
}

#[test]
fn one_producer_one_consumer_that_sleeps_between_records() {
    stress(1, 1, 50_000);
}

#[test]
fn element_commands_find_none() {
    let system = system();
    let file = file(&system, 4096);
    for flags in [0, 1, 2, 3, 8, 1 << 63] {
        assert_eq!(
            errno(file.update(&[], &[], flags)),
            Errno::ENOTSUPP,
            "{flags}"
        );
    }
    for flags in [4, 5] {
        assert_eq!(errno(file.update(&[], &[], flags)), Errno::EINVAL);
    }
    assert_eq!(errno(file.lookup(&[], &mut [], 0)), Errno::ENOTSUPP);
    assert_eq!(errno(file.lookup(&[], &mut [], 1)), Errno::EINVAL);
    assert_eq!(errno(file.delete(&[])), Errno::ENOTSUPP);
    assert_eq!(errno(file.get_next_key(None, &mut [])), Errno::ENOTSUPP);
    assert_eq!(
        errno(file.get_next_key(Some(&[]), &mut [])),
        Errno::ENOTSUPP
    );
    assert_eq!(
        errno(file.lookup_and_delete(&[], &mut [], 0)),
        Errno::ENOTSUPP
    );
    let refused = file.update_batch(&[], &[], 1, 1, 1);
    assert_eq!((refused.count, errno(refused.result)), (0, Errno::ENOTSUPP));
    let refused = file.delete_batch(&[], 1, 0, 0);
    assert_eq!(errno(refused.result), Errno::ENOTSUPP);
    let refused = file.lookup_batch(None, &mut [], &mut [], &mut [], 1, 0, 0);
    assert_eq!(errno(refused.result), Errno::ENOTSUPP);
}

#[test]
fn what_may_be_created() {
    let system = system();
    let create = |a: MapCreateAttr, word: &str| {
        let error = system.map_create(&Caller::root(), &a).expect_err(word);
        assert!(error.reason().contains(word), "{error}");
        error.errno()
    };
    let good = ring_attr(4096);
    for (size, word) in [
        (0, "0"),
        (1, "1"),
        (2048, "2048"),
        (12288, "12288"),
        (u32::MAX, "4294967295"),
    ] {
        let bad = MapCreateAttr {
            max_entries: size,
            ..good
        };
        assert_eq!(create(bad, word), Errno::EINVAL);
    }
    let bad = MapCreateAttr {
        key_size: 4,
        ..good
    };
    assert_eq!(create(bad, "key_size 4"), Errno::EINVAL);
    let bad = MapCreateAttr {
        value_size: 8,
        ..good
    };
    assert_eq!(create(bad, "value_size 8"), Errno::EINVAL);
    for bit in 0..32 {
        if !matches!(bit, 2 | 16) {
            let bad = MapCreateAttr {
                map_flags: 1 << bit,
                ..good
            };
            assert_eq!(create(bad, "map_flags"), Errno::EINVAL, "bit {bit}");
        }
    }
    // Capabilities come before the checks of this type, which are those of its allocation.
    let nobody = Caller::unprivileged();
    let bad = MapCreateAttr {
        key_size: 4,
        ..good
    };
    assert_eq!(errno(system.map_create(&nobody, &bad)), Errno::EPERM);
    for (size, mem_usage) in [(4096, 16_728), (8192, 20_840), (1 << 31, 2_155_884_872)] {
        let fd = system
            .map_create(&Caller::root(), &ring_attr(size))
            .unwrap();
        let info = system.info(fd).unwrap();
        assert_eq!(
            (info.key_size, info.value_size, info.max_entries),
            (0, 0, size)
        );
        // What a 6.18 kernel shows as memlock.
        assert_eq!(info.mem_usage, mem_usage);
    }
}
