//! Interrupts as eventfds.

use crate::IoError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The offset that stands for a file's own position.
const HERE: u64 = u64::MAX;

/// An MSI-X vector routed to this process: an eventfd that the transport signals.
#[derive(Debug)]
pub struct Interrupt {
    fd: OwnedFd,
    /// Somebody else's: a write may block when the count is at its maximum, and it is asked first
    /// whether it would. Whether the descriptor blocks is not asked, since that belongs to the open
    /// file, which its maker has too and may change at any time.
    may_block: bool,
}

impl Interrupt {
    /// A new, silent interrupt.
    pub fn new() -> Result<Self, IoError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| IoError::os("cannot create an eventfd", e))?;
        Ok(Self {
            fd,
            may_block: false,
        })
    }

    /// An interrupt over an eventfd that somebody else has made, to be signalled. Its flags are
    /// its maker's and stay as they are.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] with EINVAL when the descriptor is no eventfd: a write to something else
    /// could take for ever.
    pub fn from_eventfd(fd: OwnedFd) -> Result<Self, IoError> {
        let what = "an interrupt must be an eventfd";
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let is = std::fs::read_link(link).map_err(|e| IoError::os(what, e))?;
        if is.as_os_str() != "anon_inode:[eventfd]" {
            return Err(IoError::os(what, Errno::INVAL));
        }
        Ok(Self {
            fd,
            may_block: true,
        })
    }

    /// A second handle on the same interrupt, for the side that signals it.
    pub fn try_clone(&self) -> Result<Self, IoError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|e| IoError::os("cannot duplicate an eventfd", e))?;
        Ok(Self {
            fd,
            may_block: self.may_block,
        })
    }

    /// The eventfd, for `poll` or to be passed to a transport.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Signals the interrupt. Signals that nobody has taken yet merge into one.
    ///
    /// Over an eventfd of somebody else's this waits for a reader if its maker makes it block, and fills it in the
    /// moment between the look at it and the write; no write to an eventfd can rule that out.
    pub fn signal(&self) -> Result<(), IoError> {
        if self.may_block {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let fds = &mut [PollFd::new(&self.fd, PollFlags::OUT)];
            // Not writable: the count is at its maximum, and a signal is pending.
            match poll(fds, Some(&now)) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(IoError::os("cannot signal an interrupt", e)),
            }
        }
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            // The counter is at its maximum: a signal is pending, which is all that counts.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(IoError::os("cannot signal an interrupt", e)),
        }
    }

    /// Takes a pending signal without waiting; whether there was one.
    pub fn take(&self) -> Result<bool, IoError> {
        let mut count = [0u8; 8];
        // Without waiting, whatever the flags of the open file are: who has been given it may change them, and
        // take the count away as well.
        let bufs = &mut [IoSliceMut::new(&mut count)];
        let read = match preadv2(&self.fd, bufs, HERE, ReadWriteFlags::NOWAIT) {
            // Kernels before 5.8.
            Err(Errno::OPNOTSUPP) => rustix::io::read(&self.fd, &mut count),
            read => read,
        };
        match read {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(e) => Err(IoError::os("cannot read an interrupt", e)),
        }
    }

    /// Waits for a signal and takes it; `false` when `timeout` passed first. A timeout past
    /// the end of the clock never passes.
    pub fn wait(&self, timeout: Duration) -> Result<bool, IoError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if self.take()? {
                return Ok(true);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let fds = &mut [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(IoError::os("cannot wait for an interrupt", e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_merge_and_are_taken_once() {
        let irq = Interrupt::new().unwrap();
        let other = irq.try_clone().unwrap();
        assert!(!irq.take().unwrap());
        other.signal().unwrap();
        other.signal().unwrap();
        assert!(irq.take().unwrap());
        assert!(!irq.take().unwrap());
    }

    #[test]
    fn an_eventfd_of_somebody_elses_is_signalled_and_never_blocks() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let theirs = eventfd(0, flags).unwrap();
            let irq = Interrupt::from_eventfd(theirs.try_clone().unwrap()).unwrap();
            irq.signal().unwrap();
            irq.try_clone().unwrap().signal().unwrap();
            let mut count = [0u8; 8];
            rustix::io::read(&theirs, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 2);
            // As full as it gets: one more would wait for a reader.
            rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            irq.signal().unwrap();
            let left = rustix::fs::fcntl_getfl(&theirs).unwrap();
            assert_eq!(
                left.contains(rustix::fs::OFlags::NONBLOCK),
                flags.contains(EventfdFlags::NONBLOCK),
                "their flags are theirs"
            );
        }
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Interrupt::from_eventfd(a.into()).is_err());
    }

    /// Whoever has the other descriptor of an open file can make it block, and fill or empty it.
    #[test]
    fn flags_that_the_other_side_changes_later_make_nobody_wait() {
        let block = |fd: &OwnedFd| {
            rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::RDWR).unwrap();
        };
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let routed = Interrupt::from_eventfd(theirs.try_clone().unwrap()).unwrap();
        block(&theirs);
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        routed.signal().unwrap();

        let ours = Interrupt::new().unwrap();
        let given = ours.fd().try_clone_to_owned().unwrap();
        block(&given);
        assert!(!ours.take().unwrap(), "an empty one");
        rustix::io::write(&given, &1u64.to_ne_bytes()).unwrap();
        assert!(ours.take().unwrap());
        assert!(!ours.wait(Duration::from_millis(5)).unwrap());
    }

    #[test]
    fn wait_ends_by_signal_or_by_time() {
        let irq = Interrupt::new().unwrap();
        assert!(!irq.wait(Duration::from_millis(5)).unwrap());
        let other = irq.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.signal().unwrap();
        });
        assert!(irq.wait(Duration::from_secs(30)).unwrap());
        thread.join().unwrap();
    }

    #[test]
    fn the_longest_wait_is_a_wait() {
        for timeout in [Duration::MAX, Duration::from_secs(i64::MAX as u64)] {
            let irq = Interrupt::new().unwrap();
            let other = irq.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                other.signal().unwrap();
            });
            assert!(irq.wait(timeout).unwrap());
            thread.join().unwrap();
        }
    }
}
