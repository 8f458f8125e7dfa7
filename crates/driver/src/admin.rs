//! The admin queue: one command at a time (abi §6).

use crate::registers::Registers;
use crate::rings::Rings;
use crate::{CompletionFault, DriverError};
use offmap_abi::admin::{IdentifyBody, IdentifyData, LimitDetail};
use offmap_abi::notify::{cq_doorbell, sq_doorbell};
use offmap_abi::{AdminOpcode, Completion, MapHandle, QueueId, RequestId, Status, Submission};
use offmap_device_io::{DmaRegion, Function, PAGE_BYTES};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The admin queue's rings, followed by one page for IDENTIFY.
pub(crate) struct AdminQueue<F: Function> {
    region: DmaRegion<F>,
    rings: Rings,
    ring_bytes: usize,
    generation: u64,
    timeout: Duration,
    reset_count: u32,
    /// Set by a failure after which an answer may still come: nothing is sent any more.
    broken: bool,
}

impl<F: Function> AdminQueue<F> {
    pub(crate) fn bytes(depth: u32) -> usize {
        2 * Rings::ring_bytes(depth) + PAGE_BYTES
    }

    pub(crate) fn new(region: DmaRegion<F>, depth: u32, timeout: Duration) -> Self {
        let ring_bytes = Rings::ring_bytes(depth);
        Self {
            rings: Rings::new(0, ring_bytes, depth),
            region,
            ring_bytes,
            generation: 0,
            timeout,
            reset_count: 0,
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

    pub(crate) fn identify(&mut self, function: &F) -> Result<IdentifyData, DriverError> {
        let page = 2 * self.ring_bytes;
        let body = IdentifyBody {
            iova: self.region.iova(page).0.into(),
            len: (size_of::<IdentifyData>() as u32).into(),
            reserved: [0; 36],
        };
        self.command(function, AdminOpcode::Identify, None, &body)?;
        let mut bytes = [0u8; size_of::<IdentifyData>()];
        self.region.buffer().read(page, &mut bytes);
        match IdentifyData::read_from_bytes(&bytes) {
            Ok(data) => Ok(data),
            Err(_) => unreachable!("the array has the struct's size"),
        }
    }

    /// Runs one command to its end. Statuses other than success are errors.
    pub(crate) fn command<B: IntoBytes + Immutable>(
        &mut self,
        function: &F,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
    ) -> Result<Completion, DriverError> {
        let completion = self.exchange(function, command, map, body)?;
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
                })
            }
            status => Err(DriverError::Command { command, status }),
        }
    }

    fn exchange<B: IntoBytes + Immutable>(
        &mut self,
        function: &F,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
    ) -> Result<Completion, DriverError> {
        if self.broken {
            return Err(DriverError::Down);
        }
        // Whatever fails from here on, an answer may come later: only success clears this.
        self.broken = true;
        self.generation = (self.generation + 1) % RequestId::GENERATIONS;
        let request = RequestId::new(0, self.generation);
        let mut entry = Submission::new(command.0, request, body);
        if let Some(map) = map {
            entry = entry.with_map(map);
        }
        self.rings.push(self.region.buffer(), entry);
        let registers = Registers(function);
        registers.write64(sq_doorbell(QueueId::ADMIN), self.rings.tail().into())?;

        let started = Instant::now();
        let mut turns = 0u32;
        let completion = loop {
            if let Some(completion) = self.rings.pop(self.region.buffer()) {
                break completion;
            }
            function.progress();
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(64) {
                let waited = started.elapsed();
                if turns.is_multiple_of(1 << 14) || waited >= self.timeout {
                    registers.health(self.reset_count)?;
                }
                if waited >= self.timeout {
                    // Once more: this thread may have been off the processor for longer
                    // than the timeout, with the answer here all the time.
                    match self.rings.pop(self.region.buffer()) {
                        Some(completion) => break completion,
                        None => {
                            return Err(DriverError::AdminTimeout {
                                command,
                                after: self.timeout,
                            });
                        }
                    }
                }
            }
            if turns > 1024 {
                std::thread::yield_now();
            }
        };
        registers.write64(cq_doorbell(QueueId::ADMIN), self.rings.head().into())?;
        if completion.request() != request {
            return Err(DriverError::BadCompletion {
                queue: QueueId::ADMIN,
                request: completion.request(),
                fault: CompletionFault::Stale,
            });
        }
        self.broken = false;
        Ok(completion)
    }
}
