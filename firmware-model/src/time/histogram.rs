//! How times are distributed: counts in buckets whose width grows with what they count.

use super::Picos;
use alloc::boxed::Box;

/// Buckets for each doubling, as a power of two: what is reported is at most one in 32 above what was.
const FINE: u32 = 5;
/// The greatest power of two of picoseconds that is told apart: 281 seconds.
const TOP: u32 = 48;
const BUCKETS: usize = (((TOP - FINE) as usize) + 1) << FINE;

/// A histogram of times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum: u128,
    least: Picos,
    greatest: Picos,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: alloc::vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            sum: 0,
            least: Picos::MAX,
            greatest: Picos::ZERO,
        }
    }
}

#[inline(always)]
fn bucket(time: u64) -> usize {
    let time = time.min((1 << TOP) - 1);
    let above = (time >> FINE).checked_ilog2().map_or(0, |log| log + 1);
    // The top bits of it, and how far they were shifted.
    ((above as usize) << FINE) + (time >> above.saturating_sub(1)) as usize
        - if above > 0 { 1 << FINE } else { 0 }
}

/// The greatest time that a bucket counts.
fn greatest_of(bucket: usize) -> u64 {
    let (above, rest) = ((bucket >> FINE) as u32, (bucket & ((1 << FINE) - 1)) as u64);
    match above {
        0 => rest,
        _ => (((1 << FINE) + rest + 1) << (above - 1)) - 1,
    }
}

impl Histogram {
    /// Counts a time.
    #[inline]
    pub fn record(&mut self, time: Picos) {
        if let Some(bucket) = self.buckets.get_mut(bucket(time.0)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += u128::from(time.0);
        self.least = self.least.min(time);
        self.greatest = self.greatest.max(time);
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean, exactly, rounded down; `None` without any.
    pub fn mean(&self) -> Option<Picos> {
        self.sum
            .checked_div(u128::from(self.count))
            .map(|mean| Picos(mean as u64))
    }

    /// The least one, exactly.
    pub fn least(&self) -> Option<Picos> {
        (self.count > 0).then_some(self.least)
    }

    /// The greatest one, exactly.
    pub fn greatest(&self) -> Option<Picos> {
        (self.count > 0).then_some(self.greatest)
    }

    /// The time that no more than `parts` in `of` of them exceed: at least that, and at most one in 32 above it.
    /// `quantile(99, 100)` is the 99th percentile.
    pub fn quantile(&self, parts: u64, of: u64) -> Option<Picos> {
        let rank = (u128::from(self.count) * u128::from(parts)).div_ceil(u128::from(of.max(1)));
        let rank = rank.clamp(1, u128::from(self.count.max(1)));
        let mut seen = 0_u128;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return Some(Picos(greatest_of(n)).min(self.greatest).max(self.least));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn buckets_are_in_order_and_bound_their_times() {
        let mut before = 0;
        let mut times: Vec<u64> = (0..5000).collect();
        times.extend((12..TOP).flat_map(|n| [(1 << n) - 1, 1 << n, (1 << n) + 1, 3 << (n - 1)]));
        times.sort_unstable();
        for time in times {
            let n = bucket(time);
            assert!(n >= before && n < BUCKETS, "{time}");
            before = n;
            let top = greatest_of(n);
            assert!(top >= time && top - time <= time / 32, "{time} {top}");
            assert!(n == 0 || greatest_of(n - 1) < time);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(1, 2), histogram.mean()), (None, None));
        let mut times: Vec<u64> = (0..1000_u64).map(|n| n * n * 7 + 3).collect();
        for time in &times {
            histogram.record(Picos(*time));
        }
        times.sort_unstable();
        for parts in [1, 50, 90, 99, 100] {
            let exact = times[(1000 * parts as usize).div_ceil(100) - 1];
            let ours = histogram.quantile(parts, 100).unwrap().0;
            assert!(
                ours >= exact && ours <= exact + exact / 32,
                "{parts}: {ours} {exact}"
            );
        }
        assert_eq!(
            histogram.mean().unwrap().0,
            times.iter().sum::<u64>() / 1000
        );
        assert_eq!(histogram.greatest().unwrap().0, times[999]);
        assert_eq!(histogram.least().unwrap().0, 3);
        let mut twice = histogram.clone();
        twice.add(&histogram);
        assert_eq!(twice.count(), 2000);
        assert_eq!(twice.quantile(1, 2), histogram.quantile(1, 2));
    }
}
