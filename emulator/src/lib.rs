//! The emulated SmartNIC: a PCI function, from config space to queues, around the firmware
//! model.
//!
//! [`Device`] is the function itself: registers, doorbells, MSI-X, a DMA engine that checks
//! every access against what the host has mapped, and [`Device::step`], which does bounded
//! work and has no thread of its own. Two front ends make a
//! [`Function`](offmap_device_io::Function) of it for drivers in the same process:
//! [`Inline`], where the waiting caller runs the device, and [`Threaded`].
//!
//! With the feature `vfio-user`, [`vfio_user`] serves the threaded one to a process that
//! connects to a socket: a driver, or a virtual machine.
//!
//! [`Device::save`] and [`Device::restore`] carry its maps over to another process.
//!
//! Nothing from the host is trusted: bad bytes become a status, a typed error, a queue that
//! has stopped, or a device that has stopped itself until its reset; never a panic, a hang or
//! an access to memory that the host has not mapped.
#![forbid(unsafe_code)]

mod admin;
mod bars;
mod burst;
mod config;
pub mod config_space;
mod device;
mod diagnostics;
pub mod dma;
mod entry;
mod error;
pub mod faults;
/// What rules N2 and N4 ask for; the litmus tests have loom's here.
mod fence {
    pub(crate) use offmap_abi::fence::full_fence;
}
mod function;
mod inline;
pub mod msix;
mod park;
mod queue;
pub mod regs;
mod state;
mod threaded;
mod timing;
#[cfg(feature = "vfio-user")]
pub mod vfio_user;
mod wake;

pub use config::{DeviceConfig, DeviceMemory, Turns};
pub use device::{Clock, Device, Step, bar_info};
pub use diagnostics::{Diagnostics, Held};
pub use error::EmulatorError;
pub use function::{Emulated, FrontEnd};
pub use inline::{Inline, InlineFrontEnd};
pub use offmap_firmware_model::ConfigError as FirmwareError;
pub use offmap_firmware_model::{Ecc, TierConfig};
pub use state::StateError;
pub use threaded::{Threaded, ThreadedFrontEnd};
