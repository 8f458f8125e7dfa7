//! Accesses to device memory, by the tier that an address belongs to.
//!
//! An access waits for one of the places that the tier has for accesses under way, passes the tier's port,
//! which takes what its bytes take (in whole units of the access width), and is answered after the latency: that
//! of the cache in front where all of its lines are there, otherwise that of the tier.

use super::profile::{ProfileError, TIERS_MAX, TimingProfile};
use super::resource::{Pool, Server, Tags};
use super::{PerByte, Picos};
use alloc::string::ToString;
use alloc::vec::Vec;
use offmap_abi::DevAddr;

/// Addresses that belong to a tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TierRange {
    /// The first one.
    pub from: DevAddr,
    /// Bytes.
    pub bytes: u64,
    /// The tier, by its place in the profile.
    pub tier: usize,
}

/// The tiers, with all that is under way in them.
#[derive(Clone, Debug)]
pub struct TieredMemory {
    tiers: Vec<TierState>,
    /// In order, apart from each other.
    ranges: Vec<TierRange>,
    /// What belongs to no range.
    rest: usize,
}

#[derive(Clone, Debug)]
struct TierState {
    port: Server,
    places: Pool,
    unit_shift: u32,
    per_byte: PerByte,
    /// What one unit takes at the port.
    unit_time: Picos,
    latency: Picos,
    cache: Option<CacheState>,
    counts: TierCounts,
}

/// What an access takes where nothing is in its way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AccessCost {
    pub(super) tier: usize,
    /// At the tier's port.
    pub(super) service: Picos,
    /// From there to its answer.
    pub(super) latency: Picos,
}

#[derive(Clone, Debug)]
struct CacheState {
    tags: Tags,
    line_shift: u32,
    hit: Picos,
}

/// Accesses to a tier so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierCounts {
    /// Accesses.
    pub accesses: u64,
    /// Bytes, in whole units.
    pub bytes: u64,
    /// Those that its cache answered.
    pub hits: u64,
}

impl TieredMemory {
    /// The tiers of a profile. All addresses belong to the last one, until [`TieredMemory::place`] says
    /// otherwise.
    pub fn new(profile: &TimingProfile) -> Self {
        let tiers: Vec<TierState> = profile
            .tiers
            .iter()
            .map(|tier| TierState {
                port: Server::default(),
                places: Pool::new(tier.outstanding),
                unit_shift: tier.access_bytes.trailing_zeros(),
                per_byte: tier.per_byte(),
                unit_time: tier.per_byte().of(tier.access_bytes.into()),
                latency: tier.latency,
                cache: tier.cache.as_ref().map(|cache| CacheState {
                    tags: Tags::new(
                        cache.size_bytes / u64::from(cache.line_bytes),
                        cache.line_bytes.into(),
                    ),
                    line_shift: cache.line_bytes.trailing_zeros(),
                    hit: cache.hit,
                }),
                counts: TierCounts::default(),
            })
            .collect();
        Self {
            rest: tiers.len().saturating_sub(1),
            tiers,
            ranges: Vec::new(),
        }
    }

    /// Says which addresses belong to which tier; what is in none of the ranges belongs to the last tier.
    ///
    /// # Errors
    ///
    /// [`ProfileError`], when ranges overlap or name a tier that there is not.
    pub fn place(&mut self, ranges: &[TierRange]) -> Result<(), ProfileError> {
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable_by_key(|range| range.from.0);
        let error = |field: &str, value: u64, expected: &str| ProfileError {
            field: field.to_string(),
            value,
            expected: expected.to_string(),
        };
        let mut free = 0;
        for range in &ranges {
            if range.tier >= self.tiers.len() {
                let expected = "the number of a tier of the profile, from 0";
                return Err(error("a range's tier", range.tier as u64, expected));
            }
            if range.from.0 < free {
                let expected = "behind the end of the range before it";
                return Err(error("a range's first address", range.from.0, expected));
            }
            free = range.from.0.checked_add(range.bytes).ok_or_else(|| {
                let expected = "short enough to end before 2^64";
                error("a range's bytes", range.bytes, expected)
            })?;
        }
        self.ranges = ranges;
        Ok(())
    }

    /// Accesses to each tier so far.
    pub fn counts(&self) -> impl Iterator<Item = TierCounts> {
        self.tiers.iter().map(|tier| tier.counts)
    }

    /// The tier that an address belongs to.
    #[inline(always)]
    pub fn tier_of(&self, at: DevAddr) -> usize {
        if self.ranges.is_empty() {
            return self.rest;
        }
        let after = self.ranges.partition_point(|range| range.from.0 <= at.0);
        match after.checked_sub(1).and_then(|n| self.ranges.get(n)) {
            Some(range) if at.0 - range.from.0 < range.bytes => range.tier,
            _ => self.rest,
        }
    }

    /// An access to `bytes` at `address`, wished for at `at`: when it is answered, and by which tier. An access
    /// across the end of a range is one to the tier in which it begins.
    #[inline]
    pub fn access(&mut self, at: Picos, address: DevAddr, bytes: u64) -> (Picos, usize) {
        let cost = self.cost(address, bytes);
        (self.book(at, cost), cost.tier)
    }

    /// What an access takes where nothing is in its way. It is counted, and its lines are in the cache afterwards.
    #[inline(always)]
    pub(super) fn cost(&mut self, address: DevAddr, bytes: u64) -> AccessCost {
        let n = self.tier_of(address);
        match self.tiers.get_mut(n) {
            Some(tier) => tier.cost(n.min(TIERS_MAX - 1), address.0, bytes),
            None => AccessCost::default(),
        }
    }

    /// Books an access: when it is answered.
    #[inline(always)]
    pub(super) fn book(&mut self, at: Picos, cost: AccessCost) -> Picos {
        match self.tiers.get_mut(cost.tier) {
            Some(tier) => tier.book(at, cost),
            None => at,
        }
    }
}

impl TierState {
    #[inline(always)]
    fn cost(&mut self, tier: usize, address: u64, bytes: u64) -> AccessCost {
        let units = self.units(address, bytes);
        let service = match units {
            1 => self.unit_time,
            _ => self.per_byte.of(units << self.unit_shift),
        };
        self.counts.accesses += 1;
        self.counts.bytes += units << self.unit_shift;
        let latency = match &mut self.cache {
            None => self.latency,
            Some(cache) => {
                let hit = cache.touch(address, bytes);
                self.counts.hits += u64::from(hit);
                if hit { cache.hit } else { self.latency }
            }
        };
        AccessCost {
            tier,
            service,
            latency,
        }
    }

    #[inline(always)]
    fn book(&mut self, at: Picos, cost: AccessCost) -> Picos {
        let place = self.places.ask(at, cost.service + cost.latency);
        let done = self.port.book(place.from, cost.service) + cost.service + cost.latency;
        self.places.hand_back(place, done);
        done
    }

    #[inline(always)]
    fn units(&self, address: u64, bytes: u64) -> u64 {
        let last = address.saturating_add(bytes.saturating_sub(1));
        (last >> self.unit_shift) - (address >> self.unit_shift) + 1
    }
}

impl CacheState {
    /// Whether all lines of an access are there; they are afterwards.
    #[inline(always)]
    fn touch(&mut self, address: u64, bytes: u64) -> bool {
        let last = address.saturating_add(bytes.saturating_sub(1));
        if address >> self.line_shift == last >> self.line_shift {
            return self.tags.touch(address);
        }
        let mut all = true;
        for line in address >> self.line_shift..=last >> self.line_shift {
            all &= self.tags.touch(line << self.line_shift);
        }
        all
    }
}
