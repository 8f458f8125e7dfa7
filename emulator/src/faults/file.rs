//! A plan file: TOML, with every field checked and every fault given its place.

use super::plan::{FaultPlan, PlanError};
use super::rule::{Behaviour, Command, Delay, Rule, Site};
use offmap_abi::MapType;
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// The version of the format that this crate reads.
const FORMAT: u32 = 1;
/// Longest file in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Why there is no plan.
#[derive(Debug)]
pub enum FaultFileError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no TOML, or has fields or types that no plan has.
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The rule that it stands in, counted from 1, if it does.
        rule: Option<usize>,
        /// What is wrong there.
        reason: String,
    },
    /// The file's head is not usable.
    Head {
        /// The file.
        path: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A rule is not usable.
    Rule {
        /// The file.
        path: String,
        /// Which rule, which field, and what is wrong.
        error: PlanError,
    },
}

impl fmt::Display for FaultFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(f, "{path}: cannot be read: {source}"),
            Self::Syntax {
                path,
                line,
                rule,
                reason,
            } => {
                write!(f, "{path}, line {line}: ")?;
                if let Some(rule) = rule {
                    write!(f, "rule {rule}, ")?;
                }
                f.write_str(reason)
            }
            Self::Head {
                path,
                field,
                reason,
            } => write!(f, "{path}: {field}: {reason}"),
            Self::Rule { path, error } => write!(f, "{path}: {error}"),
        }
    }
}

impl std::error::Error for FaultFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Rule { error, .. } => Some(error),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    format: u32,
    #[serde(default)]
    ecc: bool,
    #[serde(default)]
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Option<String>,
    site: String,
    behaviour: String,
    queue: Option<u16>,
    opcode: Option<String>,
    map: Option<u32>,
    map_type: Option<String>,
    register: Option<u64>,
    nth: Option<u64>,
    every: Option<u64>,
    probability: Option<f64>,
    from: Option<u64>,
    to: Option<u64>,
    times: Option<u64>,
    steps: Option<u32>,
    ms: Option<u64>,
    behind: Option<u32>,
    bits: Option<u32>,
    at: Option<u32>,
    bytes: Option<u32>,
}

impl FaultPlan {
    /// Reads a plan file (`docs/faults.md`).
    ///
    /// # Errors
    ///
    /// [`FaultFileError`], with the file, and the line or the rule and the field.
    pub fn load(path: &Path) -> Result<Self, FaultFileError> {
        let shown = path.display().to_string();
        let read = || {
            let mut text = String::new();
            let mut file = File::open(path)?.take(FILE_BYTES_MAX + 1);
            file.read_to_string(&mut text)?;
            if text.len() as u64 > FILE_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("it is longer than {} KiB", FILE_BYTES_MAX >> 10),
                ));
            }
            Ok(text)
        };
        match read() {
            Ok(text) => Self::parse(&text, &shown),
            Err(source) => Err(FaultFileError::Read {
                path: shown,
                source,
            }),
        }
    }

    /// Reads a plan from the text of a file; `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`FaultPlan::load`].
    pub fn parse(text: &str, path: &str) -> Result<Self, FaultFileError> {
        let raw: RawPlan = toml::from_str(text).map_err(|e| syntax(text, path, &e))?;
        if raw.format != FORMAT {
            return Err(FaultFileError::Head {
                path: path.into(),
                field: "format",
                reason: format!("is {}: this offmap reads format {FORMAT}", raw.format),
            });
        }
        let in_rule = |error| FaultFileError::Rule {
            path: path.into(),
            error,
        };
        let mut plan = Self::new();
        if raw.ecc {
            plan = plan.with_ecc().map_err(in_rule)?;
        }
        for (raw, number) in raw.rule.iter().zip(1..) {
            let rule = build(raw).map_err(|(field, reason)| {
                in_rule(PlanError {
                    rule: number,
                    field,
                    reason,
                })
            })?;
            plan = plan.with(rule).map_err(in_rule)?;
        }
        Ok(plan)
    }
}

/// What the parser found, with its line and rule.
fn syntax(text: &str, path: &str, error: &toml::de::Error) -> FaultFileError {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..at).unwrap_or_default();
    // The line that the fault is in may itself be the rule's heading.
    let line_end = text.get(at..).and_then(|rest| rest.find('\n'));
    let through = text.get(..line_end.map_or(text.len(), |end| at + end));
    let rules = through
        .unwrap_or_default()
        .lines()
        .filter(|line| line.trim_start().starts_with("[[rule]]"))
        .count();
    FaultFileError::Syntax {
        path: path.into(),
        line: before.matches('\n').count() + 1,
        rule: (rules > 0).then_some(rules),
        reason: error.message().replace('\n', " "),
    }
}

