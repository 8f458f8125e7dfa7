//! What a run counts, and how resources were used.

use super::machine::Machine;
use crate::des::Time;
use hdrhistogram::Histogram;

/// Latencies in picoseconds, to three digits; extremes, sum and count exactly.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    /// The least one.
    pub min: u64,
    /// The greatest one.
    pub max: u64,
    /// All together.
    pub sum: u128,
    /// How many.
    pub count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            histogram: new_histogram(),
            min: u64::MAX,
            max: 0,
            sum: 0,
            count: 0,
        }
    }
}

/// Grows with what it is given; to three digits.
fn new_histogram() -> Histogram<u64> {
    match Histogram::new(3) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("three digits are between none and five"),
    }
}

impl Latencies {
    /// Counts one.
    #[inline]
    pub fn record(&mut self, latency: u64) {
        // It grows with what it is given; what is beyond 2^63 does not come.
        let _ = self.histogram.record(latency);
        self.min = self.min.min(latency);
        self.max = self.max.max(latency);
        self.sum += u128::from(latency);
        self.count += 1;
    }

    /// The least latency that this share of all does not exceed, in picoseconds, and never more than the greatest; `None` where there is
    /// none.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        (self.count != 0).then(|| self.histogram.value_at_quantile(share).min(self.max))
    }

    /// The mean in picoseconds, rounded down.
    pub fn mean(&self) -> Option<u64> {
        (self.count != 0).then(|| (self.sum / u128::from(self.count)) as u64)
    }
}

/// A resource's use in the measured time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Use {
    /// What it is.
    pub name: String,
    /// Of the busiest one of its kind: parts of a million of the time, or of its places.
    pub busy_ppm: u32,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Commands that ended in the measured time.
    pub commands: u64,
    /// Elements of them.
    pub elements: u64,
    /// Packets that were done with in the measured time.
    pub packets: u64,
    /// Packets that came in it.
    pub packets_offered: u64,
    /// Packets that were dropped in it.
    pub packets_dropped: u64,
    /// The measured time in picoseconds.
    pub window: u64,
    /// When everything had ended.
    pub end: Time,
    /// Latencies of commands that were issued in the measured time.
    pub latencies: Latencies,
    /// Latencies of such packets.
    pub packet_latencies: Latencies,
    /// How resources were used.
    pub uses: Vec<Use>,
    /// Events of the whole run.
    pub events: u64,
    /// All commands of the whole run: how many were issued and ended.
    pub issued: u64,
    /// The time integral of the number of commands in flight, over the whole run: place-picoseconds.
    pub in_flight: u128,
    /// The sum of all their latencies. Little's law says that the two are the same.
    pub latency_sum: u128,
}

/// Parts of a million by which a resource may be less busy than the busiest one and still be what all wait
/// for.
const ABOUT_AS_BUSY: u32 = 30_000;

impl Outcome {
    /// What bounds the throughput, or would first: the busiest resource. Who waits holds others meanwhile (an engine
    /// while it waits for memory, a tag while it waits for the link), so that of several that are about as busy it is the
    /// innermost.
    pub fn bottleneck(&self) -> Option<&Use> {
        let most = self.uses.iter().map(|one| one.busy_ppm).max()?;
        let as_busy = |one: &&Use| one.busy_ppm + ABOUT_AS_BUSY >= most;
        self.uses.iter().rev().find(as_busy)
    }
}

/// Sums of use up to a moment, one for each resource of each kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) at: Time,
    pub(super) threads: Vec<u64>,
    pub(super) nics: Vec<NicSnapshot>,
    pub(super) commands: u64,
    pub(super) packets: u64,
    pub(super) offered: u64,
    pub(super) dropped: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct NicSnapshot {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) dma: u64,
    pub(super) store: u64,
    pub(super) tags: u64,
    pub(super) walkers: u64,
    pub(super) engines: u64,
    pub(super) ports: Vec<u64>,
    pub(super) slots: Vec<u64>,
}

impl NicSnapshot {
    /// Nothing used yet, of so many tiers.
    pub(super) fn empty(tiers: usize) -> Self {
        Self {
            ports: vec![0; tiers],
            slots: vec![0; tiers],
            ..Self::default()
        }
    }
}

/// Parts of a million.
fn ppm(part: u64, whole: u64) -> u32 {
    let ppm = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    // What was promised before the window and served in it may exceed it by a service.
    ppm.min(1_000_000) as u32
}

/// How resources were used between two moments.
pub(super) fn uses(machine: &Machine, from: &Snapshot, to: &Snapshot) -> Vec<Use> {
    let window = to.at - from.at;
    let mut uses = Vec::new();
    let mut add = |name: String, places: u64, most: u64| {
        uses.push(Use {
            name,
            busy_ppm: ppm(most, window.saturating_mul(places.max(1))),
        });
    };
    let most = |of: &dyn Fn(&NicSnapshot) -> u64| {
        let each = from.nics.iter().zip(&to.nics);
        each.map(|(from, to)| of(to).saturating_sub(of(from)))
            .max()
            .unwrap_or(0)
    };
    // From the outside in: who waits for one of the later ones holds some of the earlier ones meanwhile.
    let commands = !machine.calls.is_empty();
    if commands {
        let threads = from.threads.iter().zip(&to.threads);
        let busiest = threads.map(|(from, to)| to.saturating_sub(*from)).max();
        add("host threads".into(), 1, busiest.unwrap_or(0));
    }
    let engines = machine.engines.count.into();
    add("engines".into(), engines, most(&|nic| nic.engines));
    if commands {
        let tags = machine.bus.tags.into();
        add("DMA engine".into(), 1, most(&|nic| nic.dma));
        add("read tags".into(), tags, most(&|nic| nic.tags));
        if machine.host.iommu_miss_share != 0 {
            let walkers = machine.host.walkers.into();
            add("IOMMU walkers".into(), walkers, most(&|nic| nic.walkers));
        }
        add("link to the NIC".into(), 1, most(&|nic| nic.down));
        add("link to the host".into(), 1, most(&|nic| nic.up));
        add("DMA store".into(), 1, most(&|nic| nic.store));
    }
    for (n, tier) in machine.tiers.iter().enumerate() {
        add(
            format!("{} outstanding accesses", tier.name),
            tier.outstanding.into(),
            most(&|nic| nic.slots[n]),
        );
        add(
            format!("{} bandwidth", tier.name),
            1,
            most(&|nic| nic.ports[n]),
        );
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.quantile(0.5), latencies.mean()), (None, None));
        for n in 1..=1000u64 {
            latencies.record(n * 1_000_000_000);
        }
        assert_eq!(latencies.mean(), Some(500_500_000_000));
        let median = latencies.quantile(0.5).unwrap();
        assert!(median.abs_diff(500_000_000_000) <= 500_000_000);
        assert_eq!(latencies.quantile(1.0), Some(1_000_000_000_000));
    }

    #[test]
    fn parts_of_a_million_do_not_exceed_the_whole() {
        assert_eq!(ppm(1, 4), 250_000);
        assert_eq!(ppm(5, 4), 1_000_000);
        assert_eq!(ppm(0, 0), 0);
    }
}
