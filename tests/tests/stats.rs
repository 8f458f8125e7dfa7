//! Counters: what queues count of their commands, what is left of it when they are replaced, and
//! the same as OpenMetrics text, which a reader of its own checks by the rules of OpenMetrics 1.0.

use offmap_bpf::{MapCreateAttr, MapFile, MapType};
use offmap_driver::{
    Driver, DriverConfig, DriverStats, Function, IoOpcode, MapParams, Op, OpStats, QueueStats,
    Status, Timing,
};
use offmap_emulator::faults::{Behaviour, FaultPlan, Rule, Site};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::stats::openmetrics;
use offmap_offload::{NicSettings, NicStats, OffloadNic, Profile, RecoverMaps, Recovery};
use offmap_tests::faults::{Clocked, Rig, driver_config};
use offmap_tests::openmetrics::Exposition;
use offmap_tests::stack::Stack;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn device() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    config
}

fn params() -> MapParams {
    MapParams {
        map_type: 1,
        key_size: 8,
        value_size: 64,
        max_entries: 16,
        ..MapParams::default()
    }
}

#[track_caller]
fn only(stats: &DriverStats) -> &QueueStats {
    let [queue] = &stats.queues[..] else {
        panic!("{stats:?}");
    };
    queue
}

#[track_caller]
fn of(queue: &QueueStats, opcode: IoOpcode) -> &OpStats {
    let found = queue.operations.iter().find(|op| op.opcode == opcode);
    found.unwrap_or_else(|| panic!("no {opcode} in {queue:?}"))
}

#[test]
fn every_command_is_counted_by_its_kind_and_its_end() {
    let driver = Driver::bring_up(Inline::new(device()).unwrap(), DriverConfig::default()).unwrap();
    let map = driver.create_map(&params()).unwrap();
    let mut queue = driver.create_queue().unwrap();
    let key = |n: u64| n.to_le_bytes();
    let mut value = [0; 64];
    for n in 0..17 {
        // The last one is one too many.
        queue.update(&map, &key(n), &value, 0).unwrap();
    }
    for n in 0..5 {
        queue.lookup(&map, &key(n), &mut value).unwrap();
        queue.lookup(&map, &key(100 + n), &mut value).unwrap();
    }
    queue.delete(&map, &key(1)).unwrap();
    queue.update(&map, &key(0), &value, 1).unwrap();
    let mut values = [0; 128];
    let keys = [key(0), key(50)].concat();
    queue
        .lookup_batch(&map, &keys, &mut values, |_, _| {})
        .unwrap();
    let token = queue.submit(&Op::Nop).unwrap();

    let stats = driver.stats();
    let now = only(&stats);
    assert_eq!((now.queue, now.pairs, now.live), (queue.id(), 1, true));
    let statuses = |opcode| of(now, opcode).statuses.clone();
    assert_eq!(
        statuses(IoOpcode::Update),
        [
            (Status::Success, 16),
            (Status::Exists, 1),
            (Status::Full, 1)
        ]
    );
    assert_eq!(
        statuses(IoOpcode::Lookup),
        [(Status::Success, 5), (Status::NotFound, 5)]
    );
    assert_eq!(statuses(IoOpcode::Delete), [(Status::Success, 1)]);
    assert_eq!(statuses(IoOpcode::BatchLookup), [(Status::Success, 1)]);
    assert_eq!(statuses(IoOpcode::Nop), []);
    let nop = of(now, IoOpcode::Nop);
    assert_eq!((nop.submitted, nop.completed(), nop.in_flight()), (1, 0, 1));
    assert_eq!(now.operations.len(), 5);
    let sum = |of: fn(&OpStats) -> u64| now.operations.iter().map(of).sum::<u64>();
    let counters = queue.counters();
    assert_eq!(counters.submitted, sum(|op| op.submitted));
    assert_eq!(counters.completed, sum(OpStats::completed));
    assert_eq!(counters.submitted, 31);
    assert_eq!(queue.submissions(), 31);
    // Nothing was timed.
    assert_eq!(sum(|op| op.times.count()), 0);

    drop(queue.wait_for(token).unwrap());
    drop(queue);
    let after = driver.stats();
    assert!(!only(&after).live);
    assert_eq!(of(only(&after), IoOpcode::Nop).completed(), 1);
    // Another one under the same id goes on where that one ended.
    let mut queue = driver.create_queue().unwrap();
    queue.nop().unwrap();
    let again = driver.stats();
    assert_eq!((only(&again).pairs, only(&again).live), (2, true));
    assert_eq!(of(only(&again), IoOpcode::Nop).completed(), 2);
    assert_eq!(again.total().as_ref(), Some(only(&again)));
}

