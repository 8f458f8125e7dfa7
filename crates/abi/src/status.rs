//! Completion status codes (abi §8).

use crate::open_enum;

open_enum! {
    /// The result of a command. A host maps a code that it does not know to EIO.
    pub struct Status(u16) {
        /// Done.
        Success = 0,
        /// The key is not there, or the queue or stack is empty; for get-first, get-next and
        /// dump: there is no further key.
        NotFound = 1,
        /// The key is there and the flags asked that it is not.
        Exists = 2,
        /// The map holds `max_entries` entries and the key is new.
        Full = 3,
        /// An array index is at or past `max_entries`.
        OutOfRange = 4,
        /// Device memory is used up.
        NoMemory = 5,
        /// A field of the command has a value that the section of that command forbids.
        InvalidField = 6,
        /// The opcode is not one of this device's.
        InvalidOpcode = 7,
        /// The map handle names no live map.
        InvalidMap = 8,
        /// A queue id names no queue, or one that exists already.
        InvalidQueue = 9,
        /// A key or value length does not fit the map.
        InvalidLength = 10,
        /// A limit of the device was exceeded; the payload is a [`crate::admin::LimitDetail`].
        LimitExceeded = 11,
        /// The map's type does not have this operation.
        Unsupported = 12,
        /// Host memory at an address in the command could not be read or written.
        DmaFault = 13,
        /// The command was aborted, or its queue deleted, before it had begun.
        Aborted = 14,
        /// The first bucket of a dump that holds anything does not fit the arrays. The result's
        /// cursor is that bucket, and its `needed` says how many elements there are in it.
        NoSpace = 15,
        /// Device memory returned data that its check code shows to be wrong.
        MediaError = 16,
        /// The device found the map's state inconsistent.
        Internal = 17,
        /// The queue has stopped after a protocol error or a DMA fault on its rings; only its
        /// deletion helps.
        QueueStopped = 18,
        /// The command was ended after it had begun; whether it had its effect is unknown.
        Interrupted = 19,
    }
}

impl Status {
    /// Whether the command did what it was asked.
    pub const fn is_success(self) -> bool {
        self.0 == Self::Success.0
    }
}
