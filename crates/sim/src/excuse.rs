//! What injected faults excuse.
//!
//! A fault excuses what it may cause and no more. The world learns of each fault in the moment in
//! which the device does wrong, and notes here whose calls may fail, whose answers nobody can
//! know, and which values are no longer what was written. `docs/simulation.md` has the table.

use crate::mutation::Mutation;
use crate::world::World;
use offmap_abi::notify::DOORBELL_STRIDE;
use offmap_abi::regs;
use offmap_abi::{IoOpcode, MapHandle, QueueId, RequestId, Status, Submission, SubmissionFlags};
use offmap_emulator::dma::ENTRY_BYTES;
use offmap_emulator::faults::{Behaviour, Delay, Injection, Site};
use offmap_firmware_model::hook::BitFlips;
use std::time::Duration;

/// Steps that a delay or slowness may take before a deadline can notice.
const FREE_STEPS: u64 = 400;
/// The same for delays by time.
const FREE_TIME: Duration = Duration::from_millis(5);
/// Bits of a completion by their fields.
const STATUS_BITS: std::ops::Range<u64> = 0..16;
const PHASE_BIT: u64 = 16;
const REQUEST_BITS: std::ops::Range<u64> = 64..128;

/// How calls of a queue may end that a fault broke.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct QueueExcuse {
    queue: u16,
    /// Nothing may come any more.
    pub(crate) late: bool,
    /// A completion that cannot be may come.
    pub(crate) bad: bool,
    /// The device may have stopped it.
    pub(crate) stopped: bool,
    /// A completion may say that its command was aborted, and nobody had asked for that: what a
    /// deadline that passed looks like.
    pub(crate) aborted: bool,
}

impl QueueExcuse {
    pub(crate) fn any(self) -> bool {
        self.late || self.bad || self.stopped || self.aborted
    }
}

/// What is excused of one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Excuse {
    /// Its answer, whatever it is.
    Answer,
    /// The value that it stored: another one, which nobody knows.
    Value,
    /// That it ends with this status.
    Status(Status),
}

#[derive(Clone, Copy, Debug)]
struct OfCommand {
    queue: u16,
    request: u64,
    moment: u64,
    excuse: Excuse,
}

/// What happened to maps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News {
    /// Nothing that the map answers from this moment on says anything.
    Cut { map: MapHandle, moment: u64 },
    /// The same for all maps.
    CutAll { moment: u64 },
    /// A value that nobody knows is on its way into the map.
    Garbage { map: MapHandle },
    /// The value of a key was changed in the device, in between these moments.
    Spoiled {
        map: MapHandle,
        key: u8,
        began: u64,
        ended: u64,
        posted: u64,
    },
}

/// A flip of a value in device memory, until its moment is known.
#[derive(Clone, Copy)]
struct Cell {
    map: MapHandle,
    key: u8,
    by: (u16, u64),
    /// Before the command that met it, or after.
    before: bool,
    posted: Option<u64>,
}

/// A live map.
pub(crate) struct KnownMap {
    pub(crate) handle: MapHandle,
    pub(crate) is_lpm: bool,
    pub(crate) keys: Vec<Vec<u8>>,
}

impl KnownMap {
    /// Bits of a prefix; 0 for maps of other types.
    fn prefix_len(&self, key: usize) -> u32 {
        let head = self.keys[key].first_chunk().copied().unwrap_or_default();
        if self.is_lpm {
            u32::from_le_bytes(head)
        } else {
            0
        }
    }
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Excuses {
    /// Site and behaviour of the plan's rules.
    pub(crate) rules: Vec<(Site, Behaviour)>,
    pub(crate) ecc: bool,
    /// All injections there ever were.
    pub(crate) total: u64,
    slow_steps: u64,
    /// The last injection was the loss of a register write.
    last_lost: bool,
    /// Any call may fail, until a reset.
    pub(crate) disturbed: bool,
    /// Admin calls may fail, until a reset.
    pub(crate) admin: bool,
    /// Anything may happen to anything but the process, until a reset.
    pub(crate) wild: bool,
    /// A KICK was lost since the device parked.
    pub(crate) kick_lost: bool,
    /// Queues of which an interrupt was lost, or comes late, since their host looked last.
    interrupts_lost: Vec<u16>,
    /// Steps in which the device does nothing, from now on.
    slow_left: u64,
    /// MAP_CREATEs that may be refused.
    pub(crate) no_memory: u64,
    queues: Vec<QueueExcuse>,
    /// Commands that are never answered.
    lost: Vec<(u16, u64)>,
    commands: Vec<OfCommand>,
    cells: Vec<Cell>,
    pub(crate) news: Vec<News>,
    /// Live maps.
    pub(crate) maps: Vec<KnownMap>,
    step_began: u64,
}

impl Excuses {
    /// A queue id has a new owner.
    pub(crate) fn forget_queue(&mut self, queue: u16) {
        self.queues.retain(|q| q.queue != queue);
        self.interrupts_lost.retain(|q| *q != queue);
        self.lost.retain(|(q, _)| *q != queue);
        self.commands.retain(|c| c.queue != queue);
    }

