//! The emulator's DMA engine over loom's atomics: what `emulator/src/queue.rs` finds as
//! `crate::dma` when it is compiled into the litmus tests.
//!
//! Memory is a list of words; an IOVA is a byte offset in it. Each side has a handle of its own,
//! which can be made to break a rule ([`Weak`]) without a change to the code under test.

use crate::{entry, fence};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use offmap_device_io::{SharedLines, SharedWords};
use std::convert::Infallible;
use std::ops::Range;

pub(crate) const ENTRY_WORDS: usize = 8;
pub(crate) const ENTRY_BYTES: usize = 64;

/// No access fails here.
#[derive(Debug)]
pub(crate) struct DmaFault;

/// What a side does less than the rules ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weak {
    /// Words that it loads and stores without release or acquire, as byte offsets.
    pub(crate) relaxed: Range<usize>,
    /// It leaves full fences out.
    pub(crate) no_fence: bool,
    /// A word, and what a load of it says instead of what is there.
    pub(crate) believes: Option<(usize, u64)>,
}

/// One side's view of the shared memory.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    words: Arc<Vec<AtomicU64>>,
    weak: Weak,
}

impl Words {
    /// Zeroed memory.
    pub(crate) fn new(bytes: usize) -> Self {
        let words = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: Arc::new(words),
            weak: Weak::default(),
        }
    }

    /// The same memory, seen by a side that may break rules.
    pub(crate) fn seen_by(&self, weak: &Weak) -> Self {
        Self {
            words: Arc::clone(&self.words),
            weak: weak.clone(),
        }
    }

    fn order(&self, offset: usize, order: Ordering) -> Ordering {
        if self.weak.relaxed.contains(&offset) {
            Ordering::Relaxed
        } else {
            order
        }
    }
}

impl SharedWords for Words {
    type Fault = Infallible;

    fn load(&self, offset: usize, order: Ordering) -> Result<u64, Infallible> {
        let seen = self.words[offset / 8].load(self.order(offset, order));
        fence::side(self.weak.no_fence);
        Ok(match self.weak.believes {
            Some((at, value)) if at == offset => value,
            _ => seen,
        })
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), Infallible> {
        self.words[offset / 8].store(value, self.order(offset, order));
        fence::side(self.weak.no_fence);
        Ok(())
    }
}

/// A line of one side's view.
pub(crate) struct Line<'w> {
    words: &'w Words,
    at: usize,
}

impl SharedLines for Words {
    type Line<'w> = Line<'w>;

    fn line(&self, offset: usize) -> Result<Line<'_>, Infallible> {
        Ok(Line {
            words: self,
            at: offset,
        })
    }
}

impl SharedWords for Line<'_> {
    type Fault = Infallible;

    fn load(&self, offset: usize, order: Ordering) -> Result<u64, Infallible> {
        self.words.load(self.at + offset, order)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), Infallible> {
        self.words.store(self.at + offset, value, order)
    }
}

/// The engine.
#[derive(Debug)]
pub(crate) struct Dma(pub(crate) Words);

impl Dma {
    pub(crate) fn check(&self, iova: u64, len: u64) -> Result<(), DmaFault> {
        let bytes = self.0.words.len() as u64 * 8;
        let end = iova.checked_add(len).filter(|end| *end <= bytes);
        end.map(drop).ok_or(DmaFault)
    }
}

/// A piece of the memory from a byte offset on.
struct Piece<'d> {
    words: &'d Words,
    at: usize,
}

impl SharedWords for Piece<'_> {
    type Fault = DmaFault;

    fn load(&self, offset: usize, order: Ordering) -> Result<u64, DmaFault> {
        let Ok(word) = self.words.load(self.at + offset, order);
        Ok(word)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), DmaFault> {
        let Ok(()) = self.words.store(self.at + offset, value, order);
        Ok(())
    }
}

/// A ring or a notify block.
#[derive(Debug)]
pub(crate) struct Span {
    iova: u64,
}

impl Span {
    pub(crate) fn new(iova: u64, _len: u64) -> Self {
        Self { iova }
    }

    pub(crate) fn iova_of(&self, offset: u64) -> u64 {
        self.iova + offset
    }

    fn piece<'d>(&self, dma: &'d Dma, offset: u64) -> Piece<'d> {
        Piece {
            words: &dma.0,
            at: (self.iova + offset) as usize,
        }
    }

    pub(crate) fn load(&mut self, dma: &Dma, offset: u64) -> Result<u64, DmaFault> {
        self.piece(dma, offset).load(0, Ordering::Acquire)
    }

    pub(crate) fn load_near(&mut self, dma: &Dma, offset: u64) -> Option<u64> {
        self.load(dma, offset).ok()
    }

    pub(crate) fn store(&mut self, dma: &Dma, offset: u64, value: u64) -> Result<(), DmaFault> {
        self.piece(dma, offset).store(0, value, Ordering::Release)
    }

    pub(crate) fn load_entry(
        &mut self,
        dma: &Dma,
        offset: u64,
        phase: bool,
    ) -> Result<Option<[u64; ENTRY_WORDS]>, DmaFault> {
        entry::load(&self.piece(dma, offset), phase)
    }

    pub(crate) fn store_entry(
        &mut self,
        dma: &Dma,
        offset: u64,
        entry: &[u64; ENTRY_WORDS],
    ) -> Result<(), DmaFault> {
        entry::store(&self.piece(dma, offset), entry)
    }

    pub(crate) fn store_part(
        &mut self,
        dma: &Dma,
        offset: u64,
        entry: &[u64; ENTRY_WORDS],
        count: usize,
    ) -> Result<(), DmaFault> {
        entry::store_part(&self.piece(dma, offset), entry, count)
    }
}
