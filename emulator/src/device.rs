//! The device core: one PCI function, without a thread of its own. It looks at a clock only where
//! an interrupt waits for more completions, or a fault plan delays something in time.
//!
//! A front end calls [`Device::step`] for bounded pieces of work and passes the host's
//! accesses in between. Whatever the host does, a step ends, and nothing panics: the worst
//! that it can achieve is a queue that stops (abi §4.3), and with the admin queue the device:
//! [`DeviceStatus::FATAL`](offmap_abi::regs::DeviceStatus::FATAL), which a reset ends, or
//! ENABLE cleared.

use crate::admin::AdminWork;
use crate::burst;
use crate::config::{DeviceConfig, DeviceMemory, Turns};
use crate::config_space::ConfigSpace;
use crate::diagnostics::Diagnostics;
use crate::dma::{Dma, Host, Permission};
use crate::error::EmulatorError;
use crate::faults::Engine;
use crate::msix::Msix;
use crate::queue::{Announce, Coalescing, Queue, QueueSpec, Stop};
use crate::regs::RegisterFile;
use crate::timing::{self, Timing};
use offmap_abi::regs::{self, Control, DeviceStatus, FatalCause, Features};
use offmap_abi::ring::RingDepth;
use offmap_abi::{CompletionWords, IoOpcode, MapHandle, QueueId, Status};
use offmap_device_io::{BarInfo, BarMapping, BarOffset, DmaBuffer, DmaPlacement, Interrupt};
use offmap_device_io::{IoError, Iova};
use offmap_firmware_model::{Firmware, Progress};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What READY_TIMEOUT_MS says. Enable and reset take effect before the access that asks for
/// them returns; the time covers a front end whose thread is not scheduled at once.
const READY_TIMEOUT_MS: u64 = 1000;

/// Work that one queue may do before the others get their turn. A constant, since a limit that is
/// looked up costs each single command something.
const BURST: u32 = 32;
/// What a piece of a longer command counts for: part of a batch, of a walk through a map, of
/// an admin command. A command on one element counts 1.
pub(crate) const PIECE_COST: u32 = 16;
/// Looks at the queue that was busy last before a step goes round all of them. A host that waits for one
/// command at a time sends its next one while the device looks, and a round takes as long as several looks at
/// one queue.
const FAVOURED_LOOKS: u32 = 8;

/// Time since a fixed moment, never going back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There was no work.
    Idle,
    /// There was some, and there may be more.
    Worked,
}

/// The function.
pub struct Device {
    pub(crate) config: ConfigSpace,
    pub(crate) registers: RegisterFile,
    pub(crate) msix: Msix,
    /// Interrupts stay routed over a reset.
    keeps_routes: bool,
    pub(crate) dma: Dma,
    pub(crate) firmware: Firmware<DeviceMemory>,
    /// The doorbells, in a memfd so that a host can map them.
    pub(crate) doorbells: DmaBuffer,
    /// The queues in service, the admin queue first; empty while the device is not enabled.
    pub(crate) queues: Vec<Queue>,
    /// The admin command that takes several steps, if there is one.
    pub(crate) admin_work: Option<AdminWork>,
    /// The queue with which the round over all of them goes on.
    next: usize,
    /// The queue that last had work, and how many more bursts it may get before the others.
    favoured: usize,
    favours: u32,
    /// The device serves its queues: it is enabled, not stopped by an error and not asleep.
    pub(crate) running: bool,
    pub(crate) queue_pairs: u16,
    pub(crate) queue_depth_max: u32,
    /// Maps stay when the host leaves.
    keep_maps: bool,
    pub(crate) turns: Turns,
    /// Some queue holds an interrupt back for more completions.
    pub(crate) holding: bool,
    /// A KICK was written since the front end last looked, and one was answered since the device's
    /// thread did.
    pub(crate) kicked: bool,
    pub(crate) answered: bool,
    /// How long a device that is parked waits before it looks by itself.
    pub(crate) look_again: Duration,
    pub(crate) clock: Clock,
    /// What the device does wrong on purpose, since it was first given a plan.
    pub(crate) faults: Option<Box<Engine>>,
    /// What its commands are charged to.
    pub(crate) timing: Timing,
    /// Either of the two is there.
    pub(crate) watched: bool,
    pub(crate) diagnostics: Diagnostics,
}

