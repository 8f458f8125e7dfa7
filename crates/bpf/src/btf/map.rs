//! What BPF_MAP_CREATE asks of a map's key and value types (`map_check_btf`,
//! `kernel/bpf/syscall.c`).

use super::field::{FieldKind, FieldKinds, FieldRecord};
use super::kind::Kind;
use super::{Btf, KernelTypes};
use crate::uapi::{MapFlags, MapType};
use crate::{Errno, Error, Result};

/// A map type's own `map_check_btf`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapTypeCheck {
    /// It has none: any types of the right size, and both have to be given.
    None,
    /// `map_check_no_btf`: it takes no BTF.
    Refuse,
    /// `array_map_check_btf`: the key is a 32-bit integer, or not given for a data section.
    Array,
    /// `trie_check_btf`: the key is a struct.
    LpmTrie,
    /// `bloom_map_check_btf`: there is no key.
    BloomFilter,
    /// `bpf_local_storage_map_check_btf`: the key is a 32-bit integer.
    LocalStorage,
    /// `cgroup_storage_check_btf`: the key is `struct bpf_cgroup_storage_key` or 64 bits.
    CgroupStorage,
    /// `arena_map_check_btf`: anything goes, a missing key too.
    Any,
}

impl MapTypeCheck {
    /// The check of a map type on the host. For an offloaded map it is
    /// [`MapTypeCheck::Refuse`], whatever the type.
    pub const fn of(map_type: MapType) -> Self {
        match map_type {
            MapType::ARRAY | MapType::PERCPU_ARRAY => Self::Array,
            MapType::LPM_TRIE => Self::LpmTrie,
            MapType::BLOOM_FILTER => Self::BloomFilter,
            MapType::SK_STORAGE
            | MapType::INODE_STORAGE
            | MapType::TASK_STORAGE
            | MapType::CGRP_STORAGE => Self::LocalStorage,
            MapType::CGROUP_STORAGE | MapType::PERCPU_CGROUP_STORAGE => Self::CgroupStorage,
            MapType::ARENA => Self::Any,
            MapType::PERF_EVENT_ARRAY
            | MapType::STACK_TRACE
            | MapType::CGROUP_ARRAY
            | MapType::ARRAY_OF_MAPS
            | MapType::HASH_OF_MAPS
            | MapType::DEVMAP
            | MapType::SOCKMAP
            | MapType::CPUMAP
            | MapType::XSKMAP
            | MapType::SOCKHASH
            | MapType::DEVMAP_HASH => Self::Refuse,
            _ => Self::None,
        }
    }
}

/// The map under creation, as far as its types depend on it.
#[derive(Clone, Copy, Debug)]
pub struct MapBtfSpec {
    /// Its type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// Its flags.
    pub flags: MapFlags,
    /// The check of its operations.
    pub check: MapTypeCheck,
    /// Whether the caller has CAP_BPF.
    pub bpf_capable: bool,
}

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, reason)
}

/// Checks the types of a map's key and value, in the kernel's order, and returns the value's
/// special fields.
///
/// `key_type_id` 0 stands for no key type; `value_type_id` is not 0, else nothing is checked.
/// As in the kernel, a value whose special fields are not sound has none: the map is made, and
/// programs that would use them are refused.
///
/// # Errors
///
/// EINVAL: a type that is not there, has no size, or is of another size than the map's; no key
/// type, for a map type that has no check of its own; or what that check finds. With special
/// fields: EPERM without CAP_BPF; EACCES with BPF_F_RDONLY_PROG or BPF_F_WRONLY_PROG;
/// EOPNOTSUPP for a map type that cannot have them; EINVAL, E2BIG, EFAULT or ELOOP for what
/// they point to or hold. ENOTSUPP for a map that takes no BTF.
pub fn check_map_btf(
    btf: &Btf,
    key_type_id: u32,
    value_type_id: u32,
    spec: &MapBtfSpec,
    kernel: &dyn KernelTypes,
) -> Result<Option<FieldRecord>> {
    let key = match key_type_id {
        0 if spec.check == MapTypeCheck::None => {
            return Err(invalid(format!(
                "btf_key_type_id is 0, and {} maps need a key type",
                spec.map_type
            )));
        }
        0 => 0,
        id => sized(btf, "btf_key_type_id", id, "key_size", spec.key_size)?,
    };
    let value = sized(
        btf,
        "btf_value_type_id",
        value_type_id,
        "value_size",
        spec.value_size,
    )?;
    // Errors of the search are kept in `map->record`, where nothing looks at them here.
    let record = btf
        .parse_fields(value, spec.value_size, FieldKinds::MAP_VALUE, kernel)
        .unwrap_or(None);
    if let Some(record) = &record {
        check_record(btf, value, record, spec)?;
    }
    check_type(btf, key, value, spec)?;
    Ok(record)
}

fn sized(btf: &Btf, attribute: &str, id: u32, limit: &str, size: u32) -> Result<u32> {
    match btf.type_id_size(id) {
        Some((end, found)) if found == size => Ok(end),
        Some((_, found)) => Err(invalid(format!(
            "{attribute} {id} is {found} bytes, and {limit} is {size}"
        ))),
        None => Err(invalid(format!(
            "{attribute} {id} is not a type with a size, of the {} there are",
            btf.type_count() - 1
        ))),
    }
}

