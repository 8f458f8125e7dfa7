//! A plain model of the four map types, written from the kernel's contract and sharing no
//! code with the tables it judges.

use crate::subject::{Answered, Subject, Walked};
use offmap_bpf::uapi::MapType;
use std::collections::BTreeMap;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOTSUPP: i32 = 524;
const BPF_F_LOCK: u64 = 4;

/// What a map is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Type.
    pub map_type: MapType,
    /// Key size in bytes.
    pub key_size: u32,
    /// Value size in bytes, of one CPU.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// Flags of BPF_MAP_CREATE.
    pub map_flags: u32,
    /// `map_extra` of BPF_MAP_CREATE.
    pub map_extra: u64,
    /// Values per element of a per-CPU type.
    pub cpus: u32,
}

impl Shape {
    /// Whether the map is one of the two array types.
    pub fn is_array(&self) -> bool {
        matches!(self.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY)
    }

    /// Whether every map of the type lists its keys in one and the same order.
    pub fn is_ordered(&self) -> bool {
        self.is_array() || self.map_type == MapType::LPM_TRIE
    }

    /// Bytes of one value as user space passes it.
    pub fn value_bytes(&self) -> usize {
        if self.map_type.is_percpu() {
            self.value_size.next_multiple_of(8) as usize * self.cpus as usize
        } else {
            self.value_size as usize
        }
    }
}

enum Contents {
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    Array(Vec<Vec<u8>>),
}

/// The model.
pub struct Model {
    shape: Shape,
    contents: Contents,
    frozen: bool,
}

impl Model {
    /// A new map.
    pub fn new(shape: Shape) -> Self {
        let contents = if shape.is_array() {
            Contents::Array(vec![
                vec![0; shape.value_bytes()];
                shape.max_entries as usize
            ])
        } else {
            Contents::Hash(BTreeMap::new())
        };
        Self {
            shape,
            contents,
            frozen: false,
        }
    }

