//! What the hosts do with many elements: batches and dumps, which the driver has as blocking
//! calls.
//!
//! Each element is an operation of its own for the checkers. The elements of one command take
//! effect in the order of its arrays (abi §7), which is the order of the calls here.

use super::Run;
use crate::check::Check;
use crate::linearize::Call;
use crate::map::value_bytes;
use crate::spec::{Answer, Kind};
use crate::walk::WalkDone;
use offmap_abi::Status;

/// Elements of a batch, at most.
const ELEMENTS: u64 = 10;
/// Commands of a dump, at most: no walk is as long.
const DUMP_STEPS: usize = 64;

impl Run {
    /// One batch.
    pub(super) fn batch(&mut self) {
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
        let (is_array, keys) = (map.is_array(), map.keys.len());
        let count = 1 + self.rng.below(ELEMENTS);
        let chosen: Vec<u8> = (0..count).map(|_| self.rng.index(keys) as u8).collect();
        match self.rng.below(if is_array { 2 } else { 3 }) {
            0 => self.batch_lookup(slot, &chosen),
            1 => self.batch_change(slot, &chosen, true),
            _ => self.batch_change(slot, &chosen, false),
        }
    }

    fn packed_keys(&self, slot: usize, chosen: &[u8]) -> Vec<u8> {
        match &self.maps[slot] {
            Some(map) => chosen
                .iter()
                .flat_map(|k| map.keys[usize::from(*k)].iter().copied())
                .collect(),
            None => Vec::new(),
        }
    }

    /// When the command of calls that have just ended was posted.
    fn posted_since(&mut self, calls: &[Call]) -> Option<u64> {
        let began = calls.last()?.began;
        let now = self.stamp();
        self.last_posted(began, now)
    }

    fn batch_lookup(&mut self, slot: usize, chosen: &[u8]) {
        let mut calls: Vec<Call> = Vec::new();
        for key in chosen {
            let call = self.blank(*key, Kind::Lookup);
            calls.push(call);
        }
        let keys = self.packed_keys(slot, chosen);
        let meanwhile = self.draw_meanwhile();
        let began_ns = self.now_ns();
        let host = &mut self.hosts[self.host];
        let (Some(map), Some(queue)) = (&self.maps[slot], &mut host.queue) else {
            return;
        };
        let serial = map.serial;
        let stride = map.map.value_stride();
        let mut values = vec![0; stride * chosen.len()];
        let mut statuses = Vec::new();
        let but = host.left.iter().map(|l| l.request).collect();
        let (id, sim) = (queue.id(), &self.sim);
        let (done, met) = sim.meanwhile(meanwhile, Some((id, but)), || {
            queue.lookup_batch(&map.map, &keys, &mut values, |_, s| statuses.push(s))
        });
        self.has_met(met);
        self.in_bounds("a batch", began_ns, chosen.len());
        let Some(done) = done else {
            // Lookups have no effect, whatever became of them.
            return self.died((slot, serial), &[]);
        };
        match done {
            Ok(status) => {
                self.batch_abort_held(status);
                if !self.batch_may_end(status) && !self.ends_excused(slot, calls[0].began, status) {
                    self.violate(Check::Status, format!("BATCH_LOOKUP ended with {status}"));
                }
                let posted = self.posted_since(&calls);
                for (i, mut call) in calls.into_iter().enumerate() {
                    call.posted = posted;
                    let Some(status) = statuses.get(i) else {
                        continue;
                    };
                    call.ended = self.stamp();
                    let bytes = &values[i * stride..][..stride];
                    if let Some(answer) =
                        self.answer(slot, &mut call, None, (*status, bytes), false)
                    {
                        call.answer = answer;
                        self.record((slot, serial), call);
                    }
                }
            }
            // Lookups have no effect, whatever became of them.
            Err(e) => self.call_failed((slot, serial), &[], &e),
        }
    }

