//! How often the hosts of this process have sent each command, and got each status: so that a run
//! of the suite can say what it has covered.

use offmap_abi::{AdminOpcode, IoOpcode, QueueId, Status};
use std::sync::atomic::{AtomicU64, Ordering};

/// A count for each byte.
struct Counts([AtomicU64; 256]);

impl Counts {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 256])
    }

    fn bump(&self, n: u8) {
        self.0[usize::from(n)].fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self, n: u8) -> u64 {
        self.0[usize::from(n)].load(Ordering::Relaxed)
    }
}

static ADMIN: Counts = Counts::new();
static IO: Counts = Counts::new();
static STATUSES: Counts = Counts::new();

/// Answers of devices so far, of all hosts: what tells a device that goes on from one that does not.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Completions that devices have given the hosts of this process so far.
pub fn answers() -> u64 {
    ANSWERS.load(Ordering::Relaxed)
}

pub(crate) fn sent(queue: QueueId, opcode: u8) {
    let counts = if queue == QueueId::ADMIN { &ADMIN } else { &IO };
    counts.bump(opcode);
}

pub(crate) fn got(status: Status) {
    ANSWERS.fetch_add(1, Ordering::Relaxed);
    if let Ok(status) = u8::try_from(status.0) {
        STATUSES.bump(status);
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
    /// How often each command was sent that was, admin commands first.
    pub sent: Vec<(&'static str, u64)>,
    /// How often each status came that did; those of the elements of a batch count as well.
    pub got: Vec<(&'static str, u64)>,
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
    let counted = |all: Vec<(u8, &'static str)>, counts: &Counts| {
        let (mut missing, mut seen) = (Vec::new(), Vec::new());
        for (n, name) in all {
            match counts.get(n) {
                0 => missing.push(name),
                count => seen.push((name, count)),
            }
        }
        (missing, seen)
    };
    let (admin_missing, mut sent) = counted(admin, &ADMIN);
    let (io_missing, io_sent) = counted(io, &IO);
    let (statuses_missing, got) = counted(statuses, &STATUSES);
    sent.extend(io_sent);
    Covered {
        admin_missing,
        io_missing,
        statuses_missing,
        of,
        sent,
        got,
    }
}
