//! The blocking calls on many elements (abi §7.2).

use super::slots::{NO_LARGE, Place};
use super::submit::check_length;
use super::{QueuePair, Token};
use crate::{CompletionFault, DeviceMap, DriverError};
use offmap_abi::completion::BatchResult;
use offmap_abi::submission::BatchBody;
use offmap_abi::{Completion, IoOpcode, Status, Submission};
use offmap_device_io::{DmaBuffer, Function};

/// What an update or delete batch did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchDone {
    /// Elements done, from the first on.
    pub count: usize,
    /// Success, or the status of the element that ended the batch.
    pub status: Status,
}

/// What a dump returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dumped {
    /// Elements returned.
    pub count: usize,
    /// Where the next dump goes on.
    pub cursor: u32,
    /// Success; [`Status::NotFound`] at the end of the map, with a valid count;
    /// [`Status::NoSpace`] when the first bucket does not fit.
    pub status: Status,
    /// For [`Status::NoSpace`]: elements that the bucket has.
    pub needed: u32,
}

/// Where the arrays of one batch command lie in its buffer.
#[derive(Clone, Copy)]
struct Arrays {
    keys: usize,
    values: usize,
    statuses: usize,
    bytes: usize,
}

impl Arrays {
    fn new(base: usize, count: usize, key: usize, value: usize, statuses: bool) -> Self {
        let values = (count * key).next_multiple_of(64);
        let end = values + (count * value).next_multiple_of(64);
        Self {
            keys: base,
            values: base + values,
            statuses: base + end,
            bytes: end + if statuses { count * 2 } else { 0 },
        }
    }
}

/// One command of a batch, before it has a place.
struct Command<'a> {
    opcode: IoOpcode,
    map: &'a DeviceMap,
    count: usize,
    /// Bytes of a value in the arrays; 0: the command has none.
    value_bytes: usize,
    statuses: bool,
    flags: u32,
    cursor: u32,
}

/// Statuses are handled this many at a time.
const STATUS_CHUNK: usize = 64;
/// A status that no device sends, so that an element it forgot does not look done.
const UNWRITTEN: u8 = 0xff;

impl<F: Function> QueuePair<F> {
    /// Looks up `keys.len() / key_size` keys. `each(i, status)` is called for every one of them in
    /// order; value `i` is written only where its status is success.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`]; [`DriverError::NoFeature`] on a device without batches.
    /// `Ok` with a status other than success: the device gave up, and `each` was not called
    /// for the rest.
    pub fn lookup_batch(
        &mut self,
        map: &DeviceMap,
        keys: &[u8],
        values: &mut [u8],
        mut each: impl FnMut(usize, Status),
    ) -> Result<Status, DriverError> {
        let (key, value) = (map.key_size(), map.value_stride());
        let total = self.batch_len(map, keys.len(), Some(values.len()))?;
        let chunk = self.chunk_len(key + value + 2)?;
        let mut first = 0;
        while first < total {
            let count = chunk.min(total - first);
            let command = Command {
                opcode: IoOpcode::BatchLookup,
                map,
                count,
                value_bytes: value,
                statuses: true,
                flags: 0,
                cursor: 0,
            };
            let keys = &keys[first * key..][..count * key];
            let values = &mut values[first * value..][..count * value];
            let status =
                self.run_batch(&command, keys, &[], |queue, completion, arrays, place| {
                    if !completion.status().is_success() {
                        return Ok(completion.status());
                    }
                    if completion.count.get() as usize != count {
                        return Err(CompletionFault::Count);
                    }
                    let buffer = queue.place_region(place).buffer();
                    read_results(buffer, arrays, count, value, values, |i, status| {
                        each(first + i, status);
                    });
                    Ok(Status::Success)
                })?;
            if !status.is_success() {
                return Ok(status);
            }
            first += count;
        }
        Ok(Status::Success)
    }