/// Whether values of a map type may have such a field.
fn allows(map_type: MapType, kind: FieldKind) -> bool {
    let local_storage = matches!(
        map_type,
        MapType::SK_STORAGE
            | MapType::INODE_STORAGE
            | MapType::TASK_STORAGE
            | MapType::CGRP_STORAGE
    );
    match kind {
        FieldKind::SpinLock | FieldKind::ResSpinLock => {
            local_storage
                || matches!(
                    map_type,
                    MapType::HASH | MapType::ARRAY | MapType::CGROUP_STORAGE
                )
        }
        FieldKind::Timer
        | FieldKind::Workqueue
        | FieldKind::TaskWork
        | FieldKind::ListHead
        | FieldKind::RbRoot => {
            matches!(map_type, MapType::HASH | MapType::LRU_HASH | MapType::ARRAY)
        }
        FieldKind::KptrUnref | FieldKind::KptrRef | FieldKind::KptrPercpu | FieldKind::Refcount => {
            local_storage
                || matches!(
                    map_type,
                    MapType::HASH
                        | MapType::PERCPU_HASH
                        | MapType::LRU_HASH
                        | MapType::LRU_PERCPU_HASH
                        | MapType::ARRAY
                        | MapType::PERCPU_ARRAY
                )
        }
        FieldKind::Uptr => matches!(map_type, MapType::TASK_STORAGE),
        FieldKind::ListNode | FieldKind::RbNode => false,
    }
}

fn check_record(btf: &Btf, value: u32, record: &FieldRecord, spec: &MapBtfSpec) -> Result<()> {
    let names = || {
        let kinds = FieldKind::ALL.into_iter().filter(|&kind| record.has(kind));
        kinds.map(FieldKind::name).collect::<Vec<_>>().join(", ")
    };
    if !spec.bpf_capable {
        return Err(Error::because(
            Errno::EPERM,
            format!("values with special fields ({}) need CAP_BPF", names()),
        ));
    }
    // Allocation makes device maps read-only to programs (`dev_map_init_map`).
    let device_map = matches!(spec.map_type, MapType::DEVMAP | MapType::DEVMAP_HASH);
    if device_map
        || spec
            .flags
            .intersects(MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG)
    {
        return Err(Error::because(
            Errno::EACCES,
            format!(
                "map_flags keep programs from reading or writing, and values have special \
                 fields ({})",
                names()
            ),
        ));
    }
    if let Some(kind) = FieldKind::ALL
        .into_iter()
        .find(|&kind| record.has(kind) && !allows(spec.map_type, kind))
    {
        return Err(Error::because(
            Errno::EOPNOTSUPP,
            format!(
                "values of {} maps cannot have {}",
                spec.map_type,
                kind.name()
            ),
        ));
    }
    btf.check_record(value, record)
}

fn check_type(btf: &Btf, key: u32, value: u32, spec: &MapBtfSpec) -> Result<()> {
    let kind = btf.kind(key);
    let bits = btf
        .int_data(key)
        .filter(|int| int.offset() == 0)
        .map(|int| int.bits());
    let refuse = |what: &str| {
        Err(invalid(format!(
            "the key of {} maps is {what}, and btf_key_type_id is of kind {}",
            spec.map_type,
            kind.name()
        )))
    };
    match spec.check {
        MapTypeCheck::None | MapTypeCheck::Any => Ok(()),
        MapTypeCheck::Refuse => Err(Error::because(
            Errno::ENOTSUPP,
            format!("{} maps take no BTF here", spec.map_type),
        )),
        MapTypeCheck::Array if key == 0 => {
            // The one map without a key type: a section of global variables.
            if spec.map_type == MapType::ARRAY
                && spec.max_entries == 1
                && btf.kind(value) == Kind::Datasec
            {
                return Ok(());
            }
            Err(invalid(format!(
                "btf_key_type_id is 0, which only an array of 1 data section may leave out; this \
                 is {} of {} entries, with values of kind {}",
                spec.map_type,
                spec.max_entries,
                btf.kind(value).name()
            )))
        }
        MapTypeCheck::Array | MapTypeCheck::LocalStorage => match bits {
            Some(32) => Ok(()),
            _ => refuse("a 32-bit integer"),
        },
        MapTypeCheck::LpmTrie => match kind {
            Kind::Struct => Ok(()),
            _ => refuse("a struct"),
        },
        MapTypeCheck::BloomFilter => match key {
            0 => Ok(()),
            _ => refuse("none"),
        },
        MapTypeCheck::CgroupStorage => cgroup_storage_key(btf, key, kind, bits, spec),
    }
}

/// `cgroup_storage_check_btf` (`kernel/bpf/local_storage.c`).
fn cgroup_storage_key(
    btf: &Btf,
    key: u32,
    kind: Kind,
    bits: Option<u32>,
    spec: &MapBtfSpec,
) -> Result<()> {
    const INODE_KEY_BYTES: u32 = 8;
    if spec.key_size == INODE_KEY_BYTES {
        return match bits {
            Some(64) => Ok(()),
            _ => Err(invalid(format!(
                "a key of 8 bytes of {} maps is a 64-bit integer, and btf_key_type_id is of kind {}",
                spec.map_type,
                kind.name()
            ))),
        };
    }
    // struct bpf_cgroup_storage_key: cgroup_inode_id at 0, attach_type at 8.
    let fits = kind == Kind::Struct
        && btf.members(key).len() == 2
        && btf
            .raw_members(&btf.types[key as usize])
            .zip([(0, 8), (8, 4)])
            .all(|(member, (offset, size))| btf.is_regular_member(key, member, offset, size));
    if fits {
        return Ok(());
    }
    Err(invalid(format!(
        "the key of {} maps is a struct of a 64-bit and a 32-bit integer",
        spec.map_type
    )))
}
