//! Sweeps: a grid of points over a workload, run in parts and by several threads with the same result.

use crate::profile::ProfileFile;
use crate::report::{Document, Point, PointResult};
use crate::resolve::{Costs, resolve};
use crate::system::simulate;
use crate::workload::{Workload, WorkloadError};
use offmap_firmware_model::time::profile::TimingProfile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Most points of a sweep.
pub const POINTS_MAX: u64 = 100_000;
/// Most values of an axis.
pub const VALUES_MAX: usize = 1000;

/// What can be swept: name, and what its values are.
pub const AXES: &[(&str, &str)] = &[
    (
        "type",
        "map type: hash, array, percpu_hash, percpu_array, lru_hash, lru_percpu_hash, lpm_trie",
    ),
    ("entries", "max_entries of the map"),
    ("key_size", "bytes of a key"),
    ("value_size", "bytes of a value"),
    ("fill", "share of the entries that is there"),
    ("hit_rate", "share of lookups whose key is there"),
    ("depth", "commands in flight on a queue pair"),
    ("batch", "elements of a command"),
    ("doorbell", "commands that one doorbell tells of"),
    ("queues", "queue pairs of each NIC"),
    (
        "rate",
        "commands a second in all, of an open load; closed: the next when one has ended",
    ),
    ("placement", "auto, a tier, or INDEX/ENTRIES"),
    ("pcie", "generation and lanes, as in gen4x8"),
    ("nics", "NICs"),
    ("engines", "engines of each NIC"),
    ("overlap", "elements of a batch side by side"),
    ("mpps", "millions of packets a second, at all NICs together"),
];

/// An axis of a sweep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// One of [`AXES`].
    pub name: String,
    /// Its values, as they were written.
    pub values: Vec<String>,
}

/// Why there is no sweep.
#[derive(Debug, Error)]
pub enum SweepError {
    /// It is not written as an axis.
    #[error("{0:?} is no axis: it is written AXIS=V1,V2, as in depth=1,4,16")]
    Text(String),
    /// There is no such axis.
    #[error("there is no axis {name:?}; there are {known}")]
    Axis {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// An axis is named twice.
    #[error("the axis {0} is given twice; give all of its values at once")]
    Twice(String),
    /// A value is given twice.
    #[error("the axis {axis} has the value {value} twice")]
    Value {
        /// The axis.
        axis: String,
        /// The value.
        value: String,
    },
    /// A value cannot be read.
    #[error("{axis}={value}: it is {expected}")]
    Unreadable {
        /// The axis.
        axis: String,
        /// The value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A point cannot be run.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// There are too many points.
    #[error("the sweep has {0} points, more than 100,000; sweep fewer values at a time")]
    Points(u64),
    /// There are too many values.
    #[error("the axis {axis} has {count} values, more than 1,000")]
    Values {
        /// The axis.
        axis: String,
        /// How many.
        count: usize,
    },
    /// It is not written as a part.
    #[error("the shard {0:?} is written I/N, as in 2/8: from 1/N to N/N, and N is at most 100,000")]
    Shard(String),
}

/// A part of a sweep: the points whose index leaves that remainder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Which one, from 1.
    pub part: u32,
    /// Of how many.
    pub of: u32,
}

impl Shard {
    /// From `I/N`.
    ///
    /// # Errors
    ///
    /// [`SweepError::Shard`].
    pub fn parse(text: &str) -> Result<Self, SweepError> {
        let read = || {
            let (part, of) = text.split_once('/')?;
            let (part, of) = (part.parse().ok()?, of.parse().ok()?);
            let fits = (1..=of).contains(&part) && u64::from(of) <= POINTS_MAX;
            fits.then_some(Self { part, of })
        };
        read().ok_or_else(|| SweepError::Shard(text.to_owned()))
    }

    /// Whether a point belongs to it.
    pub fn has(self, index: u64) -> bool {
        index % u64::from(self.of) == u64::from(self.part) - 1
    }
}

impl Axis {
    /// From `AXIS=V1,V2,…`.
    ///
    /// # Errors
    ///
    /// [`SweepError`].
    pub fn parse(text: &str) -> Result<Self, SweepError> {
        let bad = || SweepError::Text(text.to_owned());
        let (name, values) = text.split_once('=').ok_or_else(bad)?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        if values.iter().any(String::is_empty) {
            return Err(bad());
        }
        let axis = Self {
            name: name.trim().to_owned(),
            values,
        };
        axis.check()?;
        Ok(axis)
    }

