//! Modelled time: what an operation would take on the hardware that a profile describes.
//!
//! All of it is integers, picoseconds in [`Picos`], and no clock of the machine is ever read: the same input
//! gives the same times on any machine. docs/timing.md has the model in prose, its limits, and what it
//! predicts against published measurements.
//!
//! * [`pcie`]: packets and bytes on a PCI Express link, and how long the link needs for them.
//! * [`profile`]: a device, its host and the link between them, as data.
//! * [`bus`]: DMA, doorbells and interrupts over the link; [`memory`]: accesses to device memory, by tier.
//! * [`meter`]: commands, charged event by event.
//! * [`histogram`]: how times are distributed.
//! * [`resource`]: what operations wait for: links, ports, tags, engines, caches of translations.

pub mod bus;
pub mod histogram;
pub mod memory;
pub mod meter;
mod metered;
pub mod pcie;
pub mod profile;
pub mod resource;

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// A time, or a duration, in picoseconds. It stops at its greatest value, which is 213 days.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Picos(pub u64);

impl Picos {
    /// No time.
    pub const ZERO: Self = Self(0);
    /// Later than all that is modelled.
    pub const MAX: Self = Self(u64::MAX);

    /// That many nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos.saturating_mul(1000))
    }

    /// Whole nanoseconds of it, rounded to the nearest one.
    pub const fn as_nanos(self) -> u64 {
        self.0 / 1000 + (self.0 % 1000) / 500
    }

    /// The time from `earlier` to this one; none, if that one is later.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// `count` times as long.
    #[inline(always)]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

impl Add for Picos {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Picos {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Picos {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.since(other)
    }
}

impl fmt::Debug for Picos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Picos {
    /// Nanoseconds, with the picoseconds behind the point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ns", self.0 / 1000, self.0 % 1000)
    }
}

/// Time for bytes at a rate, as a multiplication: picoseconds a byte with 20 bits behind the point, rounded
/// up, so that more bytes never take less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerByte(u64);

impl PerByte {
    /// At `numerator / denominator` bytes a second; `None` for a rate of nothing, or for one below 1 KB/s or
    /// above a byte in a picosecond, at which rounding would count.
    pub fn from_rate(numerator: u128, denominator: u128) -> Option<Self> {
        let slow = numerator / 1000 < denominator;
        let fast = numerator / 1_000_000_000_000 > denominator;
        if denominator == 0 || slow || fast {
            return None;
        }
        let scaled = (denominator.checked_mul(1_000_000_000_000)? << 20).div_ceil(numerator);
        u64::try_from(scaled).ok().map(Self)
    }

    /// A kilobyte a second: what stands for rates that no checked profile has.
    pub const fn slowest() -> Self {
        Self(1_000_000_000 << 20)
    }

    /// How long that many bytes take.
    #[inline(always)]
    pub const fn of(self, bytes: u64) -> Picos {
        match bytes.checked_mul(self.0) {
            Some(scaled) => Picos(scaled >> 20),
            None => Picos(((bytes as u128 * self.0 as u128) >> 20) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn picoseconds_stop_at_the_ends() {
        assert_eq!(Picos::MAX + Picos(1), Picos::MAX);
        assert_eq!(Picos(1) - Picos(2), Picos::ZERO);
        assert_eq!(Picos(1_499).as_nanos(), 1);
        assert_eq!(Picos(1_500).as_nanos(), 2);
        assert_eq!(Picos(u64::MAX).as_nanos(), u64::MAX / 1000 + 1);
        assert_eq!(Picos(546_067).to_string(), "546.067 ns");
        assert_eq!(Picos::from_nanos(u64::MAX), Picos::MAX);
    }

    #[test]
    fn bytes_at_a_rate_agree_with_the_division() {
        let rate = PerByte::from_rate(7_235_012_345, 1).unwrap();
        for bytes in [1, 64, 4096, 1 << 30, 1 << 40, u64::MAX >> 24] {
            let exact = u128::from(bytes) * 1_000_000_000_000 / 7_235_012_345;
            let ours = u128::from(rate.of(bytes).0);
            // Rounded up in the twentieth bit, and down once.
            assert!(ours + 1 >= exact && ours <= exact + 1 + u128::from(bytes >> 20));
        }
        for (numerator, denominator) in [(0, 1), (1, 0), (999, 1), (2_000_000_000_000_000, 1)] {
            assert_eq!(PerByte::from_rate(numerator, denominator), None);
        }
    }
}
