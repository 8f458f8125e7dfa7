//! Workloads as TOML files: the map, its keys, the host's commands, the NICs, and packets.
//!
//! docs/model.md describes the format; `crates/model/workloads` has the built-in ones.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use thiserror::Error;

/// The version of the format that this crate reads.
const FORMAT: u32 = 1;
/// Longest file in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most NICs.
pub const NICS_MAX: u32 = 64;
/// Most queue pairs of a NIC.
pub const QUEUES_MAX: u32 = 1023;
/// Most commands in flight on a queue pair.
pub const DEPTH_MAX: u32 = 4096;
/// Most elements of a command.
pub const BATCH_MAX: u32 = 4096;
/// Most commands in flight in all.
pub const IN_FLIGHT_MAX: u32 = 1 << 20;
/// Most operations of a run.
pub const OPERATIONS_MAX: u64 = 1_000_000_000;

/// The built-in workloads, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("deny-list", include_str!("../workloads/deny-list.toml")),
    ("connections", include_str!("../workloads/connections.toml")),
    ("routes", include_str!("../workloads/routes.toml")),
    ("fleet", include_str!("../workloads/fleet.toml")),
];

/// Why there is no workload.
#[derive(Debug, Error)]
pub enum WorkloadError {
    /// No built-in one has the name, and no file either.
    #[error("{name:?} is no built-in workload (they are {known}) and no file")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no workload.
    #[error("{path}, line {line}: {reason}")]
    Toml {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A field has a value that it cannot have.
    #[error("{what}: {field} is {value}; it is {expected}")]
    Field {
        /// The file, or a point of a sweep.
        what: String,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

/// A map type that is modelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapType {
    /// BPF_MAP_TYPE_HASH.
    Hash,
    /// BPF_MAP_TYPE_ARRAY.
    Array,
    /// BPF_MAP_TYPE_PERCPU_HASH.
    PercpuHash,
    /// BPF_MAP_TYPE_PERCPU_ARRAY.
    PercpuArray,
    /// BPF_MAP_TYPE_LRU_HASH.
    LruHash,
    /// BPF_MAP_TYPE_LRU_PERCPU_HASH.
    LruPercpuHash,
    /// BPF_MAP_TYPE_LPM_TRIE.
    LpmTrie,
}

impl MapType {
    /// Its number in the UAPI.
    pub const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array => 2,
            Self::PercpuHash => 5,
            Self::PercpuArray => 6,
            Self::LruHash => 9,
            Self::LruPercpuHash => 10,
            Self::LpmTrie => 11,
        }
    }

    /// Whether its values are one for each CPU.
    pub const fn is_percpu(self) -> bool {
        matches!(
            self,
            Self::PercpuHash | Self::PercpuArray | Self::LruPercpuHash
        )
    }

    /// Whether it is an array.
    pub const fn is_array(self) -> bool {
        matches!(self, Self::Array | Self::PercpuArray)
    }
}

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOp {
    /// A lookup.
    Lookup,
    /// An update of a key that is there.
    Update,
    /// An update of a key that is not.
    Insert,
    /// The deletion of a key that is there.
    Delete,
}

/// A kind of command, and how often it comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallShare {
    /// What it does.
    pub op: CallOp,
    /// How often it comes, among the weights of all.
    pub weight: u32,
}

/// The map.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapPart {
    /// Its type.
    #[serde(rename = "type")]
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU.
    pub value_size: u32,
    /// Entries that it has room for, on all NICs together where they divide it.
    pub max_entries: u32,
    /// Share of them that is there.
    #[serde(default = "one")]
    pub fill: f64,
    /// CPUs of the host, for per-CPU types.
    #[serde(default = "sixteen")]
    pub cpus: u32,
    /// Of a trie: lengths of prefixes, and how often each comes. Where none is given all have full length.
    #[serde(default)]
    pub prefixes: Vec<(u32, u32)>,
}

/// A few entries that are asked for most.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hot {
    /// Share of accesses.
    pub accesses: f64,
    /// Share of entries that they go to.
    pub entries: f64,
}

/// Which keys are asked for.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysPart {
    /// Share of lookups whose key is there.
    #[serde(default = "one")]
    pub hit_rate: f64,
    /// Entries that are asked for most; all alike where it is not given.
    #[serde(default)]
    pub hot: Option<Hot>,
}

