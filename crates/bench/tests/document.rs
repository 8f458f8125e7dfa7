//! The document: its names, its JSON, its page, and runs held against each other.

use offmap_bench::baseline::compare;
use offmap_bench::blocks::{Amount, median};
use offmap_bench::plan::Sizes;
use offmap_bench::ratios::{Bar, NAMED};
use offmap_bench::report::Document;
use offmap_bench::sides::BackEnd;
use offmap_bench::{Config, Progress, html, run, table};

/// Counts what it is told.
#[derive(Default)]
struct Heard {
    turns: u64,
    of: u64,
    groups: Vec<String>,
}

impl Progress for Heard {
    fn begin(&mut self, turns: u64) {
        self.of = turns;
    }

    fn group(&mut self, name: &str) {
        self.groups.push(name.to_owned());
    }

    fn turn(&mut self) {
        self.turns += 1;
    }
}

fn config(only: &[&str]) -> Config {
    Config {
        sizes: Sizes {
            entries: 1000,
            key_size: 8,
            value_size: 64,
            processors: 2,
            device: false,
            quick: true,
        },
        amount: Amount {
            blocks: 5,
            calls: 20,
        },
        repetitions: 2,
        seed: 1,
        only: only.iter().map(|name| (*name).to_owned()).collect(),
        nic: None,
        device: None,
        sequences: Vec::new(),
        planted: None,
    }
}

fn document(only: &[&str]) -> Document {
    run(&config(only), &mut Heard::default()).expect("a run")
}

#[test]
fn the_ratios_that_were_promised_are_there_by_name() {
    let document = document(&["lookup"]);
    for name in [
        "firmware_lookup_vs_hashbrown",
        "inline_lookup_vs_hashbrown",
        "threaded_lookup_vs_core_rtt",
        "pipelined_vs_limit",
        "batch_lookup_vs_direct",
        "batch_update_vs_hashbrown",
        "dump_vs_kernel_batch",
        "mirror_lookup_vs_hashbrown",
        "vfio_user_lookup_vs_threaded",
        "growth_10m_vs_hashbrown",
        "inline_lookup_vs_kernel_syscall",
        "mirror_lookup_vs_kernel_syscall",
    ] {
        let value = document
            .ratios
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not there"));
        let detail = document
            .ratio_details
            .iter()
            .find(|d| d.name == name)
            .expect(name);
        assert_eq!(detail.value, *value);
        assert_eq!(
            value.is_none(),
            detail.reason.is_some(),
            "{name}: {:?}",
            detail.reason
        );
    }
    assert!(document.ratios["firmware_lookup_vs_hashbrown"].is_some());
    assert!(document.ratios["mirror_lookup_vs_hashbrown"].is_none());
    assert_eq!(document.ratios.len(), NAMED.len());
}

