//! A record of the transports that the conformance suite ran on, for `cargo suite`.
//!
//! `OFFMAP_TRANSPORTS` names a folder; each transport has a file in it with a line for each
//! case that passed. Without the variable nothing is recorded.

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
