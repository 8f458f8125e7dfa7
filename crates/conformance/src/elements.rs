//! Element and batch commands, spelled out for the cases.

use super::coverage;
use super::host::{Host, Queue, next_request};
use offmap_abi::completion::{BatchResult, INLINE_RESULT_BYTES};
use offmap_abi::submission::{
    BatchBody, ElementBody, INLINE_KEY_BYTES, INLINE_VALUE_BYTES, IovaRef,
};
use offmap_abi::{Completion, IoOpcode, MapHandle, Status, Submission, SubmissionFlags};
use offmap_device_io::{DmaRegion, Function};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};

/// Where an operand travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carry {
    /// In the descriptor or completion where it fits, else by IOVA.
    Inline,
    /// By IOVA always.
    Iova,
}

/// A map, the queue to reach it, and memory for operands.
pub struct Table<'q, F: Function> {
    /// The queue.
    pub queue: &'q mut Queue<F>,
    /// The map.
    pub map: MapHandle,
    /// How operands travel.
    pub carry: Carry,
    /// Key size in bytes.
    pub key_bytes: usize,
    /// Stride of the values in bytes.
    pub value_bytes: usize,
    memory: DmaRegion<F>,
    room: usize,
}

impl<'q, F: Function> Table<'q, F> {
    /// Room for `count` elements.
    pub fn new(
        host: &Host<F>,
        queue: &'q mut Queue<F>,
        map: MapHandle,
        (key_bytes, value_bytes): (usize, usize),
        count: usize,
    ) -> Self {
        let each = (key_bytes + value_bytes + 2).next_multiple_of(8);
        Self {
            queue,
            map,
            carry: Carry::Inline,
            key_bytes,
            value_bytes,
            memory: host.dma((count.max(1) + 1) * each + 64),
            room: count.max(1),
        }
    }

    fn keys_at(&self) -> usize {
        0
    }

    fn values_at(&self) -> usize {
        (self.room * self.key_bytes).next_multiple_of(8)
    }

    fn statuses_at(&self) -> usize {
        self.values_at() + (self.room * self.value_bytes).next_multiple_of(8)
    }

    /// An element command; what it returns goes to the value's memory or the completion.
    pub fn element(
        &self,
        opcode: IoOpcode,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        room: usize,
        map_flags: u32,
    ) -> Submission {
        let mut body = ElementBody::new_zeroed();
        let mut flags = SubmissionFlags::empty();
        body.map_flags = U32::new(map_flags);
        let inline = self.carry == Carry::Inline;
        if let Some(key) = key {
            body.key_len = U32::new(key.len() as u32);
            if inline && key.len() <= INLINE_KEY_BYTES {
                flags |= SubmissionFlags::KEY_INLINE;
                body.key[..key.len()].copy_from_slice(key);
            } else {
                self.memory.buffer().write(self.keys_at(), key);
                body.key = IovaRef::field(self.memory.iova(self.keys_at()).0);
            }
        }
        let value_iova = IovaRef::field(self.memory.iova(self.values_at()).0);
        if let Some(value) = value {
            body.value_len = U32::new(value.len() as u32);
            if inline && value.len() <= INLINE_VALUE_BYTES {
                flags |= SubmissionFlags::VALUE_INLINE;
                body.value[..value.len()].copy_from_slice(value);
            } else {
                self.memory.buffer().write(self.values_at(), value);
                body.value = value_iova;
            }
        } else if room > 0 {
            body.value_len = U32::new(room as u32);
            if inline && room <= INLINE_RESULT_BYTES {
                flags |= SubmissionFlags::VALUE_INLINE;
            } else {
                body.value = value_iova;
            }
        }
        Submission::new(opcode.0, next_request(), &body)
            .with_map(self.map)
            .with_flags(flags)
    }

    fn returned(&self, done: &Completion, len: usize) -> Result<Vec<u8>, Status> {
        if !done.status().is_success() {
            return Err(done.status());
        }
        let mut out = vec![0; len];
        if self.carry == Carry::Inline && len <= INLINE_RESULT_BYTES {
            assert_eq!(done.count.get() as usize, len, "bytes in the completion");
            out.copy_from_slice(&done.payload[..len]);
        } else {
            self.memory.buffer().read(self.values_at(), &mut out);
        }
        Ok(out)
    }

    /// LOOKUP.
    #[track_caller]
    pub fn lookup(&mut self, key: &[u8]) -> Result<Vec<u8>, Status> {
        let entry = self.element(IoOpcode::Lookup, Some(key), None, self.value_bytes, 0);
        let done = self.queue.run(entry);
        self.returned(&done, self.value_bytes)
    }

    /// UPDATE.
    #[track_caller]
    pub fn update(&mut self, key: &[u8], value: &[u8], map_flags: u32) -> Status {
        let entry = self.element(IoOpcode::Update, Some(key), Some(value), 0, map_flags);
        self.queue.run(entry).status()
    }

    /// DELETE.
    #[track_caller]
    pub fn delete(&mut self, key: &[u8]) -> Status {
        let entry = self.element(IoOpcode::Delete, Some(key), None, 0, 0);
        self.queue.run(entry).status()
    }

