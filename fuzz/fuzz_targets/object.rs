//! Compiled BPF objects, under cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = offmap_cli::object::parse(input);
});
