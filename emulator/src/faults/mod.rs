//! Faults as a feature: what the emulated device does wrong, on purpose.
//!
//! The fault model. A [`FaultPlan`] is a list of [`Rule`]s. A rule names a [`Site`], a place that
//! every command, access or step of that kind passes; narrows it (queue, command, map,
//! register); says at which of the matches it fires; and has a [`Behaviour`], what goes wrong
//! then. Each passage is shown to every rule of its site, in the plan's order, and each counts
//! its own matches. The first that fires acts; what the others would have done is not done
//! and not counted as injected.
//!
//! Every rule has a generator of its own, from the plan's seed and the rule's place. So the same
//! plan, the same seed and the same sequence of accesses and steps inject the same faults, and a
//! rule added at the end changes nothing for those before it. Delays in steps are counted in
//! calls of [`Device::step`](crate::Device::step). Only a delay in milliseconds looks at a clock.
//!
//! Without a plan nothing of this runs: a step looks once whether there is one. The queues are served
//! by the same code either way, which is compiled once for a plan and once for none.

mod engine;
mod file;
mod inject;
mod plan;
mod report;
mod rule;

pub use file::FaultFileError;
pub use plan::{FaultPlan, PlanError, RULES_MAX};
pub use report::{FaultReport, Injection, RuleReport};
pub use rule::{Behaviour, Command, Delay, Rule, Site};

pub(crate) use engine::Engine;
pub(crate) use inject::{AtRead, Fetched, Planned};
