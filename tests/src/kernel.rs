//! The running kernel's maps, through bpf(2) itself.
//!
//! Unsafe: the system call, whose attribute holds the addresses of our buffers.
#![allow(unsafe_code, reason = "see above")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::subject::{Answered, Subject, Walked};
use offmap_bpf::uapi::MapCreateAttr;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// bpf(2) calls that this process has made.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Whether this process may create maps in the running kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Availability {
    /// It may.
    Yes,
    /// It may not, and why.
    No(String),
}

/// Finds out by creating an array of one element.
pub fn availability() -> Availability {
    let attr = MapCreateAttr {
        map_type: 2,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapCreateAttr::default()
    };
    match KernelMap::create(&attr) {
        Ok(_) => Availability::Yes,
        Err(errno) => Availability::No(format!(
            "BPF_MAP_CREATE: {}",
            io::Error::from_raw_os_error(errno)
        )),
    }
}

/// The kernel's possible CPUs: the number of values in an element of a per-CPU map. 1 when
/// the kernel does not say.
pub fn possible_cpus() -> u32 {
    // A list such as `0-3,8-11`; the kernel sizes its per-CPU values by the highest of them
    // plus one only where the mask has no holes, so the CPUs are counted one by one.
    let Ok(list) = fs::read_to_string("/sys/devices/system/cpu/possible") else {
        return 1;
    };
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let first: u32 = first.parse().ok()?;
            let last: u32 = last.parse().ok()?;
            Some(last.checked_sub(first)? + 1)
        })
        .sum::<u32>()
        .max(1)
}

/// `struct { … } map_create` of `union bpf_attr`, as far as `map_ifindex`.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
}

/// The part of `union bpf_attr` for the commands on one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for the batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map of the running kernel; closed when dropped.
///
/// Errors are raw error numbers, for comparison with ours.
#[derive(Debug)]
pub struct KernelMap {
    fd: OwnedFd,
    key_bytes: usize,
    /// Of one element as user space passes it.
    value_bytes: usize,
}

impl KernelMap {
    /// BPF_MAP_CREATE with the fields of `attr` up to `map_ifindex`.
    pub fn create(attr: &MapCreateAttr) -> Result<Self, i32> {
        let mut raw = CreateAttr {
            map_type: attr.map_type,
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_flags: attr.map_flags,
            inner_map_fd: attr.inner_map_fd,
            numa_node: attr.numa_node,
            map_name: attr.map_name,
            map_ifindex: attr.map_ifindex,
        };
        // SAFETY: the attribute holds no address, and the kernel reads `size_of` bytes of it.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &raw mut raw) }?;
        // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let percpu = offmap_bpf::uapi::MapType(attr.map_type).is_percpu();
        Ok(Self {
            fd,
            key_bytes: attr.key_size as usize,
            value_bytes: if percpu {
                (attr.value_size as usize).next_multiple_of(8) * possible_cpus() as usize
            } else {
                attr.value_size as usize
            },
        })
    }

    /// The descriptor's number, as the value of a map of maps or as `inner_map_fd`.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The map's id and what it accounts for in bytes, as `/proc/self/fdinfo` has them.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    pub fn id_and_memlock(&self) -> (u32, u64) {
        let path = format!("/proc/self/fdinfo/{}", self.fd());
        let text = fs::read_to_string(path).expect("fdinfo");
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {text:?}"))
        };
        (field("map_id") as u32, field("memlock"))
    }

    /// Whether a map with this id can be opened (BPF_MAP_GET_FD_BY_ID).
    pub fn is_listed(id: u32) -> bool {
        let mut attr = [id, 0, 0];
        // SAFETY: the attribute holds no address.
        match unsafe { bpf(BPF_MAP_GET_FD_BY_ID, &raw mut attr) } {
            Ok(fd) => {
                // SAFETY: the kernel has just opened this descriptor for us.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
                true
            }
            Err(_) => false,
        }
    }

    /// Bytes of one value as user space passes it.
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    fn element(&self, key: Option<&[u8]>) -> ElementAttr {
        if let Some(key) = key {
            assert_eq!(key.len(), self.key_bytes);
        }
        ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: key.map_or(0, |key| key.as_ptr().expose_provenance() as u64),
            ..ElementAttr::default()
        }
    }

    fn batch(&self, count: u32, elem_flags: u64, flags: u64) -> BatchAttr {
        BatchAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            count,
            elem_flags,
            flags,
            ..BatchAttr::default()
        }
    }
}

