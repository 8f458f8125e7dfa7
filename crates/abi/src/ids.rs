//! Identifiers that cross the wire, each a type of its own so that none stands for another.

use core::fmt;

/// A queue pair: 0 is the admin queue, I/O queues count from 1 (abi §4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u16);

impl QueueId {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this is the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}", self.0)
    }
}

/// A map on the device: a slot index and the generation of that slot, so that a handle kept
/// past MAP_FREE is refused and never reaches the map that reuses the slot (abi §6.3).
///
/// Zero is never a valid handle: generations count from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MapHandle(pub u32);

impl MapHandle {
    /// Builds a handle from a slot index and the slot's generation.
    pub const fn new(slot: u16, generation: u16) -> Self {
        Self(slot as u32 | (generation as u32) << 16)
    }

    /// Index of the slot in the device's map table.
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }

    /// Generation of the slot when the map was created.
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

impl fmt::Display for MapHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map {}.{}", self.slot(), self.generation())
    }
}

/// A request: the slot of the host's in-flight table and a generation of 48 bits, so that an
/// id does not come round while a lost completion may still arrive (abi §5.2). The device
/// treats it as an opaque number and returns it unchanged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

impl RequestId {
    /// The number of generations before an id is used again: 2^48.
    pub const GENERATIONS: u64 = 1 << 48;

    /// Builds an id from a slot and a generation (its low 48 bits).
    pub const fn new(slot: u16, generation: u64) -> Self {
        Self(slot as u64 | generation << 16)
    }

    /// Slot of the in-flight table.
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }

    /// Generation of the slot.
    pub const fn generation(self) -> u64 {
        self.0 >> 16
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}.{}", self.slot(), self.generation())
    }
}

/// An address in the device's own memory, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevAddr(pub u64);

impl DevAddr {
    /// The address `bytes` further on. Wraps are the caller's error and are checked where the
    /// address is used, against the memory's size.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Debug for DevAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev:{:#x}", self.0)
    }
}
