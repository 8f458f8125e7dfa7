//! Rule R2, as the driver has to keep it: a command's slot and memory, and a queue's id and rings, are
//! the device's until the host has seen the command's completion or that of the queue's
//! QUEUE_DELETE, or a reset is complete. For memory of maps see `belongs` (rule R4).

use super::{Memory, Ring, What, ranges};
use offmap_abi::admin::{QueueCreateBody, QueueDeleteBody};
use offmap_abi::notify::NOTIFY_BYTES;
use offmap_abi::{AdminOpcode, IoOpcode, QueueId, RequestId, Status, Submission};
use offmap_emulator::dma::ENTRY_BYTES;

/// A command that the device has completed, and the host does not know it yet.
pub(super) struct Answered {
    /// The place of its completion, with the ownership word.
    pub(super) entry: u64,
    pub(super) command: Submission,
    pub(super) status: Status,
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

impl Ring {
    fn bytes(&self) -> u64 {
        u64::from(self.depth.entries()) * ENTRY_BYTES as u64
    }

    /// The command in flight with this slot.
    pub(super) fn of_slot(&self, slot: u16) -> Option<RequestId> {
        let of = self.in_flight.iter().map(Submission::request);
        of.into_iter().find(|request| request.slot() == slot)
    }

    /// Commands that are the device's, as far as the host can know, and as it wrote them.
    fn held(&self) -> impl Iterator<Item = &Submission> {
        let answered = self.answered.iter().map(|a| &a.command);
        self.in_flight.iter().chain(answered).map(|command| {
            let mut flipped = self.flipped.iter();
            flipped
                .find(|(is, _)| is == command)
                .map_or(command, |(_, was)| was)
        })
    }

    /// What of the device's these bytes are.
    fn names(&self, range: (u64, u64)) -> Option<String> {
        if self.released {
            return None;
        }
        let queue = self.queue;
        for (iova, len, what) in [
            (self.sq, self.bytes(), "submission ring"),
            (self.cq, self.bytes(), "completion ring"),
            (self.notify, NOTIFY_BYTES as u64, "notify block"),
        ] {
            if iova != 0 && overlap((iova, len), range) {
                return Some(format!("the {what} of {queue}"));
            }
        }
        let of = self.held().find(|command| {
            let mut all = ranges(queue, command, true).into_iter();
            all.any(|r| overlap(r, range))
        });
        of.map(|command| format!("memory of {} on {queue}", command.request()))
    }
}

impl Memory {
    /// What of the device's lies in a range.
    pub(crate) fn still_named(&self, iova: u64, len: u64) -> Option<(String, &'static str)> {
        let names = |ring: &Ring| ring.names((iova, len));
        if let Some(what) = self.rings.iter().find_map(names) {
            return Some((what, "rule R2"));
        }
        let mut maps = self.belongings.iter();
        let one = maps.find(|b| overlap((b.iova, b.len), (iova, len)));
        one.map(|_| ("the host memory of a map".into(), "rule R4"))
    }

    /// The driver has submitted a command: whether slot, memory and queue id are its to give.
    pub(super) fn check_given(&mut self, index: usize, entry: &Submission) {
        let ring = &self.rings[index];
        let (queue, request) = (ring.queue, entry.request());
        let slot = request.slot();
        // The admin queue has one slot, and counts on: a command that is given up refers to no memory.
        let taken = |c: &&Submission| match queue.is_admin() {
            true => c.request() == request,
            false => c.request().slot() == slot,
        };
        if let Some(before) = ring.held().find(taken) {
            let what = format!(
                "slot {slot} of {queue} was used for {request} before {} was ended (rule R2)",
                before.request()
            );
            self.breach.get_or_insert((queue, what));
            return;
        }
        let mut named = ranges(queue, entry, true);
        if queue.is_admin() && AdminOpcode(entry.opcode) == AdminOpcode::QueueCreate {
            let body: QueueCreateBody = entry.body();
            let id = QueueId(body.queue.get());
            if self.rings.iter().any(|r| r.queue == id && !r.released) {
                let what = format!("{id} was made while the device has one of that id (rule R2)");
                self.breach.get_or_insert((queue, what));
                return;
            }
            let bytes = u64::from(body.depth.get()) * ENTRY_BYTES as u64;
            named.extend([(body.sq.get(), bytes), (body.cq.get(), bytes)]);
            if body.notify.get() != 0 {
                named.push((body.notify.get(), NOTIFY_BYTES as u64));
            }
        }
        named.extend(self.host_memory_of(entry).filter(|_| queue.is_admin()));
        let taken = named
            .into_iter()
            .find_map(|(iova, len)| self.still_named(iova, len));
        if let Some((taken, rule)) = taken {
            let what = format!("{request} on {queue} was given {taken} ({rule})");
            self.breach.get_or_insert((queue, what));
        }
    }

