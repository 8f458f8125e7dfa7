//! What a queue pair has done: counted by its owner, read by anybody at any time.
//!
//! A [`Meter`] has one writer, the thread that uses the queue pair. So a count goes up by a plain
//! load and a plain store, which other threads may read in between: no locked instruction and no
//! lock on the path of a command. Meters outlive their queue pairs in [`Meters`], the driver's list,
//! where the counts of pairs that are gone stay added to those of their successors.

use crate::config::Timing;
use offmap_abi::{IoOpcode, QueueId, Status};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Rows of the tables: opcodes by their low bits, which tell all of [`IoOpcode::ALL`] apart.
const OPS: usize = 32;
/// Columns: status codes, and in the last one those without a name.
const STATUSES: usize = 32;
const OTHER_STATUS: usize = STATUSES - 1;

const _: () = {
    let mut i = 0;
    while i < IoOpcode::ALL.len() {
        assert!((IoOpcode::ALL[i].0 as usize) < OPS);
        i += 1;
    }
    let mut i = 0;
    while i < Status::ALL.len() {
        assert!((Status::ALL[i].0 as usize) < OTHER_STATUS);
        i += 1;
    }
};

/// A count with one writer.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline(always)]
    pub(super) fn bump(&self) {
        self.add(1);
    }

    #[inline(always)]
    fn add(&self, n: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn counts<const N: usize>() -> [Count; N] {
    std::array::from_fn(|_| Count::default())
}

/// Events of a queue other than the beginning and the end of a command.
macro_rules! events {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// The counts of events.
        #[derive(Default)]
        pub(crate) struct Events {
            $(pub(super) $name: Count,)*
        }

        /// What happened on a queue, other than the beginning and the end of a command.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct QueueEvents {
            $($(#[$meta])* pub $name: u64,)*
        }

        impl Events {
            fn snapshot(&self) -> QueueEvents {
                QueueEvents { $($name: self.$name.get(),)* }
            }
        }

        impl QueueEvents {
            /// Every event with its name, in the order of the fields.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            fn absorb(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

events! {
    /// KICK register writes, which wake a device that sleeps.
    kicks,
    /// Submission doorbell writes.
    doorbells,
    /// Times that a waiter slept.
    sleeps,
    /// Sleeps that an interrupt ended; the others ended by their time.
    interrupts,
    /// Waits that reached their deadline.
    timeouts,
    /// Aborts asked for: by the deadline's end or by the user.
    aborts,
    /// Completions that were not acceptable; each broke its queue pair.
    rejected,
    /// Commands refused because every slot was taken.
    full,
    /// Times that the device was found to have stopped the queue.
    stopped,
    /// Queue pairs that broke, by whatever failure.
    failures,
    /// Resets of the queue: broken pairs whose deletion the device confirmed, so that the next
    /// one under the id starts anew.
    resets,
    /// Queue pairs that a reset of the function ended.
    function_resets,
}

/// Commands of one kind that were timed.
struct Times {
    buckets: [Count; BUCKETS],
    sum_ns: Count,
}

/// The counts of one queue pair. On cache lines of its own, so that no two queues' threads write
/// the same one.
#[repr(align(128))]
pub(crate) struct Meter {
    submitted: [Count; OPS],
    retries: [Count; OPS],
    /// By opcode, then status.
    ended: Box<[Count; OPS * STATUSES]>,
    pub(super) events: Events,
    times: Option<Box<[Times; OPS]>>,
}

impl Meter {
    pub(super) fn new(timing: Timing) -> Self {
        let times = || Times {
            buckets: counts(),
            sum_ns: Count::default(),
        };
        Self {
            submitted: counts(),
            retries: counts(),
            ended: Box::new(counts()),
            events: Events::default(),
            times: (timing != Timing::Off).then(|| Box::new(std::array::from_fn(|_| times()))),
        }
    }

    /// A command was stored in the ring.
    #[inline(always)]
    pub(super) fn submitted(&self, opcode: IoOpcode) {
        self.submitted[usize::from(opcode.0) % OPS].bump();
    }

    /// An operation is about to be tried once more.
    pub(super) fn retried(&self, opcode: IoOpcode) {
        self.retries[usize::from(opcode.0) % OPS].bump();
    }

    /// A completion was accepted; `kind` is [`Kind::byte`] of its command.
    #[inline(always)]
    pub(super) fn ended(&self, kind: Kind, status: Status) {
        let column = usize::from(status.0).min(OTHER_STATUS);
        self.ended[kind.row() * STATUSES + column].bump();
    }

    fn timed(&self, kind: Kind, took: Duration) {
        if let Some(times) = &self.times {
            let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let row = &times[kind.row()];
            row.buckets[bucket(ns)].bump();
            row.sum_ns.add(ns);
        }
    }

    pub(super) fn total_submitted(&self) -> u64 {
        self.submitted.iter().map(Count::get).sum()
    }

    pub(super) fn total_ended(&self) -> u64 {
        self.ended.iter().map(Count::get).sum()
    }

    /// The counts now, as those of a queue pair that is in use or, with `gone`, no more.
    fn snapshot(&self, queue: QueueId, gone: bool) -> QueueStats {
        let operation = |opcode: &IoOpcode| {
            let row = usize::from(opcode.0);
            let columns = &self.ended[row * STATUSES..][..STATUSES];
            // What ended is read before what began, so that no more seem to have ended.
            let statuses: Vec<(Status, u64)> = Status::ALL
                .iter()
                .map(|status| (*status, columns[usize::from(status.0)].get()))
                .filter(|(_, count)| *count > 0)
                .collect();
            let mut stats = OpStats {
                opcode: *opcode,
                submitted: 0,
                retries: self.retries[row].get(),
                statuses,
                other_statuses: columns[OTHER_STATUS].get(),
                unanswered: 0,
                times: TimeHistogram::default(),
            };
            if let Some(times) = &self.times {
                let times = &times[row];
                stats.times.sum_ns = times.sum_ns.get();
                stats.times.counts = times.buckets.iter().map(Count::get).collect();
            }
            stats.submitted = self.submitted[row].get();
            if gone {
                stats.unanswered = stats.submitted.saturating_sub(stats.completed());
            }
            (stats.submitted > 0 || stats.retries > 0).then_some(stats)
        };
        QueueStats {
            queue,
            pairs: 1,
            live: !gone,
            operations: IoOpcode::ALL.iter().filter_map(operation).collect(),
            events: self.events.snapshot(),
        }
    }
}

/// What a slot remembers of its command: the opcode, and whether the command is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind(u8);

impl Kind {
    const TIMED: u8 = 0x80;
    /// Of a slot that never had a command.
    pub(super) const NONE: Self = Self(0);

    #[inline(always)]
    pub(super) fn of(opcode: IoOpcode) -> Self {
        Self(opcode.0)
    }

    #[inline(always)]
    fn row(self) -> usize {
        usize::from(self.0) % OPS
    }

    #[inline(always)]
    pub(super) fn is_timed(self) -> bool {
        self.0 & Self::TIMED != 0
    }
}

/// The clock of a queue whose commands are timed, all or some.
pub(super) struct Timer {
    every: u32,
    /// Commands until the next one that is timed.
    left: u32,
    /// When the command in each slot began.
    started: Box<[Duration]>,
}

impl Timer {
    pub(super) fn new(timing: Timing, depth: usize) -> Option<Box<Self>> {
        let every = match timing {
            Timing::Off => return None,
            Timing::Every => 1,
            Timing::OneIn(n) => n.get(),
        };
        Some(Box::new(Self {
            every,
            left: 0,
            started: vec![Duration::ZERO; depth].into_boxed_slice(),
        }))
    }

    /// A command is about to take `slot`. Marks it when it is one that is timed.
    #[cold]
    pub(super) fn begin(&mut self, kind: &mut Kind, slot: u16, now: impl FnOnce() -> Duration) {
        if self.left > 0 {
            self.left -= 1;
            return;
        }
        self.left = self.every - 1;
        self.started[usize::from(slot)] = now();
        kind.0 |= Kind::TIMED;
    }

    /// The completion of a timed command was taken.
    #[cold]
    pub(super) fn end(&self, meter: &Meter, kind: Kind, slot: u16, now: Duration) {
        meter.timed(kind, now.saturating_sub(self.started[usize::from(slot)]));
    }
}

/// Power of two, in nanoseconds, beyond which times are no longer told apart: 69 s.
const LAST_OCTAVE: usize = 36;
/// Four to each power of two, and one for what is longer.
const BUCKETS: usize = (LAST_OCTAVE - 1) * 4 + 1;

/// The bucket of a time: of those up to [`upper_ns`].
fn bucket(ns: u64) -> usize {
    let v = ns.saturating_sub(1);
    if v < 4 {
        return v as usize;
    }
    let octave = 63 - v.leading_zeros() as usize;
    let sub = (v >> (octave - 2)) as usize % 4;
    ((octave - 1) * 4 + sub).min(BUCKETS - 1)
}

/// Longest time of a bucket, itself included; the last bucket has none.
fn upper_ns(bucket: usize) -> u64 {
    match bucket {
        0..4 => bucket as u64 + 1,
        _ => (5 + bucket as u64 % 4) << (bucket / 4 - 1),
    }
}

/// How long commands were in flight: from when they were stored in the ring until their
/// completions were taken from it.
///
/// Four buckets for each power of two of nanoseconds, up to 69 s: what comes out is at most a
/// quarter too long.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimeHistogram {
    /// By bucket; empty when nothing was timed.
    counts: Vec<u64>,
    sum_ns: u64,
}

impl TimeHistogram {
    /// Powers of two, in nanoseconds, that [`TimeHistogram::cumulative`] is told for: from 256 ns
    /// to 17 s.
    const BOUNDS: std::ops::RangeInclusive<usize> = 8..=34;

    /// Commands that were timed.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All their times together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The time that the fraction `q` of them (0 to 1) did not exceed, rounded up to the end of
    /// its bucket. `None` when nothing was timed; [`Duration::MAX`] beyond 69 s.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, in_bucket) in self.counts.iter().enumerate() {
            seen += in_bucket;
            if seen >= rank {
                let beyond = i == BUCKETS - 1;
                return Some(match beyond {
                    true => Duration::MAX,
                    false => Duration::from_nanos(upper_ns(i)),
                });
            }
        }
        None
    }

    /// Each power of two of nanoseconds from 256 ns to 17 s, and how many took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        Self::BOUNDS.map(|power| {
            let last = (power - 2) * 4 + 3;
            let within = self.counts.iter().take(last + 1).sum();
            (Duration::from_nanos(1 << power), within)
        })
    }

    fn absorb(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
        } else {
            for (to, from) in self.counts.iter_mut().zip(&other.counts) {
                *to += from;
            }
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }
}

