//! The maps of a run: their shapes, keys and values, and their histories.

use crate::linearize::{Call, Verdict, check};
use crate::rng::{Rng, mix};
use crate::spec::{Answer, GARBAGE, Kind, PLACES, Spec, ZERO};
use crate::walk::{History, WalkDone};
use offmap_abi::MapType;
use offmap_driver::{DeviceMap, MapParams};

/// The first value that is written; each write has its own.
pub(crate) const FIRST_VALUE: u32 = 2;

/// A map of a run.
pub(crate) struct SimMap {
    pub(crate) map: DeviceMap,
    /// Each map ever made has a number.
    pub(crate) serial: u32,
    pub(crate) map_type: MapType,
    pub(crate) spec: Spec,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) calls: Vec<Call>,
    pub(crate) walks: Vec<WalkDone>,
    /// From this moment on no answer says anything, because of a fault.
    pub(crate) cut: Option<u64>,
    /// A fault has changed values of it.
    pub(crate) spoiled: bool,
}

/// What a map is created with, what it does, and its keys.
pub(crate) fn shape(rng: &mut Rng) -> (MapParams, MapType, Spec, Vec<Vec<u8>>) {
    let map_type = rng.pick(&[
        MapType::Hash,
        MapType::Hash,
        MapType::Hash,
        MapType::Array,
        MapType::PercpuHash,
        MapType::PercpuArray,
        MapType::LruHash,
        MapType::LruPercpuHash,
        MapType::LpmTrie,
        MapType::Queue,
        MapType::Stack,
    ]);
    let slots = match map_type {
        MapType::PercpuHash | MapType::PercpuArray | MapType::LruPercpuHash => 3,
        _ => 0,
    };
    let keys = 2 + rng.index(PLACES - 3);
    // Up to one more than the keys, so that the map is full now and then, or never.
    let capacity = 1 + rng.index(keys + 1);
    let mut key_size = rng.pick(&[4, 4, 8, 16, 20, 40]);
    let mut list: Vec<Vec<u8>> = Vec::new();
    let spec = match map_type {
        MapType::Hash | MapType::PercpuHash => Spec::Hash { capacity },
        MapType::LruHash | MapType::LruPercpuHash => Spec::Lru { capacity },
        MapType::Array | MapType::PercpuArray => {
            key_size = 4;
            let entries = capacity.min(PLACES - 1);
            // One index past the end.
            list = (0..=entries as u32)
                .map(|i| i.to_le_bytes().into())
                .collect();
            Spec::Array { entries }
        }
        MapType::LpmTrie => {
            let data = rng.pick(&[1usize, 4, 16]);
            key_size = 4 + data as u32;
            list = prefixes(rng, keys, data);
            let covers = list.iter().map(|k| covering(&list, k)).collect();
            Spec::Lpm { capacity, covers }
        }
        MapType::Queue => Spec::Queue { capacity },
        _ => Spec::Stack { capacity },
    };
    let max_entries = match &spec {
        Spec::Array { entries } => *entries,
        _ => capacity,
    };
    if matches!(spec, Spec::Queue { .. } | Spec::Stack { .. }) {
        key_size = 0;
        list = vec![Vec::new()];
    }
    if list.is_empty() {
        let salt = rng.next();
        list = (0..keys as u64)
            .map(|k| bytes(mix(salt ^ k), key_size as usize))
            .collect();
    }
    let value_size = if slots > 0 {
        rng.pick(&[8, 16, 24])
    } else {
        rng.pick(&[4, 8, 12, 16, 40, 48, 56, 100])
    };
    let params = MapParams {
        map_type: map_type.0,
        key_size,
        value_size,
        max_entries: max_entries as u32,
        cpu_slots: slots,
        seed: rng.next(),
        ..MapParams::default()
    };
    (params, map_type, spec, list)
}

