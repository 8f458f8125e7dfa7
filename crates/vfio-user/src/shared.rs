//! Which files of a peer may be mapped.
//!
//! An access past the end of a mapped file kills the process that makes it. So a file is mapped
//! only if nobody can shorten it any more: a memfd that is sealed against that. QEMU's
//! `memory-backend-memfd` seals its memory by default.

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat, fstatfs};
use std::os::fd::AsFd;

/// File system type of huge pages. They may be missing at the first access, which kills, too.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Whether memory of this file, up to its present end, stays there.
///
/// # Errors
///
/// A sentence that says why it may not.
pub fn check(fd: impl AsFd) -> Result<(), &'static str> {
    let fd = fd.as_fd();
    let seals = fcntl_get_seals(fd).map_err(
        |_| "the file is no memfd that can be sealed (with QEMU: use memory-backend-memfd)",
    )?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(
            "the memfd is not sealed against shrinking (with QEMU: memory-backend-memfd, seal=on)",
        );
    }
    match fstatfs(fd) {
        Ok(stat) if stat.f_type == HUGETLBFS => {
            Err("the memory is of explicit huge pages, which may be missing at the first access")
        }
        Ok(_) => Ok(()),
        Err(_) => Err("the file's memory cannot be told apart from that of a device"),
    }
}

/// Whether the descriptor is one of a file, which has memory.
pub fn is_file(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Whether the file has `len` bytes at `start`.
pub fn holds(fd: impl AsFd, start: u64, len: u64) -> bool {
    fstat(fd)
        .ok()
        .and_then(|stat| u64::try_from(stat.st_size).ok())
        .is_some_and(|size| start <= size && len <= size - start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    #[test]
    fn only_what_cannot_be_shortened_is_mapped() {
        let memfd = memfd_create(c"shared", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let memfd = memfd.unwrap();
        ftruncate(&memfd, 8192).unwrap();
        assert!(check(&memfd).is_err());
        fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
        assert_eq!(check(&memfd), Ok(()));
        assert!(holds(&memfd, 0, 8192) && holds(&memfd, 8192, 0));
        assert!(!holds(&memfd, 1, 8192) && !holds(&memfd, u64::MAX, 2));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(check(&file).is_err() && is_file(&file) && is_file(&memfd));
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(check(&a).is_err() && !is_file(&a));
    }
}
