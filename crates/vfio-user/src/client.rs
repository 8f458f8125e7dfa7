//! The client's half: one command at a time, each with a deadline, every reply checked.

use crate::capabilities::{Capabilities, MAX_FDS};
use crate::message::{Message, ReceiveError, Wait, receive, send};
use crate::wire::{self, Command, Header, VersionBody};
use offmap_device_io::IoError;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How to attach to a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    /// How long the server may take to answer a command, to accept the connection, and to take
    /// a message. When it does not, it counts as dead. Default: 5 s.
    pub timeout: Duration,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
        }
    }
}

/// How long to wait before asking again for a connection that a server has no room for.
const RETRY: Duration = Duration::from_millis(5);

/// A connection to a server, agreed upon.
///
/// Commands of several threads wait for each other. Once a server has not answered in time,
/// has closed the connection, or has sent what cannot be a reply, every call fails at once
/// with [`IoError::Gone`].
#[derive(Debug)]
pub struct Client {
    connection: Mutex<Connection>,
    timeout: Duration,
    server: Capabilities,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// Commands sent so far; the next one's id is its low half.
    sent: u64,
    gone: Option<&'static str>,
}

impl Client {
    /// Connects to the server at `path`, and agrees with it on a version.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] when there is no server (ENOENT, ECONNREFUSED), it has a client already
    /// (EBUSY), or it refuses; [`IoError::Gone`] when it does not answer in time or in the
    /// protocol.
    pub fn connect(path: &Path, attach: Attach) -> Result<Self, IoError> {
        let deadline = Instant::now() + attach.timeout;
        let address = SocketAddrUnix::new(path)
            .map_err(|e| IoError::os("this is no path of a vfio-user socket", e))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| IoError::os("cannot make a socket", e))?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                // The server's backlog is full.
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                Err(e) => return Err(IoError::os("cannot connect to the vfio-user server", e)),
            }
        }
        let mut connection = Connection {
            socket,
            sent: 0,
            gone: None,
        };
        let server = connection.negotiate(attach.timeout)?;
        Ok(Self {
            connection: Mutex::new(connection),
            timeout: attach.timeout,
            server,
        })
    }

    /// What the server said of itself.
    pub fn server(&self) -> &Capabilities {
        &self.server
    }

    /// Commands sent so far: what an operation costs in messages is a difference of two of these.
    pub fn commands_sent(&self) -> u64 {
        self.connection().sent
    }

    /// Sends a command and waits for its reply, which is at most `most` bytes of body.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] with the errno that the server answered (EIO where it named none);
    /// [`IoError::Gone`].
    pub fn call(
        &self,
        command: Command,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        most: usize,
    ) -> Result<Message, IoError> {
        let mut connection = self.connection();
        let reply = connection.call(command, body, fds, self.timeout)?;
        if reply.body.len() > most || reply.too_many_fds || reply.fds.len() > MAX_FDS {
            return Err(connection.lost("the vfio-user server answers more than was asked"));
        }
        Ok(reply)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // Who panicked while it held the connection may have left half a message in it.
        self.connection.lock().unwrap_or_else(|poisoned| {
            let mut connection = PoisonError::into_inner(poisoned);
            connection
                .gone
                .get_or_insert("a call to its server was cut off");
            connection
        })
    }
}

impl Connection {
    fn lost(&mut self, why: &'static str) -> IoError {
        IoError::Gone(self.gone.get_or_insert(why))
    }

    fn failed(&mut self, e: &ReceiveError) -> IoError {
        self.lost(match e {
            ReceiveError::Closed => "the vfio-user server has closed the connection",
            ReceiveError::TimedOut => "the vfio-user server has not answered in time",
            ReceiveError::TooShort(_) | ReceiveError::TooLong(_) => {
                "the vfio-user server sends no messages of the protocol"
            }
            _ => "the socket to the vfio-user server has failed",
        })
    }

    fn negotiate(&mut self, timeout: Duration) -> Result<Capabilities, IoError> {
        let version = VersionBody {
            major: wire::MAJOR.into(),
            minor: wire::MINOR.into(),
        };
        let said = Capabilities::of_client().to_bytes();
        let reply = self.call(Command::VERSION, &[version.as_bytes(), &said], &[], timeout)?;
        let Some((theirs, json)) = wire::take::<VersionBody>(&reply.body) else {
            return Err(self.lost("the vfio-user server says no version"));
        };
        if theirs.major.get() != wire::MAJOR || theirs.minor.get() > wire::MINOR {
            return Err(self.lost("the vfio-user server speaks another version"));
        }
        Capabilities::parse(json)
            .map_err(|_| self.lost("the vfio-user server says of itself what is no JSON"))
    }

