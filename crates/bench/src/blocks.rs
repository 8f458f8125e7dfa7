//! Sides in alternating blocks of at most a millisecond.
//!
//! Wall-clock time on shared processors drifts, between modes that differ by a factor and within
//! seconds. What is compared is therefore done in turns, in short blocks of the same operations, and the figure
//! is the median of the ratios block by block.

use crate::error::{Measured, Unavailable};
use crate::plan::Group;
use crate::sides::{BackEnd, Side, World};
use crate::workload::{Op, Trace, Workload};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest that one side runs before the next one's turn.
pub const BLOCK: Duration = Duration::from_millis(1);
/// Elements before each block, so that a side finds its table where it would be in steady work.
const WARM: usize = 512;
/// Where in the order of keys the timed ones begin: far from those that wake a side. A multiple of each batch.
const FAR: usize = 1 << 16;
/// Pairs of readings from which the clock's own cost is taken.
const CLOCK_READINGS: usize = 2001;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Amount {
    /// Turns of each side.
    pub blocks: usize,
    /// Calls of each side whose time is taken one by one.
    pub calls: usize,
}

/// A slowdown on purpose: that back end's blocks take so much longer, as a fraction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Planted {
    /// Whose.
    pub back_end: BackEnd,
    /// How much: 0.1 is ten percent.
    pub fraction: f64,
}

/// What one side showed.
#[derive(Debug)]
pub struct Samples {
    /// Which side.
    pub back_end: BackEnd,
    /// Nanoseconds for each element, turn by turn.
    pub blocks: Vec<f64>,
    /// Nanoseconds of calls, one by one, without the clock's own cost.
    pub calls: Histogram<u64>,
    /// Why there is nothing, or not all.
    pub unavailable: Option<Unavailable>,
    /// See [`Side::answers`].
    pub answers: BTreeMap<i32, u64>,
}

/// The median; NaN of nothing.
pub fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

impl Samples {
    fn new(back_end: BackEnd) -> Self {
        Self {
            back_end,
            blocks: Vec::new(),
            // Three digits, up to what no call takes; it grows by itself.
            calls: Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed")),
            unavailable: None,
            answers: BTreeMap::new(),
        }
    }

    /// Median of the ratios to another side's blocks, turn by turn.
    pub fn ratio(&self, to: &Self) -> f64 {
        let ratios: Vec<f64> = self
            .blocks
            .iter()
            .zip(&to.blocks)
            .map(|(a, b)| a / b)
            .collect();
        median(&ratios)
    }
}

/// What reading the clock twice takes: the median, in nanoseconds.
pub fn clock_cost() -> u64 {
    let mut taken: Vec<u64> = (0..CLOCK_READINGS)
        .map(|_| Instant::now().elapsed().as_nanos() as u64)
        .collect();
    taken.sort_unstable();
    taken[taken.len() / 2]
}

fn time(side: &mut dyn Side, from: usize, n: usize, planted: f64) -> Measured<f64> {
    let started = Instant::now();
    let done = side.run(from, n)?;
    if planted > 0.0 {
        let until = started.elapsed().mul_f64(1.0 + planted);
        while started.elapsed() < until {
            std::hint::spin_loop();
        }
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / done.max(1) as f64)
}

/// How many elements take a little less than a block.
fn fit(side: &mut dyn Side, unit: usize) -> Measured<usize> {
    let most = side.most() / unit * unit;
    let block = BLOCK.as_nanos() as f64;
    let mut n = unit;
    side.wake()?;
    let fitted = loop {
        side.prepare(0, n)?;
        let started = Instant::now();
        side.run(0, n)?;
        let ns = started.elapsed().as_nanos().max(1) as f64;
        if ns > block / 4.0 || n * 2 > most {
            break (n as f64 * block * 0.8 / ns) as usize;
        }
        n *= 2;
    };
    side.rest();
    Ok((fitted / unit)
        .max(1)
        .saturating_mul(unit)
        .min(most.max(unit)))
}

