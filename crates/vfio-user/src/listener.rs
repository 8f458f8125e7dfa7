//! The server's socket: made private, taken over from a server that died, and removed at the
//! end.

use crate::duplex::Duplex;
use crate::porter::Porter;
use crate::server::{Backend, Ended, serve};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Connections that may wait to be accepted or turned away.
const BACKLOG: i32 = 16;
/// How long to wait for a descriptor to become free.
const NO_ROOM: Duration = Duration::from_millis(100);
/// How long a client may take to say VERSION before the next one has its turn, unless
/// [`Listener::set_version_timeout`] says otherwise.
pub const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no socket to serve at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The path does not fit a Unix socket's address.
    #[error("{}: a path of {} bytes is too long for a Unix socket, which takes 107", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// A server answers at the path.
    #[error("{}: a server is there already; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something other than a socket is at the path.
    #[error("{}: this is not a socket, and is left alone; choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{}: {what}: {source}", path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A socket that clients connect to, readable and writable by its user alone. Dropping it
/// removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket's file, so that nobody else's is removed.
    file: (u64, u64),
    version_timeout: Duration,
}

impl Listener {
    /// Makes the socket. A file that a server left behind when it died is replaced.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let os = |what, e: Errno| BindError::Os {
            path: path.into(),
            what,
            source: e.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(|e| match e {
            Errno::NAMETOOLONG => BindError::TooLong(path.into()),
            e => os("this is no path of a socket", e),
        })?;
        let socket = new_socket().map_err(|e| os("cannot make a socket", e))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                make_room(path, &address)?;
                bind(&socket, &address).map_err(|e| os("cannot bind the socket", e))?;
            }
            bound => bound.map_err(|e| os("cannot bind the socket", e))?,
        }
        // Nobody can connect before it listens: there is no moment at which others could.
        let private = || {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            fs::symlink_metadata(path)
        };
        let metadata = private().map_err(|source| BindError::Os {
            path: path.into(),
            what: "cannot make the socket private",
            source,
        })?;
        listen(&socket, BACKLOG).map_err(|e| os("cannot listen at the socket", e))?;
        Ok(Self {
            socket,
            path: path.into(),
            file: (metadata.dev(), metadata.ino()),
            version_timeout: VERSION_TIMEOUT,
        })
    }

    /// How long a client may take to say VERSION, from when it is accepted; and one that is turned
    /// away, before it is let go without a reply.
    pub fn set_version_timeout(&mut self, timeout: Duration) {
        self.version_timeout = timeout;
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client; `None` when `stop` became readable first.
    ///
    /// # Errors
    ///
    /// The system's, other than of a client that has left again.
    pub fn accept(&self, stop: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(client) => return Ok(Some(client)),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                // The clients are told apart by what they do, not by how many there are.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    std::thread::sleep(NO_ROOM);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Serves one client after the other, until `stop` becomes readable. Whoever comes while
    /// a client is served gets EBUSY in reply to its first message, and is turned away. `around` hears
    /// of each client, before it is served and with how that ended, and says whether there is a device
    /// still.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`], what `around` returns, and the system's where there is no thread to turn
    /// clients away.
    pub fn run<B: Backend>(
        &self,
        backend: &mut B,
        stop: BorrowedFd<'_>,
        mut around: impl FnMut(&mut B, Option<&Ended>) -> io::Result<()>,
    ) -> io::Result<()> {
        let porter = Porter::start(self.version_timeout).map_err(io::Error::other)?;
        while let Some(client) = self.accept(stop)? {
            around(backend, None)?;
            let turn_away = || {
                if let Ok(client) = accept_with(&self.socket, SocketFlags::CLOEXEC) {
                    porter.turn_away(client);
                }
            };
            let aside = (self.socket.as_fd(), &turn_away as &dyn Fn());
            let client = Arc::new(Duplex::new(client, stop.try_clone_to_owned().ok()));
            let ended = serve(&client, backend, stop, Some(aside), self.version_timeout);
            drop(client);
            around(backend, Some(&ended))?;
            if matches!(ended, Ended::Stopped) {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            // Were it to stay, the next server would replace it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes the file of a socket that nobody listens at.
fn make_room(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let os = |what, source: io::Error| BindError::Os {
        path: path.into(),
        what,
        source,
    };
    let metadata =
        fs::symlink_metadata(path).map_err(|e| os("cannot see what is at the path", e))?;
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.into()));
    }
    let probe = new_socket().map_err(|e| os("cannot make a socket", e.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {}
        Ok(()) | Err(Errno::AGAIN) => return Err(BindError::InUse(path.into())),
        Err(e) => return Err(os("cannot tell whether a server is there", e.into())),
    }
    fs::remove_file(path).map_err(|e| os("cannot remove the socket of a server that died", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("offmap-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_socket_is_private_and_goes_with_its_server() {
        let folder = Folder::new("private");
        let path = folder.0.join("nic.sock");
        let listener = Listener::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_the_way_is_replaced_only_when_it_is_dead() {
        let folder = Folder::new("stale");
        let path = folder.0.join("nic.sock");
        // A server that died leaves its file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        let second = Listener::bind(&path).unwrap_err();
        assert!(matches!(second, BindError::InUse(_)), "{second}");
        // Somebody else's file at our path stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        let third = Listener::bind(&path).unwrap_err();
        assert!(matches!(third, BindError::NotASocket(_)), "{third}");
        drop(listener);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let long = folder.0.join("x".repeat(200));
        let long = Listener::bind(&long).unwrap_err();
        assert!(matches!(long, BindError::TooLong(_)), "{long}");
        let nowhere = Listener::bind(&folder.0.join("no/such.sock")).unwrap_err();
        assert!(matches!(nowhere, BindError::Os { .. }), "{nowhere}");
    }
}
