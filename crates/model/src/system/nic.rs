//! The NIC's side: the link, DMA, engines, memory, packets.

use super::machine::Access;
use super::{Event, Job, Lane, Path, Post, ReadRequest, Reader, Simulation, Work};
use crate::des::Time;
use offmap_abi::completion::COMPLETION_BYTES;
use offmap_abi::submission::SUBMISSION_BYTES;
use offmap_firmware_model::time::pcie::INTERRUPT_BYTES;

/// Bytes of a doorbell's store.
const DOORBELL_BYTES: u64 = 8;

impl Simulation<'_> {
    /// The packet of a doorbell is at the link.
    pub(super) fn ring(&mut self, fetch: u32) {
        let bus = &self.machine.bus;
        let nic = self.fetches.items[fetch as usize].queue / self.machine.queues;
        let wire = bus.link.wire(bus.link.write(0, DOORBELL_BYTES).bytes).0;
        let there = self.nics[nic as usize].down.serve(self.now, wire);
        self.events.push(there + bus.doorbell, Event::Fetch(fetch));
    }

    /// The NIC fetches the descriptors that a doorbell told of.
    pub(super) fn fetch(&mut self, fetch: u32) {
        let of = self.fetches.items[fetch as usize];
        let nic = of.queue / self.machine.queues;
        let bytes = of.count * SUBMISSION_BYTES as u32;
        let reads = self.read(Reader::Fetch(fetch), nic, bytes);
        self.fetches.items[fetch as usize].reads = reads;
    }

    /// Reads host memory; in how many requests.
    fn read(&mut self, reader: Reader, nic: u32, bytes: u32) -> u32 {
        if bytes == 0 {
            return 0;
        }
        let most = self.machine.bus.link.spec().max_read_request;
        let begin = self.dma(nic);
        let (mut left, mut requests) = (bytes, 0);
        while left > 0 {
            let piece = left.min(most);
            let read = self.reads.add(ReadRequest {
                reader,
                nic,
                bytes: piece,
            });
            self.events.push(begin, Event::Request(read));
            left -= piece;
            requests += 1;
        }
        requests
    }

    /// The DMA engine has come to a read request: it goes where there is a tag.
    pub(super) fn ask(&mut self, read: u32) {
        let nic = self.reads.items[read as usize].nic;
        if let Some(read) = self.nics[nic as usize].tags.take(self.now, read) {
            self.request(read);
        }
    }

    /// The translation of an address; from `at` on, until when.
    #[inline]
    fn translated(&mut self, nic: u32, at: Time) -> Time {
        let host = &self.machine.host;
        if !self.bus.happens(host.iommu_miss_share) {
            return at;
        }
        let walkers = &mut self.nics[nic as usize].walkers;
        let begin = at.max(walkers.free_at());
        let end = begin + host.iommu_miss;
        walkers.take(begin, end);
        end
    }

    /// When the DMA engine comes to an operation.
    #[inline]
    fn dma(&mut self, nic: u32) -> Time {
        let bus = &self.machine.bus;
        let wished = self.now + bus.dma_setup;
        let dma = &mut self.nics[nic as usize].dma;
        dma.serve_after(wished, bus.dma_issue).0
    }

    /// A read request has a tag, and goes.
    fn request(&mut self, read: u32) {
        let of = self.reads.items[read as usize];
        let link = &self.machine.bus.link;
        let wire = link.wire(link.read(0, of.bytes.into()).requests.bytes).0;
        let sent = self.nics[of.nic as usize].up.serve(self.now, wire);
        let at = self.translated(of.nic, sent) + self.machine.host.read;
        self.events.push(at, Event::AtHost(read));
    }

    /// Its data leave host memory.
    pub(super) fn at_host(&mut self, read: u32) {
        let of = self.reads.items[read as usize];
        let bus = &self.machine.bus;
        let bytes = bus.link.read(0, of.bytes.into()).completions.bytes;
        let wire = bus.link.wire(bytes).0;
        let nic = &mut self.nics[of.nic as usize];
        let there = nic.down.serve(self.now, wire);
        let (_, stored) = nic
            .store
            .serve_after(there, bus.dma_store.of(of.bytes.into()).0);
        self.events.push(stored, Event::ReadDone(read));
    }

    /// They are where engines find them. The tag is free again only now, not when the last packet was there.
    pub(super) fn read_done(&mut self, read: u32) {
        let of = self.reads.remove(read);
        if let Some(next) = self.nics[of.nic as usize].tags.give(self.now) {
            self.request(next);
        }
        match of.reader {
            Reader::Fetch(fetch) => {
                let of = &mut self.fetches.items[fetch as usize];
                of.reads -= 1;
                if of.reads == 0 {
                    let of = self.fetches.remove(fetch);
                    for _ in 0..of.count {
                        self.dispatch(of.queue);
                    }
                }
            }
            Reader::Job(job) => {
                let of = &mut self.jobs.items[job as usize];
                of.waits -= 1;
                if of.waits == 0 {
                    self.elements(job);
                }
            }
        }
    }

    /// The next command of a queue pair goes to the next engine.
    fn dispatch(&mut self, queue: u32) {
        let Some(job) = self.queues[queue as usize].stored.pop_front() else {
            return;
        };
        let count = self.machine.engines.count;
        let nic = queue / self.machine.queues;
        let of = &mut self.nics[nic as usize];
        let engine = nic * count + of.next_engine;
        of.next_engine = (of.next_engine + 1) % count;
        self.jobs.items[job as usize].engine = engine;
        if let Some(job) = self.engines[engine as usize].take(self.now, job) {
            self.take_up(job);
        }
    }

    /// An engine begins with a command or packet.
    fn take_up(&mut self, job: u32) {
        let cost = match (self.jobs.items[job as usize].work, &self.machine.packets) {
            (Work::Packet, Some(packets)) => packets.cost,
            _ => self.machine.engines.command,
        };
        self.events.push(self.now + cost, Event::Run(job));
    }

    /// It has taken it apart: keys and values are read where they are elsewhere.
    pub(super) fn run(&mut self, job: u32) {
        let of = &self.jobs.items[job as usize];
        let Work::Call(call) = of.work else {
            return self.elements(job);
        };
        let nic = of.engine / self.machine.engines.count;
        let reads = self.machine.calls[call as usize].reads;
        let mut requests = 0;
        for bytes in reads {
            requests += self.read(Reader::Job(job), nic, bytes);
        }
        match requests {
            0 => self.elements(job),
            // None is done at once.
            _ => self.jobs.items[job as usize].waits = requests,
        }
    }

    /// The elements begin, as many side by side as may.
    fn elements(&mut self, job: u32) {
        let lanes = match self.jobs.items[job as usize].work {
            Work::Call(_) => self.machine.engines.overlap.min(self.machine.batch),
            Work::Packet => 1,
        };
        self.jobs.items[job as usize].waits = lanes;
        for _ in 0..lanes {
            let lane = self.lanes.add(Lane {
                job,
                path: Path::Hit,
                access: 0,
                again: 0,
            });
            self.element(lane);
        }
    }

    /// A lane begins with the next element of its job, or ends with its job where it was the last.
    fn element(&mut self, lane: u32) {
        let job = self.lanes.items[lane as usize].job;
        let of = &mut self.jobs.items[job as usize];
        if of.left == 0 {
            self.lanes.remove(lane);
            of.waits -= 1;
            if of.waits == 0 {
                self.finish(job);
            }
            return;
        }
        of.left -= 1;
        let (left, work) = (of.left, of.work);
        let miss_share = match (work, &self.machine.packets) {
            (Work::Call(call), _) => self.machine.calls[call as usize].miss_share,
            // Updates come last.
            (Work::Packet, Some(packets)) if left >= packets.updates => packets.miss_share,
            (Work::Packet, _) => 0,
        };
        let path = match work {
            Work::Packet if self.is_update(left) => Path::Update,
            _ if self.accesses.happens(miss_share) => Path::Miss,
            _ => Path::Hit,
        };
        if path == Path::Hit {
            self.jobs.items[job as usize].hits += 1;
        }
        let of = &mut self.lanes.items[lane as usize];
        (of.path, of.access, of.again) = (path, 0, 0);
        match self.machine.engines.element {
            0 => self.step(lane),
            // The first access begins where its answer would be taken up.
            cost => self.events.push(self.now + cost, Event::Answer(lane)),
        }
    }

    fn is_update(&self, left: u32) -> bool {
        let packets = self.machine.packets.as_ref();
        packets.is_some_and(|packets| left < packets.updates)
    }

    /// A lane's next access, or its next element.
    pub(super) fn step(&mut self, lane: u32) {
        let mut of = self.lanes.items[lane as usize];
        let job = self.jobs.items[of.job as usize];
        let recipe = self.recipe(&job, of.path);
        while of.again == 0 {
            let Some(access) = recipe.accesses.get(of.access as usize) else {
                return self.element(lane);
            };
            of.access += 1;
            of.again = self.times(access);
        }
        of.again -= 1;
        let access = recipe.accesses[of.access as usize - 1];
        self.lanes.items[lane as usize] = of;
        let nic = job.engine / self.machine.engines.count;
        let answer = self.access(nic, &access) + self.machine.engines.access;
        self.events.push(answer, Event::Answer(lane));
    }

    /// An access to device memory; when it is answered.
    #[inline]
    fn access(&mut self, nic: u32, access: &Access) -> Time {
        let tier = &self.machine.tiers[access.tier as usize];
        let latency = match self.accesses.happens(tier.hit_share) {
            true => tier.hit,
            false => tier.latency,
        };
        let nic = &mut self.nics[nic as usize];
        let slots = &mut nic.slots[access.tier as usize];
        // A place is held from when there is one, as its access waits for the port.
        let begin = self.now.max(slots.free_at());
        let (_, passed) = nic.ports[access.tier as usize].serve_after(begin, access.service);
        let answer = passed + latency;
        slots.take(begin, answer);
        answer
    }

    /// All elements of a job are done: results go to the host.
    fn finish(&mut self, job: u32) {
        let of = self.jobs.items[job as usize];
        match of.work {
            Work::Call(_) => self.post(job, Post::Values),
            Work::Packet => {
                self.forwarded(job, &of);
                self.free(of.engine);
            }
        }
    }

    /// An engine takes up what waits for it.
    fn free(&mut self, engine: u32) {
        if let Some(next) = self.engines[engine as usize].give(self.now) {
            self.take_up(next);
        }
    }

    /// Bytes of a write of a command.
    fn post_bytes(&self, job: &Job, post: Post) -> u64 {
        let Work::Call(call) = job.work else {
            return 0;
        };
        let call = &self.machine.calls[call as usize];
        match post {
            Post::Values => u64::from(call.writes) * u64::from(job.hits),
            Post::Statuses => call.statuses.into(),
            Post::Completion => COMPLETION_BYTES as u64,
        }
    }

    /// Asks the DMA engine for a write of a command, or for the next one where that has no bytes. The
    /// engine waits until it has taken results, and not for the completion.
    fn post(&mut self, job: u32, post: Post) {
        let of = self.jobs.items[job as usize];
        let post = match post {
            Post::Values if self.post_bytes(&of, post) == 0 => Post::Statuses,
            _ => post,
        };
        let post = match post {
            Post::Statuses if self.post_bytes(&of, post) == 0 => Post::Completion,
            _ => post,
        };
        self.jobs.items[job as usize].post = post;
        let taken = self.dma(of.engine / self.machine.engines.count);
        self.events.push(taken, Event::Post(job));
        if post == Post::Completion {
            self.free(of.engine);
        }
    }

    /// The DMA engine has taken a write: its packets go to the host.
    pub(super) fn posted(&mut self, job: u32) {
        let of = self.jobs.items[job as usize];
        let nic = of.engine / self.machine.engines.count;
        let link = &self.machine.bus.link;
        let wire = link
            .wire(link.write(0, self.post_bytes(&of, of.post)).bytes)
            .0;
        let sent = self.nics[nic as usize].up.serve(self.now, wire);
        match of.post {
            Post::Values => self.post(job, Post::Statuses),
            Post::Statuses => self.post(job, Post::Completion),
            Post::Completion => self.completed(job, nic, sent),
        }
    }

    /// A completion's packet has left, and an interrupt follows where threads wait for one.
    fn completed(&mut self, job: u32, nic: u32, sent: Time) {
        let written = self.translated(nic, sent) + self.machine.host.write;
        let seen = match self.machine.host.interrupt {
            None => written,
            Some(latency) => {
                let link = &self.machine.bus.link;
                let wire = link.wire(link.write(0, INTERRUPT_BYTES.into()).bytes).0;
                self.nics[nic as usize].up.serve_after(sent, wire);
                // As the meter has it: the message leaves when the completion is there.
                written + wire + latency
            }
        };
        self.events.push(seen, Event::Seen(job));
    }

    /// Time to the next packet of a NIC.
    pub(super) fn packet_gap(&mut self) -> Time {
        match &self.machine.packets {
            Some(packets) if packets.poisson => self.packets.exponential(packets.gap),
            Some(packets) => packets.gap,
            None => 0,
        }
    }

    /// A packet comes to a NIC, and is spread over its engines by a hash of its flow.
    pub(super) fn packet(&mut self, nic: u32) {
        let measured = self.measuring();
        if !self.spend() {
            return;
        }
        let next = self.now + self.packet_gap();
        self.events.push(next, Event::Packet(nic));
        let Some(packets) = &self.machine.packets else {
            return;
        };
        self.count.offered += 1;
        let count = self.machine.engines.count;
        let engine = nic * count + self.packets.below(count.into()) as u32;
        let pool = &mut self.engines[engine as usize];
        if pool.waiting() >= packets.queue as usize {
            self.count.dropped += 1;
            return self.one_ended();
        }
        let job = self.jobs.add(Job {
            work: Work::Packet,
            issued: self.now,
            engine,
            left: packets.lookups + packets.updates,
            waits: 0,
            hits: 0,
            post: Post::Values,
            measured,
        });
        if let Some(job) = pool.take(self.now, job) {
            self.take_up(job);
        }
    }

    /// An engine is done with a packet.
    fn forwarded(&mut self, job: u32, of: &Job) {
        if of.measured {
            self.outcome.packet_latencies.record(self.now - of.issued);
        }
        self.count.packets += 1;
        self.jobs.remove(job);
        self.one_ended();
    }
}
