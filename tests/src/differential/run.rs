//! Running a sequence against several maps, and cutting a failing one down.

use super::{Op, Sequence};
use crate::model::{Model, Shape};
use crate::model_lpm::TrieModel;
use crate::subject::{Answered, Subject, Walked};
use offmap_bpf::uapi::MapType;
use std::collections::BTreeMap;
use std::fmt;

const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;

/// What an operation answered, in the form in which answers are compared.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// No data.
    Plain(Answered),
    /// A value or a key.
    Bytes(Result<Vec<u8>, i32>),
    /// Elements done and the result.
    Batch(u32, Answered),
    /// A whole walk: its elements, how its last call ended, and, where the order is one and the
    /// same for every map, the keys in order and what each call returned.
    Elements(
        BTreeMap<Vec<u8>, Vec<u8>>,
        Answered,
        Vec<Walked>,
        Vec<Vec<u8>>,
    ),
    /// A rule of its own was broken.
    Broken(String),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(r) => write!(f, "{r:?}"),
            Self::Bytes(Ok(b)) => write!(f, "Ok({})", Hex(b)),
            Self::Bytes(Err(e)) => write!(f, "Err({e})"),
            Self::Batch(n, r) => write!(f, "{n} done, {r:?}"),
            Self::Elements(e, r, _, order) => {
                write!(f, "{} elements, {r:?}:", e.len())?;
                for (k, v) in e.iter().take(20) {
                    write!(f, " {}={}", Hex(k), Hex(v))?;
                }
                for k in order.iter().take(20) {
                    write!(f, " {}", Hex(k))?;
                }
                Ok(())
            }
            Self::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(24) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.len() > 24 {
            write!(f, "…({})", self.0.len())?;
        }
        Ok(())
    }
}

/// The first operation on which a map and the model differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Index of the operation.
    pub index: usize,
    /// Whose answer it was.
    pub subject: &'static str,
    /// The operation, the model's answer and the map's.
    pub what: String,
}

/// Operations done, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Operations that each map was asked.
    pub ops: u64,
    /// Elements that batch commands and walks carried, per map.
    pub elements: u64,
}

/// The model of a type.
enum Judge {
    Plain(Model),
    Trie(TrieModel),
}

impl Judge {
    fn new(shape: Shape) -> Self {
        match shape.map_type {
            MapType::LPM_TRIE => Self::Trie(TrieModel::new(shape)),
            _ => Self::Plain(Model::new(shape)),
        }
    }

    fn subject(&mut self) -> &mut dyn Subject {
        match self {
            Self::Plain(model) => model,
            Self::Trie(model) => model,
        }
    }
}

