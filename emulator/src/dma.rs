//! The DMA engine: host memory as the device reaches it.
//!
//! The engine maps the pages that back a host buffer itself, from the buffer's file
//! descriptor, as a device in another process does; it never uses an address of the host
//! side. Every access is checked against what the host has mapped, and may span mappings that
//! are adjacent in IOVA space, because behind an IOMMU their border cannot be seen.
//!
//! There is one way to that memory. Bulk data passes `Dma::bulk`, and words that the host may
//! access at the same moment pass `Words::word`; whatever wants to see, delay or spoil the
//! device's accesses stands in these two.
//!
//! Translations are cached in two places: a [`Span`] per ring and notify block, and a few
//! recent ones for data. A *generation*, which changes with every map, unmap and change of the
//! bus-master permission, makes a stale translation visible in one comparison. Nothing here
//! hands out memory that outlives the borrow of the engine, so that an unmap, which needs the
//! engine exclusively, ends all access by construction.
//!
//! What the engine cannot defend itself against is a file that its owner shortens after
//! mapping it: an access past the new end raises SIGBUS. A
//! [`DmaBuffer`](offmap_device_io::DmaBuffer) never does that; a front end that takes
//! descriptors from another process must insist on sealed ones.
//!
//! Each [`Dma::map`] makes a mapping of its own in this process, also where several ranges
//! come from one file. Hosts with a few buffers of many pages do not notice; one that maps a
//! virtual machine's memory in thousands of pieces would run into the system's limit on
//! mappings, and get [`IoError::Os`].

use crate::entry;
use offmap_abi::submission::SUBMISSION_WORDS;
use offmap_device_io::{IoError, Iova, IovaRange, PAGE_BYTES, SharedWords};
use offmap_firmware_model::{HostFault, HostMemory};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Words of a ring entry: submissions and completions have equally many.
pub const ENTRY_WORDS: usize = SUBMISSION_WORDS;
/// Bytes of a ring entry.
pub const ENTRY_BYTES: usize = ENTRY_WORDS * 8;
const _: () = assert!(ENTRY_WORDS == offmap_abi::completion::COMPLETION_WORDS);

/// An access that the host has not permitted: an IOVA that is not mapped, or any while the
/// function may not master the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("DMA fault at {0:?}")]
pub struct DmaFault(pub Iova);

/// The IOVAs that the function can address: 48 bits, without the range that x86 hosts decode
/// as interrupt messages, as an IOMMU reports it.
pub const IOVA_RANGES: [IovaRange; 2] = [
    IovaRange {
        first: Iova(0),
        last: Iova(0xfedf_ffff),
    },
    IovaRange {
        first: Iova(0xfef0_0000),
        last: Iova((1 << 48) - 1),
    },
];

/// Host memory mapped at an IOVA.
#[derive(Debug)]
struct Mapping {
    iova: u64,
    len: u64,
    memory: MmapRegion<()>,
}

/// A recent translation: an IOVA range, and the mapping that holds all of it.
#[derive(Clone, Copy, Debug)]
struct Recent {
    iova: u64,
    len: u64,
    index: usize,
}

impl Recent {
    const NONE: Self = Self {
        iova: 0,
        len: 0,
        index: 0,
    };
}

/// A range of host memory inside one mapping.
#[derive(Clone, Copy, Debug)]
struct Piece {
    iova: u64,
    /// The mapping, and where in it the range starts.
    index: usize,
    offset: u64,
    len: usize,
}

/// A copy, seen from the device.
enum Bulk<'b> {
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

/// Recent translations kept: a batch command works on four arrays at a time.
const RECENT: usize = 4;

/// The DMA engine.
#[derive(Debug)]
pub struct Dma {
    /// Ascending by IOVA and disjoint.
    mappings: Vec<Mapping>,
    generation: u64,
    enabled: bool,
    recent: [Recent; RECENT],
    /// Which of `recent` is replaced next.
    victim: usize,
}

impl Default for Dma {
    fn default() -> Self {
        Self::new()
    }
}

impl Dma {
    /// An engine that can reach nothing, and may not master the bus.
    pub const fn new() -> Self {
        Self {
            mappings: Vec::new(),
            generation: 1,
            enabled: false,
            recent: [Recent::NONE; RECENT],
            victim: 0,
        }
    }

