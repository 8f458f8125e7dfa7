//! BTF_LOAD, with its log, and the commands on ids of BTF objects.

use super::log::Log;
use super::{Call, command};
use crate::btf::{Btf, MAX_BYTES};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::system::Fd;
use crate::system::btf::check_btf_capable;

/// Offsets in the attribute of BTF_LOAD.
const BTF: usize = 0;
const LOG_BUF: usize = 8;
const SIZE: usize = 16;
const LOG_SIZE: usize = 20;
const LOG_LEVEL: usize = 24;
const LOG_TRUE_SIZE: usize = 28;
const FLAGS: usize = 32;
const TOKEN_FD: usize = 36;

/// Offsets in the attribute of the commands on ids.
const ID: usize = 0;
const NEXT_ID: usize = 4;
const OPEN_FLAGS: usize = 8;
const BY_ID_TOKEN_FD: usize = 12;

/// `BPF_F_TOKEN_FD`.
const F_TOKEN_FD: u32 = 1 << 16;

impl Call<'_> {
    /// `bpf_btf_load`.
    pub(super) fn btf_load(&self) -> Result<i32> {
        self.check_end(command::BTF_LOAD, TOKEN_FD + 4)?;
        self.check_token("btf_flags", self.attr.u32(FLAGS), TOKEN_FD)?;
        check_btf_capable(self.caller)?;
        let size = self.attr.u32(SIZE);
        if size as usize > MAX_BYTES {
            return Err(Error::because(
                Errno::E2BIG,
                format!("btf_size {size}: BTF has at most {MAX_BYTES} bytes"),
            ));
        }
        let log = Log::new(
            self.attr.u64(LOG_BUF),
            self.attr.u32(LOG_SIZE),
            self.attr.u32(LOG_LEVEL),
        )?;
        let bytes = self.copy_in(self.attr.u64(BTF), size as usize, "btf")?;
        let parsed = Btf::parse(&bytes);
        let true_size = match &log {
            Some(log) => {
                let mut text = log.text();
                match &parsed {
                    Ok(btf) => btf.listing(&mut |piece| text.push(piece)),
                    Err(error) => {
                        text.push(error.reason().as_bytes());
                        text.push(b"\n");
                    }
                }
                log.write(self.memory, text)?
            }
            None => 0,
        };
        if self.size as usize >= LOG_TRUE_SIZE + 4 {
            self.attr
                .put_u32(self.memory, LOG_TRUE_SIZE, true_size, "btf_log_true_size")?;
        }
        // Before what is wrong with the blob, as in the kernel.
        if let Some(log) = log {
            log.check_room(true_size)?;
        }
        let btf = parsed?;
        self.system.new_btf(btf).map(|fd| fd.0)
    }

    /// `btf_flags` and `open_flags`: nothing but a token, and there are none.
    fn check_token(&self, name: &str, flags: u32, token_at: usize) -> Result<()> {
        if flags & !F_TOKEN_FD != 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!("{name} {flags:#x}: only BPF_F_TOKEN_FD is allowed"),
            ));
        }
        match flags {
            0 => Ok(()),
            _ => Err(self.system.no_token(Fd(self.attr.i32(token_at)))),
        }
    }

    /// `bpf_obj_get_next_id` of BTF objects.
    pub(super) fn btf_get_next_id(&self) -> Result<()> {
        self.check_end(command::BTF_GET_NEXT_ID, NEXT_ID + 4)?;
        let next = self
            .system
            .btf_get_next_id(self.caller, self.attr.u32(ID))?;
        self.attr.put_u32(self.memory, NEXT_ID, next, "next_id")
    }

    /// `bpf_btf_get_fd_by_id`.
    pub(super) fn btf_get_fd_by_id(&self) -> Result<i32> {
        self.check_end(command::BTF_GET_FD_BY_ID, BY_ID_TOKEN_FD + 4)?;
        self.check_token("open_flags", self.attr.u32(OPEN_FLAGS), BY_ID_TOKEN_FD)?;
        self.system
            .btf_get_fd_by_id(self.caller, self.attr.u32(ID))
            .map(|fd| fd.0)
    }
}
