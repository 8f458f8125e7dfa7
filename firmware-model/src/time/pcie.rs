//! Packets and bytes on a PCI Express link, and how long it needs for them.
//!
//! For accesses that begin at a boundary, counts and bytes are those of the published model of pcie-bench
//! (github.com/pcie-bench/pcie-model, described in Neugebauer et al., "Understanding PCIe performance for end
//! host networking", SIGCOMM 2018), exactly; `tests/pcie.rs` holds them to figures that it gave. Where an access
//! begins in between, the pieces at its ends are packets of their own, as on a real link.
//!
//! What acknowledgements, updates of flow control and clock compensation take is a share of the raw rate, as
//! there: one of each in the interval that the PCIe base specification recommends (tables "FC update" and "Ack
//! latency limit"), computed here by the formula behind those tables.

use super::{PerByte, Picos};
use core::fmt;

/// Start and end symbols, sequence number and check code of a packet: what the data link and physical layers
/// put around it.
const FRAMING_BYTES: u64 = 8;
/// The part of a header that all packets have.
const HEADER_BYTES: u64 = 4;
/// The rest of a request's header, with an address of 32 bits; 64 bits take four more.
const REQUEST_BYTES: u64 = 8;
/// The rest of the header of a completion.
const COMPLETION_BYTES: u64 = 8;
/// The end-to-end check code, where there is one.
const ECRC_BYTES: u64 = 4;
/// Data of a message-signalled interrupt.
pub const INTERRUPT_BYTES: u32 = 4;
/// No packet crosses a multiple of this, whatever its size.
pub const PAGE_BYTES: u32 = 4096;

/// A link and what was negotiated for it, as it may stand in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkSpec {
    /// The generation, 1 to 6. Of the sixth the published model says itself that it is a guess: the rates of the
    /// fifth for flow control, and 242 of 256 bytes for what flits carry.
    pub generation: u8,
    /// Lanes: 1, 2, 4, 8 or 16.
    pub lanes: u8,
    /// Maximum payload size in bytes: a power of two from 128 to 4,096.
    pub max_payload: u32,
    /// Maximum read request size in bytes: likewise, and not below `max_payload`, since a completion answers
    /// one request.
    pub max_read_request: u32,
    /// Read completion boundary in bytes: 64, 128, 256 or 512, and not above `max_payload`.
    pub read_completion_boundary: u32,
    /// The root complex answers in pieces of one boundary, as older chipsets do, instead of in full payloads.
    pub completes_by_boundary: bool,
    /// Requests carry addresses of 64 bits.
    pub long_addresses: bool,
    /// Packets carry the end-to-end check code.
    pub ecrc: bool,
}

/// Why a description is no link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkError {
    field: &'static str,
    value: u32,
    expected: &'static str,
}

impl LinkError {
    /// The field of [`LinkSpec`].
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}; it is {}",
            self.field, self.value, self.expected
        )
    }
}

impl core::error::Error for LinkError {}

/// Packets in one direction, and their bytes on the link with all that is around them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tlps {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl core::ops::Add for Tlps {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// What a read takes in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadTlps {
    /// From who reads.
    pub requests: Tlps,
    /// Back to it, with the data.
    pub completions: Tlps,
}

/// A link that there can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    spec: LinkSpec,
    write_header: u64,
    read_header: u64,
    completion_header: u64,
    per_byte: PerByte,
    raw_bits_per_s: u64,
    tlp_bits_per_s: u64,
}

/// Millions of transfers a second on a lane, and of how many bits how many are data.
const fn signalling(generation: u8) -> (u64, u64, u64) {
    match generation {
        1 => (2_500, 8, 10),
        2 => (5_000, 8, 10),
        3 => (8_000, 128, 130),
        4 => (16_000, 128, 130),
        5 => (32_000, 128, 130),
        _ => (64_000, 242, 256),
    }
}

/// Bytes between two acknowledgements, and between two updates of flow control, on average: `(payload +
/// overhead) * factor / lanes + delay` of the base specification, in symbols, which are bytes.
const fn update_interval(generation: u8, lanes: u8, payload: u32) -> u64 {
    const OVERHEAD: u64 = 28;
    let delay = match generation {
        1 => 19,
        2 => 70,
        _ => 115,
    };
    let tenths = match (lanes, payload) {
        (1 | 2 | 4, 128 | 256) => 14,
        (1 | 2 | 4, _) => 10,
        (8, 128 | 256) => 25,
        (8, _) => 10,
        (_, 128 | 256) => 30,
        _ => 20,
    };
    (payload as u64 + OVERHEAD) * tenths / (10 * lanes as u64) + delay
}

