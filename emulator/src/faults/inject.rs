//! The device's side: what each site does with the plan's answer.
//!
//! Everything here runs only on a device that has a plan.

use super::engine::{Engine, Event, Fired, Passage};
use super::plan::FaultPlan;
use super::report::{FaultReport, Injection};
use super::rule::{Behaviour, Site};
use crate::config::DeviceMemory;
use crate::device::{Device, Step};
use crate::dma::{Dma, ENTRY_WORDS, Host};
use crate::queue::{Queue, Stop};
use crate::regs::Width;
use offmap_abi::admin::{Limit, LimitDetail, MapCreateBody};
use offmap_abi::regs::{self, FatalCause};
use offmap_abi::{AdminOpcode, Completion, DevAddr, QueueId, Status, Submission};
use offmap_device_io::{BarOffset, DmaBuffer};
use offmap_firmware_model::hook::{BitFlips, MemoryHook, Verdict};
use offmap_firmware_model::{Firmware, HostFault, HostMemory, Progress};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

/// What became of a command that was fetched.
pub(crate) enum Fetched {
    /// It runs, perhaps with bits flipped.
    Run(Submission),
    /// It is answered without being run.
    Answer(Completion),
    /// It is never answered.
    Lost,
}

/// What becomes of a read of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AtRead {
    /// It is answered.
    Plain,
    /// Nobody answers: all ones.
    Ones,
    /// It is answered with these bits flipped.
    Flip(BitFlips),
}

impl Device {
    /// Gives the device a plan of what to do wrong, in place of the one before. Counts start
    /// anew. What the plan before broke stays broken: a hang until a reset, a removal for good,
    /// and what it held back still comes in its time.
    ///
    /// The plan outlives resets. Once a device has had a plan its steps cost a little more, even
    /// with an empty one in its place.
    pub fn set_faults(&mut self, plan: &FaultPlan, seed: u64) {
        let clock = &self.clock;
        let engine = self
            .faults
            .get_or_insert_with(|| Box::new(Engine::new(Arc::clone(clock))));
        engine.load(plan, seed);
        self.watched = true;
    }

    /// What the plan has done so far; without one, nothing.
    pub fn fault_report(&self) -> FaultReport {
        self.faults
            .as_ref()
            .map_or_else(FaultReport::default, |engine| engine.report())
    }

    /// How many faults the plan has injected so far.
    pub fn faults_injected(&self) -> u64 {
        self.faults.as_ref().map_or(0, |engine| engine.injected())
    }

    /// The first [`FaultReport::INJECTIONS_MAX`] faults that the plan has injected so far, in
    /// order: what [`FaultReport::injections`] says, without a copy.
    pub fn fault_injections(&self) -> &[Injection] {
        self.faults
            .as_ref()
            .map_or(&[], |engine| engine.injections())
    }

    /// [`Device::fault_injections`], which are forgotten: who takes them often enough misses none.
    pub fn take_fault_injections(&mut self) -> Vec<Injection> {
        self.faults
            .as_deref_mut()
            .map_or_else(Vec::new, |engine| engine.take_injections())
    }

    /// The clock that the device goes by, in place of the system's: time since a fixed moment,
    /// never going back.
    pub fn set_clock(&mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) {
        self.clock = Arc::new(clock);
        if let Some(engine) = self.faults.as_deref_mut() {
            engine.set_clock(Arc::clone(&self.clock));
        }
    }

    /// Whether the device was unplugged.
    pub(crate) fn is_gone(&self) -> bool {
        self.faults.as_ref().is_some_and(|engine| engine.gone)
    }

    /// A step of a device with a plan.
    #[inline(never)]
    pub(crate) fn step_with_faults(&mut self) -> Step {
        let Some(engine) = self.faults.as_deref_mut() else {
            return Step::Idle;
        };
        engine.tick();
        if engine.stopped {
            return Step::Idle;
        }
        engine.decide(Site::Step, Passage::default());
        if engine.event().is_some() {
            self.settle();
            return Step::Worked;
        }
        let slow = engine.is_slow();
        let released = self.release_held();
        if slow {
            // Time goes by: the device is busy, and must not park over it.
            return Step::Worked;
        }
        match self.work::<true, false>() {
            Step::Idle if released => Step::Worked,
            step => step,
        }
    }