    fn call(
        &mut self,
        command: Command,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Message, IoError> {
        if let Some(why) = self.gone {
            return Err(IoError::Gone(why));
        }
        let id = self.sent as u16;
        self.sent += 1;
        let header = Header::command(id, command, body.iter().map(|piece| piece.len()).sum());
        let deadline = Instant::now() + timeout;
        if let Err(e) = send(&self.socket, &header, body, fds, &Wait::until(deadline)) {
            // A server that turned us away has said why before it closed the connection.
            let busy = matches!(e, ReceiveError::Closed) && self.turned_away(command, deadline);
            return Err(if busy { too_busy() } else { self.failed(&e) });
        }
        loop {
            let reply = match receive(&self.socket, &Wait::until(deadline)) {
                Ok(reply) => reply,
                Err(e) => return Err(self.failed(&e)),
            };
            if reply.header.kind() == wire::TYPE_COMMAND {
                self.decline(&reply.header, deadline)?;
                continue;
            }
            if is_turned_away(command, &reply.header) {
                self.lost("the vfio-user server has another client");
                return Err(too_busy());
            }
            let ours = reply.header.id.get() == id && reply.header.about() == command;
            if !ours || reply.header.kind() != wire::TYPE_REPLY {
                return Err(self.lost("the vfio-user server answers what was not asked"));
            }
            if reply.header.has(wire::ERROR) {
                let errno = match i32::try_from(reply.header.error.get()) {
                    Ok(errno @ 1..=4095) => errno,
                    _ => Errno::IO.raw_os_error(),
                };
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(IoError::os(refused(command), source));
            }
            return Ok(reply);
        }
    }

    /// A command of the server: it wants to reach memory by messages, which all of ours can be
    /// mapped for.
    fn decline(&mut self, header: &Header, deadline: Instant) -> Result<(), IoError> {
        if header.has(wire::NO_REPLY) {
            return Ok(());
        }
        let no = header.refusal(Errno::OPNOTSUPP.raw_os_error());
        send(self.socket.as_fd(), &no, &[], &[], &Wait::until(deadline))
            .map_err(|e| self.failed(&e))
    }

    /// Whether what the server sent before it closed the connection is that it has a client.
    fn turned_away(&mut self, command: Command, deadline: Instant) -> bool {
        let said = receive(&self.socket, &Wait::until(deadline));
        let busy = said.is_ok_and(|reply| is_turned_away(command, &reply.header));
        if busy {
            self.lost("the vfio-user server has another client");
        }
        busy
    }
}

fn is_turned_away(command: Command, reply: &Header) -> bool {
    command == Command::VERSION
        && reply.about() == Command::VERSION
        && reply.kind() == wire::TYPE_REPLY
        && reply.has(wire::ERROR)
        && reply.error.get() == Errno::BUSY.raw_os_error().unsigned_abs()
}

fn too_busy() -> IoError {
    let what = "the vfio-user server has another client; one is served at a time";
    IoError::os(what, Errno::BUSY)
}

/// What is said of a command that the server answered with an errno.
fn refused(command: Command) -> &'static str {
    match command {
        Command::VERSION => "the vfio-user server refuses the version",
        Command::DMA_MAP => "the vfio-user server refuses to map memory for DMA",
        Command::DMA_UNMAP => "the vfio-user server refuses to unmap memory",
        Command::DEVICE_GET_INFO => "the vfio-user server does not describe its device",
        Command::DEVICE_GET_REGION_INFO => "the vfio-user server does not describe a region",
        Command::DEVICE_GET_IRQ_INFO => "the vfio-user server does not describe interrupts",
        Command::DEVICE_SET_IRQS => "the vfio-user server refuses to route an interrupt",
        Command::REGION_READ => "the vfio-user server refuses a read",
        Command::REGION_WRITE => "the vfio-user server refuses a write",
        Command::DEVICE_RESET => "the vfio-user server does not reset the device",
        _ => "the vfio-user server refuses a command",
    }
}
