//! The document of a run, as its JSON has it.

use crate::blocks::{Samples, median};
use crate::machine::Machine;
use crate::plan::Group;
use crate::ratios::{Bar, NAMED};
use crate::run::Config;
use crate::sides::BackEnd;
use hdrhistogram::Histogram;
use offmap_bpf::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A run. Times are nanoseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// Version of offmap.
    pub version: String,
    /// Where it was measured.
    pub machine: Machine,
    /// Turns of each side in a repetition.
    pub blocks: usize,
    /// Repetitions, each with new maps.
    pub repetitions: usize,
    /// Calls of each side whose time was taken one by one, in a repetition.
    pub calls: usize,
    /// Seed of the keys.
    pub seed: u64,
    /// What reading the clock costs, which `p50_ns` and `p99_ns` are without.
    pub clock_ns: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What each side showed.
    pub rows: Vec<Row>,
    /// The ratios that have names; null where a side is not available.
    pub ratios: BTreeMap<String, Option<f64>>,
    /// More about each of them, in their order.
    pub ratio_details: Vec<RatioDetail>,
    /// Groups that were not measured, and why.
    pub skipped: Vec<String>,
    /// What follows, in words.
    pub verdict: Vec<String>,
}

/// What one side of a group showed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The group: sides of one group ran in turns.
    pub group: String,
    /// The back end.
    pub backend: BackEnd,
    /// The map's type.
    pub map_type: String,
    /// The operation.
    pub op: String,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Entries in the map.
    pub entries: usize,
    /// Elements of a call.
    pub batch: usize,
    /// Commands in flight.
    pub depth: usize,
    /// Threads.
    pub threads: usize,
    /// How the keys were drawn: `uniform` or `zipf`.
    pub keys: String,
    /// For each element: the median of the blocks.
    pub ns_per_op: Option<f64>,
    /// Of a call (of `batch` elements): the median, and the value that one in a hundred exceeds.
    pub p50_ns: Option<u64>,
    /// See `p50_ns`.
    pub p99_ns: Option<u64>,
    /// Elements in a second.
    pub ops_per_s: Option<f64>,
    /// Modelled time for each element: null, for there is no timing model in this version.
    pub modelled_ns: Option<f64>,
    /// Median of the ratios to the group's first side, block by block; for each repetition.
    pub relative: Vec<f64>,
    /// Of a sequence: how often each errno was the answer in the first run through it, `ok` for success.
    #[serde(default)]
    pub answers: BTreeMap<String, u64>,
    /// Why there are no figures.
    pub reason: Option<String>,
}

/// A ratio that has a name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RatioDetail {
    /// Its name.
    pub name: String,
    /// What it means.
    pub meaning: String,
    /// What it should reach.
    pub bar: Bar,
    /// Whether it does; null without a bar or without a value.
    pub holds: Option<bool>,
    /// The median of the repetitions.
    pub value: Option<f64>,
    /// The least and the greatest of the repetitions.
    pub range: Option<[f64; 2]>,
    /// Nanoseconds of what is divided, and of what it is divided by.
    pub ns: Option<[f64; 2]>,
    /// Why there is no value.
    pub reason: Option<String>,
}

/// The name of an error number; `ok` for success.
fn answer(errno: i32) -> String {
    match errno {
        0 => "ok".to_owned(),
        errno => format!("{:?}", Errno(errno)),
    }
}

impl Row {
    /// What names it among the rows of a run.
    pub fn key(&self) -> String {
        format!(
            "{} {} {} {} k{} v{} n{} b{} d{} t{} {}",
            self.group,
            self.backend,
            self.map_type,
            self.op,
            self.key_size,
            self.value_size,
            self.entries,
            self.batch,
            self.depth,
            self.threads,
            self.keys
        )
    }

