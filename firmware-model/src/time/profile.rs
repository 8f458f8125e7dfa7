//! A timing profile as data: the link, the host's side, the device's, and its memory's tiers.
//!
//! The crate `offmap-model` reads profiles from TOML files, in which each figure has a source; what is here is
//! what is left of them for the model.

use super::pcie::Link;
use super::{PerByte, Picos};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Most tiers of a profile.
pub const TIERS_MAX: usize = 8;
/// Greatest figure in picoseconds: a second.
pub const LONGEST: Picos = Picos(1_000_000_000_000);
/// Most of what is counted one by one: tags, engines, outstanding accesses.
pub const COUNT_MAX: u32 = 1024;
/// Most entries of an IOTLB.
pub const IOTLB_ENTRIES_MAX: u32 = 1 << 16;

/// How long things take on a device behind a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimingProfile {
    /// Its name.
    pub name: String,
    /// What device and host it stands for, in a sentence.
    pub description: String,
    /// The link.
    pub link: Link,
    /// The host's side.
    pub host: HostTiming,
    /// The device's.
    pub device: DeviceTiming,
    /// Device memory, in tiers; the last one is what the rest of memory belongs to.
    pub tiers: Vec<Tier>,
}

/// The host's side of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostTiming {
    /// From the store of a doorbell to its packet on the link.
    pub mmio_write: Picos,
    /// From the arrival of a read request to the first byte of its completion, where the data are in the last
    /// level cache.
    pub read: Picos,
    /// From the arrival of a posted write to the moment from which the host sees it.
    pub write: Picos,
    /// What memory adds to a read where the data are in no cache.
    pub memory: Picos,
    /// Whether what the host wrote just before is in the last level cache when the device reads it.
    pub warm: bool,
    /// What a buffer on another NUMA node adds.
    pub remote_node: Picos,
    /// From the arrival of an interrupt's message to the first instruction of whom it wakes.
    pub interrupt: Picos,
    /// The IOMMU, if the device is behind one.
    pub iommu: Option<Iommu>,
}

/// An IOMMU's cache of translations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Iommu {
    /// Entries of the IOTLB: a power of two from 4 to 65,536.
    pub entries: u32,
    /// Bytes that an entry covers: a power of two from 4,096 to 1 GiB.
    pub page_bytes: u64,
    /// What a translation adds that is not there.
    pub miss: Picos,
    /// Walks of the page table at a time.
    pub walkers: u32,
}

/// The device's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTiming {
    /// Its engines' clock, in MHz.
    pub clock_mhz: u32,
    /// Engines that run commands at a time.
    pub engines: u32,
    /// From the arrival of a doorbell to the first read of a descriptor.
    pub doorbell: Picos,
    /// From the wish for a DMA to its first packet on the link.
    pub dma_setup: Picos,
    /// Least time between two DMA operations: what a descriptor takes in the DMA engine.
    pub dma_issue: Picos,
    /// Bytes a second at which what was read moves on from the DMA engine to where engines find it.
    pub dma_store_bytes_per_s: u64,
    /// Read requests that may wait for completions.
    pub read_tags: u32,
    /// Cycles that commands take besides their accesses.
    pub cycles: CommandCycles,
}

/// Cycles of an engine that a command takes besides its accesses to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandCycles {
    /// To take a descriptor apart and to put a completion together.
    pub command: u32,
    /// For each element that is looked up, updated, deleted or walked over: the hash, the comparison.
    pub element: u32,
    /// To issue one access to memory and to take up its answer.
    pub access: u32,
}

/// A tier of device memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size_bytes: u64,
    /// Bytes that one access moves: a power of two from 1 to 4,096. A longer one is several.
    pub access_bytes: u32,
    /// From an access to its answer.
    pub latency: Picos,
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// Accesses under way at a time.
    pub outstanding: u32,
    /// A cache in front of it.
    pub cache: Option<Cache>,
}

/// A cache in front of a tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cache {
    /// Its bytes: a power of two, of at least four lines.
    pub size_bytes: u64,
    /// Bytes of a line: a power of two from 16 to 4,096.
    pub line_bytes: u32,
    /// From an access that hits to its answer.
    pub hit: Picos,
}

/// Why figures are no profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProfileError {
    /// The figure, as `part.figure`; of a tier, `tier.NAME.figure`.
    pub field: String,
    /// What it says.
    pub value: u64,
    /// What it may say.
    pub expected: String,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}; it is {}",
            self.field, self.value, self.expected
        )
    }
}

impl core::error::Error for ProfileError {}

fn check(ok: bool, field: &str, value: u64, expected: &str) -> Result<(), ProfileError> {
    match ok {
        true => Ok(()),
        false => Err(ProfileError {
            field: field.to_string(),
            value,
            expected: expected.to_string(),
        }),
    }
}

fn time(field: &str, time: Picos) -> Result<(), ProfileError> {
    check(
        time <= LONGEST,
        field,
        time.0,
        "at most a second, in picoseconds",
    )
}

