//! Random numbers without floating point, so that every machine draws the same.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng};

/// One whole in the fixed-point fractions that are drawn against.
pub const ONE: u32 = 1 << 16;

/// ln 2 times 2^32.
const LN_2: u64 = 2_977_044_472;

/// Entries of the table of logarithms.
const STEPS: usize = 1 << 10;

/// log2(1 + n / 1024) times 2^32.
static LOG_2: [u64; STEPS + 1] = {
    let mut table = [0; STEPS + 1];
    let mut n = 0;
    while n < STEPS {
        table[n] = log_2(n as u64);
        n += 1;
    }
    table[STEPS] = 1 << 32;
    table
};

/// By squaring: each time the number passes two is a binary digit of its logarithm.
const fn log_2(n: u64) -> u64 {
    let mut x = (1u128 << 62) + ((n as u128) << 52);
    let mut log = 0;
    let mut digit = 0;
    while digit < 32 {
        x = (x * x) >> 62;
        log <<= 1;
        if x >> 63 != 0 {
            x >>= 1;
            log |= 1;
        }
        digit += 1;
    }
    log
}

/// The finaliser of SplitMix64: a bijection of 64 bits.
pub(crate) const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// Stream number `stream` of a seed. Streams of one seed have nothing to do with each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let stream = mix(stream.wrapping_add(0x9e37_79b9_7f4a_7c15));
        Self(Xoshiro256PlusPlus::seed_from_u64(mix(seed) ^ stream))
    }

    /// 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`; 0 where `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        // The bias of 2^-32 and less is no concern here.
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// True in `share` of 65,536 cases ([`ONE`]). A certainty draws nothing.
    #[inline]
    pub fn happens(&mut self, share: u32) -> bool {
        share != 0 && (share >= ONE || (self.bits() >> 48) < u64::from(share))
    }

    /// A number of exponential distribution with this mean: the gaps of a Poisson process.
    #[inline]
    pub fn exponential(&mut self, mean: u64) -> u64 {
        // -ln u is ln 2 times -log2 u. The digits of u after its first one are a number between one
        // and two, whose logarithm is in the table, with a straight line between two entries.
        let u = self.bits() | 1;
        let zeros = u64::from(u.leading_zeros());
        let fraction = (u << zeros) << 1;
        let step = (fraction >> 54) as usize;
        let beyond = (fraction >> 32) & ((1 << 22) - 1);
        let (low, high) = (LOG_2[step], LOG_2[step + 1]);
        let log = low + (((high - low) * beyond) >> 22);
        let minus_log = ((zeros + 1) << 32) - log;
        let units = (u128::from(minus_log) * u128::from(LN_2)) >> 32;
        ((units * u128::from(mean)) >> 32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_what_the_library_says() {
        for (n, &log) in LOG_2.iter().enumerate() {
            let expected = (1.0 + n as f64 / STEPS as f64).log2();
            assert!((log as f64 / 2f64.powi(32) - expected).abs() < 1e-9, "{n}");
        }
    }

    #[test]
    fn gaps_are_exponential() {
        let (mean, draws) = (1_000_000u64, 400_000);
        let mut random = Random::new(1, 0);
        let gaps: Vec<u64> = (0..draws).map(|_| random.exponential(mean)).collect();
        let sum: u64 = gaps.iter().sum();
        let average = sum as f64 / f64::from(draws);
        assert!((average / mean as f64 - 1.0).abs() < 0.01, "{average}");
        let squares: f64 = gaps.iter().map(|&gap| (gap as f64).powi(2)).sum();
        let variance = squares / f64::from(draws) - average * average;
        assert!((variance / (mean as f64).powi(2) - 1.0).abs() < 0.03);
        for part in [0.1, 0.5, 1.0, 2.0, 5.0] {
            let beyond = gaps.iter().filter(|&&g| g as f64 > part * mean as f64);
            let share = beyond.count() as f64 / f64::from(draws);
            assert!((share - (-part).exp()).abs() < 0.004, "{part}: {share}");
        }
    }

    #[test]
    fn streams_differ_and_certainties_draw_nothing() {
        let mut a = Random::new(1, 0);
        let mut b = Random::new(1, 1);
        assert_ne!(a.bits(), b.bits());
        let mut c = a.clone();
        assert!(a.happens(ONE) && !a.happens(0));
        assert_eq!(a.bits(), c.bits());
        let many = (0..100_000).filter(|_| a.happens(ONE / 4)).count();
        assert!((24_000..26_000).contains(&many), "{many}");
    }
}
