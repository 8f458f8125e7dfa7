//! The firmware's state as bytes: what a device that is built anew needs to go on with its maps.
//!
//! Saved are the limits, the map table with generations and the order of free slots, what maps of
//! maps hold, the chunks of device memory that are not zero, and which bits of it are wrong. All else
//! follows from that: a table from its description and its place, the allocators of the tiers from the
//! places of all maps. How hot a map was is not saved.
//!
//! Ring buffers are not saved: their memory belongs to a host, which is gone. Neither is a
//! command that is under way.
//!
//! What is read may be anything. It is taken piece by piece, nothing is allocated for a count that
//! was read, and a map has to pass the checks of MAP_CREATE. Device memory itself is not looked
//! at: tables believe nothing that they find there, since a host can write to it.

use crate::maps::Map;
use crate::table::layout::{Geometry, MapKind, MapSpec};
use crate::table::{Table, bloom};
use crate::tier::{TIER_NAME_BYTES, TierConfig};
use crate::{Config, ConfigError, Ecc, Firmware, Storage};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use offmap_abi::{DevAddr, MapHandle};

/// Where a state goes, or comes from.
pub trait Sink {
    /// What can go wrong.
    type Error;
    /// Takes all the bytes.
    ///
    /// # Errors
    ///
    /// The sink's own.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Where a state comes from.
pub trait Source {
    /// What can go wrong; to have no more bytes is among it.
    type Error;
    /// Fills the bytes.
    ///
    /// # Errors
    ///
    /// The source's own.
    fn take(&mut self, into: &mut [u8]) -> Result<(), Self::Error>;
}

/// Why there is no firmware from a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RestoreError<E> {
    /// The source failed.
    Source(E),
    /// There is no device of that configuration.
    Config(ConfigError),
    /// A limit is another one than when the state was saved.
    Limit {
        /// Which limit.
        name: &'static str,
        /// What it was.
        saved: u64,
        /// What it is.
        now: u64,
    },
    /// A tier of device memory is another one than when the state was saved.
    Tier {
        /// Its number, from 1.
        number: u32,
        /// What it was.
        saved: String,
        /// What it is.
        now: String,
    },
    /// The state cannot be one that was saved.
    Invalid(&'static str),
}

impl<E: fmt::Display> fmt::Display for RestoreError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(e) => e.fmt(f),
            Self::Config(e) => e.fmt(f),
            Self::Limit { name, saved, now } => {
                write!(
                    f,
                    "it was saved with {name} {saved}, and this device has {now}"
                )
            }
            Self::Tier { number, saved, now } => write!(
                f,
                "it was saved with {saved} as memory tier {number}, and this device has {now}"
            ),
            Self::Invalid(what) => write!(f, "it is damaged: {what}"),
        }
    }
}

impl<E> From<ConfigError> for RestoreError<E> {
    fn from(e: ConfigError) -> Self {
        Self::Config(e)
    }
}

/// After the last chunk.
const NO_CHUNK: u64 = u64::MAX;
/// After the last line with wrong bits.
const NO_LINE: u64 = u64::MAX;

/// How messages name a tier.
fn described(tier: &TierConfig) -> String {
    let placeable = match tier.placeable {
        true => "",
        false => ", not for maps",
    };
    format!(
        "{:?} of {} bytes, check code {}{placeable}",
        tier.name,
        tier.size_bytes,
        tier.ecc.name()
    )
}

