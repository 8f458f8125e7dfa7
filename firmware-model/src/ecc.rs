//! Check codes of device memory: what becomes of wrong bits.
//!
//! A code is linear, so that what a decoder makes of a line depends on which of its bits are wrong and
//! on nothing else. No check bits are kept: only lines with wrong bits are remembered, and a device
//! without any pays nothing.
//!
//! * **Parity**: a bit for each line of 64 bytes. An odd number of wrong bits, that one among them, is
//!   detected; an even number is missed.
//! * **SECDED**: an extended Hamming code of 72 bits for each word of 8 bytes. One wrong bit is
//!   corrected, two are detected. Three or more look like one where their syndrome is that of a bit,
//!   which is then "corrected" as well, and wrong: that is missed, and counted as corrected, as a
//!   device counts it. Otherwise an odd number is detected; an even number is missed where the syndrome
//!   is zero, and detected elsewhere.

/// Words of a line.
pub(crate) const WORDS: usize = 8;

/// The check code of a tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ecc {
    /// None: wrong bits are read as they are.
    #[default]
    None,
    /// A parity bit for each line of 64 bytes.
    Parity,
    /// Single error correction, double error detection for each word of 8 bytes.
    Secded,
}

impl Ecc {
    /// The name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Parity => "parity",
            Self::Secded => "secded",
        }
    }

    /// Check bits of a line, beside its 512 bits of data: SECDED has those of word `w` from `8 * w` on.
    pub const fn check_bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Parity => 1,
            Self::Secded => 8 * WORDS as u32,
        }
    }
}

/// What a decoder says of a unit: a word, or with parity a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Verdict {
    /// All is well, as far as it can tell.
    #[default]
    Good,
    /// One bit was wrong, as far as it can tell, and no longer is.
    Corrected,
    /// Bits are wrong.
    Detected,
}

/// Wrong bits of a line, and what the decoder makes of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Line {
    /// Wrong bits of data.
    pub(crate) data: [u64; WORDS],
    /// Wrong check bits: of each word, or of the line in the first.
    pub(crate) check: [u8; WORDS],
    /// Bits that are wrong still in what the decoder hands out. Nothing is handed out of a unit that is
    /// [`Verdict::Detected`], and none are counted there.
    pub(crate) shown: [u64; WORDS],
    /// Of each word; those of a line with parity agree.
    pub(crate) verdicts: [Verdict; WORDS],
}

impl Line {
    /// No bit is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.data == [0; WORDS] && self.check == [0; WORDS]
    }

    /// Whether a decoder would find anything.
    pub(crate) fn is_bad(&self) -> bool {
        self.verdicts.iter().any(|v| *v != Verdict::Good)
    }

    /// Judges the line anew after its wrong bits have changed.
    pub(crate) fn judge(&mut self, ecc: Ecc) {
        match ecc {
            Ecc::None => {
                self.shown = self.data;
                self.verdicts = [Verdict::Good; WORDS];
            }
            Ecc::Parity => {
                let wrong: u32 = self.data.iter().map(|word| word.count_ones()).sum();
                let odd = !(wrong + u32::from(self.check[0] & 1)).is_multiple_of(2);
                let verdict = [Verdict::Good, Verdict::Detected][usize::from(odd)];
                self.verdicts = [verdict; WORDS];
                self.shown = if odd { [0; WORDS] } else { self.data };
            }
            Ecc::Secded => {
                for word in 0..WORDS {
                    let (verdict, shown) = secded(self.data[word], self.check[word]);
                    self.verdicts[word] = verdict;
                    self.shown[word] = shown;
                }
            }
        }
    }
}

/// The place of each data bit in the Hamming code: the numbers from 3 on that are no powers of two.
const PLACES: [u8; 64] = {
    let mut places = [0; 64];
    let (mut bit, mut place) = (0, 3u8);
    while bit < 64 {
        if !place.is_power_of_two() {
            places[bit] = place;
            bit += 1;
        }
        place += 1;
    }
    places
};
/// The last place that stands for a bit.
const LAST_PLACE: u8 = PLACES[63];
/// The check bit that is the parity of all others.
const OVERALL: u8 = 7;

const _: () = assert!(LAST_PLACE < 1 << OVERALL);

/// What the decoder makes of a word with those bits of data and check bits wrong, and which bits of data
/// are wrong still in what it hands out.
fn secded(data: u64, check: u8) -> (Verdict, u64) {
    // Check bit `n` stands at place 2^n, so that those are their own syndrome.
    let mut syndrome = check & !(1 << OVERALL);
    let mut rest = data;
    while rest != 0 {
        syndrome ^= PLACES[rest.trailing_zeros() as usize];
        rest &= rest - 1;
    }
    let odd = !(data.count_ones() + check.count_ones()).is_multiple_of(2);
    match (syndrome, odd) {
        (0, false) => (Verdict::Good, data),
        (0, true) => (Verdict::Corrected, data),
        (_, false) => (Verdict::Detected, 0),
        (place, true) if place.is_power_of_two() => (Verdict::Corrected, data),
        (place, true) => match PLACES.iter().position(|p| *p == place) {
            Some(bit) => (Verdict::Corrected, data ^ 1 << bit),
            None => (Verdict::Detected, 0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_corrected_and_two_are_detected_wherever_they_are() {
        let bits = |n: u32| match n {
            0..64 => (1u64 << n, 0u8),
            _ => (0, 1 << (n - 64)),
        };
        for first in 0..72 {
            let (data, check) = bits(first);
            assert_eq!(secded(data, check), (Verdict::Corrected, 0), "{first}");
            for second in 0..first {
                let (more, and) = bits(second);
                let both = secded(data ^ more, check ^ and);
                assert_eq!(both, (Verdict::Detected, 0), "{first} and {second}");
            }
        }
    }

    #[test]
    fn three_are_never_put_right() {
        let (mut missed, mut detected) = (0, 0);
        for a in 0..64 {
            for b in 0..a {
                for c in 0..b {
                    let data = 1u64 << a | 1 << b | 1 << c;
                    match secded(data, 0) {
                        (Verdict::Corrected, shown) => {
                            assert_ne!(shown, 0);
                            missed += 1;
                        }
                        (Verdict::Detected, 0) => detected += 1,
                        other => panic!("{a}, {b}, {c}: {other:?}"),
                    }
                }
            }
        }
        assert!(missed > 0 && detected > 0, "{missed}, {detected}");
    }
}
