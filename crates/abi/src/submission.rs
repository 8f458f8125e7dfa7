//! Submission queue entries: 64 bytes (abi §5.1, §7).

use crate::assert_layout;
use crate::ids::{MapHandle, RequestId};
use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a submission, in bytes.
pub const SUBMISSION_BYTES: usize = 64;
/// Size of a submission, in 8-byte words: the unit in which rings are loaded and stored.
pub const SUBMISSION_WORDS: usize = SUBMISSION_BYTES / 8;
/// Longest key that travels inside a submission, in bytes.
pub const INLINE_KEY_BYTES: usize = 16;
/// Longest value that travels inside a submission, in bytes.
pub const INLINE_VALUE_BYTES: usize = 16;
/// The phase bit within word 0 of a submission, and within word 0 of a completion.
pub const PHASE_BIT: u64 = 1 << 16;

/// `map_flags` of an update: create the element or replace it (the UAPI's `BPF_ANY`).
pub const UPDATE_ANY: u32 = 0;
/// `map_flags` of an update: only if the key is not there (`BPF_NOEXIST`).
pub const UPDATE_NOEXIST: u32 = 1;
/// `map_flags` of an update: only if the key is there (`BPF_EXIST`).
pub const UPDATE_EXIST: u32 = 2;

bitflags! {
    /// How a submission carries its operands (abi §5.1). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct SubmissionFlags: u8 {
        /// The key stands in the descriptor's key field; otherwise that field holds its IOVA.
        const KEY_INLINE = 1 << 0;
        /// The value stands in the descriptor's value field (update), or is to be returned in
        /// the completion's payload (the operations that return a value or a key); otherwise
        /// the field holds the IOVA of a buffer.
        const VALUE_INLINE = 1 << 1;
        const _ = !0;
    }
}

/// A submission queue entry.
///
/// Word 0 (`opcode`, `flags`, `phase`, `map`) is the ownership word: it is stored last, with
/// release ordering, and the entry belongs to the device from that store on (abi §10, rule S1).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Submission {
    /// [`crate::AdminOpcode`] or [`crate::IoOpcode`], by the kind of queue.
    pub opcode: u8,
    /// [`SubmissionFlags`].
    pub flags: u8,
    /// Bit 0: phase. It is 1 in the first pass over the ring and flips with each pass.
    pub phase: U16,
    /// The map that the command is for; 0 where it is for none.
    pub map: U32,
    /// Returned unchanged in the completion.
    pub request: U64,
    /// Operands, by opcode: [`ElementBody`], [`BatchBody`] or a body of [`crate::admin`].
    pub body: [u8; 48],
}

assert_layout!(Submission, 64, { opcode: 0, flags: 1, phase: 2, map: 4, request: 8, body: 16 });

impl Submission {
    /// A submission with the given opcode and body, no map, no flags and phase 0.
    pub fn new<B: IntoBytes + Immutable>(opcode: u8, request: RequestId, body: &B) -> Self {
        const {
            assert!(size_of::<B>() == 48);
        }
        let mut s = Self::new_zeroed();
        s.opcode = opcode;
        s.request = U64::new(request.0);
        s.body.copy_from_slice(body.as_bytes());
        s
    }

    /// The same submission for a map.
    #[must_use]
    pub fn with_map(mut self, map: MapHandle) -> Self {
        self.map = U32::new(map.0);
        self
    }

    /// The same submission with operand flags.
    #[must_use]
    pub fn with_flags(mut self, flags: SubmissionFlags) -> Self {
        self.flags = flags.bits();
        self
    }

    /// Operand flags, unknown bits included.
    pub fn flags(&self) -> SubmissionFlags {
        SubmissionFlags::from_bits_retain(self.flags)
    }

    /// The map that the command names.
    pub fn map(&self) -> MapHandle {
        MapHandle(self.map.get())
    }

    /// The id that the completion must carry.
    pub fn request(&self) -> RequestId {
        RequestId(self.request.get())
    }

    /// The operands, read as body type `B`.
    #[inline]
    pub fn body<B: FromBytes>(&self) -> B {
        const {
            assert!(size_of::<B>() == 48);
        }
        match B::read_from_bytes(&self.body) {
            Ok(body) => body,
            Err(_) => unreachable!("the sizes are equal, as asserted above"),
        }
    }

    /// The operands as body type `B`, where they are.
    #[inline(always)]
    pub fn body_ref<B: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> &B {
        const {
            assert!(size_of::<B>() == 48);
        }
        match B::ref_from_bytes(&self.body) {
            Ok(body) => body,
            Err(_) => unreachable!("the sizes are equal, as asserted above"),
        }
    }

