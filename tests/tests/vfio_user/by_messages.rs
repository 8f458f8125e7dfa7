//! Client memory that the server cannot map, and asks for by DMA_READ and DMA_WRITE: what is on the wire,
//! what answers that cannot be come to, and which buffers our client lends. The conformance suite runs
//! over it in `conformance.rs`.

use crate::malformed::{access, map};
use crate::raw::{Raw, server};
use offmap_abi::Status;
use offmap_abi::regs;
use offmap_device_io::{DmaBuffer, DmaPlacement, Function, IoError, Iova};
use offmap_tests::conformance::Wanted;
use offmap_tests::conformance::host::Host;
use offmap_tests::served::{OverSocket, PATIENCE, SocketFolder, attach_by, device};
use offmap_vfio_user::message::{Message, Wait, receive, send};
use offmap_vfio_user::wire::{
    self, Command, DeviceInfoBody, DmaAccessBody, Header, RegionInfoBody, VersionBody,
};
use offmap_vfio_user::{DMA_TIMEOUT, DmaAccess};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use zerocopy::IntoBytes;

/// Where the client's memory is, to which it gives no file.
const AT: u64 = 1 << 32;
const LEN: usize = 4 * 4096;
/// In it: the completion ring, and a buffer.
const CQ: usize = 4096;
const BUFFER: usize = 8192;

fn wait() -> Wait<'static> {
    Wait::until(Instant::now() + PATIENCE)
}

/// A client whose rings are where the server has to ask for them.
struct Far {
    raw: Raw,
    memory: Vec<u8>,
    /// What the server has asked for.
    asked: Vec<(Command, u64, u64)>,
}

