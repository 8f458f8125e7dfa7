//! What the hosts do with single elements, queues and maps.

use super::{FLIGHT_NS, Flight, Left, Run};
use crate::check::Check;
use crate::event::Event;
use crate::function::Met;
use crate::linearize::Call;
use crate::map::value_bytes;
use crate::spec::{Answer, Kind};
use crate::walk::WalkDone;
use offmap_abi::Status;
use offmap_driver::{DeviceMap, DriverError, Op, SubmitError};

/// Steps of a walk, at most: other hosts may send it back to the start.
const WALK_STEPS: usize = 40;
/// Polls after which a command that is late is called so.
const LATE_POLLS: usize = 2000;

/// The driver's operation on an element.
fn op<'a>(map: &'a DeviceMap, key: &'a [u8], kind: Kind, value: &'a [u8]) -> Op<'a> {
    match kind {
        Kind::Lookup => Op::Lookup { map, key },
        Kind::Spoil | Kind::First => Op::GetFirst { map },
        Kind::Update { flags, .. } => Op::Update {
            map,
            key,
            value,
            flags,
        },
        Kind::Delete => Op::Delete { map, key },
        Kind::LookupDelete => Op::LookupAndDelete { map, key },
        Kind::Next => Op::GetNext { map, key },
    }
}

/// Bytes that an operation returns.
fn room(map: &DeviceMap, kind: Kind) -> usize {
    match kind {
        Kind::Lookup | Kind::LookupDelete => map.value_stride(),
        Kind::First | Kind::Next => map.key_size(),
        Kind::Update { .. } | Kind::Delete | Kind::Spoil => 0,
    }
}

impl Run {
    /// A map slot, with a map in it.
    pub(super) fn pick_map(&mut self) -> Option<usize> {
        let slot = self.rng.index(self.maps.len());
        self.replace_if_cut(slot);
        self.make_map(slot).then_some(slot)
    }

    pub(super) fn blank(&mut self, key: u8, kind: Kind) -> Call {
        Call {
            lane: self.hosts[self.host].lane,
            key,
            kind,
            answer: Answer::Unknown,
            began: self.stamp(),
            ended: u64::MAX,
            posted: None,
        }
    }

    pub(super) fn fresh_value(&mut self) -> u32 {
        self.next_value += 1;
        self.next_value
    }

    /// Several commands, as many as the queue takes, and mostly the hand-over.
    pub(super) fn write(&mut self) {
        if !self.queue() {
            return;
        }
        let count = 1 + self.rng.below(6);
        for _ in 0..count {
            let Some(slot) = self.pick_map() else {
                return;
            };
            if !self.write_one(slot) {
                break;
            }
        }
        if !self.rng.one_in(4) {
            self.commit();
        }
    }

    /// Whether another one may follow.
    fn write_one(&mut self, slot: usize) -> bool {
        let fresh = self.fresh_value();
        let Some(map) = &self.maps[slot] else {
            return false;
        };
        let (kind, key) = map.draw(&mut self.rng, fresh);
        let call = self.blank(key, kind);
        let since_ns = self.now_ns();
        // Making a map may have found the device dead, and the queue with it.
        let host = &mut self.hosts[self.host];
        let (Some(map), Some(queue)) = (&self.maps[slot], &mut host.queue) else {
            return false;
        };
        let value = value_bytes(fresh, map.map.value_stride());
        let bytes = &map.keys[usize::from(key)];
        match queue.write(&op(&map.map, bytes, kind, &value)) {
            Ok(token) => {
                host.flights.push(Flight {
                    token,
                    map: (slot, map.serial),
                    call,
                    room: room(&map.map, kind),
                    since_ns,
                    aborted: false,
                });
                true
            }
            Err(SubmitError::Full) => false,
            Err(SubmitError::Driver(e)) => {
                self.queue_failed(&e);
                false
            }
        }
    }

    pub(super) fn commit(&mut self) {
        let done = match &mut self.hosts[self.host].queue {
            Some(queue) => queue.commit(),
            None => Ok(()),
        };
        self.sim.world().capture();
        if let Err(e) = done {
            self.queue_failed(&e);
        }
    }

    /// Takes results.
    pub(super) fn poll(&mut self) {
        let most = 1 + self.rng.below(12);
        for _ in 0..most {
            if !self.poll_one() {
                return;
            }
        }
        let now = self.now_ns();
        let held_up = self.disturbed() || self.sim.world().stalled_until + FLIGHT_NS > now;
        let late = |f: &Flight| now.saturating_sub(f.since_ns) > FLIGHT_NS;
        if held_up || !self.hosts[self.host].flights.iter().any(late) {
            return;
        }
        if self.give_up(now) {
            return;
        }
        let lost = self.lost();
        let late = |f: &Flight| late(f) && !lost.contains(&f.token.request().0);
        // A result that the host has not looked for is no fault of the device's.
        for _ in 0..LATE_POLLS {
            if !self.poll_one() {
                return;
            }
            if !self.hosts[self.host].flights.iter().any(late) {
                return;
            }
        }
        // A fault may have met it meanwhile.
        if self.disturbed() || self.give_up(now) {
            return;
        }
        self.violate(
            Check::Ended,
            "a command in flight did not end within its bound",
        );
    }

