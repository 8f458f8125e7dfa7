//! The open file of a map, and the commands on it.

mod deferred;

pub use deferred::{DeferredFile, ElementOp, Writing};

use crate::btf::FieldRecord;
use crate::caller::{Caller, NetNs};
use crate::device::{BatchOutcome, OffloadCommands};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::ops::{MapOps, NO_SUCH_OPERATION, Token, each, nth};
use crate::map::refusals::BAD_UPDATE_FLAGS;
use crate::map::ringbuf::{RingBufferProducer, RingBufferReader};
use crate::map::{Map, Near, WriteActive, inner};
use crate::security::MapAccess;
use crate::uapi::{BPF_EXIST, BPF_F_LOCK, BPF_OBJ_NAME_LEN, MapFlags, MapType};
use bitflags::bitflags;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

bitflags! {
    /// `f_mode`, as far as maps look at it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct FileMode: u8 {
        const READ = 1;
        const WRITE = 2;
    }
}

impl FileMode {
    /// `bpf_get_file_flag`: the mode that `BPF_F_RDONLY` and `BPF_F_WRONLY` ask for.
    pub(crate) fn from_flags(flags: MapFlags) -> Result<Self> {
        match (
            flags.contains(MapFlags::RDONLY),
            flags.contains(MapFlags::WRONLY),
        ) {
            (true, true) => Err(Error::because(
                Errno::EINVAL,
                format!(
                    "flags {:#x}: RDONLY and WRONLY exclude each other",
                    flags.bits()
                ),
            )),
            (true, false) => Ok(Self::READ),
            (false, true) => Ok(Self::WRITE),
            (false, false) => Ok(Self::all()),
        }
    }
}

const NOT_READABLE: Error = Error::new(Errno::EPERM, "the file was opened write-only");
const NOT_WRITABLE: Error = Error::new(Errno::EPERM, "the file was opened read-only");
const NOT_CONSUMABLE: Error = Error::new(
    Errno::EACCES,
    "a ring buffer is consumed through a file that is open for reading and writing",
);
pub(crate) const BAD_LOOKUP_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: a lookup takes no flag but BPF_F_LOCK",
);
const NO_LOCK: Error = Error::new(
    Errno::EINVAL,
    "flags: BPF_F_LOCK on a map whose values have no bpf_spin_lock",
);
const NOT_OF_MAPS: Error = Error::new(Errno::EINVAL, "the map is not a map of maps");
const BAD_ELEM_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "elem_flags: a batch takes no flag but BPF_F_LOCK",
);
const BAD_BATCH_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: a batch walk of a hash map takes none",
);

/// A reference to a map as an open `struct file` holds it, with an access mode.
///
/// Cheap to clone; usable from any number of threads at once. Slices must have
/// the map's sizes (see [`MapFile::key_size`], [`MapFile::value_bytes`]); a wrong length fails
/// with EFAULT and a reason that names both, before anything else is looked at. After an error
/// the contents of output slices are unspecified.
pub struct MapFile {
    /// Before the map, so that the map's storage goes with the map.
    plain: Option<Plain>,
    map: Arc<Map>,
    mode: FileMode,
}

/// What lookups without flags need of a file that may be read, of a map in this host's memory
/// whose values have no special fields.
struct Plain {
    table: Near,
    key_size: usize,
    value_bytes: usize,
}

impl Plain {
    fn of(map: &Map, mode: FileMode) -> Option<Self> {
        let fields = &map.read_mostly;
        let special = fields.btf.as_ref().is_some_and(|btf| btf.record.is_some());
        if !mode.contains(FileMode::READ) || special {
            return None;
        }
        Some(Self {
            table: Arc::clone(&fields.ops).near()?,
            key_size: fields.key_size as usize,
            value_bytes: fields.user_value_bytes,
        })
    }
}

impl Clone for MapFile {
    fn clone(&self) -> Self {
        Self::open(Arc::clone(&self.map), self.mode)
    }
}

impl Drop for MapFile {
    fn drop(&mut self) {
        self.map.put_user();
    }
}

impl fmt::Debug for MapFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFile")
            .field("map_type", &self.map_type())
            .field("id", &self.map.id())
            .field("mode", &self.mode)
            .field("users", &self.map.users())
            .finish_non_exhaustive()
    }
}

