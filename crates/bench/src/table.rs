//! The document for the terminal.

use crate::ratios::Bar;
use crate::report::{Document, Row};
use crate::verdict::ns;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Columns of a table, where the terminal does not say.
const WIDTH: u16 = 118;

fn table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    for column in left..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn bar(bar: Bar) -> String {
    match bar {
        Bar::AtMost(bar) => format!("≤ {bar}"),
        Bar::AtLeast(bar) => format!("≥ {bar}"),
        Bar::None => "-".to_owned(),
    }
}

/// What a row's group does, beyond its name.
pub(crate) fn shape(row: &Row) -> String {
    let mut text = format!(
        "{} {}, {} B → {} B, {} entries",
        row.map_type,
        row.op,
        row.key_size,
        row.value_size,
        grouped(row.entries)
    );
    if row.batch > 1 {
        let _ = write!(text, ", batches of {}", row.batch);
    }
    if row.depth > 1 {
        let _ = write!(text, ", {} in flight", row.depth);
    }
    if row.threads > 1 {
        let _ = write!(text, ", {} threads", row.threads);
    }
    if row.keys != "uniform" {
        let _ = write!(text, ", {} keys", row.keys);
    }
    text
}

/// With a comma after each three digits.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Sequences on which back ends did not answer alike. An LRU map may: what it evicts is its own affair.
fn differing_answers(document: &Document) -> Vec<String> {
    let mut out = Vec::new();
    let groups: BTreeSet<&str> = document.rows.iter().map(|row| row.group.as_str()).collect();
    for group in groups {
        let rows: Vec<&Row> = document
            .rows_of(group)
            .filter(|row| !row.answers.is_empty() && row.map_type != "lru_hash")
            .collect();
        if let Some(other) = rows.iter().find(|row| row.answers != rows[0].answers) {
            out.push(format!(
                "DIFFERENT ANSWERS in {group}: {} {:?}, {} {:?}",
                rows[0].backend, rows[0].answers, other.backend, other.answers
            ));
        }
    }
    out
}

/// The whole document as text.
pub fn text(document: &Document) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", document.machine.text());
    let _ = writeln!(
        out,
        "{} repetitions of {} turns of at most 1 ms, {:.0} s; measured times only, this version has no timing model",
        document.repetitions, document.blocks, document.seconds
    );
    let mut last = String::new();
    let mut reasons = BTreeSet::new();
    for row in &document.rows {
        let shape = format!("{}: {}", row.group, shape(row));
        if shape != last {
            let _ = writeln!(out, "\n{shape}");
            let _ = writeln!(
                out,
                "  {:<24}{:>10}{:>11}{:>11}{:>13}{:>10}",
                "", "ns/op", "p50", "p99", "ops/s", "× first"
            );
            last = shape;
        }
        let title = row.backend.title();
        let Some(ns_per_op) = row.ns_per_op else {
            let why = row.reason.as_deref().unwrap_or("no reason");
            let _ = writeln!(out, "  {title:<24}{:>10}", "null");
            reasons.insert(format!("{}: {why}", row.backend));
            continue;
        };
        let quantile = |value: Option<u64>| value.map_or("-".into(), |v| ns(v as f64));
        let _ = writeln!(
            out,
            "  {title:<24}{ns_per_op:>10.1}{:>11}{:>11}{:>13}{:>10}",
            quantile(row.p50_ns),
            quantile(row.p99_ns),
            row.ops_per_s
                .map_or("-".into(), |ops| format!("{:.2} M", ops / 1e6)),
            match row.relative.is_empty() {
                true => "-".into(),
                false => format!("{:.2}", crate::blocks::median(&row.relative)),
            },
        );
    }
    for difference in differing_answers(document) {
        let _ = writeln!(out, "\n{difference}");
    }
    let _ = writeln!(out);
    let mut ratios = table(&["ratio", "value", "range", "bar", "", "ns"], 1);
    for ratio in &document.ratio_details {
        match (ratio.value, ratio.range, ratio.ns) {
            (Some(value), Some([low, high]), Some([a, b])) => ratios.add_row([
                ratio.name.clone(),
                format!("{value:.2}"),
                format!("{low:.2}–{high:.2}"),
                bar(ratio.bar),
                match ratio.holds {
                    Some(true) => "holds".to_owned(),
                    Some(false) => "SHORT".to_owned(),
                    None => String::new(),
                },
                format!("{} / {}", ns(a), ns(b)),
            ]),
            _ => {
                let why = ratio.reason.clone().unwrap_or_default();
                reasons.insert(format!("{}: {why}", ratio.name));
                ratios.add_row([
                    ratio.name.clone(),
                    "null".into(),
                    "-".into(),
                    bar(ratio.bar),
                ])
            }
        };
    }
    let _ = writeln!(out, "{ratios}\n");
    for reason in reasons {
        let _ = writeln!(out, "skipped: {reason}");
    }
    for skipped in &document.skipped {
        let _ = writeln!(out, "skipped: {skipped}");
    }
    let _ = writeln!(out);
    for sentence in &document.verdict {
        let _ = writeln!(out, "{sentence}");
    }
    out
}
