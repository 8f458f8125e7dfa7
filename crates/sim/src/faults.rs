//! Fault plans of a campaign: which seeds have one, and what they draw.
//!
//! The plans are those of the emulator's own engine (`docs/faults.md`). A drawn plan has a few
//! rules of any behaviour at any site that it fits. What breaks the whole device is rare in it,
//! so that most of a run goes on.

use crate::plan::HOSTS;
use crate::rng::{Rng, mix};
use offmap_abi::{IoOpcode, QueueId};
use offmap_emulator::faults::{Behaviour, Command, Delay, FaultPlan, Rule, Site};
use std::time::Duration;

/// Most rules of a drawn plan.
const RULES: usize = 5;
/// Steps of a delay that no deadline notices, and of one that each does.
const SHORT_STEPS: u64 = 120;
const LONG_STEPS: u32 = 20_000;

/// Which seeds have faults, and which.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Faults {
    /// Nothing of the device's own goes wrong.
    None,
    /// Every other seed draws a plan.
    #[default]
    Half,
    /// Every seed draws a plan, the one that it also has as one of the half.
    All,
    /// Every seed has this plan, each with draws of its own.
    Plan {
        /// The plan.
        plan: FaultPlan,
        /// The file that it came from, for the line that replays a seed.
        file: String,
    },
}

/// The faults of one seed.
#[derive(Clone, Debug)]
pub(crate) struct FaultSetup {
    pub(crate) plan: FaultPlan,
    pub(crate) seed: u64,
    /// The rules of a drawn plan, which shrinking may take away.
    pub(crate) rules: Vec<Rule>,
}

impl Faults {
    /// The faults of a seed.
    pub(crate) fn of(&self, seed: u64) -> Option<FaultSetup> {
        let mut rng = Rng::new(mix(seed ^ 0x6661_756c_7473));
        let among_the_half = rng.one_in(2);
        let draws = match self {
            Self::None => false,
            Self::Half => among_the_half,
            Self::All => true,
            Self::Plan { plan, .. } => {
                return Some(FaultSetup {
                    plan: plan.clone(),
                    seed,
                    rules: Vec::new(),
                });
            }
        };
        draws.then(|| draw(&mut rng, seed))
    }

