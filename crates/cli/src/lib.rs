//! The parts of the `offmap` command.
//!
//! [`object`] reads map definitions from compiled BPF objects, [`workload`] drives two maps
//! alike and compares every answer, [`demo`] puts both to work over the whole stack,
//! [`report`] says what came of it, and [`diff`] holds the map side against the running kernel.
#![forbid(unsafe_code)]

pub mod args;
pub mod demo;
pub mod diff;
pub mod object;
pub mod report;
pub mod workload;
