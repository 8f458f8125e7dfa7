//! The queue pairs of one NIC, shared by all threads.

use crate::recovery::Streak;
use offmap_driver::{Driver, DriverError, Function, QueuePair};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// One queue pair, made when a thread first comes to it. On cache lines of its own, so
/// that threads on different lanes do not disturb each other.
#[repr(align(128))]
struct Lane<F: Function>(Mutex<Lent<F>>);

struct Lent<F: Function> {
    queue: Option<QueuePair<F>>,
    /// The failure of this pair was counted.
    counted: bool,
}

impl<F: Function> Lent<F> {
    const fn new(queue: Option<QueuePair<F>>) -> Self {
        Self {
            queue,
            counted: false,
        }
    }
}

/// Queue pairs, as many as there are processors or as the device has.
///
/// A thread has a lane of its own as long as there are no more threads than lanes, and then
/// takes an uncontended lock; otherwise any that is free, and waits for its own when none is.
pub(crate) struct Pool<F: Function> {
    driver: Arc<Driver<F>>,
    lanes: Box<[Lane<F>]>,
    streak: Streak,
    /// The device was found unplugged: there are no further queue pairs.
    gone: AtomicBool,
}

static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Number of this thread among those that used a pool.
    static THREAD: Cell<usize> = Cell::new(NEXT_THREAD.fetch_add(1, Ordering::Relaxed));
}

impl<F: Function> Pool<F> {
    /// A pool whose first queue pair exists, of `most` at most; `None`: one for each processor.
    pub(crate) fn new(driver: Arc<Driver<F>>, most: Option<u16>) -> Result<Self, DriverError> {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        let most = most.map_or_else(processors, usize::from);
        let count = most.min(usize::from(driver.identity().queue_pairs));
        let first = driver.create_queue()?;
        let mut lanes: Vec<_> = (0..count.max(1))
            .map(|_| Lane(Mutex::new(Lent::new(None))))
            .collect();
        lanes[0] = Lane(Mutex::new(Lent::new(Some(first))));
        Ok(Self {
            driver,
            lanes: lanes.into_boxed_slice(),
            streak: Streak::default(),
            gone: AtomicBool::new(false),
        })
    }

    /// An operation failed in a way that ends its queue pair: counts the pairs that have failed and
    /// are not counted yet. That is done here, and not where the operation runs, so that what runs
    /// there need not keep anything for the case of a failure. A pair that another thread is
    /// replacing at this moment goes uncounted.
    #[cold]
    pub(crate) fn count_failures(&self) {
        for lane in &self.lanes {
            let Some(mut lane) = Self::try_lock(lane) else {
                continue;
            };
            if let Some(queue) = &lane.queue
                && queue.has_failed()
                && !lane.counted
            {
                self.streak.count(queue.counters().completed);
                lane.counted = true;
            }
        }
    }

    /// The failures of its queue pairs.
    pub(crate) fn streak(&self) -> &Streak {
        &self.streak
    }

    /// Whether the device was found unplugged.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The device is unplugged, which is final.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Runs `operation` on a queue pair. A pair that failed earlier is replaced first.
    #[inline]
    pub(crate) fn with<T>(
        &self,
        operation: impl FnOnce(&mut QueuePair<F>) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let mut lane = self.lock();
        let usable = matches!(&lane.queue, Some(queue) if !queue.is_dead());
        if !usable {
            lane = self.renew(lane)?;
        }
        match &mut lane.queue {
            Some(queue) => operation(queue),
            None => unreachable!("`renew` returns a lane with a queue"),
        }
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Lent<F>> {
        let mut own = THREAD.with(Cell::get);
        // A division only where there are more threads than lanes.
        if own >= self.lanes.len() {
            own %= self.lanes.len();
        }
        match Self::try_lock(&self.lanes[own]) {
            Some(lane) => lane,
            None => self.lock_any(own),
        }
    }

    #[cold]
    fn lock_any(&self, own: usize) -> MutexGuard<'_, Lent<F>> {
        for lane in &self.lanes {
            if let Some(lane) = Self::try_lock(lane) {
                return lane;
            }
        }
        Self::wait_lock(&self.lanes[own])
    }

    #[inline]
    fn try_lock(lane: &Lane<F>) -> Option<MutexGuard<'_, Lent<F>>> {
        match lane.0.try_lock() {
            Ok(lane) => Some(lane),
            // A panic in the middle of an operation leaves its request in flight, which the
            // queue's own table knows.
            Err(TryLockError::Poisoned(lane)) => Some(lane.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn wait_lock(lane: &Lane<F>) -> MutexGuard<'_, Lent<F>> {
        lane.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lane a queue pair, or returns another lane that has one.
    #[cold]
    fn renew<'p>(
        &'p self,
        mut lane: MutexGuard<'p, Lent<F>>,
    ) -> Result<MutexGuard<'p, Lent<F>>, DriverError> {
        if self.is_gone() {
            return Err(DriverError::DeviceGone { register: "STATUS" });
        }
        // The old pair goes first: its id is then free for the new one.
        *lane = Lent::new(None);
        match self.driver.create_queue() {
            Ok(queue) => {
                lane.queue = Some(queue);
                Ok(lane)
            }
            Err(DriverError::NoQueuePair { have }) => {
                drop(lane);
                // Others hold the device's queue pairs: share one that this pool has.
                for other in &self.lanes {
                    let other = Self::wait_lock(other);
                    if matches!(&other.queue, Some(queue) if !queue.is_dead()) {
                        return Ok(other);
                    }
                }
                Err(DriverError::NoQueuePair { have })
            }
            Err(e) => Err(e),
        }
    }
}
