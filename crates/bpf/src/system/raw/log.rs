//! `BPF_COMMON_ATTRS`: the log buffer that says why a command was refused (7.3,
//! `struct bpf_common_attr`, and `bpf_verifier_log_attr_valid` of `kernel/bpf/log.c`).

use super::attr::read_growable;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::user_memory::UserMemory;
use std::collections::VecDeque;

/// Bytes up to the end of `log_true_size`.
const COMMON_BYTES: usize = 20;
const LOG_TRUE_SIZE: usize = 16;
/// `BPF_LOG_MASK`: levels 1 and 2, statistics, fixed.
const LOG_LEVELS: u32 = 0xf;
/// `BPF_LOG_FIXED`.
const LOG_FIXED: u32 = 1 << 3;
/// `UINT_MAX >> 2`.
const MAX_LOG_BYTES: u32 = u32::MAX >> 2;

/// A log as the caller described it.
pub(super) struct Log {
    buffer: u64,
    size: u32,
    /// Keeps the beginning of a text that is too long, not its end.
    fixed: bool,
}

/// What a log is to say.
pub(super) struct Text {
    /// As much of it as the caller's buffer has room for.
    kept: VecDeque<u8>,
    room: usize,
    fixed: bool,
    /// Bytes of all of it.
    len: u64,
}

impl Text {
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.len += piece.len() as u64;
        let free = self.room - self.kept.len();
        if self.fixed {
            self.kept.extend(&piece[..piece.len().min(free)]);
            return;
        }
        let over = piece.len().saturating_sub(free).min(self.kept.len());
        self.kept.drain(..over);
        self.kept
            .extend(&piece[piece.len().saturating_sub(self.room)..]);
    }
}

impl Log {
    /// `bpf_verifier_log_attr_valid`; `None` when the caller wants no log. EINVAL.
    pub(super) fn new(buffer: u64, size: u32, level: u32) -> Result<Option<Self>> {
        let refused = |why: String| Err(Error::because(Errno::EINVAL, why));
        if (buffer != 0) != (size != 0) {
            return refused(format!(
                "log_buf {buffer:#x} with log_size {size}: a log needs both"
            ));
        }
        if buffer != 0 && level == 0 {
            return refused("log_level 0: a log needs a level".into());
        }
        if level & !LOG_LEVELS != 0 {
            return refused(format!(
                "log_level {level:#x}: levels are within {LOG_LEVELS:#x}"
            ));
        }
        if size > MAX_LOG_BYTES {
            return refused(format!(
                "log_size {size}: a log has at most {MAX_LOG_BYTES} bytes"
            ));
        }
        Ok((buffer != 0).then_some(Self {
            buffer,
            size,
            fixed: level & LOG_FIXED != 0,
        }))
    }

    /// A text for this log, empty.
    pub(super) fn text(&self) -> Text {
        Text {
            kept: VecDeque::new(),
            room: (self.size - 1) as usize,
            fixed: self.fixed,
            len: 0,
        }
    }

    /// Writes what was kept of `text`, and a NUL; the bytes that all of it takes. EFAULT.
    pub(super) fn write(&self, memory: &dyn UserMemory, text: Text) -> Result<u32> {
        let mut bytes = Vec::from(text.kept);
        bytes.push(0);
        memory
            .write(self.buffer, &bytes)
            .map_err(|fault| fault.during("log_buf"))?;
        Ok(u32::try_from(text.len + 1).unwrap_or(u32::MAX))
    }

    /// Whether a text of `true_size` bytes, its NUL included, was cut. ENOSPC.
    pub(super) fn check_room(&self, true_size: u32) -> Result<()> {
        if true_size > self.size {
            return Err(Error::because(
                Errno::ENOSPC,
                format!(
                    "log_size {}: the log takes {true_size} bytes, its NUL included",
                    self.size
                ),
            ));
        }
        Ok(())
    }
}

/// The log of a call with common attributes.
pub(super) struct CommonLog {
    log: Option<Log>,
    /// Where `log_true_size` is, if the caller's structure has it.
    true_size: Option<u64>,
}

impl CommonLog {
    pub(super) fn read(memory: &dyn UserMemory, address: u64, size: u32) -> Result<Self> {
        let mut bytes = [0; COMMON_BYTES];
        read_growable(
            memory,
            address,
            size.into(),
            &mut bytes,
            "the common attributes",
        )?;
        let word = |at: usize| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(raw)
        };
        let mut raw = [0; 8];
        raw.copy_from_slice(&bytes[..8]);
        Ok(Self {
            log: Log::new(u64::from_ne_bytes(raw), word(8), word(12))?,
            true_size: (size as usize >= COMMON_BYTES)
                .then(|| address.wrapping_add(LOG_TRUE_SIZE as u64)),
        })
    }

    /// Writes why `result` is an error, if it is one.
    pub(super) fn finish(self, memory: &dyn UserMemory, result: Result<i32>) -> Result<i32> {
        let Some(log) = self.log else {
            return result;
        };
        let mut text = log.text();
        if let Err(error) = &result {
            text.push(error.reason().as_bytes());
            text.push(b"\n");
        }
        let true_size = log.write(memory, text)?;
        if let Some(address) = self.true_size {
            memory
                .write(address, &true_size.to_ne_bytes())
                .map_err(|fault| fault.during("log_true_size"))?;
        }
        log.check_room(true_size)?;
        result
    }
}
