//! What may be offloaded: a profile is data over a closed list of behaviours.

use offmap_bpf::device::{MapSpec, OffloadCommands, OffloadRules};
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_bpf::{Errno, Error};

/// Which errno a profile gives for a map flag that it does not take, and why in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlagRule {
    /// The flags.
    pub flags: MapFlags,
    /// The error number.
    pub errno: Errno,
    /// One sentence without a full stop.
    pub reason: &'static str,
}

/// What a device admits beyond the limits of its firmware.
///
/// BPF_F_NUMA_NODE is admitted, and means no more than the core's check that the node is there:
/// the values are in device memory, which has no node, and the DMA buffers that commands
/// travel through belong to the queues, whose node is `DriverConfig::numa_node`.
///
/// Flags in neither [`Profile::flags`] nor [`Profile::refused`] get EINVAL and a general
/// sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name, for messages.
    pub name: &'static str,
    /// Map types that it admits, bit `n` for type `n`. The device must have them, too.
    pub map_types: u64,
    /// Map flags that it admits.
    pub flags: MapFlags,
    /// Flags that it refuses with a sentence of their own, in the order in which they are
    /// checked.
    pub refused: &'static [FlagRule],
    /// Commands that reach the device, instead of failing with 524. The batch commands also
    /// need a device that has them.
    pub commands: OffloadCommands,
    /// Error of a lookup in an array, at or past `max_entries`. A host array gives ENOENT.
    pub lookup_out_of_range: Errno,
}

const fn type_bits(types: &[MapType]) -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < types.len() {
        bits |= 1 << types[i].0;
        i += 1;
    }
    bits
}

const OFFMAP_REFUSED: &[FlagRule] = &[
    FlagRule {
        flags: MapFlags::MMAPABLE,
        errno: Errno::EINVAL,
        reason: "BPF_F_MMAPABLE cannot be offloaded: the values are in device memory, which \
                 user space does not map",
    },
    FlagRule {
        flags: MapFlags::INNER_MAP,
        errno: Errno::EINVAL,
        reason: "BPF_F_INNER_MAP cannot be offloaded: the device has no maps of maps",
    },
    FlagRule {
        flags: MapFlags::PRESERVE_ELEMS,
        errno: Errno::EINVAL,
        reason: "BPF_F_PRESERVE_ELEMS cannot be offloaded: it is for perf event arrays, which \
                 the device does not have",
    },
];

impl Profile {
    /// The profile of this project's own device: every type, flag and command that it carries
    /// out with the semantics of a host map.
    pub const fn offmap() -> Self {
        Self {
            name: "offmap",
            map_types: type_bits(&[
                MapType::HASH,
                MapType::ARRAY,
                MapType::PERCPU_HASH,
                MapType::PERCPU_ARRAY,
                MapType::RINGBUF,
            ]),
            flags: MapFlags::NO_PREALLOC
                .union(MapFlags::NUMA_NODE)
                .union(MapFlags::RDONLY)
                .union(MapFlags::WRONLY)
                .union(MapFlags::ZERO_SEED)
                .union(MapFlags::RDONLY_PROG)
                .union(MapFlags::WRONLY_PROG),
            refused: OFFMAP_REFUSED,
            commands: OffloadCommands::all(),
            lookup_out_of_range: Errno::ENOENT,
        }
    }

    /// Which of the core's rules it lifts, on a device that has `device_types` (a bit set) and
    /// batch commands or not.
    pub const fn rules(&self, device_types: u64, device_batch: bool) -> OffloadRules {
        OffloadRules {
            more_map_types: self.map_types & device_types,
            commands: if device_batch {
                self.commands
            } else {
                // A command on one element, which every device has.
                self.commands
                    .intersection(OffloadCommands::LOOKUP_AND_DELETE)
            },
        }
    }

    /// Checks what can be said without the device.
    ///
    /// # Errors
    ///
    /// EINVAL for a type or a flag that is not admitted, with a sentence that names it.
    pub fn check(&self, spec: &MapSpec, device_types: u64) -> Result<(), Error> {
        let bit = 1u64.checked_shl(spec.map_type.0).unwrap_or(0);
        if self.map_types & bit == 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "the {} profile does not offload maps of type {}",
                    self.name, spec.map_type
                ),
            ));
        }
        if device_types & bit == 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!("the device has no maps of type {}", spec.map_type),
            ));
        }
        let refused = spec.map_flags.difference(self.flags);
        for rule in self.refused {
            if refused.intersects(rule.flags) {
                return Err(Error::new(rule.errno, rule.reason));
            }
        }
        if !refused.is_empty() {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "the {} profile does not take the map flags {:#x}",
                    self.name,
                    refused.bits()
                ),
            ));
        }
        Ok(())
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::offmap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u64 = type_bits(&[MapType::HASH, MapType::ARRAY, MapType::PERCPU_HASH]);

    fn spec(map_type: MapType, map_flags: MapFlags) -> MapSpec {
        MapSpec {
            map_type,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            map_flags,
            map_extra: 0,
            numa_node: None,
            possible_cpus: 2,
            name: [0; 16],
        }
    }

    #[test]
    fn types_are_those_of_profile_and_device() {
        let profile = Profile::offmap();
        let check = |t| profile.check(&spec(t, MapFlags::empty()), DEVICE);
        check(MapType::HASH).unwrap();
        check(MapType::PERCPU_HASH).unwrap();
        for (refused, says) in [
            (MapType::PERCPU_ARRAY, "the device has no"),
            (MapType::LRU_HASH, "profile does not offload"),
            (MapType(63), "profile does not offload"),
            (MapType(64), "profile does not offload"),
            (MapType(u32::MAX), "profile does not offload"),
        ] {
            let error = check(refused).unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL);
            assert!(error.reason().contains(says), "{error}");
        }
        let rules = profile.rules(DEVICE, true);
        assert!(rules.admits(MapType::PERCPU_HASH) && rules.commands.is_all());
        assert!(!rules.admits(MapType::PERCPU_ARRAY));
        let single = OffloadCommands::LOOKUP_AND_DELETE;
        assert_eq!(profile.rules(DEVICE, false).commands, single);
        let strict = Profile {
            commands: OffloadCommands::empty(),
            ..Profile::offmap()
        };
        assert!(strict.rules(DEVICE, true).commands.is_empty());
    }

    #[test]
    fn every_flag_is_either_admitted_or_refused_with_a_reason() {
        let profile = Profile::offmap();
        for bit in 0..32 {
            let flag = MapFlags::from_bits_retain(1 << bit);
            let checked = profile.check(&spec(MapType::HASH, flag), DEVICE);
            assert_eq!(checked.is_ok(), profile.flags.contains(flag), "bit {bit}");
            if let Err(e) = checked {
                assert_eq!(e.errno(), Errno::EINVAL);
            }
        }
        // A refused flag is refused in the company of admitted ones, and named.
        let both = MapFlags::MMAPABLE | MapFlags::RDONLY;
        let error = profile
            .check(&spec(MapType::ARRAY, both), DEVICE)
            .unwrap_err();
        assert!(error.reason().contains("MMAPABLE"), "{error}");
    }
}
