//! Commands that make descriptors, and those on ids.

use super::{Call, command};
use crate::error::Result;
use crate::uapi::MapFlags;

/// Offsets in the attribute of the commands on ids.
const ID: usize = 0;
const NEXT_ID: usize = 4;
const OPEN_FLAGS: usize = 8;

/// The end of BPF_MAP_CREATE's part: after `excl_prog_hash_size`.
const MAP_CREATE_END: usize = 92;

impl Call<'_> {
    /// `map_create`.
    pub(super) fn map_create(&self) -> Result<i32> {
        self.check_end(command::MAP_CREATE, MAP_CREATE_END)?;
        let attr = self.attr.map_create();
        let hash = |address| {
            let mut hash = [0; 32];
            self.memory
                .read(address, &mut hash)
                .map_err(|fault| fault.during("excl_prog_hash"))?;
            Ok(hash)
        };
        self.system.create(self.caller, &attr, &hash).map(|fd| fd.0)
    }

    /// `bpf_obj_get_next_id` of maps.
    pub(super) fn map_get_next_id(&self) -> Result<()> {
        self.check_end(command::MAP_GET_NEXT_ID, NEXT_ID + 4)?;
        let next = self.system.get_next_id(self.caller, self.attr.u32(ID))?;
        self.attr.put_u32(self.memory, NEXT_ID, next, "next_id")
    }

    /// `bpf_map_get_fd_by_id`.
    pub(super) fn map_get_fd_by_id(&self) -> Result<i32> {
        self.check_end(command::MAP_GET_FD_BY_ID, OPEN_FLAGS + 4)?;
        let flags = MapFlags::from_bits_retain(self.attr.u32(OPEN_FLAGS));
        self.system
            .get_fd_by_id(self.caller, self.attr.u32(ID), flags)
            .map(|fd| fd.0)
    }
}
