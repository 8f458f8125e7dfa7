//! Host memory, a command builder and a model map for the firmware's tests.
#![allow(dead_code, reason = "each test file uses its own part")]

use offmap_abi::admin::{EmptyBody, MapCreateBody, MapCreated, MapInfo};
use offmap_abi::completion::BatchResult;
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, RequestId, Status, Submission, SubmissionFlags,
};
use offmap_firmware_model::{Config, Firmware, HostFault, HostMemory, Progress};
use std::collections::BTreeMap;

pub(crate) const HASH: u32 = 1;
pub(crate) const ARRAY: u32 = 2;
pub(crate) const PERCPU_HASH: u32 = 5;
pub(crate) const PERCPU_ARRAY: u32 = 6;
pub(crate) const LPM: u32 = 11;
pub(crate) const BLOOM: u32 = 30;
/// The types whose maps hold what was put in until it is deleted.
pub(crate) const TYPES: [u32; 4] = [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY];
pub(crate) const LRU_HASH: u32 = 9;
pub(crate) const LRU_PERCPU_HASH: u32 = 10;
pub(crate) const QUEUE: u32 = 22;
pub(crate) const STACK: u32 = 23;

pub(crate) const BASE: u64 = 0x10_0000;

/// Flat host memory at [`BASE`], which can fail at a chosen access.
pub(crate) struct Host {
    pub(crate) bytes: Vec<u8>,
    pub(crate) accesses: u64,
    /// The access (counted from 0) that fails, and all after it.
    pub(crate) fail_at: Option<u64>,
}

impl Host {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            accesses: 0,
            fail_at: None,
        }
    }

    fn range(&mut self, iova: u64, len: usize) -> Result<std::ops::Range<usize>, HostFault> {
        let access = self.accesses;
        self.accesses += 1;
        if self.fail_at.is_some_and(|at| access >= at) {
            return Err(HostFault);
        }
        let start = iova.checked_sub(BASE).ok_or(HostFault)? as usize;
        let end = start.checked_add(len).ok_or(HostFault)?;
        if end > self.bytes.len() {
            return Err(HostFault);
        }
        Ok(start..end)
    }

    pub(crate) fn at(&self, iova: u64, len: usize) -> &[u8] {
        &self.bytes[(iova - BASE) as usize..][..len]
    }

    pub(crate) fn put(&mut self, iova: u64, from: &[u8]) {
        self.bytes[(iova - BASE) as usize..][..from.len()].copy_from_slice(from);
    }
}

impl HostMemory for Host {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let range = self.range(iova, into.len())?;
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        let range = self.range(iova, from.len())?;
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }
}

/// A map under test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) map_type: u32,
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
    pub(crate) max_entries: u32,
    pub(crate) cpu_slots: u32,
    pub(crate) seed: u64,
}

impl Shape {
    pub(crate) fn new(map_type: u32, key_size: usize, value_size: usize, max_entries: u32) -> Self {
        let percpu = matches!(map_type, PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH);
        Self {
            map_type,
            key_size,
            value_size,
            max_entries,
            cpu_slots: if percpu { 3 } else { 0 },
            seed: 7,
        }
    }

    pub(crate) fn is_array(&self) -> bool {
        matches!(self.map_type, ARRAY | PERCPU_ARRAY)
    }

    pub(crate) fn value_bytes(&self) -> usize {
        match self.cpu_slots {
            0 => self.value_size,
            slots => self.value_size.next_multiple_of(8) * slots as usize,
        }
    }

    pub(crate) fn body(&self) -> MapCreateBody {
        MapCreateBody {
            map_type: self.map_type.into(),
            key_size: (self.key_size as u32).into(),
            value_size: (self.value_size as u32).into(),
            max_entries: self.max_entries.into(),
            cpu_slots: self.cpu_slots.into(),
            flags: 0.into(),
            seed: self.seed.into(),
            attr: 0.into(),
            attr_len: 0.into(),
            reserved: 0.into(),
        }
    }
}

pub(crate) fn firmware(config: Config) -> Firmware<Vec<u8>> {
    let storage = vec![0; config.memory_bytes as usize];
    Firmware::new(config, storage).expect("the configuration is sound")
}

