//! The command itself: what it prints where, and how it ends.

#[path = "support/mod.rs"]
mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn offmap(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command.args(args).env("COLUMNS", "80");
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn help_and_version() {
    let version = offmap(&["--version"]);
    let expected = format!("offmap {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&version.stdout), expected);
    let help = offmap(&["--help"]);
    assert!(text(&help.stdout).contains("demo"));
    let demo = offmap(&["demo", "--help"]);
    let said = text(&demo.stdout).split_whitespace().collect::<Vec<_>>();
    let said = said.join(" ");
    for fact in [
        "--object <FILE.o>",
        "--json",
        "--seed <N>",
        "--operations <N>",
        "--device <KIND>",
        "Exit status:",
        "64 MiB and 1,024 maps",
        "1,048,576 entries or 128 MiB",
        "4 GiB",
    ] {
        assert!(said.contains(fact), "no {fact:?} in {said}");
    }
    for out in [version, help, demo] {
        assert_eq!(out.status.code(), Some(0));
        assert!(out.stderr.is_empty());
    }
}

#[test]
fn a_wrong_command_line_is_status_2() {
    for args in [
        &[][..],
        &["demo", "--device", "real"],
        &["nic", "--socket", "/nowhere/nic.sock", "--seed", "7"],
        &["device", "test", "--seed", "7"],
        &["demo", "--operations", "-1"],
        &["demo", "extra"],
        &["undo"],
    ] {
        let out = offmap(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty(), "{args:?}");
        assert!(!out.stderr.is_empty(), "{args:?}");
    }
}

/// One document, and what holds for every one in which nothing differed.
fn document(args: &[&str]) -> Value {
    let out = offmap(args);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(out.stderr.is_empty(), "no progress bar off a terminal");
    // `from_slice` fails on anything after the document.
    let json: Value = serde_json::from_slice(&out.stdout).expect("one document");
    assert_eq!(json["agree"], true);
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["possible_cpus"].as_u64() >= Some(1));
    let maps = json["maps"].as_array().expect("maps");
    assert_eq!(json["maps_total"].as_u64(), Some(maps.len() as u64));
    let sum = |key: &str| -> u64 { maps.iter().filter_map(|map| map[key].as_u64()).sum() };
    assert_eq!(json["operations"].as_u64(), Some(sum("operations")));
    let offloaded = maps.iter().filter(|map| map["offloaded"] == true).count();
    assert_eq!(json["maps_offloaded"].as_u64(), Some(offloaded as u64));
    assert_eq!(sum("disagreements_total"), 0);
    for map in maps {
        let answers = map["answers"].as_object().expect("answers");
        assert_eq!(map["offloaded"] == true, !answers.is_empty(), "{map}");
        assert_eq!(map["offloaded"] == true, map["reason"].is_null(), "{map}");
        assert_eq!(
            map["offloaded"] == true,
            map["device_bytes"].as_u64() > Some(0),
            "{map}"
        );
        assert!(map["filled_entries"].as_u64() <= map["max_entries"].as_u64());
        for key in ["name", "type", "key_size", "value_size", "map_flags"] {
            assert!(!map[key].is_null(), "no {key} in {map}");
        }
    }
    json
}

/// How often each answer came, successes together with ENOENT: the page on which a dump of a hash map
/// ends is full or not by the seed of the map's hash, which is another one each time.
fn answers(map: &Value) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (answer, count) in map["answers"].as_object().unwrap() {
        let answer = match answer.as_str() {
            "ok" | "ENOENT" => "ok or ENOENT",
            other => other,
        };
        *all.entry(answer.to_owned()).or_default() += count.as_u64().unwrap();
    }
    all
}

#[test]
fn json_is_one_document_and_both_devices_agree() {
    let args = ["demo", "--json", "--operations", "500", "--seed", "9"];
    let inline = document(&args);
    assert_eq!(inline["maps_total"], 6);
    assert_eq!(inline["maps_offloaded"], 6);
    assert_eq!(inline["seed"], 9);
    let threaded = document(&[&args[..], &["--device", "threaded"]].concat());
    // The same calls, with the same answers.
    for (one, other) in std::iter::zip(
        inline["maps"].as_array().unwrap(),
        threaded["maps"].as_array().unwrap(),
    ) {
        for key in ["name", "operations", "device_bytes"] {
            assert_eq!(one[key], other[key], "{key}");
        }
        assert_eq!(answers(one), answers(other));
    }
}

#[test]
fn the_text_fits_80_columns() {
    let out = offmap(&["demo", "--operations", "500"]);
    assert_eq!(out.status.code(), Some(0));
    let text = text(&out.stdout);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
        assert_eq!(line, line.trim_end(), "trailing space");
    }
    assert!(text.contains("\n\nKeys and values in bytes."), "{text}");
    assert!(text.contains("lookup ns"), "{text}");
    assert!(text.contains("agreed on the result and errno"), "{text}");
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).expect("a file in the target folder");
    path
}

