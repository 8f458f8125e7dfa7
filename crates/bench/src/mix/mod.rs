//! Real mixes: workload files, and sequences of calls that are replayed.
//!
//! A file says what map there is, which keys come by and how often each call is made ([`MixFile`]). A seed makes a
//! [`Sequence`] of it, which every back end runs through, round and round, call for call the same. A sequence can be
//! written to a file and read again, and such a file may as well have come from elsewhere.

mod sequence;

pub use sequence::{Call, CallOp, Sequence, SequenceError};

use crate::workload::Kind;
use serde::Deserialize;
use std::path::Path;
use thiserror::Error;

/// The files that are built in, by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("deny-list", include_str!("../../workloads/deny-list.toml")),
    (
        "connections",
        include_str!("../../workloads/connections.toml"),
    ),
    ("routes", include_str!("../../workloads/routes.toml")),
];

/// Keys that a workload may have, at most.
pub const MOST_KEYS: usize = 16_000_000;

/// A workload file.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixFile {
    /// Format of the file: 1.
    pub format: u32,
    /// Its name in tables and the JSON.
    pub name: String,
    /// What it is, in a line.
    #[serde(default)]
    pub about: String,
    /// The map.
    pub map: MapShape,
    /// The keys.
    pub keys: Keys,
    /// The calls.
    #[serde(rename = "call")]
    pub calls: Vec<Weighted>,
}

/// The map of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapShape {
    /// Its type.
    #[serde(rename = "type")]
    pub map_type: Kind,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Entries that it has room for.
    pub max_entries: usize,
}

/// How keys are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyDraw {
    /// All alike.
    Uniform,
    /// By Zipf's law, the first key most.
    Zipf,
    /// By Zipf's law, the key that was inserted last most.
    Recent,
}

/// The keys of a workload.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// How many there are.
    pub count: usize,
    /// How many of them, the first ones, are stored before it begins.
    pub fill: usize,
    /// How they are drawn.
    pub draw: KeyDraw,
    /// The exponent of Zipf's law.
    #[serde(default = "one")]
    pub exponent: f64,
    /// Of a trie: lengths of prefixes and their weights. Without: all of 32 bits.
    #[serde(default)]
    pub prefixes: Vec<(u32, u32)>,
}

fn one() -> f64 {
    1.0
}

/// A call and its weight among the calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    /// The call.
    pub op: CallOp,
    /// Its weight.
    pub weight: u32,
}

/// Why a workload file is not usable.
#[derive(Debug, Error)]
pub enum MixError {
    /// There is no built-in workload and no file of that name.
    #[error(
        "there is no workload {name:?}: built in are deny-list, connections and routes, and the file cannot be read: {source}"
    )]
    Read {
        /// What was asked for.
        name: String,
        /// What the file system said.
        source: std::io::Error,
    },
    /// It is no such TOML; the message has the line.
    #[error("{name}: {source}")]
    Toml {
        /// The file.
        name: String,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be.
    #[error("{name}: {why}")]
    Value {
        /// The file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl MixFile {
    /// The built-in one of that name, or the file.
    ///
    /// # Errors
    ///
    /// [`MixError`], with a sentence.
    pub fn find(name: &str) -> Result<Self, MixError> {
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => Self::parse(name, text),
            None => {
                let text =
                    std::fs::read_to_string(Path::new(name)).map_err(|source| MixError::Read {
                        name: name.to_owned(),
                        source,
                    })?;
                Self::parse(name, &text)
            }
        }
    }

    /// From the text of a file.
    ///
    /// # Errors
    ///
    /// [`MixError`], with a sentence.
    pub fn parse(name: &str, text: &str) -> Result<Self, MixError> {
        let file: Self = toml::from_str(text).map_err(|source| MixError::Toml {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        match file.fault() {
            None => Ok(file),
            Some(why) => Err(MixError::Value {
                name: name.to_owned(),
                why,
            }),
        }
    }

    /// What cannot be.
    fn fault(&self) -> Option<String> {
        let (map, keys) = (&self.map, &self.keys);
        let trie = map.map_type == Kind::LpmTrie;
        let array = map.map_type == Kind::Array;
        let faults = [
            (self.format != 1, "format is 1".to_owned()),
            (
                !(4..=64).contains(&map.key_size),
                "map.key_size is from 4 to 64 bytes".to_owned(),
            ),
            (
                (array && map.key_size != 4) || (trie && map.key_size != 8),
                "map.key_size is 4 for an array and 8 for a trie".to_owned(),
            ),
            (
                !(1..=4096).contains(&map.value_size),
                "map.value_size is from 1 to 4,096 bytes".to_owned(),
            ),
            (
                !(1..=MOST_KEYS).contains(&map.max_entries),
                format!("map.max_entries is from 1 to {MOST_KEYS}"),
            ),
            (
                !(1..=MOST_KEYS).contains(&keys.count),
                format!("keys.count is from 1 to {MOST_KEYS}"),
            ),
            (
                keys.fill > keys.count || keys.fill > map.max_entries,
                "keys.fill is at most keys.count, and at most map.max_entries".to_owned(),
            ),
            (
                !(0.1..=5.0).contains(&keys.exponent),
                "keys.exponent is from 0.1 to 5".to_owned(),
            ),
            (
                !keys.prefixes.is_empty() && !trie,
                "keys.prefixes are for an lpm_trie".to_owned(),
            ),
            (
                keys.prefixes.iter().any(|(len, _)| !(8..=32).contains(len)),
                "a prefix in keys.prefixes has from 8 to 32 bits".to_owned(),
            ),
            (
                !keys.prefixes.is_empty() && keys.prefixes.iter().all(|(_, weight)| *weight == 0),
                "one of keys.prefixes has a weight that is not 0".to_owned(),
            ),
            (
                self.calls.iter().all(|call| call.weight == 0),
                "there is a [[call]] with a weight that is not 0".to_owned(),
            ),
        ];
        faults
            .into_iter()
            .find(|(fault, _)| *fault)
            .map(|(_, why)| why)
    }
}
