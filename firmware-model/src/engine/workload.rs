//! Packets: an endless stream of what a program does with one map, from a seed.

use super::DataOp;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use offmap_abi::MapHandle;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Most keys of a [`Popularity::Zipf`] workload: it keeps a word for each.
pub const ZIPF_KEYS_MAX: u32 = 1 << 24;

/// How often a key is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Popularity {
    /// All alike.
    Uniform,
    /// Key `n`, counted from 1, with a weight of `1 / n` (Zipf with exponent 1).
    Zipf,
}

/// What the packets are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The map.
    pub map: MapHandle,
    /// Bytes of its keys: key `n` is `n`, little-endian, cut off or filled with zeros.
    pub key_size: u32,
    /// How many keys there are (1 or more; [`ZIPF_KEYS_MAX`] where they are not alike).
    pub keys: u32,
    /// How they are chosen.
    pub popularity: Popularity,
    /// Packets in 1,000 that add 1 to the counter at the start of the key's value; the others look the
    /// key up.
    pub adds: u32,
}

/// Why there is no such workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkloadError {
    /// No keys, or more than are counted.
    Keys {
        /// How many were asked for.
        keys: u32,
        /// Most that there may be.
        max: u32,
    },
    /// More than 1,000 in 1,000.
    Adds(u32),
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys { keys, max } => {
                write!(f, "{keys} keys: give 1 to {max}")
            }
            Self::Adds(adds) => write!(f, "{adds} packets in 1000 that count: give 0 to 1000"),
        }
    }
}

impl core::error::Error for WorkloadError {}

/// The stream.
#[derive(Clone, Debug)]
pub struct Workload {
    shape: Shape,
    random: Xoshiro256PlusPlus,
    /// Weights of the keys up to each one, for [`Popularity::Zipf`].
    weights: Vec<u64>,
}

impl Workload {
    /// The packets of a seed.
    ///
    /// # Errors
    ///
    /// [`WorkloadError`].
    pub fn new(shape: Shape, seed: u64) -> Result<Self, WorkloadError> {
        let max = match shape.popularity {
            Popularity::Uniform => u32::MAX,
            Popularity::Zipf => ZIPF_KEYS_MAX,
        };
        if shape.keys == 0 || shape.keys > max {
            return Err(WorkloadError::Keys {
                keys: shape.keys,
                max,
            });
        }
        if shape.adds > 1000 {
            return Err(WorkloadError::Adds(shape.adds));
        }
        let mut sum = 0;
        let weights = match shape.popularity {
            Popularity::Uniform => Vec::new(),
            // The weight of the last of 2^24 keys is 2^8, so that rounding takes less than 1 % of it;
            // the sum stays below 2^37.
            Popularity::Zipf => (1..=u64::from(shape.keys))
                .map(|n| {
                    sum += (1u64 << 32) / n;
                    sum
                })
                .collect(),
        };
        Ok(Self {
            shape,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            weights,
        })
    }

    /// Key number `n`.
    pub fn key(&self, n: u32) -> Vec<u8> {
        let mut key = vec![0; self.shape.key_size as usize];
        for (to, from) in key.iter_mut().zip(n.to_le_bytes()) {
            *to = from;
        }
        key
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.random.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

impl Iterator for Workload {
    type Item = DataOp;

    fn next(&mut self) -> Option<DataOp> {
        let n = match self.weights.last() {
            None => self.below(self.shape.keys.into()) as u32,
            Some(&sum) => {
                let at = self.below(sum);
                self.weights.partition_point(|weight| *weight <= at) as u32
            }
        };
        let (map, key) = (self.shape.map, self.key(n));
        let adds = self.below(1000) < self.shape.adds.into();
        Some(if adds {
            DataOp::Add {
                map,
                key,
                offset: 0,
                delta: 1,
            }
        } else {
            DataOp::Lookup { map, key }
        })
    }
}