/// Prefixes, many of which lie within others.
fn prefixes(rng: &mut Rng, count: usize, data: usize) -> Vec<Vec<u8>> {
    let bits = data as u64 * 8;
    let mut list: Vec<Vec<u8>> = Vec::new();
    while list.len() < count {
        let len = rng.below(bits + 1) as u32;
        let mut key = len.to_le_bytes().to_vec();
        // Two patterns, so that most share their first bits.
        let pattern = rng.pick(&[0u8, 0x10]);
        key.resize(4 + data, 0);
        key[4] = pattern;
        mask(&mut key);
        if !list.contains(&key) {
            list.push(key);
        } else if bits < 16 && list.len() >= 2 {
            break;
        }
    }
    list
}

fn prefix_len(key: &[u8]) -> usize {
    key.iter()
        .take(4)
        .rev()
        .fold(0, |n, b| n << 8 | usize::from(*b))
}

/// Clears what follows the prefix: a map may keep those bytes as they were given last.
fn mask(key: &mut [u8]) {
    let len = prefix_len(key);
    for (i, byte) in key.iter_mut().skip(4).enumerate() {
        let keep = len.saturating_sub(i * 8).min(8);
        *byte &= (0xff00u16 >> keep) as u8;
    }
}

fn covering(list: &[Vec<u8>], key: &[u8]) -> Vec<u8> {
    let mut found: Vec<(usize, u8)> = Vec::new();
    for (i, other) in list.iter().enumerate() {
        let len = prefix_len(other);
        if len > prefix_len(key) {
            continue;
        }
        let mut cut = key.to_vec();
        cut[..4].copy_from_slice(&(len as u32).to_le_bytes());
        mask(&mut cut);
        if cut == *other {
            found.push((len, i as u8));
        }
    }
    found.sort_unstable_by_key(|(len, _)| std::cmp::Reverse(*len));
    found.into_iter().map(|(_, i)| i).collect()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(len + 8);
    let mut rng = Rng::new(seed);
    while all.len() < len {
        all.extend_from_slice(&rng.next().to_le_bytes());
    }
    all.truncate(len);
    all
}

/// The bytes of a value: its number, and more that follow from it, so that one put together
/// from two shows.
pub(crate) fn value_bytes(value: u32, len: usize) -> Vec<u8> {
    let mut all = value.to_le_bytes().to_vec();
    if len > 4 {
        all.extend(bytes(u64::from(value), len - 4));
    }
    all.truncate(len);
    all
}

/// The value that bytes are; `None`: none that was ever written.
fn value_of(bytes: &[u8]) -> Option<u32> {
    if bytes.iter().all(|b| *b == 0) {
        return Some(ZERO);
    }
    let value = u32::from_le_bytes(bytes.first_chunk().copied()?);
    (value >= FIRST_VALUE && value_bytes(value, bytes.len()) == bytes).then_some(value)
}

impl SimMap {
    pub(crate) fn is_line(&self) -> bool {
        matches!(self.spec, Spec::Queue { .. } | Spec::Stack { .. })
    }

    pub(crate) fn is_array(&self) -> bool {
        matches!(self.spec, Spec::Array { .. })
    }

    pub(crate) fn is_lpm(&self) -> bool {
        matches!(self.spec, Spec::Lpm { .. })
    }

    /// The key that bytes are.
    pub(crate) fn key_of(&self, bytes: &[u8]) -> Option<u8> {
        let at = self.keys.iter().position(|k| k == bytes)?;
        Some(at as u8)
    }

