//! A device's state in a file: its maps, and what it takes to go on with them in another process.
//!
//! The file is a header of 24 bytes (the bytes `OFFMAPST`, the version of the format, four bytes of zero,
//! the length of the state), the state as the firmware writes it, and the SHA-256 of the state and
//! the header. All numbers are little-endian. A file is written beside its place and moved there when it is
//! on disk, so that what is there is whole: the old state or the new one.
//!
//! Of the function itself nothing is saved. Its registers, queues and interrupts belong to a host,
//! which finds a device after reset; the format's version leaves room for them.

use crate::config::DeviceConfig;
use crate::device::Device;
use crate::error::EmulatorError;
use offmap_firmware_model::Firmware;
use offmap_firmware_model::state::{RestoreError, Sink, Source};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"OFFMAPST";
/// 3: memory tiers, wrong bits. 2: the headers of hash tables lie apart from their backs.
const VERSION: u32 = 3;
const HEADER_BYTES: u64 = 24;
const SUM_BYTES: u64 = 32;
/// Bytes that are read at a time to check the sum.
const PIECE: usize = 1 << 16;

/// Why a state is not saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// What is in the file.
    #[error("{}: {why}; move it away to start with an empty device", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no device to restore it to.
    #[error(transparent)]
    Device(#[from] EmulatorError),
}

/// Counts and sums what passes.
struct Summed<W> {
    inner: W,
    sum: Sha256,
    bytes: u64,
}

impl<W: Write> Sink for Summed<W> {
    type Error = io::Error;

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

struct FromReader<R>(R);

impl<R: Read> Source for FromReader<R> {
    type Error = io::Error;

    fn take(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(into)
    }
}

fn header(bytes: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..].copy_from_slice(&bytes.to_le_bytes());
    header
}

impl Device {
    /// Writes the device's maps to a file, which takes its place when it is whole. What a host has
    /// under way is not in it, other than what has had its effect. It is written as `PATH.PID.new`
    /// first, with mode 0600; a process that is killed meanwhile leaves that. A symbolic link at the path is
    /// replaced, and not what it points to. No two threads may save to one path at a time.
    ///
    /// # Errors
    ///
    /// [`StateError::File`]; the file is as it was before.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.new", std::process::id()));
        let new = path.with_file_name(name);
        let done = self.save_to(&new, path);
        if done.is_err() {
            // It may never have been there.
            let _ = fs::remove_file(&new);
        }
        done
    }

    fn save_to(&self, new: &Path, path: &Path) -> Result<(), StateError> {
        let fail = |what| {
            let path = path.to_path_buf();
            move |source| StateError::File { path, what, source }
        };
        let cannot = "the state cannot be written";
        // Of a process that had this number before, and died here. Its mode may be another.
        let _ = fs::remove_file(new);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(new);
        let mut file = file.map_err(fail(cannot))?;
        file.write_all(&header(0)).map_err(fail(cannot))?;
        let mut out = Summed {
            inner: BufWriter::new(file),
            sum: Sha256::new(),
            bytes: 0,
        };
        self.firmware.save(&mut out).map_err(fail(cannot))?;
        let header = header(out.bytes);
        out.sum.update(header);
        let sum = out.sum.finalize();
        out.inner.write_all(&sum).map_err(fail(cannot))?;
        let file = out
            .inner
            .into_inner()
            .map_err(io::IntoInnerError::into_error);
        let mut file = file.map_err(fail(cannot))?;
        file.seek(SeekFrom::Start(0)).map_err(fail(cannot))?;
        file.write_all(&header).map_err(fail(cannot))?;
        file.sync_all()
            .map_err(fail("the state cannot be put on disk"))?;
        fs::rename(new, path).map_err(fail("the state cannot be moved to its place"))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = File::open(folder).and_then(|folder| folder.sync_all());
        folder.map_err(fail("its folder cannot be put on disk"))
    }

    /// Builds a device with the maps that a file has. Limits and sizes of the firmware are those with which
    /// it was saved, or it is refused.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn restore(config: &DeviceConfig, path: &Path) -> Result<Self, StateError> {
        let fail = |source| StateError::File {
            path: path.to_path_buf(),
            what: "the state cannot be read",
            source,
        };
        let wrong = |why: &str| StateError::Content {
            path: path.to_path_buf(),
            why: why.into(),
        };
        config.validate()?;
        // A FIFO would have this thread wait for a writer.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?;
        if !found.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let there = found.len();
        if there < HEADER_BYTES + SUM_BYTES {
            return Err(wrong("it is too short for a device's state"));
        }
        let mut said = [0; HEADER_BYTES as usize];
        file.read_exact(&mut said).map_err(fail)?;
        let number =
            |at: usize| u32::from_le_bytes([said[at], said[at + 1], said[at + 2], said[at + 3]]);
        if said[..8] != MAGIC {
            return Err(wrong("it is no device's state"));
        }
        if number(8) != VERSION {
            let version = number(8);
            return Err(wrong(&format!(
                "it is of version {version} of the format, and this offmap reads version {VERSION}"
            )));
        }
        let bytes = u64::from(number(16)) | u64::from(number(20)) << 32;
        if bytes != there - HEADER_BYTES - SUM_BYTES {
            return Err(wrong(
                "it is not as long as it says: it was cut off, or something was added",
            ));
        }
        let (mut sum, mut piece) = (Sha256::new(), vec![0; PIECE]);
        let mut state = (&mut file).take(bytes);
        loop {
            match state.read(&mut piece).map_err(fail)? {
                0 => break,
                n => sum.update(&piece[..n]),
            }
        }
        sum.update(said);
        let mut saved = [0; SUM_BYTES as usize];
        file.read_exact(&mut saved).map_err(fail)?;
        if sum.finalize()[..] != saved {
            return Err(wrong("its checksum is another one: it is damaged"));
        }
        file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(fail)?;
        let mut state = FromReader(BufReader::new(file.take(bytes)));
        let memory = config.reserve_memory()?;
        let firmware = Firmware::restore(config.firmware.clone(), memory, &mut state);
        let firmware = firmware.map_err(|e| match e {
            RestoreError::Source(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                fail(source)
            }
            RestoreError::Source(_) => wrong("it is damaged: it ends too early"),
            RestoreError::Config(e) => EmulatorError::from(e).into(),
            other => wrong(&other.to_string()),
        })?;
        if state.0.read(&mut [0]).map_err(fail)? != 0 {
            return Err(wrong("it is damaged: there is more than a state"));
        }
        Ok(Self::around(config, firmware)?)
    }
}
