//! Refusals that maps of several types share, and what their batch tokens share.

use crate::errno::Errno;
use crate::error::{Error, Result};

/// The device of an offloaded map is gone.
pub(crate) const GONE: Error = Error::new(Errno::ENODEV, "the map's device was removed");
/// A lookup, or BPF_EXIST, of a key that is not there.
pub(crate) const MISSING: Error = Error::new(Errno::ENOENT, "the map has no such key");
/// BPF_NOEXIST of a key that is there.
pub(crate) const PRESENT: Error = Error::new(
    Errno::EEXIST,
    "the key is in the map already, and BPF_NOEXIST was asked for",
);
/// A new key in a full map.
pub(crate) const FULL: Error = Error::new(
    Errno::E2BIG,
    "the map holds max_entries entries and the key is new",
);
/// GET_NEXT_KEY after the last key.
pub(crate) const END: Error = Error::new(Errno::ENOENT, "there is no further key in the map");
/// GET_NEXT_KEY of an array after its last index.
pub(crate) const LAST_INDEX: Error = Error::new(Errno::ENOENT, "the index is the array's last");
/// An update of an array past its end.
pub(crate) const PAST_END: Error =
    Error::new(Errno::E2BIG, "the array index is at or past max_entries");
/// Flags of an update that are none of the three.
pub(crate) const BAD_UPDATE_FLAGS: Error = Error::new(
    Errno::EINVAL,
    "flags: an update takes BPF_ANY, BPF_NOEXIST or BPF_EXIST",
);
/// A batch walk came to the end.
pub(crate) const BATCH_END: Error =
    Error::new(Errno::ENOENT, "the batch has reached the end of the map");
/// A batch walk has no room for the first bucket.
pub(crate) const BUCKET_TOO_BIG: Error = Error::new(
    Errno::ENOSPC,
    "the next bucket holds more elements than the batch has room for",
);
const BAD_TOKEN: Error = Error::new(
    Errno::ENOENT,
    "the batch token is at or past the number of buckets",
);

/// The bucket that a batch walk of a hash type goes on with: 0 without a token. `mask` is the
/// last bucket. ENOENT.
pub(crate) fn token_bucket(token: Option<&[u8]>, mask: usize) -> Result<usize> {
    let bucket = token.map_or(0, |token| {
        let mut raw = [0; 4];
        raw.copy_from_slice(&token[..4]);
        u32::from_ne_bytes(raw) as usize
    });
    if bucket > mask {
        return Err(BAD_TOKEN);
    }
    Ok(bucket)
}
