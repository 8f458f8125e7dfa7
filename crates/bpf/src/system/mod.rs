//! One kernel's map side.

mod commands;
mod create;
mod fd;
mod frees;
mod id;
mod machine;
mod netdev;
mod raw;

pub use fd::Fd;
pub use netdev::IfIndex;
pub use raw::command;

use fd::{FdTable, File};
use frees::{Frees, Worker};
use id::IdTable;
use netdev::Netdevs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a [`System`] is like. [`SystemConfig::default`] has the possible CPUs and the online
/// NUMA nodes of this machine, so that per-CPU values have the size that its kernel gives them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemConfig {
    /// Possible CPUs: the values per entry of a per-CPU map. At least 1.
    pub possible_cpus: u32,
    /// NUMA nodes that are online.
    pub online_nodes: Vec<u32>,
    /// The lowest descriptor that is free in the process: those below belong to others, as
    /// standard input, output and error do.
    pub first_fd: u32,
    /// `RLIMIT_NOFILE`: descriptors are below it.
    pub max_fds: u32,
    /// The highest map id; ids are given out cyclically from 1. The kernel's is 2^31 − 2.
    pub max_map_id: u32,
    /// `kernel.unprivileged_bpf_disabled`: creating a map needs CAP_BPF.
    pub unprivileged_bpf_disabled: bool,
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            possible_cpus: machine::possible_cpus(),
            online_nodes: machine::online_nodes(),
            first_fd: 3,
            max_fds: 1024,
            max_map_id: i32::MAX as u32 - 1,
            unprivileged_bpf_disabled: true,
        }
    }
}

/// What maps refer to, and may outlive the [`System`] with.
pub(crate) struct Shared {
    pub(crate) ids: IdTable,
    pub(crate) frees: Frees,
}

/// One kernel's map side, with the descriptors of one process and a worker thread that frees
/// maps (`bpf_map_free_deferred`).
///
/// Dropping it closes all descriptors, and waits until every map whose last reference went has
/// been freed. A [`crate::MapFile`] that is still held keeps working; its map is freed by whoever
/// drops the last one.
pub struct System {
    config: SystemConfig,
    shared: Arc<Shared>,
    fds: Mutex<FdTable>,
    netdevs: Netdevs,
    worker: Worker,
}

impl System {
    /// A system without maps, whose only network device is `lo`.
    pub fn new(config: SystemConfig) -> Arc<Self> {
        let config = SystemConfig {
            possible_cpus: config.possible_cpus.max(1),
            ..config
        };
        let (frees, worker) = Worker::start();
        Arc::new(Self {
            shared: Arc::new(Shared {
                ids: IdTable::new(config.max_map_id),
                frees,
            }),
            fds: Mutex::new(FdTable::new(config.first_fd, config.max_fds)),
            netdevs: Netdevs::new(),
            worker,
            config,
        })
    }

    /// What the system was made with.
    pub const fn config(&self) -> &SystemConfig {
        &self.config
    }

    /// Waits until every map whose last reference went before this call has been freed: host
    /// memory given back, and devices have seen their MAP_FREE.
    pub fn flush_frees(&self) {
        self.shared.frees.flush();
    }

    fn fds(&self) -> MutexGuard<'_, FdTable> {
        self.fds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let open: Vec<Arc<File>> = self.fds().drain();
        drop(open);
        self.worker.stop(&self.shared.frees);
    }
}
