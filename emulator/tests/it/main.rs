//! The emulated function from outside, through the `Function` trait, by a host made by hand.

mod config_space;
mod dma;
mod fairness;
mod host;
mod hostile;
mod memory;
mod msix;
mod operation;
mod queues;
mod registers;
mod timing;
#[path = "../support/timing_profile.rs"]
mod timing_profile;
mod under_way;
mod wake_up;
