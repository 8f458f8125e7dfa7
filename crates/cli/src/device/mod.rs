//! `offmap device`: what can be said of devices, and done with them, other than driving them.

pub mod test;
