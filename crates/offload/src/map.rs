//! The operations of one offloaded map.

use crate::errno::{self, During};
use crate::nic::{Reservation, Shared};
use offmap_bpf::device::{BatchOutcome, MapSpec, OffloadCommands, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{BPF_ANY, BPF_NOEXIST, MapType};
use offmap_bpf::{ElementOp, Errno, Error};
use offmap_driver::{DeviceMap, DriverError, Function, Op, QueuePair, Status};
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const NO_ARRAY_DELETE: Error = Error::new(
    Errno::ENOTSUPP,
    "array elements cannot be deleted, so arrays have no operation that deletes what it returns",
);
pub(crate) const NO_ARRAY_DELETE_BATCH: Error = Error::new(
    Errno::ENOTSUPP,
    "array elements cannot be deleted, so arrays have no delete batch",
);
pub(crate) const NO_KEYS: Error = Error::new(
    Errno::EINVAL,
    "a queue or stack has no keys to delete or to walk",
);
pub(crate) const BAD_QUEUE_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: a push takes BPF_ANY, or BPF_EXIST to overwrite the oldest value",
);
const NOT_IN_PROFILE: Error = Error::new(
    Errno::ENOTSUPP,
    "this device has no such operation on an offloaded map",
);
const NO_BLOOM_DELETE: Error = Error::new(
    Errno::EOPNOTSUPP,
    "what was added to a bloom filter cannot be taken out",
);
const NO_BLOOM_NEXT: Error = Error::new(
    Errno::EOPNOTSUPP,
    "a bloom filter does not keep its values, so that they cannot be listed",
);
const NO_BLOOM_SUBMIT: Error = Error::new(
    Errno::EOPNOTSUPP,
    "a bloom filter has no operations that end later: what is asked for is the value, which a \
     lookup of that kind does not take",
);
const BAD_PUSH_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: adding to a bloom filter takes BPF_ANY only",
);
const NO_SUCH_POSITION: Error = Error::new(
    Errno::EIO,
    "the device's dump of the map goes on past the map's end",
);
const NOTHING_IN_TIME: Error = Error::new(
    Errno::ETIMEDOUT,
    "the device found no element of the map in the time of one command",
);

/// A map in device memory.
pub(crate) struct NicMap<F: Function> {
    shared: Arc<Shared<F>>,
    map: DeviceMap,
    map_type: MapType,
    is_array: bool,
    /// Queues and stacks: values without keys.
    is_queue: bool,
    max_entries: u32,
    freed: AtomicBool,
    /// Its failures only count: whoever owns it sees to the recovery.
    quiet: bool,
    /// What the map counts for in the profile's limits.
    reservation: Mutex<Option<Reservation<F>>>,
}

impl<F: Function> NicMap<F> {
    pub(crate) fn new(shared: Arc<Shared<F>>, spec: &MapSpec, map: DeviceMap) -> Self {
        Self {
            shared,
            map,
            map_type: spec.map_type,
            is_array: matches!(spec.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY),
            is_queue: matches!(spec.map_type, MapType::QUEUE | MapType::STACK),
            max_entries: spec.max_entries,
            freed: AtomicBool::new(false),
            quiet: false,
            reservation: Mutex::new(None),
        }
    }

    /// The map of an owner who sees to the recovery after a failure.
    pub(crate) fn quietly(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The map as the driver has it.
    pub(crate) fn device(&self) -> &DeviceMap {
        &self.map
    }

    /// The map counts for this from now on, until it is freed.
    pub(crate) fn counting(mut self, reservation: Option<Reservation<F>>) -> Self {
        self.reservation = Mutex::new(reservation);
        self
    }

    /// Looks keys up in one command where the device can do that, otherwise one after the
    /// other. `found` gets the index of each key that is there.
    pub(crate) fn fetch(
        &self,
        keys: &[u8],
        values: &mut [u8],
        mut found: impl FnMut(usize),
    ) -> Result<()> {
        let (key, value) = (self.map.key_size(), self.map.value_stride());
        if self.shared.driver.identity().batch > 0 {
            return self.run(During::Lookup, |q| {
                q.lookup_batch(&self.map, keys, values, |i, status| {
                    if status.is_success() {
                        found(i);
                    }
                })
            });
        }
        for (i, (key, value)) in
            std::iter::zip(keys.chunks_exact(key), values.chunks_exact_mut(value)).enumerate()
        {
            if self.lookup(key, value, 0).is_ok() {
                found(i);
            }
        }
        Ok(())
    }

    #[inline]
    fn run(
        &self,
        during: During,
        operation: impl FnOnce(&mut QueuePair<F>) -> Result<Status, DriverError>,
    ) -> Result<()> {
        match self.shared.pool.with(operation) {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) => Err(self.failed(status, during)),
            Err(e) => Err(self.broken(&e)),
        }
    }

