//! BPF map offload over the driver: map operations as descriptors, and what may be offloaded.
//!
//! [`OffloadNic`] is one device as the map core knows it
//! ([`offmap_bpf::device::OffloadDevice`]). A [`Profile`] says what it admits. Operations go
//! to a pool of queue pairs; a thread keeps to one of them as long as it is free. Where
//! the device's status codes and the driver's errors become error numbers is the one module
//! `errno`.
#![forbid(unsafe_code)]

pub mod asynchronous;
mod behaved;
mod errno;
mod map;
mod nic;
mod placement;
mod pool;
mod profile;
mod recovery;
mod reply_cache;
mod ring;
mod slot_order;
pub mod stats;

pub use nic::{Clock, NicSettings, OffloadNic, RandomSeeds, SeedSource};
pub use placement::Placement;
pub use profile::{
    AllocCheck, AllocRule, Behaviours, ErrnoRule, FlagReason, Operation, Profile, ProfileError,
    ReplyCacheRule, Situation, Usage,
};
pub use recovery::{RecoverMaps, Recovery, RecoveryStats, UnknownOutcome};
pub use stats::NicStats;
