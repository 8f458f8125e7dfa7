//! Which home buckets of a hash table hold anything, so that a walk does not visit those that
//! do not; and which of its entries are free, so that one is found near a given place.
//!
//! A tree of bits in lines of 64 bytes. Bit `n` of the lowest level: home bucket `n` is not
//! empty. Bit `n` of a higher level: line `n` of the level below is not zero. The highest level
//! is one line. The next home bucket that holds something is found in at most two lines of each
//! level, however sparse the table: seven for the largest. The tree is written only when a home
//! bucket becomes empty or ceases to be.
//!
//! Like all device memory it can be written by the host through its window. A bit that promises
//! what is not there ends the walk with [`Status::Internal`]; a missing one hides entries from
//! walks, as a missing tag hides them from lookups.
//!
//! The tree of free entries is the same with every bit turned over, since memory is zero at first and
//! all are free then. Its bits past the last entry stand for free ones that there are not.

use crate::access::Access;
use offmap_abi::{DevAddr, Status};

/// Bytes of a line.
const LINE_BYTES: u64 = 64;
/// Bits of a line.
const LINE_BITS: u64 = LINE_BYTES * 8;
/// Levels of the tree over 2^32 home buckets.
const LEVELS_MAX: usize = 4;

const _: () = assert!(LINE_BITS.pow(LEVELS_MAX as u32) >= 1 << 32);

type Line = [u64; 8];

/// Bytes of the tree over `homes` home buckets.
pub(crate) fn tree_bytes(homes: u64) -> u64 {
    let mut bytes = 0;
    let mut lines = homes;
    loop {
        lines = lines.div_ceil(LINE_BITS);
        bytes += lines * LINE_BYTES;
        if lines <= 1 {
            return bytes;
        }
    }
}

/// A level of the tree.
#[derive(Clone, Copy, Debug)]
struct Level {
    at: DevAddr,
    lines: u64,
    flip: u64,
}

/// The tree of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupancy {
    base: DevAddr,
    homes: u64,
    /// What bits in memory are turned over with.
    flip: u64,
}

impl Occupancy {
    /// The tree at `base` over `homes` home buckets, 1 to 2^32.
    pub(crate) fn new(base: DevAddr, homes: u64) -> Self {
        Self {
            base,
            homes,
            flip: 0,
        }
    }

    /// The tree of free entries at `base`, likewise; set are those that are free.
    pub(crate) fn free(base: DevAddr, entries: u64) -> Self {
        Self {
            flip: !0,
            ..Self::new(base, entries)
        }
    }

    /// What a bit past the end comes to.
    fn past_end(&self) -> Result<Option<u64>, Status> {
        match self.flip {
            0 => Err(Status::Internal),
            _ => Ok(None),
        }
    }

    /// The levels from the lowest up; those that the tree does not have are without lines.
    fn levels(&self) -> [Level; LEVELS_MAX] {
        let none = Level {
            at: self.base,
            lines: 0,
            flip: self.flip,
        };
        let mut levels = [none; LEVELS_MAX];
        let mut at = self.base;
        let mut lines = self.homes;
        for level in &mut levels {
            lines = lines.div_ceil(LINE_BITS);
            *level = Level {
                at,
                lines,
                flip: self.flip,
            };
            if lines <= 1 {
                break;
            }
            at = at.offset(lines * LINE_BYTES);
        }
        levels
    }

    /// The first home bucket from `from` on that holds something.
    pub(crate) fn next(&self, access: &mut impl Access, from: u64) -> Result<Option<u64>, Status> {
        let levels = self.levels();
        let mut index = from;
        let mut height = 0;
        // Up, until a line has a bit at or after the index.
        let mut found = loop {
            let Some(level) = levels.get(height) else {
                return Ok(None);
            };
            let line = index / LINE_BITS;
            if line >= level.lines {
                return Ok(None);
            }
            match first_from(&level.read(access, line)?, index % LINE_BITS) {
                Some(bit) => break line * LINE_BITS + bit,
                None => index = line + 1,
            }
            height += 1;
        };
        // And down to the home bucket.
        for level in levels[..height].iter().rev() {
            if found >= level.lines {
                return self.past_end();
            }
            let bit = first_from(&level.read(access, found)?, 0).ok_or(Status::Internal)?;
            found = found * LINE_BITS + bit;
        }
        if found >= self.homes {
            return self.past_end();
        }
        Ok(Some(found))
    }