    /// Posts and raises what was held back and is due now; whether there was any.
    fn release_held(&mut self) -> bool {
        let mut any = false;
        while let Some((id, completion)) =
            self.faults.as_deref_mut().and_then(Engine::due_completion)
        {
            any = true;
            let Some(index) = self.queues.iter().position(|q| q.id() == id) else {
                continue;
            };
            let queue = &mut self.queues[index];
            if queue.is_stopped() {
                continue;
            }
            let posted = queue.post(&self.dma, completion);
            if let Err(stop) = posted.and_then(|()| self.announce(index)) {
                self.halt(index, stop);
            }
        }
        while let Some(vector) = self.faults.as_deref_mut().and_then(Engine::due_interrupt) {
            any = true;
            self.msix.raise(vector);
        }
        any
    }

    /// Carries out what befalls the whole device.
    pub(crate) fn settle(&mut self) {
        let event = self.faults.as_deref_mut().and_then(Engine::take_event);
        match event {
            // The queue's own is carried out where the queue is known.
            None | Some(Event::StopQueue) => {}
            Some(Event::StopFirmware) => {
                if let Some(engine) = self.faults.as_deref_mut() {
                    engine.stopped = true;
                }
            }
            Some(Event::Fatal) => {
                // A device that is not enabled has no firmware running that could stop.
                if self.running {
                    self.fail(FatalCause::Firmware);
                }
            }
            Some(Event::Reset) => self.restart_firmware(),
            Some(Event::Unplug) => {
                if let Some(engine) = self.faults.as_deref_mut() {
                    engine.gone = true;
                }
                self.stop();
                self.dma.set_enabled(false);
                self.msix.reset();
            }
        }
    }

    /// Carries out what has befallen the device in a queue's turn; whether anything has.
    pub(crate) fn befell(&mut self) -> bool {
        let pending = self.event_pending();
        if pending {
            self.settle();
        }
        pending
    }

    /// Whether the burst at hand must end, because something is about to befall the device.
    pub(crate) fn event_pending(&self) -> bool {
        self.faults
            .as_ref()
            .is_some_and(|engine| engine.event().is_some())
    }

    /// Runs a command of the firmware's from the admin queue. `None`: something befell the
    /// device, and nobody will be answered.
    pub(crate) fn admin_with_faults(
        &mut self,
        command: &Submission,
    ) -> Result<Option<Progress>, Stop> {
        let Some(engine) = self.faults.as_deref_mut() else {
            return Ok(Some(self.firmware.admin(command, &mut Host(&mut self.dma))));
        };
        let shared = RefCell::new(engine);
        let host = &mut FaultyHost {
            dma: &mut self.dma,
            engine: &shared,
            queue: QueueId::ADMIN.0,
        };
        let progress = self.firmware.admin(command, host);
        if let Some(engine) = self.faults.as_deref_mut() {
            Planned(engine).after_run()?;
        }
        Ok((!self.event_pending()).then_some(progress))
    }

    /// The site [`Site::Fetch`], of the admin queue.
    pub(crate) fn fetch_with_faults(
        &mut self,
        queue: QueueId,
        words: [u64; ENTRY_WORDS],
    ) -> Result<Fetched, Stop> {
        match self.faults.as_deref_mut() {
            Some(engine) => Planned(engine).fetched(queue, words, &self.firmware),
            None => Ok(Fetched::Run(Submission::from_words(words))),
        }
    }

    /// The site [`Site::Complete`]: posts a completion, or what the plan makes of it.
    pub(crate) fn post_with_faults(
        &mut self,
        index: usize,
        completion: Completion,
    ) -> Result<(), Stop> {
        let queue = &mut self.queues[index];
        match self.faults.as_deref_mut() {
            Some(engine) => Planned(engine).post(queue, &self.dma, &self.doorbells, completion),
            None => queue.post(&self.dma, completion),
        }
    }

