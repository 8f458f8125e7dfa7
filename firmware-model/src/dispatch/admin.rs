//! Admin commands: IDENTIFY, MAP_CREATE, MAP_FREE, MAP_QUERY, MAP_LIST (abi §6); those about memory are
//! in `memory.rs`.

use super::memory::Moving;
use super::reserved_bits;
use crate::inner::INNER_VALUE_BYTES;
use crate::maps::Map;
use crate::table::Table;
use crate::table::bloom;
use crate::table::hash::ChainScan;
use crate::table::layout::{Geometry, MapKind, MapSpec, ValueShape};
use crate::table::lpm;
use crate::table::ring::RingTable;
use crate::tier::Place;
use crate::{Firmware, HostMemory, Progress, Storage};
use alloc::vec::Vec;
use offmap_abi::admin::{
    IdentifyBody, IdentifyData, Limit, LimitDetail, MAP_ATTR_BYTES_MAX, MapAttr, MapCreateBody,
    MapCreated, MapDescription, MapInfo, MapListBody, MapListed, MemoryDetail,
};
use offmap_abi::{AdminOpcode, Completion, MapHandle, RequestId, Status, Submission};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Maps that one MAP_LIST describes at most.
const MAP_LIST_MAX: usize = 64;

/// Name that IDENTIFY reports.
const FIRMWARE_NAME: &[u8] = concat!("offmap-model ", env!("CARGO_PKG_VERSION")).as_bytes();

const _: () = assert!(FIRMWARE_NAME.len() <= 32);

/// An admin command that takes more than one step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pending {
    /// MAP_CREATE: the memory is taken, and zero up to `zeroed`.
    Create {
        request: RequestId,
        map: Map,
        zeroed: u64,
    },
    /// MAP_QUERY: chains are being measured.
    Query {
        request: RequestId,
        handle: MapHandle,
        scan: ChainScan,
    },
    /// MAP_LAYOUT, likewise.
    Layout {
        command: Submission,
        scan: ChainScan,
    },
    /// MAP_MIGRATE: the memory of the new place is taken. The map is at the old one.
    Migrate {
        request: RequestId,
        handle: MapHandle,
        map: Map,
        moving: Moving,
    },
}

/// What a refusal says beside its status.
enum Detail {
    None,
    Limit(LimitDetail),
    Memory(MemoryDetail),
}

/// A refusal: the status, and which limit it was.
pub(super) struct Refusal {
    status: Status,
    detail: Detail,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self {
            status,
            detail: Detail::None,
        }
    }
}

impl Refusal {
    pub(super) fn memory(detail: MemoryDetail) -> Self {
        Self {
            status: Status::NoMemory,
            detail: Detail::Memory(detail),
        }
    }

    fn limit(status: Status, limit: Limit, asked: u64, allowed: u64, used: u64) -> Self {
        Self {
            status,
            detail: Detail::Limit(LimitDetail {
                limit: U32::new(limit.0),
                reserved: U32::ZERO,
                asked: U64::new(asked),
                allowed: U64::new(allowed),
                used: U64::new(used),
            }),
        }
    }

    fn completion(&self, request: RequestId) -> Completion {
        let completion = Completion::new(request, self.status);
        match &self.detail {
            Detail::Limit(detail) => completion.with_payload(detail.as_bytes()),
            Detail::Memory(detail) => completion.with_payload(detail.as_bytes()),
            Detail::None => completion,
        }
    }
}

/// Reserved bytes, the operand flags, and the map where the command is for none: zero.
pub(super) fn check_reserved(
    command: &Submission,
    reserved: &[u8],
    for_map: bool,
) -> Result<(), Status> {
    let head = reserved_bits(command) | u32::from(command.flags);
    let map = if for_map { 0 } else { command.map.get() };
    if head | map != 0 || reserved.iter().any(|&byte| byte != 0) {
        return Err(Status::InvalidField);
    }
    Ok(())
}

/// Refuses what exceeds a limit that nothing shares.
fn within(limit: Limit, asked: u32, allowed: u32) -> Result<(), Refusal> {
    if asked > allowed {
        let (asked, allowed) = (asked.into(), allowed.into());
        return Err(Refusal::limit(
            Status::LimitExceeded,
            limit,
            asked,
            allowed,
            0,
        ));
    }
    Ok(())
}

