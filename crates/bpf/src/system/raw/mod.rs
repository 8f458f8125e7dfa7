//! bpf(2) itself: a command's number and its attribute as bytes (`__sys_bpf`).
//!
//! What is here is the boundary to user memory: the attribute's size and tail, the order in
//! which pointers are followed, what is written back and when. What the commands do is behind
//! it, the same as for the typed calls.

mod attr;
mod batch;
mod btf;
mod elements;
mod info;
mod log;
mod objects;

use super::{Fd, System};
use crate::caller::Caller;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::user_memory::UserMemory;
use attr::Attr;

/// `enum bpf_cmd`, as far as it is of the map side.
pub mod command {
    /// BPF_MAP_CREATE.
    pub const MAP_CREATE: u32 = 0;
    /// BPF_MAP_LOOKUP_ELEM.
    pub const MAP_LOOKUP_ELEM: u32 = 1;
    /// BPF_MAP_UPDATE_ELEM.
    pub const MAP_UPDATE_ELEM: u32 = 2;
    /// BPF_MAP_DELETE_ELEM.
    pub const MAP_DELETE_ELEM: u32 = 3;
    /// BPF_MAP_GET_NEXT_KEY.
    pub const MAP_GET_NEXT_KEY: u32 = 4;
    /// BPF_OBJ_PIN.
    pub const OBJ_PIN: u32 = 6;
    /// BPF_OBJ_GET.
    pub const OBJ_GET: u32 = 7;
    /// BPF_MAP_GET_NEXT_ID.
    pub const MAP_GET_NEXT_ID: u32 = 12;
    /// BPF_MAP_GET_FD_BY_ID.
    pub const MAP_GET_FD_BY_ID: u32 = 14;
    /// BPF_OBJ_GET_INFO_BY_FD.
    pub const OBJ_GET_INFO_BY_FD: u32 = 15;
    /// BPF_BTF_LOAD.
    pub const BTF_LOAD: u32 = 18;
    /// BPF_BTF_GET_FD_BY_ID.
    pub const BTF_GET_FD_BY_ID: u32 = 19;
    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    pub const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
    /// BPF_MAP_FREEZE.
    pub const MAP_FREEZE: u32 = 22;
    /// BPF_BTF_GET_NEXT_ID.
    pub const BTF_GET_NEXT_ID: u32 = 23;
    /// BPF_MAP_LOOKUP_BATCH.
    pub const MAP_LOOKUP_BATCH: u32 = 24;
    /// BPF_MAP_LOOKUP_AND_DELETE_BATCH.
    pub const MAP_LOOKUP_AND_DELETE_BATCH: u32 = 25;
    /// BPF_MAP_UPDATE_BATCH.
    pub const MAP_UPDATE_BATCH: u32 = 26;
    /// BPF_MAP_DELETE_BATCH.
    pub const MAP_DELETE_BATCH: u32 = 27;
    /// BPF_COMMON_ATTRS: the call has a `struct bpf_common_attr`, too (7.3).
    pub const COMMON_ATTRS: u32 = 1 << 16;

    /// The command's name without `BPF_`, for the commands above.
    pub const fn name(command: u32) -> Option<&'static str> {
        Some(match command {
            MAP_CREATE => "MAP_CREATE",
            MAP_LOOKUP_ELEM => "MAP_LOOKUP_ELEM",
            MAP_UPDATE_ELEM => "MAP_UPDATE_ELEM",
            MAP_DELETE_ELEM => "MAP_DELETE_ELEM",
            MAP_GET_NEXT_KEY => "MAP_GET_NEXT_KEY",
            OBJ_PIN => "OBJ_PIN",
            OBJ_GET => "OBJ_GET",
            MAP_GET_NEXT_ID => "MAP_GET_NEXT_ID",
            MAP_GET_FD_BY_ID => "MAP_GET_FD_BY_ID",
            OBJ_GET_INFO_BY_FD => "OBJ_GET_INFO_BY_FD",
            BTF_LOAD => "BTF_LOAD",
            BTF_GET_FD_BY_ID => "BTF_GET_FD_BY_ID",
            MAP_LOOKUP_AND_DELETE_ELEM => "MAP_LOOKUP_AND_DELETE_ELEM",
            MAP_FREEZE => "MAP_FREEZE",
            BTF_GET_NEXT_ID => "BTF_GET_NEXT_ID",
            MAP_LOOKUP_BATCH => "MAP_LOOKUP_BATCH",
            MAP_LOOKUP_AND_DELETE_BATCH => "MAP_LOOKUP_AND_DELETE_BATCH",
            MAP_UPDATE_BATCH => "MAP_UPDATE_BATCH",
            MAP_DELETE_BATCH => "MAP_DELETE_BATCH",
            _ => return None,
        })
    }
}

/// One call: who makes it, and the memory that its addresses are of.
struct Call<'a> {
    system: &'a System,
    caller: &'a Caller,
    memory: &'a dyn UserMemory,
    attr: Attr,
    /// The attribute's size, as the caller gave it.
    size: u32,
}

