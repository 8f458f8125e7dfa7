//! ARRAY_OF_MAPS in host memory (`kernel/bpf/arraymap.c`).

use super::cells::LazyCells;
use super::{InnerMaps, MapMeta, NEEDS_DESCRIPTORS, put_id};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::Map;
use crate::map::ops::MapOps;
use crate::uapi::BPF_ANY;
use arc_swap::ArcSwapOption;
use std::sync::Arc;

/// `sizeof(struct bpf_array)` on 64-bit, as 6.18 accounts for it.
const ARRAY_BYTES: u64 = 312;
/// `sizeof(void *)`, one for each entry.
const POINTER_BYTES: u64 = 8;

const EMPTY: Error = Error::new(
    Errno::ENOENT,
    "the entry holds no map, or the index is at or past max_entries",
);
const NOTHING_THERE: Error = Error::new(Errno::ENOENT, "the entry holds no map");
pub(super) const PAST_END: Error =
    Error::new(Errno::E2BIG, "the array index is at or past max_entries");
const ANY_ONLY: Error = Error::new(
    Errno::EINVAL,
    "flags: an update of an array of maps takes BPF_ANY alone",
);
const END: Error = Error::new(Errno::ENOENT, "the index is the array's last");

/// The index that a key is.
pub(super) fn index(key: &[u8]) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&key[..4]);
    u32::from_ne_bytes(raw)
}

/// What `bpf_fd_array_map_update_elem` looks at before the descriptor.
pub(super) fn check_update(key: &[u8], max_entries: u32, flags: u64) -> Result<()> {
    if flags != BPF_ANY {
        return Err(ANY_ONLY);
    }
    if index(key) >= max_entries {
        return Err(PAST_END);
    }
    Ok(())
}

/// `bpf_array_get_next_key`.
pub(super) fn next_index(key: Option<&[u8]>, max_entries: u32) -> Result<u32> {
    match key.map(index) {
        Some(index) if index == max_entries - 1 => Err(END),
        Some(index) if index < max_entries => Ok(index + 1),
        _ => Ok(0),
    }
}

/// `generic_map_lookup_batch`, which passes over entries that hold no map. `next` gives the
/// first index at or after its argument that may hold one, and the id there if one does.
pub(super) fn walk(
    in_batch: Option<&[u8]>,
    out_batch: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    max_entries: u32,
    mut next: impl FnMut(u32) -> Result<Option<(u32, u32)>>,
) -> BatchOutcome {
    let mut count = 0;
    let mut visited = None;
    let mut from = next_index(in_batch, max_entries);
    let mut slots = keys.chunks_exact_mut(4).zip(values.chunks_exact_mut(4));
    let mut slot = slots.next();
    let result = loop {
        let Some((key, value)) = slot else {
            break Ok(());
        };
        let at = match &from {
            Ok(at) => *at,
            Err(end) => break Err(end.clone()),
        };
        match next(at) {
            Ok(Some((index, id))) => {
                key.copy_from_slice(&index.to_ne_bytes());
                value.copy_from_slice(&id.to_ne_bytes());
                count += 1;
                visited = Some(index);
                from = next_index(Some(&index.to_ne_bytes()), max_entries);
                slot = slots.next();
            }
            Ok(None) => {
                // The token is the last key looked at, which here is the array's last.
                visited = Some(max_entries - 1);
                break Err(END);
            }
            Err(error) => break Err(error),
        }
    };
    if let (Some(last), true) = (visited, count != 0) {
        out_batch.copy_from_slice(&last.to_ne_bytes());
    }
    BatchOutcome { count, result }
}

/// An array whose entries each hold a map or none.
pub(crate) struct ArrayOfMaps {
    template: MapMeta,
    max_entries: u32,
    entries: LazyCells<ArcSwapOption<Map>>,
}

impl ArrayOfMaps {
    pub(crate) fn new(template: MapMeta, max_entries: u32) -> Self {
        Self {
            template,
            max_entries,
            entries: LazyCells::new(max_entries as usize),
        }
    }

    /// The entry, or `None` when it is empty with its neighbours, or past the end.
    #[inline]
    fn entry(&self, key: &[u8]) -> Option<&ArcSwapOption<Map>> {
        self.entries.get(index(key) as usize)
    }
}

impl InnerMaps for ArrayOfMaps {
    fn template(&self) -> &MapMeta {
        &self.template
    }

    fn check_update(&self, key: &[u8], flags: u64) -> Result<()> {
        check_update(key, self.max_entries, flags)
    }

    fn store(&self, key: &[u8], inner: Arc<Map>, _flags: u64) -> Result<()> {
        let entry = self.entries.get_or_alloc(index(key) as usize)?;
        drop(entry.swap(Some(inner)));
        Ok(())
    }

    fn inner(&self, key: &[u8]) -> Result<Arc<Map>> {
        let entry = self.entry(key).ok_or(EMPTY)?;
        entry.load_full().ok_or(EMPTY)
    }
}

impl MapOps for ArrayOfMaps {
    fn inner_maps(&self) -> Option<&dyn InnerMaps> {
        Some(self)
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let inner = self.entry(key).ok_or(EMPTY)?.load();
        put_id(inner.as_ref().ok_or(EMPTY)?, value);
        Ok(())
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        Err(NEEDS_DESCRIPTORS)
    }

    /// `fd_array_map_delete_elem`.
    fn delete(&self, key: &[u8]) -> Result<()> {
        if index(key) >= self.max_entries {
            return Err(PAST_END);
        }
        let entry = self.entry(key).ok_or(NOTHING_THERE)?;
        let held = entry.swap(None);
        held.map(drop).ok_or(NOTHING_THERE)
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let following = next_index(key, self.max_entries)?;
        next.copy_from_slice(&following.to_ne_bytes());
        Ok(())
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        _count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        let next = |from: u32| {
            let mut at = self.entries.skip_absent(from as usize);
            while at < self.max_entries as usize {
                let held = self.entries.get(at).map(ArcSwapOption::load);
                match held.as_ref().and_then(|held| held.as_ref()) {
                    Some(inner) => return Ok(Some((at as u32, inner.id()))),
                    None => at = self.entries.skip_absent(at + 1),
                }
            }
            Ok(None)
        };
        walk(in_batch, out_batch, keys, values, self.max_entries, next)
    }

    /// `array_map_mem_usage`.
    fn mem_usage(&self) -> u64 {
        ARRAY_BYTES + u64::from(self.max_entries) * POINTER_BYTES
    }
}