    /// Stores arrays of keys and values in order, and stops at the first failure.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup_batch`].
    pub fn update_batch(
        &mut self,
        map: &DeviceMap,
        keys: &[u8],
        values: &[u8],
        flags: u32,
    ) -> Result<BatchDone, DriverError> {
        let total = self.batch_len(map, keys.len(), Some(values.len()))?;
        self.change_batch(IoOpcode::BatchUpdate, map, total, (keys, values), flags)
    }

    /// Removes an array of keys in order, and stops at the first failure.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup_batch`].
    pub fn delete_batch(&mut self, map: &DeviceMap, keys: &[u8]) -> Result<BatchDone, DriverError> {
        let total = self.batch_len(map, keys.len(), None)?;
        self.change_batch(IoOpcode::BatchDelete, map, total, (keys, &[]), 0)
    }

    fn change_batch(
        &mut self,
        opcode: IoOpcode,
        map: &DeviceMap,
        total: usize,
        (keys, values): (&[u8], &[u8]),
        flags: u32,
    ) -> Result<BatchDone, DriverError> {
        let key = map.key_size();
        let value = if opcode == IoOpcode::BatchUpdate {
            map.value_stride()
        } else {
            0
        };
        let chunk = self.chunk_len(key + value + 2)?;
        let mut first = 0;
        while first < total {
            let count = chunk.min(total - first);
            let command = Command {
                opcode,
                map,
                count,
                value_bytes: value,
                statuses: true,
                flags,
                cursor: 0,
            };
            let keys = &keys[first * key..][..count * key];
            let values = &values[first * value..][..count * value];
            let part = self.run_batch(&command, keys, values, |_, completion, _, _| {
                let done = completion.count.get() as usize;
                let status = completion.status();
                // A failure is that of an element of this command; success is all of it. Where host
                // memory could not be reached all may be done, and their statuses not written.
                let fits = if status.is_success() {
                    done == count
                } else if status == Status::DmaFault {
                    done <= count
                } else {
                    done < count
                };
                if fits {
                    Ok(BatchDone {
                        count: done,
                        status,
                    })
                } else {
                    Err(CompletionFault::Count)
                }
            });
            let part = match part {
                // An aborted command had no effect; the ones before it had.
                Err(e) if first == 0 => return Err(e),
                Err(DriverError::TimedOut {
                    quarantined: false, ..
                }) => BatchDone {
                    count: 0,
                    status: Status::Aborted,
                },
                other => other?,
            };
            first += part.count;
            if !part.status.is_success() {
                return Ok(BatchDone {
                    count: first,
                    status: part.status,
                });
            }
        }
        Ok(BatchDone {
            count: first,
            status: Status::Success,
        })
    }

    /// Returns keys and values in iteration order from `cursor` on (0: the start), at most as
    /// many as `keys` and `values` have room for, and removes them when `delete` is set. It may
    /// return fewer than there is room for, even none; with success the cursor has grown.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup_batch`].
    pub fn dump(
        &mut self,
        map: &DeviceMap,
        cursor: u32,
        keys: &mut [u8],
        values: &mut [u8],
        delete: bool,
    ) -> Result<Dumped, DriverError> {
        let room = self.batch_len(map, keys.len(), Some(values.len()))?;
        let usual = self.chunk_len(map.key_size() + map.value_stride())?;
        let dumped = self.dump_up_to(map, (cursor, &[]), room.min(usual), keys, values, delete)?;
        let needed = dumped.needed as usize;
        // A bucket that the caller has room for and that is only more than a command usually
        // takes.
        let fits = needed > usual && needed <= room.min(self.driver.identity().batch as usize);
        if dumped.status == Status::NoSpace && fits {
            return self.dump_up_to(map, (dumped.cursor, &[]), needed, keys, values, delete);
        }
        Ok(dumped)
    }

