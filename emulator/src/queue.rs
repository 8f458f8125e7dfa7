//! Queue pairs, from the device's side (abi §4, §10).
//!
//! A queue fetches in the order of its submission ring. It takes an entry when the entry's
//! phase shows that it is published (rule S1), or because the tail says that it must be; an
//! entry that the tail covers and whose phase is wrong is the host's error. Each fetch holds a
//! place in the completion ring from before it happens, so that a completion always has room.

use crate::dma::{Dma, DmaFault, Span, word};
use offmap_abi::completion::COMPLETION_BYTES;
use offmap_abi::notify::{
    DOORBELL_CQ_HEAD, DOORBELL_SQ_TAIL, DOORBELL_STRIDE, EventWord, NOTIFY_BYTES, NOTIFY_CQ_EVENT,
    NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL,
};
use offmap_abi::regs::{FatalCause, NO_VECTOR, RING_ALIGN};
use offmap_abi::submission::{SUBMISSION_BYTES, SUBMISSION_WORDS, phase_of};
use offmap_abi::{Completion, QueueId, RequestId, Status, Submission};
use offmap_device_io::DmaBuffer;
use std::sync::atomic::{Ordering, fence};

/// Offset in an entry of the word that holds the request id.
const REQUEST_WORD: usize = 8;

impl From<DmaFault> for FatalCause {
    /// Rings and notify blocks are all that a queue reaches by itself.
    fn from(_: DmaFault) -> Self {
        Self::RingDma
    }
}

/// What a queue is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueSpec {
    pub(crate) id: QueueId,
    pub(crate) depth: u32,
    /// A vector or [`NO_VECTOR`].
    pub(crate) vector: u32,
    pub(crate) sq: u64,
    pub(crate) cq: u64,
    /// 0: the queue uses doorbells.
    pub(crate) notify: u64,
}

impl QueueSpec {
    /// Whether the fields have values that the ABI allows.
    pub(crate) fn is_valid(&self, depth_max: u32, vectors: u32) -> bool {
        (2..=depth_max).contains(&self.depth)
            && self.depth.is_power_of_two()
            && (self.vector == NO_VECTOR || self.vector < vectors)
            && self.sq.is_multiple_of(RING_ALIGN)
            && self.cq.is_multiple_of(RING_ALIGN)
            && self.notify.is_multiple_of(64)
    }

    /// Whether the device can reach all of the queue's memory.
    pub(crate) fn check_memory(&self, dma: &Dma) -> Result<(), DmaFault> {
        dma.check(self.sq, self.ring_bytes(SUBMISSION_BYTES))?;
        dma.check(self.cq, self.ring_bytes(COMPLETION_BYTES))?;
        if self.notify != 0 {
            dma.check(self.notify, NOTIFY_BYTES as u64)?;
        }
        Ok(())
    }

    fn ring_bytes(&self, entry: usize) -> u64 {
        u64::from(self.depth) * entry as u64
    }
}

/// A command that the host asked to end before the device has fetched it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Abort {
    /// Count of fetches at which the command comes up.
    index: u32,
    request: RequestId,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Queue {
    id: QueueId,
    depth: u32,
    /// log2 of the depth.
    shift: u32,
    vector: Option<u32>,
    sq: Span,
    cq: Span,
    notify: Option<Span>,
    /// Free-running counts: submissions fetched, completions posted, and of those what the
    /// host is known to have taken.
    fetched: u32,
    posted: u32,
    head: u32,
    /// Whether the submission event word asks for a KICK at present.
    armed: bool,
    /// At most one per published entry, so at most `depth`.
    aborts: Vec<Abort>,
}

