//! The access policy that yields: one access at a turn.
//!
//! Firmware code is straight code, not a state machine, and here it is run access by access without
//! threads: an operation's accesses are kept in a [`Trace`]. At each turn the operation runs from its
//! start, its accesses are answered from the trace, and the first one that is not in it takes place and
//! ends up there; at the next, [`MemoryFault::Yielded`] makes it return, and what it returns is not
//! looked at. Tables and dispatch depend on nothing but what they read, so that each run comes to the
//! same place. Where one does not, because something beside device memory has changed (the map is
//! gone, say), what the runs before it have written is put back.
//!
//! An access that is longer than the memory is wide, or not aligned to it, takes a turn for each
//! piece, so that another engine finds it half done, as on hardware. So do DMA, a look at a version,
//! and taking a lock.

use super::locks::Locks;
use crate::access::{Access, MemoryFault, Part};
use crate::{HostFault, HostMemory};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use offmap_abi::DevAddr;

/// An access that has taken place, or a part of it.
#[derive(Debug)]
enum Event {
    Read {
        at: DevAddr,
        bytes: Vec<u8>,
        done: usize,
        fault: Option<MemoryFault>,
    },
    Write {
        at: DevAddr,
        /// What the bytes were when they were filled.
        input: Vec<u8>,
        bytes: Vec<u8>,
        replaced: Vec<u8>,
        fault: Option<MemoryFault>,
    },
    Version {
        part: Part,
        version: Option<u64>,
    },
    Lock(Part),
    Unlock(Part),
    Begin,
    Undo,
    HostRead {
        iova: u64,
        read: Result<Vec<u8>, HostFault>,
    },
    HostWrite {
        iova: u64,
        written: Result<(), HostFault>,
    },
    HostWord {
        iova: u64,
        word: Result<u64, HostFault>,
    },
}

/// The accesses of the operation that an engine is in.
#[derive(Debug, Default)]
pub(super) struct Trace {
    events: Vec<Event>,
    /// The event that comes next in this run.
    next: usize,
    /// Whether the turn's access is still to be had.
    turn: bool,
    yielded: bool,
    diverged: bool,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Run {
    /// At its end.
    Done,
    /// At an access that has to wait for the next turn.
    Yielded,
    /// At its end, sooner than the run before got.
    Short,
    /// At an access that is not the one that the run before made.
    Diverged,
}

impl Trace {
    /// The next run begins.
    pub(super) fn begin_turn(&mut self) {
        self.next = 0;
        self.turn = true;
        self.yielded = false;
        self.diverged = false;
    }

    pub(super) fn end_turn(&self) -> Run {
        match (self.diverged, self.yielded, self.is_known()) {
            (true, _, _) => Run::Diverged,
            (_, true, _) => Run::Yielded,
            (_, _, true) => Run::Short,
            _ => Run::Done,
        }
    }

    /// Forgets the operation.
    pub(super) fn clear(&mut self) {
        self.events.clear();
    }

    /// Puts back what the accesses since [`Access::begin`] have replaced, or all accesses of the
    /// operation where there was none, at the moment of the access before.
    pub(super) fn roll_back(&self, memory: &mut impl Access) {
        let is_begin = |event: &&Event| matches!(event, Event::Begin | Event::Undo);
        let change = self
            .events
            .iter()
            .rev()
            .take_while(|event| !is_begin(event));
        for event in change {
            if let Event::Write { at, replaced, .. } = event {
                // It was written before, so it is there.
                let _ = memory.with_bytes_mut(*at, replaced.len(), |b| b.copy_from_slice(replaced));
            }
        }
    }

    /// Whether the event that comes next has been there in an earlier turn.
    fn is_known(&self) -> bool {
        self.next < self.events.len()
    }

    /// The access of this turn, if it is still to be had.
    fn take_turn(&mut self) -> Result<(), MemoryFault> {
        if self.yielded || !core::mem::take(&mut self.turn) {
            self.yielded = true;
            return Err(MemoryFault::Yielded);
        }
        Ok(())
    }

    fn diverge(&mut self) -> MemoryFault {
        self.diverged = true;
        self.yielded = true;
        MemoryFault::Yielded
    }
}

/// Device memory and the lock unit as one engine reaches them in its turn.
pub(super) struct Stepped<'a, A> {
    pub(super) memory: &'a mut A,
    pub(super) locks: &'a mut Locks,
    pub(super) trace: &'a RefCell<Trace>,
    pub(super) engine: u32,
    /// Bytes that one access moves, a power of two from 8 on.
    pub(super) width: usize,
}

/// The length of the piece of an access at `at` that begins `done` bytes into it.
fn piece(at: DevAddr, done: usize, len: usize, width: usize) -> usize {
    let start = at.0.wrapping_add(done as u64) as usize % width;
    (width - start).min(len - done)
}

