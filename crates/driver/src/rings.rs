//! The two rings of a queue pair in DMA memory, and what a notify block says of them (abi §4, §10
//! rules S1, S2, C1, C3, N1, N4).
//!
//! Written over [`SharedWords`] and [`SharedLines`], so that the litmus tests run this very code over loom's words.

use crate::fence::full_fence;
use offmap_abi::completion::{COMPLETION_BYTES, COMPLETION_WORDS};
use offmap_abi::notify::{
    EventWord, NOTIFY_CQ_EVENT, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL,
};
use offmap_abi::ring::RingDepth;
use offmap_abi::submission::{SUBMISSION_BYTES, SUBMISSION_WORDS, phase_of};
use offmap_abi::{Completion, CompletionWords, RequestId, Status, Submission};
use offmap_device_io::{PAGE_BYTES, SharedLines, SharedWords};
use std::convert::Infallible;
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
    pub(crate) fn push<W>(&mut self, words: &W, entry: Submission)
    where
        W: SharedLines<Fault = Infallible>,
    {
        let at = self.sq + self.depth.position(self.tail) as usize * SUBMISSION_BYTES;
        let entry: [u64; SUBMISSION_WORDS] = entry.to_words(self.depth.phase(self.tail));
        let Ok(line) = words.line(at);
        for (i, word) in entry.iter().enumerate().skip(1) {
            let Ok(()) = line.store(i * 8, *word, Ordering::Relaxed);
        }
        // S1: the ownership word last; from here on the entry is the device's.
        let Ok(()) = line.store(0, entry[0], Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Takes the next completion, if it is there.
    pub(crate) fn pop<W>(&mut self, words: &W) -> Option<Completion>
    where
        W: SharedLines<Fault = Infallible>,
    {
        let mut taken = CompletionWords::new(RequestId(0), Status::Success);
        self.pop_into(words, &mut taken).then(|| taken.into())
    }

    /// Takes the next completion to `taken`; whether there was one.
    #[inline(always)]
    pub(crate) fn pop_into<W>(&mut self, words: &W, taken: &mut CompletionWords) -> bool
    where
        W: SharedLines<Fault = Infallible>,
    {
        let at = self.cq + self.depth.position(self.head) as usize * COMPLETION_BYTES;
        let Ok(line) = words.line(at);
        // C1: the ownership word once; the rest only after it showed the phase.
        let Ok(word0) = line.load(0, Ordering::Acquire);
        if phase_of(word0) != self.depth.phase(self.head) {
            return false;
        }
        let mut entry = [word0; COMPLETION_WORDS];
        for (i, word) in entry.iter_mut().enumerate().skip(1) {
            let Ok(loaded) = line.load(i * 8, Ordering::Relaxed);
            *word = loaded;
        }
        self.head = self.head.wrapping_add(1);
        *taken = CompletionWords::from_words(entry);
        true
    }

    /// Stores the tail in the notify block at `block` of the words (rule S2); whether the device
    /// wants a KICK for it.
    #[inline(always)]
    pub(crate) fn publish_tail<W>(&self, words: &W, block: usize) -> bool
    where
        W: SharedWords<Fault = Infallible>,
    {
        let Ok(()) = words.store(block + NOTIFY_SQ_TAIL, self.tail.into(), Ordering::Release);
        wants_kick(words, block, self.tail)
    }

    /// Stores the head there (rule C3); whether the device, which knows the tail `committed`, wants
    /// a KICK: one that had no room for completions may have parked with commands before it, and
    /// no tail will come to wake it.
    #[inline(always)]
    pub(crate) fn publish_head<W>(&self, words: &W, block: usize, committed: u32) -> bool
    where
        W: SharedWords<Fault = Infallible>,
    {
        let Ok(()) = words.store(block + NOTIFY_CQ_HEAD, self.head.into(), Ordering::Release);
        wants_kick(words, block, committed)
    }

    /// Asks in the notify block at `block` for an interrupt at the next completion (rule N4). The
    /// word is visible before the look that follows, so that either that look sees the completion, or
    /// the device, which looks at the word after it posted, sees that it is wanted. Whether there
    /// is nothing to take: only then may the caller sleep.
    #[must_use = "a completion may have come before the word was visible"]
    pub(crate) fn ask_for_interrupt<W>(&self, words: &W, block: usize) -> bool
    where
        W: SharedLines<Fault = Infallible>,
    {
        let event = EventWord::armed_at(self.head).to_word();
        let Ok(()) = words.store(block + NOTIFY_CQ_EVENT, event, Ordering::Release);
        full_fence();
        !self.has_next(words)
    }

    /// Whether the next completion is there.
    pub(crate) fn has_next<W>(&self, words: &W) -> bool
    where
        W: SharedLines<Fault = Infallible>,
    {
        let at = self.cq + self.depth.position(self.head) as usize * COMPLETION_BYTES;
        let Ok(line) = words.line(at);
        let Ok(word0) = line.load(0, Ordering::Acquire);
        phase_of(word0) == self.depth.phase(self.head)
    }
}

/// Rule N1: the tail or head that was just stored is visible before the event word is read,
/// so that either the device sees it before it parks, or we see that it wants a KICK.
#[inline(always)]
fn wants_kick<W>(words: &W, block: usize, committed: u32) -> bool
where
    W: SharedWords<Fault = Infallible>,
{
    full_fence();
    let Ok(word) = words.load(block + NOTIFY_SQ_EVENT, Ordering::Relaxed);
    EventWord::from_word(word).wants(committed)
}
