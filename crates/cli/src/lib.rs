//! The parts of the `offmap` command.
#![forbid(unsafe_code)]

pub mod object;
pub mod workload;
