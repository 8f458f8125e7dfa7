//! RINGBUF: records that engines write to host memory by DMA (abi §7.6, §10 B1–B3 and R4).
//!
//! The ring lies in host memory; the firmware keeps the producer position itself, and believes
//! nothing that it reads there.

use crate::HostMemory;
use crate::fence::full_fence;
use crate::table::layout::{MapSpec, ValueShape};
use offmap_abi::Status;
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ringbuf::{
    CONSUMER_POSITION, DATA, DROPPED, FORCE_WAKEUP, HEADER_BYTES, NO_WAKEUP, PAGE_BYTES,
    PRODUCER_POSITION, RECORD_BYTES_MAX, header_word, memory_bytes,
};

/// A ring. Its geometry and positions stay with the firmware, out of the window's reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingTable {
    /// Values there are none.
    pub(crate) value: ValueShape,
    /// IOVA of the ring's memory.
    iova: u64,
    /// Bytes of the data area, a power of two.
    size: u64,
    vector: u32,
    producer: u64,
    /// The consumer position that was last believed.
    consumer: u64,
    dropped: u64,
}

/// What a record's writing comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingOutput {
    /// Success; otherwise the record was dropped: `NoSpace` when the ring has no room for it,
    /// `InvalidLength` when it never has, `InvalidField` for unknown flags and for a consumer
    /// position that cannot be, `DmaFault` when the ring's memory cannot be reached, `InvalidMap`,
    /// `Unsupported` for maps of other types.
    pub status: Status,
    /// The vector that the bus side is to raise.
    pub interrupt: Option<u32>,
}

/// How a ring stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingStats {
    /// Bytes produced since the map was created.
    pub producer: u64,
    /// Bytes consumed, as far as the device has looked.
    pub consumer: u64,
    /// Records that were dropped.
    pub dropped: u64,
}

impl RingTable {
    /// The ring of a map whose description was checked.
    pub(crate) fn new(spec: &MapSpec, value: ValueShape) -> Self {
        Self {
            value,
            iova: spec.host_memory,
            size: spec.max_entries.into(),
            vector: spec.vector,
            producer: 0,
            consumer: 0,
            dropped: 0,
        }
    }

    /// Checks what MAP_CREATE says of a ring: page-aligned memory that does not wrap around, a
    /// size of whole pages that is a power of two, a vector that exists.
    pub(crate) fn check(spec: &MapSpec, vectors: u32) -> Result<(), Status> {
        let size = u64::from(spec.max_entries);
        let iova = spec.host_memory;
        let vector = spec.vector;
        if !size.is_power_of_two()
            || !size.is_multiple_of(PAGE_BYTES)
            || (spec.key_size | spec.value_size | spec.cpu_slots) != 0
            || iova == 0
            || !iova.is_multiple_of(PAGE_BYTES)
            || iova.checked_add(memory_bytes(size)).is_none()
            || (vector != NO_VECTOR && vector >= vectors)
        {
            return Err(Status::InvalidField);
        }
        Ok(())
    }

    /// Makes the ring empty in host memory, which shows, too, whether its ends can be reached.
    pub(crate) fn begin(&self, host: &mut impl HostMemory) -> Result<(), Status> {
        host.load_word(self.iova + CONSUMER_POSITION)?;
        host.load_word(self.iova + DATA + self.size - 8)?;
        host.store_word(self.iova + DROPPED, 0)?;
        host.store_word(self.iova + PRODUCER_POSITION, 0)?;
        Ok(())
    }

    /// How it stands.
    pub(crate) fn stats(&self) -> RingStats {
        RingStats {
            producer: self.producer,
            consumer: self.consumer,
            dropped: self.dropped,
        }
    }

    /// Writes a record, or drops and counts it.
    pub(crate) fn output(
        &mut self,
        data: &[u8],
        flags: u64,
        host: &mut impl HostMemory,
    ) -> RingOutput {
        match self.try_output(data, flags, host) {
            Ok(interrupt) => RingOutput {
                status: Status::Success,
                interrupt,
            },
            Err(status) => {
                self.dropped = self.dropped.wrapping_add(1);
                // Where the memory cannot be reached the count waits for the next record.
                let _ = host.store_word(self.iova + DROPPED, self.dropped);
                RingOutput {
                    status,
                    interrupt: None,
                }
            }
        }
    }

    fn try_output(
        &mut self,
        data: &[u8],
        flags: u64,
        host: &mut impl HostMemory,
    ) -> Result<Option<u32>, Status> {
        if flags & !(NO_WAKEUP | FORCE_WAKEUP) != 0 {
            return Err(Status::InvalidField);
        }
        let bytes = data.len() as u64;
        if bytes > RECORD_BYTES_MAX || bytes > self.size - 2 * HEADER_BYTES {
            return Err(Status::InvalidLength);
        }
        let taken = (bytes + HEADER_BYTES).next_multiple_of(8);
        let start = self.producer;
        // Positions count bytes and do not come round: 2^64 bytes take a century at 5 GB/s.
        let end = start.checked_add(taken).ok_or(Status::Internal)?;
        self.look(host)?;
        if end - self.consumer >= self.size {
            return Err(Status::NoSpace);
        }
        self.copy(start + HEADER_BYTES, data, host)?;
        let offset = start & (self.size - 1);
        // B1: the header after the data, the position after the header.
        host.store_word(
            self.iova + DATA + offset,
            header_word(start, self.size, bytes as u32),
        )?;
        host.store_word(self.iova + PRODUCER_POSITION, end)?;
        self.producer = end;
        Ok(self
            .wants_interrupt(start, flags, host)
            .then_some(self.vector))
    }

    /// Takes over the consumer position, if it can be one: not behind what was believed before,
    /// not beyond what was produced.
    fn look(&mut self, host: &mut impl HostMemory) -> Result<(), Status> {
        let consumer = host.load_word(self.iova + CONSUMER_POSITION)?;
        let can_be = (self.consumer..=self.producer).contains(&consumer);
        if !can_be || !consumer.is_multiple_of(8) {
            return Err(Status::InvalidField);
        }
        self.consumer = consumer;
        Ok(())
    }

    /// B3: whether the consumer had caught up with the record that starts at `start`.
    fn wants_interrupt(&self, start: u64, flags: u64, host: &mut impl HostMemory) -> bool {
        if self.vector == NO_VECTOR {
            return false;
        }
        if flags & FORCE_WAKEUP != 0 {
            return true;
        }
        if flags & NO_WAKEUP != 0 {
            return false;
        }
        full_fence();
        // One too many, where the position cannot be read, does no harm.
        host.load_word(self.iova + CONSUMER_POSITION)
            .map_or(true, |consumer| consumer == start)
    }

    /// Copies `data` to the data area from `position` on, past its end at its start.
    fn copy(&self, position: u64, data: &[u8], host: &mut impl HostMemory) -> Result<(), Status> {
        let offset = position & (self.size - 1);
        let (head, tail) = data.split_at(data.len().min((self.size - offset) as usize));
        if !head.is_empty() {
            host.write(self.iova + DATA + offset, head)?;
        }
        if !tail.is_empty() {
            host.write(self.iova + DATA, tail)?;
        }
        Ok(())
    }
}
