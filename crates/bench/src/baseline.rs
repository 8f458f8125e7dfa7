//! A run against an earlier one, with noise taken into account.
//!
//! Times are not compared, for the machine may be in another mode today, but each side's ratio to the first
//! side of its group, which ran in turns with it. Two runs of the same build differ in that, too: by where memory
//! came to lie, and by who else is on the machine. A family is all rows of one back end: its change
//! is the median of its rows' changes, and it raises an alarm when that is more than [`LEAST`], and
//! more than [`SIGMAS`] of its standard error. What one operation alone lost is a family of its own, of a
//! back end and an operation, which has few rows and finds only more than some twenty percent.
//!
//! Two processors exchange cache lines in one of several modes, which differ by a factor of up to five and last for
//! minutes. Where the two runs were in different ones nothing is said of devices on another processor.

use crate::blocks::median;
use crate::report::{Document, Row};
use crate::sides::BackEnd;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Changes below this are not told, whatever the noise.
pub const LEAST: f64 = 0.05;
/// Standard errors that a change has to exceed.
pub const SIGMAS: f64 = 3.0;
/// Noise of a row that is taken for granted between two runs, as a fraction.
const BETWEEN_RUNS: f64 = 0.02;

/// By how much the time of a cache line may differ, as a factor, in runs of the same mode.
const SAME_MODE: f64 = 1.18;
/// The scale of a normal distribution, from the median of the distances to its median.
const FROM_MEDIAN: f64 = 1.4826;
/// Variance of the median of many, as a multiple of that of their mean.
const OF_MEDIAN: f64 = 1.57;

/// What became of the rows of a family.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Change {
    /// A back end, or a back end and an operation.
    pub family: String,
    /// Rows that both runs have.
    pub rows: usize,
    /// Median change: 0.1 is ten percent slower than before, against the same yardsticks.
    pub change: f64,
    /// Its standard error.
    pub error: f64,
    /// Whether it is more than noise.
    pub alarm: bool,
}

/// A run against an earlier one.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// Each family's change.
    pub changes: Vec<Change>,
    /// Rows that only one of the runs has.
    pub unmatched: usize,
    /// Why figures of the two may not be comparable.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// The families that changed by more than noise.
    pub fn alarms(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.alarm)
    }

    /// In sentences.
    pub fn text(&self) -> String {
        let mut out = String::from("Against the earlier run:\n");
        for warning in &self.warnings {
            let _ = writeln!(out, "  beware: {warning}");
        }
        for change in &self.changes {
            let percent = change.change * 100.0;
            let word = match (change.alarm, percent > 0.0) {
                (true, true) => "SLOWER",
                (true, false) => "faster",
                (false, _) => "no change that is more than noise",
            };
            let _ = writeln!(
                out,
                "  {:<28} {percent:>+7.1} % ± {:.1}, {:>2} rows: {word}",
                change.family,
                change.error * 100.0,
                change.rows
            );
        }
        if self.unmatched > 0 {
            let _ = writeln!(
                out,
                "  {} rows are in one of the two runs only",
                self.unmatched
            );
        }
        out
    }
}

fn variance(of: &[f64]) -> f64 {
    let n = of.len() as f64;
    if of.len() < 2 {
        return 0.0;
    }
    let mean = of.iter().sum::<f64>() / n;
    of.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)
}

/// The logarithm of a row's change, and the variance of that.
fn change(old: &Row, new: &Row) -> Option<(f64, f64)> {
    if old.relative.is_empty() || new.relative.is_empty() {
        return None;
    }
    let logs = |row: &Row| row.relative.iter().map(|r| r.ln()).collect::<Vec<_>>();
    let (a, b) = (logs(old), logs(new));
    // The median of a few has about half again the variance of their mean.
    let of = |logs: &[f64]| 1.5 * variance(logs) / logs.len() as f64;
    let noise = of(&a) + of(&b) + 2.0 * BETWEEN_RUNS * BETWEEN_RUNS;
    Some((median(&b) - median(&a), noise))
}

fn family(name: String, rows: &[(f64, f64)]) -> Change {
    let changes: Vec<f64> = rows.iter().map(|(change, _)| *change).collect();
    let log = median(&changes);
    // What the rows say of themselves, and how much they differ from each other, whichever is more; by medians,
    // because a row in a hundred is off by a factor.
    let within = median(&rows.iter().map(|(_, noise)| *noise).collect::<Vec<_>>());
    let off: Vec<f64> = changes.iter().map(|change| (change - log).abs()).collect();
    let among = (FROM_MEDIAN * median(&off)).powi(2);
    let error = (within.max(among) * OF_MEDIAN / rows.len() as f64).sqrt();
    let change = log.exp() - 1.0;
    Change {
        family: name,
        rows: rows.len(),
        change,
        error,
        alarm: change.abs() > LEAST && log.abs() > SIGMAS * error,
    }
}

/// Whether two runs' processors exchanged cache lines at the same pace; `None` where one did not measure it.
fn same_mode(old: &Document, new: &Document) -> Option<bool> {
    let ns = |document: &Document| document.ns("lookup_cores", BackEnd::CoreRtt);
    let ratio = ns(new)? / ns(old)?;
    Some((1.0 / SAME_MODE..SAME_MODE).contains(&ratio))
}

/// Holds `new` against `old`.
pub fn compare(old: &Document, new: &Document) -> Comparison {
    let earlier: BTreeMap<String, &Row> = old.rows.iter().map(|row| (row.key(), row)).collect();
    let mut families: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let other_mode = same_mode(old, new) == Some(false);
    let mut matched = 0;
    for row in &new.rows {
        let Some(before) = earlier.get(&row.key()) else {
            continue;
        };
        matched += 1;
        let passed_over = match row.backend {
            // No code of ours.
            BackEnd::CoreRtt | BackEnd::BareRing | BackEnd::Hashbrown | BackEnd::Kernel => true,
            BackEnd::Threaded | BackEnd::VfioUser | BackEnd::Device => other_mode,
            _ => false,
        };
        let is_yardstick = row.relative.iter().all(|r| *r == 1.0);
        if let Some(change) = change(before, row).filter(|_| !is_yardstick && !passed_over) {
            let name = row.backend.name();
            families.entry(name.to_owned()).or_default().push(change);
            let with_op = format!("{name} {}", row.op);
            families.entry(with_op).or_default().push(change);
        }
    }
    let mut warnings = Vec::new();
    if old.machine != new.machine {
        warnings.push(format!(
            "the earlier run was on another machine: {}",
            old.machine.text()
        ));
    }
    if other_mode {
        warnings.push(
            "a cache line between two processors took another time than in the earlier run, so that nothing is \
             said of devices on another processor"
                .to_owned(),
        );
    }
    if old.version != new.version {
        warnings.push(format!("the earlier run was of offmap {}", old.version));
    }
    Comparison {
        changes: families
            .into_iter()
            .map(|(name, rows)| family(name, &rows))
            .collect(),
        unmatched: old.rows.len() + new.rows.len() - 2 * matched,
        warnings,
    }
}
