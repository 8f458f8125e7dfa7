//! Rule R4: host memory that belongs to a map is the device's from MAP_CREATE on, until the host has
//! seen the completion of the map's MAP_FREE, or a reset is complete.

use super::Memory;
use crate::mutation::Mutation;
use offmap_abi::admin::{MapAttr, MapCreateBody, MapCreated};
use offmap_abi::ringbuf::{PRODUCER_POSITION, memory_bytes};
use offmap_abi::{AdminOpcode, MapHandle, Status, Submission};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// Host memory of a map.
pub(super) struct Belonging {
    pub(super) iova: u64,
    pub(super) len: u64,
    create: Submission,
    /// `None`: the host does not know yet whether there is one.
    map: Option<MapHandle>,
}

impl Memory {
    /// The host memory that a MAP_CREATE names.
    pub(super) fn host_memory_of(&mut self, create: &Submission) -> Option<(u64, u64)> {
        if AdminOpcode(create.opcode) != AdminOpcode::MapCreate {
            return None;
        }
        let body: MapCreateBody = create.body();
        let at = offset_of!(MapAttr, host_memory) as u64;
        if u64::from(body.attr_len.get()) < at + 8 {
            return None;
        }
        let iova = self.host_word(body.attr.get() + at)?;
        let len = memory_bytes(body.max_entries.get().into());
        (iova != 0).then_some((iova, len))
    }

    /// The device learns of a map's host memory.
    pub(super) fn belongs(&mut self, create: &Submission) {
        if let Some((iova, len)) = self.host_memory_of(create) {
            self.belongings.push(Belonging {
                iova,
                len,
                create: *create,
                map: None,
            });
        }
    }

    /// The host sees the completion of a MAP_CREATE, whose payload begins there.
    pub(super) fn map_created(&mut self, create: &Submission, status: Status, payload: u64) {
        let Some(at) = self.belongings.iter().position(|b| b.create == *create) else {
            return;
        };
        let handle = self.host_word(payload + offset_of!(MapCreated, map) as u64);
        match handle {
            Some(word) if status.is_success() => {
                self.belongings[at].map = Some(MapHandle(word as u32));
            }
            // It never was.
            _ => self.let_go(at),
        }
    }

    /// The host sees that a map is freed.
    pub(super) fn map_freed(&mut self, map: MapHandle) {
        if let Some(at) = self.belongings.iter().position(|b| b.map == Some(map)) {
            let iova = self.belongings[at].iova;
            self.let_go(at);
            if self.mutation == Some(Mutation::RingWrittenLate)
                && let Some((region, at)) = self.region(iova + PRODUCER_POSITION)
            {
                let before = region.device.load_u64(at, Ordering::Relaxed);
                region.device.store_u64(at, before + 8, Ordering::Relaxed);
                self.mutated += 1;
            }
        }
    }

    /// What the device wrote until then is there; what it writes from now on is a stray write.
    fn let_go(&mut self, at: usize) {
        let Belonging { iova, len, .. } = self.belongings.swap_remove(at);
        self.keep(iova, len);
    }

    /// The device has forgotten its maps.
    pub(super) fn forget_belongings(&mut self) {
        while !self.belongings.is_empty() {
            self.let_go(0);
        }
    }

    /// Whether a map has host memory.
    pub(super) fn has_memory(&self, map: MapHandle) -> bool {
        self.belongings.iter().any(|b| b.map == Some(map))
    }
}
