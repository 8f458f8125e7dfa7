//! One map: `struct bpf_map`, its ops by type, and what stores its elements.

mod bloom;
mod group_hash;
mod host_array;
mod host_hash;
pub(crate) mod htab_footprint;
pub(crate) mod inner;
mod jhash;
mod lazy;
mod lpm;
mod lru;
mod mapping;
mod near;
mod object;
mod offload;
pub(crate) mod ops;
mod owner;
mod queue;
pub(crate) mod refusals;
pub(crate) mod ringbuf;
pub(crate) mod types;
mod words;
mod zeroed;

pub use mapping::Mapping;
pub(crate) use mapping::PAGE_BYTES;
pub use owner::ProgramTraits;

pub(crate) use near::Near;
pub(crate) use object::{Map, ReadMostly, WriteActive};
pub(crate) use offload::{Attached, OFFLOADED_MAP_BYTES, OffloadMap};