impl<A: Access> Access for Stepped<'_, A> {
    const SHARED: bool = true;

    fn with_bytes<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, MemoryFault> {
        if len == 0 {
            return Ok(f(&[]));
        }
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return Err(MemoryFault::Yielded);
        }
        if !trace.is_known() {
            trace.events.push(Event::Read {
                at,
                bytes: vec![0; len],
                done: 0,
                fault: None,
            });
        }
        loop {
            let index = trace.next;
            match trace.events.get(index) {
                Some(Event::Read {
                    at: known, bytes, ..
                }) if *known == at && bytes.len() == len => {}
                _ => return Err(trace.diverge()),
            }
            if let Some(Event::Read {
                bytes, done, fault, ..
            }) = trace.events.get(index)
                && (*done == len || fault.is_some())
            {
                trace.next += 1;
                return match fault {
                    Some(fault) => Err(*fault),
                    None => Ok(f(bytes)),
                };
            }
            trace.take_turn()?;
            if let Some(Event::Read {
                bytes, done, fault, ..
            }) = trace.events.get_mut(index)
            {
                let size = piece(at, *done, len, self.width);
                let into = bytes.get_mut(*done..*done + size).unwrap_or_default();
                let from = at.offset(*done as u64);
                let read = self
                    .memory
                    .with_bytes(from, size, |from| into.copy_from_slice(from));
                *fault = read.err();
                *done += size;
            }
        }
    }

    fn with_bytes_mut<R>(
        &mut self,
        at: DevAddr,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        if len == 0 {
            return Ok(f(&mut []));
        }
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return Err(MemoryFault::Yielded);
        }
        let index = trace.next;
        let whole = piece(at, 0, len, self.width) == len;
        if !trace.is_known() {
            // Its first piece takes place now: what is there may be changed at that moment.
            trace.take_turn()?;
            let mut input = vec![0; len];
            let present = whole.then(|| {
                self.memory
                    .with_bytes(at, len, |bytes| input.copy_from_slice(bytes))
            });
            let mut bytes = input.clone();
            let filled = f(&mut bytes);
            let mut event = Event::Write {
                at,
                input,
                bytes,
                replaced: Vec::new(),
                fault: present.and_then(Result::err),
            };
            let ended = self.write_piece(&mut event, len);
            trace.events.push(event);
            return match ended {
                Ok(true) => {
                    trace.next += 1;
                    Ok(filled)
                }
                Ok(false) => {
                    trace.yielded = true;
                    Err(MemoryFault::Yielded)
                }
                Err(fault) => {
                    trace.next += 1;
                    Err(fault)
                }
            };
        }
        let done = match trace.events.get(index) {
            Some(Event::Write {
                at: known,
                bytes,
                replaced,
                fault,
                ..
            }) if *known == at && bytes.len() == len => replaced.len() == len || fault.is_some(),
            _ => return Err(trace.diverge()),
        };
        if !done {
            trace.take_turn()?;
            if let Some(event) = trace.events.get_mut(index)
                && self.write_piece(event, len) == Ok(false)
            {
                trace.yielded = true;
                return Err(MemoryFault::Yielded);
            }
        }
        trace.next += 1;
        match trace.events.get(index) {
            Some(Event::Write {
                input, fault: None, ..
            }) => Ok(f(&mut input.clone())),
            Some(Event::Write {
                fault: Some(fault), ..
            }) => Err(*fault),
            _ => Err(trace.diverge()),
        }
    }

    fn version(&mut self, part: Part) -> Result<Option<u64>, MemoryFault> {
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return Err(MemoryFault::Yielded);
        }
        if !trace.is_known() {
            trace.take_turn()?;
            let version = self.locks.version(part);
            trace.events.push(Event::Version { part, version });
        }
        match trace.events.get(trace.next) {
            Some(Event::Version {
                part: known,
                version,
            }) if *known == part => {
                trace.next += 1;
                Ok(*version)
            }
            _ => Err(trace.diverge()),
        }
    }

    fn lock(&mut self, part: Part) -> Result<(), MemoryFault> {
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return Err(MemoryFault::Yielded);
        }
        if !trace.is_known() {
            trace.take_turn()?;
            if !self.locks.lock(self.engine, part) {
                trace.yielded = true;
                return Err(MemoryFault::Yielded);
            }
            trace.events.push(Event::Lock(part));
        }
        match trace.events.get(trace.next) {
            Some(Event::Lock(known)) if *known == part => {
                trace.next += 1;
                Ok(())
            }
            _ => Err(trace.diverge()),
        }
    }

    fn unlock(&mut self, part: Part) {
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return;
        }
        if !trace.is_known() {
            self.locks.unlock(self.engine, part);
            trace.events.push(Event::Unlock(part));
        }
        match trace.events.get(trace.next) {
            Some(Event::Unlock(known)) if *known == part => trace.next += 1,
            _ => {
                trace.diverge();
            }
        }
    }

    fn begin(&mut self) {
        self.mark(Event::Begin);
    }

    fn undo(&mut self) {
        {
            let trace = self.trace.borrow();
            if trace.yielded {
                return;
            }
            if trace.is_known() {
                // A run that ends before the one before it got is no end of the operation.
                if matches!(trace.events.get(trace.next), Some(Event::Undo)) {
                    drop(trace);
                    self.mark(Event::Undo);
                }
                return;
            }
            trace.roll_back(self.memory);
        }
        self.mark(Event::Undo);
    }
}

