//! `cargo suite`: runs all tests of the workspace, and says at the end which transports the
//! conformance suite has run on.
//!
//! Arguments are those of `cargo test`. The last line is `transports=N`: those on which as many cases ran as on any
//! other one, where cases that may be skipped there (`PERMITTED_SKIPS` in `tests/src/transports.rs`) count. It is
//! a failure when N is less than `OFFMAP_REQUIRE_TRANSPORTS`, if that is set.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The transports, by the names of their records, and what they are.
const TRANSPORTS: [(&str, &str); 5] = [
    ("inline", "in this process, on the caller's thread"),
    ("threaded", "in this process, on a thread of its own"),
    ("vfio-user-thread", "vfio-user, to a thread"),
    ("vfio-user-process", "vfio-user, to offmap nic"),
    ("vfio", "kernel VFIO, in a virtual machine"),
];
/// The variable that names the folder of records.
const RECORDS: &str = "OFFMAP_TRANSPORTS";
/// The variable that says how many transports there must be.
const REQUIRED: &str = "OFFMAP_REQUIRE_TRANSPORTS";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(sentence) => {
            eprintln!("cargo suite: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let required = match env::var(REQUIRED) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{REQUIRED}={text} is no number of transports"))?,
        Err(_) => 0,
    };
    let records = records()?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--workspace", "--locked", "--manifest-path"])
        .arg(manifest)
        .args(env::args_os().skip(1))
        .env(RECORDS, &records)
        .status()
        .map_err(|e| format!("cargo cannot be run: {e}"))?;
    let lines = |name: &str| {
        let record = fs::read_to_string(records.join(name));
        record.unwrap_or_default().lines().count()
    };
    let came = TRANSPORTS.map(|(name, what)| {
        let counts = Counts {
            passed: lines(name),
            skipped: lines(&format!("{name}.without")),
        };
        let why = fs::read_to_string(records.join(format!("{name}.skipped")));
        (what, counts, why.ok())
    });
    let most = came.iter().map(|(_, counts, _)| counts.all()).max();
    let mut ran = 0;
    println!("\nconformance");
    for (what, counts, why) in came {
        let whole = counts.is_whole(most.unwrap_or(0));
        ran += usize::from(whole);
        let said = match (counts.passed, why) {
            (0, Some(why)) => format!("skipped: {}", why.trim()),
            (0, None) => "not run".to_owned(),
            _ => counts.sentence(most.unwrap_or(0)),
        };
        println!("  {what:42} {said}");
    }
    if !status.success() {
        println!("tests failed");
    }
    println!("transports={ran}");
    let enough = ran >= required;
    if !enough {
        eprintln!("cargo suite: {REQUIRED} wants {required} transports");
    }
    Ok(match status.success() && enough {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What came of the cases on a transport.
#[derive(Clone, Copy)]
struct Counts {
    passed: usize,
    /// Skipped, as they may be there: another skip fails its test.
    skipped: usize,
}

impl Counts {
    fn all(self) -> usize {
        self.passed + self.skipped
    }

    /// Whether every case ran that ran on any transport, or may be skipped here.
    fn is_whole(self, most: usize) -> bool {
        self.passed > 0 && self.all() == most
    }

    fn sentence(self, most: usize) -> String {
        let mut said = format!("{} cases passed, {} skipped", self.passed, self.skipped);
        if !self.is_whole(most) {
            said += &format!(", {} missing: not counted", most - self.all());
        }
        said
    }
}

/// The folder for the records of this run, which does not exist.
fn records() -> Result<PathBuf, String> {
    // target/PROFILE/offmap-suite
    let program = env::current_exe().map_err(|e| format!("where am I: {e}"))?;
    let target = program.ancestors().nth(2).unwrap_or(Path::new("."));
    let folder = target.join("transports");
    match fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", folder.display())),
        _ => Ok(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn a_transport_counts_when_nothing_is_missing() {
        let counts = |passed, skipped| Counts { passed, skipped };
        assert!(counts(118, 0).is_whole(118) && counts(116, 2).is_whole(118));
        assert!(!counts(117, 0).is_whole(118) && !counts(0, 118).is_whole(118));
        let said = counts(110, 2).sentence(118);
        assert_eq!(said, "110 cases passed, 2 skipped, 6 missing: not counted");
        assert_eq!(counts(118, 0).sentence(118), "118 cases passed, 0 skipped");
    }
}
