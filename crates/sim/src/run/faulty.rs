//! What a run makes of the faults that the device was given ([`crate::excuse`]).

use super::{Flight, Run};
use crate::event::Event;
use crate::excuse::{Excuse, KnownMap, News};
use crate::linearize::Call;
use crate::spec::{Answer, GARBAGE, Kind};
use offmap_abi::{MapType, QueueId, Status};
use offmap_driver::{DeviceMap, DriverError};

/// A device that a fault has broken is reset after one action in so many.
const PATIENCE: u64 = 8;
/// A map of which nothing is known any more is made anew at one use in so many.
const CUT_USES: u64 = 3;

impl Run {
    /// Whether any call may fail.
    pub(super) fn disturbed(&self) -> bool {
        self.disturbed || self.sim.world().excuses.disturbed
    }

    /// Whether admin calls may fail.
    pub(super) fn admin_may_fail(&self) -> bool {
        self.disturbed() || self.sim.world().excuses.admin
    }

    /// Whether a fault has broken more than a queue.
    pub(super) fn broken_by_fault(&self) -> bool {
        let world = self.sim.world();
        world.excuses.wild || world.excuses.disturbed || world.excuses.admin
    }

    fn queue_id(&self) -> Option<QueueId> {
        self.hosts[self.host].queue.as_ref().map(|queue| queue.id())
    }

    pub(super) fn requests(&self) -> Vec<u64> {
        let host = &self.hosts[self.host];
        let flights = host.flights.iter().map(|f| f.token.request().0);
        flights.chain(host.left.iter().map(|l| l.request)).collect()
    }

    /// Commands of the host's queue that are never answered.
    pub(super) fn lost(&self) -> Vec<u64> {
        match self.queue_id() {
            Some(id) => self.sim.world().excuses.lost(id).collect(),
            None => Vec::new(),
        }
    }

    /// Whether commands of the host's queue may end otherwise than in the ordinary way.
    pub(super) fn queue_is_excused(&self) -> bool {
        let of = self.queue_id().map(|id| self.sim.world().excuses.queue(id));
        of.is_some_and(|of| of.any()) || !self.lost().is_empty()
    }

    /// Whether a call on the host's queue may end with this error.
    pub(super) fn may_fail(&self, error: &DriverError) -> bool {
        if self.disturbed() {
            return true;
        }
        let Some(id) = self.queue_id() else {
            return false;
        };
        let of = self.sim.world().excuses.queue(id);
        match error {
            DriverError::TimedOut {
                quarantined: false, ..
            } if of.aborted => true,
            DriverError::TimedOut { .. } => {
                let flights = self.requests();
                of.late || of.stopped || self.lost().iter().any(|r| !flights.contains(r))
            }
            DriverError::BadCompletion { queue, .. } if queue.is_admin() => self.admin_may_fail(),
            DriverError::BadCompletion { request, .. } => {
                let world = self.sim.world();
                let mut its = world.excuses.of(id, request.0);
                // Another command was run in its place.
                of.bad || its.any(|excuse| excuse == Excuse::Answer)
            }
            DriverError::QueueStopped { .. } => of.stopped,
            DriverError::QueueBroken { .. } => of.any() || !self.lost().is_empty(),
            DriverError::AdminTimeout { .. }
            | DriverError::Down
            | DriverError::Command { .. }
            | DriverError::NoQueuePair { .. } => self.admin_may_fail(),
            _ => false,
        }
    }

    /// Whether a map was refused by a fault that says that there is no memory.
    pub(super) fn refused_for_memory(&mut self, error: &DriverError) -> bool {
        let refused = matches!(
            error,
            DriverError::Refused {
                status: Status::NoMemory,
                ..
            }
        );
        let mut world = self.sim.world();
        if !refused || world.excuses.no_memory == 0 {
            return false;
        }
        world.excuses.no_memory -= 1;
        true
    }

    /// The world knows of a new map; since when nothing of it can be known.
    pub(super) fn know_map(
        &mut self,
        map: &DeviceMap,
        map_type: MapType,
        keys: &[Vec<u8>],
    ) -> Option<u64> {
        let mut world = self.sim.world();
        world.excuses.maps.push(KnownMap {
            handle: map.handle(),
            is_lpm: map_type == MapType::LpmTrie,
            keys: keys.to_vec(),
        });
        world.excuses.wild.then_some(0)
    }

