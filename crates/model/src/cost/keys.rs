//! Keys of a table: different ones for different numbers, and in no order.

use super::{CostError, Shape};
use crate::des::random::mix;
use offmap_firmware_model::table::layout::MapKind;

/// Of a trie's keys, how many are tried for each one that is wanted.
pub(super) const TRIES: u64 = 8;
/// Operations of each kind that are counted: so many keys are wanted besides those that are there.
pub(super) const SAMPLE: u32 = 4096;

/// How many different keys of a shape there are, capped.
fn space(shape: &Shape) -> u64 {
    if shape.kind() != Some(MapKind::LpmTrie) {
        let bits = u64::from(shape.key_size) * 8;
        return if bits >= 64 { u64::MAX } else { 1 << bits };
    }
    // As many as the rarest length has, of those that it is drawn for.
    let weights: u64 = shape.prefixes.iter().map(|&(_, w)| u64::from(w)).sum();
    let room = shape.prefixes.iter().filter(|(_, weight)| *weight != 0);
    let room = room.map(|&(length, weight)| {
        let prefixes = if length >= 63 { u64::MAX } else { 1 << length };
        let most = u128::from(prefixes) * u128::from(weights) / u128::from(weight);
        u64::try_from(most).unwrap_or(u64::MAX)
    });
    room.min().unwrap_or(0)
}

/// Whether there are as many keys as a shape wants.
pub(super) fn check(shape: &Shape) -> Result<(), CostError> {
    let Some(kind) = shape.kind() else {
        return Err(CostError::Type(shape.map_type));
    };
    if kind.is_array() {
        return Ok(());
    }
    let wanted = u64::from(shape.max_entries) + 2 * u64::from(SAMPLE);
    match space(shape) >= wanted {
        true => Ok(()),
        false => Err(CostError::Keys {
            wanted,
            key_size: shape.key_size,
            prefixes: kind == MapKind::LpmTrie,
        }),
    }
}

/// Key number `n`. Of a trie it is a prefix with some length of the shape's, and not always a new one.
pub(super) fn key(shape: &Shape, kind: MapKind, n: u64) -> Vec<u8> {
    match kind {
        _ if kind.is_array() => (n as u32).to_le_bytes().to_vec(),
        MapKind::LpmTrie => {
            let weights: u64 = shape.prefixes.iter().map(|&(_, w)| u64::from(w)).sum();
            let mut draw = mix(n ^ 0x5bd1_e995) % weights.max(1);
            let mut length = 0;
            for &(of, weight) in &shape.prefixes {
                length = of;
                match draw.checked_sub(weight.into()) {
                    Some(rest) => draw = rest,
                    None => break,
                }
            }
            prefix(shape, length, n)
        }
        _ if shape.key_size < 8 => {
            // An odd factor: a bijection of the numbers of so many bits.
            let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x.to_le_bytes()[..shape.key_size as usize].to_vec()
        }
        _ => {
            let mut key = vec![0; shape.key_size as usize];
            key[..8].copy_from_slice(&mix(n).to_le_bytes());
            key
        }
    }
}

/// An address of a trie, with all its bits, as a key.
pub(super) fn address(shape: &Shape, n: u64) -> Vec<u8> {
    prefix(shape, (shape.key_size - 4) * 8, n)
}

/// An address below that prefix, as a key.
pub(super) fn below(shape: &Shape, of: &[u8], n: u64) -> Vec<u8> {
    let mut address = address(shape, n);
    let length = of
        .iter()
        .take(4)
        .rev()
        .fold(0, |l, &b| l << 8 | usize::from(b));
    for bit in 0..length {
        let (byte, mask) = (4 + bit / 8, 0x80 >> (bit % 8));
        address[byte] = address[byte] & !mask | of[byte] & mask;
    }
    address
}

fn prefix(shape: &Shape, length: u32, n: u64) -> Vec<u8> {
    let mut key = length.to_le_bytes().to_vec();
    let bytes = shape.key_size as usize - 4;
    let mut piece = 0u64;
    while key.len() < 4 + bytes {
        let bits = mix(mix(n.wrapping_add(1)).wrapping_add(piece));
        let left = 4 + bytes - key.len();
        key.extend_from_slice(&bits.to_be_bytes()[..left.min(8)]);
        piece += 1;
    }
    for bit in length as usize..bytes * 8 {
        key[4 + bit / 8] &= !(0x80 >> (bit % 8));
    }
    key
}