fn limits(config: &Config) -> [(&'static str, u64); 10] {
    [
        ("memory", config.memory_bytes),
        ("maps", config.maps.into()),
        ("map entries", config.entries_per_map.into()),
        ("total entries", config.entries_total),
        ("key bytes", config.key_bytes.into()),
        ("value bytes", config.value_bytes.into()),
        ("per-CPU slots", config.cpu_slots.into()),
        ("batch", config.batch.into()),
        ("engines", config.engines.into()),
        ("memory tiers", config.tiers.len() as u64),
    ]
}

impl<S: Storage> Firmware<S> {
    /// The host is gone, and its maps stay: ring buffers, whose memory was the host's, and commands under way
    /// are forgotten.
    pub fn leave(&mut self) {
        // A map that MAP_CREATE had not finished has memory and no handle.
        self.forget_pending();
        self.under_way.clear();
        let rings: Vec<MapHandle> = self
            .maps
            .live_from(0)
            .filter(|(_, map)| map.spec.kind.is_ring())
            .map(|(handle, _)| handle)
            .collect();
        for ring in rings {
            // It is there: its handle was just read.
            let _ = self.free_map(ring);
        }
    }

    /// Writes the state.
    ///
    /// # Errors
    ///
    /// The sink's.
    pub fn save<K: Sink>(&self, sink: &mut K) -> Result<(), K::Error> {
        let mut out = Out(sink);
        for (_, limit) in limits(&self.config) {
            out.u64(limit)?;
        }
        for tier in &self.config.tiers {
            out.tier(tier)?;
        }
        out.u32(self.maps.slots().len() as u32)?;
        for (generation, map) in self.maps.slots() {
            match map {
                // Its slot is free, and its handle is stale, when it is restored.
                Some(map) if map.spec.kind.is_ring() => {
                    out.u16(generation.checked_add(1).unwrap_or(1))?;
                    out.u16(0)?;
                }
                Some(map) => {
                    out.u16(generation)?;
                    out.u16(1)?;
                    out.map(map)?;
                }
                None => {
                    out.u16(generation)?;
                    out.u16(0)?;
                }
            }
        }
        out.u32(self.holdings.all_freed().len() as u32)?;
        for (handle, map) in self.holdings.all_freed() {
            out.u32(handle.0)?;
            out.map(map)?;
        }
        let slots = self.maps.slots().enumerate();
        let rings = slots.filter(|(_, (_, map))| map.is_some_and(|map| map.spec.kind.is_ring()));
        let rings: Vec<u16> = rings.map(|(slot, _)| slot as u16).collect();
        out.u32((self.maps.free_slots().len() + rings.len()) as u32)?;
        for slot in self.maps.free_slots().chain(rings) {
            out.u16(slot)?;
        }
        out.u32(self.holdings.outers().len() as u32)?;
        for (handle, template, inner) in self.holdings.outers() {
            out.u32(handle.0)?;
            out.spec(template)?;
            out.u32(inner.len() as u32)?;
            for (map, entries) in inner {
                out.u32(*map)?;
                out.u32(*entries)?;
            }
        }
        for (chunk, bytes) in self.memory.chunks() {
            out.u64(chunk)?;
            out.0.put(bytes)?;
        }
        out.u64(NO_CHUNK)?;
        for tier in 0..self.tiers.iter().len() {
            let (corrected, detected) = self.memory.found(tier);
            out.u64(corrected)?;
            out.u64(detected)?;
        }
        for (number, data, check) in self.memory.wrong_lines() {
            out.u64(number)?;
            for word in data {
                out.u64(*word)?;
            }
            out.0.put(check)?;
        }
        out.u64(NO_LINE)
    }

    /// Firmware with the maps of a state, over zeroed `storage`.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn restore<R: Source>(
        config: Config,
        storage: S,
        source: &mut R,
    ) -> Result<Self, RestoreError<R::Error>> {
        let mut from = In(source);
        for (name, now) in limits(&config) {
            let saved = from.u64()?;
            if saved != now {
                return Err(RestoreError::Limit { name, saved, now });
            }
        }
        for (now, number) in config.tiers.iter().zip(1..) {
            let saved = from.tier()?;
            if saved != *now {
                return Err(RestoreError::Tier {
                    number,
                    saved: described(&saved),
                    now: described(now),
                });
            }
        }
        let mut this = Self::new(config, storage)?;
        for slot in 0..from.u32()? {
            let generation = from.u16()?;
            let map = match from.u16()? {
                0 => None,
                1 => Some(this.restore_map(&mut from)?),
                _ => {
                    return Err(RestoreError::Invalid(
                        "a slot that is neither free nor used",
                    ));
                }
            };
            if slot > u32::from(u16::MAX) || !this.maps.restore_slot(generation, map) {
                return Err(RestoreError::Invalid("more maps than there may be"));
            }
        }
        let mut kept = Vec::new();
        for _ in 0..from.u32()? {
            let handle = MapHandle(from.u32()?);
            let map = this.restore_map(&mut from)?;
            this.maps.count(&map);
            if !this.maps.fits() || this.holdings.freed(handle).is_some() {
                return Err(RestoreError::Invalid("more maps than there may be"));
            }
            this.holdings.keep(handle, map);
            kept.push(handle);
        }
        let mut free = VecDeque::new();
        for n in 0..from.u32()? {
            if n > u32::from(u16::MAX) {
                return Err(RestoreError::Invalid("more free slots than slots"));
            }
            free.push_back(from.u16()?);
        }
        if !this.maps.restore_free(free, &kept) {
            return Err(RestoreError::Invalid(
                "slots that are free and used, or neither",
            ));
        }
        this.restore_holdings(&mut from, &kept)?;
        loop {
            let chunk = from.u64()?;
            if chunk == NO_CHUNK {
                break;
            }
            let bytes = this.memory.chunk_mut(chunk);
            let bytes = bytes.ok_or(RestoreError::Invalid("memory past its end"))?;
            from.0.take(bytes).map_err(RestoreError::Source)?;
        }
        for tier in 0..this.tiers.iter().len() {
            let (corrected, detected) = (from.u64()?, from.u64()?);
            this.memory.set_found(tier, corrected, detected);
        }
        loop {
            let number = from.u64()?;
            if number == NO_LINE {
                return Ok(this);
            }
            let mut data = [0; 8];
            for word in &mut data {
                *word = from.u64()?;
            }
            if !this.memory.restore_line(number, data, from.bytes()?) {
                return Err(RestoreError::Invalid("wrong bits where there can be none"));
            }
        }
    }

    fn restore_map<R: Source>(
        &mut self,
        from: &mut In<'_, R>,
    ) -> Result<Map, RestoreError<R::Error>> {
        let spec = from.spec()?;
        let base = DevAddr(from.u64()?);
        let fixed = match from.u16()? {
            0 => false,
            1 => true,
            _ => return Err(RestoreError::Invalid("a map's place that cannot be")),
        };
        let extra = match spec.kind {
            MapKind::BloomFilter => spec.map_extra & !bloom::HASHES,
            _ => spec.map_extra,
        };
        let plain = !spec.kind.is_ring() && extra == 0 && self.may_be(spec);
        let of_maps =
            spec.kind.is_map_of_maps() && spec.value_size != crate::inner::INNER_VALUE_BYTES;
        let geometry = (plain && !of_maps).then(|| Geometry::new(&spec)).flatten();
        let Some(geometry) = geometry else {
            return Err(RestoreError::Invalid("a map that cannot be"));
        };
        let bytes = geometry.total_bytes;
        if !self.tiers.claim(base, bytes) {
            return Err(RestoreError::Invalid(
                "maps over each other, or past the end of memory",
            ));
        }
        let map = Map {
            table: Table::new(base, &spec, &geometry),
            spec,
            base,
            bytes,
            fixed,
        };
        let value = map.value_bytes();
        if !self.scratch.reserve_value(value) {
            return Err(RestoreError::Invalid(
                "a value that is longer than a value can be",
            ));
        }
        while !self.scratch.grow_step(value, u32::MAX) {}
        Ok(map)
    }

    fn restore_holdings<R: Source>(
        &mut self,
        from: &mut In<'_, R>,
        kept: &[MapHandle],
    ) -> Result<(), RestoreError<R::Error>> {
        let wrong = RestoreError::Invalid("a map of maps that holds what cannot be held");
        for _ in 0..from.u32()? {
            let (handle, template) = (MapHandle(from.u32()?), from.spec()?);
            let Ok(outer) = self.maps.get(handle).map(|map| map.spec) else {
                return Err(wrong);
            };
            let (mut inner, mut entries) = (BTreeMap::new(), 0u64);
            for _ in 0..from.u32()? {
                let (map, count) = (from.u32()?, from.u32()?);
                entries += u64::from(count);
                let freed = self.holdings.freed(MapHandle(map));
                let held = self.maps.get(MapHandle(map)).ok().or(freed);
                let like = held.is_some_and(|held| crate::inner::is_like(&template, &held.spec));
                if !like || count == 0 || inner.insert(map, count).is_some() {
                    return Err(wrong);
                }
            }
            let fits = entries <= u64::from(outer.max_entries) && outer.kind.is_map_of_maps();
            if !fits || !self.holdings.restore(handle, template, inner) {
                return Err(wrong);
            }
        }
        let mut outers = self
            .maps
            .live_from(0)
            .filter(|(_, map)| map.spec.kind.is_map_of_maps());
        let all = outers.all(|(handle, _)| self.holdings.is_outer(handle));
        match all && kept.iter().all(|handle| self.holdings.is_held(*handle)) {
            true => Ok(()),
            false => Err(RestoreError::Invalid(
                "a map of maps, or a map that it holds, without the other",
            )),
        }
    }
}