    fn check(&self) -> Result<(), SweepError> {
        if !AXES.iter().any(|(name, _)| *name == self.name) {
            let known: Vec<&str> = AXES.iter().map(|(name, _)| *name).collect();
            return Err(SweepError::Axis {
                name: self.name.clone(),
                known: known.join(", "),
            });
        }
        if self.values.len() > VALUES_MAX {
            return Err(SweepError::Values {
                axis: self.name.clone(),
                count: self.values.len(),
            });
        }
        for (n, value) in self.values.iter().enumerate() {
            if self.values[..n].contains(value) {
                return Err(SweepError::Value {
                    axis: self.name.clone(),
                    value: value.clone(),
                });
            }
        }
        Ok(())
    }
}

/// A value as a number; underscores part its digits.
fn number<T: std::str::FromStr>(
    axis: &str,
    value: &str,
    expected: &'static str,
) -> Result<T, SweepError> {
    let plain = value.replace('_', "");
    plain.parse().map_err(|_| SweepError::Unreadable {
        axis: axis.to_owned(),
        value: value.to_owned(),
        expected,
    })
}

/// Puts a value of an axis into a workload.
fn set(workload: &mut Workload, axis: &str, value: &str) -> Result<(), SweepError> {
    const WHOLE: &str = "a whole number";
    const SHARE: &str = "a share from 0 to 1";
    let unreadable = |expected| SweepError::Unreadable {
        axis: axis.to_owned(),
        value: value.to_owned(),
        expected,
    };
    match axis {
        "type" => {
            let parsed = serde_json::from_value(serde_json::Value::String(value.to_owned()));
            workload.map.map_type = parsed.map_err(|_| {
                unreadable(
                    "hash, array, percpu_hash, percpu_array, lru_hash, lru_percpu_hash or lpm_trie",
                )
            })?;
        }
        "entries" => workload.map.max_entries = number(axis, value, WHOLE)?,
        "key_size" => workload.map.key_size = number(axis, value, WHOLE)?,
        "value_size" => workload.map.value_size = number(axis, value, WHOLE)?,
        "fill" => workload.map.fill = number(axis, value, SHARE)?,
        "hit_rate" => workload.keys.hit_rate = number(axis, value, SHARE)?,
        "depth" => workload.host.depth = number(axis, value, WHOLE)?,
        "batch" => workload.host.batch = number(axis, value, WHOLE)?,
        "doorbell" => workload.host.doorbell = number(axis, value, WHOLE)?,
        "queues" => workload.host.queues = number(axis, value, WHOLE)?,
        "rate" => {
            workload.host.rate = match value {
                "closed" => None,
                _ => Some(number(
                    axis,
                    value,
                    "a whole number of commands a second, or closed",
                )?),
            }
        }
        "placement" => workload.nic.placement = value.to_owned(),
        "pcie" => workload.nic.pcie = Some(value.to_owned()),
        "nics" => workload.nic.count = number(axis, value, WHOLE)?,
        "engines" => workload.nic.engines = Some(number(axis, value, WHOLE)?),
        "overlap" => workload.nic.overlap = number(axis, value, WHOLE)?,
        "mpps" => {
            let mpps = number(axis, value, "millions of packets a second")?;
            match &mut workload.packets {
                Some(packets) => packets.mpps = mpps,
                None => {
                    return Err(unreadable(
                        "for workloads with [packets]; this one has none",
                    ));
                }
            }
        }
        _ => unreachable!("axes are checked when they are read"),
    }
    Ok(())
}

/// What tells a timing profile from others: SHA-256 of its figures, in hexadecimal.
pub fn digest(file: &ProfileFile) -> String {
    let mut hash = Sha256::new();
    for figure in &file.figures {
        hash.update(format!("{}={}\n", figure.name, figure.value));
    }
    let hash = hash.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A sweep: all that a point needs.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The hardware.
    pub profile: TimingProfile,
    /// What tells this timing profile from others: its [`digest`].
    pub profile_digest: String,
    /// What is done on it, where no axis says otherwise.
    pub workload: Workload,
    /// The axes; the last one varies fastest.
    pub axes: Vec<Axis>,
    /// Seed of all random numbers.
    pub seed: u64,
}

impl Sweep {
    /// How many points it has.
    ///
    /// # Errors
    ///
    /// [`SweepError`], where an axis comes twice, a point cannot be, or there are too many.
    pub fn check(&self) -> Result<u64, SweepError> {
        for (n, axis) in self.axes.iter().enumerate() {
            axis.check()?;
            if self.axes[..n].iter().any(|other| other.name == axis.name) {
                return Err(SweepError::Twice(axis.name.clone()));
            }
        }
        let points = self.axes.iter().map(|axis| axis.values.len() as u64);
        let points = points.fold(1u64, u64::saturating_mul);
        if points > POINTS_MAX {
            return Err(SweepError::Points(points));
        }
        for index in 0..points {
            self.workload_at(&self.at(index))?;
        }
        Ok(points)
    }

