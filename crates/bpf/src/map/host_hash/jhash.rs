//! The kernel's `jhash` and `jhash2` (`include/linux/jhash.h`), with which a map that was made
//! with BPF_F_ZERO_SEED picks buckets: Bob Jenkins's lookup3 (2006, public domain).
//!
//! Three words of state take in twelve bytes at a time. The kernel hashes keys whose size is a
//! multiple of four as an array of `u32`, and others as bytes, where the last incomplete block
//! is taken as little-endian whatever the machine is.

const INITIAL: u32 = 0xdead_beef;

/// lookup3's `mix`: each line takes one word into the next, in turn, with these rotations.
fn mix(state: &mut [u32; 3]) {
    for (i, rotation) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
        let (to, from, other) = (i % 3, (i + 2) % 3, (i + 1) % 3);
        state[to] = state[to].wrapping_sub(state[from]) ^ state[from].rotate_left(rotation);
        state[from] = state[from].wrapping_add(state[other]);
    }
}

/// lookup3's `final`, which forces the state into its last word.
fn finish(state: &mut [u32; 3]) -> u32 {
    for (i, rotation) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let (to, from) = ((i + 2) % 3, (i + 1) % 3);
        state[to] = (state[to] ^ state[from]).wrapping_sub(state[from].rotate_left(rotation));
    }
    state[2]
}

/// The hash that `htab_map_hash` gives `key`, with the seed 0.
pub(super) fn htab_hash(key: &[u8]) -> u32 {
    // `max_entries` and sizes are `u32`, so that the length is one too.
    let mut state = [INITIAL.wrapping_add(key.len() as u32); 3];
    let words = key.len().is_multiple_of(4);
    let mut rest = key;
    while rest.len() > 12 {
        let (block, others) = rest.split_at(12);
        for (word, bytes) in state.iter_mut().zip(block.as_chunks().0) {
            *word = word.wrapping_add(u32::from_ne_bytes(*bytes));
        }
        mix(&mut state);
        rest = others;
    }
    for (word, bytes) in state.iter_mut().zip(rest.chunks(4)) {
        let mut raw = [0; 4];
        raw[..bytes.len()].copy_from_slice(bytes);
        *word = word.wrapping_add(match words {
            true => u32::from_ne_bytes(raw),
            false => u32::from_le_bytes(raw),
        });
    }
    if key.is_empty() {
        return state[2];
    }
    finish(&mut state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Bob Jenkins's `driver5` of lookup3.c documents for `hashlittle`.
    #[test]
    #[cfg(target_endian = "little")]
    fn lookup3_s_own_vectors() {
        assert_eq!(htab_hash(b""), 0xdead_beef);
        assert_eq!(htab_hash(b"Four score and seven years ago"), 0x1777_0551);
    }
}
