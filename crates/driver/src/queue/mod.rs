//! I/O queue pairs: rings, notification, in-flight table, buffers.
//!
//! Three layers over the same state: `submit` writes commands and tells the device,
//! `complete` takes completions and waits for them, `ops` and `batch` are the blocking calls.

mod batch;
mod complete;
mod ops;
mod slots;
pub(crate) mod stats;
mod submit;

pub use batch::{BatchDone, Dumped};
pub use complete::Finished;
pub(crate) use complete::{FAST_TURNS, HEALTH_FIRST, HEALTH_LAST, SPIN_TURNS, YIELD_TURNS};
pub use submit::Op;

use crate::driver::{self, Driver};
use crate::rings::Rings;
use crate::{CompletionMode, DeviceMap, DriverError, Notify, Vector};
use offmap_abi::admin::QueueCreateBody;
use offmap_abi::notify::{NOTIFY_ALIGN, NOTIFY_BYTES};
use offmap_abi::regs::Features;
use offmap_abi::ring::RingDepth;
use offmap_abi::{CompletionWords, IoOpcode, QueueId, RequestId};
use offmap_device_io::{DmaRegion, Function, Interrupt, PAGE_BYTES};
use slots::{Larges, Slots};
use stats::{Meter, Timer};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A command in flight on a queue pair, or finished and not yet taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token {
    request: RequestId,
    /// Of the queue pair that gave it out, so that no other one takes it for its own.
    queue: u64,
}

impl Token {
    /// The id under which the device knows the command.
    pub const fn request(self) -> RequestId {
        self.request
    }
}

/// Serial numbers of queue pairs, of all drivers. They never leave this process.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(0);

/// What a queue pair has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Commands stored in the submission ring.
    pub submitted: u64,
    /// Completions taken from the completion ring and accepted.
    pub completed: u64,
    /// KICK register writes.
    pub kicks: u64,
    /// Submission doorbell writes.
    pub doorbells: u64,
    /// Waits that reached their deadline.
    pub timeouts: u64,
    /// Completions that were not acceptable.
    pub rejected: u64,
    /// Times that a waiter slept.
    pub sleeps: u64,
    /// Sleeps that an interrupt ended; the others ended by their time.
    pub interrupts: u64,
}

/// How this queue tells the device of its tail and head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bell {
    /// Words in host memory, at this offset of the queue's region, and KICK.
    Block { at: usize },
    /// Doorbell registers: stores to the mapped page where there is one, otherwise
    /// register writes.
    Doorbell,
}

/// An I/O queue pair, for one thread at a time.
///
/// Commands are written with [`QueuePair::write`] and handed over with
/// [`QueuePair::commit`]; [`QueuePair::submit`] does both. [`QueuePair::poll`] and
/// [`QueuePair::wait`] return them finished, in the order of completion. The blocking calls
/// do all of it for one command, or for a batch; they may be mixed with commands in flight.
///
/// After a failure that leaves the queue's state unknown (a completion that cannot be, a
/// command that neither completed nor could be aborted, a reset) every call fails. Dropping the
/// pair deletes the queue; its memory is released once the device confirms that, or a reset.
pub struct QueuePair<F: Function> {
    driver: Arc<Driver<F>>,
    id: QueueId,
    serial: u64,
    epoch: u64,
    /// Rings, notify block, and a data area for each slot.
    ///
    /// Counted, so that it can outlive the pair while the device may still write it.
    region: Arc<DmaRegion<F>>,
    rings: Rings,
    bell: Bell,
    /// Where waiters sleep; `None`: they poll.
    vector: Option<Vector<F>>,
    /// Looks at the completion ring before a waiter looks at the clock for the first time.
    fast_turns: u32,
    /// How long a waiter looks before it sleeps.
    spin: Duration,
    /// Tail that the device was told.
    committed: u32,
    /// Head that the device was told.
    released: u32,
    /// Completions between two publications of the head.
    release_every: u32,
    slots: Slots,
    larges: Larges<F>,
    /// Completions that arrived while another was waited for, by slot; valid in state Done.
    stash: Box<[CompletionWords]>,
    /// The completion that was taken last. In place, and not passed on: see [`CompletionWords`].
    taken: CompletionWords,
    /// Slots in state Done, oldest first.
    done: VecDeque<u16>,
    broken: bool,
    /// Whether the device knows the queue.
    on_device: bool,
    meter: Arc<Meter>,
    timer: Option<Box<Timer>>,
}