    /// Polls once; whether there is a queue and it is fine.
    pub(super) fn poll_one(&mut self) -> bool {
        let Some(mut queue) = self.hosts[self.host].queue.take() else {
            return false;
        };
        let mut bytes = Vec::new();
        let flights = &self.hosts[self.host].flights;
        let polled = match queue.poll() {
            Ok(None) => Ok(None),
            Err(e) => Err(e),
            Ok(Some(finished)) => {
                let token = finished.token();
                let at = flights.iter().position(|f| f.token == token);
                let room = at.map_or(0, |at| flights[at].room);
                bytes.resize(room, 0);
                finished
                    .value(&mut bytes)
                    .map(|status| Some((at, token, status)))
            }
        };
        let id = queue.id();
        self.hosts[self.host].queue = Some(queue);
        match polled {
            Ok(None) => true,
            Ok(Some((Some(at), token, status))) => {
                let flight = self.hosts[self.host].flights.swap_remove(at);
                let mut call = flight.call;
                call.ended = self.stamp();
                call.posted = self.posted(id, token.request().0);
                let (slot, serial) = flight.map;
                let request = Some(token.request().0);
                let live = self.maps[slot].as_ref().is_some_and(|m| m.serial == serial);
                if flight.aborted {
                    let excused = !self.excuses(request, 0).is_empty();
                    self.abort_held(status, excused);
                }
                if !live {
                    self.violate(Check::Request, "a command outlived its map");
                } else if let Some(answer) =
                    self.answer(slot, &mut call, request, (status, &bytes), flight.aborted)
                {
                    call.answer = answer;
                    self.record(flight.map, call);
                } else {
                    self.outcome.operations += 1;
                }
                true
            }
            Ok(Some((None, token, status))) => {
                let left = &mut self.hosts[self.host].left;
                let its = left.iter().position(|l| l.request == token.request().0);
                if let Some(at) = its {
                    let batch = left.swap_remove(at);
                    self.left_ended(&batch, id, status);
                    return true;
                }
                self.violate(
                    Check::Request,
                    format!(
                        "the driver returned {}, which this host did not submit",
                        token.request()
                    ),
                );
                false
            }
            Err(e) => {
                self.queue_failed(&e);
                false
            }
        }
    }

    /// One blocking call.
    pub(super) fn call(&mut self) {
        if !self.queue() {
            return;
        }
        let Some(slot) = self.pick_map() else {
            return;
        };
        let fresh = self.fresh_value();
        let Some(map) = &self.maps[slot] else {
            return;
        };
        let (kind, key) = map.draw(&mut self.rng, fresh);
        self.call_for(slot, kind, key, fresh);
    }

    /// A blocking call on a key; its answer, if it ended with one.
    pub(super) fn call_for(
        &mut self,
        slot: usize,
        kind: Kind,
        key: u8,
        value: u32,
    ) -> Option<Answer> {
        self.met = Met::Nothing;
        let mut call = self.blank(key, kind);
        let began_ns = self.now_ns();
        let host = &mut self.hosts[self.host];
        let (Some(map), Some(queue)) = (&self.maps[slot], &mut host.queue) else {
            return None;
        };
        let serial = map.serial;
        let value = value_bytes(value, map.map.value_stride());
        let bytes = map.keys[usize::from(key)].as_slice();
        let m = &map.map;
        let mut out = vec![0; room(m, kind)];
        let done = match kind {
            Kind::Lookup => queue.lookup(m, bytes, &mut out),
            Kind::Update { flags, .. } => queue.update(m, bytes, &value, flags),
            Kind::Delete => queue.delete(m, bytes),
            Kind::LookupDelete => queue.lookup_and_delete(m, bytes, &mut out),
            Kind::First | Kind::Spoil => queue.get_first(m, &mut out),
            Kind::Next => queue.get_next(m, bytes, &mut out),
        };
        self.in_bound("a blocking call", began_ns);
        match done {
            Ok(status) => {
                call.ended = self.stamp();
                let answer = self.answer(slot, &mut call, None, (status, &out), false)?;
                call.answer = answer;
                // Blocking calls do not tell their request; the order of their ends is a good
                // witness, too.
                call.posted = self.last_posted(call.began, call.ended);
                self.record((slot, serial), call);
                Some(answer)
            }
            Err(e) => {
                self.call_failed((slot, serial), &[call], &e);
                None
            }
        }
    }

