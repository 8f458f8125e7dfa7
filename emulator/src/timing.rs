//! A device that says what its commands would take on hardware: the bus events of I/O queues, reported to the
//! meter of the firmware model.
//!
//! As with a fault plan, the loop that serves a queue is compiled once past these sites and once without them, so
//! that a device without a meter pays for none of it. The admin queue is not charged: what it does is no operation on
//! elements. Nor is anything while a fault plan is there, since what that does has no modelled time.

use crate::config::DeviceMemory;
use crate::device::{Device, Step};
use crate::dma::{Dma, Host};
use crate::function::{Emulated, FrontEnd};
use crate::queue::{Announce, Queue, Stop};
use offmap_abi::{Completion, CompletionWords, IoOpcode};
use offmap_device_io::IoError;
use offmap_firmware_model::time::meter::{Meter, Modelled};
use offmap_firmware_model::time::profile::{ProfileError, TimingProfile};
use offmap_firmware_model::{Firmware, Progress};

/// The meter of a device, if it has one.
pub(crate) type Timing = Option<Box<Meter>>;

/// An entry was fetched: the first one of a turn begins it.
#[inline]
pub(crate) fn fetched(timing: &mut Timing, queue: &Queue, begun: &mut bool) {
    let Some(meter) = timing.as_deref_mut() else {
        return;
    };
    if !*begun {
        *begun = true;
        meter.turn(queue.id().0);
    }
    meter.fetch(queue.current().opcode, queue.current_iova());
}

/// Runs the command that was fetched: as [`Firmware::io_to`].
#[inline]
pub(crate) fn run(
    timing: &mut Timing,
    queue: &Queue,
    dma: &mut Dma,
    firmware: &mut Firmware<DeviceMemory>,
    done: &mut CompletionWords,
) -> bool {
    let (context, host) = (queue.id().0, &mut Host(dma));
    match timing.as_deref_mut() {
        Some(meter) => firmware.io_metered(context, queue.current(), host, meter, done),
        None => firmware.io_to(context, queue.current(), host, done),
    }
}

/// Does the next piece of the command under way.
pub(crate) fn resume(
    timing: &mut Timing,
    queue: &Queue,
    dma: &mut Dma,
    firmware: &mut Firmware<DeviceMemory>,
) -> Progress {
    let (context, host) = (queue.id().0, &mut Host(dma));
    let Some(meter) = timing.as_deref_mut() else {
        return firmware.resume_io(context, host);
    };
    meter.turn_on(context);
    firmware.resume_io_metered(context, host, meter)
}

/// The command is not done yet.
pub(crate) fn suspended(timing: &mut Timing, queue: &Queue) {
    if let Some(meter) = timing.as_deref_mut() {
        meter.suspend(queue.id().0);
    }
}

/// The command is done, and its completion is about to be posted.
#[inline]
pub(crate) fn completed(timing: &mut Timing, queue: &Queue, done: &CompletionWords) {
    let Some(meter) = timing.as_deref_mut() else {
        return;
    };
    let elements = match IoOpcode(meter.opcode()).is_batch() {
        // The count of a batch is one of elements, that of other commands one of bytes.
        true => Completion::from(*done).count.get(),
        false => 1,
    };
    meter.complete(elements, queue.completion_iova());
}

impl Device {
    /// Has the device charge its commands to a meter for that profile, from now on; `None`: to none. What was
    /// counted before is forgotten. The meter outlives resets.
    ///
    /// # Errors
    ///
    /// [`ProfileError`], and everything stays as it was.
    pub fn set_timing(&mut self, profile: Option<&TimingProfile>) -> Result<(), ProfileError> {
        self.timing = match profile {
            Some(profile) => Some(Box::new(Meter::new(profile)?)),
            None => None,
        };
        self.watched = self.timing.is_some() || self.faults.is_some();
        Ok(())
    }

    /// Has the device charge nothing for a while, or go on. What is measured meanwhile does not pay for it.
    pub fn pause_timing(&mut self, pause: bool) {
        self.watched = self.timing.is_some() && !pause || self.faults.is_some();
    }

    /// What the commands so far would have taken; `None` without a meter.
    pub fn modelled(&self) -> Option<Modelled> {
        self.timing.as_deref().map(Meter::modelled)
    }

    /// The meter, for who places maps in tiers, or forgets what was counted.
    pub fn meter_mut(&mut self) -> Option<&mut Meter> {
        self.timing.as_deref_mut()
    }

    /// A step of a device with a meter, a fault plan or both.
    #[inline(never)]
    pub(crate) fn step_watched(&mut self) -> Step {
        if self.faults.is_some() {
            self.step_with_faults()
        } else {
            self.work::<false, true>()
        }
    }

    /// [`Device::announce`], with the turn ended for the meter.
    pub(crate) fn announce_timed(&mut self, index: usize) -> Result<(), Stop> {
        let queue = &mut self.queues[index];
        let announced = queue.announce(&self.dma, &self.clock)?;
        let id = queue.id();
        if let Some(meter) = self.timing.as_deref_mut() {
            meter.end_turn(id.0, matches!(announced, Announce::Raise(_)));
        }
        match announced {
            Announce::No => {}
            Announce::Raise(vector) => self.raise(Some(id), vector),
            Announce::Hold => self.holding = true,
        }
        Ok(())
    }
}

impl<E: FrontEnd> Emulated<E> {
    /// Has the device charge its commands to a meter, as [`Device::set_timing`]. With [`Inline`](crate::Inline), the
    /// same calls give the same modelled times; where the device has a thread, which commands it finds
    /// together depends on the machine.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died; inside, [`ProfileError`].
    pub fn set_timing(
        &self,
        profile: Option<&TimingProfile>,
    ) -> Result<Result<(), ProfileError>, IoError> {
        self.front_end.with_device(|d| d.set_timing(profile))
    }

    /// Has the device charge nothing for a while, as [`Device::pause_timing`].
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn pause_timing(&self, pause: bool) -> Result<(), IoError> {
        self.front_end.with_device(|d| d.pause_timing(pause))
    }

    /// What the commands so far would have taken, as [`Device::modelled`].
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn modelled(&self) -> Result<Option<Modelled>, IoError> {
        self.front_end.with_device(|d| d.modelled())
    }

    /// Forgets what was counted, and goes on charging.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] when the device has died.
    pub fn clear_modelled(&self) -> Result<(), IoError> {
        self.front_end.with_device(|d| {
            if let Some(meter) = d.meter_mut() {
                meter.clear();
            }
        })
    }
}
