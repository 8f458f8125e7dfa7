//! `offmap device test`: the conformance suite on whatever it is pointed at.

use crate::args::{DeviceKind, DeviceTestArgs};
use crate::open::{self, OpenError, Visitor};
use offmap_conformance::coverage::{self, Covered};
use offmap_conformance::host::Notify;
use offmap_conformance::run::{self, Case, Limits, Outcome, Ran};
use offmap_conformance::{Bench, Wanted};
use offmap_device_io::Function;
use offmap_emulator::faults::{FaultFileError, FaultPlan};
use offmap_emulator::{DeviceConfig, Emulated, EmulatorError, FrontEnd, Inline, Threaded};
use serde::Serialize;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;

/// Statuses that no host can bring about on every device that works, and why. The suite wants none of
/// them.
const NOT_WANTED: [(&str, &str); 3] = [
    (
        "MediaError",
        "no host can provoke it: device memory must fail its check",
    ),
    (
        "Interrupted",
        "the device was done each time before ABORT could catch a command that had begun",
    ),
    (
        "Internal",
        "a host provokes it through the window into device memory only, which the device has not, or in which no \
         entry of a map of maps was found",
    ),
];

/// How long a case waits for any one thing on a device with a fault plan, which may never come.
const PATIENCE_WITH_FAULTS: Duration = Duration::from_secs(2);

/// Why there is no result.
#[derive(Debug, Error)]
pub enum TestError {
    /// The fault plan cannot be used.
    #[error(transparent)]
    Faults(#[from] FaultFileError),
    /// A fault plan, and a device that is elsewhere.
    #[error(
        "--faults is for a device in this process; start `offmap nic --faults FILE` to have the one behind the socket do wrong"
    )]
    FaultsElsewhere,
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No case has that name.
    #[error(
        "no case is called {0:?}, or has that in its name; `offmap device test --list` names them all"
    )]
    NoCase(String),
}

/// A case as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: &'static str,
    /// What it belongs to.
    pub group: &'static str,
    /// The part of docs/abi.md that it tests.
    pub section: &'static str,
    /// How its queues told the device of entries: `doorbells` or `notify-block`.
    pub notify: &'static str,
    /// `passed`, `failed` or `skipped`.
    pub outcome: &'static str,
    /// Why, of a failed or skipped one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// The whole run.
#[derive(Clone, Debug, Serialize)]
pub struct TestReport {
    /// What was tested.
    pub device: String,
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that were skipped.
    pub skipped: usize,
    /// Each case.
    pub cases: Vec<CaseReport>,
    /// Commands that were never sent.
    pub commands_missing: Vec<&'static str>,
    /// Statuses that never came.
    pub statuses_missing: Vec<&'static str>,
    /// How often each command was sent that was.
    #[serde(serialize_with = "as_map")]
    pub commands: Vec<(&'static str, u64)>,
    /// How often each status came that did, those of the elements of batches included.
    #[serde(serialize_with = "as_map")]
    pub statuses: Vec<(&'static str, u64)>,
    /// With a fault plan: faults that it has injected into the devices of all cases together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults_injected: Option<u64>,
    /// How many commands and statuses there are.
    #[serde(skip)]
    of: (usize, usize),
    /// Whether all cases were asked for. What a part of them leaves out is no news.
    #[serde(skip)]
    whole: bool,
}

/// Counts by name, in their order.
fn as_map<S: serde::Serializer>(counts: &[(&str, u64)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(counts.iter().copied())
}

impl CaseReport {
    fn new(ran: &Ran) -> Self {
        let (outcome, why) = match &ran.outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Failed(why) => ("failed", Some(why.clone())),
            Outcome::Skipped(why) => ("skipped", Some(why.clone())),
        };
        Self {
            name: ran.name,
            group: ran.group,
            section: ran.section,
            notify: match ran.notify {
                Notify::Doorbells => "doorbells",
                Notify::Shadow => "notify-block",
            },
            outcome,
            why,
            took_ms: ran.took.as_secs_f64() * 1e3,
        }
    }

    /// Its line, and what is wrong on others.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{:8} {:9} {:46} {:12} {:>8.1} ms\n",
            self.outcome, self.group, self.name, self.notify, self.took_ms
        );
        if let Some(why) = &self.why {
            let rule = match self.outcome {
                "failed" => format!("docs/abi.md {}: ", self.section),
                _ => String::new(),
            };
            let _ = writeln!(text, "         {rule}{}", why.replace('\n', "\n         "));
        }
        text
    }
}

