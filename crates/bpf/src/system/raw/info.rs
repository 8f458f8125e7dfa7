//! BPF_OBJ_GET_INFO_BY_FD.

use super::attr::check_tail;
use super::{Call, command};
use crate::error::Result;
use crate::file::MapInfo;
use crate::system::Fd;

/// Offsets in the attribute.
const BPF_FD: usize = 0;
const INFO_LEN: usize = 4;
const INFO: usize = 8;

/// `sizeof(struct bpf_map_info)` of 6.18.
const MAP_INFO_BYTES: usize = 104;

impl Call<'_> {
    /// `bpf_obj_get_info_by_fd`.
    pub(super) fn info(&self) -> Result<()> {
        self.check_end(command::OBJ_GET_INFO_BY_FD, INFO + 8)?;
        self.map_info(&self.system.info_map(Fd(self.attr.i32(BPF_FD)))?)
    }

    /// `bpf_map_get_info_by_fd`.
    fn map_info(&self, map: &crate::file::MapFile) -> Result<()> {
        let (address, len) = (self.attr.u64(INFO), self.attr.u32(INFO_LEN));
        check_tail(
            self.memory,
            address,
            len.into(),
            MAP_INFO_BYTES,
            "struct bpf_map_info",
        )?;
        let len = MAP_INFO_BYTES.min(len as usize);
        // The kernel starts from the caller's bytes, so that fields which it does not set
        // (those of the device, for a host map) come back as they were given.
        let mut bytes = [0; MAP_INFO_BYTES];
        self.memory
            .read(address, &mut bytes[..len])
            .map_err(|fault| fault.during("info"))?;
        fill(&map.info()?, &mut bytes);
        self.copy_out(address, &bytes[..len], "info")?;
        self.attr
            .put_u32(self.memory, INFO_LEN, len as u32, "info_len")
    }
}

/// The fields of `struct bpf_map_info`.
fn fill(info: &MapInfo, bytes: &mut [u8; MAP_INFO_BYTES]) {
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let words = [
        (0, info.map_type.0),
        (4, info.id),
        (8, info.key_size),
        (12, info.value_size),
        (16, info.max_entries),
        (20, info.map_flags.bits()),
    ];
    for (at, word) in words {
        put(at, &word.to_ne_bytes());
    }
    put(24, &info.name);
    if let Some(offload) = &info.offload {
        put(40, &offload.ifindex.to_ne_bytes());
        put(48, &offload.netns.dev.to_ne_bytes());
        put(56, &offload.netns.ino.to_ne_bytes());
    }
    put(80, &info.map_extra.to_ne_bytes());
}
