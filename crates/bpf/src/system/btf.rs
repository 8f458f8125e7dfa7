//! BTF objects: BTF_LOAD, and the commands on them.

use super::commands::{check_next_id, check_sys_admin};
use super::fd::File;
use super::{Fd, System};
use crate::btf::{Btf, MapBtfSpec, MapTypeCheck, RunningKernel, check_map_btf};
use crate::btf_object::{BtfObject, MapBtf};
use crate::caller::Caller;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::BtfInfo;
use crate::map::OffloadMap;
use crate::uapi::{MapCreateAttr, MapType};
use std::sync::Arc;

impl System {
    /// BPF_BTF_LOAD: checks BTF and opens a descriptor of it. The kernel's types, which
    /// pointers in it may name, are the running kernel's.
    ///
    /// EPERM without CAP_BPF; what is wrong with the bytes, as [`Btf::parse`] says; EMFILE.
    pub fn btf_load(&self, caller: &Caller, bytes: &[u8]) -> Result<Fd> {
        check_btf_capable(caller)?;
        self.new_btf(Btf::parse(bytes)?)
    }

    /// `btf_new_fd` of BTF that has been checked.
    pub(super) fn new_btf(&self, btf: Btf) -> Result<Fd> {
        let object = Arc::new(BtfObject::new(btf, Arc::clone(&self.shared)));
        self.shared.btf_ids.assign(&object)?;
        self.install(Arc::new(File::Btf(object)))
    }

    /// BPF_BTF_GET_NEXT_ID: the smallest id of a BTF object above `start`. Errors as
    /// [`System::get_next_id`]. The kernel's own BTF has no id here.
    pub fn btf_get_next_id(&self, caller: &Caller, start: u32) -> Result<u32> {
        check_next_id(caller, start, "listing BTF ids")?;
        self.shared.btf_ids.next_after(start).ok_or(Error::new(
            Errno::ENOENT,
            "no BTF object has an id above the given one",
        ))
    }

    /// BPF_BTF_GET_FD_BY_ID: opens a descriptor of the BTF object with this id. EPERM without
    /// CAP_SYS_ADMIN, ENOENT, EMFILE.
    pub fn btf_get_fd_by_id(&self, caller: &Caller, id: u32) -> Result<Fd> {
        check_sys_admin(caller, "opening a BTF object by id")?;
        let object = self.shared.btf_ids.get(id).ok_or_else(|| {
            Error::because(
                Errno::ENOENT,
                format!("id {id}: there is no such BTF object"),
            )
        })?;
        self.install(Arc::new(File::Btf(object)))
    }

    /// BPF_OBJ_GET_INFO_BY_FD of a BTF object. EBADFD, EINVAL for other descriptors.
    pub fn btf_info(&self, fd: Fd) -> Result<BtfInfo> {
        let file = self.info_file(fd)?;
        let object = btf_of(&file, fd)?;
        Ok(BtfInfo {
            id: object.id(),
            bytes: object.btf.raw().into(),
        })
    }

    /// Row 13 of BPF_MAP_CREATE: the types of the map's keys and values.
    pub(super) fn map_btf(
        &self,
        caller: &Caller,
        attr: &MapCreateAttr,
        offload: Option<&OffloadMap>,
    ) -> Result<Option<Box<MapBtf>>> {
        let (key_type_id, value_type_id) = (attr.btf_key_type_id, attr.btf_value_type_id);
        if key_type_id == 0 && value_type_id == 0 {
            return Ok(None);
        }
        let fd = Fd(attr.btf_fd as i32);
        let file = self.open_file(fd).map_err(|error| named(&error, fd))?;
        let object = Arc::clone(btf_of(&file, fd)?);
        let map_type = MapType(attr.map_type);
        let check = match offload {
            // `bpf_map_offload_ops` have `map_check_no_btf`.
            Some(map) if !map.takes_btf() => MapTypeCheck::Refuse,
            _ => MapTypeCheck::of(map_type),
        };
        let spec = MapBtfSpec {
            map_type,
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            flags: attr.flags(),
            check,
            bpf_capable: caller.bpf_capable(),
        };
        let record = check_map_btf(
            &object.btf,
            key_type_id,
            value_type_id,
            &spec,
            &RunningKernel,
        )?;
        Ok(Some(Box::new(MapBtf {
            object,
            key_type_id,
            value_type_id,
            record,
        })))
    }
}

/// `bpf_token_capable(CAP_BPF)` of BTF_LOAD.
pub(super) fn check_btf_capable(caller: &Caller) -> Result<()> {
    if caller.bpf_capable() {
        return Ok(());
    }
    Err(Error::new(Errno::EPERM, "loading BTF needs CAP_BPF"))
}

/// `btf_get_by_fd`.
fn btf_of(file: &File, fd: Fd) -> Result<&Arc<BtfObject>> {
    match file {
        File::Btf(object) => Ok(object),
        _ => Err(not_btf(fd)),
    }
}

fn not_btf(fd: Fd) -> Error {
    Error::because(
        Errno::EINVAL,
        format!("descriptor {} is not a BTF object's", fd.0),
    )
}

fn named(error: &Error, fd: Fd) -> Error {
    match error.errno() {
        Errno::EINVAL => not_btf(fd),
        errno => Error::because(errno, format!("btf_fd {}: {}", fd.0, error.reason())),
    }
}
