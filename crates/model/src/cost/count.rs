//! Counting: the firmware's tables at work, and who reads what of them.

use super::keys::{self, SAMPLE, TRIES};
use super::{Cost, CostError, LINE_BYTES, Part, Shape, Step};
use crate::des::random::{ONE, mix};
use offmap_abi::admin::{MapCreateBody, MapCreated};
use offmap_abi::submission::{ElementBody, IovaRef, UPDATE_EXIST, UPDATE_NOEXIST};
use offmap_abi::{AdminOpcode, DevAddr, IoOpcode, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::hook::{MemoryHook, Verdict};
use offmap_firmware_model::table::layout::MapKind;
use offmap_firmware_model::{Config, Firmware, HostFault, HostMemory, Progress};
use std::collections::BTreeMap;

/// Where the key of a command lies in host memory, and where its value.
const KEY_AT: u64 = 0x1000_0000;
const VALUE_AT: u64 = 0x2000_0000;

/// Host memory with the key of one command in it; values are all alike, and what comes back is
/// not looked at.
#[derive(Default)]
struct Host {
    key: Vec<u8>,
}

impl HostMemory for Host {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        if iova != KEY_AT {
            into.fill(0x5a);
            return Ok(());
        }
        let key = self.key.get(..into.len()).ok_or(HostFault)?;
        into.copy_from_slice(key);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), HostFault> {
        Ok(())
    }
}

/// Accesses alike, the lines that they touched, and the sum of their places in operations.
#[derive(Default)]
struct Seen {
    count: u64,
    lines: u64,
    places: u64,
}

/// Notes each access.
#[derive(Default)]
struct Notes {
    entries: u64,
    place: u64,
    seen: BTreeMap<(Part, bool, u32), Seen>,
}

impl MemoryHook for Notes {
    fn read(&mut self, at: DevAddr, len: usize) -> Verdict {
        self.note(at, len, false)
    }
    fn write(&mut self, at: DevAddr, len: usize) -> Verdict {
        self.note(at, len, true)
    }
}

impl Notes {
    fn note(&mut self, at: DevAddr, len: usize, write: bool) -> Verdict {
        let part = match at.0 >= self.entries {
            true => Part::Entries,
            false => Part::Index,
        };
        let seen = self.seen.entry((part, write, len as u32)).or_default();
        let line = u64::from(LINE_BYTES);
        let last = at.0 + (len as u64).max(1) - 1;
        seen.lines += last / line - at.0 / line + 1;
        seen.count += 1;
        seen.places += self.place;
        self.place += 1;
        Verdict::Pass
    }

    /// What was noted, for each of so many operations.
    fn steps(self, operations: u64) -> Vec<Step> {
        let mut seen: Vec<_> = self.seen.into_iter().collect();
        // In the order in which they come on average.
        seen.sort_by(|(a_key, a), (b_key, b)| {
            let (left, right) = (a.places * b.count, b.places * a.count);
            left.cmp(&right).then(a_key.cmp(b_key))
        });
        let steps = seen.into_iter().map(|((part, write, bytes), seen)| Step {
            part,
            write,
            bytes,
            lines: (seen.lines * u64::from(ONE) / seen.count.max(1)) as u32,
            times: (seen.count * u64::from(ONE) / operations.max(1)) as u32,
        });
        steps.filter(|step| step.times != 0).collect()
    }
}

/// A table at work.
struct Table<'a> {
    shape: &'a Shape,
    kind: MapKind,
    firmware: Firmware<Vec<u8>>,
    map: MapHandle,
    host: Host,
    entries: u64,
}