/// The host's threads.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostPart {
    /// Queue pairs of each NIC, each with a thread of its own.
    pub queues: u32,
    /// Commands in flight on a queue pair, at most.
    pub depth: u32,
    /// Elements of a command.
    pub batch: u32,
    /// Commands that one doorbell tells of, at most.
    pub doorbell: u32,
    /// Commands a second in all, of an open load; without it the next command comes when one has ended.
    pub rate: Option<u64>,
    /// A thread's nanoseconds to make a command and store it.
    pub submit_ns: u32,
    /// A thread's nanoseconds to take a completion in.
    pub complete_ns: u32,
    /// Completions wake a thread by interrupt; otherwise threads poll.
    pub interrupts: bool,
    /// Host memory is on another NUMA node than the NIC.
    pub remote_node: bool,
    /// KiB of host memory that DMA goes to, of which the IOTLB holds a part; 0: all of it.
    pub buffers_kib: u64,
}

impl Default for HostPart {
    fn default() -> Self {
        Self {
            queues: 1,
            depth: 1,
            batch: 1,
            doorbell: 16,
            rate: None,
            submit_ns: 60,
            complete_ns: 40,
            interrupts: false,
            remote_node: false,
            buffers_kib: 0,
        }
    }
}

/// How several NICs share a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Each has a part of the entries.
    Divided,
    /// Each has all of them.
    Copied,
}

/// The NICs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NicPart {
    /// How many.
    pub count: u32,
    /// How they share the map.
    pub share: Share,
    /// Engines of each, where not as the timing profile says.
    pub engines: Option<u32>,
    /// Elements of a batch whose accesses an engine has under way side by side.
    pub overlap: u32,
    /// `auto`, the name of a tier, or `INDEX/ENTRIES`, two names.
    pub placement: String,
    /// `genGxL`, where not as the timing profile says.
    pub pcie: Option<String>,
}

impl Default for NicPart {
    fn default() -> Self {
        Self {
            count: 1,
            share: Share::Divided,
            engines: None,
            overlap: 1,
            placement: "auto".into(),
            pcie: None,
        }
    }
}

/// How packets come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// After exponentially distributed gaps.
    Poisson,
    /// After gaps that are all alike.
    Even,
}

/// What comes from the network.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketsPart {
    /// Millions a second, at all NICs together.
    pub mpps: f64,
    /// How they come.
    #[serde(default = "poisson")]
    pub arrivals: Arrivals,
    /// Packets that wait for an engine at most.
    #[serde(default = "queue")]
    pub queue: u32,
    /// An engine's cycles for a packet besides the map.
    #[serde(default = "cycles")]
    pub cycles: u32,
    /// Lookups for each packet.
    pub lookups: u32,
    /// Updates of a value that is there, for each packet.
    pub updates: u32,
}

fn one() -> f64 {
    1.0
}
fn sixteen() -> u32 {
    16
}
fn queue() -> u32 {
    64
}
fn cycles() -> u32 {
    100
}
fn poisson() -> Arrivals {
    Arrivals::Poisson
}
fn operations() -> u64 {
    100_000
}

/// A workload.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The version of the format.
    pub format: u32,
    /// Its name.
    pub name: String,
    /// What it is, in a line.
    #[serde(default)]
    pub about: String,
    /// Commands and packets of a run, in all.
    #[serde(default = "operations")]
    pub operations: u64,
    /// The map.
    pub map: MapPart,
    /// Its keys.
    #[serde(default = "all_there")]
    pub keys: KeysPart,
    /// The host.
    #[serde(default)]
    pub host: HostPart,
    /// What commands do.
    #[serde(default)]
    pub call: Vec<CallShare>,
    /// The NICs.
    #[serde(default)]
    pub nic: NicPart,
    /// What comes from the network.
    #[serde(default)]
    pub packets: Option<PacketsPart>,
}

fn all_there() -> KeysPart {
    KeysPart {
        hit_rate: 1.0,
        hot: None,
    }
}

/// The built-in workloads: name, and what it is.
pub fn built_in() -> Vec<(&'static str, String)> {
    let parsed = BUILT_IN
        .iter()
        .map(|(name, text)| (*name, parse(name, text)));
    parsed
        .filter_map(|(name, parsed)| Some((name, parsed.ok()?.about)))
        .collect()
}

