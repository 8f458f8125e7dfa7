//! What is measured: groups of sides that do the same, as data.

use crate::blocks::Amount;
use crate::mix::Sequence;
use crate::sides::BackEnd::{
    self, BareRing, CoreRtt, Device, Hashbrown, Host, Inline, Kernel, Mirror, Table, Threaded,
    VfioUser,
};
use crate::workload::{Draw, Kind, Op, Workload};
use std::sync::Arc;

/// Sides that do the same, in turns.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Its name in the JSON, and for `--only`.
    pub name: &'static str,
    /// What the sides do.
    pub workload: Workload,
    /// The sides; the first that is there is the yardstick of the others.
    pub sides: Vec<BackEnd>,
    /// Left out of `--quick`.
    pub long: bool,
    /// The calls, where they are a sequence.
    pub sequence: Option<Arc<Sequence>>,
}

/// How a plan is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Entries of the maps, where a group does not ask for another number.
    pub entries: usize,
    /// Bytes of a key, likewise.
    pub key_size: usize,
    /// Bytes of a value, likewise.
    pub value_size: usize,
    /// Processors that this process may use: threads beyond that are not measured.
    pub processors: usize,
    /// Whether a device was named, which then takes part wherever one over vfio-user does.
    pub device: bool,
    /// Leaves the long groups out.
    pub quick: bool,
}

/// In-process sides, a program's calls, and the ones on two processors.
const NEAR: &[BackEnd] = &[Hashbrown, Table, Host, Inline, Mirror];
const CALLS: &[BackEnd] = &[Kernel, Host, Inline, Threaded, VfioUser];
const LOOKUPS: &[BackEnd] = &[Kernel, Host, Inline, Threaded, VfioUser, Mirror];
const ALL_TYPES: &[BackEnd] = &[Kernel, Host, Inline];

/// The ones with a million entries, and with ten.
pub(crate) const MILLION: usize = 1_000_000;
pub(crate) const TEN_MILLION: usize = 10_000_000;

/// Depths of the pipeline, and sizes of batches.
pub(crate) const DEPTHS: [usize; 5] = [1, 4, 16, 64, 256];
pub(crate) const BATCHES: [usize; 5] = [1, 4, 16, 64, 1024];

impl Group {
    fn new(name: &'static str, sides: &[BackEnd], workload: Workload) -> Self {
        Self {
            name,
            workload,
            sides: sides.to_vec(),
            long: false,
            sequence: None,
        }
    }

    fn long(self) -> Self {
        Self { long: true, ..self }
    }

    /// A sequence of calls as a group: with everybody who makes calls.
    pub fn of_sequence(sequence: &Arc<Sequence>, device: bool) -> Self {
        let map = &sequence.map;
        let mut sides = CALLS.to_vec();
        if device {
            sides.push(Device);
        }
        let workload = Workload {
            map_type: map.map_type,
            op: Op::Recorded,
            key_size: map.key_size,
            value_size: map.value_size,
            entries: sequence.fill,
            max_entries: Some(map.max_entries),
            ..Workload::default()
        };
        Self {
            sequence: Some(Arc::clone(sequence)),
            ..Self::new("sequence", &sides, workload)
        }
    }

    /// What its rows are found by: the name, and that of a sequence.
    pub fn label(&self) -> String {
        match &self.sequence {
            Some(sequence) => format!("{} {}", self.name, sequence.name),
            None => self.name.to_owned(),
        }
    }

    /// Blocks and calls, as a part of those asked for: large maps take their time to be filled.
    pub fn amount(&self, amount: Amount) -> Amount {
        Amount {
            calls: match self.workload.op {
                Op::Dump => amount.calls.min(100),
                _ => amount.calls,
            },
            ..amount
        }
    }
}

