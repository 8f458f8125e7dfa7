//! One run: the hosts, and the actions of a plan carried out one after the other.

mod actions;
mod batches;
mod end;
mod faulty;
mod meanwhile;
mod rings;

use crate::check::{Check, Fault};
use crate::event::Event;
use crate::excuse::Excuse;
use crate::function::{Meanwhile, Met, SimFunction};
use crate::linearize::{Call, Verdict};
use crate::map::{FIRST_VALUE, SimMap, shape, value_bytes};
use crate::memory::Pool;
use crate::mutation::Mutation;
use crate::plan::{Act, Action, Plan};
use crate::rng::{Rng, mix};
use crate::spec::{Answer, Kind};
use crate::world::World;
use offmap_abi::Status;
use offmap_driver::{
    CompletionMode, DeviceMap, Driver, DriverConfig, DriverError, Op, QueuePair, SubmitError, Token,
};
use offmap_emulator::DeviceConfig;
use offmap_firmware_model::Config as FirmwareConfig;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Deadlines of the simulated driver, in simulated time.
const OP_TIMEOUT: Duration = Duration::from_millis(20);
const ADMIN_TIMEOUT: Duration = Duration::from_millis(50);
/// A blocking call takes no longer than its deadline, the abort's, and the time that it takes to
/// notice.
const CALL_BOUND: Duration = Duration::from_millis(75);
/// A command in flight has its result within this time, as long as nothing holds the device up.
const FLIGHT_NS: u64 = 60_000_000;
/// MSI-X vectors: one host of four polls for want of one.
const VECTORS: u16 = 3;
/// Device memory: enough for every map of a run.
const MEMORY_BYTES: u64 = 1 << 20;
/// Resets that are tried in a row, each of which met a fault.
const RESETS: u32 = 40;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    /// Of those, the ones whose answer was held against a specification.
    pub(crate) verified: u64,
    pub(crate) events: BTreeMap<&'static str, u64>,
    pub(crate) injected: BTreeMap<String, u64>,
    pub(crate) violation: Option<Fault>,
    pub(crate) digest: u64,
    /// Maps checked, those of them that needed the search, and those left undecided.
    pub(crate) maps: u64,
    pub(crate) searched: u64,
    pub(crate) undecided: u64,
    /// Scheduler steps.
    pub(crate) ticks: u64,
    /// How often the planted bug did something.
    pub(crate) mutated: u64,
    pub(crate) trace: Vec<String>,
}

/// A command of a host that is in flight.
struct Flight {
    token: Token,
    /// Map slot and serial number.
    map: (usize, u32),
    call: Call,
    /// Bytes that it returns.
    room: usize,
    since_ns: u64,
    aborted: bool,
}

/// A batch in flight whose call the host has left.
struct Left {
    request: u64,
    /// Map slot and serial number.
    map: (usize, u32),
    /// What it changes.
    calls: Vec<Call>,
    since_ns: u64,
}

/// A host: a thread with a queue pair of its own.
#[derive(Default)]
struct Host {
    queue: Option<QueuePair<SimFunction>>,
    lane: u16,
    flights: Vec<Flight>,
    left: Vec<Left>,
}

struct Run {
    hosts: Vec<Host>,
    maps: Vec<Option<SimMap>>,
    driver: Option<Arc<Driver<SimFunction>>>,
    sim: Arc<SimFunction>,
    /// A map from before the last reset, to be refused.
    stale: Option<DeviceMap>,
    next_lane: u16,
    next_value: u32,
    next_serial: u32,
    /// Something happened since the last reset that may make calls fail.
    disturbed: bool,
    /// Free device memory before the first map, and its largest piece.
    memory_at_start: Option<(u64, u64)>,
    /// Lanes of what happens in no queue, from the last one down.
    next_aside: u16,
    /// The device's faults let no reset through: the run is over.
    given_up: bool,
    violent: bool,
    rings: rings::Rings,
    /// What happened in the middle of the blocking call that was the last.
    met: Met,
    rng: Rng,
    host: usize,
    tracing: bool,
    outcome: Outcome,
}

