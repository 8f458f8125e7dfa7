//! The ratios that have names, and what they should reach.

use crate::blocks::{Samples, median};
use crate::plan::Group;
use crate::sides::BackEnd::{
    self, BareRing, CoreRtt, Hashbrown, Inline, Kernel, Mirror, Table, Threaded, VfioUser,
};
use serde::{Deserialize, Serialize};

/// What a ratio should reach.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// No more than that.
    AtMost(f64),
    /// No less than that.
    AtLeast(f64),
    /// It is for information.
    None,
}

impl Bar {
    /// Whether a value reaches it; `None` where there is no bar.
    pub fn holds(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(bar) => Some(value <= bar),
            Self::AtLeast(bar) => Some(value >= bar),
            Self::None => None,
        }
    }
}

/// How a ratio is had from samples.
enum Rule {
    /// One side of a group to another.
    Sides(&'static str, BackEnd, BackEnd),
    /// One side of a group to the slower of two others, turn by turn.
    Slower(&'static str, usize, BackEnd, [BackEnd; 2]),
    /// A ratio of a group, to the same ratio of another group.
    Growth([&'static str; 2], BackEnd, BackEnd),
}

/// A ratio that has a name.
pub struct Named {
    /// Its name in the JSON.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What it should reach.
    pub bar: Bar,
    rule: Rule,
}

/// All of them.
pub const NAMED: &[Named] = &[
    Named {
        name: "firmware_lookup_vs_hashbrown",
        meaning: "device table called on this thread / plain hash table",
        bar: Bar::AtMost(1.5),
        rule: Rule::Sides("lookup", Table, Hashbrown),
    },
    Named {
        name: "inline_lookup_vs_hashbrown",
        meaning: "offloaded inline lookup / plain hash table",
        bar: Bar::AtMost(4.5),
        rule: Rule::Sides("lookup", Inline, Hashbrown),
    },
    Named {
        name: "threaded_lookup_vs_core_rtt",
        meaning: "offloaded threaded lookup / bare cache line there and back",
        bar: Bar::AtMost(1.5),
        rule: Rule::Sides("lookup_cores", Threaded, CoreRtt),
    },
    Named {
        name: "threaded_lookup_vs_core_rtt_small",
        meaning: "the same with 1,000 entries, which stay in the caches",
        bar: Bar::None,
        rule: Rule::Sides("lookup_cores_small", Threaded, CoreRtt),
    },
    Named {
        name: "pipelined_vs_limit",
        meaning: "64 lookups in flight / the slower of a bare ring and the table called",
        bar: Bar::AtMost(1.6),
        rule: Rule::Slower("pipelined", 64, Threaded, [BareRing, Table]),
    },
    Named {
        name: "batch_lookup_vs_direct",
        meaning: "an element of a batch of 64 lookups, inline / the table called",
        bar: Bar::AtMost(1.4),
        rule: Rule::Sides("batch_lookup", Inline, Table),
    },
    Named {
        name: "batch_update_vs_hashbrown",
        meaning: "an element of a batch of 64 overwrites, inline, a million entries / plain hash table",
        bar: Bar::AtMost(2.0),
        rule: Rule::Sides("batch_update", Inline, Hashbrown),
    },
    Named {
        name: "dump_vs_kernel_batch",
        meaning: "the kernel's BPF_MAP_LOOKUP_BATCH / offloaded dump, per entry, a million entries",
        bar: Bar::AtLeast(8.0),
        rule: Rule::Sides("dump", Kernel, Inline),
    },
    Named {
        name: "mirror_lookup_vs_hashbrown",
        meaning: "mirror lookup / plain hash table",
        bar: Bar::AtMost(2.0),
        rule: Rule::Sides("lookup", Mirror, Hashbrown),
    },
    Named {
        name: "vfio_user_lookup_vs_threaded",
        meaning: "lookup on a device in another process / on a thread of this one",
        bar: Bar::AtMost(1.3),
        rule: Rule::Sides("lookup_cores", VfioUser, Threaded),
    },
    Named {
        name: "growth_10m_vs_hashbrown",
        meaning: "how an inline lookup grows to ten million entries / how the plain hash table's does",
        bar: Bar::AtMost(1.3),
        rule: Rule::Growth(["growth_10m", "lookup"], Inline, Hashbrown),
    },
    Named {
        name: "inline_lookup_vs_kernel_syscall",
        meaning: "kernel bpf(2) lookup / offloaded inline lookup",
        bar: Bar::None,
        rule: Rule::Sides("lookup_calls", Kernel, Inline),
    },
    Named {
        name: "mirror_lookup_vs_kernel_syscall",
        meaning: "kernel bpf(2) lookup / mirror lookup",
        bar: Bar::None,
        rule: Rule::Sides("lookup_calls", Kernel, Mirror),
    },
];

/// A ratio in one repetition, or why it cannot be had.
#[derive(Clone, PartialEq, Debug)]
pub struct Ratio {
    /// The ratio.
    pub value: f64,
    /// Nanoseconds of what is divided, and of what it is divided by.
    pub ns: [f64; 2],
}

/// The samples of one repetition.
pub type Measured<'a> = &'a [(Group, Vec<Samples>)];

fn side<'a>(
    measured: Measured<'a>,
    group: &str,
    depth: Option<usize>,
    back_end: BackEnd,
) -> Result<&'a Samples, String> {
    let found = measured
        .iter()
        .find(|(g, _)| g.name == group && depth.is_none_or(|depth| g.workload.depth == depth));
    let (_, samples) = found.ok_or_else(|| format!("the group {group} was not measured"))?;
    let samples = samples
        .iter()
        .find(|samples| samples.back_end == back_end)
        .ok_or_else(|| format!("{back_end} is not in the group {group}"))?;
    match &samples.unavailable {
        Some(why) => Err(format!("{back_end}: {why}")),
        None => Ok(samples),
    }
}

impl Named {
    /// The ratio in one repetition.
    ///
    /// # Errors
    ///
    /// The reason why it cannot be had.
    pub fn of(&self, measured: Measured<'_>) -> Result<Ratio, String> {
        match self.rule {
            Rule::Sides(group, a, b) => {
                let (a, b) = (
                    side(measured, group, None, a)?,
                    side(measured, group, None, b)?,
                );
                Ok(Ratio {
                    value: a.ratio(b),
                    ns: [median(&a.blocks), median(&b.blocks)],
                })
            }
            Rule::Slower(group, depth, a, [b, c]) => {
                let of = |back_end| side(measured, group, Some(depth), back_end);
                let (a, b, c) = (of(a)?, of(b)?, of(c)?);
                let limit: Vec<f64> = b
                    .blocks
                    .iter()
                    .zip(&c.blocks)
                    .map(|(b, c)| b.max(*c))
                    .collect();
                let ratios: Vec<f64> = a.blocks.iter().zip(&limit).map(|(a, l)| a / l).collect();
                Ok(Ratio {
                    value: median(&ratios),
                    ns: [median(&a.blocks), median(&limit)],
                })
            }
            Rule::Growth([large, small], a, b) => {
                let of = |group, back_end| side(measured, group, None, back_end);
                let (la, lb) = (of(large, a)?, of(large, b)?);
                let (sa, sb) = (of(small, a)?, of(small, b)?);
                Ok(Ratio {
                    value: la.ratio(lb) / sa.ratio(sb),
                    ns: [median(&la.blocks), median(&lb.blocks)],
                })
            }
        }
    }
}
