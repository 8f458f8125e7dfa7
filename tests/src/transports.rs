//! A record of the transports that the conformance suite ran on, for `cargo suite`.
//!
//! `OFFMAP_TRANSPORTS` names a folder; each transport has a file in it with a line for each
//! case that passed, and one, `.without`, for cases that were skipped there. Without the variable nothing is recorded.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write;
use std::path::PathBuf;
use std::thread;

/// Where the record of a transport goes, if one is wanted.
fn file(name: &str) -> Option<File> {
    let folder = PathBuf::from(std::env::var_os("OFFMAP_TRANSPORTS")?);
    create_dir_all(&folder).expect("the folder of OFFMAP_TRANSPORTS");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(name));
    Some(file.expect("a file in OFFMAP_TRANSPORTS"))
}

/// Records cases that passed on a transport.
pub fn passed<'a>(transport: &str, cases: impl IntoIterator<Item = &'a str>) {
    let Some(mut file) = file(transport) else {
        return;
    };
    for case in cases {
        // One write: several cases end at a time.
        let line = format!("{case}\n");
        file.write_all(line.as_bytes()).expect("the record");
    }
}

/// Cases that may be skipped on a transport, each with its way of notifying, and why: a skip that is not
/// listed fails the test. The emulated devices have what every case wants, on each of them.
pub const PERMITTED_SKIPS: [(&str, &str, &str); 0] = [];

/// Records cases that were skipped on a transport.
///
/// # Panics
///
/// Over one that is not among [`PERMITTED_SKIPS`].
pub fn without<'a>(transport: &str, cases: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let cases: Vec<_> = cases.into_iter().collect();
    let other: Vec<_> = (cases.iter())
        .filter(|(case, _)| {
            let may = |(on, name, _): &(&str, &str, &str)| *on == transport && name == case;
            !PERMITTED_SKIPS.iter().any(may)
        })
        .map(|(case, why)| format!("{case}: {why}"))
        .collect();
    assert!(
        other.is_empty(),
        "skipped on {transport}, and not permitted:\n{}",
        other.join("\n")
    );
    passed(
        &format!("{transport}.without"),
        cases.into_iter().map(|(case, _)| case),
    );
}

/// Records why a transport was not tried.
pub fn skipped(transport: &str, why: &str) {
    passed(&format!("{transport}.skipped"), [why]);
}

/// A case that is under way on a transport. It is recorded when this is dropped, unless the
/// thread unwinds: then it has failed, or was skipped.
pub struct UnderWay(&'static str);

impl UnderWay {
    /// The test that this thread runs.
    pub fn on(transport: &'static str) -> Self {
        Self(transport)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !thread::panicking() {
            passed(self.0, thread::current().name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "arrays (doorbells): the device has no BATCH")]
    fn a_skip_that_nobody_permitted_is_a_failure() {
        without("vfio", [("arrays (doorbells)", "the device has no BATCH")]);
    }
}
