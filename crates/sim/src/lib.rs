//! Deterministic simulation: the real driver and the real device under one seed.
//!
//! A seed stands for a configuration and a list of actions of several hosts; a run carries them
//! out on one thread, in simulated time. Between `crates/driver` and `emulator::Device` stands a
//! world that decides when the device gets on and in which order stores become visible, within
//! the rules of `docs/abi.md` §10. Checkers look at what the hosts saw. `docs/simulation.md` says
//! what is modelled, and what is not.
//!
//! ```
//! use offmap_sim::{Config, campaign};
//!
//! let report = campaign(&Config { from: 7, seeds: 2, ..Config::default() }, &mut |_| ());
//! assert!(report.violations.is_empty());
//! ```
#![forbid(unsafe_code)]

mod campaign;
mod check;
mod event;
mod excuse;
mod faults;
mod function;
mod linearize;
mod map;
mod memory;
mod mutation;
mod plan;
mod plant;
mod rng;
mod run;
mod shrink;
mod sleep;
mod spec;
mod walk;
mod world;

pub use campaign::{Config, Report, Violation, campaign};
pub use check::Check;
pub use event::Event;
pub use faults::Faults;
pub use mutation::Mutation;
pub use plan::ACTIONS;
