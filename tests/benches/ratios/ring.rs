//! The ring with the device on another processor: one round trip against what a cache line
//! takes there and back, a full pipeline against a bare ring, and a dump against the kernel's.
//!
//! This thread is bound to one processor; the device's thread and the bare partner share another
//! one, and only one of the two is awake: the device parks before the partner is woken.

use crate::{Ratio, line, median, ns, time};
use crossbeam_utils::CachePadded;
use offmap_abi::MapHandle;
use offmap_driver::{DeviceMap, MapParams, Op, QueuePair};
use offmap_emulator::Threaded;
use offmap_tests::cpu::Pinned;
use offmap_tests::speed::{
    KEY_BYTES, Key, VALUE_BYTES, Value, device_config, fill, kernel_map, keys, map_attr, order,
    params, value_of,
};
use offmap_tests::stack::{Stack, StackMap};
use offmap_tests::subject::Subject;
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Commands in flight in a full pipeline.
const DEPTH: usize = 64;
/// Entries of the map that is dumped.
const DUMPED: usize = 1_000_000;
/// Value size in bytes of a map of counters, which a completion has room for.
const COUNTER_BYTES: usize = KEY_BYTES;
/// Elements that one batch call of a dump asks for.
const PAGE: usize = 1024;
/// Keys in the order in which they are looked up, a power of two: no division stands between two lookups.
const ORDER: usize = 1 << 20;
/// Operations before each block, so that both sides are awake.
const WARM: usize = 256;
/// Words of a ring's entry.
const WORDS: usize = 8;

/// An entry of the bare ring, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS]);

/// What this thread and its bare partner share.
#[derive(Default)]
struct Shared {
    /// What the partner does: [`SLEEP`], [`ECHO`], [`RING`].
    mode: CachePadded<AtomicU32>,
    /// The partner is asleep, or about to be.
    asleep: CachePadded<AtomicBool>,
    there: CachePadded<AtomicU64>,
    back: CachePadded<AtomicU64>,
    submissions: Vec<Line>,
    completions: Vec<Line>,
}

const SLEEP: u32 = 0;
const ECHO: u32 = 1;
const RING: u32 = 2;
const END: u32 = 3;

/// The other end of a bare cache line and of a bare ring.
struct Partner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Round trips and ring entries so far.
    trips: u64,
    sent: u64,
    taken: u64,
}

impl Partner {
    fn spawn() -> Self {
        let lines = || (0..2 * DEPTH).map(|_| Line::default()).collect();
        let shared = Arc::new(Shared {
            submissions: lines(),
            completions: lines(),
            ..Shared::default()
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || answer(&shared)
        });
        Self {
            shared,
            thread: Some(thread),
            trips: 0,
            sent: 0,
            taken: 0,
        }
    }

