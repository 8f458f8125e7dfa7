//! `mmap(2)` of a map: memory that is shared with its elements (`bpf_map_mmap`,
//! `array_map_mmap`).

use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::{FileMode, MapFile};
use crate::system::{MmapRequest, Protection};
use crate::uapi::MapFlags;
use std::fmt;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Bytes of a page: mappings are made of whole ones.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// `TASK_SIZE` on 64-bit with four levels of page tables: what a process can map at most.
const ADDRESS_SPACE_BYTES: u64 = (1 << 47) - PAGE_BYTES;

/// A mapping of a map's memory, which loads and stores reach without a system call. It shows
/// what updates store, and they what it stores; as in the kernel, a lookup may see part of what
/// several stores write.
///
/// It keeps its map, and a writable one keeps the map from being frozen (EBUSY).
pub struct Mapping {
    file: MapFile,
    /// First byte, from the start of the elements.
    offset: u64,
    length: u64,
    protection: Protection,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("file", &self.file)
            .field("offset", &self.offset)
            .field("length", &self.length)
            .field("protection", &self.protection)
            .finish()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.protection.contains(Protection::WRITE) {
            self.file.map().end_write();
        }
    }
}

const NOT_READABLE: Error = Error::new(Errno::EFAULT, "the mapping is not readable");
const NOT_WRITABLE: Error = Error::new(Errno::EFAULT, "the mapping is not writable");
const NOT_ALIGNED: Error = Error::new(
    Errno::EINVAL,
    "a load or store of a whole word is at a multiple of 8 bytes",
);

impl MmapRequest {
    /// What `do_mmap` checks before it asks the map. The length in whole pages.
    fn check(&self, mode: FileMode) -> Result<u64> {
        if self.length == 0 {
            return Err(Error::new(Errno::EINVAL, "length 0: a mapping has a page"));
        }
        let length = self.length.checked_next_multiple_of(PAGE_BYTES);
        let Some(length) = length.filter(|&length| length <= ADDRESS_SPACE_BYTES) else {
            return Err(Error::because(
                Errno::ENOMEM,
                format!(
                    "length {}: the address space has {ADDRESS_SPACE_BYTES} bytes",
                    self.length
                ),
            ));
        };
        if self.offset.checked_add(length).is_none() {
            return Err(Error::because(
                Errno::EOVERFLOW,
                format!(
                    "offset {} and length {length}: the end is past 2^64 bytes",
                    self.offset
                ),
            ));
        }
        let writes = self.shared && self.protection.contains(Protection::WRITE);
        if writes && !mode.contains(FileMode::WRITE) {
            return Err(Error::new(
                Errno::EACCES,
                "a shared writable mapping of a read-only descriptor",
            ));
        }
        if !mode.contains(FileMode::READ) {
            return Err(Error::new(
                Errno::EACCES,
                "a mapping of a write-only descriptor",
            ));
        }
        if self.protection.contains(Protection::EXEC) {
            return Err(Error::new(Errno::EPERM, "a map holds no code to execute"));
        }
        Ok(length)
    }
}

impl MapFile {
    /// `mmap(2)`. EINVAL for an offset that is no multiple of 4096 bytes; EINVAL, ENOMEM and
    /// EOVERFLOW for a length or an end that cannot be; EACCES for access that the file does
    /// not give; EPERM for PROT_EXEC; 524 for maps that cannot be mapped, and for those whose values have special fields; EINVAL for a private
    /// mapping, and for any through a file that is open read-only; EPERM for a writable one of a frozen map, and EACCES of a `RDONLY_PROG` map;
    /// EINVAL for an array without `MMAPABLE`, and for an end past the elements' last page.
    pub fn mmap(&self, request: &MmapRequest) -> Result<Mapping> {
        request.check_offset()?;
        let length = request.check(self.mode())?;
        let map = self.map();
        if self.record().is_some() {
            return Err(Error::new(
                Errno::ENOTSUPP,
                "a map whose values have special fields cannot be mapped",
            ));
        }
        let room = map.read_mostly.ops.mmap_bytes();
        if let Err(error) = &room
            && error.errno() == Errno::ENOTSUPP
        {
            return Err(error.clone());
        }
        if !request.shared {
            return Err(Error::new(
                Errno::EINVAL,
                "a private mapping: maps are shared only",
            ));
        }
        // `do_mmap` takes VM_SHARED away where the file is not open for writing.
        if !self.mode().contains(FileMode::WRITE) {
            return Err(Error::new(
                Errno::EINVAL,
                "a mapping through a file that is open read-only, which counts as a private one",
            ));
        }
        // A writer from here on; what fails below ends that.
        let active = match request.protection.contains(Protection::WRITE) {
            true => Some(map.begin_write()?),
            false => None,
        };
        let read_only = map.read_mostly.map_flags.contains(MapFlags::RDONLY_PROG);
        if active.is_some() && read_only {
            return Err(Error::new(
                Errno::EACCES,
                "a writable mapping of a RDONLY_PROG map, which programs take for constant",
            ));
        }
        let room = room?;
        if request.offset.saturating_add(length) > room {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "offset {} and length {length}: the map's elements take {room} bytes in \
                     whole pages",
                    request.offset
                ),
            ));
        }
        if active.is_some() {
            map.begin_long_write()?;
        }
        Ok(Mapping {
            file: self.clone(),
            offset: request.offset,
            length,
            protection: request.protection,
        })
    }
}

