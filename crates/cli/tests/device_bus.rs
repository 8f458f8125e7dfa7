//! `offmap device list`, `bind` and `unbind`, on whatever PCI bus there is.

use serde_json::Value;
use std::process::{Command, Output};

/// An address at which no machine that tests has a function.
const NOWHERE: &str = "ffff:ff:1f.7";

fn offmap(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command.args(args).output().expect("the command starts")
}

fn sentence(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_list_is_the_same_for_people_and_programs() {
    let table = offmap(&["device", "list"]);
    let json = offmap(&["device", "list", "--json"]);
    assert!(table.status.success() && json.status.success());
    let listed: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let text = String::from_utf8_lossy(&table.stdout);
    let listed = listed.as_array().expect("a list");
    for one in listed {
        let address = one["address"].as_str().expect("an address");
        assert!(text.contains(address), "{text}");
    }
    assert_eq!(listed.is_empty(), text.starts_with("no SmartNIC"), "{text}");
}

#[test]
fn what_cannot_be_bound_is_a_sentence() {
    for command in ["bind", "unbind"] {
        let none = offmap(&["device", command, NOWHERE]);
        assert_eq!(none.status.code(), Some(2));
        assert!(sentence(&none).contains("offmap device list"), "{none:?}");
        let bad = offmap(&["device", command, "01:00"]);
        assert_eq!(bad.status.code(), Some(2));
        assert!(sentence(&bad).contains("is no PCI address"), "{bad:?}");
    }
}

#[test]
fn a_device_that_is_not_there_is_no_device_that_fails() {
    for args in [
        &["demo", "--device", "vfio:ffff:ff:1f.7"][..],
        &["device", "test", "--device", "vfio:ffff:ff:1f.7"],
    ] {
        let out = offmap(args);
        assert!(!out.status.success());
        assert!(sentence(&out).contains("no PCI function at"), "{out:?}");
    }
    let bad = offmap(&["demo", "--device", "vfio:"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(sentence(&bad).contains("vfio:ADDRESS"), "{bad:?}");
}
