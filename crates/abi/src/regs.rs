//! BAR layout and registers (abi §2, §3).
//!
//! | BAR | what | size |
//! |---|---|---|
//! | 0 | registers, doorbells, MSI-X table and PBA | [`BAR0_BYTES`] |
//! | 2 | window into device memory, at [`WINDOW_BASE`] | [`WINDOW_BYTES`] |
//!
//! Registers are 4 or 8 bytes wide and naturally aligned. An 8-byte register may be accessed
//! as two halves. Reads of offsets that hold no register return all ones.

use bitflags::bitflags;

/// PCI vendor id: QEMU's and rust-vmm's experimental range. It is not an assigned id.
pub const PCI_VENDOR_ID: u16 = 0x1af4;
/// PCI device id, within the experimental range of that vendor.
pub const PCI_DEVICE_ID: u16 = 0x10f0;
/// PCI class code: network controller, other.
pub const PCI_CLASS: [u8; 3] = [0x02, 0x80, 0x00];

/// Index of the register BAR (64-bit, so BAR1 is its upper half).
pub const BAR_REGISTERS: u8 = 0;
/// Index of the device-memory window BAR (64-bit, so BAR3 is its upper half).
pub const BAR_WINDOW: u8 = 2;

/// Size of BAR0 in bytes.
pub const BAR0_BYTES: u64 = 0x4_0000;
/// Size of BAR2 in bytes.
pub const WINDOW_BYTES: u64 = 0x10_0000;
/// Offset in BAR0 of the doorbells: the one part that a transport may let the host map. Offset
/// and size are multiples of 64 KiB, the largest page size in use.
pub const DOORBELLS: u64 = 0x1_0000;
/// Size of the doorbells in bytes.
pub const DOORBELLS_BYTES: u64 = 0x1_0000;
/// Offset in BAR0 of the MSI-X table.
pub const MSIX_TABLE: u64 = 0x2_0000;
/// Offset in BAR0 of the MSI-X pending bit array.
pub const MSIX_PBA: u64 = 0x3_0000;
/// Highest number of queue pairs, the admin queue included, that there are doorbells for.
pub const MAX_QUEUE_PAIRS: u16 = (DOORBELLS_BYTES / crate::notify::DOORBELL_STRIDE) as u16;
/// Greatest depth that a queue can have on any device, in entries: the ABI's limit.
pub const QUEUE_DEPTH_LIMIT: u32 = 1 << 15;

/// RO, 8 bytes: the bytes `OFFMAP`, 0, 0.
pub const MAGIC: u64 = 0x000;
/// Value of [`MAGIC`].
pub const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"OFFMAP\0\0");
/// RO, 4 bytes: ABI version, minor in the low half, major in the high half.
pub const VERSION: u64 = 0x008;
/// RO, 4 bytes: number of MSI-X vectors.
pub const VECTORS: u64 = 0x00c;
/// RO, 8 bytes: [`Features`].
pub const FEATURES: u64 = 0x010;
/// RO, 4 bytes: number of I/O queue pairs (the admin queue not counted).
pub const QUEUE_PAIRS: u64 = 0x018;
/// RO, 4 bytes: greatest depth of a queue, in entries; depths are powers of two from 2 on.
pub const QUEUE_DEPTH_MAX: u64 = 0x01c;
/// RO, 4 bytes: the longest that the device takes from reset, enable or disable to the state
/// asked for, in milliseconds.
pub const READY_TIMEOUT_MS: u64 = 0x020;
/// RO, 4 bytes: counts how often the device has forgotten its queues and maps since it was
/// built (function-level reset, or ENABLE cleared while it was set), so that a host notices
/// one that it did not ask for.
pub const RESET_COUNT: u64 = 0x024;
/// RW, 4 bytes: [`Control`].
pub const CONTROL: u64 = 0x040;
/// RO, 4 bytes: [`DeviceStatus`].
pub const STATUS: u64 = 0x044;
/// WO, 4 bytes: wakes the device for the queue whose id is written (rule N1).
pub const KICK: u64 = 0x048;
/// RO, 4 bytes: why [`DeviceStatus::FATAL`] is set, a [`FatalCause`].
pub const FATAL_CAUSE: u64 = 0x04c;
/// RW while disabled, 8 bytes: IOVA of the admin submission ring, 4,096-byte aligned.
pub const ADMIN_SQ: u64 = 0x050;
/// RW while disabled, 8 bytes: IOVA of the admin completion ring, 4,096-byte aligned.
pub const ADMIN_CQ: u64 = 0x058;
/// RW while disabled, 4 bytes: depth of the admin queue in entries, a power of two.
pub const ADMIN_DEPTH: u64 = 0x060;
/// RW while disabled, 4 bytes: MSI-X vector of the admin queue, or [`NO_VECTOR`].
pub const ADMIN_VECTOR: u64 = 0x064;
/// RW, 8 bytes: device address that the first byte of BAR2 shows; 4,096-byte aligned.
pub const WINDOW_BASE: u64 = 0x070;

/// A vector number that stands for "no interrupt".
pub const NO_VECTOR: u32 = 0xffff_ffff;
/// Alignment of ring addresses, in bytes.
pub const RING_ALIGN: u64 = 4096;

bitflags! {
    /// Optional parts of the ABI that a device has. Unknown bits are kept and ignored.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u64 {
        /// Queues may be created with a notify block (§4.2).
        const NOTIFY_BLOCK = 1 << 0;
        /// A write to a doorbell wakes the device even where the doorbells are mapped. A device
        /// without it (an emulated one) looks at mapped doorbells at least once a
        /// millisecond.
        const DOORBELL_WAKES = 1 << 1;
        /// The batch opcodes are there.
        const BATCH = 1 << 2;
        /// BAR2 shows device memory.
        const MEMORY_WINDOW = 1 << 3;
        /// QUEUE_CREATE takes interrupt coalescing (§6.2).
        const COALESCING = 1 << 4;
        /// MAP_LIST is there (§6.6).
        const MAP_LIST = 1 << 5;
        /// Maps outlive the host that made them, if it leaves without a reset (§6.6).
        const KEEPS_MAPS = 1 << 6;
        /// MEMORY_INFO, MAP_LAYOUT and MAP_MIGRATE are there, and MAP_CREATE takes a tier (§6.7 to
        /// §6.9).
        const MEMORY_TIERS = 1 << 7;
        const _ = !0;
    }

    /// The CONTROL register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u32 {
        /// Set: the device takes up its admin queue and sets READY. Cleared: it stops all
        /// queues, forgets them, frees all maps and clears READY and FATAL.
        const ENABLE = 1 << 0;
        const _ = !0;
    }

    /// The STATUS register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DeviceStatus: u32 {
        /// The admin queue is served.
        const READY = 1 << 0;
        /// The device stopped itself; a reset helps, or ENABLE cleared. FATAL_CAUSE says why.
        /// A fault on an I/O queue stops that queue alone and is not FATAL.
        const FATAL = 1 << 1;
        const _ = !0;
    }
}

crate::open_enum! {
    /// Why a device stopped itself.
    pub struct FatalCause(u32) {
        /// It did not.
        None = 0,
        /// The admin queue's registers are not usable: alignment, depth or vector.
        AdminQueueConfig = 1,
        /// A ring of the admin queue could not be read or written.
        RingDma = 2,
        /// The admin queue's tail moved further than the ring is deep, its head past what was
        /// posted, or a published entry had the wrong phase.
        RingProtocol = 3,
        /// The firmware found its own state inconsistent.
        Firmware = 4,
    }
}