    /// Whether the write of a register was lost since there were so many injections.
    pub(crate) fn write_lost(&self, before: u64) -> bool {
        self.total != before && self.last_lost
    }

    /// A reset has ended what befell the device as a whole.
    pub(crate) fn reset(&mut self) {
        self.slow_steps = 0;
        (self.disturbed, self.admin, self.wild) = (false, false, false);
        self.kick_lost = false;
        self.slow_left = 0;
        self.interrupts_lost.clear();
    }

    /// Whether slow memory holds the device up now.
    pub(crate) fn slow(&self) -> bool {
        self.slow_left > 0
    }

    /// The host of a queue looks at its completions, and then sleeps: what the interrupts that were lost
    /// would have told is seen.
    pub(crate) fn looked(&mut self, queue: QueueId) {
        self.interrupts_lost.retain(|lost| *lost != queue.0);
    }

    /// Whether an interrupt of a queue was lost, or comes late, since its host looked last.
    pub(crate) fn interrupt_lost(&self, queue: QueueId) -> bool {
        self.interrupts_lost.contains(&queue.0)
    }

    pub(crate) fn queue(&self, queue: QueueId) -> QueueExcuse {
        let found = self.queues.iter().find(|q| q.queue == queue.0);
        found.copied().unwrap_or_default()
    }

    /// Commands of a queue that are never answered.
    pub(crate) fn lost(&self, queue: QueueId) -> impl Iterator<Item = u64> {
        let of = self.lost.iter().filter(move |(q, _)| *q == queue.0);
        of.map(|(_, request)| *request)
    }

    /// What is excused of a command.
    pub(crate) fn of(&self, queue: QueueId, request: u64) -> impl Iterator<Item = Excuse> {
        let of = self.commands.iter();
        of.filter(move |c| (c.queue, c.request) == (queue.0, request))
            .map(|c| c.excuse)
    }

    /// What is excused of the commands of a queue since a moment, but for these.
    pub(crate) fn since(&self, queue: QueueId, moment: u64, but: &[u64]) -> Vec<Excuse> {
        let of = self.commands.iter();
        of.filter(|c| c.queue == queue.0 && c.moment >= moment && !but.contains(&c.request))
            .map(|c| c.excuse)
            .collect()
    }

    fn queue_mut(&mut self, queue: u16) -> &mut QueueExcuse {
        let at = match self.queues.iter().position(|q| q.queue == queue) {
            Some(at) => at,
            None => {
                self.queues.push(QueueExcuse {
                    queue,
                    ..QueueExcuse::default()
                });
                self.queues.len() - 1
            }
        };
        &mut self.queues[at]
    }

    /// A plan was taken up, or taken away.
    pub(crate) fn begin(&mut self, rules: Vec<(Site, Behaviour)>, ecc: bool) {
        self.rules = rules;
        self.ecc = ecc;
    }
}

/// Whether a command changes its map.
fn changes(command: &Submission) -> bool {
    matches!(
        IoOpcode(command.opcode),
        IoOpcode::Update
            | IoOpcode::Delete
            | IoOpcode::LookupAndDelete
            | IoOpcode::BatchUpdate
            | IoOpcode::BatchDelete
            | IoOpcode::BatchDumpDelete
    )
}

impl World {
    /// A step of the device begins.
    pub(crate) fn before_step(&mut self) {
        if !self.excuses.rules.is_empty() {
            self.excuses.step_began = self.stamp();
        }
    }

    /// The device has done a step, or let one pass that it is slow by.
    pub(crate) fn stepped(&mut self) {
        self.excuses.slow_left = self.excuses.slow_left.saturating_sub(1);
    }

