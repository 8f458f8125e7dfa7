//! The client's half: one command at a time, each with a deadline, every reply checked.

use crate::capabilities::{Capabilities, MAX_FDS};
use crate::memory::Reachable;
use crate::message::{Message, ReceiveError, Wait, arrived, receive, send};
use crate::wire::{self, Command, Header, VersionBody};
use offmap_device_io::{DmaBuffer, Interrupt, IoError, Iova};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How to attach to a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    /// How long the server may take to answer a command, to accept the connection, and to take
    /// a message. When it does not, it counts as dead. Default: 5 s.
    pub timeout: Duration,
    /// How the server reaches DMA buffers. Default: by their files.
    pub dma: DmaAccess,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            dma: DmaAccess::Files,
        }
    }
}

/// How a server reaches the DMA buffers of its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaAccess {
    /// It gets their files, and maps them. What it asks for by message all the same is answered
    /// while a call waits for its reply, and not between calls.
    Files,
    /// It gets no files and asks by message, which a thread of the client answers at any time. Each
    /// word that the device looks at is a message and its reply: for servers that cannot map memory
    /// of this process, and for tests of such.
    Messages,
}

/// How long to wait before asking again for a connection that a server has no room for.
const RETRY: Duration = Duration::from_millis(5);

/// A connection to a server, agreed upon.
///
/// Commands of several threads wait for each other. Once a server has not answered in time,
/// has closed the connection, or has sent what cannot be a reply, every call fails at once
/// with [`IoError::Gone`].
///
/// A server may send commands of its own, to read and write the client's memory. They are
/// answered while a call waits for its reply; between calls nobody reads the socket, other than
/// with [`DmaAccess::Messages`].
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    server: Capabilities,
    /// Answers the server between calls.
    answering: Option<Answering>,
}

#[derive(Debug)]
struct Shared {
    /// Memory that the server may ask for.
    memory: Reachable,
    connection: Mutex<Connection>,
    timeout: Duration,
}

/// A thread that answers the server. Dropping it ends the thread.
#[derive(Debug)]
struct Answering {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn start(shared: &Arc<Shared>) -> Result<Self, IoError> {
        let stop = Interrupt::new()?;
        let told = stop.try_clone()?;
        let socket = shared.connection().socket.try_clone();
        let socket = socket.map_err(|e| IoError::os("cannot duplicate the socket", e))?;
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new()
            .name("offmap-answers".into())
            .spawn(move || shared.answer_always(&socket, told.fd()));
        Ok(Self {
            stop,
            thread: Some(
                thread.map_err(|e| IoError::os("cannot start a thread for the server", e))?,
            ),
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // An eventfd of ours takes a signal.
        let _ = self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
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

    /// Answers what the server asks until `stop` is readable or the server has gone. While a call
    /// waits for its reply it is that one's to answer.
    fn answer_always(&self, socket: &OwnedFd, stop: BorrowedFd<'_>) {
        let wait = Wait {
            first: None,
            stop: Some(stop),
            ..Wait::until(Instant::now())
        };
        while arrived(socket, &wait).is_ok() {
            let mut connection = self.connection();
            // Whoever waited for a reply may have taken what was there.
            let now = Wait::until(Instant::now());
            if connection.gone.is_none() && arrived(socket, &now).is_ok() {
                connection.answer_one(&self.memory, Instant::now() + self.timeout);
            }
            if connection.gone.is_some() {
                return;
            }
        }
    }
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
                    thread::sleep(RETRY);
                }
                Err(e) => return Err(IoError::os("cannot connect to the vfio-user server", e)),
            }
        }
        let mut connection = Connection {
            socket,
            sent: 0,
            gone: None,
        };
        let memory = Reachable::default();
        let server = connection.negotiate(attach.timeout, &memory)?;
        let shared = Arc::new(Shared {
            memory,
            connection: Mutex::new(connection),
            timeout: attach.timeout,
        });
        let answering = match attach.dma {
            DmaAccess::Files => None,
            DmaAccess::Messages => Some(Answering::start(&shared)?),
        };
        Ok(Self {
            shared,
            server,
            answering,
        })
    }

    /// How the server reaches DMA buffers.
    pub fn dma_access(&self) -> DmaAccess {
        match self.answering {
            Some(_) => DmaAccess::Messages,
            None => DmaAccess::Files,
        }
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
        let shared = &self.shared;
        let reply = connection.call(command, body, fds, shared.timeout, &shared.memory)?;
        if reply.body.len() > most || reply.too_many_fds || reply.fds.len() > MAX_FDS {
            return Err(connection.lost("the vfio-user server answers more than was asked"));
        }
        Ok(reply)
    }

    /// Lets the server read and write the buffer by messages.
    ///
    /// # Errors
    ///
    /// [`IoError::DmaMap`] where there is another one; [`IoError::Os`].
    pub(crate) fn share(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.shared.memory.share(buffer, iova)
    }

    /// Ends that.
    pub(crate) fn unshare(&self, iova: Iova) {
        self.shared.memory.unshare(iova);
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.shared.connection()
    }
}

