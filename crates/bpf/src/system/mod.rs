//! One kernel's map side.

mod btf;
mod commands;
mod create;
mod fd;
mod file_ops;
mod frees;
mod id;
mod machine;
mod netdev;
mod pin;
mod raw;

pub use fd::Fd;
pub use file_ops::{MmapRequest, PollEvents, Protection};
pub(crate) use frees::Seen;
pub use netdev::IfIndex;
pub use raw::command;

use crate::btf_object::BtfObject;
use crate::caller::Caller;
use crate::error::Result;
use crate::fs::BpfFs;
use crate::map::Map;
use crate::memory::{MemoryOwner, MemoryOwners, MemoryUsage};
use crate::security::{AllowAll, SecurityHook};
use fd::{FdTable, File};
use frees::{Frees, Worker};
use id::IdTable;
pub(crate) use id::Identified;
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
    /// The highest id of a map, and of a BTF object; ids are given out cyclically from 1. The kernel's is 2^31 − 2.
    pub max_map_id: u32,
    /// Names that the bpffs can hold: directories, pins and symbolic links together.
    pub max_fs_entries: u32,
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
            max_fs_entries: 1 << 16,
            unprivileged_bpf_disabled: true,
        }
    }
}

/// What maps refer to, and may outlive the [`System`] with.
pub(crate) struct Shared {
    pub(crate) ids: IdTable<Map>,
    pub(crate) btf_ids: IdTable<BtfObject>,
    pub(crate) frees: Frees,
    pub(crate) security: Arc<dyn SecurityHook>,
}

/// One kernel's map side, with the descriptors of one process and a worker thread that frees
/// maps (`bpf_map_free_deferred`).
///
/// Dropping it closes all descriptors, unmounts its bpffs, and waits until every map whose last reference went has
/// been freed. A [`crate::MapFile`] that is still held keeps working; its map is freed by whoever
/// drops the last one.
pub struct System {
    config: SystemConfig,
    shared: Arc<Shared>,
    fds: Mutex<FdTable>,
    fs: BpfFs,
    memory: MemoryOwners,
    netdevs: Netdevs,
    worker: Worker,
}

impl System {
    /// A system without maps, whose only network device is `lo`.
    pub fn new(config: SystemConfig) -> Arc<Self> {
        Self::with_security(config, Arc::new(AllowAll))
    }

    /// As [`System::new`], with a security module.
    pub fn with_security(config: SystemConfig, security: Arc<dyn SecurityHook>) -> Arc<Self> {
        let config = SystemConfig {
            possible_cpus: config.possible_cpus.max(1),
            ..config
        };
        let (frees, worker) = Worker::start();
        Arc::new(Self {
            shared: Arc::new(Shared {
                ids: IdTable::new("map", config.max_map_id),
                btf_ids: IdTable::new("BTF", config.max_map_id),
                frees,
                security,
            }),
            fds: Mutex::new(FdTable::new(config.first_fd, config.max_fds)),
            fs: BpfFs::new(config.max_fs_entries),
            memory: MemoryOwners::new(),
            netdevs: Netdevs::new(),
            worker,
            config,
        })
    }

    /// What the system was made with.
    pub const fn config(&self) -> &SystemConfig {
        &self.config
    }

    /// The directory tree that objects are pinned in, mounted at `/sys/fs/bpf`.
    pub const fn fs(&self) -> &BpfFs {
        &self.fs
    }

    /// `security_bpf`: what the security module says of a command, by its number. For whoever
    /// takes commands by number; the typed functions do not ask it.
    pub fn check_command(&self, caller: &Caller, command: u32) -> Result<()> {
        self.shared.security.bpf(caller, command)
    }

    /// Adds a memory owner whose maps may occupy `limit_bytes` together; a [`Caller`] with it
    /// has its maps charged there: what [`crate::MapInfo::mem_usage`] says, and the map
    /// structure. EEXIST for a name that is taken.
    pub fn add_memory_owner(&self, name: &str, limit_bytes: u64) -> Result<MemoryOwner> {
        self.memory.add(name, limit_bytes)
    }

    /// What a memory owner has used. A map's memory counts until it has been freed, which
    /// [`System::flush_frees`] waits for. EINVAL for an owner that was never added.
    pub fn memory_usage(&self, owner: MemoryOwner) -> Result<MemoryUsage> {
        self.memory.usage(owner)
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
        self.fs.clear();
        self.worker.stop(&self.shared.frees);
    }
}
