//! Planted bugs ([`Mutation`]): what goes wrong on the way between driver and device.

use super::release::Answered;
use super::{Memory, Ring, Store, What, ranges, store_of_words};
use crate::mutation::Mutation;
use crate::rng::Rng;
use offmap_abi::admin::{AbortBody, IdentifyBody, MapCreateBody, QueueCreateBody};
use offmap_abi::submission::{BatchBody, ElementBody, phase_of};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, MapType, QueueId, RequestId, Status, Submission,
    SubmissionFlags,
};
use offmap_emulator::dma::ENTRY_BYTES;
use std::sync::atomic::Ordering;

/// A completion that comes for the second time, and its slot.
#[derive(Clone, Copy)]
pub(super) struct Duplicate {
    entry: u64,
    slot: u16,
    /// How often it is still kept back until the slot has another command.
    patience: u32,
}

impl Duplicate {
    pub(super) fn new(entry: u64, slot: u16) -> Self {
        Self {
            entry,
            slot,
            patience: 400,
        }
    }
}

/// An admin command that succeeds and does nothing: IDENTIFY into no bytes.
fn nothing(entry: &Submission) -> Submission {
    let body = IdentifyBody {
        iova: 0.into(),
        len: 0.into(),
        reserved: [0; 36],
    };
    Submission::new(AdminOpcode::Identify.0, entry.request(), &body)
}

impl Memory {
    pub(super) fn plant(&mut self, mutation: Mutation, rng: &mut Rng, one_in: u64) -> bool {
        let now = self.mutation == Some(mutation) && rng.one_in(one_in);
        self.mutated += u64::from(now);
        now
    }

    /// Bugs of the driver in its admin commands.
    pub(super) fn spoil_admin(
        &mut self,
        queue: QueueId,
        entry: Submission,
        rng: &mut Rng,
    ) -> Submission {
        if self.mutation.is_none() || !queue.is_admin() {
            return entry;
        }
        match AdminOpcode(entry.opcode) {
            AdminOpcode::MapFree if self.has_memory(entry.map()) => {
                match self.plant(Mutation::RingFreedEarly, rng, 2) {
                    true => nothing(&entry),
                    false => entry,
                }
            }
            AdminOpcode::MapFree if self.plant(Mutation::LeakMap, rng, 2) => Submission {
                opcode: AdminOpcode::MapQuery.0,
                ..entry
            },
            AdminOpcode::QueueDelete if self.plant(Mutation::FreeUndeleted, rng, 4) => {
                nothing(&entry)
            }
            AdminOpcode::MapCreate => self.spoil_map(entry, rng),
            AdminOpcode::QueueCreate => self.reuse_queue_id(entry, rng),
            AdminOpcode::Abort => self.spoil_abort(entry, rng),
            _ => entry,
        }
    }

    /// Another capacity than was asked for, or no map at all.
    fn spoil_map(&mut self, entry: Submission, rng: &mut Rng) -> Submission {
        if self.plant(Mutation::RefuseMap, rng, 8) {
            // No opcode of this device.
            return Submission {
                opcode: 0x7f,
                ..entry
            };
        }
        let mut body: MapCreateBody = entry.body();
        let entries = body.max_entries.get();
        let (more, less) = match MapType(body.map_type.get()) {
            MapType::Hash | MapType::PercpuHash => {
                (Mutation::HashTakesMore, Mutation::HashFullEarly)
            }
            MapType::LruHash | MapType::LruPercpuHash => {
                (Mutation::LruTakesMore, Mutation::LruEvictsEarly)
            }
            _ => return entry,
        };
        let entries = if self.plant(more, rng, 2) {
            entries + 1
        } else if entries > 1 && self.plant(less, rng, 2) {
            entries - 1
        } else {
            return entry;
        };
        body.max_entries = entries.into();
        Submission::new(entry.opcode, entry.request(), &body)
    }

