//! Whole messages over a Unix socket, with their file descriptors.
//!
//! A message is never waited for without an end: once its first byte is there, the rest must
//! follow within a time. File descriptors that nobody takes out of a [`Message`] are closed
//! with it; those beyond [`MAX_FDS`] never get that far.

use crate::capabilities::{DATA_BYTES, MAX_FDS};
use crate::wire::{HEADER_BYTES, Header};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// The longest message that is taken, in bytes: the most data, and what stands before them.
pub const MESSAGE_MAX: u32 = DATA_BYTES + 4096;

/// A message as it arrived.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows the header: as many bytes as it says.
    pub body: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// More came than [`MAX_FDS`]; they are closed.
    pub too_many_fds: bool,
}

/// Why no message came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The other side has closed the connection, or has died.
    #[error("the other side has closed the connection")]
    Closed,
    /// [`Wait::stop`] became readable.
    #[error("told to stop")]
    Stopped,
    /// [`Wait::event`] is readable, and no message is there.
    #[error("signalled")]
    Signalled,
    /// Nothing came, or the rest of a message did not, in time.
    #[error("the other side did not send in time")]
    TimedOut,
    /// A header that says that the message is shorter than a header. What follows is taken for
    /// the next message.
    #[error("a message of {} bytes is shorter than a header", .0.size.get())]
    TooShort(Header),
    /// A message that is too long to be taken. The connection is of no use afterwards.
    #[error("a message of {} bytes is longer than {MESSAGE_MAX}", .0.size.get())]
    TooLong(Header),
    /// There is no memory for the message. The connection is of no use afterwards.
    #[error("there is no memory for a message of {} bytes", .0.size.get())]
    NoMemory(Header),
    /// The system's error.
    #[error("the socket failed: {0}")]
    Os(Errno),
}

/// Who else is waited for, and how long.
#[derive(Clone, Copy)]
pub struct Wait<'w> {
    /// When the first byte must be there; `None`: whenever it comes.
    pub first: Option<Instant>,
    /// How long the rest, or a message to be sent, may take after that.
    pub whole: Duration,
    /// Ends the wait when it becomes readable.
    pub stop: Option<BorrowedFd<'w>>,
    /// Is called when the descriptor is readable and the socket is not: connections that are
    /// to be turned away.
    pub aside: Option<(BorrowedFd<'w>, &'w dyn Fn())>,
    /// Ends the wait for a first byte when it becomes readable: what a client signals in place of a
    /// message.
    pub event: Option<BorrowedFd<'w>>,
}

impl Wait<'_> {
    /// Until `deadline`, and for nobody else.
    pub fn until(deadline: Instant) -> Self {
        Wait {
            first: Some(deadline),
            whole: deadline.saturating_duration_since(Instant::now()),
            stop: None,
            aside: None,
            event: None,
        }
    }

    /// Waits until `socket` is ready for what `events` say.
    fn ready(
        &self,
        socket: BorrowedFd<'_>,
        events: PollFlags,
        deadline: Option<Instant>,
    ) -> Result<(), ReceiveError> {
        self.ready_or(socket, events, deadline, false)
    }

    /// As [`Wait::ready`]; `first` is whether it is a first byte that is waited for.
    fn ready_or(
        &self,
        socket: BorrowedFd<'_>,
        events: PollFlags,
        deadline: Option<Instant>,
        first: bool,
    ) -> Result<(), ReceiveError> {
        loop {
            let timeout = deadline.map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let mut fds = Vec::with_capacity(4);
            fds.push(PollFd::from_borrowed_fd(socket, events));
            let stop = self
                .stop
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.extend(stop);
            let aside = self.aside.as_ref();
            fds.extend(aside.map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
            let event = self.event.filter(|_| first);
            fds.extend(event.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Err(ReceiveError::TimedOut),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(ReceiveError::Os(e)),
            }
            let hit = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
            if self.stop.is_some() && hit(1) {
                return Err(ReceiveError::Stopped);
            }
            // First who is here: it may just have left, and the one who comes is the next.
            if hit(0) {
                return Ok(());
            }
            if event.is_some() && hit(fds.len() - 1) {
                return Err(ReceiveError::Signalled);
            }
            if let Some((_, turn_away)) = aside
                && hit(1 + usize::from(self.stop.is_some()))
            {
                // The two were not looked at in the same moment: between them the one may have
                // left and the other come.
                let mut here = [PollFd::from_borrowed_fd(socket, events)];
                if poll(&mut here, Some(&Timespec::default())).is_ok_and(|hit| hit > 0) {
                    return Ok(());
                }
                turn_away();
                // Many who come one after the other put no deadline off.
                if deadline.is_some_and(|at| Instant::now() >= at) {
                    return Err(ReceiveError::TimedOut);
                }
            }
        }
    }
}

