//! Damaged and hostile objects: reading ends, quickly, with definitions or a sentence.

mod support;

use offmap_cli::object::parse;
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use std::time::{Duration, Instant};
use support::{DEMO, Section, elf};

/// Reads `bytes`; an error must say something, on one line.
fn read(bytes: &[u8]) -> bool {
    match parse(bytes) {
        Ok(_) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.chars().any(char::is_control),
                "{text:?}"
            );
            false
        }
    }
}

#[test]
fn every_length_short_of_the_whole_is_refused() {
    for len in 0..DEMO.len() {
        assert!(!read(&DEMO[..len]), "{len} bytes were taken for an object");
    }
    assert!(read(DEMO));
}

#[test]
fn every_byte_may_be_wrong() {
    let mut bytes = DEMO.to_vec();
    let mut refused = 0;
    for at in 0..bytes.len() {
        let right = bytes[at];
        for wrong in [0, 0xff, right ^ 0x80, right.wrapping_add(1)] {
            bytes[at] = wrong;
            refused += usize::from(!read(&bytes));
        }
        bytes[at] = right;
    }
    // Most of the file is code and relocations, which are not read; the rest must count.
    assert!(
        refused > DEMO.len() / 4,
        "only {refused} changes were noticed"
    );
}

#[test]
fn random_damage_ends() {
    let seed = 0x0ff_0a9;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let words = [
        0,
        1,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0xffff_fff8,
        24,
        64,
    ];
    for round in 0..20_000 {
        let mut bytes = DEMO.to_vec();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len() - 4);
            if rng.random_bool(0.5) {
                let word: u32 = words[rng.random_range(0..words.len())];
                bytes[at & !3..][..4].copy_from_slice(&word.to_le_bytes());
            } else {
                bytes[at] = rng.random();
            }
        }
        if rng.random_bool(0.1) {
            bytes.truncate(rng.random_range(0..bytes.len()));
        }
        let started = Instant::now();
        read(&bytes);
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "round {round} of seed {seed:#x} took {took:?}"
        );
    }
}

/// Half a million section headers over a name table of 16 MiB without a NUL: a reader that
/// looks for the end of each name would read 8 TiB.
#[test]
fn names_are_not_searched_for_their_end() {
    let mut bytes = elf(&[Section(".text", 1, vec![b'x'; 16 << 20], 0)]);
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let header = bytes[table + 64..table + 128].to_vec();
    bytes.truncate(table);
    // The count is in the first header when it does not fit the file's.
    let count = 500_000_u64;
    let mut first = [0; 64];
    first[32..40].copy_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&first);
    for _ in 1..count {
        bytes.extend_from_slice(&header);
    }
    bytes[60..62].copy_from_slice(&0_u16.to_le_bytes());
    bytes[62..64].copy_from_slice(&1_u16.to_le_bytes());
    let started = Instant::now();
    read(&bytes);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}
