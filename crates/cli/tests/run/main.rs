//! `offmap run` with programs that know nothing of it: Debian's bpftool, C with raw system calls and on
//! libbpf, Go on cilium/ebpf.
//!
//! With `OFFMAP_REQUIRE_RUN=1` it is a failure when one of them, or what compiles it, is not here, or
//! when the kernel lets this process make no maps.

mod bpftool;
mod daemon;
mod programs;
mod tools;

use std::time::{Duration, Instant};
use tools::{MODES, offmap, raw, said, skipped, stderr, stdout};

#[test]
fn the_status_is_the_programs() {
    for (program, status, why) in [
        (&["true"][..], 0, ""),
        (&["sh", "-c", "exit 7"], 7, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["/nowhere/to/be/found"], 127, "/nowhere/to/be/found"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
    ] {
        let output = offmap(&[])
            .arg("--")
            .args(program)
            .output()
            .expect("starts");
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        assert!(stderr(&output).contains(why), "{}", said(&output));
    }
}

#[test]
fn what_cannot_be_is_said_in_a_sentence() {
    let Some(raw) = raw() else { return };
    let this = env!("CARGO_BIN_EXE_offmap");
    for (arguments, sentence) in [
        (
            &["--ifname", "nono", "--", "true"][..],
            "no interface \"nono\"",
        ),
        (
            &["--ifname", "lo", "--ifname", "lo", "--", "true"],
            "each device needs one",
        ),
        (
            &["--offload-map", "a=b", "--", "true"],
            "no device \"b\", but offmap0",
        ),
        (
            &["--device", "vfio-user:/nowhere.sock", "--", "true"],
            "/nowhere.sock",
        ),
        (&["--profile", "nope", "--", "true"], "nope"),
        (&["--", this, "run", "--", "true"], "one inside another"),
    ] {
        let output = offmap(arguments).output().expect("starts");
        assert_eq!(output.status.code(), Some(125), "{}", said(&output));
        assert!(stderr(&output).contains(sentence), "{}", said(&output));
    }
    let strict = ["--profile", "netdevsim", "--"];
    let output = offmap(&strict).arg(raw).args(["wait", "offmap0"]).output();
    let output = output.expect("starts");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let sentence = "max_entries 4,096 exceeds the 2 entries that profile netdevsim allows";
    assert!(stderr(&output).contains(sentence), "{}", said(&output));
}

/// A raw program's run, whose last line is `expected`.
fn raw_says(arguments: &[&str], expected: &str) {
    let Some(raw) = raw() else { return };
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let output = offmap(&["--files", mode, "--quiet", "--"])
            .arg(raw)
            .args(arguments)
            .output()
            .expect("starts");
        assert!(output.status.success(), "{mode}: {}", said(&output));
        let last = stdout(&output)
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(last, expected, "{mode}: {}", said(&output));
    }
}

#[test]
fn signals_repeat_no_call() {
    raw_says(&["signals", "offmap0", "20000"], "pairs 20000");
}

#[test]
fn sixty_four_threads() {
    raw_says(&["threads", "offmap0"], "threads 2048");
}

#[test]
fn sixty_four_processes() {
    raw_says(&["processes", "offmap0"], "processes 2048");
}

#[test]
fn an_attribute_that_changes_meanwhile() {
    raw_says(&["tears", "offmap0", "5000"], "torn 5000");
}

#[test]
fn what_cannot_work_is_refused() {
    raw_says(&["refusals", "offmap0"], "refusals");
}

#[test]
fn maps_of_maps() {
    raw_says(&["inner", "offmap0"], "inner");
}

/// The device has room for two maps.
#[test]
fn a_map_lives_as_long_as_its_references() {
    let Some(raw) = raw() else { return };
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let output = offmap(&[
            "--files",
            mode,
            "--profile",
            "tests/run/two-maps.toml",
            "--",
        ])
        .arg(raw)
        .args(["lives", "offmap0", "300"])
        .output()
        .expect("starts");
        assert!(output.status.success(), "{mode}: {}", said(&output));
    }
}

#[test]
fn a_program_that_is_killed_in_mid_call_leaves_nothing() {
    let Some(raw) = raw() else { return };
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8; do {raw} wait offmap0 > /dev/null & sleep 0.05; kill -9 $!; wait $!; done; {raw} lives offmap0 20",
        raw = raw.display()
    );
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let started = Instant::now();
        let output = offmap(&[
            "--files",
            mode,
            "--profile",
            "tests/run/two-maps.toml",
            "--",
        ])
        .args(["sh", "-c", &script])
        .output()
        .expect("starts");
        assert!(output.status.success(), "{mode}: {}", said(&output));
        assert_eq!(
            stdout(&output).trim(),
            "rounds 20",
            "{mode}: {}",
            said(&output)
        );
        assert!(started.elapsed() < Duration::from_secs(120));
    }
}

/// Without any privilege: nobody's user and group, no capabilities.
#[test]
fn without_privileges() {
    let Some(raw) = raw() else { return };
    if !rustix::process::getuid().is_root() {
        // Then every other test here has shown it.
        return;
    }
    let copy = std::env::temp_dir().join(format!("offmap-run-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_offmap"), &copy).expect("a copy");
    let other = copy.with_extension("raw");
    std::fs::copy(raw, &other).expect("a copy");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--stats", "--"])
        .arg(&other)
        .args(["processes", "offmap0"])
        .output();
    std::fs::remove_file(copy).expect("it was there");
    std::fs::remove_file(other).expect("it was there");
    let output = output.expect("setpriv");
    if stderr(&output).contains("no namespace for the devices' interfaces") {
        eprintln!(
            "skipped: user namespaces are switched off here: {}",
            stderr(&output)
        );
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stdout(&output).trim(), "processes 2048");
    assert!(
        stderr(&output).contains("descriptors by memfds"),
        "{}",
        said(&output)
    );
}
