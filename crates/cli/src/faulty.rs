//! A demo under a fault plan: which faults were injected, and how each operation that met one
//! ended.

use crate::workload::{Batch, MapAccess};
use offmap_bpf::device::BatchOutcome;
use offmap_bpf::{Errno, MapFile};
use offmap_driver::DriverConfig;
use offmap_emulator::faults::{FaultPlan, FaultReport};
use offmap_emulator::{Emulated, FrontEnd};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// Deadlines while faults are injected: a demo that loses a completion now and then is to end
/// while somebody still watches.
const OP_TIMEOUT: Duration = Duration::from_millis(100);
const ADMIN_TIMEOUT: Duration = Duration::from_millis(400);
/// How many ways to end are told apart; what comes later is counted by operation.
const MET_MAX: usize = 64;

/// What the plan did, as JSON and for the text.
#[derive(Clone, Debug, Serialize)]
pub struct FaultsReport {
    /// The plan's file.
    pub file: String,
    /// Faults injected, of all rules.
    pub injected: u64,
    /// The rules, in the plan's order.
    pub rules: Vec<RuleCounts>,
    /// Operations that met a fault, by operation, rules and end.
    pub met: Vec<Met>,
}

/// What one rule did.
#[derive(Clone, Debug, Serialize)]
pub struct RuleCounts {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub site: &'static str,
    /// What it does.
    pub behaviour: &'static str,
    /// What passed the site and matched.
    pub matched: u64,
    /// How often it acted.
    pub injected: u64,
    /// Flips that the memory's check code corrected.
    pub corrected: u64,
    /// Flips that it detected.
    pub detected: u64,
}

/// Operations that met the same faults and ended the same way.
#[derive(Clone, Debug, Serialize)]
pub struct Met {
    /// The operation.
    pub operation: &'static str,
    /// Names of the rules that acted while it ran.
    pub rules: String,
    /// How it ended: `success`, or the error in a sentence.
    pub ended: String,
    /// How many there were.
    pub count: u64,
}

/// Sees which operations meet faults.
pub(crate) struct Watch {
    file: String,
    injected: Box<dyn Fn() -> u64>,
    report: Box<dyn Fn() -> FaultReport>,
    seen: Cell<u64>,
    by_rule: RefCell<Vec<u64>>,
    met: RefCell<BTreeMap<(&'static str, String, String), u64>>,
}

/// The driver's settings while faults are injected.
pub(crate) fn deadlines(config: DriverConfig) -> DriverConfig {
    DriverConfig {
        op_timeout: OP_TIMEOUT,
        admin_timeout: ADMIN_TIMEOUT,
        ..config
    }
}

impl Watch {
    /// Gives the device the plan, and watches.
    pub(crate) fn begin<E: FrontEnd>(
        device: &Arc<Emulated<E>>,
        plan: &FaultPlan,
        seed: u64,
        file: String,
    ) -> Self {
        // A device that has died says so to the driver at its next access.
        let _ = device.set_faults(plan, seed);
        let (count, whole) = (Arc::clone(device), Arc::clone(device));
        Self {
            file,
            injected: Box::new(move || count.faults_injected().unwrap_or(0)),
            report: Box::new(move || whole.fault_report().unwrap_or_default()),
            seen: Cell::new(0),
            by_rule: RefCell::default(),
            met: RefCell::default(),
        }
    }

    /// An operation ended. What was injected since the last one is what it met.
    pub(crate) fn ended<T>(
        &self,
        operation: &'static str,
        result: &Result<T, impl std::fmt::Display>,
    ) {
        if (self.injected)() == self.seen.get() {
            return;
        }
        let report = (self.report)();
        self.seen.set(report.injected());
        let mut before = self.by_rule.borrow_mut();
        before.resize(report.rules.len(), 0);
        let mut rules = Vec::new();
        for (rule, before) in report.rules.iter().zip(before.iter_mut()) {
            if rule.injected > *before {
                rules.push(rule.name.as_str());
            }
            *before = rule.injected;
        }
        let ended = match result {
            Ok(_) => "success".to_owned(),
            Err(error) => error.to_string(),
        };
        let mut met = self.met.borrow_mut();
        let mut key = (operation, rules.join(", "), ended);
        if met.len() >= MET_MAX && !met.contains_key(&key) {
            // Sentences name queues and requests: there may be any number of them.
            key = (operation, "various".into(), "in further ways".into());
        }
        *met.entry(key).or_default() += 1;
    }

