//! The two rings of a queue pair in DMA memory (abi §4, §10 rules S1, C1).

use offmap_abi::completion::{COMPLETION_BYTES, COMPLETION_WORDS};
use offmap_abi::ring::RingDepth;
use offmap_abi::submission::{SUBMISSION_BYTES, SUBMISSION_WORDS, phase_of};
use offmap_abi::{Completion, Submission};
use offmap_device_io::{DmaBuffer, PAGE_BYTES};
use std::sync::atomic::Ordering;

/// Where the rings lie in their buffer, and how far each has come.
pub(crate) struct Rings {
    sq: usize,
    cq: usize,
    depth: RingDepth,
    /// Submissions stored so far, free-running.
    tail: u32,
    /// Completions taken so far, free-running.
    head: u32,
}

impl Rings {
    /// Bytes of one ring, in whole pages.
    pub(crate) fn ring_bytes(depth: RingDepth) -> usize {
        (depth.entries() as usize * SUBMISSION_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Rings over zeroed memory, the submission ring at `sq` of the buffer and the completion
    /// ring at `cq`.
    pub(crate) fn new(sq: usize, cq: usize, depth: RingDepth) -> Self {
        Self {
            sq,
            cq,
            depth,
            tail: 0,
            head: 0,
        }
    }

    #[inline]
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    #[inline]
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Stores the next entry. The caller has made sure that fewer than `depth` commands are
    /// in flight (abi §4.1).
    #[inline(always)]
    pub(crate) fn push(&mut self, buffer: &DmaBuffer, entry: Submission) {
        let at = self.sq + self.depth.position(self.tail) as usize * SUBMISSION_BYTES;
        let words: [u64; SUBMISSION_WORDS] = entry.to_words(self.depth.phase(self.tail));
        for (i, word) in words.iter().enumerate().skip(1) {
            buffer.store_u64(at + i * 8, *word, Ordering::Relaxed);
        }
        // S1: the ownership word last; from here on the entry is the device's.
        buffer.store_u64(at, words[0], Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Takes the next completion, if it is there.
    #[inline(always)]
    pub(crate) fn pop(&mut self, buffer: &DmaBuffer) -> Option<Completion> {
        let at = self.cq + self.depth.position(self.head) as usize * COMPLETION_BYTES;
        // C1: the ownership word once; the rest only after it showed the phase.
        let word0 = buffer.load_u64(at, Ordering::Acquire);
        if phase_of(word0) != self.depth.phase(self.head) {
            return None;
        }
        let mut words = [0u64; COMPLETION_WORDS];
        words[0] = word0;
        for (i, word) in words.iter_mut().enumerate().skip(1) {
            *word = buffer.load_u64(at + i * 8, Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        Some(Completion::from_words(words))
    }
}
