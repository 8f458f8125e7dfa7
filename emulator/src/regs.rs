//! The registers of BAR0, declared as data (abi §3).
//!
//! [`REGISTERS`] says of each register where it is, how wide, who may write which bits of it
//! and what it holds after reset; [`RegisterFile`] applies those rules and holds the values.
//! What a written value *does* is the device's matter.

use offmap_abi::regs;

/// Width of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 4 bytes: accessed whole.
    Four,
    /// 8 bytes: accessed whole or as two halves of 4.
    Eight,
}

impl Width {
    /// The width in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// What the host may do with a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Writes are ignored.
    ReadOnly,
    /// The bits of the mask may be written at any time; the others keep their value.
    ReadWrite(u64),
    /// As [`Access::ReadWrite`] while CONTROL.ENABLE is clear; otherwise writes are ignored.
    WhileDisabled(u64),
    /// Reads return all ones; a write has an effect and leaves no value.
    WriteOnly,
}

/// One register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Offset in BAR0.
    pub offset: u64,
    /// Width.
    pub width: Width,
    /// What the host may do with it.
    pub access: Access,
    /// Value after reset. Registers that describe the device are given theirs when the device
    /// is built.
    pub reset: u64,
}

const fn register(offset: u64, width: Width, access: Access, reset: u64) -> Register {
    Register {
        offset,
        width,
        access,
        reset,
    }
}

/// Every register, by ascending offset.
pub const REGISTERS: [Register; 17] = {
    use Access::{ReadOnly, ReadWrite, WhileDisabled, WriteOnly};
    use Width::{Eight, Four};
    let version = (offmap_abi::ABI_MAJOR as u64) << 16 | offmap_abi::ABI_MINOR as u64;
    let no_vector = regs::NO_VECTOR as u64;
    [
        register(regs::MAGIC, Eight, ReadOnly, regs::MAGIC_VALUE),
        register(regs::VERSION, Four, ReadOnly, version),
        register(regs::VECTORS, Four, ReadOnly, 0),
        register(regs::FEATURES, Eight, ReadOnly, 0),
        register(regs::QUEUE_PAIRS, Four, ReadOnly, 0),
        register(regs::QUEUE_DEPTH_MAX, Four, ReadOnly, 0),
        register(regs::READY_TIMEOUT_MS, Four, ReadOnly, 0),
        register(regs::RESET_COUNT, Four, ReadOnly, 0),
        register(regs::CONTROL, Four, ReadWrite(0x1), 0),
        register(regs::STATUS, Four, ReadOnly, 0),
        register(regs::KICK, Four, WriteOnly, 0),
        register(regs::FATAL_CAUSE, Four, ReadOnly, 0),
        register(regs::ADMIN_SQ, Eight, WhileDisabled(u64::MAX), 0),
        register(regs::ADMIN_CQ, Eight, WhileDisabled(u64::MAX), 0),
        register(regs::ADMIN_DEPTH, Four, WhileDisabled(0xffff_ffff), 0),
        register(
            regs::ADMIN_VECTOR,
            Four,
            WhileDisabled(0xffff_ffff),
            no_vector,
        ),
        register(regs::WINDOW_BASE, Eight, ReadWrite(!0xfff), 0),
    ]
};

/// Values of all registers.
#[derive(Clone, Debug)]
pub struct RegisterFile {
    values: [u64; REGISTERS.len()],
    initial: [u64; REGISTERS.len()],
}

impl Default for RegisterFile {
    fn default() -> Self {
        Self::new()
    }
}

impl RegisterFile {
    /// All registers with the reset values of [`REGISTERS`].
    pub fn new() -> Self {
        let initial = REGISTERS.map(|r| r.reset);
        Self {
            values: initial,
            initial,
        }
    }

    /// Gives a register that describes the device its value, now and after each reset.
    pub(crate) fn describe(&mut self, offset: u64, value: u64) {
        let i = Self::index(offset);
        self.initial[i] = value;
        self.values[i] = value;
    }

    /// Value of the register at exactly `offset`.
    ///
    /// # Panics
    ///
    /// If there is none: the offset is one of [`offmap_abi::regs`].
    pub fn get(&self, offset: u64) -> u64 {
        self.values[Self::index(offset)]
    }

    /// Sets the register at exactly `offset`, whatever the host may do with it.
    ///
    /// # Panics
    ///
    /// As [`RegisterFile::get`].
    pub(crate) fn set(&mut self, offset: u64, value: u64) {
        self.values[Self::index(offset)] = value;
    }

    /// Restores all reset values.
    pub(crate) fn reset(&mut self) {
        self.values = self.initial;
    }

    /// What the host reads: `width` bytes at `offset`, all ones where no register is.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let ones = match width {
            Width::Four => 0xffff_ffff,
            Width::Eight => u64::MAX,
        };
        let Some((i, shift)) = Self::locate(offset, width) else {
            return ones;
        };
        match REGISTERS[i].access {
            Access::WriteOnly => ones,
            _ => self.values[i] >> shift & ones,
        }
    }

    /// Applies a write of the host. Returns the offset and the new value of the register that
    /// took it (for a write-only register, the value written), or `None` where it had no
    /// effect.
    pub fn write(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        enabled: bool,
    ) -> Option<(u64, u64)> {
        let (i, shift) = Self::locate(offset, width)?;
        let r = &REGISTERS[i];
        let mask = match r.access {
            Access::ReadOnly => return None,
            Access::WriteOnly => return Some((r.offset, value)),
            Access::WhileDisabled(_) if enabled => return None,
            Access::WhileDisabled(mask) | Access::ReadWrite(mask) => mask,
        };
        let accessed = match width {
            Width::Four => 0xffff_ffff << shift,
            Width::Eight => u64::MAX,
        };
        let mask = mask & accessed;
        self.values[i] = self.values[i] & !mask | value << shift & mask;
        Some((r.offset, self.values[i]))
    }

    /// The register that an access hits, and the bit at which the access starts in it.
    fn locate(offset: u64, width: Width) -> Option<(usize, u32)> {
        let i = REGISTERS
            .partition_point(|r| r.offset <= offset)
            .checked_sub(1)?;
        let r = &REGISTERS[i];
        let within = offset - r.offset;
        match (width, r.width) {
            (Width::Eight, Width::Eight) if within == 0 => Some((i, 0)),
            (Width::Four, Width::Four) if within == 0 => Some((i, 0)),
            (Width::Four, Width::Eight) if within == 0 => Some((i, 0)),
            (Width::Four, Width::Eight) if within == 4 => Some((i, 32)),
            _ => None,
        }
    }

    fn index(offset: u64) -> usize {
        match REGISTERS.binary_search_by_key(&offset, |r| r.offset) {
            Ok(i) => i,
            Err(_) => panic!("no register at {offset:#x}"),
        }
    }
}
