//! The running kernel's bpf(2), over an arena that ends at a page nobody may touch.
//!
//! Unsafe: the system call itself, and the mapping that it reads and writes.
#![allow(unsafe_code, reason = "see above")]

use memmap2::MmapMut;
use offmap_bpf::command as c;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
            attr < PAGE as u64
                || attr >> 47 != 0
                || attr >= self.base() && attr <= self.base() + self.len as u64,
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

/// The running kernel's bpf(2) for whoever writes attributes by hand: an arena, and the
/// descriptors that its calls opened, closed with it.
pub struct KernelCalls {
    arena: Arena,
    fds: BTreeMap<i32, OwnedFd>,
}

impl KernelCalls {
    /// With an arena of `len` bytes, rounded up to pages; the page after them faults.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` or `mprotect(2)` fails with.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self {
            arena: Arena::new(len)?,
            fds: BTreeMap::new(),
        })
    }

    /// The arena's first address.
    pub fn base(&self) -> u64 {
        self.arena.base()
    }

    /// The arena.
    pub fn bytes(&self) -> &[u8] {
        self.arena.bytes()
    }

    /// As [`KernelCalls::bytes`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.arena.bytes_mut()
    }

    /// The descriptor of that number, if a call opened it.
    pub fn fd(&self, number: i32) -> Option<BorrowedFd<'_>> {
        self.fds.get(&number).map(AsFd::as_fd)
    }

    /// Closes a descriptor that a call opened.
    pub fn close(&mut self, number: i32) {
        self.fds.remove(&number);
    }

    /// bpf(2) with the attribute of `size` bytes at the address `attr`. Descriptors that it
    /// opens are kept.
    ///
    /// # Errors
    ///
    /// The error number.
    ///
    /// # Panics
    ///
    /// If an address that the kernel would follow is of other memory than the arena's, as far
    /// as there may be any; and for commands of the program side, whose attributes are not
    /// checked here.
    pub fn call(&mut self, command: u32, attr: u64, size: u32) -> Result<i32, i32> {
        self.check_addresses(command, attr, size);
        let got = self.arena.call(command, attr, size)?;
        let opens = [
            c::MAP_CREATE,
            c::OBJ_GET,
            c::MAP_GET_FD_BY_ID,
            c::BTF_LOAD,
            c::BTF_GET_FD_BY_ID,
        ];
        if opens.contains(&command) {
            // SAFETY: the kernel has just opened it for us.
            let fd = unsafe { OwnedFd::from_raw_fd(got) };
            self.fds.insert(got, fd);
        }
        Ok(got)
    }

    /// Sees to it that the kernel writes to nobody else's memory.
    fn check_addresses(&self, command: u32, attr: u64, size: u32) {
        let addresses: &[usize] = match command {
            c::MAP_CREATE => &[80],
            c::MAP_LOOKUP_ELEM
            | c::MAP_UPDATE_ELEM
            | c::MAP_DELETE_ELEM
            | c::MAP_GET_NEXT_KEY
            | c::MAP_LOOKUP_AND_DELETE_ELEM => &[8, 16],
            c::MAP_LOOKUP_BATCH
            | c::MAP_LOOKUP_AND_DELETE_BATCH
            | c::MAP_UPDATE_BATCH
            | c::MAP_DELETE_BATCH => &[0, 8, 16, 24],
            c::OBJ_PIN | c::OBJ_GET => &[0],
            c::OBJ_GET_INFO_BY_FD => &[8],
            c::BTF_LOAD => &[0, 8],
            c::MAP_FREEZE
            | c::MAP_GET_NEXT_ID
            | c::MAP_GET_FD_BY_ID
            | c::BTF_GET_NEXT_ID
            | c::BTF_GET_FD_BY_ID => &[],
            // No kernel has that many commands.
            unknown => {
                assert!(unknown >= 1 << 20, "command {unknown} is not for this");
                &[]
            }
        };
        for &at in addresses {
            self.check_address(self.word(attr, size, at));
        }
        if command == c::OBJ_GET_INFO_BY_FD {
            let (info, len) = (self.word(attr, size, 8), self.word(attr, size, 0) >> 32);
            // Those in the info of a map, and of BTF.
            for at in [88, 0, 16] {
                self.check_address(self.word(info, len as u32, at));
            }
        }
    }

    /// The word at offset `at` of a structure of `size` bytes at `address`, zero-extended; 0
    /// where the arena does not have it.
    fn word(&self, address: u64, size: u32, at: usize) -> u64 {
        let mut raw = [0; 8];
        for (i, byte) in raw.iter_mut().enumerate() {
            let offset = address
                .wrapping_sub(self.base())
                .wrapping_add((at + i) as u64);
            if at + i < size as usize
                && let Some(there) = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| self.bytes().get(offset))
            {
                *byte = *there;
            }
        }
        u64::from_ne_bytes(raw)
    }

    /// In the arena, in the page after it, in the first page, or in the kernel's half.
    fn check_address(&self, address: u64) {
        let end = self.base() + (self.bytes().len() + PAGE) as u64;
        assert!(
            address < PAGE as u64 || address >> 47 != 0 || (self.base()..end).contains(&address),
            "address {address:#x} may be somebody's, and is not the arena's"
        );
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
