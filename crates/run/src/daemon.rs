//! A host that outlives programs: a process of its own, which answers for those that join it.
//!
//! Who joins starts its program as ever, and passes the daemon the descriptor at which the program's calls
//! arrive. So the daemon is no parent of the program; where Yama lets only parents look into a
//! process (`kernel.yama.ptrace_scope` 1), it wants CAP_SYS_PTRACE.
//!
//! One message each way, as JSON, in packets: the daemon's [`Hello`], the joining program's [`Join`] with the
//! descriptor, and then what the daemon has to [`Say`].

use crate::host::Host;
use crate::launch;
use crate::rules::Glob;
use crate::session::{Place, Session, Starting, is_over};
use crate::{COLLECT, Config, Counts, Ended, Event, Files, Rules, RunError};
use offmap_bpf::NetNs;
use rustix::fd::AsFd;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, connect, listen, recv, send, socket_with,
};
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What both sides must have in common.
const VERSION: u32 = 1;
/// Longest message, in bytes.
const MESSAGE_BYTES: usize = 64 << 10;
/// How long who joins may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon's first message.
#[derive(Serialize, Deserialize)]
enum Hello {
    Welcome(Welcome),
    /// It will have nothing to do with who joins.
    Refused(String),
}

/// What who joins must know.
#[derive(Serialize, Deserialize)]
struct Welcome {
    version: u32,
    /// Whether maps of the kernel stand for maps.
    kernel: bool,
    /// How many devices there are.
    devices: usize,
}

/// The answer, with the descriptor at which calls arrive.
#[derive(Serialize, Deserialize)]
struct Join {
    /// Indexes of the interfaces that stand for the devices.
    indexes: Vec<u32>,
    /// Their namespace.
    netns: (u64, u64),
    /// Names and devices.
    globs: Vec<(String, usize)>,
    all: Option<usize>,
}

/// What the daemon says afterwards.
#[derive(Serialize, Deserialize)]
enum Say {
    /// It answers from now on.
    Ready,
    /// Something that the program's user would want to know.
    Event(String),
    /// The last process has ended.
    Ended {
        answered: u64,
        passed_on: u64,
        maps: u64,
    },
    /// It cannot answer.
    Refused(String),
}

/// A host at a socket.
pub struct Daemon {
    host: Arc<Host>,
    socket: OwnedFd,
    path: PathBuf,
    /// The file that it made: device and inode.
    file: (u64, u64),
}

impl Daemon {
    /// Makes the socket, for this user alone; one that a dead daemon left is replaced.
    ///
    /// # Errors
    ///
    /// [`RunError::Daemon`]: a daemon is there already, or the path cannot be used.
    pub fn new(host: Arc<Host>, path: &Path) -> Result<Self, RunError> {
        let wrong = |why: String| RunError::Daemon {
            path: path.to_owned(),
            why,
        };
        let io = |error: rustix::io::Errno| wrong(io::Error::from(error).to_string());
        let address = SocketAddrUnix::new(path).map_err(io)?;
        if connect_to(&address).is_ok() {
            return Err(wrong("there is one already".to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) => {
                fs::remove_file(path).map_err(|error| wrong(error.to_string()))?;
            }
            Ok(_) => return Err(wrong("there is a file that is no socket".to_owned())),
            Err(_) => {}
        }
        let socket = packets().map_err(io)?;
        // Nobody else gets at it between the two: a socket that does not listen takes nobody.
        bind(&socket, &address).map_err(io)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|error| wrong(error.to_string()))?;
        listen(&socket, 64).map_err(io)?;
        let file = identity(path).ok_or_else(|| wrong("the socket has gone".to_owned()))?;
        Ok(Self {
            host,
            socket,
            path: path.to_owned(),
            file,
        })
    }

