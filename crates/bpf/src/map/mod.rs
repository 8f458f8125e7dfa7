//! One map: `struct bpf_map`, its ops by type, and what stores its elements.

mod host_array;
mod host_hash;
mod lazy;
mod object;
mod offload;
pub(crate) mod ops;
pub(crate) mod ringbuf;
pub(crate) mod types;
mod words;

pub(crate) use object::{Map, ReadMostly};
pub(crate) use offload::{Attached, OffloadMap};
