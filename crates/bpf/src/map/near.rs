//! Tables whose lookups a caller reaches without a virtual call.
//!
//! What a lookup costs in a loop is how many of them a processor can hold at once, and so the
//! number of instructions of each. A caller whose key and value are arrays has their sizes
//! folded into its own code.

use super::group_hash::GroupHash;
use super::host_array::HostArray;
use super::ops::MapOps;
use crate::error::Result;
use std::sync::Arc;

/// A table of this host that a lookup goes to straight away.
#[derive(Clone)]
pub(crate) enum Near {
    Hash(Arc<GroupHash>),
    Array(Arc<HostArray>),
}

impl Near {
    /// As [`MapOps::lookup`], without flags.
    #[inline(always)]
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<()> {
        match self {
            Self::Hash(table) => table.lookup(key, value, 0),
            Self::Array(table) => table.lookup(key, value, 0),
        }
    }
}
