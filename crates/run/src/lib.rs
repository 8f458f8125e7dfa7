//! Programs that know nothing of offmap, with their bpf(2) calls for offloaded maps answered by
//! it.
//!
//! [`run`] starts a program under a seccomp filter that has the kernel ask a supervisor, in this
//! process, about bpf(2) and about nothing else. Maps that belong on one of a [`Host`]'s devices are
//! made by the bpf layer, and every later call on them is answered there; all other
//! calls go on to the kernel. The program, its threads and its children may be static binaries
//! or make raw system calls: nothing is preloaded.
//!
//! What the program holds are descriptors of small maps of the kernel ([`Files::Kernel`]), so that ids,
//! pins, `/proc/PID/fdinfo`, dup(2), passing and closing are the kernel's; where the kernel
//! lets this user make none, memfds ([`Files::Memory`]).
//!
//! The program is started by [`launch_from`] in a process of its own: an executable that calls it is
//! part of the [`Config`]. With [`Daemon`] the host is another process, which [`join`] has answer for
//! a program.

mod daemon;
mod filter;
mod host;
mod kernel;
mod launch;
mod memory;
mod objects;
mod pins;
mod program;
mod rules;
mod session;
mod signals;
mod supervisor;
mod sys;

pub use daemon::{Daemon, devices_of, join};
pub use host::Host;
pub use launch::launch_from;
pub use objects::Files;
pub use rules::{Glob, Rules};
pub use session::run;

pub(crate) use rules::Choice;

use offmap_bpf::Error;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// How often it is looked for maps whose last reference went; a call that makes a map looks as well.
pub(crate) const COLLECT: Duration = Duration::from_millis(20);

/// The interfaces that stand for the devices, in the devices' order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interfaces {
    /// New ones of these names, in a network namespace of the program's own.
    New(Vec<String>),
    /// These, which are there.
    There(Vec<String>),
}

/// What is run.
pub struct Config {
    /// Interfaces for the host's devices, one each.
    pub interfaces: Interfaces,
    /// Which maps go to which device although their creator did not ask for it.
    pub rules: Rules,
    /// An executable and its first arguments, after which come those that it passes to
    /// [`launch_from`].
    pub launcher: (PathBuf, Vec<OsString>),
    /// The program and its arguments.
    pub program: Vec<OsString>,
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
    /// A call that makes a map was left to the kernel, because the caller's memory may not be read.
    Unreadable {
        /// The thread that asked.
        tid: i32,
    },
    /// The same as told by a daemon.
    Said(String),
}

impl Event {
    /// As a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Refused { command, error, .. } => {
                let own = match *command {
                    filter::PROG_LOAD => Some("PROG_LOAD"),
                    filter::PROG_BIND_MAP => Some("PROG_BIND_MAP"),
                    filter::LINK_CREATE => Some("LINK_CREATE"),
                    _ => None,
                };
                let name = own
                    .or(offmap_bpf::command::name(*command))
                    .unwrap_or("the command");
                format!("{name} refused: {error}")
            }
            Self::LeftToKernel { error, .. } => format!("a map stays with the kernel: {error}"),
            Self::Unreadable { tid } => format!(
                "the memory of thread {tid} may not be read (an executable without read permission, or kernel.yama.ptrace_scope): its maps are the kernel's"
            ),
            Self::Said(sentence) => sentence.clone(),
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The program's exit status; 128 and the signal's number where a signal ended it.
    pub status: u8,
    /// What was counted.
    pub counts: Counts,
}

/// What was done for a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
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
    /// The daemon, or what it says.
    #[error("the daemon at {path}: {why}", path = path.display())]
    Daemon {
        /// Its socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Something of this process.
    #[error("cannot supervise the program: {0}")]
    Io(#[from] io::Error),
}
