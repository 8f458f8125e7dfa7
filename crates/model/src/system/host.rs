//! The host's side: commands that come, threads, doorbells.

use super::machine::Load;
use super::{Event, Fetch, Simulation, Work};
use crate::des::Time;

impl Simulation<'_> {
    /// The queue pair of a command.
    fn queue_of(&self, job: u32) -> u32 {
        job / self.machine.depth
    }

    /// A command comes to a queue pair with an open load, and the next one is due.
    pub(super) fn arrive(&mut self, queue: u32) {
        if !self.issue(queue) {
            return;
        }
        if let Load::Open { gap } = self.machine.load {
            let next = self.now + self.arrivals.exponential(gap);
            self.events.push(next, Event::Arrive(queue));
        }
    }

    /// A command comes to a queue pair now; `false` where no more are to come.
    pub(super) fn issue(&mut self, queue: u32) -> bool {
        let measured = self.measuring();
        if !self.spend() {
            return false;
        }
        self.outcome.issued += 1;
        self.flight(true);
        let of = &mut self.queues[queue as usize];
        match of.free.pop() {
            Some(job) => self.submit(job, queue, self.now, measured),
            None => of.backlog.push_back(self.now),
        }
        true
    }

    /// A thread begins to make a command that came at `issued`.
    fn submit(&mut self, job: u32, queue: u32, issued: Time, measured: bool) {
        let mut draw = self.calls.below(self.call_weights);
        let calls = &self.machine.calls;
        let call = calls.iter().position(|call| match draw < call.weight {
            true => true,
            false => {
                draw -= call.weight;
                false
            }
        });
        let of = &mut self.jobs.items[job as usize];
        of.work = Work::Call(call.unwrap_or(0) as u32);
        of.issued = issued;
        of.left = self.machine.batch;
        of.hits = 0;
        of.measured = measured;
        let thread = &mut self.queues[queue as usize].thread;
        let stored = thread.serve(self.now, self.machine.host.submit);
        self.events.push(stored, Event::Submitted(job));
    }

    /// A thread has stored a command.
    pub(super) fn submitted(&mut self, job: u32) {
        let queue = self.queue_of(job);
        let of = &mut self.queues[queue as usize];
        of.stored.push_back(job);
        of.untold += 1;
        self.tell(queue);
    }

    /// A thread rings where a doorbell is full, or where it has nothing else to do now.
    fn tell(&mut self, queue: u32) {
        let of = &mut self.queues[queue as usize];
        let idle = of.thread.free_at() <= self.now;
        if of.untold == 0 || !(idle || of.untold >= self.machine.doorbell) {
            return;
        }
        let fetch = self.fetches.add(Fetch {
            queue,
            count: of.untold,
            reads: 0,
        });
        of.untold = 0;
        let at = self.now + self.machine.host.mmio_write;
        self.events.push(at, Event::Ring(fetch));
    }

    /// A thread sees a completion.
    pub(super) fn seen(&mut self, job: u32) {
        let queue = self.queue_of(job);
        let thread = &mut self.queues[queue as usize].thread;
        let done = thread.serve(self.now, self.machine.host.complete);
        self.events.push(done, Event::Done(job));
    }

    /// It has taken it in: the command has ended, and there is room for another one.
    pub(super) fn done(&mut self, job: u32) {
        let queue = self.queue_of(job);
        let of = self.jobs.items[job as usize];
        let latency = self.now - of.issued;
        self.flight(false);
        self.outcome.latency_sum += u128::from(latency);
        if of.measured {
            self.outcome.latencies.record(latency);
        }
        self.count.commands += 1;
        self.one_ended();
        match self.machine.load {
            Load::Closed => {
                self.queues[queue as usize].free.push(job);
                self.issue(queue);
            }
            Load::Open { .. } => {
                let of = &mut self.queues[queue as usize];
                match of.backlog.pop_front() {
                    Some(issued) => {
                        // It is measured where it came in the measured time, not where it began.
                        let [first, second] = &self.window;
                        let measured = first.as_ref().is_some_and(|from| issued >= from.at)
                            && second.as_ref().is_none_or(|to| issued < to.at);
                        self.submit(job, queue, issued, measured);
                    }
                    None => of.free.push(job),
                }
            }
        }
        self.tell(queue);
    }
}
