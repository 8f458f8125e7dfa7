//! One map: `struct bpf_map`, its ops by type, and what stores its elements.

mod bloom;
mod host_array;
mod host_hash;
mod jhash;
mod lazy;
mod lpm;
mod object;
mod offload;
pub(crate) mod ops;
pub(crate) mod types;
mod words;

pub(crate) use object::{Map, ReadMostly};
pub(crate) use offload::{Attached, OffloadMap};
