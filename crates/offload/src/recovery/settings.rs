//! What a NIC is told of recovery, and what it tells of it.

use offmap_driver::{DriverConfig, DriverError};
use std::time::Duration;

/// Which maps are restored after a reset of the function.
///
/// bpf(2) has no flag for it, and a map's flags reach a device as the program gave them. So the
/// choice is the operator's, by the name that the program gave the map, as with pinning paths
/// and `bpftool map … name`: no program has to change. A program that wants to choose by itself
/// names its maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoverMaps {
    all: bool,
    by_name: Vec<(String, bool)>,
}

impl RecoverMaps {
    /// No map, but for what [`RecoverMaps::map`] adds. The default.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every map, but for what [`RecoverMaps::map`] takes out.
    pub fn all() -> Self {
        Self {
            all: true,
            by_name: Vec::new(),
        }
    }

    /// The maps whose names match `pattern`: the whole name, or with a `*` at its end the
    /// names that begin so. Of several patterns that match, the one added first counts.
    #[must_use]
    pub fn map(mut self, pattern: impl Into<String>, recover: bool) -> Self {
        self.by_name.push((pattern.into(), recover));
        self
    }

    /// Whether a map of this name is restored. `name` ends at its first NUL.
    pub fn recovers(&self, name: &[u8]) -> bool {
        let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start.as_bytes()),
            None => name == pattern.as_bytes(),
        };
        let mut rules = self.by_name.iter();
        rules
            .find(|(pattern, _)| matches(pattern))
            .map_or(self.all, |(_, recover)| *recover)
    }
}

/// What the caller of a write is told whose command the device did not answer, when the map
/// has been restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownOutcome {
    /// The write is done once more, on the restored map and before anybody sees that, and its
    /// result is the caller's. The default.
    #[default]
    Resolve,
    /// The write is done once more all the same, so that nobody who saw its effect sees it
    /// vanish; the caller gets EIO with a sentence that says that its outcome is unknown.
    Report,
}

/// When a NIC resets its function, what it restores then, and how long anybody waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// The maps that are restored.
    pub maps: RecoverMaps,
    /// What the callers of writes without an answer are told.
    pub unknown: UnknownOutcome,
    /// Whether the NIC resets the function when a reset of the queue does not help. `false`:
    /// operations fail until somebody else calls [`offmap_driver::Driver::reset`].
    pub reset_function: bool,
    /// So many queue pairs that fail one after the other, each after fewer than
    /// [`Recovery::PROGRESS`] commands, and the function is reset: 1 to 1,000.
    pub queue_failures: u32,
    /// An operation on a recoverable map begins nothing new after this time: no further try, no
    /// further step of a recovery. From 1 ms to an hour.
    pub patience: Duration,
    /// Host memory that the journals of all maps may come to take, in bytes. A map whose
    /// journal does not fit with all its entries is refused with ENOMEM.
    pub journal_bytes: u64,
}

impl Recovery {
    /// Commands after which the failure of a queue pair is no longer the continuation of
    /// earlier ones.
    pub const PROGRESS: u64 = 1024;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`DriverError::Config`] names the field and what it may be.
    pub fn validate(&self) -> Result<(), DriverError> {
        let bad = |field, allowed| Err(DriverError::Config { field, allowed });
        if !(1..=1000).contains(&self.queue_failures) {
            return bad("queue_failures", "from 1 to 1,000");
        }
        if !(Duration::from_millis(1)..=DriverConfig::TIMEOUT_MAX).contains(&self.patience) {
            return bad("patience", "from 1 ms to an hour");
        }
        Ok(())
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            maps: RecoverMaps::none(),
            unknown: UnknownOutcome::default(),
            reset_function: true,
            queue_failures: 3,
            patience: Duration::from_secs(30),
            journal_bytes: 1 << 30,
        }
    }
}

/// What the recovery of a NIC has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryStats {
    /// Queue pairs that failed and were, or will be, replaced.
    pub queue_failures: u64,
    /// Resets of the function that the NIC did, and that succeeded.
    pub function_resets: u64,
    /// Resets of the function that failed.
    pub failed_resets: u64,
    /// Maps that were made and filled again.
    pub maps_restored: u64,
    /// Elements written to them.
    pub elements_restored: u64,
    /// Operations and map creations that were tried once more after a recovery, each time that
    /// they were.
    pub retries: u64,
    /// Writes whose outcome was unknown when their command ended.
    pub unknown: u64,
    /// Of those: their callers got the result of the write done once more.
    pub resolved: u64,
    /// Of those: their callers were told that the outcome is unknown. What is missing to
    /// `unknown` still waits.
    pub reported: u64,
    /// Recoveries that ended well: with everything restored that was to be.
    pub recoveries: u64,
    /// How long the last one took.
    pub last: Duration,
    /// How long the longest one took.
    pub worst: Duration,
    /// Host memory that the journals may come to take, in bytes: what is set aside of
    /// [`Recovery::journal_bytes`].
    pub journal_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_matches_a_name_decides() {
        let some = RecoverMaps::none()
            .map("conn_tmp", false)
            .map("conn_*", true)
            .map("exact", true);
        for (name, expected) in [
            (&b"conn_tmp\0\0\0\0\0\0\0\0"[..], false),
            (b"conn_table\0\0\0\0\0\0", true),
            (b"conn_", true),
            (b"conn", false),
            (b"exact\0junk", true),
            (b"exactly", false),
            (b"", false),
        ] {
            assert_eq!(some.recovers(name), expected, "{name:?}");
        }
        let most = RecoverMaps::all().map("scratch", false);
        assert!(most.recovers(b"table") && most.recovers(b""));
        assert!(!most.recovers(b"scratch\0"));
        assert!(!RecoverMaps::default().recovers(b"table"));
        assert!(RecoverMaps::none().map("*", true).recovers(b"any"));
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        assert!(Recovery::default().validate().is_ok());
        let base = Recovery::default();
        for (bad, field) in [
            (
                Recovery {
                    queue_failures: 0,
                    ..base.clone()
                },
                "queue_failures",
            ),
            (
                Recovery {
                    patience: Duration::ZERO,
                    ..base.clone()
                },
                "patience",
            ),
            (
                Recovery {
                    patience: Duration::from_secs(3601),
                    ..base
                },
                "patience",
            ),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