impl TestReport {
    fn new(
        device: String,
        ran: &[Ran],
        covered: Covered,
        faults_injected: Option<u64>,
        whole: bool,
    ) -> Self {
        let count = |f: fn(&Outcome) -> bool| ran.iter().filter(|ran| f(&ran.outcome)).count();
        Self {
            device,
            passed: count(|o| matches!(o, Outcome::Passed)),
            failed: count(|o| matches!(o, Outcome::Failed(_))),
            skipped: count(|o| matches!(o, Outcome::Skipped(_))),
            cases: ran.iter().map(CaseReport::new).collect(),
            commands_missing: [covered.admin_missing, covered.io_missing].concat(),
            statuses_missing: covered.statuses_missing,
            commands: covered.sent,
            statuses: covered.got,
            faults_injected,
            of: covered.of,
            whole,
        }
    }

    /// The summary.
    pub fn text(&self) -> String {
        let mut text = format!(
            "\n{}: {} passed, {} failed, {} skipped\n",
            self.device, self.passed, self.failed, self.skipped
        );
        if let Some(injected) = self.faults_injected {
            let _ = writeln!(text, "faults injected: {injected}");
        }
        if !self.whole {
            return text;
        }
        let (commands, statuses) = self.of;
        let _ = writeln!(
            text,
            "sent {} of {commands} commands, got {} of {statuses} statuses",
            commands - self.commands_missing.len(),
            statuses - self.statuses_missing.len()
        );
        if !self.commands_missing.is_empty() {
            let _ = writeln!(text, "not sent: {}", self.commands_missing.join(", "));
        }
        for status in &self.statuses_missing {
            let wanted = NOT_WANTED.iter().find(|(name, _)| name == status);
            let _ = match wanted {
                Some((_, why)) => writeln!(text, "not seen: {status} ({why})"),
                None => writeln!(text, "not seen: {status}"),
            };
        }
        text
    }

    /// What `--stats` prints: how often each command was sent, and each status got.
    pub fn stats(&self) -> String {
        let mut text = String::new();
        for (what, counts) in [("sent", &self.commands), ("got", &self.statuses)] {
            for (name, count) in counts {
                let _ = writeln!(text, "{what:4}  {name:20} {count:>10}");
            }
        }
        text
    }
}

/// What `--list` prints.
///
/// # Errors
///
/// [`TestError::NoCase`].
pub fn list(args: &DeviceTestArgs) -> Result<String, TestError> {
    let mut text = String::new();
    for case in chosen::<Inline>(args)? {
        let _ = writeln!(text, "{:9} {:46} {}", case.group, case.name, case.section);
    }
    Ok(text)
}

/// Runs the suite; `told` gets each case as it ends.
///
/// # Errors
///
/// [`TestError`]: when nothing could be tested. What the device does wrong is in the report.
pub fn run(
    args: &DeviceTestArgs,
    told: &mut dyn FnMut(&CaseReport),
) -> Result<TestReport, TestError> {
    let faults = args.faults.as_deref().map(FaultPlan::load).transpose()?;
    let suite = Suite { args, told, faults };
    open::visit(&args.device, suite)
}

/// The cases that are asked for.
fn chosen<F: Function>(args: &DeviceTestArgs) -> Result<Vec<Case<F>>, TestError> {
    let all = run::cases::<F>();
    let Some(only) = &args.only else {
        return Ok(all);
    };
    let exact: Vec<_> = all
        .iter()
        .copied()
        .filter(|case| case.name == only)
        .collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let some = all.iter().copied();
    let some: Vec<_> = some
        .filter(|case| case.name.contains(only.as_str()) || case.group == only)
        .collect();
    match some.is_empty() {
        true => Err(TestError::NoCase(only.clone())),
        false => Ok(some),
    }
}

/// The device that a case wants.
fn config(wanted: &Wanted) -> DeviceConfig {
    let mut config = DeviceConfig::default();
    let firmware = &mut config.firmware;
    firmware.memory_bytes = wanted.memory_bytes;
    firmware.maps = wanted.maps.unwrap_or(firmware.maps);
    firmware.entries_per_map = wanted.entries_per_map.unwrap_or(firmware.entries_per_map);
    firmware.entries_total = wanted.entries_total.unwrap_or(firmware.entries_total);
    config.polls_before_park = wanted.polls_before_park.unwrap_or(config.polls_before_park);
    config.look_again_us = wanted.look_again_us.unwrap_or(config.look_again_us);
    config
}

