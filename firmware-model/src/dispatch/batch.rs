//! Commands on many elements (abi §7.2).
//!
//! What a batch that ends early leaves behind:
//!
//! * Batch update and delete stop at the first element that fails; the completion carries that
//!   element's status, the count of the elements before it, all of which are applied, and no
//!   element after it is. Statuses are written for the elements done and the one that failed.
//!   When host memory cannot be reached, the status is `DmaFault` and the count is again that
//!   of the elements applied; the statuses of up to [`LANES`] of them may be missing.
//! * Batch lookup gives each element its status and goes on. On `DmaFault` (or `Internal`) the
//!   count is that of the elements whose values and statuses have been written; elements after
//!   them may have been written too.
//! * A dump returns whole chains. On `DmaFault` count and cursor stand before the chain that
//!   could not be written; a dump that deletes has deleted exactly the chains before it.
//!
//! A step does bounded work, and other commands may run between the steps of a batch. Each step
//! judges the whole command again, so that a map that was freed in between is noticed before
//! any table is touched; the completion then carries `InvalidMap` and the count of the elements
//! done before. A chain of a hash table is not divided, since a dump shows it at one moment, and
//! neither is an element: a step may exceed its budget by one of them.

use super::{Budget, Io, Position, Step, element_at, reserved_bits, update_flags};
use crate::HostMemory;
use crate::access::Access;
use crate::maps::Map;
use crate::table::array::ArrayTable;
use crate::table::bucket::BUCKET_SLOTS;
use crate::table::hash::HashTable;
use crate::table::lpm::LpmTable;
use crate::table::{LANES, Table, ValueWrite, copy_out};
use crate::warm::{HOMES, warm_homes};
use core::ops::ControlFlow;
use offmap_abi::completion::BatchResult;
use offmap_abi::submission::BatchBody;
use offmap_abi::{Completion, DevAddr, IoOpcode, RequestId, Status, Submission};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// How a batch ended, or how a step of it did.
struct Outcome {
    /// The status of a batch that ended; `None`: there is more to do.
    status: Option<Status>,
    count: usize,
    cursor: u64,
    needed: u32,
}

impl Outcome {
    fn new(status: Status, count: usize) -> Self {
        Self {
            status: Some(status),
            count,
            cursor: 0,
            needed: 0,
        }
    }

    fn at(self, cursor: u64) -> Self {
        Self { cursor, ..self }
    }

    /// There is more to do after `count` elements.
    fn more(count: usize) -> Self {
        Self {
            status: None,
            count,
            cursor: 0,
            needed: 0,
        }
    }

    fn step(&self, request: RequestId) -> Step {
        let count = self.count as u32;
        let Some(status) = self.status else {
            return Step::At(Position {
                done: count,
                cursor: self.cursor,
            });
        };
        let result = BatchResult {
            cursor: U64::new(self.cursor),
            needed: U32::new(self.needed),
            reserved: U32::ZERO,
        };
        let mut completion = Completion::new(request, status).with_payload(result.as_bytes());
        completion.count = U32::new(count);
        Step::Done(completion)
    }
}

/// The completion of a batch that was refused at a step.
pub(super) fn refused(command: &Submission, status: Status, from: Position) -> Completion {
    let mut completion = Completion::new(command.request(), status);
    if from.done != 0 {
        let result = BatchResult {
            cursor: U64::new(from.cursor),
            needed: U32::ZERO,
            reserved: U32::ZERO,
        };
        completion = completion.with_payload(result.as_bytes());
    }
    completion.count = U32::new(from.done);
    completion
}

