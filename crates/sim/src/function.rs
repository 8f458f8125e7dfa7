//! The simulated function: what the driver gets for a device.

use crate::mutation::Mutation;
use crate::world::World;
use offmap_abi::{QueueId, RequestId};
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_driver::Driver;
use offmap_emulator::bar_info;
use offmap_emulator::dma::IOVA_RANGES;
use offmap_emulator::regs::Width;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// What a call of [`Function::relax`] lets pass, in nanoseconds.
const RELAX_NS: u64 = 20_000;

/// A [`Function`] over the simulated world. It owns the clock.
pub(crate) struct SimFunction {
    world: Mutex<World>,
    /// Hosts do not sleep at interrupts.
    polled: bool,
    /// For what other threads do with the driver meanwhile.
    driver: OnceLock<Weak<Driver<SimFunction>>>,
    interruption: Mutex<Option<Interruption>>,
}

/// What another thread does while a host waits in a call, or what befalls the host itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meanwhile {
    /// It aborts the batch that the host waits for.
    Abort,
    /// It has the driver reset the device.
    Reset,
    /// Something else resets the device.
    ForeignReset,
    /// The host's thread dies, and its queue is deleted.
    Death,
    /// The host unwinds out of the call, and goes on with its queue.
    Leave,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Met {
    /// It did not happen: the call was over before.
    Nothing,
    /// The abort of a batch was confirmed.
    Aborted,
    /// It came too late: the command has ended, or will in the ordinary way.
    AbortedLate,
    /// The abort failed, with an effect or without.
    AbortFailed,
    /// The device was reset; whether in the middle of a command.
    Reset(bool),
    /// The thread has died; whether in the middle of a command.
    Died(bool),
    /// The host has left the call, and this command is under way.
    Left(RequestId),
}

struct Interruption {
    what: Meanwhile,
    /// The queue that the call is on, and the commands on it that are not the call's.
    queue: Option<(QueueId, Vec<u64>)>,
    /// Looks of the waiting host until then.
    after: u64,
    /// Of these the ones in a row at which no admin command was under way.
    idle: u32,
    met: Met,
}

/// So many looks after an admin command has ended the driver's lock is free again.
const IDLE_LOOKS: u32 = 4;

/// What unwinds a thread that dies, or a host that leaves a call.
struct Death;

impl SimFunction {
    pub(crate) fn new(world: World, polled: bool) -> Self {
        Self {
            world: Mutex::new(world),
            polled,
            driver: OnceLock::new(),
            interruption: Mutex::new(None),
        }
    }

    /// Lets other threads know the driver.
    pub(crate) fn introduce(&self, driver: &Arc<Driver<Self>>) {
        let _ = self.driver.set(Arc::downgrade(driver));
    }

