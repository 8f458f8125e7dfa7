//! BPF_MAP_CREATE: the checks in the kernel's order (`map_create`).

use super::fd::File;
use super::{Fd, System};
use crate::caller::Caller;
use crate::device::{MapSpec, OffloadDevice};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::{FileMode, MapFile};
use crate::map::inner::{MapMeta, OffloadedMapOfMaps};
use crate::map::ops::{AllocContext, MapOps, MapTypeOps};
use crate::map::types::{check_offloaded, map_type_ops};
use crate::map::{Map, OFFLOADED_MAP_BYTES, OffloadMap, ReadMostly};
use crate::memory::Charge;
use crate::uapi::{BPF_OBJ_NAME_LEN, MapCreateAttr, MapFlags, MapType, NUMA_NO_NODE};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// What holds a new map's elements, and who pays for it.
struct Storage {
    ops: Arc<dyn MapOps>,
    offload: Option<Arc<OffloadMap>>,
    charge: Option<Charge>,
}

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, reason)
}

impl System {
    /// BPF_MAP_CREATE: creates a map and opens a descriptor of it.
    ///
    /// The checks come in the kernel's order, so that the first thing wrong decides the error
    /// number; the reason names the attribute, its value and the limit. A device is asked
    /// before the name and the BTF ids are looked at; when those are wrong it sees MAP_ALLOC
    /// and then, from the worker, MAP_FREE.
    pub fn map_create(&self, caller: &Caller, attr: &MapCreateAttr) -> Result<Fd> {
        self.create(caller, attr, &|address| {
            Err(Error::because(
                Errno::EFAULT,
                format!(
                    "excl_prog_hash {address:#x}: this call has no user memory; System::bpf has"
                ),
            ))
        })
    }

    /// As [`System::map_create`]; `exclusive` reads the hash at `excl_prog_hash`.
    pub(super) fn create(
        &self,
        caller: &Caller,
        attr: &MapCreateAttr,
        exclusive: &dyn Fn(u64) -> Result<[u8; 32]>,
    ) -> Result<Fd> {
        let token = attr.flags().contains(MapFlags::TOKEN_FD);
        let attr = &MapCreateAttr {
            map_flags: (attr.flags() - MapFlags::TOKEN_FD).bits(),
            ..*attr
        };
        check_btf_ids(attr)?;
        check_map_extra(attr)?;
        let mode = FileMode::from_flags(attr.flags())?;
        self.check_numa_node(attr)?;
        let map_type = MapType(attr.map_type);
        let type_ops = map_type_ops(map_type).ok_or_else(|| {
            invalid(format!(
                "map_type {}: this version's map layer has no maps of type {map_type}",
                attr.map_type
            ))
        })?;
        (type_ops.alloc_check)(attr, caller)?;
        if token {
            return Err(self.no_token(Fd(attr.map_token_fd)));
        }
        if (self.config.unprivileged_bpf_disabled || type_ops.needs_cap_bpf)
            && !caller.bpf_capable()
        {
            return Err(Error::because(
                Errno::EPERM,
                format!("creating a map of type {map_type} needs CAP_BPF"),
            ));
        }
        let storage = if attr.map_ifindex == 0 {
            let context = AllocContext {
                possible_cpus: self.config.possible_cpus,
                template: match map_type.is_map_of_maps() {
                    true => Some(MapMeta::of_template(&*self.template(attr)?)?),
                    false => None,
                },
            };
            let ops = (type_ops.alloc)(attr, &context)?;
            let charge = self.charge(caller, ops.mem_usage())?;
            Storage {
                ops,
                offload: None,
                charge,
            }
        } else {
            let (map, template, charge) = self.offload_alloc(caller, attr)?;
            let ops: Arc<dyn MapOps> = match template {
                Some(template) => Arc::new(OffloadedMapOfMaps::new(
                    Arc::clone(&map),
                    template,
                    map_type,
                    attr.max_entries,
                    attr.key_size,
                )),
                None => Arc::clone(&map) as _,
            };
            Storage {
                ops,
                offload: Some(map),
                charge,
            }
        };
        // From here on the map owns its storage: an error drops it, and the worker frees it.
        let map = self.finish(caller, attr, storage, type_ops, exclusive)?;
        self.new_map_fd(caller, MapFile::open(map, mode))
    }

    /// `bpf_map_new_fd`: a descriptor of a map, if the security module lets the caller have it.
    pub(super) fn new_map_fd(&self, caller: &Caller, file: MapFile) -> Result<Fd> {
        file.check_open(caller)?;
        self.install(Arc::new(File::Map(file)))
    }

