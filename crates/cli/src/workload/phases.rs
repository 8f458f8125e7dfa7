//! What is done to the two maps, in order.

use super::pair::Pair;
use super::{Keys, Limits, Shape, fill_target, write_value};
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST};
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use std::ops::Range;

/// Most distinct keys of the random phase: few enough that each is met again and again.
const HOT_KEYS: u64 = 2048;
/// How many keys of a hash map lie beyond the hot ones.
const BEYOND: u64 = 64;
/// Elements of a batch.
const BATCH: u32 = 64;
/// Most bytes of values in one batch, so that maps of large values do not need BATCH times
/// their value size at once.
const BATCH_BYTES: usize = 4 << 20;
/// Update flags that no map takes.
const BAD_FLAGS: [u64; 4] = [3, 8, 1 << 32, u64::MAX];

pub(super) fn random_operations(shape: &Shape, limits: &Limits) -> u64 {
    let by_bytes = limits.operation_bytes / shape.entry_bytes();
    limits.operations.min(by_bytes.max(16))
}

/// Buffers and the source of keys and values.
struct Source {
    rng: Xoshiro256PlusPlus,
    keys: Keys,
    key: Vec<u8>,
    value: Vec<u8>,
    batch_keys: Vec<u8>,
    batch_values: Vec<u8>,
    /// Number of the next value; never the same twice.
    fresh: u64,
    hot: u64,
    max_entries: u64,
    indexed: bool,
}

impl Source {
    fn new(shape: &Shape, limits: &Limits, seed: u64) -> Self {
        let keys = Keys::new(shape, seed);
        let target = u64::from(fill_target(shape, limits));
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            keys,
            key: vec![0; shape.key_size],
            value: vec![0; shape.value_bytes],
            batch_keys: Vec::new(),
            batch_values: Vec::new(),
            fresh: seed,
            // A quarter more than fits, so that small maps are full again and again.
            hot: (target + target / 4 + 8).min(HOT_KEYS).min(keys.distinct()),
            max_entries: u64::from(shape.max_entries),
            indexed: shape.indexed,
        }
    }

    /// The number of a key: mostly a hot one, at times one far away (for an array, out of
    /// range).
    fn pick(&mut self) -> u64 {
        match (self.rng.random_range(0..16), self.indexed) {
            (0, true) => match self.rng.random_range(0..3) {
                0 => self.max_entries,
                1 => self.max_entries.saturating_sub(1),
                _ => u64::from(u32::MAX),
            },
            (0, false) => self.hot + self.rng.random_range(0..BEYOND),
            _ => self.rng.random_range(0..self.hot),
        }
    }

    fn pick_key(&mut self) {
        let n = self.pick();
        self.keys.write(n, &mut self.key);
    }

    fn new_value(&mut self) {
        self.fresh = self.fresh.wrapping_add(1);
        write_value(self.fresh, &mut self.value);
    }

    /// Keys of these numbers, with new values.
    fn batch(&mut self, numbers: impl Iterator<Item = u64>) -> u32 {
        self.batch_keys.clear();
        self.batch_values.clear();
        let mut count = 0;
        for n in numbers {
            self.keys.write(n, &mut self.key);
            self.new_value();
            self.batch_keys.extend_from_slice(&self.key);
            self.batch_values.extend_from_slice(&self.value);
            count += 1;
        }
        count
    }

    fn random_batch(&mut self, most: u32) -> u32 {
        let len = self.rng.random_range(0..=most);
        let numbers: Vec<u64> = (0..len).map(|_| self.pick()).collect();
        self.batch(numbers.into_iter())
    }
}