#[test]
fn a_bad_object_is_one_sentence_and_status_2() {
    let patched = |at: usize, to: &[u8]| {
        let mut bytes = support::DEMO.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let cases = [
        (folder.join("missing.o"), "cannot be read"),
        (folder.to_owned(), "cannot be read"),
        (write("text.o", b"not an object\n"), "not an ELF file"),
        (write("empty.o", b""), "not an ELF file"),
        (write("header.o", &support::DEMO[..40]), "cut short"),
        (
            write("half.o", &support::DEMO[..support::DEMO.len() / 2]),
            "cut short",
        ),
        (write("32.o", &patched(4, &[1])), "64-bit"),
        (write("big.o", &patched(5, &[2])), "little-endian"),
        (write("x86.o", &patched(18, &[62, 0])), "machine 62"),
    ];
    for (path, why) in cases {
        let path = path.to_str().expect("UTF-8");
        for json in [&[][..], &["--json"]] {
            let out = offmap(&[&["demo", "--object", path], json].concat());
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(2), "{path}: {said}");
            assert!(out.stdout.is_empty(), "{path}");
            assert!(
                said.starts_with("offmap: ") && said.contains(path),
                "{said}"
            );
            assert!(said.contains(why), "{why:?} is not said: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

#[test]
fn a_map_that_this_version_lacks_is_said_to_be_lacking() {
    // One map of type 17, with key, value and entries of 4.
    let mut btf = support::BtfBuilder::new();
    let int = btf.int(4);
    let (kind, four) = (btf.uint(int, 17), btf.uint(int, 4));
    let map = btf.structure(&[
        ("type", kind),
        ("key_size", four),
        ("value_size", four),
        ("max_entries", four),
    ]);
    let var = btf.var("xsks", map);
    btf.datasec(".maps", &[var]);
    let object = support::object(&btf.finish(), 32, &[("xsks", 0)]);
    let path = write("xsk.o", &object);
    let out = offmap(&["demo", "--object", path.to_str().expect("UTF-8")]);
    let said = text(&out.stdout).split_whitespace().collect::<Vec<_>>();
    let said = said.join(" ");
    assert!(said.contains("was not offloaded"), "{said}");
    assert!(
        said.contains("this version's map layer has no maps of type xskmap."),
        "{said}"
    );
    assert_eq!(out.status.code(), Some(0), "nothing differed");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for json in [&[][..], &["--json"]] {
        let mut child = command(&[&["demo", "--operations", "100"], json].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let said: Vec<String> = stderr.lines().map(|line| line.expect("UTF-8")).collect();
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{said:?}");
        assert!(said.is_empty(), "{said:?}");
    }
}

#[test]
fn diff_says_what_it_compared() {
    let bad = offmap(&["diff", "--shard", "3/2"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("3/2"));
    let help = offmap(&["diff", "--help"]);
    for option in [
        "--calls",
        "--seed",
        "--shard",
        "--sequence",
        "--json",
        "--brief",
    ] {
        assert!(text(&help.stdout).contains(option), "{option}");
    }
    let out = offmap(&["diff", "--calls", "1000", "--seed", "9", "--json"]);
    if out.status.code() == Some(2) && std::env::var_os("OFFMAP_REQUIRE_KERNEL").is_none() {
        // The kernel takes no maps of this process, and the command says so.
        assert!(text(&out.stderr).contains("BPF_MAP_CREATE"));
        return;
    }
    let document: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(document["calls"].as_u64() >= Some(1000));
    assert_eq!(document["seed"], 9);
    assert!(document["explained"].is_u64());
    assert_eq!(document["differences"], 0);
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn statistics_go_to_stderr_and_metrics_to_their_file() {
    let file = std::env::temp_dir().join(format!("offmap-metrics-{}", std::process::id()));
    let path = file.to_str().unwrap();
    let args = [
        "demo",
        "--operations",
        "500",
        "--stats",
        "--metrics",
        path,
        "--json",
    ];
    let out = offmap(&args);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["agree"], true);
    let table = text(&out.stderr);
    for word in [
        "command",
        "p99",
        "lookup",
        "batch_update",
        "not_found",
        "retried",
        "queue pairs: 1 in use",
        "queue 1: queue pairs 1; sent ",
    ] {
        assert!(table.contains(word), "no {word:?} in {table}");
    }
    let metrics = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let lookups = "offmap_queue_submitted_total{nic=\"offmap0\",queue=\"1\",op=\"lookup\"} ";
    let sent = metrics.lines().find_map(|line| line.strip_prefix(lookups));
    let sent = sent.unwrap_or_else(|| panic!("no {lookups:?} in {metrics}"));
    // The same figure as in the table.
    let row = table
        .lines()
        .find(|line| line.trim_start().starts_with("lookup "));
    let row: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert_eq!(row[1], sent);

    let nowhere = offmap(&[
        "demo",
        "--operations",
        "10",
        "--metrics",
        "/nonexistent/file",
    ]);
    assert_eq!(nowhere.status.code(), Some(1));
    let said = text(&nowhere.stderr);
    assert!(said.contains("/nonexistent/file"), "{said}");
    assert!(
        !text(&nowhere.stdout).is_empty(),
        "the report is printed all the same"
    );
}
