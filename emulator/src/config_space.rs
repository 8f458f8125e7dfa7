//! PCI config space: 4,096 bytes with, for each byte, which bits the host may write and
//! which it clears by writing ones.
//!
//! The header is type 0 (PCI Local Bus 3.0 §6.1). Capabilities are declared one by one and
//! chained in the order of their declaration. There are no extended capabilities, so the word
//! at 0x100 reads zero (PCI Express Base 5.0 §7.6.2).

use offmap_abi::regs;
use offmap_device_io::IoError;

/// Size of config space in bytes.
pub const CONFIG_BYTES: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const CAP_POWER_MANAGEMENT: u8 = 0x01;
const CAP_PCI_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Memory space, bus master, parity error response, SERR#, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0546;
/// The error bits that a host clears by writing ones.
const STATUS_W1C: u16 = 0xf900;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

const PM_STATE: u8 = 0x03;
const PM_D3HOT: u8 = 0x03;
/// The power state survives D3hot → D0 without an internal reset.
const PM_NO_SOFT_RESET: u8 = 1 << 3;

/// Initiate function-level reset, in Device Control.
const DEVCTL_FLR: u16 = 1 << 15;
/// Relaxed ordering, no-snoop, 512-byte read requests: the power-on value.
const DEVCTL_RESET: u16 = 0x2810;

/// What the host has just asked for through config space, besides plain state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConfigEffects {
    /// It set the bit that initiates a function-level reset.
    pub reset: bool,
}

/// The config space of the function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_BYTES]>,
    writable: Box<[u8; CONFIG_BYTES]>,
    clearable: Box<[u8; CONFIG_BYTES]>,
    /// Contents at power-on, restored by reset.
    initial: Box<[u8; CONFIG_BYTES]>,
    power: usize,
    express: usize,
    msix: usize,
}

/// Declares config space, field by field.
struct Builder {
    bytes: Box<[u8; CONFIG_BYTES]>,
    writable: Box<[u8; CONFIG_BYTES]>,
    clearable: Box<[u8; CONFIG_BYTES]>,
    /// Where the pointer to the next capability goes, and where that capability goes.
    link: usize,
    next: usize,
}

impl Builder {
    fn read_only(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn clearable(&mut self, offset: usize, mask: &[u8]) {
        self.clearable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// A 64-bit memory BAR: the address bits above the size are writable, which is what makes
    /// sizing by writing ones work.
    fn bar64(&mut self, index: u8, size_bytes: u64, prefetchable: bool) {
        let offset = BAR0 + usize::from(index) * 4;
        let kind = 0b0100 | u8::from(prefetchable) << 3;
        self.read_only(offset, &[kind]);
        self.writable(offset, &(!(size_bytes - 1)).to_le_bytes());
    }

    /// Links a capability with the given id and `body`, the bytes after its two-byte header;
    /// returns its offset.
    fn capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next;
        self.bytes[self.link] = at as u8;
        self.read_only(at, &[id, 0]);
        self.read_only(at + 2, body);
        self.link = at + 1;
        // Capabilities are aligned to four bytes.
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        assert!(self.next <= 0x100, "capabilities fit the first 256 bytes");
        at
    }
}

impl ConfigSpace {
    /// The config space of a function with `vectors` MSI-X vectors (1 to 2,048).
    pub fn new(vectors: u16) -> Self {
        let mut b = Builder {
            bytes: Box::new([0; CONFIG_BYTES]),
            writable: Box::new([0; CONFIG_BYTES]),
            clearable: Box::new([0; CONFIG_BYTES]),
            link: CAPABILITIES_POINTER,
            next: FIRST_CAPABILITY,
        };
        b.read_only(0x00, &regs::PCI_VENDOR_ID.to_le_bytes());
        b.read_only(0x02, &regs::PCI_DEVICE_ID.to_le_bytes());
        b.writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        b.read_only(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        b.clearable(STATUS, &STATUS_W1C.to_le_bytes());
        // Revision, then the class code with its least significant byte first.
        let [base, sub, interface] = regs::PCI_CLASS;
        b.read_only(0x08, &[0x01, interface, sub, base]);
        b.writable(0x0c, &[0xff]); // cache line size: kept, without effect on PCI Express
        b.bar64(regs::BAR_REGISTERS, regs::BAR0_BYTES, false);
        b.bar64(regs::BAR_WINDOW, regs::WINDOW_BYTES, true);
        b.read_only(0x2c, &regs::PCI_VENDOR_ID.to_le_bytes());
        b.read_only(0x2e, &regs::PCI_DEVICE_ID.to_le_bytes());
        b.writable(0x3c, &[0xff]); // interrupt line: for the host's notes

        // Power management (PCI PM 1.2 §3.2): version 3, D0 and D3hot only, no PME.
        let power = b.capability(
            CAP_POWER_MANAGEMENT,
            &[0x03, 0x00, PM_NO_SOFT_RESET, 0, 0, 0],
        );
        b.writable(power + 4, &[PM_STATE]);

        // MSI-X (PCI 3.0 §6.8.2): the table and the pending bits stand in BAR0.
        let bir = u32::from(regs::BAR_REGISTERS);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(regs::MSIX_TABLE as u32 | bir).to_le_bytes());
        body[6..].copy_from_slice(&(regs::MSIX_PBA as u32 | bir).to_le_bytes());
        let msix = b.capability(CAP_MSIX, &body);
        b.writable(msix + 2, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());

        // PCI Express endpoint, capability version 2 (PCI Express Base 5.0 §7.5.3).
        let mut body = [0; 0x3c - 2];
        body[..2].copy_from_slice(&0x0002u16.to_le_bytes());
        // Device Capabilities: 256-byte payload, extended tags, role-based error reporting,
        // function-level reset.
        let devcap: u32 = 1 | 1 << 5 | 1 << 15 | 1 << 28;
        body[2..6].copy_from_slice(&devcap.to_le_bytes());
        body[6..8].copy_from_slice(&DEVCTL_RESET.to_le_bytes());
        // Link Capabilities and Link Status: 8 GT/s, 8 lanes.
        let link: u32 = 3 | 8 << 4;
        body[0x0a..0x0e].copy_from_slice(&link.to_le_bytes());
        body[0x10..0x12].copy_from_slice(&(link as u16).to_le_bytes());
        // Supported link speeds: 2.5 to 8 GT/s; target speed 8 GT/s.
        body[0x2a..0x2e].copy_from_slice(&0x0eu32.to_le_bytes());
        body[0x2e..0x30].copy_from_slice(&3u16.to_le_bytes());
        let express = b.capability(CAP_PCI_EXPRESS, &body);
        // Device Control: everything but "aux power", which has no meaning here, and the FLR
        // bit, which always reads zero and is acted upon in `write`.
        b.writable(express + 8, &0x7bffu16.to_le_bytes());
        b.clearable(express + 0x0a, &[0x0f]);
        // Link Control: ASPM, common clock, extended synch.
        b.writable(express + 0x10, &[0xc3]);
        // Device Control 2: completion timeout.
        b.writable(express + 0x28, &[0x1f]);

        Self {
            initial: b.bytes.clone(),
            bytes: b.bytes,
            writable: b.writable,
            clearable: b.clearable,
            power,
            express,
            msix,
        }
    }

