//! The core of a discrete-event simulation: [`queue`], [`resource`] and [`random`], all of
//! whole numbers, so that one seed gives one course of events on every machine.

pub mod queue;
pub mod random;
pub mod resource;

/// A point in simulated time, in picoseconds.
pub type Time = u64;
