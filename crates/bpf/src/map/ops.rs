//! Ops by map type: `bpf_map_types[]`, and what a map's storage answers.

use super::host_array::HostArray;
use super::host_hash::{HashOrder, HostHash};
use crate::caller::Caller;
use crate::device::{BatchOutcome, OffloadCommands};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::{MapCreateAttr, MapFlags, MapType, NUMA_NO_NODE};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// What the token of a batch walk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    /// A bucket, `u32` in native byte order (`__htab_map_lookup_and_delete_batch`).
    Bucket,
    /// The last key returned (`generic_map_lookup_batch`).
    LastKey,
}

impl Token {
    /// Its size in bytes, in a map whose keys have `key_size`.
    pub(crate) const fn bytes(self, key_size: u32) -> u32 {
        match self {
            Self::Bucket => 4,
            Self::LastKey => key_size,
        }
    }
}

pub(crate) const NO_SUCH_OPERATION: Error =
    Error::new(Errno::ENOTSUPP, "maps of this type have no such operation");

/// What stores a map's elements: the part of `struct bpf_map_ops` that commands reach.
///
/// The callers have checked buffer lengths, the file's mode, frozen, and that update flags are
/// at most `BPF_EXIST` and lookup flags 0.
pub(crate) trait MapOps: Send + Sync {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()>;
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()>;
    fn delete(&self, key: &[u8]) -> Result<()>;
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()>;

    fn lookup_and_delete(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    /// Whether lookup batches refuse `batch.flags`, which the generic ones ignore.
    fn checks_batch_flags(&self) -> bool {
        false
    }

    /// As [`crate::device::OffloadedMap::walk_batch`].
    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome;

    /// `generic_map_update_batch`; `sizes` are those of a key and of a value.
    fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: u64,
        sizes: (usize, usize),
    ) -> BatchOutcome {
        each(count, |i| {
            let (key, value) = (nth(keys, sizes.0, i), nth(values, sizes.1, i));
            self.update(key, value, flags)
        })
    }

    /// `generic_map_delete_batch`.
    fn delete_batch(&self, keys: &[u8], count: u32, key_size: usize) -> BatchOutcome {
        each(count, |i| self.delete(nth(keys, key_size, i)))
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
        sizes: (usize, usize),
    ) -> Result<()> {
        for (i, result) in results.iter_mut().enumerate() {
            let (key, value) = (nth(keys, sizes.0, i), nth_mut(values, sizes.1, i));
            *result = self.lookup(key, value, 0).map_err(|error| error.errno());
        }
        Ok(())
    }

    /// The last reference to the map is gone; called once, from the worker. Host storage goes
    /// with its memory.
    fn release(&self) {}
}

/// Item `index` of an array of items of `size` bytes. The size may be 0: queues and bloom
/// filters have no keys.
#[inline]
pub(crate) fn nth(bytes: &[u8], size: usize, index: usize) -> &[u8] {
    &bytes[index * size..][..size]
}

/// As [`nth`].
#[inline]
pub(crate) fn nth_mut(bytes: &mut [u8], size: usize, index: usize) -> &mut [u8] {
    &mut bytes[index * size..][..size]
}

fn each(count: u32, mut operation: impl FnMut(usize) -> Result<()>) -> BatchOutcome {
    for done in 0..count {
        if let Err(error) = operation(done as usize) {
            return BatchOutcome {
                count: done,
                result: Err(error),
            };
        }
    }
    BatchOutcome {
        count,
        result: Ok(()),
    }
}

/// What a map type's allocation knows besides the attribute.
pub(crate) struct AllocContext {
    pub(crate) possible_cpus: u32,
}

/// One row of the table of map types.
pub(crate) struct MapTypeOps {
    /// `map_alloc_check`: runs for offloaded maps too.
    pub(crate) alloc_check: fn(&MapCreateAttr, &Caller) -> Result<()>,
    /// `map_alloc` of a host map.
    pub(crate) alloc: fn(&MapCreateAttr, &AllocContext) -> Result<Arc<dyn MapOps>>,
    /// Whether creating one needs `bpf_capable()` whatever the sysctl says.
    pub(crate) needs_cap_bpf: bool,
    /// Which of these commands the type has; on a device none are added to them.
    pub(crate) commands: OffloadCommands,
    pub(crate) token: Token,
}

