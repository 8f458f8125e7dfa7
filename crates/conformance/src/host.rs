//! A host written straight from the ABI: registers, rings and words, with no driver between.
//!
//! It says exactly what a case wants said, mistakes included, and shares no code with the
//! driver, so that a misreading of the ABI in one of them shows.

use crate::{coverage, skip};
use offmap_abi::admin::{
    AbortBody, EmptyBody, IdentifyBody, IdentifyData, Limit, LimitDetail, MapCreateBody,
    MapCreated, MapDescription, MapInfo, MapListBody, MapListed, QueueCreateBody, QueueDeleteBody,
};
use offmap_abi::completion::{COMPLETION_BYTES, COMPLETION_WORDS};
use offmap_abi::notify::{
    EventWord, NOTIFY_BYTES, NOTIFY_CQ_EVENT, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL,
    cq_doorbell, sq_doorbell,
};
use offmap_abi::regs::{self, Control, DeviceStatus, FatalCause, Features};
use offmap_abi::submission::{SUBMISSION_BYTES, SUBMISSION_WORDS, phase_of};
use offmap_abi::{AdminOpcode, Completion, MapHandle, QueueId, RequestId, Status, Submission};
use offmap_device_io::{
    BarMapping, BarOffset, DmaBuffer, DmaPlacement, DmaRegion, Function, Interrupt, IovaAllocator,
};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

/// How long anything may take before the case fails, in milliseconds; far beyond what it does take.
static PATIENCE_MS: AtomicU64 = AtomicU64::new(20_000);

/// How long the cases of this process wait for any one thing. Twenty seconds if nothing else is said.
pub fn set_patience(patience: Duration) {
    let ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    PATIENCE_MS.store(ms.max(1), Ordering::Relaxed);
}

fn patience() -> Duration {
    Duration::from_millis(PATIENCE_MS.load(Ordering::Relaxed))
}

/// How a queue tells the device about new entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notify {
    /// Doorbell registers.
    Doorbells,
    /// Shadow words and event indexes, with KICK.
    Shadow,
}

/// How a host writes doorbells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doorbells {
    /// To the mapped page, where the transport has one, and as registers where it has none.
    Mapped,
    /// As registers, so that the transport sees each of them.
    Registers,
}

/// What a queue is created with, beside its id and depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueOptions {
    /// How the device hears of entries.
    pub notify: Notify,
    /// Its MSI-X vector, or [`regs::NO_VECTOR`].
    pub vector: u32,
}

/// A device that has been brought up, and its admin queue.
pub struct Host<F: Function> {
    function: Arc<F>,
    iovas: Arc<Mutex<IovaAllocator>>,
    doorbells_by: Doorbells,
    doorbells: Arc<Option<BarMapping>>,
    admin: Mutex<Queue<F>>,
}

/// Calls `f` until it gives something, running the device meanwhile.
///
/// # Panics
///
/// When patience ([`set_patience`]) runs out.
#[track_caller]
pub fn wait_for<F: Function, T>(function: &F, what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        for _ in 0..256 {
            if let Some(got) = f() {
                return got;
            }
            function.progress();
        }
        assert!(
            started.elapsed() < patience(),
            "{what}: nothing for {:?}; STATUS {:#x}, {:?}",
            patience(),
            read32(function, regs::STATUS),
            FatalCause(read32(function, regs::FATAL_CAUSE))
        );
        std::thread::yield_now();
    }
}

fn read32(function: &impl Function, register: u64) -> u32 {
    let got = function.read32(regs::BAR_REGISTERS, BarOffset(register));
    got.expect("registers can be read")
}

fn write32(function: &impl Function, register: u64, value: u32) {
    let done = function.write32(regs::BAR_REGISTERS, BarOffset(register), value);
    done.expect("registers can be written");
}

fn write64(function: &impl Function, register: u64, value: u64) {
    let done = function.write64(regs::BAR_REGISTERS, BarOffset(register), value);
    done.expect("registers can be written");
}

/// Lets the function decode memory accesses and be a bus master.
pub fn enable_pci(function: &impl Function) {
    const COMMAND: u16 = 0x04;
    const MEMORY_AND_MASTER: u16 = 0b110;
    let mut word = [0; 2];
    function
        .config_read(COMMAND, &mut word)
        .expect("config read");
    let command = u16::from_le_bytes(word) | MEMORY_AND_MASTER;
    let done = function.config_write(COMMAND, &command.to_le_bytes());
    done.expect("config write");
}

