//! A device that has nothing, behind a socket: for what a server does before a device is asked.
#![allow(dead_code, reason = "each test binary uses some of it")]

use offmap_vfio_user::message::{Message, Wait, receive, send};
use offmap_vfio_user::server::{Backend, Description, DmaRange, Ended, Errno, Refusal, Region};
use offmap_vfio_user::wire::{Command, Header, IrqFlags, RegionFlags, VersionBody};
use offmap_vfio_user::{Duplex, Listener};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of the one region: more than a message takes.
const REGION_BYTES: u64 = 2 << 20;

struct Nothing(Description);

impl Nothing {
    fn new() -> Self {
        let region = Region {
            size: REGION_BYTES,
            flags: RegionFlags::READ | RegionFlags::WRITE,
            ..Region::NONE
        };
        Self(Description {
            regions: vec![region],
            irqs: vec![(0, IrqFlags::empty())],
            max_dma_maps: 1,
        })
    }
}

fn none<T>() -> Result<T, Refusal> {
    Err(Refusal::new(Errno::OPNOTSUPP, "there is nothing"))
}

impl Backend for Nothing {
    fn description(&self) -> &Description {
        &self.0
    }
    fn region_fd(&mut self, _: u32) -> Result<OwnedFd, Refusal> {
        none()
    }
    fn connected(&mut self, _: &Arc<Duplex>) -> Option<OwnedFd> {
        None
    }
    fn region_event_fd(&mut self, _: u32) -> Result<OwnedFd, Refusal> {
        none()
    }
    fn signalled(&mut self) {}
    fn region_read(&mut self, _: u32, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(5);
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn dma_map(
        &mut self,
        _: DmaRange,
        _: bool,
        _: bool,
        _: Option<(OwnedFd, u64)>,
    ) -> Result<(), Refusal> {
        none()
    }
    fn dma_unmap(&mut self, _: Option<DmaRange>) -> Result<(), Refusal> {
        Ok(())
    }
    fn irq_route(&mut self, _: u32, _: u32, _: Option<OwnedFd>) -> Result<(), Refusal> {
        none()
    }
    fn irq_trigger(&mut self, _: u32, _: u32) -> Result<(), Refusal> {
        none()
    }
    fn irq_mask(&mut self, _: u32, _: u32, _: bool) -> Result<(), Refusal> {
        none()
    }
    fn reset(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A server on a thread, which ends with this.
pub(crate) struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    ends: Arc<Mutex<Vec<String>>>,
    folder: PathBuf,
}

impl Server {
    /// One that waits so long for a client's VERSION.
    pub(crate) fn start(name: &str, version_timeout: Duration) -> Self {
        let folder = std::env::temp_dir().join(format!("offmap-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut listener = Listener::bind(&folder.join("nic.sock")).unwrap();
        listener.set_version_timeout(version_timeout);
        let (stop, told) = UnixStream::pair().unwrap();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let ends = Arc::clone(&ends);
            move || {
                let around = |_: &mut Nothing, ended: Option<&Ended>| {
                    if let Some(ended) = ended {
                        ends.lock().unwrap().push(format!("{ended:?}"));
                    }
                    Ok(())
                };
                listener
                    .run(&mut Nothing::new(), told.as_fd(), around)
                    .unwrap();
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
            ends,
            folder,
        }
    }

    /// Its socket.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("nic.sock")
    }

    /// How its clients have ended so far.
    pub(crate) fn ends(&self) -> Vec<String> {
        self.ends.lock().unwrap().clone()
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn wait() -> Wait<'static> {
    Wait::until(Instant::now() + PATIENCE)
}

/// Says VERSION with that id; the reply.
pub(crate) fn version(client: &UnixStream, id: u16) -> Message {
    let body = VersionBody {
        major: 0.into(),
        minor: 1.into(),
    };
    let header = Header::command(id, Command::VERSION, body.as_bytes().len());
    send(client, &header, &[body.as_bytes()], &[], &wait()).unwrap();
    receive(client, &wait()).unwrap()
}