    #[cold]
    pub(crate) fn failed(&self, status: Status, during: During) -> Error {
        errno::of_status(&self.shared.profile, self.map_type, status, during)
    }

    /// The driver could not carry an operation out: escalates where that helps.
    #[cold]
    #[inline(never)]
    fn broken(&self, error: &DriverError) -> Error {
        let (escalation, epoch) = (&self.shared.escalation, self.map.epoch());
        if self.quiet {
            escalation.note(&self.shared, error, epoch);
        } else {
            escalation.after(&self.shared, error, epoch);
        }
        errno::of_driver(error)
    }

    /// The command of an operation that ends later, and what it is for the table of errors.
    pub(crate) fn command<'a>(&'a self, op: &ElementOp<'a>) -> Result<(Op<'a>, During)> {
        if self.is_bloom() {
            return Err(NO_BLOOM_SUBMIT);
        }
        let map = &self.map;
        let keyless = match *op {
            ElementOp::Delete { .. } | ElementOp::NextKey { .. } => self.is_queue,
            _ => false,
        };
        if keyless {
            return Err(NO_KEYS);
        }
        Ok(match *op {
            ElementOp::Lookup { key } => (Op::Lookup { map, key }, During::Lookup),
            ElementOp::Update { flags, .. } if self.is_queue && flags == BPF_NOEXIST => {
                return Err(BAD_QUEUE_FLAGS);
            }
            ElementOp::Update { key, value, flags } => {
                let during = self.during_update(flags);
                let flags = flags as u32;
                let op = Op::Update {
                    map,
                    key,
                    value,
                    flags,
                };
                (op, during)
            }
            ElementOp::Delete { key } => (Op::Delete { map, key }, self.during_delete()),
            ElementOp::NextKey { key: Some(key) } => (Op::GetNext { map, key }, During::NextKey),
            ElementOp::NextKey { key: None } => (Op::GetFirst { map }, During::NextKey),
            ElementOp::LookupAndDelete { .. } if self.is_array => return Err(NO_ARRAY_DELETE),
            ElementOp::LookupAndDelete { key } => {
                self.has(OffloadCommands::LOOKUP_AND_DELETE)?;
                (Op::LookupAndDelete { map, key }, During::LookupAndDelete)
            }
        })
    }

    /// What the NIC and its maps share.
    pub(crate) fn shared(&self) -> &Arc<Shared<F>> {
        &self.shared
    }

    fn is_bloom(&self) -> bool {
        self.map_type == MapType::BLOOM_FILTER
    }

    const fn during_update(&self, flags: u64) -> During {
        match self.map_type {
            MapType::LPM_TRIE => During::UpdateTrie(flags),
            _ => During::Update(flags),
        }
    }

    fn during_delete(&self) -> During {
        match self.map_type {
            MapType::LPM_TRIE => During::DeleteTrie,
            _ => During::Delete,
        }
    }

    pub(crate) fn has(&self, command: OffloadCommands) -> Result<()> {
        if self.shared.commands.contains(command) {
            Ok(())
        } else {
            Err(NOT_IN_PROFILE)
        }
    }

    fn changed(
        &self,
        done: Result<offmap_driver::BatchDone, DriverError>,
        during: During,
    ) -> BatchOutcome {
        match done {
            Ok(done) => BatchOutcome {
                count: done.count as u32,
                result: if done.status.is_success() {
                    Ok(())
                } else {
                    Err(self.failed(done.status, during))
                },
            },
            Err(e) => BatchOutcome::failed(self.broken(&e)),
        }
    }

    /// The next position of a dump for the token of a batch call; `Err`: there is none.
    fn position(&self, token: Option<&[u8]>) -> Result<u32, ()> {
        // Of both kinds of map the token has 4 bytes: a bucket, or an array's key.
        let word = token.map(|token| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&token[..4]);
            u32::from_ne_bytes(raw)
        });
        match word {
            None => Ok(0),
            Some(bucket) if !self.is_array => Ok(bucket),
            // The token is the last key returned, and the next one is get_next's answer: 0 for
            // a key out of range, none for the last.
            Some(key) if key >= self.max_entries => Ok(0),
            Some(key) if key + 1 == self.max_entries => Err(()),
            Some(key) => Ok(key + 1),
        }
    }

    /// The token for a position.
    fn token(&self, position: u32) -> u32 {
        if self.is_array {
            position.saturating_sub(1)
        } else {
            position
        }
    }
}