impl<F: Function> Host<F> {
    /// Brings `function` up with an admin queue of 32 entries and no interrupts.
    pub fn bring_up(function: Arc<F>) -> Self {
        Self::bring_up_with(function, Doorbells::Mapped)
    }

    /// As [`Host::bring_up`], with doorbells written as it says.
    pub fn bring_up_with(function: Arc<F>, doorbells: Doorbells) -> Self {
        let iovas = Arc::new(Mutex::new(IovaAllocator::new(&function.iova_ranges())));
        Self::with_iovas(function, iovas, doorbells)
    }

    fn with_iovas(
        function: Arc<F>,
        iovas: Arc<Mutex<IovaAllocator>>,
        doorbells_by: Doorbells,
    ) -> Self {
        const DEPTH: u32 = 32;
        enable_pci(&*function);
        let magic = function.read64(regs::BAR_REGISTERS, BarOffset(regs::MAGIC));
        assert_eq!(magic.expect("MAGIC"), regs::MAGIC_VALUE);
        write32(&*function, regs::CONTROL, 0);
        wait_for(&*function, "the device stops", || {
            let status = DeviceStatus::from_bits_retain(read32(&*function, regs::STATUS));
            (!status.contains(DeviceStatus::READY)).then_some(())
        });
        let doorbells = match doorbells_by {
            Doorbells::Registers => Ok(None),
            Doorbells::Mapped => function.map_bar(
                regs::BAR_REGISTERS,
                BarOffset(regs::DOORBELLS),
                regs::DOORBELLS_BYTES as usize,
            ),
        };
        let doorbells = Arc::new(doorbells.expect("the doorbell page is mapped or trapped"));
        let admin = Queue::memory(&function, &iovas, &doorbells, QueueId::ADMIN, DEPTH, None);
        write64(&*function, regs::ADMIN_SQ, admin.sq.iova(0).0);
        write64(&*function, regs::ADMIN_CQ, admin.cq.iova(0).0);
        write32(&*function, regs::ADMIN_DEPTH, DEPTH);
        write32(&*function, regs::ADMIN_VECTOR, regs::NO_VECTOR);
        write32(&*function, regs::CONTROL, Control::ENABLE.bits());
        let this = Self {
            function,
            iovas,
            doorbells_by,
            doorbells,
            admin: Mutex::new(admin),
        };
        wait_for(&*this.function, "READY", || {
            assert_eq!(this.fatal(), FatalCause::None);
            this.status().contains(DeviceStatus::READY).then_some(())
        });
        this
    }

    /// Resets the function and brings it up again. Queues and maps of before are gone.
    pub fn reset(self) -> Self {
        self.function.reset().expect("reset");
        // Config space may have been reset too: the function does not decode memory accesses then.
        enable_pci(&*self.function);
        assert_eq!(self.status(), DeviceStatus::empty());
        let Self {
            function,
            iovas,
            doorbells_by,
            ..
        } = self;
        Self::with_iovas(function, iovas, doorbells_by)
    }

    /// The function.
    pub fn function(&self) -> &Arc<F> {
        &self.function
    }

    /// A 4-byte register of BAR0.
    pub fn register(&self, register: u64) -> u32 {
        read32(&*self.function, register)
    }

