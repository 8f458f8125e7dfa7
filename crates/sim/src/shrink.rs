//! The least part of a plan that still fails: delta debugging (Zeller, Hildebrandt 2002) on the
//! list of actions, in bounded time.

use crate::campaign::guarded;
use crate::memory::Pool;
use crate::mutation::Mutation;
use crate::plan::{Action, Plan};
use std::time::{Duration, Instant};

/// Takes away hosts and actions as long as the plan fails, whatever with.
pub(crate) fn shrink(
    plan: Plan,
    mutation: Option<Mutation>,
    time: Duration,
    pool: &mut Pool,
) -> Plan {
    let started = Instant::now();
    let mut least = plan;
    let mut fails = |actions: Vec<Action>, least: &Plan| {
        let candidate = Plan {
            actions,
            ..least.clone()
        };
        let failed = guarded(&candidate, mutation, false, pool)
            .violation
            .is_some();
        failed.then_some(candidate)
    };
    // Whole rules of a fault plan first, then whole hosts.
    let mut rule = 0;
    while let Some(faults) = least.faults.as_ref().and_then(|f| f.without(rule)) {
        let candidate = Plan {
            faults: Some(faults),
            ..least.clone()
        };
        match fails(candidate.actions.clone(), &candidate) {
            Some(smaller) => least = smaller,
            None => rule += 1,
        }
    }
    for host in 0..least.setup.hosts as u8 {
        let mut rest = least.actions.clone();
        rest.retain(|action| action.host != host);
        if let Some(smaller) = fails(rest, &least) {
            least = smaller;
        }
    }
    let mut piece = least.actions.len().div_ceil(2);
    while piece > 0 && started.elapsed() < time {
        let mut smaller_found = false;
        let mut at = 0;
        while at < least.actions.len() && started.elapsed() < time {
            let mut rest = least.actions.clone();
            rest.drain(at..(at + piece).min(least.actions.len()));
            match fails(rest, &least) {
                Some(smaller) => {
                    least = smaller;
                    smaller_found = true;
                }
                None => at += piece,
            }
        }
        if piece == 1 && !smaller_found {
            break;
        }
        piece = if piece == 1 {
            1
        } else {
            piece.div_ceil(2).min(piece - 1)
        };
    }
    least
}
