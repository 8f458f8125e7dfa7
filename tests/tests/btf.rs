//! BTF against the running kernel: what it accepts of compiled, generated and broken blobs,
//! and of maps with their types; the same error numbers, and the same bytes blanked.
//!
//! `OFFMAP_OPS` sets the number of blobs, `OFFMAP_SEED` replays a run.
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_bpf::Errno;
use offmap_bpf::btf::{Btf, BtfBuilder, Kind, RunningKernel};
use offmap_tests::btf::{Judge, Tally, Verdict, corpus, fuzz_btf, generate, mutate};
use offmap_tests::kernel::{self, Availability};
use offmap_tests::report::{aloud, env_number, required, seed};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::{Duration, Instant};

/// Blobs when the environment does not say.
const BLOBS: u64 = 240_000;
/// How long the fuzz body runs under `cargo test`.
const FUZZ_TIME: Duration = Duration::from_secs(3);

fn kernel_takes_part() -> bool {
    match kernel::availability() {
        Availability::Yes => true,
        Availability::No(why) => {
            assert!(
                !required("OFFMAP_REQUIRE_KERNEL"),
                "OFFMAP_REQUIRE_KERNEL=1, and maps may not be created here ({why})"
            );
            aloud(&format!(
                "btf: THE KERNEL TAKES NO PART, maps may not be created here ({why})"
            ));
            false
        }
    }
}

fn print(what: &str, tally: &Tally, seed: u64, started: Instant) {
    let blobs: Vec<String> = tally
        .blobs
        .iter()
        .map(|(&errno, count)| match errno {
            0 => format!("{count} accepted"),
            _ => format!("{count} {:?}", Errno(errno)),
        })
        .collect();
    let mut maps = std::collections::BTreeMap::<i32, u64>::new();
    for (&(_, errno), count) in &tally.maps {
        *maps.entry(errno).or_default() += count;
    }
    let maps: Vec<String> = maps
        .iter()
        .map(|(&errno, count)| match errno {
            0 => format!("{count} created"),
            _ => format!("{count} {:?}", Errno(errno)),
        })
        .collect();
    let fields: Vec<String> = tally
        .fields
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    aloud(&format!(
        "btf: {what}, seed {seed}: {} blobs ({}; {} not put to the kernel), {} maps with types \
         ({}), {} values with special fields read back ({}): no difference, {:.1} s",
        tally.total(),
        blobs.join(", "),
        tally.not_asked,
        tally.maps_total(),
        maps.join(", "),
        tally.values,
        fields.join(", "),
        started.elapsed().as_secs_f64()
    ));
}

#[test]
fn compiled_blobs() {
    if !kernel_takes_part() {
        return;
    }
    let (seed, started) = (seed(), Instant::now());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut judge = Judge::default();
    for (name, blob) in corpus() {
        if let Err(what) = judge.judge(&mut rng, &blob, 50) {
            panic!("{name}, seed {seed}: {what}");
        }
    }
    print("compiled", &judge.tally, seed, started);
    assert!(judge.tally.blobs.contains_key(&0), "none was accepted");
}

#[test]
fn generated_and_broken_blobs() {
    if !kernel_takes_part() {
        return;
    }
    let (base, budget) = (seed(), env_number("OFFMAP_OPS").unwrap_or(BLOBS));
    let (started, corpus) = (Instant::now(), corpus());
    let small: Vec<&Vec<u8>> = corpus
        .iter()
        .map(|(_, blob)| blob)
        .filter(|blob| blob.len() < 4 << 10)
        .collect();
    let mut judge = Judge::default();
    for i in 0..budget {
        let seed = base.wrapping_add(i);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut blob = if !small.is_empty() && rng.random_range(0..32) == 0 {
            small[rng.random_range(0..small.len())].clone()
        } else {
            generate(&mut rng)
        };
        if rng.random_range(0..3) == 0 {
            mutate(&mut rng, &mut blob);
        }
        let maps = if rng.random_range(0..8) == 0 { 3 } else { 0 };
        if let Err(what) = judge.judge(&mut rng, &blob, maps) {
            panic!("replay: OFFMAP_SEED={seed} OFFMAP_OPS=1\n{what}");
        }
    }
    print("generated", &judge.tally, base, started);
    if budget >= BLOBS {
        let tally = &judge.tally;
        for errno in [
            Some(Errno::EINVAL),
            Some(Errno::E2BIG),
            Some(Errno::EEXIST),
            Some(Errno::ENOTSUPP),
            Some(Errno::EFAULT),
            None,
        ] {
            let errno = errno.map_or(0, |errno| errno.0);
            assert!(
                tally.blobs.contains_key(&errno),
                "no blob with error number {errno}"
            );
        }
        for kind in ["bpf_spin_lock", "bpf_timer", "kptr", "bpf_list_head"] {
            assert!(
                tally.fields.contains_key(kind),
                "no value with a {kind} was read back"
            );
        }
    }
}

