//! Bytes in aligned 8-byte atomic words.
//!
//! Elements are copied word by word with relaxed atomics, under a version that tells a reader
//! whether what it copied belongs together. That keeps readers free of locks, and the whole
//! of it free of `unsafe`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words that hold `bytes` bytes.
pub(crate) const fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(8)
}

/// Copies the first `out.len()` bytes of `words` out.
#[inline]
pub(crate) fn copy_out(words: &[AtomicU64], out: &mut [u8]) {
    let mut chunks = out.chunks_exact_mut(8);
    let mut words = words.iter();
    for (chunk, word) in (&mut chunks).zip(&mut words) {
        chunk.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
    }
    let tail = chunks.into_remainder();
    if let (false, Some(word)) = (tail.is_empty(), words.next()) {
        tail.copy_from_slice(&word.load(Relaxed).to_ne_bytes()[..tail.len()]);
    }
}

/// Copies `bytes` in; the rest of the last word becomes zero.
#[inline]
pub(crate) fn copy_in(words: &[AtomicU64], bytes: &[u8]) {
    let chunks = bytes.chunks_exact(8);
    let tail = chunks.remainder();
    let mut words = words.iter();
    for (chunk, word) in chunks.zip(&mut words) {
        let mut raw = [0; 8];
        raw.copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(raw), Relaxed);
    }
    if let (false, Some(word)) = (tail.is_empty(), words.next()) {
        word.store(partial(tail), Relaxed);
    }
}

/// Whether `words` hold `bytes`.
#[inline]
pub(crate) fn equal(words: &[AtomicU64], bytes: &[u8]) -> bool {
    let chunks = bytes.chunks_exact(8);
    let tail = chunks.remainder();
    let mut words = words.iter();
    for (chunk, word) in chunks.zip(&mut words) {
        let mut raw = [0; 8];
        raw.copy_from_slice(chunk);
        if word.load(Relaxed) != u64::from_ne_bytes(raw) {
            return false;
        }
    }
    match words.next() {
        Some(word) if !tail.is_empty() => word.load(Relaxed) == partial(tail),
        _ => true,
    }
}

#[inline]
fn partial(tail: &[u8]) -> u64 {
    let mut raw = [0; 8];
    raw[..tail.len()].copy_from_slice(tail);
    u64::from_ne_bytes(raw)
}

/// How a thread waits for another that is in a short critical section.
pub(crate) struct Backoff(u32);

impl Backoff {
    /// Tries after which a reader takes the lock instead, so that writers cannot starve it.
    pub(crate) const READER_TRIES: u32 = 64;

    pub(crate) const fn new() -> Self {
        Self(0)
    }

    /// Waits a little: spinning at first; later giving the CPU away, since the other thread
    /// may have been preempted.
    #[inline]
    pub(crate) fn wait(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 < 32 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }

    /// Whether optimistic reading has failed too often.
    #[inline]
    pub(crate) const fn exhausted(&self) -> bool {
        self.0 >= Self::READER_TRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_at_every_length() {
        for len in 0..40 {
            let words: Vec<AtomicU64> = (0..words_for(len)).map(|_| AtomicU64::new(!0)).collect();
            let bytes: Vec<u8> = (1..=len as u8).collect();
            copy_in(&words, &bytes);
            let mut out = vec![0xee; len];
            copy_out(&words, &mut out);
            assert_eq!(out, bytes);
            assert!(equal(&words, &bytes));
            for i in 0..len {
                let mut other = bytes.clone();
                other[i] ^= 0x80;
                assert!(!equal(&words, &other), "length {len}, byte {i}");
            }
        }
    }
}