    /// `home` is no longer empty.
    pub(crate) fn set(&self, access: &mut impl Access, home: u64) -> Result<(), Status> {
        let mut index = home;
        for level in self.levels() {
            let line = index / LINE_BITS;
            if line >= level.lines {
                break;
            }
            let words = level.read(access, line)?;
            let word = (index % LINE_BITS / 64) as usize;
            level.write(access, line, word, words[word] | 1 << (index % 64))?;
            if words != Line::default() {
                break;
            }
            index = line;
        }
        Ok(())
    }

    /// `home` is empty.
    pub(crate) fn clear(&self, access: &mut impl Access, home: u64) -> Result<(), Status> {
        let mut index = home;
        for level in self.levels() {
            let line = index / LINE_BITS;
            if line >= level.lines {
                break;
            }
            let mut words = level.read(access, line)?;
            let word = (index % LINE_BITS / 64) as usize;
            words[word] &= !(1 << (index % 64));
            level.write(access, line, word, words[word])?;
            if words != Line::default() {
                break;
            }
            index = line;
        }
        Ok(())
    }
}

impl Level {
    fn read(&self, access: &mut impl Access, line: u64) -> Result<Line, Status> {
        let bytes: [u8; LINE_BYTES as usize] = access.read(self.at.offset(line * LINE_BYTES))?;
        let mut words = Line::default();
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes) ^ self.flip;
        }
        Ok(words)
    }

    fn write(
        &self,
        access: &mut impl Access,
        line: u64,
        word: usize,
        value: u64,
    ) -> Result<(), Status> {
        let at = self.at.offset(line * LINE_BYTES + 8 * word as u64);
        Ok(access.write_u64(at, value ^ self.flip)?)
    }
}

