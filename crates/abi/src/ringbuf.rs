//! The memory of a RINGBUF map, which belongs to the host (abi §7.6).
//!
//! It is what the kernel shows a consumer that maps its ring buffer: a page with the consumer
//! position, a page with the producer position, the data.

/// Bytes of a page of the ring.
pub const PAGE_BYTES: u64 = 4096;
/// Offset of the consumer position, which the host writes.
pub const CONSUMER_POSITION: u64 = 0;
/// Offset of the producer position, which the device writes.
pub const PRODUCER_POSITION: u64 = PAGE_BYTES;
/// Offset of the count of records that the device dropped, which it writes.
pub const DROPPED: u64 = PAGE_BYTES + 8;
/// Offset of the data area.
pub const DATA: u64 = 2 * PAGE_BYTES;

/// Bytes of a record's header.
pub const HEADER_BYTES: u64 = 8;
/// The most bytes that a record may have: lengths have 30 bits, as the kernel's.
pub const RECORD_BYTES_MAX: u64 = (u32::MAX / 4) as u64;
/// Bit of a header's length: the record is not complete.
pub const BUSY: u32 = 1 << 31;
/// Bit of a header's length: consumers pass over the record.
pub const DISCARD: u32 = 1 << 30;
/// The page offset that a header in the first page of the data area has: in the kernel, three
/// pages lie before it.
pub const FIRST_PAGE: u64 = 3;

/// Flag of an output: no interrupt.
pub const NO_WAKEUP: u64 = 1;
/// Flag of an output: an interrupt, whether the consumer had caught up or not.
pub const FORCE_WAKEUP: u64 = 2;

/// Bytes of host memory of a ring whose data area has `data_bytes`.
pub const fn memory_bytes(data_bytes: u64) -> u64 {
    DATA + data_bytes
}

/// The header of the record at `position`, as the 8-byte word that lies in memory: `len`, with
/// its two bits, in the low half, the page offset in the high one. `data_bytes` is a power of
/// two.
pub const fn header_word(position: u64, data_bytes: u64, len: u32) -> u64 {
    let page = FIRST_PAGE + (position & (data_bytes - 1)) / PAGE_BYTES;
    len as u64 | page << 32
}
