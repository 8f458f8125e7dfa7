//! Queue pairs, from the device's side (abi §4, §10).
//!
//! A queue fetches in the order of its submission ring. It takes an entry when the entry's
//! phase shows that it is published (rule S1), or because the tail says that it must be; an
//! entry that the tail covers and whose phase is wrong is the host's error. Each fetch holds a
//! place in the completion ring from before it happens, so that a completion always has room.
//!
//! A command may take several steps; the queue keeps it as *under way* and fetches nothing
//! meanwhile. A queue whose host breaks the protocol, or whose memory cannot be reached,
//! stops (abi §4.3): every function here that returns [`Stop`] leaves that to its caller.

use crate::device::Clock;
use crate::dma::{Dma, DmaFault, ENTRY_BYTES, ENTRY_WORDS, Span};
use crate::fence::full_fence;
use offmap_abi::notify::{
    DOORBELL_CQ_HEAD, DOORBELL_SQ_TAIL, DOORBELL_STRIDE, EventWord, NOTIFY_ALIGN, NOTIFY_BYTES,
    NOTIFY_CQ_EVENT, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL,
};
use offmap_abi::regs::{FatalCause, NO_VECTOR, RING_ALIGN};
use offmap_abi::ring::RingDepth;
use offmap_abi::{
    Completion, CompletionWords, QueueId, RequestId, Status, Submission, SubmissionWords,
};
use offmap_device_io::DmaBuffer;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How many looks may find no entry before one looks at the tail. Entries announce
/// themselves by their phase; the tail only convicts a host that stored a wrong one, and
/// reading it costs a cache line that the host writes.
const LOOKS_PER_TAIL: u32 = 64;

/// Most entries that are loaded ahead of their turn.
pub(crate) const AHEAD: usize = 16;

/// Entries that were loaded before their turn came, so that what they will need can be brought
/// into the caches for all of them at once. They are copies, made once (rule S3), and take up no
/// place in the completion ring until they are fetched.
#[derive(Debug)]
struct Ahead {
    entries: [SubmissionWords; AHEAD],
    /// Those from `first` to `end` are still to be fetched.
    first: usize,
    end: usize,
}

impl Ahead {
    const NONE: Self = Self {
        entries: [SubmissionWords::ZERO; AHEAD],
        first: 0,
        end: 0,
    };

    #[inline(always)]
    fn rest(&self) -> &[SubmissionWords] {
        self.entries.get(self.first..self.end).unwrap_or(&[])
    }

    #[inline(always)]
    fn pop_to(&mut self, to: &mut SubmissionWords) -> bool {
        let Some(words) = self.rest().first() else {
            return false;
        };
        *to = *words;
        self.first += 1;
        true
    }
}

/// Why a queue goes on no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// A ring or the notify block cannot be accessed.
    Dma,
    /// The host broke the queue's protocol.
    Protocol,
}

impl From<DmaFault> for Stop {
    /// Rings and notify blocks are all that a queue reaches by itself.
    fn from(_: DmaFault) -> Self {
        Self::Dma
    }
}

impl From<Stop> for FatalCause {
    /// What the stop of the admin queue means for the device.
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Dma => Self::RingDma,
            Stop::Protocol => Self::RingProtocol,
        }
    }
}

/// How long interrupts are held back for more completions (abi §6.2): not at all, with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Coalescing {
    pub(crate) count: u16,
    pub(crate) us: u16,
}

impl Coalescing {
    /// Nothing is held back without end.
    fn is_valid(self) -> bool {
        self == Self::default() || self.count >= 2 && self.us >= 1
    }

    fn holds(self) -> bool {
        self.us != 0
    }

    fn delay(self) -> Duration {
        Duration::from_micros(self.us.into())
    }
}

/// An interrupt that is held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    since: Duration,
    /// The number of completions after which it is wanted.
    index: u32,
}

/// What [`Queue::announce`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Announce {
    /// There is nothing to announce, or the host does not want to know.
    No,
    /// This vector is to be raised.
    Raise(u32),
    /// An interrupt is due, and is held back for more completions.
    Hold,
}

