//! Resets under load.

use super::{KILLS, attr, kill, recovering};
use offmap_abi::regs::{self, DeviceStatus};
use offmap_bpf::{Errno, MapFile, MapType};
use offmap_device_io::{BarOffset, Function};
use offmap_driver::DriverConfig;
use offmap_emulator::faults::{Behaviour, FaultPlan, Rule, Site};
use offmap_emulator::{DeviceConfig, Threaded};
use offmap_offload::{Recovery, RecoveryStats, UnknownOutcome};
use offmap_tests::report::{aloud, seed};
use offmap_tests::stack::Stack;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

/// Each with a queue pair of its own, so that a machine of two processors, too, has many
/// commands under way.
const WRITERS: usize = 14;
/// Commands that the device holds at least when it is killed.
const HELD: u64 = 8;
/// Keys of each writer in the map that all share; those of its own map follow.
const SHARED: usize = 16;
/// Types of the writers' own maps, in turn.
const TYPES: [MapType; 3] = [MapType::HASH, MapType::ARRAY, MapType::LRU_HASH];
/// Bytes of a value in that map, and in the others.
const SHARED_VALUE: usize = 512;
const OWN_VALUE: usize = 24 << 10;
/// Elements of a batch, all of the writer's own map: 768 KiB of values. A step of the device
/// moves 256 KiB, so that a batch is under way, with a part of its data fetched, from its first
/// step to its last. Batches on one map would take turns at its journal.
const BATCH: usize = 32;
const KEYS: usize = SHARED + BATCH;
/// Commands that are in mid-DMA at least, of those.
const MID_DMA: u64 = 4;
/// Steps for which the device does nothing before it is killed, unless a reset comes first: seconds.
const STANDSTILL: u32 = 1_000_000_000;

/// How long it may take the writers to fill the queues of a device at a standstill, before it
/// goes on and is stopped anew: well below the driver's time for an admin command.
const A_TRY: Duration = Duration::from_millis(500);

/// The values that a key may have; more than one after a write of unknown outcome.
type Known = Vec<Option<u64>>;

struct Load {
    shared: MapFile,
    /// Of one writer each; the types take turns.
    own: Vec<MapFile>,
    pause: AtomicBool,
    done: AtomicBool,
    round: Barrier,
    /// Operations since the start.
    operations: AtomicU64,
    acknowledged: AtomicU64,
    /// Elements of writes whose outcome was reported as unknown, and how they turned out.
    reported: AtomicU64,
    old: AtomicU64,
    new: AtomicU64,
    violations: Mutex<Vec<String>>,
}

fn value_bytes(i: usize) -> usize {
    if i < SHARED { SHARED_VALUE } else { OWN_VALUE }
}

fn value_of(key: u32, version: u64) -> Vec<u8> {
    let head = u64::from(key) << 40 | version;
    head.to_ne_bytes()
        .repeat(value_bytes(key as usize % KEYS) / 8)
}

fn version_of(key: u32, value: &[u8]) -> Result<u64, String> {
    let mut head = [0; 8];
    head.copy_from_slice(&value[..8]);
    let head = u64::from_ne_bytes(head);
    let version = head & ((1 << 40) - 1);
    if value_of(key, version) == value {
        Ok(version)
    } else {
        Err(format!(
            "key {key}: the value begins with {head:#x} and is torn"
        ))
    }
}

struct Writer<'a> {
    load: &'a Load,
    id: usize,
    rng: Xoshiro256PlusPlus,
    known: Vec<Known>,
    version: u64,
}

