//! The document as one self-contained page, light and dark, for wide screens and telephones.
//!
//! The plots are SVG that takes its colours from the page, which no plotting library's output does; there is no
//! script.

mod plot;

use crate::ratios::Bar;
use crate::report::{Document, RatioDetail, Row};
use crate::sides::BackEnd;
use crate::table::{grouped, shape};
use crate::verdict::ns;
use plot::{Line, Point};
use std::collections::BTreeMap;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// Text that may hold anything, for a page.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The groups of single calls, in the order of the page.
const CALLS: [(&str, &str); 7] = [
    ("lookup_calls", "Lookup"),
    ("miss", "Lookup of a key that is not there"),
    ("overwrite", "Update of a key that is there"),
    ("insert", "Insert"),
    ("delete", "Delete"),
    ("mix", "Nine lookups, one update"),
    ("next", "Step of a walk"),
];

fn bar(bar: Bar) -> String {
    match bar {
        Bar::AtMost(bar) => format!("≤ {bar}"),
        Bar::AtLeast(bar) => format!("≥ {bar}"),
        Bar::None => "–".to_owned(),
    }
}

fn ratio_row(ratio: &RatioDetail) -> String {
    let (class, word) = match ratio.holds {
        Some(true) => ("good", "holds"),
        Some(false) => ("short", "short"),
        None => ("", ""),
    };
    let value = match (ratio.value, ratio.range) {
        (Some(value), Some([low, high])) => {
            format!("<b>{value:.2}</b> <span class=\"soft\">{low:.2}–{high:.2}</span>")
        }
        _ => "null".to_owned(),
    };
    let detail = match (&ratio.reason, ratio.ns) {
        (Some(reason), _) => escape(reason),
        (None, Some([a, b])) => format!("{} / {}", ns(a), ns(b)),
        (None, None) => String::new(),
    };
    format!(
        "<tr><td><code>{}</code><div class=\"soft\">{}</div></td><td class=\"n\">{value}</td>\
         <td class=\"n\">{}</td><td class=\"{class}\">{word}</td><td class=\"soft\">{detail}</td></tr>\n",
        escape(&ratio.name),
        escape(&ratio.meaning),
        bar(ratio.bar),
    )
}

/// The lines of a sweep: for each back end the points (`x` of the row, `y` of the row).
fn lines<'a>(
    rows: impl Iterator<Item = &'a Row>,
    x: impl Fn(&Row) -> f64,
    y: impl Fn(&Row) -> Option<f64>,
) -> Vec<Line> {
    let mut sides: BTreeMap<BackEnd, Vec<Point>> = BTreeMap::new();
    for row in rows {
        if let Some(y) = y(row) {
            sides.entry(row.backend).or_default().push((x(row), y));
        }
    }
    sides
        .into_iter()
        .map(|(back_end, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line {
                class: back_end.name(),
                title: back_end.title(),
                points,
            }
        })
        .filter(|line| line.points.len() > 1)
        .collect()
}

fn sweeps(document: &Document, out: &mut String) {
    let mut sweep = |title: &str, about: &str, x: &str, y: &str, lines: Vec<Line>| {
        if !lines.is_empty() {
            let _ = writeln!(
                out,
                "<section><h2>{}</h2><p class=\"soft\">{}</p>{}</section>",
                escape(title),
                escape(about),
                plot::lines(&lines, x, y)
            );
        }
    };
    sweep(
        "Updates by batch",
        "Time for each entry of one BPF_MAP_UPDATE_BATCH. A batch of one shows what a call costs.",
        "entries in a batch",
        "ns per entry",
        lines(
            document.rows_of("batch_sweep"),
            |r| r.batch as f64,
            |r| r.ns_per_op,
        ),
    );
    sweep(
        "Lookups in flight",
        "Lookups a second over one queue pair, by how many are on their way.",
        "in flight",
        "million a second",
        lines(
            document.rows_of("pipelined"),
            |r| r.depth as f64,
            |r| r.ops_per_s.map(|ops| ops / 1e6),
        ),
    );
    let by_entries = document
        .rows_of("entries")
        .chain(document.rows_of("lookup_calls"));
    sweep(
        "Lookups by size of the map",
        "Time of one lookup, by the map's entries.",
        "entries",
        "ns",
        lines(by_entries, |r| r.entries as f64, |r| r.ns_per_op),
    );
    let by_value = document
        .rows_of("value_size")
        .chain(document.rows_of("lookup_calls"));
    sweep(
        "Lookups by size of the value",
        "Time of one lookup, by the value's bytes.",
        "bytes",
        "ns",
        lines(by_value, |r| r.value_size as f64, |r| r.ns_per_op),
    );
}

