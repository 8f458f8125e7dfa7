//! The vfio-user protocol: a PCI device in another process, over a Unix socket.
//!
//! [`Client`] is a [`Function`](offmap_device_io::Function) for a driver; [`server`] is the
//! other half, up to the point where a device is needed: it takes messages apart, checks every
//! size, count and file descriptor in them, and asks a [`server::Backend`]. [`wire`] has the
//! structures, [`message`] whole messages with their descriptors, [`capabilities`] what the two
//! sides tell each other first.
//!
//! Neither side trusts the other one. A message that cannot be is answered with an errno, or
//! ends the connection; nothing that the peer sends sizes an allocation beyond
//! [`message::MESSAGE_MAX`], and no descriptor outlives the message that nobody took it from.
#![forbid(unsafe_code)]

pub mod capabilities;
mod client;
mod duplex;
mod function;
mod listener;
mod memory;
pub mod message;
mod porter;
pub mod server;
pub mod shared;
pub mod wire;

pub use client::{Attach, Client, DmaAccess};
pub use duplex::{DMA_TIMEOUT, Duplex, Unreached};
pub use function::VfioUser;
pub use listener::{BindError, Listener, VERSION_TIMEOUT};
