//! A profile file: TOML, with every field checked and every fault given its line.

use super::alloc::{AllocCheck, AllocRule, grouped};
use super::parts::{Behaviours, ErrnoRule, FlagReason, Operation, ReplyCacheRule};
use super::words::{self, CARRIED_OUT, STATUSES};
use super::{BUILT_IN, Profile};
use offmap_bpf::Errno;
use offmap_bpf::device::OffloadCommands;
use offmap_bpf::uapi::{BPF_ANY, BPF_EXIST, BPF_NOEXIST, MapFlags, MapType};
use offmap_driver::DriverConfig;
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;

/// The version of the format that this crate reads.
const FORMAT: u32 = 1;
/// Longest file in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Longest name in bytes.
const NAME_MAX: usize = 32;
/// Longest sentence in characters.
const SENTENCE_MAX: usize = 200;
/// Most rules of one kind.
const RULES_MAX: usize = 256;
/// Most slots, and entries of a reply.
const SLOTS_MAX: u64 = 1 << 16;
const REPLY_ENTRIES_MAX: u64 = 64;
/// Longest validity of a reply: a second.
const REPLY_VALID_MAX_US: u64 = 1_000_000;
/// Greatest multiple that sizes are rounded up to.
const ROUND_MAX: u64 = 4096;

/// Why there is no profile.
#[derive(Debug)]
pub enum ProfileError {
    /// No built-in profile has the name.
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The file cannot be read.
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no profile.
    Invalid {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, known } => write!(
                f,
                "{name:?} is no built-in profile (they are {known}) and no file"
            ),
            Self::Read { path, source } => write!(f, "{path}: cannot be read: {source}"),
            Self::Invalid { path, line, reason } => write!(f, "{path}, line {line}: {reason}"),
        }
    }
}