type Wrong = (&'static str, String);

fn build(raw: &RawRule) -> Result<Rule, Wrong> {
    let site = Site::ALL.into_iter().find(|site| site.name() == raw.site);
    let Some(site) = site else {
        let names = Site::ALL.map(Site::name).join(", ");
        return Err(("site", format!("{:?} is none; they are {names}", raw.site)));
    };
    let mut rule = Rule::new(site, behaviour(raw)?);
    if let Some(name) = &raw.name {
        rule.name.clone_from(name);
    }
    if let Some(name) = &raw.opcode {
        let known = || format!("{name:?} is none; they are {}", Command::names());
        rule.command = Some(Command::find(name).ok_or_else(|| ("opcode", known()))?);
    }
    if let Some(name) = &raw.map_type {
        let found = MapType::ALL.iter().find(|t| t.name() == Some(name));
        let Some(found) = found else {
            let names: Vec<_> = MapType::ALL.iter().filter_map(|t| t.name()).collect();
            return Err((
                "map_type",
                format!("{name:?} is none; they are {}", names.join(", ")),
            ));
        };
        rule.map_type = Some(found.0);
    }
    rule.queue = raw.queue;
    rule.map = raw.map;
    rule.register = raw.register;
    rule.nth = raw.nth;
    rule.every = raw.every;
    rule.probability = raw.probability;
    rule.from = raw.from;
    rule.to = raw.to;
    rule.times = raw.times;
    Ok(rule)
}

/// The behaviour, with the fields that it takes and no others.
fn behaviour(raw: &RawRule) -> Result<Behaviour, Wrong> {
    let name = raw.behaviour.as_str();
    if !Behaviour::NAMES.contains(&name) {
        let names = Behaviour::NAMES.join(", ");
        return Err(("behaviour", format!("{name:?} is none; they are {names}")));
    }
    let takes: &[&str] = match name {
        "delay" => &["steps", "ms"],
        "slow" => &["steps"],
        "reorder" => &["behind"],
        "flip" => &["bits", "at"],
        "tear" => &["bytes"],
        _ => &[],
    };
    let given = [
        ("steps", raw.steps.is_some()),
        ("ms", raw.ms.is_some()),
        ("behind", raw.behind.is_some()),
        ("bits", raw.bits.is_some()),
        ("at", raw.at.is_some()),
        ("bytes", raw.bytes.is_some()),
    ];
    for (field, given) in given {
        if given && !takes.contains(&field) {
            return Err((field, format!("the behaviour {name} has no use for it")));
        }
    }
    let need = |field: &'static str| move || (field, format!("the behaviour {name} needs it"));
    Ok(match name {
        "drop" => Behaviour::Drop,
        "duplicate" => Behaviour::Duplicate,
        "delay" => match (raw.steps, raw.ms) {
            (Some(steps), None) => Behaviour::Delay(Delay::Steps(steps)),
            (None, Some(ms)) => Behaviour::Delay(Delay::Time(Duration::from_millis(ms))),
            (None, None) => {
                return Err(("steps", "the behaviour delay needs steps, or ms".into()));
            }
            (Some(_), Some(_)) => {
                return Err(("ms", "contradicts steps; drop one of the two".into()));
            }
        },
        "reorder" => Behaviour::Reorder {
            behind: raw.behind.ok_or_else(need("behind"))?,
        },
        "flip" => Behaviour::Flip {
            bits: raw.bits.ok_or_else(need("bits"))?,
            at: raw.at,
        },
        "fail" => Behaviour::Fail,
        "tear" => Behaviour::Tear {
            bytes: raw.bytes.ok_or_else(need("bytes"))?,
        },
        "no-memory" => Behaviour::NoMemory,
        "slow" => Behaviour::Slow {
            steps: raw.steps.ok_or_else(need("steps"))?,
        },
        "stop-firmware" => Behaviour::StopFirmware,
        "fatal" => Behaviour::Fatal,
        "reset" => Behaviour::Reset,
        _ => Behaviour::Unplug,
    })
}
