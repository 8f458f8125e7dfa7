//! Which processors the sides of a comparison run on.

use crate::error::Unavailable;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that this thread may run on, bound to the first of them, and to all of them
/// again when dropped.
#[derive(Debug)]
pub struct Processors {
    before: CpuSet,
    cpus: Vec<usize>,
}

impl Processors {
    /// Binds the calling thread to the first processor that it may run on.
    ///
    /// # Errors
    ///
    /// When the kernel does not let it.
    pub fn bind() -> Result<Self, Unavailable> {
        let before = sched_getaffinity(None)
            .map_err(|e| Unavailable::new(format!("this thread's processors: {e}")))?;
        let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu));
        let this = Self {
            before,
            cpus: cpus.collect(),
        };
        this.go(0)?;
        Ok(this)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.cpus.len()
    }

    /// Goes to the `n`th of them, counted round and round. Threads and processes that are started there
    /// stay there.
    ///
    /// # Errors
    ///
    /// When the kernel does not let it.
    pub fn go(&self, n: usize) -> Result<(), Unavailable> {
        let mut only = CpuSet::new();
        if let Some(cpu) = self.cpus.get(n % self.cpus.len().max(1)) {
            only.set(*cpu);
        }
        sched_setaffinity(None, &only)
            .map_err(|e| Unavailable::new(format!("binding to a processor: {e}")))
    }

    /// Runs `start` on the second processor and comes back, so that what it starts stays there.
    ///
    /// # Errors
    ///
    /// When there is one processor only, when the kernel does not let it, or what `start` fails with.
    pub fn beside<T>(
        &self,
        start: impl FnOnce() -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        if self.count() < 2 {
            return Err(Unavailable::new("there is only one processor"));
        }
        self.go(1)?;
        let started = start();
        self.go(0)?;
        started
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        // Where the thread runs from here on is no matter to what was measured.
        let _ = sched_setaffinity(None, &self.before);
    }
}
