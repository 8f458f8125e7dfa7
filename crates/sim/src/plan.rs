//! What a seed stands for: a configuration, and a list of actions.
//!
//! Each action carries a seed of its own for all that is drawn while it runs, so that the list
//! can lose some and the rest still means something: that is how a failure is shrunk.

use crate::faults::{FaultSetup, Faults};
use crate::rng::{Rng, mix};
use offmap_driver::{Coalescing, CompletionMode, Notify};
use offmap_emulator::Turns;
use offmap_firmware_model::StepLimits;
use std::time::Duration;

/// Actions of a plan.
const LENGTH: u64 = 1200;
/// Most hosts.
pub(crate) const HOSTS: u64 = 4;

/// What happens in an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// Commands on single elements are written, and handed over or not.
    Write,
    /// What was written is handed over.
    Commit,
    /// Results are taken.
    Poll,
    /// One blocking call on an element.
    Call,
    /// One blocking batch.
    Batch,
    /// A dump, command after command, or a walk with GET_NEXT.
    Walk,
    /// A command in flight is aborted.
    Abort,
    /// The device gets time.
    Tick,
    /// Nobody does anything for a while.
    Idle,
    /// A map is freed and another one takes its place.
    Remap,
    /// The host deletes its queue and makes another.
    Requeue,
    /// The device does nothing for a while that deadlines allow.
    Stall,
    /// It does nothing for longer.
    LongStall,
    /// The driver resets the device.
    Reset,
    /// Something else resets it.
    ForeignReset,
    /// It is pulled out.
    Remove,
    /// The driver looks whether the device is well.
    Health,
}

/// The names of a seed's actions, as traces have them.
pub const ACTIONS: [&str; 17] = [
    "Write",
    "Commit",
    "Poll",
    "Call",
    "Batch",
    "Walk",
    "Abort",
    "Tick",
    "Idle",
    "Remap",
    "Requeue",
    "Stall",
    "LongStall",
    "Reset",
    "ForeignReset",
    "Remove",
    "Health",
];

/// One action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Action {
    pub(crate) act: Act,
    pub(crate) host: u8,
    pub(crate) seed: u64,
}

/// What a run is made with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) hosts: usize,
    pub(crate) maps: usize,
    pub(crate) depth: u32,
    pub(crate) notify: Notify,
    pub(crate) completion: CompletionMode,
    pub(crate) coalescing: Option<Coalescing>,
    pub(crate) slot_bytes: usize,
    pub(crate) polls_before_park: u32,
    pub(crate) batch: u32,
    /// The device is reset now and then, or worse.
    pub(crate) violent: bool,
    /// There is a ring buffer now and then, which the device's engines fill.
    pub(crate) ring: bool,
    /// How little the device does in a step.
    pub(crate) step: StepLimits,
    pub(crate) turns: Turns,
}

/// Limits of the device's steps: the usual ones, under which every command here is done in one, or
/// such that batches, dumps, the making of maps and aborts take many.
fn limits(rng: &mut Rng) -> (StepLimits, Turns) {
    if rng.one_in(4) {
        return Default::default();
    }
    let step = StepLimits {
        bytes: rng.pick(&[64, 64, 128, 256, 1024, StepLimits::USUAL.bytes]),
        buckets: rng.pick(&[1, 1, 2, 3, 8, StepLimits::USUAL.buckets]),
    };
    let usual = Turns::default();
    let turns = Turns {
        step: rng.pick(&[1, 2, 16, 33, usual.step]),
        favours: rng.pick(&[0, 0, 1, 3, usual.favours]),
        entries: rng.pick(&[1, 2, 5, usual.entries]),
    };
    (step, turns)
}

/// A seed's configuration and actions.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    /// What the device does wrong.
    pub(crate) faults: Option<FaultSetup>,
    pub(crate) actions: Vec<Action>,
}

impl Plan {
    pub(crate) fn of(seed: u64, faults: &Faults) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x6f66_666d_6170));
        let mut waits = Rng::new(mix(seed ^ 0x6d73_6978));
        let (step, turns) = limits(&mut Rng::new(mix(seed ^ 0x7374_6570)));
        let completion = match waits.below(4) {
            0 => CompletionMode::Interrupt,
            1 => CompletionMode::Hybrid {
                spin: Duration::from_micros(waits.below(30)),
            },
            _ => CompletionMode::Poll,
        };
        let coalescing = waits.one_in(2).then(|| Coalescing {
            count: 2 + waits.below(4) as u16,
            delay: Duration::from_micros(1 + waits.below(40)),
        });
        // Most seeds have no violent event: they are the ones that may not fail at all.
        let violent = rng.one_in(4);
        let setup = Setup {
            completion,
            coalescing,
            hosts: 1 + rng.index(HOSTS as usize),
            maps: 1 + rng.index(3),
            depth: rng.pick(&[2, 4, 8, 8, 16]),
            notify: if rng.one_in(3) {
                Notify::Doorbell
            } else {
                Notify::Block
            },
            slot_bytes: rng.pick(&[64, 128, 512]),
            polls_before_park: rng.below(6) as u32,
            // No bucket is larger than the first: a device whose batches are smaller than a bucket
            // cannot dump it.
            batch: rng.pick(&[10, 16, 64]),
            violent,
            ring: Rng::new(mix(seed ^ 0x7269_6e67)).one_in(3),
            step,
            turns,
        };
        let mut actions = Vec::with_capacity(LENGTH as usize);
        for _ in 0..LENGTH {
            actions.push(Action {
                act: act(&mut rng, violent),
                host: rng.index(setup.hosts) as u8,
                seed: rng.next(),
            });
        }
        if violent && rng.one_in(4) {
            let at = actions.len() - 1 - rng.index(400);
            actions[at].act = Act::Remove;
        }
        Self {
            seed,
            setup,
            faults: faults.of(seed),
            actions,
        }
    }
}

fn act(rng: &mut Rng, violent: bool) -> Act {
    match rng.below(1000) {
        0..380 => Act::Write,
        380..430 => Act::Commit,
        430..700 => Act::Poll,
        700..760 => Act::Call,
        760..800 => Act::Batch,
        800..820 => Act::Walk,
        820..840 => Act::Abort,
        840..920 => Act::Tick,
        920..930 => Act::Idle,
        930..938 => Act::Remap,
        938..944 => Act::Requeue,
        944..950 => Act::Stall,
        950..956 => Act::Health,
        956..958 if violent => Act::Reset,
        958..960 if violent => Act::ForeignReset,
        960 if violent => Act::LongStall,
        _ => Act::Poll,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_have_their_names() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let plan = Plan::of(seed, &Faults::None);
            for action in plan.actions {
                let name = format!("{:?}", action.act);
                assert_eq!(ACTIONS.get(action.act as usize), Some(&name.as_str()));
                seen.insert(name);
            }
        }
        assert_eq!(seen.len(), ACTIONS.len(), "{seen:?}");
    }
}
