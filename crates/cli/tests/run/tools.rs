//! What the programs are compiled with, and how they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What stands for maps.
pub(crate) const MODES: [&str; 2] = ["kernel", "memory"];

/// `offmap run` with these arguments.
pub(crate) fn offmap(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command
        .arg("run")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All that a run said.
pub(crate) fn said(output: &Output) -> String {
    format!("{}\n{}\n{}", output.status, stdout(output), stderr(output))
}

/// Says that something is not tested, or fails where that is required.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("OFFMAP_REQUIRE_RUN").is_none(),
        "OFFMAP_REQUIRE_RUN=1: {why}"
    );
    eprintln!("skipped: {why}");
}

/// Whether a mode cannot be tested here, which is then said.
pub(crate) fn skipped(mode: &str) -> bool {
    static KERNEL: OnceLock<Option<String>> = OnceLock::new();
    if mode != "kernel" {
        return false;
    }
    let why = KERNEL.get_or_init(|| {
        let output = offmap(&["--files", "kernel", "--", "true"]).output();
        let output = output.expect("offmap starts");
        (!output.status.success()).then(|| stderr(&output))
    });
    if let Some(why) = why {
        skip(why);
    }
    why.is_some()
}

/// Where compiled programs are put.
pub(crate) fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("offmap-run-{name}"))
}

/// Source of a program.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/run/programs")
        .join(name)
}

/// Compiles a program; what its compiler says, where it cannot.
pub(crate) fn compile(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{name}: {}", said(&output))),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// The static program with raw system calls, if there is a C compiler.
pub(crate) fn raw() -> Option<&'static Path> {
    static RAW: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let raw = RAW.get_or_init(|| {
        let to = place("raw");
        let mut command = Command::new("cc");
        command
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"])
            .arg(source("raw.c"))
            .arg("-o")
            .arg(&to);
        compile(&mut command).map(|()| to)
    });
    match raw {
        Ok(raw) => Some(raw),
        Err(why) => {
            skip(why);
            None
        }
    }
}
