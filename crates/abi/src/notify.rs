//! Doorbells, and the notify block that replaces them (abi §4.2, §10 rules N1–N4).

use crate::ids::QueueId;

/// Bytes of the doorbells that belong to one queue pair: a cache line, so that queues of
/// different threads share none.
pub const DOORBELL_STRIDE: u64 = 64;
/// Offset within a queue's doorbells of the submission tail (a 64-bit register).
pub const DOORBELL_SQ_TAIL: u64 = 0;
/// Offset within a queue's doorbells of the completion head (a 64-bit register).
pub const DOORBELL_CQ_HEAD: u64 = 8;

/// Offset from the start of BAR0 of a queue's submission-tail doorbell.
pub const fn sq_doorbell(queue: QueueId) -> u64 {
    crate::regs::DOORBELLS + queue.0 as u64 * DOORBELL_STRIDE + DOORBELL_SQ_TAIL
}

/// Offset from the start of BAR0 of a queue's completion-head doorbell.
pub const fn cq_doorbell(queue: QueueId) -> u64 {
    crate::regs::DOORBELLS + queue.0 as u64 * DOORBELL_STRIDE + DOORBELL_CQ_HEAD
}

/// Size of a notify block in bytes: one cache line that the host writes and one that the
/// device writes. It is aligned to [`NOTIFY_ALIGN`].
pub const NOTIFY_BYTES: usize = 128;
/// Alignment of a notify block, in bytes.
pub const NOTIFY_ALIGN: u64 = 64;
/// Offset of the shadow submission tail: a free-running 32-bit count of submissions in a
/// 64-bit word. Written by the host.
pub const NOTIFY_SQ_TAIL: usize = 0x00;
/// Offset of the shadow completion head, likewise. Written by the host.
pub const NOTIFY_CQ_HEAD: usize = 0x08;
/// Offset of the completion [`EventWord`]: when the host wants an interrupt. Written by the
/// host.
pub const NOTIFY_CQ_EVENT: usize = 0x10;
/// Offset of the submission [`EventWord`]: when the device wants a KICK. Written by the
/// device.
pub const NOTIFY_SQ_EVENT: usize = 0x40;

/// Bit of an event word: it is armed. The count that it holds is in the low 32 bits.
pub const EVENT_ARMED: u64 = 1 << 32;

/// An event index: "wake me when the other side's count passes `index`".
///
/// On the wire a 64-bit word: the index in the low half, bit 32 set while armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventWord {
    /// Free-running count; a wake-up is wanted once the count is beyond it.
    pub index: u32,
    /// Whether a wake-up is wanted at all.
    pub armed: bool,
}

impl EventWord {
    /// A word that asks for no wake-up.
    pub const DISARMED: Self = Self {
        index: 0,
        armed: false,
    };

    /// A word that asks for a wake-up once the count is beyond `index`.
    pub const fn armed_at(index: u32) -> Self {
        Self { index, armed: true }
    }

    /// The wire image.
    pub const fn to_word(self) -> u64 {
        self.index as u64 | if self.armed { EVENT_ARMED } else { 0 }
    }

    /// The value of a wire image; bits that this version does not name are ignored.
    pub const fn from_word(word: u64) -> Self {
        Self {
            index: word as u32,
            armed: word & EVENT_ARMED != 0,
        }
    }

    /// Whether a side whose count is now `count` must wake the other.
    pub const fn wants(self, count: u32) -> bool {
        self.armed && (count.wrapping_sub(self.index) as i32) > 0
    }
}
