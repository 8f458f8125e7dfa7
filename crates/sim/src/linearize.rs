//! Whether a map's history has an order that explains it.
//!
//! A history is explained by an order of its calls in which each answer is what the
//! specification gives, no call comes after one that began when it had ended, and calls of one
//! queue keep their order (abi §7). Two ways to find one:
//!
//! 1. *A witness*: the order in which the device posted the completions. It is only a proposal;
//!    it counts when it passes every check.
//! 2. *A search* after Wing and Gong, with Lowe's memory of the configurations that led nowhere
//!    ("Testing for linearizability", 2017). A configuration is a position in each queue's calls
//!    and a state of the map. It runs when the witness does not pass: with commands of unknown
//!    outcome, with batches that took several steps, and where the history is wrong.

use crate::check::{Check, Fault};
use crate::spec::{Answer, Kind, Spec, State};
use std::collections::HashSet;

/// Configurations that a search visits before it gives up.
pub(crate) const SEARCH_LIMIT: usize = 400_000;

/// One operation on a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The queue pair that it went through: each one ever made has a number.
    pub(crate) lane: u16,
    pub(crate) key: u8,
    pub(crate) kind: Kind,
    pub(crate) answer: Answer,
    /// Moments: written to the ring, and its result taken. `u64::MAX`: never.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    /// When the device posted its completion.
    pub(crate) posted: Option<u64>,
}

/// What a check came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// By the witness, or else by the search.
    Explained { searched: bool },
    /// Nothing explains it; the sentence names the call at which every attempt ended.
    Wrong(Fault),
    /// The search reached its limit.
    Undecided,
}

/// Checks a history. Calls of a lane stand in their order.
pub(crate) fn check(spec: &Spec, calls: &[Call]) -> Verdict {
    if witness(spec, calls) {
        return Verdict::Explained { searched: false };
    }
    search(spec, calls)
}

/// Whether the order of completions explains the history.
fn witness(spec: &Spec, calls: &[Call]) -> bool {
    let mut order: Vec<(u64, usize)> = Vec::with_capacity(calls.len());
    let mut last: Vec<(u16, u64)> = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        let Some(posted) = call.posted else {
            if call.answer == Answer::Unknown {
                continue;
            }
            return false;
        };
        if call.began >= posted || posted >= call.ended {
            return false;
        }
        match last.iter_mut().find(|(lane, _)| *lane == call.lane) {
            Some((_, before)) if *before > posted => return false,
            Some((_, before)) => *before = posted,
            None => last.push((call.lane, posted)),
        }
        order.push((posted, index));
    }
    // Stable: elements of a batch keep their order.
    order.sort_by_key(|(posted, _)| *posted);
    let mut states = vec![spec.start()];
    let mut next = Vec::new();
    for (_, index) in order {
        let call = &calls[index];
        next.clear();
        for state in &states {
            spec.after(*state, call.key, call.kind, call.answer, &mut next);
        }
        if next.is_empty() {
            return false;
        }
        if next.len() > 1 {
            next.sort_unstable();
            next.dedup();
        }
        std::mem::swap(&mut states, &mut next);
    }
    true
}

/// The calls of one queue, and from each on the first end.
struct Lane {
    calls: Vec<usize>,
    first_end: Vec<u64>,
}

fn lanes(calls: &[Call]) -> Vec<Lane> {
    let mut lanes: Vec<(u16, Lane)> = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        let at = match lanes.iter().position(|(lane, _)| *lane == call.lane) {
            Some(at) => at,
            None => {
                let lane = Lane {
                    calls: Vec::new(),
                    first_end: Vec::new(),
                };
                lanes.push((call.lane, lane));
                lanes.len() - 1
            }
        };
        lanes[at].1.calls.push(index);
    }
    for (_, lane) in &mut lanes {
        let mut first = u64::MAX;
        lane.first_end = vec![u64::MAX; lane.calls.len() + 1];
        for at in (0..lane.calls.len()).rev() {
            first = first.min(calls[lane.calls[at]].ended);
            lane.first_end[at] = first;
        }
    }
    lanes.into_iter().map(|(_, lane)| lane).collect()
}

/// Where a search is: positions in the lanes and a state, and what it has not tried.
struct Frame {
    positions: Box<[u32]>,
    /// Lane and state after its next call, the best choice last.
    choices: Vec<(usize, State)>,
}

fn search(spec: &Spec, calls: &[Call]) -> Verdict {
    let lanes = lanes(calls);
    let start: Box<[u32]> = vec![0; lanes.len()].into();
    let mut seen: HashSet<(Box<[u32]>, State)> = HashSet::new();
    let mut deepest = (0, start.clone());
    let total = calls.len();
    let mut stack = vec![frame(spec, calls, &lanes, start, spec.start())];
    while let Some(top) = stack.last_mut() {
        let Some((lane, state)) = top.choices.pop() else {
            stack.pop();
            continue;
        };
        let mut positions = top.positions.clone();
        positions[lane] += 1;
        // What is left may all be of unknown outcome, and need not have happened.
        let done: usize = positions.iter().map(|p| *p as usize).sum();
        if done > deepest.0 {
            deepest = (done, positions.clone());
        }
        if done == total {
            return Verdict::Explained { searched: true };
        }
        if !seen.insert((positions.clone(), state)) {
            continue;
        }
        if seen.len() > SEARCH_LIMIT {
            return Verdict::Undecided;
        }
        let next = frame(spec, calls, &lanes, positions, state);
        stack.push(next);
    }
    if total == 0 {
        return Verdict::Explained { searched: true };
    }
    Verdict::Wrong(Fault {
        check: Check::History,
        what: blocked(calls, &lanes, &deepest.1),
    })
}

