//! From a path to an inode (`fs/namei.c`).

use super::perm::{EXEC, permission};
use super::tree::{Ino, Kind, ROOT, Tree};
use crate::caller::Caller;
use crate::errno::Errno;
use crate::error::{Error, Result};

/// `NAME_MAX`.
pub(super) const MAX_NAME_BYTES: usize = 255;
/// `PATH_MAX` without the NUL.
pub(super) const MAX_PATH_BYTES: usize = 4095;
/// `MAXSYMLINKS`.
const MAX_SYMLINKS: u32 = 40;

pub(super) const NO_ENTRY: Error = Error::new(
    Errno::ENOENT,
    "a component of the path names nothing that exists",
);
const NOT_A_DIRECTORY: Error = Error::new(
    Errno::ENOTDIR,
    "a component of the path is used as a directory and is none",
);

/// `getname`: a path ends at its first NUL. ENOENT when it is empty, ENAMETOOLONG when it is
/// longer than 4095 bytes.
pub(super) fn name_of(path: &[u8]) -> Result<&[u8]> {
    let end = path.iter().position(|&byte| byte == 0);
    let path = &path[..end.unwrap_or(path.len())];
    if path.is_empty() {
        return Err(Error::new(Errno::ENOENT, "the path is empty"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::because(
            Errno::ENAMETOOLONG,
            format!(
                "a path of {} bytes or more: a path has at most {MAX_PATH_BYTES}",
                path.len()
            ),
        ));
    }
    Ok(path)
}

/// The last component of a path (`enum` `LAST_NORM`…).
#[derive(PartialEq, Eq)]
pub(super) enum Last {
    Normal(Box<[u8]>),
    Dot,
    DotDot,
    Root,
}

/// The directory that the last component of a path is looked up in.
pub(super) struct Parent {
    pub(super) dir: Ino,
    pub(super) last: Last,
    /// A slash follows the last component.
    pub(super) slash: bool,
}

struct Walk<'a> {
    tree: &'a Tree,
    caller: &'a Caller,
    at: Ino,
    rest: Vec<u8>,
    position: usize,
    links: u32,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a Tree, caller: &'a Caller, start: Ino, path: &[u8]) -> Result<Self> {
        let path = name_of(path)?;
        Ok(Self {
            tree,
            caller,
            at: if path[0] == b'/' { ROOT } else { start },
            rest: path.to_vec(),
            position: 0,
            links: 0,
        })
    }

    fn skip_slashes(&mut self) -> bool {
        let from = self.position;
        while self.rest.get(self.position) == Some(&b'/') {
            self.position += 1;
        }
        self.position != from
    }

    /// `link_path_walk`: everything but the last component.
    fn before_last(&mut self) -> Result<(Last, bool)> {
        self.skip_slashes();
        if self.position == self.rest.len() {
            return Ok((Last::Root, false));
        }
        loop {
            permission(self.tree.inode(self.at)?, self.caller, EXEC)?;
            let from = self.position;
            let component = &self.rest[from..];
            let length = component.iter().position(|&byte| byte == b'/');
            let name: Box<[u8]> = component[..length.unwrap_or(component.len())].into();
            self.position = from + name.len();
            let slash = self.skip_slashes();
            let last = match &*name {
                b"." => Last::Dot,
                b".." => Last::DotDot,
                _ => Last::Normal(name),
            };
            if self.position == self.rest.len() {
                return Ok((last, slash));
            }
            let to = self.step(&last)?;
            if let Kind::Symlink(target) = &self.tree.inode(to)?.kind {
                // What follows has a component, so this is never the end of the path.
                self.follow(target)?;
                self.skip_slashes();
                continue;
            }
            self.tree.dir(to).map_err(|_| NOT_A_DIRECTORY)?;
            self.at = to;
        }
    }

    fn step(&self, last: &Last) -> Result<Ino> {
        match last {
            Last::Root | Last::Dot => Ok(self.at),
            Last::DotDot => Ok(self.tree.dir(self.at)?.parent),
            Last::Normal(name) => self.tree.lookup(self.at, name)?.ok_or(NO_ENTRY),
        }
    }

    /// Puts a link's target before what is left of the path.
    fn follow(&mut self, target: &[u8]) -> Result<()> {
        if self.links == MAX_SYMLINKS {
            return Err(Error::because(
                Errno::ELOOP,
                format!("the path goes through more than {MAX_SYMLINKS} symbolic links"),
            ));
        }
        self.links += 1;
        if target.first() == Some(&b'/') {
            self.at = ROOT;
        }
        let mut rest = target.to_vec();
        if self.position < self.rest.len() {
            rest.push(b'/');
            rest.extend_from_slice(&self.rest[self.position..]);
        }
        self.rest = rest;
        self.position = 0;
        Ok(())
    }
}

impl Tree {
    /// The directory of a path's last component, which need not exist (`filename_parentat`).
    pub(super) fn walk_parent(&self, caller: &Caller, start: Ino, path: &[u8]) -> Result<Parent> {
        let mut walk = Walk::new(self, caller, start, path)?;
        let (last, slash) = walk.before_last()?;
        Ok(Parent {
            dir: walk.at,
            last,
            slash,
        })
    }

    /// What a path names (`filename_lookup`); a symbolic link at its end is followed if
    /// `follow` is set or a slash comes after it.
    pub(super) fn walk(
        &self,
        caller: &Caller,
        start: Ino,
        path: &[u8],
        follow: bool,
    ) -> Result<Ino> {
        let mut walk = Walk::new(self, caller, start, path)?;
        let mut directory = false;
        loop {
            let (last, slash) = walk.before_last()?;
            directory |= slash;
            let to = walk.step(&last)?;
            match &self.inode(to)?.kind {
                Kind::Symlink(target) if follow || directory => walk.follow(target)?,
                Kind::Directory(_) => return Ok(to),
                _ if directory => return Err(NOT_A_DIRECTORY),
                _ => return Ok(to),
            }
        }
    }
}
