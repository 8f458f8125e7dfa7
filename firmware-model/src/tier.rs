//! Tiers of device memory: ranges of its one address space, each with a size, a check code and an
//! allocator of its own.
//!
//! They stand in the order of their speed, the fastest first; how fast is the clock's business. A map
//! lies in one tier, whole. Which one its creator says, or the firmware chooses:
//!
//! * the fastest in which it fits and of which it takes no more than an [`AUTO_SHARE`]th, so that one
//!   large map does not keep many small ones out;
//! * otherwise the slowest in which it fits.
//!
//! So an allocation fails only where no tier that may be used has a free piece that is large enough.

use crate::allocator::{ALIGN_BYTES, Allocator};
use crate::config::ConfigError;
use crate::ecc::Ecc;
use crate::time::memory::TierRange;
use alloc::string::String;
use alloc::vec::Vec;
use offmap_abi::DevAddr;
use offmap_abi::admin::TIERS_MAX;

/// The part of a tier that a map may take where the firmware places it and there is a slower tier.
pub const AUTO_SHARE: u64 = 8;

/// Longest name of a tier, in bytes.
pub const TIER_NAME_BYTES: usize = 16;

/// A tier of device memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TierConfig {
    /// Its name: 1 to [`TIER_NAME_BYTES`] bytes of printable ASCII without blanks, that of no other
    /// tier.
    pub name: String,
    /// Its size in bytes: a multiple of 64.
    pub size_bytes: u64,
    /// Its check code.
    pub ecc: Ecc,
    /// Whether maps may be placed in it. What may not is the firmware's own: it takes part in the
    /// address space and can be looked at.
    pub placeable: bool,
}

impl TierConfig {
    /// A tier without a check code, in which maps may be placed.
    pub fn new(name: &str, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            size_bytes,
            ecc: Ecc::None,
            placeable: true,
        }
    }

    /// The same with a check code.
    pub fn with_ecc(mut self, ecc: Ecc) -> Self {
        self.ecc = ecc;
        self
    }

    /// The one tier of a device that names none.
    fn whole(size_bytes: u64) -> Self {
        Self::new("memory", size_bytes)
    }
}

/// The tiers of a timing profile, without check codes. Where a name there is longer than one here may be,
/// [`crate::Firmware::new`] refuses it.
impl From<&crate::time::profile::Tier> for TierConfig {
    fn from(tier: &crate::time::profile::Tier) -> Self {
        Self::new(&tier.name, tier.size_bytes)
    }
}

/// Which addresses belong to which tier, as a meter wants it ([`crate::time`]): tier by tier, from the start
/// of memory on.
pub fn tier_ranges(tiers: &[TierConfig]) -> Vec<TierRange> {
    let mut from = 0;
    let tiers = tiers.iter().enumerate();
    tiers
        .map(|(number, tier)| {
            let range = TierRange {
                from: DevAddr(from),
                bytes: tier.size_bytes,
                tier: number,
            };
            from += tier.size_bytes;
            range
        })
        .collect()
}

/// Checks that the tiers make up `memory_bytes`. None stands for one.
pub(crate) fn check(tiers: &[TierConfig], memory_bytes: u64) -> Result<(), ConfigError> {
    if tiers.is_empty() {
        return Ok(());
    }
    let wrong = |index: usize, what| ConfigError::Tier {
        number: index + 1,
        what,
    };
    if tiers.len() > TIERS_MAX as usize {
        return Err(wrong(TIERS_MAX as usize, "there are 16 at most"));
    }
    let mut sum = 0u64;
    for (index, tier) in tiers.iter().enumerate() {
        let named = (1..=TIER_NAME_BYTES).contains(&tier.name.len());
        if !named || !tier.name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(
                index,
                "its name has 1 to 16 bytes of printable ASCII, without blanks",
            ));
        }
        if tiers[..index].iter().any(|other| other.name == tier.name) {
            return Err(wrong(index, "its name is that of a tier before"));
        }
        if tier.size_bytes == 0 || !tier.size_bytes.is_multiple_of(ALIGN_BYTES) {
            return Err(wrong(
                index,
                "its size is a multiple of 64 bytes, and not 0",
            ));
        }
        sum = sum.saturating_add(tier.size_bytes);
    }
    if sum != memory_bytes {
        return Err(wrong(
            tiers.len() - 1,
            "the sizes up to it do not make up memory_bytes",
        ));
    }
    if !tiers.iter().any(|tier| tier.placeable) {
        return Err(wrong(0, "maps can be placed in no tier"));
    }
    Ok(())
}

/// Where a map is to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Wherever the firmware thinks best.
    Auto,
    /// In that tier.
    Tier(usize),
}

impl Place {
    /// What a command says: a tier's number plus one, or 0. `None`: there is no such tier, or maps can
    /// not be placed in it.
    pub(crate) fn of_field(field: u32, tiers: &Tiers) -> Option<Self> {
        let Some(number) = field.checked_sub(1) else {
            return Some(Self::Auto);
        };
        let tier = tiers.tiers.get(number as usize)?;
        tier.config.placeable.then_some(Self::Tier(number as usize))
    }

    /// The other way round.
    pub(crate) fn field(self) -> u32 {
        match self {
            Self::Auto => 0,
            Self::Tier(number) => number as u32 + 1,
        }
    }
}

/// Why there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoRoom {
    /// Bytes of the largest free piece, of the tier or of all of them.
    pub(crate) largest: u64,
    /// Bytes in use, likewise.
    pub(crate) used: u64,
    /// Bytes that are free, likewise.
    pub(crate) free: u64,
}

