//! What a device knows of its own past and of the commands that it has, beyond what registers show.

use crate::device::Device;
use offmap_abi::{QueueId, RequestId};

/// Commands that the host has published and the device has not answered, begun or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Those of the admin queue.
    pub admin: u64,
    /// Those of all I/O queues.
    pub io: u64,
}

/// What a device knows of its own past, beyond what registers show. Nothing resets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Diagnostics {
    /// How often the device forgot its queues and maps, or stopped itself, with commands under
    /// way.
    pub cuts: u64,
    /// Commands that this met in the middle: fetched and begun, with some of their data moved by
    /// DMA, and not completed. Nobody is told of them any more.
    pub cut_short: u64,
    /// Of those, the ones of the last time.
    pub last_cut_short: u64,
    /// What [`Device::held`] was when the device forgot its queues or stopped itself the last time.
    pub last_held: Held,
    /// Commands that are in the middle now.
    pub under_way: u64,
    /// How often it was ready to park ([`Device::arm`]), and how often the last look before that
    /// found something (rule N2).
    pub parks: u64,
    /// See [`Diagnostics::parks`].
    pub parks_called_off: u64,
    /// KICK registers written by the host, whether the device slept or not.
    pub kicks: u64,
    /// Those whose first piece of work was done by the thread that carried the write out, instead
    /// of the device's own.
    pub kicks_answered: u64,
}

impl Device {
    /// The command of an I/O queue that is in the middle: begun, and not completed.
    pub fn under_way(&self, queue: QueueId) -> Option<RequestId> {
        let queue = self.queues.iter().find(|q| q.id() == queue)?;
        queue.under_way()
    }

    /// What the device knows of its own past.
    pub fn diagnostics(&self) -> Diagnostics {
        let begun = self.queues.iter().filter(|q| q.under_way().is_some());
        Diagnostics {
            under_way: begun.count() as u64 + u64::from(self.admin_work.is_some()),
            ..self.diagnostics
        }
    }

    /// Commands that it has and has not answered. A tail whose memory is not mapped, any more or because
    /// it is reached by messages, publishes none.
    pub fn held(&mut self) -> Held {
        let mut held = Held::default();
        for queue in &mut self.queues {
            let of_queue = match queue.id().is_admin() {
                true => &mut held.admin,
                false => &mut held.io,
            };
            *of_queue += u64::from(queue.held(&self.dma, &self.doorbells));
        }
        held
    }

    /// Counts the commands that end here, in the middle or before they began; those of a device that had
    /// stopped before were counted then. They are under way no more.
    pub(crate) fn cut_short(&mut self) {
        let cut = self.diagnostics().under_way;
        if self.running {
            self.diagnostics.last_held = self.held();
        }
        self.admin_work = None;
        for queue in &mut self.queues {
            queue.set_under_way(None);
        }
        if cut > 0 {
            self.diagnostics.cuts += 1;
            self.diagnostics.cut_short += cut;
            self.diagnostics.last_cut_short = cut;
        }
    }
}
