//! Memory that host and device share.
//!
//! Unsafe: atomics and raw copies in memory that another process may write.
#![allow(unsafe_code, reason = "see above")]

use crate::word::LINE_WORDS;
use crate::{Function, IoError, Iova, IovaAllocator, numa};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Granularity of DMA buffers and IOVAs, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Where a buffer's memory should come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DmaPlacement {
    /// NUMA node to bind the memory to; `None`: wherever it is first touched.
    pub numa_node: Option<u32>,
}

/// A page-aligned, zeroed piece of shared memory, backed by a memfd so that a device in
/// another process can map the same pages.
///
/// All pages are faulted in before [`DmaBuffer::new`] returns, on the node asked for.
/// The other side may write the bytes at any time, so nothing here gives out a reference to
/// them: words are atomics, and larger pieces are copied.
#[derive(Debug)]
pub struct DmaBuffer {
    fd: Arc<OwnedFd>,
    map: MmapRaw,
    /// Where in the file the buffer starts.
    offset: u64,
}

impl DmaBuffer {
    /// Allocates at least `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`IoError::NoNode`] when the node cannot be bound to, [`IoError::Os`] when there is no
    /// memory or no file descriptor left.
    pub fn new(len: usize, placement: DmaPlacement) -> Result<Self, IoError> {
        Self::at_offset(0, len, placement)
    }

