//! The operations called directly, without a ring: what the data-path engines do, and what
//! benches and tests compare the ring with.

use crate::access::Access;
use crate::access::{AccessCounts, Counting};
use crate::datapath::DataPath;
use crate::dispatch::{Io, Position};
use crate::inner;
use crate::maps::Map;
use crate::memory::DeviceMemory;
use crate::table::hash::ChainScan;
use crate::table::{NextKey, Table, ValueWrite, copy_out};
use crate::{Firmware, HostMemory, Progress, RingOutput, RingStats, Storage};
use offmap_abi::admin::MapInfo;
use offmap_abi::submission::UPDATE_EXIST;
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status, Submission};

/// How device memory is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryStats {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that no map occupies.
    pub free_bytes: u64,
    /// Largest piece of them.
    pub free_largest: u64,
    /// Number of free pieces.
    pub free_pieces: usize,
    /// Live maps.
    pub maps: u32,
}

/// The operation's result as the status that a completion would carry.
#[inline(always)]
fn status(result: Result<(), Status>) -> Status {
    match result {
        Ok(()) => Status::Success,
        Err(status) => status,
    }
}

#[inline(always)]
pub(crate) fn check_key(map: &Map, key: &[u8]) -> Result<(), Status> {
    if key.len() == map.key_size() {
        Ok(())
    } else {
        Err(Status::InvalidLength)
    }
}

impl<S: Storage> Firmware<S> {
    /// Copies the value of `key` to the start of `value`, which has room for at least the
    /// map's value as it travels.
    ///
    /// Statuses: `NotFound`, `OutOfRange` (arrays), `InvalidMap`, `InvalidLength`.
    #[inline]
    pub fn lookup(&mut self, map: MapHandle, key: &[u8], value: &mut [u8]) -> Status {
        status(self.try_lookup(map, key, value))
    }

    #[inline(always)]
    fn try_lookup(&mut self, map: MapHandle, key: &[u8], value: &mut [u8]) -> Result<(), Status> {
        let map = self.maps.used::<DeviceMemory<S>>(map)?;
        check_key(map, key)?;
        let value = value
            .get_mut(..map.value_bytes())
            .ok_or(Status::InvalidLength)?;
        if let Table::Hash(table) = &map.table {
            return table
                .with_value(&mut self.memory, key, |memory, at| {
                    memory.with_bytes(at, value.len(), |bytes| copy_out(value, bytes))
                })?
                .map_err(Status::from);
        }
        Self::copy_other(&mut self.memory, map, key, value)
    }

    /// The types whose speed is not measured against a plain table's, out of the way of those whose is.
    #[inline(never)]
    fn copy_other(
        memory: &mut DeviceMemory<S>,
        map: &Map,
        key: &[u8],
        value: &mut [u8],
    ) -> Result<(), Status> {
        map.table.with_value(memory, key, |memory, at| {
            memory.with_bytes(at, value.len(), |bytes| copy_out(value, bytes))
        })??;
        Ok(())
    }

    /// Where the value of `key` lies, and its length, for those that look at memory from outside;
    /// of a trie that of the longest prefix that covers the key. `None` where there is none.
    pub fn value_address(&mut self, map: MapHandle, key: &[u8]) -> Option<(DevAddr, usize)> {
        let map = self.maps.get(map).ok()?;
        check_key(map, key).ok()?;
        let at = map
            .table
            .with_value(&mut self.memory, key, |_, at| at)
            .ok()?;
        Some((at, map.value_bytes()))
    }

    /// Stores `value`, all slots of it for a per-CPU map. `flags` is one of the
    /// `UPDATE_*` of [`offmap_abi::submission`].
    ///
    /// Statuses: `NotFound`, `Exists`, `Full`, `OutOfRange` (arrays), `InvalidField` (flags),
    /// `InvalidMap`, `InvalidLength`.
    #[inline]
    pub fn update(&mut self, map: MapHandle, key: &[u8], value: &[u8], flags: u32) -> Status {
        status(self.try_update(map, key, flags, |map| {
            (value.len() == map.value_bytes()).then_some(ValueWrite::All(value))
        }))
    }

