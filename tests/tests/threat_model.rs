//! `docs/threat-model.md` and `docs/ordering.md` name a test in each line, and each test that they
//! name is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// The ordering rules of `docs/abi.md` §10.
const RULES: [&str; 18] = [
    "S1", "S2", "S3", "S4", "C1", "C2", "C3", "N1", "N2", "N3", "N4", "B1", "B2", "B3", "R1", "R2",
    "R3", "R4",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(root().join(file)).map_err(|e| format!("{file}: {e}"))
}

/// The lines of the tables whose first row has `last` as its last cell: their cells.
fn rows(text: &str, last: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut wanted = None;
    for line in text.lines() {
        let Some(line) = line
            .trim()
            .strip_prefix('|')
            .and_then(|l| l.strip_suffix('|'))
        else {
            wanted = None;
            continue;
        };
        let cells: Vec<String> = line.split('|').map(|c| c.trim().to_string()).collect();
        match wanted {
            None => wanted = Some(cells.last().is_some_and(|cell| cell == last)),
            Some(true) if !line.starts_with("---") => rows.push(cells),
            Some(_) => {}
        }
    }
    rows
}

/// What stands in backquotes in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether an attribute keeps a test from running: `ignore`, with a reason or without, or under a
/// condition.
fn ignores(attr: &syn::Attribute) -> bool {
    let words = |tokens: String| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        tokens.split(|c| !is_word(c)).any(|word| word == "ignore")
    };
    attr.path().is_ident("ignore")
        || attr.path().is_ident("cfg_attr")
            && matches!(&attr.meta, syn::Meta::List(list) if words(list.tokens.to_string()))
}

/// Functions of a file that are tests, and are run.
#[derive(Default)]
struct Tests(BTreeSet<String>);

impl<'a> Visit<'a> for Tests {
    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        let is_test = item.attrs.iter().any(|attr| attr.path().is_ident("test"));
        if is_test && !item.attrs.iter().any(ignores) {
            self.0.insert(item.sig.ident.to_string());
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        // The tests of proptest stand in its macro.
        if item
            .path
            .segments
            .last()
            .is_some_and(|s| s.ident == "proptest")
        {
            let text = item.tokens.to_string();
            let words: Vec<&str> = text.split_whitespace().collect();
            let mut ignored = false;
            for pair in words.windows(2) {
                ignored |= pair[0].trim_matches(['#', '[', ']']) == "ignore";
                if pair[0] == "fn" {
                    let name = pair[1].split('(').next().unwrap_or_default();
                    if !std::mem::take(&mut ignored) {
                        self.0.insert(name.to_string());
                    }
                }
            }
        }
    }
}

/// The tests of a file. A case of the conformance suite is one if the suite lists it.
fn tests_of(file: &str) -> Result<BTreeSet<String>, String> {
    let text = read(file)?;
    if file.starts_with("crates/conformance/src/") {
        let suite = read("crates/conformance/src/lib.rs")?;
        let listed: BTreeSet<&str> = suite
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        let public = text.lines().filter_map(|l| l.strip_prefix("pub fn "));
        let names = public.map(|l| l.split(['<', '(']).next().unwrap_or_default());
        let listed = names.filter(|name| listed.contains(name));
        return Ok(listed.map(str::to_string).collect());
    }
    let parsed = syn::parse_file(&text).map_err(|e| format!("{file}: {e}"))?;
    let mut tests = Tests::default();
    tests.visit_file(&parsed);
    Ok(tests.0)
}

/// Looks names of tests up, file by file.
#[derive(Default)]
struct Names {
    files: BTreeMap<String, Result<BTreeSet<String>, String>>,
    found: usize,
}

impl Names {
    /// What is wrong with a name, if something is.
    fn fault(&mut self, name: &str) -> Option<String> {
        if let Some(mutation) = name.strip_prefix("Mutation::") {
            let text = read("crates/sim/src/mutation.rs").unwrap_or_default();
            let there = text.lines().any(|l| l.trim() == format!("{mutation},"));
            self.found += usize::from(there);
            return (!there).then(|| format!("there is no {name}"));
        }
        let Some((file, test)) = name.split_once(".rs::") else {
            return Some(format!("`{name}` is no `file.rs::test`"));
        };
        let file = format!("{file}.rs");
        let tests = self
            .files
            .entry(file.clone())
            .or_insert_with(|| tests_of(&file));
        match tests {
            Ok(tests) if tests.contains(test) => {
                self.found += 1;
                None
            }
            Ok(_) => Some(format!("{file} has no test {test}")),
            Err(why) => Some(why.clone()),
        }
    }

