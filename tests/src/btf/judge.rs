//! The same blob, and maps with its types, put to our checks and to the kernel's.

use crate::kernel::{self, KernelMap};
use crate::subject::Subject;
use offmap_bpf::btf::{
    Btf, FieldKind, FieldKinds, FieldRecord, Kind, MapBtfSpec, MapTypeCheck, RunningKernel,
    check_map_btf,
};
use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Errno, MapCreateAttr, MapType};
use rand::{Rng, RngExt};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// What is not put to a kernel, and why: part of our reason, and the kernel's file and version.
const NOT_ASKED: &[(&str, &str)] = &[(
    "elements exceed 32 bits",
    "kernel/bpf/btf.c:btf_repeat_fields of 6.18 multiplies in 32 bits; where that wraps to 11 or \
     less it writes past an array on its stack. Later kernels answer E2BIG, as we do",
)];

/// The kinds of maps that are created, with their key size where it is fixed.
const MAPS: &[(MapType, Option<u32>)] = &[
    (MapType::HASH, None),
    (MapType::HASH, None),
    (MapType::ARRAY, Some(4)),
    (MapType::ARRAY, Some(4)),
    (MapType::PERCPU_HASH, None),
    (MapType::PERCPU_ARRAY, Some(4)),
    (MapType::LRU_HASH, None),
    (MapType::LRU_PERCPU_HASH, None),
    (MapType::LPM_TRIE, None),
    (MapType::QUEUE, Some(0)),
    (MapType::STACK, Some(0)),
    (MapType::BLOOM_FILTER, Some(0)),
    (MapType::PROG_ARRAY, Some(4)),
    (MapType::PERF_EVENT_ARRAY, Some(4)),
    (MapType::CGROUP_ARRAY, Some(4)),
    (MapType::STACK_TRACE, Some(4)),
    (MapType::DEVMAP, Some(4)),
    (MapType::DEVMAP_HASH, Some(4)),
    (MapType::CPUMAP, Some(4)),
    (MapType::XSKMAP, Some(4)),
    (MapType::SOCKMAP, Some(4)),
    (MapType::SOCKHASH, None),
    (MapType::REUSEPORT_SOCKARRAY, Some(4)),
    (MapType::CGROUP_STORAGE, None),
    (MapType::PERCPU_CGROUP_STORAGE, None),
    (MapType::SK_STORAGE, Some(4)),
    (MapType::INODE_STORAGE, Some(4)),
    (MapType::TASK_STORAGE, Some(4)),
    (MapType::CGRP_STORAGE, Some(4)),
];
const MAX_KEY_BYTES: u32 = 256;
const MAX_VALUE_BYTES: u32 = 8192;

/// What became of one blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both took it.
    Accepted,
    /// Both refused it with this error number.
    Refused(i32),
    /// It was not put to the kernel, for the reason at this place of the table.
    NotAsked,
}

/// How often what was answered.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Blobs by error number; 0 for those accepted.
    pub blobs: BTreeMap<i32, u64>,
    /// Blobs not put to the kernel.
    pub not_asked: u64,
    /// Maps by type and error number.
    pub maps: BTreeMap<(MapType, i32), u64>,
    /// Values that were written and read back, with special fields.
    pub values: u64,
    /// Of those, by kind of field.
    pub fields: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Blobs in all.
    pub fn total(&self) -> u64 {
        self.blobs.values().sum::<u64>() + self.not_asked
    }

    /// Map creations in all.
    pub fn maps_total(&self) -> u64 {
        self.maps.values().sum()
    }
}

/// Puts blobs to both sides.
#[derive(Debug, Default)]
pub struct Judge {
    /// What was answered so far.
    pub tally: Tally,
}

fn answer<T>(result: &Result<T, i32>) -> i32 {
    result.as_ref().err().copied().unwrap_or(0)
}

fn named(errno: i32) -> String {
    if errno == 0 {
        "accepted".to_owned()
    } else {
        format!("{:?}", Errno(errno))
    }
}

