//! File descriptors.

use crate::btf_object::BtfObject;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::MapFile;
use crate::fs::DirHandle;
use std::sync::Arc;

/// A file descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fd(pub i32);

/// An open file (`struct file`). Descriptors made by `dup(2)` share one.
pub(super) enum File {
    Map(MapFile),
    Btf(Arc<BtfObject>),
    /// A directory, as `open(2)` opens it.
    Directory(DirHandle),
}

impl File {
    /// `__bpf_map_get`: EINVAL unless it is a map's.
    pub(super) fn map(&self) -> Result<&MapFile> {
        match self {
            Self::Map(map) => Ok(map),
            Self::Btf(_) => Err(Error::new(
                Errno::EINVAL,
                "the descriptor is a BTF object's, not a map's",
            )),
            Self::Directory(_) => Err(Error::new(
                Errno::EINVAL,
                "the descriptor is a directory's, not a map's",
            )),
        }
    }
}

/// The descriptors of a process.
pub(super) struct FdTable {
    files: Vec<Option<Arc<File>>>,
    /// Descriptors below this one are files of others.
    first: usize,
    /// No index below this one is free.
    lowest: usize,
    /// Descriptors that the table may hold.
    room: usize,
}

impl FdTable {
    pub(super) const fn new(first_fd: u32, max_fds: u32) -> Self {
        Self {
            files: Vec::new(),
            first: first_fd as usize,
            lowest: 0,
            room: (max_fds as usize).saturating_sub(first_fd as usize),
        }
    }

    /// Installs `file` at the lowest free descriptor; EMFILE, with the file dropped by the
    /// caller, when there is none.
    pub(super) fn install(&mut self, file: Arc<File>) -> Result<Fd, (Arc<File>, Error)> {
        let mut from_lowest = self.files.iter().skip(self.lowest);
        let index = match from_lowest.position(Option::is_none) {
            Some(index) => self.lowest + index,
            None if self.files.len() < self.room => {
                self.files.push(None);
                self.files.len() - 1
            }
            None => {
                let limit = self.room + self.first;
                let reason = format!("the process has all of its {limit} descriptors open");
                return Err((file, Error::because(Errno::EMFILE, reason)));
            }
        };
        self.files[index] = Some(file);
        self.lowest = index + 1;
        Ok(Fd((index + self.first) as i32))
    }

    fn slot(&self, fd: Fd) -> Option<usize> {
        usize::try_from(fd.0).ok()?.checked_sub(self.first)
    }

    /// Whether the descriptor is open, be it one of others.
    pub(super) fn is_open(&self, fd: Fd) -> bool {
        self.get(fd).is_some() || self.is_of_others(fd)
    }

    /// Whether the descriptor is open, and not one of this table's.
    pub(super) fn is_of_others(&self, fd: Fd) -> bool {
        usize::try_from(fd.0).is_ok_and(|fd| fd < self.first)
    }

    pub(super) fn get(&self, fd: Fd) -> Option<&Arc<File>> {
        self.files.get(self.slot(fd)?)?.as_ref()
    }

    pub(super) fn take(&mut self, fd: Fd) -> Option<Arc<File>> {
        let slot = self.slot(fd)?;
        let file = self.files.get_mut(slot)?.take();
        self.lowest = self.lowest.min(slot);
        file
    }

    pub(super) fn drain(&mut self) -> Vec<Arc<File>> {
        self.files.drain(..).flatten().collect()
    }
}

/// `__bpf_map_get` of a file that is no map.
pub(super) fn not_a_map(fd: Fd) -> Error {
    Error::because(Errno::EINVAL, format!("descriptor {} is not a map", fd.0))
}

pub(super) fn bad_fd(fd: Fd) -> Error {
    Error::because(Errno::EBADF, format!("descriptor {} is not open", fd.0))
}
