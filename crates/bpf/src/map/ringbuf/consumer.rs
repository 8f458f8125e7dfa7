//! What user space does with a ring buffer: consume its records, and wait for them.
//!
//! The ring may be filled by a device, so that nothing in its memory is believed: positions,
//! lengths and headers that cannot be are EIO with what was wrong, and where the consumer stands
//! is kept here, where no device can write.

use super::format::{RingHeader, ring_bytes};
use crate::device::RingBuffer;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::MapFile;
use crate::map::refusals::GONE;
use std::fmt;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release, SeqCst},
    fence,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const NO_MEMORY: Error = Error::new(
    Errno::ENOMEM,
    "the allocator has no memory for a copy of the next record",
);

/// The consumers of one ring: all readers of a map share it.
pub(crate) struct Consumers {
    ring: Arc<dyn RingBuffer>,
    /// Where the next record starts.
    position: Mutex<u64>,
    gone: AtomicBool,
}

/// What lies at the consumer's position.
enum Head {
    /// Nothing was produced that was not consumed.
    Empty,
    /// A record that is reserved.
    Busy,
    /// A record, committed.
    Committed(RingHeader),
}

impl Consumers {
    pub(crate) fn new(ring: Arc<dyn RingBuffer>) -> Self {
        Self {
            // Of a new map.
            position: Mutex::new(0),
            ring,
            gone: AtomicBool::new(false),
        }
    }

    /// The map has left its device: those who wait get ENODEV, and so do later calls.
    pub(crate) fn close(&self) {
        self.gone.store(true, Release);
        self.ring.wake();
    }

    fn position(&self) -> MutexGuard<'_, u64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes from the position to the producer's, checked.
    fn available(&self, position: u64) -> Result<u64> {
        if self.gone.load(Acquire) {
            return Err(GONE);
        }
        let producer = self.ring.producer_position();
        let available = producer.wrapping_sub(position);
        let size = self.ring.data_bytes();
        if available >= size || !available.is_multiple_of(8) {
            return Err(Error::because(
                Errno::EIO,
                format!(
                    "the ring's producer position {producer:#x} cannot be: the consumer \
                     position is {position:#x}, records are multiples of 8 bytes, and the ring \
                     holds fewer than {size}"
                ),
            ));
        }
        Ok(available)
    }

    /// Bytes that were reserved or committed and are not consumed.
    pub(crate) fn unconsumed_bytes(&self) -> Result<u64> {
        let position = self.position();
        self.available(*position)
    }

    /// What lies at `position`, of which `available` bytes were produced.
    fn head(&self, position: u64, available: u64) -> Result<Head> {
        if available == 0 {
            return Ok(Head::Empty);
        }
        let size = self.ring.data_bytes();
        let header = self.ring.header(position & (size - 1));
        let expected = RingHeader::at(position, size, header.len).page_offset;
        if header.page_offset != expected {
            return Err(Error::because(
                Errno::EIO,
                format!(
                    "the header of the ring's record at position {position:#x} has page offset \
                     {}; it lies at {expected}",
                    header.page_offset
                ),
            ));
        }
        if header.ring_bytes() > available {
            return Err(Error::because(
                Errno::EIO,
                format!(
                    "the header of the ring's record at position {position:#x} says {} bytes, \
                     and with it {available} were produced",
                    header.record_bytes()
                ),
            ));
        }
        Ok(if header.is_busy() {
            Head::Busy
        } else {
            Head::Committed(header)
        })
    }

    fn ready(&self) -> Result<bool> {
        // Held while the ring is looked at: another consumer that moves on meanwhile lets the producer move on, and a
        // position from before would make the ring look inconsistent.
        let position = self.position();
        let head = self.head(*position, self.available(*position)?)?;
        Ok(matches!(head, Head::Committed(_)))
    }

    /// Takes the next record, if one is committed, and moves on: `Some(true)`, with its bytes
    /// in `record`, or `Some(false)` for one that is passed over. `end` is the producer position
    /// up to which to go.
    fn take(&self, end: &mut Option<u64>, record: &mut Vec<u8>) -> Result<Option<bool>> {
        let mut position = self.position();
        let available = self.available(*position)?;
        let end = *end.get_or_insert(position.wrapping_add(available));
        // Another consumer may have passed the end.
        let left = end.wrapping_sub(*position);
        if left > available {
            return Ok(None);
        }
        let Head::Committed(header) = self.head(*position, left)? else {
            return Ok(None);
        };
        let wanted = !header.is_discarded();
        if wanted {
            // No more than what was produced, as `head` checked.
            let bytes = header.record_bytes() as usize;
            record.clear();
            record.try_reserve(bytes).map_err(|_| NO_MEMORY)?;
            record.resize(bytes, 0);
            let from = position.wrapping_add(ring_bytes(0)) & (self.ring.data_bytes() - 1);
            self.ring.copy(from, record);
        }
        *position = position.wrapping_add(header.ring_bytes());
        self.ring.set_consumer_position(*position);
        Ok(Some(wanted))
    }

    fn consume(&self, limit: u64, mut each: impl FnMut(&[u8])) -> Result<u64> {
        let mut record = Vec::new();
        let mut end = None;
        let mut done = 0;
        let result = loop {
            if done == limit {
                break Ok(done);
            }
            match self.take(&mut end, &mut record) {
                Ok(Some(true)) => {
                    done += 1;
                    each(&record);
                }
                Ok(Some(false)) => {}
                Ok(None) => break Ok(done),
                Err(error) if done == 0 => break Err(error),
                // The next call says it again.
                Err(_) => break Ok(done),
            }
        };
        // A record that was committed meanwhile found that the consumer had not come to it, and
        // told nobody. Other threads may wait.
        fence(SeqCst);
        if matches!(self.ready(), Ok(true)) {
            self.ring.wake();
        }
        result
    }
}

