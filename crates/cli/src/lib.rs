//! The parts of the `offmap` command.
//!
//! [`object`] reads map definitions from compiled BPF objects, [`workload`] drives two maps
//! alike and compares every answer, [`demo`] puts both to work over the whole stack,
//! [`report`] says what came of it, [`faulty`] what a fault plan did, [`diff`] holds the map
//! side against the running kernel, [`profile`] shows capability profiles, [`stats`] what the
//! queues did, [`model`] plans in modelled time, [`timing`] what it would have taken on hardware, [`nic`] serves the emulated NIC to other processes, [`state_file`] is where it keeps its maps, [`device`] tests devices and binds
//! those on the PCI bus, and [`open`] opens what `--device` names.
#![forbid(unsafe_code)]

pub mod args;
pub mod bench;
pub mod demo;
pub mod device;
pub mod diff;
mod expected;
pub mod faulty;
pub mod log;
pub mod model;
pub mod nic;
pub mod object;
pub mod open;
pub mod profile;
pub mod report;
pub mod run;
pub mod sim;
pub mod state_file;
pub mod stats;
pub mod timing;
pub mod workload;