    /// Permits or forbids all access, as the bus-master bit and the power state say.
    pub fn set_enabled(&mut self, enabled: bool) {
        if self.enabled != enabled {
            self.enabled = enabled;
            self.invalidate();
        }
    }

    /// Lets the device reach `len` bytes at `offset` of `fd` at `iova`. The descriptor is
    /// duplicated.
    ///
    /// # Errors
    ///
    /// [`IoError::DmaMap`] when the range is empty, not made of whole pages, outside
    /// [`IOVA_RANGES`], overlaps a mapping, or is not wholly inside the file;
    /// [`IoError::Os`] when the pages cannot be mapped.
    pub fn map(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        iova: Iova,
        len: usize,
    ) -> Result<(), IoError> {
        let refuse = |why| Err(IoError::DmaMap { iova, len, why });
        let page = PAGE_BYTES as u64;
        let bytes = len as u64;
        if len == 0 {
            return refuse("the range is empty");
        }
        if !iova.0.is_multiple_of(page)
            || !bytes.is_multiple_of(page)
            || !offset.is_multiple_of(page)
        {
            return refuse("the range is not made of whole pages");
        }
        let Some(last) = iova.0.checked_add(bytes - 1) else {
            return refuse("the range wraps around the address space");
        };
        if !IOVA_RANGES
            .iter()
            .any(|r| r.first.0 <= iova.0 && last <= r.last.0)
        {
            return refuse("the function cannot address the range");
        }
        let at = self.mappings.partition_point(|m| m.iova < iova.0);
        let before = at.checked_sub(1).and_then(|i| self.mappings.get(i));
        if before.is_some_and(|m| iova.0 - m.iova < m.len)
            || self.mappings.get(at).is_some_and(|m| m.iova <= last)
        {
            return refuse("the range overlaps a mapping");
        }
        let file = File::from(
            fd.try_clone_to_owned()
                .map_err(|e| IoError::os("cannot duplicate the DMA descriptor", e))?,
        );
        // Past the end of the file an access would raise SIGBUS instead of a fault.
        let size = file
            .metadata()
            .map_err(|e| IoError::os("cannot size the DMA memory", e))?
            .len();
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return refuse("the range is not wholly inside the file");
        }
        let memory = MmapRegion::from_file(FileOffset::new(file, offset), len)
            .map_err(|e| IoError::os("cannot map the DMA memory", std::io::Error::other(e)))?;
        let mapping = Mapping {
            iova: iova.0,
            len: bytes,
            memory,
        };
        self.mappings.insert(at, mapping);
        self.invalidate();
        Ok(())
    }

    /// Takes away what [`Dma::map`] gave. No access follows.
    ///
    /// # Errors
    ///
    /// [`IoError::NotMapped`] unless the range is exactly one mapping.
    pub fn unmap(&mut self, iova: Iova, len: usize) -> Result<(), IoError> {
        let found = self
            .mappings
            .binary_search_by_key(&iova.0, |m| m.iova)
            .ok()
            .filter(|&i| self.mappings[i].len == len as u64);
        let Some(index) = found else {
            return Err(IoError::NotMapped { iova, len });
        };
        self.mappings.remove(index);
        self.invalidate();
        Ok(())
    }

    /// Whether the device may reach all of the range now.
    pub fn check(&self, iova: u64, len: u64) -> Result<(), DmaFault> {
        let mut at = iova;
        let mut left = len;
        while left > 0 {
            let index = self.find(at)?;
            let m = &self.mappings[index];
            let here = (m.len - (at - m.iova)).min(left);
            left -= here;
            if left > 0 {
                at = at.checked_add(here).ok_or(DmaFault(Iova(at)))?;
            }
        }
        Ok(())
    }

    /// No later load of a shared word passes an earlier store of one.
    #[inline(always)]
    pub(crate) fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }

    /// Copies host memory to `into`. On a fault some of `into` may have been written.
    #[inline]
    pub fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        if let Some(piece) = self.hit(iova, into.len()) {
            return self.bulk(piece, Bulk::Read(into));
        }
        let mut at = iova;
        let mut rest = into;
        while !rest.is_empty() {
            let piece = self.miss(at, rest.len())?;
            let (here, after) = rest.split_at_mut(piece.len);
            self.bulk(piece, Bulk::Read(here))?;
            at = at.wrapping_add(piece.len as u64);
            rest = after;
        }
        Ok(())
    }

    /// Copies `from` to host memory. On a fault some of it may have been copied.
    #[inline]
    pub fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), DmaFault> {
        if let Some(piece) = self.hit(iova, from.len()) {
            return self.bulk(piece, Bulk::Write(from));
        }
        let mut at = iova;
        let mut rest = from;
        while !rest.is_empty() {
            let piece = self.miss(at, rest.len())?;
            let (here, after) = rest.split_at(piece.len);
            self.bulk(piece, Bulk::Write(here))?;
            at = at.wrapping_add(piece.len as u64);
            rest = after;
        }
        Ok(())
    }

    /// Copies. All bulk data between device and host passes here.
    #[inline(always)]
    fn bulk(&self, piece: Piece, transfer: Bulk<'_>) -> Result<(), DmaFault> {
        let memory = self.memory(piece)?;
        match transfer {
            Bulk::Read(into) => {
                memory.copy_to(into);
            }
            Bulk::Write(from) => memory.copy_from(from),
        }
        Ok(())
    }

    /// The words of a piece.
    #[inline(always)]
    fn words(&self, piece: Piece) -> Result<Words<'_>, DmaFault> {
        let memory = self.memory(piece)?;
        Ok(Words {
            memory,
            iova: piece.iova,
        })
    }

    #[inline(always)]
    fn memory(&self, piece: Piece) -> Result<VolatileSlice<'_>, DmaFault> {
        let fault = DmaFault(Iova(piece.iova));
        let mapping = self.mappings.get(piece.index).ok_or(fault)?;
        mapping
            .memory
            .get_slice(piece.offset as usize, piece.len)
            .map_err(|_| fault)
    }

    /// The range, if a recent translation covers it.
    #[inline]
    fn hit(&self, iova: u64, len: usize) -> Option<Piece> {
        for r in &self.recent {
            let offset = iova.wrapping_sub(r.iova);
            if offset < r.len && len as u64 <= r.len - offset {
                return Some(Piece {
                    iova,
                    index: r.index,
                    offset,
                    len,
                });
            }
        }
        None
    }

    /// The range of up to `len` bytes at `iova`: as many as its mapping holds, and never none
    /// for a `len` above zero.
    #[cold]
    fn miss(&mut self, iova: u64, len: usize) -> Result<Piece, DmaFault> {
        let index = self.find(iova)?;
        let m = &self.mappings[index];
        self.recent[self.victim] = Recent {
            iova: m.iova,
            len: m.len,
            index,
        };
        self.victim = (self.victim + 1) % RECENT;
        let offset = iova - m.iova;
        Ok(Piece {
            iova,
            index,
            offset,
            len: (m.len - offset).min(len as u64) as usize,
        })
    }

    /// Index of the mapping that holds `iova`.
    fn find(&self, iova: u64) -> Result<usize, DmaFault> {
        let fault = DmaFault(Iova(iova));
        if !self.enabled {
            return Err(fault);
        }
        let index = self
            .mappings
            .partition_point(|m| m.iova <= iova)
            .checked_sub(1)
            .ok_or(fault)?;
        let m = &self.mappings[index];
        if iova - m.iova < m.len {
            Ok(index)
        } else {
            Err(fault)
        }
    }

    fn invalidate(&mut self) {
        self.generation += 1;
        self.recent = [Recent::NONE; RECENT];
    }
}

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
    /// The part of the span that lies in mapping `index`: from `first`, `count` bytes.
    first: u64,
    count: u64,
    index: usize,
    /// Where that part starts in the mapping.
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

    /// Where the `len` bytes at `offset` of the span are.
    ///
    /// # Errors
    ///
    /// [`DmaFault`], here and below, when they are not mapped, lie across two mappings, or
    /// outside the span.
    #[inline(always)]
    fn piece(&mut self, dma: &Dma, offset: u64, len: usize) -> Result<Piece, DmaFault> {
        if self.generation != dma.generation || offset.wrapping_sub(self.first) >= self.count {
            self.translate(dma, offset)?;
        }
        let iova = self.iova.wrapping_add(offset);
        let within = offset - self.first;
        if len as u64 > self.count - within {
            return Err(DmaFault(Iova(iova)));
        }
        Ok(Piece {
            iova,
            index: self.index,
            offset: self.base + within,
            len,
        })
    }

    /// Loads the aligned 8-byte word at `offset` of the span, with acquire.
    #[inline]
    pub fn load(&mut self, dma: &Dma, offset: u64) -> Result<u64, DmaFault> {
        let piece = self.piece(dma, offset, 8)?;
        dma.words(piece)?.load(0, Ordering::Acquire)
    }

    /// Stores the aligned 8-byte word at `offset` of the span, with release.
    #[inline]
    pub fn store(&mut self, dma: &Dma, offset: u64, value: u64) -> Result<(), DmaFault> {
        let piece = self.piece(dma, offset, 8)?;
        dma.words(piece)?.store(0, value, Ordering::Release)
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
        let piece = self.piece(dma, offset, ENTRY_BYTES)?;
        entry::load(&dma.words(piece)?, phase)
    }

    /// Stores a ring entry at `offset` of the span, word 0 last and with release (rule C1).
    #[inline(always)]
    pub fn store_entry(
        &mut self,
        dma: &Dma,
        offset: u64,
        entry: &[u64; ENTRY_WORDS],
    ) -> Result<(), DmaFault> {
        let piece = self.piece(dma, offset, ENTRY_BYTES)?;
        entry::store(&dma.words(piece)?, entry)
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
        let piece = self.piece(dma, offset, ENTRY_BYTES)?;
        entry::store_part(&dma.words(piece)?, entry, count)
    }

    #[cold]
    fn translate(&mut self, dma: &Dma, offset: u64) -> Result<(), DmaFault> {
        self.generation = 0;
        self.count = 0;
        let fault = DmaFault(Iova(self.iova.wrapping_add(offset)));
        if offset >= self.len {
            return Err(fault);
        }
        let iova = self.iova.checked_add(offset).ok_or(fault)?;
        let index = dma.find(iova)?;
        let m = &dma.mappings[index];
        // The part of the span inside the mapping, as offsets from the span's start.
        self.first = m.iova.saturating_sub(self.iova);
        self.base = self.iova.saturating_sub(m.iova);
        self.count = (self.len - self.first).min(m.len - self.base);
        self.index = index;
        self.generation = dma.generation;
        Ok(())
    }
}