    /// The coordinates of a point.
    pub fn at(&self, index: u64) -> Vec<String> {
        let mut rest = index;
        let mut at: Vec<String> = Vec::with_capacity(self.axes.len());
        for axis in self.axes.iter().rev() {
            let count = axis.values.len() as u64;
            at.push(axis.values[(rest % count) as usize].clone());
            rest /= count;
        }
        at.reverse();
        at
    }

    /// A point's name: its coordinates with the names of their axes.
    fn name(&self, at: &[String]) -> String {
        let pairs = self.axes.iter().zip(at);
        let pairs: Vec<String> = pairs
            .map(|(axis, value)| format!("{}={value}", axis.name))
            .collect();
        match pairs.is_empty() {
            true => self.workload.name.clone(),
            false => pairs.join(" "),
        }
    }

    fn workload_at(&self, at: &[String]) -> Result<Workload, SweepError> {
        let mut workload = self.workload.clone();
        for (axis, value) in self.axes.iter().zip(at) {
            set(&mut workload, &axis.name, value)?;
        }
        workload.check(&self.name(at))?;
        workload.normalise();
        Ok(workload)
    }

    /// The seed of a point: it follows from the sweep's and from where the point is, so that whoever
    /// runs it has the same.
    pub fn seed_of(&self, at: &[String]) -> u64 {
        // FNV-1a, with an end behind each text.
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ crate::des::random::mix(self.seed);
        for (axis, value) in self.axes.iter().zip(at) {
            for byte in axis.name.bytes().chain([0]).chain(value.bytes()).chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        crate::des::random::mix(hash)
    }

    /// Runs one point.
    fn point(&self, index: u64, costs: &Costs) -> Result<Point, SweepError> {
        let at = self.at(index);
        let workload = self.workload_at(&at)?;
        let seed = self.seed_of(&at);
        let (refused, result) = match resolve(&self.profile, &workload, costs) {
            Err(error) => (Some(error.to_string()), None),
            Ok(resolved) => {
                let outcome = simulate(&resolved.machine, seed, resolved.operations);
                (None, Some(PointResult::new(&resolved, &outcome)))
            }
        };
        Ok(Point {
            index,
            at,
            seed: format!("{seed:016x}"),
            refused,
            result,
        })
    }

    /// Runs all points, or those of a part, with so many threads. `progress` hears after each how
    /// many are done.
    ///
    /// # Errors
    ///
    /// [`SweepError`]; a point that the hardware does not admit is none, and says so itself.
    pub fn run(
        &self,
        shard: Option<Shard>,
        jobs: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Document, SweepError> {
        let points = self.check()?;
        let indexes = (0..points).filter(|&index| shard.is_none_or(|shard| shard.has(index)));
        let indexes: Vec<u64> = indexes.collect();
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let results = Mutex::new(Vec::with_capacity(indexes.len()));
        let costs = Costs::default();
        let work = || {
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let Some(&index) = indexes.get(turn as usize) else {
                    return;
                };
                let point = self.point(index, &costs);
                results
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(point);
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..jobs.clamp(1, indexes.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut points: Vec<Point> = results.into_iter().collect::<Result<_, _>>()?;
        points.sort_by_key(|point| point.index);
        Ok(Document::new(self, shard, points))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_read_and_what_is_wrong_is_said() {
        let axis = Axis::parse("depth=1, 4,16").unwrap();
        assert_eq!(axis.values, ["1", "4", "16"]);
        for (text, said) in [
            ("depth", "AXIS=V1,V2"),
            ("depth=", "AXIS=V1,V2"),
            ("depth=1,,2", "AXIS=V1,V2"),
            ("height=1", "there is no axis"),
            ("depth=1,1", "twice"),
        ] {
            let error = Axis::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for text in ["0/2", "3/2", "x", "1/0", "1/100001"] {
            assert!(Shard::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parts_have_each_point_once() {
        for of in 1..7 {
            for index in 0..40 {
                let has = (1..=of).filter(|&part| Shard { part, of }.has(index));
                assert_eq!(has.count(), 1);
            }
        }
    }
}
