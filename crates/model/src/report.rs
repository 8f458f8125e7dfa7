//! What a sweep found, as JSON. All numbers are whole ones, and nothing in it depends on the machine that ran
//! it: parts that are put together are what one run gives, byte for byte.

use crate::resolve::Resolved;
use crate::sweep::{Axis, Shard, Sweep};
use crate::system::machine::Load;
use crate::system::stats::{Latencies, Outcome};
use crate::workload::Workload;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use thiserror::Error;

/// The version of the format.
pub const FORMAT: u32 = 1;
/// Parts of a million from which a resource is saturated.
const SATURATED_PPM: u32 = 950_000;
/// Picoseconds of a second.
const SECOND_PS: u128 = 1_000_000_000_000;

/// A timing profile, and what tells it from others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Its name.
    pub name: String,
    /// SHA-256 of its figures.
    pub sha256: String,
}

/// A sweep or a part of one, and what it found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of offmap.
    pub version: String,
    /// The timing profile.
    pub timing: Timing,
    /// The workload, with what no axis changes.
    pub workload: Workload,
    /// The axes; the last one varies fastest.
    pub axes: Vec<Axis>,
    /// The sweep's seed.
    pub seed: u64,
    /// Which part it is, and of how many; `null`: the whole.
    pub shard: Option<(u32, u32)>,
    /// What was found, by index.
    pub points: Vec<Point>,
}

/// A point of a sweep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Its number in the sweep.
    pub index: u64,
    /// Its coordinates, in the order of the axes.
    pub at: Vec<String>,
    /// Its seed, in hexadecimal.
    pub seed: String,
    /// Why the hardware does not admit it.
    pub refused: Option<String>,
    /// What was found; `null` where it was refused.
    pub result: Option<PointResult>,
}

/// What was found at a point. Times are modelled ones, in picoseconds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointResult {
    /// Bytes of the table's index on each NIC.
    pub index_bytes: u64,
    /// Bytes of its entries.
    pub entries_bytes: u64,
    /// The tier that the index is in.
    pub index_tier: String,
    /// The tier that the entries are in.
    pub entries_tier: String,
    /// How often the table was halved to be counted; 0: it was counted as a whole.
    pub halvings: u32,
    /// Commands and packets that were simulated.
    pub operations: u64,
    /// Events of the simulation.
    pub events: u64,
    /// The measured time.
    pub measured_ps: u64,
    /// Commands that ended in a second.
    pub commands_per_s: u64,
    /// Elements of them: a command without a batch has one.
    pub elements_per_s: u64,
    /// Latencies of commands, from when they came to when a thread had taken the completion in.
    pub latency: Option<Quantiles>,
    /// What came from the network.
    pub packets: Option<PacketResult>,
    /// The busiest resource.
    pub bottleneck: Busy,
    /// What bounds the throughput.
    pub bound: Bound,
    /// All resources.
    pub resources: Vec<Busy>,
}

/// What bounds the throughput.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The bottleneck: it is saturated.
    Resource,
    /// Round trips: with more commands in flight there would be more.
    Depth,
    /// What comes: all of it is served.
    Load,
}

/// A resource, and how busy the busiest of its kind was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Busy {
    /// What it is.
    pub name: String,
    /// Parts of a million of the measured time.
    pub busy_ppm: u32,
}

/// How latencies are distributed, in picoseconds, to three digits; the least, the greatest and the mean exactly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// How many.
    pub count: u64,
    /// The least.
    pub min_ps: u64,
    /// The mean, rounded down.
    pub mean_ps: u64,
    /// What half of them do not exceed.
    pub p50_ps: u64,
    /// Nine of ten.
    pub p90_ps: u64,
    /// 99 of 100.
    pub p99_ps: u64,
    /// 999 of 1,000.
    pub p999_ps: u64,
    /// The greatest.
    pub max_ps: u64,
}

