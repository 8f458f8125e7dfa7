//! Commands that make descriptors, and those on ids.

use super::{Call, command};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::system::pin::ObjAttr;
use crate::uapi::MapFlags;

/// Offsets in the attribute of the commands on ids.
const ID: usize = 0;
const NEXT_ID: usize = 4;
const OPEN_FLAGS: usize = 8;

/// Offsets in the attribute of OBJ_PIN and OBJ_GET.
const PATHNAME: usize = 0;
const BPF_FD: usize = 8;
const FILE_FLAGS: usize = 12;
const PATH_FD: usize = 16;

/// `PATH_MAX`, the NUL included.
const PATH_MAX: usize = 4096;
const PAGE_BYTES: u64 = 4096;

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

    /// `bpf_obj_pin`.
    pub(super) fn obj_pin(&self) -> Result<()> {
        self.check_end(command::OBJ_PIN, PATH_FD + 4)?;
        self.system
            .obj_pin_attr(self.caller, &self.obj_attr(), || self.path())
    }

    /// `bpf_obj_get`.
    pub(super) fn obj_get(&self) -> Result<i32> {
        self.check_end(command::OBJ_GET, PATH_FD + 4)?;
        self.system
            .obj_get_attr(self.caller, &self.obj_attr(), || self.path())
            .map(|fd| fd.0)
    }

    fn obj_attr(&self) -> ObjAttr {
        ObjAttr {
            bpf_fd: self.attr.u32(BPF_FD),
            file_flags: self.attr.u32(FILE_FLAGS),
            path_fd: self.attr.i32(PATH_FD),
        }
    }

    /// `getname`: a path up to its NUL. EFAULT, ENAMETOOLONG.
    fn path(&self) -> Result<Vec<u8>> {
        let start = self.attr.u64(PATHNAME);
        let mut path = Vec::new();
        // In pieces that end with a page, so that what follows the NUL is not needed.
        while path.len() < PATH_MAX {
            let at = start.wrapping_add(path.len() as u64);
            let room = (PAGE_BYTES - at % PAGE_BYTES).min(64) as usize;
            let piece = self.copy_in(at, room.min(PATH_MAX - path.len()), "pathname")?;
            match piece.iter().position(|&byte| byte == 0) {
                Some(end) => {
                    path.extend_from_slice(&piece[..end]);
                    return Ok(path);
                }
                None => path.extend_from_slice(&piece),
            }
        }
        Err(Error::because(
            Errno::ENAMETOOLONG,
            format!("pathname: no NUL within {PATH_MAX} bytes"),
        ))
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
