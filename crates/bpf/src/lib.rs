//! The map side of bpf(2), as the kernel answers it.
//!
//! A [`System`] is one kernel's map side with one process's file descriptors: create maps with
//! [`System::map_create`], then operate on them by file descriptor, or through a [`MapFile`],
//! the open file behind one. With `map_ifindex` set, a map lives on the [`device`] that is
//! registered there; without, in host memory.
//!
//! [`btf`] checks the types that maps are described with, and finds the special fields of
//! their values.
//!
//! [`device`] is the seam to offload: what a network driver gives the kernel through
//! `ndo_bpf` and `struct bpf_map_dev_ops`.

pub mod btf;
mod btf_object;
mod caller;
pub mod device;
mod entries;
pub mod errno;
pub mod error;
mod file;
pub mod fs;
mod map;
mod memory;
mod security;
mod system;
pub mod uapi;
mod user_memory;

pub use caller::{Caller, Capabilities, NetNs};
pub use entries::{Entries, Entry};
pub use errno::Errno;
pub use error::{Error, Result};
pub use file::{
    BtfInfo, DeferredFile, ElementOp, MapBtfIds, MapFile, MapInfo, OffloadInfo, Writing,
};
pub use map::ringbuf::{Reservation, RingBufferProducer, RingBufferReader};
pub use map::{Mapping, ProgramTraits};
pub use memory::{MemoryOwner, MemoryUsage};
pub use security::{MapAccess, SecurityHook, SecurityMap};
pub use system::{Fd, IfIndex, MmapRequest, PollEvents, Protection, System, SystemConfig, command};
pub use uapi::{MapCreateAttr, MapFlags, MapType};
pub use user_memory::{Fault, UserArena, UserMemory};
