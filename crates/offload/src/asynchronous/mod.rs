//! Operations on maps that end later than they begin: submit, then poll, wait or cancel.
//!
//! An [`AsyncQueue`] has a queue pair of the NIC to itself. [`AsyncQueue::open`] opens a map on it,
//! [`AsyncMap::submit`] sends an operation and gives a [`Ticket`], and whoever has the ticket gets
//! the operation's [`Outcome`], once. With the feature `async` each operation is also a `Future`.
//! `docs/async.md` has the rules; `state` what is behind the handles.

#[cfg(feature = "async")]
mod future;
mod state;

#[cfg(feature = "async")]
pub use future::MapFuture;

use crate::OffloadNic;
use crate::map::NicMap;
use crate::nic::Shared;
use offmap_bpf::error::Result;
use offmap_bpf::{DeferredFile, ElementOp, Errno, Error, MapFile};
use offmap_driver::{Function, Interrupt};
use state::{Id, State};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

const OTHER_NIC: Error = Error::new(
    Errno::EXDEV,
    "the map is on another device than the asynchronous queue",
);
const NO_SUCH_MAP: Error = Error::new(
    Errno::EOPNOTSUPP,
    "the map has no operations that end later: it is a ring buffer, or is restored after a reset \
     (exempt it from recovery by its name), or its profile has behaviours of its own for it",
);
/// Looks of a waiter before it gives its processor away between them.
const SPIN_TURNS: u32 = 1024;

/// Longest sleep without a look: interrupts get lost.
const LONGEST_SLEEP: Duration = Duration::from_millis(128);

/// How an operation ended. `Ok`: done; with the value or the key that it returns, empty for
/// others.
pub type Outcome = Result<Vec<u8>, Failure>;

/// Why an operation did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The map's answer, as [`MapFile`]'s call would give it, or a failure that comes to the same:
    /// the operation had no effect.
    Failed(Error),
    /// It was ended before it began, by [`Ticket::cancel`] (ECANCELED) or at its deadline
    /// (ETIMEDOUT): it had no effect.
    NotBegun(Error),
    /// A write that the device began and did not finish, or did not answer before its queue was
    /// reset. It has had its effect, or not, and none will come later once the queue has
    /// been deleted or the function reset.
    Unknown(Error),
    /// The outcome was given out before.
    Taken,
}

impl Failure {
    /// The error number: EINVAL for [`Failure::Taken`].
    pub fn errno(&self) -> Errno {
        match self {
            Self::Failed(e) | Self::NotBegun(e) | Self::Unknown(e) => e.errno(),
            Self::Taken => Errno::EINVAL,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::NotBegun(error) => write!(f, "without an effect: {error}"),
            Self::Unknown(error) => write!(f, "with or without its effect: {error}"),
            Self::Taken => f.write_str("the operation's outcome was given out before"),
        }
    }
}

impl std::error::Error for Failure {}

/// Why an operation was not begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubmitError {
    /// As many operations are in flight, or ended and not taken, as the queue is deep. Poll or
    /// drop a ticket and try again; nothing was lost.
    Full,
    /// It cannot be begun.
    Failed(Error),
}

impl From<Error> for SubmitError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the asynchronous queue is full: take an outcome first"),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for SubmitError {}

/// Counts of an [`AsyncQueue`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AsyncLoad {
    /// Operations with the device.
    pub in_flight: usize,
    /// Operations that have ended and whose outcome nobody has taken.
    pub untaken: usize,
    /// Futures that wait for room.
    pub waiting: usize,
}

/// Who wakes the futures of an [`AsyncQueue`].
#[cfg(feature = "async")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wake {
    /// They wake themselves: each look at a future that is in flight takes completions for all of
    /// them, and has its executor look again. Needs nothing else, works with every device and
    /// takes a processor for as long as operations are in flight.
    #[default]
    Polling,
    /// Somebody calls [`AsyncQueue::process`]: a thread, a task with a timer, or who waits for the
    /// device's interrupt. Futures sleep until then.
    Process,
}

struct Core<F: Function> {
    #[cfg(feature = "async")]
    wake: Wake,
    shared: Arc<Shared<F>>,
    state: Mutex<State<F>>,
}