/// What a queue is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueSpec {
    pub(crate) id: QueueId,
    pub(crate) depth: RingDepth,
    /// A vector or [`NO_VECTOR`].
    pub(crate) vector: u32,
    pub(crate) coalescing: Coalescing,
    pub(crate) sq: u64,
    pub(crate) cq: u64,
    /// 0: the queue uses doorbells.
    pub(crate) notify: u64,
}

impl QueueSpec {
    /// Whether the fields have values that the ABI and the device's limits allow.
    pub(crate) fn is_valid(&self, depth_max: u32, vectors: u32) -> bool {
        self.depth.entries() <= depth_max
            && (self.vector == NO_VECTOR || self.vector < vectors)
            && self.coalescing.is_valid()
            && self.sq.is_multiple_of(RING_ALIGN)
            && self.cq.is_multiple_of(RING_ALIGN)
            && self.notify.is_multiple_of(NOTIFY_ALIGN)
    }

    /// Whether the device can reach all of the queue's memory.
    pub(crate) fn check_memory(&self, dma: &Dma) -> Result<(), DmaFault> {
        dma.check(self.sq, self.ring_bytes())?;
        dma.check(self.cq, self.ring_bytes())?;
        if self.notify != 0 {
            dma.check(self.notify, NOTIFY_BYTES as u64)?;
        }
        Ok(())
    }

    fn ring_bytes(&self) -> u64 {
        u64::from(self.depth.entries()) * ENTRY_BYTES as u64
    }
}

/// A command that the host asked to end before the device has fetched it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Abort {
    /// Count of fetches at which the command comes up.
    index: u32,
    request: RequestId,
}

/// A search for a published command, done in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Search {
    request: RequestId,
    /// Counts of fetches: the next entry to look at, and the first not to.
    next: u32,
    end: u32,
}

/// What a piece of a [`Search`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The command, which will complete as aborted.
    Yes,
    /// It is not among the published ones.
    No,
    /// There is more to look at.
    NotYet,
}

/// Whether a queue is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Serving,
    /// It is being deleted: nothing begins any more.
    Closing,
    /// It touches host memory no more, and waits for its deletion.
    Stopped,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Queue {
    id: QueueId,
    depth: RingDepth,
    vector: Option<u32>,
    sq: Span,
    cq: Span,
    notify: Option<Span>,
    /// Free-running counts: submissions fetched, completions posted, and of those what the
    /// host is known to have taken and what it has been told of.
    fetched: u32,
    posted: u32,
    head: u32,
    announced: u32,
    coalescing: Coalescing,
    /// An interrupt that is held back for more completions.
    held: Option<Held>,
    /// What was posted when the last interrupt was sent.
    raised: u32,
    /// Completions posted beyond one for each fetch, by a fault plan.
    extra: u32,
    /// Entries from count `fetched` on.
    ahead: Ahead,
    /// The entry before those.
    current: SubmissionWords,
    /// The command that the firmware has begun and not finished.
    under_way: Option<RequestId>,
    /// Looks that found nothing since one looked at the tail.
    quiet: u32,
    /// Whether the submission event word asks for a KICK at present.
    armed: bool,
    state: State,
    /// By ascending index, none below `fetched`: at most one per entry, so at most `depth`.
    aborts: VecDeque<Abort>,
}

impl Queue {
    /// A queue of a valid specification. Its doorbells are taken to start from zero.
    pub(crate) fn new(spec: &QueueSpec) -> Self {
        Self {
            id: spec.id,
            depth: spec.depth,
            vector: (spec.vector != NO_VECTOR).then_some(spec.vector),
            sq: Span::new(spec.sq, spec.ring_bytes()),
            cq: Span::new(spec.cq, spec.ring_bytes()),
            notify: (spec.notify != 0).then(|| Span::new(spec.notify, NOTIFY_BYTES as u64)),
            fetched: 0,
            posted: 0,
            head: 0,
            announced: 0,
            coalescing: spec.coalescing,
            held: None,
            raised: 0,
            extra: 0,
            ahead: Ahead::NONE,
            current: SubmissionWords::ZERO,
            under_way: None,
            quiet: 0,
            armed: false,
            state: State::Serving,
            aborts: VecDeque::new(),
        }
    }

    #[inline]
    pub(crate) fn id(&self) -> QueueId {
        self.id
    }

    pub(crate) fn depth(&self) -> RingDepth {
        self.depth
    }

