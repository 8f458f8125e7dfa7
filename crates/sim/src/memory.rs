//! DMA memory with two views, and the stores on their way between them.
//!
//! The driver works on its own buffers; the device gets buffers of this module at the same
//! IOVAs. What one side stores becomes visible to the other piece by piece, in an order that the
//! run's seed picks among those that abi §10 allows:
//!
//! * Each CPU of the host has its own list of stores, in program order. A *release* store (an
//!   ownership word, a tail, a head, a register write) waits for all before it in the list; any
//!   other store passes freely. The full fence of rule N1 empties the list.
//! * Each queue of the device has such a list, too: payload and words 1–7 of a completion pass
//!   freely, its ownership word waits (rule C1). The device's fences (N2) empty the lists.
//!
//! The stores themselves are found by following the rings as either side would: an entry is
//! there when its ownership word has the phase of its turn. Bytes of the device's view that
//! change otherwise are stray writes, which [`Memory::stray`] finds.

mod belongs;
mod flip;
mod ranges;
mod release;
mod spoil;
mod spoil_walk;

use crate::mutation::Mutation;
use crate::rng::Rng;
use belongs::Belonging;
use offmap_abi::admin::QueueCreateBody;
use offmap_abi::notify::{
    EventWord, NOTIFY_BYTES, NOTIFY_CQ_EVENT, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL,
};
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ring::RingDepth;
use offmap_abi::submission::phase_of;
use offmap_abi::{AdminOpcode, Completion, QueueId, RequestId, Status, Submission};
use offmap_device_io::{DmaBuffer, DmaPlacement, IoError, Iova};
use offmap_emulator::dma::{Dma, ENTRY_BYTES, ENTRY_WORDS};
use ranges::ranges;
use release::Answered;
use spoil::Duplicate;
use spoil_walk::Deleted;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

/// Bytes that become visible together at most.
const LINE: u64 = 64;
/// Buffers kept for later regions, in all.
const POOL: usize = 64;

/// Buffers of the device's view that no region uses, from one run to the next.
#[derive(Default)]
pub(crate) struct Pool(Vec<DmaBuffer>);

impl Pool {
    fn take(&mut self, len: usize) -> Result<DmaBuffer, IoError> {
        match self.0.iter().position(|b| b.len() == len) {
            Some(at) => {
                let buffer = self.0.swap_remove(at);
                buffer.zero(0, len);
                Ok(buffer)
            }
            None => DmaBuffer::new(len, DmaPlacement::default()),
        }
    }

    fn give(&mut self, buffer: DmaBuffer) {
        if self.0.len() < POOL {
            self.0.push(buffer);
        }
    }
}

/// A mapped region.
struct Region {
    device: DmaBuffer,
    /// What the device's view holds if only known stores were made.
    image: Vec<u8>,
    /// A fault may have made the device write anything here.
    spoiled: bool,
}

/// A store under way.
struct Store {
    what: What,
    release: bool,
}

enum What {
    Bytes { iova: u64, len: u8, bytes: [u8; 64] },
    Register { offset: u64, wide: bool, value: u64 },
}

/// A register write that has arrived at the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) offset: u64,
    pub(crate) wide: bool,
    pub(crate) value: u64,
}

/// A queue pair as both sides' stores show it.
pub(crate) struct Ring {
    pub(crate) queue: QueueId,
    /// CPU whose thread the pair belongs to.
    cpu: usize,
    sq: u64,
    cq: u64,
    notify: u64,
    depth: RingDepth,
    /// Submissions seen from the host, and completions seen from the device.
    captured: u32,
    posted: u32,
    tail: u64,
    head: u64,
    /// When the host wants an interrupt, as it stored it last.
    wanted: u64,
    has_vector: bool,
    event: u64,
    /// No room for completions when the device parked.
    parked_full: bool,
    in_flight: Vec<Submission>,
    /// Commands that the device has otherwise than the host wrote them: as it has them, and as they
    /// were written. What the host may give away goes by the latter.
    flipped: Vec<(Submission, Submission)>,
    /// Commands whose completions the host does not see yet.
    answered: Vec<Answered>,
    /// The host has been told that the device has let go of it (rule R2).
    released: bool,
    /// The device's stores that the host does not see yet.
    stores: VecDeque<Store>,
    /// For a mutation: a completion that comes for the second time.
    duplicate: Option<Duplicate>,
}