/// Carries a plan out.
pub(crate) fn run(
    plan: &Plan,
    mutation: Option<Mutation>,
    tracing: bool,
    pool: &mut Pool,
) -> Outcome {
    let setup = &plan.setup;
    let config = DeviceConfig {
        queue_pairs: setup.hosts as u16 + 1,
        queue_depth_max: 16,
        vectors: VECTORS,
        keep_maps: false,
        polls_before_park: setup.polls_before_park,
        turns: setup.turns,
        firmware: FirmwareConfig {
            batch: setup.batch,
            step: setup.step,
            maps: 16,
            engines: 2,
            ..FirmwareConfig::with_memory(MEMORY_BYTES)
        },
        ..DeviceConfig::default()
    };
    let failed = |what: String| Outcome {
        violation: Some(Fault {
            check: Check::Failed,
            what,
        }),
        ..Outcome::default()
    };
    let world = match World::new(&config, setup.hosts, mutation, std::mem::take(pool)) {
        Ok(world) => world,
        Err(e) => return failed(format!("the simulated device cannot be built: {e}")),
    };
    let polled = setup.completion == CompletionMode::Poll;
    let sim = Arc::new(SimFunction::new(world, polled));
    sim.world().rng = Rng::new(mix(plan.seed));
    let config = DriverConfig {
        completion: setup.completion,
        coalescing: setup.coalescing,
        queue_depth: setup.depth,
        admin_timeout: ADMIN_TIMEOUT,
        op_timeout: OP_TIMEOUT,
        notify: setup.notify,
        slot_bytes: setup.slot_bytes,
        batch_bytes: 4096,
        numa_node: None,
        ..DriverConfig::default()
    };
    let driver = match Driver::bring_up(Arc::clone(&sim), config) {
        Ok(driver) => driver,
        Err(e) => return failed(format!("bring-up failed: {e}")),
    };
    sim.introduce(&driver);
    let mut run = Run {
        hosts: (0..setup.hosts).map(|_| Host::default()).collect(),
        maps: (0..setup.maps).map(|_| None).collect(),
        driver: Some(driver),
        sim: Arc::clone(&sim),
        stale: None,
        next_lane: 0,
        next_value: FIRST_VALUE,
        next_serial: 0,
        disturbed: false,
        memory_at_start: None,
        next_aside: u16::MAX,
        given_up: false,
        violent: setup.violent,
        rings: rings::Rings::new(setup.ring),
        met: Met::Nothing,
        rng: Rng::new(plan.seed),
        host: 0,
        tracing,
        outcome: Outcome::default(),
    };
    // What panics is dropped afterwards, and not while it unwinds: a second panic would end the process.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run.carry_out(plan))) {
        run.panicked(&*panic);
    }
    let outcome = run.end();
    *pool = std::mem::take(&mut sim.world().pool);
    outcome
}

impl Run {
    fn carry_out(&mut self, plan: &Plan) {
        self.memory_at_start = self.free_memory();
        if self.memory_at_start.is_none() {
            self.violate(Check::Failed, "a new device does not tell its memory");
        }
        if let Some(faults) = &plan.faults {
            for rule in &faults.rules {
                self.trace(|| format!("fault: {}", rule.name()));
            }
            self.sim.world().set_faults(faults);
        }
        for (index, action) in plan.actions.iter().enumerate() {
            if usize::from(action.host) >= self.hosts.len() {
                continue;
            }
            self.act(index, *action);
            if self.stopped() {
                break;
            }
        }
        if self.sim.world().violation.is_none() {
            self.settle();
        }
    }

    /// The driver or the device has panicked: nobody calls on the device any more.
    fn panicked(&mut self, panic: &(dyn Any + Send)) {
        let mut world = self.sim.world();
        world.removed = true;
        let Fault { check, what } = Fault::of_panic(panic);
        world.violate(check, what);
    }

    fn stopped(&self) -> bool {
        let world = self.sim.world();
        world.violation.is_some() || world.removed || self.given_up
    }

    fn violate(&mut self, check: Check, what: impl Into<String>) {
        self.sim.world().violate(check, what.into());
    }

    fn driver(&self) -> Arc<Driver<SimFunction>> {
        match &self.driver {
            Some(driver) => Arc::clone(driver),
            None => unreachable!("the driver goes last, when no action follows"),
        }
    }

    fn count(&mut self, event: Event) {
        *self.outcome.events.entry(event.name()).or_default() += 1;
    }

    fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            let (now, moment) = {
                let world = self.sim.world();
                (world.now_ns, world.moment)
            };
            let (us, ns) = (now / 1000, now % 1000);
            let line = format!(
                "{us:>7}.{ns:03} us #{moment:<5} host {}  {}",
                self.host,
                line()
            );
            self.outcome.trace.push(line);
        }
    }

    /// Mixes something that happened into the digest.
    fn digest(&mut self, what: u64) {
        self.outcome.digest = mix(self.outcome.digest ^ what);
    }

    fn stamp(&self) -> u64 {
        self.sim.world().stamp()
    }

    fn now_ns(&self) -> u64 {
        self.sim.world().now_ns
    }

    /// Lets the device have time.
    fn ticks(&self, count: u64) {
        for _ in 0..count {
            self.sim.world().tick();
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        self.host = action.host.into();
        self.rng = Rng::new(action.seed);
        {
            let mut world = self.sim.world();
            world.run_on(action.host.into());
            world.rng = Rng::new(!action.seed);
        }
        self.trace(|| format!("action {index}: {:?}", action.act));
        match action.act {
            Act::Write => self.write(),
            Act::Commit => self.commit(),
            Act::Poll => self.poll(),
            Act::Call => self.call(),
            Act::Batch => self.batch(),
            Act::Walk => self.walk(),
            Act::Abort => self.abort(),
            Act::Tick => {
                let count = 1 + self.rng.below(12);
                self.ticks(count);
            }
            Act::Idle => {
                self.count(Event::Idle);
                for _ in 0..8 {
                    let ns = self.rng.below(500_000);
                    self.sim.world().pass(ns);
                }
            }
            Act::Remap => self.remap(),
            Act::Requeue => {
                self.count(Event::QueueDeleted);
                self.lose_queue();
                self.queue();
            }
            Act::Stall | Act::LongStall => self.stall(action.act == Act::LongStall),
            Act::Reset => {
                self.count(Event::Reset);
                self.recover();
            }
            Act::ForeignReset => {
                self.count(Event::ForeignReset);
                self.disturbed = true;
                self.sim.world().reset();
            }
            Act::Remove => {
                self.count(Event::Removal);
                let well = !self.disturbed();
                self.sim.world().remove(well);
            }
            Act::Health => self.health(),
        }
        self.after_action(action.seed);
        self.after_faults();
        let (now, ticks) = {
            let world = self.sim.world();
            (world.now_ns, world.ticks)
        };
        self.digest(now ^ ticks << 40);
    }

    /// Whether a call that began at `began_ns` ended within its bound.
    fn in_bound(&mut self, what: &str, began_ns: u64) {
        let took = Duration::from_nanos(self.now_ns() - began_ns);
        if took > CALL_BOUND + self.met_bound() {
            self.violate(
                Check::Deadline,
                format!("{what} took {took:?} of simulated time, more than its deadlines"),
            );
        }
    }

    fn stall(&mut self, long: bool) {
        let ms = if long {
            self.count(Event::LongStall);
            self.disturbed = true;
            30 + self.rng.below(200)
        } else {
            self.count(Event::Stall);
            1 + self.rng.below(8)
        };
        let mut world = self.sim.world();
        let until = world.now_ns + ms * 1_000_000;
        world.stalled_until = world.stalled_until.max(until);
    }

    fn health(&mut self) {
        if let Err(e) = self.driver().check_health() {
            self.trace(|| format!("not well: {e}"));
            if !self.disturbed() {
                self.violate(
                    Check::Failed,
                    format!("the device is not well and nothing happened to it: {e}"),
                );
            }
            self.recover();
        }
    }

    /// The queue of the host whose turn it is; makes one where there is none.
    fn queue(&mut self) -> bool {
        if self.hosts[self.host].queue.is_some() {
            return true;
        }
        let began = self.now_ns();
        match self.driver().create_queue() {
            Ok(queue) => {
                self.in_bound("QUEUE_CREATE", began);
                self.sim.world().excuses.forget_queue(queue.id().0);
                let host = &mut self.hosts[self.host];
                host.queue = Some(queue);
                host.lane = self.next_lane;
                self.next_lane += 1;
                self.refuse_stale();
                true
            }
            Err(e) => {
                self.admin_failed("QUEUE_CREATE", &e);
                false
            }
        }
    }

    /// A map from before a reset is refused on a queue made after it.
    fn refuse_stale(&mut self) {
        let Some(map) = self.stale.take() else {
            return;
        };
        let Some(queue) = &mut self.hosts[self.host].queue else {
            return;
        };
        let key = vec![0; map.key_size()];
        let op = Op::Lookup {
            map: &map,
            key: &key,
        };
        let refused = queue.write(&op);
        if !matches!(refused, Err(SubmitError::Driver(DriverError::DeviceReset))) {
            self.violate(
                Check::OldHandle,
                "a map from before a reset was not refused with DeviceReset",
            );
        }
    }

    /// An admin command failed: that may be only after something happened, and a reset follows.
    fn admin_failed(&mut self, what: &str, error: &DriverError) {
        self.trace(|| format!("{what}: {error}"));
        if !self.admin_may_fail() {
            self.violate(
                Check::of(error),
                format!("{what} failed and nothing happened to the device: {error}"),
            );
            return;
        }
        self.recover();
    }

    /// A queue failed: the same, and the host makes another one.
    fn queue_failed(&mut self, error: &DriverError) {
        self.trace(|| format!("the queue failed: {error}"));
        if !self.may_fail(error) {
            self.violate(
                Check::of(error),
                format!("a call failed and nothing happened to the device: {error}"),
            );
        }
        self.lose_queue();
        if matches!(
            error,
            DriverError::DeviceReset | DriverError::Fatal { .. } | DriverError::DeviceGone { .. }
        ) {
            self.recover();
        }
    }

    /// The host drops its queue; what became of the commands in flight nobody knows.
    fn lose_queue(&mut self) {
        let host = &mut self.hosts[self.host];
        let flights = std::mem::take(&mut host.flights);
        let left = std::mem::take(&mut host.left);
        let queue = host.queue.take();
        let id = queue.as_ref().map(|queue| queue.id());
        let began = self.now_ns();
        drop(queue);
        self.in_bound("QUEUE_DELETE", began);
        // Then the device has let go of it, and no effect is still to come.
        let over = id.is_none_or(|id| self.sim.world().memory.is_released(id));
        let ended = if over { self.stamp() } else { u64::MAX };
        for batch in left {
            self.left_unknown(&batch, ended);
        }
        for mut flight in flights {
            flight.call.answer = Answer::Unknown;
            flight.call.ended = ended;
            if let Some(id) = id {
                let excuses = self
                    .sim
                    .world()
                    .excuses
                    .of(id, flight.token.request().0)
                    .collect::<Vec<_>>();
                self.spoil(&mut flight.call, &excuses);
            }
            // The host does not know it; for the witness it is a good proposal.
            flight.call.posted = id.and_then(|id| self.posted(id, flight.token.request().0));
            self.record(flight.map, flight.call);
        }
    }

    /// Notes an operation that has ended, or never will.
    fn record(&mut self, (slot, serial): (usize, u32), call: Call) {
        self.outcome.operations += 1;
        if let Answer::Value(v) = call.answer {
            self.digest(v.into());
        }
        self.digest(call.ended ^ u64::from(call.key) << 56);
        self.trace(|| {
            format!(
                "  map {serial} key {}: {:?} -> {:?} (began #{})",
                call.key, call.kind, call.answer, call.began
            )
        });
        if let Some(map) = self.maps[slot].as_mut().filter(|m| m.serial == serial) {
            map.calls.push(call);
        }
    }

    /// The driver resets the device; all queues and maps are over.
    fn recover(&mut self) {
        self.trace(|| "the driver resets the device".into());
        let mut tries = 0;
        loop {
            let faults = self.sim.world().excuses.total;
            let skipped = self.sim.world().plants(Mutation::ResetNotDone, 1);
            let done = match skipped {
                true => Ok(()),
                false => self.driver().reset(),
            };
            let Err(e) = done else {
                break;
            };
            self.trace(|| format!("reset: {e}"));
            tries += 1;
            if self.sim.world().removed {
                // From here on calls say that the driver has tried a reset.
                self.disturbed = true;
                return;
            }
            if self.sim.world().excuses.total == faults {
                self.violate(
                    Check::Reset,
                    format!("the device does not come back from a reset: {e}"),
                );
                return;
            }
            if tries == RESETS {
                self.count(Event::GivenUp);
                self.given_up = true;
                return;
            }
        }
        let now = self.host;
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            if let Some(queue) = &mut self.hosts[host].queue {
                let refused = queue.submit(&Op::Nop);
                if !matches!(refused, Err(SubmitError::Driver(DriverError::DeviceReset))) {
                    self.violate(
                        Check::OldHandle,
                        "a queue from before a reset does not fail with DeviceReset",
                    );
                }
                self.lose_queue();
            }
        }
        self.host = now;
        self.sim.world().run_on(now);
        self.disturbed = false;
        self.forget_rings();
        for slot in 0..self.maps.len() {
            if let Some(map) = self.close_map(slot) {
                match self.driver().free_map(&map) {
                    Err(DriverError::DeviceReset) => {}
                    other => self.violate(
                        Check::OldHandle,
                        format!(
                            "freeing a map from before a reset gave {other:?}, not DeviceReset"
                        ),
                    ),
                }
                self.stale = Some(map);
            }
        }
    }

    /// Judges a map's history, and forgets the map.
    fn close_map(&mut self, slot: usize) -> Option<DeviceMap> {
        self.take_news();
        let mut map = self.maps[slot].take()?;
        let handle = map.map.handle();
        let mut world = self.sim.world();
        world.excuses.maps.retain(|m| m.handle != handle);
        drop(world);
        self.outcome.maps += 1;
        match map.judge() {
            Verdict::Explained { searched } => {
                self.outcome.searched += u64::from(searched);
                self.outcome.verified += map.verified();
            }
            Verdict::Undecided => self.outcome.undecided += 1,
            Verdict::Wrong(Fault { check, what }) => {
                let name = format!("map {} ({}, {:?})", map.serial, map.map_type, map.spec);
                self.violate(check, format!("{name}: {what}"));
            }
        }
        Some(map.map)
    }

    /// Makes a map where there is none. Whether there is one then.
    fn make_map(&mut self, slot: usize) -> bool {
        if self.maps[slot].is_some() {
            return true;
        }
        let (params, map_type, spec, keys) = shape(&mut self.rng);
        let began = self.now_ns();
        let reset = (self.violent && self.rng.one_in(40))
            .then(|| (Meanwhile::ForeignReset, 1 + self.rng.below(12)));
        let (driver, sim) = (self.driver(), Arc::clone(&self.sim));
        let (made, met) = sim.meanwhile(reset, None, || driver.create_map(&params));
        self.has_met(met);
        let Some(made) = made else {
            return false;
        };
        match made {
            Ok(map) => {
                self.in_bound("MAP_CREATE", began);
                let serial = self.next_serial;
                self.next_serial += 1;
                self.trace(|| {
                    format!(
                        "map {serial}: {map_type}, {spec:?}, keys of {} and values of {} bytes",
                        params.key_size, params.value_size
                    )
                });
                let cut = self.know_map(&map, map_type, &keys);
                let old = value_bytes(self.next_value, map.value_stride());
                self.sim
                    .world()
                    .plant_old_contents(map.handle(), &keys[0], &old);
                self.maps[slot] = Some(SimMap {
                    cut,
                    spoiled: false,
                    map,
                    serial,
                    map_type,
                    spec,
                    keys,
                    calls: Vec::new(),
                    walks: Vec::new(),
                });
                true
            }
            Err(e) => {
                if !self.refused_for_memory(&e) {
                    self.admin_failed("MAP_CREATE", &e);
                }
                false
            }
        }
    }

    /// When the device posted the completion of a command of this host.
    fn posted(&mut self, queue: offmap_abi::QueueId, request: u64) -> Option<u64> {
        self.sim.world().done_at.remove(&(queue.0, request))
    }

    /// What a status and bytes mean. `None`: the command had no effect, or it ended in a way
    /// that it cannot, which is a violation then. `request`: its request, where the host knows.
    fn answer(
        &mut self,
        slot: usize,
        call: &mut Call,
        request: Option<u64>,
        (status, bytes): (Status, &[u8]),
        aborted: bool,
    ) -> Option<Answer> {
        self.take_news();
        let excuses = self.excuses(request, call.began);
        let ended = aborted || self.disturbed() || self.queue_is_excused();
        self.spoil(call, &excuses);
        let map = self.maps[slot].as_ref()?;
        if map.cut.is_some() || excuses.contains(&Excuse::Answer) {
            return Some(Answer::Unknown);
        }
        if excuses.contains(&Excuse::Status(status)) {
            return None;
        }
        let map = self.maps[slot].as_ref()?;
        let returns_value = matches!(call.kind, Kind::Lookup | Kind::LookupDelete);
        let answer = match status {
            Status::Success if returns_value => map.value_of(bytes).map(Answer::Value),
            Status::Success if matches!(call.kind, Kind::First | Kind::Next) => {
                map.key_of(bytes).map(Answer::Key)
            }
            Status::Success => Some(Answer::Done),
            Status::NotFound => Some(Answer::NotFound),
            Status::Exists => Some(Answer::Exists),
            Status::Full => Some(Answer::Full),
            Status::OutOfRange => Some(Answer::OutOfRange),
            Status::Aborted if ended => return None,
            Status::Interrupted if ended => Some(Answer::Unknown),
            _ => None,
        };
        if answer.is_none() {
            let serial = map.serial;
            let (check, what) = if status == Status::Success {
                let what = format!("bytes that nobody ever wrote: {}", hex(bytes));
                (Check::Bytes, what)
            } else {
                (Check::Status, format!("{status}, which it cannot end with"))
            };
            self.violate(
                check,
                format!(
                    "{:?} of key {} of map {serial} returned {what}",
                    call.kind, call.key
                ),
            );
        }
        answer
    }
}

fn hex(bytes: &[u8]) -> String {
    let shown: String = bytes.iter().take(16).map(|b| format!("{b:02x}")).collect();
    if bytes.len() > 16 {
        shown + "…"
    } else {
        shown
    }
}
