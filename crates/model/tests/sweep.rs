//! Sweeps: the same result however they are divided, and sentences for what cannot be.

use offmap_model::report::{Document, MergeError, merge};
use offmap_model::sweep::{Axis, Shard, Sweep, SweepError};
use offmap_model::{profile, svg, table, workload};

/// A small sweep of a workload, in which every point takes milliseconds.
fn sweep(name: &str, axes: &[&str]) -> Sweep {
    let mut workload = workload::find(name).unwrap();
    workload.operations = 2000;
    workload.map.max_entries = workload.map.max_entries.min(4096);
    Sweep {
        profile: profile::find("pcie5x16").unwrap().profile,
        profile_digest: "00".into(),
        workload,
        axes: axes.iter().map(|text| Axis::parse(text).unwrap()).collect(),
        seed: 1,
    }
}

fn run(sweep: &Sweep, shard: Option<Shard>, jobs: usize) -> Document {
    sweep.run(shard, jobs, &|_| ()).unwrap()
}

const AXES: &[&str] = &["depth=1,4,16", "value_size=8,256", "pcie=gen3x8,gen5x16"];

#[test]
fn parts_put_together_are_what_one_run_gives_byte_for_byte() {
    let sweep = sweep("connections", AXES);
    let whole = run(&sweep, None, 1).json().unwrap();
    assert_eq!(whole, run(&sweep, None, 1).json().unwrap(), "a rerun");
    assert_eq!(whole, run(&sweep, None, 3).json().unwrap(), "three threads");
    for of in [1, 2, 5, 13] {
        let mut parts: Vec<(String, Document)> = Vec::new();
        for part in (1..=of).rev() {
            let path = format!("part-{part}");
            let text = run(&sweep, Some(Shard { part, of }), 1).json().unwrap();
            let read = Document::parse(&path, &text).unwrap();
            parts.push((path, read));
        }
        let merged = merge(parts).unwrap().json().unwrap();
        assert_eq!(merged, whole, "{of} parts");
    }
}

/// A point has the same result whatever else is swept beside it.
#[test]
fn a_points_seed_is_its_own() {
    let all = run(&sweep("routes", &["depth=1,4,16"]), None, 1);
    let one = run(&sweep("routes", &["depth=4"]), None, 1);
    assert_eq!(all.points[1].seed, one.points[0].seed);
    assert_eq!(all.points[1].result, one.points[0].result);
    assert_ne!(all.points[0].seed, all.points[1].seed);
    let mut other = sweep("routes", &["depth=4"]);
    other.seed = 2;
    assert_ne!(run(&other, None, 1).points[0].result, one.points[0].result);
}

#[test]
fn what_are_no_parts_of_one_sweep_is_refused() {
    let one = sweep("routes", &["depth=1,2,4"]);
    let part = |sweep: &Sweep, part, of| {
        let document = run(sweep, Some(Shard { part, of }), 1);
        (format!("{part}-of-{of}"), document)
    };
    let said = |parts| merge(parts).unwrap_err().to_string();
    let (a, b) = (part(&one, 1, 2), part(&one, 2, 2));
    assert!(merge(vec![b.clone(), a.clone()]).is_ok());
    assert_eq!(merge(Vec::new()), Err(MergeError::Nothing));
    assert_eq!(said(vec![a.clone()]), "of 2 parts 1 are missing: 2");
    assert_eq!(
        said(vec![a.clone(), a.clone(), b.clone()]),
        "part 1/2 is there twice: 1-of-2 and 1-of-2"
    );
    let whole = ("whole".to_owned(), run(&one, None, 1));
    assert!(said(vec![a.clone(), whole]).contains("whole is a whole sweep"));
    let mut seeded = one.clone();
    seeded.seed = 9;
    let mut axed = one.clone();
    axed.axes[0].values[2] = "8".into();
    let mut worked = one.clone();
    worked.workload.host.queues = 2;
    let mut timed = one.clone();
    timed.profile_digest = "11".into();
    for (other, field) in [
        (seeded, "seed"),
        (axed, "axes"),
        (worked, "workload"),
        (timed, "timing"),
    ] {
        let text = said(vec![a.clone(), part(&other, 2, 2)]);
        assert!(
            text.contains("different sweeps") && text.contains(field),
            "{text}"
        );
    }
    let text = said(vec![a.clone(), part(&one, 2, 3)]);
    assert!(text.contains("the number of parts"), "{text}");
    let mut cut = a.clone();
    cut.1.points.pop();
    assert!(said(vec![cut, b.clone()]).contains("cut off"));
    let mut numbered = a;
    numbered.1.shard = Some((3, 2));
    assert!(said(vec![numbered, b]).contains("cut off or changed"));
    let text = Document::parse("x.json", "{}").unwrap_err().to_string();
    assert!(
        text.starts_with("x.json: it is no output of offmap model"),
        "{text}"
    );
}

