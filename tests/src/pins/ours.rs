//! Our side.

use super::{MAPS, Op, Outcome, Side};
use offmap_bpf::fs::{NodeKind, RenameFlags, Stat};
use offmap_bpf::{Caller, Capabilities, Error, Fd, MapCreateAttr, MapFlags, System, SystemConfig};
use std::sync::Arc;

/// A system with three maps.
pub struct Ours {
    system: Arc<System>,
    caller: Caller,
    maps: [Fd; MAPS],
    dir: Option<Fd>,
}

/// What a task loses on file systems that is not user 0 there (`CAP_FS_SET`).
const OF_USER_0: Capabilities = Capabilities::CHOWN
    .union(Capabilities::DAC_OVERRIDE)
    .union(Capabilities::DAC_READ_SEARCH)
    .union(Capabilities::FOWNER)
    .union(Capabilities::FSETID);

/// The attribute of map `number`: an array of one `u64`.
pub(super) fn map_attr(number: usize) -> MapCreateAttr {
    MapCreateAttr {
        map_type: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: [0, 8, 16][number],
        ..MapCreateAttr::default()
    }
}

fn number(error: Error) -> i32 {
    error.errno().0
}

fn letter(kind: NodeKind) -> char {
    match kind {
        NodeKind::Directory => 'd',
        NodeKind::Map => 'f',
        NodeKind::Symlink => 'l',
    }
}

fn stat(stat: Stat) -> Outcome {
    Outcome::Stat(
        letter(stat.kind),
        stat.mode.into(),
        stat.nlink.into(),
        stat.uid,
        stat.gid,
    )
}

impl Ours {
    /// A fresh one. Element 0 of map `n` holds `n` + 1, except that of the read-only map, which
    /// nobody can write.
    pub fn new() -> Self {
        let system = System::new(SystemConfig::default());
        let caller = Caller::root();
        let maps = std::array::from_fn(|number| {
            let fd = system.map_create(&caller, &map_attr(number)).unwrap();
            let value = (number as u64 + 1).to_ne_bytes();
            let _ = system.update(fd, &[0; 4], &value, 0);
            fd
        });
        Self {
            system,
            caller,
            maps,
            dir: None,
        }
    }

    fn dir(&self, used: bool) -> Option<Fd> {
        used.then(|| self.dir.unwrap_or(Fd(9999)))
    }

    fn do_op(&mut self, op: &Op) -> Result<Outcome, Error> {
        let (system, fs, caller) = (&self.system, self.system.fs(), &self.caller);
        match op {
            Op::User(uid, gid) => {
                let all = Capabilities::all();
                let capabilities = if *uid == 0 { all } else { all - OF_USER_0 };
                self.caller = Caller::root()
                    .as_user(*uid, *gid)
                    .with_capabilities(capabilities);
            }
            Op::Mkdir(path, mode) => fs.mkdir(caller, path, *mode)?,
            Op::Rmdir(path) => fs.rmdir(caller, path)?,
            Op::Unlink(path) => fs.unlink(caller, path)?,
            Op::Rename(old, new, flags) => {
                fs.rename(caller, old, new, RenameFlags::from_bits_retain(*flags))?;
            }
            Op::Link(old, new) => fs.link(caller, old, new)?,
            Op::Symlink(target, path) => fs.symlink(caller, target, path)?,
            Op::ReadLink(path) => return Ok(Outcome::Bytes(fs.read_link(caller, path)?)),
            Op::Chmod(path, mode) => fs.chmod(caller, path, *mode)?,
            Op::Chown(path, uid, gid) => fs.chown(caller, path, *uid, *gid)?,
            Op::Stat(path) => return Ok(stat(fs.stat(caller, path)?)),
            Op::Lstat(path) => return Ok(stat(fs.lstat(caller, path)?)),
            Op::ReadDir(path) => {
                let entries = fs.read_dir(caller, path)?.into_iter();
                let names = entries.map(|entry| (entry.name, letter(entry.kind)));
                return Ok(Outcome::Names(names.collect()));
            }
            Op::Chdir(path) => fs.chdir(caller, path)?,
            Op::OpenDir(path) => {
                let dir = system.open_dir(caller, path)?;
                if let Some(before) = self.dir.replace(dir) {
                    system.close(before)?;
                }
            }
            Op::CloseDir => {
                if let Some(dir) = self.dir.take() {
                    system.close(dir)?;
                }
            }
            Op::Pin(path, map, at) => {
                let fd = self.maps.get(*map).copied().unwrap_or(Fd(-1));
                system.obj_pin(caller, fd, path, self.dir(*at))?;
            }
            Op::Get(path, flags, at) => {
                let flags = MapFlags::from_bits_retain(*flags);
                let fd = system.obj_get_at(caller, path, self.dir(*at), flags)?;
                let mut value = [0; 8];
                let read = system.lookup(fd, &[0; 4], &mut value, 0).map_err(number);
                let read = read.map(|()| u64::from_ne_bytes(value));
                // With BPF_NOEXIST, so that the maps stay what they are.
                let written = system.update(fd, &[0; 4], &value, 1).map_err(number);
                system.close(fd)?;
                return Ok(Outcome::Map(read, written));
            }
        }
        Ok(Outcome::Done)
    }
}

impl Default for Ours {
    fn default() -> Self {
        Self::new()
    }
}

impl Side for Ours {
    fn run(&mut self, op: &Op) -> Result<Outcome, i32> {
        self.do_op(op).map_err(number)
    }
}
