//! The same bpf(2) calls, byte for byte, to the running kernel and to [`offmap_bpf::System`].
//!
//! Both sides see one arena at the same addresses, and open the same descriptor numbers, so
//! that an attribute is the same bytes for both. Only ids differ, which the kernel gives out
//! to everybody: they are translated where a call takes or returns one. After each call the
//! result, the error number and every byte of the arena that the call could reach are compared.
//!
//! Calls come in sequences, each from a seed of its own, on a fresh `System`; a difference
//! names its sequence, which replays it. What is known to differ, and why, is in [`explain`].

pub mod explain;
mod generate;
mod kernel;
mod report;
mod run;
mod sides;

pub use kernel::KernelCalls;
pub use report::{Difference, Matrix, Report, SUCCESS_PERCENT};
pub use run::{Config, RunError, run};
