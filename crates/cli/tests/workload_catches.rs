//! The workload finds no fault with two right maps, and finds each of a list of faults.

use offmap_bpf::Errno;
use offmap_bpf::uapi::MapType;
use offmap_cli::workload::{
    Batch, Keys, Limits, MapAccess, Shape, expected_operations, measure, run,
};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What is wrong with a [`Model`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// Holds one entry more than it should.
    OneTooMany,
    /// Holds one entry less.
    OneTooFew,
    /// Full gives ENOMEM.
    FullErrno,
    /// NOEXIST on a present key is let through.
    NoexistIgnored,
    /// EXIST on a missing key stores it.
    ExistIgnored,
    /// Flag bits beyond the low two are not looked at.
    FlagsTruncated,
    /// The last byte of a value is not stored.
    LastByteLost,
    /// All CPUs read the first CPU's value.
    OneCpuForAll,
    /// A miss scribbles over the caller's buffer.
    MissScribbles,
    /// A delete of a missing key succeeds.
    DeleteMissing,
    /// Every 200th delete of a present key leaves the entry.
    DeleteLeaves,
    /// get-next skips a key.
    NextSkips,
    /// get-next of a missing key fails, instead of starting over.
    NextOfMissing,
    /// Iteration starts over at its end.
    IterationCircles,
    /// lookup-and-delete does not delete.
    TakeKeeps,
    /// A batch update goes on after a failure.
    BatchGoesOn,
    /// A batch counts the element that failed.
    BatchCountsFailed,
    /// A batch walk drops the last entry.
    WalkDropsLast,
    /// A batch walk ends without ENOENT.
    WalkEndless,
    /// lookup of many puts values one key off.
    ManyShifted,
    /// Wrong key lengths are cut or padded.
    LengthIgnored,
}

const HASH_FAULTS: &[Fault] = &[
    Fault::OneTooMany,
    Fault::OneTooFew,
    Fault::FullErrno,
    Fault::NoexistIgnored,
    Fault::ExistIgnored,
    Fault::FlagsTruncated,
    Fault::LastByteLost,
    Fault::OneCpuForAll,
    Fault::MissScribbles,
    Fault::DeleteMissing,
    Fault::DeleteLeaves,
    Fault::NextSkips,
    Fault::NextOfMissing,
    Fault::IterationCircles,
    Fault::TakeKeeps,
    Fault::BatchGoesOn,
    Fault::BatchCountsFailed,
    Fault::WalkDropsLast,
    Fault::WalkEndless,
    Fault::ManyShifted,
    Fault::LengthIgnored,
];

const ARRAY_FAULTS: &[Fault] = &[
    Fault::OneTooMany,
    Fault::OneTooFew,
    Fault::FullErrno,
    Fault::NoexistIgnored,
    Fault::FlagsTruncated,
    Fault::LastByteLost,
    Fault::OneCpuForAll,
    Fault::MissScribbles,
    Fault::NextSkips,
    Fault::NextOfMissing,
    Fault::IterationCircles,
    Fault::BatchGoesOn,
    Fault::BatchCountsFailed,
    Fault::WalkDropsLast,
    Fault::WalkEndless,
    Fault::ManyShifted,
    Fault::LengthIgnored,
];

/// A map written down as plainly as it can be.
struct Model {
    shape: Shape,
    fault: Fault,
    entries: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    deletes: RefCell<u32>,
}

impl Model {
    fn new(shape: Shape, fault: Fault) -> Self {
        let mut entries = BTreeMap::new();
        if shape.indexed {
            let count = match fault {
                Fault::OneTooMany => shape.max_entries + 1,
                Fault::OneTooFew => shape.max_entries - 1,
                _ => shape.max_entries,
            };
            // Big-endian inside, so that the order is that of the index.
            for i in 0..count {
                entries.insert(i.to_be_bytes().to_vec(), vec![0; shape.value_bytes]);
            }
        }
        Self {
            shape,
            fault,
            entries: RefCell::new(entries),
            deletes: RefCell::new(0),
        }
    }

    fn key(&self, key: &[u8]) -> Result<Vec<u8>, Errno> {
        if key.len() != self.shape.key_size && self.fault != Fault::LengthIgnored {
            return Err(Errno::EINVAL);
        }
        let mut key = key.to_vec();
        key.resize(self.shape.key_size, 0);
        if self.shape.indexed {
            key.reverse();
        }
        Ok(key)
    }

    fn out(&self, mut key: Vec<u8>) -> Vec<u8> {
        if self.shape.indexed {
            key.reverse();
        }
        key
    }

