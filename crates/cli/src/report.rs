//! What a demo found, as JSON and for people.

use crate::faulty::FaultsReport;
use crate::timing::TimingReport;
use crate::workload::{Disagreement, Outcome, PerSide, Timings};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table};
use offmap_offload::NicStats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Columns of the text.
pub(crate) const WIDTH: u16 = 80;

/// The document that `offmap demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// No result and no errno differed, on any map.
    pub agree: bool,
    /// Maps of the object.
    pub maps_total: usize,
    /// Those that were offloaded.
    pub maps_offloaded: usize,
    /// Operations compared, on all maps together; an element of a batch counts as one.
    pub operations: u64,
    /// The object's path; absent for the built-in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Seed of the workload.
    pub seed: u64,
    /// What the maps were offloaded to.
    pub device: String,
    /// Name of the profile.
    pub profile: String,
    /// Possible CPUs, and so values in each entry of a per-CPU map.
    pub possible_cpus: u32,
    /// Version of offmap.
    pub version: &'static str,
    /// What a fault plan did; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultsReport>,
    /// What the operations would have taken on hardware; absent without a timing profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<TimingReport>,
    /// What the NIC's queues did, which has outputs of its own.
    #[serde(skip)]
    pub stats: NicStats,
    /// The maps, in the order of the object.
    pub maps: Vec<MapReport>,
}

/// What became of one map.
#[derive(Clone, Debug, Serialize)]
pub struct MapReport {
    /// Its name in the object.
    pub name: String,
    /// Its type as bpftool prints it, or `type N` where it has no name.
    #[serde(rename = "type")]
    pub map_type: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU.
    pub value_size: u32,
    /// Entries, as it was created.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub map_flags: u32,
    /// It was created on the device and on the host.
    pub offloaded: bool,
    /// The network interface, a port of the NIC, through which it was to be offloaded.
    pub interface: String,
    /// Why it was not, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Nothing differed.
    pub agree: bool,
    /// Device memory that it occupies; 0 when it was not offloaded.
    pub device_bytes: u64,
    /// Operations compared.
    pub operations: u64,
    /// Entries that it held when it was filled.
    pub filled_entries: u32,
    /// Those are all that it can hold.
    pub filled_to_the_brim: bool,
    /// How often the host gave each answer.
    pub answers: BTreeMap<String, u64>,
    /// Nanoseconds per operation; absent when it was not offloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_operation: Option<Nanoseconds>,
    /// The first difference of each kind, for 16 kinds.
    pub disagreements: Vec<DisagreementReport>,
    /// All of them.
    pub disagreements_total: u64,
}

/// Medians, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Nanoseconds {
    /// A lookup that finds its key.
    pub lookup: Sides,
    /// An overwrite.
    pub update: Sides,
    /// A lookup of 64 keys at once, per key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup_of_64: Option<Sides>,
}

/// One figure for each side.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sides {
    /// The host map.
    pub host: f64,
    /// The device's map.
    pub device: f64,
}

/// One difference.
#[derive(Clone, Debug, Serialize)]
pub struct DisagreementReport {
    /// How many operations on this map had been compared before.
    pub at: u64,
    /// The operation.
    pub operation: String,
    /// The key in hexadecimal.
    pub key: String,
    /// What the host answered.
    pub host: String,
    /// What the device answered.
    pub device: String,
    /// How many more there were of this kind: same operation, same answers, other keys.
    pub alike: u64,
}

impl From<&Disagreement> for DisagreementReport {
    fn from(from: &Disagreement) -> Self {
        Self {
            at: from.at,
            operation: from.operation.clone(),
            key: from.key.clone(),
            host: from.host.clone(),
            device: from.device.clone(),
            alike: from.alike,
        }
    }
}

impl From<Timings> for Nanoseconds {
    fn from(timings: Timings) -> Self {
        let sides = |side: PerSide| Sides {
            host: (side.host * 10.0).round() / 10.0,
            device: (side.device * 10.0).round() / 10.0,
        };
        Self {
            lookup: sides(timings.lookup),
            update: sides(timings.update),
            lookup_of_64: timings.lookup_many.map(sides),
        }
    }
}