impl<F: Function> QueuePair<F> {
    /// A pair over fresh memory, and the command that makes the device take it up.
    pub(crate) fn prepare(
        driver: Arc<Driver<F>>,
        id: QueueId,
        epoch: u64,
    ) -> Result<(Self, QueueCreateBody), DriverError> {
        let config = driver.config();
        let identity = driver.identity();
        let Some(ring_depth) = RingDepth::new(config.queue_depth.min(identity.queue_depth_max))
        else {
            unreachable!("both were checked: the one at bring-up, the other by `validate`");
        };
        let depth = ring_depth.entries();
        let has_block = identity.features.contains(Features::NOTIFY_BLOCK);
        let ring_bytes = Rings::ring_bytes(ring_depth);
        let block_at = 2 * ring_bytes;
        // The notify block has a page to itself: it is the one line that both sides poll.
        const {
            assert!(NOTIFY_BYTES <= PAGE_BYTES && (PAGE_BYTES as u64).is_multiple_of(NOTIFY_ALIGN));
        }
        let slots_at = block_at + PAGE_BYTES;
        let slot_bytes = config.slot_bytes;
        let bell = match config.notify {
            Notify::Block if has_block => Bell::Block { at: block_at },
            Notify::Block | Notify::Doorbell => Bell::Doorbell,
        };
        let region = driver
            .region(slots_at + depth as usize * slot_bytes)
            .map_err(DriverError::io("allocate a queue pair"))?;
        let notify = match bell {
            Bell::Block { at } => Some(region.iova(at).0),
            Bell::Doorbell => None,
        };
        let (vector, fast_turns, spin) = match config.completion {
            CompletionMode::Poll => (None, FAST_TURNS, Duration::MAX),
            CompletionMode::Interrupt => (driver.take_vector(), 1, Duration::ZERO),
            CompletionMode::Hybrid { spin } => (driver.take_vector(), FAST_TURNS, spin),
        };
        let mut body = driver::queue_create(
            id,
            depth,
            region.iova(0).0,
            region.iova(ring_bytes).0,
            notify,
            vector.as_ref().map(Vector::number),
        );
        if let Some(coalescing) = config.coalescing
            && vector.is_some()
            && identity.features.contains(Features::COALESCING)
        {
            body.coalesce_count = coalescing.count.into();
            body.coalesce_us = (coalescing.delay.as_micros() as u16).into();
        }
        let blank = CompletionWords::new(RequestId(0), offmap_abi::Status::Internal);
        let pair = Self {
            id,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            epoch,
            rings: Rings::new(0, ring_bytes, ring_depth),
            bell,
            fast_turns: if vector.is_some() {
                fast_turns
            } else {
                FAST_TURNS
            },
            vector,
            spin,
            committed: 0,
            released: 0,
            release_every: (depth / 4).max(1),
            slots: Slots::new(
                depth,
                slots_at,
                slot_bytes,
                Arc::clone(driver.generations()),
            ),
            larges: Larges::new(depth as usize),
            stash: vec![blank; depth as usize].into_boxed_slice(),
            taken: blank,
            done: VecDeque::with_capacity(depth as usize),
            broken: false,
            on_device: false,
            meter: Arc::new(Meter::new(config.timing)),
            timer: Timer::new(config.timing, depth as usize),
            region: Arc::new(region),
            driver,
        };
        Ok((pair, body))
    }

    /// Its id on the device.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Entries of each ring, and the most commands in flight.
    pub fn depth(&self) -> usize {
        self.stash.len()
    }

