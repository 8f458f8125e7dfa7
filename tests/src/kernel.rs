//! The running kernel's maps, through bpf(2) itself.
//!
//! Unsafe: the system call, whose attribute holds the addresses of our buffers.
#![allow(unsafe_code, reason = "see above")]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chroot;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::subject::{Answered, Subject, Walked};
use offmap_bpf::SystemConfig;
use offmap_bpf::uapi::MapCreateAttr;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

static CALLS: AtomicU64 = AtomicU64::new(0);
static SHORTAGES: AtomicU64 = AtomicU64::new(0);
/// How often an insertion that the kernel has no memory for is made again, and after what pause.
const SHORTAGE_TRIES: u32 = 1000;
const SHORTAGE_PAUSE: Duration = Duration::from_millis(1);

/// bpf(2) calls that this process has made.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Insertions that were made again because the kernel had no memory for them at that moment.
pub fn shortages() -> u64 {
    SHORTAGES.load(Ordering::Relaxed)
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

/// The kernel's possible CPUs: the number of values in an element of a per-CPU map.
pub fn possible_cpus() -> u32 {
    SystemConfig::default().possible_cpus
}

/// The part of `union bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
    path_fd: i32,
    pad: u32,
}

fn obj(path: &CStr, bpf_fd: i32, file_flags: u32, path_fd: i32) -> ObjAttr {
    ObjAttr {
        pathname: path.as_ptr().expose_provenance() as u64,
        bpf_fd: bpf_fd as u32,
        file_flags,
        path_fd,
        pad: 0,
    }
}

/// BPF_OBJ_PIN.
pub fn obj_pin(path: &CStr, bpf_fd: i32, file_flags: u32, path_fd: i32) -> Answered {
    let mut attr = obj(path, bpf_fd, file_flags, path_fd);
    // SAFETY: the kernel reads the path up to its NUL.
    unsafe { bpf(BPF_OBJ_PIN, &raw mut attr) }.map(drop)
}

/// BPF_OBJ_GET.
pub fn obj_get(path: &CStr, file_flags: u32, path_fd: i32) -> Result<OwnedFd, i32> {
    let mut attr = obj(path, 0, file_flags, path_fd);
    // SAFETY: the kernel reads the path up to its NUL.
    let fd = unsafe { bpf(BPF_OBJ_GET, &raw mut attr) }?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn answered(result: libc::c_long) -> Answered {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// `renameat2(2)` of two paths from the working directory.
pub fn rename2(old: &CStr, new: &CStr, flags: u32) -> Answered {
    let at = libc::AT_FDCWD;
    // SAFETY: the kernel reads both paths up to their NULs.
    answered(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            at,
            old.as_ptr(),
            at,
            new.as_ptr(),
            flags,
        )
    })
}

/// Makes this thread, and only it, another user on file systems. One that is not 0 has no
/// capability there.
pub fn set_fs_user(uid: u32, gid: u32) {
    // SAFETY: the call touches no memory.
    unsafe { libc::setfsgid(gid) };
    // SAFETY: as above.
    unsafe { libc::setfsuid(uid) };
}

/// Gives this thread, and only it, a mount namespace of its own, whose root is on `base` and
/// has nothing but a fresh bpffs at `/sys/fs/bpf`; `/` and `/sys` are two file systems that
/// cannot be written to. The umask becomes 022. For a thread that ends when its test does.
pub fn enter_bpffs_world(base: &Path) -> io::Result<()> {
    let sys = base.join("sys");
    let fs = sys.join("fs");
    let bpf = fs.join("bpf");
    // SAFETY: neither call touches memory.
    answered(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) }.into())
        .map_err(io::Error::from_raw_os_error)?;
    // SAFETY: as above.
    unsafe { libc::umask(0o022) };
    mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, None)?;
    mount(Some(c"tmpfs"), base, 0, Some(c"mode=755"))?;
    fs::create_dir(&sys)?;
    mount(Some(c"tmpfs"), &sys, 0, Some(c"mode=755"))?;
    fs::create_dir(&fs)?;
    fs::create_dir(&bpf)?;
    mount(Some(c"bpf"), &bpf, 0, None)?;
    for tmpfs in [&*sys, base] {
        mount(None, tmpfs, libc::MS_REMOUNT | libc::MS_RDONLY, None)?;
    }
    chroot(base)?;
    std::env::set_current_dir("/")
}

