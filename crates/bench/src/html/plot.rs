//! Bars and lines as SVG.

use super::escape;
use crate::report::Row;
use crate::verdict::ns;
use std::fmt::Write;

/// A point of a line.
pub(super) type Point = (f64, f64);

/// A line with its name.
pub(super) struct Line {
    pub(super) class: &'static str,
    pub(super) title: &'static str,
    pub(super) points: Vec<Point>,
}

/// Rows of bars: the height of one, where the bars begin, and where they end.
const ROW: f64 = 24.0;
const LEFT: f64 = 122.0;
const RIGHT: f64 = 312.0;
const WIDTH: f64 = 384.0;

/// Powers of ten that hold all values.
pub(super) fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for value in values.filter(|v| *v > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if high == 0.0 {
        return (0, 1);
    }
    let low = low.log10().floor() as i32;
    (low, (high.log10().ceil() as i32).max(low + 1))
}

/// A power of ten of nanoseconds.
fn tick(power: i32) -> String {
    match power {
        ..3 => format!("{} ns", 10f64.powi(power)),
        3..6 => format!("{} µs", 10f64.powi(power - 3)),
        _ => format!("{} ms", 10f64.powi(power - 6)),
    }
}

/// The times of a row that a plot of bars shows.
pub(super) fn shown(row: &Row) -> [f64; 3] {
    [
        row.ns_per_op.unwrap_or(0.0),
        row.p50_ns.unwrap_or(0) as f64,
        row.p99_ns.unwrap_or(0) as f64,
    ]
}

/// One bar for each row, between two powers of ten.
pub(super) fn bars(rows: &[&Row], (low, high): (i32, i32)) -> String {
    let x = |value: f64| {
        let at = (value.max(1e-3).log10() - f64::from(low)) / f64::from(high - low);
        LEFT + at.clamp(0.0, 1.0) * (RIGHT - LEFT)
    };
    let height = rows.len() as f64 * ROW + 22.0;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for power in low..=high {
        let at = x(10f64.powi(power));
        let _ = write!(
            out,
            "<line class=\"rule\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{:.1}\"/>\
             <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 18.0,
            height - 4.0,
            tick(power)
        );
    }
    for (row, at) in rows.iter().zip(0..) {
        let y = f64::from(at) * ROW;
        let [mean, p50, p99] = shown(row);
        let end = x(mean);
        let title = row.backend.title();
        let _ = write!(
            out,
            "<g><title>{title}: {} an operation; median call {}, one in a hundred over {}</title>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{title}</text>\
             <line class=\"span\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <rect class=\"bar {}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            ns(mean),
            ns(p50),
            ns(p99),
            LEFT - 8.0,
            y + 15.0,
            x(p50),
            x(p99),
            y + 11.0,
            y + 11.0,
            row.backend.name(),
            y + 5.0,
            (end - LEFT).max(1.0),
            end.max(x(p99)) + 6.0,
            y + 15.0,
            ns(mean)
        );
    }
    out.push_str("</svg>");
    out
}

/// Of a plot of lines: its size, and the margins.
const PLOT: (f64, f64) = (640.0, 320.0);
const MARGIN: (f64, f64, f64, f64) = (52.0, 16.0, 24.0, 42.0);

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e4 => format!("{} k", v / 1e3),
        v if v >= 10.0 => format!("{v:.0}"),
        v => format!("{v}"),
    }
}

/// Lines over two logarithmic axes.
pub(super) fn lines(lines: &[Line], x_name: &str, y_name: &str) -> String {
    let (width, height) = PLOT;
    let (left, right, top, bottom) = MARGIN;
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let (y_low, y_high) = decades(points().map(|p| p.1));
    let (x_low, x_high) = points().fold((f64::INFINITY, 0.0f64), |(low, high), (x, _)| {
        (low.min(x), high.max(x))
    });
    let x = |value: f64| {
        let at = (value / x_low).ln() / (x_high / x_low).ln().max(1e-9);
        left + at * (width - left - right)
    };
    let y = |value: f64| {
        let at = (value.log10() - f64::from(y_low)) / f64::from(y_high - y_low);
        height - bottom - at * (height - top - bottom)
    };
    let mut out = String::from("<div class=\"key\">");
    for line in lines {
        let _ = write!(
            out,
            "<span><svg viewBox=\"0 0 10 10\"><circle class=\"{}\" cx=\"5\" cy=\"5\" r=\"4\"/></svg>{}</span>",
            line.class, line.title
        );
    }
    let _ = write!(
        out,
        "</div><svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
         <text class=\"soft\" x=\"{left}\" y=\"12\">{}</text>",
        escape(y_name)
    );
    for power in y_low..=y_high {
        let value = 10f64.powi(power);
        let at = y(value);
        let _ = write!(
            out,
            "<line class=\"rule\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            width - right,
            left - 6.0,
            at + 4.0,
            number(value)
        );
    }
    let mut ticks: Vec<f64> = points().map(|p| p.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        let _ = write!(
            out,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            height - bottom + 18.0,
            number(tick)
        );
    }
    let _ = write!(
        out,
        "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        width - right,
        height - 6.0,
        escape(x_name)
    );
    for line in lines {
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py)))
            .collect();
        let _ = write!(
            out,
            "<polyline class=\"line {}\" style=\"fill:none\" points=\"{}\"/>",
            line.class,
            path.join(" ")
        );
        for (px, py) in &line.points {
            let _ = write!(
                out,
                "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}: {} {} at {} {}</title></circle>",
                line.class,
                x(*px),
                y(*py),
                line.title,
                number((py * 10.0).round() / 10.0),
                escape(y_name),
                number(*px),
                escape(x_name)
            );
        }
    }
    out.push_str("</svg>");
    out
}