/// The first bit of a line from `bit` on that is set.
fn first_from(line: &Line, bit: u64) -> Option<u64> {
    let first = (bit / 64) as usize;
    let mut mask = !0 << (bit % 64);
    for (index, &word) in line.iter().enumerate().skip(first) {
        let word = word & mask;
        if word != 0 {
            return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
        }
        mask = !0;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::MemoryFault;
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::vec;
    use alloc::vec::Vec;

    /// Memory of any size, of which only the lines that were written exist. Counts accesses.
    #[derive(Default)]
    struct Sparse {
        lines: BTreeMap<u64, [u8; 64]>,
        accesses: u64,
    }

    impl Access for Sparse {
        fn with_bytes<R>(
            &mut self,
            at: DevAddr,
            len: usize,
            f: impl FnOnce(&[u8]) -> R,
        ) -> Result<R, MemoryFault> {
            self.accesses += 1;
            let bytes: Vec<u8> = (at.0..at.0 + len as u64)
                .map(|at| {
                    let line = self.lines.get(&(at / 64));
                    line.map_or(0, |line| line[(at % 64) as usize])
                })
                .collect();
            Ok(f(&bytes))
        }

        fn with_bytes_mut<R>(
            &mut self,
            at: DevAddr,
            len: usize,
            f: impl FnOnce(&mut [u8]) -> R,
        ) -> Result<R, MemoryFault> {
            self.accesses += 1;
            let mut bytes = vec![0; len];
            let result = f(&mut bytes);
            for (at, byte) in (at.0..).zip(bytes) {
                self.lines.entry(at / 64).or_insert([0; 64])[(at % 64) as usize] = byte;
            }
            Ok(result)
        }
    }

    #[test]
    fn agrees_with_a_set_on_trees_of_every_height() {
        for homes in [1, 2, 512, 1024, 1 << 18, 1 << 19, 1 << 26, 1 << 29, 1 << 32] {
            let mut memory = Sparse::default();
            let tree = Occupancy::new(DevAddr(128), homes);
            let end = 128 + tree_bytes(homes);
            let mut model = BTreeSet::new();
            let mut random = homes | 1;
            for round in 0..3000u64 {
                random = random
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(0x1405_7b7e_f767_814f);
                // Clustered and spread, with the first and the last.
                let home = match round % 4 {
                    0 => (random >> 33) % homes,
                    1 => (random >> 40) % 700 % homes,
                    2 => homes - 1 - (random >> 40) % 700 % homes,
                    _ => (random >> 60) * (homes / 16).max(1) % homes,
                };
                // In the second half more go than come, so that the tree empties.
                if random >> 20 & 7 < if round < 1500 { 5 } else { 2 } {
                    tree.set(&mut memory, home).unwrap();
                    model.insert(home);
                } else {
                    let gone = model.range(home..).next().copied().unwrap_or(home);
                    tree.clear(&mut memory, gone).unwrap();
                    model.remove(&gone);
                }
                let from = (random >> 13) % (homes + 2);
                for from in [from, home, 0, homes] {
                    memory.accesses = 0;
                    let next = tree.next(&mut memory, from);
                    assert_eq!(next, Ok(model.range(from..).next().copied()), "{homes}");
                    assert!(memory.accesses <= 7, "{} accesses", memory.accesses);
                }
            }
            for home in model {
                tree.clear(&mut memory, home).unwrap();
            }
            assert!(memory.lines.values().all(|line| *line == [0; 64]));
            let inside = 128 / 64..end / 64;
            assert!(memory.lines.keys().all(|line| inside.contains(line)));
        }
    }

    #[test]
    fn bits_that_promise_nothing_end_the_walk() {
        let homes = 1 << 20;
        let tree = Occupancy::new(DevAddr(0), homes);
        let levels = tree.levels();
        assert_eq!(levels.map(|level| level.lines), [2048, 4, 1, 0]);
        // A middle bit over an empty line; a top bit past the level below.
        for (level, value) in [(1, 1u64 << 5), (2, 1 << 9)] {
            let mut memory = Sparse::default();
            memory.write_u64(levels[level].at, value).unwrap();
            assert_eq!(tree.next(&mut memory, 0), Err(Status::Internal));
        }
        // A bit for a home bucket past the last.
        let tree = Occupancy::new(DevAddr(0), 4);
        let mut memory = Sparse::default();
        memory.write_u64(DevAddr(0), 1 << 4).unwrap();
        assert_eq!(tree.next(&mut memory, 0), Err(Status::Internal));
    }

    /// Get-first on an empty table of 2^26 home buckets, and a walk over a few keys in it.
    #[test]
    fn a_sparse_table_is_walked_at_the_cost_of_its_keys() {
        use crate::table::ValueWrite;
        use crate::table::hash::HashTable;
        use crate::table::layout::{Geometry, MapKind, MapSpec};

        let spec = MapSpec {
            kind: MapKind::Hash,
            key_size: 8,
            value_size: 8,
            max_entries: 6 << 26,
            cpu_slots: 0,
            seed: 3,
            name: [0; 16],
            map_extra: 0,
            host_memory: 0,
            vector: 0,
        };
        let geometry = Geometry::new(&spec).unwrap();
        assert_eq!(geometry.home_count, 1 << 26);
        let table = HashTable::new(DevAddr(0), &spec, &geometry);
        let mut memory = Sparse::default();
        let next = |memory: &mut Sparse, key: Option<&[u8]>| {
            memory.accesses = 0;
            let next = table.with_next(memory, key, |m, at| m.read::<8>(at).unwrap());
            // Bucket and entry of the key, its chain again, the tree, the next bucket and key.
            assert!(memory.accesses <= 3 + 7 + 2, "{} accesses", memory.accesses);
            next
        };
        assert_eq!(next(&mut memory, None), Err(Status::NotFound));
        assert!(memory.accesses <= 4);
        let keys: BTreeSet<[u8; 8]> = (0..1000u64).map(u64::to_le_bytes).collect();
        for key in &keys {
            table
                .update(&mut memory, key, ValueWrite::All(&[1; 8]), 0)
                .unwrap();
        }
        let mut seen = BTreeSet::new();
        let mut at = next(&mut memory, None);
        while let Ok(key) = at {
            assert!(seen.insert(key));
            at = next(&mut memory, Some(&key));
        }
        assert_eq!(seen, keys);
        for key in &keys {
            table.delete(&mut memory, key).unwrap();
        }
        assert_eq!(next(&mut memory, None), Err(Status::NotFound));
    }
}
