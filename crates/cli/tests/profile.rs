//! `offmap profile`, and `offmap demo --profile`.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn offmap(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command.args(args).output().expect("the command starts")
}

fn said(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn good(args: &[&str]) -> String {
    let out = offmap(args);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{args:?}: {}",
        said(&out.stderr)
    );
    assert!(out.stderr.is_empty(), "{}", said(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&good(args)).expect("one document")
}

#[track_caller]
fn bad(args: &[&str], says: &[&str]) {
    let out = offmap(args);
    let said = said(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
    assert!(
        out.stdout.is_empty() && said.starts_with("offmap: "),
        "{said}"
    );
    for part in says {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// The file of nfp, changed, under a name of its own.
fn file(name: &str, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = good(&["profile", "show", "nfp", "--toml"]);
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a file in the target folder");
    path
}

const OWN_NAME: (&str, &str) = ("name = \"nfp\"", "name = \"mine\"");

#[test]
fn the_built_in_profiles_are_listed_and_shown() {
    let all = json(&["profile", "list", "--json"]);
    let names: Vec<_> = all.as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["offmap", "netdevsim", "nfp"]);
    let list = good(&["profile", "list"]);
    for profile in all.as_array().unwrap() {
        let name = profile["name"].as_str().unwrap();
        assert!(list.contains(name));
        assert_eq!(&json(&["profile", "show", name, "--json"]), profile);
        let text = said(good(&["profile", "show", name]).as_bytes());
        let checks = profile["alloc"].as_array().unwrap();
        for check in checks {
            assert!(text.contains(check["check"].as_str().unwrap()), "{text}");
        }
        for line in good(&["profile", "show", name]).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let nfp = json(&["profile", "show", "nfp", "--json"]);
    assert_eq!(nfp["alloc"][5]["check"], "element_budget");
    assert_eq!(nfp["alloc"][5]["errno"], "ENOMEM");
    assert_eq!(nfp["errno"][0]["errno"], "E2BIG");
    assert!(
        nfp["behaviours"][0]
            .as_str()
            .unwrap()
            .contains("4 elements")
    );
}

#[test]
fn a_file_is_checked_and_used_without_code() {
    let mine = file(
        "mine.toml",
        &[
            OWN_NAME,
            ("limit = 2_048_000", "limit = 50_000"),
            ("flags = []", "flags = [\"no_prealloc\"]"),
            (
                "[\"hash\", \"array\"]",
                "[\"hash\", \"array\", \"percpu_array\"]",
            ),
        ],
    );
    let mine = mine.to_str().unwrap();
    assert_eq!(json(&["profile", "check", mine, "--json"])["name"], "mine");
    assert!(good(&["profile", "check", mine]).contains("50,000"));
    let demo = json(&["demo", "--json", "--operations", "400", "--profile", mine]);
    assert_eq!(
        (&demo["agree"], &demo["profile"]),
        (&true.into(), &"mine".into())
    );
    let of = |name: &str| -> &Value {
        let maps = demo["maps"].as_array().unwrap();
        maps.iter().find(|map| map["name"] == name).expect("a map")
    };
    let reason = of("port_class")["reason"].as_str().unwrap();
    assert_eq!(
        reason,
        "ENOMEM: max_entries 65,536 exceeds the 50,000 elements that profile mine has left (0 \
         of 50,000 used by 0 maps)."
    );
    // Beyond what nfp admits: a flag, and a type of the device that lifts the core's rule.
    assert_eq!(of("action_tally")["offloaded"], true);
    let sizes = of("neighbours")["reason"].as_str().unwrap();
    assert!(
        sizes.contains("value_size 64") && sizes.contains("ENOMEM"),
        "{sizes}"
    );
}

#[test]
fn bad_profiles_are_one_sentence_with_the_line() {
    let unknown = ["offmap", "netdevsim", "nfp", "\"agilio\""];
    bad(&["profile", "show", "agilio"], &unknown);
    bad(&["demo", "--profile", "agilio"], &unknown);
    bad(&["profile", "show", "mine", "--toml"], &["\"mine\""]);
    bad(
        &["profile", "check", "missing.toml"],
        &["missing.toml", "cannot be read"],
    );
    let same = file("same.toml", &[]);
    let same = same.to_str().unwrap();
    bad(&["profile", "check", same], &[same, "line 3:", "built-in"]);
    let typo = file("typo.toml", &[OWN_NAME, ("map_types", "map_typs")]);
    let typo = typo.to_str().unwrap();
    for args in [["profile", "check", typo], ["demo", "--profile", typo]] {
        bad(&args, &[typo, "line 6:", "unknown field `map_typs`"]);
    }
}

/// Each map that is not offloaded has its reason in words, and everything that is agrees with
/// what the profile makes of a host map.
#[test]
fn the_demo_explains_what_a_strict_profile_refuses() {
    for (profile, reasons) in [
        (
            "netdevsim",
            [
                (
                    "neighbours",
                    "max_entries 1,024 exceeds the 2 entries that profile netdevsim allows",
                ),
                ("port_class", "max_entries 65,536 exceeds"),
                (
                    "flows",
                    "profile netdevsim offloads maps of type hash and array only",
                ),
            ],
        ),
        (
            "nfp",
            [
                ("neighbours", "profile nfp does not take BPF_F_NO_PREALLOC"),
                (
                    "action_tally",
                    "profile nfp offloads maps of type hash and array only",
                ),
                ("flows", "profile nfp offloads"),
            ],
        ),
    ] {
        let demo = json(&[
            "demo",
            "--json",
            "--operations",
            "2000",
            "--profile",
            profile,
        ]);
        assert_eq!(demo["agree"], true, "{demo}");
        for map in demo["maps"].as_array().unwrap() {
            assert_eq!(map["offloaded"] == true, map["reason"].is_null(), "{map}");
        }
        for (name, why) in reasons {
            let maps = demo["maps"].as_array().unwrap();
            let map = maps.iter().find(|map| map["name"] == name).expect("a map");
            assert!(map["reason"].as_str().unwrap().contains(why), "{map}");
        }
        let answers = &demo["maps"][0]["answers"];
        assert!(answers["ENOTSUPP"].as_u64() > Some(0), "{answers}");
        let text = said(good(&["demo", "--operations", "100", "--profile", profile]).as_bytes());
        assert!(
            text.contains("was not offloaded") && text.contains("agreed"),
            "{text}"
        );
    }
}
