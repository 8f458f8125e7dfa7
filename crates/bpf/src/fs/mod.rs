//! A bpffs in memory: the directory tree in which objects are pinned (`kernel/bpf/inode.c`).
//!
//! It is mounted at `/sys/fs/bpf` of a name space that is empty otherwise: `/`, `/sys` and
//! `/sys/fs` exist and are on other file systems, where nothing can be made or pinned. Paths,
//! permissions and the order of refusals are the kernel's (`fs/namei.c`), as with the settings
//! `fs.protected_hardlinks` 1 and `fs.protected_symlinks` 0.

mod ops;
mod path;
mod perm;
mod tree;

pub use ops::RenameFlags;

use crate::caller::Caller;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::{FileMode, MapFile};
use perm::{READ, WRITE, permission};
use std::sync::{Arc, Mutex, PoisonError};
use tree::{Ino, Inode, Kind, Tree};

/// Something that is pinned: a reference as `bpf_any_get` takes it, a user's one included.
#[derive(Clone)]
pub(crate) enum Pinned {
    Map(MapFile),
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A pinned map.
    Map,
    /// A symbolic link.
    Symlink,
}

/// What `stat(2)` says of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Number of the inode.
    pub ino: u64,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits (`st_mode & 07777`).
    pub mode: u16,
    /// Names of the inode; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name, bytes without `/` and NUL.
    pub name: Vec<u8>,
    /// Number of its inode.
    pub ino: u64,
    /// What it is.
    pub kind: NodeKind,
}

/// The bpffs of a [`crate::System`]. Usable from any number of threads at once.
///
/// Paths are bytes and end at their first NUL. One of at most 4095 bytes is walked from `/`,
/// or from the working directory when it is relative. Besides what each operation lists, a
/// path may fail with ENOENT (empty, or a component is missing), ENAMETOOLONG (over 4095
/// bytes, or a name over 255), ENOTDIR, ELOOP (over 40 symbolic links), EACCES (no
/// permission to search a directory) and EPERM (a name with a `.` on the bpffs that does not
/// exist).
pub struct BpfFs(Arc<Mutex<Tree>>);

fn with<R>(tree: &Mutex<Tree>, operation: impl FnOnce(&mut Tree) -> R) -> R {
    let mut locked = tree.lock().unwrap_or_else(PoisonError::into_inner);
    let result = operation(&mut locked);
    let gone = std::mem::take(&mut locked.gone);
    drop(locked);
    // The last reference to a map may go here, and its device is asked to free it.
    drop(gone);
    result
}

fn kind_of(inode: &Inode) -> NodeKind {
    match &inode.kind {
        Kind::Directory(_) => NodeKind::Directory,
        Kind::Object(Pinned::Map(_)) => NodeKind::Map,
        Kind::Symlink(_) => NodeKind::Symlink,
    }
}

/// Whether a path is walked from where the caller says. ENOENT when it is empty, ENAMETOOLONG.
pub(crate) fn is_relative(path: &[u8]) -> Result<bool> {
    Ok(!path::name_of(path)?.starts_with(b"/"))
}

/// Where a relative path starts.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The working directory (`AT_FDCWD`).
    Cwd,
    /// An open directory.
    Directory(&'a DirHandle),
}

/// An open directory. It lives on when it is removed, and nothing can be made in it then.
pub(crate) struct DirHandle {
    tree: Arc<Mutex<Tree>>,
    ino: Ino,
}

impl Drop for DirHandle {
    fn drop(&mut self) {
        with(&self.tree, |tree| tree.release(self.ino));
    }
}

impl BpfFs {
    /// A mounted bpffs of at most `max_entries` names.
    pub(crate) fn new(max_entries: u32) -> Self {
        Self(Arc::new(Mutex::new(Tree::new(max_entries))))
    }

    fn with<R>(&self, operation: impl FnOnce(&mut Tree) -> R) -> R {
        with(&self.0, operation)
    }

    /// Where the walk of a relative path starts. An open directory of another system's tree
    /// is none of ours.
    fn start(&self, tree: &Tree, start: Start<'_>) -> Ino {
        match start {
            Start::Directory(dir) if Arc::ptr_eq(&dir.tree, &self.0) => dir.ino,
            _ => tree.cwd,
        }
    }

    /// Unmounts: every pin is gone.
    pub(crate) fn clear(&self) {
        self.with(Tree::clear);
    }

    /// Opens a directory for reading. ENOTDIR, EACCES.
    pub(crate) fn open_dir(&self, caller: &Caller, path: &[u8]) -> Result<DirHandle> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, true)?;
            tree.dir(ino)?;
            permission(tree.inode(ino)?, caller, READ)?;
            tree.hold(ino);
            Ok(DirHandle {
                tree: Arc::clone(&self.0),
                ino,
            })
        })
    }

    /// `bpf_obj_do_pin`: gives `object` a name. EEXIST, EPERM for a directory that is on no
    /// bpffs, EACCES, ENOSPC.
    pub(crate) fn pin(
        &self,
        caller: &Caller,
        start: Start<'_>,
        path: &[u8],
        object: Pinned,
    ) -> Result<()> {
        self.with(|tree| {
            let start = self.start(tree, start);
            let (dir, name) = tree.vacant(caller, start, path, false)?;
            tree.check_bpffs(dir)?;
            tree.may_create(caller, dir)?;
            let mode = 0o600 & !caller.umask;
            tree.make(caller, dir, &name, mode, Kind::Object(object))
        })
    }

    /// `bpf_obj_do_get`: what is pinned under a path. EACCES when its bits do not allow
    /// `mode`, or nothing can be pinned there at all, as with directories.
    pub(crate) fn get(
        &self,
        caller: &Caller,
        start: Start<'_>,
        path: &[u8],
        mode: FileMode,
    ) -> Result<Pinned> {
        self.with(|tree| {
            let ino = tree.walk(caller, self.start(tree, start), path, true)?;
            let inode = tree.inode(ino)?;
            let mut mask = 0;
            if mode.contains(FileMode::READ) {
                mask |= READ;
            }
            if mode.contains(FileMode::WRITE) {
                mask |= WRITE;
            }
            permission(inode, caller, mask)?;
            match &inode.kind {
                Kind::Object(object) => Ok(object.clone()),
                _ => Err(Error::new(
                    Errno::EACCES,
                    "the path names a directory, not a pinned object",
                )),
            }
        })
    }
}
