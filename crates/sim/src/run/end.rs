//! The end of a run: everything in flight ends, everything is read once more, and nothing is left.

use super::{Outcome, Run};
use crate::check::Check;
use crate::event::Event;
use crate::rng::Rng;
use crate::spec::Kind;
use offmap_abi::{MapType, RequestId};
use offmap_driver::{DriverError, MapParams};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Polls of a host until its commands are done, at most.
const DRAIN_POLLS: usize = 4000;
/// Simulated time that passes between them now and then, so that stalls end.
const DRAIN_NS: u64 = 20_000;

impl Run {
    /// Device memory that is free, and its largest piece, when there is no map. `None`: the
    /// device does not answer.
    pub(super) fn free_memory(&mut self) -> Option<(u64, u64)> {
        let params = MapParams {
            map_type: MapType::Array.0,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            ..MapParams::default()
        };
        let map = self.driver().create_map(&params).ok()?;
        let info = self.driver().query_map(&map).ok()?;
        self.driver().free_map(&map).ok()?;
        Some((info.free_bytes.get(), info.free_largest.get()))
    }

    /// After the last action: everything ends, and is looked at.
    pub(super) fn settle(&mut self) {
        // What follows is not to fail any more.
        self.sim.world().end_faults();
        self.take_news();
        self.sim.world().rng = Rng::new(self.outcome.digest);
        if self.sim.world().removed {
            self.end_removed();
        } else if !self.given_up {
            self.drain();
            self.read_all();
            self.free_all();
        }
    }

    /// Lets go of something of the driver's.
    pub(super) fn let_go<T>(&mut self, of: T) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(of))) {
            self.panicked(&*panic);
        }
    }

    /// Ends the run and says what it came to.
    pub(super) fn end(mut self) -> Outcome {
        self.sim.world().end_faults();
        self.maps.clear();
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            // A violation has ended the run in the middle: deletions are tried all the same.
            self.hosts[host].flights.clear();
            self.hosts[host].left.clear();
            let queue = self.hosts[host].queue.take();
            self.let_go(queue);
        }
        let stray = self.sim.world().memory.any_stray();
        if let Some(stray) = stray {
            self.violate(Check::StrayWrite, stray);
        }
        let driver = self.driver.take();
        self.let_go(driver);
        self.drop_rings();
        let mut world = self.sim.world();
        let left = world.memory.mapped();
        if left > 0 {
            world.violate(
                Check::Mappings,
                format!("{left} DMA mappings are left when the driver is gone"),
            );
        }
        let world = &mut *world;
        world.memory.dismantle(&mut world.pool);
        self.outcome.injected = std::mem::take(&mut world.injected);
        self.outcome.violation = world.violation.take();
        self.outcome.ticks = world.ticks;
        self.outcome.mutated = world.memory.mutated;
        for (event, count) in [
            (Event::Park, world.parks),
            (Event::Kick, world.kicks),
            (Event::Sleep, world.sleeps),
        ] {
            if count > 0 {
                self.outcome.events.insert(event.name(), count);
            }
        }
        self.outcome
    }

    /// Everything in flight ends.
    fn drain(&mut self) {
        self.sim.world().memory.draining = true;
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            self.commit();
            for polls in 0..DRAIN_POLLS {
                let in_flight = self.hosts[host].flights.len() + self.hosts[host].left.len();
                if in_flight == 0 || !self.poll_one() {
                    break;
                }
                if polls % 4 == 3 {
                    self.sim.world().pass(DRAIN_NS);
                }
            }
            let left = self.hosts[host].flights.len() + self.hosts[host].left.len();
            if left == 0 {
                continue;
            }
            if self.disturbed() {
                self.recover();
            } else if !self.give_up(u64::MAX) {
                let (all, lost) = (self.requests(), self.lost());
                let of: Vec<String> = all
                    .iter()
                    .filter(|request| !lost.contains(request))
                    .map(|request| RequestId(*request).to_string())
                    .collect();
                self.violate(
                    Check::Ended,
                    format!(
                        "{left} commands in flight never ended, and no fault took these: {}",
                        of.join(", ")
                    ),
                );
            }
        }
        self.sim.world().memory.draining = false;
        // Something happened and nobody has noticed yet.
        if self.broken_by_fault() {
            self.recover();
        }
        self.health();
    }

    /// Every key of every map is looked up, or every value of a queue taken out: what was
    /// acknowledged is there.
    fn read_all(&mut self) {
        self.host = 0;
        self.sim.world().run_on(0);
        for slot in 0..self.maps.len() {
            if self.stopped() || self.maps[slot].is_none() || !self.queue() {
                continue;
            }
            let Some(map) = &self.maps[slot] else {
                continue;
            };
            if map.is_line() {
                while let Some(crate::spec::Answer::Value(_)) =
                    self.call_for(slot, Kind::LookupDelete, 0, 0)
                {}
                continue;
            }
            for key in 0..map.keys.len() as u8 {
                self.call_for(slot, Kind::Lookup, key, 0);
            }
            self.dump(slot);
        }
    }

    /// Maps are judged and freed, and the device's memory is as it was.
    fn free_all(&mut self) {
        self.free_ring();
        self.rings = Default::default();
        for slot in 0..self.maps.len() {
            self.free_map(slot);
        }
        if self.stopped() || self.disturbed() {
            return;
        }
        let now = self.free_memory();
        if now != self.memory_at_start {
            self.violate(
                Check::DeviceMemory,
                format!(
                    "device memory is not as it was before the first map: free and largest piece \
                 were {:?}, and are {now:?}",
                    self.memory_at_start
                ),
            );
        }
    }

    /// The device is gone: every call says so, within its bound.
    fn end_removed(&mut self) {
        let well = self.sim.world().removed_well && !self.disturbed;
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            if let Some(queue) = &mut self.hosts[host].queue {
                let began = self.sim.world().now_ns;
                let ended = queue.nop();
                self.trace(|| format!("nop: {ended:?}"));
                if ended.is_ok() {
                    self.violate(
                        Check::Removal,
                        "a call on a device that was removed succeeded",
                    );
                }
                // A queue that is full has not asked the device, and one that broke before says that.
                let says_so = matches!(
                    ended,
                    Ok(_) | Err(DriverError::DeviceGone { .. } | DriverError::Full { .. })
                );
                if !says_so && well && !self.queue_is_excused() {
                    self.violate(
                        Check::Removal,
                        format!("a call on a device that was removed ended with {ended:?}"),
                    );
                }
                self.in_bound("a call on a device that was removed", began);
            }
            self.lose_queue();
        }
        if self.driver().check_health().is_ok() {
            self.violate(
                Check::Removal,
                "a device that was removed passes for healthy",
            );
        }
        if self.driver().reset().is_ok() {
            self.violate(
                Check::Removal,
                "a device that was removed came back from a reset",
            );
        }
        for slot in 0..self.maps.len() {
            self.close_map(slot);
        }
    }
}