/// The row of a type, or `None` where this kernel is built without the type.
pub(crate) fn map_type_ops(map_type: MapType) -> Option<&'static MapTypeOps> {
    static HASH: MapTypeOps = MapTypeOps {
        alloc_check: hash_alloc_check,
        alloc: hash_alloc,
        needs_cap_bpf: false,
        commands: OffloadCommands::all(),
        token: Token::Bucket,
    };
    static ARRAY: MapTypeOps = MapTypeOps {
        alloc_check: array_alloc_check,
        alloc: array_alloc,
        needs_cap_bpf: false,
        commands: OffloadCommands::LOOKUP_BATCH.union(OffloadCommands::UPDATE_BATCH),
        token: Token::LastKey,
    };
    match map_type {
        MapType::HASH | MapType::PERCPU_HASH => Some(&HASH),
        MapType::ARRAY | MapType::PERCPU_ARRAY => Some(&ARRAY),
        _ => None,
    }
}

/// `KMALLOC_MAX_SIZE` with 4 KiB pages: 4 MiB.
const KMALLOC_MAX_SIZE: u64 = 4 << 20;
/// `sizeof(struct htab_elem)` on 64-bit.
const HTAB_ELEM_BYTES: u64 = 48;
/// `PCPU_MIN_UNIT_SIZE`: 32 KiB.
const PCPU_MIN_UNIT_SIZE: u64 = 32 << 10;
/// `sizeof(struct bucket)` on 64-bit.
const BUCKET_BYTES: u64 = 16;

const ACCESS_FLAGS: MapFlags = MapFlags::RDONLY
    .union(MapFlags::WRONLY)
    .union(MapFlags::RDONLY_PROG)
    .union(MapFlags::WRONLY_PROG);

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, reason)
}

fn too_big(reason: String) -> Error {
    Error::because(Errno::E2BIG, reason)
}

fn check_flags(attr: &MapCreateAttr, allowed: MapFlags) -> Result<()> {
    let map_type = MapType(attr.map_type);
    let refused = attr.flags() - allowed;
    if !refused.is_empty() {
        let names: Vec<_> = refused.iter_names().map(|(name, _)| name).collect();
        let names = match names.is_empty() {
            true => "no flag that is known".to_owned(),
            false => names.join(", "),
        };
        return Err(invalid(format!(
            "map_flags {:#x}: a {map_type} map does not take {:#x} ({names})",
            attr.map_flags,
            refused.bits(),
        )));
    }
    let both = MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG;
    if attr.flags().contains(both) {
        return Err(invalid(format!(
            "map_flags {:#x}: RDONLY_PROG and WRONLY_PROG exclude each other",
            attr.map_flags
        )));
    }
    Ok(())
}

fn check_percpu_node(attr: &MapCreateAttr) -> Result<()> {
    if MapType(attr.map_type).is_percpu() && attr.numa_node() != NUMA_NO_NODE {
        return Err(invalid(format!(
            "numa_node {}: a {} map has memory on every CPU's node and takes none",
            attr.numa_node,
            MapType(attr.map_type)
        )));
    }
    Ok(())
}

fn check_percpu_value(attr: &MapCreateAttr) -> Result<()> {
    let slot = u64::from(attr.value_size).next_multiple_of(8);
    if MapType(attr.map_type).is_percpu() && slot > PCPU_MIN_UNIT_SIZE {
        return Err(too_big(format!(
            "value_size {}: a per-CPU value has at most {PCPU_MIN_UNIT_SIZE} bytes",
            attr.value_size
        )));
    }
    Ok(())
}

/// `htab_map_alloc_check`.
fn hash_alloc_check(attr: &MapCreateAttr, caller: &Caller) -> Result<()> {
    if attr.flags().contains(MapFlags::ZERO_SEED) && !caller.sys_admin() {
        return Err(Error::new(
            Errno::EPERM,
            "map_flags: ZERO_SEED makes collisions predictable and needs CAP_SYS_ADMIN",
        ));
    }
    check_flags(
        attr,
        MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE | MapFlags::ZERO_SEED | ACCESS_FLAGS,
    )?;
    check_percpu_node(attr)?;
    for (name, size) in [
        ("max_entries", attr.max_entries),
        ("key_size", attr.key_size),
        ("value_size", attr.value_size),
    ] {
        if size == 0 {
            return Err(invalid(format!(
                "{name} 0: a {} map needs at least 1",
                MapType(attr.map_type)
            )));
        }
    }
    let element = u64::from(attr.key_size) + u64::from(attr.value_size);
    let limit = KMALLOC_MAX_SIZE - HTAB_ELEM_BYTES;
    if element >= limit {
        return Err(too_big(format!(
            "key_size {} and value_size {}: together {element} bytes, and an element has fewer \
             than {limit}",
            attr.key_size, attr.value_size
        )));
    }
    check_percpu_value(attr)
}

