//! BPF_OBJ_PIN and BPF_OBJ_GET (`bpf_obj_pin`, `bpf_obj_get`).

use super::fd::{File, bad_fd};
use super::{Fd, System};
use crate::caller::Caller;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::FileMode;
use crate::fs::{Pinned, Start, is_relative};
use crate::uapi::MapFlags;
use std::sync::Arc;

/// `AT_FDCWD`: the working directory, where a directory's descriptor could be.
const AT_FDCWD: i32 = -100;

/// `BPF_OBJ_FLAG_MASK`.
const ACCESS: MapFlags = MapFlags::RDONLY.union(MapFlags::WRONLY);

/// The fields of `union bpf_attr` that both commands read, but for the path.
#[derive(Clone, Copy)]
pub(super) struct ObjAttr {
    pub(super) bpf_fd: u32,
    pub(super) file_flags: u32,
    pub(super) path_fd: i32,
}

impl ObjAttr {
    /// The checks of the attribute itself.
    fn check(&self, allowed: MapFlags) -> Result<MapFlags> {
        let flags = MapFlags::from_bits_retain(self.file_flags);
        if !(allowed | MapFlags::PATH_FD).contains(flags) {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "file_flags {:#x}: only {:#x} are allowed",
                    self.file_flags,
                    (allowed | MapFlags::PATH_FD).bits()
                ),
            ));
        }
        if !flags.contains(MapFlags::PATH_FD) && self.path_fd != 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "path_fd {}: needs BPF_F_PATH_FD in file_flags",
                    self.path_fd
                ),
            ));
        }
        Ok(flags)
    }
}

/// The typed functions' `file_flags` and `path_fd`.
fn at(dir: Option<Fd>) -> (MapFlags, i32) {
    match dir {
        Some(Fd(fd)) => (MapFlags::PATH_FD, fd),
        None => (MapFlags::empty(), 0),
    }
}

impl System {
    /// Opens a directory for reading, so that it can be the `dir` of the functions below.
    /// ENOTDIR, EACCES, EMFILE, and what a path fails with ([`crate::fs::BpfFs`]).
    pub fn open_dir(&self, caller: &Caller, path: &[u8]) -> Result<Fd> {
        let dir = self.fs.open_dir(caller, path)?;
        self.install(Arc::new(File::Directory(dir)))
    }

    /// BPF_OBJ_PIN: gives the object behind `fd` the name `path`. It lives as long as it has
    /// one. A relative path starts at `dir` (`BPF_F_PATH_FD`), or at the working directory.
    ///
    /// The descriptor's access mode does not matter: a pin of a read-only one can be opened
    /// for writing. In order: EINVAL for a descriptor that is not open, or not of an object
    /// that can be pinned; EBADF and ENOTDIR for `dir`, when the path is relative; what a path
    /// fails with ([`crate::fs::BpfFs`]); EEXIST; EPERM for a directory that is on no bpffs;
    /// EACCES; ENOSPC.
    pub fn obj_pin(&self, caller: &Caller, fd: Fd, path: &[u8], dir: Option<Fd>) -> Result<()> {
        let (flags, path_fd) = at(dir);
        let attr = ObjAttr {
            bpf_fd: fd.0 as u32,
            file_flags: flags.bits(),
            path_fd,
        };
        self.obj_pin_attr(caller, &attr, || Ok(path.into()))
    }

    /// As [`System::obj_pin`], from the attribute. `path` is read when the kernel reads it.
    pub(super) fn obj_pin_attr(
        &self,
        caller: &Caller,
        attr: &ObjAttr,
        path: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        let flags = attr.check(MapFlags::empty())?;
        let object = self.probe_object(Fd(attr.bpf_fd as i32))?;
        let path = path()?;
        let dir = self.path_dir(attr, flags, &path)?;
        let start = start(dir.as_deref())?;
        self.fs.pin(caller, start, &path, object)
    }

    /// BPF_OBJ_GET: opens a descriptor of the object pinned at `path`.
    ///
    /// `file_flags` may hold RDONLY or WRONLY. In order: EINVAL for other flags, or for both;
    /// what a path fails with ([`crate::fs::BpfFs`]); EACCES when the permission bits do not
    /// allow the access, or the path names a directory; the security module's; EMFILE.
    pub fn obj_get(&self, caller: &Caller, path: &[u8], file_flags: MapFlags) -> Result<Fd> {
        self.obj_get_at(caller, path, None, file_flags)
    }

    /// As [`System::obj_get`], a relative path starting at `dir` (`BPF_F_PATH_FD`): EBADF,
    /// ENOTDIR.
    pub fn obj_get_at(
        &self,
        caller: &Caller,
        path: &[u8],
        dir: Option<Fd>,
        file_flags: MapFlags,
    ) -> Result<Fd> {
        let (flags, path_fd) = at(dir);
        let attr = ObjAttr {
            bpf_fd: 0,
            file_flags: (file_flags | flags).bits(),
            path_fd,
        };
        self.obj_get_attr(caller, &attr, || Ok(path.into()))
    }

    /// As [`System::obj_get_at`], from the attribute. `path` is read when the kernel reads it.
    pub(super) fn obj_get_attr(
        &self,
        caller: &Caller,
        attr: &ObjAttr,
        path: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Fd> {
        if attr.bpf_fd != 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!("bpf_fd {}: is not used and wants 0", attr.bpf_fd),
            ));
        }
        let flags = attr.check(ACCESS)?;
        let mode = FileMode::from_flags(flags)?;
        let path = path()?;
        let dir = self.path_dir(attr, flags, &path)?;
        let Pinned::Map(map) = self.fs.get(caller, start(dir.as_deref())?, &path, mode)?;
        self.new_map_fd(caller, map.reopen(mode))
    }

    /// `bpf_fd_probe_obj`: a reference to an object that can be pinned, which BTF objects and
    /// files of other kinds cannot.
    fn probe_object(&self, fd: Fd) -> Result<Pinned> {
        match self.file(fd).as_deref() {
            Some(File::Map(map)) => Ok(Pinned::Map(map.reopen(FileMode::all()))),
            Some(File::Btf(_) | File::Directory(_)) => Err(Error::because(
                Errno::EINVAL,
                format!("bpf_fd {}: only maps can be pinned", fd.0),
            )),
            None => Err(Error::because(
                Errno::EINVAL,
                format!("bpf_fd {}: the descriptor is not open", fd.0),
            )),
        }
    }

    /// The file behind `path_fd`, where the path starts there. The kernel does not look at the
    /// descriptor when the path is absolute.
    fn path_dir(&self, attr: &ObjAttr, flags: MapFlags, path: &[u8]) -> Result<Option<Arc<File>>> {
        let relative = is_relative(path)?;
        if !flags.contains(MapFlags::PATH_FD) || attr.path_fd == AT_FDCWD || !relative {
            return Ok(None);
        }
        let fd = Fd(attr.path_fd);
        match self.file(fd) {
            Some(file) => Ok(Some(file)),
            None if self.fds().is_of_others(fd) => Err(NO_DIRECTORY),
            None => Err(bad_fd(fd)),
        }
    }
}

const NO_DIRECTORY: Error = Error::new(
    Errno::ENOTDIR,
    "path_fd: the descriptor is not a directory's, and a path starts at one",
);

fn start(dir: Option<&File>) -> Result<Start<'_>> {
    match dir {
        None => Ok(Start::Cwd),
        Some(File::Directory(dir)) => Ok(Start::Directory(dir)),
        Some(File::Map(_) | File::Btf(_)) => Err(NO_DIRECTORY),
    }
}