/// What became of packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketResult {
    /// That came in a second, at all NICs together.
    pub offered_per_s: u64,
    /// That engines were done with in a second.
    pub done_per_s: u64,
    /// Parts of a million that were dropped.
    pub dropped_ppm: u32,
    /// From a packet's arrival until an engine was done with it.
    pub latency: Option<Quantiles>,
}

impl Quantiles {
    fn new(latencies: &Latencies) -> Option<Self> {
        Some(Self {
            count: latencies.count,
            min_ps: latencies.min,
            mean_ps: latencies.mean()?,
            p50_ps: latencies.quantile(0.5)?,
            p90_ps: latencies.quantile(0.9)?,
            p99_ps: latencies.quantile(0.99)?,
            p999_ps: latencies.quantile(0.999)?,
            max_ps: latencies.max,
        })
    }
}

impl PointResult {
    pub(crate) fn new(resolved: &Resolved, outcome: &Outcome) -> Self {
        let per_second = |count: u64| {
            let window = u128::from(outcome.window.max(1));
            u64::try_from(u128::from(count) * SECOND_PS / window).unwrap_or(u64::MAX)
        };
        let busy = |one: &crate::system::stats::Use| Busy {
            name: one.name.clone(),
            busy_ppm: one.busy_ppm,
        };
        let bottleneck = outcome.bottleneck().map(busy).unwrap_or(Busy {
            name: "nothing".into(),
            busy_ppm: 0,
        });
        let machine = &resolved.machine;
        let closed = machine.load == Load::Closed && !machine.calls.is_empty();
        Self {
            index_bytes: resolved.cost.index_bytes,
            entries_bytes: resolved.cost.entries_bytes,
            index_tier: resolved.tiers[0].clone(),
            entries_tier: resolved.tiers[1].clone(),
            halvings: resolved.cost.halvings,
            operations: resolved.operations,
            events: outcome.events,
            measured_ps: outcome.window,
            commands_per_s: per_second(outcome.commands),
            elements_per_s: per_second(outcome.elements),
            latency: Quantiles::new(&outcome.latencies),
            packets: machine.packets.as_ref().map(|_| PacketResult {
                offered_per_s: per_second(outcome.packets_offered),
                done_per_s: per_second(outcome.packets),
                dropped_ppm: (outcome.packets_dropped * 1_000_000 / outcome.packets_offered.max(1))
                    as u32,
                latency: Quantiles::new(&outcome.packet_latencies),
            }),
            bound: match (bottleneck.busy_ppm >= SATURATED_PPM, closed) {
                (true, _) => Bound::Resource,
                (false, true) => Bound::Depth,
                (false, false) => Bound::Load,
            },
            bottleneck,
            resources: outcome.uses.iter().map(busy).collect(),
        }
    }
}

/// Why parts are no whole.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MergeError {
    /// It cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// It is of another sweep.
    #[error("{path} and {other} are parts of different sweeps: {field} is not the same")]
    Different {
        /// A file.
        path: String,
        /// Another one.
        other: String,
        /// What differs.
        field: &'static str,
    },
    /// It is no part.
    #[error("{path} is a whole sweep, and no part of one: there is nothing to put together")]
    Whole {
        /// The file.
        path: String,
    },
    /// A part comes twice.
    #[error("part {part}/{of} is there twice: {path} and {other}")]
    Twice {
        /// Which one.
        part: u32,
        /// Of how many.
        of: u32,
        /// A file.
        path: String,
        /// Another one.
        other: String,
    },
    /// Parts are missing.
    #[error("of {of} parts {count} are missing: {list}")]
    Missing {
        /// How many there should be.
        of: u32,
        /// How many are missing.
        count: u32,
        /// The first of them.
        list: String,
    },
    /// A part does not have its points.
    #[error("{path} does not have the points of part {part}/{of}: it was cut off or changed")]
    Points {
        /// The file.
        path: String,
        /// Which one.
        part: u32,
        /// Of how many.
        of: u32,
    },
    /// There is none.
    #[error("there are no parts to put together")]
    Nothing,
}

