//! Changes to a blob.

use offmap_bpf::btf::Kind;
use rand::{Rng, RngExt};

const HEADER_BYTES: usize = 24;
/// Values at which some check turns.
const BOUNDARIES: [u32; 22] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    15,
    16,
    31,
    32,
    33,
    64,
    255,
    0xffff,
    0xf_ffff,
    0x10_0000,
    0xff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX,
];

fn word(blob: &[u8], at: usize) -> u32 {
    blob.get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn put(blob: &mut [u8], at: usize, value: u32) {
    if let Some(bytes) = blob.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

/// Where each type starts in a blob whose header and kinds are sound; as far as they are.
pub(super) fn type_offsets(blob: &[u8]) -> Vec<usize> {
    let start = word(blob, 4) as usize + word(blob, 8) as usize;
    let end = start
        .saturating_add(word(blob, 12) as usize)
        .min(blob.len());
    let mut offsets = Vec::new();
    let mut at = start;
    while at + 12 <= end {
        offsets.push(at);
        let info = word(blob, at + 4);
        let each = match Kind::ALL.get((info >> 24 & 0x1f) as usize) {
            Some(Kind::Int | Kind::Var | Kind::DeclTag) => (4, 0),
            Some(Kind::Array) => (12, 0),
            Some(Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64) => (0, 12),
            Some(Kind::Enum | Kind::FuncProto) => (0, 8),
            _ => (0, 0),
        };
        at += 12 + each.0 + each.1 * (info & 0xffff) as usize;
    }
    offsets
}

/// Changes `blob` in one to four places.
pub fn mutate<R: Rng>(rng: &mut R, blob: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..5) {
        if blob.len() <= HEADER_BYTES {
            return;
        }
        match rng.random_range(0..13) {
            0 => flip_bit(rng, blob),
            1..=3 => word_of_types(rng, blob),
            4 => header(rng, blob),
            5 => truncate(rng, blob),
            6 => swap_types(rng, blob),
            7 => change_kind(rng, blob),
            8 => string_byte(rng, blob),
            9 => redirect(rng, blob),
            10 => longer_header(rng, blob),
            11 => flag_or_vlen(rng, blob),
            _ => remove_type(rng, blob),
        }
    }
}

fn type_bytes(blob: &[u8]) -> std::ops::Range<usize> {
    let start = (word(blob, 4) as usize + word(blob, 8) as usize).min(blob.len());
    start
        ..start
            .saturating_add(word(blob, 12) as usize)
            .min(blob.len())
}

fn some_type<R: Rng>(rng: &mut R, blob: &[u8]) -> Option<usize> {
    let offsets = type_offsets(blob);
    (!offsets.is_empty()).then(|| offsets[rng.random_range(0..offsets.len())])
}

fn flip_bit<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    let at = rng.random_range(0..blob.len());
    blob[at] ^= 1 << rng.random_range(0..8);
}

fn word_of_types<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    let types = type_bytes(blob);
    if types.len() < 4 {
        return;
    }
    let at = types.start + rng.random_range(0..types.len() / 4) * 4;
    let old = word(blob, at);
    let new = match rng.random_range(0..4) {
        0 => BOUNDARIES[rng.random_range(0..BOUNDARIES.len())],
        1 => old.wrapping_add(1),
        2 => old.wrapping_sub(1),
        _ => rng.random_range(0..48),
    };
    put(blob, at, new);
}

fn header<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    if rng.random_range(0..4) == 0 {
        blob[rng.random_range(0..4)] = rng.random();
        return;
    }
    let at = rng.random_range(1..6) * 4;
    let old = word(blob, at);
    let new = match rng.random_range(0..4) {
        0 => BOUNDARIES[rng.random_range(0..BOUNDARIES.len())],
        1 => old.wrapping_add(4),
        2 => old.wrapping_sub(4),
        _ => old ^ 1 << rng.random_range(0..32),
    };
    put(blob, at, new);
}

/// Cuts the end off; half the time, the header is told.
fn truncate<R: Rng>(rng: &mut R, blob: &mut Vec<u8>) {
    let cut = rng.random_range(1..=blob.len().min(64));
    let len = blob.len() - cut;
    blob.truncate(len);
    if rng.random() {
        let strings = word(blob, 20).wrapping_sub(cut as u32);
        put(blob, 20, strings);
    }
}

fn swap_types<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    let mut offsets = type_offsets(blob);
    let end = type_bytes(blob).end;
    if offsets.len() < 2 {
        return;
    }
    offsets.push(end);
    let i = rng.random_range(0..offsets.len() - 2);
    let (a, b, c) = (offsets[i], offsets[i + 1], offsets[i + 2]);
    if a <= b && b <= c && c <= blob.len() {
        blob[a..c].rotate_left(b - a);
    }
}

fn change_kind<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    if let Some(at) = some_type(rng, blob) {
        let info = word(blob, at + 4) & !(0x1f << 24);
        put(blob, at + 4, info | rng.random_range(0..22) << 24);
    }
}

fn flag_or_vlen<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    if let Some(at) = some_type(rng, blob) {
        let info = word(blob, at + 4);
        let new = match rng.random_range(0..4) {
            0 => info ^ 1 << 31,
            1 => info.wrapping_add(1),
            2 => info.wrapping_sub(1),
            _ => info ^ 1 << rng.random_range(16..31),
        };
        put(blob, at + 4, new);
    }
}

fn string_byte<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    let start = type_bytes(blob).end;
    if start < blob.len() {
        let at = rng.random_range(start..blob.len());
        blob[at] = rng.random();
    }
}

/// Makes a type refer to any other.
fn redirect<R: Rng>(rng: &mut R, blob: &mut [u8]) {
    let count = type_offsets(blob).len() as u32;
    if let Some(at) = some_type(rng, blob) {
        put(blob, at + 8, rng.random_range(0..count + 2));
    }
}

fn longer_header<R: Rng>(rng: &mut R, blob: &mut Vec<u8>) {
    let more = rng.random_range(1..9);
    let byte = if rng.random() { 0 } else { rng.random() };
    let at = HEADER_BYTES.min(blob.len());
    blob.splice(at..at, std::iter::repeat_n(byte, more));
    let len = word(blob, 4).wrapping_add(more as u32);
    put(blob, 4, len);
}

/// Takes a type out, which moves all ids after it.
fn remove_type<R: Rng>(rng: &mut R, blob: &mut Vec<u8>) {
    let mut offsets = type_offsets(blob);
    let end = type_bytes(blob).end;
    if offsets.is_empty() {
        return;
    }
    offsets.push(end);
    let i = rng.random_range(0..offsets.len() - 1);
    let (from, to) = (offsets[i], offsets[i + 1]);
    if from > to || to > blob.len() {
        return;
    }
    blob.drain(from..to);
    let removed = (to - from) as u32;
    for at in [12, 16] {
        let value = word(blob, at).wrapping_sub(removed);
        put(blob, at, value);
    }
}
