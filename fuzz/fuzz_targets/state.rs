//! The file of `offmap nic --state`, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::fuzz::state::state(input);
});
