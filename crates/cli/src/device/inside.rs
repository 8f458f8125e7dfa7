//! `offmap device info|memory|map`: what a device is, how its memory is used, and how a map lies there.
//!
//! The device is left as it was found: one that keeps its maps (`KEEPS_MAPS`, abi §6.6) has them
//! afterwards. Any other one has no maps to show, because they go with the host that made them.

use crate::args::{DeviceInfoArgs, DeviceKind, DeviceMapArgs};
use crate::device::DeviceError;
use crate::open::{OpenError, Visitor, visit};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use offmap_abi::MapType;
use offmap_abi::admin::{CheckCode, MAP_TIER_FIXED, TIER_PLACEABLE};
use offmap_abi::regs::Features;
use offmap_driver::{
    Driver, DriverConfig, DriverError, Function, Identity, MapDescription, MapHandle, MapLayout,
    TierInfo,
};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use serde::Serialize;
use std::fmt::Write;
use std::sync::Arc;

/// Cells of a bar.
const BAR: u64 = 64;

/// What is asked of a device.
enum Question<'a> {
    Info,
    Memory,
    Map(&'a DeviceMapArgs),
}

struct Ask<'a> {
    question: Question<'a>,
    json: bool,
}

/// What a device is.
#[derive(Serialize)]
struct Info {
    firmware: String,
    abi: String,
    features: Vec<String>,
    queue_pairs: u16,
    queue_depth_max: u32,
    memory_bytes: u64,
    maps_max: u32,
    entries_per_map: u32,
    key_bytes: u32,
    value_bytes: u32,
    engines: u32,
    ports: u32,
    map_types: Vec<String>,
    /// `None`: the device does not tell.
    tiers: Option<Vec<TierOut>>,
    maps: Option<usize>,
}

/// A tier.
#[derive(Serialize)]
struct TierOut {
    number: usize,
    name: String,
    base: u64,
    bytes: u64,
    used: u64,
    free: u64,
    free_largest: u64,
    free_pieces: u32,
    /// The part of the free bytes that the largest piece has not, from 0 to 1.
    fragmentation: f64,
    check: String,
    maps_may_lie_there: bool,
    corrected: u64,
    detected: u64,
    bad_lines: u64,
    /// A cell for each 64th of the tier: `#` taken, `+` taken in part, `.` free.
    bar: String,
}

/// A map, in a list.
#[derive(Serialize)]
struct MapOut {
    map: u32,
    name: String,
    #[serde(rename = "type")]
    map_type: String,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    base: u64,
    bytes: u64,
    tier: Option<String>,
}

#[derive(Serialize)]
struct Memory {
    tiers: Vec<TierOut>,
    maps: Vec<MapOut>,
    /// Bytes of maps that are freed and held by maps of maps, which no list names.
    held_bytes: u64,
}

/// A map, alone.
#[derive(Serialize)]
struct MapInside {
    #[serde(flatten)]
    map: MapOut,
    entries: u32,
    heat: u64,
    tier_was_asked_for: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<LayoutOut>,
}

#[derive(Serialize)]
struct LayoutOut {
    entry_bytes: u64,
    occupancy: f64,
    homes: u32,
    homes_used: u32,
    overflow: u32,
    overflow_used: u32,
    longest_chain: u32,
    /// Entries by the buckets that a lookup of them reads.
    probes: Vec<(String, u32)>,
}

/// `offmap device info`.
///
/// # Errors
///
/// [`DeviceError`].
pub(crate) fn info(args: &DeviceInfoArgs) -> Result<String, DeviceError> {
    ask(&args.device, Question::Info, args.json)
}

/// `offmap device memory`.
///
/// # Errors
///
/// [`DeviceError`].
pub(crate) fn memory(args: &DeviceInfoArgs) -> Result<String, DeviceError> {
    ask(&args.device, Question::Memory, args.json)
}

/// `offmap device map`.
///
/// # Errors
///
/// [`DeviceError`].
pub(crate) fn map(args: &DeviceMapArgs) -> Result<String, DeviceError> {
    ask(&args.device, Question::Map(args), args.json)
}

fn ask(kind: &DeviceKind, question: Question<'_>, json: bool) -> Result<String, DeviceError> {
    visit(kind, Ask { question, json })
}

impl Visitor for Ask<'_> {
    type Out = Result<String, DeviceError>;

    fn emulated(self, threaded: bool) -> Self::Out {
        let config = DeviceConfig::default();
        match threaded {
            true => self.of(Threaded::spawn(config)?),
            false => self.of(Inline::new(config)?),
        }
    }

    fn elsewhere<F: Function>(
        self,
        mut open: impl FnMut() -> Result<Arc<F>, OpenError>,
    ) -> Self::Out {
        self.of(open()?)
    }
}

