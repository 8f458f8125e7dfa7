//! Random plans over random operations: what must hold whatever goes wrong.

use super::{Rig, Sim, hash, value_of};
use offmap_abi::regs;
use offmap_device_io::Function;
use offmap_driver::{DeviceMap, DriverError, Op, Status, SubmitError, Token};
use offmap_emulator::faults::{Behaviour, Delay, FaultPlan, FaultReport, Rule, Site};
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a value: too many for a completion, so that values travel by DMA.
const VALUE: u32 = 64;
/// Operations of a run.
const OPERATIONS: u32 = 60;

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What the plan did.
    pub report: FaultReport,
    /// Operations that ended, by how: a status' or an error's first word.
    pub ended: BTreeMap<String, u64>,
}

fn behaviour(rng: &mut Xoshiro256PlusPlus) -> Behaviour {
    match rng.random_range(0..16u32) {
        0 | 1 => Behaviour::Drop,
        2 => Behaviour::Delay(Delay::Steps(rng.random_range(1..2000))),
        3 => Behaviour::Delay(Delay::Time(Duration::from_millis(rng.random_range(1..10)))),
        4 => Behaviour::Duplicate,
        5 => Behaviour::Reorder {
            behind: rng.random_range(1..5),
        },
        6 | 7 => Behaviour::Flip {
            bits: rng.random_range(1..4),
            at: None,
        },
        8 => Behaviour::Fail,
        9 => Behaviour::Tear {
            bytes: rng.random_range(0..64),
        },
        10 => Behaviour::NoMemory,
        11 => Behaviour::Slow {
            steps: rng.random_range(1..3000),
        },
        12 => Behaviour::StopFirmware,
        13 => Behaviour::Fatal,
        14 => Behaviour::Reset,
        _ => Behaviour::Unplug,
    }
}

/// One to four rules.
///
/// # Panics
///
/// Never: an empty plan takes any word.
pub fn plan(rng: &mut Xoshiro256PlusPlus) -> FaultPlan {
    let mut plan = FaultPlan::new();
    if rng.random_range(0..3u32) == 0 {
        plan = plan.with_ecc().expect("a plan without rules");
    }
    let wanted = rng.random_range(1..5usize);
    while plan.len() < wanted {
        let site = Site::ALL[rng.random_range(0..Site::ALL.len())];
        let mut rule = Rule::new(site, behaviour(rng));
        rule = match rng.random_range(0..4u32) {
            0 => rule.nth(rng.random_range(1..40)),
            1 => rule.every(rng.random_range(2..40)),
            2 => rule.probability(f64::from(rng.random_range(1..30u32)) / 100.0),
            _ => {
                let first = rng.random_range(1..40);
                rule.from(first).to(first + rng.random_range(0..4u64))
            }
        };
        // What does not fit together is drawn again.
        if let Ok(more) = plan.clone().with(rule) {
            plan = more;
        }
    }
    plan
}

/// Whether a rule may have changed the bytes of what was asked or answered.
fn lies(report: &FaultReport) -> bool {
    report.rules.iter().any(|rule| {
        matches!(rule.behaviour, Behaviour::Flip { .. }) && rule.injected > rule.corrected
    })
}

fn word(error: &DriverError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .into()
}

/// The run of one seed.
struct Run {
    rig: Rig,
    rng: Xoshiro256PlusPlus,
    seed: u64,
    in_flight: Vec<(Token, u64)>,
    ended: BTreeMap<String, u64>,
}

/// Runs a random plan over random operations.
///
/// # Panics
///
/// With the seed, when a call takes longer than its deadlines, a completion goes to a request
/// that it is not of, or the device does not work after a reset.
pub fn run(seed: u64) -> Outcome {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let plan = plan(&mut rng);
    let rig = Rig::new(VALUE);
    rig.faults(&plan, seed);
    let mut run = Run {
        rig,
        rng,
        seed,
        in_flight: Vec::new(),
        ended: BTreeMap::new(),
    };
    for _ in 0..OPERATIONS {
        run.operation();
    }
    run.drain();
    let report = run.rig.report();
    let unplugged = gone(&run.rig.device);
    match run.rig.works_after_reset() {
        Ok(()) => assert!(!unplugged, "seed {seed}: an unplugged device works"),
        Err(DriverError::DeviceGone { .. }) => {
            assert!(unplugged, "seed {seed}: gone after a reset\n{report:?}");
        }
        Err(e) => panic!("seed {seed}: does not work after a reset: {e}\n{report:?}"),
    }
    Outcome {
        report,
        ended: run.ended,
    }
}

fn gone(device: &Arc<Sim>) -> bool {
    let mut id = [0; 2];
    device.config_read(0, &mut id).expect("config space");
    let id = u16::from_le_bytes(id);
    assert!(id == 0xffff || id == regs::PCI_VENDOR_ID);
    id == 0xffff
}

impl Run {
    fn count(&mut self, how: String) {
        *self.ended.entry(how).or_default() += 1;
    }

    /// Takes note of how a call ended.
    fn ended<T: Debug>(&mut self, result: Result<T, DriverError>) {
        match result {
            Ok(value) => self.count(format!("{value:?}")),
            Err(e) => {
                // A sentence, whatever it was.
                assert!(!e.to_string().is_empty());
                self.count(word(&e));
            }
        }
    }

