//! `offmap sim`: the deterministic simulation, seed after seed.

use crate::args::{FaultPlans, SimArgs};
use offmap_emulator::faults::{FaultFileError, FaultPlan};
use offmap_sim::{Config, Faults, Report, campaign};
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
    /// Of those, the ones whose answer was held against a map's specification.
    pub verified: u64,
    /// The others: of unknown outcome, aborted, cut off or excused by a fault, or in an undecided history.
    pub excused: u64,
    /// Scheduler steps.
    pub steps: u64,
    /// Seeds whose device had a fault plan.
    pub faulty_seeds: u64,
    /// Faults that devices injected, by behaviour and site.
    pub faults_injected: BTreeMap<String, u64>,
    /// Events that happened to hosts, queues and the device, by kind.
    pub events: BTreeMap<&'static str, u64>,
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
    /// The check that failed, by its name in docs/simulation.md.
    pub check: &'static str,
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

/// Why there was no campaign.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The fault plan's file is not usable.
    #[error(transparent)]
    Faults(#[from] FaultFileError),
    /// The part of the campaign has no seed.
    #[error(
        "part {part} of {of} has none of the {seeds} seeds, and would try nothing: there can be as \
         many parts as seeds"
    )]
    EmptyShard {
        /// The part, from 1.
        part: u64,
        /// Of how many.
        of: u64,
        /// Seeds of the whole campaign.
        seeds: u64,
    },
}

/// Runs the campaign; `progress` is told the seeds done so far.
///
/// # Errors
///
/// [`SimError`].
pub fn simulate(args: &SimArgs, progress: &mut dyn FnMut(u64)) -> Result<Document, SimError> {
    let (from, seeds) = match args.seed {
        Some(seed) => (seed, 1),
        None => (args.from, args.seeds),
    };
    let (part, of) = args.shard;
    if part > seeds {
        return Err(SimError::EmptyShard { part, of, seeds });
    }
    let faults = match (&args.faults, args.fault_plans) {
        (Some(path), _) => Faults::Plan {
            plan: FaultPlan::load(path)?,
            file: path.display().to_string(),
        },
        (None, FaultPlans::None) => Faults::None,
        (None, FaultPlans::Half) => Faults::Half,
        (None, FaultPlans::All) => Faults::All,
    };
    let config = Config {
        from,
        seeds,
        shard: (part - 1, of),
        time: args.seconds.map(Duration::from_secs),
        faults,
        mutation: None,
        stop_at_first: false,
        shrink_time: SHRINK_TIME,
    };
    let started = Instant::now();
    let report = campaign(&config, progress);
    Ok(Document::new(report, from, args.shard, started.elapsed()))
}

impl Document {
    fn new(report: Report, from: u64, shard: (u64, u64), took: Duration) -> Self {
        let violations: Vec<FailedSeed> = report
            .violations
            .into_iter()
            .map(|v| FailedSeed {
                seed: v.seed,
                replay: v.replay(),
                check: v.check.name(),
                what: v.what,
                actions: v.actions.0,
                shrunk_to: v.actions.1,
                trace: v.trace,
            })
            .collect();
        Self {
            seeds: report.seeds,
            from,
            shard: [shard.0, shard.1],
            operations: report.operations,
            verified: report.verified,
            excused: report.operations.saturating_sub(report.verified),
            steps: report.steps,
            faulty_seeds: report.faulty_seeds,
            faults_injected: report.faults_injected,
            events: report.events,
            histories: report.maps,
            searched: report.searched,
            undecided: report.undecided,
            digest: format!("{:016x}", report.digest),
            seconds: took.as_secs_f64(),
            replay: violations.first().map(|v| v.replay.clone()),
            violations,
        }
    }

    /// Whether something was checked and nothing was violated.
    pub fn holds(&self) -> bool {
        self.violations.is_empty() && self.histories > 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for failed in &self.violations {
            for line in &failed.trace {
                let _ = writeln!(text, "  {line}");
            }
            let _ = writeln!(
                text,
                "seed {}, {}: {}",
                failed.seed, failed.check, failed.what
            );
            if !failed.trace.is_empty() {
                let _ = writeln!(
                    text,
                    "  (above: {} of its {} actions, which fail as well)",
                    failed.shrunk_to, failed.actions
                );
            }
            let _ = writeln!(text, "  replay: {}", failed.replay);
        }
        let list = |counts: Vec<String>| match counts.len() {
            0 => "none".to_owned(),
            _ => counts.join(", "),
        };
        let events = self.events.iter().map(|(what, n)| format!("{what} {n}"));
        let _ = writeln!(text, "events: {}", list(events.collect()));
        let faults = self.faults_injected.iter();
        let faults = faults.map(|(what, n)| format!("{what} {n}"));
        let _ = writeln!(
            text,
            "faults, in {} seeds: {}",
            self.faulty_seeds,
            list(faults.collect())
        );
        let _ = writeln!(
            text,
            "{} seeds, {} operations ({} verified, {} excused) and {} steps in {:.1} s; {} map \
             histories, {} of them searched, {} undecided; digest {}",
            self.seeds,
            self.operations,
            self.verified,
            self.excused,
            self.steps,
            self.seconds,
            self.histories,
            self.searched,
            self.undecided,
            self.digest
        );
        let _ = match self.violations.len() {
            0 if self.histories == 0 => writeln!(
                text,
                "nothing was checked: with these faults no operation on a map came to an answer"
            ),
            0 => writeln!(text, "no violation"),
            count => writeln!(text, "{count} seeds failed"),
        };
        text
    }
}
