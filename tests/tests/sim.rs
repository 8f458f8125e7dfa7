//! The deterministic simulation as a test: fresh seeds for a bounded time, pinned ones, and that
//! its checkers see planted bugs.
//!
//! `OFFMAP_SIM_SECONDS` is the time that fresh seeds get, 10 s without it; `OFFMAP_SIM_FROM` is the
//! first of them, from the clock without it. Both are printed, and so is the line that replays one
//! that fails.

use offmap_emulator::faults::{Behaviour, Delay, FaultPlan, Rule, Site};
use offmap_sim::{Check, Config, Faults, Mutation, Report, Violation, campaign};
use offmap_tests::report::{aloud, env_number, seed};
use std::time::Duration;

/// Where nothing else is said.
const SECONDS: u64 = 10;
/// Seeds in which each planted bug must have shown.
const MUTATION_SEEDS: u64 = 1000;

fn run(config: &Config) -> Report {
    campaign(config, &mut |_| ())
}

#[track_caller]
fn no_violation(report: &Report) {
    for violation in &report.violations {
        for line in &violation.trace {
            aloud(line);
        }
        aloud(&format!("{}\n  {}", violation.what, violation.replay()));
    }
    let count = report.violations.len();
    assert_eq!(count, 0, "{count} of {} seeds failed", report.seeds);
}

#[test]
fn fresh_seeds_have_no_violation() {
    let from = env_number("OFFMAP_SIM_FROM").unwrap_or_else(seed);
    let seconds = env_number("OFFMAP_SIM_SECONDS").unwrap_or(SECONDS);
    aloud(&format!("sim: seeds from {from}, {seconds} s"));
    let report = run(&Config {
        from,
        seeds: u64::MAX,
        time: Some(Duration::from_secs(seconds)),
        ..Config::default()
    });
    aloud(&format!(
        "sim: {} seeds from {from}: {} operations, {} of them verified, in {} steps, {} histories, \
         {} searched, {} undecided",
        report.seeds,
        report.operations,
        report.verified,
        report.steps,
        report.maps,
        report.searched,
        report.undecided
    ));
    let faults: u64 = report.faults_injected.values().sum();
    aloud(&format!(
        "sim: {faults} faults in {} of the seeds",
        report.faulty_seeds
    ));
    no_violation(&report);
    // What is excused is not checked; with a plan in half of the seeds it is a few in a hundred.
    assert!(
        report.verified <= report.operations && report.verified * 10 >= report.operations * 9,
        "{} of {} operations verified",
        report.verified,
        report.operations
    );
    // A checker that gives up has checked nothing.
    assert!(report.undecided * 500 <= report.maps + 500, "{report:?}");
}

/// Each behaviour at each site that it fits; of those that break the whole device each one, and
/// each somewhere.
#[test]
fn every_kind_of_fault_is_injected() {
    let report = run(&Config {
        from: 1,
        seeds: 800,
        faults: Faults::All,
        ..Config::default()
    });
    no_violation(&report);
    assert_eq!(report.faulty_seeds, 800);
    let count = |kind: &str| report.faults_injected.get(kind).copied().unwrap_or(0);
    let gentle = [
        "delay",
        "drop",
        "duplicate",
        "fail",
        "flip",
        "no-memory",
        "reorder",
        "slow",
        "tear",
    ];
    let mut missing = Vec::new();
    let fits = [
        Behaviour::Drop,
        Behaviour::Delay(Delay::Steps(1)),
        Behaviour::Duplicate,
        Behaviour::Reorder { behind: 1 },
        Behaviour::Flip { bits: 1, at: None },
        Behaviour::Fail,
        Behaviour::Tear { bytes: 0 },
        Behaviour::NoMemory,
        Behaviour::Slow { steps: 1 },
        Behaviour::StopFirmware,
        Behaviour::Fatal,
        Behaviour::Reset,
        Behaviour::Unplug,
    ];
    for behaviour in fits {
        let sites = Site::ALL.into_iter().filter(|site| behaviour.fits(*site));
        let kinds: Vec<String> = sites.map(|site| format!("{behaviour} at {site}")).collect();
        if gentle.contains(&behaviour.name()) {
            missing.extend(kinds.into_iter().filter(|kind| count(kind) == 0));
        } else if kinds.iter().all(|kind| count(kind) == 0) {
            missing.push(behaviour.name().into());
        }
    }
    for kind in ["flip at memory-read", "flip at memory-write"] {
        for end in ["corrected", "detected"] {
            let kind = format!("{kind}, {end}");
            if count(&kind) == 0 {
                missing.push(kind);
            }
        }
    }
    assert!(
        missing.is_empty(),
        "{missing:?} of {:#?}",
        report.faults_injected
    );
}