impl<'a> Table<'a> {
    fn new(shape: &'a Shape, kind: MapKind) -> Result<(Self, u64), CostError> {
        let refused = |status| CostError::Refused {
            key_size: shape.key_size,
            value_size: shape.value_size,
            max_entries: shape.max_entries,
            status,
        };
        let bytes = shape.most_bytes().next_multiple_of(4096);
        let config = Config::with_memory(bytes);
        let storage = vec![0; bytes as usize];
        let mut firmware =
            Firmware::new(config, storage).map_err(|_| refused(Status::InvalidField))?;
        let body = MapCreateBody {
            map_type: shape.map_type.into(),
            key_size: shape.key_size.into(),
            value_size: shape.value_size.into(),
            max_entries: shape.max_entries.into(),
            cpu_slots: shape.cpu_slots.into(),
            flags: 0.into(),
            seed: mix(0x0ff_3a9).into(),
            attr: 0.into(),
            attr_len: 0.into(),
            reserved: 0.into(),
        };
        let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), &body);
        let mut host = Host::default();
        let mut progress = firmware.admin(&command, &mut host);
        let completion = loop {
            match progress {
                Progress::Done(completion) => break completion,
                Progress::More => progress = firmware.resume(&mut host),
            }
        };
        if !completion.status().is_success() {
            return Err(refused(completion.status()));
        }
        let created: MapCreated = completion.payload_as();
        let table = Self {
            shape,
            kind,
            firmware,
            map: MapHandle(created.map.get()),
            host,
            entries: 0,
        };
        Ok((table, created.bytes.get()))
    }

    /// A command on a key, with its accesses noted.
    fn command(&mut self, opcode: IoOpcode, flags: u32, key: &[u8], notes: &mut Notes) -> Status {
        self.host.key.clear();
        self.host.key.extend_from_slice(key);
        let value_len = match opcode {
            IoOpcode::Delete => 0,
            _ => self.shape.wire_bytes() as u32,
        };
        let body = ElementBody {
            map_flags: flags.into(),
            key_len: (key.len() as u32).into(),
            value_len: value_len.into(),
            reserved: 0.into(),
            key: IovaRef::field(KEY_AT),
            value: match opcode {
                IoOpcode::Delete => [0; 16],
                _ => IovaRef::field(VALUE_AT),
            },
        };
        let command = Submission::new(opcode.0, RequestId(1), &body).with_map(self.map);
        notes.place = 0;
        match self.firmware.io_hooked(0, &command, &mut self.host, notes) {
            Progress::Done(completion) => completion.status(),
            Progress::More => Status::Internal,
        }
    }

    fn notes(&self) -> Notes {
        Notes {
            entries: self.entries,
            ..Notes::default()
        }
    }

    /// Fills it; the keys that are in it.
    fn fill(&mut self) -> Result<Vec<Vec<u8>>, CostError> {
        let wanted = self.shape.filled();
        if self.kind.is_array() {
            return Ok((0..wanted.max(1))
                .map(|n| keys::key(self.shape, self.kind, n.into()))
                .collect());
        }
        let mut there = Vec::with_capacity(wanted as usize);
        let mut unnoted = self.notes();
        for n in 0..u64::from(wanted) * TRIES {
            if there.len() == wanted as usize {
                break;
            }
            let key = keys::key(self.shape, self.kind, n);
            match self.command(IoOpcode::Update, UPDATE_NOEXIST, &key, &mut unnoted) {
                Status::Success => there.push(key),
                // Of a trie a prefix that there is.
                Status::Exists => {}
                status => {
                    return Err(CostError::Refused {
                        key_size: self.shape.key_size,
                        value_size: self.shape.value_size,
                        max_entries: self.shape.max_entries,
                        status,
                    });
                }
            }
        }
        if there.len() < wanted as usize {
            return Err(CostError::Keys {
                wanted: wanted.into(),
                key_size: self.shape.key_size,
                prefixes: self.kind == MapKind::LpmTrie,
            });
        }
        Ok(there)
    }

    /// Where entries begin: with the first value, or with the key before it.
    fn find_entries(&mut self, there: &[Vec<u8>]) {
        let key = match self.kind {
            MapKind::LpmTrie => 0,
            kind if kind.is_array() => 0,
            _ => u64::from(self.shape.key_size).next_multiple_of(8),
        };
        let (firmware, map) = (&mut self.firmware, self.map);
        let values = there
            .iter()
            .filter_map(|key| firmware.value_address(map, key));
        let first = values.map(|(at, _)| at.0).min();
        self.entries = first.map_or(0, |at| at.saturating_sub(key));
    }
}

