//! What programs do with a ring buffer: the helpers `bpf_ringbuf_*`.

use super::host::HostRing;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::file::MapFile;
use crate::uapi::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use std::fmt;
use std::sync::Arc;

/// A RINGBUF map as programs see it, from [`MapFile::ringbuf_producer`].
///
/// Any number of threads may use it, or several of them. Records are seen in the order in
/// which they were reserved, whatever order they are committed in.
pub struct RingBufferProducer {
    ring: Arc<HostRing>,
    file: MapFile,
}

impl fmt::Debug for RingBufferProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBufferProducer")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl RingBufferProducer {
    pub(crate) fn new(ring: Arc<HostRing>, file: MapFile) -> Self {
        Self { ring, file }
    }

    /// `bpf_ringbuf_reserve`: room for a record of `bytes`, which the consumer waits for until
    /// it is submitted or discarded.
    ///
    /// `flags` must be 0: EINVAL. EAGAIN when the ring has no room for the record (the helper
    /// returns NULL in both cases).
    pub fn reserve(&self, bytes: usize, flags: u64) -> Result<Reservation<'_>> {
        if flags != 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!("flags {flags:#x}: a reservation takes none"),
            ));
        }
        Ok(Reservation {
            position: self.ring.reserve(bytes)?,
            ring: &self.ring,
            bytes,
            committed: false,
        })
    }

    /// `bpf_ringbuf_output`: a record that holds `data`, at once.
    ///
    /// EINVAL for flags other than `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP`; EAGAIN when the
    /// ring has no room; ENOMEM as for [`RingBufferProducer::reserve`].
    pub fn output(&self, data: &[u8], flags: u64) -> Result<()> {
        if flags & !(BPF_RB_NO_WAKEUP | BPF_RB_FORCE_WAKEUP) != 0 {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "flags {flags:#x}: only BPF_RB_NO_WAKEUP and BPF_RB_FORCE_WAKEUP are known"
                ),
            ));
        }
        let mut record = self.reserve(data.len(), 0)?;
        record.write(0, data)?;
        record.submit(flags);
        Ok(())
    }

    /// `bpf_ringbuf_query`: the figure that `flag` names, one of `BPF_RB_AVAIL_DATA`,
    /// `BPF_RB_RING_SIZE`, `BPF_RB_CONS_POS` and `BPF_RB_PROD_POS`, in bytes; 0 for another.
    pub fn query(&self, flag: u64) -> u64 {
        self.ring.query(flag)
    }
}

/// A record that is reserved. Dropping it discards it, without flags.
///
/// Its bytes are what the ring held there before, until they are written.
#[must_use = "dropping a reservation discards the record"]
pub struct Reservation<'a> {
    ring: &'a HostRing,
    position: u64,
    bytes: usize,
    committed: bool,
}

impl fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("position", &self.position)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Reservation<'_> {
    /// Bytes of the record.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the record has no bytes, which it may.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies `data` to `offset` of the record. EINVAL, with nothing written, unless it fits:
    /// where a program is refused by the verifier.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let fits = offset <= self.bytes && data.len() <= self.bytes - offset;
        if !fits {
            return Err(Error::because(
                Errno::EINVAL,
                format!(
                    "{} bytes at offset {offset} of a record of {} bytes",
                    data.len(),
                    self.bytes
                ),
            ));
        }
        self.ring.write(self.position, offset, data);
        Ok(())
    }

    /// `bpf_ringbuf_submit`: commits the record. Of `flags`, `BPF_RB_NO_WAKEUP` and
    /// `BPF_RB_FORCE_WAKEUP` count; without them waiting consumers are told if they had caught
    /// up with this record.
    pub fn submit(mut self, flags: u64) {
        self.commit(false, flags);
    }

    /// `bpf_ringbuf_discard`: consumers pass over the record. Flags as for
    /// [`Reservation::submit`].
    pub fn discard(mut self, flags: u64) {
        self.commit(true, flags);
    }

    fn commit(&mut self, discard: bool, flags: u64) {
        self.committed = true;
        self.ring.commit(self.position, self.bytes, discard, flags);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.commit(true, 0);
        }
    }
}
