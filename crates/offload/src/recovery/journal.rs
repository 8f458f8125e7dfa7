//! What the host knows of a recoverable map: every acknowledged write, under locks that order
//! writers as the device orders them.
//!
//! The device's order of two commands on different queues does not show in their completions.
//! So a writer holds the lock of its key's stripe from before its command is sent until the
//! journal has what the device acknowledged: two writers of one key are never under way
//! together, and journal and device agree on their order. Readers take no lock.
//!
//! Nothing here knows a device or a clock: who waits for a stripe brings a function that says
//! for how long.

use super::change::{Change, Executed, Kind};
use offmap_bpf::device::MapSpec;
use offmap_bpf::uapi::{BPF_EXIST, BPF_NOEXIST, MapType};
use offmap_driver::Status;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Stripes of a journal whose keys are independent of each other.
const STRIPES: usize = 64;

/// Bytes that an entry takes besides its key and value: two allocations with their headers,
/// and its part of a hash table that is half empty.
const KEYED_OVERHEAD: u64 = 128;
/// The same with the second copy of the key, and the place in the order of writes.
const LRU_OVERHEAD: u64 = 224;
/// The same with the second copy of the key of a trie.
const TRIE_OVERHEAD: u64 = 160;
/// One allocation, and its part of a list that is half empty.
const LIST_OVERHEAD: u64 = 48;

/// How a map keeps what is written to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Storage {
    /// Entries by key, `max_entries` of them at most.
    Hash,
    /// Entries by index, all of which exist.
    Array,
    /// Entries by prefix.
    Trie,
    /// Entries by key; a full map drops one that the device chooses.
    Lru,
    /// Values, the oldest leaves first.
    Queue,
    /// Values, the newest leaves first.
    Stack,
}

/// What the journal has to know of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) storage: Storage,
    pub(super) key_bytes: usize,
    /// Of all CPUs, for per-CPU types.
    pub(super) value_bytes: usize,
    pub(super) max_entries: u32,
}

impl Shape {
    /// The shape of a map, or why its contents cannot be restored: a clause that goes on "a map
    /// of this type cannot be recovered: ".
    pub(super) fn of(spec: &MapSpec) -> Result<Self, &'static str> {
        let storage = match spec.map_type {
            MapType::HASH | MapType::PERCPU_HASH => Storage::Hash,
            MapType::ARRAY | MapType::PERCPU_ARRAY => Storage::Array,
            MapType::LPM_TRIE => Storage::Trie,
            MapType::LRU_HASH | MapType::LRU_PERCPU_HASH => Storage::Lru,
            MapType::QUEUE => Storage::Queue,
            MapType::STACK => Storage::Stack,
            MapType::BLOOM_FILTER => {
                return Err(
                    "a bloom filter takes any number of values, so that a journal of them \
                            would have no bound",
                );
            }
            MapType::RINGBUF => {
                return Err(
                    "the device writes a ring buffer and the host only reads it, so that the \
                            host has nothing to restore",
                );
            }
            MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS => {
                return Err("a map of maps holds handles of maps, which a reset makes invalid");
            }
            _ => return Err("the journal does not know its operations"),
        };
        Ok(Self {
            storage,
            key_bytes: spec.key_size as usize,
            // The core refuses values that do not fit the address space.
            value_bytes: spec.user_value_bytes() as usize,
            max_entries: spec.max_entries,
        })
    }

    /// Bytes of host memory that one entry takes, on the safe side.
    pub(super) const fn entry_bytes(&self) -> u64 {
        let (key, value) = (self.key_bytes as u64, self.value_bytes as u64);
        match self.storage {
            Storage::Hash | Storage::Array => key + value + KEYED_OVERHEAD,
            Storage::Trie => 2 * key + value + TRIE_OVERHEAD,
            Storage::Lru => 2 * key + value + LRU_OVERHEAD,
            Storage::Queue | Storage::Stack => value + LIST_OVERHEAD,
        }
    }

    /// Bytes that the journal may come to take.
    pub(super) const fn most_bytes(&self) -> u64 {
        self.entry_bytes().saturating_mul(self.max_entries as u64)
    }

    const fn stripes(&self) -> usize {
        match self.storage {
            Storage::Hash | Storage::Array | Storage::Trie => STRIPES,
            // Their entries are in one order.
            Storage::Lru | Storage::Queue | Storage::Stack => 1,
        }
    }

    /// The bits of a prefix that count, as a key of the journal; `None`: longer than its bits.
    fn prefix(&self, key: &[u8]) -> Option<Box<[u8]>> {
        let (length, bits) = key.split_first_chunk::<4>()?;
        let length = u32::from_ne_bytes(*length) as usize;
        if length > bits.len() * 8 {
            return None;
        }
        let mut place: Box<[u8]> = key.into();
        let kept = length / 8;
        for (i, byte) in place[4..].iter_mut().enumerate().skip(kept) {
            *byte &= if i == kept {
                !(0xff >> (length % 8))
            } else {
                0
            };
        }
        Some(place)
    }
}

