//! Completion by interrupt: threads that sleep until the device has something for them, on a device
//! with a thread of its own.

use offmap_driver::{
    Coalescing, CompletionMode, DeviceMap, Driver, DriverConfig, Notify, QueuePair, Status,
};
use offmap_emulator::faults::{Behaviour, Delay, FaultPlan, Rule, Site};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_tests::speed;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEY: [u8; 8] = *b"interrup";
const VALUE: [u8; 64] = [7; 64];
/// Longest that a waiter sleeps without a look, as `CompletionMode` says.
const LONGEST_SLEEP: Duration = Duration::from_millis(128);

struct Rig {
    device: Arc<Threaded>,
    driver: Arc<Driver<Threaded>>,
    map: DeviceMap,
}

impl Rig {
    fn new(config: DriverConfig) -> Self {
        Self::on(DeviceConfig::default(), config)
    }

    fn on(device: DeviceConfig, config: DriverConfig) -> Self {
        let device = Threaded::spawn(device).unwrap();
        let driver = Driver::bring_up(Arc::clone(&device), config).unwrap();
        let map = driver.create_map(&speed::params(64)).unwrap();
        let mut queue = driver.create_queue().unwrap();
        assert!(queue.update(&map, &KEY, &VALUE, 0).unwrap().is_success());
        Self {
            device,
            driver,
            map,
        }
    }

    fn queue(&self) -> QueuePair<Threaded> {
        self.driver.create_queue().unwrap()
    }

    fn faults(&self, rule: Rule) {
        self.plan([rule]);
    }

    fn plan(&self, rules: impl IntoIterator<Item = Rule>) {
        let with = |plan: FaultPlan, rule| plan.with(rule).unwrap();
        let plan = rules.into_iter().fold(FaultPlan::new(), with);
        self.device.set_faults(&plan, 1).unwrap();
    }

    fn lookup(&self, queue: &mut QueuePair<Threaded>) {
        let mut value = [0; 64];
        let status = queue.lookup(&self.map, &KEY, &mut value).unwrap();
        assert_eq!((status, value), (Status::Success, VALUE));
    }
}

/// Every completion of the queue comes so late that its waiter is asleep.
fn late(queue: &QueuePair<Threaded>) -> Rule {
    let delay = Delay::Time(Duration::from_micros(300));
    Rule::new(Site::Complete, Behaviour::Delay(delay)).on_queue(queue.id())
}

fn mode(completion: CompletionMode) -> DriverConfig {
    DriverConfig {
        completion,
        ..DriverConfig::default()
    }
}

/// Every mode of waiting, over notify blocks and over doorbells.
fn modes() -> Vec<DriverConfig> {
    let mut modes = Vec::new();
    for notify in [Notify::Block, Notify::Doorbell] {
        for completion in [
            CompletionMode::Poll,
            CompletionMode::Interrupt,
            CompletionMode::Hybrid {
                spin: Duration::from_micros(5),
            },
        ] {
            for coalescing in [None, coalesce(4, 200)] {
                modes.push(DriverConfig {
                    notify,
                    completion,
                    coalescing,
                    ..DriverConfig::default()
                });
            }
        }
    }
    modes
}

fn coalesce(count: u16, us: u64) -> Option<Coalescing> {
    Some(Coalescing {
        count,
        delay: Duration::from_micros(us),
    })
}

/// Processor time of this thread.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn commands_complete_in_every_mode_from_many_threads() {
    for config in modes() {
        let rig = Rig::new(config.clone());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut queue = rig.queue();
                    assert_eq!(
                        queue.has_interrupt(),
                        config.completion != CompletionMode::Poll
                    );
                    let started = Instant::now();
                    let mut done = 0;
                    while done < 20 || done < 400 && started.elapsed() < Duration::from_millis(100)
                    {
                        rig.lookup(&mut queue);
                        done += 1;
                    }
                    assert_eq!(queue.counters().timeouts, 0, "{config:?}");
                });
            }
        });
    }
}

/// What takes the device long costs a waiter no processor time, and the interrupt, not the next look
/// of its own, is what wakes it.
#[test]
fn a_waiter_sleeps_until_the_interrupt() {
    let slow = Duration::from_millis(75);
    for completion in [CompletionMode::Interrupt, CompletionMode::default()] {
        let rig = Rig::new(mode(completion));
        let mut queue = rig.queue();
        rig.lookup(&mut queue);
        rig.faults(
            Rule::new(Site::Complete, Behaviour::Delay(Delay::Time(slow))).on_queue(queue.id()),
        );
        let (before, counted) = (busy(), queue.counters());
        let started = Instant::now();
        rig.lookup(&mut queue);
        let (took, worked) = (started.elapsed(), busy() - before);
        let counters = queue.counters();
        assert!(took >= slow, "{took:?}");
        // One that the lookup before did not wait for may be left.
        let interrupts = counters.interrupts - counted.interrupts;
        assert!((1..=2).contains(&interrupts), "{counters:?}");
        // 1, 2, 4, … ms: it looks at the device's health in between.
        assert!(counters.sleeps - counted.sleeps <= 12, "{counters:?}");
        assert!(worked < slow / 5, "busy for {worked:?} of {took:?}");
    }
}

