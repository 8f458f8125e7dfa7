//! The system calls of a supervisor that no library wraps: seccomp's user notification, another
//! process's memory, and bpf(2) itself.
//!
//! Unsafe: each of them. What they are given lives as long as the call, and what they write goes to
//! structures of theirs.
#![allow(unsafe_code, reason = "see above")]

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): who waits is woken on the same processor.
const SYNC_WAKE_UP: u64 = 1;
/// `PIDFD_THREAD` (Linux 6.9): a descriptor of a thread, and not of its process.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notification {
    /// Names it to the kernel.
    pub(crate) id: u64,
    /// The thread that made it.
    pub(crate) tid: i32,
    /// Its arguments.
    pub(crate) args: [u64; 6],
}

/// Puts `filter` on this thread and all that it starts, and returns where the notifications
/// come. Without CAP_SYS_ADMIN the thread gives up gaining privileges by exec first.
///
/// # Errors
///
/// Those of seccomp(2): EBUSY where a filter with a listener is there already.
pub(crate) fn listen(filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let killable = flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let mut got = install_filter(&program, killable);
    if errno_of(got) == Some(libc::EACCES) {
        // SAFETY: the arguments of PR_SET_NO_NEW_PRIVS are numbers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        got = install_filter(&program, killable);
    }
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got as RawFd) })
}

fn install_filter(program: &libc::sock_fprog, flags: libc::c_ulong) -> libc::c_long {
    // SAFETY: the program and its instructions outlive the call, which only reads them.
    unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            std::ptr::from_ref(program),
        )
    }
}

/// The error of a call that returned `got`.
fn errno_of(got: libc::c_long) -> Option<i32> {
    (got < 0).then(|| io::Error::last_os_error().raw_os_error())?
}

/// Asks for synchronous wake-up, where the kernel has it.
pub(crate) fn wake_up_in_place(listener: &OwnedFd) {
    // SAFETY: the request takes a number and touches no memory. A kernel before 6.6 refuses.
    unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SYNC_WAKE_UP,
        )
    };
}

/// Takes the next notification, and waits for one. `None`: the call that it was of has ended
/// meanwhile, or a signal came.
///
/// # Errors
///
/// Those of the listener.
pub(crate) fn receive(listener: &OwnedFd) -> io::Result<Option<Notification>> {
    // SAFETY: it is plain numbers, of which zero is one; the kernel insists on zero.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure, which outlives the call.
    let got = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut notification,
        )
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::EINTR) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(Some(Notification {
        id: notification.id,
        tid: notification.pid as i32,
        args: notification.data.args,
    }))
}

/// What becomes of a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// It returns this.
    Value(i64),
    /// It fails with this error number.
    Fails(i32),
    /// The kernel carries it out.
    Continue,
}

/// Answers a notification. That its thread has died meanwhile is no error.
///
/// # Errors
///
/// Those of the listener.
pub(crate) fn answer(listener: &OwnedFd, id: u64, answer: Answer) -> io::Result<()> {
    // SAFETY: it is plain numbers, of which zero is one.
    let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
    response.id = id;
    match answer {
        Answer::Value(value) => response.val = value,
        Answer::Fails(errno) => response.error = -errno,
        Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    }
    // SAFETY: the kernel reads the structure, which outlives the call.
    let got = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut response,
        )
    };
    match errno_of(got.into()) {
        None | Some(libc::ENOENT) => Ok(()),
        Some(_) => Err(io::Error::last_os_error()),
    }
}

/// Whether a descriptor is a seccomp filter's listener: any other does not know the question.
pub(crate) fn is_listener(file: &OwnedFd) -> bool {
    let nobody = u64::MAX;
    // SAFETY: the kernel reads the number, which outlives the call.
    let got = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            &raw const nobody,
        )
    };
    errno_of(got.into()) == Some(libc::ENOENT)
}

/// Whether the notification's call still waits: its thread's number is its own until then.
pub(crate) fn is_waiting(listener: &OwnedFd, id: u64) -> bool {
    // SAFETY: the kernel reads the number, which outlives the call.
    let got = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            &raw const id,
        )
    };
    got == 0
}

