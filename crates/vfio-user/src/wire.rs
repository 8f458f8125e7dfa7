//! Every structure of the protocol that is used here, byte for byte.
//!
//! The protocol is that of QEMU's `docs/interop/vfio-user.rst`, version 0.1; each item names
//! its command there. Numbers have the byte order of the machine, and nothing is aligned.

use bitflags::bitflags;
use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The protocol's major version.
pub const MAJOR: u16 = 0;
/// The greatest minor version that is spoken here.
pub const MINOR: u16 = 1;

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Command(pub u16);

impl Command {
    /// Versions and capabilities: the first message of a client.
    pub const VERSION: Self = Self(1);
    /// Client memory that the server may access.
    pub const DMA_MAP: Self = Self(2);
    /// Client memory that it may no longer access.
    pub const DMA_UNMAP: Self = Self(3);
    /// How many regions and kinds of interrupt there are.
    pub const DEVICE_GET_INFO: Self = Self(4);
    /// A region's size, flags and mappable areas.
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    /// File descriptors that a hypervisor may signal in place of a write.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    /// How many interrupts of a kind there are.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    /// Routes, masks or triggers interrupts.
    pub const DEVICE_SET_IRQS: Self = Self(8);
    /// Reads a region.
    pub const REGION_READ: Self = Self(9);
    /// Writes a region.
    pub const REGION_WRITE: Self = Self(10);
    /// From the server: reads client memory.
    pub const DMA_READ: Self = Self(11);
    /// From the server: writes client memory.
    pub const DMA_WRITE: Self = Self(12);
    /// Resets the device.
    pub const DEVICE_RESET: Self = Self(13);
    /// Several small writes of regions.
    pub const REGION_WRITE_MULTI: Self = Self(15);
    /// Device features: migration.
    pub const DEVICE_FEATURE: Self = Self(16);
    /// Migration data, out.
    pub const MIG_DATA_READ: Self = Self(17);
    /// Migration data, in.
    pub const MIG_DATA_WRITE: Self = Self(18);

    /// The name of the command, if it is one of the protocol.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::DEVICE_GET_INFO => "DEVICE_GET_INFO",
            Self::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            Self::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::DEVICE_RESET => "DEVICE_RESET",
            Self::REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
            Self::DEVICE_FEATURE => "DEVICE_FEATURE",
            Self::MIG_DATA_READ => "MIG_DATA_READ",
            Self::MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

/// Bits 0–3 of [`Header::flags`]: the message's type.
pub const TYPE_MASK: u32 = 0xf;
/// A command.
pub const TYPE_COMMAND: u32 = 0;
/// The reply to one.
pub const TYPE_REPLY: u32 = 1;
/// In a command: its sender wants no reply.
pub const NO_REPLY: u32 = 1 << 4;
/// In a reply: the command failed.
pub const ERROR: u32 = 1 << 5;

/// What every message starts with.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, returned in its reply.
    pub id: U16,
    /// The [`Command`].
    pub command: U16,
    /// Size of the whole message in bytes, header included.
    pub size: U32,
    /// Type and flags.
    pub flags: U32,
    /// In a reply with [`ERROR`]: the errno, or 0.
    pub error: U32,
}

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = size_of::<Header>();

impl Header {
    /// The header of a command with a body of `body` bytes.
    pub fn command(id: u16, command: Command, body: usize) -> Self {
        Self {
            id: U16::new(id),
            command: U16::new(command.0),
            size: U32::new((HEADER_BYTES + body) as u32),
            ..Self::default()
        }
    }

    /// The header of the reply to this command, with a body of `body` bytes.
    pub fn reply(&self, body: usize) -> Self {
        Self {
            size: U32::new((HEADER_BYTES + body) as u32),
            flags: U32::new(TYPE_REPLY),
            error: U32::new(0),
            ..*self
        }
    }

    /// The header of the reply that says that this command failed.
    pub fn refusal(&self, errno: i32) -> Self {
        Self {
            flags: U32::new(TYPE_REPLY | ERROR),
            error: U32::new(errno.unsigned_abs()),
            ..self.reply(0)
        }
    }

    /// The command that the message is, or is the reply to.
    pub fn about(&self) -> Command {
        Command(self.command.get())
    }

    /// Whether any of the bits is set in the flags.
    pub fn has(&self, flags: u32) -> bool {
        self.flags.get() & flags != 0
    }

    /// The type: [`TYPE_COMMAND`], [`TYPE_REPLY`], or none of both.
    pub fn kind(&self) -> u32 {
        self.flags.get() & TYPE_MASK
    }
}

