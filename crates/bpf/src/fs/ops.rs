//! The directory operations (`do_mkdirat`, `do_unlinkat`, `do_renameat2`, …, and
//! `simple_*` of `fs/libfs.c`, which bpffs uses).

use super::path::{Last, NO_ENTRY, Parent, name_of};
use super::perm::{EXEC, READ, WRITE, check_owner, permission};
use super::tree::{ALL_BITS, Directory, Ino, Inode, Kind, Mount, SET_GID, SET_UID, STICKY, Tree};
use super::{BpfFs, DirEntry, Stat, kind_of};
use crate::caller::{Caller, Capabilities};
use crate::errno::Errno;
use crate::error::{Error, Result};
use bitflags::bitflags;
use std::collections::BTreeMap;

bitflags! {
    /// Flags of [`BpfFs::rename`] (`renameat2(2)`). Unknown bits are kept, and refused.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RenameFlags: u32 {
        /// `RENAME_NOREPLACE`: fail when the new name exists.
        const NOREPLACE = 1;
        /// `RENAME_EXCHANGE`: the two names trade places.
        const EXCHANGE = 2;
        /// `RENAME_WHITEOUT`, which a bpffs does not do.
        const WHITEOUT = 4;
        const _ = !0;
    }
}

const EXISTS: Error = Error::new(Errno::EEXIST, "the name exists");
const NOT_A_DIRECTORY: Error = Error::new(
    Errno::ENOTDIR,
    "a slash follows the name of something that is no directory",
);
const MOUNTPOINT: Error = Error::new(Errno::EBUSY, "something is mounted there");
const NOT_EMPTY: Error = Error::new(Errno::ENOTEMPTY, "the directory is not empty");
const OTHER_MOUNT: Error = Error::new(Errno::EXDEV, "the two names are on different file systems");

impl Tree {
    /// `filename_create`: a directory, and a name that it does not have.
    pub(super) fn vacant(
        &self,
        caller: &Caller,
        start: Ino,
        path: &[u8],
        for_dir: bool,
    ) -> Result<(Ino, Box<[u8]>)> {
        let Parent { dir, last, slash } = self.walk_parent(caller, start, path)?;
        let Last::Normal(name) = last else {
            return Err(EXISTS);
        };
        if self.lookup(dir, &name)?.is_some() {
            return Err(EXISTS);
        }
        if slash && !for_dir {
            return Err(Error::new(
                Errno::ENOENT,
                "a slash follows a name that is not to be a directory's",
            ));
        }
        Ok((dir, name))
    }

    /// EPERM unless the directory is on the bpffs.
    pub(super) fn check_bpffs(&self, dir: Ino) -> Result<()> {
        match self.dir(dir)?.mount {
            Mount::Bpffs => Ok(()),
            _ => Err(Error::new(Errno::EPERM, "the directory is not on a bpffs")),
        }
    }

    /// `bpf_get_inode` and `bpf_dentry_finalize`: a new inode with its first name.
    pub(super) fn make(
        &mut self,
        caller: &Caller,
        dir: Ino,
        name: &[u8],
        mode: u16,
        kind: Kind,
    ) -> Result<()> {
        self.check_room()?;
        let parent = self.inode(dir)?;
        let is_dir = matches!(kind, Kind::Directory(_));
        // `inode_init_owner`: a directory with the set-group-ID bit hands its group down.
        let inherits = parent.mode & SET_GID != 0;
        let inode = Inode {
            mode: mode | if inherits && is_dir { SET_GID } else { 0 },
            uid: caller.uid,
            gid: if inherits { parent.gid } else { caller.gid },
            nlink: if is_dir { 2 } else { 1 },
            holds: 0,
            kind,
        };
        let ino = self.add(inode);
        self.enter(dir, name, ino);
        if is_dir {
            self.add_links(dir, 1);
        }
        Ok(())
    }

