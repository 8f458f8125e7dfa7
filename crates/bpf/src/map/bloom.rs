//! BLOOM_FILTER in host memory (`kernel/bpf/bloom_filter.c`).
//!
//! Bits only ever get set, each by one atomic operation: there is nothing to lock, and nothing
//! that a reader could see half of.

use super::jhash::{jhash, jhash2};
use super::lazy::LazyTable;
use super::ops::{MapOps, NO_SUCH_OPERATION};
use crate::device::BatchOutcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::uapi::BPF_ANY;
use std::sync::atomic::Ordering::Relaxed;

/// Most hash functions: what the low four bits of `map_extra` can say.
const MAX_HASHES: usize = 15;
/// Hash functions where `map_extra` does not say.
const DEFAULT_HASHES: u32 = 5;
/// `sizeof(struct bpf_bloom_filter)` without its bits, on 64-bit.
const BLOOM_BYTES: u64 = 312;

const ABSENT: Error = Error::new(Errno::ENOENT, "the value is not in the bloom filter");
const BAD_PUSH_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: adding to a bloom filter takes BPF_ANY only",
);
const NO_DELETE: Error = Error::new(
    Errno::EOPNOTSUPP,
    "what was added to a bloom filter cannot be taken out",
);
const NO_NEXT: Error = Error::new(
    Errno::EOPNOTSUPP,
    "a bloom filter does not keep its values, so that they cannot be listed",
);

pub(crate) struct HostBloom {
    /// Words of 64 bits.
    bits: LazyTable,
    /// Number of bits − 1.
    mask: u32,
    seed: u32,
    hashes: usize,
    /// Whether values consist of 32-bit words, which `jhash2` takes.
    words: bool,
}

impl HostBloom {
    /// An empty filter for `max_entries` values of `value_bytes` with `hashes` hash functions
    /// (0: the default).
    pub(crate) fn new(value_bytes: u32, max_entries: u32, hashes: u32, seed: u32) -> Result<Self> {
        let hashes = if hashes == 0 { DEFAULT_HASHES } else { hashes };
        let mask = bitset_mask(max_entries, hashes);
        let words = (u64::from(mask) + 1) / 64;
        Ok(Self {
            bits: LazyTable::new(words as usize, 1, "parts of the bitset")?,
            mask,
            seed,
            hashes: (hashes as usize).min(MAX_HASHES),
            words: value_bytes.is_multiple_of(4),
        })
    }

    /// The value's bits.
    fn bits_of(&self, value: &[u8]) -> impl Iterator<Item = usize> {
        (0..self.hashes as u32).map(move |index| {
            let initval = self.seed.wrapping_add(index);
            let hash = if self.words {
                jhash2(value, initval)
            } else {
                jhash(value, initval)
            };
            (hash & self.mask) as usize
        })
    }
}

/// Number of bits − 1: `n * k / ln 2` bits, with 7/5 for `1 / ln 2`, in the kernel's 32-bit
/// arithmetic; rounded up to a power of two, and 2^32 where that does not fit.
fn bitset_mask(max_entries: u32, hashes: u32) -> u32 {
    let bits = max_entries
        .checked_mul(hashes)
        .and_then(|bits| (bits / 5).checked_mul(7));
    match bits {
        Some(bits) if bits <= 1 << 31 => bits.max(64).next_power_of_two() - 1,
        _ => u32::MAX,
    }
}

impl MapOps for HostBloom {
    /// `bloom_map_peek_elem`: `value` is what is asked for.
    fn lookup(&self, _key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let present = self.bits_of(value).all(|bit| {
            let word = self.bits.get(bit / 64).and_then(<[_]>::first);
            word.is_some_and(|word| word.load(Relaxed) >> (bit % 64) & 1 != 0)
        });
        if present { Ok(()) } else { Err(ABSENT) }
    }

    /// `bloom_map_push_elem`.
    fn update(&self, _key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        if flags != BPF_ANY {
            return Err(BAD_PUSH_FLAGS);
        }
        for bit in self.bits_of(value) {
            if let Some([word]) = self.bits.get(bit / 64) {
                word.fetch_or(1 << (bit % 64), Relaxed);
            }
        }
        Ok(())
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        Err(NO_DELETE)
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        Err(NO_NEXT)
    }

    fn walk_batch(
        &self,
        _in_batch: Option<&[u8]>,
        _out_batch: &mut [u8],
        _keys: &mut [u8],
        _values: &mut [u8],
        _count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        BatchOutcome::failed(NO_SUCH_OPERATION)
    }

    /// `bloom_map_mem_usage`.
    fn mem_usage(&self) -> u64 {
        BLOOM_BYTES + (u64::from(self.mask) + 1) / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `memlock` of a 6.18 kernel's filters of values of 4 bytes.
    #[test]
    fn the_kernels_sizes() {
        for (max_entries, memlock) in [
            (1, 320),
            (10, 328),
            (100, 440),
            (1000, 1336),
            (1_000_000, 1_048_888),
            (1 << 31, 536_871_224),
            (u32::MAX, 536_871_224),
        ] {
            let bloom = HostBloom::new(4, max_entries, 0, 0).unwrap();
            assert_eq!(bloom.mem_usage(), memlock, "{max_entries} entries");
        }
    }
}
