//! BPF_MAP_CREATE.

use super::{Action, Expect, Generator, MAX_KEY, MAX_VALUE, MapState};
use crate::sides::Sides;
use offmap_bpf::MapType;
use offmap_bpf::command;
use offmap_bpf::uapi::MapFlags;
use rand::RngExt;

/// The attribute as it is drawn.
struct Drawn {
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf: [u32; 4],
    map_extra: u64,
}

/// Bytes of memory that a map of the drawn sizes may take: no more are asked of the kernel,
/// which would allocate them all at once.
const MOST_BYTES: u64 = 8 << 20;

impl Drawn {
    fn bytes(&self, cpus: u64) -> u64 {
        let element = u64::from(self.key_size) + u64::from(self.value_size) * cpus + 64;
        u64::from(self.max_entries).saturating_mul(element)
    }
}

impl Generator {
    pub(super) fn create(&mut self, sides: &mut Sides) -> (Action, Expect) {
        let map_type = self.pick(&MapType::ON_HOST);
        let mut drawn = self.valid(map_type);
        let spoilt = self.one_in(3);
        if spoilt {
            self.spoil(&mut drawn);
        }
        // What the kernel would have to allocate first is cut down, unless a size is so far
        // out that a check comes before.
        let sane = |size: u32| size <= 1 << 22;
        if drawn.bytes(self.possible_cpus as u64) > MOST_BYTES
            && (sane(drawn.key_size) && sane(drawn.value_size))
            && !(drawn.max_entries > 1 << 30 && self.is_hash_type(drawn.map_type))
        {
            drawn.max_entries = drawn.max_entries.min(64);
            drawn.value_size = drawn.value_size.min(64);
        }
        if drawn.value_size > 1 << 22 {
            drawn.max_entries = drawn.max_entries.min(1);
        }
        self.set32(0, drawn.map_type.0);
        self.set32(4, drawn.key_size);
        self.set32(8, drawn.value_size);
        self.set32(12, drawn.max_entries);
        self.set32(16, drawn.map_flags);
        self.set32(20, drawn.inner_map_fd);
        self.set32(24, drawn.numa_node);
        self.attr[28..44].copy_from_slice(&drawn.name);
        self.set32(44, drawn.ifindex);
        for (i, field) in drawn.btf.into_iter().enumerate() {
            self.set32(48 + 4 * i, field);
        }
        self.set64(64, drawn.map_extra);
        if spoilt && self.one_in(40) {
            let pointer = self.pointer(super::INFO, 32);
            self.set64(80, pointer);
            let size = self.pick(&[0, 32, 31, 64]);
            self.set32(88, size);
        }
        let call = self.finish(sides, command::MAP_CREATE, 92, "create");
        let state = self.state(&drawn);
        (Action::Call(call), Expect::Map(Box::new(state)))
    }

    fn is_hash_type(&self, map_type: MapType) -> bool {
        matches!(
            map_type,
            MapType::HASH
                | MapType::PERCPU_HASH
                | MapType::LRU_HASH
                | MapType::LRU_PERCPU_HASH
                | MapType::HASH_OF_MAPS
        )
    }

    /// Sizes and flags with which a map of this type can be made.
    fn valid(&mut self, map_type: MapType) -> Drawn {
        let mut drawn = Drawn {
            map_type,
            key_size: 4,
            value_size: self.pick(&[1, 4, 7, 8, 16, 24, 64, 100]),
            max_entries: self.rng.random_range(1..=48),
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            name: [0; 16],
            ifindex: 0,
            btf: [0; 4],
            map_extra: 0,
        };
        let len = self.rng.random_range(0..16);
        for byte in &mut drawn.name[..len] {
            *byte = b"abcXYZ019_."[self.rng.random_range(0..11)];
        }
        let mut flags = MapFlags::empty();
        match map_type {
            MapType::HASH | MapType::PERCPU_HASH | MapType::LRU_HASH | MapType::LRU_PERCPU_HASH => {
                drawn.key_size = self.pick(&[1, 3, 4, 8, 12, 16, 21, 40]);
                if !self.one_in(4) {
                    flags |= MapFlags::ZERO_SEED;
                }
                let lru = matches!(map_type, MapType::LRU_HASH | MapType::LRU_PERCPU_HASH);
                if lru && self.one_in(3) {
                    flags |= MapFlags::NO_COMMON_LRU;
                } else if !lru && self.one_in(2) {
                    flags |= MapFlags::NO_PREALLOC;
                }
            }
            MapType::ARRAY => {
                if self.one_in(8) {
                    flags |= MapFlags::MMAPABLE;
                }
                if self.one_in(8) {
                    flags |= MapFlags::INNER_MAP;
                }
            }
            MapType::LPM_TRIE => {
                drawn.key_size = self.pick(&[5, 6, 8, 12, 20]);
                flags |= MapFlags::NO_PREALLOC;
            }
            MapType::QUEUE | MapType::STACK => drawn.key_size = 0,
            MapType::BLOOM_FILTER => {
                drawn.key_size = 0;
                drawn.map_extra = self.rng.random_range(0..=15);
                flags |= MapFlags::ZERO_SEED;
            }
            MapType::RINGBUF => {
                (drawn.key_size, drawn.value_size) = (0, 0);
                drawn.max_entries = 4096 << self.rng.random_range(0..3);
            }
            MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS => {
                drawn.value_size = 4;
                if map_type == MapType::HASH_OF_MAPS {
                    flags |= MapFlags::ZERO_SEED;
                    if self.one_in(2) {
                        flags |= MapFlags::NO_PREALLOC;
                    }
                }
                drawn.inner_map_fd = match self.maps.is_empty() {
                    true => u32::MAX,
                    false => {
                        let index = self.rng.random_range(0..self.maps.len());
                        self.fd_of(index) as u32
                    }
                };
            }
            _ => {}
        }
        if self.one_in(12) {
            flags |= MapFlags::RDONLY_PROG;
        }
        drawn.map_flags = flags.bits();
        if let Some(btf) = self
            .btfs
            .last()
            .filter(|_| map_type != MapType::RINGBUF)
            .cloned()
            && self.one_in(3)
        {
            self.describe(&mut drawn, &btf);
        }
        drawn
    }