/// What became of the commands of one kind on a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpStats {
    /// The kind.
    pub opcode: IoOpcode,
    /// Commands stored in the submission ring. A batch is one.
    pub submitted: u64,
    /// Operations that were begun again on this queue with a command of this kind, because they were
    /// cut off by a failure ([`crate::QueuePair::count_retry`]).
    pub retries: u64,
    /// Completions taken and accepted, by the statuses that occurred, in their order.
    pub statuses: Vec<(Status, u64)>,
    /// Completions with a status that this version of the ABI has no name for.
    pub other_statuses: u64,
    /// Commands of queue pairs that are gone whose completions were never taken: the device was
    /// reset, or the pair failed or was dropped under them.
    pub unanswered: u64,
    /// How long those were in flight that were timed ([`Timing`]).
    pub times: TimeHistogram,
}

impl OpStats {
    /// Completions taken and accepted.
    pub fn completed(&self) -> u64 {
        self.other_statuses + self.statuses.iter().map(|(_, n)| n).sum::<u64>()
    }

    /// Commands that are with the device now, or on a broken queue pair that is not replaced yet.
    pub fn in_flight(&self) -> u64 {
        self.submitted
            .saturating_sub(self.completed() + self.unanswered)
    }

    fn absorb(&mut self, other: &Self) {
        self.submitted += other.submitted;
        self.retries += other.retries;
        self.other_statuses += other.other_statuses;
        self.unanswered += other.unanswered;
        for (status, count) in &other.statuses {
            match self.statuses.binary_search_by_key(status, |(s, _)| *s) {
                Ok(at) => self.statuses[at].1 += count,
                Err(at) => self.statuses.insert(at, (*status, *count)),
            }
        }
        self.times.absorb(&other.times);
    }
}

