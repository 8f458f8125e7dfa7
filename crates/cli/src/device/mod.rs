//! `offmap device`: what can be said of devices, and done with them, other than driving them.

pub mod header;
pub mod test;
