//! What two processors can do at best: a cache line there and back, and a bare ring.
//!
//! The partner is a thread on the second processor, asleep but in its turns.

use super::Side;
use super::file::ASLEEP;
use crate::error::Measured;
use crossbeam_utils::CachePadded;
use std::cell::RefCell;
use std::hint::{black_box, spin_loop};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::{self, JoinHandle};

/// Words of an entry of the ring: a cache line.
const WORDS: usize = 8;
/// Entries of the ring, for half as many on their way.
const ENTRIES: usize = 128;
/// Round trips, or entries, before a block.
const WAKE: usize = 256;

const SLEEP: u32 = 0;
const ECHO: u32 = 1;
const RING: u32 = 2;
const END: u32 = 3;

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS]);

struct Shared {
    mode: CachePadded<AtomicU32>,
    /// The partner is asleep, or about to be.
    asleep: CachePadded<AtomicBool>,
    there: CachePadded<AtomicU64>,
    back: CachePadded<AtomicU64>,
    submissions: [Line; ENTRIES],
    completions: [Line; ENTRIES],
}

/// The other end.
pub struct Partner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    trips: u64,
    sent: u64,
    taken: u64,
}

impl Partner {
    /// A thread where the caller is bound.
    pub fn spawn() -> Self {
        let lines = || std::array::from_fn(|_| Line::default());
        let shared = Arc::new(Shared {
            mode: CachePadded::default(),
            asleep: CachePadded::default(),
            there: CachePadded::default(),
            back: CachePadded::default(),
            submissions: lines(),
            completions: lines(),
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
        while self.shared.asleep.load(Acquire) != (mode == SLEEP) {
            spin_loop();
        }
    }

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

    fn ring(&mut self, n: usize, depth: usize) {
        let shared = &*self.shared;
        let end = self.taken + n as u64;
        while self.taken < end {
            while self.sent < end && self.sent - self.taken < depth as u64 {
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
            // A partner that panicked has nothing left to be waited for.
            let _ = thread.join();
        }
    }
}

/// Stores entry `at`; its first word, which says that it is there, last.
fn put(ring: &[Line], at: u64, words: &[u64; WORDS]) {
    let line = &ring[at as usize % ENTRIES].0;
    for (to, word) in line.iter().zip(words).skip(1) {
        to.store(*word, Relaxed);
    }
    line[0].store(at + 1, Release);
}

fn get(ring: &[Line], at: u64) -> Option<[u64; WORDS]> {
    let line = &ring[at as usize % ENTRIES].0;
    if line[0].load(Acquire) != at + 1 {
        return None;
    }
    Some(std::array::from_fn(|i| line[i].load(Relaxed)))
}

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

/// A partner's part in a comparison.
pub struct PartnerSide {
    partner: Rc<RefCell<Partner>>,
    /// In flight on the ring; `None` for a cache line there and back.
    depth: Option<usize>,
}

impl PartnerSide {
    /// A cache line there and back.
    pub fn round_trip(partner: &Rc<RefCell<Partner>>) -> Self {
        Self {
            partner: Rc::clone(partner),
            depth: None,
        }
    }

    /// A bare ring with at most `depth` entries on their way.
    pub fn ring(partner: &Rc<RefCell<Partner>>, depth: usize) -> Self {
        Self {
            partner: Rc::clone(partner),
            depth: Some(depth.min(ENTRIES / 2)),
        }
    }
}

impl Side for PartnerSide {
    fn run(&mut self, _from: usize, n: usize) -> Measured<usize> {
        let mut partner = self.partner.borrow_mut();
        match self.depth {
            None => partner.round_trips(n),
            Some(depth) => partner.ring(n, depth),
        }
        Ok(n)
    }

    fn wake(&mut self) -> Measured<()> {
        // The devices are about to give that processor away.
        thread::sleep(ASLEEP);
        let mode = self.depth.map_or(ECHO, |_| RING);
        self.partner.borrow().turn(mode);
        self.run(0, WAKE).map(drop)
    }

    fn rest(&mut self) {
        self.partner.borrow().turn(SLEEP);
    }
}
