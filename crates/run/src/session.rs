//! One program's run: its start, the threads that answer it, its end.

use crate::host::Host;
use crate::launch;
use crate::signals::Forwarding;
use crate::supervisor::{Counters, Supervisor};
use crate::{COLLECT, Config, Counts, Ended, Event, Files, Rules, RunError, sys};
use offmap_bpf::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, wait};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most threads that answer one program at a time.
const MOST_THREADS: usize = 512;
/// How long threads that answer may take to end once nobody can call any more.
const DRAIN: Duration = Duration::from_secs(1);

/// A process that is about to become the program, and waits.
pub(crate) struct Starting {
    pub(crate) child: Pid,
    pub(crate) listener: OwnedFd,
    pub(crate) place: Place,
    go: OwnedFd,
}

/// Where the program finds the devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Index of each device's interface.
    pub(crate) indexes: Vec<u32>,
    /// The namespace that they are in.
    pub(crate) netns: NetNs,
}

impl Starting {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`RunError`].
    pub(crate) fn new(config: &Config, files: Files) -> Result<Self, RunError> {
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
        // The copy is inherited.
        let inherited = rustix::io::dup(&theirs).map_err(io::Error::from)?;
        drop(theirs);
        let (path, first) = &config.launcher;
        let spawned = Command::new(path)
            .args(first)
            .args(launch::arguments(config, files, inherited.as_raw_fd()))
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
        Ok(Self {
            child,
            listener: started.listener,
            place: Place {
                indexes: started.indexes,
                netns: NetNs {
                    dev: namespace.dev(),
                    ino: namespace.ino(),
                },
            },
            go: ours,
        })
    }

    /// Has it become the program.
    ///
    /// # Errors
    ///
    /// It has died.
    pub(crate) fn go(self) -> io::Result<Running> {
        rustix::io::write(&self.go, b"!")?;
        Ok(Running {
            forwarding: Forwarding::to(self.child)?,
            child: self.child,
            status: None,
        })
    }
}

/// A program that runs.
pub(crate) struct Running {
    child: Pid,
    /// Its exit status, once it has ended.
    status: Option<u8>,
    forwarding: Forwarding,
}

impl Running {
    /// Takes the exit statuses of those that have ended. The program's, where nobody else is left or
    /// can call any more.
    ///
    /// # Errors
    ///
    /// Those of waitpid(2).
    pub(crate) fn reap(&mut self, over: bool) -> io::Result<Option<u8>> {
        // Who asks this process to end while only what the program left behind still runs, means it.
        let over = over || self.forwarding.was_for_nobody();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, how))) if pid == self.child => {
                    let code = how.exit_status().map(|code| code as u8);
                    let signal = how.terminating_signal().map(|signal| 128 + signal as u8);
                    self.status = code.or(signal).or(self.status);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(self.status.filter(|_| over)),
                // Nobody is left, and the status is known or somebody else took it.
                Err(rustix::io::Errno::CHILD) => return Ok(Some(self.status.unwrap_or(125))),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Threads that answer a program.
pub(crate) struct Session {
    shared: Arc<Shared>,
}

/// What they have in common.
struct Shared {
    supervisor: Supervisor,
    done: AtomicBool,
    /// Threads that there are, and those of them that wait for a call.
    threads: AtomicUsize,
    idle: AtomicUsize,
    /// How many stay when there is nothing to do.
    base: usize,
}

impl Session {
    /// Starts them: one per processor, 2 to 8, and more while all of them are busy.
    pub(crate) fn new(
        host: &Arc<Host>,
        listener: OwnedFd,
        place: Place,
        rules: Rules,
        report: Box<dyn Fn(&Event) + Send + Sync>,
    ) -> Self {
        sys::wake_up_in_place(&listener);
        let supervisor = Supervisor {
            host: Arc::clone(host),
            listener,
            indexes: place.indexes,
            netns: place.netns,
            rules,
            counters: Counters::default(),
            report,
        };
        let base = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        let shared = Arc::new(Shared {
            supervisor,
            done: AtomicBool::new(false),
            threads: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            base,
        });
        for _ in 0..base {
            Shared::add(&shared);
        }
        Self { shared }
    }

    /// Whether no process can call any more; waits for that a little.
    pub(crate) fn is_over(&self) -> bool {
        is_over(&self.shared.supervisor.listener, COLLECT)
    }

    /// Ends them.
    pub(crate) fn end(self) -> Counts {
        self.shared.done.store(true, Ordering::Release);
        let ended = Instant::now();
        // A kernel before 6.11 does not tell those who wait that nobody is left; then they stay.
        while self.shared.threads.load(Ordering::Acquire) != 0 && ended.elapsed() < DRAIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.supervisor.counters.counts()
    }
}

impl Shared {
    /// Adds a thread.
    fn add(this: &Arc<Self>) {
        this.threads.fetch_add(1, Ordering::AcqRel);
        this.idle.fetch_add(1, Ordering::AcqRel);
        let shared = Arc::clone(this);
        let thread = std::thread::Builder::new().spawn(move || {
            Self::answer_calls(&shared);
            shared.threads.fetch_sub(1, Ordering::AcqRel);
        });
        if thread.is_err() {
            // Those that there are have to do.
            this.threads.fetch_sub(1, Ordering::AcqRel);
            this.idle.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A thread that answers, until nobody can call any more.
    fn answer_calls(this: &Arc<Self>) {
        let listener = &this.supervisor.listener;
        while !this.done.load(Ordering::Acquire) {
            match sys::receive(listener) {
                Ok(Some(notification)) => {
                    // A call may wait for another one of the program, by a page that is its to fill.
                    if this.idle.fetch_sub(1, Ordering::AcqRel) == 1
                        && this.threads.load(Ordering::Acquire) < MOST_THREADS
                    {
                        Self::add(this);
                    }
                    let handled =
                        catch_unwind(AssertUnwindSafe(|| this.supervisor.handle(&notification)));
                    let handled = handled.unwrap_or_else(|_| {
                        // A defect of ours must not leave the program waiting.
                        let failed = sys::Answer::Fails(libc::EIO);
                        sys::answer(listener, notification.id, failed)
                    });
                    let idle = this.idle.fetch_add(1, Ordering::AcqRel) + 1;
                    if handled.is_err() {
                        return;
                    }
                    if idle > this.base {
                        this.idle.fetch_sub(1, Ordering::AcqRel);
                        return;
                    }
                }
                // Somebody died in mid-call; or all have, and then that is soon known.
                Ok(None) => {
                    if is_over(listener, Duration::ZERO) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}

/// Whether no process has the filter any more.
pub(crate) fn is_over(listener: &OwnedFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::empty())];
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: within.subsec_nanos().into(),
    };
    poll(&mut polled, Some(&timeout)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Runs the program until it and every process that it started have ended.
///
/// # Errors
///
/// [`RunError`]: the program did not start. How it ended is in [`Ended`].
pub fn run(host: &Arc<Host>, config: Config) -> Result<Ended, RunError> {
    let starting = Starting::new(&config, host.files())?;
    let listener = starting.listener.try_clone()?;
    let place = starting.place.clone();
    let session = Session::new(host, listener, place, config.rules, config.report);
    let mut running = starting.go()?;
    let status = loop {
        let over = session.is_over();
        if let Some(status) = running.reap(over)? {
            break status;
        }
    };
    Ok(Ended {
        status,
        counts: session.end(),
    })
}
