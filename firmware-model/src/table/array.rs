//! ARRAY and PERCPU_ARRAY: the values one after the other. All entries exist from the start.

use super::layout::{Geometry, MapSpec, ValueShape};
use super::{ValueWrite, exists, write_value};
use crate::access::{Access, Part};
use offmap_abi::{DevAddr, Status};

/// An array at its place in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArrayTable {
    entries: DevAddr,
    stride: u64,
    max_entries: u32,
    pub(crate) value: ValueShape,
}

impl ArrayTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            entries: base.offset(geometry.entries),
            stride: geometry.entry_bytes,
            max_entries: spec.max_entries,
            value: geometry.value,
        }
    }

    /// Number of entries, all of which exist.
    pub(crate) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Calls `f` with the address of the value at `index`, which is below `max_entries`.
    pub(crate) fn with_index<A: Access, R>(
        &self,
        access: &mut A,
        index: u32,
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let at = self.value_at(index);
        access.locked(Part::Entry(at), |access| f(access, at))
    }

    /// Calls `f` with the address of the key's value; with `held`, `NotFound` where that is the handle
    /// of no map.
    #[inline(always)]
    pub(crate) fn with_value<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        held: bool,
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        let at = self.find(key)?;
        access.consistent(Part::Entry(at), |access| {
            if held && self.holds_none(access, at)? {
                return Err(Status::NotFound);
            }
            Ok(f(access, at))
        })
    }

    /// Calls `f` once with that address, or why there is none.
    pub(crate) fn visit<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        held: bool,
        f: impl FnOnce(&mut A, Result<DevAddr, Status>) -> R,
    ) -> Result<R, Status> {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(status) => return Ok(f(access, Err(status))),
        };
        access.locked(Part::Entry(at), |access| {
            let found = match held && self.holds_none(access, at)? {
                true => Err(Status::NotFound),
                false => Ok(at),
            };
            Ok(f(access, found))
        })
    }

    /// As [`Self::with_index`], by key.
    pub(crate) fn modify<A: Access, R>(
        &self,
        access: &mut A,
        key: &[u8],
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let at = self.find(key)?;
        access.locked(Part::Entry(at), |access| f(access, at))
    }

    #[inline(always)]
    fn value_at(&self, index: u32) -> DevAddr {
        self.entries.offset(u64::from(index) * self.stride)
    }

    /// The index that a key is; `None` when it is no four bytes.
    #[inline(always)]
    fn index(key: &[u8]) -> Option<u32> {
        key.try_into().ok().map(u32::from_le_bytes)
    }

    /// Address of the key's value.
    #[inline(always)]
    pub(crate) fn find(&self, key: &[u8]) -> Result<DevAddr, Status> {
        match Self::index(key) {
            Some(index) if index < self.max_entries => Ok(self.value_at(index)),
            Some(_) => Err(Status::OutOfRange),
            None => Err(Status::InvalidLength),
        }
    }

    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        let at = self.find(key)?;
        exists(flags)?;
        access.locked(Part::Entry(at), |access| {
            write_value(access, at, &self.value, value, false)
        })
    }

    /// Whether the value at `index` is the handle of no map.
    pub(crate) fn is_empty(&self, access: &mut impl Access, index: u32) -> Result<bool, Status> {
        self.holds_none(access, self.value_at(index))
    }

    fn holds_none(&self, access: &mut impl Access, at: DevAddr) -> Result<bool, Status> {
        Ok(access.read::<4>(at)? == [0; 4])
    }

    /// Empties an entry of an array of maps.
    pub(crate) fn clear(&self, access: &mut impl Access, key: &[u8]) -> Result<(), Status> {
        let at = self.find(key)?;
        access.locked(Part::Entry(at), |access| {
            if self.holds_none(access, at)? {
                return Err(Status::NotFound);
            }
            let stored = self.value.stored as usize;
            Ok(access.with_bytes_mut(at, stored, |bytes| bytes.fill(0))?)
        })
    }

    /// Index after `key`; 0 when `key` is absent or out of range.
    pub(crate) fn next(&self, key: Option<&[u8]>) -> Result<u32, Status> {
        match key.and_then(Self::index) {
            Some(index) if index == self.max_entries - 1 => Err(Status::NotFound),
            Some(index) if index < self.max_entries => Ok(index + 1),
            _ => Ok(0),
        }
    }
}
