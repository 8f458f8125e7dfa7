//! Hosts that sleep until an interrupt (rule N4), in simulated time.
//!
//! An interrupt is a posted write of the device: it arrives after the stores that it made before,
//! and at some moment. A host that sleeps over a completion, with no interrupt on its way, is what
//! the rule rules out.

use crate::check::Check;
use crate::mutation::Mutation;
use crate::world::World;
use offmap_device_io::{Interrupt, IoError};
use std::time::Duration;

/// No sleep is longer without a look.
const LONGEST: Duration = Duration::from_millis(128);
/// Time that passes between two moments of a sleep, at most, in nanoseconds.
const NAP_NS: u64 = 4000;
/// An interrupt is on its way no longer than this, coalescing (40 us at most) and a device that
/// serves other queues first included.
const DUE_NS: u64 = 200_000;

impl World {
    /// The host on the present CPU sleeps.
    pub(crate) fn sleep(
        &mut self,
        interrupt: &Interrupt,
        timeout: Duration,
    ) -> Result<bool, IoError> {
        self.sleeps += 1;
        let timeout = match self.plants(Mutation::SleepTooLong, 1) {
            true => timeout + Duration::from_millis(200),
            false => timeout,
        };
        if timeout > LONGEST {
            let what = format!(
                "a host was to sleep for {timeout:?} without a look, more than {LONGEST:?}"
            );
            self.violate(Check::Sleep, what);
        }
        if self.mutation == Some(Mutation::NoLookBeforeSleep) {
            // As if the look had been before the word was stored.
            self.memory.hold_events(true);
            for _ in 0..self.rng.below(12) {
                self.tick();
            }
            self.memory.hold_events(false);
            self.memory.mutated += 1;
        }
        self.capture();
        let until = self.now_ns + timeout.as_nanos() as u64;
        let known = self.memory.completions_known(self.cpu());
        if let Some(queue) = self.memory.queue_of(self.cpu()) {
            self.excuses.looked(queue);
        }
        let mut over_since = None;
        while self.now_ns < until {
            self.now_ns += self.rng.below(NAP_NS);
            self.tick();
            // It arrives at a moment of its own.
            if !self.rng.one_in(3) && interrupt.take()? {
                // What was stored before it is there.
                self.memory.flush_device();
                return Ok(true);
            }
            let sleeps_over = self.memory.completions_since(self.cpu(), known);
            let held_up = self.now_ns < self.stalled_until || self.excuses.slow();
            if !sleeps_over || self.removed || held_up {
                over_since = None;
                continue;
            }
            let since = *over_since.get_or_insert(self.now_ns);
            if self.now_ns - since > DUE_NS {
                if !interrupt.take()? {
                    self.slept_over();
                    // A fault may have taken it: the host sleeps on, until its next look.
                    over_since = None;
                    continue;
                }
                self.memory.flush_device();
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn slept_over(&mut self) {
        let Some(queue) = self.memory.queue_of(self.cpu()) else {
            return;
        };
        let excused = self.excuses.disturbed
            || self.excuses.interrupt_lost(queue)
            || self.excuses.queue(queue).any()
            || !self.device.is_running();
        if !excused {
            let what = format!(
                "a wake-up was lost: the host of {queue} sleeps, a completion is there for it, \
                 and no interrupt is on its way"
            );
            self.violate(Check::HostWake, what);
        }
    }
}
