//! The simulated world: the device, the memory between it and the hosts, time, and events.
//!
//! Everything moves in [`World::tick`], whose choices the present action's seed makes. A tick
//! applies some of the stores under way and lets the device do a step, or not.

use crate::check::{Check, Fault};
use crate::excuse::Excuses;
use crate::faults::FaultSetup;
use crate::memory::{Arrived, Memory, Pool, Posted};
use crate::mutation::Mutation;
use crate::rng::Rng;
use offmap_abi::regs;
use offmap_abi::{IoOpcode, QueueId, Status, Submission};
use offmap_device_io::{BarOffset, DmaBuffer, IoError, Iova};
use offmap_emulator::faults::FaultPlan;
use offmap_emulator::regs::Width;
use offmap_emulator::{Device, DeviceConfig, EmulatorError, Step};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A parked device looks again after this time (rule N3), in nanoseconds.
const LOOK_AGAIN_NS: u64 = 1_000_000;
/// Time of a tick, at most.
const TICK_NS: u64 = 500;
/// Stores that one tick lets arrive, at most, in each direction.
const ARRIVALS: u64 = 24;

/// What the device's front end is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Front {
    Polling {
        idle: u32,
    },
    /// It has found nothing for a while and is about to arm.
    Arming,
    Parked {
        look_at: u64,
    },
}

/// See the head of this file.
pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) memory: Memory,
    pub(crate) pool: Pool,
    pub(crate) rng: Rng,
    /// CPU on which the driver runs now.
    cpu: usize,
    pub(crate) now_ns: u64,
    /// Counts everything that happens, so that each has a moment of its own.
    pub(crate) moment: u64,
    front: Front,
    woken: bool,
    polls_before_park: u32,
    pub(crate) stalled_until: u64,
    pub(crate) removed: bool,
    /// Nothing had befallen the device before that.
    pub(crate) removed_well: bool,
    pub(crate) resets: u64,
    pub(crate) config: DeviceConfig,
    /// The CPU that last wrote an admin register.
    admin_cpu: usize,
    pub(crate) mutation: Option<Mutation>,
    /// When each command was done, by (queue, request).
    pub(crate) done_at: BTreeMap<(u16, u64), u64>,
    posted: Vec<Posted>,
    pub(crate) again: Option<Submission>,
    /// For a mutation: a batch whose queue is gone, and its operands.
    pub(crate) orphan: Option<Submission>,
    pub(crate) orphan_keys: Vec<(u64, Vec<u8>)>,
    pub(crate) violation: Option<Fault>,
    /// What the faults that the device was given have done, and excuse.
    pub(crate) excuses: Excuses,
    /// How often faults were injected, by behaviour and site.
    pub(crate) injected: BTreeMap<String, u64>,
    /// Simulated time, for the device's delays.
    clock: Arc<AtomicU64>,
    /// The registers of the admin queue as they arrived at the device.
    admin_registers: [u64; 3],
    pub(crate) kicks: u64,
    pub(crate) parks: u64,
    pub(crate) sleeps: u64,
    pub(crate) ticks: u64,
}

impl World {
    pub(crate) fn new(
        config: &DeviceConfig,
        cpus: usize,
        mutation: Option<Mutation>,
        pool: Pool,
    ) -> Result<Self, EmulatorError> {
        let clock = Arc::new(AtomicU64::new(0));
        let mut device = Device::new(config)?;
        let time = Arc::clone(&clock);
        device.set_clock(move || Duration::from_nanos(time.load(Ordering::Relaxed)));
        Ok(Self {
            device,
            memory: Memory::new(cpus, mutation),
            pool,
            rng: Rng::new(0),
            cpu: 0,
            now_ns: 0,
            moment: 0,
            front: Front::Polling { idle: 0 },
            woken: false,
            polls_before_park: config.polls_before_park,
            stalled_until: 0,
            removed: false,
            removed_well: false,
            resets: 0,
            config: config.clone(),
            admin_cpu: 0,
            mutation,
            done_at: BTreeMap::new(),
            posted: Vec::new(),
            again: None,
            orphan: None,
            orphan_keys: Vec::new(),
            violation: None,
            excuses: Excuses::default(),
            injected: BTreeMap::new(),
            clock,
            admin_registers: [0; 3],
            kicks: 0,
            parks: 0,
            sleeps: 0,
            ticks: 0,
        })
    }

    /// The device does wrong what this setup says, from now on.
    pub(crate) fn set_faults(&mut self, setup: &FaultSetup) {
        self.device.set_faults(&setup.plan, setup.seed);
        let rules = self.device.fault_report().rules;
        let rules = rules.iter().map(|r| (r.site, r.behaviour)).collect();
        self.excuses.begin(rules, setup.plan.has_ecc());
    }

