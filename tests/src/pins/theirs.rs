//! The kernel's side.

use super::ops::PATH_FD;
use super::ours::map_attr;
use super::{MAPS, Op, Outcome, Side};
use crate::kernel::{self, KernelMap, obj_get, obj_pin, rename2};
use crate::subject::Subject;
use std::ffi::{CString, OsStr};
use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::path::Path;

/// What the kernel pins into every bpffs that is mounted (`populate_bpffs`), and nobody can
/// take away.
const PRELOADED: [&[u8]; 2] = [b"maps.debug", b"progs.debug"];

/// Three maps of the running kernel, on a thread in [`kernel::enter_bpffs_world`].
pub struct Theirs {
    maps: [KernelMap; MAPS],
    dir: Option<File>,
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn c(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("a path without a NUL")
}

fn number(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

fn letter(kind: FileType) -> char {
    if kind.is_dir() {
        'd'
    } else if kind.is_symlink() {
        'l'
    } else if kind.is_fifo() {
        'p'
    } else {
        'f'
    }
}

fn stat(stat: &Metadata) -> Outcome {
    Outcome::Stat(
        letter(stat.file_type()),
        stat.mode() & 0o7777,
        stat.nlink(),
        stat.uid(),
        stat.gid(),
    )
}

impl Theirs {
    /// As [`super::Ours::new`]; the error is the kernel's.
    pub fn new() -> Result<Self, i32> {
        let mut maps = [0, 1, 2].map(|number| KernelMap::create(&map_attr(number)));
        for (number, map) in maps.iter_mut().enumerate() {
            let value = (number as u64 + 1).to_ne_bytes();
            if let Ok(map) = map {
                let _ = map.update(&[0; 4], &value, 0);
            }
        }
        let [a, b, c] = maps;
        Ok(Self {
            maps: [a?, b?, c?],
            dir: None,
        })
    }

    /// Flags and descriptor for a path that may start at the open directory.
    fn at(&self, used: bool) -> (u32, i32) {
        match (&self.dir, used) {
            (_, false) => (0, 0),
            (Some(dir), true) => (PATH_FD, dir.as_raw_fd()),
            (None, true) => (PATH_FD, 999_999),
        }
    }

    /// Removes everything, so that the next sequence finds an empty bpffs.
    pub fn clean(&mut self) -> io::Result<()> {
        self.dir = None;
        kernel::set_fs_user(0, 0);
        std::env::set_current_dir("/")?;
        let root = Path::new("/sys/fs/bpf");
        chown(root, Some(0), Some(0))?;
        fs::set_permissions(root, Permissions::from_mode(0o1777))?;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if PRELOADED.contains(&entry.file_name().as_bytes()) {
                continue;
            }
            let path = entry.path();
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn get(&self, path: &[u8], flags: u32, path_fd: i32) -> Result<Outcome, i32> {
        let fd = obj_get(&c(path), flags, path_fd)?;
        let mut map = KernelMap::from_fd(fd, &self.maps[0]);
        let mut value = [0; 8];
        let read = map.lookup(&[0; 4], &mut value, 0);
        let read = read.map(|()| u64::from_ne_bytes(value));
        let written = map.update(&[0; 4], &value, 1);
        Ok(Outcome::Map(read, written))
    }

    fn do_op(&mut self, op: &Op) -> io::Result<Outcome> {
        match op {
            Op::User(uid, gid) => kernel::set_fs_user(*uid, *gid),
            Op::Mkdir(at, mode) => DirBuilder::new().mode((*mode).into()).create(path(at))?,
            Op::Rmdir(at) => fs::remove_dir(path(at))?,
            Op::Unlink(at) => fs::remove_file(path(at))?,
            Op::Rename(old, new, flags) => {
                rename2(&c(old), &c(new), *flags).map_err(io::Error::from_raw_os_error)?;
            }
            Op::Link(old, new) => fs::hard_link(path(old), path(new))?,
            Op::Symlink(target, at) => symlink(path(target), path(at))?,
            Op::ReadLink(at) => {
                let target = fs::read_link(path(at))?;
                return Ok(Outcome::Bytes(target.into_os_string().into_vec()));
            }
            Op::Chmod(at, mode) => {
                fs::set_permissions(path(at), Permissions::from_mode((*mode).into()))?;
            }
            Op::Chown(at, uid, gid) => chown(path(at), *uid, *gid)?,
            Op::Stat(at) => return Ok(stat(&fs::metadata(path(at))?)),
            Op::Lstat(at) => return Ok(stat(&fs::symlink_metadata(path(at))?)),
            Op::ReadDir(at) => {
                let names: io::Result<Vec<_>> = fs::read_dir(path(at))?
                    .map(|entry| {
                        let entry = entry?;
                        let kind = letter(entry.file_type()?);
                        Ok((entry.file_name().into_vec(), kind))
                    })
                    .collect();
                let mut names = names?;
                names.retain(|(name, _)| !PRELOADED.contains(&&**name));
                return Ok(Outcome::Names(names));
            }
            Op::Chdir(at) => std::env::set_current_dir(path(at))?,
            Op::OpenDir(at) => {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_DIRECTORY);
                self.dir = Some(options.open(path(at))?);
            }
            Op::CloseDir => self.dir = None,
            Op::Pin(at, map, used) => {
                let fd = self.maps.get(*map).map_or(-1, KernelMap::raw_fd);
                let (flags, path_fd) = self.at(*used);
                obj_pin(&c(at), fd, flags, path_fd).map_err(io::Error::from_raw_os_error)?;
            }
            Op::Get(at, flags, used) => {
                let (more, path_fd) = self.at(*used);
                let got = self.get(at, flags | more, path_fd);
                return got.map_err(io::Error::from_raw_os_error);
            }
        }
        Ok(Outcome::Done)
    }
}

impl Side for Theirs {
    fn run(&mut self, op: &Op) -> Result<Outcome, i32> {
        self.do_op(op).map_err(number)
    }
}