    fn read(&self, stored: &[u8], value: &mut [u8]) {
        value.copy_from_slice(stored);
        if self.fault == Fault::OneCpuForAll && value.len() >= 16 {
            let (first, rest) = value.split_at_mut(8);
            rest[..8].copy_from_slice(first);
        }
    }

    fn update_one(&self, key: &[u8], value: &[u8], mut flags: u64) -> Result<(), Errno> {
        let key = self.key(key)?;
        if value.len() != self.shape.value_bytes {
            return Err(Errno::EINVAL);
        }
        if self.fault == Fault::FlagsTruncated {
            flags &= 3;
        }
        if flags > 2 {
            return Err(Errno::EINVAL);
        }
        let mut entries = self.entries.borrow_mut();
        let present = entries.contains_key(&key);
        let full = if self.fault == Fault::FullErrno {
            Errno::ENOMEM
        } else {
            Errno::E2BIG
        };
        let room = match self.fault {
            Fault::OneTooMany => self.shape.max_entries + 1,
            Fault::OneTooFew => self.shape.max_entries - 1,
            _ => self.shape.max_entries,
        };
        if self.shape.indexed && !present {
            return Err(full);
        }
        if present && flags == 1 && self.fault != Fault::NoexistIgnored {
            return Err(Errno::EEXIST);
        }
        if !present && flags == 2 && self.fault != Fault::ExistIgnored {
            return Err(Errno::ENOENT);
        }
        if !present && entries.len() >= room as usize {
            return Err(full);
        }
        let mut value = value.to_vec();
        if self.fault == Fault::LastByteLost
            && let Some(last) = value.last_mut()
        {
            *last = 0;
        }
        entries.insert(key, value);
        Ok(())
    }
}