/// Counts what operations on a table do that is small enough to be filled.
pub(super) fn count(shape: &Shape) -> Result<Cost, CostError> {
    let kind = shape.kind().ok_or(CostError::Type(shape.map_type))?;
    let modelled = matches!(
        kind,
        MapKind::Hash
            | MapKind::Array
            | MapKind::PercpuHash
            | MapKind::PercpuArray
            | MapKind::LruHash
            | MapKind::LruPercpuHash
            | MapKind::LpmTrie
    );
    if !modelled {
        return Err(CostError::Type(shape.map_type));
    }
    let (mut table, bytes) = Table::new(shape, kind)?;
    let there = table.fill()?;
    table.find_entries(&there);
    let stored =
        u64::from(shape.value_size).next_multiple_of(8) * u64::from(shape.cpu_slots.max(1));
    let entry = match kind {
        MapKind::LpmTrie => stored,
        kind if kind.is_array() => stored,
        _ => u64::from(shape.key_size).next_multiple_of(8) + stored,
    };
    let entries_bytes = (entry * u64::from(shape.max_entries)).min(bytes);
    let is_trie = kind == MapKind::LpmTrie;

    let any = |n: u64| there.get((mix(n ^ 0x1234_5678) % there.len().max(1) as u64) as usize);
    let mut steps: [Option<Vec<Step>>; 5] = [const { None }; 5];
    let sampled =
        |notes: Notes, operations: u64| (operations != 0).then(|| notes.steps(operations));

    // Lookups of keys that are there; of a trie, of addresses below prefixes that are there.
    let mut notes = table.notes();
    let mut operations = 0;
    for n in 0..SAMPLE {
        let Some(key) = any(n.into()) else { break };
        let key = match is_trie {
            true => keys::below(shape, key, u64::from(n) ^ 0xabc0_0000),
            false => key.clone(),
        };
        let status = table.command(IoOpcode::Lookup, 0, &key, &mut notes);
        operations += u64::from(status == Status::Success);
    }
    steps[0] = sampled(notes, operations);

    // Of keys that are not.
    let mut notes = table.notes();
    let mut operations = 0;
    // Behind all that were tried when it was filled.
    let absent = match is_trie {
        true => u64::from(shape.max_entries) * TRIES,
        false => shape.max_entries.into(),
    };
    for n in 0..u64::from(SAMPLE) {
        let key = match is_trie {
            true => keys::address(shape, n ^ 0xdef0_0000_0000),
            false => keys::key(shape, kind, absent + n),
        };
        let mut one = table.notes();
        // Of a trie only those count that no prefix covers.
        if table.command(IoOpcode::Lookup, 0, &key, &mut one) != Status::Success {
            operations += 1;
            for (access, seen) in one.seen {
                let sum = notes.seen.entry(access).or_default();
                sum.count += seen.count;
                sum.lines += seen.lines;
                sum.places += seen.places;
            }
        }
    }
    // Where prefixes cover all there is, no lookup misses, and none is asked to.
    steps[1] = sampled(notes, operations).or_else(|| steps[0].clone());

    if !kind.is_array() {
        // Keys come and go in pairs, so that there are as many all the time.
        let (mut inserts, mut deletes) = (table.notes(), table.notes());
        let (mut inserted, mut deleted) = (0, 0);
        let base = absent + u64::from(SAMPLE);
        // A full table that evicts stays full, so that each insertion evicts.
        let evicts = kind.is_lru() && shape.filled() >= shape.max_entries;
        for n in 0..SAMPLE {
            let mut key = keys::key(shape, kind, base + u64::from(n));
            let status = table.command(IoOpcode::Update, UPDATE_NOEXIST, &key, &mut inserts);
            inserted += u64::from(status != Status::Exists);
            let refused = status != Status::Success;
            if refused {
                // The table is full: a key that is there goes, and comes again.
                let Some(there) = any(n.into()) else { continue };
                key.clone_from(there);
            }
            let status = table.command(IoOpcode::Delete, 0, &key, &mut deletes);
            deleted += u64::from(status == Status::Success);
            if refused || evicts {
                let mut unnoted = table.notes();
                table.command(IoOpcode::Update, UPDATE_NOEXIST, &key, &mut unnoted);
            }
        }
        steps[3] = sampled(inserts, inserted);
        steps[4] = sampled(deletes, deleted);
    }
    // Updates of keys that are still there. Each is done twice and counted once: what is used has mostly
    // been used before, and its recency says so.
    let mut notes = table.notes();
    let mut operations = 0;
    for n in 0..SAMPLE {
        if there.is_empty() {
            break;
        }
        let key = &there[(mix(u64::from(n) ^ 0x5555) % there.len() as u64) as usize];
        let mut unnoted = table.notes();
        let status = table.command(IoOpcode::Update, UPDATE_EXIST, key, &mut unnoted);
        if status == Status::Success {
            table.command(IoOpcode::Update, UPDATE_EXIST, key, &mut notes);
            operations += 1;
        }
    }
    steps[2] = sampled(notes, operations);
    Ok(Cost {
        index_bytes: bytes - entries_bytes,
        entries_bytes,
        halvings: 0,
        steps,
    })
}