fn frame(
    spec: &Spec,
    calls: &[Call],
    lanes: &[Lane],
    positions: Box<[u32]>,
    state: State,
) -> Frame {
    let first_end = lanes
        .iter()
        .zip(&positions)
        .map(|(lane, at)| lane.first_end[*at as usize])
        .min()
        .unwrap_or(u64::MAX);
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (index, (lane, at)) in lanes.iter().zip(&positions).enumerate() {
        if let Some(call) = lane.calls.get(*at as usize) {
            let call = &calls[*call];
            // Whatever has ended when it began comes first.
            if call.began < first_end {
                order.push((call.posted.unwrap_or(call.ended), index));
            }
        }
    }
    order.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(*key));
    let mut choices = Vec::new();
    let mut next = Vec::new();
    for (_, lane) in order {
        let call = &calls[lanes[lane].calls[positions[lane] as usize]];
        next.clear();
        spec.after(state, call.key, call.kind, call.answer, &mut next);
        choices.extend(next.iter().map(|state| (lane, *state)));
    }
    Frame { positions, choices }
}

/// The calls that stood next where the longest attempt ended.
fn blocked(calls: &[Call], lanes: &[Lane], positions: &[u32]) -> String {
    let mut heads: Vec<&Call> = lanes
        .iter()
        .zip(positions)
        .filter_map(|(lane, at)| lane.calls.get(*at as usize))
        .map(|index| &calls[*index])
        .collect();
    heads.sort_by_key(|call| call.ended);
    let done: u32 = positions.iter().sum();
    let first: Vec<String> = heads
        .iter()
        .take(2)
        .map(|c| {
            format!(
                "{:?} of key {} that ended with {:?} (moments {} to {})",
                c.kind, c.key, c.answer, c.began, c.ended
            )
        })
        .collect();
    format!(
        "no order explains the answers: after {done} of {} calls none can come next, among them {}",
        calls.len(),
        first.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(lane: u16, key: u8, kind: Kind, answer: Answer, began: u64, ended: u64) -> Call {
        Call {
            lane,
            key,
            kind,
            answer,
            began,
            ended,
            posted: None,
        }
    }

    const fn set(value: u32) -> Kind {
        Kind::Update { flags: 0, value }
    }

    fn wrong(spec: &Spec, calls: &[Call]) -> bool {
        matches!(check(spec, calls), Verdict::Wrong(_))
    }

    #[test]
    fn a_value_from_before_an_acknowledged_write_is_found() {
        let spec = Spec::Hash { capacity: 4 };
        let history = |ended| {
            [
                call(0, 0, set(5), Answer::Done, 1, 2),
                call(0, 0, set(6), Answer::Done, 3, ended),
                call(1, 0, Kind::Lookup, Answer::Value(5), 5, 6),
            ]
        };
        assert!(wrong(&spec, &history(4)));
        // While the write is under way the lookup may come before it.
        assert!(!wrong(&spec, &history(7)));
    }

    #[test]
    fn a_queue_keeps_its_order() {
        let spec = Spec::Hash { capacity: 4 };
        let history = |lane| {
            [
                call(0, 0, set(5), Answer::Done, 1, 9),
                call(lane, 0, Kind::Lookup, Answer::NotFound, 2, 9),
            ]
        };
        assert!(wrong(&spec, &history(0)));
        assert!(!wrong(&spec, &history(1)));
    }

    #[test]
    fn an_unknown_outcome_may_be_either() {
        let spec = Spec::Hash { capacity: 4 };
        for seen in [Answer::Value(5), Answer::NotFound] {
            let history = [
                call(0, 0, set(5), Answer::Unknown, 1, u64::MAX),
                call(1, 0, Kind::Lookup, seen, 5, 6),
            ];
            assert!(!wrong(&spec, &history));
        }
        let history = [
            call(0, 0, set(5), Answer::Unknown, 1, u64::MAX),
            call(1, 0, Kind::Lookup, Answer::Value(5), 5, 6),
            call(1, 0, Kind::Lookup, Answer::NotFound, 7, 8),
        ];
        assert!(wrong(&spec, &history), "it does not come and go");
    }

    #[test]
    fn a_witness_out_of_its_interval_is_no_proof() {
        let spec = Spec::Hash { capacity: 4 };
        let mut late = call(0, 0, set(5), Answer::Done, 1, 4);
        late.posted = Some(8);
        let mut read = call(1, 0, Kind::Lookup, Answer::NotFound, 5, 9);
        read.posted = Some(7);
        assert!(wrong(&spec, &[late, read]));
    }
}
