//! A device that lies, under the driver, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::fuzz::driver::driver(input);
});
