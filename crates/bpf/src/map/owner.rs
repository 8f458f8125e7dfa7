//! Which programs may use a map (`bpf_prog_map_compatible`, `bpf_offload_prog_map_match`).

use super::Map;
use crate::device::OffloadDevice;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::MapFile;
use crate::uapi::MapType;
use std::fmt;
use std::sync::Arc;

/// What of a program decides whether it may use a map.
#[derive(Clone)]
pub struct ProgramTraits {
    /// `enum bpf_prog_type`; for an extension that of the program that it extends.
    pub prog_type: u32,
    /// It was compiled to machine code.
    pub jited: bool,
    /// It is an XDP program that takes packets in fragments.
    pub xdp_has_frags: bool,
    /// Number of the function that it attaches to (`attach_func_proto`), or `None`.
    pub attach_func_proto: Option<u64>,
    /// The offload device that it was loaded for, or `None` for one that runs on the host.
    pub offload_device: Option<Arc<dyn OffloadDevice>>,
}

impl fmt::Debug for ProgramTraits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.offload_device.as_ref();
        f.debug_struct("ProgramTraits")
            .field("prog_type", &self.prog_type)
            .field("jited", &self.jited)
            .field("xdp_has_frags", &self.xdp_has_frags)
            .field("attach_func_proto", &self.attach_func_proto)
            .field("offload_device", &device.map(|device| device.describe()))
            .finish()
    }
}

/// `struct bpf_map_owner`: the traits of the first program that used the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProgramOwner {
    prog_type: u32,
    jited: bool,
    xdp_has_frags: bool,
    attach_func_proto: Option<u64>,
}

/// `BPF_PROG_TYPE_TRACING`, `_STRUCT_OPS`, `_EXT` and `_LSM`: the function that they attach to
/// is part of what they are.
const TYPES_BY_FUNCTION: [u32; 4] = [26, 27, 28, 29];

impl ProgramOwner {
    fn of(program: &ProgramTraits) -> Self {
        Self {
            prog_type: program.prog_type,
            jited: program.jited,
            xdp_has_frags: program.xdp_has_frags,
            attach_func_proto: program.attach_func_proto,
        }
    }

    /// `__bpf_prog_map_compatible`, with an owner that is there.
    fn check(&self, program: &Self) -> Result<()> {
        let function = |owner: &Self| {
            TYPES_BY_FUNCTION
                .contains(&owner.prog_type)
                .then_some(owner.attach_func_proto)
        };
        let same = self.prog_type == program.prog_type
            && self.jited == program.jited
            && self.xdp_has_frags == program.xdp_has_frags
            && function(self) == function(program);
        if same {
            return Ok(());
        }
        Err(Error::because(
            Errno::EINVAL,
            format!("the map is owned by programs like {self:?}, and this one is {program:?}"),
        ))
    }
}

/// `map_type_contains_progs`: those whose elements are, or have, programs.
const fn contains_programs(map_type: MapType) -> bool {
    matches!(
        map_type,
        MapType::PROG_ARRAY | MapType::DEVMAP | MapType::CPUMAP
    )
}

/// Sets the owner if there is none, and compares if there is one.
fn own(owner: &mut Option<ProgramOwner>, program: &ProgramTraits) -> Result<()> {
    let program = ProgramOwner::of(program);
    owner.get_or_insert(program).check(&program)
}

impl Map {
    /// `bpf_offload_prog_map_match`, where the program or the map is offloaded.
    fn check_device(&self, program: &ProgramTraits) -> Result<()> {
        let fields = &self.read_mostly;
        let matches = match (&fields.offload, &program.offload_device) {
            (None, None) => true,
            (Some(map), Some(device)) => map.matches(device),
            (Some(_), None) => false,
            // `bpf_map_offload_neutral`: events go from a device to the host's buffers.
            (None, Some(_)) => fields.map_type == MapType::PERF_EVENT_ARRAY,
        };
        if matches {
            return Ok(());
        }
        let device = match &program.offload_device {
            Some(device) => device.describe(),
            None => "the host".into(),
        };
        Err(Error::because(
            Errno::EINVAL,
            format!(
                "the program is for {device}, and the map is {}",
                match &fields.offload {
                    Some(map) if map.is_gone() => "of a device that was removed",
                    Some(_) => "on another device",
                    None => "on the host",
                }
            ),
        ))
    }
}

impl MapFile {
    /// Whether a program may use the map, as the verifier asks when it is loaded
    /// (`check_map_prog_compatibility`, `bpf_check_tail_call`): EINVAL unless both are of one
    /// offload device, through whichever of its ports, or both of the host; and for maps of
    /// programs, unless the program is like the first one that used the map, which becomes
    /// the owner.
    pub fn bind_program(&self, program: &ProgramTraits) -> Result<()> {
        let map = self.map();
        map.check_device(program)?;
        if contains_programs(self.map_type()) {
            own(&mut map.owner(), program)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(prog_type: u32) -> ProgramTraits {
        ProgramTraits {
            prog_type,
            jited: true,
            xdp_has_frags: false,
            attach_func_proto: Some(1),
            offload_device: None,
        }
    }

    #[test]
    fn the_first_program_owns_the_map() {
        const XDP: u32 = 6;
        let mut owner = None;
        let first = program(XDP);
        own(&mut owner, &first).unwrap();
        own(&mut owner, &first).unwrap();
        // The function counts only for the types that attach to one.
        let elsewhere = ProgramTraits {
            attach_func_proto: Some(2),
            ..first.clone()
        };
        own(&mut owner, &elsewhere).unwrap();
        for other in [
            program(1),
            ProgramTraits {
                jited: false,
                ..first.clone()
            },
            ProgramTraits {
                xdp_has_frags: true,
                ..first.clone()
            },
        ] {
            let refused = own(&mut owner, &other).unwrap_err();
            assert_eq!(refused.errno(), Errno::EINVAL);
        }
        own(&mut owner, &first).unwrap();
    }

    #[test]
    fn the_function_counts_for_types_that_attach_to_one() {
        for prog_type in TYPES_BY_FUNCTION {
            let mut owner = None;
            let first = program(prog_type);
            own(&mut owner, &first).unwrap();
            let elsewhere = ProgramTraits {
                attach_func_proto: Some(2),
                ..first.clone()
            };
            assert!(own(&mut owner, &elsewhere).is_err(), "{prog_type}");
            own(&mut owner, &first).unwrap();
        }
    }

    #[test]
    fn maps_of_programs() {
        let of_programs: Vec<u32> = (0..64)
            .filter(|&number| contains_programs(MapType(number)))
            .collect();
        assert_eq!(of_programs, [3, 14, 16]);
    }
}
