//! `offmap diff` as a test: the same bpf(2) calls, byte for byte, to the running kernel and to
//! ours, and that the comparison would see a difference.
//!
//! `OFFMAP_DIFF_SECONDS` is the time that the campaign gets, and `OFFMAP_SEED` replays one.

use offmap_differential::{Config, Report, RunError, SUCCESS_PERCENT, run};
use offmap_tests::report::{aloud, env_number, required, seed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where nothing else is said.
const SECONDS: u64 = 15;

fn config(seed: u64) -> Config {
    Config {
        calls: u64::MAX,
        time: None,
        seed,
        shard: (0, 1),
        sequence: None,
        possible_cpus: None,
    }
}

/// `None`, said aloud, where the kernel takes no maps of this process.
fn compared(config: &Config) -> Option<Report> {
    // Both sides open the same descriptor numbers, so a process compares one thing at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match run(config, &mut |_| ()) {
        Ok(report) => Some(report),
        Err(error @ RunError::Refused(_)) => {
            assert!(!required("OFFMAP_REQUIRE_KERNEL"), "{error}");
            aloud(&format!("SKIPPED: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_kernel_and_ours_answer_alike() {
    let seed = seed();
    let seconds = env_number("OFFMAP_DIFF_SECONDS").unwrap_or(SECONDS);
    let time = Some(Duration::from_secs(seconds));
    aloud(&format!("diff: seed {seed}, {seconds} s"));
    let Some(report) = compared(&Config {
        time,
        ..config(seed)
    }) else {
        return;
    };
    aloud(&format!(
        "diff: seed {seed}: {} calls in {} sequences, {} % of them successful, {} explained",
        report.calls,
        report.sequences,
        report.success_percent(),
        report.explained_calls()
    ));
    let told: Vec<String> = report
        .first
        .iter()
        .map(|difference| {
            format!(
                "{}\n  replay: offmap diff --seed {seed} --sequence {}",
                difference.what, difference.sequence
            )
        })
        .collect();
    assert_eq!(report.differences, 0, "{}", told.join("\n"));
    assert!(report.success_percent() >= SUCCESS_PERCENT || report.sequences < 4);
}

/// With another number of CPUs on our side, values of per-CPU maps have another size.
#[test]
fn a_planted_difference_is_found() {
    let planted = Config {
        calls: 4000,
        possible_cpus: Some(63),
        ..config(5)
    };
    let Some(report) = compared(&planted) else {
        return;
    };
    assert!(report.differences > 0, "{} calls", report.calls);
    let first = &report.first[0];
    assert!(first.what.contains("percpu"), "{}", first.what);
    // The sequence that it names has it alone, too.
    let alone = compared(&Config {
        sequence: Some(first.sequence),
        ..planted
    });
    let again = alone.expect("the kernel took maps before").first[0].clone();
    assert_eq!((again.sequence, again.call), (first.sequence, first.call));
}

/// The same seed makes the same calls, and parts of a campaign make the whole.
#[test]
fn shards_make_the_whole() {
    let whole = || {
        compared(&Config {
            calls: 1300,
            ..config(7)
        })
    };
    let Some(one) = whole() else {
        return;
    };
    let digest = |config: Config| compared(&config).expect("as before").digest;
    assert_eq!(one.digest, whole().expect("as before").digest);
    let other = Config {
        calls: 1300,
        ..config(8)
    };
    assert_ne!(one.digest, digest(other));
    let of = one.sequences;
    assert!(of > 2);
    let sum = |part: &dyn Fn(u64) -> Config| {
        (0..of).fold(0, |sum: u64, i| sum.wrapping_add(digest(part(i))))
    };
    let shards = sum(&|i| Config {
        calls: 1,
        shard: (i, of),
        ..config(7)
    });
    assert_eq!(one.digest, shards);
    let replayed = sum(&|i| Config {
        sequence: Some(i),
        ..config(7)
    });
    assert_eq!(one.digest, replayed);
}
