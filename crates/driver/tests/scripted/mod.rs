//! A device whose every answer a test writes.
//!
//! It keeps the host's side of the protocol under check (phases, at most `depth` commands in
//! flight, a completion head that never passes what was posted) and panics, in the driver's own
//! wait loop, where the driver breaks it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its part of the helper"
)]

use offmap_abi::admin::{
    IdentifyBody, IdentifyData, MapAttr, MapCreateBody, MapCreated, MapInfo, QueueCreateBody,
    QueueDeleteBody,
};
use offmap_abi::notify::{EventWord, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL};
use offmap_abi::regs::{self, DeviceStatus, Features};
use offmap_abi::submission::{ElementBody, IovaRef, phase_of};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, QueueId, RequestId, Status, Submission, SubmissionFlags,
};
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A seeded generator (xorshift64*), so that a failure can be run again.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Host memory that the driver has mapped.
#[derive(Default)]
pub struct Memory {
    maps: BTreeMap<u64, BarMapping>,
}

impl Memory {
    fn word(&self, iova: u64) -> Option<(&BarMapping, usize)> {
        let (base, map) = self.maps.range(..=iova).next_back()?;
        let at = (iova - base) as usize;
        (at + 8 <= map.len()).then_some((map, at))
    }

    pub fn load(&self, iova: u64) -> u64 {
        let (map, at) = self
            .word(iova)
            .expect("the driver gave an IOVA it did not map");
        map.load_u64(at)
    }

    pub fn store(&self, iova: u64, value: u64) {
        let (map, at) = self
            .word(iova)
            .expect("the driver gave an IOVA it did not map");
        map.store_u64(at, value);
    }

    pub fn write(&self, iova: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = iova + i as u64;
            let mut word = self.load(at & !7).to_le_bytes();
            word[(at & 7) as usize] = *byte;
            self.store(at & !7, u64::from_le_bytes(word));
        }
    }

    pub fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| self.load(at & !7).to_le_bytes()[(at & 7) as usize];
        (iova..iova + len as u64).map(byte).collect()
    }

    pub fn mapped(&self) -> usize {
        self.maps.len()
    }
}

/// One queue pair, from the device's side.
pub struct Queue {
    pub id: QueueId,
    pub depth: u32,
    sq: u64,
    cq: u64,
    notify: Option<u64>,
    fetched: u32,
    posted: u32,
    doorbell_head: u32,
}

impl Queue {
    fn phase(&self, entry: u32) -> bool {
        entry & self.depth == 0
    }

    fn head(&self, memory: &Memory) -> u32 {
        match self.notify {
            Some(block) => memory.load(block + NOTIFY_CQ_HEAD as u64) as u32,
            None => self.doorbell_head,
        }
    }

    fn fetch(&mut self, memory: &Memory) -> Option<Submission> {
        let head = self.head(memory);
        assert!(
            self.posted.wrapping_sub(head) <= self.depth,
            "completion head {head} is not within what was posted ({})",
            self.posted
        );
        if self.fetched.wrapping_sub(head) >= self.depth {
            return None;
        }
        let at = self.sq + u64::from(self.fetched & (self.depth - 1)) * 64;
        let word0 = memory.load(at);
        if phase_of(word0) != self.phase(self.fetched) {
            return None;
        }
        let mut words = [word0; 8];
        for (i, word) in words.iter_mut().enumerate().skip(1) {
            *word = memory.load(at + i as u64 * 8);
        }
        self.fetched = self.fetched.wrapping_add(1);
        Some(Submission::from_words(words))
    }

    /// Posts a completion.
    pub fn complete(&mut self, memory: &Memory, completion: Completion) {
        let phase = self.phase(self.posted);
        self.post(memory, completion.to_words(phase));
    }

