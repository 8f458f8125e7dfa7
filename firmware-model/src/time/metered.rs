//! Commands whose accesses and DMA are charged to a meter.
//!
//! As with [`hook`](crate::hook), this is a copy of the code of its own to the compiler, so that commands without
//! a meter pay nothing.

use super::meter::Meter;
use crate::access::{Access, MemoryFault, Part};
use crate::dispatch::{Io, Position};
use crate::memory::DeviceMemory;
use crate::{Firmware, HostFault, HostMemory, Progress, Storage};
use core::cell::RefCell;
use offmap_abi::{Completion, CompletionWords, DevAddr, IoOpcode, RequestId, Status, Submission};

/// The meter, which both sides of a command charge. Neither does while the other is at it.
type Shared<'m> = RefCell<&'m mut Meter>;

/// The access policy that charges each access.
struct MeteredAccess<'a, 'm, A> {
    inner: &'a mut A,
    meter: &'a Shared<'m>,
}

impl<A> MeteredAccess<'_, '_, A> {
    #[inline(always)]
    fn charge(&self, at: DevAddr, len: usize) {
        if let Ok(mut meter) = self.meter.try_borrow_mut() {
            meter.table(at, len as u64);
        }
    }
}

impl<A: Access> Access for MeteredAccess<'_, '_, A> {
    const SHARED: bool = A::SHARED;

    #[inline(always)]
    fn version(&mut self, part: Part) -> Result<Option<u64>, MemoryFault> {
        self.inner.version(part)
    }

    #[inline(always)]
    fn lock(&mut self, part: Part) -> Result<(), MemoryFault> {
        self.inner.lock(part)
    }

    #[inline(always)]
    fn unlock(&mut self, part: Part) {
        self.inner.unlock(part);
    }

    #[inline(always)]
    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.charge(at, len);
        self.inner.with_bytes(at, len, f)
    }

    #[inline(always)]
    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        self.charge(at, len);
        self.inner.with_bytes_mut(at, len, f)
    }

    #[inline(always)]
    fn peek<R>(&mut self, at: DevAddr, len: usize, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.inner.peek(at, len, f)
    }

    #[inline(always)]
    fn prefetch(&mut self, at: DevAddr, len: u64) {
        self.inner.prefetch(at, len);
    }

    #[inline(always)]
    fn begin(&mut self) {
        self.inner.begin();
    }

    #[inline(always)]
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

    #[inline(always)]
    fn send(
        &mut self,
        at: DevAddr,
        len: usize,
        host: &mut impl HostMemory,
        iova: u64,
    ) -> Result<(), Status> {
        // The DMA is charged by the host memory that comes along.
        self.charge(at, len);
        self.inner.send(at, len, host, iova)
    }
}

/// Host memory whose DMA is charged, whether it succeeds or not.
struct MeteredHost<'a, 'm, H> {
    inner: &'a mut H,
    meter: &'a Shared<'m>,
}

impl<H: HostMemory> HostMemory for MeteredHost<'_, '_, H> {
    #[inline(always)]
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        if let Ok(mut meter) = self.meter.try_borrow_mut() {
            meter.payload_read(iova, into.len() as u64);
        }
        self.inner.read(iova, into)
    }

    #[inline(always)]
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        if let Ok(mut meter) = self.meter.try_borrow_mut() {
            meter.payload_write(iova, from.len() as u64);
        }
        self.inner.write(iova, from)
    }

    #[inline(always)]
    fn load_word(&mut self, iova: u64) -> Result<u64, HostFault> {
        if let Ok(mut meter) = self.meter.try_borrow_mut() {
            meter.payload_read(iova, 8);
        }
        self.inner.load_word(iova)
    }

    #[inline(always)]
    fn store_word(&mut self, iova: u64, word: u64) -> Result<(), HostFault> {
        if let Ok(mut meter) = self.meter.try_borrow_mut() {
            meter.payload_write(iova, 8);
        }
        self.inner.store_word(iova, word)
    }
}

impl<S: Storage> Firmware<S> {
    /// [`Firmware::io_to`], with `meter` charged for each access to device memory and each DMA. The caller charges
    /// what comes before and after: [`Meter::fetch`], [`Meter::complete`].
    #[inline]
    pub fn io_metered(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
        meter: &mut Meter,
        done: &mut CompletionWords,
    ) -> bool {
        if IoOpcode(command.opcode).is_batch() {
            let progress = if self.under_way.has(context) {
                Progress::Done(Completion::new(command.request(), Status::Internal))
            } else {
                self.batch_metered(context, command, Position::start(command), host, meter)
            };
            return match progress {
                Progress::Done(completion) => {
                    *done = completion.into();
                    true
                }
                Progress::More => false,
            };
        }
        let meter = &RefCell::new(meter);
        Io {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access: &mut MeteredAccess {
                inner: &mut self.memory,
                meter,
            },
            host: &mut MeteredHost { inner: host, meter },
        }
        .run(command, done);
        if self.holdings.has_released() {
            self.give_back();
        }
        true
    }

    /// [`Firmware::resume_io`], likewise.
    pub fn resume_io_metered(
        &mut self,
        context: u16,
        host: &mut impl HostMemory,
        meter: &mut Meter,
    ) -> Progress {
        match self.under_way.get(context) {
            Some((command, position)) => {
                self.batch_metered(context, &command, position, host, meter)
            }
            None => Progress::Done(Completion::new(RequestId(0), Status::Internal)),
        }
    }

    #[inline(never)]
    fn batch_metered(
        &mut self,
        context: u16,
        command: &Submission,
        from: Position,
        host: &mut impl HostMemory,
        meter: &mut Meter,
    ) -> Progress {
        let meter = &RefCell::new(meter);
        let step = Io::<MeteredAccess<'_, '_, DeviceMemory<S>>, _> {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access: &mut MeteredAccess {
                inner: &mut self.memory,
                meter,
            },
            host: &mut MeteredHost { inner: host, meter },
        }
        .run_batch(command, from);
        self.keep(context, command, step)
    }
}
