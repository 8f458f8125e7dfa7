//! The DMA engine: host memory as the device reaches it.
//!
//! The engine maps the pages that back a host buffer itself, from the buffer's file
//! descriptor, as a device in another process does; it never uses an address of the host
//! side. Every access is checked against what the host has mapped, and may span mappings that
//! are adjacent in IOVA space, because behind an IOMMU their border cannot be seen.
//!
//! There is one way to that memory, other than to ranges that came without a file ([`FarMemory`]). Bulk data passes `Dma::bulk`, and words that the host may
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
//! A file is mapped into this process by windows of [`WINDOW_BYTES`], each once, however many ranges of it
//! the host maps for the device: a virtual machine behind an IOMMU maps its memory page by page, and the
//! system allows a process some 65,000 mappings. A range across several windows gets one mapping of all of
//! them. So a file takes address space where the host uses it, and not for its length. IOVAs are entries of a
//! table, at most [`MAPPINGS_MAX`]; [`BACKINGS_MAX`] and [`ADDRESS_SPACE_MAX`] bound the rest, so that a
//! host cannot leave this process without address space.

mod far;
mod span;

pub use far::{FarMemory, Unreachable};
use offmap_abi::submission::SUBMISSION_WORDS;
use offmap_device_io::{IoError, Iova, IovaRange, PAGE_BYTES, SharedWords};
use offmap_firmware_model::{HostFault, HostMemory};
pub use span::Span;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Most mappings at a time.
pub const MAPPINGS_MAX: usize = 1 << 20;
/// Why a map is refused ([`IoError::DmaMap`]) whose range is in use.
pub const OVERLAP: &str = "the range overlaps a mapping";
/// Why a map is refused beyond [`MAPPINGS_MAX`].
pub const TOO_MANY: &str = "there are 1,048,576 mappings already";
/// Bytes of a file that are mapped together; a power of two.
pub const WINDOW_BYTES: u64 = 1 << 30;
/// Most windows, or runs of them, at a time: half of the mappings that Linux allows a process.
pub const BACKINGS_MAX: usize = 32_768;
/// Why a map is refused beyond [`BACKINGS_MAX`].
pub const TOO_MANY_FILES: &str =
    "32,768 files, or pieces of 1 GiB of files, are mapped already; give memory in fewer files";
/// Most address space that host memory may take, in bytes: an eighth of what a process has.
pub const ADDRESS_SPACE_MAX: u64 = 1 << 44;
/// Why a map is refused beyond [`ADDRESS_SPACE_MAX`].
pub const TOO_MUCH: &str = "16 TiB of files are mapped already, counted in pieces of 1 GiB; map ranges that lie closer in their files";

/// What the device may do with a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permission {
    /// It may read.
    pub read: bool,
    /// It may write.
    pub write: bool,
}

impl Permission {
    /// Both.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };

    const fn allows(self, direction: Direction) -> bool {
        match direction {
            Direction::Read => self.read,
            Direction::Write => self.write,
        }
    }
}

/// Which way an access goes, seen from the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Read,
    Write,
}

/// Some windows of a file of the host, mapped once for all ranges in them that have the same protection.
///
/// Its size is a power of two: each access finds one by its index.
#[derive(Debug)]
#[repr(align(64))]
struct Backing {
    id: BackingId,
    key: RunKey,
    memory: MmapRegion<()>,
    /// Entries of the table that lead here.
    users: usize,
}

/// Says which backing, where its place in the list of them may change; never used again.
type BackingId = u64;

/// Windows of a file that are mapped as one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RunKey {
    /// Device and inode number of the file.
    file: (u64, u64),
    /// Mapped to be written.
    write: bool,
    /// The first window, and the last one.
    windows: (u64, u64),
}

/// Host memory mapped at an IOVA.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    len: u64,
    permission: Permission,
    /// The backing, and where in it the memory starts; `None`: the host gave no file with it.
    target: Option<(BackingId, u64)>,
}

/// A part of a mapping: the place of the backing, where the part starts in it, its length, and
/// what the device may do with it.
#[derive(Clone, Copy, Debug)]
struct Found {
    index: usize,
    offset: u64,
    len: u64,
    permission: Permission,
}

/// A recent translation: an IOVA range that is mapped to be read and written, and the backing
/// that holds all of it.
#[derive(Clone, Copy, Debug)]
struct Recent {
    iova: u64,
    len: u64,
    /// The place of the backing, and where in it the range starts.
    index: usize,
    base: u64,
}

