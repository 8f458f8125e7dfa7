//! `jhash` and `jhash2` (`include/linux/jhash.h`): Bob Jenkins' lookup3, as the kernel's map
//! types use it.

/// `JHASH_INITVAL`.
const INITVAL: u32 = 0xdead_beef;

/// The three words that the function works on.
struct State([u32; 3]);

impl State {
    fn new(bytes: usize, initval: u32) -> Self {
        // The length counts modulo 2^32, as its type in the kernel has it.
        Self([INITVAL.wrapping_add(bytes as u32).wrapping_add(initval); 3])
    }

    fn add(&mut self, word: usize, value: u32) {
        self.0[word] = self.0[word].wrapping_add(value);
    }

    /// `__jhash_mix`: reversible, between blocks of 12 bytes.
    fn mix(&mut self) {
        let [mut a, mut b, mut c] = self.0;
        for rotations in [[4, 6, 8], [16, 19, 4]] {
            let [first, second, third] = rotations;
            a = a.wrapping_sub(c) ^ c.rotate_left(first);
            c = c.wrapping_add(b);
            b = b.wrapping_sub(a) ^ a.rotate_left(second);
            a = a.wrapping_add(c);
            c = c.wrapping_sub(b) ^ b.rotate_left(third);
            b = b.wrapping_add(a);
        }
        self.0 = [a, b, c];
    }

    /// `__jhash_final`.
    fn finish(self) -> u32 {
        let [mut a, mut b, mut c] = self.0;
        for rotations in [[14, 11, 25], [16, 4, 14]] {
            let [first, second, third] = rotations;
            c = (c ^ b).wrapping_sub(b.rotate_left(first));
            a = (a ^ c).wrapping_sub(c.rotate_left(second));
            b = (b ^ a).wrapping_sub(a.rotate_left(third));
        }
        (c ^ b).wrapping_sub(b.rotate_left(24))
    }

    /// Takes in all blocks of 12 bytes but the last, which may be short; returns that.
    fn blocks<'a>(&mut self, mut key: &'a [u8]) -> &'a [u8] {
        while key.len() > 12 {
            let (block, rest) = key.split_at(12);
            for (word, bytes) in block.as_chunks::<4>().0.iter().enumerate() {
                self.add(word, u32::from_ne_bytes(*bytes));
            }
            self.mix();
            key = rest;
        }
        key
    }
}

/// `jhash`: of any bytes.
pub(crate) fn jhash(key: &[u8], initval: u32) -> u32 {
    let mut state = State::new(key.len(), initval);
    let rest = state.blocks(key);
    if rest.is_empty() {
        return state.0[2];
    }
    for (index, &byte) in rest.iter().enumerate() {
        state.add(index / 4, u32::from(byte) << (index % 4 * 8));
    }
    state.finish()
}

/// `jhash2`: of 32-bit words in native byte order. What does not fill a word is left out.
pub(crate) fn jhash2(key: &[u8], initval: u32) -> u32 {
    let mut state = State::new(key.len(), initval);
    let rest = state.blocks(key);
    if rest.is_empty() {
        return state.0[2];
    }
    for (word, bytes) in rest.as_chunks::<4>().0.iter().enumerate() {
        state.add(word, u32::from_ne_bytes(*bytes));
    }
    state.finish()
}

/// The hash that `htab_map_hash` gives a key, with the seed 0 of BPF_F_ZERO_SEED.
pub(crate) fn htab_hash(key: &[u8]) -> u32 {
    match key.len().is_multiple_of(4) {
        true => jhash2(key, 0),
        false => jhash(key, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that lookup3.c's own driver prints for `hashlittle`.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_published_values() {
        let text = b"Four score and seven years ago";
        for (key, initval, hash) in [
            (&b""[..], 0, 0xdead_beef),
            (b"", 0xdead_beef, 0xbd5b_7dde),
            (text, 0, 0x1777_0551),
            (text, 1, 0xcd62_8161),
        ] {
            assert_eq!(jhash(key, initval), hash);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn words_and_bytes_agree_where_both_can_be_used() {
        let bytes: Vec<u8> = (0..64).map(|i: u8| i.wrapping_mul(37) ^ 0xa5).collect();
        for len in (0..=64).step_by(4) {
            assert_eq!(jhash(&bytes[..len], 7), jhash2(&bytes[..len], 7), "{len}");
        }
    }
}
