//! Bodies of fuzz targets as plain functions: run for a bounded time by `tests/tests/fuzz.rs`,
//! and by cargo-fuzz from the folder `fuzz`.

mod bytes;
pub mod device;
pub mod driver;
pub mod state;
pub mod wire;

use offmap_bpf::{Caller, System, SystemConfig, UserArena, UserMemory, command};

/// Where the caller's memory is, and how much of it.
const BASE: u64 = 0x10_0000;
const ARENA_BYTES: usize = 64 << 10;
/// Where attributes are put, at the end of the arena.
const ATTR: u64 = BASE + ARENA_BYTES as u64 - 512;
/// Bytes that one call takes from the input: command, size, what to do with words, attribute.
const CALL_BYTES: usize = 4 + 96;
/// Calls that an input may make.
const MOST_CALLS: usize = 64;
/// Memory that the maps of an input may account for together.
const MOST_BYTES: u64 = 16 << 20;

const COMMANDS: [u32; 20] = [
    command::MAP_CREATE,
    command::MAP_LOOKUP_ELEM,
    command::MAP_UPDATE_ELEM,
    command::MAP_DELETE_ELEM,
    command::MAP_GET_NEXT_KEY,
    command::OBJ_PIN,
    command::OBJ_GET,
    command::MAP_GET_NEXT_ID,
    command::MAP_GET_FD_BY_ID,
    command::OBJ_GET_INFO_BY_FD,
    command::BTF_LOAD,
    command::BTF_GET_FD_BY_ID,
    command::MAP_LOOKUP_AND_DELETE_ELEM,
    command::MAP_FREEZE,
    command::BTF_GET_NEXT_ID,
    command::MAP_LOOKUP_BATCH,
    command::MAP_LOOKUP_AND_DELETE_BATCH,
    command::MAP_UPDATE_BATCH,
    command::MAP_DELETE_BATCH,
    99,
];

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// Calls made.
    pub calls: u32,
    /// Of these, such as succeeded.
    pub succeeded: u32,
}

/// The raw entry point: `input` is a sequence of calls with any attributes, whose pointers lead
/// into the arena, across its end, or nowhere. Nothing may panic, hang or take memory without
/// bound.
pub fn raw(input: &[u8]) -> Ran {
    let system = System::new(SystemConfig {
        possible_cpus: 2,
        max_fds: 64,
        max_fs_entries: 64,
        ..SystemConfig::default()
    });
    let Ok(owner) = system.add_memory_owner("fuzz", MOST_BYTES) else {
        return Ran::default();
    };
    let caller = Caller::root().charged_to(owner);
    let arena = UserArena::new(BASE, ARENA_BYTES);
    let mut ran = Ran::default();
    for bytes in input.chunks_exact(CALL_BYTES).take(MOST_CALLS) {
        let (head, attr) = bytes.split_at(4);
        let mut attr: Vec<u8> = attr.to_vec();
        for (i, word) in attr.chunks_exact_mut(8).enumerate() {
            // Half of the words that could be pointers are made such as lead somewhere.
            if head[2] >> (i % 8) & 1 != 0 {
                let offset = u64::from(u16::from_le_bytes([word[0], word[1]]));
                word.copy_from_slice(&(BASE + offset).to_ne_bytes());
            }
        }
        if head[3] & 1 != 0 {
            // A small descriptor where most commands have theirs.
            let fd = u32::from(head[3] >> 1) % 12 + 3;
            attr[..4].copy_from_slice(&fd.to_ne_bytes());
        }
        // What the call reads comes from the input, too.
        let _ = arena.write(BASE + u64::from(head[2]) * 16, bytes);
        if arena.write(ATTR, &attr).is_err() {
            return ran;
        }
        let number = COMMANDS[usize::from(head[0]) % COMMANDS.len()];
        let size = match head[1] {
            size @ ..=128 => u32::from(size),
            _ => 96,
        };
        ran.calls += 1;
        let done = match head[1] {
            200.. => {
                let number = number | command::COMMON_ATTRS;
                system.bpf_common(&caller, &arena, number, ATTR, size, ATTR + 128, 24)
            }
            _ => system.bpf(&caller, &arena, number, ATTR, size),
        };
        ran.succeeded += u32::from(done.is_ok());
    }
    ran
}