    /// Posts whatever words, as they are.
    pub fn post(&mut self, memory: &Memory, words: [u64; 8]) {
        let at = self.cq + u64::from(self.posted & (self.depth - 1)) * 64;
        for i in (0..8).rev() {
            memory.store(at + i as u64 * 8, words[i]);
        }
        self.posted = self.posted.wrapping_add(1);
    }

    /// Arms the submission event word, as a device does before it parks.
    pub fn arm(&self, memory: &Memory, index: u32) {
        if let Some(block) = self.notify {
            let word = EventWord::armed_at(index).to_word();
            memory.store(block + NOTIFY_SQ_EVENT as u64, word);
        }
    }

    /// The tail that the host published in the notify block.
    pub fn shadow_tail(&self, memory: &Memory) -> Option<u32> {
        let block = self.notify?;
        Some(memory.load(block + NOTIFY_SQ_TAIL as u64) as u32)
    }
}

/// What ABORT does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// The victim completes as aborted.
    Complete,
    /// "No such command is waiting."
    NotFound,
    /// ABORT itself is never answered.
    Ignore,
    /// "No such command is waiting", after this time.
    Slow(Duration),
    /// The queue has stopped.
    Stopped,
}

pub type IoScript = Box<dyn FnMut(&mut Queue, &Memory, Submission) + Send>;

/// What happens while STATUS is read.
pub type StatusScript = Box<dyn FnMut(&mut BTreeMap<u16, Queue>, &Memory) + Send>;

/// The device's state; tests change what they want it to lie about.
pub struct State {
    pub vendor: u16,
    pub command: u16,
    pub command_sticks: bool,
    pub registers: HashMap<u64, u64>,
    pub identify: IdentifyData,
    pub ready: bool,
    pub obeys_enable: bool,
    pub fatal: u32,
    pub all_ones: bool,
    /// Register accesses left until one fails.
    pub fail_mmio_after: Option<u32>,
    pub abort: Abort,
    pub answers_admin: bool,
    pub answers_delete: bool,
    pub reset_fails: bool,
    pub obeys_disable: bool,
    pub map_bar_fails: bool,
    /// Admin results are a byte short.
    pub short_admin: bool,
    /// Name of each map made.
    pub names: Vec<[u8; 16]>,
    /// Admin answers that are held back, and until when.
    late: Vec<(Instant, Completion)>,
    /// MSI-X vectors; none is ever raised.
    pub vectors: u32,
    pub at_status: Option<StatusScript>,
    /// Times that somebody slept since STATUS was read last.
    pub sleeps: u32,
    pub io: IoScript,
    pub kicks: Vec<u32>,
    pub doorbells: u32,
    pub commands: Vec<AdminOpcode>,
    pub memory: Memory,
    pub queues: BTreeMap<u16, Queue>,
    maps_made: u32,
}

/// The function.
pub struct Scripted {
    state: Mutex<State>,
}

/// What an honest device answers: a value that is the key, over and over, so that a
/// result in the wrong hands shows.
pub fn honest(queue: &mut Queue, memory: &Memory, command: Submission) {
    let completion = honest_answer(memory, &command);
    queue.complete(memory, completion);
}

pub fn honest_answer(memory: &Memory, command: &Submission) -> Completion {
    let done = Completion::new(command.request(), Status::Success);
    if IoOpcode(command.opcode).is_batch() {
        return done;
    }
    let body: ElementBody = command.body();
    let room = body.value_len.get() as usize;
    let returns = matches!(
        IoOpcode(command.opcode),
        IoOpcode::Lookup | IoOpcode::LookupAndDelete | IoOpcode::GetNext | IoOpcode::GetFirst
    );
    if !returns {
        return done;
    }
    let key = if command.flags().contains(SubmissionFlags::KEY_INLINE) {
        body.key[..body.key_len.get() as usize].to_vec()
    } else {
        memory.read(IovaRef::iova_of(&body.key), body.key_len.get() as usize)
    };
    let key = if key.is_empty() { vec![0xee] } else { key };
    let value: Vec<u8> = key.iter().copied().cycle().take(room).collect();
    if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
        done.with_payload(&value)
    } else {
        memory.write(IovaRef::iova_of(&body.value), &value);
        returned(done, value.len())
    }
}

