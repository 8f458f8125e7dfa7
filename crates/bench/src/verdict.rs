//! What the figures say, in sentences.

use crate::report::{Document, Row};
use crate::sides::BackEnd::{self, Inline, Kernel, Threaded, VfioUser};

/// Below this two sides are called alike.
const ALIKE: f64 = 1.15;

fn times(slower: f64, faster: f64) -> String {
    let ratio = slower / faster;
    match ratio {
        r if r < 10.0 => format!("{r:.1}×"),
        r => format!("{r:.0}×"),
    }
}

/// Nanoseconds for people.
pub(crate) fn ns(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 10_000_000.0 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// A back end within a sentence.
fn name(back_end: BackEnd) -> &'static str {
    match back_end {
        Inline => "the offloaded map (inline)",
        Threaded => "the offloaded map (threaded)",
        VfioUser => "the offloaded map (over vfio-user)",
        other => other.title(),
    }
}

/// One operation of an offloaded map against the kernel's.
fn against(document: &Document, group: &str, what: &str, back_end: BackEnd) -> Option<String> {
    let (kernel, ours) = (document.ns(group, Kernel)?, document.ns(group, back_end)?);
    let title = name(back_end);
    Some(if ours * ALIKE < kernel {
        format!(
            "{what}: {title} is {} faster than the kernel's map by bpf(2) ({} and {}).",
            times(kernel, ours),
            ns(ours),
            ns(kernel)
        )
    } else if kernel * ALIKE < ours {
        format!(
            "{what}: {title} is {} slower than the kernel's map by bpf(2) ({} and {}).",
            times(ours, kernel),
            ns(ours),
            ns(kernel)
        )
    } else {
        format!(
            "{what}: {title} and the kernel's map by bpf(2) take about the same ({} and {}).",
            ns(ours),
            ns(kernel)
        )
    })
}

/// From which batch on an element costs less than one by a single call of the kernel.
fn break_even(document: &Document, back_end: BackEnd) -> Option<String> {
    let single = document.ns("overwrite", Kernel)?;
    let mut swept: Vec<&Row> = document
        .rows_of("batch_sweep")
        .filter(|row| row.backend == back_end)
        .collect();
    swept.sort_by_key(|row| row.batch);
    let of_kernel = |batch| {
        document
            .rows_of("batch_sweep")
            .find(|row| row.backend == Kernel && row.batch == batch)
            .and_then(|row| row.ns_per_op)
    };
    let title = name(back_end);
    let last = swept.last()?;
    let (last_ns, last_kernel) = (last.ns_per_op?, of_kernel(last.batch)?);
    let first = swept
        .iter()
        .find(|row| row.ns_per_op.is_some_and(|ns| ns < single))
        .map(|row| row.batch);
    Some(match first {
        Some(1) => format!(
            "Updates in batches: {title} is cheaper for each entry than single calls of the kernel from the \
             first entry on; with {} at a time it takes {} an entry, and the kernel's own batch {}.",
            last.batch,
            ns(last_ns),
            ns(last_kernel)
        ),
        Some(batch) => format!(
            "Updates in batches: {title} breaks even with single calls of the kernel at batches of {batch}; with {} at \
             a time it takes {} an entry, and the kernel's own batch {}.",
            last.batch,
            ns(last_ns),
            ns(last_kernel)
        ),
        None => format!(
            "Updates in batches: {title} does not break even with single calls of the kernel ({}) up to \
             {} at a time ({}).",
            ns(single),
            last.batch,
            ns(last_ns)
        ),
    })
}

/// The verdict on a run.
pub(crate) fn sentences(document: &Document) -> Vec<String> {
    let mut out = Vec::new();
    out.extend(against(document, "lookup_calls", "Reads", Inline));
    out.extend(against(document, "lookup_calls", "Reads", VfioUser));
    out.extend(against(document, "overwrite", "Updates", VfioUser));
    out.extend(break_even(document, VfioUser));
    out.extend(against(document, "dump", "A whole dump, per entry", Inline));
    if document
        .rows_of("lookup_calls")
        .all(|row| row.backend != Kernel)
    {
        out.push(
            "The running kernel's map could not be measured, so that nothing is said about whether \
             offloading beats it."
                .to_owned(),
        );
    }
    let short: Vec<&str> = document
        .ratio_details
        .iter()
        .filter(|ratio| ratio.holds == Some(false))
        .map(|ratio| ratio.name.as_str())
        .collect();
    if !short.is_empty() {
        out.push(format!("Short of their bars: {}.", short.join(", ")));
    }
    out.push(
        "These are times of the emulator on this machine, whose bus is memory: they say what driver, ring and table cost. A \
         device behind PCIe adds the bus: `offmap demo --timing` and `offmap model` say what, in modelled time."
            .to_owned(),
    );
    out
}
