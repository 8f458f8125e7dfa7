//! Programs that know nothing of offmap, with their bpf(2) calls for offloaded maps answered by
//! it.
//!
//! [`run`] starts a program under a seccomp filter that has the kernel ask a supervisor, in this
//! process, about bpf(2) and about nothing else. Maps that belong on one of the given devices are
//! made by the [`System`] of the bpf layer, and every later call on them is answered there; all other
//! calls go on to the kernel. The program, its threads and its children may be static binaries
//! or make raw system calls: nothing is preloaded.
//!
//! What the program holds are descriptors of small maps of the kernel ([`Files::Kernel`]), so that ids,
//! pins, `/proc/PID/fdinfo`, dup(2), passing and closing are the kernel's; where the kernel
//! lets this user make none, memfds ([`Files::Memory`]).
//!
//! The program is started by [`Launch::run`] in a process of its own: an executable that calls it is
//! part of the [`Config`].

mod filter;
mod kernel;
mod launch;
mod memory;
mod objects;
mod program;
mod rules;
mod signals;
mod supervisor;
mod sys;

pub use launch::{Interfaces, Launch};
pub use objects::Files;
pub use rules::{Glob, Rules};

pub(crate) use rules::Choice;

use objects::Objects;
use offmap_bpf::{Error, IfIndex, NetNs, System};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, wait};
use signals::Forwarding;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use supervisor::{Counters, Supervisor};
use thiserror::Error;

/// How often it is looked for maps whose last reference went; a call that makes a map looks as well.
const COLLECT: Duration = Duration::from_millis(20);
/// How long threads that answer may take to end once nobody can call any more.
const DRAIN: Duration = Duration::from_secs(1);

/// A device that maps may live on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceAt {
    /// Its interface in the bpf layer.
    pub ifindex: IfIndex,
    /// The interface's name for the program.
    pub name: String,
}

/// What is run, and on what.
pub struct Config {
    /// What stands for maps in the program; `None`: maps of the kernel where it lets this user make
    /// them, otherwise memfds.
    pub files: Option<Files>,
    /// The devices, which are registered with the system already.
    pub devices: Vec<DeviceAt>,
    /// Whether the interfaces are there already, or new ones are made in a network namespace of the
    /// program's own.
    pub interfaces_are_there: bool,
    /// Which maps go to which device although their creator did not ask for it.
    pub rules: Rules,
    /// An executable and its first arguments; it is called with those of
    /// [`launch_arguments`] after them, and passes them to [`launch_from`].
    pub launcher: (PathBuf, Vec<OsString>),
    /// The program and its arguments.
    pub program: Vec<OsString>,
    /// Threads that answer calls; 0: one per processor, 2 to 8.
    pub workers: usize,
    /// Told of what the program's user would want to know.
    pub report: Box<dyn Fn(&Event) + Send + Sync>,
}

/// Something that the program's user would want to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A map was not made, or a program not loaded.
    Refused {
        /// The thread that asked.
        tid: i32,
        /// The command.
        command: u32,
        /// Why.
        error: Error,
    },
    /// A map that a rule sends to a device could not be made there, and the kernel makes it.
    LeftToKernel {
        /// The thread that asked.
        tid: i32,
        /// Why.
        error: Error,
    },
    /// The map that stood for one of ours was pinned still when the last process ended; the pin is
    /// gone.
    Unpinned {
        /// Where it was.
        path: PathBuf,
    },
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The program's exit status; 128 and the signal's number where a signal ended it.
    pub status: u8,
    /// What stood for maps.
    pub files: Files,
    /// Calls that were answered here.
    pub answered: u64,
    /// Calls that the kernel was told to carry out.
    pub passed_on: u64,
    /// Maps that were made on a device.
    pub maps: u64,
}

/// Why a program cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Maps of the kernel were asked for, and it makes none for this user.
    #[error(
        "the kernel lets this user make no maps that could stand for offloaded ones ({0}); without --files kernel memfds do"
    )]
    Files(io::Error),
    /// The process that starts the program could not be started.
    #[error("{path}: {source}", path = path.display())]
    Launcher {
        /// The executable.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It could not do what comes before the program.
    #[error("{0}")]
    Start(String),
    /// Something of this process.
    #[error("cannot supervise the program: {0}")]
    Io(#[from] io::Error),
}

/// The arguments after those of a launcher.
fn launch_arguments(config: &Config, files: Files, socket: i32) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        socket.to_string().into(),
        match files {
            Files::Kernel => "kernel".into(),
            Files::Memory => "memory".into(),
        },
        match config.interfaces_are_there {
            true => "there".into(),
            false => "new".into(),
        },
        config.devices.len().to_string().into(),
    ];
    arguments.extend(config.devices.iter().map(|device| (&device.name).into()));
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

