//! The one place where the device's status codes and the driver's errors become error numbers.
//!
//! The numbers are those that a host map gives for the same failure, so that an offloaded
//! map and a host map agree, as far as the profile does not say otherwise. Reasons on the data path are fixed sentences: a miss allocates
//! nothing.

use crate::{Operation, Profile};
use offmap_bpf::device::MapSpec;
use offmap_bpf::uapi::MapType;
use offmap_bpf::{Errno, Error};
use offmap_driver::{DriverError, Identity, IoError, Limit, Status};

/// Which operation failed: the same status has different numbers in different operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum During {
    Lookup,
    /// With these flags.
    Update(u64),
    Delete,
    /// Updates and deletions in a trie, whose host map has numbers of its own.
    UpdateTrie(u64),
    DeleteTrie,
    NextKey,
    LookupAndDelete,
    /// Walks with or without removal.
    Walk,
}

impl During {
    /// What a profile's rules call it, and the flags of an update.
    const fn operation(self) -> (Operation, u64) {
        match self {
            Self::Lookup => (Operation::Lookup, 0),
            Self::Update(flags) | Self::UpdateTrie(flags) => (Operation::Update, flags),
            Self::Delete | Self::DeleteTrie => (Operation::Delete, 0),
            Self::NextKey => (Operation::NextKey, 0),
            Self::LookupAndDelete => (Operation::LookupAndDelete, 0),
            Self::Walk => (Operation::Walk, 0),
        }
    }
}

const MISSING: Error = Error::new(
    Errno::ENOENT,
    "the key is not in the map, or a queue or stack is empty",
);
const LAST: Error = Error::new(Errno::ENOENT, "there is no further key in the map");

/// The error for a status that is not success, of an operation on a map of type `map_type`:
/// the profile's where it has a rule, otherwise a host map's.
#[cold]
pub(crate) fn of_status(
    profile: &Profile,
    map_type: MapType,
    status: Status,
    during: During,
) -> Error {
    let error = of_host(status, during);
    let (operation, flags) = during.operation();
    match profile.errno(operation, map_type, flags, status) {
        Some(errno) => error.with_errno(errno),
        None => error,
    }
}

