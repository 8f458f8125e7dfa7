//! `offmap sim`: the deterministic simulation, seed after seed.

use crate::args::SimArgs;
use offmap_sim::{Config, Report, campaign};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Time for making a failing seed small, each.
const SHRINK_TIME: Duration = Duration::from_secs(20);

/// The document that `offmap sim --json` prints.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Seeds run.
    pub seeds: u64,
    /// First seed of the campaign.
    pub from: u64,
    /// Part of the campaign: from 1, and of how many.
    pub shard: [u64; 2],
    /// Operations on maps; each element of a batch counts.
    pub operations: u64,
    /// Scheduler steps.
    pub steps: u64,
    /// Events that happened to hosts, queues and the device, by kind.
    pub faults_injected: BTreeMap<&'static str, u64>,
    /// Map histories checked.
    pub histories: u64,
    /// Of those, the ones for which an order had to be searched.
    pub searched: u64,
    /// Of those, the ones that the search gave up: neither right nor wrong.
    pub undecided: u64,
    /// Follows from everything that happened: the same for the same seeds.
    pub digest: String,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Seeds that failed.
    pub violations: Vec<FailedSeed>,
    /// The command that runs the first of them again.
    pub replay: Option<String>,
}

/// A seed that failed.
#[derive(Debug, Serialize)]
pub struct FailedSeed {
    /// The seed.
    pub seed: u64,
    /// What was violated.
    pub what: String,
    /// The command that runs it again.
    pub replay: String,
    /// Actions of the seed.
    pub actions: usize,
    /// Actions of its least part that still fails.
    pub shrunk_to: usize,
    /// What that part did, line by line; empty beyond the first few failures.
    pub trace: Vec<String>,
}

/// Runs the campaign; `progress` is told the seeds done so far.
pub fn simulate(args: &SimArgs, progress: &mut dyn FnMut(u64)) -> Document {
    let config = Config {
        from: args.from,
        seeds: args.seeds,
        shard: (args.shard.0 - 1, args.shard.1),
        time: args.seconds.map(Duration::from_secs),
        mutation: None,
        stop_at_first: false,
        shrink_time: SHRINK_TIME,
    };
    let started = Instant::now();
    let report = campaign(&config, progress);
    Document::new(report, args, started.elapsed())
}

impl Document {
    fn new(report: Report, args: &SimArgs, took: Duration) -> Self {
        let violations: Vec<FailedSeed> = report
            .violations
            .into_iter()
            .map(|v| FailedSeed {
                seed: v.seed,
                replay: v.replay(),
                what: v.what,
                actions: v.actions.0,
                shrunk_to: v.actions.1,
                trace: v.trace,
            })
            .collect();
        Self {
            seeds: report.seeds,
            from: args.from,
            shard: [args.shard.0, args.shard.1],
            operations: report.operations,
            steps: report.steps,
            faults_injected: report.events,
            histories: report.maps,
            searched: report.searched,
            undecided: report.undecided,
            digest: format!("{:016x}", report.digest),
            seconds: took.as_secs_f64(),
            replay: violations.first().map(|v| v.replay.clone()),
            violations,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for failed in &self.violations {
            for line in &failed.trace {
                let _ = writeln!(text, "  {line}");
            }
            let _ = writeln!(text, "seed {}: {}", failed.seed, failed.what);
            if !failed.trace.is_empty() {
                let _ = writeln!(
                    text,
                    "  (above: {} of its {} actions, which fail as well)",
                    failed.shrunk_to, failed.actions
                );
            }
            let _ = writeln!(text, "  replay: {}", failed.replay);
        }
        let events: Vec<String> = self
            .faults_injected
            .iter()
            .map(|(event, count)| format!("{event} {count}"))
            .collect();
        let _ = writeln!(text, "events: {}", events.join(", "));
        let _ = writeln!(
            text,
            "{} seeds, {} operations and {} steps in {:.1} s; {} map histories, {} of them \
             searched, {} undecided; digest {}",
            self.seeds,
            self.operations,
            self.steps,
            self.seconds,
            self.histories,
            self.searched,
            self.undecided,
            self.digest
        );
        let _ = match self.violations.len() {
            0 => writeln!(text, "no violation"),
            count => writeln!(text, "{count} seeds failed"),
        };
        text
    }
}
