//! How a device gets ready to park (abi §10, rule N2), with all of its queues at once.
//!
//! Written over [`Served`], so that the litmus tests run this very code over loom's words.

use crate::dma::Dma;
use crate::fence::full_fence;
use crate::queue::{Queue, Stop};
use offmap_device_io::DmaBuffer;

/// The queues that a device serves.
pub(crate) trait Served {
    /// Does something with each of them. One with which it fails stops.
    fn for_each(&mut self, f: impl FnMut(&mut Queue, &Dma, &DmaBuffer) -> Result<(), Stop>);
}

/// Asks for a KICK on every queue that has a notify block, then looks once more: whether there is
/// nothing to do, so that the device may park. The event words are visible before that look, so
/// that either it sees what the host has published, or the host sees that it is to write KICK.
pub(crate) fn arm(queues: &mut impl Served) -> bool {
    queues.for_each(|queue, dma, _| queue.arm(dma));
    full_fence();
    let mut work = false;
    queues.for_each(|queue, dma, doorbells| {
        work |= queue.has_work(dma, doorbells)?;
        Ok(())
    });
    !work
}

/// Takes back what [`arm`] asked for.
pub(crate) fn disarm(queues: &mut impl Served) {
    queues.for_each(|queue, dma, _| queue.disarm(dma));
}
