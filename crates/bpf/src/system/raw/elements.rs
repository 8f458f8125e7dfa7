//! The commands on one element, and FREEZE.

use super::{Call, command};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::MapFile;
use crate::system::Fd;
use crate::system::commands::check_lookup_flags;
use crate::uapi::MapType;

/// Offsets in the attribute of the commands on one element.
const MAP_FD: usize = 0;
const KEY: usize = 8;
const VALUE: usize = 16;
const NEXT_KEY: usize = 16;
const FLAGS: usize = 24;

impl Call<'_> {
    fn element_map(&self) -> Result<MapFile> {
        self.system.raw_map(Fd(self.attr.i32(MAP_FD)))
    }

    /// `__bpf_copy_key`: a map without keys wants a null pointer. EFAULT, EINVAL.
    fn key(&self, map: &MapFile) -> Result<Vec<u8>> {
        let address = self.attr.u64(KEY);
        if map.key_size() == 0 {
            if address != 0 {
                return Err(Error::because(
                    Errno::EINVAL,
                    format!(
                        "key {address:#x}: a {} map has no keys, and wants a null pointer",
                        map.map_type()
                    ),
                ));
            }
            return Ok(Vec::new());
        }
        self.copy_in(address, map.key_size(), "key")
    }

    /// `kvmemdup_bpfptr`.
    pub(super) fn copy_in(&self, address: u64, len: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = buffer(len)?;
        self.memory
            .read(address, &mut bytes)
            .map_err(|fault| fault.during(what))?;
        Ok(bytes)
    }

    pub(super) fn copy_out(&self, address: u64, bytes: &[u8], what: &str) -> Result<()> {
        self.memory
            .write(address, bytes)
            .map_err(|fault| fault.during(what))
    }

    /// `map_lookup_elem`.
    pub(super) fn lookup(&self) -> Result<()> {
        self.check_end(command::MAP_LOOKUP_ELEM, FLAGS + 8)?;
        let flags = self.attr.u64(FLAGS);
        check_lookup_flags(flags)?;
        let map = self.element_map()?;
        map.readable()?;
        map.check_lock(flags)?;
        let key = self.key(&map)?;
        // A bloom filter is asked for a value.
        let mut value = if map.map_type() == MapType::BLOOM_FILTER && !map.is_offloaded() {
            self.copy_in(self.attr.u64(VALUE), map.value_bytes(), "value")?
        } else {
            buffer(map.value_bytes())?
        };
        map.lookup(&key, &mut value, flags)?;
        self.copy_out(self.attr.u64(VALUE), &value, "value")
    }

    /// `map_update_elem`.
    pub(super) fn update(&self) -> Result<()> {
        self.check_end(command::MAP_UPDATE_ELEM, FLAGS + 8)?;
        let map = self.element_map()?;
        let flags = self.attr.u64(FLAGS);
        // Counts as a write from here on: a freeze meanwhile is EBUSY.
        let _active = map.begin_write()?;
        map.check_lock(flags)?;
        let key = self.key(&map)?;
        let value = self.copy_in(self.attr.u64(VALUE), map.value_bytes(), "value")?;
        self.system.update_map(&map, &key, &value, flags)
    }

    /// `map_delete_elem`.
    pub(super) fn delete(&self) -> Result<()> {
        self.check_end(command::MAP_DELETE_ELEM, KEY + 8)?;
        let map = self.element_map()?;
        let _active = map.begin_write()?;
        map.delete(&self.key(&map)?)
    }

    /// `map_get_next_key`.
    pub(super) fn get_next_key(&self) -> Result<()> {
        self.check_end(command::MAP_GET_NEXT_KEY, NEXT_KEY + 8)?;
        let map = self.element_map()?;
        map.readable()?;
        let key = match self.attr.u64(KEY) {
            0 => None,
            _ => Some(self.key(&map)?),
        };
        let mut next = buffer(map.key_size())?;
        map.get_next_key(key.as_deref(), &mut next)?;
        self.copy_out(self.attr.u64(NEXT_KEY), &next, "next_key")
    }

    /// `map_lookup_and_delete_elem`.
    pub(super) fn lookup_and_delete(&self) -> Result<()> {
        self.check_end(command::MAP_LOOKUP_AND_DELETE_ELEM, FLAGS + 8)?;
        let flags = self.attr.u64(FLAGS);
        check_lookup_flags(flags)?;
        let map = self.element_map()?;
        map.readable()?;
        let _active = map.begin_write()?;
        if flags != 0 && matches!(map.map_type(), MapType::QUEUE | MapType::STACK) {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "flags {flags:#x}: a {} map pops without flags",
                    map.map_type()
                ),
            ));
        }
        map.check_lock(flags)?;
        let key = self.key(&map)?;
        let mut value = buffer(map.value_bytes())?;
        map.lookup_and_delete(&key, &mut value, flags)?;
        self.copy_out(self.attr.u64(VALUE), &value, "value")
    }

    /// `map_freeze`.
    pub(super) fn freeze(&self) -> Result<()> {
        self.check_end(command::MAP_FREEZE, MAP_FD + 4)?;
        self.element_map()?.freeze()
    }
}

/// Zeroed memory for a key or a value, which may be large. ENOMEM.
pub(super) fn buffer(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| {
        Error::because(
            Errno::ENOMEM,
            format!("a buffer of {len} bytes exceeds the memory that can be had"),
        )
    })?;
    bytes.resize(len, 0);
    Ok(bytes)
}