impl Ask<'_> {
    fn of<F: Function>(&self, function: Arc<F>) -> Result<String, DeviceError> {
        let driver = Driver::bring_up(function, DriverConfig::default())?;
        driver.leave_maps();
        match self.question {
            Question::Info => {
                let info = info_of(&driver)?;
                self.print(&info, info_text)
            }
            Question::Memory => {
                let memory = memory_of(&driver)?;
                self.print(&memory, memory_text)
            }
            Question::Map(args) => {
                let map = map_of(&driver, args)?;
                self.print(&map, map_text)
            }
        }
    }

    fn print<T: Serialize>(
        &self,
        it: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<String, DeviceError> {
        match self.json {
            true => Ok(serde_json::to_string_pretty(it)? + "\n"),
            false => Ok(text(it)),
        }
    }
}

/// A name from a device, as far as it can be shown.
fn shown(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0);
    let name = String::from_utf8_lossy(&name[..end.unwrap_or(name.len())]);
    name.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn type_name(map_type: u32) -> String {
    MapType(map_type)
        .name()
        .map_or_else(|| map_type.to_string(), str::to_owned)
}

fn info_of<F: Function>(driver: &Driver<F>) -> Result<Info, DriverError> {
    let Identity {
        firmware,
        version,
        features,
        queue_pairs,
        queue_depth_max,
        map_types,
        memory_bytes,
        entries_per_map,
        maps,
        key_bytes,
        value_bytes,
        engines,
        ports,
        ..
    } = driver.identity();
    let told = |feature| features.contains(feature);
    let listed = match told(Features::MAP_LIST) {
        true => Some(driver.list_maps()?),
        false => None,
    };
    let tiers = match told(Features::MEMORY_TIERS) {
        true => Some(driver.memory_info()?),
        false => None,
    };
    let none = Vec::new();
    Ok(Info {
        firmware: firmware.clone(),
        abi: format!("{}.{}", version.0, version.1),
        features: features.iter_names().map(|(name, _)| name.into()).collect(),
        queue_pairs: *queue_pairs,
        queue_depth_max: *queue_depth_max,
        memory_bytes: *memory_bytes,
        maps_max: *maps,
        entries_per_map: *entries_per_map,
        key_bytes: *key_bytes,
        value_bytes: *value_bytes,
        engines: *engines,
        ports: *ports,
        map_types: (0..64)
            .filter(|n| map_types >> n & 1 != 0)
            .map(type_name)
            .collect(),
        tiers: tiers.map(|tiers| tiers_out(&tiers, listed.as_ref().unwrap_or(&none))),
        maps: listed.map(|listed| listed.len()),
    })
}

fn tiers_out(tiers: &[TierInfo], maps: &[MapDescription]) -> Vec<TierOut> {
    let out = tiers.iter().enumerate().map(|(number, tier)| {
        let (bytes, used) = (tier.bytes.get(), tier.used.get());
        let free = bytes.saturating_sub(used);
        let largest = tier.free_largest.get();
        let check = CheckCode(tier.check.get());
        TierOut {
            number,
            name: shown(&tier.name),
            base: tier.base.get(),
            bytes,
            used,
            free,
            free_largest: largest,
            free_pieces: tier.free_pieces.get(),
            fragmentation: match free {
                0 => 0.0,
                free => 1.0 - largest.min(free) as f64 / free as f64,
            },
            check: match check.name() {
                Some(name) => name.to_lowercase(),
                None => check.0.to_string(),
            },
            maps_may_lie_there: tier.flags.get() & TIER_PLACEABLE != 0,
            corrected: tier.corrected.get(),
            detected: tier.detected.get(),
            bad_lines: tier.bad_lines.get(),
            bar: bar(tier, maps),
        }
    });
    out.collect()
}

/// The use of a tier, cell by cell.
fn bar(tier: &TierInfo, maps: &[MapDescription]) -> String {
    let (base, bytes) = (tier.base.get(), tier.bytes.get());
    let edge = |cell: u64| (u128::from(bytes) * u128::from(cell) / u128::from(BAR)) as u64;
    let mut taken = [0u64; BAR as usize];
    for map in maps {
        // Whatever a device says: from its start, and no further than its end.
        let start = map.base.get().saturating_sub(base).min(bytes);
        let end = map.base.get().saturating_add(map.bytes.get());
        let end = end.saturating_sub(base).min(bytes);
        for (cell, taken) in (0..BAR).zip(&mut taken) {
            let from = start.max(edge(cell));
            let to = end.min(edge(cell + 1));
            *taken += to.saturating_sub(from);
        }
    }
    let cells = (0..BAR).zip(taken).map(|(cell, taken)| {
        let whole = edge(cell + 1) - edge(cell);
        match taken {
            0 => '.',
            // What a map's last line is longer than the map.
            taken if taken + 64 > whole => '#',
            _ => '+',
        }
    });
    cells.collect()
}