/// The consumer of a RINGBUF map, from [`MapFile::ringbuf`]; the same for a map in host memory
/// and on a device.
///
/// Several readers, of one map or clones of one another's file, share its consumer position:
/// each record goes to one of them. While a reader lives, the map counts as being written and
/// FREEZE is EBUSY, as it is in the kernel while the consumer's page is mapped.
pub struct RingBufferReader {
    consumers: Arc<Consumers>,
    file: MapFile,
}

impl fmt::Debug for RingBufferReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBufferReader")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl RingBufferReader {
    /// The file's map counts a writer already, which ends with the reader.
    pub(crate) fn new(consumers: Arc<Consumers>, file: MapFile) -> Self {
        Self { consumers, file }
    }

    /// Hands each committed record to `each`, in the order of their reservation, and returns
    /// how many there were. Discarded ones are passed over; the first that is reserved and not
    /// committed ends it. It ends, too, at the producer position of its start, so that producers
    /// cannot keep it going.
    ///
    /// A record is copied and its room given back before `each` sees it; `each` may do with the
    /// map what it likes. EIO when the ring's memory contradicts itself, with what was wrong;
    /// ENODEV when its device is gone; ENOMEM when a record cannot be copied. Records before the
    /// one that failed count: the error comes with the next call.
    pub fn consume(&self, each: impl FnMut(&[u8])) -> Result<u64> {
        self.consumers.consume(u64::MAX, each)
    }

    /// As [`RingBufferReader::consume`], for at most `limit` records.
    pub fn consume_up_to(&self, limit: u64, each: impl FnMut(&[u8])) -> Result<u64> {
        self.consumers.consume(limit, each)
    }

    /// Waits until the next record is committed; `false` when `timeout` passed first. A timeout
    /// past the end of the clock never passes.
    ///
    /// As in the kernel, a record that was committed with `BPF_RB_NO_WAKEUP` wakes nobody who
    /// waits already, and neither does one behind it; `BPF_RB_FORCE_WAKEUP` ends the wait when
    /// anything was reserved. A record that is reserved makes the kernel's `epoll` return at
    /// once again and again; here the wait goes on until it is committed. ENODEV when the map's
    /// device is removed, EIO as [`RingBufferReader::consume`].
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let consumers = &*self.consumers;
        let mut ready = |forced: bool| Ok(consumers.ready()? || forced && self.poll()?);
        Ok(consumers.ring.wait(timeout, &mut ready)? || consumers.ready()?)
    }

    /// Whether `poll(2)` shows EPOLLIN: bytes were reserved or committed that are not consumed.
    pub fn poll(&self) -> Result<bool> {
        Ok(self.available()? != 0)
    }

    /// Bytes that were reserved or committed and are not consumed (`BPF_RB_AVAIL_DATA`).
    pub fn available(&self) -> Result<u64> {
        self.consumers.unconsumed_bytes()
    }

    /// Bytes of the data area: the map's `max_entries`.
    pub fn data_bytes(&self) -> u64 {
        self.consumers.ring.data_bytes()
    }

    /// The consumer position: bytes consumed since the map was made, with headers and padding.
    pub fn consumer_position(&self) -> u64 {
        *self.consumers.position()
    }

    /// Copies `out.len()` bytes of the data area from `offset` on, as a mapping of the map shows
    /// them, headers and all; past the end it goes on at the start. EINVAL for an offset that is
    /// no multiple of 8.
    pub fn peek_data(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if !offset.is_multiple_of(8) {
            return Err(Error::because(
                Errno::EINVAL,
                format!("offset {offset}: the data area is read from multiples of 8"),
            ));
        }
        let mask = self.consumers.ring.data_bytes() - 1;
        for (piece, at) in out.chunks_mut(8).zip((offset..).step_by(8)) {
            self.consumers.ring.copy(at & mask, piece);
        }
        Ok(())
    }
}

impl Drop for RingBufferReader {
    fn drop(&mut self) {
        self.file.end_consumer();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{OnceLock, Weak};

    /// A ring that is looked at only while nobody can move the consumer's position.
    #[derive(Default)]
    struct Watched {
        consumers: OnceLock<Weak<Consumers>>,
    }

    impl RingBuffer for Watched {
        fn data_bytes(&self) -> u64 {
            4096
        }

        fn producer_position(&self) -> u64 {
            let consumers = self.consumers.get().and_then(Weak::upgrade);
            let consumers = consumers.expect("its consumers");
            let moves = consumers.position.try_lock().is_ok();
            assert!(
                !moves,
                "another consumer can move on between the two positions"
            );
            0
        }

        fn set_consumer_position(&self, _position: u64) {}

        fn header(&self, _offset: u64) -> RingHeader {
            RingHeader::at(0, 4096, 0)
        }

        fn copy(&self, _offset: u64, _out: &mut [u8]) {}

        fn wake(&self) {}

        fn wait(
            &self,
            _timeout: Duration,
            ready: &mut dyn FnMut(bool) -> Result<bool>,
        ) -> Result<bool> {
            ready(true)
        }
    }

    #[test]
    fn both_positions_are_of_one_moment() {
        let ring = Arc::new(Watched::default());
        let consumers = Arc::new(Consumers::new(Arc::clone(&ring) as _));
        ring.consumers
            .set(Arc::downgrade(&consumers))
            .expect("set once");
        assert!(!consumers.ready().expect("an empty ring"));
        assert_eq!(consumers.unconsumed_bytes().expect("an empty ring"), 0);
        assert_eq!(consumers.consume(1, |_| {}).expect("an empty ring"), 0);
    }
}
