//! The running kernel's bpf(2), over an arena that ends at a page nobody may touch.
//!
//! Unsafe: the system call itself, and the mapping that it reads and writes.
#![allow(unsafe_code, reason = "see above")]

use memmap2::MmapMut;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `PAGE_SIZE`.
const PAGE: usize = 4096;

/// Memory that both sides of a comparison see at the same addresses: the kernel the mapping
/// itself, and our side a copy under the same addresses. After its last byte comes a page that
/// faults.
pub(crate) struct Arena {
    map: MmapMut,
    len: usize,
}

impl Arena {
    /// `len` bytes, rounded up to pages, and the page after them.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let mut map = MmapMut::map_anon(len + PAGE)?;
        let guard = map.as_mut_ptr().wrapping_add(len);
        // SAFETY: the page is the last of the mapping that we own, and `bytes` never reaches
        // into it.
        let got = unsafe { libc::mprotect(guard.cast(), PAGE, libc::PROT_NONE) };
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { map, len })
    }

    /// The address of the first byte.
    pub(crate) fn base(&self) -> u64 {
        self.map.as_ptr().expose_provenance() as u64
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// What may be touched.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[..self.len]
    }

    /// As [`Arena::bytes`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }

    /// bpf(2) with the attribute at `attr`. Every address in the attribute is expected to be of
    /// this arena, or one that faults; the generator makes no others.
    pub(crate) fn call(&mut self, command: u32, attr: u64, size: u32) -> Result<i32, i32> {
        assert!(
            attr < PAGE as u64 || attr >= self.base() && attr <= self.base() + self.len as u64,
            "the attribute is outside the arena"
        );
        // SAFETY: `&mut self` keeps every Rust reference to the mapping away during the call.
        // The kernel checks each address itself and writes only to those in the attribute,
        // which are of the mapping or of no mapping at all.
        let got = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                libc::c_long::from(command),
                attr,
                libc::c_long::from(size),
            )
        };
        if got < 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        i32::try_from(got).map_err(|_| 0)
    }
}

/// A descriptor that the kernel has just opened, moved to the lowest free number from `lowest`
/// on, with close-on-exec.
pub(crate) fn move_up(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor was returned by the call before, and nobody else has it.
    let low = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: F_DUPFD_CLOEXEC takes a number and touches no memory.
    let high = unsafe { libc::fcntl(low.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}

/// An open file that is no BPF object, below the descriptors of the comparison.
pub(crate) fn foreign_file() -> io::Result<File> {
    File::open("/dev/null")
}