/// Points that the hardware does not admit say why, and the others are there.
#[test]
fn what_does_not_fit_is_said_at_its_point() {
    let document = run(&sweep("routes", &["placement=sram,dram,nowhere"]), None, 1);
    let refused: Vec<bool> = document
        .points
        .iter()
        .map(|p| p.refused.is_some())
        .collect();
    assert_eq!(refused, [false, false, true]);
    let reason = document.points[2].refused.clone().unwrap();
    assert!(
        reason.contains("\"nowhere\"") && reason.contains("sram, dram"),
        "{reason}"
    );
    let mut large = sweep("routes", &["type=hash"]);
    large.workload.map.max_entries = 2_000_000_000;
    large.workload.map.prefixes.clear();
    let reason = run(&large, None, 1).points[0].refused.clone().unwrap();
    assert!(reason.contains("does not fit"), "{reason}");
    let text = table::text(&document);
    assert!(text.contains("refused: placement=nowhere"), "{text}");
}

#[test]
fn a_sweep_that_cannot_be_is_refused_before_it_runs() {
    let said = |axes: &[&str]| match sweep("routes", axes).check() {
        Err(error) => error.to_string(),
        Ok(points) => panic!("{axes:?} has {points} points"),
    };
    assert!(said(&["depth=0,1"]).contains("depth=0: host.depth is 0"));
    assert!(said(&["depth=1", "depth=2"]).contains("given twice"));
    assert!(said(&["mpps=1"]).contains("this one has none"));
    assert!(said(&["depth=x"]).contains("a whole number"));
    assert!(said(&["type=queue"]).contains("lpm_trie"));
    let values: Vec<String> = (1..=400).map(|n| n.to_string()).collect();
    let (depths, queues) = (
        format!("depth={}", values.join(",")),
        format!("queues={}", values.join(",")),
    );
    assert!(said(&[&depths, &queues]).contains("160000 points"));
    assert!(matches!(
        Axis::parse("height=1"),
        Err(SweepError::Axis { .. })
    ));
    // A link that cannot be is the hardware's affair.
    let document = run(&sweep("routes", &["pcie=gen7x3"]), None, 1);
    assert!(document.points[0].refused.is_some());
}

#[test]
fn every_built_in_workload_runs_on_every_built_in_profile() {
    for timing in profile::built_in() {
        for (name, _) in workload::built_in() {
            let mut sweep = sweep(name, &[]);
            sweep.profile = profile::find(timing).unwrap().profile;
            sweep
                .workload
                .map
                .prefixes
                .retain(|(length, _)| *length >= 16);
            let document = run(&sweep, None, 1);
            let result = document.points[0].result.as_ref().unwrap();
            assert!(result.commands_per_s > 0, "{name} on {timing}");
            assert!(
                result.latency.unwrap().min_ps > 500_000,
                "{name} on {timing}"
            );
        }
    }
}

/// More lanes, and the same lookups in larger commands, do not make anything slower; a slower tier does.
#[test]
fn directions_are_right() {
    let results = |axes: &[&str]| {
        let mut sweep = sweep("routes", axes);
        sweep.workload.host.depth = 32;
        let document = run(&sweep, None, 1);
        let results = document
            .points
            .into_iter()
            .map(|point| point.result.unwrap());
        results.collect::<Vec<_>>()
    };
    let of = results(&["placement=sram,dram"]);
    assert!(of[0].latency.unwrap().mean_ps < of[1].latency.unwrap().mean_ps);
    let of = results(&["engines=1,2,4,8"]);
    assert!(
        of.windows(2)
            .all(|w| w[0].commands_per_s < w[1].commands_per_s)
    );
    assert_eq!(of[0].bottleneck.name, "engines");
    let of = results(&["queues=1,2,4"]);
    assert!(
        of.windows(2)
            .all(|w| w[0].commands_per_s < w[1].commands_per_s)
    );
    let of = results(&["batch=1,8,64"]);
    assert!(
        of.windows(2)
            .all(|w| w[0].elements_per_s < w[1].elements_per_s)
    );
}

#[test]
fn plots_are_whole_and_show_each_axis() {
    let document = run(&sweep("connections", AXES), None, 1);
    let plots = svg::plots(&document).unwrap();
    let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
    for axis in ["depth", "value_size", "pcie"] {
        for plot in [
            "latency",
            "packet-latency",
            "throughput",
            "packets",
            "resources",
        ] {
            let name = format!("{plot}-{axis}.svg");
            assert!(names.contains(&name.as_str()), "{name} in {names:?}");
        }
    }
    for (name, text) in &plots {
        assert!(
            text.starts_with("<svg") && text.trim_end().ends_with("</svg>"),
            "{name}"
        );
        assert!(!text.contains("NaN"), "{name}");
    }
    let (_, latency) = &plots[0];
    assert!(
        latency.contains("p50, value_size=8 pcie=gen3x8"),
        "{latency}"
    );
    assert!(
        svg::plots(&run(&sweep("routes", &[]), None, 1))
            .unwrap()
            .is_empty()
    );
}
