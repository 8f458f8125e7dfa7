//! §A, `BPF_COMMON_ATTRS`: the log that says why a map was refused, and BTF_LOAD's own.

use super::*;
use offmap_bpf::btf::{Btf, BtfBuilder};
use offmap_bpf::command as c;
use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Caller, NetNs};
use offmap_tests::btf::generate;
use offmap_tests::contract::{create_bytes, u32_of};
use offmap_tests::report::seed;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Where the log is.
const LOG: usize = 0x6000;

/// `struct bpf_common_attr`.
fn common(buffer: u64, size: u32, level: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&buffer.to_ne_bytes());
    bytes[8..12].copy_from_slice(&size.to_ne_bytes());
    bytes[12..16].copy_from_slice(&level.to_ne_bytes());
    bytes
}

/// MAP_CREATE with a log of `size` bytes: the result, the log's bytes and `log_true_size`.
fn logged(ours: &mut Ours, attr: &MapCreateAttr, size: usize) -> (Result<i32, i32>, Vec<u8>, u32) {
    ours.put(LOG, &[0xee; 1024]);
    let common = common(ours.base() + LOG as u64, size as u32, 1);
    let got = ours.common(c::MAP_CREATE, &create_bytes(attr), &common);
    let true_size = u32_of(&ours.get(0x1000 + 16, 4));
    (got, ours.get(LOG, 1024), true_size)
}

