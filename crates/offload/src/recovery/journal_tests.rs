//! The journal against a device that is a table in the test.

use super::change::{Change, Executed, Kind};
use super::journal::{Held, Journal, Shape, Storage};
use offmap_bpf::device::MapSpec;
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_NOEXIST, MapFlags, MapType};
use offmap_driver::Status;
use std::sync::atomic::{AtomicUsize, Ordering};

const fn shape(storage: Storage, max_entries: u32) -> Shape {
    Shape {
        storage,
        key_bytes: match storage {
            Storage::Queue | Storage::Stack => 0,
            Storage::Trie => 8,
            _ => 4,
        },
        value_bytes: 2,
        max_entries,
    }
}

fn all(journal: &Journal) -> Held<'_> {
    journal.lock_all(&mut || false).unwrap()
}

fn put<'a>(journal: &Journal, key: &'a [u8], value: &'a [u8], flags: u64) -> Change<'a> {
    let count = value.len() / 2;
    Change::new(Kind::Put, journal.shape(), key, value, count, flags)
}

fn keyed<'a>(journal: &Journal, kind: Kind, key: &'a [u8]) -> Change<'a> {
    let count = key.len() / journal.shape().key_bytes;
    Change::new(kind, journal.shape(), key, &[], count, 0)
}

fn push<'a>(journal: &Journal, value: &'a [u8], flags: u64) -> Change<'a> {
    Change::new(Kind::Push, journal.shape(), &[], value, 1, flags)
}

fn pop(journal: &Journal) -> Change<'static> {
    Change::new(Kind::Pop, journal.shape(), &[], &[], 1, 0)
}

/// Everything in it, in the order of a refill, three at a time.
fn contents(journal: &Journal) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key_bytes = journal.shape().key_bytes;
    let mut out = Vec::new();
    let held = all(journal);
    let done: Result<(), ()> = held.chunks(3, |keys, values, count| {
        assert!((1..=3).contains(&count));
        assert_eq!((keys.len(), values.len()), (count * key_bytes, count * 2));
        for (i, value) in values.chunks_exact(2).enumerate() {
            out.push((keys[i * key_bytes..][..key_bytes].to_vec(), value.to_vec()));
        }
        Ok(())
    });
    done.unwrap();
    assert_eq!(out.len() as u64, journal.entries());
    out
}

fn sorted(journal: &Journal) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = contents(journal);
    all.sort();
    all
}

