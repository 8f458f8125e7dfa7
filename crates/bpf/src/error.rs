//! An error number and the reason for it.

use crate::Errno;
use std::borrow::Cow;
use std::fmt;

/// What every operation fails with: the kernel's error number, and one sentence that says
/// what was refused and by which limit.
///
/// Errors of the data path (`ENOENT` for a missing key) carry a fixed sentence, so that a
/// miss allocates nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    reason: Cow<'static, str>,
}

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a fixed reason.
    pub const fn new(errno: Errno, reason: &'static str) -> Self {
        Self {
            errno,
            reason: Cow::Borrowed(reason),
        }
    }

    /// An error whose reason names figures.
    pub fn because(errno: Errno, reason: String) -> Self {
        Self {
            errno,
            reason: Cow::Owned(reason),
        }
    }

    /// The same reason under another number.
    #[must_use]
    pub fn with_errno(self, errno: Errno) -> Self {
        Self { errno, ..self }
    }

    /// The error number.
    pub const fn errno(&self) -> Errno {
        self.errno
    }

    /// Why, in one sentence without a full stop.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.errno, self.reason)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.errno, self.reason)
    }
}

impl std::error::Error for Error {}