    /// Looks whether the device has done wrong since the last call.
    #[inline]
    pub(crate) fn learn(&mut self) {
        if !self.device.fault_injections().is_empty() {
            self.learn_more();
        }
    }

    #[cold]
    fn learn_more(&mut self) {
        let new = self.device.take_fault_injections();
        self.excuses.total += new.len() as u64;
        for injection in new {
            if let Some((site, behaviour)) = self.excuses.rules.get(injection.rule - 1).copied() {
                self.injected(site, behaviour, &injection);
            }
        }
    }

    fn injected(&mut self, site: Site, behaviour: Behaviour, injection: &Injection) {
        let queue = injection.queue.unwrap_or(0);
        let request = injection.request.map_or(0, |r| r.0);
        let admin = queue == 0;
        let entry = matches!(site, Site::Fetch | Site::Complete);
        self.excuses.last_lost = behaviour == Behaviour::Drop && site == Site::RegisterWrite;
        match behaviour {
            Behaviour::Slow { steps } => {
                self.excuses.slow_steps += u64::from(steps);
                self.excuses.slow_left += u64::from(steps);
                self.excuses.disturbed |= self.excuses.slow_steps > FREE_STEPS;
            }
            Behaviour::StopFirmware | Behaviour::Fatal => self.excuses.disturbed = true,
            Behaviour::Reset => {
                self.excuses.disturbed = true;
                self.forget();
            }
            Behaviour::Unplug => {
                let well = !self.excuses.disturbed;
                self.excuses.disturbed = true;
                self.remove(well);
            }
            Behaviour::Drop if entry => self.never_answered(queue, request),
            Behaviour::Drop if site == Site::RegisterRead => self.excuses.disturbed = true,
            Behaviour::Drop if site == Site::RegisterWrite => {
                self.write_lost(injection.at.unwrap_or(0));
            }
            Behaviour::Delay(delay) if entry => {
                let long = match delay {
                    Delay::Steps(steps) => u64::from(steps) > FREE_STEPS,
                    Delay::Time(time) => time > FREE_TIME,
                };
                if long {
                    self.never_answered(queue, request);
                }
            }
            Behaviour::Duplicate if entry => {
                if admin {
                    self.excuses.admin = true;
                } else {
                    self.excuses.queue_mut(queue).bad = true;
                }
            }
            Behaviour::Flip { bits, .. } => self.flipped(site, bits, injection),
            Behaviour::Fail | Behaviour::Tear { .. } if entry => self.queue_stops(queue),
            Behaviour::Fail if admin => self.excuses.admin = true,
            Behaviour::Fail => {
                self.excuse(queue, request, Excuse::Status(Status::DmaFault));
            }
            Behaviour::Tear { .. } => {
                self.queue_stops(queue);
                self.plant_beside(Mutation::ReportTorn, queue, request);
            }
            Behaviour::NoMemory if admin => self.excuses.no_memory += 1,
            Behaviour::NoMemory => {
                self.excuse(queue, request, Excuse::Status(Status::NoMemory));
                self.plant_beside(Mutation::StoreAndRefuse, queue, request);
            }
            Behaviour::Drop | Behaviour::Delay(_) if site == Site::Interrupt => {
                self.excuses.interrupts_lost.push(queue);
            }
            // An interrupt that comes twice is only a hint, and a completion that others overtake only late.
            Behaviour::Drop
            | Behaviour::Delay(_)
            | Behaviour::Duplicate
            | Behaviour::Reorder { .. } => {}
        }
    }

    fn excuse(&mut self, queue: u16, request: u64, excuse: Excuse) {
        let moment = self.excuses.step_began;
        self.excuses.commands.push(OfCommand {
            queue,
            request,
            moment,
            excuse,
        });
    }

    /// A completion of the queue will name this request, and may come when the host has a command of
    /// that id in flight that had not begun when the fault was injected.
    fn excuse_stray(&mut self, queue: u16, request: u64) {
        self.excuses.commands.push(OfCommand {
            queue,
            request,
            moment: u64::MAX,
            excuse: Excuse::Answer,
        });
    }

    fn never_answered(&mut self, queue: u16, request: u64) {
        if queue == 0 {
            self.excuses.admin = true;
        } else {
            self.excuses.lost.push((queue, request));
        }
    }

    fn queue_stops(&mut self, queue: u16) {
        if queue == 0 {
            self.excuses.disturbed = true;
        } else {
            self.excuses.queue_mut(queue).stopped = true;
        }
    }

