//! What the queues of a NIC did, as a table for people and as OpenMetrics text.

use crate::report::WIDTH;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use offmap_driver::{DriverConfig, OpStats, Timing};
use offmap_offload::NicStats;
use offmap_offload::stats::snake_case;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

/// Of so many commands one is timed: the demo's own timings are to stay what they were, and
/// prime, so that it is not always the same operation of the workload.
const ONE_IN: NonZeroU32 = NonZeroU32::new(61).expect("not zero");
/// Statuses that a cell lists by name; the others are summed up.
const STATUSES_SHOWN: usize = 3;

/// The driver's settings for a run whose statistics are wanted.
pub(crate) fn timed(config: DriverConfig) -> DriverConfig {
    DriverConfig {
        timing: Timing::OneIn(ONE_IN),
        ..config
    }
}

fn time(time: Option<Duration>) -> String {
    match time {
        None => "-".to_owned(),
        Some(Duration::MAX) => "> 69 s".to_owned(),
        Some(time) if time < Duration::from_micros(10) => format!("{} ns", time.as_nanos()),
        Some(time) if time < Duration::from_millis(10) => format!("{} µs", time.as_micros()),
        Some(time) => format!("{} ms", time.as_millis()),
    }
}

/// How the commands that did not succeed ended.
fn others(op: &OpStats) -> String {
    let mut ends: Vec<(String, u64)> = op
        .statuses
        .iter()
        .filter(|(status, _)| !status.is_success())
        .map(|(status, count)| (snake_case(status.name().unwrap_or("Other")), *count))
        .collect();
    ends.push(("unknown status".to_owned(), op.other_statuses));
    ends.push(("unanswered".to_owned(), op.unanswered));
    ends.push(("in flight".to_owned(), op.in_flight()));
    ends.retain(|(_, count)| *count > 0);
    ends.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest: u64 = ends.iter().skip(STATUSES_SHOWN).map(|(_, n)| n).sum();
    ends.truncate(STATUSES_SHOWN);
    if rest > 0 {
        ends.push(("otherwise".to_owned(), rest));
    }
    let ends = ends.iter().map(|(end, count)| format!("{count} {end}"));
    ends.collect::<Vec<_>>().join(", ")
}

/// A table of operations, a line for each queue, and one for the NIC.
pub fn text(stats: &NicStats) -> String {
    let mut text = String::new();
    let Some(total) = stats.driver.total() else {
        return "no queue pair was made\n".to_owned();
    };
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header([
            "command",
            "sent",
            "done",
            "retried",
            "p50",
            "p99",
            "ended otherwise",
        ]);
    for op in &total.operations {
        let done = op.statuses.iter().find(|(status, _)| status.is_success());
        table.add_row([
            snake_case(op.opcode.name().unwrap_or("Other")),
            op.submitted.to_string(),
            done.map_or(0, |(_, count)| *count).to_string(),
            op.retries.to_string(),
            time(op.times.quantile(0.5)),
            time(op.times.quantile(0.99)),
            others(op),
        ]);
    }
    for column in 1..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "{table}");
    let live = stats.driver.queues.iter().filter(|queue| queue.live);
    let _ = write!(text, "queue pairs: {} in use", live.count());
    let _ = write!(text, ", {} made", total.pairs);
    let recovery = &stats.recovery;
    let events = [
        ("function resets", stats.driver.resets),
        ("resets that failed", stats.driver.failed_resets),
        ("maps restored", recovery.maps_restored),
        ("retries", recovery.retries),
        ("writes of unknown outcome", recovery.unknown),
        ("map frees that failed", stats.failed_frees),
    ];
    happened(&mut text, events.into_iter());
    for queue in &stats.driver.queues {
        let sum = |of: fn(&OpStats) -> u64| queue.operations.iter().map(of).sum::<u64>();
        let _ = write!(
            text,
            "queue {}: queue pairs {}; sent {}; ended {}",
            queue.queue.0,
            queue.pairs,
            sum(|op| op.submitted),
            sum(OpStats::completed),
        );
        let of_commands = [
            ("unanswered", sum(|op| op.unanswered)),
            ("retries", sum(|op| op.retries)),
        ];
        happened(
            &mut text,
            of_commands.into_iter().chain(queue.events.named()),
        );
    }
    text
}

/// Ends a line with those events that happened at all.
fn happened(text: &mut String, events: impl Iterator<Item = (&'static str, u64)>) {
    for (event, count) in events.filter(|(_, count)| *count > 0) {
        let _ = write!(text, "; {} {count}", event.replace('_', " "));
    }
    text.push('\n');
}

/// Writes the counts to `path` as OpenMetrics text; an error is one sentence.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_metrics(path: &Path, nic: &str, stats: &NicStats) -> Result<(), String> {
    let text = offmap_offload::stats::openmetrics([(nic, stats)]);
    std::fs::write(path, text).map_err(|error| {
        format!(
            "the metrics cannot be written to {}: {error}",
            path.display()
        )
    })
}