impl<F: Function> Core<F> {
    /// Runs `f` on the state. Wakers are woken and dropped after that, since either may run
    /// whatever code, this module's included.
    fn with<T>(&self, f: impl FnOnce(&mut State<F>, &Arc<Shared<F>>) -> T) -> T {
        let (result, wakers, refused) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = f(&mut state, &self.shared);
            let (woken, dropped) = state.take_wakers();
            (result, woken, dropped)
        };
        drop(refused);
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

/// A queue pair of a NIC for operations that end later than they begin.
///
/// Handles are cheap to clone and may be used from any thread; a lock is held for the length of
/// one submission or one look at the completion ring. For threads that are not to meet, make one
/// queue for each.
pub struct AsyncQueue<F: Function> {
    core: Arc<Core<F>>,
}

impl<F: Function> Clone for AsyncQueue<F> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
        }
    }
}

impl<F: Function> fmt::Debug for AsyncQueue<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncQueue").field(&self.load()).finish()
    }
}

impl<F: Function> OffloadNic<F> {
    /// A queue pair for operations that end later than they begin, besides those that the NIC
    /// keeps for its maps.
    ///
    /// # Errors
    ///
    /// EBUSY when all queue pairs of the device are taken; otherwise that of the failure.
    pub fn async_queue(&self) -> Result<AsyncQueue<F>> {
        self.make(
            #[cfg(feature = "async")]
            Wake::default(),
        )
    }

    /// [`OffloadNic::async_queue`], with who wakes its futures.
    ///
    /// # Errors
    ///
    /// As [`OffloadNic::async_queue`].
    #[cfg(feature = "async")]
    pub fn async_queue_with(&self, wake: Wake) -> Result<AsyncQueue<F>> {
        self.make(wake)
    }

    fn make(&self, #[cfg(feature = "async")] wake: Wake) -> Result<AsyncQueue<F>> {
        let shared = self.shared();
        let state = State::new(shared)?;
        Ok(AsyncQueue {
            core: Arc::new(Core {
                #[cfg(feature = "async")]
                wake,
                shared: Arc::clone(shared),
                state: Mutex::new(state),
            }),
        })
    }
}

impl<F: Function> AsyncQueue<F> {
    /// Opens a map for operations on this queue, with the rights of `file`.
    ///
    /// # Errors
    ///
    /// EINVAL for a map in host memory or a map of maps; EXDEV for a map of another NIC;
    /// EOPNOTSUPP for a ring buffer, a recoverable map (a journal orders its writes, which
    /// takes that they end before they return) and one with a profile's own behaviours; ENODEV
    /// when the device is gone.
    pub fn open(&self, file: &MapFile) -> Result<AsyncMap<F>> {
        let file = file.deferred()?;
        let own = file.on_device()?.own().ok_or(NO_SUCH_MAP)?;
        let map = own.downcast::<NicMap<F>>().map_err(|_| OTHER_NIC)?;
        if !Arc::ptr_eq(map.shared(), &self.core.shared) {
            return Err(OTHER_NIC);
        }
        Ok(AsyncMap {
            core: Arc::clone(&self.core),
            map,
            file,
        })
    }

    /// Takes what the device has completed, ends what is overdue, and wakes the futures that
    /// waited for either. Returns how many operations ended. Does not wait, but for the device's
    /// answer to an abort or to the deletion of a queue that failed.
    pub fn process(&self) -> usize {
        self.core.with(State::step)
    }

    /// [`AsyncQueue::process`]; where that finds nothing it sleeps until the device's interrupt, but
    /// no longer than `longest` and 128 ms, and does it again. For a thread that does nothing else.
    /// Without an interrupt (the device works on its callers' threads, or has no vector left, or
    /// the driver was told to poll) it gives its processor away once instead of sleeping.
    ///
    /// # Errors
    ///
    /// EIO when the interrupt cannot be waited for.
    pub fn process_or_sleep(&self, longest: Duration) -> Result<usize> {
        let (ended, interrupt) = self.core.with(|state, shared| {
            let ended = state.step(shared);
            let asleep = ended == 0 && state.request_interrupt(shared);
            (ended, asleep.then(|| state.interrupt()).flatten())
        });
        let function = self.core.shared.driver.function();
        match interrupt {
            _ if ended > 0 => return Ok(ended),
            None => function.relax(),
            Some(interrupt) => {
                let slept = function.sleep(&interrupt, longest.min(LONGEST_SLEEP));
                slept.map_err(|error| Error::because(Errno::EIO, error.to_string()))?;
            }
        }
        Ok(self.process())
    }

    /// The interrupt of its queue pair, for a reactor that waits for file descriptors: one that
    /// [`AsyncQueue::request_interrupt`] has asked for becomes readable, is taken
    /// ([`Interrupt::take`]), and then [`AsyncQueue::process`] is called. `None`: there is none.
    /// After a failure of the queue it is another one.
    pub fn interrupt(&self) -> Option<Arc<Interrupt>> {
        self.core.with(|state, _| state.interrupt())
    }