/// Runs an admin command to its end; returns its completion and the number of steps.
pub(crate) fn admin(
    firmware: &mut Firmware<Vec<u8>>,
    command: &Submission,
    host: &mut Host,
) -> (Completion, u32) {
    let mut progress = firmware.admin(command, host);
    let mut steps = 1;
    loop {
        match progress {
            Progress::Done(done) => {
                assert_eq!(done.request, command.request);
                return (done, steps);
            }
            Progress::More => {
                progress = firmware.resume(host);
                steps += 1;
                assert!(steps < 1_000_000, "an admin command does not end");
            }
        }
    }
}

/// Runs a command of an I/O queue to its end.
pub(crate) fn io(
    firmware: &mut Firmware<Vec<u8>>,
    command: &Submission,
    host: &mut Host,
) -> Completion {
    io_steps(firmware, 1, command, host).0
}

/// Likewise in a chosen context, with the number of steps.
pub(crate) fn io_steps(
    firmware: &mut Firmware<Vec<u8>>,
    context: u16,
    command: &Submission,
    host: &mut Host,
) -> (Completion, u32) {
    let mut progress = firmware.io(context, command, host);
    let mut steps = 1;
    loop {
        match progress {
            Progress::Done(done) => return (done, steps),
            Progress::More => {
                progress = firmware.resume_io(context, host);
                steps += 1;
                assert!(steps < 1_000_000, "a command does not end");
            }
        }
    }
}

pub(crate) fn create_with(firmware: &mut Firmware<Vec<u8>>, body: &MapCreateBody) -> Completion {
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), body);
    admin(firmware, &command, &mut Host::new(0)).0
}

pub(crate) fn create(firmware: &mut Firmware<Vec<u8>>, shape: &Shape) -> MapHandle {
    let done = create_with(firmware, &shape.body());
    assert_eq!(done.status(), Status::Success, "{shape:?}");
    let created: MapCreated = done.payload_as();
    assert_eq!(done.count.get(), 16);
    MapHandle(created.map.get())
}

pub(crate) fn free(firmware: &mut Firmware<Vec<u8>>, map: MapHandle) -> Status {
    let command =
        Submission::new(AdminOpcode::MapFree.0, RequestId(3), &EmptyBody::ZERO).with_map(map);
    admin(firmware, &command, &mut Host::new(0)).0.status()
}

pub(crate) fn query(firmware: &mut Firmware<Vec<u8>>, map: MapHandle) -> (Status, MapInfo) {
    let command =
        Submission::new(AdminOpcode::MapQuery.0, RequestId(4), &EmptyBody::ZERO).with_map(map);
    let done = admin(firmware, &command, &mut Host::new(0)).0;
    (done.status(), done.payload_as())
}

/// Where the operands of commands stand in host memory.
pub(crate) const KEYS: u64 = BASE;
pub(crate) const VALUES: u64 = BASE + 0x1_0000;
pub(crate) const STATUSES: u64 = BASE + 0x8_0000;
pub(crate) const HOST_BYTES: usize = 0x9_0000;

/// An element command; operands inline where they fit and `inline` is set.
#[expect(
    clippy::too_many_arguments,
    reason = "as many as the command has operands"
)]
pub(crate) fn element(
    opcode: IoOpcode,
    map: MapHandle,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    room: usize,
    map_flags: u32,
    inline: bool,
    host: &mut Host,
) -> Submission {
    let mut flags = SubmissionFlags::empty();
    let mut body = ElementBody {
        map_flags: map_flags.into(),
        key_len: (key.map_or(0, <[u8]>::len) as u32).into(),
        value_len: (value.map_or(room, <[u8]>::len) as u32).into(),
        reserved: 0.into(),
        key: IovaRef::field(KEYS),
        value: IovaRef::field(VALUES),
    };
    // What a command does not use is zero.
    let key = key.filter(|_| opcode != IoOpcode::GetFirst);
    let room = if opcode == IoOpcode::Delete { 0 } else { room };
    if key.is_none() {
        body.key = [0; 16];
        body.key_len = 0.into();
    }
    if value.is_none() {
        body.value_len = (room as u32).into();
        if room == 0 || inline && room <= 48 {
            body.value = [0; 16];
        }
    }
    if let Some(key) = key {
        if inline && key.len() <= 16 {
            flags |= SubmissionFlags::KEY_INLINE;
            body.key = [0; 16];
            body.key[..key.len()].copy_from_slice(key);
        } else {
            host.put(KEYS, key);
        }
    }
    match value {
        Some(value) if inline && value.len() <= 16 => {
            flags |= SubmissionFlags::VALUE_INLINE;
            body.value = [0; 16];
            body.value[..value.len()].copy_from_slice(value);
        }
        Some(value) => host.put(VALUES, value),
        None if inline && room <= 48 => flags |= SubmissionFlags::VALUE_INLINE,
        None => {}
    }
    Submission::new(opcode.0, RequestId(77), &body)
        .with_map(map)
        .with_flags(flags)
}