    /// The entry that an operation which takes a name away works on: its directory, name and
    /// inode.
    fn victim(&self, parent: Parent, wrong: impl Fn(&Last) -> Error) -> Result<Victim> {
        let Parent { dir, last, slash } = parent;
        let Last::Normal(name) = last else {
            return Err(wrong(&last));
        };
        let ino = self.lookup(dir, &name)?.ok_or(NO_ENTRY)?;
        Ok(Victim {
            dir,
            name,
            ino,
            slash,
        })
    }

    fn is_mountpoint(&self, ino: Ino) -> bool {
        self.dir(ino).is_ok_and(|dir| dir.mountpoint)
    }

    fn has_entries(&self, ino: Ino) -> bool {
        self.dir(ino).is_ok_and(|dir| !dir.entries.is_empty())
    }

    fn rename(
        &mut self,
        caller: &Caller,
        old: Parent,
        new: Parent,
        flags: RenameFlags,
    ) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let no_replace = flags.contains(RenameFlags::NOREPLACE);
        if self.dir(old.dir)?.mount != self.dir(new.dir)?.mount {
            return Err(OTHER_MOUNT);
        }
        let special = Error::new(Errno::EBUSY, "the name is '.', '..' or the root");
        let Last::Normal(new_name) = new.last else {
            return Err(match old.last {
                Last::Normal(_) if no_replace => EXISTS,
                _ => special,
            });
        };
        let from = self.victim(old, |_| special.clone())?;
        let to = self.lookup(new.dir, &new_name)?;
        match to {
            Some(_) if no_replace => return Err(EXISTS),
            None if exchange => return Err(NO_ENTRY),
            _ => {}
        }
        let from_is_dir = self.inode(from.ino)?.is_dir();
        let to_is_dir = match to {
            Some(to) => self.inode(to)?.is_dir(),
            None => false,
        };
        if exchange && new.slash && !to_is_dir {
            return Err(NOT_A_DIRECTORY);
        }
        if !from_is_dir && (from.slash || !exchange && new.slash) {
            return Err(NOT_A_DIRECTORY);
        }
        if from.dir != new.dir {
            if self.is_within(new.dir, from.ino) {
                return Err(Error::new(
                    Errno::EINVAL,
                    "a directory cannot move into itself",
                ));
            }
            if to.is_some_and(|to| self.is_within(from.dir, to)) {
                return Err(match exchange {
                    true => Error::new(
                        Errno::EINVAL,
                        "a directory cannot trade places with one that is in it",
                    ),
                    false => NOT_EMPTY,
                });
            }
        }

        // `vfs_rename`.
        if to == Some(from.ino) {
            return Ok(());
        }
        self.may_delete(caller, from.dir, from.ino, from_is_dir)?;
        match to {
            None => self.may_create(caller, new.dir)?,
            Some(to) => {
                let as_dir = if exchange { to_is_dir } else { from_is_dir };
                self.may_delete(caller, new.dir, to, as_dir)?;
            }
        }
        if from.dir != new.dir {
            // `..` of a directory that moves is written.
            if from_is_dir {
                permission(self.inode(from.ino)?, caller, WRITE)?;
            }
            if let (true, true, Some(to)) = (exchange, to_is_dir, to) {
                permission(self.inode(to)?, caller, WRITE)?;
            }
        }
        if self.is_mountpoint(from.ino) || to.is_some_and(|to| self.is_mountpoint(to)) {
            return Err(MOUNTPOINT);
        }
        self.check_bpffs(from.dir)?;

