//! The admin queue: one command at a time (abi §6).

use crate::generations::Generations;
use crate::queue::{FAST_TURNS, HEALTH_FIRST, HEALTH_LAST, SPIN_TURNS, YIELD_TURNS};
use crate::registers::Registers;
use crate::rings::Rings;
use crate::{CompletionFault, DriverError, MemoryRoom};
use offmap_abi::admin::{
    IdentifyBody, IdentifyData, LimitDetail, MapDescription, MapListBody, MapListed, MemoryDetail,
};
use offmap_abi::completion::INLINE_RESULT_BYTES;
use offmap_abi::notify::{cq_doorbell, sq_doorbell};
use offmap_abi::ring::RingDepth;
use offmap_abi::{AdminOpcode, Completion, MapHandle, QueueId, RequestId, Status, Submission};
use offmap_device_io::{DmaRegion, Function, PAGE_BYTES};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The admin queue's rings, followed by one page for what a command refers to.
pub(crate) struct AdminQueue<F: Function> {
    region: DmaRegion<F>,
    rings: Rings,
    depth: RingDepth,
    ring_bytes: usize,
    generations: Arc<Generations>,
    generation: u64,
    reset_count: u32,
    /// Commands whose answer nobody waits for any more. They refer to no memory, so that a late
    /// answer does no harm; it is dropped when it comes.
    abandoned: Vec<RequestId>,
    /// Set by a failure after which an answer may still come: nothing is sent any more.
    broken: bool,
}

/// What an exchange does when its time is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OnTimeout {
    /// The device owes an answer that may still use memory: the queue ends.
    Break,
    /// The answer is not needed; the queue goes on.
    Abandon,
}

impl<F: Function> AdminQueue<F> {
    pub(crate) fn bytes(depth: RingDepth) -> usize {
        2 * Rings::ring_bytes(depth) + PAGE_BYTES
    }

    pub(crate) fn new(
        region: DmaRegion<F>,
        depth: RingDepth,
        generations: Arc<Generations>,
    ) -> Self {
        let ring_bytes = Rings::ring_bytes(depth);
        Self {
            rings: Rings::new(0, ring_bytes, depth),
            region,
            depth,
            ring_bytes,
            generation: generations.lease(),
            generations,
            reset_count: 0,
            abandoned: Vec::with_capacity(depth.entries() as usize),
            broken: false,
        }
    }

    pub(crate) fn sq_iova(&self) -> u64 {
        self.region.iova(0).0
    }

    pub(crate) fn cq_iova(&self) -> u64 {
        self.region.iova(self.ring_bytes).0
    }

    pub(crate) fn set_reset_count(&mut self, count: u32) {
        self.reset_count = count;
    }

    pub(crate) fn reset_count(&self) -> u32 {
        self.reset_count
    }

    /// The memory, for a device that may still write it.
    pub(crate) fn into_region(self) -> DmaRegion<F> {
        self.region
    }

    /// Puts what the next command refers to at the IOVA that is returned; a page at most. No
    /// other command uses that memory meanwhile: there is one at a time, and after one that
    /// was not answered there is no next.
    pub(crate) fn attach(&mut self, bytes: &[u8]) -> u64 {
        let page = 2 * self.ring_bytes;
        self.region.buffer().zero(page, PAGE_BYTES);
        self.region.buffer().write(page, bytes);
        self.region.iova(page).0
    }

    /// That memory, as the command has left it.
    pub(crate) fn attached(&self, page: &mut [u8; PAGE_BYTES]) {
        self.region.buffer().read(2 * self.ring_bytes, page);
    }