/// The words of a piece of host memory.
struct Words<'d> {
    memory: VolatileSlice<'d>,
    iova: u64,
}

impl Words<'_> {
    /// The word at `offset` bytes. All words that device and host share are reached here.
    #[inline(always)]
    fn word(&self, offset: usize) -> Result<&AtomicU64, DmaFault> {
        self.memory
            .get_atomic_ref(offset)
            .map_err(|_| DmaFault(Iova(self.iova)))
    }
}

impl SharedWords for Words<'_> {
    type Fault = DmaFault;

    #[inline(always)]
    fn load(&self, offset: usize, order: Ordering) -> Result<u64, DmaFault> {
        Ok(self.word(offset)?.load(order))
    }

    #[inline(always)]
    fn store(&self, offset: usize, value: u64, order: Ordering) -> Result<(), DmaFault> {
        self.word(offset)?.store(value, order);
        Ok(())
    }

    #[inline(always)]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Host memory as the firmware sees it.
pub(crate) struct Host<'d>(pub(crate) &'d mut Dma);

impl HostMemory for Host<'_> {
    #[inline]
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        self.0.read(iova, into).map_err(|DmaFault(_)| HostFault)
    }

    #[inline]
    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        self.0.write(iova, from).map_err(|DmaFault(_)| HostFault)
    }

    fn load_word(&mut self, iova: u64) -> Result<u64, HostFault> {
        let word = Span::new(iova, 8).load(self.0, 0);
        word.map(u64::from_le).map_err(|DmaFault(_)| HostFault)
    }

    fn store_word(&mut self, iova: u64, word: u64) -> Result<(), HostFault> {
        Span::new(iova, 8)
            .store(self.0, 0, word.to_le())
            .map_err(|DmaFault(_)| HostFault)
    }
}
