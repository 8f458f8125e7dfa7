//! The map side of bpf(2), as the kernel answers it.
//!
//! [`device`] is the seam to offload: what a network driver gives the kernel through
//! `ndo_bpf` and `struct bpf_map_dev_ops`.
#![forbid(unsafe_code)]

pub mod device;
pub mod errno;
pub mod error;
pub mod uapi;

pub use errno::Errno;
pub use error::Error;
