//! Commands on elements: one, or a batch.

use super::{Action, Expect, Generator, IN_BATCH, KEY, KEYS, MapState, OUT_BATCH, VALUE, VALUES};
use crate::sides::{IdAt, IdKind, Region, Sides};
use offmap_bpf::MapType;
use offmap_bpf::command;
use rand::RngExt;

/// Bytes that the keys, and the values, of a batch have in the arena.
const KEYS_BYTES: usize = VALUES - KEYS;
const VALUES_BYTES: usize = IN_BATCH - VALUES;

/// Offsets in the attribute of a batch.
const BATCH_COUNT: usize = 32;

impl Generator {
    /// A key of the map: of a small set, so that many are there.
    fn key(&mut self, map: &MapState) -> Vec<u8> {
        let mut key = vec![0; map.key_size];
        let domain = map.max_entries.clamp(1, 64) * 3 / 2 + 2;
        let mut index = self.rng.random_range(0..domain);
        if map.map_type == MapType::LPM_TRIE && map.key_size >= 5 {
            let bits = (map.key_size as u32 - 4) * 8;
            let prefix = match self.one_in(25) {
                true => self.pick(&[bits + 1, u32::MAX]),
                false => self.rng.random_range(0..=bits.min(12)),
            };
            key[..4].copy_from_slice(&prefix.to_ne_bytes());
            for byte in &mut key[4..] {
                *byte = (index as u8).wrapping_mul(0x49);
                index = index.wrapping_mul(5) + 1;
            }
            return key;
        }
        if map.is_array() && self.one_in(40) {
            index = self.pick(&[u32::MAX, 1 << 31, map.max_entries]);
        }
        let seed = index.to_ne_bytes();
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = match i {
                0..4 => seed[i],
                _ => seed[0].wrapping_mul(7).wrapping_add(i as u8),
            };
        }
        key
    }

    /// A value to be stored.
    fn value(&mut self, map: &MapState) -> Vec<u8> {
        if map.holds_maps() {
            let index = self.rng.random_range(0..self.maps.len());
            return self.fd_of(index).to_ne_bytes().to_vec();
        }
        let mut value = vec![0; map.value_bytes];
        let seed = match map.map_type {
            MapType::BLOOM_FILTER => self.rng.random_range(0..40),
            _ => self.rng.random::<u8>(),
        };
        for (i, byte) in value.iter_mut().enumerate() {
            *byte = seed.wrapping_add((i as u8).wrapping_mul(31));
        }
        value
    }

    fn update_flags(&mut self, map: &MapState) -> u64 {
        match self.rng.random_range(0..40) {
            0 => self.pick(&[3, 4, 5, 6, 7, 8, 1 << 32, u64::MAX]),
            1..4 => 1,
            4..7 => 2,
            7..15 if map.locked => self.pick(&[4, 4, 5, 6]),
            _ => 0,
        }
    }

    fn lookup_flags(&mut self, map: &MapState) -> u64 {
        match self.rng.random_range(0..60) {
            0 => self.pick(&[1, 2, 4, 8, 1 << 32, u64::MAX]),
            1..20 if map.locked => 4,
            _ => 0,
        }
    }

    /// Where the key is: nowhere for maps that have none, as a rule.
    fn put_key(&mut self, sides: &mut Sides, map: &MapState) -> u64 {
        let key = self.key(map);
        sides.put(KEY, &key);
        if key.is_empty() && !self.one_in(50) {
            return 0;
        }
        self.pointer(KEY, key.len())
    }

    fn small(&self, index: usize) -> Option<MapState> {
        Some(self.maps[index].clone()).filter(MapState::fits)
    }

    pub(super) fn lookup(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        // Which values a filter with a random seed takes for others is chance.
        if map.map_type == MapType::BLOOM_FILTER && !map.ordered {
            return self.info(sides, index);
        }
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        let key = self.put_key(sides, &map);
        self.set64(8, key);
        let value = self.value(&map);
        sides.put(VALUE, &value);
        let pointer = self.pointer(VALUE, map.value_bytes);
        self.set64(16, pointer);
        let flags = self.lookup_flags(&map);
        self.set64(24, flags);
        let mut call = self.finish(sides, command::MAP_LOOKUP_ELEM, 32, "lookup");
        if let Some(at) = self.place(pointer, 4).filter(|_| map.holds_maps()) {
            call.ids_out.push(IdAt {
                at,
                kind: IdKind::Map,
            });
        }
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn update(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        let key = self.put_key(sides, &map);
        self.set64(8, key);
        let value = self.value(&map);
        sides.put(VALUE, &value);
        let pointer = self.pointer(VALUE, map.value_bytes);
        if let Some(at) = self.place(pointer, 4).filter(|_| map.holds_maps()) {
            // What lies there otherwise may be a descriptor that only one side has.
            sides.put(at, &value);
        }
        self.set64(16, pointer);
        let flags = self.update_flags(&map);
        self.set64(24, flags);
        let call = self.finish(sides, command::MAP_UPDATE_ELEM, 32, "update");
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn delete(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        let key = self.put_key(sides, &map);
        self.set64(8, key);
        if self.one_in(40) {
            self.set64(24, 1);
        }
        let call = self.finish(sides, command::MAP_DELETE_ELEM, 16, "delete");
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn get_next_key(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        // Without an order only the first key's being there is fixed.
        if map.ordered && !self.one_in(4) {
            let key = self.put_key(sides, &map);
            self.set64(8, key);
        }
        let pointer = self.pointer(VALUE, map.key_size);
        self.set64(16, pointer);
        let mut call = self.finish(sides, command::MAP_GET_NEXT_KEY, 24, "get_next_key");
        if let Some(at) = self.place(pointer, map.key_size).filter(|_| !map.ordered) {
            call.unspecified.push(Region {
                at,
                len: map.key_size,
            });
        }
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn lookup_and_delete(
        &mut self,
        sides: &mut Sides,
        index: usize,
    ) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        let key = self.put_key(sides, &map);
        self.set64(8, key);
        let pointer = self.pointer(VALUE, map.value_bytes);
        self.set64(16, pointer);
        let flags = self.lookup_flags(&map);
        self.set64(24, flags);
        let call = self.finish(
            sides,
            command::MAP_LOOKUP_AND_DELETE_ELEM,
            32,
            "lookup_and_delete",
        );
        (Action::Call(call), Expect::Nothing)
    }

    /// How many elements a batch may name.
    fn batch_room(map: &MapState) -> u32 {
        let keys = KEYS_BYTES / map.key_size.max(1);
        let values = VALUES_BYTES / map.value_bytes.max(1);
        keys.min(values).min(80) as u32
    }

    /// The count, which now and then claims more than there is room for: then the arrays run
    /// into the guard page.
    fn set_batch(&mut self, index: usize, map: &MapState, count: u32) {
        let fd = self.fd_of(index);
        self.set32(BATCH_COUNT, count);
        self.set32(36, fd as u32);
        let flags = match self.rng.random_range(0..40) {
            0 => self.pick(&[1, 2, 4, 8, u64::MAX]),
            1..10 if map.locked => 4,
            _ => 0,
        };
        self.set64(40, flags);
        if self.one_in(60) {
            let flags = self.pick(&[1, 4, u64::MAX]);
            self.set64(48, flags);
        }
    }

    pub(super) fn store_batch(
        &mut self,
        sides: &mut Sides,
        index: usize,
        updates: bool,
    ) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let most = self.rng.random_range(0..=12).min(Self::batch_room(&map));
        for i in 0..most as usize {
            let key = self.key(&map);
            sides.put(KEYS + i * map.key_size, &key);
            let value = self.value(&map);
            sides.put(VALUES + i * map.value_bytes, &value);
        }
        self.set_batch(index, &map, most);
        let keys = self.pointer(KEYS, most as usize * map.key_size);
        self.set64(16, keys);
        // Across the end of the arena lie other bytes, which must be no descriptors.
        let len = most as usize * map.value_bytes;
        let values = self.pointer_or_fault(VALUES, len, !map.holds_maps());
        self.set64(24, values);
        let (number, what) = match updates {
            true => (command::MAP_UPDATE_BATCH, "update_batch"),
            false => (command::MAP_DELETE_BATCH, "delete_batch"),
        };
        let call = self.finish(sides, number, 56, what);
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn walk_batch(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let Some(map) = self.small(index) else {
            return self.info(sides, index);
        };
        let room = Self::batch_room(&map);
        // Without an order a walk is compared as a whole: room for everything.
        let whole = !map.ordered;
        if whole && room < map.max_entries {
            return self.lookup(sides, index);
        }
        let count = match whole {
            true => room,
            false => self.rng.random_range(0..=room),
        };
        let start = match (&map.token, whole) {
            (Some(token), false) if !self.one_in(3) => Some(token.clone()),
            (_, false) if self.one_in(10) => {
                let mut token = vec![0; map.token_bytes()];
                let value = self
                    .rng
                    .random_range(0..map.max_entries.saturating_mul(2).max(2));
                for (byte, from) in token.iter_mut().zip(value.to_ne_bytes()) {
                    *byte = from;
                }
                Some(token)
            }
            _ => None,
        };
        if let Some(token) = start {
            sides.put(IN_BATCH, &token);
            let pointer = self.pointer(IN_BATCH, token.len());
            self.set64(0, pointer);
        }
        let out = self.pointer(OUT_BATCH, map.token_bytes());
        self.set64(8, out);
        self.set_batch(index, &map, count);
        let keys = Region {
            at: KEYS,
            len: count as usize * map.key_size,
        };
        let values = Region {
            at: VALUES,
            len: count as usize * map.value_bytes,
        };
        let delete = self.one_in(4);
        // What is deleted before a fault depends on the order, and so does what is left.
        let sure = whole && delete;
        let keys_at = self.pointer_or_fault(keys.at, keys.len, !sure);
        self.set64(16, keys_at);
        let values_at = self.pointer_or_fault(values.at, values.len, !sure);
        self.set64(24, values_at);
        let (number, what) = match delete {
            true => (
                command::MAP_LOOKUP_AND_DELETE_BATCH,
                "lookup_and_delete_batch",
            ),
            false => (command::MAP_LOOKUP_BATCH, "lookup_batch"),
        };
        let mut call = self.finish(sides, number, 56, what);
        if whole {
            for (pointer, len) in [(keys_at, keys.len), (values_at, values.len)] {
                // Or as much of it as there is.
                if let Some(at) = self.place(pointer, 0) {
                    let len = len.min(self.len - at);
                    call.unspecified.push(Region { at, len });
                }
            }
        }
        if map.holds_maps() {
            for i in 0..u64::from(count) {
                if let Some(at) = self.place(values_at.wrapping_add(4 * i), 4) {
                    call.ids_out.push(IdAt {
                        at,
                        kind: IdKind::Map,
                    });
                }
            }
        }
        (Action::Call(call), Expect::Walk(index))
    }
}