/// The page.
pub fn page(document: &Document) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>offmap bench</title>\
         <style>\n{STYLE}</style></head><body>\n<header><h1>Offload against host</h1>\
         <p class=\"soft\">{}</p><p class=\"soft\">offmap {}, {} repetitions of {} turns of at most 1 ms, {:.0} s. \
         Measured wall-clock time; the modelled time of a NIC is not in this version.</p></header>\n<main>\n",
        escape(&document.machine.text()),
        escape(&document.version),
        document.repetitions,
        document.blocks,
        document.seconds
    );
    out.push_str("<section><h2>Verdict</h2><ul class=\"verdict\">");
    for sentence in &document.verdict {
        let _ = write!(out, "<li>{}</li>", escape(sentence));
    }
    out.push_str("</ul></section>\n<section><h2>Time of a call, by back end</h2>\
         <p class=\"soft\">The bar is the mean time of an operation in a block (median of the blocks); the line \
         behind it goes from the median to the slowest of a hundred of calls that were timed one by one, \
         which cannot overlap their cache misses with the next one's. All scales are the same, and logarithmic.</p>\
         <div class=\"panels\">");
    let rows = CALLS.iter().flat_map(|(group, _)| document.rows_of(group));
    let scale = plot::decades(rows.flat_map(plot::shown));
    for (group, title) in CALLS {
        let rows: Vec<&Row> = document.rows_of(group).collect();
        if !rows.is_empty() {
            let _ = write!(
                out,
                "<figure><figcaption>{title}</figcaption>{}</figure>",
                plot::bars(&rows, scale)
            );
        }
    }
    out.push_str("</div></section>\n");
    sweeps(document, &mut out);
    out.push_str("<section><h2>Ratios and their bars</h2><div class=\"scroll\"><table><thead><tr><th>ratio</th>\
         <th class=\"n\">value</th><th class=\"n\">bar</th><th></th><th>times</th></tr></thead><tbody>\n");
    for ratio in &document.ratio_details {
        out.push_str(&ratio_row(ratio));
    }
    out.push_str("</tbody></table></div></section>\n<section><details><summary>All rows</summary>\
         <div class=\"scroll\"><table><thead><tr><th>what</th><th>back end</th><th class=\"n\">ns/op</th>\
         <th class=\"n\">p50</th><th class=\"n\">p99</th><th class=\"n\">ops/s</th></tr></thead><tbody>\n");
    for row in &document.rows {
        let quantile = |v: Option<u64>| v.map_or("–".to_owned(), |v| ns(v as f64));
        let _ = match row.ns_per_op {
            Some(ns_per_op) => writeln!(
                out,
                "<tr><td>{}: {}</td><td>{}</td><td class=\"n\">{ns_per_op:.1}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escape(&row.group),
                escape(&shape(row)),
                row.backend.title(),
                quantile(row.p50_ns),
                quantile(row.p99_ns),
                row.ops_per_s
                    .map_or("–".to_owned(), |ops| grouped(ops as usize)),
            ),
            None => writeln!(
                out,
                "<tr><td>{}: {}</td><td>{}</td><td colspan=\"4\" class=\"soft\">{}</td></tr>",
                escape(&row.group),
                escape(&shape(row)),
                row.backend.title(),
                escape(row.reason.as_deref().unwrap_or("no reason")),
            ),
        };
    }
    out.push_str("</tbody></table></div></details>");
    for skipped in &document.skipped {
        let _ = write!(out, "<p class=\"soft\">Skipped: {}</p>", escape(skipped));
    }
    out.push_str("</section>\n</main></body></html>\n");
    out
}
