//! Ring buffers, of which the simulation has the host memory (rule R4): engines write to it, and the
//! host has it back when the map is freed. Nobody consumes records here.

use super::Run;
use crate::check::Check;
use crate::event::Event;
use crate::function::SimFunction;
use crate::rng::{Rng, mix};
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ringbuf::memory_bytes;
use offmap_abi::{MapHandle, MapType, Status};
use offmap_driver::{DeviceMap, DmaRegion, DriverError, MapParams};
use std::sync::Arc;

/// Bytes of a data area: the least there is, so that it is full now and then.
const DATA_BYTES: u32 = 4096;
/// After one action of so many something happens to a ring buffer.
const EVERY: u64 = 6;
/// Bytes of a record, below that.
const RECORD_BYTES: u64 = 300;

/// A ring buffer, and its memory.
type Ring = (DeviceMap, Arc<DmaRegion<SimFunction>>);

/// The ring buffers of a run.
#[derive(Default)]
pub(super) struct Rings {
    /// Whether there are any.
    wanted: bool,
    live: Option<Ring>,
    /// One that is freed, whose memory somebody reads still.
    freed: Option<Ring>,
}

impl Rings {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }
}

impl Run {
    /// What happens to ring buffers after an action. All of it is drawn apart from the rest.
    pub(super) fn after_action(&mut self, seed: u64) {
        let mut rng = Rng::new(mix(seed ^ 0x7269_6e67));
        if !self.rings.wanted || !rng.one_in(EVERY) || self.stopped() {
            return;
        }
        match (&self.rings.live, rng.below(16)) {
            (None, 0..8) => self.make_ring(),
            (Some(_), 0) => self.free_ring(),
            (_, 1) => self.rings.freed = None,
            (live, _) => {
                let of = |ring: &Ring| ring.0.handle();
                let live = live.as_ref().map(of);
                let freed = self.rings.freed.as_ref().map(of);
                let data = vec![0x5a; rng.below(RECORD_BYTES) as usize];
                for map in live.into_iter().chain(freed) {
                    self.output(map, &data, Some(map) == live);
                }
            }
        }
    }

    fn make_ring(&mut self) {
        let params = MapParams {
            map_type: MapType::Ringbuf.0,
            max_entries: DATA_BYTES,
            // An interrupt of the ring's would wake hosts that must be woken by their own.
            vector: NO_VECTOR,
            ..MapParams::default()
        };
        let bytes = memory_bytes(DATA_BYTES.into()) as usize;
        let began = self.now_ns();
        let made = self.driver().create_map_with_memory(&params, bytes, None);
        match made {
            Ok(ring) => {
                self.in_bound("MAP_CREATE", began);
                self.trace(|| format!("a ring buffer: {}", ring.0.handle()));
                self.rings.live = Some(ring);
            }
            Err(e) => {
                if !self.refused_for_memory(&e) {
                    self.admin_failed("MAP_CREATE", &e);
                }
            }
        }
    }

    /// An engine writes a record.
    fn output(&mut self, map: MapHandle, data: &[u8], is_live: bool) {
        let done = {
            let mut world = self.sim.world();
            let stalled = world.now_ns < world.stalled_until;
            // A reset may have befallen it, and be carried out in its next step.
            if stalled || world.excuses.disturbed || !world.device.is_running() {
                return;
            }
            world.before_step();
            let done = world.device.engine_ringbuf_output(0, map, data, 0);
            world.learn();
            done
        };
        if done == Status::Success {
            self.count(Event::RingRecord);
        }
        let right = match done {
            Status::Success | Status::NoSpace => is_live,
            Status::InvalidMap => !is_live,
            _ => false,
        };
        if right || self.admin_may_fail() {
            return;
        }
        match is_live {
            true => self.violate(
                Check::Status,
                format!("a record for a ring buffer ended with {done}"),
            ),
            false => self.violate(
                Check::Release,
                format!("a record for a ring buffer that is freed ended with {done} (rule R4)"),
            ),
        }
    }

    /// Frees the ring buffer; somebody goes on reading its memory for a while.
    pub(super) fn free_ring(&mut self) {
        let Some((map, memory)) = self.rings.live.take() else {
            return;
        };
        self.count(Event::RingFreed);
        let began = self.now_ns();
        let kept = Arc::clone(&memory);
        match self.driver().free_map_with_memory(&map, memory) {
            Ok(()) => {
                self.in_bound("MAP_FREE", began);
                self.rings.freed = Some((map, kept));
            }
            Err(e) => {
                drop(kept);
                self.admin_failed("MAP_FREE", &e);
            }
        }
    }

    /// The device was reset, and has forgotten its ring buffers.
    pub(super) fn forget_rings(&mut self) {
        self.rings.freed = None;
        let Some((map, memory)) = self.rings.live.take() else {
            return;
        };
        match self.driver().free_map_with_memory(&map, memory) {
            Err(DriverError::DeviceReset) => {}
            other => self.violate(
                Check::OldHandle,
                format!(
                    "freeing a ring buffer from before a reset gave {other:?}, not DeviceReset"
                ),
            ),
        }
    }

    /// The driver is gone, and the device has let go of everything.
    pub(super) fn drop_rings(&mut self) {
        let rings = std::mem::take(&mut self.rings);
        self.let_go(rings);
    }
}
