//! The emulated NIC behind a vfio-user socket: what its server answers to messages that cannot
//! be, how it gets on with another implementation of the protocol, and what follows when one
//! of the two sides dies.

#[path = "vfio_user/by_messages.rs"]
mod by_messages;
#[path = "vfio_user/deaths.rs"]
mod deaths;
#[path = "vfio_user/flr.rs"]
mod flr;
#[path = "vfio_user/fuzz.rs"]
mod fuzz;
#[path = "vfio_user/interop.rs"]
mod interop;
#[path = "vfio_user/kick.rs"]
mod kick;
#[path = "vfio_user/leaving.rs"]
mod leaving;
#[path = "vfio_user/malformed.rs"]
mod malformed;
#[path = "vfio_user/memory.rs"]
mod memory;
#[path = "vfio_user/ports.rs"]
mod ports;
#[path = "vfio_user/raw.rs"]
mod raw;
#[path = "vfio_user/speed.rs"]
mod speed;
#[path = "vfio_user/state.rs"]
mod state;
#[path = "vfio_user/syscalls.rs"]
mod syscalls;
