//! A running guest: QEMU, what it prints, and its monitor.

use crate::machine::Machine;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Seconds after which a guest is ended, whatever it does.
const LIMIT: &str = "420";
/// How often is looked whether something has come.
const LOOK: Duration = Duration::from_millis(20);

/// A virtual machine that runs.
pub struct Guest {
    child: Child,
    started: Instant,
    console: PathBuf,
    results: PathBuf,
    errors: PathBuf,
    monitor: PathBuf,
}

impl Guest {
    /// Boots a machine; `scenario` is for its script. Its logs go to `logs`.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn boot(machine: &Machine<'_>, scenario: &str, logs: &Path, sockets: &Path) -> Self {
        let file = |what: &str| logs.join(format!("{scenario}-{what}.log"));
        let (console, results, errors) = (file("console"), file("results"), file("qemu"));
        let monitor = sockets.join(format!("{scenario}.qmp"));
        // What an earlier guest of that name has said is nothing that this one says.
        for log in [&console, &results] {
            File::create(log).expect("a log");
        }
        let stderr = File::create(&errors).expect("a log");
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", LIMIT])
            .args(machine.command(&format!("scenario={scenario}")))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", results.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0);
        let child = command.spawn().expect("QEMU starts");
        Self {
            child,
            started: Instant::now(),
            console,
            results,
            errors,
            monitor,
        }
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// What its script has printed so far.
    pub fn results(&self) -> String {
        text(&self.results).replace('\r', "")
    }

    /// What QEMU has said itself.
    pub fn errors(&self) -> String {
        text(&self.errors)
    }

    /// What stands between two lines of the script's: `::BEGIN name` and `::END name`.
    ///
    /// # Panics
    ///
    /// When it does not stand there.
    #[track_caller]
    pub fn section(&self, name: &str) -> String {
        let results = self.results();
        let (begin, end) = (format!("::BEGIN {name}\n"), format!("::END {name} "));
        let found = results.split_once(&begin);
        let found = found.and_then(|(_, rest)| rest.split_once(&end));
        let (section, _) = found.unwrap_or_else(|| panic!("no {name} in:\n{results}"));
        section.to_owned()
    }

    /// Waits until its script has printed `what`; fails early when the guest ends before.
    ///
    /// # Panics
    ///
    /// When it does not, with all that is known.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, patience: Duration) {
        let started = Instant::now();
        loop {
            if self.results().contains(what) {
                return;
            }
            let ended = self.child.try_wait().expect("QEMU can be asked");
            if ended.is_some() || started.elapsed() > patience {
                let after = started.elapsed();
                self.fail(&format!("no {what:?} after {after:.1?} ({ended:?})"));
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether QEMU has ended, with an assertion of its own that has this in it.
    pub fn aborted(&mut self, what: &str) -> bool {
        let ended = self.child.try_wait().expect("QEMU can be asked");
        ended.is_some() && self.errors().contains(what)
    }

    /// Kills it, as an accident would.
    pub fn kill(&mut self) {
        // The group: `timeout` and QEMU.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// Has QEMU's monitor carry out a command, and waits for an event after it.
    ///
    /// # Errors
    ///
    /// A sentence that says what did not come.
    pub fn command(
        &self,
        execute: &str,
        arguments: &Value,
        event: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("QEMU's monitor: {e}");
        let deadline = Instant::now() + patience;
        let socket = UnixStream::connect(&self.monitor).map_err(failed)?;
        let mut lines = BufReader::new(socket.try_clone().map_err(failed)?);
        let commands = [
            json!({ "execute": "qmp_capabilities" }),
            json!({ "execute": execute, "arguments": arguments }),
        ];
        for command in commands {
            (&socket)
                .write_all(format!("{command}\n").as_bytes())
                .map_err(failed)?;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no {event} within {patience:?}"));
            }
            socket.set_read_timeout(Some(left)).map_err(failed)?;
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) => return Err("QEMU has closed its monitor".into()),
                Ok(_) => {}
                Err(e) => return Err(format!("no {event} within {patience:?}: {e}")),
            }
            let said: Value = serde_json::from_str(&line).map_err(|e| format!("{line}: {e}"))?;
            if let Some(error) = said.get("error") {
                return Err(format!("{execute}: {error}"));
            }
            if said["event"] == event {
                return Ok(());
            }
        }
    }

    /// Fails with the end of every log, and where they are.
    ///
    /// # Panics
    ///
    /// Always.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        let mut all = format!("{why}\n");
        for path in [&self.results, &self.console, &self.errors] {
            let text = text(path);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            all += &format!("-- the end of {}:\n{tail}\n", path.display());
        }
        panic!("{all}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file's text as far as it goes; nothing when there is none.
fn text(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