pub(super) fn all(pair: &mut Pair<'_>, limits: &Limits, seed: u64) {
    let shape = pair.shape;
    let target = fill_target(&shape, limits);
    let mut source = Source::new(&shape, limits, seed);
    let batch = (BATCH_BYTES / shape.value_bytes.max(1)).clamp(1, BATCH as usize) as u32;
    // No hash map ever holds more; an array is walked up to here.
    let walk_limit = u64::from(target) + HOT_KEYS + 64;

    pair.iterate(walk_limit);
    pair.walk(batch, false, walk_limit);
    wrong_lengths(pair, &mut source);

    let operations = random_operations(&shape, limits);
    random(pair, &mut source, operations / 2, batch);
    pair.iterate(walk_limit);
    pair.walk(batch, false, walk_limit);
    random(pair, &mut source, operations - operations / 2, batch);
    if pair.lost() {
        return;
    }
    pair.iterate(walk_limit);
    // Empties a hash map; an array refuses.
    pair.walk(batch, true, walk_limit);
    if pair.iterate(walk_limit) > 0 && !shape.indexed {
        // A map without that batch call.
        for n in 0..source.hot + BEYOND {
            source.keys.write(n, &mut source.key);
            pair.delete(&source.key);
        }
        pair.iterate(walk_limit);
    }

    fill(pair, &mut source, target, batch);
    let to_the_brim = target == shape.max_entries;
    if to_the_brim {
        at_the_brim(pair, &mut source, batch);
    }
    let held = pair.iterate(walk_limit);
    pair.walk(batch * 4, false, walk_limit);
    let expected = if shape.indexed {
        u64::from(shape.max_entries).min(walk_limit)
    } else {
        u64::from(target)
    };
    if held != expected {
        // Both sides agree with each other here, and both are wrong.
        let text = format!("{held} entries after {expected} were stored");
        pair.differ("fill", &[], text.clone(), text);
    }

    for start in (0..u64::from(target)).step_by(batch as usize) {
        let end = (start + u64::from(batch)).min(u64::from(target));
        let count = source.batch(start..end);
        pair.lookup_many(&source.batch_keys, count as usize);
    }
    delete_half(pair, &mut source, target, batch);
    pair.iterate(walk_limit);
    fill(pair, &mut source, target, batch);
    pair.outcome.filled_entries = target;
    pair.outcome.filled_to_the_brim = to_the_brim;
}

/// Keys and values one byte too long or too short.
fn wrong_lengths(pair: &mut Pair<'_>, source: &mut Source) {
    source.pick_key();
    source.new_value();
    let long_key = [source.key.as_slice(), &[0]].concat();
    let long_value = [source.value.as_slice(), &[0]].concat();
    let short_key = &source.key[..source.key.len().saturating_sub(1)];
    let short_value = &source.value[..source.value.len().saturating_sub(1)];
    for key in [&long_key, short_key] {
        pair.lookup(key, 0);
        pair.update(key, &source.value, BPF_ANY);
        pair.delete(key);
        pair.get_next_key(Some(key));
        pair.lookup_and_delete(key, 0);
        pair.update_batch(key, &source.value, 1, 0);
        pair.delete_batch(key, 1);
        pair.lookup_many(key, 1);
    }
    for value in [&long_value, short_value] {
        pair.update(&source.key, value, BPF_ANY);
        pair.update_batch(&source.key, value, 1, 0);
    }
}

fn random(pair: &mut Pair<'_>, source: &mut Source, operations: u64, batch: u32) {
    let end = pair.outcome.operations + operations;
    while pair.outcome.operations < end && !pair.lost() {
        let kind = source.rng.random_range(0..100);
        source.pick_key();
        match kind {
            0..28 => pair.lookup(&source.key, 0),
            28..30 => {
                let unfit = [BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK, u64::MAX];
                let flags = unfit[source.rng.random_range(0..unfit.len())];
                pair.lookup(&source.key, flags);
            }
            30..64 => {
                let flags = match kind {
                    30..46 => BPF_ANY,
                    46..53 => BPF_NOEXIST,
                    53..60 => BPF_EXIST,
                    60 => BPF_F_LOCK,
                    _ => BAD_FLAGS[source.rng.random_range(0..BAD_FLAGS.len())],
                };
                source.new_value();
                pair.update(&source.key, &source.value, flags);
            }
            64..78 => pair.delete(&source.key),
            78..84 => pair.lookup_and_delete(&source.key, 0),
            84 => pair.lookup_and_delete(&source.key, BPF_EXIST),
            85..90 => pair.get_next_key(Some(&source.key)),
            90 => pair.get_next_key(None),
            91..94 => {
                let count = source.random_batch(batch);
                let flags = match source.rng.random_range(0..8) {
                    0 => BPF_NOEXIST,
                    1 => BPF_F_LOCK,
                    _ => BPF_ANY,
                };
                pair.update_batch(&source.batch_keys, &source.batch_values, count, flags);
            }
            94..96 => {
                let count = source.random_batch(batch.min(6));
                pair.delete_batch(&source.batch_keys, count);
            }
            _ => {
                let count = source.random_batch(batch);
                pair.lookup_many(&source.batch_keys, count as usize);
            }
        }
    }
}