fn tier_at(tiers: &[TierInfo], at: u64) -> Option<usize> {
    tiers.iter().position(|tier| {
        let end = tier.base.get().saturating_add(tier.bytes.get());
        (tier.base.get()..end).contains(&at)
    })
}

fn map_out(map: &MapDescription, tiers: &[TierInfo]) -> MapOut {
    let tier = tier_at(tiers, map.base.get()).and_then(|tier| tiers.get(tier));
    MapOut {
        map: map.map.get(),
        name: shown(&map.name),
        map_type: type_name(map.map_type.get()),
        key_size: map.key_size.get(),
        value_size: map.value_size.get(),
        max_entries: map.max_entries.get(),
        base: map.base.get(),
        bytes: map.bytes.get(),
        tier: tier.map(|tier| shown(&tier.name)),
    }
}

fn memory_of<F: Function>(driver: &Driver<F>) -> Result<Memory, DriverError> {
    let tiers = driver.memory_info()?;
    let mut listed = driver.list_maps()?;
    listed.sort_by_key(|map| map.base.get());
    let used: u64 = tiers.iter().map(|tier| tier.used.get()).sum();
    let lines = listed
        .iter()
        .map(|map| map.bytes.get().div_ceil(64).saturating_mul(64));
    let named = lines.fold(0, u64::saturating_add);
    Ok(Memory {
        tiers: tiers_out(&tiers, &listed),
        maps: listed.iter().map(|map| map_out(map, &tiers)).collect(),
        held_bytes: used.saturating_sub(named),
    })
}

fn map_of<F: Function>(driver: &Driver<F>, args: &DeviceMapArgs) -> Result<MapInside, DeviceError> {
    let tiers = driver.memory_info()?;
    let listed = driver.list_maps()?;
    let number = args.map.parse().ok();
    let is_it = |map: &&MapDescription| {
        number.map_or_else(
            || shown(&map.name) == args.map,
            |number: u32| map.map.get() == number,
        )
    };
    let mut found = listed.iter().filter(is_it);
    let (Some(map), None) = (found.next(), found.next()) else {
        let maps = listed.iter().take(16);
        let known: Vec<String> = maps
            .map(|map| format!("{} {:?}", map.map, shown(&map.name)))
            .collect();
        return Err(DeviceError::NoSuchMap {
            map: args.map.clone(),
            known: match known.is_empty() {
                true => "the device has no maps; one without KEEPS_MAPS, which is a NIC without --state, loses \
                         them with the host that made them"
                    .into(),
                false => format!("there are {}", known.join(", ")),
            },
        });
    };
    let layout = driver.map_layout(MapHandle(map.map.get()))?;
    Ok(MapInside {
        map: map_out(map, &tiers),
        entries: layout.entries.get(),
        heat: layout.heat.get(),
        tier_was_asked_for: layout.flags.get() & MAP_TIER_FIXED != 0,
        layout: args.layout.then(|| layout_out(&layout)),
    })
}

fn layout_out(layout: &MapLayout) -> LayoutOut {
    let probes = [
        ("1", layout.probes_1),
        ("2", layout.probes_2),
        ("3", layout.probes_3),
        ("4", layout.probes_4),
        ("5-8", layout.probes_8),
        ("9-16", layout.probes_16),
        ("more", layout.probes_more),
    ];
    let most = layout.max_entries.get().max(1);
    LayoutOut {
        entry_bytes: layout.entry_bytes.get(),
        occupancy: f64::from(layout.entries.get()) / f64::from(most),
        homes: layout.homes.get(),
        homes_used: layout.homes_used.get(),
        overflow: layout.overflow.get(),
        overflow_used: layout.overflow_used.get(),
        longest_chain: layout.longest_chain.get(),
        probes: probes
            .map(|(buckets, count)| (buckets.to_owned(), count.get()))
            .to_vec(),
    }
}

/// Bytes as people say them, where that is exact or nearly so.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value.fract() == 0.0 {
        true => format!("{value:.0} {}", units[unit]),
        false => format!("{value:.1} {}", units[unit]),
    }
}