    /// What the command line of `offmap sim` needs besides the seed to have them again.
    pub fn options(&self) -> String {
        match self {
            Self::None => " --fault-plans none".into(),
            Self::Half => String::new(),
            Self::All => " --fault-plans all".into(),
            Self::Plan { file, .. } => format!(" --faults {}", quoted(file)),
        }
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl FaultSetup {
    /// The setup without one of its drawn rules.
    pub(crate) fn without(&self, index: usize) -> Option<Self> {
        let mut rules = self.rules.clone();
        (index < rules.len()).then(|| rules.remove(index))?;
        let plan = assemble(&rules, self.plan.has_ecc());
        Some(Self {
            plan,
            rules,
            ..*self
        })
    }
}

fn assemble(rules: &[Rule], ecc: bool) -> FaultPlan {
    let mut plan = FaultPlan::new();
    if ecc && let Ok(with) = plan.clone().with_ecc() {
        plan = with;
    }
    for rule in rules {
        // What is drawn is in range.
        if let Ok(with) = plan.clone().with(rule.clone()) {
            plan = with;
        }
    }
    plan
}

fn draw(rng: &mut Rng, seed: u64) -> FaultSetup {
    let ecc = rng.one_in(2);
    let count = 1 + rng.index(RULES);
    let mut rules: Vec<Rule> = (0..count).map(|_| rule(rng, ecc)).collect();
    // Some words are out of range where the site has fewer bits or bytes. What is injected is counted by
    // the place of its rule in the plan, so that the others are no rules here either.
    rules.retain(|rule| assemble(std::slice::from_ref(rule), ecc).len() == 1);
    FaultSetup {
        plan: assemble(&rules, ecc),
        seed,
        rules,
    }
}

/// How often a site is passed in a run, about.
fn passages(site: Site) -> u64 {
    match site {
        Site::Fetch | Site::Complete => 600,
        Site::DmaRead | Site::DmaWrite => 250,
        Site::Interrupt => 100,
        Site::RegisterRead => 60,
        Site::RegisterWrite => 500,
        Site::MemoryRead => 3000,
        Site::MemoryWrite => 1000,
        Site::Step => 8000,
    }
}

fn rule(rng: &mut Rng, ecc: bool) -> Rule {
    let (site, behaviour) = loop {
        let behaviour = behaviour(rng, ecc);
        // By the behaviour at times, so that one that fits few sites is not drawn less often for it.
        let mut sites = Site::ALL.to_vec();
        if rng.one_in(2) {
            sites.retain(|site| behaviour.fits(*site));
        }
        let site = rng.pick(&sites);
        // The violent ones once more less often than the others.
        if behaviour.fits(site) && (!is_violent(behaviour) || rng.one_in(3)) {
            break (site, behaviour);
        }
    };
    let mut rule = Rule::new(site, behaviour);
    let mut span = passages(site);
    let mut words = String::new();
    let mut severe = is_violent(behaviour) || site == Site::RegisterRead;
    let for_map_create = behaviour == Behaviour::NoMemory && rng.one_in(2);
    if site.has_queue() {
        let admin = site != Site::MemoryRead && site != Site::MemoryWrite;
        if for_map_create || (admin && rng.one_in(8)) {
            rule = rule.on_queue(QueueId::ADMIN);
            words += ", queue 0";
            severe = true;
            span = 40;
        } else if rng.one_in(2) {
            let queue = QueueId(1 + rng.below(HOSTS) as u16);
            rule = rule.on_queue(queue);
            words += &format!(", {queue}");
            span /= 3;
        } else if site.has_command() && behaviour != Behaviour::NoMemory && rng.one_in(2) {
            let opcode = rng.pick(IoOpcode::ALL);
            rule = rule.of(Command::Io(opcode));
            words += &format!(", {opcode}");
            span /= 6;
        }
    }
    // What breaks a queue or more does so once or twice; what nobody notices may come often.
    if severe || rng.one_in(3) {
        let nth = 1 + rng.below(span.max(2));
        rule = rule.nth(nth);
        words += &format!(", match {nth}");
    } else {
        let times = 1 + rng.below(6);
        let every = (span / (times + 1)).max(1);
        let from = 1 + rng.below(every);
        rule = rule.every(every).from(from).times(times);
        words += &format!(", every {every} from {from}, {times} times");
    }
    let what = match behaviour {
        Behaviour::Flip { bits, at: None } => format!("flip of {bits} at {site}"),
        Behaviour::Flip { bits, at: Some(at) } => format!("flip of {bits} from bit {at} at {site}"),
        Behaviour::Slow { steps } => format!("{steps} slow steps at {site}"),
        Behaviour::Tear { bytes } => format!("tear after {bytes} at {site}"),
        Behaviour::Delay(delay) => format!("delay of {delay:?} at {site}"),
        other => format!("{other} at {site}"),
    };
    rule.named(what + &words)
}

fn is_violent(behaviour: Behaviour) -> bool {
    matches!(
        behaviour,
        Behaviour::StopFirmware | Behaviour::Fatal | Behaviour::Reset | Behaviour::Unplug
    ) || matches!(behaviour, Behaviour::Slow { steps } if u64::from(steps) > SHORT_STEPS)
}

fn behaviour(rng: &mut Rng, ecc: bool) -> Behaviour {
    match rng.below(40) {
        0..4 => Behaviour::Drop,
        4..7 => Behaviour::Delay(Delay::Steps(1 + rng.below(SHORT_STEPS) as u32)),
        7 => Behaviour::Delay(Delay::Steps(LONG_STEPS)),
        8 => Behaviour::Delay(Delay::Time(Duration::from_millis(1 + rng.below(4)))),
        9..12 => Behaviour::Duplicate,
        12..15 => Behaviour::Reorder {
            behind: 1 + rng.below(6) as u32,
        },
        15..21 => {
            let bits = match rng.below(4) {
                0 | 1 if ecc => 2,
                _ => 1,
            };
            let at = rng.one_in(2).then(|| rng.below(512) as u32);
            Behaviour::Flip { bits, at }
        }
        21..25 => Behaviour::Fail,
        25..29 => Behaviour::Tear {
            bytes: rng.below(72) as u32,
        },
        29..32 => Behaviour::NoMemory,
        32..35 => Behaviour::Slow {
            steps: 1 + rng.below(SHORT_STEPS / 4) as u32,
        },
        35 => Behaviour::Slow { steps: LONG_STEPS },
        36 => Behaviour::StopFirmware,
        37 => Behaviour::Fatal,
        38 => Behaviour::Reset,
        _ if rng.one_in(2) => Behaviour::Unplug,
        _ => Behaviour::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_a_plan() {
        for seed in 0..2000 {
            let setup = Faults::All.of(seed).expect("every seed draws one");
            assert_eq!(setup.plan.len(), setup.rules.len(), "seed {seed}");
            let half = Faults::Half.of(seed);
            if let Some(half) = half {
                assert_eq!(half.plan, setup.plan, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_file_is_a_word_of_the_shell() {
        assert_eq!(quoted("a/b-1.toml"), "a/b-1.toml");
        assert_eq!(quoted("a b's"), r"'a b'\''s'");
    }
}