    /// The device does right again, but for what is broken, and its faults are counted.
    pub(crate) fn end_faults(&mut self) {
        if self.excuses.rules.is_empty() {
            return;
        }
        self.learn();
        for rule in self.device.fault_report().rules {
            let kind = format!("{} at {}", rule.behaviour, rule.site);
            for (kind, count) in [
                (format!("{kind}, corrected"), rule.corrected),
                (format!("{kind}, detected"), rule.detected),
                (kind, rule.injected - rule.corrected - rule.detected),
            ] {
                if count > 0 {
                    *self.injected.entry(kind).or_default() += count;
                }
            }
        }
        self.device.set_faults(&FaultPlan::new(), 0);
        self.excuses.begin(Vec::new(), false);
    }

    /// The next moment.
    pub(crate) fn stamp(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn violate(&mut self, check: Check, what: String) {
        // What a panic leaves half done violates more, which says nothing.
        if !std::thread::panicking() {
            self.violation.get_or_insert(Fault { check, what });
        }
    }

    /// Notes what the CPU that runs now has stored.
    pub(crate) fn capture(&mut self) {
        self.memory.capture(self.cpu, &mut self.rng);
        if let Some((queue, what)) = self.memory.breach.take()
            // A completion that a fault has changed may have named any command.
            && !self.excuses.wild
            && !self.excuses.queue(queue).bad
        {
            self.violate(Check::Release, what);
        }
    }

    /// The driver runs on another CPU from now on.
    pub(crate) fn run_on(&mut self, cpu: usize) {
        // What the last one has stored is its own.
        self.capture();
        self.cpu = cpu;
    }

    /// Whether nobody can call on the device: it was removed, or it or the driver panics now, and what
    /// is dropped meanwhile may not step into what that has left half done.
    fn is_gone(&self) -> bool {
        self.removed || std::thread::panicking()
    }

    /// The same, but for a device that answers all the same.
    fn is_gone_for_good(&self) -> bool {
        self.is_gone()
            && (self.mutation != Some(Mutation::AnswerAfterRemoval) || !self.removed_well)
    }

    /// Lets a little happen.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
        self.now_ns += 1 + self.rng.below(TICK_NS);
        self.clock.store(self.now_ns, Ordering::Relaxed);
        self.capture();
        for cpu in 0..self.cpus() {
            let pending = self.memory.host_pending(cpu);
            if pending == 0 {
                continue;
            }
            // A quarter of the time all of it, otherwise a part.
            let count = if self.rng.one_in(4) {
                pending as u64
            } else {
                self.rng.below(ARRIVALS)
            };
            for _ in 0..count {
                self.arrive(cpu);
            }
        }
        if !self.is_gone_for_good() && self.now_ns >= self.stalled_until && !self.rng.one_in(4) {
            self.front_end();
        }
        let count = if self.rng.one_in(4) {
            self.memory.flush_device();
            0
        } else {
            self.rng.below(ARRIVALS)
        };
        for _ in 0..count {
            self.memory.apply_device(&mut self.rng);
        }
    }

    pub(crate) fn cpu(&self) -> usize {
        self.cpu
    }

    fn cpus(&self) -> usize {
        self.memory.cpus()
    }

    /// One store of a CPU arrives.
    fn arrive(&mut self, cpu: usize) {
        if let Some(write) = self.memory.apply_host(cpu, &mut self.rng) {
            self.register_arrives(write);
        }
    }

    /// All stores of a CPU arrive.
    fn flush_cpu(&mut self, cpu: usize) {
        while self.memory.host_pending(cpu) > 0 {
            self.arrive(cpu);
        }
    }

    fn register_arrives(&mut self, write: Arrived) {
        if self.is_gone_for_good() {
            return;
        }
        let enable = write.offset == regs::CONTROL && write.value != 0;
        if enable && self.resets > 0 && self.plants(Mutation::NeverReady, 1) {
            return;
        }
        let kick = write.offset == regs::KICK;
        self.kicks += u64::from(kick);
        if kick && self.mutation == Some(Mutation::DropKick) {
            self.memory.mutated += 1;
            return;
        }
        let width = if write.wide {
            Width::Eight
        } else {
            Width::Four
        };
        let offset = BarOffset(write.offset);
        let bar = regs::BAR_REGISTERS;
        let enabled = self.device.is_enabled();
        let faults = self.excuses.total;
        self.before_step();
        if let Err(e) = self.device.bar_write(bar, offset, width, write.value) {
            let what = format!("the driver wrote where no register is: {e}");
            self.violate(Check::Register, what);
        }
        self.learn();
        let admin = [regs::ADMIN_SQ, regs::ADMIN_CQ, regs::ADMIN_DEPTH];
        if let Some(at) = admin.iter().position(|r| *r == write.offset)
            && !self.excuses.write_lost(faults)
        {
            self.admin_registers[at] = write.value;
        }
        match (enabled, self.device.is_enabled()) {
            (false, true) => {
                let [sq, cq, depth] = self.admin_registers;
                self.memory.admin_ring(sq, cq, depth as u32);
            }
            (true, false) => self.forget(),
            _ => {}
        }
        // The front end wakes the device for every trapped write.
        self.woken = true;
    }

