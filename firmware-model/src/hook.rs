//! Accesses to device memory that somebody watches, or spoils.
//!
//! [`Firmware::io`] reaches memory directly. [`Firmware::io_hooked`] runs the same commands over
//! the same tables with a [`MemoryHook`] asked before each access. They are two copies of the
//! code to the compiler, so that the first pays nothing for the second.

use crate::access::{Access, MemoryFault, Part};
use crate::dispatch::{Io, Position};
use crate::memory::DeviceMemory;
use crate::{Firmware, HostMemory, Progress, Storage};
use alloc::vec::Vec;
use offmap_abi::{Completion, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission};

/// What becomes of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It takes place.
    Pass,
    /// It takes place, and these cells are wrong: they are before a read, and after a write. What
    /// comes of that is for the check code of the tier to say ([`crate::Ecc`]): without one a read finds
    /// them flipped.
    Flip(BitFlips),
    /// The memory's check code does not match, whatever it is: the command ends with
    /// [`Status::MediaError`].
    Media,
}

/// Neighbouring bits of an access that are flipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BitFlips {
    /// The first one, counted from bit 0 of the first byte.
    pub first: u64,
    /// How many, going round at the access's end.
    pub count: u32,
}

impl BitFlips {
    /// Flips them in `bytes`; without any bytes, nothing.
    pub fn apply(self, bytes: &mut [u8]) {
        let bits = bytes.len() as u64 * 8;
        if bits == 0 {
            return;
        }
        // More than all bits would flip some of them back.
        for n in 0..u64::from(self.count).min(bits) {
            let bit = (self.first % bits + n) % bits;
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }
}

/// Who is asked before each access to device memory.
pub trait MemoryHook {
    /// A read of `len` bytes at `at`.
    fn read(&mut self, at: DevAddr, len: usize) -> Verdict;
    /// A write of `len` bytes at `at`.
    fn write(&mut self, at: DevAddr, len: usize) -> Verdict;
}

/// The access policy that asks a hook.
struct Hooked<'a, A, K> {
    inner: &'a mut A,
    hook: &'a mut K,
    /// What the writes of the change at hand have replaced, the first one first. It is the firmware's
    /// own memory, which does not fail.
    replaced: Vec<(DevAddr, Vec<u8>)>,
}

impl<'a, A: Access, K: MemoryHook> Hooked<'a, A, K> {
    fn new(inner: &'a mut A, hook: &'a mut K) -> Self {
        Self {
            inner,
            hook,
            replaced: Vec::new(),
        }
    }

    /// Asks about a read, and does to memory what the answer says.
    fn before_read(&mut self, at: DevAddr, len: usize) -> Result<(), MemoryFault> {
        match self.hook.read(at, len) {
            Verdict::Pass => Ok(()),
            Verdict::Flip(flips) => self.inner.disturb(at, len, |b| flips.apply(b)),
            Verdict::Media => Err(MemoryFault::Media),
        }
    }
}

impl<A: Access, K: MemoryHook> Access for Hooked<'_, A, K> {
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
        self.before_read(at, len)?;
        self.inner.with_bytes(at, len, f)
    }

    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        let verdict = self.hook.write(at, len);
        if verdict == Verdict::Media {
            return Err(MemoryFault::Media);
        }
        let replaced = &mut self.replaced;
        let result = self.inner.with_bytes_mut(at, len, |bytes| {
            replaced.push((at, bytes.to_vec()));
            f(bytes)
        })?;
        if let Verdict::Flip(flips) = verdict {
            self.inner.disturb(at, len, |bytes| flips.apply(bytes))?;
        }
        Ok(result)
    }

    fn begin(&mut self) {
        self.replaced.clear();
    }

    fn undo(&mut self) {
        for (at, was) in self.replaced.drain(..).rev() {
            self.inner.put_back(at, &was);
        }
    }

    fn send(
        &mut self,
        at: DevAddr,
        len: usize,
        host: &mut impl HostMemory,
        iova: u64,
    ) -> Result<(), Status> {
        self.before_read(at, len)?;
        self.inner.send(at, len, host, iova)
    }
}

impl<S: Storage> Firmware<S> {
    /// [`Firmware::io`], with `hook` asked before each access to device memory.
    pub fn io_hooked(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
        hook: &mut impl MemoryHook,
    ) -> Progress {
        if IoOpcode(command.opcode).is_batch() {
            if self.under_way.has(context) {
                return Progress::Done(Completion::new(command.request(), Status::Internal));
            }
            return self.batch_hooked(context, command, Position::start(command), host, hook);
        }
        let mut access = Hooked::new(&mut self.memory, hook);
        let completion = Io::<Hooked<'_, DeviceMemory<S>, _>, _> {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access: &mut access,
            host,
        }
        .completion_of(command);
        // What fails has changed nothing.
        if !completion.status().is_success() {
            access.undo();
        }
        if self.holdings.has_released() {
            self.give_back();
        }
        Progress::Done(completion)
    }

    /// [`Firmware::resume_io`], with `hook` asked before each access to device memory.
    pub fn resume_io_hooked(
        &mut self,
        context: u16,
        host: &mut impl HostMemory,
        hook: &mut impl MemoryHook,
    ) -> Progress {
        match self.under_way.get(context) {
            Some((command, position)) => self.batch_hooked(context, &command, position, host, hook),
            None => Progress::Done(Completion::new(RequestId(0), Status::Internal)),
        }
    }

    fn batch_hooked(
        &mut self,
        context: u16,
        command: &Submission,
        from: Position,
        host: &mut impl HostMemory,
        hook: &mut impl MemoryHook,
    ) -> Progress {
        let access = &mut Hooked::new(&mut self.memory, hook);
        let step = Io::<Hooked<'_, DeviceMemory<S>, _>, _> {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access,
            host,
        }
        .run_batch(command, from);
        self.keep(context, command, step)
    }

    /// The UAPI `enum bpf_map_type` value of a live map.
    pub fn map_type(&self, map: MapHandle) -> Option<u32> {
        self.maps.get(map).ok().map(|map| map.spec.kind.uapi())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn flips_go_round_and_never_flip_back() {
        let mut bytes = vec![0; 2];
        BitFlips {
            first: 15,
            count: 2,
        }
        .apply(&mut bytes);
        assert_eq!(bytes, [0x01, 0x80]);
        BitFlips {
            first: u64::MAX,
            count: u32::MAX,
        }
        .apply(&mut bytes);
        assert_eq!(bytes, [0xfe, 0x7f]);
        BitFlips { first: 3, count: 1 }.apply(&mut []);
    }
}