/// What the kernel says about a blob: the end of its log.
fn log(blob: &[u8]) -> String {
    let mut log = vec![0; 1 << 20];
    let _ = kernel::btf_load_logged(blob, &mut log);
    let len = log.iter().position(|&b| b == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..len]);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

fn hazard(reason: &str) -> bool {
    NOT_ASKED.iter().any(|(part, _)| reason.contains(part))
}

impl Judge {
    /// Loads `blob` on both sides and, if both take it, creates up to `maps` maps with types
    /// of it. The error says what they disagree on.
    pub fn judge<R: Rng>(
        &mut self,
        rng: &mut R,
        blob: &[u8],
        maps: u32,
    ) -> Result<Verdict, String> {
        let ours = Btf::parse(blob);
        if let Err(error) = &ours
            && hazard(error.reason())
        {
            self.tally.not_asked += 1;
            return Ok(Verdict::NotAsked);
        }
        let theirs = kernel::btf_load(blob);
        let errno = ours.as_ref().err().map_or(0, |error| error.errno().0);
        if errno != answer(&theirs) {
            return Err(format!(
                "BTF_LOAD: kernel {}, ours {}\nours: {}\nkernel:\n{}\nblob: {}",
                named(answer(&theirs)),
                named(errno),
                ours.as_ref().err().map_or("", |error| error.reason()),
                log(blob),
                blob.iter().map(|b| format!("{b:02x}")).collect::<String>()
            ));
        }
        *self.tally.blobs.entry(errno).or_default() += 1;
        let (Ok(btf), Ok(fd)) = (ours, theirs) else {
            return Ok(Verdict::Refused(errno));
        };
        for _ in 0..maps {
            self.map(rng, &btf, &fd).map_err(|what| {
                format!(
                    "{what}\nblob: {}",
                    blob.iter().map(|b| format!("{b:02x}")).collect::<String>()
                )
            })?;
        }
        Ok(Verdict::Accepted)
    }

    fn map<R: Rng>(&mut self, rng: &mut R, btf: &Btf, fd: &impl AsFd) -> Result<(), String> {
        let attr = choose(rng, btf);
        // Only what the types decide is compared: a map that cannot be made anyway is none.
        // Local storage cannot be made without types; its other limits are kept to.
        let map_type = MapType(attr.map_type);
        let must_have_types = MapTypeCheck::of(map_type) == MapTypeCheck::LocalStorage;
        if must_have_types && (attr.value_size == 0 || attr.btf_key_type_id == 0) {
            return Ok(());
        }
        if !must_have_types && KernelMap::create(&attr).is_err() {
            return Ok(());
        }
        let spec = MapBtfSpec {
            map_type,
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            flags: attr.flags(),
            check: MapTypeCheck::of(map_type),
            bpf_capable: true,
        };
        if let Some((end, size)) = btf.type_id_size(attr.btf_value_type_id)
            && let Err(error) = btf.parse_fields(end, size, FieldKinds::MAP_VALUE, &RunningKernel)
            && hazard(error.reason())
        {
            return Ok(());
        }
        let ours = check_map_btf(
            btf,
            attr.btf_key_type_id,
            attr.btf_value_type_id,
            &spec,
            &RunningKernel,
        );
        let theirs = KernelMap::create_typed(&attr, Some(fd.as_fd()));
        let errno = ours.as_ref().err().map_or(0, |error| error.errno().0);
        if errno != answer(&theirs) {
            return Err(format!(
                "MAP_CREATE of {attr:?}: kernel {}, ours {}: {ours:?}",
                named(answer(&theirs)),
                named(errno)
            ));
        }
        *self.tally.maps.entry((map_type, errno)).or_default() += 1;
        if let (Ok(Some(record)), Ok(map)) = (ours, theirs)
            && matches!(map_type, MapType::HASH | MapType::ARRAY)
        {
            self.value(&attr, &record, map)?;
        }
        Ok(())
    }