/// bpf(2). Returns what the kernel returned, or the error number.
///
/// # Safety
///
/// Every address in `attr` is null or that of a buffer as long as `command` makes the kernel
/// read or write it, which outlives the call; where the kernel writes, nobody else uses the
/// buffer meanwhile.
unsafe fn bpf<T>(command: libc::c_long, attr: *mut T) -> Result<i32, i32> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `attr` points to a whole T; the caller answers for the addresses inside it.
    let got = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if got < 0 {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        Ok(got as i32)
    }
}

/// Checks of the caller's slices, on which the safety of the calls below rests.
fn fits(slice: &[u8], count: usize, each: usize) {
    assert!(slice.len() >= count * each, "buffer too short for the call");
}

impl Subject for KernelMap {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        fits(value, 1, self.value_bytes);
        let mut attr = self.element(Some(key));
        attr.value_or_next_key = value.as_mut_ptr().expose_provenance() as u64;
        attr.flags = flags;
        // SAFETY: key and value are as long as the map's, as checked above.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &raw mut attr) }.map(drop)
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered {
        fits(value, 1, self.value_bytes);
        let mut attr = self.element(Some(key));
        attr.value_or_next_key = value.as_ptr().expose_provenance() as u64;
        attr.flags = flags;
        // SAFETY: key and value are as long as the map's; the kernel only reads them.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &raw mut attr) }.map(drop)
    }

    fn delete(&mut self, key: &[u8]) -> Answered {
        let mut attr = self.element(Some(key));
        // SAFETY: the key is as long as the map's.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &raw mut attr) }.map(drop)
    }

    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered {
        fits(next, 1, self.key_bytes);
        let mut attr = self.element(key);
        attr.value_or_next_key = next.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: `key` is null or as long as the map's, and so is `next`.
        unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &raw mut attr) }.map(drop)
    }

    fn lookup_and_delete(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        fits(value, 1, self.value_bytes);
        let mut attr = self.element(Some(key));
        attr.value_or_next_key = value.as_mut_ptr().expose_provenance() as u64;
        attr.flags = flags;
        // SAFETY: key and value are as long as the map's.
        unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &raw mut attr) }.map(drop)
    }

    fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
    ) -> (u32, Answered) {
        fits(keys, count as usize, self.key_bytes);
        fits(values, count as usize, self.value_bytes);
        let mut attr = self.batch(count, elem_flags, 0);
        attr.keys = keys.as_ptr().expose_provenance() as u64;
        attr.values = values.as_ptr().expose_provenance() as u64;
        // SAFETY: both arrays hold `count` elements; the kernel only reads them.
        let got = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &raw mut attr) }.map(drop);
        (done(attr.count, count, got), got)
    }

    fn delete_batch(&mut self, keys: &[u8], count: u32, elem_flags: u64) -> (u32, Answered) {
        fits(keys, count as usize, self.key_bytes);
        let mut attr = self.batch(count, elem_flags, 0);
        attr.keys = keys.as_ptr().expose_provenance() as u64;
        // SAFETY: the array holds `count` keys; the kernel only reads it.
        let got = unsafe { bpf(BPF_MAP_DELETE_BATCH, &raw mut attr) }.map(drop);
        (done(attr.count, count, got), got)
    }

    fn walk_batch(
        &mut self,
        cursor: Option<u32>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked {
        fits(keys, count as usize, self.key_bytes);
        fits(values, count as usize, self.value_bytes);
        // Tokens are 32 bits for hash types and the key, also 32 bits, for arrays.
        let from = cursor.unwrap_or(0);
        let mut to = from;
        let mut attr = self.batch(count, elem_flags, 0);
        attr.in_batch = cursor.map_or(0, |_| (&raw const from).expose_provenance() as u64);
        attr.out_batch = (&raw mut to).expose_provenance() as u64;
        attr.keys = keys.as_mut_ptr().expose_provenance() as u64;
        attr.values = values.as_mut_ptr().expose_provenance() as u64;
        let command = if delete {
            BPF_MAP_LOOKUP_AND_DELETE_BATCH
        } else {
            BPF_MAP_LOOKUP_BATCH
        };
        // SAFETY: both arrays have room for `count` elements; both tokens are 4 bytes and
        // outlive the call.
        let got = unsafe { bpf(command, &raw mut attr) }.map(drop);
        Walked {
            count: done(attr.count, count, got),
            cursor: to,
            result: got,
        }
    }

    fn freeze(&mut self) -> Answered {
        let mut attr = self.element(None);
        // SAFETY: the command reads only the descriptor.
        unsafe { bpf(BPF_MAP_FREEZE, &raw mut attr) }.map(drop)
    }
}

/// Elements that a batch call did. A call that was refused outright leaves the caller's count
/// as it was, which stands for none.
fn done(count: u32, asked: u32, result: Answered) -> u32 {
    match result {
        Err(libc::EINVAL | libc::EPERM | 524) if count == asked => 0,
        _ => count,
    }
}