/// VERSION, both ways; JSON follows.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct VersionBody {
    /// Major version.
    pub major: U16,
    /// Minor version.
    pub minor: U16,
}

bitflags! {
    /// Flags of DMA_MAP.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DmaFlags: u32 {
        /// The device may read the memory.
        const READ = 1 << 0;
        /// The device may write the memory.
        const WRITE = 1 << 1;
        /// The server may map the file. libvfio-user's clients say so; others just send one.
        const MMAP = 1 << 2;
    }
}

/// DMA_MAP, to the server; the reply is a header.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DmaMapBody {
    /// Size of this structure in bytes.
    pub argsz: U32,
    /// [`DmaFlags`].
    pub flags: U32,
    /// Where in the file the memory starts, in bytes.
    pub offset: U64,
    /// IOVA of the memory.
    pub address: U64,
    /// Size of the memory in bytes.
    pub size: U64,
}

/// DMA_UNMAP flag: all mappings, address and size being zero. An extension of libvfio-user.
pub const UNMAP_ALL: u32 = 1 << 1;

/// DMA_UNMAP, both ways.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DmaUnmapBody {
    /// Room for the reply in bytes.
    pub argsz: U32,
    /// Zero, or [`UNMAP_ALL`].
    pub flags: U32,
    /// IOVA of the memory.
    pub address: U64,
    /// Size of the memory in bytes.
    pub size: U64,
}

/// DEVICE_GET_INFO flag: the device can be reset.
pub const DEVICE_RESETTABLE: u32 = 1 << 0;
/// DEVICE_GET_INFO flag: it is a PCI device.
pub const DEVICE_PCI: u32 = 1 << 1;

/// DEVICE_GET_INFO, both ways.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DeviceInfoBody {
    /// Room for the reply in bytes; in it, the room that it needs.
    pub argsz: U32,
    /// [`DEVICE_RESETTABLE`], [`DEVICE_PCI`].
    pub flags: U32,
    /// Number of regions.
    pub regions: U32,
    /// Number of kinds of interrupt.
    pub irqs: U32,
}

bitflags! {
    /// Flags of a region.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1 << 0;
        /// It can be written.
        const WRITE = 1 << 1;
        /// Parts of it, or all, can be mapped; a file descriptor comes with the reply.
        const MMAP = 1 << 2;
        /// Capabilities follow.
        const CAPS = 1 << 3;
    }
}

/// Regions of a PCI device: BARs 0 to 5, the ROM, config space, VGA.
pub const PCI_REGIONS: u32 = 9;
/// The region that is config space.
pub const CONFIG_REGION: u32 = 7;

/// DEVICE_GET_REGION_INFO, both ways; in the reply, capabilities follow.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RegionInfoBody {
    /// Room for the reply in bytes; in it, the room that all of it needs.
    pub argsz: U32,
    /// [`RegionFlags`].
    pub flags: U32,
    /// The region.
    pub index: U32,
    /// Where the first capability is, from the start of this structure; 0: there is none.
    pub cap_offset: U32,
    /// Size of the region in bytes.
    pub size: U64,
    /// Offset of the region in the file that comes with the reply.
    pub offset: U64,
}

/// Capability id: which areas of the region can be mapped.
pub const CAP_SPARSE_MMAP: u16 = 1;

/// What a capability starts with, and the number of areas of [`CAP_SPARSE_MMAP`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SparseMmapCap {
    /// The capability's id.
    pub id: U16,
    /// Its version: 1.
    pub version: U16,
    /// Where the next one is, from the start of the region info; 0: this is the last.
    pub next: U32,
    /// Areas that follow.
    pub areas: U32,
    /// Zero.
    pub reserved: U32,
}

/// Bytes of a capability's own header: id, version, next.
pub const CAP_HEADER_BYTES: usize = 8;

/// An area of a region, in bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Area {
    /// Its start, from the start of the region.
    pub offset: U64,
    /// Its size.
    pub size: U64,
}

bitflags! {
    /// Flags of a kind of interrupt.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct IrqFlags: u32 {
        /// It can signal an eventfd.
        const EVENTFD = 1 << 0;
        /// Single interrupts can be masked.
        const MASKABLE = 1 << 1;
    }
}

/// Kinds of interrupt of a PCI device: INTx, MSI, MSI-X, error, request.
pub const PCI_IRQS: u32 = 5;
/// The kind that is MSI-X.
pub const MSIX_IRQ: u32 = 2;