    /// An operation on a single element for this map, with a fresh value if it needs one.
    pub(crate) fn draw(&self, rng: &mut Rng, value: u32) -> (Kind, u8) {
        let key = rng.index(self.keys.len()) as u8;
        let flags = rng.pick(&[0, 0, 0, 0, 1, 2]);
        let set = Kind::Update { flags, value };
        let die = rng.below(16);
        if self.is_line() {
            let kind = match die {
                0..7 => Kind::Update {
                    flags: if flags == 1 { 0 } else { flags },
                    value,
                },
                7..10 => Kind::Lookup,
                _ => Kind::LookupDelete,
            };
            return (kind, 0);
        }
        let kind = match die {
            0..6 => set,
            6..11 => Kind::Lookup,
            11..13 if !self.is_array() => Kind::Delete,
            13 if !self.is_array() && !self.is_lpm() => Kind::LookupDelete,
            14 => Kind::Next,
            15 => Kind::First,
            11..14 => Kind::Lookup,
            _ => Kind::Lookup,
        };
        if self.is_array()
            && let Kind::Update { value, .. } = kind
        {
            // An entry of an array is always there.
            let flags = if flags == 1 { 0 } else { flags };
            return (Kind::Update { flags, value }, key);
        }
        (kind, key)
    }

    /// Answers since a moment say nothing any more.
    pub(crate) fn cut_at(&mut self, moment: u64) {
        self.cut = Some(self.cut.map_or(moment, |cut| cut.min(moment)));
    }

    /// The beginning of a history that has an order has one, too: what had not ended at the cut
    /// may have had its effect or not.
    fn cut_off(&mut self) {
        let Some(cut) = self.cut else {
            return;
        };
        self.calls.retain(|call| call.began < cut);
        for call in self.calls.iter_mut().filter(|call| call.ended >= cut) {
            (call.answer, call.ended) = (Answer::Unknown, u64::MAX);
            call.posted = call.posted.filter(|at| *at < cut);
        }
        self.walks.retain(|walk| walk.ended < cut);
    }

    /// The number of a value that was read.
    pub(crate) fn value_of(&self, bytes: &[u8]) -> Option<u32> {
        value_of(bytes).or_else(|| self.spoiled.then_some(GARBAGE))
    }

    /// Operations whose answer the specification speaks of: not those of unknown outcome, those that a
    /// fault has cut off, and those that met a value which nobody knows. For a history that was judged.
    pub(crate) fn verified(&self) -> u64 {
        let known = |call: &&Call| {
            let garbage = match call.kind {
                Kind::Spoil => true,
                Kind::Update { value, .. } => value == GARBAGE,
                _ => false,
            };
            !garbage && !matches!(call.answer, Answer::Unknown | Answer::Value(GARBAGE))
        };
        self.calls.iter().filter(known).count() as u64
    }

    /// Checks all that was seen of the map.
    pub(crate) fn judge(&mut self) -> Verdict {
        self.cut_off();
        self.calls.sort_by_key(|c| c.began);
        // What a walk returned too much says more than that the lookups it is made of have no order.
        let history = History {
            spec: &self.spec,
            keys: self.keys.len() as u8,
            calls: &self.calls,
        };
        if let Some(fault) = self.walks.iter().find_map(|walk| history.too_much(walk)) {
            return Verdict::Wrong(fault);
        }
        let verdict = check(&self.spec, &self.calls);
        if let Verdict::Wrong(_) = verdict {
            return verdict;
        }
        match self.walks.iter().find_map(|walk| history.left_out(walk)) {
            Some(fault) => Verdict::Wrong(fault),
            None => verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recognised_whole_only() {
        for len in [4, 8, 12, 48, 100] {
            let value = value_bytes(77, len);
            assert_eq!(value_of(&value), Some(77));
            assert_eq!(value_of(&vec![0; len]), Some(ZERO));
            if len > 4 {
                let mut torn = value_bytes(78, len);
                torn[..4].copy_from_slice(&value[..4]);
                assert_eq!(value_of(&torn), None);
            }
        }
    }

    #[test]
    fn prefixes_cover_the_ones_within_them() {
        let key = |len: u32, byte: u8| {
            let mut key = len.to_le_bytes().to_vec();
            key.push(byte);
            key
        };
        let list = vec![key(0, 0), key(4, 0x10), key(8, 0x10), key(8, 0)];
        assert_eq!(covering(&list, &list[2]), [2, 1, 0]);
        assert_eq!(covering(&list, &list[3]), [3, 0]);
    }
}