/// The further attributes that a MAP_CREATE refers to (abi §6.3).
fn read_attr(body: &MapCreateBody, host: &mut impl HostMemory) -> Result<MapAttr, Refusal> {
    let len = body.attr_len.get() as usize;
    if len > MAP_ATTR_BYTES_MAX {
        return Err(Status::InvalidField.into());
    }
    let mut attr = MapAttr::default();
    let known = attr.as_mut_bytes();
    let (head, tail) = (len.min(known.len()), len.saturating_sub(known.len()));
    if head != 0 {
        host.read(body.attr.get(), &mut known[..head])
            .map_err(|_| Refusal::from(Status::DmaFault))?;
    }
    let mut at = body.attr.get().wrapping_add(head as u64);
    let mut left = tail;
    while left > 0 {
        let mut piece = [0; 64];
        let piece = &mut piece[..left.min(64)];
        host.read(at, piece)
            .map_err(|_| Refusal::from(Status::DmaFault))?;
        if piece.iter().any(|byte| *byte != 0) {
            return Err(Status::InvalidField.into());
        }
        at = at.wrapping_add(piece.len() as u64);
        left -= piece.len();
    }
    Ok(attr)
}

impl<S: Storage> Firmware<S> {
    /// What IDENTIFY reports.
    pub fn identify(&self) -> IdentifyData {
        let config = &self.config;
        let mut firmware = [0; 32];
        firmware[..FIRMWARE_NAME.len()].copy_from_slice(FIRMWARE_NAME);
        IdentifyData {
            firmware,
            map_types: U64::new(MapKind::bits()),
            memory_bytes: U64::new(self.tiers.size_bytes()),
            entries_total: U64::new(config.entries_total),
            entries_per_map: U32::new(config.entries_per_map),
            maps: U32::new(config.maps),
            key_bytes: U32::new(self.longest(config.key_bytes)),
            value_bytes: U32::new(self.longest(config.value_bytes)),
            cpu_slots: U32::new(config.cpu_slots),
            batch: U32::new(config.batch),
            engines: U32::new(config.engines),
            ports: U32::new(config.ports),
            tiers: U32::new(self.tiers.iter().len() as u32),
            reserved: [0; 36],
        }
    }

    /// The longest key or value where so much is configured: a device does not claim what it cannot
    /// hold, and refuses by what it claims.
    fn longest(&self, configured: u32) -> u32 {
        let memory = u32::try_from(self.tiers.largest_tier()).unwrap_or(u32::MAX);
        configured.min(memory)
    }

    /// Runs a command about maps or memory. Commands about queues are the bus
    /// side's and come back as [`Status::InvalidOpcode`].
    ///
    /// Admin commands run one at a time: a command that arrives while another is under way
    /// ends with [`Status::Internal`] and changes nothing.
    pub fn admin(&mut self, command: &Submission, host: &mut impl HostMemory) -> Progress {
        let request = command.request();
        if self.pending.is_some() {
            return Progress::Done(Completion::new(request, Status::Internal));
        }
        let result = match AdminOpcode(command.opcode) {
            AdminOpcode::Identify => match self.identify_to(command, host) {
                Ok(len) => {
                    let mut done = Completion::new(request, Status::Success);
                    done.count = U32::new(len);
                    return Progress::Done(done);
                }
                Err(status) => Err(status.into()),
            },
            AdminOpcode::MapCreate => self.map_create(command, host),
            AdminOpcode::MapFree => check_reserved(command, &command.body, true)
                .and_then(|()| self.free_map(command.map()))
                .map_err(Refusal::from),
            AdminOpcode::MapList => match self.map_list(command, host) {
                Ok(done) => return Progress::Done(done),
                Err(status) => Err(status.into()),
            },
            AdminOpcode::MapQuery => self.map_query(command).map_err(Refusal::from),
            AdminOpcode::MemoryInfo => match self.memory_info(command, host) {
                Ok(done) => return Progress::Done(done),
                Err(status) => Err(status.into()),
            },
            AdminOpcode::MapLayout => self.map_layout(command).map_err(Refusal::from),
            AdminOpcode::MapMigrate => match self.map_migrate(command) {
                Ok(Some(done)) => return Progress::Done(done),
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            },
            _ => Err(Refusal::from(Status::InvalidOpcode)),
        };
        match result {
            Ok(()) if self.pending.is_some() => Progress::More,
            Ok(()) => Progress::Done(Completion::new(request, Status::Success)),
            Err(refusal) => Progress::Done(refusal.completion(request)),
        }
    }

