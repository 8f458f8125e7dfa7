//! The file of `offmap nic --state`: its place is tried and taken before anything is served, since what
//! is wrong with it would otherwise be known when the maps are to be saved, and lost.
//!
//! One server has a file: it holds a lock (flock) on `FILE.lock` for as long as it runs. That file is empty
//! and stays, since one that is removed could be locked by two servers, each with its own.

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Symbolic links that are followed, as many as Linux does.
const LINKS: usize = 40;

/// Why a file cannot have a NIC's state.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// The file or its folder.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A folder, a FIFO, a device or a socket; or a path that names no file.
    #[error("{} is no regular file: a state is saved to one, or to where nothing is", .0.display())]
    NoFile(PathBuf),
    /// Somebody has the lock.
    #[error(
        "{} is another server's: stop that one first, or give this one a file of its own",
        .0.display()
    )]
    Taken(PathBuf),
}

/// A file that is this process's until the value is dropped.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    there: bool,
    /// Closing it lets the lock go.
    _lock: File,
}

impl StateFile {
    /// Takes the file, which need not be there, and removes what a process that was killed while it
    /// saved has left beside it. A symbolic link is followed: the file is what it points to.
    ///
    /// # Errors
    ///
    /// [`StateFileError`]: the folder is not there or cannot be written to, the file is no regular one, or
    /// another process has taken it.
    pub fn claim(path: &Path) -> Result<Self, StateFileError> {
        let path = resolve(path)?;
        let lock = lock(&path)?;
        let there = is_there(&path)?;
        remove_leftovers(&path)?;
        try_place(&path)?;
        Ok(Self {
            path,
            there,
            _lock: lock,
        })
    }

    /// Where the state is: absolute, and no symbolic link.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there was a state when the file was taken.
    pub fn there(&self) -> bool {
        self.there
    }
}

fn fail<'a>(path: &'a Path, what: &'static str) -> impl Fn(io::Error) -> StateFileError + 'a {
    move |source| StateFileError::File {
        path: path.to_path_buf(),
        what,
        source,
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The name with something behind it.
fn beside(path: &Path, behind: &str) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(behind);
    path.with_file_name(name)
}

/// Where the path leads when links are followed, of which the last may lead to nothing.
fn resolve(given: &Path) -> Result<PathBuf, StateFileError> {
    let mut path = given.to_path_buf();
    for _ in 0..=LINKS {
        let Some(name) = path.file_name() else {
            return Err(StateFileError::NoFile(given.to_path_buf()));
        };
        let folder = folder(&path);
        let real = folder
            .canonicalize()
            .map_err(fail(folder, "the state's folder cannot be used"))?;
        let place = real.join(name);
        match fs::read_link(&place) {
            Ok(target) => path = real.join(target),
            // Nothing is there, or it is no link.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                return Ok(place);
            }
            Err(e) => return Err(fail(&place, "the state cannot be read")(e)),
        }
    }
    let error = io::Error::from(Errno::LOOP);
    Err(fail(given, "the state cannot be read")(error))
}

fn lock(path: &Path) -> Result<File, StateFileError> {
    let place = beside(path, ".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32)
        .open(&place);
    let cannot = "the state's lock cannot be taken";
    let file = file.map_err(fail(&place, cannot))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(StateFileError::Taken(path.to_path_buf())),
        Err(e) => Err(fail(&place, cannot)(e.into())),
    }
}

fn is_there(path: &Path) -> Result<bool, StateFileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => Err(StateFileError::NoFile(path.to_path_buf())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(fail(path, "the state cannot be read")(e)),
    }
}

/// Whether a file's name is one under which `Device::save` writes the state of that name.
fn is_leftover(name: &[u8], of: &[u8]) -> bool {
    let number = name
        .strip_prefix(of)
        .and_then(|rest| rest.strip_prefix(b"."))
        .and_then(|rest| rest.strip_suffix(b".new"));
    number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
}

/// Nobody else saves to this file: what is there is of processes that are gone.
fn remove_leftovers(path: &Path) -> Result<(), StateFileError> {
    let (folder, name) = (folder(path), path.file_name().unwrap_or_default());
    let cannot = "the state's folder cannot be read";
    for entry in fs::read_dir(folder).map_err(fail(folder, cannot))? {
        let entry = entry.map_err(fail(folder, cannot))?;
        let file = entry.file_type().is_ok_and(|t| t.is_file());
        if file
            && is_leftover(
                entry.file_name().as_encoded_bytes(),
                name.as_encoded_bytes(),
            )
        {
            let left = entry.path();
            fs::remove_file(&left).map_err(fail(&left, "an old state cannot be removed"))?;
        }
    }
    Ok(())
}

/// Makes and removes a file where the state will be written.
fn try_place(path: &Path) -> Result<(), StateFileError> {
    let new = beside(path, &format!(".{}.new", std::process::id()));
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new);
    made.and_then(|_| fs::remove_file(&new))
        .map_err(fail(&new, "the state could not be saved there"))
}

#[cfg(test)]
mod tests {
    use super::is_leftover;

    #[test]
    fn only_what_a_save_has_left_is_a_leftover() {
        for name in ["state.1.new", "state.4194304.new"] {
            assert!(is_leftover(name.as_bytes(), b"state"), "{name}");
        }
        for name in [
            "state",
            "state.new",
            "state..new",
            "state.lock",
            "state.1a.new",
            "state.1.new.1",
            "other.1.new",
            "state.2.1.new",
        ] {
            assert!(!is_leftover(name.as_bytes(), b"state"), "{name}");
        }
    }
}
