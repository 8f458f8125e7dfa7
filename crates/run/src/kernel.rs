//! The kernel's own objects that stand for ours: small maps, whose descriptors, ids, pins and lives
//! are the kernel's.

use crate::memory::ATTR_BYTES;
use crate::sys;
use offmap_bpf::command as c;
use offmap_bpf::{MapFlags, MapType};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Room for any information structure: the kernel says how much it has.
const INFO_BYTES: usize = 256;

/// Offsets in the attribute of MAP_CREATE.
pub(crate) mod create {
    pub(crate) const MAX_ENTRIES: usize = 12;
    pub(crate) const FLAGS: usize = 16;
    pub(crate) const INNER_MAP_FD: usize = 20;
    pub(crate) const NUMA_NODE: usize = 24;
    pub(crate) const NAME: usize = 28;
    pub(crate) const IFINDEX: usize = 44;
    pub(crate) const BTF_FD: usize = 48;
    pub(crate) const KEY_TYPE: usize = 52;
    pub(crate) const VALUE_TYPE: usize = 56;
    /// After the last field that a map which stands for another has.
    pub(crate) const END: usize = 72;
}

/// A native 32-bit field; 0 where the bytes end before.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    let have = bytes.get(at..).unwrap_or_default();
    let len = have.len().min(4);
    raw[..len].copy_from_slice(&have[..len]);
    u32::from_ne_bytes(raw)
}

/// A native 64-bit field, likewise.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    let have = bytes.get(at..).unwrap_or_default();
    let len = have.len().min(8);
    raw[..len].copy_from_slice(&have[..len]);
    u64::from_ne_bytes(raw)
}

/// Sets a field.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
}

/// What the kernel says about a map's descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Info {
    /// Its `enum bpf_map_type`.
    pub(crate) map_type: u32,
    /// Its id.
    pub(crate) id: u32,
}

/// The kernel's map side, as far as this process may use it.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Bytes of this kernel's `struct bpf_map_info`: those of programs and BTF objects have
    /// other lengths, and nothing else tells what a descriptor is of in one call.
    map_info_bytes: u32,
}

impl Kernel {
    /// The kernel, if it lets this process make maps, and see and reach them by id.
    ///
    /// # Errors
    ///
    /// EPERM mostly.
    pub(crate) fn probe() -> io::Result<Self> {
        let mut attr = [0; create::END];
        for (at, value) in [(0, MapType::ARRAY.0), (4, 4), (8, 8), (12, 1)] {
            put(&mut attr, at, value);
        }
        let map = map_create(&mut attr)?;
        let mut info = [0; INFO_BYTES];
        let map_info_bytes = info_by_fd(&map, &mut info)?;
        let id = u32_at(&info, 4);
        match next_map_id(id - 1)? == Some(id) {
            true => Ok(Self { map_info_bytes }),
            false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    /// What is behind a descriptor, if it is a map.
    pub(crate) fn map_info(&self, fd: &OwnedFd) -> Option<Info> {
        let mut info = [0; INFO_BYTES];
        let len = info_by_fd(fd, &mut info).ok()?;
        (len == self.map_info_bytes).then(|| Info {
            map_type: u32_at(&info, 0),
            id: u32_at(&info, 4),
        })
    }
}

/// MAP_CREATE.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn map_create(attr: &mut [u8; create::END]) -> io::Result<OwnedFd> {
    // SAFETY: what is within `END` has no addresses.
    #[expect(unsafe_code, reason = "see above")]
    let got = unsafe { sys::bpf(c::MAP_CREATE, attr) };
    got.map(sys::opened)
}

/// OBJ_GET_INFO_BY_FD: how long the kernel's structure is.
fn info_by_fd(fd: &OwnedFd, info: &mut [u8; INFO_BYTES]) -> io::Result<u32> {
    let mut attr = [0; 16];
    put(&mut attr, 0, fd.as_raw_fd() as u32);
    put(&mut attr, 4, INFO_BYTES as u32);
    attr[8..].copy_from_slice(&(info.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
    // SAFETY: the structure is as long as the attribute says, and zero, so that no address in it
    // is followed.
    #[expect(unsafe_code, reason = "see above")]
    let got = unsafe { sys::bpf(c::OBJ_GET_INFO_BY_FD, &mut attr) };
    got.map(|_| u32_at(&attr, 4))
}

/// The id and the bytes of a BTF object.
///
/// # Errors
///
/// The kernel's: EINVAL for something else than BTF.
pub(crate) fn btf_bytes(fd: &OwnedFd) -> io::Result<(u32, Vec<u8>)> {
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let mut info = [0; 32];
        let to = bytes.as_mut_ptr().expose_provenance() as u64;
        info[..8].copy_from_slice(&to.to_ne_bytes());
        put(&mut info, 8, bytes.len() as u32);
        let mut attr = [0; 16];
        put(&mut attr, 0, fd.as_raw_fd() as u32);
        put(&mut attr, 4, info.len() as u32);
        let at = info.as_mut_ptr().expose_provenance() as u64;
        attr[8..].copy_from_slice(&at.to_ne_bytes());
        // SAFETY: both structures are as long as they say and outlive the call. Of a program's
        // or a map's information the first word is no address that is written to.
        #[expect(unsafe_code, reason = "see above")]
        unsafe { sys::bpf(c::OBJ_GET_INFO_BY_FD, &mut attr) }?;
        if u32_at(&attr, 4) as usize != info.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let len = u32_at(&info, 8) as usize;
        match len <= bytes.len() {
            true => {
                bytes.truncate(len);
                return Ok((u32_at(&info, 12), bytes));
            }
            false => bytes = vec![0; len],
        }
    }
}

/// OBJ_GET.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn pinned(path: &std::path::Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attr = [0; 16];
    attr[..8].copy_from_slice(&(path.as_ptr().expose_provenance() as u64).to_ne_bytes());
    // SAFETY: the path ends with a NUL, and is only read.
    #[expect(unsafe_code, reason = "see above")]
    let got = unsafe { sys::bpf(c::OBJ_GET, &mut attr) };
    got.map(sys::opened)
}

/// MAP_FREEZE.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn freeze(fd: &OwnedFd) -> io::Result<()> {
    let mut attr = [0; 4];
    put(&mut attr, 0, fd.as_raw_fd() as u32);
    // SAFETY: the attribute has no addresses.
    #[expect(unsafe_code, reason = "see above")]
    let got = unsafe { sys::bpf(c::MAP_FREEZE, &mut attr) };
    got.map(drop)
}

