//! What happens in the middle of a blocking call: other threads abort the batch or reset the device,
//! or the host's own thread dies.

use super::{Left, Run};
use crate::check::Check;
use crate::event::Event;
use crate::function::{Meanwhile, Met};
use crate::linearize::Call;
use crate::spec::{Answer, Kind};
use offmap_abi::{QueueId, Status};
use std::time::Duration;

/// One of so many batches meets something.
const BATCHES: u64 = 4;
/// Looks of the waiting host until then, at most.
const LOOKS: u64 = 24;

impl Run {
    /// What is to happen in the middle of a batch, and when.
    pub(super) fn draw_meanwhile(&mut self) -> Option<(Meanwhile, u64)> {
        if !self.rng.one_in(BATCHES) {
            return None;
        }
        let what = match self.rng.below(10) {
            0..3 => Meanwhile::Abort,
            3..5 => Meanwhile::Death,
            5 if self.violent => Meanwhile::Reset,
            6 if self.violent => Meanwhile::ForeignReset,
            7..10 => Meanwhile::Leave,
            _ => Meanwhile::Abort,
        };
        Some((what, 1 + self.rng.below(LOOKS)))
    }

    /// Notes what happened in a call that is over.
    pub(super) fn has_met(&mut self, met: Met) {
        self.met = met;
        if met != Met::Nothing {
            self.trace(|| format!("  meanwhile: {met:?}"));
        }
        match met {
            Met::Reset(midway) => {
                // A reset by the driver has cleared what the world knew.
                self.disturbed = true;
                self.count(Event::ResetInCall);
                if midway {
                    self.count(Event::ResetMidway);
                }
            }
            Met::Died(midway) => {
                self.count(Event::ThreadDied);
                if midway {
                    self.count(Event::QueueDeletedMidway);
                }
            }
            Met::Left(_) => self.count(Event::CallLeft),
            Met::AbortFailed if !self.admin_may_fail() && !self.queue_is_excused() => {
                self.violate(
                    Check::Failed,
                    "ABORT failed and nothing happened to the device",
                );
            }
            Met::Nothing | Met::Aborted | Met::AbortedLate | Met::AbortFailed => {}
        }
    }

    /// Whether another thread may have aborted the command of the last blocking call.
    pub(super) fn was_aborted(&self) -> bool {
        matches!(self.met, Met::Aborted | Met::AbortFailed)
    }

    /// What another thread did in a call took its time, too, which runs for all of them.
    pub(super) fn met_bound(&self) -> Duration {
        match self.met {
            Met::Nothing => Duration::ZERO,
            // The device says that it may take a second for each step of a reset.
            Met::Reset(_) => Duration::from_secs(3),
            _ => 2 * super::ADMIN_TIMEOUT,
        }
    }

    /// A batch that another thread has aborted has ended.
    pub(super) fn batch_abort_held(&mut self, status: Status) {
        if self.met != Met::Aborted {
            return;
        }
        if status == Status::Interrupted {
            self.count(Event::AbortMidway);
        }
        self.abort_held(status, false);
    }

    /// A command whose abort was confirmed has ended: in no other way than these (abi §6.5).
    pub(super) fn abort_held(&mut self, status: Status, excused: bool) {
        let ends = matches!(status, Status::Aborted | Status::Interrupted);
        if ends || excused || self.disturbed() || self.admin_may_fail() || self.queue_is_excused() {
            return;
        }
        self.violate(
            Check::Abort,
            format!("an abort was confirmed, and the command went on to its end: {status}"),
        );
    }

    /// A batch that was left has ended, and the host takes its completion.
    pub(super) fn left_ended(&mut self, batch: &Left, queue: QueueId, status: Status) {
        let posted = self.posted(queue, batch.request);
        let ended = self.stamp();
        let (slot, serial) = batch.map;
        self.take_news();
        let excused = !self.excuses(Some(batch.request), 0).is_empty();
        let map = self.maps[slot].as_ref().filter(|m| m.serial == serial);
        let known = map.is_some_and(|m| m.cut.is_none()) && status == Status::Success && !excused;
        if !known {
            return self.left_unknown(batch, ended);
        }
        for call in &batch.calls {
            // What a dump removed it has told nobody.
            let answer = match call.kind {
                Kind::LookupDelete => Answer::Unknown,
                _ => Answer::Done,
            };
            let call = Call {
                answer,
                ended,
                posted,
                ..*call
            };
            self.record(batch.map, call);
        }
    }

    /// Nobody knows what a batch that was left has done until this moment.
    pub(super) fn left_unknown(&mut self, batch: &Left, ended: u64) {
        for call in &batch.calls {
            let answer = Answer::Unknown;
            let call = Call {
                answer,
                ended,
                ..*call
            };
            self.record(batch.map, call);
        }
    }

    /// The host was unwound out of a call. Its thread has died: its queue goes, and nobody knows what
    /// became of its commands. Or it has left the call, and goes on.
    pub(super) fn died(&mut self, map: (usize, u32), calls: &[Call]) {
        if let Met::Left(request) = self.met {
            let since_ns = self.now_ns();
            self.hosts[self.host].left.push(Left {
                request: request.0,
                map,
                calls: calls.to_vec(),
                since_ns,
            });
            return;
        }
        let queue = self.hosts[self.host].queue.as_ref().map(|q| q.id());
        self.lose_queue();
        let over = queue.is_none_or(|id| self.sim.world().memory.is_released(id));
        let ended = if over { self.stamp() } else { u64::MAX };
        for call in calls {
            let call = Call {
                answer: Answer::Unknown,
                ended,
                ..*call
            };
            self.record(map, call);
        }
    }
}
