//! Bytes in aligned 8-byte atomic words.
//!
//! Elements are copied word by word with relaxed atomics, under a version that tells a reader
//! whether what it copied belongs together. That keeps readers free of locks, and the whole
//! of it free of `unsafe`. The first byte is a word's lowest, whatever the machine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words that hold `bytes` bytes.
pub(crate) const fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(8)
}

/// Copies the first `out.len()` bytes of `words` out. One cache line is what most values are.
#[inline]
pub(crate) fn copy_out(words: &[AtomicU64], out: &mut [u8]) {
    if let Ok(line) = <&mut [u8; 64]>::try_from(&mut *out)
        && let Some(words) = words.first_chunk::<8>()
    {
        return copy_line(words, line);
    }
    copy_out_long(words, out);
}

#[inline]
fn copy_line(words: &[AtomicU64; 8], line: &mut [u8; 64]) {
    for (chunk, word) in line.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.load(Relaxed).to_le_bytes();
    }
}

/// Whole cache lines in loops that the compiler unrolls, since it does not make vectors of
/// atomic loads.
#[inline(never)]
fn copy_out_long(words: &[AtomicU64], out: &mut [u8]) {
    let (lines, rest) = out.as_chunks_mut::<64>();
    let (word_lines, _) = words.as_chunks::<8>();
    let copied = lines.len();
    for (line, words) in lines.iter_mut().zip(word_lines) {
        copy_line(words, line);
    }
    if !rest.is_empty() {
        copy_rest(words.get(copied * 8..).unwrap_or_default(), rest);
    }
}

/// Apart, so that copying whole lines needs few registers.
#[inline(never)]
fn copy_rest(words: &[AtomicU64], out: &mut [u8]) {
    let (chunks, tail) = out.as_chunks_mut::<8>();
    let mut words = words.iter();
    for (chunk, word) in chunks.iter_mut().zip(&mut words) {
        *chunk = word.load(Relaxed).to_le_bytes();
    }
    if let (false, Some(word)) = (tail.is_empty(), words.next()) {
        let mut left = word.load(Relaxed);
        for byte in tail {
            *byte = left as u8;
            left >>= 8;
        }
    }
}

/// Copies `bytes` in; the rest of the last word becomes zero.
#[inline]
pub(crate) fn copy_in(words: &[AtomicU64], bytes: &[u8]) {
    let (chunks, tail) = bytes.as_chunks::<8>();
    let (whole, rest) = words.split_at(chunks.len().min(words.len()));
    for (chunk, word) in chunks.iter().zip(whole) {
        word.store(u64::from_le_bytes(*chunk), Relaxed);
    }
    if let (false, Some(word)) = (tail.is_empty(), rest.first()) {
        word.store(partial(tail), Relaxed);
    }
}

/// Whether `words` hold `bytes`.
#[inline]
pub(crate) fn equal(words: &[AtomicU64], bytes: &[u8]) -> bool {
    // Most keys are one word, or half of one.
    if let [word] = words {
        if let Ok(bytes) = bytes.try_into() {
            return word.load(Relaxed) == u64::from_le_bytes(bytes);
        }
        if let Ok(bytes) = bytes.try_into() {
            return word.load(Relaxed) == u64::from(u32::from_le_bytes(bytes));
        }
    }
    equal_long(words, bytes)
}

/// Apart, as [`copy_rest`].
#[inline(never)]
fn equal_long(words: &[AtomicU64], bytes: &[u8]) -> bool {
    let (chunks, tail) = bytes.as_chunks::<8>();
    let (whole, rest) = words.split_at(chunks.len().min(words.len()));
    let mut same = chunks.iter().zip(whole);
    same.all(|(chunk, word)| word.load(Relaxed) == u64::from_le_bytes(*chunk))
        && match rest.first() {
            Some(word) if !tail.is_empty() => word.load(Relaxed) == partial(tail),
            _ => true,
        }
}

/// Up to seven bytes as a word, the first lowest.
#[inline]
fn partial(tail: &[u8]) -> u64 {
    tail.iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u64::from(byte))
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
        for len in 0..200 {
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