    fn turn(&self, mode: u32) {
        self.shared.mode.store(mode, Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        let asleep = mode == SLEEP;
        while self.shared.asleep.load(Acquire) != asleep {
            spin_loop();
        }
    }

    /// `n` times: a cache line there, and one back.
    fn round_trips(&mut self, n: usize) {
        let shared = &*self.shared;
        for _ in 0..n {
            self.trips += 1;
            shared.there.store(self.trips, Release);
            while shared.back.load(Acquire) != self.trips {
                spin_loop();
            }
        }
    }

    /// `n` entries through the bare ring, as many as [`DEPTH`] at a time on their way.
    fn ring(&mut self, n: usize) {
        let shared = &*self.shared;
        let end = self.taken + n as u64;
        while self.taken < end {
            while self.sent < end && self.sent - self.taken < DEPTH as u64 {
                put(&shared.submissions, self.sent, &[self.sent; WORDS]);
                self.sent += 1;
            }
            while let Some(words) = get(&shared.completions, self.taken) {
                black_box(words);
                self.taken += 1;
            }
        }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.shared.mode.store(END, Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().expect("the partner does not panic");
        }
    }
}

/// Stores entry `at`, its first word, which says that it is there, last.
fn put(ring: &[Line], at: u64, words: &[u64; WORDS]) {
    let line = &ring[at as usize % ring.len()].0;
    for (to, word) in line.iter().zip(words).skip(1) {
        to.store(*word, Relaxed);
    }
    line[0].store(at + 1, Release);
}

fn get(ring: &[Line], at: u64) -> Option<[u64; WORDS]> {
    let line = &ring[at as usize % ring.len()].0;
    if line[0].load(Acquire) != at + 1 {
        return None;
    }
    Some(std::array::from_fn(|i| line[i].load(Relaxed)))
}

/// The partner's thread.
fn answer(shared: &Shared) {
    let (mut seen, mut answered) = (0, 0);
    shared.asleep.store(true, Release);
    loop {
        match shared.mode.load(Acquire) {
            SLEEP => {
                shared.asleep.store(true, Release);
                thread::park();
            }
            END => return,
            ECHO => {
                shared.asleep.store(false, Relaxed);
                let now = shared.there.load(Acquire);
                if now != seen {
                    seen = now;
                    shared.back.store(now, Release);
                } else {
                    spin_loop();
                }
            }
            _ => {
                shared.asleep.store(false, Relaxed);
                while let Some(words) = get(&shared.submissions, answered) {
                    put(&shared.completions, answered, &words);
                    answered += 1;
                }
            }
        }
    }
}

/// A device on a processor of its own, and what shares that one with it.
struct Two {
    stack: Stack<Threaded>,
    queue: QueuePair<Threaded>,
    map: DeviceMap,
    /// The same keys with values that fit a completion.
    counters: DeviceMap,
    order: Vec<Key>,
    partner: Partner,
    blocks: usize,
}

impl Two {
    fn new(blocks: usize, entries: usize, cpus: &Pinned) -> Self {
        // Threads start where the one is bound that makes them.
        cpus.go(1);
        let partner = Partner::spawn();
        let mut config = device_config(entries);
        config.polls_before_park = 1 << 12;
        let function = Threaded::spawn(config).expect("a threaded device");
        cpus.go(0);
        let stack = Stack::over(function);
        let all = keys(entries);
        let map = stack.driver.create_map(&params(entries)).expect("a map");
        let counters = MapParams {
            value_size: COUNTER_BYTES as u32,
            ..params(entries)
        };
        let counters = stack.driver.create_map(&counters).expect("a map");
        let mut queue = stack.driver.create_queue().expect("a queue");
        for chunk in all.chunks(1024) {
            let keys = chunk.as_flattened();
            let values: Vec<u8> = chunk.iter().flat_map(value_of).collect();
            let done = queue.update_batch(&map, keys, &values, 0);
            assert!(done.expect("room").status.is_success());
            let done = queue.update_batch(&counters, keys, keys, 0);
            assert!(done.expect("room").status.is_success());
        }
        Self {
            stack,
            queue,
            map,
            counters,
            order: order(&all, ORDER),
            partner,
            blocks,
        }
    }