#[test]
fn the_json_is_read_as_it_was_written_and_has_the_fields_of_a_row() {
    let document = document(&["lookup"]);
    let json = serde_json::to_string(&document).expect("JSON");
    let read: Document = serde_json::from_str(&json).expect("the same");
    assert_eq!(read.rows.len(), document.rows.len());
    for (name, value) in &document.ratios {
        // The last bit of a number may be lost on the way.
        match (value, read.ratios[name]) {
            (None, None) => {}
            (Some(a), Some(b)) => assert!((a / b - 1.0).abs() < 1e-12, "{name}: {a}, {b}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    for row in value["rows"].as_array().expect("rows") {
        for field in [
            "backend",
            "map_type",
            "op",
            "key_size",
            "value_size",
            "entries",
            "batch",
            "depth",
            "threads",
            "ns_per_op",
            "p50_ns",
            "p99_ns",
            "ops_per_s",
            "modelled_ns",
        ] {
            assert!(row.get(field).is_some(), "{field} of {row}");
        }
        let there = !row["ns_per_op"].is_null();
        assert_eq!(there, row["reason"].is_null(), "{row}");
        if there {
            assert!(row["p50_ns"].as_u64() <= row["p99_ns"].as_u64(), "{row}");
        }
    }
}

#[test]
fn progress_ends_where_it_said() {
    let mut heard = Heard::default();
    run(&config(&["lookup", "lookup_zipf"]), &mut heard).expect("a run");
    assert_eq!((heard.turns, heard.of), (20, 20));
    assert_eq!(
        heard.groups,
        ["lookup", "lookup_zipf", "lookup", "lookup_zipf"]
    );
}

#[test]
fn the_page_has_what_the_document_has_and_nothing_of_it_is_markup() {
    let mut document = document(&["lookup_calls", "mix"]);
    document.machine.cpu = "<script>alert('cpu & co')</script>".to_owned();
    let page = html::page(&document);
    assert!(!page.contains("<script"), "markup from a name");
    assert!(page.contains("&lt;script&gt;alert(&#39;cpu &amp; co&#39;)"));
    assert!(page.contains("Nine lookups, one update"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(
        !page.contains("NaN") && !page.contains("inf"),
        "a figure that is none"
    );
    assert!(!page.contains("http"), "it is self-contained");
    for sentence in &document.verdict {
        let escaped = sentence.replace('\'', "&#39;");
        assert!(page.contains(&escaped), "{sentence}");
    }
    let text = table::text(&document);
    assert!(text.contains("lookup_calls: hash lookup, 8 B → 64 B, 1,000 entries"));
}

/// A document whose rows' ratios are those of `of`, times what `factor` says of each.
fn scaled(of: &Document, factor: impl Fn(BackEnd, usize, usize) -> f64) -> Document {
    let mut document = of.clone();
    for (at, row) in document.rows.iter_mut().enumerate() {
        let yardstick = row.relative.iter().all(|r| *r == 1.0);
        for (run, relative) in row.relative.iter_mut().enumerate().filter(|_| !yardstick) {
            *relative *= factor(row.backend, at, run);
        }
    }
    document
}

/// Rows with made-up ratios: three repetitions that differ by 2 %.
fn made_up() -> Document {
    let mut document = document(&[
        "lookup",
        "lookup_zipf",
        "batch_sweep",
        "miss",
        "mix",
        "next",
    ]);
    for row in &mut document.rows {
        if row.reason.is_none() && !row.relative.iter().all(|r| *r == 1.0) {
            row.relative = vec![3.0, 3.03, 2.97];
        }
    }
    document
}

#[test]
fn a_slowdown_of_one_back_end_is_found_and_named() {
    let before = made_up();
    let after = scaled(&before, |back_end, _, _| match back_end {
        BackEnd::Inline => 1.10,
        _ => 1.0,
    });
    let comparison = compare(&before, &after);
    let alarms: Vec<&str> = comparison.alarms().map(|a| a.family.as_str()).collect();
    assert!(alarms.contains(&"inline"), "{comparison:?}");
    assert!(
        alarms.iter().all(|family| family.starts_with("inline")),
        "{alarms:?}"
    );
    let inline = comparison
        .changes
        .iter()
        .find(|c| c.family == "inline")
        .expect("a family");
    assert!((inline.change - 0.10).abs() < 0.001, "{inline:?}");
    assert!(
        comparison.text().contains("SLOWER"),
        "{}",
        comparison.text()
    );
}

#[test]
fn noise_is_no_alarm() {
    let before = made_up();
    assert_eq!(compare(&before, &before).alarms().count(), 0);
    // Each row off by up to 4 %, this way and that.
    let after = scaled(&before, |_, at, run| {
        let step = (at * 7 + run * 3) % 9;
        0.96 + step as f64 * 0.01
    });
    let comparison = compare(&before, &after);
    assert_eq!(comparison.alarms().count(), 0, "{comparison:?}");
}

#[test]
fn another_mode_of_the_processors_is_no_slowdown() {
    let mut before = made_up();
    for back_end in [BackEnd::CoreRtt, BackEnd::Threaded] {
        let mut row = before.rows[0].clone();
        row.group = "lookup_cores".to_owned();
        row.backend = back_end;
        row.ns_per_op = Some(110.0);
        row.relative = match back_end {
            BackEnd::CoreRtt => vec![1.0, 1.0, 1.0],
            _ => vec![2.0, 2.02, 1.98],
        };
        row.reason = None;
        before.rows.push(row);
    }
    let slower = |rtt: f64| {
        let mut after = scaled(&before, |back_end, _, _| match back_end {
            BackEnd::Threaded => 1.5,
            _ => 1.0,
        });
        let rows = after.rows.iter_mut();
        for row in rows.filter(|row| row.backend == BackEnd::CoreRtt) {
            row.ns_per_op = Some(rtt);
        }
        compare(&before, &after)
    };
    let same = slower(112.0);
    assert!(
        same.alarms().any(|alarm| alarm.family == "threaded"),
        "{same:?}"
    );
    let other = slower(400.0);
    assert!(
        other
            .changes
            .iter()
            .all(|change| !change.family.starts_with("threaded"))
    );
    assert!(
        other
            .warnings
            .iter()
            .any(|w| w.contains("another processor")),
        "{other:?}"
    );
}

#[test]
fn runs_that_cannot_be_compared_say_so() {
    let before = made_up();
    let mut after = before.clone();
    after.machine.cpu = "another".to_owned();
    after.rows.truncate(2);
    let comparison = compare(&before, &after);
    assert!(
        comparison
            .warnings
            .iter()
            .any(|w| w.contains("another machine"))
    );
    assert_eq!(comparison.unmatched, before.rows.len() - 2);
}

#[test]
fn bars_and_medians() {
    assert_eq!(Bar::AtMost(1.5).holds(1.5), Some(true));
    assert_eq!(Bar::AtMost(1.5).holds(1.6), Some(false));
    assert_eq!(Bar::AtLeast(8.0).holds(7.9), Some(false));
    assert_eq!(Bar::None.holds(7.9), None);
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median(&[]).is_nan());
}
