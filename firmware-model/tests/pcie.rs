//! Packets and bytes on a PCIe link, held to figures that the published model of pcie-bench gave.

use offmap_firmware_model::time::pcie::{INTERRUPT_BYTES, Link, LinkSpec};

/// The figures, with where they are from.
const PUBLISHED: &str = include_str!("data/pcie-bench.txt");

/// PCIe 3 x8 as the paper has it.
const SPEC: LinkSpec = LinkSpec {
    generation: 3,
    lanes: 8,
    max_payload: 256,
    max_read_request: 512,
    read_completion_boundary: 64,
    completes_by_boundary: false,
    long_addresses: true,
    ecrc: false,
};

/// The rows of a kind: what was asked, and what came out.
fn rows(kind: &str) -> impl Iterator<Item = (Vec<u64>, Vec<u64>)> {
    let numbers = |text: &str| -> Vec<u64> {
        text.split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    };
    PUBLISHED.lines().filter_map(move |line| {
        let (asked, got) = line.strip_prefix(kind)?.split_once(':')?;
        Some((numbers(asked), numbers(got)))
    })
}

/// Rates are whole bits a second here and rounded floats there.
fn near(ours: u64, theirs: u64) -> bool {
    ours.abs_diff(theirs) <= 1 + theirs / 1_000_000_000
}

#[test]
fn rates_are_the_published_ones() {
    let mut seen = 0;
    for (asked, got) in rows("rate ") {
        let link = LinkSpec {
            generation: asked[0] as u8,
            lanes: asked[1] as u8,
            max_payload: asked[2] as u32,
            max_read_request: 4096,
            ..SPEC
        };
        let link = link.build().unwrap();
        assert!(near(link.raw_bits_per_s(), got[0]), "{asked:?}: {link:?}");
        assert!(near(link.tlp_bits_per_s(), got[1]), "{asked:?}: {link:?}");
        // A gigabyte takes what the rate says, to a millionth.
        let took = link.wire(1 << 30).0;
        let exact = u128::from(8_u64 << 30) * 1_000_000_000_000 / u128::from(link.tlp_bits_per_s());
        assert!(
            u128::from(took).abs_diff(exact) < exact / 500_000,
            "{asked:?}"
        );
        seen += 1;
    }
    assert_eq!(seen, 180);
    // The paper's own words: 57.88 Gb/s are left of 63 at the TLP layer of PCIe 3 x8.
    assert_eq!(SPEC.build().unwrap().tlp_bits_per_s() / 10_000_000, 5788);
}

#[test]
fn bytes_on_the_link_are_the_published_ones_exactly() {
    let mut seen = 0;
    for (asked, got) in rows("bytes ") {
        let link = LinkSpec {
            max_payload: asked[0] as u32,
            max_read_request: asked[1] as u32,
            read_completion_boundary: asked[2] as u32,
            completes_by_boundary: asked[3] == 1,
            long_addresses: asked[4] == 64,
            ecrc: asked[5] == 1,
            ..SPEC
        };
        let link = link.build().unwrap();
        let bytes = asked[6];
        // Wherever it begins, as long as that is a boundary of all kinds.
        for address in [0, 0x7f_f000, 0xffff_ffff_0000_0000] {
            let read = link.read(address, bytes);
            let ours = [
                link.write(address, bytes).bytes,
                read.requests.bytes,
                read.completions.bytes,
            ];
            assert_eq!(ours, got[..], "{asked:?}");
        }
        seen += 1;
    }
    assert_eq!(seen, 14 * (11 + 3 + 4));
}

