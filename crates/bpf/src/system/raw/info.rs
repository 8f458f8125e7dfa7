//! BPF_OBJ_GET_INFO_BY_FD.

use super::attr::check_tail;
use super::{Call, command};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::{BtfInfo, MapFile, MapInfo};
use crate::system::Fd;
use crate::system::fd::File;
use crate::uapi::MapType;

/// Offsets in the attribute.
const BPF_FD: usize = 0;
const INFO_LEN: usize = 4;
const INFO: usize = 8;

/// `sizeof(struct bpf_map_info)` of 6.18.
const MAP_INFO_BYTES: usize = 104;
/// The end of its last field: what follows is padding, and has to be zero.
const MAP_INFO_KNOWN: usize = 100;
/// `sizeof(struct bpf_btf_info)`.
const BTF_INFO_BYTES: usize = 32;
/// Offsets in the map's of what the caller gives.
const HASH: usize = 88;
const HASH_SIZE: usize = 96;
const SHA256_BYTES: u32 = 32;

impl Call<'_> {
    /// `bpf_obj_get_info_by_fd`.
    pub(super) fn info(&self) -> Result<()> {
        self.check_end(command::OBJ_GET_INFO_BY_FD, INFO + 8)?;
        let fd = Fd(self.attr.i32(BPF_FD));
        let file = self.system.info_file(fd)?;
        match &*file {
            File::Map(map) => self.map_info(map),
            File::Btf(_) => self.btf_info(&self.system.btf_info(fd)?),
            File::Directory(_) => file.map().map(drop),
        }
    }

    /// `btf_get_info_by_fd`. The object has no name: the kernel's own have.
    fn btf_info(&self, btf: &BtfInfo) -> Result<()> {
        let (address, len) = (self.attr.u64(INFO), self.attr.u32(INFO_LEN));
        let what = "struct bpf_btf_info";
        check_tail(self.memory, address, len.into(), BTF_INFO_BYTES, what)?;
        let len = BTF_INFO_BYTES.min(len as usize);
        let mut info = [0; BTF_INFO_BYTES];
        self.memory
            .read(address, &mut info[..len])
            .map_err(|fault| fault.during("info"))?;
        let to = u64::from_ne_bytes(field(&info, 0));
        let room = u32::from_ne_bytes(field(&info, 8)) as usize;
        self.copy_out(to, &btf.bytes[..btf.bytes.len().min(room)], "btf")?;
        let name = u64::from_ne_bytes(field(&info, 16));
        let name_len = u32::from_ne_bytes(field(&info, 24));
        if (name != 0) != (name_len != 0) {
            return Err(Error::because(
                Errno::EINVAL,
                format!("name {name:#x} with name_len {name_len}: a name needs both"),
            ));
        }
        info[8..12].copy_from_slice(&(btf.bytes.len() as u32).to_ne_bytes());
        info[12..16].copy_from_slice(&btf.id.to_ne_bytes());
        // `name_len` and `kernel_btf`.
        info[24..32].fill(0);
        if name != 0 {
            self.copy_out(name, &[0], "name")?;
        }
        self.copy_out(address, &info[..len], "info")?;
        self.attr
            .put_u32(self.memory, INFO_LEN, len as u32, "info_len")
    }

    /// The hash of the map's contents, when `hash` says where to. EINVAL, EPERM, EFAULT.
    fn content_hash(&self, map: &MapFile, info: &[u8; MAP_INFO_BYTES]) -> Result<()> {
        let (address, size) = (
            u64::from_ne_bytes(field(info, HASH)),
            u32::from_ne_bytes(field(info, HASH_SIZE)),
        );
        if address == 0 {
            return match size {
                0 => Ok(()),
                _ => Err(Error::because(
                    Errno::EINVAL,
                    format!("hash_size {size}: hash is null"),
                )),
            };
        }
        if map.map_type() == MapType::ARRAY && size != SHA256_BYTES {
            return Err(Error::because(
                Errno::EINVAL,
                format!("hash_size {size}: a SHA-256 has {SHA256_BYTES} bytes"),
            ));
        }
        self.copy_out(address, &map.content_hash()?, "hash")
    }

    /// `bpf_map_get_info_by_fd`.
    fn map_info(&self, map: &MapFile) -> Result<()> {
        let (address, len) = (self.attr.u64(INFO), self.attr.u32(INFO_LEN));
        check_tail(
            self.memory,
            address,
            len.into(),
            MAP_INFO_KNOWN,
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
        self.content_hash(map, &bytes)?;
        self.copy_out(address, &bytes[..len], "info")?;
        self.attr
            .put_u32(self.memory, INFO_LEN, len as u32, "info_len")
    }
}

/// Field of a copy of an info structure.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut raw = [0; N];
    raw.copy_from_slice(&bytes[at..at + N]);
    raw
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
    // `btf_vmlinux_value_type_id`: struct_ops maps have one.
    put(44, &[0; 4]);
    if let Some(offload) = &info.offload {
        put(40, &offload.ifindex.to_ne_bytes());
        put(48, &offload.netns.dev.to_ne_bytes());
        put(56, &offload.netns.ino.to_ne_bytes());
    }
    if let Some(btf) = &info.btf {
        put(64, &btf.btf_id.to_ne_bytes());
        put(68, &btf.key_type_id.to_ne_bytes());
        put(72, &btf.value_type_id.to_ne_bytes());
    }
    put(80, &info.map_extra.to_ne_bytes());
}
