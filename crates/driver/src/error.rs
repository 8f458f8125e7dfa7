//! What can go wrong, with what was tried.

use offmap_abi::admin::Limit;
use offmap_abi::regs::FatalCause;
use offmap_abi::{AdminOpcode, QueueId, RequestId, Status};
use offmap_device_io::IoError;
use std::time::Duration;

/// What is wrong with a completion that the driver does not accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompletionFault {
    /// Its request id has a slot that the queue does not have.
    #[error("its request id names no slot of the queue")]
    UnknownSlot,
    /// Its request id is that of a command that is not in flight: never sent, or completed
    /// already.
    #[error("its request is not in flight")]
    Stale,
    /// It returned fewer bytes, in its payload or by DMA, than the result has.
    #[error("it returned fewer bytes than the result has")]
    ShortResult,
    /// Its count of elements contradicts its status or the command.
    #[error("its count of elements contradicts its status or the command")]
    Count,
    /// Its dump cursor does not fit 32 bits, or is not beyond the one that the command gave.
    #[error("its cursor does not fit 32 bits, or did not grow")]
    Cursor,
    /// It returned a map handle that no map can have.
    #[error("its map handle is 0, which no map has, or is another map's")]
    Handle,
    /// Its list has a map that cannot be, one twice, or more than the device says that it can have.
    #[error("it lists a map that cannot be, one twice, or more than there may be")]
    Listed,
    /// A list that it returned does not end, or has not a whole number of items.
    #[error("its list does not end, or has not a whole number of items")]
    List,
}

/// What a refusal for want of device memory says beside the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRoom {
    /// The tier that was asked for; `None`: any.
    pub tier: Option<u32>,
    /// Bytes that are free in it, or in all of them, in pieces.
    pub free_bytes: u64,
}

fn of_memory(room: &Option<MemoryRoom>) -> String {
    let Some(MemoryRoom { tier, free_bytes }) = room else {
        return String::new();
    };
    match tier {
        Some(tier) => format!("; {free_bytes} bytes of tier {tier} are free, in pieces"),
        None => format!("; {free_bytes} bytes are free, in pieces"),
    }
}

