//! What operations wait for: things that serve one at a time, or a few.
//!
//! Commands are charged one after the other, each to its end, although on the device they are under way
//! together. A resource therefore keeps the times at which it is taken, and a later charge may fall into a
//! gap that an earlier one left. What is booked stays booked: the work of all is done, one piece at a time, in
//! an order that does not depend on when it was charged where nothing contends.

use super::Picos;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Intervals that a [`Server`] remembers. Beyond that the oldest is forgotten, and nothing is booked before its
/// end any more.
const REMEMBERED: usize = 32;

/// Something that serves one request at a time: a direction of a link, a port of memory, a DMA engine's front.
#[derive(Clone, Debug)]
pub struct Server {
    /// When it is taken, as beginnings and ends: ordered, apart from each other. The first `len` from `first` on,
    /// going round.
    taken: [(u64, u64); REMEMBERED],
    first: usize,
    len: usize,
    /// Nothing is booked before this.
    floor: u64,
    /// The end of the last interval.
    end: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            taken: [(0, 0); REMEMBERED],
            first: 0,
            len: 0,
            floor: 0,
            end: 0,
        }
    }
}

impl Server {
    /// Books `service` at the first moment from `at` on at which there is a gap that is long enough; when it
    /// begins.
    #[inline]
    pub fn book(&mut self, at: Picos, service: Picos) -> Picos {
        if at.0 >= self.end {
            self.append(at.0, service.0);
            return at;
        }
        Picos(self.book_between(at.0, service.0))
    }

    /// The end of all that is booked.
    pub fn end(&self) -> Picos {
        Picos(self.end)
    }

    #[inline(always)]
    fn slot(&self, n: usize) -> usize {
        (self.first + n) % REMEMBERED
    }

    /// Books from `at` on, where nothing later is booked.
    #[inline(always)]
    fn append(&mut self, at: u64, service: u64) {
        if service == 0 {
            return;
        }
        let end = at.saturating_add(service);
        if at == self.end && self.len > 0 {
            let last = self.slot(self.len - 1);
            self.taken[last].1 = end;
        } else {
            if self.len == REMEMBERED {
                self.floor = self.taken[self.first].1;
                self.first = (self.first + 1) % REMEMBERED;
                self.len -= 1;
            }
            let next = self.slot(self.len);
            self.taken[next] = (at, end);
            self.len += 1;
        }
        self.end = end;
    }

    #[inline(never)]
    fn book_between(&mut self, at: u64, service: u64) -> u64 {
        let mut start = at.max(self.floor);
        let mut n = 0;
        // Those that end before are of no interest. Most charges are late ones, so the search goes backwards.
        let mut before = self.len;
        while before > 0 && self.taken[self.slot(before - 1)].1 > start {
            before -= 1;
        }
        n += before;
        while n < self.len {
            let (from, to) = self.taken[self.slot(n)];
            if start.saturating_add(service) <= from {
                break;
            }
            start = start.max(to);
            n += 1;
        }
        if service == 0 {
            return start;
        }
        if n == self.len {
            self.append(start, service);
        } else {
            self.insert(n, start, start.saturating_add(service));
        }
        start
    }

    /// Puts an interval before the `n`-th, which it does not touch on.
    fn insert(&mut self, n: usize, from: u64, to: u64) {
        let joins_next = self.taken[self.slot(n)].0 == to;
        let joins_last = n > 0 && self.taken[self.slot(n - 1)].1 == from;
        match (joins_last, joins_next) {
            (true, true) => {
                let (this, last) = (self.slot(n), self.slot(n - 1));
                self.taken[last].1 = self.taken[this].1;
                for i in n..self.len - 1 {
                    let (here, there) = (self.slot(i), self.slot(i + 1));
                    self.taken[here] = self.taken[there];
                }
                self.len -= 1;
            }
            (true, false) => {
                let last = self.slot(n - 1);
                self.taken[last].1 = to;
            }
            (false, true) => {
                let this = self.slot(n);
                self.taken[this].0 = from;
            }
            (false, false) => {
                let mut n = n;
                if self.len == REMEMBERED {
                    if n == 0 {
                        // It would be forgotten at once.
                        self.floor = self.floor.max(to);
                        return;
                    }
                    self.floor = self.taken[self.first].1;
                    self.first = (self.first + 1) % REMEMBERED;
                    self.len -= 1;
                    n -= 1;
                }
                for i in (n..self.len).rev() {
                    let (here, there) = (self.slot(i), self.slot(i + 1));
                    self.taken[there] = self.taken[here];
                }
                let this = self.slot(n);
                self.taken[this] = (from, to);
                self.len += 1;
            }
        }
    }
}