/// The same completion with `bytes` as the number of bytes returned.
pub fn returned(mut done: Completion, bytes: usize) -> Completion {
    done.count = (bytes as u32).into();
    done
}

impl Scripted {
    pub fn new() -> Arc<Self> {
        let mut identify = IdentifyData::new_zeroed();
        identify.firmware[..8].copy_from_slice(b"scripted");
        identify.map_types = 0b110.into();
        identify.memory_bytes = (1 << 30).into();
        identify.entries_per_map = 1024.into();
        identify.maps = 16.into();
        identify.key_bytes = 4096.into();
        identify.value_bytes = (1 << 20).into();
        identify.cpu_slots = 4.into();
        identify.batch = 64.into();
        identify.engines = 1.into();
        let features = Features::NOTIFY_BLOCK | Features::BATCH;
        let registers = HashMap::from([
            (regs::MAGIC, regs::MAGIC_VALUE),
            (regs::VERSION, 0x0001_0000),
            (regs::VECTORS, 1),
            (regs::FEATURES, features.bits()),
            (regs::QUEUE_PAIRS, 4),
            (regs::QUEUE_DEPTH_MAX, 64),
            (regs::READY_TIMEOUT_MS, 100),
            (regs::RESET_COUNT, 7),
        ]);
        Arc::new(Self {
            state: Mutex::new(State {
                vendor: regs::PCI_VENDOR_ID,
                command: 0,
                command_sticks: true,
                registers,
                identify,
                ready: false,
                obeys_enable: true,
                fatal: 0,
                all_ones: false,
                fail_mmio_after: None,
                abort: Abort::NotFound,
                answers_admin: true,
                answers_delete: true,
                reset_fails: false,
                obeys_disable: true,
                map_bar_fails: false,
                short_admin: false,
                names: Vec::new(),
                late: Vec::new(),
                vectors: 0,
                at_status: None,
                sleeps: 0,
                io: Box::new(honest),
                kicks: Vec::new(),
                doorbells: 0,
                commands: Vec::new(),
                memory: Memory::default(),
                queues: BTreeMap::new(),
                maps_made: 0,
            }),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what I/O commands get.
    pub fn script(&self, io: impl FnMut(&mut Queue, &Memory, Submission) + Send + 'static) {
        self.state().io = Box::new(io);
    }

    fn access(&self) -> Result<MutexGuard<'_, State>, IoError> {
        let mut state = self.state();
        match &mut state.fail_mmio_after {
            Some(0) => Err(IoError::Gone("the script pulled the plug")),
            Some(left) => {
                *left -= 1;
                Ok(state)
            }
            None => Ok(state),
        }
    }
}

impl State {
    fn read(&self, offset: u64) -> u64 {
        if self.all_ones || self.command & 2 == 0 {
            return u64::MAX;
        }
        match offset {
            regs::STATUS => {
                let mut status = DeviceStatus::empty();
                status.set(DeviceStatus::READY, self.ready);
                status.set(DeviceStatus::FATAL, self.fatal != 0);
                status.bits().into()
            }
            regs::FATAL_CAUSE => self.fatal.into(),
            _ => self.registers.get(&offset).copied().unwrap_or(u64::MAX),
        }
    }

    fn write(&mut self, offset: u64, value: u64) {
        match offset {
            regs::CONTROL if value & 1 == 0 => {
                if !self.obeys_disable {
                    return;
                }
                self.ready = false;
                self.queues.clear();
                self.late.clear();
            }
            regs::CONTROL => {
                self.ready = self.obeys_enable && self.fatal == 0;
                let get = |r| self.registers.get(&r).copied().unwrap_or(0);
                let queue = Queue {
                    id: QueueId::ADMIN,
                    depth: get(regs::ADMIN_DEPTH) as u32,
                    sq: get(regs::ADMIN_SQ),
                    cq: get(regs::ADMIN_CQ),
                    notify: None,
                    fetched: 0,
                    posted: 0,
                    doorbell_head: 0,
                };
                self.queues.insert(0, queue);
            }
            regs::KICK => self.kicks.push(value as u32),
            _ if offset >= regs::DOORBELLS => {
                let id = ((offset - regs::DOORBELLS) / 64) as u16;
                self.doorbells += 1;
                if offset % 64 == 8
                    && let Some(queue) = self.queues.get_mut(&id)
                {
                    queue.doorbell_head = value as u32;
                }
            }
            _ => {
                self.registers.insert(offset, value);
            }
        }
    }

    fn admin(&mut self, command: Submission) {
        let opcode = AdminOpcode(command.opcode);
        self.commands.push(opcode);
        let mut answer = Completion::new(command.request(), Status::Success);
        match opcode {
            AdminOpcode::Identify => {
                let body: IdentifyBody = command.body();
                self.memory.write(body.iova.get(), self.identify.as_bytes());
                answer = returned(answer, size_of::<IdentifyData>());
            }
            AdminOpcode::MapQuery => {
                answer = answer.with_payload(MapInfo::new_zeroed().as_bytes());
            }
            AdminOpcode::QueueCreate => {
                let body: QueueCreateBody = command.body();
                let queue = Queue {
                    id: QueueId(body.queue.get()),
                    depth: body.depth.get(),
                    sq: body.sq.get(),
                    cq: body.cq.get(),
                    notify: (body.notify.get() != 0).then(|| body.notify.get()),
                    fetched: 0,
                    posted: 0,
                    doorbell_head: 0,
                };
                let id = body.queue.get();
                assert!(
                    self.queues.insert(id, queue).is_none(),
                    "queue {id} made twice"
                );
            }
            AdminOpcode::QueueDelete => {
                if !self.answers_delete {
                    return;
                }
                let body: QueueDeleteBody = command.body();
                self.queues.remove(&body.queue.get());
            }
            AdminOpcode::MapCreate => {
                self.maps_made += 1;
                let body: MapCreateBody = command.body();
                let attr = self
                    .memory
                    .read(body.attr.get(), body.attr_len.get() as usize);
                let attr = MapAttr::read_from_bytes(&attr).expect("a whole MapAttr");
                self.names.push(attr.name);
                let made = MapCreated {
                    map: (0x1_0000 + self.maps_made).into(),
                    reserved: 0.into(),
                    bytes: 4096.into(),
                };
                answer = answer.with_payload(made.as_bytes());
            }
            AdminOpcode::Abort => {
                let body: offmap_abi::admin::AbortBody = command.body();
                match self.abort {
                    Abort::Ignore => return,
                    Abort::NotFound => {
                        answer = Completion::new(command.request(), Status::NotFound);
                    }
                    Abort::Slow(time) => {
                        let answer = Completion::new(command.request(), Status::NotFound);
                        self.late.push((Instant::now() + time, answer));
                        return;
                    }
                    Abort::Stopped => {
                        answer = Completion::new(command.request(), Status::QueueStopped);
                    }
                    Abort::Complete => {
                        let victim = RequestId(body.request.get());
                        if let Some(queue) = self.queues.get_mut(&body.queue.get()) {
                            let aborted = Completion::new(victim, Status::Aborted);
                            queue.complete(&self.memory, aborted);
                        }
                    }
                }
            }
            _ => {}
        }
        if self.short_admin && answer.count.get() > 0 {
            answer.count -= 1;
        }
        if self.answers_admin
            && let Some(queue) = self.queues.get_mut(&0)
        {
            queue.complete(&self.memory, answer);
        }
    }
}

impl Function for Scripted {
    fn describe(&self) -> String {
        "scripted".into()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        let state = self.access()?;
        let value = match offset {
            0 => state.vendor,
            2 => regs::PCI_DEVICE_ID,
            4 => state.command,
            _ => 0,
        };
        buf.copy_from_slice(&value.to_le_bytes()[..buf.len()]);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let mut state = self.access()?;
        if offset == 4 && state.command_sticks {
            state.command = u16::from_le_bytes([data[0], data[1]]);
        }
        Ok(())
    }

    fn bar(&self, _bar: u8) -> Result<BarInfo, IoError> {
        Ok(BarInfo {
            size_bytes: regs::BAR0_BYTES,
            is_64bit: true,
            prefetchable: false,
        })
    }

    fn read32(&self, _bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        let mut state = self.access()?;
        let state = &mut *state;
        if let Some(hook) = state
            .at_status
            .as_mut()
            .filter(|_| offset.0 == regs::STATUS)
        {
            hook(&mut state.queues, &state.memory);
            state.sleeps = 0;
        }
        Ok(state.read(offset.0) as u32)
    }

    fn read64(&self, _bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        Ok(self.access()?.read(offset.0))
    }

    fn write32(&self, _bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.access()?.write(offset.0, value.into());
        Ok(())
    }

    fn write64(&self, _bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.access()?.write(offset.0, value);
        Ok(())
    }

    fn map_bar(
        &self,
        _bar: u8,
        _offset: BarOffset,
        _len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        if self.state().map_bar_fails {
            return Err(IoError::Gone("the script does not let it map"));
        }
        Ok(None)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        vec![IovaRange {
            first: Iova(0),
            last: Iova(0xffff_ffff),
        }]
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        let map = BarMapping::new(buffer.fd(), 0, buffer.len())?;
        self.state().memory.maps.insert(iova.0, map);
        Ok(())
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        let mut state = self.state();
        let gone = state.memory.maps.remove(&iova.0);
        assert!(gone.is_some(), "{iova:?} unmapped twice");
        let range = iova.0..iova.0 + len as u64;
        for (id, queue) in state.queues.iter().filter(|_| state.ready) {
            assert!(
                !range.contains(&queue.sq),
                "the rings of queue {id} are unmapped under the device"
            );
        }
        Ok(())
    }

    fn vectors(&self) -> u32 {
        self.state().vectors
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        let vectors = self.vectors();
        if vector >= vectors {
            return Err(IoError::NoVector { vector, vectors });
        }
        Interrupt::new()
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        let vectors = self.vectors();
        if vector >= vectors {
            return Err(IoError::NoVector { vector, vectors });
        }
        Ok(())
    }

    fn sleep(&self, interrupt: &Interrupt, timeout: Duration) -> Result<bool, IoError> {
        self.state().sleeps += 1;
        interrupt.wait(timeout)
    }

    fn reset(&self) -> Result<(), IoError> {
        let mut state = self.state();
        if state.reset_fails {
            return Err(IoError::Gone("the script does not let it reset"));
        }
        state.ready = false;
        state.fatal = 0;
        state.command = 0;
        state.late.clear();
        state.queues.clear();
        *state.registers.entry(regs::RESET_COUNT).or_insert(0) += 1;
        Ok(())
    }

    fn progress(&self) {
        let mut state = self.state();
        let state = &mut *state;
        if !state.ready {
            return;
        }
        let now = Instant::now();
        while let Some(at) = state.late.iter().position(|(due, _)| *due <= now) {
            let (_, answer) = state.late.swap_remove(at);
            if let Some(admin) = state.queues.get_mut(&0) {
                admin.complete(&state.memory, answer);
            }
        }
        let ids: Vec<u16> = state.queues.keys().copied().collect();
        for id in ids {
            while let Some(queue) = state.queues.get_mut(&id) {
                let Some(command) = queue.fetch(&state.memory) else {
                    break;
                };
                if id == 0 {
                    state.admin(command);
                } else {
                    (state.io)(queue, &state.memory, command);
                }
            }
        }
    }
}
