//! Which commands the hosts of this process have sent, and which statuses they have got: so that
//! a run of the suite can say what it has covered.

use offmap_abi::{AdminOpcode, IoOpcode, QueueId, Status};
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of bytes.
struct Set([AtomicU64; 4]);

impl Set {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 4])
    }

    fn insert(&self, n: u8) {
        let (word, bit) = (&self.0[usize::from(n / 64)], 1 << (n % 64));
        // Most are there already, and a line that nobody writes is shared by all threads.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn contains(&self, n: u8) -> bool {
        self.0[usize::from(n / 64)].load(Ordering::Relaxed) >> (n % 64) & 1 != 0
    }
}

static ADMIN: Set = Set::new();
static IO: Set = Set::new();
static STATUSES: Set = Set::new();

pub(crate) fn sent(queue: QueueId, opcode: u8) {
    let set = if queue == QueueId::ADMIN { &ADMIN } else { &IO };
    set.insert(opcode);
}

pub(crate) fn got(status: Status) {
    if let Ok(status) = u8::try_from(status.0) {
        STATUSES.insert(status);
    }
}

/// The statuses of the elements of a batch count as well.
pub(crate) fn got_each(statuses: &[Status]) {
    statuses.iter().for_each(|status| got(*status));
}

/// What has been seen so far of all that `docs/abi.md` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Covered {
    /// Admin commands that were never sent.
    pub admin_missing: Vec<&'static str>,
    /// I/O commands that were never sent.
    pub io_missing: Vec<&'static str>,
    /// Statuses that never came.
    pub statuses_missing: Vec<&'static str>,
    /// How many commands and statuses there are.
    pub of: (usize, usize),
}

/// What has been seen so far.
pub fn covered() -> Covered {
    let names = |name: &dyn Fn(u8) -> Option<&'static str>| -> Vec<(u8, &'static str)> {
        (0..=u8::MAX).filter_map(|n| Some((n, name(n)?))).collect()
    };
    let admin = names(&|n| AdminOpcode(n).name());
    let io = names(&|n| IoOpcode(n).name());
    let statuses = names(&|n| Status(n.into()).name());
    let of = (admin.len() + io.len(), statuses.len());
    let missing = |all: Vec<(u8, &'static str)>, seen: &Set| {
        let missing = all.into_iter().filter(|(n, _)| !seen.contains(*n));
        missing.map(|(_, name)| name).collect()
    };
    Covered {
        admin_missing: missing(admin, &ADMIN),
        io_missing: missing(io, &IO),
        statuses_missing: missing(statuses, &STATUSES),
        of,
    }
}
