//! `offmap demo --timing`.

use serde_json::Value;
use std::process::{Command, Output};

fn demo(more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offmap"))
        .args(["demo", "--operations", "300", "--seed", "3"])
        .args(more)
        .output()
        .unwrap()
}

fn json(more: &[&str]) -> Value {
    let output = demo(&[&["--json"], more].concat());
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn modelled_times_stand_beside_the_measured_ones_and_repeat() {
    let first = json(&["--timing", "nfp6000"]);
    let timing = &first["timing"];
    assert_eq!(timing["profile"], "nfp6000");
    let operations = timing["operations"].as_array().unwrap();
    let names: Vec<&str> = operations
        .iter()
        .map(|op| op["operation"].as_str().unwrap())
        .collect();
    for name in ["lookup", "update", "delete", "batch_lookup"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for op in operations {
        let modelled = |figure: &str| op["modelled_ns"][figure].as_f64().unwrap();
        assert!(modelled("min") > 1000.0, "PCIe alone takes longer: {op}");
        let ordered = ["min", "p50", "p99", "max"].map(modelled);
        assert!(ordered.is_sorted(), "{op}");
        let parts = &op["parts_ns"];
        let tables: f64 = parts["tables"]
            .as_object()
            .unwrap()
            .values()
            .map(|t| t.as_f64().unwrap())
            .sum();
        let sum: f64 = [
            "doorbell",
            "fetch",
            "engine",
            "payload",
            "completion",
            "interrupt",
        ]
        .iter()
        .map(|part| parts[part].as_f64().unwrap())
        .sum();
        // The mean is rounded down to a picosecond.
        assert!((sum + tables - modelled("mean")).abs() < 0.002, "{op}");
    }
    assert!(operations.iter().any(|op| op["measured_p50_ns"].is_u64()));
    // How much is measured depends on the machine; what is modelled does not.
    let again = json(&["--timing", "nfp6000"]);
    let strip = |mut timing: Value| {
        for op in timing["operations"].as_array_mut().unwrap() {
            op["measured_p50_ns"] = Value::Null;
            op["measured_p99_ns"] = Value::Null;
        }
        timing
    };
    assert_eq!(strip(timing.clone()), strip(again["timing"].clone()));
    // Another part, other times; and the answers are the same with or without.
    let other = json(&["--timing", "pcie5x16"]);
    assert_ne!(other["timing"]["digest"], timing["digest"]);
    let plain = json(&[]);
    assert!(plain.get("timing").is_none());
    assert_eq!(plain["maps"][0]["answers"], first["maps"][0]["answers"]);
    let text = String::from_utf8(demo(&["--timing", "nfp6000"]).stdout).unwrap();
    for says in [
        "Modelled on nfp6000",
        "measured",
        "emem",
        "Where the modelled mean went",
    ] {
        assert!(text.contains(says), "{text}");
    }
    let digest = timing["digest"].as_str().unwrap();
    let words: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&format!("hash {digest}.")), "{text}");
}

#[test]
fn what_cannot_be_modelled_is_said() {
    for (more, says) in [
        (
            &["--timing", "nfp7000"][..],
            "is no built-in timing profile (they are nfp6000, pcie5x16)",
        ),
        (
            &["--timing", "/nowhere/x.toml"],
            "/nowhere/x.toml: cannot be read",
        ),
        (
            &["--timing", "nfp6000", "--faults", "x"],
            "cannot be used with",
        ),
        (
            &[
                "--timing",
                "nfp6000",
                "--device",
                "vfio-user:/nowhere/nic.sock",
            ],
            "--timing is for a device in this process",
        ),
    ] {
        let output = demo(more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {stderr}");
        assert!(stderr.contains(says), "{more:?}: {stderr}");
    }
}
