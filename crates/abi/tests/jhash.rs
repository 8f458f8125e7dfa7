//! The hash of bloom filters (abi §9.1) against published values.

use offmap_abi::hash::jhash;

/// What lookup3.c's own driver prints for `hashlittle`, the same function.
#[test]
fn the_published_values() {
    let text = b"Four score and seven years ago";
    for (key, initval, hash) in [
        (&b""[..], 0, 0xdead_beef),
        (b"", 0xdead_beef, 0xbd5b_7dde),
        (text, 0, 0x1777_0551),
        (text, 1, 0xcd62_8161),
    ] {
        assert_eq!(jhash(key, initval), hash);
    }
}

/// Every byte of a key counts, at every length around a block's.
#[test]
fn every_byte_counts() {
    for len in 1..40 {
        let key: Vec<u8> = (0..len).collect();
        for at in 0..key.len() {
            for bit in 0..8 {
                let mut other = key.clone();
                other[at] ^= 1 << bit;
                assert_ne!(jhash(&key, 5), jhash(&other, 5), "length {len}, byte {at}");
            }
        }
    }
}
