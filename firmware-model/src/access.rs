//! How table operations reach device memory: one access at a time, through a policy.
//!
//! Tables are generic over [`Access`] and hold no borrow of memory from one access to the
//! next; what an access yields is copied or consumed inside the access call. A policy may
//! therefore count accesses, or let another engine run between any two of them.

use crate::HostMemory;
use offmap_abi::{DevAddr, Status};

/// Why an access to device memory failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryFault {
    /// It was outside the memory. The firmware's own addresses are in range, so this means
    /// that its state is inconsistent: [`Status::Internal`].
    OutOfRange,
    /// The memory's check code does not match the data: [`Status::MediaError`].
    Media,
    /// It has not taken place: the engine's turn is over, and what this run comes to is not looked
    /// at (`crate::engine`).
    Yielded,
}

impl From<MemoryFault> for Status {
    fn from(fault: MemoryFault) -> Self {
        match fault {
            MemoryFault::OutOfRange | MemoryFault::Yielded => Self::Internal,
            MemoryFault::Media => Self::MediaError,
        }
    }
}

/// Bytes that [`Access::send`] moves at a time where a policy has no better way.
const PIECE_BYTES: usize = 256;

/// A part of a table at which engines take turns ([`Access::locked`]), named by an address in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What a table has once: counts, free lists, trees.
    Table(DevAddr),
    /// What belongs to one home bucket with its chain, or to one value of an array.
    Entry(DevAddr),
}

/// Looks at a part that engines write, without its lock, before one of them takes the lock.
pub const LOOKS_MAX: u32 = 4;

/// An access policy over device memory.
///
/// **Engines beside each other.** Tables say which accesses belong together ([`Access::locked`],
/// [`Access::consistent`]), and the policy decides what that takes. Where nothing else runs between
/// two accesses it takes nothing, and all of it is gone once compiled. Where engines share memory
/// ([`Access::SHARED`]) a part has a lock, and a version that goes on when the lock is taken and when
/// it is given back. Tables keep these rules:
///
/// * what [`Part::Table`] names is written with that lock alone; so is which entries there are;
/// * an entry and the chain that leads to it are written, freed and used again only with the lock of
///   its [`Part::Entry`];
/// * no engine waits for the lock of an entry while it holds that of another one, nor for a table's
///   while it holds an entry's; of maps of maps it takes that of the map (`inner`) before that
///   of its table. So there is no circle of engines that wait for each other;
/// * who looks without a lock believes what was found, or that nothing was, only if the part's
///   version is afterwards what it was before.
pub trait Access {
    /// Whether another engine may run between two accesses.
    const SHARED: bool = false;

    /// One read: hands the `len` bytes at `at` to `f`.
    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault>;

    /// One write: lets `f` fill the `len` bytes at `at`. Of up to 8 bytes that do not cross a multiple
    /// of 8 it may be a change of what is there, at one moment; of more, it fills all of them.
    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault>;

    /// Looks at the `len` bytes at `at` without an access of the device: what the machine that runs
    /// the model does to have them in its caches. `None`: this policy has nothing to gain by that.
    #[inline(always)]
    fn peek<R>(&mut self, at: DevAddr, len: usize, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let _ = (at, len, f);
        None
    }

    /// Has that machine bring the cache lines of the `len` bytes at `at` closer, without waiting for
    /// them.
    #[inline(always)]
    fn prefetch(&mut self, at: DevAddr, len: u64) {
        let _ = (at, len);
    }

    /// A change begins that takes effect whole or not at all: the accesses up to the next call of this,
    /// or of [`Access::undo`]. A policy whose accesses fail keeps what the writes among them replace;
    /// under one whose accesses do not, there is nothing to keep.
    #[inline(always)]
    fn begin(&mut self) {}

    /// The change has failed: what was written since [`Access::begin`] is as it was then.
    #[inline(always)]
    fn undo(&mut self) {}

    /// Cells of the `len` bytes at `at` go wrong: the bits that `flip` turns over, of bytes of any value. It
    /// is no access; what comes of it is for the memory's check code to say.
    ///
    /// # Errors
    ///
    /// [`MemoryFault::OutOfRange`].
    fn disturb(
        &mut self,
        at: DevAddr,
        len: usize,
        flip: impl FnOnce(&mut [u8]),
    ) -> Result<(), MemoryFault> {
        self.with_bytes_mut(at, len, flip)
    }

    /// Stores what a change that has failed had replaced at `at`. It is no access, and does not fail.
    fn put_back(&mut self, at: DevAddr, bytes: &[u8]) {
        // It was written before, so it is there.
        let _ = self.with_bytes_mut(at, bytes.len(), |into| into.copy_from_slice(bytes));
    }

