//! `offmap demo --faults`.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

fn plan_file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("offmap-{}-{name}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

fn demo(name: &str, plan: &str, more: &[&str]) -> Output {
    let path = plan_file(name, plan);
    let output = Command::new(env!("CARGO_BIN_EXE_offmap"))
        .args(["demo", "--operations", "2000", "--faults"])
        .arg(&path)
        .args(more)
        .output()
        .unwrap();
    std::fs::remove_file(path).unwrap();
    output
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

const LATE: &str = r#"
format = 1
[[rule]]
name = "late"
site = "complete"
probability = 0.01
behaviour = "delay"
steps = 20
"#;

#[test]
fn faults_that_are_made_up_for_change_no_answer() {
    let output = demo("late", LATE, &["--json", "--seed", "5"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["agree"], true);
    let rule = &report["faults"]["rules"][0];
    assert_eq!(
        (rule["name"].as_str(), rule["behaviour"].as_str()),
        (Some("late"), Some("delay"))
    );
    let injected = report["faults"]["injected"].as_u64().unwrap();
    assert!(injected > 20, "{injected}");
    let met = report["faults"]["met"].as_array().unwrap();
    assert!(
        met.iter().any(|met| met["operation"] == "lookup"),
        "{met:?}"
    );
    // Without a plan there is nothing to say of one.
    let plain = Command::new(env!("CARGO_BIN_EXE_offmap"))
        .args(["demo", "--operations", "10", "--json"])
        .output()
        .unwrap();
    assert!(json(&plain).get("faults").is_none());
}

#[test]
fn faults_that_show_are_listed_with_how_operations_ended() {
    for (name, behaviour, sentence) in [
        ("lost", "drop", "did not complete a command"),
        ("gone", "unplug", "gone"),
        ("hung", "stop-firmware", "did not complete a command"),
    ] {
        let plan = format!(
            "format = 1\n[[rule]]\nname = \"{name}\"\nsite = \"complete\"\nqueue = 1\n\
             nth = 700\nbehaviour = \"{behaviour}\"\n"
        );
        let output = demo(name, &plan, &["--device", "threaded"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(": 1 injected."), "{text}");
        assert!(text.contains("Operations that met one"), "{text}");
        let line = text
            .lines()
            .find(|line| line.contains(&format!("({name})")));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains(sentence), "{line}");
    }
}

#[test]
fn a_bad_plan_is_bad_input() {
    let output = demo(
        "bad",
        "format = 1\n[[rule]]\nsite = \"step\"\nbehaviour = \"drop\"\n",
        &[],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("rule 1, behaviour: drop has no meaning"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}
