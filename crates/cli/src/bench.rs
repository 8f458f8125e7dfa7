//! `offmap bench`: offloaded maps against host maps.

use crate::args::{DeviceKind, device};
use crate::open::{OpenError, Visitor, visit};
use clap::Args;
use offmap_bench::baseline::{Comparison, compare};
use offmap_bench::blocks::{Amount, Planted};
use offmap_bench::error::Unavailable;
use offmap_bench::mix::{MixError, MixFile, Sequence, SequenceError};
use offmap_bench::plan::{Sizes, plan};
use offmap_bench::report::Document;
use offmap_bench::sides::BackEnd;
use offmap_bench::{Config, Progress, html, run, table};
use offmap_bpf::device::OffloadDevice;
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig};
use offmap_offload::{OffloadNic, Profile};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Turns of each side, repetitions, and calls timed one by one: of a whole run, and of a quick one.
const WHOLE: (usize, usize, usize) = (101, 5, 2000);
const QUICK: (usize, usize, usize) = (15, 3, 300);

/// Arguments of `offmap bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Less of everything, in under a minute
    #[arg(long)]
    pub quick: bool,

    /// Write the document as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write one self-contained page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Hold the run against an earlier one's JSON; what became slower by more than noise is an alarm
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Hold this run's JSON against the baseline, and measure nothing
    #[arg(long, value_name = "FILE", requires = "baseline", conflicts_with_all = ["json", "html", "only", "list"])]
    pub read: Option<PathBuf>,

    /// Measure this mix of calls instead: deny-list, connections, routes, or a workload file; may be given again
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "only")]
    pub workload: Vec<String>,

    /// Measure the calls of this file, which --record wrote, instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "workload"])]
    pub replay: Option<PathBuf>,

    /// Write the calls that --workload makes to a file, and measure nothing
    #[arg(long, value_name = "FILE", requires = "workload")]
    pub record: Option<PathBuf>,

    /// Measure this device too: vfio-user:PATH, or vfio:ADDRESS for one that is bound to vfio-pci
    #[arg(long, value_name = "KIND", value_parser = elsewhere)]
    pub device: Option<DeviceKind>,

    /// Measure only this group; may be given again (see --list)
    #[arg(long, value_name = "GROUP")]
    pub only: Vec<String>,

    /// Print the groups, and measure nothing
    #[arg(long)]
    pub list: bool,

    /// Entries of the maps, where a group does not ask for another number
    #[arg(long, value_name = "N", default_value_t = 65_536,
          value_parser = clap::value_parser!(u32).range(64..=16_000_000))]
    pub entries: u32,

    /// Bytes of a key, likewise: 4, 8, 16 or 64
    #[arg(long, value_name = "BYTES", default_value_t = 8, value_parser = key_size)]
    pub key_size: usize,

    /// Bytes of a value, likewise: 8, 64, 256 or 1024
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = value_size)]
    pub value_size: usize,

    /// Turns of each side in a repetition [default: 101; 15 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=100_000))]
    pub blocks: Option<u32>,

    /// How often everything is measured anew, with new maps [default: 5; 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: Option<u32>,

    /// Seed of keys and orders
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Make a back end slower on purpose, as in inline=10 for ten percent: shows that --baseline finds it
    #[arg(long, value_name = "BACKEND=PERCENT", value_parser = planted)]
    pub plant: Option<Planted>,
}

fn elsewhere(text: &str) -> Result<DeviceKind, String> {
    match device(text)? {
        DeviceKind::Inline | DeviceKind::Threaded => Err(
            "inline and threaded devices are measured anyway; name vfio-user:PATH or vfio:ADDRESS"
                .into(),
        ),
        kind => Ok(kind),
    }
}

fn key_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ (4 | 8 | 16 | 64)) => Ok(n),
        _ => Err("the yardstick is compiled for keys of 4, 8, 16 and 64 bytes".into()),
    }
}

fn value_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ (8 | 64 | 256 | 1024)) => Ok(n),
        _ => Err("the yardstick is compiled for values of 8, 64, 256 and 1024 bytes".into()),
    }
}

fn planted(text: &str) -> Result<Planted, String> {
    let read = || {
        let (name, percent) = text.split_once('=')?;
        let percent: f64 = percent.parse().ok()?;
        Some(Planted {
            back_end: BackEnd::find(name)?,
            fraction: (0.0..=1000.0)
                .contains(&percent)
                .then_some(percent / 100.0)?,
        })
    };
    read()
        .ok_or_else(|| "it is BACKEND=PERCENT, as in inline=10; --list names the back ends".into())
}

/// Why nothing was measured, or what was measured cannot be written.
#[derive(Debug, Error)]
pub enum BenchError {
    /// This machine does not let it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The device that was named cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not come up.
    #[error("the device does not come up: {0}")]
    BringUp(String),
    /// The workload is not usable.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// The calls to be replayed are not usable.
    #[error("the calls in {path} cannot be replayed: {source}")]
    Replay {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: SequenceError,
    },
    /// There is no such group.
    #[error("there is no group {0:?}; `offmap bench --list` names them")]
    Group(String),
    /// The earlier run cannot be read.
    #[error("the earlier run in {path} cannot be read: {why}")]
    Baseline {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl BenchError {
    /// Whether it is the command line's fault, or a file's that it names.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Group(_)
                | Self::Baseline { .. }
                | Self::Open(_)
                | Self::Mix(_)
                | Self::Replay { .. }
        )
    }
}

/// What came of it.
pub struct Outcome {
    /// For the terminal.
    pub text: String,
    /// Whether something became slower than in the earlier run.
    pub slower: bool,
}

