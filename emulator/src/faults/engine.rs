//! The plan at work: matches, draws, and what is held back.

use super::plan::FaultPlan;
use super::report::{FaultReport, Injection, RuleReport};
use super::rule::{Behaviour, Command, Delay, Rule, Site};
use crate::device::Clock;
use offmap_abi::{AdminOpcode, Completion, IoOpcode, MapHandle, QueueId, RequestId, Submission};
use offmap_firmware_model::hook::BitFlips;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A rule with its counts and its generator.
struct Armed {
    rule: Rule,
    rng: Xoshiro256PlusPlus,
    matched: u64,
    injected: u64,
    corrected: u64,
    detected: u64,
}

/// The command that a queue is at.
#[derive(Clone, Copy)]
struct Current {
    command: Command,
    request: RequestId,
    map: MapHandle,
    map_type: Option<u32>,
}

/// What passes a site.
#[derive(Clone, Copy, Default)]
pub(crate) struct Passage {
    pub(crate) queue: Option<u16>,
    pub(crate) register: Option<u64>,
    /// The address of an access to host or device memory.
    pub(crate) at: Option<u64>,
}

/// A rule that fired, and what it does.
#[derive(Clone, Copy)]
pub(crate) struct Fired {
    pub(crate) rule: usize,
    pub(crate) behaviour: Behaviour,
}

/// What the device does once the passage at hand is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// The queue at hand stops as for a ring that cannot be accessed.
    StopQueue,
    StopFirmware,
    Fatal,
    Reset,
    Unplug,
}

impl Event {
    /// Whether nothing more of the device reaches the host once it has happened.
    pub(crate) fn ends_access(self) -> bool {
        self != Self::StopFirmware
    }
}

/// When something held back is due.
#[derive(Clone, Copy)]
enum Due {
    Step(u64),
    Time(Duration),
}

impl Due {
    /// Steps are counted from `origin` on.
    fn rebase(&mut self, origin: u64) {
        if let Self::Step(step) = self {
            *step = step.saturating_sub(origin);
        }
    }
}

/// A completion that is held back.
struct HeldCompletion {
    queue: QueueId,
    completion: Completion,
    due: Due,
    /// Later ones of its queue that must come first.
    behind: u32,
}

/// A plan at work on a device.
pub(crate) struct Engine {
    rules: Vec<Armed>,
    /// Bit `n`: a rule stands at site `n`.
    sites: u32,
    needs_map_type: bool,
    ecc: bool,
    seed: u64,
    steps: u64,
    injections: Vec<Injection>,
    clock: Clock,
    /// By queue: the command fetched last. A queue has at most one under way.
    current: BTreeMap<u16, Current>,
    /// Bounded: each has its place in a completion ring since it was fetched.
    completions: Vec<HeldCompletion>,
    /// At most one for each vector, like a pending bit.
    interrupts: BTreeMap<u32, Due>,
    /// Steps that are still to do nothing.
    slow: u64,
    event: Option<Event>,
    /// The firmware hangs.
    pub(crate) stopped: bool,
    /// The device is unplugged.
    pub(crate) gone: bool,
}