    fn batch_change(&mut self, slot: usize, chosen: &[u8], update: bool) {
        let flags = match self.maps[slot].as_ref() {
            Some(map) if map.is_array() => self.rng.pick(&[0, 2]),
            _ => self.rng.pick(&[0, 0, 0, 1, 2]),
        };
        let mut calls: Vec<Call> = Vec::new();
        for key in chosen {
            let kind = if update {
                let value = self.fresh_value();
                Kind::Update { flags, value }
            } else {
                Kind::Delete
            };
            let call = self.blank(*key, kind);
            calls.push(call);
        }
        let keys = self.packed_keys(slot, chosen);
        let meanwhile = self.draw_meanwhile();
        let began_ns = self.now_ns();
        let host = &mut self.hosts[self.host];
        let (Some(map), Some(queue)) = (&self.maps[slot], &mut host.queue) else {
            return;
        };
        let serial = map.serial;
        let stride = map.map.value_stride();
        let mut values = Vec::new();
        for call in &calls {
            if let Kind::Update { value, .. } = call.kind {
                values.extend(value_bytes(value, stride));
            }
        }
        let but = host.left.iter().map(|l| l.request).collect();
        let (id, sim) = (queue.id(), &self.sim);
        let (done, met) = sim.meanwhile(meanwhile, Some((id, but)), || {
            if update {
                queue.update_batch(&map.map, &keys, &values, flags)
            } else {
                queue.delete_batch(&map.map, &keys)
            }
        });
        self.has_met(met);
        self.in_bounds("a batch", began_ns, chosen.len());
        let Some(done) = done else {
            return self.died((slot, serial), &calls);
        };
        let done = match done {
            Ok(done) => done,
            Err(e) => return self.call_failed((slot, serial), &calls, &e),
        };
        self.batch_abort_held(done.status);
        let lost = matches!(done.status, Status::Interrupted | Status::Aborted);
        let posted = self.posted_since(&calls);
        if self.is_unknown(slot, calls[0].began) {
            for call in calls {
                self.record((slot, serial), Call { posted, ..call });
            }
            return;
        }
        for (i, mut call) in calls.into_iter().enumerate() {
            call.posted = posted;
            let status = if i < done.count {
                Status::Success
            } else if lost {
                // The command that gave up is one of several that the batch became.
                Status::Interrupted
            } else if i == done.count && !done.status.is_success() {
                done.status
            } else {
                // Those after the one that failed were not tried.
                break;
            };
            call.ended = self.stamp();
            let aborted = self.was_aborted();
            if let Some(answer) = self.answer(slot, &mut call, None, (status, &[]), aborted) {
                call.answer = answer;
                self.record((slot, serial), call);
            }
        }
    }

    /// A dump from the start to the end of a map, at times with removal.
    pub(super) fn dump(&mut self, slot: usize) {
        let Some(map) = &self.maps[slot] else {
            return;
        };
        let (serial, is_lpm, is_array) = (map.serial, map.is_lpm(), map.is_array());
        let (key_size, stride, keys) = (map.map.key_size(), map.map.value_stride(), map.keys.len());
        let delete = !is_lpm && !is_array && self.rng.one_in(4);
        let mut room = 1 + self.rng.index(keys + 2);
        let mut walk = WalkDone {
            began: self.stamp(),
            ended: u64::MAX,
            keys: Vec::new(),
            once: !is_lpm,
        };
        let mut cursor = 0;
        let mut last: Option<Vec<u8>> = None;
        for _ in 0..DUMP_STEPS {
            let kind = if delete {
                Kind::LookupDelete
            } else {
                Kind::Lookup
            };
            let call = self.blank(0, kind);
            let meanwhile = self.draw_meanwhile();
            let began_ns = self.now_ns();
            let host = &mut self.hosts[self.host];
            let (Some(map), Some(queue)) = (&self.maps[slot], &mut host.queue) else {
                return;
            };
            let mut found = vec![0; key_size * room];
            let mut values = vec![0; stride * room];
            let but = host.left.iter().map(|l| l.request).collect();
            let (id, sim) = (queue.id(), &self.sim);
            let (done, met) = sim.meanwhile(meanwhile, Some((id, but)), || {
                if is_lpm {
                    queue.dump_after(&map.map, last.as_deref(), &mut found, &mut values)
                } else {
                    queue.dump(&map.map, cursor, &mut found, &mut values, delete)
                }
            });
            self.has_met(met);
            // One that finds its room too small asks once more.
            self.in_bounds("a dump", began_ns, 2);
            let Some(done) = done else {
                let removals = match delete {
                    true => self.removals(keys, call),
                    false => Vec::new(),
                };
                return self.died((slot, serial), &removals);
            };
            let done = match done {
                Ok(done) => done,
                Err(e) => {
                    self.dump_failed((slot, serial), keys, call, &e);
                    return;
                }
            };
            if self.is_unknown(slot, call.began) {
                self.removals_until_now((slot, serial), keys, call);
                return;
            }
            if done.status == Status::NoSpace {
                // The ABI has it say how much it needs.
                if done.needed as usize <= room {
                    self.violate(
                        Check::Status,
                        format!(
                            "a dump into {room} places needs {} and has no space",
                            done.needed
                        ),
                    );
                    return;
                }
                room = done.needed as usize;
                cursor = done.cursor;
                continue;
            }
            self.batch_abort_held(done.status);
            let interrupted = done.status == Status::Interrupted && self.batch_may_end(done.status);
            let valid = matches!(done.status, Status::Success | Status::NotFound);
            if interrupted || (!valid && self.ends_excused(slot, call.began, done.status)) {
                self.removals_until_now((slot, serial), keys, call);
                return;
            }
            let posted = self.posted_since(&[call]);
            let call = Call { posted, ..call };
            for i in 0..done.count {
                let key = &found[i * key_size..][..key_size];
                let value = &values[i * stride..][..stride];
                last = Some(key.to_vec());
                self.dumped((slot, serial), call, key, value, &mut walk);
            }
            cursor = done.cursor;
            match done.status {
                Status::Success => {}
                Status::NotFound => {
                    walk.ended = self.stamp();
                    let map = self.maps[slot].as_mut().filter(|m| m.serial == serial);
                    if let Some(map) = map {
                        map.walks.push(walk);
                    }
                    return;
                }
                other => {
                    return self.violate(Check::Status, format!("BATCH_DUMP ended with {other}"));
                }
            }
        }
    }

