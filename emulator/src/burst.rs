//! The sites of a fault plan that the commands of an I/O queue pass in its turn.
//!
//! The loop that serves a queue is one piece of code for a device with a plan and for one without
//! (`Device::serve_io`). It is compiled once past these sites and once without them.

use crate::config::DeviceMemory;
use crate::dma::{Dma, Host};
use crate::faults::{Engine, Fetched, Planned};
use crate::queue::{Queue, Stop};
use offmap_abi::{Completion, Status};
use offmap_device_io::DmaBuffer;
use offmap_firmware_model::{Firmware, Progress};

/// The plan of a device, if it has one.
type Faults = Option<Box<Engine>>;

/// Whether something is about to befall the device, so that the burst ends here.
pub(crate) fn befalls(faults: &Faults) -> bool {
    faults
        .as_ref()
        .is_some_and(|engine| engine.event().is_some())
}

/// An entry was fetched: begins its command, unless the host has `aborted` it before. `None`: it is
/// never answered.
pub(crate) fn begin(
    faults: &mut Faults,
    queue: &mut Queue,
    aborted: bool,
    dma: &mut Dma,
    firmware: &mut Firmware<DeviceMemory>,
) -> Result<Option<Progress>, Stop> {
    let command = *queue.current();
    if aborted {
        if let Some(engine) = faults {
            Planned(engine).begin(queue.id(), &command, firmware);
        }
        let completion = Completion::new(command.request(), Status::Aborted);
        return Ok(Some(Progress::Done(completion)));
    }
    let Some(engine) = faults else {
        return Ok(Some(firmware.io(queue.id().0, &command, &mut Host(dma))));
    };
    let mut plan = Planned(engine);
    let command = match plan.fetched(queue.id(), queue.current_words(), firmware)? {
        Fetched::Lost => return Ok(None),
        Fetched::Answer(completion) => return Ok(Some(Progress::Done(completion))),
        Fetched::Run(command) => command,
    };
    let progress = plan.run(queue.id(), Some(&command), dma, firmware);
    if progress == Progress::More {
        // A queue that stops gives up what it says is under way.
        queue.set_under_way(Some(command.request()));
    }
    plan.after_run()?;
    // It may have died with the firmware, or be of no use to anybody.
    Ok((!befalls(faults)).then_some(progress))
}

/// Does the next piece of the command under way. `None`: it is not answered any more.
pub(crate) fn resume(
    faults: &mut Faults,
    queue: &Queue,
    dma: &mut Dma,
    firmware: &mut Firmware<DeviceMemory>,
) -> Result<Option<Progress>, Stop> {
    let Some(engine) = faults else {
        return Ok(Some(firmware.resume_io(queue.id().0, &mut Host(dma))));
    };
    let mut plan = Planned(engine);
    let progress = plan.run(queue.id(), None, dma, firmware);
    plan.after_run()?;
    Ok((!befalls(faults)).then_some(progress))
}

/// Posts a completion, or what becomes of it.
pub(crate) fn post(
    faults: &mut Faults,
    queue: &mut Queue,
    dma: &Dma,
    doorbells: &DmaBuffer,
    completion: Completion,
) -> Result<(), Stop> {
    match faults {
        Some(engine) => Planned(engine).post(queue, dma, doorbells, completion),
        None => queue.post(dma, completion),
    }
}
