//! What a device is built with, and what makes such a description impossible.

use crate::tier::{self, TierConfig};
use alloc::vec::Vec;
use core::fmt;
use offmap_abi::admin::PORTS_MAX;

/// What the device is built with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Device memory for maps, in bytes.
    pub memory_bytes: u64,
    /// Most maps at a time (1 to 65,535).
    pub maps: u32,
    /// Most entries of one map (1 to 2^31).
    pub entries_per_map: u32,
    /// Most entries of all maps together; 0: bounded by memory alone.
    pub entries_total: u64,
    /// Longest key in bytes (4 to 4,194,304).
    pub key_bytes: u32,
    /// Longest value in bytes, of one CPU (1 to 2^30).
    pub value_bytes: u32,
    /// Most per-CPU slots (1 or more; slots times the rounded-up longest value stay below
    /// 2^32 bytes).
    pub cpu_slots: u32,
    /// Most elements of one batch command, up to 2^20; 0: the device has no batch commands.
    pub batch: u32,
    /// Data-path engines (1 or more).
    pub engines: u32,
    /// Network ports (1 to 256), which share the maps. They are told and change nothing else.
    pub ports: u32,
    /// What a step of a longer command may do.
    pub step: StepLimits,
    /// The tiers of device memory, the fastest first; their sizes make up `memory_bytes`. None: one tier
    /// of that size, without a check code.
    pub tiers: Vec<TierConfig>,
}

/// The work of one step of a command that may take several: a batch, the making of a map, the
/// measure of its chains. Other queues, aborts and resets have their turn between steps. What
/// cannot be divided is done whole, so that a step may exceed its limits by one element, one
/// bucket chain or one 64 KiB piece of memory that a reset left to be cleared; and each does one of
/// these at least, so that every command ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepLimits {
    /// Bytes that it may move or clear (1 to [`StepLimits::BYTES_MAX`]).
    pub bytes: u32,
    /// Elements or buckets that it may visit (1 to [`StepLimits::BUCKETS_MAX`]).
    pub buckets: u32,
}

impl StepLimits {
    /// Most bytes of a step: what takes a millisecond or so, for which a register access may wait.
    pub const BYTES_MAX: u32 = 16 << 20;
    /// Most buckets of a step, likewise.
    pub const BUCKETS_MAX: u32 = 1 << 16;
    /// [`STEP_BYTES`](crate::STEP_BYTES) and [`STEP_BUCKETS`](crate::STEP_BUCKETS).
    pub const USUAL: Self = Self {
        bytes: crate::STEP_BYTES as u32,
        buckets: crate::STEP_BUCKETS as u32,
    };
}

impl Default for StepLimits {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Config {
    /// A device with `memory_bytes` of memory and generous limits besides: 1,024 maps, 2^31
    /// entries a map, no shared entry limit, keys and values to 4 MiB (a host hash map takes no
    /// more either; values 8 bytes less, so that 1,024 slots of them can be counted), 1,024
    /// per-CPU slots, batches of 4,096, 8 engines, one port and [`StepLimits::USUAL`].
    pub const fn with_memory(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            maps: 1024,
            entries_per_map: 1 << 31,
            entries_total: 0,
            key_bytes: 4 << 20,
            value_bytes: (4 << 20) - 8,
            cpu_slots: 1024,
            batch: 4096,
            engines: 8,
            ports: 1,
            step: StepLimits::USUAL,
            tiers: Vec::new(),
        }
    }

    /// The same with the memory of those tiers.
    pub fn with_tiers(mut self, tiers: Vec<TierConfig>) -> Self {
        let sizes = tiers.iter().map(|tier| tier.size_bytes);
        self.memory_bytes = sizes.fold(0, u64::saturating_add);
        self.tiers = tiers;
        self
    }

    /// Checks that the limits can be represented in the tables and on the wire, and that
    /// `storage_bytes` of storage hold the memory.
    pub(crate) fn check(&self, storage_bytes: usize) -> Result<(), ConfigError> {
        let limit = |name, value: u64, min: u64, max: u64| {
            if value < min || value > max {
                return Err(ConfigError::Limit {
                    name,
                    value,
                    min,
                    max,
                });
            }
            Ok(())
        };
        limit("maps", self.maps.into(), 1, u16::MAX.into())?;
        limit("entries_per_map", self.entries_per_map.into(), 1, 1 << 31)?;
        limit("key_bytes", self.key_bytes.into(), 4, 1 << 22)?;
        limit("value_bytes", self.value_bytes.into(), 1, 1 << 30)?;
        let longest_value = u64::from(self.value_bytes).next_multiple_of(8);
        let slots_max = u64::from(u32::MAX) / longest_value;
        limit("cpu_slots", self.cpu_slots.into(), 1, slots_max)?;
        limit("batch", self.batch.into(), 0, 1 << 20)?;
        limit("engines", self.engines.into(), 1, u32::MAX.into())?;
        limit("ports", self.ports.into(), 1, PORTS_MAX.into())?;
        let step = self.step;
        limit(
            "step.bytes",
            step.bytes.into(),
            1,
            StepLimits::BYTES_MAX.into(),
        )?;
        let buckets = StepLimits::BUCKETS_MAX.into();
        limit("step.buckets", step.buckets.into(), 1, buckets)?;
        limit("memory_bytes", self.memory_bytes, 64, isize::MAX as u64)?;
        tier::check(&self.tiers, self.memory_bytes)?;
        if (storage_bytes as u64) < self.memory_bytes {
            return Err(ConfigError::Storage {
                storage_bytes: storage_bytes as u64,
                memory_bytes: self.memory_bytes,
            });
        }
        Ok(())
    }
}

/// Why a device cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// A field of [`Config`] is outside the range that the device can represent.
    Limit {
        /// The field.
        name: &'static str,
        /// What it says.
        value: u64,
        /// Its least value.
        min: u64,
        /// Its greatest value.
        max: u64,
    },
    /// A tier of [`Config::tiers`] cannot be.
    Tier {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The storage handed over is shorter than the memory it must hold.
    Storage {
        /// Length of the storage in bytes.
        storage_bytes: u64,
        /// Bytes that the configuration asks for.
        memory_bytes: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit {
                name,
                value,
                min,
                max,
            } => write!(f, "{name} is {value}, outside {min} to {max}"),
            Self::Tier { number, what } => write!(f, "memory tier {number}: {what}"),
            Self::Storage {
                storage_bytes,
                memory_bytes,
            } => write!(
                f,
                "the storage holds {storage_bytes} bytes, fewer than the {memory_bytes} of device memory"
            ),
        }
    }
}

impl core::error::Error for ConfigError {}
