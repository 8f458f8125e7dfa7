//! Devices that outlive programs.

use crate::tools::{MODES, offmap, raw, said, skipped, stderr, stdout};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A daemon, which is ended with it.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn new(mode: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("offmap-daemon-{}-{n}", std::process::id()));
        let mut child = Command::new(env!("CARGO_BIN_EXE_offmap"))
            .args(["daemon", "--files", mode, "--socket"])
            .arg(&socket)
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let said = child.stderr.take().expect("piped");
        BufReader::new(said).read_line(&mut line).expect("a line");
        assert!(line.contains("joins"), "{line}");
        Self { child, socket }
    }

    /// A run that joins.
    fn run(&self) -> Command {
        let mut command = offmap(&["--quiet", "--connect"]);
        command.arg(&self.socket).arg("--");
        command
    }

    fn script(&self, lines: &str) -> Output {
        let output = self.run().args(["sh", "-ec", lines]).output();
        let output = output.expect("starts");
        assert!(output.status.success(), "{}", said(&output));
        output
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn a_map_is_there_for_the_next_program() {
    let there = Command::new("bpftool").arg("version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        return crate::tools::skip("there is no bpftool");
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let pin = format!("/sys/fs/bpf/offmap-daemon-{mode}-{}", std::process::id());
        let daemon = Daemon::new(mode);
        daemon.script(&format!(
            "bpftool map create {pin} type hash key 4 value 4 entries 9 name kept dev offmap0\n\
             bpftool map update pinned {pin} key 1 0 0 0 value 7 0 0 0"
        ));
        let output = daemon.script(&format!("bpftool -j map dump pinned {pin}"));
        assert!(
            stdout(&output).contains("\"0x07\""),
            "{mode}: {}",
            said(&output)
        );
        let output = daemon.script("bpftool map list");
        assert!(
            stdout(&output).contains("name kept"),
            "{mode}: {}",
            said(&output)
        );
        // What is not pinned ends with its program.
        if let Some(raw) = raw() {
            let output = daemon.run().arg(raw).args(["threads", "offmap0"]).output();
            assert!(output.expect("starts").status.success());
            let output = daemon.script("bpftool map list");
            assert!(
                !stdout(&output).contains("name raw"),
                "{mode}: {}",
                said(&output)
            );
        }
        drop(daemon);
        assert!(!Path::new(&pin).exists());
    }
}

/// Several programs at a time.
#[test]
fn programs_beside_each_other() {
    let Some(raw) = raw() else { return };
    let daemon = Daemon::new("memory");
    let runs: Vec<Child> = (0..4)
        .map(|_| {
            let mut run = daemon.run();
            run.arg(raw).args(["processes", "offmap0"]);
            run.stdout(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for run in runs {
        let output = run.wait_with_output().expect("it ends");
        assert_eq!(
            stdout(&output).trim(),
            "processes 2048",
            "{}",
            said(&output)
        );
    }
}

#[test]
fn the_daemon_dies_and_calls_end() {
    let Some(raw) = raw() else { return };
    let mut daemon = Daemon::new("memory");
    let mut run = daemon.run();
    run.arg(raw).args(["wait", "offmap0"]);
    let mut run = run
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    daemon.child.kill().expect("it runs");
    let last = lines.next().expect("a line").expect("text");
    assert_eq!(last, "lookup: Function not implemented");
    let output = run.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(
        stderr(&output).contains("while the program ran"),
        "{}",
        said(&output)
    );
    // The socket that it left is no hindrance.
    let again = Command::new(env!("CARGO_BIN_EXE_offmap"))
        .args(["run", "--connect"])
        .arg(&daemon.socket)
        .args(["--", "true"])
        .output()
        .expect("starts");
    assert_eq!(again.status.code(), Some(125));
    let path = daemon.socket.display().to_string();
    assert!(stderr(&again).contains(&path), "{}", said(&again));
    std::fs::remove_file(&daemon.socket).expect("it was left");
}

#[test]
fn two_daemons_at_one_socket_and_another_user() {
    let daemon = Daemon::new("memory");
    let second = Command::new(env!("CARGO_BIN_EXE_offmap"))
        .args(["daemon", "--socket"])
        .arg(&daemon.socket)
        .output()
        .expect("starts");
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(
        stderr(&second).contains("there is one already"),
        "{}",
        said(&second)
    );
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&daemon.socket).expect("it is there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    if !rustix::process::getuid().is_root() {
        return;
    }
    // Even with a socket that lets everybody in.
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(&daemon.socket, open).expect("it is ours");
    let copy = std::env::temp_dir().join(format!("offmap-other-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_offmap"), &copy).expect("a copy");
    let other = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--connect"])
        .arg(&daemon.socket)
        .args(["--", "true"])
        .output();
    std::fs::remove_file(&copy).expect("it was there");
    let other = other.expect("setpriv");
    assert_eq!(other.status.code(), Some(125), "{}", said(&other));
    assert!(
        stderr(&other).contains("another user's"),
        "{}",
        said(&other)
    );
}