#[test]
fn a_full_queue_and_its_events_are_counted() {
    let config = DriverConfig {
        queue_depth: 4,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Inline::new(device()).unwrap(), config).unwrap();
    let mut queue = driver.create_queue().unwrap();
    for _ in 0..4 {
        queue.submit(&Op::Nop).unwrap();
    }
    assert!(queue.submit(&Op::Nop).is_err());
    assert!(queue.nop().is_err());
    assert_eq!(only(&driver.stats()).events.full, 2);
    let nop = of(only(&driver.stats()), IoOpcode::Nop).clone();
    assert_eq!(nop.submitted, 4, "what was refused was not submitted");
    drop(queue);
    let nop = of(only(&driver.stats()), IoOpcode::Nop).clone();
    assert_eq!((nop.unanswered, nop.in_flight()), (4, 0));
}

#[test]
fn times_are_those_of_the_functions_clock() {
    let one_in = |n| Timing::OneIn(NonZeroU32::new(n).unwrap());
    for (timing, expected) in [
        (Timing::Off, 0),
        (Timing::Every, 1000),
        (one_in(1), 1000),
        (one_in(7), 143),
        (one_in(5000), 1),
    ] {
        let function = Clocked::new(Inline::new(device()).unwrap());
        let config = DriverConfig {
            timing,
            ..driver_config()
        };
        let driver = Driver::bring_up(function, config).unwrap();
        let mut queue = driver.create_queue().unwrap();
        let time = || driver.function().time();
        let begun = time();
        for _ in 0..1000 {
            queue.nop().unwrap();
        }
        let took = time() - begun;
        let stats = driver.stats();
        let times = &of(only(&stats), IoOpcode::Nop).times;
        assert_eq!(times.count(), expected, "{timing:?}");
        if expected == 0 {
            // Nobody looked at the clock.
            assert_eq!(took, Duration::ZERO);
            continue;
        }
        // Each look at the clock is a microsecond, and there is one at either end.
        assert_eq!(times.sum(), Duration::from_micros(expected));
        assert_eq!(took, Duration::from_micros(2 * expected));
        assert_eq!(times.quantile(0.5), Some(Duration::from_nanos(1024)));
    }
    // A command that the device holds back is as old as it is.
    let mut config = driver_config();
    config.timing = Timing::Every;
    let function = Clocked::new(Inline::new(device()).unwrap());
    let driver = Driver::bring_up(function, config).unwrap();
    let mut queue = driver.create_queue().unwrap();
    let plan = FaultPlan::new().with(Rule::new(Site::Fetch, Behaviour::Drop).times(1));
    driver
        .function()
        .inner
        .set_faults(&plan.unwrap(), 1)
        .unwrap();
    assert!(queue.nop().is_err());
    let stats = driver.stats();
    assert_eq!(
        of(only(&stats), IoOpcode::Nop).times.count(),
        0,
        "it did not complete"
    );
    assert_eq!(only(&stats).events.timeouts, 1);
    assert_eq!(only(&stats).events.aborts, 1);
    assert_eq!(only(&stats).events.failures, 1);
}

