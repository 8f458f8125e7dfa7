//! Walks and dumps: what they return of a map, held against the map's history.

use crate::check::{Check, Fault};
use crate::linearize::Call;
use crate::spec::{Answer, Kind, NONE, Spec};

/// A walk that reached the end of its map.
#[derive(Clone, Debug)]
pub(crate) struct WalkDone {
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) keys: Vec<u8>,
    /// No key may come twice: a dump of a hash type.
    pub(crate) once: bool,
}

/// What is known of a map.
pub(crate) struct History<'a> {
    pub(crate) spec: &'a Spec,
    /// Number of its keys.
    pub(crate) keys: u8,
    pub(crate) calls: &'a [Call],
}

impl History<'_> {
    fn keys(&self) -> std::ops::Range<u8> {
        0..self.keys
    }

    /// A walk returns no key that was not there at any time of it, and a dump none twice that
    /// stays.
    pub(crate) fn too_much(&self, walk: &WalkDone) -> Option<Fault> {
        let (began, ended) = (walk.began, walk.ended);
        let sent_on = self.was_sent_on(walk);
        for key in self.keys() {
            let times = walk.keys.iter().filter(|k| **k == key).count();
            if times > 0 && !self.may_be_there(key, began, ended) {
                return Some(Fault {
                    check: Check::WalkPresent,
                    what: format!(
                        "a walk (moments {began} to {ended}) returned key {key}, which was not \
                         there at any time of it"
                    ),
                });
            }
            if times > 1 && walk.once && !sent_on && self.stays(key, walk) {
                return Some(Fault {
                    check: Check::WalkOnce,
                    what: format!("a dump returned key {key} {times} times"),
                });
            }
        }
        None
    }

    /// A walk returns each key that was there all the time.
    pub(crate) fn left_out(&self, walk: &WalkDone) -> Option<Fault> {
        let (began, ended) = (walk.began, walk.ended);
        if self.was_sent_on(walk) {
            return None;
        }
        let missing = |key: &u8| !walk.keys.contains(key) && self.stays(*key, walk);
        self.keys().find(missing).map(|key| Fault {
            check: Check::WalkComplete,
            what: format!(
                "a walk (moments {began} to {ended}) left out key {key}, which was there all the \
                 time"
            ),
        })
    }

    /// Whether a walk may have stood on a key that was removed and stored anew: in another place
    /// then, from where the walk went on.
    fn was_sent_on(&self, walk: &WalkDone) -> bool {
        let during =
            |c: &&Call| c.began < walk.ended && c.ended > walk.began && walk.keys.contains(&c.key);
        let took = |c: &Call| matches!(c.kind, Kind::Delete | Kind::LookupDelete);
        let stored = |c: &Call| matches!(c.kind, Kind::Update { .. });
        let mut calls = self.calls.iter().filter(during);
        !walk.once && calls.any(took) && self.calls.iter().filter(during).any(stored)
    }

    /// Whether the key may have been there at some time between two moments: it was stored, or
    /// that is unknown, and no removal is sure to have come after that and before the first of them.
    fn may_be_there(&self, key: u8, from: u64, until: u64) -> bool {
        if self.spec.start().value(key) != NONE {
            return true;
        }
        let of_key = || self.calls.iter().filter(move |c| c.key == key);
        // Of the removals that were over by then the last one to begin: what had been stored before it
        // is gone.
        let removals = of_key().filter(|c| {
            c.ended < from
                && matches!(
                    (c.kind, c.answer),
                    (Kind::Delete, Answer::Done) | (Kind::LookupDelete, Answer::Value(_))
                )
        });
        let last = removals.map(|c| c.began).max().unwrap_or(0);
        of_key().any(|c| {
            c.began < until
                && c.ended >= last
                && matches!(c.kind, Kind::Update { .. })
                && matches!(c.answer, Answer::Done | Answer::Unknown)
        })
    }

    /// Whether the map may have been full between two moments. Only a full map evicts, when a key
    /// comes that is not in it (abi §7.3); so none is evicted where not even all keys that may have
    /// been there, the new ones included, are more than it holds.
    fn may_evict(&self, from: u64, until: u64) -> bool {
        let Spec::Lru { capacity } = *self.spec else {
            return false;
        };
        let there = self.keys().filter(|k| self.may_be_there(*k, from, until));
        there.count() > capacity
    }

    /// Whether the key was surely there from the walk's beginning to its end.
    fn stays(&self, key: u8, walk: &WalkDone) -> bool {
        if let Spec::Array { entries } = *self.spec {
            return usize::from(key) < entries;
        }
        let of_key = || self.calls.iter().filter(move |c| c.key == key);
        let removals = of_key().filter(|c| {
            matches!(c.kind, Kind::Delete | Kind::LookupDelete)
                && !matches!(c.answer, Answer::NotFound)
                && c.began < walk.ended
        });
        let removed = removals.map(|c| c.ended).max();
        // The last one that was done before the walk: from then on the time is shortest.
        let stores = of_key().filter(|c| {
            matches!(c.kind, Kind::Update { .. })
                && c.answer == Answer::Done
                && c.ended < walk.began
                && removed.is_none_or(|removed| removed < c.began)
        });
        let stored = stores.map(|c| c.began).max();
        stored.is_some_and(|stored| !self.may_evict(stored, walk.ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(key: u8, kind: Kind, answer: Answer, began: u64, ended: u64) -> Call {
        Call {
            lane: 0,
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

    /// A map of four keys with this history, walked from moment 100 to 200.
    fn walked(spec: Spec, calls: Vec<Call>, keys: &[u8]) -> Option<Check> {
        let walk = WalkDone {
            began: 100,
            ended: 200,
            keys: keys.to_vec(),
            once: true,
        };
        let history = History {
            spec: &spec,
            keys: 4,
            calls: &calls,
        };
        let fault = history.too_much(&walk).or_else(|| history.left_out(&walk));
        fault.map(|fault| fault.check)
    }

    #[test]
    fn a_walk_has_what_stays_once_and_nothing_that_is_gone() {
        let spec = || Spec::Hash { capacity: 4 };
        let stored = call(1, set(5), Answer::Done, 1, 2);
        let removed = call(1, Kind::Delete, Answer::Done, 3, 4);
        assert_eq!(walked(spec(), vec![stored], &[1]), None);
        assert_eq!(walked(spec(), vec![stored], &[]), Some(Check::WalkComplete));
        assert_eq!(walked(spec(), vec![stored], &[1, 1]), Some(Check::WalkOnce));
        assert_eq!(walked(spec(), vec![], &[1]), Some(Check::WalkPresent));
        let gone = vec![stored, removed];
        assert_eq!(walked(spec(), gone.clone(), &[]), None);
        assert_eq!(walked(spec(), gone, &[1]), Some(Check::WalkPresent));
        // It may have been stored again, or be removed only now.
        for last in [
            call(1, set(6), Answer::Unknown, 5, u64::MAX),
            call(1, set(6), Answer::Done, 150, 160),
        ] {
            let calls = vec![stored, removed, last];
            assert_eq!(walked(spec(), calls.clone(), &[1]), None);
            assert_eq!(walked(spec(), calls, &[]), None);
        }
        let late = call(1, Kind::Delete, Answer::Done, 3, 150);
        assert_eq!(walked(spec(), vec![stored, late], &[1]), None);
        assert_eq!(walked(spec(), vec![stored, late], &[]), None);
    }

    #[test]
    fn an_lru_that_was_never_full_keeps_its_keys() {
        let store = |key, began| {
            call(
                key,
                set(10 + u32::from(key)),
                Answer::Done,
                began,
                began + 1,
            )
        };
        let two = vec![store(0, 1), store(1, 3)];
        let lru = |capacity| Spec::Lru { capacity };
        assert_eq!(walked(lru(2), two.clone(), &[0]), Some(Check::WalkComplete));
        // One more than it holds, before the walk or during it.
        for began in [5, 150] {
            let mut three = two.clone();
            three.push(store(2, began));
            assert_eq!(walked(lru(2), three.clone(), &[0]), None);
            assert_eq!(walked(lru(3), three, &[2]), Some(Check::WalkComplete));
        }
        // Another key was removed before the ones came: there was room.
        let mut room = vec![store(3, 1), call(3, Kind::Delete, Answer::Done, 3, 4)];
        room.extend([store(0, 5), store(1, 7)]);
        assert_eq!(
            walked(lru(2), room.clone(), &[1]),
            Some(Check::WalkComplete)
        );
        room.insert(2, call(3, set(9), Answer::Unknown, 4, u64::MAX));
        assert_eq!(walked(lru(2), room, &[1]), None);
    }
}