impl<F: Function> OffloadedMap for NicMap<F> {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        if self.is_bloom() {
            // The value is what is asked for, and the key of the command.
            return self.run(During::Lookup, |q| q.lookup(&self.map, value, &mut []));
        }
        self.run(During::Lookup, |q| q.lookup(&self.map, key, value))
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let (key, value) = match self.is_bloom() {
            true if flags != BPF_ANY => return Err(BAD_PUSH_FLAGS),
            true => (value, &[][..]),
            false => (key, value),
        };
        // The core let only BPF_ANY, BPF_NOEXIST and BPF_EXIST through.
        if self.is_queue && flags == BPF_NOEXIST {
            return Err(BAD_QUEUE_FLAGS);
        }
        self.run(self.during_update(flags), |q| {
            q.update(&self.map, key, value, flags as u32)
        })
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        if self.is_bloom() {
            return Err(NO_BLOOM_DELETE);
        }
        if self.is_queue {
            return Err(NO_KEYS);
        }
        self.run(self.during_delete(), |q| q.delete(&self.map, key))
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        if self.is_bloom() {
            return Err(NO_BLOOM_NEXT);
        }
        if self.is_queue {
            return Err(NO_KEYS);
        }
        self.run(During::NextKey, |q| match key {
            Some(key) => q.get_next(&self.map, key, next),
            None => q.get_first(&self.map, next),
        })
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        if self.is_array {
            return Err(NO_ARRAY_DELETE);
        }
        self.has(OffloadCommands::LOOKUP_AND_DELETE)?;
        self.run(During::LookupAndDelete, |q| {
            q.lookup_and_delete(&self.map, key, value)
        })
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        self.has(OffloadCommands::LOOKUP_BATCH)?;
        if self.is_bloom() || self.is_queue {
            // The device has no batches of them: each is a peek, as on the host.
            let size = match self.is_bloom() {
                true => self.map.key_size(),
                false => self.map.value_stride(),
            };
            for (result, value) in results.iter_mut().zip(values.chunks_exact_mut(size)) {
                *result = self.lookup(&[], value, 0).map_err(|error| error.errno());
            }
            return Ok(());
        }
        let profile = &self.shared.profile;
        self.run(During::Lookup, |q| {
            q.lookup_batch(&self.map, keys, values, |i, status| {
                if let Some(result) = results.get_mut(i) {
                    *result = errno::number(profile, self.map_type, status, During::Lookup);
                }
            })
        })
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], _count: u32, flags: u64) -> BatchOutcome {
        if let Err(e) = self.has(OffloadCommands::UPDATE_BATCH) {
            return BatchOutcome::failed(e);
        }
        let done = self
            .shared
            .pool
            .with(|q| q.update_batch(&self.map, keys, values, flags as u32));
        self.changed(done, self.during_update(flags))
    }

    fn delete_batch(&self, keys: &[u8], _count: u32) -> BatchOutcome {
        if let Err(e) = self.has(OffloadCommands::DELETE_BATCH) {
            return BatchOutcome::failed(e);
        }
        if self.is_array {
            return BatchOutcome::failed(NO_ARRAY_DELETE_BATCH);
        }
        let done = self.shared.pool.with(|q| q.delete_batch(&self.map, keys));
        self.changed(done, self.during_delete())
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
        let command = if delete {
            OffloadCommands::LOOKUP_AND_DELETE_BATCH
        } else {
            OffloadCommands::LOOKUP_BATCH
        };
        if let Err(e) = self.has(command) {
            return BatchOutcome::failed(e);
        }
        if delete && self.is_array {
            return BatchOutcome::failed(NO_ARRAY_DELETE);
        }
        let unmoved = |result| BatchOutcome { count: 0, result };
        if count == 0 {
            return unmoved(Ok(()));
        }
        if self.map_type == MapType::LPM_TRIE {
            return self.walk_trie(in_batch, out_batch, keys, values, count);
        }
        let Ok(start) = self.position(in_batch) else {
            return unmoved(Err(self.failed(Status::NotFound, During::Walk)));
        };
        self.walk(start, out_batch, keys, values, count, delete)
    }

    fn own(self: Arc<Self>) -> Option<Arc<dyn Any + Send + Sync>> {
        // What only counts belongs to an owner who keeps a journal.
        if self.quiet { None } else { Some(self) }
    }

    /// The device's handle, as its maps of maps hold it.
    fn inner_value(&self) -> Result<[u8; 4]> {
        Ok(self.map.handle().0.to_le_bytes())
    }

    fn device_bytes(&self) -> u64 {
        self.map.bytes()
    }

    fn free(&self) {
        if self.freed.swap(true, Ordering::AcqRel) {
            return;
        }
        match self.shared.driver.free_map(&self.map) {
            // A reset, or the end of the device, freed it before.
            Ok(()) | Err(DriverError::DeviceReset | DriverError::DeviceGone { .. }) => {}
            Err(_) => self.shared.count_failed_free(),
        }
        let counted = self.reservation.lock();
        drop(counted.unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl<F: Function> NicMap<F> {
    /// Dumps from `start` on, command after command, until the room is used, the map ends, or
    /// the next bucket does not fit.
    ///
    /// A device may end a dump early with nothing in it. The commands together get the time of
    /// one (`DriverConfig::op_timeout`); no further one is sent after that, and what is there by
    /// then is the result.
    fn walk(
        &self,
        start: u32,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        let (key, value) = (self.map.key_size(), self.map.value_stride());
        let mut position = start;
        let mut done = 0usize;
        let room = count as usize;
        // Each command moves on, as the driver sees to. No table has more buckets than this, so
        // that a walk ends by itself, too.
        let positions = u64::from(self.max_entries).next_power_of_two() * 2;
        let driver = &self.shared.driver;
        let deadline = driver.function().now() + driver.config().op_timeout;
        let result = loop {
            let dumped = self.shared.pool.with(|q| {
                q.dump(
                    &self.map,
                    position,
                    &mut keys[done * key..room * key],
                    &mut values[done * value..room * value],
                    delete,
                )
            });
            let dumped = match dumped {
                Ok(dumped) => dumped,
                Err(e) => break Err(self.broken(&e)),
            };
            match dumped.status {
                Status::Success | Status::NotFound => {
                    done += dumped.count;
                    position = dumped.cursor;
                    // `generic_map_lookup_batch`, which walks arrays, looks for the end only
                    // while there is room.
                    let at_end = dumped.status == Status::NotFound
                        || self.is_array && position >= self.max_entries && done < room;
                    if at_end {
                        break Err(self.failed(Status::NotFound, During::Walk));
                    }
                    if done == room {
                        break Ok(());
                    }
                    if u64::from(position) > positions {
                        break Err(NO_SUCH_POSITION);
                    }
                    if driver.function().now() >= deadline {
                        break if done > 0 {
                            Ok(())
                        } else {
                            Err(NOTHING_IN_TIME)
                        };
                    }
                }
                Status::NoSpace => {
                    position = position.max(dumped.cursor);
                    if done > 0 {
                        // The bucket comes with the next call.
                        break Ok(());
                    }
                    break Err(self.failed(Status::NoSpace, During::Walk));
                }
                other => break Err(self.failed(other, During::Walk)),
            }
        };
        // At the end of an array the last key is the one before the position.
        let position = if self.is_array {
            position.min(self.max_entries)
        } else {
            position
        };
        // A generic walk writes its token when it returned something; a hash walk always but
        // for a token past the last bucket, from which the device does not move on.
        let past_end = position <= start && matches!(&result, Err(e) if e.errno() == Errno::ENOENT);
        if done != 0 || !self.is_array && !past_end {
            out_batch.copy_from_slice(&self.token(position).to_ne_bytes());
        }
        BatchOutcome {
            count: done as u32,
            result,
        }
    }

    /// As `walk`, for a trie: every command goes on after the last key that the one before
    /// returned, the first one after the token, which is a key too.
    fn walk_trie(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
    ) -> BatchOutcome {
        let (key, value) = (self.map.key_size(), self.map.value_stride());
        let room = count as usize;
        let mut done = 0usize;
        let driver = &self.shared.driver;
        let deadline = driver.function().now() + driver.config().op_timeout;
        let result = loop {
            let (returned, rest) = keys[..room * key].split_at_mut(done * key);
            let after = match done.checked_sub(1) {
                None => in_batch,
                Some(last) => Some(&returned[last * key..]),
            };
            let values = &mut values[done * value..room * value];
            let dumped = self
                .shared
                .pool
                .with(|q| q.dump_after(&self.map, after, rest, values));
            let dumped = match dumped {
                Ok(dumped) => dumped,
                Err(e) => break Err(self.broken(&e)),
            };
            match dumped.status {
                Status::Success | Status::NotFound => done += dumped.count,
                other => break Err(self.failed(other, During::Walk)),
            }
            if dumped.status == Status::NotFound {
                break Err(self.failed(Status::NotFound, During::Walk));
            }
            if done == room {
                break Ok(());
            }
            if driver.function().now() >= deadline {
                break if done > 0 {
                    Ok(())
                } else {
                    Err(NOTHING_IN_TIME)
                };
            }
        };
        if let Some(last) = done.checked_sub(1) {
            out_batch.copy_from_slice(&keys[last * key..done * key]);
        }
        BatchOutcome {
            count: done as u32,
            result,
        }
    }
}
