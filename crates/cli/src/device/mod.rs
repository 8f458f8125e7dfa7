//! `offmap device`: tests of devices, SmartNICs on the PCI bus, and what is inside of one.

mod bind;
pub mod header;
mod inside;
mod list;
pub mod test;

use crate::args::DeviceCommand;
use crate::open::OpenError;
use offmap_abi::regs::{PCI_DEVICE_ID, PCI_VENDOR_ID};
use offmap_driver::DriverError;
use offmap_emulator::EmulatorError;
use offmap_vfio::sysfs::{Sysfs, SysfsError};
use thiserror::Error;

/// Why a command of `offmap device` has failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The function, or the kernel.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The list cannot be written as JSON.
    #[error("the list cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A device cannot be built in this process.
    #[error(transparent)]
    Build(#[from] EmulatorError),
    /// The device does not answer as it should.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The device has no such map, or several of that name.
    #[error("there is not exactly one map {map:?} on the device: {known}")]
    NoSuchMap {
        /// What was asked for.
        map: String,
        /// What there is.
        known: String,
    },
}

impl DeviceError {
    /// Whether what was asked for cannot be.
    pub fn is_input(&self) -> bool {
        let bad = |e: &SysfsError| {
            matches!(
                e,
                SysfsError::BadAddress(_)
                    | SysfsError::NoSuchFunction(_)
                    | SysfsError::NotOurs { .. }
            )
        };
        matches!(self, Self::Sysfs(e) if bad(e))
            || matches!(self, Self::NoSuchMap { .. } | Self::Open(_))
    }
}

/// Carries out a command other than the test, and returns what it prints.
///
/// # Errors
///
/// [`DeviceError`].
pub fn run(command: &DeviceCommand) -> Result<String, DeviceError> {
    let sysfs = Sysfs::system();
    match command {
        DeviceCommand::List { json } => list::list(&sysfs, *json),
        DeviceCommand::Bind { address, force } => {
            let expected = (PCI_VENDOR_ID, PCI_DEVICE_ID);
            Ok(bind::lines(
                sysfs.bind(address, (!force).then_some(expected))?,
            ))
        }
        DeviceCommand::Unbind { address } => Ok(bind::lines(sysfs.unbind(address)?)),
        DeviceCommand::Info(args) => inside::info(args),
        DeviceCommand::Memory(args) => inside::memory(args),
        DeviceCommand::Map(args) => inside::map(args),
        DeviceCommand::Header => Ok(header::HEADER.to_owned()),
        // It is about a device wherever that is, and has a report of its own.
        DeviceCommand::Test(_) => Ok(String::new()),
    }
}