    fn write_lost(&mut self, offset: u64) {
        let doorbells = regs::DOORBELLS..regs::DOORBELLS + regs::DOORBELLS_BYTES;
        if offset == regs::KICK {
            self.excuses.kick_lost = true;
        } else if doorbells.contains(&offset) && offset >= regs::DOORBELLS + DOORBELL_STRIDE {
            let queue = (offset - regs::DOORBELLS) / DOORBELL_STRIDE;
            // The device may take a ring for full, or not know of a command.
            self.excuses.queue_mut(queue as u16).late = true;
        } else {
            self.excuses.disturbed = true;
        }
    }

    /// What the host and the device hold cannot be known any more.
    fn wild(&mut self) {
        let moment = self.excuses.step_began;
        (self.excuses.wild, self.excuses.disturbed) = (true, true);
        self.excuses.news.push(News::CutAll { moment });
        self.memory.spoil_all();
    }

    fn cut(&mut self, map: MapHandle) {
        let moment = self.excuses.step_began;
        self.excuses.news.push(News::Cut { map, moment });
    }

    fn flipped(&mut self, site: Site, bits: u32, injection: &Injection) {
        let queue = injection.queue.unwrap_or(0);
        let request = injection.request.map_or(0, |r| r.0);
        let is_memory = matches!(site, Site::MemoryRead | Site::MemoryWrite);
        if is_memory && self.excuses.ecc {
            if bits > 1 {
                self.excuse(queue, request, Excuse::Status(Status::MediaError));
                self.plant_beside(Mutation::KeepHalfDone, queue, request);
            }
            return;
        }
        let Some(flips) = injection.flips else {
            return;
        };
        if site == Site::RegisterRead {
            self.excuses.disturbed = true;
        } else if queue == 0 {
            self.wild();
        } else if is_memory {
            let at = injection.at.unwrap_or(0);
            self.cell_flipped((queue, request), at, flips, site == Site::MemoryRead);
        } else {
            match site {
                Site::Fetch => self.command_flipped(queue, request, flips),
                Site::Complete => self.completion_flipped(queue, request, flips),
                Site::DmaRead => {
                    let at = injection.at.unwrap_or(0);
                    self.operand_flipped(queue, request, at + flips.first / 8);
                }
                // What the device returned by DMA.
                _ => self.excuse(queue, request, Excuse::Answer),
            }
        }
    }

    fn completion_flipped(&mut self, queue: u16, request: u64, flips: BitFlips) {
        let mut id = request;
        let of = self.excuses.queue_mut(queue);
        of.bad = true;
        for bit in flips.first..flips.first + u64::from(flips.count) {
            let bit = bit % (ENTRY_BYTES as u64 * 8);
            // The host does not look past an entry that is not there.
            of.late |= bit == PHASE_BIT;
            of.aborted |= STATUS_BITS.contains(&bit);
            if REQUEST_BITS.contains(&bit) {
                id ^= 1 << (bit - REQUEST_BITS.start);
            }
        }
        self.excuse(queue, request, Excuse::Answer);
        if id != request {
            self.never_answered(queue, request);
            self.excuse_stray(queue, id);
        }
    }

    /// The device runs another command than the one that the host wrote.
    fn command_flipped(&mut self, queue: u16, request: u64, flips: BitFlips) {
        let wanted = RequestId(request);
        let Some((was, is, strays)) = self.memory.flip_command(QueueId(queue), wanted, flips)
        else {
            return self.wild();
        };
        if is.request() != was.request() {
            self.never_answered(queue, request);
            self.excuses.queue_mut(queue).bad = true;
            self.excuse_stray(queue, is.request().0);
        }
        if strays {
            return self.wild();
        }
        let same = |w: &Submission| (w.opcode, w.flags, w.map().0);
        let value_only = {
            let (a, b) = (was.to_words(false), is.to_words(false));
            // Words 6 and 7 are the value's, or its address.
            a[2..6] == b[2..6]
        };
        if same(&was) == same(&is) && was.to_words(false)[2..] == is.to_words(false)[2..] {
            // Its id, its phase, or a reserved bit, for which the device may refuse it.
            return self.excuse(queue, request, Excuse::Answer);
        }
        let inline = is.flags().contains(SubmissionFlags::VALUE_INLINE);
        let update = IoOpcode(is.opcode) == IoOpcode::Update;
        if same(&was) == same(&is) && value_only && update && inline {
            self.excuses.news.push(News::Garbage { map: is.map() });
            return self.excuse(queue, request, Excuse::Value);
        }
        if changes(&is) {
            self.cut(is.map());
        }
        self.excuse(queue, request, Excuse::Answer);
    }

