//! The host driver: bring-up, queue pairs, in-flight table, deadlines, abort and reset.
//!
//! The driver is generic over [`Function`] and knows no transport. A [`Driver`] owns the
//! admin queue; each [`QueuePair`] made from it belongs to one thread at a time and is used
//! without locks. Submit and poll are the core; the blocking calls are built on them.
//!
//! Nothing from the device is trusted. Registers, identify data and completions are checked
//! before they are used, and what does not hold becomes a [`DriverError`]: never a panic,
//! a wait without a deadline, or another request's data. A request that outlives its deadline
//! keeps its slot and its buffers until its completion or a reset (`docs/abi.md` §10, R2).
#![forbid(unsafe_code)]

mod admin;
mod bringup;
mod config;
mod driver;
mod error;
/// What rules N1 and N4 ask for; the litmus tests have loom's here.
mod fence {
    pub(crate) use offmap_abi::fence::full_fence;
}
mod generations;
mod map;
mod memory;
mod queue;
mod registers;
mod rings;
mod vectors;

pub use bringup::Identity;
pub use config::{Coalescing, CompletionMode, DriverConfig, Notify, Timing};
pub use driver::{AdoptedMap, Driver};
pub use error::{CompletionFault, DriverError, MemoryRoom, SubmitError};
pub use map::{DeviceMap, MapParams};
pub use offmap_abi::admin::{Limit, MapDescription, MapInfo, MapLayout, MapMigrated, TierInfo};
pub use offmap_abi::{IoOpcode, MapHandle, QueueId, RequestId, Status};
pub use offmap_device_io::{DmaRegion, Function, Interrupt, IoError};
pub use queue::stats::{DriverStats, OpStats, QueueEvents, QueueStats, TimeHistogram};
pub use queue::{BatchDone, Counters, Dumped, Finished, Op, QueuePair, Token};
pub use vectors::Vector;