/// The workload that a name or a path stands for: a built-in one first.
///
/// # Errors
///
/// [`WorkloadError`].
pub fn find(name_or_path: &str) -> Result<Workload, WorkloadError> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
        return parse(name, text);
    }
    if !name_or_path.contains(['/', '.']) && !std::path::Path::new(name_or_path).exists() {
        let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(WorkloadError::Unknown {
            name: name_or_path.to_owned(),
            known: known.join(", "),
        });
    }
    let failed = |source| WorkloadError::Read {
        path: name_or_path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(name_or_path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    parse(name_or_path, &text)
}

/// The workload in a text; `what` names it in errors.
///
/// # Errors
///
/// [`WorkloadError::Toml`], [`WorkloadError::Field`].
pub fn parse(what: &str, text: &str) -> Result<Workload, WorkloadError> {
    let toml = |line, reason| WorkloadError::Toml {
        path: what.to_owned(),
        line,
        reason,
    };
    if text.len() as u64 > FILE_BYTES_MAX {
        let reason =
            format!("the file has more than {FILE_BYTES_MAX} bytes, which no workload needs");
        return Err(toml(1, reason));
    }
    let mut workload: Workload = toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..at]
            .iter()
            .filter(|&&b| b == b'\n')
            .count();
        toml(
            line,
            e.message().lines().next().unwrap_or("no TOML").to_owned(),
        )
    })?;
    workload.check(what)?;
    workload.normalise();
    Ok(workload)
}

impl Workload {
    /// Rounds shares and rates to the sixth digit behind the point: what is written to a file is then read
    /// again as the same number, whoever reads it.
    pub fn normalise(&mut self) {
        let round = |share: &mut f64| *share = (*share * 1e6).round() / 1e6;
        round(&mut self.map.fill);
        round(&mut self.keys.hit_rate);
        if let Some(hot) = &mut self.keys.hot {
            round(&mut hot.accesses);
            round(&mut hot.entries);
        }
        if let Some(packets) = &mut self.packets {
            round(&mut packets.mpps);
        }
    }

