//! What the tests and benches share.
//!
//! The integration tests in `tests/` and the benches in `benches/` are thin: the suites are
//! written here once, generic over what they judge.

pub mod btf;
pub mod command;
pub mod contract;
pub mod counting;
pub mod cpu;
pub mod differential;
pub mod faults;
mod forward;
pub mod fuzz;
pub mod header;
pub mod kernel;
pub mod model;
pub mod model_lpm;
pub mod openmetrics;
pub mod pins;
pub mod profiles;
pub mod report;
pub mod served;
pub mod speed;
pub mod stack;
pub mod subject;
pub mod tap;
pub mod tidy;
pub mod transports;
pub mod trapped;
pub mod vm;

pub use offmap_conformance as conformance;

/// The program in the README, so that it keeps compiling and running.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The programs in the bpf layer's introduction, likewise.
#[cfg(doctest)]
#[doc = include_str!("../../docs/bpf.md")]
pub struct BpfLayer;
