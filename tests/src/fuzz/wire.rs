//! A client that says anything to the vfio-user server, with the emulated device behind it.

use super::bytes::Bytes;
use crate::served::{PATIENCE, ServerThread};
use offmap_device_io::{DmaBuffer, DmaPlacement, Interrupt};
use offmap_emulator::DeviceConfig;
use offmap_vfio_user::message::{Message, ReceiveError, Wait, receive, send};
use offmap_vfio_user::wire::{self, Command, DeviceInfoBody, Header, VersionBody};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use zerocopy::IntoBytes;

/// Messages that an input may send.
const MOST_MESSAGES: u32 = 200;
/// Words that fields of messages often have: indexes, flags, sizes, offsets of registers and of memory.
const WORDS: [u64; 16] = [
    0, 1, 2, 3, 4, 7, 16, 20, 24, 32, 64, 0x48, 0x1000, 0x2000, 0x1_0000, 0x3_0000,
];

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// Messages that were sent.
    pub messages: u32,
    /// Of these, such as were answered with success, and with an errno.
    pub answered: (u32, u32),
    /// Connections that the server closed.
    pub closed: u32,
}

fn wait() -> Wait<'static> {
    Wait::until(Instant::now() + PATIENCE)
}

/// A client that has agreed on the version.
fn greeted(server: &ServerThread) -> UnixStream {
    let client = UnixStream::connect(server.path()).expect("the server listens");
    let body = VersionBody {
        major: 0.into(),
        minor: 1.into(),
    };
    let said = ask(&client, 1, Command::VERSION, body.as_bytes());
    assert!(!said.header.has(wire::ERROR), "{said:?}");
    client
}

/// A message with its reply.
fn ask(client: &UnixStream, id: u16, command: Command, body: &[u8]) -> Message {
    let header = Header::command(id, command, body.len());
    send(client, &header, &[body], &[], &wait()).expect("it is taken");
    let reply = receive(client, &wait()).expect("it is answered");
    assert_eq!(reply.header.id, header.id);
    reply
}

/// A client as `input` says. Whatever it sends, each message that wants a reply gets one, with its own id,
/// or the connection is closed; and the next client is served.
pub fn wire(input: &[u8]) -> Ran {
    let mut bytes = Bytes::new(input);
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 1 << 20;
    config.firmware.maps = 16;
    config.queue_pairs = 4;
    config.vectors = 4;
    let server = ServerThread::spawn(config);
    let memory = DmaBuffer::new(1 << 16, DmaPlacement::default()).expect("memory");
    let interrupt = Interrupt::new().expect("an eventfd");
    let mut ran = Ran::default();
    let mut client = greeted(&server);
    while !bytes.is_over() && ran.messages < MOST_MESSAGES {
        ran.messages += 1;
        let kind = bytes.u8();
        let command = Command(u16::from(kind % 20));
        let (body, header) = message(&mut bytes, command, kind, ran.messages as u16);
        let fds: Vec<BorrowedFd<'_>> = match bytes.u8() % 8 {
            0 => vec![interrupt.fd()],
            1 => vec![memory.fd(), interrupt.fd()],
            2..=5 if command == Command::DMA_MAP => vec![memory.fd()],
            2..=5 if command == Command::DEVICE_SET_IRQS => vec![interrupt.fd(); 1],
            _ => Vec::new(),
        };
        let whole = header.size.get() as usize == wire::HEADER_BYTES + body.len();
        let sent = match whole {
            true => send(&client, &header, &[&body], &fds, &wait()).is_ok(),
            // Of another length than it says: what the next message is is open then.
            false => {
                let all = [header.as_bytes(), &body].concat();
                client.write_all(&all).is_ok()
            }
        };
        let silent = header.kind() == wire::TYPE_COMMAND && header.has(wire::NO_REPLY);
        if sent && whole && silent {
            continue;
        }
        let heard = match whole {
            true => receive(&client, &wait()),
            // Nobody may be waiting for a reply, but for the end.
            false => Err(ReceiveError::Closed),
        };
        match heard {
            Ok(reply) => {
                assert_eq!(reply.header.id, header.id, "{header:?}");
                match reply.header.has(wire::ERROR) {
                    false => ran.answered.0 += 1,
                    true => ran.answered.1 += 1,
                }
            }
            Err(ReceiveError::Closed) => {
                ran.closed += 1;
                drop(client);
                client = greeted(&server);
            }
            Err(e) => panic!("{header:?}: {e}"),
        }
    }
    drop(client);
    let next = greeted(&server);
    let info = DeviceInfoBody {
        argsz: 16.into(),
        ..Default::default()
    };
    let told = ask(&next, 2, Command::DEVICE_GET_INFO, info.as_bytes());
    assert!(!told.header.has(wire::ERROR), "{told:?}");
    ran
}

/// A message: words of the kinds that fields have, so many that most commands are whole; or bytes of the
/// input as they are, under a header that may say anything.
fn message(bytes: &mut Bytes<'_>, command: Command, kind: u8, id: u16) -> (Vec<u8>, Header) {
    let mut body = Vec::new();
    let len = match command {
        Command::DMA_MAP | Command::DEVICE_GET_REGION_INFO => 32,
        Command::DMA_UNMAP => 24,
        Command::DEVICE_SET_IRQS => 20,
        Command::DEVICE_RESET => 0,
        Command::REGION_WRITE => 16 + usize::from(bytes.u8() % 4) * 4,
        Command::REGION_WRITE_MULTI => 8 + 24 * usize::from(bytes.u8() % 4),
        _ => 16,
    };
    let odd = bytes.u8();
    let len = match odd {
        0..=15 => usize::from(bytes.u8()),
        _ => len,
    };
    while body.len() < len {
        // A field is of 4 bytes or of 8.
        let pick = bytes.u8();
        let word = match pick & 0x40 {
            0 => WORDS[usize::from(pick) % WORDS.len()],
            _ => bytes.word(),
        };
        match pick & 0x80 {
            0 => body.extend_from_slice(&(word as u32).to_ne_bytes()),
            _ => body.extend_from_slice(&word.to_ne_bytes()),
        }
    }
    body.truncate(len);
    // The first field of most says how long it is.
    if odd >= 64
        && body.len() >= 4
        && !matches!(command, Command::REGION_READ | Command::REGION_WRITE)
    {
        body[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    }
    let mut header = Header::command(id, command, body.len());
    if kind >= 250 {
        match bytes.u8() % 3 {
            0 => header.size = (bytes.word() as u32).into(),
            1 => header.flags = (bytes.word() as u32).into(),
            _ => header.command = (bytes.word() as u16).into(),
        }
    }
    (body, header)
}
