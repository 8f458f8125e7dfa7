//! What a NIC has done, counted: commands by queue, operation and status, and its recovery.
//!
//! The driver counts commands where they are sent and taken. Here its counts are put beside those
//! of the recovery, and with the feature `openmetrics` into the text that monitoring reads.

#[cfg(feature = "openmetrics")]
mod openmetrics;

#[cfg(feature = "openmetrics")]
pub use openmetrics::openmetrics;

use crate::{OffloadNic, RecoveryStats};
use offmap_driver::{DriverStats, Function};

/// What a NIC has done since it was made, and its driver since bring-up.
///
/// Taken while others work, counts that belong together may be a few commands apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NicStats {
    /// Commands by queue, operation and status, how long they were in flight, and what else
    /// happened on the queues, the replaced ones included.
    pub driver: DriverStats,
    /// What its recovery has done.
    pub recovery: RecoveryStats,
    /// Maps whose MAP_FREE the device did not confirm, other than for a reset, which frees them
    /// too.
    pub failed_frees: u64,
}

impl<F: Function> OffloadNic<F> {
    /// What it has done so far. From any thread: it takes no lock that a command takes, and
    /// queues do not wait for it.
    pub fn stats(&self) -> NicStats {
        NicStats {
            driver: self.driver().stats(),
            recovery: self.recovery_stats(),
            failed_frees: self.failed_frees(),
        }
    }
}

/// `BatchLookup` as `batch_lookup`: the names of the ABI in the manner of metrics.
pub fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_abi_become_names_of_labels() {
        for (name, expected) in [
            ("Lookup", "lookup"),
            ("BatchDumpDelete", "batch_dump_delete"),
            ("DmaFault", "dma_fault"),
        ] {
            assert_eq!(snake_case(name), expected);
        }
    }
}
