//! Runs cases one by one: what came of each, in which time, and none of them for ever.

use crate::host::{self, Host, Notify};
use crate::{Bench, Skipped, conformance_suite, coverage};
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

/// How many times [`Limits::case`] a case may take in all.
pub const ENDLESS: u32 = 10;

/// How the suite is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The longest that a case may take without an answer of the device; after that it has failed. While the
    /// device answers a case may take [`ENDLESS`] times that: a slow machine is no fault of the device.
    pub case: Duration,
    /// The longest that a case waits for any one thing.
    pub patience: Duration,
}

impl Default for Limits {
    /// A minute without an answer for a case, five seconds for an answer.
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

/// How a case did not end: its thread is left behind with what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Late {
    /// Nothing came from the device for the limit of a case.
    Silent,
    /// The device went on, so many answers, for [`ENDLESS`] times that.
    Endless(u64),
}

impl Late {
    /// What is said of it.
    fn sentence(self, limits: &Limits) -> String {
        match self {
            Self::Silent => format!(
                "no end, and no answer of the device for {:?}; where the machine is that busy, --case-limit gives \
                 a case more time",
                limits.case
            ),
            Self::Endless(answers) => format!(
                "no end within {:?}, though the device went on and gave {answers} answers: the case does not end, or \
                 the machine is too slow for it; --case-limit gives it more time",
                limits.case * ENDLESS
            ),
        }
    }
}

/// Waits for the end of a case, as long as the device goes on.
fn await_end<T>(ended: &mpsc::Receiver<T>, limit: Duration) -> Result<T, Late> {
    let (started, first) = (Instant::now(), coverage::answers());
    let (mut seen, mut since) = (first, started);
    loop {
        // Often enough that a limit is kept to a tenth.
        match ended.recv_timeout((limit / 10).max(Duration::from_millis(1))) {
            Ok(ended) => return Ok(ended),
            Err(RecvTimeoutError::Disconnected) => return Err(Late::Silent),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let (now, answers) = (Instant::now(), coverage::answers());
        if answers != seen {
            (seen, since) = (answers, now);
        }
        if now.duration_since(since) >= limit {
            return Err(Late::Silent);
        }
        if now.duration_since(started) >= limit.saturating_mul(ENDLESS) {
            return Err(Late::Endless(answers - first));
        }
    }
}

/// Runs one case on a thread of its own.
fn run_case<F: Function>(
    case: Case<F>,
    bench: &Arc<Bench<F>>,
    limit: Duration,
) -> Result<Outcome, Late> {
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
        Err(e) => return Ok(Outcome::Failed(format!("no thread for the case: {e}"))),
    };
    let outcome = match await_end(&ended, limit)? {
        Ok(()) => Outcome::Passed,
        Err(payload) => match payload.downcast::<Skipped>() {
            Ok(skipped) => Outcome::Skipped(skipped.0),
            Err(payload) => {
                let first = first_panic().take();
                Outcome::Failed(first.unwrap_or_else(|| payload_text(&*payload).into()))
            }
        },
    };
    // It has said how it ended, and does nothing after that.
    let _ = thread.join();
    Ok(outcome)
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
            Err(late) => {
                self.given_up = Some(format!("{} has not ended", case.name));
                Outcome::Failed(late.sentence(self.limits))
            }
            Ok(failed @ Outcome::Failed(_)) => {
                drop(bench);
                if let Err(why) = self.renew() {
                    self.given_up = Some(format!("the device does not come up any more: {why}"));
                }
                failed
            }
            Ok(outcome) => {
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
            Ok(Outcome::Passed) => {
                self.bench = Some(bench);
                Ok(())
            }
            Ok(Outcome::Failed(why) | Outcome::Skipped(why)) => Err(why),
            Err(late) => Err(late.sentence(self.limits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offmap_abi::Status;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A case that ends late ends well while the device answers; it is late when the device says nothing more,
    /// or goes on for ever. What is said names the two apart.
    #[test]
    fn a_slow_case_is_late_only_without_answers() {
        const LIMIT: Duration = Duration::from_millis(200);
        let answering = Arc::new(AtomicBool::new(true));
        let device = thread::spawn({
            let answering = Arc::clone(&answering);
            move || {
                while answering.load(Ordering::Relaxed) {
                    coverage::got(Status::Success);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let (done, ended) = mpsc::channel();
        let case = thread::spawn(move || {
            thread::sleep(3 * LIMIT);
            done.send(7).unwrap();
        });
        assert_eq!(await_end(&ended, LIMIT), Ok(7));
        case.join().unwrap();
        let (_never, ended) = mpsc::channel::<u8>();
        let late = await_end(&ended, LIMIT).unwrap_err();
        assert!(matches!(late, Late::Endless(n) if n > 0), "{late:?}");
        answering.store(false, Ordering::Relaxed);
        device.join().unwrap();
        let silent = await_end(&ended, LIMIT).unwrap_err();
        assert_eq!(silent, Late::Silent);
        let limits = Limits {
            case: LIMIT,
            ..Limits::default()
        };
        let said = late.sentence(&limits);
        assert!(said.contains("went on") && said.contains("2s"), "{said}");
        let said = silent.sentence(&limits);
        assert!(said.contains("no answer of the device for 200ms"), "{said}");
        assert!(said.contains("--case-limit"), "{said}");
    }
}