fn count(field: &str, value: u32) -> Result<(), ProfileError> {
    check(
        (1..=COUNT_MAX).contains(&value),
        field,
        value.into(),
        "from 1 to 1,024",
    )
}

fn rate(field: &str, bytes_per_s: u64) -> Result<(), ProfileError> {
    check(
        (1_000_000..=1_000_000_000_000).contains(&bytes_per_s),
        field,
        bytes_per_s,
        "from a million to a million million bytes a second",
    )
}

fn power(field: &str, value: u64, least: u64, most: u64) -> Result<(), ProfileError> {
    if value.is_power_of_two() && (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ProfileError {
        field: field.to_string(),
        value,
        expected: alloc::format!("a power of two from {least} to {most}"),
    })
}

impl TimingProfile {
    /// Checks the figures; the link is checked already.
    ///
    /// # Errors
    ///
    /// [`ProfileError`] names the first that cannot be.
    pub fn check(&self) -> Result<(), ProfileError> {
        let host = &self.host;
        for (field, figure) in [
            ("host.mmio_write", host.mmio_write),
            ("host.read", host.read),
            ("host.write", host.write),
            ("host.memory", host.memory),
            ("host.remote_node", host.remote_node),
            ("host.interrupt", host.interrupt),
            ("device.doorbell", self.device.doorbell),
            ("device.dma_setup", self.device.dma_setup),
            ("device.dma_issue", self.device.dma_issue),
        ] {
            time(field, figure)?;
        }
        if let Some(iommu) = &host.iommu {
            power(
                "host.iommu.entries",
                iommu.entries.into(),
                4,
                IOTLB_ENTRIES_MAX.into(),
            )?;
            power("host.iommu.page_bytes", iommu.page_bytes, 4096, 1 << 30)?;
            time("host.iommu.miss", iommu.miss)?;
            count("host.iommu.walkers", iommu.walkers)?;
        }
        let device = &self.device;
        check(
            (1..=100_000).contains(&device.clock_mhz),
            "device.clock_mhz",
            device.clock_mhz.into(),
            "from 1 to 100,000",
        )?;
        count("device.engines", device.engines)?;
        count("device.read_tags", device.read_tags)?;
        rate("device.dma_store_bytes_per_s", device.dma_store_bytes_per_s)?;
        for (field, cycles) in [
            ("device.cycles.command", device.cycles.command),
            ("device.cycles.element", device.cycles.element),
            ("device.cycles.access", device.cycles.access),
        ] {
            check(
                cycles <= 1_000_000,
                field,
                cycles.into(),
                "at most a million",
            )?;
        }
        check(
            (1..=TIERS_MAX).contains(&self.tiers.len()),
            "the number of tiers",
            self.tiers.len() as u64,
            "from 1 to 8",
        )?;
        for (n, tier) in self.tiers.iter().enumerate() {
            tier.check()?;
            check(
                !self.tiers[..n].iter().any(|other| other.name == tier.name),
                &alloc::format!("tier.{}", tier.name),
                n as u64 + 1,
                "a name that no other tier has",
            )?;
        }
        Ok(())
    }

    /// How long that many cycles of an engine take.
    #[inline]
    pub fn cycles(&self, cycles: u64) -> Picos {
        self.device.cycles_take(cycles)
    }
}

impl DeviceTiming {
    /// How long that many cycles of an engine take, rounded up.
    #[inline]
    pub fn cycles_take(&self, cycles: u64) -> Picos {
        Picos(
            cycles
                .saturating_mul(1_000_000)
                .div_ceil(self.clock_mhz.into()),
        )
    }

    /// What a byte takes between the DMA engine and where engines find it.
    pub fn store(&self) -> PerByte {
        PerByte::from_rate(self.dma_store_bytes_per_s.into(), 1).unwrap_or_else(PerByte::slowest)
    }
}

impl Tier {
    fn check(&self) -> Result<(), ProfileError> {
        let field = |figure: &str| alloc::format!("tier.{}.{figure}", self.name);
        check(
            (1..=1 << 50).contains(&self.size_bytes),
            &field("size_bytes"),
            self.size_bytes,
            "from 1 byte to 2^50",
        )?;
        power(&field("access_bytes"), self.access_bytes.into(), 1, 4096)?;
        time(&field("latency"), self.latency)?;
        rate(&field("bytes_per_s"), self.bytes_per_s)?;
        count(&field("outstanding"), self.outstanding)?;
        if let Some(cache) = &self.cache {
            power(
                &field("cache.line_bytes"),
                cache.line_bytes.into(),
                16,
                4096,
            )?;
            let least = 4 * u64::from(cache.line_bytes);
            power(&field("cache.size_bytes"), cache.size_bytes, least, 1 << 28)?;
            time(&field("cache.hit"), cache.hit)?;
        }
        Ok(())
    }

    /// What a byte takes to pass its port.
    pub fn per_byte(&self) -> PerByte {
        PerByte::from_rate(self.bytes_per_s.into(), 1).unwrap_or_else(PerByte::slowest)
    }
}