    /// The site [`Site::Interrupt`].
    pub(crate) fn raise_with_faults(&mut self, queue: Option<QueueId>, vector: u32) {
        let passage = Passage {
            queue: queue.map(|queue| queue.0),
            ..Passage::default()
        };
        let fired = match self.faults.as_deref_mut() {
            Some(engine) => engine.decide(Site::Interrupt, passage),
            None => None,
        };
        match fired.map(|fired| fired.behaviour) {
            None | Some(Behaviour::Slow { .. }) => self.msix.raise(vector),
            Some(Behaviour::Duplicate) => {
                self.msix.raise(vector);
                self.msix.raise(vector);
            }
            Some(Behaviour::Delay(delay)) => {
                if let Some(engine) = self.faults.as_deref_mut() {
                    engine.hold_interrupt(vector, delay);
                }
            }
            Some(_) => {}
        }
    }

    /// The site [`Site::RegisterRead`].
    pub(crate) fn read_with_faults(&mut self, bar: u8, offset: BarOffset, width: Width) -> AtRead {
        let Some(engine) = self.faults.as_deref_mut() else {
            return AtRead::Plain;
        };
        if engine.gone {
            return AtRead::Ones;
        }
        let passage = Passage {
            register: (bar == regs::BAR_REGISTERS).then_some(offset.0),
            ..Passage::default()
        };
        let Some(fired) = engine.decide(Site::RegisterRead, passage) else {
            return AtRead::Plain;
        };
        match fired.behaviour {
            Behaviour::Drop => AtRead::Ones,
            Behaviour::Flip { bits, at } => {
                AtRead::Flip(engine.flips(fired, bits, at, width.bytes() as usize))
            }
            _ => {
                self.settle();
                match self.is_gone() {
                    true => AtRead::Ones,
                    false => AtRead::Plain,
                }
            }
        }
    }

    /// The site [`Site::RegisterWrite`]; whether the write is lost.
    pub(crate) fn write_with_faults(&mut self, bar: u8, offset: BarOffset) -> bool {
        let Some(engine) = self.faults.as_deref_mut() else {
            return false;
        };
        if engine.gone {
            return true;
        }
        let passage = Passage {
            register: (bar == regs::BAR_REGISTERS).then_some(offset.0),
            ..Passage::default()
        };
        let Some(fired) = engine.decide(Site::RegisterWrite, passage) else {
            return false;
        };
        self.settle();
        fired.behaviour == Behaviour::Drop || self.is_gone()
    }

    /// The firmware starts anew by itself. Config space, the interrupts' routes and the DMA
    /// mappings are the bus side's and stay.
    fn restart_firmware(&mut self) {
        self.stop();
        let forgotten = self.registers.get(regs::RESET_COUNT);
        self.registers.reset();
        self.registers.set(regs::RESET_COUNT, forgotten);
        self.doorbells.zero(0, self.doorbells.len());
    }
}

/// The plan of a device, in the burst of a queue.
pub(crate) struct Planned<'e>(pub(crate) &'e mut Engine);