fn k(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

fn ended(count: usize, status: Status) -> Executed {
    Executed {
        count,
        status,
        value: None,
    }
}

#[test]
fn what_was_acknowledged_is_there_and_nothing_else() {
    for storage in [Storage::Hash, Storage::Array, Storage::Lru] {
        let journal = Journal::new(shape(storage, 8));
        let mut held = all(&journal);
        let keys = [k(1), k(2), k(3)].concat();
        let batch = put(&journal, &keys, &[1, 1, 2, 2, 3, 3], BPF_ANY);
        // The device stopped at the third element.
        held.acknowledge(&batch, 2, &[]);
        held.acknowledge(&put(&journal, &k(2), &[9, 9], BPF_ANY), 1, &[]);
        // One that failed.
        held.acknowledge(&put(&journal, &k(1), &[7, 7], BPF_ANY), 0, &[]);
        drop(held);
        let expected = vec![(k(1).to_vec(), vec![1, 1]), (k(2).to_vec(), vec![9, 9])];
        assert_eq!(sorted(&journal), expected, "{storage:?}");
        let mut held = all(&journal);
        held.acknowledge(&keyed(&journal, Kind::Remove, &k(1)), 1, &[]);
        held.acknowledge(&keyed(&journal, Kind::Take, &k(2)), 1, &[9, 9]);
        drop(held);
        assert_eq!(contents(&journal), vec![], "{storage:?}");
    }
}

#[test]
fn executed_changes_end_as_the_device_ends_them() {
    let hash = Journal::new(shape(Storage::Hash, 2));
    let mut held = all(&hash);
    let execute = |held: &mut Held<'_>, change: Change<'_>| held.execute(&change);
    let ok = ended(1, Status::Success);
    let (one, two, three) = (k(1), k(2), k(3));
    let store = |key, flags| put(&hash, key, &[5, 5], flags);
    assert_eq!(
        execute(&mut held, store(&one, BPF_EXIST)),
        ended(0, Status::NotFound)
    );
    assert_eq!(execute(&mut held, store(&one, BPF_NOEXIST)), ok);
    assert_eq!(
        execute(&mut held, store(&one, BPF_NOEXIST)),
        ended(0, Status::Exists)
    );
    assert_eq!(execute(&mut held, store(&one, BPF_EXIST)), ok);
    // A batch whose last element has no room left.
    let keys = [one, two, three].concat();
    let batch = put(&hash, &keys, &[1, 1, 2, 2, 3, 3], BPF_ANY);
    assert_eq!(execute(&mut held, batch), ended(2, Status::Full));
    assert_eq!(
        execute(&mut held, keyed(&hash, Kind::Remove, &three)),
        ended(0, Status::NotFound)
    );
    let taken = execute(&mut held, keyed(&hash, Kind::Take, &two));
    assert_eq!(
        (taken.count, taken.value.as_deref()),
        (1, Some(&[2, 2][..]))
    );
    assert_eq!(
        execute(&mut held, keyed(&hash, Kind::Take, &two)),
        ended(0, Status::NotFound)
    );
    drop(held);
    assert_eq!(contents(&hash), vec![(one.to_vec(), vec![1, 1])]);

    let array = Journal::new(shape(Storage::Array, 3));
    let mut held = all(&array);
    let change = put(&array, &two, &[1, 2], BPF_EXIST);
    assert_eq!(held.execute(&change), ok);
    let change = put(&array, &two, &[1, 2], BPF_NOEXIST);
    assert_eq!(held.execute(&change), ended(0, Status::Exists));
    let change = put(&array, &three, &[1, 2], BPF_ANY);
    assert_eq!(held.execute(&change), ended(0, Status::OutOfRange));
    let change = keyed(&array, Kind::Remove, &two);
    assert_eq!(held.execute(&change), ended(0, Status::Unsupported));
}

#[test]
fn an_lru_journal_keeps_the_entries_written_last_in_that_order() {
    let journal = Journal::new(shape(Storage::Lru, 3));
    let mut held = all(&journal);
    for key in [1, 2, 3, 1, 4] {
        let key = k(key);
        let value = [key[0], 0];
        let change = put(&journal, &key, &value, BPF_ANY);
        assert!(held.execute(&change).status.is_success());
    }
    // The device has evicted it before.
    held.forget_element(&keyed(&journal, Kind::Remove, &k(3)), 0);
    held.acknowledge(&put(&journal, &k(5), &[5, 0], BPF_NOEXIST), 1, &[]);
    drop(held);
    let keys: Vec<u8> = contents(&journal).iter().map(|(key, _)| key[0]).collect();
    assert_eq!(keys, [1, 4, 5]);
}

#[test]
fn a_prefix_is_one_entry_whatever_its_idle_bits() {
    let journal = Journal::new(shape(Storage::Trie, 4));
    let prefix = |length: u32, bits: [u8; 4]| [length.to_ne_bytes(), bits].concat();
    let mut held = all(&journal);
    for (key, value) in [
        (prefix(12, [10, 0x1f, 1, 1]), [1, 0]),
        (prefix(12, [10, 0x10, 2, 2]), [2, 0]),
        (prefix(13, [10, 0x10, 2, 2]), [3, 0]),
        (prefix(0, [7, 7, 7, 7]), [4, 0]),
        (prefix(32, [10, 0x10, 2, 2]), [5, 0]),
    ] {
        let change = put(&journal, &key, &value, BPF_ANY);
        assert!(held.execute(&change).status.is_success(), "{key:?}");
    }
    let full = prefix(1, [0; 4]);
    let done = held.execute(&put(&journal, &full, &[6, 0], BPF_ANY));
    assert_eq!(done, ended(0, Status::Full));
    let long = prefix(33, [0; 4]);
    let done = held.execute(&put(&journal, &long, &[6, 0], BPF_ANY));
    assert_eq!(done, ended(0, Status::OutOfRange));
    let gone = prefix(0, [1, 2, 3, 4]);
    let done = held.execute(&keyed(&journal, Kind::Remove, &gone));
    assert_eq!(done, ended(1, Status::Success));
    let kept = held.execute(&keyed(&journal, Kind::Take, &prefix(13, [10, 0x10, 0, 0])));
    assert_eq!(kept, ended(0, Status::Unsupported));
    drop(held);
    let expected = vec![
        (prefix(12, [10, 0x10, 2, 2]), vec![2, 0]),
        (prefix(13, [10, 0x10, 2, 2]), vec![3, 0]),
        (prefix(32, [10, 0x10, 2, 2]), vec![5, 0]),
    ];
    assert_eq!(sorted(&journal), expected, "the bytes that were given last");
}

#[test]
fn queues_and_stacks_keep_their_order() {
    for (storage, next, left) in [(Storage::Queue, 2, [3, 4]), (Storage::Stack, 4, [2, 3])] {
        let journal = Journal::new(shape(storage, 3));
        let mut held = all(&journal);
        for value in 1..=3 {
            let value = [value, 0];
            assert_eq!(held.execute(&push(&journal, &value, BPF_ANY)).count, 1);
        }
        let full = held.execute(&push(&journal, &[4, 0], BPF_ANY));
        assert_eq!(full, ended(0, Status::Full));
        // Drops the oldest, of a stack too.
        assert_eq!(held.execute(&push(&journal, &[4, 0], BPF_EXIST)).count, 1);
        let popped = held.execute(&pop(&journal));
        assert_eq!(popped.value.as_deref(), Some(&[next, 0][..]));
        drop(held);
        let values: Vec<u8> = contents(&journal).iter().map(|(_, v)| v[0]).collect();
        assert_eq!(values, left, "{storage:?}");
        // Acknowledged pops: the one that is next, one out of turn, and one that is not known.
        let mut held = all(&journal);
        held.acknowledge(&pop(&journal), 1, &[3, 0]);
        held.acknowledge(&pop(&journal), 1, &[9, 0]);
        drop(held);
        assert_eq!(contents(&journal).len(), 1);
        let mut held = all(&journal);
        held.execute(&pop(&journal));
        assert_eq!(held.execute(&pop(&journal)), ended(0, Status::NotFound));
    }
}

#[test]
fn a_writer_waits_for_its_keys_and_for_no_others() {
    let journal = Journal::new(shape(Storage::Hash, 1 << 20));
    let (key, value) = (k(1), [1, 1]);
    let first = put(&journal, &key, &value, BPF_ANY);
    let held = journal.lock(&first, &mut || false).unwrap();
    let looks = AtomicUsize::new(0);
    let mut wait = || looks.fetch_add(1, Ordering::Relaxed) < 3;
    assert!(journal.lock(&first, &mut wait).is_none(), "the same key");
    assert_eq!(looks.load(Ordering::Relaxed), 4, "as long as it was told");
    assert!(journal.lock_all(&mut || false).is_none());
    // Of a thousand other keys nearly all are on other stripes.
    let free = (2..1002u32).filter(|n| {
        let key = k(*n);
        let other = put(&journal, &key, &value, BPF_ANY);
        journal.lock(&other, &mut || false).is_some()
    });
    assert!(free.count() > 900);
    drop(held);
    assert!(journal.lock_all(&mut || false).is_some());
}

#[test]
fn writers_of_one_key_and_their_device_agree_on_the_order() {
    let journal = Journal::new(shape(Storage::Hash, 4));
    // The device's table: a slot without a lock of its own.
    let device = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (journal, device) = (&journal, &device);
            scope.spawn(move || {
                for round in 0..500usize {
                    let stamp = thread * 500 + round;
                    let value = (stamp as u16).to_ne_bytes();
                    let key = k(1);
                    let change = put(journal, &key, &value, BPF_ANY);
                    let mut wait = || {
                        std::thread::yield_now();
                        true
                    };
                    let mut held = journal.lock(&change, &mut wait).unwrap();
                    device.store(stamp, Ordering::Relaxed);
                    std::thread::yield_now();
                    held.acknowledge(&change, 1, &[]);
                }
            });
        }
    });
    let last = (device.load(Ordering::Relaxed) as u16).to_ne_bytes();
    assert_eq!(contents(&journal), vec![(k(1).to_vec(), last.to_vec())]);
}

