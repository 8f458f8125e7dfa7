//! The meter: commands, charged event by event while they are carried out.
//!
//! Whoever has the queues reports, for each of them: that its turn begins ([`Meter::turn`]), for each command that
//! it is fetched ([`Meter::fetch`]) and completed ([`Meter::complete`]), and that the turn ends, with an interrupt
//! or without ([`Meter::end_turn`]). Between fetch and completion the firmware charges each access to device memory
//! and each DMA.
//!
//! The commands of one turn were there together: they were published with one doorbell, and they contend for the
//! link, its tags, the engines and the memory. The host publishes the next ones of that queue when it has seen
//! the last of these, and takes no time for it. Commands of another queue that come meanwhile contend with them, too:
//! no queue's turn begins before one that was begun already.

use super::Picos;
use super::bus::{AloneTimes, Bus, BusCounts, ENTRY_BYTES};
use super::histogram::Histogram;
use super::memory::{AccessCost, TierCounts, TierRange, TieredMemory};
use super::profile::{ProfileError, TIERS_MAX, TimingProfile};
use super::resource::{Grant, Pool};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use offmap_abi::DevAddr;

/// Opcodes that are told apart; greater ones count as the last.
const OPCODES: usize = 32;
/// Accesses of a command that is alone which are remembered in case it is not any more.
const ALONE_ACCESSES: usize = 24;
/// Commands of a turn that are kept until it ends. Of a longer turn the first ones are counted as if no interrupt
/// ended it.
const TURN_MAX: usize = 64;

/// Where a command's time went. What is waited for counts where it is waited for, so that the parts add up to
/// the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    /// From the host's store to the device's reaction.
    pub doorbell: Picos,
    /// The descriptor's way to the device.
    pub fetch: Picos,
    /// For an engine, and its cycles.
    pub engine: Picos,
    /// For keys and values that the device reads or writes by DMA.
    pub payload: Picos,
    /// For device memory, by tier.
    pub tables: [Picos; TIERS_MAX],
    /// The completion's way to the host.
    pub completion: Picos,
    /// From there to whom the interrupt wakes, where one was sent.
    pub interrupt: Picos,
}

impl Parts {
    /// All of it.
    pub fn total(&self) -> Picos {
        let tables = self.tables.iter().fold(Picos::ZERO, |sum, t| sum + *t);
        self.doorbell
            + self.fetch
            + self.engine
            + self.payload
            + tables
            + self.completion
            + self.interrupt
    }

    #[inline(always)]
    fn add(&mut self, other: &Self, tiers: usize) {
        self.doorbell += other.doorbell;
        self.fetch += other.fetch;
        self.engine += other.engine;
        self.payload += other.payload;
        for (ours, theirs) in self.tables.iter_mut().zip(&other.tables).take(tiers) {
            *ours += *theirs;
        }
        self.completion += other.completion;
        self.interrupt += other.interrupt;
    }
}

/// What commands of one opcode took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpTimes {
    /// The opcode.
    pub opcode: u8,
    /// Their latencies.
    pub latencies: Histogram,
    /// Elements that they were about.
    pub elements: u64,
    /// The parts of all of them together.
    pub parts: Parts,
}

/// What a meter has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Modelled {
    /// The profile's name.
    pub profile: String,
    /// Of each opcode that was seen.
    pub ops: Vec<OpTimes>,
    /// The tiers, with the accesses to them.
    pub tiers: Vec<(String, TierCounts)>,
    /// What went over the link.
    pub bus: BusCounts,
    /// A hash over all latencies in order: two runs that agree in it had the same times.
    pub digest: u64,
    /// The modelled moment at which the last command was done.
    pub end: Picos,
}

/// A command that is being charged.
#[derive(Clone, Copy, Debug)]
struct Current {
    opcode: u8,
    /// When the host rang.
    arrival: Picos,
    /// How far it got.
    now: Picos,
    engine: Option<Grant>,
    /// When the host sees the last of the payload.
    payload_visible: Picos,
    parts: Parts,
}

impl Current {
    const NONE: Self = Self {
        opcode: 0,
        arrival: Picos::ZERO,
        now: Picos::ZERO,
        engine: None,
        payload_visible: Picos::ZERO,
        parts: Parts {
            doorbell: Picos::ZERO,
            fetch: Picos::ZERO,
            engine: Picos::ZERO,
            payload: Picos::ZERO,
            tables: [Picos::ZERO; TIERS_MAX],
            completion: Picos::ZERO,
            interrupt: Picos::ZERO,
        },
    };
}