/// Part of a journal, for as long as one lock is held.
#[derive(Default)]
pub(super) struct Stripe {
    entries: HashMap<Box<[u8]>, Entry>,
    /// Keys of an LRU map in the order of their last writes.
    order: BTreeMap<u64, Box<[u8]>>,
    writes: u64,
    /// What a queue or stack holds, the oldest first.
    list: VecDeque<Box<[u8]>>,
}

struct Entry {
    value: Box<[u8]>,
    /// Of a trie: the key as it was given last.
    given: Option<Box<[u8]>>,
    /// Of an LRU map: its place in the order.
    write: u64,
}

/// On cache lines of its own, so that writers of different stripes do not disturb each other.
#[repr(align(128))]
struct Padded(Mutex<Stripe>);

/// The journal of one map.
pub(super) struct Journal {
    shape: Shape,
    stripes: Box<[Padded]>,
    hasher: RandomState,
    entries: AtomicU64,
}

/// Some stripes of a journal, locked; in ascending order, as all who take several take them.
pub(super) struct Held<'j> {
    journal: &'j Journal,
    stripes: Vec<(usize, MutexGuard<'j, Stripe>)>,
}

impl Journal {
    pub(super) fn new(shape: Shape) -> Self {
        let stripes = (0..shape.stripes()).map(|_| Padded(Mutex::default()));
        Self {
            shape,
            stripes: stripes.collect(),
            hasher: RandomState::new(),
            entries: AtomicU64::new(0),
        }
    }

    pub(super) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Entries that it holds now.
    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The key under which the journal has an entry; `None` for a prefix that cannot be.
    fn place(&self, key: &[u8]) -> Option<Box<[u8]>> {
        match self.shape.storage {
            Storage::Trie => self.shape.prefix(key),
            _ => Some(key.into()),
        }
    }

    fn stripe_of(&self, place: &[u8]) -> usize {
        match self.stripes.len() {
            1 => 0,
            stripes => self.hasher.hash_one(place) as usize % stripes,
        }
    }

    /// Locks what a change touches. `wait` is called between two looks at a lock that others
    /// hold; `None`: it said that the time is over.
    pub(super) fn lock(
        &self,
        change: &Change<'_>,
        wait: &mut dyn FnMut() -> bool,
    ) -> Option<Held<'_>> {
        if self.stripes.len() == 1 {
            return self.lock_these([0], wait);
        }
        if change.count() == 1 {
            // The prefix that cannot be is refused by the device, whatever is locked.
            let stripe = self.place(change.key(0)).map_or(0, |p| self.stripe_of(&p));
            return self.lock_these([stripe], wait);
        }
        let mut touched = [false; STRIPES];
        for i in 0..change.count() {
            if let Some(place) = self.place(change.key(i)) {
                touched[self.stripe_of(&place)] = true;
            }
        }
        self.lock_these((0..self.stripes.len()).filter(|i| touched[*i]), wait)
    }

    /// Locks all of it.
    pub(super) fn lock_all(&self, wait: &mut dyn FnMut() -> bool) -> Option<Held<'_>> {
        self.lock_these(0..self.stripes.len(), wait)
    }

    fn lock_these(
        &self,
        ascending: impl IntoIterator<Item = usize>,
        wait: &mut dyn FnMut() -> bool,
    ) -> Option<Held<'_>> {
        let mut stripes = Vec::with_capacity(1);
        for index in ascending {
            let stripe = loop {
                match self.stripes[index].0.try_lock() {
                    Ok(stripe) => break stripe,
                    // A panic under the lock was outside of the journal's own functions, each
                    // of which leaves it whole.
                    Err(TryLockError::Poisoned(stripe)) => break stripe.into_inner(),
                    Err(TryLockError::WouldBlock) if wait() => {}
                    Err(TryLockError::WouldBlock) => return None,
                }
            };
            stripes.push((index, stripe));
        }
        Some(Held {
            journal: self,
            stripes,
        })
    }
}

