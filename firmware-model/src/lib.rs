//! The SmartNIC's firmware as a pure state machine: modelled device memory, map tables laid
//! out in it, and command dispatch.
//!
//! Nothing here has a thread, a clock or an operating system. The emulated PCI function owns
//! the queues and hands over one command at a time; host memory is reached through the
//! [`HostMemory`] that comes with the command.
//!
//! * [`memory`]: byte-addressed device memory; [`access`]: the policies by which tables reach
//!   it.
//! * [`table`]: HASH, LRU_HASH, ARRAY, their per-CPU forms, QUEUE and STACK, laid out in device
//!   memory.
//! * [`hook`]: who watches or spoils accesses to device memory.
//! * [`engine`]: engines that work on the same maps beside each other, access by access.
//! * [`state`]: all maps as bytes, and back.
//! * [`time`]: what it would all take on hardware that a profile describes.
//! * `dispatch`: commands, from a [`Submission`] to its [`Completion`].
//!
//! Commands come from the host and device memory can be written by the host through its
//! window, so neither is trusted: what is wrong with them ends as a status.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
mod allocator;
mod config;
mod datapath;
mod direct;
mod dispatch;
mod ecc;
pub mod engine;
/// What rule B3 asks for; the litmus tests have loom's here.
mod fence {
    pub(crate) use offmap_abi::fence::full_fence;
}
pub mod hook;
mod inner;
mod maps;
pub mod memory;
pub mod state;
pub mod table;
mod tier;
pub mod time;
mod warm;

pub use config::{Config, ConfigError, StepLimits};
pub use direct::MemoryStats;
pub use ecc::Ecc;
pub use memory::Scrubbed;
pub use table::ring::{RingOutput, RingStats};
pub use tier::{AUTO_SHARE, TIER_NAME_BYTES, TierConfig, tier_ranges};

use access::Access;
use dispatch::admin::Pending;
use dispatch::{Io, Position, Scratch, Step, UnderWay};
use inner::Holdings;
use maps::Maps;
use memory::DeviceMemory;
use offmap_abi::{
    Completion, CompletionWords, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission,
};
use tier::Tiers;

/// The bytes that stand for device memory. Zeroed when handed over.
pub trait Storage: AsRef<[u8]> + AsMut<[u8]> + Send {
    /// Has the machine that runs the model bring the cache line in which `bytes`, a part of this
    /// storage, begin closer. It may do nothing.
    #[inline(always)]
    fn prefetch(bytes: &[u8]) {
        let _ = bytes;
    }
}
impl Storage for alloc::vec::Vec<u8> {}

/// Host memory as the firmware reaches it: by DMA, checked access by access.
pub trait HostMemory {
    /// Copies host memory at `iova` to `into`.
    ///
    /// # Errors
    ///
    /// [`HostFault`] when any byte cannot be read.
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault>;
    /// Copies `from` to host memory at `iova`.
    ///
    /// # Errors
    ///
    /// [`HostFault`] when any byte cannot be written.
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault>;

