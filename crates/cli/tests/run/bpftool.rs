//! Debian's bpftool.

use crate::tools::{MODES, offmap, said, skip, skipped, stdout};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether there is none, which is then said.
fn missing() -> bool {
    let there = Command::new("bpftool").arg("version").output();
    let missing = !there.is_ok_and(|output| output.status.success());
    if missing {
        skip("there is no bpftool");
    }
    missing
}

/// Runs a shell script whose `$P` is a path for pins; what it printed.
fn script(mode: &str, more: &[&str], lines: &[&str]) -> String {
    let mut arguments = vec!["--files", mode];
    arguments.extend(more);
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let output = offmap(&arguments)
        .args(["--", "sh", "-ec", &lines.join("\n")])
        .env(
            "P",
            format!("/sys/fs/bpf/offmap-{}-{n}", std::process::id()),
        )
        .output()
        .expect("starts");
    assert!(output.status.success(), "{mode}: {}", said(&output));
    stdout(&output)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn bytes(text: &str) -> Vec<String> {
    text.split(' ').map(|byte| format!("0x{byte}")).collect()
}

#[test]
fn create_fill_dump_delete() {
    if missing() {
        return;
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let said = script(
            mode,
            &[],
            &[
                "bpftool map create $P type hash key 4 value 8 entries 64 name m dev offmap0",
                "bpftool map update pinned $P key 1 0 0 0 value 1 2 3 4 5 6 7 8",
                "bpftool map update pinned $P key 2 0 0 0 value 2 2 2 2 2 2 2 2 noexist",
                "! bpftool map update pinned $P key 2 0 0 0 value 3 3 3 3 3 3 3 3 noexist > /dev/null",
                "bpftool -j map lookup pinned $P key 1 0 0 0",
                "bpftool -j map dump pinned $P",
                "bpftool -j map delete pinned $P key 2 0 0 0",
                "bpftool -j map getnext pinned $P",
                "bpftool -j map dump pinned $P",
                "! bpftool -j map lookup pinned $P key 9 9 9 9",
            ],
        );
        let lines = json_lines(&said);
        let one = json!({"key": bytes("01 00 00 00"), "value": bytes("01 02 03 04 05 06 07 08")});
        assert_eq!(lines[0], one, "{mode}: {said}");
        assert_eq!(lines[1].as_array().map(Vec::len), Some(2), "{mode}: {said}");
        assert_eq!(lines[2], Value::Null, "{mode}: {said}");
        assert_eq!(
            lines[3]["next_key"],
            json!(bytes("01 00 00 00")),
            "{mode}: {said}"
        );
        assert_eq!(lines[4], json!([one]), "{mode}: {said}");
    }
}

/// By id, by name and by pin it is the same map, and it is on the interface that was asked for.
#[test]
fn show_and_list() {
    if missing() {
        return;
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let said = script(
            mode,
            &[],
            &[
                "bpftool map create $P type lru_hash key 8 value 16 entries 100 name shown dev offmap0",
                "bpftool -j map show pinned $P",
                "id=$(bpftool -j map show pinned $P | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/')",
                "bpftool -j map show id $id",
                "bpftool -j map list | tr -d '\\n'; echo",
                "bpftool map show id $id",
                "bpftool map freeze id $id",
                "! bpftool map update id $id key 1 0 0 0 0 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2> /dev/null",
            ],
        );
        let mut lines = said.lines();
        let pinned: Value = serde_json::from_str(lines.next().expect("a line")).expect("JSON");
        let by_id: Value = serde_json::from_str(lines.next().expect("a line")).expect("JSON");
        let all: Value = serde_json::from_str(lines.next().expect("a line")).expect("JSON");
        let text: Vec<&str> = lines.collect();
        assert_eq!(pinned, by_id, "{mode}");
        let listed = all.as_array().into_iter().flatten();
        let listed: Vec<_> = listed.filter(|map| map["id"] == pinned["id"]).collect();
        assert_eq!(listed, [&pinned], "{mode}");
        assert_eq!(pinned["type"], "lru_hash");
        assert_eq!(pinned["name"], "shown");
        assert_eq!(pinned["bytes_key"], 8);
        assert_eq!(pinned["bytes_value"], 16);
        assert_eq!(pinned["max_entries"], 100);
        assert_eq!(pinned["dev"]["ifname"], "offmap0", "{mode}: {said}");
        assert!(pinned["dev"]["ns_inode"].as_u64() > Some(0));
        assert!(text[0].contains("offloaded_to offmap0"), "{mode}: {said}");
    }
}

/// Every type that a NIC of ours has and bpftool can fill.
#[test]
fn types() {
    if missing() {
        return;
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let said = script(
            mode,
            &[],
            &[
                "bpftool map create $P-a type array key 4 value 8 entries 3 name a dev offmap0",
                "bpftool map update pinned $P-a key 1 0 0 0 value 7 0 0 0 0 0 0 0",
                "bpftool -j map dump pinned $P-a",
                "bpftool map create $P-l type lpm_trie key 8 value 4 entries 9 name l flags 1 dev offmap0",
                "bpftool map update pinned $P-l key 8 0 0 0 10 0 0 0 value 1 0 0 0",
                "bpftool map update pinned $P-l key 24 0 0 0 10 1 2 0 value 2 0 0 0",
                "bpftool -j map lookup pinned $P-l key 32 0 0 0 10 1 2 3",
                "bpftool map create $P-q type queue value 4 entries 2 name q dev offmap0",
                "bpftool map push pinned $P-q value 5 0 0 0",
                "bpftool map enqueue pinned $P-q value 6 0 0 0",
                "! bpftool map push pinned $P-q value 7 0 0 0 > /dev/null 2>&1",
                "bpftool -j map peek pinned $P-q",
                "bpftool -j map dequeue pinned $P-q",
                "bpftool -j map pop pinned $P-q",
                "bpftool map create $P-p type percpu_array key 4 value 8 entries 1 name p dev offmap0",
                "bpftool map update pinned $P-p key 0 0 0 0 value 9 0 0 0 0 0 0 0",
                "bpftool -j map lookup pinned $P-p key 0 0 0 0",
            ],
        );
        let lines = json_lines(&said);
        assert_eq!(lines[0].as_array().map(Vec::len), Some(3), "{mode}: {said}");
        assert_eq!(lines[0][1]["value"][0], "0x07");
        assert_eq!(lines[1]["value"][0], "0x02", "{mode}: {said}");
        assert_eq!(lines[2]["value"][0], "0x05", "{mode}: {said}");
        assert_eq!(lines[3]["value"][0], "0x05", "{mode}: {said}");
        assert_eq!(lines[4]["value"][0], "0x06", "{mode}: {said}");
        let cpus = lines[5]["values"].as_array().expect("values by CPU");
        assert!(
            cpus.iter().all(|cpu| cpu["value"][0] == "0x09"),
            "{mode}: {said}"
        );
    }
}

#[test]
fn the_feature_probe_finds_an_offload_device() {
    if missing() {
        return;
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let said = script(
            mode,
            &["--quiet"],
            &["bpftool -j feature probe dev offmap0"],
        );
        let probe: Value = serde_json::from_str(&said).expect("JSON");
        let types = &probe["map_types"];
        assert_eq!(types["have_hash_map_type"], true, "{mode}: {said}");
        assert_eq!(types["have_array_map_type"], true, "{mode}: {said}");
    }
}

/// A map whose creator gave its types: the dump is in those.
#[test]
fn a_dump_by_types() {
    if missing() || skipped("kernel") {
        return;
    }
    let (Some(program), Some(object)) = (crate::programs::libbpf(), crate::programs::object())
    else {
        return;
    };
    let said = script(
        "kernel",
        &[],
        &[
            &format!(
                "{} offmap0 $P-table {object} $P-typed > /dev/null 2> /dev/null",
                program.display()
            ),
            "bpftool map update pinned $P-typed key 1 2 3 4 5 6 value 9 0 0 0 0 0 0 0",
            "bpftool -j map show pinned $P-typed",
            "bpftool -j map dump pinned $P-typed",
        ],
    );
    let lines = json_lines(&said);
    assert_eq!(lines[0]["dev"]["ifname"], "offmap0", "{said}");
    assert!(lines[0]["btf_id"].as_u64() > Some(0), "{said}");
    let formatted = &lines[1][0]["formatted"];
    assert_eq!(
        formatted["key"],
        json!({"addr": [1, 2, 3, 4, 5, 6]}),
        "{said}"
    );
    assert_eq!(formatted["values"][0]["value"], 9, "{said}");
}
