//! How table operations reach device memory: one access at a time, through a policy.
//!
//! Tables are generic over [`Access`] and hold no borrow of memory from one access to the
//! next; what an access yields is copied or consumed inside the access call. A policy may
//! therefore count accesses, or let another engine run between any two of them.

use offmap_abi::{DevAddr, Status};

/// An access outside device memory. The firmware's own addresses are in range, so this means
/// that its state is inconsistent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryFault;

impl From<MemoryFault> for Status {
    fn from(_: MemoryFault) -> Self {
        Self::Internal
    }
}

/// An access policy over device memory.
pub trait Access {
    /// One read: hands the `len` bytes at `at` to `f`.
    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault>;

    /// One write: lets `f` fill the `len` bytes at `at`.
    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault>;

    /// Reads `N` bytes.
    #[inline(always)]
    fn read<const N: usize>(&mut self, at: DevAddr) -> Result<[u8; N], MemoryFault> {
        self.with_bytes(at, N, |bytes| {
            let mut out = [0; N];
            out.copy_from_slice(bytes);
            out
        })
    }

    /// Writes `N` bytes.
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: DevAddr, from: [u8; N]) -> Result<(), MemoryFault> {
        self.with_bytes_mut(at, N, |bytes| bytes.copy_from_slice(&from))
    }

    /// Reads a little-endian 32-bit word.
    #[inline(always)]
    fn read_u32(&mut self, at: DevAddr) -> Result<u32, MemoryFault> {
        self.read(at).map(u32::from_le_bytes)
    }

    /// Writes a little-endian 32-bit word.
    #[inline(always)]
    fn write_u32(&mut self, at: DevAddr, value: u32) -> Result<(), MemoryFault> {
        self.write(at, value.to_le_bytes())
    }

    /// Writes a little-endian 64-bit word.
    #[inline(always)]
    fn write_u64(&mut self, at: DevAddr, value: u64) -> Result<(), MemoryFault> {
        self.write(at, value.to_le_bytes())
    }
}

/// What a [`Counting`] policy saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccessCounts {
    /// Read accesses.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write accesses.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Counts the accesses that pass through it.
#[derive(Debug)]
pub struct Counting<'a, A> {
    inner: &'a mut A,
    counts: AccessCounts,
}

impl<'a, A: Access> Counting<'a, A> {
    /// Counts from zero, over `inner`.
    pub fn new(inner: &'a mut A) -> Self {
        Self {
            inner,
            counts: AccessCounts::default(),
        }
    }

    /// What passed so far.
    pub fn counts(&self) -> AccessCounts {
        self.counts
    }
}

impl<A: Access> Access for Counting<'_, A> {
    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.counts.reads += 1;
        self.counts.read_bytes += len as u64;
        self.inner.with_bytes(at, len, f)
    }

    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.counts.writes += 1;
        self.counts.written_bytes += len as u64;
        self.inner.with_bytes_mut(at, len, f)
    }
}