    /// Loads the aligned 8-byte word at `iova`. Where the host runs beside the device this is
    /// one load, with acquire.
    ///
    /// # Errors
    ///
    /// [`HostFault`] when it cannot be read.
    fn load_word(&mut self, iova: u64) -> Result<u64, HostFault> {
        let mut bytes = [0; 8];
        self.read(iova, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the aligned 8-byte word at `iova`. Where the host runs beside the device this is
    /// one store, with release.
    ///
    /// # Errors
    ///
    /// [`HostFault`] when it cannot be written.
    fn store_word(&mut self, iova: u64, word: u64) -> Result<(), HostFault> {
        self.write(iova, &word.to_le_bytes())
    }
}

/// Host memory could not be reached; the command ends with `Status::DmaFault`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFault;

/// How far a command got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done. The phase is the queue's to set.
    Done(Completion),
    /// More bounded steps are needed: call [`Firmware::resume`], or [`Firmware::resume_io`] for
    /// a command of an I/O queue.
    More,
}

/// Bytes that a step of a command may move where [`Config::step`] does not say otherwise, and one
/// element or bucket chain more.
pub const STEP_BYTES: usize = 256 << 10;
/// Buckets, or elements, that a step of a command may visit, likewise, and one bucket chain more.
pub const STEP_BUCKETS: usize = 4096;

/// The firmware and the memory it runs on.
#[derive(Debug)]
pub struct Firmware<S> {
    config: Config,
    memory: DeviceMemory<S>,
    tiers: Tiers,
    maps: Maps,
    holdings: Holdings,
    scratch: Scratch,
    pending: Option<Pending>,
    under_way: UnderWay,
    /// MSI-X vectors of the function.
    vectors: u32,
    /// Whether an engine is in the midst of an operation on the map that moves.
    engaged: bool,
    /// That map, once it is copied and waits for such an engine: no other one begins an operation on it.
    closed: Option<MapHandle>,
}

impl<S: Storage> Firmware<S> {
    /// Firmware over zeroed `storage`, which is at least `config.memory_bytes` long.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a limit cannot be represented or the storage is too short.
    pub fn new(config: Config, storage: S) -> Result<Self, ConfigError> {
        config.check(storage.as_ref().len())?;
        let tiers = Tiers::new(&config.tiers, config.memory_bytes);
        Ok(Self {
            memory: DeviceMemory::new(storage, config.memory_bytes, tiers.codes()),
            tiers,
            maps: Maps::new(&config),
            holdings: Holdings::default(),
            scratch: Scratch::new(&config),
            pending: None,
            under_way: UnderWay::default(),
            vectors: 0,
            engaged: false,
            closed: None,
            config,
        })
    }

    /// Says how many MSI-X vectors the function has: none, until this is called. A map may
    /// name one of them.
    pub fn set_vectors(&mut self, vectors: u32) {
        self.vectors = vectors;
    }

