//! What each map type does, as a function of its state: the specifications that histories are
//! held against.

/// Most keys, or values of a queue, that a map of a run has.
pub(crate) const PLACES: usize = 10;
/// No value.
pub(crate) const NONE: u32 = 0;
/// The value of zero bytes, which arrays start with.
pub(crate) const ZERO: u32 = 1;

/// A value that a fault has changed: any value may be read where it stands.
pub(crate) const GARBAGE: u32 = u32::MAX;

/// What a map is.
#[derive(Clone, Debug)]
pub(crate) enum Spec {
    Hash {
        capacity: usize,
    },
    Array {
        entries: usize,
    },
    Lru {
        capacity: usize,
    },
    /// `covers[k]`: the keys whose prefixes cover key `k`, longest first, `k` included.
    Lpm {
        capacity: usize,
        covers: Vec<Vec<u8>>,
    },
    Queue {
        capacity: usize,
    },
    Stack {
        capacity: usize,
    },
}

/// What was asked of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Lookup,
    /// With the ABI's flags: 0 any, 1 no-exist, 2 exist. A push, for queues and stacks.
    Update {
        flags: u32,
        value: u32,
    },
    Delete,
    LookupDelete,
    First,
    Next,
    /// A fault in device memory: the key's value is another one, if it has any.
    Spoil,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// With success and nothing more.
    Done,
    /// With a value.
    Value(u32),
    /// With a key.
    Key(u8),
    NotFound,
    Exists,
    Full,
    OutOfRange,
    /// Nobody knows: it took effect or not.
    Unknown,
}

/// A map's state: by key the value, or a queue's values from the oldest on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct State {
    places: [u32; PLACES],
    /// Values of a queue, or keys that are there.
    count: u8,
}

impl Spec {
    /// The state of a new map.
    pub(crate) fn start(&self) -> State {
        let mut state = State {
            places: [NONE; PLACES],
            count: 0,
        };
        if let Self::Array { entries } = self {
            state.places[..*entries].fill(ZERO);
            state.count = *entries as u8;
        }
        state
    }

    /// The states after an operation on `key` that ended with `answer`; none: it could not have
    /// ended so here.
    pub(crate) fn after(
        &self,
        state: State,
        key: u8,
        kind: Kind,
        answer: Answer,
        next: &mut Vec<State>,
    ) {
        if answer == Answer::Unknown {
            next.push(state);
            self.effect(state, key, kind, None, next);
            next.dedup();
            return;
        }
        self.effect(state, key, kind, Some(answer), next);
    }

    fn effect(
        &self,
        state: State,
        key: u8,
        kind: Kind,
        answer: Option<Answer>,
        next: &mut Vec<State>,
    ) {
        let is = |a: Answer| {
            answer.is_none_or(|answer| {
                answer == a || (a == Answer::Value(GARBAGE) && matches!(answer, Answer::Value(_)))
            })
        };
        let same = |next: &mut Vec<State>, a: Answer| {
            if is(a) {
                next.push(state);
            }
        };
        if let Self::Queue { capacity } | Self::Stack { capacity } = self {
            return self.line(state, *capacity, kind, &is, next);
        }
        let k = usize::from(key);
        let found = match self {
            Self::Array { entries } if k >= *entries => None,
            Self::Lpm { covers, .. } if kind == Kind::Lookup => covers[k]
                .iter()
                .map(|c| state.places[usize::from(*c)])
                .find(|v| *v != NONE),
            _ => Some(state.places[k]).filter(|v| *v != NONE),
        };
        match kind {
            Kind::Lookup => match found {
                Some(value) => same(next, Answer::Value(value)),
                None if matches!(self, Self::Array { .. }) => same(next, Answer::OutOfRange),
                None => same(next, Answer::NotFound),
            },
            Kind::Delete | Kind::LookupDelete => match found {
                Some(value) => {
                    let right = if kind == Kind::Delete {
                        Answer::Done
                    } else {
                        Answer::Value(value)
                    };
                    if is(right) {
                        next.push(state.with(k, NONE));
                    }
                }
                None => same(next, Answer::NotFound),
            },
            Kind::Update { flags, value } => {
                self.update(state, k, found, (flags, value), &is, next);
            }
            Kind::First | Kind::Next => {
                if self.may_follow(state, key, kind, answer) {
                    next.push(state);
                }
            }
            Kind::Spoil => next.push(match found {
                Some(_) => state.with(k, GARBAGE),
                None => state,
            }),
        }
    }

    fn update(
        &self,
        state: State,
        k: usize,
        found: Option<u32>,
        (flags, value): (u32, u32),
        is: &impl Fn(Answer) -> bool,
        next: &mut Vec<State>,
    ) {
        let refused = match (self, found) {
            (Self::Array { entries }, None) if k >= *entries => Some(Answer::OutOfRange),
            (_, Some(_)) if flags == 1 => Some(Answer::Exists),
            (_, None) if flags == 2 => Some(Answer::NotFound),
            (Self::Hash { capacity } | Self::Lpm { capacity, .. }, None)
                if usize::from(state.count) >= *capacity =>
            {
                Some(Answer::Full)
            }
            _ => None,
        };
        if let Some(refused) = refused {
            if is(refused) {
                next.push(state);
            }
            return;
        }
        if !is(Answer::Done) {
            return;
        }
        match self {
            Self::Lru { capacity } if found.is_none() && usize::from(state.count) >= *capacity => {
                // One of the others goes, and which one is the device's choice.
                for other in 0..PLACES {
                    if other != k && state.places[other] != NONE {
                        next.push(state.with(other, NONE).with(k, value));
                    }
                }
            }
            _ => next.push(state.with(k, value)),
        }
    }

