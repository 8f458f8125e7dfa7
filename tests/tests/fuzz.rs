//! Fuzz bodies for a bounded time: `OFFMAP_FUZZ_SECONDS` (5 for each by default), and
//! `OFFMAP_SEED` to run a seed again.

use offmap_tests::fuzz;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Bytes of one attribute of MAP_CREATE, and the call around it, that make a small map.
fn small_map(rng: &mut Xoshiro256PlusPlus, call: &mut [u8]) {
    call.fill(0);
    call[1] = 96;
    let types = [1_u32, 2, 5, 6, 9, 10, 11, 22, 23, 27, 30];
    let map_type = types[rng.random_range(0..types.len())];
    let (key, value, flags) = match map_type {
        11 => (8, 8, 1),
        22 | 23 | 30 => (0, 8, 0),
        27 => (0, 0, 0),
        _ => (4, 8, 0),
    };
    let entries = if map_type == 27 { 4096 } else { 9 };
    for (word, value) in call[4..]
        .chunks_exact_mut(4)
        .zip([map_type, key, value, entries, flags])
    {
        word.copy_from_slice(&value.to_ne_bytes());
    }
}

/// Inputs of random bytes for as long as the budget says; `run` gets each and returns what it
/// adds to the line that is printed. Each must end in bounded time.
fn campaign(name: &str, longest: usize, mut run: impl FnMut(&[u8])) -> u64 {
    let first = setting("OFFMAP_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |time| time.as_nanos() as u64)
    });
    let budget = Duration::from_secs(setting("OFFMAP_FUZZ_SECONDS").unwrap_or(5));
    let (start, mut inputs) = (Instant::now(), 0);
    while start.elapsed() < budget || inputs < 20 {
        let seed = first.wrapping_add(inputs);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut input = vec![0; rng.random_range(1..=longest)];
        rng.fill_bytes(&mut input);
        let began = Instant::now();
        let told = Told { name, seed };
        run(&input);
        drop(told);
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(20),
            "{name}: an input took {took:?}: OFFMAP_SEED={seed}"
        );
        inputs += 1;
    }
    println!("{name}: seed {first}, {inputs} inputs");
    inputs
}

/// Says which seed it was when an input panics.
struct Told<'n> {
    name: &'n str,
    seed: u64,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: OFFMAP_SEED={}", self.name, self.seed);
        }
    }
}

/// A device that lies, under the driver.
#[test]
fn a_lying_device() {
    let mut total = fuzz::driver::Ran::default();
    let mut up = 0_u64;
    let inputs = campaign("a lying device", 4096, |input| {
        let ran = fuzz::driver::driver(input);
        total.calls += ran.calls;
        total.succeeded += ran.succeeded;
        total.lies += ran.lies;
        up += u64::from(ran.came_up);
    });
    println!("a lying device: {total:?}, {up} of {inputs} came up");
    assert!(up > inputs / 4, "{up} of {inputs} got as far as a queue");
    assert!(total.succeeded > total.calls / 20, "{total:?}");
    assert!(total.lies > total.calls / 2, "{total:?}");
}

/// A host that does anything, to the device.
#[test]
fn a_lying_host() {
    let (mut blows, mut answered, mut fatal) = (0_u64, 0_u64, 0_u64);
    let inputs = campaign("a lying host", 4096, |input| {
        let ran = fuzz::device::device(input);
        blows += u64::from(ran.blows);
        answered += u64::from(ran.answered);
        fatal += u64::from(ran.fatal);
    });
    println!("a lying host: {blows} blows, {answered} answers, {fatal} of {inputs} stopped it");
    assert!(answered > blows / 20, "{answered} answers to {blows} blows");
    assert!(fatal < inputs, "no input got further");
}

/// A client that says anything, to the server with the device behind it.
#[test]
fn a_lying_client() {
    let mut total = fuzz::wire::Ran::default();
    campaign("a lying client", 4096, |input| {
        let ran = fuzz::wire::wire(input);
        total.messages += ran.messages;
        total.answered.0 += ran.answered.0;
        total.answered.1 += ran.answered.1;
        total.closed += ran.closed;
    });
    println!("a lying client: {total:?}");
    // It gets past the first checks often enough, and not always.
    let (good, bad) = total.answered;
    assert!(good > total.messages / 50, "{total:?}");
    assert!(bad > total.messages / 10 && total.closed > 0, "{total:?}");
}

/// A state's file that somebody has changed.
#[test]
fn a_lying_state() {
    let (mut restored, mut maps, mut elements) = (0_u64, 0, 0);
    let inputs = campaign("a lying state", 24, |input| {
        let ran = fuzz::state::state(input);
        restored += u64::from(ran.restored);
        maps += ran.maps;
        elements += ran.elements;
    });
    println!("a lying state: {restored} of {inputs} restored, {maps} maps, {elements} elements");
    assert!(restored > 0 && restored < inputs, "{restored} of {inputs}");
    assert!(maps > 0 && elements > 0);
}

#[test]
fn raw_calls() {
    let first = setting("OFFMAP_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |time| time.as_nanos() as u64)
    });
    let budget = Duration::from_secs(setting("OFFMAP_FUZZ_SECONDS").unwrap_or(5));
    let (start, mut inputs, mut total) = (Instant::now(), 0_u64, fuzz::Ran::default());
    while start.elapsed() < budget || inputs < 20 {
        let seed = first.wrapping_add(inputs);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut input = vec![0; 100 * rng.random_range(1..=64)];
        rng.fill_bytes(&mut input);
        // A few maps to begin with, so that what follows has something to work on.
        for call in input.chunks_exact_mut(100).take(6) {
            small_map(&mut rng, call);
        }
        let began = Instant::now();
        let ran = fuzz::raw(&input);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "an input of {} calls took {:?}: OFFMAP_SEED={seed}",
            ran.calls,
            began.elapsed()
        );
        total.calls += ran.calls;
        total.succeeded += ran.succeeded;
        inputs += 1;
    }
    println!("raw calls: seed {first}, {inputs} inputs, {total:?}");
    assert!(total.succeeded > total.calls / 20, "{total:?}");
}
