//! The SmartNIC's firmware as a pure state machine: modelled device memory, map tables laid
//! out in it, and command dispatch.
//!
//! Nothing here has a thread, a clock or an operating system. The emulated PCI function owns
//! the queues and hands over one command at a time; host memory is reached through the
//! [`HostMemory`] that comes with the command.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use offmap_abi::admin::IdentifyData;
use offmap_abi::{Completion, Submission};

/// The bytes that stand for device memory. Zeroed when handed over.
pub trait Storage: AsRef<[u8]> + AsMut<[u8]> + Send {}
impl<T: AsRef<[u8]> + AsMut<[u8]> + Send> Storage for T {}

/// Host memory as the firmware reaches it: by DMA, checked access by access.
pub trait HostMemory {
    /// Copies host memory at `iova` to `into`.
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault>;
    /// Copies `from` to host memory at `iova`.
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault>;
}

/// Host memory could not be reached; the command ends with `Status::DmaFault`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFault;

/// How far a command got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done. The phase is the queue's to set.
    Done(Completion),
    /// More bounded steps are needed: call [`Firmware::resume`].
    More,
}

/// What the device is built with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Device memory for maps, in bytes.
    pub memory_bytes: u64,
    /// Most maps at a time (up to 65,535).
    pub maps: u32,
    /// Most entries of one map.
    pub entries_per_map: u32,
    /// Most entries of all maps together; 0: bounded by memory alone.
    pub entries_total: u64,
    /// Longest key in bytes.
    pub key_bytes: u32,
    /// Longest value in bytes, of one CPU.
    pub value_bytes: u32,
    /// Most per-CPU slots.
    pub cpu_slots: u32,
    /// Most elements of one batch command.
    pub batch: u32,
    /// Data-path engines.
    pub engines: u32,
}

/// The firmware and the memory it runs on.
pub struct Firmware<S> {
    storage: S,
    config: Config,
}

impl<S: Storage> Firmware<S> {
    /// Firmware over zeroed `storage`, which is at least `config.memory_bytes` long.
    pub fn new(config: Config, storage: S) -> Self {
        Self { storage, config }
    }
    /// What IDENTIFY reports.
    pub fn identify(&self) -> IdentifyData {
        unreachable!()
    }
    /// Runs IDENTIFY, MAP_CREATE, MAP_FREE or MAP_QUERY. Commands about queues are the bus
    /// side's and come back as `InvalidOpcode`.
    pub fn admin(&mut self, _command: &Submission, _host: &mut impl HostMemory) -> Progress {
        unreachable!()
    }
    /// Does the next bounded piece of the admin command that returned [`Progress::More`].
    pub fn resume(&mut self, _host: &mut impl HostMemory) -> Progress {
        unreachable!()
    }
    /// Runs a command of an I/O queue to its end; the work is bounded by the batch limit.
    pub fn io(&mut self, _command: &Submission, _host: &mut impl HostMemory) -> Completion {
        unreachable!()
    }
    /// Forgets all maps, and a command under way.
    pub fn reset(&mut self) {}
    /// Reads device memory through the host's window; past the end it reads all ones.
    pub fn read_memory(&self, _address: offmap_abi::DevAddr, _into: &mut [u8]) {
        let _ = (&self.storage, &self.config);
    }
    /// Writes device memory through the host's window; past the end it is ignored.
    pub fn write_memory(&mut self, _address: offmap_abi::DevAddr, _from: &[u8]) {}
}
