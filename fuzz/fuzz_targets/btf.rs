//! BTF_LOAD, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::btf::fuzz_btf(input);
});
