//! Memory that the device keeps returning to, with its translation.

use super::far::FarWords;
use super::{Direction, Dma, DmaFault, ENTRY_BYTES, ENTRY_WORDS, Permission, Piece};
use crate::entry;
use offmap_device_io::{Iova, SharedWords};
use std::sync::atomic::Ordering;

/// A range of host memory that the device keeps returning to, a ring or a notify block, with
/// its translation.
///
/// The range may lie across several mappings; the span remembers the one used last.
#[derive(Debug)]
pub struct Span {
    iova: u64,
    len: u64,
    /// [`Dma::generation`] for which the fields below hold; 0: none.
    generation: u64,
    /// The part of the span that lies in one mapping, of backing `index`: from `first`,
    /// `count` bytes.
    first: u64,
    count: u64,
    index: usize,
    /// Where that part starts in the backing.
    base: u64,
}

impl Span {
    /// The range of `len` bytes at `iova`; whether it is mapped shows at each access.
    pub const fn new(iova: u64, len: u64) -> Self {
        Self {
            iova,
            len,
            generation: 0,
            first: 0,
            count: 0,
            index: 0,
            base: 0,
        }
    }

    /// The address of the byte at `offset`.
    #[inline(always)]
    pub(crate) fn iova_of(&self, offset: u64) -> u64 {
        self.iova.wrapping_add(offset)
    }

    /// Where the `len` bytes at `offset` of the span are.
    ///
    /// # Errors
    ///
    /// [`DmaFault`], here and below, when they are not mapped, lie across two mappings, or
    /// outside the span.
    #[inline(always)]
    fn piece(
        &mut self,
        dma: &Dma,
        offset: u64,
        len: usize,
        direction: Direction,
    ) -> Result<Piece, DmaFault> {
        if self.generation != dma.generation || !self.covers(offset, len) {
            self.translate(dma, offset, len, direction)?;
        }
        Ok(Piece {
            iova: self.iova.wrapping_add(offset),
            index: self.index,
            offset: self.base + (offset - self.first),
            len,
        })
    }

    /// Whether the translation is one of all the bytes.
    #[inline(always)]
    fn covers(&self, offset: u64, len: usize) -> bool {
        let (end, wrapped) = offset.wrapping_sub(self.first).overflowing_add(len as u64);
        !wrapped && end <= self.count
    }

    /// Loads the aligned 8-byte word at `offset` of the span, with acquire.
    #[inline]
    pub fn load(&mut self, dma: &Dma, offset: u64) -> Result<u64, DmaFault> {
        match self.piece(dma, offset, 8, Direction::Read) {
            Ok(piece) => dma.words(piece)?.load(0, Ordering::Acquire),
            Err(fault) => self
                .far(dma, offset, 8, Direction::Read, fault)?
                .load(0, Ordering::Acquire),
        }
    }

    /// As [`Span::load`], without a message to anyone: `None` where the word is not mapped here.
    pub(crate) fn load_near(&mut self, dma: &Dma, offset: u64) -> Option<u64> {
        let piece = self.piece(dma, offset, 8, Direction::Read).ok()?;
        let words = dma.words(piece).ok()?;
        words.load(0, Ordering::Acquire).ok()
    }

    /// Stores the aligned 8-byte word at `offset` of the span, with release.
    #[inline]
    pub fn store(&mut self, dma: &Dma, offset: u64, value: u64) -> Result<(), DmaFault> {
        match self.piece(dma, offset, 8, Direction::Write) {
            Ok(piece) => dma.words(piece)?.store(0, value, Ordering::Release),
            Err(fault) => {
                let far = self.far(dma, offset, 8, Direction::Write, fault)?;
                far.store(0, value, Ordering::Release)
            }
        }
    }

    /// Loads the ring entry at `offset` of the span if its phase is `phase`: word 0 once, with
    /// acquire, and the others only after it showed that phase (rules S1, S3).
    #[inline(always)]
    pub fn load_entry(
        &mut self,
        dma: &Dma,
        offset: u64,
        phase: bool,
    ) -> Result<Option<[u64; ENTRY_WORDS]>, DmaFault> {
        match self.piece(dma, offset, ENTRY_BYTES, Direction::Read) {
            Ok(piece) => entry::load(&dma.words(piece)?, phase),
            Err(fault) => {
                let far = self.far(dma, offset, ENTRY_BYTES, Direction::Read, fault)?;
                far.load_entry(phase)
            }
        }
    }

    /// Stores a ring entry at `offset` of the span, word 0 last and with release (rule C1).
    #[inline(always)]
    pub fn store_entry(
        &mut self,
        dma: &Dma,
        offset: u64,
        entry: &[u64; ENTRY_WORDS],
    ) -> Result<(), DmaFault> {
        match self.piece(dma, offset, ENTRY_BYTES, Direction::Write) {
            Ok(piece) => entry::store(&dma.words(piece)?, entry),
            Err(fault) => {
                let far = self.far(dma, offset, ENTRY_BYTES, Direction::Write, fault)?;
                far.store_entry(entry)
            }
        }
    }

    /// Stores the first `count` words of a ring entry in the order in which
    /// [`Span::store_entry`] stores them: words 1 to 7, then word 0. What is left out keeps what
    /// it was: an entry that did not arrive whole.
    #[cold]
    pub(crate) fn store_part(
        &mut self,
        dma: &Dma,
        offset: u64,
        entry: &[u64; ENTRY_WORDS],
        count: usize,
    ) -> Result<(), DmaFault> {
        match self.piece(dma, offset, ENTRY_BYTES, Direction::Write) {
            Ok(piece) => entry::store_part(&dma.words(piece)?, entry, count),
            Err(fault) => {
                let far = self.far(dma, offset, ENTRY_BYTES, Direction::Write, fault)?;
                far.store_part(entry, count)
            }
        }
    }

    /// Where the bytes are when they are in no file.
    #[cold]
    fn far<'d>(
        &self,
        dma: &'d Dma,
        offset: u64,
        len: usize,
        direction: Direction,
        fault: DmaFault,
    ) -> Result<FarWords<'d>, DmaFault> {
        let end = offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.len);
        let iova = end
            .and_then(|_| self.iova.checked_add(offset))
            .ok_or(fault)?;
        dma.far_words(iova, len, direction, fault)
    }

    #[cold]
    fn translate(
        &mut self,
        dma: &Dma,
        offset: u64,
        len: usize,
        direction: Direction,
    ) -> Result<(), DmaFault> {
        self.generation = 0;
        self.count = 0;
        let fault = DmaFault(Iova(self.iova.wrapping_add(offset)));
        if offset >= self.len {
            return Err(fault);
        }
        let iova = self.iova.checked_add(offset).ok_or(fault)?;
        let (first, m) = dma.find_mapping(iova)?;
        if !m.permission.allows(direction) {
            return Err(fault);
        }
        // The part of the span inside the mapping, as offsets from the span's start.
        let before = self.iova.saturating_sub(first);
        self.first = first.saturating_sub(self.iova);
        self.base = m.offset + before;
        self.count = (self.len - self.first).min(m.len - before);
        self.index = m.index;
        if !self.covers(offset, len) {
            return Err(fault);
        }
        // Who looks at the generation next asks for no direction: what is not for both is
        // looked up each time.
        if m.permission == Permission::READ_WRITE {
            self.generation = dma.generation;
        }
        Ok(())
    }
}