impl System {
    /// bpf(2): carries out `command` with the attribute of `size` bytes at `attr` in `memory`.
    /// What it returns is the system call's result: a descriptor from the commands that open
    /// one, otherwise 0.
    ///
    /// E2BIG for an attribute of more than 4,096 bytes, or with bytes set that this version
    /// does not know; EFAULT for one that cannot be read; what the security module says; EINVAL for an unknown command, and
    /// for the commands of the program side, which are not here; otherwise what the command
    /// answers. Outputs stand in `memory` where the attribute says, as the kernel leaves them.
    pub fn bpf(
        &self,
        caller: &Caller,
        memory: &dyn UserMemory,
        command: u32,
        attr: u64,
        size: u32,
    ) -> Result<i32> {
        let attr = Attr::read(memory, attr, size)?;
        self.check_command(caller, command)?;
        let call = Call {
            system: self,
            caller,
            memory,
            attr,
            size,
        };
        call.run(command)
    }

    /// bpf(2) with five arguments (7.3): with [`command::COMMON_ATTRS`] in `command`, the
    /// `struct bpf_common_attr` of `common_size` bytes at `common` names a log buffer. When the
    /// command is refused, the sentence that says why is written there, NUL-terminated, and its
    /// length to `log_true_size`. Without that bit as [`System::bpf`].
    ///
    /// EINVAL for a log buffer without a size or a level, or one above the kernel's limits;
    /// ENOSPC in place of the command's own result when the buffer is too short for the
    /// sentence; of which it then has the end, or with `BPF_LOG_FIXED` the beginning. EFAULT when the
    /// log cannot be written. A descriptor that the command has opened is closed then.
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of the system call"
    )]
    pub fn bpf_common(
        &self,
        caller: &Caller,
        memory: &dyn UserMemory,
        command: u32,
        attr: u64,
        size: u32,
        common: u64,
        common_size: u32,
    ) -> Result<i32> {
        if command & command::COMMON_ATTRS == 0 {
            return self.bpf(caller, memory, command, attr, size);
        }
        let log = log::CommonLog::read(memory, common, common_size)?;
        let result = self.bpf(caller, memory, command & !command::COMMON_ATTRS, attr, size);
        let opened = match (command & !command::COMMON_ATTRS, &result) {
            (
                command::MAP_CREATE
                | command::OBJ_GET
                | command::MAP_GET_FD_BY_ID
                | command::BTF_LOAD
                | command::BTF_GET_FD_BY_ID,
                Ok(fd),
            ) => Some(Fd(*fd)),
            _ => None,
        };
        let finished = log.finish(memory, result);
        if let (Err(_), Some(fd)) = (&finished, opened) {
            // The caller does not learn its number.
            self.close(fd)?;
        }
        finished
    }
}

impl Call<'_> {
    fn run(&self, number: u32) -> Result<i32> {
        use command as c;
        match number {
            c::MAP_CREATE => self.map_create(),
            c::MAP_LOOKUP_ELEM => self.lookup().map(|()| 0),
            c::MAP_UPDATE_ELEM => self.update().map(|()| 0),
            c::MAP_DELETE_ELEM => self.delete().map(|()| 0),
            c::MAP_GET_NEXT_KEY => self.get_next_key().map(|()| 0),
            c::MAP_LOOKUP_AND_DELETE_ELEM => self.lookup_and_delete().map(|()| 0),
            c::MAP_FREEZE => self.freeze().map(|()| 0),
            c::MAP_LOOKUP_BATCH
            | c::MAP_LOOKUP_AND_DELETE_BATCH
            | c::MAP_UPDATE_BATCH
            | c::MAP_DELETE_BATCH => self.batch(number).map(|()| 0),
            c::MAP_GET_NEXT_ID => self.map_get_next_id().map(|()| 0),
            c::MAP_GET_FD_BY_ID => self.map_get_fd_by_id(),
            c::OBJ_GET_INFO_BY_FD => self.info().map(|()| 0),
            c::OBJ_PIN => self.obj_pin().map(|()| 0),
            c::OBJ_GET => self.obj_get(),
            c::BTF_LOAD => self.btf_load(),
            c::BTF_GET_NEXT_ID => self.btf_get_next_id().map(|()| 0),
            c::BTF_GET_FD_BY_ID => self.btf_get_fd_by_id(),
            _ => Err(unknown(number)),
        }
    }

    /// CHECK_ATTR for a command whose last field ends at `end`.
    fn check_end(&self, number: u32, end: usize) -> Result<()> {
        let name = command::name(number).unwrap_or("the command");
        self.attr.check_end(name, end)
    }
}

#[cold]
fn unknown(number: u32) -> Error {
    let reason = match number {
        5 | 8..=11 | 13 | 16 | 17 | 20 | 28..=38 => format!(
            "command {number} is of bpf(2)'s program side, which is not part of this system"
        ),
        _ => format!("command {number} is not one of bpf(2)'s"),
    };
    Error::because(Errno::EINVAL, reason)
}
