//! The order of the steps, and what waits for them.