/// Stores keys `0..target`: most by batch, the last of them one by one.
fn fill(pair: &mut Pair<'_>, source: &mut Source, target: u32, batch: u32) {
    let by_batch = target.saturating_sub(batch);
    for start in (0..by_batch).step_by(batch as usize) {
        let end = (start + batch).min(by_batch);
        let count = source.batch((start..end).map(u64::from));
        let has = pair.update_batch(&source.batch_keys, &source.batch_values, count, BPF_ANY);
        if !has {
            fill_singly(pair, source, start..end);
        }
    }
    fill_singly(pair, source, by_batch..target);
}

fn fill_singly(pair: &mut Pair<'_>, source: &mut Source, numbers: Range<u32>) {
    for n in numbers {
        source.keys.write(u64::from(n), &mut source.key);
        source.new_value();
        pair.update(&source.key, &source.value, BPF_ANY);
    }
}

/// A full map: one more, with each flag; one of those that are there; one more in the middle
/// of a batch; and room again after a delete.
fn at_the_brim(pair: &mut Pair<'_>, source: &mut Source, batch: u32) {
    let full = source.max_entries;
    if source.keys.distinct() <= full + 1 {
        // Every key there is has been stored.
        return;
    }
    let update = |pair: &mut Pair<'_>, source: &mut Source, n: u64, flags: u64| {
        source.keys.write(n, &mut source.key);
        source.new_value();
        pair.update(&source.key, &source.value, flags)
    };
    for flags in [BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK, 3] {
        if update(pair, source, full, flags) {
            let text = format!("entry {full} was stored in a map of {full}");
            pair.differ("one more than fits", &source.key, text.clone(), text);
        }
        pair.lookup(&source.key, 0);
    }
    for flags in [BPF_ANY, BPF_EXIST, BPF_NOEXIST] {
        update(pair, source, full - 1, flags);
        pair.lookup(&source.key, 0);
    }
    if batch >= 3 {
        let count = source.batch([0, full, full - 1].into_iter());
        pair.update_batch(&source.batch_keys, &source.batch_values, count, BPF_ANY);
        pair.lookup_many(&source.batch_keys, count as usize);
    }
    source.keys.write(0, &mut source.key);
    pair.delete(&source.key);
    for n in [full, full + 1] {
        update(pair, source, n, BPF_ANY);
        pair.lookup(&source.key, 0);
    }
    source.keys.write(full, &mut source.key);
    pair.delete(&source.key);
    update(pair, source, 0, BPF_NOEXIST);
}

/// Deletes every other key by batches, one of which meets a key that is not there.
fn delete_half(pair: &mut Pair<'_>, source: &mut Source, target: u32, batch: u32) {
    let odd: Vec<u64> = (0..u64::from(target)).skip(1).step_by(2).collect();
    for (i, numbers) in odd.chunks(batch as usize).enumerate() {
        let count = source.batch(numbers.iter().copied());
        pair.delete_batch(&source.batch_keys, count);
        if i == 0 && target > 2 {
            // The first two exist, the third was just deleted, and so the fourth stays.
            let numbers = [0, 2, 1, 0].into_iter().take(batch as usize);
            let count = source.batch(numbers);
            pair.delete_batch(&source.batch_keys, count);
            pair.lookup_many(&source.batch_keys, count as usize);
        }
    }
}
