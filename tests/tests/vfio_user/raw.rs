//! A client that says exactly what a test wants said, mistakes included.

use offmap_tests::served::{PATIENCE, ServerThread};
use offmap_vfio_user::message::{Message, ReceiveError, Wait, receive, send};
use offmap_vfio_user::wire::{self, Command, DeviceInfoBody, Header, VersionBody};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;
use zerocopy::IntoBytes;

/// EINVAL.
pub(crate) const INVAL: u32 = 22;
/// EEXIST.
pub(crate) const EXIST: u32 = 17;
/// EOPNOTSUPP.
pub(crate) const NOTSUP: u32 = 95;

fn wait() -> Wait<'static> {
    Wait::until(Instant::now() + PATIENCE)
}

/// A connection.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    next: u16,
}

impl Raw {
    /// Connects, and says nothing.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the server listens");
        Self { stream, next: 7 }
    }

    /// Connects and agrees on the version. A client that has left is no hindrance.
    #[track_caller]
    pub(crate) fn greeted(path: &Path) -> Self {
        let mut raw = Self::connect(path);
        let version = VersionBody {
            major: 0.into(),
            minor: 1.into(),
        };
        raw.good(Command::VERSION, version.as_bytes(), &[]);
        raw
    }

    pub(crate) fn command(&mut self, command: Command, body: usize) -> Header {
        self.next = self.next.wrapping_add(1);
        Header::command(self.next, command, body)
    }

    pub(crate) fn say(
        &mut self,
        header: &Header,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ReceiveError> {
        send(&self.stream, header, &[body], fds, &wait())
    }

    pub(crate) fn hear(&mut self) -> Result<Message, ReceiveError> {
        receive(&self.stream, &wait())
    }

    /// A command and its reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: Command, body: &[u8], fds: &[BorrowedFd<'_>]) -> Message {
        let header = self.command(command, body.len());
        self.say(&header, body, fds).expect("it is sent");
        let reply = self.hear().expect("there is a reply");
        assert_eq!(reply.header.id, header.id);
        assert_eq!(reply.header.about(), command);
        assert_eq!(reply.header.kind(), wire::TYPE_REPLY);
        reply
    }

    /// A command that succeeds; the reply's body.
    #[track_caller]
    pub(crate) fn good(
        &mut self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Message {
        let reply = self.ask(command, body, fds);
        assert_eq!(reply.header.error.get(), 0, "{command} {body:?}");
        assert!(!reply.header.has(wire::ERROR));
        reply
    }

    /// A command that is refused with that errno, after which the connection is as good as
    /// before.
    #[track_caller]
    pub(crate) fn bad(
        &mut self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        errno: u32,
    ) {
        let reply = self.ask(command, body, fds);
        assert!(reply.header.has(wire::ERROR), "{command} {body:?}");
        assert_eq!(reply.header.error.get(), errno, "{command} {body:?}");
        assert!(reply.body.is_empty(), "{:?}", reply.body);
        self.alive();
    }

    /// Bytes as they are, answered with EINVAL.
    #[track_caller]
    pub(crate) fn bytes_are_invalid(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it is sent");
        let reply = self.hear().expect("there is a reply");
        assert!(reply.header.has(wire::ERROR));
        assert_eq!(reply.header.error.get(), INVAL);
    }

    /// The connection is of use.
    #[track_caller]
    pub(crate) fn alive(&mut self) {
        let ask = DeviceInfoBody {
            argsz: 16.into(),
            ..Default::default()
        };
        let reply = self.good(Command::DEVICE_GET_INFO, ask.as_bytes(), &[]);
        let (info, _) = wire::take::<DeviceInfoBody>(&reply.body).expect("16 bytes");
        assert_eq!((info.regions.get(), info.irqs.get()), (9, 5));
    }

    /// The server has closed it.
    #[track_caller]
    pub(crate) fn closed(&mut self) {
        match self.hear() {
            Err(ReceiveError::Closed) => {}
            other => panic!("not closed: {other:?}"),
        }
    }
}

/// A small device behind a socket.
pub(crate) fn server() -> ServerThread {
    let mut config = offmap_emulator::DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    ServerThread::spawn(config)
}