    #[inline(always)]
    fn try_update<'v>(
        &mut self,
        map: MapHandle,
        key: &[u8],
        flags: u32,
        write: impl FnOnce(&Map) -> Option<ValueWrite<'v>>,
    ) -> Result<(), Status> {
        let handle = map;
        let map = self.maps.used::<DeviceMemory<S>>(handle)?;
        if flags > UPDATE_EXIST {
            return Err(Status::InvalidField);
        }
        check_key(map, key)?;
        let write = write(map).ok_or(Status::InvalidLength)?;
        if let (true, ValueWrite::All(value)) = (map.spec.kind.is_map_of_maps(), write) {
            let (holdings, memory) = (&mut self.holdings, &mut self.memory);
            memory.whole(|memory| {
                inner::update(&self.maps, holdings, memory, handle, key, value, flags)
            })?;
            self.give_back();
            return Ok(());
        }
        self.memory
            .whole(|memory| map.table.update(memory, key, write, flags))
    }

    /// Removes `key`.
    ///
    /// Statuses: `NotFound`, `Unsupported` (arrays), `InvalidMap`, `InvalidLength`.
    #[inline]
    pub fn delete(&mut self, map: MapHandle, key: &[u8]) -> Status {
        status(self.try_delete(map, key))
    }

    fn try_delete(&mut self, map: MapHandle, key: &[u8]) -> Result<(), Status> {
        let handle = map;
        let map = self.maps.used::<DeviceMemory<S>>(handle)?;
        check_key(map, key)?;
        if map.spec.kind.is_map_of_maps() {
            let (holdings, memory) = (&mut self.holdings, &mut self.memory);
            memory.whole(|memory| inner::delete(holdings, memory, handle, map, key))?;
            self.give_back();
            return Ok(());
        }
        self.memory.whole(|memory| map.table.delete(memory, key))
    }

    /// Copies the key after `key` to the start of `next`; the first key when `key` is `None`
    /// or not there. `NotFound`: `key` is the last one, or the map is empty.
    pub fn get_next(&mut self, map: MapHandle, key: Option<&[u8]>, next: &mut [u8]) -> Status {
        status(self.try_get_next(map, key, next))
    }

    fn try_get_next(
        &mut self,
        map: MapHandle,
        key: Option<&[u8]>,
        next: &mut [u8],
    ) -> Result<(), Status> {
        let map = self.maps.get(map)?;
        if let Some(key) = key {
            check_key(map, key)?;
        }
        let next = next
            .get_mut(..map.key_size())
            .ok_or(Status::InvalidLength)?;
        let found = |memory: &mut DeviceMemory<S>, found| match found {
            NextKey::Index(index) => {
                next.copy_from_slice(&u32::to_le_bytes(index));
                Ok(())
            }
            NextKey::At(at) => {
                memory.with_bytes(at, next.len(), |bytes| next.copy_from_slice(bytes))
            }
        };
        map.table.with_next(&mut self.memory, key, found)??;
        Ok(())
    }

    /// A lookup by data-path engine `engine`, which an LRU map counts as use of the key: of a per-CPU map it sees slot
    /// `engine % cpu_slots` only. `value` has room for the value of one CPU.
    pub fn engine_lookup(
        &mut self,
        engine: u32,
        map: MapHandle,
        key: &[u8],
        value: &mut [u8],
    ) -> Status {
        status(self.data_path(engine).lookup(map, key, value))
    }

    /// A pop by data-path engine `engine`: the next value of a queue or stack leaves it for
    /// `value`, which has room for one.
    ///
    /// Statuses: `NotFound`, `Unsupported` (other types), `InvalidMap`, `InvalidLength`.
    pub fn engine_pop(&mut self, engine: u32, map: MapHandle, value: &mut [u8]) -> Status {
        status(self.data_path(engine).pop(map, value))
    }

    /// What a program does with a map of maps: data-path engine `engine` looks `outer_key` up in
    /// `outer`, and `key` in the map that it finds. `NotFound` when either is missing.
    pub fn engine_lookup_inner(
        &mut self,
        engine: u32,
        outer: MapHandle,
        outer_key: &[u8],
        key: &[u8],
        value: &mut [u8],
    ) -> Status {
        status(
            self.data_path(engine)
                .lookup_inner(outer, outer_key, key, value),
        )
    }

    /// An update by data-path engine `engine` with the value of one CPU: of a per-CPU map it
    /// writes slot `engine % cpu_slots` only, and the other slots of a new entry are zero, as
    /// in the kernel. `Unsupported` for maps of maps, which the host alone changes.
    pub fn engine_update(
        &mut self,
        engine: u32,
        map: MapHandle,
        key: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Status {
        status(self.data_path(engine).update(map, key, value, flags))
    }

    /// A counter of a packet: data-path engine `engine` adds `delta`, wrapping, to the little-endian
    /// 8-byte word at `offset` of the key's value, of a per-CPU map in slot `engine % cpu_slots`. It
    /// counts as use of the key.
    ///
    /// Statuses: `NotFound`, `OutOfRange` (arrays), `Unsupported` (types whose values are not changed in
    /// place), `InvalidField` (an offset that is no multiple of 8 or leaves the value), `InvalidMap`,
    /// `InvalidLength`.
    pub fn engine_add(
        &mut self,
        engine: u32,
        map: MapHandle,
        key: &[u8],
        offset: u32,
        delta: u64,
    ) -> Status {
        status(self.data_path(engine).add(map, key, offset, delta))
    }

    fn data_path(&mut self, engine: u32) -> DataPath<'_, DeviceMemory<S>> {
        DataPath {
            engine,
            engines: self.config.engines,
            maps: &self.maps,
            holdings: &self.holdings,
            access: &mut self.memory,
        }
    }

    /// A record written by data-path engine `engine` to a RINGBUF map, which is what the helper
    /// `bpf_ringbuf_output` does: `flags` are 0, `NO_WAKEUP` or `FORCE_WAKEUP`
    /// ([`offmap_abi::ringbuf`]). One that cannot be written is dropped and counted.
    pub fn engine_ringbuf_output(
        &mut self,
        engine: u32,
        map: MapHandle,
        data: &[u8],
        flags: u64,
        host: &mut impl HostMemory,
    ) -> RingOutput {
        let ring = self
            .check_engine(engine)
            .and_then(|()| self.maps.ring_mut(map));
        match ring {
            Ok(ring) => ring.output(data, flags, host),
            Err(status) => RingOutput {
                status,
                interrupt: None,
            },
        }
    }

    /// How the ring of a RINGBUF map stands.
    ///
    /// # Errors
    ///
    /// `InvalidMap`; `Unsupported` for a map of another type.
    pub fn ring_stats(&mut self, map: MapHandle) -> Result<RingStats, Status> {
        self.maps.ring_mut(map).map(|ring| ring.stats())
    }

    fn check_engine(&self, engine: u32) -> Result<(), Status> {
        if engine < self.config.engines {
            Ok(())
        } else {
            Err(Status::InvalidField)
        }
    }

    /// How device memory is used.
    pub fn memory_stats(&self) -> MemoryStats {
        MemoryStats {
            total_bytes: self.tiers.size_bytes(),
            free_bytes: self.tiers.free_bytes(),
            free_largest: self.tiers.largest_free(),
            free_pieces: self.tiers.pieces(),
            maps: self.maps.live(),
        }
    }

    /// What MAP_QUERY reports, in one go: it visits every bucket of a hash map.
    ///
    /// # Errors
    ///
    /// `InvalidMap`; `Internal` when the table in memory contradicts itself.
    pub fn map_info(&mut self, map: MapHandle) -> Result<MapInfo, Status> {
        let mut scan = ChainScan::default();
        loop {
            if let Some(info) = self.query_step(map, &mut scan)? {
                return Ok(info);
            }
        }
    }

    /// As [`Self::io`], and counts the accesses to device memory that the step makes.
    pub fn io_counted(
        &mut self,
        context: u16,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> (Progress, AccessCounts) {
        self.counted(context, command, None, host)
    }

    /// As [`Self::resume_io`], likewise.
    pub fn resume_io_counted(
        &mut self,
        context: u16,
        host: &mut impl HostMemory,
    ) -> (Progress, AccessCounts) {
        match self.under_way.get(context) {
            Some((command, from)) => self.counted(context, &command, Some(from), host),
            None => (self.resume_io(context, host), AccessCounts::default()),
        }
    }

    fn counted(
        &mut self,
        context: u16,
        command: &Submission,
        from: Option<Position>,
        host: &mut impl HostMemory,
    ) -> (Progress, AccessCounts) {
        let batch = IoOpcode(command.opcode).is_batch();
        if batch && from.is_none() && self.under_way.has(context) {
            return (self.io(context, command, host), AccessCounts::default());
        }
        let mut access = Counting::new(&mut self.memory);
        let mut io = Io {
            config: &self.config,
            maps: &self.maps,
            holdings: &mut self.holdings,
            scratch: &mut self.scratch,
            access: &mut access,
            host,
        };
        if !batch {
            io.access.begin();
            let completion = io.completion_of(command);
            if !completion.status().is_success() {
                io.access.undo();
            }
            let counts = access.counts();
            self.give_back();
            return (Progress::Done(completion), counts);
        }
        let step = io.run_batch(command, from.unwrap_or_else(|| Position::start(command)));
        let counts = access.counts();
        (self.keep(context, command, step), counts)
    }
}