impl Held<'_> {
    const fn shape(&self) -> &Shape {
        &self.journal.shape
    }

    /// The stripe with this entry, which is locked.
    fn stripe(&mut self, place: &[u8]) -> &mut Stripe {
        let index = self.journal.stripe_of(place);
        match self.stripes.binary_search_by_key(&index, |(i, _)| *i) {
            Ok(at) => &mut self.stripes[at].1,
            Err(_) => unreachable!("stripe {index} is not among those that the change locked"),
        }
    }

    fn list(&mut self) -> &mut VecDeque<Box<[u8]>> {
        // Queues and stacks have one stripe.
        &mut self.stripes[0].1.list
    }

    fn has(&mut self, place: &[u8]) -> bool {
        self.stripe(place).entries.contains_key(place)
    }

    fn counted(&self, before: usize, after: usize) {
        // Each of those who count holds the locks of what it counts.
        let entries = &self.journal.entries;
        if after >= before {
            entries.fetch_add((after - before) as u64, Ordering::Relaxed);
        } else {
            entries.fetch_sub((before - after) as u64, Ordering::Relaxed);
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let Some(place) = self.journal.place(key) else {
            return;
        };
        let shape = *self.shape();
        let stripe = self.stripe(&place);
        let before = stripe.entries.len();
        stripe.writes += 1;
        let write = stripe.writes;
        let entry = Entry {
            value: value.into(),
            given: (shape.storage == Storage::Trie).then(|| key.into()),
            write,
        };
        if shape.storage == Storage::Lru {
            stripe.order.insert(write, place.clone());
        }
        if let Some(old) = stripe.entries.insert(place, entry) {
            stripe.order.remove(&old.write);
        }
        // The device drops an entry of its choice, the journal the one that was written first.
        while shape.storage == Storage::Lru && stripe.entries.len() > shape.max_entries as usize {
            match stripe.order.pop_first() {
                Some((_, oldest)) => stripe.entries.remove(&oldest),
                None => break,
            };
        }
        let after = stripe.entries.len();
        self.counted(before, after);
    }

    fn remove(&mut self, key: &[u8]) -> Option<Box<[u8]>> {
        let place = self.journal.place(key)?;
        let stripe = self.stripe(&place);
        let old = stripe.entries.remove(&place)?;
        stripe.order.remove(&old.write);
        self.counted(1, 0);
        Some(old.value)
    }

    fn push(&mut self, value: &[u8]) {
        let most = self.shape().max_entries as usize;
        let list = self.list();
        let before = list.len();
        list.push_back(value.into());
        while list.len() > most {
            list.pop_front();
        }
        let after = list.len();
        self.counted(before, after);
    }

    fn pop(&mut self) -> Option<Box<[u8]>> {
        let stack = self.shape().storage == Storage::Stack;
        let list = self.list();
        let value = if stack {
            list.pop_back()
        } else {
            list.pop_front()
        };
        self.counted(usize::from(value.is_some()), 0);
        value
    }

    /// The device has acknowledged the first `count` elements of a change. `taken`: the value
    /// that it returned with a removal.
    pub(super) fn acknowledge(&mut self, change: &Change<'_>, count: usize, taken: &[u8]) {
        for i in 0..count.min(change.count()) {
            match change.kind {
                Kind::Put => self.put(change.key(i), change.value(i)),
                Kind::Remove | Kind::Take => drop(self.remove(change.key(i))),
                Kind::Push => self.push(change.value(i)),
                Kind::Pop => self.popped(taken),
            }
        }
    }

    /// The device's queue or stack gave this value away. It is the one that the journal has
    /// next, unless the data path pushed or popped, too.
    fn popped(&mut self, value: &[u8]) {
        let stack = self.shape().storage == Storage::Stack;
        let list = self.list();
        let at = if stack {
            list.iter().rposition(|known| **known == *value)
        } else {
            list.iter().position(|known| **known == *value)
        };
        let known = at.and_then(|at| list.remove(at)).is_some();
        self.counted(usize::from(known), 0);
    }

    /// The device says that it has no entry for an element of a change.
    pub(super) fn forget_element(&mut self, change: &Change<'_>, i: usize) {
        match change.kind {
            Kind::Put | Kind::Remove | Kind::Take => self.forget(change.key(i)),
            // What the data path took away from a queue is not known by its key.
            Kind::Push | Kind::Pop => {}
        }
    }

    /// The device has no such key, or no longer.
    pub(super) fn forget(&mut self, key: &[u8]) {
        drop(self.remove(key));
    }

    /// What the change does to a map with the journal's contents: the journal has it
    /// afterwards. With all stripes locked.
    pub(super) fn execute(&mut self, change: &Change<'_>) -> Executed {
        let mut done = Executed {
            count: 0,
            status: Status::Success,
            value: None,
        };
        for i in 0..change.count() {
            done.status = match change.kind {
                Kind::Put => self.execute_put(change.key(i), change.value(i), change.flags),
                Kind::Remove | Kind::Take => {
                    let deletes = match self.shape().storage {
                        Storage::Hash | Storage::Lru => true,
                        Storage::Trie => change.kind == Kind::Remove,
                        Storage::Array | Storage::Queue | Storage::Stack => false,
                    };
                    match deletes.then(|| self.remove(change.key(i))) {
                        None => Status::Unsupported,
                        Some(None) => Status::NotFound,
                        Some(value) => {
                            done.value = value.filter(|_| change.kind == Kind::Take);
                            Status::Success
                        }
                    }
                }
                Kind::Push => {
                    let full = self.list().len() >= self.shape_entries();
                    if full && change.flags != BPF_EXIST {
                        Status::Full
                    } else {
                        self.push(change.value(i));
                        Status::Success
                    }
                }
                Kind::Pop => match self.pop() {
                    None => Status::NotFound,
                    value => {
                        done.value = value;
                        Status::Success
                    }
                },
            };
            if !done.status.is_success() {
                break;
            }
            done.count += 1;
        }
        done
    }

    const fn shape_entries(&self) -> usize {
        self.shape().max_entries as usize
    }

    fn execute_put(&mut self, key: &[u8], value: &[u8], flags: u64) -> Status {
        let shape = *self.shape();
        let Some(place) = self.journal.place(key) else {
            return Status::OutOfRange;
        };
        if shape.storage == Storage::Array {
            let index = <[u8; 4]>::try_from(key).map_or(u32::MAX, u32::from_ne_bytes);
            if index >= shape.max_entries {
                return Status::OutOfRange;
            }
            if flags == BPF_NOEXIST {
                return Status::Exists;
            }
        } else {
            let known = self.has(&place);
            match flags {
                BPF_NOEXIST if known => return Status::Exists,
                BPF_EXIST if !known => return Status::NotFound,
                _ => {}
            }
            let full = self.journal.entries() >= u64::from(shape.max_entries);
            if !known && full && shape.storage != Storage::Lru {
                return Status::Full;
            }
        }
        self.put(key, value);
        Status::Success
    }

    /// Gives out all entries, `most` at a time, as packed keys and values, in an order in which
    /// they can be written again. Keys of queues and stacks have no bytes.
    pub(super) fn chunks<E>(
        &self,
        most: usize,
        mut each: impl FnMut(&[u8], &[u8], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        let mut add = |key: &[u8], value: &[u8]| {
            keys.extend_from_slice(key);
            values.extend_from_slice(value);
            count += 1;
            if count < most {
                return Ok(());
            }
            each(&keys, &values, count)?;
            keys.clear();
            values.clear();
            count = 0;
            Ok(())
        };
        for (_, stripe) in &self.stripes {
            match self.journal.shape.storage {
                Storage::Hash | Storage::Array | Storage::Trie => {
                    for (place, entry) in &stripe.entries {
                        add(entry.given.as_ref().unwrap_or(place), &entry.value)?;
                    }
                }
                Storage::Lru => {
                    for place in stripe.order.values() {
                        if let Some(entry) = stripe.entries.get(place) {
                            add(place, &entry.value)?;
                        }
                    }
                }
                Storage::Queue | Storage::Stack => {
                    for value in &stripe.list {
                        add(&[], value)?;
                    }
                }
            }
        }
        if count > 0 {
            each(&keys, &values, count)?;
        }
        Ok(())
    }
}