        // `simple_rename`.
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(bad_flags(flags));
        }
        if exchange {
            if let Some(to) = to {
                self.enter(from.dir, &from.name, to);
                self.enter(new.dir, &new_name, from.ino);
                self.adopt(from.ino, from.dir, new.dir);
                self.adopt(to, new.dir, from.dir);
            }
            return Ok(());
        }
        if to.is_some_and(|to| self.has_entries(to)) {
            return Err(NOT_EMPTY);
        }
        if let Some(to) = to {
            self.leave(new.dir, &new_name);
            self.remove_links(new.dir, to);
        }
        self.leave(from.dir, &from.name);
        self.enter(new.dir, &new_name, from.ino);
        self.adopt(from.ino, from.dir, new.dir);
        Ok(())
    }

    /// `ino` has moved between directories: the link counts of both, and its `..`.
    fn adopt(&mut self, ino: Ino, from: Ino, to: Ino) {
        if from != to && self.dir(ino).is_ok() {
            self.add_links(to, 1);
            self.drop_links(from, 1);
            self.set_parent(ino, to);
        }
    }

    /// A name of `ino` in `dir` has gone; the last one, if it is a directory.
    fn remove_links(&mut self, dir: Ino, ino: Ino) {
        if self.dir(ino).is_ok() {
            self.bury(ino);
            self.drop_links(dir, 1);
        } else {
            self.drop_links(ino, 1);
        }
    }
}

fn bad_flags(flags: RenameFlags) -> Error {
    Error::because(
        Errno::EINVAL,
        format!(
            "flags {:#x}: a bpffs renames with none, NOREPLACE (1) or EXCHANGE (2)",
            flags.bits()
        ),
    )
}

struct Victim {
    dir: Ino,
    name: Box<[u8]>,
    ino: Ino,
    slash: bool,
}

/// `may_linkat`, as with `fs.protected_hardlinks`: EPERM for what the caller neither owns nor
/// can read and write, or would be dangerous to keep.
fn may_link(inode: &Inode, caller: &Caller) -> Result<()> {
    let set_gid_program = SET_GID | 0o010;
    let safe = matches!(inode.kind, Kind::Object(_))
        && inode.mode & SET_UID == 0
        && inode.mode & set_gid_program != set_gid_program
        && permission(inode, caller, READ | WRITE).is_ok();
    match safe {
        true => Ok(()),
        false => check_owner(inode, caller),
    }
}

/// `setattr_prepare`: the set-group-ID bit goes with a group that is not the caller's.
fn without_foreign_gid(caller: &Caller, gid: u32, mode: u16) -> u16 {
    if gid == caller.gid || caller.capabilities.contains(Capabilities::FSETID) {
        mode
    } else {
        mode & !SET_GID
    }
}

impl BpfFs {
    /// `mkdir(2)`: `mode` without the caller's umask; of its bits those of 01777 count. EEXIST,
    /// EACCES, EPERM outside the bpffs, ENOSPC.
    pub fn mkdir(&self, caller: &Caller, path: &[u8], mode: u16) -> Result<()> {
        self.with(|tree| {
            let (dir, name) = tree.vacant(caller, tree.cwd, path, true)?;
            tree.may_create(caller, dir)?;
            tree.check_bpffs(dir)?;
            let kind = Kind::Directory(Directory {
                parent: dir,
                entries: BTreeMap::new(),
                mount: Mount::Bpffs,
                mountpoint: false,
                dead: false,
            });
            let mode = mode & (STICKY | 0o777) & !caller.umask;
            tree.make(caller, dir, &name, mode, kind)
        })
    }

    /// `symlink(2)`: makes `path` a symbolic link to `target`, which need not exist. EEXIST,
    /// EACCES, EPERM outside the bpffs, ENOSPC.
    pub fn symlink(&self, caller: &Caller, target: &[u8], path: &[u8]) -> Result<()> {
        let target = name_of(target)?;
        self.with(|tree| {
            let (dir, name) = tree.vacant(caller, tree.cwd, path, false)?;
            tree.may_create(caller, dir)?;
            tree.check_bpffs(dir)?;
            tree.make(caller, dir, &name, 0o777, Kind::Symlink(target.into()))
        })
    }