    /// The id of a queue that there is.
    fn reuse_queue_id(&mut self, entry: Submission, rng: &mut Rng) -> Submission {
        let live = |r: &&Ring| !r.released && !r.queue.is_admin();
        let Some(other) = self.rings.iter().find(live).map(|r| r.queue) else {
            return entry;
        };
        if !self.plant(Mutation::ReuseQueueId, rng, 8) {
            return entry;
        }
        let mut body: QueueCreateBody = entry.body();
        body.queue = other.0.into();
        Submission::new(entry.opcode, entry.request(), &body)
    }

    fn spoil_abort(&mut self, entry: Submission, rng: &mut Rng) -> Submission {
        let body: AbortBody = entry.body();
        let (queue, target) = (QueueId(body.queue.get()), RequestId(body.request.get()));
        let batch = self.is_batch(queue, target);
        if batch && self.plant(Mutation::IgnoreAbort, rng, 1) {
            return nothing(&entry);
        }
        if self.command(queue, target).is_some() && self.plant(Mutation::FreeAtTimeout, rng, 4) {
            self.report_as(queue, target, Status::Aborted);
            return nothing(&entry);
        }
        entry
    }

    pub(super) fn spoil_submission(
        &mut self,
        queue: QueueId,
        entry: Submission,
        rng: &mut Rng,
    ) -> Submission {
        if self.mutation.is_none() || queue.is_admin() {
            return entry;
        }
        let opcode = IoOpcode(entry.opcode);
        if opcode == IoOpcode::Update && self.plant(Mutation::LoseWrite, rng, 16) {
            return Submission::new(IoOpcode::Nop.0, entry.request(), &[0u8; 48]);
        }
        self.forget_deleted(&entry);
        let by_address =
            !opcode.is_batch() && !entry.flags().contains(SubmissionFlags::VALUE_INLINE);
        let body: ElementBody = entry.body();
        if by_address && body.value_len.get() > 0 && self.plant(Mutation::UnmappedAddress, rng, 16)
        {
            let mut body = body;
            // Above all that the IOVA ranges allow.
            body.value[..8].copy_from_slice(&(1u64 << 62).to_le_bytes());
            return Submission::new(entry.opcode, entry.request(), &body)
                .with_map(entry.map())
                .with_flags(entry.flags());
        }
        if opcode == IoOpcode::Lookup && entry.flags().contains(SubmissionFlags::KEY_INLINE) {
            let mut body: ElementBody = entry.body();
            let map = entry.map().0;
            let other = self
                .earlier
                .keys()
                .find(|(m, key)| *m == map && *key != body.key)
                .map(|(_, key)| *key);
            if self.mutation == Some(Mutation::OtherKey) {
                self.earlier.entry((map, body.key)).or_insert([0; 48]);
            }
            if let Some(key) = other
                && self.plant(Mutation::OtherKey, rng, 8)
            {
                body.key = key;
                return Submission::new(entry.opcode, entry.request(), &body)
                    .with_map(entry.map())
                    .with_flags(entry.flags());
            }
        }
        entry
    }

    /// The last two entries that `cpu` has stored change places in the ring.
    pub(super) fn maybe_swap(&mut self, cpu: usize, index: usize, first: u32, rng: &mut Rng) {
        if self.mutation != Some(Mutation::SwapCommands) {
            return;
        }
        let ring = &self.rings[index];
        let count = ring.captured.wrapping_sub(first);
        if count < 2 || !rng.one_in(2) {
            return;
        }
        let from = ring.in_flight.len() - 2;
        let (a, b) = (ring.in_flight[from], ring.in_flight[from + 1]);
        if a.map() != b.map() {
            return;
        }
        let place = |back: u32| {
            let n = ring.captured.wrapping_sub(back);
            let at = ring.sq + u64::from(ring.depth.position(n)) * ENTRY_BYTES as u64;
            (at, ring.depth.phase(n))
        };
        let stored = [(place(2), b), (place(1), a)];
        self.mutated += 1;
        for ((at, phase), entry) in stored {
            let words = entry.to_words(phase);
            // In the list the new words come after the old ones and before the ownership words
            // are let go: the list is emptied of the old ones first.
            self.cpus[cpu].retain(
                |s| !matches!(s.what, What::Bytes { iova, .. } if (at..at + 64).contains(&iova)),
            );
            self.push_words(cpu, at + 8, &words[1..], false);
            self.push_words(cpu, at, &words[..1], true);
        }
    }