    /// Commands that are in flight, or finished and not yet taken.
    pub fn outstanding(&self) -> usize {
        self.depth() - self.slots.free_count()
    }

    /// What it has done so far, all commands together. [`crate::Driver::stats`] tells them apart,
    /// and can be called from any thread.
    pub fn counters(&self) -> Counters {
        let events = &self.meter.events;
        Counters {
            submitted: self.meter.total_submitted(),
            completed: self.meter.total_ended(),
            kicks: events.kicks.get(),
            doorbells: events.doorbells.get(),
            timeouts: events.timeouts.get(),
            rejected: events.rejected.get(),
            sleeps: events.sleeps.get(),
            interrupts: events.interrupts.get(),
        }
    }

    /// Counts, for [`crate::Driver::stats`], that an operation whose command is of kind `opcode` is
    /// about to be tried once more on this queue, because a failure cut it off. The driver itself
    /// tries nothing twice.
    pub fn count_retry(&mut self, opcode: IoOpcode) {
        self.meter.retried(opcode);
    }

    /// Commands stored in the submission ring since it was made, modulo 2^32: for telling
    /// whether there was one in between.
    #[inline]
    pub fn submissions(&self) -> u32 {
        self.rings.tail()
    }

    /// Whether those who wait on it sleep at an interrupt; otherwise they poll.
    pub fn has_interrupt(&self) -> bool {
        self.vector.is_some()
    }

    /// The interrupt that those who wait on it sleep at.
    pub fn interrupt(&self) -> Option<&Interrupt> {
        self.vector.as_ref().map(Vector::interrupt)
    }

    /// The driver that made it.
    pub fn driver(&self) -> &Arc<Driver<F>> {
        &self.driver
    }

    /// Whether every further call will fail: the queue is broken, or a reset has ended it.
    pub fn is_dead(&self) -> bool {
        self.usable().is_err()
    }

    /// Whether the queue is broken by a failure of its own: no reset has ended it since.
    pub fn has_failed(&self) -> bool {
        self.broken && self.epoch == self.driver.epoch()
    }

    #[inline]
    fn usable(&self) -> Result<(), DriverError> {
        if self.epoch != self.driver.epoch() {
            return Err(DriverError::DeviceReset);
        }
        if self.broken {
            return Err(DriverError::QueueBroken { queue: self.id });
        }
        Ok(())
    }

    #[inline]
    fn check_map(&self, map: &DeviceMap) -> Result<(), DriverError> {
        if map.epoch == self.epoch {
            Ok(())
        } else {
            Err(DriverError::DeviceReset)
        }
    }

    fn breaks(&mut self, error: DriverError) -> DriverError {
        if !self.broken {
            self.meter.events.failures.bump();
        }
        if matches!(error, DriverError::QueueStopped { .. }) {
            self.meter.events.stopped.bump();
        }
        self.broken = true;
        error
    }

    /// Called once the device has taken the queue up: from now on, dropping the pair deletes
    /// it.
    pub(crate) fn arm(&mut self) {
        self.on_device = true;
        self.driver.meters().begin(self.id, Arc::clone(&self.meter));
    }

    /// The memory that the device may know of.
    pub(crate) fn regions(&self) -> Vec<Arc<DmaRegion<F>>> {
        let mut regions = self.larges.regions();
        regions.push(Arc::clone(&self.region));
        regions
    }
}

impl<F: Function> Drop for QueuePair<F> {
    fn drop(&mut self) {
        if self.on_device {
            if self.epoch != self.driver.epoch() {
                self.meter.events.function_resets.bump();
            }
            self.driver.meters().end(self.id);
            let regions = self.regions();
            if self.driver.retire(self.id, self.epoch, regions) && self.broken {
                self.driver.meters().reset(self.id);
            }
        }
    }
}

impl<F: Function> fmt::Debug for QueuePair<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("id", &self.id)
            .field("depth", &self.depth())
            .field("outstanding", &self.outstanding())
            .field("bell", &self.bell)
            .field("broken", &self.broken)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
