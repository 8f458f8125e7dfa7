//! Inodes and directory entries.

use super::Pinned;
use super::path::MAX_NAME_BYTES;
use crate::errno::Errno;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Number of an inode; never used twice.
pub(super) type Ino = u64;

/// `/` of the name space.
pub(super) const ROOT: Ino = 1;
/// `/sys/fs/bpf`, the root of the bpffs.
pub(super) const BPFFS_ROOT: Ino = 4;

/// Permission bits of a mode (`S_IALLUGO`).
pub(super) const ALL_BITS: u16 = 0o7777;
pub(super) const SET_UID: u16 = 0o4000;
pub(super) const SET_GID: u16 = 0o2000;
pub(super) const STICKY: u16 = 0o1000;

/// The file system that a directory is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mount {
    /// What `/` is on.
    Root,
    /// What `/sys` is on.
    Sysfs,
    Bpffs,
}

pub(super) struct Entry {
    pub(super) ino: Ino,
    /// Higher for entries that are newer in their directory: `readdir` tells those first.
    pub(super) age: u64,
}

pub(super) struct Directory {
    pub(super) parent: Ino,
    pub(super) entries: BTreeMap<Box<[u8]>, Entry>,
    pub(super) mount: Mount,
    /// Something is mounted here, or is the root of a mount.
    pub(super) mountpoint: bool,
    /// Removed, and still open somewhere (`S_DEAD`).
    pub(super) dead: bool,
}

pub(super) enum Kind {
    Directory(Directory),
    Object(Pinned),
    Symlink(Box<[u8]>),
}

pub(super) struct Inode {
    pub(super) kind: Kind,
    /// Permission bits, without the type.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    /// What keeps the inode besides its names: open files, the working directory, and removed
    /// directories below it that are open.
    pub(super) holds: u64,
}

impl Inode {
    pub(super) const fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }
}

/// The inodes by number, and what the limits are counted in.
pub(super) struct Tree {
    inodes: BTreeMap<Ino, Inode>,
    next_ino: Ino,
    next_age: u64,
    /// Directory entries in use, of at most `max_entries`.
    used: u32,
    max_entries: u32,
    /// The working directory.
    pub(super) cwd: Ino,
    /// Inodes that nothing keeps any more. Whoever locked the tree drops them after unlocking:
    /// the last reference to a map may go with one.
    pub(super) gone: Vec<Inode>,
}

const MISSING: Error = Error::new(Errno::ENOENT, "the file was removed");
const NOT_A_DIRECTORY: Error = Error::new(Errno::ENOTDIR, "the path goes through no directory");

impl Tree {
    /// `/sys/fs/bpf` with its parents. The bpffs is as the kernel mounts it by default: mode
    /// 01777, owned by root.
    pub(super) fn new(max_entries: u32) -> Self {
        let mut tree = Self {
            inodes: BTreeMap::new(),
            next_ino: BPFFS_ROOT + 1,
            next_age: 0,
            used: 0,
            max_entries,
            cwd: ROOT,
            gone: Vec::new(),
        };
        let fixed: [(Ino, Ino, &[u8], Mount, bool); 4] = [
            (ROOT, ROOT, b"", Mount::Root, true),
            (ROOT + 1, ROOT, b"sys", Mount::Sysfs, true),
            (ROOT + 2, ROOT + 1, b"fs", Mount::Sysfs, false),
            (BPFFS_ROOT, ROOT + 2, b"bpf", Mount::Bpffs, true),
        ];
        for (ino, parent, name, mount, mountpoint) in fixed {
            let bpffs = ino == BPFFS_ROOT;
            let inode = Inode {
                kind: Kind::Directory(Directory {
                    parent,
                    entries: BTreeMap::new(),
                    mount,
                    mountpoint,
                    dead: false,
                }),
                mode: if bpffs { STICKY | 0o777 } else { 0o755 },
                uid: 0,
                gid: 0,
                nlink: 2,
                holds: u64::from(ino == ROOT),
            };
            tree.inodes.insert(ino, inode);
            if ino != ROOT {
                tree.enter(parent, name, ino);
                tree.add_links(parent, 1);
            }
        }
        tree.used = 0;
        tree
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(MISSING)
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(MISSING)
    }