    fn new(group: &Group, runs: &[&Samples], yardsticks: &[Option<&Samples>]) -> Self {
        let workload = &group.workload;
        let reason = runs.iter().find_map(|samples| samples.unavailable.clone());
        let there = reason.is_none();
        let blocks: Vec<f64> = runs.iter().map(|samples| median(&samples.blocks)).collect();
        let ns = there.then(|| median(&blocks));
        let mut calls: Option<Histogram<u64>> = None;
        for samples in runs.iter().filter(|_| there) {
            match &mut calls {
                None => calls = Some(samples.calls.clone()),
                // Histograms of the same digits that grow by themselves always add up.
                Some(calls) => drop(calls.add(&samples.calls)),
            }
        }
        let quantile = |q| calls.as_ref().map(|calls| calls.value_at_quantile(q));
        let relative = runs.iter().zip(yardsticks).filter(|_| there);
        Self {
            group: group.label(),
            backend: runs[0].back_end,
            map_type: workload.map_type.name().to_owned(),
            op: workload.op.name().to_owned(),
            key_size: workload.key_size,
            value_size: workload.value_size,
            entries: workload.entries,
            batch: workload.batch,
            depth: workload.depth,
            threads: workload.threads,
            keys: match workload.keys {
                crate::workload::Draw::Uniform => "uniform".to_owned(),
                crate::workload::Draw::Zipf => "zipf".to_owned(),
            },
            ns_per_op: ns,
            p50_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            ops_per_s: ns.map(|ns| 1e9 / ns),
            modelled_ns: None,
            relative: relative
                .filter_map(|(samples, to)| Some(samples.ratio((*to)?)))
                .collect(),
            answers: runs[0]
                .answers
                .iter()
                .map(|(errno, count)| (answer(*errno), *count))
                .collect(),
            reason: reason.map(|why| why.to_string()),
        }
    }
}

impl Document {
    /// Of repetitions of the same groups.
    pub(crate) fn new(
        config: &Config,
        machine: Machine,
        repetitions: &[Vec<(Group, Vec<Samples>)>],
        clock: Duration,
        took: Duration,
    ) -> Self {
        let mut rows = Vec::new();
        let groups = repetitions.first().map_or(0, Vec::len);
        for at in 0..groups {
            let (group, sides) = &repetitions[0][at];
            for side in 0..sides.len() {
                let runs: Vec<&Samples> = repetitions.iter().map(|r| &r[at].1[side]).collect();
                let yardsticks: Vec<Option<&Samples>> = repetitions
                    .iter()
                    .map(|r| r[at].1.iter().find(|samples| samples.unavailable.is_none()))
                    .collect();
                rows.push(Row::new(group, &runs, &yardsticks));
            }
        }
        let ratio_details: Vec<RatioDetail> = NAMED
            .iter()
            .map(|named| {
                let runs: Vec<_> = repetitions.iter().map(|r| named.of(r)).collect();
                let reason = runs.iter().find_map(|run| run.as_ref().err().cloned());
                let there: Vec<_> = runs.iter().flatten().filter(|_| reason.is_none()).collect();
                let values: Vec<f64> = there.iter().map(|ratio| ratio.value).collect();
                let value = (!values.is_empty()).then(|| median(&values));
                let of = |at: usize| {
                    let ns: Vec<f64> = there.iter().map(|ratio| ratio.ns[at]).collect();
                    median(&ns)
                };
                RatioDetail {
                    name: named.name.to_owned(),
                    meaning: named.meaning.to_owned(),
                    bar: named.bar,
                    holds: value.and_then(|value| named.bar.holds(value)),
                    value,
                    range: value.map(|_| {
                        [
                            values.iter().copied().fold(f64::INFINITY, f64::min),
                            values.iter().copied().fold(0.0, f64::max),
                        ]
                    }),
                    ns: value.map(|_| [of(0), of(1)]),
                    reason,
                }
            })
            .collect();
        let mut document = Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine,
            blocks: config.amount.blocks,
            repetitions: config.repetitions,
            calls: config.amount.calls,
            seed: config.seed,
            clock_ns: clock.as_nanos() as u64,
            seconds: took.as_secs_f64(),
            rows,
            ratios: ratio_details
                .iter()
                .map(|ratio| (ratio.name.clone(), ratio.value))
                .collect(),
            ratio_details,
            skipped: Vec::new(),
            verdict: Vec::new(),
        };
        document.verdict = crate::verdict::sentences(&document);
        document
    }

    /// The rows of a group that have figures.
    pub fn rows_of<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows
            .iter()
            .filter(move |row| row.group == group && row.ns_per_op.is_some())
    }

    /// What a side of a group takes for each element.
    pub fn ns(&self, group: &str, back_end: BackEnd) -> Option<f64> {
        self.rows_of(group)
            .find(|row| row.backend == back_end)
            .and_then(|row| row.ns_per_op)
    }
}
