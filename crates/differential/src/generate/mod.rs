//! Calls, drawn from a seed: mostly such as succeed, and each way of being wrong now and then.

mod create;
mod elements;
mod objects;

use crate::sides::{Call, IdKind, Region, Sides};
use offmap_bpf::MapType;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::BTreeMap;

/// Where things are in the arena. The attribute first: up to a page of it, and a little more.
pub(crate) const ATTR: usize = 0;
pub(crate) const KEY: usize = 5120;
pub(crate) const VALUE: usize = 6144;
pub(crate) const KEYS: usize = 10240;
pub(crate) const VALUES: usize = 18432;
pub(crate) const IN_BATCH: usize = 49152;
pub(crate) const OUT_BATCH: usize = 50176;
pub(crate) const INFO: usize = 51200;
pub(crate) const BLOB: usize = 54272;
pub(crate) const PATH: usize = 60416;

/// Bytes of the attribute that are zeroed for every call.
const ATTR_BYTES: usize = 256;
/// `sizeof(union bpf_attr)` of this version.
pub(crate) const UAPI_ATTR_BYTES: u32 = 168;
/// Maps open at a time.
const POPULATION: usize = 10;
/// The longest key and value of one element, as user space passes it, that are drawn.
pub(crate) const MAX_KEY: usize = 512;
pub(crate) const MAX_VALUE: usize = 2048;

/// A map that is open on both sides.
#[derive(Clone, Debug)]
pub(crate) struct MapState {
    pub(crate) fd: i32,
    pub(crate) map_type: MapType,
    pub(crate) key_size: usize,
    /// Of one element as user space passes it.
    pub(crate) value_bytes: usize,
    pub(crate) max_entries: u32,
    pub(crate) kernel_id: u32,
    /// Whether the order of a walk is fixed by what the kernel documents, or by BPF_F_ZERO_SEED.
    pub(crate) ordered: bool,
    /// The token of its last batch walk, if that ended within the map.
    pub(crate) token: Option<Vec<u8>>,
    /// Whether its values have a spin lock.
    pub(crate) locked: bool,
}

impl MapState {
    pub(crate) fn is_hash(&self) -> bool {
        matches!(
            self.map_type,
            MapType::HASH
                | MapType::PERCPU_HASH
                | MapType::LRU_HASH
                | MapType::LRU_PERCPU_HASH
                | MapType::HASH_OF_MAPS
        )
    }

    pub(crate) fn is_array(&self) -> bool {
        matches!(
            self.map_type,
            MapType::ARRAY | MapType::PERCPU_ARRAY | MapType::ARRAY_OF_MAPS
        )
    }

    pub(crate) fn holds_maps(&self) -> bool {
        matches!(
            self.map_type,
            MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS
        )
    }

    pub(crate) fn token_bytes(&self) -> usize {
        if self.is_hash() { 4 } else { self.key_size }
    }
}

/// What to do next.
pub(crate) enum Action {
    Call(Call),
    Close(usize),
    Dup(usize),
}

/// What a call would change in the generator's picture if it succeeds.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    Nothing,
    Map(Box<MapState>),
    /// Another descriptor of the map at this index.
    Opened(usize),
    /// A batch walk of the map at this index: its token goes on from here.
    Walk(usize),
    Btf(objects::BtfState),
    /// The map at this index under a name of the pin directory.
    Pinned(u32, usize),
    /// Another descriptor of a map that is not known, or not any more.
    Unknown,
}

pub(crate) struct Generator {
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) maps: Vec<MapState>,
    pub(crate) btfs: Vec<objects::BtfState>,
    pub(crate) closed: Vec<i32>,
    pub(crate) possible_cpus: usize,
    pub(crate) foreign_fd: i32,
    /// Which map each name of the pin directory has, by its kernel id.
    pub(crate) pins: BTreeMap<u32, u32>,
    base: u64,
    len: usize,
    attr: [u8; ATTR_BYTES],
    pub(crate) regions: Vec<Region>,
}