fn mount(
    kind: Option<&CStr>,
    target: &Path,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    let data = data.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings are null or end with a NUL, and the kernel only reads them.
    let done = unsafe { libc::mount(kind, target.as_ptr(), kind, flags, data.cast()) };
    answered(done.into()).map_err(io::Error::from_raw_os_error)
}

/// `struct { … } map_create` of `union bpf_attr`, as far as the types.
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
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_value_type_id: u32,
    map_extra: u64,
}

/// The part of `union bpf_attr` for BPF_BTF_LOAD.
#[repr(C)]
#[derive(Default)]
struct BtfLoadAttr {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    btf_log_true_size: u32,
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
    /// Of a batch walk's token.
    token_bytes: usize,
}

impl KernelMap {
    /// BPF_MAP_CREATE with the fields of `attr` up to `map_extra`, without BTF.
    pub fn create(attr: &MapCreateAttr) -> Result<Self, i32> {
        Self::create_typed(attr, None)
    }

    /// BPF_MAP_CREATE with the key and value types of `attr`, in this BTF.
    pub fn create_typed(attr: &MapCreateAttr, btf: Option<BorrowedFd<'_>>) -> Result<Self, i32> {
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
            btf_fd: btf.map_or(0, |fd| fd.as_raw_fd() as u32),
            btf_key_type_id: btf.map_or(0, |_| attr.btf_key_type_id),
            btf_value_type_id: btf.map_or(0, |_| attr.btf_value_type_id),
            btf_vmlinux_value_type_id: 0,
            map_extra: attr.map_extra,
        };
        // SAFETY: the attribute holds no address, and the kernel reads `size_of` bytes of it.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &raw mut raw) }?;
        // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let percpu = offmap_bpf::uapi::MapType(attr.map_type).is_percpu();
        Ok(Self {
            fd,
            key_bytes: attr.key_size as usize,
            // The last key returned, which of an array has 4 bytes, too.
            token_bytes: match offmap_bpf::uapi::MapType(attr.map_type) {
                offmap_bpf::uapi::MapType::LPM_TRIE => attr.key_size as usize,
                _ => 4,
            },
            value_bytes: if percpu {
                (attr.value_size as usize).next_multiple_of(8) * possible_cpus() as usize
            } else {
                attr.value_size as usize
            },
        })
    }

    /// The map's id and what it accounts for in bytes, as `/proc/self/fdinfo` has them.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    pub fn id_and_memlock(&self) -> (u32, u64) {
        let path = format!("/proc/self/fdinfo/{}", self.raw_fd());
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

    /// The map behind a descriptor, of keys and values as `like` has them.
    pub fn from_fd(fd: OwnedFd, like: &Self) -> Self {
        Self {
            fd,
            key_bytes: like.key_bytes,
            value_bytes: like.value_bytes,
            token_bytes: like.token_bytes,
        }
    }

    /// The descriptor's number.
    pub fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Bytes of one value as user space passes it.
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// A number that `/proc/self/fdinfo` says of the map, such as `memlock`.
    pub fn fdinfo(&self, field: &str) -> Option<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field))?;
        line.strip_prefix(':')?.trim().parse().ok()
    }

    /// `memlock` of the descriptor's fdinfo: what the map accounts for, in bytes.
    pub fn memlock(&self) -> Option<u64> {
        self.fdinfo("memlock")
    }

    fn element(&self, key: Option<&[u8]>) -> ElementAttr {
        if let Some(key) = key {
            assert_eq!(key.len(), self.key_bytes);
        }
        ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            // A map without keys wants no address (`___bpf_copy_key`).
            key: key
                .filter(|key| !key.is_empty())
                .map_or(0, |key| key.as_ptr().expose_provenance() as u64),
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

/// Makes an insertion until the kernel has memory for it, or has had none for a second.
///
/// Elements of a map that is not preallocated come from a per-CPU reserve which the kernel
/// refills from interrupt work without waiting (`kernel/bpf/memalloc.c`); per-CPU values are
/// allocated for it from chunks that a workqueue populates (`mm/percpu.c`). Insertions in quick
/// succession can find both empty and get ENOMEM. That is the machine's state, not the map's
/// answer.
fn patiently(mut call: impl FnMut() -> Answered) -> Answered {
    for _ in 0..SHORTAGE_TRIES {
        match call() {
            Err(libc::ENOMEM) => {
                SHORTAGES.fetch_add(1, Ordering::Relaxed);
                thread::sleep(SHORTAGE_PAUSE);
            }
            other => return other,
        }
    }
    call()
}

/// BPF_BTF_LOAD.
pub fn btf_load(blob: &[u8]) -> Result<OwnedFd, i32> {
    btf_load_logged(blob, &mut [])
}

/// BPF_BTF_LOAD, with what the kernel says about it in `log`, up to a NUL.
pub fn btf_load_logged(blob: &[u8], log: &mut [u8]) -> Result<OwnedFd, i32> {
    let mut attr = BtfLoadAttr {
        btf: blob.as_ptr().expose_provenance() as u64,
        btf_size: blob.len() as u32,
        ..BtfLoadAttr::default()
    };
    if !log.is_empty() {
        attr.btf_log_buf = log.as_mut_ptr().expose_provenance() as u64;
        attr.btf_log_size = log.len() as u32;
        attr.btf_log_level = 1;
    }
    // SAFETY: the blob is as long as it is said to be and only read; the log likewise, and
    // nobody else has it.
    let fd = unsafe { bpf(BPF_BTF_LOAD, &raw mut attr) }?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
        patiently(|| {
            // SAFETY: key and value are as long as the map's; the kernel only reads them.
            unsafe { bpf(BPF_MAP_UPDATE_ELEM, &raw mut attr) }.map(drop)
        })
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
        let mut before = 0;
        let got = patiently(|| {
            let left = count - before;
            let mut attr = self.batch(left, elem_flags, 0);
            let (keys, values) = (
                &keys[before as usize * self.key_bytes..],
                &values[before as usize * self.value_bytes..],
            );
            attr.keys = keys.as_ptr().expose_provenance() as u64;
            attr.values = values.as_ptr().expose_provenance() as u64;
            // SAFETY: both arrays hold `count` elements, from the `before`-th on `left`; the
            // kernel only reads them.
            let got = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &raw mut attr) }.map(drop);
            // One that is refused for want of memory goes on where it ended.
            before += done(attr.count, left, got);
            got
        });
        (before, got)
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
        cursor: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked {
        fits(keys, count as usize, self.key_bytes);
        fits(values, count as usize, self.value_bytes);
        if let Some(cursor) = cursor {
            fits(cursor, 1, self.token_bytes);
        }
        let mut to = cursor.map_or_else(|| vec![0; self.token_bytes], <[u8]>::to_vec);
        let mut attr = self.batch(count, elem_flags, 0);
        attr.in_batch = cursor.map_or(0, |token| token.as_ptr().expose_provenance() as u64);
        attr.out_batch = to.as_mut_ptr().expose_provenance() as u64;
        attr.keys = keys.as_mut_ptr().expose_provenance() as u64;
        attr.values = values.as_mut_ptr().expose_provenance() as u64;
        let command = if delete {
            BPF_MAP_LOOKUP_AND_DELETE_BATCH
        } else {
            BPF_MAP_LOOKUP_BATCH
        };
        // SAFETY: both arrays have room for `count` elements; both tokens are as
        // long as the map's.
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
        Err(libc::EINVAL | libc::EPERM | libc::ENOMEM | 524) if count == asked => 0,
        _ => count,
    }
}