    /// What is excused of a command of the host's queue: of this request, or of the one call
    /// since a moment that is not in flight.
    pub(super) fn excuses(&self, request: Option<u64>, began: u64) -> Vec<Excuse> {
        let Some(id) = self.queue_id() else {
            return Vec::new();
        };
        let world = self.sim.world();
        match request {
            Some(request) => world.excuses.of(id, request).collect(),
            None => world.excuses.since(id, began, &self.requests()),
        }
    }

    /// A call that stored another value than the host's.
    pub(super) fn spoil(&self, call: &mut Call, excuses: &[Excuse]) {
        if let Kind::Update { value, .. } = &mut call.kind
            && excuses.contains(&Excuse::Value)
        {
            *value = GARBAGE;
        }
    }

    /// Whether nothing can be said of a call that began then.
    pub(super) fn is_unknown(&mut self, slot: usize, began: u64) -> bool {
        self.take_news();
        let cut = self.maps[slot].as_ref().is_none_or(|m| m.cut.is_some());
        cut || self.excuses(None, began).contains(&Excuse::Answer)
    }

    /// Whether a call that began then may end with this status.
    pub(super) fn ends_excused(&mut self, slot: usize, began: u64, status: Status) -> bool {
        self.is_unknown(slot, began) || self.excuses(None, began).contains(&Excuse::Status(status))
    }

    /// Takes over what became of maps.
    pub(super) fn take_news(&mut self) {
        let news = std::mem::take(&mut self.sim.world().excuses.news);
        for what in news {
            self.trace(|| format!("  fault: {what:?}"));
            let of = match what {
                News::CutAll { moment } => {
                    for map in self.maps.iter_mut().flatten() {
                        map.cut_at(moment);
                    }
                    continue;
                }
                News::Cut { map, .. } | News::Garbage { map } | News::Spoiled { map, .. } => map,
            };
            let mut live = self.maps.iter_mut().flatten();
            let Some(map) = live.find(|m| m.map.handle() == of) else {
                continue;
            };
            match what {
                News::Cut { moment, .. } => map.cut_at(moment),
                News::Spoiled {
                    key,
                    began,
                    ended,
                    posted,
                    ..
                } => {
                    map.spoiled = true;
                    map.calls.push(Call {
                        lane: self.next_aside,
                        key,
                        kind: Kind::Spoil,
                        answer: Answer::Done,
                        began,
                        ended,
                        posted: Some(posted),
                    });
                    self.next_aside -= 1;
                }
                News::Garbage { .. } | News::CutAll { .. } => map.spoiled = true,
            }
        }
    }

    /// The host gives its queue up if each command on it that is late at this time (`u64::MAX`:
    /// each one) is one that a fault holds back.
    pub(super) fn give_up(&mut self, now: u64) -> bool {
        let Some(id) = self.queue_id() else {
            return true;
        };
        let lost = self.lost();
        let is_lost = |f: &Flight| lost.contains(&f.token.request().0);
        let of = self.sim.world().excuses.queue(id);
        let late = |f: &&Flight| now.saturating_sub(f.since_ns) > super::FLIGHT_NS;
        let host = &self.hosts[self.host];
        let mut left = host.left.iter().filter(|l| {
            let late = now.saturating_sub(l.since_ns) > super::FLIGHT_NS;
            late && !lost.contains(&l.request)
        });
        let all_lost = host.flights.iter().filter(late).all(is_lost) && left.next().is_none();
        if !of.any() && !all_lost {
            return false;
        }
        self.count(Event::QueueGivenUp);
        self.lose_queue();
        true
    }

    /// A map of which nothing is known any more gives way to another one.
    pub(super) fn replace_if_cut(&mut self, slot: usize) {
        let cut = self.maps[slot].as_ref().is_some_and(|m| m.cut.is_some());
        if cut && self.rng.one_in(CUT_USES) && !self.is_named(slot) {
            self.count(Event::MapGivenUp);
            self.free_map(slot);
        }
    }

    /// After an action: what faults did is taken over, and a broken device is reset in the end.
    pub(super) fn after_faults(&mut self) {
        self.take_news();
        if self.stopped() || !self.broken_by_fault() {
            return;
        }
        let wild = self.sim.world().excuses.wild;
        if wild || self.rng.one_in(PATIENCE) {
            self.count(Event::ResetAfterFault);
            self.recover();
        }
    }
}
