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
use crate::map::types::map_type_ops;
use crate::map::{Map, OffloadMap, ReadMostly};
use crate::uapi::{BPF_OBJ_NAME_LEN, MapCreateAttr, MapFlags, MapType, NUMA_NO_NODE};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

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
            return Err(Error::because(
                Errno::EBADF,
                format!("map_token_fd {}: no BPF token", attr.map_token_fd),
            ));
        }
        if (self.config.unprivileged_bpf_disabled || type_ops.needs_cap_bpf)
            && !caller.bpf_capable()
        {
            return Err(Error::because(
                Errno::EPERM,
                format!("creating a map of type {map_type} needs CAP_BPF"),
            ));
        }
        let (ops, offload): (Arc<dyn MapOps>, Option<Arc<OffloadMap>>) = if attr.map_ifindex == 0 {
            let context = AllocContext {
                possible_cpus: self.config.possible_cpus,
                template: match map_type.is_map_of_maps() {
                    true => Some(MapMeta::of_template(&*self.template(attr)?)?),
                    false => None,
                },
            };
            ((type_ops.alloc)(attr, &context)?, None)
        } else {
            let (map, template) = self.offload_alloc(caller, attr)?;
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
            (ops, Some(map))
        };
        // From here on the map owns its storage: an error drops it, and the worker frees it.
        let map = self.finish(attr, ops, offload, type_ops)?;
        self.install(Arc::new(File::Map(MapFile::open(map, mode))))
    }

    /// Rows 11 to 17: what follows the allocation.
    fn finish(
        &self,
        attr: &MapCreateAttr,
        ops: Arc<dyn MapOps>,
        offload: Option<Arc<OffloadMap>>,
        type_ops: &MapTypeOps,
    ) -> Result<Arc<Map>> {
        let name = match checked_name(&attr.map_name) {
            Ok(name) => name,
            Err(error) => {
                self.shared.frees.send(ops);
                return Err(error);
            }
        };
        let map = Arc::new(Map::new(ReadMostly {
            ops,
            user_value_bytes: attr.user_value_bytes(self.config.possible_cpus),
            map_type: MapType(attr.map_type),
            commands: match &offload {
                Some(map) => map.commands(type_ops.commands),
                None => type_ops.commands,
            },
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_extra: attr.map_extra,
            map_flags: permanent(attr.flags()),
            numa_node: attr.numa_node(),
            token_bytes: type_ops.token.bytes(attr.key_size),
            id: AtomicU32::new(0),
            name,
            offload,
            shared: Arc::clone(&self.shared),
        }));
        self.check_btf_fd(attr)?;
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
    ) -> Result<(Arc<OffloadMap>, Option<MapMeta>)> {
        if !caller.sys_admin() {
            return Err(Error::because(
                Errno::EPERM,
                format!(
                    "map_ifindex {}: offloading needs CAP_SYS_ADMIN",
                    attr.map_ifindex
                ),
            ));
        }
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
        let frees = &self.shared.frees;
        let map = self
            .netdevs
            .map_alloc(caller, attr.map_ifindex, &spec, frees, alloc)?;
        Ok((map, template))
    }

    /// `btf_get_by_fd`: this kernel has no BTF objects, so that no descriptor is one.
    fn check_btf_fd(&self, attr: &MapCreateAttr) -> Result<()> {
        if attr.btf_key_type_id == 0 && attr.btf_value_type_id == 0 {
            return Ok(());
        }
        let fd = Fd(attr.btf_fd as i32);
        if self.fds().get(fd).is_some() {
            return Err(invalid(format!(
                "btf_fd {}: the descriptor is not of a BTF object",
                fd.0
            )));
        }
        Err(Error::because(
            Errno::EBADF,
            format!("btf_fd {}: the descriptor is not open", fd.0),
        ))
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

/// Row 11, `bpf_obj_name_cpy`: the name, with what follows its NUL cleared.
fn checked_name(name: &[u8; BPF_OBJ_NAME_LEN]) -> Result<[u8; BPF_OBJ_NAME_LEN]> {
    let mut out = [0; BPF_OBJ_NAME_LEN];
    for (to, &byte) in out.iter_mut().zip(name) {
        if byte == 0 {
            return Ok(out);
        }
        if !(byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.') {
            return Err(invalid(format!(
                "map_name {:?}: has a byte other than letters, digits, '_' and '.'",
                String::from_utf8_lossy(name)
            )));
        }
        *to = byte;
    }
    Err(invalid(format!(
        "map_name {:?}: longer than {} bytes",
        String::from_utf8_lossy(name),
        BPF_OBJ_NAME_LEN - 1
    )))
}