    /// Asks for an interrupt with the next completion. `false`: none will come, because there is
    /// something to process already, nothing is in flight, or there is no interrupt.
    pub fn request_interrupt(&self) -> bool {
        self.core.with(State::request_interrupt)
    }

    /// Operations in flight and the like.
    pub fn load(&self) -> AsyncLoad {
        self.core.with(|state, _| state.load())
    }

    /// Most operations that are in flight, or ended and not taken.
    pub fn depth(&self) -> usize {
        self.core.with(|state, _| state.depth())
    }
}

/// A map on an [`AsyncQueue`].
pub struct AsyncMap<F: Function> {
    core: Arc<Core<F>>,
    map: Arc<NicMap<F>>,
    file: DeferredFile,
}

impl<F: Function> Clone for AsyncMap<F> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            map: Arc::clone(&self.map),
            file: self.file.clone(),
        }
    }
}

impl<F: Function> fmt::Debug for AsyncMap<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncMap").field(self.file.file()).finish()
    }
}

impl<F: Function> AsyncMap<F> {
    /// The file that it was opened with.
    pub fn file(&self) -> &MapFile {
        self.file.file()
    }

    /// Sends an operation to the device and returns. After a failure of the queue it makes
    /// another one first, and resets the function where that is due, which takes the time of
    /// admin commands.
    ///
    /// Operations that are in flight together have no order between them.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Full`]; the errors of [`MapFile`]'s call that come before the device's.
    pub fn submit(&self, op: &ElementOp<'_>) -> Result<Ticket<F>, SubmitError> {
        let core = &self.core;
        let (id, writing) = self.file.begin(op, |op| {
            let (command, during) = self.map.command(op)?;
            core.with(|state, shared| {
                state.submit(shared, &self.map, &command, during, op.is_write())
            })
        })?;
        if let Some(writing) = writing {
            core.with(|state, _| state.keep(id, writing));
        }
        Ok(Ticket {
            core: Arc::clone(core),
            file: self.file.clone(),
            returns_value: matches!(
                op,
                ElementOp::Lookup { .. } | ElementOp::LookupAndDelete { .. }
            ),
            id: Some(id),
        })
    }
}

/// An operation that was submitted.
///
/// Dropping it lets the operation go on: it has its effect or not, and nobody is told. Its place
/// on the queue is free once it has ended.
pub struct Ticket<F: Function> {
    core: Arc<Core<F>>,
    file: DeferredFile,
    /// And not a key, or nothing.
    returns_value: bool,
    /// `None`: the outcome was taken.
    id: Option<Id>,
}

impl<F: Function> fmt::Debug for Ticket<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.id).finish()
    }
}

impl<F: Function> Ticket<F> {
    /// The outcome, if the operation has ended; [`Failure::Taken`] once it was given out. Does
    /// not wait; see [`AsyncQueue::process`], a call of which is part of it.
    pub fn poll(&mut self) -> Option<Outcome> {
        self.look(None)
    }

    fn look(&mut self, waker: Option<&Waker>) -> Option<Outcome> {
        let Some(id) = self.id else {
            return Some(Err(Failure::Taken));
        };
        let mut outcome = self
            .core
            .with(|state, shared| state.take(shared, id, waker))?;
        self.id = None;
        if let Ok(value) = &mut outcome
            && self.returns_value
        {
            self.file.blank(value);
        }
        Some(outcome)
    }

    /// Waits for the outcome: at most `op_timeout` from the submission, then `admin_timeout` for
    /// the abort, and as long again for the completion.
    pub fn wait(mut self) -> Outcome {
        let mut turns = 0;
        loop {
            if let Some(outcome) = self.poll() {
                return outcome;
            }
            let function = self.core.shared.driver.function();
            if turns < SPIN_TURNS {
                turns += 1;
                std::hint::spin_loop();
            } else {
                function.relax();
            }
        }
    }

    /// Asks the device to end the operation now. Whether it will: the outcome is then
    /// [`Failure::NotBegun`] or, of a write that had begun, [`Failure::Unknown`]. `false`: it has
    /// ended, or will in the ordinary way. Either way the outcome is still to be taken.
    ///
    /// Takes the time of an admin command.
    ///
    /// # Errors
    ///
    /// That of the admin command; the operation goes on, unless the queue has failed.
    pub fn cancel(&mut self) -> Result<bool> {
        match self.id {
            Some(id) => self.core.with(|state, shared| state.cancel(shared, id)),
            None => Ok(false),
        }
    }
}

impl<F: Function> Drop for Ticket<F> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let ended = self.core.with(|state, _| state.detach(id));
            drop(ended);
        }
    }
}
