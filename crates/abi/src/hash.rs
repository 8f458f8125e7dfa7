//! The key hash (abi §9): rapidhash V3 with secrets derived from a 64-bit seed.
//!
//! The function is part of the ABI, because a host that reads a mirror computes it too. The
//! seed comes from the host with MAP_CREATE. All secrets depend on the seed, so that keys
//! chosen without knowing it do not collide on purpose.
//!
//! Bloom filters use [`jhash`] instead, so that they have the kernel's false positives.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

/// The kernel's `jhash` on a little-endian machine (`include/linux/jhash.h`, abi §9.1): Bob
/// Jenkins' lookup3. Where the length is a multiple of four it is `jhash2` too.
pub const fn jhash(key: &[u8], initval: u32) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(key.len() as u32)
        .wrapping_add(initval);
    let [mut a, mut b, mut c] = [start; 3];
    let mut key = key;
    while let Some((block, rest)) = key.split_first_chunk::<12>()
        && !rest.is_empty()
    {
        a = a.wrapping_add(word(block, 0));
        b = b.wrapping_add(word(block, 4));
        c = c.wrapping_add(word(block, 8));
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        key = rest;
    }
    if key.is_empty() {
        return c;
    }
    a = a.wrapping_add(word(key, 0));
    b = b.wrapping_add(word(key, 4));
    c = c.wrapping_add(word(key, 8));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// The little-endian word at `at`; bytes past the end count as zero.
const fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < 4 {
        if at + i < bytes.len() {
            word |= (bytes[at + i] as u32) << (8 * i);
        }
        i += 1;
    }
    word
}

/// A hash function of keys: one member of the family, picked by a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyHash {
    secrets: RapidSecrets,
}

impl KeyHash {
    /// The member of the family that `seed` picks.
    pub const fn new(seed: u64) -> Self {
        Self {
            secrets: RapidSecrets::seed(seed),
        }
    }

    /// Hash of a whole key.
    #[inline(always)]
    pub const fn hash(&self, key: &[u8]) -> u64 {
        rapidhash_v3_inline::<true, false, false>(key, &self.secrets)
    }

    /// Start value and the seven secrets, as a device in another language needs them.
    pub const fn secrets(&self) -> (u64, [u64; 7]) {
        (self.secrets.seed, self.secrets.secrets)
    }
}
