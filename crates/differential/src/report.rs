//! What a comparison came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How often each command came to each result on each type of map.
pub type Matrix = BTreeMap<(&'static str, String, String), u64>;

/// A call whose answers differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The sequence that it is in; running that one alone makes it again.
    pub sequence: u64,
    /// Which call of the sequence it is, from 0.
    pub call: u64,
    /// One sentence: the call, and both answers.
    pub what: String,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Calls made on each side.
    pub calls: u64,
    /// Of these, calls that the kernel answered with success.
    pub succeeded: u64,
    /// Sequences begun.
    pub sequences: u64,
    /// Calls whose answers differ, without the explained ones.
    pub differences: u64,
    /// The first of them.
    pub first: Vec<Difference>,
    /// Differences that [`crate::explain`] accounts for, by the entry's name.
    pub explained: BTreeMap<&'static str, u64>,
    /// Command × type × result, as the kernel answered.
    pub matrix: Matrix,
    /// The seed of the run.
    pub seed: u64,
    /// A sum over the sequences, each of its calls and the kernel's answers: the same calls
    /// give the same sum, in whatever parts they are made.
    pub digest: u64,
}

/// The share of calls, in percent, that have to succeed: a comparison of refusals alone says
/// little.
pub const SUCCESS_PERCENT: u64 = 30;

impl Report {
    /// Differences that are accounted for.
    pub fn explained_calls(&self) -> u64 {
        self.explained.values().sum()
    }

    /// Of the calls, those that the kernel answered with success, in whole percent.
    pub fn success_percent(&self) -> u64 {
        100 * self.succeeded / self.calls.max(1)
    }

    /// Adds another part of the same campaign.
    pub fn merge(&mut self, other: Self) {
        self.calls += other.calls;
        self.succeeded += other.succeeded;
        self.sequences += other.sequences;
        self.differences += other.differences;
        self.digest = self.digest.wrapping_add(other.digest);
        self.first.extend(other.first);
        for (name, count) in other.explained {
            *self.explained.entry(name).or_default() += count;
        }
        for (cell, count) in other.matrix {
            *self.matrix.entry(cell).or_default() += count;
        }
    }

    /// The matrix as lines: a command and a type, then its results with their counts.
    pub fn matrix_text(&self) -> String {
        let mut rows: BTreeMap<(&str, &str), Vec<(&str, u64)>> = BTreeMap::new();
        for ((command, map_type, result), &count) in &self.matrix {
            rows.entry((command, map_type))
                .or_default()
                .push((result, count));
        }
        let mut text = String::new();
        for ((command, map_type), mut cells) in rows {
            cells.sort_by_key(|cell| std::cmp::Reverse(cell.1));
            let cells: Vec<String> = cells
                .into_iter()
                .map(|(result, count)| format!("{result} {count}"))
                .collect();
            let _ = writeln!(text, "{command:<24}{map_type:<18}{}", cells.join("  "));
        }
        text
    }
}