    /// `None`: the completion is lost.
    pub(super) fn spoil_completion(
        &mut self,
        index: usize,
        command: Option<Submission>,
        mut completion: Completion,
        data: &mut Vec<Store>,
        rng: &mut Rng,
    ) -> Option<Completion> {
        if self.mutation.is_none() {
            return Some(completion);
        }
        let queue = self.rings[index].queue;
        completion = self.accept_slot(index, completion, command.is_some());
        let Some(command) = command.filter(|_| !queue.is_admin()) else {
            return Some(completion);
        };
        let success = completion.status() == Status::Success;
        if completion.status() == Status::Full && self.plant(Mutation::AcceptFull, rng, 2) {
            completion.status = Status::Success.0.into();
        }
        let torn = self.mutation == Some(Mutation::TearResult) && success && !data.is_empty();
        if torn && rng.one_in(4) {
            self.mutated += 1;
            data.swap_remove(rng.index(data.len()));
        }
        let failed = match self.mutation {
            Some(Mutation::ReportDetected) => Some(Status::MediaError),
            Some(Mutation::ReportFailedDma) => Some(Status::DmaFault),
            _ => None,
        };
        if failed == Some(completion.status()) && !IoOpcode(command.opcode).is_batch() {
            self.mutated += 1;
            let body: ElementBody = command.body();
            completion.status = Status::Success.0.into();
            completion.count = body.value_len.get().into();
        }
        let lookup = IoOpcode(command.opcode) == IoOpcode::Lookup;
        if lookup && success && self.plant(Mutation::WrongStatus, rng, 64) {
            completion.status = Status::Internal.0.into();
        }
        self.spoil_walk(&command, &mut completion, data, rng);
        if self.mutation == Some(Mutation::AbortFreesEarly) {
            self.write_late(&command, completion.status(), data);
        }
        if self.plant(Mutation::StaleGeneration, rng, 64) {
            let id = completion.request();
            let old = RequestId::new(id.slot(), id.generation().wrapping_sub(1));
            completion.request = old.0.into();
        }
        if self.plant(Mutation::LoseCompletion, rng, 128)
            || (self.draining && self.plant(Mutation::LoseLast, rng, 4))
        {
            return None;
        }
        if self.mutation == Some(Mutation::StaleValue) && lookup && success && data.is_empty() {
            let body: ElementBody = command.body();
            let seen = self.earlier.entry((command.map().0, body.key));
            let old = *seen.or_insert(completion.payload);
            if old != completion.payload {
                self.mutated += 1;
                completion.payload = old;
            }
        }
        if self.mutation == Some(Mutation::SwapRequests) {
            match self.swapped {
                Some((q, kept, given)) if q == queue && given == completion.request.get() => {
                    completion.request = kept.into();
                    self.swapped = None;
                }
                None if rng.one_in(2) => {
                    // Of the same kind, so that nothing else gives it away.
                    let alike =
                        |s: &&Submission| (s.opcode, s.map()) == (command.opcode, command.map());
                    let other = self.rings[index].in_flight.iter().find(alike);
                    if let Some(other) = other.map(|s| s.request().0) {
                        self.mutated += 1;
                        self.swapped = Some((queue, completion.request.get(), other));
                        completion.request = other.into();
                    }
                }
                _ => {}
            }
        }
        Some(completion)
    }