/// A plan without an effect changes nothing, and one that breaks everything is no violation.
#[test]
fn plans_from_outside_are_taken() {
    let with = |plan: FaultPlan| {
        run(&Config {
            from: 9,
            seeds: 40,
            faults: Faults::Plan {
                plan,
                file: "a plan.toml".into(),
            },
            ..Config::default()
        })
    };
    let lost = Rule::new(Site::Complete, Behaviour::Drop).every(100);
    let report = with(FaultPlan::new().with(lost).unwrap());
    no_violation(&report);
    assert_eq!(report.faulty_seeds, 40);
    let drops = report.faults_injected["drop at complete"];
    assert!(drops > 100, "{drops}");
    assert_eq!(report.faults_injected.len(), 1);
    // More faults than a report of the device keeps one by one.
    let slow = Rule::new(Site::Step, Behaviour::Slow { steps: 1 }).times(5000);
    let lost = Rule::new(Site::Complete, Behaviour::Drop).every(200);
    let report = with(FaultPlan::new().with(slow).unwrap().with(lost).unwrap());
    no_violation(&report);
    let slowed = report.faults_injected["slow at step"];
    assert!(slowed > 40 * 4096, "{slowed}");
    for behaviour in [Behaviour::Fatal, Behaviour::Reset] {
        let rule = Rule::new(Site::Fetch, behaviour);
        no_violation(&with(FaultPlan::new().with(rule).unwrap()));
    }
    let all_ones = Rule::new(Site::RegisterRead, Behaviour::Drop);
    no_violation(&with(FaultPlan::new().with(all_ones).unwrap()));
}

/// Seeds that once failed, or that hold what others rarely do.
#[test]
fn pinned_seeds_have_no_violation() {
    // Until the driver looked at the event word after a completion head, one seed in thirty (of 360
    // actions then) left a device parked that had work and, since that head, room for completions.
    let report = run(&Config {
        from: 2950,
        seeds: 100,
        ..Config::default()
    });
    no_violation(&report);
    assert_eq!(report.seeds, 100);
}

#[test]
fn every_kind_of_event_happens() {
    let report = run(&Config {
        from: 1,
        seeds: 300,
        ..Config::default()
    });
    no_violation(&report);
    for event in [
        "abort",
        "abort midway",
        "abort too late",
        "foreign reset",
        "idle",
        "kick",
        "long stall",
        "map freed",
        "park",
        "queue deleted",
        "queue deleted midway",
        "removal",
        "reset",
        "reset in a call",
        "reset midway",
        "stall",
        "thread died",
    ] {
        let count = report.events.get(event).copied().unwrap_or(0);
        assert!(count > 0, "no {event} in 300 seeds: {:?}", report.events);
    }
    assert!(report.operations > 300 * 100, "{report:?}");
}

#[test]
fn the_same_seeds_do_the_same() {
    let config = Config {
        from: 77,
        seeds: 40,
        ..Config::default()
    };
    let (first, second) = (run(&config), run(&config));
    assert_eq!(first, second);
    let other = run(&Config {
        from: 78,
        ..config.clone()
    });
    assert_ne!(first.digest, other.digest);
    // What came before a seed in its process has no part in it.
    let last = |from, seeds| {
        let shard = (seeds - 1, seeds);
        run(&Config {
            from,
            seeds,
            shard,
            ..Config::default()
        })
    };
    assert_eq!(last(100, 1).digest, last(91, 10).digest);
}

#[test]
fn shards_share_the_seeds_out() {
    let part = |shard| {
        run(&Config {
            from: 5,
            seeds: 30,
            shard,
            ..Config::default()
        })
    };
    let whole = part((0, 1));
    let parts = [part((0, 3)), part((1, 3)), part((2, 3))];
    assert_eq!(parts.iter().map(|p| p.seeds).sum::<u64>(), whole.seeds);
    let operations: u64 = parts.iter().map(|p| p.operations).sum();
    assert_eq!(operations, whole.operations);
}

/// The first violation of a general campaign, with fault plans drawn for every seed; or how often
/// the bug did something, and nothing saw it.
fn first_violation(mutation: Mutation) -> Result<Violation, u64> {
    let report = run(&Config {
        from: 1,
        seeds: MUTATION_SEEDS,
        mutation: Some(mutation),
        faults: Faults::All,
        stop_at_first: true,
        shrink_time: Duration::ZERO,
        ..Config::default()
    });
    let Some(violation) = report.violations.first() else {
        return Err(report.mutated);
    };
    let what: String = violation.what.chars().take(100).collect();
    aloud(&format!(
        "sim: {mutation:?} caught by seed {} of 1 to {MUTATION_SEEDS}: {}: {what}",
        report.seeds,
        violation.check.name()
    ));
    Ok(violation.clone())
}

