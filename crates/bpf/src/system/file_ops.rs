//! What system calls other than bpf(2) do with a descriptor (`bpf_map_fops`).

use super::fd::{File, bad_fd};
use super::{Fd, System};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::FileMode;
use crate::map::{Mapping, PAGE_BYTES};
use bitflags::bitflags;

bitflags! {
    /// `PROT_*` of `mmap(2)`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Protection: u32 {
        /// `PROT_READ`.
        const READ = 1;
        /// `PROT_WRITE`.
        const WRITE = 2;
        /// `PROT_EXEC`.
        const EXEC = 4;
    }

    /// `POLL*` of `poll(2)`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PollEvents: u16 {
        /// `POLLIN`.
        const IN = 0x001;
        /// `POLLOUT`.
        const OUT = 0x004;
        /// `POLLERR`.
        const ERR = 0x008;
        /// `POLLRDNORM`.
        const RDNORM = 0x040;
        /// `POLLWRNORM`.
        const WRNORM = 0x100;
    }
}

/// What `mmap(2)` is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmapRequest {
    /// First byte, from the start of the map's memory; a multiple of 4096.
    pub offset: u64,
    /// Bytes; rounded up to whole pages.
    pub length: u64,
    /// Access.
    pub protection: Protection,
    /// `MAP_SHARED`; otherwise `MAP_PRIVATE`.
    pub shared: bool,
}

impl MmapRequest {
    /// Looked at before the descriptor is.
    pub(crate) fn check_offset(&self) -> Result<()> {
        if self.offset.is_multiple_of(PAGE_BYTES) {
            return Ok(());
        }
        Err(Error::because(
            Errno::EINVAL,
            format!(
                "offset {}: not a multiple of the page size, {PAGE_BYTES}",
                self.offset
            ),
        ))
    }
}

/// `SEEK_MAX`: the last `whence` that is known, `SEEK_HOLE`.
const SEEK_MAX: u32 = 4;

const NOT_OPEN_FOR_IT: &str = "the descriptor was not opened for that";

impl System {
    /// `read(2)`: maps are not read so. EBADF for a descriptor that is not open or not
    /// readable, EISDIR for a directory, EINVAL for a map or BTF.
    pub fn read(&self, fd: Fd, _buffer: &mut [u8]) -> Result<usize> {
        match &*self.file(fd).ok_or_else(|| bad_fd(fd))? {
            File::Map(map) => Err(match map.mode().contains(FileMode::READ) {
                true => Error::new(Errno::EINVAL, "a map has no bytes to read"),
                false => Error::new(Errno::EBADF, NOT_OPEN_FOR_IT),
            }),
            File::Btf(_) => Err(Error::new(Errno::EINVAL, "BTF is read through its info")),
            File::Directory(_) => Err(Error::new(
                Errno::EISDIR,
                "a directory has no bytes to read",
            )),
        }
    }

    /// `write(2)`: maps are not written so. EBADF for a descriptor that is not open or not
    /// writable, as directories never are; EINVAL for a map.
    pub fn write(&self, fd: Fd, _bytes: &[u8]) -> Result<usize> {
        match &*self.file(fd).ok_or_else(|| bad_fd(fd))? {
            File::Map(map) if map.mode().contains(FileMode::WRITE) => {
                Err(Error::new(Errno::EINVAL, "a map takes no bytes to write"))
            }
            _ => Err(Error::new(Errno::EBADF, NOT_OPEN_FOR_IT)),
        }
    }

    /// `lseek(2)`. EBADF; EINVAL for a `whence` above 4; ESPIPE: no file here has a position.
    pub fn lseek(&self, fd: Fd, _offset: i64, whence: u32) -> Result<u64> {
        self.file(fd).ok_or_else(|| bad_fd(fd))?;
        if whence > SEEK_MAX {
            return Err(Error::because(
                Errno::EINVAL,
                format!("whence {whence}: the last that is known is {SEEK_MAX}"),
            ));
        }
        Err(Error::new(Errno::ESPIPE, "the file has no position"))
    }

    /// `poll(2)`: what is ready. Of maps only ring buffers can be waited for: POLLIN and
    /// POLLRDNORM when something in one was reserved or committed that is not consumed. Other
    /// maps say POLLERR, and so does a ring whose device is gone or whose memory contradicts
    /// itself. EBADF.
    pub fn poll(&self, fd: Fd) -> Result<PollEvents> {
        Ok(match &*self.file(fd).ok_or_else(|| bad_fd(fd))? {
            File::Map(map) => match map.unconsumed_bytes() {
                Ok(0) => PollEvents::empty(),
                Ok(_) => PollEvents::IN | PollEvents::RDNORM,
                Err(_) => PollEvents::ERR,
            },
            // `DEFAULT_POLLMASK`: what has no `poll` is always ready.
            File::Btf(_) | File::Directory(_) => {
                PollEvents::IN | PollEvents::OUT | PollEvents::RDNORM | PollEvents::WRNORM
            }
        })
    }

    /// `mmap(2)`: as [`crate::MapFile::mmap`]. EINVAL for the offset comes first, then EBADF;
    /// ENODEV for a directory or BTF.
    pub fn mmap(&self, fd: Fd, request: &MmapRequest) -> Result<Mapping> {
        request.check_offset()?;
        match &*self.file(fd).ok_or_else(|| bad_fd(fd))? {
            File::Map(map) => map.mmap(request),
            File::Btf(_) | File::Directory(_) => Err(Error::new(
                Errno::ENODEV,
                "a descriptor of its kind cannot be mapped",
            )),
        }
    }
}
