//! Lines that reach the terminal although the test harness captures what passing tests print.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Prints a line past the harness's capture.
pub fn aloud(line: &str) {
    // The macros' output is what the harness captures; the stream itself it leaves alone.
    // A closed stderr is no reason to fail a test.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// A number from the environment, such as a seed or a budget; `None` when it is not set.
///
/// # Panics
///
/// If it is set and is no number: a mistyped replay must not pass for a run.
pub fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let digits = text.replace('_', "");
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    Some(number.unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// Whether the environment asks that something may not be skipped.
pub fn required(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}

/// The seed of this run: `OFFMAP_SEED`, or one from the clock.
pub fn seed() -> u64 {
    env_number("OFFMAP_SEED").unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64)
    })
}
