//! The open file of a map, and the commands on it.

use crate::caller::NetNs;
use crate::device::{BatchOutcome, OffloadCommands};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::Map;
use crate::map::ops::{MapOps, NO_SUCH_OPERATION};
use crate::map::ringbuf::{RingBufferProducer, RingBufferReader};
use crate::uapi::{BPF_EXIST, BPF_F_LOCK, BPF_OBJ_NAME_LEN, MapFlags, MapType};
use bitflags::bitflags;
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
const BAD_LOOKUP_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: a lookup takes no flag but BPF_F_LOCK",
);
const BAD_UPDATE_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: an update takes BPF_ANY, BPF_NOEXIST or BPF_EXIST",
);
const NO_LOCK: Error = Error::new(
    Errno::EINVAL,
    "flags: BPF_F_LOCK on a map whose values have no bpf_spin_lock",
);
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
    map: Arc<Map>,
    mode: FileMode,
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
        Self { map, mode }
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
        self.map.read_mostly.token_bytes as usize
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
    fn readable(&self) -> Result<()> {
        if self.mode.contains(FileMode::READ) {
            Ok(())
        } else {
            Err(NOT_READABLE)
        }
    }

    #[inline]
    fn writable(&self) -> Result<()> {
        if self.mode.contains(FileMode::WRITE) {
            Ok(())
        } else {
            Err(NOT_WRITABLE)
        }
    }

    /// BPF_MAP_LOOKUP_ELEM: copies the key's value to `value`.
    ///
    /// Errors in order: EINVAL for flags other than `BPF_F_LOCK` (6.18 looks at them first);
    /// EPERM for a write-only file; EINVAL for `BPF_F_LOCK` without a lock in the value; the
    /// map's own, such as ENOENT or ENODEV.
    #[inline]
    pub fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        if flags & !BPF_F_LOCK != 0 {
            return Err(BAD_LOOKUP_FLAGS);
        }
        self.readable()?;
        if flags != 0 {
            return Err(NO_LOCK);
        }
        self.ops().lookup(key, value, flags)
    }

    /// BPF_MAP_UPDATE_ELEM: stores `value` under `key`.
    ///
    /// Errors in order: EPERM for a read-only file or a frozen map; EINVAL for flags above
    /// `BPF_EXIST`; the map's own: ENOENT, EEXIST, E2BIG when full, ENOMEM, ENODEV.
    #[inline]
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        check_length("key", key.len(), self.key_size())?;
        check_length("value", value.len(), self.value_bytes())?;
        self.writable()?;
        let _active = self.map.begin_write()?;
        if flags > BPF_EXIST && (flags & BPF_F_LOCK != 0 || self.ops().checks_update_flags()) {
            return Err(if flags & BPF_F_LOCK != 0 {
                NO_LOCK
            } else {
                BAD_UPDATE_FLAGS
            });
        }
        self.ops().update(key, value, flags)
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
        if flags != 0 {
            return Err(NO_LOCK);
        }
        let commands = self.map.read_mostly.commands;
        if !commands.contains(OffloadCommands::LOOKUP_AND_DELETE) {
            return Err(NO_SUCH_OPERATION);
        }
        self.ops().lookup_and_delete(key, value, flags)
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
        self.ops().lookup_many(keys, values, results, self.sizes())
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
            |ops| ops.update_batch(keys, values, count, elem_flags, self.sizes()),
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
            ops.walk_batch(in_batch, out_batch, keys, values, count, delete)
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

    /// The programs' side of a RINGBUF map in host memory. Neither the file's mode nor FREEZE
    /// concerns programs. EINVAL for a map of another type, and for one on a device, which
    /// programs there fill.
    pub fn ringbuf_producer(&self) -> Result<RingBufferProducer> {
        let ring = self.ops().ring_producer()?;
        Ok(RingBufferProducer::new(ring, self.clone()))
    }

    /// BPF_MAP_FREEZE: no more writes from user space, ever.
    ///
    /// EPERM for a read-only file or a map that is frozen already; EBUSY while a write is in
    /// progress. Never reaches the device.
    pub fn freeze(&self) -> Result<()> {
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
        })
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

    fn check_batch(&self, command: OffloadCommands, elem_flags: u64, flags: u64) -> Result<()> {
        if !self.map.read_mostly.commands.contains(command) {
            return Err(NO_SUCH_OPERATION);
        }
        if elem_flags & !BPF_F_LOCK != 0 {
            return Err(BAD_ELEM_FLAGS);
        }
        if elem_flags != 0 {
            return Err(NO_LOCK);
        }
        if flags != 0 && self.ops().checks_batch_flags() {
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
}

impl MapInfo {
    /// The name up to its first NUL. It holds only `[A-Za-z0-9_.]`.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&byte| byte == 0);
        std::str::from_utf8(&self.name[..end.unwrap_or(BPF_OBJ_NAME_LEN)]).unwrap_or("")
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