#[cold]
#[inline(never)]
fn wrong_length(what: &str, given: usize, expected: usize) -> Error {
    Error::because(
        Errno::EFAULT,
        format!("{what} has {given} bytes and the map needs {expected}"),
    )
}

#[inline]
fn check_length(what: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected {
        Ok(())
    } else {
        Err(wrong_length(what, given, expected))
    }
}

impl MapFile {
    pub(crate) fn open(map: Arc<Map>, mode: FileMode) -> Self {
        map.get_user();
        let plain = Plain::of(&map, mode);
        Self { map, plain, mode }
    }

    /// `security_bpf_map`.
    pub(crate) fn check_open(&self, caller: &Caller) -> Result<()> {
        let access = MapAccess {
            read: self.mode.contains(FileMode::READ),
            write: self.mode.contains(FileMode::WRITE),
        };
        let security = &self.map.read_mostly.shared.security;
        security.map_open(caller, &self.map.for_security(), access)
    }

    /// Another open file of the same map.
    pub(crate) fn reopen(&self, mode: FileMode) -> Self {
        Self::open(Arc::clone(&self.map), mode)
    }

    pub(crate) const fn map(&self) -> &Arc<Map> {
        &self.map
    }

    pub(crate) const fn mode(&self) -> FileMode {
        self.mode
    }

    /// Type of the map.
    pub fn map_type(&self) -> MapType {
        self.map.read_mostly.map_type
    }

    /// Bytes of a key.
    #[inline]
    pub fn key_size(&self) -> usize {
        self.map.read_mostly.key_size as usize
    }

    /// Bytes of a value as user space passes it: `value_size`, and for per-CPU types
    /// `round_up(value_size, 8)` for each possible CPU.
    #[inline]
    pub fn value_bytes(&self) -> usize {
        self.map.read_mostly.user_value_bytes
    }

    /// Bytes of the token with which a batch walk goes on: 4 for hash types, whose token is a
    /// bucket as `u32` in native byte order, and the key size for types whose token is the last
    /// key returned.
    #[inline]
    pub fn token_bytes(&self) -> usize {
        self.token().bytes(self.map.read_mostly.key_size) as usize
    }

    /// Entries that the map can hold.
    pub fn max_entries(&self) -> u32 {
        self.map.read_mostly.max_entries
    }

    /// Whether the map was created on a device.
    pub fn is_offloaded(&self) -> bool {
        self.map.read_mostly.offload.is_some()
    }

    #[inline]
    fn ops(&self) -> &dyn MapOps {
        &*self.map.read_mostly.ops
    }

    #[inline]
    pub(crate) fn readable(&self) -> Result<()> {
        if self.mode.contains(FileMode::READ) {
            Ok(())
        } else {
            Err(NOT_READABLE)
        }
    }

    #[inline]
    pub(crate) fn writable(&self) -> Result<()> {
        if self.mode.contains(FileMode::WRITE) {
            Ok(())
        } else {
            Err(NOT_WRITABLE)
        }
    }