/// Numbers, little-endian.
struct Out<'a, K>(&'a mut K);

impl<K: Sink> Out<'_, K> {
    fn u16(&mut self, value: u16) -> Result<(), K::Error> {
        self.0.put(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> Result<(), K::Error> {
        self.0.put(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> Result<(), K::Error> {
        self.0.put(&value.to_le_bytes())
    }

    fn spec(&mut self, spec: &MapSpec) -> Result<(), K::Error> {
        self.u32(spec.kind.uapi())?;
        for size in [
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            spec.cpu_slots,
        ] {
            self.u32(size)?;
        }
        self.u64(spec.seed)?;
        self.u64(spec.map_extra)?;
        self.0.put(&spec.name)
    }

    fn map(&mut self, map: &Map) -> Result<(), K::Error> {
        self.spec(&map.spec)?;
        self.u64(map.base.0)?;
        self.u16(map.fixed.into())
    }

    fn tier(&mut self, tier: &TierConfig) -> Result<(), K::Error> {
        let mut name = [0; TIER_NAME_BYTES];
        for (to, from) in name.iter_mut().zip(tier.name.bytes()) {
            *to = from;
        }
        self.0.put(&name)?;
        self.u64(tier.size_bytes)?;
        self.u16(match tier.ecc {
            Ecc::None => 0,
            Ecc::Parity => 1,
            Ecc::Secded => 2,
        })?;
        self.u16(tier.placeable.into())
    }
}

struct In<'a, R>(&'a mut R);

impl<R: Source> In<'_, R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], RestoreError<R::Error>> {
        let mut bytes = [0; N];
        self.0.take(&mut bytes).map_err(RestoreError::Source)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, RestoreError<R::Error>> {
        self.bytes().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, RestoreError<R::Error>> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RestoreError<R::Error>> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn tier(&mut self) -> Result<TierConfig, RestoreError<R::Error>> {
        let wrong = RestoreError::Invalid("a memory tier that cannot be");
        let name: [u8; TIER_NAME_BYTES] = self.bytes()?;
        let len = name.iter().position(|byte| *byte == 0);
        let name = name.get(..len.unwrap_or(TIER_NAME_BYTES));
        let name = name.and_then(|name| core::str::from_utf8(name).ok());
        let size_bytes = self.u64()?;
        let (ecc, placeable) = (self.u16()?, self.u16()?);
        let ecc = match ecc {
            0 => Ecc::None,
            1 => Ecc::Parity,
            2 => Ecc::Secded,
            _ => return Err(wrong),
        };
        match (name, placeable) {
            (Some(name), 0 | 1) => Ok(TierConfig {
                name: name.into(),
                size_bytes,
                ecc,
                placeable: placeable == 1,
            }),
            _ => Err(wrong),
        }
    }

    fn spec(&mut self) -> Result<MapSpec, RestoreError<R::Error>> {
        let kind = MapKind::from_uapi(self.u32()?);
        let kind = kind.ok_or(RestoreError::Invalid("a type of map that there is not"))?;
        Ok(MapSpec {
            kind,
            key_size: self.u32()?,
            value_size: self.u32()?,
            max_entries: self.u32()?,
            cpu_slots: self.u32()?,
            seed: self.u64()?,
            map_extra: self.u64()?,
            name: self.bytes()?,
            host_memory: 0,
            vector: 0,
        })
    }
}
