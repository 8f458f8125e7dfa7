//! Taking completions, and waiting for them with a deadline (abi §5.2, §10 rules C1–C3, R2).

use super::slots::{NO_LARGE, State};
use super::{Bell, QueuePair, Token};
use crate::{CompletionFault, DriverError};
use offmap_abi::notify::{EventWord, NOTIFY_CQ_EVENT};
use offmap_abi::{RequestId, Status};
use offmap_device_io::Function;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Looks at the completion ring before a waiter looks at the clock for the first time. An
/// inline device and an awake one answer within these.
pub(crate) const FAST_TURNS: u32 = 64;
/// Looks before a waiter starts to give its processor away between them, so that a device
/// that runs on the same processor can.
pub(crate) const SPIN_TURNS: u32 = 1024;
/// Looks between two looks at the clock, once the processor is given away.
pub(crate) const YIELD_TURNS: u32 = 8;
/// First interval between two looks at the device's STATUS; it doubles up to the last.
pub(crate) const HEALTH_FIRST: Duration = Duration::from_millis(1);
pub(crate) const HEALTH_LAST: Duration = Duration::from_millis(128);

/// A command that the device has finished. Its slot is free again when this is dropped.
pub struct Finished<'q, F: Function> {
    queue: &'q mut QueuePair<F>,
    slot: u16,
}

impl<F: Function> Finished<'_, F> {
    /// Which command it was.
    #[inline]
    pub fn token(&self) -> Token {
        self.queue.token(self.queue.taken.request())
    }

    /// How it ended.
    #[inline]
    pub fn status(&self) -> Status {
        self.queue.taken.status()
    }

    /// Copies what it returned (a value, or for get-first and get-next a key) to `out`, if it
    /// ended with success.
    ///
    /// # Errors
    ///
    /// [`DriverError::Length`] when `out` does not have exactly its length.
    #[inline]
    pub fn value(&self, out: &mut [u8]) -> Result<Status, DriverError> {
        let room = self.queue.slots.of(self.slot).room as usize;
        super::submit::check_length("result buffer", room, out.len())?;
        self.queue.copy_result(self.slot, out);
        Ok(self.status())
    }
}

impl<F: Function> Drop for Finished<'_, F> {
    #[inline]
    fn drop(&mut self) {
        self.queue.release(self.slot);
    }
}