impl Engine {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            rules: Vec::new(),
            sites: 0,
            needs_map_type: false,
            ecc: false,
            seed: 0,
            steps: 0,
            injections: Vec::new(),
            clock,
            current: BTreeMap::new(),
            completions: Vec::new(),
            interrupts: BTreeMap::new(),
            slow: 0,
            event: None,
            stopped: false,
            gone: false,
        }
    }

    /// Takes up a plan in place of the one before. What that one broke, or holds back, stays so.
    pub(crate) fn load(&mut self, plan: &FaultPlan, seed: u64) {
        self.sites = plan
            .rules
            .iter()
            .fold(0, |sites, rule| sites | 1 << rule.site as u32);
        self.needs_map_type = plan.rules.iter().any(|rule| rule.map_type.is_some());
        self.ecc = plan.ecc;
        self.seed = seed;
        // What is held back comes as late as it was to come.
        for due in self.completions.iter_mut().map(|held| &mut held.due) {
            due.rebase(self.steps);
        }
        for due in self.interrupts.values_mut() {
            due.rebase(self.steps);
        }
        self.steps = 0;
        self.injections = Vec::new();
        // Seeds that differ by one, and rules beside each other, start far apart: the generator
        // spreads what it is seeded with.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.rules = plan
            .rules
            .iter()
            .zip(1u64..)
            .map(|(rule, n)| Armed {
                rule: rule.clone(),
                rng: Xoshiro256PlusPlus::seed_from_u64(
                    seed.rotate_left(32) ^ SPREAD.wrapping_mul(n),
                ),
                matched: 0,
                injected: 0,
                corrected: 0,
                detected: 0,
            })
            .collect();
    }

    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    pub(crate) fn report(&self) -> FaultReport {
        FaultReport {
            seed: self.seed,
            steps: self.steps,
            rules: self
                .rules
                .iter()
                .map(|armed| RuleReport {
                    name: armed.rule.name.clone(),
                    site: armed.rule.site,
                    behaviour: armed.rule.behaviour,
                    matched: armed.matched,
                    injected: armed.injected,
                    corrected: armed.corrected,
                    detected: armed.detected,
                })
                .collect(),
            injections: self.injections.clone(),
        }
    }

    pub(crate) fn injections(&self) -> &[Injection] {
        &self.injections
    }

    /// Those, which are forgotten, so that there is room for as many again.
    pub(crate) fn take_injections(&mut self) -> Vec<Injection> {
        std::mem::take(&mut self.injections)
    }

    pub(crate) fn injected(&self) -> u64 {
        self.rules.iter().map(|armed| armed.injected).sum()
    }

    /// Forgets what a reset ends: what is held back, a hang, slowness. The plan goes on.
    pub(crate) fn reset(&mut self) {
        self.current.clear();
        self.completions.clear();
        self.interrupts.clear();
        self.slow = 0;
        self.event = None;
        self.stopped = false;
    }

    /// Forgets a queue that is deleted.
    pub(crate) fn forget_queue(&mut self, queue: QueueId) {
        self.current.remove(&queue.0);
        self.completions.retain(|held| held.queue != queue);
    }

    /// A command was fetched from a queue.
    pub(crate) fn begin(
        &mut self,
        queue: QueueId,
        command: &Submission,
        map_type: impl FnOnce(MapHandle) -> Option<u32>,
    ) {
        let code = command.opcode;
        let current = Current {
            command: match queue.is_admin() {
                true => Command::Admin(AdminOpcode(code)),
                false => Command::Io(IoOpcode(code)),
            },
            request: command.request(),
            map: command.map(),
            map_type: match self.needs_map_type {
                true => map_type(command.map()),
                false => None,
            },
        };
        self.current.insert(queue.0, current);
    }

    /// Something passes a site: what goes wrong with it, if anything.
    #[inline]
    pub(crate) fn decide(&mut self, site: Site, passage: Passage) -> Option<Fired> {
        if self.sites >> site as u32 & 1 == 0 {
            return None;
        }
        let current = passage
            .queue
            .and_then(|queue| self.current.get(&queue).copied());
        let mut fired = None;
        for (index, armed) in self.rules.iter_mut().enumerate() {
            let rule = &armed.rule;
            if rule.site != site || !matches(rule, passage, current) {
                continue;
            }
            armed.matched += 1;
            // Drawn for each match, whether another rule was first or not: what a rule does
            // depends on its own matches alone.
            let fires = armed.fires();
            if fires && fired.is_none() {
                armed.injected += 1;
                fired = Some(Fired {
                    rule: index,
                    behaviour: armed.rule.behaviour,
                });
                if self.injections.len() < FaultReport::INJECTIONS_MAX {
                    self.injections.push(Injection {
                        step: self.steps,
                        rule: index + 1,
                        matched: armed.matched,
                        queue: passage.queue,
                        request: current.filter(|_| site.has_command()).map(|c| c.request),
                        at: passage.at.or(passage.register),
                        flips: None,
                    });
                }
            }
        }
        let fired = fired?;
        self.begin_event(fired.behaviour);
        Some(fired)
    }

    /// What befalls the whole device happens when the passage is over.
    fn begin_event(&mut self, behaviour: Behaviour) {
        let event = match behaviour {
            Behaviour::Slow { steps } => {
                self.slow = self.slow.saturating_add(steps.into());
                return;
            }
            Behaviour::StopFirmware => Event::StopFirmware,
            Behaviour::Fatal => Event::Fatal,
            Behaviour::Reset => Event::Reset,
            Behaviour::Unplug => Event::Unplug,
            _ => return,
        };
        self.raise(event);
    }

    /// The first of several counts, but for the queue's own.
    pub(crate) fn raise(&mut self, event: Event) {
        if matches!(self.event, None | Some(Event::StopQueue)) {
            self.event = Some(event);
        }
    }

    pub(crate) fn event(&self) -> Option<Event> {
        self.event
    }

    pub(crate) fn take_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// Which bits a flip flips; of what passes with `len` bytes.
    pub(crate) fn flips(
        &mut self,
        fired: Fired,
        bits: u32,
        at: Option<u32>,
        len: usize,
    ) -> BitFlips {
        let first = match (at, self.rules.get_mut(fired.rule)) {
            (Some(at), _) => u64::from(at) % (len.max(1) as u64 * 8),
            (None, Some(armed)) => armed.rng.next_u64() % (len.max(1) as u64 * 8),
            (None, None) => 0,
        };
        let flips = BitFlips { first, count: bits };
        // That of the passage at hand is the last one, as long as all of them are kept.
        if let Some(last) = self.injections.last_mut()
            && last.rule == fired.rule + 1
            && last.flips.is_none()
        {
            last.flips = Some(flips);
        }
        flips
    }

    /// What a flip of device memory comes to: `None`, and counted, when it is corrected.
    /// `Some(None)`: it is detected.
    pub(crate) fn memory_flip(
        &mut self,
        fired: Fired,
        bits: u32,
        at: Option<u32>,
        len: usize,
    ) -> Option<Option<BitFlips>> {
        if !self.ecc {
            return Some(Some(self.flips(fired, bits, at, len)));
        }
        let armed = self.rules.get_mut(fired.rule)?;
        if bits == 1 {
            armed.corrected += 1;
            None
        } else {
            armed.detected += 1;
            Some(None)
        }
    }

    /// A step begins.
    pub(crate) fn tick(&mut self) {
        self.steps += 1;
    }

    /// Whether this step does nothing because of slow memory.
    pub(crate) fn is_slow(&mut self) -> bool {
        let slow = self.slow > 0;
        self.slow -= u64::from(slow);
        slow
    }

    fn due(&self, delay: Delay) -> Due {
        match delay {
            Delay::Steps(steps) => Due::Step(self.steps + u64::from(steps)),
            Delay::Time(time) => Due::Time((self.clock)() + time),
        }
    }

    pub(crate) fn hold(&mut self, queue: QueueId, completion: Completion, delay: Delay) {
        let due = self.due(delay);
        self.completions.push(HeldCompletion {
            queue,
            completion,
            due,
            behind: u32::MAX,
        });
    }

    pub(crate) fn hold_behind(&mut self, queue: QueueId, completion: Completion, behind: u32) {
        let due = self.due(Delay::Steps(Behaviour::REORDER_STEPS));
        self.completions.push(HeldCompletion {
            queue,
            completion,
            due,
            behind,
        });
    }

    /// A completion of the queue was posted; those that it overtook may come closer.
    pub(crate) fn overtaken(&mut self, queue: QueueId) {
        for held in &mut self.completions {
            if held.queue == queue && held.behind != u32::MAX {
                held.behind = held.behind.saturating_sub(1);
            }
        }
    }

    pub(crate) fn hold_interrupt(&mut self, vector: u32, delay: Delay) {
        let due = self.due(delay);
        // One that is held already will do for both.
        self.interrupts.entry(vector).or_insert(due);
    }

    /// Whether something is held back, so that a device must not sleep.
    pub(crate) fn holds(&self) -> bool {
        !self.stopped
            && (!self.completions.is_empty() || !self.interrupts.is_empty() || self.slow > 0)
    }

    /// Takes a completion that is due.
    pub(crate) fn due_completion(&mut self) -> Option<(QueueId, Completion)> {
        if self.completions.is_empty() {
            return None;
        }
        let now = (self.clock)();
        let steps = self.steps;
        let index = self.completions.iter().position(|held| {
            held.behind == 0
                || match held.due {
                    Due::Step(step) => step <= steps,
                    Due::Time(time) => time <= now,
                }
        })?;
        let held = self.completions.remove(index);
        Some((held.queue, held.completion))
    }

    /// Takes an interrupt that is due.
    pub(crate) fn due_interrupt(&mut self) -> Option<u32> {
        if self.interrupts.is_empty() {
            return None;
        }
        let now = (self.clock)();
        let steps = self.steps;
        let (&vector, _) = self.interrupts.iter().find(|(_, due)| match due {
            Due::Step(step) => *step <= steps,
            Due::Time(time) => *time <= now,
        })?;
        self.interrupts.remove(&vector);
        Some(vector)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("rules", &self.rules.len())
            .field("seed", &self.seed)
            .field("steps", &self.steps)
            .field("stopped", &self.stopped)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

impl Armed {
    /// Whether the rule fires at the match that was just counted.
    fn fires(&mut self) -> bool {
        let rule = &self.rule;
        let from = rule.from.unwrap_or(1);
        let inside = from <= self.matched && rule.to.is_none_or(|to| self.matched <= to);
        let picked = if let Some(nth) = rule.nth {
            self.matched == nth
        } else if let Some(every) = rule.every {
            inside && (self.matched - from + 1).is_multiple_of(every)
        } else if let Some(p) = rule.probability {
            // 53 bits, as many as the fraction of a double has.
            let drawn = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            inside && drawn < p
        } else {
            inside
        };
        picked && rule.times.is_none_or(|times| self.injected < times)
    }
}

fn matches(rule: &Rule, passage: Passage, current: Option<Current>) -> bool {
    let fits = |wanted: Option<u16>, is: Option<u16>| wanted.is_none() || wanted == is;
    if !fits(rule.queue, passage.queue)
        || (rule.register.is_some() && rule.register != passage.register)
    {
        return false;
    }
    let by_command = rule.command.is_some() || rule.map.is_some() || rule.map_type.is_some();
    let needs_memory = rule.behaviour == Behaviour::NoMemory;
    if !by_command && !needs_memory {
        return true;
    }
    let Some(current) = current else {
        return false;
    };
    rule.command
        .is_none_or(|command| command == current.command)
        && rule.map.is_none_or(|map| map == current.map.0)
        && (rule.map_type.is_none() || rule.map_type == current.map_type)
        && (!needs_memory
            || matches!(
                current.command,
                Command::Admin(AdminOpcode::MapCreate)
                    | Command::Io(IoOpcode::Update | IoOpcode::BatchUpdate)
            ))
}