    pub(crate) fn identify(
        &mut self,
        function: &F,
        timeout: Duration,
    ) -> Result<IdentifyData, DriverError> {
        // Zeroes: what the device does not write are limits of zero, which are refused.
        let body = IdentifyBody {
            iova: self.attach(&[]).into(),
            len: (size_of::<IdentifyData>() as u32).into(),
            reserved: [0; 36],
        };
        self.command(function, AdminOpcode::Identify, None, &body, timeout)?;
        let mut bytes = [0u8; size_of::<IdentifyData>()];
        self.region.buffer().read(2 * self.ring_bytes, &mut bytes);
        match IdentifyData::read_from_bytes(&bytes) {
            Ok(data) => Ok(data),
            Err(_) => unreachable!("the array has the struct's size"),
        }
    }

    /// The maps from `cursor` on, as many as fit a page, with the cursor that follows; and the completion.
    pub(crate) fn list(
        &mut self,
        function: &F,
        cursor: u32,
        timeout: Duration,
    ) -> Result<(Completion, Vec<MapDescription>, u32), DriverError> {
        const EACH: usize = size_of::<MapDescription>();
        let body = MapListBody {
            // Zeroes: what the device does not write is no map.
            iova: self.attach(&[]).into(),
            len: (PAGE_BYTES as u32).into(),
            cursor: cursor.into(),
            reserved: [0; 32],
        };
        let done = self.command(function, AdminOpcode::MapList, None, &body, timeout)?;
        let bytes = done.count.get() as usize;
        if bytes > PAGE_BYTES || !bytes.is_multiple_of(EACH) {
            return Err(bad(&done, CompletionFault::Count));
        }
        let mut maps = vec![MapDescription::new_zeroed(); bytes / EACH];
        let into = maps.as_mut_slice().as_mut_bytes();
        self.region.buffer().read(2 * self.ring_bytes, into);
        // The count is that of the list, and says nothing of the payload.
        let listed: MapListed = done.payload_as();
        Ok((done, maps, listed.cursor.get()))
    }

    /// Runs one command to its end, which takes at most `timeout`. Statuses other than success
    /// are errors.
    pub(crate) fn command<B: IntoBytes + Immutable>(
        &mut self,
        function: &F,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
        timeout: Duration,
    ) -> Result<Completion, DriverError> {
        let entry = self.entry(command, map, body);
        let completion = self.exchange(function, entry, timeout, OnTimeout::Break)?;
        Self::checked(command, completion)
    }

    /// [`AdminQueue::command`] for one that refers to no memory: when it is not answered in time
    /// the queue stays usable.
    pub(crate) fn try_command<B: IntoBytes + Immutable>(
        &mut self,
        function: &F,
        command: AdminOpcode,
        body: &B,
        timeout: Duration,
    ) -> Result<Completion, DriverError> {
        let entry = self.entry(command, None, body);
        let completion = self.exchange(function, entry, timeout, OnTimeout::Abandon)?;
        Self::checked(command, completion)
    }

    /// The payload of a completion with success.
    pub(crate) fn result<T: FromBytes>(completion: &Completion) -> Result<T, DriverError> {
        const { assert!(size_of::<T>() <= INLINE_RESULT_BYTES) };
        if (completion.count.get() as usize) < size_of::<T>() {
            return Err(bad(completion, CompletionFault::ShortResult));
        }
        Ok(completion.payload_as())
    }

    fn entry<B: IntoBytes + Immutable>(
        &mut self,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
    ) -> Submission {
        self.generation = self.generations.after(self.generation);
        let request = RequestId::new(0, self.generation);
        let entry = Submission::new(command.0, request, body);
        match map {
            Some(map) => entry.with_map(map),
            None => entry,
        }
    }

    fn checked(command: AdminOpcode, completion: Completion) -> Result<Completion, DriverError> {
        match completion.status() {
            Status::Success => Ok(completion),
            status @ (Status::LimitExceeded | Status::NoMemory)
                if completion.count.get() as usize >= size_of::<LimitDetail>() =>
            {
                let detail: LimitDetail = completion.payload_as();
                Err(DriverError::Refused {
                    command,
                    status,
                    limit: offmap_abi::admin::Limit(detail.limit.get()),
                    asked: detail.asked.get(),
                    allowed: detail.allowed.get(),
                    used: detail.used.get(),
                    memory: room_of(&completion),
                })
            }
            status => Err(DriverError::Command { command, status }),
        }
    }