/// A command that is done, and not counted yet.
#[derive(Clone, Copy, Debug)]
struct Ended {
    opcode: u8,
    elements: u32,
    visible: Picos,
    parts: Parts,
}

/// A command while it is alone on the device, which most are under a host that waits for each. Nothing is in its
/// way, so what it takes is a sum, and nothing is booked. What would have been is remembered: should another
/// command come while it is there, it is booked then ([`Meter::join`]). The times are the same.
#[derive(Clone, Debug)]
struct Alone {
    how: HowAlone,
    times: AloneTimes,
    /// Where its descriptor is.
    iova: u64,
    arrival: Picos,
    /// What was on the link before.
    before: BusCounts,
    accesses: [(Picos, Booking); ALONE_ACCESSES],
    len: usize,
    /// From when on the DMA engine's front and the link are its own again.
    free: Picos,
    elements: u32,
    /// When an engine had it, and had done with it.
    from: Picos,
    until: Picos,
    completion_iova: u64,
    visible: Picos,
    interrupted: bool,
}

/// What a command that is alone did not book.
#[derive(Clone, Copy, Debug)]
enum Booking {
    Access(AccessCost),
    Read { iova: u64, bytes: u64 },
    Write { iova: u64, bytes: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum HowAlone {
    /// What was charged is booked.
    Not,
    /// A turn has begun, its doorbell is not booked, and nothing is under way.
    Rung,
    /// A command is being charged.
    Open,
    /// It is completed, and its turn goes on.
    Completed,
    /// Its turn has ended, and it is counted.
    Counted,
}

#[derive(Clone, Debug, Default)]
struct QueueClock {
    /// When the host has seen all that was completed.
    seen: Picos,
    /// The command that is under way from one turn to the next.
    suspended: Option<Box<Current>>,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Meter {
    profile: String,
    tier_names: Vec<String>,
    bus: Bus,
    memory: TieredMemory,
    engines: Pool,
    /// How long the last command had an engine, which is what the next one asks for.
    engine_hold: Picos,
    command_time: Picos,
    element_time: Picos,
    access_time: Picos,
    queues: Vec<QueueClock>,
    /// The beginning of the latest turn.
    latest: Picos,
    /// The turn at hand: when the host rang, and when the device reacted.
    arrival: Picos,
    ready: Picos,
    current: Current,
    alone: Alone,
    shortcut: bool,
    ended: Vec<Ended>,
    ops: [Option<Box<OpTimes>>; OPCODES],
    digest: u64,
    end: Picos,
}

impl Meter {
    /// A meter for a device as the profile has it.
    ///
    /// # Errors
    ///
    /// [`ProfileError`], when the profile cannot be.
    pub fn new(profile: &TimingProfile) -> Result<Self, ProfileError> {
        profile.check()?;
        let cycles = profile.device.cycles;
        let bus = Bus::new(profile);
        let alone = Alone {
            how: HowAlone::Not,
            times: bus.alone(),
            iova: 0,
            arrival: Picos::ZERO,
            before: BusCounts::default(),
            accesses: [(Picos::ZERO, Booking::Access(AccessCost::default())); ALONE_ACCESSES],
            len: 0,
            free: Picos::ZERO,
            elements: 0,
            from: Picos::ZERO,
            until: Picos::ZERO,
            completion_iova: 0,
            visible: Picos::ZERO,
            interrupted: false,
        };
        Ok(Self {
            profile: profile.name.clone(),
            tier_names: profile.tiers.iter().map(|tier| tier.name.clone()).collect(),
            bus,
            alone,
            shortcut: true,
            memory: TieredMemory::new(profile),
            engines: Pool::new(profile.device.engines),
            engine_hold: Picos::ZERO,
            command_time: profile.cycles(cycles.command.into()),
            element_time: profile.cycles(cycles.element.into()),
            access_time: profile.cycles(cycles.access.into()),
            queues: Vec::new(),
            latest: Picos::ZERO,
            arrival: Picos::ZERO,
            ready: Picos::ZERO,
            current: Current::NONE,
            ended: Vec::with_capacity(TURN_MAX),
            ops: [const { None }; OPCODES],
            digest: 0,
            end: Picos::ZERO,
        })
    }

    /// Says which addresses of device memory belong to which tier: [`TieredMemory::place`].
    ///
    /// # Errors
    ///
    /// [`ProfileError`], and everything stays as it was.
    pub fn place(&mut self, ranges: &[TierRange]) -> Result<(), ProfileError> {
        self.memory.place(ranges)
    }

    /// Says whether host memory is on another NUMA node than the device.
    pub fn set_remote(&mut self, remote: bool) {
        self.join();
        self.bus.set_remote(remote);
        self.alone.times = self.bus.alone();
    }

    /// Has the meter book what every command takes, instead of adding up what those take that are alone. It is
    /// slower, and the times are the same; tests hold it to that.
    pub fn book_everything(&mut self) {
        self.join();
        self.shortcut = false;
    }

    /// Host memory was unmapped: no translation is known any more.
    pub fn forget_translations(&mut self) {
        self.join();
        self.bus.forget_translations();
    }

    fn queue(&mut self, queue: u16) -> &mut QueueClock {
        let n = usize::from(queue);
        if n >= self.queues.len() {
            self.queues.resize_with(n + 1, QueueClock::default);
        }
        &mut self.queues[n]
    }

    /// A queue's turn begins, in which commands are found that the host has published.
    #[inline]
    pub fn turn(&mut self, queue: u16) {
        // A turn that was broken off, since its queue stopped, has no end of its own.
        if self.alone.how == HowAlone::Completed {
            self.join();
        }
        if !self.ended.is_empty() {
            self.count_ended();
        }
        let seen = self.queue(queue).seen;
        self.arrival = self.latest.max(seen);
        self.latest = self.arrival;
        let left = matches!(self.alone.how, HowAlone::Not | HowAlone::Counted);
        if self.arrival >= self.end && left && self.shortcut {
            // What was there is gone, booked or not.
            self.alone.how = HowAlone::Rung;
            self.alone.arrival = self.arrival;
            self.alone.before = self.bus.counts();
            self.ready = self.arrival + self.alone.times.doorbell;
        } else {
            self.join();
            self.ready = self.bus.doorbell(self.arrival);
        }
    }

    /// Somebody else comes while a command is there that was alone: books what it takes, and what it will.
    #[inline]
    fn join(&mut self) {
        if self.alone.how != HowAlone::Not {
            self.book_alone();
        }
    }

    #[inline(never)]
    fn book_alone(&mut self) {
        let how = core::mem::replace(&mut self.alone.how, HowAlone::Not);
        self.bus.set_counts(self.alone.before);
        let ready = self.bus.doorbell(self.alone.arrival);
        if how == HowAlone::Rung {
            return;
        }
        let fetched = self.bus.read(ready, self.alone.iova, ENTRY_BYTES);
        let engine = self.engines.ask(fetched, self.engine_hold);
        let accesses = core::mem::take(&mut self.alone.len);
        for n in 0..accesses {
            let (at, booking) = self.alone.accesses[n];
            match booking {
                Booking::Access(cost) => drop(self.memory.book(at, cost)),
                Booking::Read { iova, bytes } => drop(self.bus.read(at, iova, bytes)),
                Booking::Write { iova, bytes } => drop(self.bus.write(at, iova, bytes)),
            }
        }
        if how == HowAlone::Open {
            self.current.engine = Some(engine);
            return;
        }
        self.engines.hand_back(engine, self.alone.until);
        self.bus
            .write(self.alone.until, self.alone.completion_iova, ENTRY_BYTES);
        if how == HowAlone::Completed {
            self.ended.push(Ended {
                opcode: self.current.opcode,
                elements: self.alone.elements,
                visible: self.alone.visible,
                parts: self.current.parts,
            });
        } else if self.alone.interrupted {
            self.bus.interrupt(self.alone.visible);
        }
    }

    /// A queue's turn begins in which the command that is under way gets on.
    pub fn turn_on(&mut self, queue: u16) {
        self.join();
        if let Some(current) = self.queue(queue).suspended.take() {
            self.current = *current;
            (self.arrival, self.ready) = (self.current.arrival, self.current.now);
        }
    }

    /// The command at hand is not done, and gets on in a later turn.
    pub fn suspend(&mut self, queue: u16) {
        self.join();
        let current = self.current;
        // What is charged to it later may be booked at any time from here on.
        self.end = self.end.max(current.now).max(current.payload_visible);
        self.queue(queue).suspended = Some(Box::new(current));
    }

    /// A queue is gone, or reset, with what was under way in it.
    pub fn forget(&mut self, queue: u16) {
        if let Some(clock) = self.queues.get_mut(usize::from(queue)) {
            clock.suspended = None;
        }
    }

    /// The descriptor at `iova`, of a command with that opcode, is fetched, and an engine takes it.
    #[inline]
    pub fn fetch(&mut self, opcode: u8, iova: u64) {
        let (fetched, from, engine);
        if self.alone.how == HowAlone::Rung && self.bus.is_plain(iova) {
            self.alone.how = HowAlone::Open;
            (self.alone.iova, self.alone.len) = (iova, 0);
            fetched = self.ready + self.alone.times.fetch;
            (from, engine) = (fetched, None);
            self.alone.from = from;
            self.alone.free = self.bus.start(self.ready) + self.bus.issue_time();
        } else {
            self.join();
            fetched = self.bus.read(self.ready, iova, ENTRY_BYTES);
            let grant = self.engines.ask(fetched, self.engine_hold);
            (from, engine) = (grant.from, Some(grant));
        }
        let now = from + self.command_time;
        let current = &mut self.current;
        *current = Current::NONE;
        current.opcode = opcode;
        current.arrival = self.arrival;
        current.parts.doorbell = self.ready - self.arrival;
        current.parts.fetch = fetched - self.ready;
        current.parts.engine = now - fetched;
        current.engine = engine;
        current.now = now;
    }

    /// The opcode of the command at hand.
    #[inline(always)]
    pub fn opcode(&self) -> u8 {
        self.current.opcode
    }

    /// An access to `bytes` of device memory at `at`, for which the engine waits.
    #[inline]
    pub fn table(&mut self, at: DevAddr, bytes: u64) {
        let begin = self.current.now + self.access_time;
        let cost = self.memory.cost(at, bytes);
        let alone = self.alone.how == HowAlone::Open && self.alone.len < ALONE_ACCESSES;
        let done = if alone {
            self.alone.accesses[self.alone.len] = (begin, Booking::Access(cost));
            self.alone.len += 1;
            begin + cost.service + cost.latency
        } else {
            self.join();
            self.memory.book(begin, cost)
        };
        let current = &mut self.current;
        current.parts.engine += self.access_time;
        current.parts.tables[cost.tier] += done - begin;
        current.now = done;
    }

    /// A DMA read of `bytes` at `iova`, for which the engine waits.
    #[inline]
    pub fn payload_read(&mut self, iova: u64, bytes: u64) {
        let now = self.current.now;
        let alone = match self.has_room(now) {
            true => self.bus.read_alone(now, iova, bytes),
            false => None,
        };
        let done = match alone {
            Some((done, free)) => {
                self.remember(now, Booking::Read { iova, bytes }, free);
                done
            }
            None => {
                self.join();
                self.bus.read(now, iova, bytes)
            }
        };
        let current = &mut self.current;
        current.parts.payload += done - current.now;
        current.now = done;
    }

    /// A DMA write of `bytes` to `iova`, which is posted.
    #[inline]
    pub fn payload_write(&mut self, iova: u64, bytes: u64) {
        let now = self.current.now;
        let alone = match self.has_room(now) {
            true => self.bus.write_alone(now, iova, bytes),
            false => None,
        };
        let posted = match alone {
            Some((posted, free)) => {
                self.remember(now, Booking::Write { iova, bytes }, free);
                posted
            }
            None => {
                self.join();
                self.bus.write(now, iova, bytes)
            }
        };
        let current = &mut self.current;
        current.parts.payload += posted.taken - current.now;
        current.now = posted.taken;
        current.payload_visible = current.payload_visible.max(posted.visible);
    }

    /// Whether the command is alone, and what it wishes for from the DMA engine at `at` waits for nothing of its own.
    #[inline(always)]
    fn has_room(&self, at: Picos) -> bool {
        let alone = &self.alone;
        alone.how == HowAlone::Open
            && alone.len < ALONE_ACCESSES
            && self.bus.start(at) >= alone.free
    }

    #[inline(always)]
    fn remember(&mut self, at: Picos, booking: Booking, free: Picos) {
        self.alone.accesses[self.alone.len] = (at, booking);
        self.alone.len += 1;
        self.alone.free = self.alone.free.max(free);
    }

    /// The command, which was about `elements` elements, is completed with an entry at `iova`.
    #[inline]
    pub fn complete(&mut self, elements: u32, iova: u64) {
        let thought = match elements {
            0 | 1 => self.element_time,
            n => self.element_time.times(n.into()),
        };
        let now = self.current.now + thought;
        self.current.parts.engine += thought;
        let room = self.bus.start(now) >= self.alone.free;
        if self.alone.how == HowAlone::Open && room && self.bus.is_plain(iova) {
            // A completion passes no payload that was written before it.
            let visible = (now + self.alone.times.completion).max(self.current.payload_visible);
            self.current.parts.completion = visible - now;
            self.engine_hold = now - self.alone.from;
            let alone = &mut self.alone;
            alone.how = HowAlone::Completed;
            alone.elements = elements;
            alone.until = now;
            alone.completion_iova = iova;
            alone.visible = visible;
            return;
        }
        self.join();
        let current = &mut self.current;
        let posted = self.bus.write(now, iova, ENTRY_BYTES);
        // A completion passes no payload that was written before it.
        let visible = posted.visible.max(current.payload_visible);
        current.parts.completion = visible - now;
        if let Some(engine) = current.engine.take() {
            self.engine_hold = now - engine.from;
            self.engines.hand_back(engine, now);
        }
        let (opcode, parts) = (current.opcode, current.parts);
        if self.ended.len() == TURN_MAX {
            self.count_ended();
        }
        self.ended.push(Ended {
            opcode,
            elements,
            visible,
            parts,
        });
    }

    /// The turn ends, with an interrupt for its completions or without.
    #[inline]
    pub fn end_turn(&mut self, queue: u16, interrupt: bool) {
        if self.alone.how == HowAlone::Completed {
            return self.end_alone(queue, interrupt);
        }
        let Some(last) = self.ended.iter().map(|ended| ended.visible).max() else {
            return;
        };
        let mut seen = last;
        if interrupt {
            seen = self.bus.interrupt(last);
            for ended in &mut self.ended {
                ended.parts.interrupt = seen - ended.visible;
            }
        }
        let clock = self.queue(queue);
        clock.seen = clock.seen.max(seen);
        self.end = self.end.max(seen);
        self.count_ended();
    }

    /// The turn of a command that was alone ends.
    #[inline]
    fn end_alone(&mut self, queue: u16, interrupt: bool) {
        let visible = self.alone.visible;
        let mut seen = visible;
        if interrupt {
            seen = self.bus.interrupt_alone(visible);
            self.current.parts.interrupt = seen - visible;
        }
        self.alone.how = HowAlone::Counted;
        self.alone.interrupted = interrupt;
        self.bus.count_alone(&self.alone.times);
        let latency = seen - self.arrival;
        let (opcode, elements) = (self.current.opcode, self.alone.elements);
        self.digest = mixed(self.digest, opcode, latency);
        let tiers = self.tier_names.len();
        let op = &mut self.ops[usize::from(opcode).min(OPCODES - 1)];
        let op = op.get_or_insert_with(|| OpTimes::new(opcode));
        op.count(elements, latency, &self.current.parts, tiers);
        let clock = self.queue(queue);
        clock.seen = clock.seen.max(seen);
        self.end = self.end.max(seen);
    }

    #[inline(always)]
    fn count(&mut self, opcode: u8, elements: u32, latency: Picos, parts: &Parts) {
        self.digest = mixed(self.digest, opcode, latency);
        let tiers = self.tier_names.len();
        let op = &mut self.ops[usize::from(opcode).min(OPCODES - 1)];
        let op = op.get_or_insert_with(|| OpTimes::new(opcode));
        op.count(elements, latency, parts, tiers);
    }

    #[inline]
    fn count_ended(&mut self) {
        for n in 0..self.ended.len() {
            let ended = self.ended[n];
            self.end = self.end.max(ended.visible);
            self.count(
                ended.opcode,
                ended.elements,
                ended.parts.total(),
                &ended.parts,
            );
        }
        self.ended.clear();
    }

    /// What was counted so far.
    pub fn modelled(&self) -> Modelled {
        let tiers = self.tier_names.iter().cloned();
        Modelled {
            profile: self.profile.clone(),
            ops: self.ops.iter().flatten().map(|op| (**op).clone()).collect(),
            tiers: tiers.zip(self.memory.counts()).collect(),
            bus: self.bus.counts(),
            digest: self.digest,
            end: self.end,
        }
    }

    /// Forgets what was counted, and goes on.
    pub fn clear(&mut self) {
        self.ops = [const { None }; OPCODES];
        self.digest = 0;
    }
}

/// The hash over all latencies with one more.
#[inline(always)]
fn mixed(digest: u64, opcode: u8, latency: Picos) -> u64 {
    let mixed = digest ^ latency.0 ^ u64::from(opcode) << 56;
    mixed.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl OpTimes {
    #[inline(always)]
    fn count(&mut self, elements: u32, latency: Picos, parts: &Parts, tiers: usize) {
        self.latencies.record(latency);
        self.elements += u64::from(elements);
        self.parts.add(parts, tiers);
    }

    #[cold]
    fn new(opcode: u8) -> Box<Self> {
        Box::new(Self {
            opcode: opcode.min(OPCODES as u8 - 1),
            latencies: Histogram::default(),
            elements: 0,
            parts: Parts::default(),
        })
    }
}
