//! Map definitions as BTF describes them: the variables of the data section `.maps`.
//!
//! `bpf_helpers.h` encodes a definition in the types of a struct's members:
//! `__uint(name, n)` as a pointer to an array of `n`, `__type(name, t)` as a pointer to `t`,
//! `__array(name, t)` as an array of pointers to `t`. The rules are libbpf's
//! (`parse_btf_map_def`), strict about unknown members as libbpf is.

use super::btf::{Btf, Kind};
use super::error::{BtfError, MapError, ObjectError};
use super::{MAX_MAPS, MapDef};
use std::collections::{HashMap, HashSet};

const BTF_VAR_GLOBAL_ALLOCATED: u32 = 1;
const LIBBPF_PIN_BY_NAME: u32 = 1;

/// What the file says of its `.maps` section.
pub(super) struct MapsSection<'a> {
    /// Bytes.
    pub(super) size: u64,
    /// Offset of each symbol in it.
    pub(super) symbols: HashMap<&'a [u8], u64>,
}

/// Reads every definition, in the order of their place in the section.
pub(super) fn read(btf: &Btf<'_>, section: &MapsSection<'_>) -> Result<Vec<MapDef>, ObjectError> {
    let mut sections = btf.find(Kind::Datasec, b".maps");
    let id = sections.next().ok_or(ObjectError::MapsMismatch(
        "BTF has no data section .maps, and the file has",
    ))?;
    if sections.next().is_some() {
        return Err(ObjectError::Repeated(".maps"));
    }
    let (linked_size, vars) = btf.section(id)?;
    if vars.len() > MAX_MAPS {
        return Err(ObjectError::TooManyMaps(vars.len()));
    }

    let mut maps: Vec<(u64, u32, MapDef)> = Vec::with_capacity(vars.len());
    let mut names = HashSet::new();
    for var in vars {
        let (type_id, linkage) = btf.variable(var.type_id)?;
        let name = btf.name(var.type_id)?;
        let wrong = |error| ObjectError::Map {
            name: name.to_owned(),
            error,
        };
        if !names.insert(name) {
            return Err(wrong(MapError::Repeated));
        }
        if linkage != BTF_VAR_GLOBAL_ALLOCATED {
            return Err(wrong(MapError::Linkage));
        }
        // A compiler leaves sizes and offsets of the data section to the linker, and the
        // symbols know them meanwhile (libbpf's btf_fixup_datasec).
        let (offset, size) = if linked_size == 0 {
            let offset = section.symbols.get(name.as_bytes()).copied();
            let size = btf.size_of(type_id).map_err(|e| wrong(e.into()))?;
            (offset.ok_or_else(|| wrong(MapError::NoSymbol))?, size)
        } else {
            (u64::from(var.offset), var.size)
        };
        if offset
            .checked_add(u64::from(size))
            .is_none_or(|end| end > section.size)
        {
            return Err(wrong(MapError::Outside {
                offset,
                size,
                section: section.size,
            }));
        }
        let definition = Definition::read(btf, type_id, false).map_err(wrong)?;
        let map = definition.finish(name).map_err(wrong)?;
        maps.push((offset, size, map));
    }

    maps.sort_by_key(|&(offset, ..)| offset);
    for pair in maps.windows(2) {
        let [(first_at, first_size, first), (second_at, _, second)] = pair else {
            continue;
        };
        if second_at - first_at < u64::from(*first_size) {
            return Err(ObjectError::Map {
                name: second.name.clone(),
                error: MapError::Overlaps(first.name.clone()),
            });
        }
    }
    Ok(maps.into_iter().map(|(_, _, map)| map).collect())
}

/// A definition as it is written, before its parts are reconciled.
#[derive(Default)]
struct Definition {
    map_type: Option<u32>,
    max_entries: Option<u32>,
    map_flags: Option<u32>,
    numa_node: Option<u32>,
    key_size: Option<u32>,
    value_size: Option<u32>,
    key: Option<u32>,
    value: Option<u32>,
    pinning: Option<u32>,
    map_extra: Option<u64>,
    values: Option<Option<Box<MapDef>>>,
}

impl Definition {
    fn read(btf: &Btf<'_>, type_id: u32, inner: bool) -> Result<Self, MapError> {
        let mut definition = Self::default();
        let type_id = btf.skip_modifiers(type_id)?;
        for member in btf.members(type_id)? {
            if definition.values.is_some() {
                return Err(MapError::ValuesNotLast);
            }
            definition.member(btf, member.name, member.type_id, inner)?;
        }
        Ok(definition)
    }

