//! How the device falls asleep and is woken up (abi §10, rules N1 to N3), from its front end's side.

use crate::device::{Device, Step};
use crate::dma::Dma;
use crate::park::{self, Served};
use crate::queue::{Queue, Stop};
use offmap_device_io::DmaBuffer;
use std::time::Duration;

impl Served for Device {
    /// Passes over those that have stopped.
    fn for_each(&mut self, mut f: impl FnMut(&mut Queue, &Dma, &DmaBuffer) -> Result<(), Stop>) {
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            if !self.running {
                return;
            }
            if queue.is_stopped() {
                continue;
            }
            if let Err(stop) = f(queue, &self.dma, &self.doorbells) {
                self.halt(index, stop);
            }
        }
    }
}

impl Device {
    /// Prepares to wait for a wake-up: asks for a KICK on every queue that has a notify block,
    /// then looks once more (rule N2). Returns whether the caller may wait.
    pub fn arm(&mut self) -> bool {
        if !self.running {
            return true;
        }
        self.answered = false;
        if self.faults.as_ref().is_some_and(|engine| engine.stopped) {
            // Firmware that hangs asks for nothing and waits for a reset.
            return true;
        }
        let nothing_new = park::arm(self);
        let held = self.faults.as_ref().is_some_and(|engine| engine.holds());
        let parks = nothing_new && !(self.admin_work.is_some() || held || self.holding);
        self.diagnostics.parks += u64::from(parks);
        self.diagnostics.parks_called_off += u64::from(!nothing_new);
        parks
    }

    /// Takes back what [`Device::arm`] asked for.
    pub fn disarm(&mut self) {
        park::disarm(self);
    }

    /// How long a front end that waits after [`Device::arm`] may do so without a look (rule N3).
    pub fn look_again(&self) -> Duration {
        self.look_again
    }

    /// Does the first bounded piece of the work that a KICK was written for, if one was since the last
    /// call. Whoever carried out the write of a device that sleeps has it in hands and is awake; the
    /// device's own thread is so only some wake-ups later. That is once for each time that the device is
    /// armed: what follows is the thread's, or it would be no thread's own device. A device with a
    /// fault plan leaves it all to its thread: a plan counts steps, and which thread asked for one
    /// is not to show in what it injects.
    pub(crate) fn answer_kick(&mut self) {
        if std::mem::take(&mut self.kicked) && !self.answered && self.faults.is_none() {
            self.answered = self.step() == Step::Worked;
            self.diagnostics.kicks_answered += u64::from(self.answered);
        }
    }

    /// Whether [`Device::answer_kick`] has done work since the last call: more may follow, and the
    /// event words are those of before it.
    pub(crate) fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }
}