/// What was done under one queue id, by the queue pair that has it now and by those before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueStats {
    /// The id.
    pub queue: QueueId,
    /// Queue pairs that have had it.
    pub pairs: u64,
    /// Whether one has it now.
    pub live: bool,
    /// By opcode; kinds that were never sent are left out.
    pub operations: Vec<OpStats>,
    /// What else happened.
    pub events: QueueEvents,
}

impl QueueStats {
    /// Adds the counts of `other`, which may be another queue's.
    pub fn absorb(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.live |= other.live;
        self.events.absorb(&other.events);
        for theirs in &other.operations {
            let found = |op: &OpStats| op.opcode;
            match self.operations.binary_search_by_key(&theirs.opcode, found) {
                Ok(at) => self.operations[at].absorb(theirs),
                Err(at) => self.operations.insert(at, theirs.clone()),
            }
        }
    }
}

/// What a driver has done since bring-up: all queues that there are and were.
///
/// Taken while others work, counts that belong together may be a few commands apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DriverStats {
    /// By queue id.
    pub queues: Vec<QueueStats>,
    /// Resets of the function that succeeded.
    pub resets: u64,
    /// Resets of the function that failed.
    pub failed_resets: u64,
}

impl DriverStats {
    /// All queues together, under the first one's id; `None` when there never was one.
    pub fn total(&self) -> Option<QueueStats> {
        let (first, others) = self.queues.split_first()?;
        let mut total = first.clone();
        others.iter().for_each(|queue| total.absorb(queue));
        Some(total)
    }
}