    /// The host sees a store: with a completion it learns what the device has let go of.
    pub(super) fn learns(&mut self, index: usize, what: &What) {
        let &What::Bytes { iova, .. } = what else {
            return;
        };
        let ring = &mut self.rings[index];
        let Some(at) = ring.answered.iter().position(|a| a.entry == iova) else {
            return;
        };
        let Answered {
            command, status, ..
        } = ring.answered.swap_remove(at);
        if !ring.queue.is_admin() {
            return;
        }
        match AdminOpcode(command.opcode) {
            AdminOpcode::QueueDelete if status == Status::Success => {
                let body: QueueDeleteBody = command.body();
                self.release(QueueId(body.queue.get()));
            }
            AdminOpcode::MapCreate => self.map_created(&command, status, iova + 16),
            AdminOpcode::MapFree if status == Status::Success => self.map_freed(command.map()),
            // It never was.
            AdminOpcode::QueueCreate if status != Status::Success => {
                let body: QueueCreateBody = command.body();
                self.release(QueueId(body.queue.get()));
            }
            _ => {}
        }
    }

    /// The device has let go of a queue, and the host knows it.
    fn release(&mut self, queue: QueueId) {
        let live = |r: &Ring| r.queue == queue && !r.released;
        let Some(index) = self.rings.iter().position(live) else {
            return;
        };
        // What it wrote until then is there; what it writes from now on is a stray write.
        for (iova, len) in self.rings[index].open() {
            self.keep(iova, len);
        }
        let ring = &mut self.rings[index];
        ring.released = true;
        ring.in_flight.clear();
        ring.answered.clear();
    }

    /// Whether the host knows that the device has let go of a queue.
    pub(crate) fn is_released(&self, queue: QueueId) -> bool {
        !self.rings.iter().any(|r| r.queue == queue && !r.released)
    }

    /// Whether no admin command is under way, for all that the host knows.
    pub(crate) fn admin_is_idle(&self) -> bool {
        let mut admin = self.rings.iter().filter(|r| r.queue.is_admin());
        admin.all(|r| r.held().next().is_none())
    }

    /// Batch commands in flight, with their queues.
    pub(crate) fn batches_in_flight(&self) -> Vec<(QueueId, Submission)> {
        let live = self
            .rings
            .iter()
            .filter(|r| !r.released && !r.queue.is_admin());
        let all = live.flat_map(|r| r.in_flight.iter().map(|command| (r.queue, *command)));
        all.filter(|(_, command)| IoOpcode(command.opcode).is_batch())
            .collect()
    }

    /// The one on a queue, other than these.
    pub(crate) fn batch_in_flight(&self, queue: QueueId, but: &[u64]) -> Option<Submission> {
        let all = self.batches_in_flight().into_iter();
        let mut of = all.filter(|(q, command)| *q == queue && !but.contains(&command.request().0));
        of.next().map(|(_, command)| command)
    }

    /// Whether a request is in flight on a queue and of a batch command.
    pub(super) fn is_batch(&self, queue: QueueId, request: RequestId) -> bool {
        self.command(queue, request)
            .is_some_and(|c| IoOpcode(c.opcode).is_batch())
    }
}