#[test]
fn a_lost_interrupt_costs_a_look_and_not_the_command() {
    let rig = Rig::new(mode(CompletionMode::Interrupt));
    let mut queue = rig.queue();
    rig.plan([late(&queue), Rule::new(Site::Interrupt, Behaviour::Drop)]);
    for _ in 0..5 {
        let started = Instant::now();
        rig.lookup(&mut queue);
        let took = started.elapsed();
        assert!(took < 4 * LONGEST_SLEEP, "{took:?}");
    }
    let counters = queue.counters();
    assert_eq!(
        (counters.timeouts, counters.interrupts),
        (0, 0),
        "{counters:?}"
    );
    assert!(counters.sleeps > 0, "{counters:?}");
}

#[test]
fn interrupts_that_mean_nothing_are_passed_over() {
    let rig = Rig::new(mode(CompletionMode::Interrupt));
    let mut queue = rig.queue();
    rig.plan([
        late(&queue),
        Rule::new(Site::Interrupt, Behaviour::Duplicate),
    ]);
    for _ in 0..200 {
        rig.lookup(&mut queue);
    }
    let counters = queue.counters();
    assert_eq!(counters.timeouts, 0);
    assert!(counters.interrupts > 0, "{counters:?}");
}

/// One command at a time never makes up the count, and the waiter's own look, after a millisecond,
/// comes before the delay is over.
#[test]
fn an_interrupt_is_held_back_for_more_completions() {
    let counted = |coalescing| {
        let rig = Rig::new(DriverConfig {
            completion: CompletionMode::Interrupt,
            coalescing,
            ..DriverConfig::default()
        });
        let mut queue = rig.queue();
        rig.faults(late(&queue));
        for _ in 0..50 {
            rig.lookup(&mut queue);
        }
        let counters = queue.counters();
        assert!(counters.sleeps > 0, "{counters:?}");
        assert_eq!(counters.timeouts, 0);
        counters.interrupts
    };
    assert!(counted(None) > 10);
    // A waiter that is kept from running for so long sees one or the other.
    assert!(counted(coalesce(2, 65_535)) < 5);
}

/// What is held back is announced after the delay, and not only found by a look: the waiter looks
/// after 1, 3, 7, … milliseconds, or a little later, so that of several tries one finds it asleep.
#[test]
fn what_is_held_back_comes_after_the_delay() {
    let (late, delay) = (Duration::from_millis(75), Duration::from_millis(10));
    let rig = Rig::new(DriverConfig {
        completion: CompletionMode::Interrupt,
        coalescing: coalesce(32, delay.as_micros() as u64),
        ..DriverConfig::default()
    });
    let mut queue = rig.queue();
    rig.faults(Rule::new(Site::Complete, Behaviour::Delay(Delay::Time(late))).on_queue(queue.id()));
    let announced = (0..20).any(|_| {
        let started = Instant::now();
        let before = queue.counters().interrupts;
        rig.lookup(&mut queue);
        let announced = queue.counters().interrupts > before;
        let took = started.elapsed();
        assert!(!announced || took >= late + delay, "{took:?}");
        announced
    });
    assert!(announced);
}

#[test]
fn queues_without_a_vector_poll_and_vectors_come_back() {
    let device = DeviceConfig {
        vectors: 2,
        ..DeviceConfig::default()
    };
    let rig = Rig::on(device, mode(CompletionMode::Interrupt));
    for _ in 0..3 {
        let mut queues: Vec<_> = (0..4).map(|_| rig.queue()).collect();
        let having = |queues: &[QueuePair<Threaded>]| -> Vec<bool> {
            queues.iter().map(QueuePair::has_interrupt).collect()
        };
        assert_eq!(having(&queues), [true, true, false, false]);
        for queue in &mut queues {
            rig.lookup(queue);
        }
        queues.remove(0);
        let mut next = rig.queue();
        assert!(next.has_interrupt());
        rig.lookup(&mut next);
    }
}

#[test]
fn interrupts_work_again_after_a_reset() {
    let rig = Rig::new(mode(CompletionMode::Interrupt));
    let mut old = rig.queue();
    rig.lookup(&mut old);
    rig.driver.reset().unwrap();
    assert!(old.is_dead());
    let mut queue = rig.queue();
    assert!(queue.has_interrupt());
    rig.faults(late(&queue));
    for _ in 0..50 {
        assert!(queue.nop().unwrap().is_success());
    }
    drop(old);
    for _ in 0..50 {
        assert!(queue.nop().unwrap().is_success());
    }
    let counters = queue.counters();
    assert!(counters.interrupts > 0, "{counters:?}");
}

/// A device that works on the thread of who waits for it would sleep with it.
#[test]
fn an_inline_device_is_polled() {
    let device = Inline::new(DeviceConfig::default()).unwrap();
    let driver = Driver::bring_up(device, mode(CompletionMode::Interrupt)).unwrap();
    let mut queue = driver.create_queue().unwrap();
    assert!(!queue.has_interrupt());
    assert!(queue.nop().unwrap().is_success());
}

#[test]
fn settings_that_cannot_be_are_named() {
    let device = Inline::new(DeviceConfig::default()).unwrap();
    let spin = Duration::from_secs(2);
    let long = DriverConfig {
        completion: CompletionMode::Hybrid { spin },
        ..DriverConfig::default()
    };
    let gather = |count, ns| DriverConfig {
        coalescing: Some(Coalescing {
            count,
            delay: Duration::from_nanos(ns),
        }),
        ..DriverConfig::default()
    };
    for (config, field) in [
        (long, "completion"),
        (gather(1, 1000), "coalescing.count"),
        (gather(2, 0), "coalescing.delay"),
        (gather(2, 1500), "coalescing.delay"),
        (gather(2, 65_536_000), "coalescing.delay"),
    ] {
        let error = Driver::bring_up(Arc::clone(&device), config).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}