    /// The moment of the last completion of this host's queue between two moments.
    pub(super) fn last_posted(&mut self, began: u64, ended: u64) -> Option<u64> {
        let queue = self.hosts[self.host].queue.as_ref()?.id();
        let in_flight = self.requests();
        let mut world = self.sim.world();
        let mine = (queue.0, 0)..=(queue.0, u64::MAX);
        let found: Vec<(u64, u64)> = world
            .done_at
            .range(mine)
            .filter(|((_, request), _)| !in_flight.contains(request))
            .map(|((_, request), at)| (*request, *at))
            .collect();
        for (request, _) in &found {
            world.done_at.remove(&(queue.0, *request));
        }
        let within = found.iter().map(|(_, at)| *at);
        within.filter(|at| (began + 1..ended).contains(at)).max()
    }

    /// A blocking call ended with an error.
    pub(super) fn call_failed(&mut self, map: (usize, u32), calls: &[Call], error: &DriverError) {
        match error {
            DriverError::Full { .. } => {}
            // Aborted before it began: without an effect.
            DriverError::TimedOut {
                quarantined: false, ..
            } if self.was_aborted() || self.may_fail(error) => {
                self.count(Event::Timeout);
                self.outcome.operations += calls.len() as u64;
            }
            _ => {
                for call in calls {
                    let excuses = self.excuses(None, call.began);
                    let mut call = *call;
                    self.spoil(&mut call, &excuses);
                    self.record(map, call);
                }
                self.queue_failed(error);
            }
        }
    }

    /// A walk with GET_NEXT, or a dump.
    pub(super) fn walk(&mut self) {
        if !self.queue() {
            return;
        }
        let Some(slot) = self.pick_map() else {
            return;
        };
        let Some(map) = &self.maps[slot] else {
            return;
        };
        if map.is_line() {
            return;
        }
        if self.rng.one_in(2) {
            return self.dump(slot);
        }
        let serial = map.serial;
        let began = self.stamp();
        let mut keys = Vec::new();
        let mut answer = self.call_for(slot, Kind::First, 0, 0);
        while let Some(Answer::Key(key)) = answer {
            if keys.len() == WALK_STEPS {
                return;
            }
            keys.push(key);
            answer = self.call_for(slot, Kind::Next, key, 0);
        }
        let ended = self.stamp();
        if answer == Some(Answer::NotFound)
            && let Some(map) = self.maps[slot].as_mut().filter(|m| m.serial == serial)
        {
            map.walks.push(WalkDone {
                began,
                ended,
                keys,
                // A key that goes while the walk stands on it sends the walk back.
                once: false,
            });
        }
    }

    /// Aborts a command in flight.
    pub(super) fn abort(&mut self) {
        let host = &mut self.hosts[self.host];
        if host.flights.is_empty() {
            return;
        }
        let at = self.rng.index(host.flights.len());
        let Some(queue) = &mut host.queue else {
            return;
        };
        let token = host.flights[at].token;
        let began = self.sim.world().now_ns;
        let asked = queue.abort(token);
        self.in_bound("ABORT", began);
        match asked {
            Ok(will) => {
                self.hosts[self.host].flights[at].aborted |= will;
                self.count(if will {
                    Event::Abort
                } else {
                    Event::AbortTooLate
                });
                self.trace(|| format!("abort of {}: {will}", token.request()));
            }
            // The admin queue is still usable, or the next admin command says that it is not.
            Err(DriverError::AdminTimeout { .. }) if self.admin_may_fail() => {
                self.hosts[self.host].flights[at].aborted = true;
            }
            Err(e) => {
                if !self.may_fail(&e) {
                    self.violate(Check::of(&e), format!("ABORT failed: {e}"));
                }
                self.queue_failed(&e);
            }
        }
    }

    /// Frees a map that no command in flight names, and makes another.
    pub(super) fn remap(&mut self) {
        let slot = self.rng.index(self.maps.len());
        if self.is_named(slot) {
            return;
        }
        self.count(Event::MapFreed);
        self.free_map(slot);
        self.make_map(slot);
    }

    /// Whether a command in flight names the map, or there is none.
    pub(super) fn is_named(&self, slot: usize) -> bool {
        let Some(map) = &self.maps[slot] else {
            return true;
        };
        let named = |f: &Flight| f.map == (slot, map.serial);
        let left = |l: &Left| l.map == (slot, map.serial);
        self.hosts
            .iter()
            .any(|h| h.flights.iter().any(named) || h.left.iter().any(left))
    }

    /// Judges a map and frees it on the device.
    pub(super) fn free_map(&mut self, slot: usize) {
        let Some(map) = self.close_map(slot) else {
            return;
        };
        let began = self.now_ns();
        let freed = self.driver().free_map(&map);
        self.in_bound("MAP_FREE", began);
        if let Err(e) = freed {
            self.admin_failed("MAP_FREE", &e);
        }
    }

    /// Whether a status is one that the end of a batch may have.
    pub(super) fn batch_may_end(&self, status: Status) -> bool {
        let aborted = self.was_aborted() && status == Status::Interrupted;
        status == Status::Success || aborted || self.disturbed() || self.queue_is_excused()
    }
}