/// Every failure of the driver.
///
/// A command that the device carried out with a status other than success is no
/// `DriverError`: I/O calls return the [`Status`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// A [`crate::DriverConfig`] field has a value that is not allowed.
    #[error("the driver setting {field} must be {allowed}")]
    Config {
        /// The field.
        field: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// The transport failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The transport's error.
        source: IoError,
    },
    /// The transport failed in an access to a register or a doorbell.
    #[error("cannot {access} {register}: {source}")]
    Register {
        /// "read" or "write".
        access: &'static str,
        /// Name of the register, or of the doorbell.
        register: &'static str,
        /// The transport's error.
        source: IoError,
    },
    /// Registers read as all ones: the device is unplugged, or its memory space is off.
    #[error("the device is gone: {register} reads as all ones")]
    DeviceGone {
        /// The register that was read.
        register: &'static str,
    },
    /// The PCI function is another device.
    #[error("PCI id {vendor:04x}:{device:04x} is no offmap device")]
    WrongDevice {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// A register, or a BAR's size, has a value that no device of this ABI has.
    #[error("the device reports {register} = {value:#x}: {why}")]
    BadRegister {
        /// Name of the register.
        register: &'static str,
        /// What it read as.
        value: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A field of the identify data has a value that no device of this ABI has.
    #[error("the device identifies itself with {field} = {value}: {why}")]
    BadIdentify {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// The device speaks another major version of the ABI.
    #[error("the device speaks ABI version {major}.{minor}, the driver version 1")]
    Version {
        /// Major version of the device.
        major: u16,
        /// Minor version of the device.
        minor: u16,
    },
    /// The device did not reach the state asked for in the time that it gives itself.
    #[error("the device did not {what} within {waited:?}")]
    NotReady {
        /// The state asked for.
        what: &'static str,
        /// How long the driver waited.
        waited: Duration,
    },
    /// The device stopped itself. Only [`crate::Driver::reset`] helps.
    #[error("the device stopped itself: {cause}")]
    Fatal {
        /// Its FATAL_CAUSE register.
        cause: FatalCause,
    },
    /// A limit of the device does not allow what was asked.
    #[error(
        "the device refuses {command} ({status}): {limit} asked {asked}, allowed {allowed}, \
         used {used}{}",
        of_memory(memory)
    )]
    Refused {
        /// The command.
        command: AdminOpcode,
        /// [`Status::LimitExceeded`] or [`Status::NoMemory`].
        status: Status,
        /// Which limit.
        limit: Limit,
        /// What the command asked for, in the limit's unit.
        asked: u64,
        /// What the device allows.
        allowed: u64,
        /// What is in use already, where the limit is shared.
        used: u64,
        /// More about device memory, where that is the limit and the device says so much.
        memory: Option<MemoryRoom>,
    },
    /// An admin command failed otherwise.
    #[error("the device answered {command} with {status}")]
    Command {
        /// The command.
        command: AdminOpcode,
        /// Its status.
        status: Status,
    },
    /// An admin command was not answered in time. The admin queue takes no more commands
    /// until a reset.
    #[error("the device did not answer {command} within {after:?}")]
    AdminTimeout {
        /// The command.
        command: AdminOpcode,
        /// How long the driver waited.
        after: Duration,
    },
    /// Other threads kept the admin queue busy for as long as this one could wait.
    #[error("the admin queue was busy for {after:?}")]
    AdminBusy {
        /// How long the driver waited for its turn.
        after: Duration,
    },
    /// The admin queue failed before, or a reset did not succeed: [`crate::Driver::reset`].
    #[error(
        "the device is down since an earlier failure: a reset brings it back, unless it is gone"
    )]
    Down,
    /// The device was reset since the queue or the map was made, so that it is gone.
    #[error("the device was reset since this queue or map was made")]
    DeviceReset,
    /// After a reset the device identified itself differently than before.
    #[error("after the reset the device identifies itself differently than before")]
    IdentityChanged,
    /// The device sent a completion that cannot be. The queue is broken.
    #[error("a completion on {queue} for {request} is not acceptable: {fault}")]
    BadCompletion {
        /// The queue.
        queue: QueueId,
        /// The request id in it.
        request: RequestId,
        /// What is wrong with it.
        fault: CompletionFault,
    },
    /// The queue failed before and takes no more commands; drop it and make another.
    #[error("{queue} takes no more commands since it failed")]
    QueueBroken {
        /// The queue.
        queue: QueueId,
    },
    /// The device stopped the queue, after a protocol error or because it could not reach the
    /// queue's memory. Commands in flight will not complete, and may have had their effect. The
    /// queue is broken.
    #[error("the device stopped {queue}; commands in flight on it may have had their effect")]
    QueueStopped {
        /// The queue.
        queue: QueueId,
    },
    /// An I/O command was not done in time.
    #[error("{queue} did not complete a command within {after:?}{}", if *.quarantined {
        "; neither did its abort, so its buffers stay set aside and the queue is broken"
    } else {
        "; it was aborted before it had an effect"
    })]
    TimedOut {
        /// The queue.
        queue: QueueId,
        /// How long the driver waited before it asked for the abort.
        after: Duration,
        /// `false`: the command ended without an effect and the queue is usable. `true`: it
        /// may still take effect, its slot and buffers stay set aside, the queue is broken.
        quarantined: bool,
    },
    /// Every slot of the queue holds a command in flight or a result that nobody took.
    #[error("{queue} is full")]
    Full {
        /// The queue.
        queue: QueueId,
    },
    /// The token is not one of a command in flight on this queue.
    #[error("{request} is not in flight on {queue}")]
    NoSuchRequest {
        /// The queue.
        queue: QueueId,
        /// The request that the token stands for.
        request: RequestId,
    },
    /// All queue pairs of the device are in use.
    #[error("all {have} queue pairs of the device are in use")]
    NoQueuePair {
        /// How many there are.
        have: u16,
    },
    /// A buffer does not have the length that the map asks for.
    #[error("the {what} is {got} bytes long; the map asks for {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        got: usize,
    },
    /// The device does not have a feature of the ABI.
    #[error("the device does not have {feature}")]
    NoFeature {
        /// The feature.
        feature: &'static str,
    },
}

impl DriverError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(IoError) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: poll, then try again.
    #[error("the queue is full")]
    Full,
    /// The queue or the command is not usable.
    #[error(transparent)]
    Driver(#[from] DriverError),
}
