//! A device behind a vfio-user socket: on a thread of the test, or in a process that
//! `offmap nic` is.

use crate::command::offmap;
use crate::forward::forward;
use offmap_conformance::Wanted;
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_emulator::vfio_user::Server;
use offmap_emulator::{DeviceConfig, Threaded};
use offmap_vfio_user::{Attach, DmaAccess, VfioUser};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The device that a conformance case wants.
pub fn device(wanted: &Wanted) -> DeviceConfig {
    let mut config = DeviceConfig::default();
    let firmware = &mut config.firmware;
    firmware.memory_bytes = wanted.memory_bytes;
    firmware.maps = wanted.maps.unwrap_or(firmware.maps);
    firmware.entries_per_map = wanted.entries_per_map.unwrap_or(firmware.entries_per_map);
    firmware.entries_total = wanted.entries_total.unwrap_or(firmware.entries_total);
    config.polls_before_park = wanted.polls_before_park.unwrap_or(config.polls_before_park);
    config.look_again_us = wanted.look_again_us.unwrap_or(config.look_again_us);
    config
}

/// How long a server may take to be there, and to end; far beyond what it does take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of its own for a socket, which goes with it.
#[derive(Debug)]
pub struct SocketFolder(PathBuf);

impl SocketFolder {
    /// A new one.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("offmap-nic-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    /// Where the socket is to be.
    pub fn socket(&self) -> PathBuf {
        self.0.join("nic.sock")
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server on a thread of this process. Dropping it ends the thread.
pub struct ServerThread {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    device: Arc<Threaded>,
    told: Arc<Mutex<Vec<String>>>,
    folder: SocketFolder,
}

impl ServerThread {
    /// Builds a device and serves it.
    ///
    /// # Panics
    ///
    /// When that is not possible.
    pub fn spawn(config: DeviceConfig) -> Self {
        let folder = SocketFolder::new();
        let server = Server::bind(&folder.socket(), config).expect("a server");
        let device = Arc::clone(server.device());
        let (stop, told_to) = UnixStream::pair().expect("a pair of sockets");
        let told = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let told = Arc::clone(&told);
            move || {
                server.run(told_to.as_fd(), &mut |sentence| {
                    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                    told.push(sentence.to_owned());
                })
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
            device,
            told,
            folder,
        }
    }

    /// Its socket.
    pub fn path(&self) -> PathBuf {
        self.folder.socket()
    }

    /// The device, from its own side.
    pub fn device(&self) -> &Arc<Threaded> {
        &self.device
    }

    /// What it has told so far.
    pub fn told(&self) -> Vec<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Waits until it has told a sentence that contains `what`.
    ///
    /// # Panics
    ///
    /// When it never does.
    #[track_caller]
    pub fn wait_told(&self, what: &str) {
        let started = Instant::now();
        while !self.told().iter().any(|told| told.contains(what)) {
            assert!(started.elapsed() < PATIENCE, "{what:?}: {:?}", self.told());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("the server's thread lives").expect("accept");
            }
        }
    }
}

/// A process that is `offmap nic`. Dropping it kills the process.
pub struct ServerProcess {
    child: Child,
    folder: SocketFolder,
}

impl ServerProcess {
    /// Starts it, and waits for its socket.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn spawn(config: &DeviceConfig) -> Self {
        let folder = SocketFolder::new();
        let firmware = &config.firmware;
        let options: [(&str, u64); 10] = [
            ("--memory", firmware.memory_bytes),
            ("--queue-pairs", config.queue_pairs.into()),
            ("--queue-depth", config.queue_depth_max.into()),
            ("--vectors", config.vectors.into()),
            ("--ports", firmware.ports.into()),
            ("--maps", firmware.maps.into()),
            ("--map-entries", firmware.entries_per_map.into()),
            ("--total-entries", firmware.entries_total),
            ("--polls", config.polls_before_park.into()),
            ("--look-again-us", config.look_again_us.into()),
        ];
        let child = Command::new(offmap())
            .arg("nic")
            .arg("--socket")
            .arg(folder.socket())
            .args(
                options
                    .iter()
                    .flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]),
            )
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("offmap nic starts");
        let mut this = Self { child, folder };
        let started = Instant::now();
        // The file is there before anybody listens at it.
        while UnixStream::connect(this.path()).is_err() {
            let ended = this.child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "offmap nic has ended: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "no socket of offmap nic");
            thread::sleep(Duration::from_millis(2));
        }
        this
    }

    /// Its socket.
    pub fn path(&self) -> PathBuf {
        self.folder.socket()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, as an accident would.
    ///
    /// # Panics
    ///
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Waits for its end, and returns its exit status.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "offmap nic does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Attaches.
///
/// # Panics
///
/// When the server cannot be attached to.
#[track_caller]
pub fn attach(path: &Path) -> VfioUser {
    attach_by(path, DmaAccess::Files)
}

/// Attaches, so that the server reaches DMA buffers in this way.
///
/// # Panics
///
/// As [`attach`].
#[track_caller]
pub fn attach_by(path: &Path, dma: DmaAccess) -> VfioUser {
    let timeout = PATIENCE;
    VfioUser::attach(path, Attach { timeout, dma })
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A client with the server that it is attached to.
pub struct OverSocket<S> {
    inner: VfioUser,
    /// The server; it ends after the client has left.
    pub server: S,
}

impl<S> OverSocket<S> {
    /// The client.
    pub fn inner(&self) -> &VfioUser {
        &self.inner
    }
}

impl OverSocket<ServerThread> {
    /// With a server on a thread of this process.
    ///
    /// # Panics
    ///
    /// As [`ServerThread::spawn`] and [`attach`].
    pub fn thread(config: DeviceConfig) -> Arc<Self> {
        Self::thread_by(config, DmaAccess::Files)
    }

    /// As [`OverSocket::thread`], so that the server reaches DMA buffers in this way.
    ///
    /// # Panics
    ///
    /// As [`ServerThread::spawn`] and [`attach`].
    pub fn thread_by(config: DeviceConfig, dma: DmaAccess) -> Arc<Self> {
        let server = ServerThread::spawn(config);
        let inner = attach_by(&server.path(), dma);
        Arc::new(Self { inner, server })
    }
}

impl OverSocket<ServerProcess> {
    /// With a server in a process of its own.
    ///
    /// # Panics
    ///
    /// As [`ServerProcess::spawn`] and [`attach`].
    pub fn process(config: DeviceConfig) -> Arc<Self> {
        let server = ServerProcess::spawn(&config);
        let inner = attach(&server.path());
        Arc::new(Self { inner, server })
    }
}

impl<S: Send + Sync + 'static> Function for OverSocket<S> {
    forward!();

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.inner.dma_map(buffer, iova)
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.inner.dma_unmap(iova, len)
    }
}