    /// Whether it can be run; `what` names it in errors. Whether the map can be, and whether the
    /// timing profile has the tiers, is seen later.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Field`].
    pub fn check(&self, what: &str) -> Result<(), WorkloadError> {
        let bad = |field, value: &dyn std::fmt::Display, expected| {
            Err(WorkloadError::Field {
                what: what.to_owned(),
                field,
                value: value.to_string(),
                expected,
            })
        };
        macro_rules! check {
            ($ok:expr, $field:literal, $value:expr, $expected:literal) => {
                if !$ok {
                    return bad($field, &$value, $expected);
                }
            };
        }
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let (map, host, nic) = (&self.map, &self.host, &self.nic);
        check!(self.format == FORMAT, "format", self.format, "1");
        check!(
            (100..=OPERATIONS_MAX).contains(&self.operations),
            "operations",
            self.operations,
            "from 100 to 1,000,000,000"
        );
        check!(
            (1..=65_536).contains(&map.key_size),
            "map.key_size",
            map.key_size,
            "from 1 to 65,536"
        );
        if map.map_type == MapType::LpmTrie {
            check!(
                (5..=260).contains(&map.key_size),
                "map.key_size",
                map.key_size,
                "from 5 to 260 for an lpm_trie: 4 bytes of length, and the bits"
            );
        }
        check!(
            (1..=1 << 20).contains(&map.value_size),
            "map.value_size",
            map.value_size,
            "from 1 to 1,048,576"
        );
        check!(
            (1..=1 << 31).contains(&map.max_entries),
            "map.max_entries",
            map.max_entries,
            "from 1 to 2,147,483,648"
        );
        check!(
            share(map.fill) && map.fill > 0.0,
            "map.fill",
            map.fill,
            "a share above 0, up to 1"
        );
        check!(
            (1..=1024).contains(&map.cpus),
            "map.cpus",
            map.cpus,
            "from 1 to 1,024"
        );
        let slots = if map.map_type.is_percpu() {
            map.cpus
        } else {
            1
        };
        let whole = u64::from(map.value_size).next_multiple_of(8) * u64::from(slots);
        check!(
            whole <= 4 << 20,
            "map.value_size times map.cpus",
            whole,
            "at most 4 MiB"
        );
        check!(
            (whole + u64::from(map.key_size)) * u64::from(host.batch) <= 1 << 28,
            "host.batch",
            host.batch,
            "fewer elements: keys and values of a command have at most 256 MiB"
        );
        check!(
            map.prefixes.is_empty() || map.map_type == MapType::LpmTrie,
            "map.prefixes",
            "given",
            "for an lpm_trie alone"
        );
        let bits = map.key_size.saturating_sub(4) * 8;
        for (length, weight) in &map.prefixes {
            check!(
                (1..=bits).contains(length) && (1..=1_000_000).contains(weight),
                "map.prefixes",
                format!("[{length}, {weight}]"),
                "pairs of a length, from 1 to the key's bits, and a weight, from 1 to 1,000,000"
            );
        }
        check!(
            map.prefixes.len() <= 256,
            "map.prefixes",
            format!("{} pairs", map.prefixes.len()),
            "at most 256 pairs"
        );
        check!(
            share(self.keys.hit_rate),
            "keys.hit_rate",
            self.keys.hit_rate,
            "a share from 0 to 1"
        );
        if let Some(hot) = &self.keys.hot {
            check!(
                share(hot.accesses) && share(hot.entries) && hot.entries > 0.0,
                "keys.hot",
                format!("{} of accesses to {} of entries", hot.accesses, hot.entries),
                "two shares from 0 to 1, of which the entries' is above 0"
            );
        }
        check!(
            (1..=QUEUES_MAX).contains(&host.queues),
            "host.queues",
            host.queues,
            "from 1 to 1,023"
        );
        check!(
            (1..=DEPTH_MAX).contains(&host.depth),
            "host.depth",
            host.depth,
            "from 1 to 4,096"
        );
        check!(
            (1..=BATCH_MAX).contains(&host.batch),
            "host.batch",
            host.batch,
            "from 1 to 4,096"
        );
        check!(
            (1..=DEPTH_MAX).contains(&host.doorbell),
            "host.doorbell",
            host.doorbell,
            "from 1 to 4,096"
        );
        check!(
            host.rate
                .is_none_or(|rate| (1..=1_000_000_000_000).contains(&rate)),
            "host.rate",
            host.rate.unwrap_or(0),
            "from 1 to a million million commands a second"
        );
        check!(
            host.submit_ns <= 1_000_000 && host.complete_ns <= 1_000_000,
            "host.submit_ns or host.complete_ns",
            host.submit_ns.max(host.complete_ns),
            "at most a millisecond"
        );
        check!(
            host.buffers_kib <= 1 << 40,
            "host.buffers_kib",
            host.buffers_kib,
            "at most 2^40"
        );
        check!(
            (1..=NICS_MAX).contains(&nic.count),
            "nic.count",
            nic.count,
            "from 1 to 64"
        );
        check!(
            nic.engines.is_none_or(|n| (1..=4096).contains(&n)),
            "nic.engines",
            nic.engines.unwrap_or(0),
            "from 1 to 4,096"
        );
        check!(
            (1..=64).contains(&nic.overlap),
            "nic.overlap",
            nic.overlap,
            "from 1 to 64"
        );
        let in_flight = u64::from(nic.count) * u64::from(host.queues) * u64::from(host.depth);
        check!(
            in_flight <= IN_FLIGHT_MAX.into(),
            "nic.count times host.queues times host.depth",
            in_flight,
            "at most 1,048,576"
        );
        check!(
            !self.call.is_empty() || self.packets.is_some(),
            "call",
            "empty",
            "a list of [[call]], or there are [packets]"
        );
        check!(
            self.call.len() <= 16,
            "call",
            format!("{} long", self.call.len()),
            "at most 16 kinds of command"
        );
        for call in &self.call {
            check!(
                (1..=1_000_000).contains(&call.weight),
                "call.weight",
                call.weight,
                "from 1 to 1,000,000"
            );
            check!(
                !map.map_type.is_array() || matches!(call.op, CallOp::Lookup | CallOp::Update),
                "call.op",
                "insert or delete",
                "lookup or update for an array, in which all entries are there"
            );
        }
        if let Some(packets) = &self.packets {
            check!(
                (0.000_001..=1e6).contains(&packets.mpps),
                "packets.mpps",
                packets.mpps,
                "from 0.000001 to 1,000,000 million packets a second"
            );
            check!(
                (1..=1 << 16).contains(&packets.queue),
                "packets.queue",
                packets.queue,
                "from 1 to 65,536"
            );
            check!(
                packets.cycles <= 1_000_000,
                "packets.cycles",
                packets.cycles,
                "at most 1,000,000"
            );
            check!(
                packets.lookups <= 64 && packets.updates <= 64,
                "packets.lookups or packets.updates",
                packets.lookups.max(packets.updates),
                "at most 64"
            );
        }
        Ok(())
    }
}