/// An empty vector with room for so many bytes, as a peer may ask for: a process that has no memory says so,
/// and does not end.
///
/// # Errors
///
/// ENOMEM.
pub(crate) fn room(bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut room = Vec::new();
    match room.try_reserve_exact(bytes) {
        Ok(()) => Ok(room),
        Err(_) => Err(Errno::NOMEM),
    }
}

/// Waits for the first byte of a message.
///
/// # Errors
///
/// As [`receive`]; nothing was received.
pub fn arrived(socket: impl AsFd, wait: &Wait<'_>) -> Result<(), ReceiveError> {
    wait.ready_or(socket.as_fd(), PollFlags::IN, wait.first, true)
}

/// Receives a message.
///
/// # Errors
///
/// [`ReceiveError`]; only after [`ReceiveError::TooShort`] can more be received.
pub fn receive(socket: impl AsFd, wait: &Wait<'_>) -> Result<Message, ReceiveError> {
    let socket = socket.as_fd();
    let mut fds = Fds::default();
    let mut head = [0; HEADER_BYTES];
    arrived(socket, wait)?;
    let deadline = Instant::now().checked_add(wait.whole);
    fill(socket, &mut head, &mut fds, wait, deadline)?;
    let header = Header::read_from_bytes(&head).unwrap_or_default();
    let size = header.size.get();
    if size > MESSAGE_MAX {
        return Err(ReceiveError::TooLong(header));
    }
    let Some(left) = (size as usize).checked_sub(HEADER_BYTES) else {
        return Err(ReceiveError::TooShort(header));
    };
    let mut body = room(left).map_err(|_| ReceiveError::NoMemory(header))?;
    body.resize(left, 0);
    fill(socket, &mut body, &mut fds, wait, deadline)?;
    Ok(Message {
        header,
        body,
        fds: fds.taken,
        too_many_fds: fds.too_many,
    })
}

#[derive(Default)]
struct Fds {
    taken: Vec<OwnedFd>,
    too_many: bool,
}

/// Receives as many bytes as `into` has, and the descriptors that come with them.
fn fill(
    socket: BorrowedFd<'_>,
    mut into: &mut [u8],
    fds: &mut Fds,
    wait: &Wait<'_>,
    deadline: Option<Instant>,
) -> Result<(), ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    while !into.is_empty() {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN) => {
                wait.ready(socket, PollFlags::IN, deadline)?;
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => {
                return Err(ReceiveError::Closed);
            }
            Err(e) => return Err(ReceiveError::Os(e)),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(arrived) = message {
                for fd in arrived {
                    // What is not kept is closed here.
                    if fds.taken.len() < MAX_FDS {
                        fds.taken.push(fd);
                    } else {
                        fds.too_many = true;
                    }
                }
            }
        }
        fds.too_many |= got.flags.contains(ReturnFlags::CTRUNC);
        if got.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        into = &mut into[got.bytes..];
    }
    Ok(())
}

