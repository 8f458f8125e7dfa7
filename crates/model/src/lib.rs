//! Modelled time for planning.
//!
//! * [`profile`]: timing profiles as files, in which each figure names its source.
//! * [`workload`]: what is done on that hardware, as files; [`cost`]: in how many accesses.
//! * [`des`]: the core of a discrete-event simulation; [`system`]: what is simulated with it.
//! * [`resolve`]: from a timing profile and a workload to what is simulated.
//! * [`sweep`]: grids of points, in parts and by several threads with the same result; [`report`]: what they
//!   found, and how parts are put together; [`table`] and [`svg`]: for people.

#![forbid(unsafe_code)]

pub mod cost;
pub mod des;
pub mod profile;
pub mod report;
pub mod resolve;
pub mod svg;
pub mod sweep;
pub mod system;
pub mod table;
pub mod workload;
