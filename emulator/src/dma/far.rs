//! Host memory that is not mapped here: each access is asked of the host.
//!
//! It is the way of ranges that the host gave no file for. Words that the host may access at the same
//! moment are one access of eight bytes each; an access is complete before the next one is asked for, so
//! that the ordering rules need nothing more.

use super::{Direction, Dma, DmaFault, ENTRY_WORDS};
use crate::entry;
use offmap_abi::submission::phase_of;
use offmap_device_io::{Iova, SharedWords};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Memory could not be reached: it is not there, or its owner does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable;

/// Memory that its owner reads and writes for the device.
pub trait FarMemory: Debug + Send + Sync {
    /// Reads the bytes from `iova` on. Returns when that is done; aligned 8 bytes are one access.
    ///
    /// # Errors
    ///
    /// [`Unreachable`].
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Unreachable>;

    /// Writes likewise.
    ///
    /// # Errors
    ///
    /// [`Unreachable`].
    fn write(&self, iova: u64, from: &[u8]) -> Result<(), Unreachable>;
}

impl Dma {
    /// From now on ranges without a file are reached by this, or, with `None`, not at all.
    pub fn set_far(&mut self, far: Option<Arc<dyn FarMemory>>) {
        self.far = far;
    }

    /// The memory at `iova`, where the host has it, and how many of up to `len` bytes are in one
    /// mapping; otherwise the fault that an access has met.
    #[cold]
    pub(super) fn far(
        &self,
        iova: u64,
        len: usize,
        direction: Direction,
        fault: DmaFault,
    ) -> Result<(FarWords<'_>, usize), DmaFault> {
        let (first, mapping) = self.mapping(iova)?;
        let far = self.far.as_deref().filter(|_| mapping.target.is_none());
        let memory = far.ok_or(fault)?;
        if !mapping.permission.allows(direction) {
            return Err(fault);
        }
        let room = mapping.len - (iova - first);
        Ok((FarWords { memory, iova }, room.min(len as u64) as usize))
    }

    /// The `len` bytes at `iova`, which lie in one mapping and are words.
    #[cold]
    pub(super) fn far_words(
        &self,
        iova: u64,
        len: usize,
        direction: Direction,
        fault: DmaFault,
    ) -> Result<FarWords<'_>, DmaFault> {
        let (words, room) = self.far(iova, len, direction, fault)?;
        match room == len && iova.is_multiple_of(8) {
            true => Ok(words),
            false => Err(fault),
        }
    }
}

/// Memory of the host, from an IOVA on.
#[derive(Debug)]
pub(super) struct FarWords<'d> {
    memory: &'d dyn FarMemory,
    iova: u64,
}

impl FarWords<'_> {
    fn at(&self, offset: usize) -> u64 {
        self.iova.wrapping_add(offset as u64)
    }

    fn fault(&self) -> DmaFault {
        DmaFault(Iova(self.iova))
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DmaFault> {
        let read = self.memory.read(self.at(offset), into);
        read.map_err(|Unreachable| self.fault())
    }

    pub(super) fn write(&self, offset: usize, from: &[u8]) -> Result<(), DmaFault> {
        let written = self.memory.write(self.at(offset), from);
        written.map_err(|Unreachable| self.fault())
    }

    /// As [`entry::load`], with the words after the first in one access.
    pub(super) fn load_entry(&self, phase: bool) -> Result<Option<[u64; ENTRY_WORDS]>, DmaFault> {
        let word0 = self.load(0, Ordering::Acquire)?;
        if phase_of(word0) != phase {
            return Ok(None);
        }
        let mut rest = [0; 8 * (ENTRY_WORDS - 1)];
        self.read(8, &mut rest)?;
        let mut words = [word0; ENTRY_WORDS];
        for (word, bytes) in words[1..].iter_mut().zip(rest.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Ok(Some(words))
    }

    /// As [`entry::store`], likewise.
    pub(super) fn store_entry(&self, words: &[u64; ENTRY_WORDS]) -> Result<(), DmaFault> {
        let mut rest = [0; 8 * (ENTRY_WORDS - 1)];
        for (bytes, word) in rest.as_chunks_mut().0.iter_mut().zip(&words[1..]) {
            *bytes = word.to_ne_bytes();
        }
        self.write(8, &rest)?;
        self.store(0, words[0], Ordering::Release)
    }

    /// As [`entry::store_part`].
    pub(super) fn store_part(
        &self,
        words: &[u64; ENTRY_WORDS],
        count: usize,
    ) -> Result<(), DmaFault> {
        entry::store_part(self, words, count)
    }
}

impl SharedWords for FarWords<'_> {
    type Fault = DmaFault;

    fn load(&self, offset: usize, _order: Ordering) -> Result<u64, DmaFault> {
        let mut word = [0; 8];
        self.read(offset, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn store(&self, offset: usize, value: u64, _order: Ordering) -> Result<(), DmaFault> {
        self.write(offset, &value.to_ne_bytes())
    }
}