/// `htab_map_alloc`.
fn hash_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    let n_buckets = u64::from(attr.max_entries).next_power_of_two();
    if n_buckets > u64::from(u32::MAX) / BUCKET_BYTES {
        return Err(too_big(format!(
            "max_entries {}: a hash map has at most {} buckets",
            attr.max_entries,
            1 << 27
        )));
    }
    let order = if attr.flags().contains(MapFlags::ZERO_SEED) {
        HashOrder::Kernel {
            replaces: !MapType(attr.map_type).is_percpu(),
        }
    } else {
        HashOrder::Seeded(std::hash::RandomState::new().build_hasher().finish())
    };
    Ok(Arc::new(HostHash::new(
        attr.key_size,
        attr.user_value_bytes(context.possible_cpus),
        attr.max_entries,
        order,
    )?))
}

/// `array_map_alloc_check`.
fn array_alloc_check(attr: &MapCreateAttr, _caller: &Caller) -> Result<()> {
    let map_type = MapType(attr.map_type);
    if attr.key_size != 4 {
        return Err(invalid(format!(
            "key_size {}: an array's key is an index of 4 bytes",
            attr.key_size
        )));
    }
    for (name, size) in [
        ("max_entries", attr.max_entries),
        ("value_size", attr.value_size),
    ] {
        if size == 0 {
            return Err(invalid(format!(
                "{name} 0: a {map_type} map needs at least 1"
            )));
        }
    }
    let mut allowed = MapFlags::NUMA_NODE | ACCESS_FLAGS;
    if map_type == MapType::ARRAY {
        allowed |= MapFlags::MMAPABLE | MapFlags::INNER_MAP;
    }
    check_flags(attr, allowed)?;
    check_percpu_node(attr)?;
    if attr.value_size > i32::MAX as u32 {
        return Err(too_big(format!(
            "value_size {}: a value has at most {} bytes",
            attr.value_size,
            i32::MAX
        )));
    }
    check_percpu_value(attr)
}

/// `array_map_alloc`.
fn array_alloc(attr: &MapCreateAttr, context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    Ok(Arc::new(HostArray::new(
        attr.user_value_bytes(context.possible_cpus),
        attr.max_entries,
    )?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A map without keys, as bloom filters are: each update adds a value.
    #[derive(Default)]
    struct Keyless(Mutex<Vec<u8>>);

    impl MapOps for Keyless {
        fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
            assert!(key.is_empty());
            value.fill(7);
            Ok(())
        }

        fn update(&self, key: &[u8], value: &[u8], _flags: u64) -> Result<()> {
            assert!(key.is_empty());
            let mut all = self.0.lock().unwrap();
            if all.len() == 4 {
                return Err(Error::new(Errno::E2BIG, "full"));
            }
            all.extend_from_slice(value);
            Ok(())
        }

        fn delete(&self, key: &[u8]) -> Result<()> {
            assert!(key.is_empty());
            let popped = self.0.lock().unwrap().pop();
            popped.map(drop).ok_or(Error::new(Errno::ENOENT, "empty"))
        }

        fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
            Err(NO_SUCH_OPERATION)
        }

        fn walk_batch(
            &self,
            _in_batch: Option<&[u8]>,
            _out_batch: &mut [u8],
            _keys: &mut [u8],
            _values: &mut [u8],
            _count: u32,
            _delete: bool,
        ) -> BatchOutcome {
            BatchOutcome::failed(NO_SUCH_OPERATION)
        }
    }

    #[test]
    fn batches_of_a_map_without_keys() {
        let map = Keyless::default();
        let added = map.update_batch(&[], &[1, 2, 3, 4, 5, 6], 3, 0, (0, 2));
        assert_eq!(added.count, 2);
        assert_eq!(added.result.unwrap_err().errno(), Errno::E2BIG);
        assert_eq!(*map.0.lock().unwrap(), [1, 2, 3, 4]);
        let mut values = [0; 4];
        let mut results = [Err(Errno::EIO); 2];
        map.lookup_many(&[], &mut values, &mut results, (0, 2))
            .unwrap();
        assert_eq!((values, results), ([7; 4], [Ok(()); 2]));
        let removed = map.delete_batch(&[], 5, 0);
        assert_eq!(removed.count, 4);
        assert_eq!(removed.result.unwrap_err().errno(), Errno::ENOENT);
    }
}