/// The bytes that an element command returned.
pub(crate) fn returned(
    command: &Submission,
    done: &Completion,
    len: usize,
    host: &Host,
) -> Vec<u8> {
    assert_eq!(done.request().0, 77);
    if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
        assert_eq!(done.count.get() as usize, len);
        done.payload[..len].to_vec()
    } else {
        assert_eq!(done.count.get() as usize, len);
        host.at(VALUES, len).to_vec()
    }
}

pub(crate) fn batch(
    opcode: IoOpcode,
    map: MapHandle,
    shape: &Shape,
    count: u32,
    map_flags: u32,
    cursor: u64,
) -> Submission {
    let dump = matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete);
    let delete = opcode == IoOpcode::BatchDelete;
    let value_bytes = if delete { 0 } else { shape.value_bytes() };
    let body = BatchBody {
        map_flags: map_flags.into(),
        count: count.into(),
        key_len: (shape.key_size as u32).into(),
        value_len: (value_bytes as u32).into(),
        keys: KEYS.into(),
        values: if delete { 0 } else { VALUES }.into(),
        statuses: if dump { 0 } else { STATUSES }.into(),
        cursor: cursor.into(),
    };
    Submission::new(opcode.0, RequestId(78), &body).with_map(map)
}

pub(crate) fn batch_result(done: &Completion) -> (Status, usize, BatchResult) {
    assert_eq!(done.request().0, 78);
    (
        done.status(),
        done.count.get() as usize,
        done.payload_as::<BatchResult>(),
    )
}

pub(crate) fn status_at(host: &Host, index: usize) -> Status {
    let bytes = host.at(STATUSES + 2 * index as u64, 2);
    Status(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// What a map does, in the plainest form.
pub(crate) struct Model {
    pub(crate) shape: Shape,
    pub(crate) entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    pub(crate) fn new(shape: Shape) -> Self {
        let mut entries = BTreeMap::new();
        if shape.is_array() {
            for index in 0..shape.max_entries {
                entries.insert(index.to_le_bytes().to_vec(), vec![0; shape.value_bytes()]);
            }
        }
        Self { shape, entries }
    }

    fn out_of_range(&self, key: &[u8]) -> bool {
        self.shape.is_array() && !self.entries.contains_key(key)
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Vec<u8>, Status> {
        if self.out_of_range(key) {
            return Err(Status::OutOfRange);
        }
        self.entries.get(key).cloned().ok_or(Status::NotFound)
    }

    pub(crate) fn update(&mut self, key: &[u8], value: &[u8], flags: u32) -> Status {
        if self.out_of_range(key) {
            return Status::OutOfRange;
        }
        let present = self.entries.contains_key(key);
        if flags == 1 && present {
            return Status::Exists;
        }
        if flags == 2 && !present {
            return Status::NotFound;
        }
        if !present && self.entries.len() == self.shape.max_entries as usize {
            return Status::Full;
        }
        self.entries.insert(key.to_vec(), value.to_vec());
        Status::Success
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Status {
        if self.shape.is_array() {
            return Status::Unsupported;
        }
        match self.entries.remove(key) {
            Some(_) => Status::Success,
            None => Status::NotFound,
        }
    }
}