/// MAP_GET_NEXT_ID; `None` at the end.
///
/// # Errors
///
/// EPERM.
pub(crate) fn next_map_id(after: u32) -> io::Result<Option<u32>> {
    let mut attr = [0; 12];
    put(&mut attr, 0, after);
    // SAFETY: the attribute has no addresses.
    #[expect(unsafe_code, reason = "see above")]
    let got = unsafe { sys::bpf(c::MAP_GET_NEXT_ID, &mut attr) };
    match got {
        Ok(_) => Ok(Some(u32_at(&attr, 4))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the map of that id still lives: somebody holds a descriptor of it or it is pinned.
pub(crate) fn map_lives(id: u32) -> bool {
    next_map_id(id.saturating_sub(1)).is_ok_and(|next| next == Some(id))
}

/// A map of the kernel that stands for the one which `attr` asks for: of its type, key and value where
/// the kernel lets that be, with one entry.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn stand_in(
    attr: &[u8; ATTR_BYTES],
    btf: Option<BorrowedFd<'_>>,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut like = [0; create::END];
    like.copy_from_slice(&attr[..create::END]);
    put(&mut like, create::IFINDEX, 0);
    put(&mut like, create::NUMA_NODE, 0);
    put(&mut like, create::MAX_ENTRIES, 1);
    let modes = (MapFlags::RDONLY | MapFlags::WRONLY).bits();
    let flags = u32_at(attr, create::FLAGS);
    let kept = flags & (modes | MapFlags::NO_PREALLOC.bits() | MapFlags::NO_COMMON_LRU.bits());
    put(&mut like, create::FLAGS, kept);
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(0, |fd| fd.as_raw_fd() as u32);
    put(&mut like, create::INNER_MAP_FD, number(inner));
    put(&mut like, create::BTF_FD, number(btf));
    if btf.is_none() {
        put(&mut like, create::KEY_TYPE, 0);
        put(&mut like, create::VALUE_TYPE, 0);
    }
    if let Ok(map) = map_create(&mut like) {
        return Ok(map);
    }
    // What it cannot make with types it may make without.
    for at in [create::BTF_FD, create::KEY_TYPE, create::VALUE_TYPE] {
        put(&mut like, at, 0);
    }
    if let Ok(map) = map_create(&mut like) {
        return Ok(map);
    }
    let mut any = [0; create::END];
    for (at, value) in [(0, MapType::ARRAY.0), (4, 4), (8, 8), (12, 1)] {
        put(&mut any, at, value);
    }
    put(&mut any, create::FLAGS, flags & modes);
    any[create::NAME..create::NAME + 16].copy_from_slice(&like[create::NAME..create::NAME + 16]);
    map_create(&mut any)
}
