//! The two sides of a comparison, kept in step.

use crate::kernel::{self, Arena};
use offmap_bpf::{Caller, Errno, Error, Fault, Fd, System, SystemConfig, UserMemory};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The lowest descriptor of the comparison. What this process has open otherwise is below.
pub(crate) const FIRST_FD: i32 = 600;
/// Bytes of the arena.
const ARENA_BYTES: usize = 64 << 10;

/// A piece of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Region {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// An id in the arena: the kernel's on its side, ours on ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IdAt {
    pub(crate) at: usize,
    pub(crate) kind: IdKind,
}

/// Of which kind of object an id is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum IdKind {
    Map,
    Btf,
}

/// One call: the attribute is in the arena.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) command: u32,
    pub(crate) attr: u64,
    pub(crate) size: u32,
    /// What the call may read or write, its attribute included.
    pub(crate) regions: Vec<Region>,
    /// Ids that the call takes: where, the kernel's number and ours.
    pub(crate) ids_in: Vec<(usize, u32, u32)>,
    /// Ids that it returns when it succeeds, or comes to the end of the map.
    pub(crate) ids_out: Vec<IdAt>,
    /// Outputs that no rule fixes: not compared, and taken over from the kernel.
    pub(crate) unspecified: Vec<Region>,
    /// The command's name in reports.
    pub(crate) what: &'static str,
}

/// What a call came to on both sides.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) kernel: Result<i32, i32>,
    pub(crate) ours: Result<i32, Error>,
    /// Bytes that differ: offset in the arena, the kernel's and ours.
    pub(crate) bytes: Option<(usize, u8, u8)>,
}

impl Answer {
    pub(crate) fn agree(&self) -> bool {
        let same = match (&self.kernel, &self.ours) {
            (Ok(kernel), Ok(ours)) => kernel == ours,
            (Err(kernel), Err(ours)) => Errno(*kernel) == ours.errno(),
            _ => false,
        };
        same && self.bytes.is_none()
    }
}

/// Our side's copy of the arena.
struct Copy {
    base: u64,
    bytes: Mutex<Vec<u8>>,
}

impl Copy {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where `len` bytes at `address` are, and how many of them there are before the end.
fn within(base: u64, have: usize, address: u64, len: usize) -> Result<(usize, usize), Fault> {
    let offset = address
        .checked_sub(base)
        .filter(|&offset| offset < have as u64)
        .ok_or(Fault { address })? as usize;
    Ok((offset, len.min(have - offset)))
}

impl UserMemory for Copy {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        if into.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes();
        let (at, len) = within(self.base, bytes.len(), address, into.len())?;
        if len < into.len() {
            return Err(Fault {
                address: address + len as u64,
            });
        }
        into.copy_from_slice(&bytes[at..at + len]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        if from.is_empty() {
            return Ok(());
        }
        let mut bytes = self.bytes();
        let have = bytes.len();
        let (at, len) = within(self.base, have, address, from.len())?;
        bytes[at..at + len].copy_from_slice(&from[..len]);
        if len < from.len() {
            return Err(Fault {
                address: address + len as u64,
            });
        }
        Ok(())
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        let end = self.base + self.bytes().len() as u64;
        address >= self.base && len <= end.saturating_sub(address)
    }
}

/// Both sides.
pub(crate) struct Sides {
    arena: Arena,
    copy: Copy,
    system: Arc<System>,
    caller: Caller,
    /// The kernel's descriptors, by number.
    fds: BTreeMap<i32, OwnedFd>,
    /// Ours by the kernel's.
    ids: BTreeMap<(IdKind, u32), u32>,
    foreign: File,
    pins: PinDir,
}

/// A directory of the kernel's bpffs, gone with the comparison; and the same name in ours.
struct PinDir {
    path: String,
    /// Whether the kernel's bpffs is there and can be written to.
    usable: bool,
}

impl PinDir {
    fn new() -> Self {
        let path = format!("/sys/fs/bpf/offmap_diff_{}", std::process::id());
        let usable = fs::create_dir(&path).is_ok();
        Self { path, usable }
    }

