//! What is behind the handles of an asynchronous queue: its queue pair, and an entry for each
//! operation from its submission until its outcome is taken.
//!
//! Completions are copied out of the queue pair as soon as anybody looks, into the entry that was
//! in flight in their slot. An entry is known by its place and a serial number, so that no ticket
//! takes another's outcome. There are as many entries as the queue is deep, whatever they are at.

use super::{AsyncLoad, Failure, Outcome, SubmitError};
use crate::errno::{self, During};
use crate::map::NicMap;
use crate::nic::Shared;
use crate::recovery::is_settled;
use offmap_bpf::error::Result;
use offmap_bpf::{Errno, Error, Writing};
use offmap_driver::{DriverError, Function, Interrupt, Op, QueuePair, Status, Token};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// Looks at the completion ring between two at the clock, where each finds something.
const CLOCK_STEPS: u32 = 16;

const CANCELLED: Error = Error::new(
    Errno::ECANCELED,
    "the operation was cancelled before the device had begun it",
);
const OVERDUE: Error = Error::new(
    Errno::ETIMEDOUT,
    "the device did not run the operation in time and gave it up without an effect",
);
const NO_QUEUE: Error = Error::new(
    Errno::EIO,
    "the queue pair failed and another one could not be made",
);

/// Which operation a ticket stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id {
    place: usize,
    serial: u64,
}

/// Where an operation is.
enum Stage {
    /// With the device, since this moment.
    InFlight(Token, Duration),
    /// Ended, and not taken.
    Ended(Outcome),
}

pub(super) struct Entry<F: Function> {
    serial: u64,
    stage: Stage,
    map: Arc<NicMap<F>>,
    during: During,
    is_write: bool,
    /// Bytes that it returns.
    room: usize,
    /// The device was asked to end it, and this is when it must have.
    abort_by: Option<Duration>,
    /// The user asked for that.
    cancelled: bool,
    /// Nobody will take the outcome.
    detached: bool,
    waker: Option<Waker>,
    writing: Option<Writing>,
}

pub(super) struct State<F: Function> {
    queue: Option<QueuePair<F>>,
    /// That of `queue`, for those who sleep at it without the lock.
    interrupt: Option<Arc<Interrupt>>,
    /// Epoch of the driver in which `queue` was made.
    epoch: u64,
    entries: Box<[Option<Entry<F>>]>,
    free: Vec<usize>,
    /// Which entry is in flight in a slot of the queue pair.
    by_slot: Box<[usize]>,
    in_flight: usize,
    /// Of those, the ones whose outcome nobody will take.
    orphans: usize,
    steps: u32,
    serial: u64,
    /// No operation is overdue before this.
    look_at: Duration,
    /// Futures that wait for room, in the order in which they came.
    line: BTreeMap<u64, Waker>,
    #[cfg(feature = "async")]
    next_turn: u64,
    woken: Vec<Waker>,
    dropped: Vec<Waker>,
}

fn bytes_returned<F: Function>(op: &Op<'_>, map: &NicMap<F>) -> usize {
    match op {
        Op::Lookup { .. } | Op::LookupAndDelete { .. } => map.device().value_stride(),
        Op::GetFirst { .. } | Op::GetNext { .. } => map.device().key_size(),
        Op::Nop | Op::Update { .. } | Op::Delete { .. } => 0,
    }
}

/// A second handle on the queue's interrupt. Without one its users poll.
fn shared_interrupt<F: Function>(queue: &QueuePair<F>) -> Option<Arc<Interrupt>> {
    queue.interrupt()?.try_clone().ok().map(Arc::new)
}

impl<F: Function> Entry<F> {
    /// What a completion with this status means for its operation.
    fn outcome(&self, status: Status, value: Vec<u8>) -> Outcome {
        if status.is_success() {
            return Ok(value);
        }
        if status == Status::Aborted {
            let why = if self.cancelled { CANCELLED } else { OVERDUE };
            return Err(Failure::NotBegun(why));
        }
        let error = self.map.failed(status, self.during);
        // A stale handle had no effect, either: the device did not know the map.
        let settled = is_settled(status) || status == Status::InvalidMap;
        Err(match self.is_write && !settled {
            true => Failure::Unknown(error),
            false => Failure::Failed(error),
        })
    }

    /// What a failure of the queue means for an operation in flight.
    fn lost(&self, error: &DriverError) -> Outcome {
        let error = errno::of_driver(error);
        Err(match self.is_write {
            true => Failure::Unknown(error),
            false => Failure::Failed(error),
        })
    }
}