impl<F: Function> QueuePair<F> {
    /// Returns a finished command, if there is one. Lets an inline device work a little when
    /// there is none. Does not wait, and so knows no deadline.
    ///
    /// # Errors
    ///
    /// [`DriverError::BadCompletion`] when the device sent one that cannot be, and any error
    /// that ended the queue before.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Finished<'_, F>>, DriverError> {
        self.usable()?;
        self.commit()?;
        if let Some(slot) = self.done.pop_front() {
            self.taken = self.stash[usize::from(slot)];
            return Ok(Some(self.finished(slot)));
        }
        let mut taken = self.take()?;
        if taken.is_none() {
            self.driver.function().progress();
            taken = self.take()?;
        }
        match taken {
            Some(slot) => Ok(Some(self.finished(slot))),
            None => {
                self.give_room()?;
                Ok(None)
            }
        }
    }

    /// Who polls in vain must not be the one that holds back completion space: commands that are
    /// never answered take up places for good, so that those of a few completions may be all.
    fn give_room(&mut self) -> Result<(), DriverError> {
        let unpublished = self.rings.head().wrapping_sub(self.released) as usize;
        if unpublished > 0 && self.outstanding() + unpublished >= self.depth() {
            self.publish_head()?;
        }
        Ok(())
    }

    /// Calls `each` for every command that is finished now, and returns how many there were.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::poll`].
    #[inline]
    pub fn poll_each(
        &mut self,
        mut each: impl FnMut(&Finished<'_, F>),
    ) -> Result<usize, DriverError> {
        let mut count = 0;
        while let Some(finished) = self.poll()? {
            each(&finished);
            count += 1;
        }
        Ok(count)
    }

    /// Waits until a command is finished and returns it; `None` when none is outstanding.
    ///
    /// After [`crate::DriverConfig::op_timeout`] it asks the device to abort all that are in
    /// flight; those come back with [`Status::Aborted`], without an effect, or with
    /// [`Status::Interrupted`]. All aborts together, and the wait for their completions, get
    /// one [`crate::DriverConfig::admin_timeout`]. So a call ends after the sum of the two
    /// timeouts, and the time that a thread needs to notice.
    ///
    /// # Errors
    ///
    /// [`DriverError::TimedOut`] when one could not be aborted either; as
    /// [`QueuePair::poll`] otherwise.
    pub fn wait(&mut self) -> Result<Option<Finished<'_, F>>, DriverError> {
        self.usable()?;
        self.commit()?;
        if self.done.is_empty() {
            if self.outstanding() == 0 {
                return Ok(None);
            }
            if let Some(slot) = self.await_completion(None)? {
                return Ok(Some(self.finished(slot)));
            }
        }
        // At the deadline the completions went to the stash.
        match self.done.pop_front() {
            Some(slot) => {
                self.taken = self.stash[usize::from(slot)];
                Ok(Some(self.finished(slot)))
            }
            None => Ok(None),
        }
    }

    /// Waits for one command.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoSuchRequest`] for a token that was taken already or is another
    /// queue's; as [`QueuePair::wait`] otherwise.
    pub fn wait_for(&mut self, token: Token) -> Result<Finished<'_, F>, DriverError> {
        self.usable()?;
        self.commit()?;
        let slot = token.request.slot();
        match self.state_of(token) {
            State::InFlight => {
                self.await_slot(slot)?;
                Ok(self.finished(slot))
            }
            State::Done => {
                self.done.retain(|s| *s != slot);
                self.taken = self.stash[usize::from(slot)];
                Ok(self.finished(slot))
            }
            State::Free | State::Quarantined => Err(self.no_such(token)),
        }
    }

    /// Asks the device to end a command now. Returns whether it will, as [`Status::Aborted`] or
    /// [`Status::Interrupted`]; either way its completion is still to be taken.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoSuchRequest`] as [`QueuePair::wait_for`], otherwise those of
    /// [`crate::Driver::abort`]. After [`DriverError::QueueStopped`] the queue is broken.
    pub fn abort(&mut self, token: Token) -> Result<bool, DriverError> {
        self.usable()?;
        self.commit()?;
        match self.state_of(token) {
            State::InFlight => {}
            State::Done => return Ok(false),
            State::Free | State::Quarantined => return Err(self.no_such(token)),
        }
        self.meter.events.aborts.bump();
        match self.driver.abort(self.id, token.request) {
            Err(e @ DriverError::QueueStopped { .. }) => Err(self.lose(e)),
            other => other,
        }
    }

    fn state_of(&self, token: Token) -> State {
        match self.slots.get(token.request.slot()) {
            Some(entry)
                if token.queue == self.serial && entry.generation == token.request.generation() =>
            {
                entry.state
            }
            _ => State::Free,
        }
    }

    fn no_such(&self, token: Token) -> DriverError {
        DriverError::NoSuchRequest {
            queue: self.id,
            request: token.request,
        }
    }

    #[inline]
    fn finished(&mut self, slot: u16) -> Finished<'_, F> {
        self.slots.set(slot, State::Done);
        Finished { queue: self, slot }
    }

    #[inline]
    pub(super) fn release(&mut self, slot: u16) {
        let large = self.slots.release(slot);
        if large != NO_LARGE {
            self.larges.give_back(large);
        }
    }

    /// Copies to `out` what the command of `slot` returned, whose completion was taken last.
    #[inline(always)]
    pub(super) fn copy_result(&self, slot: u16, out: &mut [u8]) {
        if !self.taken.status().is_success() {
            return;
        }
        let entry = self.slots.of(slot);
        if entry.inline {
            // `take` saw to it that at least `room` bytes were returned, either way.
            self.taken.read_payload(out);
        } else {
            let region = self.place_region(entry.place);
            region.buffer().read(entry.place.at, out);
        }
    }

    /// Takes the next completion, checks whose it is, and returns the slot; the completion is in
    /// `taken` until another one is.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Result<Option<u16>, DriverError> {
        let there = self.rings.pop_into(self.region.buffer(), &mut self.taken);
        if !there {
            return Ok(None);
        }
        let (request, status) = (self.taken.request(), self.taken.status());
        let slot = request.slot();
        let fault = match self.slots.get(slot) {
            None => CompletionFault::UnknownSlot,
            Some(entry)
                if entry.state != State::InFlight || entry.generation != request.generation() =>
            {
                CompletionFault::Stale
            }
            Some(entry) if self.taken.count() < entry.room && status.is_success() => {
                CompletionFault::ShortResult
            }
            Some(entry) => {
                let kind = entry.kind;
                self.meter.ended(kind, status);
                if kind.is_timed()
                    && let Some(timer) = &self.timer
                {
                    timer.end(&self.meter, kind, slot, self.driver.function().now());
                }
                let unpublished = self.rings.head().wrapping_sub(self.released);
                if unpublished >= self.release_every {
                    self.publish_head()?;
                }
                return Ok(Some(slot));
            }
        };
        Err(self.reject(request, fault))
    }

    #[cold]
    pub(super) fn reject(&mut self, request: RequestId, fault: CompletionFault) -> DriverError {
        self.meter.events.rejected.bump();
        let queue = self.id;
        self.breaks(DriverError::BadCompletion {
            queue,
            request,
            fault,
        })
    }

    #[inline]
    fn stash(&mut self, slot: u16) {
        self.slots.set(slot, State::Done);
        self.stash[usize::from(slot)] = self.taken;
        self.done.push_back(slot);
    }

    /// Takes completions until that of `slot`, or any when `None`.
    #[inline(always)]
    fn look(&mut self, wanted: Option<u16>) -> Result<Option<u16>, DriverError> {
        while let Some(slot) = self.take()? {
            if wanted.is_none_or(|w| w == slot) {
                return Ok(Some(slot));
            }
            self.stash(slot);
        }
        Ok(None)
    }

    /// Waits for the completion of `slot`, which is in flight. It is in `taken` then.
    #[inline]
    pub(super) fn await_slot(&mut self, slot: u16) -> Result<(), DriverError> {
        for _ in 0..self.fast_turns {
            self.driver.function().progress();
            if self.look(Some(slot))?.is_some() {
                return Ok(());
            }
        }
        if self.await_completion(Some(slot))?.is_none() {
            // The deadline passed and the completion came then.
            self.done.retain(|s| *s != slot);
            self.taken = self.stash[usize::from(slot)];
        }
        Ok(())
    }

    /// Waits for the completion of `wanted`, or any. `None`: the deadline passed, and what
    /// was waited for has been stashed since.
    #[cold]
    fn await_completion(&mut self, wanted: Option<u16>) -> Result<Option<u16>, DriverError> {
        let timeout = self.driver.config().op_timeout;
        if let Some(found) = self.look_until(wanted, timeout)? {
            return Ok(Some(found));
        }
        self.end_overdue(wanted, timeout)?;
        Ok(None)
    }

    /// Looks for a completion for as long as `timeout`, and at least once after it. Ends
    /// early when the device is found dead.
    fn look_until(
        &mut self,
        wanted: Option<u16>,
        timeout: Duration,
    ) -> Result<Option<u16>, DriverError> {
        let started = self.driver.function().now();
        let mut health_at = HEALTH_FIRST;
        let mut turns = 0u32;
        loop {
            let waited = self.driver.function().now().saturating_sub(started);
            // Who sleeps in the end spins until then.
            let yields = turns >= SPIN_TURNS && self.vector.is_none();
            let burst = if yields { YIELD_TURNS } else { self.fast_turns };
            for _ in 0..burst {
                self.driver.function().progress();
                if let Some(found) = self.look(wanted)? {
                    return Ok(Some(found));
                }
                if yields {
                    self.driver.function().relax();
                }
            }
            turns = turns.saturating_add(burst);
            self.usable()?;
            // Who waits in vain must not be the one that holds back completion space.
            if self.released != self.rings.head() {
                self.publish_head()?;
            }
            if waited >= health_at {
                health_at = waited + health_at.min(HEALTH_LAST);
                if let Err(e) = self.driver.peek_health() {
                    return Err(self.breaks(e));
                }
            }
            if waited >= timeout {
                return Ok(None);
            }
            if waited >= self.spin && self.vector.is_some() {
                let until = health_at.min(timeout).saturating_sub(waited);
                if let Some(found) = self.sleep(wanted, until)? {
                    return Ok(Some(found));
                }
            }
        }
    }

    /// Sleeps until an interrupt, at most for `time` (rule N4). Returns a completion that came
    /// before it fell asleep.
    fn sleep(&mut self, wanted: Option<u16>, time: Duration) -> Result<Option<u16>, DriverError> {
        let mut found = Ok(None);
        if !self.may_sleep() {
            found = self.look(wanted);
        } else if let Some(vector) = &self.vector {
            self.meter.events.sleeps.bump();
            match self.driver.function().sleep(vector.interrupt(), time) {
                Ok(true) => self.meter.events.interrupts.bump(),
                Ok(false) => {}
                Err(source) => {
                    found = Err(self.breaks(DriverError::Io {
                        what: "wait for a completion interrupt",
                        source,
                    }));
                }
            }
        }
        if let Bell::Block { at } = self.bell {
            // Who is awake wants no interrupts.
            self.publish_event(at, EventWord::DISARMED);
        }
        found
    }

    /// Asks for an interrupt with the next completion, for one who sleeps at
    /// [`QueuePair::interrupt`] by its own means. `false`: there will be none, since there is a
    /// finished command already, none is in flight, or the pair has no interrupt.
    ///
    /// Who has slept takes the interrupt, polls until there is nothing, and asks again. A sleep
    /// should have an end, since interrupts get lost, and deadlines pass without one.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::poll`].
    pub fn request_interrupt(&mut self) -> Result<bool, DriverError> {
        self.usable()?;
        self.commit()?;
        if self.vector.is_none() || !self.done.is_empty() || self.outstanding() == 0 {
            return Ok(false);
        }
        if self.may_sleep() {
            return Ok(true);
        }
        if let Some(slot) = self.look(None)? {
            self.stash(slot);
        }
        Ok(false)
    }

    /// Asks for an interrupt with the next completion, and whether there is none to take yet. A
    /// queue with doorbells gets an interrupt for each burst, and one that came before this look
    /// ends the sleep at once.
    #[must_use = "who sleeps over a completion is not woken for it"]
    fn may_sleep(&self) -> bool {
        let buffer = self.region.buffer();
        match self.bell {
            Bell::Block { at } => self.rings.ask_for_interrupt(buffer, at),
            Bell::Doorbell => !self.rings.has_next(buffer),
        }
    }

    fn publish_event(&self, at: usize, event: EventWord) {
        let buffer = self.region.buffer();
        buffer.store_u64(at + NOTIFY_CQ_EVENT, event.to_word(), Ordering::Release);
    }

    /// Aborts what was waited for in vain, and waits once more. On success it is stashed; on
    /// failure it is quarantined and the queue broken.
    fn end_overdue(&mut self, wanted: Option<u16>, after: Duration) -> Result<(), DriverError> {
        self.meter.events.timeouts.bump();
        let mut overdue = self.slots.in_flight();
        overdue.retain(|request| wanted.is_none_or(|slot| slot == request.slot()));
        // One for all of them, the wait for the admin queue included.
        let now = || self.driver.function().now();
        let deadline = now() + self.driver.config().admin_timeout;
        let mut stopped = false;
        for request in &overdue {
            self.meter.events.aborts.bump();
            match self.driver.abort_until(self.id, *request, deadline) {
                Ok(_) => {}
                Err(DriverError::QueueStopped { .. }) => {
                    stopped = true;
                    break;
                }
                // The completions may come all the same; they get their time below.
                Err(_) => break,
            }
        }
        for request in &overdue {
            while self.slots.of(request.slot()).state == State::InFlight {
                // A stopped queue gets the one look at what came before it stopped.
                let left = if stopped {
                    Duration::ZERO
                } else {
                    deadline.saturating_sub(self.driver.function().now())
                };
                match self.look_until(None, left)? {
                    Some(slot) => self.stash(slot),
                    None => {
                        let queue = self.id;
                        return Err(self.lose(if stopped {
                            DriverError::QueueStopped { queue }
                        } else {
                            DriverError::TimedOut {
                                queue,
                                after,
                                quarantined: true,
                            }
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets what is in flight aside and breaks the queue.
    fn lose(&mut self, error: DriverError) -> DriverError {
        for lost in self.slots.in_flight() {
            self.slots.set(lost.slot(), State::Quarantined);
        }
        self.breaks(error)
    }
}