/// The number and the sentence where no profile says otherwise.
fn of_host(status: Status, during: During) -> Error {
    match status {
        Status::NotFound => match during {
            During::NextKey | During::Walk => LAST,
            _ => MISSING,
        },
        Status::Exists => Error::new(Errno::EEXIST, "the key is in the map already"),
        Status::Full if matches!(during, During::UpdateTrie(_)) => Error::new(
            Errno::ENOSPC,
            "the map holds max_entries prefixes and the prefix is new",
        ),
        Status::Full => Error::new(Errno::E2BIG, "the map holds max_entries entries"),
        Status::OutOfRange => match during {
            During::Update(_) => Error::new(Errno::E2BIG, "the index is not below max_entries"),
            During::Delete => Error::new(Errno::EINVAL, "array elements cannot be deleted"),
            During::UpdateTrie(_) | During::DeleteTrie => Error::new(
                Errno::EINVAL,
                "prefixlen: exceeds the bits that the map's keys have",
            ),
            _ => Error::new(Errno::ENOENT, "the index is not below max_entries"),
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
pub(crate) fn number(
    profile: &Profile,
    map_type: MapType,
    status: Status,
    during: During,
) -> Result<(), Errno> {
    if status.is_success() {
        Ok(())
    } else {
        Err(of_status(profile, map_type, status, during).errno())
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
pub(crate) fn of_create(profile: &str, error: &DriverError) -> Error {
    match error {
        DriverError::Refused {
            limit,
            asked,
            allowed,
            used,
            status,
            memory,
            ..
        } => {
            let error = of_limit(profile, *status, *limit, [*asked, *allowed, *used]);
            match memory.and_then(|memory| Some((memory.tier?, memory.free_bytes))) {
                Some((tier, free)) => Error::because(
                    error.errno(),
                    format!(
                        "the map needs {asked} bytes in memory tier {tier} of the device of profile \
                         {profile}, where it was to be placed; the largest free piece there has \
                         {allowed}, {free} are free in all, and {used} are in use"
                    ),
                ),
                None => error,
            }
        }
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

/// What a device with these limits would say to a map that it is not asked for yet.
pub(crate) fn beyond(profile: &str, identity: &Identity, spec: &MapSpec) -> Option<Error> {
    let limits = [
        (Limit::KeyBytes, spec.key_size, identity.key_bytes),
        (Limit::ValueBytes, spec.value_size, identity.value_bytes),
        (
            Limit::EntriesPerMap,
            spec.max_entries,
            identity.entries_per_map,
        ),
    ];
    let (limit, asked, allowed) = limits.into_iter().find(|(_, asked, most)| asked > most)?;
    let status = Status::LimitExceeded;
    Some(of_limit(
        profile,
        status,
        limit,
        [asked.into(), allowed.into(), 0],
    ))
}

/// Sizes that no amount of free memory would help are E2BIG, as for a host map; what depends on
/// what is free is ENOMEM.
fn of_limit(
    profile: &str,
    status: Status,
    limit: Limit,
    [asked, allowed, used]: [u64; 3],
) -> Error {
    let (errno, reason) = match limit {
        Limit::MapType => (
            Errno::EINVAL,
            format!(
                "map_type {asked}: the device of profile {profile} has no such maps (its types: \
                 {allowed:#x})"
            ),
        ),
        Limit::KeyBytes => (
            Errno::E2BIG,
            format!("key_size {asked}: the device of profile {profile} allows {allowed} bytes"),
        ),
        Limit::ValueBytes => (
            Errno::E2BIG,
            format!("value_size {asked}: the device of profile {profile} allows {allowed} bytes"),
        ),
        Limit::CpuSlots => (
            Errno::E2BIG,
            format!(
                "map_type: the host has {asked} possible CPUs, and the device of profile {profile} \
                 has per-CPU values for {allowed}"
            ),
        ),
        Limit::EntriesPerMap => (
            Errno::ENOMEM,
            format!(
                "max_entries {asked}: the device of profile {profile} allows {allowed} in one map"
            ),
        ),
        Limit::EntriesTotal => (
            Errno::ENOMEM,
            format!(
                "max_entries {asked}: the device of profile {profile} allows {allowed} in all maps \
                 together, and {used} are taken"
            ),
        ),
        Limit::Maps => (
            Errno::ENOMEM,
            format!(
                "map_ifindex: the device of profile {profile} allows {allowed} maps, and {used} exist"
            ),
        ),
        Limit::Memory => (
            Errno::ENOMEM,
            format!(
                "max_entries, key_size and value_size make {asked} bytes of memory on the device of \
                 profile {profile}; its largest free piece has {allowed}, and {used} are in use"
            ),
        ),
        other => (
            Errno::ENOMEM,
            format!(
                "the device of profile {profile} refuses the map ({status}): {other} asked {asked}, \
                 allowed {allowed}, used {used}"
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
            (Status::Exists, Update(1), Errno::EEXIST),
            (Status::Full, Update(0), Errno::E2BIG),
            (Status::NotFound, UpdateTrie(2), Errno::ENOENT),
            (Status::Full, UpdateTrie(0), Errno::ENOSPC),
            (Status::OutOfRange, UpdateTrie(0), Errno::EINVAL),
            (Status::OutOfRange, DeleteTrie, Errno::EINVAL),
            (Status::OutOfRange, Lookup, Errno::ENOENT),
            (Status::OutOfRange, Update(0), Errno::E2BIG),
            (Status::OutOfRange, Delete, Errno::EINVAL),
            (Status::Unsupported, Delete, Errno::EINVAL),
            (Status::Unsupported, LookupAndDelete, Errno::ENOTSUPP),
            (Status::NoSpace, Walk, Errno::ENOSPC),
            (Status::NoMemory, Update(0), Errno::ENOMEM),
            (Status::Aborted, Update(0), Errno::ETIMEDOUT),
            (Status::Interrupted, Update(0), Errno::EIO),
            (Status::QueueStopped, Lookup, Errno::EIO),
            (Status(0x7777), Lookup, Errno::EIO),
        ];
        let profile = &Profile::offmap();
        for (status, during, errno) in table {
            let error = of_status(profile, MapType::HASH, status, during);
            assert_eq!(error.errno(), errno, "{status} {during:?}");
            let number = number(profile, MapType::HASH, status, during);
            assert_eq!(number, Err(errno));
        }
        let success = number(profile, MapType::HASH, Status::Success, Lookup);
        assert_eq!(success, Ok(()));
        let unknown = of_status(profile, MapType::HASH, Status::Interrupted, Update(0));
        assert!(unknown.reason().contains("unknown"), "{unknown}");
    }

    #[test]
    fn a_profile_changes_the_numbers_that_it_names() {
        use During::*;
        let (hash, array) = (MapType::HASH, MapType::ARRAY);
        let out = Status::OutOfRange;
        for (name, map_type, status, during, errno) in [
            ("nfp", array, out, Lookup, Errno::E2BIG),
            ("nfp", array, out, Update(2), Errno::E2BIG),
            ("nfp", array, out, Delete, Errno::EINVAL),
            ("nfp", hash, Status::InvalidMap, Lookup, Errno::EBADFD),
            ("nfp", hash, Status::NotFound, NextKey, Errno::ENOENT),
            ("nfp", hash, Status::InvalidField, Update(0), Errno::EINVAL),
            ("nfp", hash, Status::InvalidLength, Update(0), Errno::EIO),
            ("nfp", hash, Status::Exists, Update(1), Errno::EEXIST),
            ("nfp", hash, Status::NoMemory, Update(0), Errno::ENOMEM),
            ("nfp", hash, Status::Full, Update(0), Errno::E2BIG),
            ("nfp", hash, Status(0x7777), Update(0), Errno::EIO),
            ("netdevsim", array, out, Update(2), Errno::ENOENT),
            ("netdevsim", array, out, Update(1), Errno::E2BIG),
            ("netdevsim", array, out, Update(0), Errno::E2BIG),
            ("netdevsim", array, out, Lookup, Errno::ENOENT),
            ("netdevsim", hash, Status::Full, Update(2), Errno::E2BIG),
            // What ends a walk is part of the command.
            ("nfp", hash, Status::InvalidMap, Walk, Errno::ENODEV),
        ] {
            let profile = Profile::named(name).unwrap();
            let error = of_status(&profile, map_type, status, during);
            assert_eq!(
                error.errno(),
                errno,
                "{name}: {map_type} {status} {during:?}"
            );
            // The sentence is the same.
            let host = of_host(status, during);
            assert_eq!(error.reason(), host.reason());
        }
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
            let error = of_limit("offmap", Status::LimitExceeded, limit, [4711, 0x815, 42]);
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
