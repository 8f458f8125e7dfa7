//! The bpffs and its pins against the running kernel's: random sequences of directory
//! operations, pins and opens with good and bad names, by several users; same error numbers,
//! stats, names and maps.
//!
//! `OFFMAP_PIN_OPS` sets the operations, `OFFMAP_SEED` replays a run.
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_tests::kernel::enter_bpffs_world;
use offmap_tests::pins::{Op, Ours, Outcome, Side, Theirs, agree, sequence};
use offmap_tests::report::{aloud, env_number, required, seed};
use std::collections::BTreeMap;
use std::fs;
use std::mem::{Discriminant, discriminant};

/// Operations when the environment does not say.
const OPS: u64 = 200_000;
/// Operations of one sequence, which starts with an empty tree.
const SEQUENCE_OPS: usize = 500;

type Answer = Result<Outcome, i32>;

/// Runs a sequence; the operation that the sides differ on, and what they said.
fn run(theirs: &mut Theirs, ops: &[Op], mut each: impl FnMut(&Op, &Answer)) -> Option<String> {
    let mut ours = Ours::new();
    let mut difference = None;
    for (i, op) in ops.iter().enumerate() {
        let (their, our) = (theirs.run(op), ours.run(op));
        each(op, &their);
        if !agree(op, &their, &our) {
            difference = Some(format!(
                "operation {i}, {op:?}: kernel {their:?}, ours {our:?}"
            ));
            break;
        }
    }
    theirs.clean().expect("an empty bpffs");
    difference
}

/// The operations that are needed for a difference.
fn shrink(theirs: &mut Theirs, mut ops: Vec<Op>) -> Vec<Op> {
    let mut size = ops.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + size).min(ops.len()));
            if run(theirs, &fewer, |_, _| {}).is_some() {
                ops = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    ops
}

fn compare(base: &std::path::Path) -> Result<(), String> {
    for (name, value) in [("hardlinks", "1"), ("symlinks", "0")] {
        let set = fs::read_to_string(format!("/proc/sys/fs/protected_{name}"));
        if set.as_deref().unwrap_or("").trim() != value {
            return Err(format!("fs.protected_{name} is {set:?}, not {value}"));
        }
    }
    enter_bpffs_world(base).map_err(|error| format!("a private bpffs: {error}"))?;
    let mut theirs = Theirs::new().map_err(|errno| format!("BPF_MAP_CREATE: errno {errno}"))?;
    let first = seed();
    let ops = env_number("OFFMAP_PIN_OPS").unwrap_or(OPS);
    let mut reached: BTreeMap<String, u64> = BTreeMap::new();
    let mut succeeded: Vec<Discriminant<Op>> = Vec::new();
    let mut successes = 0_u64;
    for number in 0..ops.div_ceil(SEQUENCE_OPS as u64) {
        let seed = first.wrapping_add(number);
        let ops = sequence(seed, SEQUENCE_OPS);
        let difference = run(&mut theirs, &ops, |op, answer| {
            let errno = answer.as_ref().err().copied().unwrap_or(0);
            let name = format!("{op:?}");
            let name = name.split('(').next().unwrap_or_default();
            *reached.entry(format!("{name} {errno}")).or_default() += 1;
            if answer.is_ok() {
                successes += 1;
                if !succeeded.contains(&discriminant(op)) {
                    succeeded.push(discriminant(op));
                }
            }
        });
        if let Some(difference) = difference {
            let shrunk = shrink(&mut theirs, ops);
            let shortest = run(&mut theirs, &shrunk, |_, _| {});
            panic!("OFFMAP_SEED={seed}: {difference}\n{shrunk:?}\n{shortest:?}");
        }
    }
    aloud(&format!(
        "pins: seed {first}, {ops} operations, {successes} succeeded; operation and errno: \
         {reached:?}"
    ));
    assert!(succeeded.len() == 18, "{} kinds succeeded", succeeded.len());
    assert!(successes * 8 >= ops, "{successes} of {ops} succeeded");
    Ok(())
}

#[test]
fn as_the_kernels() {
    let base = std::env::temp_dir().join(format!("offmap-pins-{}", std::process::id()));
    fs::create_dir_all(&base).unwrap();
    let inside = base.clone();
    // The thread's name space goes with it.
    let compared = std::thread::spawn(move || compare(&inside)).join();
    fs::remove_dir(&base).unwrap();
    match compared {
        Ok(Ok(())) => {}
        Ok(Err(why)) => {
            aloud(&format!("pins: THE KERNEL TAKES NO PART ({why})"));
            assert!(!required("OFFMAP_REQUIRE_KERNEL"), "{why}");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
