//! `offmap nic` and whoever reads what it says, or does not; and what it says of options that cannot be.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

struct Nic {
    child: Child,
    folder: PathBuf,
}

impl Nic {
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("offmap-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let child = Command::new(env!("CARGO_BIN_EXE_offmap"))
            .args(["nic", "--memory", "8M", "--socket"])
            .arg(folder.join("nic.sock"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("offmap nic starts");
        Self { child, folder }
    }

    /// A connection; the server may just be coming up, or its backlog be full.
    fn connect(&self) -> UnixStream {
        let started = Instant::now();
        loop {
            match UnixStream::connect(self.folder.join("nic.sock")) {
                Ok(stream) => return stream,
                Err(e) => assert!(started.elapsed() < PATIENCE, "{e}"),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A message of the protocol: id, command, flags, and what follows.
fn message(id: u16, command: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Says VERSION; the header of the reply.
fn version(client: &mut UnixStream) -> [u8; 16] {
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let said = message(7, 1, &[0, 0, 1, 0]);
    client.write_all(&said).expect("the server reads");
    let mut header = [0; 16];
    client.read_exact(&mut header).expect("a reply");
    let size = u32::from_ne_bytes(header[4..8].try_into().expect("4 bytes"));
    let mut body = vec![0; size as usize - 16];
    client.read_exact(&mut body).expect("a reply");
    header
}

/// More clients than stderr, an unread pipe, has room for the lines of: the NIC serves the next one.
#[test]
fn a_pipe_that_nobody_reads_does_not_hold_the_nic_up() {
    /// Each is two lines of some 30 bytes, for a pipe of 64 KiB.
    const CLIENTS: usize = 2000;
    let mut nic = Nic::start("unread");
    for _ in 0..CLIENTS {
        // What it says cannot be, and is told of.
        let mut client = nic.connect();
        client.write_all(&message(1, 99, &[])).expect("it is read");
        let mut reply = [0; 16];
        let _ = client.read(&mut reply);
    }
    let started = Instant::now();
    // The one before may be there for a moment longer.
    while version(&mut nic.connect())[8] & 0x20 != 0 {
        assert!(started.elapsed() < PATIENCE, "it is not served");
        thread::sleep(Duration::from_millis(5));
    }
    // Whoever reads then finds the first lines, and how many are missing.
    let mut stderr = nic.child.stderr.take().expect("a pipe");
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let pid = nic.child.id().to_string();
    let told = Command::new("kill").arg(&pid).status().expect("kill");
    assert!(told.success());
    let ended = nic.child.wait().expect("it ends");
    assert!(ended.success(), "{ended}");
    let text = reader.join().expect("a text");
    assert!(text.contains("the NIC is at"), "{text}");
    assert!(text.contains("lines were dropped here"), "{}", text.len());
}

/// A value that cannot be is named by the option that it was given with.
#[test]
fn values_that_cannot_be_are_named_by_their_option() {
    for (option, value, may) in [
        ("--vectors", "0", "from 1 to 2,048"),
        ("--queue-pairs", "2000", "from 1 to 1,023"),
        ("--queue-depth", "3", "a power of two"),
        ("--look-again-us", "0", "from 1 to 60,000,000"),
        ("--maps", "0", "from 1 to 65535"),
        ("--memory", "1", "from "),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_offmap"))
            .args(["nic", "--socket", "/tmp/offmap-none.sock", option, value])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{said}");
        let starts = format!("offmap: {option} {value}: it must be {may}");
        assert!(said.starts_with(&starts), "{starts}: {said}");
        assert!(!said.contains('_'), "{said}");
    }
}