impl Writer<'_> {
    fn key(&self, i: usize) -> u32 {
        (self.id * KEYS + i) as u32
    }

    /// The key as it goes to the map: an array has indices.
    fn key_bytes(&self, i: usize) -> [u8; 4] {
        match self.in_array(i) {
            true => (i - SHARED) as u32,
            false => self.key(i),
        }
        .to_ne_bytes()
    }

    fn in_array(&self, i: usize) -> bool {
        i >= SHARED && self.load.own[self.id].map_type() == MapType::ARRAY
    }

    fn map(&self, i: usize) -> &MapFile {
        if i < SHARED {
            &self.load.shared
        } else {
            &self.load.own[self.id]
        }
    }

    /// The outcome of a write that leaves key `i` with `new`.
    fn took(&mut self, i: usize, new: Option<u64>, outcome: Result<(), Errno>) {
        let load = self.load;
        match outcome {
            Ok(()) => {
                self.known[i] = vec![new];
                load.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // The key of a deletion was not there.
            Err(Errno::ENOENT) if new.is_none() => self.known[i] = vec![None],
            Err(Errno::EIO) => {
                self.known[i].push(new);
                load.reported.fetch_add(1, Ordering::Relaxed);
            }
            Err(errno) => self.violation(format!("key {}: {errno:?}", self.key(i))),
        }
    }

    fn violation(&self, what: String) {
        self.load.violations.lock().unwrap().push(what);
    }

    fn operation(&mut self) {
        self.version += 1;
        let (load, version) = (self.load, self.version);
        let i = self.rng.random_range(0..KEYS);
        let key = self.key_bytes(i);
        match self.rng.random_range(0..16) {
            // Nothing is deleted from an array.
            0 if !self.in_array(i) => {
                let done = self.map(i).delete(&key).map_err(|e| e.errno());
                self.took(i, None, done);
            }
            0..3 => {
                let value = value_of(self.key(i), version);
                let done = self.map(i).update(&key, &value, 0).map_err(|e| e.errno());
                self.took(i, Some(version), done);
            }
            _ => {
                let keys: Vec<u8> = (SHARED..KEYS).flat_map(|i| self.key_bytes(i)).collect();
                let values: Vec<u8> = (SHARED..KEYS)
                    .flat_map(|i| value_of(self.key(i), version))
                    .collect();
                let done = load.own[self.id].update_batch(&keys, &values, BATCH as u32, 0, 0);
                let result = done.result.map_err(|e| e.errno());
                if result.is_ok() && done.count as usize != BATCH {
                    self.violation(format!("a batch succeeded with {} elements", done.count));
                }
                for i in SHARED..KEYS {
                    self.took(i, Some(version), result);
                }
            }
        }
        load.operations.fetch_add(1, Ordering::Relaxed);
        if self.known.iter().any(|known| known.len() > 1) {
            // Before the next write covers how this one turned out.
            self.verify();
        }
    }

    /// Compares every key with what was acknowledged.
    fn verify(&mut self) {
        let mut buffer = vec![0; OWN_VALUE];
        for i in 0..KEYS {
            let key = self.key(i);
            let value = &mut buffer[..value_bytes(i)];
            let found = match self.map(i).lookup(&self.key_bytes(i), value, 0) {
                // What was never written.
                Ok(()) if self.in_array(i) && value.iter().all(|byte| *byte == 0) => None,
                Ok(()) => match version_of(key, value) {
                    Ok(version) => Some(version),
                    Err(torn) => return self.violation(torn),
                },
                Err(e) if e.errno() == Errno::ENOENT => None,
                Err(e) => return self.violation(format!("key {key}: lookup: {e}")),
            };
            let known = &self.known[i];
            if !known.contains(&found) {
                return self.violation(format!("key {key}: {found:?} is none of {known:?}"));
            }
            if known.len() > 1 {
                let which = if known[0] == found {
                    &self.load.old
                } else {
                    &self.load.new
                };
                which.fetch_add(1, Ordering::Relaxed);
            }
            self.known[i] = vec![found];
        }
    }

    fn run(&mut self) {
        loop {
            while !self.load.pause.load(Ordering::Acquire) {
                self.operation();
            }
            // Everybody's last operation has ended.
            self.load.round.wait();
            self.verify();
            self.load.round.wait();
            if self.load.done.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

struct Round {
    unanswered: u64,
    /// Commands that the device held when it was killed, by its own count: published, and not answered.
    held: u64,
    /// Commands that the reset met in the middle, by the device's own count: begun, with some of
    /// their data fetched, and not completed.
    mid_dma: u64,
    /// From the kill until every operation that was in flight had ended, and one more of each
    /// writer.
    ended: Duration,
    /// What the NIC says that its own part took.
    recovery: Duration,
}

/// Least, median, greatest.
fn spread<T: Copy + Ord>(of: impl Iterator<Item = T>) -> (T, T, T) {
    let mut all: Vec<T> = of.collect();
    all.sort_unstable();
    (all[0], all[all.len() / 2], all[all.len() - 1])
}

fn waits(what: &str, mut until: impl FnMut() -> bool) {
    let started = Instant::now();
    while !until() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

fn campaign(resets: usize, unknown: UnknownOutcome) {
    let base = seed();
    let function = Threaded::spawn(DeviceConfig::default()).expect("a threaded device");
    let recovery = Recovery {
        unknown,
        ..Recovery::default()
    };
    let queue_pairs = Some(WRITERS as u16 + 1);
    let stack = recovering(function, DriverConfig::default(), queue_pairs, recovery);
    let map = |map_type: MapType, keys: usize, value: usize| {
        stack.map(&attr(map_type, value as u32, keys as u32), true)
    };
    let of = |id: usize| map(TYPES[id % TYPES.len()], BATCH, OWN_VALUE);
    let load = Load {
        shared: map(MapType::HASH, WRITERS * SHARED, SHARED_VALUE),
        own: (0..WRITERS).map(of).collect(),
        pause: AtomicBool::new(false),
        done: AtomicBool::new(false),
        round: Barrier::new(WRITERS + 1),
        operations: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        reported: AtomicU64::new(0),
        old: AtomicU64::new(0),
        new: AtomicU64::new(0),
        violations: Mutex::default(),
    };
    let mut rounds = Vec::new();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for id in 0..WRITERS {
            let mut writer = Writer {
                load: &load,
                id,
                rng: Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(id as u64)),
                known: vec![vec![None]; KEYS],
                version: 0,
            };
            scope.spawn(move || writer.run());
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(!base);
        for number in 0..resets {
            rounds.push(one_round(&stack, &load, &mut rng, number));
            load.done.store(number + 1 == resets, Ordering::Release);
            load.round.wait();
        }
    });
    let stats = stack.nic.recovery_stats();
    tell(&load, &rounds, &stats, unknown, started.elapsed(), base);
}

fn set_plan(function: &Threaded, rule: Option<Rule>) {
    let with = |plan: FaultPlan, rule| plan.with(rule).expect("a rule");
    let plan = rule.into_iter().fold(FaultPlan::new(), with);
    function.set_faults(&plan, 1).expect("the device");
}

fn read(function: &Threaded, register: u64) -> u32 {
    function.read32(0, BarOffset(register)).expect("a register")
}

fn resets_of(function: &Threaded) -> u32 {
    read(function, regs::RESET_COUNT)
}

/// Stops the device among commands that it has begun, until the next reset, and waits until the
/// writers have filled its queues: as one whose memory is slow.
fn stand_still(function: &Threaded) {
    let slow = |steps| Rule::new(Site::Step, Behaviour::Slow { steps });
    let begun = || function.diagnostics().expect("the device").under_way >= MID_DMA;
    // Whoever waits for a new queue pair would reset the function by itself in the end.
    let held = || {
        let held = function.held().expect("the device");
        held.io >= HELD && held.admin == 0
    };
    waits("commands that a device at a standstill holds", || {
        waits("commands in mid-DMA", begun);
        // Each step anew, so that it ends with the plan.
        set_plan(function, Some(slow(1)));
        let since = Instant::now();
        while !held() && since.elapsed() < A_TRY {
            std::thread::yield_now();
        }
        // It may have ended some between the look and the plan.
        let stands = begun() && held();
        if !stands {
            set_plan(function, None);
        }
        stands
    });
    // One that a reset ends, so that the device can be brought up again. It must have begun by then.
    set_plan(function, Some(slow(STANDSTILL).times(1)));
    waits("the standstill", || {
        function.faults_injected().expect("the device") > 0
    });
}

/// Lets the writers write, kills the device, and has them verify what is there afterwards.
fn one_round(
    stack: &Stack<Threaded>,
    load: &Load,
    rng: &mut Xoshiro256PlusPlus,
    number: usize,
) -> Round {
    let operations = || load.operations.load(Ordering::Relaxed);
    let before = stack.nic.recovery_stats();
    let enough = operations() + rng.random_range(4..60);
    waits("the writers get on", || operations() >= enough);
    let function = stack.driver.function();
    let diagnostics = || function.diagnostics().expect("the device");
    stand_still(function);
    let cut_before = diagnostics();
    let killed = Instant::now();
    match KILLS[number % KILLS.len()] {
        // What `kill` does instead takes a device that fetches.
        "firmware error state" => {
            let resets = resets_of(function);
            set_plan(
                function,
                Some(Rule::new(Site::Step, Behaviour::Fatal).times(1)),
            );
            waits("the firmware stops itself", || {
                let status = DeviceStatus::from_bits_retain(read(function, regs::STATUS));
                status.contains(DeviceStatus::FATAL) || resets_of(function) != resets
            });
        }
        _ => kill(&stack.driver, number),
    }
    let held = diagnostics().last_held.io;
    set_plan(function, None);
    let enough = operations() + 2 * WRITERS as u64;
    waits("operations after the kill", || operations() >= enough);
    load.pause.store(true, Ordering::Release);
    load.round.wait();
    let ended = killed.elapsed();
    load.pause.store(false, Ordering::Release);
    let after = stack.nic.recovery_stats();
    let recovered = after.recoveries > before.recoveries;
    if !recovered {
        let how = KILLS[number % KILLS.len()];
        load.violations
            .lock()
            .unwrap()
            .push(format!("round {number}: nobody noticed: {how}"));
    }
    Round {
        unanswered: after.unknown - before.unknown,
        held,
        mid_dma: diagnostics().cut_short - cut_before.cut_short,
        ended,
        recovery: after.last,
    }
}

fn tell(
    load: &Load,
    rounds: &[Round],
    stats: &RecoveryStats,
    unknown: UnknownOutcome,
    took: Duration,
    base: u64,
) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let violations = load.violations.lock().unwrap();
    let (fewest, unanswered, most) = spread(rounds.iter().map(|r| r.unanswered));
    let (held_least, held_usual, held_most) = spread(rounds.iter().map(|r| r.held));
    let (cut_least, cut_usual, cut_most) = spread(rounds.iter().map(|r| r.mid_dma));
    let cut_total: u64 = rounds.iter().map(|r| r.mid_dma).sum();
    let (_, recovery, worst) = spread(rounds.iter().map(|r| r.recovery));
    let (_, ended, last) = spread(rounds.iter().map(|r| r.ended));
    aloud(&format!(
        "recover: {unknown:?}: {} resets in {took:.1?} from seed {base}: {} operations, {} \
         elements acknowledged, {} violations; held by the device at a reset, by its own count: \
         least {held_least}, median {held_usual}, most {held_most}; of those in mid-DMA: least \
         {cut_least}, median {cut_usual}, most {cut_most}, {cut_total} together; writes sent and not \
         answered: {fewest} to {most}, median {unanswered}; {} unknown outcomes, {} resolved, {} reported ({} \
         elements: {} old, {} new); recovery: median {recovery:.1?}, worst {worst:.1?}; until all \
         in flight had ended and each writer gone on: median {ended:.1?}, worst {last:.1?}; \
         {stats:?}",
        rounds.len(),
        count(&load.operations),
        count(&load.acknowledged),
        violations.len(),
        stats.unknown,
        stats.resolved,
        stats.reported,
        count(&load.reported),
        count(&load.old),
        count(&load.new),
    ));
    let some = &violations[..violations.len().min(4)];
    assert!(violations.is_empty(), "seed {base}: {some:?}");
    assert!(
        held_least >= HELD,
        "the device held {held_least} commands at a reset, fewer than {HELD}"
    );
    assert!(
        cut_least >= MID_DMA,
        "{cut_least} commands were in mid-DMA at a reset, fewer than {MID_DMA}"
    );
    // What a kill met in the middle is a write that was sent and never answered.
    let unanswered_total: u64 = rounds.iter().map(|r| r.unanswered).sum();
    let unanswered_rounds = rounds.iter().filter(|r| r.unanswered > 0).count();
    assert!(
        unanswered_rounds * 2 > rounds.len() && unanswered_total >= cut_total,
        "few commands went unanswered: {unanswered_total} at {unanswered_rounds} of {} resets; \
         {cut_total} were cut short",
        rounds.len()
    );
    assert_eq!(stats.unknown, unanswered_total);
    assert_eq!(stats.unknown, stats.resolved + stats.reported);
    match unknown {
        UnknownOutcome::Resolve => assert_eq!(stats.reported, 0),
        UnknownOutcome::Report => {
            assert_eq!(stats.resolved, 0);
            assert!(count(&load.reported) > 0);
        }
    }
    assert!(count(&load.acknowledged) > rounds.len() as u64);
}

#[test]
fn killed_under_load_and_nothing_acknowledged_is_lost() {
    let wanted = std::env::var("OFFMAP_RESETS").ok();
    let resets: usize = wanted.map_or(200, |n| n.parse().expect("OFFMAP_RESETS is a number"));
    assert!(resets >= 2, "OFFMAP_RESETS: at least 2");
    campaign(resets / 2, UnknownOutcome::Resolve);
    campaign(resets - resets / 2, UnknownOutcome::Report);
}
