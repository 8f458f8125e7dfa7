//! What can go wrong between a driver and a function.

use crate::{BarOffset, Iova};
use std::io;

/// An access to a function that failed, with what was tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// Config space was accessed outside its 4,096 bytes.
    #[error("config space access of {len} bytes at {offset:#x} is outside the 4,096 bytes")]
    ConfigRange {
        /// First byte.
        offset: u16,
        /// Bytes.
        len: usize,
    },
    /// The function has no such BAR.
    #[error("the function has no BAR {bar}")]
    NoBar {
        /// Index of the BAR.
        bar: u8,
    },
    /// A BAR was accessed outside its size, or at an address that is not aligned to the width.
    #[error("{len}-byte access of BAR {bar} at {:#x} is outside it or not aligned", offset.0)]
    BarAccess {
        /// Index of the BAR.
        bar: u8,
        /// First byte.
        offset: BarOffset,
        /// Bytes.
        len: usize,
    },
    /// A DMA mapping was refused.
    #[error("cannot map {len} bytes for DMA at {iova:?}: {why}")]
    DmaMap {
        /// First IOVA.
        iova: Iova,
        /// Bytes.
        len: usize,
        /// The reason.
        why: &'static str,
    },
    /// An unmap named a range that is not exactly one mapping.
    #[error("{len} bytes at {iova:?} are not a DMA mapping")]
    NotMapped {
        /// First IOVA.
        iova: Iova,
        /// Bytes.
        len: usize,
    },
    /// No free IOVA range is large enough.
    #[error("no {len} bytes of IOVA space are free ({free} bytes are, in pieces)")]
    IovaExhausted {
        /// Bytes asked for.
        len: usize,
        /// Bytes free in all.
        free: u64,
    },
    /// The function has no such MSI-X vector.
    #[error("MSI-X vector {vector} does not exist: the function has {vectors}")]
    NoVector {
        /// The vector asked for.
        vector: u32,
        /// How many there are.
        vectors: u32,
    },
    /// The NUMA node does not exist or has no memory.
    #[error("NUMA node {node} does not exist, is not online or has no memory")]
    NoNode {
        /// The node asked for.
        node: u32,
    },
    /// The function is gone: unplugged, or the process that served it has ended.
    #[error("the function is gone: {0}")]
    Gone(&'static str),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl IoError {
    /// An [`IoError::Os`] from a failed system call.
    pub fn os(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Os {
            what,
            source: source.into(),
        }
    }
}
