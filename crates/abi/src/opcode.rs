//! Operation codes of the two kinds of queue (abi §6, §7).

use crate::open_enum;

open_enum! {
    /// Commands of the admin queue (abi §6).
    pub struct AdminOpcode(u8) {
        /// Writes the [`crate::admin::IdentifyData`] page to host memory.
        Identify = 0x01,
        /// Creates an I/O queue pair.
        QueueCreate = 0x02,
        /// Deletes an I/O queue pair; its unfinished commands complete as aborted first.
        QueueDelete = 0x03,
        /// Creates a map in device memory and returns its handle.
        MapCreate = 0x10,
        /// Frees a map's device memory; its handle becomes invalid.
        MapFree = 0x11,
        /// Reports what a map holds and uses.
        MapQuery = 0x12,
        /// Lists the maps that there are.
        MapList = 0x13,
        /// Describes the tiers of device memory.
        MemoryInfo = 0x14,
        /// Says how a map lies in device memory.
        MapLayout = 0x15,
        /// Moves a map to another tier of device memory.
        MapMigrate = 0x16,
        /// Asks that a command of an I/O queue ends now.
        Abort = 0x20,
    }
}

open_enum! {
    /// Commands of an I/O queue (abi §7).
    pub struct IoOpcode(u8) {
        /// Does nothing and completes: a probe of the queue.
        Nop = 0x00,
        /// Returns the value of a key.
        Lookup = 0x01,
        /// Stores a value under a key.
        Update = 0x02,
        /// Removes a key.
        Delete = 0x03,
        /// Returns the first key in iteration order.
        GetFirst = 0x04,
        /// Returns the key after the given one; the first key when the given one is not there.
        GetNext = 0x05,
        /// Returns the value of a key and removes the key, in one step.
        LookupAndDelete = 0x06,
        /// Looks up an array of keys.
        BatchLookup = 0x11,
        /// Stores arrays of keys and values.
        BatchUpdate = 0x12,
        /// Removes an array of keys.
        BatchDelete = 0x13,
        /// Returns keys and values in iteration order, from a cursor.
        BatchDump = 0x14,
        /// As [`IoOpcode::BatchDump`], and removes what it returns.
        BatchDumpDelete = 0x15,
    }
}

impl IoOpcode {
    /// Whether the body of the command is a [`crate::submission::BatchBody`].
    pub const fn is_batch(self) -> bool {
        self.0 & 0xf0 == 0x10
    }
}