    /// Whether `key` is in the map.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.contents {
            Contents::Hash(map) => map.contains_key(key),
            Contents::Array(values) => index(key) < values.len(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.contents {
            Contents::Hash(map) => map.len(),
            Contents::Array(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements, by key.
    pub fn elements(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        match &self.contents {
            Contents::Hash(map) => map.clone(),
            Contents::Array(values) => values
                .iter()
                .enumerate()
                .map(|(i, value)| ((i as u32).to_ne_bytes().to_vec(), value.clone()))
                .collect(),
        }
    }

    fn writable(&self) -> Answered {
        if self.frozen { Err(EPERM) } else { Ok(()) }
    }
}

fn index(key: &[u8]) -> usize {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(key);
    u32::from_ne_bytes(bytes) as usize
}

/// Lookups know no flag but BPF_F_LOCK, and no map here has a lock to take.
fn no_flags(flags: u64) -> Answered {
    if flags == 0 { Ok(()) } else { Err(EINVAL) }
}

impl Subject for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        no_flags(flags)?;
        let found = match &self.contents {
            Contents::Hash(map) => map.get(key),
            Contents::Array(values) => values.get(index(key)),
        };
        value.copy_from_slice(found.ok_or(ENOENT)?);
        Ok(())
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered {
        self.writable()?;
        if flags > 2 {
            return Err(EINVAL);
        }
        match &mut self.contents {
            Contents::Hash(map) => {
                let (present, room) = (
                    map.contains_key(key),
                    map.len() < self.shape.max_entries as usize,
                );
                match (flags, present) {
                    (1, true) => Err(EEXIST),
                    (2, false) => Err(ENOENT),
                    (_, false) if !room => Err(E2BIG),
                    _ => {
                        map.insert(key.to_vec(), value.to_vec());
                        Ok(())
                    }
                }
            }
            Contents::Array(values) => {
                let slot = values.get_mut(index(key)).ok_or(E2BIG)?;
                if flags == 1 {
                    return Err(EEXIST);
                }
                slot.copy_from_slice(value);
                Ok(())
            }
        }
    }

    fn delete(&mut self, key: &[u8]) -> Answered {
        self.writable()?;
        match &mut self.contents {
            Contents::Hash(map) => map.remove(key).map(drop).ok_or(ENOENT),
            Contents::Array(_) => Err(EINVAL),
        }
    }

    /// In key order for hash types, where only the set means anything.
    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered {
        match &self.contents {
            Contents::Hash(map) => {
                let after = key.filter(|key| map.contains_key(*key));
                let found = match after {
                    Some(key) => map.keys().find(|k| k.as_slice() > key),
                    None => map.keys().next(),
                };
                next.copy_from_slice(found.ok_or(ENOENT)?);
            }
            Contents::Array(values) => {
                let to = match key.map(index) {
                    Some(i) if i + 1 == values.len() => return Err(ENOENT),
                    Some(i) if i < values.len() => i + 1,
                    _ => 0,
                };
                next.copy_from_slice(&(to as u32).to_ne_bytes());
            }
        }
        Ok(())
    }

    fn lookup_and_delete(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        // Bits that no map knows are refused before the map is looked at; BPF_F_LOCK after.
        if flags & !BPF_F_LOCK != 0 {
            return Err(EINVAL);
        }
        self.writable()?;
        no_flags(flags)?;
        match &mut self.contents {
            Contents::Hash(map) => {
                value.copy_from_slice(&map.remove(key).ok_or(ENOENT)?);
                Ok(())
            }
            Contents::Array(_) => Err(ENOTSUPP),
        }
    }

    fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
    ) -> (u32, Answered) {
        if let Err(e) = self.writable().and(no_flags(elem_flags)) {
            return (0, Err(e));
        }
        let (key_bytes, value_bytes) = (self.shape.key_size as usize, self.shape.value_bytes());
        for i in 0..count as usize {
            let key = &keys[i * key_bytes..][..key_bytes];
            let value = &values[i * value_bytes..][..value_bytes];
            if let Err(e) = self.update(key, value, 0) {
                return (i as u32, Err(e));
            }
        }
        (count, Ok(()))
    }

    fn delete_batch(&mut self, keys: &[u8], count: u32, elem_flags: u64) -> (u32, Answered) {
        if let Err(e) = self.writable() {
            return (0, Err(e));
        }
        if self.shape.is_array() {
            return (0, Err(ENOTSUPP));
        }
        if let Err(e) = no_flags(elem_flags) {
            return (0, Err(e));
        }
        let key_bytes = self.shape.key_size as usize;
        for i in 0..count as usize {
            if let Err(e) = self.delete(&keys[i * key_bytes..][..key_bytes]) {
                return (i as u32, Err(e));
            }
        }
        (count, Ok(()))
    }

    /// Array cursors are exact; a hash cursor counts elements in key order.
    fn walk_batch(
        &mut self,
        cursor: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked {
        let from = cursor.map_or(0, |token| index(token) as u32);
        let token = |at: u32| at.to_ne_bytes().to_vec();
        let failed = |errno| Walked {
            count: 0,
            cursor: token(from),
            result: Err(errno),
        };
        if delete && self.frozen {
            return failed(EPERM);
        }
        if delete && self.shape.is_array() {
            return failed(ENOTSUPP);
        }
        if no_flags(elem_flags).is_err() {
            return failed(EINVAL);
        }
        let array = self.shape.is_array();
        let elements: Vec<_> = match &self.contents {
            Contents::Hash(map) => map.clone().into_iter().collect(),
            Contents::Array(values) => (0u32..)
                .map(|i| i.to_ne_bytes().to_vec())
                .zip(values.iter().cloned())
                .collect(),
        };
        let start = match cursor.map(index) {
            // The token of an array is the last key returned; one out of range starts over.
            Some(last) if array && last < elements.len() => last + 1,
            Some(at) if !array => at,
            _ => 0,
        };
        if count == 0 {
            return Walked {
                count: 0,
                cursor: token(from),
                result: Ok(()),
            };
        }
        let end = elements.len().min(start + count as usize);
        let (key_bytes, value_bytes) = (self.shape.key_size as usize, self.shape.value_bytes());
        for (i, (key, value)) in elements[start..end].iter().enumerate() {
            keys[i * key_bytes..][..key_bytes].copy_from_slice(key);
            values[i * value_bytes..][..value_bytes].copy_from_slice(value);
            if delete {
                let _ = self.delete(key);
            }
        }
        let got = (end - start) as u32;
        Walked {
            count: got,
            cursor: token(match (array, got) {
                (_, 0) => from,
                (true, _) => end as u32 - 1,
                (false, _) if delete => start as u32,
                (false, _) => end as u32,
            }),
            result: if got < count { Err(ENOENT) } else { Ok(()) },
        }
    }

    fn freeze(&mut self) -> Answered {
        self.writable()?;
        self.frozen = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(map_type: MapType, max_entries: u32) -> Shape {
        Shape {
            map_type,
            key_size: 4,
            value_size: 8,
            max_entries,
            map_flags: 0,
            map_extra: 0,
            cpus: 1,
        }
    }

    /// The rows of the contract's table F for host maps (key 4, value 8, two entries).
    #[test]
    fn the_recorded_answers() {
        let key = |i: u32| i.to_ne_bytes();
        let (mut v, mut k) = ([0; 8], [0; 4]);

        let mut hash = Model::new(shape(MapType::HASH, 2));
        assert_eq!(hash.get_next_key(None, &mut k), Err(ENOENT));
        assert_eq!(hash.lookup(&key(0), &mut v, 0), Err(ENOENT));
        assert_eq!(hash.update(&key(0), &[1; 8], 2), Err(ENOENT));
        assert_eq!(hash.update(&key(0), &[1; 8], 1), Ok(()));
        assert_eq!(hash.update(&key(0), &[1; 8], 1), Err(EEXIST));
        assert_eq!(hash.update(&key(1), &[2; 8], 0), Ok(()));
        assert_eq!(hash.update(&key(2), &[2; 8], 0), Err(E2BIG));
        assert_eq!(hash.update(&key(2), &[2; 8], 2), Err(ENOENT));
        assert_eq!(hash.update(&key(1), &[3; 8], 0), Ok(()));
        assert_eq!(hash.lookup_and_delete(&key(1), &mut v, 4), Err(EINVAL));
        assert_eq!(hash.lookup_and_delete(&key(1), &mut v, 0), Ok(()));
        assert_eq!(v, [3; 8]);
        assert_eq!(hash.freeze(), Ok(()));
        assert_eq!(hash.freeze(), Err(EPERM));
        assert_eq!(hash.update(&key(0), &[1; 8], 77), Err(EPERM));

        let mut array = Model::new(shape(MapType::ARRAY, 2));
        assert_eq!(array.get_next_key(None, &mut k), Ok(()));
        assert_eq!(array.get_next_key(Some(&key(1)), &mut k), Err(ENOENT));
        assert_eq!(array.get_next_key(Some(&key(9)), &mut k), Ok(()));
        assert_eq!(k, key(0));
        assert_eq!(array.lookup(&key(2), &mut v, 0), Err(ENOENT));
        assert_eq!(array.update(&key(2), &v, 0), Err(E2BIG));
        assert_eq!(array.update(&key(2), &v, 2), Err(E2BIG));
        assert_eq!(array.update(&key(0), &v, 1), Err(EEXIST));
        assert_eq!(array.delete(&key(0)), Err(EINVAL));
        assert_eq!(array.lookup_and_delete(&key(0), &mut v, 0), Err(ENOTSUPP));
        assert_eq!(array.lookup_and_delete(&key(0), &mut v, 9), Err(EINVAL));
    }
}
