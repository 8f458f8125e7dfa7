//! What MAP_ALLOC is checked for before the device is asked.

use super::Profile;
use super::words::flag_list;
use offmap_bpf::device::MapSpec;
use offmap_bpf::{Errno, Error};

/// One check with its error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocRule {
    /// What is checked.
    pub check: AllocCheck,
    /// What a map that fails gets.
    pub errno: Errno,
}

/// The closed list of checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocCheck {
    /// The device accepts maps at this time: netdevsim's switch `bpf_map_accept`.
    AcceptSwitch,
    /// The device has any map type that the profile admits.
    NoMaps,
    /// The type is one of the profile's and one of the device's.
    MapType,
    /// All flags are the profile's.
    Flags,
    /// No NUMA node is given.
    NumaNode,
    /// Fewer maps than this exist.
    MaxMaps {
        /// Most maps at a time.
        limit: u32,
    },
    /// `max_entries` of all maps together.
    ElementBudget {
        /// Most of them.
        limit: u64,
    },
    /// `max_entries` of one map.
    MaxEntries {
        /// Most of them.
        limit: u32,
    },
    /// Key and value together, each rounded up.
    ElementSize {
        /// Most bytes.
        limit: u32,
        /// To a multiple of this, a power of two.
        round: u32,
    },
    /// Bytes of the key.
    KeySize {
        /// Most of them.
        limit: u32,
    },
    /// Bytes of the value, of one CPU for per-CPU types.
    ValueSize {
        /// Most of them.
        limit: u32,
    },
}

impl AllocCheck {
    /// Its word in a profile file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::AcceptSwitch => "accept_switch",
            Self::NoMaps => "no_maps",
            Self::MapType => "map_type",
            Self::Flags => "flags",
            Self::NumaNode => "numa_node",
            Self::MaxMaps { .. } => "max_maps",
            Self::ElementBudget { .. } => "element_budget",
            Self::MaxEntries { .. } => "max_entries",
            Self::ElementSize { .. } => "element_size",
            Self::KeySize { .. } => "key_size",
            Self::ValueSize { .. } => "value_size",
        }
    }

    /// What it admits, in words, for a list of a profile's limits.
    pub fn meaning(self) -> String {
        match self {
            Self::AcceptSwitch => "the device is switched to accept maps".into(),
            Self::NoMaps => "the device has any of the map types".into(),
            Self::MapType => "the map type is one of these".into(),
            Self::Flags => "the map flags are among these".into(),
            Self::NumaNode => "no NUMA node is given".into(),
            Self::MaxMaps { limit } => format!("at most {} maps", grouped(limit.into())),
            Self::ElementBudget { limit } => {
                format!("at most {} elements in all maps together", grouped(limit))
            }
            Self::MaxEntries { limit } => {
                format!("max_entries at most {}", grouped(limit.into()))
            }
            Self::ElementSize { limit, round } => format!(
                "key and value, each rounded up to {round}, at most {} bytes together",
                grouped(limit.into())
            ),
            Self::KeySize { limit } => format!("key_size at most {}", grouped(limit.into())),
            Self::ValueSize { limit } => format!("value_size at most {}", grouped(limit.into())),
        }
    }
}

/// What a profile counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Maps that exist.
    pub maps: u32,
    /// The sum of their `max_entries`.
    pub elements: u64,
}

/// What the checks depend on beside the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Situation {
    /// Map types of the device, bit `n` for type `n`.
    pub device_types: u64,
    /// The device accepts maps.
    pub accepting: bool,
    /// What is in use.
    pub used: Usage,
}

impl Profile {
    /// Checks what can be said without asking the device, in the profile's order.
    ///
    /// # Errors
    ///
    /// The first check's that fails: its error number, and a sentence that names the attribute,
    /// the limit and the profile.
    pub fn check(&self, spec: &MapSpec, situation: &Situation) -> Result<(), Error> {
        for rule in &self.alloc {
            if let Some(reason) = self.fault(rule.check, spec, situation) {
                return Err(Error::because(rule.errno, reason));
            }
        }
        Ok(())
    }