    /// The STATUS register.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.register(regs::STATUS))
    }

    /// Optional parts of the ABI that the device has.
    pub fn features(&self) -> Features {
        let bar = regs::BAR_REGISTERS;
        let features = self.function.read64(bar, BarOffset(regs::FEATURES));
        Features::from_bits_retain(features.expect("FEATURES"))
    }

    /// Skips the case on a device without one of these.
    pub fn need_features(&self, needed: Features) {
        let lacks = needed - self.features();
        if !lacks.is_empty() {
            let names: Vec<_> = lacks.iter_names().map(|(name, _)| name).collect();
            skip(format!("the device has no {}", names.join(", ")));
        }
    }

    /// Skips the case on a device with fewer I/O queue pairs.
    pub fn need_pairs(&self, needed: u32) {
        let pairs = self.register(regs::QUEUE_PAIRS);
        if pairs < needed {
            skip(format!(
                "the device has {pairs} queue pairs, and the case wants {needed}"
            ));
        }
    }

    /// Skips the case on a device without the map type.
    pub fn need_type(&self, map_type: u32) {
        let types = self.identify().map_types.get();
        if map_type >= 64 || types >> map_type & 1 == 0 {
            skip(format!("the device has no maps of type {map_type}"));
        }
    }

    /// Skips the case where a map was refused for a limit of which IDENTIFY says the same.
    fn need_room(&self, refused: &Completion) {
        let detail: LimitDetail = refused.payload_as();
        let limits = self.identify();
        let (what, allowed) = match Limit(detail.limit.get()) {
            Limit::KeyBytes => ("key bytes", limits.key_bytes.get().into()),
            Limit::ValueBytes => ("value bytes", limits.value_bytes.get().into()),
            Limit::EntriesPerMap => ("entries of a map", limits.entries_per_map.get().into()),
            Limit::EntriesTotal => ("entries", limits.entries_total.get()),
            Limit::Maps => ("maps", limits.maps.get().into()),
            Limit::CpuSlots => ("per-CPU slots", limits.cpu_slots.get().into()),
            _ => return,
        };
        let (asked, used) = (detail.asked.get(), detail.used.get());
        let said = detail.allowed.get() == allowed && asked.saturating_add(used) > allowed;
        if refused.status() == Status::LimitExceeded && said {
            skip(format!(
                "the device has {allowed} {what}, and the case wants {asked} more than {used}"
            ));
        }
    }

    /// Takes maps up until there is room for `left` more.
    pub fn leave_maps(&self, left: u32) {
        let maps = self.identify().maps.get();
        let body = Self::map_body(1, 4, 4, 1);
        for _ in left..maps {
            self.map(&body);
        }
    }

    /// The FATAL_CAUSE register.
    pub fn fatal(&self) -> FatalCause {
        FatalCause(self.register(regs::FATAL_CAUSE))
    }

    /// Memory that the device can reach.
    pub fn dma(&self, len: usize) -> DmaRegion<F> {
        DmaRegion::new(&self.function, &self.iovas, len, DmaPlacement::default()).expect("DMA")
    }

    /// Runs an admin command to its end.
    #[track_caller]
    pub fn admin(&self, command: Submission) -> Completion {
        self.admin.lock().expect("admin queue").run(command)
    }

    /// Hands the admin queue a command whose answer nobody waits for, if the queue has room.
    pub fn admin_unanswered(&self, command: Submission) {
        let mut admin = self.admin.lock().expect("admin queue");
        while admin.in_flight() > 0 && admin.poll().is_some() {}
        if admin.in_flight() < admin.depth() {
            admin.submit(command);
        }
    }

    /// IDENTIFY, with `room` bytes for the answer at `iova`.
    #[track_caller]
    pub fn identify_at(&self, iova: u64, room: u32) -> Status {
        let mut body = IdentifyBody::new_zeroed();
        body.iova = U64::new(iova);
        body.len = U32::new(room);
        self.admin(command(AdminOpcode::Identify, &body)).status()
    }

    /// IDENTIFY.
    #[track_caller]
    pub fn identify(&self) -> IdentifyData {
        let region = self.dma(size_of::<IdentifyData>());
        let room = size_of::<IdentifyData>() as u32;
        assert_eq!(self.identify_at(region.iova(0).0, room), Status::Success);
        let mut data = IdentifyData::new_zeroed();
        region
            .buffer()
            .read(0, zerocopy::IntoBytes::as_mut_bytes(&mut data));
        data
    }

    /// The body of a MAP_CREATE with the given sizes.
    pub fn map_body(map_type: u32, key: u32, value: u32, entries: u32) -> MapCreateBody {
        let mut body = MapCreateBody::new_zeroed();
        body.map_type = U32::new(map_type);
        body.key_size = U32::new(key);
        body.value_size = U32::new(value);
        body.max_entries = U32::new(entries);
        body.seed = U64::new(0x5eed);
        body
    }

    /// MAP_CREATE.
    #[track_caller]
    pub fn try_map(&self, body: &MapCreateBody) -> Result<MapCreated, Completion> {
        let done = self.admin(command(AdminOpcode::MapCreate, body));
        if done.status().is_success() {
            Ok(done.payload_as())
        } else {
            Err(done)
        }
    }

    /// MAP_CREATE that must succeed.
    #[track_caller]
    pub fn map(&self, body: &MapCreateBody) -> MapHandle {
        match self.try_map(body) {
            Ok(created) => MapHandle(created.map.get()),
            Err(done) => {
                // A device need not have every type of map, nor room for all of a case, if it says so.
                self.need_type(body.map_type.get());
                self.need_room(&done);
                panic!("MAP_CREATE of {body:?}: {:?}", done.status())
            }
        }
    }

    /// MAP_FREE.
    #[track_caller]
    pub fn free(&self, map: MapHandle) -> Status {
        let free = command(AdminOpcode::MapFree, &EmptyBody::ZERO).with_map(map);
        self.admin(free).status()
    }

    /// MAP_QUERY.
    #[track_caller]
    pub fn query(&self, map: MapHandle) -> Result<MapInfo, Status> {
        let query = command(AdminOpcode::MapQuery, &EmptyBody::ZERO).with_map(map);
        let done = self.admin(query);
        match done.status() {
            Status::Success => Ok(done.payload_as()),
            status => Err(status),
        }
    }

    /// MAP_LIST, to its end, so many at a time.
    #[track_caller]
    pub fn list(&self, at_a_time: usize) -> Vec<MapDescription> {
        let (mut maps, mut cursor) = (Vec::new(), 0);
        let each = size_of::<MapDescription>();
        let room = self.dma(at_a_time * each);
        loop {
            let mut body = MapListBody::new_zeroed();
            body.iova = U64::new(room.iova(0).0);
            body.len = U32::new((at_a_time * each) as u32);
            body.cursor = U32::new(cursor);
            let done = self.admin(command(AdminOpcode::MapList, &body));
            assert_eq!(done.status(), Status::Success, "MAP_LIST from {cursor}");
            let bytes = done.count.get() as usize;
            assert!(
                bytes.is_multiple_of(each) && bytes <= at_a_time * each,
                "{bytes}"
            );
            for at in (0..bytes).step_by(each) {
                let mut map = MapDescription::new_zeroed();
                let into = zerocopy::IntoBytes::as_mut_bytes(&mut map);
                room.buffer().read(at, into);
                maps.push(map);
            }
            let next = done.payload_as::<MapListed>().cursor.get();
            if next == 0 {
                return maps;
            }
            assert!(
                next > cursor && maps.len() <= 1 << 16,
                "the list does not end"
            );
            cursor = next;
        }
    }

    /// ABORT.
    #[track_caller]
    pub fn abort(&self, queue: QueueId, request: RequestId) -> Status {
        let mut body = AbortBody::new_zeroed();
        body.queue = U16::new(queue.0);
        body.request = U64::new(request.0);
        self.admin(command(AdminOpcode::Abort, &body)).status()
    }

    /// QUEUE_CREATE with any body.
    #[track_caller]
    pub fn queue_create(&self, body: &QueueCreateBody) -> Status {
        self.admin(command(AdminOpcode::QueueCreate, body)).status()
    }

    /// QUEUE_DELETE.
    #[track_caller]
    pub fn queue_delete(&self, queue: QueueId) -> Status {
        let mut body = QueueDeleteBody::new_zeroed();
        body.queue = U16::new(queue.0);
        self.admin(command(AdminOpcode::QueueDelete, &body))
            .status()
    }

    /// Memory for a queue, and the body that creates it.
    pub fn queue_memory(
        &self,
        id: u16,
        depth: u32,
        options: QueueOptions,
    ) -> (Queue<F>, QueueCreateBody) {
        let notify = (options.notify == Notify::Shadow).then(|| self.dma(NOTIFY_BYTES));
        let (id, wire) = (QueueId(id), U16::new(id));
        let mut queue = Queue::memory(
            &self.function,
            &self.iovas,
            &self.doorbells,
            id,
            depth,
            notify,
        );
        queue.features = self.features();
        let mut body = QueueCreateBody::new_zeroed();
        body.queue = wire;
        body.depth = U32::new(depth);
        body.vector = U32::new(options.vector);
        body.sq = U64::new(queue.sq.iova(0).0);
        body.cq = U64::new(queue.cq.iova(0).0);
        body.notify = U64::new(queue.notify.as_ref().map_or(0, |n| n.iova(0).0));
        (queue, body)
    }

    /// Creates a queue.
    #[track_caller]
    pub fn queue(&self, id: u16, depth: u32, options: QueueOptions) -> Queue<F> {
        self.need_pairs(id.into());
        if options.notify == Notify::Shadow {
            self.need_features(Features::NOTIFY_BLOCK);
        }
        let (queue, body) = self.queue_memory(id, depth, options);
        let most = self.register(regs::QUEUE_DEPTH_MAX);
        if depth > most {
            skip(format!(
                "queues have at most {most} entries, and the case wants {depth}"
            ));
        }
        assert_eq!(self.queue_create(&body), Status::Success, "{body:?}");
        queue
    }

    /// Routes a vector to this process.
    pub fn vector(&self, vector: u32) -> Interrupt {
        let vectors = self.function.vectors();
        if vector >= vectors {
            skip(format!(
                "the device has {vectors} vectors, and the case wants {}",
                vector + 1
            ));
        }
        self.function.enable_vector(vector).expect("vector")
    }
}

