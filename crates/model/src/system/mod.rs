//! The simulated system: host threads, links, engines and memory, and what happens between them.
//!
//! A command's way: a thread makes it ([`Event::Submitted`]), rings a doorbell ([`Event::Ring`]), the
//! NIC fetches descriptors ([`Event::Fetch`]) in reads ([`Event::Request`]), each of which holds a tag until its
//! data are there ([`Event::AtHost`], [`Event::ReadDone`]). An engine takes the command ([`Event::Run`]), reads
//! keys and values where they are not in the descriptor, and makes accesses one after the other
//! ([`Event::Answer`]). Values and statuses are posted, then the completion ([`Event::Post`]); a thread sees the completion
//! ([`Event::Seen`]), and when it has taken it in the command has ended ([`Event::Done`]).
//!
//! All that is contended for is a [`Server`], [`Slots`] or a [`Pool`]: commands wait where others are
//! served, and nothing else makes them wait.

mod host;
pub mod machine;
mod nic;
pub mod stats;

use crate::des::Time;
use crate::des::queue::EventQueue;
use crate::des::random::Random;
use crate::des::resource::{Pool, Server, Slots};
use machine::{Access, Load, Machine, Recipe};
use stats::{Latencies, NicSnapshot, Outcome, Snapshot};
use std::collections::VecDeque;

/// Streams of random numbers of one seed.
const ARRIVALS: u64 = 1;
const CALLS: u64 = 2;
const ACCESSES: u64 = 3;
const PACKETS: u64 = 4;
const BUS: u64 = 5;

/// What happens at a time. The numbers are indexes.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A command comes to a queue pair, of an open load.
    Arrive(u32),
    /// A thread has stored a command.
    Submitted(u32),
    /// The packet of a doorbell is at the link.
    Ring(u32),
    /// The NIC fetches the descriptors that a doorbell told of.
    Fetch(u32),
    /// The DMA engine has come to a read request.
    Request(u32),
    /// A read's data leave host memory.
    AtHost(u32),
    /// They are on the NIC.
    ReadDone(u32),
    /// An engine has taken a command or packet apart.
    Run(u32),
    /// An engine has the answer of an access.
    Answer(u32),
    /// The DMA engine has taken a write of a command.
    Post(u32),
    /// A thread sees a completion.
    Seen(u32),
    /// It has taken it in.
    Done(u32),
    /// A packet comes to a NIC.
    Packet(u32),
}

/// Who reads host memory.
#[derive(Clone, Copy, Debug)]
enum Reader {
    /// Descriptors.
    Fetch(u32),
    /// A command's keys and values.
    Job(u32),
}

/// A read request of one packet.
#[derive(Clone, Copy, Debug)]
struct ReadRequest {
    reader: Reader,
    nic: u32,
    bytes: u32,
}

/// A doorbell's descriptors.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    queue: u32,
    count: u32,
    reads: u32,
}

/// What kind of work a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Call(u32),
    Packet,
}

/// What a command writes to host memory, in that order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Post {
    Values,
    Statuses,
    Completion,
}

/// A command or a packet.
#[derive(Clone, Copy, Debug)]
struct Job {
    work: Work,
    issued: Time,
    /// Of all NICs together.
    engine: u32,
    /// Elements that have not begun.
    left: u32,
    /// Reads, or then lanes, that it waits for.
    waits: u32,
    /// Elements whose keys were there.
    hits: u32,
    /// What the DMA engine is asked to write.
    post: Post,
    measured: bool,
}

/// Which recipe a lane follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Path {
    Hit,
    Miss,
    Update,
}

/// An element whose accesses are under way.
#[derive(Clone, Copy, Debug)]
struct Lane {
    job: u32,
    path: Path,
    /// The access that comes next, and how many times more.
    access: u32,
    again: u32,
}

/// Things with indexes that are used again.
#[derive(Debug)]
struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T: Copy> Slab<T> {
    fn new() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }

    #[inline]
    fn add(&mut self, item: T) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.items[index as usize] = item;
                index
            }
            None => {
                self.items.push(item);
                (self.items.len() - 1) as u32
            }
        }
    }

    #[inline]
    fn remove(&mut self, index: u32) -> T {
        self.free.push(index);
        self.items[index as usize]
    }
}

/// A NIC: its link, its DMA engine, its memory.
#[derive(Debug)]
struct Nic {
    /// From the host, and to it.
    down: Server,
    up: Server,
    dma: Server,
    /// From the DMA engine to where engines find data.
    store: Server,
    tags: Pool<u32>,
    walkers: Slots,
    ports: Vec<Server>,
    slots: Vec<Slots>,
    /// The engine that has the next command.
    next_engine: u32,
}

/// A queue pair and its thread.
#[derive(Debug)]
struct Queue {
    thread: Server,
    /// Commands that were stored and not fetched.
    stored: VecDeque<u32>,
    /// How many of them no doorbell told of.
    untold: u32,
    /// Numbers of commands that are free.
    free: Vec<u32>,
    /// When the commands came that wait for one.
    backlog: VecDeque<Time>,
}

