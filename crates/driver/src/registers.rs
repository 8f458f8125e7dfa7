//! BAR0 registers by name, with the checks that every read gets.

use crate::DriverError;
use offmap_abi::regs::{self, DeviceStatus, FatalCause};
use offmap_device_io::{BarOffset, Function};

/// The registers of one function.
pub(crate) struct Registers<'f, F>(pub(crate) &'f F);

impl<F: Function> Registers<'_, F> {
    pub(crate) fn read32(&self, register: &'static str, offset: u64) -> Result<u32, DriverError> {
        self.0
            .read32(regs::BAR_REGISTERS, BarOffset(offset))
            .map_err(|source| DriverError::Register {
                access: "read",
                register,
                source,
            })
    }

    /// Reads a register that is never all ones while the device is there (abi §3).
    pub(crate) fn present32(
        &self,
        register: &'static str,
        offset: u64,
    ) -> Result<u32, DriverError> {
        match self.read32(register, offset)? {
            u32::MAX => Err(DriverError::DeviceGone { register }),
            value => Ok(value),
        }
    }

    pub(crate) fn present64(
        &self,
        register: &'static str,
        offset: u64,
    ) -> Result<u64, DriverError> {
        let value = self
            .0
            .read64(regs::BAR_REGISTERS, BarOffset(offset))
            .map_err(|source| DriverError::Register {
                access: "read",
                register,
                source,
            })?;
        match value {
            u64::MAX => Err(DriverError::DeviceGone { register }),
            value => Ok(value),
        }
    }

    pub(crate) fn write32(
        &self,
        register: &'static str,
        offset: u64,
        value: u32,
    ) -> Result<(), DriverError> {
        self.0
            .write32(regs::BAR_REGISTERS, BarOffset(offset), value)
            .map_err(|source| DriverError::Register {
                access: "write",
                register,
                source,
            })
    }

    pub(crate) fn write64(
        &self,
        register: &'static str,
        offset: u64,
        value: u64,
    ) -> Result<(), DriverError> {
        self.0
            .write64(regs::BAR_REGISTERS, BarOffset(offset), value)
            .map_err(|source| DriverError::Register {
                access: "write",
                register,
                source,
            })
    }

    pub(crate) fn status(&self) -> Result<DeviceStatus, DriverError> {
        self.present32("STATUS", regs::STATUS)
            .map(DeviceStatus::from_bits_retain)
    }

    pub(crate) fn reset_count(&self) -> Result<u32, DriverError> {
        self.read32("RESET_COUNT", regs::RESET_COUNT)
    }

    /// The error that stands for a device that set FATAL.
    pub(crate) fn fatal(&self) -> DriverError {
        match self.present32("FATAL_CAUSE", regs::FATAL_CAUSE) {
            Ok(cause) => DriverError::Fatal {
                cause: FatalCause(cause),
            },
            Err(e) => e,
        }
    }

    /// Whether the device still runs, and is the one that was brought up.
    pub(crate) fn health(&self, reset_count: u32) -> Result<(), DriverError> {
        let status = self.status()?;
        if status.contains(DeviceStatus::FATAL) {
            return Err(self.fatal());
        }
        if !status.contains(DeviceStatus::READY) || self.reset_count()? != reset_count {
            return Err(DriverError::DeviceReset);
        }
        Ok(())
    }
}