    /// A byte that a command read from host memory was wrong.
    fn operand_flipped(&mut self, queue: u16, request: u64, at: u64) {
        let Some(command) = self.memory.command(QueueId(queue), RequestId(request)) else {
            return self.wild();
        };
        let is_value = self.memory.is_value(&command, at);
        if is_value && IoOpcode(command.opcode) == IoOpcode::Update {
            let map = command.map();
            self.excuses.news.push(News::Garbage { map });
            return self.excuse(queue, request, Excuse::Value);
        }
        if changes(&command) {
            self.cut(command.map());
        }
        self.excuse(queue, request, Excuse::Answer);
    }

    /// A cell of device memory has changed, and nobody was told.
    fn cell_flipped(&mut self, by: (u16, u64), at: u64, flips: BitFlips, before: bool) {
        let Some(command) = self.memory.command(QueueId(by.0), RequestId(by.1)) else {
            return self.wild();
        };
        let (map, byte) = (command.map(), at + flips.first / 8);
        let known = self.excuses.maps.iter().find(|m| m.handle == map);
        let mut owner: Option<usize> = None;
        // A queue has one key, which stands for whichever value comes next.
        // A command that changes the map reads more than values, and in the same places. What takes an
        // entry out writes a link of the free list there, which is a value again by the time that a later
        // command of the step has taken the place.
        let removes = [IoOpcode::Delete, IoOpcode::LookupAndDelete];
        let no_value = before && changes(&command) || removes.contains(&IoOpcode(command.opcode));
        let of = self.memory.key_of(&command);
        if let Some(known) = known.filter(|_| flips.count == 1 && !no_value) {
            for (key, bytes) in known.keys.iter().enumerate().filter(|(_, k)| !k.is_empty()) {
                let value = self.device.firmware_mut().value_address(map, bytes);
                let inside =
                    value.is_some_and(|(at, len)| (at.0..at.0 + len as u64).contains(&byte));
                // A prefix's value is found by the prefixes within it, too.
                let shorter = owner.is_none_or(|o| known.prefix_len(key) < known.prefix_len(o));
                if inside && shorter {
                    owner = Some(key);
                }
            }
        }
        // Later commands of the step may have given the cell to another key.
        let its_own = owner.filter(|o| known.is_some_and(|m| of.as_ref() == Some(&m.keys[*o])));
        match its_own {
            Some(key) => self.excuses.cells.push(Cell {
                map,
                key: key as u8,
                by,
                before,
                posted: None,
            }),
            // Something that holds the map together.
            None => self.cut(map),
        }
    }

    /// The completion of a command was posted; what it met happened beside it.
    pub(crate) fn stamp_beside(&mut self, queue: QueueId, request: RequestId) -> u64 {
        if self.excuses.cells.is_empty() {
            return self.stamp();
        }
        let mut cells = std::mem::take(&mut self.excuses.cells);
        let its = |c: &&mut Cell| c.by == (queue.0, request.0) && c.posted.is_none();
        for cell in cells.iter_mut().filter(its).filter(|c| c.before) {
            cell.posted = Some(self.stamp());
        }
        let at = self.stamp();
        for cell in cells.iter_mut().filter(its) {
            cell.posted = Some(self.stamp());
        }
        self.excuses.cells = cells;
        at
    }

    /// What the step did has been looked at.
    pub(crate) fn after_step(&mut self) {
        let began = self.excuses.step_began;
        for cell in std::mem::take(&mut self.excuses.cells) {
            let posted = match cell.posted {
                Some(posted) => posted,
                None => self.stamp(),
            };
            let ended = self.stamp();
            self.excuses.news.push(News::Spoiled {
                map: cell.map,
                key: cell.key,
                began,
                ended,
                posted,
            });
        }
    }

    /// Whether a completion that cannot be, or that fails, is the work of a fault.
    pub(crate) fn is_excused(&self, queue: QueueId, request: RequestId) -> bool {
        if queue.is_admin() {
            return self.excuses.admin || self.excuses.disturbed || self.excuses.wild;
        }
        self.excuses.wild
            || self.excuses.queue(queue).bad
            || self.excuses.of(queue, request.0).next().is_some()
    }
}