impl Far {
    fn new(raw: Raw, fd: &[BorrowedFd<'_>]) -> Self {
        let mut this = Self {
            raw,
            memory: vec![0; LEN],
            asked: Vec::new(),
        };
        this.write(7, 4, &[6, 0]);
        let range = map(AT, LEN as u64, 0);
        this.raw.good(Command::DMA_MAP, range.as_bytes(), fd);
        this.register(regs::ADMIN_DEPTH, &2u32.to_le_bytes());
        this.register(regs::ADMIN_VECTOR, &regs::NO_VECTOR.to_le_bytes());
        this.register(regs::ADMIN_SQ, &AT.to_le_bytes());
        this.register(regs::ADMIN_CQ, &(AT + CQ as u64).to_le_bytes());
        this
    }

    /// Enables the device, and says nothing more: what follows is the server's first question.
    fn enable(&mut self) {
        let body = [access(0, regs::CONTROL, 4).as_bytes(), &1u32.to_le_bytes()].concat();
        let header = self.raw.command(Command::REGION_WRITE, body.len());
        self.raw.say(&header, &body, &[]).unwrap();
    }

    /// The server's next question; what it answers meanwhile is let go.
    #[track_caller]
    fn question(&mut self) -> Message {
        loop {
            let message = self.raw.hear().expect("the server lives");
            if message.header.kind() == wire::TYPE_COMMAND {
                return message;
            }
        }
    }

    /// Answers a question as a client should.
    fn answer(&mut self, message: &Message) {
        let (access, data) = wire::take::<DmaAccessBody>(&message.body).expect("16 bytes");
        let (at, count) = (access.address.get(), access.count.get() as usize);
        self.asked.push((message.header.about(), at, count as u64));
        let place = (at - AT) as usize..(at - AT) as usize + count;
        let read = match message.header.about() {
            Command::DMA_READ => self.memory[place].to_vec(),
            _ => {
                self.memory[place].copy_from_slice(data);
                Vec::new()
            }
        };
        self.reply(message, &[access.as_bytes(), &read]);
    }

    fn reply(&mut self, to: &Message, body: &[&[u8]]) {
        let len = body.iter().map(|piece| piece.len()).sum();
        let sent = send(&self.raw.stream, &to.header.reply(len), body, &[], &wait());
        sent.expect("it is heard");
    }

    /// A command and its reply, with the server's questions answered meanwhile.
    #[track_caller]
    fn ask(&mut self, command: Command, body: &[u8]) -> Message {
        let header = self.raw.command(command, body.len());
        self.raw.say(&header, body, &[]).unwrap();
        loop {
            let message = self.raw.hear().expect("the server lives");
            if message.header.kind() == wire::TYPE_COMMAND {
                self.answer(&message);
            } else if message.header.id == header.id {
                assert!(!message.header.has(wire::ERROR), "{command}");
                return message;
            }
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let access = access(region, offset, data.len() as u32);
        self.ask(Command::REGION_WRITE, &[access.as_bytes(), data].concat());
    }

    fn register(&mut self, offset: u64, data: &[u8]) {
        self.write(0, offset, data);
    }

    fn read32(&mut self, offset: u64) -> u32 {
        let reply = self.ask(Command::REGION_READ, access(0, offset, 4).as_bytes());
        u32::from_le_bytes(reply.body[16..20].try_into().unwrap())
    }

    /// IDENTIFY with 128 bytes for the answer: the entry, the doorbell, and the wait for the completion's
    /// phase. Its status.
    fn identify(&mut self) -> Status {
        let buffer = AT + BUFFER as u64;
        self.memory[16..24].copy_from_slice(&buffer.to_le_bytes());
        self.memory[24..28].copy_from_slice(&128u32.to_le_bytes());
        self.memory[..3].copy_from_slice(&[1, 0, 1]);
        self.register(regs::DOORBELLS, &1u32.to_le_bytes());
        loop {
            let word = u64::from_le_bytes(self.memory[CQ..CQ + 8].try_into().unwrap());
            if word & (1 << 16) != 0 {
                return Status(word as u16);
            }
            self.read32(regs::STATUS);
        }
    }

    /// The device has stopped because of its ring, and the connection goes on.
    #[track_caller]
    fn stopped(&mut self) {
        let began = Instant::now();
        while self.read32(regs::STATUS) & 2 == 0 {
            assert!(began.elapsed() < PATIENCE, "the device goes on");
        }
        assert_eq!(self.read32(regs::FATAL_CAUSE), 2);
        self.raw.alive();
    }
}

/// A command by messages alone, and no message longer than the client takes.
#[test]
fn rings_and_buffers_are_asked_for_in_messages_that_the_client_takes() {
    for most in [8u32, 16, 40, 1 << 20] {
        let server = server();
        let mut raw = Raw::connect(&server.path());
        let version = VersionBody {
            major: 0.into(),
            minor: 1.into(),
        };
        let says = format!("{{\"capabilities\":{{\"max_data_xfer_size\":{most}}}}}\0");
        let body = [version.as_bytes(), says.as_bytes()].concat();
        raw.good(Command::VERSION, &body, &[]);
        let mut far = Far::new(raw, &[]);
        far.register(regs::CONTROL, &1u32.to_le_bytes());
        let status = far.identify();
        assert_eq!(status, Status::Success, "{most}");
        assert_ne!(far.memory[BUFFER], 0, "a name");
        let longest = far.asked.iter().map(|asked| asked.2).max().unwrap();
        assert_eq!(longest, u64::from(most.min(128)), "{most}");
        // Words that the host writes at the same moment are one message each: the one that says
        // whose the entry is, first in what is read of an entry and last in what is written.
        let ring = |at: u64, from: usize| at >= AT + from as u64 && at < AT + from as u64 + 64;
        let reads = far.asked.iter().filter(|a| ring(a.1, 0));
        assert!(reads.clone().any(|a| *a == (Command::DMA_READ, AT, 8)));
        assert!(reads.clone().all(|a| a.1 != AT || a.2 == 8));
        let cq = AT + CQ as u64;
        let posted: Vec<_> = far.asked.iter().filter(|a| ring(a.1, CQ)).collect();
        assert_eq!(posted.last(), Some(&&(Command::DMA_WRITE, cq, 8)));
        assert_eq!(posted.iter().filter(|a| a.1 == cq).count(), 1);
        assert_eq!(posted.iter().map(|a| a.2).sum::<u64>(), 64);
        far.register(regs::CONTROL, &0u32.to_le_bytes());
    }
}

/// How a client answers a question.
type Answers<'a> = &'a dyn Fn(&mut Far, &Message);

/// Each answer that cannot be is a DMA fault, here of the admin ring; the connection goes on.
#[test]
fn answers_that_cannot_be_are_dma_faults() {
    let wrong: [Answers<'_>; 5] = [
        &|far, m| far.reply(m, &[]),
        &|far, m| far.reply(m, &[&m.body, &[0; 7]]),
        &|far, m| far.reply(m, &[&[0; 16], &[0; 8]]),
        &|far, m| {
            let refused = m.header.refusal(14);
            send(&far.raw.stream, &refused, &[], &[], &wait()).unwrap();
        },
        // Silence, with an answer to something else, which is refused.
        &|far, m| {
            let mut other = m.header.reply(24);
            other.id = (m.header.id.get() + 1000).into();
            send(&far.raw.stream, &other, &[&[0; 24]], &[], &wait()).unwrap();
            // The reply to the register's write may come first.
            let mut heard = || far.raw.hear().expect("the server lives");
            let mut refused = heard();
            while refused.header.id != other.id {
                refused = heard();
            }
            assert_eq!(
                (refused.header.id, refused.header.error.get()),
                (other.id, 22)
            );
        },
    ];
    let server = server();
    for wrong in wrong {
        let mut far = Far::new(Raw::greeted(&server.path()), &[]);
        far.enable();
        let question = far.question();
        assert_eq!(question.header.about(), Command::DMA_READ);
        wrong(&mut far, &question);
        far.stopped();
    }
}

/// A client that does not answer is waited for once, in time; what it says late does no harm.
#[test]
fn a_client_that_does_not_answer_is_waited_for_once() {
    let server = server();
    let mut far = Far::new(Raw::greeted(&server.path()), &[]);
    far.enable();
    let question = far.question();
    let began = Instant::now();
    // What it asks meanwhile is answered, by the one who waits for the ring as well.
    far.stopped();
    assert!(began.elapsed() < DMA_TIMEOUT + PATIENCE);
    let answer = [&question.body[..], &[0; 8]].concat();
    far.reply(&question, &[&answer]);
    far.raw.alive();
    far.register(regs::CONTROL, &0u32.to_le_bytes());
    far.register(regs::CONTROL, &1u32.to_le_bytes());
    assert_eq!(far.identify(), Status::Success);
}

/// A client that dies while the server waits for it is gone at once, and the next one is served.
#[test]
fn a_client_that_dies_while_it_is_waited_for_leaves_the_device_to_the_next() {
    let server = server();
    for clients in 1..=3 {
        let mut far = Far::new(Raw::greeted(&server.path()), &[]);
        far.enable();
        far.question();
        let began = Instant::now();
        drop(far);
        let left = || {
            server
                .told()
                .iter()
                .filter(|t| t.contains("has left"))
                .count()
        };
        while left() < clients {
            assert!(began.elapsed() < PATIENCE, "{:?}", server.told());
            thread::yield_now();
        }
    }
    let mut far = Far::new(Raw::greeted(&server.path()), &[]);
    far.register(regs::CONTROL, &1u32.to_le_bytes());
    assert_eq!(far.identify(), Status::Success);
}

/// Files that could be shortened are not mapped: what is in them is asked for, and the server says so.
#[test]
fn memory_that_could_be_taken_away_is_asked_for() {
    let server = server();
    let unsealed =
        rustix::fs::memfd_create(c"unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, LEN as u64).unwrap();
    let mut far = Far::new(Raw::greeted(&server.path()), &[unsealed.as_fd()]);
    server.wait_told("is reached by messages");
    assert_eq!(server.device().dma_mapped().unwrap(), (1, 0));
    far.register(regs::CONTROL, &1u32.to_le_bytes());
    assert_eq!(far.identify(), Status::Success);
}

/// Our client answers at any time, what it has not lent with a fault.
#[test]
fn what_our_client_has_not_lent_is_a_dma_fault_at_once() {
    let function = OverSocket::thread_by(device(&Wanted::default()), DmaAccess::Messages);
    let host = Host::bring_up(Arc::clone(&function));
    let client = function.inner().client();
    let body = map(1 << 40, 4096, 0);
    client
        .call(Command::DMA_MAP, &[body.as_bytes()], &[], 0)
        .unwrap();
    let began = Instant::now();
    assert_eq!(host.identify_at(1 << 40, 128), Status::DmaFault);
    host.identify();
    assert!(began.elapsed() < DMA_TIMEOUT, "nobody waited in vain");
    assert_eq!(function.server.device().dma_mapped().unwrap().1, 0);
}

/// A command, the descriptors that came with it, and what each byte of the page was, if there was one.
type Got = (Command, usize, Option<u8>);

/// A server that asks for a page of its client's memory with each command of DMA, and what it got: before the
/// reply, and with a command after it.
fn asks(stream: &UnixStream, refuses: bool) -> Vec<Got> {
    let mut got = Vec::new();
    while let Ok(command) = receive(stream, &wait()) {
        let header = command.header;
        let reply = |body: &[u8]| {
            send(stream, &header.reply(body.len()), &[body], &[], &wait()).expect("it is heard");
        };
        let mut read = |fds: usize| {
            let body = DmaAccessBody {
                address: AT.into(),
                count: 4096.into(),
            };
            let ask = Header::command(9, Command::DMA_READ, 16);
            send(stream, &ask, &[body.as_bytes()], &[], &wait()).expect("it is heard");
            let reply = receive(stream, &wait()).expect("a reply");
            assert_eq!(reply.header.about(), Command::DMA_READ);
            let byte = (!reply.header.has(wire::ERROR)).then(|| {
                assert_eq!(reply.body[16..], [reply.body[16]; 4096]);
                reply.body[16]
            });
            got.push((header.about(), fds, byte));
        };
        match header.about() {
            Command::VERSION => reply(&[0, 0, 1, 0, b'{', b'}', 0]),
            Command::DEVICE_GET_INFO => {
                let info = DeviceInfoBody {
                    argsz: 16.into(),
                    flags: 3.into(),
                    regions: 9.into(),
                    irqs: 0.into(),
                };
                reply(info.as_bytes());
            }
            Command::DEVICE_GET_REGION_INFO => {
                let (mut info, _) = wire::take::<RegionInfoBody>(&command.body).expect("32 bytes");
                info.size = 4096.into();
                info.flags = 3.into();
                reply(info.as_bytes());
            }
            Command::REGION_READ => reply(&[&command.body[..16], &[0; 64]].concat()),
            Command::DMA_MAP => {
                read(command.fds.len());
                match refuses {
                    true => send(stream, &header.refusal(12), &[], &[], &wait()).unwrap(),
                    false => reply(&[]),
                }
            }
            Command::DMA_UNMAP => {
                read(0);
                reply(&command.body);
            }
            Command::DEVICE_RESET => {
                read(0);
                reply(&[]);
            }
            other => panic!("{other}"),
        }
    }
    got
}

/// A buffer is lent from before DMA_MAP is sent until DMA_UNMAP was answered, or DMA_MAP refused; with its
/// file or without.
#[test]
fn a_buffer_is_lent_as_long_as_it_is_mapped() {
    for (dma, refuses) in [
        (DmaAccess::Files, false),
        (DmaAccess::Files, true),
        (DmaAccess::Messages, false),
        (DmaAccess::Messages, true),
    ] {
        let folder = SocketFolder::new();
        let listener = UnixListener::bind(folder.socket()).unwrap();
        let got = thread::scope(|scope| {
            let server = scope.spawn(|| asks(&listener.accept().unwrap().0, refuses));
            let function = attach_by(&folder.socket(), dma);
            let buffer = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
            buffer.write(0, &[7; 4096]);
            let mapped = function.dma_map(&buffer, Iova(AT));
            assert_eq!(mapped.is_err(), refuses, "{mapped:?}");
            function.reset().unwrap();
            let unmapped = function.dma_unmap(Iova(AT), 4096);
            let none = matches!(unmapped, Err(IoError::NotMapped { .. }));
            assert_eq!(none, refuses, "{unmapped:?}");
            function.reset().unwrap();
            drop(function);
            server.join().unwrap()
        });
        let page = Some(7);
        let files = usize::from(dma == DmaAccess::Files);
        let expected = match refuses {
            false => vec![
                (Command::DMA_MAP, files, page),
                (Command::DEVICE_RESET, 0, page),
                (Command::DMA_UNMAP, 0, page),
                (Command::DEVICE_RESET, 0, None),
            ],
            true => vec![
                (Command::DMA_MAP, files, page),
                (Command::DEVICE_RESET, 0, None),
                (Command::DEVICE_RESET, 0, None),
            ],
        };
        assert_eq!(got, expected, "{dma:?}");
    }
}
