//! Random operation sequences, put to several maps at once and compared with the model.
//!
//! One seed decides a sequence: the map's shape, every operation and every byte. A sequence
//! is generated before it runs, so that a failing one can be cut down to the operations that
//! matter.

mod ops;
mod run;

pub use ops::{Op, Sequence};
pub use run::{Failure, Tally, check, shrink};
