//! Which failure asks for what, and who does it.
//!
//! The driver ends overdue commands by itself, and the pool replaces queue pairs that are
//! dead. Here is the third step, the reset of the function, and what follows it: maps that
//! have a journal are made and filled again. One thread does that, whichever comes first; the
//! others wait for as long as their own time allows, and go on with it where the first one ran
//! out of time.

use super::map::{Rebuild, RecoverableMap};
use super::{Recovery, RecoveryStats};
use crate::errno;
use crate::nic::Shared;
use offmap_bpf::error::Result;
use offmap_bpf::{Errno, Error};
use offmap_driver::{DriverError, Function, IoError};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

pub(super) const GONE: Error = Error::new(
    Errno::ENODEV,
    "the device is gone: it answers neither in its registers nor in configuration space",
);
const BUSY: Error = Error::new(
    Errno::ETIMEDOUT,
    "the device was still being recovered when the time of this operation was over",
);
const NO_RESET: Error = Error::new(
    Errno::ENODEV,
    "the device needs a reset of its function, and the NIC's settings leave that to others",
);
const STILL_FAILING: Error = Error::new(
    Errno::EIO,
    "the device failed again and again while its maps were being restored",
);

/// How often one recovery starts again because the device failed once more.
const ROUNDS: u32 = 4;

/// What an error asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Nothing, or nothing more than the driver has done.
    Nothing,
    /// The queue is dead, and the pool replaces it.
    Queue,
    /// Only a reset of the function helps.
    Function,
    /// Nothing helps, unless its configuration space says that the device is still there.
    Gone,
}

fn verdict(error: &DriverError) -> Verdict {
    match error {
        DriverError::DeviceGone { .. }
        | DriverError::Io {
            source: IoError::Gone(_),
            ..
        }
        | DriverError::Register {
            source: IoError::Gone(_),
            ..
        } => Verdict::Gone,
        // The device stopped itself; it was reset by others than its driver; its admin queue is
        // stalled or said what cannot be.
        DriverError::Fatal { .. }
        | DriverError::DeviceReset
        | DriverError::Down
        | DriverError::AdminTimeout { .. }
        | DriverError::IdentityChanged => Verdict::Function,
        DriverError::BadCompletion { queue, .. } if queue.is_admin() => Verdict::Function,
        DriverError::TimedOut {
            quarantined: true, ..
        }
        | DriverError::BadCompletion { .. }
        | DriverError::QueueStopped { .. }
        | DriverError::QueueBroken { .. }
        | DriverError::Register { .. } => Verdict::Queue,
        _ => Verdict::Nothing,
    }
}

/// Whether the function answers in configuration space, which it does with its memory space off;
/// a device that was taken out does not.
fn answers<F: Function>(function: &F) -> bool {
    let mut vendor = [0xff; 2];
    function.config_read(0, &mut vendor).is_ok() && vendor != [0xff; 2]
}

/// Failures of queue pairs, one after the other.
#[derive(Default)]
pub(crate) struct Streak {
    failures: AtomicU32,
    total: AtomicU64,
}

