//! Ring entries as the device loads and stores them (abi §10, rules S1, S3 and C1).

use offmap_abi::submission::{SUBMISSION_WORDS, phase_of};
use offmap_device_io::SharedWords;
use std::sync::atomic::Ordering;

/// Words of a ring entry: submissions and completions have equally many.
const WORDS: usize = SUBMISSION_WORDS;

/// Loads the entry at the start of `words` if its phase is `phase`: word 0 once, with acquire, and
/// the others, once each, only after it showed that phase (rules S1, S3).
#[inline(always)]
pub(crate) fn load<W: SharedWords>(
    words: &W,
    phase: bool,
) -> Result<Option<[u64; WORDS]>, W::Fault> {
    let word0 = words.load(0, Ordering::Acquire)?;
    if phase_of(word0) != phase {
        return Ok(None);
    }
    let mut entry = [word0; WORDS];
    for (i, word) in entry.iter_mut().enumerate().skip(1) {
        *word = words.load(i * 8, Ordering::Relaxed)?;
    }
    Ok(Some(entry))
}

/// Stores an entry at the start of `words`, word 0 last and with release (rule C1).
#[inline(always)]
pub(crate) fn store<W: SharedWords>(words: &W, entry: &[u64; WORDS]) -> Result<(), W::Fault> {
    for (i, word) in entry.iter().enumerate().skip(1) {
        words.store(i * 8, *word, Ordering::Relaxed)?;
    }
    words.store(0, entry[0], Ordering::Release)
}

/// Stores the first `count` words of an entry in the order in which [`store`] stores them: words 1
/// to 7, then word 0. What is left out keeps what it was: an entry that did not arrive whole.
#[cold]
pub(crate) fn store_part<W: SharedWords>(
    words: &W,
    entry: &[u64; WORDS],
    count: usize,
) -> Result<(), W::Fault> {
    let order = (1..WORDS).chain([0]);
    for i in order.take(count) {
        words.store(i * 8, entry[i], Ordering::Release)?;
    }
    Ok(())
}