    /// Alternating blocks of `n` operations of a side on the device, and of one with the partner in
    /// `mode`.
    fn against(
        &mut self,
        n: usize,
        mode: u32,
        mut ours: impl FnMut(&mut Self, usize, usize),
        mut bare: impl FnMut(&mut Self, usize, usize),
    ) -> Ratio {
        let (mut ratios, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        let (mut kicks, mut kicked) = (0, 0);
        for i in 0..self.blocks {
            let mut one = |this: &mut Self| {
                // Wakes the device up.
                ours(this, 0, WARM);
                let before = this.queue.counters().kicks;
                let ns = time(&mut |from, n| ours(this, from, n), i * n, n);
                let more = this.queue.counters().kicks - before;
                kicks += more;
                kicked += u32::from(more > 0);
                ns
            };
            let mut other = |this: &mut Self| {
                // The device gives its processor away once it has found nothing for long enough.
                thread::sleep(Duration::from_micros(300));
                this.partner.turn(mode);
                bare(this, 0, WARM);
                let ns = time(&mut |from, n| bare(this, from, n), i * n, n);
                this.partner.turn(SLEEP);
                ns
            };
            let (ta, tb);
            if i % 2 == 0 {
                ta = one(self);
                tb = other(self);
            } else {
                tb = other(self);
                ta = one(self);
            }
            ratios.push(ta / tb);
            a.push(ta);
            b.push(tb);
        }
        // A device that is awake is not kicked: one that was had fallen asleep in the block, because
        // this thread was held up for longer than the device goes on polling.
        if kicks > 0 {
            println!(
                "  {kicks} KICKs in {kicked} of {} timed blocks",
                self.blocks
            );
        }
        Ratio {
            ratio: median(ratios),
            a_ns: median(a),
            b_ns: median(b),
        }
    }

    fn lookups(&mut self, from: usize, n: usize) {
        let mut out: Value = [0; VALUE_BYTES];
        for i in from..from + n {
            let key = &self.order[i & (ORDER - 1)];
            let found = self.queue.lookup(&self.map, key, &mut out);
            assert!(found.expect("a live queue").is_success());
            black_box(&out);
        }
    }

    fn counters(&mut self, from: usize, n: usize) {
        let mut out = [0; COUNTER_BYTES];
        for i in from..from + n {
            let key = &self.order[i & (ORDER - 1)];
            let found = self.queue.lookup(&self.counters, key, &mut out);
            assert!(found.expect("a live queue").is_success());
            black_box(&out);
        }
    }

    fn nops(&mut self, _from: usize, n: usize) {
        for _ in 0..n {
            self.queue.nop().expect("a live queue");
        }
    }

    /// `n` lookups, as many as [`DEPTH`] at a time on their way.
    fn pipeline(&mut self, from: usize, n: usize) {
        let mut out: Value = [0; VALUE_BYTES];
        Self::pipeline_of(&mut self.queue, &self.map, &self.order, &mut out, from, n);
    }

    /// The same with values that fit a completion.
    fn pipelined_counters(&mut self, from: usize, n: usize) {
        let mut out = [0; COUNTER_BYTES];
        Self::pipeline_of(
            &mut self.queue,
            &self.counters,
            &self.order,
            &mut out,
            from,
            n,
        );
    }

    fn pipeline_of<const N: usize>(
        queue: &mut QueuePair<Threaded>,
        map: &DeviceMap,
        order: &[Key],
        out: &mut [u8; N],
        from: usize,
        n: usize,
    ) {
        let (mut sent, mut taken) = (0, 0);
        while taken < n {
            while sent < n && sent - taken < DEPTH {
                let key = &order[(from + sent) & (ORDER - 1)];
                queue.write(&Op::Lookup { map, key }).expect("room");
                sent += 1;
            }
            queue.commit().expect("a live queue");
            let polled = queue.poll_each(|done| {
                assert!(done.value(out).expect("a value").is_success());
                black_box(&out);
            });
            taken += polled.expect("a live queue");
        }
    }

    /// The device's table, called on this thread.
    fn direct(&mut self, from: usize, n: usize) {
        self.direct_of::<VALUE_BYTES>(self.map.handle(), from, n);
    }

    fn direct_counters(&mut self, from: usize, n: usize) {
        self.direct_of::<COUNTER_BYTES>(self.counters.handle(), from, n);
    }

    fn direct_of<const N: usize>(&mut self, map: MapHandle, from: usize, n: usize) {
        let order = &self.order;
        let ran = self.stack.function.with_firmware(|firmware| {
            let mut out = [0; N];
            for i in from..from + n {
                let key = &order[i & (ORDER - 1)];
                assert!(firmware.lookup(map, key, &mut out).is_success());
                black_box(&out);
            }
        });
        ran.expect("the device lives");
    }
}

fn threaded(blocks: usize, entries: usize, cpus: &Pinned) {
    let mut two = Two::new(blocks, entries, cpus);
    let trips = |two: &mut Two, _, n| two.partner.round_trips(n);
    let what = |what: &str| format!("{what}, {entries}");
    let r = two.against(1000, ECHO, Two::nops, trips);
    line(
        "threaded no-op / cache line both ways",
        r.ratio,
        None,
        &ns(&r),
    );
    let r = two.against(1000, ECHO, Two::counters, trips);
    line(
        &what("threaded lookup, 8 B / cache line both ways"),
        r.ratio,
        Some(1.5),
        &ns(&r),
    );
    let r = two.against(1000, ECHO, Two::lookups, trips);
    line(
        &what("threaded lookup, 64 B / cache line both ways"),
        r.ratio,
        Some(1.5),
        &ns(&r),
    );
    let ring = two.against(2048, RING, Two::pipeline, |two, _, n| two.partner.ring(n));
    let direct = two.against(2048, SLEEP, Two::pipeline, Two::direct);
    let small = two.against(2048, SLEEP, Two::pipelined_counters, Two::direct_counters);
    for (what, direct) in [("8 B", &small), ("64 B", &direct)] {
        // The ring's entry is the same for both; the pipeline's time is that of the value.
        let limit = ring.b_ns.max(direct.b_ns);
        line(
            &format!("pipelined 64, {what} / the slower of two limits, {entries}"),
            direct.a_ns / limit,
            Some(1.6),
            &format!("({:.1} ns to {limit:.1} ns)", direct.a_ns),
        );
    }
    println!(
        "  bare ring {:.1} ns an entry, direct {:.1} ns with 8 B, {:.1} ns with 64 B",
        ring.b_ns, small.b_ns, direct.b_ns
    );
}

/// Goes on with a dump, call after call, and begins again at its end.
struct Dump<'s> {
    subject: &'s mut dyn Subject,
    token: Option<Vec<u8>>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl<'s> Dump<'s> {
    fn new(subject: &'s mut dyn Subject) -> Self {
        Self {
            subject,
            token: None,
            keys: vec![0; PAGE * KEY_BYTES],
            values: vec![0; PAGE * VALUE_BYTES],
        }
    }

    /// One call: the time of it for each entry that it brought, in ns.
    fn page(&mut self) -> f64 {
        loop {
            let (keys, values) = (&mut self.keys, &mut self.values);
            let token = self.token.as_deref();
            let started = Instant::now();
            let walked = self
                .subject
                .walk_batch(token, keys, values, PAGE as u32, 0, false);
            let ns = started.elapsed().as_secs_f64() * 1e9;
            let end = walked.result == Err(libc::ENOENT);
            assert!(end || walked.result.is_ok(), "{:?}", walked.result);
            self.token = (!end).then_some(walked.cursor);
            // The page at the end is a short one, and would be judged by the cost of a call.
            if !end {
                return ns / f64::from(walked.count);
            }
        }
    }
}

/// Pages of a dump of a million entries, by batch calls.
fn dump(blocks: usize) {
    let all = keys(DUMPED);
    let mut kernel = match kernel_map(&all) {
        Ok(kernel) => kernel,
        Err(errno) => {
            println!("dump against the kernel: SKIPPED, its map cannot be created (errno {errno})");
            return;
        }
    };
    let inline = Stack::inline(device_config(DUMPED));
    let file = inline.map(&map_attr(DUMPED), true);
    fill(&file, &all);
    let mut ours = StackMap {
        name: "inline",
        file,
    };
    let (mut ours, mut kernel) = (Dump::new(&mut ours), Dump::new(&mut kernel));
    let (mut ratios, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..blocks {
        let (ta, tb);
        if i % 2 == 0 {
            ta = ours.page();
            tb = kernel.page();
        } else {
            tb = kernel.page();
            ta = ours.page();
        }
        ratios.push(tb / ta);
        a.push(ta);
        b.push(tb);
    }
    let (ratio, ours, theirs) = (median(ratios), median(a), median(b));
    let verdict = if ratio >= 8.0 { "PASS" } else { "SHORT" };
    println!(
        "{:<46} {ratio:>6.2}x  {:<20} ({theirs:.1} ns to {ours:.1} ns)",
        "kernel LOOKUP_BATCH / dump inline, per entry",
        format!("at least 8.0: {verdict}"),
    );
}

/// All of it.
pub(crate) fn run(blocks: usize, entries: usize) {
    let cpus = Pinned::new();
    if cpus.count() < 2 {
        println!("the ring between two processors: SKIPPED, there is only one");
    } else {
        // A table that stays in the caches shows the ring, and a larger one what a table adds.
        threaded(blocks, 1000, &cpus);
        threaded(blocks, entries, &cpus);
    }
    dump(blocks);
}
