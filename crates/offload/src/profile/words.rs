//! The words of profile files, and lists of them in messages.

use offmap_bpf::Errno;
use offmap_bpf::device::OffloadCommands;
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_driver::Status;

/// Flags that this crate and the core carry out for offloaded maps. A profile may admit no
/// other one.
pub(super) const CARRIED_OUT: MapFlags = MapFlags::NO_PREALLOC
    .union(MapFlags::NO_COMMON_LRU)
    .union(MapFlags::NUMA_NODE)
    .union(MapFlags::ZERO_SEED)
    .union(MapFlags::RDONLY_PROG)
    .union(MapFlags::WRONLY_PROG)
    .union(MapFlags::INNER_MAP);

/// Statuses that an error rule may name. Not among them: NoSpace and InvalidQueue, which no
/// single operation gets.
pub(super) const STATUSES: [(&str, Status); 16] = [
    ("not_found", Status::NotFound),
    ("exists", Status::Exists),
    ("full", Status::Full),
    ("out_of_range", Status::OutOfRange),
    ("no_memory", Status::NoMemory),
    ("invalid_field", Status::InvalidField),
    ("invalid_opcode", Status::InvalidOpcode),
    ("unknown_map", Status::InvalidMap),
    ("invalid_length", Status::InvalidLength),
    ("limit_exceeded", Status::LimitExceeded),
    ("unsupported", Status::Unsupported),
    ("dma_fault", Status::DmaFault),
    ("media_error", Status::MediaError),
    ("internal", Status::Internal),
    ("queue_stopped", Status::QueueStopped),
    ("interrupted", Status::Interrupted),
];

pub(super) fn map_type(word: &str) -> Option<MapType> {
    // UNSPEC is no type.
    (1..64).map(MapType).find(|t| t.name() == Some(word))
}

pub(super) fn errno(word: &str) -> Option<Errno> {
    (1..=524).map(Errno).find(|e| e.name() == Some(word))
}

fn is_word_of(word: &str, name: &str) -> bool {
    word == name.to_ascii_lowercase()
}

pub(super) fn flag(word: &str) -> Option<MapFlags> {
    let mut flags = MapFlags::all().iter_names();
    flags.find(|(name, _)| is_word_of(word, name)).map(|f| f.1)
}

pub(super) fn command(word: &str) -> Option<OffloadCommands> {
    let mut commands = OffloadCommands::all().iter_names();
    commands
        .find(|(name, _)| is_word_of(word, name))
        .map(|c| c.1)
}

/// Words one after the other, `and` before the last; `none` for none.
fn and_list(words: &[String]) -> String {
    match words {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The types of a bit set in words.
pub(super) fn type_list(types: u64) -> String {
    let set = (0..64).filter(|n| types >> n & 1 != 0);
    and_list(&set.map(|n| MapType(n).to_string()).collect::<Vec<_>>())
}

/// Flags in words, with their kernel names.
pub(super) fn flag_list(flags: MapFlags) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = flags;
    for (name, flag) in MapFlags::all().iter_names() {
        if rest.contains(flag) {
            words.push(format!("BPF_F_{name}"));
            rest -= flag;
        }
    }
    if !rest.is_empty() {
        words.push(format!("{:#x}", rest.bits()));
    }
    and_list(&words)
}
