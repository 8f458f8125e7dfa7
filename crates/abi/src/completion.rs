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

/// A completion as the eight words that the ring holds.
///
/// It says the same as a [`Completion`], and reads and writes whole words. A processor
/// forwards a store to a later load of the same or fewer bytes at once, while a load of more
/// bytes than one store wrote waits until that store has left for the cache; so fields that were just
/// stored one by one, and are then copied or stored as words, cost more than the command that they answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(64))]
pub struct CompletionWords([u64; COMPLETION_WORDS]);

impl CompletionWords {
    /// A completion without a payload, of phase 0.
    #[inline(always)]
    pub const fn new(request: RequestId, status: Status) -> Self {
        let mut words = [0; COMPLETION_WORDS];
        words[0] = status.0 as u64;
        words[1] = request.0;
        Self(words)
    }

    /// The entry whose wire image is `words`.
    #[inline(always)]
    pub const fn from_words(words: [u64; COMPLETION_WORDS]) -> Self {
        Self(words)
    }

    /// The wire image, with `phase` in word 0.
    #[inline(always)]
    pub const fn to_words(&self, phase: bool) -> [u64; COMPLETION_WORDS] {
        let mut words = self.0;
        words[0] = (words[0] & !0xffff_0000) | (phase as u64) << 16;
        words
    }

    /// The result of the command.
    #[inline(always)]
    pub const fn status(&self) -> Status {
        Status(self.0[0] as u16)
    }

    /// [`Completion::count`].
    #[inline(always)]
    pub const fn count(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// The id of the submission that this completes.
    #[inline(always)]
    pub const fn request(&self) -> RequestId {
        RequestId(self.0[1])
    }

    /// Replaces the count.
    #[inline(always)]
    pub const fn set_count(&mut self, count: u32) {
        self.0[0] = self.0[0] & 0xffff_ffff | (count as u64) << 32;
    }

    /// Stores `bytes` as the payload, and their number as the count. What is left of the payload
    /// keeps what it was.
    ///
    /// # Panics
    ///
    /// If `bytes` is longer than [`INLINE_RESULT_BYTES`]; the caller chose its length.
    #[inline(always)]
    pub fn set_payload(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= INLINE_RESULT_BYTES,
            "a payload of that length"
        );
        for (word, bytes) in self.0[2..].iter_mut().zip(bytes.chunks(8)) {
            *word = match bytes {
                [a, b, c, d, e, f, g, h] => u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]).into(),
                _ => {
                    let mut whole = [0; 8];
                    whole[..bytes.len()].copy_from_slice(bytes);
                    u64::from_le_bytes(whole)
                }
            };
        }
        self.set_count(bytes.len() as u32);
    }

    /// Copies the first bytes of the payload to `out`.
    ///
    /// # Panics
    ///
    /// If `out` is longer than [`INLINE_RESULT_BYTES`].
    #[inline(always)]
    pub fn read_payload(&self, out: &mut [u8]) {
        assert!(out.len() <= INLINE_RESULT_BYTES, "a payload of that length");
        for (out, word) in out.chunks_mut(8).zip(&self.0[2..]) {
            let bytes = word.to_le_bytes();
            match out.len() {
                8 => out.copy_from_slice(&bytes),
                4 => out.copy_from_slice(&bytes[..4]),
                len => out.copy_from_slice(&bytes[..len]),
            }
        }
    }
}

impl From<CompletionWords> for Completion {
    fn from(words: CompletionWords) -> Self {
        Self::from_words(words.0)
    }
}

impl From<Completion> for CompletionWords {
    fn from(completion: Completion) -> Self {
        let phase = completion.phase.get() & 1 != 0;
        Self(completion.to_words(phase))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_the_fields_say() {
        for len in [0, 1, 4, 7, 8, 9, 16, 47, 48] {
            let bytes: [u8; INLINE_RESULT_BYTES] = core::array::from_fn(|i| 0x80 + i as u8);
            let bytes = &bytes[..len];
            let request = RequestId(0x0123_4567_89ab_cdef);
            let fields = Completion::new(request, Status::NoSpace).with_payload(bytes);
            let mut words = CompletionWords::new(request, Status::NoSpace);
            words.set_payload(bytes);
            for phase in [false, true] {
                assert_eq!(words.to_words(phase), fields.to_words(phase));
                let taken = CompletionWords::from_words(fields.to_words(phase));
                assert_eq!(taken.status(), Status::NoSpace);
                assert_eq!(taken.count() as usize, len);
                assert_eq!(taken.request(), request);
                let mut out = [0; INLINE_RESULT_BYTES];
                taken.read_payload(&mut out[..len]);
                assert_eq!(&out[..len], bytes);
            }
            assert_eq!(Completion::from(words), fields);
            assert_eq!(CompletionWords::from(fields), words);
        }
    }

    #[test]
    fn a_count_leaves_the_rest() {
        let mut words = CompletionWords::new(RequestId(7), Status::Success);
        words.set_payload(&[0xff; INLINE_RESULT_BYTES]);
        words.set_count(u32::MAX);
        words.set_count(3);
        assert_eq!((words.count(), words.status()), (3, Status::Success));
        assert_eq!(words.request(), RequestId(7));
    }
}