    /// Reads `buf.len()` bytes.
    ///
    /// # Errors
    ///
    /// [`IoError::ConfigRange`] when they do not lie inside config space.
    pub fn read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        let from = Self::range(offset, buf.len())?;
        buf.copy_from_slice(&self.bytes[from]);
        Ok(())
    }

    /// Writes `data`; bits that the host may not write keep their values.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::read`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Result<ConfigEffects, IoError> {
        let at = Self::range(offset, data.len())?;
        let mut effects = ConfigEffects::default();
        for (i, &new) in at.zip(data) {
            if i == self.express + 9 && u16::from(new) << 8 & DEVCTL_FLR != 0 {
                effects.reset = true;
            }
            // A write of an unsupported power state is discarded (PCI PM 1.2 §3.2.4).
            if i == self.power + 4 && !matches!(new & PM_STATE, 0 | PM_D3HOT) {
                continue;
            }
            let writable = self.writable[i];
            let kept = self.bytes[i] & !writable & !(new & self.clearable[i]);
            self.bytes[i] = kept | new & writable;
        }
        Ok(effects)
    }

    /// Restores the power-on contents.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// Whether the function answers memory accesses to its BARs: memory space is enabled and
    /// it is not in D3hot.
    pub fn memory_enabled(&self) -> bool {
        self.command() & COMMAND_MEMORY != 0 && !self.asleep()
    }

    /// Whether the function may send memory requests, DMA and interrupts alike.
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0 && !self.asleep()
    }

    /// Whether the function is in D3hot.
    pub fn asleep(&self) -> bool {
        self.bytes[self.power + 4] & PM_STATE == PM_D3HOT
    }

    /// Whether MSI-X is enabled.
    pub fn msix_enabled(&self) -> bool {
        self.msix_control() & MSIX_ENABLE != 0
    }

    /// Whether all MSI-X vectors are masked together.
    pub fn msix_masked(&self) -> bool {
        self.msix_control() & MSIX_FUNCTION_MASK != 0
    }

    /// Sets the MSI-X enable bit and clears the function mask, as the owner of the host's
    /// interrupts does when it routes the first vector; or clears the enable bit.
    pub(crate) fn set_msix_enabled(&mut self, enabled: bool) {
        let control = self.msix_control() & !(MSIX_ENABLE | MSIX_FUNCTION_MASK)
            | if enabled { MSIX_ENABLE } else { 0 };
        self.bytes[self.msix + 2..self.msix + 4].copy_from_slice(&control.to_le_bytes());
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    fn msix_control(&self) -> u16 {
        u16::from_le_bytes([self.bytes[self.msix + 2], self.bytes[self.msix + 3]])
    }

    fn range(offset: u16, len: usize) -> Result<std::ops::Range<usize>, IoError> {
        let start = usize::from(offset);
        if len > CONFIG_BYTES || start > CONFIG_BYTES - len {
            return Err(IoError::ConfigRange { offset, len });
        }
        Ok(start..start + len)
    }
}