/// The arrays of a batch.
struct Arrays {
    count: usize,
    keys: u64,
    values: u64,
    statuses: u64,
    key_size: usize,
    stride: usize,
    /// Elements done in earlier steps.
    start: usize,
}

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// A step of any batch command, from `from` on.
    pub(super) fn batch(&mut self, command: &Submission, from: Position) -> Result<Step, Status> {
        let body: BatchBody = command.body();
        let opcode = IoOpcode(command.opcode);
        // Before the map: an opcode that is none has no operands to judge.
        if opcode.name().is_none() {
            return Err(Status::InvalidOpcode);
        }
        let map = self.maps.get(command.map())?;
        check_reserved(command, &body, opcode)?;
        if map.spec.kind.is_ring() {
            return Err(Status::Unsupported);
        }
        let flags = update_flags(body.map_flags.get())?;
        if map.spec.kind.is_queue() {
            return Err(Status::Unsupported);
        }
        if body.key_len.get() != map.spec.key_size {
            return Err(Status::InvalidLength);
        }
        let has_values = opcode != IoOpcode::BatchDelete;
        if has_values && body.value_len.get() as usize != map.value_bytes() {
            return Err(Status::InvalidLength);
        }
        if body.count.get() > self.config.batch {
            return Err(Status::InvalidField);
        }
        let deletes = opcode == IoOpcode::BatchDumpDelete;
        let kind = map.spec.kind;
        let supported = match opcode {
            // Entries of maps of maps change one by one.
            IoOpcode::BatchUpdate => !kind.is_map_of_maps(),
            IoOpcode::BatchDelete => !kind.is_array() && !kind.is_map_of_maps(),
            IoOpcode::BatchDumpDelete => kind.takes(),
            _ => true,
        };
        if !supported || !kind.has_values() {
            return Err(Status::Unsupported);
        }
        let arrays = Arrays {
            count: body.count.get() as usize,
            keys: body.keys.get(),
            values: body.values.get(),
            statuses: body.statuses.get(),
            key_size: map.key_size(),
            stride: map.value_bytes(),
            start: from.done as usize,
        };
        let outcome = if arrays.count == 0 {
            Outcome::new(Status::Success, 0).at(from.cursor)
        } else {
            match opcode {
                IoOpcode::BatchLookup => self.batch_lookup(map, &arrays),
                IoOpcode::BatchUpdate => self.batch_change(map, &arrays, Some(flags)),
                IoOpcode::BatchDelete => self.batch_change(map, &arrays, None),
                _ => match &map.table {
                    Table::Hash(table) => self.dump_hash(table, &arrays, from.cursor, deletes),
                    Table::Array(table) => self.dump_array(table, &arrays, from.cursor, false),
                    Table::ArrayOfMaps(table) => self.dump_array(table, &arrays, from.cursor, true),
                    Table::Lpm(table) => self.dump_trie(table, &arrays, from.cursor),
                    Table::Queue(_) | Table::Bloom(_) => Outcome::new(Status::Unsupported, 0),
                    Table::Ring(_) => return Err(Status::Unsupported),
                },
            }
        };
        Ok(outcome.step(command.request()))
    }

    /// Reads the keys of `lanes` elements from `first` on to the scratch.
    fn read_keys(&mut self, arrays: &Arrays, first: usize, lanes: usize) -> Result<(), Status> {
        let keys = self
            .scratch
            .keys
            .get_mut(..lanes * arrays.key_size)
            .ok_or(Status::Internal)?;
        let iova = element_at(arrays.keys, first, arrays.key_size)?;
        Ok(self.host.read(iova, keys)?)
    }

    /// Reads their values likewise.
    fn read_values(&mut self, arrays: &Arrays, first: usize, lanes: usize) -> Result<(), Status> {
        let values = self
            .scratch
            .values
            .get_mut(..lanes * arrays.stride)
            .ok_or(Status::Internal)?;
        let iova = element_at(arrays.values, first, arrays.stride)?;
        Ok(self.host.read(iova, values)?)
    }

    /// Writes the first `lanes` statuses of the scratch for the elements from `first` on.
    fn write_statuses(
        &mut self,
        arrays: &Arrays,
        first: usize,
        lanes: usize,
    ) -> Result<(), Status> {
        let iova = element_at(arrays.statuses, first, 2)?;
        Ok(self.host.write(iova, &self.scratch.statuses[..2 * lanes])?)
    }

    /// How many elements fit the scratch at a time: at least one.
    fn lanes(&self, arrays: &Arrays, with_values: bool) -> usize {
        let mut lanes = LANES.min(self.scratch.keys.len() / arrays.key_size.max(1));
        if with_values {
            lanes = lanes.min(self.scratch.values.len() / arrays.stride.max(1));
        }
        lanes.max(1)
    }

    fn batch_lookup(&mut self, map: &Map, arrays: &Arrays) -> Outcome {
        let mut budget = Budget::step(self.config);
        let mut lanes_max = self.lanes(arrays, false);
        let mut done = arrays.start;
        while done < arrays.count {
            if budget.is_spent() {
                return Outcome::more(done);
            }
            let bytes = arrays.key_size + arrays.stride;
            let lanes = lanes_max
                .min(arrays.count - done)
                .min(budget.elements(bytes));
            if let Err(status) = self.read_keys(arrays, done, lanes) {
                if lanes == 1 {
                    return Outcome::new(status, done);
                }
                // Find out which element it is, so that those before it are done.
                lanes_max = 1;
                continue;
            }
            budget.spend(lanes * bytes, lanes);
            let keys = &self.scratch.keys[..lanes * arrays.key_size];
            let statuses = &mut self.scratch.statuses;
            let host = &mut *self.host;
            let mut finished = 0;
            let mut failure = None;
            let visit = |access: &mut A, lane, found: Result<_, Status>| {
                let status = match found {
                    Ok(at) => element_at(arrays.values, done + lane, arrays.stride)
                        .and_then(|iova| access.send(at, arrays.stride, host, iova))
                        .err(),
                    Err(status) if is_broken(status) => Some(status),
                    Err(status) => {
                        set_status(statuses, lane, status);
                        finished += 1;
                        return ControlFlow::Continue(());
                    }
                };
                if status.is_some() {
                    failure = status;
                    return ControlFlow::Break(());
                }
                set_status(statuses, lane, Status::Success);
                finished += 1;
                ControlFlow::Continue(())
            };
            map.table
                .visit_many(self.access, keys, arrays.key_size, visit);
            if finished != 0
                && let Err(status) = self.write_statuses(arrays, done, finished)
            {
                if lanes == 1 {
                    return Outcome::new(status, done);
                }
                lanes_max = 1;
                continue;
            }
            done += finished;
            if let Some(status) = failure {
                return Outcome::new(status, done);
            }
        }
        Outcome::new(Status::Success, done)
    }

    /// Batch update with its flags, or batch delete.
    fn batch_change(&mut self, map: &Map, arrays: &Arrays, flags: Option<u32>) -> Outcome {
        let mut budget = Budget::step(self.config);
        let mut lanes_max = self.lanes(arrays, flags.is_some());
        let mut done = arrays.start;
        while done < arrays.count {
            if budget.is_spent() {
                return Outcome::more(done);
            }
            let bytes = arrays.key_size + flags.map_or(0, |_| arrays.stride);
            let lanes = lanes_max
                .min(arrays.count - done)
                .min(budget.elements(bytes));
            let read = self
                .read_keys(arrays, done, lanes)
                .and_then(|()| match flags {
                    Some(_) => self.read_values(arrays, done, lanes),
                    None => Ok(()),
                });
            if let Err(status) = read {
                if lanes == 1 {
                    return Outcome::new(status, done);
                }
                lanes_max = 1;
                continue;
            }
            budget.spend(lanes * bytes, lanes);
            let mut applied = 0;
            let mut failure = None;
            for lane in 0..lanes {
                let key = &self.scratch.keys[lane * arrays.key_size..][..arrays.key_size];
                let result = match flags {
                    Some(flags) => {
                        let value = &self.scratch.values[lane * arrays.stride..][..arrays.stride];
                        let value = ValueWrite::All(value);
                        self.access
                            .whole(|access| map.table.update(access, key, value, flags))
                    }
                    None => self.access.whole(|access| map.table.delete(access, key)),
                };
                match result {
                    Ok(()) => {
                        set_status(&mut self.scratch.statuses, lane, Status::Success);
                        applied += 1;
                    }
                    Err(status) => {
                        set_status(&mut self.scratch.statuses, lane, status);
                        failure = Some(status);
                        break;
                    }
                }
            }
            let reported = applied + usize::from(failure.is_some());
            let wrote = self.write_statuses(arrays, done, reported);
            done += applied;
            // The element's own failure says more than that its status could not be written.
            if let Some(status) = failure.or(wrote.err()) {
                return Outcome::new(status, done);
            }
        }
        Outcome::new(Status::Success, done)
    }

    /// Chains are gathered in the scratch and written together. Where that fails they are dumped
    /// again one by one, so that the completion says which one it was; so are chains that a dump
    /// deletes, which go once they have reached the host.
    fn dump_hash(
        &mut self,
        table: &HashTable,
        arrays: &Arrays,
        cursor: u64,
        deletes: bool,
    ) -> Outcome {
        let mut budget = Budget::step(self.config);
        let mut done = arrays.start;
        let mut at = cursor;
        let mut warm = 0;
        let mut gathered = Gathered {
            lanes: if deletes { 0 } else { self.dump_lanes(arrays) },
            count: 0,
            from: at,
        };
        loop {
            let next = match budget.is_spent() {
                true => Ok(None),
                false => table.next_home(self.access, at),
            };
            let Ok(Some(home)) = next else {
                if !self.flush(arrays, &mut done, &mut gathered) {
                    // Those chains are dumped once more, of which one at least gets done.
                    budget = Budget::step(self.config);
                    at = gathered.from;
                    continue;
                }
                return match next {
                    Ok(_) if budget.is_spent() => Outcome::more(done).at(at),
                    Ok(_) => Outcome::new(Status::NotFound, done).at(table.home_count()),
                    Err(status) => Outcome::new(status, done).at(at),
                };
            };
            if home >= warm {
                warm_homes(table, self.access, home);
                warm = home + HOMES;
            }
            let room = arrays.count - done - gathered.count;
            let space = room.min(gathered.lanes.saturating_sub(gathered.count));
            if space > 0 {
                let scratch = &mut *self.scratch;
                let (keys, values) = (&mut scratch.keys, &mut scratch.values);
                let first = gathered.count;
                let copy = |access: &mut A, index: usize, key, value| {
                    let lane = first + index;
                    copy_lane(access, key, keys, lane, arrays.key_size)?;
                    copy_lane(access, value, values, lane, arrays.stride)
                };
                let references = &mut scratch.references;
                let visited = table.visit_chain(self.access, home, references, space, false, copy);
                if let Ok(needed) = visited
                    && needed <= space
                {
                    if gathered.count == 0 {
                        gathered.from = home;
                    }
                    gathered.count += needed;
                    spend(&mut budget, arrays, needed);
                    at = home + 1;
                    continue;
                }
            }
            // The chain does not fit beside what is gathered, or there is something wrong with it.
            if gathered.count > 0 {
                if !self.flush(arrays, &mut done, &mut gathered) {
                    at = gathered.from;
                }
                continue;
            }
            let host = &mut *self.host;
            let send = |access: &mut A, index, key, value| {
                let iova = element_at(arrays.keys, done + index, arrays.key_size)?;
                access.send(key, arrays.key_size, host, iova)?;
                let iova = element_at(arrays.values, done + index, arrays.stride)?;
                access.send(value, arrays.stride, host, iova)
            };
            let references = &mut self.scratch.references;
            match table.visit_chain(self.access, home, references, room, deletes, send) {
                Ok(needed) if needed > room && done != 0 => {
                    return Outcome::new(Status::Success, done).at(home);
                }
                Ok(needed) if needed > room => {
                    return Outcome {
                        needed: needed as u32,
                        ..Outcome::new(Status::NoSpace, 0).at(home)
                    };
                }
                Ok(needed) => {
                    spend(&mut budget, arrays, needed);
                    done += needed;
                    at = home + 1;
                }
                Err(status) => return Outcome::new(status, done).at(home),
            }
        }
    }

    /// How many elements of a dump the scratch holds.
    fn dump_lanes(&self, arrays: &Arrays) -> usize {
        let keys = self.scratch.keys.len() / arrays.key_size.max(1);
        keys.min(self.scratch.values.len() / arrays.stride.max(1))
    }

    /// Writes what is gathered to the host, after the `done` elements that it has. `false`: some of
    /// it cannot be written, and nothing is gathered from now on.
    fn flush(&mut self, arrays: &Arrays, done: &mut usize, gathered: &mut Gathered) -> bool {
        let count = core::mem::take(&mut gathered.count);
        if count == 0 {
            return true;
        }
        let scratch = &self.scratch;
        let written = element_at(arrays.keys, *done, arrays.key_size)
            .and_then(|iova| {
                let keys = &scratch.keys[..count * arrays.key_size];
                Ok(self.host.write(iova, keys)?)
            })
            .and_then(|()| element_at(arrays.values, *done, arrays.stride))
            .and_then(|iova| {
                let values = &scratch.values[..count * arrays.stride];
                Ok(self.host.write(iova, values)?)
            });
        match written {
            Ok(()) => *done += count,
            Err(_) => gathered.lanes = 0,
        }
        written.is_ok()
    }

    /// As the kernel's `generic_map_lookup_batch`: the end is reported by the dump that finds
    /// nothing left to fill its arrays with, not by one that fills them exactly.
    /// With `skips`, entries that hold nothing are passed over.
    fn dump_array(
        &mut self,
        table: &ArrayTable,
        arrays: &Arrays,
        cursor: u64,
        skips: bool,
    ) -> Outcome {
        let mut budget = Budget::step(self.config);
        let mut done = arrays.start;
        let mut at = cursor;
        while done < arrays.count {
            let Some(index) = u32::try_from(at).ok().filter(|&i| i < table.max_entries()) else {
                return Outcome::new(Status::NotFound, done).at(table.max_entries().into());
            };
            if budget.is_spent() {
                return Outcome::more(done).at(at);
            }
            if skips {
                match table.is_empty(self.access, index) {
                    Ok(false) => {}
                    Ok(true) => {
                        budget.spend(arrays.stride, 1);
                        at += 1;
                        continue;
                    }
                    Err(status) => return Outcome::new(status, done).at(at),
                }
            }
            if let Err(status) = self.dump_value(table, arrays, done, index) {
                return Outcome::new(status, done).at(at);
            }
            budget.spend(arrays.key_size + arrays.stride, 1);
            done += 1;
            at += 1;
        }
        Outcome::new(Status::Success, done).at(at)
    }

    /// As the kernel's `generic_map_lookup_batch`: from the key after the one that the first place
    /// of the keys holds, or from the first one at cursor 0. A later step goes on after the key
    /// that the one before wrote last. A key and its value are returned as they are at one moment.
    fn dump_trie(&mut self, table: &LpmTable, arrays: &Arrays, cursor: u64) -> Outcome {
        let mut budget = Budget::step(self.config);
        let mut done = arrays.start;
        // What a dump that ended early is asked to go on from, too.
        let at = |done: usize| cursor.saturating_add(done as u64).min(u32::MAX.into());
        let mut after = done > 0 || cursor != 0;
        if after && let Err(status) = self.read_keys(arrays, done.saturating_sub(1), 1) {
            return Outcome::new(status, done).at(at(done));
        }
        while done < arrays.count {
            if budget.is_spent() {
                return Outcome::more(done).at(cursor);
            }
            match self.dump_next(table, arrays, done, after) {
                Ok(visited) => budget.spend(arrays.key_size + arrays.stride, visited),
                Err(status) => return Outcome::new(status, done).at(at(done)),
            }
            after = true;
            done += 1;
        }
        Outcome::new(Status::Success, done).at(at(done))
    }

    /// Returns the key after the one in the scratch, which it becomes, and its value.
    fn dump_next(
        &mut self,
        table: &LpmTable,
        arrays: &Arrays,
        element: usize,
        after: bool,
    ) -> Result<usize, Status> {
        let key = self.scratch.keys.get_mut(..arrays.key_size);
        let key = key.ok_or(Status::Internal)?;
        let host = &mut *self.host;
        table.with_listed(self.access, key, after, |access, key, next| {
            access.with_bytes(next.key, key.len(), |bytes| key.copy_from_slice(bytes))?;
            let iova = element_at(arrays.values, element, arrays.stride)?;
            access.send(next.value, arrays.stride, host, iova)?;
            let iova = element_at(arrays.keys, element, arrays.key_size)?;
            host.write(iova, key)?;
            Ok(next.visited)
        })
    }

    fn dump_value(
        &mut self,
        table: &ArrayTable,
        arrays: &Arrays,
        element: usize,
        index: u32,
    ) -> Result<(), Status> {
        let iova = element_at(arrays.keys, element, arrays.key_size)?;
        self.host.write(iova, &index.to_le_bytes())?;
        let iova = element_at(arrays.values, element, arrays.stride)?;
        table.with_index(self.access, index, |access, at| {
            access.send(at, arrays.stride, self.host, iova)
        })
    }
}