impl MapAccess for Model {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let key = self.key(key)?;
        match self.entries.borrow().get(&key) {
            Some(stored) => self.read(stored, value),
            None => {
                if self.fault == Fault::MissScribbles {
                    value[0] = 0;
                }
                return Err(Errno::ENOENT);
            }
        }
        Ok(())
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.update_one(key, value, flags)
    }

    fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        let key = self.key(key)?;
        if self.shape.indexed {
            return Err(Errno::EINVAL);
        }
        let mut entries = self.entries.borrow_mut();
        if !entries.contains_key(&key) {
            return if self.fault == Fault::DeleteMissing {
                Ok(())
            } else {
                Err(Errno::ENOENT)
            };
        }
        let mut deletes = self.deletes.borrow_mut();
        *deletes += 1;
        if self.fault != Fault::DeleteLeaves || !deletes.is_multiple_of(200) {
            entries.remove(&key);
        }
        Ok(())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
        let entries = self.entries.borrow();
        let key = key.map(|key| self.key(key)).transpose()?;
        let present = key.as_ref().is_some_and(|key| entries.contains_key(key));
        if key.is_some() && !present && self.fault == Fault::NextOfMissing {
            return Err(Errno::ENOENT);
        }
        let mut after: Box<dyn Iterator<Item = &Vec<u8>>> = match key {
            Some(key) if present => {
                let skip = 1 + usize::from(self.fault == Fault::NextSkips && key[0] % 16 == 7);
                Box::new(entries.range(key..).map(|(key, _)| key).skip(skip))
            }
            _ => Box::new(entries.keys()),
        };
        let found = after.next().or_else(|| {
            (self.fault == Fault::IterationCircles)
                .then(|| entries.keys().next())
                .flatten()
        });
        let found = found.ok_or(Errno::ENOENT)?;
        next.copy_from_slice(&self.out(found.clone()));
        Ok(())
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        let key = self.key(key)?;
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        if self.shape.indexed {
            return Err(Errno::ENOTSUPP);
        }
        let mut entries = self.entries.borrow_mut();
        let stored = entries.get(&key).ok_or(Errno::ENOENT)?;
        self.read(stored, value);
        if self.fault != Fault::TakeKeeps {
            entries.remove(&key);
        }
        Ok(())
    }

    fn token_bytes(&self) -> usize {
        4
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<(), Errno> {
        let size = self.shape.key_size;
        if keys.len() != results.len() * size && self.fault != Fault::LengthIgnored {
            return Err(Errno::EINVAL);
        }
        let shift = usize::from(self.fault == Fault::ManyShifted && results.len() > 3);
        for (i, result) in results.iter_mut().enumerate().skip(shift) {
            let at = (i - shift) * self.shape.value_bytes;
            let value = &mut values[at..at + self.shape.value_bytes];
            let key = &keys[(i * size).min(keys.len())..((i + 1) * size).min(keys.len())];
            *result = self.lookup(key, value, 0);
        }
        Ok(())
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, flags: u64) -> Batch {
        let mut batch = Batch {
            count: 0,
            result: Ok(()),
        };
        let (key_size, value_size) = (self.shape.key_size, self.shape.value_bytes);
        let ignored = self.fault == Fault::LengthIgnored;
        if flags != 0
            || keys.len() != key_size * count as usize && !ignored
            || values.len() != value_size * count as usize
        {
            batch.result = Err(Errno::EINVAL);
            return batch;
        }
        for i in 0..count as usize {
            let end = ((i + 1) * key_size).min(keys.len());
            let value = &values[i * value_size..(i + 1) * value_size];
            let done = self.update_one(&keys[i * key_size..end], value, 0);
            batch.count += u32::from(done.is_ok());
            if done.is_err() {
                batch.result = done;
                if self.fault == Fault::BatchCountsFailed {
                    batch.count += 1;
                }
                if self.fault != Fault::BatchGoesOn {
                    break;
                }
            }
        }
        batch
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> Batch {
        let mut batch = Batch {
            count: 0,
            result: Ok(()),
        };
        let size = self.shape.key_size;
        if self.shape.indexed {
            batch.result = Err(Errno::ENOTSUPP);
        } else if keys.len() != size * count as usize && self.fault != Fault::LengthIgnored {
            batch.result = Err(Errno::EINVAL);
        } else {
            for i in 0..count as usize {
                let end = ((i + 1) * size).min(keys.len());
                batch.result = self.delete(&keys[i * size..end]);
                if batch.result.is_err() {
                    break;
                }
                batch.count += 1;
            }
        }
        batch
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> Batch {
        let start = in_batch.map_or(0, |token| {
            u32::from_ne_bytes(token.try_into().expect("4 bytes"))
        });
        let mut batch = Batch {
            count: 0,
            result: Ok(()),
        };
        if delete && self.shape.indexed {
            batch.result = Err(Errno::ENOTSUPP);
            return batch;
        }
        let (key_size, value_size) = (self.shape.key_size, self.shape.value_bytes);
        let mut entries = self.entries.borrow_mut();
        let skip = if delete { 0 } else { start as usize };
        let mut found: Vec<_> = entries.iter().skip(skip).take(count as usize + 1).collect();
        let more = found.len() > count as usize;
        found.truncate(count as usize);
        if self.fault == Fault::WalkDropsLast && !more {
            found.pop();
        }
        for (i, (key, value)) in found.iter().enumerate() {
            keys[i * key_size..][..key_size].copy_from_slice(&self.out(key.to_vec()));
            self.read(value, &mut values[i * value_size..][..value_size]);
        }
        batch.count = found.len() as u32;
        out_batch.copy_from_slice(&(start + batch.count).to_ne_bytes());
        if delete {
            let gone: Vec<_> = found.iter().map(|(key, _)| key.to_vec()).collect();
            entries.retain(|key, _| !gone.contains(key));
        }
        if !more && self.fault != Fault::WalkEndless {
            batch.result = Err(Errno::ENOENT);
        }
        batch
    }
}

fn limits() -> Limits {
    Limits {
        operations: 20_000,
        ..Limits::default()
    }
}

fn shapes() -> [(MapType, u32, u32, u32, &'static [Fault]); 5] {
    [
        (MapType::HASH, 4, 16, 300, HASH_FAULTS),
        (MapType::PERCPU_HASH, 6, 8, 20, HASH_FAULTS),
        (MapType::HASH, 16, 64, 1500, HASH_FAULTS),
        (MapType::ARRAY, 4, 20, 257, ARRAY_FAULTS),
        (MapType::PERCPU_ARRAY, 4, 5, 5, ARRAY_FAULTS),
    ]
}

#[test]
fn right_maps_agree_and_every_answer_has_been_met() {
    for (map_type, key, value, max_entries, _) in shapes() {
        for seed in 0..3 {
            let shape = Shape::new(map_type, key, value, max_entries, 3);
            let host = Model::new(shape, Fault::None);
            let device = Model::new(shape, Fault::None);
            let mut told = 0;
            let outcome = run(&host, &device, &shape, &limits(), seed, &mut |n| told += n);
            assert!(
                outcome.agree(),
                "{map_type} seed {seed}: {:?}",
                outcome.disagreements
            );
            assert_eq!(told, outcome.operations);
            assert!(outcome.operations > 20_000);
            let expected = expected_operations(&shape, &limits());
            assert!(
                outcome.operations.abs_diff(expected) < expected / 2,
                "{expected}"
            );
            assert!(outcome.filled_to_the_brim);
            assert_eq!(outcome.filled_entries, max_entries);
            let answers = outcome.answers_by_name();
            let mut names = vec!["ok", "ENOENT", "EEXIST", "EINVAL", "E2BIG"];
            if shape.indexed {
                names.push("ENOTSUPP");
            }
            for name in names {
                assert!(
                    answers.contains_key(name),
                    "{map_type}: no {name} in {answers:?}"
                );
            }
            // As promised to the timing.
            let keys = Keys::new(&shape, seed);
            let (mut key, mut value) = (vec![0; shape.key_size], vec![0; shape.value_bytes]);
            for i in 0..u64::from(outcome.filled_entries) {
                keys.write(i, &mut key);
                assert_eq!(device.lookup(&key, &mut value, 0), Ok(()));
            }
        }
    }
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    let shape = Shape::new(MapType::HASH, 4, 16, 300, 1);
    let once = |seed| {
        let (host, device) = (
            Model::new(shape, Fault::None),
            Model::new(shape, Fault::None),
        );
        let outcome = run(&host, &device, &shape, &limits(), seed, &mut |_| ());
        let left = device.entries.borrow().clone();
        (outcome, left)
    };
    assert_eq!(once(1), once(1));
    assert_ne!(once(1), once(2));
}

#[test]
fn every_fault_is_found_and_reported() {
    for (map_type, key, value, max_entries, faults) in shapes() {
        let shape = Shape::new(map_type, key, value, max_entries, 3);
        for &fault in faults {
            if fault == Fault::OneCpuForAll && !map_type.is_percpu() {
                continue;
            }
            if fault == Fault::NextSkips && shape.indexed {
                // Its trigger is a key byte that these indexes do not have.
                continue;
            }
            let host = Model::new(shape, Fault::None);
            let device = Model::new(shape, fault);
            let outcome = run(&host, &device, &shape, &limits(), 1, &mut |_| ());
            assert!(!outcome.agree(), "{map_type}: {fault:?} went unnoticed");
            let first = &outcome.disagreements[0];
            assert_ne!(first.host, first.device, "{fault:?}: {first:?}");
            assert!(outcome.disagreements.len() <= 16);
        }
    }
}

#[test]
fn two_maps_that_are_wrong_together_do_not_pass() {
    for fault in [Fault::OneTooMany, Fault::OneTooFew] {
        let shape = Shape::new(MapType::HASH, 4, 16, 300, 1);
        let (host, device) = (Model::new(shape, fault), Model::new(shape, fault));
        let outcome = run(&host, &device, &shape, &limits(), 1, &mut |_| ());
        assert!(!outcome.agree(), "{fault:?}");
    }
}

#[test]
fn the_limits_hold() {
    let shape = Shape::new(MapType::HASH, 4, 64, 1 << 20, 1);
    let limits = Limits {
        operations: 1_000,
        operation_bytes: 1 << 20,
        fill_entries: 500,
        fill_bytes: 10_000,
    };
    let (host, device) = (
        Model::new(shape, Fault::None),
        Model::new(shape, Fault::None),
    );
    let outcome = run(&host, &device, &shape, &limits, 1, &mut |_| ());
    assert!(outcome.agree(), "{:?}", outcome.disagreements);
    assert_eq!(outcome.filled_entries, 10_000 / 68);
    assert!(!outcome.filled_to_the_brim);
    assert!(outcome.operations < 10_000);
}

#[test]
fn timings_are_of_successful_operations_only() {
    let shape = Shape::new(MapType::HASH, 4, 8, 100, 1);
    let (host, device) = (
        Model::new(shape, Fault::None),
        Model::new(shape, Fault::None),
    );
    run(&host, &device, &shape, &limits(), 1, &mut |_| ());
    let timings = measure(&host, &device, &shape, 100, 1).unwrap().unwrap();
    for side in [timings.lookup, timings.update, timings.lookup_many.unwrap()] {
        assert!(side.host > 0.0 && side.device > 0.0, "{timings:?}");
    }
    assert_eq!(measure(&host, &device, &shape, 0, 1), Ok(None));
    let empty = Model::new(shape, Fault::None);
    let failed = measure(&host, &empty, &shape, 100, 1).unwrap_err();
    assert_eq!(
        (failed.host.as_str(), failed.device.as_str()),
        ("not tried", "ENOENT"),
        "the host was fine, but that was not looked at again"
    );
}
