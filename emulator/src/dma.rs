//! The DMA engine: host memory as the device reaches it.
//!
//! The engine maps the pages that back a host buffer itself, from the buffer's file
//! descriptor, as a device in another process does; it never uses an address of the host
//! side. Every access is checked against what the host has mapped, and may span mappings that
//! are adjacent in IOVA space, because behind an IOMMU their border cannot be seen.
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

use offmap_device_io::{IoError, Iova, IovaRange, PAGE_BYTES};
use offmap_firmware_model::{HostFault, HostMemory};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

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

    /// Copies host memory to `into`. On a fault some of `into` may have been written.
    #[inline]
    pub fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        if let Some(slice) = self.hit(iova, into.len()) {
            slice.copy_to(into);
            return Ok(());
        }
        let mut at = iova;
        let mut rest = into;
        while !rest.is_empty() {
            let slice = self.miss(at, rest.len())?;
            let (here, after) = rest.split_at_mut(slice.len());
            slice.copy_to(here);
            at = at.wrapping_add(here.len() as u64);
            rest = after;
        }
        Ok(())
    }

    /// Copies `from` to host memory. On a fault some of it may have been copied.
    #[inline]
    pub fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), DmaFault> {
        if let Some(slice) = self.hit(iova, from.len()) {
            slice.copy_from(from);
            return Ok(());
        }
        let mut at = iova;
        let mut rest = from;
        while !rest.is_empty() {
            let slice = self.miss(at, rest.len())?;
            let (here, after) = rest.split_at(slice.len());
            slice.copy_from(here);
            at = at.wrapping_add(here.len() as u64);
            rest = after;
        }
        Ok(())
    }

    /// The memory of the range, if a recent translation covers it.
    #[inline]
    fn hit(&self, iova: u64, len: usize) -> Option<VolatileSlice<'_>> {
        for r in &self.recent {
            let offset = iova.wrapping_sub(r.iova);
            if offset < r.len && len as u64 <= r.len - offset {
                let memory = &self.mappings.get(r.index)?.memory;
                return memory.get_slice(offset as usize, len).ok();
            }
        }
        None
    }

    /// The memory at `iova`, up to `len` bytes of it: as many as its mapping holds, and never
    /// none for a `len` above zero.
    #[cold]
    fn miss(&mut self, iova: u64, len: usize) -> Result<VolatileSlice<'_>, DmaFault> {
        let index = self.find(iova)?;
        let m = &self.mappings[index];
        self.recent[self.victim] = Recent {
            iova: m.iova,
            len: m.len,
            index,
        };
        self.victim = (self.victim + 1) % RECENT;
        let offset = iova - m.iova;
        let here = (m.len - offset).min(len as u64);
        m.memory
            .get_slice(offset as usize, here as usize)
            .map_err(|_| DmaFault(Iova(iova)))
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

    /// The memory of `len` bytes at `offset` of the span.
    ///
    /// # Errors
    ///
    /// [`DmaFault`] when they are not mapped, lie across two mappings, or outside the span.
    #[inline]
    pub fn slice<'d>(
        &mut self,
        dma: &'d Dma,
        offset: u64,
        len: usize,
    ) -> Result<VolatileSlice<'d>, DmaFault> {
        if self.generation != dma.generation || offset.wrapping_sub(self.first) >= self.count {
            self.translate(dma, offset)?;
        }
        let fault = DmaFault(Iova(self.iova.wrapping_add(offset)));
        let within = offset - self.first;
        if len as u64 > self.count - within {
            return Err(fault);
        }
        let mapping = dma.mappings.get(self.index).ok_or(fault)?;
        mapping
            .memory
            .get_slice((self.base + within) as usize, len)
            .map_err(|_| fault)
    }

    /// Loads the aligned 8-byte word at `offset` of the span.
    #[inline]
    pub fn load(&mut self, dma: &Dma, offset: u64, order: Ordering) -> Result<u64, DmaFault> {
        let slice = self.slice(dma, offset, 8)?;
        Ok(word(&slice, 0, self.iova)?.load(order))
    }

    /// Stores the aligned 8-byte word at `offset` of the span.
    #[inline]
    pub fn store(
        &mut self,
        dma: &Dma,
        offset: u64,
        value: u64,
        order: Ordering,
    ) -> Result<(), DmaFault> {
        let slice = self.slice(dma, offset, 8)?;
        word(&slice, 0, self.iova)?.store(value, order);
        Ok(())
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

/// The atomic word at `offset` of a piece of host memory.
#[inline]
pub(crate) fn word<'s>(
    slice: &'s VolatileSlice<'_>,
    offset: usize,
    iova: u64,
) -> Result<&'s AtomicU64, DmaFault> {
    slice
        .get_atomic_ref(offset)
        .map_err(|_| DmaFault(Iova(iova)))
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
}