    /// As [`DmaBuffer::new`], with the buffer at `offset` bytes of its memfd, rounded up to
    /// whole pages: where a peer expects it in a file that stands for more than the buffer.
    /// What is before it takes no memory until somebody writes it.
    ///
    /// # Errors
    ///
    /// As [`DmaBuffer::new`].
    pub fn at_offset(offset: u64, len: usize, placement: DmaPlacement) -> Result<Self, IoError> {
        let len = len.max(1).next_multiple_of(PAGE_BYTES);
        let offset = offset.next_multiple_of(PAGE_BYTES as u64);
        let fd = memfd_create(
            c"offmap-dma",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(|e| IoError::os("cannot create a memfd for DMA", e))?;
        ftruncate(&fd, offset.saturating_add(len as u64))
            .map_err(|e| IoError::os("cannot size the DMA memfd", e))?;
        // The other side gets this descriptor. Were it to shorten the file, our next access
        // would be a SIGBUS.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&fd, seals).map_err(|e| IoError::os("cannot seal the DMA memfd", e))?;
        Self::over(fd, offset, len, placement)
    }

    /// A buffer over `len` bytes of a file in memory, from `offset` to its end; whole pages.
    fn over(
        fd: OwnedFd,
        offset: u64,
        len: usize,
        placement: DmaPlacement,
    ) -> Result<Self, IoError> {
        let map = MmapOptions::new()
            .offset(offset)
            .len(len)
            .map_raw(fd.as_raw_fd())
            .map_err(|e| IoError::os("cannot map the DMA memfd", e))?;
        if let Some(node) = placement.numa_node {
            numa::bind(map.as_mut_ptr(), map.len(), node)?;
        }
        // The policy belongs to the file, so the pages come from the node; and here, where
        // their lack is an error. At a first touch it would be a SIGBUS.
        fallocate(&fd, FallocateFlags::empty(), offset, len as u64)
            .map_err(|e| IoError::os("no memory for a DMA buffer", e))?;
        let fd = Arc::new(fd);
        let buffer = Self { fd, map, offset };
        for page in (0..len).step_by(PAGE_BYTES) {
            buffer.store_u64(page, 0, Ordering::Relaxed);
        }
        Ok(buffer)
    }

    /// The same memory, mapped once more: for a transport that has to reach it by itself, however
    /// long the buffer is kept.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] when the system allows no further mapping.
    pub fn map_again(&self) -> Result<Self, IoError> {
        let map = MmapOptions::new()
            .offset(self.offset)
            .len(self.map.len())
            .map_raw(self.fd.as_raw_fd())
            .map_err(|e| IoError::os("cannot map a DMA buffer once more", e))?;
        Ok(Self {
            fd: Arc::clone(&self.fd),
            map,
            offset: self.offset,
        })
    }

    /// Length in bytes: whole pages.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the buffer is empty; a buffer never is.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// The memfd, to be passed to a device that maps the memory itself. The buffer starts at
    /// [`DmaBuffer::fd_offset`] of it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where in [`DmaBuffer::fd`] the buffer starts, in bytes.
    pub fn fd_offset(&self) -> u64 {
        self.offset
    }

    /// Address of the buffer in this process, for a transport whose kernel interface takes
    /// one (VFIO type1). Not for access.
    pub fn host_address(&self) -> *const u8 {
        self.map.as_ptr()
    }

    /// Loads the aligned word at `offset` bytes.
    ///
    /// # Panics
    ///
    /// Here and in the methods below: if the access is not inside the buffer, or a word is
    /// not aligned. Offsets are the caller's own; bytes from the device never become one
    /// unchecked.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }

    /// Stores the aligned word at `offset` bytes.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }

    /// Copies `out.len()` bytes from `offset` on into `out`. Payload only: the copy is not
    /// atomic and is ordered by the ownership word that was loaded before it.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.range(offset, out.len());
        // SAFETY: `from` is valid for `out.len()` bytes, as `range` asserted, and `out` is
        // exclusively ours and no part of the mapping, which is never lent as a reference.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Copies `data` into the buffer from `offset` on. Payload only, as [`DmaBuffer::read`].
    #[inline]
    pub fn write(&self, offset: usize, data: &[u8]) {
        let to = self.range(offset, data.len());
        // SAFETY: as in `read`, with the directions exchanged.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    /// Zeroes `len` bytes from `offset` on. Payload only, as [`DmaBuffer::read`].
    #[inline]
    pub fn zero(&self, offset: usize, len: usize) {
        let to = self.range(offset, len);
        // SAFETY: `to` is valid for `len` bytes, as `range` asserted.
        unsafe { ptr::write_bytes(to, 0, len) }
    }

    #[inline]
    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        let size = self.map.len();
        assert!(
            offset <= size && len <= size - offset,
            "{len} bytes at {offset:#x} of a {size:#x}-byte DMA buffer"
        );
        // SAFETY: inside the mapping, or one past its end with `len` 0.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned and lives as long as `self`; every access in
        // this process is through `word` or the raw copies above.
        unsafe { crate::word::at(self.map.as_mut_ptr(), self.map.len(), offset) }
    }

    /// The eight words from `offset` on.
    #[inline(always)]
    pub(crate) fn words_of_line(&self, offset: usize) -> &[AtomicU64; LINE_WORDS] {
        // SAFETY: as in `word`.
        unsafe { crate::word::line(self.map.as_mut_ptr(), self.map.len(), offset) }
    }
}

/// A [`DmaBuffer`] that a function can reach, at an IOVA. Dropping it takes the mapping away
/// and gives the IOVA back.
pub struct DmaRegion<F: Function> {
    buffer: DmaBuffer,
    iova: Iova,
    function: Arc<F>,
    iovas: Arc<Mutex<IovaAllocator>>,
}

impl<F: Function> DmaRegion<F> {
    /// Allocates a buffer and maps it for `function` at an IOVA from `iovas`. Unless
    /// `placement` names a node, the memory is at the device's, if that has any.
    pub fn new(
        function: &Arc<F>,
        iovas: &Arc<Mutex<IovaAllocator>>,
        len: usize,
        placement: DmaPlacement,
    ) -> Result<Self, IoError> {
        let buffer = Self::near(&**function, len, placement)?;
        let iova = lock(iovas).allocate(buffer.len())?;
        if let Err(e) = function.dma_map(&buffer, iova) {
            lock(iovas).free(iova, buffer.len());
            return Err(e);
        }
        Ok(Self {
            buffer,
            iova,
            function: Arc::clone(function),
            iovas: Arc::clone(iovas),
        })
    }

    fn near(function: &F, len: usize, placement: DmaPlacement) -> Result<DmaBuffer, IoError> {
        let numa_node = placement.numa_node.or(function.numa_node());
        match DmaBuffer::new(len, DmaPlacement { numa_node }) {
            // Nobody asked for that node, and it has no memory, or none for this process.
            Err(IoError::NoNode { .. }) if placement.numa_node.is_none() => {
                DmaBuffer::new(len, placement)
            }
            made => made,
        }
    }

    /// The memory.
    #[inline]
    pub fn buffer(&self) -> &DmaBuffer {
        &self.buffer
    }

