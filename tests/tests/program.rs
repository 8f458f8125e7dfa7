//! A program (a caller of bpf(2)) that changes its memory while a call reads it: each call reads
//! each byte once, so that what was checked is what is used.

use offmap_bpf::{Caller, Errno, Fault, System, SystemConfig, UserArena, UserMemory, command};
use std::sync::{Arc, Mutex, PoisonError};

const BASE: u64 = 0x10_0000;
const BYTES: usize = 64 << 10;
const ATTR: u64 = BASE;
const KEYS: u64 = BASE + 0x1000;
const VALUES: u64 = BASE + 0x2000;
const TOKEN: u64 = BASE + 0x4000;
const NEXT: u64 = BASE + 0x4100;
const INFO: u64 = BASE + 0x5000;
const PATH: u64 = BASE + 0x6000;

/// Memory that counts how often a call reads each byte, and shows other bytes at a second look.
struct Once {
    arena: UserArena,
    read: Mutex<Vec<u8>>,
}

impl UserMemory for Once {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.arena.read(address, into)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, byte) in into.iter_mut().enumerate() {
            let count = &mut read[(address - BASE) as usize + i];
            if *count > 0 {
                *byte = !*byte;
            }
            *count = count.saturating_add(1);
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        self.arena.write(address, from)
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        self.arena.is_writable(address, len)
    }
}

struct Program {
    system: Arc<System>,
    memory: Once,
}

impl Program {
    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .arena
            .write(address, bytes)
            .expect("it is there");
    }

    /// A call with an attribute made of 4-byte words; it must succeed and read nothing twice.
    #[track_caller]
    fn call(&self, number: u32, words: &[u32]) -> i32 {
        let mut attr: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        attr.resize(128, 0);
        self.put(ATTR, &attr);
        self.memory.read.lock().unwrap().fill(0);
        let done = self
            .system
            .bpf(&Caller::root(), &self.memory, number, ATTR, 128);
        let read = self.memory.read.lock().unwrap();
        let twice = read.iter().position(|count| *count > 1);
        assert_eq!(twice, None, "command {number}: a byte was read twice");
        assert!(read[0] == 1, "the attribute was read");
        match done {
            Ok(done) => done,
            // A batch that reached the end says so by this.
            Err(e) if number == command::MAP_LOOKUP_BATCH && e.errno() == Errno::ENOENT => 0,
            Err(e) => panic!("command {number}: {e}"),
        }
    }
}

/// An address as two words of an attribute.
fn low(address: u64) -> u32 {
    address as u32
}

#[test]
fn every_byte_is_read_once() {
    let program = Program {
        system: System::new(SystemConfig::default()),
        memory: Once {
            arena: UserArena::new(BASE, BYTES),
            read: Mutex::new(vec![0; BYTES]),
        },
    };
    for map_type in [1_u32, 2, 9] {
        let create = [map_type, 4, 8, 16, 0];
        let fd = program.call(command::MAP_CREATE, &create) as u32;
        for i in 0..8_u32 {
            program.put(KEYS + u64::from(i) * 4, &i.to_ne_bytes());
        }
        program.put(VALUES, &[7; 64]);
        let element = [fd, 0, low(KEYS), 0, low(VALUES), 0, 0, 0];
        program.call(command::MAP_UPDATE_ELEM, &element);
        program.call(command::MAP_LOOKUP_ELEM, &element);
        program.call(
            command::MAP_GET_NEXT_KEY,
            &[fd, 0, 0, 0, low(NEXT), 0, 0, 0],
        );
        // No first token, keys and values, eight of them.
        let mut batch = [
            0,
            0,
            low(TOKEN),
            0,
            low(KEYS),
            0,
            low(VALUES),
            0,
            8,
            fd,
            0,
            0,
        ];
        program.call(command::MAP_UPDATE_BATCH, &batch);
        program.call(command::MAP_LOOKUP_BATCH, &batch[..]);
        if map_type != 2 {
            batch[8] = 4;
            program.call(command::MAP_DELETE_BATCH, &batch);
            program.call(command::MAP_DELETE_ELEM, &[fd, 0, low(KEYS + 20), 0]);
        }
        program.call(command::OBJ_GET_INFO_BY_FD, &[fd, 80, low(INFO), 0]);
        let path = format!("/sys/fs/bpf/map{map_type}\0");
        program.put(PATH, path.as_bytes());
        program.call(command::OBJ_PIN, &[low(PATH), 0, fd, 0]);
        program.call(command::OBJ_GET, &[low(PATH), 0, 0, 0]);
    }
}