impl MapReport {
    /// Takes in what the workload found.
    pub fn take(&mut self, outcome: &Outcome) {
        self.agree &= outcome.agree();
        self.operations = outcome.operations;
        self.filled_entries = outcome.filled_entries;
        self.filled_to_the_brim = outcome.filled_to_the_brim;
        self.answers = outcome.answers_by_name();
        self.disagreements
            .extend(outcome.disagreements.iter().map(Into::into));
        self.disagreements_total += outcome.disagreements_total;
    }

    /// Takes in one more difference.
    pub fn differ(&mut self, disagreement: &Disagreement) {
        self.agree = false;
        self.disagreements.push(disagreement.into());
        self.disagreements_total += 1;
    }
}

impl Report {
    /// The document, with a newline at its end.
    ///
    /// # Errors
    ///
    /// None in practice: everything in it can be written as JSON.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// The table, notes and the closing sentence, at most 80 columns wide but for names and
    /// paths that are longer.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let source = self.object.as_deref().unwrap_or("the built-in object");
        let _ = writeln!(
            out,
            "{}: {}\n{}, seed {}\n",
            source,
            count(self.maps_total as u64, "map"),
            self.device,
            self.seed
        );
        if self.maps.iter().any(|map| map.offloaded) {
            let table = self.table();
            let _ = writeln!(out, "{}", table.trim_fmt());
            let cpus = count(u64::from(self.possible_cpus), "CPU");
            let _ = writeln!(
                out,
                "\nKeys and values in bytes. Lookups in nanoseconds (median), alone and in a batch\n\
                 of 64. A per-CPU entry has one value for each of {cpus}.\n"
            );
        }
        for map in &self.maps {
            notes(&mut out, map);
        }
        if let Some(faults) = &self.faults {
            faults.text(&mut out);
        }
        if let Some(timing) = &self.timing {
            timing.text(&mut out);
        }
        wrap(&mut out, &self.closing());
        out
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(NOTHING.header_separator(LineStyle::none().fill('─')))
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header([
                "map",
                "type",
                "key",
                "value",
                "entries",
                "device\nmemory",
                "lookup ns\nhost/NIC",
                "batch ns\nhost/NIC",
            ]);
        for map in self.maps.iter().filter(|map| map.offloaded) {
            let ns = |pick: fn(&Nanoseconds) -> Option<Sides>| {
                map.ns_per_operation
                    .as_ref()
                    .and_then(pick)
                    .map_or("–".to_owned(), |ns| {
                        format!("{:.0}/{:.0}", ns.host, ns.device)
                    })
            };
            table.add_row([
                map.name.clone(),
                map.map_type.clone(),
                grouped(map.key_size.into()),
                grouped(map.value_size.into()),
                grouped(map.max_entries.into()),
                bytes(map.device_bytes),
                ns(|ns| Some(ns.lookup)),
                ns(|ns| ns.lookup_of_64),
            ]);
        }
        for (i, column) in table.column_iter_mut().enumerate() {
            // Two columns apart, and none at either edge.
            column.set_padding((if i == 0 { 0 } else { 2 }, 0));
            if i >= 2 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// Where all that differs is that the NIC says ENODEV: how many operations agreed.
    fn lost_after(&self) -> Option<u64> {
        let mut kinds = self.maps.iter().flat_map(|map| &map.disagreements);
        let gone = |answer: &DisagreementReport| answer.device.contains("ENODEV");
        let total: u64 = self.maps.iter().map(|map| map.disagreements_total).sum();
        let told = kinds.clone().map(|kind| 1 + kind.alike).sum::<u64>();
        // Kinds that were only counted may be anything.
        let all = !self.agree && told == total && total > 0 && kinds.all(gone);
        all.then(|| self.operations.saturating_sub(total))
    }

    fn closing(&self) -> String {
        let refused = self.maps_total - self.maps_offloaded;
        let offloaded = match (self.maps_total, self.maps_offloaded) {
            (0, _) => {
                return "The object has no maps: nothing to offload, nothing to differ.".to_owned();
            }
            (_, 0) => "No map was offloaded".to_owned(),
            (1, _) => "The map was offloaded".to_owned(),
            (_, _) if refused == 0 => format!("All {} maps were offloaded", self.maps_total),
            (total, some) => format!("{some} of {total} maps were offloaded"),
        };
        let differences: u64 = self.maps.iter().map(|map| map.disagreements_total).sum();
        if let Some(lost) = self.lost_after() {
            format!(
                "The device is GONE (ENODEV): it was unplugged, reset by others, or the process that served it has \
                 ended. {offloaded}; {} {} then failed, and before that host and NIC agreed on {}.",
                grouped(differences),
                if differences == 1 {
                    "operation"
                } else {
                    "operations"
                },
                grouped(lost)
            )
        } else if !self.agree {
            format!(
                "{offloaded}, and host and NIC DISAGREED {} in {} operations.",
                times(differences),
                grouped(self.operations)
            )
        } else if self.maps_offloaded == 0 {
            format!("{offloaded}; nothing was compared.")
        } else {
            format!(
                "{offloaded}; host and NIC agreed on the result and errno of all {} operations.",
                grouped(self.operations)
            )
        }
    }
}

fn notes(out: &mut String, map: &MapReport) {
    if let Some(reason) = &map.reason {
        let entries = if map.max_entries == 1 {
            "1 entry".to_owned()
        } else {
            format!("{} entries", grouped(map.max_entries.into()))
        };
        let text = format!(
            "{} ({}, key {}, value {}, {entries}) was not offloaded: {reason}",
            map.name, map.map_type, map.key_size, map.value_size,
        );
        wrap(out, &text);
        out.push('\n');
    }
    if map.offloaded && !map.filled_to_the_brim {
        let text = format!(
            "{} was filled with {} of {} entries only, so its brim was not tried.",
            map.name,
            grouped(map.filled_entries.into()),
            grouped(map.max_entries.into())
        );
        wrap(out, &text);
        out.push('\n');
    }
    for difference in &map.disagreements {
        let key = match difference.key.as_str() {
            "" => String::new(),
            key => format!(" of key {key}"),
        };
        let alike = match difference.alike {
            0 => String::new(),
            more => format!(", and {} more like it", grouped(more)),
        };
        let text = format!(
            "{}: DISAGREEMENT after {} operations, {}{key}: the host said {}, the NIC {}{alike}.",
            map.name,
            grouped(difference.at),
            difference.operation,
            difference.host,
            difference.device
        );
        wrap(out, &text);
    }
    let told: u64 = map.disagreements.iter().map(|d| 1 + d.alike).sum();
    let more = map.disagreements_total.saturating_sub(told);
    if more > 0 {
        let text = format!("{}: and {} more, of other kinds.", map.name, times(more));
        wrap(out, &text);
    }
    if !map.disagreements.is_empty() {
        out.push('\n');
    }
}

/// Appends a paragraph in lines of at most [`WIDTH`] columns; a longer word has a line of its
/// own.
pub(crate) fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > usize::from(WIDTH) {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
}

/// `n` bytes in the largest unit that leaves a whole part, to three digits or more.
fn bytes(n: u64) -> String {
    let (mut unit, mut units) = (
        1_u64,
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].iter(),
    );
    let mut name = units.next().copied().unwrap_or_default();
    while n / unit >= 1024 {
        let Some(next) = units.next() else { break };
        unit <<= 10;
        name = next;
    }
    let value = n as f64 / unit as f64;
    let digits = if unit == 1 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {name}")
}

pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

fn times(n: u64) -> String {
    if n == 1 {
        "once".to_owned()
    } else {
        format!("{} times", grouped(n))
    }
}

/// `n` with a comma between groups of three digits.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, bytes, grouped, wrap};

    #[test]
    fn sizes_have_units() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (98_496, "96.2 KiB"),
            (524_352, "512 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn paragraphs_are_wrapped() {
        let long = "x".repeat(90);
        let text = format!("{} {long} a b", "word ".repeat(40).trim_end());
        let mut out = String::new();
        wrap(&mut out, &text);
        assert_eq!(out.split_whitespace().collect::<Vec<_>>().join(" "), text);
        for line in out.lines() {
            assert!(line.len() <= usize::from(WIDTH) || line == long, "{line:?}");
            assert_eq!(line, line.trim());
        }
    }

    #[test]
    fn digits_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }
}