    /// Whether commands of the queue may begin and go on.
    #[inline(always)]
    pub(crate) fn is_serving(&self) -> bool {
        self.state == State::Serving
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Begins no more commands.
    pub(crate) fn close(&mut self) {
        if self.state == State::Serving {
            self.state = State::Closing;
        }
    }

    /// Ends all access to the queue's memory (abi §4.3).
    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
        self.under_way = None;
        self.held = None;
        self.aborts = VecDeque::new();
    }

    /// The command that the firmware has begun and not finished.
    #[inline]
    pub(crate) fn under_way(&self) -> Option<RequestId> {
        self.under_way
    }

    /// The firmware has begun this command, or, with `None`, finished it.
    #[inline]
    pub(crate) fn set_under_way(&mut self, request: Option<RequestId>) {
        self.under_way = request;
    }

    /// [`Queue::fetch_next`] for one who wants a copy.
    pub(crate) fn fetch(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
    ) -> Result<Option<[u64; ENTRY_WORDS]>, Stop> {
        let fetched = self.fetch_next(dma, doorbells)?;
        Ok(fetched.then(|| self.current.get()))
    }

    /// The submission that was fetched last.
    #[inline(always)]
    pub(crate) fn current(&self) -> &Submission {
        self.current.fields()
    }

    /// Its words.
    pub(crate) fn current_words(&self) -> [u64; ENTRY_WORDS] {
        self.current.get()
    }

    /// Where it lies in host memory.
    #[inline]
    pub(crate) fn current_iova(&self) -> u64 {
        self.sq.iova_of(self.offset(self.fetched.wrapping_sub(1)))
    }

    /// Where the next completion goes.
    #[inline]
    pub(crate) fn completion_iova(&self) -> u64 {
        self.cq.iova_of(self.offset(self.posted))
    }

