//! Keys and values from a seed.

use super::Shape;

/// SplitMix64's output function: a bijection of 64 bits that looks random.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The `i`-th key of a map, for any `i`: distinct numbers below [`Keys::distinct`] give
/// distinct keys.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    indexed: bool,
    size: usize,
    seed: u64,
}

impl Keys {
    /// The keys of a map of this shape.
    pub fn new(shape: &Shape, seed: u64) -> Self {
        Self {
            indexed: shape.indexed,
            size: shape.key_size,
            seed: mix(seed),
        }
    }

    /// How many distinct keys there are, saturating.
    pub fn distinct(&self) -> u64 {
        if self.size >= 8 {
            u64::MAX
        } else {
            1 << (8 * self.size)
        }
    }

    /// Writes key `i`; `out` has the key size. Array keys are the index itself, modulo 2³².
    pub fn write(&self, i: u64, out: &mut [u8]) {
        if self.indexed {
            let index = (i as u32).to_ne_bytes();
            for (to, from) in out.iter_mut().zip(index) {
                *to = from;
            }
            return;
        }
        // Odd multipliers and xor-shifts are bijections modulo any power of two.
        let bits = 8 * self.size.min(8) as u32;
        let mask = u64::MAX >> (64 - bits.max(1));
        let mut x = (i ^ self.seed) & mask;
        for odd in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb_u64] {
            x = x.wrapping_mul(odd) & mask;
            x ^= x >> (bits / 2).max(1);
        }
        for (n, chunk) in out.chunks_mut(8).enumerate() {
            let word = if n == 0 { x } else { mix(x ^ mix(n as u64)) };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Fills `out` with the value of number `n`: all its bytes differ from CPU to CPU and from
/// number to number.
pub fn write_value(n: u64, out: &mut [u8]) {
    let start = mix(n);
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        let word = mix(start ^ i as u64);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_distinct_and_all_of_a_small_space_are_reached() {
        for (size, indexed, count) in [(1, false, 256), (2, false, 65_536), (4, true, 70_000)] {
            for seed in 0..4 {
                let shape = Shape::for_test(indexed, size, 1, 1);
                let keys = Keys::new(&shape, seed);
                let mut seen = HashSet::new();
                let mut key = vec![0; size];
                for i in 0..count {
                    keys.write(i, &mut key);
                    assert!(seen.insert(key.clone()), "size {size} seed {seed} key {i}");
                }
            }
        }
        for size in [3, 5, 6, 7, 8, 9, 16, 31] {
            let keys = Keys::new(&Shape::for_test(false, size, 1, 1), 7);
            let mut seen = HashSet::new();
            let mut key = vec![0; size];
            for i in 0..50_000 {
                keys.write(i, &mut key);
                assert!(seen.insert(key.clone()), "size {size} key {i}");
            }
        }
    }
}