    /// IOVA of byte `offset` of the buffer.
    #[inline]
    pub fn iova(&self, offset: usize) -> Iova {
        debug_assert!(offset <= self.buffer.len());
        Iova(self.iova.0 + offset as u64)
    }
}

impl<F: Function> Drop for DmaRegion<F> {
    fn drop(&mut self) {
        // An IOVA whose unmap failed may still be reachable by the device: it is not given
        // out again. The buffer itself is released either way; the transport holds its own
        // mapping of the memfd, so the device never reaches memory that is not its own.
        if self
            .function
            .dma_unmap(self.iova, self.buffer.len())
            .is_ok()
        {
            lock(&self.iovas).free(self.iova, self.buffer.len());
        }
    }
}

fn lock(iovas: &Mutex<IovaAllocator>) -> std::sync::MutexGuard<'_, IovaAllocator> {
    iovas.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_whole_pages_and_shared_by_fd() {
        let b = DmaBuffer::new(5000, DmaPlacement::default()).unwrap();
        assert_eq!(b.len(), 8192);
        b.write(4090, b"across a page");
        let other = SecondMapping::map(&b);
        let mut seen = [0u8; 13];
        other.read(4090, &mut seen);
        assert_eq!(&seen, b"across a page");
        b.zero(4090, 13);
        other.read(4090, &mut seen);
        assert_eq!(seen, [0; 13]);
        other.store_u64(8184, 7, Ordering::Release);
        assert_eq!(b.load_u64(8184, Ordering::Acquire), 7);
    }

    /// The same pages mapped a second time, as a device in another process does.
    struct SecondMapping;

    impl SecondMapping {
        fn map(of: &DmaBuffer) -> DmaBuffer {
            let fd = Arc::new(of.fd().try_clone_to_owned().unwrap());
            let map = MmapOptions::new()
                .len(of.len())
                .map_raw(fd.as_raw_fd())
                .unwrap();
            DmaBuffer { fd, map, offset: 0 }
        }
    }

    #[test]
    fn a_buffer_may_start_later_in_its_file() {
        let b = DmaBuffer::at_offset(65_536, 5000, DmaPlacement::default()).unwrap();
        assert_eq!((b.fd_offset(), b.len()), (65_536, 8192));
        let mut file = std::fs::File::from(b.fd().try_clone_to_owned().unwrap());
        assert_eq!(file.metadata().unwrap().len(), 65_536 + 8192);
        b.store_u64(8, u64::from_ne_bytes(*b"word no1"), Ordering::Release);
        let mut seen = [0; 8];
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(65_544)).unwrap();
        std::io::Read::read_exact(&mut file, &mut seen).unwrap();
        assert_eq!(&seen, b"word no1");
    }

    #[test]
    fn mapped_again_it_is_the_same_memory_and_outlives_the_first() {
        let b = DmaBuffer::at_offset(65_536, 8192, DmaPlacement::default()).unwrap();
        let again = b.map_again().unwrap();
        assert_eq!((again.fd_offset(), again.len()), (65_536, 8192));
        b.store_u64(4096, 7, Ordering::Release);
        again.store_u64(8184, 8, Ordering::Release);
        assert_eq!(b.load_u64(8184, Ordering::Acquire), 8);
        drop(b);
        assert_eq!(again.load_u64(4096, Ordering::Acquire), 7);
    }

    #[test]
    fn the_peer_cannot_change_the_size() {
        let b = DmaBuffer::new(8192, DmaPlacement::default()).unwrap();
        let peer = b.fd().try_clone_to_owned().unwrap();
        assert!(ftruncate(&peer, 0).is_err());
        assert!(ftruncate(&peer, 1 << 20).is_err());
        b.store_u64(8184, 1, Ordering::Relaxed);
    }

    #[test]
    fn no_memory_is_an_error() {
        // A file system in memory that cannot hold the buffer; the memory itself is not used up
        // by the test. Without a reservation the first touch past its end is a SIGBUS.
        let dir = "/dev/shm";
        let tmpfs = rustix::fs::statfs(dir).unwrap();
        let size = tmpfs.f_blocks * tmpfs.f_bsize as u64;
        assert!(size > 0, "{dir} has a size");
        let path = format!("{dir}/offmap-dma-{}", std::process::id());
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let len = (size as usize + 1).next_multiple_of(PAGE_BYTES);
        file.set_len(len as u64).unwrap();
        match DmaBuffer::over(file.into(), 0, len, DmaPlacement::default()) {
            Err(IoError::Os { what, .. }) => assert!(what.contains("memory"), "{what}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_impossible_node_is_refused_by_name() {
        for node in [1023, 1024, u32::MAX] {
            let placement = DmaPlacement {
                numa_node: Some(node),
            };
            match DmaBuffer::new(4096, placement) {
                Err(IoError::NoNode { node: n }) => assert_eq!(n, node),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    #[should_panic(expected = "DMA buffer")]
    fn copies_are_bounds_checked() {
        let b = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
        b.write(4090, &[0; 7]);
    }

    #[test]
    #[should_panic(expected = "8-byte access")]
    fn words_are_aligned() {
        let b = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
        b.load_u64(4, Ordering::Relaxed);
    }
}