    /// The wire image as the eight words that are stored to the ring; word 0 carries `phase`.
    #[inline]
    pub fn to_words(mut self, phase: bool) -> [u64; SUBMISSION_WORDS] {
        self.phase = U16::new(phase.into());
        let words: [[u8; 8]; SUBMISSION_WORDS] = zerocopy::transmute!(self);
        words.map(u64::from_le_bytes)
    }

    /// The entry whose wire image is `words`.
    #[inline]
    pub fn from_words(words: [u64; SUBMISSION_WORDS]) -> Self {
        zerocopy::transmute!(words.map(u64::to_le_bytes))
    }
}

/// A submission as the eight words that the ring holds, which can be read as its fields where it is.
///
/// A copy that is made in wider pieces than the words were just stored in has to wait for them, as
/// [`crate::CompletionWords`] says; so entries are loaded to where they stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(64))]
pub struct SubmissionWords([U64; SUBMISSION_WORDS]);

impl SubmissionWords {
    /// All zeros.
    pub const ZERO: Self = Self([U64::ZERO; SUBMISSION_WORDS]);

    /// Replaces all words.
    #[inline(always)]
    pub fn set(&mut self, words: &[u64; SUBMISSION_WORDS]) {
        for (to, word) in self.0.iter_mut().zip(words) {
            *to = U64::new(*word);
        }
    }

    /// The words.
    #[inline]
    pub fn get(&self) -> [u64; SUBMISSION_WORDS] {
        self.0.map(U64::get)
    }

    /// The fields.
    #[inline(always)]
    pub fn fields(&self) -> &Submission {
        zerocopy::transmute_ref!(&self.0)
    }
}

/// Phase of an entry, from its word 0.
#[inline]
pub const fn phase_of(word0: u64) -> bool {
    word0 & PHASE_BIT != 0
}

/// Operands of the commands on one element (abi §7.1).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ElementBody {
    /// [`UPDATE_ANY`], [`UPDATE_NOEXIST`] or [`UPDATE_EXIST`] for an update; 0 otherwise.
    pub map_flags: U32,
    /// Length of the key in bytes; must equal the map's key size where the command has a key.
    pub key_len: U32,
    /// Length in bytes of the value given (update), or of the room for what is returned.
    pub value_len: U32,
    /// Zero.
    pub reserved: U32,
    /// The key, zero-padded, or an [`IovaRef`].
    pub key: [u8; INLINE_KEY_BYTES],
    /// The value, zero-padded, or an [`IovaRef`].
    pub value: [u8; INLINE_VALUE_BYTES],
}

assert_layout!(ElementBody, 48, {
    map_flags: 0, key_len: 4, value_len: 8, reserved: 12, key: 16, value: 32,
});

/// A reference to host memory inside an operand field.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IovaRef {
    /// IOVA of the buffer's first byte.
    pub iova: U64,
    /// Zero.
    pub reserved: U64,
}

assert_layout!(IovaRef, 16, { iova: 0, reserved: 8 });

impl IovaRef {
    /// The operand field that refers to `iova`.
    #[inline]
    pub fn field(iova: u64) -> [u8; 16] {
        let r = Self {
            iova: U64::new(iova),
            reserved: U64::ZERO,
        };
        zerocopy::transmute!(r)
    }

    /// The IOVA that an operand field refers to.
    #[inline]
    pub fn iova_of(field: &[u8; 16]) -> u64 {
        let r: Self = zerocopy::transmute!(*field);
        r.iova.get()
    }
}

/// Operands of the commands on many elements (abi §7.2).
///
/// The arrays are packed: element `i` of the keys starts at `i * key_size`, of the values at
/// `i * value_stride`, where the stride is `value_size`, and for per-CPU maps
/// `round_up(value_size, 8) * cpu_slots`. A field that an opcode does not use is zero.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BatchBody {
    /// As in [`ElementBody`], for every element.
    pub map_flags: U32,
    /// Number of elements in the arrays.
    pub count: U32,
    /// Length of one key in bytes; must equal the map's key size.
    pub key_len: U32,
    /// Stride of the values in bytes; must equal the map's value stride.
    pub value_len: U32,
    /// IOVA of the keys.
    pub keys: U64,
    /// IOVA of the values.
    pub values: U64,
    /// IOVA of the statuses: one little-endian 16-bit [`crate::Status`] per element.
    pub statuses: U64,
    /// Where a dump starts: 0, or the cursor that the previous dump's completion returned.
    pub cursor: U64,
}

assert_layout!(BatchBody, 48, {
    map_flags: 0, count: 4, key_len: 8, value_len: 12, keys: 16, values: 24, statuses: 32,
    cursor: 40,
});
