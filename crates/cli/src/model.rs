//! `offmap model`: sweeps over hardware that is not there, by discrete-event simulation.

use clap::{Args, Subcommand};
use offmap_model::profile::{self, ProfileFileError};
use offmap_model::report::{Document, MergeError, merge};
use offmap_model::svg::{self, SvgError};
use offmap_model::sweep::{self, AXES, Axis, Shard, Sweep, SweepError};
use offmap_model::table;
use offmap_model::workload::{self, WorkloadError};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use thiserror::Error;

/// Longest part that is read, in bytes.
const PART_BYTES_MAX: u64 = 1 << 30;

/// Arguments of `offmap model`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ModelArgs {
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<ModelCommand>,

    /// The sweep.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What else `offmap model` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelCommand {
    /// Put the parts of a sweep together to exactly what one run gives
    Merge(MergeArgs),
}

/// Arguments of a sweep.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The hardware: a built-in timing profile, or a file (docs/timing.md)
    #[arg(long, value_name = "NAME|FILE", default_value = "pcie5x16")]
    pub timing: String,

    /// What is done on it: a built-in workload, or a file (docs/model.md)
    #[arg(long, value_name = "NAME|FILE", default_value = "connections")]
    pub workload: String,

    /// Values of an axis, as in depth=1,4,16; may be given again for another axis (--list names them)
    #[arg(long, value_name = "AXIS=V1,V2,…")]
    pub sweep: Vec<String>,

    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Commands and packets of each point, in all [default: as the workload says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=1_000_000_000))]
    pub operations: Option<u64>,

    /// Print the document as JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Write the document as JSON to a file
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Write plots as SVG files to this folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,

    /// Run one of N parts only; `offmap model merge` puts the parts together
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,

    /// Points that run at the same time [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,

    /// Print the timing profiles, workloads and axes, and run nothing
    #[arg(long)]
    pub list: bool,
}

/// Arguments of `offmap model merge`.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// The parts, in any order
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<PathBuf>,

    /// Where the whole goes, as JSON
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,

    /// Write plots as SVG files to this folder, too
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
}

/// Why there is no sweep.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The timing profile is not usable.
    #[error(transparent)]
    Timing(#[from] ProfileFileError),
    /// The workload is not usable.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The sweep is not.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// The parts are not.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A plot could not be drawn.
    #[error(transparent)]
    Svg(#[from] SvgError),
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}

impl ModelError {
    /// Whether it is the command line's fault, or a file's that it names.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Svg(_) | Self::Write { .. })
    }
}

/// Hears how far a sweep is.
pub trait Progress: Sync {
    /// So many points are to come.
    fn begin(&self, points: u64);
    /// So many are done.
    fn done(&self, points: u64);
}

/// Timing profiles, workloads and axes, for people.
pub fn list() -> String {
    let mut out = String::from("timing profiles (--timing):\n");
    for name in profile::built_in() {
        let about = profile::find(name).map(|file| file.profile.description);
        let _ = writeln!(out, "  {name:<12} {}", about.unwrap_or_default());
    }
    out += "\nworkloads (--workload):\n";
    for (name, about) in workload::built_in() {
        let _ = writeln!(out, "  {name:<12} {about}");
    }
    out += "\naxes (--sweep AXIS=V1,V2,…):\n";
    for (name, about) in AXES {
        let _ = writeln!(out, "  {name:<12} {about}");
    }
    out
}

/// Writes a file whole or not at all: whoever finds it finds all of it.
fn write(path: &Path, text: &str) -> Result<(), ModelError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|source| {
        // What is left of it is of no use; that it is gone already is no fault.
        let _ = std::fs::remove_file(&beside);
        ModelError::Write {
            path: path.display().to_string(),
            source,
        }
    })
}

fn write_plots(folder: &Path, document: &Document, text: &mut String) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(|source| ModelError::Write {
        path: folder.display().to_string(),
        source,
    })?;
    let plots = svg::plots(document)?;
    for (name, svg) in &plots {
        write(&folder.join(name), svg)?;
    }
    let _ = match plots.len() {
        0 => writeln!(text, "no plots: no axis has several values"),
        n => writeln!(text, "{n} plots in {}", folder.display()),
    };
    Ok(())
}

fn json(document: &Document) -> Result<String, ModelError> {
    document.json().map_err(|e| ModelError::Write {
        path: "the document".into(),
        source: e.into(),
    })
}

/// Runs a sweep or a part of it, writes what was asked for, and returns what is printed.
///
/// # Errors
///
/// [`ModelError`]; a point that the hardware does not admit is none.
pub fn run(args: &RunArgs, progress: &dyn Progress) -> Result<String, ModelError> {
    if args.list {
        return Ok(list());
    }
    let file = profile::find(&args.timing)?;
    let mut workload = workload::find(&args.workload)?;
    if let Some(operations) = args.operations {
        workload.operations = operations;
    }
    let axes = args.sweep.iter().map(|text| Axis::parse(text));
    let sweep = Sweep {
        profile_digest: sweep::digest(&file),
        profile: file.profile,
        workload,
        axes: axes.collect::<Result<_, _>>()?,
        seed: args.seed,
    };
    let shard = args.shard.as_deref().map(Shard::parse).transpose()?;
    let points = sweep.check()?;
    let mine = (0..points).filter(|&n| shard.is_none_or(|shard| shard.has(n)));
    progress.begin(mine.count() as u64);
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or_else(processors, |jobs| jobs as usize);
    let began = Instant::now();
    let document = sweep.run(shard, jobs, &|points| progress.done(points))?;
    let took = began.elapsed().as_secs_f64();
    let whole = json(&document)?;
    if let Some(path) = &args.output {
        write(path, &whole)?;
    }
    let mut text = table::text(&document);
    if let Some(folder) = &args.svg {
        write_plots(folder, &document, &mut text)?;
    }
    if args.json {
        return Ok(whole);
    }
    let results = document.points.iter().filter_map(|p| p.result.as_ref());
    let events: u64 = results.map(|result| result.events).sum();
    let _ = writeln!(
        text,
        "measured: {:.1} million events in {took:.1} s on this machine, tables counted in it",
        events as f64 / 1e6
    );
    Ok(text)
}

fn read(path: &Path) -> Result<(String, Document), ModelError> {
    let name = path.display().to_string();
    let unreadable = |reason: String| MergeError::Unreadable {
        path: name.clone(),
        reason,
    };
    let size = std::fs::metadata(path).map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    if size.len() > PART_BYTES_MAX {
        let reason = "it has more than 1 GiB, which no part has".to_owned();
        return Err(unreadable(reason).into());
    }
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    let document = Document::parse(&name, &text)?;
    Ok((name, document))
}

/// Puts parts together, writes the whole, and returns what is printed.
///
/// # Errors
///
/// [`ModelError`].
pub fn run_merge(args: &MergeArgs) -> Result<String, ModelError> {
    let parts = args.parts.iter().map(|path| read(path));
    let document = merge(parts.collect::<Result<_, _>>()?)?;
    write(&args.output, &json(&document)?)?;
    let mut text = table::text(&document);
    if let Some(folder) = &args.svg {
        write_plots(folder, &document, &mut text)?;
    }
    let (parts, points) = (args.parts.len(), document.points.len());
    let _ = writeln!(
        text,
        "{points} points of {parts} parts in {}",
        args.output.display()
    );
    Ok(text)
}
