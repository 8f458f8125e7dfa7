//! The operations of a map that is restored after a reset.
//!
//! Reads go to the device as those of any map do, and once more when the map was restored under
//! them. A write holds the locks of its keys from before its command is sent until the journal
//! has it. When the outcome of its command is unknown it leaves itself in `pending`, lets go of
//! the locks and sees to the recovery like everybody else; whoever restores the map executes
//! what is pending on the journal first, so that nobody who saw its effect sees that vanish.

use super::JournalShare;
use super::UnknownOutcome;
use super::change::{Change, Executed, Kind};
use super::escalate::GONE;
use super::journal::{Held, Journal, Shape, Storage};
use crate::errno::{self, During};
use crate::map::{BAD_QUEUE_FLAGS, NO_ARRAY_DELETE, NO_ARRAY_DELETE_BATCH, NO_KEYS, NicMap};
use crate::nic::{Reservation, Shared};
use offmap_bpf::device::{BatchOutcome, MapSpec, OffloadCommands, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{BPF_ANY, BPF_NOEXIST, MapType};
use offmap_bpf::{Errno, Error};
use offmap_driver::{DeviceMap, DriverError, Function, IoOpcode, MapParams, QueuePair, Status};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

const UNKNOWN: Error = Error::new(
    Errno::EIO,
    "the device did not answer the write, so that its outcome is unknown: the map has either \
     its old or its new effect",
);
const UNKNOWN_WALK: Error = Error::new(
    Errno::EIO,
    "the device did not answer a command that was removing elements, so that its outcome is \
     unknown; what it did not return is in the map again once that is restored",
);
const NO_TURN: Error = Error::new(
    Errno::ETIMEDOUT,
    "other writes to the same part of the map took as long as this operation could wait; it \
     had no effect",
);
const NO_HANDLE: Error = Error::new(
    Errno::EINVAL,
    "a recoverable map gets a new handle when it is restored, so that a map of maps cannot \
     hold it: exempt the inner map from recovery by its name",
);
const STALE_AGAIN: Error = Error::new(
    Errno::EIO,
    "the device lost the map again and again while this operation was tried",
);

/// Bytes of keys and values that one command of a refill has at most.
const REFILL_BYTES: usize = 256 << 10;

/// Why a map is not restored yet.
pub(super) enum Rebuild {
    /// The deadline of the thread that was at it has passed.
    OutOfTime,
    /// The driver failed, with something made in this epoch.
    Driver(DriverError, u64),
}

/// A write whose outcome is unknown.
struct Pending {
    change: Change<'static>,
    outcome: Arc<OnceLock<Executed>>,
}

/// What the device said to a write: elements done from the first on, and the status.
#[derive(Clone, Copy)]
struct Done {
    count: usize,
    status: Status,
}

/// A map with a journal.
pub(crate) struct RecoverableMap<F: Function> {
    shared: Arc<Shared<F>>,
    spec: MapSpec,
    /// With the seed that it has had from the start: a walk's tokens stay what they were.
    params: MapParams,
    current: RwLock<Arc<NicMap<F>>>,
    /// Epoch of the driver in which `current` was made.
    epoch: AtomicU64,
    /// A write's outcome is unknown: the map on the device is not what the journal says.
    suspect: AtomicBool,
    journal: Journal,
    pending: Mutex<Vec<Pending>>,
    /// Why the device would not have the map again, until the next reset.
    lost: RwLock<Option<Error>>,
    freed: AtomicBool,
    /// What the map counts for in the profile's limits, and for its journal.
    shares: Mutex<(Option<Reservation<F>>, Option<JournalShare>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a command that ended so has had its effect on the elements before that one and on no
/// other.
pub(crate) const fn is_settled(status: Status) -> bool {
    matches!(
        status,
        Status::Success
            | Status::NotFound
            | Status::Exists
            | Status::Full
            | Status::OutOfRange
            | Status::NoMemory
            | Status::InvalidField
            | Status::InvalidOpcode
            | Status::InvalidLength
            | Status::LimitExceeded
            | Status::Unsupported
            | Status::Aborted
            | Status::NoSpace
    )
}

/// Whether a driver that failed so has ended the command without an effect.
const fn is_harmless(error: &DriverError) -> bool {
    matches!(
        error,
        DriverError::TimedOut {
            quarantined: false,
            ..
        }
    )
}

impl<F: Function> RecoverableMap<F> {
    /// Creates the map, which the settings want to be recoverable.
    pub(crate) fn create(
        shared: &Arc<Shared<F>>,
        spec: &MapSpec,
        reservation: Option<Reservation<F>>,
    ) -> Result<Arc<Self>> {
        let refused = |errno, why: &str| {
            Error::because(
                errno,
                format!(
                    "a map of type {} cannot be recovered: {why}; exempt it from recovery by its \
                     name",
                    spec.map_type
                ),
            )
        };
        let shape = Shape::of(spec).map_err(|why| refused(Errno::EINVAL, why))?;
        if shared.profile.behaviours.act()
            && matches!(spec.map_type, MapType::HASH | MapType::ARRAY)
        {
            return Err(refused(
                Errno::EINVAL,
                "the profile has behaviours of its own for it, whose state is not restored",
            ));
        }
        let share = shared.escalation.share(shape.most_bytes())?;
        let params = shared.params(spec, 0);
        let map = shared.create_with(spec, &params)?.quietly();
        let made = Arc::new(Self {
            shared: Arc::clone(shared),
            spec: *spec,
            params,
            epoch: AtomicU64::new(map.device().epoch()),
            current: RwLock::new(Arc::new(map)),
            suspect: AtomicBool::new(false),
            journal: Journal::new(shape),
            pending: Mutex::default(),
            lost: RwLock::new(None),
            freed: AtomicBool::new(false),
            shares: Mutex::new((reservation, Some(share))),
        });
        shared.escalation.watch(Arc::downgrade(&made));
        Ok(made)
    }

    fn now(&self) -> Duration {
        self.shared.driver.function().now()
    }

    fn deadline(&self) -> Duration {
        self.now() + self.shared.escalation.settings().patience
    }

    /// What is called between two looks at a lock that others hold. `false`: the time is over.
    fn wait_until(&self, deadline: Duration) -> impl FnMut() -> bool {
        let function = self.shared.driver.function();
        let mut turns = 0u32;
        move || {
            turns = turns.wrapping_add(1);
            if turns < 64 {
                std::hint::spin_loop();
                return true;
            }
            function.relax();
            function.now() < deadline
        }
    }

    fn current(&self) -> Arc<NicMap<F>> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the map on the device is gone, or not what the journal says.
    pub(super) fn is_stale(&self) -> bool {
        !self.freed.load(Ordering::Acquire)
            && (self.suspect.load(Ordering::Acquire)
                || self.epoch.load(Ordering::Acquire) != self.shared.driver.epoch())
    }

    /// Returns when the map is on the device, restored if it has to be.
    fn ready(&self, deadline: Duration) -> Result<()> {
        if self.shared.pool.is_gone() {
            return Err(GONE);
        }
        let escalation = &self.shared.escalation;
        if self.is_stale() || escalation.wants_reset(&self.shared) {
            escalation.recover(&self.shared, deadline)?;
        }
        self.kept()
    }

    /// Whether the device has taken the map back.
    fn kept(&self) -> Result<()> {
        let lost = self.lost.read().unwrap_or_else(PoisonError::into_inner);
        match &*lost {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// An operation is about to be tried once more, with a command of this kind.
    fn count_retry(&self, opcode: IoOpcode) {
        self.shared.escalation.count_retry();
        // Where there is no queue pair it has none to be counted at, and will fail by itself.
        let _ = self.shared.pool.with(|queue| {
            queue.count_retry(opcode);
            Ok(())
        });
    }

    /// A read by commands of the kind `opcode`, done again when the map was lost under it.
    fn read<T>(
        &self,
        opcode: IoOpcode,
        mut operation: impl FnMut(&NicMap<F>) -> Result<T>,
    ) -> Result<T> {
        let deadline = self.deadline();
        loop {
            self.ready(deadline)?;
            let map = self.current();
            let error = match operation(&map) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let same = Arc::ptr_eq(&map, &self.current());
            if same && !self.is_stale() && !self.shared.escalation.wants_reset(&self.shared) {
                return Err(error);
            }
            if self.now() >= deadline {
                return Err(error);
            }
            self.shared.escalation.recover(&self.shared, deadline)?;
            self.count_retry(opcode);
        }
    }

    /// A write: `operation` sends it, by a command of the kind `opcode`. What it returns is what was done to the map, with the value
    /// of a removal that was executed on the journal.
    fn write(
        &self,
        opcode: IoOpcode,
        change: Change<'_>,
        taken: &mut [u8],
        mut operation: impl FnMut(&mut QueuePair<F>, &DeviceMap, &mut [u8]) -> Result<Done, DriverError>,
    ) -> Result<Done> {
        let deadline = self.deadline();
        let escalation = &self.shared.escalation;
        loop {
            self.ready(deadline)?;
            let mut wait = self.wait_until(deadline);
            let mut held = self.journal.lock(&change, &mut wait).ok_or(NO_TURN)?;
            // Whoever restores the map takes these locks, too: it stays what it is from here on.
            if self.is_stale() {
                drop(held);
                if self.now() >= deadline {
                    return Err(STALE_AGAIN);
                }
                continue;
            }
            let device = *self.current().device();
            let mut sent = false;
            let done = self.shared.pool.with(|queue| {
                let before = queue.submissions();
                let done = operation(queue, &device, taken);
                sent = queue.submissions() != before;
                done
            });
            let failure = match done {
                Ok(done) if is_settled(done.status) => {
                    held.acknowledge(&change, done.count, taken);
                    if done.status == Status::NotFound && done.count < change.count() {
                        held.forget_element(&change, done.count);
                    }
                    return Ok(done);
                }
                Ok(_) => None,
                Err(error) => Some(error),
            };
            match failure {
                Some(error) if !sent || is_harmless(&error) => {
                    drop(held);
                    escalation.note(&self.shared, &error, device.epoch());
                    let lost = self.is_stale() || escalation.wants_reset(&self.shared);
                    if !lost || self.now() >= deadline {
                        return Err(errno::of_driver(&error));
                    }
                    escalation.recover(&self.shared, deadline)?;
                    self.count_retry(opcode);
                }
                failure => {
                    let outcome = self.pend(change);
                    drop(held);
                    if let Some(error) = failure {
                        escalation.note(&self.shared, &error, device.epoch());
                    }
                    return self.settle(&outcome, taken, deadline);
                }
            }
        }
    }

    /// Leaves a write of unknown outcome for whoever restores the map. With its locks held, so
    /// that no other write of its keys comes between.
    fn pend(&self, change: Change<'_>) -> Arc<OnceLock<Executed>> {
        let outcome = Arc::new(OnceLock::new());
        locked(&self.pending).push(Pending {
            change: change.into_owned(),
            outcome: Arc::clone(&outcome),
        });
        self.suspect.store(true, Ordering::Release);
        let unknown = &self.shared.escalation.unknown;
        unknown.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Waits until a write of unknown outcome was executed on the restored map.
    fn settle(
        &self,
        outcome: &OnceLock<Executed>,
        taken: &mut [u8],
        deadline: Duration,
    ) -> Result<Done> {
        let escalation = &self.shared.escalation;
        let recovered = escalation.recover(&self.shared, deadline);
        let recovered = recovered.and_then(|()| self.kept());
        let resolves = escalation.settings().unknown == UnknownOutcome::Resolve;
        match outcome.get() {
            Some(done) if resolves && recovered.is_ok() => {
                escalation.resolved.fetch_add(1, Ordering::Relaxed);
                if let Some(value) = &done.value {
                    taken.copy_from_slice(value);
                }
                Ok(Done {
                    count: done.count,
                    status: done.status,
                })
            }
            _ => {
                escalation.reported.fetch_add(1, Ordering::Relaxed);
                match recovered {
                    // For good: nobody will ever see which it was.
                    Err(error) if error.errno() == Errno::ENODEV && self.shared.pool.is_gone() => {
                        Err(error)
                    }
                    Err(error) => Err(Error::because(
                        UNKNOWN.errno(),
                        format!("{}; {}", UNKNOWN.reason(), error.reason()),
                    )),
                    Ok(()) => Err(UNKNOWN),
                }
            }
        }
    }

    /// Makes the map again and fills it from the journal, if it has to be. Called by the thread
    /// that recovers. Elements written, or `None` when there was nothing to do.
    pub(super) fn rebuild(&self, deadline: Duration) -> Result<Option<u64>, Rebuild> {
        if !self.is_stale() {
            return Ok(None);
        }
        let mut wait = self.wait_until(deadline);
        // Writes under way end first: none is acknowledged that the journal has not.
        let Some(mut held) = self.journal.lock_all(&mut wait) else {
            return Err(Rebuild::OutOfTime);
        };
        if !self.is_stale() {
            return Ok(None);
        }
        // What follows for a map that is freed meanwhile is undone by `free`.
        for pending in locked(&self.pending).drain(..) {
            let done = held.execute(&pending.change);
            // Set once, here.
            let _ = pending.outcome.set(done);
        }
        let old = self.current();
        old.free();
        let epoch = self.shared.driver.epoch();
        let made = match self.shared.driver.create_map(&self.params) {
            Ok(made) => made,
            Err(error @ (DriverError::Refused { .. } | DriverError::Command { .. })) => {
                self.lose(
                    epoch,
                    errno::of_create(&self.shared.profile.name, &error).reason(),
                );
                return Ok(Some(0));
            }
            Err(error) => return Err(Rebuild::Driver(error, epoch)),
        };
        let epoch = made.epoch();
        match self.refill(&held, &made, deadline) {
            Ok(elements) => {
                let map = NicMap::new(Arc::clone(&self.shared), &self.spec, made).quietly();
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(map);
                self.restored(epoch, None);
                Ok(Some(elements))
            }
            Err(failed) => {
                // At best the device has it no more; at worst it goes with the next reset.
                let _ = self.shared.driver.free_map(&made);
                match failed {
                    Refill::OutOfTime => Err(Rebuild::OutOfTime),
                    Refill::Driver(error) => Err(Rebuild::Driver(error, epoch)),
                    Refill::Status(status) => {
                        self.lose(epoch, &status.to_string());
                        Ok(Some(0))
                    }
                }
            }
        }
    }

    fn restored(&self, epoch: u64, lost: Option<Error>) {
        *self.lost.write().unwrap_or_else(PoisonError::into_inner) = lost;
        self.suspect.store(false, Ordering::Release);
        self.epoch.store(epoch, Ordering::Release);
    }

    /// The device would not have the map again. The journal stays, for the next reset.
    fn lose(&self, epoch: u64, why: &str) {
        let error = Error::because(
            Errno::ENODEV,
            format!("the device did not take the map back when it was restored: {why}"),
        );
        self.restored(epoch, Some(error));
    }

    fn refill(&self, held: &Held<'_>, made: &DeviceMap, deadline: Duration) -> Result<u64, Refill> {
        let shape = self.journal.shape();
        let is_list = matches!(shape.storage, Storage::Queue | Storage::Stack);
        let batches = self.shared.driver.identity().batch > 0 && !is_list;
        let (key, value) = (shape.key_bytes, shape.value_bytes);
        let most = (REFILL_BYTES / (key + value).max(1)).max(1);
        let mut elements = 0;
        held.chunks(most, |keys, values, count| {
            if self.now() >= deadline {
                return Err(Refill::OutOfTime);
            }
            if batches {
                let done = self
                    .shared
                    .pool
                    .with(|q| q.update_batch(made, keys, values, BPF_ANY as u32));
                let done = done.map_err(Refill::Driver)?;
                if !done.status.is_success() {
                    return Err(Refill::Status(done.status));
                }
            } else {
                for i in 0..count {
                    let (key, value) = (&keys[i * key..][..key], &values[i * value..][..value]);
                    let status = self
                        .shared
                        .pool
                        .with(|q| q.update(made, key, value, BPF_ANY as u32));
                    let status = status.map_err(Refill::Driver)?;
                    if !status.is_success() {
                        return Err(Refill::Status(status));
                    }
                }
            }
            elements += count as u64;
            Ok(())
        })?;
        Ok(elements)
    }

    fn failed(&self, status: Status, during: During) -> Error {
        errno::of_status(&self.shared.profile, self.spec.map_type, status, during)
    }

    fn one(&self, done: Result<Done>, during: During) -> Result<()> {
        match done? {
            Done { status, .. } if status.is_success() => Ok(()),
            Done { status, .. } => Err(self.failed(status, during)),
        }
    }

    fn many(&self, done: Result<Done>, during: During) -> BatchOutcome {
        match done {
            Ok(Done { count, status }) => BatchOutcome {
                count: count as u32,
                result: if status.is_success() {
                    Ok(())
                } else {
                    Err(self.failed(status, during))
                },
            },
            Err(error) => BatchOutcome::failed(error),
        }
    }

    fn change<'a>(
        &self,
        kind: Kind,
        keys: &'a [u8],
        values: &'a [u8],
        count: usize,
        flags: u64,
    ) -> Change<'a> {
        Change::new(kind, self.journal.shape(), keys, values, count, flags)
    }

    fn is_list(&self) -> bool {
        matches!(
            self.journal.shape().storage,
            Storage::Queue | Storage::Stack
        )
    }

    fn is_array(&self) -> bool {
        self.journal.shape().storage == Storage::Array
    }

    const fn during_update(&self, flags: u64) -> During {
        match self.spec.map_type {
            MapType::LPM_TRIE => During::UpdateTrie(flags),
            _ => During::Update(flags),
        }
    }

    const fn during_delete(&self) -> During {
        match self.spec.map_type {
            MapType::LPM_TRIE => During::DeleteTrie,
            _ => During::Delete,
        }
    }

    /// A walk that removes what it returns, with the whole journal locked.
    fn take_walk(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
    ) -> BatchOutcome {
        let deadline = self.deadline();
        let mut held = loop {
            if let Err(error) = self.ready(deadline) {
                return BatchOutcome::failed(error);
            }
            let mut wait = self.wait_until(deadline);
            let Some(held) = self.journal.lock_all(&mut wait) else {
                return BatchOutcome::failed(NO_TURN);
            };
            if !self.is_stale() {
                break held;
            }
            drop(held);
            if self.now() >= deadline {
                return BatchOutcome::failed(STALE_AGAIN);
            }
        };
        let map = self.current();
        let mut outcome = map.walk_batch(in_batch, out_batch, keys, values, count, true);
        let key = self.journal.shape().key_bytes;
        for i in 0..outcome.count as usize {
            held.forget(&keys[i * key..][..key]);
        }
        let ends = [Errno::ENOENT, Errno::ENOSPC, Errno::ENOTSUPP, Errno::EINVAL];
        if let Err(error) = &outcome.result
            && !ends.contains(&error.errno())
        {
            let escalation = &self.shared.escalation;
            escalation.unknown.fetch_add(1, Ordering::Relaxed);
            escalation.reported.fetch_add(1, Ordering::Relaxed);
            self.suspect.store(true, Ordering::Release);
            drop(held);
            outcome.result = match escalation.recover(&self.shared, deadline) {
                Err(error) if self.shared.pool.is_gone() => Err(error),
                _ => Err(UNKNOWN_WALK),
            };
        }
        outcome
    }

    fn has(&self, command: OffloadCommands) -> Result<()> {
        self.current().has(command)
    }
}

/// Why a map was not filled.
enum Refill {
    OutOfTime,
    Driver(DriverError),
    Status(Status),
}

impl<F: Function> OffloadedMap for RecoverableMap<F> {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        self.read(IoOpcode::Lookup, |map| map.lookup(key, value, flags))
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let (kind, keys) = match self.is_list() {
            true if flags == BPF_NOEXIST => return Err(BAD_QUEUE_FLAGS),
            true => (Kind::Push, &[][..]),
            false => (Kind::Put, key),
        };
        let change = self.change(kind, keys, value, 1, flags);
        let done = self.write(IoOpcode::Update, change, &mut [], |queue, map, _| {
            let status = queue.update(map, keys, value, flags as u32)?;
            Ok(single(status))
        });
        self.one(done, self.during_update(flags))
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        if self.is_list() {
            return Err(NO_KEYS);
        }
        let change = self.change(Kind::Remove, key, &[], 1, 0);
        let done = self.write(IoOpcode::Delete, change, &mut [], |queue, map, _| {
            Ok(single(queue.delete(map, key)?))
        });
        self.one(done, self.during_delete())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let opcode = match key {
            Some(_) => IoOpcode::GetNext,
            None => IoOpcode::GetFirst,
        };
        self.read(opcode, |map| map.get_next_key(key, next))
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        if self.is_array() {
            return Err(NO_ARRAY_DELETE);
        }
        self.has(OffloadCommands::LOOKUP_AND_DELETE)?;
        let (kind, key) = match self.is_list() {
            true => (Kind::Pop, &[][..]),
            false => (Kind::Take, key),
        };
        let change = self.change(kind, key, &[], 1, 0);
        let opcode = IoOpcode::LookupAndDelete;
        let done = self.write(opcode, change, value, |queue, map, value| {
            Ok(single(queue.lookup_and_delete(map, key, value)?))
        });
        self.one(done, During::LookupAndDelete)
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        self.read(IoOpcode::BatchLookup, |map| {
            map.lookup_many(keys, values, results)
        })
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, flags: u64) -> BatchOutcome {
        if let Err(error) = self.has(OffloadCommands::UPDATE_BATCH) {
            return BatchOutcome::failed(error);
        }
        let change = self.change(Kind::Put, keys, values, count as usize, flags);
        let done = self.write(IoOpcode::BatchUpdate, change, &mut [], |queue, map, _| {
            let done = queue.update_batch(map, keys, values, flags as u32)?;
            Ok(Done {
                count: done.count,
                status: done.status,
            })
        });
        self.many(done, self.during_update(flags))
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> BatchOutcome {
        if let Err(error) = self.has(OffloadCommands::DELETE_BATCH) {
            return BatchOutcome::failed(error);
        }
        if self.is_array() {
            return BatchOutcome::failed(NO_ARRAY_DELETE_BATCH);
        }
        let change = self.change(Kind::Remove, keys, &[], count as usize, 0);
        let done = self.write(IoOpcode::BatchDelete, change, &mut [], |queue, map, _| {
            let done = queue.delete_batch(map, keys)?;
            Ok(Done {
                count: done.count,
                status: done.status,
            })
        });
        self.many(done, self.during_delete())
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        if delete {
            return self.take_walk(in_batch, out_batch, keys, values, count);
        }
        // A walk that was cut off has returned nothing yet when it is begun again.
        let walked = self.read(IoOpcode::BatchDump, |map| {
            let outcome = map.walk_batch(in_batch, out_batch, keys, values, count, false);
            match outcome.result {
                Err(error) if outcome.count == 0 => Err(error),
                _ => Ok(outcome),
            }
        });
        walked.unwrap_or_else(BatchOutcome::failed)
    }

    fn inner_value(&self) -> Result<[u8; 4]> {
        Err(NO_HANDLE)
    }

    fn device_bytes(&self) -> u64 {
        self.current().device_bytes()
    }

    fn free(&self) {
        if self.freed.swap(true, Ordering::AcqRel) {
            return;
        }
        // A recovery that is at this map ends first, and the next one passes it over.
        let held = self.journal.lock_all(&mut || {
            self.shared.driver.function().relax();
            true
        });
        self.current().free();
        drop(held);
        drop(std::mem::take(&mut *locked(&self.shares)));
    }
}

const fn single(status: Status) -> Done {
    Done {
        count: if status.is_success() { 1 } else { 0 },
        status,
    }
}