impl Device {
    /// Builds a device, powered on and not yet enabled.
    ///
    /// # Errors
    ///
    /// [`EmulatorError`], when the configuration or the system does not allow it.
    pub fn new(config: &DeviceConfig) -> Result<Self, EmulatorError> {
        config.validate()?;
        let firmware = Firmware::new(config.firmware.clone(), config.reserve_memory()?)?;
        Self::around(config, firmware)
    }

    /// The function around its firmware, which may have maps already.
    pub(crate) fn around(
        config: &DeviceConfig,
        mut firmware: Firmware<DeviceMemory>,
    ) -> Result<Self, EmulatorError> {
        firmware.set_vectors(config.vectors.into());
        let mut features = Features::NOTIFY_BLOCK | Features::MEMORY_WINDOW;
        features |= Features::COALESCING | Features::MAP_LIST | Features::MEMORY_TIERS;
        features.set(Features::KEEPS_MAPS, config.keep_maps);
        features.set(Features::BATCH, config.firmware.batch > 0);
        let mut registers = RegisterFile::new();
        registers.describe(regs::VECTORS, config.vectors.into());
        registers.describe(regs::FEATURES, features.bits());
        registers.describe(regs::QUEUE_PAIRS, config.queue_pairs.into());
        registers.describe(regs::QUEUE_DEPTH_MAX, config.queue_depth_max.into());
        registers.describe(regs::READY_TIMEOUT_MS, READY_TIMEOUT_MS);
        let start = Instant::now();
        Ok(Self {
            keep_maps: config.keep_maps,
            holding: false,
            kicked: false,
            answered: false,
            look_again: Duration::from_micros(config.look_again_us.into()),
            clock: Arc::new(move || start.elapsed()),
            config: ConfigSpace::new(config.vectors),
            registers,
            msix: Msix::new(config.vectors),
            keeps_routes: false,
            dma: Dma::new(),
            firmware,
            doorbells: Self::new_doorbells()?,
            queues: Vec::new(),
            admin_work: None,
            next: 0,
            favoured: 0,
            favours: 0,
            running: false,
            queue_pairs: config.queue_pairs,
            queue_depth_max: config.queue_depth_max,
            turns: config.turns,
            faults: None,
            timing: None,
            watched: false,
            diagnostics: Diagnostics::default(),
        })
    }

    /// The doorbells stand in their file where they stand in BAR 0, as a transport that hands
    /// the file to another process needs it.
    fn new_doorbells() -> Result<DmaBuffer, IoError> {
        let bytes = regs::DOORBELLS_BYTES as usize;
        DmaBuffer::at_offset(regs::DOORBELLS, bytes, DmaPlacement::default())
    }

    /// Does a bounded piece of work: one piece of an admin command under way, and one burst of
    /// the favoured queue, or of every queue until the step's work is done.
    #[inline]
    pub fn step(&mut self) -> Step {
        if !self.running {
            return Step::Idle;
        }
        if self.watched {
            return self.step_watched();
        }
        self.work::<false, false>()
    }

    /// A step's work. `FAULTS`: past the sites of a fault plan; `TIMED`: with a meter charged. They are copies of
    /// the code, so that a device without either pays for none of it.
    #[inline(always)]
    pub(crate) fn work<const FAULTS: bool, const TIMED: bool>(&mut self) -> Step {
        let mut spent = 0;
        if self.holding {
            self.raise_held();
        }
        if self.admin_work.is_some() {
            spent = PIECE_COST;
            if let Err(stop) = self.resume_admin() {
                self.fail(stop.into());
                return Step::Worked;
            }
            if FAULTS && self.befell() {
                return Step::Worked;
            }
        }
        if self.favours > 0 && self.favoured < self.queues.len() {
            self.favours -= 1;
            for _ in 0..FAVOURED_LOOKS {
                let cost = self.serve_queue::<FAULTS, TIMED>(self.favoured);
                if (FAULTS && self.befell()) || cost > 0 {
                    return Step::Worked;
                }
            }
        }
        self.serve_round::<FAULTS, TIMED>(spent)
    }

