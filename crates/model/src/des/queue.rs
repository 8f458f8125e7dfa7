//! The events that are to come: a radix heap.
//!
//! Time never goes back, so a heap need not order all of its events: one is kept by the highest
//! bit in which its time differs from the present (Ahuja, Mehlhorn, Orlin, Tarjan: "Faster
//! algorithms for the shortest path problem", 1990). Only the bucket that comes next is parted
//! further, in the order in which its events came, so that events of one moment leave in the order
//! in which they were scheduled. `benches/events.rs` holds it against heaps of two and four
//! children.

use super::Time;

/// Buckets: one for the present, one for each bit that may differ.
const BUCKETS: usize = 65;

/// Events by time, and of one time by the order in which they were scheduled.
#[derive(Clone, Debug)]
pub struct EventQueue<E> {
    /// The present: the time of the event that left last, and of all in bucket 0.
    now: Time,
    /// Events of bucket 0 that have left.
    left: usize,
    buckets: Vec<Vec<(Time, E)>>,
    /// Bit `n` is set where bucket `n + 1` is not empty.
    filled: u64,
    /// The bucket that is being parted; kept for its memory.
    parting: Vec<(Time, E)>,
    len: usize,
}

impl<E: Copy> Default for EventQueue<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Copy> EventQueue<E> {
    /// An empty one, at time 0.
    pub fn new() -> Self {
        Self {
            now: 0,
            left: 0,
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            filled: 0,
            parting: Vec::new(),
            len: 0,
        }
    }

    /// The time of the event that left last.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Events that are to come.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Schedules an event. One of the past takes place now: a caller that asks for it has a defect,
    /// which debug builds say.
    #[inline]
    pub fn push(&mut self, at: Time, event: E) {
        debug_assert!(at >= self.now, "an event at {at}, and it is {}", self.now);
        let at = at.max(self.now);
        self.len += 1;
        self.put(at, event);
    }

    #[inline(always)]
    fn put(&mut self, at: Time, event: E) {
        let bucket = (u64::BITS - (at ^ self.now).leading_zeros()) as usize;
        self.buckets[bucket].push((at, event));
        if bucket != 0 {
            self.filled |= 1 << (bucket - 1);
        }
    }

    /// The next event and its time, which is the present from now on.
    #[inline]
    pub fn pop(&mut self) -> Option<(Time, E)> {
        if let Some(&(at, event)) = self.buckets[0].get(self.left) {
            self.left += 1;
            self.len -= 1;
            return Some((at, event));
        }
        self.buckets[0].clear();
        self.left = 0;
        if self.filled == 0 {
            return None;
        }
        let bucket = self.filled.trailing_zeros() as usize + 1;
        self.filled &= self.filled - 1;
        self.len -= 1;
        if let [(at, event)] = self.buckets[bucket][..] {
            self.buckets[bucket].clear();
            self.now = at;
            return Some((at, event));
        }
        // The bucket's memory and that of the one parted before change places.
        let empty = std::mem::take(&mut self.parting);
        let mut parting = std::mem::replace(&mut self.buckets[bucket], empty);
        self.now = parting.iter().map(|&(at, _)| at).min().unwrap_or(self.now);
        for &(at, event) in &parting {
            self.put(at, event);
        }
        parting.clear();
        self.parting = parting;
        self.left = 1;
        self.buckets[0].first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::des::random::Random;

    #[test]
    fn it_is_a_stable_sort() {
        let mut random = Random::new(7, 0);
        for spread in [1, 3, 1 << 10, 1 << 40] {
            let mut queue = EventQueue::new();
            let mut model: Vec<(Time, u32)> = Vec::new();
            let mut now = 0;
            for n in 0..20_000u32 {
                if random.below(3) != 0 || model.is_empty() {
                    let at = now + random.below(spread);
                    queue.push(at, n);
                    model.push((at, n));
                } else {
                    let next = (0..model.len()).min_by_key(|&i| model[i]).unwrap_or(0);
                    let expected = model.swap_remove(next);
                    assert_eq!(queue.pop(), Some(expected));
                    now = expected.0;
                    assert_eq!(queue.now(), now);
                }
                assert_eq!(queue.len(), model.len());
                // The model is slow: it stays short.
                if model.len() > 300 {
                    model.sort_unstable();
                    for expected in model.drain(..) {
                        assert_eq!(queue.pop(), Some(expected));
                        now = expected.0;
                    }
                    assert!(queue.is_empty());
                }
            }
        }
        assert_eq!(EventQueue::<u8>::new().pop(), None);
    }

    #[test]
    fn the_end_of_time_is_a_time() {
        let mut queue = EventQueue::new();
        queue.push(Time::MAX, 2);
        queue.push(0, 1);
        assert_eq!(queue.pop(), Some((0, 1)));
        assert_eq!(queue.pop(), Some((Time::MAX, 2)));
        assert_eq!(queue.pop(), None);
    }
}
