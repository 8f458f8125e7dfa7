//! The device in another process, over vfio-user, against the same device on a thread of this one;
//! and how soon a device that sleeps answers.
//!
//! This thread is bound to one processor, and both devices to another one. While one of them is
//! measured the other has gone to sleep.

use crate::{Ratio, line, median, ns, time};
use offmap_device_io::Function;
use offmap_driver::{DeviceMap, Driver, DriverConfig, QueuePair};
use offmap_emulator::Threaded;
use offmap_tests::cpu::Pinned;
use offmap_tests::served::{ServerProcess, attach};
use offmap_tests::speed::{Key, VALUE_BYTES, Value, device_config, keys, params, value_of};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Entries of the map: it stays in the caches.
const ENTRIES: usize = 1024;
/// Operations in a block, and before it.
const OPERATIONS: usize = 1000;
const WARM: usize = 256;
/// What the other device needs to fall asleep, and more.
const ASLEEP: Duration = Duration::from_micros(500);
/// A pause after which a device has slept for long.
const PAUSE: Duration = Duration::from_millis(5);
/// How soon the first operation after a pause is to be done.
const FIRST_BAR: Duration = Duration::from_micros(50);

/// A device with a filled map.
struct Side<F: Function> {
    queue: QueuePair<F>,
    map: DeviceMap,
    keys: Vec<Key>,
}

impl<F: Function> Side<F> {
    fn new(function: Arc<F>) -> Self {
        let driver = Driver::bring_up(function, DriverConfig::default()).expect("bring-up");
        let map = driver.create_map(&params(ENTRIES)).expect("a map");
        let mut queue = driver.create_queue().expect("a queue");
        let keys = keys(ENTRIES);
        let values: Vec<u8> = keys.iter().flat_map(value_of).collect();
        let done = queue.update_batch(&map, keys.as_flattened(), &values, 0);
        assert!(done.expect("room").status.is_success());
        Self { queue, map, keys }
    }

    fn lookups(&mut self, from: usize, n: usize) {
        let mut out: Value = [0; VALUE_BYTES];
        for i in from..from + n {
            let key = &self.keys[i % ENTRIES];
            let found = self.queue.lookup(&self.map, key, &mut out);
            assert!(found.expect("a live queue").is_success());
            black_box(&out);
        }
    }

    /// A block's time for each lookup, in ns.
    fn block(&mut self) -> f64 {
        thread::sleep(ASLEEP);
        self.lookups(0, WARM);
        time(&mut |from, n| self.lookups(from, n), WARM, OPERATIONS)
    }

    /// The first lookup after a pause, in ns.
    fn first(&mut self, at: usize) -> f64 {
        thread::sleep(PAUSE);
        let began = Instant::now();
        self.lookups(at, 1);
        began.elapsed().as_secs_f64() * 1e9
    }
}

/// All of it.
pub(crate) fn run(blocks: usize) {
    let cpus = Pinned::new();
    if cpus.count() < 2 {
        println!("the device in another process: SKIPPED, there is only one processor");
        return;
    }
    let mut config = device_config(ENTRIES);
    config.polls_before_park = 1 << 12;
    // Processes and threads start where the one is bound that makes them.
    cpus.go(1);
    let server = ServerProcess::spawn(&config);
    let near = Threaded::spawn(config).expect("a threaded device");
    cpus.go(0);
    let mut far = Side::new(Arc::new(attach(&server.path())));
    let mut near = Side::new(near);

    let (mut ratios, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..blocks {
        let (ta, tb);
        if i % 2 == 0 {
            ta = far.block();
            tb = near.block();
        } else {
            tb = near.block();
            ta = far.block();
        }
        ratios.push(ta / tb);
        a.push(ta);
        b.push(tb);
    }
    let r = Ratio {
        ratio: median(ratios),
        a_ns: median(a),
        b_ns: median(b),
    };
    line(
        "lookup over vfio-user / threaded",
        r.ratio,
        Some(1.3),
        &ns(&r),
    );

    let (mut far_first, mut near_first) = (Vec::new(), Vec::new());
    for i in 0..blocks {
        far_first.push(far.first(i));
        near_first.push(near.first(i));
    }
    for (what, times) in [("vfio-user", far_first), ("threaded", near_first)] {
        let p50 = Duration::from_nanos(median(times) as u64);
        let verdict = if p50 <= FIRST_BAR { "PASS" } else { "SHORT" };
        println!(
            "{:<46} {:>6.1}us at most {} us: {verdict}",
            format!("first lookup after {PAUSE:?}, {what}"),
            p50.as_secs_f64() * 1e6,
            FIRST_BAR.as_micros(),
        );
    }
}