impl LinkSpec {
    /// The link.
    ///
    /// # Errors
    ///
    /// [`LinkError`] names the field that no link has.
    pub fn build(self) -> Result<Link, LinkError> {
        let check = |ok: bool, field, value, expected| match ok {
            true => Ok(()),
            false => Err(LinkError {
                field,
                value,
                expected,
            }),
        };
        let size = |bytes: u32| bytes.is_power_of_two() && (128..=4096).contains(&bytes);
        check(
            (1..=6).contains(&self.generation),
            "generation",
            self.generation.into(),
            "from 1 to 6",
        )?;
        check(
            matches!(self.lanes, 1 | 2 | 4 | 8 | 16),
            "lanes",
            self.lanes.into(),
            "1, 2, 4, 8 or 16",
        )?;
        check(
            size(self.max_payload),
            "max_payload",
            self.max_payload,
            "a power of two from 128 to 4,096",
        )?;
        check(
            size(self.max_read_request) && self.max_read_request >= self.max_payload,
            "max_read_request",
            self.max_read_request,
            "a power of two from max_payload to 4,096: a completion answers one request",
        )?;
        let boundary = self.read_completion_boundary;
        check(
            matches!(boundary, 64 | 128 | 256 | 512) && boundary <= self.max_payload,
            "read_completion_boundary",
            boundary,
            "64, 128, 256 or 512, and no more than max_payload",
        )?;
        let (transfers, data, of) = signalling(self.generation);
        let raw = u128::from(transfers) * 1_000_000 * u128::from(self.lanes) * u128::from(data);
        let raw_of = u128::from(of);
        // One acknowledgement and one update of flow control of 8 bytes each in their interval, and 4 bytes of
        // ordered sets in 1,538.
        let interval = u128::from(update_interval(
            self.generation,
            self.lanes,
            self.max_payload,
        ));
        let share_of = interval * 1538;
        let share = share_of - 16 * 1538 - 4 * interval;
        let (usable, usable_of) = (raw * share, raw_of * share_of);
        let per_byte = PerByte::from_rate(usable, usable_of * 8).ok_or(LinkError {
            field: "generation",
            value: self.generation.into(),
            expected: "from 1 to 6",
        })?;
        let ecrc = if self.ecrc { ECRC_BYTES } else { 0 };
        let long = if self.long_addresses { 4 } else { 0 };
        let request = FRAMING_BYTES + HEADER_BYTES + REQUEST_BYTES + long + ecrc;
        Ok(Link {
            spec: self,
            write_header: request,
            read_header: request,
            completion_header: FRAMING_BYTES + HEADER_BYTES + COMPLETION_BYTES + ecrc,
            per_byte,
            raw_bits_per_s: (raw / raw_of) as u64,
            tlp_bits_per_s: (usable / usable_of) as u64,
        })
    }
}

/// Pieces into which `bytes` from `address` on fall when each ends at a multiple of `size`, a power of two.
#[inline(always)]
const fn pieces(address: u64, bytes: u64, size: u64) -> u64 {
    round_up((address & (size - 1)) + bytes, size)
}

/// How often `size`, a power of two, goes into `bytes`, rounded up: by shifting, since this is asked for each
/// access.
#[inline(always)]
const fn round_up(bytes: u64, size: u64) -> u64 {
    (bytes + size - 1) >> size.trailing_zeros()
}

impl Link {
    /// What it was built from.
    pub fn spec(&self) -> &LinkSpec {
        &self.spec
    }

    /// Bits a second of all lanes, without their encoding.
    pub fn raw_bits_per_s(&self) -> u64 {
        self.raw_bits_per_s
    }

    /// Bits a second that are left for packets, with what is around them.
    pub fn tlp_bits_per_s(&self) -> u64 {
        self.tlp_bits_per_s
    }

    /// How long bytes of packets take to pass.
    #[inline(always)]
    pub const fn wire(&self, bytes: u64) -> Picos {
        self.per_byte.of(bytes)
    }

    /// A posted write of `bytes` at `address`: a doorbell, DMA to the host, a message-signalled interrupt. It
    /// is cut where a multiple of the maximum payload size lies.
    #[inline]
    pub const fn write(&self, address: u64, bytes: u64) -> Tlps {
        let count = pieces(address, bytes, self.spec.max_payload as u64);
        Tlps {
            count,
            bytes: count * self.write_header + bytes,
        }
    }

    /// A read of `bytes` at `address`. Requests are cut where a multiple of the maximum read request size
    /// lies. Of the completions of each, the first ends at a read completion boundary where it begins off one.
    #[inline]
    pub const fn read(&self, address: u64, bytes: u64) -> ReadTlps {
        let request = self.spec.max_read_request as u64;
        let requests = pieces(address, bytes, request);
        let boundary = self.spec.read_completion_boundary as u64;
        let completions = if self.spec.completes_by_boundary {
            pieces(address, bytes, boundary)
        } else {
            let payload = self.spec.max_payload as u64;
            let off = address & (boundary - 1);
            let to_request = request - (address & (request - 1));
            if off == 0 && to_request >= bytes {
                round_up(bytes, payload)
            } else {
                self.completions_apart(address, bytes)
            }
        };
        ReadTlps {
            requests: Tlps {
                count: requests,
                bytes: requests * self.read_header,
            },
            completions: Tlps {
                count: completions,
                bytes: completions * self.completion_header + bytes,
            },
        }
    }

    /// Completions in full payloads of a read whose requests are looked at one by one: only the first and the
    /// last of them can be odd.
    const fn completions_apart(&self, address: u64, bytes: u64) -> u64 {
        let request = self.spec.max_read_request as u64;
        let boundary = self.spec.read_completion_boundary as u64;
        let payload = self.spec.max_payload as u64;
        let to_request = request - (address & (request - 1));
        let first = if to_request < bytes {
            to_request
        } else {
            bytes
        };
        let off = address & (boundary - 1);
        let head = if off == 0 {
            0
        } else if boundary - off < first {
            boundary - off
        } else {
            first
        };
        // `max_read_request` is a multiple of the payload, so that what follows the first request is counted whole.
        (head > 0) as u64 + round_up(first - head, payload) + round_up(bytes - first, payload)
    }

    /// A completion with `bytes` of data in one packet: what a read of a register is answered with.
    pub const fn completion(&self, bytes: u64) -> Tlps {
        Tlps {
            count: 1,
            bytes: self.completion_header + bytes,
        }
    }
}
