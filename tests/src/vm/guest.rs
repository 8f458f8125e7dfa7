//! A running guest: QEMU, what it prints, and its monitor.

use super::fetch::Tools;
use super::text;
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

/// A virtual machine of two NUMA nodes with a processor each, and a NIC at each node.
pub struct Guest {
    child: Child,
    started: Instant,
    console: PathBuf,
    results: PathBuf,
    errors: PathBuf,
    monitor: PathBuf,
}

impl Guest {
    /// Boots it with the NICs at these sockets; `scenario` is for its script. Its logs go to
    /// `logs`.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn boot(
        tools: &Tools,
        image: &Path,
        nics: [&Path; 2],
        scenario: &str,
        logs: &Path,
        sockets: &Path,
    ) -> Self {
        let file = |what: &str| logs.join(format!("{scenario}-{what}.log"));
        let (console, results, errors) = (file("console"), file("results"), file("qemu"));
        let monitor = sockets.join(format!("{scenario}.qmp"));
        let qemu = tools.qemu();
        let stderr = File::create(&errors).expect("a log");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", LIMIT]).args(&qemu);
        command.args("-nodefaults -no-user-config -display none -no-reboot".split(' '));
        // Two processors: with one the interpreter turns locked instructions into plain ones.
        command.args("-accel tcg -cpu max -smp 2,sockets=2 -m 768M".split(' '));
        command.args("-machine q35,kernel-irqchip=split".split(' '));
        command.args("-device intel-iommu,intremap=on,caching-mode=on".split(' '));
        for node in 0..2 {
            let memory = format!("memory-backend-memfd,id=m{node},size=384M,share=on");
            let numa = format!("node,nodeid={node},cpus={node},memdev=m{node}");
            command.args(["-object", &memory, "-numa", &numa]);
        }
        command.args("-numa dist,src=0,dst=1,val=21".split(' '));
        command.args("-device pcie-root-port,id=rp0,chassis=1".split(' '));
        command.args("-device pxb-pcie,id=pxb1,bus=pcie.0,bus_nr=64,numa_node=1".split(' '));
        command.args("-device pcie-root-port,id=rp1,bus=pxb1,chassis=2".split(' '));
        for (n, socket) in nics.iter().enumerate() {
            let device = json!({
                "driver": "vfio-user-pci",
                "id": format!("nic{n}"),
                "bus": format!("rp{n}"),
                "socket": { "type": "unix", "path": socket },
            });
            command.args(["-device", &device.to_string()]);
        }
        let append = format!("console=ttyS0 quiet panic=-1 intel_iommu=on scenario={scenario}");
        command
            .arg("-kernel")
            .arg(tools.kernel().expect("a kernel"))
            .arg("-initrd")
            .arg(image)
            .args(["-append", &append])
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