    /// Does the next bounded piece of the admin command that returned [`Progress::More`].
    /// Without one, it completes request 0 with [`Status::Internal`].
    pub fn resume(&mut self, host: &mut impl HostMemory) -> Progress {
        match self.pending.take() {
            None => Progress::Done(Completion::new(RequestId(0), Status::Internal)),
            Some(Pending::Create {
                request,
                map,
                zeroed,
            }) => self.resume_create(request, map, zeroed),
            Some(Pending::Query {
                request,
                handle,
                scan,
            }) => self.resume_query(request, handle, scan),
            Some(Pending::Layout { command, scan }) => self.resume_layout(command, scan, host),
            Some(Pending::Migrate {
                request,
                handle,
                map,
                moving,
            }) => self.resume_migrate(request, handle, map, moving),
        }
    }

    /// Writes what IDENTIFY reports; returns how many bytes of it.
    fn identify_to(
        &mut self,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Result<u32, Status> {
        let body: IdentifyBody = command.body();
        check_reserved(command, &body.reserved, false)?;
        let data = self.identify();
        let bytes = data.as_bytes();
        let len = bytes.len().min(body.len.get() as usize);
        if len != 0 {
            host.write(body.iova.get(), &bytes[..len])?;
        }
        Ok(len as u32)
    }

    /// MAP_LIST (abi §6.6): a page of maps at most, so that the step is bounded.
    fn map_list(
        &mut self,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Result<Completion, Status> {
        let body: MapListBody = command.body();
        check_reserved(command, &body.reserved, false)?;
        let room = body.len.get() as usize / size_of::<MapDescription>();
        let room = room.min(MAP_LIST_MAX);
        let (mut bytes, mut next) = (Vec::new(), 0);
        if room == 0 {
            return Err(Status::InvalidLength);
        }
        for (handle, map) in self.maps.live_from(body.cursor.get()) {
            if bytes.len() == room * size_of::<MapDescription>() {
                next = handle.slot().into();
                break;
            }
            let spec = &map.spec;
            let description = MapDescription {
                map: U32::new(handle.0),
                map_type: U32::new(spec.kind.uapi()),
                key_size: U32::new(spec.key_size),
                value_size: U32::new(spec.value_size),
                max_entries: U32::new(spec.max_entries),
                cpu_slots: U32::new(spec.cpu_slots),
                map_extra: U64::new(spec.map_extra),
                bytes: U64::new(map.bytes),
                name: spec.name,
                base: U64::new(map.base.0),
            };
            bytes.extend_from_slice(description.as_bytes());
        }
        if !bytes.is_empty() {
            host.write(body.iova.get(), &bytes)?;
        }
        let listed = MapListed {
            cursor: U32::new(next),
            reserved: U32::ZERO,
        };
        let mut done = Completion::new(command.request(), Status::Success);
        done = done.with_payload(listed.as_bytes());
        done.count = U32::new(bytes.len() as u32);
        Ok(done)
    }

    fn map_create(
        &mut self,
        command: &Submission,
        host: &mut impl HostMemory,
    ) -> Result<(), Refusal> {
        let body: MapCreateBody = command.body();
        // Without attributes there is no address either.
        let iova = match body.attr_len.get() {
            0 => body.attr.get(),
            _ => 0,
        };
        check_reserved(command, &body.reserved.get().to_le_bytes(), false)?;
        check_reserved(command, &iova.to_le_bytes(), false)?;
        let attr = read_attr(&body, host)?;
        let spec = self.check_create(&body, &attr)?;
        let template = self.maps.get(MapHandle(attr.inner_map.get())).ok();
        let template = template.map(|map| map.spec);
        let reserved = attr.reserved.get() != 0;
        let place = Place::of_field(attr.tier.get(), &self.tiers);
        let place = place.filter(|_| !reserved).ok_or(Status::InvalidField)?;
        self.holdings.creating = template;
        let value = ValueShape::new(&spec).map_or(usize::MAX, |value| value.wire as usize);
        if !self.scratch.reserve_value(value) {
            // It is the firmware's own memory that is used up, which holds one value.
            let allowed = self.scratch.value_bytes() as u64;
            let limit = Limit::ValueBytes;
            return Err(Refusal::limit(
                Status::NoMemory,
                limit,
                value as u64,
                allowed,
                0,
            ));
        }
        let refused = |asked, room| Refusal::no_room(place, asked, room);
        let geometry = Geometry::new(&spec);
        let geometry = geometry.ok_or_else(|| refused(u64::MAX, self.tiers.room(place)))?;
        let bytes = geometry.total_bytes;
        let base = self.tiers.allocate(place, bytes);
        let base = base.map_err(|room| refused(bytes, room))?;
        let table = Table::new(base, &spec, &geometry);
        if let Table::Ring(ring) = &table
            && let Err(status) = ring.begin(host)
        {
            self.tiers.release(base, bytes);
            return Err(status.into());
        }
        let map = Map {
            table,
            spec,
            base,
            bytes,
            fixed: place != Place::Auto,
        };
        self.pending = Some(Pending::Create {
            request: command.request(),
            map,
            zeroed: base.0,
        });
        Ok(())
    }

    /// Checks a map's description against the limits.
    fn check_create(&self, body: &MapCreateBody, attr: &MapAttr) -> Result<MapSpec, Refusal> {
        let exceeded = Status::LimitExceeded;
        let invalid = || Refusal::from(Status::InvalidField);
        if body.flags.get() != 0 {
            return Err(invalid());
        }
        let map_type = body.map_type.get();
        let Some(kind) = MapKind::from_uapi(map_type) else {
            let allowed = MapKind::bits();
            return Err(Refusal::limit(
                exceeded,
                Limit::MapType,
                map_type.into(),
                allowed,
                0,
            ));
        };
        let extra = match kind {
            MapKind::BloomFilter => bloom::HASHES,
            _ => 0,
        };
        // What the type, or none of the types here, has a use for (abi §6.3).
        let memory =
            !kind.is_ring() && (attr.host_memory.get() | u64::from(attr.vector.get())) != 0;
        if memory
            || attr.map_extra.get() & !extra != 0
            || (attr.inner_map.get() != 0 && !kind.is_map_of_maps())
        {
            return Err(invalid());
        }
        let spec = MapSpec::new(kind, body, attr);
        if kind.is_ring() {
            RingTable::check(&spec, self.vectors)?;
            return self.check_maps(spec);
        }
        if kind.is_map_of_maps() {
            let template = self.maps.get(MapHandle(attr.inner_map.get()))?;
            if template.spec.kind.is_map_of_maps() || spec.value_size != INNER_VALUE_BYTES {
                return Err(invalid());
            }
        }
        self.check_spec(spec)
    }

    /// Checks the sizes of a map that is no ring buffer.
    fn check_spec(&self, spec: MapSpec) -> Result<MapSpec, Refusal> {
        let (config, kind) = (&self.config, spec.kind);
        let exceeded = Status::LimitExceeded;
        let invalid = || Refusal::from(Status::InvalidField);
        let valued = spec.value_size != 0;
        if valued != kind.has_values() || spec.max_entries == 0 {
            return Err(invalid());
        }
        if kind.is_queue() != (spec.key_size == 0) {
            return Err(invalid());
        }
        let (key, value) = (config.key_bytes, config.value_bytes);
        within(Limit::KeyBytes, spec.key_size, self.longest(key))?;
        within(Limit::ValueBytes, spec.value_size, self.longest(value))?;
        let lpm_key = lpm::PREFIX_BYTES + 1..=lpm::PREFIX_BYTES + lpm::DATA_BYTES_MAX;
        let wrong_key = match kind {
            MapKind::LpmTrie => !lpm_key.contains(&spec.key_size),
            _ => kind.is_array() && spec.key_size != 4,
        };
        if wrong_key {
            return Err(invalid());
        }
        if kind.is_percpu() != (spec.cpu_slots != 0) {
            return Err(invalid());
        }
        within(Limit::CpuSlots, spec.cpu_slots, config.cpu_slots)?;
        within(
            Limit::EntriesPerMap,
            spec.max_entries,
            config.entries_per_map,
        )?;
        let used = self.maps.entries_total();
        let asked = u64::from(spec.max_entries);
        if config.entries_total != 0 && asked > config.entries_total.saturating_sub(used) {
            let allowed = config.entries_total;
            return Err(Refusal::limit(
                exceeded,
                Limit::EntriesTotal,
                asked,
                allowed,
                used,
            ));
        }
        self.check_maps(spec)
    }

    /// Whether there may be such a map beside those that there are; ring buffers are not asked about.
    pub(crate) fn may_be(&self, spec: MapSpec) -> bool {
        self.check_spec(spec).is_ok()
    }

    /// Whether there may be one more map.
    fn check_maps(&self, spec: MapSpec) -> Result<MapSpec, Refusal> {
        let (live, most) = (self.maps.live(), self.config.maps);
        if live >= most {
            let (allowed, used) = (most.into(), live.into());
            return Err(Refusal::limit(
                Status::LimitExceeded,
                Limit::Maps,
                1,
                allowed,
                used,
            ));
        }
        Ok(spec)
    }

    fn resume_create(&mut self, request: RequestId, map: Map, zeroed: u64) -> Progress {
        let end = map.base.0 + map.bytes;
        match self.memory.zero_step(zeroed, end, self.config.step.bytes) {
            Ok(zeroed) if zeroed < end => {
                self.pending = Some(Pending::Create {
                    request,
                    map,
                    zeroed,
                });
                Progress::More
            }
            Ok(_)
                if !self
                    .scratch
                    .grow_step(map.value_bytes(), self.config.step.bytes) =>
            {
                self.pending = Some(Pending::Create {
                    request,
                    map,
                    zeroed: end,
                });
                Progress::More
            }
            Ok(_) => Progress::Done(match self.finish_create(map) {
                Ok(handle) => {
                    let created = MapCreated {
                        map: U32::new(handle.0),
                        reserved: U32::ZERO,
                        bytes: U64::new(map.bytes),
                    };
                    Completion::new(request, Status::Success).with_payload(created.as_bytes())
                }
                Err(status) => {
                    self.tiers.release(map.base, map.bytes);
                    Completion::new(request, status)
                }
            }),
            Err(fault) => {
                self.tiers.release(map.base, map.bytes);
                Progress::Done(Completion::new(request, fault.into()))
            }
        }
    }

    fn finish_create(&mut self, map: Map) -> Result<MapHandle, Status> {
        use crate::access::Access;
        self.memory.write(map.base, map.spec.description())?;
        let handle = self.maps.insert(map).ok_or(Status::Internal)?;
        // Other maps have no template, and no holdings.
        if let Some(template) = self.holdings.creating.take() {
            self.holdings.insert(handle, template);
        }
        Ok(handle)
    }

    pub(crate) fn free_map(&mut self, handle: MapHandle) -> Result<(), Status> {
        self.maps.get(handle)?;
        if self.holdings.is_held(handle) {
            let map = self.maps.retire(handle)?;
            self.holdings.keep(handle, map);
            return Ok(());
        }
        let map = self.maps.remove(handle)?;
        self.tiers.release(map.base, map.bytes);
        self.holdings.remove(handle);
        self.give_back();
        Ok(())
    }

    fn map_query(&mut self, command: &Submission) -> Result<(), Status> {
        check_reserved(command, &command.body, true)?;
        self.maps.get(command.map())?;
        self.pending = Some(Pending::Query {
            request: command.request(),
            handle: command.map(),
            scan: ChainScan::default(),
        });
        Ok(())
    }

    fn resume_query(
        &mut self,
        request: RequestId,
        handle: MapHandle,
        mut scan: ChainScan,
    ) -> Progress {
        match self.query_step(handle, &mut scan) {
            Ok(None) => {
                self.pending = Some(Pending::Query {
                    request,
                    handle,
                    scan,
                });
                Progress::More
            }
            Ok(Some(info)) => Progress::Done(
                Completion::new(request, Status::Success).with_payload(info.as_bytes()),
            ),
            Err(status) => Progress::Done(Completion::new(request, status)),
        }
    }

    /// A bounded step of MAP_QUERY.
    pub(crate) fn query_step(
        &mut self,
        handle: MapHandle,
        scan: &mut ChainScan,
    ) -> Result<Option<MapInfo>, Status> {
        let map = self.maps.get(handle)?;
        let longest_chain = match &map.table {
            Table::Array(_)
            | Table::ArrayOfMaps(_)
            | Table::Queue(_)
            | Table::Lpm(_)
            | Table::Bloom(_)
            | Table::Ring(_) => 0,
            Table::Hash(table) => {
                match table.scan_step(&mut self.memory, scan, self.config.step.buckets)? {
                    Some(longest) => longest,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(MapInfo {
            bytes: U64::new(map.bytes),
            entries: U32::new(match &map.table {
                Table::ArrayOfMaps(_) => self.holdings.entries(handle),
                table => table.entries(&mut self.memory)?,
            }),
            longest_chain: U32::new(longest_chain),
            free_bytes: U64::new(self.tiers.free_bytes()),
            free_largest: U64::new(self.tiers.largest_free()),
        }))
    }
}
