//! §E: the other types on the host.

use super::*;
use offmap_bpf::command as c;
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_NOEXIST, MapFlags};

const NO_PREALLOC: u32 = MapFlags::NO_PREALLOC.bits();

#[test]
fn e_percpu_01_user_values() {
    on_hosts(|m| {
        for map_type in [
            MapType::PERCPU_HASH,
            MapType::PERCPU_ARRAY,
            MapType::LRU_PERCPU_HASH,
        ] {
            let fd = m.map(&MapCreateAttr {
                value_size: 5,
                ..attr(map_type, 4)
            });
            let bytes = 8 * m.cpus();
            let set: Vec<u8> = (0..bytes as u8).map(|i| i + 1).collect();
            m.update(fd, &key(1), &set, 0).unwrap();
            // All of the CPUs' values and nothing after them, whether or not the padding is
            // kept.
            m.put(0x4000, &[0xee; 256]);
            let k = m.key_at(&key(1));
            let v = m.value_at();
            m.element(c::MAP_LOOKUP_ELEM, fd, k, v, 0).unwrap();
            let found = m.get(0x4000, 256);
            for cpu in 0..m.cpus() {
                let at = cpu * 8;
                assert_eq!(
                    found[at..at + 5],
                    set[at..at + 5],
                    "{} {map_type}",
                    m.name()
                );
            }
            assert!(
                found[bytes..].iter().all(|&b| b == 0xee),
                "{} {map_type}",
                m.name()
            );
            assert_ne!(found[bytes - 1], 0xee, "the last padding is written");
        }
    });
}

#[test]
fn e_lru_01_no_prealloc() {
    on_hosts(|m| {
        for map_type in [MapType::LRU_HASH, MapType::LRU_PERCPU_HASH] {
            let a = MapCreateAttr {
                map_flags: NO_PREALLOC,
                ..attr(map_type, 4)
            };
            assert_eq!(m.create(&a), Err(ENOTSUPP), "{} {map_type}", m.name());
        }
    });
}

#[test]
fn e_lru_02_insert_never_fails_for_fullness() {
    on_hosts(|m| {
        let fd = m.map(&attr(MapType::LRU_HASH, 16));
        for n in 0..1000 {
            assert_eq!(
                m.update(fd, &key(n), &value(1), 0),
                Ok(()),
                "{} {n}",
                m.name()
            );
            assert!(m.lookup(fd, &key(n), 8, 0).is_ok(), "{} {n}", m.name());
        }
        let there = (0..1000).filter(|&n| m.lookup(fd, &key(n), 8, 0).is_ok());
        assert!(there.count() <= 16 * m.cpus().max(16), "{}", m.name());
    });
}

fn trie(max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        key_size: 8,
        map_flags: NO_PREALLOC,
        ..attr(MapType::LPM_TRIE, max_entries)
    }
}

fn prefix(bits: u32, address: [u8; 4]) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    key[4..].copy_from_slice(&address);
    key
}

#[test]
fn e_lpm_01_what_may_be_created() {
    on_hosts(|m| {
        let plain = MapCreateAttr {
            map_flags: 0,
            ..trie(4)
        };
        assert_eq!(m.create(&plain), Err(EINVAL), "{}", m.name());
        for (key_size, errno) in [
            (0, Some(EINVAL)),
            (4, Some(EINVAL)),
            (5, None),
            (260, None),
            (261, Some(EINVAL)),
        ] {
            let a = MapCreateAttr {
                key_size,
                ..trie(4)
            };
            assert_eq!(m.create(&a).err(), errno, "{} {key_size}", m.name());
        }
    });
}

#[test]
fn e_lpm_02_a_prefix_that_is_too_long() {
    on_hosts(|m| {
        let fd = m.map(&trie(4));
        for bits in [33, u32::MAX] {
            let k = prefix(bits, [1, 2, 3, 4]);
            assert_eq!(m.update(fd, &k, &value(1), 0), Err(EINVAL), "{}", m.name());
            assert_eq!(m.delete(fd, &k), Err(EINVAL), "{}", m.name());
            assert_eq!(m.lookup(fd, &k, 8, 0), Err(ENOENT), "{}", m.name());
        }
    });
}

#[test]
fn e_lpm_03_full_and_post_order() {
    on_hosts(|m| {
        let fd = m.map(&trie(3));
        for k in [
            prefix(8, [10, 0, 0, 0]),
            prefix(16, [10, 1, 0, 0]),
            prefix(24, [10, 1, 1, 0]),
        ] {
            m.update(fd, &k, &value(1), 0).unwrap();
        }
        let more = prefix(8, [11, 0, 0, 0]);
        assert_eq!(
            m.update(fd, &more, &value(1), 0),
            Err(ENOSPC),
            "{}",
            m.name()
        );
        let mut lengths = Vec::new();
        let mut at: Option<Vec<u8>> = None;
        while let Ok(k) = m.next(fd, at.as_deref(), 8) {
            lengths.push(u32::from_ne_bytes(k[..4].try_into().unwrap()));
            at = Some(k);
        }
        assert_eq!(lengths, [24, 16, 8], "{}: children first", m.name());
    });
}