    /// Has the caller's memory owner pay for a map whose elements take `bytes`.
    fn charge(&self, caller: &Caller, bytes: u64) -> Result<Option<Charge>> {
        let map = size_of::<Map>() as u64;
        self.memory.charge(caller.memory, bytes.saturating_add(map))
    }

    /// Rows 11 to 17: what follows the allocation.
    fn finish(
        &self,
        caller: &Caller,
        attr: &MapCreateAttr,
        storage: Storage,
        type_ops: &MapTypeOps,
        exclusive: &dyn Fn(u64) -> Result<[u8; 32]>,
    ) -> Result<Arc<Map>> {
        let Storage {
            ops,
            offload,
            charge,
        } = storage;
        let name = match checked_name(&attr.map_name) {
            Ok(name) => name,
            Err(error) => {
                self.shared.frees.send(ops, None, charge);
                return Err(error);
            }
        };
        let fields = ReadMostly {
            max_entries: ops.max_entries(attr.max_entries),
            ops,
            user_value_bytes: attr.user_value_bytes(self.config.possible_cpus),
            map_type: MapType(attr.map_type),
            commands: match &offload {
                Some(map) => map.commands(type_ops.commands),
                None => type_ops.commands,
            },
            key_size: attr.key_size,
            value_size: attr.value_size,
            map_extra: attr.map_extra,
            map_flags: permanent(attr.flags()),
            numa_node: attr.numa_node(),
            token: type_ops.token,
            id: AtomicU32::new(0),
            name,
            btf: None,
            exclusive: None,
            offload,
            shared: Arc::clone(&self.shared),
        };
        // Dropped when a check below fails, which frees the storage.
        let mut map = Map::new(fields, charge);
        map.read_mostly.btf = self.map_btf(caller, attr, map.read_mostly.offload.as_deref())?;
        map.read_mostly.exclusive = check_exclusive(attr, exclusive)?;
        let map = Arc::new(map);
        map.security_create(caller)?;
        if let Some(offload) = &map.read_mostly.offload {
            offload.set_map(Arc::downgrade(&map));
        }
        self.shared.ids.assign(&map)?;
        // The device may have gone since the allocation, when the map had no id to take away.
        if map
            .read_mostly
            .offload
            .as_ref()
            .is_some_and(|o| o.is_gone())
        {
            map.free_id();
        }
        Ok(map)
    }

    fn check_numa_node(&self, attr: &MapCreateAttr) -> Result<()> {
        let node = attr.numa_node();
        if node != NUMA_NO_NODE && !self.config.online_nodes.contains(&node) {
            return Err(invalid(format!(
                "numa_node {node}: not online; the online nodes are {:?}",
                self.config.online_nodes
            )));
        }
        Ok(())
    }

    /// The map behind `inner_map_fd`.
    fn template(&self, attr: &MapCreateAttr) -> Result<Arc<Map>> {
        let fd = attr.inner_map_fd as i32;
        self.map_of(fd).map_err(|error| {
            Error::because(
                error.errno(),
                format!("inner_map_fd {fd}: {}", error.reason()),
            )
        })
    }

    /// `bpf_map_offload_map_alloc`, and the template of a map of maps, which no offloaded map
    /// of the kernel has.
    fn offload_alloc(
        &self,
        caller: &Caller,
        attr: &MapCreateAttr,
    ) -> Result<(Arc<OffloadMap>, Option<MapMeta>, Option<Charge>)> {
        if !caller.sys_admin() {
            return Err(Error::because(
                Errno::EPERM,
                format!(
                    "map_ifindex {}: offloading needs CAP_SYS_ADMIN",
                    attr.map_ifindex
                ),
            ));
        }
        check_offloaded(attr)?;
        let node = attr.numa_node();
        let spec = MapSpec {
            map_type: MapType(attr.map_type),
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_flags: permanent(attr.flags()),
            map_extra: attr.map_extra,
            numa_node: (node != NUMA_NO_NODE).then_some(node),
            possible_cpus: self.config.possible_cpus,
            name: attr.map_name,
        };
        let mut template = None;
        let alloc = |device: &Arc<dyn OffloadDevice>| {
            if !spec.map_type.is_map_of_maps() {
                return device.map_alloc(&spec);
            }
            let inner = self.template(attr)?;
            let on_device = OffloadedMapOfMaps::on_device(device, &inner)?;
            template = Some(MapMeta::of_template(&inner)?.into_native());
            on_device.with_device(|template| device.map_of_maps_alloc(&spec, template))
        };
        let charge = || self.charge(caller, OFFLOADED_MAP_BYTES);
        let frees = &self.shared.frees;
        let (map, charge) =
            self.netdevs
                .map_alloc(caller, attr.map_ifindex, &spec, charge, frees, alloc)?;
        Ok((map, template, charge))
    }