    /// Serves the queues that have not had their turn in this round.
    fn serve_round<const FAULTS: bool, const TIMED: bool>(&mut self, mut spent: u32) -> Step {
        // A command of the admin queue may add a queue or take one away.
        while self.next < self.queues.len() {
            let index = self.next;
            self.next += 1;
            let cost = self.serve_queue::<FAULTS, TIMED>(index);
            if FAULTS && self.befell() {
                return Step::Worked;
            }
            if cost > 0 {
                self.favoured = index;
                self.favours = self.turns.favours;
                spent += cost;
                if spent >= self.turns.step {
                    return Step::Worked;
                }
            }
        }
        self.next = 0;
        if spent > 0 { Step::Worked } else { Step::Idle }
    }

    /// Gives a queue its turn; what that cost, 0 if there was nothing to do.
    #[inline]
    fn serve_queue<const FAULTS: bool, const TIMED: bool>(&mut self, index: usize) -> u32 {
        let mut spent = 0;
        let queue = &self.queues[index];
        let result = if queue.id().is_admin() {
            self.serve_admin().map(|cost| spent = cost)
        } else if queue.is_serving() {
            self.serve_io::<FAULTS, TIMED>(index, &mut spent)
        } else {
            return 0;
        };
        if let Err(stop) = result {
            self.halt(index, stop);
            // That is work, too: it may have raised an interrupt.
            spent = spent.max(1);
        }
        spent
    }

    /// Runs a burst of an I/O queue, past the sites of a fault plan or not. A queue with a command
    /// under way gets on with that one.
    #[inline]
    fn serve_io<const FAULTS: bool, const TIMED: bool>(
        &mut self,
        index: usize,
        spent: &mut u32,
    ) -> Result<(), Stop> {
        let queue = &mut self.queues[index];
        let context = queue.id().0;
        if queue.under_way().is_some() {
            *spent = PIECE_COST;
            let progress = if FAULTS {
                let (dma, firmware) = (&mut self.dma, &mut self.firmware);
                match burst::resume(&mut self.faults, queue, dma, firmware)? {
                    Some(progress) => progress,
                    None => return Ok(()),
                }
            } else if TIMED {
                timing::resume(&mut self.timing, queue, &mut self.dma, &mut self.firmware)
            } else {
                self.firmware.resume_io(context, &mut Host(&mut self.dma))
            };
            match progress {
                Progress::More => {
                    if TIMED {
                        timing::suspended(&mut self.timing, queue);
                    }
                    return Ok(());
                }
                Progress::Done(completion) => {
                    queue.set_under_way(None);
                    if TIMED {
                        timing::completed(&mut self.timing, queue, &completion.into());
                    }
                    if FAULTS {
                        let (dma, doorbells) = (&self.dma, &self.doorbells);
                        burst::post(&mut self.faults, queue, dma, doorbells, completion)?;
                    } else {
                        queue.post(&self.dma, completion)?;
                    }
                }
            }
        }
        let mut begun = false;
        while *spent < BURST && !(FAULTS && burst::befalls(&self.faults)) {
            if !queue.fetch_next(&self.dma, &self.doorbells)? {
                break;
            }
            if queue.look_ahead(&self.dma) {
                self.firmware.warm(queue.loaded());
            }
            let aborted = queue.take_abort();
            if TIMED {
                timing::fetched(&mut self.timing, queue, &mut begun);
            }
            let command = queue.current();
            let is_batch = IoOpcode(command.opcode).is_batch();
            let request = command.request();
            let mut done = CompletionWords::new(request, Status::Aborted);
            let ended = if FAULTS {
                let (dma, firmware) = (&mut self.dma, &mut self.firmware);
                match burst::begin(&mut self.faults, queue, aborted, dma, firmware)? {
                    Some(Progress::Done(completion)) => {
                        done = completion.into();
                        true
                    }
                    Some(Progress::More) => false,
                    None => {
                        *spent += 1;
                        continue;
                    }
                }
            } else if TIMED {
                let (dma, firmware) = (&mut self.dma, &mut self.firmware);
                aborted || timing::run(&mut self.timing, queue, dma, firmware, &mut done)
            } else {
                let host = &mut Host(&mut self.dma);
                aborted || self.firmware.io_to(context, command, host, &mut done)
            };
            *spent += if is_batch { PIECE_COST } else { 1 };
            if ended && FAULTS {
                let (dma, doorbells) = (&self.dma, &self.doorbells);
                burst::post(&mut self.faults, queue, dma, doorbells, done.into())?;
            } else if ended {
                if TIMED {
                    timing::completed(&mut self.timing, queue, &done);
                }
                queue.post_words(&self.dma, &done)?;
            } else {
                if TIMED {
                    timing::suspended(&mut self.timing, queue);
                }
                queue.set_under_way(Some(request));
                *spent = (*spent).max(PIECE_COST);
                break;
            }
        }
        if FAULTS && burst::befalls(&self.faults) {
            return Ok(());
        }
        if TIMED {
            return self.announce_timed(index);
        }
        self.announce(index)
    }

