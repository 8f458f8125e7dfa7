//! What the simulation checks, each with a name.

use offmap_driver::DriverError;
use std::any::Any;

/// A check of the simulation: what a violation violates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Check {
    /// A map's history has no order that explains its answers: values, statuses, capacity, eviction.
    History,
    /// A walk or a dump left out a key that was there all the time.
    WalkComplete,
    /// A walk or a dump returned a key that was not there at any time of it.
    WalkPresent,
    /// A dump returned a key twice that was there all the time.
    WalkOnce,
    /// A command returned bytes that nobody ever wrote.
    Bytes,
    /// A command ended with a status or a count that it cannot have.
    Status,
    /// A completion is for no command that is in flight.
    Request,
    /// The device was given memory that is not mapped, or could not reach what is.
    Dma,
    /// A call failed, and nothing had happened that lets it.
    Failed,
    /// A call took longer than its deadlines.
    Deadline,
    /// A command in flight did not end.
    Ended,
    /// A command whose abort was confirmed went on to its end.
    Abort,
    /// What is the device's was given away (rule R2).
    Release,
    /// The device sleeps over commands (rules N1 and N2).
    DeviceWake,
    /// A host sleeps over a completion (rule N4).
    HostWake,
    /// A host was to sleep for longer than it may without a look.
    Sleep,
    /// The device wrote to memory where no command let it.
    StrayWrite,
    /// DMA mappings are left when the driver is gone.
    Mappings,
    /// Device memory is not as it was before the first map.
    DeviceMemory,
    /// The device does not come back from a reset.
    Reset,
    /// A map is on the device after a reset.
    Forgotten,
    /// A queue or a map from before a reset is not refused as such.
    OldHandle,
    /// A call on a device that was removed succeeded, or did not say that it is gone.
    Removal,
    /// The driver accessed a register that there is not.
    Register,
    /// The driver or the device panicked.
    Panic,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::History,
        Self::WalkComplete,
        Self::WalkPresent,
        Self::WalkOnce,
        Self::Bytes,
        Self::Status,
        Self::Request,
        Self::Dma,
        Self::Failed,
        Self::Deadline,
        Self::Ended,
        Self::Abort,
        Self::Release,
        Self::DeviceWake,
        Self::HostWake,
        Self::Sleep,
        Self::StrayWrite,
        Self::Mappings,
        Self::DeviceMemory,
        Self::Reset,
        Self::Forgotten,
        Self::OldHandle,
        Self::Removal,
        Self::Register,
        Self::Panic,
    ];

    /// What a call violates that ended with an error, and may not have.
    pub(crate) const fn of(error: &DriverError) -> Self {
        match error {
            DriverError::BadCompletion { .. } => Self::Request,
            _ => Self::Failed,
        }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::WalkComplete => "walk complete",
            Self::WalkPresent => "walk present",
            Self::WalkOnce => "walk once",
            Self::Bytes => "bytes",
            Self::Status => "status",
            Self::Request => "request",
            Self::Dma => "dma",
            Self::Failed => "failed call",
            Self::Deadline => "deadline",
            Self::Ended => "ended",
            Self::Abort => "abort",
            Self::Release => "release",
            Self::DeviceWake => "device wake-up",
            Self::HostWake => "host wake-up",
            Self::Sleep => "sleep",
            Self::StrayWrite => "stray write",
            Self::Mappings => "mappings",
            Self::DeviceMemory => "device memory",
            Self::Reset => "reset",
            Self::Forgotten => "forgotten",
            Self::OldHandle => "old handle",
            Self::Removal => "removal",
            Self::Register => "register",
            Self::Panic => "panic",
        }
    }
}

/// A check that failed, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) check: Check,
    pub(crate) what: String,
}

impl Fault {
    /// A panic that was caught.
    pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a message");
        Self {
            check: Check::Panic,
            what: format!("panic: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compiler sees to it that a new check has a name; this, that it is in the list.
    #[test]
    fn the_list_is_whole() {
        for (index, check) in Check::ALL.into_iter().enumerate() {
            assert_eq!(check as usize, index, "{check:?}");
        }
        assert_eq!(Check::Panic as usize + 1, Check::ALL.len());
    }
}