impl<A: Access> Stepped<'_, A> {
    /// Does the next piece of a write; whether it was the last.
    fn write_piece(&mut self, event: &mut Event, len: usize) -> Result<bool, MemoryFault> {
        let Event::Write {
            at,
            bytes,
            replaced,
            fault,
            ..
        } = event
        else {
            return Ok(true);
        };
        if let Some(fault) = fault {
            return Err(*fault);
        }
        let done = replaced.len();
        let size = piece(*at, done, len, self.width);
        let from = bytes.get(done..done + size).unwrap_or_default();
        let written = self
            .memory
            .with_bytes_mut(at.offset(done as u64), size, |into| {
                replaced.extend_from_slice(into);
                into.copy_from_slice(from);
            });
        if let Err(cause) = written {
            *fault = Some(cause);
            return Err(cause);
        }
        Ok(replaced.len() == len)
    }

    /// An event that is no access.
    fn mark(&mut self, event: Event) {
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return;
        }
        if !trace.is_known() {
            trace.events.push(event);
            trace.next += 1;
            return;
        }
        let known = trace.events.get(trace.next);
        let same = matches!(
            (known, &event),
            (Some(Event::Begin), Event::Begin) | (Some(Event::Undo), Event::Undo)
        );
        match same {
            true => trace.next += 1,
            false => {
                trace.diverge();
            }
        }
    }
}

/// Host memory, likewise: each DMA takes a turn.
pub(super) struct SteppedHost<'a, H> {
    pub(super) host: &'a mut H,
    pub(super) trace: &'a RefCell<Trace>,
}

impl<H: HostMemory> SteppedHost<'_, H> {
    fn event(&mut self, make: impl FnOnce(&mut H) -> Event) -> Result<(), HostFault> {
        let trace = &mut *self.trace.borrow_mut();
        if trace.yielded {
            return Err(HostFault);
        }
        if !trace.is_known() {
            trace.take_turn().map_err(|_| HostFault)?;
            let event = make(self.host);
            trace.events.push(event);
        }
        Ok(())
    }
}

impl<H: HostMemory> HostMemory for SteppedHost<'_, H> {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let len = into.len();
        self.event(|host| {
            let mut bytes = vec![0; len];
            let read = host.read(iova, &mut bytes).map(|()| bytes);
            Event::HostRead { iova, read }
        })?;
        let trace = &mut *self.trace.borrow_mut();
        match trace.events.get(trace.next) {
            Some(Event::HostRead { iova: known, read }) if *known == iova => {
                match read {
                    Ok(bytes) if bytes.len() == len => into.copy_from_slice(bytes),
                    Ok(_) => {
                        trace.diverge();
                        return Err(HostFault);
                    }
                    Err(HostFault) => {
                        trace.next += 1;
                        return Err(HostFault);
                    }
                }
                trace.next += 1;
                Ok(())
            }
            _ => {
                trace.diverge();
                Err(HostFault)
            }
        }
    }

    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        self.event(|host| Event::HostWrite {
            iova,
            written: host.write(iova, from),
        })?;
        let trace = &mut *self.trace.borrow_mut();
        match trace.events.get(trace.next) {
            Some(Event::HostWrite {
                iova: known,
                written,
            }) if *known == iova => {
                trace.next += 1;
                *written
            }
            _ => {
                trace.diverge();
                Err(HostFault)
            }
        }
    }

    fn load_word(&mut self, iova: u64) -> Result<u64, HostFault> {
        self.event(|host| Event::HostWord {
            iova,
            word: host.load_word(iova),
        })?;
        let trace = &mut *self.trace.borrow_mut();
        match trace.events.get(trace.next) {
            Some(Event::HostWord { iova: known, word }) if *known == iova => {
                trace.next += 1;
                *word
            }
            _ => {
                trace.diverge();
                Err(HostFault)
            }
        }
    }
}