    /// Writes a value of ones over one that is there and reads it back: what is zero then is a
    /// special field.
    fn value(
        &mut self,
        attr: &MapCreateAttr,
        record: &FieldRecord,
        mut map: KernelMap,
    ) -> Result<(), String> {
        let key = vec![0; attr.key_size as usize];
        let ones = vec![0xff; attr.value_size as usize];
        let mut theirs = vec![0x55; attr.value_size as usize];
        for _ in 0..2 {
            map.update(&key, &ones, 0)
                .and_then(|()| map.lookup(&key, &mut theirs, 0))
                .map_err(|errno| format!("a value of {attr:?}: {}", named(errno)))?;
        }
        let mut ours = ones;
        record.zero(&mut ours);
        for field in record.fields() {
            // The kernel leaves addresses of its own in a list head.
            if field.kind == FieldKind::ListHead {
                let range = field.offset as usize..(field.offset + field.size) as usize;
                ours[range.clone()].fill(0);
                theirs[range].fill(0);
            }
            *self.tally.fields.entry(field.kind.name()).or_default() += 1;
        }
        if ours != theirs {
            return Err(format!(
                "a value of {attr:?} with {record:?}: kernel {theirs:02x?}, ours {ours:02x?}"
            ));
        }
        self.tally.values += 1;
        Ok(())
    }
}

fn choose<R: Rng>(rng: &mut R, btf: &Btf) -> MapCreateAttr {
    let count = btf.type_count();
    let any = |rng: &mut R| rng.random_range(0..count + 1);
    let sized = |id: u32| btf.type_id_size(id).map_or(0, |(_, size)| size);
    let mut of_type = MAPS[rng.random_range(0..MAPS.len())];
    // The kernel waits for a grace period of RCU when it drops such a map on the way out, so
    // they are rare.
    let slow = |map_type| {
        let check = MapTypeCheck::of(map_type);
        matches!(check, MapTypeCheck::Refuse | MapTypeCheck::LocalStorage)
    };
    while slow(of_type.0) && rng.random_range(0..48) != 0 {
        of_type = MAPS[rng.random_range(0..MAPS.len())];
    }
    let (map_type, fixed_key) = of_type;
    let mut value_id = any(rng);
    for _ in 0..4 {
        if matches!(btf.kind(value_id), Kind::Struct | Kind::Datasec) {
            break;
        }
        value_id = any(rng);
    }
    // A key of the size that the map needs, if one is found soon.
    let mut key_id = any(rng);
    for _ in 0..12 {
        match fixed_key {
            Some(size) if sized(key_id) != size => key_id = any(rng),
            None if sized(key_id) == 0 || sized(key_id) > MAX_KEY_BYTES => key_id = any(rng),
            _ => break,
        }
    }
    if rng.random_range(0..6) == 0 {
        key_id = 0;
    }
    let mut attr = MapCreateAttr {
        map_type: map_type.0,
        key_size: fixed_key.unwrap_or_else(|| sized(key_id).clamp(1, MAX_KEY_BYTES)),
        value_size: sized(value_id).min(MAX_VALUE_BYTES),
        max_entries: rng.random_range(1..3),
        btf_key_type_id: key_id,
        // 0 would have nothing checked.
        btf_value_type_id: value_id.max(1),
        ..MapCreateAttr::default()
    };
    match map_type {
        MapType::LPM_TRIE => attr.map_flags = MapFlags::NO_PREALLOC.bits(),
        MapType::SK_STORAGE
        | MapType::INODE_STORAGE
        | MapType::TASK_STORAGE
        | MapType::CGRP_STORAGE => {
            attr.map_flags = MapFlags::NO_PREALLOC.bits();
            attr.max_entries = 0;
        }
        MapType::CGROUP_STORAGE | MapType::PERCPU_CGROUP_STORAGE => attr.max_entries = 0,
        _ => {}
    }
    // Local storage has no such flags.
    let flags = MapTypeCheck::of(map_type) != MapTypeCheck::LocalStorage;
    if flags && rng.random_range(0..12) == 0 {
        attr.map_flags |= if rng.random() {
            MapFlags::RDONLY_PROG.bits()
        } else {
            MapFlags::WRONLY_PROG.bits()
        };
    }
    if rng.random_range(0..20) == 0 {
        attr.value_size ^= 4;
    }
    attr
}