    /// Takes the next submission, if there is one and its completion will have room; whether it
    /// did. It is in [`Queue::current`] then.
    ///
    /// Whoever takes one must [`Queue::post`] exactly one completion for it.
    #[inline]
    pub(crate) fn fetch_next(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<bool, Stop> {
        if self.is_full() && !self.find_room(dma, doorbells)? {
            return Ok(false);
        }
        if self.ahead.pop_to(&mut self.current) {
            self.fetched = self.fetched.wrapping_add(1);
            return Ok(true);
        }
        let offset = self.offset(self.fetched);
        let phase = self.depth.phase(self.fetched);
        match self.sq.load_entry(dma, offset, phase)? {
            Some(words) => self.current.set(&words),
            None => {
                self.quiet += 1;
                if self.quiet < LOOKS_PER_TAIL {
                    return Ok(false);
                }
                match self.covered(dma, doorbells)? {
                    Some(words) => self.current.set(&words),
                    None => return Ok(false),
                }
            }
        }
        self.fetched = self.fetched.wrapping_add(1);
        Ok(true)
    }

    /// Loads what is published after the entry that was fetched last, if nothing is loaded ahead.
    /// Whether this call loaded any.
    #[inline]
    pub(crate) fn look_ahead(&mut self, dma: &Dma) -> bool {
        if !self.ahead.rest().is_empty() {
            return false;
        }
        let most = AHEAD.min(self.depth.entries() as usize);
        let mut end = 0;
        while end < most {
            let index = self.fetched.wrapping_add(end as u32);
            let (offset, phase) = (self.offset(index), self.depth.phase(index));
            // What cannot be reached is reported when its turn comes.
            let Ok(Some(words)) = self.sq.load_entry(dma, offset, phase) else {
                break;
            };
            self.ahead.entries[end].set(&words);
            end += 1;
        }
        (self.ahead.first, self.ahead.end) = (0, end);
        end > 0
    }

    /// The submission that was fetched last, and those that are loaded ahead.
    #[inline(always)]
    pub(crate) fn loaded(&self) -> impl Iterator<Item = &Submission> {
        let ahead = self.ahead.rest().iter().map(SubmissionWords::fields);
        std::iter::once(self.current()).chain(ahead)
    }

    /// Whether there is something to do now, the tail looked at as well.
    pub(crate) fn has_work(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<bool, Stop> {
        if self.under_way.is_some() {
            return Ok(true);
        }
        if self.is_full() && !self.find_room(dma, doorbells)? {
            return Ok(false);
        }
        if !self.ahead.rest().is_empty() {
            return Ok(true);
        }
        Ok(self.covered(dma, doorbells)?.is_some())
    }

    /// The next entry, if it is published or the tail says that it must be.
    #[cold]
    fn covered(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
    ) -> Result<Option<[u64; ENTRY_WORDS]>, Stop> {
        self.quiet = 0;
        let tail = self.host_count(dma, doorbells, NOTIFY_SQ_TAIL, DOORBELL_SQ_TAIL)?;
        // The tail was stored after the entries that it covers, so that those show now.
        let offset = self.offset(self.fetched);
        let phase = self.depth.phase(self.fetched);
        let words = self.sq.load_entry(dma, offset, phase)?;
        // A tail behind says nothing: the entries' phases have run ahead of it.
        let ahead = tail.wrapping_sub(self.fetched) as i32;
        if ahead > 0 && (words.is_none() || ahead as u32 > self.depth.entries()) {
            return Err(Stop::Protocol);
        }
        Ok(words)
    }

    /// [`Queue::post_words`] for one that comes with its fields apart.
    pub(crate) fn post(&mut self, dma: &Dma, completion: Completion) -> Result<(), Stop> {
        self.post_words(dma, &completion.into())
    }

    /// Posts the completion of a submission that was fetched. All completions of a device without
    /// a fault plan pass here.
    #[inline]
    pub(crate) fn post_words(
        &mut self,
        dma: &Dma,
        completion: &CompletionWords,
    ) -> Result<(), Stop> {
        debug_assert_ne!(
            self.posted.wrapping_sub(self.extra),
            self.fetched,
            "one completion per fetch"
        );
        let words = completion.to_words(self.depth.phase(self.posted));
        let offset = self.offset(self.posted);
        self.cq.store_entry(dma, offset, &words)?;
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Posts a completion once more, if the ring has room for one that nobody reserved; whether it
    /// had. Fetches wait for that room from then on, too.
    pub(crate) fn post_again(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
        completion: Completion,
    ) -> Result<bool, Stop> {
        if self.is_full() && !self.find_room(dma, doorbells)? {
            return Ok(false);
        }
        self.extra = self.extra.wrapping_add(1);
        self.post(dma, completion)?;
        Ok(true)
    }

    /// Posts a completion with its entry, word by word, changed on the way.
    pub(crate) fn post_changed(
        &mut self,
        dma: &Dma,
        completion: Completion,
        change: impl FnOnce(&mut [u64; ENTRY_WORDS]),
    ) -> Result<(), Stop> {
        let mut words = completion.to_words(self.depth.phase(self.posted));
        change(&mut words);
        let offset = self.offset(self.posted);
        self.cq.store_entry(dma, offset, &words)?;
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Stores the first `words` words of a completion's entry, in the order of rule C1. The queue
    /// is to stop afterwards.
    pub(crate) fn post_torn(
        &mut self,
        dma: &Dma,
        completion: Completion,
        words: usize,
    ) -> Result<(), Stop> {
        let entry = completion.to_words(self.depth.phase(self.posted));
        let offset = self.offset(self.posted);
        self.cq.store_part(dma, offset, &entry, words)?;
        Ok(())
    }

    /// What to do about the completions posted since the last call. A queue that holds an interrupt
    /// back is to be asked again by [`Queue::announce_due`].
    #[inline]
    pub(crate) fn announce(&mut self, dma: &Dma, now: &Clock) -> Result<Announce, Stop> {
        if self.announced == self.posted {
            return Ok(Announce::No);
        }
        self.announced = self.posted;
        let Some(vector) = self.vector else {
            return Ok(Announce::No);
        };
        match self.wanted_from(dma)? {
            None => {
                self.held = None;
                Ok(Announce::No)
            }
            Some(_) if !self.coalescing.holds() => Ok(Announce::Raise(vector)),
            Some(index) => Ok(self.gather(vector, index, now())),
        }
    }

    /// The number of completions after which the host wants an interrupt, if it wants one now. Rule
    /// N4: the completions before the look at the event word; the host arms the word before its last
    /// look at the completions.
    #[inline]
    fn wanted_from(&mut self, dma: &Dma) -> Result<Option<u32>, Stop> {
        let Some(notify) = &mut self.notify else {
            return Ok(Some(self.raised));
        };
        full_fence();
        let event = EventWord::from_word(notify.load(dma, NOTIFY_CQ_EVENT as u64)?);
        Ok(event.wants(self.posted).then_some(event.index))
    }

    #[cold]
    fn gather(&mut self, vector: u32, index: u32, now: Duration) -> Announce {
        let held = match self.held {
            // Otherwise the host has woken up by itself since, and asked anew.
            Some(held) if held.index == index => held,
            _ => Held { since: now, index },
        };
        let full = self.posted.wrapping_sub(index) >= self.coalescing.count.into();
        if full || now.saturating_sub(held.since) >= self.coalescing.delay() {
            return self.raise(vector);
        }
        self.held = Some(held);
        Announce::Hold
    }

    fn raise(&mut self, vector: u32) -> Announce {
        self.held = None;
        self.raised = self.posted;
        Announce::Raise(vector)
    }

    /// [`Queue::announce`] where nothing was posted: whether an interrupt that is held back is due
    /// by now. The host may have woken up by itself meanwhile.
    pub(crate) fn announce_due(&mut self, dma: &Dma, now: Duration) -> Result<Announce, Stop> {
        let (Some(held), Some(vector)) = (self.held, self.vector) else {
            return Ok(Announce::No);
        };
        if now.saturating_sub(held.since) < self.coalescing.delay() {
            return Ok(Announce::Hold);
        }
        self.held = None;
        Ok(match self.wanted_from(dma)? {
            Some(_) => self.raise(vector),
            None => Announce::No,
        })
    }

    /// The vector to raise for a queue that is about to stop or to end, held back or not: where the
    /// host's wish cannot be read any more, it gets the interrupt.
    pub(crate) fn announce_last(&mut self, dma: &Dma) -> Option<u32> {
        if self.held.take().is_none() && self.announced == self.posted {
            return None;
        }
        self.announced = self.posted;
        let wanted = self.wanted_from(dma).map_or(true, |from| from.is_some());
        self.vector.filter(|_| wanted)
    }

    /// Asks for a KICK at the next submission. The caller follows with a full fence and a last
    /// look (rule N2).
    pub(crate) fn arm(&mut self, dma: &Dma) -> Result<(), Stop> {
        self.publish_event(dma, EventWord::armed_at(self.fetched))?;
        self.armed = true;
        Ok(())
    }

    /// Asks for no KICK.
    pub(crate) fn disarm(&mut self, dma: &Dma) -> Result<(), Stop> {
        if self.armed {
            self.armed = false;
            self.publish_event(dma, EventWord::DISARMED)?;
        }
        Ok(())
    }

    fn publish_event(&mut self, dma: &Dma, event: EventWord) -> Result<(), Stop> {
        if let Some(notify) = &mut self.notify {
            notify.store(dma, NOTIFY_SQ_EVENT as u64, event.to_word())?;
        }
        Ok(())
    }

    /// Starts to look for a command that is published and not fetched.
    pub(crate) fn search(&self, request: RequestId) -> Search {
        Search {
            request,
            next: self.fetched,
            end: self.fetched.wrapping_add(self.depth.entries()),
        }
    }

    /// Looks at up to `most` entries for the command that is to be aborted.
    pub(crate) fn search_on(
        &mut self,
        dma: &Dma,
        search: &mut Search,
        most: u32,
    ) -> Result<Found, Stop> {
        // What was fetched since the last piece is not waiting any more.
        if (self.fetched.wrapping_sub(search.next) as i32) > 0 {
            search.next = self.fetched;
        }
        for _ in 0..most {
            let index = search.next;
            if (search.end.wrapping_sub(index) as i32) <= 0 {
                return Ok(Found::No);
            }
            let ahead = index.wrapping_sub(self.fetched) as usize;
            let words = match self.ahead.rest().get(ahead) {
                Some(words) => words.get(),
                None => {
                    let (offset, phase) = (self.offset(index), self.depth.phase(index));
                    match self.sq.load_entry(dma, offset, phase)? {
                        Some(words) => words,
                        None => return Ok(Found::No),
                    }
                }
            };
            if Submission::from_words(words).request() == search.request {
                self.mark(index, search.request);
                return Ok(Found::Yes);
            }
            search.next = index.wrapping_add(1);
        }
        Ok(Found::NotYet)
    }

    /// Notes that the entry of that index is to be aborted if it still holds that request. The
    /// latest note of an entry counts.
    fn mark(&mut self, index: u32, request: RequestId) {
        let fetched = self.fetched;
        let ahead = move |a: &Abort| a.index.wrapping_sub(fetched);
        let at = index.wrapping_sub(fetched);
        match self.aborts.binary_search_by_key(&at, ahead) {
            Ok(i) => self.aborts[i].request = request,
            Err(i) => self.aborts.insert(i, Abort { index, request }),
        }
        debug_assert!(self.aborts.len() <= self.depth.entries() as usize);
    }

    /// Whether the submission that was fetched last was aborted before.
    #[inline]
    pub(crate) fn take_abort(&mut self) -> bool {
        let index = self.fetched.wrapping_sub(1);
        match self.aborts.front() {
            Some(abort) if abort.index == index => {
                // The entry may have changed since it was looked at; what counts is the copy.
                let aborted = abort.request == self.current().request();
                self.aborts.pop_front();
                aborted
            }
            _ => false,
        }
    }

    /// Completes as aborted up to `most` commands that are published and not fetched, as far as
    /// the completion ring has room; how many there were.
    pub(crate) fn abort_next(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
        most: u32,
    ) -> Result<u32, Stop> {
        for done in 0..most {
            let Some(words) = self.fetch(dma, doorbells)? else {
                return Ok(done);
            };
            let request = Submission::from_words(words).request();
            self.post(dma, Completion::new(request, Status::Aborted))?;
        }
        Ok(most)
    }

    #[inline(always)]
    fn is_full(&self) -> bool {
        let claimed = self.fetched.wrapping_add(self.extra);
        claimed.wrapping_sub(self.head) >= self.depth.entries()
    }

    /// Looks whether the host has taken completions since.
    #[cold]
    fn find_room(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> Result<bool, Stop> {
        let head = self.host_count(dma, doorbells, NOTIFY_CQ_HEAD, DOORBELL_CQ_HEAD)?;
        if head.wrapping_sub(self.head) > self.posted.wrapping_sub(self.head) {
            // It claims completions that were never posted, or takes some back.
            return Err(Stop::Protocol);
        }
        self.head = head;
        Ok(!self.is_full())
    }

    /// Commands that are published and not answered, as far as the tail can be read here.
    pub(crate) fn held(&mut self, dma: &Dma, doorbells: &DmaBuffer) -> u32 {
        let tail = match &mut self.notify {
            Some(notify) => notify.load_near(dma, NOTIFY_SQ_TAIL as u64),
            None => {
                let offset = u64::from(self.id.0) * DOORBELL_STRIDE + DOORBELL_SQ_TAIL;
                Some(doorbells.load_u64(offset as usize, Ordering::Acquire))
            }
        };
        // The host says what it likes.
        let ahead = tail.map_or(0, |tail| (tail as u32).wrapping_sub(self.fetched) as i32);
        let waiting = (ahead.max(0) as u32).min(self.depth.entries());
        let claimed = self.fetched.wrapping_add(self.extra);
        waiting.saturating_add(claimed.wrapping_sub(self.posted))
    }

    /// One of the two counts that the host publishes, from the notify block or the doorbells.
    #[inline]
    fn host_count(
        &mut self,
        dma: &Dma,
        doorbells: &DmaBuffer,
        in_block: usize,
        in_doorbells: u64,
    ) -> Result<u32, Stop> {
        let count = match &mut self.notify {
            Some(notify) => notify.load(dma, in_block as u64)?,
            None => {
                let offset = u64::from(self.id.0) * DOORBELL_STRIDE + in_doorbells;
                doorbells.load_u64(offset as usize, Ordering::Acquire)
            }
        };
        // The count is the low half of the word.
        Ok(count as u32)
    }

    /// Offset in its ring of the entry with a free-running count.
    #[inline(always)]
    fn offset(&self, count: u32) -> u64 {
        u64::from(self.depth.position(count)) * ENTRY_BYTES as u64
    }
}
