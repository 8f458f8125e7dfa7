//! A plan: rules that were checked, and what they have in common.

use super::rule::{Behaviour, Command, Delay, Rule, Site};
use offmap_abi::{AdminOpcode, IoOpcode};
use std::fmt;
use std::time::Duration;

/// Most rules of a plan.
pub const RULES_MAX: usize = 256;
/// Longest name of a rule in bytes.
const NAME_MAX: usize = 80;
/// Most steps of a delay or a slowness.
const STEPS_MAX: u32 = 1_000_000_000;
/// Longest delay in time.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Most completions that overtake one.
const BEHIND_MAX: u32 = 32_768;

/// What is wrong with a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanError {
    /// The rule, counted from 1.
    pub rule: usize,
    /// The field of it.
    pub field: &'static str,
    /// What is wrong, and what it may be.
    pub reason: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}, {}: {}", self.rule, self.field, self.reason)
    }
}

impl std::error::Error for PlanError {}

/// What a device does wrong: see [the module](crate::faults).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FaultPlan {
    pub(crate) rules: Vec<Rule>,
    pub(crate) ecc: bool,
}

impl FaultPlan {
    /// A plan without rules: nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// Device memory has a check code: a single flipped bit is corrected and counted, two are
    /// detected and end the command with `MediaError`. Either way the cells are not changed.
    /// Without it flips are silent and stay.
    ///
    /// # Errors
    ///
    /// [`PlanError`], when a rule that is there already flips more bits of memory than the code
    /// tells apart.
    pub fn with_ecc(mut self) -> Result<Self, PlanError> {
        self.ecc = true;
        for (index, rule) in self.rules.iter().enumerate() {
            check(rule, true).map_err(|fault| fault.of(index + 1))?;
        }
        Ok(self)
    }

    /// The plan with one more rule.
    ///
    /// # Errors
    ///
    /// [`PlanError`], for a rule whose words are out of range, contradict each other, or have no
    /// meaning at its site.
    pub fn with(mut self, rule: Rule) -> Result<Self, PlanError> {
        let number = self.rules.len() + 1;
        if number > RULES_MAX {
            return Err(PlanError {
                rule: number,
                field: "rule",
                reason: format!("a plan has at most {RULES_MAX} rules"),
            });
        }
        check(&rule, self.ecc).map_err(|fault| fault.of(number))?;
        self.rules.push(rule);
        Ok(self)
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether device memory has a check code ([`FaultPlan::with_ecc`]).
    pub fn has_ecc(&self) -> bool {
        self.ecc
    }

    /// Whether nothing goes wrong.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// A fault of a rule, which does not know its number.
struct Fault {
    field: &'static str,
    reason: String,
}

impl Fault {
    fn of(self, rule: usize) -> PlanError {
        PlanError {
            rule,
            field: self.field,
            reason: self.reason,
        }
    }
}

fn fault<T>(field: &'static str, reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        field,
        reason: reason.into(),
    })
}

fn check(rule: &Rule, ecc: bool) -> Result<(), Fault> {
    if rule.name.is_empty() || rule.name.len() > NAME_MAX || rule.name.contains(char::is_control) {
        return fault(
            "name",
            format!("must have 1 to {NAME_MAX} bytes and no control characters"),
        );
    }
    check_where(rule)?;
    check_which(rule)?;
    check_behaviour(rule, ecc)
}

/// The words that narrow the site.
fn check_where(rule: &Rule) -> Result<(), Fault> {
    let site = rule.site;
    let without = |field, what| {
        fault(
            field,
            format!("no {what} is known at the site {site}, so the rule cannot name one"),
        )
    };
    if rule.queue.is_some() && !site.has_queue() {
        return without("queue", "queue");
    }
    if rule.command.is_some() && !site.has_command() {
        return without("opcode", "command");
    }
    if rule.map.is_some() && !site.has_command() {
        return without("map", "map");
    }
    if rule.map_type.is_some() && !site.has_command() {
        return without("map_type", "map");
    }
    if rule.register.is_some() && !matches!(site, Site::RegisterRead | Site::RegisterWrite) {
        return without("register", "register");
    }
    if rule.queue.is_some_and(|queue| queue > 1023) {
        return fault("queue", "must be from 0, the admin queue, to 1,023");
    }
    if let (Some(command), Some(queue)) = (rule.command, rule.queue)
        && matches!(command, Command::Admin(_)) != (queue == 0)
    {
        return fault(
            "opcode",
            format!("{command} never comes on queue {queue}; queue 0 is the admin queue"),
        );
    }
    if site.is_memory()
        && (rule.queue == Some(0) || matches!(rule.command, Some(Command::Admin(_))))
    {
        return fault(
            if rule.queue == Some(0) {
                "queue"
            } else {
                "opcode"
            },
            format!("the site {site} sees the commands of I/O queues only"),
        );
    }
    Ok(())
}

