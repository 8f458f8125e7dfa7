//! Commands that take a descriptor or an id.

use super::fd::{File, bad_fd, not_a_map};
use super::{Fd, System};
use crate::caller::Caller;
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::{BAD_LOOKUP_FLAGS, FileMode, MapFile, MapInfo};
use crate::map::Map;
use crate::uapi::{BPF_F_LOCK, MapFlags};
use std::sync::Arc;

impl System {
    /// A handle on the map behind `fd` with the file's access mode, for operations that need
    /// no descriptor table. It stays when the descriptor is closed, as a duplicate would. EBADF.
    pub fn map_file(&self, fd: Fd) -> Result<MapFile> {
        self.with_map(fd, |file| Ok(file.clone()))
    }

    /// `fdget`: the table is locked for one reference count.
    pub(super) fn file(&self, fd: Fd) -> Option<Arc<File>> {
        self.fds().get(fd).cloned()
    }

    /// `__bpf_map_get`, and what is to be done with the map. EBADF.
    fn with_map<R>(&self, fd: Fd, operation: impl FnOnce(&MapFile) -> Result<R>) -> Result<R> {
        operation(self.open_file(fd)?.map()?)
    }

    /// The open file of a descriptor. EBADF, or EINVAL for a file of others.
    pub(super) fn open_file(&self, fd: Fd) -> Result<Arc<File>> {
        let fds = self.fds();
        match fds.get(fd) {
            Some(file) => Ok(Arc::clone(file)),
            None if fds.is_of_others(fd) => Err(not_a_map(fd)),
            None => Err(bad_fd(fd)),
        }
    }

    /// The map behind a descriptor, for a call that needs it for long. EBADF, EINVAL.
    pub(super) fn raw_map(&self, fd: Fd) -> Result<MapFile> {
        self.with_map(fd, |map| Ok(map.clone()))
    }

    /// `bpf_map_update_value`, for maps that want to be told what a descriptor in the value is.
    pub(super) fn update_map(
        &self,
        map: &MapFile,
        key: &[u8],
        value: &[u8],
        flags: u64,
    ) -> Result<()> {
        map.update_resolving(key, value, flags, |inner| self.map_of(inner))
    }

    /// As `update_map`, for a batch.
    pub(super) fn update_map_batch(
        &self,
        map: &MapFile,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
    ) -> BatchOutcome {
        map.update_batch_resolving(keys, values, count, (elem_flags, 0), |inner| {
            self.map_of(inner)
        })
    }

    /// As `with_map`, for a batch.
    fn with_batch(&self, fd: Fd, operation: impl FnOnce(&MapFile) -> BatchOutcome) -> BatchOutcome {
        self.with_map(fd, |map| Ok(operation(map)))
            .unwrap_or_else(BatchOutcome::failed)
    }

    pub(super) fn install(&self, file: Arc<File>) -> Result<Fd> {
        let installed = self.fds().install(file);
        // A refused file is dropped only here, when the table is not locked any more.
        installed.map_err(|(_file, error)| error)
    }

    /// `close(2)`. The map goes with its last reference. EBADF.
    pub fn close(&self, fd: Fd) -> Result<()> {
        let file = self.fds().take(fd);
        file.map(drop).ok_or_else(|| bad_fd(fd))
    }

    /// `dup(2)`: another descriptor of the same open file. EBADF, EMFILE.
    pub fn dup(&self, fd: Fd) -> Result<Fd> {
        self.install(self.file(fd).ok_or_else(|| bad_fd(fd))?)
    }

    /// As [`MapFile::lookup`]. As in 6.18, unknown flags are EINVAL before the descriptor is
    /// looked at.
    pub fn lookup(&self, fd: Fd, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        check_lookup_flags(flags)?;
        self.with_map(fd, |map| map.lookup(key, value, flags))
    }

    /// As [`MapFile::update`]. The value of a map of maps is a descriptor of the inner map, as
    /// `i32` in native byte order: EBADF when it is not open, EINVAL when it is no map's, or
    /// one's that differs from the template.
    pub fn update(&self, fd: Fd, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        self.with_map(fd, |map| {
            map.update_resolving(key, value, flags, |inner| self.map_of(inner))
        })
    }

    /// The map behind a descriptor, without a user (`bpf_map_fd_get_ptr`, before it compares).
    pub(super) fn map_of(&self, fd: i32) -> Result<Arc<Map>> {
        self.with_map(Fd(fd), |file| Ok(Arc::clone(file.map())))
    }

    /// As [`MapFile::delete`].
    pub fn delete(&self, fd: Fd, key: &[u8]) -> Result<()> {
        self.with_map(fd, |map| map.delete(key))
    }

    /// As [`MapFile::get_next_key`].
    pub fn get_next_key(&self, fd: Fd, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        self.with_map(fd, |map| map.get_next_key(key, next))
    }

    /// As [`MapFile::lookup_and_delete`]; unknown flags as in [`System::lookup`].
    pub fn lookup_and_delete(
        &self,
        fd: Fd,
        key: &[u8],
        value: &mut [u8],
        flags: u64,
    ) -> Result<()> {
        check_lookup_flags(flags)?;
        self.with_map(fd, |map| map.lookup_and_delete(key, value, flags))
    }