impl std::error::Error for ProfileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What is wrong, and where in the text.
#[derive(Debug)]
pub(super) struct Fault {
    at: usize,
    reason: String,
    /// Of a fault without a place, the text's first byte.
    line: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

fn fault<T>(at: Range<usize>, reason: String) -> Result<T, Fault> {
    Err(Fault {
        at: at.start,
        reason,
        line: 1,
    })
}

type Text = Spanned<String>;
type Number = Spanned<i64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProfile {
    format: Number,
    name: Text,
    description: Text,
    map_types: Vec<Text>,
    #[serde(default)]
    flags: Vec<Text>,
    #[serde(default)]
    commands: Vec<Text>,
    #[serde(default)]
    btf: bool,
    alloc: Spanned<Vec<Spanned<RawCheck>>>,
    #[serde(default)]
    errno: Vec<Spanned<RawErrno>>,
    #[serde(default)]
    flag_reason: Vec<RawReason>,
    behaviours: Option<RawBehaviours>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
    check: Text,
    errno: Text,
    limit: Option<Number>,
    round: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawErrno {
    operation: Option<Text>,
    map_type: Option<Text>,
    flags: Option<Text>,
    when: Text,
    errno: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReason {
    flag: Text,
    reason: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBehaviours {
    slots: Option<Number>,
    slot_order: Option<Spanned<bool>>,
    #[serde(default)]
    lazy_hash: bool,
    #[serde(default)]
    one_lock: bool,
    reply_cache: Option<RawReplyCache>,
    deadline_us: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplyCache {
    entries: Number,
    valid_us: Number,
}

/// Reads a file, of which no more than the longest profile is taken in.
pub(super) fn read(path: &Path) -> Result<Profile, ProfileError> {
    let shown = path.display().to_string();
    let failed = |source| ProfileError::Read {
        path: shown.clone(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let mut limited = file.take(FILE_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let lines = e.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count();
        ProfileError::Invalid {
            path: shown.clone(),
            line: 1 + lines,
            reason: "the file is not UTF-8 text".into(),
        }
    })?;
    from_text(&shown, &text)
}

/// A user's profile: one that does not call itself by the name of a built-in one.
pub(super) fn from_text(what: &str, text: &str) -> Result<Profile, ProfileError> {
    let checked = parse_at(text).and_then(|(profile, at)| {
        if BUILT_IN.iter().any(|(name, _)| *name == profile.name) {
            return Err(Fault {
                line: line_of(text, at),
                at,
                reason: format!(
                    "name {:?}: a built-in profile has this name; a changed copy needs its own",
                    profile.name
                ),
            });
        }
        Ok(profile)
    });
    checked.map_err(|fault| ProfileError::Invalid {
        path: what.to_owned(),
        line: fault.line,
        reason: fault.reason,
    })
}

fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// The line around a byte, cut where it gets long.
fn excerpt(text: &str, at: usize) -> String {
    let line = text.lines().nth(line_of(text, at) - 1).unwrap_or("");
    line.trim().chars().take(60).collect()
}

/// The profile in the text.
pub(super) fn parse(text: &str) -> Result<Profile, Fault> {
    parse_at(text).map(|(profile, _)| profile)
}

/// The profile, and where its name stands.
fn parse_at(text: &str) -> Result<(Profile, usize), Fault> {
    let parsed = if text.len() as u64 > FILE_BYTES_MAX {
        fault(
            0..0,
            format!(
                "the file has more than {} bytes, which no profile needs",
                grouped(FILE_BYTES_MAX)
            ),
        )
    } else {
        match toml::from_str::<RawProfile>(text) {
            Ok(raw) => {
                let at = raw.name.span().start;
                profile(raw).map(|profile| (profile, at))
            }
            Err(e) => {
                // Of several lines only the first says what is wrong.
                let reason = e.message().lines().next().unwrap_or("no TOML");
                let at = e.span().unwrap_or(0..0);
                let reason = format!("{reason}, in {:?}", excerpt(text, at.start));
                fault(at, reason)
            }
        }
    };
    parsed.map_err(|fault| Fault {
        line: line_of(text, fault.at),
        ..fault
    })
}

fn profile(raw: RawProfile) -> Result<Profile, Fault> {
    number(&raw.format, "format", FORMAT.into(), FORMAT.into())?;
    let name = name(&raw.name)?;
    let description = sentence(&raw.description, "description")?;
    let map_types = set(&raw.map_types, "map_types", map_type, |t| 1 << t.0)?;
    let flags = MapFlags::from_bits_retain(set(&raw.flags, "flags", flag, |f| f.bits())?);
    let commands = set(&raw.commands, "commands", command, |c| c.bits())?;
    let commands = OffloadCommands::from_bits_truncate(commands);
    let alloc = alloc(&raw.alloc)?;
    let errnos = errnos(&raw.errno)?;
    let mut flag_reasons: Vec<FlagReason> = Vec::new();
    for reason in &raw.flag_reason {
        let flag = known_flag(&reason.flag, "flag_reason.flag")?;
        let at = reason.flag.span();
        if flags.intersects(flag) {
            let word = reason.flag.as_ref();
            return fault(
                at,
                format!("flag_reason.flag {word:?}: the profile admits this flag"),
            );
        }
        if flag_reasons.iter().any(|known| known.flag == flag) {
            let word = reason.flag.as_ref();
            return fault(at, format!("flag_reason.flag {word:?}: is there twice"));
        }
        flag_reasons.push(FlagReason {
            flag,
            reason: sentence(&reason.reason, "flag_reason.reason")?,
        });
    }
    let behaviours = match &raw.behaviours {
        Some(raw) => behaviours(raw, &alloc, commands)?,
        None => Behaviours::default(),
    };
    Ok(Profile {
        name,
        description,
        map_types,
        flags,
        flag_reasons,
        commands,
        btf: raw.btf,
        alloc,
        errnos,
        behaviours,
    })
}

fn name(raw: &Text) -> Result<String, Fault> {
    let name = raw.as_ref();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(legal) {
        return fault(
            raw.span(),
            format!(
                "name {name:?}: a name has 1 to {NAME_MAX} lower-case letters, digits, '-' and '_'"
            ),
        );
    }
    Ok(name.clone())
}

fn sentence(raw: &Text, field: &str) -> Result<String, Fault> {
    let text = raw.as_ref().trim();
    if text.is_empty() || text.chars().count() > SENTENCE_MAX || text.chars().any(char::is_control)
    {
        return fault(
            raw.span(),
            format!("{field}: wants one sentence of 1 to {SENTENCE_MAX} characters on one line"),
        );
    }
    Ok(text.to_owned())
}

fn number(raw: &Number, field: &str, least: u64, most: u64) -> Result<u64, Fault> {
    let value = *raw.as_ref();
    match u64::try_from(value) {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => fault(
            raw.span(),
            if least == most {
                format!("{field} {value}: this version reads {field} {least} only")
            } else {
                format!(
                    "{field} {value}: wants a number from {} to {}",
                    grouped(least),
                    grouped(most)
                )
            },
        ),
    }
}

/// A number that has at most 32 bits.
fn small(raw: &Number, field: &str, least: u64, most: u64) -> Result<u32, Fault> {
    let value = number(raw, field, least, most.min(u32::MAX.into()))?;
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}

/// A bit set from words, none of them twice.
fn set<T, B>(
    words: &[Text],
    field: &str,
    known: fn(&Text, &str) -> Result<T, Fault>,
    bit: impl Fn(T) -> B,
) -> Result<B, Fault>
where
    B: Copy + Default + PartialEq + std::ops::BitOr<Output = B> + std::ops::BitAnd<Output = B>,
{
    let mut bits = B::default();
    for word in words {
        let this = bit(known(word, field)?);
        if bits & this != B::default() {
            return fault(
                word.span(),
                format!("{field}: {:?} is there twice", word.as_ref()),
            );
        }
        bits = bits | this;
    }
    Ok(bits)
}

fn map_type(word: &Text, field: &str) -> Result<MapType, Fault> {
    match words::map_type(word.as_ref()) {
        Some(map_type) => Ok(map_type),
        None => fault(
            word.span(),
            format!(
                "{field} {:?}: no map type; types are written as bpftool does, such as \
                 percpu_hash",
                word.as_ref()
            ),
        ),
    }
}

fn known_flag(word: &Text, field: &str) -> Result<MapFlags, Fault> {
    match words::flag(word.as_ref()) {
        Some(flag) => Ok(flag),
        None => fault(
            word.span(),
            format!(
                "{field} {:?}: no map flag; flags are BPF_F_* without that, in lower case, such \
                 as no_prealloc",
                word.as_ref()
            ),
        ),
    }
}

/// A flag that can be admitted.
fn flag(word: &Text, field: &str) -> Result<MapFlags, Fault> {
    let flag = known_flag(word, field)?;
    if flag.intersects(MapFlags::RDONLY | MapFlags::WRONLY) {
        return fault(
            word.span(),
            format!(
                "{field} {:?}: this flag is the file descriptor's and reaches no device",
                word.as_ref()
            ),
        );
    }
    if !CARRIED_OUT.contains(flag) {
        return fault(
            word.span(),
            format!(
                "{field} {:?}: no behaviour carries this flag out, so a profile cannot admit it",
                word.as_ref()
            ),
        );
    }
    Ok(flag)
}

fn command(word: &Text, field: &str) -> Result<OffloadCommands, Fault> {
    match words::command(word.as_ref()) {
        Some(command) => Ok(command),
        None => {
            let all = OffloadCommands::all().iter_names();
            let all: Vec<_> = all.map(|(name, _)| name.to_ascii_lowercase()).collect();
            fault(
                word.span(),
                format!(
                    "{field} {:?}: no command that a profile can lift; they are {}",
                    word.as_ref(),
                    all.join(", ")
                ),
            )
        }
    }
}

fn errno(word: &Text) -> Result<Errno, Fault> {
    match words::errno(word.as_ref()) {
        Some(errno) => Ok(errno),
        None => fault(
            word.span(),
            format!(
                "errno {:?}: no error number of the map commands, such as EINVAL",
                word.as_ref()
            ),
        ),
    }
}

fn alloc(raw: &Spanned<Vec<Spanned<RawCheck>>>) -> Result<Vec<AllocRule>, Fault> {
    let mut rules: Vec<AllocRule> = Vec::new();
    for rule in raw.as_ref() {
        let rule = alloc_rule(rule.as_ref())?;
        if rules.iter().any(|r| r.check.word() == rule.1.check.word()) {
            return fault(
                rule.0,
                format!("alloc: check {:?} is there twice", rule.1.check.word()),
            );
        }
        rules.push(rule.1);
    }
    for (needed, why) in [("map_type", "map_types"), ("flags", "flags")] {
        if !rules.iter().any(|rule| rule.check.word() == needed) {
            return fault(
                raw.span(),
                format!("alloc: has no check {needed:?}, without which {why} would mean nothing"),
            );
        }
    }
    Ok(rules)
}

fn alloc_rule(raw: &RawCheck) -> Result<(Range<usize>, AllocRule), Fault> {
    let word = raw.check.as_ref().as_str();
    let at = raw.check.span();
    let limit = |least| match &raw.limit {
        Some(limit) => number(limit, "limit", least, u32::MAX.into()),
        None => fault(at.clone(), format!("check {word:?}: needs a limit")),
    };
    let small_limit = |least| limit(least).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let check = match word {
        "accept_switch" => AllocCheck::AcceptSwitch,
        "no_maps" => AllocCheck::NoMaps,
        "map_type" => AllocCheck::MapType,
        "flags" => AllocCheck::Flags,
        "numa_node" => AllocCheck::NumaNode,
        "max_maps" => AllocCheck::MaxMaps {
            limit: small_limit(0)?,
        },
        "element_budget" => AllocCheck::ElementBudget { limit: limit(0)? },
        "max_entries" => AllocCheck::MaxEntries {
            limit: small_limit(1)?,
        },
        "element_size" => AllocCheck::ElementSize {
            limit: small_limit(1)?,
            round: match &raw.round {
                None => 1,
                Some(raw) => {
                    let round = small(raw, "round", 1, ROUND_MAX)?;
                    if !round.is_power_of_two() {
                        return fault(raw.span(), format!("round {round}: wants a power of two"));
                    }
                    round
                }
            },
        },
        "key_size" => AllocCheck::KeySize {
            limit: small_limit(1)?,
        },
        "value_size" => AllocCheck::ValueSize {
            limit: small_limit(1)?,
        },
        _ => {
            return fault(
                at,
                format!("check {word:?}: no check; docs/profiles.md lists them"),
            );
        }
    };
    let limited = !matches!(
        check,
        AllocCheck::AcceptSwitch
            | AllocCheck::NoMaps
            | AllocCheck::MapType
            | AllocCheck::Flags
            | AllocCheck::NumaNode
    );
    if let (false, Some(limit)) = (limited, &raw.limit) {
        return fault(limit.span(), format!("check {word:?}: takes no limit"));
    }
    if let (false, Some(round)) = (matches!(check, AllocCheck::ElementSize { .. }), &raw.round) {
        return fault(round.span(), format!("check {word:?}: takes no round"));
    }
    let errno = errno(&raw.errno)?;
    Ok((at, AllocRule { check, errno }))
}

const OPERATIONS: [(&str, Operation); 5] = {
    const fn row(operation: Operation) -> (&'static str, Operation) {
        (operation.word(), operation)
    }
    [
        row(Operation::Lookup),
        row(Operation::Update),
        row(Operation::Delete),
        row(Operation::NextKey),
        row(Operation::LookupAndDelete),
    ]
};
const UPDATE_FLAGS: [(&str, u64); 3] = [
    ("any", BPF_ANY),
    ("noexist", BPF_NOEXIST),
    ("exist", BPF_EXIST),
];

fn one_of<T: Copy>(word: &Text, field: &str, table: &[(&str, T)]) -> Result<T, Fault> {
    match table.iter().find(|(name, _)| name == word.as_ref()) {
        Some((_, value)) => Ok(*value),
        None => {
            let all: Vec<_> = table.iter().map(|(name, _)| *name).collect();
            fault(
                word.span(),
                format!(
                    "{field} {:?}: wants one of {}",
                    word.as_ref(),
                    all.join(", ")
                ),
            )
        }
    }
}

fn errnos(raw: &[Spanned<RawErrno>]) -> Result<Vec<ErrnoRule>, Fault> {
    let mut rules: Vec<ErrnoRule> = Vec::new();
    for row in raw.iter() {
        let (at, row) = (row.span(), row.as_ref());
        if rules.len() == RULES_MAX {
            return fault(at, format!("errno: more than {RULES_MAX} rules"));
        }
        let operation = match &row.operation {
            Some(word) => Some(one_of(word, "operation", &OPERATIONS)?),
            None => None,
        };
        let flags = match &row.flags {
            Some(word) => Some(one_of(word, "flags", &UPDATE_FLAGS)?),
            None => None,
        };
        if let (Some(word), false) = (&row.flags, operation == Some(Operation::Update)) {
            return fault(
                word.span(),
                "flags: only a rule with operation \"update\" has them".into(),
            );
        }
        let rule = ErrnoRule {
            operation,
            map_type: match &row.map_type {
                Some(word) => Some(map_type(word, "map_type")?),
                None => None,
            },
            flags,
            when: one_of(&row.when, "when", &STATUSES)?,
            errno: errno(&row.errno)?,
        };
        if rules.iter().any(|earlier| earlier.covers(&rule)) {
            return fault(
                row.when.span(),
                "errno: an earlier rule decides every case of this one".into(),
            );
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn behaviours(
    raw: &RawBehaviours,
    alloc: &[AllocRule],
    commands: OffloadCommands,
) -> Result<Behaviours, Fault> {
    let reply_cache = match &raw.reply_cache {
        None => None,
        Some(raw) => {
            let entries = number(&raw.entries, "reply_cache.entries", 2, REPLY_ENTRIES_MAX)?;
            let valid = number(&raw.valid_us, "reply_cache.valid_us", 1, REPLY_VALID_MAX_US)?;
            Some(ReplyCacheRule {
                entries: entries as usize,
                valid: Duration::from_micros(valid),
            })
        }
    };
    let slots = match &raw.slots {
        Some(slots) => small(slots, "slots", 1, SLOTS_MAX)?,
        None => 0,
    };
    if let Some(order) = raw.slot_order.as_ref().filter(|order| *order.as_ref()) {
        let most = Behaviours::SLOT_ORDER_MAX;
        let bounded = alloc
            .iter()
            .any(|rule| matches!(rule.check, AllocCheck::MaxEntries { limit } if limit <= most));
        if !bounded || slots > most {
            return fault(
                order.span(),
                format!(
                    "slot_order: the host keeps the slots, so it needs an alloc check \
                     max_entries and slots of at most {}",
                    grouped(most.into())
                ),
            );
        }
        if !raw.one_lock {
            return fault(
                order.span(),
                "slot_order: needs one_lock, which keeps the host's order and the device's \
                 elements together"
                    .into(),
            );
        }
        if !commands.is_empty() {
            return fault(
                order.span(),
                "slot_order: goes with no lifted commands, whose walks know no slots".into(),
            );
        }
    }
    let deadline = match &raw.deadline_us {
        None => None,
        Some(raw) => {
            let most = u64::try_from(DriverConfig::TIMEOUT_MAX.as_micros()).unwrap_or(u64::MAX);
            Some(Duration::from_micros(number(raw, "deadline_us", 1, most)?))
        }
    };
    Ok(Behaviours {
        slots,
        slot_order: raw.slot_order.as_ref().is_some_and(|order| *order.as_ref()),
        lazy_hash: raw.lazy_hash,
        one_lock: raw.one_lock,
        reply_cache,
        deadline,
    })
}
