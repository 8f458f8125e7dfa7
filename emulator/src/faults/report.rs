//! What a plan has done so far.

use super::rule::{Behaviour, Site};
use offmap_abi::RequestId;
use offmap_firmware_model::hook::BitFlips;
use std::fmt;

/// What a plan has done since it was given to the device.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FaultReport {
    /// The seed that it was given with.
    pub seed: u64,
    /// Steps that the device has done since, those that did nothing included.
    pub steps: u64,
    /// The rules, in the plan's order.
    pub rules: Vec<RuleReport>,
    /// The first [`FaultReport::INJECTIONS_MAX`] injections, in order.
    pub injections: Vec<Injection>,
}

impl FaultReport {
    /// How many injections are kept one by one; the rules count all of them.
    pub const INJECTIONS_MAX: usize = 4096;

    /// How many faults were injected.
    pub fn injected(&self) -> u64 {
        self.rules.iter().map(|rule| rule.injected).sum()
    }
}

/// What one rule has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleReport {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub site: Site,
    /// What it does.
    pub behaviour: Behaviour,
    /// What passed the site and matched.
    pub matched: u64,
    /// How often it acted.
    pub injected: u64,
    /// Flips of device memory that the check code corrected.
    pub corrected: u64,
    /// Flips of device memory that the check code detected.
    pub detected: u64,
}

/// One fault that was injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// The step in which it was, counted from 1; 0: before the first.
    pub step: u64,
    /// The rule, counted from 1.
    pub rule: usize,
    /// Which of the rule's matches it was, counted from 1.
    pub matched: u64,
    /// The queue, where one is known.
    pub queue: Option<u16>,
    /// The command's request, where one is known.
    pub request: Option<RequestId>,
    /// What was accessed, where it has an address: an IOVA, a device address, an offset in BAR 0.
    pub at: Option<u64>,
    /// The bits that were flipped, of the bytes of what passed.
    pub flips: Option<BitFlips>,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rule {}, match {}, step {}",
            self.rule, self.matched, self.step
        )?;
        if let Some(queue) = self.queue {
            write!(f, ", queue {queue}")?;
        }
        if let Some(request) = self.request {
            write!(f, ", {request}")?;
        }
        Ok(())
    }
}
