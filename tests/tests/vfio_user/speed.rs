//! What a lookup costs on a device in another process: no message, and a time that is told
//! beside that of the same device on a thread of this one.

use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig, QueuePair};
use offmap_emulator::{DeviceConfig, Threaded};
use offmap_tests::report::aloud;
use offmap_tests::served::{ServerProcess, attach};
use offmap_tests::speed::params;
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEYS: u64 = 1024;
const BLOCKS: usize = 60;
const BLOCK: Duration = Duration::from_millis(4);

/// Runs lookups for a while; the median time of one.
fn block(lookup: &mut dyn FnMut(u64)) -> u64 {
    let (started, mut times, mut n) = (Instant::now(), Vec::new(), 0u64);
    while started.elapsed() < BLOCK {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let began = Instant::now();
        lookup((n >> 33) % KEYS);
        times.push(began.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// A lookup on a device with a map of [`KEYS`] entries, as a thing to call.
pub(crate) fn lookups<F: Function>(function: Arc<F>) -> impl FnMut(u64) {
    let driver = Driver::bring_up(function, DriverConfig::default()).expect("bring-up");
    let map = driver.create_map(&params(KEYS as usize)).expect("a map");
    let mut queue: QueuePair<F> = driver.create_queue().expect("a queue");
    for key in 0..KEYS {
        let done = queue.update(&map, &key.to_le_bytes(), &[key as u8; 64], 0);
        assert!(done.expect("an update").is_success());
    }
    move |key| {
        let mut value = [0; 64];
        let done = queue.lookup(&map, &key.to_le_bytes(), &mut value);
        assert!(done.expect("a lookup").is_success());
        assert_eq!(value[0], key as u8);
    }
}

#[test]
fn a_lookup_sends_no_message() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    // It never sleeps, so that there is nobody to wake up.
    config.polls_before_park = u32::MAX;
    let server = ServerProcess::spawn(&config);
    let function = Arc::new(attach(&server.path()));
    let mut far = lookups(Arc::clone(&function));
    let mut fewest = u64::MAX;
    for block in 0..50 {
        let before = function.client().commands_sent();
        (0..200).for_each(|n| far((n * 7 + block) % KEYS));
        // While a busy machine keeps the server waiting, the driver looks whether the device
        // still lives.
        fewest = fewest.min(function.client().commands_sent() - before);
    }
    assert_eq!(fewest, 0, "messages for 200 lookups");
}

/// Says the figure; how it compares on a busy machine says nothing.
#[test]
fn the_cost_of_a_lookup() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    let server = ServerProcess::spawn(&config);
    let mut far = lookups(Arc::new(attach(&server.path())));
    let mut near = lookups(Threaded::spawn(config).expect("a device"));
    let mut ratios = Vec::new();
    let (mut fars, mut nears) = (Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        // The other device sleeps meanwhile: neither takes the other's processor.
        let (a, b) = (block(&mut far), block(&mut near));
        ratios.push(a as f64 / b as f64);
        fars.push(a);
        nears.push(b);
    }
    ratios.sort_by(f64::total_cmp);
    fars.sort_unstable();
    nears.sort_unstable();
    let (ratio, far, near) = (ratios[BLOCKS / 2], fars[BLOCKS / 2], nears[BLOCKS / 2]);
    aloud(&format!(
        "lookup p50: {far} ns in another process, {near} ns on a thread, ratio {ratio:.2}"
    ));
}

/// How often the threads of a process gave up a processor of their own accord: what every system
/// call that waits comes to.
fn waits(process: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let statuses = tasks.filter_map(|task| {
        let path = task.ok()?.path().join("status");
        std::fs::read_to_string(path).ok()
    });
    let counts = statuses.filter_map(|status| {
        let line = status
            .lines()
            .find(|l| l.starts_with("voluntary_ctxt_switches"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    counts.sum()
}

/// A device that does not park waits for nothing while it has work: no message, no eventfd, no lock.
#[test]
fn a_busy_device_waits_for_nothing() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    config.polls_before_park = u32::MAX;
    let server = ServerProcess::spawn(&config);
    let mut far = lookups(Arc::new(attach(&server.path())));
    let mut fewest = u64::MAX;
    for block in 0..50 {
        let before = waits(server.id());
        (0..500).for_each(|n| far((n * 7 + block) % KEYS));
        fewest = fewest.min(waits(server.id()) - before);
    }
    assert_eq!(fewest, 0, "waits of the server for 500 lookups");
}

/// Says how long the first lookup takes after a pause in which the device has gone to sleep, beside
/// the same on a device of this process. A pause is far longer than a device polls.
#[test]
fn the_first_lookup_after_a_pause() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    let server = ServerProcess::spawn(&config);
    let function = Arc::new(attach(&server.path()));
    let mut far = lookups(Arc::clone(&function));
    let mut near = lookups(Threaded::spawn(config).expect("a device"));
    let mut times = [Vec::new(), Vec::new()];
    let mut messages = Vec::new();
    for n in 0..50 {
        let before = function.client().commands_sent();
        for (side, times) in [&mut far as &mut dyn FnMut(u64), &mut near]
            .into_iter()
            .zip(&mut times)
        {
            std::thread::sleep(Duration::from_millis(20));
            let began = Instant::now();
            side(n % KEYS);
            times.push(began.elapsed().as_nanos() as u64);
        }
        messages.push(function.client().commands_sent() - before);
    }
    // A driver that waits for long looks whether the device lives; most of them do not.
    messages.sort_unstable();
    assert_eq!(messages[5], 0, "messages of first lookups: {messages:?}");
    let [far, near] = times.map(|mut times| {
        times.sort_unstable();
        [times.len() / 10, times.len() / 2, times.len() * 9 / 10].map(|at| times[at] / 1000)
    });
    aloud(&format!(
        "first lookup after 20 ms, p10, p50, p90: {far:?} us in another process, {near:?} us on a thread"
    ));
    assert!(far[1] < 1_000_000, "{far:?} us");
}