    /// Makes a change of several accesses, of which nothing is left where it fails.
    ///
    /// # Errors
    ///
    /// That of the change.
    #[inline(always)]
    fn whole<R>(&mut self, change: impl FnOnce(&mut Self) -> Result<R, Status>) -> Result<R, Status>
    where
        Self: Sized,
    {
        self.begin();
        let done = change(self);
        if done.is_err() {
            self.undo();
        }
        done
    }

    /// The version of a part that nobody has locked; `None` where somebody has.
    ///
    /// # Errors
    ///
    /// [`MemoryFault::Yielded`], as of every access.
    #[inline(always)]
    fn version(&mut self, part: Part) -> Result<Option<u64>, MemoryFault> {
        let _ = part;
        Ok(Some(0))
    }

    /// Takes the lock of a part. Who has it may take it once more.
    ///
    /// # Errors
    ///
    /// Likewise.
    #[inline(always)]
    fn lock(&mut self, part: Part) -> Result<(), MemoryFault> {
        let _ = part;
        Ok(())
    }

    /// Gives it back, at the moment of the access before.
    #[inline(always)]
    fn unlock(&mut self, part: Part) {
        let _ = part;
    }

    /// Makes a change with the lock of a part.
    ///
    /// # Errors
    ///
    /// That of the change.
    #[inline(always)]
    fn locked<R>(
        &mut self,
        part: Part,
        change: impl FnOnce(&mut Self) -> Result<R, Status>,
    ) -> Result<R, Status>
    where
        Self: Sized,
    {
        self.lock(part)?;
        let done = change(self);
        self.unlock(part);
        done
    }

    /// Looks at a part as it is at one moment: up to [`LOOKS_MAX`] times beside writers, and then with
    /// the lock. What `look` does besides may happen as often, and counts only the last time.
    ///
    /// # Errors
    ///
    /// Those of `look`.
    #[inline(always)]
    fn consistent<R>(
        &mut self,
        part: Part,
        mut look: impl FnMut(&mut Self) -> Result<R, Status>,
    ) -> Result<R, Status>
    where
        Self: Sized,
    {
        if !Self::SHARED {
            return look(self);
        }
        for _ in 0..LOOKS_MAX {
            let Some(version) = self.version(part)? else {
                continue;
            };
            let seen = look(self);
            if self.version(part)? == Some(version) {
                return seen;
            }
        }
        self.locked(part, look)
    }

    /// Copies the `len` bytes at `at` to host memory at `iova`, by DMA. No access to device
    /// memory is open while host memory is reached: the bytes go through a buffer, piece by
    /// piece. A policy under which nothing else runs meanwhile may do it in one copy.
    ///
    /// # Errors
    ///
    /// [`Status::DmaFault`], when host memory cannot be written; a part may have been. What a
    /// [`MemoryFault`] stands for, when device memory cannot be read.
    fn send(
        &mut self,
        at: DevAddr,
        len: usize,
        host: &mut impl HostMemory,
        iova: u64,
    ) -> Result<(), Status> {
        let mut buffer = [0; PIECE_BYTES];
        let mut done = 0;
        while done < len {
            let piece = &mut buffer[..(len - done).min(PIECE_BYTES)];
            let from = at.offset(done as u64);
            self.with_bytes(from, piece.len(), |bytes| piece.copy_from_slice(bytes))?;
            let to = iova.checked_add(done as u64).ok_or(Status::DmaFault)?;
            host.write(to, piece)?;
            done += piece.len();
        }
        Ok(())
    }

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
    const SHARED: bool = A::SHARED;

    fn version(&mut self, part: Part) -> Result<Option<u64>, MemoryFault> {
        self.inner.version(part)
    }

    fn lock(&mut self, part: Part) -> Result<(), MemoryFault> {
        self.inner.lock(part)
    }

    fn unlock(&mut self, part: Part) {
        self.inner.unlock(part);
    }

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

    fn begin(&mut self) {
        self.inner.begin();
    }

    fn undo(&mut self) {
        self.inner.undo();
    }

    fn disturb(
        &mut self,
        at: DevAddr,
        len: usize,
        flip: impl FnOnce(&mut [u8]),
    ) -> Result<(), MemoryFault> {
        self.inner.disturb(at, len, flip)
    }

    fn put_back(&mut self, at: DevAddr, bytes: &[u8]) {
        self.inner.put_back(at, bytes);
    }

    fn send(
        &mut self,
        at: DevAddr,
        len: usize,
        host: &mut impl HostMemory,
        iova: u64,
    ) -> Result<(), Status> {
        self.counts.reads += 1;
        self.counts.read_bytes += len as u64;
        self.inner.send(at, len, host, iova)
    }
}