    /// What is wrong with a cell of tests; it names one at least, or says why not.
    fn faults(&mut self, cell: &str, may_lack: bool) -> Vec<String> {
        let reason = cell.strip_prefix('–').map(str::trim);
        if let Some(reason) = reason.filter(|_| may_lack) {
            return match reason.len() {
                5.. => Vec::new(),
                _ => vec![format!("\"{cell}\" gives no reason")],
            };
        }
        let names: Vec<&str> = quoted(cell);
        if names.is_empty() {
            return vec![format!("no test: \"{cell}\"")];
        }
        names.iter().filter_map(|name| self.fault(name)).collect()
    }
}

#[track_caller]
fn none(page: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{page}:\n  {}", faults.join("\n  "));
}

#[test]
fn every_line_of_the_threat_model_names_its_test() {
    let page = "docs/threat-model.md";
    let text = read(page).expect("the page is there");
    let mut names = Names::default();
    let mut faults = Vec::new();
    let rows = rows(&text, "shown by");
    for row in &rows {
        let cell = row.last().map_or("", String::as_str);
        let line = row.first().map_or("", String::as_str);
        let found = names.faults(cell, false);
        faults.extend(found.into_iter().map(|fault| format!("{line}: {fault}")));
        if row.len() != 3 || row[..2].iter().any(String::is_empty) {
            faults.push(format!(
                "{line}: not what is done, what is promised, and by what"
            ));
        }
    }
    none(page, &faults);
    assert!(rows.len() > 40, "{} lines", rows.len());
    assert!(names.found > 60, "{} tests", names.found);
}

#[test]
fn every_ordering_rule_names_where_it_is_tried() {
    let page = "docs/ordering.md";
    let text = read(page).expect("the page is there");
    let abi = read("docs/abi.md").expect("the ABI");
    let mut names = Names::default();
    let mut faults = Vec::new();
    let rows = rows(&text, "on each transport");
    for rule in RULES {
        assert!(
            abi.contains(&format!("* **{rule}.**")),
            "the ABI has {rule}"
        );
        let Some(row) = rows.iter().find(|row| row[0] == rule) else {
            faults.push(format!("{rule} is missing"));
            continue;
        };
        for cell in &row[1..] {
            let found = names.faults(cell, true);
            faults.extend(found.into_iter().map(|fault| format!("{rule}: {fault}")));
        }
        // Outside of loom and the simulation there is something for each.
        faults.extend(names.faults(&row[row.len() - 1], false));
    }
    none(page, &faults);
    // And the ABI has no rule that the list above leaves out.
    let in_abi = abi
        .lines()
        .filter(|l| l.starts_with("* **") && l.contains(".**"))
        .count();
    assert_eq!(in_abi, RULES.len(), "rules in docs/abi.md");
    assert_eq!(rows.len(), RULES.len(), "lines in {page}");
}

/// A test that is not run shows nothing.
#[test]
fn an_ignored_test_is_none() {
    let text = r#"
        #[test]
        fn runs() {}
        #[test]
        #[ignore]
        fn rests() {}
        #[test]
        #[ignore = "it is slow"]
        fn rests_for_a_reason() {}
        #[test]
        #[cfg_attr(debug_assertions, ignore = "it is slow")]
        fn rests_at_times() {}
        fn is_none() {}
        proptest! {
            #[test]
            fn runs_too(x in 0..3) {}
            #[test]
            #[ignore]
            fn rests_too(x in 0..3) {}
            #[test]
            fn runs_again(x in 0..3) {}
        }
    "#;
    let mut tests = Tests::default();
    tests.visit_file(&syn::parse_file(text).expect("Rust"));
    let found: Vec<&str> = tests.0.iter().map(String::as_str).collect();
    assert_eq!(found, ["runs", "runs_again", "runs_too"]);
}

/// The test itself sees what it is there to see.
#[test]
fn a_name_that_is_wrong_is_noticed() {
    let mut names = Names::default();
    let here = "tests/tests/threat_model.rs";
    assert_eq!(
        names.fault(&format!("{here}::a_name_that_is_wrong_is_noticed")),
        None
    );
    for wrong in ["rows", "no_such_test"] {
        assert!(
            names.fault(&format!("{here}::{wrong}")).is_some(),
            "{wrong}"
        );
    }
    for wrong in ["no/such/file.rs::test", "words", "Mutation::NoSuchBug", ""] {
        assert!(names.fault(wrong).is_some(), "{wrong}");
    }
    let of_conformance = "crates/conformance/src/ordering.rs::a_reset_ends_all_access";
    assert_eq!(names.fault(of_conformance), None);
    assert!(
        names
            .fault("crates/conformance/src/host.rs::command")
            .is_some()
    );
    assert_eq!(names.faults("", false).len(), 1);
    assert_eq!(names.faults("– because loom has no clock", true).len(), 0);
    assert_eq!(names.faults("– because loom has no clock", false).len(), 1);
    let table = "| a | shown by |\n|---|---|\n| b | `x` |\n\n| c | d |\n|---|---|\n| e | f |";
    assert_eq!(rows(table, "shown by"), [["b", "`x`"]]);
}