    fn exchange(
        &mut self,
        function: &F,
        entry: Submission,
        timeout: Duration,
        on_timeout: OnTimeout,
    ) -> Result<Completion, DriverError> {
        // Each abandoned command holds its place in the ring until it is answered.
        if self.broken || self.abandoned.len() >= self.depth.entries() as usize {
            return Err(DriverError::Down);
        }
        // Whatever fails from here on, an answer may come later.
        self.broken = true;
        let request = entry.request();
        let command = AdminOpcode(entry.opcode);
        self.rings.push(self.region.buffer(), entry);
        let registers = Registers(function);
        registers.write64(
            "the admin submission doorbell",
            sq_doorbell(QueueId::ADMIN),
            self.rings.tail().into(),
        )?;

        let started = function.now();
        let mut turns = 0u32;
        let mut health_at = HEALTH_FIRST;
        let completion = loop {
            if let Some(completion) = self.answer() {
                break completion;
            }
            function.progress();
            turns = turns.wrapping_add(1);
            // Once the processor is given away between two turns, one of them may take long.
            let burst = match turns > SPIN_TURNS {
                true => YIELD_TURNS,
                false => FAST_TURNS,
            };
            if turns.is_multiple_of(burst) {
                let waited = function.now().saturating_sub(started);
                if waited >= health_at || waited >= timeout {
                    health_at = waited + health_at.min(HEALTH_LAST);
                    registers.health(self.reset_count)?;
                }
                if waited >= timeout {
                    // Once more: this thread may have been off the processor for longer
                    // than the timeout, with the answer here all the time.
                    match self.answer() {
                        Some(completion) => break completion,
                        None => {
                            if on_timeout == OnTimeout::Abandon {
                                // Answers that were dropped gave their room back.
                                self.publish_head(function)?;
                                self.abandoned.push(request);
                                self.broken = false;
                            }
                            return Err(DriverError::AdminTimeout {
                                command,
                                after: timeout,
                            });
                        }
                    }
                }
            }
            if turns > SPIN_TURNS {
                function.relax();
            }
        };
        self.publish_head(function)?;
        if completion.request() != request {
            return Err(bad(&completion, CompletionFault::Stale));
        }
        self.broken = false;
        Ok(completion)
    }

    fn publish_head(&self, function: &F) -> Result<(), DriverError> {
        Registers(function).write64(
            "the admin completion doorbell",
            cq_doorbell(QueueId::ADMIN),
            self.rings.head().into(),
        )
    }

    /// The next completion, other than those of abandoned commands.
    fn answer(&mut self) -> Option<Completion> {
        loop {
            let completion = self.rings.pop(self.region.buffer())?;
            let request = completion.request();
            match self.abandoned.iter().position(|lost| *lost == request) {
                // Each is dropped once; that of a forged second one is nobody's.
                Some(at) => {
                    self.abandoned.swap_remove(at);
                }
                None => return Some(completion),
            }
        }
    }
}

/// What a refusal says of memory, where that is what there was not enough of and the device says so much.
fn room_of(completion: &Completion) -> Option<MemoryRoom> {
    if (completion.count.get() as usize) < size_of::<MemoryDetail>() {
        return None;
    }
    let detail: MemoryDetail = completion.payload_as();
    let memory = offmap_abi::admin::Limit(detail.limit.get()) == offmap_abi::admin::Limit::Memory;
    memory.then(|| MemoryRoom {
        tier: detail.tier.get().checked_sub(1),
        free_bytes: detail.free.get(),
    })
}

/// An admin completion that cannot be.
pub(crate) fn bad(completion: &Completion, fault: CompletionFault) -> DriverError {
    DriverError::BadCompletion {
        queue: QueueId::ADMIN,
        request: completion.request(),
        fault,
    }
}
