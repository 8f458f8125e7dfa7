//! The `offmap` command, run as a user runs it.
//!
//! `OFFMAP_REQUIRE_XDP_TOOLS=1` makes it a failure when the objects of the package
//! `xdp-tools` are not installed.

use offmap_tests::command::offmap;
use offmap_tests::report::{aloud, required};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(offmap()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs the demo with `--json` and checks what every such document must hold.
fn demo(args: &[&str]) -> Value {
    let out = run(&[&["demo", "--json"], args].concat());
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{args:?}: {stdout}\n{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    assert_eq!(json["agree"], Value::Bool(true), "{args:?}: {stdout}");
    let maps = json["maps"].as_array().expect("maps");
    assert_eq!(json["maps_total"].as_u64(), Some(maps.len() as u64));
    let offloaded = json["maps_offloaded"].as_u64().expect("maps_offloaded");
    assert!(offloaded <= maps.len() as u64);
    let operations = json["operations"].as_u64().expect("operations");
    assert!(
        offloaded == 0 || operations > 1000,
        "{operations} operations"
    );
    json
}

#[test]
fn help_and_version() {
    let out = run(&["--version"]);
    assert!(out.status.success());
    assert!(text(&out.stdout).starts_with("offmap "), "{out:?}");
    let out = run(&["--help"]);
    assert!(out.status.success());
    assert!(text(&out.stdout).contains("demo"));
    assert!(!run(&["no-such-command"]).status.success());
}

#[test]
fn the_shipped_object() {
    let json = demo(&[]);
    assert_eq!(json["maps_total"], json["maps_offloaded"]);
    assert!(json["maps_total"].as_u64() >= Some(4), "all four types");
    let out = run(&["demo"]);
    assert!(out.status.success());
    for map in json["maps"].as_array().unwrap() {
        let name = map["name"].as_str().expect("a map has a name");
        assert!(
            text(&out.stdout).contains(name),
            "the table does not list {name}"
        );
    }
}

/// Compiled objects of the package xdp-tools.
fn installed_objects() -> Vec<PathBuf> {
    let folders = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bpf")))
        .chain([
            PathBuf::from("/usr/lib/bpf"),
            PathBuf::from("/usr/lib64/bpf"),
        ]);
    let mut objects: Vec<PathBuf> = folders
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "o"))
        .collect();
    objects.sort();
    objects.dedup();
    objects
}

#[test]
fn every_object_of_xdp_tools() {
    let objects = installed_objects();
    if objects.is_empty() {
        aloud("demo: NO OBJECT OF xdp-tools IS INSTALLED HERE, none was run");
        assert!(
            !required("OFFMAP_REQUIRE_XDP_TOOLS"),
            "OFFMAP_REQUIRE_XDP_TOOLS=1, and there are none"
        );
        return;
    }
    let (mut maps, mut offloaded) = (0, 0);
    for object in &objects {
        let json = demo(&["--object", object.to_str().unwrap()]);
        let number = |key: &str| json[key].as_u64().unwrap();
        maps += number("maps_total");
        offloaded += number("maps_offloaded");
        let name = object.file_name().unwrap().to_str().unwrap();
        if name == "xdpfilt_dny_all.o" {
            assert!(number("maps_offloaded") >= 5, "{name}: {json}");
        }
        for map in json["maps"].as_array().unwrap() {
            let offloadable = ["hash", "array", "percpu_hash", "percpu_array"];
            let kind = map["type"].as_str().expect("a map has a type");
            let done = map["offloaded"].as_bool().expect("offloaded or not");
            assert_eq!(done, offloadable.contains(&kind), "{name}: {map}");
            let reason = map["reason"].as_str().unwrap_or_default();
            assert!(done || reason.len() > 10, "{name}: no reason for {map}");
        }
    }
    aloud(&format!(
        "demo: {} objects of xdp-tools, {maps} maps, {offloaded} offloaded, all agree",
        objects.len()
    ));
    assert!(offloaded > 0);
}

/// Objects that are none: a sentence that names the file, status 2, no panic.
#[test]
fn bad_objects_are_refused_in_a_sentence() {
    let folder = env::temp_dir().join(format!("offmap-demo-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut bad: Vec<(String, Vec<u8>)> = vec![
        ("empty.o".into(), vec![]),
        ("text.o".into(), b"not an object\n".to_vec()),
        ("magic-only.o".into(), b"\x7fELF".to_vec()),
        (
            "noise.o".into(),
            (0..4096u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect(),
        ),
    ];
    // The header of a 64-bit big-endian relocatable BPF object.
    let mut foreign = b"\x7fELF\x02\x02\x01".to_vec();
    foreign.resize(64, 0);
    (foreign[17], foreign[19], foreign[23]) = (1, 247, 1);
    (foreign[53], foreign[59]) = (64, 64);
    bad.push(("foreign-endian.o".into(), foreign));
    if let Some(object) = installed_objects().first() {
        let whole = fs::read(object).unwrap();
        for part in [65, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            bad.push((format!("cut-{part}.o"), whole[..part].to_vec()));
        }
        let mut machine = whole;
        machine[18] = 62;
        bad.push(("x86.o".into(), machine));
    }
    let refuse = |path: &Path| {
        let path = path.to_str().unwrap();
        let out = run(&["demo", "--object", path]);
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(2), "{path}: {stdout}{stderr}");
        assert!(stderr.contains(path), "the file is not named: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.trim().len() > path.len() + 10, "no reason: {stderr}");
    };
    for (name, bytes) in &bad {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        refuse(&path);
    }
    refuse(&folder.join("missing.o"));
    refuse(&folder);
    fs::remove_dir_all(&folder).unwrap();
}
