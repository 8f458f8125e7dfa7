//! Timing profiles as files: TOML, in which each figure has a source, with every fault given its line.
//!
//! docs/timing.md describes the format; `firmware-model/timing` has the built-in ones.

use offmap_firmware_model::time::Picos;
use offmap_firmware_model::time::pcie::LinkSpec;
use offmap_firmware_model::time::profile::{
    Cache, CommandCycles, DeviceTiming, HostTiming, Iommu, Tier, TimingProfile,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use thiserror::Error;
use toml::Spanned;

/// The version of the format that this crate reads.
const FORMAT: i64 = 1;
/// Longest file in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Longest name in bytes, of a profile and of a tier.
const NAME_MAX: usize = 32;
/// Longest text in characters.
const TEXT_MAX: usize = 500;
/// The source of a figure that nobody has published.
pub const ASSUMED: &str = "assumed";

/// The built-in profiles, by name.
const BUILT_IN: &[(&str, &str)] = &[
    (
        "nfp6000",
        include_str!("../../../firmware-model/timing/nfp6000.toml"),
    ),
    (
        "pcie5x16",
        include_str!("../../../firmware-model/timing/pcie5x16.toml"),
    ),
];

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum ProfileFileError {
    /// No built-in profile has the name, and no file either.
    #[error("{name:?} is no built-in timing profile (they are {known}) and no file")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no timing profile.
    #[error("{path}, line {line}: {reason}")]
    Invalid {
        /// The file, or the name of a built-in profile.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
}

/// A profile with what its file says about where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProfileFile {
    /// The profile.
    pub profile: TimingProfile,
    /// The sources, by the word that figures name them by.
    pub sources: BTreeMap<String, String>,
    /// Each figure, in the file's order.
    pub figures: Vec<Figure>,
}

/// A figure of a profile, and where it is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    /// `part.figure`; of a tier, `tier.NAME.figure`.
    pub name: String,
    /// What it says; of a yes or no, 1 or 0.
    pub value: u64,
    /// A word of [`ProfileFile::sources`], or [`ASSUMED`].
    pub source: String,
    /// How it follows from the source; of an assumption, the reason.
    pub note: String,
    /// Its line.
    line: usize,
}

struct Fault {
    at: Range<usize>,
    reason: String,
}

