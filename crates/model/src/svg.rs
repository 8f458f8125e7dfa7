//! Plots of a sweep: for each axis with several values latency, throughput and use of resources.
//!
//! Each combination of the other axes' values is a line, up to [`LINES_MAX`] of them. Values stand side
//! by side at equal distances, whatever they are.

use crate::report::{Document, PointResult, Quantiles};
use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;
use std::collections::BTreeSet;
use thiserror::Error;

/// Lines of a plot at most; a note says how many there would be.
pub const LINES_MAX: usize = 8;
const SIZE: (u32, u32) = (960, 560);
const FONT: &str = "sans-serif";
/// Colours that differ for colour-blind readers too: Okabe and Ito, and a grey.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(150, 120, 60),
];

/// A plot could not be drawn.
#[derive(Debug, Error)]
#[error("the plot {name} could not be drawn: {reason}")]
pub struct SvgError {
    /// Which one.
    pub name: String,
    /// What plotters says.
    pub reason: String,
}

/// A line of a plot: a value at each place of the axis where there is one.
struct Line {
    label: String,
    values: Vec<Option<f64>>,
    /// Drawn thin: it goes with the line before, and has its colour.
    light: bool,
}

/// What a plot shows.
struct Plot<'a> {
    name: String,
    title: String,
    axis: &'a str,
    places: &'a [String],
    unit: &'static str,
    /// Whether the scale is logarithmic; otherwise it begins at 0.
    log: bool,
    /// The end of the scale, where it is fixed.
    top: Option<f64>,
    lines: Vec<Line>,
}

/// All plots of a document: file names and SVG texts. None, where no axis has several values.
///
/// # Errors
///
/// [`SvgError`].
pub fn plots(document: &Document) -> Result<Vec<(String, String)>, SvgError> {
    let mut files = Vec::new();
    for (n, axis) in document.axes.iter().enumerate() {
        if axis.values.len() < 2 {
            continue;
        }
        for plot in of_axis(document, n) {
            if plot
                .lines
                .iter()
                .any(|l| l.values.iter().any(Option::is_some))
            {
                let name = format!("{}-{}.svg", plot.name, axis.name);
                files.push((name, draw(&plot)?));
            }
        }
    }
    Ok(files)
}

/// The plots of an axis.
fn of_axis(document: &Document, n: usize) -> Vec<Plot<'_>> {
    let axis = &document.axes[n];
    let others = |at: &[String]| -> Vec<String> {
        let mut at = at.to_vec();
        at.remove(n);
        at
    };
    // Combinations of the other axes, in the order of the sweep.
    let mut combinations: Vec<Vec<String>> = Vec::new();
    let mut known = BTreeSet::new();
    for point in &document.points {
        let combination = others(&point.at);
        if known.insert(combination.clone()) {
            combinations.push(combination);
        }
    }
    let more = combinations.len().saturating_sub(LINES_MAX);
    combinations.truncate(LINES_MAX);
    let note = match more {
        0 => String::new(),
        _ => format!(" (the first {LINES_MAX} of {} lines)", LINES_MAX + more),
    };
    let label = |combination: &[String]| -> String {
        let names = document.axes.iter().enumerate();
        let names = names.filter(|(other, axis)| *other != n && axis.values.len() > 1);
        let pairs = names.map(|(other, axis)| {
            let at = if other < n { other } else { other - 1 };
            format!("{}={}", axis.name, combination[at])
        });
        pairs.collect::<Vec<_>>().join(" ")
    };
    let values = |combination: &[String], of: &dyn Fn(&PointResult) -> Option<f64>| {
        let places = axis.values.iter().map(|value| {
            let mut points = document.points.iter();
            let point = points.find(|p| p.at[n] == *value && others(&p.at) == combination)?;
            point.result.as_ref().and_then(of)
        });
        places.collect::<Vec<Option<f64>>>()
    };
    let plot = |name: &str, what: &str, unit, log, top, lines| Plot {
        name: name.to_owned(),
        title: format!(
            "{}: {what} by {}, modelled on {}{note}",
            document.workload.name, axis.name, document.timing.name
        ),
        axis: &axis.name,
        places: &axis.values,
        unit,
        log,
        top,
        lines,
    };
    let mut plots = Vec::new();
    let single = combinations.len() == 1;
    let named = |what: &str, label: String| match label.is_empty() {
        true => what.to_owned(),
        false => format!("{what}, {label}"),
    };
    type Of = fn(&PointResult) -> Option<&Quantiles>;
    let command: Of = |result| result.latency.as_ref();
    let packet: Of = |result| result.packets.as_ref()?.latency.as_ref();
    for (name, what, of) in [
        ("latency", "latency of commands", command),
        ("packet-latency", "latency of packets", packet),
    ] {
        let mut lines = Vec::new();
        for combination in &combinations {
            let mut line = |what: &str, light, pick: &dyn Fn(&Quantiles) -> u64| {
                let values = values(combination, &|r| of(r).map(|q| pick(q) as f64 / 1e6));
                lines.push(Line {
                    label: named(what, label(combination)),
                    values,
                    light,
                });
            };
            line("p50", false, &|q| q.p50_ps);
            if single {
                line("p90", false, &|q| q.p90_ps);
            }
            line("p99", !single, &|q| q.p99_ps);
            if single {
                line("p99.9", false, &|q| q.p999_ps);
            }
        }
        plots.push(plot(name, what, "µs", true, None, lines));
    }
    type Rate = fn(&PointResult) -> Option<f64>;
    let elements: Rate = |r| r.latency.map(|_| r.elements_per_s as f64 / 1e6);
    let packets: Rate = |r| r.packets.as_ref().map(|p| p.done_per_s as f64 / 1e6);
    for (name, what, of) in [
        ("throughput", "operations done", elements),
        ("packets", "packets done", packets),
    ] {
        let lines = combinations.iter().map(|combination| Line {
            label: label(combination),
            values: values(combination, &of),
            light: false,
        });
        plots.push(plot(
            name,
            what,
            "millions a second",
            false,
            None,
            lines.collect(),
        ));
    }
    // Of the first combination, the resources that are used most somewhere.
    if let Some(combination) = combinations.first() {
        let mut names: Vec<(u32, String)> = Vec::new();
        for result in document.points.iter().filter_map(|p| p.result.as_ref()) {
            for one in &result.resources {
                match names.iter_mut().find(|(_, name)| *name == one.name) {
                    Some((most, _)) => *most = one.busy_ppm.max(*most),
                    None => names.push((one.busy_ppm, one.name.clone())),
                }
            }
        }
        names.sort_by_key(|(most, _)| std::cmp::Reverse(*most));
        let lines = names.iter().take(LINES_MAX).map(|(_, name)| Line {
            label: name.clone(),
            values: values(combination, &|r| {
                let of = r.resources.iter().find(|one| one.name == *name)?;
                Some(f64::from(of.busy_ppm) / 1e4)
            }),
            light: false,
        });
        let what = match label(combination) {
            of if of.is_empty() => "use of resources".to_owned(),
            of => format!("use of resources at {of}"),
        };
        let mut plot = plot("resources", &what, "%", false, Some(100.0), lines.collect());
        plot.title = plot.title.replace(&note, "");
        plots.push(plot);
    }
    plots
}