/// The words that pick among the matches.
fn check_which(rule: &Rule) -> Result<(), Fault> {
    let counts = [
        ("nth", rule.nth),
        ("every", rule.every),
        ("from", rule.from),
        ("to", rule.to),
        ("times", rule.times),
    ];
    for (field, count) in counts {
        if count == Some(0) {
            return fault(field, "must be at least 1; matches are counted from 1");
        }
    }
    if rule.nth.is_some() {
        let others = [
            ("every", rule.every.is_some()),
            ("probability", rule.probability.is_some()),
            ("from", rule.from.is_some()),
            ("to", rule.to.is_some()),
            ("times", rule.times.is_some()),
        ];
        for (field, set) in others {
            if set {
                return fault(
                    field,
                    "contradicts nth, which names one match; drop one of the two",
                );
            }
        }
    }
    if rule.every.is_some() && rule.probability.is_some() {
        return fault("probability", "contradicts every; drop one of the two");
    }
    if let Some(p) = rule.probability
        && !(p > 0.0 && p <= 1.0)
    {
        return fault(
            "probability",
            format!("is {p}: it must be more than 0 and at most 1"),
        );
    }
    if let (from, Some(to)) = (rule.from.unwrap_or(1), rule.to)
        && to < from
    {
        return fault("to", format!("is {to}, which lies before from = {from}"));
    }
    Ok(())
}

fn check_behaviour(rule: &Rule, ecc: bool) -> Result<(), Fault> {
    let (site, behaviour) = (rule.site, rule.behaviour);
    if !behaviour.fits(site) {
        let sites: Vec<_> = Site::ALL.iter().filter(|s| behaviour.fits(**s)).collect();
        let sites: Vec<_> = sites.iter().map(|s| s.name()).collect();
        return fault(
            "behaviour",
            format!(
                "{behaviour} has no meaning at the site {site}; it has one at {}",
                sites.join(", ")
            ),
        );
    }
    let steps = |steps: u32| {
        if (1..=STEPS_MAX).contains(&steps) {
            Ok(())
        } else {
            fault(
                "steps",
                format!("is {steps}: it must be from 1 to {STEPS_MAX}"),
            )
        }
    };
    match behaviour {
        Behaviour::Delay(Delay::Steps(n)) | Behaviour::Slow { steps: n } => steps(n),
        Behaviour::Delay(Delay::Time(time)) => {
            if time.is_zero() || time > DELAY_MAX {
                return fault(
                    "ms",
                    format!("is {}: it must be from 1 to 60,000", time.as_millis()),
                );
            }
            Ok(())
        }
        Behaviour::Reorder { behind } if !(1..=BEHIND_MAX).contains(&behind) => fault(
            "behind",
            format!("is {behind}: it must be from 1 to {BEHIND_MAX}"),
        ),
        Behaviour::Flip { bits, at } => check_flip(site, bits, at, ecc),
        Behaviour::Tear { bytes } if bytes >= 64 && site.bits() == Some(512) => fault(
            "bytes",
            format!("is {bytes}: an entry of a ring has 64, and all of them would be there"),
        ),
        Behaviour::NoMemory => match rule.command {
            None
            | Some(
                Command::Admin(AdminOpcode::MapCreate)
                | Command::Io(IoOpcode::Update | IoOpcode::BatchUpdate),
            ) => Ok(()),
            Some(command) => fault(
                "opcode",
                format!("{command} needs no memory; MapCreate, Update and BatchUpdate do"),
            ),
        },
        _ => Ok(()),
    }
}

fn check_flip(site: Site, bits: u32, at: Option<u32>, ecc: bool) -> Result<(), Fault> {
    let most = match site.bits() {
        _ if ecc && site.is_memory() => 2,
        Some(bits) => bits,
        None => 512,
    };
    if !(1..=most).contains(&bits) {
        let why = match ecc && site.is_memory() {
            true => " with ecc = true, which tells one wrong bit and two apart",
            false => "",
        };
        return fault(
            "bits",
            format!("is {bits}: it must be from 1 to {most}{why}"),
        );
    }
    if let (Some(at), Some(end)) = (at, site.bits())
        && at >= end
    {
        return fault("at", format!("is {at}: {site} has bits 0 to {}", end - 1));
    }
    Ok(())
}
