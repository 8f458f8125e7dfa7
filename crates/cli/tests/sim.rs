//! `offmap sim`: arguments, the document, shards, and the line that replays a seed.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offmap"))
        .arg("sim")
        .args(args)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn plan_file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("offmap-{} {name}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

const LOST: &str = r#"
format = 1
[[rule]]
site = "complete"
every = 50
behaviour = "drop"
"#;

#[test]
fn the_document_has_what_a_campaign_came_to() {
    let output = sim(&[
        "--seeds",
        "20",
        "--from",
        "7",
        "--fault-plans",
        "all",
        "--json",
    ]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["seeds"], 20);
    assert_eq!(report["from"], 7);
    assert_eq!(report["faulty_seeds"], 20);
    assert!(report["operations"].as_u64().unwrap() > 20 * 100);
    let faults = report["faults_injected"].as_object().unwrap();
    assert!(faults.values().all(|count| count.as_u64().unwrap() > 0));
    assert!(
        faults.keys().all(|kind| kind.contains(" at ")),
        "{faults:?}"
    );
    assert!(report["events"]["park"].as_u64().unwrap() > 0);
    assert_eq!(report["violations"].as_array().unwrap().len(), 0);
    assert_eq!(report["replay"], Value::Null);
    // The same again, and for people.
    let again = json(&sim(&[
        "--seeds",
        "20",
        "--from",
        "7",
        "--fault-plans",
        "all",
        "--json",
    ]));
    assert_eq!(report["digest"], again["digest"]);
    let text = sim(&["--seeds", "2", "--fault-plans", "none"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("faults, in 0 seeds: none\n"), "{text}");
    assert!(text.ends_with("no violation\n"), "{text}");
}

#[test]
fn one_seed_is_a_campaign_of_one() {
    let one = json(&sim(&["--seed", "12", "--json"]));
    let same = json(&sim(&["--seeds", "1", "--from", "12", "--json"]));
    assert_eq!((&one["seeds"], &one["from"]), (&1.into(), &12.into()));
    assert_eq!(one["digest"], same["digest"]);
}

#[test]
fn shards_do_together_what_one_process_does() {
    let part = |shard| {
        json(&sim(&[
            "--seeds", "11", "--from", "40", "--shard", shard, "--json",
        ]))
    };
    let whole = part("1/1");
    let parts = [part("1/3"), part("2/3"), part("3/3")];
    let sum = |field: &str| -> u64 { parts.iter().map(|p| p[field].as_u64().unwrap()).sum() };
    for field in ["seeds", "faulty_seeds", "operations", "steps", "histories"] {
        assert_eq!(sum(field), whole[field].as_u64().unwrap(), "{field}");
    }
    for kind in whole["faults_injected"].as_object().unwrap().keys() {
        let of = |p: &Value| p["faults_injected"][kind].as_u64().unwrap_or(0);
        assert_eq!(parts.iter().map(of).sum::<u64>(), of(&whole), "{kind}");
    }
}

#[test]
fn every_seed_has_the_plan_of_a_file() {
    let path = plan_file("lost", LOST);
    let file = path.to_str().unwrap();
    let output = sim(&["--seeds", "5", "--faults", file, "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["faulty_seeds"], 5);
    let faults = report["faults_injected"].as_object().unwrap();
    assert_eq!(faults.keys().collect::<Vec<_>>(), ["drop at complete"]);
    std::fs::remove_file(path).unwrap();
}

/// What a failing seed prints is a command that runs: the words are put together as in the
/// report, here for a seed that does not fail.
#[test]
fn the_line_that_replays_a_seed_runs_it() {
    let path = plan_file("replay", LOST);
    let violation = offmap_sim::Violation {
        seed: 12,
        check: offmap_sim::Check::History,
        options: offmap_sim::Faults::Plan {
            plan: offmap_emulator::faults::FaultPlan::new(),
            file: path.to_str().unwrap().into(),
        }
        .options(),
        what: String::new(),
        trace: Vec::new(),
        actions: (0, 0),
    };
    let line = violation.replay();
    assert!(
        line.starts_with("offmap sim --seed 12 --faults '"),
        "{line}"
    );
    let program = env!("CARGO_BIN_EXE_offmap");
    let command = line.replacen("offmap", program, 1) + " --json";
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let report = json(&output);
    assert_eq!((&report["seeds"], &report["from"]), (&1.into(), &12.into()));
    let file = path.to_str().unwrap();
    let direct = sim(&["--seeds", "1", "--from", "12", "--faults", file, "--json"]);
    assert_eq!(report["digest"], json(&direct)["digest"]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_is_bad_gets_a_sentence() {
    let path = plan_file(
        "bad",
        "format = 1\n[[rule]]\nsite = \"step\"\nbehaviour = \"drop\"\n",
    );
    let bad = path.to_str().unwrap();
    for (args, sentence) in [
        (
            vec!["--faults", bad],
            "rule 1, behaviour: drop has no meaning",
        ),
        (vec!["--faults", "/no/such/plan.toml"], "cannot be read"),
        (vec!["--shard", "3/2"], "is not a part of a whole"),
        (vec!["--seeds", "many"], "invalid value 'many'"),
        (
            vec!["--seeds", "0"],
            "a campaign of 0 seeds would try nothing",
        ),
        (
            vec!["--seconds", "0"],
            "a campaign of 0 seconds would try nothing",
        ),
        (
            vec!["--seeds", "3", "--shard", "4/8"],
            "part 4 of 8 has none of the 3 seeds",
        ),
        (vec!["--seed", "7", "--seeds", "2"], "cannot be used with"),
        (vec!["--seed", "7", "--from", "7"], "cannot be used with"),
        (vec!["--fault-plans", "some"], "invalid value 'some'"),
        (
            vec!["--faults", bad, "--fault-plans", "all"],
            "cannot be used with",
        ),
    ] {
        let output = sim(&args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(sentence), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_plan_that_lets_nothing_be_answered_is_no_success() {
    let plan = plan_file(
        "nothing",
        "format = 1\n[[rule]]\nsite = \"step\"\nbehaviour = \"reset\"\n",
    );
    let output = sim(&["--seeds", "3", "--faults", plan.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("nothing was checked"), "{text}");
    assert!(!text.contains("no violation"), "{text}");
}