    fn fault(&self, check: AllocCheck, spec: &MapSpec, situation: &Situation) -> Option<String> {
        let name = &self.name;
        let over = |what: &str, value: u64, limit: u64, unit: &str| {
            (value > limit).then(|| {
                format!(
                    "{what} {} exceeds the {}{unit} that profile {name} allows",
                    grouped(value),
                    grouped(limit)
                )
            })
        };
        let used = situation.used;
        match check {
            AllocCheck::AcceptSwitch => (!situation.accepting).then(|| {
                format!("the device is switched not to accept maps, which profile {name} allows")
            }),
            AllocCheck::NoMaps => (self.map_types & situation.device_types == 0).then(|| {
                format!("profile {name} and the device have no map type in common to offload")
            }),
            AllocCheck::MapType => self
                .type_refusal(spec.map_type, situation.device_types)
                .map(|why| format!("map_type {}: {why}", spec.map_type)),
            AllocCheck::Flags => self.flag_fault(spec),
            AllocCheck::NumaNode => spec
                .numa_node
                .map(|node| format!("numa_node {node}: profile {name} takes no NUMA node")),
            AllocCheck::MaxMaps { limit } => (used.maps >= limit).then(|| {
                format!(
                    "profile {name} allows {}, and {} {} already",
                    count(limit.into(), "map"),
                    grouped(used.maps.into()),
                    if used.maps == 1 { "exists" } else { "exist" }
                )
            }),
            AllocCheck::ElementBudget { limit } => {
                let (asked, left) = (
                    u64::from(spec.max_entries),
                    limit.saturating_sub(used.elements),
                );
                (asked > left).then(|| {
                    format!(
                        "max_entries {} exceeds the {} elements that profile {name} has left \
                         ({} of {} used by {})",
                        grouped(asked),
                        grouped(left),
                        grouped(used.elements),
                        grouped(limit),
                        count(used.maps.into(), "map")
                    )
                })
            }
            AllocCheck::MaxEntries { limit } => over(
                "max_entries",
                spec.max_entries.into(),
                limit.into(),
                if limit == 1 { " entry" } else { " entries" },
            ),
            AllocCheck::ElementSize { limit, round } => {
                let rounded = |n: u32| u64::from(n).next_multiple_of(round.into());
                let both = rounded(spec.key_size) + rounded(spec.value_size);
                (both > u64::from(limit)).then(|| {
                    format!(
                        "key_size {} and value_size {}, each rounded up to a multiple of {round}, \
                         take {} bytes together and exceed the {} bytes that profile {name} allows",
                        grouped(spec.key_size.into()),
                        grouped(spec.value_size.into()),
                        grouped(both),
                        grouped(limit.into())
                    )
                })
            }
            AllocCheck::KeySize { limit } => {
                over("key_size", spec.key_size.into(), limit.into(), " bytes")
            }
            AllocCheck::ValueSize { limit } => {
                over("value_size", spec.value_size.into(), limit.into(), " bytes")
            }
        }
    }

    fn flag_fault(&self, spec: &MapSpec) -> Option<String> {
        let refused = spec.map_flags.difference(self.flags);
        if refused.is_empty() {
            return None;
        }
        let known = self
            .flag_reasons
            .iter()
            .find(|known| refused.intersects(known.flag));
        Some(match known {
            Some(known) => format!(
                "map_flags {:#x}: profile {} does not take {}: {}",
                spec.map_flags.bits(),
                self.name,
                flag_list(known.flag),
                known.reason
            ),
            None => format!(
                "map_flags {:#x}: profile {} does not take {} (it takes {})",
                spec.map_flags.bits(),
                self.name,
                flag_list(refused),
                flag_list(self.flags)
            ),
        })
    }
}

fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// `n` with a comma between groups of three digits.
pub(super) fn grouped(n: u64) -> String {
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