/// An admin command with a request id of its own.
pub fn command<B: zerocopy::IntoBytes + zerocopy::Immutable>(
    opcode: AdminOpcode,
    body: &B,
) -> Submission {
    Submission::new(opcode.0, next_request(), body)
}

/// A request id that nobody else has.
pub fn next_request() -> RequestId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    RequestId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A queue pair as the host sees it.
pub struct Queue<F: Function> {
    id: QueueId,
    function: Arc<F>,
    doorbells: Arc<Option<BarMapping>>,
    sq: DmaRegion<F>,
    cq: DmaRegion<F>,
    notify: Option<DmaRegion<F>>,
    depth: u32,
    tail: u32,
    head: u32,
    features: Features,
}

impl<F: Function> Queue<F> {
    fn memory(
        function: &Arc<F>,
        iovas: &Arc<Mutex<IovaAllocator>>,
        doorbells: &Arc<Option<BarMapping>>,
        id: QueueId,
        depth: u32,
        notify: Option<DmaRegion<F>>,
    ) -> Self {
        let ring = |entry: usize| {
            let placement = DmaPlacement::default();
            DmaRegion::new(function, iovas, depth as usize * entry, placement).expect("ring")
        };
        Self {
            id,
            function: Arc::clone(function),
            doorbells: Arc::clone(doorbells),
            sq: ring(SUBMISSION_BYTES),
            cq: ring(COMPLETION_BYTES),
            notify,
            depth,
            tail: 0,
            head: 0,
            features: Features::empty(),
        }
    }