/// Something that a program does with a ring buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingOp {
    /// `bpf_ringbuf_output` of so many bytes, each of them `fill`, with flags.
    Output {
        /// Bytes of the record, at most [`RingOp::OUTPUT_MAX`].
        bytes: u32,
        /// What they hold.
        fill: u8,
        /// Flags.
        flags: u64,
    },
    /// `bpf_ringbuf_reserve`; its first 8 bytes, if it has them, become `fill`; then
    /// `bpf_ringbuf_submit`, or `bpf_ringbuf_discard`.
    Reserve {
        /// Bytes of the record.
        bytes: u32,
        /// What its first 8 bytes hold.
        fill: u8,
        /// Whether it is discarded.
        discard: bool,
        /// Flags of the reservation.
        flags: u64,
    },
    /// `bpf_ringbuf_query`.
    Query {
        /// Which figure.
        flag: u64,
    },
}

impl RingOp {
    /// Bytes that an output takes from the program's stack at most.
    pub const OUTPUT_MAX: u32 = 480;

    /// The instructions of a program that does it on the map behind `fd`. It returns what the
    /// helper did, and for a reservation 0, or 1 when there was none.
    fn program(self, fd: i32) -> Vec<u64> {
        let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| {
            let regs = u64::from(dst | src << 4);
            u64::from(code) | regs << 8 | u64::from(off as u16) << 16 | u64::from(imm as u32) << 32
        };
        let load64 = |dst, src, value: u64| {
            [
                insn(0x18, dst, src, 0, value as u32 as i32),
                insn(0, 0, 0, 0, (value >> 32) as i32),
            ]
        };
        let (map, call, exit) = (
            load64(1, 1, u64::from(fd as u32)),
            |helper| insn(0x85, 0, 0, 0, helper),
            insn(0x95, 0, 0, 0, 0),
        );
        let eight = |fill: u8| load64(6, 0, u64::from_ne_bytes([fill; 8]));
        let mut program = Vec::new();
        match self {
            Self::Output { bytes, fill, flags } => {
                assert!(bytes <= Self::OUTPUT_MAX);
                let words = bytes.div_ceil(8).max(1) as i16;
                program.extend(eight(fill));
                for word in 1..=words {
                    // *(u64 *)(r10 - 8 * word) = r6
                    program.push(insn(0x7b, 10, 6, -8 * word, 0));
                }
                program.extend(map);
                program.push(insn(0xbf, 2, 10, 0, 0));
                program.push(insn(0x07, 2, 0, 0, i32::from(-8 * words)));
                program.push(insn(0xb7, 3, 0, 0, bytes as i32));
                program.extend(load64(4, 0, flags));
                program.extend([call(130), exit]);
            }
            Self::Reserve {
                bytes,
                fill,
                discard,
                flags,
            } => {
                program.extend(map);
                program.push(insn(0xb7, 2, 0, 0, bytes as i32));
                program.extend(load64(3, 0, flags));
                program.push(call(131));
                // if r0 != 0 go on; otherwise return 1
                program.extend([insn(0x55, 0, 0, 2, 0), insn(0xb7, 0, 0, 0, 1), exit]);
                if bytes >= 8 {
                    program.extend(eight(fill));
                    program.push(insn(0x7b, 0, 6, 0, 0));
                }
                program.push(insn(0xbf, 1, 0, 0, 0));
                program.push(insn(0xb7, 2, 0, 0, 0));
                program.push(call(if discard { 133 } else { 132 }));
                program.extend([insn(0xb7, 0, 0, 0, 0), exit]);
            }
            Self::Query { flag } => {
                program.extend(map);
                program.extend(load64(2, 0, flag));
                program.extend([call(134), exit]);
            }
        }
        program
    }
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// A ring buffer of the running kernel, which programs fill and whose memory is mapped.
#[derive(Debug)]
pub struct KernelRing {
    map: KernelMap,
    data_bytes: usize,
    /// The consumer's page, writable.
    consumer: *mut u64,
    /// The producer's page, and the data twice, read only.
    producer: *const u64,
}

const PAGE: usize = 4096;

impl KernelRing {
    /// A ring with a data area of `data_bytes`. The error number of BPF_MAP_CREATE or of a
    /// mapping.
    pub fn create(data_bytes: u32) -> Result<Self, i32> {
        let map = KernelMap::create(&MapCreateAttr {
            map_type: offmap_bpf::MapType::RINGBUF.0,
            max_entries: data_bytes,
            ..MapCreateAttr::default()
        })?;
        let data_bytes = data_bytes as usize;
        let consumer = map.mmap(PAGE, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let producer = match map.mmap(PAGE + 2 * data_bytes, libc::PROT_READ, PAGE) {
            Ok(producer) => producer,
            Err(errno) => {
                // SAFETY: mapped above with this length, and used by nobody yet.
                unsafe { libc::munmap(consumer, PAGE) };
                return Err(errno);
            }
        };
        Ok(Self {
            map,
            data_bytes,
            consumer: consumer.cast(),
            producer: producer.cast_const().cast(),
        })
    }

    /// The map, for the commands on it.
    pub fn map(&mut self) -> &mut KernelMap {
        &mut self.map
    }

    /// Has a program do `op`; what it returned.
    pub fn run(&mut self, op: RingOp) -> Result<i32, i32> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        const SOCKET_FILTER: u32 = 1;
        let program = op.program(self.map.fd.as_raw_fd());
        let mut load = LoadAttr {
            prog_type: SOCKET_FILTER,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr().expose_provenance() as u64,
            license: c"GPL".as_ptr().expose_provenance() as u64,
            ..LoadAttr::default()
        };
        // SAFETY: the kernel reads the instructions, of which there are as many as it is told,
        // and the string.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &raw mut load) }?;
        // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let packet = [0u8; 64];
        let mut run = RunAttr {
            prog_fd: fd.as_raw_fd() as u32,
            data_size_in: packet.len() as u32,
            data_in: packet.as_ptr().expose_provenance() as u64,
            repeat: 1,
            ..RunAttr::default()
        };
        // SAFETY: the kernel reads the packet, and writes only the attribute.
        unsafe { bpf(BPF_PROG_TEST_RUN, &raw mut run) }?;
        Ok(run.retval as i32)
    }