/// All groups, in the order in which they are measured.
pub fn plan(sizes: &Sizes) -> Vec<Group> {
    let base = Workload {
        entries: sizes.entries,
        key_size: sizes.key_size,
        value_size: sizes.value_size,
        ..Workload::default()
    };
    let op = |op| Workload { op, ..base };
    let mut groups = vec![
        Group::new("lookup", NEAR, base),
        Group::new("lookup_calls", LOOKUPS, base),
        Group::new("lookup_cores", &[CoreRtt, Threaded, VfioUser], base),
        Group::new(
            "lookup_cores_small",
            &[CoreRtt, Threaded, VfioUser],
            Workload {
                entries: 1000,
                ..base
            },
        ),
        Group::new("miss", CALLS, op(Op::Miss)),
        Group::new("overwrite", CALLS, op(Op::Overwrite)),
        Group::new("insert", CALLS, op(Op::Insert)),
        Group::new("delete", CALLS, op(Op::Delete)),
        Group::new("next", CALLS, op(Op::Next)),
        Group::new("mix", CALLS, op(Op::Mix)),
        Group::new(
            "lookup_zipf",
            &[Hashbrown, Host, Inline],
            Workload {
                keys: Draw::Zipf,
                ..base
            },
        ),
        Group::new(
            "batch_lookup",
            &[Table, Inline, Threaded, VfioUser],
            Workload {
                batch: 64,
                ..op(Op::LookupBatch)
            },
        ),
        Group::new(
            "batch_update",
            &[Hashbrown, Inline],
            Workload {
                batch: 64,
                entries: MILLION,
                ..op(Op::UpdateBatch)
            },
        ),
        Group::new(
            "dump",
            &[Kernel, Host, Inline],
            Workload {
                entries: MILLION,
                ..op(Op::Dump)
            },
        ),
        Group::new(
            "growth_10m",
            &[Hashbrown, Inline],
            Workload {
                entries: TEN_MILLION,
                ..base
            },
        )
        .long(),
    ];
    for depth in DEPTHS {
        let sides: &[BackEnd] = match depth {
            // One at a time is a call.
            1 => continue,
            _ => &[BareRing, Table, Threaded, VfioUser],
        };
        let pipelined = Group::new("pipelined", sides, Workload { depth, ..base });
        groups.push(match depth {
            64 => pipelined,
            _ => pipelined.long(),
        });
    }
    for batch in BATCHES {
        let swept = Workload {
            batch,
            ..op(Op::UpdateBatch)
        };
        groups.push(Group::new("batch_sweep", CALLS, swept));
    }
    for (map_type, key_size) in [
        (Kind::Array, 4),
        (Kind::PercpuHash, sizes.key_size),
        (Kind::LruHash, sizes.key_size),
        (Kind::LpmTrie, 8),
    ] {
        let workload = Workload {
            map_type,
            key_size,
            ..base
        };
        groups.push(Group::new("types", ALL_TYPES, workload));
    }
    for threads in [2, 4, 8, 16] {
        // As many as there are processors.
        if threads > sizes.processors {
            break;
        }
        for op in [Op::Lookup, Op::Overwrite] {
            let workload = Workload {
                op,
                threads,
                ..base
            };
            let group = Group::new("threads", ALL_TYPES, workload);
            groups.push(if threads > 2 { group.long() } else { group });
        }
    }
    for entries in [1000, MILLION] {
        groups.push(Group::new("entries", ALL_TYPES, Workload { entries, ..base }).long());
    }
    for value_size in [8, 1024] {
        let sized = Workload { value_size, ..base };
        groups.push(Group::new("value_size", ALL_TYPES, sized).long());
    }
    for key_size in [4, 64] {
        let sized = Workload { key_size, ..base };
        groups.push(Group::new("key_size", ALL_TYPES, sized).long());
    }
    for group in groups
        .iter_mut()
        .filter(|group| sizes.device && group.workload.depth == 1)
    {
        if let Some(at) = group.sides.iter().position(|side| *side == VfioUser) {
            group.sides.insert(at + 1, Device);
        }
    }
    groups.retain(|group| !(sizes.quick && group.long));
    groups
}
