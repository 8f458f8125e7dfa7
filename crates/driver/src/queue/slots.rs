//! The in-flight table, and the pool of buffers too large for it.

use super::stats::Kind;
use crate::DriverError;
use crate::driver::Driver;
use crate::generations::Generations;
use offmap_abi::RequestId;
use offmap_device_io::{DmaRegion, Function};
use std::sync::Arc;

/// What a slot of the in-flight table is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing.
    Free,
    /// Its command is with the device.
    InFlight,
    /// Its completion arrived and waits in the stash.
    Done,
    /// Its command outlived the deadline and its abort. Its memory may still be written; it
    /// is not used again before a reset, which ends the queue.
    Quarantined,
}

/// No large buffer.
pub(super) const NO_LARGE: u32 = u32::MAX;

/// Where the data of a command lies: in the slot's own area, or in a large buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Index in [`Larges`], or [`NO_LARGE`].
    pub(super) large: u32,
    /// First byte, in that buffer or in the queue's region.
    pub(super) at: usize,
}

/// One slot of the in-flight table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Generation of the present or the last command.
    pub(super) generation: u64,
    pub(super) state: State,
    /// What the counters need to know of the command.
    pub(super) kind: Kind,
    /// The result comes in the completion's payload.
    pub(super) inline: bool,
    /// Bytes that the command returns; 0: none.
    pub(super) room: u32,
    /// Where the result comes by DMA, and which large buffer the slot holds.
    pub(super) place: Place,
}

/// The table.
pub(super) struct Slots {
    table: Box<[Slot]>,
    /// Free slots, the last used one on top: its memory is warm.
    free: Vec<u16>,
    generations: Arc<Generations>,
    base: usize,
    slot_bytes: usize,
}

impl Slots {
    pub(super) fn new(
        depth: u32,
        base: usize,
        slot_bytes: usize,
        generations: Arc<Generations>,
    ) -> Self {
        let blank = Slot {
            // One lease for all slots: ids differ by the slot, too.
            generation: generations.lease(),
            state: State::Free,
            kind: Kind::NONE,
            inline: false,
            room: 0,
            place: Place {
                large: NO_LARGE,
                at: 0,
            },
        };
        Self {
            table: vec![blank; depth as usize].into_boxed_slice(),
            // Depth is at most 2^15, by `DriverConfig::DEPTH_MAX`.
            free: (0..depth as u16).rev().collect(),
            base,
            slot_bytes,
            generations,
        }
    }

    #[inline]
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// The slot that the next [`Slots::claim`] takes, and its area.
    #[inline]
    pub(super) fn peek(&self) -> Option<(u16, usize)> {
        let slot = *self.free.last()?;
        Some((slot, self.base + usize::from(slot) * self.slot_bytes))
    }

    /// Takes the slot that [`Slots::peek`] named, and gives the command its id.
    #[inline]
    pub(super) fn claim(
        &mut self,
        kind: Kind,
        inline: bool,
        room: u32,
        place: Place,
    ) -> Option<RequestId> {
        let slot = self.free.pop()?;
        let entry = &mut self.table[usize::from(slot)];
        entry.generation = self.generations.after(entry.generation);
        entry.state = State::InFlight;
        entry.kind = kind;
        entry.inline = inline;
        entry.room = room;
        entry.place = place;
        Some(RequestId::new(slot, entry.generation))
    }

    /// The slot of an id from the device, if there is one of that number.
    #[inline]
    pub(super) fn get(&self, slot: u16) -> Option<&Slot> {
        self.table.get(usize::from(slot))
    }

    /// A slot of our own.
    #[inline]
    pub(super) fn of(&self, slot: u16) -> &Slot {
        &self.table[usize::from(slot)]
    }

    #[inline]
    pub(super) fn set(&mut self, slot: u16, state: State) {
        self.table[usize::from(slot)].state = state;
    }

    /// Gives the slot back; returns the large buffer that it held.
    #[inline]
    pub(super) fn release(&mut self, slot: u16) -> u32 {
        let entry = &mut self.table[usize::from(slot)];
        debug_assert!(entry.state != State::Free, "slot {slot} released twice");
        entry.state = State::Free;
        self.free.push(slot);
        std::mem::replace(&mut entry.place.large, NO_LARGE)
    }

    /// Ids of the commands in flight.
    pub(super) fn in_flight(&self) -> Vec<RequestId> {
        let in_flight = |(i, s): (usize, &Slot)| {
            (s.state == State::InFlight).then(|| RequestId::new(i as u16, s.generation))
        };
        self.table
            .iter()
            .enumerate()
            .filter_map(in_flight)
            .collect()
    }
}

struct Large<F: Function> {
    region: Arc<DmaRegion<F>>,
    in_use: bool,
}

/// Buffers for commands whose data does not fit their slot's area. They are made on first
/// need and used again; there are never more than the queue is deep.
pub(super) struct Larges<F: Function> {
    list: Vec<Large<F>>,
}

impl<F: Function> Larges<F> {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            list: Vec::with_capacity(depth),
        }
    }

    /// Takes a buffer of at least `bytes`: the smallest free one that fits, or a new one.
    pub(super) fn take(&mut self, driver: &Driver<F>, bytes: usize) -> Result<u32, DriverError> {
        let fits = |l: &Large<F>| !l.in_use && l.region.buffer().len() >= bytes;
        let found = (0..self.list.len())
            .filter(|i| fits(&self.list[*i]))
            .min_by_key(|i| self.list[*i].region.buffer().len());
        let index = match found {
            Some(index) => index,
            None => {
                // Powers of two, so that commands of mixed sizes settle on few buffers.
                let region = driver
                    .region(bytes.next_power_of_two())
                    .map_err(DriverError::io("allocate a buffer for a large command"))?;
                let large = Large {
                    region: Arc::new(region),
                    in_use: false,
                };
                // A free one is too small: this one takes its place.
                match self.list.iter().position(|l| !l.in_use) {
                    Some(index) => {
                        self.list[index] = large;
                        index
                    }
                    None => {
                        self.list.push(large);
                        self.list.len() - 1
                    }
                }
            }
        };
        self.list[index].in_use = true;
        Ok(index as u32)
    }

    pub(super) fn give_back(&mut self, index: u32) {
        self.list[index as usize].in_use = false;
    }

    #[inline]
    pub(super) fn region(&self, index: u32) -> &DmaRegion<F> {
        &self.list[index as usize].region
    }

    pub(super) fn regions(&self) -> Vec<Arc<DmaRegion<F>>> {
        self.list.iter().map(|l| Arc::clone(&l.region)).collect()
    }
}
