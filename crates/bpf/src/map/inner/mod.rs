//! Maps of maps: ARRAY_OF_MAPS and HASH_OF_MAPS (`kernel/bpf/map_in_map.c`).
//!
//! A value is a reference to another map. User space stores a descriptor and reads an id; a
//! program that looks a key up gets the map itself. The descriptor is resolved where the
//! descriptors are, in [`crate::System`]; here it has become a map already.
//!
//! What the outer map holds is a reference without a user: it keeps the inner map and its id
//! alive, as a program does. It is always dropped with no lock held, since the last one runs
//! the inner map's `Drop`.

mod array;
mod cells;
mod hash;
mod offloaded;

pub(crate) use array::ArrayOfMaps;
pub(crate) use hash::{HashOfMaps, HashShape};
pub(crate) use offloaded::OffloadedMapOfMaps;

use super::Map;
use crate::btf::FieldRecord;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{MapFlags, MapType};
use std::sync::Arc;

/// Bytes of a value as user space passes it: a descriptor, or an id.
pub(crate) const VALUE_BYTES: usize = 4;

/// A [`crate::MapFile`] has no descriptors.
pub(crate) const NEEDS_DESCRIPTORS: Error = Error::new(
    Errno::EBADF,
    "the value of a map of maps is a descriptor, which System::update resolves; an open file \
     has no descriptors: MapFile::update_inner takes the inner map itself",
);

/// What a map of maps knows of its inner maps: their template without its elements
/// (`inner_map_meta`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MapMeta {
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: MapFlags,
    /// The special fields of a value (`record`).
    record: Option<FieldRecord>,
    /// The template is on a device, and compares as `bpf_map_offload_ops` do.
    offloaded: bool,
}

impl MapMeta {
    fn of(map: &Map) -> Self {
        let fields = &map.read_mostly;
        Self {
            map_type: fields.map_type,
            key_size: fields.key_size,
            value_size: fields.value_size,
            max_entries: fields.max_entries,
            map_flags: fields.map_flags,
            record: fields.btf.as_ref().and_then(|btf| btf.record.clone()),
            offloaded: fields.offload.is_some(),
        }
    }

    /// `bpf_map_meta_alloc`, once the descriptor has proved to be a map's: EINVAL for a map of
    /// maps, 524 for a type whose maps cannot be compared.
    pub(crate) fn of_template(map: &Map) -> Result<Self> {
        let map_type = map.read_mostly.map_type;
        if map.read_mostly.ops.inner_maps().is_some() {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "inner_map_fd: a map of type {map_type} holds maps itself, and they nest one \
                     level deep"
                ),
            ));
        }
        check_not_exclusive(map)?;
        if !has_meta_equal(map_type) {
            return Err(Error::because(
                Errno::ENOTSUPP,
                format!("inner_map_fd: maps of type {map_type} cannot be inner maps"),
            ));
        }
        Ok(Self::of(map))
    }

    /// The same, to compare as maps of its type do, wherever the template is. The kernel has no
    /// map of maps on a device; ours compares as its twin on the host.
    pub(crate) fn into_native(self) -> Self {
        Self {
            offloaded: false,
            ..self
        }
    }

    /// `map_meta_equal` of the template's ops. EINVAL, with what differs in the reason.
    /// 524 for a map that belongs to one program.
    pub(crate) fn admit(&self, inner: &Map) -> Result<()> {
        check_not_exclusive(inner)?;
        match self.differs(&Self::of(inner)) {
            None => Ok(()),
            Some((what, given, wanted)) => Err(Error::because(
                Errno::EINVAL,
                format!("the inner map has {what} {given}, and the template's is {wanted}"),
            )),
        }
    }

    /// The first difference that counts: its name, the other's value, ours.
    ///
    /// `map_extra`, the node and BTF are not compared: what of them a program relies on is in
    /// the special fields of the value.
    fn differs(&self, other: &Self) -> Option<(&'static str, String, String)> {
        if self.map_type != other.map_type {
            return Some((
                "map_type",
                other.map_type.to_string(),
                self.map_type.to_string(),
            ));
        }
        let flags = |meta: &Self| meta.map_flags.bits();
        // `array_map_meta_equal`: programs index the template's number of entries, unless its
        // flag says that they look.
        let counted = self.map_type == MapType::ARRAY
            && !self.offloaded
            && !self.map_flags.contains(MapFlags::INNER_MAP);
        let max_entries = |meta: &Self| if counted { meta.max_entries } else { 0 };
        [
            ("key_size", self.key_size, other.key_size),
            ("value_size", self.value_size, other.value_size),
            ("map_flags", flags(self), flags(other)),
            ("max_entries", max_entries(self), max_entries(other)),
        ]
        .into_iter()
        .find(|(_, ours, theirs)| ours != theirs)
        .map(|(what, ours, theirs)| (what, theirs.to_string(), ours.to_string()))
        .or_else(|| {
            // `btf_record_equal`.
            let fields = |meta: &Self| match &meta.record {
                Some(record) => format!("{record:?}"),
                None => "none".to_owned(),
            };
            (self.record != other.record).then(|| ("special fields", fields(other), fields(self)))
        })
    }
}