/// Gives the notification's process a descriptor of `file`, close-on-exec: its number. The call waits
/// still.
///
/// # Errors
///
/// EMFILE and the like, of that process; ENOENT when the call waits no longer.
pub(crate) fn give(listener: &OwnedFd, id: u64, file: BorrowedFd<'_>) -> io::Result<i32> {
    let mut request = libc::seccomp_notif_addfd {
        id,
        flags: 0,
        srcfd: file.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the kernel reads the structure, which outlives the call.
    let got = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ADDFD,
            &raw mut request,
        )
    };
    match got {
        0.. => Ok(got),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies from the memory of a process: how many of the first bytes there were.
pub(crate) fn read_memory(pid: i32, address: u64, into: &mut [u8]) -> usize {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: into.len(),
    };
    // SAFETY: the kernel writes to `into`, which outlives the call, and no more than its length.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).unwrap_or(0)
}

/// Copies to the memory of a process: how many of the first bytes could be written.
pub(crate) fn write_memory(pid: i32, address: u64, from: &[u8]) -> usize {
    let local = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: from.len(),
    };
    // SAFETY: the kernel reads from `from`, which outlives the call. What it writes is another
    // process's memory, as the caller of bpf(2) there asked for.
    let got = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).unwrap_or(0)
}

/// bpf(2) of this process.
///
/// # Safety
///
/// Every address that `attr` holds for `command` is of memory that outlives the call, is as long
/// as `attr` says, and may be written where the command writes.
pub(crate) unsafe fn bpf(command: u32, attr: &mut [u8]) -> io::Result<i32> {
    // SAFETY: the attribute outlives the call; for the rest see above.
    let got = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            attr.as_mut_ptr(),
            attr.len() as libc::c_long,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(got as i32)
}

/// A descriptor that the kernel has just returned as a number.
pub(crate) fn opened(number: i32) -> OwnedFd {
    // SAFETY: only this module's `bpf` returns such numbers, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A descriptor that this process was started with, by its number.
pub(crate) fn inherited(number: i32) -> Option<OwnedFd> {
    // SAFETY: the call takes a number; it says whether there is such a descriptor.
    let there = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is there, and this process has only just begun: nobody else uses it.
    there.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor of a thread, or of its process where the kernel has no other (before 6.9), and which of
/// the two it is.
///
/// # Errors
///
/// ESRCH: it is gone.
pub(crate) fn open_thread(tid: i32) -> io::Result<(OwnedFd, bool)> {
    let pid = Pid::from_raw(tid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    match pidfd_open(pid, PidfdFlags::from_bits_retain(PIDFD_THREAD)) {
        Ok(fd) => Ok((fd, true)),
        Err(rustix::io::Errno::INVAL) => {
            let process = Pid::from_raw(process_of(tid)?);
            let process = process.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
            Ok((pidfd_open(process, PidfdFlags::empty())?, false))
        }
        Err(error) => Err(error.into()),
    }
}

/// The process that a thread is of.
fn process_of(tid: i32) -> io::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// A descriptor of the open file that another thread has as `number`.
///
/// # Errors
///
/// EBADF: it has none. ESRCH: it is gone. EPERM: it may not be looked into.
pub(crate) fn file_of(thread: &OwnedFd, number: i32) -> rustix::io::Result<OwnedFd> {
    pidfd_getfd(thread.as_fd(), number, PidfdGetfdFlags::empty())
}

/// Whether a process has not ended.
///
/// # Errors
///
/// ESRCH: it has.
pub(crate) fn is_there(process: &OwnedFd) -> rustix::io::Result<()> {
    let mut polled = [rustix::event::PollFd::new(
        process,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut polled, Some(&now))? {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::SRCH),
    }
}

/// Leaves the network namespace for a new one, and with `user` the user namespace as well.
///
/// # Errors
///
/// Those of unshare(2).
pub(crate) fn new_namespaces(user: bool) -> io::Result<()> {
    let flags = libc::CLONE_NEWNET | if user { libc::CLONE_NEWUSER } else { 0 };
    // SAFETY: the call takes a number and touches no memory; this process has one thread.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sizes of this process's structures for notifications fit the kernel's.
///
/// # Errors
///
/// ENOSYS or EINVAL: it has no user notification.
pub(crate) fn check_sizes() -> io::Result<()> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    // SAFETY: the kernel writes the structure, which outlives the call.
    let got = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_GET_NOTIF_SIZES),
            0,
            &raw mut sizes,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let fits = usize::from(sizes.seccomp_notif) <= size_of::<libc::seccomp_notif>()
        && usize::from(sizes.seccomp_notif_resp) <= size_of::<libc::seccomp_notif_resp>();
    match fits {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EOVERFLOW)),
    }
}
