//! `offmap profile`: what capability profiles admit, and whether one's own is good.

use crate::args::{ProfileArgs, ProfileCommand};
use crate::report::{WIDTH, count, grouped, wrap};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, LineStyle, Table};
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_offload::{Profile, ProfileError};
use serde::Serialize;
use std::fmt::Write;
use thiserror::Error;

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum ShowError {
    /// The profile is bad.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// `--toml` for a profile that is no built-in one.
    #[error("{0:?} is no built-in profile, whose file could be printed")]
    NoText(String),
    /// The document cannot be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// A profile as `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    description: String,
    map_types: Vec<String>,
    flags: Vec<String>,
    commands: Vec<String>,
    btf: bool,
    alloc: Vec<ShownCheck>,
    errno: Vec<ShownErrno>,
    behaviours: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownCheck {
    check: &'static str,
    admits: String,
    errno: String,
}

#[derive(Debug, Serialize)]
struct ShownErrno {
    case: String,
    errno: String,
}

/// What the command prints.
///
/// # Errors
///
/// [`ShowError`], in a sentence.
pub fn run(args: &ProfileArgs) -> Result<String, ShowError> {
    match &args.command {
        ProfileCommand::List if args.json => {
            let all: Vec<Shown> = Profile::built_in().iter().map(Shown::new).collect();
            json(&all)
        }
        ProfileCommand::List => Ok(list()),
        ProfileCommand::Show { profile, toml } if *toml => {
            let text = Profile::built_in_text(profile);
            let text = text.ok_or_else(|| ShowError::NoText(profile.clone()))?;
            Ok(text.to_owned())
        }
        ProfileCommand::Show { profile, .. } => show(&Profile::find(profile)?, args.json),
        ProfileCommand::Check { file } => show(&Profile::from_file(file)?, args.json),
    }
}

fn show(profile: &Profile, as_json: bool) -> Result<String, ShowError> {
    let shown = Shown::new(profile);
    if as_json {
        json(&shown)
    } else {
        Ok(shown.text())
    }
}

fn json(document: &impl Serialize) -> Result<String, ShowError> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    Ok(text)
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING.header_separator(LineStyle::none().fill('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table
}

fn print(out: &mut String, mut table: Table) {
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 0 } else { 2 }, 0));
    }
    let _ = writeln!(out, "{}", table.trim_fmt());
}

fn list() -> String {
    let mut table = table();
    table.set_header(["profile", "what it is"]);
    for profile in Profile::built_in() {
        table.add_row([&profile.name, &profile.description]);
    }
    let mut out = String::new();
    print(&mut out, table);
    out
}

fn words(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

impl Shown {
    fn new(profile: &Profile) -> Self {
        let types = (0..64).map(MapType).filter(|&t| profile.admits_type(t));
        let flags = MapFlags::all()
            .iter_names()
            .filter(|(_, flag)| profile.flags.contains(*flag));
        let b = &profile.behaviours;
        let mut behaviours = Vec::new();
        let mut say = |holds: bool, what: String| {
            if holds {
                behaviours.push(what);
            }
        };
        say(
            b.slots > 0,
            format!(
                "a map has at least {}, whatever its max_entries",
                count(b.slots.into(), "slot")
            ),
        );
        say(
            b.slot_order,
            "keys of a hash map are walked in the order of their slots".into(),
        );
        say(
            b.lazy_hash,
            "a hash map takes device memory with its first update".into(),
        );
        say(b.one_lock, "one operation on a map at a time".into());
        if let Some(cache) = b.reply_cache {
            say(
                true,
                format!(
                    "a GETNEXT brings {} along, which answer lookups and GETNEXT for {} us; \
                     updates and deletes by the host drop them, the data path does not",
                    count(cache.entries as u64, "element"),
                    grouped(u64::try_from(cache.valid.as_micros()).unwrap_or(u64::MAX))
                ),
            );
        }
        if let Some(deadline) = b.deadline {
            let us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
            say(true, format!("ETIMEDOUT after {} us", grouped(us)));
        }
        Self {
            name: profile.name.clone(),
            description: profile.description.clone(),
            map_types: types.map(|t| t.to_string()).collect(),
            flags: flags.map(|(name, _)| name.to_ascii_lowercase()).collect(),
            commands: profile
                .commands
                .iter_names()
                .map(|(name, _)| name.to_ascii_lowercase())
                .collect(),
            btf: profile.btf,
            alloc: profile
                .alloc
                .iter()
                .map(|rule| ShownCheck {
                    check: rule.check.word(),
                    admits: rule.check.meaning(),
                    errno: rule.errno.to_string(),
                })
                .collect(),
            errno: profile
                .errnos
                .iter()
                .map(|rule| ShownErrno {
                    case: rule.meaning(),
                    errno: rule.errno.to_string(),
                })
                .collect(),
            behaviours,
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        wrap(&mut out, &format!("{}: {}", self.name, self.description));
        out.push('\n');
        let mut admits = table();
        admits.set_header(["admits", ""]);
        admits.add_row(["map types", &words(&self.map_types)]);
        admits.add_row(["map flags", &words(&self.flags)]);
        admits.add_row(["commands beyond the kernel's", &words(&self.commands)]);
        admits.add_row(["BTF types", if self.btf { "yes" } else { "no: 524" }]);
        print(&mut out, admits);
        out.push('\n');
        let mut checks = table();
        checks.set_header(["check, in this order", "admits", "otherwise"]);
        for check in &self.alloc {
            checks.add_row([check.check, &check.admits, &check.errno]);
        }
        print(&mut out, checks);
        if !self.errno.is_empty() {
            out.push('\n');
            let mut errnos = table();
            errnos.set_header(["unlike a host map", "errno"]);
            for rule in &self.errno {
                errnos.add_row([&rule.case, &rule.errno]);
            }
            print(&mut out, errnos);
        }
        if !self.behaviours.is_empty() {
            out.push('\n');
            for behaviour in &self.behaviours {
                wrap(&mut out, &format!("* {behaviour}"));
            }
        }
        out
    }
}
