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

use super::{Io, element_at, no_flags, update_flags};
use crate::HostMemory;
use crate::access::Access;
use crate::maps::Map;
use crate::table::array::ArrayTable;
use crate::table::hash::HashTable;
use crate::table::{LANES, Table, ValueWrite};
use offmap_abi::completion::BatchResult;
use offmap_abi::submission::BatchBody;
use offmap_abi::{Completion, IoOpcode, RequestId, Status, Submission};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// How a batch ended.
struct Outcome {
    status: Status,
    count: usize,
    cursor: u64,
    needed: u32,
}

impl Outcome {
    fn new(status: Status, count: usize) -> Self {
        Self {
            status,
            count,
            cursor: 0,
            needed: 0,
        }
    }

    fn at(self, cursor: u64) -> Self {
        Self { cursor, ..self }
    }

    fn completion(&self, request: RequestId) -> Completion {
        let result = BatchResult {
            cursor: U64::new(self.cursor),
            needed: U32::new(self.needed),
            reserved: U32::ZERO,
        };
        let mut completion = Completion::new(request, self.status).with_payload(result.as_bytes());
        completion.count = U32::new(self.count as u32);
        completion
    }
}

/// The arrays of a batch.
struct Arrays {
    count: usize,
    keys: u64,
    values: u64,
    statuses: u64,
    key_size: usize,
    stride: usize,
}

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// Any batch command.
    pub(super) fn batch(
        &mut self,
        command: &Submission,
        opcode: IoOpcode,
    ) -> Result<Completion, Status> {
        let body: BatchBody = command.body();
        // Before the map: an opcode that is none has no operands to judge.
        if opcode.name().is_none() {
            return Err(Status::InvalidOpcode);
        }
        let map = self.maps.get(command.map())?;
        let flags = match opcode {
            IoOpcode::BatchUpdate => update_flags(body.map_flags.get())?,
            IoOpcode::BatchLookup
            | IoOpcode::BatchDelete
            | IoOpcode::BatchDump
            | IoOpcode::BatchDumpDelete => {
                no_flags(body.map_flags.get())?;
                0
            }
            _ => return Err(Status::InvalidOpcode),
        };
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
        let deletes = matches!(opcode, IoOpcode::BatchDelete | IoOpcode::BatchDumpDelete);
        if deletes && map.spec.kind.is_array() {
            return Err(Status::Unsupported);
        }
        let cursor = body.cursor.get();
        let arrays = Arrays {
            count: body.count.get() as usize,
            keys: body.keys.get(),
            values: body.values.get(),
            statuses: body.statuses.get(),
            key_size: map.key_size(),
            stride: map.value_bytes(),
        };
        let outcome = if arrays.count == 0 {
            Outcome::new(Status::Success, 0).at(cursor)
        } else {
            match opcode {
                IoOpcode::BatchLookup => self.batch_lookup(map, &arrays),
                IoOpcode::BatchUpdate => self.batch_change(map, &arrays, Some(flags)),
                IoOpcode::BatchDelete => self.batch_change(map, &arrays, None),
                _ => match &map.table {
                    Table::Hash(table) => self.dump_hash(table, &arrays, cursor, deletes),
                    Table::Array(table) => self.dump_array(table, &arrays, cursor),
                },
            }
        };
        Ok(outcome.completion(command.request()))
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

    fn set_status(&mut self, lane: usize, status: Status) {
        self.scratch.statuses[2 * lane..][..2].copy_from_slice(&status.0.to_le_bytes());
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
        let mut lanes_max = self.lanes(arrays, false);
        let mut found = [Err(Status::NotFound); LANES];
        let mut done = 0;
        while done < arrays.count {
            let lanes = lanes_max.min(arrays.count - done);
            if let Err(status) = self.read_keys(arrays, done, lanes) {
                if lanes == 1 {
                    return Outcome::new(status, done);
                }
                // Find out which element it is, so that those before it are done.
                lanes_max = 1;
                continue;
            }
            let keys = &self.scratch.keys[..lanes * arrays.key_size];
            map.table
                .find_many(self.access, keys, arrays.key_size, &mut found);
            let mut finished = 0;
            let mut failure = None;
            for (lane, &lookup) in found.iter().enumerate().take(lanes) {
                let status = match lookup {
                    Ok(at) => {
                        let host = &mut *self.host;
                        let wrote = element_at(arrays.values, done + lane, arrays.stride)
                            .and_then(|iova| {
                                self.access
                                    .with_bytes(at, arrays.stride, |bytes| host.write(iova, bytes))
                                    .map_err(Status::from)
                            })
                            .and_then(|wrote| wrote.map_err(Status::from));
                        match wrote {
                            Ok(()) => Status::Success,
                            Err(status) => {
                                failure = Some(status);
                                break;
                            }
                        }
                    }
                    Err(Status::Internal) => {
                        failure = Some(Status::Internal);
                        break;
                    }
                    Err(status) => status,
                };
                self.set_status(lane, status);
                finished += 1;
            }
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
        let mut lanes_max = self.lanes(arrays, flags.is_some());
        let mut done = 0;
        while done < arrays.count {
            let lanes = lanes_max.min(arrays.count - done);
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
            let mut applied = 0;
            let mut failure = None;
            for lane in 0..lanes {
                let key = &self.scratch.keys[lane * arrays.key_size..][..arrays.key_size];
                let result = match flags {
                    Some(flags) => {
                        let value = &self.scratch.values[lane * arrays.stride..][..arrays.stride];
                        map.table
                            .update(self.access, key, ValueWrite::All(value), flags)
                    }
                    None => map.table.delete(self.access, key),
                };
                match result {
                    Ok(()) => {
                        self.set_status(lane, Status::Success);
                        applied += 1;
                    }
                    Err(status) => {
                        self.set_status(lane, status);
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

    fn dump_hash(
        &mut self,
        table: &HashTable,
        arrays: &Arrays,
        cursor: u64,
        deletes: bool,
    ) -> Outcome {
        let mut done = 0;
        let mut home = cursor;
        while home < table.home_count() {
            let room = arrays.count - done;
            let references = &mut self.scratch.references;
            let needed = match table.collect(self.access, home, references, room) {
                Ok(needed) => needed,
                Err(status) => return Outcome::new(status, done).at(home),
            };
            if needed > room {
                if done != 0 {
                    return Outcome::new(Status::Success, done).at(home);
                }
                return Outcome {
                    needed: needed as u32,
                    ..Outcome::new(Status::NoSpace, 0).at(home)
                };
            }
            let chain =
                self.dump_chain(table, arrays, done)
                    .and_then(|()| match deletes && needed != 0 {
                        true => table.clear_chain(self.access, home, &self.scratch.references),
                        false => Ok(()),
                    });
            if let Err(status) = chain {
                return Outcome::new(status, done).at(home);
            }
            done += needed;
            home += 1;
        }
        Outcome::new(Status::NotFound, done).at(table.home_count())
    }

    /// Writes the entries whose references stand in the scratch, from element `first` on.
    fn dump_chain(
        &mut self,
        table: &HashTable,
        arrays: &Arrays,
        first: usize,
    ) -> Result<(), Status> {
        for (index, &reference) in self.scratch.references.iter().enumerate() {
            let (key, value) = table.entry(reference)?;
            let host = &mut *self.host;
            let iova = element_at(arrays.keys, first + index, arrays.key_size)?;
            self.access
                .with_bytes(key, arrays.key_size, |bytes| host.write(iova, bytes))??;
            let iova = element_at(arrays.values, first + index, arrays.stride)?;
            self.access
                .with_bytes(value, arrays.stride, |bytes| host.write(iova, bytes))??;
        }
        Ok(())
    }

    /// As the kernel's `generic_map_lookup_batch`: the end is reported by the dump that finds
    /// nothing left to fill its arrays with, not by one that fills them exactly.
    fn dump_array(&mut self, table: &ArrayTable, arrays: &Arrays, cursor: u64) -> Outcome {
        let mut done = 0;
        while done < arrays.count {
            let at = cursor.saturating_add(done as u64);
            let Some(index) = u32::try_from(at).ok().filter(|&i| i < table.max_entries()) else {
                return Outcome::new(Status::NotFound, done).at(table.max_entries().into());
            };
            if let Err(status) = self.dump_value(table, arrays, done, index) {
                return Outcome::new(status, done).at(at);
            }
            done += 1;
        }
        Outcome::new(Status::Success, done).at(cursor + done as u64)
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
        let host = &mut *self.host;
        self.access
            .with_bytes(table.value_at(index), arrays.stride, |bytes| {
                host.write(iova, bytes)
            })??;
        Ok(())
    }
}
