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
        let mut run = offmap(&["--files", mode, "--quiet", "--"]);
        if mode == "kernel" {
            run.env("KERNEL", "1");
        }
        let output = run.arg(raw).args(arguments).output().expect("starts");
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

/// More of them, one after the other, than a process may have descriptors.
#[test]
fn short_lived_processes() {
    let Some(raw) = raw() else { return };
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let script = format!(
            "ulimit -n 300; exec {} run --files {mode} -- {} children offmap0 1300",
            env!("CARGO_BIN_EXE_offmap"),
            raw.display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let output = output.expect("starts");
        assert!(output.status.success(), "{mode}: {}", said(&output));
        assert_eq!(
            stdout(&output).trim(),
            "children 1300",
            "{mode}: {}",
            said(&output)
        );
    }
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

/// The device has room for one map: what was closed before a call has made room for it.
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
            "tests/run/few-maps.toml",
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
            "tests/run/few-maps.toml",
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

/// A pin lasts as long as the run, however it is called.
#[test]
fn no_pin_is_left_behind() {
    let Some(raw) = raw() else { return };
    if skipped("kernel") {
        return;
    }
    let folder = format!("/sys/fs/bpf/offmap-pins-{}", std::process::id());
    let script = format!(
        "mkdir {folder}; bpftool map create {folder}/a type hash key 4 value 4 entries 9 name a dev offmap0; \
         ln {folder}/a {folder}/b; mv {folder}/a {folder}/c; ls {folder}; {} threads offmap0",
        raw.display()
    );
    let output = offmap(&["--files", "kernel", "--", "sh", "-ec", &script]).output();
    let output = output.expect("starts");
    assert!(output.status.success(), "{}", said(&output));
    assert!(stdout(&output).starts_with("b\nc\n"), "{}", said(&output));
    assert!(
        stderr(&output).contains("the pin is removed"),
        "{}",
        said(&output)
    );
    std::fs::remove_dir(&folder).expect("it is empty");
}

/// What cannot be said is no reason to leave the program waiting.
#[test]
fn nobody_reads_what_is_said() {
    let Some(raw) = raw() else { return };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let output = offmap(&["--stats", "--files", "memory", "--"])
        .arg(raw)
        .args(["refusals", "offmap0"])
        .stderr(full.expect("a full device"))
        .output()
        .expect("starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// Signals: to the program while it runs, and an end to what it left behind.
#[test]
fn signals_to_offmap_run() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    for (script, signal, status) in [
        (
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done",
            Signal::TERM,
            9,
        ),
        (
            "trap 'exit 8' USR1; echo up; while :; do sleep 0.01; done",
            Signal::USR1,
            8,
        ),
        ("sleep 60 & echo up; exit 3", Signal::TERM, 3),
    ] {
        let mut run = offmap(&["--", "sh", "-c", script]);
        let mut run = run.stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        let said = run.stdout.take().expect("piped");
        BufReader::new(said).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "up");
        // Until the program has ended, where it does.
        std::thread::sleep(Duration::from_millis(300));
        kill_process(Pid::from_child(&run), signal).expect("it runs");
        let ended = run.wait().expect("it ends");
        assert_eq!(ended.code(), Some(status), "{script}");
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