fn ends() -> [(MapType, [u64; 2]); 2] {
    [(MapType::QUEUE, [1, 2]), (MapType::STACK, [2, 1])]
}

fn line(map_type: MapType, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        key_size: 0,
        ..attr(map_type, max_entries)
    }
}

#[test]
fn e_queue_01_key_size_0() {
    on_hosts(|m| {
        for (map_type, _) in ends() {
            assert_eq!(m.create(&attr(map_type, 4)), Err(EINVAL), "{}", m.name());
            m.map(&line(map_type, 4));
        }
    });
}

#[test]
fn e_queue_02_push_flags() {
    on_hosts(|m| {
        for (map_type, order) in ends() {
            let fd = m.map(&line(map_type, 2));
            for n in [1, 2] {
                m.update(fd, &[], &value(n), BPF_ANY).unwrap();
            }
            assert_eq!(
                m.update(fd, &[], &value(3), BPF_ANY),
                Err(E2BIG),
                "{}",
                m.name()
            );
            assert_eq!(m.update(fd, &[], &value(3), BPF_NOEXIST), Err(EINVAL));
            assert_eq!(m.lookup(fd, &[], 8, 0), Ok(value(order[0]).to_vec()));
            // The oldest makes room, at either end.
            m.update(fd, &[], &value(3), BPF_EXIST).unwrap();
            let left = [m.take(fd, &[], 8, 0), m.take(fd, &[], 8, 0)];
            let expected = match map_type {
                MapType::QUEUE => [2, 3],
                _ => [3, 2],
            };
            assert_eq!(
                left,
                expected.map(|n| Ok(value(n).to_vec())),
                "{} {map_type}",
                m.name()
            );
        }
    });
}

#[test]
fn e_queue_03_empty_delete_and_get_next() {
    on_hosts(|m| {
        for (map_type, _) in ends() {
            let fd = m.map(&line(map_type, 2));
            assert_eq!(m.lookup(fd, &[], 8, 0), Err(ENOENT), "{}", m.name());
            assert_eq!(m.take(fd, &[], 8, 0), Err(ENOENT));
            assert_eq!(m.delete(fd, &[]), Err(EINVAL));
            assert_eq!(m.next(fd, None, 0), Err(EINVAL));
        }
    });
}

#[test]
fn e_ringbuf_01_sizes() {
    on_hosts(|m| {
        let ring = |key_size, value_size, max_entries| MapCreateAttr {
            key_size,
            value_size,
            ..attr(MapType::RINGBUF, max_entries)
        };
        for a in [
            ring(4, 0, 4096),
            ring(0, 8, 4096),
            ring(0, 0, 0),
            ring(0, 0, 2048),
            ring(0, 0, 4097),
            ring(0, 0, 3 * 4096),
        ] {
            assert_eq!(m.create(&a), Err(EINVAL), "{} {a:?}", m.name());
        }
        m.map(&ring(0, 0, 8192));
    });
}

#[test]
fn e_ringbuf_02_element_operations() {
    on_hosts(|m| {
        let fd = m.map(&MapCreateAttr {
            key_size: 0,
            value_size: 0,
            ..attr(MapType::RINGBUF, 4096)
        });
        for number in [
            c::MAP_LOOKUP_ELEM,
            c::MAP_UPDATE_ELEM,
            c::MAP_DELETE_ELEM,
            c::MAP_GET_NEXT_KEY,
            c::MAP_LOOKUP_AND_DELETE_ELEM,
        ] {
            let value = m.value_at();
            let value = if number == c::MAP_DELETE_ELEM {
                0
            } else {
                value
            };
            assert_eq!(
                m.element(number, fd, 0, value, 0),
                Err(ENOTSUPP),
                "{} {number}",
                m.name()
            );
        }
    });
}

#[test]
fn e_bloom_01_push_and_peek() {
    on_hosts(|m| {
        assert_eq!(
            m.create(&attr(MapType::BLOOM_FILTER, 100)),
            Err(EINVAL),
            "{}",
            m.name()
        );
        let fd = m.map(&line(MapType::BLOOM_FILTER, 100));
        let peek = |m: &mut dyn Machine, n: u64| {
            m.put(0x4000, &value(n));
            m.lookup(fd, &[], 8, 0).map(drop)
        };
        assert_eq!(peek(m, 5), Err(ENOENT), "{}", m.name());
        for flags in [BPF_NOEXIST, BPF_EXIST] {
            assert_eq!(
                m.update(fd, &[], &value(5), flags),
                Err(EINVAL),
                "{}",
                m.name()
            );
        }
        m.update(fd, &[], &value(5), BPF_ANY).unwrap();
        assert_eq!(peek(m, 5), Ok(()), "{}", m.name());
    });
}

#[test]
fn e_bloom_02_delete_and_get_next() {
    on_hosts(|m| {
        let fd = m.map(&line(MapType::BLOOM_FILTER, 100));
        assert_eq!(m.delete(fd, &[]), Err(EOPNOTSUPP), "{}", m.name());
        assert_eq!(m.next(fd, None, 0), Err(EOPNOTSUPP), "{}", m.name());
    });
}
