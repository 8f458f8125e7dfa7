//! A client that says anything to the vfio-user server, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_tests::fuzz::wire::wire(input);
});