#[test]
fn a_write_of_its_own_memory_is_the_same_write() {
    let journal = Journal::new(shape(Storage::Hash, 8));
    let keys = [k(1), k(2)].concat();
    let change = put(&journal, &keys, &[1, 1, 2, 2], BPF_EXIST);
    let owned = change.clone().into_owned();
    assert_eq!(
        (owned.kind, owned.flags, owned.count()),
        (Kind::Put, BPF_EXIST, 2)
    );
    for i in 0..2 {
        assert_eq!(
            (owned.key(i), owned.value(i)),
            (change.key(i), change.value(i))
        );
    }
}

fn spec(map_type: MapType) -> MapSpec {
    MapSpec {
        map_type,
        key_size: 4,
        value_size: 12,
        max_entries: 10,
        map_flags: MapFlags::empty(),
        map_extra: 0,
        numa_node: None,
        possible_cpus: 3,
        name: [0; 16],
    }
}

#[test]
fn each_type_has_a_shape_or_a_reason() {
    for (map_type, storage, bytes) in [
        (MapType::HASH, Storage::Hash, 4 + 12 + 128),
        (MapType::PERCPU_HASH, Storage::Hash, 4 + 48 + 128),
        (MapType::ARRAY, Storage::Array, 4 + 12 + 128),
        (MapType::PERCPU_ARRAY, Storage::Array, 4 + 48 + 128),
        (MapType::LPM_TRIE, Storage::Trie, 8 + 12 + 160),
        (MapType::LRU_HASH, Storage::Lru, 8 + 12 + 224),
        (MapType::LRU_PERCPU_HASH, Storage::Lru, 8 + 48 + 224),
        (MapType::QUEUE, Storage::Queue, 12 + 48),
        (MapType::STACK, Storage::Stack, 12 + 48),
    ] {
        let shape = Shape::of(&spec(map_type)).unwrap();
        assert_eq!(shape.storage, storage, "{map_type}");
        assert_eq!(shape.entry_bytes(), bytes, "{map_type}");
        assert_eq!(shape.most_bytes(), 10 * bytes, "{map_type}");
    }
    for map_type in [
        MapType::BLOOM_FILTER,
        MapType::RINGBUF,
        MapType::ARRAY_OF_MAPS,
        MapType::HASH_OF_MAPS,
        MapType(99),
    ] {
        assert!(Shape::of(&spec(map_type)).is_err(), "{map_type}");
    }
}