impl Queue {
    /// A queue of a valid specification. Its doorbells are taken to start from zero.
    pub(crate) fn new(spec: &QueueSpec) -> Self {
        Self {
            id: spec.id,
            depth: spec.depth,
            shift: spec.depth.trailing_zeros(),
            vector: (spec.vector != NO_VECTOR).then_some(spec.vector),
            sq: Span::new(spec.sq, spec.ring_bytes(SUBMISSION_BYTES)),
            cq: Span::new(spec.cq, spec.ring_bytes(COMPLETION_BYTES)),
            notify: (spec.notify != 0).then(|| Span::new(spec.notify, NOTIFY_BYTES as u64)),
            fetched: 0,
            posted: 0,
            head: 0,
            armed: false,
            aborts: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> QueueId {
        self.id
    }

    /// Takes the next submission, if there is one and its completion will have room.
    ///
    /// Whoever takes one must [`Queue::post`] exactly one completion for it.
    #[inline]
    pub(crate) fn fetch(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
    ) -> Result<Option<Submission>, FatalCause> {
        if self.fetched.wrapping_sub(self.head) >= self.depth && !self.find_room(dma, doorbells)? {
            return Ok(None);
        }
        let Some(word0) = self.ready(dma, doorbells)? else {
            return Ok(None);
        };
        let entry = self.sq.slice(
            dma,
            slot(self.fetched, self.depth) * SUBMISSION_BYTES as u64,
            SUBMISSION_BYTES,
        )?;
        let mut words = [word0; SUBMISSION_WORDS];
        for (i, w) in words.iter_mut().enumerate().skip(1) {
            *w = word(&entry, i * 8, 0)?.load(Ordering::Relaxed);
        }
        self.fetched = self.fetched.wrapping_add(1);
        Ok(Some(Submission::from_words(words)))
    }

    /// Whether [`Queue::fetch`] would return a submission now.
    pub(crate) fn has_work(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
    ) -> Result<bool, FatalCause> {
        if self.fetched.wrapping_sub(self.head) >= self.depth && !self.find_room(dma, doorbells)? {
            return Ok(false);
        }
        Ok(self.ready(dma, doorbells)?.is_some())
    }

    /// Word 0 of the next entry, if it is published.
    #[inline]
    fn ready(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<Option<u64>, FatalCause> {
        let offset = slot(self.fetched, self.depth) * SUBMISSION_BYTES as u64;
        let phase = phase(self.fetched, self.shift);
        let word0 = self.sq.load(dma, offset, Ordering::Acquire)?;
        if phase_of(word0) == phase {
            return Ok(Some(word0));
        }
        let tail = self.host_count(dma, doorbells, NOTIFY_SQ_TAIL, DOORBELL_SQ_TAIL)?;
        // A tail behind says nothing: the entries' phases have run ahead of it.
        let ahead = tail.wrapping_sub(self.fetched) as i32;
        if ahead <= 0 {
            return Ok(None);
        }
        if ahead as u32 > self.depth {
            return Err(FatalCause::RingProtocol);
        }
        // The entry may have been published between the two loads; but the tail was stored
        // after it, so that now it must show.
        let word0 = self.sq.load(dma, offset, Ordering::Acquire)?;
        if phase_of(word0) != phase {
            return Err(FatalCause::RingProtocol);
        }
        Ok(Some(word0))
    }

    /// Posts the completion of a submission that was fetched. All completions of the device
    /// pass here.
    #[inline]
    pub(crate) fn post(&mut self, dma: &Dma, completion: Completion) -> Result<(), FatalCause> {
        debug_assert_ne!(self.posted, self.fetched, "one completion per fetch");
        let words = completion.to_words(phase(self.posted, self.shift));
        let entry = self.cq.slice(
            dma,
            slot(self.posted, self.depth) * COMPLETION_BYTES as u64,
            COMPLETION_BYTES,
        )?;
        for (i, w) in words.iter().enumerate().skip(1) {
            word(&entry, i * 8, 0)?.store(*w, Ordering::Relaxed);
        }
        word(&entry, 0, 0)?.store(words[0], Ordering::Release);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// The vector to raise after completions were posted, if the host wants an interrupt.
    #[inline]
    pub(crate) fn interrupt(&mut self, dma: &Dma) -> Result<Option<u32>, FatalCause> {
        let Some(vector) = self.vector else {
            return Ok(None);
        };
        if let Some(notify) = &mut self.notify {
            // Rule N2: the completions before the look at the event word; the host arms the
            // word before its last look at the completions.
            fence(Ordering::SeqCst);
            let event = notify.load(dma, NOTIFY_CQ_EVENT as u64, Ordering::Relaxed)?;
            if !EventWord::from_word(event).wants(self.posted) {
                return Ok(None);
            }
        }
        Ok(Some(vector))
    }

    /// Asks for a KICK at the next submission. The caller follows with a full fence and a last
    /// look (rule N1).
    pub(crate) fn arm(&mut self, dma: &Dma) -> Result<(), FatalCause> {
        self.publish_event(dma, EventWord::armed_at(self.fetched))?;
        self.armed = true;
        Ok(())
    }

    /// Asks for no KICK.
    pub(crate) fn disarm(&mut self, dma: &Dma) -> Result<(), FatalCause> {
        if self.armed {
            self.armed = false;
            self.publish_event(dma, EventWord::DISARMED)?;
        }
        Ok(())
    }

    fn publish_event(&mut self, dma: &Dma, event: EventWord) -> Result<(), FatalCause> {
        if let Some(notify) = &mut self.notify {
            notify.store(
                dma,
                NOTIFY_SQ_EVENT as u64,
                event.to_word(),
                Ordering::Relaxed,
            )?;
        }
        Ok(())
    }

    /// Arranges that a command which is published but not fetched completes as aborted;
    /// whether there is such a command.
    pub(crate) fn abort(&mut self, dma: &Dma, request: RequestId) -> Result<bool, FatalCause> {
        for ahead in 0..self.depth {
            let index = self.fetched.wrapping_add(ahead);
            let offset = slot(index, self.depth) * SUBMISSION_BYTES as u64;
            let entry = self.sq.slice(dma, offset, SUBMISSION_BYTES)?;
            let word0 = word(&entry, 0, 0)?.load(Ordering::Acquire);
            if phase_of(word0) != phase(index, self.shift) {
                break;
            }
            let found = word(&entry, REQUEST_WORD, 0)?.load(Ordering::Relaxed);
            if found.to_le() == request.0 {
                let abort = Abort { index, request };
                if !self.aborts.contains(&abort) {
                    self.aborts.push(abort);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the submission that was fetched last was aborted before.
    #[inline]
    pub(crate) fn take_abort(&mut self, command: &Submission) -> bool {
        if self.aborts.is_empty() {
            return false;
        }
        let index = self.fetched.wrapping_sub(1);
        match self.aborts.iter().position(|a| a.index == index) {
            // The entry may have changed since it was looked at; what counts is the copy.
            Some(i) => self.aborts.swap_remove(i).request == command.request(),
            None => false,
        }
    }

    /// Completes as aborted every command that is published and not fetched, as far as the
    /// completion ring has room.
    pub(crate) fn abort_all(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<(), FatalCause> {
        for _ in 0..self.depth {
            let Some(command) = self.fetch(dma, doorbells)? else {
                break;
            };
            self.post(dma, Completion::new(command.request(), Status::Aborted))?;
        }
        Ok(())
    }

    /// Looks whether the host has taken completions since.
    #[cold]
    fn find_room(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<bool, FatalCause> {
        let head = self.host_count(dma, doorbells, NOTIFY_CQ_HEAD, DOORBELL_CQ_HEAD)?;
        if head.wrapping_sub(self.head) > self.posted.wrapping_sub(self.head) {
            // It claims completions that were never posted, or takes some back.
            return Err(FatalCause::RingProtocol);
        }
        self.head = head;
        Ok(self.fetched.wrapping_sub(head) < self.depth)
    }

    /// One of the two counts that the host publishes, from the notify block or the doorbells.
    #[inline]
    fn host_count(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
        in_block: usize,
        in_doorbells: u64,
    ) -> Result<u32, FatalCause> {
        let count = match &mut self.notify {
            Some(notify) => notify.load(dma, in_block as u64, Ordering::Acquire)?,
            None => {
                let offset = u64::from(self.id.0) * DOORBELL_STRIDE + in_doorbells;
                doorbells.load_u64(offset as usize, Ordering::Acquire)
            }
        };
        // The count is the low half of the word.
        Ok(count as u32)
    }
}

/// Place in a ring of the entry with a free-running count.
#[inline]
fn slot(count: u32, depth: u32) -> u64 {
    u64::from(count & (depth - 1))
}

/// Phase of the entry with a free-running count: 1 in the first pass over the ring.
#[inline]
fn phase(count: u32, shift: u32) -> bool {
    count >> shift & 1 == 0
}
