//! A sweep for the terminal.

use crate::report::{Bound, Document, Point, PointResult};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use std::fmt::Write;

/// Columns of a table, where the terminal does not say.
const WIDTH: u16 = 118;
/// Rows after which a table ends; the JSON has all.
const ROWS_MAX: usize = 200;
/// Sentences of refusal that are printed.
const REASONS_MAX: usize = 8;

/// A time in picoseconds, for people: three digits at least.
pub fn time(ps: u64) -> String {
    let (unit, name) = match ps {
        0..1_000_000 => (1_000, "ns"),
        1_000_000..1_000_000_000 => (1_000_000, "µs"),
        1_000_000_000..1_000_000_000_000 => (1_000_000_000, "ms"),
        _ => (1_000_000_000_000, "s"),
    };
    let digits = match ps / unit {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    format!("{:.digits$} {name}", ps as f64 / unit as f64)
}

/// Millions a second.
fn millions(per_second: u64) -> String {
    format!("{:.3}", per_second as f64 / 1e6)
}

/// A share in percent.
fn percent(ppm: u32) -> String {
    format!("{:.1} %", f64::from(ppm) / 1e4)
}

/// Bytes, for people.
fn bytes(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

fn bound(result: &PointResult) -> String {
    let of = match result.bound {
        Bound::Resource => "",
        Bound::Depth => " (depth)",
        Bound::Load => " (load)",
    };
    format!(
        "{} {}{of}",
        result.bottleneck.name,
        percent(result.bottleneck.busy_ppm)
    )
}

fn row(point: &Point, commands: bool, packets: bool, batch: bool) -> Vec<String> {
    let mut cells = point.at.clone();
    let missing = || "–".to_owned();
    let Some(result) = &point.result else {
        let columns = usize::from(commands) * (3 + usize::from(batch)) + usize::from(packets) * 3;
        cells.extend((0..columns).map(|_| missing()));
        cells.push("refused, see below".into());
        return cells;
    };
    if commands {
        cells.push(millions(result.commands_per_s));
        if batch {
            cells.push(millions(result.elements_per_s));
        }
        let latency = result.latency.as_ref();
        cells.push(latency.map_or_else(missing, |l| time(l.p50_ps)));
        cells.push(latency.map_or_else(missing, |l| time(l.p99_ps)));
    }
    if packets {
        let of = result.packets.as_ref();
        cells.push(of.map_or_else(missing, |p| millions(p.done_per_s)));
        cells.push(of.map_or_else(missing, |p| percent(p.dropped_ppm)));
        let latency = of.and_then(|p| p.latency.as_ref());
        cells.push(latency.map_or_else(missing, |l| time(l.p99_ps)));
    }
    cells.push(bound(result));
    cells
}

/// The document as a table, with what it is of above and what was refused below.
pub fn text(document: &Document) -> String {
    let workload = &document.workload;
    let mut out = format!(
        "{} on {}, modelled; seed {}\n",
        workload.name, document.timing.name, document.seed
    );
    if let Some((part, of)) = document.shard {
        let _ = writeln!(
            out,
            "part {part} of {of}: `offmap model merge` puts the parts together"
        );
    }
    let results = || {
        document
            .points
            .iter()
            .filter_map(|point| point.result.as_ref())
    };
    if let (Some(result), true) = (results().next(), document.points.len() == 1) {
        let counted = match result.halvings {
            0 => "counted as a whole",
            _ => "inferred from a smaller one",
        };
        let _ = writeln!(
            out,
            "table on each NIC: index {} in {}, entries {} in {}; accesses {counted}",
            bytes(result.index_bytes),
            result.index_tier,
            bytes(result.entries_bytes),
            result.entries_tier,
        );
    }
    let commands = !workload.call.is_empty();
    let packets = workload.packets.is_some();
    let batch = workload.host.batch > 1 || document.axes.iter().any(|axis| axis.name == "batch");
    let mut header: Vec<&str> = document
        .axes
        .iter()
        .map(|axis| axis.name.as_str())
        .collect();
    if commands {
        header.push("M commands/s");
        if batch {
            header.push("M elements/s");
        }
        header.extend(["p50", "p99"]);
    }
    if packets {
        header.extend(["M packets/s", "dropped", "packet p99"]);
    }
    header.push("bottleneck");
    let last = header.len() - 1;
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    for n in 0..last {
        if let Some(column) = table.column_mut(n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for point in document.points.iter().take(ROWS_MAX) {
        table.add_row(row(point, commands, packets, batch));
    }
    for line in table.to_string().lines() {
        out += line.trim_end();
        out.push('\n');
    }
    if document.points.len() > ROWS_MAX {
        let _ = writeln!(
            out,
            "… and {} points more; --json has them",
            document.points.len() - ROWS_MAX
        );
    }
    let marked = |bound| results().any(|result| result.bound == bound);
    if marked(Bound::Depth) {
        out += "(depth): nothing is saturated; with more commands in flight there would be more\n";
    }
    if marked(Bound::Load) {
        out += "(load): nothing is saturated; what comes is served\n";
    }
    let refused: Vec<&Point> = document
        .points
        .iter()
        .filter(|point| point.refused.is_some())
        .collect();
    for point in refused.iter().take(REASONS_MAX) {
        let pairs = document.axes.iter().zip(&point.at);
        let pairs: Vec<String> = pairs.map(|(a, v)| format!("{}={v}", a.name)).collect();
        let name = match pairs.is_empty() {
            true => workload.name.clone(),
            false => pairs.join(" "),
        };
        let reason = point.refused.as_deref().unwrap_or_default();
        let _ = writeln!(out, "refused: {name}: {reason}");
    }
    if refused.len() > REASONS_MAX {
        let more = refused.len() - REASONS_MAX;
        let _ = writeln!(out, "… and {more} refused points more; --json has them");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ps, text) in [
            (0, "0.00 ns"),
            (1_500, "1.50 ns"),
            (999_499, "999 ns"),
            (1_234_567, "1.23 µs"),
            (45_600_000, "45.6 µs"),
            (7_890_000_000, "7.89 ms"),
            (12_000_000_000_000, "12.0 s"),
        ] {
            assert_eq!(time(ps), text);
        }
    }
}
