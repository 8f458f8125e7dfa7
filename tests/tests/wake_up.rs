//! How often the driver wakes a device up that has a thread of its own (abi §10, rules N1 and N2):
//! each time that it sleeps, and hardly ever while it is awake.

use offmap_driver::{
    CompletionMode, Counters, DeviceMap, Driver, DriverConfig, Notify, Op, QueuePair,
};
use offmap_emulator::{DeviceConfig, Threaded};
use offmap_tests::speed;
use offmap_tests::trapped::Trapped;
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEY: [u8; 8] = *b"wake up!";
const VALUE: [u8; 64] = [7; 64];
/// Commands of a test.
const COMMANDS: u64 = 20_000;
/// In flight in a full pipeline.
const DEPTH: u64 = 64;

struct Rig {
    device: Arc<Threaded>,
    driver: Arc<Driver<Trapped<Threaded>>>,
    map: DeviceMap,
    queue: QueuePair<Trapped<Threaded>>,
}

impl Rig {
    fn new(device: DeviceConfig, notify: Notify) -> Self {
        Self::of_depth(device, notify, DriverConfig::default().queue_depth)
    }

    fn of_depth(device: DeviceConfig, notify: Notify, queue_depth: u32) -> Self {
        let device = Threaded::spawn(device).unwrap();
        let config = DriverConfig {
            notify,
            queue_depth,
            completion: CompletionMode::Poll,
            ..DriverConfig::default()
        };
        let driver = Driver::bring_up(Trapped::new(Arc::clone(&device)), config).unwrap();
        let map = driver.create_map(&speed::params(64)).unwrap();
        let mut queue = driver.create_queue().unwrap();
        assert!(queue.update(&map, &KEY, &VALUE, 0).unwrap().is_success());
        Self {
            device,
            driver,
            map,
            queue,
        }
    }

    fn lookup(&mut self) {
        let mut out = [0; 64];
        let found = self.queue.lookup(&self.map, &KEY, &mut out).unwrap();
        assert!(found.is_success());
        assert_eq!(out, VALUE);
    }

    /// [`COMMANDS`] lookups, one at a time.
    fn one_by_one(&mut self) -> Counters {
        let before = self.queue.counters();
        for _ in 0..COMMANDS {
            self.lookup();
        }
        difference(&before, &self.queue.counters())
    }

    /// The same, as many as [`DEPTH`] in flight, and the number of commits.
    fn pipelined(&mut self) -> (Counters, u64) {
        let before = self.queue.counters();
        let (mut sent, mut taken, mut commits) = (0, 0, 0);
        while taken < COMMANDS {
            while sent < COMMANDS && sent - taken < DEPTH {
                let (map, key) = (&self.map, &KEY);
                self.queue.write(&Op::Lookup { map, key }).unwrap();
                sent += 1;
            }
            self.queue.commit().unwrap();
            commits += 1;
            // The next batch of commands is written when this one is done.
            while taken < sent {
                let mut out = [0; 64];
                let polled = self.queue.poll_each(|done| {
                    assert!(done.value(&mut out).unwrap().is_success());
                });
                taken += polled.unwrap() as u64;
            }
        }
        (difference(&before, &self.queue.counters()), commits)
    }
}

fn difference(before: &Counters, after: &Counters) -> Counters {
    let mut difference = *after;
    difference.submitted -= before.submitted;
    difference.completed -= before.completed;
    difference.kicks -= before.kicks;
    difference.doorbells -= before.doorbells;
    difference
}

/// A device that is awake is never kicked, and one that sleeps only until it is awake. The first
/// device here never sleeps; the second one does when this thread is held up for long enough, as on a
/// busy machine.
#[test]
fn a_device_under_steady_load_is_kicked_only_when_it_slept() {
    let awake = DeviceConfig {
        polls_before_park: u32::MAX,
        ..DeviceConfig::default()
    };
    for config in [awake, DeviceConfig::default()] {
        let sleeps = config.polls_before_park != u32::MAX;
        let mut rig = Rig::new(config, Notify::Block);
        let before = rig.device.diagnostics().unwrap();
        let single = rig.one_by_one();
        let (piped, commits) = rig.pipelined();
        let after = rig.device.diagnostics().unwrap();
        let (kicks, parks) = (after.kicks - before.kicks, after.parks - before.parks);
        println!(
            "{COMMANDS} commands one by one: {} kicks; in {commits} commits: {} kicks; {parks} parks",
            single.kicks, piped.kicks
        );
        for load in [&single, &piped] {
            assert_eq!(load.submitted, COMMANDS);
            assert_eq!(load.doorbells, 0, "a queue with a notify block rings none");
        }
        // The driver counts what it does: the device has had as many.
        assert_eq!(kicks, single.kicks + piped.kicks);
        // For each time that it slept: the command that woke it, the next one if its thread did not
        // run yet, and a completion head.
        assert!(kicks <= 3 * (parks + 1), "{kicks} kicks, {parks} parks");
        assert!(
            sleeps || kicks == 0,
            "{kicks} kicks of a device that never sleeps"
        );
    }
}

/// A doorbell is for all commands of a commit.
#[test]
fn doorbells_are_rung_once_for_a_batch() {
    let mut rig = Rig::new(DeviceConfig::default(), Notify::Doorbell);
    let single = rig.one_by_one();
    assert_eq!((single.doorbells, single.kicks), (COMMANDS, 0));
    let (piped, commits) = rig.pipelined();
    assert_eq!((piped.doorbells, piped.kicks), (commits, 0));
    assert_eq!(commits, COMMANDS.div_ceil(DEPTH));
    // One by one, each that is submitted rings.
    let before = rig.queue.counters();
    for _ in 0..10 {
        rig.queue.submit_lookup(&rig.map, &KEY).unwrap();
    }
    let mut taken = 0;
    while taken < 10 {
        taken += rig.queue.poll_each(|_| {}).unwrap();
    }
    assert_eq!(difference(&before, &rig.queue.counters()).doorbells, 10);
}

/// Rule N1 from the driver's side: the device parks at once, and looks by itself so seldom that a
/// KICK that is missing shows as a wait of ten seconds.
#[test]
fn a_driver_loses_no_wake_up() {
    const LOOK_AGAIN: Duration = Duration::from_secs(10);
    let config = DeviceConfig {
        polls_before_park: 64,
        look_again_us: LOOK_AGAIN.as_micros() as u32,
        ..DeviceConfig::default()
    };
    // So few entries that each head is published when its completion is taken: a waiter who had one
    // left to publish would write with it the KICK that was missing for his command.
    let mut rig = Rig::of_depth(config, Notify::Block, 4);
    let before = rig.queue.counters();
    for i in 0..COMMANDS {
        // Long and short: from awake to long asleep.
        for _ in 0..i * 37 % (1 << (i % 12)) {
            std::hint::spin_loop();
        }
        let started = Instant::now();
        rig.lookup();
        let waited = started.elapsed();
        assert!(waited < LOOK_AGAIN / 2, "lookup {i} waited for {waited:?}");
    }
    let counted = difference(&before, &rig.queue.counters());
    println!("{COMMANDS} commands: {} kicks", counted.kicks);
    assert!(counted.kicks > 100, "the device hardly ever parked");
    let diagnostics = rig.device.diagnostics().unwrap();
    let answered = diagnostics.kicks_answered;
    assert!(
        answered > 0 && answered <= diagnostics.kicks,
        "{diagnostics:?}"
    );
    drop(rig.queue);
    assert!(rig.driver.stats().queues.iter().all(|queue| !queue.live));
}