/// A map of one program alone is no inner map, which any program could reach: 524, whatever
/// else differs from the template. Seen on 6.18, which has such maps first.
fn check_not_exclusive(map: &Map) -> Result<()> {
    match map.read_mostly.exclusive {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Errno::ENOTSUPP,
            "the map was created with excl_prog_hash, and such maps cannot be inner maps",
        )),
    }
}

/// Whether the ops of a type have `map_meta_equal`.
fn has_meta_equal(map_type: MapType) -> bool {
    !matches!(
        map_type,
        MapType::PROG_ARRAY
            | MapType::CGROUP_STORAGE
            | MapType::PERCPU_CGROUP_STORAGE
            | MapType::STRUCT_OPS
    )
}

/// The side of a map's storage that knows of inner maps.
pub(crate) trait InnerMaps: Send + Sync {
    /// What all inner maps have in common.
    fn template(&self) -> &MapMeta;

    /// What is checked before the descriptor is looked at.
    fn check_update(&self, key: &[u8], flags: u64) -> Result<()>;

    /// Stores a reference to a map that the template admits.
    fn store(&self, key: &[u8], inner: Arc<Map>, flags: u64) -> Result<()>;

    /// `map_lookup_elem`, as a program calls it: another reference to the inner map.
    fn inner(&self, key: &[u8]) -> Result<Arc<Map>>;
}

/// `bpf_fd_array_map_update_elem` and `bpf_fd_htab_map_update_elem`: `resolve` turns a
/// descriptor into its map.
pub(crate) fn update(
    maps: &dyn InnerMaps,
    key: &[u8],
    value: &[u8],
    flags: u64,
    resolve: impl FnOnce(i32) -> Result<Arc<Map>>,
) -> Result<()> {
    maps.check_update(key, flags)?;
    let mut raw = [0; VALUE_BYTES];
    raw.copy_from_slice(&value[..VALUE_BYTES]);
    let inner = resolve(i32::from_ne_bytes(raw))?;
    maps.template().admit(&inner)?;
    maps.store(key, inner, flags)
}

/// `bpf_map_fd_sys_lookup_elem`: what user space reads is the inner map's id.
fn put_id(inner: &Map, value: &mut [u8]) {
    value.copy_from_slice(&inner.id().to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: MapMeta = MapMeta {
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 16,
        map_flags: MapFlags::NO_PREALLOC,
        record: None,
        offloaded: false,
    };

    fn difference(template: &MapMeta, other: &MapMeta) -> Option<&'static str> {
        template.differs(other).map(|(what, ..)| what)
    }

    #[test]
    fn every_field_that_the_kernel_compares() {
        assert_eq!(difference(&META, &META), None);
        let others = [
            (
                "map_type",
                MapMeta {
                    map_type: MapType::LRU_HASH,
                    ..META
                },
            ),
            (
                "key_size",
                MapMeta {
                    key_size: 5,
                    ..META
                },
            ),
            (
                "value_size",
                MapMeta {
                    value_size: 7,
                    ..META
                },
            ),
            (
                "map_flags",
                MapMeta {
                    map_flags: MapFlags::empty(),
                    ..META
                },
            ),
        ];
        for (what, other) in others {
            assert_eq!(difference(&META, &other), Some(what));
            assert_eq!(difference(&other, &META), Some(what));
        }
        // Where the map is does not count: `bpf_map_offload_ops` have `bpf_map_meta_equal` too.
        let offloaded = MapMeta {
            offloaded: true,
            ..META
        };
        assert_eq!(difference(&META, &offloaded), None);
    }

    #[test]
    fn max_entries_count_for_host_arrays_alone() {
        let larger = |meta: &MapMeta| MapMeta {
            max_entries: meta.max_entries + 1,
            ..meta.clone()
        };
        for raw in 1..=MapType::ARENA.0 {
            let meta = MapMeta {
                map_type: MapType(raw),
                ..META
            };
            let counts = meta.map_type == MapType::ARRAY;
            let expected = counts.then_some("max_entries");
            assert_eq!(difference(&meta, &larger(&meta)), expected, "{raw}");
            let offloaded = MapMeta {
                offloaded: true,
                ..meta
            };
            assert_eq!(difference(&offloaded, &larger(&offloaded)), None, "{raw}");
        }
        let array = MapMeta {
            map_type: MapType::ARRAY,
            map_flags: MapFlags::INNER_MAP,
            ..META
        };
        assert_eq!(difference(&array, &larger(&array)), None);
        let plain = MapMeta {
            map_flags: MapFlags::empty(),
            ..array.clone()
        };
        assert_eq!(difference(&array, &plain), Some("map_flags"));
    }

    #[test]
    fn types_without_meta_equal() {
        let without: Vec<u32> = (1..=MapType::ARENA.0)
            .filter(|&raw| !has_meta_equal(MapType(raw)))
            .collect();
        // prog_array, cgroup_storage, percpu_cgroup_storage, struct_ops.
        assert_eq!(without, [3, 19, 21, 26]);
    }
}