    /// What came of it.
    pub(crate) fn finish(&self) -> FaultsReport {
        let report = (self.report)();
        FaultsReport {
            file: self.file.clone(),
            injected: report.injected(),
            rules: report
                .rules
                .iter()
                .map(|rule| RuleCounts {
                    name: rule.name.clone(),
                    site: rule.site.name(),
                    behaviour: rule.behaviour.name(),
                    matched: rule.matched,
                    injected: rule.injected,
                    corrected: rule.corrected,
                    detected: rule.detected,
                })
                .collect(),
            met: self
                .met
                .borrow()
                .iter()
                .map(|((operation, rules, ended), count)| Met {
                    operation,
                    rules: rules.clone(),
                    ended: ended.clone(),
                    count: *count,
                })
                .collect(),
        }
    }
}

impl FaultsReport {
    /// The lines of the text.
    pub(crate) fn text(&self, out: &mut String) {
        let _ = writeln!(out, "Faults of {}: {} injected.", self.file, self.injected);
        for rule in &self.rules {
            let _ = write!(
                out,
                "  {}: {} at {}, {} of {} matches",
                rule.name, rule.behaviour, rule.site, rule.injected, rule.matched
            );
            if rule.corrected + rule.detected > 0 {
                let _ = write!(
                    out,
                    " ({} corrected, {} detected)",
                    rule.corrected, rule.detected
                );
            }
            let _ = writeln!(out);
        }
        if !self.met.is_empty() {
            let _ = writeln!(out, "Operations that met one, and how they ended:");
        }
        for met in &self.met {
            let _ = writeln!(
                out,
                "  {} × {} ({}): {}",
                met.count, met.operation, met.rules, met.ended
            );
        }
        let _ = writeln!(out);
    }
}

/// An offloaded map whose operations are watched.
pub(crate) struct Watched<'a> {
    pub(crate) file: &'a MapFile,
    pub(crate) watch: &'a Watch,
}

impl Watched<'_> {
    fn one(
        &self,
        operation: &'static str,
        result: Result<(), offmap_bpf::Error>,
    ) -> Result<(), Errno> {
        self.watch.ended(operation, &result);
        result.map_err(|error| error.errno())
    }

    fn batch(&self, operation: &'static str, done: BatchOutcome) -> Batch {
        self.watch.ended(operation, &done.result);
        done.into()
    }
}

impl MapAccess for Watched<'_> {
    fn token_bytes(&self) -> usize {
        self.file.token_bytes()
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        self.one("lookup", self.file.lookup(key, value, flags))
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.one("update", self.file.update(key, value, flags))
    }

    fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.one("delete", self.file.delete(key))
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
        self.one("get_next_key", self.file.get_next_key(key, next))
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        let done = self.file.lookup_and_delete(key, value, flags);
        self.one("lookup_and_delete", done)
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<(), Errno> {
        let done = self.file.lookup_many(keys, values, results);
        self.one("lookup_many", done)
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, elem_flags: u64) -> Batch {
        let done = self.file.update_batch(keys, values, count, elem_flags, 0);
        self.batch("update_batch", done)
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> Batch {
        self.batch("delete_batch", self.file.delete_batch(keys, count, 0, 0))
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> Batch {
        if delete {
            let done = self
                .file
                .lookup_and_delete_batch(in_batch, out_batch, keys, values, count, 0, 0);
            self.batch("lookup_and_delete_batch", done)
        } else {
            let done = self
                .file
                .lookup_batch(in_batch, out_batch, keys, values, count, 0, 0);
            self.batch("lookup_batch", done)
        }
    }
}