impl Recent {
    const NONE: Self = Self {
        iova: 0,
        len: 0,
        index: 0,
        base: 0,
    };
}

/// A range of host memory inside one backing.
#[derive(Clone, Copy, Debug)]
struct Piece {
    iova: u64,
    /// The backing, and where in it the range starts.
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
    /// By their first IOVA; disjoint.
    mappings: BTreeMap<u64, Mapping>,
    /// The files behind them. A place holds another one after one has gone, which a
    /// translation outlives as little as the mapping.
    backings: Vec<Backing>,
    /// The places of the backings.
    places: BTreeMap<BackingId, usize>,
    /// The backing that serves new mappings of a run of windows.
    by_file: BTreeMap<RunKey, BackingId>,
    /// Bytes of address space that the backings take.
    address_space: u64,
    /// The id of the next backing.
    next_id: BackingId,
    generation: u64,
    enabled: bool,
    /// How ranges without a file are reached; `None`: not at all, every access is a fault.
    far: Option<Arc<dyn FarMemory>>,
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
            mappings: BTreeMap::new(),
            backings: Vec::new(),
            places: BTreeMap::new(),
            by_file: BTreeMap::new(),
            address_space: 0,
            next_id: 0,
            generation: 1,
            enabled: false,
            far: None,
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

    /// Lets the device read and write `len` bytes at `offset` of `fd` at `iova`. The descriptor
    /// is duplicated.
    ///
    /// # Errors
    ///
    /// [`IoError::DmaMap`] when the range is empty, not made of whole pages, outside
    /// [`IOVA_RANGES`], overlaps a mapping, or is not wholly inside the file, and beyond
    /// [`MAPPINGS_MAX`], [`BACKINGS_MAX`] and [`ADDRESS_SPACE_MAX`]; [`IoError::Os`] when the pages cannot
    /// be mapped.
    pub fn map(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        iova: Iova,
        len: usize,
    ) -> Result<(), IoError> {
        self.map_as(Some((fd, offset)), iova, len, Permission::READ_WRITE)
    }