impl Ring {
    /// Where the device may write although no completion has said so yet: a command that was
    /// begun may have written part of its result.
    fn open(&self) -> Vec<(u64, u64)> {
        let mut open = Vec::new();
        if self.released {
            return open;
        }
        for command in &self.in_flight {
            open.extend(ranges(self.queue, command, false));
        }
        let bytes = u64::from(self.depth.entries()) * ENTRY_BYTES as u64;
        open.push((self.cq, bytes));
        if self.notify != 0 {
            open.push((self.notify, NOTIFY_BYTES as u64));
        }
        open
    }
}

/// A completion that the device has posted.
pub(crate) struct Posted {
    pub(crate) queue: QueueId,
    pub(crate) request: RequestId,
    pub(crate) command: Option<Submission>,
    pub(crate) status: Status,
}

/// Host memory in both views.
pub(crate) struct Memory {
    host: Dma,
    regions: BTreeMap<u64, Region>,
    pub(crate) rings: Vec<Ring>,
    /// By CPU.
    cpus: Vec<VecDeque<Store>>,
    mutation: Option<Mutation>,
    /// For mutations: what earlier lookups returned, and a request id kept back.
    earlier: BTreeMap<(u32, [u8; 16]), [u8; 48]>,
    swapped: Option<(QueueId, u64, u64)>,
    /// For a mutation: buffers of commands that were aborted.
    freed_early: Vec<u64>,
    pub(crate) mutated: u64,
    /// Hosts only wait for what they have in flight.
    pub(crate) draining: bool,
    /// For a mutation: completions so far, and keys that were deleted.
    completions: u64,
    gone: Vec<Deleted>,
    /// Host memory that belongs to maps (rule R4).
    belongings: Vec<Belonging>,
    /// What the driver has taken back, or given twice, that is the device's still (rule R2), and of
    /// which queue it is.
    pub(crate) breach: Option<(QueueId, String)>,
    /// Nobody knows any more what the device may write.
    wild: bool,
    /// For a mutation: the completion event words stay where they are.
    events_held: bool,
}

impl Memory {
    pub(crate) fn new(cpus: usize, mutation: Option<Mutation>) -> Self {
        let mut host = Dma::new();
        host.set_enabled(true);
        Self {
            host,
            regions: BTreeMap::new(),
            rings: Vec::new(),
            cpus: (0..cpus).map(|_| VecDeque::new()).collect(),
            mutation,
            earlier: BTreeMap::new(),
            swapped: None,
            freed_early: Vec::new(),
            mutated: 0,
            draining: false,
            completions: 0,
            gone: Vec::new(),
            belongings: Vec::new(),
            breach: None,
            wild: false,
            events_held: false,
        }
    }

    pub(crate) fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// Regions mapped now.
    pub(crate) fn mapped(&self) -> usize {
        self.regions.len()
    }

    /// Maps the driver's buffer, and returns the one that the device is to get.
    pub(crate) fn map(
        &mut self,
        buffer: &DmaBuffer,
        iova: Iova,
        pool: &mut Pool,
    ) -> Result<&DmaBuffer, IoError> {
        let len = buffer.len();
        let device = pool.take(len)?;
        self.host.map(buffer.fd(), 0, iova, len)?;
        let region = Region {
            device,
            image: vec![0; len],
            spoiled: self.wild,
        };
        let region = self.regions.entry(iova.0).or_insert(region);
        Ok(&region.device)
    }

    /// Ends a region; what a stray write did to it, if there was one.
    pub(crate) fn unmap(
        &mut self,
        iova: Iova,
        len: usize,
        pool: &mut Pool,
    ) -> Result<Option<String>, IoError> {
        let (first, end) = (iova.0, iova.0 + len as u64);
        let stray = self.stray(iova.0);
        self.host.unmap(iova, len)?;
        self.close_rings(|r| (first..end).contains(&r.sq));
        // Stores to memory that is gone are nobody's.
        let inside =
            |s: &Store| matches!(s.what, What::Bytes { iova, .. } if (first..end).contains(&iova));
        for list in &mut self.cpus {
            list.retain(|s| !inside(s));
        }
        for ring in &mut self.rings {
            ring.stores.retain(|s| !inside(s));
        }
        if let Some(region) = self.regions.remove(&iova.0) {
            pool.give(region.device);
        }
        Ok(stray)
    }

