//! A sequence of calls on a map as a program has it, or on the kernel's.

use super::file::ASLEEP;
use super::{KernelSide, Side};
use crate::error::{Measured, Unavailable};
use crate::mix::{CallOp, Sequence};
use offmap_bpf::{Errno, MapFile};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;

/// Calls that wake a device.
const WAKE: usize = 256;

/// A map that takes calls one by one.
pub trait Calls {
    /// Makes a call; the error number that it ends with.
    fn call(&mut self, op: CallOp, key: &[u8]) -> Result<(), Errno>;
}

/// An open map.
pub struct FileCalls {
    file: MapFile,
    value: Vec<u8>,
    next: Vec<u8>,
}

impl FileCalls {
    /// Over an open map.
    pub fn new(file: MapFile) -> Self {
        Self {
            value: vec![0x5a; file.value_bytes()],
            next: vec![0; file.key_size()],
            file,
        }
    }
}

impl Calls for FileCalls {
    #[inline]
    fn call(&mut self, op: CallOp, key: &[u8]) -> Result<(), Errno> {
        let done = match op {
            CallOp::Lookup => self.file.lookup(key, &mut self.value, 0),
            CallOp::Update | CallOp::Insert => self.file.update(key, &self.value, 0),
            CallOp::Delete => self.file.delete(key),
            CallOp::Next => self.file.get_next_key(Some(key), &mut self.next),
        };
        black_box(&self.value);
        done.map_err(|error| error.errno())
    }
}

impl Calls for KernelSide {
    #[inline]
    fn call(&mut self, op: CallOp, key: &[u8]) -> Result<(), Errno> {
        self.single(op, key).map_err(Errno)
    }
}

/// A map and the sequence that it runs through.
pub struct MixedSide<C> {
    map: C,
    sequence: Arc<Sequence>,
    sleeps: bool,
    /// How often calls ended with each error number, 0 for success, in the first run through the whole sequence.
    answers: BTreeMap<i32, u64>,
}

impl<C: Calls> MixedSide<C> {
    /// Stores the keys with which the sequence begins, and runs through it once, for the answers.
    ///
    /// # Errors
    ///
    /// When the map does not take them.
    pub fn new(mut map: C, sequence: &Arc<Sequence>, sleeps: bool) -> Measured<Self> {
        for n in 0..sequence.fill as u32 {
            map.call(CallOp::Update, sequence.key(n))
                .map_err(|errno| Unavailable::new(format!("filling the map: {errno:?}")))?;
        }
        let mut this = Self {
            map,
            sequence: Arc::clone(sequence),
            sleeps,
            answers: BTreeMap::new(),
        };
        for call in &sequence.calls {
            let answer = this.call(call.op, sequence.key(call.key))?;
            // Which key is the last is each map's own affair.
            if call.op != CallOp::Next {
                *this.answers.entry(answer).or_default() += 1;
            }
        }
        Ok(this)
    }

    /// Makes a call. A key that is not there and a map that is full are answers, and all else is a failure.
    #[inline]
    fn call(&mut self, op: CallOp, key: &[u8]) -> Measured<i32> {
        match self.map.call(op, key) {
            Ok(()) => Ok(0),
            Err(errno) if [Errno::ENOENT, Errno::E2BIG, Errno::ENOSPC].contains(&errno) => {
                Ok(errno.0)
            }
            Err(errno) => Err(Unavailable::new(format!("{op:?}: {errno:?}"))),
        }
    }
}

impl<C: Calls> Side for MixedSide<C> {
    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let sequence = Arc::clone(&self.sequence);
        let mut at = from % sequence.calls.len();
        for _ in 0..n {
            let call = sequence.calls[at];
            self.call(call.op, sequence.key(call.key))?;
            at += 1;
            if at == sequence.calls.len() {
                at = 0;
            }
        }
        Ok(n)
    }

    fn wake(&mut self) -> Measured<()> {
        if self.sleeps {
            // Lookups alone: what the map holds stays what it is.
            for n in 0..WAKE.min(self.sequence.fill) as u32 {
                let _ = self.map.call(CallOp::Lookup, self.sequence.key(n));
            }
        }
        Ok(())
    }

    fn rest(&mut self) {
        if self.sleeps {
            thread::sleep(ASLEEP);
        }
    }

    fn answers(&self) -> BTreeMap<i32, u64> {
        self.answers.clone()
    }
}