    fn clear(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            // What cannot be removed shows as a difference.
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if self.usable {
            self.clear();
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Sides {
    pub(crate) fn new(config: &SystemConfig) -> io::Result<Self> {
        let arena = Arena::new(ARENA_BYTES)?;
        Ok(Self {
            copy: Copy {
                base: arena.base(),
                bytes: Mutex::new(vec![0; arena.len()]),
            },
            arena,
            system: System::new(config.clone()),
            caller: Caller::root(),
            fds: BTreeMap::new(),
            ids: BTreeMap::new(),
            foreign: kernel::foreign_file()?,
            pins: PinDir::new(),
        })
    }

    /// Closes everything, and goes on with a fresh system and a zeroed arena.
    pub(crate) fn restart(&mut self, config: &SystemConfig) {
        self.fds.clear();
        self.ids.clear();
        self.system = System::new(config.clone());
        if self.pins.usable {
            self.pins.clear();
            let made = self
                .system
                .fs()
                .mkdir(&self.caller, self.pins.path.as_bytes(), 0o755);
            self.pins.usable = made.is_ok();
        }
        self.arena.bytes_mut().fill(0);
        self.copy.bytes().fill(0);
    }

    pub(crate) fn base(&self) -> u64 {
        self.arena.base()
    }

    pub(crate) const fn len(&self) -> usize {
        self.arena.len()
    }

    pub(crate) fn system(&self) -> &Arc<System> {
        &self.system
    }

    /// Whether there is a directory for pins on both sides.
    pub(crate) const fn has_pins(&self) -> bool {
        self.pins.usable
    }

    /// That directory.
    pub(crate) fn pin_dir(&self) -> &str {
        &self.pins.path
    }

    /// A descriptor that is open and not a map's on both sides.
    pub(crate) fn foreign_fd(&self) -> i32 {
        self.foreign.as_raw_fd()
    }

    /// Writes the same bytes on both sides.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.arena.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.copy.bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Fills a region on both sides.
    pub(crate) fn fill(&mut self, region: Region, byte: u8) {
        self.arena.bytes_mut()[region.at..region.at + region.len].fill(byte);
        self.copy.bytes()[region.at..region.at + region.len].fill(byte);
    }

    /// What the kernel left there.
    pub(crate) fn get(&self, at: usize, len: usize) -> &[u8] {
        &self.arena.bytes()[at..at + len]
    }

    /// Our id for the kernel's.
    pub(crate) fn our_id(&self, kind: IdKind, kernel: u32) -> Option<u32> {
        self.ids.get(&(kind, kernel)).copied()
    }

    /// Ties the kernel's id to ours.
    pub(crate) fn same_id(&mut self, kind: IdKind, kernel: u32, ours: u32) {
        self.ids.insert((kind, kernel), ours);
    }

    /// Makes the call on both sides.
    pub(crate) fn call(&mut self, call: &Call) -> Answer {
        for &(at, kernel, ours) in &call.ids_in {
            self.arena.bytes_mut()[at..at + 4].copy_from_slice(&kernel.to_ne_bytes());
            self.copy.bytes()[at..at + 4].copy_from_slice(&ours.to_ne_bytes());
        }
        let kernel = self.arena.call(call.command, call.attr, call.size);
        let ours = self
            .system
            .bpf(&self.caller, &self.copy, call.command, call.attr, call.size);
        let kernel = self.keep_descriptor(kernel, &ours);
        let fault = kernel == Err(libc::EFAULT);
        if !fault {
            // An id that a call takes stays what it was on each side.
            for &(at, kernel, _) in &call.ids_in {
                self.copy.bytes()[at..at + 4].copy_from_slice(&kernel.to_ne_bytes());
            }
            // A walk that comes to the end says ENOENT, and has returned elements.
            let returned = |errno| matches!(errno, libc::ENOENT | libc::ENOSPC);
            match (&kernel, &ours) {
                (Ok(_), Ok(_)) => self.translate(&call.ids_out),
                (Err(theirs), Err(error))
                    if returned(*theirs) && error.errno() == Errno(*theirs) =>
                {
                    self.translate(&call.ids_out);
                }
                _ => {}
            }
        }
        let bytes = self.compare(call, fault);
        Answer {
            kernel,
            ours,
            bytes,
        }
    }

    /// A call that opens a descriptor does so on both sides, at the same number.
    fn keep_descriptor(
        &mut self,
        kernel: Result<i32, i32>,
        ours: &Result<i32, Error>,
    ) -> Result<i32, i32> {
        let fd = match kernel {
            Ok(fd) if fd > 0 => fd,
            // Opened on our side alone.
            _ => {
                if let Ok(fd) = ours
                    && *fd > 0
                {
                    let _ = self.system.close(Fd(*fd));
                }
                return kernel;
            }
        };
        let Ok(moved) = kernel::move_up(fd, FIRST_FD) else {
            return kernel;
        };
        let number = moved.as_raw_fd();
        match ours {
            Ok(ours) if *ours == number => {
                self.fds.insert(number, moved);
            }
            Ok(ours) => {
                let _ = self.system.close(Fd(*ours));
            }
            Err(_) => {}
        }
        Ok(number)
    }

    /// Replaces our ids in our copy by the kernel's of the same object.
    fn translate(&self, ids: &[IdAt]) {
        for id in ids {
            let kernel = u32::from_ne_bytes(self.get(id.at, 4).try_into().unwrap_or([0; 4]));
            let mut bytes = self.copy.bytes();
            let ours = &mut bytes[id.at..id.at + 4];
            if self
                .our_id(id.kind, kernel)
                .map(u32::to_ne_bytes)
                .as_ref()
                .map(|o| &o[..])
                == Some(&*ours)
            {
                ours.copy_from_slice(&kernel.to_ne_bytes());
            }
        }
    }

    /// The first byte that differs in what the call could reach; our copy is made equal again.
    fn compare(&mut self, call: &Call, fault: bool) -> Option<(usize, u8, u8)> {
        let mut found = None;
        let mut copy = self.copy.bytes();
        let theirs = self.arena.bytes();
        for region in &call.unspecified {
            let range = region.at..region.at + region.len;
            copy[range.clone()].copy_from_slice(&theirs[range]);
        }
        for region in &call.regions {
            let range = region.at..region.at + region.len;
            if copy[range.clone()] != theirs[range.clone()] {
                // What `copy_to_user` wrote before a fault is the architecture's business.
                if !fault && found.is_none() {
                    let at = range.clone().find(|&at| copy[at] != theirs[at]);
                    found = at.map(|at| (at, theirs[at], copy[at]));
                }
                copy[range.clone()].copy_from_slice(&theirs[range]);
            }
        }
        found
    }

    /// Whether the whole arena is the same on both sides: what a call wrote where it had no
    /// business to.
    pub(crate) fn all_equal(&self) -> Option<(usize, u8, u8)> {
        let copy = self.copy.bytes();
        let theirs = self.arena.bytes();
        if *copy == *theirs {
            return None;
        }
        let at = (0..theirs.len()).find(|&at| copy[at] != theirs[at])?;
        Some((at, theirs[at], copy[at]))
    }

    /// close(2) on both sides.
    pub(crate) fn close(&mut self, fd: i32) -> bool {
        let theirs = self.fds.remove(&fd).is_some();
        let ours = self.system.close(Fd(fd)).is_ok();
        theirs == ours
    }

    /// dup(2) on both sides, to the lowest free number of the comparison; EMFILE excluded.
    pub(crate) fn dup(&mut self, fd: i32) -> Option<i32> {
        let theirs = self.fds.get(&fd)?;
        let moved = rustix::io::fcntl_dupfd_cloexec(theirs, FIRST_FD).ok()?;
        let ours = self.system.dup(Fd(fd)).ok()?;
        let number = moved.as_raw_fd();
        if ours.0 != number {
            return None;
        }
        self.fds.insert(number, moved);
        Some(number)
    }
}
