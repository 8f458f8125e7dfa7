//! Campaigns: many seeds, their sum, and what is printed of one that failed.

use crate::check::{Check, Fault};
use crate::faults::Faults;
use crate::memory::Pool;
use crate::mutation::Mutation;
use crate::plan::Plan;
use crate::run::{self, Outcome};
use crate::shrink::shrink;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Violations of which more than the seed is kept.
const FULL_VIOLATIONS: usize = 3;

/// What a campaign is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// First seed.
    pub from: u64,
    /// Number of seeds.
    pub seeds: u64,
    /// Part of the campaign, from 0, and of how many: the seeds are dealt to the parts in turn.
    pub shard: (u64, u64),
    /// Ends after this time, at the end of a seed.
    pub time: Option<Duration>,
    /// Which seeds have faults, and which.
    pub faults: Faults,
    /// A bug that every run is to have.
    pub mutation: Option<Mutation>,
    /// Ends with the first violation.
    pub stop_at_first: bool,
    /// Time for shrinking a failure; zero: none is shrunk.
    pub shrink_time: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            from: 1,
            seeds: 1,
            shard: (0, 1),
            time: None,
            faults: Faults::default(),
            mutation: None,
            stop_at_first: false,
            shrink_time: Duration::from_secs(10),
        }
    }
}

/// A seed that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// What the command that replays it needs besides the seed.
    pub options: String,
    /// Which check failed.
    pub check: Check,
    /// What was violated.
    pub what: String,
    /// What the least part of the seed that still fails did; empty beyond the first few.
    pub trace: Vec<String>,
    /// Actions of the seed, and of its least part.
    pub actions: (usize, usize),
}

impl Violation {
    /// The command that runs the seed again.
    pub fn replay(&self) -> String {
        format!("offmap sim --seed {}{}", self.seed, self.options)
    }
}

/// What a campaign came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// Operations on maps; each element of a batch counts.
    pub operations: u64,
    /// Of those, the ones whose answer was held against a specification. The others are of unknown outcome,
    /// were aborted, belong to a history that is undecided or was never closed, or a fault excuses them.
    pub verified: u64,
    /// Scheduler steps.
    pub steps: u64,
    /// Events that happened, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Faults that the device injected, by behaviour and site.
    pub faults_injected: BTreeMap<String, u64>,
    /// Seeds whose device had a fault plan.
    pub faulty_seeds: u64,
    /// Maps whose history was checked.
    pub maps: u64,
    /// Of those, the ones that the order of completions did not explain, so that an order was
    /// searched.
    pub searched: u64,
    /// Of those, the ones that the search gave up.
    pub undecided: u64,
    /// How often a planted bug did something.
    pub mutated: u64,
    /// Follows from everything that happened.
    pub digest: u64,
    /// Seeds that failed.
    pub violations: Vec<Violation>,
}

/// Runs a campaign; `progress` is told the number of seeds done after each.
pub fn campaign(config: &Config, progress: &mut dyn FnMut(u64)) -> Report {
    let started = Instant::now();
    let mut report = Report::default();
    let mut pool = Pool::default();
    let (part, of) = (config.shard.0, config.shard.1.max(1));
    for index in 0..config.seeds {
        if index % of != part {
            continue;
        }
        if config.time.is_some_and(|time| started.elapsed() >= time) {
            break;
        }
        let seed = config.from.wrapping_add(index);
        let plan = Plan::of(seed, &config.faults);
        report.faulty_seeds += u64::from(plan.faults.is_some());
        let outcome = guarded(&plan, config.mutation, false, &mut pool);
        report.take(&outcome);
        if let Some(fault) = outcome.violation {
            report.violated(config, plan, fault, &mut pool);
            if config.stop_at_first {
                break;
            }
        }
        progress(report.seeds);
    }
    report
}

/// Runs a plan; a panic of the driver or the device is a violation.
pub(crate) fn guarded(
    plan: &Plan,
    mutation: Option<Mutation>,
    tracing: bool,
    pool: &mut Pool,
) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| run::run(plan, mutation, tracing, pool)));
    result.unwrap_or_else(|panic| Outcome {
        violation: Some(Fault::of_panic(&*panic)),
        ..Outcome::default()
    })
}

impl Report {
    fn take(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.operations += outcome.operations;
        self.verified += outcome.verified;
        self.steps += outcome.ticks;
        for (event, count) in &outcome.events {
            *self.events.entry(event).or_default() += count;
        }
        for (kind, count) in &outcome.injected {
            *self.faults_injected.entry(kind.clone()).or_default() += count;
        }
        self.maps += outcome.maps;
        self.searched += outcome.searched;
        self.undecided += outcome.undecided;
        self.mutated += outcome.mutated;
        self.digest = self.digest.rotate_left(9) ^ outcome.digest;
    }

    fn violated(&mut self, config: &Config, plan: Plan, fault: Fault, pool: &mut Pool) {
        let mut violation = Violation {
            seed: plan.seed,
            options: config.faults.options(),
            check: fault.check,
            what: fault.what,
            trace: Vec::new(),
            actions: (plan.actions.len(), plan.actions.len()),
        };
        if self.violations.len() < FULL_VIOLATIONS && !config.shrink_time.is_zero() {
            let least = shrink(plan, config.mutation, config.shrink_time, pool);
            violation.actions.1 = least.actions.len();
            let outcome = guarded(&least, config.mutation, true, pool);
            violation.trace = outcome.trace;
            if let Some(Fault { what, .. }) = outcome.violation {
                violation.trace.push(format!("violation: {what}"));
            }
        }
        self.violations.push(violation);
    }
}
