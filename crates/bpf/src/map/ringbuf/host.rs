//! A ring in host memory: what `struct bpf_ringbuf` holds, and its producers' side.
//!
//! Consumer position, producer position and data lie in pages of their own, in the kernel's
//! format. Records are copied as relaxed atomic words under the order of three others: a
//! producer stores data, then the header without BUSY; the producer position before that made
//! the header visible as BUSY. So a consumer that sees the position sees a header, and one that
//! sees the header without BUSY sees the data.

use super::format::{
    HEADER_BYTES, MAX_RECORD_BYTES, META_PAGES, PAGE_BYTES, RingHeader, ring_bytes,
};
use crate::device::RingBuffer;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::lazy::LazyTable;
use crate::uapi::{
    BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_PROD_POS,
    BPF_RB_RING_SIZE, BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT,
};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PAGE_WORDS: usize = PAGE_BYTES as usize / 8;

const FULL: Error = Error::new(
    Errno::EAGAIN,
    "the ring has no room for the record until its consumer goes on",
);

/// The page of a position: the word at its start, and nothing else that anyone writes.
#[repr(C, align(4096))]
struct PositionPage {
    position: AtomicU64,
    rest: [AtomicU64; PAGE_WORDS - 1],
}

impl PositionPage {
    fn new() -> Box<Self> {
        Box::new(Self {
            position: AtomicU64::new(0),
            rest: [const { AtomicU64::new(0) }; PAGE_WORDS - 1],
        })
    }
}

const _: () = assert!(size_of::<PositionPage>() == PAGE_BYTES as usize);

/// `struct bpf_ringbuf` of a ring that programs of this host fill.
pub(crate) struct HostRing {
    mask: u64,
    consumer: Box<PositionPage>,
    producer: Box<PositionPage>,
    /// Pages of words. Taken as records first reach them.
    data: LazyTable,
    /// `spinlock`, and `pending_pos`: the position of the oldest record that may be BUSY still.
    pending: Mutex<u64>,
    /// Wake-ups that were forced.
    forced: Mutex<u64>,
    /// `waitq`; goes with `forced`.
    waiters: Condvar,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostRing {
    /// An empty ring with a data area of `data_bytes`: a power of two, of whole pages. ENOMEM.
    pub(crate) fn new(data_bytes: u32) -> Result<Self> {
        let data_bytes = u64::from(data_bytes);
        Ok(Self {
            mask: data_bytes - 1,
            consumer: PositionPage::new(),
            producer: PositionPage::new(),
            data: LazyTable::new(
                (data_bytes / PAGE_BYTES) as usize,
                PAGE_WORDS,
                "pages of a ring buffer",
            )?,
            pending: Mutex::new(0),
            forced: Mutex::new(0),
            waiters: Condvar::new(),
        })
    }

    /// `ringbuf_map_mem_usage`: `struct bpf_ringbuf_map`, the pages, and the list of pages, in
    /// which each data page stands twice.
    pub(crate) fn mem_usage(&self) -> u64 {
        /// `sizeof(struct bpf_ringbuf_map)` on 64-bit.
        const MAP_BYTES: u64 = 304;
        let pages = (self.mask + 1) / PAGE_BYTES;
        MAP_BYTES + (META_PAGES + pages) * PAGE_BYTES + (META_PAGES + 2 * pages) * 8
    }

    /// `bpf_ringbuf_query`: 0 for a flag that it does not know.
    pub(crate) fn query(&self, flag: u64) -> u64 {
        let consumer = self.consumer.position.load(Acquire);
        let producer = self.producer.position.load(Acquire);
        match flag {
            BPF_RB_AVAIL_DATA => producer.wrapping_sub(consumer),
            BPF_RB_RING_SIZE => self.mask + 1,
            BPF_RB_CONS_POS => consumer,
            BPF_RB_PROD_POS => producer,
            _ => 0,
        }
    }

    /// The page and the word in it at `offset` of the data area.
    fn place(&self, offset: u64) -> (usize, usize) {
        let offset = offset & self.mask;
        let page = (offset / PAGE_BYTES) as usize;
        (page, (offset % PAGE_BYTES / 8) as usize)
    }

    fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let (page, word) = self.place(offset);
        self.data.get(page)?.get(word)
    }

