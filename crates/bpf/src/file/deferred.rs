//! Operations on a map of a device that end later than they begin.
//!
//! bpf(2) has none: there a call returns with its result. A device that takes many commands at
//! once can give its users more, and what such an operation may do is still the file's to
//! say. [`DeferredFile::begin`] does the checks of [`MapFile`]'s call of the same name, in its order,
//! and has the operation sent while the map cannot leave its device.

use super::{MapFile, NO_SUCH_OPERATION, check_length};
use crate::device::{OffloadCommands, OffloadedMap};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::refusals::{BAD_UPDATE_FLAGS, GONE};
use crate::uapi::{BPF_EXIST, BPF_F_LOCK};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

const NOT_OFFLOADED: Error = Error::new(
    Errno::EINVAL,
    "the map is in host memory, whose operations end when they return",
);
const OF_MAPS: Error = Error::new(
    Errno::EINVAL,
    "the values of a map of maps are references, which only its own calls can take and give back",
);

/// An operation on one element. Slices have the lengths that [`MapFile`]'s calls ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElementOp<'a> {
    /// [`MapFile::lookup`] without flags.
    Lookup {
        /// The key.
        key: &'a [u8],
    },
    /// [`MapFile::update`].
    Update {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// BPF_ANY, BPF_NOEXIST or BPF_EXIST; and `BPF_F_LOCK`.
        flags: u64,
    },
    /// [`MapFile::delete`].
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// [`MapFile::get_next_key`].
    NextKey {
        /// The key before; `None`: the first one is asked for.
        key: Option<&'a [u8]>,
    },
    /// [`MapFile::lookup_and_delete`] without flags.
    LookupAndDelete {
        /// The key.
        key: &'a [u8],
    },
}

impl ElementOp<'_> {
    /// Whether it may change the map.
    pub const fn is_write(&self) -> bool {
        !matches!(self, Self::Lookup { .. } | Self::NextKey { .. })
    }
}

/// That an operation writes, and the value that it stores.
type Checked<'a> = (Option<Writing>, Option<Cow<'a, [u8]>>);

/// The file of a map on a device, for operations that end later than they begin.
#[derive(Clone, Debug)]
pub struct DeferredFile {
    file: MapFile,
}

/// An operation that writes and has not ended: FREEZE answers EBUSY meanwhile, as during any
/// write of user space. Ends when dropped.
pub struct Writing {
    file: MapFile,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Writing").field(&self.file).finish()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.file.map.end_write();
    }
}

impl MapFile {
    /// This file, for operations that end later than they begin.
    ///
    /// EINVAL for a map in host memory and for a map of maps; ENODEV when the map's device is
    /// gone.
    pub fn deferred(&self) -> Result<DeferredFile> {
        if self.map_type().is_map_of_maps() {
            return Err(OF_MAPS);
        }
        let offload = self.map.read_mostly.offload.as_ref();
        if offload.ok_or(NOT_OFFLOADED)?.is_gone() {
            return Err(GONE);
        }
        Ok(DeferredFile { file: self.clone() })
    }
}

impl DeferredFile {
    /// The map as its device has it. ENODEV when that is gone.
    pub fn on_device(&self) -> Result<Arc<dyn OffloadedMap>> {
        let offload = self.file.map.read_mostly.offload.as_ref();
        offload.ok_or(NOT_OFFLOADED)?.on_device()
    }

    /// The file.
    pub fn file(&self) -> &MapFile {
        &self.file
    }

    /// Checks `op` as [`MapFile`]'s call does, then has `send` send it: with the value as it is to
    /// be stored. `send` must not wait for the operation's end. What it returns comes back, and
    /// for an operation that writes what is to be kept until that has ended.
    ///
    /// Errors in order: those of [`MapFile`]'s call that are not the device's; ENODEV when the
    /// device is gone. Those of `send` come back as they are.
    pub fn begin<T, E: From<Error>>(
        &self,
        op: &ElementOp<'_>,
        send: impl FnOnce(&ElementOp<'_>) -> Result<T, E>,
    ) -> Result<(T, Option<Writing>), E> {
        let (writing, stored) = self.check(op)?;
        let op = match (*op, &stored) {
            (ElementOp::Update { key, flags, .. }, Some(value)) => ElementOp::Update {
                key,
                value,
                flags: flags & !BPF_F_LOCK,
            },
            (op, _) => op,
        };
        let offload = self.file.map.read_mostly.offload.as_ref();
        let sent = offload.ok_or(NOT_OFFLOADED)?.while_there(|| send(&op))??;
        Ok((sent, writing))
    }

    /// What user space sees of special fields, in a value that an operation returned.
    pub fn blank(&self, value: &mut [u8]) {
        self.file.blank(value);
    }

    fn check<'a>(&self, op: &ElementOp<'a>) -> Result<Checked<'a>> {
        let file = &self.file;
        if let ElementOp::Lookup { key }
        | ElementOp::Update { key, .. }
        | ElementOp::Delete { key }
        | ElementOp::LookupAndDelete { key }
        | ElementOp::NextKey { key: Some(key) } = op
        {
            check_length("key", key.len(), file.key_size())?;
        }
        match *op {
            ElementOp::Lookup { .. } | ElementOp::NextKey { .. } => {
                file.readable()?;
                Ok((None, None))
            }
            ElementOp::Update { value, flags, .. } => {
                check_length("value", value.len(), file.value_bytes())?;
                let writing = self.write()?;
                file.check_lock(flags)?;
                if flags & !BPF_F_LOCK > BPF_EXIST && file.ops().checks_update_flags() {
                    return Err(BAD_UPDATE_FLAGS);
                }
                Ok((Some(writing), Some(file.stored(value))))
            }
            ElementOp::Delete { .. } => Ok((Some(self.write()?), None)),
            ElementOp::LookupAndDelete { .. } => {
                file.readable()?;
                let writing = self.write()?;
                let commands = file.map.read_mostly.commands;
                if !commands.contains(OffloadCommands::LOOKUP_AND_DELETE) {
                    return Err(NO_SUCH_OPERATION);
                }
                Ok((Some(writing), None))
            }
        }
    }

    fn write(&self) -> Result<Writing> {
        self.file.writable()?;
        self.file.map.begin_long_write()?;
        Ok(Writing {
            file: self.file.clone(),
        })
    }
}