/// Runs the program until it and every process that it started have ended.
///
/// # Errors
///
/// [`RunError`]: the program did not start. How it ended is in [`Ended`].
pub fn run(system: &Arc<System>, config: Config) -> Result<Ended, RunError> {
    let objects = Objects::new(config.files).map_err(RunError::Files)?;
    let files = objects.files();
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io::Error::from)?;
    // Processes that lose their parent are still below this one, so that their memory may be
    // read, and are waited for.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(io::Error::from)?;
    let inherited = rustix::io::dup(&theirs).map_err(io::Error::from)?;
    drop(theirs);
    let (path, first) = &config.launcher;
    let spawned = Command::new(path)
        .args(first)
        .args(launch_arguments(&config, files, inherited.as_raw_fd()))
        .spawn();
    let child = spawned.map_err(|source| RunError::Launcher {
        path: path.clone(),
        source,
    })?;
    drop(inherited);
    let child = Pid::from_child(&child);
    let started = launch::receive(ours.as_fd()).map_err(|why| {
        // It has ended, or does so now that nobody answers.
        let _ = wait(WaitOptions::empty());
        RunError::Start(why)
    })?;
    let namespace = std::fs::metadata(format!("/proc/{}/ns/net", child.as_raw_pid()))?;
    sys::wake_up_in_place(&started.listener);
    let supervisor = Arc::new(Supervisor {
        system: Arc::clone(system),
        listener: started.listener,
        objects,
        devices: config.devices,
        indexes: started.indexes,
        netns: NetNs {
            dev: namespace.dev(),
            ino: namespace.ino(),
        },
        rules: config.rules,
        btf: Mutex::default(),
        pins: Mutex::default(),
        counters: Counters::default(),
        report: config.report,
    });
    let done = Arc::new(AtomicBool::new(false));
    let workers = match config.workers {
        0 => std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)),
        count => count,
    };
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (supervisor, done) = (Arc::clone(&supervisor), Arc::clone(&done));
            std::thread::spawn(move || answer_calls(&supervisor, &done))
        })
        .collect();
    rustix::io::write(&ours, b"!").map_err(io::Error::from)?;
    drop(ours);
    let signals = Forwarding::to(child)?;
    let status = wait_for(&supervisor, child)?;
    drop(signals);
    done.store(true, Ordering::Release);
    let ended = Instant::now();
    // A kernel before 6.11 does not tell those who wait that nobody is left; then they stay.
    while threads.iter().any(|thread| !thread.is_finished()) && ended.elapsed() < DRAIN {
        std::thread::sleep(Duration::from_millis(1));
    }
    supervisor.end();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Ended {
        status,
        files,
        answered: count(&supervisor.counters.answered),
        passed_on: count(&supervisor.counters.passed_on),
        maps: count(&supervisor.counters.maps),
    })
}

/// A thread that answers, until nobody can call any more.
fn answer_calls(supervisor: &Supervisor, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        match sys::receive(&supervisor.listener) {
            Ok(Some(notification)) => {
                if supervisor.handle(&notification).is_err() {
                    return;
                }
            }
            // Somebody died in mid-call; or all have, and then that is soon known.
            Ok(None) => {
                if is_over(supervisor, Duration::ZERO) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Whether no process has the filter any more.
fn is_over(supervisor: &Supervisor, within: Duration) -> bool {
    let mut polled = [PollFd::new(&supervisor.listener, PollFlags::empty())];
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: within.subsec_nanos().into(),
    };
    poll(&mut polled, Some(&timeout)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Waits until nobody is left, collects maps and children meanwhile, and returns the exit status of
/// `child`.
fn wait_for(supervisor: &Supervisor, child: Pid) -> io::Result<u8> {
    let mut status = None;
    loop {
        let over = is_over(supervisor, COLLECT);
        supervisor.objects.collect();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, how))) if pid == child => {
                    let code = how.exit_status().map(|code| code as u8);
                    let signal = how.terminating_signal().map(|signal| 128 + signal as u8);
                    status = code.or(signal).or(status);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(rustix::io::Errno::CHILD) => {
                    // Nobody is left, and the program's status is known or somebody else took it.
                    return Ok(status.unwrap_or(125));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if over && let Some(status) = status {
            return Ok(status);
        }
    }
}