/// Brings the named device up, as a device that maps are offloaded to.
struct BringUp;

impl Visitor for BringUp {
    type Out = Result<Arc<dyn OffloadDevice>, BenchError>;

    fn emulated(self, _threaded: bool) -> Self::Out {
        Err(BenchError::BringUp("it is measured anyway".to_owned()))
    }

    fn elsewhere<F: Function>(
        self,
        mut open: impl FnMut() -> Result<Arc<F>, OpenError>,
    ) -> Self::Out {
        let failed = |e: &dyn std::fmt::Display| BenchError::BringUp(e.to_string());
        let driver = Driver::bring_up(open()?, DriverConfig::default()).map_err(|e| failed(&e))?;
        let nic = OffloadNic::new(driver, Profile::offmap()).map_err(|e| failed(&e))?;
        Ok(nic)
    }
}

fn sizes(args: &BenchArgs) -> Sizes {
    Sizes {
        entries: args.entries as usize,
        key_size: args.key_size,
        value_size: args.value_size,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        device: args.device.is_some(),
        quick: args.quick,
    }
}

/// The groups, for people.
pub fn list(args: &BenchArgs) -> String {
    let mut out = String::new();
    for group in plan(&sizes(args)) {
        let w = &group.workload;
        let sides: Vec<&str> = group.sides.iter().map(|side| side.name()).collect();
        out += &format!(
            "{:<20} {} {}, {} entries, batch {}, depth {}: {}\n",
            group.name,
            w.map_type.name(),
            w.op.name(),
            w.entries,
            w.batch,
            w.depth,
            sides.join(", ")
        );
    }
    out
}

fn read(path: &Path) -> Result<Document, BenchError> {
    let bad = |why: String| BenchError::Baseline {
        path: path.display().to_string(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|source| BenchError::Write {
        path: path.display().to_string(),
        source,
    })
}

/// The sequences of calls that are asked for.
fn sequences(args: &BenchArgs) -> Result<Vec<Arc<Sequence>>, BenchError> {
    if let Some(path) = &args.replay {
        let bad = |source| BenchError::Replay {
            path: path.display().to_string(),
            source,
        };
        let file = File::open(path).map_err(|e| bad(e.into()))?;
        let sequence = Sequence::read(&mut BufReader::new(file)).map_err(bad)?;
        return Ok(vec![Arc::new(sequence)]);
    }
    let made = args.workload.iter().map(|name| {
        let file = MixFile::find(name)?;
        Ok(Arc::new(Sequence::new(&file, args.seed)))
    });
    made.collect()
}

/// Writes a sequence of calls; says what it is.
fn record(path: &Path, sequences: &[Arc<Sequence>]) -> Result<Outcome, BenchError> {
    let failed = |source| BenchError::Write {
        path: path.display().to_string(),
        source,
    };
    let [sequence] = sequences else {
        return Err(failed(std::io::Error::other(
            "one workload goes into one file, and more were given",
        )));
    };
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    sequence
        .write(&mut file)
        .and_then(|()| file.flush())
        .map_err(failed)?;
    Ok(Outcome {
        text: format!(
            "{}: {} calls on {} keys of {} bytes, in {}\n",
            sequence.name,
            sequence.calls.len(),
            sequence.key_bytes() / sequence.map.key_size,
            sequence.map.key_size,
            path.display()
        ),
        slower: false,
    })
}

/// Measures, and writes what was asked for.
///
/// # Errors
///
/// [`BenchError`]; a back end that is not available is none.
pub fn bench(args: &BenchArgs, progress: &mut dyn Progress) -> Result<Outcome, BenchError> {
    if let (Some(path), Some(earlier)) = (&args.read, &args.baseline) {
        let comparison = compare(&read(earlier)?, &read(path)?);
        return Ok(Outcome {
            text: comparison.text(),
            slower: comparison.alarms().any(|alarm| alarm.change > 0.0),
        });
    }
    let groups = plan(&Sizes {
        quick: false,
        ..sizes(args)
    });
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| !groups.iter().any(|group| group.name == **only))
    {
        return Err(BenchError::Group(unknown.clone()));
    }
    let sequences = sequences(args)?;
    if let Some(path) = &args.record {
        return record(path, &sequences);
    }
    // Before the minutes that it takes, not after them.
    let earlier = args.baseline.as_deref().map(read).transpose()?;
    let (blocks, repetitions, calls) = if args.quick { QUICK } else { WHOLE };
    let device = args
        .device
        .as_ref()
        .map(|kind| visit(kind, BringUp))
        .transpose()?;
    let config = Config {
        device,
        sizes: Sizes {
            // Who names a group wants it.
            quick: args.quick && args.only.is_empty(),
            ..sizes(args)
        },
        amount: Amount {
            blocks: args.blocks.map_or(blocks, |n| n as usize),
            calls,
        },
        repetitions: args.repetitions.map_or(repetitions, |n| n as usize),
        seed: args.seed,
        only: args.only.clone(),
        sequences,
        nic: std::env::current_exe().ok(),
        planted: args.plant,
    };
    let document = run(&config, progress)?;
    let mut text = table::text(&document);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&document).map_err(|e| BenchError::Write {
            path: path.display().to_string(),
            source: e.into(),
        })?;
        write(path, &(json + "\n"))?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&document))?;
    }
    let comparison: Option<Comparison> = earlier.map(|earlier| compare(&earlier, &document));
    if let Some(comparison) = &comparison {
        text.push('\n');
        text += &comparison.text();
    }
    Ok(Outcome {
        text,
        slower: comparison.is_some_and(|c| c.alarms().any(|alarm| alarm.change > 0.0)),
    })
}