    /// [`QueuePair::dump`] of an LPM trie: from the key after `after` on, in iteration order
    /// (`None`, or a key that is not there: from the first).
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup_batch`].
    pub fn dump_after(
        &mut self,
        map: &DeviceMap,
        after: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
    ) -> Result<Dumped, DriverError> {
        let room = self.batch_len(map, keys.len(), Some(values.len()))?;
        let usual = self.chunk_len(map.key_size() + map.value_stride())?;
        if let Some(after) = after {
            check_length("key", map.key_size(), after.len())?;
        }
        let from = match after {
            None => (0, &[][..]),
            // The command reads it where it writes its first key.
            Some(after) => (1, after),
        };
        self.dump_up_to(map, from, room.min(usual), keys, values, false)
    }

    fn dump_up_to(
        &mut self,
        map: &DeviceMap,
        from: (u32, &[u8]),
        count: usize,
        keys: &mut [u8],
        values: &mut [u8],
        delete: bool,
    ) -> Result<Dumped, DriverError> {
        let (cursor, after) = from;
        let (key, value) = (map.key_size(), map.value_stride());
        let command = Command {
            opcode: if delete {
                IoOpcode::BatchDumpDelete
            } else {
                IoOpcode::BatchDump
            },
            map,
            count,
            value_bytes: value,
            statuses: false,
            flags: 0,
            cursor,
        };
        self.run_batch(&command, after, &[], |queue, completion, arrays, place| {
            let result: BatchResult = completion.payload_as();
            let status = completion.status();
            let done = completion.count.get() as usize;
            // Of a dump that failed nothing is read; its count has no meaning then.
            let valid = matches!(status, Status::Success | Status::NotFound);
            if valid && done > count {
                return Err(CompletionFault::Count);
            }
            // With success the next dump goes on further down, so that a walk ends (§7.2).
            let next = match u32::try_from(result.cursor.get()) {
                Ok(next) if next > cursor => next,
                Ok(next) if next == cursor && !status.is_success() => next,
                // A cursor past the end comes back as the device likes.
                Ok(next) if status == Status::NotFound => next,
                // A dump that was refused, or given up in the middle, says nothing of where it was.
                _ if !valid && status != Status::NoSpace => cursor,
                _ => return Err(CompletionFault::Cursor),
            };
            let done = if valid { done } else { 0 };
            let buffer = queue.place_region(place).buffer();
            buffer.read(arrays.keys, &mut keys[..done * key]);
            buffer.read(arrays.values, &mut values[..done * value]);
            Ok(Dumped {
                count: done,
                cursor: next,
                status,
                needed: result.needed.get(),
            })
        })
    }

    /// Number of elements that arrays of these lengths hold.
    fn batch_len(
        &self,
        map: &DeviceMap,
        keys: usize,
        values: Option<usize>,
    ) -> Result<usize, DriverError> {
        self.check_map(map)?;
        let count = keys.checked_div(map.key_size()).unwrap_or(0);
        check_length("key array", count * map.key_size(), keys)?;
        if let Some(values) = values {
            check_length("value array", count * map.value_stride(), values)?;
        }
        Ok(count)
    }

    /// Most elements of `bytes` each that one command may have.
    fn chunk_len(&self, bytes: usize) -> Result<usize, DriverError> {
        let batch = self.driver.identity().batch as usize;
        if batch == 0 {
            return Err(DriverError::NoFeature {
                feature: "batch commands",
            });
        }
        Ok((self.driver.config().batch_bytes / bytes.max(1)).clamp(1, batch))
    }

    /// Runs one batch command. `finish` reads its results before the arrays are released.
    fn run_batch<T>(
        &mut self,
        command: &Command<'_>,
        keys: &[u8],
        values: &[u8],
        finish: impl FnOnce(&Self, &Completion, Arrays, Place) -> Result<T, CompletionFault>,
    ) -> Result<T, DriverError> {
        let (token, arrays, place) = self.write_batch(command, keys, values)?;
        self.commit()?;
        let slot = token.request.slot();
        self.await_slot(slot)?;
        let completion = Completion::from(self.taken);
        if let Err(e) = self.ended(completion.status()) {
            self.release(slot);
            return Err(e);
        }
        let result = finish(self, &completion, arrays, place);
        self.release(slot);
        result.map_err(|fault| self.reject(token.request, fault))
    }

    fn write_batch(
        &mut self,
        command: &Command<'_>,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(Token, Arrays, Place), DriverError> {
        self.usable()?;
        self.check_map(command.map)?;
        let Some((slot, area)) = self.slots.peek() else {
            self.meter.events.full.bump();
            return Err(DriverError::Full { queue: self.id });
        };
        let key = command.map.key_size();
        let layout = |base| {
            Arrays::new(
                base,
                command.count,
                key,
                command.value_bytes,
                command.statuses,
            )
        };
        let mut place = Place {
            large: NO_LARGE,
            at: area,
        };
        let mut arrays = layout(area);
        if arrays.bytes > self.slots.slot_bytes() {
            place = Place {
                large: self.larges.take(&self.driver, arrays.bytes)?,
                at: 0,
            };
            arrays = layout(0);
        }
        let region = self.place_region(place);
        let buffer = region.buffer();
        buffer.write(arrays.values, values);
        // What the command returns is zeroed, as in `write_element`.
        let returns_keys = matches!(
            command.opcode,
            IoOpcode::BatchDump | IoOpcode::BatchDumpDelete
        );
        if returns_keys {
            buffer.zero(arrays.keys, command.count * key);
        }
        buffer.write(arrays.keys, keys);
        if returns_keys || command.opcode == IoOpcode::BatchLookup {
            buffer.zero(arrays.values, command.count * command.value_bytes);
        }
        if command.statuses {
            for first in (0..command.count).step_by(STATUS_CHUNK) {
                let count = STATUS_CHUNK.min(command.count - first);
                let unwritten = [UNWRITTEN; STATUS_CHUNK * 2];
                buffer.write(arrays.statuses + first * 2, &unwritten[..count * 2]);
            }
        }
        let iova = |used: bool, at| if used { region.iova(at).0 } else { 0 };
        let body = BatchBody {
            map_flags: command.flags.into(),
            count: (command.count as u32).into(),
            key_len: (key as u32).into(),
            value_len: (command.value_bytes as u32).into(),
            keys: iova(true, arrays.keys).into(),
            values: iova(command.value_bytes > 0, arrays.values).into(),
            statuses: iova(command.statuses, arrays.statuses).into(),
            cursor: u64::from(command.cursor).into(),
        };
        let kind = self.begins(command.opcode, slot);
        let Some(request) = self.slots.claim(kind, false, 0, place) else {
            unreachable!("a free slot was seen above");
        };
        let entry = Submission::new(command.opcode.0, request, &body).with_map(command.map.handle);
        self.rings.push(self.region.buffer(), entry);
        Ok((self.token(request), arrays, place))
    }
}

/// Reads the statuses of a lookup batch, and the values of the elements that were found.
fn read_results(
    buffer: &DmaBuffer,
    arrays: Arrays,
    count: usize,
    value_bytes: usize,
    values: &mut [u8],
    mut each: impl FnMut(usize, Status),
) {
    let mut raw = [0u8; STATUS_CHUNK * 2];
    for first in (0..count).step_by(STATUS_CHUNK) {
        let n = STATUS_CHUNK.min(count - first);
        buffer.read(arrays.statuses + first * 2, &mut raw[..n * 2]);
        let statuses = || {
            raw[..n * 2]
                .chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        if statuses().all(|s| s == Status::Success.0) {
            let bytes = first * value_bytes..(first + n) * value_bytes;
            buffer.read(arrays.values + bytes.start, &mut values[bytes]);
        } else {
            for (i, status) in statuses().enumerate() {
                if status == Status::Success.0 {
                    let at = (first + i) * value_bytes;
                    buffer.read(arrays.values + at, &mut values[at..at + value_bytes]);
                }
            }
        }
        for (i, status) in statuses().enumerate() {
            each(first + i, Status(status));
        }
    }
}
