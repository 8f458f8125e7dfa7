//! QUEUE and STACK: a ring of values. There are no keys.
//!
//! The state line, after the map's description: slot of the oldest value (4 bytes), number of
//! values (4). The values follow, `round_up(value_size, 8)` bytes each; they stand in the slots
//! from the oldest one's on, round and round.

use super::layout::{DESCRIPTION_BYTES, Geometry, MapKind, MapSpec, ValueShape};
use super::{ValueWrite, write_value};
use crate::access::{Access, Part};
use offmap_abi::submission::{UPDATE_ANY, UPDATE_EXIST};
use offmap_abi::{DevAddr, Status};

/// A queue or stack at its place in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueTable {
    state: DevAddr,
    values: DevAddr,
    stride: u64,
    max_entries: u32,
    /// Whether the newest value leaves first.
    is_stack: bool,
    pub(crate) value: ValueShape,
}

/// The state line. Both fit the ring.
#[derive(Clone, Copy, Debug)]
struct State {
    oldest: u32,
    count: u32,
}

impl QueueTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            state: base.offset(DESCRIPTION_BYTES),
            values: base.offset(geometry.entries),
            stride: geometry.entry_bytes,
            max_entries: spec.max_entries,
            is_stack: spec.kind == MapKind::Stack,
            value: geometry.value,
        }
    }

    /// Whatever the host wrote there, what is used fits the ring.
    fn load(&self, access: &mut impl Access) -> Result<State, Status> {
        let line: [u8; 8] = access.read(self.state)?;
        let [oldest, count] = [0, 4]
            .map(|at| u32::from_le_bytes([line[at], line[at + 1], line[at + 2], line[at + 3]]));
        if oldest >= self.max_entries || count > self.max_entries {
            return Err(Status::Internal);
        }
        Ok(State { oldest, count })
    }

    fn store(&self, access: &mut impl Access, state: State) -> Result<(), Status> {
        let word = u64::from(state.count) << 32 | u64::from(state.oldest);
        Ok(access.write_u64(self.state, word)?)
    }

    /// The slot `n` places after the oldest value.
    fn slot(&self, state: State, n: u32) -> u32 {
        ((u64::from(state.oldest) + u64::from(n)) % u64::from(self.max_entries)) as u32
    }

    fn value_at(&self, slot: u32) -> DevAddr {
        self.values.offset(u64::from(slot) * self.stride)
    }

    /// All of the ring.
    #[inline(always)]
    fn part(&self) -> Part {
        Part::Table(self.state)
    }

    /// Calls `f` with the address of the value that would leave next.
    pub(crate) fn peek<A: Access, R>(
        &self,
        access: &mut A,
        mut f: impl FnMut(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        access.consistent(self.part(), |access| self.look(access, &mut f))
    }

    #[inline(always)]
    fn look<A: Access, R>(
        &self,
        access: &mut A,
        f: impl FnOnce(&mut A, DevAddr) -> R,
    ) -> Result<R, Status> {
        let state = self.load(access)?;
        let last = state.count.checked_sub(1).ok_or(Status::NotFound)?;
        let slot = if self.is_stack {
            self.slot(state, last)
        } else {
            state.oldest
        };
        Ok(f(access, self.value_at(slot)))
    }

    /// As [`Self::peek`], and the value leaves if `f` succeeds.
    pub(crate) fn pop<A: Access, R>(
        &self,
        access: &mut A,
        f: impl FnOnce(&mut A, DevAddr) -> Result<R, Status>,
    ) -> Result<R, Status> {
        access.locked(self.part(), |access| {
            let popped = self.look(access, f)??;
            let mut state = self.load(access)?;
            state.count = state.count.checked_sub(1).ok_or(Status::Internal)?;
            if !self.is_stack {
                state.oldest = self.slot(state, 1);
            }
            self.store(access, state)?;
            Ok(popped)
        })
    }

    /// Appends a value. In a full ring [`UPDATE_EXIST`] overwrites the oldest one.
    pub(crate) fn push(
        &self,
        access: &mut impl Access,
        value: ValueWrite<'_>,
        flags: u32,
    ) -> Result<(), Status> {
        if !matches!(flags, UPDATE_ANY | UPDATE_EXIST) {
            return Err(Status::InvalidField);
        }
        access.locked(self.part(), |access| {
            let mut state = self.load(access)?;
            let full = state.count == self.max_entries;
            if full && flags != UPDATE_EXIST {
                return Err(Status::Full);
            }
            let at = self.value_at(self.slot(state, state.count));
            write_value(access, at, &self.value, value, true)?;
            if full {
                state.oldest = self.slot(state, 1);
            } else {
                state.count += 1;
            }
            self.store(access, state)
        })
    }

    /// Values in the ring.
    pub(crate) fn entries(&self, access: &mut impl Access) -> Result<u32, Status> {
        Ok(self.load(access)?.count)
    }
}