impl Generator {
    pub(crate) fn new(seed: u64, sides: &Sides) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            maps: Vec::new(),
            btfs: Vec::new(),
            closed: Vec::new(),
            possible_cpus: sides.system().config().possible_cpus as usize,
            foreign_fd: sides.foreign_fd(),
            pins: BTreeMap::new(),
            base: sides.base(),
            len: sides.len(),
            attr: [0; ATTR_BYTES],
            regions: Vec::new(),
        }
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    pub(crate) fn set32(&mut self, at: usize, value: u32) {
        self.attr[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn set64(&mut self, at: usize, value: u64) {
        self.attr[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn address(&self, at: usize) -> u64 {
        self.base + at as u64
    }

    /// A pointer to `len` bytes at `at`, which the call may reach; or, one time in thirty, one
    /// that faults.
    pub(crate) fn pointer(&mut self, at: usize, len: usize) -> u64 {
        self.pointer_or_fault(at, len, true)
    }

    /// As [`Generator::pointer`]; never one that faults unless `may_fault`.
    pub(crate) fn pointer_or_fault(&mut self, at: usize, len: usize, may_fault: bool) -> u64 {
        if self.one_in(30) && may_fault {
            let end = self.base + self.len as u64;
            let short = self.rng.random_range(1..64);
            // The last of these lies across the end of the arena.
            self.regions.push(Region {
                at: self.len - 64,
                len: 64,
            });
            return self.pick(&[0, 1, 4095, end, 1 << 63, u64::MAX, end - short]);
        }
        self.regions.push(Region { at, len });
        self.address(at)
    }

    /// Where in the arena a pointer leads, if all of `len` bytes there are of it.
    pub(crate) fn place(&self, pointer: u64, len: usize) -> Option<usize> {
        let at = usize::try_from(pointer.checked_sub(self.base)?).ok()?;
        (at.checked_add(len)? <= self.len).then_some(at)
    }

    /// A descriptor: the map's, or now and then one that is not.
    pub(crate) fn fd_of(&mut self, index: usize) -> i32 {
        if !self.one_in(60) {
            return self.maps[index].fd;
        }
        let closed = self.closed.last().copied().unwrap_or(-1);
        let btf = self.btfs.last().map_or(-2, |btf| btf.fd);
        let open = |fd: i32, maps: &[MapState]| maps.iter().any(|map| map.fd == fd);
        let closed = if open(closed, &self.maps) || self.btfs.iter().any(|btf| btf.fd == closed) {
            -1
        } else {
            closed
        };
        let foreign = self.foreign_fd;
        self.pick(&[-1, foreign, closed, btf, i32::MIN, 0x7fff_ffff])
    }

    /// The call whose fields were set: its size is the command's own or larger, and now and
    /// then something is set behind its last field.
    pub(crate) fn finish(
        &mut self,
        sides: &mut Sides,
        command: u32,
        end: usize,
        what: &'static str,
    ) -> Call {
        let mut size = if self.one_in(2) {
            UAPI_ATTR_BYTES
        } else {
            end as u32
        };
        let mut attr = self.address(ATTR);
        let whole = match end {
            // A batch's descriptor ends at 40, and noise may be one's.
            56 | 64 => 40,
            92 => 92,
            _ => 4,
        };
        let mut tail = None;
        match self.rng.random_range(0..400) {
            0 => {
                let at = self.rng.random_range(end..ATTR_BYTES);
                self.attr[at] = 1;
                size = UAPI_ATTR_BYTES.max(size);
            }
            // Not so short that a part of a descriptor would be another one.
            1 => size = self.rng.random_range(whole.min(end) as u32..=end as u32),
            2 => size = self.rng.random_range(end as u32..=ATTR_BYTES as u32),
            3 => size = self.pick(&[4096, 4097, 8192, u32::MAX]),
            4 => {
                size = 4096;
                tail = Some(self.rng.random_range(ATTR_BYTES..4096));
            }
            5 => attr = self.pick(&[0, 8, self.base + self.len as u64]),
            _ => {}
        }
        if attr == self.address(ATTR) {
            self.regions.push(Region {
                at: ATTR,
                len: ATTR_BYTES,
            });
        }
        sides.put(ATTR, &self.attr);
        sides.fill(
            Region {
                at: ATTR_BYTES,
                len: KEY - ATTR_BYTES,
            },
            0,
        );
        if let Some(at) = tail {
            sides.put(at, &[1]);
        }
        self.attr = [0; ATTR_BYTES];
        Call {
            command,
            attr,
            size,
            regions: std::mem::take(&mut self.regions),
            ids_in: Vec::new(),
            ids_out: Vec::new(),
            unspecified: Vec::new(),
            what,
        }
    }

    /// What comes next, and what to note if it succeeds.
    pub(crate) fn next(&mut self, sides: &mut Sides) -> (Action, Expect) {
        if self.maps.is_empty() || self.maps.len() < POPULATION && self.one_in(25) {
            return self.create(sides);
        }
        let index = self.rng.random_range(0..self.maps.len());
        match self.rng.random_range(0..1000) {
            0..220 => self.lookup(sides, index),
            220..480 => self.update(sides, index),
            480..560 => self.delete(sides, index),
            560..680 => self.get_next_key(sides, index),
            680..740 => self.lookup_and_delete(sides, index),
            740..780 => self.store_batch(sides, index, true),
            780..800 => self.store_batch(sides, index, false),
            800..860 => self.walk_batch(sides, index),
            860 => self.freeze(sides, index),
            861..904 => self.info(sides, index),
            904..914 => self.next_id(sides, index),
            914..934 => self.fd_by_id(sides, index),
            934..944 => self.create(sides),
            944..952 => self.load_btf(sides),
            952..954 => self.btf_by_id(sides),
            954..962 => self.junk(sides),
            962..970 => (Action::Dup(index), Expect::Opened(index)),
            990..996 if sides.has_pins() => self.pin(sides, index),
            996..1000 if sides.has_pins() => self.get_pin(sides, index),
            970..990 if self.maps.len() > 3 => (Action::Close(index), Expect::Nothing),
            _ => self.lookup(sides, index),
        }
    }

    /// Notes what a call that succeeded has made.
    pub(crate) fn note(&mut self, expect: Expect, result: i32, sides: &mut Sides) {
        match expect {
            Expect::Nothing | Expect::Walk(_) => {}
            Expect::Pinned(name, index) => {
                self.pins.insert(name, self.maps[index].kernel_id);
            }
            Expect::Unknown => {
                sides.close(result);
                self.closed.push(result);
            }
            Expect::Map(mut map) => {
                map.fd = result;
                self.maps.push(*map);
            }
            Expect::Opened(index) => {
                let map = MapState {
                    fd: result,
                    ..self.maps[index].clone()
                };
                self.maps.push(map);
            }
            Expect::Btf(mut btf) => {
                btf.fd = result;
                self.btfs.push(btf);
            }
        }
        while self.maps.len() > POPULATION {
            let index = self.rng.random_range(0..self.maps.len());
            let gone = self.maps.swap_remove(index);
            sides.close(gone.fd);
            self.closed.push(gone.fd);
        }
        while self.btfs.len() > 4 {
            let gone = self.btfs.swap_remove(0);
            sides.close(gone.fd);
        }
    }

    /// The id of the map at `index`, for a call that takes one.
    pub(crate) fn map_id(&self, index: usize) -> (IdKind, u32) {
        (IdKind::Map, self.maps[index].kernel_id)
    }
}