    /// As [`Dma::map`], with what the device may do there. Without a file the range is reached
    /// by the [`FarMemory`] of [`Dma::set_far`], and without that every access is a fault.
    ///
    /// # Errors
    ///
    /// As [`Dma::map`].
    pub fn map_as(
        &mut self,
        file: Option<(BorrowedFd<'_>, u64)>,
        iova: Iova,
        len: usize,
        permission: Permission,
    ) -> Result<(), IoError> {
        let refuse = |why| Err(IoError::DmaMap { iova, len, why });
        let page = PAGE_BYTES as u64;
        let bytes = len as u64;
        let offset = file.map_or(0, |(_, offset)| offset);
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
        // Mappings are disjoint: the last one that starts in the range or before it ends last.
        let before = self.mappings.range(..=last).next_back();
        if before.is_some_and(|(first, m)| first + (m.len - 1) >= iova.0) {
            return refuse(OVERLAP);
        }
        if self.mappings.len() >= MAPPINGS_MAX {
            return refuse(TOO_MANY);
        }
        let target = match file {
            Some((fd, offset)) if permission.read || permission.write => {
                Some(self.backing(fd, offset, iova, len, permission)?)
            }
            _ => None,
        };
        let mapping = Mapping {
            len: bytes,
            permission,
            target,
        };
        self.mappings.insert(iova.0, mapping);
        self.invalidate();
        Ok(())
    }

    /// The backing for a range of a file, with one user more, and where in it the range starts.
    fn backing(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        iova: Iova,
        len: usize,
        permission: Permission,
    ) -> Result<(BackingId, u64), IoError> {
        let refuse = |why| IoError::DmaMap { iova, len, why };
        let file = File::from(
            fd.try_clone_to_owned()
                .map_err(|e| IoError::os("cannot duplicate the DMA descriptor", e))?,
        );
        let metadata = file
            .metadata()
            .map_err(|e| IoError::os("cannot size the DMA memory", e))?;
        // Past the end of the file an access would raise SIGBUS instead of a fault.
        let size = metadata.len();
        let end = offset.checked_add(len as u64).filter(|end| *end <= size);
        let end = end.ok_or_else(|| refuse("the range is not wholly inside the file"))?;
        let windows = (offset / WINDOW_BYTES, (end - 1) / WINDOW_BYTES);
        let start = windows.0 * WINDOW_BYTES;
        let key = RunKey {
            file: (metadata.dev(), metadata.ino()),
            write: permission.write,
            windows,
        };
        if let Some(&id) = self.by_file.get(&key)
            && let Some(&place) = self.places.get(&id)
            && let Some(backing) = self.backings.get_mut(place)
            // The file may have grown since.
            && end - start <= backing.memory.size() as u64
        {
            backing.users += 1;
            return Ok((id, offset - start));
        }
        if self.backings.len() >= BACKINGS_MAX {
            return Err(refuse(TOO_MANY_FILES));
        }
        let bytes = (windows.1 + 1).saturating_mul(WINDOW_BYTES).min(size) - start;
        if bytes > ADDRESS_SPACE_MAX - self.address_space {
            return Err(refuse(TOO_MUCH));
        }
        let cannot = |e| IoError::os("cannot map the DMA memory", e);
        let whole = usize::try_from(bytes)
            .map_err(|e| cannot(std::io::Error::new(std::io::ErrorKind::OutOfMemory, e)))?;
        let protection = match permission.write {
            true => libc::PROT_READ | libc::PROT_WRITE,
            false => libc::PROT_READ,
        };
        let flags = libc::MAP_NORESERVE | libc::MAP_SHARED;
        let memory =
            MmapRegion::build(Some(FileOffset::new(file, start)), whole, protection, flags)
                .map_err(|e| match e {
                    vm_memory::mmap::MmapRegionError::Mmap(e) => cannot(e),
                    e => cannot(std::io::Error::other(e)),
                })?;
        let id = self.next_id;
        self.next_id += 1;
        self.places.insert(id, self.backings.len());
        self.backings.push(Backing {
            id,
            key,
            memory,
            users: 1,
        });
        self.by_file.insert(key, id);
        self.address_space += bytes;
        Ok((id, offset - start))
    }

    /// Takes away what [`Dma::map`] gave. No access follows.
    ///
    /// # Errors
    ///
    /// [`IoError::NotMapped`] unless the range is exactly one mapping.
    pub fn unmap(&mut self, iova: Iova, len: usize) -> Result<(), IoError> {
        let found = self.mappings.get(&iova.0).filter(|m| m.len == len as u64);
        let Some(&mapping) = found else {
            return Err(IoError::NotMapped { iova, len });
        };
        self.mappings.remove(&iova.0);
        self.release(mapping);
        self.invalidate();
        Ok(())
    }

    /// Takes away every mapping in a range, of which there may be none. No access follows.
    /// Returns how many bytes were mapped.
    ///
    /// # Errors
    ///
    /// [`IoError::NotMapped`], and nothing is taken away, when the range is empty, wraps, or
    /// holds only a part of some mapping.
    pub fn unmap_range(&mut self, iova: Iova, len: u64) -> Result<u64, IoError> {
        let refused = || IoError::NotMapped {
            iova,
            len: usize::try_from(len).unwrap_or(usize::MAX),
        };
        let last = len
            .checked_sub(1)
            .and_then(|more| iova.0.checked_add(more))
            .ok_or_else(refused)?;
        // Mappings are disjoint: of those that start before a border only the last can cross it.
        let end = |(first, m): (&u64, &Mapping)| first + (m.len - 1);
        let before = self.mappings.range(..iova.0).next_back().map(end);
        let within = self.mappings.range(..=last).next_back().map(end);
        if before.is_some_and(|end| end >= iova.0) || within.is_some_and(|end| end > last) {
            return Err(refused());
        }
        let inside: Vec<u64> = self.mappings.range(iova.0..=last).map(|m| *m.0).collect();
        if inside.is_empty() {
            return Ok(0);
        }
        let mut bytes = 0;
        for first in inside {
            if let Some(mapping) = self.mappings.remove(&first) {
                bytes += mapping.len;
                self.release(mapping);
            }
        }
        self.invalidate();
        Ok(bytes)
    }

    /// Takes all mappings away. No access follows.
    pub fn unmap_all(&mut self) {
        self.mappings.clear();
        self.backings.clear();
        self.places.clear();
        self.by_file.clear();
        self.address_space = 0;
        self.invalidate();
    }

    /// Mappings at the moment, and windows of files, or runs of them, that are mapped for them.
    pub fn mapped(&self) -> (usize, usize) {
        (self.mappings.len(), self.backings.len())
    }

    /// A mapping has gone: so does its backing, after the last one.
    fn release(&mut self, mapping: Mapping) {
        let Some((id, _)) = mapping.target else {
            return;
        };
        let Some(&place) = self.places.get(&id) else {
            return;
        };
        let Some(backing) = self.backings.get_mut(place) else {
            return;
        };
        backing.users -= 1;
        if backing.users > 0 {
            return;
        }
        self.address_space -= backing.memory.size() as u64;
        if self.by_file.get(&backing.key) == Some(&id) {
            self.by_file.remove(&backing.key);
        }
        self.places.remove(&id);
        self.backings.swap_remove(place);
        if let Some(moved) = self.backings.get(place) {
            self.places.insert(moved.id, place);
        }
    }

    /// Whether the device may reach all of the range now.
    pub fn check(&self, iova: u64, len: u64) -> Result<(), DmaFault> {
        let mut at = iova;
        let mut left = len;
        while left > 0 {
            let (first, mapping) = self.mapping(at)?;
            if mapping.target.is_none() && self.far.is_none() {
                return Err(DmaFault(Iova(at)));
            }
            let here = (mapping.len - (at - first)).min(left);
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
        if let Some(piece) = self.hit(iova, into.len()) {
            return self.bulk(piece, Bulk::Read(into));
        }
        let mut at = iova;
        let mut rest = into;
        while !rest.is_empty() {
            let (here, after);
            match self.miss(at, rest.len(), Direction::Read) {
                Ok(piece) => {
                    (here, after) = rest.split_at_mut(piece.len);
                    self.bulk(piece, Bulk::Read(here))?;
                }
                Err(fault) => {
                    let (far, len) = self.far(at, rest.len(), Direction::Read, fault)?;
                    (here, after) = rest.split_at_mut(len);
                    far.read(0, here)?;
                }
            }
            at = at.wrapping_add(here.len() as u64);
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
            let (here, after);
            match self.miss(at, rest.len(), Direction::Write) {
                Ok(piece) => {
                    (here, after) = rest.split_at(piece.len);
                    self.bulk(piece, Bulk::Write(here))?;
                }
                Err(fault) => {
                    let (far, len) = self.far(at, rest.len(), Direction::Write, fault)?;
                    (here, after) = rest.split_at(len);
                    far.write(0, here)?;
                }
            }
            at = at.wrapping_add(here.len() as u64);
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
        let Some(backing) = self.backings.get(piece.index) else {
            return Err(fault);
        };
        backing
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
                    offset: r.base + offset,
                    len,
                });
            }
        }
        None
    }

    /// The range of up to `len` bytes at `iova`: as many as its mapping holds, and never none
    /// for a `len` above zero.
    #[cold]
    fn miss(&mut self, iova: u64, len: usize, direction: Direction) -> Result<Piece, DmaFault> {
        let (first, whole) = self.find_mapping(iova)?;
        let within = iova - first;
        if !whole.permission.allows(direction) {
            return Err(DmaFault(Iova(iova)));
        }
        // A hit asks for no direction.
        if whole.permission == Permission::READ_WRITE {
            self.recent[self.victim] = Recent {
                iova: first,
                len: whole.len,
                index: whole.index,
                base: whole.offset,
            };
            self.victim = (self.victim + 1) % RECENT;
        }
        Ok(Piece {
            iova,
            index: whole.index,
            offset: whole.offset + within,
            len: (whole.len - within).min(len as u64) as usize,
        })
    }

    /// The mapping that holds `iova`: its first IOVA, and all of it.
    fn find_mapping(&self, iova: u64) -> Result<(u64, Found), DmaFault> {
        let fault = DmaFault(Iova(iova));
        let (first, m) = self.mapping(iova)?;
        let (id, offset) = m.target.ok_or(fault)?;
        let index = *self.places.get(&id).ok_or(fault)?;
        let found = Found {
            index,
            offset,
            len: m.len,
            permission: m.permission,
        };
        Ok((first, found))
    }

    /// What is in the table for `iova`, which may be no file.
    fn mapping(&self, iova: u64) -> Result<(u64, Mapping), DmaFault> {
        let fault = DmaFault(Iova(iova));
        if !self.enabled {
            return Err(fault);
        }
        let (&first, m) = self.mappings.range(..=iova).next_back().ok_or(fault)?;
        match iova - first < m.len {
            true => Ok((first, *m)),
            false => Err(fault),
        }
    }

    fn invalidate(&mut self) {
        self.generation += 1;
        self.recent = [Recent::NONE; RECENT];
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
