//! Accesses to the BARs: which part of the device answers at which offset (abi §2).

use crate::device::{Device, bar_info};
use crate::faults::AtRead;
use crate::regs::Width;
use offmap_abi::{DevAddr, regs};
use offmap_device_io::{BarOffset, IoError};
use std::sync::atomic::Ordering;

/// What stands at an offset of a BAR.
enum Target {
    /// The register set, at this offset.
    Registers(u64),
    /// The doorbells, at this offset of them.
    Doorbells(u64),
    /// The MSI-X table, at this offset of it.
    MsixTable(u64),
    /// The MSI-X pending bits, at this offset of them.
    MsixPending(u64),
    /// Device memory, at this offset of the window.
    Window(u64),
}

impl Device {
    /// Reads 4 or 8 bytes of a BAR, zero-extended. Where nothing stands, and while the
    /// function does not answer memory accesses, the value is all ones.
    ///
    /// # Errors
    ///
    /// [`IoError::NoBar`]; [`IoError::BarAccess`] for an access that is not aligned or not
    /// inside the BAR.
    pub fn bar_read(&mut self, bar: u8, offset: BarOffset, width: Width) -> Result<u64, IoError> {
        let target = target(bar, offset, width)?;
        let ones = match width {
            Width::Four => 0xffff_ffff,
            Width::Eight => u64::MAX,
        };
        let fault = match self.faults.is_some() {
            true => self.read_with_faults(bar, offset, width),
            false => AtRead::Plain,
        };
        if !self.config.memory_enabled() || fault == AtRead::Ones {
            return Ok(ones);
        }
        let value = match target {
            Target::Registers(at) => self.registers.read(at, width),
            Target::Doorbells(at) => {
                let word = self
                    .doorbells
                    .load_u64((at & !7) as usize, Ordering::Acquire);
                word >> (at % 8 * 8) & ones
            }
            Target::MsixTable(at) => dwords(width, at, |at| self.msix.read_table(at)),
            Target::MsixPending(at) => dwords(width, at, |at| self.msix.read_pending(at)),
            Target::Window(at) => match self.registers.get(regs::WINDOW_BASE).checked_add(at) {
                Some(address) => {
                    let mut bytes = [0; 8];
                    let len = width.bytes() as usize;
                    self.firmware
                        .read_memory(DevAddr(address), &mut bytes[..len]);
                    u64::from_le_bytes(bytes)
                }
                None => ones,
            },
        };
        let AtRead::Flip(flips) = fault else {
            return Ok(value);
        };
        let mut bytes = value.to_le_bytes();
        flips.apply(&mut bytes[..width.bytes() as usize]);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes 4 or 8 bytes of a BAR. Where nothing stands, and while the function does not
    /// answer memory accesses, the write is dropped.
    ///
    /// # Errors
    ///
    /// As [`Device::bar_read`].
    pub fn bar_write(
        &mut self,
        bar: u8,
        offset: BarOffset,
        width: Width,
        value: u64,
    ) -> Result<(), IoError> {
        let target = target(bar, offset, width)?;
        if self.faults.is_some() && self.write_with_faults(bar, offset) {
            return Ok(());
        }
        if !self.config.memory_enabled() {
            return Ok(());
        }
        match target {
            Target::Registers(at) => {
                let before = self.registers.get(regs::CONTROL);
                let enabled = self.is_enabled();
                if let Some((register, now)) = self.registers.write(at, width, value, enabled) {
                    self.register_written(register, before, now);
                }
            }
            Target::Doorbells(at) => {
                let word_at = (at & !7) as usize;
                let word = match width {
                    Width::Eight => value,
                    Width::Four => {
                        let shift = at % 8 * 8;
                        let old = self.doorbells.load_u64(word_at, Ordering::Relaxed);
                        old & !(0xffff_ffff << shift) | value << shift
                    }
                };
                self.doorbells.store_u64(word_at, word, Ordering::Release);
            }
            Target::MsixTable(at) => {
                self.msix.write_table(at, value as u32);
                if width == Width::Eight {
                    self.msix.write_table(at + 4, (value >> 32) as u32);
                }
            }
            // Pending bits are the device's.
            Target::MsixPending(_) => {}
            Target::Window(at) => {
                if let Some(address) = self.registers.get(regs::WINDOW_BASE).checked_add(at) {
                    let bytes = value.to_le_bytes();
                    let len = width.bytes() as usize;
                    self.firmware.write_memory(DevAddr(address), &bytes[..len]);
                }
            }
        }
        Ok(())
    }
}

/// What stands at the offset, after checking the access itself.
fn target(bar: u8, offset: BarOffset, width: Width) -> Result<Target, IoError> {
    let size = bar_info(bar)?.size_bytes;
    let len = width.bytes();
    if !offset.0.is_multiple_of(len) || offset.0 > size - len {
        return Err(IoError::BarAccess {
            bar,
            offset,
            len: len as usize,
        });
    }
    if bar == regs::BAR_WINDOW {
        return Ok(Target::Window(offset.0));
    }
    const DOORBELLS_END: u64 = regs::DOORBELLS + regs::DOORBELLS_BYTES;
    Ok(match offset.0 {
        at @ regs::DOORBELLS..DOORBELLS_END => Target::Doorbells(at - regs::DOORBELLS),
        at @ regs::MSIX_TABLE..regs::MSIX_PBA => Target::MsixTable(at - regs::MSIX_TABLE),
        at @ regs::MSIX_PBA.. => Target::MsixPending(at - regs::MSIX_PBA),
        at => Target::Registers(at),
    })
}

/// A read of 4-byte words that may cover two of them.
fn dwords(width: Width, at: u64, read: impl Fn(u64) -> u32) -> u64 {
    let low = u64::from(read(at));
    match width {
        Width::Four => low,
        Width::Eight => low | u64::from(read(at + 4)) << 32,
    }
}
