//! `--timing`: what operations would take on hardware, beside what they took here.

use crate::report::{WIDTH, grouped, wrap};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table};
use offmap_abi::IoOpcode;
use offmap_emulator::{Emulated, FrontEnd};
use offmap_firmware_model::time::Picos;
use offmap_firmware_model::time::meter::{Modelled, OpTimes};
use offmap_model::profile::ProfileFile;
use offmap_offload::stats::snake_case;
use offmap_offload::{NicStats, SeedSource};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hash seeds of maps that follow from the workload's.
pub(crate) struct HashSeeds(AtomicU64);

impl HashSeeds {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl SeedSource for HashSeeds {
    fn seed(&self) -> u64 {
        // The increment and the finalizer of SplitMix64.
        let n = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }
}

/// The meter of the device that runs in this process.
pub(crate) struct Meter {
    /// What the profile says of itself.
    description: String,
    pause: Box<dyn Fn(bool)>,
    modelled: Box<dyn Fn() -> Option<Modelled>>,
}

impl Meter {
    /// Has the device charge its commands; paused at first.
    ///
    /// # Errors
    ///
    /// A sentence: the device has died, or the profile cannot be.
    pub(crate) fn begin<E: FrontEnd>(
        device: &Arc<Emulated<E>>,
        file: &ProfileFile,
    ) -> Result<Self, String> {
        device
            .set_timing(Some(&file.profile))
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let (paused, asked) = (Arc::clone(device), Arc::clone(device));
        let meter = Self {
            description: file.profile.description.clone(),
            // A device that has died is noticed where it is used.
            pause: Box::new(move |pause| drop(paused.pause_timing(pause))),
            modelled: Box::new(move || asked.modelled().ok().flatten()),
        };
        meter.pause(true);
        Ok(meter)
    }

    /// Charges nothing until this is called with `false`: what is measured is not to pay for what is modelled,
    /// and how much of it there is depends on the machine.
    pub(crate) fn pause(&self, pause: bool) {
        (self.pause)(pause);
    }

    /// What came out, beside what the queues' own clocks saw.
    pub(crate) fn report(&self, stats: &NicStats) -> Option<TimingReport> {
        let modelled = (self.modelled)()?;
        Some(TimingReport::new(&self.description, &modelled, stats))
    }
}

/// Modelled times of a run.
#[derive(Clone, Debug, Serialize)]
pub struct TimingReport {
    /// The timing profile's name.
    pub profile: String,
    /// What it stands for.
    pub description: String,
    /// What commands of each kind took.
    pub operations: Vec<OperationTimes>,
    /// A hash over all modelled latencies in order, in hexadecimal: the same for the same calls on any machine.
    pub digest: String,
    /// Accesses to device memory, by tier.
    pub tiers: BTreeMap<String, TierUse>,
    /// Doorbells, DMA reads and writes, and interrupts.
    pub doorbells: u64,
    /// See `doorbells`.
    pub dma_reads: u64,
    /// See `doorbells`.
    pub dma_writes: u64,
    /// See `doorbells`.
    pub interrupts: u64,
    /// Translations that the IOTLB did not have.
    pub iotlb_misses: u64,
}

/// Accesses to a tier.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TierUse {
    /// How many.
    pub accesses: u64,
    /// Those that the cache in front of it answered.
    pub cache_hits: u64,
}

/// What commands of one kind took.
#[derive(Clone, Debug, Serialize)]
pub struct OperationTimes {
    /// The kind.
    pub operation: String,
    /// Commands that were charged.
    pub count: u64,
    /// Elements that they were about.
    pub elements: u64,
    /// Modelled latencies in nanoseconds.
    pub modelled_ns: Latencies,
    /// Where the mean went, in modelled nanoseconds.
    pub parts_ns: PartsNs,
    /// Measured on this machine: nanoseconds in flight, from the driver's histogram, whose buckets are powers of two;
    /// null where none was timed. Of the whole run, most of which was charged to no meter.
    pub measured_p50_ns: Option<u64>,
    /// See `measured_p50_ns`.
    pub measured_p99_ns: Option<u64>,
}

/// Latencies in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    /// The median, at most one in 32 too high.
    pub p50: f64,
    /// What one in a hundred exceeds, likewise.
    pub p99: f64,
    /// The mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// Means of the parts in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct PartsNs {
    /// From the host's store to the device's reaction.
    pub doorbell: f64,
    /// The descriptor's way to the device.
    pub fetch: f64,
    /// An engine and its cycles.
    pub engine: f64,
    /// Keys and values by DMA.
    pub payload: f64,
    /// Device memory, by tier; tiers without an access are left out.
    pub tables: BTreeMap<String, f64>,
    /// The completion's way to the host.
    pub completion: f64,
    /// The interrupt.
    pub interrupt: f64,
}

/// Nanoseconds, with the picoseconds behind the point.
fn ns(time: Picos) -> f64 {
    time.0 as f64 / 1000.0
}

