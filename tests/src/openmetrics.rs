//! A reader of OpenMetrics text (version 1.0) that believes nothing: written from the specification,
//! and apart from what writes the text.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a sample, sorted by name.
type Labels = BTreeMap<String, String>;

/// What a family is.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: String,
    help: bool,
    samples: Vec<(String, Labels, f64)>,
}

/// An exposition that was read.
#[derive(Debug)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads `name="value",…}` and returns the labels and what follows.
fn labels(mut text: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) {
            return Err(format!("{name:?} is no label name"));
        }
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    other => return Err(format!("a bad escape: {other:?}")),
                },
                Some((_, c)) => value.push(c),
                None => return Err("a label's value does not end".into()),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} twice"));
        }
        let rest = &rest[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => text = next,
            None => {
                let rest = rest.strip_prefix('}').ok_or("labels without an end")?;
                return Ok((labels, rest));
            }
        }
    }
}

/// The suffixes that samples of a type have.
fn suffixes(kind: &str) -> Result<&'static [&'static str], String> {
    match kind {
        "counter" => Ok(&["_total", "_created"]),
        "gauge" | "unknown" => Ok(&[""]),
        "histogram" => Ok(&["_bucket", "_count", "_sum", "_created"]),
        other => Err(format!(
            "{other:?} is no type, or none that is expected here"
        )),
    }
}

impl Exposition {
    /// Reads a whole exposition.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks, with the line.
    pub fn read(text: &str) -> Result<Self, String> {
        let body = text
            .strip_suffix("# EOF\n")
            .ok_or("it does not end with # EOF")?;
        if !body.is_empty() && !body.ends_with('\n') {
            return Err("the line before # EOF does not end".into());
        }
        let mut read = Self {
            families: BTreeMap::new(),
        };
        let mut current = String::new();
        for line in body.lines() {
            read.line(line, &mut current)
                .map_err(|what| format!("{line:?}: {what}"))?;
        }
        for (name, family) in &read.families {
            family
                .check(name)
                .map_err(|what| format!("{name}: {what}"))?;
        }
        Ok(read)
    }

    fn line(&mut self, line: &str, current: &mut String) -> Result<(), String> {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
            else {
                return Err("a comment that is no metadata".into());
            };
            if name != current {
                // Families are not interleaved.
                if self.families.contains_key(name) {
                    return Err("the family comes again".into());
                }
                current.clear();
                current.push_str(name);
            }
            let family = self.families.entry(name.to_owned()).or_default();
            if !family.samples.is_empty() {
                return Err("metadata after samples".into());
            }
            let fresh = match what {
                "HELP" => !std::mem::replace(&mut family.help, true),
                "TYPE" => std::mem::replace(&mut family.kind, rest.to_owned()).is_empty(),
                "UNIT" => std::mem::replace(&mut family.unit, rest.to_owned()).is_empty(),
                _ => return Err("a comment that is no metadata".into()),
            };
            return if fresh { Ok(()) } else { Err("twice".into()) };
        }
        let end = line.find(['{', ' ']).ok_or("no value")?;
        let (name, rest) = line.split_at(end);
        if !is_name(name) {
            return Err("no name".into());
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
        let value: f64 = value.parse().map_err(|_| "no number")?;
        let family = self.families.get_mut(current.as_str()).ok_or("no family")?;
        let suffix = name
            .strip_prefix(current.as_str())
            .ok_or("of another family")?;
        if !suffixes(&family.kind)?.contains(&suffix) {
            return Err(format!("no sample of a {}", family.kind));
        }
        let sample = (suffix.to_owned(), labels, value);
        if family
            .samples
            .iter()
            .any(|(s, l, _)| (s, l) == (&sample.0, &sample.1))
        {
            return Err("the same sample twice".into());
        }
        family.samples.push(sample);
        Ok(())
    }

    /// The value of a sample, by its whole name and all its labels.
    pub fn sample(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.families.iter().find_map(|(family, f)| {
            let suffix = name.strip_prefix(family.as_str())?;
            let mut samples = f.samples.iter();
            samples
                .find(|(s, labels, _)| s == suffix && *labels == wanted)
                .map(|(_, _, value)| *value)
        })
    }

    /// Buckets of a histogram family, of all its series.
    pub fn buckets(&self, family: &str) -> usize {
        self.families.get(family).map_or(0, |family| {
            family
                .samples
                .iter()
                .filter(|(s, _, _)| s == "_bucket")
                .count()
        })
    }
}

impl Family {
    fn check(&self, name: &str) -> Result<(), String> {
        if self.kind.is_empty() {
            return Err("no type".into());
        }
        if !self.unit.is_empty() && !name.ends_with(&format!("_{}", self.unit)) {
            return Err(format!("the name does not end with its unit {}", self.unit));
        }
        if self.kind != "gauge" && self.samples.iter().any(|(_, _, value)| *value < 0.0) {
            return Err("a count below zero".into());
        }
        if self.kind == "histogram" {
            self.check_histogram()?;
        }
        Ok(())
    }

    fn check_histogram(&self) -> Result<(), String> {
        let mut series: BTreeSet<Labels> = BTreeSet::new();
        for (_, labels, _) in &self.samples {
            let mut labels = labels.clone();
            labels.remove("le");
            series.insert(labels);
        }
        for series in series {
            let of = |suffix: &str| {
                self.samples.iter().filter_map({
                    let (suffix, series) = (suffix.to_owned(), series.clone());
                    move |(s, labels, value)| {
                        let mut rest = labels.clone();
                        let le = rest.remove("le");
                        (*s == suffix && rest == series).then_some((le, *value))
                    }
                })
            };
            let mut last = (f64::NEG_INFINITY, 0.0);
            for (le, within) in of("_bucket") {
                let le = le.ok_or("a bucket without le")?;
                let bound = match le.as_str() {
                    "+Inf" => f64::INFINITY,
                    le => le.parse().map_err(|_| format!("le {le:?} is no number"))?,
                };
                if bound <= last.0 || within < last.1 {
                    return Err(format!("buckets that do not grow, at le {le}"));
                }
                last = (bound, within);
            }
            if last.0 != f64::INFINITY {
                return Err("no bucket up to +Inf".into());
            }
            let count = of("_count").next().ok_or("no _count")?.1;
            if count != last.1 {
                return Err(format!(
                    "_count {count} is not the last bucket's {}",
                    last.1
                ));
            }
            of("_sum").next().ok_or("no _sum")?;
        }
        Ok(())
    }
}