struct Turn {
    side: Box<dyn Side>,
    samples: Samples,
    planted: f64,
}

impl Turn {
    fn block(&mut self, workload: &Workload, from: usize, n: usize) -> Measured<f64> {
        let unit = workload.unit();
        self.side.wake()?;
        if !matches!(workload.op, Op::Insert | Op::Delete) {
            // The keys before those that are timed, which would be in the caches otherwise.
            let warm = n.min(WARM).next_multiple_of(unit);
            self.side.run(from + FAR - warm, warm)?;
        }
        self.side.prepare(from + FAR, n)?;
        let ns = time(&mut *self.side, from + FAR, n, self.planted);
        self.side.rest();
        ns
    }

    /// Calls, each with the clock around it.
    fn calls(&mut self, workload: &Workload, calls: usize, clock: u64) -> Measured<()> {
        let unit = workload.unit();
        let calls = calls.min(self.side.most() / unit);
        self.side.wake()?;
        self.side.prepare(FAR, calls * unit)?;
        for at in 0..calls {
            let started = Instant::now();
            self.side.run(FAR + at * unit, unit)?;
            let mut ns = started.elapsed().as_nanos() as u64;
            ns = ns.saturating_sub(clock);
            ns += (ns as f64 * self.planted) as u64;
            // It grows by itself: every value fits.
            let _ = self.samples.calls.record(ns);
        }
        self.side.rest();
        Ok(())
    }
}

/// Measures a group's sides against each other. A side that cannot be had, or that fails, stands in the result
/// with its reason.
pub fn measure(
    world: &World,
    group: &Group,
    amount: Amount,
    seed: u64,
    planted: Option<Planted>,
    progress: &mut dyn FnMut(),
) -> Vec<Samples> {
    let workload = &group.workload;
    // A sequence brings its own keys.
    let trace = match &group.sequence {
        None => Trace::new(workload, seed),
        Some(_) => Trace::new(
            &Workload {
                entries: 1,
                ..*workload
            },
            seed,
        ),
    };
    let mut out = Vec::new();
    let mut turns = Vec::new();
    let mut n = usize::MAX;
    let unit = workload.unit();
    for &back_end in &group.sides {
        let mut samples = Samples::new(back_end);
        let side = match &group.sequence {
            None => world.side(back_end, workload, &trace),
            Some(sequence) => world.mixed(back_end, workload, sequence),
        };
        let side = side.and_then(|mut side| fit(&mut *side, unit).map(|fits| (side, fits)));
        match side {
            Ok((side, fits)) => {
                n = n.min(fits);
                samples.answers = side.answers();
                let planted = planted.filter(|p| p.back_end == back_end);
                turns.push(Turn {
                    side,
                    samples,
                    planted: planted.map_or(0.0, |p| p.fraction),
                });
            }
            Err(why) => {
                samples.unavailable = Some(why);
                out.push(samples);
            }
        }
    }
    let clock = clock_cost();
    for i in 0..amount.blocks {
        // Everybody sees the same keys, and goes first in turns.
        let count = turns.len();
        for k in 0..count {
            let turn = &mut turns[(i + k) % count];
            if turn.samples.unavailable.is_some() {
                continue;
            }
            match turn.block(workload, i * n, n) {
                Ok(ns) => turn.samples.blocks.push(ns),
                Err(why) => turn.samples.unavailable = Some(why),
            }
        }
        progress();
    }
    for mut turn in turns {
        if turn.samples.unavailable.is_none()
            && let Err(why) = turn.calls(workload, amount.calls, clock)
        {
            turn.samples.unavailable = Some(why);
        }
        out.push(turn.samples);
    }
    // As the group lists them.
    out.sort_by_key(|samples| {
        group
            .sides
            .iter()
            .position(|side| *side == samples.back_end)
    });
    out
}