impl Document {
    pub(crate) fn new(sweep: &Sweep, shard: Option<Shard>, points: Vec<Point>) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            timing: Timing {
                name: sweep.profile.name.clone(),
                sha256: sweep.profile_digest.clone(),
            },
            workload: sweep.workload.clone(),
            axes: sweep.axes.clone(),
            seed: sweep.seed,
            shard: shard.map(|shard| (shard.part, shard.of)),
            points,
        }
    }

    /// As it stands in a file.
    ///
    /// # Errors
    ///
    /// None that there should be: serde's.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// From a file's text; `path` names it in errors.
    ///
    /// # Errors
    ///
    /// [`MergeError::Unreadable`].
    pub fn parse(path: &str, text: &str) -> Result<Self, MergeError> {
        let unreadable = |reason| MergeError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let document: Self = serde_json::from_str(text)
            .map_err(|e| unreadable(format!("it is no output of offmap model: {e}")))?;
        if document.format != FORMAT {
            let reason = format!("format {}: this version reads {FORMAT}", document.format);
            return Err(unreadable(reason));
        }
        Ok(document)
    }

    /// The first field in which two are not of the same sweep.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let fields = [
            ("version", self.version == other.version),
            ("timing", self.timing == other.timing),
            ("workload", self.workload == other.workload),
            ("axes", self.axes == other.axes),
            ("seed", self.seed == other.seed),
            (
                "the number of parts",
                self.shard.map(|s| s.1) == other.shard.map(|s| s.1),
            ),
        ];
        fields
            .into_iter()
            .find(|(_, same)| !same)
            .map(|(field, _)| field)
    }

    /// How many points the whole sweep has.
    fn point_count(&self) -> u64 {
        let counts = self.axes.iter().map(|axis| axis.values.len() as u64);
        counts.fold(1u64, u64::saturating_mul)
    }
}

/// Puts parts together to what one run gives. Each comes with its file's name.
///
/// # Errors
///
/// [`MergeError`], where they are not all the parts of one sweep.
pub fn merge(parts: Vec<(String, Document)>) -> Result<Document, MergeError> {
    let (first_path, first) = parts.first().cloned().ok_or(MergeError::Nothing)?;
    let mut seen: Vec<(u32, String)> = Vec::new();
    let mut points: Vec<Point> = Vec::new();
    for (path, part) in parts {
        let Some((number, of)) = part.shard else {
            return Err(MergeError::Whole { path });
        };
        if let Some(field) = part.differs(&first) {
            return Err(MergeError::Different {
                path,
                other: first_path,
                field,
            });
        }
        let shard = Shard { part: number, of };
        let count = part.point_count();
        let sound = (1..=of).contains(&number) && count <= crate::sweep::POINTS_MAX;
        let there = part.points.iter().map(|point| point.index);
        if !sound || !there.eq((0..count).filter(|&index| shard.has(index))) {
            return Err(MergeError::Points {
                path,
                part: number,
                of,
            });
        }
        if let Some((_, other)) = seen.iter().find(|(part, _)| *part == number) {
            return Err(MergeError::Twice {
                part: number,
                of,
                path,
                other: other.clone(),
            });
        }
        seen.push((number, path));
        points.extend(part.points);
    }
    let of = first.shard.map_or(1, |(_, of)| of);
    let there: BTreeSet<u32> = seen.iter().map(|(part, _)| *part).collect();
    let missing: Vec<u32> = (1..=of).filter(|part| !there.contains(part)).collect();
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().take(8).map(u32::to_string).collect();
        let more = if missing.len() > 8 { " and more" } else { "" };
        return Err(MergeError::Missing {
            of,
            count: missing.len() as u32,
            list: list.join(", ") + more,
        });
    }
    points.sort_by_key(|point| point.index);
    Ok(Document {
        shard: None,
        points,
        ..first
    })
}