fn fault<T>(at: Range<usize>, reason: String) -> Result<T, Fault> {
    Err(Fault { at, reason })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: Spanned<i64>,
    name: Spanned<String>,
    description: Spanned<String>,
    sources: BTreeMap<Spanned<String>, Spanned<String>>,
    link: RawLink,
    host: RawHost,
    device: RawDevice,
    #[serde(default)]
    tier: Vec<RawTier>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFigure {
    value: Spanned<RawValue>,
    source: Spanned<String>,
    note: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawValue {
    Flag(bool),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    generation: RawFigure,
    lanes: RawFigure,
    max_payload: RawFigure,
    max_read_request: RawFigure,
    read_completion_boundary: RawFigure,
    completes_by_boundary: RawFigure,
    long_addresses: RawFigure,
    ecrc: RawFigure,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    mmio_write_ps: RawFigure,
    read_ps: RawFigure,
    write_ps: RawFigure,
    memory_ps: RawFigure,
    warm: RawFigure,
    remote_node_ps: RawFigure,
    interrupt_ps: RawFigure,
    iommu: Option<RawIommu>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIommu {
    entries: RawFigure,
    page_bytes: RawFigure,
    miss_ps: RawFigure,
    walkers: RawFigure,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    clock_mhz: RawFigure,
    engines: RawFigure,
    doorbell_ps: RawFigure,
    dma_setup_ps: RawFigure,
    dma_issue_ps: RawFigure,
    dma_store_bytes_per_s: RawFigure,
    read_tags: RawFigure,
    command_cycles: RawFigure,
    element_cycles: RawFigure,
    access_cycles: RawFigure,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTier {
    name: Spanned<String>,
    size_bytes: RawFigure,
    access_bytes: RawFigure,
    latency_ps: RawFigure,
    bytes_per_s: RawFigure,
    outstanding: RawFigure,
    cache: Option<RawCache>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCache {
    size_bytes: RawFigure,
    line_bytes: RawFigure,
    hit_ps: RawFigure,
}

/// The names of the built-in profiles.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The profile that a name or a path stands for: a built-in one first.
///
/// # Errors
///
/// [`ProfileFileError`].
pub fn find(name_or_path: &str) -> Result<ProfileFile, ProfileFileError> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
        return parse(name, text);
    }
    let path = Path::new(name_or_path);
    if !path.exists() && !name_or_path.contains(['/', '.']) {
        return Err(ProfileFileError::Unknown {
            name: name_or_path.to_owned(),
            known: built_in().collect::<Vec<_>>().join(", "),
        });
    }
    load(path)
}

/// The profile in a file, of which no more than the longest profile is taken in.
///
/// # Errors
///
/// [`ProfileFileError::Read`], [`ProfileFileError::Invalid`].
pub fn load(path: &Path) -> Result<ProfileFile, ProfileFileError> {
    let shown = path.display().to_string();
    let failed = |source| ProfileFileError::Read {
        path: shown.clone(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        ProfileFileError::Invalid {
            path: shown.clone(),
            line: 1 + good.iter().filter(|&&byte| byte == b'\n').count(),
            reason: "the file is not UTF-8 text".into(),
        }
    })?;
    parse(&shown, &text)
}

/// The profile in a text; `what` names it in errors.
///
/// # Errors
///
/// [`ProfileFileError::Invalid`].
pub fn parse(what: &str, text: &str) -> Result<ProfileFile, ProfileFileError> {
    let parsed = if text.len() as u64 > FILE_BYTES_MAX {
        let reason =
            format!("the file has more than {FILE_BYTES_MAX} bytes, which no profile needs");
        fault(0..0, reason)
    } else {
        match toml::from_str::<Raw>(text) {
            Ok(raw) => Reader::new(text, &raw).and_then(|reader| reader.read(raw)),
            Err(e) => {
                let reason = e.message().lines().next().unwrap_or("no TOML").to_owned();
                fault(e.span().unwrap_or(0..0), reason)
            }
        }
    };
    parsed.map_err(|fault| ProfileFileError::Invalid {
        path: what.to_owned(),
        line: line_of(text, fault.at.start),
        reason: fault.reason,
    })
}

fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

fn words(field: &str, text: &Spanned<String>) -> Result<String, Fault> {
    let trimmed = text.as_ref().trim();
    if trimmed.is_empty()
        || trimmed.chars().count() > TEXT_MAX
        || trimmed.contains(char::is_control)
    {
        let reason = format!("{field}: a text has 1 to {TEXT_MAX} characters on one line");
        return fault(text.span(), reason);
    }
    Ok(trimmed.to_owned())
}

fn name(field: &str, text: &Spanned<String>) -> Result<String, Fault> {
    let name = text.as_ref();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(legal) {
        let reason = format!(
            "{field} {name:?}: a name has 1 to {NAME_MAX} lower-case letters, digits, '-' and '_'"
        );
        return fault(text.span(), reason);
    }
    Ok(name.clone())
}

/// What has been read so far.
struct Reader<'a> {
    text: &'a str,
    sources: BTreeMap<String, String>,
    figures: Vec<Figure>,
    places: Vec<Range<usize>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, raw: &Raw) -> Result<Self, Fault> {
        if *raw.format.as_ref() != FORMAT {
            let reason = format!(
                "format {}: this version reads format {FORMAT}",
                raw.format.as_ref()
            );
            return fault(raw.format.span(), reason);
        }
        let mut sources = BTreeMap::new();
        for (key, citation) in &raw.sources {
            let key_name = name("sources", key)?;
            if key_name == ASSUMED {
                let reason = format!("sources: {ASSUMED:?} stands for figures without a source");
                return fault(key.span(), reason);
            }
            sources.insert(key_name, words("sources", citation)?);
        }
        Ok(Self {
            text,
            sources,
            figures: Vec::new(),
            places: Vec::new(),
        })
    }

    /// Takes a figure in, whose source is looked up.
    fn take(&mut self, field: &str, raw: &RawFigure) -> Result<u64, Fault> {
        let source = raw.source.as_ref();
        let note = match &raw.note {
            Some(note) => words(field, note)?,
            None if source == ASSUMED => {
                let reason = format!("{field}: an assumed figure has a note that says why");
                return fault(raw.source.span(), reason);
            }
            None => String::new(),
        };
        if source != ASSUMED && !self.sources.contains_key(source) {
            let known: Vec<&str> = self.sources.keys().map(String::as_str).collect();
            let reason = format!(
                "{field}: source {source:?} is neither {ASSUMED:?} nor in [sources], which has {}",
                known.join(", ")
            );
            return fault(raw.source.span(), reason);
        }
        let at = raw.value.span();
        let value = match *raw.value.as_ref() {
            RawValue::Flag(flag) => u64::from(flag),
            RawValue::Number(number) => match u64::try_from(number) {
                Ok(number) => number,
                Err(_) => return fault(at, format!("{field} is {number}; it is not negative")),
            },
        };
        self.figures.push(Figure {
            name: field.to_owned(),
            value,
            source: source.clone(),
            note,
            line: line_of(self.text, at.start),
        });
        self.places.push(at);
        Ok(value)
    }

    fn number(&mut self, field: &str, raw: &RawFigure) -> Result<u64, Fault> {
        if matches!(raw.value.as_ref(), RawValue::Flag(_)) {
            return fault(raw.value.span(), format!("{field}: a number is expected"));
        }
        self.take(field, raw)
    }

    fn time(&mut self, field: &str, raw: &RawFigure) -> Result<Picos, Fault> {
        self.number(field, raw).map(Picos)
    }

    fn small<T: TryFrom<u64>>(&mut self, field: &str, raw: &RawFigure) -> Result<T, Fault> {
        let number = self.number(field, raw)?;
        match T::try_from(number) {
            Ok(small) => Ok(small),
            Err(_) => fault(
                raw.value.span(),
                format!("{field} is {number}, which is too large"),
            ),
        }
    }

    fn flag(&mut self, field: &str, raw: &RawFigure) -> Result<bool, Fault> {
        match raw.value.as_ref() {
            RawValue::Flag(flag) => {
                let flag = *flag;
                self.take(field, raw)?;
                Ok(flag)
            }
            RawValue::Number(_) => fault(
                raw.value.span(),
                format!("{field}: true or false is expected"),
            ),
        }
    }

    /// The place of the figure that a check has named.
    fn place(&self, field: &str) -> Range<usize> {
        let at = self.figures.iter().position(|figure| figure.name == field);
        at.and_then(|n| self.places.get(n)).cloned().unwrap_or(0..0)
    }

    fn read(mut self, raw: Raw) -> Result<ProfileFile, Fault> {
        let link = LinkSpec {
            generation: self.small("link.generation", &raw.link.generation)?,
            lanes: self.small("link.lanes", &raw.link.lanes)?,
            max_payload: self.small("link.max_payload", &raw.link.max_payload)?,
            max_read_request: self.small("link.max_read_request", &raw.link.max_read_request)?,
            read_completion_boundary: self.small(
                "link.read_completion_boundary",
                &raw.link.read_completion_boundary,
            )?,
            completes_by_boundary: self.flag(
                "link.completes_by_boundary",
                &raw.link.completes_by_boundary,
            )?,
            long_addresses: self.flag("link.long_addresses", &raw.link.long_addresses)?,
            ecrc: self.flag("link.ecrc", &raw.link.ecrc)?,
        };
        let link = link.build().map_err(|e| Fault {
            at: self.place(&format!("link.{}", e.field())),
            reason: format!("link.{e}"),
        })?;
        let host = self.host(&raw.host)?;
        let device = self.device(&raw.device)?;
        let mut tiers = Vec::new();
        for tier in &raw.tier {
            tiers.push(self.tier(tier)?);
        }
        let profile = TimingProfile {
            name: name("name", &raw.name)?,
            description: words("description", &raw.description)?,
            link,
            host,
            device,
            tiers,
        };
        profile.check().map_err(|e| Fault {
            at: self.place(&e.field),
            reason: e.to_string(),
        })?;
        Ok(ProfileFile {
            profile,
            sources: self.sources,
            figures: self.figures,
        })
    }

    fn host(&mut self, raw: &RawHost) -> Result<HostTiming, Fault> {
        Ok(HostTiming {
            mmio_write: self.time("host.mmio_write", &raw.mmio_write_ps)?,
            read: self.time("host.read", &raw.read_ps)?,
            write: self.time("host.write", &raw.write_ps)?,
            memory: self.time("host.memory", &raw.memory_ps)?,
            warm: self.flag("host.warm", &raw.warm)?,
            remote_node: self.time("host.remote_node", &raw.remote_node_ps)?,
            interrupt: self.time("host.interrupt", &raw.interrupt_ps)?,
            iommu: match &raw.iommu {
                None => None,
                Some(raw) => Some(Iommu {
                    entries: self.small("host.iommu.entries", &raw.entries)?,
                    page_bytes: self.number("host.iommu.page_bytes", &raw.page_bytes)?,
                    miss: self.time("host.iommu.miss", &raw.miss_ps)?,
                    walkers: self.small("host.iommu.walkers", &raw.walkers)?,
                }),
            },
        })
    }

    fn device(&mut self, raw: &RawDevice) -> Result<DeviceTiming, Fault> {
        Ok(DeviceTiming {
            clock_mhz: self.small("device.clock_mhz", &raw.clock_mhz)?,
            engines: self.small("device.engines", &raw.engines)?,
            doorbell: self.time("device.doorbell", &raw.doorbell_ps)?,
            dma_setup: self.time("device.dma_setup", &raw.dma_setup_ps)?,
            dma_issue: self.time("device.dma_issue", &raw.dma_issue_ps)?,
            dma_store_bytes_per_s: self
                .number("device.dma_store_bytes_per_s", &raw.dma_store_bytes_per_s)?,
            read_tags: self.small("device.read_tags", &raw.read_tags)?,
            cycles: CommandCycles {
                command: self.small("device.cycles.command", &raw.command_cycles)?,
                element: self.small("device.cycles.element", &raw.element_cycles)?,
                access: self.small("device.cycles.access", &raw.access_cycles)?,
            },
        })
    }

    fn tier(&mut self, raw: &RawTier) -> Result<Tier, Fault> {
        let name = name("tier.name", &raw.name)?;
        let field = |figure: &str| format!("tier.{name}.{figure}");
        Ok(Tier {
            size_bytes: self.number(&field("size_bytes"), &raw.size_bytes)?,
            access_bytes: self.small(&field("access_bytes"), &raw.access_bytes)?,
            latency: self.time(&field("latency"), &raw.latency_ps)?,
            bytes_per_s: self.number(&field("bytes_per_s"), &raw.bytes_per_s)?,
            outstanding: self.small(&field("outstanding"), &raw.outstanding)?,
            cache: match &raw.cache {
                None => None,
                Some(cache) => Some(Cache {
                    size_bytes: self.number(&field("cache.size_bytes"), &cache.size_bytes)?,
                    line_bytes: self.small(&field("cache.line_bytes"), &cache.line_bytes)?,
                    hit: self.time(&field("cache.hit"), &cache.hit_ps)?,
                }),
            },
            name,
        })
    }
}

impl Figure {
    /// The line that it stands on.
    pub fn line(&self) -> usize {
        self.line
    }
}