impl Streak {
    /// A queue pair failed that had completed so many commands.
    pub(crate) fn count(&self, completed: u64) {
        self.total.fetch_add(1, Ordering::Relaxed);
        if completed >= Recovery::PROGRESS {
            self.failures.store(1, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Counts {
    function_resets: u64,
    failed_resets: u64,
    maps_restored: u64,
    elements_restored: u64,
    recoveries: u64,
    last: Duration,
    worst: Duration,
}

/// The recovery of one NIC.
pub(crate) struct Escalation<F: Function> {
    settings: Recovery,
    /// Held by the thread that recovers.
    role: Mutex<()>,
    /// The epoch of the driver in which a reset of the function is wanted, plus one.
    wanted: AtomicU64,
    maps: Mutex<Vec<Weak<RecoverableMap<F>>>>,
    counts: Mutex<Counts>,
    retries: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) resolved: AtomicU64,
    pub(super) reported: AtomicU64,
    journal_used: Arc<Mutex<u64>>,
}

/// A map's share of the memory for journals; given back when dropped.
pub(crate) struct JournalShare {
    used: Arc<Mutex<u64>>,
    bytes: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for JournalShare {
    fn drop(&mut self) {
        *locked(&self.used) -= self.bytes;
    }
}

impl<F: Function> Escalation<F> {
    pub(crate) fn new(settings: Recovery) -> Self {
        Self {
            settings,
            role: Mutex::new(()),
            wanted: AtomicU64::new(0),
            maps: Mutex::default(),
            counts: Mutex::default(),
            retries: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            resolved: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            journal_used: Arc::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Recovery {
        &self.settings
    }

    /// An operation is about to be tried once more.
    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, streak: &Streak) -> RecoveryStats {
        let counts = locked(&self.counts);
        RecoveryStats {
            queue_failures: streak.total.load(Ordering::Relaxed),
            function_resets: counts.function_resets,
            failed_resets: counts.failed_resets,
            maps_restored: counts.maps_restored,
            elements_restored: counts.elements_restored,
            retries: self.retries.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
            resolved: self.resolved.load(Ordering::Relaxed),
            reported: self.reported.load(Ordering::Relaxed),
            recoveries: counts.recoveries,
            last: counts.last,
            worst: counts.worst,
            journal_bytes: *locked(&self.journal_used),
        }
    }

    /// Sets memory aside for a journal.
    pub(super) fn share(&self, bytes: u64) -> Result<JournalShare> {
        let mut used = locked(&self.journal_used);
        let allowed = self.settings.journal_bytes;
        if bytes > allowed.saturating_sub(*used) {
            return Err(Error::because(
                Errno::ENOMEM,
                format!(
                    "the journal of a recoverable map of this size may take {bytes} bytes; \
                     {allowed} are allowed for all and {used} are taken: raise journal_bytes, \
                     make the map smaller, or do without recovery for it"
                ),
            ));
        }
        *used += bytes;
        Ok(JournalShare {
            used: Arc::clone(&self.journal_used),
            bytes,
        })
    }

    pub(super) fn watch(&self, map: Weak<RecoverableMap<F>>) {
        let mut maps = locked(&self.maps);
        if maps.len() == maps.capacity() {
            maps.retain(|map| map.strong_count() != 0);
        }
        maps.push(map);
    }

    /// Takes note of a failure of something that was made in `epoch`.
    pub(crate) fn note(&self, shared: &Shared<F>, error: &DriverError, epoch: u64) {
        let now = shared.driver.epoch();
        match verdict(error) {
            Verdict::Gone if !answers(&**shared.driver.function()) => shared.pool.set_gone(),
            // Its memory space is off, as it is after a function-level reset.
            Verdict::Gone if epoch == now => self.want_reset(epoch),
            // Of an earlier epoch: the reset that it asks for has been.
            Verdict::Function if epoch == now => self.want_reset(epoch),
            Verdict::Queue if epoch == now => {
                shared.pool.count_failures();
                let failures = shared.pool.streak().failures.load(Ordering::Relaxed);
                if failures >= self.settings.queue_failures {
                    self.want_reset(epoch);
                }
            }
            Verdict::Gone | Verdict::Function | Verdict::Queue | Verdict::Nothing => {}
        }
    }

    fn want_reset(&self, epoch: u64) {
        self.wanted.fetch_max(epoch + 1, Ordering::AcqRel);
    }

    /// Whether a reset of the function is wanted that has not been yet.
    pub(crate) fn wants_reset(&self, shared: &Shared<F>) -> bool {
        self.wanted.load(Ordering::Acquire) == shared.driver.epoch() + 1
    }

    fn live_maps(&self) -> Vec<Arc<RecoverableMap<F>>> {
        locked(&self.maps)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// For an operation that failed with `error` and can do without the recovery's result: the
    /// recovery is done now if one is wanted and nobody else is at it. Whether everything is
    /// well again.
    pub(crate) fn after(&self, shared: &Shared<F>, error: &DriverError, epoch: u64) -> bool {
        self.note(shared, error, epoch);
        if !self.wants_reset(shared) {
            // A reset that others did in the meantime.
            return epoch != shared.driver.epoch() && !shared.pool.is_gone();
        }
        let Ok(_role) = self.role.try_lock() else {
            return false;
        };
        let deadline = shared.driver.function().now() + self.settings.patience;
        self.run(shared, deadline).is_ok()
    }

    /// Returns when the function works and every recoverable map is restored, by this
    /// thread or another.
    pub(super) fn recover(&self, shared: &Shared<F>, deadline: Duration) -> Result<()> {
        loop {
            if shared.pool.is_gone() {
                return Err(GONE);
            }
            let stale = self.live_maps().iter().any(|map| map.is_stale());
            if !stale && !self.wants_reset(shared) {
                return Ok(());
            }
            match self.role.try_lock() {
                Ok(_role) => return self.run(shared, deadline),
                Err(TryLockError::Poisoned(_role)) => return self.run(shared, deadline),
                Err(TryLockError::WouldBlock) => {}
            }
            let function = shared.driver.function();
            if function.now() >= deadline {
                return Err(BUSY);
            }
            // One who waits on an inline device lets that one get on, too.
            function.progress();
            function.relax();
        }
    }

    /// The recovery itself, with the role held.
    fn run(&self, shared: &Shared<F>, deadline: Duration) -> Result<()> {
        let now = || shared.driver.function().now();
        let started = now();
        let mut did = false;
        for _ in 0..ROUNDS {
            if shared.pool.is_gone() {
                return Err(GONE);
            }
            if self.wants_reset(shared) {
                self.reset(shared)?;
                did = true;
            }
            let mut again = false;
            for map in self.live_maps() {
                match map.rebuild(deadline) {
                    Ok(None) => {}
                    Ok(Some(elements)) => {
                        did = true;
                        let mut counts = locked(&self.counts);
                        counts.maps_restored += 1;
                        counts.elements_restored += elements;
                    }
                    Err(Rebuild::OutOfTime) => return Err(BUSY),
                    Err(Rebuild::Driver(error, epoch)) => {
                        self.note(shared, &error, epoch);
                        if verdict(&error) == Verdict::Nothing {
                            return Err(errno::of_driver(&error));
                        }
                        again = true;
                        break;
                    }
                }
            }
            if !again {
                if !did {
                    // Another thread had it done when this one came to it.
                    return Ok(());
                }
                let took = now().saturating_sub(started);
                let mut counts = locked(&self.counts);
                counts.recoveries += 1;
                counts.last = took;
                counts.worst = counts.worst.max(took);
                return Ok(());
            }
            if now() >= deadline {
                return Err(BUSY);
            }
        }
        Err(STILL_FAILING)
    }

    fn reset(&self, shared: &Shared<F>) -> Result<()> {
        if !self.settings.reset_function {
            return Err(NO_RESET);
        }
        let done = shared.driver.reset();
        // Those that failed before say nothing of the function as it is now.
        shared.pool.streak().failures.store(0, Ordering::Relaxed);
        match done {
            Ok(()) => {
                locked(&self.counts).function_resets += 1;
                Ok(())
            }
            Err(error) => {
                locked(&self.counts).failed_resets += 1;
                let epoch = shared.driver.epoch();
                self.note(shared, &error, epoch);
                // The driver is down, whatever it was.
                self.want_reset(epoch);
                Err(errno::of_driver(&error).with_errno(Errno::ENODEV))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offmap_driver::{CompletionFault, QueueId, RequestId};

    #[test]
    fn each_error_asks_for_its_step() {
        let (queue, request) = (QueueId(1), RequestId(7));
        let after = Duration::from_secs(1);
        let timed_out = |quarantined| DriverError::TimedOut {
            queue,
            after,
            quarantined,
        };
        let bad = |queue| DriverError::BadCompletion {
            queue,
            request,
            fault: CompletionFault::Stale,
        };
        let register = "STATUS";
        for (error, expected) in [
            (timed_out(false), Verdict::Nothing),
            (timed_out(true), Verdict::Queue),
            (DriverError::QueueStopped { queue }, Verdict::Queue),
            (bad(queue), Verdict::Queue),
            (bad(QueueId::ADMIN), Verdict::Function),
            (DriverError::DeviceReset, Verdict::Function),
            (DriverError::Down, Verdict::Function),
            (DriverError::DeviceGone { register }, Verdict::Gone),
            (DriverError::NoQueuePair { have: 1 }, Verdict::Nothing),
            (DriverError::AdminBusy { after }, Verdict::Nothing),
        ] {
            assert_eq!(verdict(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_queue_that_did_work_begins_a_new_streak() {
        let streak = Streak::default();
        let failures = || streak.failures.load(Ordering::Relaxed);
        for expected in 1..=3 {
            streak.count(Recovery::PROGRESS - 1);
            assert_eq!(failures(), expected);
        }
        streak.count(Recovery::PROGRESS);
        assert_eq!(failures(), 1);
        assert_eq!(streak.total.load(Ordering::Relaxed), 4);
    }
}