impl TimingReport {
    fn new(description: &str, modelled: &Modelled, stats: &NicStats) -> Self {
        let bus = modelled.bus;
        Self {
            profile: modelled.profile.clone(),
            description: description.to_owned(),
            operations: modelled
                .ops
                .iter()
                .map(|op| OperationTimes::new(op, modelled, stats))
                .collect(),
            digest: format!("{:016x}", modelled.digest),
            tiers: modelled
                .tiers
                .iter()
                .map(|(name, counts)| {
                    let used = TierUse {
                        accesses: counts.accesses,
                        cache_hits: counts.hits,
                    };
                    (name.clone(), used)
                })
                .collect(),
            doorbells: bus.doorbells,
            dma_reads: bus.reads,
            dma_writes: bus.writes,
            interrupts: bus.interrupts,
            iotlb_misses: bus.iotlb_misses,
        }
    }

    /// The tables for people.
    pub(crate) fn text(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "Modelled on {} (docs/timing.md), in nanoseconds; measured is this machine.\n",
            self.profile
        );
        let mut table = new_table([
            "command",
            "count",
            "modelled\np50",
            "\np99",
            "\nmean",
            "measured\np50",
            "\np99",
        ]);
        for op in &self.operations {
            let measured =
                |ns: Option<u64>| ns.map_or("–".to_owned(), |ns| format!("≤ {}", grouped(ns)));
            let whole = |ns: f64| grouped(ns.round() as u64);
            table.add_row([
                op.operation.clone(),
                grouped(op.count),
                whole(op.modelled_ns.p50),
                whole(op.modelled_ns.p99),
                whole(op.modelled_ns.mean),
                measured(op.measured_p50_ns),
                measured(op.measured_p99_ns),
            ]);
        }
        finish(&mut table, out);
        out.push_str("\nWhere the modelled mean went:\n\n");
        let tiers: Vec<&String> = self
            .tiers
            .iter()
            .filter(|(_, used)| used.accesses > 0)
            .map(|(name, _)| name)
            .collect();
        let mut header = vec![
            "command".to_owned(),
            "doorbell".into(),
            "fetch".into(),
            "engine".into(),
        ];
        header.extend(tiers.iter().map(|name| (*name).clone()));
        header.extend(["payload".into(), "completion".into()]);
        let interrupts = self.interrupts > 0;
        if interrupts {
            header.push("interrupt".into());
        }
        let mut table = new_table(header);
        for op in &self.operations {
            let parts = &op.parts_ns;
            let mut row = vec![parts.doorbell, parts.fetch, parts.engine];
            row.extend(
                tiers
                    .iter()
                    .map(|name| parts.tables.get(*name).copied().unwrap_or(0.0)),
            );
            row.extend([parts.payload, parts.completion]);
            row.extend(interrupts.then_some(parts.interrupt));
            let cells = row.into_iter().map(|ns| grouped(ns.round() as u64));
            table.add_row(std::iter::once(op.operation.clone()).chain(cells));
        }
        finish(&mut table, out);
        out.push('\n');
        let text = format!(
            "{}. Modelled times are of the random operations and the filling, {} commands; hash {}.",
            self.description,
            grouped(self.operations.iter().map(|op| op.count).sum()),
            self.digest
        );
        wrap(out, &text);
        out.push('\n');
    }
}

fn new_table<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING.header_separator(LineStyle::none().fill('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    table
}

fn finish(table: &mut Table, out: &mut String) {
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 0 } else { 2 }, 0));
        if i >= 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(out, "{}", table.trim_fmt());
}

impl OperationTimes {
    fn new(op: &OpTimes, modelled: &Modelled, stats: &NicStats) -> Self {
        let count = op.latencies.count();
        let mean = |sum: Picos| ns(sum) / count.max(1) as f64;
        let time = |time: Option<Picos>| time.map_or(0.0, ns);
        let opcode = IoOpcode(op.opcode);
        let total = stats.driver.total();
        let timed = total
            .as_ref()
            .and_then(|total| total.operations.iter().find(|op| op.opcode == opcode));
        let measured = |q: f64| {
            let took = timed.and_then(|op| op.times.quantile(q))?;
            u64::try_from(took.as_nanos()).ok()
        };
        let tiers = modelled.tiers.iter().zip(op.parts.tables);
        Self {
            operation: snake_case(opcode.name().unwrap_or("Other")),
            count,
            elements: op.elements,
            modelled_ns: Latencies {
                p50: time(op.latencies.quantile(50, 100)),
                p99: time(op.latencies.quantile(99, 100)),
                mean: time(op.latencies.mean()),
                min: time(op.latencies.least()),
                max: time(op.latencies.greatest()),
            },
            parts_ns: PartsNs {
                doorbell: mean(op.parts.doorbell),
                fetch: mean(op.parts.fetch),
                engine: mean(op.parts.engine),
                payload: mean(op.parts.payload),
                tables: tiers
                    .filter(|((_, counts), _)| counts.accesses > 0)
                    .map(|((name, _), time)| (name.clone(), mean(time)))
                    .collect(),
                completion: mean(op.parts.completion),
                interrupt: mean(op.parts.interrupt),
            },
            measured_p50_ns: measured(0.5),
            measured_p99_ns: measured(0.99),
        }
    }
}
