//! `offmap bench` as a person runs it: files, sentences, exit statuses.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// The least that a run can be.
const LEAST: [&str; 6] = [
    "--quick",
    "--blocks=3",
    "--repetitions=1",
    "--entries=500",
    "--only",
    "lookup_calls",
];

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offmap"))
        .arg("bench")
        .args(args)
        .output()
        .expect("offmap starts")
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("offmap-bench-test-{} {name}", std::process::id()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_writes_its_files_and_a_later_one_is_held_against_it() {
    let (json, page) = (file("run.json"), file("run.html"));
    let (json_path, page_path) = (
        json.to_str().expect("a name"),
        page.to_str().expect("a name"),
    );
    let mut args = LEAST.to_vec();
    args.extend(["--json", json_path, "--html", page_path]);
    let output = bench(&args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let document: Value = serde_json::from_slice(&fs::read(&json).expect("a file")).expect("JSON");
    let inline = document["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["backend"] == "inline")
        .expect("the inline device");
    assert!(
        inline["ns_per_op"].as_f64().expect("a time") > 1.0,
        "{inline}"
    );
    assert_eq!(inline["entries"], 500);
    assert!(document["ratios"]["mirror_lookup_vs_hashbrown"].is_null());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("offloaded, inline"), "{text}");
    assert!(
        text.contains("skipped: mirror: maps have no mirrors"),
        "{text}"
    );
    let page = fs::read_to_string(&page).expect("a page");
    assert!(page.starts_with("<!doctype html>") && page.contains("Verdict"));

    let output = bench(&["--baseline", json_path, "--read", json_path]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "a run against itself: {}",
        said(&output)
    );

    let mut args = LEAST.to_vec();
    args.extend(["--baseline", json_path]);
    let output = bench(&args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("Against the earlier run:"),
        "{text} {}",
        said(&output)
    );
    // Three blocks are no measurement: either verdict is one.
    assert!(matches!(output.status.code(), Some(0 | 1)));
}

#[test]
fn devices_in_other_processes_take_part() {
    let json = file("cores.json");
    let output = bench(&[
        "--quick",
        "--blocks=3",
        "--repetitions=1",
        "--only",
        "lookup_cores_small",
        "--json",
        json.to_str().expect("a name"),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let document: Value = serde_json::from_slice(&fs::read(&json).expect("a file")).expect("JSON");
    if document["machine"]["processors"].as_u64() < Some(2) {
        println!("skipped: there is only one processor");
        return;
    }
    let far = document["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["backend"] == "vfio_user")
        .expect("the device in another process");
    assert!(far["ns_per_op"].as_f64().is_some(), "{far}");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    for (args, sentence) in [
        (vec!["--only", "nothing"], "no group \"nothing\""),
        (vec!["--baseline", "/nowhere/run.json"], "cannot be read"),
        (vec!["--read", "run.json"], "--baseline"),
        (vec!["--workload", "nothing"], "built in are deny-list"),
        (vec!["--key-size", "5"], "4, 8, 16 and 64"),
        (vec!["--value-size", "24"], "8, 64, 256 and 1024"),
        (vec!["--plant", "inline"], "inline=10"),
        (vec!["--plant", "nobody=10"], "inline=10"),
        (vec!["--repetitions", "0"], "0 is not in"),
        (vec!["--entries", "3"], "3 is not in"),
    ] {
        let output = bench(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
        assert!(
            said(&output).contains(sentence),
            "{args:?}: {}",
            said(&output)
        );
    }
    let broken = file("broken.json");
    fs::write(&broken, "{\"version\": 3").expect("a file");
    let output = bench(&["--baseline", broken.to_str().expect("a name")]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("line 1"), "{}", said(&output));
}

#[test]
fn calls_are_recorded_and_replayed() {
    let (recorded, json) = (file("calls.seq"), file("calls.json"));
    let path = recorded.to_str().expect("a name");
    let output = bench(&["--workload", "routes", "--record", path]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(fs::metadata(&recorded).expect("a file").len() > 131_072 * 5);
    let output = bench(&[
        "--replay",
        path,
        "--quick",
        "--blocks=3",
        "--repetitions=1",
        "--json",
        json.to_str().expect("a name"),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("DIFFERENT ANSWERS"), "{text}");
    let document: Value = serde_json::from_slice(&fs::read(&json).expect("a file")).expect("JSON");
    let rows = document["rows"].as_array().expect("rows");
    let host = rows
        .iter()
        .find(|row| row["backend"] == "host")
        .expect("the host map");
    assert_eq!(host["group"], "sequence routes");
    assert!(host["ns_per_op"].as_f64().is_some(), "{host}");
    assert!(host["answers"]["ok"].as_u64() > Some(100_000), "{host}");
    fs::write(&recorded, b"offmapsq and then something else").expect("a file");
    let output = bench(&["--replay", path]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("no sequence of calls"),
        "{}",
        said(&output)
    );
}

#[test]
fn the_groups_are_listed() {
    let text = String::from_utf8(bench(&["--list"]).stdout).expect("text");
    for group in [
        "lookup",
        "lookup_cores",
        "pipelined",
        "batch_sweep",
        "dump",
        "growth_10m",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(group)),
            "{group}: {text}"
        );
    }
    let quick = String::from_utf8(bench(&["--list", "--quick"]).stdout).expect("text");
    assert!(!quick.contains("growth_10m"), "{quick}");
}