    /// `link(2)`: another name for what `existing` names, itself if that is a symbolic link.
    /// EEXIST, EXDEV, EPERM for a directory and for
    /// others' files that the caller cannot read and write, EACCES, ENOSPC.
    pub fn link(&self, caller: &Caller, existing: &[u8], path: &[u8]) -> Result<()> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, existing, false)?;
            let (dir, name) = tree.vacant(caller, tree.cwd, path, false)?;
            let mount = match tree.dir(ino) {
                Ok(existing) => existing.mount,
                Err(_) => Mount::Bpffs,
            };
            if mount != tree.dir(dir)?.mount {
                return Err(OTHER_MOUNT);
            }
            may_link(tree.inode(ino)?, caller)?;
            tree.may_create(caller, dir)?;
            if tree.inode(ino)?.is_dir() {
                return Err(Error::new(
                    Errno::EPERM,
                    "a directory cannot have a second name",
                ));
            }
            tree.check_room()?;
            tree.enter(dir, &name, ino);
            tree.add_links(ino, 1);
            Ok(())
        })
    }

    /// `unlink(2)`: takes a name away, and with the last one the reference to what is pinned.
    /// EACCES, EPERM for another's file in a sticky directory, EISDIR.
    pub fn unlink(&self, caller: &Caller, path: &[u8]) -> Result<()> {
        self.with(|tree| {
            let parent = tree.walk_parent(caller, tree.cwd, path)?;
            let is_dir = Error::new(Errno::EISDIR, "the path names a directory");
            let victim = tree.victim(parent, |_| is_dir.clone())?;
            if victim.slash {
                return Err(match tree.inode(victim.ino)?.is_dir() {
                    true => is_dir,
                    false => NOT_A_DIRECTORY,
                });
            }
            tree.may_delete(caller, victim.dir, victim.ino, false)?;
            tree.leave(victim.dir, &victim.name);
            tree.remove_links(victim.dir, victim.ino);
            Ok(())
        })
    }

    /// `rmdir(2)`. ENOTEMPTY, ENOTDIR, EINVAL for `.`, EBUSY for a mount, EACCES, EPERM.
    pub fn rmdir(&self, caller: &Caller, path: &[u8]) -> Result<()> {
        self.with(|tree| {
            let parent = tree.walk_parent(caller, tree.cwd, path)?;
            let victim = tree.victim(parent, |last| match last {
                Last::DotDot => NOT_EMPTY,
                Last::Dot => Error::new(Errno::EINVAL, "'.' cannot be removed"),
                _ => MOUNTPOINT,
            })?;
            tree.may_delete(caller, victim.dir, victim.ino, true)?;
            if tree.is_mountpoint(victim.ino) {
                return Err(MOUNTPOINT);
            }
            tree.check_bpffs(victim.dir)?;
            if tree.has_entries(victim.ino) {
                return Err(NOT_EMPTY);
            }
            tree.leave(victim.dir, &victim.name);
            tree.remove_links(victim.dir, victim.ino);
            Ok(())
        })
    }

    /// `renameat2(2)`. EINVAL for flags other than NOREPLACE or EXCHANGE, for both, and for a
    /// move of a directory into itself; EXDEV, EBUSY, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY,
    /// EACCES, EPERM.
    pub fn rename(
        &self,
        caller: &Caller,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        let others = RenameFlags::NOREPLACE | RenameFlags::WHITEOUT;
        let bad = !known.contains(flags)
            || flags.contains(RenameFlags::EXCHANGE) && flags.intersects(others);
        if bad {
            return Err(bad_flags(flags));
        }
        self.with(|tree| {
            let from = tree.walk_parent(caller, tree.cwd, old)?;
            let to = tree.walk_parent(caller, tree.cwd, new)?;
            tree.rename(caller, from, to, flags)
        })
    }

    /// `readlink(2)`: the target of a symbolic link. EINVAL for anything else.
    pub fn read_link(&self, caller: &Caller, path: &[u8]) -> Result<Vec<u8>> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, false)?;
            match &tree.inode(ino)?.kind {
                Kind::Symlink(target) => Ok(target.to_vec()),
                _ => Err(Error::new(Errno::EINVAL, "the path names no symbolic link")),
            }
        })
    }

    /// `chmod(2)`: sets the permission bits. EPERM for those who do not own the file, and
    /// outside the bpffs.
    pub fn chmod(&self, caller: &Caller, path: &[u8], mode: u16) -> Result<()> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, true)?;
            if tree.inode(ino)?.is_dir() {
                tree.check_bpffs(ino)?;
            }
            let inode = tree.inode_mut(ino)?;
            check_owner(inode, caller)?;
            inode.mode = without_foreign_gid(caller, inode.gid, mode & ALL_BITS);
            Ok(())
        })
    }

    /// `chown(2)`: sets the owner, the group, or both; a symbolic link is followed. EPERM for
    /// those who may not give the file away, and outside the bpffs.
    pub fn chown(
        &self,
        caller: &Caller,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, true)?;
            if tree.inode(ino)?.is_dir() {
                tree.check_bpffs(ino)?;
            }
            let inode = tree.inode_mut(ino)?;
            let owner = inode.uid == caller.uid;
            let may = caller.capabilities.contains(Capabilities::CHOWN);
            let uid_ok = uid.is_none_or(|uid| owner && uid == inode.uid);
            let gid_ok = gid.is_none_or(|gid| owner && (gid == inode.gid || gid == caller.gid));
            if !(may || uid_ok && gid_ok) {
                return Err(Error::because(
                    Errno::EPERM,
                    format!(
                        "user {} needs CAP_CHOWN to give away a file of user {} and group {}",
                        caller.uid, inode.uid, inode.gid
                    ),
                ));
            }
            // `ATTR_KILL_SUID` and `ATTR_KILL_SGID`, which only the owner can have done.
            let mut mode = inode.mode;
            if !inode.is_dir() {
                mode &= !SET_UID;
                if mode & 0o010 != 0 {
                    mode &= !SET_GID;
                }
                mode = without_foreign_gid(caller, inode.gid, mode);
            }
            if mode != inode.mode {
                check_owner(inode, caller)?;
                inode.mode = without_foreign_gid(caller, gid.unwrap_or(inode.gid), mode);
            }
            inode.uid = uid.unwrap_or(inode.uid);
            inode.gid = gid.unwrap_or(inode.gid);
            Ok(())
        })
    }

    /// `stat(2)`: follows a symbolic link.
    pub fn stat(&self, caller: &Caller, path: &[u8]) -> Result<Stat> {
        self.status(caller, path, true)
    }

    /// `lstat(2)`: does not follow one at the end of the path.
    pub fn lstat(&self, caller: &Caller, path: &[u8]) -> Result<Stat> {
        self.status(caller, path, false)
    }

    fn status(&self, caller: &Caller, path: &[u8], follow: bool) -> Result<Stat> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, follow)?;
            let inode = tree.inode(ino)?;
            Ok(Stat {
                ino,
                kind: kind_of(inode),
                mode: inode.mode,
                nlink: inode.nlink,
                uid: inode.uid,
                gid: inode.gid,
            })
        })
    }

    /// `readdir(3)`: the names in a directory without `.` and `..`, the newest first, as
    /// `dcache_readdir` tells them. ENOTDIR, EACCES.
    pub fn read_dir(&self, caller: &Caller, path: &[u8]) -> Result<Vec<DirEntry>> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, true)?;
            let dir = tree.dir(ino)?;
            permission(tree.inode(ino)?, caller, READ)?;
            let mut found: Vec<_> = dir.entries.iter().collect();
            found.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.age));
            found
                .into_iter()
                .map(|(name, entry)| {
                    Ok(DirEntry {
                        name: name.to_vec(),
                        ino: entry.ino,
                        kind: kind_of(tree.inode(entry.ino)?),
                    })
                })
                .collect()
        })
    }

    /// `chdir(2)`: relative paths start there from now on; at first they start at `/`.
    pub fn chdir(&self, caller: &Caller, path: &[u8]) -> Result<()> {
        self.with(|tree| {
            let ino = tree.walk(caller, tree.cwd, path, true)?;
            tree.dir(ino)?;
            permission(tree.inode(ino)?, caller, EXEC)?;
            tree.hold(ino);
            let before = std::mem::replace(&mut tree.cwd, ino);
            tree.release(before);
            Ok(())
        })
    }
}