    /// As [`MapFile::lookup_many`].
    pub fn lookup_many(
        &self,
        fd: Fd,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<()> {
        self.with_map(fd, |map| map.lookup_many(keys, values, results))
    }

    /// As [`MapFile::update_batch`]; values of maps of maps as in [`System::update`].
    pub fn update_batch(
        &self,
        fd: Fd,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.with_batch(fd, |map| {
            map.update_batch_resolving(keys, values, count, (elem_flags, flags), |inner| {
                self.map_of(inner)
            })
        })
    }

    /// As [`MapFile::delete_batch`].
    pub fn delete_batch(
        &self,
        fd: Fd,
        keys: &[u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.with_batch(fd, |map| map.delete_batch(keys, count, elem_flags, flags))
    }

    /// As [`MapFile::token_bytes`]. EBADF.
    pub fn token_bytes(&self, fd: Fd) -> Result<usize> {
        self.with_map(fd, |map| Ok(map.token_bytes()))
    }

    /// As [`MapFile::lookup_batch`].
    #[expect(clippy::too_many_arguments, reason = "the fields of bpf_attr.batch")]
    pub fn lookup_batch(
        &self,
        fd: Fd,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.with_batch(fd, |map| {
            map.lookup_batch(in_batch, out_batch, keys, values, count, elem_flags, flags)
        })
    }

    /// As [`MapFile::lookup_and_delete_batch`].
    #[expect(clippy::too_many_arguments, reason = "the fields of bpf_attr.batch")]
    pub fn lookup_and_delete_batch(
        &self,
        fd: Fd,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        flags: u64,
    ) -> BatchOutcome {
        self.with_batch(fd, |map| {
            map.lookup_and_delete_batch(in_batch, out_batch, keys, values, count, elem_flags, flags)
        })
    }

    /// As [`MapFile::freeze`].
    pub fn freeze(&self, fd: Fd) -> Result<()> {
        self.with_map(fd, |map| map.freeze())
    }

    /// BPF_OBJ_GET_INFO_BY_FD: as [`MapFile::info`]; a bad descriptor is EBADFD here.
    pub fn info(&self, fd: Fd) -> Result<MapInfo> {
        self.info_map(fd)?.info()
    }

    /// The map whose info is asked for.
    pub(super) fn info_map(&self, fd: Fd) -> Result<MapFile> {
        Ok(self.info_file(fd)?.map()?.clone())
    }

    /// The object whose info is asked for. EBADFD, and EINVAL for files of others.
    pub(super) fn info_file(&self, fd: Fd) -> Result<Arc<File>> {
        self.open_file(fd).map_err(|error| match error.errno() {
            Errno::EBADF => {
                Error::because(Errno::EBADFD, format!("descriptor {} is not open", fd.0))
            }
            _ => error,
        })
    }

    /// BPF_MAP_GET_NEXT_ID: the smallest map id above `start`.
    ///
    /// EINVAL for a start of 2^31 − 1 or more, EPERM without CAP_SYS_ADMIN, ENOENT when there
    /// is none. Maps of a removed device are not listed.
    pub fn get_next_id(&self, caller: &Caller, start: u32) -> Result<u32> {
        check_next_id(caller, start, "listing map ids")?;
        self.shared.ids.next_after(start).ok_or(Error::new(
            Errno::ENOENT,
            "no map has an id above the given one",
        ))
    }

    /// BPF_MAP_GET_FD_BY_ID: opens a descriptor of the map with this id.
    ///
    /// `open_flags` may hold RDONLY or WRONLY. EINVAL for other flags, EPERM without
    /// CAP_SYS_ADMIN, EINVAL for both, ENOENT, EMFILE.
    pub fn get_fd_by_id(&self, caller: &Caller, id: u32, open_flags: MapFlags) -> Result<Fd> {
        let other = open_flags - (MapFlags::RDONLY | MapFlags::WRONLY);
        if !other.is_empty() {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "open_flags {:#x}: only RDONLY and WRONLY are allowed",
                    open_flags.bits()
                ),
            ));
        }
        check_sys_admin(caller, "opening a map by id")?;
        let mode = FileMode::from_flags(open_flags)?;
        let map = self.shared.ids.get(id).ok_or_else(|| {
            Error::because(Errno::ENOENT, format!("id {id}: there is no such map"))
        })?;
        self.new_map_fd(caller, MapFile::open(map, mode))
    }
}

/// What `bpf_obj_get_next_id` asks first. EINVAL, EPERM.
pub(super) fn check_next_id(caller: &Caller, start: u32, what: &str) -> Result<()> {
    if start >= i32::MAX as u32 {
        return Err(Error::because(
            Errno::EINVAL,
            format!("start_id {start}: ids are below {}", i32::MAX),
        ));
    }
    check_sys_admin(caller, what)
}

pub(super) fn check_sys_admin(caller: &Caller, what: &str) -> Result<()> {
    if caller.sys_admin() {
        Ok(())
    } else {
        Err(Error::because(
            Errno::EPERM,
            format!("{what} needs CAP_SYS_ADMIN"),
        ))
    }
}

pub(super) fn check_lookup_flags(flags: u64) -> Result<()> {
    if flags & !BPF_F_LOCK != 0 {
        return Err(BAD_LOOKUP_FLAGS);
    }
    Ok(())
}
