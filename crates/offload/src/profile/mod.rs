//! What may be offloaded: a profile is data over a closed list of behaviours.
//!
//! A profile is a TOML file (docs/profiles.md). Those of this crate are such files, too,
//! in the folder `profiles`, and are read by the same code as a user's.

mod alloc;
mod file;
mod parts;
mod words;

pub use alloc::{AllocCheck, AllocRule, Situation, Usage};
pub use file::ProfileError;
pub use parts::{Behaviours, ErrnoRule, FlagReason, Operation, ReplyCacheRule};

use offmap_bpf::Errno;
use offmap_bpf::device::{OffloadCommands, OffloadRules};
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_driver::{DriverConfig, Status};
use std::path::Path;
use std::sync::LazyLock;
use words::type_list;

/// What a device admits beyond the limits of its firmware, and how it behaves where that
/// differs from a host map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name, for messages.
    pub name: String,
    /// What it is, in one sentence without a full stop.
    pub description: String,
    /// Map types that it admits, bit `n` for type `n`. The device must have them, too.
    pub map_types: u64,
    /// Map flags that it admits. `BPF_F_RDONLY` and `BPF_F_WRONLY` are not among them: they
    /// concern a file descriptor, and no device sees them.
    pub flags: MapFlags,
    /// Sentences for flags that it does not admit.
    pub flag_reasons: Vec<FlagReason>,
    /// Commands that reach the device, instead of failing with 524. The batch commands also
    /// need a device that has them.
    pub commands: OffloadCommands,
    /// Whether maps may have BTF, and with it special fields and `BPF_F_LOCK`. The kernel's
    /// offload refuses it with 524.
    pub btf: bool,
    /// What MAP_ALLOC is checked for, in order; the first that fails decides.
    pub alloc: Vec<AllocRule>,
    /// Error numbers of data operations that differ from a host map's; the first that fits
    /// decides.
    pub errnos: Vec<ErrnoRule>,
    /// What else a driver of this kind does.
    pub behaviours: Behaviours,
}

/// The files of the profiles that are built in, by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("offmap", include_str!("../../profiles/offmap.toml")),
    ("netdevsim", include_str!("../../profiles/netdevsim.toml")),
    ("nfp", include_str!("../../profiles/nfp.toml")),
];

static PARSED: LazyLock<Vec<Profile>> = LazyLock::new(|| {
    let parse = |(name, text): &(&str, &str)| match file::parse(text) {
        Ok(profile) if profile.name == *name => profile,
        // Shown to be unreachable by a test that reads all of them.
        Ok(other) => unreachable!("the built-in profile {name} calls itself {}", other.name),
        Err(fault) => unreachable!("the built-in profile {name}: {fault}"),
    };
    BUILT_IN.iter().map(parse).collect()
});

impl Profile {
    /// The profile of this project's own device: every type, flag and command that it carries
    /// out with the semantics of a host map.
    pub fn offmap() -> Self {
        PARSED[0].clone()
    }

    /// All built-in profiles, the default one first.
    pub fn built_in() -> &'static [Self] {
        &PARSED
    }

    /// The text of the built-in profile `name`, as an example for one's own.
    pub fn built_in_text(name: &str) -> Option<&'static str> {
        let found = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(found.1)
    }

    /// The built-in profile `name`: `offmap`, `netdevsim` or `nfp`.
    ///
    /// # Errors
    ///
    /// [`ProfileError::Unknown`], which lists the names.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let found = PARSED.iter().find(|profile| profile.name == name);
        found.cloned().ok_or_else(|| ProfileError::Unknown {
            name: name.to_owned(),
            known: BUILT_IN.map(|(name, _)| name).join(", "),
        })
    }

    /// The profile in the file `path`.
    ///
    /// # Errors
    ///
    /// [`ProfileError`], with the file, the line and what is wrong there.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ProfileError> {
        file::read(path.as_ref())
    }

    /// The profile in a file's text, as [`Profile::from_file`] reads it.
    ///
    /// # Errors
    ///
    /// [`ProfileError::Invalid`], with `what` for the file's name.
    pub fn from_text(what: &str, text: &str) -> Result<Self, ProfileError> {
        file::from_text(what, text)
    }

    /// The built-in profile of that name or, where there is none, the one in the file of that
    /// path.
    ///
    /// # Errors
    ///
    /// As [`Profile::from_file`]; [`ProfileError::Unknown`] for what is neither.
    pub fn find(name_or_path: &str) -> Result<Self, ProfileError> {
        match Self::named(name_or_path) {
            Ok(profile) => Ok(profile),
            Err(unknown) => {
                let path = Path::new(name_or_path);
                // A plain word is a name that was mistyped rather than a path.
                let is_path = name_or_path.contains(['/', '.']) || path.exists();
                if is_path {
                    Self::from_file(path)
                } else {
                    Err(unknown)
                }
            }
        }
    }

    /// Whether it admits maps of a type, on a device that has them.
    pub const fn admits_type(&self, map_type: MapType) -> bool {
        map_type.0 < 64 && self.map_types >> map_type.0 & 1 != 0
    }

    /// Which of the core's rules it lifts, on a device that has `device_types` (a bit set) and
    /// batch commands or not.
    pub const fn rules(&self, device_types: u64, device_batch: bool) -> OffloadRules {
        OffloadRules {
            more_map_types: self.map_types & device_types,
            btf: self.btf,
            commands: if device_batch {
                self.commands
            } else {
                // A command on one element, which every device has.
                self.commands
                    .intersection(OffloadCommands::LOOKUP_AND_DELETE)
            },
        }
    }

    /// Why maps of this type cannot be offloaded on a device that has `device_types`; `None`
    /// when they can.
    pub fn type_refusal(&self, map_type: MapType, device_types: u64) -> Option<String> {
        if !self.admits_type(map_type) {
            return Some(format!(
                "profile {} offloads maps of type {} only",
                self.name,
                type_list(self.map_types)
            ));
        }
        if device_types >> map_type.0 & 1 == 0 {
            return Some(format!(
                "profile {} admits this type, and the device has maps of type {} only",
                self.name,
                type_list(device_types)
            ));
        }
        None
    }

    /// The error number that it gives for a status of a data operation, where that differs from
    /// a host map's. `flags` are those of an update.
    pub fn errno(
        &self,
        operation: Operation,
        map_type: MapType,
        flags: u64,
        status: Status,
    ) -> Option<Errno> {
        let fits = |rule: &&ErrnoRule| rule.fits(operation, map_type, flags, status);
        self.errnos.iter().find(fits).map(|rule| rule.errno)
    }

    /// `base` with this profile's deadline for operations, if it has one.
    pub fn driver_config(&self, base: DriverConfig) -> DriverConfig {
        match self.behaviours.deadline {
            Some(deadline) => DriverConfig {
                op_timeout: deadline,
                ..base
            },
            None => base,
        }
    }

    /// Whether it counts maps or their elements.
    pub(crate) fn counts(&self) -> bool {
        let counting = |rule: &AllocRule| {
            matches!(
                rule.check,
                AllocCheck::MaxMaps { .. } | AllocCheck::ElementBudget { .. }
            )
        };
        self.alloc.iter().any(counting)
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::offmap()
    }
}

#[cfg(test)]
mod tests;