/// A place that a [`Pool`] has granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    place: usize,
    /// From when on.
    pub from: Picos,
}

/// Several places, each for one at a time: tags, engines, accesses that may be outstanding.
#[derive(Clone, Debug)]
pub struct Pool {
    places: Box<[Server]>,
    next: usize,
}

impl Pool {
    /// That many places, at least one.
    pub fn new(places: u32) -> Self {
        let places: Vec<Server> = (0..places.max(1)).map(|_| Server::default()).collect();
        Self {
            places: places.into_boxed_slice(),
            next: 0,
        }
    }

    /// A place that is free for `hold` at the first moment from `at` on at which one is. It is taken when it is
    /// handed back: [`Pool::hand_back`].
    #[inline]
    pub fn ask(&mut self, at: Picos, hold: Picos) -> Grant {
        let place = self.next;
        // What is free after all that was booked is free.
        if self.places[place].end <= at.0 {
            self.next = if place + 1 == self.places.len() {
                0
            } else {
                place + 1
            };
            return Grant { place, from: at };
        }
        self.search(at, hold)
    }

    #[inline(never)]
    fn search(&mut self, at: Picos, hold: Picos) -> Grant {
        let mut best = Grant {
            place: self.next,
            from: Picos::MAX,
        };
        for n in 0..self.places.len() {
            let place = (self.next + n) % self.places.len();
            let from = self.places[place].first_gap(at.0, hold.0);
            if from < best.from.0 {
                best = Grant {
                    place,
                    from: Picos(from),
                };
                if from == at.0 {
                    break;
                }
            }
        }
        self.next = (best.place + 1) % self.places.len();
        best
    }

    /// Hands a place back at `until`. Where that is later than was asked for, and somebody has booked meanwhile, it
    /// counts up to then.
    #[inline]
    pub fn hand_back(&mut self, grant: Grant, until: Picos) {
        let place = &mut self.places[grant.place];
        if grant.from.0 >= place.end {
            place.append(grant.from.0, until.0.saturating_sub(grant.from.0));
            return;
        }
        let room = place.gap_after(grant.from.0);
        let service = until.0.saturating_sub(grant.from.0).min(room);
        place.book_between(grant.from.0, service);
    }
}

impl Server {
    /// When [`Server::book`] would begin.
    fn first_gap(&self, at: u64, service: u64) -> u64 {
        let mut start = at.max(self.floor);
        for n in 0..self.len {
            let (from, to) = self.taken[self.slot(n)];
            if to <= start {
                continue;
            }
            if start.saturating_add(service) <= from {
                break;
            }
            start = to;
        }
        start
    }

    /// For how long nothing is booked from a moment on at which nothing is.
    fn gap_after(&self, at: u64) -> u64 {
        (0..self.len)
            .map(|n| self.taken[self.slot(n)].0)
            .find(|from| *from >= at)
            .map_or(u64::MAX, |from| from - at)
    }
}

/// A cache of which only the tags are modelled: sets of four, the one that was not used for longest goes. An IOTLB,
/// and a cache in front of memory.
#[derive(Clone, Debug)]
pub struct Tags {
    /// Of each set, the latest one first. 0: none; otherwise the line's number and 1.
    sets: Box<[[u64; WAYS]]>,
    /// A line's number is an address without these bits.
    shift: u32,
    mask: u64,
    /// The line that was asked for last.
    last: u64,
}

/// Lines of a set.
const WAYS: usize = 4;

impl Tags {
    /// For `lines` lines (rounded up to a power of two, four at least) of `line_bytes`, a power of two.
    pub fn new(lines: u64, line_bytes: u64) -> Self {
        let sets = (lines.next_power_of_two() as usize / WAYS).max(1);
        Self {
            sets: alloc::vec![[0; WAYS]; sets].into_boxed_slice(),
            shift: line_bytes.trailing_zeros(),
            mask: sets as u64 - 1,
            last: 0,
        }
    }

    /// Whether the line with the byte at `address` is there; it is afterwards.
    #[inline(always)]
    pub fn touch(&mut self, address: u64) -> bool {
        let line = (address >> self.shift) + 1;
        if line == self.last {
            return true;
        }
        self.last = line;
        self.look(line)
    }

    /// Whether the line is the latest one of its set, so that to touch it changes nothing.
    #[inline(always)]
    pub fn is_latest(&self, address: u64) -> bool {
        let line = (address >> self.shift) + 1;
        self.sets[self.set_of(line)][0] == line
    }

