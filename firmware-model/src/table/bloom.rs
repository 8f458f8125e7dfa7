//! BLOOM_FILTER: a bitset, in little-endian words of 8 bytes, and nothing else.
//!
//! What is added and looked up is the key; entries have no values. Number of bits, hash
//! functions and bits of a key are the kernel's (abi §6.3), so that a filter with seed 0 answers
//! as the kernel's does with `BPF_F_ZERO_SEED`.

use super::layout::{Geometry, MapSpec, ValueShape};
use crate::access::Access;
use offmap_abi::hash::jhash;
use offmap_abi::submission::UPDATE_ANY;
use offmap_abi::{DevAddr, Status};

/// Bits of `map_extra` that say how many hash functions there are.
pub(crate) const HASHES: u64 = 0xf;
/// Hash functions where they are 0.
const DEFAULT_HASHES: u32 = 5;

fn hashes(spec: &MapSpec) -> u32 {
    match (spec.map_extra & HASHES) as u32 {
        0 => DEFAULT_HASHES,
        hashes => hashes,
    }
}

/// Number of bits: `max_entries` times hash functions, divided by 5, times 7, each rounded down;
/// up to a power of two, at least 64. 2^32 where that exceeds 2^31 or a product 32 bits.
fn bits(spec: &MapSpec) -> u64 {
    let product = spec.max_entries.checked_mul(hashes(spec));
    match product.and_then(|product| (product / 5).checked_mul(7)) {
        Some(bits) if bits <= 1 << 31 => u64::from(bits.max(64).next_power_of_two()),
        _ => 1 << 32,
    }
}

/// Bytes of the bitset.
pub(crate) fn bitset_bytes(spec: &MapSpec) -> u64 {
    bits(spec) / 8
}

/// A filter at its place in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BloomTable {
    bits: DevAddr,
    mask: u32,
    hashes: u32,
    seed: u32,
    pub(crate) value: ValueShape,
}

impl BloomTable {
    pub(crate) fn new(base: DevAddr, spec: &MapSpec, geometry: &Geometry) -> Self {
        Self {
            bits: base.offset(geometry.entries),
            mask: (bits(spec) - 1) as u32,
            hashes: hashes(spec),
            seed: spec.seed as u32,
            value: geometry.value,
        }
    }

    /// The address of the byte with the key's bit by hash function `index`, and that bit.
    fn place(&self, key: &[u8], index: u32) -> (DevAddr, u8) {
        let bit = jhash(key, self.seed.wrapping_add(index)) & self.mask;
        (self.bits.offset(u64::from(bit / 8)), 1 << (bit % 8))
    }

    /// The address of the value of a key that may be there: of no bytes.
    pub(crate) fn find(&self, access: &mut impl Access, key: &[u8]) -> Result<DevAddr, Status> {
        for index in 0..self.hashes {
            let (at, bit) = self.place(key, index);
            let [byte] = access.read(at)?;
            if byte & bit == 0 {
                return Err(Status::NotFound);
            }
        }
        Ok(self.bits)
    }

    /// Adds a key.
    pub(crate) fn update(
        &self,
        access: &mut impl Access,
        key: &[u8],
        flags: u32,
    ) -> Result<(), Status> {
        if flags != UPDATE_ANY {
            return Err(Status::InvalidField);
        }
        for index in 0..self.hashes {
            let (at, bit) = self.place(key, index);
            access.with_bytes_mut(at, 1, |bytes| {
                if let Some(byte) = bytes.first_mut() {
                    *byte |= bit;
                }
            })?;
        }
        Ok(())
    }
}