    /// Raises the interrupt for the completions that a queue posted, if it is wanted now.
    #[inline]
    pub(crate) fn announce(&mut self, index: usize) -> Result<(), Stop> {
        let queue = &mut self.queues[index];
        match queue.announce(&self.dma, &self.clock)? {
            Announce::No => {}
            Announce::Raise(vector) => {
                let id = queue.id();
                self.raise(Some(id), vector);
            }
            Announce::Hold => self.holding = true,
        }
        Ok(())
    }

    /// Raises the interrupts that have waited for more completions for long enough.
    #[cold]
    fn raise_held(&mut self) {
        self.holding = false;
        let now = (self.clock)();
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            let id = queue.id();
            match queue.announce_due(&self.dma, now) {
                Ok(Announce::No) => {}
                Ok(Announce::Raise(vector)) => self.raise(Some(id), vector),
                Ok(Announce::Hold) => self.holding = true,
                Err(stop) => self.halt(index, stop),
            }
            if !self.running {
                return;
            }
        }
    }

    /// A queue cannot go on: it stops, and with the admin queue the device.
    #[cold]
    pub(crate) fn halt(&mut self, index: usize, stop: Stop) {
        let queue = &mut self.queues[index];
        if queue.id().is_admin() {
            return self.fail(stop.into());
        }
        // What was posted before it went wrong is there to be taken.
        let (id, last) = (queue.id(), queue.announce_last(&self.dma));
        if let Some(vector) = last {
            self.raise(Some(id), vector);
        }
        let queue = &mut self.queues[index];
        if queue.under_way().is_some() {
            self.firmware.abandon_io(queue.id().0);
        }
        queue.stop();
    }

    /// Whether there are queues to look at: if not, only an access of the host brings work.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// A record that data-path engine `engine` writes to a RINGBUF map, as
    /// [`Firmware::engine_ringbuf_output`], with its interrupt. A device that does not run
    /// writes none: `InvalidMap`.
    pub fn engine_ringbuf_output(
        &mut self,
        engine: u32,
        map: MapHandle,
        data: &[u8],
        flags: u64,
    ) -> Status {
        if !self.running {
            return Status::InvalidMap;
        }
        let host = &mut Host(&mut self.dma);
        let done = self
            .firmware
            .engine_ringbuf_output(engine, map, data, flags, host);
        if let Some(vector) = done.interrupt {
            self.raise(None, vector);
        }
        done.status
    }

    /// Raises an interrupt, of a queue where it is one's.
    pub(crate) fn raise(&mut self, queue: Option<QueueId>, vector: u32) {
        if self.faults.is_some() {
            self.raise_with_faults(queue, vector);
        } else {
            self.msix.raise(vector);
        }
    }

    /// The firmware, for tests and benches that call it without the bus in between.
    pub fn firmware_mut(&mut self) -> &mut Firmware<DeviceMemory> {
        &mut self.firmware
    }

    /// Stops the device until the next reset, or until ENABLE is cleared.
    pub(crate) fn fail(&mut self, cause: FatalCause) {
        self.cut_short();
        self.running = false;
        self.registers
            .set(regs::STATUS, DeviceStatus::FATAL.bits().into());
        self.registers.set(regs::FATAL_CAUSE, cause.0.into());
    }

    /// Function-level reset: only the DMA mappings, which are the transport's, and the reset
    /// count survive; and the interrupts' routes, where they are the transport's as well
    /// (`keep_routes`).
    pub fn reset(&mut self) {
        if self.is_gone() {
            return;
        }
        self.stop();
        self.power_on();
    }

    /// What a reset does beside forgetting queues and maps.
    fn power_on(&mut self) {
        let forgotten = self.registers.get(regs::RESET_COUNT);
        self.registers.reset();
        self.registers.set(regs::RESET_COUNT, forgotten);
        self.config.reset();
        match self.keeps_routes {
            true => {
                let routed = self.msix.reset_but_routes();
                self.config.set_msix_enabled(routed);
            }
            false => self.msix.reset(),
        }
        self.doorbells.zero(0, self.doorbells.len());
        self.apply_config();
    }

    /// Forgets queues and maps, which RESET_COUNT shows.
    pub(crate) fn stop(&mut self) {
        self.stop_queues();
        self.firmware.reset();
    }

    /// Forgets queues, which RESET_COUNT shows.
    fn stop_queues(&mut self) {
        if let Some(engine) = self.faults.as_deref_mut() {
            engine.reset();
        }
        self.cut_short();
        self.running = false;
        self.queues.clear();
        self.holding = false;
        self.next = 0;
        self.favours = 0;
        let count = self.registers.get(regs::RESET_COUNT) as u32;
        self.registers
            .set(regs::RESET_COUNT, count.wrapping_add(1).into());
    }

    /// CONTROL.ENABLE was set: takes up the admin queue.
    fn enable(&mut self) {
        let Some(depth) = RingDepth::new(self.registers.get(regs::ADMIN_DEPTH) as u32) else {
            return self.fail(FatalCause::AdminQueueConfig);
        };
        let spec = QueueSpec {
            id: QueueId::ADMIN,
            depth,
            vector: self.registers.get(regs::ADMIN_VECTOR) as u32,
            coalescing: Coalescing::default(),
            sq: self.registers.get(regs::ADMIN_SQ),
            cq: self.registers.get(regs::ADMIN_CQ),
            notify: 0,
        };
        if !spec.is_valid(self.queue_depth_max, self.msix.vectors()) {
            return self.fail(FatalCause::AdminQueueConfig);
        }
        if spec.check_memory(&self.dma).is_err() {
            return self.fail(FatalCause::RingDma);
        }
        self.clear_doorbells(QueueId::ADMIN);
        self.queues.push(Queue::new(&spec));
        self.running = true;
        self.registers
            .set(regs::STATUS, DeviceStatus::READY.bits().into());
    }

    /// CONTROL was written.
    fn control(&mut self, before: Control, now: Control) {
        match (
            before.contains(Control::ENABLE),
            now.contains(Control::ENABLE),
        ) {
            (false, true) => self.enable(),
            (true, false) => {
                self.stop();
                self.registers
                    .set(regs::STATUS, DeviceStatus::empty().bits().into());
                self.registers
                    .set(regs::FATAL_CAUSE, FatalCause::None.0.into());
            }
            _ => {}
        }
    }

    /// Takes over into the other parts what config space says now.
    fn apply_config(&mut self) {
        if self.is_gone() {
            return;
        }
        let master = self.config.bus_master();
        self.dma.set_enabled(master);
        self.msix.set_control(
            self.config.msix_enabled() && master,
            self.config.msix_masked(),
        );
        let status = self.registers.get(regs::STATUS) as u32;
        let ready = DeviceStatus::from_bits_retain(status).contains(DeviceStatus::READY);
        self.running = ready && !self.config.asleep();
    }

    /// Queues' counts start from zero, whatever an earlier queue of that id left.
    pub(crate) fn clear_doorbells(&mut self, queue: QueueId) {
        let stride = offmap_abi::notify::DOORBELL_STRIDE as usize;
        let first = usize::from(queue.0) * stride;
        for offset in (first..first + stride).step_by(8) {
            self.doorbells.store_u64(offset, 0, Ordering::Release);
        }
    }

    // The host's accesses, as a transport passes them on.

    /// Reads config space.
    ///
    /// # Errors
    ///
    /// [`IoError::ConfigRange`].
    pub fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        self.config.read(offset, buf)?;
        if self.is_gone() {
            buf.fill(0xff);
        }
        Ok(())
    }

    /// Writes config space; a write that initiates a function-level reset carries it out.
    ///
    /// # Errors
    ///
    /// [`IoError::ConfigRange`].
    pub fn config_write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        if self.is_gone() {
            // The write is lost; whether the access was one at all still shows.
            return self.config.read(offset, &mut vec![0; data.len()]);
        }
        if self.config.write(offset, data)?.reset {
            self.reset();
        } else {
            self.apply_config();
        }
        Ok(())
    }

    /// Lets the device reach `len` bytes at `offset` of `fd` at `iova`.
    ///
    /// # Errors
    ///
    /// As [`Dma::map`].
    pub fn dma_map(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        offset: u64,
        iova: Iova,
        len: usize,
    ) -> Result<(), IoError> {
        self.dma.map(fd, offset, iova, len)
    }

    /// As [`Device::dma_map`], with what the device may do there, and without a file where
    /// the host has none to give: then every access is a fault.
    ///
    /// # Errors
    ///
    /// As [`Dma::map`].
    pub fn dma_map_as(
        &mut self,
        file: Option<(std::os::fd::BorrowedFd<'_>, u64)>,
        iova: Iova,
        len: usize,
        permission: Permission,
    ) -> Result<(), IoError> {
        self.dma.map_as(file, iova, len, permission)
    }

    /// Takes a mapping away.
    ///
    /// # Errors
    ///
    /// As [`Dma::unmap`].
    pub fn dma_unmap(&mut self, iova: Iova, len: usize) -> Result<(), IoError> {
        if let Some(meter) = self.timing.as_deref_mut() {
            meter.forget_translations();
        }
        self.dma.unmap(iova, len)
    }

    /// Takes away every mapping in a range, `None` all there are. No access follows.
    ///
    /// # Errors
    ///
    /// As [`Dma::unmap_range`].
    pub fn dma_unmap_range(&mut self, range: Option<(Iova, u64)>) -> Result<(), IoError> {
        if let Some(meter) = self.timing.as_deref_mut() {
            meter.forget_translations();
        }
        match range {
            Some((iova, len)) => self.dma.unmap_range(iova, len).map(drop),
            None => {
                self.dma.unmap_all();
                Ok(())
            }
        }
    }

    /// DMA mappings at the moment, and files that are mapped for them.
    pub fn dma_mapped(&self) -> (usize, usize) {
        self.dma.mapped()
    }

    /// The host has gone, and another one may come: the function is reset, and nothing of the
    /// host's memory stays mapped. The doorbells are new ones, because the host may still have
    /// the old ones mapped.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] when there is no memory for doorbells; the old ones stay then.
    pub fn leave_host(&mut self) -> Result<(), IoError> {
        self.msix.reset();
        if self.keep_maps && !self.is_gone() {
            self.stop_queues();
            self.firmware.leave();
            self.power_on();
        } else {
            self.reset();
        }
        self.dma.unmap_all();
        self.doorbells = Self::new_doorbells()?;
        Ok(())
    }

    /// The file of the doorbells, in which they stand where they stand in BAR 0.
    pub fn doorbells_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.doorbells.fd()
    }

    /// Raises a vector on behalf of the host, or masks it in the MSI-X table, as
    /// [`Device::enable_vector`] unmasks it.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn poke_vector(&mut self, vector: u32, masked: Option<bool>) -> Result<(), IoError> {
        match masked {
            None => self.msix.raise_checked(vector),
            Some(masked) => self.msix.set_masked(vector, masked),
        }
    }

    /// From now on a reset leaves interrupts routed and unmasked: for a transport whose other side
    /// owns the MSI-X table, as a kernel that lends the function does. It puts the table back after a
    /// reset by itself, and never says its routes again.
    #[cfg(feature = "vfio-user")]
    pub(crate) fn keep_routes(&mut self) {
        self.keeps_routes = true;
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u32 {
        self.msix.vectors()
    }

    /// Routes a vector, unmasks it and enables MSI-X, as the owner of the host's interrupts
    /// does.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`], or what [`Interrupt::new`] returns.
    pub fn enable_vector(&mut self, vector: u32) -> Result<Interrupt, IoError> {
        let interrupt = self.msix.route(vector)?;
        self.config.set_msix_enabled(true);
        self.apply_config();
        Ok(interrupt)
    }

    /// As [`Device::enable_vector`], with an interrupt that the host brought along: how a front
    /// end for another process passes its eventfd on.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn enable_vector_to(&mut self, vector: u32, interrupt: Interrupt) -> Result<(), IoError> {
        self.msix.route_to(vector, interrupt)?;
        self.config.set_msix_enabled(true);
        self.apply_config();
        Ok(())
    }

    /// Silences and masks a vector, and disables MSI-X with the last.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn disable_vector(&mut self, vector: u32) -> Result<(), IoError> {
        if !self.msix.silence(vector)? {
            self.config.set_msix_enabled(false);
        }
        self.apply_config();
        Ok(())
    }

    /// Maps part of a BAR: the doorbells, whole; all else is trapped.
    ///
    /// # Errors
    ///
    /// [`IoError::NoBar`], [`IoError::BarAccess`], or what [`BarMapping::new`] returns.
    pub fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        let size = bar_info(bar)?.size_bytes;
        let inside = offset.0 <= size && len as u64 <= size - offset.0;
        if len == 0 || !inside {
            return Err(IoError::BarAccess { bar, offset, len });
        }
        let doorbells = (regs::BAR_REGISTERS, regs::DOORBELLS);
        if (bar, offset.0) == doorbells && len as u64 == regs::DOORBELLS_BYTES {
            BarMapping::new(self.doorbells.fd(), self.doorbells.fd_offset(), len).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A register was written: carries out what that means.
    pub(crate) fn register_written(&mut self, offset: u64, before: u64, now: u64) {
        if offset == regs::CONTROL {
            self.control(
                Control::from_bits_retain(before as u32),
                Control::from_bits_retain(now as u32),
            );
        }
        // A KICK needs no more than that the front end wakes the device, which it does for
        // every write.
        if offset == regs::KICK {
            self.kicked = true;
            self.diagnostics.kicks += 1;
        }
    }

    /// Whether the host has enabled the device; some registers are read-only meanwhile.
    pub fn is_enabled(&self) -> bool {
        let control = self.registers.get(regs::CONTROL) as u32;
        Control::from_bits_retain(control).contains(Control::ENABLE)
    }
}

/// Size and kind of a BAR.
///
/// # Errors
///
/// [`IoError::NoBar`].
pub fn bar_info(bar: u8) -> Result<BarInfo, IoError> {
    match bar {
        regs::BAR_REGISTERS => Ok(BarInfo {
            size_bytes: regs::BAR0_BYTES,
            is_64bit: true,
            prefetchable: false,
        }),
        regs::BAR_WINDOW => Ok(BarInfo {
            size_bytes: regs::WINDOW_BYTES,
            is_64bit: true,
            prefetchable: true,
        }),
        _ => Err(IoError::NoBar { bar }),
    }
}
