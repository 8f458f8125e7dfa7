//! Which CPU a test runs on. LRU maps depend on it: each CPU has lists of its own.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this thread may run on, to go to any of them, and back when dropped.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
    cpus: Vec<usize>,
}

impl Pinned {
    /// Pins the calling thread to the first CPU that it may run on.
    ///
    /// # Panics
    ///
    /// If the kernel does not let it: what is compared afterwards would depend on chance.
    pub fn new() -> Self {
        let before = sched_getaffinity(None).expect("this thread's CPUs");
        let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu));
        let this = Self {
            before,
            cpus: cpus.collect(),
        };
        this.go(0);
        this
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.cpus.len()
    }

    /// Goes to the `n`th of the CPUs, counted round and round.
    pub fn go(&self, n: usize) {
        let mut only = CpuSet::new();
        only.set(self.cpus[n % self.cpus.len()]);
        sched_setaffinity(None, &only).expect("pinned to one CPU");
    }
}

impl Default for Pinned {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The thread ends with its test; where it runs until then is no matter.
        let _ = sched_setaffinity(None, &self.before);
    }
}
