//! A host that does anything at all, to the emulated device, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::fuzz::device::device(input);
});