impl Planned<'_> {
    /// The passages of this queue are this command's from now on.
    pub(crate) fn begin(
        &mut self,
        queue: QueueId,
        command: &Submission,
        firmware: &Firmware<DeviceMemory>,
    ) {
        self.0.begin(queue, command, |map| firmware.map_type(map));
    }

    /// The site [`Site::Fetch`].
    pub(crate) fn fetched(
        &mut self,
        queue: QueueId,
        mut words: [u64; ENTRY_WORDS],
        firmware: &Firmware<DeviceMemory>,
    ) -> Result<Fetched, Stop> {
        let command = Submission::from_words(words);
        self.begin(queue, &command, firmware);
        let passage = Passage {
            queue: Some(queue.0),
            ..Passage::default()
        };
        let Some(fired) = self.0.decide(Site::Fetch, passage) else {
            return Ok(Fetched::Run(command));
        };
        Ok(match fired.behaviour {
            Behaviour::Flip { bits, at } => {
                let flips = self.0.flips(fired, bits, at, size_of_val(&words));
                flip_words(flips, &mut words);
                Fetched::Run(Submission::from_words(words))
            }
            Behaviour::Fail | Behaviour::Tear { .. } => return Err(Stop::Dma),
            Behaviour::NoMemory => {
                Fetched::Answer(no_memory(&command, queue, firmware.config().memory_bytes))
            }
            Behaviour::Slow { .. } => Fetched::Run(command),
            // Dropped, or the device comes to harm before it can run it.
            _ => Fetched::Lost,
        })
    }

    /// With its accesses watched.
    pub(crate) fn run(
        &mut self,
        queue: QueueId,
        command: Option<&Submission>,
        dma: &mut Dma,
        firmware: &mut Firmware<DeviceMemory>,
    ) -> Progress {
        let shared = RefCell::new(&mut *self.0);
        let host = &mut FaultyHost {
            dma,
            engine: &shared,
            queue: queue.0,
        };
        let hook = &mut FaultyMemory {
            engine: &shared,
            queue: queue.0,
        };
        match command {
            Some(command) => firmware.io_hooked(queue.0, command, host, hook),
            None => firmware.resume_io_hooked(queue.0, host, hook),
        }
    }

    /// The queue stops, if its memory was torn.
    pub(crate) fn after_run(&mut self) -> Result<(), Stop> {
        if self.0.event() == Some(Event::StopQueue) {
            self.0.take_event();
            return Err(Stop::Dma);
        }
        Ok(())
    }

    /// The site [`Site::Complete`].
    pub(crate) fn post(
        &mut self,
        queue: &mut Queue,
        dma: &Dma,
        doorbells: &DmaBuffer,
        completion: Completion,
    ) -> Result<(), Stop> {
        let id = queue.id();
        let passage = Passage {
            queue: Some(id.0),
            ..Passage::default()
        };
        let Some(fired) = self.0.decide(Site::Complete, passage) else {
            queue.post(dma, completion)?;
            self.0.overtaken(id);
            return Ok(());
        };
        match fired.behaviour {
            Behaviour::Delay(delay) => self.0.hold(id, completion, delay),
            Behaviour::Reorder { behind } => self.0.hold_behind(id, completion, behind),
            Behaviour::Duplicate => {
                queue.post(dma, completion)?;
                queue.post_again(dma, doorbells, completion)?;
                self.0.overtaken(id);
            }
            Behaviour::Flip { bits, at } => {
                let flips = self.0.flips(fired, bits, at, ENTRY_WORDS * 8);
                queue.post_changed(dma, completion, |words| flip_words(flips, words))?;
                self.0.overtaken(id);
            }
            Behaviour::Fail => return Err(Stop::Dma),
            Behaviour::Tear { bytes } => {
                queue.post_torn(dma, completion, bytes as usize / 8)?;
                return Err(Stop::Dma);
            }
            Behaviour::Slow { .. } => {
                queue.post(dma, completion)?;
                self.0.overtaken(id);
            }
            // Dropped, or the device comes to harm before it can post it.
            _ => {}
        }
        Ok(())
    }
}

/// Flips bits of a ring entry, seen as its bytes.
fn flip_words(flips: BitFlips, words: &mut [u64; ENTRY_WORDS]) {
    let mut bytes = [0; ENTRY_WORDS * 8];
    for (to, word) in bytes.chunks_exact_mut(8).zip(&*words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    flips.apply(&mut bytes);
    for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut image = [0; 8];
        image.copy_from_slice(from);
        *word = u64::from_le_bytes(image);
    }
}

/// How a command ends that finds no memory: a map with what its elements would take at least.
fn no_memory(command: &Submission, queue: QueueId, memory_bytes: u64) -> Completion {
    let completion = Completion::new(command.request(), Status::NoMemory);
    if !queue.is_admin() || AdminOpcode(command.opcode) != AdminOpcode::MapCreate {
        return completion;
    }
    let body: MapCreateBody = command.body();
    let element = u64::from(body.key_size.get()) + u64::from(body.value_size.get());
    let detail = LimitDetail {
        limit: Limit::Memory.0.into(),
        reserved: 0.into(),
        asked: element.saturating_mul(body.max_entries.get().into()).into(),
        allowed: 0.into(),
        used: memory_bytes.into(),
    };
    completion.with_payload(detail.as_bytes())
}

