//! `union bpf_attr` as bytes: the copy that a call works on, and where the fields are.

use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{BPF_OBJ_NAME_LEN, MapCreateAttr};
use crate::user_memory::UserMemory;

/// `sizeof(union bpf_attr)` of 6.18: BPF_PROG_LOAD's part is the longest.
pub(super) const ATTR_BYTES: usize = 168;
/// `PAGE_SIZE`: more bytes than this no attribute may have.
pub(super) const MAX_BYTES: u64 = 4096;

/// The attribute of one call, zero-extended.
pub(super) struct Attr {
    bytes: [u8; ATTR_BYTES],
    /// Where the caller has it, for the fields that a command writes.
    address: u64,
}

/// Reads a structure that may be shorter than `known` (then it is zero-extended) or longer
/// (then its tail has to be zero): `bpf_check_uarg_tail_zero` and the copy after it. E2BIG.
pub(super) fn read_growable(
    memory: &dyn UserMemory,
    address: u64,
    size: u64,
    known: &mut [u8],
    what: &str,
) -> Result<()> {
    check_tail(memory, address, size, known.len(), what)?;
    let head = known.len().min(size as usize);
    memory
        .read(address, &mut known[..head])
        .map_err(|fault| fault.during(what))
}

/// `bpf_check_uarg_tail_zero`.
pub(super) fn check_tail(
    memory: &dyn UserMemory,
    address: u64,
    size: u64,
    known: usize,
    what: &str,
) -> Result<()> {
    if size > MAX_BYTES {
        return Err(Error::because(
            Errno::E2BIG,
            format!("{what}: {size} bytes exceed the {MAX_BYTES} of a page"),
        ));
    }
    let tail = (size as usize).saturating_sub(known);
    let mut bytes = [0; MAX_BYTES as usize];
    let start = address.wrapping_add(known as u64);
    let fault = memory.read(start, &mut bytes[..tail]).err();
    if let Some(fault) = fault {
        // The kernel goes word by word: what it finds before a fault is found.
        let before = fault.address.saturating_sub(start).min(tail as u64) as usize;
        if memory.read(start, &mut bytes[..before]).is_err() {
            bytes.fill(0);
        }
    }
    match (bytes[..tail].iter().position(|&byte| byte != 0), fault) {
        (None, None) => Ok(()),
        (None, Some(fault)) => Err(fault.during(what)),
        (Some(at), _) => Err(Error::because(
            Errno::E2BIG,
            format!(
                "{what}: byte {} is not zero, and this version knows only the first {known}",
                known + at
            ),
        )),
    }
}

impl Attr {
    pub(super) fn read(memory: &dyn UserMemory, address: u64, size: u32) -> Result<Self> {
        let mut bytes = [0; ATTR_BYTES];
        read_growable(memory, address, size.into(), &mut bytes, "the attribute")?;
        Ok(Self { bytes, address })
    }

    /// CHECK_ATTR: nothing is set behind the command's last field, which ends at `end`. EINVAL.
    pub(super) fn check_end(&self, command: &str, end: usize) -> Result<()> {
        match self.bytes[end..].iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(at) => Err(Error::because(
                Errno::EINVAL,
                format!(
                    "{command}: byte {} of the attribute is set, and the command's fields end \
                     at {end}",
                    end + at
                ),
            )),
        }
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_ne_bytes(raw)
    }

    pub(super) fn i32(&self, at: usize) -> i32 {
        self.u32(at) as i32
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_ne_bytes(raw)
    }

    /// `put_user` of a field of the attribute. EFAULT.
    pub(super) fn put_u32(
        &self,
        memory: &dyn UserMemory,
        at: usize,
        value: u32,
        field: &str,
    ) -> Result<()> {
        memory
            .write(self.address.wrapping_add(at as u64), &value.to_ne_bytes())
            .map_err(|fault| fault.during(field))
    }

    /// The part of BPF_MAP_CREATE.
    pub(super) fn map_create(&self) -> MapCreateAttr {
        let mut map_name = [0; BPF_OBJ_NAME_LEN];
        map_name.copy_from_slice(&self.bytes[28..44]);
        MapCreateAttr {
            map_type: self.u32(0),
            key_size: self.u32(4),
            value_size: self.u32(8),
            max_entries: self.u32(12),
            map_flags: self.u32(16),
            inner_map_fd: self.u32(20),
            numa_node: self.u32(24),
            map_name,
            map_ifindex: self.u32(44),
            btf_fd: self.u32(48),
            btf_key_type_id: self.u32(52),
            btf_value_type_id: self.u32(56),
            btf_vmlinux_value_type_id: self.u32(60),
            map_extra: self.u64(64),
            value_type_btf_obj_fd: self.i32(72),
            map_token_fd: self.i32(76),
            excl_prog_hash: self.u64(80),
            excl_prog_hash_size: self.u32(88),
        }
    }
}
