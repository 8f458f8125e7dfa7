//! Runs cases one by one: what came of each, in which time, and none of them for ever.

use crate::host::{self, Host, Notify};
use crate::{Bench, Skipped, conformance_suite};
use offmap_device_io::Function;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A case.
pub struct Case<F: Function> {
    /// Its name.
    pub name: &'static str,
    /// What it belongs to: the module that it is in.
    pub group: &'static str,
    /// The part of `docs/abi.md` that it tests.
    pub section: &'static str,
    /// The case itself: panics over a fault of the device.
    pub run: fn(&Bench<F>),
}

impl<F: Function> Clone for Case<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Function> Copy for Case<F> {}

/// All cases, in the order in which they are best read.
pub fn cases<F: Function>() -> Vec<Case<F>> {
    conformance_suite!(@list table F)
}

/// What came of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The device did what it must.
    Passed,
    /// It did not.
    Failed(String),
    /// The device at hand has not what the case needs.
    Skipped(String),
}

/// A case that was run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Its name.
    pub name: &'static str,
    /// What it belongs to.
    pub group: &'static str,
    /// The part of `docs/abi.md` that it tests.
    pub section: &'static str,
    /// How its queues told the device of entries.
    pub notify: Notify,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// How the suite is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The longest that a case may take; after that it has failed.
    pub case: Duration,
    /// The longest that a case waits for any one thing.
    pub patience: Duration,
}

impl Default for Limits {
    /// A minute for a case, five seconds for an answer.
    fn default() -> Self {
        Self {
            case: Duration::from_secs(60),
            patience: Duration::from_secs(5),
        }
    }
}

/// Runs a case in a test, where a device that lacks something is a fault of the test.
///
/// # Panics
///
/// As the case does, and when it is skipped.
pub fn whole(case: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(case)) {
        match payload.downcast::<Skipped>() {
            Ok(skipped) => panic!("skipped: {}", skipped.0),
            Err(payload) => panic::resume_unwind(payload),
        }
    }
}

/// Where panics are kept while a case runs. The first one is the cause of the others.
static FIRST_PANIC: Mutex<Option<String>> = Mutex::new(None);
/// One case of this process at a time.
static ONE: Mutex<()> = Mutex::new(());

fn first_panic() -> std::sync::MutexGuard<'static, Option<String>> {
    FIRST_PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on panics of this process are kept instead of printed. They are a case's way to say
/// what is wrong, on whichever of its threads.
fn keep_panics() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let what = payload_text(info.payload());
            let place = info.location().map(|l| {
                let file = l.file().rsplit('/').next().unwrap_or_default();
                format!(" ({file}:{})", l.line())
            });
            let text = format!("{what}{}", place.unwrap_or_default());
            first_panic().get_or_insert(text);
        }));
    });
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

/// Runs one case on a thread of its own. `None`: it did not end in time, and its thread is left
/// behind with what it holds.
fn run_case<F: Function>(
    case: Case<F>,
    bench: &Arc<Bench<F>>,
    deadline: Duration,
) -> Option<Outcome> {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    keep_panics();
    *first_panic() = None;
    let (done, ended) = mpsc::channel();
    let started = thread::Builder::new().name(case.name.into()).spawn({
        let bench = Arc::clone(bench);
        move || {
            let ran = panic::catch_unwind(AssertUnwindSafe(|| (case.run)(&bench)));
            drop(bench);
            // Nobody listens to a case that is too late.
            let _ = done.send(ran);
        }
    });
    let thread = match started {
        Ok(thread) => thread,
        Err(e) => return Some(Outcome::Failed(format!("no thread for the case: {e}"))),
    };
    let outcome = match ended.recv_timeout(deadline) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(payload)) => match payload.downcast::<Skipped>() {
            Ok(skipped) => Outcome::Skipped(skipped.0),
            Err(payload) => {
                let first = first_panic().take();
                Outcome::Failed(first.unwrap_or_else(|| payload_text(&*payload).into()))
            }
        },
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
    };
    // It has said how it ended, and does nothing after that.
    let _ = thread.join();
    Some(outcome)
}

/// What gives a bench for the device: at first, for each way of notifying, and after a failure,
/// so that what a case has left behind is not the next one's fault. The last bench is gone by then.
pub type Open<'o, F> = dyn FnMut(Notify) -> Result<Bench<F>, String> + 'o;

/// Runs `cases` one after the other, in each way of `notifies`, and hands each result to `told` as
/// it comes. Once a case has not ended, or the device does not come up any more, the others
/// are skipped.
pub fn run<F: Function>(
    cases: &[Case<F>],
    notifies: &[Notify],
    open: &mut Open<'_, F>,
    limits: &Limits,
    told: &mut dyn FnMut(&Ran),
) -> Vec<Ran> {
    host::set_patience(limits.patience);
    let mut results = Vec::new();
    let mut given_up = None;
    for &notify in notifies {
        let mut runner = Runner {
            open: &mut *open,
            notify,
            limits,
            bench: None,
            given_up,
        };
        for &case in cases {
            let started = Instant::now();
            let outcome = runner.one(case);
            let ran = Ran {
                name: case.name,
                group: case.group,
                section: case.section,
                notify,
                outcome,
                took: started.elapsed(),
            };
            told(&ran);
            results.push(ran);
        }
        given_up = runner.given_up;
    }
    results
}

/// The cases of one way of notifying.
struct Runner<'r, 'o, F: Function> {
    open: &'r mut Open<'o, F>,
    notify: Notify,
    limits: &'r Limits,
    bench: Option<Arc<Bench<F>>>,
    /// Why no case is run any more.
    given_up: Option<String>,
}

impl<F: Function> Runner<'_, '_, F> {
    fn one(&mut self, case: Case<F>) -> Outcome {
        if let Some(why) = &self.given_up {
            return Outcome::Skipped(why.clone());
        }
        let bench = match self.bench.take() {
            Some(bench) => bench,
            None => match (self.open)(self.notify) {
                Ok(bench) => Arc::new(bench),
                Err(why) => {
                    self.given_up = Some(format!("the device cannot be opened: {why}"));
                    return Outcome::Failed(why);
                }
            },
        };
        match run_case(case, &bench, self.limits.case) {
            None => {
                self.given_up = Some(format!("{} has not ended", case.name));
                Outcome::Failed(format!("no end within {:?}", self.limits.case))
            }
            Some(failed @ Outcome::Failed(_)) => {
                drop(bench);
                if let Err(why) = self.renew() {
                    self.given_up = Some(format!("the device does not come up any more: {why}"));
                }
                failed
            }
            Some(outcome) => {
                self.bench = Some(bench);
                outcome
            }
        }
    }

    /// Whether the device still comes up, after a failure.
    fn renew(&mut self) -> Result<(), String> {
        let bench = Arc::new((self.open)(self.notify)?);
        let bring_up = Case {
            name: "bring-up",
            group: "lifecycle",
            section: "§3 bring-up",
            run: |bench: &Bench<F>| {
                let _: Host<F> = bench.host();
            },
        };
        match run_case(bring_up, &bench, self.limits.case) {
            Some(Outcome::Passed) => {
                self.bench = Some(bench);
                Ok(())
            }
            Some(Outcome::Failed(why) | Outcome::Skipped(why)) => Err(why),
            None => Err(format!("nothing within {:?}", self.limits.case)),
        }
    }
}
