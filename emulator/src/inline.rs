//! The inline front end: the device runs on the thread of whoever waits for it.

use crate::config::DeviceConfig;
use crate::device::Device;
use crate::error::EmulatorError;
use crate::function::{Emulated, FrontEnd};
use offmap_device_io::IoError;
use std::sync::{Arc, Mutex, TryLockError};

/// An emulated device that does a step of its work in each call of
/// [`Function::progress`](offmap_device_io::Function::progress).
///
/// With one host thread everything that happens is a function of what that thread does: there
/// is no other thread and no clock. Several host threads may share the device; whoever waits
/// runs it for all.
pub type Inline = Emulated<InlineFrontEnd>;

/// See [`Inline`].
pub struct InlineFrontEnd {
    device: Mutex<Device>,
}

impl Inline {
    /// Builds a device.
    ///
    /// # Errors
    ///
    /// [`EmulatorError`], when the configuration or the system does not allow it.
    pub fn new(config: DeviceConfig) -> Result<Arc<Self>, EmulatorError> {
        Ok(Arc::new(Self {
            front_end: InlineFrontEnd {
                device: Mutex::new(Device::new(&config)?),
            },
        }))
    }
}

impl FrontEnd for InlineFrontEnd {
    const NAME: &'static str = "inline";
    const RUNS_ON_CALLER: bool = true;

    fn with_device<R>(&self, f: impl FnOnce(&mut Device) -> R) -> Result<R, IoError> {
        match self.device.lock() {
            Ok(mut device) => Ok(f(&mut device)),
            Err(_) => Err(IoError::Gone("a step of the inline device has panicked")),
        }
    }

    fn wake(&self) {}

    #[inline]
    fn progress(&self) {
        match self.device.try_lock() {
            Ok(mut device) => {
                device.step();
            }
            // Another thread runs the device at this moment; a dead one shows itself as
            // `Gone` at the next register access.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => std::hint::spin_loop(),
        }
    }
}
