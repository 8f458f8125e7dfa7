//! The key hash (abi §9): rapidhash V3 with secrets derived from a 64-bit seed.
//!
//! The function is part of the ABI, because a host that reads a mirror computes it too. The
//! seed comes from the host with MAP_CREATE. All secrets depend on the seed, so that keys
//! chosen without knowing it do not collide on purpose.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

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
