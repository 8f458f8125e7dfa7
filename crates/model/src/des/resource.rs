//! What is contended for: servers that serve one at a time, and pools of things alike.

use super::Time;
use std::collections::VecDeque;

/// Serves one customer after the other, in the order in which they come.
///
/// Who comes is told at once when it will be served, so that a service costs one event. That is
/// right as long as customers are announced at the time at which they come, not earlier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Server {
    free_at: Time,
    busy: u64,
}

impl Server {
    /// A customer comes `now` whose service takes that long; when it ends.
    #[inline]
    pub fn serve(&mut self, now: Time, service: u64) -> Time {
        self.free_at = self.free_at.max(now) + service;
        self.busy += service;
        self.free_at
    }

    /// A customer comes that cannot be served before `earliest`; when its service begins, and
    /// when it ends.
    #[inline]
    pub fn serve_after(&mut self, earliest: Time, service: u64) -> (Time, Time) {
        let begin = self.free_at.max(earliest);
        (begin, self.serve(earliest, service))
    }

    /// When everyone who has come is served.
    pub fn free_at(&self) -> Time {
        self.free_at
    }

    /// How long it has served up to `now`.
    pub fn served(&self, now: Time) -> u64 {
        // What is promised for later is one piece, since nobody waits while it is idle.
        self.busy - self.busy.min(self.free_at.saturating_sub(now))
    }
}

/// As many places as there are, each taken for a time that is known when it begins, in order.
///
/// A place is given back in the order in which they were taken, as in a queue of requests that
/// retires in order; where all stay equally long that makes no difference.
#[derive(Clone, Debug)]
pub struct Slots {
    until: Vec<Time>,
    next: usize,
    held: u64,
}

impl Slots {
    /// `places` of them, at least one.
    pub fn new(places: u32) -> Self {
        Self {
            until: vec![0; places.max(1) as usize],
            next: 0,
            held: 0,
        }
    }

    /// How many there are.
    pub fn places(&self) -> u64 {
        self.until.len() as u64
    }

    /// When the next one is free.
    #[inline]
    pub fn free_at(&self) -> Time {
        self.until[self.next]
    }

    /// Takes it, from `begin` to `end`.
    #[inline]
    pub fn take(&mut self, begin: Time, end: Time) {
        self.until[self.next] = end;
        self.next += 1;
        if self.next == self.until.len() {
            self.next = 0;
        }
        self.held += end - begin;
    }

    /// Place-time taken up to `now`.
    pub fn held(&self, now: Time) -> u64 {
        let later: u64 = self.until.iter().map(|&end| end.saturating_sub(now)).sum();
        self.held - self.held.min(later)
    }
}

/// Things alike that are held for a time that nobody knows before, and those that wait for one.
#[derive(Clone, Debug)]
pub struct Pool<T> {
    size: u64,
    free: u64,
    waiting: VecDeque<T>,
    held: u64,
    since: Time,
}

impl<T> Pool<T> {
    /// `size` of them.
    pub fn new(size: u32) -> Self {
        Self {
            size: size.into(),
            free: size.into(),
            waiting: VecDeque::new(),
            held: 0,
            since: 0,
        }
    }

    /// How many there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    #[inline]
    fn settle(&mut self, now: Time) {
        self.held += (self.size - self.free) * (now - self.since);
        self.since = now;
    }

    /// Takes one: the customer back, where it has one now; otherwise it waits.
    #[inline]
    pub fn take(&mut self, now: Time, customer: T) -> Option<T> {
        if self.free == 0 {
            self.waiting.push_back(customer);
            return None;
        }
        self.settle(now);
        self.free -= 1;
        Some(customer)
    }

    /// Gives one back: whoever waited longest has it now.
    #[inline]
    pub fn give(&mut self, now: Time) -> Option<T> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.settle(now);
            self.free += 1;
        }
        next
    }

    /// Time for which they were held up to `now`, of all together.
    pub fn held(&self, now: Time) -> u64 {
        self.held + (self.size - self.free) * (now - self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_serves_in_order() {
        let mut server = Server::default();
        assert_eq!(server.serve(10, 5), 15);
        assert_eq!(server.serve(11, 5), 20);
        assert_eq!(server.served(12), 2);
        assert_eq!(server.serve_after(30, 7), (30, 37));
        assert_eq!(server.served(40), 17);
    }

    #[test]
    fn slots_bound_what_is_outstanding() {
        let mut slots = Slots::new(2);
        slots.take(0, 100);
        slots.take(10, 110);
        assert_eq!(slots.free_at(), 100);
        slots.take(100, 200);
        assert_eq!(slots.free_at(), 110);
        assert_eq!(slots.held(110), 210);
    }

    #[test]
    fn a_pool_hands_on_in_order() {
        let mut pool = Pool::new(1);
        assert_eq!(pool.take(0, 'a'), Some('a'));
        assert_eq!(pool.take(1, 'b'), None);
        assert_eq!(pool.take(2, 'c'), None);
        assert_eq!(pool.waiting(), 2);
        assert_eq!(pool.give(5), Some('b'));
        assert_eq!(pool.give(6), Some('c'));
        assert_eq!(pool.give(9), None);
        assert_eq!(pool.held(20), 9);
    }
}
