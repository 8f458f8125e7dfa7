//! The program's start: a process that puts itself behind the filter, tells the supervisor, and
//! becomes the program.
//!
//! It is a process of its own from the beginning, and not a fork of the supervisor, because what it
//! does (namespaces, netlink, seccomp) is more than a child of a process with threads may do.

use crate::filter::filter;
use crate::{Config, Files, Interfaces, sys};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the starting process is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Launch {
    /// What answers for descriptors.
    files: Files,
    /// The interfaces.
    interfaces: Interfaces,
    /// The program and its arguments; not empty.
    program: Vec<OsString>,
}

/// The arguments after those of a launcher.
pub(crate) fn arguments(config: &Config, files: Files, socket: i32) -> Vec<OsString> {
    let (kind, names) = match &config.interfaces {
        Interfaces::New(names) => ("new", names),
        Interfaces::There(names) => ("there", names),
    };
    let files = match files {
        Files::Kernel => "kernel",
        Files::Memory => "memory",
    };
    let mut arguments: Vec<OsString> = vec![
        socket.to_string().into(),
        files.into(),
        kind.into(),
        names.len().to_string().into(),
    ];
    arguments.extend(names.iter().map(OsString::from));
    arguments.extend(config.program.iter().cloned());
    arguments
}

/// What a launcher does with the arguments that it was given after its own: becomes the program.
/// It returns only when that fails, with the exit status.
pub fn launch_from(arguments: &[OsString]) -> u8 {
    let parsed = (|| {
        let [socket, files, there, count, rest @ ..] = arguments else {
            return None;
        };
        let socket = socket.to_str()?.parse().ok()?;
        let count: usize = count.to_str()?.parse().ok()?;
        let names = rest.get(..count)?;
        let names = names
            .iter()
            .map(|name| name.to_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()?;
        let launch = Launch {
            files: match files.to_str()? {
                "kernel" => Files::Kernel,
                _ => Files::Memory,
            },
            interfaces: match there.to_str()? {
                "there" => Interfaces::There(names),
                _ => Interfaces::New(names),
            },
            program: rest.get(count..)?.to_vec(),
        };
        Some((sys::inherited(socket)?, launch))
    })();
    match parsed {
        Some((socket, launch)) => launch.run(socket),
        None => {
            eprintln!("offmap run: this is for `offmap run` itself to call");
            125
        }
    }
}

/// Longest report of the starting process, in bytes.
const REPORT_BYTES: usize = 4096;
/// First byte of a report.
const STARTED: u8 = b'+';
const FAILED: u8 = b'-';

/// Kinds of interfaces that carry nothing by themselves, in the order in which they are tried.
const KINDS: [InfoKind; 4] = [
    InfoKind::Dummy,
    InfoKind::Ifb,
    InfoKind::Bridge,
    InfoKind::Veth,
];

impl Launch {
    /// Becomes the program, after the supervisor at `socket` was told. It returns only when that
    /// fails, with the exit status: 127 where there is no such program, 126 where it cannot be
    /// started, 125 otherwise.
    fn run(&self, socket: OwnedFd) -> u8 {
        let started = self.prepare().and_then(|(listener, indexes)| {
            let mut report = vec![STARTED];
            for index in indexes {
                report.extend(index.to_ne_bytes());
            }
            send(socket.as_fd(), &report, Some(listener.as_fd()))
                .map_err(|error| format!("cannot tell the supervisor: {error}"))
        });
        if let Err(why) = started {
            let mut report = vec![FAILED];
            report.extend(why.bytes().take(REPORT_BYTES - 1));
            if send(socket.as_fd(), &report, None).is_err() {
                eprintln!("offmap run: {why}");
            }
            return 125;
        }
        // The supervisor says when it is ready, and closes its end if it never is.
        let mut go = [0; 1];
        match rustix::io::read(&socket, &mut go) {
            Ok(1) => {}
            _ => return 125,
        }
        drop(socket);
        let (name, arguments) = self.program.split_first().unwrap_or((&NO_PROGRAM, &[]));
        let error = Command::new(name).args(arguments).exec();
        eprintln!("offmap run: {}: {error}", name.display());
        match error.kind() {
            io::ErrorKind::NotFound => 127,
            _ => 126,
        }
    }

    /// Namespaces, interfaces, the filter.
    fn prepare(&self) -> Result<(OwnedFd, Vec<u32>), String> {
        let names = match &self.interfaces {
            Interfaces::There(names) => names,
            Interfaces::New(names) => {
                namespaces()?;
                // So that what talks to itself over 127.0.0.1 can.
                set_up(LOOPBACK).map_err(|error| format!("lo: {error}"))?;
                for name in names {
                    add_interface(name)?;
                }
                names
            }
        };
        let indexes = names
            .iter()
            .map(|name| interface_index(name))
            .collect::<Result<_, _>>()?;
        sys::check_sizes()
            .map_err(|error| format!("this kernel has no seccomp user notification: {error}"))?;
        let listener = sys::listen(&filter(self.files)).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY) => "a seccomp filter with a supervisor is there already, and one inside another does not work: is this run under `offmap run`, or in a container whose runtime watches system calls?".to_owned(),
                _ => format!("the seccomp filter is refused: {error}"),
            }
        })?;
        Ok((listener, indexes))
    }
}