impl<F: Function> State<F> {
    pub(super) fn new(shared: &Arc<Shared<F>>) -> Result<Self> {
        let epoch = shared.driver.epoch();
        let queue = shared.driver.create_queue();
        let queue = queue.map_err(|error| errno::of_driver(&error))?;
        let depth = queue.depth();
        Ok(Self {
            interrupt: shared_interrupt(&queue),
            queue: Some(queue),
            epoch,
            entries: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            by_slot: vec![0; depth].into_boxed_slice(),
            in_flight: 0,
            orphans: 0,
            steps: 0,
            serial: 0,
            look_at: Duration::MAX,
            line: BTreeMap::new(),
            #[cfg(feature = "async")]
            next_turn: 0,
            woken: Vec::new(),
            dropped: Vec::new(),
        })
    }

    pub(super) fn depth(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn load(&self) -> AsyncLoad {
        AsyncLoad {
            in_flight: self.in_flight,
            untaken: self.depth() - self.free.len() - self.in_flight,
            waiting: self.line.len(),
        }
    }

    /// Wakers to be woken, and such that are no longer needed.
    pub(super) fn take_wakers(&mut self) -> (Vec<Waker>, Vec<Waker>) {
        (
            std::mem::take(&mut self.woken),
            std::mem::take(&mut self.dropped),
        )
    }

    fn entry(&mut self, id: Id) -> Option<&mut Entry<F>> {
        let entry = self.entries[id.place].as_mut();
        entry.filter(|entry| entry.serial == id.serial)
    }

    fn wake_first(&mut self) {
        if let Some((_, waker)) = self.line.pop_first() {
            self.woken.push(waker);
        }
    }

    /// Takes an entry out, and lets the next future have its place.
    fn release(&mut self, place: usize) -> Option<Entry<F>> {
        let mut entry = self.entries[place].take()?;
        self.dropped.extend(entry.waker.take());
        self.free.push(place);
        self.wake_first();
        Some(entry)
    }

    /// The operation in `place` has ended.
    fn end(&mut self, place: usize, outcome: Outcome) {
        let Some(entry) = &mut self.entries[place] else {
            unreachable!("an entry in flight stays in its place");
        };
        self.in_flight -= 1;
        entry.stage = Stage::Ended(outcome);
        // The map may be frozen now, taken or not.
        entry.writing = None;
        if entry.detached {
            self.orphans -= 1;
            self.release(place);
        } else if let Some(waker) = entry.waker.take() {
            self.woken.push(waker);
        }
    }

    /// Takes completions and ends what is overdue; how many operations ended.
    pub(super) fn step(&mut self, shared: &Arc<Shared<F>>) -> usize {
        let before = self.in_flight;
        while self.in_flight > 0 {
            match self.take_one() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.lose(shared, &error);
                    break;
                }
            }
        }
        self.steps = self.steps.wrapping_add(1);
        let idle = self.in_flight == before;
        if self.in_flight > 0 && (idle || self.steps.is_multiple_of(CLOCK_STEPS)) {
            self.end_overdue(shared);
        }
        before - self.in_flight
    }

    /// Takes one completion, if there is one.
    fn take_one(&mut self) -> Result<bool, DriverError> {
        let Some(queue) = &mut self.queue else {
            unreachable!("what is in flight is on a queue pair");
        };
        let Some(finished) = queue.poll()? else {
            return Ok(false);
        };
        let slot = finished.token().request().slot();
        let place = self.by_slot[usize::from(slot)];
        let Some(entry) = &self.entries[place] else {
            unreachable!("an entry in flight stays in its place");
        };
        let status = finished.status();
        let mut value = Vec::new();
        if status.is_success() {
            value.resize(entry.room, 0);
            finished.value(&mut value)?;
        }
        let outcome = entry.outcome(status, value);
        drop(finished);
        self.end(place, outcome);
        Ok(true)
    }

    pub(super) fn interrupt(&self) -> Option<Arc<Interrupt>> {
        self.interrupt.clone()
    }

    /// Whether an interrupt will come with the next completion.
    pub(super) fn request_interrupt(&mut self, shared: &Arc<Shared<F>>) -> bool {
        let Some(queue) = &mut self.queue else {
            return false;
        };
        match queue.request_interrupt() {
            Ok(will) => will && self.interrupt.is_some(),
            Err(error) => {
                self.lose(shared, &error);
                false
            }
        }
    }

    /// Has the device end what is overdue. What it was asked to end and did not, costs the queue
    /// pair.
    fn end_overdue(&mut self, shared: &Arc<Shared<F>>) {
        let now = shared.driver.function().now();
        if now < self.look_at {
            return;
        }
        let config = shared.driver.config();
        let mut next = Duration::MAX;
        for place in 0..self.entries.len() {
            let (Some(entry), Some(queue)) = (&mut self.entries[place], &mut self.queue) else {
                continue;
            };
            let Stage::InFlight(token, since) = entry.stage else {
                continue;
            };
            let due = entry.abort_by.unwrap_or(since + config.op_timeout);
            if now < due {
                next = next.min(due);
                continue;
            }
            let error = match entry.abort_by {
                None => match queue.abort(token) {
                    Ok(_) => {
                        let by = shared.driver.function().now() + config.admin_timeout;
                        entry.abort_by = Some(by);
                        next = next.min(by);
                        continue;
                    }
                    Err(error) => error,
                },
                Some(_) => DriverError::TimedOut {
                    queue: queue.id(),
                    after: config.op_timeout,
                    quarantined: true,
                },
            };
            self.lose(shared, &error);
            return;
        }
        self.look_at = next;
    }

    /// The queue pair is of no more use: what is in flight on it ends, and it is deleted.
    fn lose(&mut self, shared: &Arc<Shared<F>>, error: &DriverError) {
        for place in 0..self.entries.len() {
            if let Some(entry) = &self.entries[place]
                && matches!(entry.stage, Stage::InFlight(..))
            {
                let outcome = entry.lost(error);
                self.end(place, outcome);
            }
        }
        self.look_at = Duration::MAX;
        self.interrupt = None;
        if let Some(queue) = self.queue.take() {
            if self.epoch == shared.driver.epoch() {
                shared.pool.streak().count(queue.counters().completed);
            }
            shared.escalation.note(shared, error, self.epoch);
            // The device confirms that no command has an effect any more, or the memory
            // is set aside.
            drop(queue);
        }
    }

    /// A queue pair that works, as far as that shows.
    fn ready(&mut self, shared: &Arc<Shared<F>>) -> Result<&mut QueuePair<F>> {
        if let Some(queue) = &self.queue
            && queue.is_dead()
        {
            let error = match self.epoch == shared.driver.epoch() {
                true => DriverError::QueueBroken { queue: queue.id() },
                false => DriverError::DeviceReset,
            };
            self.lose(shared, &error);
        }
        if self.queue.is_none() {
            let gone = DriverError::DeviceGone { register: "STATUS" };
            if shared.pool.is_gone() {
                return Err(errno::of_driver(&gone));
            }
            if shared.escalation.wants_reset(shared) {
                let epoch = shared.driver.epoch();
                shared.escalation.after(shared, &DriverError::Down, epoch);
            }
            self.epoch = shared.driver.epoch();
            let made = shared.driver.create_queue();
            let queue = made.map_err(|error| {
                shared.escalation.after(shared, &error, self.epoch);
                errno::of_driver(&error)
            })?;
            if queue.depth() != self.depth() {
                return Err(NO_QUEUE);
            }
            self.interrupt = shared_interrupt(&queue);
            self.queue = Some(queue);
        }
        self.queue.as_mut().ok_or(NO_QUEUE)
    }

    /// Sends a command.
    pub(super) fn submit(
        &mut self,
        shared: &Arc<Shared<F>>,
        map: &Arc<NicMap<F>>,
        op: &Op<'_>,
        during: During,
        is_write: bool,
    ) -> Result<Id, SubmitError> {
        if self.free.is_empty() {
            self.step(shared);
        }
        let Some(&place) = self.free.last() else {
            return Err(SubmitError::Full);
        };
        let queue = self.ready(shared)?;
        let token = match queue.submit(op) {
            Ok(token) => token,
            Err(offmap_driver::SubmitError::Full) => return Err(SubmitError::Full),
            Err(offmap_driver::SubmitError::Driver(error)) => {
                let dead = queue.is_dead();
                if dead {
                    self.lose(shared, &error);
                }
                return Err(errno::of_driver(&error).into());
            }
        };
        let since = shared.driver.function().now();
        self.look_at = self.look_at.min(since + shared.driver.config().op_timeout);
        self.by_slot[usize::from(token.request().slot())] = place;
        self.free.pop();
        self.in_flight += 1;
        self.serial += 1;
        self.entries[place] = Some(Entry {
            serial: self.serial,
            stage: Stage::InFlight(token, since),
            map: Arc::clone(map),
            during,
            is_write,
            room: bytes_returned(op, map),
            abort_by: None,
            cancelled: false,
            detached: false,
            waker: None,
            writing: None,
        });
        Ok(Id {
            place,
            serial: self.serial,
        })
    }

    /// Keeps `writing` for as long as the operation goes on.
    pub(super) fn keep(&mut self, id: Id, writing: Writing) {
        if let Some(entry) = self.entry(id)
            && matches!(entry.stage, Stage::InFlight(..))
        {
            entry.writing = Some(writing);
        }
    }

    /// The outcome, if there is one; otherwise `waker` is woken when there is.
    pub(super) fn take(
        &mut self,
        shared: &Arc<Shared<F>>,
        id: Id,
        waker: Option<&Waker>,
    ) -> Option<Outcome> {
        let in_flight = |entry: &mut Entry<F>| matches!(entry.stage, Stage::InFlight(..));
        if self.entry(id).is_some_and(in_flight) {
            self.step(shared);
        }
        let Some(entry) = self.entry(id) else {
            return Some(Err(Failure::Taken));
        };
        if in_flight(entry) {
            if let Some(waker) = waker {
                let same = entry.waker.as_ref().is_some_and(|old| old.will_wake(waker));
                if !same {
                    let old = entry.waker.replace(waker.clone());
                    self.dropped.extend(old);
                }
            }
            return None;
        }
        match self.release(id.place)?.stage {
            Stage::Ended(outcome) => Some(outcome),
            Stage::InFlight(..) => unreachable!("it has just been seen to have ended"),
        }
    }

    pub(super) fn cancel(&mut self, shared: &Arc<Shared<F>>, id: Id) -> Result<bool> {
        self.step(shared);
        let Some(entry) = self.entry(id) else {
            return Ok(false);
        };
        let Stage::InFlight(token, _) = entry.stage else {
            return Ok(false);
        };
        let place = id.place;
        let (Some(queue), Some(entry)) = (&mut self.queue, &mut self.entries[place]) else {
            return Ok(false);
        };
        match queue.abort(token) {
            Ok(will) => {
                entry.cancelled = will;
                if will {
                    let by = shared.driver.function().now() + shared.driver.config().admin_timeout;
                    entry.abort_by = Some(by);
                    self.look_at = self.look_at.min(by);
                }
                Ok(will)
            }
            Err(error) => {
                if queue.is_dead() {
                    self.lose(shared, &error);
                }
                Err(errno::of_driver(&error))
            }
        }
    }

    /// Nobody will ask for the outcome. What has ended already comes back, to be dropped
    /// outside.
    pub(super) fn detach(&mut self, id: Id) -> Option<Entry<F>> {
        let entry = self.entry(id)?;
        if matches!(entry.stage, Stage::Ended(_)) {
            return self.release(id.place);
        }
        entry.detached = true;
        let waker = entry.waker.take();
        self.dropped.extend(waker);
        self.orphans += 1;
        // Whoever waits for the place sees to it that the operation ends.
        self.wake_first();
        None
    }

    /// A future stands in line: with its `turn` from before, or at the end.
    #[cfg(feature = "async")]
    pub(super) fn line_up(&mut self, turn: Option<u64>, waker: &Waker) -> u64 {
        let turn = turn.unwrap_or_else(|| {
            self.next_turn += 1;
            self.next_turn
        });
        let old = self.line.insert(turn, waker.clone());
        self.dropped.extend(old);
        // A place may have become free since it looked.
        self.wake_next();
        turn
    }

    /// Whether futures wait for room.
    #[cfg(feature = "async")]
    pub(super) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether there are operations in flight that no future and no ticket looks after.
    #[cfg(feature = "async")]
    pub(super) const fn has_orphans(&self) -> bool {
        self.orphans > 0
    }

    /// A future leaves the line. Had it been woken, for a place or to look after an operation that
    /// nobody else does, then the next one is in its stead.
    #[cfg(feature = "async")]
    pub(super) fn leave(&mut self, turn: u64) {
        let stood = self.line.remove(&turn);
        let woken = stood.is_none();
        self.dropped.extend(stood);
        if woken || self.orphans > 0 {
            self.wake_first();
        }
    }

    /// Wakes the first in line, if there is room for it.
    #[cfg(feature = "async")]
    pub(super) fn wake_next(&mut self) {
        if !self.free.is_empty() {
            self.wake_first();
        }
    }
}
