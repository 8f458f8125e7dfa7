//! Choices out of an input.

/// The input of a fuzz target, taken byte by byte. At its end it goes on with zeros.
#[derive(Debug)]
pub(super) struct Bytes<'i> {
    input: &'i [u8],
    at: usize,
}

/// Values at the edges of things.
const ODD: [u64; 12] = [
    0,
    1,
    2,
    7,
    8,
    4096,
    0xffff,
    u32::MAX as u64,
    1 << 31,
    1 << 32,
    1 << 63,
    u64::MAX,
];

impl<'i> Bytes<'i> {
    pub(super) fn new(input: &'i [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes taken so far, the zeros after the end left out.
    pub(super) fn taken(&self) -> usize {
        self.at.min(self.input.len())
    }

    pub(super) fn is_over(&self) -> bool {
        self.at >= self.input.len()
    }

    pub(super) fn u8(&mut self) -> u8 {
        let byte = self.input.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// A number below `n`, which is at most 2^16.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let pick = usize::from(self.u8()) << 8 | usize::from(self.u8());
        pick % n.max(1)
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.u8()))
    }

    /// A word of any kind: small, at an edge, or anything.
    pub(super) fn word(&mut self) -> u64 {
        match self.u8() {
            pick @ 0..=95 => u64::from(pick),
            pick @ 96..=191 => ODD[usize::from(pick) % ODD.len()],
            _ => self.u64(),
        }
    }
}
