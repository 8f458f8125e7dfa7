//! The map side of bpf(2), as the kernel answers it.
//!
//! A [`System`] is one kernel's map side with one process's file descriptors: create maps with
//! [`System::map_create`], then operate on them by file descriptor, or through a [`MapFile`],
//! the open file behind one. With `map_ifindex` set, a map lives on the [`device`] that is
//! registered there; without, in host memory.
//!
//! [`device`] is the seam to offload: what a network driver gives the kernel through
//! `ndo_bpf` and `struct bpf_map_dev_ops`.
#![forbid(unsafe_code)]

mod caller;
pub mod device;
pub mod errno;
pub mod error;
mod file;
mod map;
mod system;
pub mod uapi;

pub use caller::{Caller, Capabilities, NetNs};
pub use errno::Errno;
pub use error::{Error, Result};
pub use file::{MapFile, MapInfo, OffloadInfo};
pub use map::ringbuf::{Reservation, RingBufferProducer, RingBufferReader};
pub use system::{Fd, IfIndex, System, SystemConfig};
pub use uapi::{MapCreateAttr, MapFlags, MapType};