    /// Answers for whoever joins, for ever. Users other than this one, and root, are turned away.
    ///
    /// # Errors
    ///
    /// Nobody can join any more.
    pub fn serve(&self) -> io::Result<()> {
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(client) => {
                    let host = Arc::clone(&self.host);
                    std::thread::spawn(move || serve_one(&host, client));
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                    std::thread::sleep(COLLECT);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Daemon {
    /// Removes the socket's file.
    pub fn remove(&self) {
        // Another daemon may have put its own there, when somebody had removed this one.
        if identity(&self.path) == Some(self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let there = fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

/// How long a message is waited for.
fn be_patient(socket: &OwnedFd, time: Option<Duration>) -> Result<(), String> {
    set_socket_timeout(socket, Timeout::Recv, time)
        .map_err(|error| io::Error::from(error).to_string())
}

fn packets() -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

fn connect_to(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let socket = packets()?;
    connect(&socket, address)?;
    Ok(socket)
}

/// Says something; `false` where nobody listens any more.
fn say(client: &OwnedFd, what: &impl Serialize) -> bool {
    let Ok(message) = serde_json::to_vec(what) else {
        return false;
    };
    send(client, &message, SendFlags::NOSIGNAL).is_ok()
}

/// Hears something of at most [`MESSAGE_BYTES`].
fn hear<T: for<'a> Deserialize<'a>>(socket: &OwnedFd) -> Result<T, String> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let (len, _) =
        recv(socket, &mut bytes[..], RecvFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::AGAIN => {
                format!("it says nothing for {} s", PATIENCE.as_secs())
            }
            error => io::Error::from(error).to_string(),
        })?;
    match len {
        0 => Err("it has closed the connection".to_owned()),
        _ => serde_json::from_slice(&bytes[..len]).map_err(|error| error.to_string()),
    }
}

/// One that joins.
fn serve_one(host: &Arc<Host>, client: OwnedFd) {
    if let Err(why) = try_serve(host, &client) {
        say(&client, &Say::Refused(why));
    }
}

fn try_serve(host: &Arc<Host>, client: &OwnedFd) -> Result<(), String> {
    let peer = socket_peercred(client).map_err(|error| io::Error::from(error).to_string())?;
    let own = rustix::process::geteuid();
    if peer.uid != own && !peer.uid.is_root() {
        say(client, &Hello::Refused("it is another user's".to_owned()));
        return Ok(());
    }
    be_patient(client, Some(PATIENCE))?;
    let welcome = Welcome {
        version: VERSION,
        kernel: host.files() == Files::Kernel,
        devices: host.devices.len(),
    };
    say(client, &Hello::Welcome(welcome));
    let (bytes, listener) = launch::receive_with_file(client.as_fd(), MESSAGE_BYTES)
        .map_err(|error| error.to_string())?;
    let join: Join = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let listener = listener.ok_or("no descriptor came with it")?;
    if !crate::sys::is_listener(&listener) {
        return Err("the descriptor that came with it is not a seccomp filter's".to_owned());
    }
    let there = host.devices.len();
    let known = join.globs.iter().map(|&(_, device)| device).chain(join.all);
    if join.indexes.len() != there || known.max().is_some_and(|device| device >= there) {
        return Err(format!("it has {there} devices, and the run is for others"));
    }
    let rules = Rules {
        globs: join
            .globs
            .iter()
            .map(|(glob, device)| (Glob::new(glob), *device))
            .collect(),
        all: join.all,
    };
    let place = Place {
        indexes: join.indexes,
        netns: NetNs {
            dev: join.netns.0,
            ino: join.netns.1,
        },
    };
    let reports = client
        .try_clone()
        .map_err(|error| format!("no descriptor: {error}"))?;
    let reports = Mutex::new(reports);
    let report = move |event: &Event| {
        let client = reports.lock().unwrap_or_else(PoisonError::into_inner);
        say(&client, &Say::Event(event.sentence()));
    };
    let session = Session::new(host, listener, place, rules, Box::new(report));
    say(client, &Say::Ready);
    // Although who joined may leave: the program goes on.
    while !session.is_over() {}
    let counts = session.end();
    say(
        client,
        &Say::Ended {
            answered: counts.answered,
            passed_on: counts.passed_on,
            maps: counts.maps,
        },
    );
    Ok(())
}

/// Connects to the daemon at `path`.
fn reach(path: &Path) -> Result<(OwnedFd, Welcome), RunError> {
    let wrong = |why: String| RunError::Daemon {
        path: path.to_owned(),
        why,
    };
    let io = |error: rustix::io::Errno| wrong(io::Error::from(error).to_string());
    let daemon = connect_to(&SocketAddrUnix::new(path).map_err(io)?).map_err(io)?;
    be_patient(&daemon, Some(PATIENCE)).map_err(wrong)?;
    let welcome = match hear(&daemon).map_err(wrong)? {
        Hello::Welcome(welcome) => welcome,
        Hello::Refused(why) => return Err(wrong(why)),
    };
    if welcome.version != VERSION {
        let why = format!("it speaks version {}, this is {VERSION}", welcome.version);
        return Err(wrong(why));
    }
    Ok((daemon, welcome))
}

/// How many devices the daemon at `path` has.
///
/// # Errors
///
/// [`RunError::Daemon`]: there is none.
pub fn devices_of(path: &Path) -> Result<usize, RunError> {
    reach(path).map(|(_, welcome)| welcome.devices)
}

/// Runs a program on the devices of the daemon at `path`, until it and every process that it started
/// have ended.
///
/// # Errors
///
/// [`RunError`]: the program did not start, or the daemon died meanwhile; the program's calls fail
/// with ENOSYS then.
pub fn join(path: &Path, config: Config) -> Result<Ended, RunError> {
    let wrong = |why: String| RunError::Daemon {
        path: path.to_owned(),
        why,
    };
    let (daemon, welcome) = reach(path)?;
    let files = match welcome.kernel {
        true => Files::Kernel,
        false => Files::Memory,
    };
    let starting = Starting::new(&config, files)?;
    let join = Join {
        indexes: starting.place.indexes.clone(),
        netns: (starting.place.netns.dev, starting.place.netns.ino),
        globs: config
            .rules
            .globs
            .iter()
            .map(|(glob, device)| (glob.pattern().to_owned(), *device))
            .collect(),
        all: config.rules.all,
    };
    let message = serde_json::to_vec(&join).map_err(|error| wrong(error.to_string()))?;
    launch::send(daemon.as_fd(), &message, Some(starting.listener.as_fd()))?;
    let listener = starting.listener.try_clone()?;
    let mut running = loop {
        match hear(&daemon).map_err(wrong)? {
            Say::Ready => {
                be_patient(&daemon, None).map_err(wrong)?;
                break starting.go()?;
            }
            Say::Refused(why) => return Err(wrong(why)),
            Say::Event(sentence) => (config.report)(&Event::Said(sentence)),
            Say::Ended { .. } => return Err(wrong("it has ended the run".to_owned())),
        }
    };
    let heard = std::thread::spawn(move || {
        loop {
            match hear(&daemon) {
                Ok(Say::Event(sentence)) => (config.report)(&Event::Said(sentence)),
                Ok(Say::Ended {
                    answered,
                    passed_on,
                    maps,
                }) => {
                    return Ok(Counts {
                        answered,
                        passed_on,
                        maps,
                    });
                }
                Ok(Say::Ready) => {}
                Ok(Say::Refused(why)) | Err(why) => return Err(why),
            }
        }
    });
    let mut listener = Some(listener);
    let status = loop {
        // Without this copy the kernel learns that nobody answers when the daemon dies.
        if heard.is_finished() {
            listener = None;
        }
        let over = match &listener {
            Some(listener) => is_over(listener, COLLECT),
            None => {
                std::thread::sleep(COLLECT);
                true
            }
        };
        if let Some(status) = running.reap(over)? {
            break status;
        }
    };
    drop(listener);
    match heard.join() {
        Ok(Ok(counts)) => Ok(Ended { status, counts }),
        Ok(Err(why)) => Err(wrong(format!("{why} while the program ran"))),
        Err(_) => Err(wrong("its messages could not be heard".to_owned())),
    }
}