    /// Gives the map types of the BTF object: the right ones for its sizes.
    fn describe(&mut self, drawn: &mut Drawn, btf: &super::objects::BtfState) {
        let value = self.pick(super::objects::VALUES);
        drawn.value_size = value.size;
        let key = match drawn.map_type {
            MapType::LPM_TRIE => {
                drawn.key_size = 8;
                super::objects::LPM_KEY
            }
            _ if drawn.key_size == 0 => 0,
            _ => {
                drawn.key_size = 4;
                super::objects::U32
            }
        };
        drawn.btf = [btf.fd as u32, key, value.id, 0];
        if self.one_in(10) {
            let which = self.rng.random_range(0..3);
            let foreign = self.foreign_fd as u32;
            drawn.btf[which] = match which {
                0 => self.pick(&[foreign, u32::MAX]),
                _ => self.pick(&[0, 1, 2, 5, 9, 1000, u32::MAX]),
            };
        }
    }

    /// Makes one field wrong, or at least unusual.
    fn spoil(&mut self, drawn: &mut Drawn) {
        const SIZES: &[u32] = &[
            0,
            1,
            2,
            3,
            4,
            5,
            8,
            260,
            261,
            512,
            513,
            4096,
            32768,
            32769,
            0x3f_ffd0,
            0x40_0000,
            0x7fff_ffff,
            0x8000_0000,
            u32::MAX,
        ];
        match self.rng.random_range(0..14) {
            0 => drawn.key_size = self.pick(SIZES),
            1 => drawn.value_size = self.pick(SIZES),
            2 => drawn.max_entries = self.pick(&[0, 1, 4095, 4096, 0x8000_0001, u32::MAX]),
            3 | 4 => drawn.map_flags ^= 1 << self.rng.random_range(0..18),
            5 => drawn.map_flags = self.rng.random_range(0..1 << 17),
            6 => {
                drawn.map_flags |= MapFlags::NUMA_NODE.bits();
                drawn.numa_node = self.pick(&[0, 0, 0, 1, 63, 1024, u32::MAX]);
            }
            7 => drawn.numa_node = self.pick(&[1, u32::MAX]),
            8 => {
                let at = self.rng.random_range(0..16);
                drawn.name[at] = self.pick(b"a-/ \x80\xffZ");
            }
            9 => drawn.ifindex = self.pick(&[1, 9999, 1 << 31]),
            10 => {
                let which = self.rng.random_range(0..4);
                let foreign = self.foreign_fd as u32;
                drawn.btf[which] = match which {
                    0 => self.pick(&[foreign, u32::MAX]),
                    _ => self.pick(&[1, 2, u32::MAX]),
                };
            }
            11 => drawn.map_extra = self.pick(&[1, 5, 15, 16, 1 << 32, u64::MAX]),
            12 => drawn.inner_map_fd = self.pick(&[self.foreign_fd as u32, u32::MAX]),
            _ => {
                // The first two are types that only the kernel has; the others nobody has.
                drawn.map_type = self.pick(&[
                    MapType::PROG_ARRAY,
                    MapType::CGROUP_ARRAY,
                    MapType(0),
                    MapType(4096),
                    MapType(!0),
                ]);
            }
        }
    }

    fn state(&self, drawn: &Drawn) -> MapState {
        let flags = MapFlags::from_bits_retain(drawn.map_flags);
        let value = drawn.value_size as usize;
        let value_bytes = match drawn.map_type.is_percpu() {
            true => value.next_multiple_of(8) * self.possible_cpus,
            false => value,
        };
        MapState {
            fd: -1,
            map_type: drawn.map_type,
            key_size: drawn.key_size as usize,
            value_bytes,
            max_entries: drawn.max_entries,
            kernel_id: 0,
            ordered: flags.contains(MapFlags::ZERO_SEED)
                || !self.is_hash_type(drawn.map_type) && drawn.map_type != MapType::BLOOM_FILTER,
            token: None,
            locked: super::objects::has_lock(drawn.btf[2]),
        }
    }
}

impl MapState {
    /// Whether its elements fit the places that they have in the arena.
    pub(crate) fn fits(&self) -> bool {
        self.key_size <= MAX_KEY && self.value_bytes <= MAX_VALUE
    }
}