/// A run under way.
struct Simulation<'a> {
    machine: &'a Machine,
    events: EventQueue<Event>,
    arrivals: Random,
    calls: Random,
    accesses: Random,
    packets: Random,
    bus: Random,
    nics: Vec<Nic>,
    engines: Vec<Pool<u32>>,
    queues: Vec<Queue>,
    /// Commands first, by queue pair; then packets.
    jobs: Slab<Job>,
    lanes: Slab<Lane>,
    reads: Slab<ReadRequest>,
    fetches: Slab<Fetch>,
    call_weights: u64,
    /// Commands and packets that are still to come.
    budget: u64,
    /// How many have ended, and after how many measuring begins.
    ended: u64,
    warm: u64,
    window: [Option<Snapshot>; 2],
    now: Time,
    /// Commands in flight, since when, and the integral up to then.
    in_flight: u64,
    in_flight_since: Time,
    count: Snapshot,
    outcome: Outcome,
}

/// Runs `operations` commands and packets in all, from an empty system until it is empty again.
/// A tenth of them has to end before measuring begins, and it stops with the last that comes.
pub fn simulate(machine: &Machine, seed: u64, operations: u64) -> Outcome {
    let mut simulation = Simulation::new(machine, seed, operations);
    simulation.begin();
    let mut events = 0u64;
    while let Some((now, event)) = simulation.events.pop() {
        simulation.now = now;
        events += 1;
        simulation.happen(event);
    }
    simulation.outcome.events = events;
    simulation.end()
}

impl<'a> Simulation<'a> {
    fn new(machine: &'a Machine, seed: u64, operations: u64) -> Self {
        let nic = || Nic {
            down: Server::default(),
            up: Server::default(),
            dma: Server::default(),
            store: Server::default(),
            tags: Pool::new(machine.bus.tags.max(1)),
            walkers: Slots::new(machine.host.walkers),
            ports: vec![Server::default(); machine.tiers.len()],
            slots: machine
                .tiers
                .iter()
                .map(|tier| Slots::new(tier.outstanding))
                .collect(),
            next_engine: 0,
        };
        let queue_count = match machine.calls.is_empty() {
            true => 0,
            false => machine.nics * machine.queues,
        };
        let mut jobs = Slab::new();
        let queues = (0..queue_count).map(|_| {
            let commands = (0..machine.depth).map(|_| {
                jobs.add(Job {
                    work: Work::Packet,
                    issued: 0,
                    engine: 0,
                    left: 0,
                    waits: 0,
                    hits: 0,
                    post: Post::Values,
                    measured: false,
                })
            });
            let mut free: Vec<u32> = commands.collect();
            free.reverse();
            Queue {
                thread: Server::default(),
                stored: VecDeque::with_capacity(machine.depth as usize),
                untold: 0,
                free,
                backlog: VecDeque::new(),
            }
        });
        let queues = queues.collect();
        let engines = machine.nics * machine.engines.count;
        Self {
            machine,
            events: EventQueue::new(),
            arrivals: Random::new(seed, ARRIVALS),
            calls: Random::new(seed, CALLS),
            accesses: Random::new(seed, ACCESSES),
            packets: Random::new(seed, PACKETS),
            bus: Random::new(seed, BUS),
            nics: (0..machine.nics).map(|_| nic()).collect(),
            engines: (0..engines).map(|_| Pool::new(1)).collect(),
            queues,
            jobs,
            lanes: Slab::new(),
            reads: Slab::new(),
            fetches: Slab::new(),
            call_weights: machine.calls.iter().map(|call| call.weight).sum(),
            budget: operations,
            ended: 0,
            warm: operations / 10,
            window: [None, None],
            now: 0,
            in_flight: 0,
            in_flight_since: 0,
            count: Snapshot::default(),
            outcome: Outcome {
                commands: 0,
                elements: 0,
                packets: 0,
                packets_offered: 0,
                packets_dropped: 0,
                window: 0,
                end: 0,
                latencies: Latencies::default(),
                packet_latencies: Latencies::default(),
                uses: Vec::new(),
                events: 0,
                issued: 0,
                in_flight: 0,
                latency_sum: 0,
            },
        }
    }

    /// What is there at time 0.
    fn begin(&mut self) {
        if self.warm == 0 {
            self.window[0] = Some(self.snapshot());
        }
        let queues = self.queues.len() as u32;
        match self.machine.load {
            // Each thread begins with one command, then each with its second one.
            Load::Closed => {
                for queue in (0..self.machine.depth).flat_map(|_| 0..queues) {
                    self.issue(queue);
                }
            }
            Load::Open { gap } => {
                for queue in 0..queues {
                    let gap = self.arrivals.exponential(gap);
                    self.events.push(gap, Event::Arrive(queue));
                }
            }
        }
        if self.machine.packets.is_some() {
            for nic in 0..self.machine.nics {
                let gap = self.packet_gap();
                self.events.push(gap, Event::Packet(nic));
            }
        }
    }