impl Connection {
    /// Answers the command that is there. What is there and no command is nothing that was asked for.
    fn answer_one(&mut self, memory: &Reachable, deadline: Instant) {
        let done = match receive(&self.socket, &Wait::until(deadline)) {
            Ok(message) if message.header.kind() == wire::TYPE_COMMAND => {
                self.answer(&message, memory, deadline)
            }
            Ok(_) => Err(self.lost("the vfio-user server answers what was not asked")),
            Err(e) => Err(self.failed(&e)),
        };
        // The next call says why.
        drop(done);
    }

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
            ReceiveError::NoMemory(_) | ReceiveError::Os(Errno::NOMEM) => {
                "there is no memory for a message to or from the vfio-user server"
            }
            _ => "the socket to the vfio-user server has failed",
        })
    }

    fn negotiate(
        &mut self,
        timeout: Duration,
        memory: &Reachable,
    ) -> Result<Capabilities, IoError> {
        let version = VersionBody {
            major: wire::MAJOR.into(),
            minor: wire::MINOR.into(),
        };
        let said = Capabilities::of_client().to_bytes();
        let reply = self.call(
            Command::VERSION,
            &[version.as_bytes(), &said],
            &[],
            timeout,
            memory,
        )?;
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
        memory: &Reachable,
    ) -> Result<Message, IoError> {
        if let Some(why) = self.gone {
            return Err(IoError::Gone(why));
        }
        let id = self.sent as u16;
        self.sent += 1;
        let header = Header::command(id, command, body.iter().map(|piece| piece.len()).sum());
        let deadline = Instant::now() + timeout;
        if let Err(e) = send(&self.socket, &header, body, fds, &Wait::until(deadline)) {
            return Err(self.failed(&e));
        }
        loop {
            // Commands of the server that follow each other without an end put nothing off.
            if Instant::now() >= deadline {
                return Err(self.failed(&ReceiveError::TimedOut));
            }
            let reply = match receive(&self.socket, &Wait::until(deadline)) {
                Ok(reply) => reply,
                Err(e) => return Err(self.failed(&e)),
            };
            if reply.header.kind() == wire::TYPE_COMMAND {
                self.answer(&reply, memory, deadline)?;
                continue;
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
                let what = match (command, Errno::from_raw_os_error(errno)) {
                    (Command::VERSION, Errno::BUSY) => HELD,
                    _ => refused(command),
                };
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(IoError::os(what, source));
            }
            return Ok(reply);
        }
    }

    /// A command of the server, which wants to reach memory by messages.
    fn answer(
        &mut self,
        message: &Message,
        memory: &Reachable,
        deadline: Instant,
    ) -> Result<(), IoError> {
        let Some((header, body)) = memory.answer(message) else {
            return Ok(());
        };
        let wait = Wait::until(deadline);
        send(self.socket.as_fd(), &header, &[&body], &[], &wait).map_err(|e| self.failed(&e))
    }
}

