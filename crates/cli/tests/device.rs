//! `offmap device test`: a good device passes, one with a planted defect fails in the cases that
//! are about it, and one that hangs or is not there ends the command.

use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn test(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command.args(["device", "test"]).args(args);
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
}

/// A NIC in a process of its own, with a fault plan if there is one.
struct Nic {
    child: Child,
    folder: PathBuf,
}

impl Nic {
    fn spawn(plan: Option<&str>, more: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("offmap-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
        command.args(["nic", "--memory", "2M"]).args(more);
        command.arg("--socket").arg(folder.join("nic.sock"));
        if let Some(plan) = plan {
            let path = folder.join("plan.toml");
            std::fs::write(&path, plan).expect("the plan can be written");
            command.arg("--faults").arg(path);
        }
        let child = command.stderr(Stdio::null()).spawn().expect("it starts");
        let mut this = Self { child, folder };
        let started = Instant::now();
        while UnixStream::connect(this.folder.join("nic.sock")).is_err() {
            let ended = this.child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "offmap nic has ended: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        this
    }

    fn device(&self) -> String {
        format!("vfio-user:{}", self.folder.join("nic.sock").display())
    }

    fn test(&self, args: &[&str]) -> Output {
        test(&[&["--device", &self.device()], args].concat())
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn named(report: &Value, outcome: &str) -> Vec<String> {
    let cases = report["cases"].as_array().expect("cases");
    let cases = cases.iter().filter(|case| case["outcome"] == outcome);
    let mut names: Vec<_> = cases
        .map(|case| case["name"].as_str().expect("a name").to_owned())
        .collect();
    names.dedup();
    names
}

#[test]
fn every_case_passes_on_a_good_device() {
    let nic = Nic::spawn(None, &["--maps", "40", "--total-entries", "50000"]);
    let out = nic.test(&["--json"]);
    let report = json(&out);
    assert_eq!(out.status.code(), Some(0), "{report:#}");
    assert_eq!(report["skipped"], 0, "{report:#}");
    assert_eq!(report["commands_missing"], Value::Array(Vec::new()));
    let listed = test(&["--list"]);
    let listed = text(&listed.stdout).lines().count();
    assert_eq!(report["passed"].as_u64(), Some(2 * listed as u64));
    assert!(listed > 50);
}

#[test]
fn a_small_device_is_told_what_it_lacks() {
    let less = [
        "--queue-pairs",
        "1",
        "--queue-depth",
        "64",
        "--vectors",
        "1",
    ];
    let nic = Nic::spawn(None, &less);
    let out = nic.test(&["--json"]);
    let report = json(&out);
    assert_eq!(out.status.code(), Some(0), "{report:#}");
    let skipped = named(&report, "skipped");
    assert!(skipped.contains(&"several_queues_from_several_threads".into()));
    let cases = report["cases"].as_array().expect("cases");
    for case in cases.iter().filter(|case| case["outcome"] == "skipped") {
        let why = case["why"].as_str().unwrap_or_default();
        let said = why.contains("the case wants") || why.contains("too few maps or entries");
        assert!(said, "{case}");
    }
}

#[test]
fn planted_defects_fail_the_cases_that_are_about_them() {
    let plans = [
        (
            "site = \"dma-write\"\nopcode = \"Lookup\"\nbehaviour = \"flip\"\nbits = 1\nevery = 40",
            "maps",
            "elements_round_trip_at_every_size",
            "docs/abi.md §7 LOOKUP",
        ),
        (
            "site = \"complete\"\nopcode = \"Nop\"\nbehaviour = \"duplicate\"\nnth = 7",
            "the_deepest_queue_is_used_whole",
            "the_deepest_queue_is_used_whole",
            "docs/abi.md §4.1",
        ),
        (
            "site = \"interrupt\"\nbehaviour = \"drop\"",
            "interrupts",
            "interrupts_arrive",
            "docs/abi.md §10 rule N4",
        ),
        (
            "site = \"register-read\"\nregister = 0\nbehaviour = \"flip\"\nbits = 1\nat = 3\nnth = 2",
            "lifecycle",
            "registers_are_as_the_abi_says",
            "docs/abi.md §3",
        ),
    ];
    for (rule, only, expected, section) in plans {
        let plan = format!("format = 1\n\n[[rule]]\n{rule}\n");
        let nic = Nic::spawn(Some(&plan), &[]);
        let out = nic.test(&["--only", only]);
        let said = text(&out.stdout);
        assert_eq!(out.status.code(), Some(1), "{rule}: {said}");
        let mut lines = said.lines();
        let failed = lines.find(|l| l.starts_with("failed") && l.contains(expected));
        assert!(failed.is_some(), "{rule}: {said}");
        let why = lines.next().unwrap_or_default();
        assert!(why.contains(section), "{why}");
        assert!(out.stderr.is_empty(), "{}", text(&out.stderr));
    }
}

/// The same with a device of the command's own process, and what it counts.
#[test]
fn a_plan_is_for_the_devices_of_each_case() {
    let folder = std::env::temp_dir().join(format!("offmap-test-plan-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("plan.toml");
    let rule = "site = \"complete\"\nopcode = \"Nop\"\nbehaviour = \"duplicate\"\nnth = 7";
    std::fs::write(&path, format!("format = 1\n\n[[rule]]\n{rule}\n")).expect("a plan");
    let plan = path.to_str().expect("UTF-8");
    let case = "the_deepest_queue_is_used_whole";
    for device in ["inline", "threaded"] {
        let only = ["--device", device, "--only", case, "--json"];
        let good = test(&only);
        let report = json(&good);
        assert_eq!(good.status.code(), Some(0), "{report:#}");
        assert_eq!(report["faults_injected"], Value::Null);
        assert!(good.stderr.is_empty(), "{}", text(&good.stderr));
        let out = test(&[&only[..], &["--faults", plan, "--seed", "3", "--stats"]].concat());
        let report = json(&out);
        assert_eq!(out.status.code(), Some(1), "{report:#}");
        assert_eq!(named(&report, "failed"), [case]);
        // One for each way of notifying, in a device each.
        assert_eq!(report["faults_injected"], 2, "{report:#}");
        let nops = report["commands"]["Nop"].as_u64().expect("a count");
        assert!(nops > 7, "{report:#}");
        let said = text(&out.stderr);
        for (what, name, count) in [
            ("sent", "Nop", nops),
            (
                "sent",
                "QueueCreate",
                report["commands"]["QueueCreate"].as_u64().unwrap_or(0),
            ),
            (
                "got",
                "Success",
                report["statuses"]["Success"].as_u64().unwrap_or(0),
            ),
        ] {
            let line = [what, name, &count.to_string()].map(str::to_owned);
            let words = |l: &str| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert!(said.lines().any(|l| words(l) == line), "{line:?} in {said}");
        }
    }
    for (args, expected) in [
        (
            ["--device", "vfio-user:/no/such.sock", "--faults", plan],
            "offmap nic --faults FILE",
        ),
        (
            ["--device", "inline", "--faults", "/no/such/plan.toml"],
            "/no/such/plan.toml",
        ),
    ] {
        let out = test(&args);
        assert_eq!(out.status.code(), Some(2));
        assert!(
            text(&out.stderr).contains(expected),
            "{}",
            text(&out.stderr)
        );
    }
    std::fs::remove_dir_all(&folder).expect("the folder goes");
}

/// What a NIC in a process of its own has counted is said when it is told to stop.
#[test]
fn a_nic_says_at_the_end_what_it_counted() {
    let rule = "site = \"complete\"\nopcode = \"Nop\"\nbehaviour = \"duplicate\"\nnth = 7";
    let (out, said) = served("stats", rule, &["--stats"], &["a_parked_device_wakes"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    let line = said
        .lines()
        .find(|line| line.contains("the device was kicked "));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    let numbers: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let [kicks, answered, parks, ..] = numbers[..] else {
        panic!("{line}");
    };
    // With a plan no KICK is answered by who wrote it.
    assert!(kicks > 0 && answered == 0 && parks > 0, "{line}");
    assert!(said.contains("offmap: faults injected: "), "{said}");
}

/// Without `--stats`, too: what its plan did, rule by rule, and that the NIC is out since.
#[test]
fn a_nic_says_what_its_fault_plan_did() {
    let rule = "name = \"pulled\"\nsite = \"fetch\"\nopcode = \"Nop\"\nbehaviour = \"unplug\"";
    let (out, said) = served("unplug", rule, &[], &["a_parked_device_wakes"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    for sentence in [
        "the fault plan has unplugged the NIC: clients read all ones",
        "offmap: faults injected: 1\n",
        "pulled (unplug at fetch): injected 1 times",
    ] {
        assert!(said.contains(sentence), "no \"{sentence}\" in {said}");
    }
    assert!(!said.contains("was kicked"), "{said}");
}

/// A case of the conformance suite on a NIC with one fault rule: what the suite came to, and what the NIC said
/// until it was told to stop.
fn served(name: &str, rule: &str, more: &[&str], cases: &[&str]) -> (Output, String) {
    let plan = format!("format = 1\n\n[[rule]]\n{rule}\n");
    let folder = std::env::temp_dir().join(format!("offmap-test-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (path, socket) = (folder.join("plan.toml"), folder.join("nic.sock"));
    std::fs::write(&path, plan).expect("a plan");
    let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
    command.args(["nic", "--memory", "2M", "--socket"]);
    command.arg(&socket).arg("--faults").arg(&path).args(more);
    let nic = command.stderr(Stdio::piped()).spawn().expect("it starts");
    let started = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(started.elapsed() < PATIENCE, "no socket");
        std::thread::sleep(Duration::from_millis(5));
    }
    let device = format!("vfio-user:{}", socket.display());
    let mut args = vec!["--device", &device];
    args.extend(cases.iter().flat_map(|case| ["--only", *case]));
    let tested = test(&args);
    let pid = nic.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(killed.expect("kill").success());
    let out = nic.wait_with_output().expect("it ends");
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    assert_eq!(out.status.code(), Some(0));
    (tested, text(&out.stderr).to_string())
}

/// The device vanishes: the case fails, and the others are not tried one after the other.
#[test]
fn a_device_that_vanishes_ends_the_run() {
    let rule = "site = \"fetch\"\nopcode = \"Nop\"\nbehaviour = \"unplug\"";
    let nic = Nic::spawn(Some(&format!("format = 1\n\n[[rule]]\n{rule}\n")), &[]);
    let started = Instant::now();
    let out = nic.test(&["--json"]);
    assert!(started.elapsed() < PATIENCE);
    let report = json(&out);
    assert_eq!(out.status.code(), Some(1), "{report:#}");
    assert_eq!(named(&report, "failed"), ["reset_while_idle"]);
    assert!(report["skipped"].as_u64() > Some(90), "{report:#}");
}

#[test]
fn maps_are_created_through_all_ports() {
    let nic = Nic::spawn(None, &["--ports", "4"]);
    let demo = |device: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
        command.args(["demo", "--json", "--operations", "200", "--device", device]);
        let out = command.output().expect("the command starts");
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        json(&out)
    };
    let interfaces = |report: &Value| -> Vec<String> {
        let maps = report["maps"].as_array().expect("maps");
        maps.iter()
            .map(|map| map["interface"].as_str().expect("a name").to_owned())
            .collect()
    };
    let report = demo(&nic.device());
    assert_eq!(
        interfaces(&report),
        [
            "offmap0", "offmap1", "offmap2", "offmap3", "offmap0", "offmap1"
        ]
    );
    let device = report["device"].as_str().expect("a description");
    assert!(device.contains(" and 4 ports "), "{device}");
    let report = demo("inline");
    assert_eq!(interfaces(&report), ["offmap0"; 6]);
    let device = report["device"].as_str().expect("a description");
    assert!(!device.contains("port"), "{device}");
    let out = nic.test(&["--only", "identify"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}

#[test]
fn a_number_of_ports_that_no_nic_has_is_status_2() {
    for ports in ["0", "257"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offmap"));
        command.args([
            "nic",
            "--socket",
            "/no/such/folder/nic.sock",
            "--ports",
            ports,
        ]);
        let out = command.output().expect("the command starts");
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        let said = text(&out.stderr);
        assert!(
            said.contains("1 to 256") || said.contains("1..=256"),
            "{said}"
        );
    }
}

#[test]
fn a_device_that_is_not_there_is_status_2() {
    let out = test(&["--device", "vfio-user:/no/such.sock"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("there is no SmartNIC at /no/such.sock"));
    let out = test(&["--only", "no such case"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("offmap device test --list"));
}