    /// What the device was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a command of an I/O queue. Commands on one element are done at once; a batch may
    /// take several steps, each bounded by [`Config::step`].
    ///
    /// `context` is a place where one batch may be under way; the caller numbers them (one for
    /// each queue, say). A batch that comes while another is under way in its context ends
    /// with [`Status::Internal`] and changes nothing.
    ///
    /// Between the steps of a batch any command may run in another context. The batch then
    /// has its effect element by element (a dump: bucket by bucket), each at one moment. A map
    /// that is freed in between ends it with [`Status::InvalidMap`], and the count is that of
    /// the elements done before.
    pub fn io(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Progress {
        let mut done = CompletionWords::new(command.request(), Status::Success);
        if self.io_to(context, command, host, &mut done) {
            Progress::Done(done.into())
        } else {
            Progress::More
        }
    }

    /// As [`Self::io`], with the completion left in `done`; `false`: there is more to do, as
    /// [`Progress::More`].
    #[inline]
    pub fn io_to(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
        done: &mut CompletionWords,
    ) -> bool {
        if IoOpcode(command.opcode).is_batch() {
            return match self.begin_batch(context, command, host) {
                Progress::Done(completion) => {
                    *done = completion.into();
                    true
                }
                Progress::More => false,
            };
        }
        if self.memory.is_watched() {
            self.run_watched(command, host, done);
        } else {
            self.engine(host).run(command, done);
        }
        if self.holdings.has_released() {
            self.give_back();
        }
        true
    }

    /// A command on one element, over memory whose accesses may fail: what fails has changed nothing.
    #[cold]
    #[inline(never)]
    fn run_watched(
        &mut self,
        command: &Submission,
        host: &mut impl HostMemory,
        done: &mut CompletionWords,
    ) {
        self.memory.begin();
        self.engine(host).run(command, done);
        if !Completion::from(*done).status().is_success() {
            self.memory.undo();
        }
    }

    #[inline(always)]
    fn engine<'a, H: HostMemory>(&'a mut self, host: &'a mut H) -> Io<'a, DeviceMemory<S>, H> {
        Io {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access: &mut self.memory,
            host,
        }
    }

    #[inline(never)]
    fn begin_batch(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Progress {
        if self.under_way.has(context) {
            return Progress::Done(Completion::new(command.request(), Status::Internal));
        }
        let step = self
            .engine(host)
            .run_batch(command, Position::start(command));
        self.keep(context, command, step)
    }

    /// Gives back the memory of freed maps that nothing holds any more.
    #[cold]
    fn give_back(&mut self) {
        while let Some((handle, map)) = self.holdings.pop_released() {
            self.maps.reuse(handle, &map);
            self.tiers.release(map.base, map.bytes);
        }
    }

    /// Keeps a batch that is not done yet.
    fn keep(&mut self, context: u16, command: &Submission, step: Step) -> Progress {
        match step {
            Step::Done(completion) => {
                self.under_way.remove(context);
                self.maps.heat(command.map(), completion.count.get().into());
                Progress::Done(completion)
            }
            Step::At(position) => {
                self.under_way.put(context, command, position);
                Progress::More
            }
        }
    }

    /// Does the next bounded piece of the command for which [`Self::io`] returned
    /// [`Progress::More`] in that context. Without one, it completes request 0 with
    /// [`Status::Internal`].
    pub fn resume_io(&mut self, context: u16, host: &mut impl HostMemory) -> Progress {
        let Some((command, position)) = self.under_way.get(context) else {
            return Progress::Done(Completion::new(RequestId(0), Status::Internal));
        };
        let step = self.engine(host).run_batch(&command, position);
        self.keep(context, &command, step)
    }

    /// Forgets the command under way in a context, if there is one; whether there was. What it
    /// did stays done, and the caller completes it as [`Status::Interrupted`].
    pub fn abandon_io(&mut self, context: u16) -> bool {
        self.under_way.remove(context)
    }

    /// Forgets all maps, and the commands under way. Handles from before stay invalid, and
    /// device memory reads as zero from now on. The cost does not depend on what was in it.
    pub fn reset(&mut self) {
        self.pending = None;
        self.closed = None;
        self.under_way.clear();
        self.holdings.clear(&mut self.maps);
        self.maps.clear();
        self.scratch.shrink();
        self.tiers.clear();
        self.memory.reset();
    }

    /// Forgets the admin command under way, and what it had taken.
    fn forget_pending(&mut self) {
        if let Some(Pending::Create { map, .. } | Pending::Migrate { map, .. }) =
            self.pending.take()
        {
            self.memory.copy_end();
            self.closed = None;
            self.tiers.release(map.base, map.bytes);
        }
        self.holdings.creating = None;
    }

    /// Reads device memory through the host's window; past the end it reads all ones.
    pub fn read_memory(&self, address: DevAddr, into: &mut [u8]) {
        self.memory.window_read(address, into);
    }

    /// Bits of device memory go wrong: of the byte at `address`, those that are set in `bits`. What comes
    /// of it is for the check code of the tier to say. `false`: there is no such byte.
    pub fn flip_bits(&mut self, address: DevAddr, bits: u8) -> bool {
        let flipped = self.memory.disturb(address, 1, |byte| byte[0] ^= bits);
        address.0 < self.config.memory_bytes && flipped.is_ok()
    }

    /// A check bit of the line of 64 bytes at `address` goes wrong: with [`Ecc::Parity`] bit 0, with
    /// [`Ecc::Secded`] bits `8 * w` to `8 * w + 7` are those of word `w`. `false`: there is no such bit.
    pub fn flip_check_bit(&mut self, address: DevAddr, bit: u32) -> bool {
        self.memory.disturb_check(address, bit).is_ok()
    }

    /// Reads every line of device memory once, as a scrubber does, and writes back what the check code
    /// corrected.
    pub fn scrub(&mut self) -> Scrubbed {
        self.memory.scrub()
    }

    /// Writes device memory through the host's window; past the end it is ignored.
    pub fn write_memory(&mut self, address: DevAddr, from: &[u8]) {
        self.memory.window_write(address, from);
    }
}