    /// Notes the buffer of a command that was aborted, or spoils what another one returns in it.
    fn write_late(&mut self, command: &Submission, status: Status, data: &mut [Store]) {
        let Some((buffer, _)) = ranges(QueueId(1), command, false).first().copied() else {
            return;
        };
        if status == Status::Aborted {
            self.freed_early.push(buffer);
            return;
        }
        let Some(at) = self.freed_early.iter().position(|iova| *iova == buffer) else {
            return;
        };
        self.freed_early.swap_remove(at);
        for store in data.iter_mut() {
            if let What::Bytes { iova, bytes, .. } = &mut store.what
                && *iova == buffer
            {
                self.mutated += 1;
                bytes[0] ^= 0xff;
            }
        }
    }

    /// A completion that comes for the second time ends the command that has its slot now.
    pub(super) fn accept_duplicate(&mut self, index: usize, what: &What) {
        let ring = &mut self.rings[index];
        let (Some(second), What::Bytes { iova, .. }) = (ring.duplicate, what) else {
            return;
        };
        if *iova != second.entry {
            return;
        }
        ring.duplicate = None;
        if let Some(heir) = ring.of_slot(second.slot) {
            self.mutated += 1;
            let _ = self.host.write(second.entry + 8, &heir.0.to_le_bytes());
        }
    }

    /// Whether the store at this place waits until the second completion has a command to end.
    pub(super) fn is_kept_back(&mut self, index: usize, at: usize) -> bool {
        let ring = &mut self.rings[index];
        let (Some(second), Some(store)) = (&mut ring.duplicate, ring.stores.get(at)) else {
            return false;
        };
        let its = matches!(store.what, What::Bytes { iova, .. } if iova == second.entry);
        let heir = ring.in_flight.iter();
        let lonely = !heir.into_iter().any(|s| s.request().slot() == second.slot);
        if !its || !lonely || second.patience == 0 {
            return false;
        }
        second.patience -= 1;
        true
    }

    /// A completion with a slot that there is not, or that has no command, ends one that is in
    /// flight.
    pub(super) fn accept_slot(
        &mut self,
        index: usize,
        mut completion: Completion,
        known: bool,
    ) -> Completion {
        let ring = &self.rings[index];
        if known || self.mutation != Some(Mutation::SlotUnchecked) || ring.queue.is_admin() {
            return completion;
        }
        let slot = u32::from(completion.request().slot()) % ring.depth.entries();
        let any = ring.in_flight.first().map(Submission::request);
        if let Some(victim) = ring.of_slot(slot as u16).or(any) {
            self.mutated += 1;
            completion.request = victim.0.into();
        }
        completion
    }

    /// The device writes to an address that is outside of all that is mapped.
    pub(crate) fn write_outside(&mut self, iova: u64) {
        let count = self.regions.len() as u64;
        if self.mutation != Some(Mutation::AddressUnchecked) || count == 0 {
            return;
        }
        let region = self.regions.values().nth(((iova >> 12) % count) as usize);
        if let Some(region) = region {
            self.mutated += 1;
            let at = (iova % region.image.len() as u64) as usize & !7;
            let before = region.device.load_u64(at, Ordering::Relaxed);
            region.device.store_u64(at, !before, Ordering::Relaxed);
        }
    }

    /// An update or delete, with its operands in its descriptor, that waits behind what is under way on a queue.
    pub(crate) fn behind(&self, queue: QueueId, map: MapHandle) -> Option<Submission> {
        let ring = self
            .rings
            .iter()
            .find(|r| r.queue == queue && !r.released)?;
        let of = ring.in_flight.iter().find(|s| {
            let inline = match IoOpcode(s.opcode) {
                IoOpcode::Update => SubmissionFlags::KEY_INLINE | SubmissionFlags::VALUE_INLINE,
                IoOpcode::Delete => SubmissionFlags::KEY_INLINE,
                _ => return false,
            };
            s.map() == map && s.flags().contains(inline)
        });
        of.copied()
    }