    /// Neighbours fall into different sets, whatever regular distance lies between addresses.
    #[inline(always)]
    fn set_of(&self, line: u64) -> usize {
        let mixed = line ^ (line >> 17) ^ (line >> 31);
        (mixed & self.mask) as usize
    }

    #[inline]
    fn look(&mut self, line: u64) -> bool {
        let set = self.set_of(line);
        let set = &mut self.sets[set];
        let mut moved = line;
        for way in set.iter_mut() {
            core::mem::swap(way, &mut moved);
            if moved == line {
                return true;
            }
        }
        false
    }

    /// Forgets all lines.
    pub fn clear(&mut self) {
        self.sets.fill([0; WAYS]);
        self.last = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other_and_gaps_are_filled() {
        let mut server = Server::default();
        let mut book = |at, service| server.book(Picos(at), Picos(service)).0;
        assert_eq!(book(0, 10), 0);
        assert_eq!(book(0, 10), 10);
        assert_eq!(book(100, 10), 100);
        assert_eq!(book(0, 80), 20, "fills the gap to the end");
        assert_eq!(book(0, 1), 110);
        assert_eq!(book(200, 10), 200);
        assert_eq!(book(105, 90), 210, "too long for the gap");
        assert_eq!(book(105, 89), 111);
        assert_eq!(book(50, 0), 300, "nothing has no place where something is");
    }

    /// Against a line of units of time, each taken or not.
    #[test]
    fn it_is_the_first_gap_that_there_is() {
        let mut seed = 1_u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..300 {
            let mut server = Server::default();
            let mut units = alloc::vec![false; 400];
            // Few enough that none is forgotten.
            for _ in 0..REMEMBERED {
                let (at, service) = (random(100) as usize, 1 + random(6) as usize);
                let free = |from: &usize| units[*from..*from + service].iter().all(|t| !t);
                let expected = (at..390).find(free).unwrap();
                let ours = server.book(Picos(at as u64), Picos(service as u64));
                assert_eq!(ours.0 as usize, expected);
                units[expected..expected + service].fill(true);
            }
        }
    }

    #[test]
    fn what_is_forgotten_is_not_booked_again() {
        let mut server = Server::default();
        for n in 0..100 {
            assert_eq!(server.book(Picos(n * 10), Picos(5)).0, n * 10);
        }
        let early = server.book(Picos(0), Picos(5)).0;
        assert_eq!(early, (100 - REMEMBERED as u64 - 1) * 10 + 5);
        // Full and contended, work is never done twice at a time: the ends grow by what was booked.
        let mut total = 0;
        for n in 0..1000 {
            total = total.max(server.book(Picos(n % 7 * 100), Picos(3)).0);
        }
        assert!(total >= 1000 * 3 - 2 * 100 * 5, "{total}");
    }

    #[test]
    fn places_are_given_out_until_there_is_none() {
        let mut pool = Pool::new(2);
        let mut hold = |at, for_| {
            let grant = pool.ask(Picos(at), Picos(for_));
            pool.hand_back(grant, grant.from + Picos(for_));
            grant.from.0
        };
        assert_eq!(
            [hold(0, 100), hold(0, 100), hold(0, 100), hold(0, 100)],
            [0, 0, 100, 100]
        );
        assert_eq!(hold(1000, 10), 1000);
        assert_eq!(hold(1000, 10), 1000);
        // Before those, between what is booked.
        assert_eq!([hold(0, 500), hold(0, 500), hold(0, 500)], [200, 200, 1010]);
    }

    #[test]
    fn a_cache_knows_what_it_saw_and_forgets_the_oldest() {
        let mut tags = Tags::new(64, 4096);
        for page in 0..64 {
            assert!(!tags.touch(page << 12), "{page}");
        }
        for page in 0..64 {
            assert!(tags.touch((page << 12) + 4095), "{page}");
        }
        // One more in a set of four: of that set the oldest is gone.
        assert!(!tags.touch(64 << 12));
        assert!(!tags.touch(0) || !tags.touch(15 << 12) || !tags.touch(16 << 12));
        tags.clear();
        assert!(!tags.touch(64 << 12));
        let mut small = Tags::new(4, 64);
        let hits = [1, 2, 3, 4, 1, 5, 1, 2].map(|n| small.touch(n * 64));
        assert_eq!(hits, [false, false, false, false, true, false, true, false]);
        let seen: Vec<bool> = [1, 3, 2, 4].map(|n| small.touch(n * 64)).to_vec();
        assert_eq!(seen, [true, false, true, false]);
    }
}