    pub(super) fn dir(&self, ino: Ino) -> Result<&Directory> {
        match &self.inode(ino)?.kind {
            Kind::Directory(dir) => Ok(dir),
            _ => Err(NOT_A_DIRECTORY),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> Option<&mut Directory> {
        match &mut self.inodes.get_mut(&ino)?.kind {
            Kind::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    /// The entry `name` of a directory: `bpf_lookup`, after a look at what is known already.
    /// `None` when there is none and there could be one.
    pub(super) fn lookup(&self, dir_ino: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let inode = self.inode(dir_ino)?;
        let dir = self.dir(dir_ino)?;
        if let Some(entry) = dir.entries.get(name) {
            return Ok(Some(entry.ino));
        }
        if dir.dead {
            return Err(Error::new(Errno::ENOENT, "the directory was removed"));
        }
        // The kernel asks for permission bits so that it can make such files while mounting;
        // with them gone, anyone can.
        if dir.mount == Mount::Bpffs && inode.mode & ALL_BITS != 0 && name.contains(&b'.') {
            return Err(Error::because(
                Errno::EPERM,
                format!(
                    "name {:?}: names with a '.' are reserved on a bpffs",
                    String::from_utf8_lossy(name)
                ),
            ));
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::because(
                Errno::ENAMETOOLONG,
                format!(
                    "a name of {} bytes: a name has at most {MAX_NAME_BYTES}",
                    name.len()
                ),
            ));
        }
        Ok(None)
    }

    /// ENOSPC when there is no room for another directory entry.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.used < self.max_entries {
            return Ok(());
        }
        Err(Error::because(
            Errno::ENOSPC,
            format!(
                "the bpffs has all of its {} directory entries in use",
                self.max_entries
            ),
        ))
    }

    /// A new inode without a name.
    pub(super) fn add(&mut self, inode: Inode) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, inode);
        ino
    }

    /// Puts `name` into a directory. The link counts are the caller's to keep.
    pub(super) fn enter(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        let age = self.next_age;
        self.next_age += 1;
        if let Some(dir) = self.dir_mut(dir) {
            let replaced = dir.entries.insert(name.into(), Entry { ino, age });
            if replaced.is_none() {
                self.used += 1;
            }
        }
    }

    /// Takes `name` out of a directory. The link counts are the caller's to keep.
    pub(super) fn leave(&mut self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let entry = self.dir_mut(dir)?.entries.remove(name)?;
        self.used -= 1;
        Some(entry.ino)
    }

    /// `..` of a directory that moved.
    pub(super) fn set_parent(&mut self, ino: Ino, parent: Ino) {
        if let Some(dir) = self.dir_mut(ino) {
            dir.parent = parent;
        }
    }

    pub(super) fn add_links(&mut self, ino: Ino, links: u32) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.nlink += links;
        }
    }

    pub(super) fn drop_links(&mut self, ino: Ino, links: u32) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.nlink = inode.nlink.saturating_sub(links);
        }
        self.collect(ino);
    }

    /// A directory that has left its parent and had no entries.
    pub(super) fn bury(&mut self, ino: Ino) {
        let Some(dir) = self.dir_mut(ino) else {
            return;
        };
        dir.dead = true;
        // `..` of a removed directory that is open still leads to its parent.
        let parent = dir.parent;
        self.hold(parent);
        self.drop_links(ino, 2);
    }

    pub(super) fn hold(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.holds += 1;
        }
    }

    pub(super) fn release(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.holds = inode.holds.saturating_sub(1);
        }
        self.collect(ino);
    }

    /// Frees an inode that has neither names nor holds, and what only it held.
    fn collect(&mut self, ino: Ino) {
        let mut next = Some(ino);
        while let Some(ino) = next.take() {
            let unused = |inode: &Inode| inode.nlink == 0 && inode.holds == 0;
            if !self.inodes.get(&ino).is_some_and(unused) {
                return;
            }
            let Some(inode) = self.inodes.remove(&ino) else {
                return;
            };
            if let Kind::Directory(dir) = &inode.kind {
                if let Some(parent) = self.inodes.get_mut(&dir.parent) {
                    parent.holds = parent.holds.saturating_sub(1);
                }
                next = Some(dir.parent);
            }
            self.gone.push(inode);
        }
    }

    /// Whether `ancestor` is `ino` or above it.
    pub(super) fn is_within(&self, mut ino: Ino, ancestor: Ino) -> bool {
        while ino != ancestor {
            match self.dir(ino) {
                Ok(dir) if ino != ROOT => ino = dir.parent,
                _ => return false,
            }
        }
        true
    }

    /// Unmounts: everything below the root of the bpffs goes.
    pub(super) fn clear(&mut self) {
        let mut empty = Self::new(self.max_entries);
        empty.next_ino = self.next_ino;
        let inodes = std::mem::replace(self, empty).inodes;
        self.gone.extend(inodes.into_values());
    }
}
