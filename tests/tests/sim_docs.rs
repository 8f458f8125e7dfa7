//! `docs/simulation.md` explains every check, event and action that a report or a trace can name, and
//! every planted bug, and no other.

use offmap_sim::{ACTIONS, Check, Event, Mutation};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What stands in backquotes in a column of the table whose heading begins with this cell, sorted;
/// twice where it is there twice.
fn named(heading: &str, column: usize) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/simulation.md");
    let text = fs::read_to_string(path).expect("the page is there");
    let heading = format!("| {heading} |");
    let rows = text.lines().skip_while(|line| !line.starts_with(&heading));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let mut names = Vec::new();
    for row in rows {
        let cell = row.split('|').nth(column + 1).expect("rows have all cells");
        names.extend(cell.split('`').skip(1).step_by(2).map(String::from));
    }
    names.sort();
    names
}

#[track_caller]
fn same(what: &str, explained: &[String], known: impl Iterator<Item = String>) {
    let mut known: Vec<String> = known.collect();
    known.sort();
    let of = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    let (told, there) = (of(explained), of(&known));
    let missing: Vec<_> = there.difference(&told).collect();
    let unknown: Vec<_> = told.difference(&there).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{what}: not explained {missing:?}, not there {unknown:?}"
    );
    assert_eq!(explained, known, "{what}: each once");
}

#[test]
fn every_check_is_explained() {
    let known = Check::ALL.iter().map(|check| check.name().into());
    same("checks", &named("check", 0), known);
}

#[test]
fn every_event_is_explained() {
    let known = Event::ALL.iter().map(|event| event.name().into());
    same("events", &named("event", 0), known);
}

#[test]
fn every_action_is_explained() {
    let known = ACTIONS.iter().map(|action| (*action).into());
    same("actions", &named("action", 0), known);
}

#[test]
fn every_planted_bug_is_named() {
    let known = Mutation::ALL.iter().map(|bug| format!("{bug:?}"));
    same("planted bugs", &named("of", 1), known);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/simulation.md");
    let text = fs::read_to_string(path).expect("the page is there");
    let count = format!("`Mutation` plants {} bugs", Mutation::ALL.len());
    assert!(text.contains(&count), "the page says how many: {count}");
}