fn text(log: &[u8]) -> &str {
    let end = log.iter().position(|&b| b == 0).expect("a NUL");
    std::str::from_utf8(&log[..end]).expect("UTF-8")
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_log_1_every_refusal_has_its_sentence() {
    let flags = |flags: MapFlags, a: MapCreateAttr| MapCreateAttr {
        map_flags: flags.bits(),
        ..a
    };
    let sized = |key_size, value_size, a: MapCreateAttr| MapCreateAttr {
        key_size,
        value_size,
        ..a
    };
    let ring = |n| sized(0, 0, attr(MapType::RINGBUF, n));
    let trie = |k| {
        flags(
            MapFlags::NO_PREALLOC,
            sized(k, 8, attr(MapType::LPM_TRIE, 4)),
        )
    };
    let host: &[(MapCreateAttr, i32, &[&str])] = &[
        (
            attr(HASH, 0),
            EINVAL,
            &["max_entries 0", "hash", "at least 1"],
        ),
        (
            sized(0, 8, attr(HASH, 4)),
            EINVAL,
            &["key_size 0", "hash", "at least 1"],
        ),
        (
            sized(4, 0, attr(HASH, 4)),
            EINVAL,
            &["value_size 0", "hash", "at least 1"],
        ),
        (
            sized(4, 16 << 20, attr(HASH, 4)),
            E2BIG,
            &["value_size 16777216", "4194256"],
        ),
        (
            sized(1 << 30, 8, attr(HASH, 4)),
            E2BIG,
            &["key_size 1073741824", "4194256"],
        ),
        (
            attr(HASH, 1 << 31),
            E2BIG,
            &["max_entries 2147483648", "134217728"],
        ),
        (
            flags(MapFlags::MMAPABLE, attr(HASH, 4)),
            EINVAL,
            &["map_flags 0x400", "MMAPABLE", "hash"],
        ),
        (
            flags(MapFlags::NO_COMMON_LRU, attr(HASH, 4)),
            EINVAL,
            &["map_flags 0x2", "NO_COMMON_LRU"],
        ),
        (
            flags(MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG, attr(HASH, 4)),
            EINVAL,
            &["map_flags 0x180", "RDONLY_PROG", "WRONLY_PROG"],
        ),
        (
            flags(MapFlags::RDONLY | MapFlags::WRONLY, attr(HASH, 4)),
            EINVAL,
            &["0x18", "RDONLY", "WRONLY"],
        ),
        (
            MapCreateAttr {
                numa_node: 4096,
                ..flags(MapFlags::NUMA_NODE, attr(HASH, 4))
            },
            EINVAL,
            &["numa_node 4096", "online"],
        ),
        (attr(MapType(999), 4), EINVAL, &["map_type 999"]),
        (attr(MapType::UNSPEC, 4), EINVAL, &["map_type 0"]),
        (
            MapCreateAttr {
                map_extra: 7,
                ..attr(HASH, 4)
            },
            EINVAL,
            &["map_extra 0x7", "hash", "0"],
        ),
        (
            MapCreateAttr {
                btf_key_type_id: 3,
                ..attr(HASH, 4)
            },
            EINVAL,
            &["btf_key_type_id 3", "btf_value_type_id"],
        ),
        (
            MapCreateAttr {
                btf_vmlinux_value_type_id: 5,
                ..attr(HASH, 4)
            },
            EINVAL,
            &["btf_vmlinux_value_type_id 5", "struct_ops"],
        ),
        (
            MapCreateAttr {
                btf_fd: 77,
                btf_value_type_id: 1,
                ..attr(HASH, 4)
            },
            EBADF,
            &["btf_fd 77"],
        ),
        (
            MapCreateAttr {
                map_name: name(b"a-b"),
                ..attr(HASH, 4)
            },
            EINVAL,
            &["map_name a-b", "0x2d"],
        ),
        (
            MapCreateAttr {
                map_name: [b'x'; 16],
                ..attr(HASH, 4)
            },
            EINVAL,
            &["map_name xxx", "15 bytes"],
        ),
        (
            sized(8, 8, attr(ARRAY, 4)),
            EINVAL,
            &["key_size 8", "4 bytes"],
        ),
        (
            attr(ARRAY, 0),
            EINVAL,
            &["max_entries 0", "array", "at least 1"],
        ),
        (
            sized(4, 1 << 31, attr(ARRAY, 4)),
            E2BIG,
            &["value_size 2147483648", "2147483647"],
        ),
        (
            flags(MapFlags::NO_PREALLOC, attr(ARRAY, 4)),
            EINVAL,
            &["map_flags 0x1", "NO_PREALLOC", "array"],
        ),
        (
            sized(4, 32769, attr(MapType::PERCPU_HASH, 4)),
            E2BIG,
            &["value_size 32769", "32768"],
        ),
        (
            flags(MapFlags::NO_PREALLOC, attr(MapType::LRU_HASH, 4)),
            ENOTSUPP,
            &["map_flags 0x1", "NO_PREALLOC", "lru_hash"],
        ),
        (
            sized(8, 8, attr(MapType::LPM_TRIE, 4)),
            EINVAL,
            &["map_flags 0x0", "NO_PREALLOC"],
        ),
        (trie(4), EINVAL, &["key_size 4", "5 to 260"]),
        (trie(261), EINVAL, &["key_size 261", "5 to 260"]),
        (
            attr(MapType::QUEUE, 4),
            EINVAL,
            &["key_size 4", "queue", "0"],
        ),
        (ring(4097), EINVAL, &["max_entries 4097", "4096"]),
        (sized(4, 0, ring(4096)), EINVAL, &["key_size 4", "0"]),
        (
            sized(4, 8, attr(MapType::HASH_OF_MAPS, 4)),
            EINVAL,
            &["value_size 8", "4 bytes"],
        ),
        (
            MapCreateAttr {
                inner_map_fd: 88,
                ..sized(4, 4, attr(MapType::ARRAY_OF_MAPS, 4))
            },
            EBADF,
            &["inner_map_fd 88"],
        ),
        (
            MapCreateAttr {
                excl_prog_hash_size: 9,
                ..attr(HASH, 4)
            },
            EINVAL,
            &["excl_prog_hash_size 9"],
        ),
        (
            MapCreateAttr {
                map_ifindex: 9999,
                ..attr(HASH, 4)
            },
            EINVAL,
            &["map_ifindex 9999"],
        ),
        (
            MapCreateAttr {
                map_ifindex: 1,
                ..attr(HASH, 4)
            },
            EOPNOTSUPP,
            &["map_ifindex 1", "offload"],
        ),
    ];
    let mut refusals = 0;
    let mut judge = |ours: &mut Ours, attr: &MapCreateAttr, errno: i32, words: &[&str]| {
        let (got, log, true_size) = logged(ours, attr, 1024);
        assert_eq!(got, Err(errno), "{} {attr:?}", ours.reason);
        let sentence = text(&log);
        for word in words {
            assert!(sentence.contains(word), "{word:?} is not in {sentence:?}");
        }
        assert_eq!(true_size as usize, sentence.len() + 1, "{sentence:?}");
        assert_eq!(sentence, format!("{}\n", ours.reason));
        assert!(log[sentence.len() + 1..].iter().all(|&b| b == 0xee));
        refusals += 1;
    };
    let mut ours = Ours::host();
    for (attr, errno, words) in host {
        judge(&mut ours, attr, *errno, words);
    }
    // The devices' own, with profile and limit.
    let (_stack, mut sim) = strict("netdevsim");
    let (_stack, mut nfp) = strict("nfp");
    let (ns, fs) = (sim.ifindex, nfp.ifindex);
    let on = |map_ifindex, a| MapCreateAttr { map_ifindex, ..a };
    let no_prealloc = flags(MapFlags::NO_PREALLOC, attr(HASH, 2));
    judge(
        &mut sim,
        &on(ns, attr(HASH, 3)),
        ENOMEM,
        &["max_entries 3", "2", "netdevsim"],
    );
    judge(
        &mut sim,
        &on(ns, no_prealloc),
        EINVAL,
        &["map_flags", "netdevsim"],
    );
    judge(
        &mut sim,
        &on(ns, attr(MapType::LRU_HASH, 2)),
        EINVAL,
        &["map_type lru_hash"],
    );
    judge(
        &mut nfp,
        &on(fs, no_prealloc),
        EINVAL,
        &["map_flags", "nfp"],
    );
    judge(
        &mut nfp,
        &on(fs, attr(HASH, 4_000_000)),
        ENOMEM,
        &["max_entries 4,000,000", "2,048,000", "nfp"],
    );
    judge(
        &mut nfp,
        &on(fs, sized(4, 64, attr(HASH, 2))),
        ENOMEM,
        &["64", "nfp"],
    );
    // And those that go by the caller.
    ours.caller = Caller::unprivileged();
    judge(&mut ours, &attr(HASH, 4), EPERM, &["hash", "CAP_BPF"]);
    sim.caller = Caller::root().in_netns(NetNs { dev: 4, ino: 9 });
    judge(
        &mut sim,
        &on(ns, attr(HASH, 2)),
        EINVAL,
        &["map_ifindex", "namespace"],
    );
    assert!(refusals >= 30, "{refusals}");
}

#[test]
fn a_log_2_an_accepted_map_leaves_an_empty_log() {
    let mut ours = Ours::host();
    let (got, log, true_size) = logged(&mut ours, &attr(HASH, 4), 64);
    assert!(got.is_ok());
    assert_eq!((log[0], log[1], true_size), (0, 0xee, 1));
}

#[test]
fn a_log_3_a_short_log_is_cut_and_enospc() {
    let mut ours = Ours::host();
    let bad = attr(HASH, 0);
    let (_, whole, full) = logged(&mut ours, &bad, 1024);
    let full_text = text(&whole).to_owned();
    for size in [1, 2, 10, full as usize - 1] {
        let (got, log, true_size) = logged(&mut ours, &bad, size);
        assert_eq!(got, Err(ENOSPC), "{size}");
        assert!(ours.reason.contains("log_size"), "{}", ours.reason);
        assert_eq!(true_size, full, "what all of it takes");
        // As in the kernel, its end is kept.
        let end = full_text.len() - (size - 1);
        assert_eq!(text(&log), &full_text[end..], "{size}");
        assert!(
            log[size..].iter().all(|&b| b == 0xee),
            "nothing past the log"
        );
    }
    let (got, log, true_size) = logged(&mut ours, &bad, full as usize);
    assert_eq!((got, true_size), (Err(EINVAL), full));
    assert_eq!(text(&log), full_text);
}

#[test]
fn a_log_4_combinations_that_are_refused() {
    let mut ours = Ours::host();
    let at = ours.base() + LOG as u64;
    let good = create_bytes(&attr(HASH, 4));
    for (common, word) in [
        (common(at, 0, 1), "log_size 0"),
        (common(0, 64, 1), "log_buf 0x0"),
        (common(at, 64, 0), "log_level 0"),
        (common(at, 64, 16), "log_level 0x10"),
        (common(0, 0, 16), "log_level 0x10"),
        (common(at, u32::MAX, 1), "log_size 4294967295"),
    ] {
        assert_eq!(ours.common(c::MAP_CREATE, &good, &common), Err(EINVAL));
        assert!(ours.reason.contains(word), "{word:?}: {}", ours.reason);
    }
    // No log is no error, nor is a level without one.
    for level in [0, 1] {
        let none = common(0, 0, level);
        let fd = ours.common(c::MAP_CREATE, &good, &none).unwrap();
        ours.close(fd);
    }
    // Nowhere to write.
    let bad = create_bytes(&attr(HASH, 0));
    let nowhere = common(8, 64, 1);
    assert_eq!(ours.common(c::MAP_CREATE, &bad, &nowhere), Err(EFAULT));
    assert!(ours.reason.contains("log_buf"), "{}", ours.reason);
}

#[test]
fn a_log_5_the_structures_size() {
    let mut ours = Ours::host();
    let at = ours.base() + LOG as u64;
    let bad = create_bytes(&attr(HASH, 0));
    // Too short for `log_true_size`: the log is written, and that is not.
    ours.put(LOG, &[0xee; 64]);
    ours.put(0x1000, &[0xee; 32]);
    let short = &common(at, 1024, 1)[..16];
    assert_eq!(ours.common(c::MAP_CREATE, &bad, short), Err(EINVAL));
    assert!(text(&ours.get(LOG, 1024)).contains("max_entries 0"));
    assert_eq!(ours.get(0x1000 + 16, 4), [0xee; 4]);
    // Too long: zeros may follow, and nothing else.
    let mut long = common(at, 1024, 1).to_vec();
    long.resize(64, 0);
    assert_eq!(ours.common(c::MAP_CREATE, &bad, &long), Err(EINVAL));
    assert!(ours.reason.contains("max_entries 0"), "{}", ours.reason);
    long[63] = 1;
    assert_eq!(ours.common(c::MAP_CREATE, &bad, &long), Err(E2BIG));
    assert!(ours.reason.contains("byte 63"), "{}", ours.reason);
    long.resize(4097, 0);
    assert_eq!(ours.common(c::MAP_CREATE, &bad, &long), Err(E2BIG));
}

#[test]
fn a_log_6_other_commands_have_it_too() {
    let mut ours = Ours::host();
    let at = ours.base() + LOG as u64;
    let got = ours.common(c::MAP_FREEZE, &(-1i32).to_ne_bytes(), &common(at, 1024, 1));
    assert_eq!(got, Err(EBADF));
    assert!(text(&ours.get(LOG, 1024)).contains("-1"));
}

/// BTF_LOAD with a log: the result, the log and `btf_log_true_size`.
fn load(m: &mut dyn Machine, blob: &[u8], log: (u64, u32, u32)) -> (Result<i32, i32>, u32) {
    m.put(0x4000, blob);
    let mut attr = [0; 40];
    attr[..8].copy_from_slice(&m.value_at().to_ne_bytes());
    attr[8..16].copy_from_slice(&log.0.to_ne_bytes());
    attr[16..20].copy_from_slice(&(blob.len() as u32).to_ne_bytes());
    attr[20..24].copy_from_slice(&log.1.to_ne_bytes());
    attr[24..28].copy_from_slice(&log.2.to_ne_bytes());
    let got = m.raw(c::BTF_LOAD, &attr);
    (got, u32_of(&m.attr(40)[28..]))
}

#[test]
fn a_log_7_btf_loads_own_log() {
    on_hosts(|m| {
        let at = m.base() + LOG as u64;
        let (good, _, _) = fields::plain();
        // The kind of the first type becomes one that nobody knows.
        let mut bad = good.clone();
        bad[24 + 7] = 31;
        m.put(LOG, &[0xee; 1024]);
        let (got, true_size) = load(m, &bad, (at, 1024, 1));
        assert_eq!(got, Err(EINVAL), "{}", m.name());
        let log = m.get(LOG, 1024);
        let length = text(&log).len() as u32;
        assert!(length > 10, "{}: {:?}", m.name(), text(&log));
        assert_eq!(true_size, length + 1, "{}", m.name());
        // Cut, and NUL-terminated.
        m.put(LOG, &[0xee; 64]);
        let (got, again) = load(m, &bad, (at, 8, 1));
        assert!(
            got == Err(EINVAL) || got == Err(ENOSPC),
            "{} {got:?}",
            m.name()
        );
        assert_eq!(again, true_size, "{}", m.name());
        assert_eq!(
            (m.get(LOG + 7, 1)[0], m.get(LOG + 8, 1)[0]),
            (0, 0xee),
            "{}",
            m.name()
        );
        for log in [
            (at, 0, 1),
            (0, 64, 1),
            (at, 64, 0),
            (at, 64, 16),
            (at, u32::MAX, 1),
        ] {
            assert_eq!(load(m, &good, log).0, Err(EINVAL), "{} {log:?}", m.name());
        }
        assert!(load(m, &good, (0, 0, 0)).0.is_ok());
        assert_eq!(load(m, &bad, (8, 64, 1)).0, Err(EFAULT), "{}", m.name());
    });
}

#[test]
fn a_log_8_btf_loads_sentence_names_type_and_field() {
    let mut ours = Ours::host();
    let (mut bad, _, _) = fields::plain();
    bad[24 + 7] = 31;
    let at = ours.base() + LOG as u64;
    load(&mut ours, &bad, (at, 1024, 1)).0.unwrap_err();
    let log = ours.get(LOG, 1024);
    for word in ["BTF type 1", "kind 31"] {
        assert!(text(&log).contains(word), "{:?}", text(&log));
    }
}

/// A type of each kind, with and without the kind flag, and every way that a part of one can be.
fn every_kind() -> Vec<u8> {
    let mut btf = BtfBuilder::new();
    let long_name = btf.string(&[b'n'; 400]);
    let names: Vec<u32> = ["a", "b", "c", "value", "tag"]
        .iter()
        .map(|name| btf.string(name.as_bytes()))
        .collect();
    let mut add = |name: u32, kind: u32, flag: u32, vlen: u32, word: u32, tail: &[u32]| {
        btf.raw(name, flag << 31 | kind << 24 | vlen, word, tail)
    };
    let int = add(names[0], 1, 0, 0, 4, &[1 << 24 | 32]);
    add(names[0], 1, 0, 0, 4, &[32]);
    add(names[1], 1, 0, 0, 1, &[2 << 24 | 8]);
    add(names[2], 1, 0, 0, 1, &[4 << 24 | 8]);
    let pointer = add(0, 2, 0, 0, int, &[]);
    add(0, 2, 0, 0, 0, &[]);
    add(0, 3, 0, 0, 0, &[int, int, 5]);
    let record = add(
        long_name,
        4,
        0,
        2,
        8,
        &[long_name, int, 0, names[1], int, 32],
    );
    add(
        names[0],
        4,
        1,
        3,
        8,
        &[
            names[0],
            int,
            3 << 24,
            names[1],
            int,
            5 << 24 | 3,
            0,
            int,
            32,
        ],
    );
    let union = add(names[1], 5, 0, 1, 4, &[names[0], int, 0]);
    add(0, 4, 0, 1, 4, &[0, union, 0]);
    add(names[2], 6, 0, 2, 4, &[names[0], 0, names[1], u32::MAX]);
    add(names[3], 6, 1, 1, 4, &[names[2], u32::MAX - 1]);
    add(names[0], 7, 0, 0, 0, &[]);
    add(names[1], 7, 1, 0, 0, &[]);
    for kind in [8, 9, 10] {
        let name = if kind == 8 { names[0] } else { 0 };
        add(name, kind, 0, 0, int, &[]);
    }
    add(0, 11, 0, 0, pointer, &[]);
    add(0, 13, 0, 0, 0, &[]);
    let takes_two = add(0, 13, 0, 2, int, &[names[0], int, names[1], pointer]);
    add(0, 13, 0, 2, 0, &[0, int, 0, 0]);
    add(0, 13, 0, 1, 0, &[0, 0]);
    add(names[4], 12, 0, 1, takes_two, &[]);
    let var = add(names[3], 14, 0, 0, int, &[1]);
    add(long_name, 15, 0, 1, 4, &[var, 0, 4]);
    add(names[0], 16, 0, 0, 8, &[]);
    add(names[4], 17, 0, 0, record, &[u32::MAX]);
    add(names[4], 17, 0, 0, record, &[1]);
    let tagged = add(names[4], 18, 0, 0, int, &[]);
    add(0, 2, 0, 0, tagged, &[]);
    add(
        names[0],
        19,
        0,
        2,
        8,
        &[names[0], 1, 2, names[1], u32::MAX, u32::MAX],
    );
    add(names[1], 19, 1, 1, 8, &[names[2], u32::MAX, u32::MAX]);
    btf.finish()
}

/// BTF_LOAD with a log of every size and level: the answer, `btf_log_true_size` and, where the
/// blob is good, every byte of the log.
#[test]
fn the_log_of_a_good_blob_is_the_kernels() {
    const BLOB: usize = 0x8000;
    const ROOM: usize = 0x1800;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed());
    let load = |m: &mut dyn Machine, blob: &[u8], size: u32, level: u32| {
        m.put(LOG, &vec![0xee; ROOM]);
        m.put(BLOB, blob);
        let mut attr = [0; 32];
        attr[..8].copy_from_slice(&(m.base() + BLOB as u64).to_ne_bytes());
        attr[8..16].copy_from_slice(&(m.base() + LOG as u64).to_ne_bytes());
        attr[16..20].copy_from_slice(&(blob.len() as u32).to_ne_bytes());
        attr[20..24].copy_from_slice(&size.to_ne_bytes());
        attr[24..28].copy_from_slice(&level.to_ne_bytes());
        let got = m.raw(c::BTF_LOAD, &attr);
        if let Ok(fd) = got {
            m.close(fd);
        }
        let true_size = u32_of(&m.attr(32)[28..]);
        (got.map(|_| 0), true_size, m.get(LOG, ROOM))
    };
    let (mut good, mut cut) = (0, 0);
    let Ok(mut kernel) = Theirs::new() else {
        return aloud("skipped: the kernel takes no part, and there is nothing to compare with");
    };
    let mut ours = Ours::host();
    Btf::parse(&every_kind()).expect("sound");
    let mut blobs = vec![every_kind()];
    while blobs.len() < 400 {
        let blob = generate(&mut rng);
        if blob.len() <= 0x2000 && Btf::parse(&blob).is_ok() {
            blobs.push(blob);
        }
    }
    for blob in &blobs {
        let whole = load(&mut ours, blob, ROOM as u32, 1);
        if whole.0.is_err() {
            // Longer than there is room for.
            continue;
        }
        good += 1;
        for level in [1, 2, 3, 4, 7, 8, 9, 15] {
            let near = whole.1 + 2 - rng.random_range(0..4);
            let any = rng.random_range(1..=whole.1);
            for size in [ROOM as u32, near, any, 1, 2] {
                let mine = load(&mut ours, blob, size, level);
                let theirs = load(&mut kernel, blob, size, level);
                assert_eq!(
                    mine.0, theirs.0,
                    "level {level}, size {size} of {}",
                    whole.1
                );
                assert_eq!(
                    mine.1, theirs.1,
                    "level {level}, size {size} of {}",
                    whole.1
                );
                assert!(
                    mine.2 == theirs.2,
                    "level {level}, size {size} of {}:\n{}\nand the kernel's:\n{}",
                    whole.1,
                    String::from_utf8_lossy(&mine.2),
                    String::from_utf8_lossy(&theirs.2)
                );
                cut += u32::from(mine.0 == Err(ENOSPC));
            }
        }
    }
    assert!(good > 100 && cut > 100, "{good} blobs, {cut} cut logs");
}

#[test]
fn a_log_that_cannot_be_written_leaves_no_descriptor() {
    let mut ours = Ours::host();
    let first = ours.map(&attr(HASH, 4));
    let bytes = create_bytes(&attr(HASH, 4));
    let got = ours.common(c::MAP_CREATE, &bytes, &common(8, 64, 1));
    assert_eq!(got, Err(EFAULT), "{}", ours.reason);
    assert_eq!(ours.map(&attr(HASH, 4)), first + 1);
}