    /// A write of user space begins: `bpf_map_write_active_inc`, and the file's mode. EPERM.
    pub(crate) fn begin_write(&self) -> Result<WriteActive<'_>> {
        self.writable()?;
        self.map.begin_write()
    }

    /// The commands that reach the map's own operations.
    pub(crate) fn commands(&self) -> OffloadCommands {
        self.map.read_mostly.commands
    }

    /// As [`Map::writes_ended`].
    pub(crate) fn writes_ended(&self) -> u32 {
        self.map.writes_ended()
    }

    /// `BPF_F_LOCK` is for values that have a lock. EINVAL.
    pub(crate) fn check_lock(&self, flags: u64) -> Result<()> {
        if flags & BPF_F_LOCK != 0 && !self.has_spin_lock() {
            return Err(NO_LOCK);
        }
        Ok(())
    }

    fn has_spin_lock(&self) -> bool {
        let btf = self.map.read_mostly.btf.as_ref();
        btf.is_some_and(|btf| btf.has_spin_lock())
    }

    /// The special fields of the map's values.
    #[inline]
    pub(crate) fn record(&self) -> Option<&FieldRecord> {
        self.map.read_mostly.btf.as_ref()?.record.as_ref()
    }

    /// `check_and_init_map_value`: what user space sees of special fields. `values` is one
    /// value, of a per-CPU map one for each CPU, or several of them.
    fn blank(&self, values: &mut [u8]) {
        if let Some(record) = self.record() {
            for value in values.chunks_mut(self.one_value_bytes().max(1)) {
                record.zero(value);
            }
        }
    }

    /// Bytes from one value to the next, of one CPU.
    fn one_value_bytes(&self) -> usize {
        let size = self.map.read_mostly.value_size as usize;
        match self.map_type().is_percpu() {
            true => size.next_multiple_of(8),
            false => size,
        }
    }

    /// Values on their way into the map. User space never writes special fields: they are
    /// fresh in a new element, and an update ends what was in them (`bpf_obj_free_fields`).
    /// The lock is not in the value here: that a value is whole is the table's own rule, with
    /// which `BPF_F_LOCK` is kept at no further cost.
    fn stored<'a>(&self, values: &'a [u8]) -> Cow<'a, [u8]> {
        if self.record().is_none() {
            return Cow::Borrowed(values);
        }
        let mut copy = values.to_vec();
        self.blank(&mut copy);
        Cow::Owned(copy)
    }

    /// What the token of a batch walk is.
    pub(crate) fn token(&self) -> Token {
        self.map.read_mostly.token
    }

    /// BPF_MAP_LOOKUP_ELEM: copies the key's value to `value`.
    ///
    /// Errors in order: EINVAL for flags other than `BPF_F_LOCK` (6.18 looks at them first);
    /// EPERM for a write-only file; EINVAL for `BPF_F_LOCK` without a lock in the value; the
    /// map's own, such as ENOENT or ENODEV.
    #[inline(always)]
    pub fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        if let Some(plain) = &self.plain
            && key.len() == plain.key_size
            && value.len() == plain.value_bytes
            && flags == 0
        {
            return plain.table.lookup(key, value);
        }
        self.lookup_checked(key, value, flags)
    }

    #[inline(never)]
    fn lookup_checked(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        if flags & !BPF_F_LOCK != 0 {
            return Err(BAD_LOOKUP_FLAGS);
        }
        self.readable()?;
        self.check_lock(flags)?;
        self.ops().lookup(key, value, flags)?;
        self.blank(value);
        Ok(())
    }

    /// BPF_MAP_UPDATE_ELEM: stores `value` under `key`.
    ///
    /// Errors in order: EPERM for a read-only file or a frozen map; EINVAL for flags above
    /// `BPF_EXIST`; the map's own: ENOENT, EEXIST, E2BIG when full, ENOMEM, ENODEV.
    ///
    /// The value of a map of maps is a descriptor, which an open file cannot resolve: EBADF. See
    /// [`MapFile::update_inner`] and [`crate::System::update`].
    #[inline]
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        self.writable()?;
        let _active = self.map.begin_write()?;
        self.check_lock(flags)?;
        if flags & !BPF_F_LOCK > BPF_EXIST && self.ops().checks_update_flags() {
            return Err(BAD_UPDATE_FLAGS);
        }
        self.ops().update(key, &self.stored(value), flags)
    }

    /// As [`MapFile::update`]; `resolve` gives the map behind a descriptor, for maps of maps.
    #[inline]
    pub(crate) fn update_resolving(
        &self,
        key: &[u8],
        value: &[u8],
        flags: u64,
        resolve: impl FnOnce(i32) -> Result<Arc<Map>>,
    ) -> Result<()> {
        if !self.map_type().is_map_of_maps() {
            return self.update(key, value, flags);
        }
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        self.writable()?;
        let _active = self.map.begin_write()?;
        if flags & BPF_F_LOCK != 0 {
            return Err(NO_LOCK);
        }
        inner::update(self.inner_maps()?, key, value, flags, resolve)
    }

    fn inner_maps(&self) -> Result<&dyn inner::InnerMaps> {
        self.ops().inner_maps().ok_or(NOT_OF_MAPS)
    }

    /// BPF_MAP_UPDATE_ELEM of a map of maps: stores a reference to the map of `inner` under
    /// `key`. The map lives on while it is there, whoever closes it.
    ///
    /// Errors in order: EPERM as for [`MapFile::update`]; EINVAL for `BPF_F_LOCK`, and for a map
    /// that is none of maps; for arrays, EINVAL for other flags than `BPF_ANY` and E2BIG past
    /// the end; EINVAL for an inner map that differs from the template, or, on a device, is
    /// not on the same one; the map's own as for [`MapFile::update`].
    pub fn update_inner(&self, key: &[u8], inner: &Self, flags: u64) -> Result<()> {
        self.inner_maps()?;
        let value = [0; inner::VALUE_BYTES];
        self.update_resolving(key, &value, flags, |_| Ok(Arc::clone(&inner.map)))
    }

    /// The inner map under `key`, opened for reading and writing: what a program's lookup in a
    /// map of maps gives it. No command of bpf(2), whose lookups return the id.
    ///
    /// EPERM for a write-only file; EINVAL for a map that is none of maps; ENOENT.
    pub fn lookup_inner(&self, key: &[u8]) -> Result<Self> {
        check_length("key", key.len(), self.key_size())?;
        self.readable()?;
        let inner = self.inner_maps()?.inner(key)?;
        Ok(Self::open(inner, FileMode::all()))
    }

    /// BPF_MAP_DELETE_ELEM: removes `key`.
    ///
    /// Errors in order: EPERM; the map's own: ENOENT, EINVAL for arrays, ENODEV.
    #[inline]
    pub fn delete(&self, key: &[u8]) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        self.writable()?;
        let _active = self.map.begin_write()?;
        self.ops().delete(key)
    }

    /// BPF_MAP_GET_NEXT_KEY: copies the key after `key` to `next`; the first key when `key` is
    /// `None` or not in the map. ENOENT at the end.
    #[inline]
    pub fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        if let Some(key) = key {
            check_length("key", key.len(), self.key_size())?;
        }
        check_length("next_key", next.len(), self.key_size())?;
        self.readable()?;
        self.ops().get_next_key(key, next)
    }

    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM: copies the key's value to `value` and removes the key.
    ///
    /// Errors in order: EINVAL for flags other than `BPF_F_LOCK`; EPERM; EINVAL for
    /// `BPF_F_LOCK`; 524 where the map has no such operation; the map's own.
    pub fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        if flags & !BPF_F_LOCK != 0 {
            return Err(BAD_LOOKUP_FLAGS);
        }
        self.readable()?;
        self.writable()?;
        let _active = self.map.begin_write()?;
        self.check_lock(flags)?;
        let commands = self.map.read_mostly.commands;
        if !commands.contains(OffloadCommands::LOOKUP_AND_DELETE) {
            return Err(NO_SUCH_OPERATION);
        }
        self.ops().lookup_and_delete(key, value, flags)?;
        self.blank(value);
        Ok(())
    }

    /// Looks up each of `keys`: `results[i]` tells how key `i` fared, and the part of `values`
    /// that belongs to it holds its value if it was found. No command of bpf(2).
    ///
    /// `results` has one entry for each key; `keys` and `values` that many keys and values.
    pub fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        self.check_arrays(keys.len(), Some(values.len()), results.len())?;
        self.readable()?;
        self.ops()
            .lookup_many(keys, values, results, self.sizes())?;
        self.blank(values);
        Ok(())
    }

    /// BPF_MAP_UPDATE_BATCH: stores `count` pairs; stops at the first failure, with the count
    /// of those done.
    ///
    /// Errors before the first element in order: EPERM, 524, EINVAL for `elem_flags` other
    /// than `BPF_F_LOCK` or for that one. `flags` is ignored, as in the kernel.
    pub fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        let _ = flags;
        let lengths = self.check_arrays(keys.len(), Some(values.len()), count as usize);
        self.batch(
            OffloadCommands::UPDATE_BATCH,
            lengths,
            count,
            (elem_flags, 0),
            |ops| ops.update_batch(keys, &self.stored(values), count, elem_flags, self.sizes()),
        )
    }

    /// As [`MapFile::update_batch`], with the attribute's `elem_flags` and `flags`; `resolve` as
    /// in [`MapFile::update_resolving`].
    pub(crate) fn update_batch_resolving(
        &self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: (u64, u64),
        resolve: impl Fn(i32) -> Result<Arc<Map>>,
    ) -> BatchOutcome {
        if !self.map_type().is_map_of_maps() {
            return self.update_batch(keys, values, count, flags.0, flags.1);
        }
        let maps = match self.inner_maps() {
            Ok(maps) => maps,
            Err(error) => return BatchOutcome::failed(error),
        };
        let lengths = self.check_arrays(keys.len(), Some(values.len()), count as usize);
        let (key_size, value_bytes) = self.sizes();
        self.batch(
            OffloadCommands::UPDATE_BATCH,
            lengths,
            count,
            (flags.0, 0),
            |_| {
                each(count, |i| {
                    let (key, value) = (nth(keys, key_size, i), nth(values, value_bytes, i));
                    inner::update(maps, key, value, flags.0, &resolve)
                })
            },
        )
    }

    /// BPF_MAP_DELETE_BATCH: removes `count` keys; stops at the first failure, with the count
    /// of those done. Errors before the first element as for [`MapFile::update_batch`].
    pub fn delete_batch(
        &self,
        keys: &[u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        let _ = flags;
        let lengths = self.check_arrays(keys.len(), None, count as usize);
        self.batch(
            OffloadCommands::DELETE_BATCH,
            lengths,
            count,
            (elem_flags, 0),
            |ops| ops.delete_batch(keys, count, self.key_size()),
        )
    }

    /// BPF_MAP_LOOKUP_BATCH: copies up to `count` elements, from the token `in_batch` on
    /// (`None`: from the start), and leaves the token for the next call in `out_batch`. Both
    /// are of [`MapFile::token_bytes`].
    ///
    /// For hash types the token is a bucket and only whole buckets are returned: ENOSPC with
    /// count 0 when the first does not fit. `out_batch` is written with those two results as
    /// with success; ENOENT for a token past the last bucket leaves it. For arrays the token is
    /// the last key returned, written when the count is not 0. ENOENT with a valid count at
    /// the end. A `count` of 0 does nothing.
    #[expect(clippy::too_many_arguments, reason = "the fields of bpf_attr.batch")]
    pub fn lookup_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.walk(
            OffloadCommands::LOOKUP_BATCH,
            (in_batch, out_batch),
            keys,
            values,
            count,
            (elem_flags, flags),
        )
    }

    /// BPF_MAP_LOOKUP_AND_DELETE_BATCH: as [`MapFile::lookup_batch`], and removes what it
    /// returns.
    #[expect(clippy::too_many_arguments, reason = "the fields of bpf_attr.batch")]
    pub fn lookup_and_delete_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.walk(
            OffloadCommands::LOOKUP_AND_DELETE_BATCH,
            (in_batch, out_batch),
            keys,
            values,
            count,
            (elem_flags, flags),
        )
    }

    fn walk(
        &self,
        command: OffloadCommands,
        tokens: (Option<&[u8]>, &mut [u8]),
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        flags: (u64, u64),
    ) -> BatchOutcome {
        let (in_batch, out_batch) = tokens;
        let lengths = self
            .check_arrays(keys.len(), Some(values.len()), count as usize)
            .and_then(|()| {
                if let Some(token) = in_batch {
                    check_length("in_batch", token.len(), self.token_bytes())?;
                }
                check_length("out_batch", out_batch.len(), self.token_bytes())
            });
        let delete = command == OffloadCommands::LOOKUP_AND_DELETE_BATCH;
        self.batch(command, lengths, count, flags, |ops| {
            let outcome = ops.walk_batch(in_batch, out_batch, keys, values, count, delete);
            self.blank(values);
            outcome
        })
    }

    /// `bpf_map_do_batch`: what comes before the map's own batch operation. `flags` are the
    /// attribute's `elem_flags` and `flags`.
    fn batch(
        &self,
        command: OffloadCommands,
        lengths: Result<()>,
        count: u32,
        flags: (u64, u64),
        operation: impl FnOnce(&dyn MapOps) -> BatchOutcome,
    ) -> BatchOutcome {
        let reads = command
            .intersects(OffloadCommands::LOOKUP_BATCH | OffloadCommands::LOOKUP_AND_DELETE_BATCH);
        let writes = command != OffloadCommands::LOOKUP_BATCH;
        let permitted = lengths.and_then(|()| {
            if reads {
                self.readable()?;
            }
            if !writes {
                return Ok(None);
            }
            self.writable()?;
            self.map.begin_write().map(Some)
        });
        let _active = match permitted {
            Ok(active) => active,
            Err(error) => return BatchOutcome::failed(error),
        };
        if let Err(error) = self.check_batch(command, flags.0, flags.1) {
            return BatchOutcome::failed(error);
        }
        if count == 0 {
            return BatchOutcome {
                count: 0,
                result: Ok(()),
            };
        }
        operation(self.ops())
    }

    /// The consumer's side of a RINGBUF map.
    ///
    /// Errors in order: EINVAL for a map of another type; EACCES unless the file is open for
    /// reading and writing, and EPERM for a frozen map: a consumer stores its position in the
    /// map, where the kernel's maps a page writable (`bpf_map_mmap`); ENODEV when the map's
    /// device is gone.
    pub fn ringbuf(&self) -> Result<RingBufferReader> {
        let consumers = self.ops().ring_consumers()?;
        if self.mode != FileMode::all() {
            return Err(NOT_CONSUMABLE);
        }
        self.map.begin_long_write()?;
        Ok(RingBufferReader::new(consumers, self.clone()))
    }

    /// A consumer has ended.
    pub(crate) fn end_consumer(&self) {
        self.map.end_write();
    }

    /// Bytes of a RINGBUF map that were reserved or committed and are not consumed.
    pub(crate) fn unconsumed_bytes(&self) -> Result<u64> {
        self.ops().ring_consumers()?.unconsumed_bytes()
    }

    /// The programs' side of a RINGBUF map in host memory. Neither the file's mode nor FREEZE
    /// concerns programs. EINVAL for a map of another type, and for one on a device, which
    /// programs there fill.
    pub fn ringbuf_producer(&self) -> Result<RingBufferProducer> {
        let ring = self.ops().ring_producer()?;
        Ok(RingBufferProducer::new(ring, self.clone()))
    }

    /// BPF_MAP_FREEZE: no more writes from user space, ever.
    ///
    /// 524 for a map whose values have special fields; EPERM for a read-only file or a map
    /// that is frozen already; EBUSY while a write is in
    /// progress. Never reaches the device.
    pub fn freeze(&self) -> Result<()> {
        if self.record().is_some() {
            return Err(Error::new(
                Errno::ENOTSUPP,
                "a map whose values have special fields cannot be frozen",
            ));
        }
        self.writable()?;
        self.map.freeze()
    }

    /// BPF_OBJ_GET_INFO_BY_FD. ENODEV when the map's device is gone.
    pub fn info(&self) -> Result<MapInfo> {
        let fields = &self.map.read_mostly;
        let offload = match &fields.offload {
            None => None,
            Some(offload) => {
                let (attached, device_bytes) = offload.info()?;
                Some(OffloadInfo {
                    ifindex: attached.ifindex,
                    netns: attached.netns,
                    device_bytes,
                })
            }
        };
        Ok(MapInfo {
            map_type: fields.map_type,
            id: self.map.id(),
            key_size: fields.key_size,
            value_size: fields.value_size,
            max_entries: fields.max_entries,
            map_flags: fields.map_flags,
            map_extra: fields.map_extra,
            numa_node: fields.numa_node,
            name: fields.name,
            mem_usage: self.ops().mem_usage(),
            frozen: self.map.is_frozen(),
            offload,
            btf: fields.btf.as_ref().map(|btf| MapBtfIds {
                btf_id: btf.object.id(),
                key_type_id: btf.key_type_id,
                value_type_id: btf.value_type_id,
            }),
        })
    }

    /// SHA-256 of what the map holds (`map_get_hash`, 6.18): the values of a frozen host array
    /// in their order, each padded with zeros to 8 bytes.
    ///
    /// EINVAL for other maps, EPERM for one that is not frozen.
    pub fn content_hash(&self) -> Result<[u8; 32]> {
        if self.map_type() != MapType::ARRAY || self.is_offloaded() {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "hash: only host arrays have one, not {} maps",
                    self.map_type()
                ),
            ));
        }
        if !self.map.is_frozen() {
            return Err(Error::new(
                Errno::EPERM,
                "hash: the map is not frozen, and could change",
            ));
        }
        let mut hash = Sha256::new();
        let mut value = vec![0; self.value_bytes().next_multiple_of(8)];
        for index in 0..self.max_entries() {
            let size = self.value_bytes();
            self.ops()
                .lookup(&index.to_ne_bytes(), &mut value[..size], 0)?;
            hash.update(&value);
        }
        Ok(hash.finalize().into())
    }

    #[inline]
    fn sizes(&self) -> (usize, usize) {
        (self.key_size(), self.value_bytes())
    }

    fn check_arrays(&self, keys: usize, values: Option<usize>, count: usize) -> Result<()> {
        let (key_size, value_bytes) = self.sizes();
        check_length("keys", keys, count.saturating_mul(key_size))?;
        match values {
            Some(values) => check_length("values", values, count.saturating_mul(value_bytes)),
            None => Ok(()),
        }
    }

    /// What a batch command asks before its first element.
    pub(crate) fn check_batch(
        &self,
        command: OffloadCommands,
        elem_flags: u64,
        flags: u64,
    ) -> Result<()> {
        if !self.map.read_mostly.commands.contains(command) {
            return Err(NO_SUCH_OPERATION);
        }
        if elem_flags & !BPF_F_LOCK != 0 {
            return Err(BAD_ELEM_FLAGS);
        }
        self.check_lock(elem_flags)?;
        // The generic update and delete batches ignore them for every type.
        let walks = OffloadCommands::LOOKUP_BATCH | OffloadCommands::LOOKUP_AND_DELETE_BATCH;
        // The generic walks ignore them, too; that of `struct bpf_htab` refuses them, and so does
        // a device's, which follows its type.
        if flags != 0 && walks.contains(command) && self.map_type().is_hash() {
            return Err(BAD_BATCH_FLAGS);
        }
        Ok(())
    }
}

