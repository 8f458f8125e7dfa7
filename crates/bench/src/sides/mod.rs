//! The sides of a comparison: back ends that do a workload, each with a map of its own and the same
//! keys in the same order.

mod file;
mod kernel;
mod mixed;
mod partner;
mod plain;
mod queue;
mod table;
mod threads;
mod world;

pub use file::FileSide;
pub use kernel::KernelSide;
pub use mixed::{Calls, FileCalls, MixedSide};
pub use partner::{Partner, PartnerSide};
pub use plain::plain;
pub use queue::QueueSide;
pub use table::TableSide;
pub use threads::ThreadsSide;
pub use world::World;

use crate::error::Measured;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Who does the work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackEnd {
    /// A plain hashbrown table with the device's hash, one thread, no bpf(2) around it.
    Hashbrown,
    /// A cache line to the other processor and back.
    CoreRtt,
    /// A bare ring between two processors.
    BareRing,
    /// The firmware's table, called on this thread.
    Table,
    /// offmap's own host map, in this process.
    Host,
    /// The offloaded map on a device that runs on the caller's thread.
    Inline,
    /// The offloaded map on a device on a thread of its own.
    Threaded,
    /// The offloaded map on a device in another process, over vfio-user.
    VfioUser,
    /// The offloaded map on the device that was named: a vfio-bound function, or a server of somebody's.
    Device,
    /// The running kernel's map, by bpf(2).
    Kernel,
    /// A mirror of an offloaded map in host memory.
    Mirror,
}

impl BackEnd {
    /// As the JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hashbrown => "hashbrown",
            Self::CoreRtt => "core_rtt",
            Self::BareRing => "bare_ring",
            Self::Table => "table",
            Self::Host => "host",
            Self::Inline => "inline",
            Self::Threaded => "threaded",
            Self::VfioUser => "vfio_user",
            Self::Device => "device",
            Self::Kernel => "kernel",
            Self::Mirror => "mirror",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Hashbrown => "plain hash table",
            Self::CoreRtt => "cache line, both ways",
            Self::BareRing => "bare ring",
            Self::Table => "device table, called",
            Self::Host => "host map",
            Self::Inline => "offloaded, inline",
            Self::Threaded => "offloaded, threaded",
            Self::VfioUser => "offloaded, vfio-user",
            Self::Device => "offloaded, --device",
            Self::Kernel => "kernel, bpf(2)",
            Self::Mirror => "mirror",
        }
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<Self> {
        const ALL: [BackEnd; 11] = [
            BackEnd::Hashbrown,
            BackEnd::CoreRtt,
            BackEnd::BareRing,
            BackEnd::Table,
            BackEnd::Host,
            BackEnd::Inline,
            BackEnd::Threaded,
            BackEnd::VfioUser,
            BackEnd::Device,
            BackEnd::Kernel,
            BackEnd::Mirror,
        ];
        ALL.into_iter().find(|one| one.name() == name)
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A back end with a filled map, ready to work.
pub trait Side {
    /// What [`Side::run`] of the same numbers needs to be there, or not to be there; not timed.
    ///
    /// # Errors
    ///
    /// When the back end fails: it is left out from there on.
    fn prepare(&mut self, from: usize, n: usize) -> Measured<()> {
        let _ = (from, n);
        Ok(())
    }

    /// `n` elements of the workload, from the `from`-th of its order on; a multiple of
    /// [`crate::workload::Workload::unit`]. Returns how many it did: a dump ends with a call, and may do more.
    ///
    /// # Errors
    ///
    /// As [`Side::prepare`], and when an answer is not what the workload must have.
    fn run(&mut self, from: usize, n: usize) -> Measured<usize>;

    /// Elements that one run may have, at most.
    fn most(&self) -> usize {
        usize::MAX
    }

    /// Makes ready what sleeps between two turns; not timed.
    ///
    /// # Errors
    ///
    /// As [`Side::prepare`].
    fn wake(&mut self) -> Measured<()> {
        Ok(())
    }

    /// How often each error number (0 for success) was the answer, where that is the same for whoever does the same.
    fn answers(&self) -> BTreeMap<i32, u64> {
        BTreeMap::new()
    }

    /// Puts to sleep what would stay awake on the other processor.
    fn rest(&mut self) {}
}