    #[inline]
    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(queue) => self.arrive(queue),
            Event::Submitted(job) => self.submitted(job),
            Event::Ring(fetch) => self.ring(fetch),
            Event::Fetch(fetch) => self.fetch(fetch),
            Event::Request(read) => self.ask(read),
            Event::AtHost(read) => self.at_host(read),
            Event::ReadDone(read) => self.read_done(read),
            Event::Run(job) => self.run(job),
            Event::Answer(lane) => self.step(lane),
            Event::Post(job) => self.posted(job),
            Event::Seen(job) => self.seen(job),
            Event::Done(job) => self.done(job),
            Event::Packet(nic) => self.packet(nic),
        }
    }

    /// Takes one command or packet from those that are to come; whether there was one. The
    /// measured time ends with the last one.
    #[inline]
    fn spend(&mut self) -> bool {
        if self.budget == 0 {
            return false;
        }
        self.budget -= 1;
        if self.budget == 0 {
            self.window[1] = Some(self.snapshot());
        }
        true
    }

    /// Whether what comes now is measured.
    #[inline]
    fn measuring(&self) -> bool {
        self.window[0].is_some() && self.window[1].is_none()
    }

    /// One command or packet more has ended.
    #[inline]
    fn one_ended(&mut self) {
        self.ended += 1;
        if self.ended == self.warm && self.window[1].is_none() {
            self.window[0] = Some(self.snapshot());
        }
    }

    /// The number of commands in flight changes, by `change`.
    #[inline]
    fn flight(&mut self, up: bool) {
        let since = self.now - self.in_flight_since;
        self.outcome.in_flight += u128::from(self.in_flight) * u128::from(since);
        self.in_flight_since = self.now;
        match up {
            true => self.in_flight += 1,
            false => self.in_flight -= 1,
        }
    }

    /// Sums of use up to now.
    #[cold]
    fn snapshot(&self) -> Snapshot {
        let now = self.now;
        let count = self.machine.engines.count as usize;
        let nics = self.nics.iter().zip(self.engines.chunks(count.max(1)));
        let nics = nics.map(|(nic, engines)| NicSnapshot {
            up: nic.up.served(now),
            down: nic.down.served(now),
            dma: nic.dma.served(now),
            store: nic.store.served(now),
            tags: nic.tags.held(now),
            walkers: nic.walkers.held(now),
            engines: engines.iter().map(|engine| engine.held(now)).sum(),
            ports: nic.ports.iter().map(|port| port.served(now)).collect(),
            slots: nic.slots.iter().map(|slots| slots.held(now)).collect(),
        });
        let threads = self.queues.iter().map(|queue| queue.thread.served(now));
        Snapshot {
            at: now,
            threads: threads.collect(),
            nics: nics.collect(),
            ..self.count.clone()
        }
    }

    fn end(mut self) -> Outcome {
        let last = self.snapshot();
        let [first, second] = std::mem::take(&mut self.window);
        // Where fewer ended than had to, all is measured.
        let first = first.unwrap_or_else(|| Snapshot {
            threads: vec![0; self.queues.len()],
            nics: last
                .nics
                .iter()
                .map(|_| NicSnapshot::empty(self.machine.tiers.len()))
                .collect(),
            ..Snapshot::default()
        });
        let second = second.filter(|second| second.at > first.at).unwrap_or(last);
        let outcome = &mut self.outcome;
        outcome.window = second.at - first.at;
        outcome.end = self.now;
        outcome.commands = second.commands - first.commands;
        outcome.elements = outcome.commands * u64::from(self.machine.batch);
        outcome.packets = second.packets - first.packets;
        outcome.packets_offered = second.offered - first.offered;
        outcome.packets_dropped = second.dropped - first.dropped;
        outcome.uses = stats::uses(self.machine, &first, &second);
        self.outcome
    }

    fn recipe(&self, job: &Job, path: Path) -> &'a Recipe {
        let (hit, miss, update) = match (job.work, &self.machine.packets) {
            (Work::Call(call), _) => {
                let call = &self.machine.calls[call as usize];
                (&call.hit, &call.miss, &call.hit)
            }
            (Work::Packet, Some(packets)) => (&packets.hit, &packets.miss, &packets.update),
            (Work::Packet, None) => unreachable!("packets come where there are some"),
        };
        match path {
            Path::Hit => hit,
            Path::Miss => miss,
            Path::Update => update,
        }
    }

    /// How many times an access is made.
    #[inline]
    fn times(&mut self, access: &Access) -> u32 {
        (access.times >> 16) + u32::from(self.accesses.happens(access.times & 0xffff))
    }
}
