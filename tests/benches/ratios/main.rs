//! The expected speed, as ratios: two sides in alternating blocks of at most a millisecond,
//! the median of the per-block ratios. Wall-clock time on shared processors moves too much
//! for anything else.
//!
//! `cargo bench -p offmap-tests --bench ratios [-- --quick] [--host | --ring | --served]`; the exit status is
//! 0 whether or not a bar is met, and each line says which it was. `--host` runs only the part on
//! host maps, `--ring` only that on the ring between two processors and the dump, `--served` only that on the device in another process. `OFFMAP_ENTRIES` and `OFFMAP_BLOCKS` set the sizes of the maps and of the sample.

mod host;
mod ring;
mod served;

use offmap_tests::report::env_number;
use offmap_tests::speed::{
    InlineMaps, KEY_BYTES, Key, Plain, VALUE_BYTES, Value, kernel_map, keys, order,
};
use offmap_tests::subject::Subject;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ENTRIES: usize = 65_536;
/// The keys are known beforehand, so that the processor may overlap the cache misses of
/// several lookups: what a loop over independent keys costs.
const FREE: bool = false;
/// The next key is known only when the value is there: what one lookup takes by itself. (Only
/// a table called directly can be anything but this; a round trip through a ring never
/// overlaps with the next.)
const CHAINED: bool = true;
/// Longest that one side runs before the other one's turn.
const BLOCK: Duration = Duration::from_millis(1);

/// A side of a comparison: does `n` operations from the `from`-th key on.
type Side<'a> = &'a mut dyn FnMut(usize, usize);

/// Median of the ratios of `a`'s time to `b`'s per operation, and both medians in ns.
struct Ratio {
    ratio: f64,
    a_ns: f64,
    b_ns: f64,
}

fn time(side: Side<'_>, from: usize, n: usize) -> f64 {
    let started = Instant::now();
    side(from, n);
    started.elapsed().as_secs_f64() * 1e9 / n as f64
}

