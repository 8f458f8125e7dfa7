//! The one place where the device's status codes and the driver's errors become error numbers.
//!
//! The numbers are those that a host map gives for the same failure, so that an offloaded
//! map and a host map agree, as far as the profile does not say otherwise. Reasons on the data path are fixed sentences: a miss allocates
//! nothing.

use crate::Profile;
use offmap_bpf::{Errno, Error};
use offmap_driver::{DriverError, IoError, Limit, Status};

/// Which operation failed: the same status has different numbers in different operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum During {
    Lookup,
    Update,
    Delete,
    NextKey,
    LookupAndDelete,
    /// Walks with or without removal.
    Walk,
}

const MISSING: Error = Error::new(
    Errno::ENOENT,
    "the key is not in the map, or a queue or stack is empty",
);
const LAST: Error = Error::new(Errno::ENOENT, "there is no further key in the map");

/// The error for a status that is not success.
#[cold]
pub(crate) fn of_status(profile: &Profile, status: Status, during: During) -> Error {
    match status {
        Status::NotFound => match during {
            During::NextKey | During::Walk => LAST,
            _ => MISSING,
        },
        Status::Exists => Error::new(Errno::EEXIST, "the key is in the map already"),
        Status::Full => Error::new(Errno::E2BIG, "the map holds max_entries entries"),
        Status::OutOfRange => match during {
            During::Update => Error::new(Errno::E2BIG, "the index is not below max_entries"),
            During::Delete => Error::new(Errno::EINVAL, "array elements cannot be deleted"),
            _ => Error::new(
                profile.lookup_out_of_range,
                "the index is not below max_entries",
            ),
        },
        Status::Unsupported => match during {
            During::Delete => Error::new(Errno::EINVAL, "array elements cannot be deleted"),
            _ => Error::new(Errno::ENOTSUPP, "maps of this type have no such operation"),
        },
        Status::NoSpace => Error::new(
            Errno::ENOSPC,
            "the next bucket of the map has more elements than the buffers have room for",
        ),
        Status::NoMemory => Error::new(Errno::ENOMEM, "device memory is used up"),
        Status::InvalidMap => {
            Error::new(Errno::ENODEV, "the device does not know the map any more")
        }
        Status::Aborted => Error::new(
            Errno::ETIMEDOUT,
            "the device did not run the command in time and gave it up without an effect",
        ),
        Status::Interrupted => Error::new(
            Errno::EIO,
            "the device ended the command after it had begun; whether it had its effect is \
             unknown",
        ),
        Status::QueueStopped => Error::new(
            Errno::EIO,
            "the device has stopped the queue that the command was on",
        ),
        // Not EFAULT: that number means the caller's pointers, and here the driver's own
        // buffers could not be reached.
        Status::DmaFault => Error::new(Errno::EIO, "the device could not reach host memory"),
        Status::MediaError => Error::new(Errno::EIO, "device memory failed its check"),
        Status::Internal => Error::new(Errno::EIO, "the device found its own state inconsistent"),
        Status::InvalidField
        | Status::InvalidOpcode
        | Status::InvalidQueue
        | Status::InvalidLength
        | Status::LimitExceeded => Error::new(
            Errno::EIO,
            "the device refused a command that is valid by its ABI",
        ),
        _ => Error::new(Errno::EIO, "the device answered with an unknown status"),
    }
}

/// The number alone, for results that carry no reason.
pub(crate) fn number(profile: &Profile, status: Status, during: During) -> Result<(), Errno> {
    if status.is_success() {
        Ok(())
    } else {
        Err(of_status(profile, status, during).errno())
    }
}

/// The error for a command that the driver could not carry out.
#[cold]
pub(crate) fn of_driver(error: &DriverError) -> Error {
    let errno = match error {
        DriverError::TimedOut { .. }
        | DriverError::AdminTimeout { .. }
        | DriverError::AdminBusy { .. } => Errno::ETIMEDOUT,
        DriverError::DeviceGone { .. }
        | DriverError::DeviceReset
        | DriverError::Down
        | DriverError::Fatal { .. }
        | DriverError::IdentityChanged => Errno::ENODEV,
        DriverError::Io {
            source: IoError::Gone(_),
            ..
        }
        | DriverError::Register {
            source: IoError::Gone(_),
            ..
        } => Errno::ENODEV,
        DriverError::Full { .. } | DriverError::NoQueuePair { .. } => Errno::EBUSY,
        DriverError::NoFeature { .. } => Errno::ENOTSUPP,
        DriverError::Length { .. } => Errno::EINVAL,
        _ => Errno::EIO,
    };
    Error::because(errno, error.to_string())
}

/// The error for a map that could not be created.
pub(crate) fn of_create(error: &DriverError) -> Error {
    match error {
        DriverError::Refused {
            limit,
            asked,
            allowed,
            used,
            status,
            ..
        } => of_limit(*status, *limit, *asked, *allowed, *used),
        DriverError::Command { status, .. } => match *status {
            Status::NoMemory => Error::new(
                Errno::ENOMEM,
                "the device has not enough free memory for the map",
            ),
            Status::InvalidField | Status::Unsupported => Error::new(
                Errno::EINVAL,
                "the device does not make maps with these attributes",
            ),
            _ => Error::because(Errno::EIO, error.to_string()),
        },
        _ => of_driver(error),
    }
}