    /// Takes in one member. At most one of each name, so the work for a map is bounded
    /// whatever its struct claims.
    fn member(
        &mut self,
        btf: &Btf<'_>,
        name: &[u8],
        type_id: u32,
        inner: bool,
    ) -> Result<(), MapError> {
        let uint = |member, slot: &mut Option<u32>| {
            let value = btf
                .pointee(type_id)
                .and_then(|array| btf.array(array))
                .map_err(|error| MapError::Member {
                    member,
                    macro_name: "__uint",
                    error,
                })?;
            once(member, slot, value.len)
        };
        let sized = |member, slot: &mut Option<u32>| {
            let size = btf
                .pointee(type_id)
                .and_then(|target| btf.size_of(target))
                .map_err(|error| MapError::Member {
                    member,
                    macro_name: "__type",
                    error,
                })?;
            once(member, slot, size)
        };
        match name {
            b"type" => uint("type", &mut self.map_type),
            b"max_entries" => uint("max_entries", &mut self.max_entries),
            b"map_flags" => uint("map_flags", &mut self.map_flags),
            b"numa_node" => uint("numa_node", &mut self.numa_node),
            b"key_size" => uint("key_size", &mut self.key_size),
            b"value_size" => uint("value_size", &mut self.value_size),
            b"pinning" => uint("pinning", &mut self.pinning),
            b"key" => sized("key", &mut self.key),
            b"value" => sized("value", &mut self.value),
            b"map_extra" => {
                // 64 bits do not fit the array form, so newer headers have __ulong, an enum.
                let resolved = btf.skip_modifiers(type_id)?;
                let value = match btf.kind(resolved) {
                    Kind::Enum | Kind::Enum64 => btf.only_enumerator(resolved),
                    _ => btf
                        .pointee(resolved)
                        .and_then(|array| btf.array(array))
                        .map(|array| u64::from(array.len)),
                };
                let value = value.map_err(|error| MapError::Member {
                    member: "map_extra",
                    macro_name: "__uint or __ulong",
                    error,
                })?;
                once("map_extra", &mut self.map_extra, value)
            }
            b"values" => {
                if inner {
                    return Err(MapError::Nested);
                }
                let held = held_map(btf, type_id)?;
                once("values", &mut self.values, held)
            }
            other => Err(MapError::UnknownMember(
                String::from_utf8_lossy(other).into_owned(),
            )),
        }
    }

    fn finish(self, name: &str) -> Result<MapDef, MapError> {
        let map_type = self.map_type.ok_or(MapError::NoType)?;
        let key_size = reconcile("key", self.key, self.key_size)?;
        let mut value_size = reconcile("value", self.value, self.value_size)?;
        if self.values.is_some() {
            // Such a map holds file descriptors.
            match value_size {
                None => value_size = Some(4),
                Some(4) => {}
                Some(other) => return Err(MapError::ValuesSize(other)),
            }
        }
        let pinning = self.pinning.unwrap_or(0);
        if pinning > LIBBPF_PIN_BY_NAME {
            return Err(MapError::Pinning(pinning));
        }
        Ok(MapDef {
            name: name.to_owned(),
            map_type,
            key_size: key_size.unwrap_or(0),
            value_size: value_size.unwrap_or(0),
            max_entries: self.max_entries.unwrap_or(0),
            map_flags: self.map_flags.unwrap_or(0),
            numa_node: self.numa_node.unwrap_or(0),
            map_extra: self.map_extra.unwrap_or(0),
            pinned_by_name: pinning == LIBBPF_PIN_BY_NAME,
            inner: self.values.flatten(),
        })
    }
}

fn once<T>(member: &'static str, slot: &mut Option<T>, value: T) -> Result<(), MapError> {
    if slot.is_some() {
        return Err(MapError::RepeatedMember(member));
    }
    *slot = Some(value);
    Ok(())
}

fn reconcile(
    what: &'static str,
    from_type: Option<u32>,
    given: Option<u32>,
) -> Result<Option<u32>, MapError> {
    match (from_type, given) {
        (Some(from_type), Some(given)) if from_type != given => Err(MapError::Conflict {
            what,
            from_type,
            given,
        }),
        (from_type, given) => Ok(from_type.or(given)),
    }
}

/// What `__array(values, …)` declares: a map's definition, or `None` for programs.
fn held_map(btf: &Btf<'_>, type_id: u32) -> Result<Option<Box<MapDef>>, MapError> {
    let member = |error| MapError::Member {
        member: "values",
        macro_name: "__array",
        error,
    };
    let array = btf.array(type_id).map_err(member)?;
    let target = btf.pointee(array.element).map_err(member)?;
    let target = btf.skip_modifiers(target).map_err(member)?;
    match btf.kind(target) {
        Kind::FuncProto => Ok(None),
        Kind::Struct => {
            let read = || Definition::read(btf, target, true)?.finish("");
            let inner = read().map_err(|error| MapError::Inner(Box::new(error)))?;
            Ok(Some(Box::new(inner)))
        }
        kind => Err(member(BtfError::Unexpected {
            id: target,
            found: kind.describe(),
            expected: "a map definition or a function prototype",
        })),
    }
}
