//! The raw entry point of bpf(2), under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::fuzz::raw(input);
});
