//! Who may do what with an inode (`inode_permission`, `may_delete`, `setattr_prepare`).

use super::tree::{Ino, Inode, STICKY, Tree};
use crate::caller::{Caller, Capabilities};
use crate::errno::Errno;
use crate::error::{Error, Result};

/// `MAY_EXEC`: for a directory, to look names up in it.
pub(super) const EXEC: u16 = 1;
/// `MAY_WRITE`.
pub(super) const WRITE: u16 = 2;
/// `MAY_READ`.
pub(super) const READ: u16 = 4;

/// `generic_permission`: EACCES unless the owner's, the group's or the others' bits allow
/// `mask`, or a capability overrides them.
pub(super) fn permission(inode: &Inode, caller: &Caller, mask: u16) -> Result<()> {
    let allowed = if inode.uid == caller.uid {
        inode.mode >> 6
    } else if inode.gid == caller.gid {
        inode.mode >> 3
    } else {
        inode.mode
    };
    if mask & !allowed == 0 {
        return Ok(());
    }
    let has = |capability| caller.capabilities.contains(capability);
    let reads_only = if inode.is_dir() {
        mask & WRITE == 0
    } else {
        mask == READ
    };
    let overridable = inode.is_dir() || mask & EXEC == 0 || inode.mode & 0o111 != 0;
    if reads_only && has(Capabilities::DAC_READ_SEARCH)
        || overridable && has(Capabilities::DAC_OVERRIDE)
    {
        return Ok(());
    }
    Err(Error::because(
        Errno::EACCES,
        format!(
            "mode {:04o} of user {} and group {} does not give access {mask:#o} to user {} of \
             group {}, who has no CAP_DAC_OVERRIDE",
            inode.mode, inode.uid, inode.gid, caller.uid, caller.gid
        ),
    ))
}

/// `inode_owner_or_capable`: EPERM unless the caller owns the inode or has CAP_FOWNER.
pub(super) fn check_owner(inode: &Inode, caller: &Caller) -> Result<()> {
    if inode.uid == caller.uid || caller.capabilities.contains(Capabilities::FOWNER) {
        return Ok(());
    }
    Err(Error::because(
        Errno::EPERM,
        format!(
            "the file belongs to user {} and the caller is user {} without CAP_FOWNER",
            inode.uid, caller.uid
        ),
    ))
}

impl Tree {
    /// `may_create`: whether names may be added to a directory.
    pub(super) fn may_create(&self, caller: &Caller, dir: Ino) -> Result<()> {
        if self.dir(dir)?.dead {
            return Err(Error::new(Errno::ENOENT, "the directory was removed"));
        }
        permission(self.inode(dir)?, caller, WRITE | EXEC)
    }

    /// `may_delete`: whether `victim` may leave `dir`; `as_dir` tells what the caller takes it
    /// for. EACCES, EPERM for another's file in a sticky directory, ENOTDIR, EBUSY, EISDIR,
    /// ENOENT.
    pub(super) fn may_delete(
        &self,
        caller: &Caller,
        dir: Ino,
        victim: Ino,
        as_dir: bool,
    ) -> Result<()> {
        let (parent, inode) = (self.inode(dir)?, self.inode(victim)?);
        permission(parent, caller, WRITE | EXEC)?;
        if parent.mode & STICKY != 0 && parent.uid != caller.uid {
            check_owner(inode, caller)?;
        }
        match (as_dir, inode.is_dir()) {
            (true, false) => Err(Error::new(Errno::ENOTDIR, "the file is no directory")),
            (false, true) => Err(Error::new(Errno::EISDIR, "the file is a directory")),
            _ if self.dir(dir)?.dead => Err(Error::new(Errno::ENOENT, "the directory was removed")),
            _ => Ok(()),
        }
    }
}