/// A tier and what of it is free.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) config: TierConfig,
    /// Device address of its first byte.
    pub(crate) base: u64,
    pub(crate) allocator: Allocator,
}

impl Tier {
    fn end(&self) -> u64 {
        self.base + self.config.size_bytes
    }
}

/// The tiers of a device, one at least.
#[derive(Debug)]
pub(crate) struct Tiers {
    tiers: Vec<Tier>,
}

impl Tiers {
    /// All of it free. `configs` was checked.
    pub(crate) fn new(configs: &[TierConfig], memory_bytes: u64) -> Self {
        let mut base = 0;
        let mut tiers = Vec::new();
        let mut push = |config: TierConfig| {
            let size = config.size_bytes;
            tiers.push(Tier {
                config,
                base,
                allocator: Allocator::over(base, size),
            });
            base += size;
        };
        match configs {
            [] => push(TierConfig::whole(memory_bytes)),
            configs => configs.iter().cloned().for_each(push),
        }
        Self { tiers }
    }

    /// Frees everything.
    pub(crate) fn clear(&mut self) {
        for tier in &mut self.tiers {
            tier.allocator = Allocator::over(tier.base, tier.config.size_bytes);
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Tier> {
        self.tiers.iter()
    }

    /// Those in which maps may be placed, with their numbers, the fastest first.
    pub(crate) fn placeable(&self) -> impl DoubleEndedIterator<Item = (usize, &Tier)> {
        let tiers = self.tiers.iter().enumerate();
        tiers.filter(|(_, tier)| tier.config.placeable)
    }

    /// The number of the tier in which an address lies; of one past the end, that of the last.
    pub(crate) fn of(&self, at: DevAddr) -> usize {
        let before = self.tiers.partition_point(|tier| tier.end() <= at.0);
        before.min(self.tiers.len() - 1)
    }

    pub(crate) fn get(&self, number: usize) -> Option<&Tier> {
        self.tiers.get(number)
    }

    /// Whether the firmware would put a map of `bytes` there by itself, if it fits: the last of the
    /// tiers takes any.
    pub(crate) fn has_share(&self, number: usize, bytes: u64) -> bool {
        let last = self.placeable().next_back().map(|(last, _)| last);
        let size = self.get(number).map_or(0, |tier| tier.config.size_bytes);
        last == Some(number) || bytes <= size / AUTO_SHARE
    }

    /// Takes memory.
    pub(crate) fn allocate(&mut self, place: Place, bytes: u64) -> Result<DevAddr, NoRoom> {
        let mut order: Vec<usize> = Vec::new();
        match place {
            Place::Tier(number) => order.push(number),
            Place::Auto => {
                let placeable: Vec<usize> = self.placeable().map(|(number, _)| number).collect();
                let shared = placeable.iter().copied();
                order.extend(shared.filter(|number| self.has_share(*number, bytes)));
                order.extend(placeable.iter().rev());
            }
        }
        for number in &order {
            let tier = self.tiers.get_mut(*number);
            if let Some(at) = tier.and_then(|tier| tier.allocator.allocate(bytes)) {
                return Ok(at);
            }
        }
        Err(self.room(place))
    }

    /// What there is, of one tier or of all in which maps may be placed.
    pub(crate) fn room(&self, place: Place) -> NoRoom {
        let mut room = NoRoom {
            largest: 0,
            used: 0,
            free: 0,
        };
        for (number, tier) in self.placeable() {
            if place != Place::Auto && place != Place::Tier(number) {
                continue;
            }
            let free = tier.allocator.free_bytes();
            room.largest = room.largest.max(tier.allocator.largest_free());
            room.free += free;
            room.used += tier.allocator.size_bytes() - free;
        }
        room
    }

    /// Takes a region that is known. `false`: it is not free, or lies where maps do not.
    #[must_use]
    pub(crate) fn claim(&mut self, at: DevAddr, bytes: u64) -> bool {
        let number = self.of(at);
        let tier = self.tiers.get_mut(number);
        tier.is_some_and(|tier| tier.config.placeable && tier.allocator.claim(at, bytes))
    }

    /// Returns what [`Self::allocate`] gave for `bytes`.
    pub(crate) fn release(&mut self, at: DevAddr, bytes: u64) {
        let number = self.of(at);
        if let Some(tier) = self.tiers.get_mut(number) {
            tier.allocator.release(at, bytes);
        }
    }

    /// Bytes that maps can have in all.
    pub(crate) fn size_bytes(&self) -> u64 {
        let tiers = self.placeable();
        tiers.map(|(_, tier)| tier.allocator.size_bytes()).sum()
    }

    /// Free bytes in all placeable tiers together.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.room(Place::Auto).free
    }

    /// Bytes of the largest free piece.
    pub(crate) fn largest_free(&self) -> u64 {
        self.room(Place::Auto).largest
    }

    /// Bytes of the largest piece that one map can ever have.
    pub(crate) fn largest_tier(&self) -> u64 {
        let tiers = self.placeable();
        let sizes = tiers.map(|(_, tier)| tier.allocator.size_bytes());
        sizes.max().unwrap_or(0)
    }

    /// Free pieces of all placeable tiers.
    pub(crate) fn pieces(&self) -> usize {
        let tiers = self.placeable();
        tiers.map(|(_, tier)| tier.allocator.pieces()).sum()
    }

    /// Check codes by address: each applies up to the end that stands with it.
    pub(crate) fn codes(&self) -> Vec<(u64, Ecc)> {
        let tiers = self.tiers.iter();
        tiers.map(|tier| (tier.end(), tier.config.ecc)).collect()
    }
}
