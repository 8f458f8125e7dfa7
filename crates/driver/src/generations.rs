//! Request ids that no two queues of a driver share (abi §5.2).

use offmap_abi::RequestId;
use std::sync::atomic::{AtomicU64, Ordering};

/// Generations in one lease.
const LEASE: u64 = 1 << 24;

/// Leases pieces of the 48-bit space of generations, so that an id is never that of another
/// command of the driver: not of an earlier queue with the same number either, whose late or
/// replayed completion must not end a command of its successor.
///
/// The space comes round after 2^48 generations, which is years of a lane's blocking calls.
/// Honest devices are not concerned even then: an id in flight keeps its slot.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    leased: AtomicU64,
}

impl Generations {
    /// The generation before the first one of a fresh lease.
    pub(crate) fn lease(&self) -> u64 {
        self.leased.fetch_add(LEASE, Ordering::Relaxed) & (RequestId::GENERATIONS - 1)
    }

    /// The generation after `generation`, from a fresh lease when that one was the last of
    /// its own.
    #[inline(always)]
    pub(crate) fn after(&self, generation: u64) -> u64 {
        let next = generation + 1;
        if next & (LEASE - 1) == 0 {
            self.lease() + 1
        } else {
            next
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ends_is_followed_by_one_that_nobody_has() {
        let all = Generations::default();
        let (a, b) = (all.lease(), all.lease());
        assert_eq!((a, b), (0, LEASE));
        assert_eq!(all.after(a), 1);
        assert_eq!(all.after(LEASE - 2), LEASE - 1);
        assert_eq!(all.after(LEASE - 1), 2 * LEASE + 1, "not the lease of b");
        // Generations fit 48 bits when the space comes round, too.
        let all = Generations {
            leased: AtomicU64::new(RequestId::GENERATIONS - LEASE),
        };
        let last = all.lease();
        assert_eq!(last + LEASE, RequestId::GENERATIONS);
        assert_eq!(all.after(last + LEASE - 1), 1);
    }
}