    /// LOOKUP_AND_DELETE.
    #[track_caller]
    pub fn take(&mut self, key: &[u8]) -> Result<Vec<u8>, Status> {
        let room = self.value_bytes;
        let entry = self.element(IoOpcode::LookupAndDelete, Some(key), None, room, 0);
        let done = self.queue.run(entry);
        self.returned(&done, self.value_bytes)
    }

    /// GET_FIRST, or GET_NEXT of a key.
    #[track_caller]
    pub fn next(&mut self, key: Option<&[u8]>) -> Result<Vec<u8>, Status> {
        let opcode = match key {
            Some(_) => IoOpcode::GetNext,
            None => IoOpcode::GetFirst,
        };
        let entry = self.element(opcode, key, None, self.key_bytes, 0);
        let done = self.queue.run(entry);
        self.returned(&done, self.key_bytes)
    }

    /// All keys by GET_FIRST and GET_NEXT.
    #[track_caller]
    pub fn keys(&mut self, at_most: usize) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            match self.next(keys.last().cloned().as_deref()) {
                Ok(key) => keys.push(key),
                Err(Status::NotFound) => return keys,
                Err(status) => panic!("{status:?}"),
            }
            assert!(keys.len() <= at_most, "the walk does not end");
        }
    }

    /// A batch command over `count` elements with the arrays as they are. A device without batches
    /// ends the case, as skipped.
    pub fn batch(&self, opcode: IoOpcode, count: u32, map_flags: u32, cursor: u64) -> Submission {
        self.queue.need_batches();
        let mut body = BatchBody::new_zeroed();
        body.map_flags = U32::new(map_flags);
        body.count = U32::new(count);
        body.key_len = U32::new(self.key_bytes as u32);
        body.keys = U64::new(self.memory.iova(self.keys_at()).0);
        if opcode != IoOpcode::BatchDelete {
            body.value_len = U32::new(self.value_bytes as u32);
            body.values = U64::new(self.memory.iova(self.values_at()).0);
        }
        if !matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete) {
            body.statuses = U64::new(self.memory.iova(self.statuses_at()).0);
        }
        body.cursor = U64::new(cursor);
        Submission::new(opcode.0, next_request(), &body).with_map(self.map)
    }

    /// Runs a batch: the completion's status and count, and each element's status.
    #[track_caller]
    pub fn run_batch(
        &mut self,
        opcode: IoOpcode,
        keys: &[Vec<u8>],
        values: &[Vec<u8>],
    ) -> (Status, u32, Vec<Status>) {
        assert!(keys.len() <= self.room);
        for (i, key) in keys.iter().enumerate() {
            self.memory
                .buffer()
                .write(self.keys_at() + i * self.key_bytes, key);
        }
        for (i, value) in values.iter().enumerate() {
            self.memory
                .buffer()
                .write(self.values_at() + i * self.value_bytes, value);
        }
        let marker = vec![0xee; keys.len() * 2];
        self.memory.buffer().write(self.statuses_at(), &marker);
        let done = self.queue.run(self.batch(opcode, keys.len() as u32, 0, 0));
        let mut raw = marker;
        self.memory.buffer().read(self.statuses_at(), &mut raw);
        let statuses = raw
            .chunks_exact(2)
            .map(|b| Status(u16::from_le_bytes([b[0], b[1]])))
            .collect::<Vec<_>>();
        coverage::got_each(&statuses);
        (done.status(), done.count.get(), statuses)
    }

    /// Values that a batch left in memory.
    pub fn values(&self, count: usize) -> Vec<Vec<u8>> {
        self.read_array(self.values_at(), self.value_bytes, count)
    }

    fn read_array(&self, at: usize, each: usize, count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|i| {
                let mut out = vec![0; each];
                self.memory.buffer().read(at + i * each, &mut out);
                out
            })
            .collect()
    }

    /// Puts a key where a batch has its first.
    pub fn put_key(&self, key: &[u8]) {
        self.memory.buffer().write(self.keys_at(), key);
    }

    /// One dump: its status, the elements, the cursor and how many the next bucket needs.
    #[track_caller]
    pub fn dump(&mut self, opcode: IoOpcode, count: u32, cursor: u64) -> Dump {
        let done = self.queue.run(self.batch(opcode, count, 0, cursor));
        let n = done.count.get();
        assert!(n <= count, "{n} elements where {count} were asked for");
        let result: BatchResult = done.payload_as();
        let keys = self.read_array(self.keys_at(), self.key_bytes, n as usize);
        let values = self.values(n as usize);
        Dump {
            status: done.status(),
            elements: keys.into_iter().zip(values).collect(),
            cursor: result.cursor.get(),
            needed: result.needed.get(),
        }
    }
}

/// What a dump returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump {
    /// The completion's status.
    pub status: Status,
    /// Keys and values.
    pub elements: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the next goes on.
    pub cursor: u64,
    /// For `NoSpace`: elements of the next bucket.
    pub needed: u32,
}
