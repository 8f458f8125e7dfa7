//! Why a device cannot be built.

use std::io;

/// A [`crate::DeviceConfig`] that no device can be built from, or a resource that the system
/// refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// A field of the configuration is outside its range.
    #[error("{field} is {value}: it must be {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// The firmware's part of the configuration is outside its range.
    #[error(transparent)]
    Firmware(#[from] offmap_firmware_model::ConfigError),
    /// Device memory could not be reserved.
    #[error("cannot reserve {bytes} bytes of device memory: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The doorbells could not be made.
    #[error("cannot make the doorbells: {0}")]
    Doorbells(#[from] offmap_device_io::IoError),
    /// The device's thread could not be started.
    #[error("cannot start the device's thread: {0}")]
    Thread(io::Error),
}
