//! Golden bytes: the wire images that a device in another language has to produce and accept.

use offmap_abi::admin::{
    CheckCode, IdentifyBody, MapAttr, MapCreateBody, MapLayoutBody, MapMigrateBody, MapMigrated,
    MemoryDetail, MemoryInfoBody, QueueCreateBody, TIER_PLACEABLE, TierInfo,
};
use offmap_abi::completion::BatchResult;
use offmap_abi::hash::KeyHash;
use offmap_abi::notify::{EventWord, cq_doorbell, sq_doorbell};
use offmap_abi::ring::RingDepth;
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef, phase_of};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, QueueId, RequestId, Status, Submission,
    SubmissionFlags, regs,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Bytes from hexadecimal, blanks ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn bytes(words: [u64; 8]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn a_lookup_with_inline_key_and_value_by_iova() {
    let body = ElementBody {
        map_flags: U32::new(0),
        key_len: U32::new(8),
        value_len: U32::new(64),
        reserved: U32::ZERO,
        key: *b"\x11\x22\x33\x44\x55\x66\x77\x88\0\0\0\0\0\0\0\0",
        value: IovaRef::field(0x1234_5678_9abc),
    };
    let s = Submission::new(
        IoOpcode::Lookup.0,
        RequestId::new(3, 0x0102_0304_0506),
        &body,
    )
    .with_map(MapHandle::new(5, 1))
    .with_flags(SubmissionFlags::KEY_INLINE);
    let expected = hex("01 01 0100 05000100  0300 060504030201
         00000000 08000000    40000000 00000000
         1122334455667788     0000000000000000
         bc9a785634120000     0000000000000000");
    assert_eq!(bytes(s.to_words(true)), expected);
    let back = Submission::from_words(s.to_words(true));
    assert_eq!(back.body::<ElementBody>(), body);
    assert_eq!(back.map(), MapHandle::new(5, 1));
    assert_eq!(back.request().slot(), 3);
    assert_eq!(back.request().generation(), 0x0102_0304_0506);
    assert!(phase_of(s.to_words(true)[0]) && !phase_of(s.to_words(false)[0]));
}

#[test]
fn a_batch_update() {
    let body = BatchBody {
        map_flags: U32::new(1),
        count: U32::new(1024),
        key_len: U32::new(8),
        value_len: U32::new(64),
        keys: U64::new(0x1000),
        values: U64::new(0x2000),
        statuses: U64::new(0x3000),
        cursor: U64::ZERO,
    };
    let s = Submission::new(IoOpcode::BatchUpdate.0, RequestId(1), &body);
    let expected = hex("12 00 0000 00000000  0100000000000000
         01000000 00040000    08000000 40000000
         0010000000000000     0020000000000000
         0030000000000000     0000000000000000");
    assert_eq!(bytes(s.to_words(false)), expected);
    assert!(IoOpcode::BatchUpdate.is_batch() && !IoOpcode::Update.is_batch());
}

#[test]
fn admin_bodies() {
    let create = MapCreateBody {
        map_type: U32::new(1),
        key_size: U32::new(8),
        value_size: U32::new(64),
        max_entries: U32::new(65_536),
        cpu_slots: U32::ZERO,
        flags: U32::ZERO,
        seed: U64::new(0x0807_0605_0403_0201),
        attr: U64::new(0x5000),
        attr_len: U32::new(48),
        reserved: U32::ZERO,
    };
    assert_eq!(
        create.as_bytes(),
        hex(
            "01000000 08000000 40000000 00000100 00000000 00000000 0102030405060708
             0050000000000000 30000000 00000000"
        )
    );
    let attr = MapAttr {
        name: *b"flows\0\0\0\0\0\0\0\0\0\0\0",
        map_extra: U64::new(5),
        host_memory: U64::new(0x1234_5678_9000),
        inner_map: U32::new(MapHandle::new(5, 1).0),
        vector: U32::new(3),
        tier: U32::new(2),
        reserved: U32::ZERO,
    };
    assert_eq!(
        attr.as_bytes(),
        hex(
            "666c6f7773000000 0000000000000000 0500000000000000 0090785634120000
             05000100 03000000 02000000 00000000"
        )
    );
    let queue = QueueCreateBody {
        queue: U16::new(2),
        reserved: U16::ZERO,
        depth: U32::new(128),
        vector: U32::new(regs::NO_VECTOR),
        coalesce_count: U16::ZERO,
        coalesce_us: U16::ZERO,
        sq: U64::new(0x1_0000),
        cq: U64::new(0x2_0000),
        notify: U64::new(0x3_0000),
        reserved3: U64::ZERO,
    };
    assert_eq!(
        queue.as_bytes(),
        hex(
            "0200 0000 80000000 ffffffff 00000000 0000010000000000 0000020000000000
             0000030000000000 0000000000000000"
        )
    );
    let identify = IdentifyBody {
        iova: U64::new(0x4000),
        len: U32::new(128),
        reserved: [0; 36],
    };
    let s = Submission::new(AdminOpcode::Identify.0, RequestId(0), &identify);
    assert_eq!(
        &bytes(s.to_words(true))[..28],
        hex("01000100 00000000 0000000000000000 0040000000000000 80000000")
    );
}

#[test]
fn commands_about_memory() {
    let info = MemoryInfoBody {
        iova: U64::new(0x4000),
        len: U32::new(192),
        first: U32::new(1),
        reserved: [0; 32],
    };
    let s = Submission::new(AdminOpcode::MemoryInfo.0, RequestId(2), &info);
    assert_eq!(
        &bytes(s.to_words(true))[..32],
        hex("14000100 00000000 0200000000000000 0040000000000000 c0000000 01000000")
    );
    let layout = MapLayoutBody {
        iova: U64::new(0x4000),
        len: U32::new(128),
        reserved: [0; 36],
    };
    let s = Submission::new(AdminOpcode::MapLayout.0, RequestId(2), &layout)
        .with_map(MapHandle::new(5, 1));
    assert_eq!(
        &bytes(s.to_words(true))[..32],
        hex("15000100 05000100 0200000000000000 0040000000000000 80000000 00000000")
    );
    let migrate = MapMigrateBody {
        tier: U32::new(2),
        reserved: [0; 44],
    };
    let s = Submission::new(AdminOpcode::MapMigrate.0, RequestId(2), &migrate)
        .with_map(MapHandle::new(5, 1));
    assert_eq!(
        &bytes(s.to_words(true))[..24],
        hex("16000100 05000100 0200000000000000 02000000 00000000")
    );
    let migrated = MapMigrated {
        map: U32::new(MapHandle::new(5, 1).0),
        tier: U32::new(1),
        base: U64::new(0x1_0040),
        from: U32::new(2),
        reserved: U32::ZERO,
    };
    assert_eq!(
        migrated.as_bytes(),
        hex("05000100 01000000 4000010000000000 02000000 00000000")
    );
    let tier = TierInfo {
        name: *b"sram\0\0\0\0\0\0\0\0\0\0\0\0",
        base: U64::new(0x1_0000),
        bytes: U64::new(0x40_0000),
        used: U64::new(0x1240),
        free_largest: U64::new(0x3f_e000),
        free_pieces: U32::new(3),
        check: U32::new(CheckCode::Secded.0),
        flags: U32::new(TIER_PLACEABLE),
        reserved: U32::ZERO,
        corrected: U64::new(7),
        detected: U64::new(1),
        bad_lines: U64::new(2),
        reserved2: U64::ZERO,
    };
    assert_eq!(
        tier.as_bytes(),
        hex(
            "7372616d00000000 0000000000000000 0000010000000000 0000400000000000
             4012000000000000 00e03f0000000000 03000000 02000000 01000000 00000000
             0700000000000000 0100000000000000 0200000000000000 0000000000000000"
        )
    );
    let detail = MemoryDetail {
        limit: U32::new(8),
        tier: U32::new(2),
        asked: U64::new(0x1000),
        allowed: U64::new(0x800),
        used: U64::new(0x3000),
        free: U64::new(0xc00),
    };
    assert_eq!(
        detail.as_bytes(),
        hex(
            "08000000 02000000 0010000000000000 0008000000000000 0030000000000000
             000c000000000000"
        )
    );
}

#[test]
fn completions() {
    let c = Completion::new(RequestId::new(7, 9), Status::NotFound);
    assert_eq!(
        &bytes(c.to_words(true))[..16],
        hex("0100 0100 00000000 0700 090000000000")
    );
    let c = Completion::new(RequestId(0), Status::Success).with_payload(b"value");
    assert_eq!(
        &bytes(c.to_words(false))[..24],
        hex("0000 0000 05000000 0000000000000000 76616c7565 000000")
    );
    let result = BatchResult {
        cursor: U64::new(17),
        needed: U32::new(3),
        reserved: U32::ZERO,
    };
    let c = Completion::from_words(c.with_payload(result.as_bytes()).to_words(true));
    assert_eq!(c.payload_as::<BatchResult>(), result);
}

#[test]
fn codes_of_the_peer_are_kept() {
    assert_eq!(Status(999).name(), None);
    assert_eq!(format!("{:?}", Status(0x3e7)), "Status(0x3e7)");
    assert_eq!(format!("{}", Status::NoSpace), "NoSpace");
    let flags = SubmissionFlags::from_bits_retain(0xf1);
    assert_eq!(flags.bits(), 0xf1);
    let s = Submission::new(0xee, RequestId(0), &[0u8; 48]).with_flags(flags);
    let back = Submission::from_words(s.to_words(true));
    assert_eq!((back.opcode, back.flags()), (0xee, flags));
}

#[test]
fn phases_flip_with_each_pass_and_past_the_wrap() {
    for bad in [0, 1, 3, 48, (1 << 15) + 1, 1 << 16, u32::MAX] {
        assert_eq!(RingDepth::new(bad), None, "{bad}");
    }
    for depth in [2, 4, 1 << 15] {
        let ring = RingDepth::new(depth).unwrap();
        let mut entry = 0u32.wrapping_sub(4 * depth);
        let (mut position, mut phase) = (0, true);
        for _ in 0..8 * depth {
            assert_eq!((ring.position(entry), ring.phase(entry)), (position, phase));
            entry = entry.wrapping_add(1);
            position += 1;
            if position == depth {
                (position, phase) = (0, !phase);
            }
        }
    }
}

#[test]
fn event_words_count_past_the_wrap() {
    assert_eq!(EventWord::armed_at(5).to_word(), 0x1_0000_0005);
    assert_eq!(
        EventWord::from_word(0xffff_fffe_0000_0005),
        EventWord {
            index: 5,
            armed: false
        }
    );
    let at_end = EventWord::armed_at(u32::MAX);
    assert!(
        !at_end.wants(u32::MAX),
        "the count that was seen wakes nobody"
    );
    assert!(!at_end.wants(u32::MAX - 1));
    assert!(at_end.wants(0), "one more, past the wrap");
    assert!(!EventWord::DISARMED.wants(1));
}

#[test]
fn doorbells_of_the_last_queue_stay_in_their_page() {
    assert_eq!(sq_doorbell(QueueId(1)), 0x1_0040);
    assert_eq!(cq_doorbell(QueueId(1)), 0x1_0048);
    let last = QueueId(regs::MAX_QUEUE_PAIRS - 1);
    assert!(cq_doorbell(last) + 8 <= regs::DOORBELLS + regs::DOORBELLS_BYTES);
    assert_eq!(regs::MAX_QUEUE_PAIRS, 1024);
}

/// The function of `docs/abi.md` §9, written from that page.
fn hash_as_documented(seed: u64, key: &[u8]) -> u64 {
    const D: [u64; 7] = [
        0x2d358dccaa6c78a5,
        0x8bb84b93962eacc9,
        0x4b33a62ed433d4a3,
        0x4d5a2da51de1aa47,
        0xa0761d6478bd642f,
        0xe7037ed1a0b428db,
        0x90ed1765281c388c,
    ];
    fn mul(a: u64, b: u64) -> (u64, u64) {
        let p = u128::from(a) * u128::from(b);
        (p as u64, (p >> 64) as u64)
    }
    fn mix(a: u64, b: u64) -> u64 {
        let (lo, hi) = mul(a, b);
        lo ^ hi
    }
    let premix = |mut x: u64, i: usize| {
        x ^= mix(x ^ D[2], D[i]);
        if x & 0xffff_0000_0000_0000 == 0 {
            x |= 1 << 63;
        }
        if x & 0x0000_00ff_ff00_0000 == 0 {
            x |= 1 << 31;
        }
        if x & 0xffff == 0 {
            x |= 1;
        }
        x
    };
    let start = premix(seed, 0);
    let mut secret = [0; 7];
    let mut last = start;
    for (i, s) in secret.iter_mut().enumerate() {
        last = premix(last, i);
        *s = last;
    }
    let len = key.len();
    let r64 = |at: usize| u64::from_le_bytes(key[at..at + 8].try_into().unwrap());
    let r32 = |at: usize| u64::from(u32::from_le_bytes(key[at..at + 4].try_into().unwrap()));
    let (mut s, mut n) = (start, len);
    let (a, b) = match len {
        0 => (0, 0),
        1..4 => (
            u64::from(key[0]) << 45 | u64::from(key[len - 1]),
            u64::from(key[len / 2]),
        ),
        4..8 => (r32(0), r32(len - 4)),
        8..=16 => (r64(0), r64(len - 8)),
        _ => {
            let mut p = 0;
            if n > 112 {
                let mut t = [start; 7];
                while n > 112 {
                    for (i, t) in t.iter_mut().enumerate() {
                        *t = mix(r64(p + 16 * i) ^ secret[i], r64(p + 16 * i + 8) ^ *t);
                    }
                    p += 112;
                    n -= 112;
                }
                s = t.iter().fold(0, |x, t| x ^ t);
            }
            for (i, k) in [2, 2, 1, 1, 2, 1].into_iter().enumerate() {
                if n > 16 * (i + 1) {
                    s = mix(r64(p + 16 * i) ^ secret[k], r64(p + 16 * i + 8) ^ s);
                }
            }
            (r64(len - 16) ^ n as u64, r64(len - 8))
        }
    };
    if (4..=16).contains(&len) {
        s ^= len as u64;
    }
    let (lo, hi) = mul(a ^ secret[1], b ^ s);
    mix(lo ^ 0xaaaa_aaaa_aaaa_aaaa, hi ^ secret[1] ^ n as u64)
}

#[test]
fn the_key_hash_is_the_documented_one() {
    let mut seed = 1u64;
    for len in 0..=700 {
        for _ in 0..20 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let key: Vec<u8> = (0..len).map(|i| (seed >> (i * 3 % 57)) as u8).collect();
            assert_eq!(
                KeyHash::new(seed).hash(&key),
                hash_as_documented(seed, &key),
                "seed {seed:#x}, key {key:02x?}"
            );
        }
    }
}

#[test]
fn golden_hashes() {
    let long: Vec<u8> = (0..=255).collect();
    let cases: &[(u64, &[u8], u64)] = &[
        (0, b"", 0x880c2674d4e103b9),
        (0, b"abc", 0xfa682a32c0bb9085),
        (0, &[1, 0, 0, 0], 0xf73a1f96c68a27ac),
        (42, &[1, 0, 0, 0, 0, 0, 0, 0], 0xefc2dcb43d5a17e3),
        (42, &long[..17], 0x78f86ee2e8b94928),
        (42, &long[..113], 0xb8b3e897f79b1b63),
        (u64::MAX, &long, 0xb471afd25df3a6d6),
    ];
    for (seed, key, hash) in cases {
        let got = KeyHash::new(*seed).hash(key);
        assert_eq!(got, *hash, "seed {seed}, {} bytes: {got:#018x}", key.len());
    }
}

/// The header of a record as a 6.18 kernel left it in a ring of one page, after 13 bytes of
/// output, and headers further on.
#[test]
fn ring_headers() {
    use offmap_abi::ringbuf::{
        BUSY, CONSUMER_POSITION, DATA, DISCARD, DROPPED, PRODUCER_POSITION, RECORD_BYTES_MAX,
        header_word, memory_bytes,
    };
    assert_eq!(
        header_word(0, 4096, 13).to_le_bytes(),
        [13, 0, 0, 0, 3, 0, 0, 0]
    );
    let far = header_word(3 * 8192 + 4096 + 8, 8192, 0x1234 | BUSY);
    assert_eq!(far.to_le_bytes(), [0x34, 0x12, 0, 0x80, 4, 0, 0, 0]);
    let passed = header_word(8, 4096, DISCARD);
    assert_eq!(passed.to_le_bytes(), [0, 0, 0, 0x40, 3, 0, 0, 0]);
    assert_eq!((CONSUMER_POSITION, PRODUCER_POSITION), (0, 0x1000));
    assert_eq!(
        (DROPPED, DATA, memory_bytes(4096)),
        (0x1008, 0x2000, 0x3000)
    );
    assert_eq!(RECORD_BYTES_MAX, 0x3fff_ffff);
}
