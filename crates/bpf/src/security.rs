//! Where a security module has its say (`include/linux/lsm_hook_defs.h`).

use crate::caller::Caller;
use crate::error::Result;
use crate::uapi::{BPF_OBJ_NAME_LEN, MapFlags, MapType};

/// A map, as hooks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecurityMap {
    /// Id; 0 until the map has one, and when it was taken away with the map's device.
    pub id: u32,
    /// Type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that the map can hold.
    pub max_entries: u32,
    /// Flags of the map.
    pub map_flags: MapFlags,
    /// Name, NUL-padded.
    pub name: [u8; BPF_OBJ_NAME_LEN],
    /// Whether it is on a device.
    pub offloaded: bool,
}

/// The access that a descriptor is to give (`fmode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapAccess {
    /// It can read elements.
    pub read: bool,
    /// It can change elements.
    pub write: bool,
}

/// A security module. What a hook fails with goes to the caller as it is; a hook that is not
/// written allows everything. Hooks come from many threads at once, and must not call into the
/// system that calls them.
pub trait SecurityHook: Send + Sync {
    /// `security_bpf`: before a command of the raw entry point, by its number, is looked at.
    fn bpf(&self, _caller: &Caller, _command: u32) -> Result<()> {
        Ok(())
    }

    /// `security_bpf_map_create`: the map is allocated, on its device too, and has no id yet.
    fn map_create(&self, _caller: &Caller, _map: &SecurityMap) -> Result<()> {
        Ok(())
    }

    /// `security_bpf_map`: a new descriptor of a map, created, by id or by path.
    fn map_open(&self, _caller: &Caller, _map: &SecurityMap, _access: MapAccess) -> Result<()> {
        Ok(())
    }

    /// `security_bpf_map_free`: for each map that [`SecurityHook::map_create`] saw, refused
    /// ones too, before its storage is freed; from the worker.
    fn map_free(&self, _map: &SecurityMap) {}
}

/// The module of a system that was given none.
pub(crate) struct AllowAll;

impl SecurityHook for AllowAll {}