/// DEVICE_GET_IRQ_INFO, both ways.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct IrqInfoBody {
    /// Room for the reply in bytes.
    pub argsz: U32,
    /// [`IrqFlags`].
    pub flags: U32,
    /// The kind.
    pub index: U32,
    /// How many of it there are.
    pub count: U32,
}

/// SET_IRQS flag: there are no data.
pub const IRQ_DATA_NONE: u32 = 1 << 0;
/// SET_IRQS flag: a byte for each interrupt says whether it is meant.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// SET_IRQS flag: a file descriptor for each interrupt, or none at all.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// The flags that say what the data are.
pub const IRQ_DATA_MASK: u32 = 7;
/// SET_IRQS flag: mask.
pub const IRQ_ACTION_MASK: u32 = 1 << 3;
/// SET_IRQS flag: unmask.
pub const IRQ_ACTION_UNMASK: u32 = 1 << 4;
/// SET_IRQS flag: trigger, or with file descriptors: what to signal when it triggers.
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// DEVICE_SET_IRQS, to the server; the reply is a header.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SetIrqsBody {
    /// Size of this structure and its data in bytes.
    pub argsz: U32,
    /// One of the data flags and one of the action flags.
    pub flags: U32,
    /// The kind of interrupt.
    pub index: U32,
    /// The first interrupt.
    pub start: U32,
    /// How many.
    pub count: U32,
}

/// REGION_READ and REGION_WRITE, both ways; the bytes follow where they go.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RegionAccessBody {
    /// Offset in the region, in bytes.
    pub offset: U64,
    /// The region.
    pub region: U32,
    /// Bytes.
    pub count: U32,
}

/// DMA_READ and DMA_WRITE, both ways; the bytes follow where they go. The protocol's text has a
/// shorter count in the reply to DMA_WRITE; servers of libvfio-user want all of it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DmaAccessBody {
    /// IOVA of the memory.
    pub address: U64,
    /// Bytes.
    pub count: U64,
}

/// One write of REGION_WRITE_MULTI, which is the number of writes (8 bytes) and the writes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct WriteMultiEntry {
    /// Where, and how many bytes: at most 8.
    pub access: RegionAccessBody,
    /// The bytes.
    pub data: [u8; 8],
}

/// DEVICE_GET_REGION_IO_FDS, both ways; in the reply, sub-regions follow.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RegionIoFdsBody {
    /// Room for the reply in bytes; in it, the room that all of it needs.
    pub argsz: U32,
    /// Zero.
    pub flags: U32,
    /// The region.
    pub index: U32,
    /// How many sub-regions follow.
    pub count: U32,
}

/// Sub-region kind: a write signals an eventfd, and is then done.
pub const IO_FD_IOEVENTFD: u32 = 0;
/// Sub-region flag: only writes of [`SubRegionIoFd::data`] signal the eventfd.
pub const IO_FD_DATAMATCH: u32 = 1 << 0;

/// A part of a region for whose accesses there is a file descriptor.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SubRegionIoFd {
    /// Its start, from the start of the region, in bytes.
    pub offset: U64,
    /// Bytes of an access; 0: of any.
    pub size: U64,
    /// Which of the descriptors that come with the reply.
    pub fd_index: U32,
    /// [`IO_FD_IOEVENTFD`], or a kind that is not used here.
    pub kind: U32,
    /// [`IO_FD_DATAMATCH`], or flags that are not used here.
    pub flags: U32,
    /// Zero.
    pub padding: U32,
    /// The value that a write must have, where the flags say so.
    pub data: U64,
}

const _: () = {
    assert!(size_of::<RegionIoFdsBody>() == 16);
    assert!(size_of::<SubRegionIoFd>() == 40);
    assert!(HEADER_BYTES == 16);
    assert!(size_of::<VersionBody>() == 4);
    assert!(size_of::<DmaMapBody>() == 32);
    assert!(size_of::<DmaUnmapBody>() == 24);
    assert!(size_of::<DeviceInfoBody>() == 16);
    assert!(size_of::<RegionInfoBody>() == 32);
    assert!(size_of::<SparseMmapCap>() == 16);
    assert!(size_of::<Area>() == 16);
    assert!(size_of::<IrqInfoBody>() == 16);
    assert!(size_of::<SetIrqsBody>() == 20);
    assert!(size_of::<RegionAccessBody>() == 16);
    assert!(size_of::<DmaAccessBody>() == 16);
    assert!(size_of::<WriteMultiEntry>() == 24);
};

/// A structure at the start of `bytes`, and what follows it; `None` where they are too few.
pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}