    /// One element that a dump returned.
    fn dumped(
        &mut self,
        map: (usize, u32),
        call: Call,
        key: &[u8],
        value: &[u8],
        walk: &mut WalkDone,
    ) {
        let of = self.maps[map.0].as_ref();
        let known = of.and_then(|m| Some((m.key_of(key)?, m.value_of(value)?)));
        let Some((key, value)) = known else {
            self.violate(
                Check::Bytes,
                "a dump returned a key or a value that nobody ever wrote",
            );
            return;
        };
        walk.keys.push(key);
        let ended = self.stamp();
        // Elements keep the order in which the dump met them: their beginnings would all be
        // the same, and the checkers sort by them.
        let call = Call {
            key,
            answer: Answer::Value(value),
            ended,
            ..call
        };
        self.record(map, call);
    }

    fn dump_failed(
        &mut self,
        map: (usize, u32),
        keys: usize,
        call: Call,
        error: &offmap_driver::DriverError,
    ) {
        let aborted = matches!(
            error,
            offmap_driver::DriverError::TimedOut {
                quarantined: false,
                ..
            }
        );
        if !aborted {
            self.unknown_removals(map, keys, call);
        }
        self.call_failed(map, &[], error);
    }

    /// A dump that removes has ended, and nobody knows what it removed until then.
    fn removals_until_now(&mut self, map: (usize, u32), keys: usize, call: Call) {
        let ended = self.stamp();
        self.unknown_removals(map, keys, Call { ended, ..call });
    }

    /// A dump that removes was cut off: each key may be gone. Its steps came in an order that only
    /// the device knows, so that each removal has a lane of its own.
    fn unknown_removals(&mut self, map: (usize, u32), keys: usize, call: Call) {
        if call.kind != Kind::LookupDelete {
            return;
        }
        for removal in self.removals(keys, call) {
            self.record(map, removal);
        }
    }

    fn removals(&mut self, keys: usize, call: Call) -> Vec<Call> {
        let of = |(key, lane)| Call {
            lane,
            key,
            answer: Answer::Unknown,
            ..call
        };
        let first = self.next_aside;
        self.next_aside -= keys as u16;
        (0..keys as u8).zip((0..=first).rev()).map(of).collect()
    }

    /// As `in_bound`, for a call that may be as many commands.
    fn in_bounds(&mut self, what: &str, began_ns: u64, commands: usize) {
        let bound = super::CALL_BOUND * commands as u32 + self.met_bound();
        let took = std::time::Duration::from_nanos(self.now_ns() - began_ns);
        if took > bound {
            self.violate(
                Check::Deadline,
                format!("{what} took {took:?} of simulated time, more than its deadlines"),
            );
        }
    }
}
