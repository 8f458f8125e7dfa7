//! `offmap diff`: our bpf(2) against the running kernel's.

use crate::args::DiffArgs;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use offmap_differential::explain::TABLE;
use offmap_differential::{Config, Report, RunError, SUCCESS_PERCENT, run};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Columns of the text.
const WIDTH: u16 = 100;

/// The document that `offmap diff --json` prints.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Calls made on each side.
    pub calls: u64,
    /// Calls answered differently that nothing accounts for.
    pub differences: u64,
    /// Calls answered differently that the table of explanations accounts for.
    pub explained: u64,
    /// Seed of the campaign.
    pub seed: u64,
    /// Part of the campaign: from 0, and of how many.
    pub shard: [u64; 2],
    /// Sequences run.
    pub sequences: u64,
    /// Of the calls, those that the kernel answered with success.
    pub succeeded: u64,
    /// `release` of the running kernel.
    pub kernel: String,
    /// The first differences.
    pub first: Vec<FirstDifference>,
    /// Explained differences by name: count, kernel source and reason.
    pub explanations: BTreeMap<&'static str, ExplainedCount>,
    /// Command, then map type, then result as the kernel answered: calls.
    pub matrix: BTreeMap<&'static str, BTreeMap<String, BTreeMap<String, u64>>>,
}

/// One difference.
#[derive(Debug, Serialize)]
pub struct FirstDifference {
    /// Runs this sequence again with `--sequence`.
    pub sequence: u64,
    /// Which call of it.
    pub call: u64,
    /// The call, and both answers.
    pub what: String,
}

/// How often an explanation was needed.
#[derive(Debug, Serialize)]
pub struct ExplainedCount {
    /// Calls.
    pub calls: u64,
    /// Kernel file and version.
    pub source: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// Runs the comparison; `progress` is told the calls made so far.
///
/// # Errors
///
/// [`RunError`] when the kernel takes no maps of this process.
pub fn compare(args: &DiffArgs, progress: &mut dyn FnMut(u64)) -> Result<Document, RunError> {
    let config = Config {
        calls: args.calls,
        time: args.seconds.map(Duration::from_secs),
        seed: args.seed,
        shard: (args.shard.0 - 1, args.shard.1),
        sequence: args.sequence,
        possible_cpus: None,
    };
    let report = run(&config, progress)?;
    Ok(Document::new(report, args))
}

impl Document {
    fn new(report: Report, args: &DiffArgs) -> Self {
        let mut matrix: BTreeMap<_, BTreeMap<_, BTreeMap<_, _>>> = BTreeMap::new();
        for ((command, map_type, result), count) in &report.matrix {
            matrix
                .entry(*command)
                .or_default()
                .entry(map_type.clone())
                .or_default()
                .insert(result.clone(), *count);
        }
        let explanations = TABLE
            .iter()
            .filter_map(|entry| {
                let calls = *report.explained.get(entry.name)?;
                let (source, reason) = (entry.source, entry.reason);
                let count = ExplainedCount {
                    calls,
                    source,
                    reason,
                };
                Some((entry.name, count))
            })
            .collect();
        Self {
            calls: report.calls,
            differences: report.differences,
            explained: report.explained_calls(),
            seed: report.seed,
            shard: [args.shard.0, args.shard.1],
            sequences: report.sequences,
            succeeded: report.succeeded,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned()),
            first: report
                .first
                .into_iter()
                .map(|difference| FirstDifference {
                    sequence: difference.sequence,
                    call: difference.call,
                    what: difference.what,
                })
                .collect(),
            explanations,
            matrix,
        }
    }

    /// For people.
    pub fn text(&self, with_matrix: bool) -> String {
        let mut text = String::new();
        if with_matrix {
            let _ = writeln!(text, "{}\n", self.matrix_table());
        }
        for difference in &self.first {
            let _ = writeln!(
                text,
                "sequence {}, call {}: {}",
                difference.sequence, difference.call, difference.what
            );
        }
        for (name, count) in &self.explanations {
            let _ = writeln!(
                text,
                "explained, {} calls ({name}): {} [{}]",
                count.calls, count.reason, count.source
            );
        }
        let percent = 100 * self.succeeded / self.calls.max(1);
        let _ = writeln!(
            text,
            "{} bpf(2) calls to Linux {} and to offmap in {} sequences, {percent} % of them \
             successful; seed {}, shard {}/{}",
            self.calls, self.kernel, self.sequences, self.seed, self.shard[0], self.shard[1]
        );
        if percent < SUCCESS_PERCENT && self.sequences > 1 {
            let _ = writeln!(
                text,
                "warning: fewer than {SUCCESS_PERCENT} % of the calls succeeded, too few for the \
                 comparison to say much"
            );
        }
        let _ = match self.differences {
            0 => writeln!(
                text,
                "no difference but the {} that are explained",
                self.explained
            ),
            count => writeln!(
                text,
                "{count} calls were answered differently; replay one with --seed {} --sequence N",
                self.seed
            ),
        };
        text
    }

    fn matrix_table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header(["command", "map type", "results, as the kernel answered"]);
        for (command, types) in &self.matrix {
            for (map_type, results) in types {
                let mut cells: Vec<_> = results.iter().collect();
                cells.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
                let cells: Vec<String> = cells
                    .into_iter()
                    .map(|(result, count)| format!("{result} {count}"))
                    .collect();
                table.add_row([*command, map_type, &cells.join("  ")]);
            }
        }
        table
    }
}