/// Faults that come again and again, each of which lets a host sleep over what it meets, and no longer:
/// a host that stores its wish too late is found beside them.
#[test]
fn faults_excuse_no_sleep_but_their_own() {
    for rule in [
        Rule::new(Site::Interrupt, Behaviour::Drop).every(12),
        Rule::new(Site::Step, Behaviour::Slow { steps: 2 }).every(40),
    ] {
        let name = rule.name().to_string();
        let mut config = Config {
            from: 1,
            seeds: 150,
            faults: Faults::Plan {
                plan: FaultPlan::new().with(rule).unwrap(),
                file: "a plan.toml".into(),
            },
            shrink_time: Duration::ZERO,
            stop_at_first: true,
            ..Config::default()
        };
        no_violation(&run(&config));
        for mutation in [Mutation::SleepWithoutFence, Mutation::InterruptWithoutFence] {
            config.mutation = Some(mutation);
            let report = run(&config);
            let found = report.violations.first().map(|violation| violation.check);
            aloud(&format!(
                "sim: {mutation:?} beside {name}: {} seeds",
                report.seeds
            ));
            assert_eq!(found, Some(Check::HostWake), "{mutation:?} beside {name}");
        }
    }
}

/// Each by the check that is there for it, and not by what follows from it.
#[test]
fn planted_bugs_are_caught_by_their_checks() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match first_violation(mutation) {
            Ok(violation) if mutation.caught_by().contains(&violation.check) => {}
            Ok(other) => missed.push(format!(
                "{mutation:?} by {:?} and not {:?}: {}",
                other.check,
                mutation.caught_by(),
                other.what
            )),
            Err(mutated) => {
                missed.push(format!("{mutation:?}, which did something {mutated} times"));
            }
        }
    }
    assert!(
        missed.is_empty(),
        "not caught as they should be: {missed:#?}"
    );
}

/// A check that nothing shows to work is none: each has a bug that it alone catches first.
#[test]
fn every_check_has_a_planted_bug() {
    for check in Check::ALL {
        let its = |mutation: &&Mutation| mutation.caught_by() == [check];
        let found = Mutation::ALL.iter().find(its);
        assert!(
            found.is_some(),
            "no planted bug is caught by {check:?} alone"
        );
    }
}

/// A panic of the device or the driver is a violation of its seed; the campaign goes on, and the seed
/// is replayed and made small as any other.
#[test]
fn a_panic_is_a_violation_and_no_end() {
    for mutation in [Mutation::Panics, Mutation::PanicsInCall] {
        let config = Config {
            from: 1,
            seeds: 12,
            mutation: Some(mutation),
            shrink_time: Duration::from_secs(1),
            ..Config::default()
        };
        let report = run(&config);
        assert_eq!(report.seeds, 12, "{mutation:?}");
        assert!(report.violations.len() > 1, "{mutation:?}");
        for violation in &report.violations {
            assert_eq!(violation.check, Check::Panic, "{}", violation.what);
            assert!(violation.what.starts_with("panic: a planted panic"));
        }
        let last = report.violations[0].trace.last();
        assert!(
            last.is_some_and(|line| line.starts_with("violation: panic: ")),
            "{last:?}"
        );
        let seed = report.violations[1].seed;
        let again = run(&Config {
            from: seed,
            seeds: 1,
            ..config
        });
        assert_eq!(again.violations[0].check, Check::Panic);
        assert_eq!(again.violations[0].seed, seed);
    }
}

#[test]
fn a_failure_is_replayed_and_shrunk() {
    let config = Config {
        from: 1,
        seeds: MUTATION_SEEDS,
        mutation: Some(Mutation::LoseWrite),
        stop_at_first: true,
        shrink_time: Duration::from_secs(5),
        ..Config::default()
    };
    let report = run(&config);
    let violation = report.violations.first().expect("a lost write is caught");
    assert_eq!(
        violation.replay(),
        format!("offmap sim --seed {}", violation.seed)
    );
    let (all, least) = violation.actions;
    assert!(least * 4 < all, "{least} of {all} actions are left");
    let last = violation.trace.last().expect("there is a trace");
    assert!(last.starts_with("violation: "), "{last}");
    let again = run(&Config {
        from: violation.seed,
        seeds: 1,
        ..config
    });
    assert_eq!(again.violations.first(), Some(violation));
}