#[test]
fn counts_read_by_another_thread_only_grow_and_miss_nothing() {
    let driver =
        Driver::bring_up(Threaded::spawn(device()).unwrap(), DriverConfig::default()).unwrap();
    let done = AtomicBool::new(false);
    let total = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let mut queue = driver.create_queue().unwrap();
                        for _ in 0..500 {
                            queue.nop().unwrap();
                        }
                    }
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let mut last = (0, 0, 0);
            while !done.load(Ordering::Acquire) {
                let Some(total) = driver.stats().total() else {
                    continue;
                };
                let nop = total.operations.first();
                let (submitted, completed) =
                    nop.map_or((0, 0), |op| (op.submitted, op.completed()));
                let now = (submitted, completed, total.pairs);
                assert!(completed <= submitted, "{now:?}");
                assert!(
                    now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2,
                    "{now:?} {last:?}"
                );
                assert_eq!(nop.map_or(0, |op| op.unanswered), 0);
                last = now;
            }
        });
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Release);
        watcher.join().unwrap();
        driver.stats().total().unwrap()
    });
    assert_eq!(total.pairs, 40);
    assert_eq!(of(&total, IoOpcode::Nop).submitted, 20_000);
    assert_eq!(of(&total, IoOpcode::Nop).completed(), 20_000);
}

#[test]
fn nothing_is_lost_by_failures_and_resets() {
    let mut rig = Rig::new(8);
    let sum = |stats: &DriverStats| {
        let total = stats.total().unwrap();
        let sum = |of: fn(&OpStats) -> u64| total.operations.iter().map(of).sum::<u64>();
        (
            sum(|op| op.submitted),
            sum(OpStats::completed),
            sum(|op| op.unanswered),
        )
    };
    let before = sum(&rig.driver.stats());
    let lost = Rule::new(Site::Complete, Behaviour::Drop).times(1);
    rig.faults(&FaultPlan::new().with(lost).unwrap(), 1);
    assert!(rig.queue.nop().is_err());
    rig.queue = rig.driver.create_queue().unwrap();
    rig.queue.nop().unwrap();
    let stats = rig.driver.stats();
    let after = sum(&stats);
    assert_eq!(after, (before.0 + 2, before.1 + 1, before.2 + 1));
    assert_eq!(stats.total().unwrap().events.failures, 1);
    let resets = |stats: &DriverStats| {
        let events = stats.total().unwrap().events;
        (events.resets, events.function_resets)
    };
    // The device let go of the broken pair, which is the reset of its queue.
    assert_eq!(resets(&stats), (1, 0));
    let first = stats.queues.first().unwrap();
    assert_eq!((first.events.resets, first.live), (1, false));
    rig.queue.submit(&Op::Nop).unwrap();
    rig.driver.reset().unwrap();
    assert!(rig.queue.poll().is_err());
    rig.queue = rig.driver.create_queue().unwrap();
    let stats = rig.driver.stats();
    assert_eq!(sum(&stats), (after.0 + 1, after.1, after.2 + 1));
    assert_eq!((stats.resets, stats.failed_resets), (1, 0));
    assert_eq!(resets(&stats), (1, 1));
    // A pair that did nothing wrong is deleted without a reset of anything.
    rig.queue = rig.driver.create_queue().unwrap();
    assert_eq!(resets(&rig.driver.stats()), (1, 1));
}

/// A NIC with a recoverable map of ten elements.
fn with_ten_elements() -> (Stack<Inline>, MapFile) {
    let config = DriverConfig {
        timing: Timing::Every,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Inline::new(device()).unwrap(), config).unwrap();
    let settings = NicSettings {
        recovery: Recovery {
            maps: RecoverMaps::all(),
            ..Recovery::default()
        },
        queue_pairs: Some(1),
        ..NicSettings::default()
    };
    let nic = OffloadNic::with_settings(driver, Profile::offmap(), settings).unwrap();
    let stack = Stack::over_nic(nic);
    let attr = MapCreateAttr {
        map_type: MapType::HASH.0,
        key_size: 4,
        value_size: 8,
        max_entries: 64,
        ..MapCreateAttr::default()
    };
    let map = stack.map(&attr, true);
    for n in 0..10u32 {
        map.update(&n.to_ne_bytes(), &[7; 8], 0).unwrap();
    }
    (stack, map)
}