impl Mapping {
    /// Bytes of the mapping: whole pages.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub const fn len(&self) -> u64 {
        self.length
    }

    fn check(&self, offset: u64, length: usize, needs: Protection) -> Result<u64> {
        if !self.protection.contains(needs) {
            return Err(match needs {
                Protection::WRITE => NOT_WRITABLE,
                _ => NOT_READABLE,
            });
        }
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(Error::because(
                Errno::EFAULT,
                format!(
                    "{length} bytes at offset {offset}: the mapping has {} bytes",
                    self.length
                ),
            ));
        }
        Ok(self.offset + offset)
    }

    fn word(&self, at: u64, store: bool) -> Result<Option<&AtomicU64>> {
        let ops = &self.file.map().read_mostly.ops;
        ops.mapped_word((at / 8) as usize, store)
    }

    fn stored_word(&self, at: u64) -> Result<&AtomicU64> {
        self.word(at, true)?.ok_or(Error::new(
            Errno::EFAULT,
            "the mapping has no memory for the store",
        ))
    }

    fn check_word(&self, offset: u64, needs: Protection) -> Result<u64> {
        let at = self.check(offset, 8, needs)?;
        if !at.is_multiple_of(8) {
            return Err(NOT_ALIGNED);
        }
        Ok(at)
    }

    /// Copies the bytes at `offset` to `out`, word by word. EFAULT outside the mapping, or
    /// where it is not readable.
    pub fn load(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = self.check(offset, out.len(), Protection::READ)?;
        let mut done = 0;
        while done < out.len() {
            let (word, first, bytes) = piece(at, done, out.len());
            let value = self.word(word, false)?.map_or(0, |word| word.load(Acquire));
            out[done..done + bytes].copy_from_slice(&value.to_ne_bytes()[first..first + bytes]);
            done += bytes;
        }
        Ok(())
    }

    /// Stores `bytes` at `offset`, word by word. EFAULT outside the mapping, or where it is not
    /// writable; ENOMEM.
    pub fn store(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = self.check(offset, bytes.len(), Protection::WRITE)?;
        let mut done = 0;
        while done < bytes.len() {
            let (word, first, count) = piece(at, done, bytes.len());
            store_part(self.stored_word(word)?, first, &bytes[done..done + count]);
            done += count;
        }
        Ok(())
    }

    /// Loads the 8 bytes at `offset`, at once, in native byte order. EINVAL where they are not
    /// aligned; as [`Mapping::load`].
    pub fn load_u64(&self, offset: u64) -> Result<u64> {
        let at = self.check_word(offset, Protection::READ)?;
        Ok(self.word(at, false)?.map_or(0, |word| word.load(Acquire)))
    }

    /// Stores 8 bytes at `offset`, at once, in native byte order. EINVAL where they are not
    /// aligned; as [`Mapping::store`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<()> {
        let at = self.check_word(offset, Protection::WRITE)?;
        self.stored_word(at)?.store(value, Release);
        Ok(())
    }

    /// Adds to the 8 bytes at `offset`, at once, and returns what they were. As
    /// [`Mapping::store_u64`].
    pub fn fetch_add_u64(&self, offset: u64, value: u64) -> Result<u64> {
        let at = self.check_word(offset, Protection::WRITE)?;
        Ok(self.stored_word(at)?.fetch_add(value, AcqRel))
    }
}

/// The part of the bytes from `at + done` to `at + all` that lies in one word: where that word
/// starts, its first byte in the word, and how many.
fn piece(at: u64, done: usize, all: usize) -> (u64, usize, usize) {
    let from = at + done as u64;
    let first = (from % 8) as usize;
    (from - first as u64, first, (8 - first).min(all - done))
}

/// Stores some bytes of a word, and leaves the others to whoever else stores them.
pub(crate) fn store_part(word: &AtomicU64, first: usize, bytes: &[u8]) {
    let with = |value: u64| {
        let mut raw = value.to_ne_bytes();
        raw[first..first + bytes.len()].copy_from_slice(bytes);
        u64::from_ne_bytes(raw)
    };
    if bytes.len() == 8 {
        word.store(with(0), Release);
        return;
    }
    let mut value = word.load(Relaxed);
    while let Err(now) = word.compare_exchange_weak(value, with(value), AcqRel, Relaxed) {
        value = now;
    }
}
