//! Signals to this process that are meant for the program.

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// SIGTERM and SIGHUP go on to the program. SIGINT and SIGQUIT, which a terminal sends to both, are
/// the program's alone. Until it is dropped.
pub(crate) struct Forwarding {
    hooks: Vec<SigId>,
}

impl Forwarding {
    /// To that process.
    ///
    /// # Errors
    ///
    /// Those of sigaction(2), and of descriptors.
    pub(crate) fn to(process: Pid) -> io::Result<Self> {
        let mut hooks = Vec::new();
        for (number, signal) in [(SIGTERM, Signal::TERM), (SIGHUP, Signal::HUP)] {
            let (mut taken, given) = UnixStream::pair()?;
            hooks.push(pipe::register(number, given)?);
            std::thread::spawn(move || {
                let mut byte = [0];
                // It ends when the hook is taken away, and its end of the pair with it.
                while matches!(taken.read(&mut byte), Ok(1)) {
                    // That it has ended already is no error.
                    let _ = kill_process(process, signal);
                }
            });
        }
        for number in [SIGINT, SIGQUIT] {
            let seen = Arc::new(AtomicBool::new(false));
            hooks.push(signal_hook::flag::register(number, seen)?);
        }
        Ok(Self { hooks })
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for hook in self.hooks.drain(..) {
            unregister(hook);
        }
    }
}