/// `struct bpf_map_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// Type.
    pub map_type: MapType,
    /// Id; 0 when it was taken away with the map's device.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU for per-CPU types.
    pub value_size: u32,
    /// Entries that the map can hold.
    pub max_entries: u32,
    /// Flags of the map, without those that only concern the file that created it.
    pub map_flags: MapFlags,
    /// `map_extra`.
    pub map_extra: u64,
    /// NUMA node, or [`crate::uapi::NUMA_NO_NODE`].
    pub numa_node: u32,
    /// Name, NUL-padded.
    pub name: [u8; BPF_OBJ_NAME_LEN],
    /// Bytes of memory that the map accounts for (`memlock` of `/proc/PID/fdinfo/FD`).
    pub mem_usage: u64,
    /// Whether the map is frozen.
    pub frozen: bool,
    /// Where the map is offloaded to, if it is.
    pub offload: Option<OffloadInfo>,
    /// The types of its keys and values, if it has BTF.
    pub btf: Option<MapBtfIds>,
}

/// The types of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapBtfIds {
    /// Id of the BTF object.
    pub btf_id: u32,
    /// Type of the keys in it; 0 for none.
    pub key_type_id: u32,
    /// Type of the values.
    pub value_type_id: u32,
}

/// `struct bpf_btf_info`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BtfInfo {
    /// Id.
    pub id: u32,
    /// The bytes that were loaded.
    pub bytes: Box<[u8]>,
}

impl MapInfo {
    /// The name up to its first NUL: letters of Latin-1, digits, `_` and `.`, of which those
    /// beyond ASCII are replaced here.
    pub fn name(&self) -> Cow<'_, str> {
        let end = self.name.iter().position(|&byte| byte == 0);
        String::from_utf8_lossy(&self.name[..end.unwrap_or(BPF_OBJ_NAME_LEN)])
    }
}

/// What the info of an offloaded map says of its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffloadInfo {
    /// `ifindex` of the network device.
    pub ifindex: u32,
    /// Network namespace of the device (`netns_dev`, `netns_ino`).
    pub netns: NetNs,
    /// Device memory that the map occupies, in bytes.
    pub device_bytes: u64,
}
