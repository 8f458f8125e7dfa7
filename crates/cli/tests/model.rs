//! `offmap model`: arguments, files, parts and what is said of bad ones.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn model(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offmap"))
        .current_dir(folder)
        .arg("model")
        .args(args)
        .output()
        .unwrap()
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("offmap-model-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Small enough for a test, in a file of one's own.
const WORKLOAD: &str = r#"
format = 1
name = "small"
operations = 1000
[map]
type = "array"
key_size = 4
value_size = 64
max_entries = 512
[host]
depth = 4
[[call]]
op = "lookup"
weight = 1
"#;

const SWEEP: &[&str] = &[
    "--workload",
    "small.toml",
    "--sweep",
    "depth=1,4,16",
    "--sweep",
    "value_size=8,64",
];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_sweep_in_parts_is_the_whole_one() {
    let folder = folder("parts");
    std::fs::write(folder.join("small.toml"), WORKLOAD).unwrap();
    let whole = model(
        &folder,
        &[SWEEP, &["-o", "whole.json", "--svg", "plots"]].concat(),
    );
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    let text = String::from_utf8(whole.stdout).unwrap();
    assert!(
        text.contains("modelled") && text.contains("measured:"),
        "{text}"
    );
    assert!(folder.join("plots/latency-depth.svg").exists());
    assert!(folder.join("plots/throughput-value_size.svg").exists());
    for part in 1..=4 {
        let (shard, file) = (format!("{part}/4"), format!("part-{part}.json"));
        let jobs = if part % 2 == 0 { "1" } else { "3" };
        let args = [SWEEP, &["--shard", &shard, "-o", &file, "--jobs", jobs]].concat();
        assert_eq!(model(&folder, &args).status.code(), Some(0));
    }
    let parts = ["part-3.json", "part-1.json", "part-4.json", "part-2.json"];
    let merged = model(
        &folder,
        &[&["merge"], &parts[..], &["-o", "merged.json"]].concat(),
    );
    assert_eq!(merged.status.code(), Some(0), "{}", said(&merged));
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!(read("merged.json"), read("whole.json"));
    let printed = model(&folder, &[SWEEP, &["--json"]].concat());
    assert_eq!(printed.stdout, read("whole.json"));
    let document: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(document["points"].as_array().unwrap().len(), 6);
    assert_eq!(document["points"][5]["at"][0], "16");
    assert!(
        document["points"][0]["result"]["latency"]["p99_ps"]
            .as_u64()
            .unwrap()
            > 500_000
    );
    // One is missing, and one is not of this sweep.
    let missing = model(
        &folder,
        &["merge", "part-1.json", "part-2.json", "-o", "x.json"],
    );
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        said(&missing).contains("of 4 parts 2 are missing: 3, 4"),
        "{}",
        said(&missing)
    );
    assert!(!folder.join("x.json").exists());
    let other = [
        SWEEP,
        &["--shard", "2/4", "-o", "other.json", "--seed", "9"],
    ]
    .concat();
    assert_eq!(model(&folder, &other).status.code(), Some(0));
    let mixed = ["part-1.json", "other.json", "part-3.json", "part-4.json"];
    let mixed = model(
        &folder,
        &[&["merge"], &mixed[..], &["-o", "x.json"]].concat(),
    );
    assert_eq!(mixed.status.code(), Some(2));
    assert!(
        said(&mixed).contains("seed is not the same"),
        "{}",
        said(&mixed)
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let folder = folder("wrong");
    std::fs::write(folder.join("small.toml"), WORKLOAD).unwrap();
    let wrong = WORKLOAD.replace("depth = 4", "depth = 0");
    std::fs::write(folder.join("wrong.toml"), wrong).unwrap();
    let unknown = WORKLOAD.replace("value_size", "value_sise");
    std::fs::write(folder.join("unknown.toml"), unknown).unwrap();
    let refused = |args: &[&str], what: &str, code: i32| {
        let output = model(&folder, args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            said(&output)
        );
        assert!(said(&output).contains(what), "{args:?}: {}", said(&output));
        assert_eq!(
            said(&output).lines().count(),
            1,
            "{args:?}: {}",
            said(&output)
        );
    };
    refused(
        &["--timing", "abacus"],
        "\"abacus\" is no built-in timing profile",
        2,
    );
    refused(
        &["--workload", "idle"],
        "\"idle\" is no built-in workload",
        2,
    );
    refused(&["--workload", "none.toml"], "none.toml: cannot be read", 2);
    refused(
        &["--workload", "wrong.toml"],
        "wrong.toml: host.depth is 0",
        2,
    );
    refused(
        &["--workload", "unknown.toml"],
        "unknown.toml, line 8: unknown field",
        2,
    );
    refused(&["--sweep", "height=1"], "there is no axis \"height\"", 2);
    refused(&["--sweep", "depth=0"], "depth=0: host.depth is 0", 2);
    refused(&["--shard", "3/2"], "written I/N", 2);
    refused(
        &["merge", "none.json", "-o", "x.json"],
        "none.json: cannot be read",
        2,
    );
    let small = ["--workload", "small.toml", "-o", "no/such/folder.json"];
    refused(&small, "cannot be written", 1);
    let list = model(&folder, &["--list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    for name in ["nfp6000", "pcie5x16", "fleet", "deny-list", "placement"] {
        assert!(list.contains(name), "{list}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
