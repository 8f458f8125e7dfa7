//! The end of a run: everything in flight ends, everything is read once more, and nothing is left.

use super::{Outcome, Run};
use crate::rng::Rng;
use crate::spec::Kind;
use offmap_abi::{MapType, RequestId};
use offmap_driver::MapParams;

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

    /// Ends the run and says what it came to.
    pub(super) fn end(mut self) -> Outcome {
        // What follows is not to fail any more.
        self.sim.world().end_faults();
        self.take_news();
        let removed = self.sim.world().removed;
        if self.sim.world().violation.is_none() {
            self.sim.world().rng = Rng::new(self.outcome.digest);
            if removed {
                self.end_removed();
            } else if !self.given_up {
                self.drain();
                self.read_all();
                self.free_all();
            }
        }
        self.maps.clear();
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            // A violation has ended the run in the middle: deletions are tried all the same.
            self.hosts[host].flights.clear();
            self.hosts[host].left.clear();
            self.hosts[host].queue = None;
        }
        let stray = self.sim.world().memory.any_stray();
        if let Some(stray) = stray {
            self.violate(stray);
        }
        self.driver = None;
        let mut world = self.sim.world();
        let left = world.memory.mapped();
        if left > 0 {
            world.violate(format!(
                "{left} DMA mappings are left when the driver is gone"
            ));
        }
        let world = &mut *world;
        world.memory.dismantle(&mut world.pool);
        self.outcome.injected = std::mem::take(&mut world.injected);
        self.outcome.violation = world.violation.take();
        self.outcome.ticks = world.ticks;
        self.outcome.mutated = world.memory.mutated;
        for (event, count) in [
            ("park", world.parks),
            ("kick", world.kicks),
            ("sleep", world.sleeps),
        ] {
            if count > 0 {
                self.outcome.events.insert(event, count);
            }
        }
        self.outcome
    }

    /// Everything in flight ends.
    fn drain(&mut self) {
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
                self.violate(format!(
                    "{left} commands in flight never ended, and no fault took these: {}",
                    of.join(", ")
                ));
            }
        }
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
        for slot in 0..self.maps.len() {
            self.free_map(slot);
        }
        if self.stopped() || self.disturbed() {
            return;
        }
        let now = self.free_memory();
        if now != self.memory_at_start {
            self.violate(format!(
                "device memory is not as it was before the first map: free and largest piece \
                 were {:?}, and are {now:?}",
                self.memory_at_start
            ));
        }
    }

    /// The device is gone: every call says so, within its bound.
    fn end_removed(&mut self) {
        for host in 0..self.hosts.len() {
            self.host = host;
            self.sim.world().run_on(host);
            if self.hosts[host].queue.is_some() {
                let began = self.now_ns();
                if let Some(queue) = &mut self.hosts[host].queue
                    && let Ok(status) = queue.nop()
                {
                    // One look at the ring may find what came before.
                    self.trace(|| format!("nop: {status}"));
                    self.violate("a call on a device that was removed succeeded");
                }
                self.in_bound("a call on a device that was removed", began);
            }
            self.lose_queue();
        }
        if self.driver().check_health().is_ok() {
            self.violate("a device that was removed passes for healthy");
        }
        if self.driver().reset().is_ok() {
            self.violate("a device that was removed came back from a reset");
        }
        for slot in 0..self.maps.len() {
            self.close_map(slot);
        }
    }
}