    /// Whether a walk may go from `key` to the answer. Arrays have an order; of the others only
    /// that is said here which holds of each step, and `walk` looks at walks as a whole.
    fn may_follow(&self, state: State, key: u8, kind: Kind, answer: Option<Answer>) -> bool {
        let Some(answer) = answer else {
            return true;
        };
        if let Self::Array { entries } = self {
            let following = match kind {
                Kind::First => 0,
                _ if usize::from(key) >= *entries => 0,
                _ => usize::from(key) + 1,
            };
            return if following < *entries {
                answer == Answer::Key(following as u8)
            } else {
                answer == Answer::NotFound
            };
        }
        let there = |k: u8| state.places[usize::from(k)] != NONE;
        let from = (kind == Kind::Next && there(key)).then_some(key);
        match answer {
            Answer::Key(k) => there(k) && from != Some(k),
            Answer::NotFound => from.is_some() || state.count == 0,
            _ => false,
        }
    }

    /// Queues and stacks.
    fn line(
        &self,
        state: State,
        capacity: usize,
        kind: Kind,
        is: &impl Fn(Answer) -> bool,
        next: &mut Vec<State>,
    ) {
        let count = usize::from(state.count);
        let at = match self {
            Self::Stack { .. } => count.wrapping_sub(1),
            _ => 0,
        };
        match kind {
            Kind::Update { flags, value } => {
                let mut after = state;
                if count >= capacity {
                    if flags != 2 {
                        if is(Answer::Full) {
                            next.push(state);
                        }
                        return;
                    }
                    after = after.without(0);
                }
                if is(Answer::Done) {
                    after.places[usize::from(after.count)] = value;
                    after.count += 1;
                    next.push(after);
                }
            }
            Kind::Lookup | Kind::LookupDelete if count == 0 => {
                if is(Answer::NotFound) {
                    next.push(state);
                }
            }
            Kind::Lookup => {
                if is(Answer::Value(state.places[at])) {
                    next.push(state);
                }
            }
            Kind::LookupDelete => {
                if is(Answer::Value(state.places[at])) {
                    next.push(state.without(at));
                }
            }
            Kind::Delete | Kind::First | Kind::Next | Kind::Spoil => {}
        }
    }
}

impl State {
    /// The value of a key, or [`NONE`].
    pub(crate) fn value(&self, key: u8) -> u32 {
        self.places[usize::from(key)]
    }

    fn with(mut self, k: usize, value: u32) -> Self {
        match (self.places[k] == NONE, value == NONE) {
            (true, false) => self.count += 1,
            (false, true) => self.count -= 1,
            _ => {}
        }
        self.places[k] = value;
        self
    }

    fn without(mut self, at: usize) -> Self {
        self.places.copy_within(at + 1.., at);
        self.places[PLACES - 1] = NONE;
        self.count -= 1;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(spec: &Spec, state: State, key: u8, kind: Kind, answer: Answer) -> Vec<State> {
        let mut next = Vec::new();
        spec.after(state, key, kind, answer, &mut next);
        next
    }

    const fn set(value: u32) -> Kind {
        Kind::Update { flags: 0, value }
    }

    #[test]
    fn a_hash_is_full_at_its_capacity_and_not_before() {
        let spec = Spec::Hash { capacity: 1 };
        let empty = spec.start();
        assert!(after(&spec, empty, 0, set(7), Answer::Full).is_empty());
        let one = after(&spec, empty, 0, set(7), Answer::Done)[0];
        assert!(after(&spec, one, 1, set(8), Answer::Done).is_empty());
        assert_eq!(after(&spec, one, 1, set(8), Answer::Full), [one]);
        assert_eq!(after(&spec, one, 0, set(8), Answer::Done).len(), 1);
    }

    #[test]
    fn an_lru_evicts_another_key_and_only_when_full() {
        let spec = Spec::Lru { capacity: 2 };
        let mut state = spec.start();
        for key in 0..2 {
            state = after(&spec, state, key, set(10 + u32::from(key)), Answer::Done)[0];
        }
        let next = after(&spec, state, 2, set(12), Answer::Done);
        assert_eq!(next.len(), 2);
        for state in next {
            assert_eq!(state.count, 2);
            assert_eq!(state.places[2], 12);
        }
        assert!(after(&spec, state, 0, Kind::Lookup, Answer::NotFound).is_empty());
    }

    #[test]
    fn the_longest_prefix_answers() {
        let covers = vec![vec![0], vec![1, 0]];
        let spec = Spec::Lpm {
            capacity: 4,
            covers,
        };
        let state = after(&spec, spec.start(), 0, set(5), Answer::Done)[0];
        assert_eq!(
            after(&spec, state, 1, Kind::Lookup, Answer::Value(5)),
            [state]
        );
        assert_eq!(
            after(&spec, state, 1, Kind::Delete, Answer::NotFound),
            [state]
        );
    }

    #[test]
    fn queues_and_stacks_differ_in_the_end_they_pop() {
        for (spec, popped) in [
            (Spec::Queue { capacity: 2 }, 5),
            (Spec::Stack { capacity: 2 }, 6),
        ] {
            let mut state = spec.start();
            for value in [5, 6] {
                state = after(&spec, state, 0, set(value), Answer::Done)[0];
            }
            assert!(after(&spec, state, 0, set(7), Answer::Done).is_empty());
            let got = after(&spec, state, 0, Kind::LookupDelete, Answer::Value(popped));
            assert_eq!(got[0].count, 1);
        }
    }
}