static NO_PROGRAM: std::sync::LazyLock<OsString> = std::sync::LazyLock::new(OsString::new);

/// A network namespace of its own; for users without privileges with a user namespace around
/// it, in which they are root.
fn namespaces() -> Result<(), String> {
    if sys::new_namespaces(false).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let why = |what: &str, error: io::Error| {
        format!(
            "no namespace for the devices' interfaces ({what}: {error}); --ifname NAME uses an interface that is there"
        )
    };
    sys::new_namespaces(true).map_err(|error| why("unshare", error))?;
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {} 1", uid.as_raw())),
        ("gid_map", format!("0 {} 1", gid.as_raw())),
    ] {
        std::fs::write(format!("/proc/self/{file}"), line).map_err(|error| why(file, error))?;
    }
    Ok(())
}

/// Adds an interface, of the first kind that the kernel has.
fn add_interface(name: &str) -> Result<(), String> {
    let mut last = String::new();
    for kind in KINDS {
        match add_interface_of(name, kind.clone()) {
            Ok(()) => return Ok(()),
            Err(error) => last = format!("{kind}: {error}"),
        }
    }
    Err(format!(
        "the interface {name:?} cannot be made: the kernel has none of the kinds dummy, ifb, bridge and veth ({last})"
    ))
}

/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// Sets an interface up.
fn set_up(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::SetLink(link), 0)
}

fn add_interface_of(name: &str, kind: InfoKind) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    request(
        RouteNetlinkMessage::NewLink(link),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Sends a request, and takes its answer.
fn request(request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
        .map_err(|error| io::Error::other(error.to_string()))?;
    match reply.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
        },
        other => Err(io::Error::other(format!("netlink answers {other:?}"))),
    }
}

fn interface_index(name: &str) -> Result<u32, String> {
    index_of(name).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => format!("there is no interface {name:?} (--ifname)"),
        _ => format!("the interface {name:?}: {error}"),
    })
}

fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}

/// Sends `bytes` as one message, with a descriptor.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file]);
    if let Some(files) = &files {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// What a starting process reports.
#[derive(Debug)]
pub(crate) struct Started {
    /// Where its notifications come.
    pub(crate) listener: OwnedFd,
    /// Indexes of the interfaces, in its namespace.
    pub(crate) indexes: Vec<u32>,
}

/// Receives one message of at most `most` bytes, and the descriptor that comes with it.
///
/// # Errors
///
/// Those of recvmsg(2).
pub(crate) fn receive_with_file(
    socket: BorrowedFd<'_>,
    most: usize,
) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; most];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    bytes.truncate(got.bytes);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok((bytes, file))
}

/// Receives the report.
///
/// # Errors
///
/// A sentence that says why the program does not start.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Started, String> {
    let (bytes, listener) = receive_with_file(socket, REPORT_BYTES)
        .map_err(|error| format!("the starting process says nothing: {error}"))?;
    match (bytes.split_first(), listener) {
        (Some((&STARTED, indexes)), Some(listener)) => Ok(Started {
            listener,
            indexes: indexes
                .chunks_exact(4)
                .map(|raw| u32::from_ne_bytes(raw.try_into().unwrap_or_default()))
                .collect(),
        }),
        (Some((&FAILED, why)), _) => Err(String::from_utf8_lossy(why).into_owned()),
        _ => Err("the starting process ended before it was ready".to_owned()),
    }
}