struct Suite<'a> {
    args: &'a DeviceTestArgs,
    told: &'a mut dyn FnMut(&CaseReport),
    faults: Option<FaultPlan>,
}

/// Gives each device of a run its fault plan, and counts what the plan does to all of them.
struct Faulty<E> {
    plan: FaultPlan,
    seed: u64,
    /// Faults of the devices before, and the last device, whose case may be under way.
    injected: Mutex<(u64, Option<Arc<Emulated<E>>>)>,
}

impl<E: FrontEnd> Faulty<E> {
    fn new(plan: FaultPlan, seed: u64) -> Self {
        Self {
            plan,
            seed,
            injected: Mutex::new((0, None)),
        }
    }

    /// Adds up what was injected until now.
    fn sum(&self, next: Option<Arc<Emulated<E>>>) -> u64 {
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        let (sum, last) = &mut *injected;
        if let Some(last) = std::mem::replace(last, next) {
            // One that has died tells nothing any more.
            *sum += last.faults_injected().unwrap_or(0);
        }
        *sum
    }

    fn take(&self, device: &Arc<Emulated<E>>) {
        self.sum(Some(Arc::clone(device)));
        device
            .set_faults(&self.plan, self.seed)
            .expect("a device that was just built lives");
    }
}

impl Suite<'_> {
    /// The suite on devices of this process.
    fn emulated<E: FrontEnd>(
        mut self,
        device: &str,
        build: fn(DeviceConfig) -> Result<Arc<Emulated<E>>, EmulatorError>,
    ) -> Result<TestReport, TestError> {
        let plan = self.faults.take();
        let faulty = plan.map(|plan| Arc::new(Faulty::new(plan, self.args.seed)));
        let patience = faulty.as_ref().map(|_| PATIENCE_WITH_FAULTS);
        let injected = || faulty.as_ref().map(|faulty| faulty.sum(None));
        let mut open = |notify| {
            let faulty = faulty.clone();
            let make = move |wanted: &Wanted| {
                let device = build(config(wanted)).expect("a device can be built");
                if let Some(faulty) = &faulty {
                    faulty.take(&device);
                }
                device
            };
            Ok(Bench::made(make, notify))
        };
        self.run(device.to_owned(), &mut open, patience, &injected)
    }

    fn run<F: Function>(
        self,
        device: String,
        open: &mut run::Open<'_, F>,
        patience: Option<Duration>,
        injected: &dyn Fn() -> Option<u64>,
    ) -> Result<TestReport, TestError> {
        let limits = Limits::default();
        let limits = Limits {
            case: Duration::from_secs(self.args.case_limit),
            patience: patience.unwrap_or(limits.patience),
        };
        let ran = run::run(
            &chosen(self.args)?,
            &[Notify::Doorbells, Notify::Shadow],
            open,
            &limits,
            &mut |ran| (self.told)(&CaseReport::new(ran)),
        );
        let whole = self.args.only.is_none();
        Ok(TestReport::new(
            device,
            &ran,
            coverage::covered(),
            injected(),
            whole,
        ))
    }
}

impl Visitor for Suite<'_> {
    type Out = Result<TestReport, TestError>;

    fn emulated(self, threaded: bool) -> Self::Out {
        match threaded {
            true => Suite::emulated(self, "emulated (threaded)", Threaded::spawn),
            false => Suite::emulated(self, "emulated (inline)", Inline::new),
        }
    }

    fn elsewhere<F: Function>(
        self,
        mut open: impl FnMut() -> Result<Arc<F>, OpenError>,
    ) -> Self::Out {
        if self.faults.is_some() {
            return Err(TestError::FaultsElsewhere);
        }
        // The kernel stands between a driver and a device that it lends.
        let owns_config = !matches!(self.args.device, DeviceKind::Vfio(_));
        // A device that is not there is no device that fails.
        let first = open()?;
        let device = first.describe();
        let mut first = Some(first);
        let mut open = |notify| {
            let function = match first.take() {
                Some(first) => first,
                None => open().map_err(|e| e.to_string())?,
            };
            let mut bench = Bench::given(function, notify);
            bench.owns_config = owns_config;
            Ok(bench)
        };
        self.run(device, &mut open, None, &|| None)
    }
}