/// What EBUSY says, in reply to VERSION.
const HELD: &str = "another client holds the device, which serves one at a time: end that client, or start another \
     server at a socket of its own";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DmaAccessBody;
    use offmap_device_io::DmaPlacement;
    use std::os::unix::net::UnixStream;

    const AT: u64 = 0x10_0000;

    /// A client that is past VERSION, and the other end of its socket.
    fn client(timeout: Duration) -> (Client, UnixStream) {
        let (socket, server) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let client = Client {
            shared: Arc::new(Shared {
                memory: Reachable::default(),
                connection: Mutex::new(Connection {
                    socket: socket.into(),
                    sent: 0,
                    gone: None,
                }),
                timeout,
            }),
            server: Capabilities::default(),
            answering: None,
        };
        (client, server)
    }

    fn access(address: u64, count: u64) -> DmaAccessBody {
        DmaAccessBody {
            address: address.into(),
            count: count.into(),
        }
    }

    fn patience() -> Wait<'static> {
        Wait::until(Instant::now() + Duration::from_secs(30))
    }

    /// The server reads and writes memory while the client waits for it: before it has replied, and
    /// with ids that are also the client's own.
    #[test]
    fn a_server_is_answered_while_it_is_waited_for() {
        let (client, server) = client(Duration::from_secs(30));
        let buffer = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
        buffer.write(0, &[3; 64]);
        client.share(&buffer, Iova(AT)).unwrap();
        let server = thread::spawn(move || {
            let asked = receive(&server, &patience()).unwrap();
            let ask = |command, body: &[&[u8]]| {
                let len = body.iter().map(|piece| piece.len()).sum();
                let header = Header::command(asked.header.id.get(), command, len);
                send(&server, &header, body, &[], &patience()).unwrap();
                receive(&server, &patience()).unwrap()
            };
            let read = ask(Command::DMA_READ, &[access(AT, 64).as_bytes()]);
            assert_eq!(read.body, [access(AT, 64).as_bytes(), &[3; 64]].concat());
            let write = ask(Command::DMA_WRITE, &[access(AT + 8, 8).as_bytes(), &[4; 8]]);
            assert_eq!(write.body, access(AT + 8, 8).as_bytes());
            let fault = ask(Command::DMA_READ, &[access(0, 8).as_bytes()]);
            assert!(fault.header.has(wire::ERROR) && fault.body.is_empty());
            let reply = asked.header.reply(0);
            send(&server, &reply, &[], &[], &patience()).unwrap();
        });
        client.call(Command::DEVICE_RESET, &[], &[], 0).unwrap();
        server.join().unwrap();
        let word = buffer.load_u64(8, std::sync::atomic::Ordering::Acquire);
        assert_eq!(word.to_ne_bytes(), [4; 8]);
    }

    /// What a server asks puts no deadline off: at its end the next message is not looked at, though it
    /// is there, and were it the reply.
    #[test]
    fn a_server_that_asks_and_asks_is_gone_in_time() {
        let (client, server) = client(Duration::ZERO);
        let mut header = Header::command(0, Command::DMA_READ, 16);
        header.flags = wire::NO_REPLY.into();
        let body = access(AT, 8);
        send(&server, &header, &[body.as_bytes()], &[], &patience()).unwrap();
        let reply = Header::command(0, Command::DEVICE_RESET, 0).reply(0);
        send(&server, &reply, &[], &[], &patience()).unwrap();
        let gone = client.call(Command::DEVICE_RESET, &[], &[], 0);
        assert!(matches!(gone, Err(IoError::Gone(_))), "{gone:?}");
    }

    /// Nor does one hold it that does not take its answers.
    #[test]
    fn a_server_that_takes_no_answers_is_gone_in_time() {
        let (client, server) = client(Duration::from_millis(200));
        let buffer = DmaBuffer::new(1 << 20, DmaPlacement::default()).unwrap();
        client.share(&buffer, Iova(AT)).unwrap();
        let header = Header::command(0, Command::DMA_READ, 16);
        for _ in 0..4 {
            let body = access(AT, 1 << 20);
            send(&server, &header, &[body.as_bytes()], &[], &patience()).unwrap();
        }
        let began = Instant::now();
        let gone = client.call(Command::DEVICE_RESET, &[], &[], 0);
        assert!(matches!(gone, Err(IoError::Gone(_))), "{gone:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
