//! Who decides which engine goes on.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Decides which engine has the next turn.
pub trait Schedule {
    /// One of `busy`, which are in ascending order; `None` where there is none, or no more turns are
    /// to be given.
    fn pick(&mut self, busy: &[u32]) -> Option<u32>;
}

/// Each engine in its turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin {
    last: Option<u32>,
}

impl Schedule for RoundRobin {
    fn pick(&mut self, busy: &[u32]) -> Option<u32> {
        let after = busy
            .iter()
            .copied()
            .find(|e| self.last.is_none_or(|last| *e > last));
        self.last = after.or_else(|| busy.first().copied());
        self.last
    }
}

/// Any engine, for a few turns: the seed decides, and the same seed decides the same.
#[derive(Clone, Debug)]
pub struct Seeded {
    random: Xoshiro256PlusPlus,
    engine: u32,
    left: u32,
}

/// Most turns that [`Seeded`] gives an engine in a row.
pub const ROW_MAX: u32 = 24;

impl Seeded {
    /// The schedule of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            engine: 0,
            left: 0,
        }
    }
}

impl Schedule for Seeded {
    fn pick(&mut self, busy: &[u32]) -> Option<u32> {
        if self.left == 0 || !busy.contains(&self.engine) {
            let random = self.random.next_u64();
            self.engine = *busy.get((random as u32 as usize) % busy.len().max(1))?;
            // Mostly one turn, sometimes as many as an operation has.
            self.left = match random >> 32 & 3 {
                0 => (random >> 40) as u32 % ROW_MAX + 1,
                _ => 1,
            };
        }
        self.left -= 1;
        Some(self.engine)
    }
}