/// Elements of a dump in the scratch, on their way to the host.
struct Gathered {
    /// How many there may be.
    lanes: usize,
    count: usize,
    /// The home bucket of the first one.
    from: u64,
}

/// What a chain of `entries` costs a dump.
fn spend(budget: &mut Budget, arrays: &Arrays, entries: usize) {
    let bytes = entries * (arrays.key_size + arrays.stride);
    budget.spend(bytes, entries.div_ceil(BUCKET_SLOTS as usize));
}

/// Copies `size` bytes of device memory at `at` to place `lane` of `scratch`.
#[inline(always)]
fn copy_lane(
    access: &mut impl Access,
    at: DevAddr,
    scratch: &mut [u8],
    lane: usize,
    size: usize,
) -> Result<(), Status> {
    let into = scratch
        .get_mut(lane * size..)
        .and_then(|rest| rest.get_mut(..size))
        .ok_or(Status::Internal)?;
    Ok(access.with_bytes(at, size, |bytes| copy_out(into, bytes))?)
}

/// A status that says that the device has failed, not that the element has it.
fn is_broken(status: Status) -> bool {
    matches!(status, Status::Internal | Status::MediaError)
}

fn set_status(statuses: &mut [u8; 2 * LANES], lane: usize, status: Status) {
    statuses[2 * lane..][..2].copy_from_slice(&status.0.to_le_bytes());
}

/// Fields that the command does not use, and all flags: zero.
fn check_reserved(command: &Submission, body: &BatchBody, opcode: IoOpcode) -> Result<(), Status> {
    // Operands of a batch are never inline.
    let mut rest = u64::from(reserved_bits(command) | u32::from(command.flags));
    if opcode != IoOpcode::BatchUpdate {
        rest |= u64::from(body.map_flags.get());
    }
    if opcode == IoOpcode::BatchDelete {
        rest |= u64::from(body.value_len.get()) | body.values.get();
    }
    rest |= match opcode {
        IoOpcode::BatchDump | IoOpcode::BatchDumpDelete => body.statuses.get(),
        _ => body.cursor.get(),
    };
    match rest {
        0 => Ok(()),
        _ => Err(Status::InvalidField),
    }
}