    /// The producer position.
    pub fn producer_position(&self) -> u64 {
        // SAFETY: the start of the mapped page, aligned; the kernel changes the word only while
        // a program of ours runs.
        unsafe { self.producer.read_volatile() }
    }

    /// Stores the consumer position.
    pub fn set_consumer_position(&mut self, position: u64) {
        // SAFETY: the start of the mapped page, aligned and writable.
        unsafe { self.consumer.write_volatile(position) }
    }

    /// The data area.
    pub fn data(&self) -> Vec<u8> {
        let mut out = vec![0; self.data_bytes];
        let from: *const u8 = self.producer.cast();
        // SAFETY: the producer's page is followed by the data area in the mapping.
        let from = unsafe { from.add(PAGE) };
        // SAFETY: the area has as many bytes as `out`, which is ours; no program runs meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
        out
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and used by nobody any more.
        unsafe { libc::munmap(self.consumer.cast(), PAGE) };
        let producer = self.producer.cast_mut().cast();
        // SAFETY: as above.
        unsafe { libc::munmap(producer, PAGE + 2 * self.data_bytes) };
    }
}

impl KernelMap {
    /// `mmap(2)` of the map, shared. The error number.
    fn mmap(&self, len: usize, protection: i32, offset: usize) -> Result<*mut libc::c_void, i32> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd,
                offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        Ok(at)
    }
}
