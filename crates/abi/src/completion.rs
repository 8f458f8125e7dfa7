//! Completion queue entries: 64 bytes (abi §5.3).

use crate::assert_layout;
use crate::ids::RequestId;
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a completion, in bytes.
pub const COMPLETION_BYTES: usize = 64;
/// Size of a completion, in 8-byte words.
pub const COMPLETION_WORDS: usize = COMPLETION_BYTES / 8;
/// Room for a returned value or key inside a completion, in bytes.
pub const INLINE_RESULT_BYTES: usize = 48;

/// A completion queue entry.
///
/// Word 0 (`status`, `phase`, `count`) is the ownership word, stored last with release
/// ordering (abi §10, rule C1).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Completion {
    /// [`Status`].
    pub status: U16,
    /// Bit 0: phase, as in a submission.
    pub phase: U16,
    /// For element and admin commands the bytes that were returned, in the payload or at the
    /// IOVA that the command named; for batch commands, whose payload is always a
    /// [`BatchResult`], the number of elements done.
    pub count: U32,
    /// The id of the submission that this completes.
    pub request: U64,
    /// What the command returned.
    pub payload: [u8; INLINE_RESULT_BYTES],
}

assert_layout!(Completion, 64, { status: 0, phase: 2, count: 4, request: 8, payload: 16 });

impl Completion {
    /// A completion without a payload.
    #[inline]
    pub fn new(request: RequestId, status: Status) -> Self {
        let mut c = Self::new_zeroed();
        c.status = U16::new(status.0);
        c.request = U64::new(request.0);
        c
    }

    /// The same completion with `bytes` as its payload and their number as its count.
    ///
    /// # Panics
    ///
    /// If `bytes` is longer than [`INLINE_RESULT_BYTES`]; the caller chose its length.
    #[must_use]
    #[inline]
    pub fn with_payload(mut self, bytes: &[u8]) -> Self {
        self.payload[..bytes.len()].copy_from_slice(bytes);
        self.count = U32::new(bytes.len() as u32);
        self
    }

    /// The result of the command.
    #[inline]
    pub fn status(&self) -> Status {
        Status(self.status.get())
    }

    /// The id of the submission that this completes.
    #[inline]
    pub fn request(&self) -> RequestId {
        RequestId(self.request.get())
    }

    /// The payload read as `T`, from its first bytes.
    #[inline]
    pub fn payload_as<T: FromBytes>(&self) -> T {
        const {
            assert!(size_of::<T>() <= INLINE_RESULT_BYTES);
        }
        match T::read_from_prefix(&self.payload) {
            Ok((value, _)) => value,
            Err(_) => unreachable!("T fits the payload, as asserted above"),
        }
    }

    /// The wire image as the eight words that are stored to the ring; word 0 carries `phase`.
    #[inline]
    pub fn to_words(mut self, phase: bool) -> [u64; COMPLETION_WORDS] {
        self.phase = U16::new(phase.into());
        let words: [[u8; 8]; COMPLETION_WORDS] = zerocopy::transmute!(self);
        words.map(u64::from_le_bytes)
    }

    /// The entry whose wire image is `words`.
    #[inline]
    pub fn from_words(words: [u64; COMPLETION_WORDS]) -> Self {
        zerocopy::transmute!(words.map(u64::to_le_bytes))
    }
}

/// Payload of a batch command's completion (abi §7.2).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BatchResult {
    /// Where the next dump continues. Opaque to the host, except that it fits 32 bits and
    /// grows from command to command of a dump.
    pub cursor: U64,
    /// For [`Status::NoSpace`]: how many elements the next bucket holds.
    pub needed: U32,
    /// Zero.
    pub reserved: U32,
}

assert_layout!(BatchResult, 16, { cursor: 0, needed: 8, reserved: 12 });