    fn operation(&mut self) {
        if self.rig.queue.is_dead() {
            // Its commands ended with it.
            self.in_flight.clear();
            match self.rig.bounded(|rig| rig.driver.create_queue()) {
                Ok(queue) => self.rig.queue = queue,
                Err(e) => {
                    self.count(word(&e));
                    match self.rig.driver.reset() {
                        Ok(()) => self.count("reset".into()),
                        Err(e) => self.count(word(&e)),
                    }
                    if let Ok(map) = self.rig.bounded(|rig| rig.driver.create_map(&hash(VALUE))) {
                        self.rig.map = map;
                    }
                    return;
                }
            }
        }
        let key = self.rng.random_range(0..20u64);
        let bytes = key.to_le_bytes();
        match self.rng.random_range(0..12u32) {
            0..4 => {
                let map = self.rig.map;
                match self.rig.queue.submit_lookup(&map, &bytes) {
                    Ok(token) => self.in_flight.push((token, key)),
                    Err(SubmitError::Full) => self.drain(),
                    Err(SubmitError::Driver(e)) => self.count(word(&e)),
                }
            }
            4..6 => self.take_one(),
            6..8 => {
                let mut out = [0xa5; VALUE as usize];
                let done = self
                    .rig
                    .bounded(|rig| rig.queue.lookup(&rig.map, &bytes, &mut out));
                if done.as_ref().is_ok_and(|status| status.is_success()) {
                    self.check_value(key, &out);
                }
                self.ended(done);
            }
            8..10 => {
                let value = value_of(key, VALUE as usize);
                let done = self
                    .rig
                    .bounded(|rig| rig.queue.update(&rig.map, &bytes, &value, 0));
                self.ended(done);
            }
            10 => match self.rig.bounded(|rig| rig.driver.create_map(&hash(8))) {
                Ok(map) => {
                    let freed = self.rig.bounded(|rig| rig.driver.free_map(&map));
                    self.ended(freed);
                }
                Err(e) => self.ended(Err::<DeviceMap, _>(e)),
            },
            _ => self.batch(),
        }
    }

    fn batch(&mut self) {
        let keys: Vec<u8> = (0..6u64).flat_map(u64::to_le_bytes).collect();
        let mut values = vec![0; 6 * VALUE as usize];
        let mut found = [Status::NotFound; 6];
        let done = self.rig.bounded(|rig| {
            rig.queue
                .lookup_batch(&rig.map, &keys, &mut values, |i, status| found[i] = status)
        });
        if done.as_ref().is_ok_and(|status| status.is_success()) {
            for (i, value) in values.chunks(VALUE as usize).enumerate() {
                if found[i].is_success() {
                    self.check_value(i as u64, value);
                }
            }
        }
        self.ended(done);
    }

    /// Waits for a command in flight.
    fn take_one(&mut self) {
        let mut out = [0; VALUE as usize];
        let taken = self.rig.bounded(|rig| {
            rig.queue.wait().map(|finished| {
                finished.map(|finished| {
                    let copied = finished.value(&mut out);
                    (finished.token(), finished.status(), copied)
                })
            })
        });
        match taken {
            Ok(None) => assert!(
                self.in_flight.is_empty(),
                "seed {}: commands in flight are forgotten",
                self.seed
            ),
            Ok(Some((token, status, copied))) => {
                let found = self.in_flight.iter().position(|(t, _)| *t == token);
                let Some(index) = found else {
                    panic!("seed {}: a completion of nobody's, or twice", self.seed);
                };
                let (_, key) = self.in_flight.swap_remove(index);
                self.count(format!("{status:?}"));
                if status.is_success() && copied.is_ok() {
                    self.check_value(key, &out);
                }
            }
            Err(e) => {
                self.count(word(&e));
                // An abort that came in time leaves the queue usable, with what is in flight.
                if self.rig.queue.is_dead() {
                    self.in_flight.clear();
                }
            }
        }
    }

    fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.take_one();
        }
    }

    fn check_value(&self, key: u64, value: &[u8]) {
        if value == value_of(key, VALUE as usize) {
            return;
        }
        let report = self.rig.report();
        assert!(
            lies(&report),
            "seed {}: key {key} has the value {value:x?}\n{report:?}",
            self.seed
        );
    }
}

/// Lookups of keys 0 to `count`, in flight at once, and the order in which they came back.
///
/// # Errors
///
/// What ended the queue.
///
/// # Panics
///
/// When one has another one's value.
pub fn pipelined(rig: &mut Rig, count: u64) -> Result<Vec<u64>, DriverError> {
    let len = rig.map.value_stride();
    let map = rig.map;
    let mut sent = Vec::new();
    for key in 0..count {
        let key_bytes = key.to_le_bytes();
        let op = Op::Lookup {
            map: &map,
            key: &key_bytes,
        };
        match rig.queue.write(&op) {
            Ok(token) => sent.push((token, key)),
            Err(SubmitError::Driver(e)) => return Err(e),
            Err(SubmitError::Full) => break,
        }
    }
    let mut order = Vec::new();
    let mut out = vec![0; len];
    while let Some(finished) = rig.queue.wait()? {
        let token = finished.token();
        let found = sent.iter().find(|(t, _)| *t == token);
        let (_, key) = found.expect("a token that was given out");
        if finished.value(&mut out)?.is_success() {
            assert_eq!(out, value_of(*key, len), "key {key}");
        }
        order.push(*key);
    }
    Ok(order)
}