/// What random changes do not come upon.
#[test]
fn limits() {
    if !kernel_takes_part() {
        return;
    }
    let mut blobs: Vec<(&str, i32, BtfBuilder)> = Vec::new();
    let mut add = |what, errno: i32, make: &dyn Fn(&mut BtfBuilder)| {
        let mut builder = BtfBuilder::new();
        make(&mut builder);
        blobs.push((what, errno, builder));
    };
    add("more types than can be numbered", 0, &|b| {
        for _ in 0..0x10_0010 {
            b.reference(Kind::Const, 0);
        }
    });
    // It refers to itself: a loop, so it is there.
    add("the last type that is numbered", Errno::EEXIST.0, &|b| {
        for _ in 0..0xf_fffd {
            b.reference(Kind::Const, 0);
        }
        b.reference(Kind::Ptr, 0xf_fffe);
    });
    add(
        "a reference to a type without a number",
        Errno::EINVAL.0,
        &|b| {
            b.reference(Kind::Ptr, 0xf_ffff);
            for _ in 0..0xf_ffff {
                b.reference(Kind::Const, 0);
            }
        },
    );
    add("a chain resolved in two parts", Errno::ELOOP.0, &|b| {
        let int = b.int("int", 4);
        let name = b.string(b"x");
        b.add(Kind::FuncProto, "", 2, 0, &[name, 23, name, 3]);
        for id in 3..=42 {
            b.reference(Kind::Const, if id == 42 { int } else { id + 1 });
        }
    });
    for (len, errno) in [(32, 0), (33, Errno::E2BIG.0)] {
        add("a long chain of pointers", errno, &|b| {
            for id in 1..=len {
                b.reference(Kind::Ptr, id + 1);
            }
            b.int("int", 4);
        });
    }
    for (len, errno) in [(512, 0), (513, Errno::EINVAL.0)] {
        add("a long name", errno, &|b| {
            b.named(Kind::Typedef, &"a".repeat(len), 0);
        });
    }
    for byte in 1..=255_u8 {
        let letter = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        let letter = letter || (byte >= 0xc0 && byte != 0xd7 && byte != 0xf7);
        add("a byte in a name", if letter { 0 } else { 22 }, &|b| {
            let name = b.string(&[b'a', byte]);
            b.raw(name, (Kind::Typedef as u32) << 24, 0, &[]);
        });
        let print = matches!(byte, 0x20..=0x7e | 0xa0..);
        add(
            "a byte in a section's name",
            if print { 0 } else { 22 },
            &|b| {
                let name = b.string(&[byte]);
                b.raw(name, (Kind::Datasec as u32) << 24, 4, &[]);
            },
        );
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut judge = Judge::default();
    for (what, errno, builder) in blobs {
        let verdict = judge
            .judge(&mut rng, &builder.finish(), 0)
            .unwrap_or_else(|wrong| panic!("{what}: {}", &wrong[..wrong.len().min(2000)]));
        let expected = match errno {
            0 => Verdict::Accepted,
            errno => Verdict::Refused(errno),
        };
        assert_eq!(verdict, expected, "{what}");
    }
}

#[test]
fn no_bytes_panic() {
    let (base, started) = (seed(), Instant::now());
    let corpus = corpus();
    let (mut blobs, mut accepted) = (0_u64, 0_u64);
    while started.elapsed() < FUZZ_TIME {
        let seed = base.wrapping_add(blobs);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut blob = if !corpus.is_empty() && rng.random_range(0..8) == 0 {
            corpus[rng.random_range(0..corpus.len())].1.clone()
        } else {
            generate(&mut rng)
        };
        for _ in 0..rng.random_range(0..4) {
            mutate(&mut rng, &mut blob);
        }
        let outcome = std::panic::catch_unwind(|| fuzz_btf(&blob));
        match outcome {
            Ok(took) => accepted += u64::from(took),
            Err(panic) => {
                aloud(&format!("btf: fuzz body panicked, OFFMAP_SEED={seed}"));
                std::panic::resume_unwind(panic);
            }
        }
        blobs += 1;
    }
    aloud(&format!(
        "btf: fuzz body: {blobs} blobs from seed {base}, {accepted} accepted"
    ));
    assert!(accepted > 0);
}

#[test]
fn the_kernels_own_types() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        aloud("btf: no /sys/kernel/btf/vmlinux here");
        return;
    };
    let started = Instant::now();
    let btf = Btf::parse_kernel(&bytes).expect("the running kernel's own BTF");
    let parsed = started.elapsed();
    let types = offmap_bpf::btf::VmlinuxTypes::new(&btf);
    let indexed = started.elapsed() - parsed;
    aloud(&format!(
        "btf: vmlinux: {} types in {} bytes parsed in {:.1} ms, indexed in {:.1} ms",
        btf.type_count() - 1,
        bytes.len(),
        parsed.as_secs_f64() * 1e3,
        indexed.as_secs_f64() * 1e3
    ));
    use offmap_bpf::btf::KernelTypes;
    for name in [&b"task_struct"[..], b"file"] {
        assert!(types.has_struct(name) && RunningKernel.has_struct(name));
    }
    assert!(types.has_destructor(b"task_struct"));
    assert!(!types.has_destructor(b"file"));
}
