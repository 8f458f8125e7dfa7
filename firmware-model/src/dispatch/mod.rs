//! Commands: validation, operands, completions.

pub(crate) mod admin;
mod batch;
mod element;

use crate::access::Access;
use crate::maps::Maps;
use crate::table::LANES;
use crate::{Config, HostFault, HostMemory};
use alloc::vec;
use alloc::vec::Vec;
use offmap_abi::{Completion, IoOpcode, Status, Submission};

/// Least room for keys, and for values, in bytes: what a batch reads at a time.
const SCRATCH_BYTES: usize = 16 << 10;

/// Buffers of the firmware, so that no command allocates.
#[derive(Debug)]
pub(crate) struct Scratch {
    keys: Vec<u8>,
    values: Vec<u8>,
    references: Vec<u32>,
    statuses: [u8; 2 * LANES],
}

impl Scratch {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            keys: vec![0; SCRATCH_BYTES.max(config.key_bytes as usize)],
            values: vec![0; SCRATCH_BYTES],
            references: Vec::with_capacity(config.batch as usize),
            statuses: [0; 2 * LANES],
        }
    }

    /// Makes room for one value of a map that is created.
    pub(crate) fn reserve_value(&mut self, bytes: usize) {
        if self.values.len() < bytes {
            self.values.resize(bytes, 0);
        }
    }
}

/// What a command of an I/O queue works on.
pub(crate) struct Io<'a, A, H> {
    pub(crate) config: &'a Config,
    pub(crate) maps: &'a Maps,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) access: &'a mut A,
    pub(crate) host: &'a mut H,
}

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// Runs the command to its end.
    #[inline]
    pub(crate) fn run(&mut self, command: &Submission) -> Completion {
        let result = match IoOpcode(command.opcode) {
            IoOpcode::Nop => Ok(Completion::new(command.request(), Status::Success)),
            IoOpcode::Lookup => self.lookup(command),
            IoOpcode::Update => self.update(command),
            IoOpcode::Delete => self.delete(command),
            IoOpcode::GetFirst => self.get_next(command, false),
            IoOpcode::GetNext => self.get_next(command, true),
            IoOpcode::LookupAndDelete => self.lookup_and_delete(command),
            opcode if opcode.is_batch() && self.config.batch != 0 => self.batch(command, opcode),
            _ => Err(Status::InvalidOpcode),
        };
        result.unwrap_or_else(|status| Completion::new(command.request(), status))
    }
}

impl From<HostFault> for Status {
    fn from(_: HostFault) -> Self {
        Self::DmaFault
    }
}

/// Address of element `index` of an array at `iova`.
fn element_at(iova: u64, index: usize, stride: usize) -> Result<u64, Status> {
    (index as u64)
        .checked_mul(stride as u64)
        .and_then(|offset| iova.checked_add(offset))
        .ok_or(Status::DmaFault)
}

/// Checks update flags: one of BPF_ANY, BPF_NOEXIST and BPF_EXIST.
#[inline(always)]
fn update_flags(flags: u32) -> Result<u32, Status> {
    match flags {
        0..=2 => Ok(flags),
        _ => Err(Status::InvalidField),
    }
}

/// Checks that an operation that takes no flags got none.
#[inline(always)]
fn no_flags(flags: u32) -> Result<(), Status> {
    match flags {
        0 => Ok(()),
        _ => Err(Status::InvalidField),
    }
}
