//! From a failure back to a NIC that works: escalation, journals, and restored maps
//! (`docs/recovery.md`).
//!
//! * `settings`: what a NIC is told, and what it tells.
//! * `escalate`: which failure asks for what, and who does it.
//! * `change`, `journal`: what the host knows of a map.
//! * `map`: the operations of a map that has a journal.

mod change;
mod escalate;
mod journal;
#[cfg(test)]
mod journal_tests;
mod map;
mod settings;

use escalate::JournalShare;
pub(crate) use escalate::{Escalation, Streak};
pub(crate) use map::{RecoverableMap, is_settled};
pub use settings::{RecoverMaps, Recovery, RecoveryStats, UnknownOutcome};