    /// `bpf_token_get_from_fd`: this kernel makes no tokens, so that no descriptor is one.
    pub(super) fn no_token(&self, fd: Fd) -> Error {
        let errno = match self.fds().is_open(fd) {
            true => Errno::EINVAL,
            false => Errno::EBADF,
        };
        Error::because(
            errno,
            format!("map_token_fd {}: the descriptor is no BPF token", fd.0),
        )
    }
}

/// `bpf_map_flags_retain_permanent`: without the flags that only concern the file that the
/// creator gets.
fn permanent(flags: MapFlags) -> MapFlags {
    flags - (MapFlags::RDONLY | MapFlags::WRONLY)
}

/// Row 2.
fn check_btf_ids(attr: &MapCreateAttr) -> Result<()> {
    let (key, value) = (attr.btf_key_type_id, attr.btf_value_type_id);
    let vmlinux = attr.btf_vmlinux_value_type_id;
    if vmlinux != 0 {
        if MapType(attr.map_type) != MapType::STRUCT_OPS {
            return Err(invalid(format!(
                "btf_vmlinux_value_type_id {vmlinux}: only struct_ops maps have one, and this \
                 is map_type {}",
                MapType(attr.map_type)
            )));
        }
        if key != 0 || value != 0 {
            return Err(invalid(format!(
                "btf_vmlinux_value_type_id {vmlinux}: excludes btf_key_type_id {key} and \
                 btf_value_type_id {value}"
            )));
        }
    } else if key != 0 && value == 0 {
        return Err(invalid(format!(
            "btf_key_type_id {key}: needs a btf_value_type_id, which is 0"
        )));
    }
    Ok(())
}

/// Row 3.
fn check_map_extra(attr: &MapCreateAttr) -> Result<()> {
    let takes_it = matches!(
        MapType(attr.map_type),
        MapType::BLOOM_FILTER | MapType::ARENA
    );
    if attr.map_extra != 0 && !takes_it {
        return Err(invalid(format!(
            "map_extra {:#x}: a {} map has no use for it and wants 0",
            attr.map_extra,
            MapType(attr.map_type)
        )));
    }
    Ok(())
}

/// The hash of the one program that may use the map (6.18). No program is loaded here, so it
/// only keeps the map out of maps of maps.
fn check_exclusive(
    attr: &MapCreateAttr,
    read: &dyn Fn(u64) -> Result<[u8; 32]>,
) -> Result<Option<Box<[u8; 32]>>> {
    const SHA256_BYTES: u32 = 32;
    let size = attr.excl_prog_hash_size;
    match attr.excl_prog_hash {
        0 if size == 0 => Ok(None),
        0 => Err(invalid(format!(
            "excl_prog_hash_size {size}: excl_prog_hash is null"
        ))),
        _ if size != SHA256_BYTES => Err(invalid(format!(
            "excl_prog_hash_size {size}: a SHA-256 has {SHA256_BYTES} bytes"
        ))),
        address => read(address).map(|hash| Some(Box::new(hash))),
    }
}

/// `isalnum` of the kernel, whose letters are those of Latin-1 (`lib/ctype.c`).
const fn is_alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, 0xc0..=0xd6 | 0xd8..=0xf6 | 0xf8..)
}

/// Row 11, `bpf_obj_name_cpy`: the name, with what follows its NUL cleared.
fn checked_name(name: &[u8; BPF_OBJ_NAME_LEN]) -> Result<[u8; BPF_OBJ_NAME_LEN]> {
    let mut out = [0; BPF_OBJ_NAME_LEN];
    for (to, &byte) in out.iter_mut().zip(name) {
        if byte == 0 {
            return Ok(out);
        }
        if !(is_alnum(byte) || byte == b'_' || byte == b'.') {
            return Err(invalid(format!(
                "map_name {}: byte {byte:#04x} is none of letters, digits, '_' and '.'",
                name.escape_ascii()
            )));
        }
        *to = byte;
    }
    Err(invalid(format!(
        "map_name {}: longer than {} bytes",
        name.escape_ascii(),
        BPF_OBJ_NAME_LEN - 1
    )))
}
