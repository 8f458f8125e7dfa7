//! Timing profiles from files: the built-in ones, and what is wrong with others.

use offmap_model::profile::{ASSUMED, ProfileFileError, built_in, find, parse};

const GOOD: &str = include_str!("../../../firmware-model/timing/nfp6000.toml");

#[test]
fn the_built_in_ones_are_good_and_each_figure_has_a_source() {
    let mut names = Vec::new();
    for name in built_in() {
        let file = find(name).unwrap();
        assert_eq!(file.profile.name, name);
        for figure in &file.figures {
            let known = figure.source == ASSUMED || file.sources.contains_key(&figure.source);
            assert!(known, "{name}: {figure:?}");
            assert!(figure.source != ASSUMED || !figure.note.is_empty());
        }
        for source in file.sources.keys() {
            let cited = file.figures.iter().any(|figure| figure.source == *source);
            assert!(cited, "{name}: {source} is cited by no figure");
        }
        names.push(name);
    }
    assert_eq!(names, ["nfp6000", "pcie5x16"]);
}

/// The line and the sentence about a profile in which `from` is `to`.
fn fault(from: &str, to: &str) -> (usize, String) {
    assert!(GOOD.contains(from), "{from}");
    match parse("x.toml", &GOOD.replacen(from, to, 1)) {
        Err(ProfileFileError::Invalid { line, reason, path }) => {
            assert_eq!(path, "x.toml");
            (line, reason)
        }
        other => panic!("{from} as {to}: {other:?}"),
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let line_of = |text: &str| 1 + GOOD[..GOOD.find(text).unwrap()].matches('\n').count();
    for (from, to, says) in [
        (
            "format = 1",
            "format = 2",
            "format 2: this version reads format 1",
        ),
        ("name = \"nfp6000\"", "name = \"NFP\"", "a name has 1 to 32"),
        (
            "lanes = { value = 8,",
            "lanes = { value = 3,",
            "link.lanes is 3; it is 1, 2, 4, 8 or 16",
        ),
        (
            "lanes = { value = 8,",
            "lanes = { value = 800,",
            "which is too large",
        ),
        (
            "max_read_request = { value = 512",
            "max_read_request = { value = 128",
            "a completion answers one request",
        ),
        (
            "ecrc = { value = false",
            "ecrc = { value = 0",
            "true or false is expected",
        ),
        (
            "read_ps = { value = 471_735",
            "read_ps = { value = true",
            "a number is expected",
        ),
        (
            "read_ps = { value = 471_735",
            "read_ps = { value = -1",
            "it is not negative",
        ),
        (
            "read_ps = { value = 471_735",
            "read_ps = { value = 1_000_000_000_001",
            "host.read is 1000000000001; it is at most a second",
        ),
        (
            "engines = { value = 8",
            "engines = { value = 0",
            "device.engines is 0; it is from 1 to 1,024",
        ),
        (
            "size_bytes = { value = 2_097_152",
            "size_bytes = { value = 2_097_153",
            "tier.emem.cache.size_bytes is 2097153; it is a power of two",
        ),
        (
            "clock_mhz = { value = 1200, source = \"data\"",
            "clock_mhz = { value = 1200, source = \"hearsay\"",
            "source \"hearsay\" is neither \"assumed\" nor in [sources], which has data, model, paper",
        ),
        (
            "clock_mhz = {",
            "clock_khz = {",
            "unknown field `clock_khz`",
        ),
    ] {
        let (line, reason) = fault(from, to);
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
        assert_eq!(line, line_of(from), "{reason}");
    }
    let (_, reason) = fault("name = \"ctm\"", "name = \"cls\"");
    assert!(reason.contains("a name that no other tier has"), "{reason}");
    let (_, reason) = fault(
        ", note = \"a queue controller's event, at about 60 cycles\"",
        "",
    );
    assert!(
        reason.contains("device.doorbell: an assumed figure has a note"),
        "{reason}"
    );
}

#[test]
fn names_and_paths_that_there_are_not() {
    let unknown = find("nfp7000").unwrap_err().to_string();
    assert_eq!(
        unknown,
        "\"nfp7000\" is no built-in timing profile (they are nfp6000, pcie5x16) and no file"
    );
    assert!(matches!(
        find("./nowhere.toml"),
        Err(ProfileFileError::Read { .. })
    ));
    let long = format!("{GOOD}#{}", "x".repeat(70_000));
    let reason = parse("long", &long).unwrap_err().to_string();
    assert!(reason.contains("more than 65536 bytes"), "{reason}");
}
