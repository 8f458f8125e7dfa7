//! Several threads on one map, each on a processor of its own.
//!
//! The calling thread is the first of them. The others sleep but in their turns, and wait in a turn for the word to
//! begin, so that no block holds the start of a thread.

use super::Side;
use crate::error::{Measured, Unavailable};
use std::hint::spin_loop;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How far apart the threads begin in the order of keys: a prime, so that they do not meet.
const APART: usize = 40_009;

#[derive(Default)]
struct Shared {
    awake: AtomicBool,
    end: AtomicBool,
    /// The job that is to be done: from where on, and how many each.
    from: AtomicUsize,
    each: AtomicUsize,
    job: AtomicU64,
    done: AtomicUsize,
    failed: Mutex<Option<Unavailable>>,
}

/// The threads of one side.
pub struct ThreadsSide<S> {
    own: S,
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
    unit: usize,
}

impl<S: Side + Send + 'static> ThreadsSide<S> {
    /// `own` for the calling thread; each of `others` for a thread that `bind` binds, by its number from 1 on.
    /// `unit` is what a job is a multiple of.
    ///
    /// # Errors
    ///
    /// What `bind` fails with.
    pub fn new(
        own: S,
        others: Vec<S>,
        unit: usize,
        bind: impl Fn(usize) -> Measured<()>,
    ) -> Measured<Self> {
        let mut this = Self {
            own,
            shared: Arc::default(),
            others: Vec::new(),
            unit,
        };
        for (n, mut side) in (1..).zip(others) {
            // Threads start where the one is bound that makes them.
            bind(n)?;
            let shared = Arc::clone(&this.shared);
            this.others
                .push(thread::spawn(move || work(&shared, &mut side, n * APART)));
        }
        bind(0)?;
        Ok(this)
    }
}

fn work(shared: &Shared, side: &mut impl Side, apart: usize) {
    let mut seen = 0;
    while !shared.end.load(Acquire) {
        let job = shared.job.load(Acquire);
        if job != seen {
            seen = job;
            let from = shared.from.load(Acquire) + apart;
            if let Err(why) = side.run(from, shared.each.load(Acquire)) {
                let mut failed = shared.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = Some(why);
            }
            shared.done.fetch_add(1, Release);
        } else if shared.awake.load(Acquire) {
            spin_loop();
        } else {
            thread::park();
        }
    }
}

impl<S: Side + Send + 'static> Side for ThreadsSide<S> {
    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let shared = &*self.shared;
        let threads = self.others.len() + 1;
        let each = (n / threads / self.unit).max(1) * self.unit;
        shared.from.store(from, Release);
        shared.each.store(each, Release);
        shared.done.store(0, Release);
        shared.job.fetch_add(1, Release);
        if !shared.awake.load(Acquire) {
            self.unpark();
        }
        let own = self.own.run(from, each);
        while shared.done.load(Acquire) != self.others.len() {
            if self.others.iter().any(JoinHandle::is_finished) {
                return Err(Unavailable::new("a thread of the comparison ended"));
            }
            spin_loop();
        }
        own?;
        let failed = shared
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match failed {
            Some(why) => Err(why),
            None => Ok(each * threads),
        }
    }

    fn wake(&mut self) -> Measured<()> {
        self.shared.awake.store(true, Release);
        self.unpark();
        self.own.wake()
    }

    fn rest(&mut self) {
        self.shared.awake.store(false, Release);
        self.own.rest();
    }
}

impl<S> ThreadsSide<S> {
    fn unpark(&self) {
        for other in &self.others {
            other.thread().unpark();
        }
    }
}

impl<S> Drop for ThreadsSide<S> {
    fn drop(&mut self) {
        self.shared.end.store(true, Release);
        self.unpark();
        for other in self.others.drain(..) {
            // One that panicked has said so already.
            let _ = other.join();
        }
    }
}