    /// Gives all buffers back.
    pub(crate) fn dismantle(&mut self, pool: &mut Pool) {
        for (_, region) in std::mem::take(&mut self.regions) {
            pool.give(region.device);
        }
    }

    fn region(&mut self, iova: u64) -> Option<(&mut Region, usize)> {
        let (first, region) = self.regions.range_mut(..=iova).next_back()?;
        let at = (iova - first) as usize;
        (at < region.image.len()).then_some((region, at))
    }

    fn device_word(&mut self, iova: u64) -> Option<u64> {
        let (region, at) = self.region(iova)?;
        Some(region.device.load_u64(at, Ordering::Acquire))
    }

    fn host_bytes(&mut self, iova: u64, into: &mut [u8]) -> bool {
        self.host.read(iova, into).is_ok()
    }

    fn host_word(&mut self, iova: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.host_bytes(iova, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }

    /// The admin queue was enabled, or an I/O queue is about to be made.
    fn add_ring(&mut self, cpu: usize, queue: QueueId, [sq, cq, notify]: [u64; 3], depth: u32) {
        let Some(depth) = RingDepth::new(depth) else {
            return;
        };
        self.close_rings(|r| r.queue == queue);
        self.rings.push(Ring {
            queue,
            cpu,
            sq,
            cq,
            notify,
            depth,
            captured: 0,
            posted: 0,
            tail: 0,
            head: 0,
            wanted: EventWord::DISARMED.to_word(),
            has_vector: false,
            event: 0,
            parked_full: false,
            in_flight: Vec::new(),
            flipped: Vec::new(),
            answered: Vec::new(),
            released: false,
            stores: VecDeque::new(),
            duplicate: None,
        });
    }

    /// The device takes up its admin queue.
    pub(crate) fn admin_ring(&mut self, sq: u64, cq: u64, depth: u32) {
        self.add_ring(0, QueueId::ADMIN, [sq, cq, 0], depth);
    }

    /// The device has forgotten its queues.
    pub(crate) fn forget_rings(&mut self) {
        self.wild = false;
        self.forget_belongings();
        self.close_rings(|_| true);
        self.swapped = None;
    }

    /// Notes what `cpu` has stored since the last call. Returns how many commands there were.
    pub(crate) fn capture(&mut self, cpu: usize, rng: &mut Rng) -> usize {
        let mut found = 0;
        for index in 0..self.rings.len() {
            let ring = &self.rings[index];
            let admin = ring.queue.is_admin();
            if !admin && ring.cpu != cpu {
                continue;
            }
            let first = self.rings[index].captured;
            while let Some(entry) = self.next_submission(index) {
                self.store_submission(cpu, index, entry, rng);
                found += 1;
            }
            if !admin {
                self.maybe_swap(cpu, index, first, rng);
            }
            self.capture_counts(cpu, index);
        }
        found
    }

    fn next_submission(&mut self, index: usize) -> Option<Submission> {
        let ring = &self.rings[index];
        let at = ring.sq + u64::from(ring.depth.position(ring.captured)) * ENTRY_BYTES as u64;
        let phase = ring.depth.phase(ring.captured);
        // The phase first: most looks find nothing.
        if phase_of(self.host_word(at)?) != phase {
            return None;
        }
        let mut bytes = [0u8; ENTRY_BYTES];
        if !self.host_bytes(at, &mut bytes) {
            return None;
        }
        let mut words = [0u64; ENTRY_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Some(Submission::from_words(words))
    }

    /// Puts an entry and what it refers to on the CPU's list.
    fn store_submission(&mut self, cpu: usize, index: usize, entry: Submission, rng: &mut Rng) {
        let queue = self.rings[index].queue;
        // What a bug does to an admin command the driver has done.
        let entry = self.spoil_admin(queue, entry, rng);
        self.check_given(index, &entry);
        if queue.is_admin() {
            self.belongs(&entry);
        }
        let ring = &mut self.rings[index];
        let at = ring.sq + u64::from(ring.depth.position(ring.captured)) * ENTRY_BYTES as u64;
        let phase = ring.depth.phase(ring.captured);
        ring.captured = ring.captured.wrapping_add(1);
        ring.in_flight.push(entry);
        if queue.is_admin() && AdminOpcode(entry.opcode) == AdminOpcode::QueueCreate {
            let body: QueueCreateBody = entry.body();
            let rings = [body.sq.get(), body.cq.get(), body.notify.get()];
            self.add_ring(cpu, QueueId(body.queue.get()), rings, body.depth.get());
            if let Some(ring) = self.rings.last_mut() {
                ring.has_vector = body.vector.get() != NO_VECTOR;
            }
        }
        let entry = self.spoil_submission(queue, entry, rng);
        let words = entry.to_words(phase);
        let own_first = self.mutation == Some(Mutation::OwnershipBeforeBody);
        if own_first && !queue.is_admin() {
            self.mutated += 1;
            self.push_words(cpu, at, &words[..1], false);
        }
        for (iova, len) in ranges(queue, &entry, true) {
            let len = self.reachable(iova, len);
            self.push_range(cpu, iova, len);
        }
        let cut = 1 + rng.index(ENTRY_WORDS - 2);
        self.push_words(cpu, at + 8, &words[1..=cut], false);
        self.push_words(cpu, at + 8 + cut as u64 * 8, &words[cut + 1..], false);
        if !own_first || queue.is_admin() {
            self.push_words(cpu, at, &words[..1], true);
        }
    }

    fn push_words(&mut self, cpu: usize, iova: u64, words: &[u64], release: bool) {
        if let Some(store) = store_of_words(iova, words, release) {
            self.cpus[cpu].push_back(store);
        }
    }

    fn push_range(&mut self, cpu: usize, iova: u64, len: u64) {
        for (at, count) in lines(iova, len) {
            let mut bytes = [0; 64];
            if self.host.read(at, &mut bytes[..count]).is_ok() {
                let len = count as u8;
                let what = What::Bytes {
                    iova: at,
                    len,
                    bytes,
                };
                let release = false;
                self.cpus[cpu].push_back(Store { what, release });
            }
        }
    }

    /// Tail and head in a notify block.
    fn capture_counts(&mut self, cpu: usize, index: usize) {
        let notify = self.rings[index].notify;
        if notify == 0 {
            return;
        }
        let head = self.host_word(notify + NOTIFY_CQ_HEAD as u64);
        let tail = self.host_word(notify + NOTIFY_SQ_TAIL as u64);
        let mut fence = false;
        let wanted = self.host_word(notify + NOTIFY_CQ_EVENT as u64);
        if let Some(wanted) = wanted.filter(|w| *w != self.rings[index].wanted)
            && !self.events_held
        {
            self.rings[index].wanted = wanted;
            self.push_words(cpu, notify + NOTIFY_CQ_EVENT as u64, &[wanted], true);
            // Rule N4: it is visible before the last look. Who takes it back is in no hurry.
            if wanted != EventWord::DISARMED.to_word() {
                if self.mutation == Some(Mutation::SleepWithoutFence) {
                    self.mutated += 1;
                } else {
                    self.apply_memory(cpu);
                }
            }
        }
        if let Some(head) = head.filter(|h| *h != self.rings[index].head) {
            self.rings[index].head = head;
            self.push_words(cpu, notify + NOTIFY_CQ_HEAD as u64, &[head], true);
            fence = true;
        }
        if let Some(tail) = tail.filter(|t| *t != self.rings[index].tail) {
            self.rings[index].tail = tail;
            self.push_words(cpu, notify + NOTIFY_SQ_TAIL as u64, &[tail], true);
            fence = true;
        }
        if fence {
            if self.mutation == Some(Mutation::NoHostFence) {
                self.mutated += 1;
            } else {
                // Rule N1: both are visible before the event word is read, which the driver has
                // done in the same call.
                self.apply_memory(cpu);
            }
        }
    }

    /// Puts a register write on the CPU's list.
    pub(crate) fn push_register(&mut self, cpu: usize, offset: u64, wide: bool, value: u64) {
        self.cpus[cpu].push_back(Store {
            what: What::Register {
                offset,
                wide,
                value,
            },
            release: true,
        });
    }

    /// Whether a register write of this offset is under way.
    pub(crate) fn register_under_way(&self, wanted: u64) -> bool {
        self.cpus
            .iter()
            .flatten()
            .any(|s| matches!(s.what, What::Register { offset, .. } if offset == wanted))
    }

    /// Stores under way from the host, by CPU.
    pub(crate) fn host_pending(&self, cpu: usize) -> usize {
        self.cpus[cpu].len()
    }

    /// Applies the stores of `cpu` to memory; its register writes stay under way.
    fn apply_memory(&mut self, cpu: usize) {
        let mut at = 0;
        while at < self.cpus[cpu].len() {
            if matches!(self.cpus[cpu][at].what, What::Register { .. }) {
                at += 1;
                continue;
            }
            if let Some(store) = self.cpus[cpu].remove(at) {
                self.reach_device(&store.what);
            }
        }
    }

    /// Applies one store of `cpu`, which the seed picks among those that may be next.
    pub(crate) fn apply_host(&mut self, cpu: usize, rng: &mut Rng) -> Option<Arrived> {
        let list = &mut self.cpus[cpu];
        if list.is_empty() {
            return None;
        }
        let mut at = rng.index(list.len());
        if list[at].release || overlaps_earlier(list, at) {
            at = 0;
        }
        let store = list.remove(at)?;
        match store.what {
            What::Register {
                offset,
                wide,
                value,
            } => Some(Arrived {
                offset,
                wide,
                value,
            }),
            What::Bytes { .. } => {
                self.reach_device(&store.what);
                None
            }
        }
    }

    fn reach_device(&mut self, what: &What) {
        if let What::Bytes { iova, len, bytes } = what
            && let Some((region, at)) = self.region(*iova)
        {
            let bytes = &bytes[..usize::from(*len)];
            region.device.write(at, bytes);
            region.image[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Notes what the device has stored since the last call; `posted` is told of completions.
    pub(crate) fn collect(&mut self, rng: &mut Rng, posted: &mut Vec<Posted>) {
        for index in 0..self.rings.len() {
            while self.next_completion(index, rng, posted) {}
            let ring = &self.rings[index];
            if ring.has_vector && !ring.stores.is_empty() {
                if self.mutation == Some(Mutation::InterruptWithoutFence) {
                    self.mutated += 1;
                } else {
                    // Rule N4: the device's fence between its completions and its look at the
                    // event word, which was in the same step.
                    self.flush_ring(index);
                }
            }
            let notify = self.rings[index].notify;
            if notify == 0 {
                continue;
            }
            let at = notify + NOTIFY_SQ_EVENT as u64;
            if let Some(event) = self
                .device_word(at)
                .filter(|e| *e != self.rings[index].event)
            {
                self.rings[index].event = event;
                self.keep(at, 8);
                let store = store_of_words(at, &[event], true);
                self.rings[index].stores.extend(store);
            }
        }
    }

    fn next_completion(&mut self, index: usize, rng: &mut Rng, posted: &mut Vec<Posted>) -> bool {
        let ring = &self.rings[index];
        let at = ring.cq + u64::from(ring.depth.position(ring.posted)) * ENTRY_BYTES as u64;
        let phase = ring.depth.phase(ring.posted);
        match self.device_word(at) {
            Some(word) if phase_of(word) == phase => {}
            _ => return false,
        }
        let mut words = [0u64; ENTRY_WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.device_word(at + i as u64 * 8).unwrap_or_default();
        }
        self.keep(at, ENTRY_BYTES as u64);
        let completion = Completion::from_words(words);
        let request = completion.request();
        let ring = &mut self.rings[index];
        ring.posted = ring.posted.wrapping_add(1);
        let queue = ring.queue;
        let place = ring.in_flight.iter().position(|s| s.request() == request);
        let command = place.map(|place| ring.in_flight.swap_remove(place));
        if let Some(command) = command {
            let status = completion.status();
            ring.answered.push(Answered {
                entry: at,
                command,
                status,
            });
        }
        posted.push(Posted {
            queue,
            request,
            command,
            status: completion.status(),
        });
        let mut list = Vec::new();
        if command.is_none() && self.mutation == Some(Mutation::AcceptDuplicate) {
            self.rings[index].duplicate = Some(Duplicate::new(at, request.slot()));
        }
        if let Some(command) = &command {
            for (iova, len) in ranges(queue, command, false) {
                let len = self.reachable(iova, len);
                self.keep(iova, len);
                for (at, count) in lines(iova, len) {
                    let mut bytes = [0; 64];
                    if let Some((region, offset)) = self.region(at) {
                        region.device.read(offset, &mut bytes[..count]);
                    }
                    let len = count as u8;
                    let what = What::Bytes {
                        iova: at,
                        len,
                        bytes,
                    };
                    let release = false;
                    list.push(Store { what, release });
                }
            }
        }
        let Some(completion) = self.spoil_completion(index, command, completion, &mut list, rng)
        else {
            return true;
        };
        let words = completion.to_words(phase);
        let cut = 1 + rng.index(ENTRY_WORDS - 2);
        let body = [
            store_of_words(at + 8, &words[1..=cut], false),
            store_of_words(at + 8 + cut as u64 * 8, &words[cut + 1..], false),
        ];
        let early = self.mutation == Some(Mutation::CompletionBeforeData) && !queue.is_admin();
        let own = store_of_words(at, &words[..1], !early);
        let stores = &mut self.rings[index].stores;
        if early {
            self.mutated += 1;
            stores.extend(own);
            stores.extend(list);
            stores.extend(body.into_iter().flatten());
        } else {
            stores.extend(list);
            stores.extend(body.into_iter().flatten());
            stores.extend(own);
        }
        true
    }

    /// The bytes of the device's view are what they should be.
    fn keep(&mut self, iova: u64, len: u64) {
        if let Some((region, at)) = self.region(iova) {
            let end = (at + len as usize).min(region.image.len());
            region.device.read(at, &mut region.image[at..end]);
        }
    }

    /// Makes one store of the device visible to the host, from a list that the seed picks.
    pub(crate) fn apply_device(&mut self, rng: &mut Rng) -> bool {
        if self.rings.is_empty() {
            return false;
        }
        let index = rng.index(self.rings.len());
        let list = &mut self.rings[index].stores;
        if list.is_empty() {
            return false;
        }
        let mut at = rng.index(list.len());
        if list[at].release || overlaps_earlier(list, at) {
            at = 0;
        }
        if self.is_kept_back(index, at) {
            return true;
        }
        if let Some(store) = self.rings[index].stores.remove(at) {
            self.let_through(index, &store.what);
        }
        true
    }

    /// A store of the device becomes visible.
    fn let_through(&mut self, index: usize, what: &What) {
        if self.mutation.is_some() {
            self.accept_duplicate(index, what);
        }
        reach_host(&mut self.host, what);
        self.learns(index, what);
    }

    /// Makes all stores of the device visible: its full fence.
    pub(crate) fn flush_device(&mut self) {
        for index in 0..self.rings.len() {
            self.flush_ring(index);
        }
    }

    fn flush_ring(&mut self, index: usize) {
        while !self.rings[index].stores.is_empty() && !self.is_kept_back(index, 0) {
            if let Some(store) = self.rings[index].stores.pop_front() {
                self.let_through(index, &store.what);
            }
        }
    }

    /// For a mutation: whether completion event words stay where they are.
    pub(crate) fn hold_events(&mut self, held: bool) {
        self.events_held = held;
    }

    fn ring_of(&self, cpu: usize) -> Option<&Ring> {
        let mut of = self.rings.iter().rev();
        of.find(|ring| ring.cpu == cpu && !ring.queue.is_admin())
    }

    /// The queue of a host.
    pub(crate) fn queue_of(&self, cpu: usize) -> Option<QueueId> {
        self.ring_of(cpu).map(|ring| ring.queue)
    }

    /// Completions after which a host that falls asleep wants to be woken.
    pub(crate) fn completions_known(&self, cpu: usize) -> u32 {
        self.ring_of(cpu).map_or(0, |ring| {
            if ring.notify != 0 {
                EventWord::from_word(ring.wanted).index
            } else {
                ring.posted
            }
        })
    }

    /// Whether the device has posted more than those.
    pub(crate) fn completions_since(&self, cpu: usize, known: u32) -> bool {
        self.ring_of(cpu)
            .is_some_and(|ring| ring.posted.wrapping_sub(known) as i32 > 0)
    }

    /// Notes which queues have no room for completions, as the device sees it when it parks.
    pub(crate) fn note_full(&mut self) {
        for index in 0..self.rings.len() {
            let ring = &self.rings[index];
            let (notify, posted, depth) = (ring.notify, ring.posted, ring.depth.entries());
            if notify == 0 {
                continue;
            }
            let head = self
                .device_word(notify + NOTIFY_CQ_HEAD as u64)
                .unwrap_or(0);
            self.rings[index].parked_full = posted.wrapping_sub(head as u32) >= depth;
        }
    }

    /// A queue whose tail, as the device sees it, is beyond what the device has asked to be
    /// woken for; and whether it had no room for completions when the device parked.
    pub(crate) fn wake_up_owed(&mut self) -> Option<(QueueId, bool)> {
        for index in 0..self.rings.len() {
            let (notify, event) = (self.rings[index].notify, self.rings[index].event);
            if notify == 0 || self.rings[index].released {
                continue;
            }
            let tail = self
                .device_word(notify + NOTIFY_SQ_TAIL as u64)
                .unwrap_or(0);
            let head = self
                .device_word(notify + NOTIFY_CQ_HEAD as u64)
                .unwrap_or(0);
            let ring = &self.rings[index];
            let event = EventWord::from_word(event);
            // Without room for completions there is nothing that it could do. A command has its place from
            // when it was fetched, and keeps it if its completion is lost; the event word says how many were.
            let room = event.index.wrapping_sub(head as u32) < ring.depth.entries();
            if room && event.wants(tail as u32) {
                return Some((ring.queue, ring.parked_full));
            }
        }
        None
    }

    /// Whether the device wrote to the region at `iova` what no command let it; says where.
    pub(crate) fn stray(&mut self, iova: u64) -> Option<String> {
        let len = self.regions.get(&iova)?.image.len() as u64;
        let mut open: Vec<(u64, u64)> = self.rings.iter().flat_map(Ring::open).collect();
        open.extend(self.belongings.iter().map(|b| (b.iova, b.len)));
        for (at, count) in open {
            if (iova..iova + len).contains(&at) {
                self.keep(at, count);
            }
        }
        let region = self.regions.get(&iova).filter(|r| !r.spoiled)?;
        let mut now = vec![0; region.image.len()];
        region.device.read(0, &mut now);
        if now == region.image {
            return None;
        }
        let at = now.iter().zip(&region.image).position(|(a, b)| a != b)?;
        Some(format!(
            "the device wrote to byte {at:#x} of the {len} bytes mapped at {iova:#x}, which no \
             command named"
        ))
    }

    /// Rings are gone. What the device has begun to write for them is there.
    fn close_rings(&mut self, gone: impl Fn(&Ring) -> bool) {
        let of = self.rings.iter().filter(|ring| gone(ring));
        let open: Vec<(u64, u64)> = of.flat_map(Ring::open).collect();
        for (at, count) in open {
            self.keep(at, count);
        }
        self.rings.retain(|ring| !gone(ring));
    }

    /// [`Memory::stray`] for all regions.
    pub(crate) fn any_stray(&mut self) -> Option<String> {
        let all: Vec<u64> = self.regions.keys().copied().collect();
        all.into_iter().find_map(|iova| self.stray(iova))
    }
}

/// Whether an earlier store of the list is to the same line.
fn overlaps_earlier(list: &VecDeque<Store>, at: usize) -> bool {
    let What::Bytes { iova, .. } = list[at].what else {
        return true;
    };
    list.iter().take(at).any(
        |s| matches!(s.what, What::Bytes { iova: earlier, .. } if earlier / LINE == iova / LINE),
    )
}

fn reach_host(host: &mut Dma, what: &What) {
    if let What::Bytes { iova, len, bytes } = what {
        // A region that is gone has taken its stores with it.
        let _ = host.write(*iova, &bytes[..usize::from(*len)]);
    }
}

fn store_of_words(iova: u64, words: &[u64], release: bool) -> Option<Store> {
    let mut bytes = [0; 64];
    let mut len = 0;
    for word in words {
        bytes[len..len + 8].copy_from_slice(&word.to_le_bytes());
        len += 8;
    }
    let what = What::Bytes {
        iova,
        len: len as u8,
        bytes,
    };
    (len > 0).then_some(Store { what, release })
}

/// A range in pieces that lie in one line each.
fn lines(iova: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut at = iova;
    let end = iova + len;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = ((at / LINE + 1) * LINE).min(end);
            let piece = (at, (next - at) as usize);
            at = next;
            piece
        })
    })
}