/// Sends a message: its header, what follows in pieces, and file descriptors.
///
/// # Errors
///
/// [`ReceiveError::Closed`], [`ReceiveError::TimedOut`], [`ReceiveError::Stopped`] or
/// [`ReceiveError::Os`]; the connection is of no use afterwards.
pub fn send(
    socket: impl AsFd,
    header: &Header,
    body: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    wait: &Wait<'_>,
) -> Result<(), ReceiveError> {
    let socket = socket.as_fd();
    let mut bytes = room(header.size.get() as usize).map_err(ReceiveError::Os)?;
    bytes.extend_from_slice(header.as_bytes());
    for piece in body {
        bytes.extend_from_slice(piece);
    }
    debug_assert_eq!(bytes.len(), header.size.get() as usize);
    let deadline = Instant::now().checked_add(wait.whole);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ReceiveError::Os(Errno::TOOMANYREFS));
    }
    let mut left = &bytes[..];
    while !left.is_empty() {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(left)], &mut control, flags) {
            Ok(sent) => {
                left = &left[sent..];
                // They went with the first byte.
                control.clear();
            }
            Err(Errno::AGAIN) => wait.ready(socket, PollFlags::OUT, deadline)?,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => {
                return Err(ReceiveError::Closed);
            }
            Err(e) => return Err(ReceiveError::Os(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Command;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_millis(50);

    fn soon() -> Wait<'static> {
        Wait::until(Instant::now() + SOON)
    }

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        for n in [0, 1, MAX_FDS] {
            let body = vec![7; 100 * n];
            let header = Header::command(n as u16, Command::DMA_MAP, body.len());
            let fds = vec![a.as_fd(); n];
            // Two in a row: descriptors stay with their own.
            send(&a, &header, &[&body], &fds, &soon()).unwrap();
            send(
                &a,
                &Header::command(99, Command::VERSION, 0),
                &[],
                &[],
                &soon(),
            )
            .unwrap();
            let got = receive(&b, &soon()).unwrap();
            assert_eq!((got.header, got.body), (header, body));
            assert_eq!((got.fds.len(), got.too_many_fds), (n, false));
            let next = receive(&b, &soon()).unwrap();
            assert_eq!((next.header.id.get(), next.fds.len()), (99, 0));
        }
    }

    #[test]
    fn a_message_longer_than_the_socket_buffer_arrives() {
        let (a, b) = UnixStream::pair().unwrap();
        let body = vec![3; DATA_BYTES as usize + 16];
        let sender = std::thread::spawn({
            let body = body.clone();
            move || {
                let header = Header::command(1, Command::REGION_WRITE, body.len());
                send(
                    &a,
                    &header,
                    &[&body],
                    &[],
                    &Wait::until(Instant::now() + SOON * 1200),
                )
            }
        });
        let wait = Wait::until(Instant::now() + SOON * 1200);
        assert_eq!(receive(&b, &wait).unwrap().body, body);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn lengths_that_cannot_be_are_told_apart() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut header = Header::command(1, Command::VERSION, 0);
        header.size = 15.into();
        a.write_all(header.as_bytes()).unwrap();
        assert!(matches!(receive(&b, &soon()), Err(ReceiveError::TooShort(h)) if h == header));
        header.size = (MESSAGE_MAX + 1).into();
        a.write_all(header.as_bytes()).unwrap();
        assert!(matches!(receive(&b, &soon()), Err(ReceiveError::TooLong(h)) if h == header));
    }

    #[test]
    fn waits_end() {
        let (mut a, b) = UnixStream::pair().unwrap();
        assert!(matches!(receive(&b, &soon()), Err(ReceiveError::TimedOut)));
        // Half a message.
        let header = Header::command(1, Command::REGION_WRITE, 100);
        a.write_all(header.as_bytes()).unwrap();
        assert!(matches!(receive(&b, &soon()), Err(ReceiveError::TimedOut)));
        // Nobody reads.
        let (c, _d) = UnixStream::pair().unwrap();
        let body = vec![0; DATA_BYTES as usize];
        let header = Header::command(1, Command::REGION_WRITE, body.len());
        let sent = send(&c, &header, &[&body], &[], &soon());
        assert!(matches!(sent, Err(ReceiveError::TimedOut)), "{sent:?}");
        drop(a);
        assert!(matches!(receive(&b, &soon()), Err(ReceiveError::Closed)));
        let (stop, told) = UnixStream::pair().unwrap();
        drop(stop);
        let (_e, f) = UnixStream::pair().unwrap();
        let wait = Wait {
            stop: Some(told.as_fd()),
            first: None,
            ..soon()
        };
        assert!(matches!(receive(&f, &wait), Err(ReceiveError::Stopped)));
    }

    #[test]
    fn descriptors_beyond_the_limit_are_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        // One more than fits, sent by hand.
        let fds = [a.as_fd(); MAX_FDS + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let header = Header::command(1, Command::DEVICE_RESET, 0);
        let bytes = [IoSlice::new(header.as_bytes())];
        sendmsg(&a, &bytes, &mut control, SendFlags::empty()).unwrap();
        let got = receive(&b, &soon()).unwrap();
        assert!(got.too_many_fds);
        assert!(got.fds.len() <= MAX_FDS);
    }
}