    pub(crate) fn forget(&mut self) {
        let stats = self.device.firmware_mut().memory_stats();
        let used = stats.maps > 0 || stats.free_bytes < stats.total_bytes;
        // A reset that befalls the device is known before it is carried out: it is enabled then.
        if used && !self.device.is_enabled() {
            let what = format!(
                "after a reset the device has {} maps, and {} of {} bytes of its memory are free",
                stats.maps, stats.free_bytes, stats.total_bytes
            );
            self.violate(Check::Forgotten, what);
        }
        self.memory.flush_device();
        self.memory.forget_rings();
        (self.again, self.orphan) = (None, None);
    }

    /// What the device's front end does when it gets the processor: as the threaded one.
    fn front_end(&mut self) {
        match self.front {
            Front::Polling { idle } => {
                let step = self.step();
                self.front = match step {
                    Step::Worked => Front::Polling { idle: 0 },
                    Step::Idle if idle < self.polls_before_park => {
                        Front::Polling { idle: idle + 1 }
                    }
                    Step::Idle => Front::Arming,
                };
            }
            Front::Arming => {
                // Its fence (rule N2): what the device stored is visible before it looks.
                self.woken = false;
                self.excuses.kick_lost = false;
                self.before_step();
                let mut may_park = self.device.arm();
                self.collect();
                self.memory.flush_device();
                if self.mutation == Some(Mutation::NoSecondLook) && !may_park {
                    self.memory.mutated += 1;
                    may_park = true;
                }
                if may_park {
                    self.memory.note_full();
                    self.parks += 1;
                    let look_at = self.now_ns + LOOK_AGAIN_NS;
                    self.front = Front::Parked { look_at };
                } else {
                    self.device.disarm();
                    self.collect();
                    self.front = Front::Polling { idle: 0 };
                }
            }
            Front::Parked { .. } if self.woken => {
                self.woken = false;
                self.device.disarm();
                self.collect();
                self.front = Front::Polling { idle: 0 };
            }
            Front::Parked { look_at } if self.now_ns >= look_at => {
                if let Some((queue, full)) = self.memory.wake_up_owed()
                    && !self.may_miss_wake_up(queue)
                    && !self.memory.register_under_way(regs::KICK)
                    && self.device.is_running()
                {
                    let what = format!(
                        "a wake-up was lost: the device parked, {queue} has commands for it, and \
                         no KICK is under way{}",
                        if full {
                            " (it parked without room for completions)"
                        } else {
                            ""
                        }
                    );
                    self.violate(Check::DeviceWake, what);
                }
                self.front = match self.step() {
                    Step::Worked => {
                        self.device.disarm();
                        self.collect();
                        Front::Polling { idle: 0 }
                    }
                    Step::Idle => Front::Parked {
                        look_at: self.now_ns + LOOK_AGAIN_NS,
                    },
                };
            }
            Front::Parked { .. } => {}
        }
    }

    fn step(&mut self) -> Step {
        if self.mutation.is_some() {
            self.spoil_step();
        }
        self.before_step();
        let step = self.device.step();
        self.stepped();
        self.collect();
        step
    }

    /// Whether a fault lets the device sleep over commands of a queue.
    fn may_miss_wake_up(&self, queue: QueueId) -> bool {
        self.excuses.disturbed || self.excuses.kick_lost || self.excuses.queue(queue).any()
    }

