//! Offloaded maps against host maps: the same operations on the same keys, side by side in one run.
//!
//! A [`plan::Group`] is a workload and the back ends that do it ([`sides::BackEnd`]): the running
//! kernel's map by bpf(2), maps of this process, and the offloaded map on a device on this thread, on another
//! one, or in another process. They run in alternating blocks of at most a millisecond
//! ([`blocks`]), and what is compared is the median of the ratios block by block: on shared
//! processors absolute times drift by more than what is to be seen. [`run`] makes a
//! [`report::Document`] of it, which is the JSON, the table ([`table`]) and the page ([`html`]); a
//! later run is held against an earlier one by [`baseline`].
//!
//! All times are nanoseconds of wall-clock time. Modelled time is not there yet and stands as `null`.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod blocks;
pub mod cpu;
pub mod error;
pub mod html;
pub mod machine;
pub mod mix;
pub mod plan;
pub mod ratios;
pub mod report;
mod run;
pub mod sides;
pub mod table;
pub mod verdict;
pub mod workload;

pub use run::{Config, Progress, run};