fn draw(plot: &Plot<'_>) -> Result<String, SvgError> {
    let mut text = String::new();
    drawn(plot, &mut text).map_err(|e| SvgError {
        name: plot.name.clone(),
        reason: e.to_string(),
    })?;
    Ok(text)
}

fn drawn(plot: &Plot<'_>, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let all = || {
        plot.lines
            .iter()
            .flat_map(|line| line.values.iter().flatten())
    };
    let most = all().copied().fold(0.0, f64::max);
    let least = all().copied().fold(f64::MAX, f64::min);
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let places = (0..plot.places.len() as i32 - 1).into_segmented();
    // The legend stands beside the plot, not over its lines.
    let (left, right) = root.split_horizontally(SIZE.0 - legend_width(plot));
    let mut builder = ChartBuilder::on(&left);
    builder
        .caption(&plot.title, (FONT, 17))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64);
    let label = |at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(n) => {
            let at = usize::try_from(*n).ok();
            at.and_then(|n| plot.places.get(n))
                .cloned()
                .unwrap_or_default()
        }
        _ => String::new(),
    };
    // Two branches, since the kinds of scale are types.
    macro_rules! chart {
        ($range:expr) => {{
            let mut chart = builder.build_cartesian_2d(places, $range)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels(plot.places.len())
                .x_label_formatter(&label)
                .y_label_formatter(&|value| number(*value))
                .x_desc(plot.axis)
                .y_desc(plot.unit)
                .label_style((FONT, 14))
                .axis_desc_style((FONT, 15))
                .light_line_style(RGBColor(240, 240, 240))
                .bold_line_style(RGBColor(215, 215, 215))
                .draw()?;
            let mut colour = 0;
            for (n, line) in plot.lines.iter().enumerate() {
                if n > 0 && !line.light {
                    colour += 1;
                }
                let ink = COLOURS[colour % COLOURS.len()];
                let style = if line.light {
                    ink.mix(0.55).stroke_width(1)
                } else {
                    ink.stroke_width(2)
                };
                let points = line.values.iter().enumerate();
                let points =
                    points.filter_map(|(n, y)| Some((SegmentValue::CenterOf(n as i32), (*y)?)));
                let points: Vec<_> = points.collect();
                chart.draw_series(LineSeries::new(points.clone(), style))?;
                let size = if line.light { 2 } else { 3 };
                let dots = points
                    .into_iter()
                    .map(|at| Circle::new(at, size, ink.filled()));
                chart.draw_series(dots)?;
            }
        }};
    }
    if plot.log {
        let bottom = 10f64.powf(least.max(1e-6).log10().floor());
        let top = 10f64.powf(most.max(1e-6).log10().ceil()).max(bottom * 10.0);
        chart!((bottom..top).log_scale());
    } else {
        let top = plot.top.unwrap_or(most.max(1e-6) * 1.08);
        chart!(0.0..top);
    }
    let mut colour = 0;
    for (n, line) in plot.lines.iter().enumerate() {
        if n > 0 && !line.light {
            colour += 1;
        }
        if line.label.is_empty() {
            continue;
        }
        let ink = COLOURS[colour % COLOURS.len()];
        let width = if line.light { 1 } else { 3 };
        let y = 60 + 20 * n as i32;
        right.draw(&PathElement::new(
            vec![(4, y), (26, y)],
            ink.stroke_width(width),
        ))?;
        right.draw(&Text::new(
            line.label.clone(),
            (32, y - 7),
            (FONT, 13).into_font(),
        ))?;
    }
    root.present()?;
    drop(left);
    drop(right);
    drop(root);
    Ok(())
}

/// Room for the longest label, of about seven pixels a letter.
fn legend_width(plot: &Plot<'_>) -> u32 {
    let longest = plot
        .lines
        .iter()
        .map(|line| line.label.chars().count())
        .max();
    match longest {
        None | Some(0) => 20,
        Some(letters) => (50 + 7 * letters as u32).min(SIZE.0 / 2),
    }
}

/// A number at a scale.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        of if of >= 100.0 => format!("{value:.0}"),
        of if of >= 1.0 => format!("{:.2}", value)
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
        _ => format!("{value:.3}"),
    }
}
