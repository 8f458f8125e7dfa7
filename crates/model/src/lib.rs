//! Modelled time for planning.
//!
//! * [`profile`]: timing profiles as files, in which each figure names its source.

#![forbid(unsafe_code)]

pub mod profile;