/// The same, reset and read again.
fn recovered() -> (Stack<Inline>, NicStats) {
    let (stack, map) = with_ten_elements();
    stack.driver.reset().unwrap();
    let mut value = [0; 8];
    map.lookup(&3u32.to_ne_bytes(), &mut value, 0).unwrap();
    assert_eq!(value, [7; 8]);
    assert!(map.lookup(&30u32.to_ne_bytes(), &mut value, 0).is_err());
    let stats = stack.nic.stats();
    (stack, stats)
}

#[test]
fn a_nic_tells_of_its_recoveries() {
    let (_stack, stats) = recovered();
    assert_eq!(stats.driver.resets, 1);
    assert_eq!(stats.recovery.maps_restored, 1);
    assert_eq!(stats.recovery.elements_restored, 10);
    let total = stats.driver.total().unwrap();
    assert_eq!(of(&total, IoOpcode::Update).completed(), 10);
    assert_eq!(
        of(&total, IoOpcode::BatchUpdate).completed(),
        1,
        "the refill"
    );
    assert_eq!(total.pairs, 2);
}

/// Reads under which the device was reset behind its driver's back.
#[test]
fn retries_are_counted_by_queue_and_operation() {
    let (stack, map) = with_ten_elements();
    let kill = || stack.driver.function().reset().unwrap();
    let (mut key, mut value) = ([0; 4], [0; 8]);
    for _ in 0..3 {
        kill();
        map.lookup(&3u32.to_ne_bytes(), &mut value, 0).unwrap();
        assert_eq!(value, [7; 8]);
    }
    kill();
    map.get_next_key(None, &mut key).unwrap();
    kill();
    map.get_next_key(Some(&key), &mut [0; 4]).unwrap();
    kill();
    let (mut keys, mut values, mut next) = ([0; 40], [0; 80], [0; 4]);
    let dumped = map.lookup_batch(None, &mut next, &mut keys, &mut values, 10, 0, 0);
    assert_eq!(dumped.count, 10, "{dumped:?}");
    // One that was not cut off is not tried again.
    map.lookup(&4u32.to_ne_bytes(), &mut value, 0).unwrap();
    let stats = stack.nic.stats();
    let [queue] = &stats.driver.queues[..] else {
        panic!("{stats:?}");
    };
    let retried: Vec<_> = queue
        .operations
        .iter()
        .filter(|op| op.retries > 0)
        .map(|op| (op.opcode, op.retries))
        .collect();
    assert_eq!(
        retried,
        [
            (IoOpcode::Lookup, 3),
            (IoOpcode::GetFirst, 1),
            (IoOpcode::GetNext, 1),
            (IoOpcode::BatchDump, 1)
        ]
    );
    assert_eq!(stats.recovery.retries, 6);
    assert_eq!(stats.recovery.recoveries, 6);
    assert_eq!(queue.events.function_resets, 6);
    assert_eq!(queue.pairs, 7);
    let text = openmetrics([("nic0", &stats)]);
    let read = Exposition::read(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let sample = |name: &str, labels: &[(&str, &str)]| read.sample(name, labels);
    let lookups = [("nic", "nic0"), ("queue", "1"), ("op", "lookup")];
    assert_eq!(sample("offmap_queue_retries_total", &lookups), Some(3.0));
    let resets = [
        ("nic", "nic0"),
        ("queue", "1"),
        ("event", "function_resets"),
    ];
    assert_eq!(sample("offmap_queue_events_total", &resets), Some(6.0));
}

#[test]
fn the_openmetrics_text_keeps_the_rules_and_says_what_the_counts_say() {
    let (_stack, stats) = recovered();
    let odd = "a \"b\" \\ c\nd";
    let idle = NicStats::default();
    let text = openmetrics([("nic0", &stats), (odd, &stats), ("idle", &idle)]);
    let read = Exposition::read(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let sample = |name: &str, labels: &[(&str, &str)]| {
        let found = read.sample(name, labels);
        found.unwrap_or_else(|| panic!("no {name} {labels:?} in\n{text}"))
    };
    for nic in ["nic0", odd] {
        let lookup = &[("nic", nic), ("queue", "1"), ("op", "lookup")][..];
        assert_eq!(sample("offmap_queue_submitted_total", lookup), 2.0);
        assert_eq!(sample("offmap_queue_in_flight", lookup), 0.0);
        assert_eq!(sample("offmap_queue_unanswered_total", lookup), 0.0);
        for status in ["success", "not_found"] {
            let ended = [lookup, &[("status", status)]].concat();
            assert_eq!(sample("offmap_queue_completed_total", &ended), 1.0);
        }
        let queue = stats.driver.total().unwrap();
        let times = &of(&queue, IoOpcode::Lookup).times;
        let name = "offmap_queue_command_duration_seconds";
        assert_eq!(sample(&format!("{name}_count"), lookup), 2.0);
        let sum = sample(&format!("{name}_sum"), lookup);
        assert!((sum - times.sum().as_secs_f64()).abs() < 1e-12);
        let last = [lookup, &[("le", "+Inf")]].concat();
        assert_eq!(sample(&format!("{name}_bucket"), &last), 2.0);
        let events = [("nic", nic), ("queue", "1"), ("event", "failures")];
        assert_eq!(sample("offmap_queue_events_total", &events), 0.0);
        let pairs = [("nic", nic), ("queue", "1")];
        assert_eq!(sample("offmap_queue_pairs_total", &pairs), 2.0);
        let of_nic = &[("nic", nic)][..];
        assert_eq!(sample("offmap_function_resets_total", of_nic), 1.0);
        assert_eq!(sample("offmap_maps_restored_total", of_nic), 1.0);
        assert_eq!(sample("offmap_elements_restored_total", of_nic), 10.0);
        let journal = stats.recovery.journal_bytes as f64;
        assert_eq!(sample("offmap_journal_bytes", of_nic), journal);
    }
    assert_eq!(sample("offmap_retries_total", &[("nic", "idle")]), 0.0);
    let buckets = 28.0;
    let le: f64 = read.buckets("offmap_queue_command_duration_seconds") as f64;
    // Two NICs, with as many operations as there are.
    let operations = stats.driver.total().unwrap().operations.len() as f64;
    assert_eq!(le, 2.0 * operations * buckets);
    // Nothing at all is an exposition, too.
    let nothing = openmetrics([]);
    assert_eq!(nothing, "# EOF\n");
    Exposition::read(&nothing).unwrap();
}

#[test]
fn the_reader_finds_what_is_wrong() {
    let (_stack, stats) = recovered();
    let good = openmetrics([("nic0", &stats)]);
    Exposition::read(&good).unwrap();
    type Spoil = (&'static str, fn(&str) -> String);
    let spoils: [Spoil; 10] = [
        ("no end", |t| t.replace("# EOF\n", "")),
        ("after the end", |t| format!("{t}x 1\n")),
        ("no _total", |t| t.replace("submitted_total{", "submitted{")),
        ("no type", |t| {
            t.replace("# TYPE offmap_retries counter\n", "")
        }),
        ("another unit", |t| {
            t.replace(
                "# UNIT offmap_journal_bytes bytes",
                "# UNIT offmap_journal_bytes seconds",
            )
        }),
        ("not cumulative", |t| {
            let last = "le=\"+Inf\",nic=\"nic0\",queue=\"1\",op=\"lookup\"} ";
            t.replacen(&format!("{last}2"), &format!("{last}1"), 1)
        }),
        ("no last bucket", |t| t.replace("le=\"+Inf\"", "le=\"99\"")),
        ("twice", |t| {
            t.replacen(
                "offmap_retries_total{nic=\"nic0\"} 0\n",
                "offmap_retries_total{nic=\"nic0\"} 0\noffmap_retries_total{nic=\"nic0\"} 0\n",
                1,
            )
        }),
        ("no quote", |t| t.replacen("nic=\"nic0\"", "nic=nic0", 1)),
        ("below zero", |t| {
            t.replacen(
                "offmap_retries_total{nic=\"nic0\"} 0",
                "offmap_retries_total{nic=\"nic0\"} -1",
                1,
            )
        }),
    ];
    for (what, spoil) in spoils {
        let bad = spoil(&good);
        assert_ne!(bad, good, "{what} changes nothing");
        let found = Exposition::read(&bad);
        assert!(found.is_err(), "{what} was not found in\n{bad}");
    }
}
