//! A plain model of LPM_TRIE: a list of prefixes in the order in which the kernel lists them.
//!
//! It knows no trie. A prefix that lies within another comes before it; of two that part, the
//! one with the 0 bit does. That is what post-order of the kernel's trie comes to.

use crate::model::Shape;
use crate::subject::{Answered, Subject, Walked};
use std::cmp::Ordering;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ENOTSUPP: i32 = 524;
const BPF_F_LOCK: u64 = 4;

/// The model.
pub struct TrieModel {
    shape: Shape,
    /// Keys as they were given last, with their values, in order.
    prefixes: Vec<(Vec<u8>, Vec<u8>)>,
    frozen: bool,
}

fn length(key: &[u8]) -> usize {
    u32::from_ne_bytes([key[0], key[1], key[2], key[3]]) as usize
}

fn bit(key: &[u8], index: usize) -> u8 {
    key[4 + index / 8] >> (7 - index % 8) & 1
}

/// The order of two prefixes, both of lengths that the map can have; equal where they are the
/// same prefix.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    let both = length(a).min(length(b));
    (0..both)
        .map(|index| bit(a, index).cmp(&bit(b, index)))
        .find(|order| order.is_ne())
        .unwrap_or(length(b).cmp(&length(a)))
}

/// Whether `key` lies within `prefix`.
fn covers(prefix: &[u8], key: &[u8]) -> bool {
    length(prefix) <= length(key) && (0..length(prefix)).all(|i| bit(prefix, i) == bit(key, i))
}

/// No map here has a lock to take, and batches know no other flag.
fn no_flags(flags: u64) -> Answered {
    if flags == 0 { Ok(()) } else { Err(EINVAL) }
}

impl TrieModel {
    /// A new map.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            prefixes: Vec::new(),
            frozen: false,
        }
    }

    /// All elements in order.
    pub fn elements(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.prefixes
    }

    fn is_key(&self, key: &[u8]) -> bool {
        length(key) <= (key.len() - 4) * 8
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.prefixes
            .binary_search_by(|(prefix, _)| order(prefix, key))
    }

    fn writable(&self) -> Answered {
        if self.frozen { Err(EPERM) } else { Ok(()) }
    }

    /// Place of the key after `key`.
    fn after(&self, key: Option<&[u8]>) -> usize {
        let present = key.filter(|key| self.is_key(key)).map(|key| self.find(key));
        match present {
            Some(Ok(at)) => at + 1,
            _ => 0,
        }
    }
}

impl Subject for TrieModel {
    fn name(&self) -> &'static str {
        "model"
    }

    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered {
        no_flags(flags)?;
        if !self.is_key(key) {
            return Err(ENOENT);
        }
        let covering = self.prefixes.iter().filter(|(p, _)| covers(p, key));
        let (_, found) = covering.max_by_key(|(p, _)| length(p)).ok_or(ENOENT)?;
        value.copy_from_slice(found);
        Ok(())
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered {
        self.writable()?;
        if flags > 2 || !self.is_key(key) {
            return Err(EINVAL);
        }
        match self.find(key) {
            Ok(_) if flags == 1 => Err(EEXIST),
            Ok(at) => {
                self.prefixes[at] = (key.to_vec(), value.to_vec());
                Ok(())
            }
            Err(_) if flags == 2 => Err(ENOENT),
            Err(_) if self.prefixes.len() == self.shape.max_entries as usize => Err(ENOSPC),
            Err(at) => {
                self.prefixes.insert(at, (key.to_vec(), value.to_vec()));
                Ok(())
            }
        }
    }

    fn delete(&mut self, key: &[u8]) -> Answered {
        self.writable()?;
        if !self.is_key(key) {
            return Err(EINVAL);
        }
        let at = self.find(key).map_err(|_| ENOENT)?;
        self.prefixes.remove(at);
        Ok(())
    }

    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered {
        let (found, _) = self.prefixes.get(self.after(key)).ok_or(ENOENT)?;
        next.copy_from_slice(found);
        Ok(())
    }

    fn lookup_and_delete(&mut self, _key: &[u8], _value: &mut [u8], flags: u64) -> Answered {
        if flags & !BPF_F_LOCK != 0 {
            return Err(EINVAL);
        }
        self.writable()?;
        no_flags(flags)?;
        Err(ENOTSUPP)
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
        if let Err(e) = self.writable().and(no_flags(elem_flags)) {
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

    fn walk_batch(
        &mut self,
        cursor: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked {
        let mut walked = Walked {
            count: 0,
            cursor: cursor.map_or(vec![0; self.shape.key_size as usize], <[u8]>::to_vec),
            result: Ok(()),
        };
        let refused = match delete {
            true => self.writable().and(Err(ENOTSUPP)),
            false => no_flags(elem_flags),
        };
        if let Err(errno) = refused {
            walked.result = Err(errno);
            return walked;
        }
        let (key_bytes, value_bytes) = (self.shape.key_size as usize, self.shape.value_bytes());
        let (from, count) = (self.after(cursor), count as usize);
        for (i, (key, value)) in self.prefixes[from..].iter().take(count).enumerate() {
            keys[i * key_bytes..][..key_bytes].copy_from_slice(key);
            values[i * value_bytes..][..value_bytes].copy_from_slice(value);
            walked.cursor.copy_from_slice(key);
            walked.count += 1;
        }
        if (walked.count as usize) < count {
            walked.result = Err(ENOENT);
        }
        walked
    }

    fn freeze(&mut self) -> Answered {
        self.writable()?;
        self.frozen = true;
        Ok(())
    }
}
