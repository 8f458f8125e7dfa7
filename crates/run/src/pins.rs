//! Pins in the kernel's file system that would have nothing behind them.

use crate::kernel;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, fstatfs, openat, unlinkat};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC`.
const BPF_FS: u64 = 0xcafe_4a11;
/// Deepest directory that is looked into.
const DEPTH: usize = 32;

/// Removes the pins of maps for which `stale` holds, wherever a bpffs is mounted: made by whichever
/// path, renamed or linked. Directories are held open while they are looked at, and are of a bpffs, so
/// that no path leads anywhere else.
pub(crate) fn remove(stale: impl Fn(&OwnedFd) -> bool) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some("bpf")) = (fields.next(), fields.next()) else {
            continue;
        };
        let place = Path::new(place);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(directory) = openat(CWD, place, flags, Mode::empty()) {
            look_into(&directory, place, 0, &stale, &mut removed);
        }
    }
    removed
}

fn look_into(
    directory: &OwnedFd,
    path: &Path,
    depth: usize,
    stale: &impl Fn(&OwnedFd) -> bool,
    removed: &mut Vec<PathBuf>,
) {
    let is_bpf = fstatfs(directory).is_ok_and(|fs| fs.f_type as u64 == BPF_FS);
    if !is_bpf || depth > DEPTH {
        return;
    }
    let mut space = [MaybeUninit::<u8>::uninit(); 4096];
    let mut names = Vec::new();
    let mut entries = RawDir::new(directory.as_fd(), &mut space);
    while let Some(Ok(entry)) = entries.next() {
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inner) = openat(directory, &name, flags, Mode::empty()) {
                look_into(&inner, &path, depth + 1, stale, removed);
            }
            continue;
        }
        let at = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let at = Path::new(&at).join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let is_stale = kernel::pinned(&at).is_ok_and(|file| stale(&file));
        if is_stale && unlinkat(directory, &name, AtFlags::empty()).is_ok() {
            removed.push(path);
        }
    }
}