    /// The device finds a command that does nothing in place of this one.
    pub(crate) fn erase(&mut self, queue: QueueId, request: RequestId) {
        let Some(ring) = self.rings.iter().find(|r| r.queue == queue) else {
            return;
        };
        let (sq, depth) = (ring.sq, ring.depth.entries());
        for at in (0..u64::from(depth)).map(|n| sq + n * ENTRY_BYTES as u64) {
            if self.device_word(at + 8) != Some(request.0) {
                continue;
            }
            let phase = self.device_word(at).is_some_and(phase_of);
            let words = Submission::new(IoOpcode::Nop.0, request, &[0u8; 48]).to_words(phase);
            if let Some((region, offset)) = self.region(at) {
                for (n, word) in words.iter().enumerate() {
                    let place = offset + n * 8;
                    region.device.store_u64(place, *word, Ordering::Relaxed);
                }
                self.mutated += 1;
            }
            self.keep(at, ENTRY_BYTES as u64);
        }
    }

    /// Keys and values that a batch has been given, as the device sees them.
    pub(crate) fn operands(&mut self, command: &Submission) -> Vec<(u64, Vec<u8>)> {
        let body: BatchBody = command.body();
        let count = u64::from(body.count.get());
        let mut operands = Vec::new();
        for (iova, len) in [
            (body.keys.get(), count * u64::from(body.key_len.get())),
            (body.values.get(), count * u64::from(body.value_len.get())),
        ] {
            if let Some((region, at)) = self.region(iova)
                && len > 0
            {
                let mut bytes = vec![0; (len as usize).min(region.image.len() - at)];
                region.device.read(at, &mut bytes);
                operands.push((iova, bytes));
            }
        }
        operands
    }

    /// The device reports a command as good that it did not finish.
    pub(crate) fn report_as_done(&mut self, queue: QueueId, request: RequestId) {
        let Some(index) = self.rings.iter().position(|r| r.queue == queue) else {
            return;
        };
        let ring = &mut self.rings[index];
        let Some(at) = ring.in_flight.iter().position(|s| s.request() == request) else {
            return;
        };
        let command = ring.in_flight[at];
        if IoOpcode(command.opcode).is_batch() {
            return;
        }
        let entry = self.report_as(queue, request, Status::Success);
        let ring = &mut self.rings[index];
        ring.in_flight.retain(|s| s.request() != request);
        ring.answered.extend(entry.map(|entry| Answered {
            entry,
            command,
            status: Status::Success,
        }));
    }

    /// A completion of a command in flight that the device has not posted; where it is.
    fn report_as(&mut self, queue: QueueId, request: RequestId, status: Status) -> Option<u64> {
        let index = self.rings.iter().position(|r| r.queue == queue)?;
        let ring = &mut self.rings[index];
        let at = ring.in_flight.iter().position(|s| s.request() == request)?;
        let body: ElementBody = ring.in_flight[at].body();
        let mut completion = Completion::new(request, status);
        completion.count = body.value_len.get().into();
        let words = completion.to_words(ring.depth.phase(ring.posted));
        let place = u64::from(ring.depth.position(ring.posted)) * ENTRY_BYTES as u64;
        let at = ring.cq + place;
        ring.posted = ring.posted.wrapping_add(1);
        self.mutated += 1;
        for (iova, words, release) in [(at + 8, &words[1..], false), (at, &words[..1], true)] {
            if let Some(store) = store_of_words(iova, words, release) {
                self.rings[index].stores.push_back(store);
            }
        }
        Some(at)
    }

    /// Changes a byte of the device's view, as a device would that computes a wrong address.
    pub(crate) fn stray_write(&mut self, rng: &mut Rng) {
        let count = self.regions.len();
        if count == 0 {
            return;
        }
        let region = self.regions.values().nth(rng.index(count));
        if let Some(region) = region {
            self.mutated += 1;
            // The last bytes of a region: data areas that are mostly unused.
            let at = region.image.len() - 8;
            region
                .device
                .store_u64(at, rng.next() | 1, Ordering::Relaxed);
        }
    }
}
