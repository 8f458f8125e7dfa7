//! Error numbers as user space sees them.

use std::fmt;

/// An error number, positive, as in `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$meta:meta])* $name:ident = $value:expr, $text:expr;)*) => {
        impl Errno {
            $($(#[$meta])* pub const $name: Self = Self($value);)*

            /// The symbolic name, such as `ENOENT`.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// What the number says in general.
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($value => $text,)*
                    _ => "unknown error",
                }
            }
        }
    };
}

errnos! {
    /// The caller lacks a capability, or the file or map does not allow the access.
    EPERM = 1, "operation not permitted";
    /// No such key, map or further element.
    ENOENT = 2, "no such entry";
    /// Interrupted.
    EINTR = 4, "interrupted";
    /// The device failed in a way that has no number of its own.
    EIO = 5, "input/output error";
    /// The file descriptor is not open.
    EBADF = 9, "bad file descriptor";
    /// Try again.
    EAGAIN = 11, "try again";
    /// Out of memory, on the host or on the device.
    ENOMEM = 12, "out of memory";
    /// Not permitted for this kind of object.
    EACCES = 13, "permission denied";
    /// A pointer does not point to usable memory.
    EFAULT = 14, "bad address";
    /// Busy.
    EBUSY = 16, "busy";
    /// The key exists.
    EEXIST = 17, "entry exists";
    /// The two names are on different file systems.
    EXDEV = 18, "cross-device link";
    /// The device is gone.
    ENODEV = 19, "no such device";
    /// A path goes through something that is no directory.
    ENOTDIR = 20, "not a directory";
    /// The operation is not for directories.
    EISDIR = 21, "is a directory";
    /// An argument has a value that is not allowed.
    EINVAL = 22, "invalid argument";
    /// Too many open files in the system.
    ENFILE = 23, "file table overflow";
    /// Too many open files of the process.
    EMFILE = 24, "too many open files";
    /// No space: a batch bucket larger than the buffer, or no id left.
    ENOSPC = 28, "no space left";
    /// The file has no position.
    ESPIPE = 29, "illegal seek";
    /// A name or a path is too long.
    ENAMETOOLONG = 36, "file name too long";
    /// The directory is not empty.
    ENOTEMPTY = 39, "directory not empty";
    /// Too many symbolic links on the way.
    ELOOP = 40, "too many levels";
    /// A number does not fit.
    EOVERFLOW = 75, "value too large";
    /// The map is full, or a size is too big.
    E2BIG = 7, "too big";
    /// The file descriptor is in a bad state.
    EBADFD = 77, "file descriptor in bad state";
    /// The device or type does not do this.
    EOPNOTSUPP = 95, "operation not supported";
    /// The device did not answer in time.
    ETIMEDOUT = 110, "timed out";
    /// The operation was cancelled.
    ECANCELED = 125, "operation cancelled";
    /// ENOTSUPP: internal to the kernel, yet it reaches user space from several map operations.
    ENOTSUPP = 524, "unknown error 524 (ENOTSUPP)";
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