    fn interruption(&self) -> MutexGuard<'_, Option<Interruption>> {
        let lock = self.interruption.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call of the driver, and lets something happen in it after so many looks of its wait:
    /// of a batch on a queue where it is one. `None`: the host has been unwound out of it.
    pub(crate) fn meanwhile<R>(
        &self,
        what: Option<(Meanwhile, u64)>,
        queue: Option<(QueueId, Vec<u64>)>,
        call: impl FnOnce() -> R,
    ) -> (Option<R>, Met) {
        let Some((what, after)) = what else {
            return (Some(call()), Met::Nothing);
        };
        *self.interruption() = Some(Interruption {
            what,
            queue,
            after,
            idle: 0,
            met: Met::Nothing,
        });
        let done = catch_unwind(AssertUnwindSafe(call));
        let met = self.interruption().take().map_or(Met::Nothing, |i| i.met);
        match done {
            Ok(done) => (Some(done), met),
            Err(death) if death.is::<Death>() => (None, met),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// A host that waits looks: what is to happen meanwhile may do so now.
    fn interrupt(&self) {
        let now = match &mut *self.interruption() {
            Some(i) if i.met == Met::Nothing => {
                i.after = i.after.saturating_sub(1);
                (i.after == 0).then(|| (i.what, i.queue.clone()))
            }
            _ => None,
        };
        let Some((what, queue)) = now else {
            return;
        };
        let (target, midway) = {
            let mut world = self.world();
            world.capture();
            // A thread that holds the driver's lock is not interrupted: it may be this one.
            let idle = world.memory.admin_is_idle();
            let looks = match &mut *self.interruption() {
                Some(i) => {
                    i.idle = if idle { i.idle + 1 } else { 0 };
                    i.idle
                }
                None => 0,
            };
            if what != Meanwhile::ForeignReset && looks < IDLE_LOOKS {
                return;
            }
            let of = |(queue, but): &(QueueId, Vec<u64>)| world.memory.batch_in_flight(*queue, but);
            let target = queue.as_ref().and_then(of);
            let midway = world.device.diagnostics().under_way > 0;
            (target.map(|command| command.request()), midway)
        };
        let queue = queue.map(|(queue, _)| queue);
        let set = |met| {
            if let Some(i) = &mut *self.interruption() {
                i.met = met;
            }
        };
        let driver = self.driver.get().and_then(Weak::upgrade);
        match what {
            Meanwhile::Abort => {
                let (Some(queue), Some(target), Some(driver)) = (queue, target, driver) else {
                    return;
                };
                // So that the looks of the abort's own wait are none of this one's.
                set(Met::AbortFailed);
                set(match driver.abort(queue, target) {
                    Ok(true) => Met::Aborted,
                    Ok(false) => Met::AbortedLate,
                    Err(_) => Met::AbortFailed,
                });
            }
            Meanwhile::Reset => {
                let Some(driver) = driver else {
                    return;
                };
                set(Met::Reset(midway));
                // The host that waits finds out by itself how it ended.
                let _ = driver.reset();
                self.world().excuses.disturbed = true;
            }
            Meanwhile::ForeignReset => {
                set(Met::Reset(midway));
                let mut world = self.world();
                world.reset();
                world.excuses.disturbed = true;
            }
            Meanwhile::Death => {
                let (Some(queue), Some(target)) = (queue, target) else {
                    return;
                };
                set(Met::Died(midway));
                self.world().orphan(queue, target);
                resume_unwind(Box::new(Death));
            }
            Meanwhile::Leave => {
                let Some(target) = target else {
                    return;
                };
                set(Met::Left(target));
                resume_unwind(Box::new(Death));
            }
        }
    }

    /// The world. One thread runs it all, so nobody waits here.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for SimFunction {
    fn describe(&self) -> String {
        "simulated".into()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        let world = self.world();
        if world.removed {
            buf.fill(0xff);
            return Ok(());
        }
        world.device.config_read(offset, buf)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.world().config_write(offset, data)
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        bar_info(bar)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        self.world()
            .read(bar, offset, Width::Four)
            .map(|value| value as u32)
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        self.world().read(bar, offset, Width::Eight)
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.world().write(bar, offset, Width::Four, value.into());
        Ok(())
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.world().write(bar, offset, Width::Eight, value);
        Ok(())
    }

    fn map_bar(&self, _: u8, _: BarOffset, _: usize) -> Result<Option<BarMapping>, IoError> {
        // All is trapped, so that each write has its place in the order of stores.
        Ok(None)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        IOVA_RANGES.to_vec()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.world().map(buffer, iova)
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.world().unmap(iova, len)
    }

    fn vectors(&self) -> u32 {
        self.world().device.vectors()
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        self.world().device.enable_vector(vector)
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.world().device.disable_vector(vector)
    }

    fn reset(&self) -> Result<(), IoError> {
        let mut world = self.world();
        if world.removed {
            return Err(IoError::Gone("it was removed"));
        }
        world.reset();
        Ok(())
    }

    fn progress(&self) {
        self.interrupt();
        self.world().tick();
    }

    fn runs_on_caller(&self) -> bool {
        self.polled
    }

    fn now(&self) -> Duration {
        let mut world = self.world();
        let slowness = match world.plants(Mutation::SlowClock, 1) {
            true => 8,
            false => 1,
        };
        Duration::from_nanos(world.now_ns / slowness)
    }

    fn relax(&self) {
        self.interrupt();
        self.world().pass(RELAX_NS);
    }

    fn sleep(&self, interrupt: &Interrupt, timeout: Duration) -> Result<bool, IoError> {
        self.interrupt();
        self.world().sleep(interrupt, timeout)
    }
}
