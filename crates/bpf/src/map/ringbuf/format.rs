//! What lies in a ring: headers, lengths and offsets (`struct bpf_ringbuf_hdr`).

use crate::uapi::{BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ};

/// Bytes of a page of the ring. The kernel's own page size, on machines whose pages have 4 KiB.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Bytes of a header.
pub(crate) const HEADER_BYTES: u64 = BPF_RINGBUF_HDR_SZ as u64;
/// `RINGBUF_MAX_RECORD_SZ`.
pub(crate) const MAX_RECORD_BYTES: u64 = (u32::MAX / 4) as u64;
/// `RINGBUF_NR_META_PAGES`: the page that user space never sees, the consumer's and the
/// producer's. The first data page is this many pages from the start of `struct bpf_ringbuf`.
pub(crate) const META_PAGES: u64 = 3;

/// The 8 bytes before a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingHeader {
    /// Bytes of the record, with [`BPF_RINGBUF_BUSY_BIT`] and [`BPF_RINGBUF_DISCARD_BIT`].
    pub len: u32,
    /// Pages from the start of the kernel's `struct bpf_ringbuf` to the header: 3 for a header
    /// in the first data page.
    pub page_offset: u32,
}

impl RingHeader {
    /// A header of a record of `len` bytes at position `position` of a ring whose data area
    /// has `data_bytes`, a power of two. `len` carries the two bits.
    pub const fn at(position: u64, data_bytes: u64, len: u32) -> Self {
        let offset = position & (data_bytes - 1);
        Self {
            len,
            page_offset: (META_PAGES + offset / PAGE_BYTES) as u32,
        }
    }

    /// Whether the record is not committed yet.
    pub const fn is_busy(self) -> bool {
        self.len & BPF_RINGBUF_BUSY_BIT != 0
    }

    /// Whether consumers pass over the record.
    pub const fn is_discarded(self) -> bool {
        self.len & BPF_RINGBUF_DISCARD_BIT != 0
    }

    /// Bytes of the record, without its header.
    pub const fn record_bytes(self) -> u64 {
        (self.len & !(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT)) as u64
    }

    /// Bytes that the record takes in the ring: header, data, and padding to 8.
    pub const fn ring_bytes(self) -> u64 {
        ring_bytes(self.record_bytes())
    }

    /// The header as it lies in the memory of this machine.
    pub(crate) fn to_word(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.len.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.page_offset.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }

    /// The header that lies in the memory of this machine as `word`.
    pub(crate) fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        Self {
            len: u32::from_ne_bytes([a, b, c, d]),
            page_offset: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Bytes that a record of `bytes` takes in the ring.
pub(crate) const fn ring_bytes(bytes: u64) -> u64 {
    (bytes + HEADER_BYTES).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_lie_in_memory_as_the_kernels() {
        // Seen in a ring of one page of a 6.18 kernel after bpf_ringbuf_output of 13 bytes.
        let header = RingHeader::at(0, 4096, 13);
        let expected = if cfg!(target_endian = "little") {
            [13, 0, 0, 0, 3, 0, 0, 0]
        } else {
            [0, 0, 0, 13, 0, 0, 0, 3]
        };
        assert_eq!(header.to_word().to_ne_bytes(), expected);
        assert_eq!(RingHeader::from_word(header.to_word()), header);
        assert_eq!(header.ring_bytes(), 24);
        assert_eq!(RingHeader::at(8192 + 4096 + 8, 8192, 0).page_offset, 4);
    }

    #[test]
    fn the_two_bits_are_no_part_of_the_length() {
        let len = BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT | 5;
        let header = RingHeader::at(0, 4096, len);
        assert!(header.is_busy() && header.is_discarded());
        assert_eq!((header.record_bytes(), header.ring_bytes()), (5, 16));
        let whole = RingHeader::at(0, 4096, 8);
        assert!(!whole.is_busy() && !whole.is_discarded());
        assert_eq!(whole.ring_bytes(), 16);
    }
}