    /// `__bpf_ringbuf_reserve`: the position of the new record.
    ///
    /// EAGAIN when there is no room for it, now or ever.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<u64> {
        let (bytes, size) = (bytes as u64, self.mask + 1);
        // The producer stays short of a whole ring ahead.
        let longest = (size - 2 * HEADER_BYTES).min(MAX_RECORD_BYTES);
        if bytes > longest {
            return Err(Error::because(
                Errno::EAGAIN,
                format!(
                    "a record of {bytes} bytes never fits: this ring of {size} has room for \
                     {longest}"
                ),
            ));
        }
        let taken = ring_bytes(bytes);
        let consumer = self.consumer.position.load(Acquire);
        let mut pending = locked(&self.pending);
        let position = self.producer.position.load(Relaxed);
        while *pending < position {
            let word = self.word(*pending).map_or(0, |word| word.load(Acquire));
            let header = RingHeader::from_word(word);
            if header.is_busy() {
                break;
            }
            *pending += header.ring_bytes();
        }
        let next = position + taken;
        // The second condition never decides while the consumer behaves: its position is in a
        // page that user space writes, and records that are BUSY are not to be overwritten.
        if next.wrapping_sub(consumer) > self.mask || next - *pending > self.mask {
            return Err(FULL);
        }
        let header = RingHeader::at(position, size, bytes as u32 | BPF_RINGBUF_BUSY_BIT);
        if let Some(word) = self.word(position) {
            word.store(header.to_word(), Relaxed);
        }
        // The consumer that sees the position sees the header.
        self.producer.position.store(next, Release);
        Ok(position)
    }

    /// Copies `bytes` to `offset` of the record at `position`, which the caller has reserved and
    /// in which they fit. Other bytes keep what they have.
    pub(crate) fn write(&self, position: u64, offset: usize, bytes: &[u8]) {
        let mut at = position + HEADER_BYTES + offset as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % 8) as usize;
            let (piece, after) = rest.split_at(rest.len().min(8 - within));
            if let Some(word) = self.word(at) {
                // Nobody else writes a record before it is committed.
                let mut raw = match piece.len() {
                    8 => [0; 8],
                    _ => word.load(Relaxed).to_ne_bytes(),
                };
                raw[within..within + piece.len()].copy_from_slice(piece);
                word.store(u64::from_ne_bytes(raw), Relaxed);
            }
            at += piece.len() as u64;
            rest = after;
        }
    }

    /// `bpf_ringbuf_commit` of the record of `bytes` at `position`.
    pub(crate) fn commit(&self, position: u64, bytes: usize, discard: bool, flags: u64) {
        let discard = if discard { BPF_RINGBUF_DISCARD_BIT } else { 0 };
        let header = RingHeader::at(position, self.mask + 1, bytes as u32 | discard);
        if let Some(word) = self.word(position) {
            word.store(header.to_word(), Release);
        }
        // Either the load below sees a consumer that has come here, or that consumer, which
        // looks at the header after a fence of its own, sees the record.
        fence(SeqCst);
        if flags & BPF_RB_FORCE_WAKEUP != 0 {
            self.notify(true);
        } else if flags & BPF_RB_NO_WAKEUP == 0 {
            let consumer = self.consumer.position.load(Acquire);
            if consumer & self.mask == position & self.mask {
                self.notify(false);
            }
        }
    }

    /// `wake_up_all`.
    fn notify(&self, force: bool) {
        // Under the lock: a waiter is either before its look at the ring, or asleep.
        *locked(&self.forced) += u64::from(force);
        self.waiters.notify_all();
    }
}

impl RingBuffer for HostRing {
    fn data_bytes(&self) -> u64 {
        self.mask + 1
    }

    fn producer_position(&self) -> u64 {
        self.producer.position.load(Acquire)
    }

    fn set_consumer_position(&self, position: u64) {
        self.consumer.position.store(position, Release);
    }

    fn header(&self, offset: u64) -> RingHeader {
        RingHeader::from_word(self.word(offset).map_or(0, |word| word.load(Acquire)))
    }

    fn copy(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        for piece in out.chunks_mut(8) {
            let word = self.word(at).map_or(0, |word| word.load(Relaxed));
            piece.copy_from_slice(&word.to_ne_bytes()[..piece.len()]);
            at += 8;
        }
    }

    fn wake(&self) {
        self.notify(false);
    }

    fn wait(&self, timeout: Duration, ready: &mut dyn FnMut(bool) -> Result<bool>) -> Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        let mut forced = locked(&self.forced);
        let before = *forced;
        loop {
            // See `commit`.
            fence(SeqCst);
            if ready(*forced != before)? {
                return Ok(true);
            }
            let Some(deadline) = deadline else {
                forced = match self.waiters.wait(forced) {
                    Ok(forced) => forced,
                    Err(poisoned) => poisoned.into_inner(),
                };
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            forced = match self.waiters.wait_timeout(forced, left) {
                Ok((forced, _)) => forced,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A consumer position is in a page that user space writes: one that lies past records
    /// that are reserved does not give their room away.
    #[test]
    fn a_consumer_that_runs_ahead_frees_no_reserved_record() {
        let ring = HostRing::new(4096).unwrap();
        let held = ring.reserve(100).unwrap();
        ring.reserve(2000).unwrap();
        ring.set_consumer_position(112 + 2008);
        assert_eq!(ring.reserve(2000), Err(FULL));
        ring.commit(held, 100, false, 0);
        // The one behind it is reserved still.
        let third = ring.reserve(2000).unwrap();
        assert_eq!(third, 112 + 2008);
        assert_eq!(ring.reserve(80), Err(FULL));
        // And one that lies past everything leaves no room at all.
        ring.set_consumer_position(1 << 40);
        assert_eq!(ring.reserve(8), Err(FULL));
    }
}