/// Host memory as a command reaches it: the sites [`Site::DmaRead`] and [`Site::DmaWrite`].
struct FaultyHost<'d, 'e> {
    dma: &'d mut Dma,
    engine: &'e RefCell<&'d mut Engine>,
    queue: u16,
}

/// What becomes of a DMA.
enum Transfer {
    Whole,
    Flip(BitFlips),
    /// So many bytes, and then a fault.
    Part(usize),
}

impl FaultyHost<'_, '_> {
    fn decide(&mut self, site: Site, iova: u64, len: usize) -> Transfer {
        let engine = &mut **self.engine.borrow_mut();
        // Between a removal and the end of its step nothing is reached any more.
        if engine.event().is_some_and(Event::ends_access) {
            return Transfer::Part(0);
        }
        let passage = Passage {
            queue: Some(self.queue),
            at: Some(iova),
            ..Passage::default()
        };
        let Some(fired) = engine.decide(site, passage) else {
            return Transfer::Whole;
        };
        match fired.behaviour {
            Behaviour::Flip { bits, at } => Transfer::Flip(engine.flips(fired, bits, at, len)),
            Behaviour::Fail => Transfer::Part(0),
            Behaviour::Tear { bytes } => {
                engine.raise(Event::StopQueue);
                Transfer::Part(len.min(bytes as usize))
            }
            Behaviour::Fatal | Behaviour::Reset | Behaviour::Unplug => Transfer::Part(0),
            _ => Transfer::Whole,
        }
    }
}

impl HostMemory for FaultyHost<'_, '_> {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        match self.decide(Site::DmaRead, iova, into.len()) {
            Transfer::Whole => Host(self.dma).read(iova, into),
            Transfer::Flip(flips) => {
                Host(self.dma).read(iova, into)?;
                flips.apply(into);
                Ok(())
            }
            // What a read got before it failed reaches nobody.
            Transfer::Part(_) => Err(HostFault),
        }
    }

    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        match self.decide(Site::DmaWrite, iova, from.len()) {
            Transfer::Whole => Host(self.dma).write(iova, from),
            Transfer::Flip(flips) => {
                let mut changed = from.to_vec();
                flips.apply(&mut changed);
                Host(self.dma).write(iova, &changed)
            }
            Transfer::Part(len) => {
                if let Some(part) = from.get(..len) {
                    Host(self.dma).write(iova, part)?;
                }
                Err(HostFault)
            }
        }
    }
}

/// Device memory as a command reaches it: the sites [`Site::MemoryRead`] and
/// [`Site::MemoryWrite`].
struct FaultyMemory<'d, 'e> {
    engine: &'e RefCell<&'d mut Engine>,
    queue: u16,
}

impl FaultyMemory<'_, '_> {
    fn verdict(&mut self, site: Site, at: DevAddr, len: usize) -> Verdict {
        let engine = &mut **self.engine.borrow_mut();
        let passage = Passage {
            queue: Some(self.queue),
            at: Some(at.0),
            ..Passage::default()
        };
        let Some(fired @ Fired { behaviour, .. }) = engine.decide(site, passage) else {
            return Verdict::Pass;
        };
        let Behaviour::Flip { bits, at } = behaviour else {
            return Verdict::Pass;
        };
        match engine.memory_flip(fired, bits, at, len) {
            None => Verdict::Pass,
            Some(Some(flips)) => Verdict::Flip(flips),
            Some(None) => Verdict::Media,
        }
    }
}

impl MemoryHook for FaultyMemory<'_, '_> {
    fn read(&mut self, at: DevAddr, len: usize) -> Verdict {
        self.verdict(Site::MemoryRead, at, len)
    }

    fn write(&mut self, at: DevAddr, len: usize) -> Verdict {
        self.verdict(Site::MemoryWrite, at, len)
    }
}