/// The published simple NIC, put together from reads and writes of ours.
#[test]
fn the_published_simple_nic_comes_out() {
    let link = SPEC.build().unwrap();
    let rate = u128::from(link.tlp_bits_per_s());
    // Effective bits a second where the busier direction is full.
    let effective =
        |size: u64, to: u64, from: u64| (u128::from(size) * rate / u128::from(to.max(from))) as u64;
    let mut seen = 0;
    for (asked, got) in rows("nic ") {
        let size = asked[0];
        let pointer_write = link.write(0, 4).bytes;
        let pointer_read = link.read(0, 4).requests.bytes;
        let pointer_answer = link.completion(4).bytes;
        let descriptor = link.read(0, 16);
        let data = link.read(0, size);
        let interrupt = link.write(0, INTERRUPT_BYTES.into()).bytes;
        // Sending: bytes to the device, and from it.
        let to =
            pointer_write + descriptor.completions.bytes + data.completions.bytes + pointer_read;
        let from = descriptor.requests.bytes + data.requests.bytes + interrupt + pointer_answer;
        // Receiving. The published program forgets the request for the descriptor: an assignment stands where
        // a sum was meant.
        let to_r = pointer_write + descriptor.completions.bytes + pointer_read;
        let from_r =
            link.write(0, size).bytes + link.write(0, 16).bytes + interrupt + pointer_answer;
        assert!(near(effective(size, to, from), got[0]), "sending {size}");
        assert!(
            near(effective(size, to_r, from_r), got[1]),
            "receiving {size}"
        );
        let both = effective(size, to + to_r, from + from_r);
        assert!(near(both, got[2]) && near(both, got[3]), "both {size}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn pieces_at_the_ends_are_packets_of_their_own() {
    let link = SPEC.build().unwrap();
    let write = |address, bytes| link.write(address, bytes).count;
    let read = |address, bytes| {
        let read = link.read(address, bytes);
        (read.requests.count, read.completions.count)
    };
    assert_eq!(
        [write(255, 2), write(255, 1), write(1, 256), write(4095, 2)],
        [2, 1, 2, 2]
    );
    // A read from the middle of a cache line: to the boundary, then payloads.
    assert_eq!(read(0x20, 32), (1, 1));
    assert_eq!(read(0x20, 33), (1, 2));
    assert_eq!(read(0x20, 256), (1, 2));
    assert_eq!(read(0x20, 288 + 1), (1, 3));
    // Across a multiple of the request size, each request is answered apart.
    assert_eq!(read(0x1c0, 128), (2, 2));
    assert_eq!(read(0x1ff, 2), (2, 2));
    let by_boundary = LinkSpec {
        completes_by_boundary: true,
        ..SPEC
    };
    assert_eq!(
        by_boundary
            .build()
            .unwrap()
            .read(0x20, 128)
            .completions
            .count,
        3
    );
    // The slow way, packet by packet.
    for address in 0..600_u64 {
        for bytes in (1..1400_u64).step_by(13) {
            let mut requests = 0;
            let mut completions = 0;
            let mut at = address;
            while at < address + bytes {
                requests += 1;
                let end = (address + bytes).min((at / 512 + 1) * 512);
                let mut answered = at;
                while answered < end {
                    completions += 1;
                    let most = match answered % 64 {
                        0 => 256,
                        off => 64 - off,
                    };
                    answered += most.min(end - answered);
                }
                at = end;
            }
            assert_eq!(
                read(address, bytes),
                (requests, completions),
                "{address} {bytes}"
            );
        }
    }
}

#[test]
fn more_bytes_cost_no_less_and_more_lanes_no_more() {
    for generation in 1..=6 {
        let mut before = None;
        for lanes in [1, 2, 4, 8, 16] {
            let link = LinkSpec {
                generation,
                lanes,
                ..SPEC
            }
            .build()
            .unwrap();
            let times: Vec<_> = (0..4096)
                .map(|n| link.wire(link.write(0, n).bytes))
                .collect();
            assert!(times.is_sorted(), "{generation} {lanes}");
            if let Some(before) = before.replace(times[4095]) {
                assert!(times[4095] <= before, "{generation} {lanes}");
            }
        }
    }
}

#[test]
fn what_no_link_has_is_named() {
    for (spec, says) in [
        (
            LinkSpec {
                generation: 7,
                ..SPEC
            },
            "generation is 7; it is from 1 to 6",
        ),
        (
            LinkSpec { lanes: 12, ..SPEC },
            "lanes is 12; it is 1, 2, 4, 8 or 16",
        ),
        (
            LinkSpec {
                max_payload: 8192,
                ..SPEC
            },
            "max_payload is 8192; it is a power of two",
        ),
        (
            LinkSpec {
                max_read_request: 128,
                ..SPEC
            },
            "max_read_request is 128; it is a power of two from max_payload",
        ),
        (
            LinkSpec {
                read_completion_boundary: 512,
                ..SPEC
            },
            "read_completion_boundary is 512; it is 64",
        ),
    ] {
        let said = spec.build().unwrap_err().to_string();
        assert!(said.starts_with(says), "{said}");
    }
}

/// So that the type is nameable where links are handed on.
#[test]
fn a_link_says_what_it_was_built_from() {
    let link: Link = SPEC.build().unwrap();
    assert_eq!(*link.spec(), SPEC);
}