/// Runs `sequence` on `subjects`, freshly created maps of its shape, and on the model.
pub fn check(
    sequence: &Sequence,
    subjects: &mut [Box<dyn Subject + '_>],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut model = Judge::new(sequence.shape);
    for (index, op) in sequence.ops.iter().enumerate() {
        // What the operation starts from, where a map's answer is judged by a rule instead of
        // by the model's own answer.
        let present = matches!(
            (op, &model),
            (Op::Next(Some(key)), Judge::Plain(model)) if model.contains(&sequence.key(*key))
        );
        let expected = answer(sequence, op, model.subject(), tally);
        for subject in &mut *subjects {
            let got = answer(sequence, op, subject.as_mut(), &mut Tally::default());
            let agrees = match (op, &got, &model) {
                (Op::Next(key), Answer::Bytes(got_next), Judge::Plain(model))
                    if !sequence.shape.is_ordered() =>
                {
                    next_is_sound(sequence, model, *key, present, got_next)
                }
                _ => got == expected,
            };
            if !agrees {
                return Err(Failure {
                    index,
                    subject: subject.name(),
                    what: format!("{op:?}: model {expected:?}, {} {got:?}", subject.name()),
                });
            }
        }
        tally.ops += 1;
    }
    Ok(())
}

/// Iteration order is each map's own, but the next key is in the map and another one, and
/// there is a first key exactly when the map has one.
fn next_is_sound(
    sequence: &Sequence,
    model: &Model,
    key: Option<u32>,
    present: bool,
    next: &Result<Vec<u8>, i32>,
) -> bool {
    match next {
        Ok(next) => {
            model.contains(next) && !(present && key.is_some_and(|key| sequence.key(key) == *next))
        }
        Err(errno) => *errno == ENOENT && (present || model.is_empty()),
    }
}

fn answer(sequence: &Sequence, op: &Op, map: &mut dyn Subject, tally: &mut Tally) -> Answer {
    let shape = &sequence.shape;
    let value = || vec![0x5a; shape.value_bytes()];
    match op {
        Op::Lookup(key, flags) => {
            let mut v = value();
            let r = map.lookup(&sequence.key(*key), &mut v, *flags);
            Answer::Bytes(r.map(|()| v))
        }
        Op::Update(key, seed, flags) => {
            Answer::Plain(map.update(&sequence.key(*key), &sequence.value(*seed), *flags))
        }
        Op::Delete(key) => Answer::Plain(map.delete(&sequence.key(*key))),
        Op::Next(key) => {
            let mut next = vec![0x5a; shape.key_size as usize];
            let key = key.map(|key| sequence.key(key));
            let r = map.get_next_key(key.as_deref(), &mut next);
            Answer::Bytes(r.map(|()| next))
        }
        Op::LookupAndDelete(key, flags) => {
            let mut v = value();
            let r = map.lookup_and_delete(&sequence.key(*key), &mut v, *flags);
            Answer::Bytes(r.map(|()| v))
        }
        Op::UpdateBatch(pairs, flags) => {
            let keys: Vec<u8> = pairs.iter().flat_map(|(k, _)| sequence.key(*k)).collect();
            let values: Vec<u8> = pairs.iter().flat_map(|(_, v)| sequence.value(*v)).collect();
            let (done, r) = map.update_batch(&keys, &values, pairs.len() as u32, *flags);
            tally.elements += u64::from(done);
            Answer::Batch(done, r)
        }
        Op::DeleteBatch(keys, flags) => {
            let bytes: Vec<u8> = keys.iter().flat_map(|k| sequence.key(*k)).collect();
            let (done, r) = map.delete_batch(&bytes, keys.len() as u32, *flags);
            tally.elements += u64::from(done);
            Answer::Batch(done, r)
        }
        Op::Walk {
            count,
            elem_flags,
            delete,
        } => walk(sequence, map, None, *count, *elem_flags, *delete, tally),
        Op::WalkFrom { cursor, count } => {
            if shape.is_ordered() {
                let cursor = sequence.key(*cursor);
                walk(sequence, map, Some(cursor), *count, 0, false, tally)
            } else {
                // The end of the map at once, and nothing returned.
                let mut keys = vec![0; shape.key_size as usize * *count as usize];
                let mut values = vec![0; shape.value_bytes() * *count as usize];
                if map.name() == "model" {
                    let past = if *count == 0 { Ok(()) } else { Err(ENOENT) };
                    return Answer::Batch(0, past);
                }
                let cursor = cursor.to_ne_bytes();
                let w = map.walk_batch(Some(&cursor), &mut keys, &mut values, *count, 0, false);
                Answer::Batch(w.count, w.result)
            }
        }
        Op::Iterate => iterate(sequence, map, tally),
        Op::Freeze => Answer::Plain(map.freeze()),
    }
}

/// Walks until the map says that it ended. Whole buckets only: one that does not fit is asked
/// for again with twice the room, from the same cursor.
fn walk(
    sequence: &Sequence,
    map: &mut dyn Subject,
    start: Option<Vec<u8>>,
    mut count: u32,
    elem_flags: u64,
    delete: bool,
    tally: &mut Tally,
) -> Answer {
    let shape = &sequence.shape;
    let (key_bytes, value_bytes) = (shape.key_size as usize, shape.value_bytes());
    let mut elements = BTreeMap::new();
    let (mut steps, mut order) = (Vec::new(), Vec::new());
    let mut cursor = start;
    // Each call moves on, or doubles the count up to the size of the map.
    for _ in 0..2 * shape.max_entries + 100 {
        let mut keys = vec![0x5a; key_bytes * count as usize];
        let mut values = vec![0x5a; value_bytes * count as usize];
        let token = cursor.as_deref();
        let w = map.walk_batch(token, &mut keys, &mut values, count, elem_flags, delete);
        if w.count > count {
            return Answer::Broken(format!("{} elements where {count} were asked", w.count));
        }
        tally.elements += u64::from(w.count);
        for i in 0..w.count as usize {
            let key = keys[i * key_bytes..][..key_bytes].to_vec();
            let value = values[i * value_bytes..][..value_bytes].to_vec();
            if shape.is_ordered() {
                order.push(key.clone());
            }
            if let Some(before) = elements.insert(key, value) {
                return Answer::Broken(format!("a key came twice, before with {}", Hex(&before)));
            }
        }
        if shape.is_ordered() && w.count != 0 {
            steps.push(w.clone());
        }
        match w.result {
            Ok(()) if count == 0 => return Answer::Elements(elements, Ok(()), steps, order),
            Ok(()) => cursor = Some(w.cursor),
            Err(ENOSPC) if w.count != 0 => {
                return Answer::Broken("ENOSPC together with elements".into());
            }
            Err(ENOSPC) if count > shape.max_entries => {
                return Answer::Broken("ENOSPC though the whole map has room".into());
            }
            Err(ENOSPC) => {
                cursor = Some(w.cursor);
                count *= 2;
            }
            Err(errno) => return Answer::Elements(elements, Err(errno), steps, order),
        }
    }
    Answer::Broken("the walk does not end".into())
}

fn iterate(sequence: &Sequence, map: &mut dyn Subject, tally: &mut Tally) -> Answer {
    let shape = &sequence.shape;
    let (mut elements, mut order) = (BTreeMap::new(), Vec::new());
    let mut key: Option<Vec<u8>> = None;
    for _ in 0..=shape.max_entries {
        let mut next = vec![0x5a; shape.key_size as usize];
        if let Err(errno) = map.get_next_key(key.as_deref(), &mut next) {
            return Answer::Elements(elements, Err(errno), Vec::new(), order);
        }
        let mut value = vec![0x5a; shape.value_bytes()];
        if let Err(errno) = map.lookup(&next, &mut value, 0) {
            return Answer::Broken(format!("key {} is listed, lookup says {errno}", Hex(&next)));
        }
        tally.elements += 1;
        if elements.insert(next.clone(), value).is_some() {
            return Answer::Broken(format!("key {} came twice", Hex(&next)));
        }
        if shape.is_ordered() {
            order.push(next.clone());
        }
        key = Some(next);
    }
    Answer::Broken("the iteration does not end".into())
}

/// Cuts a failing sequence down: pieces of it are left out, larger ones first, as long as
/// `fails` still fails without them.
pub fn shrink(mut sequence: Sequence, mut fails: impl FnMut(&Sequence) -> bool) -> Sequence {
    let mut piece = sequence.ops.len() / 2;
    let mut budget = 400;
    while piece > 0 && budget > 0 {
        let mut at = 0;
        while at < sequence.ops.len() && budget > 0 {
            let mut shorter = sequence.clone();
            shorter.ops.drain(at..(at + piece).min(sequence.ops.len()));
            budget -= 1;
            if fails(&shorter) {
                sequence = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    sequence
}
