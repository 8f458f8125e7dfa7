//! `offmap device header`: the ABI as a C header.

/// The header. A test holds it to the sources of the ABI.
pub const HEADER: &str = include_str!("../../../abi/include/offmap_abi.h");
