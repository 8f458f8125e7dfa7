//! Signals to this process that are meant for the program.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, pidfd_open, pidfd_send_signal};
use rustix::termios::tcgetpgrp;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::{pipe, unregister};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals go on to the program, until it is dropped; but SIGINT and SIGQUIT do not while this process
/// is in the foreground of a terminal, which sends them to both.
pub(crate) struct Forwarding {
    hooks: Vec<SigId>,
    for_nobody: Arc<AtomicBool>,
}

impl Forwarding {
    /// To that process, a child that was not waited for yet.
    ///
    /// # Errors
    ///
    /// Those of sigaction(2), and of descriptors.
    pub(crate) fn to(process: Pid) -> io::Result<Self> {
        let mut hooks = Vec::new();
        let for_nobody = Arc::new(AtomicBool::new(false));
        for (number, signal) in [
            (SIGTERM, Signal::TERM),
            (SIGHUP, Signal::HUP),
            (SIGINT, Signal::INT),
            (SIGQUIT, Signal::QUIT),
            (SIGUSR1, Signal::USR1),
            (SIGUSR2, Signal::USR2),
        ] {
            let (mut taken, given) = UnixStream::pair()?;
            hooks.push(pipe::register(number, given)?);
            // By number it could be another process later.
            let process = pidfd_open(process, PidfdFlags::empty())?;
            let nobody = Arc::clone(&for_nobody);
            std::thread::spawn(move || {
                let mut byte = [0];
                // It ends when the hook is taken away, and its end of the pair with it.
                while matches!(taken.read(&mut byte), Ok(1)) {
                    let of_terminal = matches!(signal, Signal::INT | Signal::QUIT);
                    let sent = match of_terminal && is_in_foreground() {
                        // The program has it already, if it is there.
                        true => crate::sys::is_there(&process),
                        false => pidfd_send_signal(&process, signal),
                    };
                    if sent.is_err() {
                        nobody.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
        Ok(Self { hooks, for_nobody })
    }

    /// Whether a signal came when the program had ended.
    pub(crate) fn was_for_nobody(&self) -> bool {
        self.for_nobody.load(Ordering::Relaxed)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for hook in self.hooks.drain(..) {
            unregister(hook);
        }
    }
}

/// Whether this process is in the foreground of its terminal.
fn is_in_foreground() -> bool {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = openat(CWD, "/dev/tty", flags, Mode::empty());
    terminal
        .ok()
        .and_then(|terminal| tcgetpgrp(terminal).ok())
        .is_some_and(|group| group == getpgrp())
}
