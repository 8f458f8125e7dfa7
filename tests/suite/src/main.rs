//! `cargo suite`: runs all tests of the workspace, and says at the end which transports the
//! conformance suite has run on.
//!
//! Arguments are those of `cargo test`. The last line is `transports=N`. It is a failure when
//! N is less than `OFFMAP_REQUIRE_TRANSPORTS`, if that is set.
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
    let mut ran = 0;
    println!("\nconformance");
    for (name, what) in TRANSPORTS {
        let cases = fs::read_to_string(records.join(name)).unwrap_or_default();
        let skipped = fs::read_to_string(records.join(format!("{name}.skipped")));
        let came = match (cases.lines().count(), skipped) {
            (0, Ok(why)) => format!("skipped: {}", why.trim()),
            (0, Err(_)) => "not run".to_owned(),
            (passed, _) => {
                ran += 1;
                format!("{passed} cases passed")
            }
        };
        println!("  {what:42} {came}");
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