/// How many operations take a little less than a block, in multiples of `unit`.
fn block_of(side: Side<'_>, unit: usize) -> usize {
    let mut n = unit;
    loop {
        let ns = time(side, 0, n) * n as f64;
        let block = BLOCK.as_nanos() as f64;
        if ns > block / 4.0 {
            let fitted = (n as f64 * block * 0.8 / ns) as usize;
            return (fitted / unit).max(1) * unit;
        }
        n *= 2;
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn compare(blocks: usize, unit: usize, a: Side<'_>, b: Side<'_>) -> Ratio {
    // The same operations on the same keys, as many as the slower side does in a block: were
    // each to fill its block, the faster one would visit its whole table in every block and
    // find it in the caches, and the slower one would find its own evicted.
    let n = block_of(a, unit).min(block_of(b, unit));
    let (mut ratios, mut at, mut bt) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..blocks {
        // Both sides see the same keys; who goes first takes turns.
        let from = i * n;
        let (ta, tb);
        if i % 2 == 0 {
            ta = time(a, from, n);
            tb = time(b, from, n);
        } else {
            tb = time(b, from, n);
            ta = time(a, from, n);
        }
        ratios.push(ta / tb);
        at.push(ta);
        bt.push(tb);
    }
    Ratio {
        ratio: median(ratios),
        a_ns: median(at),
        b_ns: median(bt),
    }
}

fn line(what: &str, value: f64, bar: Option<f64>, detail: &str) {
    let verdict = match bar {
        Some(bar) if value <= bar => format!("at most {bar:.1}: PASS"),
        Some(bar) => format!("at most {bar:.1}: SHORT"),
        None => "for information".into(),
    };
    println!("{what:<46} {value:>6.2}x  {verdict:<20} {detail}");
}

fn ns(ratio: &Ratio) -> String {
    format!("({:.1} ns to {:.1} ns)", ratio.a_ns, ratio.b_ns)
}

/// Calls `lookup` with `n` keys of `order` from the `from`-th on.
#[inline(always)]
fn each<const CHAINED: bool, K>(
    order: &[K],
    from: usize,
    n: usize,
    mut lookup: impl FnMut(&K, &mut Value),
) {
    let nothing = black_box(0usize);
    let mut out: Value = [0; VALUE_BYTES];
    let mut at = from % order.len();
    for _ in 0..n {
        // Adds 0, which the processor cannot know before it has the value.
        let more = if CHAINED {
            usize::from(out[0]) & nothing
        } else {
            0
        };
        let key = &order[at + more];
        lookup(key, &mut out);
        black_box(&out);
        at += 1;
        if at == order.len() {
            at = 0;
        }
    }
}

/// The sides, over one order of keys.
struct Sides {
    maps: InlineMaps,
    plain: Plain,
    order: Vec<Key>,
}

impl Sides {
    fn new(entries: usize) -> Self {
        let keys = keys(entries);
        Self {
            maps: InlineMaps::new(&keys),
            plain: Plain::new(&keys),
            order: order(&keys, 1 << 20),
        }
    }

    #[inline(always)]
    fn each<const CHAINED: bool>(
        &self,
        from: usize,
        n: usize,
        lookup: impl FnMut(&Key, &mut Value),
    ) {
        each::<CHAINED, _>(&self.order, from, n, lookup);
    }

    fn plain<const CHAINED: bool>(&self, from: usize, n: usize) {
        self.each::<CHAINED>(from, n, |key, out| {
            assert!(self.plain.lookup(key, out));
        });
    }

    fn direct<const CHAINED: bool>(&self, from: usize, n: usize) {
        let ran = self.maps.stack.function.with_firmware(|firmware| {
            self.each::<CHAINED>(from, n, |key, out| {
                assert!(firmware.lookup(self.maps.direct, key, out).is_success());
            });
        });
        ran.expect("the device lives");
    }

    fn inline<const CHAINED: bool>(&self, from: usize, n: usize) {
        self.each::<CHAINED>(from, n, |key, out| {
            self.maps.file.lookup(key, out, 0).expect("a hit");
        });
    }
}

/// The two ratios of single lookups.
fn lookups<const CHAINED: bool>(blocks: usize, sides: &Sides, how: &str) {
    let (plain, direct, inline) = (
        &mut |from, n| sides.plain::<CHAINED>(from, n),
        &mut |from, n| sides.direct::<CHAINED>(from, n),
        &mut |from, n| sides.inline::<CHAINED>(from, n),
    );
    let r = compare(blocks, 1, direct, plain);
    let what = format!("direct table lookup / hashbrown{how}");
    line(&what, r.ratio, Some(2.0), &ns(&r));
    let r = compare(blocks, 1, inline, direct);
    let what = format!("inline lookup / direct{how}");
    line(&what, r.ratio, Some(3.0), &ns(&r));
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let entries = env_number("OFFMAP_ENTRIES").map_or(ENTRIES, |n| n as usize);
    let blocks = env_number("OFFMAP_BLOCKS").map_or(if quick { 101 } else { 501 }, |n| n as usize);
    println!(
        "{KEY_BYTES} B keys, {VALUE_BYTES} B values, {entries} entries; medians of {blocks} pairs \
         of blocks of at most {BLOCK:?}"
    );
    if std::env::args().any(|arg| arg == "--host") {
        host::run(blocks, entries);
        return;
    }
    if std::env::args().any(|arg| arg == "--ring") {
        ring::run(blocks, entries);
        return;
    }
    if std::env::args().any(|arg| arg == "--served") {
        served::run(blocks);
        return;
    }
    let sides = Sides::new(entries);
    {
        lookups::<FREE>(blocks, &sides, "");
        lookups::<CHAINED>(blocks, &sides, ", one by one");
        let (direct, inline) = (
            &mut |from, n| sides.direct::<FREE>(from, n),
            &mut |from, n| sides.inline::<FREE>(from, n),
        );

        const BATCH: usize = 64;
        let mut values = vec![0; BATCH * VALUE_BYTES];
        let mut results = vec![Ok(()); BATCH];
        let batch = &mut |from: usize, n: usize| {
            for at in (from..from + n).step_by(BATCH) {
                let at = at / BATCH * BATCH % sides.order.len();
                let keys = sides.order[at..at + BATCH].as_flattened();
                let file = &sides.maps.file;
                file.lookup_many(keys, &mut values, &mut results)
                    .expect("a batch");
                assert!(results.iter().all(Result::is_ok));
                black_box(&values);
            }
        };
        let r = compare(blocks, BATCH, batch, direct);
        line(
            "batch of 64, inline, per element / direct",
            r.ratio,
            Some(1.6),
            &ns(&r),
        );

        match kernel_map(&keys(entries)) {
            Ok(map) => {
                let map = std::cell::RefCell::new(map);
                let kernel = &mut |from: usize, n: usize| {
                    let mut map = map.borrow_mut();
                    sides.each::<FREE>(from, n, |key, out| {
                        map.lookup(key, out, 0).expect("a hit");
                    });
                };
                let r = compare(blocks, 1, inline, kernel);
                line(
                    "inline lookup / kernel map by bpf(2)",
                    r.ratio,
                    None,
                    &ns(&r),
                );
            }
            Err(errno) => println!("kernel map: SKIPPED, it cannot be created (errno {errno})"),
        }
    }
    drop(sides);
    host::run(blocks, entries);
    ring::run(blocks, entries);
    served::run(blocks);
    growth(blocks, quick);
}

/// What a lookup costs in larger maps, against the same size of hashbrown: the growth of
/// ours from 1,000 entries on, divided by hashbrown's.
fn growth(blocks: usize, quick: bool) {
    let sizes: &[usize] = if quick {
        &[1_000, 64_000, 1_000_000]
    } else {
        &[1_000, 64_000, 1_000_000, 10_000_000]
    };
    let mut first = None;
    for &entries in sizes {
        let sides = Sides::new(entries);
        let plain = &mut |from, n| sides.plain::<FREE>(from, n);
        let direct = compare(
            blocks,
            1,
            &mut |from, n| sides.direct::<FREE>(from, n),
            plain,
        );
        let inline = compare(
            blocks,
            1,
            &mut |from, n| sides.inline::<FREE>(from, n),
            plain,
        );
        // ours(n)/ours(1k) ÷ plain(n)/plain(1k) = ratio(n) / ratio(1k).
        let (d, i) = *first.get_or_insert((direct.ratio, inline.ratio));
        for (what, ratio, base) in [("direct", &direct, d), ("inline", &inline, i)] {
            let name = format!("growth of {what}, 1k to {entries}, / hashbrown's");
            line(&name, ratio.ratio / base, Some(1.5), &ns(ratio));
        }
    }
}