fn tiers_text(tiers: &[TierOut]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "tier",
        "from",
        "size",
        "used",
        "free",
        "largest",
        "pieces",
        "fragmented",
        "check",
        "corrected",
        "detected",
        "bad lines",
    ]);
    for tier in tiers {
        let name = match tier.maps_may_lie_there {
            true => format!("{} {}", tier.number, tier.name),
            false => format!("{} {} (no maps)", tier.number, tier.name),
        };
        table.add_row([
            name,
            format!("{:#x}", tier.base),
            size(tier.bytes),
            size(tier.used),
            size(tier.free),
            size(tier.free_largest),
            tier.free_pieces.to_string(),
            format!("{:.1} %", tier.fragmentation * 100.0),
            tier.check.clone(),
            tier.corrected.to_string(),
            tier.detected.to_string(),
            tier.bad_lines.to_string(),
        ]);
    }
    format!("{table}\n")
}

fn info_text(info: &Info) -> String {
    let mut text = String::new();
    let maps = info.maps.map_or("untold".into(), |maps| maps.to_string());
    // Writing to a string does not fail.
    let _ = writeln!(text, "firmware     {}, ABI {}", info.firmware, info.abi);
    let _ = writeln!(text, "features     {}", info.features.join(", "));
    let _ = writeln!(
        text,
        "queues       {} pairs, {} entries deep at most",
        info.queue_pairs, info.queue_depth_max
    );
    let _ = writeln!(
        text,
        "maps         {maps} of {} at most; {} entries, keys of {} and values of {}",
        info.maps_max,
        info.entries_per_map,
        size(info.key_bytes.into()),
        size(info.value_bytes.into())
    );
    let _ = writeln!(text, "map types    {}", info.map_types.join(", "));
    let _ = writeln!(
        text,
        "data path    {} engines, {} ports",
        info.engines, info.ports
    );
    let _ = writeln!(text, "memory       {} for maps", size(info.memory_bytes));
    match &info.tiers {
        Some(tiers) => text + "\n" + &tiers_text(tiers),
        None => text + "             the device does not tell of its tiers\n",
    }
}

fn memory_text(memory: &Memory) -> String {
    let mut text = tiers_text(&memory.tiers) + "\n";
    for tier in &memory.tiers {
        let _ = writeln!(text, "{:>16} [{}]", tier.name, tier.bar);
    }
    if memory.held_bytes != 0 {
        let _ = writeln!(
            text,
            "{:>16} {} of maps that were freed and that maps of maps hold still",
            "and",
            size(memory.held_bytes)
        );
    }
    if memory.maps.is_empty() {
        return text + "\nno maps\n";
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "map",
        "name",
        "type",
        "tier",
        "from",
        "bytes",
        "max_entries",
    ]);
    for map in &memory.maps {
        table.add_row([
            map.map.to_string(),
            map.name.clone(),
            map.map_type.clone(),
            map.tier.clone().unwrap_or_else(|| "-".into()),
            format!("{:#x}", map.base),
            size(map.bytes),
            map.max_entries.to_string(),
        ]);
    }
    format!("{text}\n{table}\n")
}

fn map_text(inside: &MapInside) -> String {
    let map = &inside.map;
    let mut text = String::new();
    let name = match map.name.is_empty() {
        true => String::new(),
        false => format!(" {:?}", map.name),
    };
    let _ = writeln!(
        text,
        "map {}{name}: {}, keys of {} and values of {} bytes",
        map.map, map.map_type, map.key_size, map.value_size
    );
    let asked = match inside.tier_was_asked_for {
        true => "as was asked for",
        false => "by the device's choice",
    };
    let _ = writeln!(
        text,
        "  {} at {:#x}, in tier {}, {asked}; heat {}",
        size(map.bytes),
        map.base,
        map.tier.as_deref().unwrap_or("-"),
        inside.heat
    );
    let _ = writeln!(text, "  {} of {} entries", inside.entries, map.max_entries);
    let Some(layout) = &inside.layout else {
        return text;
    };
    let _ = writeln!(
        text,
        "  occupancy {:.1} %, {} bytes an entry",
        layout.occupancy * 100.0,
        layout.entry_bytes
    );
    if layout.homes == 0 {
        return text + "  no buckets: an entry is where its index or its place in the order says\n";
    }
    let _ = writeln!(
        text,
        "  home buckets {} of {} in use, overflow buckets {} of {}; the longest chain has {}",
        layout.homes_used,
        layout.homes,
        layout.overflow_used,
        layout.overflow,
        layout.longest_chain
    );
    text += "  buckets read to find an entry:\n";
    let all: u64 = layout
        .probes
        .iter()
        .map(|(_, count)| u64::from(*count))
        .sum();
    for (buckets, count) in &layout.probes {
        let cells = u64::from(*count) * 40 / all.max(1);
        let bar = "#".repeat(cells as usize);
        let line = format!("  {buckets:>6} {count:>10} {bar}");
        text += line.trim_end();
        text += "\n";
    }
    text
}
