//! Positions and phases in a ring (abi §4), computed in one place for both sides.

/// A ring's depth: a power of two from 2 to [`crate::regs::QUEUE_DEPTH_LIMIT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingDepth {
    entries: u32,
}

impl RingDepth {
    /// The depth, if the ABI allows it.
    pub const fn new(entries: u32) -> Option<Self> {
        if entries >= 2 && entries <= crate::regs::QUEUE_DEPTH_LIMIT && entries.is_power_of_two() {
            Some(Self { entries })
        } else {
            None
        }
    }

    /// Number of entries.
    #[inline(always)]
    pub const fn entries(self) -> u32 {
        self.entries
    }

    /// Place in the ring of the entry with the free-running count `entry`.
    #[inline(always)]
    pub const fn position(self, entry: u32) -> u32 {
        entry & (self.entries - 1)
    }

    /// Phase of that entry: set in the first pass over the ring, and flipped by each pass.
    #[inline(always)]
    pub const fn phase(self, entry: u32) -> bool {
        entry & self.entries == 0
    }
}