    /// Takes over what the device has stored.
    fn collect(&mut self) {
        self.learn();
        let mut posted = std::mem::take(&mut self.posted);
        self.memory.collect(&mut self.rng, &mut posted);
        for done in posted.drain(..) {
            let at = self.stamp_beside(done.queue, done.request);
            self.done_at.insert((done.queue.0, done.request.0), at);
            if done.status == Status::DmaFault && !self.is_excused(done.queue, done.request) {
                let what = format!(
                    "{} for {}: the device was told of memory that is not mapped, or could not \
                     reach what is",
                    done.status, done.request
                );
                self.violate(Check::Dma, what);
            }
            let Some(command) = done.command else {
                if self.is_excused(done.queue, done.request) {
                    continue;
                }
                let what = format!(
                    "the device completed {} on {}, which is not in flight",
                    done.request, done.queue
                );
                self.violate(Check::Request, what);
                continue;
            };
            let deleted =
                IoOpcode(command.opcode) == IoOpcode::Delete && done.status == Status::Success;
            if IoOpcode(command.opcode) == IoOpcode::Update && done.status == Status::Success {
                self.evict_new(done.queue, &command);
            }
            if self.mutation == Some(Mutation::DeleteTwice) && deleted && !done.queue.is_admin() {
                self.again = Some(command);
            }
        }
        self.posted = posted;
        self.after_step();
    }

    // The host's accesses.

    pub(crate) fn map(&mut self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.capture();
        let device = self.memory.map(buffer, iova, &mut self.pool)?;
        self.device.dma_map(device.fd(), 0, iova, device.len())
    }

    pub(crate) fn unmap(&mut self, iova: Iova, len: usize) -> Result<(), IoError> {
        if self.mutation == Some(Mutation::LeakMapping) && self.rng.one_in(2) {
            self.memory.mutated += 1;
            // So that the driver does not give the IOVAs out again.
            return Err(IoError::NotMapped { iova, len });
        }
        self.capture();
        if let Some((what, rule)) = self.memory.still_named(iova.0, len as u64)
            && !self.removed
            && !self.excuses.wild
        {
            let what =
                format!("the driver took back {what}, which the device has not let go of ({rule})");
            self.violate(Check::Release, what);
        }
        self.device.dma_unmap(iova, len)?;
        if let Some(stray) = self.memory.unmap(iova, len, &mut self.pool)? {
            self.violate(Check::StrayWrite, stray);
        }
        Ok(())
    }

    pub(crate) fn read(
        &mut self,
        bar: u8,
        offset: BarOffset,
        width: Width,
    ) -> Result<u64, IoError> {
        if self.removed && self.plants(Mutation::RemovalReadsZero, 1) {
            return Ok(0);
        }
        if self.is_gone() {
            return Ok(u64::MAX);
        }
        if self.plants(Mutation::PanicsInCall, 64) {
            panic!("a planted panic of the driver");
        }
        // A read pushes the writes before it.
        self.capture();
        self.flush_cpu(self.cpu);
        self.before_step();
        let value = self.device.bar_read(bar, offset, width);
        self.learn();
        value
    }

    pub(crate) fn write(&mut self, bar: u8, offset: BarOffset, width: Width, value: u64) {
        if self.is_gone_for_good() || bar != regs::BAR_REGISTERS {
            return;
        }
        self.capture();
        let wrong = offset.0 == regs::KICK && self.plants(Mutation::WrongRegister, 1);
        let offset = match wrong {
            // Past the BAR's end.
            true => BarOffset(regs::BAR0_BYTES),
            false => offset,
        };
        let doorbells = regs::DOORBELLS + offmap_abi::notify::DOORBELL_STRIDE;
        let of_a_queue = offset.0 == regs::KICK || offset.0 >= doorbells;
        if !of_a_queue && self.admin_cpu != self.cpu {
            // The driver's lock is between the two CPUs.
            self.flush_cpu(self.admin_cpu);
            self.admin_cpu = self.cpu;
        }
        self.memory
            .push_register(self.cpu, offset.0, width == Width::Eight, value);
    }

    pub(crate) fn config_write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        if self.is_gone() {
            return Ok(());
        }
        self.capture();
        for cpu in 0..self.cpus() {
            self.flush_cpu(cpu);
        }
        self.device.config_write(offset, data)
    }

    /// A function-level reset, by the driver or behind its back.
    pub(crate) fn reset(&mut self) {
        self.capture();
        for cpu in 0..self.cpus() {
            self.flush_cpu(cpu);
        }
        self.resets += 1;
        self.reset_device();
        self.excuses.reset();
        self.admin_registers = [0; 3];
        self.forget();
        self.stalled_until = 0;
        self.front = Front::Polling { idle: 0 };
        if self.mutation == Some(Mutation::WriteAfterReset) {
            self.memory.stray_write(&mut self.rng);
        }
    }

    /// The function is pulled out.
    /// `well`: nothing had befallen it before.
    pub(crate) fn remove(&mut self, well: bool) {
        self.removed = true;
        self.removed_well = well;
        self.memory.flush_device();
    }

    /// Time passes for a host that waits; ticks happen in it.
    pub(crate) fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        self.tick();
    }
}