/// Sizes that no amount of free memory would help are E2BIG, as for a host map; what depends on
/// what is free is ENOMEM.
fn of_limit(status: Status, limit: Limit, asked: u64, allowed: u64, used: u64) -> Error {
    let (errno, reason) = match limit {
        Limit::MapType => (
            Errno::EINVAL,
            format!("the device has no maps of type {asked} (its types: {allowed:#x})"),
        ),
        Limit::KeyBytes => (
            Errno::E2BIG,
            format!("the key has {asked} bytes and the device allows {allowed}"),
        ),
        Limit::ValueBytes => (
            Errno::E2BIG,
            format!("the value has {asked} bytes and the device allows {allowed}"),
        ),
        Limit::CpuSlots => (
            Errno::E2BIG,
            format!(
                "the host has {asked} possible CPUs and the device has per-CPU values for {allowed}"
            ),
        ),
        Limit::EntriesPerMap => (
            Errno::ENOMEM,
            format!("the map has {asked} entries and the device allows {allowed} in one map"),
        ),
        Limit::EntriesTotal => (
            Errno::ENOMEM,
            format!(
                "the map has {asked} entries, the device allows {allowed} in all maps together \
                 and {used} are taken"
            ),
        ),
        Limit::Maps => (
            Errno::ENOMEM,
            format!("the device allows {allowed} maps and {used} exist"),
        ),
        Limit::Memory => (
            Errno::ENOMEM,
            format!(
                "the map needs {asked} bytes of device memory; the largest free piece has \
                 {allowed}, and {used} are in use"
            ),
        ),
        other => (
            Errno::ENOMEM,
            format!(
                "the device refuses the map ({status}): {other} asked {asked}, allowed {allowed}, used {used}"
            ),
        ),
    };
    Error::because(errno, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of a host map for the same failure (kernel contract: host maps).
    #[test]
    fn data_path_numbers_are_those_of_a_host_map() {
        use During::*;
        let table = [
            (Status::NotFound, Lookup, Errno::ENOENT),
            (Status::NotFound, NextKey, Errno::ENOENT),
            (Status::NotFound, Walk, Errno::ENOENT),
            (Status::Exists, Update, Errno::EEXIST),
            (Status::Full, Update, Errno::E2BIG),
            (Status::OutOfRange, Lookup, Errno::ENOENT),
            (Status::OutOfRange, Update, Errno::E2BIG),
            (Status::OutOfRange, Delete, Errno::EINVAL),
            (Status::Unsupported, Delete, Errno::EINVAL),
            (Status::Unsupported, LookupAndDelete, Errno::ENOTSUPP),
            (Status::NoSpace, Walk, Errno::ENOSPC),
            (Status::NoMemory, Update, Errno::ENOMEM),
            (Status::Aborted, Update, Errno::ETIMEDOUT),
            (Status::Interrupted, Update, Errno::EIO),
            (Status::QueueStopped, Lookup, Errno::EIO),
            (Status(0x7777), Lookup, Errno::EIO),
        ];
        let profile = &Profile::offmap();
        for (status, during, errno) in table {
            assert_eq!(
                of_status(profile, status, during).errno(),
                errno,
                "{status} {during:?}"
            );
            assert_eq!(number(profile, status, during), Err(errno));
        }
        assert_eq!(number(profile, Status::Success, Lookup), Ok(()));
        let unknown = of_status(profile, Status::Interrupted, Update);
        assert!(unknown.reason().contains("unknown"), "{unknown}");
    }

    #[test]
    fn a_profile_changes_the_numbers_that_it_names() {
        let like_nfp = Profile {
            lookup_out_of_range: Errno::E2BIG,
            ..Profile::offmap()
        };
        let number = |during| number(&like_nfp, Status::OutOfRange, during);
        assert_eq!(number(During::Lookup), Err(Errno::E2BIG));
        assert_eq!(number(During::Delete), Err(Errno::EINVAL));
    }

    #[test]
    fn limits_say_their_figures() {
        for (limit, errno) in [
            (Limit::MapType, Errno::EINVAL),
            (Limit::KeyBytes, Errno::E2BIG),
            (Limit::ValueBytes, Errno::E2BIG),
            (Limit::CpuSlots, Errno::E2BIG),
            (Limit::EntriesPerMap, Errno::ENOMEM),
            (Limit::EntriesTotal, Errno::ENOMEM),
            (Limit::Maps, Errno::ENOMEM),
            (Limit::Memory, Errno::ENOMEM),
            (Limit(99), Errno::ENOMEM),
        ] {
            let error = of_limit(Status::LimitExceeded, limit, 4711, 0x815, 42);
            assert_eq!(error.errno(), errno, "{limit}");
            let says = |n: &str| error.reason().contains(n);
            assert!(says("4711") || limit == Limit::Maps, "{error}");
            assert!(says("2069") || says("0x815"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_gone_is_enodev() {
        let gone = DriverError::Io {
            what: "reset the function",
            source: IoError::Gone("unplugged"),
        };
        let register = DriverError::Register {
            access: "write",
            register: "KICK",
            source: IoError::Gone("unplugged"),
        };
        for error in [gone, register, DriverError::DeviceReset, DriverError::Down] {
            assert_eq!(of_driver(&error).errno(), Errno::ENODEV);
        }
    }
}