    /// Its id.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Skips the case on a device without batch commands.
    pub fn need_batches(&self) {
        if !self.features.contains(Features::BATCH) {
            skip("the device has no BATCH");
        }
    }

    /// Entries of each ring.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Submissions so far, modulo 2^32.
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// The submission ring's memory, for cases that misuse it.
    pub fn ring(&self) -> &DmaBuffer {
        self.sq.buffer()
    }

    /// Submissions without a completion yet.
    pub fn in_flight(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Stores an entry without telling the device.
    pub fn push(&mut self, entry: Submission) {
        assert!(self.in_flight() < self.depth, "the queue is full");
        let at = (self.tail % self.depth) as usize * SUBMISSION_BYTES;
        // One in the first pass over the ring, and the other way round in each pass after.
        let phase = (self.tail / self.depth).is_multiple_of(2);
        let words: [u64; SUBMISSION_WORDS] = entry.to_words(phase);
        coverage::sent(self.id, entry.opcode);
        for (i, word) in words.iter().enumerate().skip(1) {
            self.ring().store_u64(at + i * 8, *word, Ordering::Relaxed);
        }
        self.ring().store_u64(at, words[0], Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the device how far the entries go.
    pub fn publish(&self) {
        self.publish_tail(self.tail.into());
    }

    /// Tells the device any tail, true or not.
    pub fn publish_tail(&self, tail: u64) {
        match &self.notify {
            None => self.doorbell(sq_doorbell(self.id), tail),
            Some(block) => {
                let block = block.buffer();
                block.store_u64(NOTIFY_SQ_TAIL, tail, Ordering::Release);
                self.kick_if_asked(block, tail as u32);
            }
        }
    }

    /// Rule N1, after a tail or a head was stored.
    fn kick_if_asked(&self, block: &DmaBuffer, tail: u32) {
        fence(Ordering::SeqCst);
        let event = block.load_u64(NOTIFY_SQ_EVENT, Ordering::Acquire);
        if EventWord::from_word(event).wants(tail) {
            write32(&*self.function, regs::KICK, self.id.0.into());
        }
    }

    /// Tells the device any completion head, true or not.
    pub fn publish_head(&self, head: u64) {
        match &self.notify {
            None => self.doorbell(cq_doorbell(self.id), head),
            Some(block) => {
                let block = block.buffer();
                block.store_u64(NOTIFY_CQ_HEAD, head, Ordering::Release);
                self.kick_if_asked(block, self.tail);
            }
        }
    }

    /// IOVAs of its rings and of its notify block.
    pub fn iovas(&self) -> Vec<u64> {
        let regions = [Some(&self.sq), Some(&self.cq), self.notify.as_ref()];
        regions.into_iter().flatten().map(|r| r.iova(0).0).collect()
    }

    fn doorbell(&self, offset: u64, value: u64) {
        match &*self.doorbells {
            Some(page) => page.store_u64((offset - regs::DOORBELLS) as usize, value),
            None => write64(&*self.function, offset, value),
        }
    }

    /// Stores an entry and tells the device.
    pub fn submit(&mut self, entry: Submission) {
        self.push(entry);
        self.publish();
    }

    /// Takes a completion if there is one, and lets the device overwrite it.
    pub fn poll(&mut self) -> Option<Completion> {
        let taken = self.take();
        if taken.is_some() {
            self.publish_head(self.head.into());
        }
        taken
    }

    /// Takes a completion if there is one, and does not tell the device.
    pub fn take(&mut self) -> Option<Completion> {
        let at = (self.head % self.depth) as usize * COMPLETION_BYTES;
        let word0 = self.cq.buffer().load_u64(at, Ordering::Acquire);
        if phase_of(word0) != (self.head / self.depth).is_multiple_of(2) {
            return None;
        }
        let mut words = [word0; COMPLETION_WORDS];
        for (i, word) in words.iter_mut().enumerate().skip(1) {
            *word = self.cq.buffer().load_u64(at + i * 8, Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        let completion = Completion::from_words(words);
        coverage::got(completion.status());
        Some(completion)
    }

    /// Asks for an interrupt once there is a completion that has not been taken; `false` when
    /// there is one already. Queues with doorbells interrupt unasked.
    pub fn arm(&self) -> bool {
        if let Some(block) = &self.notify {
            let event = EventWord::armed_at(self.head).to_word();
            block
                .buffer()
                .store_u64(NOTIFY_CQ_EVENT, event, Ordering::Release);
            fence(Ordering::SeqCst);
        }
        let at = (self.head % self.depth) as usize * COMPLETION_BYTES;
        let word0 = self.cq.buffer().load_u64(at, Ordering::Acquire);
        phase_of(word0) != (self.head / self.depth).is_multiple_of(2)
    }

    /// Asks for no interrupt.
    pub fn disarm(&self) {
        if let Some(block) = &self.notify {
            let event = EventWord::DISARMED.to_word();
            block
                .buffer()
                .store_u64(NOTIFY_CQ_EVENT, event, Ordering::Release);
        }
    }

    /// The next completion.
    #[track_caller]
    pub fn wait(&mut self) -> Completion {
        let function = Arc::clone(&self.function);
        wait_for(&*function, "a completion", || self.poll())
    }

    /// Runs one command on the idle queue.
    #[track_caller]
    pub fn run(&mut self, entry: Submission) -> Completion {
        assert_eq!(self.in_flight(), 0);
        self.submit(entry);
        let done = self.wait();
        assert_eq!(
            done.request(),
            entry.request(),
            "another command's completion"
        );
        done
    }
}