/// The meters of a driver.
#[derive(Default)]
pub(crate) struct Meters(Mutex<BTreeMap<u16, Entry>>);

#[derive(Default)]
struct Entry {
    gone: Option<QueueStats>,
    live: Option<Arc<Meter>>,
}

impl Entry {
    fn add(&mut self, stats: QueueStats) {
        match &mut self.gone {
            None => self.gone = Some(stats),
            Some(gone) => gone.absorb(&stats),
        }
    }
}

impl Meters {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<u16, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue pair has the id from now on.
    pub(super) fn begin(&self, queue: QueueId, meter: Arc<Meter>) {
        self.entries().entry(queue.0).or_default().live = Some(meter);
    }

    /// The queue pair that has the id goes. Before the id is free again.
    pub(super) fn end(&self, queue: QueueId) {
        if let Some(entry) = self.entries().get_mut(&queue.0)
            && let Some(meter) = entry.live.take()
        {
            entry.add(meter.snapshot(queue, true));
        }
    }

    /// The device has confirmed the deletion of a broken queue pair whose counting has ended.
    pub(crate) fn reset(&self, queue: QueueId) {
        if let Some(entry) = self.entries().get_mut(&queue.0)
            && let Some(gone) = &mut entry.gone
        {
            gone.events.resets += 1;
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<QueueStats> {
        let mut all = Vec::new();
        for (id, entry) in self.entries().iter() {
            let mut stats = entry.gone.clone();
            if let Some(meter) = &entry.live {
                let live = meter.snapshot(QueueId(*id), false);
                match &mut stats {
                    None => stats = Some(live),
                    Some(stats) => stats.absorb(&live),
                }
            }
            all.extend(stats);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_whose_end_it_does_not_pass() {
        let mut times: Vec<u64> = (0..5000).collect();
        times.extend((3..40).flat_map(|k| [(1 << k) - 1, 1 << k, (1 << k) + 1, 3 << (k - 1)]));
        for ns in times {
            let at = bucket(ns);
            if at < BUCKETS - 1 {
                assert!(ns <= upper_ns(at), "{ns} in bucket {at}");
            } else {
                assert!(ns > 1 << LAST_OCTAVE, "{ns} in the last bucket");
            }
            assert!(at == 0 || ns > upper_ns(at - 1), "{ns} in bucket {at}");
        }
        assert_eq!(upper_ns(BUCKETS - 2), 1 << LAST_OCTAVE);
    }

    #[test]
    fn what_is_told_of_a_histogram_follows_from_its_buckets() {
        let meter = Meter::new(Timing::Every);
        let kind = Kind::of(IoOpcode::Delete);
        for ns in [256, 257, 1000, 1000, 1_000_000] {
            meter.timed(kind, Duration::from_nanos(ns));
        }
        meter.submitted(IoOpcode::Delete);
        let stats = meter.snapshot(QueueId(3), true);
        assert_eq!(stats.operations[0].unanswered, 1);
        let mut times = stats.operations[0].times.clone();
        times.absorb(&times.clone());
        assert_eq!(
            (times.count(), times.sum()),
            (10, Duration::from_nanos(2_005_026))
        );
        let within: Vec<(Duration, u64)> = times.cumulative().collect();
        assert_eq!(within.len(), 27);
        assert_eq!(within[0], (Duration::from_nanos(256), 2));
        assert_eq!(within[1], (Duration::from_nanos(512), 4));
        assert_eq!(within[2], (Duration::from_nanos(1024), 8));
        assert_eq!(within[12], (Duration::from_nanos(1 << 20), 10));
        assert_eq!(times.quantile(0.0), Some(Duration::from_nanos(256)));
        assert_eq!(times.quantile(0.5), Some(Duration::from_nanos(1024)));
        assert_eq!(times.quantile(1.0), Some(Duration::from_nanos(1 << 20)));
        assert_eq!(TimeHistogram::default().quantile(0.5), None);
        assert_eq!(TimeHistogram::default().cumulative().count(), 27);
    }

    #[test]
    fn counts_of_pairs_that_are_gone_stay() {
        let meters = Meters::default();
        for status in [Status::NotFound, Status::Success, Status(0x7777)] {
            let meter = Arc::new(Meter::new(Timing::Off));
            meters.begin(QueueId(1), Arc::clone(&meter));
            meter.submitted(IoOpcode::Lookup);
            meter.submitted(IoOpcode::Lookup);
            meter.ended(Kind::of(IoOpcode::Lookup), status);
            meter.events.kicks.bump();
            let live = &meters.snapshot()[0];
            assert!(live.live);
            assert_eq!(live.operations[0].in_flight(), 1);
            meters.end(QueueId(1));
            meters.end(QueueId(1));
        }
        let all = meters.snapshot();
        assert_eq!((all.len(), all[0].pairs, all[0].live), (1, 3, false));
        assert_eq!(all[0].events.kicks, 3);
        let [lookup] = &all[0].operations[..] else {
            panic!("{all:?}");
        };
        let expected = [(Status::Success, 1), (Status::NotFound, 1)];
        assert_eq!(lookup.statuses, expected);
        assert_eq!((lookup.other_statuses, lookup.unanswered), (1, 3));
        assert_eq!((lookup.submitted, lookup.in_flight()), (6, 0));
    }

    #[test]
    fn one_of_n_commands_is_timed() {
        let three = std::num::NonZeroU32::new(3).unwrap();
        let mut timer = Timer::new(Timing::OneIn(three), 4).unwrap();
        let timed: Vec<bool> = (0..7)
            .map(|_| {
                let mut kind = Kind::of(IoOpcode::BatchDumpDelete);
                timer.begin(&mut kind, 0, || Duration::ZERO);
                assert_eq!(kind.row(), usize::from(IoOpcode::BatchDumpDelete.0));
                kind.is_timed()
            })
            .collect();
        assert_eq!(timed, [true, false, false, true, false, false, true]);
        assert!(Timer::new(Timing::Off, 4).is_none());
    }
}
